"""Chapter 6: weights divided by their norm, inside the forward pass or after the step.

`spectral_normalize` makes a layer use ``W/‖W‖₂`` and trains through the division (Miyato et al.
2018); `project_spectral_` overwrites W after the optimizer's step, as the article's first Keras
listing does. `certificate.lipschitz_certificate` bounds what either makes of a whole network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from lipbook.certificate import try_out
from lipbook.convolution import Padding, conv_spectral_norm
from lipbook.power_iteration import article_keras_spectral_norm, random_start, spectral_norm
from lipbook.validation import check_count, check_positive, check_tensor
from lipbook.wgan import Constraint

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_HALF = (torch.float16, torch.bfloat16)

_WARM_UP = 15  # iterations at the start, torch's number
_RECOVERY = 100  # iterations for vectors that belong to another weight
_ALIGNED = 0.5  # cosine below which they do


def spectral_normalize(
    module: nn.Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    norm: Literal["matrix", "operator"] = "matrix",
    input_size: int | tuple[int, ...] | None = None,
    coefficient: float = 1.0,
    at_most: bool = False,
) -> nn.Module:
    r"""Replace a weight W by ``c W / ‖W‖₂`` whenever the layer uses it, and train through that.

    A drop-in for `torch.nn.utils.parametrizations.spectral_norm`: same arguments, buffers,
    ``state_dict``, random draws and warm start, hence the same training up to rounding. Every
    access does `n_power_iterations` steps of (15) from the vectors that the last access in
    training mode has left, and divides by the estimate, a lower bound of the norm. With
    :math:`\bar W = cW/σ` and a loss gradient G with respect to :math:`\bar W`, the gradient with
    respect to W is :math:`c\,(G - ⟨G, W⟩ u v^\top/σ)/σ`: u and v count as constants, and what
    would only lengthen W is taken out of G. Differs from torch's where that one goes wrong:

    - A weight with an estimate of at most `eps`, zero say, is left as it is, where torch gives
      NaN; its gradient passes unchanged, and the vectors are kept.
    - In evaluation mode torch divides by ``⟨u, Wv⟩`` with the vectors of the last step, which may
      be anything; here the steps are done, on copies.
    - Assigning to the weight renews its vectors. If they are another weight's in evaluation mode,
      because it was overwritten, that access finds its own. Vectors may be averaged.
    - Half precision is normalized in float32, also under autocast.
    - γ of a BatchNorm is divided by the layer's norm in evaluation mode, ``max |γ/std|`` with the
      running variance, where torch divides by ‖γ‖₂ (SP4). Other 1-D weights are one row.

    Parameters
    ----------
    module : nn.Module
        Changed in place.
    name : str, default "weight"
        Of the parameter.
    n_power_iterations : int, default 1
        For each access in training mode.
    eps : float, default 1e-12
        Norms up to it count as 0.
    dim : int, optional
        Axis of the outputs, the rows of the matrix: by default 0, or 1 for ``nn.ConvTranspose*d``.
    norm : {"matrix", "operator"}, default "matrix"
        What to divide a convolution by: the norm of its reshaped kernel, as Miyato et al. and the
        article do, or the norm of its map from images to images (PI7). Dense layers have one norm.
    input_size : int or tuple of int, optional
        Spatial size of the convolution's input, on which its operator norm depends.
    coefficient : float, default 1.0
        The norm c to give the weight.
    at_most : bool, default False
        Whether to leave smaller weights as they are: ``W / max(1, σ/c)``.

    Returns
    -------
    nn.Module
        `module`, with a parametrization that `torch.nn.utils.parametrize` can remove again.

    Raises
    ------
    TypeError
        If an option has the wrong type, or ``norm="operator"`` is asked of another layer.
    ValueError
        If there is no such weight, it is empty or not finite, or an option is out of range.

    Examples
    --------
    >>> layer = spectral_normalize(nn.Linear(20, 40), n_power_iterations=50)
    >>> round(torch.linalg.matrix_norm(layer.weight, 2).item(), 3)
    1.0
    >>> kernel = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    >>> spectral_normalize(kernel, norm="operator")
    Traceback (most recent call last):
    ValueError: input_size must be given for norm='operator': the norm depends on it
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"module must have a parameter named {name!r}, {module} has none")
    check_tensor(weight.detach(), name, min_ndim=1)
    if norm not in ("matrix", "operator"):
        raise ValueError(f"norm must be 'matrix' or 'operator', got {norm!r}")
    options = _Options(check_positive(coefficient, "coefficient"), at_most, eps)
    check_positive(eps, "eps")
    if not isinstance(at_most, bool):
        raise TypeError(f"at_most must be a bool, got {type(at_most).__name__}")
    check_count(n_power_iterations, "n_power_iterations")
    normalization: _Normalization
    if isinstance(module, _BATCH_NORMS):
        normalization = _BatchNormNormalization(module, weight, options)
    elif weight.ndim == 1:
        normalization = _VectorNormalization(options)
    elif norm == "matrix" or isinstance(module, nn.Linear):
        dim = int(isinstance(module, _TRANSPOSED)) if dim is None else dim
        if not -weight.ndim <= dim < weight.ndim:
            raise ValueError(f"dim must be an axis of shape {tuple(weight.shape)}, got {dim}")
        normalization = _MatrixNormalization(weight, dim, n_power_iterations, options)
    else:
        normalization = _ConvNormalization(module, weight, input_size, n_power_iterations, options)
    parametrize.register_parametrization(module, name, normalization)
    return module


def project_spectral_(
    module: nn.Module,
    *,
    variant: Literal["exact", "article"] = "exact",
    n_iterations: int = 5,
    input_shape: Sequence[int] | None = None,
    coefficient: float = 1.0,
) -> None:
    """Divide every weight by its norm in place, as a Keras constraint does after each step.

    The gradient of the next step knows nothing of the division, and the step leaves the set that
    the projection returns to (SP7); `spectral_normalize` has neither fault.

    Parameters
    ----------
    module : nn.Module
        Its parameters named ``weight`` with two axes or more are divided, and the γ of BatchNorms.
    variant : {"exact", "article"}, default "exact"
        ``"article"`` is the listing: `article_keras_spectral_norm` of the kernel in Keras's
        layout, so a lower bound from an all-ones start, for a convolution not the operator's norm,
        ‖γ‖₂ for a BatchNorm, and a division by zero where the start is lost. ``"exact"`` is its
        repair: `spectral_norm`, ``max |γ/std|`` with the running variance, and 0 stays 0.
    n_iterations : int, default 5
        The article's r, for ``"article"``.
    input_shape : sequence of int, optional
        Of one input of the module, without the batch. With it, ``"exact"`` divides convolutions
        by their operator norm, and else by that of their reshaped kernel, the usual choice.
    coefficient : float, default 1.0
        The norm to give each weight.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range, or a weight not finite.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 4.0], [0.0, 0.0]]))
    >>> project_spectral_(layer)
    >>> layer.weight.tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    >>> project_spectral_(layer, variant="keras")
    Traceback (most recent call last):
    ValueError: variant must be 'exact' or 'article', got 'keras'
    """
    SpectralProjection(variant, n_iterations, coefficient=coefficient)  # checks them
    shapes = _input_shapes(module, input_shape) if input_shape is not None else {}
    for layer, weight in _constrained(module):
        with torch.no_grad():
            if variant == "article":
                weight.mul_(coefficient / _keras_norm(weight, n_iterations))
            else:
                norm = _exact_norm(layer, weight, shapes.get(layer))
                weight.mul_(coefficient / torch.where(norm > 0, norm, coefficient))


def article_spectral_normalize(module: nn.Module, n_iterations: int = 5) -> nn.Module:
    """Divide every weight inside the forward pass, by the article's own estimate of its norm.

    This is what the article's patched ``add_weight`` makes of its listing, for study only: each
    access runs `article_keras_spectral_norm` anew from the all-ones start, and autograd goes
    through all of its steps. `spectral_normalize` starts where the last access ended, needs one
    step, and knows convolutions and BatchNorms.

    Parameters
    ----------
    module : nn.Module
        Changed in place: its parameters named ``weight`` with two axes or more, and the γ of
        BatchNorms, which are divided by ‖γ‖₂ (SP4).
    n_iterations : int, default 5
        The article's r.

    Returns
    -------
    nn.Module
        `module`, with parametrizations that `torch.nn.utils.parametrize` can remove again.

    Raises
    ------
    TypeError, ValueError
        If `n_iterations` is no integer of at least 1.

    Examples
    --------
    >>> layer = article_spectral_normalize(nn.Linear(1, 4))
    >>> round(layer.weight.norm().item(), 4)
    1.0
    >>> article_spectral_normalize(nn.Linear(1, 4), n_iterations=0)
    Traceback (most recent call last):
    ValueError: n_iterations must be at least 1, got 0
    """
    check_count(n_iterations, "n_iterations")
    for layer, _ in list(_constrained(module)):
        parametrize.register_parametrization(layer, "weight", _ArticleNormalization(n_iterations))
    return module


class _ArticleNormalization(nn.Module):
    def __init__(self, n_iterations: int) -> None:
        super().__init__()
        self.n_iterations = n_iterations

    def forward(self, weight: Tensor) -> Tensor:
        return weight / _keras_norm(weight, self.n_iterations)


def _constrained(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """Yield each layer with a weight that the article's listing constrains, and the weight."""
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, nn.Parameter) and (
            weight.ndim > 1 or isinstance(layer, _BATCH_NORMS)
        ):
            yield layer, weight


def _keras_norm(weight: Tensor, n_iterations: int) -> Tensor:
    kernel = weight.permute(*range(2, weight.ndim), 1, 0) if weight.ndim > 1 else weight
    return article_keras_spectral_norm(kernel, n_iterations)


@dataclass(frozen=True)
class OrthonormalPenalty(Constraint):
    """λ times the sum of ``‖W Wᵀ - I‖_F²`` over the weights, with Wᵀ W where that is smaller.

    It pulls *every* singular value towards 1, where spectral normalization fixes the largest
    (Brock et al. 2016). Weights are reshaped to one row an output.

    Examples
    --------
    >>> critic = nn.Linear(2, 2, bias=False)
    >>> _ = critic.weight.data.copy_(torch.diag(torch.tensor([1.0, 2.0])))
    >>> OrthonormalPenalty(0.1).penalty(critic, *torch.zeros(2, 1, 2), None)  # 0.1 (2² - 1)²
    tensor(0.9000, grad_fn=<MulBackward0>)
    >>> OrthonormalPenalty(weight=0.0)
    Traceback (most recent call last):
    ValueError: weight must be a finite number above 0, got 0.0
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.weight, "weight")

    def penalty(
        self,
        critic: nn.Module,
        real: Tensor,  # noqa: ARG002
        fake: Tensor,  # noqa: ARG002
        generator: torch.Generator | None,  # noqa: ARG002
    ) -> Tensor:
        """Return the weighted penalty of the critic's weights."""
        rows = [w.flatten(1) for w in critic.parameters() if w.ndim > 1]
        if not rows:
            raise ValueError(
                f"critic must have a parameter with two axes or more, {critic} has none"
            )
        squares = [w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w for w in rows]
        deviations = [s - torch.eye(len(s), dtype=s.dtype, device=s.device) for s in squares]
        return self.weight * torch.stack([d.square().sum() for d in deviations]).sum()


@dataclass(frozen=True)
class SpectralProjection(Constraint):
    """`project_spectral_` after every step, as a constraint for `lipbook.wgan`'s trainers.

    Spectral normalization inside the critic needs none.

    Examples
    --------
    >>> SpectralProjection("article")
    SpectralProjection(variant='article', n_iterations=5, input_shape=None, coefficient=1.0)
    >>> SpectralProjection("exact", coefficient=-1.0)
    Traceback (most recent call last):
    ValueError: coefficient must be a finite number above 0, got -1.0
    """

    variant: Literal["exact", "article"] = "exact"
    n_iterations: int = 5
    input_shape: tuple[int, ...] | None = None
    coefficient: float = 1.0

    def __post_init__(self) -> None:
        if self.variant not in ("exact", "article"):
            raise ValueError(f"variant must be 'exact' or 'article', got {self.variant!r}")
        check_count(self.n_iterations, "n_iterations")
        check_positive(self.coefficient, "coefficient")

    def after_step(self, critic: nn.Module) -> None:
        """Divide every weight by its norm."""
        project_spectral_(
            critic,
            variant=self.variant,
            n_iterations=self.n_iterations,
            input_shape=self.input_shape,
            coefficient=self.coefficient,
        )


class _Options(NamedTuple):
    coefficient: float
    at_most: bool
    eps: float

    def factor(self, sigma: Tensor) -> Tensor:
        """Return what a weight of norm σ is multiplied by: 1 where the norm counts as 0."""
        divisor = torch.threshold(sigma, 2 * self.eps, self.coefficient)
        if self.at_most:
            divisor = divisor.clamp(min=self.coefficient)
        factor = divisor.reciprocal()
        return factor if self.coefficient == 1 else factor * self.coefficient


class _Normalization(nn.Module):
    """A parametrization that divides by a norm; the subclasses say which."""

    def __init__(self, options: _Options) -> None:
        super().__init__()
        self.options = options

    def estimate(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the norm σ, shape (), and two factors of its derivative, to be `shaped`."""
        raise NotImplementedError

    def shaped(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return views of the factors whose product broadcasts to the weight."""
        return left, right

    def forward(self, weight: Tensor) -> Tensor:
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


def _divided(weight: Tensor, left: Tensor, right: Tensor, options: _Options) -> Tensor:
    """Return ``c W/σ`` with ``σ = ⟨left right, W⟩``, to be differentiated as often as one likes."""
    return weight * options.factor((weight * left * right).sum())


class _Normalize(torch.autograd.Function):
    """The same in fewer passes over the weight: forward and backward by hand."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, norm: _Normalization) -> Tensor:
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
            normalized = _divided(weight, left, right, options)
            return torch.autograd.grad(normalized, weight, grad, create_graph=True)[0], None
        # G - ⟨G, W⟩/σ · u vᵀ in one pass, with no matrix besides the result.
        overlap = torch.dot(grad.reshape(-1), weight.reshape(-1)).div_(sigma)
        if options.at_most:
            overlap.mul_(sigma > options.coefficient)
        return torch.addcmul(grad, left * overlap, right, value=-1).mul_(factor), None


class _PowerIterated(_Normalization):
    """Norms from the vectors of the last access, improved by a few steps of (15)."""

    _u: Tensor
    _v: Tensor

    def __init__(self, u: Tensor, v: Tensor, n_power_iterations: int, options: _Options) -> None:
        super().__init__(options)
        self.n_power_iterations = n_power_iterations
        self.register_buffer("_u", u.normal_() / torch.linalg.vector_norm(u))
        self.register_buffer("_v", v.normal_() / torch.linalg.vector_norm(v))

    def matrix(self, weight: Tensor) -> Tensor:
        """Return what the products are to be taken with."""
        return weight

    def product(self, matrix: Tensor, v: Tensor, u: Tensor) -> Tensor:
        """Return ``W v + eps u``, a new tensor: u where the product vanishes, and never 0."""
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
        if sigma <= 2 * self.options.eps:  # a zero weight, or both are orthogonal to all of it
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


class _MatrixNormalization(_PowerIterated):
    """The norm of a weight reshaped to a matrix with the outputs as its rows."""

    def __init__(
        self, weight: Tensor, dim: int, n_power_iterations: int, options: _Options
    ) -> None:
        rows = weight.shape[dim]
        u, v = weight.new_empty(rows), weight.new_empty(weight.numel() // rows)
        super().__init__(u, v, n_power_iterations, options)
        self.dim = dim % weight.ndim
        self.left_shape = [rows if axis == self.dim else 1 for axis in range(weight.ndim)]
        self.right_shape = list(weight.shape)
        self.right_shape[self.dim] = 1

    def matrix(self, weight: Tensor) -> Tensor:
        if self.dim != 0:
            weight = weight.movedim(self.dim, 0)
        return weight.flatten(1)

    def product(self, matrix: Tensor, v: Tensor, u: Tensor) -> Tensor:
        return torch.addmv(u, matrix, v, beta=self.options.eps)

    def adjoint(self, matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return torch.addmv(v, matrix.t(), u, beta=self.options.eps)

    def shaped(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return left.view(self.left_shape), right.view(self.right_shape)


class _ConvNormalization(_PowerIterated):
    """The norm of a convolution as a map from images to images, all of torch's options included."""

    def __init__(
        self,
        module: nn.Module,
        weight: Tensor,
        input_size: int | tuple[int, ...] | None,
        n_power_iterations: int,
        options: _Options,
    ) -> None:
        if not isinstance(module, _CONVOLUTIONS):
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
        return torch.add(self.convolve(v, matrix), u, alpha=self.options.eps)

    @torch.enable_grad()
    def adjoint(self, matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
        image = torch.zeros_like(v).requires_grad_()
        (back,) = torch.autograd.grad(self.convolve(image, matrix.detach()), image, u)
        return torch.add(back, v, alpha=self.options.eps)

    @torch.enable_grad()
    def derivative(self, weight: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        kernel = weight.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.convolve(v, kernel), kernel, u)
        return u.new_ones(()), gradient


class _VectorNormalization(_Normalization):
    """The norm of a 1-D weight that is the one row of a matrix, as torch has it."""

    def estimate(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma = torch.linalg.vector_norm(weight).clamp(min=self.options.eps)
        return sigma, sigma.new_ones(()), weight / sigma


class _BatchNormNormalization(_Normalization):
    """The norm of a BatchNorm in evaluation mode, which is a diagonal."""

    def __init__(self, module: nn.Module, weight: Tensor, options: _Options) -> None:
        super().__init__(options)
        _inverse_std(module, weight)
        self.owner = (module,)  # in a tuple, lest it become a child of its own child

    def estimate(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inverse_std = _inverse_std(self.owner[0], weight)
        sigma, top = (weight * inverse_std).abs().max(0)
        at_top = F.one_hot(top, len(weight)) * inverse_std * weight.sign()
        return sigma.clamp(min=self.options.eps), sigma.new_ones(()), at_top


def _inverse_std(layer: nn.Module, like: Tensor) -> Tensor:
    """Return what a BatchNorm multiplies its channels by in evaluation mode, besides γ."""
    variance, eps = layer.running_var, layer.eps
    if not isinstance(variance, Tensor):
        raise ValueError(f"module must track running statistics, {layer} knows its batch only")
    return torch.rsqrt(variance.to(like.dtype) + cast(float, eps))


def _strayed(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> bool:
    """Whether one of the old vectors, of any length, is more than 60° off the new unit vector."""
    cosines = (
        (there * here).sum() / torch.linalg.vector_norm(there)
        for there, here in zip(old, new, strict=True)
    )
    return any(bool(cosine < _ALIGNED) for cosine in cosines)


def _random_like(x: Tensor) -> Tensor:
    return random_start(x.numel(), like=x).view_as(x)


def _exact_norm(layer: nn.Module, weight: Tensor, input_shape: tuple[int, ...] | None) -> Tensor:
    if isinstance(layer, _BATCH_NORMS):
        return (weight * _inverse_std(layer, weight)).abs().amax()
    if isinstance(layer, _CONVOLUTIONS) and input_shape is not None:
        return conv_spectral_norm(
            weight,
            input_shape[1:],
            stride=layer.stride,
            padding=cast(Padding, layer.padding),
            dilation=layer.dilation,
            groups=layer.groups,
            padding_mode=layer.padding_mode,
        )
    rows = 1 if isinstance(layer, _TRANSPOSED) else 0
    return spectral_norm(weight.movedim(rows, 0).flatten(1))


def _input_shapes(module: nn.Module, shape: Sequence[int]) -> dict[nn.Module, tuple[int, ...]]:
    """Shape of what each layer is given when the module is given one input of `shape`."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        shapes[layer] = tuple(inputs[0].shape[1:])

    hooks = [layer.register_forward_pre_hook(note) for layer in module.modules()]
    try:
        try_out(module, shape)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes
