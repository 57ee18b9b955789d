"""Compare spectral normalization with torch's and with its floor, as ratios of medians.

First one normalized weight. The forward access is compared with its floor, which is two products
with a vector and one scaling and should not be more than 1.5 times faster; access and backward
together should be at least twice as fast as torch's. "empty" is the access to a weight whose
parametrization does nothing, through an autograd function: what torch's machinery alone costs.
Then the training step of a convolutional critic, which should cost at most 1.10 times the plain
one. Every round times all of them one after the other, in an order of its own; one thread on a
CPU is timed by what it used of it, whatever else runs there. A ratio is the median over the
rounds of the ratio in one round.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization
from tqdm import tqdm

from benchmarks import begin, interleaved, options_of, print_heading, shapes_of, timer
from lipbook.normalization import spectral_normalize
from lipbook.notebook.runtime import Run

SHAPES = "128x576,128x1600,512x512,1024x4608"
NORMALIZATIONS = {"torch": parametrizations.spectral_norm, "lipbook": spectral_normalize}

Call = Callable[[], Any]


class Nothing(torch.autograd.Function):
    """The identity."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:  # noqa: ARG004
        """Return an alias, for autograd to record."""
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        """Return the gradient as it is."""
        return grad


class Empty(nn.Module):
    """A parametrization that does nothing."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight through an autograd function."""
        return cast(Tensor, Nothing.apply(weight))  # type: ignore[no-untyped-call]


def normalized(matrix: Tensor, normalize: Callable[[nn.Module], Any]) -> nn.Linear:
    """Return a layer with that weight, normalized."""
    m, n = matrix.shape
    layer = nn.Linear(n, m, bias=False, device=matrix.device, dtype=matrix.dtype)
    layer.weight.data.copy_(matrix)
    normalize(layer)
    return layer


def weight_calls(matrix: Tensor, gradient: Tensor) -> dict[str, Call]:
    """Return the floor, the empty access, and what both normalizations are measured by."""
    m, n = matrix.shape
    u, v, factor = matrix.new_ones(m), matrix.new_ones(n), matrix.new_tensor(0.5)
    calls: dict[str, Call] = {"floor": lambda: (matrix.mv(v), matrix.t().mv(u), matrix * factor)}
    bare = normalized(matrix, lambda layer: register_parametrization(layer, "weight", Empty()))
    calls["empty, forward"] = lambda: bare.weight
    for name, normalize in NORMALIZATIONS.items():
        layer = normalized(matrix, normalize)
        calls[f"{name}, forward"] = lambda layer=layer: layer.weight

        parameter = next(layer.parameters())

        def backward(layer: nn.Linear = layer, parameter: nn.Parameter = parameter) -> None:
            parameter.grad = None
            layer.weight.backward(gradient)

        calls[f"{name}, forward + backward"] = backward
    return calls


def critic() -> nn.Sequential:
    """Return a critic of 32×32 colour images: three convolutions of stride 2, a dense layer."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 5, stride=2, padding=2), nn.LeakyReLU(0.3)),
        *(nn.Conv2d(64, 128, 5, stride=2, padding=2), nn.LeakyReLU(0.3)),
        *(nn.Conv2d(128, 256, 5, stride=2, padding=2), nn.LeakyReLU(0.3)),
        *(nn.Flatten(), nn.Linear(256 * 16, 1)),
    )


def step_calls(run: Run, dtype: torch.dtype, batch: int = 16) -> dict[str, Call]:
    """Return one training step of the plain critic, and of both normalized ones."""
    generator = run.generator(100)
    real, fake = (
        torch.randn(batch, 3, 32, 32, generator=generator).to(run.device, dtype) for _ in range(2)
    )
    plain = critic().to(run.device, dtype)
    calls: dict[str, Call] = {}
    for name, normalize in {"plain": None, **NORMALIZATIONS}.items():
        net = copy.deepcopy(plain)
        if normalize is not None:
            for layer in net:
                if hasattr(layer, "weight"):
                    normalize(layer)
        adam = torch.optim.Adam(net.parameters(), lr=1e-4, betas=(0.5, 0.9))

        def step(net: nn.Module = net, adam: torch.optim.Optimizer = adam) -> None:
            loss = net(fake).mean() - net(real).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()

        calls[f"{name} step"] = step
    return calls


def compare(calls: dict[str, Call], rounds: int, run: Run, progress: tqdm[Any]) -> pd.DataFrame:
    """Return the time of each call, in ms: one row a round, one column a call."""
    timers = {name: timer(call, run) for name, call in calls.items()}
    return 1e3 * interleaved(timers, rounds, progress)


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
    with tqdm(total=(len(shapes) + 1) * options.rounds, desc="rounds") as progress:
        for index, shape in enumerate(shapes):
            generator = run.generator(index)
            matrix, gradient = (
                torch.randn(*shape, generator=generator).to(run.device, dtype) for _ in range(2)
            )
            ms = compare(weight_calls(matrix, gradient), options.rounds, run, progress)
            ms["empty / floor"] = ms["empty, forward"] / ms["floor"]
            ms["forward / floor"] = ms["lipbook, forward"] / ms["floor"]
            ms["torch / lipbook"] = (
                ms["torch, forward + backward"] / ms["lipbook, forward + backward"]
            )
            weights[f"{shape[0]}×{shape[1]}"] = ms.median()
        steps = compare(step_calls(run, dtype), options.rounds, run, progress)
    print_heading(
        run, f"{options.dtype}, medians of {options.rounds} interleaved rounds: ms, and ratios"
    )
    print(pd.DataFrame(weights).round(3).to_string())
    print("\ncritic 32×32, batch 16\n")
    ratios = steps.div(steps["plain step"], axis=0)
    table = pd.DataFrame({"ms": steps.median(), "ratio to plain": ratios.median()})
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
