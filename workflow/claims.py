"""What the chapters found about each claim, in one file that every page reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lipbook.notebook import results
from lipbook.notebook.claims import records
from workflow import slices
from workflow.project import BOOK, chapters, read_notebook, source, written


def collect(executed: Sequence[Path], output: Path) -> None:
    """Join the records of these notebooks to the catalogue, whole or not at all."""
    found = results.collect(executed, [source(name) for name in chapters()], BOOK)
    with written(output) as partial:
        partial.write_text(results.as_text(found), encoding="utf-8")


def write_scripts(executed: Sequence[Path], folder: Path) -> None:
    """Write each claim's check as a script of its own, which its card offers."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in executed:
        notebook = read_notebook(path)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for record in records(notebook):
            part = slices.of_cells(cells, record["id"], path.stem)
            (folder / f"{record['id']}.py").write_text(part.script(), encoding="utf-8")
