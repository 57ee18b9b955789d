"""What a page says about itself: a description, and a card for links where its address is known.

Open Graph wants whole addresses. They come from ``html_baseurl``, which the staged settings have
if the site's address is known (workflow/stage.py).
"""

import html

from docutils import nodes
from sphinx.application import Sphinx

COVER = "_images/index.png"  # the picture of the front page, written by `claims-picture`
_LONGEST = 200


def description(doctree: nodes.document) -> str:
    """Return the page's first paragraph, cut at a word."""
    paragraph = next(iter(doctree.findall(nodes.paragraph)), None)
    words = " ".join(paragraph.astext().split()) if paragraph else ""
    return words if len(words) <= _LONGEST else words[:_LONGEST].rpartition(" ")[0] + " …"


def _describe(
    app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    if doctree is None:
        return
    said = description(doctree)
    tags = [f'<meta name="description" content="{html.escape(said)}">'] if said else []
    if base := app.config.html_baseurl.rstrip("/"):
        card = {
            "title": context.get("title") or app.config.project,
            "description": said,
            "type": "website" if page == app.config.root_doc else "article",
            "url": f"{base}/{page}.html",
            "site_name": app.config.project,
            "image": f"{base}/{COVER}",
        }
        tags += [
            f'<meta property="og:{name}" content="{html.escape(content)}">'
            for name, content in card.items()
        ]
    context["metatags"] = "\n".join([context.get("metatags", ""), *tags])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("html-page-context", _describe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
