"""What a chapter's cell calls to hold a claim of the article against what it has measured.

``book/claims.yml`` says what the article says, by which criteria it is judged, and which verdict we
reached. The cell brings values only. The verdict follows from the criteria; if it is another one
than the catalogue's, the cell fails and so does the build.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import publish_display_data
from myst_nb import glue

from lipbook.notebook import runtime
from lipbook.notebook.catalogue import Claim, find
from lipbook.notebook.verdicts import Outcome, formatted, judge, verdict

__all__ = ["ClaimContradicted", "check", "formatted", "records", "verdict_line"]

RECORD_KEY = "lipbook"  # where a record sits in the metadata of its output
#: Set to "record", a verdict that differs from the catalogue's is recorded and does not stop the
#: run: for runs that the catalogue does not speak about, with another seed or in a planted world.
CONTRADICTIONS = "LIPBOOK_CONTRADICTIONS"


#: The records of the checks of this process, in their order.
made: list[dict[str, Any]] = []


class ClaimContradicted(AssertionError):  # noqa: N818  (it is what happened, not an error)
    """The criteria speak for another verdict than the one in the catalogue."""


def check(claim_id: str, /, **values: Any) -> None:
    """Hold a claim against what was measured; print its line, or fail.

    In a notebook, shows one line that is the same on every machine, and puts the numbers into the
    metadata of that output, where the ledger finds them; in a script, prints both. Each quantity is
    also glued for use in the prose, as ``ID-name-of-the-criterion``.

    Parameters
    ----------
    claim_id : str
        An id of the catalogue.
    **values : float, Tensor, ndarray or sequence of float
        For each criterion of the claim, by its id: one value, or one a seed.

    Raises
    ------
    KeyError
        If the catalogue has no such claim.
    TypeError
        If a criterion has no values, or values have no criterion.
    ValueError
        If a value is NaN or not on the criterion's scale.
    ClaimContradicted
        If these values speak for another verdict than the catalogue's. The message names the
        criteria that did it, with their numbers.

    Examples
    --------
    >>> check("PI1", eigenvalue=1e-12, eigenvector=0.0, random_stretch=0.97)
    PI1 · holds · The squared spectral norm of W is the largest eigenvalue of WᵀW.
        root of the eigenvalue, off by: 1e-12 ≤ 1e-10
        stretch of its vector, off by: 0 ≤ 1e-10
        random stretch over norm: 0.97 ≤ 1
    >>> check("PI1", eigenvalue=0.1, eigenvector=0.0, random_stretch=0.97)
    Traceback (most recent call last):
    lipbook.notebook.claims.ClaimContradicted: PI1: ...
    """
    claim = find(claim_id)
    outcomes = judge(claim, values)
    word, because = verdict(claim, outcomes)
    if word != claim.verdict and os.environ.get(CONTRADICTIONS) != "record":
        raise ClaimContradicted(_contradiction(claim, word, because))
    for outcome in outcomes:
        _glue(f"{claim.id}-{outcome.criterion.id.replace('_', '-')}", outcome.formatted)
    record = _record(claim, word, outcomes)
    made.append(record)
    _show(verdict_line(claim, word), record)


def verdict_line(claim: Claim, word: str) -> str:
    """Return the line that a checked claim prints: nothing in it depends on the machine."""
    return f"{claim.id} · {word} · {claim.says}"


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


def _contradiction(claim: Claim, word: str, because: list[Outcome]) -> str:
    lines = [f"\n    {o.criterion.role} {o.criterion.id} ({o.state}): {o}" for o in because]
    says = f"claims.yml says {claim.verdict!r}, its criteria speak for {word!r}"
    why = "what decides it is planned" if claim.planned else "it has none"
    return f"{claim.id}: {says}" + (", by" + "".join(lines) if lines else f": {why}")


def _record(claim: Claim, word: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    run = runtime.current()
    return {
        "id": claim.id,
        "verdict": word,
        "seed": run.seed if run else None,
        "device": run.device.type if run else None,
        "scale": run.scale if run else None,
        "criteria": [
            {
                "id": outcome.criterion.id,
                "text": str(outcome),
                "values": [_json(value) for value in outcome.values],
                "interval": [_json(end) for end in outcome.interval],
                "p": outcome.p,
                "state": outcome.state,
                "seeds_held": outcome.seeds_held,
            }
            for outcome in outcomes
        ],
    }


def _json(value: float) -> float | str:
    """Spell infinity as text: JSON has no number for it."""
    return value if math.isfinite(value) else str(value)


def _show(line: str, record: dict[str, Any]) -> None:
    if get_ipython() is None:  # a script or a doctest
        print(line, *(item["text"] for item in record["criteria"]), sep="\n    ")
    else:
        publish_display_data({"text/plain": line}, metadata={RECORD_KEY: record})


def _glue(key: str, text: str) -> None:
    if get_ipython() is not None:
        glue(key, text, display=False)
