"""From measured values to a verdict: intervals, Holm's correction, and one rule.

Nothing here is chosen by an author. A criterion is *met*, *reversed* or *undecided* by its values;
the verdict of a claim follows from its criteria, whichever way they come out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import special

from lipbook.notebook.catalogue import (
    ANSWERED,
    CAVEATS,
    FAILS,
    HOLDS,
    NOT_REPRODUCED,
    NOT_TESTED,
    QUESTION,
    UNDECIDED,
    Claim,
    Criterion,
)

LEVEL = 0.05
#: Values of a measured criterion, below which it decides nothing: fewer do not show their spread.
FEWEST = 3
State = Literal["met", "reversed", "undecided"]


@dataclass(frozen=True)
class Outcome:
    """How a criterion came out.

    Attributes
    ----------
    criterion : Criterion
        What was asked.
    values : tuple of float
        What was found: one value, or one a seed.
    p : float or None
        The two-sided p-value of Student's test against the bound (for ≈, against the nearer end of
        what is tolerated), after Holm's correction over the measured criteria of the claim; None
        where there is nothing to test: what is not measured, one value, equal values.
    state : {"met", "reversed", "undecided"}
        Whether the relation holds.
    """

    criterion: Criterion
    values: tuple[float, ...]
    p: float | None
    state: State

    @property
    def interval(self) -> tuple[float, float]:
        """Student's 95 % interval of what is measured; the extremes of what is not."""
        if self.criterion.kind != "measured":
            return min(self.values), max(self.values)
        return interval(self.values, self.criterion.scale)

    @property
    def seeds_held(self) -> int:
        """How many of the values stand in the relation by themselves."""
        return sum(map(self.criterion.holds_for, self.values))

    @property
    def formatted(self) -> str:
        """The value or values, as text."""
        if self.criterion.kind != "measured":
            ends = dict.fromkeys(f"{end:.4g}" for end in self.interval)
            return " to ".join(ends)
        return formatted(self.values, self.criterion.scale)

    def __str__(self) -> str:
        seeds = len(self.values)
        text = f"{self.criterion.quantity}: {self.formatted} {self.criterion.rule}"
        return text if seeds == 1 else f"{text} ({self.seeds_held} of {seeds})"


def interval(values: Sequence[float], scale: str = "linear") -> tuple[float, float]:
    """Return Student's 95 % confidence interval of the mean, or of the geometric mean.

    Parameters
    ----------
    values : sequence of float
        One a seed. Of a single value, or of equal ones, the interval is that value twice.
    scale : {"linear", "log"}
        Where the interval is taken. On ``"log"`` its middle is the geometric mean.

    Raises
    ------
    ValueError
        If some values are infinite and others are not, or, on ``"log"``, one is not positive.

    Examples
    --------
    >>> low, high = interval([1.0, 2.0, 4.0], "log")
    >>> round((low * high) ** 0.5, 3)
    2.0
    """
    if len(set(values)) == 1:  # exactly that value: the mean's rounding would move it
        return values[0], values[0]
    on_scale = _on_scale(values, scale)
    mean, error = _mean_and_error(on_scale)
    # The special functions behind scipy.stats, which takes seconds of each kernel to import.
    reach = error * float(special.stdtrit(len(on_scale) - 1, 1 - LEVEL / 2))
    low, high = mean - reach, mean + reach
    return (math.exp(low), math.exp(high)) if scale == "log" else (low, high)


def formatted(values: Any, scale: str = "linear") -> str:
    """Return the mean with its interval: ``2.35 ± 0.03``, or on the scale log ``1.3 [1.1, 1.5]``.

    Parameters
    ----------
    values : float, Tensor, ndarray or sequence of float
        One value, or one a seed.
    scale : {"linear", "log"}
        As for :func:`interval`.

    Examples
    --------
    >>> formatted([0.91, 0.95, 0.93]), formatted([1.0, 2.0, 4.0], "log"), formatted(2)
    ('0.930 ± 0.050', '2.0 [0.4, 11.2]', '2')
    """
    row = numbers(values)
    low, high = interval(row, scale)
    if scale == "log":
        middle = math.sqrt(low) * math.sqrt(high)
        half = middle - low
    else:
        middle, half = (low + high) / 2, (high - low) / 2
    if low == high or not half > 0.0:  # one value, equal ones, or an infinite one: NaN
        return f"{row[0]:.4g}"
    decimals = max(0, 1 - math.floor(math.log10(half)))  # two digits of the half-width
    if scale == "log":
        return f"{middle:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"
    return f"{middle:.{decimals}f} ± {half:.{decimals}f}"


def numbers(value: Any) -> tuple[float, ...]:
    """Return a number, a tensor, an array or any row of numbers as floats.

    Raises
    ------
    ValueError
        If there is none, or one is NaN: nothing was measured.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    row = (float(value),) if isinstance(value, int | float) else tuple(float(v) for v in value)
    if not row:
        raise ValueError("no value; pass a number, or one for each seed")
    if any(map(math.isnan, row)):
        raise ValueError("a NaN: nothing was measured")
    return row


def judge(claim: Claim, values: Mapping[str, Any]) -> list[Outcome]:
    """Hold every criterion of a claim against its values.

    A *measured* criterion is met or reversed if its interval, at the level that Holm's correction
    leaves it, lies on one side of the bound, and undecided otherwise; of fewer than three values it
    is undecided too. Any other is met if every value stands in the relation, and reversed by one
    that does not.

    Raises
    ------
    TypeError
        If values are missing, or there is no criterion of that name.
    ValueError
        If a value is missing, NaN, or not on the criterion's scale.
    """
    known = {criterion.id: criterion for criterion in claim.criteria}
    if values.keys() != known.keys():
        raise TypeError(_mismatch(claim, list(known), list(values)))
    rows = {}
    for name, criterion in known.items():
        try:
            rows[name] = numbers(values[name])
            if criterion.kind == "measured":
                _on_scale(rows[name], criterion.scale)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{claim.id}: {name}: {error}") from None
    p = holm(
        {name: p for name, row in rows.items() if (p := _p_value(known[name], row)) is not None}
    )
    return [
        Outcome(c, rows[c.id], p.get(c.id), _state(c, rows[c.id], p.get(c.id)))
        for c in known.values()
    ]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p-values: as good as Bonferroni's, and never larger.

    Examples
    --------
    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        adjusted[name] = largest
    return adjusted


def verdict(claim: Claim, outcomes: Sequence[Outcome]) -> tuple[str, list[Outcome]]:
    """Return the verdict that the outcomes speak for, and those of them that made it so.

    The rule, in this order; the first line that applies is the verdict:

    1. no criterion was measured: *not tested*;
    2. an open question: *answered* if all its criteria are decided, either way, else *undecided*;
    3. a criterion that ``refutes`` is met: *fails as printed*;
    4. one that ``decides`` is reversed: *fails as printed* if it is proved or computed,
       *not reproduced here* if it is measured or published;
    5. one that ``decides`` is undecided: *undecided*;
    6. one that ``confines`` is met, or a planned one that ``decides`` has not been measured yet:
       *holds with caveats*;
    7. else *holds*.

    With a planned criterion that decides an open question is *undecided*.
    """
    if not outcomes:
        return NOT_TESTED, []
    waiting = any(criterion.role == "decides" for criterion in claim.planned)
    if claim.kind == QUESTION:
        open_ones = [o for o in outcomes if o.state == "undecided"]
        return (UNDECIDED, open_ones) if open_ones or waiting else (ANSWERED, list(outcomes))
    deciding = [o for o in outcomes if o.criterion.role == "decides"]
    reversed_ones = [o for o in deciding if o.state == "reversed"]
    certain = [o for o in reversed_ones if o.criterion.kind in ("proved", "computed")]
    rules = (
        (FAILS, [o for o in outcomes if o.criterion.role == "refutes" and o.state == "met"]),
        (FAILS, certain),
        (NOT_REPRODUCED, reversed_ones),
        (UNDECIDED, [o for o in deciding if o.state == "undecided"]),
        (CAVEATS, [o for o in outcomes if o.criterion.role == "confines" and o.state == "met"]),
    )
    if found := next(((word, because) for word, because in rules if because), None):
        return found
    return (CAVEATS, []) if waiting else (HOLDS, deciding)


def _state(criterion: Criterion, values: tuple[float, ...], p: float | None) -> State:
    if criterion.kind == "measured" and len(values) < FEWEST:
        return "undecided"
    if p is None:
        return "met" if all(map(criterion.holds_for, values)) else "reversed"
    if p >= LEVEL:
        return "undecided"
    mean, _ = _mean_and_error(_on_scale(values, criterion.scale))
    return (
        "met"
        if criterion.holds_for(math.exp(mean) if criterion.scale == "log" else mean)
        else "reversed"
    )


def _p_value(criterion: Criterion, values: tuple[float, ...]) -> float | None:
    """Return the p-value against the bound, the nearer one of two."""
    if criterion.kind != "measured" or len(values) < FEWEST or len(set(values)) == 1:
        return None
    mean, error = _mean_and_error(_on_scale(values, criterion.scale))
    edges = _on_scale(criterion.edges, criterion.scale)
    distance = min(abs(mean - edge) for edge in edges)
    return float(2 * special.stdtr(len(values) - 1, -distance / error))


def _on_scale(values: Sequence[float], scale: str) -> list[float]:
    if scale == "log":
        if min(values) <= 0:
            raise ValueError(f"the scale log needs values above 0, got {min(values):.4g}")
        values = [math.log(value) for value in values]
    if len(set(values)) > 1 and any(map(math.isinf, values)):
        count = sum(map(math.isinf, values))
        raise ValueError(
            f"{count} of {len(values)} values are infinite, so that the mean has no interval; "
            "say what such a run counts as, e.g. the last step"
        )
    return list(values)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return math.fsum(values) / len(values), float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _mismatch(claim: Claim, known: list[str], given: list[str]) -> str:
    missing = [name for name in known if name not in given]
    unknown = [name for name in given if name not in known]
    parts = [f"no values for {', '.join(missing)}"] if missing else []
    parts += [f"no criterion named {', '.join(unknown)}"] if unknown else []
    return (
        f"{claim.id}: {'; '.join(parts)}. Its criteria in claims.yml: {', '.join(known) or 'none'}"
    )
