"""Compare `lipbook.spectral_norm` with what torch and SciPy offer, as ratios of medians.

Every round times all the routes one after the other, so that a slow moment of the machine hits
them alike, and in an order of its own, since each finds the caches as the one before left them;
one thread on a CPU is timed by what it used of it, whatever else runs there. A peer counts only
where it reaches the relative accuracy that lipbook promises, measured against the SVD in float64;
iterative peers are asked for that tolerance. Matrices are Gaussian, once as they are and once with
a rank one added that makes a gap. What takes more than thirty times as long as lipbook is timed
once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import scipy.linalg
import scipy.sparse.linalg
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import begin, interleaved, options_of, print_heading, seconds, shapes_of, timer
from lipbook.notebook.runtime import Run
from lipbook.power_iteration import spectral_norm

RTOL = 1e-6
SHAPES = "128x128,256x256,512x512,768x768,1200x1200,2048x2048,128x576,128x1600,1024x4608"
TOO_SLOW = 30

Route = Callable[[Tensor], Tensor | float]


def gram(matrix: Tensor) -> Tensor:
    """Return the smaller of ``WWᵀ`` and ``WᵀW``."""
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix


def svds(matrix: Tensor) -> float:
    """Return the norm by ARPACK."""
    found = scipy.sparse.linalg.svds(
        matrix.numpy(), k=1, tol=RTOL, return_singular_vectors=False, rng=0
    )
    return float(found[0])


def eigsh(matrix: Tensor) -> float:
    """Return the norm by ARPACK on the Gram matrix."""
    product = gram(matrix).numpy()
    start = np.ones(len(product), product.dtype)
    found = scipy.sparse.linalg.eigsh(product, k=1, tol=RTOL, v0=start, return_eigenvectors=False)
    return float(found[0]) ** 0.5


def eigh(matrix: Tensor) -> float:
    """Return the norm by the one eigenvalue of the Gram matrix that SciPy asks LAPACK for."""
    product = gram(matrix).numpy()
    last = [len(product) - 1] * 2
    found = scipy.linalg.eigh(
        product, subset_by_index=last, eigvals_only=True, overwrite_a=True, check_finite=False
    )
    return float(found[0]) ** 0.5


def lobpcg(matrix: Tensor) -> Tensor:
    """Return the norm by torch's block conjugate gradients on the Gram matrix."""
    values, _ = torch.lobpcg(gram(matrix), k=1, largest=True, tol=RTOL, niter=1000)
    return values.sqrt()


ROUTES: dict[str, Route] = {
    "lipbook.spectral_norm": spectral_norm,
    "torch matrix_norm(ord=2)": lambda matrix: torch.linalg.matrix_norm(matrix, 2),
    "torch eigvalsh(Gram)": lambda matrix: torch.linalg.eigvalsh(gram(matrix))[-1].sqrt(),
    "torch lobpcg(Gram)": lobpcg,
    "scipy eigh(Gram), one": eigh,
    "scipy svds": svds,
    "scipy eigsh(Gram)": eigsh,
}
NUMPY = (eigh, svds, eigsh)
OURS = next(iter(ROUTES))


def compare(matrix: Tensor, rounds: int, run: Run, progress: tqdm[Any]) -> pd.DataFrame:
    """Return time, ratio and error of every route on one matrix, one row a route."""
    routes = {
        name: route for name, route in ROUTES.items() if not (matrix.is_cuda and route in NUMPY)
    }
    exact = float(torch.linalg.matrix_norm(matrix.double(), 2))
    errors = {name: abs(float(route(matrix)) / exact - 1) for name, route in routes.items()}
    once = {name: seconds(partial(route, matrix), run) for name, route in routes.items()}
    timers = {
        name: timer(partial(route, matrix), run)
        for name, route in routes.items()
        if once[name] <= TOO_SLOW * once[OURS]
    }
    medians = 1e3 * pd.Series(once | dict(interleaved(timers, rounds, progress).median()))
    rows = {
        name: {
            "ms": medians[name],
            "error": errors[name],
            "lipbook / it": medians[OURS] / medians[name],
            "counts": errors[name] <= RTOL,
        }
        for name in routes
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("route")


def with_gap(matrix: Tensor, generator: torch.Generator) -> Tensor:
    """Return the matrix with a direction added that it stretches about three times as far."""
    m, n = matrix.shape
    u, v = (torch.randn(side, generator=generator, dtype=matrix.dtype) for side in (m, n))
    stretch = 3 * (m**0.5 + n**0.5) / (u.norm() * v.norm())
    return matrix + stretch * torch.outer(u, v)


def main() -> None:
    """Parse the command line, measure, and print the table."""
    parser = options_of("benchmarks.spectral_norm", __doc__, rounds=7)
    parser.add_argument("--shapes", default=SHAPES, help=f"comma-separated (default: {SHAPES})")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    options = parser.parse_args()
    shapes = shapes_of(parser, options.shapes, least=4)
    run = begin(parser, options)

    tables = {}
    with tqdm(total=2 * len(shapes) * options.rounds, desc="rounds") as progress:
        for index, shape in enumerate(shapes):
            generator = run.generator(index)
            plain = torch.randn(*shape, generator=generator, dtype=getattr(torch, options.dtype))
            for kind, matrix in (("Gaussian", plain), ("with a gap", with_gap(plain, generator))):
                key = (f"{shape[0]}×{shape[1]}", kind)
                tables[key] = compare(matrix.to(run.device), options.rounds, run, progress)
    table = pd.concat(tables, names=["shape", "kind"])
    print_heading(run, f"{options.dtype}, medians of {options.rounds} interleaved rounds")
    formats = {"ms": "{:.2f}".format, "error": "{:.0e}".format, "lipbook / it": "{:.2f}".format}
    print(table.to_string(formatters=formats))
    peers = table[table["counts"]].drop(OURS, level="route")
    worst = peers.groupby(level=["shape", "kind"], sort=False)["lipbook / it"].max()
    print("\nagainst the best peer that reaches 1e-6:")
    print(worst.unstack().to_string(float_format="{:.2f}".format))


if __name__ == "__main__":
    main()
