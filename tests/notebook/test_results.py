"""What the chapters found, as data: joined from the catalogue, the notebooks and the records."""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from entries import CRITERION, ENTRY

from lipbook.notebook import catalogue, results
from lipbook.notebook.catalogue import Criterion
from workflow.project import BOOK, ROOT, chapters, read_notebook, source

FOUND = {"id": "size", "text": "size: 0.20 ± 0.25 < 1 (3 of 3)", "values": [0.1, 0.2, 0.3]}
FOUND |= {"interval": [-0.05, 0.45], "p": 0.005, "state": "met", "seeds_held": 3}
RECORD = {"id": "T1", "verdict": "holds", "seed": 0, "device": "cpu", "scale": "default"}
Collect = Callable[..., results.Results]


def notebook(path: Path, **record: Any) -> Path:
    """Write a notebook of one cell that checks T1."""
    outputs = [{"metadata": {"lipbook": {**RECORD, "criteria": [FOUND], **record}}}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": [{"id": "check-t1", "outputs": outputs}]}))
    return path


@pytest.fixture
def collect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Collect:
    """Return what is found about the claim T1, with these facts beside it."""

    def collect(
        *, entry: Any = (), fresh: Any = (), stored: Any = (), **beside: Any
    ) -> results.Results:
        book = tmp_path / "book"
        for folder in ("studies", "records"):
            (book / folder).mkdir(parents=True, exist_ok=True)
        (book / "equations.yml").write_text("[]")
        (book / "claims.yml").write_text(
            yaml.safe_dump({"claims": [{**ENTRY, **dict(entry)}]}, allow_unicode=True)
        )
        monkeypatch.setattr(catalogue, "catalogue_path", lambda: book / "claims.yml")
        monkeypatch.setattr(results, "catalogue_path", lambda: book / "claims.yml")
        for name, content in beside.items():
            folder = "records" if name in ("seeds", "flips") else "studies"
            (book / folder / f"{name}.json").write_text(json.dumps(content))
        made = [notebook(tmp_path / "fresh" / "01_tiny.ipynb", **dict(fresh))]
        kept = [notebook(book / "01_tiny.ipynb", **dict(stored))]
        return results.collect(made, kept, book)

    return collect


def test_an_entry_joins_words_numbers_and_place(collect):
    (entry,) = collect().claims
    assert (entry.id, entry.verdict, entry.catalogued) == ("T1", "holds", "holds")
    assert entry.page == "01_tiny.html#claim-T1"
    assert entry.run == results.Run(seed=0, device="cpu", scale="default")
    (size,) = entry.criteria
    assert (size.bound, size.values, size.state) == (1.0, (0.1, 0.2, 0.3), "met")


def test_the_verdict_is_that_of_this_build_and_not_the_catalogues(collect):
    (entry,) = collect(fresh={"verdict": "undecided", "seed": 3}).claims
    assert (entry.verdict, entry.catalogued) == ("undecided", "holds")


def test_what_no_chapter_checks_is_not_tested(collect):
    entry = {"id": "T2", "verdict": "not tested", "reason": "Later.", "finding": ""}
    (found,) = collect(entry=entry).claims
    assert (found.verdict, found.run, found.page) == ("not tested", None, "")
    assert found.criteria[0].state == ""


def test_the_same_comes_back_from_its_text(collect, tmp_path):
    found = collect(fresh={"criteria": [{**FOUND, "values": [0.1, "inf"]}]})
    (tmp_path / "claims.json").write_text(results.as_text(found), encoding="utf-8")
    assert results.load(tmp_path / "claims.json") == found
    data = json.loads(results.as_text(found), parse_constant=pytest.fail)
    jsonschema.validate(data, results.schema(), jsonschema.Draft202012Validator)


def test_claims_and_kinds_of_evidence_are_counted(collect):
    found = collect()
    assert (found.count(), found.evidence()) == ({"holds": 1}, {"measured": 1})


@pytest.mark.parametrize(
    ("fields", "early"), [({}, 1), ({"after_the_fact": True}, 0), ({"kind": "computed"}, 0)]
)
def test_measured_criteria_that_came_first_are_counted(collect, fields, early):
    assert collect(entry={"criteria": [{**CRITERION, **fields}]}).early() == early


# --- the order of events

STUDIED = {"studies": ["toy"]}
DIGEST = Criterion(**CRITERION).digest
TABLE = {"measured": "2026-11-23T10:00:00"}


@pytest.mark.parametrize(
    ("facts", "order", "commit"),
    [
        ({}, "after", ""),
        ({"criteria": {}}, "after", ""),
        ({"criteria": {"commit": "a" * 40, "digests": {"T1": {"other": DIGEST}}}}, "after", ""),
        (
            {"criteria": {"commit": "a" * 40, "digests": {"T1": {"size": DIGEST}}}},
            "before",
            "a" * 10,
        ),
        ({"criteria": {"commit": "a" * 40, "digests": {"T1": {"size": "0"}}}}, "changed", "a" * 10),
    ],
)
def test_a_criterion_says_if_it_stood_before_its_table(collect, facts, order, commit):
    (entry,) = collect(entry=STUDIED, toy={**TABLE, **facts}).claims
    stated = results.Stated(study="toy", measured="2026-11-23", order=order, commit=commit)
    assert entry.criteria[0].stated == (stated,)


@pytest.mark.parametrize(
    ("late", "study", "order"), [(False, "new", "before"), (True, "toy", "after")]
)
def test_of_two_tables_a_criterion_goes_with_its_own(collect, late, study, order):
    knows = {"criteria": {"commit": "a" * 40, "digests": {"T1": {"size": DIGEST}}}}
    criterion = CRITERION | ({"after_the_fact": True} if late else {})
    entry = {**STUDIED, "studies": ["toy", "new"], "criteria": [criterion]}
    (found,) = collect(entry=entry, toy=TABLE, new={**TABLE, **knows}).claims
    assert [(one.study, one.order) for one in found.criteria[0].stated] == [(study, order)]


def test_a_later_study_does_not_hide_that_a_criterion_came_after_its_own_table(collect):
    knows = {"criteria": {"commit": "a" * 40, "digests": {"T1": {"size": DIGEST}}}}
    entry = {**STUDIED, "studies": ["toy", "new"], "criteria": [{**CRITERION, "study": "toy"}]}
    (found,) = collect(entry=entry, toy=TABLE, new={**TABLE, **knows}).claims
    assert [(one.study, one.order) for one in found.criteria[0].stated] == [("toy", "after")]


@pytest.mark.parametrize(
    ("digest", "order"), [({"size": DIGEST}, "before"), ({"size": "0"}, "changed"), ({}, "after")]
)
def test_a_table_may_have_gone_on_under_further_criteria(collect, digest, order):
    known = {"criteria": {"commit": "a" * 40, "digests": {"T1": {"other": DIGEST}}}}
    later = {"criteria": {"commit": "b" * 40, "digests": {"T1": digest}}}
    facts = {**TABLE, **known, "later": [{"measured": "2026-11-29T10:00:00", **later}]}
    (entry,) = collect(entry=STUDIED, toy=facts).claims
    (stated,) = entry.criteria[0].stated
    day, commit = ("2026-11-29", "b" * 10) if digest else ("2026-11-23", "")
    then = results.Stated(study="toy", measured=day, order=order, commit=commit, later=bool(digest))
    assert stated == then


def test_what_the_chapter_measures_itself_is_held_against_no_table(collect):
    entry = {**STUDIED, "criteria": [{**CRITERION, "study": "none"}]}
    (found,) = collect(entry=entry, toy=TABLE).claims
    assert found.criteria[0].stated == ()


def test_only_what_is_measured_could_come_before_its_table(collect):
    entry = {**STUDIED, "criteria": [{**CRITERION, "kind": "proved"}]}
    assert collect(entry=entry, toy=TABLE).claims[0].criteria[0].stated == ()


def late_criteria() -> list[str]:
    """Return criteria of the book that came after their table, or changed since, without a word."""
    stored = [source(name) for name in chapters()]
    return [
        f"{entry.id}.{finding.id}"
        for entry in results.collect(stored, stored, BOOK).claims
        for finding in entry.criteria
        for stated in finding.stated
        if (stated.order == "after" and not finding.after_the_fact)
        or (stated.order == "changed" and not finding.changed)
    ]


def test_every_criterion_that_came_after_its_table_says_so():
    assert late_criteria() == []


# --- seeds and planted worlds


def runs(*words: str | None) -> dict[str, Any]:
    made = [{"verdicts": {"T1": word}} if word else {"failed": "a cell"} for word in words]
    return {"chapters": {"01_tiny": {str(seed): run for seed, run in enumerate(made)}}}


def test_seeds_are_counted_with_wilsons_interval(collect):
    (entry,) = collect(seeds=runs(*["holds"] * 18, "undecided", None)).claims
    seeds = entry.seeds
    assert (seeds.held, seeds.of) == (18, 20)
    assert (seeds.low, seeds.high) == pytest.approx((0.699, 0.972), abs=1e-3)
    assert seeds.others == {"undecided": 1, "broke off": 1}


def test_runs_from_before_a_claim_was_tested_say_nothing_of_it(collect):
    before = {"verdicts": {"T2": "holds"}}
    assert collect(seeds={"chapters": {"01_tiny": {"1": before}}}).claims[0].seeds is None
    seeds = {"chapters": {"01_tiny": {"1": before, **runs("holds")["chapters"]["01_tiny"]}}}
    assert collect(seeds=seeds).claims[0].seeds.of == 1


def test_without_runs_nothing_is_said_about_seeds(collect):
    assert collect().claims[0].seeds is None


def test_a_planted_world_is_shown(collect):
    flip = {"world": "Sizes and bounds change places.", "verdict": "undecided"}
    flip |= {"date": "2026-11-27"}
    (entry,) = collect(flips={"flips": {"T1": flip}}).claims
    assert entry.flip == results.Flip(**flip)


# --- a run of one's own


@pytest.mark.parametrize("change", [{"seed": 3}, {"device": "cuda"}, {"scale": "full"}])
def test_another_seed_device_or_scale_is_a_run_of_ones_own(collect, change):
    assert not collect().own_run
    found = collect(fresh=change, stored={"verdict": "undecided"})
    assert found.own_run
    assert found.claims[0].stored == "undecided"


def test_numbers_stand_beside_the_stored_ones_in_standard_errors(collect):
    shifted = {**FOUND, "values": [0.4, 0.5, 0.6]}
    size = collect(fresh={"seed": 3, "criteria": [shifted]}).claims[0].criteria[0]
    assert size.stored == (0.1, 0.2, 0.3)
    assert size.standard_errors == pytest.approx(0.3 / (2 * 0.01 / 3) ** 0.5)


@pytest.mark.parametrize(("ours", "apart"), [(0.5, 0.0), (0.6, None)])
def test_a_number_without_an_error_is_the_same_or_not(collect, ours, apart):
    one, other = ({**FOUND, "values": [value]} for value in (ours, 0.5))
    found = collect(fresh={"seed": 3, "criteria": [one]}, stored={"criteria": [other]})
    assert found.claims[0].criteria[0].standard_errors == apart


def test_records_of_an_older_form_are_left_out(collect):
    record = {"seed": 3}
    found = collect(fresh=record, stored={"criteria": [], "evidence": []})
    assert found.own_run
    assert found.claims[0].criteria[0].stored == ()


# --- the equations


def test_each_equation_has_a_place_code_and_a_test():
    listed = yaml.safe_load((BOOK / "equations.yml").read_text(encoding="utf-8"))
    assert [equation["number"] for equation in listed] == list(range(1, 22))
    for equation in listed:
        cells = read_notebook(source(equation["chapter"])).cells
        assert any(f"(eq-{equation['number']})=" in cell.source for cell in cells), equation
        module, _, name = equation["code"].rpartition(".")
        assert callable(getattr(importlib.import_module(module), name)), equation
        file, _, function = equation["test"].partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert function in [n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
