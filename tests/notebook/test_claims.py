"""A check cannot be fooled, and every claim of the book is checked once."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from entries import CRITERION, ENTRY, FAILING
from nbclient import NotebookClient

from lipbook.notebook import catalogue, claims, runtime
from workflow.project import ROOT, chapters, read_notebook, source

# --- every claim is checked once


def calls_of_check(code: str) -> Iterator[tuple[str, set[str] | None]]:
    """Yield the id and the keywords of each call of `claims.check`; None for `**values`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "claims.check":
            names = {keyword.arg for keyword in node.keywords}
            yield ast.literal_eval(node.args[0]), None if None in names else names


def checks_in_sources() -> list[tuple[str, str, set[str] | None]]:
    """Return (chapter, claim id, names of its values) of each check that a chapter spells out."""
    return [
        (chapter, *call)
        for chapter in chapters()
        for cell in read_notebook(source(chapter)).cells
        if cell.cell_type == "code" and "claims.check(" in cell.source
        for call in calls_of_check(cell.source)
    ]


def those_tested() -> list[catalogue.Claim]:
    return [claim for claim in catalogue.catalogue().values() if claim.tested]


def test_every_tested_claim_is_checked_by_one_cell_of_its_chapter():
    """None is left out, none is checked twice, and what is not tested does not pretend."""
    found = sorted((claim, chapter) for chapter, claim, _ in checks_in_sources())
    assert found == sorted((claim.id, claim.chapter) for claim in those_tested())


def test_a_check_brings_the_values_of_its_criteria():
    for _, claim, names in checks_in_sources():
        known = {criterion.id for criterion in catalogue.find(claim).criteria}
        assert names in (None, known), claim


def stored_records() -> Iterator[tuple[nbformat.NotebookNode, dict[str, Any]]]:
    for chapter in chapters():
        for cell in read_notebook(source(chapter)).cells:
            for output in cell.get("outputs", ()):
                if record := output.get("metadata", {}).get(claims.RECORD_KEY):
                    yield output, record


def test_every_tested_claim_has_one_stored_record():
    assert sorted(r["id"] for _, r in stored_records()) == sorted(
        claim.id for claim in those_tested()
    )


def test_each_stored_check_shows_its_line():
    for output, record in stored_records():
        claim = catalogue.find(record["id"])
        assert output.data["text/plain"] == claims.verdict_line(claim, claim.verdict)


# --- check

SMALL, LARGE = [0.1, 0.2, 0.3], [2.1, 2.2, 2.3]
CRITERIA = [
    CRITERION,
    {**CRITERION, "id": "narrow", "role": "confines"},
    {**CRITERION, "id": "against", "role": "refutes", "kind": "computed"},
]
EXTRAS = {**FAILING, "decisive": "More."}


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put one entry in the place of the book's catalogue."""

    def use(**entry: Any) -> None:
        path = tmp_path / f"claims-{len(list(tmp_path.iterdir()))}.yml"
        content = {"claims": [{**ENTRY, **EXTRAS, **entry}]}
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        monkeypatch.setattr(catalogue, "catalogue_path", lambda: path)

    return use


@pytest.mark.parametrize(
    ("word", "kind", "values"),
    [
        ("holds", "theorem", {"size": SMALL, "narrow": LARGE, "against": LARGE}),
        ("holds with caveats", "practice", {"size": SMALL, "narrow": SMALL, "against": LARGE}),
        ("fails as printed", "practice", {"size": SMALL, "narrow": SMALL, "against": SMALL}),
        ("not reproduced here", "practice", {"size": LARGE, "narrow": SMALL, "against": LARGE}),
        ("undecided", "practice", {"size": [0.0, 1.0, 2.0], "narrow": SMALL, "against": LARGE}),
        ("answered", "open question", {"size": LARGE, "narrow": SMALL, "against": SMALL}),
    ],
)
def test_the_verdict_follows_and_is_held_against_the_catalogue(use, capsys, word, kind, values):
    use(kind=kind, verdict=word, criteria=CRITERIA)
    claims.check("T1", **values)
    line, *evidence = capsys.readouterr().out.splitlines()
    assert line == f"T1 · {word} · Small things are small."
    assert len(evidence) == len(values)  # outside a notebook the numbers follow

    for other in set(catalogue.VERDICTS) - {word, "not tested"}:
        if other == "answered":
            continue  # of a question only, which the next case is
        use(kind=kind, verdict=other, criteria=CRITERIA)
        with pytest.raises(claims.ClaimContradicted) as caught:
            claims.check("T1", **values)
        message = f"T1: claims.yml says {other!r}, its criteria speak for {word!r}, by\n"
        assert str(caught.value).startswith(message)
    assert capsys.readouterr().out == ""


def test_a_contradiction_names_the_criteria_that_did_it_with_their_numbers(use):
    use(criteria=CRITERIA)
    with pytest.raises(claims.ClaimContradicted) as caught:
        claims.check("T1", size=SMALL, narrow=LARGE, against=[0.5, 0.25])
    assert str(caught.value) == (
        "T1: claims.yml says 'holds', its criteria speak for 'fails as printed', by\n"
        "    refutes against (met): size: 0.25 to 0.5 < 1 (2 of 2)"
    )


def test_a_contradiction_is_an_assertion_that_failed():
    assert issubclass(claims.ClaimContradicted, AssertionError)


def test_a_claim_that_is_not_tested_cannot_be_checked(use):
    use(verdict="not tested", reason="Its study is running.")
    with pytest.raises(claims.ClaimContradicted, match=r"says 'not tested', .* speak for 'holds'"):
        claims.check("T1", size=SMALL)


def test_a_run_of_its_own_records_what_differs(use, capsys, monkeypatch):
    """With another seed the catalogue is no judge: the line says what came out."""
    use(criteria=CRITERIA)
    monkeypatch.setenv(claims.CONTRADICTIONS, "record")
    claims.check("T1", size=LARGE, narrow=LARGE, against=LARGE)
    assert capsys.readouterr().out.startswith("T1 · not reproduced here · ")


def test_an_unknown_claim_is_refused(use):
    use()
    with pytest.raises(KeyError, match=r"no claim 'T2' in claims\.yml; it has T1"):
        claims.check("T2", size=SMALL)


def test_a_criterion_may_have_any_name(use, capsys):
    use(criteria=[{**CRITERION, "id": "claim_id"}])
    claims.check("T1", claim_id=SMALL)
    assert "holds" in capsys.readouterr().out


def test_the_line_does_not_depend_on_the_numbers(use, capsysbinary):
    use(says="Größe ‖W‖₂ ≤ 1.")
    printed = []
    for seed, value in [(1, [0.25] * 3), (2, [0.1, 0.2, 0.15])]:
        runtime.start(seed=seed, device="cpu")
        claims.check("T1", size=value)
        printed.append(capsysbinary.readouterr().out.splitlines()[0])
    assert printed[0] == printed[1] == "T1 · holds · Größe ‖W‖₂ ≤ 1.".encode()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Return what `check` sends to a notebook."""
    sent: list[tuple] = []
    monkeypatch.setattr(claims, "get_ipython", lambda: "a shell")
    monkeypatch.setattr(
        claims, "glue", lambda key, text, display: sent.append((key, text, display))
    )
    monkeypatch.setattr(
        claims, "publish_display_data", lambda data, metadata: sent.append((data, metadata))
    )
    return sent


def test_in_a_notebook_the_record_goes_with_the_line(use, shown, capsys):
    wide = {**CRITERION, "id": "gelu_slope_2", "kind": "computed", "role": "confines"}
    use(criteria=[CRITERION, wide])
    claims.check("T1", size=[0.5] * 3, gelu_slope_2=[1.1, math.inf])

    *glued, (data, metadata) = shown
    assert glued == [("T1-size", "0.5", False), ("T1-gelu-slope-2", "1.1 to inf", False)]
    assert data == {"text/plain": "T1 · holds · Small things are small."}
    record = metadata[claims.RECORD_KEY]
    assert (record["id"], record["verdict"]) == ("T1", "holds")
    assert (record["seed"], record["device"], record["scale"]) == (None, None, None)
    size, slope = record["criteria"]
    assert size == {
        "id": "size",
        "text": "size: 0.5 < 1 (3 of 3)",
        "values": [0.5] * 3,
        "interval": [0.5, 0.5],
        "p": None,
        "state": "met",
        "seeds_held": 3,
    }
    assert (slope["values"], slope["state"], slope["seeds_held"]) == ([1.1, "inf"], "reversed", 0)
    assert capsys.readouterr().out == ""


TINY = """
from pathlib import Path
from lipbook.notebook import catalogue, claims, runtime
catalogue.catalogue_path = lambda: Path({path!r})
def measure(seed, value):
    runtime.start(seed=seed, device="cpu")
    claims.check("T1", size=value)
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """Return a tiny notebook with two checks, as a kernel leaves it."""
    folder = tmp_path_factory.mktemp("kernel")
    path = folder / "claims.yml"
    path.write_text(yaml.safe_dump({"claims": [ENTRY]}), encoding="utf-8")
    sources = [
        TINY.format(path=str(path)),
        "measure(1, [0.25] * 3)",
        "measure(2, [0.25, 0.26, 0.27])",
    ]
    cells = [
        nbformat.v4.new_markdown_cell("# Tiny", id="title"),
        *(
            nbformat.v4.new_code_cell(text, id=name)
            for name, text in zip(["set-up", "one", "two"], sources, strict=True)
        ),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={})
    client.execute(cwd=str(ROOT))
    file = folder / "tiny.ipynb"
    nbformat.write(notebook, file)
    return nbformat.read(file, as_version=4)


def test_records_come_back_from_a_real_kernel(executed):
    one, two = claims.records(executed)
    assert (one["id"], one["cell"], one["seed"], one["device"]) == ("T1", "one", 1, "cpu")
    assert (two["cell"], two["seed"], two["scale"]) == ("two", 2, "default")
    assert one["verdict"] == two["verdict"] == "holds"
    assert two["criteria"][0]["values"] == [0.25, 0.26, 0.27]


def test_a_real_kernel_shows_the_same_line_for_other_numbers(executed):
    lines = [
        output.data["text/plain"]
        for cell in executed.cells
        for output in cell.get("outputs", ())
        if claims.RECORD_KEY in output.metadata
    ]
    assert lines == ["T1 · holds · Small things are small."] * 2


def test_a_real_kernel_glues_the_numbers(executed):
    glued = [
        output.data["application/papermill.record/text/plain"]
        for cell in executed.cells
        for output in cell.get("outputs", ())
        if "scrapbook" in output.metadata
    ]
    assert glued == ["'0.25'", repr(claims.formatted([0.25, 0.26, 0.27]))]


def test_a_notebook_without_checks_has_no_records():
    bare = {"cells": [{"cell_type": "markdown"}, {"outputs": [{"metadata": {}}, {}]}]}
    assert list(claims.records(bare)) == []
