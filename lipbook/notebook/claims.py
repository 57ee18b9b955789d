"""The article's claims: a catalogue, and a check that ties each one to a measurement.

``book/claims.yml`` says what the article says and which verdict we reached. A chapter's cell
calls :func:`check` with the evidence it has just measured. If the evidence does not come out, or
speaks for another verdict than the catalogue, the cell fails and so does the build.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from IPython.core.getipython import get_ipython
from IPython.display import publish_display_data
from myst_nb import glue
from scipy import stats

from lipbook.notebook import runtime

HOLDS = "holds"
CAVEATS = "holds with caveats"
FAILS = "fails as printed"
ANSWERED = "answered"
VERDICTS = (HOLDS, CAVEATS, FAILS, ANSWERED)
QUESTION = "open question"
RECORD_KEY = "lipbook"  # where a record sits in the metadata of its output

_CONFIDENCE = 0.95
_PACKAGE = Path(__file__).parents[1]


class ClaimContradicted(AssertionError):  # noqa: N818  (it is what happened, not an error)
    """A measurement disagrees with the verdict in the catalogue."""


@dataclass(frozen=True)
class Claim:
    """One statement of the article, in our words, with our verdict (None while pending)."""

    id: str
    chapter: str
    section: str
    equations: tuple[int, ...]
    kind: str
    says: str
    verdict: str | None = None
    finding: str = ""
    counterexample: str = ""
    corrected: str = ""
    test: str = ""
    figure: str = ""  # name of the chapter's figure that shows the counterexample


@dataclass(frozen=True)
class Evidence:
    """A measured quantity, the bound that it was held against, and how that came out.

    Attributes
    ----------
    quantity : str
        What was measured, in words that make sense in the ledger.
    values : tuple of float
        One value, or one for each seed.
    relation : {"≤", "≥", "<", ">", "≈"}
        How the values should stand to the bound.
    bound : float
        The bound, or the target of ``≈``.
    tolerance : float
        The relative tolerance of ``≈``; 0 for the others.
    """

    quantity: str
    values: tuple[float, ...]
    relation: str
    bound: float
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"{self.quantity!r} has no value; pass a number, or one for each seed")
        bad = [v for v in (*self.values, self.bound) if math.isnan(v)]
        if bad:
            raise ValueError(f"{self.quantity!r} holds a NaN: nothing was measured")

    @property
    def interval(self) -> tuple[float, float]:
        """The value twice, or Student's 95 % confidence interval of the mean over seeds."""
        if len(set(self.values)) == 1:  # exactly that value: the mean's rounding would move it
            return self.values[0], self.values[0]
        mean = math.fsum(self.values) / len(self.values)
        error = float(stats.sem(self.values))
        low, high = stats.t.interval(_CONFIDENCE, len(self.values) - 1, loc=mean, scale=error)
        return float(low), float(high)

    @property
    def came_out(self) -> bool:
        """Whether the whole interval stands in the relation to the bound."""
        return all(self._relates(end) for end in self.interval)

    @property
    def seeds_held(self) -> int:
        """How many of the values stand in the relation by themselves."""
        return sum(map(self._relates, self.values))

    def _relates(self, value: float) -> bool:
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
                return math.isclose(value, self.bound, rel_tol=self.tolerance, abs_tol=1e-12)
        raise ValueError(f"relation must be one of ≤ ≥ < > ≈, got {self.relation!r}")

    @property
    def formatted(self) -> str:
        """The value, or the mean with the half-width of its interval."""
        low, high = self.interval
        middle, half = (low + high) / 2, (high - low) / 2
        if not half > 0.0:  # one value, equal values, or an infinite one, whose half-width is NaN
            return f"{middle:.4g}"
        decimals = max(0, 1 - math.floor(math.log10(half)))  # two digits of the half-width
        return f"{middle:.{decimals}f} ± {half:.{decimals}f}"

    def __str__(self) -> str:
        within = f" within {self.tolerance:.2g}" if self.relation == "≈" else ""
        text = f"{self.quantity}: {self.formatted} {self.relation} {self.bound:.4g}{within}"
        seeds = len(self.values)
        return text if seeds == 1 else f"{text} ({self.seeds_held} of {seeds} seeds)"


def at_most(quantity: str, value: Any, bound: float) -> Evidence:
    """Evidence that `value` ≤ `bound`; a sequence is read as one value a seed.

    Examples
    --------
    >>> print(at_most("slope of ReLU", 1.0, 1.0))
    slope of ReLU: 1 ≤ 1
    >>> at_most("slope of ReLU", 1.2, 1.0).came_out
    False
    >>> at_most("slope of ReLU", [], 1.0)
    Traceback (most recent call last):
    ValueError: 'slope of ReLU' has no value; pass a number, or one for each seed
    """
    return Evidence(quantity, _values(value), "≤", float(bound))


def at_least(quantity: str, value: Any, bound: float) -> Evidence:
    """Evidence that `value` ≥ `bound`; a sequence is read as one value a seed."""
    return Evidence(quantity, _values(value), "≥", float(bound))


def below(quantity: str, value: Any, bound: float) -> Evidence:
    """Evidence that `value` < `bound`; a sequence is read as one value a seed."""
    return Evidence(quantity, _values(value), "<", float(bound))


def above(quantity: str, value: Any, bound: float) -> Evidence:
    """Evidence that `value` > `bound`; a sequence is read as one value a seed.

    Examples
    --------
    >>> print(above("share flipped", [0.91, 0.95, 0.93], 0.5))
    share flipped: 0.930 ± 0.050 > 0.5 (3 of 3 seeds)
    """
    return Evidence(quantity, _values(value), ">", float(bound))


def close(quantity: str, value: Any, target: float, *, rtol: float) -> Evidence:
    """Evidence that `value` is `target` to a relative tolerance of `rtol`."""
    return Evidence(quantity, _values(value), "≈", float(target), rtol)


def check(
    claim_id: str,
    *,
    supports: Sequence[Evidence] = (),
    limits: Sequence[Evidence] = (),
    refutes: Sequence[Evidence] = (),
) -> None:
    """Hold a claim against what was measured; print its line, or fail.

    Shows one line that is the same on every machine, and puts the numbers into the metadata of
    that output, where the ledger finds them. Each quantity is also glued, as
    ``ID-quantity-in-lower-case``, for use in the prose.

    Parameters
    ----------
    claim_id : str
        An id of the catalogue.
    supports : sequence of Evidence
        What the claim predicts; for a claim that fails, what its corrected form predicts.
    limits : sequence of Evidence
        What confines the claim: with it the verdict is *holds with caveats*.
    refutes : sequence of Evidence
        A counterexample: with it the verdict is *fails as printed*.

    Raises
    ------
    KeyError
        If the catalogue has no such claim.
    ValueError
        If there is no evidence at all.
    ClaimContradicted
        If any evidence did not come out, or the catalogue has another verdict than this
        evidence speaks for.

    Examples
    --------
    >>> check("LC2a", supports=[at_most("largest quotient over C", 0.97, 1.0)])
    LC2a · holds · A smaller C means that the output reacts less to a change of the input.
    >>> check("LC2a", supports=[at_most("largest quotient over C", 1.07, 1.0)])
    Traceback (most recent call last):
    lipbook.notebook.claims.ClaimContradicted: LC2a: ...
    """
    claim = _find(claim_id)
    roles = {"supports": supports, "limits": limits, "refutes": refutes}
    evidence = [(role, item) for role, items in roles.items() for item in items]
    if not evidence:
        raise ValueError(f"{claim_id} needs evidence: pass supports=, limits= or refutes=")
    measured = _verdict(claim, limits=bool(limits), refutes=bool(refutes))
    failed = [item for _, item in evidence if not item.came_out]
    if failed or measured != claim.verdict:
        raise ClaimContradicted(_contradiction(claim, measured, failed))
    for _, item in evidence:
        _glue(f"{claim_id}-{slug(item.quantity)}", item.formatted)
    _show(verdict_line(claim), _record(claim, evidence))


def verdict_line(claim: Claim) -> str:
    """Return the line that a checked claim prints: nothing in it depends on the machine."""
    return f"{claim.id} · {claim.verdict} · {claim.says}"


def slug(text: str) -> str:
    """Return `text` in lower case with hyphens, as part of a glue key.

    Examples
    --------
    >>> slug("Slope of GELU (tanh form)")
    'slope-of-gelu-tanh-form'
    """
    return re.sub(r"\W+", "-", text.lower()).strip("-")


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
        If an id stands twice, a verdict is unknown, a claim has neither verdict nor a place in
        ``pending`` (or both), or one that fails lacks its counterexample, correction or test.

    Examples
    --------
    >>> catalogue()["PI1"].equations
    (7,)
    """
    path = path or catalogue_path()
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    pending = set(content["pending"])
    claims: dict[str, Claim] = {}
    for entry in content["claims"]:
        claim = Claim(**{**entry, "equations": tuple(entry.get("equations", ()))})
        _check_entry(claim, pending, claims, path)
        claims[claim.id] = claim
    unknown = pending - claims.keys()
    if unknown:
        raise ValueError(f"{path.name}: pending names unknown claims {sorted(unknown)}")
    return claims


def records(notebook: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the records that :func:`check` left in an executed notebook, in page order.

    Parameters
    ----------
    notebook : dict
        A notebook of format 4, as ``json.load`` or nbformat returns it.
    """
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            record = output.get("metadata", {}).get(RECORD_KEY)
            if record is not None:
                yield {**record, "cell": cell.get("id", "")}


def _values(value: Any) -> tuple[float, ...]:
    """Accept a number, a tensor, an array or any sequence of numbers."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, int | float):
        return (float(value),)
    return tuple(float(v) for v in value)


def _find(claim_id: str) -> Claim:
    claims = catalogue()
    if claim_id not in claims:
        raise KeyError(f"no claim {claim_id!r} in claims.yml; it has {', '.join(claims)}")
    return claims[claim_id]


def _verdict(claim: Claim, *, limits: bool, refutes: bool) -> str:
    if refutes:
        return FAILS
    if claim.kind == QUESTION:
        return ANSWERED
    return CAVEATS if limits else HOLDS


def _contradiction(claim: Claim, measured: str, failed: list[Evidence]) -> str:
    if failed:
        return f"{claim.id}: did not come out: " + "; ".join(map(str, failed))
    if claim.verdict is None:
        return f"{claim.id}: still pending in claims.yml, but measured as {measured!r}"
    return f"{claim.id}: claims.yml says {claim.verdict!r}, the evidence speaks for {measured!r}"


def _record(claim: Claim, evidence: list[tuple[str, Evidence]]) -> dict[str, Any]:
    run = runtime.current()
    return {
        "id": claim.id,
        "verdict": claim.verdict,
        "seed": run.seed if run else None,
        "device": run.device.type if run else None,
        "scale": run.scale if run else None,
        "evidence": [
            {
                "role": role,
                "text": str(item),
                "quantity": item.quantity,
                "values": list(item.values),
                "relation": item.relation,
                "bound": item.bound,
                "seeds_held": item.seeds_held,
            }
            for role, item in evidence
        ],
    }


def _show(line: str, record: dict[str, Any]) -> None:
    if get_ipython() is None:  # a script or a doctest
        print(line)
    else:
        publish_display_data({"text/plain": line}, metadata={RECORD_KEY: record})


def _glue(key: str, text: str) -> None:
    if get_ipython() is not None:
        glue(key, text, display=False)


def _check_entry(claim: Claim, pending: set[str], seen: dict[str, Claim], path: Path) -> None:
    where = f"{path.name}: {claim.id}"
    if claim.id in seen:
        raise ValueError(f"{where} stands twice")
    if (claim.verdict is None) != (claim.id in pending):
        raise ValueError(f"{where} needs either a verdict or a place in pending, not both")
    if claim.verdict is not None and claim.verdict not in VERDICTS:
        raise ValueError(f"{where} has the verdict {claim.verdict!r}, not one of {VERDICTS}")
    if claim.verdict == FAILS and not (claim.counterexample and claim.corrected and claim.test):
        raise ValueError(f"{where} fails as printed: give counterexample, corrected and test")
