"""``make gpu``: the whole book on one card, within minutes, as one record.

Runs, in order: times of a critic's step in two precisions; every chapter by nbval on the device,
beside the studies that ask for one, cell by cell, by `studies._pool`. What is there goes into the
folder of results every few seconds, in files that are whole or not there, so that a kill at any
time loses little. On a machine without a GPU the same runs on its CPU.

Only what comes with torch, and pytest with nbval for the chapters, is imported here: the machine
need not have what builds the site. `book/records/gpu.json` is what the book keeps of it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import datetime
import gzip
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lipbook.lab.dcgan import dcgan_critic
from lipbook.normalization import spectral_normalize
from lipbook.wgan import GradientPenalty
from studies._pool import printed, read
from workflow.environment import KIT
from workflow.project import ROOT, write_json, written

#: By priority; a name that comes twice has twice the share of the workers.
STUDIES = ("open_question", "classes", "panels", "panels", "rivals", "rivals", "rivals")
_RESERVE = 25.0  # seconds at the end for what has begun
_KEEP_EVERY = 20.0  # seconds between two savings

_COMMIT = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
_MOST_CHARACTERS = 19e6  # of a study's images as text, some 14 MB when packed

Record = dict[str, Any]


class Results:
    """The record so far, and a folder into which it and all rows are saved whole."""

    def __init__(self, out: Path, scratch: Path) -> None:
        self.out, self.scratch, self.record = out, scratch, dict[str, Any]()
        self.lock, self.over = threading.Lock(), threading.Event()
        out.mkdir(parents=True, exist_ok=True)
        self.thread = threading.Thread(target=self._keep, daemon=True)
        self.thread.start()

    def _keep(self) -> None:
        while not self.over.wait(_KEEP_EVERY):
            self.save()

    def save(self) -> None:
        """Write ``gpu.json``, ``rows.tar.gz``, each study's images and the last grid."""
        with self.lock:
            write_json(self.out / "gpu.json", self.record)
            with written(self.out / "rows.tar.gz") as path:
                self._pack(path)
            for file in self.scratch.glob("*-grids.jsonl"):
                kept = "".join(_within(read(file), _MOST_CHARACTERS)).encode()
                with written(self.out / f"{file.name}.gz") as path:
                    path.write_bytes(gzip.compress(kept, compresslevel=1))
            if picture := last_grid(self.scratch / "panels-grids.jsonl"):
                with written(self.out / "gpu-grid.png") as path:
                    path.write_bytes(picture)

    def _pack(self, path: Path) -> None:
        with tarfile.open(path, "w:gz", compresslevel=4) as tar:
            for file in sorted(self.scratch.glob("*.json*")):
                if not file.name.endswith("-grids.jsonl"):
                    tar.add(file, file.name)

    def step(self, name: str, measure: Callable[[], Any]) -> None:
        """Take what a part returns into the record, or how it failed."""
        begin = time.monotonic()
        try:
            self.record[name] = measure()
        except Exception:  # whatever it is, the other parts go on
            self.record[name] = {"failed": traceback.format_exc(limit=-3)}
            print(self.record[name]["failed"], file=sys.stderr)
        self.record.setdefault("seconds", {})[name] = round(time.monotonic() - begin, 1)
        print(f"{name}: {self.record['seconds'][name]} s", flush=True)
        self.save()

    def close(self) -> None:
        """Save for the last time."""
        self.over.set()
        self.thread.join()
        self.save()


def _within(entries: Iterator[dict[str, Any]], most: float) -> Iterator[str]:
    """Yield as many entries as fit, those of the widest networks and the first seeds before."""
    ranked = sorted(
        entries, key=lambda e: (-e["cell"].get("width", 0), e["cell"]["seed"], -(e["step"] or 0))
    )
    for entry in ranked:
        line = json.dumps(entry) + "\n"
        most -= len(line)
        if most > 0:
            yield line


def last_grid(path: Path) -> bytes | None:
    """Return the images of the widest networks' latest step, as a PNG, or None."""
    best: tuple[tuple[int, int], str] | None = None
    for entry in read(path):
        rank = (int(entry["cell"].get("width", 0)), int(entry.get("step") or 0))
        if best is None or rank >= best[0]:
            best = (rank, entry["png"])
    return base64.b64decode(best[1]) if best else None


def machine() -> Record:
    """Return what ran it, and of which commit."""
    on_gpu = torch.cuda.is_available()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": os.environ.get("LIPBOOK_COMMIT") or printed(_COMMIT) or "unknown",
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "cores": os.cpu_count(),
        "processor": _processor(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def step_times(*, tiny: bool) -> list[Record]:
    """Time a critic's step at 64×64, batch 64, by method and precision: medians, interleaved."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width, batch, rounds, steps = (4, 4, 2, 1) if tiny else (64, 64, 9, 10)
    torch.manual_seed(0)
    real, fake = torch.randn(2, batch, 3, 64, 64, device=device).tanh()
    loops = {
        (name, precision): _loop(name, precision, width, real, fake)
        for precision in ("float32", "bfloat16")
        for name in ("plain", "torch's SN", "our SN", "penalty")
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in loops}
    for turn in range(rounds + 1):
        for key, loop in loops.items():
            _wait()
            begin = time.perf_counter()
            for _ in range(steps):
                loop()
            _wait()
            if turn:  # the first warms up
                times[key].append(1e3 * (time.perf_counter() - begin) / steps)
    return [
        {
            "method": name,
            "precision": precision,
            "width": width,
            "milliseconds": sorted(found)[len(found) // 2],
            "fastest": min(found),
        }
        for (name, precision), found in times.items()
    ]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _loop(name: str, precision: str, width: int, real: Tensor, fake: Tensor) -> Callable[[], None]:
    """Return a step of a critic's optimizer; in bfloat16 by autocast, weights stay in float32."""
    critic = dcgan_critic(width=width).to(real.device)
    for layer in critic:
        if hasattr(layer, "weight") and "SN" in name:
            normalize = (
                spectral_normalize if name == "our SN" else nn.utils.parametrizations.spectral_norm
            )
            normalize(layer)
    adam = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.5, 0.999))
    half = torch.autocast(real.device.type, torch.bfloat16, enabled=precision == "bfloat16")

    def step() -> None:
        with half:
            loss = critic(fake).float().mean() - critic(real).float().mean()
            if name == "penalty":
                loss = loss + GradientPenalty().penalty(critic, real, fake, None)
        adam.zero_grad()
        loss.backward()
        adam.step()

    return step


class Chapters:
    """The chapters by nbval, each in a process of its own, side by side."""

    def __init__(self, scratch: Path, *, names: list[str]) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.scratch = scratch
        self.running = {name: self._started(name, device) for name in names}

    def _started(self, name: str, device: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider"]
        command += ["-p", "workflow.gpu_cells", "--nbval", "--nbval-current-env", "--tb=line", "-q"]
        command += ["--nbval-cell-timeout=300", f"book/{name}.ipynb"]
        surroundings = {
            **os.environ,
            "LIPBOOK_DEVICE": device,
            "LIPBOOK_CELLS": str(self.scratch / f"chapter-{name}.jsonl"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            KIT: os.environ.get("PYTHONPATH", ""),  # conftest gives it to the kernels
        }
        log = (self.scratch / f"chapter-{name}.log").open("wb")
        return subprocess.Popen(
            command, cwd=ROOT, env=surroundings, stdout=log, stderr=log, start_new_session=True
        )

    def end(self, deadline: float) -> None:
        """Wait until a time, and stop those that still run."""
        for process in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 15)

    def found(self) -> dict[str, Record]:
        """Return for each chapter what its cells did, and how far its claims' numbers are off."""
        results = {}
        for name, process in self.running.items():
            cells = list(read(self.scratch / f"chapter-{name}.jsonl"))
            stored = json.loads((ROOT / "book" / f"{name}.ipynb").read_text(encoding="utf-8"))
            log = (
                (self.scratch / f"chapter-{name}.log")
                .read_text(errors="replace")
                .replace(f"{ROOT}/", "")
            )
            results[name] = {
                "cells": sum(cell["cell_type"] == "code" for cell in stored["cells"]),
                "passed": sum(cell["outcome"] == "passed" for cell in cells),
                "failed": [cell["cell"] for cell in cells if cell["outcome"] == "failed"],
                "seconds": round(sum(cell["seconds"] for cell in cells), 1),
                "whole": process.poll() in (0, 1),
                "quantities": deviations(stored, cells),
            }
            if not cells:
                results[name]["log"] = log[-1500:].replace(f"{ROOT}/", "")
        return results


def deviations(stored: dict[str, Any], cells: list[dict[str, Any]]) -> list[Record]:
    """Compare the values of each criterion with the stored notebook's: the largest difference.

    `relative` is over the larger of 1e-12 and the largest stored value.
    """
    then: dict[tuple[str, str], list[float]] = {}
    for cell in stored["cells"]:
        then |= _values(cell.get("outputs", []))
    found: list[dict[str, Any]] = []
    for cell in cells:
        for key, now in _values(cell["outputs"]).items():
            before = then.get(key, [])
            if len(before) != len(now) or not now:
                found.append({"claim": key[0], "criterion": key[1], "relative": None})
                continue
            off = max(abs(a - b) for a, b in zip(before, now, strict=True))
            scale = max(1e-12, *(abs(value) for value in before))
            found.append({"claim": key[0], "criterion": key[1], "relative": off / scale})
    return found


def _values(outputs: list[dict[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """Return the values of each criterion that `claims.check` left in a cell's outputs."""
    found = {}
    for output in outputs:
        record = output.get("metadata", {}).get("lipbook") or {}
        for entry in record.get("criteria", []):
            numbers = [v for v in entry.get("values", []) if isinstance(v, int | float)]
            found[record["id"], entry["id"]] = numbers
    return found


def pooled(names: list[str], scratch: Path, deadline: float, workers: int, *, tiny: bool) -> Record:
    """Measure the studies' cells until a time, and count them."""
    command = [sys.executable, "-m", "studies._pool", "--out", str(scratch)]
    command += ["--minutes", f"{max(0.05, (deadline - time.monotonic()) / 60):.3f}"]
    command += ["--workers", str(workers), *(["--tiny"] if tiny else []), *names]
    step = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, start_new_session=True
    )
    print(step.stdout, step.stderr[-3000:], flush=True)
    counted = {}
    for name in dict.fromkeys(names):
        entries = list(read(scratch / f"{name}.jsonl"))
        counted[name] = {
            "cells": sum("seconds" in entry for entry in entries),
            "rows": sum("row" in entry for entry in entries),
            "failed": sum("failed" in entry for entry in entries),
            "seconds": round(sum(entry.get("seconds", 0) for entry in entries), 1),
        }
    return counted


def run(given: argparse.Namespace) -> None:
    """Run all parts within the given minutes."""
    begin = time.monotonic()
    deadline = begin + 60 * given.minutes - min(_RESERVE, 20 * given.minutes)
    with tempfile.TemporaryDirectory(prefix="lipbook-gpu-") as folder:
        scratch = Path(folder)
        results = Results(given.out, scratch)
        results.step("machine", machine)
        results.step("step times", lambda: step_times(tiny=given.tiny))
        alone = [name for name in given.studies if name == "step_times"]
        if alone:
            results.step(
                "times of cycles", lambda: pooled(alone, scratch, deadline, 1, tiny=given.tiny)
            )
        chapters = Chapters(scratch, names=given.chapters)
        others = [name for name in given.studies if name != "step_times"]
        if others:
            results.step(
                "studies",
                lambda: pooled(others, scratch, deadline, given.workers, tiny=given.tiny),
            )
        chapters.end(deadline)
        results.step("chapters", chapters.found)
        results.close()
    print(f"The record is {given.out / 'gpu.json'}: make gpu-record FROM={given.out} keeps it")


def known_chapters() -> list[str]:
    """Return the names of the notebooks in the book."""
    return sorted(path.stem for path in (ROOT / "book").glob("[0-9]*.ipynb"))


def main() -> None:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(prog="python -m workflow.gpu", description="make gpu")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--workers", type=int, default=max(2, (os.cpu_count() or 2) - 2))
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: small cells, few steps")
    parser.add_argument("--studies", type=str.split, default=["step_times", *STUDIES])
    parser.add_argument("--chapters", type=str.split, default=known_chapters())
    run(parser.parse_args())


if __name__ == "__main__":
    main()
