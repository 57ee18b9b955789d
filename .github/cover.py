"""Draw the README's picture, chapter 1's first figure in SVG: `.venv/bin/python .github/cover.py`.

The chapter's own cells compute the numbers, up to the one that draws.
"""

from pathlib import Path
from typing import Any

import nbformat

CHAPTER = Path(__file__).resolve().parents[1] / "book" / "01_lipschitz_constraint.ipynb"
BLUE, ORANGE, BLACK, GREY = "#0072b2", "#c04e00", "#222", "#767676"


def computed() -> dict[str, Any]:
    """Return what the chapter's names stand for where it draws."""
    names: dict[str, Any] = {}
    for cell in nbformat.read(CHAPTER, as_version=4).cells:
        if cell.id == "draw-curves":
            break
        if cell.cell_type == "code":
            exec(cell.source, names)
    return names


def text(x: float, y: float, words: str, color: str, anchor: str = "middle", size: int = 21) -> str:
    """Write a line of text."""
    look = f'fill="{color}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{words}</text>'


def image(x: int, y: int, values: list[float], side: int = 14) -> str:
    """Draw 8×8 grey values."""
    greys = [f"{round(255 * min(max(value, 0), 1)):02x}" for value in values]
    squares = [
        f'<path d="M{k % 8 * side} {k // 8 * side}h{side}v{side}h-{side}z" fill="#{3 * grey}"/>'
        for k, grey in enumerate(greys)
    ]
    move = f'<g transform="translate({x} {y})" shape-rendering="crispEdges">'
    return "\n".join([move, *squares, "</g>"])


def at(r: float, share: float) -> tuple[float, float]:
    """Return where a point of the curves lies."""
    return 462 + 200 * r, 290 - 240 * share


def images(names: dict[str, Any]) -> list[str]:
    """Draw a digit and two steps from it, each with what the network reads."""
    x, labels, net, i = (names[name] for name in ("x", "labels", "net", "i"))
    steps = {
        "test image": (x[i], BLACK),
        "random step": (names["random_steps"](x, 0.5)[0, i], BLUE),
        "aimed step": (names["attacked"](net, x, labels, 0.5)[i], ORANGE),
    }
    parts = []
    for k, (what, (z, color)) in enumerate(steps.items()):
        left = 24 + 130 * k
        parts += [
            text(left + 56, 95, f"“{net(z).argmax()}”", color, size=40),
            image(left, 115, z.tolist()),
            text(left + 56, 254, what, color),
            text(left + 56, 280, "of length ½" if k else "", color),
        ]
    return parts


def curves(names: dict[str, Any]) -> list[str]:
    """Draw the share of images read correctly against the length of the step."""
    bar, floor = at(names["distance"], 0)
    parts = [
        f'<path d="M{bar:.1f} 50V{floor}" stroke="#ccc" stroke-width="12"/>',
        f'<path d="M{at(0, 0)[0]} 50V{floor}H{at(2, 0)[0]}" stroke="{GREY}" fill="none"/>',
        text(*at(0, 1.07), "still read correctly", GREY, "start"),
        *(text(452, at(0, y)[1] + 6, f"{y}", GREY, "end") for y in (0, 1)),
        text(at(0.5, 0)[0], 312, "½", GREY),
        text(at(2, 0)[0], 312, "length of the step", GREY, "end"),
        text(bar - 12, 66, "the next digit", GREY, "end"),
    ]
    drawn = {
        "random": ("chance", BLUE, "none", (1.05, 0.74)),
        "aimed": ("aim", ORANGE, "none", (0.47, 0.45)),
        "guaranteed": ("proved", BLACK, "7 5", (0.26, 0.045)),
    }
    for what, (name, color, dashes, place) in drawn.items():
        points = (at(r, y) for r, y in zip(names["radii"], names[name], strict=True))
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        look = f'fill="none" stroke="{color}" stroke-width="3" stroke-dasharray="{dashes}"'
        parts += [
            f'<polyline points="{line}" {look}/>',
            text(*at(*place), what, color, "start", 18),
        ]
    return parts


def main() -> None:
    """Write `cover.svg` beside this file."""
    names = computed()
    question = "Same length, another direction. What could have been guaranteed?"
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 380"'
    lines = [
        f'{head} font-family="Helvetica, Arial, sans-serif">',
        "<!-- Written by cover.py from the cells of chapter 1. -->",
        '<rect width="880" height="380" rx="8" fill="#fff"/>',
        *images(names),
        *curves(names),
        text(440, 358, question, BLACK, size=23),
        "</svg>\n",
    ]
    Path(__file__).with_suffix(".svg").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
