"""Let a name of the package in a chapter's code lead to its place in the reference."""

import ast
import html
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

_CODE = re.compile(r"<pre>.*?</pre>", re.DOTALL)
_NAME = re.compile(
    r'<span class="n">(\w+)</span>(?:<span class="o">\.</span><span class="n">(\w+)</span>)?'
)


def imported(cells: Iterable[str]) -> dict[str, str]:
    """Return what cells import from the package: the name there, and the full name.

    Examples
    --------
    >>> imported(["from lipbook import wgan as w, spectral_norm"])
    {'w': 'lipbook.wgan', 'spectral_norm': 'lipbook.spectral_norm'}
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
                    found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def with_short_names(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is documented by its names, those in the package itself included.

    Examples
    --------
    >>> sorted(with_short_names({"lipbook.wgan.loss": 1}))
    ['lipbook.loss', 'lipbook.wgan.loss']
    """
    pairs = [(full.split("."), entry) for full, entry in objects.items()]
    short = {f"{path[0]}.{path[2]}": entry for path, entry in pairs if len(path) == 3}
    return {**short, **objects}


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
    objects = with_short_names(app.env.get_domain("py").objects)

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
