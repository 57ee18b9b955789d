"""The page of a long study: its criteria, how it was made, its table, its cost.

``{study} name`` writes it from the study's docstring, the claims and the table with its provenance,
and ``{study-result} name`` means over some rows of the table. What came out stands in the page's
own first paragraph; ``{study-costs}`` lists it with what each study costs, ``{study-full-width}``
what the article's own example would. ``{study-ratios}`` holds methods against one another, seed by
seed, and ``{study-edges}`` says which settings were chosen at the edge of a search. A paragraph of
the docstring that begins with "In the criteria" stands above them. A study without a table says so.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import claim_html
import pandas as pd
import yaml
from claim_pages import ClaimsDirective
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from study_tables import edges, marked, number, pictures, ratios, result, table_of

from lipbook.notebook.catalogue import QUESTION
from lipbook.notebook.results import Entry, Finding, Results

#: Facts of a provenance that are shown otherwise.
_ELSEWHERE = ("cells", "rows", "code", "criteria", "later")
#: What some facts are called on the page.
_LABELS = {
    "commit": "commit of the code",
    "MPS": "shared by CUDA MPS",
    "cells that did not end": "runs cut off",
}
_SHOWN = 8  #: texts of a column that are listed one by one
_TUNING = 100  #: the first of the seeds on which settings are chosen, in every study

#: How to read a table of criteria.
_READING = (
    '<p class="claim-reading">A criterion that <a href="../ledger.html#how-to-read-it">decides</a>'
    " has to be met for the claim to hold; one that confines is our own, against the claim, and"
    " limits it if met. <em>Met</em>: the whole interval lies on the side asked for, after Holm's"
    " correction too (p below 0.05). <em>(8 of 10)</em>: so many seeds lie there by themselves."
)
_REFUTES = " One that refutes is met by a counterexample, and the claim fails as printed."
_QUESTION = " A question is undecided as long as one of its criteria is, of whatever role."

#: From how many seconds on a unit is taken, and how many it has.
_UNITS = ((5400, 3600, "h"), (60, 60, "min"), (0, 1, "s"))


class Study(NamedTuple):
    """What is known about a study; without a table, `table` is None and `facts` is empty."""

    name: str
    protocol: str
    claims: tuple[str, ...]
    table: pd.DataFrame | None
    facts: dict[str, Any]
    constants: dict[str, Any]  #: those of the module that are written out


def read(root: Path, name: str) -> Study:
    """Read a study's module, without running it, and its table.

    Parameters
    ----------
    root : Path
        The folder with ``studies`` and ``book``.
    name : str
        The study's name.
    """
    source = root / "studies" / f"{name}.py"
    if not source.exists():
        raise ExtensionError(f"there is no study {name!r}: {source} is missing")
    module = ast.parse(source.read_text(encoding="utf-8"))
    path = root / "book" / "studies" / f"{name}.csv"
    there, known = path.exists(), _constants(module)
    return Study(
        name=name,
        constants=known,
        protocol=ast.get_docstring(module) or "",
        claims=tuple(known.get("CLAIMS", ())),
        table=pd.read_csv(path) if there else None,
        facts=json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) if there else {},
    )


def protocol(
    text: str, others: Container[str] = (), equations: Mapping[int, str] | None = None
) -> str:
    """Return a docstring as Markdown, with links: of equations, `others` are the pages' names."""
    text = re.sub(r":cite:(?=`)", "{cite:t}", text)
    text = re.sub(r"(?<!}):[a-z]+:(?=`)", "", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = re.sub(r"(?<!})`(\w+)`", lambda m: _page(m[1]) if m[1] in others else m[0], text)
    for equation, chapter in (equations or {}).items():
        link = f'<a href="../{chapter}.html#eq-{equation}">({equation})</a>'
        text = text.replace(f"({equation})", link)
    return text


def columns(study: Study, meanings: Mapping[str, str]) -> str:
    """Return a Markdown table of the columns: what they mean, and what they hold."""
    assert study.table is not None
    first = study.table.columns.get_loc("seed") + 1  # the last that a cell sets, in every study
    told = f"The first {first} columns identify a cell, that is one job; the others are measured."
    lines = [("column", "meaning", "values")]
    for name, column in study.table.items():
        lines.append((f"`{name}`", meanings.get(str(name), ""), _values(column)))
    return f"{told}\n\n{table_of(lines, 'stacked columns', [':--'] * 3)}"


def means(root: Path, name: str) -> dict[str, str]:
    """Return what the columns of a study's table mean."""
    path = root / "book" / "studies" / "columns.yml"
    told = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {**told.get("every study", {}), **told.get(name, {})}


def provenance(study: Study) -> str:
    """Return when, where and by what the table was measured, as a Markdown table."""
    facts = {key: value for key, value in study.facts.items() if key not in _ELSEWHERE}
    facts["measured"] = facts["measured"][:10]
    if "commit" in facts:
        facts["commit"] = facts["commit"][:10]
    if (criteria := study.facts.get("criteria")) and criteria["digests"]:
        facts["commit of the criteria"] = criteria["commit"][:10]
    facts["code"] = f"{len(study.facts['code'])} definitions, each with its digest"
    rows = [f"| {_LABELS.get(key, key)} | {_said(value)} |" for key, value in facts.items()]
    return "\n".join(["| fact | of this table |", "| :-- | :-- |", *rows])


def seconds_a_cell(facts: dict[str, Any]) -> float:
    """Return the seconds of one core, or of one of the GPU's workers."""
    minutes = facts.get("minutes on one core", facts.get("minutes of all workers"))
    return 60 * float(minutes) / int(facts["cells"])


class Cost(NamedTuple):
    """Seconds of a cell, of all of them, and of a thousand seeds of every cell, if it has seeds."""

    each: float
    whole: float
    thousand: float | None
    seeds: int  #: on which the table tests; a run of a stack is one


def spent(study: Study) -> Cost:
    """Return what a study's table cost."""
    assert study.table is not None
    seeds = _tested(study.table)
    each = seconds_a_cell(study.facts)
    whole = each * study.facts["cells"]
    return Cost(each, whole, whole / seeds * 1000 if seeds > 1 else None, seeds)


def cost(study: Study) -> str:
    """Return a sentence on what a cell cost, and what a thousand seeds would."""
    facts, (each, whole, thousand, seeds) = study.facts, spent(study)
    if (device := _device(facts)) == "CPU":
        who = "of one core"
    elif facts["workers"] == 1:
        who = f"alone on one {device}"
    else:
        who = f"of one of the {facts['workers']} workers on one {device}"
    told = (
        f"A cell took {_time(each)} {who} in the mean, the {facts['cells']:,} cells {_time(whole)}."
    )
    if thousand is None:
        return told
    return (
        f"{told} A thousand seeds of every cell, where the table has {seeds}, would take"
        f" {_time(thousand)}."
    )


def criteria(study: Study, results: Results) -> str:
    """Return the criteria that the table is held against, as HTML, a claim after the other."""
    about = [entry for entry in results.claims if _concerns(entry, study)]
    if not about:
        return "<p>No claim is judged by this table.</p>"
    refutes = any(f.role == "refutes" for entry in about for f in entry.criteria)
    asks = any(entry.kind == QUESTION for entry in about)
    reading = _READING + _REFUTES * refutes + _QUESTION * asks
    return "".join([*(_of_claim(entry, study) for entry in about), reading, "</p>"])


def costs(root: Path, results: Results) -> str:
    """Return a Markdown table: what came out of each study, what rests on it, what it took."""
    lines = [("study", "what came out", "claims, seeds, cost")]
    contents = (root / "_toc.yml").read_text(encoding="utf-8")
    tables = (root / "book" / "studies").glob("*.json")
    for path in sorted(tables, key=lambda p: contents.index(f"studies/{p.stem}\n")):
        title, told, *_ = path.with_suffix(".md").read_text(encoding="utf-8").split("\n\n")
        study = read(root, path.stem)
        claims = ", ".join(filter(None, (_judged(e, study) for e in results.claims)))
        page, cost = f"[{title.lstrip('# ').strip()}]({path.stem}.md)", spent(study)
        seeds = f"{cost.seeds}\u00a0seed{'s' * (cost.seeds > 1)}"
        if "**Seeds**: none" in study.protocol:
            seeds = "no seeds"
        facts = [claims or "no claim", seeds, _whole(cost.whole)]
        spans = (f'<span class="fact">{fact}</span>' for fact in facts)
        lines.append((page, " ".join(told.split()), " ".join(spans)))
    return table_of(lines, "stacked costs", [":--"] * 3)


def full_width(times: pd.DataFrame, steps: int = 4_000) -> str:
    """Return what the article's own example takes, by the table of step times."""
    known = times[times["method"] == "SN"].set_index(["network", "way"])["milliseconds"]
    quarter, article = known["faces, quarter", "graph"], known["faces, article", "graph"]
    core = known["faces, quarter", "one core"]
    run = 5 * steps / 1000  # of five critic steps each; milliseconds become seconds
    return (
        "The article's own width is four times that of this study."
        " By {doc}`the step times <step_times>` a critic's step with normalized weights takes"
        f" {quarter:.2g} ms on an H100, as one graph, at a quarter of the width, and"
        f" {article:.2g} ms at full width. One run of {steps:,} generator steps, with five critic"
        f" steps each, takes {_time(run * article)}, a thousand seeds"
        f" {_time(1000 * run * article)}. One core takes {core:.0f} ms at a quarter of the"
        f" width, a run {_time(run * core)}."
        " Full width has sixteen times as many multiplications, which makes some"
        f" {_time(16 * run * core)} of a run, and {_time(16_000 * run * core)} of a thousand."
    )


def markdown(
    study: Study,
    results: Results,
    others: Container[str] = (),
    meanings: Mapping[str, str] | None = None,
) -> str:
    """Return the text of a study's page."""
    # Headings first and last: docutils puts text without one after the sections.
    equations = {e.number: e.chapter for e in results.equations}
    paragraphs = protocol(study.protocol, others, equations).split("\n\n")
    guessed = "\n\n".join(p for p in paragraphs if p.startswith("Cost"))
    words = "\n\n".join(p for p in paragraphs if p.startswith("In the criteria"))
    rest = [p for p in paragraphs if not p.startswith(("Cost", "In the criteria"))]
    asked, more = "\n\n".join(rest[:2]), "\n\n".join(rest[2:])
    told = f"## How it was measured\n\n{asked}\n\n## The criteria\n\n{words}\n\n"
    told += criteria(study, results) + f"\n\n## More of the protocol\n\n{more}" * bool(more)
    if study.table is None:
        missing = "There is no table, and no verdict rests on this study: it is planned."
        way = f"`make study STUDY={study.name}` measures it."
        return f"{told}\n\n## Not measured yet\n\n{missing} {way} {guessed}"
    name, (rows, width) = study.name, study.table.shape
    size = f"{rows:,} rows of {study.facts['cells']:,} cells, {width} columns"
    again = f"`make study STUDY={name}` measures it anew, with `CHECK=20` it repeats twenty cells."
    return "\n\n".join(
        [
            told,
            "## The table",
            f"{size}: {{download}}`{name}.csv.zip <{name}.csv.zip>`.",
            columns(study, meanings or {}),
            f"{cost(study)} {again} {{download}}`{name}.json <{name}.json>` has every digest.",
            f":::{{dropdown}} How it came about\n{provenance(study)}\n\n{guessed}\n:::",
        ]
    )


class StudyPage(ClaimsDirective):
    """All that is known about one study."""

    required_arguments = 1

    def markdown(self) -> str:
        """Return the page, read from the study's module and its table."""
        root, name = self.book.parent, self.arguments[0]
        for path in (root / "studies" / f"{name}.py", self.book / "studies" / f"{name}.csv"):
            self.env.note_dependency(str(path))
        others = {path.stem for path in (self.book / "studies").glob("*.md")} - {name}
        return markdown(read(root, name), self.results, others, means(root, name))


class StudyResult(ClaimsDirective):
    """What came out of studies, in a table of means: see `result` for the options."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec = dict.fromkeys(
        [
            *("where", "rows", "values", "across", "best", "names", "over", "split"),
            *("edge", "sort", "note", "marks"),
        ],
        str,
    )

    def markdown(self) -> str:
        """Return the table."""
        return result(_table(self), **self.options)


class StudyRatios(ClaimsDirective):
    """Methods over one another, of one study or of several: see `ratios` for the options."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec = dict.fromkeys(("where", "of", "to", "names", "each", "marks"), str)

    def markdown(self) -> str:
        """Return the table."""
        return ratios(_table(self), **self.options)


class StudyEdges(ClaimsDirective):
    """What a search chose at its edge: see `edges` for the options."""

    required_arguments = 1
    option_spec = dict.fromkeys(("chosen", "tried", "rows", "settings", "names", "marks"), str)

    def markdown(self) -> str:
        """Return a list."""
        return edges(_table(self), **self.options)


class StudyPictures(ClaimsDirective):
    """Generated images of a study: see `pictures` for the options."""

    required_arguments = 1
    option_spec = dict.fromkeys(("where", "rows", "alt", "names"), str)

    def html(self) -> str:
        """Return the figure."""
        return pictures(self.book.parent, self.arguments[0], **self.options)


class StudyCosts(ClaimsDirective):
    """What came out of each study, and what it cost."""

    def markdown(self) -> str:
        """Return a table."""
        return costs(self.book.parent, self.results)


class FullWidth(ClaimsDirective):
    """What the article's own example would take."""

    def markdown(self) -> str:
        """Return a paragraph."""
        return full_width(read(self.book.parent, "step_times").table)


def _table(directive: ClaimsDirective) -> pd.DataFrame:
    """Return the tables of some studies as one, each row with what its settings were chosen for.

    That is said by the option "marks": the columns of the settings with spaces between them, and
    what each choice of the study's module is called, such as "method lr; CHOSEN = end".
    """
    marks = directive.options.pop("marks", "")
    columns, *named = marks.split("; ")
    found = []
    for name in directive.arguments[0].split():
        study = read(directive.book.parent, name)
        table = study.table
        if marks:
            pairs = (pair.split(" = ") for pair in named)
            sets = {told: study.constants[constant] for constant, told in pairs}
            table = table.assign(chosen_for=marked(table, columns, sets))
        found.append(table)
    return pd.concat(found, ignore_index=True)


def _tested(table: pd.DataFrame) -> int:
    """Return on how many seeds a table tests, those left out on which settings were chosen."""
    if "part" in table:
        table = table[~table["part"].isin(("probe", "tuning", "wider"))]
    seeds = table["run" if "run" in table else "seed"]
    return seeds[seeds < _TUNING].nunique()


def _device(facts: dict[str, Any]) -> str:
    return str(facts.get("device", "CPU")).removesuffix(" 80GB HBM3")


def _page(name: str) -> str:
    return f"[`{name}`]({name}.md)"


def _said(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _constants(module: ast.Module) -> dict[str, Any]:
    """Return those of a module's constants that are written out, or made of such."""
    known: dict[str, Any] = {}
    for node in module.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(name)], value=ast.expr() as value)
                | ast.AnnAssign(target=ast.Name(name), value=ast.expr() as value)
            ):
                for part in ast.walk(value):
                    if isinstance(part, ast.Dict):
                        part.keys = [key and _Written(known).visit(key) for key in part.keys]
                with contextlib.suppress(ValueError):
                    known[name] = ast.literal_eval(value)
    return known


class _Written(ast.NodeTransformer):
    """Puts the value of a constant in the place of its name."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self.known = known

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Return the value if it is known."""
        return ast.Constant(self.known[node.id]) if node.id in self.known else node


def _values(column: pd.Series) -> str:
    """Return what a column holds, in a few words."""
    missing = int(column.isna().sum())
    more = f"; {missing:,} missing" if missing else ""
    distinct = sorted(column.dropna().unique())
    if not pd.api.types.is_numeric_dtype(column):
        listed = " · ".join(str(value).replace("|", "\\|") for value in distinct)
        return (listed if len(distinct) <= _SHOWN else f"{len(distinct)} kinds") + more
    if len(distinct) <= _SHOWN:
        return " · ".join(map(number, distinct)) + more
    if column.name in ("seed", "run", "step"):
        return f"{len(distinct)} of them, from {number(distinct[0])} to {number(distinct[-1])}"
    low, middle, high = map(number, column.quantile([0, 0.5, 1]))
    return f"{low} to {high}, median {middle}{more}"


def _concerns(entry: Entry, study: Study) -> bool:
    return study.name in entry.studies or (entry.id in study.claims and bool(entry.planned))


def _judged(entry: Entry, study: Study) -> str:
    """Return a claim's name if a study's table judges it, or is planned to."""
    link = f'<a href="../ledger.html#{entry.id}">{entry.id}</a>'
    if study.name in entry.studies:
        return link
    return f"{link} (planned)" if _concerns(entry, study) else ""


def _of_claim(entry: Entry, study: Study) -> str:
    """Return a claim with those of its criteria that are about the study's table."""
    about = [f for f in entry.criteria if study.name in {s.study for s in f.stated}]
    orders = Counter(claim_html.came_about(s) for f in about for s in f.stated)
    common = [order for order, count in orders.most_common(1) if count > 1 or len(about) == 1]
    each = "The criterion below" if len(about) == 1 else "Each criterion below"
    but = ", unless its row says otherwise" if len(orders) > 1 else ""
    when = "".join(f" {each} was {order}{but}." for order in common)

    def notes(finding: Finding) -> list[str]:
        against = "" if finding.role == "decides" else ", against the claim"
        p = [] if finding.p is None else [claim_html.corrected(finding.p)]
        came = [note for note in claim_html.history(finding) if note not in common]
        came += ["changed, as told below"] * bool(finding.changed)
        return [finding.role + against, *p, *came]

    told = claim_html.table(about, notes) if about else ""
    for change in dict.fromkeys(c for f in about for c in claim_html.changes(f)):
        told += f'<p class="claim-reading">Changed: {claim_html.text(change)}.</p>'
    if entry.planned and entry.id in study.claims:
        later = [c for c in entry.planned if c.study in ("", study.name)]
        told += f"<ul>{''.join(map(claim_html.planned, later))}</ul>"
    others = [f'<a href="{n}.html">{n}</a>' for n in entry.studies if n != study.name]
    shared = f" The claim also rests on {', '.join(others)}." if others else ""
    verdict = f"<strong>{entry.verdict.capitalize()}.</strong>"
    return f"<p>{_asked(entry)} {verdict}{when}{shared}</p>{told}"


def _asked(entry: Entry) -> str:
    """Return what a claim says, with a link to its row of the ledger."""
    link = f'<a class="claim-id" href="../ledger.html#{entry.id}">{entry.id}</a>'
    return f"{link} {claim_html.text(entry.says)}"


def _time(seconds: float) -> str:
    """Return a time to two digits, in the unit that a person would take."""
    size, unit = next((size, unit) for begin, size, unit in _UNITS if seconds >= begin)
    return f"{_person(seconds / size)} {unit}"


def _person(value: float) -> str:
    """Return a number to two digits."""
    return f"{float(f'{value:.2g}'):,.10g}"


def _whole(seconds: float) -> str:
    """Return a time that no line breaks."""
    return _time(seconds).replace(" ", "\u00a0")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("study", StudyPage)
    app.add_directive("study-result", StudyResult)
    app.add_directive("study-ratios", StudyRatios)
    app.add_directive("study-edges", StudyEdges)
    app.add_directive("study-pictures", StudyPictures)
    app.add_directive("study-costs", StudyCosts)
    app.add_directive("study-full-width", FullWidth)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
