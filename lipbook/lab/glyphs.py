"""Letters of many alphabets: up to 300 classes of 28×28 images, drawn from fonts that ship."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from lipbook._checks import check_count
from lipbook.lab.data import LabelledData
from lipbook.lab.datasets import stored

SIZE = 28
MOST_CLASSES = 300
_FINE = 2 * SIZE  # pixels of a drawing, before it is turned, shifted and shrunk
_POINTS = 0.72 * _FINE
_STROKES = (0, 1)  # added around a drawing, in its pixels
_SHIFT, _DEGREES = 2.0, 10.0  # at most: in pixels of an image, and either way
#: Two letters look alike where their drawings, shrunk to `_COARSE` pixels and at their best shift,
#: differ by less than this share of their length, on average over the faces.
_COARSE, _ALIKE = 14, 0.47


def glyphs(n_classes: int, n_each: int = 48, *, seed: int = 0) -> LabelledData:
    """Letters in the twelve faces of DejaVu, shifted, turned and thickened a little.

    The fonts ship with matplotlib, under a free licence (Bitstream Vera's; DejaVu's own changes
    are in the public domain). The letters are Latin, Greek, Cyrillic, Armenian, Georgian and
    others', without accents; of letters that look alike, by a measured distance, one stays. The
    classes stand in one fixed random order, so that ten of them are as hard to tell apart as the
    first ten of three hundred.

    Parameters
    ----------
    n_classes : int
        At most 300.
    n_each : int, default 48
        Images of each class; its faces take turns.
    seed : int, default 0
        Decides shifts (up to 2 pixels), turns (up to 10°) and strokes.

    Returns
    -------
    LabelledData
        float32 inputs of shape (n_classes · n_each, 1, 28, 28) in [0, 1], ink is 1; int64 labels,
        class by class.

    Raises
    ------
    TypeError, ValueError
        If a number is not an integer, not positive, or there are not so many classes.

    Examples
    --------
    >>> images, labels = glyphs(10, 12)
    >>> images.shape, labels.bincount().tolist()[:3]
    (torch.Size([120, 1, 28, 28]), [12, 12, 12])
    >>> glyphs(301)
    Traceback (most recent call last):
    ValueError: n_classes must be at most 300, got 301
    """
    if check_count(n_classes, "n_classes") > MOST_CLASSES:
        raise ValueError(f"n_classes must be at most {MOST_CLASSES}, got {n_classes}")
    check_count(n_each, "n_each")
    drawings = torch.from_numpy(_kept()["drawings"][:n_classes]).float().unsqueeze(3) / 255
    generator = torch.Generator().manual_seed(seed)
    shape = (n_classes, n_each)
    stroke = torch.randint(len(_STROKES), shape, generator=generator)
    angle, across, down = 2 * torch.rand(3, *shape, generator=generator) - 1
    face = torch.arange(n_each).remainder(drawings.shape[1]).expand(shape)
    chosen = drawings[torch.arange(n_classes)[:, None], face, stroke].flatten(0, 1)
    moved = _moved(chosen, angle.flatten(), across.flatten(), down.flatten())
    labels = torch.arange(n_classes).repeat_interleave(n_each)
    return LabelledData(F.interpolate(moved, size=SIZE, mode="area"), labels)


def letters() -> tuple[str, ...]:
    """Return the letters of the classes in their order: no two of them look alike.

    Examples
    --------
    >>> len(letters()) >= MOST_CLASSES, len(set(letters())) == len(letters())
    (True, True)
    """
    return tuple(map(chr, _kept()["codes"]))


@functools.cache
def _kept() -> dict[str, NDArray[Any]]:
    """Return the letters' codes and large drawings, (letters, faces, strokes, fine, fine)."""
    return stored("glyphs", MOST_CLASSES, _made)


def _made() -> dict[str, NDArray[Any]]:
    charmaps = [set(FT2Font(str(path)).get_charmap()) for path in _faces()]
    shared = [chr(code) for code in sorted(set.intersection(*charmaps))]
    plain = [
        letter
        for letter in shared
        if unicodedata.category(letter) in ("Lu", "Ll") and not unicodedata.decomposition(letter)
    ]
    drawings = _drawings(plain)
    alike = _distances(torch.from_numpy(drawings[:, :, 0]).float()) < _ALIKE
    chosen: list[int] = []
    for index in range(len(plain)):
        if not alike[index, chosen].any():
            chosen.append(index)
    order = np.random.default_rng(0).permutation(chosen)
    return {"codes": np.array([ord(plain[k]) for k in order]), "drawings": drawings[order]}


def _faces() -> list[Path]:
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    return sorted(path for path in folder.glob("DejaVu*.ttf") if "Display" not in path.name)


def _drawings(letters: Sequence[str]) -> NDArray[np.uint8]:
    fonts = [
        ImageFont.truetype(path, _POINTS, layout_engine=ImageFont.Layout.BASIC) for path in _faces()
    ]
    pixels = [
        [[np.asarray(_drawn(letter, font, stroke)) for stroke in _STROKES] for font in fonts]
        for letter in letters
    ]
    return np.array(pixels)


def _drawn(letter: str, font: ImageFont.FreeTypeFont, stroke: int) -> Image.Image:
    """Draw one letter in the middle of its canvas."""
    canvas = Image.new("L", (_FINE, _FINE))
    pen = ImageDraw.Draw(canvas)
    left, top, right, bottom = pen.textbbox((0, 0), letter, font)
    corner = ((_FINE - left - right) / 2, (_FINE - top - bottom) / 2)
    pen.text(corner, letter, 255, font, stroke_width=stroke)
    return canvas


def _distances(drawings: Tensor) -> Tensor:
    """Compare letters, shape (letters, faces, fine, fine), at the best of nine shifts."""
    coarse = F.interpolate(drawings, size=_COARSE, mode="area")
    flat = F.normalize(coarse.flatten(2), dim=2).transpose(0, 1)
    best = torch.full((len(drawings), len(drawings)), math.inf)
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            rolled = coarse.roll((down, across), (2, 3))
            other = F.normalize(rolled.flatten(2), dim=2).transpose(0, 1)
            cosines = (flat @ other.transpose(1, 2)).clamp(max=1.0)
            best = torch.minimum(best, (2 - 2 * cosines).sqrt().mean(0))
    return torch.minimum(best, best.T)


def _moved(images: Tensor, angle: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Turn and shift each image; the three numbers of an image lie in [-1, 1]."""
    turn = angle * math.radians(_DEGREES)
    step = 2 * _SHIFT / SIZE  # of a grid that goes from -1 to 1
    rows = (turn.cos(), -turn.sin(), step * across, turn.sin(), turn.cos(), step * down)
    grid = F.affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), images.shape, align_corners=False)  # type: ignore[arg-type]
    return F.grid_sample(images, grid, align_corners=False)
