"""The stored notebooks: in form, whole, and with verdicts that another seed does not change."""

from __future__ import annotations

import copy
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat import NotebookNode, v4

from lipbook.notebook import claims
from workflow import execute
from workflow.notebooks import IGNORED, faults, normalize, story_faults, typed_numbers, write
from workflow.parameters import _TYPES, other_seed
from workflow.project import (
    CHECKED,
    ROOT,
    WorkflowError,
    chapters,
    is_appendix,
    read_notebook,
    source,
)

#: Without the appendices, which have neither claims nor exercises nor summary.
STORIES = [name for name in chapters() if not is_appendix(name)]
every_chapter = pytest.mark.parametrize("chapter", chapters())
every_story = pytest.mark.parametrize("chapter", STORIES)

PARAMETERS = {"seed": ("int", "0"), "device": ("str", '"auto"'), "scale": ("str", '"default"')}
#: Parameters that a chapter has besides: {chapter: {name: (type, default)}}.
MORE_PARAMETERS: dict[str, dict[str, tuple[str, str]]] = {
    "04a_more_on_regularization": {"image_dir": ("str", '""')},
    "06a_inside_or_after": {"faces_dir": ("str", '""')},
}


def stored(chapter: str) -> NotebookNode:
    return read_notebook(source(chapter))


def cells(notebook: NotebookNode, kind: str) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def prose(notebook: NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in cells(notebook, "markdown"))


# --- form


@every_chapter
def test_a_stored_notebook_has_no_faults(chapter):
    assert list(faults(stored(chapter))) == []


@every_chapter
def test_a_chapter_declares_its_parameters(chapter):
    found = papermill.inspect_notebook(str(source(chapter)))
    declared = {name: (p["inferred_type_name"], p["default"]) for name, p in found.items()}
    assert declared == PARAMETERS | MORE_PARAMETERS.get(chapter, {})
    assert {kind for kind, _ in declared.values()} <= _TYPES.keys()


@every_chapter
def test_a_chapter_starts_with_its_parameters(chapter):
    first, *others = cells(stored(chapter), "code")
    assert first.metadata.tags[0] == "parameters"
    assert not any("parameters" in cell.metadata.get("tags", ()) for cell in others)
    assert any("runtime.start(seed, device, scale" in cell.source for cell in others)


def headings(notebook: NotebookNode) -> list[str]:
    """Return the first-level headings; a line that starts with # in a code block is none."""
    outside = re.sub(r"^(`{3,}|~{3,}).*?^\1", "", prose(notebook), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^# .*", outside, flags=re.MULTILINE)


@every_chapter
def test_a_chapter_has_one_title_in_its_first_cell(chapter):
    notebook = stored(chapter)
    assert len(headings(notebook)) == 1
    assert notebook.cells[0].source.startswith("# ")


@every_chapter
def test_a_numbered_formula_has_no_double_backslash(chapter):
    """Sphinx puts such a formula into split, where MathJax allows no tag; \\cr breaks the line."""
    formulas = prose(stored(chapter)).split("$$")[1::2]
    assert [f for f in formulas if r"\tag" in f and "\\\\" in f] == []


def unsolved(text: str) -> set[str]:
    """Return the labels of exercises that have no solution behind a dropdown."""
    exercises = re.findall(r"\{exercise(?:-start)?\}[^\n]*\n:label: (\S+)", text)
    solutions = re.findall(r"\{solution(?:-start)?\} (\S+)\n:class: dropdown\b", text)
    return set(exercises) - set(solutions)


@every_story
def test_every_exercise_has_a_hidden_solution(chapter):
    text = prose(stored(chapter))
    assert "{exercise" in text
    assert unsolved(text) == set()
    assert text.count("{exercise-start}") == text.count("{exercise-end}")
    assert text.count("{solution-start}") == text.count("{solution-end}")


@every_story
def test_a_chapter_ends_with_what_came_of_it(chapter):
    heading = r"^## (What held and what did not|What you can do now)$"
    assert re.search(heading, prose(stored(chapter)), re.MULTILINE)


@pytest.mark.parametrize("chapter", [*STORIES, "06b_against_the_penalty", "06a_inside_or_after"])
def test_a_chapter_shows_little_code_and_each_cell_a_result(chapter):
    assert list(story_faults(stored(chapter))) == []


@every_chapter
def test_a_chapter_says_what_made_its_numbers(chapter):
    (cell,) = [c for c in cells(stored(chapter), "code") if "runtime.provenance(" in c.source]
    assert f'"{chapter}"' in cell.source
    assert IGNORED in cell.metadata.tags
    assert "chapter source" in cell.outputs[0].data["text/plain"]


# --- numbers in the prose


@pytest.mark.parametrize(
    "text",
    [
        "a constant of {glue:text}`LC4-slope`, in 2018, by (3) and 64 pixels",
        "with $\\lambda = 0.5$ and\n$$\nx = 0.25\n$$\n",
        "`radius = 0.25` and [here](https://kexue.fm/archives/10.648), torch 2.7, arXiv 1802.05957",
        "```python\nx = 0.5\n```\nAn 8×8 image, 150,528 numbers. Then 3. And 4.",
        "```{math}\nx = 0.5\n```\n``x = 0.5`` and `a\n0.5`",
    ],
)
def test_what_is_not_measured_may_be_typed(text):
    assert typed_numbers(text) == []


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("The share is 0.93.", ["0.93"]),
        ("It rose by 12 % and from 1.05 to 1.10, $x$ aside", ["12", "1.05", "1.10"]),
        ("```{note}\nabout 2.5 times\n```", ["2.5"]),
    ],
)
def test_a_measured_number_that_is_typed_is_found(text, numbers):
    assert typed_numbers(text) == numbers


# --- another seed: `make test` builds the book at one that the commit decides


@pytest.fixture(scope="module")
def rerun() -> Callable[[str], NotebookNode]:
    """Return what a chapter has become at another seed, in another folder."""

    def rerun(chapter: str) -> NotebookNode:
        path = CHECKED / "executed" / f"{chapter}.ipynb"
        if not path.exists():
            pytest.fail("there is no book at another seed: run `python -m workflow check` first")
        return read_notebook(path)

    return rerun


def test_plain_papermill_runs_a_chapter_in_any_folder(tmp_path):
    """As the README says; what a chapter needs is installed with the package."""
    body = "from lipbook.notebook import claims, runtime\nrun = runtime.start(seed)\n"
    body += "import studies\nrun.seed, len(claims.__all__) > 0, len(studies.names()) > 0"
    given = v4.new_code_cell("seed = 0", metadata={"tags": ["parameters"]})
    notebook = v4.new_notebook(cells=[given, v4.new_code_cell(body)])
    write(normalize(notebook), tmp_path / "a.ipynb")
    command = [sys.executable, "-m", "papermill", "a.ipynb", "out.ipynb", "-p", "seed", "3"]
    command += ["--no-progress-bar"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (output,) = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs
    assert output.data["text/plain"] == "(3, True, True)"


def lines(notebook: NotebookNode) -> list[tuple[str, str]]:
    """Return the line of each check, with its cell."""
    return [
        (cell.id, output.data["text/plain"])
        for cell in cells(notebook, "code")
        for output in cell.outputs
        if claims.RECORD_KEY in output.get("metadata", {})
    ]


def kinds(notebook: NotebookNode) -> dict[str, list[tuple[str, ...]]]:
    """Return, for each code cell, what its outputs are, whatever they say.

    nbval is silent about images, and about cells that it ignores: here a missing one shows.
    """
    return {cell.id: _kinds(cell) for cell in cells(notebook, "code") if not _injected(cell)}


def _kinds(cell: NotebookNode) -> list[tuple[str, ...]]:
    found = [(o.output_type, o.get("name", ""), *sorted(o.get("data", ()))) for o in cell.outputs]
    # A stream may arrive in one piece or in several.
    return [kind for kind, group in itertools.groupby(found) if kind[0] == "stream"] + [
        kind for kind in found if kind[0] != "stream"
    ]


def _injected(cell: NotebookNode) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", ())


@every_chapter
def test_another_seed_gives_the_same_verdicts(chapter, rerun):
    assert lines(rerun(chapter)) == lines(stored(chapter))
    assert {record["seed"] for record in claims.records(rerun(chapter))} <= {other_seed()}


@every_chapter
def test_another_run_has_the_same_cells_with_outputs_of_the_same_kinds(chapter, rerun):
    assert kinds(rerun(chapter)) == kinds(stored(chapter))


# --- negative controls: each breakage turns its check red

TRACE = "/".join(["", "home", "someone", "book.py"])
FIGURE = {"image": {"alt": "A line that rises from left to right."}, "figure": {"caption": "A."}}
PNG = v4.new_output("display_data", {"image/png": "iVBORw0KGgo="})


def code(cell_id: str, text: str, *outputs: NotebookNode, count: int, **metadata) -> NotebookNode:
    return v4.new_code_cell(
        text, id=cell_id, outputs=list(outputs), execution_count=count, metadata=metadata
    )


@pytest.fixture
def healthy() -> NotebookNode:
    said = v4.new_output("stream", text="said\n")
    notebook = v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# Title", id="title"),
            code("say", "print('said')", said, count=1),
            code("draw", "draw()", PNG, count=2, mystnb=FIGURE),
            *(code(f"step-{n}", "pass", count=n) for n in range(3, 6)),
            code("made-by", "provenance()", count=6, tags=[IGNORED]),
        ]
    )
    return normalize(notebook)


def test_a_healthy_notebook_has_no_faults(healthy):
    assert list(faults(healthy)) == []


def _clear(notebook: NotebookNode) -> None:
    for cell in cells(notebook, "code"):
        cell.outputs, cell.execution_count = [], None


def _output(output: NotebookNode) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells[1].outputs.append(output)


BREAKAGES: dict[str, tuple[Callable[[NotebookNode], object], str]] = {
    "a cleared notebook": (_clear, r"execution counts are \[None, .*refresh it"),
    "run out of order": (
        lambda n: n.cells[1].update(execution_count=9),
        r"execution counts are \[9, 2",
    ),
    "one cell not run": (
        lambda n: n.cells[-1].update(execution_count=None),
        r"execution counts are .*None\], not 1 to 6",
    ),
    "a random id": (lambda n: n.cells[1].update(id="3f2b1a90"), "cell id '3f2b1a90' says nothing"),
    "a random long id": (
        lambda n: n.cells[0].update(id="deadbeef-0a1b-4c2d"),
        "cell id 'deadbeef-0a1b-4c2d' says nothing",
    ),
    "an id in capitals": (lambda n: n.cells[1].update(id="Say"), "cell id 'Say' says nothing"),
    "a path": (_output(v4.new_output("stream", text=f"in {TRACE}")), "shows a path of one machine"),
    "a path in a result": (
        _output(v4.new_output("execute_result", {"text/plain": f"'{TRACE}'"})),
        "shows a path of one machine",
    ),
    "an address": (
        _output(v4.new_output("execute_result", {"text/plain": "<f at 0x7f00deadbeef>"})),
        "shows a memory address",
    ),
    "stderr": (_output(v4.new_output("stream", name="stderr", text="w")), "wrote to stderr"),
    "an error": (
        _output(v4.new_output("error", ename="ValueError", evalue="", traceback=[])),
        "stored an error: ValueError",
    ),
    "no alt text": (lambda n: n.cells[2].metadata.mystnb.pop("image"), "without an alt text"),
    "a short alt text": (
        lambda n: n.cells[2].metadata.mystnb.image.update(alt="Figure 1."),
        "without an alt text",
    ),
    "no caption": (lambda n: n.cells[2].metadata.mystnb.pop("figure"), "without a caption"),
    "no settings": (lambda n: n.cells[2].metadata.clear(), "without an alt text"),
    "a long cell": (lambda n: n.cells[1].update(source="x\n" * 16), "has 16 lines"),
    "long cells": (
        lambda n: [cell.update(source="x\n" * 7) for cell in cells(n, "code")],
        "half of its visible code cells have over 6 lines",
    ),
    "a typed number": (
        lambda n: n.cells[0].update(source="# Title\n\nIt is 0.93."),
        "cell title types 0.93",
    ),
    "a large file": (
        _output(v4.new_output("stream", text="much " * 310_000)),
        "more than 1,500,000: fewer or smaller figures",
    ),
    "too much ignored": (
        lambda n: n.cells[1].metadata.update(tags=[IGNORED]),
        "2 of 6 code cells are not compared",
    ),
    "papermill's metadata": (
        lambda n: n.metadata.update(papermill={"duration": 1.5}),
        "metadata of one run or one machine",
    ),
    "a time": (
        lambda n: n.cells[1].metadata.update(execution={"iopub.status.busy": "2026"}),
        "metadata of one run or one machine",
    ),
    "another kernel": (
        lambda n: n.metadata.kernelspec.update(name="my-venv"),
        "metadata of one run or one machine",
    ),
}


@pytest.mark.parametrize(("breakage", "message"), BREAKAGES.values(), ids=BREAKAGES)
def test_a_broken_notebook_has_that_fault(healthy, breakage, message):
    breakage(healthy)
    found = list(faults(healthy))
    assert any(re.search(message, fault) for fault in found), found


def shown(cell_id: str, *outputs: NotebookNode, lines: int = 1, **metadata) -> NotebookNode:
    return code(cell_id, "x = 1\n" * lines, *outputs, count=1, **metadata)


RESULT = v4.new_output("execute_result", {"text/plain": "0.97"})
TRUTH = v4.new_output("execute_result", {"text/plain": "(True, True)"})
UNTOLD = {
    "shows nothing": ([shown("nothing")], "cell nothing shows nothing that"),
    "shows that something is true": ([shown("truth", TRUTH)], "cell truth shows nothing that"),
    "three in a row": ([shown(f"step-{n}", RESULT) for n in range(3)], "step-2 is the third"),
    "three in a row but for a folded one": (
        [
            *(shown(f"step-{n}", RESULT) for n in range(2)),
            shown("fold", tags=["hide-input"]),
            shown("last", RESULT),
        ],
        "last is the third",
    ),
    "too much code": ([shown("much", RESULT, lines=251)], "shows 1 code cells with 251 lines"),
}


@pytest.mark.parametrize(("told", "message"), UNTOLD.values(), ids=UNTOLD)
def test_what_a_reader_would_not_follow_is_found(told, message):
    assert any(message in fault for fault in story_faults(v4.new_notebook(cells=told)))


def test_prose_between_cells_and_folded_code_are_no_fault():
    told = [
        shown("a", RESULT),
        shown("b", PNG),
        v4.new_markdown_cell("It says."),
        shown("c", RESULT),
    ]
    assert list(story_faults(v4.new_notebook(cells=[*told, shown("d", tags=["hide-input"])]))) == []


def test_normalizing_mends_what_a_run_leaves(healthy):
    worn = copy.deepcopy(healthy)
    worn.metadata["papermill"] = {"duration": 1.5}
    worn.cells[1].metadata |= {"execution": {"shell.execute_reply": "2026"}, "tags": []}
    assert normalize(worn) == healthy


def test_a_notebook_is_written_whole(tmp_path, healthy, monkeypatch):
    path = tmp_path / "deep" / "tiny.ipynb"
    write(healthy, path)
    assert nbformat.read(path, as_version=4) == healthy

    def break_off(notebook: NotebookNode, partial: Path) -> None:
        partial.write_text("{")
        raise OSError("disk full")

    monkeypatch.setattr(nbformat, "write", break_off)
    with pytest.raises(OSError, match="disk full"):
        write(healthy, path)
    assert nbformat.read(path, as_version=4) == healthy


def test_a_missing_output_shows_in_the_kinds(healthy):
    for name, broken in (
        ("say", []),
        ("draw", [v4.new_output("display_data", {"text/plain": ""})]),
    ):
        other = copy.deepcopy(healthy)
        next(cell for cell in other.cells if cell.id == name).outputs = broken
        assert kinds(other) != kinds(healthy)


def test_a_second_title_is_found(healthy):
    healthy.cells[0].source = "# Title\n\n```python\n# no title\n```\n"
    assert headings(healthy) == ["# Title"]
    healthy.cells.append(v4.new_markdown_cell("# Another"))
    assert headings(healthy) == ["# Title", "# Another"]


def test_an_exercise_without_a_solution_is_found():
    exercise = "```{exercise-start} One\n:label: ex-one\n```\n"
    solution = "```{solution-start} ex-one\n:class: dropdown\n```\n"
    assert unsolved(exercise + solution) == set()
    assert unsolved(exercise) == {"ex-one"}
    assert unsolved(exercise + solution.replace("dropdown", "tip")) == {"ex-one"}


# What nbval compares, in the notebook whose outputs the checks below change: a line that is
# always the same, and a number glued into the prose, which never is.
GLUE = """
import os
from IPython.display import publish_display_data
data = {"application/papermill.record/text/plain": os.urandom(4).hex()}
publish_display_data(data, {"scrapbook": {"name": "size"}})
"""


def compared() -> NotebookNode:
    said = v4.new_output("stream", text="said\n")
    glued = {"application/papermill.record/text/plain": "another number"}
    named = {"scrapbook": {"name": "size"}}
    return normalize(
        v4.new_notebook(
            cells=[
                code("say", "print('said')", said, count=1),
                code("glue", GLUE, v4.new_output("display_data", glued, metadata=named), count=2),
            ]
        )
    )


def nbval(folder: Path, *options: str) -> tuple[int, str]:
    """Run nbval as `make test` does, on other notebooks."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", "-rA"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "--no-cov"]
    command += ["-p", "no:cacheprovider", *options, str(folder)]
    done = subprocess.run(
        command,
        cwd=folder,
        env=keep | {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout


#: What nbval says of each cell: of what is the same, and of four that are broken.
VERDICTS = {
    "sound": "PASSED",
    "glued": "PASSED",  # another number
    "rounded": "PASSED",  # the last digit of a decimal number
    "moved": "FAILED",  # more than that
    "changed": "FAILED",
    "emptied": "FAILED",  # its execution count stays
    "never-run": "PASSED",  # which is why `faults` asks for execution counts
}


def test_nbval_refuses_what_is_otherwise(tmp_path):
    sound, glued = compared().cells
    cells = dict(
        zip(VERDICTS, (sound, glued, *(copy.deepcopy(sound) for _ in "12345")), strict=True)
    )
    for name, cell in cells.items():
        cell.id = name
    for name, stored in (("rounded", "0.55"), ("moved", "0.58")):
        cells[name].source = "print('said 0.56')"
        cells[name].outputs[0].text = f"said {stored}\n"
    cells["changed"].outputs[0].text = "said otherwise\n"
    cells["emptied"].outputs = []
    cells["never-run"].update(outputs=[], execution_count=None)
    write(normalize(v4.new_notebook(cells=list(cells.values()))), tmp_path / "tiny.ipynb")
    _, text = nbval(tmp_path, "-p", "conftest")
    found = re.findall(r"^(PASSED|FAILED) (?:\S*/)?tiny\.ipynb::Cell (\d)", text, re.MULTILINE)
    said = {list(VERDICTS)[int(number)]: verdict for verdict, number in found}
    assert said == VERDICTS
    assert re.search(r"StaleNumber: size another number, here [0-9a-f]{8}\n", text)
    assert text.count("StaleNumber: ") == 1
    assert text.count("LastDigit: ") == 1


def test_it_is_our_hook_that_lets_the_glued_number_pass(tmp_path):
    write(compared(), tmp_path / "sound.ipynb")
    status, text = nbval(tmp_path)
    assert status == 1
    assert "1 failed, 1 passed" in text


def test_a_broken_claim_stops_the_chapter(tmp_path):
    check = 'claims.check("PI1", eigenvalue=0.1, eigenvector=0, random_stretch=1)'
    cell = v4.new_code_cell(f"from lipbook.notebook import claims\n{check}", id="check-pi1")
    path = tmp_path / "tiny.ipynb"
    write(normalize(v4.new_notebook(cells=[cell])), path)
    output, log = tmp_path / "executed" / "tiny.ipynb", tmp_path / "tiny.log"
    message = r"\(check-pi1\) failed: ClaimContradicted: PI1: claims.yml says 'holds'"
    with pytest.raises(WorkflowError, match=message):
        execute.execute(path, output, log, {})
    assert not output.exists()
    assert "ClaimContradicted" in log.read_text()
