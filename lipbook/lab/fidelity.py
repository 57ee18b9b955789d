"""How good generated images are: Fréchet distances between the features of two samples.

Heusel et al. (2017) compare samples by the means and covariances of an Inception network's
features. Nothing is downloaded here, so digits are seen by a small classifier of digits, and other
images by a network with random weights (Naeem et al. 2020). Distances are comparable only within
one kind of features and one number of samples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from lipbook._checks import check_tensor
from lipbook.lab.classification import train_classifier
from lipbook.lab.data import digits, split
from lipbook.lab.networks import mlp


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """W₂ between the normal distributions with the means and covariances of two samples.

    The square of it, on features of an Inception network, is called FID. With the centred samples
    X and Y, over the roots of their sizes, the covariances are ``XᵀX`` and ``YᵀY``, and the closed
    form of Dowson & Landau (1982) is the difference of the means and, in squares,
    ``‖X‖_F² + ‖Y‖_F² − 2 ‖X Yᵀ‖_*``. No root of a covariance is taken, so singular ones will do.

    Parameters
    ----------
    real, fake : Tensor, shape (n, d) and (m, d)
        Floating point, finite, at least two rows; fewer rows than columns leave a singular
        covariance and a larger distance.

    Returns
    -------
    float
        In the unit of the features.

    Raises
    ------
    TypeError
        If a sample is no floating-point tensor.
    ValueError
        If one is no finite matrix, has fewer than two rows, or their widths differ.

    Examples
    --------
    >>> points = torch.randn(50, 2, generator=torch.Generator())
    >>> round(frechet_distance(points, points + torch.tensor([3.0, 4.0])), 4)
    5.0
    >>> frechet_distance(points, points[:1])
    Traceback (most recent call last):
    ValueError: fake must have at least 2 rows to have a covariance, got shape (1, 2)
    """
    for sample, name in ((real, "real"), (fake, "fake")):
        check_tensor(sample, name, ndim=2)
        if len(sample) < 2:
            raise ValueError(
                f"{name} must have at least 2 rows to have a covariance, "
                f"got shape {tuple(sample.shape)}"
            )
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            "real and fake must have rows of one length, "
            f"got {tuple(real.shape)} and {tuple(fake.shape)}"
        )
    (mean, x), (other_mean, y) = (_centred(sample) for sample in (real, fake))
    overlap = torch.linalg.matrix_norm(x @ y.T, "nuc")
    spread = x.square().sum() + y.square().sum() - 2 * overlap
    return float((mean - other_mean).square().sum().add(spread.clamp(min=0.0)).sqrt())


def _centred(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean, and a factor of the covariance with as few rows as it has columns."""
    rows = sample.detach().to("cpu", torch.float64)
    mean = rows.mean(0)
    _, factor = torch.linalg.qr((rows - mean) / len(rows) ** 0.5)
    return mean, factor


@lru_cache  # the first caller's mode is not to decide for the others
@torch.inference_mode(False)
@torch.enable_grad()
def digit_features() -> Callable[[Tensor], Tensor]:
    """Return what a classifier sees in 8×8 digits: the 32 numbers before its last layer.

    It is trained once in a process, in about a second, on the training part of
    ``split(digits())``. The global random generator is left as it was.

    Returns
    -------
    callable
        From images (n, …) of 64 grey levels in [0, 1] to features (n, 32), on the CPU.

    Examples
    --------
    >>> digit_features()(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 32])
    """
    train = split(digits()).train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = mlp([64, 64, 32, 10])
    train_classifier(classifier, *train, epochs=30, lr=3e-3)

    def features(images: Tensor) -> Tensor:
        seen: Tensor = classifier[:-1](images.flatten(1).to("cpu", torch.float32))
        return seen

    return torch.no_grad()(features)


@lru_cache
@torch.inference_mode(False)
def random_features(channels: int = 3, width: int = 16) -> Callable[[Tensor], Tensor]:
    """Return what a convolutional network with random weights sees in images.

    Three convolutions of stride 2; the features are the mean and the standard deviation of each
    channel of each layer, over the pixels: statistics of texture at three scales, with no word
    about what stands where.

    Parameters
    ----------
    channels : int, default 3
        Of the images.
    width : int, default 16
        Channels of each layer.

    Returns
    -------
    callable
        From images (n, channels, height, width) to features (n, 6 · width), on the CPU.

    Examples
    --------
    >>> random_features()(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 96])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = (channels, width, width)
        layers = [nn.Conv2d(n, width, 5, stride=2, padding=2) for n in before]

    def features(images: Tensor) -> Tensor:
        found, image = [], images.detach().to("cpu", torch.float32)
        for layer in layers:
            image = torch.nn.functional.leaky_relu(layer(image), 0.2)
            found += [image.mean((2, 3)), image.std((2, 3), correction=0)]
        return torch.cat(found, dim=1)

    return torch.no_grad()(features)
