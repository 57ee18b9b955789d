"""The core as a package: what it needs, what it offers, and how long its functions are."""

from __future__ import annotations

import ast
import doctest
import inspect
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import lipbook

PACKAGE = Path(lipbook.__file__).parent
TESTS = Path(__file__).parent
MODULES = sorted(PACKAGE.glob("*.py"))
#: What `pip install .` brings, and the core itself.
NEEDED = ("torch", "numpy", "scipy", "threadpoolctl")
ROOMS_ABOVE = ("lipbook.lab", "lipbook.notebook")
#: What LipSDP asks for, with a way out where it is missing.
OPTIONAL = ("cvxpy",)


def imported(source: str) -> Iterator[str]:
    """Return the modules that a source imports, wherever the line stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def strangers(source: str, *more: str) -> list[str]:
    """Return what a source imports that is neither of Python nor of the core and its needs."""
    known = {*sys.stdlib_module_names, *NEEDED, *more}
    return [name for name in imported(source) if not (name.split(".")[0] in known or _core(name))]


def _core(name: str) -> bool:
    return name.startswith("lipbook") and not name.startswith(ROOMS_ABOVE)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_core_imports_what_it_says(path):
    assert strangers(path.read_text(encoding="utf-8"), *OPTIONAL) == []


@pytest.mark.parametrize("path", sorted(TESTS.glob("*.py")), ids=lambda path: path.stem)
def test_the_tests_of_the_core_need_no_more(path):
    beside = [other.stem for other in TESTS.glob("*.py")]
    source = path.read_text(encoding="utf-8")
    found = strangers(source, "pytest", "hypothesis", *beside)
    assert set(found) <= {"lipbook.lab.networks.mlp", "lipbook.lab.networks.digits_cnn"}
    assert strangers((PACKAGE / "lab" / "networks.py").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    ["import pandas", "def f():\n    from PIL import Image", "from lipbook.lab import data"],
)
def test_a_stranger_is_found(line):
    assert len(strangers(f"import torch.nn\nfrom lipbook import wgan\n{line}\n")) == 1


#: As if nothing but the core's needs and theirs were installed: imports, and runs the doctests.
ALONE = """
import doctest, importlib.machinery, importlib.metadata, re, sys

allowed, waiting = {"lipbook"}, ["torch", "numpy", "scipy", "threadpoolctl"]
files = importlib.metadata.packages_distributions()
plain = lambda name: name.lower().replace("-", "_")
while waiting:
    name = plain(waiting.pop())
    tops = {top for top, owners in files.items() if name in map(plain, owners)}
    if not tops <= allowed:
        allowed |= tops
        needs = importlib.metadata.requires(name) or []
        waiting += [re.match(r"[\\w.-]+", n)[0] for n in needs if "extra ==" not in n]

class Alone(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.split(".")[0]
        hidden = top in files and top not in allowed
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path = [Alone if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
failed = 0
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    sys.modules["torch"].manual_seed(0)  # else each process draws its own
    failed += doctest.testmod(module, optionflags=options).failed
try:
    import pandas
except ModuleNotFoundError:
    sys.exit(failed)
"""


def test_the_core_runs_with_its_needs_alone():
    names = ["lipbook", *(f"lipbook.{p.stem}" for p in MODULES if p.stem != "__init__")]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *names], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_core_offers_what_it_says():
    public = {
        name
        for name, value in vars(lipbook).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert list(lipbook.__all__) == sorted(set(lipbook.__all__))
    assert public == {name for name in lipbook.__all__ if not name.startswith("_")}
    for name in lipbook.__all__:
        assert inspect.getdoc(getattr(lipbook, name)), f"{name} has no docstring"


@pytest.mark.parametrize("name", [name for name in lipbook.__all__ if name != "__version__"])
def test_a_public_name_has_an_example(name):
    """The suite runs it, as every doctest."""
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(getattr(lipbook, name)))
    assert any(name in example.source for example in examples)


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").exists()


def test_the_example_of_the_readme_is_true():
    readme = PACKAGE.parent / "README.md"
    if not readme.exists():
        pytest.skip("an installed package has no README beside it")
    failed, tried = doctest.testfile(str(readme), module_relative=False, encoding="utf-8")
    assert (failed, tried > 0) == (0, True)
