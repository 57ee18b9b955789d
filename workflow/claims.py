"""What the chapters measured, from their executed notebooks, in one file that the pages read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from lipbook.notebook import claims
from workflow.project import read_notebook, written


def collect(executed: Iterable[Path], output: Path) -> None:
    """Write the records of ``claims.check``, by chapter, whole or not at all."""
    found = {path.stem: list(claims.records(read_notebook(path))) for path in executed}
    with written(output) as partial:
        text = json.dumps(found, indent=1, ensure_ascii=False)
        partial.write_text(f"{text}\n", encoding="utf-8")
