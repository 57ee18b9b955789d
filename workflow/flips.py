"""A planted world for every claim: there the same cells and criteria give another verdict."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from lipbook.notebook.catalogue import catalogue, catalogue_path
from workflow import claim as runner
from workflow.project import BOOK, WorkflowError, write_json
from workflow.slices import Plant

WORLDS = BOOK / "flips.yml"
RECORD = BOOK / "records" / "flips.json"
_PRELUDE = "from workflow.worlds import replace, retell, swap\n"


@dataclass(frozen=True)
class World:
    """What is otherwise there, in words and as code."""

    words: str
    code: str
    after: str = ""

    @property
    def plant(self) -> Plant:
        """Return the code as a slice takes it."""
        return Plant(_PRELUDE + self.code, self.after)


def worlds() -> dict[str, World]:
    """Return the planted world of each claim that has one.

    Raises
    ------
    WorkflowError
        If one is of a claim that is not in the catalogue.
    """
    found = yaml.safe_load(WORLDS.read_text(encoding="utf-8"))
    if unknown := found.keys() - catalogue(catalogue_path()).keys():
        raise WorkflowError(f"{WORLDS.name} has worlds of unknown claims {sorted(unknown)}")
    return {name: World(**world) for name, world in found.items()}


def turned(name: str, world: World) -> dict[str, Any]:
    """Run a claim's check in its planted world, and return what is recorded of it."""
    ran = runner.run(name, plant=world.plant)
    return {
        "world": world.words,
        "verdict": ran.record["verdict"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "because": [c["text"] for c in ran.record["criteria"] if c["state"] != "met"],
    }


def run(chosen: Sequence[str] = ()) -> Iterator[str]:
    """Plant the worlds of some claims, or of all; record each, and yield those that stayed."""
    known = worlds()
    for name in chosen or known:
        if name not in known:
            raise WorkflowError(f"{WORLDS.name} has no world for {name}")
        try:
            found = turned(name, known[name])
        except WorkflowError as error:
            print(f"{name}: {error}", flush=True)
            yield name
            continue
        stands = catalogue(catalogue_path())[name].verdict
        print(f"{name}: {stands} → {found['verdict']}. {found['world']}", flush=True)
        if found["verdict"] == stands:
            yield name
        else:
            _keep(name, found)


def stored() -> dict[str, Any]:
    """Return the record of the last flips."""
    if not RECORD.exists():
        return {"flips": {}}
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def _keep(name: str, found: dict[str, Any]) -> None:
    """Write one claim's flip into the record, whole or not at all."""
    record = stored()
    record["flips"][name] = found
    order = [claim for claim in catalogue(catalogue_path()) if claim in record["flips"]]
    record["flips"] = {claim: record["flips"][claim] for claim in order}
    write_json(RECORD, record)
