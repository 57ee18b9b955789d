"""Chapter 2: the norms of a matrix, computed by definition or by decomposition.

Equations (7)–(10) of the article. All functions take a batch of matrices in the last two axes,
are differentiable, and divide W by a power of two first where squares of its entries could
overflow or underflow. Half precision is computed in float32 and returned in its own
dtype, in which a norm above 65504 (float16) is inf, as in torch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lipbook._checks import check_tensor, is_transformed, untransformed, unusable


def split_scale(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Write each matrix as ``unit * scale`` such that squares and products of `unit` are safe.

    Parameters
    ----------
    matrix : Tensor, shape (..., m, n)
        Half precision is promoted to float32, the other dtypes are kept.

    Returns
    -------
    unit : Tensor, shape (..., m, n)
        Largest absolute entry between 2⁻¹⁶ and 2¹⁶, or 0 for a zero matrix.
    scale : Tensor, shape (...)
        A power of two: dividing by it is exact, except for entries so much smaller than the
        largest that they become subnormal. It is 1, and `unit` is `matrix`, if all the matrices
        of the batch are in range already. A constant for autograd: a norm is homogeneous, so
        its gradient does not see it.

    Raises
    ------
    TypeError
        If `matrix` is not a floating-point tensor.
    ValueError
        If it has fewer than two axes, no entries, a NaN or an infinity.

    Examples
    --------
    >>> unit, scale = split_scale(torch.tensor([[3e30, -1e30]]))
    >>> bool(unit.abs().amax() < 2), bool((unit * scale)[0, 0] == 3e30)
    (True, True)
    >>> split_scale(torch.ones(3))
    Traceback (most recent call last):
    ValueError: matrix must have at least 2 axes, got shape (3,)
    """
    if error := unusable(matrix, "matrix"):
        raise error
    in_range = _in_range(matrix)
    if not in_range:
        check_tensor(matrix, "matrix", min_ndim=2)
    if matrix.dtype in (torch.float16, torch.bfloat16):
        matrix = matrix.float()
    if in_range:
        return matrix, matrix.new_ones(matrix.shape[:-2])
    largest = _largest_entry(matrix)
    exponent = torch.frexp(largest).exponent - 1
    scale = torch.where(largest > 0, torch.exp2(exponent.to(matrix.dtype)), 1.0)
    return matrix / scale[..., None, None], scale


def _in_range(matrix: Tensor) -> bool:
    """Whether `matrix` is sound and needs no scaling; NaN and infinity fail the comparison."""
    if not (isinstance(matrix, Tensor) and matrix.is_floating_point()):
        return False
    if matrix.ndim < 2 or matrix.numel() == 0:
        return False
    if matrix.ndim == 2 and not is_transformed(matrix):  # spare the operations on a single number
        smallest = largest = max(matrix.amax().item(), -matrix.amin().item())
    else:
        smallest, largest = (one.item() for one in untransformed(_largest_entry(matrix)).aminmax())
    return smallest >= 2.0**-16 and largest <= 2.0**16


def _largest_entry(matrix: Tensor) -> Tensor:
    """Compute max |w_ij| of each matrix, without the copy that abs() would make."""
    matrix = matrix.detach()
    return torch.maximum(matrix.amax(dim=(-2, -1)), -matrix.amin(dim=(-2, -1)))


def frobenius_norm(matrix: Tensor) -> Tensor:
    """Root of the sum of squared entries, equation (9): an upper bound on ``‖W‖₂`` by (10).

    Parameters
    ----------
    matrix : Tensor, shape (..., m, n)
        Floating point, finite, not empty.

    Returns
    -------
    Tensor, shape (...)
        In the dtype of `matrix`. At a zero matrix the gradient is 0.

    Raises
    ------
    TypeError
        If `matrix` is not a floating-point tensor.
    ValueError
        If it has fewer than two axes, no entries, a NaN or an infinity.

    Examples
    --------
    >>> frobenius_norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    tensor(5.)
    >>> frobenius_norm(torch.ones(2, 2, dtype=torch.int64))
    Traceback (most recent call last):
    TypeError: matrix must have a real floating-point dtype, got torch.int64; ...
    """
    unit, scale = split_scale(matrix)
    norm: Tensor = torch.linalg.matrix_norm(unit, "fro")
    return (norm * scale).to(matrix.dtype)


def induced_norm(matrix: Tensor, p: float = 2) -> Tensor:
    """Largest ``‖Wx‖_p / ‖x‖_p``, equation (7): the smallest C that (6) admits.

    A closed form for ``p = 1`` (largest absolute column sum) and ``p = inf`` (largest absolute
    row sum); for ``p = 2`` the largest singular value, by decomposition. These three are the
    ones that can be computed: for other p the problem is NP-hard (Hendrickx & Olshevsky 2010).

    Parameters
    ----------
    matrix : Tensor, shape (..., m, n)
        Floating point, finite, not empty.
    p : {1, 2, inf}, default 2
        The vector norm of both domain and range.

    Returns
    -------
    Tensor, shape (...)
        In the dtype of `matrix`, differentiable; where the maximum is attained more than once the
        gradient is one of the subgradients.

    Raises
    ------
    TypeError
        If `matrix` is not a floating-point tensor.
    ValueError
        If it has fewer than two axes, no entries, a NaN or an infinity, or if `p` is another.

    Examples
    --------
    >>> matrix = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    >>> [round(induced_norm(matrix, p).item(), 3) for p in (1, 2, float("inf"))]
    [2.0, 1.618, 2.0]
    >>> induced_norm(matrix, 3)
    Traceback (most recent call last):
    ValueError: p must be 1, 2 or inf, got 3: the other induced norms have no ...
    """
    if np.ndim(p) or p not in (1, 2, float("inf")):
        raise ValueError(
            f"p must be 1, 2 or inf, got {p!r}: the other induced norms have no closed form, and "
            "the Frobenius norm is not an induced one (see frobenius_norm)"
        )
    unit, scale = split_scale(matrix)
    norm: Tensor = torch.linalg.matrix_norm(unit, p)
    return (norm * scale).to(matrix.dtype)


def stable_rank(matrix: Tensor) -> Tensor:
    """How coarse the Frobenius bound is: ``(‖W‖_F / ‖W‖₂)²``, from 1 to the rank, up to rounding.

    Parameters
    ----------
    matrix : Tensor, shape (..., m, n)
        Floating point, finite, not empty.

    Returns
    -------
    Tensor, shape (...)
        In the dtype of `matrix`; 0 for a zero matrix.

    Raises
    ------
    TypeError, ValueError
        As `frobenius_norm`.

    Examples
    --------
    >>> stable_rank(torch.eye(3))
    tensor(3.)
    >>> stable_rank(torch.empty(0, 3))
    Traceback (most recent call last):
    ValueError: matrix must not be empty, got shape (0, 3)
    """
    unit, _ = split_scale(matrix)
    spectral: Tensor = torch.linalg.matrix_norm(unit, 2)
    frobenius: Tensor = torch.linalg.matrix_norm(unit, "fro")
    ratio = frobenius / torch.where(spectral > 0, spectral, 1.0)
    return ratio.square().to(matrix.dtype)
