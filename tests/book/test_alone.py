"""What a page's button offers: a notebook that runs away from the book."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from workflow.alone import alone
from workflow.project import CHECKED, ROOT, chapters


def notebook(*sources: str) -> str:
    cells = [nbformat.v4.new_code_cell(source, execution_count=1) for source in sources]
    cells.insert(0, nbformat.v4.new_markdown_cell("# σ"))
    return nbformat.writes(nbformat.v4.new_notebook(cells=cells))


def run(cell: str, folder: Path, *paths: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a cell as a Python without site-packages would, with some folders on its path."""
    clean = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path[:0] = {[*map(str, paths)]}\n{cell}",
    ]
    return subprocess.run(
        command, cwd=folder, env=clean | environ, capture_output=True, text=True, check=False
    )


def fetching(source: str, repository: str = "") -> str:
    return json.loads(alone(notebook(source), repository))["cells"][1]["source"]


def test_it_begins_afresh():
    prose, fetch, code = json.loads(alone(notebook("import lipbook\n1")))["cells"]
    assert "".join(prose["source"]) == "# σ"
    assert "lipbook" in fetch["source"]
    assert fetch["metadata"]["jupyter"]["source_hidden"]
    assert (code["outputs"], code["execution_count"]) == ([], None)


def test_a_notebook_that_needs_nothing_fetches_nothing():
    assert len(json.loads(alone(notebook("1")))["cells"]) == 2


def test_where_all_is_there_nothing_happens(tmp_path):
    for name in ("lipbook", "studies"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    done = run(
        fetching("import lipbook, studies"), tmp_path, tmp_path, LIPBOOK_REPOSITORY="/nowhere"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lipbook", "studies"]


def test_a_missing_study_without_an_address_says_what_to_do(tmp_path):
    (tmp_path / "lipbook").mkdir()
    done = run(fetching("import lipbook, studies"), tmp_path, tmp_path)
    assert "set LIPBOOK_REPOSITORY to the address" in done.stderr
    assert run(fetching("import lipbook"), tmp_path, tmp_path).returncode == 0


def test_what_is_missing_is_fetched(tmp_path):
    """From a repository as small as can be, whose installation is not what is tested here."""
    origin = tmp_path / "a repository"
    for name in ("lipbook", "studies"):
        (origin / name).mkdir(parents=True)
        (origin / name / "__init__.py").write_text("told = 'the clone'")
    git = ["git", "-C", origin, "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    fake = tmp_path / "fake"
    (fake / "pip").mkdir(parents=True)
    (fake / "pip" / "__main__.py").write_text("")
    cell = fetching("import lipbook, studies", origin.as_uri())
    cell = cell.replace(
        '[sys.executable, "-m", "pip"', f'[sys.executable, "{fake}/pip/__main__.py"'
    )
    here = tmp_path / "elsewhere"
    here.mkdir()
    done = run(f"{cell}\nimport studies; print(studies.told)", here)
    assert done.stdout == "the clone\n", done.stderr
    assert run(f"{cell}\nprint(1)", here).returncode == 0  # once more, after a restart


@pytest.mark.parametrize("chapter", chapters())
def test_every_button_s_notebook_is_such_a_one(chapter):
    path = CHECKED / "html" / "_sources" / "book" / f"{chapter}.ipynb"
    if not path.exists():
        pytest.fail("there is no site: run `python -m workflow check` first")
    first = next(c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
    assert first.id == "fetch-the-book"
    assert ('"studies"' in first.source) == ("studies" in (ROOT / "book" / path.name).read_text())
