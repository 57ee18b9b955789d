"""Compare `lipbook.spectral_norm` with what torch and SciPy offer, as ratios of medians.

Every round times all the routes one after the other, so that a slow moment of the machine hits
them alike, and in an order of its own, since each finds the caches as the one before left them;
one thread on a CPU is timed by what it used of it, whatever else runs there. A peer counts only
where it reaches the relative accuracy that lipbook promises, measured against the SVD in float64;
iterative peers are asked for that tolerance.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pandas as pd
import scipy.sparse.linalg
import torch
from torch import Tensor
from tqdm import tqdm

from lipbook.power_iteration import spectral_norm
from lipbook.runtime import provenance, start

RTOL = 1e-6
SHAPES = "128x128,512x512,1024x4608,128x576,128x1600"
SHORTEST = 0.005  # seconds: faster calls are repeated within a round

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


def lobpcg(matrix: Tensor) -> Tensor:
    """Return the norm by torch's block conjugate gradients on the Gram matrix."""
    values, _ = torch.lobpcg(gram(matrix), k=1, largest=True, tol=RTOL, niter=1000)
    return values.sqrt()


ROUTES: dict[str, Route] = {
    "lipbook.spectral_norm": spectral_norm,
    "torch matrix_norm(ord=2)": lambda matrix: torch.linalg.matrix_norm(matrix, 2),
    "torch eigvalsh(Gram)": lambda matrix: torch.linalg.eigvalsh(gram(matrix))[-1].sqrt(),
    "torch lobpcg(Gram)": lobpcg,
    "scipy svds": svds,
}
OURS = next(iter(ROUTES))


def seconds(route: Route, matrix: Tensor, repeats: int) -> float:
    """Time one call, as the mean of a few; `float` waits for a GPU."""
    alone = torch.get_num_threads() == 1 and not matrix.is_cuda
    clock = time.thread_time if alone else time.perf_counter
    begin = clock()
    for _ in range(repeats):
        float(route(matrix))
    return (clock() - begin) / repeats


def compare(matrix: Tensor, rounds: int, progress: tqdm[Any]) -> pd.DataFrame:
    """Return time, ratio and error of every route on one matrix, one row a route."""
    routes = {
        name: route for name, route in ROUTES.items() if not (matrix.is_cuda and route is svds)
    }
    exact = float(torch.linalg.matrix_norm(matrix.double(), 2))
    errors = {name: abs(float(route(matrix)) / exact - 1) for name, route in routes.items()}
    repeats = {
        name: max(1, round(SHORTEST / seconds(route, matrix, 1))) for name, route in routes.items()
    }
    times: dict[str, list[float]] = {name: [] for name in routes}
    shuffled = random.Random(0)
    for _ in range(rounds):
        for name in shuffled.sample(list(routes), len(routes)):
            times[name].append(seconds(routes[name], matrix, repeats[name]))
        progress.update()
    medians = {name: 1e3 * median(taken) for name, taken in times.items()}
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


def main() -> None:
    """Parse the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spectral_norm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: 7)")
    parser.add_argument("--threads", type=int, default=1, help="threads of BLAS (default: 1)")
    parser.add_argument("--shapes", default=SHAPES, help=f"comma-separated (default: {SHAPES})")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--seed", type=int, default=0, help="of the normal entries (default: 0)")
    options = parser.parse_args()
    try:
        shapes = [tuple(int(side) for side in one.split("x")) for one in options.shapes.split(",")]
        run = start(options.seed, options.device, threads=options.threads)
    except ValueError as error:
        parser.error(str(error))
    if options.rounds < 1 or any(len(shape) != 2 or min(shape) < 4 for shape in shapes):
        parser.error("need at least one round, and shapes such as 128x576 with sides from 4 up")

    tables = {}
    with tqdm(total=len(shapes) * options.rounds, desc="rounds") as progress:
        for index, shape in enumerate(shapes):
            matrix = torch.randn(
                *shape, generator=run.generator(index), dtype=getattr(torch, options.dtype)
            )
            tables[f"{shape[0]}×{shape[1]}"] = compare(
                matrix.to(run.device), options.rounds, progress
            )
    table = pd.concat(tables, names=["shape"])
    facts = provenance(run)["value"]
    print(", ".join(f"{fact} {value}" for fact, value in facts.items()))
    print(f"{options.dtype}, medians of {options.rounds} interleaved rounds\n")
    formats = {"ms": "{:.2f}".format, "error": "{:.0e}".format, "lipbook / it": "{:.2f}".format}
    print(table.to_string(formatters=formats))
    peers = table[table["counts"]].drop(OURS, level="route")
    worst = peers.groupby(level="shape", sort=False)["lipbook / it"].max()
    print("\nagainst the best peer that reaches 1e-6:")
    print(", ".join(f"{shape} {ratio:.2f}" for shape, ratio in worst.items()))


if __name__ == "__main__":
    main()
