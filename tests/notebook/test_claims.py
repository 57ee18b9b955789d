"""The catalogue is whole, a check cannot be fooled, and every claim is checked once."""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from nbclient import NotebookClient
from scipy import stats

from lipbook.notebook import claims, runtime
from workflow.project import ROOT, chapters, read_notebook, source

IDS = [
    *("LC1", "LC2a", "LC2b", "LC3", "LC4", "LC5", "LC6"),
    *("MN1", "MN2", "MN3", "MN4a", "MN4b"),
    *("PI1", "PI2", "PI3", "PI4", "PI5", "PI6", "PI7"),
    *("SR1", "SR2", "SR3", "SR4"),
    *("WG1", "WG2", "WG3", "WG4", "WG5", "WG6", "WG7", "WG8", "WG9"),
    *("SP1", "SP2", "SP3", "SP4", "SP5", "SP6", "SP7", "SP8", "SP9"),
]
CHAPTERS = [
    "01_lipschitz_constraint",
    "02_matrix_norms",
    "03_power_iteration",
    "04_spectral_regularization",
    "05_wgan_gp",
    "06_spectral_normalization",
    "07_since_2018",
]
KINDS = ["theorem", "computation", "experiment", "practice", claims.QUESTION]


# --- the catalogue


def test_the_catalogue_has_the_ids_of_the_ledger():
    assert list(claims.catalogue()) == IDS


@pytest.mark.parametrize("claim", claims.catalogue().values(), ids=claims.catalogue().keys())
def test_an_entry_of_the_catalogue_is_well_formed(claim: claims.Claim):
    assert claim.chapter in CHAPTERS
    assert claim.kind in KINDS
    assert set(claim.equations) <= set(range(1, 22))
    assert re.fullmatch(r"\S.*\S", claim.says), "the line of a check is one line"
    assert claim.says.endswith("?" if claim.kind == claims.QUESTION else ".")
    assert (claim.verdict == claims.ANSWERED) <= (claim.kind == claims.QUESTION)


def decided() -> list[claims.Claim]:
    return [claim for claim in claims.catalogue().values() if claim.verdict is not None]


@pytest.mark.parametrize("claim", decided(), ids=lambda claim: claim.id)
def test_a_decided_claim_says_what_was_found(claim: claims.Claim):
    assert claim.finding.strip()


def failing() -> list[claims.Claim]:
    return [claim for claim in decided() if claim.verdict == claims.FAILS]


def test_the_test_of_a_claim_that_fails_exists():
    """The errata page names, for each, the test that fails on the printed statement."""
    for claim in failing():
        file, _, function = claim.test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert function in names, f"{claim.id} names {claim.test}"


def test_the_figure_of_a_claim_exists():
    """The errata page repeats it."""
    for claim in (claim for claim in decided() if claim.figure):
        cells = read_notebook(source(claim.chapter)).cells
        figures = [cell.metadata.get("mystnb", {}).get("figure", {}) for cell in cells]
        assert claim.figure in [figure.get("name") for figure in figures], claim.id


# --- every claim is checked once


def checks_in_sources() -> list[tuple[str, str, str]]:
    """Return (chapter, cell id, claim id) of each call of `check` that a chapter spells out."""
    found = []
    for chapter in chapters():
        for cell in read_notebook(source(chapter)).cells:
            calls = re.findall(r"\bcheck\(\s*[\"'](\w+)[\"']", cell.source)
            found += [(chapter, cell.id, claim) for claim in calls if cell.cell_type == "code"]
    return found


def checks_in_outputs() -> list[tuple[str, str, str]]:
    """Return the same from the records that the checks left in the stored notebooks."""
    return [
        (chapter, record["cell"], record["id"])
        for chapter in chapters()
        for record in claims.records(read_notebook(source(chapter)))
    ]


@pytest.mark.parametrize("checks", [checks_in_sources, checks_in_outputs])
def test_every_decided_claim_is_checked_by_one_cell(checks: Callable[[], list]):
    """None is left out, none is checked twice, and what is pending does not pretend."""
    assert sorted(claim for _, _, claim in checks()) == sorted(claim.id for claim in decided())


@pytest.mark.parametrize("checks", [checks_in_sources, checks_in_outputs])
def test_a_claim_is_checked_in_its_chapter(checks: Callable[[], list]):
    catalogue = claims.catalogue()
    assert [row for row in checks() if catalogue[row[2]].chapter != row[0]] == []


def test_each_stored_check_shows_its_line():
    catalogue = claims.catalogue()
    for chapter in chapters():
        for cell in read_notebook(source(chapter)).cells:
            for output in cell.get("outputs", ()):
                if record := output.get("metadata", {}).get(claims.RECORD_KEY):
                    line = claims.verdict_line(catalogue[record["id"]])
                    assert output.data["text/plain"] == line


# --- a catalogue of one's own

ENTRY = {
    "id": "T1",
    "chapter": "01_tiny",
    "section": "Somewhere",
    "equations": [3],
    "kind": "theorem",
    "says": "Small things are small.",
}
FAILING = {
    "counterexample": "2 is not.",
    "corrected": "Some are.",
    "test": "tests/test_claims.py::x",
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*entries: dict[str, Any], pending: tuple[str, ...] = ()) -> Path:
        path = tmp_path / "claims.yml"
        content = {"pending": list(pending), "claims": [{**ENTRY, **entry} for entry in entries]}
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return path

    return write


@pytest.fixture
def use(write: Write, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Put entries in the place of the book's catalogue."""

    def use(*entries: dict[str, Any], **options: Any) -> Path:
        path = write(*entries, **options)
        monkeypatch.setattr(claims, "catalogue_path", lambda: path)
        claims.catalogue.cache_clear()
        return path

    yield use
    claims.catalogue.cache_clear()


def test_entries_are_read_in_order(write):
    path = write({"id": "T2", "verdict": "holds"}, {"id": "T1", "equations": []}, pending=("T1",))
    assert list(claims.catalogue(path)) == ["T2", "T1"]
    assert claims.catalogue(path)["T2"].equations == (3,)
    assert claims.catalogue(path)["T1"].verdict is None


@pytest.mark.parametrize(
    ("entries", "pending", "message"),
    [
        ([{"verdict": "holds"}] * 2, [], "claims.yml: T1 stands twice"),
        ([{"verdict": "true"}], [], "T1 has the verdict 'true', not one of"),
        ([{}], [], "T1 needs either a verdict or a place in pending"),
        ([{"verdict": "holds"}], ["T1"], "T1 needs either a verdict or a place in pending"),
        ([{"verdict": "holds"}], ["T9", "T8"], r"pending names unknown claims \['T8', 'T9'\]"),
        *(
            ([{"verdict": claims.FAILS, **FAILING, missing: ""}], [], "T1 fails as printed: give")
            for missing in FAILING
        ),
    ],
)
def test_a_bad_catalogue_is_refused(write, entries, pending, message):
    path = write(*entries, pending=tuple(pending))
    with pytest.raises(ValueError, match=message):
        claims.catalogue(path)


def test_a_misspelt_field_is_refused(write):
    with pytest.raises(TypeError, match="verdct"):
        claims.catalogue(write({"verdct": "holds"}))


def test_an_installed_wheel_has_its_own_copy(tmp_path, monkeypatch):
    assert claims.catalogue_path() == ROOT / "book" / "claims.yml"
    monkeypatch.setattr(claims, "_PACKAGE", tmp_path / "site-packages" / "lipbook")
    assert claims.catalogue_path() == tmp_path / "site-packages" / "lipbook" / "claims.yml"


# --- check

TRUE = claims.at_most("size", 0.5, 1.0)
FALSE = claims.at_most("size", 1.5, 1.0)


@pytest.mark.parametrize(
    ("verdict", "kind", "roles"),
    [
        (claims.HOLDS, "theorem", ["supports"]),
        (claims.CAVEATS, "experiment", ["limits"]),
        (claims.CAVEATS, "experiment", ["supports", "limits"]),
        (claims.FAILS, "practice", ["refutes"]),
        (claims.FAILS, "practice", ["supports", "limits", "refutes"]),
        (claims.FAILS, claims.QUESTION, ["refutes"]),
        (claims.ANSWERED, claims.QUESTION, ["supports"]),
        (claims.ANSWERED, claims.QUESTION, ["supports", "limits"]),
    ],
)
def test_the_verdict_follows_from_the_evidence(use, capsys, verdict, kind, roles):
    evidence = {role: [TRUE] for role in roles}
    use({"kind": kind, "verdict": verdict, **FAILING})
    claims.check("T1", **evidence)
    assert capsys.readouterr().out == f"T1 · {verdict} · Small things are small.\n"

    for other in set(claims.VERDICTS) - {verdict}:
        use({"kind": kind, "verdict": other, **FAILING})
        with pytest.raises(claims.ClaimContradicted) as caught:
            claims.check("T1", **evidence)
        message = f"T1: claims.yml says {other!r}, the evidence speaks for {verdict!r}"
        assert str(caught.value) == message
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("role", ["supports", "limits", "refutes"])
def test_a_contradicting_measurement_raises(use, capsys, role):
    verdict = {"supports": claims.HOLDS, "limits": claims.CAVEATS, "refutes": claims.FAILS}[role]
    use({"verdict": verdict, **FAILING})
    with pytest.raises(claims.ClaimContradicted, match=r"T1: did not come out: size: 1\.5 ≤ 1$"):
        claims.check("T1", **{role: [TRUE, FALSE, TRUE]})
    assert capsys.readouterr().out == ""


def test_a_contradiction_is_an_assertion_that_failed():
    assert issubclass(claims.ClaimContradicted, AssertionError)


def test_a_pending_claim_cannot_be_checked(use):
    use({}, pending=("T1",))
    with pytest.raises(claims.ClaimContradicted, match=r"T1: still pending in .*, but measured as"):
        claims.check("T1", supports=[TRUE])


def test_an_unknown_claim_is_refused(use):
    use({"verdict": "holds"})
    with pytest.raises(KeyError, match=r"no claim 'T2' in claims\.yml; it has T1"):
        claims.check("T2", supports=[TRUE])


def test_a_check_needs_evidence(use):
    use({"verdict": "holds"})
    with pytest.raises(ValueError, match="T1 needs evidence: pass supports=, limits= or refutes="):
        claims.check("T1")


def test_the_line_does_not_depend_on_the_numbers(use, capsysbinary):
    use({"verdict": "holds", "says": "Größe ‖W‖₂ ≤ 1."})
    printed = []
    for seed, value in [(1, 0.25), (2, [0.1, 0.2, 0.15])]:
        runtime.start(seed=seed, device="cpu")
        claims.check("T1", supports=[claims.at_most("size", value, 1.0)])
        printed.append(capsysbinary.readouterr().out)
    assert printed[0] == printed[1] == "T1 · holds · Größe ‖W‖₂ ≤ 1.\n".encode()


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


def test_in_a_notebook_the_record_goes_with_the_line(use, shown, capsys, monkeypatch):
    use({"verdict": claims.CAVEATS})
    wide = claims.above("Largest  slope (of GELU)", [1.1, 1.2], 1.5)
    narrow = claims.below("slope", 1.125, 1.25)
    monkeypatch.setattr(claims.Evidence, "came_out", True)
    claims.check("T1", supports=[narrow], limits=[wide])

    *glued, (data, metadata) = shown
    assert glued == [
        ("T1-slope", "1.125", False),
        ("T1-largest-slope-of-gelu", wide.formatted, False),
    ]
    assert data == {"text/plain": f"T1 · {claims.CAVEATS} · Small things are small."}
    record = metadata[claims.RECORD_KEY]
    assert (record["seed"], record["device"], record["scale"]) == (None, None, None)
    assert record["evidence"][0] == {
        "role": "supports",
        "text": "slope: 1.125 < 1.25",
        "quantity": "slope",
        "values": [1.125],
        "relation": "<",
        "bound": 1.25,
        "seeds_held": 1,
    }
    assert record["evidence"][1]["role"] == "limits"
    assert record["evidence"][1]["seeds_held"] == 0
    assert capsys.readouterr().out == ""


TINY = """
from pathlib import Path
from lipbook.notebook import claims, runtime
claims.catalogue_path = lambda: Path({path!r})
def measure(seed, value):
    runtime.start(seed=seed, device="cpu")
    claims.check("T1", supports=[claims.at_most("size", value, 1.0)])
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """Return a tiny notebook with two checks, as a kernel leaves it."""
    folder = tmp_path_factory.mktemp("kernel")
    path = folder / "claims.yml"
    content = {"pending": [], "claims": [{**ENTRY, "verdict": "holds"}]}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    sources = [TINY.format(path=str(path)), "measure(1, 0.25)", "measure(2, [0.25, 0.26])"]
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
    assert two["evidence"][0]["values"] == [0.25, 0.26]


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
    assert glued == ["'0.25'", repr(claims.at_most("size", [0.25, 0.26], 1.0).formatted)]


def test_a_notebook_without_checks_has_no_records():
    bare = {"cells": [{"cell_type": "markdown"}, {"outputs": [{"metadata": {}}, {}]}]}
    assert list(claims.records(bare)) == []


# --- evidence

numbers = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))


@given(st.lists(numbers, min_size=2, max_size=12))
def test_the_interval_is_students(values):
    low, high = claims.at_most("x", values, 0.0).interval
    if len(set(values)) == 1:
        assert low == high == values[0]
        return
    scale = 1e-9 * (1 + np.abs(values).max())
    expected = stats.ttest_1samp(values, np.mean(values)).confidence_interval(0.95)
    assert low == pytest.approx(expected.low, abs=scale)
    assert high == pytest.approx(expected.high, abs=scale)


@given(numbers)
def test_one_value_is_its_own_interval(value):
    assert claims.at_most("x", value, 0.0).interval == (value, value)


makers = {
    claims.at_most: lambda v, b: v <= b,
    claims.at_least: lambda v, b: v >= b,
    claims.below: lambda v, b: v < b,
    claims.above: lambda v, b: v > b,
}


@pytest.mark.parametrize("make", makers)
@given(values=st.lists(numbers, min_size=1, max_size=6), bound=numbers)
def test_evidence_comes_out_when_the_whole_interval_does(make, values, bound):
    evidence = make("x", values, bound)
    relates = makers[make]
    assert evidence.came_out == all(relates(end, bound) for end in evidence.interval)
    assert evidence.seeds_held == sum(relates(value, bound) for value in values)


def test_the_mean_alone_is_not_enough():
    evidence = claims.above("gain", [0.9, -0.1, 0.3], 0.0)
    assert evidence.seeds_held == 2
    assert not evidence.came_out


@pytest.mark.parametrize(
    ("make", "comes_out"),
    [(claims.at_most, True), (claims.at_least, True), (claims.below, False), (claims.above, False)],
)
def test_the_bound_itself(make, comes_out):
    assert make("x", 1.0, 1.0).came_out is comes_out


@pytest.mark.parametrize(
    ("value", "target", "comes_out"),
    [(1.009, 1.0, True), (1.02, 1.0, False), (0.0, 0.0, True), (-1.0, 1.0, False)],
)
def test_close(value, target, comes_out):
    assert claims.close("x", value, target, rtol=0.01).came_out is comes_out


@pytest.mark.parametrize(
    "value",
    [
        *(2, 2.0, np.float32(2), np.array(2), torch.tensor(2), torch.tensor(2.0, dtype=torch.half)),
        *([2.0], (2,), np.array([2.0]), torch.tensor([2.0]), iter([2])),
        torch.tensor(2.0, requires_grad=True),
    ],
)
def test_values_may_be_numbers_arrays_or_tensors(value):
    assert claims.at_most("x", value, 3).values == (2.0,)


@pytest.mark.parametrize("value", [math.nan, [1.0, math.nan], torch.tensor(math.nan)])
def test_a_nan_is_no_measurement(value):
    with pytest.raises(ValueError, match="'x' holds a NaN: nothing was measured"):
        claims.at_most("x", value, 1.0)


def test_a_bound_may_not_be_nan():
    with pytest.raises(ValueError, match="holds a NaN"):
        claims.at_most("x", 1.0, math.nan)


@pytest.mark.parametrize("value", [[], (), torch.empty(0)])
def test_no_value_is_no_measurement(value):
    with pytest.raises(ValueError, match="'x' has no value; pass a number, or one for each seed"):
        claims.at_most("x", value, 1.0)


@pytest.mark.parametrize("value", [torch.eye(2), [[1.0]], None, "one"])
def test_what_is_no_row_of_numbers_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        claims.at_most("x", value, 1.0)


def test_an_unknown_relation_is_refused():
    with pytest.raises(ValueError, match="relation must be one of ≤ ≥ < > ≈, got '='"):
        _ = claims.Evidence("x", (1.0,), "=", 1.0).came_out


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        (claims.at_most("slope", 1.12345, 2), "slope: 1.123 ≤ 2"),
        (claims.at_least("slope", [1.0, 2.0, 3.0], 1), "slope: 2.0 ± 2.5 ≥ 1 (3 of 3 seeds)"),
        (claims.below("slope", [5.0, 5.0], 4.5), "slope: 5 < 4.5 (0 of 2 seeds)"),
        (claims.above("slope", [100.0, 200.0], 1), "slope: 150 ± 635 > 1 (2 of 2 seeds)"),
        (claims.above("loss", math.inf, 1), "loss: inf > 1"),
        (claims.above("loss", [math.inf] * 2, 1), "loss: inf > 1 (2 of 2 seeds)"),
        (claims.close("slope", 1e-8, 1.0, rtol=0.05), "slope: 1e-08 ≈ 1 within 0.05"),
    ],
)
def test_evidence_as_text(evidence, text):
    assert str(evidence) == text


@pytest.mark.parametrize(
    ("text", "slug"),
    [("A  b", "a-b"), ("(x)", "x"), ("σ₂/σ₁ of W", "σ₂-σ₁-of-w"), ("a_b", "a_b"), ("–", "")],
)
def test_slug(text, slug):
    assert claims.slug(text) == slug


def test_glue_keys_do_not_clash():
    """Two quantities of one chapter must not write the same key."""
    for chapter, records in itertools.groupby(stored_records(), key=lambda pair: pair[0]):
        keys = [
            f"{record['id']}-{claims.slug(evidence['quantity'])}"
            for _, record in records
            for evidence in record["evidence"]
        ]
        assert len(set(keys)) == len(keys), f"{chapter} glues a key twice"


def stored_records() -> Iterator[tuple[str, dict[str, Any]]]:
    for chapter in chapters():
        for record in claims.records(read_notebook(source(chapter))):
            yield chapter, record
