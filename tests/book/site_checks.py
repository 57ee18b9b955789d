"""What is wrong with a built site: every check returns its complaints, one line each.

The tests run the checks on the site as it is and, as negative controls, on copies that were
damaged on purpose. The first half reads the files; the second half opens a page in a browser.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from axe_playwright_python.base import AXE_SCRIPT
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import Browser, Page

import lipbook

#: What axe is asked in, neighbours of one width: it takes the theme a while to follow a new one.
#: Both are asked for colours, and the first of a width for the rest, which no theme changes.
COMBINATIONS = [(1400, "dark"), (1400, "light"), (390, "light"), (390, "dark")]
OF_COLOURS = ["color-contrast", "link-in-text-block"]
PATIENCE = 180_000  # milliseconds: on a machine with other work, Playwright's 30 s are too few
_HERE = ("", "file", "data", "blob", "about")
_HOSTS = re.compile(r"\bcdn\.|cdnjs|bootstrapcdn|jsdelivr|unpkg|googleapis|gstatic", re.IGNORECASE)
_MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|usr|private)/\w|file://")


def module_of(name: str) -> str:
    """Return the module whose page of the reference has a public name of the package."""
    module = getattr(lipbook, name).__module__
    return "lipbook.certificate" if module == "lipbook._rules" else module


def pages(site: Path) -> list[Path]:
    """Return every page of a site; the theme keeps HTML under ``_static`` that is none."""
    found = (path for path in site.rglob("*.html") if "_static" not in path.parts)
    return sorted(found)


@functools.cache
def parsed(page: Path) -> BeautifulSoup:
    """Return the tree of a page."""
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def broken_links(page: Path) -> list[str]:
    """Follow every address on a page that stays inside the site, anchors too."""
    site = next(folder for folder in page.parents if (folder / "searchindex.js").exists())
    complaints = []
    for tag, address in _addresses(page):
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            continue
        # Not resolve(): a damaged copy of a site is made of symbolic links.
        path = os.path.normpath(page.parent / unquote(parts.path)) if parts.path else page
        target = Path(path)
        if not (target.is_relative_to(site) and target.is_file()):
            complaints.append(f"<{tag.name}> leads to {address}, which is no file of the site")
        elif parts.fragment and unquote(parts.fragment) not in _ids(target):
            complaints.append(f"<{tag.name}> leads to {address}, which has no such anchor")
    return complaints


def foreign_addresses(page: Path) -> list[str]:
    """Find what a page would load from elsewhere, and links that are not https."""
    complaints = []
    for tag, address in _addresses(page):
        parts = urlsplit(address)
        if parts.scheme in _HERE and not parts.netloc:
            continue
        if "canonical" in tag.get("rel", []):  # the page's own address, for search engines
            continue
        if tag.name != "a":
            complaints.append(f"<{tag.name}> loads {address}")
        elif parts.scheme not in ("https", "mailto"):
            complaints.append(f"a link leads to {address}; use https")
    text = page.read_text(encoding="utf-8")
    complaints += [f"names a host of scripts: {hit}" for hit in _around(_HOSTS, text)]
    loaded = parsed(page).select('script[src*="thebe"], link[href*="thebe"]')
    return complaints + [f"loads thebe: {tag}" for tag in loaded]


def machine_paths(path: Path) -> list[str]:
    """Find absolute paths of the machine that built the site."""
    text = path.read_text(encoding="utf-8")
    return [f"shows a path of one machine: {hit}" for hit in _around(_MACHINE_PATH, text)]


def heading_faults(page: Path) -> list[str]:
    """Ask for exactly one first-level heading in the text."""
    titles = [title.get_text() for title in _article(page).select("h1")]
    return [] if len(titles) == 1 else [f"has {len(titles)} first-level headings: {titles}"]


def picture_faults(page: Path) -> list[str]:
    """Ask each picture for an alternative text and a caption, each input for a name."""
    article, complaints = _article(page), []
    for image in article.select("img"):
        source, alt = str(image.get("src"))[:80], str(image.get("alt", "")).strip()
        if len(alt) < 20:
            complaints.append(f"{source} has the alt text {alt!r}: say what is seen")
        if image.find_parent("figure") is None and image.find_parent(class_="sd-card") is None:
            complaints.append(f"{source} stands in no figure, so it has no caption")
    for figure in article.select("figure"):
        # A numbered figure has "Fig. 1" in its caption even if nobody wrote one.
        caption = figure.select_one(
            "figcaption .caption-text, figcaption:not(:has(.caption-number))"
        )
        if caption is None or not caption.get_text(strip=True):
            complaints.append(f"figure {figure.get('id')!r} has no caption")
    labels = {str(label.get("for")) for label in article.select("label")}
    inputs = article.select("input:not([aria-label], [title], label *)")
    unnamed = [entry for entry in inputs if str(entry.get("id")) not in labels]
    return complaints + [f"{entry} has no label" for entry in unnamed]


def hollow_names(page: Path) -> list[str]:
    """Find what a screen reader calls otherwise than the page does, or by a file's name."""
    article = _article(page)
    folds = [f"a fold hides its words: {fold}" for fold in article.select("summary[aria-label]")]
    named = [link.get_text() for link in article.select("a[href]")]
    return folds + [f"a link is called {name}" for name in named if ".html" in name]


def doubled_backslashes(page: Path) -> list[str]:
    r"""Find formulas in which ``\\lVert`` breaks the line and then says "lVert"."""
    sources = (formula.get_text() for formula in parsed(page).select(".math"))
    hits = (hit for source in sources for hit in _around(re.compile(r"\\\\[A-Za-z]"), source))
    return [f"has a doubled backslash in a formula: {hit}" for hit in hits]


def unanswered_exercises(page: Path) -> list[str]:
    """Ask each exercise for a solution that points back to it."""
    article = _article(page)
    answered = {str(link.get("href")) for link in article.select(".solution .admonition-title a")}
    exercises = [str(exercise.get("id")) for exercise in article.select(".exercise")]
    return [f"exercise {id_} has no solution" for id_ in exercises if f"#{id_}" not in answered]


def scattered_folds(page: Path) -> list[str]:
    """Find hidden code that shows nothing and is not in the fold of the hidden code after it."""
    return [
        f"hides code in two folds in a row: {cell.get_text(strip=True)[:40]}"
        for cell, following in pairwise(parsed(page).select(".cell"))
        if cell.select_one(".cell_output") is None
        and "tag_hide-input" in cell["class"]
        and {"tag_hide-input", "tag_hide-cell"} & {*following["class"]}
    ]


def hollow_headers(page: Path) -> list[str]:
    """Find tables with a row of headers of which most are empty."""
    return [
        f"has a row of empty headers: {table.get_text(' ', strip=True)[:40]}"
        for table in parsed(page).select("table")
        for row in table.select("thead tr")
        if (words := [cell.get_text(strip=True) for cell in row.select("th, td")])
        and words.count("") > len(words) / 2
    ]


def _around(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    for match in pattern.finditer(text):
        yield repr(text[max(match.start() - 30, 0) : match.end() + 30])


@functools.cache
def _ids(page: Path) -> frozenset[str]:
    return frozenset(str(tag["id"]) for tag in parsed(page).select("[id]"))


def _article(page: Path) -> Tag:
    article = parsed(page).select_one("article")
    assert article is not None, f"{page} has no article"
    return article


def _addresses(page: Path) -> Iterator[tuple[Tag, str]]:
    for tag in parsed(page).select("[href], [src], [poster], [action]"):
        for name in ("href", "src", "poster", "action"):
            if tag.has_attr(name):
                yield tag, str(tag[name])


@dataclass(frozen=True)
class Visit:
    """The complaints that one visit of a page in a browser brought up, by kind."""

    requests: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    formulas: list[str] = field(default_factory=list)
    width: list[str] = field(default_factory=list)
    solutions: list[str] = field(default_factory=list)
    theme: list[str] = field(default_factory=list)
    access: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Browser, address: str) -> Iterator[tuple[Page, Visit]]:
    """Open an address; what it asks for and complains of fills the visit until it is left.

    The context is off line: a request that would leave is seen and refused.
    """
    visit = Visit()
    context = browser.new_context(offline=True, color_scheme="light")
    context.set_default_timeout(PATIENCE)
    try:
        page = context.new_page()
        with _listening(page, visit):
            page.goto(address)
            yield page, visit
    finally:
        context.close()


@contextmanager
def _listening(page: Page, visit: Visit) -> Iterator[None]:
    heard: dict[Any, Callable[[Any], None]] = {
        "request": lambda request: _note_request(visit, request.url),
        "console": lambda message: _note_message(visit, message.type, message.text),
        "pageerror": lambda error: visit.console.append(f"uncaught: {error}"),
    }
    for event, note in heard.items():
        page.on(event, note)
    try:
        yield
    finally:
        for event, note in heard.items():
            page.remove_listener(event, note)


class Reader:
    """Reads one page after another in one tab, which keeps what they share in its memory.

    Each page finds the browser as the first did: what the page before has stored is gone, and it
    is left for an empty one.
    """

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._page: Page | None = None
        self._passed: set[str] = set()  # kinds of text whose colours axe found in order

    def look_at(self, path: Path) -> Visit:
        """Load a page once and try everything on it that a reader could."""
        visit = Visit()
        if self._page is None:
            context = self._browser.new_context(offline=True, color_scheme="light")
            context.set_default_timeout(PATIENCE)
            self._page = context.new_page()
        page, self._page = self._page, None
        _resize(page, 1400)
        try:
            with _listening(page, visit):
                page.goto(path.as_uri())
                self._try_everything(page, visit)
            page.evaluate("() => [localStorage, sessionStorage].forEach((kept) => kept.clear())")
            page.goto("about:blank")
        except BaseException:
            page.context.close()
            raise
        self._page = page
        return visit

    def _try_everything(self, page: Page, visit: Visit) -> None:
        page.evaluate("() => window.MathJax?.startup?.promise?.then(() => null)")
        visit.formulas.extend(page.evaluate(_FORMULAS))
        _resize(page, 390)
        visit.width.extend(page.evaluate(_TOO_WIDE))
        _resize(page, 1400)
        visit.solutions.extend(page.evaluate(_SOLUTIONS))
        visit.theme.extend(_theme_faults(page))
        visit.access.extend(self._access_faults(page))

    def _access_faults(self, page: Page) -> Iterator[str]:
        """Ask axe about a page with everything unfolded: of colours, and once a width of the rest.

        Colours took nine tenths of its time: of the texts that a browser paints alike it judges
        one, on every page until one has passed. What MathJax paints is not ours, and has the colour
        of the text that it stands in.
        """
        page.evaluate(_PREPARE_FOR_AXE)
        page.evaluate(AXE_SCRIPT)
        page.evaluate(_JUDGE_THE_MARKED)
        for width, theme in COMBINATIONS:
            page.evaluate("theme => (document.documentElement.dataset.theme = theme)", theme)
            resized = _resize(page, width)
            found = page.evaluate(_COLOUR_FAULTS, [OF_COLOURS, sorted(self._passed)])
            self._passed.update(found["passed"])
            faults = found["faults"]
            if resized or (width, theme) == COMBINATIONS[0]:
                faults += page.evaluate(_OTHER_FAULTS, OF_COLOURS)
            for rule, node in faults:
                yield f"{rule}: {node} ({theme}, {width} px)"


def _note_request(visit: Visit, address: str) -> None:
    if urlsplit(address).scheme not in _HERE:
        visit.requests.append(f"asks for {address}")


def _note_message(visit: Visit, kind: str, text: str) -> None:
    if kind in ("error", "warning"):
        visit.console.append(f"{kind}: {text}")


def _resize(page: Page, width: int) -> bool:
    """Give a page another width, if it has not that one; it then has a promise to have settled.

    The theme lets a sidebar glide into its place, and the text beside it: here they are there.
    """
    size = {"width": width, "height": 900}
    if page.viewport_size == size:
        return False
    page.evaluate(_PROMISE_TO_SETTLE)
    page.set_viewport_size(size)
    page.evaluate("() => document.getAnimations().forEach((glide) => glide.finish())")
    return True


def _theme_faults(page: Page) -> Iterator[str]:
    background = "() => getComputedStyle(document.body).backgroundColor"
    theme = "() => document.documentElement.dataset.theme"
    if page.evaluate(theme) != "light":
        yield "is not light at first"
    light = page.evaluate(background)
    button = page.locator(".theme-switch-button").first
    if not button.is_visible():
        yield "has no button for the theme"
    for _ in range(2):  # light, as the system has it, dark
        button.dispatch_event("click")  # no mouse over it: its tooltip would lie over the page
        if page.evaluate(theme) == "dark":
            break
    else:
        yield "does not get dark by its button"
    if page.evaluate(background) == light:
        yield "has the same background in dark"


#: Of code, too, a token of each kind is enough, of thousands; one in a link has the link's line.
_PREPARE_FOR_AXE = """() => {
  document.activeElement.blur(); // the theme's tooltips stand in no landmark
  document.querySelectorAll("mjx-container").forEach((formula) => formula.remove());
  document.querySelectorAll("article details").forEach((fold) => (fold.open = true));
  for (const frame of [document.documentElement, ...document.querySelectorAll(".bd-sidebar")])
    frame.scrollTo({ top: 0, behavior: "instant" });
  const kinds = new Set();
  for (const token of document.querySelectorAll("pre span:not(:has(span), a > *)"))
    if (kinds.has(token.className)) token.replaceWith(token.textContent);
    else kinds.add(token.className);
}"""

_JUDGE_THE_MARKED = """() => axe.configure({ rules: [
  { id: "color-contrast", selector: "[data-judged]" },
  { id: "link-in-text-block", selector: "a[href][data-judged]" },
] })"""

#: Texts are alike in their own colour, size and weight, in what they stand on, in the text around
#: them, and if they are links in whether they stand in a text. A colour that glides when the theme
#: changes is taken where it ends, and a sidebar has room for all of its links. A kind has passed if
#: axe says so, and not if it could not tell; of the texts in a drawing it never can.
_COLOUR_FAULTS = r"""async ([rules, passed]) => {
  document.getAnimations().forEach((glide) => glide.finish());
  document.querySelectorAll("[data-judged]").forEach((node) => delete node.dataset.judged);
  const grounds = new Map([[null, ""]]);
  const ground = (node) => {
    if (!grounds.has(node)) {
      const { backgroundColor, backgroundImage, opacity, position } = getComputedStyle(node);
      const own = [backgroundColor, backgroundImage, opacity].join();
      const lifted = ["absolute", "fixed"].includes(position) ? `|${node.className}` : "";
      const below = ground(node.parentElement);
      grounds.set(node, below + (own === "rgba(0, 0, 0, 0),none,1" ? "" : `|${own}`) + lifted);
    }
    return grounds.get(node);
  };
  const isSeen = (node) => {
    const { width, height, bottom } = node.getBoundingClientRect();
    const isPainted = node.checkVisibility({ visibilityProperty: true });
    return isPainted && width > 1 && height > 1 && bottom > 0;
  };
  const says = (node) => [...node.childNodes].some((child) =>
    child.nodeType === 3 && /[\p{L}\p{N}]/u.test(child.data));
  const within = (node) => {
    const block = node.parentElement.closest("p, li, dd, dt, td, th, figcaption, div, body");
    return [...block.childNodes].some((part) => part.nodeName !== "A" && part.textContent.trim());
  };
  const marked = new Map(), seen = new Set(passed);
  for (const node of document.querySelectorAll("body :not(svg, svg *)")) {
    if (!says(node) || !isSeen(node)) continue;
    const own = getComputedStyle(node), around = getComputedStyle(node.parentElement);
    const kind = [node.tagName === "A" ? within(node) : "text", own.color, own.fontSize,
      own.fontWeight, own.textShadow, own.textDecorationLine, around.color, around.fontWeight,
      ground(node),
    ].join("/");
    if (!seen.has(kind)) {
      node.dataset.judged = "";
      marked.set(node, kind);
    }
    seen.add(kind);
  }
  if (!marked.size) return { faults: [], passed: [] };
  const frames = document.querySelectorAll(".bd-sidebar");
  frames.forEach(({ style }) => { style.maxHeight = "none"; style.overflow = "visible"; });
  const resultTypes = ["violations", "incomplete", "passes"];
  const found = await axe.run(
    { include: [["[data-judged]"]] },
    { preload: false, resultTypes, runOnly: rules, elementRef: true },
  );
  frames.forEach(({ style }) => { style.maxHeight = style.overflow = ""; });
  const nodes = (found) => found.flatMap(({ nodes }) => nodes.map(({ element }) => element));
  const doubtful = new Set(nodes([...found.violations, ...found.incomplete]));
  return {
    faults: found.violations.flatMap(({ id, nodes }) =>
      nodes.map(({ html }) => [id, html.slice(0, 120)])),
    passed: nodes(found.passes)
      .filter((node) => !doubtful.has(node)).map((node) => marked.get(node)),
  };
}"""

_OTHER_FAULTS = """async (but) => {
  await window.settled;
  const rules = Object.fromEntries(but.map((rule) => [rule, { enabled: false }]));
  const found = await axe.run(document, { preload: false, resultTypes: ["violations"], rules });
  return found.violations.flatMap(({ id, nodes }) =>
    nodes.map(({ html }) => [id, html.slice(0, 120)]));
}"""

#: The theme lets the keyboard reach what scrolls 300 ms after a change of the window's size.
_PROMISE_TO_SETTLE = """() => {
  window.settled = new Promise((done) =>
    addEventListener("resize", () => setTimeout(done, 350), { once: true }));
}"""

#: As a mouse does: what lies at a corner of the title is clicked, and nothing below it.
_SOLUTIONS = """() => {
  const complaints = [];
  const isShown = (node) => {
    const { width, height } = node.getBoundingClientRect();
    return width > 0 && height > 0 && node.checkVisibility({ visibilityProperty: true });
  };
  for (const solution of document.querySelectorAll(".solution")) {
    const title = solution.querySelector(":scope > .admonition-title");
    const content = solution.querySelector(":scope > :not(.admonition-title)");
    if (isShown(content)) complaints.push(`solution '${solution.id}' is not hidden`);
    title.scrollIntoView({ block: "center", behavior: "instant" });
    const { left, top } = title.getBoundingClientRect();
    const pressed = document.elementFromPoint(left + 5, top + 5);
    if (title.contains(pressed)) pressed.click();
    if (!isShown(content)) complaints.push(`solution '${solution.id}' does not open`);
  }
  return complaints;
}"""

# MathJax marks what it could not read, in the picture and again in the text for screen readers.
# What it never saw keeps its dollars or macros in the text; code may have them.
_FORMULAS = r"""() => {
  const complaints = new Set();
  for (const node of document.querySelectorAll("[data-mjx-error]"))
    complaints.add("cannot be set: " + node.dataset.mjxError);
  for (const node of document.querySelectorAll(".math:not(:has(mjx-container))"))
    complaints.add("was not set: " + node.textContent.slice(0, 80));
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (node.parentElement.closest("script, style, pre, code, noscript, .math")) continue;
    if (/\$|\\[(\[]|\\[A-Za-z]{2}/.test(node.data))
      complaints.add("is left as text: " + node.data.trim().slice(0, 80));
  }
  return [...complaints];
}"""

_TOO_WIDE = """() => {
  const excess = document.documentElement.scrollWidth - innerWidth;
  const cut = [...document.querySelectorAll("div.math")].filter((line) =>
    (line.querySelector("svg") ?? line).getBoundingClientRect().left <
      line.getBoundingClientRect().left - 1);
  const place = (node, start, end) => {
    const range = new Range();
    range.setStart(node, start);
    range.setEnd(node, end);
    return range.getClientRects();
  };
  const names = [...document.querySelectorAll("td .pre, th .pre")].flatMap((name) =>
    [...name.childNodes].filter((part) =>
      part.nodeType === 3 && !part.data.includes("-") && place(part, 0, part.length).length > 1));
  const stops = [...document.querySelectorAll("span.math")].filter(({ nextSibling: next }) =>
    next?.nodeType === 3 && /^[.,;:!?)]/.test(next.data) &&
      place(next, 0, 1)[0]?.left < next.previousSibling.getBoundingClientRect().right - 1);
  return [
    ...(excess > 0 ? [`is ${excess} px too wide for a telephone`] : []),
    ...cut.map((line) => "cuts a formula on its left: " + line.textContent.slice(0, 60)),
    ...names.map((part) => "cuts a name in a table: " + part.data),
    ...stops.map((formula) => "begins a line with the stop of " + formula.textContent),
  ];
}"""
