"""The files around the book agree with each other, and with the public schemas."""

from __future__ import annotations

import ast
import importlib.metadata
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import lipbook
from workflow import __main__ as command_line
from workflow.project import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program of this environment; make's own variables stay outside."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    program = Path(sys.executable).with_name(command[0])
    found = str(program) if program.exists() else command[0]
    return subprocess.run(
        [found, *command[1:]],
        cwd=cwd,
        env=clean | {"PYTHONPATH": str(cwd)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


# --- one list of versions


def locked() -> dict[str, Version]:
    return {canonicalize_name(n): Version(v) for n, v in (line.split("==") for line in LOCK)}


def inexact(lines: list[str]) -> list[str]:
    """Return what is more or less than one public version: a range, ``+cpu``, an address."""
    exact = r"[A-Za-z0-9][\w.-]*==[0-9][0-9A-Za-z.]*"
    return [line for line in lines if not re.fullmatch(exact, line)]


def test_the_lock_has_exact_public_versions_only():
    assert inexact(LOCK) == []
    assert len(locked()) == len(LOCK), "a package stands there twice"


def test_what_the_lock_may_not_have_is_found():
    bad = [
        *("torch>=2.7", "torch==2.13.0+cpu", "torch", "torch==2.*", "-e .", ""),
        *("torch @ https://example.org/torch.whl", "torch==2.13.0 ; python_version > '3'"),
    ]
    assert inexact([*bad, "torch==2.13.0", "jupyter-book==1.0.4.post1"]) == bad


def requirements() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"]
    listed = [*PROJECT["project"]["dependencies"], *(r for extra in extras.values() for r in extra)]
    found = [Requirement(text) for text in listed]
    return [r for r in found if r.name != "lipbook"]  # an extra that contains another


@pytest.mark.parametrize("requirement", requirements(), ids=lambda r: r.name)
def test_the_lock_satisfies_what_the_package_asks_for(requirement):
    assert requirement.specifier.contains(locked()[canonicalize_name(requirement.name)])


def test_these_tests_run_in_the_locked_environment():
    installed = {
        canonicalize_name(d.metadata["Name"]): Version(Version(d.version).public)
        for d in importlib.metadata.distributions()
    }
    other = {n: str(installed.get(n)) for n, v in locked().items() if installed.get(n) != v}
    assert other == {}


def test_conda_and_binder_read_the_same_lock():
    *conda, pip = ENVIRONMENT["dependencies"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert {re.split("[=<>]", name)[0] for name in conda} == {"python", "pip", "make"}
    (python,) = (text.partition("=")[2] for text in conda if text.startswith("python"))
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(python)


# --- what others read by machine


def validates(schema: str, *paths: Path) -> bool:
    command = ["check-jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, paths)]
    return run(*command).returncode == 0


def test_the_citation_is_valid_and_of_this_version():
    path = ROOT / "CITATION.cff"
    assert validates("citation-file-format", path)
    citation = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert citation["version"] == lipbook.__version__
    assert " AND ".join(citation["license"]) == "MIT AND CC-BY-4.0"
    assert citation["references"][0]["url"] == "https://kexue.fm/archives/6051"


def test_an_invalid_citation_is_refused(tmp_path):
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (tmp_path / "CITATION.cff").write_text(text.replace("title:", "titel:", 1), encoding="utf-8")
    assert not validates("citation-file-format", tmp_path / "CITATION.cff")


def test_workflows_are_valid():
    assert {path.name for path in WORKFLOWS} == {"ci.yml", "pages.yml", "weekly.yml"}
    assert validates("github-workflows", *WORKFLOWS)


def test_an_invalid_workflow_is_refused(tmp_path):
    text = WORKFLOWS[0].read_text(encoding="utf-8").replace("runs-on:", "run-on:", 1)
    (tmp_path / "ci.yml").write_text(text, encoding="utf-8")
    assert not validates("github-workflows", tmp_path / "ci.yml")


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].items():
            yield f"{path.stem}-{name}", job


every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
every_job = pytest.mark.parametrize(
    "job", [pytest.param(job, id=name) for name, job in jobs()], scope="module"
)


@every_workflow
def test_a_workflow_may_read_and_no_more(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["permissions"] == {"contents": "read"}
    triggers = content[True]  # YAML 1.1 reads the key `on` as a truth value
    assert "pull_request_target" not in triggers


def test_only_publishing_asks_for_more():
    asked = {name: job["permissions"] for name, job in jobs() if "permissions" in job}
    assert asked == {
        "pages-deploy": {"pages": "write", "id-token": "write"},
        "weekly-tell": {"issues": "write"},
    }


@every_job
def test_actions_are_pinned_by_commit(job):
    for step in job["steps"]:
        assert re.search(r"@[0-9a-f]{40}$", step.get("uses", "@" + "0" * 40)), step
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        if step.get("uses", "").startswith("actions/setup-python@"):
            assert step["with"]["cache"] == "pip"


@every_job
def test_a_job_opens_the_doors_that_a_person_opens(job):
    assert job["timeout-minutes"] <= 120
    for step in job["steps"]:
        if command := step.get("run"):
            assert re.fullmatch(r"make ([a-z]+)( [A-Z]+=\w+)*", command.strip())[1] in TARGETS


def audited(folder: Path) -> subprocess.CompletedProcess[str]:
    return run("zizmor", "--offline", "--quiet", "--no-progress", str(folder))


def test_a_workflow_gives_nothing_away():
    assert audited(WORKFLOWS[0].parent).returncode == 0


def test_a_workflow_that_runs_what_a_stranger_wrote_is_refused(tmp_path):
    text = WORKFLOWS[0].read_text(encoding="utf-8")
    harmful = text.replace("make test", "echo ${{ github.event.pull_request.title }}")
    (tmp_path / "ci.yml").write_text(harmful, encoding="utf-8")
    assert "template-injection" in audited(tmp_path / "ci.yml").stdout


def test_the_core_is_tested_in_every_python_that_it_allows():
    versions = dict(jobs())["ci-core"]["strategy"]["matrix"]["python"]
    assert versions[0] == PROJECT["project"]["requires-python"].removeprefix(">=")
    assert versions == [f"3.{minor}" for minor in range(11, 14)]


def test_the_gpu_waits_for_a_hand():
    gpu = dict(jobs())["ci-gpu"]
    assert "workflow_dispatch" in gpu["if"]
    assert "self-hosted" in gpu["runs-on"]


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[-2:] == [
        "export COVERAGE=yes",
        "make test",
    ]
    steps = dict(jobs())["ci-test"]["steps"]
    assert [s["env"] for s in steps if s.get("run") == "make test"] == [{"COVERAGE": "yes"}]


# --- make


def test_make_alone_prints_every_door():
    alone = run("make", "--no-print-directory")
    assert alone.returncode == 0
    assert re.findall(r"^make ([\w-]+) +\S", alone.stdout, re.MULTILINE) == TARGETS


def test_every_door_is_named_to_readers_or_to_maintainers():
    files = (ROOT / name for name in ("README.md", "CONTRIBUTING.md"))
    told = "\n".join(file.read_text(encoding="utf-8") for file in files)
    assert [t for t in TARGETS if t != "help" and not re.search(rf"\bmake {t}\b", told)] == []


def test_make_hands_parameters_on_and_keeps_its_own():
    planned = run("make", "-n", "book", "SEED=3", "DEVICE=cpu", "CORES=2", "PYTHON=python3.11")
    (command,) = [line for line in planned.stdout.splitlines() if "-m workflow book" in line]
    _, _, arguments = command.partition("-m workflow book ")
    assert shlex.split(arguments) == ["--cores", "2", "--", "DEVICE=cpu", "SEED=3"]


@pytest.fixture
def doors(tmp_path) -> Path:
    """A folder with the Makefile, whose Python prints what it is given and its variables."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml", ".venv/ready"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nprintf "<%s>" "$@"\necho\nenv | sed -n "s/^PYTHON/leak &/p"\n')
    python.chmod(0o755)
    return tmp_path


def test_what_make_opens_is_a_door():
    opened = set(re.findall(r"-m workflow ([a-z-]+)", MAKEFILE))
    assert opened >= {"book", "check", "claims", "future", "gpu-record", "pdf"}
    for name in opened:
        with pytest.raises(SystemExit, match=r"^0$"):
            command_line.main([name, "--help"])


def test_a_value_reaches_the_program_as_it_was_given(doors):
    odd = """a (b) $x $(y) 'q' "d" #h ; w \\ & * é"""
    done = run("make", "book", f"IMAGE_DIR={odd}", cwd=doors)
    assert done.stdout.splitlines()[0].endswith(f"<--><IMAGE_DIR={odd}>")


@pytest.mark.parametrize(
    ("door", "name"),
    [
        ("claim", "ID"),
        ("flips", "ID"),
        ("seeds", "CHAPTERS"),
        ("seeds", "PROFILE"),
        ("refresh", "CHAPTER"),
        ("study", "STUDY"),
        ("serve", "PORT"),
        ("gpu-kit", "PYTHON_VERSION"),
        ("gpu-record", "FROM"),
        ("gpu", "OUT"),
        ("gpu", "MINUTES"),
    ],
)
def test_an_odd_value_is_one_argument(doors, door, name):
    odd = """a; (b) 'q' "d" & $x"""
    done = run("make", door, f"{name}={odd}", "PYTHON=no-such-python", cwd=doors)
    assert f"<{odd}>" in done.stdout, done.stderr
    assert "<a>" not in done.stdout


def test_what_the_shell_calls_the_same_is_not_meant(doors, monkeypatch):
    for name in ("PORT", "STUDY", "CHECK", "CHAPTER", "SEED", "CORES", "PYTHONHOME", "PYTHON"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("FROM", "3")
    assert run("make", "gpu-record", cwd=doors).stdout == "<-m><workflow><gpu-record><build/gpu>\n"
    assert run("make", "serve", cwd=doors).stdout == "<-m><workflow><serve>\n"
    refresh = run("make", "refresh", "CORES=2", cwd=doors).stdout
    assert refresh == "<-m><workflow><refresh><--cores><2><-->\n"
    assert "name the study" in run("make", "study", cwd=doors).stderr


def test_an_old_python_gets_one_line(tmp_path):
    """In a clone with no environment yet, make asks a Python that says no."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    old = tmp_path / "python3.10"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = run("make", "book", f"PYTHON={old}", cwd=tmp_path)
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_one_pytest_run_checks_everything():
    options = PROJECT["tool"]["pytest"]["ini_options"]
    assert set(options["testpaths"]) == {"tests", "lipbook", "studies", "book"}
    given = set(options["addopts"])
    assert {"--doctest-modules", "--nbval", "--nbval-current-env"} <= given
    assert "--dist=loadscope" in given  # nbval's cells have to stay together and in order


# --- the package


def test_imports_run_one_way():
    done = run("lint-imports", "--no-cache")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("_checks", "from lipbook import lipschitz"),
        ("matrix_norms", "from lipbook import power_iteration"),
        ("wgan", "from lipbook.lab import data"),
        ("lab/networks", "import studies"),
        ("astray", "VALUE = 1"),
    ],
)
def test_an_import_against_the_stream_is_refused(tmp_path, module, line):
    for room in ("lipbook", "studies"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / room, tmp_path / room, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert run("lint-imports", "--no-cache", cwd=tmp_path).returncode == 0
    with (tmp_path / "lipbook" / f"{module}.py").open("a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
    done = run("lint-imports", "--no-cache", cwd=tmp_path)
    assert done.returncode == 1
    assert module.replace("/", ".") in done.stdout


def test_a_wheel_is_the_package_and_the_catalogue():
    """Studies, tables and pages belong to a clone."""
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["lipbook"]
    assert wheel["force-include"] == {"book/claims.yml": "lipbook/claims.yml"}
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "lipbook/__init__.py"


# --- how long a function is

LONGEST = 40
#: To be shorter soon.
TOO_LONG = {
    "lipbook/lab/classification.py train_classifier",
    "lipbook/lab/training.py train_wgan",
    "lipbook/normalization.py spectral_normalize",
}


def code_lines(source: str) -> Iterator[tuple[str, int]]:
    """Return each function's name and lines of code: no docstring, comment or empty line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    spans = (range(t.start[0], t.end[0] + 1) for t in tokens if t.type not in layout)
    code = {line for span in spans for line in span}
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            first = function.body[0]
            text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            doc = range(first.lineno, first.end_lineno + 1) if text else ()
            lines = code & set(range(function.lineno, function.end_lineno + 1))
            yield function.name, len(lines - set(doc))


def test_lines_of_code_are_counted():
    source = """
    def f(x):
        '''Some text,
        over two lines.'''
        # a comment
        y = (x +
             1)

        return y
    """
    assert list(code_lines(textwrap.dedent(source))) == [("f", 4)]


@pytest.mark.parametrize("room", ["lipbook", "studies", "workflow"])
def test_no_function_is_long(room):
    long = {
        f"{path.relative_to(ROOT)} {name}"
        for path in (ROOT / room).rglob("*.py")
        for name, lines in code_lines(path.read_text(encoding="utf-8"))
        if lines > LONGEST
    }
    assert long <= TOO_LONG


# --- what is tracked


@pytest.fixture(scope="module")
def tracked() -> dict[str, bytes]:
    done = run("git", "ls-files", "-z")
    if done.returncode:
        pytest.skip("not a clone: nothing is tracked")
    paths = [name for name in done.stdout.split("\0") if (ROOT / name).is_file()]
    return {name: (ROOT / name).read_bytes() for name in paths}


def test_no_tracked_file_is_large(tracked):
    large = {name: len(content) for name, content in tracked.items() if len(content) > 1_500_000}
    assert large == {}


def test_tracked_files_are_text(tracked):
    """A figure lives in its notebook, as text; nothing else is binary."""
    for name, content in tracked.items():
        assert b"\0" not in content, name
        content.decode("utf-8")


def machine_paths(text: str) -> list[str]:
    return re.findall(r"(?<![\w.~}/-])/(?:work|home|root|Users|tmp)/[\w.-]+", text)


def test_no_tracked_file_names_a_place_on_one_machine(tracked):
    # The tests hold such paths on purpose, to see them found.
    texts = {n: c.decode("utf-8") for n, c in tracked.items() if not n.startswith("tests/")}
    found = {name: machine_paths(text) for name, text in texts.items()}
    assert {name: paths for name, paths in found.items() if paths} == {}


def test_a_place_on_one_machine_is_found():
    someone = "/".join(["", "home", "someone", "x"])
    assert machine_paths(f"see {someone} and '{someone}'") == [someone.removesuffix("/x")] * 2
    assert machine_paths("https://example.org/home/page and ./tmp/x and build/work/x") == []


def test_nothing_that_is_made_is_tracked(tracked):
    made = re.compile(r"(^|/)(build|_build|\.venv|\.snakemake|__pycache__|\.ipynb_checkpoints)/")
    assert [name for name in tracked if made.search(name)] == []


def test_links_are_asked_for_on_the_web_and_not_within_the_site():
    """`make links` took a door of the front page for an address, and failed on it every week."""
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    within = re.compile("|".join(settings["sphinx"]["config"]["linkcheck_ignore"]))
    front = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    doors = re.findall(r"^:link: (\S+\.html\S*)$", front, re.MULTILINE)
    assert all(map(within.match, [*doors, "02_matrix_norms.html#touch-ellipse"]))
    assert not within.match("https://arxiv.org/abs/1802.05957")
