"""Names of the package in a chapter's code lead to the reference, and this leads to the source."""

from __future__ import annotations

import pytest
import site_checks
from bs4 import BeautifulSoup
from code_links import imported, linked, with_short_names
from reference import definitions, source_page

import lipbook
from workflow.project import BOOK, CHECKED, chapters, is_appendix


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


def test_a_source_page_is_the_source_with_places_to_link_to():
    source = "@cache\ndef f(x):\n    return x < 1\n\n\nclass A:\n    def f(self): ...\n"
    page = BeautifulSoup(source_page("a.b", source), "html.parser")
    assert page.select_one("pre").get_text() == source.rstrip()
    places = {tag["id"]: tag.get_text() for tag in page.select("pre [id]")}
    assert places == {"f": "def f(x):", "A": "class A:", "A.f": "    def f(self): ..."}
    assert definitions(source) == {"f": 2, "A": 6, "A.f": 7}


@pytest.mark.parametrize("name", [n for n in lipbook.__all__ if not n.startswith("_")])
def test_an_entry_of_the_reference_leads_to_its_source(name):
    module = getattr(lipbook, name).__module__
    page = CHECKED / "html" / BOOK.name / "api" / f"{module.partition('.')[2]}.html"
    if not page.exists():
        pytest.fail("there is no site: run `python -m workflow check` first")
    entry = site_checks.parsed(page).find(id=f"{module}.{name}")
    path, _, place = entry.select_one("a:has(.viewcode-link)")["href"].partition("#")
    line = site_checks.parsed(page.parent / path).find(id=place).get_text()
    assert line.startswith((f"def {name}(", f"class {name}"))
