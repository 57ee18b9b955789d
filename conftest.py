"""What holds for every test: repeatable examples, and what nbval is told about the chapters."""

from __future__ import annotations

from collections.abc import Generator

import hypothesis
import pytest
from nbval import plugin

# The same examples on every run: a red test stays red until it is mended. Times are not judged.
hypothesis.settings.register_profile("lipbook", derandomize=True, deadline=None)
hypothesis.settings.load_profile("lipbook")

#: What ``myst_nb.glue`` stores for the prose: measured numbers, which differ in their last digits
#: from machine to machine. The line of ``claims.check`` beside them is compared on every machine.
GLUED = "application/papermill.record/text/plain"

# Under `--cov` nbval would trace the chapters' kernels too. That takes a quarter longer, and counts
# lines that a chapter ran as if it had tested them.
plugin.setup_coverage = plugin.teardown_coverage = lambda *_: None

# `--doctest-modules` has nothing to look for in Sphinx's extensions and in this file.
collect_ignore = ["book/_ext", "conftest.py"]


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Have nbval leave the numbers glued into the prose alone."""
    collectors = yield
    for collector in collectors:
        if isinstance(collector, plugin.IPyNbFile):
            collector.skip_compare += (GLUED,)
    return collectors
