"""The environment of every step: the project's own, whatever a person's shell and home have set.

A backend of matplotlib, a profile of Snakemake, a kernel or a setting of IPython, a language: each
would change a figure, a number or a message. What means this project, or the machine, stays.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from workflow.project import BUILD, ROOT

#: The variable by which `make gpu` names the folders where its kit of packages lies.
KIT = "LIPBOOK_KIT"
#: `lipbook.notebook.claims` reads it. A step that only starts a kernel need not import that, which
#: brings torch and takes seconds.
CONTRADICTIONS = "LIPBOOK_CONTRADICTIONS"

#: What begins like this reaches into Python, a kernel, a figure, the build or what it prints.
_DROPPED = (
    *("PYTHON", "IPYTHON", "JUPYTER", "PAPERMILL", "MPL", "MATPLOTLIB", "TORCH"),
    *("SNAKEMAKE", "SPHINX", "DOCUTILS", "MAKE", "MFLAGS", "RUFF", "MYPY"),
    *("XDG_", "LC_", "LANG", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "PY_COLORS", "COLUMNS"),
)


def cleaned(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what would reach in; its own result it leaves alone."""
    kept = {k: v for k, v in environment.items() if not k.startswith(_DROPPED)}
    # git asks its settings whether it may read a clone of another owner.
    settings = Path(environment.get("HOME", "~")).expanduser() / ".gitconfig"
    kept.setdefault("GIT_CONFIG_GLOBAL", str(settings))
    kit = [environment[KIT]] if environment.get(KIT) else []
    return kept | {
        "HOME": str(BUILD / "home"),
        "LC_ALL": "C.UTF-8",
        "MPLCONFIGDIR": str(BUILD / "home" / "matplotlib"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PLAYWRIGHT_BROWSERS_PATH": "0",  # in the virtual environment
        "PYTHONNOUSERSITE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *kit]),
    }


def enter() -> None:
    """Start this very command anew if its environment is another one than the project's."""
    clean = cleaned(os.environ)
    if clean != dict(os.environ):
        os.execve(sys.executable, [sys.executable, "-m", "workflow", *sys.argv[1:]], clean)
