"""The modules of a network: their modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def evaluation_mode(f: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Switch every module in `f` to evaluation mode, and back to its own mode at the end.

    Dropout and BatchNorm are functions of one input only in evaluation mode. A plain function is
    left alone.

    Examples
    --------
    >>> import torch
    >>> dropout = nn.Dropout(0.5)
    >>> with evaluation_mode(dropout):
    ...     dropout(torch.ones(3)), dropout.training
    (tensor([1., 1., 1.]), False)
    >>> dropout.training
    True
    """
    modes = {m: m.training for m in f.modules()} if isinstance(f, nn.Module) else {}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
