"""Say where a line may break, on a phone above all: in a name at its joints, before a stop never.

A browser would rather cut ``spectral_norm`` after any letter than after its underscore, and may
begin a line with the comma that follows a formula, or with the sign of a percentage.
"""

import re

from docutils import nodes
from sphinx.application import Sphinx

_TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
_CODE = re.compile(r'(?<=<span class="pre">)[^<]+')
#: In a sentence a name is broken if it may be longer than a line of a phone.
_LONG = re.compile(r'(?<=<span class="pre">)[^<]{31,}')
_HUMP = "(?<=[a-z]{4})(?=[A-Z][a-z]{3})"
_JOINT = re.compile(rf"(?<=\w)_(?=[^\W_])|(?<=\w)[./](?=[A-Za-z])|::|{_HUMP}")
_MODULE = re.compile(r"(?<=<h1>Source code for )\w+\.")
_PARENTHESIS = '<span class="sig-paren">(</span>'

_FORMULA = re.compile(r'[(\[“]?<span class="math [^"]*">[^<]*</span>(?:[.,;:!?)\]”’]+|-\w+)')
_PERCENT = re.compile(r"(?<=\d) %|(?<=\d</span>) %")


def with_breaks(body: str) -> str:
    """Return a page whose long names may be broken, and whose stops stay with their formulas.

    Examples
    --------
    >>> with_breaks('<table><span class="pre">lab.a_norm</span></table>')
    '<table><span class="pre">lab.<wbr>a_<wbr>norm</span></table>'
    """
    body = _TABLE.sub(lambda table: _CODE.sub(_broken, table[0]), body)
    body = _LONG.sub(_broken, body)
    body = _MODULE.sub(r"\g<0><wbr>", body.replace(_PARENTHESIS, f"{_PARENTHESIS}<wbr>"))
    body = _FORMULA.sub(r'<span class="whole">\g<0></span>', body)
    return _PERCENT.sub("\N{NO-BREAK SPACE}%", body)


def _broken(code: re.Match[str]) -> str:
    return _JOINT.sub(r"\g<0><wbr>", code[0])


def _mend_page(
    app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    if "body" in context:
        context["body"] = with_breaks(context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("html-page-context", _mend_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
