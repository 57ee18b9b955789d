"""How good generated images are: Fréchet distances between the features of two samples.

Heusel et al. (2017) compare samples by the means and covariances of an Inception network's
features. Nothing is downloaded here, so digits are seen by a small classifier of digits, and other
images by a network with random weights (Naeem et al. 2020). Distances are comparable only within
one kind of features and one number of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from lipbook._checks import check_count, check_tensor
from lipbook._layers import evaluation_mode
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
        If one is not a finite matrix, has fewer than two rows, or their widths differ.

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


class AttributeClassifier(nn.Module):
    """Convolutions that read attributes of images, and the features that they read them from.

    Parameters
    ----------
    image_shape : sequence of int
        (channels, height, width) of an image; sides of 28 to 64 pixels.
    sizes : sequence of int
        How many values each attribute has.

    Examples
    --------
    >>> reader = AttributeClassifier((3, 32, 32), [20, 2])
    >>> [logits.shape[1] for logits in reader(torch.zeros(5, 3, 32, 32))]
    [20, 2]
    >>> reader.features(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 64])
    """

    def __init__(self, image_shape: Sequence[int], sizes: Sequence[int]) -> None:
        super().__init__()
        channels, side = image_shape[0], min(image_shape[1:])
        layers: list[nn.Module] = []
        before, width = channels, 16
        while side > 4:
            layers += [nn.Conv2d(before, width, 5, stride=2, padding=2), nn.ReLU()]
            before, width, side = width, min(2 * width, 64), (side + 1) // 2
        self.features = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(before * side * side, 64), nn.ReLU()
        )
        self.heads = nn.Linear(64, sum(sizes))
        self.sizes = list(sizes)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of each attribute."""
        return self.heads(self.features(images)).split(self.sizes, dim=1)  # type: ignore[no-any-return]


def train_attributes(
    reader: AttributeClassifier,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    lr: float = 1e-3,
    batch_size: int = 128,
    seed: int = 0,
) -> None:
    """Train a reader in place on images and one label an attribute, and leave it for evaluation.

    Parameters
    ----------
    reader : AttributeClassifier
        On the device of the images.
    images : Tensor, shape (n, channels, height, width)
        Floating point.
    labels : Tensor, shape (n, attributes)
        int64.
    epochs, lr, batch_size, seed
        Of Adam; the seed decides the order of the images.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> labels = torch.tensor([[0], [1]]).repeat(32, 1)
    >>> images = torch.rand(64, 1, 28, 28) * labels[:, :, None, None]
    >>> reader = AttributeClassifier((1, 28, 28), [2])
    >>> train_attributes(reader, images, labels, epochs=20)
    >>> (reader(images)[0].argmax(1) == labels[:, 0]).float().mean().item()
    1.0
    """
    optimizer = torch.optim.Adam(reader.parameters(), lr=lr)
    order = torch.Generator().manual_seed(seed)
    reader.train()
    for _ in range(check_count(epochs, "epochs")):
        for batch in torch.randperm(len(images), generator=order).split(batch_size):  # type: ignore[no-untyped-call]
            places = batch.to(images.device)
            answers = zip(reader(images[places]), labels[places].T, strict=True)
            losses = [nn.functional.cross_entropy(logits, truth) for logits, truth in answers]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    reader.eval()


class Yardstick:
    """How near generated images come to real ones, as a reader of attributes sees them.

    Parameters
    ----------
    reader : AttributeClassifier
        Trained on other images of the same kind.
    real : Tensor, shape (n, channels, height, width)
        The images to compare with, which neither the reader nor the generator has seen.
    neighbours : int, default 5
        The k of `coverage`.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> real, fake = torch.rand(2, 50, 1, 28, 28)
    >>> yardstick = Yardstick(AttributeClassifier((1, 28, 28), [10]), real)
    >>> sorted(yardstick.judge(fake))
    ['confident', 'coverage', 'distance']
    >>> yardstick.judge(real)["coverage"]
    1.0
    """

    def __init__(self, reader: AttributeClassifier, real: Tensor, *, neighbours: int = 5) -> None:
        self.reader, self.neighbours = reader, neighbours
        self.real, self.confident = self._seen(real)

    def judge(self, fake: Tensor) -> dict[str, float]:
        """Return the three numbers of a sample.

        Parameters
        ----------
        fake : Tensor, shape (m, channels, height, width)
            On the device of the reader.

        Returns
        -------
        dict
            ``distance``: `frechet_distance` in the reader's 64 features, infinite if an image is
            not finite. ``confident``: the share of all attributes of all images that the reader
            names with a probability of at least 0.9. ``coverage``: see the function.
        """
        if not bool(fake.isfinite().all()):
            return {"distance": float("inf"), "confident": 0.0, "coverage": 0.0}
        features, confident = self._seen(fake)
        return {
            "distance": frechet_distance(self.real, features),
            "confident": confident,
            "coverage": coverage(self.real, features, neighbours=self.neighbours),
        }

    @torch.no_grad()
    def _seen(self, images: Tensor) -> tuple[Tensor, float]:
        """Return the features, and the share of attributes that are read with confidence."""
        features, sure = [], []
        with evaluation_mode(self.reader):
            for batch in images.split(500):  # type: ignore[no-untyped-call]
                features.append(self.reader.features(batch))
                heads = self.reader.heads(features[-1]).split(self.reader.sizes, dim=1)
                tops = torch.stack([logits.softmax(1).amax(1) for logits in heads])
                sure.append((tops >= 0.9).float().mean(0))
        return torch.cat(features), float(torch.cat(sure).mean())


def coverage(real: Tensor, fake: Tensor, *, neighbours: int = 5) -> float:
    """Share of the real points that have a fake one nearer than their k-th real neighbour.

    Naeem et al. (2020): it falls where modes are missing, which a few good samples do not.

    Parameters
    ----------
    real, fake : Tensor, shape (n, d) and (m, d)
        Features; n must be above `neighbours`.
    neighbours : int, default 5
        The k.

    Returns
    -------
    float
        From 0 to 1. About 1 − 2⁻ᵏ for a second real sample of the same size.

    Examples
    --------
    >>> real = torch.arange(8.0)[:, None]
    >>> coverage(real, real[:4], neighbours=1)  # all that are nearer than 1 to one of 0, 1, 2, 3
    0.5
    >>> coverage(real, real, neighbours=8)
    Traceback (most recent call last):
    ValueError: real must have more than 8 rows, got 8
    """
    if len(real) <= check_count(neighbours, "neighbours"):
        raise ValueError(f"real must have more than {neighbours} rows, got {len(real)}")
    radii = torch.cdist(real, real).kthvalue(neighbours + 1, dim=1).values
    return float((torch.cdist(real, fake).amin(1) < radii).float().mean())


class FacialFeatures:
    """How much of a face's features images have: 0 in bare heads, 1 in faces, in the mean.

    A matched filter: what drawn faces have in fine detail, and the same heads without eyes, brows,
    nose, mouth and glasses have not, on average. Fine is what a blur of `edge` pixels takes away,
    so that neither a colour nor a large spot counts. It is linear in the image, so that images of
    which half are faces have a mean of one half. (Bare heads have edges, too: an image that is all
    of one colour has about 0.1.)

    Parameters
    ----------
    faces, heads : Tensor, shape (n, channels, height, width)
        The same heads with their features and without.
    edge : int, default 7
        Of the blur, odd; what is fine in images of 64×64.

    Raises
    ------
    ValueError
        If the two sets are not of one shape, or `edge` is even.

    Examples
    --------
    >>> heads = torch.rand(8, 3, 16, 16)
    >>> faces = heads.clone()
    >>> faces[:, :, 6, [5, 10]] = 0  # eyes
    >>> features = FacialFeatures(faces, heads)
    >>> round(features(faces).mean().item(), 3), abs(round(features(heads).mean().item(), 3))
    (1.0, 0.0)
    """

    def __init__(self, faces: Tensor, heads: Tensor, *, edge: int = 7) -> None:
        if faces.ndim != 4 or faces.shape != heads.shape:
            raise ValueError(
                "faces and heads must be of one shape (n, channels, height, width), "
                f"got {tuple(faces.shape)} and {tuple(heads.shape)}"
            )
        check_count(edge, "edge")
        if edge % 2 == 0:
            raise ValueError(f"edge must be odd, got {edge}")
        self.edge = edge
        pattern = (self._detail(faces) - self._detail(heads)).mean(0)
        self.pattern = pattern / pattern.square().sum()
        self.bare = 0.0
        self.bare = float(self(heads).mean())

    def __call__(self, images: Tensor) -> Tensor:
        """Return one value an image, shape (n,)."""
        return (self._detail(images) * self.pattern).sum((1, 2)) - self.bare

    def _detail(self, images: Tensor) -> Tensor:
        grey = images.mean(1, keepdim=True)
        padded = nn.functional.pad(grey, [self.edge // 2] * 4, mode="replicate")
        return (grey - nn.functional.avg_pool2d(padded, self.edge, stride=1))[:, 0]
