"""Which stored notebooks passed nbval as they are now, so that `make test` need not run them again.

What `make` decides of the executed book by times, pytest decides of the stored one by contents: a
notebook passes anew when its cells or outputs, the modules and tables that it imports, its claims,
the lock, what nbval is told, or the machine's settings change.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from workflow.project import (
    BUILD,
    ROOT,
    chapters,
    claims_of,
    modules_used,
    read_notebook,
    source,
    written,
)

_FOLDER = BUILD / "passed"
#: What decides how a notebook is run and compared.
_SETTINGS = ("requirements.lock", "pyproject.toml", "conftest.py")


def key(chapter: str) -> str:
    """Return a digest of everything that the outputs of a stored notebook follow from."""
    digest = hashlib.sha256()
    for path in [source(chapter), *modules_used(chapter), *(ROOT / name for name in _SETTINGS)]:
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    machine = {k: v for k, v in os.environ.items() if k.startswith(("LIPBOOK_", "ATEN_", "OMP_"))}
    digest.update(repr((claims_of(chapter), sys.version, sorted(machine.items()))).encode())
    return digest.hexdigest()


def _note(chapter: str) -> Path:
    return _FOLDER / f"{chapter}.txt"


class Passed:
    """Listens to a run of pytest, and notes which notebooks passed it whole."""

    def __init__(self) -> None:
        self.keys = {chapter: key(chapter) for chapter in chapters()}
        self._cells: Counter[str] = Counter()

    def unchanged(self) -> list[str]:
        """Return the notebooks that passed as they are now."""
        return [
            name
            for name, key in self.keys.items()
            if _note(name).is_file() and _note(name).read_text(encoding="utf-8") == key
        ]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the cells that passed."""
        path = ROOT / report.nodeid.partition("::")[0]
        if path.stem in self.keys and path == source(path.stem):
            self._cells[path.stem] += report.when == "call" and report.passed

    def pytest_sessionfinish(self) -> None:
        """Note every notebook whose cells passed, all of them."""
        for chapter, passed in self._cells.items():
            cells = read_notebook(source(chapter)).cells
            _note(chapter).unlink(missing_ok=True)
            if passed == sum(cell.cell_type == "code" for cell in cells):
                with written(_note(chapter)) as partial:
                    partial.write_text(self.keys[chapter], encoding="utf-8")
