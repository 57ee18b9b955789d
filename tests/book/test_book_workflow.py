"""The graph: what runs again and what does not, and what is left after a failure or a kill."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import nbformat
import pytest
import yaml
from nbformat import v4

from workflow import __main__ as command_line
from workflow import browser, parameters, project, site, stage
from workflow.notebooks import faults, normalize, write
from workflow.project import ROOT, WorkflowError, chapters

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
    assert [path.stem for path in project.modules_used("tiny")] == ["figures"]


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


def test_the_staged_tree_has_the_fresh_notebooks(tmp_path):
    fresh = tmp_path / "executed" / "01_some.ipynb"
    fresh.parent.mkdir()
    fresh.write_text("fresh")
    target = tmp_path / "source"
    target.mkdir()
    (target / "left-over").touch()

    stage.stage([fresh], target)
    files = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert (target / "book" / "01_some.ipynb").read_text() == "fresh"
    assert {"_config.yml", "_toc.yml", "book/index.md", "book/claims.yml"} <= files
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
        stage.stage([tmp_path / "missing.ipynb"], target)
    assert [path.name for path in target.iterdir()] == ["old"]
    stage.stage([], target)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_a_known_repository_switches_the_buttons_on(tmp_path, monkeypatch):
    monkeypatch.setenv("LIPBOOK_BRANCH", "trunk")
    stage.stage([], tmp_path / "source", "https://example.org/a/book")
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
    assert stage.repository_url() == url


# --- the commands


def test_what_the_person_can_mend_is_one_line(capsys):
    assert command_line.main(["book", "sed=3"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"lipbook: unknown parameter 'sed' .*\n", captured.err)


def test_a_step_tells_the_build_that_runs_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv(project.FAILURES, str(tmp_path / "failures.txt"))
    assert command_line.main(["refresh", "99_unwritten"]) == 1
    assert (
        (tmp_path / "failures.txt").read_text().startswith("no chapter '99_unwritten'; there are")
    )
    assert capsys.readouterr().err == ""


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "_lint", interrupted)
    assert command_line.main(["lint"]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def test_serving_needs_a_site(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(command_line, "SITE", tmp_path)
    assert command_line.main(["serve"]) == 1
    assert "run `make book` first" in capsys.readouterr().err


def test_lint_names_chapter_and_cell(book, capsys, monkeypatch):
    monkeypatch.setattr(command_line, "chapters", lambda: ["tiny"])
    write_chapter(book / "tiny.ipynb", "1 / 0")
    assert command_line.main(["lint"]) == 1
    assert "tiny: execution counts are [None, None], not 1 to 2" in capsys.readouterr().err


def test_a_browser_that_is_named_has_to_exist(monkeypatch):
    monkeypatch.setenv("CHROMIUM", sys.executable)
    assert browser.find() == sys.executable
    monkeypatch.setenv("CHROMIUM", "/no/such/browser")
    with pytest.raises(WorkflowError, match="CHROMIUM is '/no/such/browser', which is no program"):
        browser.find()


def test_a_warning_of_sphinx_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(site, "BUILD", tmp_path)
    staged = tmp_path / "staged"
    staged.mkdir()
    (staged / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    (staged / "_config.yml").write_text("title: Tiny\n")
    (staged / "index.md").write_text("# Tiny\n\nSee {ref}`nowhere`.\n")
    with pytest.raises(WorkflowError, match="WARNING: undefined label: 'nowhere'"):
        site.build_site(staged, tmp_path / "html", tmp_path / "site.log")
    assert not (tmp_path / "html").exists()


# --- the whole, in a copy of the project with two tiny chapters


class Copy:
    """A copy of the project, small enough to build in seconds."""

    #: Brings the chapters up to date, without the site.
    EXECUTE = (
        "import json, sys; from workflow import graph; from workflow.project import chapters;"
        "targets = [f'build/executed/{c}.ipynb' for c in chapters()];"
        "graph.run(targets, {'parameters': json.loads(sys.argv[1])}, cores=1)"
    )

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("Snakefile", "_config.yml", "requirements.lock"):
            shutil.copy(ROOT / name, root)
        for name in ("workflow", "lipbook", "studies", "book/_ext", "book/_static"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, root / name, ignore=ignored)
        for name in ("claims.yml", "references.bib"):
            shutil.copy(ROOT / "book" / name, root / "book")
        (root / "book" / "index.md").write_text("# Two tiny chapters\n")
        toc = "format: jb-book\nroot: book/index\nchapters: [{file: book/one}, {file: book/two}]\n"
        (root / "_toc.yml").write_text(toc)
        (root / "lipbook" / "tiny.py").write_text("VALUE = 1\n")
        (root / "lipbook" / "__init__.py").write_text('"""Nothing heavy."""\n')
        self.write("one", "from lipbook import tiny\nprint(tiny.__file__, tiny.VALUE)")
        self.write("two", "print('seed', repr(seed))")

    def write(self, chapter: str, body: str) -> None:
        write_chapter(self.root / "book" / f"{chapter}.ipynb", body)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start Python in this copy, in a process group of its own."""
        caller = {k: v for k, v in os.environ.items() if not k.startswith(("LIPBOOK", "PYTEST"))}
        environment = caller | {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.root,
            env=environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def book(self, *parameters: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "workflow", "book", "--cores", "1", *parameters)

    def output(self, chapter: str) -> str:
        notebook = nbformat.read(self.root / f"build/executed/{chapter}.ipynb", as_version=4)
        return notebook.cells[-1].outputs[0].text

    def times(self, pattern: str = "build/executed/*.ipynb") -> dict[str, int]:
        return {path.stem: path.stat().st_mtime_ns for path in self.root.glob(pattern)}

    def executed_by(self, change: Callable[[], object], **parameters: object) -> set[str]:
        """Return the chapters that a change makes run again."""
        before = self.times()
        change()
        done = self.run("-c", self.EXECUTE, json.dumps(parameters))
        assert done.returncode == 0, done.stderr
        after = self.times()
        return {name for name in after if after[name] != before.get(name)}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    """Build a copy of the project for the first time; each test leaves it up to date."""
    copy = Copy(tmp_path_factory.mktemp("project"))
    done = copy.book()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"The book is at {(copy.root / 'build/html/index.html').as_uri()}\n"
    yield copy
    shutil.rmtree(copy.root)


def test_the_first_build_makes_the_site(copy):
    pages = {path.name for path in (copy.root / "build/html/book").glob("*.html")}
    assert pages == {"index.html", "one.html", "two.html"}
    assert json.loads((copy.root / "build/claims.json").read_text()) == {"one": [], "two": []}
    assert copy.output("one") == f"{copy.root}/lipbook/tiny.py 1\n"
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
    before = copy.times("build/**/*.*")
    done = copy.book()
    assert done.returncode == 0
    assert "Nothing to be done" in done.stderr
    assert copy.times("build/**/*.*") == before


def test_a_touched_chapter_runs_again_alone(copy):
    assert copy.executed_by((copy.root / "book/two.ipynb").touch) == {"two"}


def test_an_edited_module_runs_the_chapters_that_import_it(copy):
    module = copy.root / "lipbook/tiny.py"
    assert copy.executed_by(lambda: module.write_text("VALUE = 2\n")) == {"one"}
    assert copy.output("one").endswith("tiny.py 2\n")


def test_a_module_that_no_chapter_imports_runs_none(copy):
    assert copy.executed_by((copy.root / "lipbook/lipschitz.py").touch) == set()


def test_the_lock_runs_all_chapters(copy):
    assert copy.executed_by((copy.root / "requirements.lock").touch) == {"one", "two"}


def test_a_claim_runs_its_own_chapter(copy):
    catalogue = copy.root / "book/claims.yml"
    entry = "\n  - {id: T1, chapter: two, section: S, kind: theorem, says: S., verdict: holds}\n"
    text = catalogue.read_text()
    assert copy.executed_by(lambda: catalogue.write_text(text + entry)) == {"two"}
    assert copy.executed_by(lambda: catalogue.write_text(text)) == {"two"}


def test_parameters_reach_the_chapters_and_run_them_again(copy):
    assert copy.executed_by(lambda: None, seed=3) == {"one", "two"}
    assert copy.output("two") == "seed 3\n"
    cells = nbformat.read(copy.root / "build/executed/two.ipynb", as_version=4).cells
    injected = [cell for cell in cells if "injected-parameters" in cell.metadata.get("tags", ())]
    assert [cell.id for cell in injected] == ["injected-parameters-2"]
    assert "remove-cell" in injected[0].metadata.tags
    assert copy.executed_by(lambda: None) == {"one", "two"}
    assert copy.output("two") == "seed 0\n"


def test_a_bad_parameter_stops_before_anything_runs(copy):
    before = copy.times("build/**/*")
    done = copy.book("SEED=3", "DEVICE=gpu")
    assert done.returncode == 1
    assert re.fullmatch(r"lipbook: parameter device must be .*\n", done.stderr)
    assert copy.times("build/**/*") == before


def test_a_second_live_run_is_told_who_is_at_work(copy):
    (copy.root / "build/build.pid").write_text("4711")
    with filelock.FileLock(copy.root / "build/build.lock"):
        done = copy.book()
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "lipbook: another build is running here (process 4711); wait for it, or stop it\n"
    )


def test_a_failing_cell_is_named_once_and_leaves_no_half_output(copy):
    copy.write("two", "raise ValueError('no such thing')")
    done = copy.book()
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "no such thing" in line]
    assert line.endswith("two: code cell 2 (body) failed: ValueError: no such thing")
    assert line.startswith("lipbook: ")
    assert "    log: build/logs/two.log" in done.stderr
    assert "Traceback" not in done.stderr
    assert "no such thing" in (copy.root / "build/logs/two.log").read_text()
    assert (copy.root / "build/logs/two.failed.ipynb").exists()
    assert copy.times().keys() == {"one"}
    assert not list(copy.root.glob("build/**/*running*ipynb"))

    assert copy.executed_by(lambda: copy.write("two", "print('seed', repr(seed))")) == {"two"}
    assert copy.output("two") == "seed 0\n"


def test_after_kill_9_the_same_command_finishes(copy):
    started, go_on = copy.root / "started", copy.root / "go-on"
    wait = (
        "import pathlib, time\n"
        f"pathlib.Path({str(started)!r}).touch()\n"
        f"while not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.05)\n"
        "print('through')"
    )
    copy.write("two", wait)
    process = copy.start("-m", "workflow", "book", "--cores", "1")
    patience = time.monotonic() + 200
    while not started.exists() and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.05)
    assert started.exists()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert list((copy.root / ".snakemake/locks").iterdir()), "the kill left no lock: no test"
    assert "two" not in copy.times()

    go_on.touch()
    done = copy.book()
    assert done.returncode == 0, done.stderr
    assert copy.output("two") == "through\n"
    assert "through" in (copy.root / "build/html/book/two.html").read_text()
    assert not (copy.root / "build/build.pid").exists()


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

    file.write_text(STUDY.replace("2 * seed", "3 * seed"))
    assert copy.run(*command).returncode == 0
    assert (copy.root / "book/studies/doubling.csv").read_text() == "seed,twice\n0,0\n1,3\n"
    shutil.rmtree(copy.root / "book" / "studies")


def test_the_site_is_served(copy):
    process = copy.start("-u", "-m", "workflow", "serve", "--port", "0")
    try:
        address = re.search(r"http://\S+", process.stdout.readline()).group()
        with urllib.request.urlopen(address + "book/one.html", timeout=20) as reply:
            assert b"<title>one" in reply.read()
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.endswith("lipbook: stopped; the same command goes on from here\n")


def test_the_real_book_has_chapters():
    assert chapters()
