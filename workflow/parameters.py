"""A chapter's parameters, checked before any kernel starts (papermill alone only warns)."""

from __future__ import annotations

import difflib
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import papermill

from workflow.project import ROOT, WorkflowError, chapters, source

#: Seeds at which every chapter was seen to hold; `make test` builds the book at one of them.
OTHER_SEEDS = (3, 5, 7, 12)

_TYPES = {
    "int": (int, "an integer"),
    "float": (float, "a number"),
    "str": (str, "a text"),
}


def literal(path: Path) -> str:
    """Return a path for papermill, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def declared(chapter: str) -> dict[str, str]:
    """Return the names and types in the cell tagged ``parameters``."""
    try:
        found = papermill.inspect_notebook(literal(source(chapter)))
    except ValueError as error:
        raise WorkflowError(f"{chapter}: {error}") from error
    return {name: facts["inferred_type_name"] for name, facts in found.items()}


def parse(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn ``["SEED=3", "device=cuda"]`` into checked values.

    Names are taken in any case, as make's variables are upper case. ``LIPBOOK_DEVICE`` stands in
    for a device that is not given, so that the graph sees a change of it.

    Raises
    ------
    WorkflowError
        For an unknown name, a value of the wrong type, or a value that this machine can't serve.
    """
    known: dict[str, str] = {}
    for chapter in chapters():
        known |= declared(chapter)
    given = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise WorkflowError(f"a parameter is given as NAME=VALUE, got {assignment!r}")
        name = name.lower()
        given[name] = _convert(name, text, known)
        if name.endswith("_dir"):
            given[name] = _folder(name, text)
    if "device" not in given and os.environ.get("LIPBOOK_DEVICE"):
        given["device"] = os.environ["LIPBOOK_DEVICE"]
    _check_values(given)
    return given


def for_chapter(chapter: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return those of the given parameters that a chapter declares."""
    names = declared(chapter) if given else {}
    return {name: value for name, value in given.items() if name in names}


def other_seed() -> int:
    """Return one of `OTHER_SEEDS`, as the commit decides."""
    return OTHER_SEEDS[of_commit() % len(OTHER_SEEDS)]


def of_commit() -> int:
    """Return a number to choose by: another after each commit, the same on every machine."""
    command = ["git", "rev-parse", "--verify", "--quiet", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return int(done.stdout.strip() or "0", 16)


def _convert(name: str, text: str, known: dict[str, str]) -> Any:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise WorkflowError(
            f"unknown parameter {name!r}{hint}; the chapters know {', '.join(sorted(known))}"
        )
    kind, words = _TYPES[known[name]]
    try:
        return kind(text)
    except ValueError:
        raise WorkflowError(f"parameter {name} must be {words}, got {text!r}") from None


def _folder(name: str, text: str) -> str:
    """Resolve a folder where the person stands: chapters run in the book's."""
    path = Path(text).expanduser().resolve()
    if text and not path.is_dir():
        raise WorkflowError(f"parameter {name} must be a folder, and {path} is none")
    return str(path) if text else ""


def _check_values(given: dict[str, Any]) -> None:
    if not given:
        return
    from lipbook.notebook import runtime

    checks: dict[str, Callable[..., object]] = {
        "seed": runtime.check_seed,
        "device": runtime.resolve_device,
        "scale": runtime.check_scale,
    }
    for name in given.keys() & checks.keys():
        try:
            checks[name](given[name])
        except (TypeError, ValueError, RuntimeError) as error:
            raise WorkflowError(f"parameter {error}") from None
