"""Keep what ``make gpu`` wrote: the record with its picture, and the tables of its studies."""

from __future__ import annotations

import base64
import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from workflow.project import BOOK, STUDIES, WorkflowError, write_json

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
    if (folder / "gpu-grid.png").exists():  # as text: the repository holds no binary files
        record["grid"] = base64.b64encode((folder / "gpu-grid.png").read_bytes()).decode()
    write_json(RECORDS / "gpu.json", record)
    yield f"kept {RECORDS / 'gpu.json'}"
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(folder / "rows.tar.gz") as tar:
            tar.extractall(unpacked, filter="data")
        for facts in sorted(Path(unpacked).glob("*.json")):
            table = STUDIES / f"{facts.stem}.csv"
            whole = gather_rows(facts.stem, Path(unpacked), table, commit)
            yield f"kept {table}" if whole else f"{facts.stem} did not come far enough for a table"
