"""The page of a long study: what came out, how it was made, its criteria, its table, its cost.

``{study} name`` writes it from the study's docstring, the claims and the table with its provenance;
``{study-costs}`` lists what each asks and costs, ``{study-full-width}`` what the article's own
example would. A study without a table says so.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

import claim_html
import pandas as pd
from claim_pages import ClaimsDirective
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from lipbook.notebook.results import Entry, Results

#: Facts of a provenance that are shown otherwise.
_ELSEWHERE = ("cells", "rows", "code", "criteria")
#: What some facts are called on the page.
_LABELS = {"MPS": "shared by CUDA MPS", "cells that did not end": "runs cut off"}
_SHOWN = 8  #: texts of a column that are listed one by one
_TUNING = 100  #: the first of the seeds on which settings are chosen, in every study

#: From how many seconds on a unit is taken, and how many it has.
_UNITS = ((5400, 3600, "h"), (90, 60, "min"), (0, 1, "s"))


class Study(NamedTuple):
    """What is known about a study; without a table, `table` is None and `facts` is empty."""

    name: str
    protocol: str
    claims: tuple[str, ...]
    cells: tuple[str, ...]
    table: pd.DataFrame | None
    facts: dict[str, Any]


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
    there = path.exists()
    return Study(
        name=name,
        protocol=ast.get_docstring(module) or "",
        claims=_constant(module, "CLAIMS"),
        cells=_taken(root, module),
        table=pd.read_csv(path) if there else None,
        facts=json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) if there else {},
    )


def protocol(text: str, others: Container[str] = ()) -> str:
    """Return a docstring as Markdown: no roles, and the names of `others` lead to their pages."""
    text = re.sub(r":[a-z]+:(?=`)", "", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return re.sub(r"`(\w+)`", lambda m: _page(m[1]) if m[1] in others else m[0], text)


def columns(study: Study) -> str:
    """Return a Markdown table of the columns: what they hold, and who decides it."""
    assert study.table is not None
    lines = ["| column | role | values |", "| :-- | :-- | :-- |"]
    for name, column in study.table.items():
        part = "set" if name in study.cells else "found"
        lines.append(f"| `{name}` | {part} | {_values(column)} |")
    return "\n".join(lines)


def provenance(study: Study) -> str:
    """Return when, where and by what the table was measured, as a Markdown table."""
    facts = {key: value for key, value in study.facts.items() if key not in _ELSEWHERE}
    facts["measured"] = facts["measured"][:10]
    if "commit" in facts:
        facts["commit"] = facts["commit"][:10]
    if (criteria := study.facts.get("criteria")) and criteria["digests"]:
        facts["criteria stated in"] = f"commit {criteria['commit'][:10]}"
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


def answers(study: Study, results: Results) -> str:
    """Return what the claims that rest on a study say that came out, as HTML."""
    return "".join(
        f"<p>{_asked(entry)} <strong>{entry.verdict.capitalize()}.</strong>"
        f" {claim_html.text(entry.finding)}</p>"
        for entry in results.claims
        if study.name in entry.studies
    )


def criteria(study: Study, results: Results) -> str:
    """Return the criteria that the table is held against, as HTML, a claim after the other."""
    found = [_of_claim(entry, study) for entry in results.claims if _concerns(entry, study)]
    return "".join(found) or "<p>No claim is judged by this table alone.</p>"


def costs(root: Path, results: Results) -> str:
    """Return a Markdown table: what each study asks, what it took, and what rests on it."""
    lines = [
        "| question | the whole | claims | on | cells | a cell | 1,000 seeds |",
        "| :-- | --: | :-- | :-- | --: | --: | --: |",
    ]
    for path in sorted((root / "book" / "studies").glob("*.json")):
        study = read(root, path.stem)
        each, whole, thousand, _ = spent(study)
        resting = [entry for entry in results.claims if study.name in entry.studies]
        claims = ", ".join(f"{entry.id} {entry.verdict}" for entry in resting) or "–"
        lines.append(
            f"| [{_title(path)}]({path.stem}.md) | {_whole(whole)} | {claims} |"
            f" {_device(study.facts).removeprefix('NVIDIA ')} | {study.facts['cells']:,} |"
            f" {_whole(each)} | {_whole(thousand) if thousand else '–'} |"
        )
    return "\n".join(lines)


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


def markdown(study: Study, results: Results, others: Container[str] = ()) -> str:
    """Return the text of a study's page."""
    # Headings first and last: docutils puts text without one after the sections.
    answer = answers(study, results)
    told = (
        (f"## What came out\n\n{answer}\n\n" if answer and study.table is not None else "")
        + f"## The protocol\n\n{protocol(study.protocol, others)}\n\n"
        f"## What it is held against\n\n{criteria(study, results)}"
    )
    if study.table is None:
        missing = (
            "There is no table, and no verdict rests on this study: it is planned, with its cost."
        )
        way = f"`make study STUDY={study.name}` measures it."
        return f"{told}\n\n## Not measured yet\n\n{missing} {way}"
    name, (rows, width) = study.name, study.table.shape
    size = f"{rows:,} rows of {study.facts['cells']:,} cells, {width} columns"
    again = f"`make study STUDY={name}` measures it anew, with `CHECK=20` it repeats twenty cells."
    return "\n\n".join(
        [
            told,
            "## The table",
            f"{size}: {{download}}`{name}.csv.zip <{name}.csv.zip>`.",
            columns(study),
            f"{cost(study)} {again} {{download}}`{name}.json <{name}.json>` has every digest.",
            f":::{{dropdown}} How it came about\n{provenance(study)}\n:::",
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
        return markdown(read(root, name), self.results, others)


class StudyCosts(ClaimsDirective):
    """What each study asks and costs."""

    def markdown(self) -> str:
        """Return a table."""
        return costs(self.book.parent, self.results)


class FullWidth(ClaimsDirective):
    """What the article's own example would take."""

    def markdown(self) -> str:
        """Return a paragraph."""
        return full_width(read(self.book.parent, "step_times").table)


def _taken(root: Path, module: ast.Module) -> tuple[str, ...]:
    """Return what a study's cells set, by the function that measures one, maybe another study's."""
    functions = {n.name: n for n in module.body if isinstance(n, ast.FunctionDef)}
    if takes := functions.get("watch", functions.get("measure")):
        return tuple(arg.arg for arg in takes.args.args)
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "measure":
            return read(root, ast.unparse(node.value).partition(".")[0]).cells
    return ()


def _tested(table: pd.DataFrame) -> int:
    """Return on how many seeds a table tests, those left out on which settings were chosen."""
    if "part" in table:
        table = table[table["part"] == "test"]
    seeds = table["run" if "run" in table else "seed"]
    return seeds[seeds < _TUNING].nunique()


def _device(facts: dict[str, Any]) -> str:
    return str(facts.get("device", "CPU")).removesuffix(" 80GB HBM3")


def _title(table: Path) -> str:
    """Return the heading of a study's page."""
    return table.with_suffix(".md").read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _page(name: str) -> str:
    return f"[`{name}`]({name}.md)"


def _said(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _constant(module: ast.Module, name: str) -> tuple[str, ...]:
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return tuple(ast.literal_eval(node.value))
    return ()


def _values(column: pd.Series) -> str:
    """Return what a column holds, in a few words."""
    missing = int(column.isna().sum())
    more = f"; {missing:,} missing" if missing else ""
    distinct = sorted(column.dropna().unique())
    if not pd.api.types.is_numeric_dtype(column):
        listed = ", ".join(str(value).replace("|", "\\|") for value in distinct)
        return (listed if len(distinct) <= _SHOWN else f"{len(distinct)} texts") + more
    if len(distinct) <= _SHOWN:
        return ", ".join(map(_number, distinct)) + more
    low, middle, high = map(_number, column.quantile([0, 0.5, 1]))
    return f"{low} to {high}, median {middle}{more}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _concerns(entry: Entry, study: Study) -> bool:
    return study.name in entry.studies or (entry.id in study.claims and bool(entry.planned))


def _of_claim(entry: Entry, study: Study) -> str:
    """Return a claim with those of its criteria that are about the study's table."""
    about = [f for f in entry.criteria if study.name in {s.study for s in f.stated}]
    orders = {claim_html.came_about(s) for f in about for s in f.stated}
    items = "".join(claim_html.criterion(f, ordered=len(orders) > 1) for f in about)
    when = f" Each was {orders.pop()}." if len(orders) == 1 else ""
    if entry.planned and entry.id in study.claims:
        later = [c for c in entry.planned if c.study in ("", study.name)]
        items += "".join(map(claim_html.planned, later))
    others = [f'<a href="{n}.html">{n}</a>' for n in entry.studies if n != study.name]
    shared = f" It also rests on {', '.join(others)}." if others else ""
    return f"<p>{_asked(entry)} <strong>{entry.verdict}</strong>.{when}{shared}</p><ul>{items}</ul>"


def _asked(entry: Entry) -> str:
    """Return what a claim says, with a link to its row of the ledger."""
    link = f'<a class="claim-id" href="../ledger.html#{entry.id}">{entry.id}</a>'
    return f"{link} {claim_html.text(entry.says)}"


def _time(seconds: float) -> str:
    """Return a time to two digits, in the unit that a person would take."""
    size, unit = next((size, unit) for begin, size, unit in _UNITS if seconds >= begin)
    return f"{float(f'{seconds / size:.2g}'):,.10g} {unit}"


def _whole(seconds: float) -> str:
    """Return a time that no line breaks."""
    return _time(seconds).replace(" ", "\u00a0")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("study", StudyPage)
    app.add_directive("study-costs", StudyCosts)
    app.add_directive("study-full-width", FullWidth)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
