"""The book on paper: pages of the built site printed, and what could be cut looked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import site_checks
from playwright.sync_api import Browser, Page
from pypdf import PdfReader

from workflow import paper
from workflow.project import CHECKED

SITE = CHECKED / "html"
PAGES = {
    "book/02_matrix_norms": "2. Matrix norms",
    "book/notation": "Notation",
    "book/studies/index": "The long studies",
    "book/api/wgan": "Losses and constraints of a critic",
}
NAMES, TITLES = list(PAGES), list(PAGES.values())
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
    """Return what stands on each sheet; to extract it takes ten seconds and more."""
    return [sheet.extract_text() for sheet in printed.pages]


@pytest.mark.parametrize("title", TITLES)
def test_contents_say_on_which_sheet_a_page_begins(texts, title):
    """The sheet is looked for by its heading, not by what the contents were made from."""
    sheets = [text.split("\n") for text in texts]
    (begins,) = [n for n, lines in enumerate(sheets, 1) if title in lines[:2]]
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
    assert len(printed.outline) > 2


def test_what_is_folded_is_on_paper_but_for_code(texts):
    text = "".join(texts)
    assert "What decides it" in text  # the numbers of a card
    assert "Show code cell source" not in text
    assert "import matplotlib" not in text


def test_no_sheet_is_left_empty_for_words(printed, texts):
    """A heading stood alone: the long table below it had gone whole to the next sheet."""
    lines = [text.split("\n") for text in texts]
    for here, following, sheet in zip(lines, lines[1:], printed.pages[1:], strict=False):
        begins = {"Contents", *TITLES}.intersection(following[:2])
        assert len(here) > 1, "on this sheet there is its number alone"
        assert len(here) > 12 or begins or len(sheet.images) > 0, here


def test_no_heading_is_the_last_on_a_sheet(texts):
    """So stood the first line of a function's parameters, which the theme lays out as a grid."""
    words = [[line for line in text.split("\n") if not line.strip().isdigit()] for text in texts]
    headings = {"Parameters:", "Returns:", "Return type:", "Raises:", "Examples"}
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


def test_what_is_cut_is_seen(sheet):
    wide = '<article style="width: 300px"><p style="width: 400px">x</p></article>'
    sheet.set_content(wide)
    assert any("400px" in line for line in sheet.evaluate(CUT))
    sheet.set_content('<article><pre style="width: 9px; overflow: auto">long word</pre></article>')
    assert any("9px" in line for line in sheet.evaluate(CUT))
