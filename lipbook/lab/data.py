"""Real handwritten digits, toys, mixtures, splits and label noise, with no download anywhere."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits, make_moons
from sklearn.model_selection import train_test_split
from torch import Tensor

from lipbook._checks import check_count, check_positive, check_tensor


class LabelledData(NamedTuple):
    """Inputs, shape (n, …), and their int64 class labels, shape (n,)."""

    inputs: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> LabelledData:
        """Return the same data on `device`."""
        return LabelledData(self.inputs.to(device), self.labels.to(device))


class Splits(NamedTuple):
    """Three disjoint parts of one data set."""

    train: LabelledData
    validation: LabelledData
    test: LabelledData

    def to(self, device: torch.device | str) -> Splits:
        """Return the same parts on `device`.

        Examples
        --------
        >>> split(digits()).to("cpu").test.inputs.device
        device(type='cpu')
        """
        return Splits(*(part.to(device) for part in self))


def digits(*, flat: bool = True) -> LabelledData:
    """Scikit-learn's 1,797 handwritten digits, 8×8 grey levels scaled to [0, 1].

    They ship with scikit-learn: the test set of the UCI "Optical Recognition of Handwritten
    Digits" (Alpaydin & Kaynak 1998).

    Parameters
    ----------
    flat : bool, default True
        Rows of 64 pixels if true, else images of shape (1, 8, 8).

    Returns
    -------
    LabelledData
        float32 inputs of shape (1797, 64) or (1797, 1, 8, 8), int64 labels 0–9.

    Examples
    --------
    >>> inputs, labels = digits()
    >>> inputs.shape, inputs.max().item(), labels[:3].tolist()
    (torch.Size([1797, 64]), 1.0, [0, 1, 2])
    """
    pixels, labels = load_digits(return_X_y=True)
    inputs = torch.as_tensor(pixels / 16, dtype=torch.float32)
    inputs = inputs if flat else inputs.reshape(-1, 1, 8, 8)
    return LabelledData(inputs, torch.as_tensor(labels, dtype=torch.int64))


def moons(n_samples: int, *, noise: float = 0.1, seed: int = 0) -> LabelledData:
    """Two interleaved half circles in the plane: the smallest task that no line solves.

    Parameters
    ----------
    n_samples : int
        Number of points, at least 2, half of them in each class.
    noise : float, default 0.1
        Standard deviation of the Gaussian noise on both coordinates; the radius is 1.
    seed : int, default 0
        Decides the noise and the order.

    Returns
    -------
    LabelledData
        float32 inputs of shape (n_samples, 2), int64 labels 0 and 1.

    Examples
    --------
    >>> inputs, labels = moons(100)
    >>> inputs.shape, labels.bincount().tolist()
    (torch.Size([100, 2]), [50, 50])
    >>> moons(1)
    Traceback (most recent call last):
    ValueError: n_samples must be at least 2, got 1
    """
    points, labels = make_moons(
        check_count(n_samples, "n_samples", least=2), noise=noise, random_state=seed
    )
    return LabelledData(
        torch.as_tensor(points, dtype=torch.float32), torch.as_tensor(labels, dtype=torch.int64)
    )


def ring_centres(n_modes: int = 8, *, radius: float = 2.0) -> Tensor:
    """Equally spaced points on a circle about the origin.

    Parameters
    ----------
    n_modes : int, default 8
        How many.
    radius : float, default 2.0
        Of the circle.

    Returns
    -------
    Tensor, shape (n_modes, 2)
        float32, anticlockwise from the positive first axis.

    Raises
    ------
    TypeError, ValueError
        If `n_modes` or `radius` is not positive.

    Examples
    --------
    >>> ring_centres(4).round().int().tolist()
    [[2, 0], [0, 2], [-2, 0], [0, -2]]
    >>> ring_centres(0)
    Traceback (most recent call last):
    ValueError: n_modes must be at least 1, got 0
    """
    steps = torch.arange(check_count(n_modes, "n_modes"), dtype=torch.float64)
    angles = 2 * math.pi / n_modes * steps
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)
    return (check_positive(radius, "radius") * directions).to(torch.float32)


def gaussian_mixture(
    n: int, centres: Tensor, *, std: float, generator: torch.Generator
) -> LabelledData:
    """Independent draws from a mixture of round Gaussians of equal weight.

    Parameters
    ----------
    n : int
        Number of points.
    centres : Tensor, shape (n_modes, d)
        Their means; the points have its dtype and device.
    std : float
        Standard deviation of each coordinate within a mode.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    LabelledData
        Inputs of shape (n, d) and, as labels, the modes they were drawn from.

    Raises
    ------
    TypeError, ValueError
        If a number is not positive, or `centres` no finite matrix.

    Examples
    --------
    >>> corners = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    >>> points, modes = gaussian_mixture(5, corners, std=0.1, generator=torch.Generator())
    >>> points.shape, bool(((points[:, 0] > 5) == (modes == 1)).all())
    (torch.Size([5, 2]), True)
    >>> gaussian_mixture(5, corners, std=-1.0, generator=torch.Generator())
    Traceback (most recent call last):
    ValueError: std must be a finite number above 0, got -1.0
    """
    check_tensor(centres, "centres", ndim=2)
    n_modes, dim = centres.shape
    modes = torch.randint(n_modes, (check_count(n, "n"),), generator=generator)
    offsets = check_positive(std, "std") * torch.randn(n, dim, generator=generator)
    modes = modes.to(centres.device)
    return LabelledData(centres[modes] + offsets.to(centres), modes)


def gaussian_ring(
    n: int,
    *,
    n_modes: int = 8,
    radius: float = 2.0,
    std: float = 0.02,
    generator: torch.Generator,
) -> LabelledData:
    """Draws from Gaussians on a circle: a common first test of mode collapse.

    The defaults are those of Gulrajani et al. (2017), times √2.

    Parameters
    ----------
    n : int
        Number of points.
    n_modes, radius
        As in `ring_centres`.
    std, generator
        As in `gaussian_mixture`.

    Returns
    -------
    LabelledData
        float32 inputs of shape (n, 2), int64 modes.

    Raises
    ------
    TypeError, ValueError
        If a number is not positive.

    Examples
    --------
    >>> points, modes = gaussian_ring(1000, generator=torch.Generator())
    >>> points.shape, len(modes.unique())
    (torch.Size([1000, 2]), 8)
    >>> gaussian_ring(0, generator=torch.Generator())
    Traceback (most recent call last):
    ValueError: n must be at least 1, got 0
    """
    centres = ring_centres(n_modes, radius=radius)
    return gaussian_mixture(n, centres, std=std, generator=generator)


def split(
    data: LabelledData,
    *,
    validation: int | float = 0.2,
    test: int | float = 0.2,
    train: int | float | None = None,
    seed: int = 0,
) -> Splits:
    """Stratified train, validation and test parts; the same seed gives the same parts.

    The test part depends on `test` and `seed` alone, so that a smaller `train` or another
    `validation` is measured on the same examples.

    Parameters
    ----------
    data : LabelledData
        Inputs and labels of equal length.
    validation, test : int or float, default 0.2
        A number of examples, or a fraction of the whole, as in scikit-learn.
    train : int or float, optional
        The same; by default all examples that are left.
    seed : int, default 0
        Decides which example goes where.

    Raises
    ------
    ValueError
        From scikit-learn, if the parts are larger than the whole or too small to hold every class.

    Examples
    --------
    >>> parts = split(digits(), train=200, validation=300, test=0.25, seed=1)
    >>> [len(part.labels) for part in parts]
    [200, 300, 449]
    >>> split(digits(), validation=1000, test=1000)
    Traceback (most recent call last):
    ValueError: The sum of train_size and test_size = 1797, should be smaller than ...
    """
    labels = data.labels.cpu().numpy()
    n_validation, n_test = (
        size if isinstance(size, int) else round(size * len(labels)) for size in (validation, test)
    )
    n_train = round(train * len(labels)) if isinstance(train, float) else train
    rest, test_index = train_test_split(
        np.arange(len(labels)), test_size=n_test, stratify=labels, random_state=seed
    )
    train_index, validation_index = train_test_split(
        rest,
        train_size=n_train,
        test_size=n_validation,
        stratify=labels[rest],
        random_state=seed,
    )
    return Splits(
        *(
            LabelledData(data.inputs[index], data.labels[index])
            for index in map(torch.as_tensor, (train_index, validation_index, test_index))
        )
    )


def flip_labels(
    labels: Tensor, fraction: float, *, generator: torch.Generator, n_classes: int | None = None
) -> Tensor:
    """Give a fraction of the examples a wrong label, uniform over the other classes.

    Exactly ``round(fraction * n)`` labels change, so that the noise level does not vary with the
    seed.

    Parameters
    ----------
    labels : Tensor, shape (n,)
        Integer classes from 0.
    fraction : float
        From 0 to 1.
    generator : torch.Generator
        On the CPU; decides which labels change and into what.
    n_classes : int, optional
        By default the largest label plus one; at least 2.

    Returns
    -------
    Tensor, shape (n,)
        A noisy copy.

    Raises
    ------
    TypeError
        If `labels` is not an integer tensor.
    ValueError
        If it is not a vector, or `fraction` or a label is out of range.

    Examples
    --------
    >>> labels = torch.zeros(10, dtype=torch.int64)
    >>> noisy = flip_labels(labels, 0.3, generator=torch.Generator().manual_seed(0), n_classes=3)
    >>> (noisy != labels).sum().item()
    3
    >>> flip_labels(labels, 30, generator=torch.Generator())
    Traceback (most recent call last):
    ValueError: fraction must lie in [0, 1], got 30
    """
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels must have an integer dtype, got {labels.dtype}")
    if labels.ndim != 1 or labels.numel() == 0:
        raise ValueError(f"labels must be a non-empty vector, got shape {tuple(labels.shape)}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    highest = int(labels.max())
    n_classes = check_count(highest + 1 if n_classes is None else n_classes, "n_classes", least=2)
    if int(labels.min()) < 0 or highest >= n_classes:
        raise ValueError(
            f"labels must lie in 0 … {n_classes - 1}, got {int(labels.min())} to {highest}; "
            "n_classes is the number of classes"
        )
    n_flipped = round(fraction * len(labels))
    flipped = torch.randperm(len(labels), generator=generator)[:n_flipped].to(labels.device)
    # A shift by 1 … n_classes - 1 reaches every class but the present one.
    shift = torch.randint(1, n_classes, (n_flipped,), generator=generator).to(labels)
    noisy = labels.clone()
    noisy[flipped] = (labels[flipped] + shift) % n_classes
    return noisy
