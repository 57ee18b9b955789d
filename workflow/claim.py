"""Run a claim's check by itself: the slice of its chapter, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipbook.notebook.catalogue import catalogue, catalogue_path
from lipbook.notebook.claims import records
from workflow import slices
from workflow.environment import CONTRADICTIONS
from workflow.project import BUILD, ROOT, WorkflowError, read_notebook, source

#: Runs a script and keeps the records of its checks.
_HARNESS = """
import json, runpy, sys
from lipbook.notebook import claims
runpy.run_path(sys.argv[1])
json.dump(claims.made, open(sys.argv[2], "w", encoding="utf-8"))
"""

#: What the environment of such a process has, besides: no check stops it, and no figure is shown.
ALONE = {"MPLBACKEND": "agg", "PYTHONPATH": str(ROOT), CONTRADICTIONS: "record"}


@dataclass(frozen=True)
class Ran:
    """What came of a slice: the record of its check, and the time that it took."""

    slice: slices.Slice
    record: dict[str, Any]
    seconds: float


def run(
    claim: str, parameters: dict[str, object] | None = None, plant: slices.Plant | None = None
) -> Ran:
    """Run the cells that a claim's check needs, and return what it found.

    Raises
    ------
    WorkflowError
        If a cell fails; the last line of its traceback is in the message.
    """
    part = slices.of_claim(claim, slices.chapter_of(claim))
    script = BUILD / "claims" / f"{claim}.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(part.script(parameters, plant), encoding="utf-8")
    return run_script(part, script)


def run_script(part: slices.Slice, script: Path) -> Ran:
    """Run a slice's script in a process of its own."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "records.json"
        done = subprocess.run(
            [sys.executable, "-c", _HARNESS, str(script), str(found)],
            cwd=folder,
            env=os.environ | ALONE,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise WorkflowError(f"{part.claim} broke off: {last}\n    script: {script}")
        records = json.loads(found.read_text(encoding="utf-8"))
    record = next(record for record in records if record["id"] == part.claim)
    return Ran(part, record, time.perf_counter() - begin)


def run_all(chosen: Sequence[str] = ()) -> Iterator[str]:
    """Run the checks of some claims, or of all; yield those whose chapter had found otherwise.

    Raises
    ------
    WorkflowError
        If no chapter checks one of the claims that are asked for.
    """
    tested = {entry.id: entry for entry in catalogue(catalogue_path()).values() if entry.tested}
    if unknown := sorted(set(chosen) - tested.keys()):
        raise WorkflowError(f"no chapter checks {', '.join(unknown)}; there are {' '.join(tested)}")
    for entry in [tested[name] for name in chosen or tested]:
        try:
            ran = run(entry.id)
        except WorkflowError as error:
            print(f"{entry.id}: {error}", flush=True)
            yield entry.id
            continue
        other = differences(ran.record, stored(entry.id, entry.chapter))
        print(f"{entry.id}: {'; '.join(other) or 'as stored'}. {_cost(ran)}", flush=True)
        if other:
            yield entry.id


def stored(claim: str, chapter: str) -> dict[str, Any]:
    """Return what the whole chapter had found of a claim when its outputs were stored."""
    return next(r for r in records(read_notebook(source(chapter))) if r["id"] == claim)


def differences(found: dict[str, Any], kept: dict[str, Any]) -> list[str]:
    """Say in what two records differ: the verdict, or what came of a criterion.

    The numbers of trained networks differ a little between two kinds of processor.
    """
    other = [] if found["verdict"] == kept["verdict"] else [_instead(found, kept, "verdict")]
    states = {item["id"]: item for item in kept["criteria"]}
    if states.keys() != {item["id"] for item in found["criteria"]}:
        return [*other, "other criteria than stored"]
    return other + [
        f"{item['id']} {_instead(item, states[item['id']], 'state')}"
        for item in found["criteria"]
        if item["state"] != states[item["id"]]["state"]
    ]


def _instead(found: dict[str, Any], kept: dict[str, Any], key: str) -> str:
    return f"{found[key]} instead of {kept[key]}"


def report(ran: Ran) -> str:
    """Return the evidence as text, with the time."""
    record = ran.record
    lines = [f"{record['id']} · {record['verdict']}"]
    lines += [f"    {item['text']}: {item['state']}" for item in record["criteria"]]
    return "\n".join([*lines, _cost(ran)])


def _cost(ran: Ran) -> str:
    part = ran.slice
    return f"{ran.seconds:.1f} s, {len(part.cells)} of {part.of} code cells of {part.chapter}"
