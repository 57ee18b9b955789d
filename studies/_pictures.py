"""What the studies of image generators share: data on a device, yardsticks, networks, a training.

A cell runs on the GPU if there is one, else on the CPU. Its weights, batches and latents are the
same on both; trainings part after some hundred steps, as rounding errors grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import studies
from lipbook._layers import evaluation_mode
from lipbook.lab.datasets import ATTRIBUTES, faces, mnist, scaled, stored
from lipbook.lab.dcgan import dcgan_critic, dcgan_generator
from lipbook.lab.fidelity import AttributeClassifier, Yardstick, train_attributes
from lipbook.lab.gan import Rules, train_gan
from lipbook.normalization import SpectralProjection, article_spectral_normalize, spectral_normalize

#: How many faces are drawn, and how many images of each kind are for training; the rest judges.
N_FACES, N_TRAINING = 10_000, {"mnist": 4_000, "faces 32": 8_000, "faces 64": 8_000}
#: Epochs of the reader of attributes.
EPOCHS = {"mnist": 12, "faces 32": 8, "faces 64": 3}
#: Generated images that a judgement looks at; a cell of few channels gets by with fewer.
N_JUDGED = 2_000
#: Generator steps of a rehearsal: on a GPU enough to make a graph.
TINY = 6 if torch.cuda.is_available() else 2


class Images(NamedTuple):
    """One kind of images on a device: bytes to train on, and what judges."""

    pixels: Tensor
    yardstick: Yardstick


def device() -> torch.device:
    """Return where cells run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache
def images(kind: str) -> Images:
    """Return "mnist", "faces 32" or "faces 64" on the device of the cells, with its yardstick."""
    pixels, _ = labelled_pixels(kind)
    n, place = N_TRAINING[kind], device()
    yardstick = Yardstick(reader(kind).to(place), scaled(pixels[n:].to(place)))
    return Images(pixels[:n].to(place), yardstick)


def reader(kind: str) -> AttributeClassifier:
    """Return the reader of attributes of a kind of images, trained once and then kept."""
    sizes = [10] if kind == "mnist" else [len(values) for values in ATTRIBUTES.values()]

    def fresh() -> AttributeClassifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return AttributeClassifier(_shape(kind), sizes)

    def trained() -> dict[str, np.ndarray[Any, Any]]:
        pixels, labels = labelled_pixels(kind)
        n, net = N_TRAINING[kind], fresh()
        train_attributes(net, scaled(pixels[:n]), labels[:n], epochs=EPOCHS[kind])
        return {name: value.numpy() for name, value in net.state_dict().items()}

    net = fresh()
    kept = stored(f"reader-{kind.replace(' ', '-')}", 0, trained)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in kept.items()})
    return net.eval()


def _shape(kind: str) -> tuple[int, int, int]:
    return {"mnist": (1, 28, 28), "faces 32": (3, 32, 32), "faces 64": (3, 64, 64)}[kind]


def labelled_pixels(kind: str) -> tuple[Tensor, Tensor]:
    """Return bytes, and labels with one column an attribute."""
    if kind == "mnist":
        pixels, labels = mnist()
        return pixels, labels[:, None]
    pixels, labels = faces(N_FACES, 0)
    if kind == "faces 32":
        pixels = torch.cat([_halved(part) for part in pixels.split(1000)])  # type: ignore[no-untyped-call]
    return pixels, labels


def _halved(pixels: Tensor) -> Tensor:
    return F.avg_pool2d(pixels.float(), 2).round().to(torch.uint8)


def networks(
    kind: str, width: int, latent_dim: int, seed: int, *, batch_norm: bool = False
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return a generator and a critic of the article's kind, on the device of the cells."""
    torch.manual_seed(seed)
    generator_net = dcgan_generator(_shape(kind), latent_dim, width=width)
    critic = dcgan_critic(_shape(kind), width=width, batch_norm=batch_norm)
    return generator_net.to(device()), critic.to(device())


def normalize(
    critic: nn.Sequential, how: str, *, scales: bool = True, coefficient: float = 1.0
) -> None:
    """Divide the weights inside the forward pass: "article" (r = 5 from ones) or "warm".

    The γ of BatchNorms too if `scales`: by their length, or by the norm of the layer.
    """
    for layer in critic:
        if not hasattr(layer, "weight") or (isinstance(layer, nn.BatchNorm2d) and not scales):
            continue
        if how == "article":
            article_spectral_normalize(layer)
        else:
            spectral_normalize(layer, coefficient=coefficient)


def project(how: str) -> Callable[[nn.Module], None]:
    """Return what divides the weights after a step: "article" (r = 5 from ones) or "exact"."""
    return SpectralProjection("article").after_step if how == "article" else project_exactly


@torch.no_grad()
def project_exactly(critic: nn.Module) -> None:
    """Divide by `norm_by_squaring`, and γ by the norm of its layer, with no wait for the device."""
    for layer in critic.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert isinstance(layer.running_var, Tensor)
            norm = (layer.weight * (layer.running_var + layer.eps).rsqrt()).abs().amax()
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            norm = norm_by_squaring(layer.weight.flatten(1))
        else:
            continue
        layer.weight.div_(norm)


def norm_by_squaring(matrix: Tensor, squarings: int = 10) -> Tensor:
    """Return ‖W‖₂ by 2¹⁰ steps of power iteration, done as ten squarings of the Gram matrix.

    Where the two largest singular values agree it is low by less than one part in 5,000; a
    decomposition would make the GPU wait for the host.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    power = tall.T @ tall
    for _ in range(squarings):
        power = power / torch.linalg.vector_norm(power)
        power = power @ power
    lengths = torch.linalg.vector_norm(power, dim=0)
    top = power.index_select(1, lengths.argmax().view(1))[:, 0]
    return torch.linalg.vector_norm(tall @ (top / torch.linalg.vector_norm(top)))  # type: ignore[no-any-return]


def watched(
    kind: str,
    nets: tuple[nn.Module, nn.Module],
    rules: Rules,
    *,
    latent_dim: int,
    stops: Sequence[int],
    seed: int,
    after_step: Callable[[nn.Module], None] | None = None,
    n_judged: int = N_JUDGED,
) -> Iterator[dict[str, Any]]:
    """Train, and judge at each stop; yield the numbers, and the images of 32 latents as bytes.

    A training whose images cease to be finite ends there.
    """
    data, (generator_net, critic) = images(kind), nets
    _, for_latents = studies.held_out(seed)
    latents = torch.randn(n_judged, latent_dim, generator=for_latents).to(device())
    training = train_gan(
        generator_net,
        critic,
        data.pixels,
        rules,
        latent_dim=latent_dim,
        stops=stops,
        seed=seed,
        after_step=after_step,
    )
    for step in training:
        fake = generated(generator_net, latents)
        judged = data.yardstick.judge(fake)
        shown = ((fake[:32].clamp(-1, 1) + 1) * 127.5).round()
        yield {"step": step, **judged, "grid": shown.nan_to_num().to(torch.uint8).cpu().numpy()}
        if not np.isfinite(judged["distance"]):
            return


def numbers(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a training yielded, without the images."""
    return [{k: v for k, v in row.items() if k != "grid"} for row in rows]


@torch.no_grad()
def generated(generator_net: nn.Module, latents: Tensor) -> Tensor:
    """Return what a generator makes of latents, with the averages of its BatchNorms."""
    with evaluation_mode(generator_net):
        return torch.cat([generator_net(part) for part in latents.split(500)])  # type: ignore[no-untyped-call]
