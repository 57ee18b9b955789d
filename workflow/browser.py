"""Find a browser for the site's checks, or install one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from workflow.project import WorkflowError

#: Headless, and silent: nothing but the page under test reaches for the network.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """Return a browser's path: ``CHROMIUM``, one on the path, Playwright's own, or None."""
    if named := os.environ.get("CHROMIUM"):
        if not shutil.which(named):
            raise WorkflowError(f"CHROMIUM is {named!r}, which is no program here")
        return named
    for program in _PROGRAMS:
        if path := shutil.which(program):
            return path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def ensure() -> str | None:
    """Return a browser's path, installing Debian's or Playwright's Chromium if there is none.

    Raises
    ------
    WorkflowError
        If there is none in the end and ``CI`` is set; elsewhere the site's checks are skipped.
    """
    if path := find():
        return path
    if os.geteuid() == 0 and shutil.which("apt-get"):
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
        commands = [["apt-get", "update", "-qq"], install]
    else:
        commands = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    for command in commands:
        print("$", *command, flush=True)
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            break
    path = find()
    if path is None and os.environ.get("CI"):
        raise WorkflowError("no browser for the site's checks; set CHROMIUM to one")
    return path
