"""Stored notebooks in one normal form, and what is wrong with one that is not."""

from __future__ import annotations

import copy
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import nbformat

from workflow.project import written

_KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
_KEPT_IN_CELLS = ("tags", "mystnb")
IGNORED = "nbval-ignore-output"
_LARGE = 1_500_000  # bytes; git keeps every version
_LONG, _LONG_MEDIAN = 15, 6  # lines of a code cell
_MANY_CELLS, _MANY_LINES = 40, 250  # of visible code in a chapter

#: What may hold a decimal number that nobody measured: code blocks and spans, formulas, roles,
#: links, labels, and the names of versions and papers.
_NO_PROSE = re.compile(
    r"^(`{3,}|~{3,})(?!\{(?!math|code)).*?^\1[ \t]*$"
    r"|\$\$.*?\$\$|\$[^$]+\$"
    r"|(?<!`)(`{1,2})(?!`)[^`]+\2"
    r"|\]\([^)]*\)|<https?://[^>]*>|https?://\S+"
    r"|^:\w+:.*?$"
    r"|(?i:\b(?:python|torch|pytorch|numpy|scipy|version|arxiv:?|section|figure)\s+v?)[\d.]+",
    flags=re.DOTALL | re.MULTILINE,
)


def normalize(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what differs from run to run or machine to machine, in place, and return it."""
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": _KERNELSPEC, "language_info": {"name": "python"}}
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for cell in notebook.cells:
        kept = {key: cell.metadata[key] for key in _KEPT_IN_CELLS if key in cell.metadata}
        if not kept.get("tags", True):
            del kept["tags"]
        cell.metadata = nbformat.from_dict(kept)
    return notebook


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook whole or not at all."""
    with written(path) as partial:
        nbformat.write(notebook, partial)


def faults(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """Say what keeps a notebook from being stored: one line a fault."""
    yield from form_faults(notebook)
    yield from run_faults(notebook)


def form_faults(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """Say what is wrong with what was written, whatever a run makes of it."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    ignored = sum(IGNORED in cell.metadata.get("tags", ()) for cell in code)
    if ignored * 6 > len(code):
        yield f"{ignored} of {len(code)} code cells are not compared by nbval; at most one in six"
    sizes = [sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in code]
    for number, (cell, size) in enumerate(zip(code, sizes, strict=True), 1):
        if size > _LONG:
            yield f"code cell {number} ({cell.id}) has {size} lines: its body belongs in lipbook"
    shown = [size for cell, size in zip(code, sizes, strict=True) if not _folded(cell)]
    if shown and statistics.median(shown) > _LONG_MEDIAN:
        yield f"half of its visible code cells have over {_LONG_MEDIAN} lines"
    for cell in notebook.cells:
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", cell.id) or _random(cell.id):
            yield f"cell id {cell.id!r} says nothing: name the cell, as in 'flip-rate'"
        if cell.cell_type == "markdown" and (numbers := typed_numbers(cell.source)):
            yield f"cell {cell.id} types {', '.join(numbers)}: glue what is measured"


def story_faults(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """Say where a page shows more code than a reader follows, or code that shows nothing."""
    shown = [c for c in notebook.cells if c.cell_type == "code" and not _folded(c)]
    lines = sum(bool(line.strip()) for cell in shown for line in cell.source.splitlines())
    if len(shown) > _MANY_CELLS or lines > _MANY_LINES:
        yield f"shows {len(shown)} code cells with {lines} lines; fold what is not the mathematics"
    run = 0
    for cell in notebook.cells:
        run = run + 1 if cell in shown else run * (cell.cell_type == "code")
        if run > 2:
            yield f"cell {cell.id} is the third visible one in a row: say what it is for"
        if cell in shown and not any(map(_tells, cell.outputs)):
            yield f"cell {cell.id} shows nothing that a reader would remember"


def _tells(output: nbformat.NotebookNode) -> bool:
    """Whether an output is more than that something came out true."""
    text = output.get("text") or output.get("data", {}).get("text/plain") or ""
    if output.output_type == "display_data" and "image/png" in output.data:
        return True
    return bool(re.sub(r"\bTrue\b|[\s(),\[\]]", "", text))


def _folded(cell: nbformat.NotebookNode) -> bool:
    return "hide-input" in cell.metadata.get("tags", ())


def typed_numbers(text: str) -> list[str]:
    """Return the decimal numbers and percentages that stand in the prose itself."""
    return re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]\d)|\d+(?=[  ]?%)", _NO_PROSE.sub(" ", text))


def run_faults(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """Say what is wrong with the outputs.

    nbval passes a notebook that was never executed and a cell cleared of its outputs, so the
    execution counts are looked at here.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        yield f"execution counts are {counts}, not 1 to {len(code)}: refresh it"
    if normalize(copy.deepcopy(notebook)) != notebook:
        yield "it carries metadata of one run or one machine: refresh it"
    size = len(nbformat.writes(notebook).encode())
    if size > _LARGE:
        yield f"it has {size:,} bytes, more than {_LARGE:,}: fewer or smaller figures"
    for number, cell in enumerate(code, 1):
        yield from (f"code cell {number} ({cell.id}) {fault}" for fault in _output_faults(cell))


def _output_faults(cell: nbformat.NotebookNode) -> Iterator[str]:
    for output in cell.outputs:
        if output.get("name") == "stderr":
            yield "stored what it wrote to stderr"
        if output.output_type == "error":
            yield f"stored an error: {output.ename}"
        text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
        if re.search(r"(?:^|[\s\"'(])/(?:home|root|tmp|work|Users|usr)/", text):
            yield "shows a path of one machine"
        if re.search(r" at 0x[0-9a-f]{6,}", text):
            yield "shows a memory address"
        if "image/png" in output.get("data", {}):
            yield from _figure_faults(cell)


def _figure_faults(cell: nbformat.NotebookNode) -> Iterator[str]:
    settings = cell.metadata.get("mystnb", {})
    if len(settings.get("image", {}).get("alt", "")) < 30:
        yield "draws a figure without an alt text that says what is seen (mystnb.image.alt)"
    if not settings.get("figure", {}).get("caption"):
        yield "draws a figure without a caption (mystnb.figure.caption)"


def _random(cell_id: str) -> bool:
    """Whether an id looks like the eight hexadecimal digits that Jupyter makes up."""
    return re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f-]+)?", cell_id) is not None
