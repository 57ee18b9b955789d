"""Number what stands in an appendix by its page: *Fig. 4a.1* in ``04a_more_on_regularization``.

Sphinx numbers by sections, and these pages have no number: their figures would be counted through
all of them, as *Fig. 8*, or on from the chapter that a page stands under. Figures of a page that
belongs to no chapter, such as the errata, are not numbered at all.
"""

import re

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

#: A page whose name begins with a chapter's number, and perhaps a letter.
_NUMBERED = re.compile(r"0*(\d+[a-z]?)_")


def _number_by_page(app: Sphinx, env: BuildEnvironment) -> None:
    for page, kinds in env.toc_fignumbers.items():
        found = _NUMBERED.match(page.rpartition("/")[2])
        if found is None:
            kinds.pop("figure", None)
        elif not found[1].isdigit():
            for kind, numbers in kinds.items():
                kinds[kind] = by_page(found[1], numbers)


def by_page(page: str, numbers: dict[str, tuple]) -> dict[str, tuple]:
    """Return, for each label, the page's number and the place on the page.

    Examples
    --------
    >>> by_page("4a", {"fig-b": (9,), "fig-a": (8,)})
    {'fig-b': ('4a', 2), 'fig-a': ('4a', 1)}
    """
    places = sorted(numbers, key=numbers.__getitem__)
    return {label: (page, places.index(label) + 1) for label in numbers}


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("env-check-consistency", _number_by_page)  # when Sphinx has counted
    return {"parallel_read_safe": True, "parallel_write_safe": True}
