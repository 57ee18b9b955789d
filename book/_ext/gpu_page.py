"""Parts of the record of ``make gpu``: ``{gpu-record} step times``, or that there is none yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

NOBODY = "Nobody has run it yet: there is no `book/records/gpu.json`."


class GpuRecord(SphinxDirective):
    """Write a part of the record as Markdown and let MyST read it."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the generated text."""
        path = Path(self.env.srcdir) / "book" / "records" / "gpu.json"
        self.env.note_dependency(str(path))
        text = NOBODY
        if path.exists():
            text = part(json.loads(path.read_text(encoding="utf-8")), self.arguments[0])
        parent = nodes.section()
        parent.document = self.state.document
        lines = StringList(text.splitlines(), self.get_source_info()[0])
        self.state.nested_parse(lines, 0, parent)
        return parent.children


def part(record: dict[str, Any], name: str) -> str:
    """Return the text of a part of a record."""
    found = record.get(name)
    if found is None:
        return "The run was stopped before this part."
    if "failed" in found:
        return f"It failed:\n\n```\n{found['failed']}\n```"
    return _PARTS[name](found)


def machine(found: dict[str, Any]) -> str:
    """Return what ran it."""
    return table(("fact", "value"), [(k, str(v)) for k, v in found.items()])


def grid(pixels: str) -> str:
    """Return the images of the widest generator."""
    return f"""```{{figure}} data:image/png;base64,{pixels}
:alt: Faces in four rows of eight, blurred, some with hair or a collar, a fine grid over all.

Some heads have hair; where eyes should be there are at most dark smears. The one training of
`panels` that came to its end: 4,000 steps of the generator at a quarter of the article's width, the
critic's weights divided after each step, without BatchNorm. Each face is made from other random
numbers.
```"""


def times(found: list[dict[str, Any]]) -> str:
    """Return medians in milliseconds, a row a method."""
    by_method: dict[str, list[str]] = {}
    for row in found:
        by_method.setdefault(row["method"], []).append(f"{row['milliseconds']:.2f} ms")
    precisions = list(dict.fromkeys(row["precision"] for row in found))
    rows = [(method, *cells) for method, cells in by_method.items()]
    return table(("method", *precisions), rows)


def chapters(found: dict[str, dict[str, Any]]) -> str:
    """Return what nbval said, and how far the claims' numbers are from the stored ones."""
    if not any(chapter["passed"] for chapter in found.values()):
        return "No cell of a chapter was run."
    rows = []
    for name, chapter in found.items():
        off = [q for q in chapter["quantities"] if q["relative"] is not None]
        worst = max(off, key=lambda q: q["relative"], default=None)
        largest = "–"
        if worst:
            largest = f"{worst['relative']:.2g} ({worst['claim']}, {worst['criterion']})"
        ended = "" if chapter["whole"] else ", stopped"
        rows.append((name, f"{chapter['passed']} of {chapter['cells']}{ended}", largest))
    heads = ("chapter", "cells as stored", "largest relative deviation of a claim's number")
    return table(heads, rows)


_PARTS = {
    "machine": machine,
    "step times": times,
    "chapters": chapters,
    "grid": grid,
}


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [heads, (":--",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("gpu-record", GpuRecord)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
