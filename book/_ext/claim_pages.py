"""Directives that write what the chapters found, all from ``claims.json``.

``claims-map``, ``claims-evidence``, ``claims-picture``, ``claims-ledger``, ``claims-fails``,
``claims-errata``, ``claims-undecided``, ``claims-equations`` and ``claims-own-run``; the role
``claim-number`` is one number, ``claim-found`` has its interval, ``claim-outcome`` says what
follows. In a chapter, the line of a check becomes the claim's card.
"""

import base64
import functools
import html
import itertools
import json
import math
from pathlib import Path
from typing import Any

import claim_html
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective, SphinxRole

from lipbook.notebook import claims, results
from lipbook.notebook.catalogue import (
    FAILS,
    KINDS_OF_EVIDENCE,
    NOT_REPRODUCED,
    NOT_TESTED,
    QUESTION,
    UNDECIDED,
    VERDICTS,
)
from lipbook.notebook.results import Entry, Finding, Results
from lipbook.notebook.verdicts import interval

DATA = "claims.json"
LEDGER = "book/ledger"
#: How a sentence begins with a number.
_COUNTS = dict(enumerate(["No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight"]))


def read(book: Path) -> Results:
    """Return what the build found, or say how to come by it."""
    path = book / DATA
    if not path.exists():
        raise ExtensionError(f"{path} is missing: `make book` writes it from executed notebooks")
    return results.load(path)


def _show_cards(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the card in the place of the line that `check` printed."""
    if not str(app.env.doc2path(page)).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    checked = {
        record["id"]: output
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if (record := output.get("metadata", {}).get(claims.RECORD_KEY))
    }
    if checked:
        book = Path(app.srcdir) / "book"
        app.env.note_dependency(str(book / DATA))
        for entry in read(book).claims:
            if entry.id in checked:
                checked[entry.id]["data"] = {"text/html": claim_html.card(entry)}
        source[0] = json.dumps(notebook)


class ClaimsDirective(SphinxDirective):
    """Write Markdown, or HTML, from the claims."""

    def run(self) -> list[nodes.Node]:
        """Return the nodes of what is written."""
        self.book = Path(self.env.srcdir) / "book"
        self.env.note_dependency(str(self.book / DATA))
        self.results = read(self.book)
        return [*self.parsed(self.markdown()), *self.raw(self.html())]

    def parsed(self, markdown: str) -> list[nodes.Node]:
        """Let MyST read Markdown."""
        parent = nodes.section()
        parent.document = self.state.document
        lines = StringList(markdown.splitlines(), self.get_source_info()[0])
        self.state.nested_parse(lines, 0, parent)
        return parent.children

    def raw(self, content: str) -> list[nodes.Node]:
        """Pass HTML on as it is."""
        return [nodes.raw("", content, format="html")] if content else []

    def markdown(self) -> str:
        """Return what MyST is to read."""
        return ""

    def html(self) -> str:
        """Return what is HTML already; it comes after the Markdown."""
        return ""

    def having(self, *verdicts: str) -> list[Entry]:
        """Return the claims with one of these verdicts."""
        return [entry for entry in self.results.claims if entry.verdict in verdicts]

    def printed(self, entry: Entry) -> str:
        """Return what the article says, and where."""
        chapters = {e.number: e.chapter for e in self.results.equations}
        links = [_link(f"{chapters[n]}.html#eq-{n}", f"({n})") for n in entry.equations]
        numbers = f"equation{'s' * (len(links) > 1)} {' and '.join(links)}"
        where = [f"*{entry.section}*", *[numbers] * bool(links)]
        verb = "asks" if entry.kind == QUESTION else "says"
        return f"**The article {verb}** ({', '.join(where)}): {entry.says}"


class Map(ClaimsDirective):
    """What the letters mean, and every claim as a cell, by chapter."""

    def html(self) -> str:
        """Return the legend with its counts, and a row a chapter."""
        rows = []
        for name in sorted({entry.chapter for entry in self.results.claims}):
            entries = [entry for entry in self.results.claims if entry.chapter == name]
            title = f'<p><a href="{name}.html">{html.escape(_title(self.book, name))}</a></p>'
            rows.append(title + claim_html.cells(entries))
        count = self.results.count()
        legend = claim_html.legend({word: count[word] for word in VERDICTS})
        return f'{legend}<div class="claim-map">{"".join(rows)}</div>'


class Evidence(ClaimsDirective):
    """What kinds of evidence the verdicts rest on, in a sentence."""

    def markdown(self) -> str:
        """Return the sentence."""
        kinds = self.results.evidence()
        counts = {kind: kinds[kind] for kind in KINDS_OF_EVIDENCE}
        return claim_html.evidence_sentence(counts, self.results.early())


class Picture(ClaimsDirective):
    """A chapter's figure once more: ``{claims-picture} chapter figure``."""

    required_arguments = 2

    def markdown(self) -> str:
        """Return the figure."""
        return drawn(self.book, *self.arguments, f"{self.env.docname.rpartition('/')[2]}.png")


class Ledger(ClaimsDirective):
    """Every claim, a row each."""

    def html(self) -> str:
        """Return the menus and the rows."""
        entries = self.results.claims
        chapters = sorted({entry.chapter for entry in entries})
        titles = {name: _title(self.book, name) for name in chapters}
        rows = "".join(map(claim_html.row, entries))
        return f'{claim_html.filters(entries, titles)}<div class="claim-ledger">{rows}</div>'


class Equations(ClaimsDirective):
    """Each equation of the article: where it is explained, computed and tested."""

    def markdown(self) -> str:
        """Return a table, and the tests folded."""
        rows, tests = [], []
        for e in self.results.equations:
            number = _link(f"{e.chapter}.html#eq-{e.number}", f"({e.number})")
            rows.append(f"| {number} | {_escaped(e.what)} | {{py:obj}}`{e.code}` |")
            tests.append(f"- {number} `{e.test}`")
        heads = ["| no. | what | computed by |", "| :-- | :-- | :-- |"]
        fold = [":::{dropdown} The tests that hold the code against each", *tests, ":::"]
        return "\n".join([*heads, *rows, "", *fold])


class Fails(ClaimsDirective):
    """What fails as printed, as links to the errata.

    All in one line; with *each*, each in a line; with *instead*, each struck out, and what holds.
    """

    optional_arguments = 1

    def markdown(self) -> str:
        """Return the links, in lines of their own behind what is printed."""
        found = self.having(FAILS)
        links = [_link(f"errata.html#{nodes.make_id(_heading(e))}", e.short) for e in found]
        if "instead" in self.arguments:
            return "\n".join(map(self.struck, found))
        if self.arguments:
            lines = zip(found, links, strict=True)
            return "\n".join(f"- {entry.says} → {link}" for entry, link in lines)
        count = _COUNTS.get(len(found), str(len(found)))
        return f"{count} fail as printed. What holds instead: {'; '.join(links)}." if links else ""

    def struck(self, entry: Entry) -> str:
        """Return a claim with a line through it, what holds instead, and where it is refuted."""
        link = _link(f"errata.html#{nodes.make_id(_heading(entry))}", entry.id)
        return f"- <s>{html.escape(entry.says)}</s><br>**Instead:** {entry.corrected} ({link})"


class Errata(ClaimsDirective):
    """Each claim that fails as printed, with what to put in its place."""

    def markdown(self) -> str:
        """Return one section a claim."""
        sections = map(self.entry, self.having(FAILS))
        return "\n\n".join(sections) or "No claim that has been checked so far fails as printed."

    def entry(self, entry: Entry) -> str:
        """Return the section of one claim."""
        refuted = [f for f in entry.criteria if f.role == "refutes" and f.state == "met"]
        return _section(
            entry,
            self.printed(entry),
            f"**Smallest counterexample.** {entry.counterexample}",
            *self.picture(entry),
            f"**Corrected.** {entry.corrected}",
            f"**Checked** in {_link(entry.page, entry.id)}:",
            claim_html.table(refuted, bound="refutes if"),
            f"**The test that fails on the printed statement**: `{entry.test}`",
        )

    def picture(self, entry: Entry) -> list[str]:
        """Return the figure that shows the counterexample, if there is one."""
        if not entry.figure:
            return []
        return [drawn(self.book, entry.chapter, entry.figure, f"errata-{entry.id}.png")]


class Undecided(ClaimsDirective):
    """Each claim that was not reproduced, is undecided or was not tested, and what would decide."""

    def markdown(self) -> str:
        """Return one section a claim."""
        found = self.having(NOT_REPRODUCED, UNDECIDED, NOT_TESTED)
        return "\n\n".join(map(self.entry, found)) or "There is no such claim at present."

    def entry(self, entry: Entry) -> str:
        """Return the section of one claim: of its criteria, those that made the verdict."""
        state = "reversed" if entry.verdict == NOT_REPRODUCED else "undecided"
        made = [
            f
            for f in entry.criteria
            if f.state == state and (f.role == "decides" or entry.kind == QUESTION)
        ]
        which = "criteria" if entry.kind == QUESTION else "deciding criteria"
        which += " that went the other way" if state == "reversed" else " that are undecided"
        count = len(entry.criteria) + len(entry.planned)
        alike = self.referred(entry, made)
        said, more = claim_html.lead(entry.finding)
        every = "Both" if count == 2 else f"All {count}"
        return _section(
            entry,
            self.printed(entry),
            f"**{entry.verdict.capitalize()}.** {entry.reason or said}",
            *([f"**What would decide it.** {entry.decisive}"] if entry.decisive else []),
            f"**Tried on.** {entry.scope}",
            *([f"**In more words.** {more}"] if more and not entry.reason else []),
            *(
                [f"What made the verdict, the {which}{alike}:", claim_html.table(made)]
                if made
                else []
            ),
            f"{_link(f'ledger.html#{entry.id}', f'{every} criteria')} are in the ledger.",
        )

    def referred(self, entry: Entry, made: list[Finding]) -> str:
        """Return what "the same" means where its row is not in the table, if a row says it."""
        if not any(f.quantity.startswith("the same ") for f in made):
            return ""
        parts = [f.quantity.split(", ") for f in entry.criteria if f.role == "decides"]
        alike = itertools.takewhile(lambda p: len(set(p)) == 1, zip(*parts, strict=False))
        shared = ", ".join(part[0] for part in alike)
        return f" (*the same*: {_escaped(shared)})" if shared else ""


class OwnRun(ClaimsDirective):
    """Each claim's numbers beside the stored ones, flipped verdicts first."""

    def markdown(self) -> str:
        """Return one section a claim; of the stored numbers, what other seeds said."""
        if not self.results.own_run:
            return self.elsewhere()
        entries = [entry for entry in self.results.claims if entry.stored]
        entries.sort(key=lambda entry: entry.verdict == entry.stored)
        flipped = sum(entry.verdict != entry.stored for entry in entries)
        summary = f"{flipped} of {len(entries)} verdicts differ from the stored ones."
        return "\n\n".join([summary, *map(self.entry, entries)])

    def elsewhere(self) -> str:
        """Return how often the verdicts came out at other seeds."""
        tried = [(entry, entry.seeds) for entry in self.results.claims if entry.seeds]
        sure = sum(all(f.kind != "measured" for f in entry.criteria) for entry, _ in tried)
        moved = [
            f"- {_link(f'ledger.html#{entry.id}', entry.id)} {entry.says}"
            f" **{entry.verdict.capitalize()}** at {seeds.held} seeds of {seeds.of};"
            f" {', '.join(f'{word} at {count}' for word, count in seeds.others.items())}."
            for entry, seeds in tried
            if seeds.others
        ]
        fixed = sum(claim_html.from_tables(entry) for entry, _ in tried)
        free = len(tried) - sure - fixed
        record = json.loads((self.book / "records" / "seeds.json").read_text(encoding="utf-8"))
        seeds = max(seeds.of for _, seeds in tried)
        return (
            f"We ran the checks of every chapter at {seeds} seeds that had not been used before"
            f" ({record['measured']}). Of the {len(tried)} verdicts that were checked, {free} can"
            f" change with the seed: {free - len(moved)} came out the same at all {seeds} seeds,"
            f" and {len(moved)} did not:\n\n"
            + "\n".join(moved)
            + f"\n\nThe other {sure + fixed} cannot change this way: {sure} rest on proof,"
            f" computation or publication alone, {fixed} on the stored tables of the long studies."
        )

    def entry(self, entry: Entry) -> str:
        """Return the section of one claim."""
        change = f": {entry.stored} → {entry.verdict}" if entry.verdict != entry.stored else ""
        items = [
            f"- {_escaped(f.text)}; stored {claims.formatted(f.stored, f.scale)}"
            + (f", {float(f.standard_errors):+.1f} standard errors" if f.standard_errors else "")
            for f in entry.criteria
            if f.stored
        ]
        return "\n\n".join(
            [f"## {entry.id}{change}", _link(entry.page, entry.says), *["\n".join(items)]]
        )


class Number(SphinxRole):
    """A criterion's number to two digits: the claim, and the criterion."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return it as text."""
        book = Path(self.env.srcdir) / "book"
        self.env.note_dependency(str(book / DATA))
        return [nodes.Text(number(read(book), *self.text.split()))], []


class Found(SphinxRole):
    """What a criterion found, with its interval."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return it as text."""
        book = Path(self.env.srcdir) / "book"
        self.env.note_dependency(str(book / DATA))
        return [nodes.Text(claim_html.found(_finding(read(book), *self.text.split())))], []


class CameOut(SphinxRole):
    """What became of a criterion, at how many seeds, and its p-value."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return it as text."""
        book = Path(self.env.srcdir) / "book"
        self.env.note_dependency(str(book / DATA))
        finding = _finding(read(book), *self.text.split())
        p = "" if finding.p is None else f", {claim_html.corrected(finding.p)}"
        return [nodes.Text(claim_html.outcome(finding) + p)], []


def number(found: Results, claim: str, criterion: str) -> str:
    """Return the mean of what a criterion found, the geometric one on a log scale."""
    finding = _finding(found, claim, criterion)
    low, high = interval([float(value) for value in finding.values], finding.scale)
    middle = math.sqrt(low * high) if finding.scale == "log" else (low + high) / 2
    return f"{middle:.2g}"


def _finding(found: Results, claim: str, criterion: str) -> Finding:
    """Return a criterion that has numbers."""
    for entry in found.claims:
        for finding in entry.criteria:
            if (entry.id, finding.id) == (claim, criterion) and finding.values:
                return finding
    raise ExtensionError(f"no number of {claim}, {criterion} in {DATA}")


def drawn(book: Path, chapter: str, figure: str, name: str) -> str:
    """Return a figure that repeats one of a chapter, and write its picture beside it."""
    for cell in _cells(book, chapter):
        settings = cell["metadata"].get("mystnb", {})
        if settings.get("figure", {}).get("name") == figure:
            pictures = (output.get("data", {}).get("image/png") for output in cell["outputs"])
            (book / name).write_bytes(base64.b64decode(next(filter(None, pictures))))
            alt = json.dumps(settings["image"]["alt"], ensure_ascii=False)
            return f":::{{figure}} {name}\n:alt: {alt}\n\n{settings['figure']['caption']}\n:::"
    raise ExtensionError(f"{chapter} has no figure named {figure!r}")


def _section(entry: Entry, *paragraphs: str) -> str:
    """Return what a page says of one claim, below its heading."""
    return "\n\n".join([f"## {_heading(entry)}", *paragraphs])


def _heading(entry: Entry) -> str:
    return f"{entry.id}: {entry.short or entry.section}"


def _title(book: Path, chapter: str) -> str:
    """Return a chapter's number and its first heading."""
    heading = "".join(_cells(book, chapter)[0]["source"]).partition("\n")[0]
    number = chapter.partition("_")[0].lstrip("0")
    return f"{number} · {heading.lstrip('# ').removeprefix(f'{number}. ')}"


@functools.cache
def _cells(book: Path, chapter: str) -> list[dict[str, Any]]:
    """Return the cells of an executed notebook, a megabyte that several pages ask for."""
    notebook = json.loads((book / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    return notebook["cells"]


def _link(address: str, words: str) -> str:
    """Return a link in HTML: MyST looks for the targets of its own ones among what it has read."""
    return f'<a href="{address.replace(" ", "%20")}">{html.escape(words)}</a>'


def _escaped(text: str) -> str:
    """Keep Markdown from reading the numbers of a record as marks."""
    for mark in "\\*_`|<$":
        text = text.replace(mark, "\\" + mark)
    return text


def _offer_data(app: Sphinx, exception: Exception | None) -> None:
    """Put the data and its schema beside the pages."""
    data = Path(app.srcdir) / "book" / DATA
    if exception is None and data.exists():
        folder = Path(app.outdir) / "_static"
        found = json.loads(data.read_text(encoding="utf-8"))
        light = json.dumps(found, separators=(",", ":"), ensure_ascii=False)
        (folder / DATA).write_text(light + "\n", encoding="utf-8")
        schema = json.dumps(results.schema(), indent=1, ensure_ascii=False)
        (folder / "claims.schema.json").write_text(schema + "\n", encoding="utf-8")


def _add_script(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    if page == LEDGER:
        app.add_js_file("ledger.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("claims-map", Map)
    app.add_directive("claims-evidence", Evidence)
    app.add_directive("claims-picture", Picture)
    app.add_directive("claims-ledger", Ledger)
    app.add_directive("claims-equations", Equations)
    app.add_directive("claims-fails", Fails)
    app.add_directive("claims-errata", Errata)
    app.add_directive("claims-undecided", Undecided)
    app.add_directive("claims-own-run", OwnRun)
    app.add_role("claim-number", Number())
    app.add_role("claim-found", Found())
    app.add_role("claim-outcome", CameOut())
    app.add_css_file("claims.css")
    app.connect("source-read", _show_cards)
    app.connect("html-page-context", _add_script)
    app.connect("build-finished", _offer_data)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
