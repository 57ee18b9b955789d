"""The book on paper: pages of the built site printed, and what could be cut looked for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import site_checks
from playwright.sync_api import Browser, Page
from pypdf import PdfReader

from workflow import paper
from workflow.project import CHECKED, ROOT

SITE = CHECKED / "html"
PAGES = {
    "book/02_matrix_norms": "2. Matrix norms",
    "book/notation": "Notation",
    "book/glossary": "Glossary",
    "book/studies/index": "The long studies",
    "book/studies/open_question": "The open question: (19) and (20) on a classifier",
    "book/api/wgan": "Losses and constraints of a critic",
}
NAMES, TITLES = list(PAGES), list(PAGES.values())
#: Some of the glossary's terms; two stood at the foot of a sheet.
GLOSSARY = {"Activation", "Early stopping", "Eigenvalue", "Label noise", "Logit", "Weight decay"}
#: As beforeprint finds the page, and what then reaches over the edge of the paper or lies hidden.
CUT = """() => {
  dispatchEvent(new Event("beforeprint"));
  const right = document.querySelector("article").getBoundingClientRect().right + 1;
  const shown = document.querySelectorAll("article :not(mjx-assistive-mml, mjx-assistive-mml *)");
  return [...shown].filter((node) => {
    const style = getComputedStyle(node);
    const hides = node.clientWidth > 1 && style.overflowX !== "visible" &&
      node.scrollWidth > node.clientWidth + 1;
    return node.checkVisibility() && (hides || node.getBoundingClientRect().right > right);
  }).map((node) => node.outerHTML.slice(0, 120));
}"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> PdfReader:
    target = tmp_path_factory.mktemp("paper") / "some.pdf"
    sheets = paper.print_pages(browser, SITE, target, NAMES)
    reader = PdfReader(target)
    assert sheets == len(reader.pages)
    return reader


@pytest.fixture(scope="module")
def texts(printed: PdfReader) -> list[str]:
    """Return what stands on each sheet, no fi in one piece; to extract it takes ten seconds."""
    return [unicodedata.normalize("NFKC", sheet.extract_text()) for sheet in printed.pages]


def top(lines: list[str]) -> str:
    """Return what stands at the top of a sheet, below its number; a long heading has two lines."""
    words = [line for line in lines if not line.strip().isdigit()]
    return " ".join(" ".join(words[:2]).split())


@pytest.mark.parametrize("title", TITLES)
def test_contents_say_on_which_sheet_a_page_begins(texts, title):
    """The sheet is looked for by its heading, not by what the contents were made from."""
    sheets = [text.split("\n") for text in texts]
    (begins,) = [n for n, lines in enumerate(sheets, 1) if top(lines).startswith(title)]
    contents = next(lines for lines in sheets if "Contents" in lines)
    assert f"{title} {begins}" in contents


def test_paper_has_numbers_links_and_an_outline(printed, texts):
    for number, text in enumerate(texts, 1):
        assert str(number) in text.split()
    links = [
        annotation.get_object()
        for sheet in printed.pages
        for annotation in sheet.get("/Annots") or ()
    ]
    kinds = {link["/A"]["/S"] if "/A" in link else "/Dest" for link in links}
    addresses = [link["/A"]["/URI"] for link in links if link.get("/A", {}).get("/S") == "/URI"]
    assert "/Dest" in kinds or "/GoTo" in kinds
    assert all(address.startswith("https:") for address in addresses), addresses
    begins = [item.title for item in printed.outline if not isinstance(item, list)]
    assert {*TITLES} < {*begins}, "a heading of two lines had lost the space between them"
    assert printed.metadata.title == TITLES[0]


def test_what_is_folded_is_on_paper_but_for_code(texts):
    text = "".join(texts)
    assert "What decides it" in text  # the numbers of a card
    assert "Show code cell source" not in text
    assert "import matplotlib" not in text


def test_no_sheet_is_left_empty_for_words(printed, texts):
    """A heading stood alone: the long table below it had gone whole to the next sheet."""
    lines = [text.split("\n") for text in texts]
    for here, following, sheet in zip(lines, lines[1:], printed.pages[1:], strict=False):
        begins = [title for title in ("Contents", *TITLES) if top(following).startswith(title)]
        assert len(here) > 1, "on this sheet there is its number alone"
        assert len(here) > 12 or begins or len(sheet.images) > 0, here


def test_no_heading_is_the_last_on_a_sheet(texts):
    """So stood the first line of a function's parameters, which the theme lays out as a grid."""
    words = [[line for line in text.split("\n") if not line.strip().isdigit()] for text in texts]
    headings = {"Parameters:", "Returns:", "Return type:", "Raises:", "Examples", *GLOSSARY}
    assert headings.isdisjoint(lines[-1].strip() for lines in words if lines)
    assert headings <= {line.strip() for lines in words for line in lines}


@pytest.fixture
def sheet(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """Return a page as wide as paper."""
    context = browser.new_context(offline=True, viewport={"width": 665, "height": 940})
    context.set_default_timeout(site_checks.PATIENCE)
    page = context.new_page()
    page.emulate_media(media="print")
    yield page
    context.close()


@pytest.mark.parametrize("name", NAMES)
def test_one_page_prints_whole_and_light(sheet, name):
    sheet.goto((SITE / f"{name}.html").as_uri())
    sheet.evaluate("() => window.MathJax?.startup?.promise?.then(() => null)")
    sheet.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert sheet.evaluate(CUT) == []
    assert sheet.evaluate("document.documentElement.dataset.theme") == "light"
    assert sheet.locator("article details:not(.hide, [open])").count() == 0
    assert not sheet.locator(".bd-sidebar-primary").is_visible()
    sheet.evaluate("dispatchEvent(new Event('afterprint'))")
    assert sheet.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.parametrize("width", [390, 1400])
def test_from_any_window_tables_are_as_large_on_paper(browser, width):
    """What a browser tells of printing comes first: tables as wide as a desk were made small."""
    context = browser.new_context(offline=True, viewport={"width": width, "height": 900})
    context.set_default_timeout(site_checks.PATIENCE)
    page = context.new_page()
    page.goto((SITE / "book/studies/open_question.html").as_uri())
    smaller = "() => document.querySelectorAll('article table[style*=zoom]').length"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("article table").count() > 2
    assert page.evaluate(smaller) == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.evaluate("document.querySelector('article table').style.minWidth = '900px'")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(smaller) == 1
    context.close()


def test_names_in_a_table_are_whole(sheet):
    """On paper and on screens: ``validatio`` stood there, and ``n`` below it."""
    sheet.goto((SITE / "book/studies/open_question.html").as_uri())
    broken = """() => [...document.querySelectorAll("td:first-child code .pre")]
      .filter((name) => name.getClientRects().length > 1).map((name) => name.textContent)"""
    for width in (390, 665, 1400):
        sheet.set_viewport_size({"width": width, "height": 900})
        assert sheet.evaluate(broken) == []


def test_no_style_goes_by_a_name_that_paper_changes():
    """Names become those of one long document: labels that were styled by theirs had 5 points."""
    for style in (ROOT / "book" / "_static").glob("*.css"):
        selectors = re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", style.read_text(), flags=re.DOTALL)
        assert [name for name in re.findall(r"#([\w-]+)", selectors) if name[:4] != "pst-"] == []


def test_what_is_cut_is_seen(sheet):
    wide = '<article style="width: 300px"><p style="width: 400px">x</p></article>'
    sheet.set_content(wide)
    assert any("400px" in line for line in sheet.evaluate(CUT))
    sheet.set_content('<article><pre style="width: 9px; overflow: auto">long word</pre></article>')
    assert any("9px" in line for line in sheet.evaluate(CUT))
