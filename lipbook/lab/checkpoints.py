"""The whole state of a training in one file, so that it goes on after a kill as if never stopped.

A part of the state is anything with ``state_dict`` and ``load_state_dict``: modules, optimizers,
averages, `RandomState`. The file is a zip archive in torch's format, read without running any code
that it may hold, and checked against its own checksums, which `torch.load` does not look at.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

Setting = bool | int | float | str


class Stateful(Protocol):
    """What a checkpoint holds: torch's convention for modules and optimizers."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, made of tensors, numbers, strings, lists and dicts."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Take over such a state."""


class RandomState:
    """A generator together with torch's global ones, which Dropout draws from.

    Parameters
    ----------
    generator : torch.Generator
        The training's own.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> random_state = RandomState(generator)
    >>> before = random_state.state_dict()
    >>> first = torch.rand(3, generator=generator)
    >>> random_state.load_state_dict(before)
    >>> bool((torch.rand(3, generator=generator) == first).all())
    True
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all generators."""
        return {
            "generator": self.generator.get_state(),
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set them all, those of GPUs as far as there are as many here."""
        self.generator.set_state(state_dict["generator"])
        torch.set_rng_state(state_dict["cpu"])
        if len(state_dict["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state_dict["cuda"])


class Checkpoint:
    """A file with the states of several objects, written as a whole or not at all.

    Parameters
    ----------
    path : path
        The file, in a folder that exists.
    parts : mapping of str to Stateful
        The objects, by name.
    settings : mapping of str to bool, int, float or str
        What has to be the same when the file is read again.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "state.pt"
    >>> layer = torch.nn.Linear(2, 1)
    >>> checkpoint = Checkpoint(path, {"layer": layer}, {"lr": 0.1})
    >>> checkpoint.load()  # there is none yet
    False
    >>> checkpoint.save()
    >>> _ = torch.nn.init.zeros_(layer.weight)
    >>> checkpoint.load(), bool((layer.weight == 0).any())
    (True, False)
    >>> Checkpoint(path, {"layer": layer}, {"lr": 0.2}).load()
    Traceback (most recent call last):
    ValueError: checkpoint ... was written with lr = 0.1, not 0.2; ...
    """

    def __init__(
        self, path: str | Path, parts: Mapping[str, Stateful], settings: Mapping[str, Setting]
    ) -> None:
        self.path = Path(path)
        self.parts = dict(parts)
        self.settings = dict(settings)
        if not self.path.absolute().parent.is_dir():
            raise FileNotFoundError(
                f"checkpoint {self.path} needs the folder {self.path.parent}; make it first"
            )

    def save(self) -> None:
        """Write the present states beside the file, and put them in its place in one move."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        fresh = self.path.with_name(self.path.name + ".tmp")
        with fresh.open("wb") as file:
            torch.save({"settings": self.settings, "states": states}, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)

    def load(self) -> bool:
        """Give every part its stored state; return False if there is no file.

        Raises
        ------
        ValueError
            If the file is damaged, or was written with other settings or parts.
        """
        if not self.path.exists():
            return False
        content = self._read()
        self._compare(content["settings"])
        for name, part in self.parts.items():
            try:
                part.load_state_dict(content["states"][name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"checkpoint {self.path} does not fit {name}: {error}; "
                    "pass what wrote it, or another path"
                ) from error
        return True

    def _read(self) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} has a wrong checksum")
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            if content.keys() != {"settings", "states"}:
                raise ValueError("it is another kind of file")
        # Depending on the byte that is wrong, the readers raise almost anything.
        except Exception as error:
            raise ValueError(
                f"checkpoint {self.path} is damaged: {error}; delete it to start from the beginning"
            ) from error
        return dict(content)

    def _compare(self, stored: dict[str, Setting]) -> None:
        for name in {**stored, **self.settings}:
            old, new = stored.get(name), self.settings.get(name)
            if old != new:
                raise ValueError(
                    f"checkpoint {self.path} was written with {name} = {old}, not {new}; "
                    "pass the same, or another path"
                )
