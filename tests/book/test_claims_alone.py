"""A claim's check, after the cells that it needs alone, finds what its whole chapter found.

A run tries the claims of one chapter, which the commit decides: every chapter is executed twice
anyway. `make claims`, weekly, tries them all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import claim_tree
import pytest

from lipbook.notebook.catalogue import catalogue
from workflow import claim as runner
from workflow import parameters, slices

CLAIMS: dict[str, list[str]] = {}
for entry in catalogue().values():
    if entry.tested:
        CLAIMS.setdefault(entry.chapter, []).append(entry.id)

#: The chapter whose claims this commit tries.
CHOSEN = sorted(CLAIMS)[parameters.of_commit() % len(CLAIMS)]

Found = dict[str, dict[str, Any]]


def run(parts: dict[str, list[list[str]]], folder: Path) -> tuple[Found, str]:
    """Return the records of the checks that came to their end, and what was said of the others."""
    given = folder / "slices.json"
    given.write_text(json.dumps(parts), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, claim_tree.__file__, str(given), str(folder)],
        cwd=folder,
        env=os.environ | runner.ALONE,
        capture_output=True,
        text=True,
        check=False,
    )
    kept = {claim: folder / f"{claim}.json" for claim in parts}
    found = {claim: json.loads(p.read_text()) for claim, p in kept.items() if p.exists()}
    return found, done.stderr


@pytest.mark.parametrize("chapter", [CHOSEN])
def test_a_check_finds_what_its_chapter_found(chapter, tmp_path):
    chosen = {claim: slices.of_claim(claim, chapter).cells for claim in CLAIMS[chapter]}
    parts = {claim: [[cell.id, cell.source] for cell in part] for claim, part in chosen.items()}
    found, said = run(parts, tmp_path)
    assert found.keys() == set(CLAIMS[chapter]), said
    kept = {claim: runner.stored(claim, chapter) for claim in found}
    other = {claim: runner.differences(found[claim], kept[claim]) for claim in found}
    assert not any(other.values()), other


def test_a_check_sees_its_own_cells_and_one_that_breaks_off_stops_no_other(tmp_path):
    start = ["start", "from lipbook.notebook import claims\nsize = 1"]
    check = "claims.check({!r}, eigenvalue=size, eigenvector=size, random_stretch=1)"
    parts = {
        "PI1": [start, ["zero", "size = 0"], ["one", check.format("PI1")]],
        "PI3": [start, ["two", "size += 1"], ["three", "nowhere(size)"]],
        "PI2": [start, ["two", "size += 1"], ["four", "assert size == 2; print(nothing)"]],
    }
    found, said = run(parts, tmp_path)
    assert found.keys() == {"PI1"}
    assert [item["values"] for item in found["PI1"]["criteria"]] == [[0], [0], [1]]
    assert "name 'nowhere' is not defined" in said
    assert "name 'nothing' is not defined" in said
