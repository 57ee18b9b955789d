"""Mend for screen readers what pandas, docutils, MyST and the theme write.

The corner of a table is an empty ``<th>``: a header that heads nothing; an index with a name has a
row of headers to itself. Entries of the references
are no items of their list. Every fold of code has the same name, which hides the words on it. The
theme's arrows, which open a part of the sidebar, have no name. A link to an exercise begins with
the space before it.
"""

import html
import json
import re
from collections.abc import Callable
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

#: An entry of the sidebar with pages of its own, and the arrow that unfolds them.
_FOLD = re.compile(r"(<a [^>]*>(?P<title>[^<]*)</a><details[^>]*><summary)>")

#: What stands before the link to a solution's exercise, with the space inside of the link.
_SOLUTION = re.compile(r"(Solution to)(<a [^>]*>) ")

#: The columns' names, and below them the names of the index in a row that is empty else.
_TWO_ROWS = re.compile(
    r"(?P<corner>(?:<th></th>\s*)*?<th>(?P<across>[^<]*)</th>\s*)(?P<columns>(?:<th[^>]*>[^<]+</th>\s*)+)"
    r"</tr>\s*<tr[^>]*>\s*(?P<index>(?:<th>[^<]+</th>\s*)+)(?:<th></th>\s*)+</tr>"
)

#: A header without words, as docutils writes it.
_EMPTY_HEADER = re.compile(r"<th([^>]*)>\s*<p>\s*</p>\s*</th>")


def _mend_tables(app: Sphinx, page: str, source: list[str]) -> None:
    if str(app.env.doc2path(page)).endswith(".ipynb"):
        notebook = json.loads(source[0])
        for cell in notebook["cells"]:
            for output in cell.get("outputs", ()):
                for kind, table in output.get("data", {}).items():
                    if kind.endswith("text/html"):  # also what is glued
                        table = with_index_in_its_corner("".join(table))
                        output["data"][kind] = without_empty_headers(table)
        source[0] = json.dumps(notebook)


def with_index_in_its_corner(table: str) -> str:
    """Put the names of an index into the corner of a table, above which pandas leaves a row.

    Examples
    --------
    >>> columns, index = "<th>a</th><th>b</th></tr>", "<tr><th>seed</th><th></th><th></th></tr>"
    >>> with_index_in_its_corner("<tr><th></th>" + columns + index)
    '<tr><th>seed</th><th>a</th><th>b</th></tr>'
    >>> with_index_in_its_corner("<tr><th>step</th>" + columns + index)
    '<tr><th>seed, by step</th><th>a</th><th>b</th></tr>'
    """

    def joined(rows: re.Match[str]) -> str:
        if rows["corner"].count("<th>") != rows["index"].count("<th>"):
            return rows[0]
        by = f", by {rows['across']}</th>" if rows["across"] else "</th>"
        return by.join(rows["index"].rsplit("</th>", 1)) + rows["columns"] + "</tr>"

    return _TWO_ROWS.sub(joined, table)


def without_empty_headers(table: str) -> str:
    """Turn the headers of a table that have no text into plain cells."""
    return table.replace("<th></th>", "<td></td>")


def with_plain_roles(body: str) -> str:
    """Do the same for docutils' tables, and let references and folds be what they look like.

    Examples
    --------
    >>> with_plain_roles('<th class="head"><p></p></th>')
    '<td class="head"></td>'
    >>> with_plain_roles('Solution to<a href="#a"> Exercise 1</a>')
    'Solution to <a href="#a">Exercise 1</a>'
    """
    body = _EMPTY_HEADER.sub(r"<td\1></td>", body)
    body = _SOLUTION.sub(r"\1 \2", body)
    body = body.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    return body.replace('role="doc-biblioentry"', 'role="listitem"')


def with_named_folds(sidebar: str) -> str:
    """Give each arrow of the sidebar the name of what it unfolds."""

    def named(found: re.Match[str]) -> str:
        title = html.escape(html.unescape(found["title"]))
        return f'{found[1]} aria-label="Pages of {title}">'

    return _FOLD.sub(named, sidebar)


def _mend_page(
    app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    if "body" in context:
        context["body"] = with_plain_roles(context["body"])
    written: Callable[..., Any] = context["generate_toctree_html"]
    context["generate_toctree_html"] = lambda *args, **kwargs: with_named_folds(
        str(written(*args, **kwargs))
    )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", _mend_tables)
    app.connect("html-page-context", _mend_page, priority=900)  # after the theme's own
    return {"parallel_read_safe": True, "parallel_write_safe": True}
