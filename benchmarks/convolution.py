"""What the norms of convolutions cost and how tight they are, beside ARPACK on the same products.

Time is one call's; memory is by how much the process grew at its highest, in a process of its own
for each row, and in units of the layer's activations: one input and one output. "One product" is
the convolution of one image and its adjoint, by torch: what its library keeps for itself, no norm
can save.
"""

from __future__ import annotations

import multiprocessing
import resource
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse.linalg
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import begin, options_of, print_heading, seconds
from lipbook.convolution import conv_norm_bounds, conv_spectral_norm
from lipbook.notebook.runtime import Run, start

LAYERS = {
    "64→64, 3×3 at 32²": ((64, 64, 3, 3), 32, 1),
    "64→64, 3×3 at 128²": ((64, 64, 3, 3), 128, 1),
    "3→64, 5×5, stride 2 at 64²": ((64, 3, 5, 5), 64, 2),
    "64→128, 5×5, stride 2 at 32²": ((128, 64, 5, 5), 32, 2),
    "512→512, 3×3 at 16²": ((512, 512, 3, 3), 16, 1),
}


def arpack(kernel: Tensor, size: int, stride: int) -> float:
    """Return the norm by SciPy's svds, on products by torch."""
    padding, shape = kernel.shape[2] // 2, (1, kernel.shape[1], size, size)
    image = torch.zeros(shape, requires_grad=True)
    output = F.conv2d(image, kernel, stride=stride, padding=padding)

    def forward(x: Any) -> Any:
        x = torch.from_numpy(x.astype(np.float32)).view(shape)
        return F.conv2d(x, kernel, stride=stride, padding=padding).flatten().numpy()

    def adjoint(y: Any) -> Any:
        y = torch.from_numpy(y.astype(np.float32)).view_as(output)
        return torch.autograd.grad(output, image, y, retain_graph=True)[0].flatten().numpy()

    sides = (output.numel(), image.numel())
    operator = scipy.sparse.linalg.LinearOperator(sides, forward, adjoint, dtype=np.float32)
    found = scipy.sparse.linalg.svds(operator, k=1, tol=1e-6, return_singular_vectors=False, rng=0)
    return float(found[0])


def products(kernel: Tensor, size: int, stride: int) -> float:
    """Convolve one image and go back, as every step of the search for a norm does."""
    padding = kernel.shape[2] // 2
    image = torch.randn(1, size, size, kernel.shape[1]).movedim(-1, 1)
    result = F.conv2d(image, kernel, stride=stride, padding=padding)
    F.conv_transpose2d(result, kernel, stride=stride, padding=padding, output_padding=stride - 1)
    return float("nan")


ROUTES = {
    "one product": products,
    "conv_spectral_norm": lambda kernel, size, stride: float(
        conv_spectral_norm(kernel, size, stride=stride, padding=kernel.shape[2] // 2)
    ),
    "conv_norm_bounds": lambda kernel, size, stride: float(
        conv_norm_bounds(kernel, size, stride=stride, padding=kernel.shape[2] // 2).upper
    ),
    "scipy svds": arpack,
}


def measure(layer: str, route: str, seed: int, threads: int) -> dict[str, float]:
    """Return value, seconds and growth of one call, in a fresh process."""
    run: Run = start(seed, "cpu", threads=threads)
    shape, size, stride = LAYERS[layer]
    kernel = torch.randn(*shape, generator=run.generator(0))
    small = torch.randn(2, 2, 3, 3)
    ROUTES[route](small, 48, 1)  # what is loaded once does not count
    values: list[float] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took = seconds(lambda: values.append(ROUTES[route](kernel, size, stride)), run)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    pixels = shape[1] * size**2 + shape[0] * (size // stride) ** 2
    return {"norm": values[0], "s": took, "MiB": grown, "activations": grown * 2**18 / pixels}


def main() -> None:
    """Parse the command line, measure, and print the table."""
    parser = options_of("benchmarks.convolution", __doc__, rounds=1)
    options = parser.parse_args()
    run = begin(parser, options)
    rows = {}
    spawn = multiprocessing.get_context("spawn")
    for layer in LAYERS:
        for route in ROUTES:
            with spawn.Pool(1) as pool:
                rows[layer, route] = pool.apply(
                    measure, (layer, route, options.seed, options.threads)
                )
    table = pd.DataFrame.from_dict(rows, orient="index")
    exact = [rows[layer, "conv_spectral_norm"]["norm"] for layer, _ in rows]
    table.insert(1, "of the norm", table["norm"] / exact)
    print_heading(run, "float32, one call each")
    print(table.to_string(float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
