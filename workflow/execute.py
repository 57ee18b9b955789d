"""Run one chapter through papermill: a whole output or none, one log, one line on failure."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from workflow.environment import CONTRADICTIONS
from workflow.notebooks import normalize, write
from workflow.parameters import literal
from workflow.project import BUILD, WorkflowError

_CELL_SECONDS = 1800
_INJECTED = "injected-parameters"


def execute(notebook: Path, output: Path, log: Path, parameters: dict[str, Any]) -> None:
    """Execute a chapter into `output`, writing what happens to `log`.

    The kernel stands in an empty folder, so that nothing lying in the book is imported or read.

    Raises
    ------
    WorkflowError
        If a cell fails. The notebook up to there is kept beside the log, for reading.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    scratch = BUILD / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    partial = log.with_suffix(".running.ipynb")
    # A run of its own may find another verdict than the catalogue's, which would stop it.
    judged = {CONTRADICTIONS: "record"} if parameters else {}
    with log.open("w", encoding="utf-8") as stream, _logged(stream), patch.dict(os.environ, judged):
        try:
            papermill.execute_notebook(
                literal(notebook),
                literal(partial),
                parameters=parameters,
                kernel_name="python3",
                cwd=str(scratch),
                progress_bar=False,
                stdout_file=stream,
                stderr_file=stream,
                execution_timeout=_CELL_SECONDS,
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
        except papermill.PapermillExecutionError as error:
            stream.write("\n".join(error.traceback) + "\n")
            said = f"failed: {error.ename}: {error.evalue}"
            raise WorkflowError(_failure(partial, log, said, error.exec_count)) from None
        except (DeadKernelError, CellTimeoutError) as error:
            stream.write(f"{error}\n")
            slow = isinstance(error, CellTimeoutError)
            said = f"took over {_CELL_SECONDS} s" if slow else "lost its kernel (out of memory?)"
            raise WorkflowError(_failure(partial, log, said)) from None
    done = nbformat.read(partial, as_version=4)
    for number, cell in enumerate(done.cells):
        if _INJECTED in cell.metadata.get("tags", ()):
            cell.metadata.tags.append("remove-cell")
            cell.id = f"injected-parameters-{number}"
    write(normalize(done), output)
    partial.unlink()


@contextlib.contextmanager
def _logged(stream: io.TextIOBase) -> Any:
    """Send papermill's own log to the chapter's log instead of the terminal."""
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("papermill")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _failure(partial: Path, log: Path, said: str, count: int | None = None) -> str:
    """Name the cell: by its count, or as the first that got no reply."""
    failed = partial.replace(log.with_suffix(".failed.ipynb"))
    cells = nbformat.read(failed, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    stopped = [
        cell.execution_count == count
        if count
        else "shell.execute_reply" not in cell.metadata.get("execution", {})
        for cell in code
    ]
    index = stopped.index(True)
    return (
        f"{log.stem}: code cell {count or index + 1} ({code[index].id}) {said}\n"
        f"    log: {log}\n    the notebook up to there: {failed}"
    )
