"""The pages of the long studies: what they say of a study with a table, and of one without."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import site_checks
import study_page
import yaml
from bs4 import BeautifulSoup

import studies
from lipbook.notebook import results
from workflow.project import BOOK, CHECKED, ROOT

#: Others are planned, and their pages say so.
MEASURED = [n for n in studies.names() if (BOOK / "studies" / f"{n}.csv").exists()]

MODULE = '''"""A study of ``toys``, by :func:`cells`.

Cost: guessed.
"""
'''
CODE = """CLAIMS = ("T1",)


def watch(kind, seed):
    raise RuntimeError("a page runs no study")
"""
FACTS = {"measured": "2026-11-27T20:00:00", "cells": 4, "rows": 4, "minutes on one core": 0.2}
FACTS |= {"checked again": "2 cells on 2026-11-28", "code": {"watch": "0f", "cells": "1e"}}
FACTS |= {"criteria": {"commit": "abc1234567890", "digests": {"T1": {}}}}
CRITERION = {"quantity": "size", "kind": "measured", "relation": "<", "bound": 1.0}
STATED = [{"study": "toy", "measured": "2026-11-27", "order": "after"}]
WORDS = ("scope", "finding", "reason", "decisive", "counterexample", "corrected", "test", "figure")
ENTRY = {"id": "T1", "chapter": "01_tiny", "section": "S", "equations": [], "kind": "experiment"}
ENTRY |= {"says": "Toys are small.", "verdict": "holds", "catalogued": "holds"}
ENTRY |= dict.fromkeys(WORDS, "")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a study and its table."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "toy.py").write_text(MODULE + CODE)
    tables = tmp_path / "book" / "studies"
    tables.mkdir(parents=True)
    rows = [(kind, seed, 7.5) for kind in ("bear", "ball") for seed in (0, 1)]
    pd.DataFrame(rows, columns=["kind", "seed", "size"]).to_csv(tables / "toy.csv", index=False)
    (tables / "toy.json").write_text(json.dumps(FACTS))
    return tmp_path


def told(root: Path, **entry: object) -> str:
    judged = {"id": "small", "role": "decides", "stated": STATED, **CRITERION}
    elsewhere = {**judged, "id": "other", "quantity": "elsewhere", "stated": []}
    fields = {**ENTRY, "studies": ["toy"], "criteria": [judged, elsewhere], **entry}
    found = results.Results(claims=[results.Entry(**fields)])
    return study_page.markdown(study_page.read(root, "toy"), found, (), {"kind": "what it is"})


def test_a_page_tells_protocol_criteria_table_and_origin(root):
    text = told(root)
    assert "A study of `toys`, by `cells`." in text
    assert "4 rows of 4 cells, 3 columns: {download}`toy.csv.zip <toy.csv.zip>`" in text
    assert "The first 2 columns identify a cell" in text
    assert "| `kind` | what it is | ball · bear |" in text
    assert "| `size` |  | 7.5 |" in text
    assert "| measured | 2026-11-27 |" in text
    assert "| checked again | 2 cells on 2026-11-28 |" in text
    assert "| code | 2 definitions, each with its digest |" in text
    shown = BeautifulSoup(text, "html.parser").get_text()
    assert (
        "The criterion below was stated after the table of toy was measured on 2026-11-27." in shown
    )
    assert shown.index("Cost: guessed.") > shown.index("How it came about")
    assert shown.count("stated after") == 1
    assert "elsewhere" not in shown


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "3 s of one core in the mean, the 4 cells 12 s. A thousand seeds of every cell"),
        ({}, "where the table has 2, would take 1.7 h."),
        (
            {"device": "A100", "workers": 3, "minutes of all workers": 40},
            "10 min of one of the 3 workers on one A100 in the mean, the 4 cells 40 min",
        ),
        (
            {"device": "A100", "workers": 1, "minutes of all workers": 40},
            "10 min alone on one A100 in the mean",
        ),
        ({"device": "CPU", "workers": 2, "minutes of all workers": 40}, "10 min of one core in"),
    ],
)
def test_a_page_tells_the_cost(root, facts, words):
    known = {k: v for k, v in FACTS.items() if not (facts and k == "minutes on one core")}
    (root / "book" / "studies" / "toy.json").write_text(json.dumps(known | facts))
    assert words in told(root)


@pytest.mark.parametrize(
    ("runs", "seeds"),
    [
        ({"seed": [0, 1, 2, 100, 101]}, 3),
        ({"seed": [0, 0, 0, 0], "run": [0, 1, 2, 100]}, 3),
        ({"part": ["tuning", "probe", "test"], "seed": [1, 2, 3]}, 1),
        ({"part": ["equal", "wider"], "seed": [0, 1]}, 1),
    ],
)
def test_a_thousand_seeds_are_counted_from_those_that_test(root, runs, seeds):
    pd.DataFrame(runs).to_csv(root / "book" / "studies" / "toy.csv", index=False)
    found = study_page.spent(study_page.read(root, "toy"))
    expected = pytest.approx(12 / seeds * 1000) if seeds > 1 else None
    assert (found.seeds, found.thousand) == (seeds, expected)


@pytest.mark.parametrize("name", MEASURED)
def test_a_page_counts_the_columns_of_a_cell(name):
    cell, *_ = importlib.import_module(f"studies.{name}").cells()
    told = study_page.columns(study_page.read(ROOT, name), {})
    assert f"The first {len(cell)} columns identify a cell" in told


def test_the_name_of_another_study_leads_to_its_page():
    assert study_page.protocol("As ``toy``, not `other`.", {"toy"}) == (
        "As [`toy`](toy.md), not `other`."
    )


def test_equations_and_papers_are_links():
    told = study_page.protocol("As (21) says, in :cite:`a2018`; not (22).", (), {21: "05_wgan"})
    link = '<a href="../05_wgan.html#eq-21">(21)</a>'
    assert told == f"As {link} says, in {{cite:t}}`a2018`; not (22)."


def test_a_criterion_against_the_claim_says_so_and_a_later_one_what_it_judges(root):
    both = [{"role": "decides"}, {"role": "confines", "stated": [{**STATED[0], "later": True}]}]
    judged = [{"id": f"c{i}", "stated": STATED, **CRITERION, **c} for i, c in enumerate(both)]
    shown = BeautifulSoup(told(root, criteria=judged), "html.parser").get_text()
    assert "size decides; stated after" in shown
    assert "confines, against the claim; stated after what it judges in the table of toy" in shown


def test_the_costs_have_what_came_out_claims_and_a_person_s_numbers(root):
    (root / "book" / "studies" / "toy.md").write_text("# Toys\n\nThey are\nsmall.\n\nMore.\n")
    (root / "_toc.yml").write_text("- file: book/studies/toy\n")
    entry = results.Entry(**{**ENTRY, "studies": ["toy"], "criteria": []})
    row = study_page.costs(root, results.Results(claims=[entry])).splitlines()[-2]
    link = '<a href="../ledger.html#T1">T1</a>'
    facts = " ".join(f'<span class="fact">{fact}</span>' for fact in (link, "2 seeds", "12 s"))
    assert row.replace("\u00a0", " ") == f"| [Toys](toy.md) | They are small. | {facts} |"
    later = {"id": "later", "role": "confines", **CRITERION}
    waiting = results.Entry(**{**ENTRY, "studies": [], "criteria": [], "planned": [later]})
    row = study_page.costs(root, results.Results(claims=[waiting])).splitlines()[-2]
    assert f"{link} (planned)</span>" in row


def test_a_study_without_seeds_and_claims_says_so_in_the_costs(root):
    (root / "book" / "studies" / "toy.md").write_text("# Toys\n\nThey are\nsmall.\n")
    (root / "_toc.yml").write_text("- file: book/studies/toy\n")
    (root / "studies" / "toy.py").write_text('"""Toys.\n\n- **Seeds**: none.\n"""\n')
    row = study_page.costs(root, results.Results(claims=[])).splitlines()[-2]
    facts = BeautifulSoup(row, "html.parser").select(".fact")
    assert [fact.text for fact in facts][:2] == ["no claim", "no seeds"]


def test_what_was_done_stands_before_the_criteria_and_the_rest_after_them(root):
    text = "Toys.\n\n- **Compared**: two.\n\nIn the criteria, a toy is small.\n\nMore.\n"
    (root / "studies" / "toy.py").write_text(f'"""{text}"""\n{CODE}')
    found = told(root)
    ends = [
        "- **Compared**: two.",
        "## The criteria",
        "a toy is small",
        "T1",
        "More.",
        "## The table",
    ]
    places = [found.index(end) for end in ends]
    assert places == sorted(places)


def test_what_a_criterion_was_before_stands_below_its_table(root):
    change = {"date": "2026-11-28", "before": "< 2", "reason": "it was too easy"}
    judged = {"id": "small", "role": "decides", "stated": STATED, **CRITERION, "changed": [change]}
    shown = BeautifulSoup(told(root, criteria=[judged]), "html.parser")
    assert "changed, as told below" in shown.table.get_text()
    assert "too easy" not in shown.table.get_text()
    assert "Changed: until 2026-11-28: < 2, changed because it was too easy." in shown.get_text()


@pytest.mark.parametrize(
    ("kind", "role", "words"),
    [
        ("open question", "decides", "A question is undecided"),
        ("practice", "refutes", "refutes is"),
    ],
)
def test_how_to_read_them_is_said_of_questions_and_of_what_refutes(root, kind, role, words):
    judged = {"id": "small", "role": role, "stated": STATED, **CRITERION}
    assert words in told(root, kind=kind, criteria=[judged])
    assert words not in told(root)


def test_constants_are_read_from_a_module_that_is_not_run(root):
    text = 'TASK: str = "patches"\nCHOSEN = {(TASK, "SN"): (0.3, 1e-3)}\nOTHER = {**CHOSEN}\n'
    (root / "studies" / "toy.py").write_text(text)
    known = study_page.read(root, "toy").constants
    assert known["CHOSEN"] == {("patches", "SN"): (0.3, 0.001)}
    assert "OTHER" not in known


def test_without_a_table_a_page_says_so_and_what_waits(root):
    (root / "book" / "studies" / "toy.csv").unlink()
    planned = {"id": "later", "role": "confines", **CRITERION}
    text = told(root, studies=[], planned=[planned])
    assert "## Not measured yet" in text
    assert "## The table" not in text
    assert "confines; planned, not measured" in text


@pytest.mark.parametrize("name", studies.names())
def test_every_protocol_begins_with_the_same_five_questions(name):
    _, asked, *_ = study_page.read(ROOT, name).protocol.split("\n\n")
    labels = ["Compared", "Tuned", "Criteria", "Seeds", "Not done"]
    assert re.findall(r"^- \*\*(.*?)\*\*: ", asked, re.MULTILINE) == labels


@pytest.mark.parametrize("name", MEASURED)
def test_every_column_has_a_meaning(name):
    meanings = study_page.means(ROOT, name)
    assert [column for column in studies.load(name) if column not in meanings] == []


def test_every_study_has_a_page_in_the_contents():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    (part,) = [part for part in contents["parts"] if part["caption"] == "Appendices"]
    (index,) = [c for c in part["chapters"] if c["file"] == "book/studies/index"]
    listed = [Path(section["file"]).name for section in index["sections"]]
    assert sorted(listed) == studies.names()
    for name in listed:
        text = (BOOK / "studies" / f"{name}.md").read_text(encoding="utf-8")
        assert f"```{{study}} {name}\n" in text


@pytest.mark.parametrize("name", MEASURED)
def test_a_built_page_has_its_table(name):
    path = CHECKED / "html" / BOOK.name / "studies" / f"{name}.html"
    if not path.exists():
        pytest.fail("there is no site: run `make book` first")
    page = site_checks.parsed(path)
    files = [link["href"] for link in page.select("a.download")]
    table = studies.folder() / f"{name}.csv"
    assert len(files) == 2 * table.exists()
    packed = [path.parent / href for href in files if href.endswith(".csv.zip")]
    assert len(packed) == table.exists()
    for file in packed:
        pd.testing.assert_frame_equal(pd.read_csv(file.resolve()), pd.read_csv(table))
