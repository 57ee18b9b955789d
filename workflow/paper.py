"""The book on paper: every page of the built site in one PDF, printed by a browser.

The browser sets the formulas, breaks the sheets and follows links. What it can't do is to say in
the contents on which sheet a page begins: so it prints twice, and the first print tells.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag
from playwright.sync_api import Browser, sync_playwright
from pypdf import PdfReader

from workflow.browser import FLAGS, ensure
from workflow.project import BUILD, WorkflowError, documents, written

PDF = BUILD / "lipbook.pdf"
#: What is of use on a screen alone. Of the ledger the rows stay: their numbers are in the cards.
_SCREEN = (
    ".headerlink, .claim-filters, .touch-inputs, details.hide, details.claim-row > div, script"
)
#: What a page needs to look as it does: its styles, MathJax and what prepares a page for paper.
_STYLES = 'link[rel="stylesheet"]'
_SCRIPTS = 'script[src*="mathjax"], script[src*="print.js"]'
_PATIENCE = 600_000  # milliseconds


def print_book(site: Path, target: Path) -> int:
    """Print a site into one PDF; return how many sheets it has.

    Raises
    ------
    WorkflowError
        If there is no browser.
    """
    program = ensure()
    if program is None:
        raise WorkflowError("no browser to print with: install Chromium, or set CHROMIUM to one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        sheets = print_pages(browser, site, target, documents())
        browser.close()
    return sheets


def print_pages(browser: Browser, site: Path, target: Path, names: Sequence[str]) -> int:
    """Print pages of a site, named as ``book/ledger``, into one PDF; return its sheets' number."""
    whole = target.with_suffix(".html").resolve()
    whole.parent.mkdir(parents=True, exist_ok=True)
    whole.write_text(compose(site.resolve(), names), encoding="utf-8")
    # As wide as paper, and set as on paper, when print.js measures what is too wide.
    paper = browser.new_context(offline=True, viewport={"width": 665, "height": 940})
    with paper as context, written(target) as partial:
        page = context.new_page()
        page.emulate_media(media="print")
        page.set_default_timeout(_PATIENCE)
        page.goto(whole.as_uri())
        page.evaluate("() => window.MathJax?.startup?.promise?.then(() => null)")
        for _ in range(2):
            page.pdf(path=partial, prefer_css_page_size=True, outline=True, tagged=True)
            page.evaluate(_NUMBER, first_sheets(partial))
        sheets = len(PdfReader(partial).pages)
    whole.unlink()
    return sheets


#: Writes into the contents the number of the sheet on which each page begins.
_NUMBER = """(sheets) => {
  for (const entry of document.querySelectorAll(".paper-contents li"))
    entry.querySelector("span").textContent = sheets[entry.querySelector("a").hash.slice(1)];
}"""


def first_sheets(pdf: Path) -> dict[str, int]:
    """Return the number, from 1, of the sheet to which each name in a PDF leads."""
    reader = PdfReader(pdf)
    found = reader.named_destinations.items()
    numbers = {name: reader.get_destination_page_number(place) for name, place in found}
    return {name.removeprefix("/"): n + 1 for name, n in numbers.items() if n is not None}


def compose(site: Path, names: Sequence[str]) -> str:
    """Return one HTML document of the pages of a site, with contents after the first."""
    paths = {name: site / f"{name}.html" for name in names}
    trees = {
        name: BeautifulSoup(path.read_text("utf-8"), "html.parser") for name, path in paths.items()
    }
    head = {str(tag): None for name, tree in trees.items() for tag in _head(tree, paths[name])}
    articles = [_article(tree, name, paths) for name, tree in trees.items()]
    articles.insert(1, _contents(trees))
    title = trees[names[0]].select_one("article h1")
    return (
        '<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
        f"<title>{html.escape(title.get_text()) if title else ''}</title>{''.join(head)}</head>"
        '<body><main class="bd-main"><div class="bd-content"><div class="bd-article-container">'
        f"{''.join(articles)}</div></div></main></body></html>"
    )


def _head(tree: BeautifulSoup, path: Path) -> list[Tag]:
    """Return the styles and scripts of a page that paper needs, with whole addresses."""
    settings = [tag for tag in tree.select("script") if "window.MathJax" in tag.get_text()]
    loaded = tree.select(f"{_STYLES}, {_SCRIPTS}")
    for tag in loaded:
        name = "href" if tag.name == "link" else "src"
        tag[name] = _whole(str(tag[name]), path)
    return settings + loaded


def _contents(trees: dict[str, BeautifulSoup]) -> str:
    entries = []
    for name, tree in trees.items():
        title = tree.select_one("article h1")
        words = html.escape(title.get_text()) if title else name
        entries.append(f'<li><a href="#{_anchor(name)}">{words}</a> <span></span></li>')
    return (
        '<article class="bd-article paper-page paper-contents"><h1>Contents</h1>'
        f"<ul>{''.join(entries)}</ul></article>"
    )


def _article(tree: BeautifulSoup, name: str, paths: dict[str, Path]) -> str:
    """Return the text of a page, its names and links made those of one long document."""
    article = tree.select_one("article")
    if article is None:
        raise WorkflowError(f"{paths[name]} has no text to print")
    for tag in article.select(_SCREEN):
        tag.decompose()
    for tag in article.select("[id]"):
        tag["id"] = _anchor(name, str(tag["id"]))
    for image in article.select("img[src]"):
        image["src"] = _whole(str(image["src"]), paths[name])
    for link in article.select("a[href]"):
        _lead(link, name, paths)
    article["id"] = _anchor(name)
    article["class"] = "bd-article paper-page"
    return str(article)


def _lead(link: Tag, name: str, paths: dict[str, Path]) -> None:
    """Let a link lead to its place on paper, or nowhere if it is a file of the site."""
    parts = urlsplit(str(link["href"]))
    if parts.scheme or parts.netloc:
        return
    target = (paths[name].parent / unquote(parts.path)).resolve() if parts.path else paths[name]
    if page := {path: other for other, path in paths.items()}.get(target):
        link["href"] = "#" + _anchor(page, unquote(parts.fragment))
    else:
        del link["href"]


def _anchor(name: str, fragment: str = "") -> str:
    return f"{name}:{fragment}".rstrip(":")


def _whole(address: str, page: Path) -> str:
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return address
    return (page.parent / unquote(parts.path)).resolve().as_uri()
