"""Keep every page inside the site: nothing is loaded from another host.

Formulas are set by the one MathJax file that the package ``sphinx-mathjax-offline`` carries; the
scripts of thebe, which load a kernel from elsewhere, are dropped.
"""

from importlib.util import find_spec
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.fileutil import copy_asset

MATHJAX = "tex-svg-full.js"


def _mathjax_file() -> Path:
    spec = find_spec("sphinx-mathjax-offline")  # no identifier, so no import statement can name it
    if spec is None or spec.origin is None:
        raise ExtensionError("sphinx-mathjax-offline is missing: install requirements.lock")
    return Path(spec.origin).parent / "static" / "mathjax" / MATHJAX


def _configure(app: Sphinx) -> None:
    app.config.mathjax_path = f"mathjax/{MATHJAX}"
    # A page that was opened as a file may not fetch its neighbours to quote from them.
    code = 'DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol !== "file:";'
    app.add_js_file(None, body=code)


def _copy(app: Sphinx, exception: Exception | None) -> None:
    if exception is None:
        copy_asset(_mathjax_file(), Path(app.outdir) / "_static" / "mathjax")


def _drop_thebe(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    for kind in ("script_files", "css_files"):
        kept = [file for file in context.get(kind, []) if "thebe" not in str(file)]
        context[kind] = kept


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", _configure, priority=100)
    app.connect("html-page-context", _drop_thebe, priority=900)
    app.connect("build-finished", _copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
