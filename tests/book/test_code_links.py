"""Names of the package in a chapter's code lead to the reference, and this leads to the source."""

from __future__ import annotations

import re

import pytest
import site_checks
from code_links import imported, linked, with_short_names

import lipbook
from workflow.project import BOOK, CHECKED, chapters, is_appendix

API = sorted((CHECKED / "html" / BOOK.name / "api").glob("[!i]*.html"))


def test_an_import_is_followed_by_any_of_its_names():
    cells = ["from lipbook import wgan as w, spectral_norm", "import torch\nfrom math import pi"]
    assert imported(cells) == {"w": "lipbook.wgan", "spectral_norm": "lipbook.spectral_norm"}


def test_a_name_of_the_package_itself_has_the_place_of_its_module():
    places = {"lipbook.wgan": 1, "lipbook.wgan.loss": 2, "lipbook.wgan.Critic.forward": 3}
    assert with_short_names(places) == {"lipbook.loss": 2, **places}


def test_a_name_leads_to_its_place_and_others_nowhere():
    name, attribute = (f'<span class="n">{n}</span>' for n in ("w", "loss"))
    call = f'{name}<span class="o">.</span>{attribute}'
    body = f"<p>{name}</p><pre>{call} {name} {attribute}</pre>"
    places = {"lipbook.wgan.loss": "api/wgan.html#loss"}
    assert linked(body, {"w": "lipbook.wgan"}, places.get) == (
        f'<p>{name}</p><pre><a class="code-link" href="api/wgan.html#loss">{call}</a>'
        f" {name} {attribute}</pre>"
    )


@pytest.mark.parametrize("chapter", [c for c in chapters() if not is_appendix(c)])
def test_a_chapter_leads_to_the_reference_and_the_reference_back(chapter):
    page = CHECKED / "html" / BOOK.name / f"{chapter}.html"
    if not page.exists():
        pytest.fail("there is no site: run `python -m workflow check` first")
    links = [str(a["href"]) for a in site_checks.parsed(page).select(".cell_input a.code-link")]
    modules = {link.partition("#")[0] for link in links}
    assert modules
    back = [site_checks.parsed(page.parent / module) for module in modules]
    assert any(tree.select(f'article a[href*="{chapter}.html"]') for tree in back)


#: Public names whose source is on the site: that of private modules would be a fiftieth of it.
SHOWN = [n for n in lipbook.__all__ if "._" not in getattr(lipbook, n).__module__]


@pytest.mark.parametrize("name", SHOWN)
def test_an_entry_of_the_reference_leads_to_its_source(name):
    module = site_checks.module_of(name)
    page = CHECKED / "html" / BOOK.name / "api" / f"{module.partition('.')[2]}.html"
    if not page.exists():
        pytest.fail("there is no site: run `python -m workflow check` first")
    entry = site_checks.parsed(page).find(id=f"{module}.{name}")
    path, _, place = entry.select_one("a:has(.viewcode-link)")["href"].partition("#")
    code = site_checks.parsed(page.parent / path).find(id=place)
    back = str(code.select_one("a.viewcode-back")["href"])
    assert back.endswith(f"/{page.name}#{module}.{name}")
    assert re.search(rf"(def|class) {name}\b", code.get_text())


@pytest.mark.parametrize("page", API, ids=lambda page: page.stem)
def test_a_page_of_the_reference_sums_up_its_entries(page):
    """The list above is written by hand, the entries below come from the module."""
    tree = site_checks.parsed(page)
    listed = {a["href"].partition("#")[2] for a in tree.select("table.autosummary a")}
    entries = {e["id"] for e in tree.select("article dl.py > dt[id]") if not e.find_parent("dd")}
    assert listed == entries
