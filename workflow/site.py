"""Build the site with Jupyter Book, every warning an error, and swap it in whole."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from workflow.alone import alone
from workflow.lighten import lighten
from workflow.project import WorkflowError


def build_site(staged: Path, target: Path, log: Path) -> None:
    """Turn the staged tree into HTML at `target`.

    Raises
    ------
    WorkflowError
        If Sphinx warned of anything; the message has the warnings.
    """
    work = target.with_name("sphinx")
    shutil.rmtree(work, ignore_errors=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    program = str(Path(sys.executable).with_name("jupyter-book"))
    command = [program, "build", str(staged), "--path-output", str(work)]
    command += ["-W", "-n", "--keep-going"]
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise WorkflowError(f"the site did not build:\n{_complaints(log)}\n    log: {log}")
    _let_go(work / "_build" / "html", staged)
    lighten(work / "_build" / "html")
    shutil.rmtree(target, ignore_errors=True)
    (work / "_build" / "html").rename(target)
    shutil.rmtree(work)


def _let_go(site: Path, staged: Path) -> None:
    """Make the notebooks that a page's button offers work without the rest of the book."""
    settings = yaml.safe_load((staged / "_config.yml").read_text(encoding="utf-8"))
    repository = settings.get("repository", {}).get("url", "")
    for path in (site / "_sources").rglob("*.ipynb"):
        path.write_text(alone(path.read_text(encoding="utf-8"), repository), encoding="utf-8")


def _complaints(log: Path) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8", errors="replace"))
    lines = [line for line in text.splitlines() if re.search(r"WARNING|ERROR|Error:", line)]
    return "\n".join(f"    {line}" for line in (lines or text.splitlines()[-15:]))
