"""Keep what ``make gpu`` wrote: the record and its picture, and the tables of its studies."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from workflow.project import BOOK, STUDIES, WorkflowError

RECORDS = BOOK / "records"


def keep(folder: Path) -> Iterator[str]:
    """Copy a run's results into the book, and say what was kept.

    Raises
    ------
    WorkflowError
        If the folder holds none.
    """
    from workflow.study import gather_rows

    if not (folder / "gpu.json").exists():
        raise WorkflowError(f"{folder} has no gpu.json: `make gpu OUT={folder}` writes it")
    record = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    commit = record["machine"].get("commit", "")
    RECORDS.mkdir(exist_ok=True)
    for name in ("gpu.json", "gpu-grid.png"):
        if (folder / name).exists():
            shutil.copyfile(folder / name, RECORDS / name)
            yield f"kept {RECORDS / name}"
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(folder / "rows.tar.gz") as tar:
            tar.extractall(unpacked, filter="data")
        for facts in sorted(Path(unpacked).glob("*.json")):
            table = STUDIES / f"{facts.stem}.csv"
            whole = gather_rows(facts.stem, Path(unpacked), table, commit)
            yield f"kept {table}" if whole else f"{facts.stem} did not come far enough for a table"
