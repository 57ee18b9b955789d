"""Lay out the tree that Sphinx reads: the book with freshly executed notebooks.

The work tree stays as it is; this copy lives under ``build/``.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from workflow.project import BOOK, ROOT, pages, studies_told


def repository_url() -> str:
    """Return the repository's address if the environment knows it, else an empty text.

    ``LIPBOOK_REPOSITORY`` (a full address) comes before what GitHub Actions sets.
    """
    if url := os.environ.get("LIPBOOK_REPOSITORY"):
        return url.rstrip("/")
    name = os.environ.get("GITHUB_REPOSITORY")
    server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
    return f"{server}/{name}" if name else ""


def site_url() -> str:
    """Return the address at which the site will be, ``LIPBOOK_SITE``, else an empty text."""
    return os.environ.get("LIPBOOK_SITE", "").rstrip("/")


def stage(
    executed: Sequence[Path], claims: Path, target: Path, repository: str = "", site: str = ""
) -> None:
    """Write the tree for Sphinx to `target`, whole or not at all.

    Parameters
    ----------
    executed : sequence of Path
        The executed notebooks.
    claims : Path
        The file of what they measured, which the pages read.
    target : Path
        A folder to make anew.
    repository : str
        Its address; without one the pages get no launch buttons and no edit links.
    site : str
        Where the pages will be; without it they get no card for links (Open Graph).
    """
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    book = partial / BOOK.name
    book.mkdir(parents=True)
    for path in pages():
        copy = book / path.relative_to(BOOK)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
        if path.suffix == ".csv":
            pack(copy)
    for fresh in (*executed, claims):
        shutil.copy2(fresh, book)
    for told in studies_told():
        copy = partial / told.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy2(told, copy)
    shutil.copy2(ROOT / "_toc.yml", partial)
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    if repository:
        _link_to(repository, config)
    if site:
        config["html"]["baseurl"] = site
    text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
    (partial / "_config.yml").write_text(text, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def pack(table: Path) -> None:
    """Put a table into a ZIP beside it, to be handed out: a quarter as large, pandas reads it."""
    member = zipfile.ZipInfo(table.name)  # with no time of today: equal tables, equal files
    member.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(table.with_name(f"{table.name}.zip"), "w") as archive:
        archive.writestr(member, table.read_bytes())


def _link_to(repository: str, config: dict[str, Any]) -> None:
    """Switch on what needs an address: launch buttons and links to edit a page or ask about it."""
    branch = os.environ.get("LIPBOOK_BRANCH", "main")
    config["repository"] = {"url": repository, "branch": branch, "path_to_book": ""}
    config["html"] |= {
        "use_repository_button": True,
        "use_edit_page_button": True,
        "use_issues_button": True,
    }
    # Colab would open the repository's notebook, which finds no package there. The one that the
    # download button gives fetches it (workflow/alone.py), and Colab takes it as an upload.
    config["launch_buttons"]["binderhub_url"] = "https://mybinder.org"
