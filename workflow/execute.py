"""Run one chapter through papermill: a whole output or none, one log, one line on failure."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import nbformat
import papermill

from workflow.notebooks import normalize, write
from workflow.project import BOOK, WorkflowError, source

_CELL_SECONDS = 1800
_INJECTED = "injected-parameters"


def execute(chapter: str, output: Path, log: Path, parameters: dict[str, Any]) -> None:
    """Execute a chapter into `output`, writing what happens to `log`.

    Raises
    ------
    WorkflowError
        If a cell fails. The notebook up to there is kept beside the log, for reading.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = log.with_suffix(".running.ipynb")  # `refresh` has its output in the work tree
    with log.open("w", encoding="utf-8") as stream, _logged(stream):
        try:
            papermill.execute_notebook(
                str(source(chapter)),
                str(partial),
                parameters=parameters,
                kernel_name="python3",
                cwd=str(BOOK),
                progress_bar=False,
                stdout_file=stream,
                stderr_file=stream,
                execution_timeout=_CELL_SECONDS,
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
        except papermill.PapermillExecutionError as error:
            stream.write("\n".join(error.traceback) + "\n")
            failed = partial.replace(log.with_suffix(".failed.ipynb"))
            raise WorkflowError(_failure(chapter, error, failed, log)) from None
    notebook = nbformat.read(partial, as_version=4)
    for number, cell in enumerate(notebook.cells):
        if _INJECTED in cell.metadata.get("tags", ()):
            cell.metadata.tags.append("remove-cell")
            cell.id = f"injected-parameters-{number}"
    write(normalize(notebook), output)
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


def _failure(
    chapter: str, error: papermill.PapermillExecutionError, failed: Path, log: Path
) -> str:
    # papermill puts a notice before the failing cell: find the cell by its count instead.
    cells = nbformat.read(failed, as_version=4).cells
    cell = next((c for c in cells if c.get("execution_count") == error.exec_count), None)
    name = f" ({cell.id})" if cell is not None else ""
    return (
        f"{chapter}: code cell {error.exec_count}{name} failed: {error.ename}: {error.evalue}\n"
        f"    log: {log}\n    the notebook up to there: {failed}"
    )
