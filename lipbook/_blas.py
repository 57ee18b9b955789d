"""The one-thread route: BLAS and LAPACK of NumPy and SciPy on the memory of torch's tensors.

With one thread they beat torch where it lacks the routine (half a Gram matrix, one eigenvector)
and where its overhead counts, some microseconds an operation. On AMD, OpenBLAS also has the faster
products with a vector than the MKL of torch's wheels.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import blas, lapack
from threadpoolctl import ThreadpoolController
from torch import Tensor

Array = NDArray[Any]

_CTYPES: dict[torch.dtype, tuple[Any, Any]] = {
    torch.float32: (ctypes.c_float, np.float32),
    torch.float64: (ctypes.c_double, np.float64),
}
_VECTOR_ROUTINES: dict[str, tuple[Any, Any]] = {
    "f": (blas.sgemv, blas.snrm2),
    "d": (blas.dgemv, blas.dnrm2),
}
# NumPy's and SciPy's BLAS; torch has its own, which no library but torch can see.
_BLAS = ThreadpoolController().select(user_api="blas")


def in_one_thread(x: Tensor) -> bool:
    """Whether to leave products to OpenBLAS, which has syrk and, on AMD, the faster gemv.

    Only if torch has one thread: two pools of threads would wait for each other's cores. Who sets
    torch's threads to one means BLAS's too, as `runtime.start` does and ``OMP_NUM_THREADS=1``.
    """
    return x.is_cpu and torch.get_num_threads() == 1


def as_array(x: Tensor) -> NDArray[Any]:
    """Return an array on the memory of `x`, not to be written to.

    Not by ``x.numpy()``, after which the storage can never be resized: FSDP would fail.
    """
    return np.from_dlpack(x.detach())


def can_read(x: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether `memory` has the entries of `x` in their order, and they have that type."""
    return (
        x is not None and x.is_cpu and x.dtype is dtype and dtype in _CTYPES and x.is_contiguous()
    )


def memory(x: Tensor) -> Array:
    """Return a flat array on the memory of `x`, which the caller has to keep alive meanwhile.

    It takes a fifth of the time of `as_array`, and can be written to; `x` must be contiguous.
    """
    c_type, np_type = _CTYPES[x.dtype]
    return np.frombuffer((c_type * x.numel()).from_address(x.data_ptr()), np_type)


def power_steps(
    weight: Array, u: Array, v: Array, steps: int, eps: float
) -> tuple[float, Array, Array]:
    """Return σ, u and v after some steps ``u ∝ Wv + eps u``, ``σv = Wᵀu + eps v``.

    The matrix is given by rows, flat. NaN where there is no direction, as torch has it, and without
    NumPy's warning.
    """
    gemv, nrm2 = _VECTOR_ROUTINES[weight.dtype.char]
    matrix = weight.reshape(len(u), len(v)).T  # BLAS reads by columns
    for _ in range(steps):
        u = gemv(1.0, matrix, v, eps, u, trans=1)
        _scale(u, nrm2(u))
        v = gemv(1.0, matrix, u, eps, v)
        sigma = nrm2(v)
        _scale(v, sigma)
    return sigma, u, v


def fingerprint(weight: Tensor, probe: Tensor) -> bytes:
    """Return the bytes of the product of a weight's rows with a vector."""
    gemv, _ = _VECTOR_ROUTINES["f" if weight.dtype is torch.float32 else "d"]
    vector = memory(probe)
    product: Array = gemv(1.0, memory(weight).reshape(-1, len(vector)).T, vector, trans=1)
    return product.tobytes()


def _scale(x: Array, norm: float) -> None:
    if 0 < norm < math.inf:
        x /= norm
    else:
        x.fill(math.nan)


def product(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """Return ``x -> matrix @ x`` for vectors."""
    if not in_one_thread(matrix):
        return matrix.mv
    array = as_array(matrix)
    return lambda x: torch.from_numpy(array @ as_array(x))


def gram(tall: Tensor) -> Tensor:
    """Return ``WᵀW``, of which the upper triangle counts."""
    if not in_one_thread(tall):
        return tall.mT @ tall
    array = as_array(tall)
    by_rows = array.flags.c_contiguous  # and BLAS reads by columns
    syrk: Any = blas.ssyrk if array.dtype == np.float32 else blas.dsyrk  # half of a gemm
    return torch.from_numpy(syrk(1.0, array.T if by_rows else array, trans=not by_rows))


def top_eigenvector(symmetric: Tensor) -> Tensor:
    """Return the vector of the largest eigenvalue; of `symmetric` the upper triangle counts."""
    array = as_array(symmetric)
    n = len(array)
    # LAPACK's xSYEVR can stop after the one eigenvector that is wanted; torch does not offer it.
    syevr: Any = lapack.ssyevr if array.dtype == np.float32 else lapack.dsyevr
    with nullcontext() if in_one_thread(symmetric) else _BLAS.limit(limits=1):
        _, vectors, _, _, info = syevr(array, range="I", il=n, iu=n)
    if info != 0:  # pragma: no cover
        raise RuntimeError(f"LAPACK's syevr failed with info = {info}; method='svd' is left")
    return torch.from_numpy(vectors[:, 0])


def top_pair_of_tridiagonal(
    diagonal: list[float], off_diagonal: list[float]
) -> tuple[float, NDArray[np.float64]]:
    """Return the largest eigenvalue and its vector, shape (k,), of a symmetric tridiagonal matrix.

    Past SciPy's eigh_tridiagonal, whose checks take as long as the work.
    """
    k = len(diagonal)
    _, values, vectors, info = lapack.dstemr(
        np.array(diagonal), np.array([*off_diagonal, 0.0]), range=2, vl=0, vu=0, il=k, iu=k
    )
    if info != 0:  # pragma: no cover
        raise RuntimeError(f"LAPACK's stemr failed with info = {info}; method='svd' is left")
    return float(values[0]), vectors[:, 0]
