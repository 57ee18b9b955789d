"""What the chapters found about each claim, as data: ``claims.json``, which every page reads.

It is made once from the executed notebooks. Each entry joins the catalogue's words and criteria to
what this build measured, to how a study's criteria and its table came after one another, to the
records of other seeds and of planted worlds, and, where this is a run of a reader's own, to the
numbers that are stored in the book.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict
from scipy import stats

from lipbook.notebook.catalogue import Claim, Criterion, catalogue, catalogue_path
from lipbook.notebook.claims import records

Order = Literal["before", "after", "changed"]
Number = float | Literal["inf", "-inf"]
Records = Mapping[str, dict[str, Any]]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Stated(_Data):
    """Which came first, a criterion or the table that it is held against."""

    study: str
    measured: str
    """The day."""
    order: Order
    """Whether the criterion stood before the table, after it, or before it in another form."""
    commit: str = ""
    """Where it stood."""
    later: bool = False
    """Whether a part of the table was there already, which the criterion is not about."""


class Finding(Criterion):
    """A criterion and what this build found."""

    values: tuple[Number, ...] = ()
    interval: tuple[Number, Number] | None = None
    p: float | None = None
    """After Holm's correction over the measured criteria of the claim."""
    state: Literal["met", "reversed", "undecided", ""] = ""
    seeds_held: int = 0
    text: str = ""
    stated: tuple[Stated, ...] = ()
    stored: tuple[Number, ...] = ()
    """The values that the book has stored, in a run of one's own."""
    standard_errors: Number | None = None
    """How far the run's mean is from the stored one."""


class Seeds(_Data):
    """How often the verdict came out over other seeds, each a run of the whole chapter."""

    held: int
    of: int
    low: float
    """Wilson's 95 % interval of the share."""
    high: float
    others: dict[str, int] = {}
    """The other verdicts, and how often each came out."""


class Flip(_Data):
    """A planted world, in which the truth is otherwise, and the verdict of the same criteria."""

    world: str
    verdict: str
    date: str
    because: tuple[str, ...] = ()


class Run(_Data):
    """What the numbers were made with."""

    seed: int | None
    device: str | None
    scale: str | None


class Entry(_Data):
    """A claim with everything that is known about it."""

    id: str
    chapter: str
    section: str
    equations: tuple[int, ...]
    kind: str
    says: str
    scope: str
    studies: tuple[str, ...]
    verdict: str
    """As it follows from what this build measured."""
    catalogued: str
    """As it stands in the catalogue."""
    stored: str = ""
    """In a run of one's own: the verdict that the book has stored."""
    finding: str
    short: str = ""
    reason: str
    decisive: str
    counterexample: str
    corrected: str
    test: str
    figure: str
    page: str = ""
    """Where it is checked: a page, and the place on it."""
    run: Run | None = None
    criteria: tuple[Finding, ...]
    planned: tuple[Criterion, ...] = ()
    """Criteria of a study that has not been measured yet."""
    seeds: Seeds | None = None
    flip: Flip | None = None


class Equation(_Data):
    """An equation of the article, by its number there."""

    number: int
    what: str
    chapter: str
    """The page that explains it, at the anchor ``eq-N``."""
    code: str
    """What computes it, by its full name."""
    test: str
    """What holds the code against it."""


class Results(_Data):
    """All claims, in the order of the article."""

    claims: tuple[Entry, ...]
    equations: tuple[Equation, ...] = ()
    own_run: bool = False
    """Whether seed, device or scale are others than those of the stored notebooks."""

    def count(self) -> Counter[str]:
        """Return how many claims have each verdict."""
        return Counter(entry.verdict for entry in self.claims)

    def evidence(self) -> Counter[str]:
        """Return how many criteria there are of each kind of evidence."""
        return Counter(finding.kind for entry in self.claims for finding in entry.criteria)

    def early(self) -> int:
        """Return how many measured criteria stood before their measurement."""
        every = (finding for entry in self.claims for finding in entry.criteria)
        return sum(f.kind == "measured" and not f.after_the_fact for f in every)


def collect(executed: Sequence[Path], stored: Sequence[Path], book: Path) -> Results:
    """Join what is known about every claim of the catalogue.

    Parameters
    ----------
    executed, stored : sequence of Path
        The notebooks of this build, and those of the repository.
    book : Path
        The folder with ``equations.yml``, ``studies`` and ``records``.
    """
    fresh, kept = _by_id(executed), _by_id(stored)
    own_run = any(_settings(fresh[name]) != _settings(kept[name]) for name in fresh.keys() & kept)
    tables = {path.stem: _read(path) for path in (book / "studies").glob("*.json")}
    seeds = _read(book / "records" / "seeds.json").get("chapters", {})
    flips = _read(book / "records" / "flips.json").get("flips", {})
    entries = []
    for claim in catalogue(catalogue_path()).values():
        record = fresh.get(claim.id, {})
        old = kept.get(claim.id, {}) if own_run else {}
        entries.append(
            Entry(
                **claim.model_dump(exclude={"criteria", "verdict"}),
                verdict=record.get("verdict", "not tested"),
                catalogued=claim.verdict,
                stored=old.get("verdict", ""),
                page=f"{record['page']}.html#claim-{claim.id}" if record else "",
                run=Run(**_settings(record)) if record else None,
                criteria=tuple(_finding(c, claim, record, old, tables) for c in claim.criteria),
                seeds=_seeds(claim, seeds.get(claim.chapter, {})),
                flip=Flip(**flips[claim.id]) if claim.id in flips else None,
            )
        )
    listed = yaml.safe_load((book / "equations.yml").read_text(encoding="utf-8"))
    equations = tuple(Equation(**equation) for equation in listed)
    return Results(claims=tuple(entries), equations=equations, own_run=own_run)


def load(path: Path) -> Results:
    """Read a ``claims.json``."""
    return Results.model_validate_json(path.read_text(encoding="utf-8"))


def as_text(results: Results) -> str:
    """Return the text of a ``claims.json``."""
    return results.model_dump_json(indent=1) + "\n"


def schema() -> dict[str, Any]:
    """Return the form of ``claims.json`` as a JSON Schema."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Results.model_json_schema(mode="serialization"),
    }


def share(held: int, of: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share.

    Examples
    --------
    >>> low, high = share(18, 20)
    >>> round(low, 2), round(high, 2)
    (0.7, 0.97)
    """
    interval = stats.binomtest(held, of).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _by_id(notebooks: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Return each claim's record and its page; records of an older form do not count."""
    return {
        record["id"]: {**record, "page": path.stem}
        for path in notebooks
        for record in records(_read(path))
        if "criteria" in record
    }


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("seed", "device", "scale")}


def _finding(
    criterion: Criterion,
    claim: Claim,
    record: Mapping[str, Any],
    old: Mapping[str, Any],
    tables: Mapping[str, dict[str, Any]],
) -> Finding:
    found: dict[str, Any] = _named(record, criterion.id)
    values = _named(old, criterion.id).get("values", ())
    return Finding(
        **criterion.model_dump(),
        **{key: value for key, value in found.items() if key != "id"},
        stated=_of_its_tables(
            criterion,
            [
                _stated(criterion, claim, name, tables)
                for name in claim.studies
                if criterion.study in ("", name)
            ],
        ),
        stored=tuple(values),
        standard_errors=_apart(criterion, found.get("values", ()), values),
    )


def _named(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next((item for item in record.get("criteria", ()) if item["id"] == name), {})


def _of_its_tables(criterion: Criterion, every: Sequence[Stated | None]) -> tuple[Stated, ...]:
    """Leave out the tables of a claim that a criterion is not about.

    One that was stated for a later study is no late one because an earlier table does not know it;
    one that came after its table is no early one because a later study found it there.
    """
    stated = tuple(one for one in every if one)
    late = tuple(one for one in stated if one.order == "after")
    known = tuple(one for one in stated if one.order != "after")
    return (late if criterion.after_the_fact else known) or stated


def _stated(
    criterion: Criterion, claim: Claim, study: str, tables: Mapping[str, dict[str, Any]]
) -> Stated | None:
    """Say how a criterion and a table came after one another, by the table's provenance."""
    facts = tables.get(study)
    if facts is None or criterion.kind != "measured":
        return None
    parts = [facts, *facts.get("later", ())]  # a table may have gone on under further criteria
    known = [part.get("criteria", {}) for part in parts]
    found = [under.get("digests", {}).get(claim.id, {}).get(criterion.id) for under in known]
    k = next((k for k, digest in enumerate(found) if digest is not None), 0)
    digest = found[k]
    order: Order = "changed"
    if digest is None:
        order = "after"
    elif digest == criterion.digest:
        order = "before"
    commit = known[k].get("commit", "") if digest else ""
    measured = parts[k]["measured"][:10]
    return Stated(study=study, measured=measured, order=order, commit=commit[:10], later=k > 0)


def _apart(criterion: Criterion, ours: Sequence[Any], theirs: Sequence[Any]) -> Number | None:
    """Return the distance of two means in standard errors of their difference."""
    if not ours or not theirs:
        return None
    rows = [[float(value) for value in row] for row in (ours, theirs)]
    if criterion.scale == "log":
        rows = [[math.log(value) for value in row] for row in rows]
    means = [math.fsum(row) / len(row) for row in rows]
    squares = [
        math.fsum((value - mean) ** 2 for value in row) / (len(row) - 1) / len(row)
        for row, mean in zip(rows, means, strict=True)
        if len(row) > 1
    ]
    error = math.sqrt(math.fsum(squares))
    difference = means[0] - means[1]
    if error:
        return difference / error
    return 0.0 if difference == 0 or math.isnan(difference) else None


def _seeds(claim: Claim, runs: Mapping[str, dict[str, Any]]) -> Seeds | None:
    """Count the verdicts of a claim over the runs of its chapter; a run that broke off counts.

    Not those from before the claim was tested.
    """
    told = (run.get("verdicts", {claim.id: "broke off"}) for run in runs.values())
    words = [verdicts[claim.id] for verdicts in told if claim.id in verdicts]
    if not words or not claim.tested:
        return None
    held = words.count(claim.verdict)
    low, high = share(held, len(words))
    others = Counter(word for word in words if word != claim.verdict)
    return Seeds(held=held, of=len(words), low=low, high=high, others=dict(others))
