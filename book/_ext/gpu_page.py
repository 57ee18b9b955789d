"""The page of ``make gpu``: what its record says, or that there is none yet."""

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
    """Write the record as Markdown and let MyST read it."""

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the generated text."""
        folder = Path(self.env.srcdir) / "book" / "records"
        path = folder / "gpu.json"
        self.env.note_dependency(str(path))
        text = NOBODY
        if path.exists():
            record = json.loads(path.read_text(encoding="utf-8"))
            text = markdown(record)
            if "grid" in record:
                text += f"\n\n{GRID.replace('PIXELS', record['grid'])}"
        parent = nodes.section()
        parent.document = self.state.document
        lines = StringList(text.splitlines(), self.get_source_info()[0])
        self.state.nested_parse(lines, 0, parent)
        return parent.children


GRID = """## The widest networks' images

```{figure} data:image/png;base64,PIXELS
:alt: Faces in four rows of eight, blurred, some with hair or a collar, a fine grid over all.

From the widest generator of the study of panels, as far as it came; a latent a picture.
```"""


def markdown(record: dict[str, Any]) -> str:
    """Return the text of a record: machine, times, chapters, studies."""
    machine = record["machine"]
    blocks = [table(("", "of this run"), [(k, str(v)) for k, v in machine.items()])]
    for title, part, block in (
        ("A critic's step", "step times", times),
        ("The chapters", "chapters", chapters),
        ("The studies", "studies", cells),
    ):
        found = record.get(part)
        blocks.append(f"## {title}")
        if found is None:
            blocks.append("The run was stopped before this part.")
        elif "failed" in found:
            blocks.append(f"It failed:\n\n```\n{found['failed']}\n```")
        else:
            blocks.append(block(found))
    return "\n\n".join(blocks)


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


def cells(found: dict[str, dict[str, Any]]) -> str:
    """Return how many cells of each study were measured, and for how long."""
    rows = [
        (name, f"{s['cells']}", f"{s['failed']}", f"{s['seconds'] / 60:.1f} min")
        for name, s in found.items()
    ]
    heads = ("study", "cells of the first call", "failures", "time of all workers")
    return table(heads, rows)


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [heads, (":--",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("gpu-record", GpuRecord)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
