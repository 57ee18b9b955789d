"""Fold hidden code together: one thing to open above a picture, not one for each cell.

Code that is hidden and shows nothing goes into the fold of the next cell, if that is hidden too,
over the prose between them. The code that ends in a claim's card goes into the card's own fold.
"""

import claim_html
from docutils import nodes
from docutils.nodes import container
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform


class JoinFolds(SphinxPostTransform):
    """Move the code of silent hidden cells into the fold that follows them."""

    default_priority = 198  # before MyST-NB makes the folds, after it has chosen what is shown
    formats = ("html",)

    def run(self) -> None:
        """Join hidden cells with those after them, from the last to the first."""
        *before, following = [*self.document.findall(_is_cell)] or [None]
        for cell in reversed(before):
            if _is_silent(cell) and _is_hidden(cell) and _is_hidden(following, "input", "all"):
                following.children[0][:0] = cell.children[0].children
                following["ids"] = [*cell["ids"], *following["ids"]]
                cell.parent.remove(cell)
            else:
                following = cell
        for cell in filter(_is_hidden, list(self.document.findall(_is_cell))):
            for card in list(cell.findall(_has_place_for_code)):
                _move_into(cell, card)


def _has_place_for_code(node: nodes.Node) -> bool:
    return isinstance(node, nodes.raw) and claim_html.CODE in node.astext()


def _move_into(cell: container, card: nodes.raw) -> None:
    """Put a cell's code where its card has the place for it, so that nothing is left to hide."""
    before, after = card.astext().split(claim_html.CODE)
    halves = [nodes.raw("", half, format="html") for half in (before, after)]
    code = cell.children[0]
    cell.remove(code)
    del cell["hide_mode"]
    card.parent.replace(card, [halves[0], code, halves[1]])


def _is_cell(node: nodes.Node) -> bool:
    return isinstance(node, container) and node.get("nb_element") == "cell_code"


def _is_hidden(cell: container, *modes: str) -> bool:
    return cell.get("hide_mode") in (modes or ("input",)) and bool(cell.children)


def _is_silent(cell: container) -> bool:
    return not any(part.children for part in cell.children[1:])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_post_transform(JoinFolds)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
