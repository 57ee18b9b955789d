"""Run the checks of a chapter's claims, each after the cells that it needs and no other.

The slices of a chapter begin alike: imports, data, a trained network. A process executes what they
share, and forks where they part: each check finds what its own cells left, and no cell is executed
twice for nothing. One thread: a pool of threads does not survive a fork.

    python claim_tree.py SLICES FOLDER

SLICES is a file with ``{claim: [[id of a cell, its code], ...]}``. The record of each check is
written into FOLDER; the traceback of one that breaks off goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from lipbook.notebook import claims

Cells = list[list[str]]


def grow(slices: dict[str, Cells], done: int, names: dict[str, Any], folder: Path) -> None:
    """Execute what is left of the slices after their first `done` cells."""
    branches: dict[str, dict[str, Cells]] = {}
    for claim, cells in slices.items():
        if len(cells) == done:
            record = next(made for made in claims.made if made["id"] == claim)
            (folder / f"{claim}.json").write_text(json.dumps(record), encoding="utf-8")
        else:
            branches.setdefault(cells[done][0], {})[claim] = cells
    for branch in branches.values():
        if len(branches) == 1:
            step(branch, done, names, folder)
        elif child := os.fork():
            os.waitpid(child, 0)
        else:
            try:
                step(branch, done, names, folder)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(0)


def step(slices: dict[str, Cells], done: int, names: dict[str, Any], folder: Path) -> None:
    """Execute the next cell, which the slices share, and what follows."""
    name, code = next(iter(slices.values()))[done]
    exec(compile(code, name, "exec"), names)
    grow(slices, done + 1, names, folder)


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    grow(given, 0, {"__name__": "__main__"}, Path(sys.argv[2]))
