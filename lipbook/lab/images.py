"""Colour images as tensors: patches of two photographs, and a folder that the reader names.

Images have the shape (n, 3, height, width), dtype float32, and values in [−1, 1], the range of a
generator that ends in tanh. Nothing is downloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from PIL import ExifTags, Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lipbook._checks import check_count
from lipbook.lab.data import LabelledData

#: What counts as an image; every other file of a folder is left alone.
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def photo_patches(
    n: int, *, size: int = 32, min_contrast: float = 0.0, generator: torch.Generator
) -> Tensor:
    """Square patches from random places of scikit-learn's two photographs, a temple and a flower.

    Parameters
    ----------
    n : int
        Number of patches; they may overlap.
    size : int, default 32
        Their edge, at most 427 pixels.
    min_contrast : float, default 0.0
        Draw only from the patches whose grey levels have at least this standard deviation. About
        half the area of the photographs is a plain background, which 0.1 leaves out.
    generator : torch.Generator
        On the CPU; decides photograph and place, uniformly.

    Returns
    -------
    Tensor, shape (n, 3, size, size)
        float32, in [−1, 1].

    Raises
    ------
    TypeError, ValueError
        If `n` or `size` is not positive, or no patch has that size and contrast.

    Examples
    --------
    >>> patches = photo_patches(4, generator=torch.Generator())
    >>> patches.shape, bool(patches.abs().max() <= 1)
    (torch.Size([4, 3, 32, 32]), True)
    >>> photo_patches(4, size=500, generator=torch.Generator())
    Traceback (most recent call last):
    ValueError: size must be at most 427, the height of the photographs, got 500
    """
    photos = torch.as_tensor(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
    if check_count(size, "size") > (height := photos.shape[2]):
        raise ValueError(
            f"size must be at most {height}, the height of the photographs, got {size}"
        )
    contrast = _contrast(photos, size)
    places = (contrast >= min_contrast).nonzero()
    if len(places) == 0:
        raise ValueError(
            f"min_contrast must be at most {contrast.max():.2f}, the highest of any patch of "
            f"{size}×{size}, got {min_contrast}"
        )
    chosen = places[torch.randint(len(places), (check_count(n, "n"),), generator=generator)]
    patches = [photos[i, :, y : y + size, x : x + size] for i, y, x in chosen.tolist()]
    return _scaled(torch.stack(patches))


def _contrast(photos: Tensor, size: int) -> Tensor:
    """Compute the standard deviation of the grey levels of every patch, scaled as the patches."""
    # Integers up to the root, so that every machine finds the same patches.
    grey = photos.to(torch.int64).sum(dim=1)
    variance = size**2 * _patch_sums(grey**2, size) - _patch_sums(grey, size) ** 2
    return variance.double().sqrt() / (size**2 * 3 * 127.5)


def _patch_sums(values: Tensor, size: int) -> Tensor:
    """Sum each size×size patch of (n, height, width) with four look-ups in a cumulated table."""
    table = F.pad(values.cumsum(1).cumsum(2), (1, 0, 1, 0))
    right, left = table[..., size:], table[..., :-size]
    return (right - left)[:, size:] - (right - left)[:, :-size]


@overload
def image_folder(
    path: str | Path,
    *,
    size: int | None = ...,
    labelled: Literal[False] = ...,
    min_images: int = ...,
    max_images: int | None = ...,
    progress: bool = ...,
) -> Tensor: ...
@overload
def image_folder(
    path: str | Path,
    *,
    size: int | None = ...,
    labelled: Literal[True],
    min_images: int = ...,
    max_images: int | None = ...,
    progress: bool = ...,
) -> LabelledData: ...
def image_folder(
    path: str | Path,
    *,
    size: int | None = None,
    labelled: bool = False,
    min_images: int = 1,
    max_images: int | None = None,
    progress: bool = True,
) -> Tensor | LabelledData:
    """All images of a folder, or of its subfolders, one subfolder a class.

    Files are read in the order of their names. Only those that end in one of `SUFFIXES` count;
    hidden files and deeper folders are left alone, links are followed. A picture is turned upright
    if its EXIF data say how (if they are damaged, it stays as it is), made RGB (grey levels are
    repeated, transparency is dropped), of 16 bits a channel the upper 8 are kept, in grey as in
    colour, and of an animation the first frame is taken.

    Parameters
    ----------
    path : str or Path
        The folder; ``~`` is the home directory.
    size : int, optional
        Crop each image to its centred square and resize that to this edge, as the article's
        reference model does for 64. By default images stay as they are and must be of one size.
    labelled : bool, default False
        Read the subfolders, numbered from 0 in the order of their names, instead of the files.
    min_images : int, default 1
        The fewest that will do, in each class if labelled.
    max_images : int, optional
        Stop after so many, in each class if labelled.
    progress : bool, default True
        Show a progress bar.

    Returns
    -------
    Tensor, shape (n, 3, height, width), or LabelledData
        float32 in [−1, 1]; if labelled, with int64 classes of shape (n,).

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no folder of that name.
    TypeError, ValueError
        If a number is not positive; if there are too few images or fewer than two classes; if an
        image cannot be read, is a link to nothing, has floating-point or 32-bit pixels, or more of
        them than Pillow considers safe (``PIL.Image.MAX_IMAGE_PIXELS``), or, where no `size` is
        given, another size than the first.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("RGB", (80, 60), "white").save(f"{folder}/white.png")
    ...     image_folder(folder, size=2, progress=False)[0, 0].tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    >>> image_folder("no/such/folder", size=64)
    Traceback (most recent call last):
    FileNotFoundError: path must name a folder of images, found none at 'no/such/folder'
    """
    folder = _checked_folder(path)
    least = check_count(min_images, "min_images")
    most = None if max_images is None else check_count(max_images, "max_images", least=least)
    edge = None if size is None else check_count(size, "size")
    classes = _class_folders(folder) if labelled else [folder]
    files = [_image_files(member, least)[:most] for member in classes]
    images = _read_all([file for members in files for file in members], edge, progress=progress)
    if not labelled:
        return images
    counts = torch.tensor([len(members) for members in files])
    return LabelledData(images, torch.arange(len(files)).repeat_interleave(counts))


def _scaled(pixels: Tensor) -> Tensor:
    """Map bytes 0 … 255 to float32 in [−1, 1]."""
    return pixels.to(torch.float32) / 127.5 - 1


def _checked_folder(path: str | Path) -> Path:
    try:
        folder = Path(path).expanduser()
    except RuntimeError as error:  # ~somebody, whom this machine does not know
        raise FileNotFoundError(
            f"path must name a folder of images, '{path}' names nobody's: {error}"
        ) from error
    # Path("") is the current directory, which nobody means who gives no name.
    if not str(path) or not folder.exists():
        raise FileNotFoundError(f"path must name a folder of images, found none at '{path}'")
    if not folder.is_dir():
        raise NotADirectoryError(f"path must name a folder of images, '{path}' is a file")
    return folder


def _visible(folder: Path) -> list[Path]:
    """List what `folder` holds in order of name, without hidden entries."""
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    return [entry for entry in entries if entry.name[0] != "."]


def _class_folders(folder: Path) -> list[Path]:
    classes = [entry for entry in _visible(folder) if entry.is_dir()]
    if len(classes) < 2:
        raise ValueError(
            f"path must hold at least two subfolders, one a class, got {len(classes)} in '{folder}'"
        )
    return classes


def _image_files(folder: Path, least: int) -> list[Path]:
    entries = _visible(folder)
    named = [entry for entry in entries if entry.suffix.lower() in SUFFIXES]
    if lost := [entry for entry in named if not entry.exists()]:
        raise ValueError(f"'{lost[0]}' is a link to nothing; mend it or take it out")
    files = [entry for entry in named if entry.is_file()]
    if len(files) < least:
        hint = "; labelled=True reads the subfolders" if any(map(Path.is_dir, entries)) else ""
        raise ValueError(
            f"'{folder}' must hold at least {least} images ({', '.join(sorted(SUFFIXES))}), "
            f"got {len(files)}{hint}"
        )
    return files


def _read_all(files: Sequence[Path], size: int | None, *, progress: bool) -> Tensor:
    """Read `files` into one tensor, which is the only copy of all pixels in memory."""
    first = _read(files[0], size)
    images = torch.empty((len(files), *first.shape))
    for image, file in zip(images, tqdm(files, "images", disable=not progress), strict=True):
        pixels = _read(file, size)
        if pixels.shape != first.shape:
            (height, width), (other_height, other_width) = first.shape[1:], pixels.shape[1:]
            raise ValueError(
                f"images must be of one size, got {width}×{height} in '{files[0]}' and "
                f"{other_width}×{other_height} in '{file}'; size=64 crops and resizes them to "
                "64×64"
            )
        image.copy_(pixels)
    return images


def _read(file: Path, size: int | None) -> Tensor:
    """Decode one image, shape (3, height, width); an error names the file."""
    try:
        with warnings.catch_warnings():
            # Pillow only warns between its limit and twice its limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Damaged tags; the TIFF reader is Pillow's reader of EXIF data, too.
            warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
            with Image.open(file) as image:
                return _scaled(_pixels(image, size))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"'{file}' has too many pixels, more than PIL.Image.MAX_IMAGE_PIXELS = "
            f"{Image.MAX_IMAGE_PIXELS}; shrink it or take it out of the folder"
        ) from error
    except Exception as error:  # each of Pillow's decoders fails in its own way
        raise ValueError(
            f"'{file}' is no image that Pillow can read ({error}); mend it or take it out"
        ) from error


#: What turns a picture upright, by the number in its EXIF data.
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _pixels(image: Image.Image, size: int | None) -> Tensor:
    image.load()
    turn = _TURNS.get(_orientation(image))
    rgb = _eight_bits(image).convert("RGB")
    upright = rgb if turn is None else rgb.transpose(turn)
    if size is not None:
        edge = min(upright.size)
        left, top = (upright.width - edge) // 2, (upright.height - edge) // 2
        square = upright.crop((left, top, left + edge, top + edge))
        upright = square.resize((size, size))
    return torch.as_tensor(np.array(upright)).permute(2, 0, 1)


def _orientation(image: Image.Image) -> object:
    """Read one number of the EXIF data; damage there is none of the picture's."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever the bytes make of Pillow's parser
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Keep the upper 8 of 16 bits, as Pillow itself does in colour; it would clip grey levels."""
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    if sixteen:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode[0] in "IF":
        raise ValueError(f"mode {image.mode}, more than 16 bits a channel or no integers")
    return image
