"""Take out of a built site what no page asks for, and colours that nobody sees."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from workflow.weigh import unused

#: Named by a script or a style, and never asked for: maps of scripts, fonts for browsers of before
#: 2016, translations.
_NAMED = ("**/*.map", "**/*.ttf", "locales")
#: An icon in the theme's script: name, width, height, other names, code point, one path or two.
_ICON = re.compile(
    r'(?:"([\w-]+)"|\b(\w+)):\[\d+,\d+,\[[^\]]*\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?'
)
#: The same icons as rules of the style sheet, one or more names each.
_ICON_RULE = re.compile(r"(?:\.fa-[\w-]+:before,?)+\{content:\"[^\"]*\"\}")
_CLASSES = re.compile(r'class="([^"]*)"')
#: A font of icons, and the classes that ask for it: the theme names all three.
_FONTS = {
    "fa-brands-400.woff2": {"fab", "fa-brands"},
    "fa-regular-400.woff2": {"far", "fa-regular"},
}
#: Code as Pygments writes it: a token's class and text, and the rule of its colour in one theme.
_CODE = re.compile(r"<pre>.*?</pre>", re.DOTALL)
_TOKEN = re.compile(r'<span class="(\w+)">([^<]*)</span>')
_COLOUR = re.compile(
    r"^(\S+) \.highlight(?: \.(\w+))? \{ (?:background: \S+ )?(color: \S+) \}", re.M
)
_VISIBLE = 2.0  # mean difference of a channel, of 255, from which on a picture keeps its colours


#: What keeps its spaces, or a break with the spaces about it.
_SPACES = re.compile(r"(<(pre|script|style|textarea)\b.*?</\2>)|[ \t]*\n\s*", re.DOTALL)
_LARGE = 250_000  #: bytes of a picture


def lighten(site: Path) -> None:
    """Remove unused files, icons and marks of code, and repaint pictures."""
    for pattern in _NAMED:
        for path in list((site / "_static").glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in unused(site):
        (site / name).unlink()
    keep_icons(site)
    keep_colours(site)
    for path in (site / "_images").glob("*.png"):
        repaint(path)
    compress(site)
    compact(site)


def keep_icons(site: Path) -> None:
    """Leave of Font Awesome what a page shows: of its script, its rules and its fonts."""
    pages = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    used = {name for page in pages for name in re.findall(r"\bfa-([\w-]+)", page)} | {"xmark"}
    classes = {c for page in pages for c in " ".join(_CLASSES.findall(page)).split()}

    def icon(match: re.Match[str]) -> str:
        return match[0] if (match[1] or match[2]) in used else ""

    def rule(match: re.Match[str]) -> str:
        return match[0] if used.intersection(re.findall(r"fa-([\w-]+):", match[0])) else ""

    static = site / "_static"
    _rewrite(static.glob("scripts/fontawesome.js"), _ICON, icon)
    _rewrite(static.glob("styles/pydata-sphinx-theme.css"), _ICON_RULE, rule)
    for name, asking in _FONTS.items():
        if not classes & asking:  # "far" is also a word
            for font in static.rglob(name):
                font.unlink()


def keep_colours(site: Path) -> None:
    """Leave unmarked the tokens of code that have the colour of the text around them: a half."""
    rules = _COLOUR.findall((site / "_static" / "pygments.css").read_text(encoding="utf-8"))
    base = {theme: colour for theme, token, colour in rules if not token}
    seen = {token for theme, token, colour in rules if colour != base[theme]}
    plain = {token for _, token, _ in rules} - seen

    def unmarked(token: re.Match[str]) -> str:
        return token[2] if token[1] in plain else token[0]

    _rewrite(site.rglob("*.html"), _CODE, lambda code: _TOKEN.sub(unmarked, code[0]))


def _rewrite(
    paths: Iterable[Path], pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str]
) -> None:
    for path in paths:
        path.write_text(pattern.sub(replace, path.read_text(encoding="utf-8")), encoding="utf-8")


def compact(site: Path) -> None:
    """Write pages, notebooks and data without the spaces that nobody sees."""
    for path in [*site.glob("_sources/**/*.ipynb"), *site.glob("_static/*.json")]:
        told = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(
            json.dumps(told, ensure_ascii=False, separators=(",", ":")), encoding="utf-8"
        )
    _rewrite(site.rglob("*.html"), _SPACES, lambda found: found[1] or "\n")


def compress(site: Path) -> None:
    """Write pictures as lossless WebP where that is smaller, and name them so in the pages."""
    smaller = set()
    for path in (site / "_images").glob("*.png"):
        file = io.BytesIO()
        # The encoder's best takes seconds a picture, and is worth it to the largest alone.
        best = {"quality": 100, "method": 6} if path.stat().st_size > _LARGE else {}
        Image.open(path).save(file, format="WebP", lossless=True, **best)
        if len(file.getvalue()) < path.stat().st_size:
            path.with_suffix(".webp").write_bytes(file.getvalue())
            path.unlink()
            smaller.add(path.stem)

    def named(match: re.Match[str]) -> str:
        return f"{match[1]}.webp" if match[2] in smaller else match[0]

    for page in site.rglob("*.html"):
        told = page.read_text(encoding="utf-8")
        now = re.sub(r"(_images/([\w-]+))\.png", named, told)
        if now != told:
            page.write_text(now, encoding="utf-8")


def repaint(path: Path) -> bool:
    """Write a picture with 256 colours, if that is smaller and nobody can see it."""
    stored = Image.open(path).convert("RGBA")
    if np.asarray(stored)[..., 3].min() < 255:
        return False  # something shines through
    picture = stored.convert("RGB")
    few = picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    before, after = (np.asarray(p.convert("RGB"), dtype=float) for p in (picture, few))
    file = io.BytesIO()
    few.save(file, format="PNG", optimize=True)
    smaller = len(file.getvalue()) < path.stat().st_size
    better = smaller and bool(np.abs(before - after).mean() < _VISIBLE)
    if better:
        path.write_bytes(file.getvalue())
    return better
