"""Measure the long studies: in parts, gathered into one table, or a sample."""

from __future__ import annotations

import base64
import datetime
import gzip
import importlib
import io
import json
import platform
import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

import studies
from lipbook.notebook import runtime
from lipbook.notebook.catalogue import criteria_for
from studies import _pool
from workflow.project import CATALOGUE, ROOT, WorkflowError, write_json, written

_ORDER = "cell"  # while a table is in parts: which cell a row belongs to
_BEFORE = ("tuning", "probe", "wider")  # parts of a study by which nothing is judged yet
_DIGITS = "%.5g"  # more would be noise of the machine, and a larger file


def module(name: str) -> ModuleType:
    """Import a study by its name."""
    known = studies.names()
    if name not in known:
        raise WorkflowError(f"no study {name!r}; there are {', '.join(known) or 'none yet'}")
    return importlib.import_module(f"studies.{name}")


def measure_part(name: str, part: int, of: int, output: Path) -> None:
    """Measure every `of`-th cell from `part` on, and write the rows whole or not at all."""
    experiment = module(name)
    cells = list(enumerate(experiment.cells()))[part::of]
    begin, criteria = time.perf_counter(), stated(name)
    table = pd.concat(
        [
            _rows(experiment, cell).assign(**{_ORDER: index})
            for index, cell in tqdm(cells, desc=f"{name} {part + 1}/{of}", unit="cell")
        ]
        or [pd.DataFrame({_ORDER: []})]
    )
    table.attrs["seconds"] = time.perf_counter() - begin
    table.attrs["criteria"] = criteria
    with written(output) as partial:
        table.to_pickle(partial)


def gather(name: str, parts: Sequence[Path], target: Path) -> None:
    """Join the parts into the table and its provenance, ``target`` and the ``.json`` beside it."""
    tables = [pd.read_pickle(part) for part in parts]
    table = pd.concat(tables).sort_values(_ORDER, kind="stable").drop(columns=_ORDER)
    now = datetime.datetime.now(datetime.UTC)
    facts = {
        "measured": now.date().isoformat(),
        "cells": sum(table[_ORDER].nunique() for table in tables),
        "rows": len(table),
        "minutes on one core": round(sum(part.attrs["seconds"] for part in tables) / 60, 1),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "NumPy": np.__version__,
        "criteria": _stated_before_all([part.attrs.get("criteria", {}) for part in tables]),
        "code": studies.digests(name),
    }
    with written(target) as partial:
        table.to_csv(partial, index=False, float_format=_DIGITS)
    write_json(target.with_suffix(".json"), facts)


def gather_rows(
    name: str, folder: Path, target: Path, commit: str = "", *, cut_off: bool = False
) -> bool:
    """Make the table and its provenance of what `studies._pool` has written into a folder.

    Rows of a cell that did not end are kept where the study says ``PARTIAL = True``: a training
    that ran out of time is a shorter training. The grids that it names as ``PICTURES`` are kept,
    too. `commit` is that of the code where the folder's run has had a copy without its history.

    Returns
    -------
    bool
        Whether there is a table: not where no cell ended but those that tune the others, nor
        where more cells were cut off than ended.
    """
    experiment = module(name)
    order: dict[str, int] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    seconds: dict[str, float] = {}
    for entry in _pool.read(folder / f"{name}.jsonl"):
        cell = _pool.key(entry["cell"])
        order.setdefault(cell, len(order))
        if "begin" in entry and cell not in seconds:
            rows[cell] = []
        elif "row" in entry:
            rows.setdefault(cell, []).append({**entry["cell"], **entry["row"]})
        elif "seconds" in entry:
            seconds[cell] = entry["seconds"]
    judged = [cell for cell in seconds if json.loads(cell).get("part") not in _BEFORE]
    if not judged or (2 * len(seconds) < len(order) and not cut_off):
        return False
    kept = [cell for cell in order if cell in seconds or getattr(experiment, "PARTIAL", False)]
    table = pd.DataFrame([row for cell in kept for row in rows.get(cell, [])])
    facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    facts = {
        **{key: value for key, value in facts.items() if key not in ("code", "criteria")},
        "cells": len(kept),
        "cells that did not end": len(order) - len(seconds),
        "rows": len(table),
        "minutes of all workers": round(sum(seconds.values()) / 60, 1),
        "criteria": _stated_then(name, facts),
        "code": facts["code"],
    }
    if commit:
        facts["commit"] = commit
    target.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(target, index=False, float_format=_DIGITS)
    write_json(target.with_suffix(".json"), facts)
    wanted = getattr(experiment, "PICTURES", ())
    for grids in folder.glob(f"{name}-grids.jsonl*"):
        keep_pictures(name, grids, wanted, target.parent / "pictures" / f"{name}.json")
    return True


def keep_pictures(
    name: str, grids: Path, wanted: Sequence[tuple[dict[str, Any], int]], target: Path
) -> None:
    """Keep the first twelve images of some of a pool's grids beside the studies' tables, as text.

    Where there is none of them, what was kept before stays.

    Parameters
    ----------
    name : str
        The study.
    grids : Path
        The pool's ``name-grids.jsonl``, or that with ``.gz``.
    wanted : sequence of (dict, int)
        What a cell must hold, and the step.
    target : Path
        Of the file: a list with the cell, the step and a PNG in base64, which
        `studies.pictures` reads. The repository holds no binary files.
    """
    rows, columns = 2, 6
    kept = []
    opened = gzip.open if grids.suffix == ".gz" else open
    with opened(grids, "rt", encoding="utf-8") as lines:
        for entry in map(json.loads, lines):
            cell, step = entry["cell"], entry["step"]
            if not any(step == at and some.items() <= cell.items() for some, at in wanted):
                continue
            grid = Image.open(io.BytesIO(base64.b64decode(entry["png"])))
            side = grid.width // 8
            buffer = io.BytesIO()
            grid.crop((0, 0, columns * side, rows * side)).save(buffer, "PNG", optimize=True)
            text = base64.b64encode(buffer.getvalue()).decode()
            kept.append({"study": name, "cell": cell, "step": step, "png": text})
    if not kept:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with written(target) as partial:
        partial.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def stated(name: str) -> dict[str, Any]:
    """Return the criteria that a study's table is to be held against, as they stand in git now.

    Returns
    -------
    dict
        ``commit``, the one that last changed the catalogue, and ``digests`` by claim and criterion.
        Empty where the catalogue has changes that are not committed, or there is no git: criteria
        that nobody else can see do not count as stated.
    """
    try:
        changed = _git("status", "--porcelain", "--", str(CATALOGUE))
        commit = _git("log", "-1", "--format=%H", "--", str(CATALOGUE))
    except (OSError, subprocess.CalledProcessError):
        return {}
    return (
        {}
        if changed or not commit
        else {"commit": commit, "digests": criteria_for(name, _claims(name))}
    )


def _claims(name: str) -> Sequence[str]:
    """Return the claims that a study says it is about."""
    claims: Sequence[str] = getattr(module(name), "CLAIMS", ())
    return claims


def _git(*arguments: str | Path) -> str:
    command = ["git", "-C", str(ROOT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _stated_before_all(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the criteria that stood, unchanged, when each part of a table was begun."""
    if not all(parts):
        return {}
    digests = [part["digests"] for part in parts]
    return {
        "commit": parts[0]["commit"],
        "digests": {
            claim: {
                name: digest
                for name, digest in criteria.items()
                if all(other.get(claim, {}).get(name) == digest for other in digests)
            }
            for claim, criteria in digests[0].items()
        },
    }


def _stated_then(name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the criteria that stood in git, as the pool read them, when it began.

    By the catalogue of that commit: today's may have moved what was planned to what is judged.
    """
    try:
        commit = _git("log", "-1", f"--before={facts['measured']}", "--format=%H", "--", CATALOGUE)
        text = _git("show", f"{commit}:{CATALOGUE.relative_to(ROOT)}") if commit else ""
    except (OSError, subprocess.CalledProcessError):
        return {}
    if not text:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        catalogue = Path(folder) / CATALOGUE.name
        catalogue.write_text(text, encoding="utf-8")
        committed = _pool.criteria(_claims(name), catalogue)
        found = criteria_for(name, _claims(name), catalogue)
    read = facts["criteria"]
    digests = {
        claim: {
            key: digest
            for key, digest in criteria.items()
            if (name_of := f"{claim}.{key}") in read and read[name_of] == committed.get(name_of)
        }
        for claim, criteria in found.items()
    }
    return {"commit": commit, "digests": digests}


def deviations(name: str, cell: dict[str, Any], table: pd.DataFrame) -> pd.Series[float]:
    """Repeat one cell, or its beginning; return each column's deviation over what is tolerated.

    Above 1, the table is not reproduced. Cells, steps and missing values have to be the same.
    """
    experiment = module(name)
    again = _rows(experiment, cell).reset_index(drop=True)
    stored = studies.rows(table, cell).reset_index(drop=True)
    if hasattr(experiment, "beginning"):  # the rest takes a GPU, or is what rounding makes of it
        stored = stored.iloc[: len(again)]
    same_steps = "step" not in again or again["step"].tolist() == stored["step"].tolist()
    if len(again) != len(stored) or list(again) != list(stored) or not same_steps:
        raise WorkflowError(f"{name}: {cell} has other rows or columns than the table")
    worst = {}
    for column, tolerance in experiment.TOLERANCE.items():
        ours, theirs = (t[column].to_numpy(float) for t in (again, stored))
        allowed = tolerance(stored) if callable(tolerance) else tolerance
        rounding = 5e-5 * np.abs(theirs)  # of _DIGITS
        off = np.where(
            (ours == theirs) | (np.isnan(ours) & np.isnan(theirs)), 0.0, np.abs(ours - theirs)
        )
        worst[column] = float(np.nan_to_num(off / (allowed + rounding), nan=np.inf).max())
    return pd.Series(worst)


def repeatable(name: str, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the cells of a table that this machine can repeat, or the beginnings of."""
    experiment = module(name)
    some = getattr(experiment, "repeatable", None)
    cells: list[dict[str, Any]] = experiment.cells() if some is None else some(table)
    return cells


def recheck(name: str, count: int) -> pd.DataFrame:
    """Repeat `count` random cells; if they agree, vouch for the table with the code of today.

    Raises
    ------
    WorkflowError
        If one of them does not.
    """
    path = studies.folder() / f"{name}.csv"
    if not path.exists():
        raise WorkflowError(f"{name} has no table yet: leave CHECK out to measure it")
    table = pd.read_csv(path)
    cells = repeatable(name, table)
    chosen = random.SystemRandom().sample(cells, min(count, len(cells)))
    found = []
    for cell in tqdm(chosen, desc=name, unit="cell"):
        off = deviations(name, cell, table)
        if off.max() > 1:
            raise WorkflowError(
                f"{name}: {cell} is off by {off.max():.2g} times what is tolerated in "
                f"{off.idxmax()!r}; measure the table anew"
            )
        found.append(off)
    facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    facts |= {"checked again": f"{len(chosen)} cells on {today}", "code": studies.digests(name)}
    write_json(path.with_suffix(".json"), facts)
    return pd.DataFrame(found)


def _rows(experiment: ModuleType, cell: dict[str, Any]) -> pd.DataFrame:
    """Measure one cell on one thread, as a table with the cell's columns first."""
    runtime.start(cell["seed"], "cpu", threads=1)
    found = getattr(experiment, "beginning", experiment.measure)(**cell)
    results = [found] if isinstance(found, dict) else found
    return pd.DataFrame([{**cell, **result} for result in results])
