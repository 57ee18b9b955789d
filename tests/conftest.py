"""What several test modules share."""

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from workflow.browser import FLAGS, find


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start a headless browser; without one, skip here and fail where CI is set."""
    program = find()
    if program is None:
        reason = "no browser for the site's checks; `python -m workflow browser` installs one"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=program, args=list(FLAGS), timeout=180_000
        )
        try:
            yield running
        finally:
            running.close()
