"""How heavy the built site is: in all, each page with its pictures, and what nobody asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from bs4.filter import SoupStrainer

MOST, MOST_A_PAGE = 12_000_000, 1_500_000  # bytes
_TEXTS = (".html", ".css", ".js")


@dataclass(frozen=True)
class Weight:
    """What a site weighs, in bytes."""

    total: int
    pages: dict[str, int]  #: a page's HTML and its own pictures, by its path
    unused: list[str]  #: files of ``_static`` and ``_images`` that no page, style or script names

    def faults(self) -> list[str]:
        """Return what is too heavy, one line each."""
        heavy = {name: size for name, size in self.pages.items() if size > MOST_A_PAGE}
        if self.total > MOST:
            heavy["the site"] = self.total
        lines = [f"{name} has {size:,} bytes" for name, size in heavy.items()]
        return lines + [f"nothing asks for {name}" for name in self.unused]

    def report(self) -> str:
        """Return a line for the whole, and one for each of the heaviest pages."""
        heaviest = sorted(self.pages.items(), key=lambda item: -item[1])[:6]
        lines = [f"{size / 1e6:6.2f} MB  {name}" for name, size in heaviest]
        return "\n".join([f"{self.total / 1e6:6.2f} MB  the whole site", *lines])


def weigh(site: Path) -> Weight:
    """Weigh a built site."""
    files = [path for path in site.rglob("*") if path.is_file()]
    pages = [path for path in files if path.suffix == ".html" and "_static" not in path.parts]
    return Weight(
        total=sum(path.stat().st_size for path in files),
        pages={path.relative_to(site).as_posix(): _own(path) for path in sorted(pages)},
        unused=unused(site),
    )


def _own(page: Path) -> int:
    """Return the bytes of a page and of the pictures that it shows."""
    pictures = SoupStrainer("img", src=True)  # a third of the time that the whole tree takes
    images = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser", parse_only=pictures)
    addresses = {urlsplit(str(image["src"])) for image in images.find_all("img")}
    shown = [page.parent / unquote(a.path) for a in addresses if not a.scheme]
    return sum(path.stat().st_size for path in (page, *shown) if path.is_file())


def unused(site: Path) -> list[str]:
    """Return the assets whose name stands in no page, style or script."""
    files = [path for path in site.rglob("*") if path.is_file()]
    named = "\n".join(p.read_text(encoding="utf-8") for p in files if p.suffix in _TEXTS)
    assets = (path for path in files if path.relative_to(site).parts[0] in ("_static", "_images"))
    return sorted(p.relative_to(site).as_posix() for p in assets if p.name not in named)
