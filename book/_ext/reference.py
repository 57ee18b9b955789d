"""The package's reference: a link from each entry to its source, on a plain page of the site.

Sphinx's viewcode does the same in colours, for a megabyte, a twelfth of what the site may weigh.
"""

import ast
import html
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

FOLDER = "_static/source"
_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><style>:target {{ outline: 2px solid }}</style>
<title>{title}</title></head><body><main><h1>{title}</h1>
<pre>{code}</pre></main></body></html>
"""


@cache
def definitions(source: str) -> dict[str, int]:
    r"""Return the number, from 1, of the line on which each function and class of a module begins.

    Examples
    --------
    >>> definitions("class A:\n    def f(self): ...")
    {'A': 1, 'A.f': 2}
    """
    found = {}

    def look(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[prefix + node.name] = node.lineno
            if isinstance(node, ast.ClassDef):
                look(node.body, f"{prefix}{node.name}.")

    look(ast.parse(source).body, "")
    return found


def source_page(title: str, source: str) -> str:
    """Return the page of a module's source, on which each definition can be linked to."""
    lines = html.escape(source, quote=False).splitlines()
    for name, number in definitions(source).items():
        lines[number - 1] = f'<span id="{name}">{lines[number - 1]}</span>'
    return _PAGE.format(title=title, code="\n".join(lines))


@cache
def _source(module: str) -> str:
    found = importlib.util.find_spec(module)
    origin = found.origin if found else None
    return Path(origin).read_text(encoding="utf-8") if origin else ""


def _address(domain: str, entry: dict[str, str]) -> str | None:
    """Return where the source of an entry of ``book/api`` is, if it is a function or a class."""
    module, name = entry.get("module", ""), entry.get("fullname", "")
    if domain != "py" or not module or name not in definitions(_source(module)):
        return None
    return f"../../{FOLDER}/{module}.html#{name}"


def _write_sources(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        folder = Path(app.outdir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        for module in app.env.get_domain("py").modules:  # type: ignore[attr-defined]
            page = source_page(module, _source(module))
            (folder / f"{module}.html").write_text(page, encoding="utf-8")


def _skip(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out a field of a NamedTuple: all that Python says of it is its number."""
    told = getattr(member, "__doc__", None) or ""
    return True if told.startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.linkcode")
    app.config.linkcode_resolve = _address
    app.connect("autodoc-skip-member", _skip)
    app.connect("build-finished", _write_sources)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
