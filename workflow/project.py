"""Where things are, which chapters there are, and what each one depends on."""

from __future__ import annotations

import ast
import contextlib
import errno
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import yaml

if TYPE_CHECKING:
    import grimp

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
STUDIES = BOOK / "studies"
CATALOGUE = BOOK / "claims.yml"
BUILD = ROOT / "build"
SITE = BUILD / "html"
#: The book at another seed, which the tests look at.
CHECKED = BUILD / "check"
PACKAGES = ("lipbook", "studies")
#: The variable that names the file where a failing step leaves its message for the whole build.
FAILURES = "LIPBOOK_FAILURES"


_WAYS_OUT = {
    errno.ENOSPC: "make room; the same command goes on from here",
    errno.EDQUOT: "make room; the same command goes on from here",
    errno.EFBIG: "raise the limit on a file's size; the same command goes on from here",
    errno.EROFS: "work in a copy that you may write to",
    errno.EACCES: "work in a copy that you may write to",
    errno.EPERM: "work in a copy that you may write to",
}


class WorkflowError(Exception):
    """Something the person at the keyboard can mend; shown as one line, without a traceback."""


def plain(error: WorkflowError | OSError) -> str:
    """Say what went wrong and what to do: a disk that is full, a folder that is not ours."""
    if isinstance(error, WorkflowError):
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    way = _WAYS_OUT.get(error.errno or 0)
    return f"{where}{error.strerror or error}" + (f": {way}" if way else "")


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the place of `path` when all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, found: object) -> None:
    """Write what is kept in the repository or read by a person: whole or not at all."""
    with written(path) as partial:
        text = json.dumps(found, indent=1, ensure_ascii=False)
        partial.write_text(f"{text}\n", encoding="utf-8")


def is_appendix(chapter: str) -> bool:
    """Tell whether a notebook, as 03a_…, belongs to a chapter: it needs no exercises of its own.

    Examples
    --------
    >>> is_appendix("03a_more_on_the_norm"), is_appendix("03_power_iteration")
    (True, False)
    """
    return re.match(r"\d\d_", chapter) is None


def chapters() -> list[str]:
    """Return the notebooks named in the table of contents, in its order, without their ending."""
    names = [Path(file).name for file in documents()]
    return [name for name in names if source(name).exists()]


def documents() -> list[str]:
    """Return every page of the table of contents, as ``book/ledger``, in its order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *_files(toc)]


def source(chapter: str) -> Path:
    """Return the path of a chapter's notebook."""
    return BOOK / f"{chapter}.ipynb"


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook, or say in one line why it can't be read."""
    try:
        notebook: nbformat.NotebookNode = nbformat.read(path, as_version=4)
    except Exception as error:
        raise WorkflowError(f"{path} is not a readable notebook: {error}") from error
    return notebook


def pages() -> list[Path]:
    """Return what the site is made of besides the chapters.

    An editor's locks, copies and links (``.#x``, ``#x#``, ``x~``, ``.x.swp``) are none of it.
    """
    return [path for path in _files_in(BOOK) if path.suffix != ".ipynb"]


def studies_told() -> list[Path]:
    """Return the modules of the studies, whose docstrings their pages tell."""
    return sorted(path for path in (ROOT / "studies").glob("*.py") if path.name[0] != "_")


def inputs() -> list[Path]:
    """Return every file that a step may read: pages, chapters, code, settings."""
    folders = [BOOK, *(ROOT / package for package in PACKAGES)]
    settings = ("Snakefile", "_config.yml", "_toc.yml", "requirements.lock")
    files = [path for folder in folders for path in _files_in(folder)]
    return files + [ROOT / name for name in settings if (ROOT / name).exists()]


def _files_in(folder: Path) -> list[Path]:
    """Return what people wrote under a folder."""
    found = []
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        ours = not any(p.startswith((".", "#")) or p == "__pycache__" for p in parts)
        if ours and not path.name.endswith("~") and path.is_file():
            found.append(path)
    return sorted(found)


def claims_of(chapter: str) -> list[dict[str, Any]]:
    """Return a chapter's entries in the catalogue, as they stand there."""
    return [entry for entry in _catalogue(CATALOGUE.read_bytes()) if entry["chapter"] == chapter]


@functools.lru_cache(maxsize=1)
def _catalogue(text: bytes) -> list[dict[str, Any]]:
    """Parse the catalogue: once for all chapters of a build, since it takes most of a second."""
    entries: list[dict[str, Any]] = yaml.safe_load(text)["claims"]
    return entries


def modules_used(chapter: str) -> list[Path]:
    """Return the files of the helper package that a chapter imports, directly or not.

    A study that a chapter imports comes with the table that it made.
    """
    graph = _import_graph()
    files: set[Path] = set()
    for name in _imported(read_notebook(source(chapter))):
        # `from lipbook import f` may name a module, or a public name of the package itself.
        module = name if name in graph.modules else name.rpartition(".")[0]
        if module in graph.modules:
            files |= set(files_of(module))
    return sorted(files | {table for file in files for table in _tables(file)})


def files_of(module: str) -> list[Path]:
    """Return the files of the helper package that a module runs: its own and what it imports."""
    used = {module} | _import_graph().find_upstream_modules(module)
    return sorted(ROOT / _path(name) for name in used)


def _tables(file: Path) -> list[Path]:
    """Return the stored table and the provenance of a study, if `file` is one that was run."""
    if file.parent.name != STUDIES.name:
        return []
    stored = (STUDIES / f"{file.stem}{ending}" for ending in (".csv", ".json"))
    return [path for path in stored if path.is_file()]


@functools.cache
def _import_graph() -> grimp.ImportGraph:
    import grimp  # the tests of a chapter do without: a machine of `make gpu` has no grimp

    return grimp.build_graph(*PACKAGES, cache_dir=None)


def _files(toc: Any) -> list[str]:
    """Return every `file` of a table of contents, however deep, in order."""
    if isinstance(toc, dict):
        here = [toc["file"]] if "file" in toc else []
        return here + [file for value in toc.values() for file in _files(value)]
    if isinstance(toc, list):
        return [file for value in toc for file in _files(value)]
    return []


def _imported(notebook: nbformat.NotebookNode) -> set[str]:
    names: set[str] = set()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for node in ast.walk(_parsed(cell.source)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in PACKAGES}


def _parsed(code: str) -> ast.Module:
    """Parse a cell; one that is no plain Python (a magic, a slip) imports nothing we can see."""
    try:
        return ast.parse(code)
    except SyntaxError:
        return ast.Module(body=[], type_ignores=[])


def _path(module: str) -> Path:
    path = Path(*module.split("."))
    return path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")
