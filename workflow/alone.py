"""A notebook that someone takes away from the site begins afresh and brings its package along."""

from __future__ import annotations

import json

#: Filled with the modules to look for and the repository's address, if the build knows it.
_FETCH = """\
#@title Fetch the book's package, where it is missing (Colab, a bare Jupyter)
import importlib.util, os, subprocess, sys

if not all(map(importlib.util.find_spec, {modules})):
    address = os.environ.get("LIPBOOK_REPOSITORY", "{repository}")
    if not address:
        raise ModuleNotFoundError(
            "lipbook or its studies are not here: run this notebook in a clone of the book,"
            " or set LIPBOOK_REPOSITORY to the address of its repository"
        )
    if not os.path.exists("lipbook-book"):
        subprocess.run(["git", "clone", "-q", "--depth=1", address, "lipbook-book"], check=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "./lipbook-book[book]"]
    subprocess.run(pip, check=True)
    sys.path.insert(0, os.path.abspath("lipbook-book"))  # its studies, and their tables
    importlib.invalidate_caches()"""


def alone(notebook: str, repository: str = "") -> str:
    """Return a notebook to run anywhere.

    Its outputs are gone: they are on the page. A first code cell, folded, fetches the package and
    the studies where they are missing; where they are not, it does nothing.

    Parameters
    ----------
    notebook : str
        The notebook, as JSON.
    repository : str
        Where a clone comes from; without it, ``LIPBOOK_REPOSITORY`` says so when the notebook runs.
    """
    content = json.loads(notebook)
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    for cell in code:
        cell |= {"outputs": [], "execution_count": None}
    told = "\n".join("".join(cell["source"]) for cell in code)
    modules = [name for name in ("lipbook", "studies", "myst_nb") if name in told]
    if modules:
        source = _FETCH.format(modules=json.dumps(modules), repository=repository)
        content["cells"].insert(content["cells"].index(code[0]), _folded(source))
    return json.dumps(content, ensure_ascii=False, indent=1)


def _folded(source: str) -> dict[str, object]:
    return {
        "cell_type": "code",
        "id": "fetch-the-book",
        "metadata": {"cellView": "form", "jupyter": {"source_hidden": True}},
        "source": source,
        "outputs": [],
        "execution_count": None,
    }
