"""Chapter 6: what `torch.nn.utils.parametrize` hangs on a weight that is to be normalized.

A `Normalization` says by which norm; an autograd function does the division, and another one does
it for matrices when torch has one thread. `normalization.spectral_normalize` chooses among them.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import blas
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from lipbook._blas import in_one_thread
from lipbook._checks import check_count
from lipbook.power_iteration import random_start

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_HALF = (torch.float16, torch.bfloat16)

_BLAS: dict[str, tuple[Any, Any]] = {
    "f": (blas.sgemv, blas.snrm2),
    "d": (blas.dgemv, blas.dnrm2),
}
_WARM_UP = 15  # iterations at the start, torch's number
_RECOVERY = 100  # iterations for vectors that belong to another weight
_ALIGNED = 0.5  # cosine below which they do


class Options(NamedTuple):
    """What `spectral_normalize` was asked for, whatever the norm."""

    coefficient: float
    at_most: bool
    eps: float

    @property
    def flat(self) -> float:
        """Up to which norm the weight is left as it is."""
        return max(2 * self.eps, self.coefficient) if self.at_most else 2 * self.eps

    def factor(self, sigma: Tensor) -> Tensor:
        """Return what a weight of norm σ is multiplied by."""
        divisor = torch.threshold(sigma, self.flat, self.coefficient)
        if self.coefficient == 1:
            return divisor.reciprocal()
        return torch.full_like(divisor, self.coefficient) / divisor  # exactly 1 where they agree

    def factor_of(self, sigma: float) -> float:
        """Return the same for a norm that is a Python number."""
        return 1.0 if sigma <= self.flat else self.coefficient / sigma  # NaN stays NaN


class Normalization(nn.Module):
    """A parametrization that divides by a norm; the subclasses say which."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options

    def estimate(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the norm σ, shape (), and two factors of its derivative, to be `shaped`."""
        raise NotImplementedError

    def shaped(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return views of the factors whose product broadcasts to the weight."""
        return left, right

    def forward(self, weight: Tensor) -> Tensor:
        """Return the normalized weight, in float32 at least on the way."""
        device = weight.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.forward(weight)
        working = weight.float() if weight.dtype in _HALF else weight
        normalized: Tensor
        if self.training:
            normalized = _Normalize.apply(working, self)  # type: ignore[no-untyped-call]
        else:  # where torch.func may look at it, which knows no such function
            with torch.no_grad():
                sigma, left, right = self.estimate(working)
            if torch.is_grad_enabled():
                normalized = _divided(working, *self.shaped(left, right), self.options)
            else:
                normalized = working * self.options.factor(sigma)
        return normalized if working is weight else normalized.to(weight.dtype)


def _divided(weight: Tensor, left: Tensor, right: Tensor, options: Options) -> Tensor:
    """Return ``c W/σ`` with ``σ = ⟨left right, W⟩``, to be differentiated as often as one likes."""
    return weight * options.factor((weight * left * right).sum())


def _differentiable(
    grad: Tensor, weight: Tensor, factors: tuple[Tensor, Tensor], options: Options
) -> Tensor:
    """Return the gradient of the weight, to be differentiated again."""
    normalized = _divided(weight, *factors, options)
    return torch.autograd.grad(normalized, weight, grad, create_graph=True)[0]


class _Normalize(torch.autograd.Function):
    """The same in fewer passes over the weight: forward and backward by hand."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, norm: Normalization) -> Tensor:
        sigma, left, right = norm.estimate(weight)
        factor = norm.options.factor(sigma)
        ctx.norm = norm
        ctx.save_for_backward(weight, sigma, left, right, factor)
        return weight * factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        weight, sigma, left, right, factor = ctx.saved_tensors
        left, right = ctx.norm.shaped(left, right)  # not in forward, which may have no backward
        options = ctx.norm.options
        if torch.is_grad_enabled():  # to differentiate twice
            return _differentiable(grad, weight, (left, right), options), None
        # G - ⟨G, W⟩/σ · u vᵀ in one pass, with no matrix besides the result.
        overlap = torch.dot(grad.reshape(-1), weight.reshape(-1))
        overlap.div_(torch.threshold(sigma, options.flat, torch.inf))
        return torch.addcmul(grad, left * overlap, right, value=-1).mul_(factor), None


class _NormalizeMatrix(torch.autograd.Function):
    """The same for a matrix, where torch has one thread: in BLAS, and with one pass less.

    An operation of torch takes some microseconds besides its work, which is as long as a product
    with a matrix of a hundred rows. And numbers that are Python's let one operation do more.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, norm: MatrixNormalization) -> Tensor:
        array = weight.detach().numpy()
        sigma, u, v = norm.estimate_by_blas(array)
        factor = norm.options.factor_of(sigma)
        ctx.norm = norm
        # All of it as saved tensors: a checkpoint replaces those by what it computes anew.
        saved = u, v, np.array([sigma, factor])
        ctx.save_for_backward(weight, *map(torch.from_numpy, saved))
        return torch.from_numpy(array * factor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        weight, u, v, numbers = ctx.saved_tensors
        options, (sigma, factor) = ctx.norm.options, numbers.tolist()
        if torch.is_grad_enabled():
            return _differentiable(grad, weight, ctx.norm.shaped(u, v), options), None
        if sigma <= options.flat:
            return grad * factor, None
        overlap = torch.dot(grad.reshape(-1), weight.reshape(-1))
        rows = grad.reshape(len(u), len(v))
        gradient = torch.addr(rows, u * overlap, v, beta=factor, alpha=-factor / sigma)
        return gradient.view_as(grad), None


class _PowerIterated(Normalization):
    """Norms from the vectors of the last access, improved by a few steps of (15)."""

    _u: Tensor
    _v: Tensor

    def __init__(self, u: Tensor, v: Tensor, n_power_iterations: int, options: Options) -> None:
        super().__init__(options)
        self.n_power_iterations = n_power_iterations
        self.register_buffer("_u", u.normal_() / torch.linalg.vector_norm(u))
        self.register_buffer("_v", v.normal_() / torch.linalg.vector_norm(v))

    def matrix(self, weight: Tensor) -> Tensor:
        """Return what the products are to be taken with."""
        return weight

    def product(self, matrix: Tensor, v: Tensor, u: Tensor) -> Tensor:
        """Return ``W v + eps u``, a new tensor: ``eps u`` where the product vanishes, never 0."""
        raise NotImplementedError

    def adjoint(self, matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Return ``Wᵀ u + eps v``, a new tensor."""
        raise NotImplementedError

    def derivative(self, weight: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return two factors of the gradient of ``⟨u, W v⟩``."""
        return u, v

    def estimate(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        old_u, old_v = start = self._u, self._v
        if old_u.dtype != weight.dtype:
            start = old_u.to(weight.dtype), old_v.to(weight.dtype)
        sigma, u, v = self._iterate(weight, *start, self.n_power_iterations)
        if self.training:
            # In place, for the replicas of DataParallel; autograd saves u and v themselves.
            old_u.copy_(u)
            old_v.copy_(v)
        elif not torch.compiler.is_compiling() and _strayed(start, (u, v)):
            sigma, u, v = self._iterate(weight, _random_like(u), _random_like(v), _RECOVERY)
        return sigma, *self.derivative(weight, u, v)

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """Find the vectors of a weight that is assigned, and leave it as it is."""
        working = weight.float() if weight.dtype in _HALF else weight
        u, v = self._u.to(working.dtype), self._v.to(working.dtype)
        sigma, u, v = self._iterate(working, u, v, _WARM_UP)
        if not sigma > 2 * self.options.eps:  # zero, or vectors that are no use, or were NaN
            _, u, v = self._iterate(working, _random_like(u), _random_like(v), _WARM_UP)
        self._u.copy_(u)
        self._v.copy_(v)
        return weight

    def _iterate(
        self, weight: Tensor, u: Tensor, v: Tensor, steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        matrix = self.matrix(weight)
        for _ in range(steps):
            u = self.product(matrix, v, u)
            u.div_(torch.linalg.vector_norm(u))
            v = self.adjoint(matrix, u, v)
            sigma = torch.linalg.vector_norm(v)  # ⟨u, Wv⟩ for the new v: no third product
            v.div_(sigma)
        return sigma, u, v


class MatrixNormalization(_PowerIterated):
    """The norm of a weight reshaped to a matrix with the outputs as its rows."""

    def __init__(self, weight: Tensor, dim: int, n_power_iterations: int, options: Options) -> None:
        rows = weight.shape[dim]
        u, v = weight.new_empty(rows), weight.new_empty(weight.numel() // rows)
        super().__init__(u, v, n_power_iterations, options)
        self.dim = dim % weight.ndim
        self.left_shape = [rows if axis == self.dim else 1 for axis in range(weight.ndim)]
        self.right_shape = list(weight.shape)
        self.right_shape[self.dim] = 1

    def forward(self, weight: Tensor) -> Tensor:
        """Return the normalized weight."""
        if self.training and self.suits_blas(weight):
            normalized: Tensor = _NormalizeMatrix.apply(weight, self)  # type: ignore[no-untyped-call]
            return normalized
        return super().forward(weight)

    def suits_blas(self, weight: Tensor) -> bool:
        """Whether the weight lies as BLAS reads it, and nobody wants to see operations of torch."""
        return (
            not torch.compiler.is_compiling()  # first: the next one cannot be traced
            and in_one_thread(weight)
            and not is_in_torch_dispatch_mode()  # tracers, counters, fake tensors
            and type(weight) in (Tensor, nn.Parameter)  # no subclass: it may have no memory
            and weight.dtype in (torch.float32, torch.float64)
            and weight.dtype == self._buffers["_u"].dtype  # type: ignore[union-attr]
            and self.dim == 0
            and weight.is_contiguous()
        )

    def estimate_by_blas(self, weight: NDArray[Any]) -> tuple[float, NDArray[Any], NDArray[Any]]:
        """Do what `estimate` does in training mode."""
        buffers = self._buffers  # a module's attributes take a microsecond each
        u, v = old_u, old_v = buffers["_u"].numpy(), buffers["_v"].numpy()  # type: ignore[union-attr]
        gemv, nrm2 = _BLAS[u.dtype.char]
        matrix = weight.reshape(len(u), len(v)).T  # BLAS reads by columns
        eps = self.options.eps
        for _ in range(self.n_power_iterations):
            u = gemv(1.0, matrix, v, eps, u, trans=1)
            _scale(u, nrm2(u))
            v = gemv(1.0, matrix, u, eps, v)
            sigma = nrm2(v)
            _scale(v, sigma)
        old_u[:] = u
        old_v[:] = v
        return sigma, u, v

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the weight with one row an output."""
        if self.dim != 0:
            weight = weight.movedim(self.dim, 0)
        return weight.flatten(1)

    def product(self, matrix: Tensor, v: Tensor, u: Tensor) -> Tensor:
        """Return ``W v + eps u``."""
        return torch.addmv(u, matrix, v, beta=self.options.eps)

    def adjoint(self, matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Return ``Wᵀ u + eps v``."""
        return torch.addmv(v, matrix.t(), u, beta=self.options.eps)

    def shaped(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return a column and a row, in the shape of the weight."""
        return left.view(self.left_shape), right.view(self.right_shape)


class ConvNormalization(_PowerIterated):
    """The norm of a convolution as a map from images to images, all of torch's options included."""

    def __init__(
        self,
        module: nn.Module,
        weight: Tensor,
        input_size: int | tuple[int, ...] | None,
        n_power_iterations: int,
        options: Options,
    ) -> None:
        if not isinstance(module, CONVOLUTIONS):
            raise TypeError(
                "norm='operator' needs a dense layer or a convolution, "
                f"got {type(module).__name__}; norm='matrix' takes any weight"
            )
        if input_size is None:
            raise ValueError("input_size must be given for norm='operator': the norm depends on it")
        axes = weight.ndim - 2
        size = (input_size,) * axes if isinstance(input_size, int) else tuple(input_size)
        if len(size) != axes:
            raise ValueError(f"input_size must be one integer or {axes}, got {input_size}")
        for side in size:
            check_count(side, "input_size")
        v = weight.new_empty(1, module.in_channels, *size)
        convolve = partial(module._conv_forward, bias=None)
        try:
            u = torch.empty_like(convolve(torch.zeros_like(v), weight.detach()))
        except RuntimeError as error:
            raise ValueError(f"input_size {input_size} does not suit {module}: {error}") from error
        super().__init__(u, v, n_power_iterations, options)
        self.convolve = convolve

    def product(self, matrix: Tensor, v: Tensor, u: Tensor) -> Tensor:
        """Convolve v, and add ``eps u``."""
        return torch.add(self.convolve(v, matrix), u, alpha=self.options.eps)

    @torch.enable_grad()
    def adjoint(self, matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Apply the transposed convolution to u, and add ``eps v``."""
        image = torch.zeros_like(v).requires_grad_()
        (back,) = torch.autograd.grad(self.convolve(image, matrix.detach()), image, u)
        return torch.add(back, v, alpha=self.options.eps)

    @torch.enable_grad()
    def derivative(self, weight: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 and the gradient, which is no product of two vectors."""
        kernel = weight.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.convolve(v, kernel), kernel, u)
        return u.new_ones(()), gradient


class VectorNormalization(Normalization):
    """The norm of a 1-D weight that is the one row of a matrix, as torch has it."""

    def estimate(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the length, and 1 and the direction."""
        sigma = torch.linalg.vector_norm(weight).clamp(min=self.options.eps)
        return sigma, sigma.new_ones(()), weight / sigma


class BatchNormNormalization(Normalization):
    """The norm of a BatchNorm in evaluation mode, which is a diagonal."""

    def __init__(self, module: nn.Module, weight: Tensor, options: Options) -> None:
        super().__init__(options)
        inverse_std(module, weight)
        self.owner = (module,)  # in a tuple, lest it become a child of its own child

    def estimate(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the largest ``|γ/std|``, and 1 and its gradient."""
        scale = inverse_std(self.owner[0], weight)
        sigma, top = (weight * scale).abs().max(0)
        at_top = F.one_hot(top, len(weight)) * scale * weight.sign()
        return sigma.clamp(min=self.options.eps), sigma.new_ones(()), at_top


def inverse_std(layer: nn.Module, like: Tensor) -> Tensor:
    """Return what a BatchNorm multiplies its channels by in evaluation mode, besides γ."""
    variance, eps = layer.running_var, layer.eps
    if not isinstance(variance, Tensor):
        raise ValueError(f"module must track running statistics, {layer} knows its batch only")
    return torch.rsqrt(variance.to(like.dtype) + cast(float, eps))


def _scale(x: NDArray[Any], norm: float) -> None:
    """Divide by the norm; NaN without a direction, as in torch, and without NumPy's warning."""
    if 0 < norm < math.inf:
        x /= norm
    else:
        x.fill(math.nan)


def _strayed(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> bool:
    """Whether one of the old vectors, of any length, is more than 60° off the new unit vector."""
    cosines = (
        (there * here).sum() / torch.linalg.vector_norm(there)
        for there, here in zip(old, new, strict=True)
    )
    return not all(bool(cosine >= _ALIGNED) for cosine in cosines)  # NaN has strayed too


def _random_like(x: Tensor) -> Tensor:
    return random_start(x.numel(), like=x).view_as(x)
