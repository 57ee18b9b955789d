"""Let a name of the package in a chapter's code lead to its place in the reference."""

import ast
import html
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

import lipbook

_CODE = re.compile(r"<pre>.*?</pre>", re.DOTALL)
_NAME = re.compile(
    r'<span class="n">(\w+)</span>(?:<span class="o">\.</span><span class="n">(\w+)</span>)?'
)
#: A public name of the package itself, and where it is documented.
_SHORT = {f"lipbook.{n}": f"{getattr(lipbook, n).__module__}.{n}" for n in lipbook.__all__}


def imported(cells: Iterable[str]) -> dict[str, str]:
    """Return what cells import from the package: the name there, and the full name.

    Examples
    --------
    >>> imported(["from lipbook import wgan as w, spectral_norm"])
    {'w': 'lipbook.wgan', 'spectral_norm': 'lipbook.power_iteration.spectral_norm'}
    """
    found = {}
    for cell in cells:
        try:
            tree = ast.parse(cell)
        except SyntaxError:  # a magic
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lipbook"):
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    found[alias.asname or alias.name] = _SHORT.get(full, full)
    return found


def linked(body: str, names: dict[str, str], address: Callable[[str], str | None]) -> str:
    """Return a page whose code leads from each name to its address, if it has one."""

    def link(found: re.Match[str]) -> str:
        name, attribute = found.groups()
        full = names.get(name, "")
        where = address(f"{full}.{attribute}" if attribute else full) if full else None
        if where is None:
            return found[0]
        return f'<a class="code-link" href="{html.escape(where)}">{found[0]}</a>'

    return _CODE.sub(lambda block: _NAME.sub(link, block[0]), body)


def _link_page(
    app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    path = Path(app.env.doc2path(page))
    if doctree is None or path.suffix != ".ipynb":
        return
    objects = app.env.get_domain("py").objects

    def address(full: str) -> str | None:
        if full not in objects:
            return None
        place = objects[full]
        return f"{app.builder.get_relative_uri(page, place.docname)}#{place.node_id}"

    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    context["body"] = linked(context["body"], imported(code), address)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("html-page-context", _link_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
