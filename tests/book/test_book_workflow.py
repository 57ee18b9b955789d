"""The graph: what runs again and what does not, and what is left after a failure or a kill."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import nbformat
import pytest
import yaml
from nbformat import v4

from workflow import __main__ as command_line
from workflow import (
    browser,
    environment,
    execute,
    graph,
    parameters,
    passed,
    project,
    refresh,
    site,
    step,
)
from workflow import stage as staging
from workflow.notebooks import faults, normalize, write
from workflow.project import BUILD, ROOT, WorkflowError, chapters

DECLARED = 'seed: int = 0\ndevice: str = "auto"\nscale: str = "default"'


@pytest.fixture(autouse=True)
def _no_setting_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("LIPBOOK_", "GITHUB_", "MAKE", "COV_CORE")):
            monkeypatch.delenv(name)


def write_chapter(path: Path, body: str, declared: str = DECLARED) -> None:
    """Write a notebook that imports nothing heavy: a title, parameters, and one cell."""
    cells = [
        v4.new_markdown_cell(f"# {path.stem}", id="title"),
        v4.new_code_cell(declared, id="parameters", metadata={"tags": ["parameters"]}),
        v4.new_code_cell(body, id="body"),
    ]
    write(normalize(v4.new_notebook(cells=cells)), path)


# --- parameters


@pytest.mark.parametrize(
    ("assignments", "values"),
    [
        ([], {}),
        (["seed=3"], {"seed": 3}),
        (["SEED=3", "Device=cpu", "SCALE=full"], {"seed": 3, "device": "cpu", "scale": "full"}),
        (["seed=1", "SEED=2"], {"seed": 2}),
    ],
)
def test_parameters_are_read_in_any_case(assignments, values):
    assert parameters.parse(assignments) == values


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("sed=3", r"unknown parameter 'sed' \(did you mean 'seed'\?\); .* know device, .*scale"),
        ("DEVISE=cpu", r"unknown parameter 'devise' \(did you mean 'device'\?\)"),
        ("epochs=3", r"unknown parameter 'epochs'; the chapters know"),
        ("=3", "unknown parameter ''"),
        ("seed", "a parameter is given as NAME=VALUE, got 'seed'"),
        ("seed=three", "parameter seed must be an integer, got 'three'"),
        ("seed=1.5", "parameter seed must be an integer, got '1.5'"),
        ("seed=-1", r"parameter seed must be at least 0 and below 2\*\*32, got -1"),
        ("device=gpu", "parameter device must be one of 'auto', 'cpu', 'cuda', got 'gpu'"),
        ("device=", "parameter device must be one of"),
        ("scale=huge", "parameter scale must be one of 'default', 'full', got 'huge'"),
    ],
)
def test_a_bad_parameter_is_refused(assignment, message):
    with pytest.raises(WorkflowError, match=message):
        parameters.parse([assignment])


def test_cuda_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        WorkflowError, match=r"parameter device is 'cuda', but torch .* no GPU here"
    ):
        parameters.parse(["device=cuda"])


def test_the_device_of_the_environment_reaches_the_graph(monkeypatch):
    monkeypatch.setenv("LIPBOOK_DEVICE", "cpu")
    assert parameters.parse(["seed=1"]) == {"seed": 1, "device": "cpu"}
    monkeypatch.setenv("LIPBOOK_DEVICE", "tpu")
    assert parameters.parse(["device=cpu"]) == {"device": "cpu"}
    with pytest.raises(WorkflowError, match="got 'tpu'"):
        parameters.parse([])


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the notebooks of another folder be the book's."""
    monkeypatch.setattr(project, "BOOK", tmp_path)
    return tmp_path


def test_a_chapter_gets_the_parameters_that_it_declares(book):
    write_chapter(book / "tiny.ipynb", "", declared="seed: int = 0\nwidth: float = 1.0")
    assert parameters.declared("tiny") == {"seed": "int", "width": "float"}
    given = {"seed": 3, "device": "cpu"}
    assert parameters.for_chapter("tiny", given) == {"seed": 3}
    assert parameters.for_chapter("tiny", {}) == {}


def test_a_folder_is_meant_from_where_the_person_stands(book, monkeypatch):
    write_chapter(book / "tiny.ipynb", "", declared='image_dir: str = ""')
    monkeypatch.setattr(parameters, "chapters", lambda: ["tiny"])
    (book / "faces").mkdir()
    monkeypatch.chdir(book)
    assert parameters.parse(["IMAGE_DIR=faces"]) == {"image_dir": str(book / "faces")}
    assert parameters.parse(["image_dir="]) == {"image_dir": ""}
    with pytest.raises(WorkflowError, match=r"image_dir must be a folder, and .*/cats is none"):
        parameters.parse(["image_dir=cats"])


# --- which stored notebooks need not pass nbval again


def nbval_says(*outcomes: str) -> passed.Passed:
    """Return what has listened to nbval on the two code cells of a chapter."""
    listening = passed.Passed()
    for number, outcome in enumerate(outcomes):
        for when in ("setup", "call", "teardown"):
            report = pytest.TestReport(
                nodeid=f"{project.BOOK / 'tiny.ipynb'}::Cell {number}",
                location=("", None, ""),
                keywords={},
                outcome=outcome if when == "call" else "passed",
                longrepr=None,
                when=when,
            )
            listening.pytest_runtest_logreport(report)
    listening.pytest_sessionfinish()
    return listening


def test_what_passed_is_kept_until_something_changes(book, monkeypatch):
    monkeypatch.setattr(passed, "chapters", lambda: ["tiny"])
    monkeypatch.setattr(passed, "_FOLDER", book / "passed")
    monkeypatch.setattr(passed, "ROOT", book)
    for name in passed._SETTINGS:
        (book / name).parent.mkdir(exist_ok=True)
        (book / name).write_text("")
    write_chapter(book / "tiny.ipynb", "print(1)")
    assert passed.Passed().unchanged() == []
    for outcomes in (["passed"], ["passed", "failed"], ["passed", "skipped"]):
        nbval_says(*outcomes)
        assert passed.Passed().unchanged() == []
    nbval_says("passed", "passed")
    assert passed.Passed().unchanged() == ["tiny"]
    changes = (
        lambda: write_chapter(book / "tiny.ipynb", "print(2)"),
        lambda: (book / "conftest.py").write_text("other = 1"),
        lambda: (book / "workflow" / "environment.py").write_text("other = 1"),
        lambda: monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default"),
    )
    for change in changes:
        change()
        assert passed.Passed().unchanged() == []
        nbval_says("passed", "passed")
        assert passed.Passed().unchanged() == ["tiny"]
    nbval_says("failed", "passed")
    assert passed.Passed().unchanged() == []


def test_a_stored_notebook_passes_again_with_another_module(book, monkeypatch):
    write_chapter(book / "tiny.ipynb", "from lipbook import matrix_norms")
    before = passed.key("tiny")
    monkeypatch.setattr(passed, "modules_used", lambda _: [])
    assert passed.key("tiny") != before


# --- what a chapter depends on


def used(body: str) -> set[str]:
    write_chapter(project.BOOK / "tiny.ipynb", body)
    return {path.stem for path in project.modules_used("tiny")}


@pytest.mark.parametrize(
    "body",
    [
        "from lipbook.notebook import claims",
        "import lipbook.notebook.claims as c",
        "from lipbook.notebook.claims import check, close",
        "def late():\n    from lipbook.notebook import claims",
    ],
)
def test_a_chapter_depends_on_what_it_imports_and_on_what_that_imports(book, body):
    modules = used(body)
    assert {"claims", "runtime"} <= modules
    assert "lipschitz" not in modules


def test_a_chapter_that_imports_nothing_of_the_package_depends_on_none_of_it(book):
    assert used("import lipbookish\nimport torch\nfrom . import lipbook") == set()


def test_a_public_name_of_the_package_stands_for_its_whole(book):
    assert "__init__" in used("from lipbook import some_function")


def test_a_cell_that_is_no_plain_python_hides_nothing_else(book):
    cells = [v4.new_code_cell(text) for text in ("%time 1", "from lipbook.notebook import figures")]
    nbformat.write(v4.new_notebook(cells=cells), book / "tiny.ipynb")
    assert "figures" in {path.stem for path in project.modules_used("tiny")}


def test_chapters_come_in_the_order_of_the_contents(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setattr(project, "BOOK", tmp_path / "book")
    (tmp_path / "book").mkdir()
    for name in ("b", "a", "unlisted"):
        (tmp_path / "book" / f"{name}.ipynb").touch()
    chapter = "- {caption: One, chapters: [{file: book/b, sections: [{file: book/a}]}]}"
    (tmp_path / "_toc.yml").write_text(f"root: book/index\nparts:\n{chapter}\n")
    assert project.chapters() == ["b", "a"]


def test_claims_of_a_chapter():
    entries = project.claims_of("03_power_iteration")
    assert [entry["id"] for entry in entries] == [f"PI{n}" for n in range(1, 8)]


def test_a_broken_notebook_is_named(tmp_path):
    path = tmp_path / "broken.ipynb"
    path.write_text("{")
    with pytest.raises(WorkflowError, match=r"broken\.ipynb is not a readable notebook"):
        project.read_notebook(path)


# --- the staged tree


def stage(executed: list[Path], target: Path, repository: str = "") -> None:
    claims = target.with_name("claims.json")
    claims.write_text("{}")
    staging.stage(executed, claims, target, repository)
    claims.unlink()


def test_the_staged_tree_has_the_fresh_notebooks(tmp_path):
    fresh = tmp_path / "executed" / "01_some.ipynb"
    fresh.parent.mkdir()
    fresh.write_text("fresh")
    target = tmp_path / "source"
    target.mkdir()
    (target / "left-over").touch()

    stage([fresh], target)
    files = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert (target / "book" / "01_some.ipynb").read_text() == "fresh"
    settings = {"_config.yml", "_toc.yml"}
    assert settings | {"book/index.md", "book/claims.yml", "book/claims.json"} <= files
    assert "left-over" not in files
    assert not [name for name in files if "__pycache__" in name]
    assert len([name for name in files if name.endswith(".ipynb")]) == 1
    config = yaml.safe_load((target / "_config.yml").read_text())
    assert config == yaml.safe_load((ROOT / "_config.yml").read_text())
    assert "repository" not in config


def test_a_stage_that_breaks_off_leaves_the_old_tree(tmp_path):
    target = tmp_path / "source"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(FileNotFoundError):
        stage([tmp_path / "missing.ipynb"], target)
    assert [path.name for path in target.iterdir()] == ["old"]
    (tmp_path / "claims.json").unlink()
    stage([], target)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_a_known_repository_switches_the_buttons_on(tmp_path, monkeypatch):
    monkeypatch.setenv("LIPBOOK_BRANCH", "trunk")
    stage([], tmp_path / "source", "https://example.org/a/book")
    config = yaml.safe_load((tmp_path / "source" / "_config.yml").read_text())
    assert config["repository"]["url"] == "https://example.org/a/book"
    assert config["repository"]["branch"] == "trunk"
    assert config["html"]["use_edit_page_button"]
    assert config["launch_buttons"]["binderhub_url"].startswith("https://")
    assert config["launch_buttons"]["thebe"] is False


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, ""),
        ({"GITHUB_REPOSITORY": "a/book"}, "https://github.com/a/book"),
        (
            {"GITHUB_REPOSITORY": "a/book", "GITHUB_SERVER_URL": "https://git.example"},
            "https://git.example/a/book",
        ),
        (
            {"GITHUB_REPOSITORY": "a/book", "LIPBOOK_REPOSITORY": "https://example.org/x/"},
            "https://example.org/x",
        ),
    ],
)
def test_the_address_of_the_repository(monkeypatch, environment, url):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert staging.repository_url() == url


# --- the commands


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["sed=3"], "unknown parameter 'sed'"),
        (["SEED=3", "DEVICE=gpu"], "parameter device must be"),
    ],
)
def test_a_bad_parameter_is_one_line_before_anything_runs(capsys, monkeypatch, given, line):
    monkeypatch.setattr(graph, "run", lambda *_, **__: pytest.fail("it ran"))
    assert command_line.main(["book", *given]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"lipbook: {line} .*\n", captured.err)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (WorkflowError("no such thing"), "no such thing"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "build/x"),
            "build/x: No space left on device: make room; the same command goes on from here",
        ),
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS), "build"),
            "build: Read-only file system: work in a copy that you may write to",
        ),
    ],
)
def test_a_mishap_is_one_line_of_a_step_and_of_a_command(
    capsys, monkeypatch, tmp_path, error, line
):
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setenv(project.FAILURES, str(tmp_path / "failures.txt"))
    monkeypatch.setattr(step, "_STEPS", {"some": broken})
    with pytest.raises(SystemExit):
        step.main(SimpleNamespace(rule="some"))
    assert (tmp_path / "failures.txt").read_text() == f"{line}\n"
    assert capsys.readouterr().err == ""

    monkeypatch.setattr(graph, "run", broken)
    assert command_line.main(["book"]) == 1
    assert capsys.readouterr().err == f"lipbook: {line}\n"


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "_weigh", interrupted)
    assert command_line.main(["weigh"]) == 130
    assert capsys.readouterr().err == "lipbook: stopped\n"


@pytest.mark.parametrize("cores", ["0", "-1", "many", "1.5", ""])
def test_a_number_of_cores_that_is_none_is_refused(capsys, cores):
    for command in ("book", "check", "refresh"):
        assert command_line.main([command, f"--cores={cores}"]) == 1
        line = f"lipbook: CORES must be a number from 1 to 100000, got {cores!r}\n"
        assert capsys.readouterr().err == line


@pytest.mark.parametrize("command", [["refresh", "06"], ["seeds", "06"]])
def test_a_chapter_that_is_none_is_refused(capsys, command):
    assert command_line.main(command) == 1
    assert capsys.readouterr().err.startswith("lipbook: no chapter '06'; there are 01_")


@pytest.mark.parametrize(
    ("own_run", "said"),
    [
        (False, r"^$"),
        (True, r"^1 verdicts differ from .* see file:.*html\n    T1: holds → undecided$"),
    ],
)
def test_a_run_of_ones_own_says_which_verdicts_differ(monkeypatch, tmp_path, own_run, said):
    words = [("T1", "holds", "undecided"), ("T2", "holds", "holds"), ("T3", "", "not tested")]
    claims = [dict(zip(("id", "stored", "verdict"), told, strict=True)) for told in words]
    (tmp_path / "claims.json").write_text(json.dumps({"own_run": own_run, "claims": claims}))
    monkeypatch.setattr(command_line, "BUILD", tmp_path)
    assert re.fullmatch(said, command_line._own_run().strip())


@pytest.mark.parametrize("port", ["70000", "http"])
def test_a_port_that_is_none_is_refused(capsys, port):
    assert command_line.main(["serve", "--port", port]) == 1
    assert capsys.readouterr().err.startswith("lipbook: PORT must be a number from 0 to 65535")


def test_a_port_that_is_taken_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(command_line, "SITE", tmp_path)
    (tmp_path / "index.html").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command_line.main(["serve", "--port", str(port)]) == 1
    line = rf"lipbook: port {port} cannot be had \(.+\): take another, make serve PORT=8123\n"
    assert re.fullmatch(line, capsys.readouterr().err)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the graph be of a folder with one page."""
    (tmp_path / "page.md").touch()
    monkeypatch.setattr(graph, "ROOT", tmp_path)
    monkeypatch.setattr(graph, "BUILD", tmp_path / "build")
    monkeypatch.setattr(graph, "inputs", lambda: [tmp_path / "page.md"])
    return tmp_path


def test_a_second_live_run_is_told_who_is_at_work(empty):
    (empty / "build").mkdir()
    (empty / "build" / "build.pid").write_text("4711")
    line = r"^another build is running here \(process 4711\); wait for it, or stop it$"
    with (
        filelock.FileLock(empty / "build" / "build.lock"),
        pytest.raises(WorkflowError, match=line),
    ):
        graph.run(["site"], {}, cores=1)


def test_a_file_from_the_future_is_named(empty):
    tomorrow = time.time() + 86_400
    os.utime(empty / "page.md", (tomorrow, tomorrow))
    with pytest.raises(WorkflowError, match=r"^page\.md is from the future.* `touch` the file$"):
        graph.run(["site"], {}, cores=1)
    assert not (empty / "build").exists()


def test_what_an_editor_leaves_is_no_page(book):
    (book / ".#page.md").symlink_to("someone@somewhere.4711:1")
    for name in ("page.md", "#page.md#", "page.md~", ".page.md.swp", "__pycache__/x.pyc"):
        (book / name).parent.mkdir(exist_ok=True)
        (book / name).touch()
    (book / "gone.md").symlink_to("nowhere")
    assert project.pages() == [book / "page.md"]


def test_every_commit_has_a_seed_that_was_seen_to_hold():
    assert parameters.other_seed() in parameters.OTHER_SEEDS
    assert 0 not in parameters.OTHER_SEEDS  # the stored one
    assert parameters.other_seed() == parameters.other_seed()


#: What a person's shell may have set, and what would come of it: another backend, another kernel,
#: a dry run, other words, no folder to write to.
HOSTILE = {
    "MPLBACKEND": "TkAgg",
    "MATPLOTLIBRC": "/nowhere/matplotlibrc",
    "SNAKEMAKE_PROFILE": "/nowhere/dry-run",
    "JUPYTER_PATH": "/nowhere",
    "JUPYTER_CONFIG_DIR": "/nowhere",
    "IPYTHONDIR": "/proc/nowhere",
    "XDG_CACHE_HOME": "/proc/nowhere",
    "PYTHONSTARTUP": "/nowhere.py",
    "PYTHONOPTIMIZE": "2",
    "LANGUAGE": "de",
    "LC_ALL": "tr_TR.ISO-8859-9",
    "HOME": "/proc/nowhere",
    "FORCE_COLOR": "1",
}


def test_nothing_of_the_persons_environment_reaches_in():
    given = HOSTILE | {"PATH": "/bin", "LIPBOOK_DEVICE": "cpu", "CI": "1", "HTTPS_PROXY": "x"}
    clean = environment.cleaned(given)
    assert [name for name, value in HOSTILE.items() if clean.get(name) == value] == []
    assert {name: clean[name] for name in ("PATH", "LIPBOOK_DEVICE", "CI", "HTTPS_PROXY")} == {
        name: given[name] for name in ("PATH", "LIPBOOK_DEVICE", "CI", "HTTPS_PROXY")
    }
    assert Path(clean["HOME"]).is_relative_to(BUILD)
    assert clean["GIT_CONFIG_GLOBAL"] == "/proc/nowhere/.gitconfig"
    assert environment.cleaned(clean) == clean


def test_these_tests_run_in_the_projects_environment():
    assert environment.cleaned(os.environ) == dict(os.environ)


# --- a chapter that breaks, and one that is refreshed


def test_a_kernel_that_dies_keeps_the_chapters_line(tmp_path):
    write_chapter(tmp_path / "tiny.ipynb", "import os\nos.kill(os.getpid(), 9)")
    log = tmp_path / "tiny.log"
    message = r"^tiny: code cell 2 \(body\) lost its kernel \(out of memory\?\)\n    log: "
    with pytest.raises(WorkflowError, match=message):
        execute.execute(tmp_path / "tiny.ipynb", tmp_path / "out.ipynb", log, {})
    assert not (tmp_path / "out.ipynb").exists()


@pytest.fixture
def refreshed(book, monkeypatch):
    """Refresh the chapter `tiny` without executing it."""
    monkeypatch.setattr(refresh, "ROOT", book)
    monkeypatch.setattr(refresh, "source", lambda name: book / f"{name}.ipynb")
    done = []

    def execute(notebook: Path, output: Path, *_: object) -> None:
        found = nbformat.read(notebook, as_version=4)
        for number, cell in enumerate((c for c in found.cells if c.cell_type == "code"), 1):
            cell.execution_count = number
        write(found, output)
        done.append(notebook)

    monkeypatch.setattr(refresh, "execute", execute)

    def run() -> list[Path]:
        refresh.refresh(book / "tiny.ipynb", book / "out" / "tiny.ipynb", book / "tiny.log")
        return done

    return run


def test_a_refresh_formats_before_it_executes(book, refreshed):
    write_chapter(book / "tiny.ipynb", "x = 1.50E3;  y=[x ,]")
    assert len(refreshed()) == 1
    refresh.store("tiny", book / "out" / "tiny.ipynb")
    stored = project.read_notebook(book / "tiny.ipynb")
    assert stored.cells[-1].source == "x = 1.50e3\ny = [\n    x,\n]"
    assert list(faults(stored)) == []
    assert not list(book.glob("*refresh-*"))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda n: n.cells[-1].update(id="3f2b1a90"), "cell id '3f2b1a90' says nothing"),
        (lambda n: n.cells[-1].update(source="x = 1\n" * 16), r"\(body\) has 16 lines"),
        (lambda n: n.cells[0].update(source="# It is 0.93"), "cell title types 0.93"),
        (lambda n: n.cells[-1].update(source="import math"), "F401"),
        (lambda n: n.cells[-1].update(source="1 +"), "Failed to parse"),
    ],
)
def test_a_refresh_refuses_what_the_form_forbids_before_it_executes(book, refreshed, change, fault):
    write_chapter(book / "tiny.ipynb", "x = 1")
    notebook = nbformat.read(book / "tiny.ipynb", as_version=4)
    change(notebook)
    nbformat.write(notebook, book / "tiny.ipynb")
    with pytest.raises(WorkflowError, match=fault):
        refreshed()
    assert not (book / "out").exists()


def test_a_chapter_that_is_edited_while_it_is_refreshed_keeps_the_edit(book, refreshed):
    write_chapter(book / "tiny.ipynb", "x = 1")
    refreshed()
    write_chapter(book / "tiny.ipynb", "x = 2")
    refresh.store("tiny", book / "out" / "tiny.ipynb")
    assert project.read_notebook(book / "tiny.ipynb").cells[-1].source == "x = 2"


def test_serving_needs_a_site(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(command_line, "SITE", tmp_path)
    assert command_line.main(["serve"]) == 1
    assert "run `make book` first" in capsys.readouterr().err


def test_a_browser_that_is_named_has_to_exist(monkeypatch):
    monkeypatch.setenv("CHROMIUM", sys.executable)
    assert browser.find() == sys.executable
    monkeypatch.setenv("CHROMIUM", "/no/such/browser")
    with pytest.raises(WorkflowError, match="CHROMIUM is '/no/such/browser', which is no program"):
        browser.find()


def test_a_warning_of_sphinx_is_shown(tmp_path, monkeypatch):
    staged = tmp_path / "staged"
    staged.mkdir()
    (staged / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    (staged / "_config.yml").write_text("title: Tiny\n")
    (staged / "index.md").write_text("# Tiny\n\nSee {ref}`nowhere`.\n")
    with pytest.raises(WorkflowError, match="WARNING: undefined label: 'nowhere'"):
        site.build_site(staged, tmp_path / "html", tmp_path / "site.log")
    assert not (tmp_path / "html").exists()


# --- the whole, in a copy of the project with two tiny chapters

#: What a person may call the folder of a clone.
FOLDER = 'it\'s a "new" (clone) {x} $y & [z]; %s'


class Copy:
    """A copy of the project, small enough to build in seconds."""

    #: Brings chapters up to date, without the site.
    EXECUTE = (
        "import json, sys; from workflow import graph;"
        "config = json.loads(sys.argv[1]); folder = config.get('folder', 'build');"
        "targets = [f'{folder}/executed/{c}.ipynb' for c in sys.argv[2:]];"
        "graph.run(targets, config, cores=1)"
    )

    #: Says for each line of parameters which chapters would run again. One process for them all:
    #: to import Snakemake takes longer than to ask it.
    PLAN = """
import contextlib, json, sys
from snakemake import cli
from snakemake.logging import logger
from workflow import graph

logger.addFilter(lambda record: getattr(record, "event", "") != "job_info" or planned.append(
    (record.rule_name, *dict(record.wildcards).values())) or True)
for line in sys.stdin:
    planned = []
    arguments = graph.arguments(["site"], {"parameters": json.loads(line)}, 1, "build", "none")
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
        cli.main(["--dry-run", *arguments])
    print(json.dumps(planned), flush=True)
"""

    #: The second chapter.
    TWO = "import os\nprint('seed', repr(seed), scale)\nprint(*map(os.environ.get, LEAKS))".replace(
        "LEAKS", "('MPLBACKEND', 'SNAKEMAKE_PROFILE', 'JUPYTER_PATH', 'LANGUAGE')"
    )

    def __init__(self, root: Path) -> None:
        self.root = root
        self.running: list[subprocess.Popen[str]] = []
        for name in ("Snakefile", "_config.yml", "requirements.lock"):
            shutil.copy(ROOT / name, root)
        for name in ("workflow", "lipbook", "studies", "book/_ext", "book/_static"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, root / name, ignore=ignored)
        for name in ("claims.yml", "equations.yml", "references.bib"):
            shutil.copy(ROOT / "book" / name, root / "book")
        (root / "book" / "index.md").write_text("# Two tiny chapters\n")
        toc = "format: jb-book\nroot: book/index\nchapters: [{file: book/one}, {file: book/two}]\n"
        (root / "_toc.yml").write_text(toc)
        (root / "lipbook" / "tiny.py").write_text("VALUE = 1\n")
        (root / "lipbook" / "__init__.py").write_text('"""Nothing heavy."""\n')
        (root / "book" / ".#index.md").symlink_to("someone@somewhere.4711:1")  # Emacs has it open
        self.write("one", "from lipbook import tiny\nprint(tiny.__file__, tiny.VALUE)")
        self.write("two", self.TWO)

    def write(self, chapter: str, body: str) -> None:
        write_chapter(self.root / "book" / f"{chapter}.ipynb", body)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start Python in this copy, in a process group of its own and a shell that is hostile."""
        caller = {k: v for k, v in os.environ.items() if not k.startswith(("LIPBOOK", "PYTEST"))}
        hostile = HOSTILE if arguments[0] == "-m" else {}
        # A shell that starts the tests by "&" has them ignore Ctrl-C, and so would what they start.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.root,
            env=caller | hostile | {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            stdout=subprocess.PIPE,
            text=True,
            **{"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE} | options,
        )
        self.running.append(process)
        return process

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=400)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def end(self) -> None:
        """Let nothing that was started here outlive its test, whatever became of it."""
        for process in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def wait_for(self, path: Path, process: subprocess.Popen[str]) -> None:
        patience = time.monotonic() + 300
        while not path.exists() and process.poll() is None and time.monotonic() < patience:
            time.sleep(0.05)
        assert path.exists()

    def book(self, *parameters: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "workflow", "book", "--cores", "1", *parameters)

    def output(self, chapter: str) -> str:
        notebook = nbformat.read(self.root / f"build/executed/{chapter}.ipynb", as_version=4)
        return notebook.cells[-1].outputs[0].text

    def times(self, pattern: str = "build/executed/*.ipynb") -> dict[str, int]:
        return {path.stem: path.stat().st_mtime_ns for path in self.root.glob(pattern)}

    def execute(self, *chapters: str, **config: object) -> set[str]:
        """Bring chapters up to date; return those that ran."""
        before = self.times()
        done = self.run("-c", self.EXECUTE, json.dumps(config), *chapters)
        assert done.returncode == 0, done.stderr
        after = self.times()
        return {name for name in after if after[name] != before.get(name)}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    """Build a copy of the project for the first time; each test leaves it up to date."""
    root = tmp_path_factory.mktemp("project") / FOLDER
    root.mkdir()
    copy = Copy(root)
    done = copy.book()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"The book is at {(copy.root / 'build/html/index.html').as_uri()}\n"
    yield copy
    copy.end()
    shutil.rmtree(copy.root)


@pytest.fixture(autouse=True)
def _nothing_survives(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "copy" in request.fixturenames:
        request.getfixturevalue("copy").end()


def test_the_first_build_makes_the_site(copy):
    pages = {path.name for path in (copy.root / "build/html/book").glob("*.html")}
    assert pages == {"index.html", "one.html", "two.html"}
    found = json.loads((copy.root / "build/claims.json").read_text())["claims"]
    assert {claim["verdict"] for claim in found} == {"not tested"}
    assert copy.output("one") == f"{copy.root}/lipbook/tiny.py 1\n"
    _, leaks = copy.output("two").splitlines()
    assert leaks == "module://matplotlib_inline.backend_inline None None None"
    assert "Executing notebook" in (copy.root / "build/logs/one.log").read_text()
    work_in_progress = [
        *copy.root.glob("build/**/*partial*"),
        *copy.root.glob("build/**/*.running*"),
    ]
    assert work_in_progress == []


def test_an_executed_notebook_is_in_normal_form(copy):
    notebook = nbformat.read(copy.root / "build/executed/two.ipynb", as_version=4)
    assert list(faults(notebook)) == []


def test_a_second_build_executes_nothing(copy):
    made = "build/[!h]*/**/*.*[!g]"  # but the home and the log of the run itself
    before = copy.times(made) | copy.times("build/html/**/*.*")
    assert len(before) > 50
    done = copy.book()
    assert done.returncode == 0
    assert done.stderr == ""
    assert copy.times(made) | copy.times("build/html/**/*.*") == before


@pytest.fixture(scope="module")
def planned(copy) -> Iterator[Callable[..., set[str]]]:
    """Ask which chapters would run again; any change also makes the site anew."""
    process = copy.start("-c", Copy.PLAN, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    copy.running.remove(process)  # it outlives one test, and ends with the last

    def ask(**parameters: object) -> set[str]:
        process.stdin.write(json.dumps(parameters) + "\n")
        process.stdin.flush()
        jobs = json.loads(process.stdout.readline())
        assert bool(jobs) == (["site"] in jobs)
        return {job[1] for job in jobs if job[0] == "execute"}

    yield ask
    process.stdin.close()
    process.wait()


ENTRY = "\n  - {id: T1, chapter: two, section: S, kind: theorem, says: S., verdict: holds}\n"


@pytest.mark.parametrize(
    ("file", "more", "chapters"),
    [
        ("book/two.ipynb", "", {"two"}),
        ("lipbook/tiny.py", "", {"one"}),  # which imports it
        ("lipbook/lipschitz.py", "", set()),  # which no chapter imports
        ("requirements.lock", "", {"one", "two"}),
        ("book/claims.yml", "", set()),
        ("book/claims.yml", ENTRY, {"two"}),  # whose claim it is
    ],
)
def test_a_change_runs_the_chapters_that_depend_on_it(copy, planned, file, more, chapters):
    path = copy.root / file
    before, text = path.stat(), path.read_text()
    path.write_text(text + more)
    assert planned() == chapters
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert planned() == set()


def test_other_parameters_run_the_chapters_that_declare_them(copy, planned):
    assert planned(seed=3) == {"one", "two"}
    assert planned(image_dir="/") == set()


def test_parameters_reach_a_chapter_as_they_were_given(copy):
    odd = """it's "a" {scale} & $HOME, \\n ü"""
    copy.execute("two", parameters={"seed": 3, "scale": odd}, folder="build/odd")
    cells = nbformat.read(copy.root / "build/odd/executed/two.ipynb", as_version=4).cells
    assert cells[-1].outputs[0].text.startswith(f"seed 3 {odd}\n")
    injected = [cell for cell in cells if "injected-parameters" in cell.metadata.get("tags", ())]
    assert [cell.id for cell in injected] == ["injected-parameters-2"]
    assert "remove-cell" in injected[0].metadata.tags


# From here on the second chapter is broken, in one way after the other; the last test mends it.


def test_a_failing_cell_is_named_once_and_leaves_no_half_output(copy):
    copy.write("two", "raise ValueError('no such thing')")
    done = copy.book()
    assert done.returncode == 1
    why = "lipbook: the build is not finished: two: code cell 2 (body) failed: ValueError: no such"
    assert done.stderr == (
        f"{why} thing\n    log: build/logs/two.log\n"
        "    the notebook up to there: build/logs/two.failed.ipynb\n"
    )
    assert "no such thing" in (copy.root / "build/logs/two.log").read_text()
    assert (copy.root / "build/logs/two.failed.ipynb").exists()
    assert copy.times().keys() == {"one"}
    assert not list(copy.root.glob("build/**/*running*ipynb"))


def test_a_full_disk_is_one_line(copy):
    """A limit on a file's size stands in for it: writing fails in the midst of a file too."""
    copy.write("two", "print('much ' * 100_000)")
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, 2**17))}
    done = copy.run("-m", "workflow", "book", "--cores", "1", **limit)
    assert done.returncode == 1
    assert re.fullmatch(
        r"lipbook: the build is not finished: .*File too large: .*\n", done.stderr
    ), done.stderr
    assert "two" not in copy.times()


WAIT = """
import os, pathlib, time
pathlib.Path({begun!r}).write_text(str(os.getpid()))
while not pathlib.Path({go_on!r}).exists(): time.sleep(0.05)
print("through")
"""


@pytest.fixture
def begun(copy) -> Iterator[subprocess.Popen[str]]:
    """A build whose second chapter waits for the file ``go-on``."""
    signs = {"begun": str(copy.root / "begun"), "go_on": str(copy.root / "go-on")}
    copy.write("two", WAIT.format(**signs))
    process = copy.start("-m", "workflow", "book", "--cores", "1")
    copy.wait_for(copy.root / "begun", process)
    yield process
    for sign in signs.values():
        Path(sign).unlink(missing_ok=True)


def ended(process: int) -> bool:
    """Whether a process ends within a minute."""
    patience = time.monotonic() + 60
    while time.monotonic() < patience:
        status = Path(f"/proc/{process}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_an_interrupted_build_says_one_line_and_leaves_no_kernel(copy, begun):
    kernel = int((copy.root / "begun").read_text())
    begun.send_signal(signal.SIGINT)
    out, err = begun.communicate(timeout=100)
    assert (begun.returncode, out) == (130, "")
    assert err == "\nlipbook: stopped; the same command goes on from here\n"
    assert ended(kernel)
    assert "two" not in copy.times()


def test_after_kill_9_the_same_command_finishes(copy, begun):
    os.killpg(begun.pid, signal.SIGKILL)
    begun.communicate()
    assert list((copy.root / ".snakemake/locks").iterdir()), "the kill left no lock: no test"
    assert "two" not in copy.times()
    assert ended(int((copy.root / "begun").read_text()))

    (copy.root / "go-on").touch()
    assert copy.execute("one", "two") == {"two"}
    assert copy.output("two") == "through\n"
    assert not (copy.root / "build/build.pid").exists()


def test_a_chapter_is_refreshed_in_place(copy):
    copy.write("two", "print( seed )")
    done = copy.run("-m", "workflow", "refresh", "two", "--cores", "1")
    assert done.returncode == 0, done.stderr
    stored = project.read_notebook(copy.root / "book/two.ipynb")
    assert stored.cells[-1].source == "print(seed)"
    assert stored.cells[-1].outputs[0].text == "0\n"
    assert list(faults(stored)) == []


STUDY = """
import pathlib

TOLERANCE = {"twice": 0}


def cells():
    return [{"seed": seed} for seed in range(2)]


def measure(seed):
    if any(pathlib.Path().glob("seed-*")) and not pathlib.Path("mended").exists():
        raise ValueError("only the first works")
    pathlib.Path(f"seed-{seed}").touch()
    return {"twice": 2 * seed}
"""


def test_a_profile_that_is_not_there():
    with pytest.raises(WorkflowError, match=r"^no profile 'moon'; there is slurm$"):
        graph.run([], {}, cores=1, profile="moon")


@pytest.mark.parametrize("arguments", [["rivals"], ["sn_images", "--check", "2"]])
def test_what_no_cluster_can_do_is_not_sent_to_one(arguments, capsys, monkeypatch):
    for place in ("studies._pool.run", "workflow.study.recheck"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("measured here"))
    assert command_line.main(["study", "--profile", "slurm", *arguments]) == 1
    assert "leave PROFILE out" in capsys.readouterr().err


def test_a_study_that_breaks_off_goes_on_where_it_was(copy):
    file = copy.root / "studies" / "doubling.py"
    file.write_text(STUDY)
    command = ("-m", "workflow", "study", "doubling", "--cores", "1")
    broken = copy.run(*command)
    assert broken.returncode == 1
    assert "lipbook: the study is not finished" in broken.stderr
    assert not (copy.root / "book/studies/doubling.csv").exists()

    before = copy.times("build/studies/doubling/*.pickle")
    (copy.root / "mended").touch()
    assert copy.run(*command).returncode == 0
    after = copy.times("build/studies/doubling/*.pickle")
    assert len(before) == 1
    assert {part: after[part] for part in before} == before
    table = (copy.root / "book/studies/doubling.csv").read_text()
    assert table == "seed,twice\n0,0\n1,2\n"
    code = json.loads((copy.root / "book/studies/doubling.json").read_text())["code"]
    assert set(code) == {"cells", "measure"}

    shutil.rmtree(copy.root / "book" / "studies")


def test_the_site_is_served(copy):
    process = copy.start("-m", "workflow", "serve", "--port", "0")
    address = re.search(r"http://\S+", process.stdout.readline()).group()
    with urllib.request.urlopen(address + "book/one.html", timeout=120) as reply:
        assert b"<title>one" in reply.read()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert re.fullmatch(r"(127.0.0.1 .*\n)*lipbook: stopped\n", err)


def test_the_real_book_has_chapters():
    assert chapters()
