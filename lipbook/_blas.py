"""The one-thread route: BLAS and LAPACK of NumPy and SciPy on the memory of torch's tensors.

They have what torch lacks (half a Gram matrix, one eigenvector) and take about a microsecond a
call, where an operation of torch takes several. On AMD, OpenBLAS also has the faster products with
a vector than the MKL of torch's wheels. One thread, because a product with a vector is too short to
be shared: a thread that finds its core busy keeps the others waiting for much longer than it saves.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import blas, lapack
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

Array = NDArray[Any]

_PLAIN = (Tensor, nn.Parameter)
_CTYPES: dict[torch.dtype, Any] = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}
#: Entries up to which neither torch nor OpenBLAS, from 9,216 on, takes a second thread.
_SHORT = 8192
#: Times the shift of `power_steps`: norms from which on float32 does not show it.
SHIFT_IS_LOST = 1e8
# NumPy's and SciPy's BLAS; torch has its own, which no library but torch can see.
_BLAS = ThreadpoolController().select(user_api="blas")

_NAMES = ("axpy", "dot", "gemv", "ger", "nrm2", "scal", "symv", "syrk")
#: By NumPy's characters of the two types.
_ROUTINES: dict[str, Any] = {
    "f": SimpleNamespace(**{n: getattr(blas, f"s{n}") for n in _NAMES}, syevr=lapack.ssyevr),
    "d": SimpleNamespace(**{n: getattr(blas, f"d{n}") for n in _NAMES}, syevr=lapack.dsyevr),
}


def in_one_thread(x: Tensor) -> bool:
    """Whether torch works on `x` in one thread, so that BLAS in one takes nothing from anyone.

    Who sets torch's threads to one means BLAS's too, as `runtime.start` does and
    ``OMP_NUM_THREADS=1``. What is short nobody shares.
    """
    return x.is_cpu and (x.numel() <= _SHORT or torch.get_num_threads() == 1)


def one_thread() -> AbstractContextManager[Any]:
    """Return a context in which NumPy's and SciPy's BLAS have one thread."""
    if all(library.get_num_threads() == 1 for library in _BLAS.lib_controllers):
        return nullcontext()
    limited: AbstractContextManager[Any] = _BLAS.limit(limits=1)
    return limited


class _Exported:
    """A tensor on its way to NumPy, past the checks of ``Tensor.__dlpack__``, which take longer."""

    __slots__ = ("x",)

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __dlpack__(self, **_: Any) -> Any:
        return to_dlpack(self.x)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the CPU


def as_array(x: Tensor) -> Array:
    """Return an array on the memory of `x`, not to be written to.

    Not by ``x.numpy()``, after which the storage can never be resized: FSDP would fail.
    """
    return np.from_dlpack(_Exported(x.detach().resolve_neg()))


def can_read(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether `memory` has the entries of `x` in their order, and they have that type.

    A subclass may have no memory.
    """
    return (
        type(x) in _PLAIN
        and x.is_cpu
        and x.dtype is dtype
        and dtype in _CTYPES
        and x.is_contiguous()
        and not x.is_neg()  # as the imaginary part of a conjugate: the memory has the opposite
    )


def memory(x: Tensor) -> Array:
    """Return a flat array on the memory of `x`, which the caller has to keep alive meanwhile.

    It takes a tenth of the time of `as_array`, and can be written to; `x` must be contiguous.
    """
    return _at(x.data_ptr(), x.numel(), x.dtype)


@functools.lru_cache(maxsize=1024)
def _at(address: int, length: int, dtype: torch.dtype) -> Array:
    """Return an array on that memory, whoever has it now."""
    c_type = _CTYPES[dtype]
    return np.frombuffer((c_type * length).from_address(address), np.dtype(c_type))


def power_steps(
    weight: Array, u: Array, v: Array, steps: int, shift: float
) -> tuple[float, Array, Array]:
    """Return ``σ = ⟨u, Wv⟩``, u and v after some steps ``u ∝ Wv + shift u``, ``v ∝ Wᵀu + shift v``.

    The matrix is given by rows, flat. NaN where there is no direction, as torch has it, and without
    NumPy's warning.
    """
    routines = _ROUTINES[weight.dtype.char]
    gemv, nrm2 = routines.gemv, routines.nrm2
    matrix = weight.reshape(len(u), len(v)).T  # BLAS reads by columns
    for _ in range(steps):
        u = gemv(1.0, matrix, v, shift, u, trans=1)
        u = _unit(u, nrm2(u))
        last, v = v, gemv(1.0, matrix, u, shift, v)
        sigma = nrm2(v)
        v = _unit(v, sigma)
    if sigma < SHIFT_IS_LOST * shift:
        sigma -= shift * routines.dot(last, v)
    return sigma, u, v


def _unit(x: Array, norm: float) -> Array:
    if 2.0**-100 < norm < math.inf:  # its inverse is in range
        scaled: Array = _ROUTINES[x.dtype.char].scal(1 / norm, x)
        return scaled
    return x / norm if 0 < norm < math.inf else np.full_like(x, math.nan)


def dot(x: Tensor, y: Tensor) -> float:
    """Return ``⟨x, y⟩``."""
    if not (can_read(x, y.dtype) and can_read(y, y.dtype)):
        return torch.dot(x.reshape(-1), y.reshape(-1)).item()
    array = memory(x)
    product: float = _ROUTINES[array.dtype.char].dot(array, memory(y))
    return product


def short_matrix(x: Tensor, dtype: torch.dtype, m: int, n: int) -> Array | None:
    """Return `x` as a matrix on its memory, if a call of torch would take longer than its work.

    By rows or by columns: the gradient of a dense layer's weight comes as a transpose.
    """
    if x.numel() > _SHORT:
        return None
    if can_read(x, dtype):
        return memory(x).reshape(m, n)
    if x.ndim == 2 and can_read(x.t(), dtype):
        return memory(x.t()).reshape(n, m).T
    return None


def quotient_gradient(
    grad: Array, weight: Array, factor: float, slope: float, u: Array, v: Array
) -> Array:
    """Return ``factor G − slope ⟨G, W⟩ u vᵀ`` by rows; of W the rows are given flat."""
    routines = _ROUTINES[grad.dtype.char]
    gradient: Array = np.multiply(grad, factor, order="C")
    overlap = routines.dot(gradient.ravel(), weight)
    scale = -slope / factor * overlap if factor else 0.0
    routines.ger(scale, v, u, a=gradient.T, overwrite_a=1)
    return gradient


def gram(tall: Array) -> Array:
    """Return ``WᵀW``, of which the upper triangle counts."""
    by_rows = tall.flags.c_contiguous  # and BLAS reads by columns
    syrk = _ROUTINES[tall.dtype.char].syrk  # half of a gemm
    product: Array = syrk(1.0, tall.T if by_rows else tall, trans=not by_rows)
    return product


def is_moderate(gram: Array) -> bool:
    """Whether all entries of the matrix behind a Gram matrix are finite and far from the limits."""
    largest = gram.diagonal().max()
    return bool(2.0**-40 <= largest <= 2.0**40)  # the sum of squares of a column; NaN fails


def is_in_range(matrix: Array) -> bool:
    """Whether all entries are finite and the largest needs no scaling, as `split_scale` has it."""
    return bool(2.0**-16 <= max(matrix.max(), -matrix.min()) <= 2.0**16)  # NaN fails


def stretched(tall: Array, right: Array) -> tuple[float, Array]:
    """Return the length of ``W v`` for the unit vector of v, and its direction, or 0."""
    nrm2 = _ROUTINES[right.dtype.char].nrm2
    right /= nrm2(right)
    left = tall @ right
    length = nrm2(left)  # summed in a wider format: torch's sum would lose 1e-5 on a million
    if length > 0:
        left /= length
    return length, left


def top_eigenvector(symmetric: Array) -> Array:
    """Return the vector of the largest eigenvalue of a matrix, whose upper triangle counts."""
    n = len(symmetric)
    # LAPACK's xSYEVR can stop after the one eigenvector that is wanted; torch does not offer it.
    syevr = _ROUTINES[symmetric.dtype.char].syevr
    _, vectors, found, _, info = syevr(symmetric, range="I", il=n, iu=n)
    # Where nearly all eigenvalues tie, as for an orthogonal weight, it may find none, and say 0.
    if info == 0 and found == 1:
        top: Array = vectors[:, 0]
        return top
    return np.linalg.eigh(symmetric, UPLO="U").eigenvectors[:, -1]


def top_pair_of_tridiagonal(
    diagonal: list[float], off_diagonal: list[float]
) -> tuple[float, NDArray[np.float64]]:
    """Return the largest eigenvalue and its vector, shape (k,), of a symmetric tridiagonal matrix.

    Past SciPy's eigh_tridiagonal, whose checks take as long as the work.
    """
    k = len(diagonal)
    found, values, vectors, info = lapack.dstemr(
        np.array(diagonal), np.array([*off_diagonal, 0.0]), range=2, vl=0, vu=0, il=k, iu=k
    )
    if info == 0 and found == 1:
        return float(values[0]), vectors[:, 0]
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off_diagonal, 1), UPLO="U")
    return float(values[-1]), vectors[:, -1]


def gram_product(tall: Array) -> Callable[[Array], Array]:
    """Return ``x -> Wᵀ(W x)``, a new vector each time."""
    gemv = _ROUTINES[tall.dtype.char].gemv
    if not (tall.flags.c_contiguous or tall.flags.f_contiguous):
        tall = np.ascontiguousarray(tall)
    matrix, trans = (tall.T, 1) if tall.flags.c_contiguous else (tall, 0)
    return lambda x: gemv(1.0, matrix, gemv(1.0, matrix, x, trans=trans), trans=1 - trans)


def symmetric_product(symmetric: Array) -> Callable[[Array], Array]:
    """Return ``x -> G x``, a new vector each time; of G the upper triangle counts."""
    symv = _ROUTINES[symmetric.dtype.char].symv
    return lambda x: symv(1.0, symmetric, x)


class KrylovBasis:
    """The basis of Lanczos on a symmetric operator, a vector a step, orthogonal to rounding.

    The one of `power_iteration` in BLAS.
    """

    def __init__(self, apply: Callable[[Array], Array], start: Array) -> None:
        self.routines, self.apply = _ROUTINES[start.dtype.char], apply
        self.basis = np.empty((64, len(start)), start.dtype)
        self.rest, self.residual = start, self.routines.nrm2(start)
        self.steps = 0

    def advance(self) -> tuple[float, float]:
        """Take the next vector in, and return what `top_of_krylov` asks for."""
        k, axpy, gemv = self.steps, self.routines.axpy, self.routines.gemv
        if k == len(self.basis):
            self.basis = np.concatenate([self.basis, np.empty_like(self.basis)])
        last = self.basis[k]
        np.multiply(self.rest, 1 / self.residual, out=last)
        image = self.apply(last)
        if k:
            image = axpy(self.basis[k - 1], image, a=-self.residual)
        overlap = self.routines.dot(last, image)
        image = axpy(last, image, a=-overlap)
        known = self.basis[: k + 1].T
        overlaps = gemv(1.0, known, image, trans=1)
        self.rest = gemv(-1.0, known, overlaps, 1.0, image, overwrite_y=1)
        self.residual = self.routines.nrm2(self.rest)
        self.steps += 1
        return overlap, self.residual

    def combine(self, weights: NDArray[np.float64]) -> Array:
        """Return the sum of the vectors, weighted."""
        combined: Array = weights.astype(self.basis.dtype) @ self.basis[: self.steps]
        return combined
