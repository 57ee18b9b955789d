"""What holds for every test: a process as new, repeatable examples, and what nbval is told."""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from nbval import plugin
from threadpoolctl import ThreadpoolController

from lipbook.notebook import runtime
from workflow import environment
from workflow.compare import settle
from workflow.passed import Passed, pages_seen
from workflow.project import CHECKED, source

# As every step of the build: what a person's shell has set reaches no test and no kernel.
_clean = environment.cleaned(os.environ) | {"OMP_NUM_THREADS": "1"}
os.environ.clear()
os.environ.update(_clean)
Path(_clean["HOME"]).mkdir(parents=True, exist_ok=True)

# The same examples on every run: a red test stays red until it is mended. Times are not judged.
hypothesis.settings.register_profile("lipbook", derandomize=True, deadline=None)
hypothesis.settings.load_profile("lipbook")

#: What ``myst_nb.glue`` stores for the prose: measured numbers, which differ in their last digits
#: from machine to machine. The line of ``claims.check`` beside them is compared on every machine.
GLUED = "application/papermill.record/text/plain"

#: The chapters to leave out, and how many pages need not be opened.
KEPT = pytest.StashKey[list[str]]()
SEEN = pytest.StashKey[int]()

#: The pools of threads of what is imported above.
POOLS = ThreadpoolController()

# Under `--cov` nbval would trace the chapters' kernels too. That takes a quarter longer, and counts
# lines that a chapter ran as if it had tested them.
plugin.setup_coverage = plugin.teardown_coverage = lambda *_: None

# `--doctest-modules` has nothing to look for in Sphinx's extensions and in this file.
collect_ignore = ["book/_ext", "conftest.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make test` leave out what it need not run again."""
    text = "leave out the chapters that passed nbval, and the pages looked at, as they are now"
    parser.addoption("--keep-passed", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Look which chapters to leave out, and note which pass; a worker of xdist is told."""
    config.stash[KEPT] = getattr(config, "workerinput", {}).get("kept", [])
    config.stash[SEEN] = 0
    if config.option.keep_passed and not hasattr(config, "workerinput"):
        passed = Passed()
        config.pluginmanager.register(passed)
        config.stash[KEPT] = passed.unchanged()
        config.stash[SEEN] = len(pages_seen(CHECKED / "html"))


@pytest.hookimpl(optionalhook=True)  # without xdist there is none
def pytest_configure_node(node: Any) -> None:
    """Tell a worker."""
    node.workerinput["kept"] = node.config.stash[KEPT]


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say which ones, and how to have them run."""
    kept = list(config.stash[KEPT])
    if config.stash[SEEN]:
        kept.append(f"{config.stash[SEEN]} pages")
    again = "passed as they are now; `rm -r build/passed` has them tried again"
    return [f"kept: {', '.join(kept)} {again}"] if kept else []


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave them out; None leaves it to the other hooks."""
    kept = collection_path.stem in config.stash[KEPT]
    return True if kept and collection_path == source(collection_path.stem) else None


@pytest.fixture(autouse=True)
def _process_as_new(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no test, and no doctest, see which ones ran before it in the same process.

    A weight that is drawn without a generator would be another one in another order, and sums
    round otherwise in another number of threads. One is what a worker beside others has. What a
    test's libraries add to the environment (torch.compile the place of its cache) goes with it.
    """
    environ = set(os.environ)
    monkeypatch.setattr(runtime, "_current", None)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    strictness = torch.get_deterministic_debug_mode()
    torch.set_num_threads(1)
    with POOLS.limit(limits=1):  # and as it was, at the end
        yield
    torch.set_deterministic_debug_mode(strictness)
    for name in set(os.environ) - environ:
        del os.environ[name]


_compare = plugin.IPyNbCell.compare_outputs


def _compare_and_tell(
    cell: plugin.IPyNbCell, test: list[Any], ref: list[Any], skip_compare: Any = None
) -> bool:
    """Compare as nbval does, but for last digits; warn of those, and of the glued numbers."""
    stored, here = _glued(ref), _glued(test)
    if rounded := settle(ref, test):
        cell.warn(pytest.PytestWarning(f"LastDigit: {rounded} outputs end in other digits"))
    moved = [
        f"{name} {stored[name]}, here {here[name]}"
        for name in stored.keys() & here.keys()
        if stored[name] != here[name]
    ]
    if moved:
        # Of a class that xdist's controller can import: `conftest` is another file there.
        cell.warn(pytest.PytestWarning("StaleNumber: " + "; ".join(sorted(moved))))
    same: bool = _compare(cell, test, ref, skip_compare)
    return same


def _glued(outputs: list[Any]) -> dict[str, str]:
    return {
        output["metadata"].get("scrapbook", {}).get("name", ""): output["data"][GLUED]
        for output in outputs
        if GLUED in output.get("data", {})
    }


plugin.IPyNbCell.compare_outputs = _compare_and_tell


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Have nbval leave the numbers glued into the prose alone."""
    collectors = yield
    for collector in collectors:
        if isinstance(collector, plugin.IPyNbFile):
            collector.skip_compare += (GLUED,)
    return collectors
