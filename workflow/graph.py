"""Run the Snakefile, alone, and say one line of what stopped it.

Snakemake leaves its own lock behind when it is killed. A lock of the operating system around it,
which the kernel releases on death, tells a leftover lock from a live run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import filelock

from workflow.progress import Progress
from workflow.project import BUILD, FAILURES, ROOT, WorkflowError, inputs

_STOPPED = "lipbook: stopped; the same command goes on from here"
#: Where steps run that are not to run here, by Snakemake's executors of the same names.
PROFILES = ROOT / "profiles"
#: Clocks of two machines that share a folder differ by seconds.
_CLOCKS = 60


def run(
    targets: Sequence[str],
    config: dict[str, Any],
    *,
    cores: int,
    work: str = "build",
    profile: str = "none",
) -> None:
    """Bring `targets` of the Snakefile up to date, with what it reads from its `config`.

    Runs of different `work` share no file and may go on side by side: a build beside a study.
    A `profile` sends the steps to a cluster: a folder of `profiles`, or "none".

    Raises
    ------
    WorkflowError
        If another run of this work is alive, a file is from the future, a step failed, or there
        is no such profile.
    """
    if profile != "none":
        profile = _profile(profile)
    _refuse_the_future()
    (BUILD / "home").mkdir(parents=True, exist_ok=True)
    (BUILD / "logs").mkdir(exist_ok=True)
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
        _snakemake(targets, config, cores, work, profile)
        running.unlink()


def _profile(name: str) -> str:
    """Return the folder of a profile, from the root."""
    known = sorted(path.parent.name for path in PROFILES.glob("*/config.yaml"))
    if name not in known:
        raise WorkflowError(f"no profile {name!r}; there is {', '.join(known)}")
    return str((PROFILES / name).relative_to(ROOT))


def _refuse_the_future() -> None:
    """Say so if a file was changed tomorrow: whatever depends on it would run again for ever."""
    limit = time.time() + _CLOCKS
    for path in inputs():
        if path.stat().st_mtime > limit:
            raise WorkflowError(
                f"{path.relative_to(ROOT)} is from the future, by its time of change: "
                "set the clock right, then `touch` the file"
            )


def arguments(
    targets: Sequence[str], config: dict[str, Any], cores: int, work: str, profile: str
) -> list[str]:
    """Return what Snakemake is told; its `config` goes by a file, in which values keep types."""
    settings = BUILD / f"{work}-config.json"
    settings.write_text(json.dumps(config), encoding="utf-8")
    how = ["--cores", str(cores), "--rerun-incomplete", "--scheduler", "greedy", "--nocolor"]
    # A touched chapter runs again even if its text is the same: as with make, time decides.
    how += ["--max-checksum-file-size", "0", "--workflow-profile", profile]
    return [*how, "--configfile", str(settings.relative_to(ROOT)), "--", *targets]


def _snakemake(
    targets: Sequence[str], config: dict[str, Any], cores: int, work: str, profile: str
) -> None:
    failures, log = BUILD / f"{work}-failures.txt", BUILD / "logs" / f"{work}.log"
    failures.unlink(missing_ok=True)
    os.environ[FAILURES] = str(failures)
    os.chdir(ROOT)
    given = arguments(targets, config, cores, work, profile)
    with _talking_to(log) as person, _stopping(person):
        from snakemake import cli  # seconds of imports that `--help` need not wait for

        progress = Progress(person)
        # Snakemake puts it into shell commands as it stands.
        python, sys.executable = sys.executable, shlex.quote(sys.executable)
        try:
            cli.main(given)
        except SystemExit as stop:
            failed = bool(stop.code)
        finally:
            sys.executable = python
            progress.close()
    del os.environ[FAILURES]
    if failed:
        said = failures.read_text(encoding="utf-8").strip() if failures.exists() else ""
        why = said or progress.broken() or _first_error(log)
        more = "" if said else f"\n    log: {log.relative_to(ROOT)}"
        raise WorkflowError(f"the {work} is not finished: {why}{more}")


def _first_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in lines if "Error" in line), "Snakemake could not begin")


@contextlib.contextmanager
def _talking_to(log: Path) -> Iterator[TextIO]:
    """Send what Snakemake and its steps say to `log`; what is returned goes to the person."""
    before = sys.stderr
    with os.fdopen(os.dup(2), "w", encoding="utf-8") as person, log.open("w") as stream:
        os.dup2(stream.fileno(), 2)
        sys.stderr = stream
        try:
            yield person
        finally:
            sys.stderr = before
            os.dup2(person.fileno(), 2)


@contextlib.contextmanager
def _stopping(person: TextIO) -> Iterator[None]:
    """Make Ctrl-C a kill, after which the next run goes on, with one line and nothing left."""
    import psutil

    def stop(*_: object) -> None:
        steps = psutil.Process().children(recursive=True)
        for ending in (psutil.Process.terminate, psutil.Process.kill):
            for step in steps:
                with contextlib.suppress(psutil.NoSuchProcess):
                    ending(step)
            _, steps = psutil.wait_procs(steps, timeout=3)
        os.write(person.fileno(), f"\n{_STOPPED}\n".encode())
        os._exit(130)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
