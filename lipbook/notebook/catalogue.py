"""The catalogue of the article's claims: what ``book/claims.yml`` may hold, and reading it.

The models here are the format. ``book/claims.schema.json``, by which editors complete and check the
file, is written from them: ``python -m lipbook.notebook.catalogue``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import keyword
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

HOLDS = "holds"
CAVEATS = "holds with caveats"
FAILS = "fails as printed"
NOT_REPRODUCED = "not reproduced here"
UNDECIDED = "undecided"
ANSWERED = "answered"
NOT_TESTED = "not tested"
VERDICTS = (HOLDS, CAVEATS, FAILS, NOT_REPRODUCED, UNDECIDED, ANSWERED, NOT_TESTED)
QUESTION = "open question"
#: The `study` of a criterion that its chapter measures itself, of a claim with studies besides.
NO_STUDY = "none"
KINDS_OF_EVIDENCE = ("proved", "computed", "measured", "published")

_PACKAGE = Path(__file__).parents[1]

Evidence = Literal["proved", "computed", "measured", "published"]
Relation = Literal["≤", "≥", "<", ">", "≈"]
Role = Literal["decides", "confines", "refutes"]
Scale = Literal["linear", "log"]
Verdict = Literal[
    "holds",
    "holds with caveats",
    "fails as printed",
    "not reproduced here",
    "undecided",
    "answered",
    "not tested",
]
Kind = Literal["theorem", "computation", "experiment", "practice", "open question"]


def _number(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError("write a number; YAML takes 1e-9 for text, and 1.0e-9 for a number")
    return value


Finite = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Line = Annotated[str, Field(min_length=1, pattern=r"^\S(.*\S)?$")]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Change(_Entry):
    """A criterion that was changed after what it judges had been measured."""

    date: Day
    """The day of the change, as YYYY-MM-DD."""
    before: Line
    """What it said until then."""
    reason: Line
    """Why it was changed."""


class Criterion(_Entry):
    """A named quantity, and how it has to stand to a bound."""

    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """The keyword by which `claims.check` takes the values."""
    quantity: Line
    """What is measured, in words that make sense in the ledger."""
    kind: Evidence
    """What sort of evidence it is. Only what is measured could have gone the other way."""
    relation: Relation
    bound: Finite
    """The bound, or the target of ≈."""
    tolerance: Annotated[Finite, Field(ge=0)] = 0.0
    """Relative, for ≈ only."""
    role: Role
    """What it does to the verdict once it is met."""
    scale: Scale = "linear"
    """Where the interval is taken: log for ratios and other positive quantities."""
    study: str = ""
    """The study whose table it is held against, where the claim rests on several; `none` where the
    claim rests on studies and the chapter measures this one itself."""
    after_the_fact: bool = False
    """Whether the table or the measurement existed before the criterion."""
    changed: tuple[Change, ...] = ()
    source: str = ""
    """Where a published figure comes from: a key of references.bib, and the place there."""

    @model_validator(mode="after")
    def _is_whole(self) -> Criterion:
        if keyword.iskeyword(self.id):
            raise ValueError(f"{self.id!r} is a word of Python's and can't be a keyword; rename it")
        if (self.tolerance > 0) != (self.relation == "≈"):
            raise ValueError("a tolerance goes with ≈, and ≈ needs one above 0")
        if self.scale == "log" and self.bound <= 0:
            raise ValueError(f"on the scale log the bound is above 0, got {self.bound:g}")
        if (self.kind == "published") != bool(self.source):
            raise ValueError("a source goes with the kind published, and published needs one")
        return self

    @property
    def digest(self) -> str:
        """Twelve hex digits of what the criterion decides by; its wording does not count."""
        facts = (self.kind, self.relation, self.bound, self.tolerance, self.role, self.scale)
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    def holds_for(self, value: float) -> bool:
        """Whether one value stands in the relation to the bound."""
        match self.relation:
            case "≤":
                return value <= self.bound
            case "≥":
                return value >= self.bound
            case "<":
                return value < self.bound
            case ">":
                return value > self.bound
            case "≈":
                low, high = self.edges
                return low - 1e-12 <= value <= high + 1e-12

    @property
    def edges(self) -> tuple[float, ...]:
        """Where the relation turns: the bound, or both ends of what ≈ tolerates."""
        if self.relation != "≈":
            return (self.bound,)
        reach = abs(self.bound) * self.tolerance
        return self.bound - reach, self.bound + reach

    @property
    def rule(self) -> str:
        """The relation and the bound, such as ``≈ 1 within 0.05``."""
        within = f" within {self.tolerance:.2g}" if self.relation == "≈" else ""
        return f"{self.relation} {self.bound:.4g}{within}"


class Claim(_Entry):
    """One statement of the article, in our words, with our verdict."""

    id: Annotated[str, Field(pattern=r"^[A-Z]{1,3}\d+[a-z]?$")]
    chapter: Line
    """The notebook that checks it."""
    section: Line
    """The section of the article."""
    equations: tuple[Annotated[int, Field(ge=1, le=21)], ...] = ()
    """The article's numbers of the equations that it is about."""
    kind: Kind
    says: Line
    """The statement in our words, with the article's hedges; a part of the line of its check."""
    scope: str = ""
    """What was tried: networks, data, steps, seeds."""
    studies: tuple[str, ...] = ()
    """The studies whose tables the criteria are held against."""
    criteria: tuple[Criterion, ...] = ()
    planned: tuple[Criterion, ...] = ()
    """Criteria of a study that has not been measured yet: the verdict does not know them. They move
    to `criteria`, as they are, with the table."""
    verdict: Verdict
    finding: str = ""
    """One sentence: what we found."""
    short: str = ""
    """What it is about, as a heading of the errata or of what was not reproduced."""
    reason: str = ""
    """Why it is not tested."""
    decisive: str = ""
    """What an experiment would take that decides what ours did not."""
    counterexample: str = ""
    """Of a claim that fails as printed: the smallest one that we know."""
    corrected: str = ""
    """Of a claim that fails as printed: the statement that does hold."""
    test: str = ""
    """Of a claim that fails as printed: the test that fails on the printed statement."""
    figure: str = ""
    """The name of the figure that draws the counterexample, if one does."""

    @model_validator(mode="after")
    def _is_whole(self) -> Claim:
        names = [criterion.id for criterion in (*self.criteria, *self.planned)]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two criteria have the id {', '.join(sorted(doubled))}")
        if self.criteria and not any(c.role == "decides" for c in self.criteria):
            raise ValueError("no criterion decides; without one the claim could only fail")
        known = ("", *self.studies, *((NO_STUDY,) if self.studies else ()))
        if astray := [c.study for c in self.criteria if c.study not in known]:
            raise ValueError(f"{astray[0]!r} is none of its studies")
        for needed in self._needed():
            if not getattr(self, needed):
                raise ValueError(f"the verdict {self.verdict!r} needs {needed}")
        if (self.verdict == NOT_TESTED) != bool(self.reason):
            raise ValueError(f"a reason goes with {NOT_TESTED!r} only")
        if self.verdict == ANSWERED and self.kind != QUESTION:
            raise ValueError(f"only an open question is {ANSWERED!r}, and this is a {self.kind}")
        return self

    def _needed(self) -> tuple[str, ...]:
        tested = ("scope", "criteria", "finding")
        match self.verdict:
            case "not tested":
                return "reason", "scope", "criteria" if self.criteria else "planned"
            case "fails as printed":
                return *tested, "counterexample", "corrected", "test"
            case "not reproduced here" | "undecided":
                return *tested, "decisive"
        return tested

    @property
    def tested(self) -> bool:
        """Whether a cell checks it."""
        return self.verdict != NOT_TESTED


class Catalogue(_Entry):
    """The only list of what the article says, in the article's order."""

    claims: tuple[Claim, ...]


def catalogue_path() -> Path:
    """Return the catalogue: the clone's ``book/claims.yml``, or the copy in an installed wheel."""
    clone = _PACKAGE.parent / "book" / "claims.yml"
    return clone if clone.exists() else _PACKAGE / "claims.yml"


@functools.cache
def catalogue(path: Path | None = None) -> dict[str, Claim]:
    """Read the claims in the order of the article, by id.

    Raises
    ------
    ValueError
        If the file is not of the form that the models of this module describe; the message says
        where, by the claim's id.

    Examples
    --------
    >>> catalogue()["PI1"].equations
    (7,)
    """
    path = path or catalogue_path()
    # The parser in C, where PyYAML has it, takes a tenth of the time: each kernel reads this file.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    try:
        entries = Catalogue.model_validate(content).claims
    except ValidationError as error:
        faults = "\n".join(_fault(content, fault) for fault in error.errors())
        raise ValueError(f"{path.name} is not well formed:\n{faults}") from None
    claims: dict[str, Claim] = {}
    for claim in entries:
        if claim.id in claims:
            raise ValueError(f"{path.name}: {claim.id} stands twice; give one of them another id")
        claims[claim.id] = claim
    return claims


def find(claim_id: str) -> Claim:
    """Return a claim by its id.

    Raises
    ------
    KeyError
        If the catalogue has none of that id; the message lists those it has.
    """
    claims = catalogue(catalogue_path())
    if claim_id not in claims:
        raise KeyError(f"no claim {claim_id!r} in claims.yml; it has {', '.join(claims)}")
    return claims[claim_id]


def criteria_for(
    study: str, claims: Sequence[str] = (), path: Path | None = None
) -> dict[str, dict[str, str]]:
    """Return the digests of the criteria that a study's table is held against, planned ones too.

    Parameters
    ----------
    study : str
        Its name, by which claims name it in `studies`.
    claims : sequence of str
        Further claims, that will name it once it has been measured.
    path : Path, optional
        Of another catalogue than that of today.

    Returns
    -------
    dict
        By claim, then by criterion. It goes into the table's provenance, so that a criterion that
        was changed after the measurement, or stated after it, is seen.
    """
    return {
        claim.id: {
            c.id: c.digest for c in (*claim.criteria, *claim.planned) if c.study in ("", study)
        }
        for claim in catalogue(path or catalogue_path()).values()
        if study in claim.studies or claim.id in claims
    }


def schema() -> dict[str, Any]:
    """Return the format of the catalogue as a JSON Schema."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Catalogue.model_json_schema(),
    }


def schema_text() -> str:
    """Return the schema as its file holds it."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def _fault(content: Any, fault: Any) -> str:
    """Say where a fault is, by ids where there are any."""
    where, node = [], content
    for step in fault["loc"]:
        node = node[step] if isinstance(node, list | dict) and _has(node, step) else None
        named = node.get("id") if isinstance(node, dict) and isinstance(step, int) else None
        where.append(str(named or step))
    message = fault["msg"].removeprefix("Value error, ")
    given = fault["input"]
    shown = f" (got {given!r})" if isinstance(given, str | int | float) else ""
    return f"  {': '.join(where[1:] if len(where) > 1 else where)}: {message}{shown}"


def _has(node: Any, step: Any) -> bool:
    return step in node if isinstance(node, dict) else 0 <= step < len(node)


if __name__ == "__main__":
    catalogue_path().with_name("claims.schema.json").write_text(schema_text(), encoding="utf-8")
