"""Chapter 3: the spectral norm of a matrix, iterated, exact, and certified.

`power_iteration` is the article's (13) and (15) for study; `spectral_norm` is the one to use, by
the Gram matrix, by Golub–Kahan–Lanczos or by SVD; `spectral_norm_bounds` brackets the norm and
counts its own rounding errors. Batches sit in the leading axes. As in `matrix_norms`, every
scale is safe, and half precision is computed in float32 and returned in its own dtype; the two
bounds are float64.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lipbook import _blas
from lipbook._checks import (
    check_bool,
    check_count,
    check_positive,
    check_tensor,
    refuse_transforms,
    unusable,
    wrong_type,
)
from lipbook.matrix_norms import induced_norm, split_scale

Method = Literal["auto", "gram", "lanczos", "svd"]

_GRAM_LIMIT = 160  # shorter side up to which a Gram matrix beats Lanczos (benchmarks/)
_LANCZOS_LIMIT = 160  # steps after which "auto" gives a Gram matrix's price to end a slow run
_FIRST_CHECK = 16  # steps before the first look, which suffice where there is a gap
_LONG_SIDE = 4  # ratio of the sides from which on a Gram matrix repays if they do not
_UNLUCKY = 0.05  # probability that a start may miss the top vector; see golub_kahan_lanczos


class PowerIteration(NamedTuple):
    """What `power_iteration` returns: the estimate, its vectors, and how it came about.

    Attributes
    ----------
    sigma : Tensor, shape (...)
        The last estimate of the norm.
    u, v : Tensor, shape (..., m) and (..., n)
        The left and the right unit vector; 0 where the start was lost.
    history : Tensor, shape (n_iterations, ...), or None
        The estimate after each iteration, if it was asked for.
    """

    sigma: Tensor
    u: Tensor
    v: Tensor
    history: Tensor | None


class Lanczos(NamedTuple):
    """What `golub_kahan_lanczos` returns: the top vector, and how it was found in k steps.

    Attributes
    ----------
    right : Tensor, shape (n,)
        The unit vector that the operator stretches by about its norm.
    tridiagonal : Tensor, shape (k, k), float64
        The operator ``AᵀA`` in the Lanczos basis; its leading blocks hold every earlier estimate.
    converged : bool
        Whether the bound on the error met `rtol` within `max_steps`.
    """

    right: Tensor
    tridiagonal: Tensor
    converged: bool


class NormBounds(NamedTuple):
    """A bracket ``lower <= norm <= upper``.

    Attributes
    ----------
    lower : Tensor, shape (...)
        Not above the norm; in float64, whatever the dtype of the matrix.
    upper : Tensor, shape (...)
        Not below it; in float64 too.
    """

    lower: Tensor
    upper: Tensor


def power_iteration(
    matrix: Tensor,
    n_iterations: int = 5,
    *,
    init: Literal["random", "ones"] | Tensor = "random",
    form: Literal["two-vector", "gram"] = "two-vector",
    detach: bool = False,
    generator: torch.Generator | None = None,
    history: bool = False,
) -> PowerIteration:
    r"""Estimate ``‖W‖₂`` from below by power iteration, equations (13)–(15).

    The two-vector form (15) iterates :math:`v \leftarrow W^\top u / \|W^\top u\|`,
    :math:`u \leftarrow W v / \|W v\|` and ends with :math:`u^\top W v`. The Gram form (13)
    iterates :math:`x \leftarrow W^\top W x / \|W^\top W x\|` and ends with the root of (14). They
    are the same iteration half a step apart: (15) from ``u = W x`` gives what (13) gives from x.
    The relative error falls like :math:`(\sigma_2 / \sigma_1)^{4r}`, and every estimate is a
    lower bound; a start orthogonal to the top singular vector never finds it.

    Parameters
    ----------
    matrix : Tensor, shape (..., m, n)
        Floating point, finite, not empty.
    n_iterations : int, default 5
        The article's r.
    init : {"random", "ones"} or Tensor, default "random"
        The start: normal entries, the article's all-ones vector, or a tensor that broadcasts to
        shape (..., m) for the two-vector form, to (..., n) for the Gram form.
    form : {"two-vector", "gram"}, default "two-vector"
        Equation (15), or equation (13).
    detach : bool, default False
        Whether the gradient takes u and v for constants, and so is exactly ``u vᵀ`` (Miyato et
        al. 2018); otherwise it goes through every step.
    generator : torch.Generator, optional
        Source of a random start, on the matrix's device; by default torch's global one.
    history : bool, default False
        Whether to keep the estimate of every iteration.

    Returns
    -------
    PowerIteration
        ``sigma, u, v, history`` in the dtype of `matrix`; 0 without NaN where a product vanishes.

    Raises
    ------
    TypeError
        If `matrix` or `init` is not a floating-point tensor, `n_iterations` not an integer, or
        `generator` no generator.
    ValueError
        If an entry is not finite, or shape, `init`, `form` or `n_iterations` do not fit.

    Examples
    --------
    >>> matrix = torch.diag(torch.tensor([3.0, 1.0]))
    >>> power_iteration(matrix, 5, init="ones").sigma
    tensor(3.)
    >>> lost = torch.tensor([[1.0], [-1.0]])  # from this start
    >>> power_iteration(lost, init="ones").sigma
    tensor(0.)
    >>> power_iteration(torch.eye(2), 0)
    Traceback (most recent call last):
    ValueError: n_iterations must be at least 1, got 0
    """
    check_count(n_iterations, "n_iterations")
    check_bool(detach, "detach")
    if form not in ("two-vector", "gram"):
        raise ValueError(f"form must be 'two-vector' (15) or 'gram' (13), got {form!r}")
    unit, scale = split_scale(matrix)
    x = _normalize(_start(unit, init, unit.shape[-2 if form == "two-vector" else -1], generator))
    estimates = []
    for _ in range(n_iterations):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detach):
            if form == "two-vector":
                v = _normalize(_apply(unit.mT, x))
                u = x = _normalize(_apply(unit, v))
            else:
                v = x = _normalize(_apply(unit.mT, _apply(unit, x)))
                u = _normalize(_apply(unit, x))
        estimates.append(((u * _apply(unit, v)).sum(-1) * scale).to(matrix.dtype))
    return PowerIteration(
        estimates[-1],
        u.to(matrix.dtype),
        v.to(matrix.dtype),
        torch.stack(estimates) if history else None,
    )


def article_keras_spectral_norm(kernel: Tensor, n_iterations: int = 5) -> Tensor:
    """Reproduce the estimate of the article's Keras listing, for study only.

    It reshapes a kernel of Keras's layout to ``(prod(shape[:-1]), shape[-1])`` and runs (15) from
    the all-ones vector, with Keras's normalization ``x / sqrt(max(Σx², 1e-12))``. That is a lower
    bound for a dense layer, 0 on ``[[1], [-1]]`` (claim PI4), and for a convolution it is not the
    operator's norm (PI7): use `spectral_norm` or `convolution.conv_spectral_norm` instead.

    Parameters
    ----------
    kernel : Tensor, shape (..., out)
        Outputs last, as in Keras: a torch convolution needs ``kernel.permute(2, 3, 1, 0)``, a
        dense layer ``weight.T``. A vector counts as one row, as when it constrains a γ (SP4).
    n_iterations : int, default 5
        The article's r.

    Returns
    -------
    Tensor, shape ()
        In the dtype of `kernel`, differentiable through every step.

    Raises
    ------
    TypeError
        If `kernel` is not a floating-point tensor, or `n_iterations` not an integer.
    ValueError
        If `kernel` has no axes, no entries, a NaN or an infinity, or `n_iterations` is below 1.

    Examples
    --------
    >>> article_keras_spectral_norm(torch.tensor([[1.0], [-1.0]]))
    tensor(0.)
    >>> article_keras_spectral_norm(torch.tensor(1.0))
    Traceback (most recent call last):
    ValueError: kernel must have at least 1 axes, got shape ()
    """
    check_count(n_iterations, "n_iterations")
    w = check_tensor(kernel, "kernel", min_ndim=1).reshape(-1, kernel.shape[-1])

    def l2_normalize(x: Tensor) -> Tensor:
        return x * x.square().sum().clamp(min=1e-12).rsqrt()

    u = w.new_ones(len(w))
    for _ in range(n_iterations):
        v = l2_normalize(u @ w)
        u = l2_normalize(w @ v)
    return u @ w @ v


def golub_kahan_lanczos(
    matvec: Callable[[Tensor], Tensor],
    rmatvec: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    rtol: float = 1e-6,
    max_steps: int | None = None,
) -> Lanczos:
    r"""Find the norm of a linear operator A from products with A and its adjoint.

    Lanczos on :math:`A^\top A` (Golub & Kahan 1965). Each new vector is orthogonalized against the
    last two, as exact arithmetic would have it, and then against all the earlier ones; in a single
    sweep the rounding errors would grow with each step. After k steps the estimate is the best in
    the Krylov space of which k - 1 steps of power iteration use the last vector.

    A small residual alone proves *some* singular value, perhaps not the top one. The rule here
    bounds the error itself. Let θ be the largest Ritz value of :math:`A^\top A`, s its vector in
    the Lanczos basis, r its residual and z the top right singular vector. The Ritz vector y
    satisfies :math:`(\sigma^2 - θ)⟨z, y⟩ ≤ r`, and since it is a polynomial of
    :math:`A^\top A` that is increasing above θ, applied to the start x,
    :math:`|⟨z, y⟩| ≥ |⟨z, x⟩| / |s_1|`. So :math:`\sigma^2 - θ ≤ r |s_1| / δ` whenever
    :math:`|⟨z, x⟩| ≥ δ`, which a uniformly random unit x violates with a probability of at most
    :math:`δ \sqrt{2n/π}`, whatever the operator; δ is chosen so that this is 0.05 (the same
    argument from the Lanczos polynomials: Hochstenbach 2013). Rounding adds a few units of the
    dtype. Where the Krylov space of the start is exhausted, the process goes on from a fresh
    direction orthogonal to it; but a start that is the same each time can be missed by a matrix
    that was made for it.

    Parameters
    ----------
    matvec : callable
        ``x -> A x``, from shape (n,) to any; scale A near 1 first.
    rmatvec : callable
        ``y -> Aᵀ y``, from there to shape (n,).
    start : Tensor, shape (n,)
        Random direction in the domain of `matvec`, finite and not 0; of any length.
    rtol : float, default 1e-6
        Relative accuracy of the norm.
    max_steps : int, optional
        Largest dimension of the Krylov space, at least 1; by default n, the whole space.

    Returns
    -------
    Lanczos
        ``right, tridiagonal, converged``, constants for autograd. The norm is ``‖matvec(right)‖``.

    Raises
    ------
    TypeError
        If `start` is no floating-point tensor, or a number has the wrong type.
    ValueError
        If `start` is zero, or not finite, or no vector, or a number is out of range.

    Examples
    --------
    >>> matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> found = golub_kahan_lanczos(matrix.mv, matrix.T.mv, torch.ones(3))
    >>> found.converged, round(matrix.mv(found.right).norm().item(), 5)
    (True, 3.0)
    >>> golub_kahan_lanczos(matrix.mv, matrix.T.mv, torch.zeros(3))
    Traceback (most recent call last):
    ValueError: start must not be zero
    """
    check_positive(rtol, "rtol")
    if max_steps is not None:
        check_count(max_steps, "max_steps")
    start = check_tensor(start, "start", ndim=1).detach()
    if not bool(start.any()):
        raise ValueError("start must not be zero")
    start = split_scale(start[None])[0][0]  # 1e-40 has no inverse
    n = start.numel()
    max_steps = n if max_steps is None else min(max_steps, n)
    with torch.no_grad():
        basis = KrylovBasis(lambda x: rmatvec(matvec(x)), start)
        found = top_of_krylov(basis.advance, n, start.dtype, rtol, max_steps, fresh=basis.fresh)
        right = basis.combine(found.weights)
    off_diagonal = found.off_diagonal
    tridiagonal = np.diag(found.diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
    return Lanczos(
        right / torch.linalg.vector_norm(right), torch.from_numpy(tridiagonal), found.converged
    )


class KrylovTop(NamedTuple):
    """What `top_of_krylov` returns."""

    theta: float  #: the largest Ritz value, an estimate of the squared norm
    weights: NDArray[np.float64]  #: its vector in the first vectors of the basis
    diagonal: list[float]  #: k entries of the tridiagonal matrix
    off_diagonal: list[float]  #: k - 1 entries
    converged: bool


def top_of_krylov(
    advance: Callable[[], tuple[float, float]],
    n: int,
    dtype: torch.dtype,
    rtol: float,
    max_steps: int,
    *,
    spans: bool = True,
    fresh: Callable[[int], None],
) -> KrylovTop:
    """Let a Lanczos process advance until the bound of `golub_kahan_lanczos` is met.

    `advance` does one step and returns its entry of the diagonal and the length of the remainder;
    `spans` says that n steps span the whole space, as those with an orthogonal basis do. The bound
    needs the recurrence only: the components ``⟨z, q_k⟩`` obey it up to rounding, and of its
    solutions they are the one that grows.

    A process that is exhausted has proved nothing of what is orthogonal to all that it saw, as a
    fixed start may be to the top vector. `fresh` sends it on from another direction, once at
    least, and until it has made the steps of a first look.
    """
    likely = _UNLUCKY * math.sqrt(math.pi / (2 * n))
    rounding = 16 * torch.finfo(dtype).eps
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    next_check, begin, best = _FIRST_CHECK, 0, (-math.inf, np.empty(0))
    for k in itertools.count(1):
        entry, residual = advance()
        diagonal.append(entry)
        exhausted = residual <= rounding * max(diagonal) or (spans and k == n)
        if k >= next_check or exhausted or k == max_steps:
            next_check = k + min(4, max(1, 2048 // n))
            block = diagonal[begin:], off_diagonal[begin:]
            theta, ritz = _blas.top_pair_of_tridiagonal(*block)
            tangent = residual * abs(ritz[-1] * ritz[0]) / likely
            converged = exhausted or tangent <= 2 * rtol * theta
            if not (converged or spans):
                residuals = [*block[1], residual]
                converged = _outgrows(1 / likely, (1 + 2 * rtol) * theta, block[0], residuals)
            more = exhausted and k < min(n, max_steps) and (begin == 0 or k < _FIRST_CHECK)
            if more or converged or k == max_steps:
                if theta > (1 + rounding) * best[0]:
                    best = theta, np.concatenate([np.zeros(begin), ritz])
                if not more:
                    break
                fresh(k)
                begin, residual = k, 0.0
        off_diagonal.append(residual)
    return KrylovTop(*best, diagonal, off_diagonal, bool(converged))


def _outgrows(
    limit: float, at: float, diagonal: Sequence[float], off_diagonal: Sequence[float]
) -> bool:
    """Whether one of the Lanczos polynomials exceeds `limit`: the bound without its tangent.

    Past the largest Ritz value they are convex. The tangent says little where rounding has made
    a copy of that value.
    """
    before, value, beside = 0.0, 1.0, 0.0
    for entry, residual in zip(diagonal, off_diagonal, strict=True):
        before, value = value, ((at - entry) * value - beside * before) / residual
        if value > limit:
            return True
        beside = residual
    return False


class KrylovBasis:
    """The basis of Lanczos on a symmetric operator, a vector a step, orthogonal to rounding."""

    def __init__(self, apply: Callable[[Tensor], Tensor], start: Tensor) -> None:
        self.apply = apply
        self.basis = start.new_empty(64, start.numel())
        self.rest, self.residual = start, float(torch.linalg.vector_norm(start))
        self.steps = 0

    def advance(self) -> tuple[float, float]:
        """Take the next vector in, and return what `top_of_krylov` asks for."""
        if self.steps == len(self.basis):
            self.basis = torch.cat([self.basis, torch.empty_like(self.basis)])
        torch.div(self.rest, self.residual, out=self.basis[self.steps])
        self.steps += 1
        known = self.basis[: self.steps]
        image = self.apply(known[-1])
        overlap = torch.mv(known[-2:], image)
        image = torch.addmv(image, known[-2:].T, overlap, alpha=-1)
        self.rest = torch.addmv(image, known.T, torch.mv(known, image), alpha=-1)
        self.residual = float(torch.linalg.vector_norm(self.rest))
        return float(overlap[-1]), self.residual

    def fresh(self, step: int) -> None:
        """Go on from a direction that is orthogonal to all before."""
        _go_on(self, self.basis, step)

    def combine(self, weights: NDArray[np.float64]) -> Tensor:
        """Return the sum of the first vectors, weighted."""
        return torch.mv(self.basis[: len(weights)].T, torch.from_numpy(weights).to(self.basis))


def _go_on(process: Any, like: Tensor, step: int) -> None:
    known = process.basis[:step]
    rest: Any = fresh_start(known.shape[1], like, step)
    rest = rest if isinstance(known, Tensor) else _blas.as_array(rest)
    for _ in range(2):
        rest = rest - known.T @ (known @ rest)
    # So short that the process does not take it for a link to its last vector.
    process.residual = 2.0**-60
    process.rest = rest * (process.residual / float(rest @ rest) ** 0.5)


def spectral_norm(matrix: Tensor, *, method: Method = "auto", rtol: float = 1e-6) -> Tensor:
    r"""Compute ``‖W‖₂``, the largest singular value, by the fastest route that reaches `rtol`.

    Parameters
    ----------
    matrix : Tensor, shape (..., m, n)
        Floating point, finite, not empty.
    method : {"auto", "gram", "lanczos", "svd"}, default "auto"
        ``"gram"`` takes the top eigenvector of the smaller Gram matrix, ``"lanczos"`` the one of
        `golub_kahan_lanczos`, and both end with ``‖Wv‖``, whose error is the square of v's;
        ``"svd"`` decomposes. ``"auto"`` is Gram up to a shorter side of 160, then Lanczos, and
        Gram again if Lanczos has not converged after 160 steps; on a CPU, Lanczos goes over to
        the Gram matrix where one side is at least four times the other and no wide gap shows.
    rtol : float, default 1e-6
        Relative accuracy of Lanczos, reached up to the rounding of the dtype (as are the other
        two routes) with the probability given there. Its start is drawn from a generator of its
        own: the result is deterministic, and torch's random state is not touched.

    Returns
    -------
    Tensor, shape (...)
        In the dtype of `matrix`. The gradient is ``u vᵀ``, a subgradient where the top singular
        value is repeated, and 0 at a zero matrix (``"svd"`` has another there). Differentiating
        twice raises a RuntimeError, except with ``method="svd"``.

    Raises
    ------
    TypeError
        If `matrix` is not a floating-point tensor, or `rtol` not a number.
    ValueError
        If `matrix` has fewer than two axes, no entries, a NaN or an infinity, if `method` is
        unknown or `rtol` not positive.

    Examples
    --------
    >>> matrix = torch.tensor([[0.0, 2.0], [0.0, 0.0]], requires_grad=True)
    >>> sigma = spectral_norm(matrix)
    >>> sigma
    tensor(2., grad_fn=...)
    >>> torch.autograd.grad(sigma, matrix)[0]
    tensor([[0., 1.],
            [0., 0.]])
    >>> spectral_norm(torch.eye(2), method="qr")
    Traceback (most recent call last):
    ValueError: method must be 'auto', 'gram', 'lanczos' or 'svd', got 'qr'
    """
    check_positive(rtol, "rtol")
    if method not in ("auto", "gram", "lanczos", "svd"):
        raise ValueError(f"method must be 'auto', 'gram', 'lanczos' or 'svd', got {method!r}")
    if error := unusable(matrix, "matrix"):
        raise error
    if method == "svd":
        return induced_norm(matrix, 2)
    refuse_transforms(
        matrix,
        "spectral_norm",
        "of its methods it can differentiate 'svd', and a batch of matrices needs no vmap",
    )
    unit, scale = matrix, None
    top = _by_blas(matrix, method, rtol)
    if top is None:
        unit, scale = split_scale(matrix)
        with torch.no_grad():
            top = _top(unit, method, rtol)
    sigma = top.sigma
    if unit.requires_grad and torch.is_grad_enabled():
        sigma = _Attached.apply(_tall(unit), *top)  # type: ignore[no-untyped-call]
    return sigma if scale is None else (sigma * scale).to(matrix.dtype)


def spectral_norm_bounds(matrix: Tensor, *, n_squarings: int = 10) -> NormBounds:
    r"""Bracket ``‖W‖₂`` between two numbers that rounding errors cannot make wrong.

    Above: the Gram iteration of Delattre et al. (2023). From :math:`G_0 = W^\top W` it squares
    :math:`G_{k+1} = G_k^\top G_k`, normalized, and :math:`\|W\|_2 \le \|G_k\|_F^{2^{-k-1}}`,
    too large by a factor of at most :math:`\mathrm{rank}^{2^{-k-2}}`. Below: ``‖Wx‖ / ‖x‖`` for
    the longest column x of the last :math:`G_k`, which is power iteration (13) done
    :math:`2^k` times from the best unit vector. Both are computed in float64 and widened by the
    a-priori bound of their rounding errors (Higham 2002, §3.1): whatever the order of summation,
    an inner product of n terms is off by at most :math:`γ_n |x|^\top |y|` with
    :math:`γ_n = n ε / (1 - n ε)`. (This leaves out norms so small that they are subnormal.)

    Parameters
    ----------
    matrix : Tensor, shape (..., m, n)
        Floating point, finite, not empty.
    n_squarings : int, default 10
        How often the Gram matrix is squared; each costs the cube of the shorter side.

    Returns
    -------
    NormBounds
        ``lower, upper``, each of shape (...), constant for autograd, and in float64: in a
        narrower dtype the bracket would have to be rounded again.

    Raises
    ------
    TypeError
        If `matrix` is not a floating-point tensor, or `n_squarings` not an integer.
    ValueError
        If `matrix` has fewer than two axes, no entries, a NaN or an infinity, or if
        `n_squarings` is negative.

    Examples
    --------
    >>> matrix = torch.tensor([[3.0, 0.0], [4.0, 5.0]])
    >>> lower, upper = spectral_norm_bounds(matrix)
    >>> bool(lower <= 45**0.5 <= upper), bool(upper / lower - 1 < 1e-6)
    (True, True)
    >>> spectral_norm_bounds(torch.eye(2), n_squarings=-1)
    Traceback (most recent call last):
    ValueError: n_squarings must be at least 0, got -1
    """
    check_count(n_squarings, "n_squarings", least=0)
    check_tensor(matrix, "matrix", min_ndim=2)
    unit, scale = split_scale(matrix.detach().double())
    tall = unit if unit.shape[-2] >= unit.shape[-1] else unit.mT
    terms = unit.shape[-2] * unit.shape[-1] + 16  # the longest sum below, and a reserve
    gamma = terms * 2.0**-53 / (1 - terms * 2.0**-53)
    factors = []
    gram = tall
    for _ in range(n_squarings + 1):
        factors.append(torch.linalg.matrix_norm(gram, "fro") * (1 + gamma))
        gram = gram / torch.where(factors[-1] > 0, factors[-1], 1.0)[..., None, None]
        gram = gram.mT @ gram
    # The computed Gram matrix C of a G with ‖G‖_F <= 1 is off by at most γ in norm, hence
    # ‖G‖² <= ‖C‖ + γ: from a bound of the last norm, backwards, to one of the first.
    upper = torch.linalg.matrix_norm(gram, "fro") * (1 + gamma)
    for factor in reversed(factors):
        upper = factor * ((upper + gamma).sqrt() * (1 + gamma) + gamma)
    longest = torch.linalg.vector_norm(gram, dim=-2).argmax(-1)[..., None, None]
    x = _normalize(gram.take_along_dim(longest, dim=-1)[..., 0])
    # ‖Wx‖ is off by at most γ‖W‖_F‖x‖, and ‖x‖ is within γ of 1.
    stretched = torch.linalg.vector_norm(_apply(tall, x), dim=-1) * (1 - gamma)
    lower = ((stretched - 2 * gamma * factors[0]) * (1 - 2 * gamma)).clamp(min=0)
    return NormBounds(lower * scale, upper * scale)


class _Top(NamedTuple):
    """The norm of tall matrices and its unit vectors; the left ones are 0 where the norm is."""

    sigma: Tensor  # shape (...)
    left: Tensor  # shape (..., m)
    right: Tensor  # shape (..., n)


class _Attached(torch.autograd.Function):
    """A norm that is known, with its gradient ``u vᵀ``; a second one would be wrong, and raises."""

    @staticmethod
    def forward(ctx: Any, tall: Tensor, sigma: Tensor, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.tall = tall  # not saved: that nobody writes to it counts for a second derivative only
        return sigma.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        left, right = ctx.saved_tensors
        gradient = (grad[..., None] * left)[..., None] * right[..., None, :]
        refusal = "spectral_norm can be differentiated once only; method='svd' any number of times"
        return only_once(gradient, ctx.tall, refusal), None, None, None


class _OnlyOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, _: Tensor, refusal: str) -> Tensor:
        ctx.refusal = refusal
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        raise RuntimeError(ctx.refusal)


def only_once(gradient: Tensor, of: Tensor, refusal: str) -> Tensor:
    """Return a gradient that is known as a function of nothing, so that its own would be wrong."""
    if not torch.is_grad_enabled():
        return gradient
    refusing: Any = super(torch.autograd.Function, _OnlyOnce).apply  # for batches of gradients, too
    return cast(Tensor, refusing(gradient, of, refusal))


def fresh_start(n: int, like: Tensor, step: int) -> Tensor:
    """Return another random direction for each step after the first."""
    generator = torch.Generator().manual_seed(step)
    another = torch.randn(n, generator=generator, dtype=torch.float64).to(like)
    return another if step else random_start(n, like)


def random_start(n: int, like: Tensor) -> Tensor:
    """Return a random direction, the same on every device, from a generator of its own."""
    generator = torch.Generator().manual_seed(0x5EED)
    return torch.randn(n, generator=generator, dtype=torch.float64).to(like)


def _apply(matrix: Tensor, x: Tensor) -> Tensor:
    return matrix @ x if x.ndim == 1 else (matrix @ x[..., None])[..., 0]


def _normalize(x: Tensor) -> Tensor:
    """Scale to unit vectors, and leave 0 where there is nothing to scale."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm > 0, norm, 1.0)


def _start(
    unit: Tensor, init: str | Tensor, size: int, generator: torch.Generator | None
) -> Tensor:
    if not isinstance(generator, torch.Generator | None):
        raise wrong_type(generator, "generator", "a torch.Generator")
    shape = (*unit.shape[:-2], size)
    if isinstance(init, Tensor):
        check_tensor(init, "init", min_ndim=1)
        try:
            start = init.to(unit).expand(shape)
        except RuntimeError:
            raise ValueError(
                f"init must broadcast to shape {shape}, got shape {tuple(init.shape)}"
            ) from None
        if not bool(start.any(-1).all()):
            raise ValueError("init must not be zero: every product with it would vanish")
        return split_scale(start[..., None])[0][..., 0]
    if init == "ones":
        return unit.new_ones(shape)
    if init == "random":
        return torch.randn(shape, generator=generator, dtype=unit.dtype, device=unit.device)
    raise ValueError(f"init must be 'random', 'ones' or a tensor, got {init!r}")


def _tall(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mT


def _top(unit: Tensor, method: Method, rtol: float) -> _Top:
    """Find the norm of matrices whose squares are safe."""
    by_blas = _by_blas(unit, method, rtol)
    if by_blas is not None:
        return by_blas
    tall = _tall(unit)
    n = tall.shape[-1]
    if method == "gram" or (method == "auto" and n <= _GRAM_LIMIT):
        right = _top_right_by_gram(tall)
    elif tall.ndim > 2:
        tops = [_top(one, method, rtol) for one in tall]
        return _Top(*(torch.stack(parts) for parts in zip(*tops, strict=True)))
    else:
        steps = min(_LANCZOS_LIMIT, n) if method == "auto" else n
        start = random_start(n, like=tall)
        found = golub_kahan_lanczos(tall.mv, tall.mT.mv, start, rtol=rtol, max_steps=steps)
        right = found.right if found.converged else _top_right_by_gram(tall)
    stretched = _apply(tall, right)
    sigma = torch.linalg.vector_norm(stretched, dim=-1)
    return _Top(sigma, _normalize(stretched), right)


def _top_right_by_gram(tall: Tensor) -> Tensor:
    """Top right singular vectors, shape (..., n), from the eigenvectors of ``WᵀW``."""
    vectors: Tensor = torch.linalg.eigh(tall.mT @ tall).eigenvectors
    return vectors[..., -1]


def _by_blas(matrix: Tensor, method: Method, rtol: float) -> _Top | None:
    """Find the norm on the route of one thread, or None where that is none.

    None, too, for entries that are not finite or whose squares are not safe. That is asked here and
    not of `split_scale`: for small matrices of the Gram matrix, which is needed anyhow.
    """
    if torch.compiler.is_compiling():  # which knows NumPy's memory only
        return None
    if not (type(matrix) in (Tensor, nn.Parameter) and matrix.is_cpu and matrix.ndim == 2):
        return None
    if matrix.dtype not in (torch.float32, torch.float64) or matrix.numel() == 0:
        return None
    tall = _blas.as_array(_tall(matrix))
    with _blas.one_thread():
        if method == "gram" or (method == "auto" and tall.shape[1] <= _GRAM_LIMIT):
            gram = _blas.gram(tall)
            right = _blas.top_eigenvector(gram) if _blas.is_moderate(gram) else None
        else:
            start = random_start(tall.shape[1], like=matrix)
            right = _by_krylov(tall, start, method, rtol) if _blas.is_in_range(tall) else None
        if right is None:
            return None
        sigma, left = _blas.stretched(tall, right)
    return _Top(torch.tensor(sigma, dtype=matrix.dtype), *map(torch.from_numpy, (left, right)))


def _by_krylov(tall: _blas.Array, start: Tensor, method: Method, rtol: float) -> _blas.Array:
    """Top right singular vector by Lanczos, or in the end by the Gram matrix."""
    m, n = tall.shape
    steps = min(_LANCZOS_LIMIT, n) if method == "auto" else n
    long = method == "auto" and m >= _LONG_SIDE * n
    product = _blas.gram_product(tall)
    right = _krylov_vector(product, start, rtol, _FIRST_CHECK if long else steps)
    if right is None and long:  # no wide gap: the products to come cost more than a Gram matrix
        symmetric = _blas.symmetric_product(_blas.gram(tall))
        right = _krylov_vector(symmetric, start, rtol, steps)
    return _blas.top_eigenvector(_blas.gram(tall)) if right is None else right


def _krylov_vector(
    product: Callable[[_blas.Array], _blas.Array], start: Tensor, rtol: float, steps: int
) -> _blas.Array | None:
    """Return the top eigenvector of a product, or None if so many steps are too few."""
    basis = _blas.KrylovBasis(product, _blas.as_array(start))
    n, fresh = start.numel(), functools.partial(_go_on, basis, start)
    top = top_of_krylov(basis.advance, n, start.dtype, rtol, steps, fresh=fresh)
    basis.steps = len(top.weights)
    return basis.combine(top.weights) if top.converged else None
