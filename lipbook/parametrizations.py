"""Chapter 6: the parametrizations that divide a weight by its norm whenever it is read.

A `Normalization` says by which norm; an autograd function does the division, and another one does
it for matrices on a CPU. `normalization.spectral_normalize` chooses among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import (
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
    is_in_torch_dispatch_mode,
)

from lipbook import _blas
from lipbook._checks import check_count
from lipbook._layers import CONVOLUTIONS, told_why
from lipbook.power_iteration import golub_kahan_lanczos, random_start

_HALF = (torch.float16, torch.bfloat16)
_DOUBLE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
_WRITTEN_TO = (
    "one of the variables needed for gradient computation has been modified by an inplace "
    "operation: a normalized weight, between the access to it and the backward pass"
)
_WARM_UP = 15  # iterations at the start, torch's number
_RECOVERY = 100  # steps of Lanczos at most, for vectors that belong to another weight
_ALIGNED = 0.5  # cosine below which they do


class Options(NamedTuple):
    """What `spectral_normalize` was asked for, whatever the norm."""

    coefficient: float
    at_most: bool
    eps: float

    @property
    def flat(self) -> float:
        """Up to which norm the weight is left as it is."""
        return max(self.eps, self.coefficient) if self.at_most else self.eps

    def factor(self, sigma: Tensor) -> Tensor:
        """Return what a weight of norm σ is multiplied by."""
        divisor = torch.threshold(sigma, self.flat, self.coefficient)
        if self.coefficient == 1:
            return divisor.reciprocal()
        return torch.full_like(divisor, self.coefficient) / divisor  # exactly 1 where they agree

    def slope(self, sigma: Tensor, factor: Tensor) -> Tensor:
        """Return minus the factor's derivative: 0 where the weight is left as it is."""
        return factor / torch.threshold(sigma, self.flat, torch.inf)

    def of_number(self, sigma: float) -> tuple[float, float]:
        """Return the factor and the slope for a norm that is a Python number."""
        if sigma <= self.flat:
            return 1.0, 0.0
        factor = self.coefficient / sigma if sigma else math.nan  # NaN stays NaN
        return factor, factor / sigma if sigma else math.nan


class Estimate(NamedTuple):
    """A norm, and what its derivative is made of: ``σ = Re⟨left right, W⟩``, both held."""

    sigma: Tensor  #: shape ()
    left: Tensor  #: to be `Normalization.shaped`
    right: Tensor  #: likewise


class Quotient(NamedTuple):
    """What a weight is divided by, and what the derivative of that is made of."""

    factor: Any  #: Tensor or float
    slope: Any  #: the factor's derivative by σ, but for its sign
    left: Any  #: of the `Estimate`; arrays where BLAS made it
    right: Any


class _Kept(NamedTuple):
    """A quotient in evaluation mode, and by what to know what it was made of."""

    fingerprint: Tensor
    mark: tuple[object, ...]
    buffers: list[Tensor | None]  # whose identities are in the mark, and so must not be others'
    quotient: Quotient
    weight: Tensor | None = None
    factor: Tensor | None = None  #: with a derivative by that weight, for any number of graphs
    leaf: int = 0  #: the tensor in that Python object, which ``swap_tensors`` exchanges


class Chain(parametrize.ParametrizationList):
    """torch's list of parametrizations, which looks for a second one in vain for some time."""

    def forward(self) -> Tensor:
        """Return the parametrized tensor."""
        first, *others = self._modules.values()
        if others:
            return super().forward()
        original = self._parameters.get("original")  # a module's attributes take a microsecond
        found: Tensor = first(self.original if original is None else original)
        return found

    def right_inverse(self, value: Tensor) -> None:
        """Assign to the parametrized tensor, unless it would have another shape or dtype."""
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            raise TypeError(f"a weight must be a floating-point tensor, got {_kind(value)}")
        old = self.original if len(self) == 1 else value  # others may change both
        if value.shape != old.shape or value.dtype != old.dtype:
            raise ValueError(f"a weight that is {_kind(old)} cannot become {_kind(value)}")
        super().right_inverse(value)


class Normalization(nn.Module):
    """A parametrization that divides by a norm; the subclasses say which."""

    _kept: _Kept | None = None
    _owner: Tensor | None = None  #: the fingerprint of the weight that the vectors belong to

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options

    def estimate(self, weight: Tensor, *, observed: bool = False) -> Estimate:
        """Return the norm and its derivative; in training mode, improve the vectors."""
        raise NotImplementedError

    def fingerprint(self, weight: Tensor) -> Tensor:
        """Return a small tensor that any other weight would change."""
        raise NotImplementedError

    def mark(self) -> tuple[object, ...]:
        """Return what else is the same only if the norm in evaluation mode is."""
        return ()

    def shaped(self, weight: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return views of the factors whose product broadcasts to the weight."""
        return left, right

    def forward(self, weight: Tensor) -> Tensor:
        """Return the normalized weight, in float32 at least on the way."""
        if not weight.is_meta and torch.is_autocast_enabled(weight.device.type):
            with torch.autocast(weight.device.type, enabled=False):
                return self.forward(weight)
        working = _working(weight)
        normalized: Tensor
        if is_observed(working):
            with torch.no_grad():
                _, left, right = self.estimate(working.detach(), observed=True)  # no tangents
            normalized = _divided(working, *self.shaped(working, left, right), self.options)
        elif self.training:
            normalized = _normalize(working, self)
        else:
            normalized = working * self.recall(working)
        return normalized if working is weight else normalized.to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return a weight that is assigned, as it is."""
        return weight

    def divide(self, weight: Tensor) -> tuple[Tensor, Quotient]:
        """Return the normalized weight, and how it came about."""
        quotient = self.quotient(weight)
        return weight * quotient.factor, quotient

    def quotient(self, weight: Tensor) -> Quotient:
        """Return what `estimate` leads to."""
        sigma, left, right = self.estimate(weight)
        factor = self.options.factor(sigma)
        return Quotient(factor, self.options.slope(sigma, factor), left, right)

    def recall(self, weight: Tensor) -> Tensor:
        """Return the factor that was found for this weight in evaluation mode, or find it.

        That it is the same weight is seen by its numbers: a version counter knows nothing of
        ``weight.data.mul_(2)``, of what another process writes, or of what FSDP gathers.
        """
        bare = weight.detach()
        kept, found = self._kept, self.fingerprint(bare)
        if kept is None or kept.mark != self.mark() or not _same(kept.fingerprint, found):
            if kept is not None and kept.mark[1:] != self.mark()[1:]:
                self.disown()
            # For accesses of any mode, and not to be counted.
            with torch.inference_mode(False), torch.no_grad(), _disable_current_modes():
                found, quotient = found.clone(), self.quotient(bare)
            self.__dict__.setdefault("_owner", found)
            kept = self._keep(_Kept(found, self.mark(), [*self._buffers.values()], quotient))
        if not (weight.requires_grad and torch.is_grad_enabled()):
            return cast(Tensor, kept.quotient.factor)
        if kept.weight is not weight or kept.leaf != weight._cdata:
            found, slope, left, right = kept.quotient
            quotient = Quotient(found, slope, *self.shaped(weight, left, right))
            factor = _factor(weight, quotient, self.options)
            kept = kept._replace(weight=weight, factor=factor, leaf=weight._cdata)
            if weight.is_leaf:  # not with the graph that made it; a caller's leaf, until the next
                self._keep(kept)
        return cast(Tensor, kept.factor)

    def _keep(self, kept: _Kept) -> _Kept:
        self.__dict__["_kept"] = kept  # past Module's own, which takes longer
        return kept

    def disown(self, *, foreign: bool = False) -> None:
        """Take the vectors for those of the weight that is read next, or of none."""
        self.__dict__.pop("_owner", None)
        if foreign:
            self.__dict__["_owner"] = _working(next(self.buffers())).new_full((), math.nan)

    def _is_foreign(self, weight: Tensor) -> bool:
        """Whether the vectors are known to belong to another weight."""
        if self._owner is None:
            return False
        found = self.fingerprint(weight)
        comparable = found.dtype is self._owner.dtype and found.device == self._owner.device
        return comparable and not torch.equal(found, self._owner)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **options: Any) -> Any:
        kept = self.__dict__.pop("_kept", None)  # a graph leads to the weight as it was before
        if self._owner is not None:
            if kept is not None and _same(kept.fingerprint, self._owner):
                self.disown()
            else:
                self.__dict__["_owner"] = fn(self._owner)
        return super()._apply(fn, *args, **options)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs, which finds the rest anew."""
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def gradient(self, grad: Tensor, weight: Tensor, quotient: Quotient) -> Tensor:
        """Return ``c (G - Re⟨G, W⟩/σ · left right)/σ``, to be differentiated again."""
        left, right = self.shaped(weight, *map(torch.as_tensor, quotient[2:]))
        sigma = _with_slope(_sum_of(weight * left.conj() * right.conj()), quotient.slope)
        factor = self.options.factor(sigma)
        overlap = _sum_of(grad * weight.conj()) * self.options.slope(sigma, factor)
        return grad * factor - overlap * left * right

    def first_order(self, grad: Tensor, weight: Tensor, quotient: Quotient) -> Tensor:
        """Return the same once and for all, with no matrix besides the result."""
        if grad._is_zerotensor():  # has no memory to write to
            return torch.zeros_like(weight)
        factor, slope, left, right = quotient
        left, right = self.shaped(weight, left, right)
        scaled: Tensor = grad * factor
        return scaled.addcmul_(left * (_dot(grad, weight) * slope), right, value=-1)

    def extra_repr(self) -> str:
        """Show the options that are not the default ones."""
        shown = {
            name: getattr(self, name)
            for name in ("n_power_iterations", "dim", "input_size")
            if hasattr(self, name)
        }
        if self.options.coefficient != 1:
            shown["coefficient"] = self.options.coefficient
        if self.options.at_most:
            shown["at_most"] = True
        return ", ".join(f"{name}={value}" for name, value in shown.items())


def _working(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALF else x


def is_observed(x: Tensor) -> bool:
    """Whether somebody transforms, traces or compiles the access, so that it has to be a formula.

    A formula has no control flow that depends on values, and remembers nothing by itself.
    """
    return (
        torch.compiler.is_compiling()  # first: what follows cannot be traced
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or (is_in_torch_dispatch_mode() and any(map(_traces, _get_current_dispatch_mode_stack())))
        or x.is_meta
        or (forward_ad._current_level >= 0 and _tangent(x) is not None)
    )


def _traces(mode: Any) -> bool:
    """Whether a mode is torch's own, of tracers and fake tensors, and no counter or logger."""
    return cast(bool, mode.is_infra_mode())


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype} of shape {(*value.shape,)}"


def _tangent(x: Tensor) -> Tensor | None:
    return forward_ad.unpack_dual(x).tangent  # type: ignore[no-any-return, no-untyped-call]


def _version(x: Tensor) -> int:
    """Return how often a tensor was written to, if that is counted."""
    return -1 if x.is_inference() else x._version


def _state(x: Tensor) -> object:
    """Return what changes when a tensor is written to: its version, or else its numbers."""
    return x.tolist() if x.is_inference() else x._version


def _same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are equal to the last bit; NaN is nobody's equal."""
    return x.dtype is y.dtype and x.device == y.device and torch.equal(x, y)


def _divided(weight: Tensor, left: Tensor, right: Tensor, options: Options) -> Tensor:
    """Return ``c W/σ`` with ``σ = Re⟨left right, W⟩``, to be differentiated at will.

    A quotient, since the derivative of ``1/σ`` is 0 where the square of σ overflows.
    """
    sigma = _sum_of(weight * left.conj() * right.conj())
    return weight / (
        torch.threshold(sigma, options.flat, options.coefficient) / options.coefficient
    )


def _with_slope(sigma: Tensor, slope: Any) -> Tensor:
    """Return a norm in float64 if its square, by which derivatives divide, asks for that."""
    if isinstance(slope, Tensor):
        slope = slope.item() if slope.is_cpu else 0.0  # a device is not waited for
    return sigma.double() if abs(slope) < 1e-35 and sigma.device.type != "mps" else sigma


def _conjugate_linear(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return f of x and the conjugate of y, for a bilinear f that takes real tensors."""
    if not x.is_complex():
        return f(x, y)
    real = f(x.real, y.real) + f(x.imag, y.imag)
    return torch.complex(real, f(x.imag, y.real) - f(x.real, y.imag))


def _sum_of(x: Tensor) -> Tensor:
    total = x.sum()
    return total.real if x.is_complex() else total


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Return ``Re⟨x, y⟩``, shape (), once and for all."""
    if x.is_complex() or (x.is_cpu and torch.get_num_threads() > 1):
        return _sum_of(x * y.conj())  # MKL's threads in a dot product wait for a busy core
    return torch.dot(x.reshape(-1), y.reshape(-1))


class _Normalize(torch.autograd.Function):
    """The same in fewer passes over the weight: forward and backward by hand."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, norm: Normalization) -> Tensor:
        normalized, ctx.quotient = norm.divide(weight)
        ctx.norm = norm
        # A leaf outlives the graph; to save it as a tensor takes a tenth of the whole.
        ctx.leaf, ctx.version = (weight, _version(weight)) if weight.is_leaf else (None, 0)
        if ctx.leaf is None:
            ctx.save_for_backward(weight)
        return normalized

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        weight = ctx.leaf
        if weight is None:
            (weight,) = ctx.saved_tensors
        elif _version(weight) != ctx.version:
            raise RuntimeError(_WRITTEN_TO)
        norm: Normalization = ctx.norm
        grad = _strided(grad)
        if torch.is_grad_enabled() or is_observed(grad):
            return norm.gradient(grad, weight, ctx.quotient), None
        return norm.first_order(grad, weight, ctx.quotient), None


class _Factor(torch.autograd.Function):
    """The factor of a weight: nothing that the first backward pass frees, so that it lasts."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, quotient: Quotient, options: Options) -> Tensor:
        ctx.weight, ctx.quotient, ctx.options = weight, quotient, options
        return cast(Tensor, quotient.factor.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        _, slope, left, right = ctx.quotient
        if torch.is_grad_enabled() or is_observed(grad):
            sigma = _with_slope(_sum_of(ctx.weight * left.conj() * right.conj()), slope)
            slope = ctx.options.slope(sigma, ctx.options.factor(sigma))
        return -grad * slope * left * right, None, None


# What comes before it in Python is for torch.func, which does not come here: a tenth of the time.
_normalize: Any = super(torch.autograd.Function, _Normalize).apply
_factor: Any = super(torch.autograd.Function, _Factor).apply


def _strided(grad: Tensor) -> Tensor:
    """Return a gradient as dense as the weight: an Embedding's may be sparse."""
    return grad if grad.layout == torch.strided else grad.to_dense()


class _PowerIterated(Normalization):
    """Norms from the vectors of the last access, improved by a few steps of (15)."""

    _u: Tensor
    _v: Tensor
    _probe: Any = None
    _begun = False  #: whether the first weight was there, for which torch makes fifteen steps

    def __init__(self, u: Tensor, v: Tensor, n_power_iterations: int, options: Options) -> None:
        super().__init__(options)
        self.n_power_iterations = n_power_iterations
        self.shift = min(options.eps, 1e-12)  # more would only slow the steps down
        with torch.inference_mode(False):
            self.register_buffer("_u", u.normal_() / torch.linalg.vector_norm(u))
            self.register_buffer("_v", v.normal_() / torch.linalg.vector_norm(v))

    def matrix(self, weight: Tensor) -> Tensor:
        """Return what the products are to be taken with."""
        return weight

    def product(self, matrix: Tensor, v: Tensor, u: Tensor) -> Tensor:
        """Return ``W v + shift u``, a new tensor, which is not 0 where the product vanishes."""
        raise NotImplementedError

    def adjoint(self, matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Return ``Wᴴ u + shift v``, a new tensor."""
        raise NotImplementedError

    def derivative(self, weight: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return two factors of the gradient of ``Re⟨u, W v⟩``."""
        return u, v.conj()

    def fingerprint(self, weight: Tensor) -> Tensor:
        """Return a product with a random vector."""
        rows = weight.flatten(1)
        try:
            return rows.mv(self._probe)
        except (RuntimeError, TypeError):  # of another length, dtype or device, or none yet
            with torch.inference_mode(False):
                probe = random_start(rows.shape[1], like=weight)
            self.__dict__["_probe"] = probe
            return rows.mv(probe)

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Return u and v; as attributes of a module they take a microsecond each."""
        buffers: Any = self._buffers
        return buffers["_u"], buffers["_v"]

    def mark(self) -> tuple[object, ...]:
        """Return the number of steps and the state of the vectors."""
        u, v = self.vectors()
        return self.n_power_iterations, id(u), _state(u), id(v), _state(v)

    def estimate(self, weight: Tensor, *, observed: bool = False) -> Estimate:
        """Return the estimate after the steps; its vectors are those of the last one."""
        old_u, old_v = start = self.vectors()
        if old_u.dtype != weight.dtype:
            start = old_u.to(weight.dtype), old_v.to(weight.dtype)
        sigma, u, v = self._iterate(weight, *start, self.n_power_iterations)
        if not observed and self._is_lost(weight, start, sigma, u, v):
            sigma, u, v = self._found(weight)
        if self.training:
            # In place, for the replicas of DataParallel; autograd saves u and v themselves.
            _store(old_u, u)
            _store(old_v, v)
            self.disown()
        left, right = self.derivative(weight, u, v)
        return Estimate(sigma if observed else self._exact(sigma, weight, left, right), left, right)

    def _exact(self, sigma: Tensor, weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Take the shift out of a norm that it is part of."""
        if not sigma.is_cpu:  # a device is not waited for
            return sigma - self.shift  # which is exact where v has settled
        if sigma.item() < _blas.SHIFT_IS_LOST * self.shift:
            left, right = self.shaped(weight, left, right)
            return _sum_of(weight * left.conj() * right.conj())
        return sigma

    def _is_lost(
        self, weight: Tensor, start: tuple[Tensor, Tensor], sigma: Tensor, u: Tensor, v: Tensor
    ) -> bool:
        """Whether the steps from these vectors have not led to the norm."""
        if self.training:  # the vectors were 0, or not finite; a device is not waited for
            return sigma.is_cpu and math.isnan(sigma.item())
        if self._is_foreign(weight) or _strayed(start, (u, v)):
            return True
        return self._outdone(weight, sigma, u, v)

    def _found(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find the norm and its vectors from a random one, by Lanczos, which knows when to stop."""
        u, v = (_random_like(vector.to(weight.dtype)) for vector in self.vectors())
        largest = weight.abs().amax()
        if not 0 < largest.item() < math.inf:
            return self._iterate(weight, u, v, _WARM_UP)
        matrix, zeros = self.matrix(weight / largest), (torch.zeros_like(u), torch.zeros_like(v))
        there = lambda x: self.product(matrix, _as_vector(x, v), zeros[0])  # noqa: E731
        back = lambda y: _as_numbers(self.adjoint(matrix, y, zeros[1]))  # noqa: E731
        found = golub_kahan_lanczos(there, back, _as_numbers(v), max_steps=_RECOVERY)
        return self._iterate(weight, u, _as_vector(found.right, v), 1)

    def _outdone(self, weight: Tensor, sigma: Tensor, u: Tensor, v: Tensor) -> bool:
        """Whether a random vector is stretched by more than σ, so that v is far from the top."""
        x, length = _random_like(v), _length_of(weight)
        stretched = length(self.product(self.matrix(weight), x, torch.zeros_like(u)))
        return bool(stretched > 1.01 * sigma * length(x))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Find the vectors of a weight that is assigned, and leave it as it is."""
        working = _working(weight)
        with torch.inference_mode(False), torch.no_grad():  # which the former would enable
            u, v = self._u.to(working.dtype), self._v.to(working.dtype)
            sigma, u, v = self._iterate(working, u, v, _WARM_UP)
            # Another weight, zero, or vectors that are no use, or were NaN; if one may know.
            if not is_observed(working) and (self._begun or not sigma > 2 * self.shift):
                _, u, v = self._found(working)
            _store(self._u, u)
            _store(self._v, v)
        self.disown()
        self._begun = True
        return weight

    def _iterate(
        self, weight: Tensor, u: Tensor, v: Tensor, steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        matrix = self.matrix(weight)
        length = _length_of(weight)
        for _ in range(steps):
            u = self.product(matrix, v, u)
            u.div_(length(u))
            v = self.adjoint(matrix, u, v)
            sigma = length(v)  # ⟨u, Wv⟩ for the new v, and the shift: no third product
            v.div_(sigma)
        return sigma, u, v


class MatrixNormalization(_PowerIterated):
    """The norm of a weight reshaped to a matrix with the outputs as its rows."""

    def __init__(self, weight: Tensor, dim: int, n_power_iterations: int, options: Options) -> None:
        rows = weight.shape[dim]
        with torch.inference_mode(False):
            u, v = weight.new_empty(rows), weight.new_empty(weight.numel() // rows)
        super().__init__(u, v, n_power_iterations, options)
        self.dim = dim % weight.ndim

    def divide(self, weight: Tensor) -> tuple[Tensor, Quotient]:
        """Return the normalized weight and the rest; in training mode without torch if possible.

        An operation of torch takes some microseconds besides its work, which is as long as a
        product with a matrix of a hundred rows.
        """
        (u, v), dtype = self.vectors(), weight.dtype
        if not (
            self.dim == 0
            and _blas.in_one_thread(weight)
            and _blas.can_read(weight, dtype)
            and _blas.can_read(u, dtype)
            and _blas.can_read(v, dtype)
        ):
            return super().divide(weight)
        array, old_u, old_v = map(_blas.memory, (weight, u, v))
        steps = self.n_power_iterations
        sigma, new_u, new_v = _blas.power_steps(array, old_u, old_v, steps, self.shift)
        if math.isnan(sigma):
            return super().divide(weight)
        if self._owner is not None:
            self.disown()
        old_u[:], old_v[:] = new_u, new_v
        increment_version((u, v))
        factor, slope = self.options.of_number(sigma)
        normalized = torch.from_numpy((array * factor).reshape(weight.shape))
        return normalized, Quotient(factor, slope, new_u, new_v)

    def first_order(self, grad: Tensor, weight: Tensor, quotient: Quotient) -> Tensor:
        """Return the gradient, in one operation where BLAS made the quotient."""
        factor, slope, u, v = quotient
        if not isinstance(slope, float):
            return super().first_order(grad, weight, quotient)
        batched = not torch._C._has_storage(grad)  # many gradients at once
        short = None if batched else _blas.short_matrix(grad, weight.dtype, len(u), len(v))
        if short is not None and _blas.can_read(weight, weight.dtype):  # as it lies by now
            found = _blas.quotient_gradient(short, _blas.memory(weight), factor, slope, u, v)
            return torch.from_numpy(found.reshape(weight.shape))
        left, right = torch.from_numpy(u), torch.from_numpy(v)
        if batched:
            return super().first_order(grad, weight, Quotient(factor, slope, left, right))
        rows = grad if grad.ndim == 2 else grad.reshape(len(u), len(v))
        scale = -slope * _blas.dot(grad, weight)
        gradient = torch.addr(rows, left, right, beta=factor, alpha=scale)
        return gradient if grad.ndim == 2 else gradient.view_as(grad)

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the weight with one row an output."""
        if self.dim != 0:
            weight = weight.movedim(self.dim, 0)
        return weight.flatten(1)

    def product(self, matrix: Tensor, v: Tensor, u: Tensor) -> Tensor:
        """Return ``W v + shift u``."""
        return torch.addmv(u, matrix, v, beta=self.shift)

    def adjoint(self, matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Return ``Wᴴ u + shift v``."""
        return torch.addmv(v, matrix.mH, u, beta=self.shift)

    def shaped(self, weight: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return a column and a row, in the shape of the weight."""
        row = [*weight.shape]
        row[self.dim] = 1
        return left.view(-1, *[1] * (len(row) - 1 - self.dim)), right.view(row)


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
        ways = {kind._conv_forward for kind in CONVOLUTIONS}  # others have other adjoints
        if not isinstance(module, CONVOLUTIONS) or type(module)._conv_forward not in ways:
            raise TypeError(
                "norm='operator' needs a dense layer or a convolution, "
                f"got {type(module).__name__}; norm='matrix' takes any weight"
            )
        if input_size is None:
            raise ValueError("input_size must be given for norm='operator': the norm depends on it")
        axes = weight.ndim - 2
        size = tuple(input_size) if isinstance(input_size, Iterable) else (input_size,) * axes
        if len(size) != axes:
            raise ValueError(f"input_size must be one integer or {axes}, got {input_size}")
        for side in size:
            check_count(side, "input_size")
        convolve = partial(module._conv_forward, bias=None)
        refused = f"input_size {input_size} does not suit {module}"
        with told_why(refused), torch.inference_mode(False):
            v = weight.new_empty(1, module.in_channels, *size)
            u = torch.empty_like(convolve(torch.zeros_like(v), weight.detach()))
        super().__init__(u, v, n_power_iterations, options)
        self.convolve = convolve
        self.input_size = size
        pads = [*module._reversed_padding_repeated_twice]  # two an axis, from the last one on
        self.padding_mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        inside = self.padding_mode == "constant" and pads[::2] == pads[1::2]
        padding, self.pads = (pads[::-2], []) if inside else ([0] * axes, pads)
        self.way = module.stride, padding, module.dilation, False, [0] * axes, module.groups

    def product(self, matrix: Tensor, v: Tensor, u: Tensor) -> Tensor:
        """Convolve v, and add ``shift u``."""
        return torch.add(self.convolve(v, matrix), u, alpha=self.shift)

    def adjoint(self, matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Apply the adjoint convolution to u, and add ``shift v``."""
        image = self._padded(v).real  # of which the shape counts
        back = _conjugate_linear(lambda u, kernel: self._transposed(u, image, kernel, 0), u, matrix)
        return torch.add(self._folded(back), v, alpha=self.shift)

    def derivative(self, weight: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 and the gradient, which is no product of two vectors."""
        kernel, image = weight.real, self._padded(v)
        gradient = _conjugate_linear(lambda u, v: self._transposed(u, v, kernel, 1), u, image)
        return u.new_ones(()), gradient

    def _transposed(self, u: Tensor, image: Tensor, kernel: Tensor, which: int) -> Tensor:
        """Return the gradient of ``⟨u, convolution⟩`` by the image or the kernel."""
        wanted = [which == 0, which == 1, False]  # autograd.grad itself is not for graphs
        backward = torch.ops.aten.convolution_backward
        return cast(Tensor, backward(u, image, kernel, None, *self.way, wanted)[which])

    def _padded(self, image: Tensor) -> Tensor:
        return F.pad(image, self.pads, self.padding_mode) if self.pads else image

    def _folded(self, padded: Tensor) -> Tensor:
        """Apply the adjoint of the padding: each entry goes back to the pixel that it came from."""
        if not self.pads:
            return padded
        if self.padding_mode == "constant":
            return F.pad(padded, [-length for length in self.pads])
        n_pixels, shape = math.prod(self.input_size), padded.shape[:2]
        pixels = torch.arange(n_pixels, dtype=padded.real.dtype, device=padded.device)
        source = self._padded(pixels.view(1, 1, *self.input_size)).long().expand_as(padded)
        sums = padded.new_zeros(*shape, n_pixels)
        sums = sums.scatter_add(2, source.flatten(2), padded.flatten(2))
        return sums.view(*shape, *self.input_size)


class VectorNormalization(Normalization):
    """The norm of a 1-D weight that is the one row of a matrix, as torch has it."""

    def fingerprint(self, weight: Tensor) -> Tensor:
        """Return the weight."""
        return weight

    def estimate(self, weight: Tensor, *, observed: bool = False) -> Estimate:  # noqa: ARG002
        """Return the length, and 1 and the direction."""
        sigma = _length_of(weight)(weight).clamp(min=self.options.eps)
        return Estimate(sigma, sigma.new_ones(()), weight / sigma)


class BatchNormNormalization(Normalization):
    """The norm of a BatchNorm in evaluation mode, which is a diagonal."""

    def __init__(self, module: nn.Module, weight: Tensor, options: Options) -> None:
        super().__init__(options)
        inverse_std(module, weight)
        self.owner = (module,)  # in a tuple: a module would become a child of its own child

    def fingerprint(self, weight: Tensor) -> Tensor:
        """Return γ and what it is multiplied by."""
        return torch.cat([weight, inverse_std(self.owner[0], weight)])

    def estimate(self, weight: Tensor, *, observed: bool = False) -> Estimate:  # noqa: ARG002
        """Return the largest ``|γ/std|``, and 1 and its gradient."""
        scale = inverse_std(self.owner[0], weight)
        sigma, top = (weight * scale).abs().max(0)
        at_top = F.one_hot(top, len(weight)) * scale * weight.sign()
        return Estimate(sigma.clamp(min=self.options.eps), sigma.new_ones(()), at_top)


def inverse_std(layer: nn.Module, like: Tensor) -> Tensor:
    """Return what a BatchNorm multiplies its channels by in evaluation mode, besides γ."""
    variance, eps = layer.running_var, layer.eps
    if not isinstance(variance, Tensor):
        raise ValueError(f"module must track running statistics, {layer} knows its batch only")
    return torch.rsqrt(variance.to(like.device, like.dtype) + cast(float, eps))


def _length_of(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function ``x -> ‖x‖₂`` for vectors that the products with a weight give.

    Squares of float32 overflow from 1.8e19 on. Then they are taken in float64, and those of float64
    of what is scaled; at once where looking at the result is not allowed, or would wait for the
    device. So are squares that lose digits to underflow.
    """
    plain: Callable[..., Tensor] = torch.linalg.vector_norm
    double = _DOUBLE.get(weight.dtype) if weight.device.type != "mps" else None
    safe = _scaled_length if double is None else partial(plain, dtype=double)
    if not weight.is_cpu or is_observed(weight):
        return safe
    least = _least_length(weight)

    def length(x: Tensor) -> Tensor:
        found = plain(x)
        return found if least < found.item() < math.inf else safe(x)

    return length


def _least_length(x: Tensor) -> float:
    """Length from which on squares that underflow do not count."""
    return float(2.0**10 * torch.finfo(x.dtype).tiny ** 0.5)


def _scaled_length(x: Tensor) -> Tensor:
    """Return the length of a vector, scaled if the square is out of range."""
    plain, top = torch.linalg.vector_norm(x), x.abs().amax()
    unit = torch.where(top > 0, top, 1.0)
    scaled = unit * torch.linalg.vector_norm(x / unit)
    return torch.where((plain > _least_length(x)) & (plain < math.inf), plain, scaled)


def _store(buffer: Tensor, value: Tensor) -> None:
    """Overwrite a buffer in place.

    ``torch.func.grad`` lets no tensor from outside be an operation's first argument then, though
    it may be ``out``, and ``vmap`` has it the other way round.
    """
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        try:
            torch.add(value, 0, out=buffer)
        except RuntimeError:
            buffer.copy_(value)
    else:
        buffer.copy_(value)


def _strayed(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> bool:
    """Whether one of the old vectors, of any length, is more than 60° off the new unit vector."""
    cosines = (
        _sum_of(there.conj() * here) / torch.linalg.vector_norm(there)
        for there, here in zip(old, new, strict=True)
    )
    return not all(bool(cosine >= _ALIGNED) for cosine in cosines)  # NaN has strayed too


def _random_like(x: Tensor) -> Tensor:
    return random_start(x.numel(), like=x).view_as(x)


def _as_numbers(x: Tensor) -> Tensor:
    """Return a vector of any shape as one of real numbers."""
    return (torch.view_as_real(x) if x.is_complex() else x).flatten()


def _as_vector(numbers: Tensor, like: Tensor) -> Tensor:
    """Turn `_as_numbers` back."""
    if like.is_complex():
        return torch.view_as_complex(numbers.view(-1, 2)).view_as(like)
    return numbers.view_as(like)
