"""Bring a stored notebook up to date: format it, execute it, and refuse what may not be stored."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import nbformat

from workflow.execute import execute
from workflow.notebooks import form_faults, normalize, run_faults, write
from workflow.project import ROOT, WorkflowError, read_notebook, source


def refresh(notebook: Path, output: Path, log: Path) -> None:
    """Format a chapter's code, execute it, and write what may be stored to `output`.

    The order matters: ``ruff format`` respells numbers, in the text that nbval compares too.

    Raises
    ------
    WorkflowError
        If the form forbids something, with all of it, or if a cell fails.
    """
    stored = read_notebook(notebook)
    formatted = _formatted(notebook, stored)
    _refuse(notebook.stem, [*form_faults(formatted), *_lint(notebook, formatted)])
    copy = log.with_name(f"refresh-{notebook.stem}.formatted.ipynb")
    write(formatted, copy)
    executed = log.with_name(f"refresh-{notebook.stem}.executed.ipynb")
    execute(copy, executed, log, {})
    found = read_notebook(executed)
    _refuse(notebook.stem, run_faults(found))
    write(found, output)
    for path in (copy, executed):
        path.unlink()


def store(chapter: str, output: Path) -> None:
    """Put a refreshed notebook in the place of the stored one, if that was not edited meanwhile."""
    if not output.exists():
        return
    path = source(chapter)
    if _written(_formatted(path, read_notebook(path))) != _written(read_notebook(output)):
        return  # newer than `output`: the next refresh executes it
    if path.read_bytes() != output.read_bytes():
        write(read_notebook(output), path)
    output.touch()  # newer than what was just stored


def _formatted(path: Path, notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook as ``ruff format`` would leave it at `path`."""
    notebook = normalize(notebook)
    done = _ruff("format", path, notebook)
    if done.returncode:
        why = done.stderr.strip().splitlines()
        raise WorkflowError(f"{path.stem}: {why[0] if why else 'ruff cannot format it'}")
    formatted: nbformat.NotebookNode = nbformat.reads(done.stdout, as_version=4)
    return normalize(formatted)


def _lint(path: Path, notebook: nbformat.NotebookNode) -> list[str]:
    done = _ruff("check", path, notebook, "--output-format", "concise", "--quiet")
    return [
        line.removeprefix(f"{path.resolve().relative_to(ROOT)}:")
        for line in done.stdout.splitlines()
    ]


def _ruff(
    command: str, path: Path, notebook: nbformat.NotebookNode, *options: str
) -> subprocess.CompletedProcess[str]:
    name = str(path.resolve().relative_to(ROOT))  # whose settings hold
    return subprocess.run(
        [sys.executable, "-m", "ruff", command, *options, "--stdin-filename", name, "-"],
        cwd=ROOT,
        input=nbformat.writes(notebook),
        capture_output=True,
        text=True,
        check=False,
    )


def _written(notebook: nbformat.NotebookNode) -> list[tuple[str, str, str, object]]:
    return [(cell.cell_type, cell.id, cell.source, cell.metadata) for cell in notebook.cells]


def _refuse(chapter: str, faults: Iterable[str]) -> None:
    if found := [f"    {fault}" for fault in faults]:
        raise WorkflowError("\n".join([f"{chapter} cannot be stored:", *found]))
