"""Compare spectral normalization with torch's and with its floor, as ratios of medians.

First one normalized weight. The forward access is compared with its floor, which is two products
with a vector and one scaling and should not be more than 1.5 times faster; access and backward
together should be at least twice as fast as torch's. "bare" is a parametrization that does these
products, in its backward pass the ones of the gradient, by BLAS and NumPy, and nothing besides: no
check, no option, no vector kept. "torch / bare" is what could be reached at most. (The products
alone, one after the other, take half the time: torch's machinery comes between them.)
In evaluation mode an access should cost no more than torch's, with a gradient or without.
Then the training step of two critics, plain and normalized: of 32×32 images by three convolutions,
and the standard CNN of Miyato et al. 2018 (Table 3), with the hinge loss of its discriminator step.
What the plain step takes nobody can save: torch's step over the plain one is the most that any
normalization can gain, and stands beside what ours does.
Every round times all of them one after the other, in an order of its own; one thread on a
CPU is timed by what it used of it, whatever else runs there. A ratio is the median over the
rounds of the ratio in one round.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pandas as pd
import torch
from scipy.linalg import get_blas_funcs
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization
from tqdm import tqdm

from benchmarks import begin, interleaved, options_of, print_heading, shapes_of, timer
from lipbook.normalization import spectral_normalize
from lipbook.notebook.runtime import Run

SHAPES = "64x27,128x576,128x1600,512x512,1024x4608"
NORMALIZATIONS = {"torch": parametrizations.spectral_norm, "lipbook": spectral_normalize}

Call = Callable[[], Any]


class Products(torch.autograd.Function):
    """The identity, with work to do on its way."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, access: Call, gradient: Call) -> Tensor:
        """Do the work of an access; return an alias, for autograd to record."""
        access()
        ctx.gradient = gradient
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Do the work of the gradient, and return the one that came."""
        ctx.gradient()
        return grad, None, None


class Bare(nn.Module):
    """A parametrization that does the products, and nothing with them."""

    def __init__(self, access: Call, gradient: Call) -> None:
        super().__init__()
        self.calls = access, gradient

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight through the autograd function."""
        return cast(Tensor, Products.apply(weight, *self.calls))  # type: ignore[no-untyped-call]


def normalized(matrix: Tensor, normalize: Callable[[nn.Module], Any]) -> nn.Linear:
    """Return a layer with that weight, normalized."""
    m, n = matrix.shape
    layer = nn.Linear(n, m, bias=False, device=matrix.device, dtype=matrix.dtype)
    layer.weight.data.copy_(matrix)
    normalize(layer)
    return layer


def products(matrix: Tensor, gradient: Tensor) -> tuple[Call, Call]:
    """Return what has to be computed in an access, and in its backward pass."""
    m, n = matrix.shape
    u, v, factor = matrix.new_ones(m), matrix.new_ones(n), matrix.new_tensor(0.5)
    if not (matrix.is_cpu and matrix.dtype in (torch.float32, torch.float64)):

        def access() -> None:
            matrix.mv(v), matrix.t().mv(u), matrix * factor

        def gradient_pass() -> None:
            torch.addcmul(gradient, (u * torch.dot(gradient.view(-1), matrix.view(-1)))[:, None], v)

        return access, gradient_pass
    gemv, dot, ger = get_blas_funcs(("gemv", "dot", "ger"), dtype=matrix.numpy().dtype)
    weights, grads, left, right = (x.numpy() for x in (matrix, gradient, u, v))

    def access() -> None:
        gemv(1.0, weights.T, right, trans=1), gemv(1.0, weights.T, left), weights * 0.5

    def gradient_pass() -> None:
        overlap = dot(grads.ravel(), weights.ravel())
        ger(-overlap, right, left, a=(grads * 0.5).T, overwrite_a=1)

    return access, gradient_pass


def weight_calls(matrix: Tensor, gradient: Tensor) -> dict[str, Call]:
    """Return the floor, the bare access, and what both normalizations are measured by."""
    access, gradient_pass = products(matrix, gradient)
    bare = Bare(access, gradient_pass)
    layer = normalized(matrix, lambda layer: register_parametrization(layer, "weight", bare))
    calls = {"floor": access} | access_calls("bare", layer, gradient)
    for name, normalize in NORMALIZATIONS.items():
        calls |= access_calls(name, normalized(matrix, normalize), gradient)
        layer = normalized(matrix, normalize).eval()
        calls[f"{name}, eval"] = lambda layer=layer: layer.weight

        def without(layer: nn.Module = layer) -> None:
            with torch.no_grad():
                layer.weight  # noqa: B018

        calls[f"{name}, eval without grad"] = without
    return calls


def access_calls(name: str, layer: nn.Module, gradient: Tensor) -> dict[str, Call]:
    """Return the access to a layer's weight, without and with the backward pass."""
    parameter = next(layer.parameters())

    def backward() -> None:
        parameter.grad = None
        cast(Tensor, layer.weight).backward(gradient)

    return {f"{name}, forward": lambda: layer.weight, f"{name}, forward + backward": backward}


def critic() -> nn.Sequential:
    """Return a critic of 32×32 colour images: three convolutions of stride 2, a dense layer."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 5, stride=2, padding=2), nn.LeakyReLU(0.3)),
        *(nn.Conv2d(64, 128, 5, stride=2, padding=2), nn.LeakyReLU(0.3)),
        *(nn.Conv2d(128, 256, 5, stride=2, padding=2), nn.LeakyReLU(0.3)),
        *(nn.Flatten(), nn.Linear(256 * 16, 1)),
    )


def sngan() -> nn.Sequential:
    """Return the discriminator of Miyato et al. 2018, Table 3, for 32×32 colour images."""
    widths = (64, 64, 128, 128, 256, 256, 512)
    layers: list[nn.Module] = []
    channels = 3
    for index, width in enumerate(widths):
        size, stride = (4, 2) if index % 2 else (3, 1)
        layers += [nn.Conv2d(channels, width, size, stride, padding=1), nn.LeakyReLU(0.1)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * 16, 1))


CRITICS = {"three convolutions": critic, "SNGAN's CNN": sngan}


def step_calls(
    make: Callable[[], nn.Sequential], run: Run, dtype: torch.dtype, batch: int = 16
) -> dict[str, Call]:
    """Return one training step of the plain critic, and of both normalized ones, hinge loss."""
    generator = run.generator(100)
    real, fake = (
        torch.randn(batch, 3, 32, 32, generator=generator).to(run.device, dtype) for _ in range(2)
    )
    plain = make().to(run.device, dtype)
    calls: dict[str, Call] = {}
    for name, normalize in {"plain": None, **NORMALIZATIONS}.items():
        net = copy.deepcopy(plain)
        if normalize is not None:
            for layer in net:
                if hasattr(layer, "weight"):
                    normalize(layer)
        adam = torch.optim.Adam(net.parameters(), lr=1e-4, betas=(0.5, 0.9))

        def step(net: nn.Module = net, adam: torch.optim.Optimizer = adam) -> None:
            loss = F.relu(1 + net(fake)).mean() + F.relu(1 - net(real)).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()

        calls[f"{name} step"] = step
    return calls


def compare(calls: dict[str, Call], rounds: int, run: Run, progress: tqdm[Any]) -> pd.DataFrame:
    """Return the time of each call, in ms: one row a round, one column a call."""
    timers = {name: timer(call, run) for name, call in calls.items()}
    return 1e3 * interleaved(timers, rounds, progress)


def with_ratios(ms: pd.DataFrame) -> pd.DataFrame:
    """Add to the times of each round their ratios to torch's, and to the floor."""
    ratios = {
        "forward / floor": ms["lipbook, forward"] / ms["floor"],
        "torch / lipbook": ms["torch, forward + backward"] / ms["lipbook, forward + backward"],
        "torch / bare": ms["torch, forward + backward"] / ms["bare, forward + backward"],
    }
    for mode in ("eval", "eval without grad"):
        ratios[f"torch / lipbook, {mode}"] = ms[f"torch, {mode}"] / ms[f"lipbook, {mode}"]
    return ms.assign(**ratios)


def of_steps(steps: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the median time of each critic's step, beside a plain one and torch's."""
    table = {}
    for name, ms in steps.items():
        for call in ms:
            ratio = (ms[call] / ms["plain step"]).median()
            faster = (ms["torch step"] / ms[call]).median()
            found = {"ms": ms[call].median(), "over plain": ratio, "torch's over it": faster}
            found["at most"] = (ms["torch step"] / ms["plain step"]).median()
            table[f"{name}, {call.removesuffix(' step')}"] = found
    return pd.DataFrame(table).T


def main() -> None:
    """Parse the command line, measure, and print the tables."""
    parser = options_of("benchmarks.spectral_normalization", __doc__, rounds=15)
    parser.add_argument("--shapes", default=SHAPES, help=f"comma-separated (default: {SHAPES})")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16"])
    options = parser.parse_args()
    shapes = shapes_of(parser, options.shapes, least=1)
    run = begin(parser, options)
    dtype = getattr(torch, options.dtype)
    weights = {}
    with tqdm(total=(len(shapes) + len(CRITICS)) * options.rounds, desc="rounds") as progress:
        for index, shape in enumerate(shapes):
            generator = run.generator(index)
            matrix, gradient = (
                torch.randn(*shape, generator=generator).to(run.device, dtype) for _ in range(2)
            )
            ms = compare(weight_calls(matrix, gradient), options.rounds, run, progress)
            weights[f"{shape[0]}×{shape[1]}"] = with_ratios(ms).median()
        steps = {
            name: compare(step_calls(make, run, dtype), options.rounds, run, progress)
            for name, make in CRITICS.items()
        }
    print_heading(
        run, f"{options.dtype}, medians of {options.rounds} interleaved rounds: ms, and ratios"
    )
    print(pd.DataFrame(weights).round(3).to_string())
    print("\nA training step of a critic of 32×32 images, batch 16\n")
    print(of_steps(steps).round(3).to_string())


if __name__ == "__main__":
    main()
