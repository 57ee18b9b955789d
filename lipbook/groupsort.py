"""The sorting activation of Anil, Lucas & Grosse (2019), which shortens no gradient."""

from __future__ import annotations

from torch import Tensor, nn

from lipbook.validation import check_count


class GroupSort(nn.Module):
    """Sort the entries of each group of the last axis, in ascending order.

    Its Jacobian is a permutation, so it is 1-Lipschitz and keeps the length of every gradient,
    where ReLU cuts components off. Groups of two are MaxMin.

    Parameters
    ----------
    group_size : int, optional
        Neighbouring entries that are sorted together; by default the whole axis.

    Raises
    ------
    TypeError, ValueError
        If `group_size` is no integer of at least 2; when it is called, if it does not divide the
        last axis.

    Examples
    --------
    >>> import torch
    >>> GroupSort(2)(torch.tensor([[3.0, 1.0, 5.0, 7.0]])).tolist()
    [[1.0, 3.0, 5.0, 7.0]]
    >>> GroupSort()(torch.tensor([[3.0, 7.0, 5.0, 1.0]])).tolist()
    [[1.0, 3.0, 5.0, 7.0]]
    >>> GroupSort(3)(torch.zeros(1, 4))
    Traceback (most recent call last):
    ValueError: group_size must divide the last axis, got 3 for shape (1, 4)
    """

    def __init__(self, group_size: int | None = None) -> None:
        super().__init__()
        if group_size is not None:
            check_count(group_size, "group_size", least=2)
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of `x`, of at least one axis."""
        size = max(x.shape[-1], 1) if self.group_size is None else self.group_size
        if x.shape[-1] % size:
            raise ValueError(
                f"group_size must divide the last axis, got {size} for shape {tuple(x.shape)}"
            )
        groups = x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
        return groups.sort(dim=-1).values.reshape(x.shape)

    def extra_repr(self) -> str:
        """Show the size of a group."""
        return f"group_size={self.group_size}"
