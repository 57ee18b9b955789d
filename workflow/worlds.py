"""What planted worlds are made of: a function that does something else, labels that are swapped.

A world is planted before the first cell, so that every import of the chapter finds it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def replace(name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put another function in the place of one, by its full name; `make` is handed the old one."""
    module, _, attribute = name.rpartition(".")
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:  # a method: the owner is a class
        home, _, cls = module.rpartition(".")
        owner = getattr(importlib.import_module(home), cls)
    setattr(owner, attribute, make(getattr(owner, attribute)))


def swap(study: str, column: str, one: str, other: str) -> None:
    """Have two labels in a column of a study's table change places."""

    def change(table: Any) -> None:
        if missing := {one, other} - set(table[column]):
            raise ValueError(f"{study} has no {column} {', '.join(sorted(missing))}")
        table[column] = table[column].replace({one: other, other: one})

    retell(study, change)


def retell(study: str, change: Callable[[Any], None]) -> None:
    """Change a study's table in place as it is read."""

    def told(load: Callable[[str], Any]) -> Callable[[str], Any]:
        def loaded(name: str) -> Any:
            table = load(name)
            if name == study:
                change(table)
            return table

        return loaded

    replace("studies.load", told)
