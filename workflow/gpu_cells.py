"""A plugin of pytest: writes what each cell of a chapter did under nbval, a line a cell."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note outcome, time and the outputs' metadata, where `claims.check` leaves its record."""
    report = yield
    if call.when == "call":
        outputs: list[dict[str, Any]] = getattr(item, "test_outputs", None) or []
        entry = {
            "cell": item.name,
            "outcome": report.outcome,
            "seconds": call.duration,
            "outputs": [{"metadata": output.get("metadata", {})} for output in outputs],
        }
        with Path(os.environ["LIPBOOK_CELLS"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    return report
