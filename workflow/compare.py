"""Whether two outputs of a cell say the same, on two machines.

Two makes of processor add in another order, and a value that lies at the edge between two printed
ones comes out as .55 here and .56 there. That is no other result. So decimal numbers may differ by
one in their last digit; whole numbers, words and the number of decimals may not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from itertools import product
from typing import Any

#: A decimal number, without those that are part of a name, a version or a power of ten.
_DECIMAL = re.compile(r"(?<![\w.])(-?\d+\.\d+)(?![\w.])")


def alike(stored: str, here: str) -> bool:
    """Tell whether two texts are the same but for the last digits of their decimal numbers.

    Columns of spaces may be of another width, as between 9.9 and 10.0.

    Examples
    --------
    >>> alike("slope  0.55", "slope  0.56"), alike("9.9", "10.0")
    (True, True)
    >>> alike("0.55", "0.57"), alike("0.55", "0.550"), alike("55", "56"), alike("7e-08", "6e-08")
    (False, False, False, False)
    """
    texts = [_DECIMAL.split(re.sub(r" +", " ", text)) for text in (stored, here)]
    if len(texts[0]) != len(texts[1]):
        return False
    pairs = list(zip(*texts, strict=True))
    return all(a == b for a, b in pairs[::2]) and all(_near(a, b) for a, b in pairs[1::2])


def _near(a: str, b: str) -> bool:
    decimals = [len(number.partition(".")[2]) for number in (a, b)]
    apart = abs(Decimal(a) - Decimal(b))
    return decimals[0] == decimals[1] and apart <= Decimal(1).scaleb(-decimals[0])


def settle(stored: Iterable[Any], here: Iterable[Any]) -> int:
    """Give outputs the stored text where it is `alike`, in place; return how many had another.

    Parameters
    ----------
    stored, here : iterable of notebook outputs
        Of one cell, in their order.

    Returns
    -------
    int
        Texts that ended in other digits.
    """
    moved = 0
    for was, now in zip(stored, here, strict=False):
        places = [(was, now), (was.get("data", {}), now.get("data", {}))]
        keys = ("text", "text/plain", "text/html")
        for (old, new), key in product(places, keys):
            if key in old and key in new and old[key] != new[key] and alike(old[key], new[key]):
                new[key] = old[key]
                moved += 1
    return moved
