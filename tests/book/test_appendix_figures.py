"""Figures of an appendix carry its number."""

from __future__ import annotations

import pytest
import site_checks
from appendix_figures import by_page

from workflow.project import BOOK, CHECKED, chapters, is_appendix


def test_figures_are_numbered_by_their_page():
    assert by_page("4a", {"b": (9,), "a": (8,)}) == {"b": ("4a", 2), "a": ("4a", 1)}


@pytest.mark.parametrize("chapter", [c for c in chapters() if is_appendix(c)])
def test_an_appendix_counts_its_own_figures(chapter):
    page = CHECKED / "html" / BOOK.name / f"{chapter}.html"
    if not page.exists():
        pytest.fail("there is no site: run `python -m workflow check` first")
    number = chapter.partition("_")[0].lstrip("0")
    shown = [caption.get_text() for caption in site_checks.parsed(page).select(".caption-number")]
    figures = [words.strip() for words in shown if words.startswith("Fig.")]
    assert figures
    assert all(words.startswith(f"Fig. {number}.") for words in figures)


@pytest.mark.parametrize("name", ["index", "errata"])
def test_a_page_of_no_chapter_has_none(name):
    page = CHECKED / "html" / BOOK.name / f"{name}.html"
    if not page.exists():
        pytest.fail("there is no site: run `python -m workflow check` first")
    captions = site_checks.parsed(page).select("figcaption")
    assert captions
    assert not [caption for caption in captions if caption.select(".caption-number")]
