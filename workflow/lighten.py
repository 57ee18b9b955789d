"""Take out of a built site what no page asks for, and colours that nobody sees."""

from __future__ import annotations

import io
import re
import shutil
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
_VISIBLE = 2.0  # mean difference of a channel, of 255, from which on a picture keeps its colours


def lighten(site: Path) -> None:
    """Remove unused files, and repaint pictures."""
    for pattern in _NAMED:
        for path in list((site / "_static").glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in unused(site):
        (site / name).unlink()
    keep_icons(site)
    for path in (site / "_images").glob("*.png"):
        repaint(path)


def keep_icons(site: Path) -> None:
    """Leave in Font Awesome's script the icons that a page shows, of two thousand."""
    pages = (path.read_text(encoding="utf-8") for path in site.rglob("*.html"))
    used = {name for page in pages for name in re.findall(r"\bfa-([\w-]+)", page)} | {"xmark"}
    for script in (site / "_static" / "scripts").glob("fontawesome.js"):
        text = script.read_text(encoding="utf-8")
        kept = _ICON.sub(lambda m: m[0] if (m[1] or m[2]) in used else "", text)
        script.write_text(kept, encoding="utf-8")


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
