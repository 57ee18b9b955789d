"""The things to touch on the built pages, driven as a reader would, beside lipbook's numbers."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator

import pytest
import site_checks
from playwright.sync_api import Browser, Locator, Page, expect

from workflow.project import BOOK, CHECKED

PAGES = {
    "ellipse": "02_matrix_norms",
    "iteration": "03_power_iteration",
    "two-points": "05_wgan_gp",
}
SHAPES = """figure => Object.fromEntries([...figure.querySelectorAll("[data-shape]")].map(node => {
  const [own, all] = [node, node.ownerSVGElement].map(part => part.getBoundingClientRect());
  return [node.dataset.shape, [own.x - all.x, own.y - all.y, own.width, own.height]];
}))"""


def address(kind: str) -> str:
    page = CHECKED / "html" / BOOK.name / f"{PAGES[kind]}.html"
    if not page.exists():
        pytest.fail("there is no site: run `python -m workflow check` first")
    return page.as_uri()


def on(page: Page, kind: str) -> Locator:
    return page.locator(f"#touch-{kind}")


@pytest.fixture(scope="module")
def things(browser: Browser) -> Iterator[Callable[[str], Locator]]:
    """Open each thing's page once; fail on anything that its scripts complain of."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def opened(kind: str) -> tuple[Page, site_checks.Visit]:
            return stack.enter_context(site_checks.opened(browser, address(kind)))

        yield lambda kind: on(opened(kind)[0], kind)
        assert [opened(kind)[1].console for kind in PAGES] == [[]] * len(PAGES)


@pytest.fixture
def touched(things: Callable[[str], Locator], request: pytest.FixtureRequest) -> Locator:
    """Return a thing as it is at first."""
    figure = things(request.param)
    figure.get_by_role("button", name="Reset").click()
    return figure


each = pytest.mark.parametrize("touched", PAGES, indirect=True)
ellipse = pytest.mark.parametrize("touched", ["ellipse"], indirect=True)
iteration = pytest.mark.parametrize("touched", ["iteration"], indirect=True)


def numbers(figure: Locator) -> dict[str, float | None]:
    shown = figure.locator("data").evaluate_all("all => all.map(d => [d.dataset.number, d.value])")
    return {name: float(value) if value else None for name, value in shown}


@each
def test_numbers_are_those_of_lipbook(touched):
    for case in json.loads(touched.locator(".touch-expected").text_content()):
        touched.locator("form").evaluate(
            """(form, values) => {
              for (const [name, value] of Object.entries(values)) form.elements[name].value = value;
              form.dispatchEvent(new Event("input"));
            }""",
            case["set"],
        )
        assert numbers(touched) == pytest.approx(case["shown"], abs=1e-6), case["set"]


@each
def test_the_picture_for_paper_is_the_one_that_the_script_draws(touched, browser):
    kind = touched.get_attribute("data-touch")
    context = browser.new_context(java_script_enabled=False, offline=True)
    context.set_default_timeout(site_checks.PATIENCE)
    page = context.new_page()
    page.goto(address(kind))
    paper = on(page, kind)
    assert not paper.locator("form").is_visible()
    assert numbers(paper) == pytest.approx(numbers(touched), abs=1e-6)
    touched.page.set_viewport_size(page.viewport_size)
    still, moving = paper.evaluate(SHAPES), touched.evaluate(SHAPES)
    context.close()
    assert still.keys() == moving.keys()
    for shape, place in still.items():
        assert moving[shape] == pytest.approx(place, abs=1), shape


@each
def test_a_finger_is_broader_than_a_handle(touched):
    grips = touched.locator("[data-drag]")
    widths = grips.evaluate_all("all => all.map(grip => grip.getBoundingClientRect().width)")
    assert min(widths) >= 24


@ellipse
def test_the_failure_of_pi2_is_found_by_dragging(touched):
    says = touched.locator(".touch-says[role=status]")
    expect(says).to_contain_text("W is symmetric")
    tip = touched.locator("[data-drag=q]")
    tip.scroll_into_view_if_needed()
    box, page = tip.bounding_box(), touched.page
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y + 5, steps=5)
    page.mouse.up()
    expect(says).to_contain_text("You found one")
    assert float(touched.get_by_label("W, row 1, column 2").input_value()) > 1
    seen = numbers(touched)
    assert seen["eigenvalue"] < 0.99 * seen["sigma1"]


def test_a_finger_moves_the_handle_and_not_the_page(browser):
    context = browser.new_context(
        offline=True, viewport={"width": 390, "height": 844}, has_touch=True
    )
    context.set_default_timeout(site_checks.PATIENCE)
    page = context.new_page()
    page.goto(f"{address('ellipse')}#touch-ellipse")
    page.evaluate("() => window.MathJax.startup.promise.then(() => null)")
    box = on(page, "ellipse").locator("[data-drag=q]").bounding_box()
    before = page.evaluate("scrollY")
    finger = context.new_cdp_session(page)
    for kind, down in [
        ("touchStart", 0),
        *(("touchMove", 10 * k) for k in range(9)),
        ("touchEnd", 0),
    ]:
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2 + down}
        points = [] if kind == "touchEnd" else [place]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        page.wait_for_timeout(20)
    moved = on(page, "ellipse").get_by_label("W, row 2, column 2").input_value()
    scrolled = page.evaluate("scrollY") - before
    context.close()
    assert float(moved) < 0
    assert scrolled == 0


@ellipse
def test_an_entry_that_is_no_number_is_told(touched):
    entry, says = (
        touched.get_by_label("W, row 2, column 1"),
        touched.locator(".touch-says[role=status]"),
    )
    for text in ("", "7", "-3.5"):
        entry.fill(text)
        expect(says).to_have_text("Every entry has to be a number from -3 to 3.")
        entry.fill("0.25")
        expect(says).to_contain_text("|λ|")


@iteration
def test_keys_alone_lead_out_of_the_trap(touched):
    says = touched.locator(".touch-says[role=status]")
    touched.get_by_role("button", name="The trap").focus()
    touched.page.keyboard.press("Enter")
    expect(says).to_contain_text("A trap")
    assert numbers(touched)["estimate"] == pytest.approx(1, abs=1e-6)
    touched.get_by_label("Start, degrees").focus()
    touched.page.keyboard.press("ArrowRight")
    expect(says).not_to_contain_text("A trap")
    assert numbers(touched)["estimate"] == pytest.approx(3, abs=1e-3)


@iteration
@pytest.mark.parametrize(("motion", "seconds"), [("reduce", "0s"), ("no-preference", "0.4s")])
def test_nothing_glides_for_who_asked_for_less_motion(touched, motion, seconds):
    touched.page.emulate_media(reduced_motion=motion)
    arrow = touched.locator(".turns")
    assert arrow.evaluate("node => getComputedStyle(node).transitionDuration") == seconds


@each
def test_paper_shows_picture_and_numbers_alone(touched):
    touched.page.emulate_media(media="print")
    assert touched.locator("svg").first.is_visible()
    assert touched.locator("dl").is_visible()
    assert not touched.locator("form").is_visible()
    touched.page.emulate_media(media="screen")
