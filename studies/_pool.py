"""Measure studies on a machine of many cores and perhaps a GPU, within a given time.

``python -m studies._pool --out FOLDER --minutes 6 --workers 14 rivals rivals panels``: two of three
workers prefer the cells of rivals, the third those of panels. The workers share the GPU. Each row
is written as it comes, so that a kill loses unfinished cells only, and a second call goes on:
``FOLDER/NAME.jsonl``; images go to ``NAME-grids.jsonl``, facts about the run to ``NAME.json``.
`workflow.study.gather_rows` makes the table of it.

A study may define, besides what `studies` asks of each: ``watch(**cell)``, which yields the rows
one by one, with images as bytes under "grid"; ``cells(found, tiny=False)``, which lists further
cells when rows have been found, and tiny ones for a rehearsal; and ``ALONE = True``, if its cells
take times and so run one by one, before the others.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import datetime
import hashlib
import importlib
import inspect
import io
import json
import math
import multiprocessing as mp
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import pandas as pd
import torch
from PIL import Image

import studies
from lipbook.notebook.catalogue import catalogue as read_catalogue

Cell = dict[str, Any]

_REFRESH = 3.0  # seconds between two looks for cells that earlier rows make possible
_PROBE = (
    "import torch; torch.ones(9, device='cuda').sum().item(); print(torch.cuda.get_device_name())"
)


class Worker(NamedTuple):
    """A process that measures cells, the other end of its line, and the study that it prefers."""

    process: BaseProcess
    line: Connection
    prefers: str


class Book:
    """The rows of a study, on disk and in memory, and what is left to measure."""

    def __init__(self, name: str, folder: Path, *, tiny: bool) -> None:
        self.name, self.tiny = name, tiny
        self.path = folder / f"{name}.jsonl"
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.done: list[dict[str, Any]] = []
        self.begun: set[str] = set()
        self.failed: set[str] = set()
        for entry in read(self.path):
            self._note(entry)
            if "seconds" in entry:
                self.begun.add(key(entry["cell"]))
        self.file: TextIO = self.path.open("a", encoding="utf-8")
        if self.path.stat().st_size:  # where a kill has left half of a line
            self.file.write("\n")
        self.grids: TextIO = (folder / f"{name}-grids.jsonl").open("a", encoding="utf-8")
        self.waiting: list[Cell] = []
        self.looked = -_REFRESH

    def _note(self, entry: dict[str, Any]) -> None:
        rows = self.rows.setdefault(key(entry["cell"]), [])
        if "row" in entry:
            rows.append(entry["row"])
        elif "seconds" in entry:
            self.done += [{**entry["cell"], **row} for row in rows]
        if "begin" in entry:
            rows.clear()

    def write(self, entry: dict[str, Any]) -> None:
        """Keep what a worker says."""
        grid = entry.get("row", {}).pop("grid", None)
        if grid is not None:
            step = entry["row"].get("step")
            self.grids.write(json.dumps({"cell": entry["cell"], "step": step, "png": grid}) + "\n")
            self.grids.flush()
        self._note(entry)
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()

    def next(self) -> Cell | None:
        """Return the next cell to measure, if there is one yet."""
        if time.monotonic() - self.looked > _REFRESH:
            self.look()
        if not self.waiting:
            return None
        cell = self.waiting.pop(0)
        self.begun.add(key(cell))
        self.write({"cell": cell, "begin": True})
        return cell

    def look(self) -> bool:
        """Plan anew with what has been found, and tell if something is left to measure."""
        self.looked = time.monotonic()
        try:
            planned = self._planned()
        except Exception:  # of one study: the others go on, and this one with what it had planned
            traceback.print_exc()
            planned = self.waiting
        self.waiting = [cell for cell in planned if key(cell) not in self.begun]
        return bool(self.waiting)

    def fail(self, cell: Cell, why: str) -> None:
        """Have a cell measured once more; if that is the second time, it ends without a result."""
        self.write({"cell": cell, "failed": why})
        if key(cell) in self.failed:
            self.write({"cell": cell, "row": {"step": 0}})
            self.write({"cell": cell, "seconds": 0.0})
        else:
            self.failed.add(key(cell))
            self.begun.discard(key(cell))

    def _planned(self) -> list[Cell]:
        experiment = importlib.import_module(f"studies.{self.name}")
        taken = inspect.signature(experiment.cells).parameters
        given: dict[str, Any] = {}
        if "found" in taken and self.done:
            given["found"] = pd.DataFrame(self.done)
        if "tiny" in taken:
            given["tiny"] = self.tiny
        cells: list[Cell] = experiment.cells(**given)
        return cells


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a file of rows; the last line may be half of one, after a kill."""
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)


def key(cell: Mapping[str, Any]) -> str:
    """Return a cell as a text by which it is found again."""
    return json.dumps(cell, sort_keys=True)


def run(
    names: list[str],
    folder: Path,
    *,
    minutes: float = math.inf,
    workers: int,
    tiny: bool = False,
) -> None:
    """Measure what fits in some minutes; a name that comes twice has twice the share of workers."""
    deadline = time.monotonic() + 60 * minutes
    if (claims := _catalogue()).exists():
        read_catalogue(claims)  # hours later it would be too late to learn that it cannot be read
    folder.mkdir(parents=True, exist_ok=True)
    books = {name: Book(name, folder, tiny=tiny) for name in dict.fromkeys(names)}
    alone = [n for n in books if getattr(importlib.import_module(f"studies.{n}"), "ALONE", False)]
    together = [name for name in names if name not in alone]
    with _sharing_the_gpu() as (card, mps):
        for name in books:
            _write_facts(name, folder, card, {"workers": workers, "MPS": mps})
        if alone:
            _measure({n: books[n] for n in alone}, alone, deadline, 1)
        if together:
            shared = {n: books[n] for n in dict.fromkeys(together)}
            _measure(shared, together, deadline, workers)
    for book in books.values():
        left = "" if book.next() is None else ", more are left"
        cells = sum("seconds" in entry for entry in read(book.path))
        print(f"{book.name}: {cells} cells, {len(book.done)} rows{left}", flush=True)


def _measure(books: dict[str, Book], names: list[str], deadline: float, workers: int) -> None:
    """Keep some workers busy until nothing is left or the time is over."""
    crew = [_hired(names[i % len(names)]) for i in range(workers)]
    busy: dict[Connection, tuple[Worker, str, Cell]] = {}
    idle = list(crew)
    try:
        while time.monotonic() < deadline:
            idle = [worker for worker in idle if not _sent(worker, books, busy)]
            if not busy:
                left_over = [book.look() for book in books.values()]  # all of them look
                if not any(left_over):
                    return
                continue
            left = deadline - time.monotonic()
            for line in wait(list(busy), timeout=max(0.0, min(left, _REFRESH))):
                assert isinstance(line, Connection)
                worker, name, cell = busy[line]
                try:
                    entry = line.recv()
                except (EOFError, OSError):  # the process is gone
                    worker.process.join()
                    entry = {"failed": f"exit code {worker.process.exitcode}"}
                    crew[crew.index(worker)] = worker = _hired(worker.prefers)
                if "failed" in entry:
                    books[name].fail(cell, entry["failed"])
                else:
                    books[name].write({"cell": cell, **entry})
                if "row" not in entry:
                    del busy[line]
                    idle.append(worker)
    finally:
        for worker in crew:
            worker.process.terminate()
        for worker in crew:
            worker.process.join()


def _hired(prefers: str) -> Worker:
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours, prefers)


def _sent(
    worker: Worker, books: dict[str, Book], busy: dict[Connection, tuple[Worker, str, Cell]]
) -> bool:
    """Give a worker its next cell, of the study that it prefers if there is one."""
    for name in (worker.prefers, *books):
        if (cell := books[name].next()) is not None:
            with contextlib.suppress(OSError):  # gone: its line says so at the next look
                worker.line.send((name, cell))
            busy[worker.line] = (worker, name, cell)
            return True
    return False


def _work(line: Connection) -> None:
    """Measure the cells that come in, in a process of its own."""
    torch.set_num_threads(1)
    while True:
        try:
            name, cell = line.recv()
        except EOFError:
            return
        begin = time.perf_counter()
        try:
            for row in _rows(name, cell):
                line.send({"row": row})
        except Exception:  # whatever it is, the other cells go on
            line.send({"failed": traceback.format_exc(limit=-4)})
        else:
            line.send({"seconds": round(time.perf_counter() - begin, 2)})
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()  # graphs keep memory of their own, and others want some


def _rows(name: str, cell: Cell) -> Iterator[dict[str, Any]]:
    experiment = importlib.import_module(f"studies.{name}")
    torch.manual_seed(cell["seed"])
    found = experiment.watch(**cell) if hasattr(experiment, "watch") else experiment.measure(**cell)
    for row in [found] if isinstance(found, dict) else found:
        if "grid" in row:
            row = {**row, "grid": _picture(row["grid"])}
        yield row


def _picture(images: np.ndarray[Any, Any]) -> str:
    """Return 32 images in four rows as the text of a PNG with 64 colours."""
    n, channels, height, width = images.shape
    grid = images.reshape(-1, 8, channels, height, width).transpose(0, 3, 1, 4, 2)
    pixels = grid.reshape(n // 8 * height, 8 * width, channels)
    picture = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
    file = io.BytesIO()
    (picture.quantize(64) if channels == 3 else picture).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _write_facts(name: str, folder: Path, card: str, more: dict[str, Any]) -> None:
    """Write when, where and by what code a study is measured, and under which criteria."""
    path = folder / f"{name}.json"
    if path.exists():  # the call that began it
        return
    on_gpu = card != "CPU"
    facts = {
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": card,
        "cores": os.cpu_count(),
        "TF32": "in convolutions" if on_gpu and torch.backends.cudnn.allow_tf32 else "no",
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "NumPy": np.__version__,
        **more,
        "commit": printed(["git", "rev-parse", "HEAD"]) or "unknown",
        "criteria": criteria(getattr(importlib.import_module(f"studies.{name}"), "CLAIMS", ())),
        "code": studies.digests(name),
    }
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _sharing_the_gpu() -> Iterator[tuple[str, bool]]:
    """Let the workers' kernels run side by side by NVIDIA's MPS, if it can be started.

    Yields the name of the GPU, and whether that is so.
    """
    if not torch.cuda.is_available() or shutil.which("nvidia-cuda-mps-control") is None:
        yield _card(), False
        return
    with tempfile.TemporaryDirectory() as folder:
        places = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        old = {name: os.environ.get(name) for name in places}
        os.environ.update(places)
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            # Not by a pipe, which the daemon would keep open.
            quiet = subprocess.DEVNULL
            subprocess.run(
                ["nvidia-cuda-mps-control", "-d"],
                stdin=quiet,
                stdout=quiet,
                stderr=quiet,
                timeout=20,
                check=False,
            )
        card = _card()
        works = card != "CPU"
        try:
            if not works:
                _stop_sharing(old)
                card = _card()
            yield card, works
        finally:
            if works:
                _stop_sharing(old)


def _stop_sharing(old: dict[str, str | None]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            ["nvidia-cuda-mps-control"], input="quit\n", text=True, timeout=20, check=False
        )
    for name, value in old.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _card() -> str:
    """Return the name of the GPU, asked by another process: this one is to have no part of it."""
    return (torch.cuda.is_available() and printed([sys.executable, "-c", _PROBE])) or "CPU"


def printed(command: list[str]) -> str:
    """Return what a command prints, or nothing if it fails."""
    try:
        done = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _catalogue() -> Path:
    return studies.folder().parent / "claims.yml"


def criteria(claims: Sequence[str], catalogue: Path | None = None) -> dict[str, str]:
    """Return a digest of the text of each criterion of these claims in the catalogue."""
    catalogue = catalogue or _catalogue()
    if not catalogue.exists():
        return {}
    entries = re.split(r"(?m)^  - id: ", catalogue.read_text(encoding="utf-8"))
    found = {}
    for entry in entries[1:]:
        if (claim := entry.split()[0]) in claims:
            for text in re.findall(r"(?s)- (\{id: .*?\})", entry):
                name = re.match(r"\{id: (\w+)", text)
                digest = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:12]
                found[f"{claim}.{name[1] if name else ''}"] = digest
    return found


def main() -> None:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=studies.names(), metavar="study")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: small cells, few steps")
    given = parser.parse_args()
    run(given.names, given.out, minutes=given.minutes, workers=given.workers, tiny=given.tiny)


if __name__ == "__main__":
    main()
