"""The sorting activation of Anil, Lucas & Grosse (2019), which shortens no gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from lipbook._checks import check_count


class GroupSort(nn.Module):
    """Sort the entries of each group of one axis, in ascending order.

    Its Jacobian is a permutation, so it is 1-Lipschitz and keeps the length of every gradient,
    where ReLU cuts components off. Groups of two are MaxMin.

    Parameters
    ----------
    group_size : int, optional
        Neighbouring entries that are sorted together; by default the whole axis.
    dim : int, default -1
        The axis; after a convolution it is that of the channels, 1.

    Raises
    ------
    TypeError, ValueError
        If `group_size` is not an integer of at least 2; when it is called, if it does not divide
        the axis.
    IndexError
        When it is called, if there is no such axis.

    Examples
    --------
    >>> GroupSort(2)(torch.tensor([[3.0, 1.0, 5.0, 7.0]])).tolist()
    [[1.0, 3.0, 5.0, 7.0]]
    >>> GroupSort()(torch.tensor([[3.0, 7.0, 5.0, 1.0]])).tolist()
    [[1.0, 3.0, 5.0, 7.0]]
    >>> GroupSort(dim=0)(torch.tensor([[3.0, 1.0], [2.0, 5.0]])).tolist()
    [[2.0, 1.0], [3.0, 5.0]]
    >>> GroupSort(3)(torch.zeros(1, 4))
    Traceback (most recent call last):
    ValueError: group_size must divide the length of axis -1, got 3 for ...
    """

    def __init__(self, group_size: int | None = None, dim: int = -1) -> None:
        super().__init__()
        if group_size is not None:
            check_count(group_size, "group_size", least=2)
        self.group_size = group_size
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of `x`, of at least one axis."""
        length = x.shape[self.dim]
        size = max(length, 1) if self.group_size is None else self.group_size
        if length % size:
            raise ValueError(
                f"group_size must divide the length of axis {self.dim}, "
                f"got {size} for shape {tuple(x.shape)}"
            )
        axis = self.dim % x.ndim
        groups = torch.unflatten(x, axis, (length // size, size))
        return _sorted(groups, axis + 1).flatten(axis, axis + 1)

    def extra_repr(self) -> str:
        """Show the size of a group, and the axis if it is not the last."""
        axis = "" if self.dim == -1 else f", dim={self.dim}"
        return f"group_size={self.group_size}{axis}"


def _sorted(groups: Tensor, axis: int) -> Tensor:
    """Sort one axis; two entries by one comparison, which takes half of the time.

    A graph has the one operation whose constant is known, as `certificate` wants to see it.
    """
    if groups.shape[axis] != 2 or is_in_torch_dispatch_mode():
        return groups.sort(axis).values
    first, second = groups.unbind(axis)
    # Not minimum and maximum: where both are equal, their gradients are halves, not a permutation.
    swapped = first > second
    in_order = torch.where(swapped, second, first), torch.where(swapped, first, second)
    return torch.stack(in_order, axis)
