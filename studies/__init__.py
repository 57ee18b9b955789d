"""The long studies behind the chapters: measured once, kept as tables, checked ever after.

A study is too long for a page. Each module here defines one by three names:

``cells() -> list[dict]``
    One dict of numbers and texts for each run, with a ``seed`` among them.
``measure(**cell) -> dict | list[dict]``
    Carry out one run and return its results, one row or several. The cell decides the result.
``TOLERANCE: dict[str, float | Callable[[DataFrame], Array]]``
    For each column that a repetition has to meet: how far off it may be on another machine, or a
    function that says so for each of the rows it is given.
``beginning(**cell) -> list[dict]``, if there is one
    The first rows of a run, for repetitions in its place: where the whole takes a GPU, or where
    two machines, which round differently, part later.

``make study STUDY=name`` runs them all. It stores ``book/studies/name.csv``, one row a result
with the cell's columns first, and ``book/studies/name.json``, which says when and by what code. A
chapter reads the table by :func:`load` and repeats a few cells before the reader's eyes.
"""

from __future__ import annotations

import base64
import io
import json
import pkgutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from studies._provenance import Sources

_ROOT = Path(__file__).parents[1]
#: Steps of a generator that a repetition makes: later, rounding has parted many a training.
BEGINNING = 50


class StaleTable(UserWarning):
    """The code that made a table has changed since."""


def names() -> list[str]:
    """Return the names of the studies.

    Examples
    --------
    >>> all(name.isidentifier() for name in names())
    True
    """
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if not name.startswith("_"))


def load(name: str) -> pd.DataFrame:
    """Read the table of a study, and warn if the code that made it has changed since.

    Parameters
    ----------
    name : str
        One of :func:`names`.

    Returns
    -------
    pandas.DataFrame
        The columns of the cells, then those of the results.

    Raises
    ------
    ValueError
        If there is no such study.
    FileNotFoundError
        If it has not been run yet.

    Examples
    --------
    >>> load("weather")
    Traceback (most recent call last):
    ValueError: no study 'weather'; there are ...
    """
    table = pd.read_csv(_stored(name, ".csv"))
    if found := changed(name):
        warnings.warn(
            f"{', '.join(found)} changed since the table was measured: "
            f"`make study STUDY={name}` measures it anew, with CHECK=20 a sample of it",
            StaleTable,
            stacklevel=2,
        )
    return table


def pictures(name: str) -> pd.DataFrame:
    """Return images that a study has kept: the columns of their cells, ``step`` and ``image``.

    Returns
    -------
    pandas.DataFrame
        One row a grid; ``image`` holds bytes of shape (height, width) or (height, width, 3), of
        two rows with six images each.

    Raises
    ------
    ValueError
        If there is no such study.
    FileNotFoundError
        If it has kept none.

    Examples
    --------
    >>> pictures("rivals")["image"][0].shape
    (56, 168)
    """
    if name not in names():
        raise ValueError(f"no study {name!r}; there are {', '.join(names()) or 'none yet'}")
    path = folder() / "pictures" / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    return pd.DataFrame(
        [{**entry["cell"], "step": entry["step"], "image": _pixels(entry["png"])} for entry in kept]
    )


def _pixels(png: str) -> np.ndarray:
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    return np.asarray(image.convert("RGB") if image.mode == "P" else image)


def held_out(seed: int) -> tuple[torch.Generator, torch.Generator]:
    """Return what draws the real samples and the latents by which a generator is judged.

    A training draws from ``torch.Generator().manual_seed(seed)``: from neither of these.

    Examples
    --------
    >>> [generator.initial_seed() for generator in held_out(3)]
    [10003, 20003]
    """
    reals, latents = (torch.Generator().manual_seed(seed + shift) for shift in (10_000, 20_000))
    return reals, latents


def rows(table: pd.DataFrame, cell: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of a table that belong to one cell, in their order.

    Examples
    --------
    >>> table = pd.DataFrame({"noise": [0.0, 0.2], "seed": [1, 1], "accuracy": [0.9, 0.8]})
    >>> rows(table, {"noise": 0.2, "seed": 1})["accuracy"].tolist()
    [0.8]
    >>> rows(table, {"noise": 0.4, "seed": 1})
    Traceback (most recent call last):
    KeyError: "the table has no cell {'noise': 0.4, 'seed': 1}"
    """
    found = table[(table[list(cell)] == pd.Series(dict(cell))).all(axis=1)]
    if found.empty:
        raise KeyError(f"the table has no cell {dict(cell)}")
    return found


def provenance(name: str) -> pd.DataFrame:
    """Return when, where and by what a table was measured, one row a fact.

    Examples
    --------
    >>> provenance("weather")
    Traceback (most recent call last):
    ValueError: no study 'weather'; there are ...
    """
    facts = {k: v for k, v in _facts(name).items() if k not in ("code", "criteria", "later")}
    if criteria := _facts(name).get("criteria"):
        facts["criteria stated in"] = f"commit {criteria['commit'][:10]}"
    facts["code changed since"] = ", ".join(changed(name)) or "no"
    return pd.DataFrame({"value": [str(v) for v in facts.values()]}, index=list(facts))


def changed(name: str) -> list[str]:
    """Return the definitions that no longer do what they did when the table was measured.

    A definition that the study reaches since, or no longer, is one of them; a move is none.

    Examples
    --------
    >>> changed("weather")
    Traceback (most recent call last):
    ValueError: no study 'weather'; there are ...
    """
    then: dict[str, str] = _facts(name)["code"]
    now = digests(name)
    return sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))


def digests(name: str) -> dict[str, str]:
    """Return a digest for each definition that a study reaches.

    Examples
    --------
    >>> "measure" in digests("wgan_critics")
    True
    """
    return Sources(_ROOT).digests(f"{__name__}.{name}")


def _facts(name: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(_stored(name, ".json").read_text(encoding="utf-8"))
    return facts


def _stored(name: str, ending: str) -> Path:
    if name not in names():
        raise ValueError(f"no study {name!r}; there are {', '.join(names()) or 'none yet'}")
    path = folder() / f"{name}{ending}"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: `make study STUDY={name}` measures it")
    return path


def folder() -> Path:
    """Return where the tables are: in the clone, beside the pages.

    Examples
    --------
    >>> folder().parent.name
    'book'
    """
    return _ROOT / "book" / "studies"
