"""Run the Snakefile, alone.

Snakemake leaves its own lock behind when it is killed. A lock of the operating system around it,
which the kernel releases on death, tells a leftover lock from a live run.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import filelock

from workflow.project import BUILD, FAILURES, ROOT, WorkflowError


def run(targets: Sequence[str], config: dict[str, Any], *, cores: int, work: str = "build") -> None:
    """Bring `targets` of the Snakefile up to date, with what it reads from its `config`.

    Runs of different `work` share no file and may go on side by side: a build beside a study.

    Raises
    ------
    WorkflowError
        If another run of this work is alive, or a step failed (it has said why by then).
    """
    BUILD.mkdir(exist_ok=True)
    lock = filelock.FileLock(BUILD / f"{work}.lock")
    running = BUILD / f"{work}.pid"
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        holder = running.read_text().strip() if running.exists() else "unknown"
        raise WorkflowError(
            f"another {work} is running here (process {holder}); wait for it, or stop it"
        ) from None
    with lock:
        running.write_text(str(os.getpid()))
        # We hold the lock, so nobody else does this work: what Snakemake finds locked is stale.
        shutil.rmtree(ROOT / ".snakemake" / "locks", ignore_errors=True)
        _snakemake(targets, config, cores, work)
        running.unlink()


def _snakemake(targets: Sequence[str], config: dict[str, Any], cores: int, work: str) -> None:
    from snakemake import cli  # seconds of imports that `--help` need not wait for

    failures = BUILD / f"{work}-failures.txt"
    failures.unlink(missing_ok=True)
    os.environ[FAILURES] = str(failures)
    os.chdir(ROOT)
    arguments = ["--cores", str(cores), "--rerun-incomplete", "--scheduler", "greedy"]
    # A touched chapter runs again even if its text is the same: as with make, time decides.
    arguments += ["--max-checksum-file-size", "0"]
    arguments += [*_display(), "--configfile"]
    try:
        # In a file they keep their types; on Snakemake's command line a number becomes a text.
        with tempfile.NamedTemporaryFile("w", suffix=".json") as given:
            json.dump(config, given)
            given.flush()
            cli.main([*arguments, given.name, "--", *targets])
    except SystemExit as stop:
        if stop.code:
            why = failures.read_text().strip() if failures.exists() else "see above"
            raise WorkflowError(f"the {work} is not finished: {why}") from None
    finally:
        del os.environ[FAILURES]


def _display() -> list[str]:
    """Show a progress bar on a terminal; elsewhere, one line a finished step."""
    if sys.stderr.isatty():
        return ["--logger", "rich"]
    return ["--quiet", "rules", "host"]
