"""Tomorrow: the book and the core's tests under the newest version of everything they use.

Jupyter Book 1 holds Sphinx back. What it makes of `_config.yml` is a ``conf.py``, with which Sphinx
builds the same pages alone: the way out, kept open here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib import metadata
from itertools import chain
from pathlib import Path

from workflow.project import BUILD, ROOT, WorkflowError

HERE = BUILD / "future"
_HOLDS_BACK = "jupyter-book"
#: Jupyter Book says where our own extensions are when it runs, not in what it writes.
_PATH = """\
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "book" / "_ext"))
"""


def newest() -> list[str]:
    """Return the names, without versions, of what the project asks for.

    In the place of Jupyter Book stands what it asks for itself.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    asked += [r for r in metadata.requires(_HOLDS_BACK) or () if "extra ==" not in r]
    names = {re.split(r"[^\w.-]", requirement)[0].lower() for requirement in asked}
    return sorted(names - {"lipbook", _HOLDS_BACK})


def configure(staged: Path, source: Path) -> None:
    """Copy the staged tree to `source`, with settings for Sphinx alone."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(staged, source)
    program = str(Path(sys.executable).with_name("jupyter-book"))
    _run(program, "config", "sphinx", str(source))
    settings = source / "conf.py"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(_PATH + text.replace("'jupyter_book', ", ""), encoding="utf-8")


def build(staged: Path) -> list[str]:
    """Install the newest of everything, test the core, build the site; return the versions.

    Raises
    ------
    WorkflowError
        If the tests or the site fail, with the command that did; their words are on the screen.
    """
    configure(staged, HERE / "source")
    venv.create(HERE / "venv", clear=True, with_pip=True)
    python = str(HERE / "venv" / "bin" / "python")
    _run(python, "-m", "pip", "install", "--quiet", "--upgrade", *newest())
    _run(python, "-m", "pip", "install", "--quiet", "--no-deps", "-e", str(ROOT))
    _run(python, "-m", "pytest", "-q", "-n", "auto", "-p", "no:cacheprovider", "tests/core")
    _run(python, "-m", "sphinx", "-W", "--keep-going", "-q", HERE / "source", HERE / "html")
    listed = _run(python, "-m", "pip", "freeze", "--exclude-editable", capture=True)
    return listed.splitlines()


def _run(*command: str | Path, capture: bool = False) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        check=False,
        text=True,
        stdout=subprocess.PIPE if capture else None,
        env=os.environ | {"PYTHONPATH": ""},
    )
    if status := done.returncode:
        how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
        raise WorkflowError(f"this failed, {how}: " + " ".join(map(str, command)))
    return done.stdout or ""
