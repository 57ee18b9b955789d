"""The catalogue is whole and well formed, and a bad one is refused with its way out."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from entries import CRITERION, ENTRY, FAILING

import studies
from lipbook.notebook import catalogue
from lipbook.notebook.catalogue import Claim
from workflow.project import ROOT, read_notebook, source

IDS = [
    *("LC0", "LC1", "LC2a", "LC2b", "LC3", "LC4", "LC5", "LC6"),
    *("MN1", "MN2", "MN3", "MN4a", "MN4b"),
    *("PI1", "PI2", "PI3", "PI4", "PI5", "PI6", "PI7"),
    *("SR1", "SR2", "SR3", "SR4"),
    *("WG1", "WG2", "WG3", "WG4", "WG5", "WG6", "WG7", "WG8", "WG9"),
    *("SP1", "SP2", "SP3", "SP4", "SP5", "SP6", "SP7", "SP8", "SP9", "SP10", "SP11"),
]
CHAPTERS = [
    "01_lipschitz_constraint",
    "02_matrix_norms",
    "03_power_iteration",
    "04_spectral_regularization",
    "05_wgan_gp",
    "06_spectral_normalization",
    "06a_inside_or_after",
    "06b_against_the_penalty",
    "07_since_2018",
]
CLAIMS = list(catalogue.catalogue().values())
every_claim = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
failing = pytest.mark.parametrize(
    "claim", [c for c in CLAIMS if c.verdict == catalogue.FAILS], ids=lambda claim: claim.id
)


def test_the_catalogue_has_the_ids_of_the_ledger():
    assert list(catalogue.catalogue()) == IDS


@every_claim
def test_an_entry_of_the_catalogue_makes_sense(claim: Claim):
    assert claim.chapter in CHAPTERS
    assert claim.says.endswith("?" if claim.kind == catalogue.QUESTION else ".")
    assert set(claim.studies) <= set(studies.names())


def test_the_schema_that_editors_read_is_that_of_the_models():
    stored = catalogue.catalogue_path().with_name("claims.schema.json")
    way_out = "write it anew: python -m lipbook.notebook.catalogue"
    assert stored.read_text(encoding="utf-8") == catalogue.schema_text(), way_out
    first_line = catalogue.catalogue_path().read_text(encoding="utf-8").splitlines()[0]
    assert first_line == f"# yaml-language-server: $schema={stored.name}"


def test_the_catalogue_is_of_its_schema():
    content = yaml.safe_load(catalogue.catalogue_path().read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(catalogue.schema())
    jsonschema.validate(content, catalogue.schema(), jsonschema.Draft202012Validator)


def test_what_a_page_lists_by_itself_has_a_heading():
    listed = [c for c in CLAIMS if c.verdict not in ("holds", "holds with caveats", "answered")]
    assert [claim.id for claim in listed if not claim.short] == []


@failing
def test_the_test_of_a_claim_that_fails_exists(claim: Claim):
    """The errata page names, for each, the test that fails on the printed statement."""
    file, _, function = claim.test.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert function in names, f"{claim.id} names {claim.test}"


@failing
def test_the_figure_of_a_claim_exists(claim: Claim):
    """The errata page repeats it."""
    cells = read_notebook(source(claim.chapter)).cells
    figures = [cell.metadata.get("mystnb", {}).get("figure", {}) for cell in cells]
    assert claim.figure in ["", *(figure.get("name") for figure in figures)]


# --- catalogues of one's own

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*entries: dict[str, Any]) -> Path:
        path = tmp_path / "claims.yml"
        content = {"claims": [{**ENTRY, **entry} for entry in entries]}
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return path

    return write


def test_entries_are_read_in_order(write):
    path = write({"id": "T2"}, {"id": "T1", "equations": []})
    assert list(catalogue.catalogue(path)) == ["T2", "T1"]
    assert catalogue.catalogue(path)["T2"].equations == (3,)
    assert catalogue.catalogue(path)["T1"].criteria[0].bound == 1.0


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{}] * 2, "claims.yml: T1 stands twice; give one of them another id"),
        ([{"verdict": "true"}], "T1: verdict: Input should be 'holds', .* \\(got 'true'\\)"),
        ([{"verdct": "holds"}], "T1: verdct: Extra inputs are not permitted"),
        ([{"id": "t-1"}], "t-1: id: String should match pattern"),
        ([{"kind": "guess"}], "T1: kind: Input should be 'theorem'"),
        ([{"equations": [22]}], "T1: equations: 0: Input should be less than or equal to 21"),
        ([{"says": "Two\nlines."}], "T1: says: String should match pattern"),
        ([{"verdict": "answered"}], "T1: only an open question is 'answered', and this is a theo"),
        ([{"scope": ""}], "T1: the verdict 'holds' needs scope"),
        ([{"finding": ""}], "T1: the verdict 'holds' needs finding"),
        ([{"criteria": []}], "T1: the verdict 'holds' needs criteria"),
        ([{"verdict": "not tested"}], "T1: the verdict 'not tested' needs reason"),
        ([{"verdict": "not tested", "reason": "None.", "scope": ""}], "needs scope"),
        ([{"verdict": "not tested", "reason": "None.", "criteria": []}], "needs planned"),
        ([{"reason": "None."}], "T1: a reason goes with 'not tested' only"),
        *(
            ([{"verdict": verdict, "decisive": ""}], f"T1: the verdict '{verdict}' needs decisive")
            for verdict in ("not reproduced here", "undecided")
        ),
        *(
            ([{"verdict": "fails as printed", **FAILING, missing: ""}], f"needs {missing}")
            for missing in FAILING
        ),
    ],
)
def test_a_bad_entry_is_refused(write, entries, message):
    with pytest.raises(ValueError, match=message):
        catalogue.catalogue(write(*entries))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": "Size"}, "T1: criteria: Size: id: String should match pattern"),
        ({"id": "lambda"}, "T1: criteria: lambda: 'lambda' is a word of Python's"),
        ({"kind": "seen"}, "T1: criteria: size: kind: Input should be 'proved', 'computed'"),
        ({"relation": "=="}, "T1: criteria: size: relation: Input should be '≤'"),
        ({"role": "supports"}, "T1: criteria: size: role: Input should be 'decides', 'confines'"),
        ({"scale": "sqrt"}, "T1: criteria: size: scale: Input should be 'linear' or 'log'"),
        (
            {"bound": "1e-9"},
            r"size: bound: write a number; YAML takes 1e-9 for text.* \(got '1e-9'",
        ),
        ({"bound": float("nan")}, "size: bound: Input should be a finite number"),
        ({"bound": float("inf")}, "size: bound: Input should be a finite number"),
        ({"tolerance": 0.1}, "size: a tolerance goes with ≈, and ≈ needs one above 0"),
        ({"relation": "≈"}, "size: a tolerance goes with ≈, and ≈ needs one above 0"),
        ({"relation": "≈", "tolerance": -1}, "size: tolerance: Input should be greater than"),
        ({"scale": "log", "bound": 0}, "size: on the scale log the bound is above 0, got 0"),
        ({"kind": "published"}, "size: a source goes with the kind published"),
        ({"source": "x"}, "size: a source goes with the kind published"),
        ({"quantity": ""}, "size: quantity: String should have at least 1 character"),
        ({"changed": [{"date": "May"}]}, "size: changed: 0: date: String should match pattern"),
        ({"study": "toy"}, "T1: 'toy' is none of its studies"),
        ({"study": "non"}, "T1: 'non' is none of its studies"),
        ({"study": "none"}, "T1: 'none' is none of its studies"),
        ({"unit": "m"}, "size: unit: Extra inputs are not permitted"),
    ],
)
def test_a_bad_criterion_is_refused(write, fields, message):
    with pytest.raises(ValueError, match=message):
        catalogue.catalogue(write({"criteria": [{**CRITERION, **fields}]}))


def test_two_criteria_of_one_name_are_refused(write):
    with pytest.raises(ValueError, match="T1: two criteria have the id size"):
        catalogue.catalogue(write({"criteria": [CRITERION] * 2}))


def test_a_claim_that_could_only_fail_is_refused(write):
    with pytest.raises(ValueError, match="T1: no criterion decides; without one the claim could"):
        catalogue.catalogue(write({"criteria": [{**CRITERION, "role": "refutes"}]}))


def test_criteria_may_stand_before_their_measurement(write):
    path = write({"verdict": "not tested", "reason": "Its study is running.", "finding": ""})
    assert not catalogue.catalogue(path)["T1"].tested


@pytest.mark.parametrize(
    "fields", [{"quantity": "other words"}, {"after_the_fact": True}, {"study": "toy"}]
)
def test_the_digest_of_a_criterion_leaves_its_wording_out(fields):
    one, other = (catalogue.Criterion(**{**CRITERION, **more}) for more in ({}, fields))
    assert one.digest == other.digest


@pytest.mark.parametrize(
    "fields",
    [
        *({"bound": 1.5}, {"relation": "≤"}, {"role": "confines"}, {"kind": "computed"}),
        {"scale": "log"},
        {"relation": "≈", "tolerance": 0.1},
    ],
)
def test_the_digest_of_a_criterion_tells_what_it_decides_by(fields):
    one, other = (catalogue.Criterion(**{**CRITERION, **more}) for more in ({}, fields))
    assert one.digest != other.digest


def test_an_installed_wheel_has_its_own_copy(tmp_path, monkeypatch):
    assert catalogue.catalogue_path() == ROOT / "book" / "claims.yml"
    monkeypatch.setattr(catalogue, "_PACKAGE", tmp_path / "site-packages" / "lipbook")
    assert catalogue.catalogue_path() == tmp_path / "site-packages" / "lipbook" / "claims.yml"


def test_an_unknown_claim_is_refused():
    with pytest.raises(KeyError, match=r"no claim 'T2' in claims\.yml; it has LC0, LC1"):
        catalogue.find("T2")


def test_the_schema_is_valid_json():
    assert json.loads(catalogue.schema_text()) == catalogue.schema()


def test_a_study_is_held_against_what_names_it_and_what_it_names(write, monkeypatch):
    planned = [{**CRITERION, "id": "later"}]
    path = write(
        {"studies": ["toy"], "planned": planned},
        {"id": "T2"},
        {"id": "T3", "studies": ["another"]},
    )
    monkeypatch.setattr(catalogue, "catalogue_path", lambda: path)
    assert {k: [*v] for k, v in catalogue.criteria_for("toy").items()} == {"T1": ["size", "later"]}
    assert catalogue.criteria_for("toy", ["T2"]).keys() == {"T1", "T2"}


def test_a_study_is_not_held_against_what_is_another_ones(write, monkeypatch):
    shared = [{**CRITERION, "study": "toy"}, {**CRITERION, "id": "other", "study": "new"}]
    shared += [{**CRITERION, "id": "live", "study": "none"}]
    path = write({"studies": ["toy", "new"], "criteria": shared})
    monkeypatch.setattr(catalogue, "catalogue_path", lambda: path)
    assert [*catalogue.criteria_for("new")["T1"]] == ["other"]
