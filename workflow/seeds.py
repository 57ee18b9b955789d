"""How often each verdict comes out: the checks of each chapter at seeds that nobody used before.

A run executes what the checks of the chapter need, by its data flow, and nothing else: figures and
asides decide nothing, and twenty runs of them take an hour.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipbook.notebook.catalogue import catalogue, catalogue_path
from lipbook.notebook.claims import records
from workflow.execute import execute
from workflow.notebooks import write
from workflow.project import BOOK, BUILD, WorkflowError, plain, read_notebook, write_json
from workflow.slices import of_all_claims

FIRST = 1000  #: and upwards: more seeds are these and further ones
RUNS = BUILD / "seeds"
RECORD = BOOK / "records" / "seeds.json"


def seeds(count: int) -> range:
    """Return the first `count` of the seeds."""
    return range(FIRST, FIRST + count)


def run(notebook: Path, seed: int, output: Path, log: Path) -> None:
    """Execute the checks of a chapter at a seed, and keep its verdicts, or what broke it off.

    A chapter that breaks off is a finding; the other runs go on.
    """
    executed = output.with_suffix(".ipynb")
    whole = read_notebook(notebook)
    code = [cell for cell in whole.cells if cell.cell_type == "code"]
    whole.cells = of_all_claims(code, notebook.stem)
    write(whole, executed)
    try:
        execute(executed, executed, log, {"seed": seed})
        verdicts = {r["id"]: r["verdict"] for r in records(read_notebook(executed))}
        found: dict[str, Any] = {"verdicts": verdicts}
    except WorkflowError as error:
        found = {"failed": plain(error)}
    executed.unlink(missing_ok=True)
    write_json(output, found)


def gather() -> dict[str, Any]:
    """Join all runs that there are to those of the record, and write it anew."""
    found: dict[str, Any] = {"chapters": {}}
    if RECORD.exists():
        found = json.loads(RECORD.read_text(encoding="utf-8"))
    for path in sorted(RUNS.glob("*/*.json")):
        runs = found["chapters"].setdefault(path.parent.name, {})
        runs[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    found["measured"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    write_json(RECORD, found)
    return found


def report(found: dict[str, Any], chapters: Sequence[str]) -> list[str]:
    """Return a line for every run of these chapters that broke off, and every other verdict."""
    known = catalogue(catalogue_path())
    lines = []
    for chapter in chapters:
        for seed, run in found["chapters"].get(chapter, {}).items():
            where = f"{chapter}, seed {seed}"
            if "failed" in run:
                lines.append(f"{where}: {run['failed']}")
            lines += [
                f"{where}: {claim} {word}, not {known[claim].verdict}"
                for claim, word in run.get("verdicts", {}).items()
                if claim in known and word != known[claim].verdict
            ]
    return lines
