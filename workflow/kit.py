"""Gather the wheels by which a machine without a network runs the book on its own torch.

That machine has Python with torch, NumPy, SciPy, scikit-learn, pandas and matplotlib, in whatever
versions. What else the chapters and studies import comes as wheels for its version of Python.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from workflow.project import BUILD, ROOT, WorkflowError

KIT = BUILD / "gpu-kit"
#: What chapters, studies and nbval import, besides what is there.
ROOTS = (
    *("nbval", "ipykernel", "hypothesis"),
    *("myst-nb", "pydantic", "pyyaml", "threadpoolctl", "tqdm"),
    *("POT<0.9.7", "mlxtend", "python-avatars", "resvg-py"),
)
#: What is there, and what that needs.
_THERE = {
    *("torch", "numpy", "scipy", "scikit-learn", "pandas", "matplotlib"),
    *("contourpy", "cycler", "fonttools", "joblib", "kiwisolver", "narwhals", "pillow"),
    *("pyparsing", "threadpoolctl", "tzdata"),
}
#: Asked for, but imported by nobody here, or only where it is there.
_SPARED = {"debugpy", "jedi", "parso"}
_MOST_BYTES = 50e6
_GLIBC = (17, 24, 27, 28, 31, 34, 35)


def gather(python: str) -> Path:
    """Fill the folder `KIT` with wheels for Linux on x86-64 and a version of Python, "3.12" say.

    Raises
    ------
    WorkflowError
        If pip fails, or the wheels are too large.
    """
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for number in _GLIBC:
        target += ["--platform", f"manylinux_2_{number}_x86_64"]
    target += ["--platform", "manylinux2014_x86_64"]
    wheels = KIT / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        constraints = Path(folder) / "constraints.txt"
        lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines(keepends=True)
        # The locked POT is 33 MB, one file of debugging symbols.
        constraints.write_text("".join(line for line in lock if not line.startswith("POT==")))
        locked = ["--constraint", str(constraints)]
        resolve = ["install", "--dry-run", "--ignore-installed", "--report", str(report)]
        _pip([*resolve, "--target", folder, *target, *locked, *ROOTS])
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    wanted = [
        f"{item['name']}=={item['version']}"
        for item in found
        if item["name"].lower().replace("_", "-") not in _THERE | _SPARED
    ]
    for wheel in wheels.glob("*.whl"):
        wheel.unlink()
    _pip(["download", "--no-deps", "--dest", str(wheels), *target, *wanted])
    size = sum(wheel.stat().st_size for wheel in wheels.glob("*.whl"))
    if size > _MOST_BYTES:
        raise WorkflowError(
            f"the wheels are {size / 1e6:.0f} MB, more than {_MOST_BYTES / 1e6:.0f}"
        )
    return wheels


def _pip(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    step = subprocess.run(command, capture_output=True, text=True, check=False)
    if step.returncode:
        raise WorkflowError(f"pip could not {arguments[0]}: {step.stderr.strip()[-500:]}")
