"""A claim's card and its row in the ledger: as text, and on the built site."""

from __future__ import annotations

import functools
import json
from typing import Any

import claim_html
import claim_pages
import pytest
import site_checks
from bs4 import BeautifulSoup
from sphinx.errors import ExtensionError

from lipbook.notebook import results
from lipbook.notebook.catalogue import VERDICTS
from workflow.project import BOOK, CHECKED

SITE = CHECKED / "html"


FINDING = {"id": "size", "quantity": "size", "kind": "measured", "relation": "<", "bound": 1.0}
FINDING |= {"role": "decides", "values": [0.1, 0.2], "interval": [0.1, 0.2], "state": "met"}
FINDING |= {"text": "size: 0.15 < 1", "p": 0.0004, "seeds_held": 2}
WORDS = ("scope", "finding", "reason", "decisive", "counterexample", "corrected", "test", "figure")
ENTRY = {"id": "T1", "chapter": "01_tiny", "section": "S", "equations": [3], "kind": "theorem"}
ENTRY |= {"says": "Small things are small.", "studies": [], "verdict": "holds"}
ENTRY |= {"catalogued": "holds", "page": "01_tiny.html#claim-T1", "criteria": [FINDING]}
ENTRY |= {word: f"The {word}." for word in WORDS}


def entry(criterion: dict[str, Any] | None = None, **fields: Any) -> results.Entry:
    return results.Entry(**{**ENTRY, "criteria": [{**FINDING, **(criterion or {})}], **fields})


def parsed(text: str) -> BeautifulSoup:
    return BeautifulSoup(text, "html.parser")


def test_a_card_is_small_and_opens_to_its_numbers():
    card = parsed(claim_html.card(entry()))
    folded = card.details.extract()
    assert "T1 Small things are small. holds" in card.get_text()
    assert "The finding." in card.get_text()
    assert "size" not in card.get_text()
    told = "size: 0.15 ± 0.64; asked: below 1 measured; p < 0.001 after Holm; met (2 of 2)"
    assert told in folded.get_text()
    assert card.section["id"] == "claim-T1"
    assert folded.a["href"] == "ledger.html#T1"


def test_of_a_long_finding_the_first_sentence_stands_in_the_open():
    long = f"It holds, by 1.5 of it. {'And more of it. ' * 20}"
    card = parsed(claim_html.card(entry(finding=long)))
    assert card.find(class_="claim-finding").get_text() == "It holds, by 1.5 of it."
    assert "And more of it." in card.details.get_text()
    short = parsed(claim_html.card(entry(finding="It holds. And more of it.")))
    assert short.find(class_="claim-finding").get_text() == "It holds. And more of it."


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        ({"scale": "log"}, "geometric mean"),
        ({"p": 0.0321}, "p = 0.032 after Holm"),
        ({"state": "reversed"}, "the other way"),
        ({"state": "undecided"}, "undecided"),
        ({"values": [], "state": ""}, "size: not measured; asked: below 1 measured"),
        ({"bound": -0.5, "values": [-0.25] * 3}, "size: −0.25; asked: below −0.5 measured"),
        ({"relation": "≈", "tolerance": 0.05, "kind": "computed"}, "asked: 1 within 0.05 computed"),
        ({"after_the_fact": True}, "stated after the fact"),
        ({"kind": "published", "source": "Miyato 2018, table 2"}, "Miyato 2018, table 2"),
        (
            {"changed": [{"date": "2026-11-27", "before": "< 2", "reason": "it was too wide"}]},
            "until 2026-11-27: < 2, changed because it was too wide",
        ),
        (
            {"stated": [{"study": "toy", "measured": "2026-11-23", "order": "before"}]},
            "before the table of toy was measured, on 2026-11-23",
        ),
    ],
)
def test_a_criterion_says_how_it_came_about(finding, words):
    assert words in parsed(claim_html.card(entry(finding))).get_text()


def test_a_row_has_what_the_menus_ask_for():
    row = parsed(claim_html.row(entry())).details
    facts = {name: row[f"data-{name}"] for name in ("verdict", "kind", "chapter")}
    assert facts == {"verdict": "holds", "kind": "measured", "chapter": "01_tiny"}
    assert row["id"] == "T1"
    assert "H T1 Small things are small. eq. 3" in row.summary.get_text()
    assert row.a["href"] == "01_tiny.html#claim-T1"


def test_a_row_shows_seeds_and_the_planted_world():
    seeds = {"held": 18, "of": 20, "low": 0.7, "high": 0.97, "others": {"undecided": 2}}
    flip = {"world": "Labels are swapped.", "verdict": "undecided", "date": "2026-11-27"}
    text = parsed(claim_html.row(entry(seeds=seeds, flip=flip))).get_text()
    assert "at 18 of 20 other seeds the verdict was the same" in text
    assert "(95 % interval of the share: 70 to 97 %); otherwise undecided (2)." in text
    assert "Labels are swapped. The same criteria then say: undecided (2026-11-27)." in text


@pytest.mark.parametrize(
    ("study", "others", "words"),
    [
        ("", {}, "come from stored tables"),
        ("toy", {}, "come from stored tables"),
        ("none", {}, "at 20 of 20 other seeds"),
        ("", {"undecided": 1}, "at 20 of 20 other seeds"),
    ],
)
def test_where_tables_have_all_numbers_other_seeds_say_nothing(study, others, words):
    seeds = {"held": 20, "of": 20, "low": 0.84, "high": 1.0, "others": others}
    row = claim_html.row(entry({"study": study}, studies=["toy"], seeds=seeds))
    assert words in parsed(row).get_text()


@pytest.mark.parametrize(("kind", "interval"), [("measured", True), ("proved", False)])
def test_only_what_chance_decides_has_an_interval(kind, interval):
    seeds = {"held": 20, "of": 20, "low": 0.84, "high": 1.0, "others": {}}
    text = parsed(claim_html.row(entry({"kind": kind}, seeds=seeds))).get_text()
    assert "at 20 of 20 other seeds the verdict was the same" in text
    assert ("interval of the share" in text) is interval


def test_what_is_not_tested_says_why():
    row = parsed(claim_html.row(entry(verdict="not tested", page="", criteria=[])))
    assert "The reason." in row.get_text()
    assert row.a is None
    assert row.details["data-kind"] == "none"


@pytest.mark.parametrize("says", ["x < y & z", "</script><b>"])
def test_words_are_no_markup(says):
    card = parsed(claim_html.card(entry(says=says)))
    assert says in card.get_text()
    assert json.loads(card.script.string)["claimReviewed"] == says
    assert card.b is None


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_review_rates_what_can_be_rated(verdict):
    review = json.loads(parsed(claim_html.review(entry(verdict=verdict))).script.string)
    assert review["@type"] == "ClaimReview"
    assert review["reviewRating"]["alternateName"] == verdict
    rated = verdict not in ("answered", "not tested")
    assert ("ratingValue" in review["reviewRating"]) == rated


def test_the_sentence_about_evidence_counts():
    kinds = {"proved": 1, "computed": 0, "measured": 3, "published": 1}
    sentence = claim_html.evidence_sentence(kinds, 1)
    assert sentence.startswith(
        "The verdicts rest on 5 criteria: 1 proved, 3 measured and 1 taken from a publication."
    )
    assert (
        "Of the measured ones, 1 were written down before the measurement and 2 after" in sentence
    )


@pytest.mark.parametrize(
    ("chapter", "title"),
    [
        ("01_lipschitz_constraint", "1 · The Lipschitz constraint"),
        ("06a_inside_or_after", "6a · Inside or after the step"),
    ],
)
def test_the_map_names_a_chapter_and_an_appendix_by_number(chapter, title):
    assert claim_pages._title(BOOK, chapter) == title


def test_a_table_of_criteria_has_no_inequality_that_does_not_hold():
    table = parsed(claim_html.table(entry({"state": "undecided", "seeds_held": 1}).criteria))
    cells = [cell.get_text(strip=True) for cell in table.select("td")]
    assert cells == ["size", "0.15 ± 0.64", "below 1", "undecided (1 of 2)"]


def test_what_the_same_means_is_said():
    alike = ["accuracy, wrong labels, MLP: with less without", "accuracy, wrong labels, CNN: with"]
    said = ["the same accuracy, MLP: less the rival"]
    finding = [entry({"quantity": q}).criteria[0] for q in (*alike, *said)]
    told = claim_pages.Undecided.referred
    criteria = [*finding[:2], finding[2].model_copy(update={"role": "confines"})]
    claim = entry().model_copy(update={"criteria": criteria})
    assert told(None, claim, criteria[2:]) == " (*the same*: accuracy, wrong labels)"
    assert told(None, claim, criteria[:2]) == ""


@pytest.mark.parametrize(("scale", "told"), [("linear", "2.3"), ("log", "2")])
def test_a_number_is_a_mean_to_two_digits(scale, told):
    found = results.Results(claims=[entry({"values": [1.0, 2.0, 4.0], "scale": scale})])
    assert claim_pages.number(found, "T1", "size") == told
    with pytest.raises(ExtensionError, match="no number of T1, weight"):
        claim_pages.number(found, "T1", "weight")


# --- on the built site


def page(name: str) -> BeautifulSoup:
    path = SITE / BOOK.name / f"{name}.html"
    if not path.exists():
        pytest.fail("there is no site: run `make book` first")
    return site_checks.parsed(path)


@functools.cache
def built() -> results.Results:
    return results.load(CHECKED / "claims.json")


def test_the_front_page_maps_every_claim_by_letter_and_link():
    front = page("index")
    cells = {cell.contents[1].strip(): cell for cell in front.select(".claim-map a.claim-cell")}
    assert sorted(cells) == sorted(entry.id for entry in built().claims)
    for entry in built().claims:
        cell = cells[entry.id]
        assert cell.get_text().endswith(f"{entry.id}: {entry.verdict}")
        assert cell["href"].endswith(entry.page or f"ledger.html#{entry.id}")
    letters = {cell.b.get_text(): cell["class"] for cell in cells.values()}
    assert len({tuple(classes) for classes in letters.values()}) == len(letters)
    counts = [item.get_text().split(": ") for item in front.select(".claim-legend li")]
    shown = {words.partition(" ")[2]: int(count) for words, count in counts}
    assert shown == {word: count for word, count in built().count().items() if count}


def test_the_ledger_has_a_row_a_claim_in_the_articles_order():
    rows = page("ledger").select("details.claim-row")
    assert [row["id"] for row in rows] == [entry.id for entry in built().claims]


@pytest.mark.parametrize(
    ("name", "verdicts"),
    [
        ("errata", ["fails as printed"]),
        ("undecided", ["not reproduced here", "undecided", "not tested"]),
    ],
)
def test_each_claim_that_did_not_hold_has_its_section(name, verdicts):
    told = [heading.get_text().partition(":")[0] for heading in page(name).select("section h2")]
    assert sorted(told) == sorted(e.id for e in built().claims if e.verdict in verdicts)


@pytest.mark.parametrize("name", ["index", "errata", "where_this_leaves_us"])
def test_what_fails_is_listed_and_each_link_has_its_section(name):
    sections = {
        f"errata.html#{section['id']}" for section in page("errata").select("section > section")
    }
    links = [link["href"] for link in page(name).select("article a[href*='errata.html#']")]
    assert sorted(links) == sorted(sections)


def test_the_page_of_other_seeds_counts_them():
    tried = [entry for entry in built().claims if entry.seeds]
    moved = [entry.id for entry in tried if entry.seeds.others]
    listed = [item.a.get_text() for item in page("own_run").select("article ul > li:has(strong)")]
    assert listed in ([], moved)  # of a run of one's own it has the numbers


def test_the_ledger_explains_each_verdict_that_it_has():
    explained = {term.get_text() for term in page("ledger").select("details dt")}
    assert set(built().count()) <= explained


def test_every_checked_claim_has_a_card_with_its_review():
    for entry in built().claims:
        if entry.page:
            card = page(entry.chapter).find(id=f"claim-{entry.id}")
            assert json.loads(card.script.string)["claimReviewed"] == entry.says
            assert "check" in card.details.select_one(".cell_input").get_text()
            assert "Show the code" not in card.parent.parent.get_text()


def test_the_data_and_its_schema_lie_beside_the_pages():
    links = [a["href"] for a in page("ledger").select("a[href*='_static/claims']")]
    assert links == ["../_static/claims.json", "../_static/claims.schema.json"]
    assert results.load(SITE / "_static" / "claims.json") == built()
    schema = json.loads((SITE / "_static" / "claims.schema.json").read_text(encoding="utf-8"))
    assert schema == results.schema()


@pytest.fixture
def ledger(browser):
    """Open the ledger as a file, at an address that may go on."""
    opened = browser.new_page()

    def at(more: str = ""):
        opened.goto((SITE / BOOK.name / "ledger.html").as_uri() + more)
        return opened

    yield at
    opened.close()


def test_menus_filter_the_ledger(ledger):
    opened = ledger()
    everything = len(built().claims)
    assert opened.locator(".claim-row:visible").count() == everything
    opened.get_by_label("Verdict").select_option("holds")
    shown = opened.locator(".claim-row:visible").count()
    assert shown == built().count()["holds"]
    assert opened.locator(".claim-filters output").inner_text() == f"{shown} of {everything} claims"
    opened.get_by_label("Kind").select_option("computed")
    assert 0 < opened.locator(".claim-row:visible").count() < shown


def test_a_link_opens_its_row_and_a_query_chooses(ledger):
    opened = ledger("?verdict=holds#PI2")
    assert opened.locator("#PI2").get_attribute("open") is not None
    assert opened.locator(".claim-row:visible").count() >= built().count()["holds"]


def test_without_a_script_the_ledger_is_one_list(browser):
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto((SITE / BOOK.name / "ledger.html").as_uri())
    assert opened.locator(".claim-row:visible").count() == len(built().claims)
    assert not opened.locator(".claim-filters").is_visible()
    context.close()
