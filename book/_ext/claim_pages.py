"""Directives that write what the chapters found: ``claims-glance``, ``-ledger``, ``-errata``.

Their only sources are the catalogue and the records that ``claims.check`` left in the executed
notebooks. In a chapter, the line of a check becomes a card with its evidence, to which
the ledger links.
"""

import base64
import html
import json
from collections import Counter
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from lipbook.notebook import claims
from lipbook.notebook.catalogue import FAILS, NOT_TESTED, VERDICTS, Claim, catalogue

_ROLES = {
    "decides": "What decides it",
    "confines": "What confines it",
    "refutes": "Against it",
}


def records_by_id(book: Path) -> dict[str, dict]:
    """Return each claim's record and the page that it stands on."""
    found = {}
    for path in sorted(book.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for record in claims.records(notebook):
            found[record["id"]] = {**record, "page": path.stem}
    return found


def card(claim: Claim, record: dict) -> str:
    """Return the HTML that stands in a chapter where a claim was checked."""
    groups = []
    texts = {item["id"]: item["text"] for item in record["criteria"]}
    for role, heading in _ROLES.items():
        items = [texts[c.id] for c in claim.criteria if c.role == role]
        if items:
            listed = "".join(f"<li>{html.escape(item)}</li>" for item in items)
            groups.append(f"<dt>{heading}</dt><dd><ul>{listed}</ul></dd>")
    return (
        f'<section class="claim-card {record["verdict"].replace(" ", "-")}" id="claim-{claim.id}"'
        f' aria-label="Claim {claim.id}">'
        f'<p><span class="claim-id">{claim.id}</span> {html.escape(claim.says)}'
        f' <strong class="claim-verdict">{record["verdict"]}</strong></p>'
        f"<dl>{''.join(groups)}</dl></section>"
    )


def _show_cards(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the card in the place of the line that `check` printed."""
    if not app.env.doc2path(page).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            record = output.get("metadata", {}).get(claims.RECORD_KEY)
            if record is not None:
                claim = catalogue()[record["id"]]
                output["data"] = {"text/html": card(claim, record)}
    source[0] = json.dumps(notebook)


class ClaimsDirective(SphinxDirective):
    """Write Markdown from the claims and let MyST read it."""

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the generated text."""
        self.book = Path(self.env.srcdir) / "book"
        for path in (*self.book.glob("*.ipynb"), self.book / "claims.yml"):
            self.env.note_dependency(str(path))
        self.records = records_by_id(self.book)
        self.claims = list(catalogue().values())
        parent = nodes.section()
        parent.document = self.state.document
        lines = self.markdown().splitlines()
        self.state.nested_parse(StringList(lines, self.get_source_info()[0]), 0, parent)
        return parent.children

    def markdown(self) -> str:
        """Return the text."""
        raise NotImplementedError

    def verdict(self, claim: Claim) -> str:
        """Return the verdict of a claim as it was measured on this build."""
        return self.records[claim.id]["verdict"] if claim.id in self.records else NOT_TESTED

    def where(self, claim: Claim) -> str:
        """Return a claim's id, linked to the cell that checks it."""
        record = self.records.get(claim.id)
        if record is None:
            return claim.id
        return f'<a href="{record["page"]}.html#claim-{claim.id}">{claim.id}</a>'


class Glance(ClaimsDirective):
    """How many claims have each verdict."""

    def markdown(self) -> str:
        """Return a small table."""
        count = Counter(map(self.verdict, self.claims))
        rows = [f"| {v} | {count[v]} |" for v in VERDICTS if count[v]]
        return "| verdict | claims |\n| :-- | --: |\n" + "\n".join(rows)


class Ledger(ClaimsDirective):
    """Every claim: what the article says, what came out, with which numbers."""

    def markdown(self) -> str:
        """Return one table for each section of the article."""
        blocks = []
        for section in dict.fromkeys(claim.section for claim in self.claims):
            rows = [("", "The article says", "Verdict", "Measured")]
            rows += [self.row(c) for c in self.claims if c.section == section]
            table = "\n".join(_list_row(row) for row in rows)
            options = ":header-rows: 1\n:widths: 8 34 14 44\n:class: ledger"
            blocks += [f"## {section}", f":::{{list-table}}\n{options}\n\n{table}\n:::"]
        return "\n\n".join(blocks)

    def row(self, claim: Claim) -> tuple[str, str, str, str]:
        """Return the cells of one claim."""
        equations = ", ".join(f"({n})" for n in claim.equations)
        says = f"{claim.says} {equations}".strip()
        record = self.records.get(claim.id)
        if record is None:
            return claim.id, says, f"**{NOT_TESTED}**", claim.reason
        numbers = "\n".join(f"- {_escaped(e['text'])}" for e in record["criteria"])
        made = f"Seed {record['seed']}, {record['device']}, scale {record['scale']}."
        measured = f"{claim.finding}\n\n{numbers}\n\n{made}"
        return self.where(claim), says, f"**{record['verdict']}**", measured


class Errata(ClaimsDirective):
    """Each claim that fails as printed, with what to put in its place."""

    def markdown(self) -> str:
        """Return one section a claim."""
        failing = [c for c in self.claims if self.verdict(c) == FAILS]
        if not failing:
            return "No claim that has been checked so far fails as printed."
        return "\n\n".join(self.entry(claim) for claim in failing)

    def entry(self, claim: Claim) -> str:
        """Return the section of one claim."""
        evidence = "\n".join(f"- {_escaped(e['text'])}" for e in self.records[claim.id]["criteria"])
        return "\n\n".join(
            [
                f"## {claim.id}: {claim.section}",
                f"**As printed.** {claim.says}",
                f"**Smallest counterexample.** {claim.counterexample}",
                *([drawn(self.book, claim)] if claim.figure else []),
                f"**Corrected.** {claim.corrected}",
                f"**Measured on this build**, in {self.where(claim)}:",
                evidence,
                f"**The test that fails on the printed statement**: `{claim.test}`",
            ]
        )


def drawn(book: Path, claim: Claim) -> str:
    """Return a figure that repeats one of the claim's chapter, and write its picture beside it."""
    notebook = json.loads((book / f"{claim.chapter}.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        settings = cell["metadata"].get("mystnb", {})
        if settings.get("figure", {}).get("name") == claim.figure:
            pictures = (output.get("data", {}).get("image/png") for output in cell["outputs"])
            name = f"errata-{claim.id}.png"
            (book / name).write_bytes(base64.b64decode(next(filter(None, pictures))))
            alt = json.dumps(settings["image"]["alt"], ensure_ascii=False)
            return f":::{{figure}} {name}\n:alt: {alt}\n\n{settings['figure']['caption']}\n:::"
    raise ExtensionError(f"{claim.id}: {claim.chapter} has no figure named {claim.figure!r}")


def _list_row(cells: tuple[str, ...]) -> str:
    first, *rest = (cell.replace("\n", "\n    ") for cell in cells)
    return "\n".join([f"* - {first}", *(f"  - {cell}" for cell in rest)])


def _escaped(text: str) -> str:
    """Keep Markdown from reading the numbers of a record as marks."""
    for mark in "\\*_`|<$":
        text = text.replace(mark, "\\" + mark)
    return text


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("claims-glance", Glance)
    app.add_directive("claims-ledger", Ledger)
    app.add_directive("claims-errata", Errata)
    app.connect("source-read", _show_cards)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
