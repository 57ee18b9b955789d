"""The built site, as a reader meets it: read as files, and in a real browser without network.

Every check is also run on a page that was damaged on purpose, and has to complain of it.
"""

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
import site_checks
import yaml
from playwright.sync_api import expect

import lipbook
from workflow import passed
from workflow import stage as staging
from workflow.project import BOOK, CHECKED, ROOT, chapters, is_appendix, source
from workflow.stage import repository_url

SITE = CHECKED / "html"
PAGES = [page.relative_to(SITE).as_posix() for page in site_checks.pages(SITE)]
TEXTS = [name for name in PAGES if name.startswith(f"{BOOK.name}/")]
# index.html only sends the reader on; the search test goes through it.
VISITED = [name for name in PAGES if name != "index.html"]
PLAIN = ("index", "ledger", "errata", "undecided", "own_run", "glossary")
REPOSITORY = "https://github.com/someone/lipbook"
ADDRESS = "https://someone.github.io/lipbook"


@pytest.fixture(scope="module", autouse=True)
def _built():
    if not (SITE / "index.html").exists():
        pytest.fail("there is no site: run `python -m workflow check` first")


def test_no_page_is_missing():
    expected = {f"{BOOK.name}/{chapter}.html" for chapter in chapters()}
    expected |= {f"{BOOK.name}/{name}.html" for name in PLAIN}
    assert expected <= set(PAGES)


# The site as files.


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(
    "check",
    [site_checks.broken_links, site_checks.foreign_addresses, site_checks.machine_paths],
)
def test_page(name, check):
    assert check(SITE / name) == []


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    "check",
    [
        site_checks.heading_faults,
        site_checks.picture_faults,
        site_checks.hollow_names,
        site_checks.doubled_backslashes,
        site_checks.unanswered_exercises,
        site_checks.scattered_folds,
        site_checks.hollow_headers,
    ],
)
def test_text(name, check):
    assert check(SITE / name) == []


@pytest.mark.parametrize("name", TEXTS)
def test_a_page_describes_itself(name):
    tags = site_checks.parsed(SITE / name).select('meta[name="description"]')
    assert [len(tag["content"]) > 20 for tag in tags] == [True]


def test_the_front_page_says_its_name_once():
    page = site_checks.parsed(SITE / BOOK.name / "index.html")
    assert page.title.get_text() == "Lipschitz constraints in deep learning, executed"


def test_chapters_are_numbered_in_the_sidebar():
    page = site_checks.parsed(SITE / BOOK.name / "index.html")
    links = [link.get_text(strip=True) for link in page.select("nav.bd-links a.internal")]
    numbers = [text.partition(".")[0] for text in links]
    numbered = [number for number in numbers if number.isdigit()]  # 6a says so itself
    assert numbered == [
        str(k + 1) for k in range(len([c for c in chapters() if not is_appendix(c)]))
    ]


def test_nothing_offered_beside_the_pages_shows_a_machine_path():
    beside = [path for path in (SITE / "_sources").rglob("*") if path.is_file()]
    assert beside
    complaints = [site_checks.machine_paths(path) for path in (*beside, SITE / "searchindex.js")]
    assert not any(complaints), complaints


@pytest.mark.parametrize("name", lipbook.__all__)
def test_a_public_name_has_its_place_in_the_reference(name):
    module = site_checks.module_of(name)
    page = site_checks.parsed(SITE / BOOK.name / "api" / f"{module.partition('.')[2]}.html")
    assert page.find(id=f"{module}.{name}") is not None


@pytest.mark.parametrize("chapter", [c for c in chapters() if not is_appendix(c)])
def test_chapter_has_exercises(chapter):
    assert 'class="exercise' in (SITE / BOOK.name / f"{chapter}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("chapter", chapters())
def test_no_code_is_lost_in_a_fold(chapter):
    page = site_checks.parsed(SITE / BOOK.name / f"{chapter}.html")
    shown = [" ".join(code.get_text().split()) for code in page.select(".cell_input pre")]
    cells = nbformat.read(source(chapter), as_version=4).cells
    code = [" ".join(cell.source.split()) for cell in cells if cell.cell_type == "code"]
    assert [text for text in shown if text in code] == [text for text in code if text in shown]
    assert len(shown) >= len(code)  # a run at other parameters has a cell more


# The site in a browser: one visit a page, whose complaints the tests share.


@pytest.fixture(scope="module")
def reader(browser):
    return site_checks.Reader(browser)


@pytest.fixture(scope="module", params=VISITED)
def visit(request, reader):
    key = passed.page_key(SITE, request.param)
    if request.config.getoption("--keep-passed") and passed.is_noted(request.param, key):
        return site_checks.Visit()
    seen = reader.look_at(SITE / request.param)
    passed.note(request.param, key, seen == site_checks.Visit())
    return seen


def test_a_page_is_looked_at_again_if_anything_changes(tmp_path, monkeypatch):
    site, checks = tmp_path / "html", tmp_path / "tests" / "book" / "site_checks.py"
    monkeypatch.setattr(passed, "_FOLDER", tmp_path / "passed")
    monkeypatch.setattr(passed, "ROOT", tmp_path)
    monkeypatch.setattr(passed, "find", lambda: sys.executable)
    page, style = site / "book" / "a.html", site / "_static" / "a.css"
    lock = tmp_path / "requirements.lock"
    for file in (page, style, checks, lock):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("before")
    assert passed.pages_seen(site) == []
    for changed in (page, style, checks, lock):
        passed.note("book/a.html", passed.page_key(site, "book/a.html"), True)
        assert passed.pages_seen(site) == ["book/a.html"]
        changed.write_text("after")
        passed._of_all_pages.cache_clear()
        assert passed.pages_seen(site) == []
    passed.note("book/a.html", passed.page_key(site, "book/a.html"), True)
    assert passed.pages_seen(site) == ["book/a.html"]
    passed.note("book/a.html", passed.page_key(site, "book/a.html"), False)
    assert passed.pages_seen(site) == []
    passed.note("book/a.html", passed.page_key(site, "book/a.html"), True)
    monkeypatch.setattr(passed, "find", lambda: __file__)
    passed._of_all_pages.cache_clear()
    assert passed.pages_seen(site) == []
    passed._of_all_pages.cache_clear()


def test_no_request_leaves(visit):
    assert visit.requests == []


def test_console_is_silent(visit):
    assert visit.console == []


def test_formulas_are_set(visit):
    assert visit.formulas == []


def test_fits_a_telephone(visit):
    assert visit.width == []


def test_solutions_are_hidden_and_open(visit):
    assert visit.solutions == []


def test_theme_turns_dark(visit):
    assert visit.theme == []


def test_axe_finds_nothing(visit):
    assert visit.access == []


#: What the keyboard reaches, less what shows that it has been reached. (A ring, or a shadow.)
UNSEEN = """() => {
  const stops = [...document.querySelectorAll("a[href], button, input, summary, [tabindex='0']")];
  return stops.filter((node) => {
    node.focus();
    const style = getComputedStyle(node);
    const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
    return document.activeElement === node && !ring && style.boxShadow === "none";
  }).map((node) => node.outerHTML.slice(0, 120));
}"""


@pytest.mark.parametrize("name", [f"{BOOK.name}/{chapters()[0]}.html", f"{BOOK.name}/ledger.html"])
def test_the_place_of_the_keyboard_is_seen(browser, name):
    with site_checks.opened(browser, (SITE / name).as_uri()) as (page, _):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent").strip() == "Skip to main content"
        assert page.evaluate(UNSEEN) == []
        page.add_style_tag(content=":is(a, #x):focus-visible { outline: none !important }")
        assert page.evaluate(UNSEEN) != []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_page_is_as_dark_as_the_system(browser, theme):
    """And the first press of the button changes what is seen."""
    context = browser.new_context(offline=True, color_scheme=theme)
    context.set_default_timeout(site_checks.PATIENCE)
    page = context.new_page()
    page.goto((SITE / BOOK.name / "index.html").as_uri())
    themes = [page.evaluate("document.documentElement.dataset.theme")]
    page.locator(".theme-switch-button:visible").first.click()
    themes.append(page.evaluate("document.documentElement.dataset.theme"))
    context.close()
    assert themes == [theme, {"light": "dark", "dark": "light"}[theme]]


@contextmanager
def read_by_key(browser, width):
    """Open a chapter with its formulas set, as wide as a desk or a phone has it."""
    address = (SITE / BOOK.name / f"{chapters()[0]}.html").as_uri()
    with site_checks.opened(browser, address) as (page, _):
        page.set_viewport_size({"width": width, "height": 800})
        page.evaluate("() => window.MathJax.startup.promise.then(() => null)")
        yield page


@pytest.mark.parametrize("width", [390, 1400])
def test_the_skip_link_leads_to_the_text(browser, width):
    with read_by_key(browser, width) as page:
        for key in ("Tab", "Enter", "Tab"):
            page.keyboard.press(key)
        assert page.evaluate("document.activeElement.closest('article') !== null")


#: The formulas that the keyboard reaches, and those that scroll: on a phone there are some.
STOPS = """() => {
  const formulas = [...document.querySelectorAll("mjx-container")];
  const reached = (formula) => formula.tabIndex === 0;
  const scrolls = (formula) => formula.scrollWidth > formula.clientWidth;
  const blocks = formulas.filter((formula) => formula.matches("[display]"));
  const both = [formulas.filter(reached), blocks.filter(scrolls)];
  return both.map((some) => some.map((formula) => formula.textContent));
}"""


@pytest.mark.parametrize("width", [390, 1400])
def test_of_the_formulas_the_keyboard_reaches_those_that_scroll(browser, width):
    with read_by_key(browser, width) as page:
        page.add_style_tag(content=".bd-content { font-size: 150% }")
        page.wait_for_timeout(500)
        reached, scrolling = page.evaluate(STOPS)
        assert reached == scrolling
        assert any(reached) == (width == 390)


@pytest.mark.parametrize(
    ("width", "button"),
    [
        (390, ".primary-toggle"),
        (390, ".search-button"),
        (390, ".secondary-toggle"),
        (390, ".theme-switch-button"),
        (1400, ".primary-toggle"),
        (1400, ".theme-switch-button"),
    ],
)
def test_the_keyboard_keeps_its_place_at_a_button(browser, width, button):
    """It stays in the panel that the button opens, and is at the button again when Esc shuts it."""
    with read_by_key(browser, width) as page:
        pressed = page.locator(f"{button}:visible").first
        pressed.focus()
        page.keyboard.press("Enter")
        if width == 390 and button != ".theme-switch-button":
            page.locator("dialog[open]").wait_for()
            for _ in range(3):
                page.keyboard.press("Tab")
                assert page.evaluate("document.activeElement.matches('dialog[open] *')")
            page.keyboard.press("Escape")
        expect(pressed).to_be_focused()


def test_a_panel_shuts_when_a_place_on_the_page_is_chosen(browser):
    with read_by_key(browser, 390) as page:
        page.locator(".secondary-toggle:visible").first.click()
        chosen = page.locator("dialog[open] a[href^='#']").last
        target = chosen.get_attribute("href")
        chosen.click()
        expect(page.locator("dialog[open]")).to_have_count(0)
        expect(page.locator(target)).to_be_in_viewport()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('article') !== null")


def test_a_mouse_leaves_no_ring_on_a_button(browser):
    with read_by_key(browser, 1400) as page:
        page.locator(".theme-switch-button:visible").first.click()
        page.wait_for_timeout(100)
        assert page.evaluate("document.activeElement === document.body")


def search(browser, term):
    """Search as a reader does, from the first page; return what was found and the complaints."""
    with site_checks.opened(browser, (SITE / "index.html").as_uri()) as (page, visit):
        page.wait_for_url("**/book/index.html")
        page.keyboard.press("Control+k")
        page.locator("dialog[open] input[type=search]").fill(term)
        page.keyboard.press("Enter")
        page.get_by_text(re.compile("^Search finished|did not match any")).wait_for()
        links = page.locator("#search-results li a")
        found = [link.get_attribute("href") for link in links.all()]
        if found:
            with page.expect_navigation():
                links.first.click()
            assert term.lower() in page.locator("article").inner_text().lower()
    return found, visit


def test_search_finds_a_term_in_a_chapter(browser):
    found, visit = search(browser, "Lipschitz")
    assert any(chapter in address for address in found for chapter in chapters())
    assert visit.requests + visit.console == []


def test_search_finds_nothing_where_nothing_is(browser):
    found, _ = search(browser, "qwertzuiop")
    assert found == []


# Negative controls: a page that was damaged has its check complain.


def damaged(folder, *additions):
    """Return a page with formulas, and more, in a copy of the site."""
    with_formulas = [SITE / n for n in TEXTS if "tex-svg" in (SITE / n).read_text(encoding="utf-8")]
    page = min(with_formulas, key=lambda path: path.stat().st_size)
    shutil.copytree(SITE, folder / "site", copy_function=os.symlink)
    copy = folder / "site" / page.relative_to(SITE)
    before, end, after = page.read_text(encoding="utf-8").partition("</article>")
    copy.unlink()
    copy.write_text("".join([before, *additions, end, after]), encoding="utf-8")
    return copy


ALT = "A picture of something, told in words"


@pytest.mark.parametrize(
    ("check", "addition", "complaint"),
    [
        ("broken_links", '<a href="nowhere.html">x</a>', "no file of the site"),
        ("broken_links", '<a href="#nowhere">x</a>', "no such anchor"),
        ("broken_links", '<a href="index.html#nowhere">x</a>', "no such anchor"),
        ("broken_links", '<a href="../../outside.html">x</a>', "no file of the site"),
        ("broken_links", '<img src="nowhere.png">', "no file of the site"),
        ("foreign_addresses", '<img src="https://example.org/a.png">', "<img> loads"),
        ("foreign_addresses", '<img src="//example.org/a.png">', "<img> loads"),
        ("foreign_addresses", '<link rel="stylesheet" href="https://example.org/a.css">', "<link>"),
        ("foreign_addresses", '<a href="http://example.org">x</a>', "use https"),
        ("foreign_addresses", "<script>load('https://cdn.example.org/a.js')</script>", "host"),
        ("foreign_addresses", '<script src="../_static/sphinx-thebe.js"></script>', "thebe"),
        ("machine_paths", "<pre>File '/home/somebody/book/a.py'</pre>", "/home/somebody"),
        ("machine_paths", "<pre>/work/main/lipbook/a.py</pre>", "/work/main"),
        ("heading_faults", "<h1>Another title</h1>", "2 first-level headings"),
        ("picture_faults", '<img src="a.png">', "alt text ''"),
        ("picture_faults", '<img src="a.png" alt="a plot">', "alt text 'a plot'"),
        ("picture_faults", f'<img src="a.png" alt="{ALT}">', "stands in no figure"),
        ("picture_faults", f'<figure><img src="a.png" alt="{ALT}"></figure>', "has no caption"),
        (
            "picture_faults",
            '<figure><figcaption><span class="caption-number">Fig. 1</span></figcaption></figure>',
            "has no caption",
        ),
        ("picture_faults", '<input type="range">', "has no label"),
        ("hollow_names", '<summary aria-label="Fold">Proof</summary>', "hides its words"),
        ("hollow_names", '<a href="index.html">index.html</a>', "called index.html"),
        ("doubled_backslashes", r'<span class="math">\(\\lVert x\)</span>', "doubled backslash"),
        ("unanswered_exercises", '<div class="exercise" id="ex"></div>', "exercise ex has no"),
        (
            "scattered_folds",
            '<div class="cell tag_hide-input">a</div>' * 2,
            "two folds in a row: a",
        ),
        (
            "hollow_headers",
            "<table><thead><tr><td>a</td><td></td><td></td></tr></thead></table>",
            "empty headers: a",
        ),
    ],
)
def test_damage_is_seen_in_the_file(tmp_path, check, addition, complaint):
    complaints = getattr(site_checks, check)(damaged(tmp_path, addition))
    assert any(complaint in line for line in complaints), complaints


# As the theme lays out a formula: from the right, and as long as it is.
RIGHT = (
    "div.math {display: flex; flex-direction: row-reverse !important;"
    " justify-content: flex-start !important; overflow: hidden !important}"
    "mjx-container[display][display][display][display]"
    "{min-width: max-content !important; max-width: none !important; overflow: visible !important}"
)
DOT = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAACADs="

# Kind of complaint, damage, complaint: all done to one page, which is visited once.
DAMAGE = [
    ("formulas", r'<span class="math">\(\undefinedmacro\)</span>', r"\undefinedmacro"),
    ("formulas", '<span class="math">unset</span>', "was not set: unset"),
    ("formulas", '<p class="mathjax_ignore">$$x$$</p>', "left as text: $$x$$"),
    ("formulas", r'<p class="mathjax_ignore">\(x\)</p>', r"left as text: \(x\)"),
    ("formulas", r"<p>\sigma</p>", r"left as text: \sigma"),
    ("requests", f'<img src="https://example.org/a.png" alt="{ALT}">', "example.org/a.png"),
    ("requests", "<script>fetch('https://example.org/b')</script>", "example.org/b"),
    ("console", "<script>console.error('slip a')</script>", "error: slip a"),
    ("console", "<script>console.warn('slip b')</script>", "warning: slip b"),
    ("console", "<script>throw new Error('slip c')</script>", "uncaught: slip c"),
    ("console", '<img src="nowhere.png">', "ERR_FILE_NOT_FOUND"),
    ("width", '<div style="width: 900px">wide</div>', "too wide"),
    (
        "width",
        f"<style>{RIGHT}</style>"
        r'<div class="math">\[' + "x+" * 99 + r"x\tag{1}\]</div>",
        "cuts a formula on its left",
    ),
    (
        "width",
        (
            '<table style="table-layout: fixed; width: 60px"><td style="white-space: normal">'
            '<span class="pre" style="white-space: inherit">milliseconds</span></table>'
        ),
        "cuts a name in a table: milliseconds",
    ),
    (
        "width",
        r'<p style="width: 9px"><span class="math">\(x\)</span>, and</p>',
        "begins a line with the stop of",
    ),
    (
        "solutions",
        '<div class="solution" id="a"><p class="admonition-title">x</p><p>open</p></div>',
        "solution 'a' is not hidden",
    ),
    (
        "solutions",
        '<div class="solution" id="b"><p class="admonition-title">x</p><p hidden>shut</p></div>',
        "solution 'b' does not open",
    ),
    (
        "solutions",
        (
            '<div style="position: relative"><div class="solution dropdown admonition" id="c">'
            '<p class="admonition-title">x</p><p>y</p></div>'
            '<i style="position: absolute; inset: 0; z-index: 2"></i></div>'
        ),
        "solution 'c' does not open",
    ),
    ("access", '<button type="button"></button>', "button-name: <button"),
    (
        "access",
        '<div style="height: 9px; overflow: auto"><p style="height: 99px">long</p></div>',
        "scrollable-region-focusable: <div",
    ),
    ("access", '<p style="color: #999">pale</p>', '<p style="color: #999"'),
    ("access", '<p style="color: #444">deep</p>', '<p style="color: #444"'),
    ("access", '<pre><span class="own" style="color: #aaa">code</span></pre>', '<span class="own"'),
    (
        "access",
        (
            '<div><a style="all: unset; color: #333" href="#">a link alone</a></div>'
            '<p>A word, <a class="own" style="all: unset; color: #333" href="#">a link</a></p>'
        ),
        'link-in-text-block: <a class="own"',
    ),
    ("access", "<style>.bd-sidebar .caption-text {color: #999}</style>", '<span class="caption-t'),
    (
        "access",
        "<style>.bd-links ul:last-of-type > li:last-child > a {color: #999 !important}</style>",
        'color-contrast: <a class="reference internal"',
    ),
]


def faint_in(width, theme):
    """Return a text that is faint in one width and theme alone, and the complaint."""
    name, colour = f"only-{theme}-{width}", {"light": "#ccc", "dark": "#333"}[theme]
    media = f"({'max' if width < 600 else 'min'}-width: 600px)"
    style = f"@media {media} {{ html[data-theme={theme}] .{name} {{ color: {colour} }} }}"
    text = f'<p class="{name}"'
    return "access", f"<style>{style}</style>{text}>here</p>", text


DAMAGE += [faint_in(*combination) for combination in site_checks.COMBINATIONS]


@pytest.fixture(scope="module")
def bad_visit(reader, tmp_path_factory):
    page = damaged(tmp_path_factory.mktemp("damaged"), *(addition for _, addition, _ in DAMAGE))
    return reader.look_at(page)


@pytest.mark.parametrize(("kind", "complaint"), [(kind, said) for kind, _, said in DAMAGE])
def test_damage_is_seen_in_the_browser(bad_visit, kind, complaint):
    assert any(complaint in line for line in getattr(bad_visit, kind)), bad_visit


def test_damage_is_seen_where_it_shows_and_nowhere_else(bad_visit):
    assert len([line for line in bad_visit.access if "only-" in line]) == 4


def test_a_page_is_seen_as_if_it_were_the_first(tmp_path, reader):
    """A colour that failed fails again, and what a page has stored is gone."""
    script = "if ('left' in localStorage) console.error('not the first'); localStorage.left = 1"
    page = damaged(
        tmp_path, '<p class="own" style="color: #998">pale</p>', f"<script>{script}</script>"
    )
    first, second = reader.look_at(page), reader.look_at(page)
    assert first == second
    assert (len(first.access), first.console) == (2, [])


def test_a_page_that_ignores_clicks_is_noticed(tmp_path, reader):
    deaf = "<script>addEventListener('click', e => e.stopImmediatePropagation(), true)</script>"
    page = damaged(tmp_path, deaf)
    assert "does not get dark by its button" in reader.look_at(page).theme


def test_no_damage_is_seen_where_none_was_done(tmp_path, reader):
    page = damaged(
        tmp_path,
        '<div class="exercise" id="ex"></div><div class="solution dropdown admonition">',
        '<p class="admonition-title">Solution to <a href="#ex">1</a></p><p>y</p></div>',
        f'<figure><img src="{DOT}" alt="{ALT}"><figcaption>x</figcaption></figure>',
        r'<span class="math">\(x\)</span><pre>$x$</pre>',
    )
    assert reader.look_at(page) == site_checks.Visit()
    assert site_checks.unanswered_exercises(page) == site_checks.picture_faults(page) == []


# With the repository's address known, pages can be edited and launched; without, no dead link.


def launch_links(page):
    """Return the addresses outside of the site that the buttons above a page lead to."""
    buttons = site_checks.parsed(page).select(".article-header-buttons a[href^='https:']")
    return [button["href"] for button in buttons]


def test_launch_buttons_appear_if_the_address_is_known():
    page = SITE / BOOK.name / f"{chapters()[0]}.html"
    assert bool(launch_links(page)) == bool(repository_url())


def stage(executed, target, repository="", site=""):
    claims = target.with_name("claims.json")
    claims.write_text("{}")
    staging.stage(executed, claims, target, repository, site)


def test_staged_settings_follow_the_address(tmp_path, monkeypatch):
    monkeypatch.delenv("LIPBOOK_BRANCH", raising=False)
    stage([], tmp_path / "local")
    stage([], tmp_path / "known", REPOSITORY)
    given, local, known = (
        yaml.safe_load((folder / "_config.yml").read_text(encoding="utf-8"))
        for folder in (ROOT, tmp_path / "local", tmp_path / "known")
    )
    assert local == given
    assert "repository" not in local
    assert known["repository"]["url"] == REPOSITORY
    assert known["html"]["use_edit_page_button"]
    assert known["launch_buttons"] == {
        **given["launch_buttons"],
        "binderhub_url": "https://mybinder.org",
    }


def build_one_page(folder, text, *options, repository="", site=""):
    """Build a site of one page, with the book's settings; return what the program said."""
    chapter = chapters()[0]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    nbformat.write(notebook, folder / f"{chapter}.ipynb")
    stage([folder / f"{chapter}.ipynb"], folder / "source", repository, site)
    (folder / "source" / "_toc.yml").write_text(f"format: jb-book\nroot: book/{chapter}\n")
    program = Path(sys.executable).with_name("jupyter-book")
    command = [program, "build", folder / "source", "--path-output", folder, *options]
    return subprocess.run(command, check=False, capture_output=True, text=True)


class _OneAddress(http.server.BaseHTTPRequestHandler):
    """Answer at ``/here``, and nowhere else."""

    def do_GET(self):
        self.send_response(200 if self.path == "/here" else 404)
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815 - the server asks for these names

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("page", ["here", "gone"])
def test_make_links_tells_an_address_that_is_gone(tmp_path, page):
    """The command is the door's own; the host that it asks is this machine."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"jupyter-book build build/source (.*) --path-output", makefile)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _OneAddress) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{page}"
        done = build_one_page(tmp_path, f"# A page\n\n[Elsewhere]({address}).", *recipe.split())
        server.shutdown()
    told = re.search(rf"broken.*{re.escape(address)}", done.stdout + done.stderr)
    assert (done.returncode != 0, bool(told)) == ((page == "gone"),) * 2, done.stdout


def test_launch_buttons_lead_to_the_chapter(tmp_path):
    text = "# A page\n\nIt says."
    done = build_one_page(tmp_path, text, repository=REPOSITORY, site=ADDRESS)
    assert done.returncode == 0, done.stderr
    chapter = chapters()[0]
    page = tmp_path / "_build" / "html" / "book" / f"{chapter}.html"
    path = source(chapter).relative_to(ROOT).as_posix()
    assert {
        REPOSITORY,
        f"{REPOSITORY}/edit/main/{path}",
        f"https://mybinder.org/v2/gh/someone/lipbook/main?urlpath=tree/{path}",
    } < set(launch_links(page))
    assert site_checks.foreign_addresses(page) == []
    tags = site_checks.parsed(page).select("meta[property^=og]")
    card = {tag["property"].removeprefix("og:"): tag["content"] for tag in tags}
    assert card["title"] == "A page"
    assert card["description"] == "It says."
    assert card["url"] == f"{ADDRESS}/book/{chapter}.html"
    assert card["image"].startswith(f"{ADDRESS}/_images/")
