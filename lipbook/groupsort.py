"""The sorting activation of Anil, Lucas & Grosse (2019), which shortens no gradient."""

from __future__ import annotations

from torch import Tensor, nn

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
        If `group_size` is no integer of at least 2; when it is called, if it does not divide the
        axis.
    IndexError
        When it is called, if there is no such axis.

    Examples
    --------
    >>> import torch
    >>> GroupSort(2)(torch.tensor([[3.0, 1.0, 5.0, 7.0]])).tolist()
    [[1.0, 3.0, 5.0, 7.0]]
    >>> GroupSort()(torch.tensor([[3.0, 7.0, 5.0, 1.0]])).tolist()
    [[1.0, 3.0, 5.0, 7.0]]
    >>> GroupSort(dim=0)(torch.tensor([[3.0, 1.0], [2.0, 5.0]])).tolist()
    [[2.0, 1.0], [3.0, 5.0]]
    >>> GroupSort(3)(torch.zeros(1, 4))
    Traceback (most recent call last):
    ValueError: group_size must divide the length of axis -1, got 3 for shape (1, 4)
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
        last = x.movedim(self.dim, -1)
        groups = last.reshape(*last.shape[:-1], length // size, size)
        ordered = groups.sort(dim=-1).values.reshape(last.shape)
        return ordered.movedim(-1, self.dim)

    def extra_repr(self) -> str:
        """Show the size of a group, and the axis if it is not the last."""
        axis = "" if self.dim == -1 else f", dim={self.dim}"
        return f"group_size={self.group_size}{axis}"
