"""The package's reference: what autodoc should leave out."""

from typing import Any

from sphinx.application import Sphinx


def _skip(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out a field of a NamedTuple: all that Python says of it is its number."""
    told = getattr(member, "__doc__", None) or ""
    return True if told.startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
