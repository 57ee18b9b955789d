"""Mend for screen readers what pandas and the theme write.

pandas leaves the corner of a table an empty ``<th>``: a header that heads nothing.
"""

import json

from sphinx.application import Sphinx


def _mend_tables(app: Sphinx, page: str, source: list[str]) -> None:
    if app.env.doc2path(page).endswith(".ipynb"):
        notebook = json.loads(source[0])
        for cell in notebook["cells"]:
            for output in cell.get("outputs", ()):
                if table := output.get("data", {}).get("text/html"):
                    output["data"]["text/html"] = without_empty_headers("".join(table))
        source[0] = json.dumps(notebook)


def without_empty_headers(table: str) -> str:
    """Turn the headers of a table that have no text into plain cells."""
    return table.replace("<th></th>", "<td></td>")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", _mend_tables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
