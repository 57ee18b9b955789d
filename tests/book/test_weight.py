"""The built site is light, and what makes it so changes nothing that a reader sees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workflow.lighten import compact, compress, keep_colours, keep_icons, repaint
from workflow.project import CHECKED
from workflow.weigh import MOST, MOST_A_PAGE, weigh

SITE = CHECKED / "html"


def test_the_site_is_light():
    if not (SITE / "index.html").exists():
        pytest.fail("there is no site: run `python -m workflow check` first")
    weight = weigh(SITE)
    assert weight.faults() == [], weight.report()
    assert not list(SITE.rglob("*.map"))


def small_site(folder: Path) -> Path:
    (folder / "_static").mkdir(parents=True)
    (folder / "_images").mkdir()
    (folder / "_images" / "a.png").write_bytes(bytes(100))
    (folder / "_static" / "a.css").write_text("p {}")
    page = (
        '<link href="_static/a.css"><img src="_images/a.png"><img src="data:image/png;base64,AA">'
    )
    (folder / "index.html").write_text(page)
    return folder


def test_pages_notebooks_and_data_say_the_same_in_fewer_bytes(tmp_path):
    site = small_site(tmp_path / "site")
    (site / "_sources").mkdir()
    files = site / "_sources" / "a.ipynb", site / "_static" / "claims.json"
    for file in files:
        file.write_text(json.dumps({"à": [1, 2]}, indent=1), encoding="utf-8")
    (site / "index.html").write_text("<p>a  \n\n   b</p>\n\n<pre>c\n\n   d</pre>")
    compact(site)
    page = (site / "index.html").read_text(encoding="utf-8")
    assert page == "<p>a\nb</p>\n<pre>c\n\n   d</pre>"
    assert [file.read_text(encoding="utf-8") for file in files] == ['{"à":[1,2]}'] * 2


def test_pictures_are_webp_where_that_is_smaller(tmp_path):
    site = small_site(tmp_path / "site")
    Image.new("RGB", (40, 40), "white").save(site / "_images" / "a.png", compress_level=0)
    compress(site)
    assert [path.name for path in (site / "_images").iterdir()] == ["a.webp"]
    assert 'src="_images/a.webp"' in (site / "index.html").read_text()
    assert Image.open(site / "_images" / "a.webp").convert("L").getextrema() == (255, 255)
    tiny = site / "_images" / "b.png"
    tiny.write_bytes((site / "_images" / "a.webp").read_bytes())  # smaller it does not get
    compress(site)
    assert tiny.exists()


def test_a_page_weighs_with_its_pictures(tmp_path):
    weight = weigh(small_site(tmp_path / "site"))
    assert weight.pages == {"index.html": 88 + 100}
    assert weight.total == 88 + 100 + 4
    assert weight.faults() == []


@pytest.mark.parametrize(
    ("name", "size", "fault"),
    [
        ("_static/lost.js", 10, "nothing asks for _static/lost.js"),
        ("_images/lost.png", 10, "nothing asks for _images/lost.png"),
        ("_images/a.png", MOST_A_PAGE, "index.html has 1,500,088 bytes"),
        ("heavy.bin", MOST, "the site has 12,000,192 bytes"),
    ],
)
def test_what_is_too_heavy_is_told(tmp_path, name, size, fault):
    site = small_site(tmp_path / "site")
    (site / name).write_bytes(bytes(size))
    assert weigh(site).faults() == [fault]


def test_icons_that_no_page_shows_leave_script_style_and_fonts(tmp_path):
    site = small_site(tmp_path / "site")
    (site / "index.html").write_text(
        '<i class="fa-solid fa-moon"></i><i class="far fa-bell"></i> by fab'
    )
    for folder in ("scripts", "styles", "vendor"):
        (site / "_static" / folder).mkdir()
    script = site / "_static" / "scripts" / "fontawesome.js"
    sun, moon_of_script = 'sun:[5,5,[],"f185","M1 2z"]', '"moon":[5,5,[9,"m"],"f186",["M1","M2"]]'
    script.write_text(f"var p={{{sun},{moon_of_script},{sun}}};done()")
    style = site / "_static" / "styles" / "pydata-sphinx-theme.css"
    sun, moon = r'.fa-sun:before{content:"\f185"}', r'.fa-moon:before,.fa-m:before{content:"\f186"}'
    style.write_text(f"p{{}}{sun}{moon}.fa-lg{{}}")
    fonts = [site / "_static" / "vendor" / f"fa-{n}.woff2" for n in ("brands-400", "regular-400")]
    for font in fonts:
        font.write_bytes(b"0")
    keep_icons(site)
    assert script.read_text() == f"var p={{{moon_of_script},}};done()"
    assert style.read_text() == f"p{{}}{moon}.fa-lg{{}}"
    assert [font.exists() for font in fonts] == [False, True]


def test_tokens_with_the_colour_of_the_text_are_not_marked(tmp_path):
    site = small_site(tmp_path / "site")
    rules = [
        "{ background: #fff; color: #080808 }",
        ".n { color: #080808 }",
        ".p { color: #080808 }",
    ]
    rules += [".k { color: #6730C5 }", ".gs { color: #080808; font-weight: bold }"]
    dark = ["{ background: #222; color: #eee }", ".n { color: #eee }", ".p { color: #abc }"]
    dark += [".k { color: #DCC6E0 }"]
    themed = [("light", rule) for rule in rules] + [("dark", rule) for rule in dark]
    (site / "_static" / "pygments.css").write_text(
        "\n".join(
            f'html[data-theme="{theme}"] .highlight {rule} /* A kind */' for theme, rule in themed
        )
    )
    kept = '<span class="p">.</span><span class="k">def</span><span class="gs">!</span>'
    page, name = site / "index.html", '<span class="n">f</span>'
    page.write_text(f"{name}<pre>{name}{kept}</pre>")
    keep_colours(site)
    assert page.read_text() == f"{name}<pre>f{kept}</pre>"


def picture(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def test_a_plot_is_repainted_and_looks_the_same(tmp_path):
    across = np.linspace(0, 60, 300)[:, None]
    height = 100 + 60 * np.sin(across / 9) - np.arange(200)
    soft = np.clip(3 - np.abs(height), 0, 1).T[..., None]  # a curve with smooth edges
    pixels = 255 - soft * [255, 141, 77]
    path = picture(tmp_path / "plot.png", pixels)
    size = path.stat().st_size
    assert repaint(path)
    assert path.stat().st_size < size
    assert np.abs(np.asarray(Image.open(path).convert("RGB")) - pixels.astype(float)).max() <= 16


def test_a_picture_of_many_colours_keeps_them(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3))
    path = picture(tmp_path / "noise.png", pixels)
    before = path.read_bytes()
    assert not repaint(path)
    assert path.read_bytes() == before
