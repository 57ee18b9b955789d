"""What the comparisons share: options, clock, interleaved rounds, and the heading of a table."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import pandas as pd
import torch
from tqdm import tqdm

from lipbook.notebook.runtime import Run, provenance, start

Key = TypeVar("Key")

_SHORTEST = 0.005  # seconds: faster calls are repeated within a round


def options_of(program: str, description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Return a parser of the options that every comparison has."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"interleaved rounds (default: {rounds})"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch and BLAS (default: 1)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    return parser


def begin(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Run:
    """Start the run that the options ask for, or say in one line what is wrong with them."""
    if options.rounds < 1:
        parser.error("need at least one round")
    try:
        return start(options.seed, options.device, threads=options.threads)
    except (RuntimeError, ValueError) as error:
        parser.error(str(error))


def shapes_of(parser: argparse.ArgumentParser, text: str, *, least: int) -> list[tuple[int, int]]:
    """Read shapes such as ``128x576,512x512`` with sides of at least `least`."""
    try:
        shapes = [tuple(int(side) for side in one.split("x")) for one in text.split(",")]
    except ValueError as error:
        parser.error(str(error))
    if any(len(shape) != 2 or min(shape) < least for shape in shapes):
        parser.error(f"need shapes such as 128x576 with sides from {least} up")
    return [(rows, columns) for rows, columns in shapes]


def seconds(call: Callable[[], object], run: Run, repeats: int = 1) -> float:
    """Time one call, as the mean of a few.

    One thread on a CPU is timed by what was used of it, whatever else runs there.
    """
    alone = run.device.type == "cpu" and run.threads == 1
    clock = time.process_time if alone else time.perf_counter
    _wait(run)
    began = clock()
    for _ in range(repeats):
        call()
    _wait(run)
    return (clock() - began) / repeats


def timer(call: Callable[[], object], run: Run) -> Callable[[], float]:
    """Return what times a call, once it is warm, repeated so often that the clock sees it."""
    call()
    repeats = max(1, round(_SHORTEST / seconds(call, run)))
    return partial(seconds, call, run, repeats)


def interleaved(
    timers: Mapping[Key, Callable[[], float]], rounds: int, progress: tqdm[Any]
) -> pd.DataFrame:
    """Return what each timer says, one row a round, one column a timer.

    Every round has all of them one after the other, so that a slow moment of the machine hits
    them alike, in an order of its own, since each finds the caches as the one before left them.
    """
    rows: list[dict[Key, float]] = []
    shuffled = random.Random(0)
    for _ in range(rounds):
        rows.append({key: timers[key]() for key in shuffled.sample(list(timers), len(timers))})
        progress.update()
    return pd.DataFrame(rows, columns=list(timers))


def print_heading(run: Run, what: str) -> None:
    """Say on which machine and from what source the numbers come, and what they are."""
    facts = provenance(run)["value"]
    print(", ".join(f"{fact} {value}" for fact, value in facts.items()))
    print(f"{what}\n")


def _wait(run: Run) -> None:
    if run.device.type == "cuda":
        torch.cuda.synchronize()
