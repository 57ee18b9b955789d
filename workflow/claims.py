"""What the chapters found about each claim, in one file that every page reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lipbook.notebook import results
from workflow.project import BOOK, chapters, source, written


def collect(executed: Sequence[Path], output: Path) -> None:
    """Join the records of these notebooks to the catalogue, whole or not at all."""
    found = results.collect(executed, [source(name) for name in chapters()], BOOK)
    with written(output) as partial:
        partial.write_text(results.as_text(found), encoding="utf-8")
