"""What passed as it is now, so that `make test` need not try it again.

What `make` decides of the executed book by times, pytest decides by contents. A stored notebook
passes nbval anew when its cells or outputs, the modules and tables that it imports, its claims, the
lock, what nbval is told, or the machine's settings change. A page of the site is looked at anew
when it, what the pages share, what they are asked, or the browser changes.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from workflow.browser import find
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
_SETTINGS = ("requirements.lock", "pyproject.toml", "conftest.py", "workflow/environment.py")


def key(chapter: str) -> str:
    """Return a digest of everything that the outputs of a stored notebook follow from."""
    digest = hashlib.sha256()
    for path in [source(chapter), *modules_used(chapter), *(ROOT / name for name in _SETTINGS)]:
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    machine = {k: v for k, v in os.environ.items() if k.startswith(("LIPBOOK_", "ATEN_", "OMP_"))}
    digest.update(repr((claims_of(chapter), sys.version, sorted(machine.items()))).encode())
    return digest.hexdigest()


def page_key(site: Path, name: str) -> str:
    """Return a digest of everything that a page's looks in a browser follow from."""
    return hashlib.sha256(_of_all_pages(site) + (site / name).read_bytes()).hexdigest()


@functools.cache
def _of_all_pages(site: Path) -> bytes:
    digest = hashlib.sha256()
    for asked in ("requirements.lock", "tests/book/site_checks.py"):  # the lock has axe's version
        digest.update((ROOT / asked).read_bytes())
    for path in sorted(path for path in (site / "_static").rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(site)}\0".encode() + path.read_bytes())
    program = find()
    digest.update(repr(program and Path(program).stat().st_mtime_ns).encode())
    return digest.digest()


def pages_seen(site: Path) -> list[str]:
    """Return the pages of a site that were looked at as they are now, without a complaint."""
    names = (path.relative_to(_FOLDER).as_posix()[:-4] for path in _FOLDER.rglob("*.html.txt"))
    return [
        name for name in names if (site / name).is_file() and is_noted(name, page_key(site, name))
    ]


def is_noted(name: str, key: str) -> bool:
    """Whether that, with this key, has passed."""
    path = _note(name)
    return path.is_file() and path.read_text(encoding="utf-8") == key


def note(name: str, key: str, passed: bool) -> None:
    """Keep that it passed with this key, or that it did not."""
    with written(_note(name)) as partial:
        partial.write_text(key if passed else "", encoding="utf-8")


def _note(name: str) -> Path:
    return _FOLDER / f"{name}.txt"


class Passed:
    """Listens to a run of pytest, and notes which notebooks passed it whole."""

    def __init__(self) -> None:
        self.keys = {chapter: key(chapter) for chapter in chapters()}
        self._cells: Counter[str] = Counter()

    def unchanged(self) -> list[str]:
        """Return the notebooks that passed as they are now."""
        return [name for name, key in self.keys.items() if is_noted(name, key)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the cells that passed."""
        path = ROOT / report.nodeid.partition("::")[0]
        if path.stem in self.keys and path == source(path.stem):
            self._cells[path.stem] += report.when == "call" and report.passed

    def pytest_sessionfinish(self) -> None:
        """Note every notebook whose cells passed, all of them."""
        for chapter, passed in self._cells.items():
            cells = read_notebook(source(chapter)).cells
            whole = passed == sum(cell.cell_type == "code" for cell in cells)
            note(chapter, self.keys[chapter], whole)
