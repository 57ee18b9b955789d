"""Chapter 3: the spectral norm of a convolution, which is not the one of its kernel (PI7).

A convolution layer is a linear map from images to images. `conv_spectral_norm` is the norm of
that map, `conv_norm_bounds` brackets it from the kernel alone, `circular_conv_spectral_norm` is
the FFT's answer to a neighbouring question, and `conv_matrix` writes the map out for study.

Kernels have torch's layout ``(out, in / groups, *kernel_size)`` with one, two or three spatial
axes; the options mean what they mean in ``torch.nn.Conv1d``, ``Conv2d`` and ``Conv3d``. With
``transposed=True`` the layer is a ``torch.nn.ConvTranspose1d``, ``2d`` or ``3d``, whose kernels
have the layout ``(in, out / groups, *kernel_size)``: it is the adjoint of a convolution, and has
its norm. Values are computed in float64 and returned in the dtype of the kernel; only the many
products of `conv_spectral_norm` are done in float32 for a kernel in float32 or narrower, with
TF32 switched off.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lipbook._checks import (
    check_bool,
    check_count,
    check_positive,
    check_tensor,
    refuse_transforms,
)
from lipbook.matrix_norms import split_scale
from lipbook.power_iteration import (
    KrylovBasis,
    NormBounds,
    fresh_start,
    only_once,
    random_start,
    top_of_krylov,
)

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Padding = int | Sequence[int] | Literal["same", "valid"]

_SMALL = 1024  # entries up to which a basis of images is kept
_PIECE = 2**16  # entries that are copied in float64 at a time
_EASY = 64  # channels up to which every frequency is decomposed
_MARGIN = 1e-4  # of float32, whose errors stay below 1e-5 in what follows
_CHUNK = 2**21  # entries of the symbol that are looked at together: 32 MiB

# torch.nn's names of the padding modes, and torch.nn.functional.pad's.
_PAD_MODES = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}


class _Convolution(NamedTuple):
    """A checked convolution: a float64 kernel near 1, and its options for every axis."""

    kernel: Tensor
    scale: Tensor
    size: tuple[int, ...]
    outputs: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    mode: PaddingMode

    def __call__(self, images: Tensor, kernel: Tensor | None = None) -> Tensor:
        """Convolve images of shape (batch, in, *size)."""
        kernel = self.kernel if kernel is None else kernel
        convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[len(self.size) - 1]
        images = self.pad(images)
        results = convolve(
            images, kernel, None, self.stride, self.own_pads, self.dilation, self.groups
        )
        return results[self.inside(self.outputs)]

    def adjoint(self, results: Tensor) -> Tensor:
        """Apply the adjoint to what a call may return, without a graph."""
        every = [len(self.starts(axis)) for axis in range(len(self.size))]
        ends = [(0, some - kept) for some, kept in zip(every, self.outputs, strict=True)]
        if any(more for _, more in ends):
            results = F.pad(results, [end for pair in reversed(ends) for end in pair])
        # What the last window leaves of the padded axis is not reached, and has to be told.
        left = [self.reach(axis) % self.stride[axis] for axis in range(len(self.size))]
        transpose: Callable[..., Tensor] = (
            F.conv_transpose1d,
            F.conv_transpose2d,
            F.conv_transpose3d,
        )[len(self.size) - 1]
        images = transpose(
            results,
            self.kernel,
            None,
            self.stride,
            self.own_pads,
            left,
            self.groups,
            self.dilation,
        )
        return self.unpad(images)

    def pad(self, images: Tensor) -> Tensor:
        """Pad as the mode says, if the convolution does not do so itself."""
        if any(self.own_pads) or not any(any(pad) for pad in self.pads):
            return images
        last_axis_first = [end for pad in reversed(self.pads) for end in pad]
        return F.pad(images, last_axis_first, mode=_PAD_MODES[self.mode])

    def unpad(self, images: Tensor) -> Tensor:
        """Apply the adjoint of `pad`, one axis after the other."""
        if any(self.own_pads) or not any(any(pad) for pad in self.pads):
            return images
        for axis, size in enumerate(self.size):
            cells = self.padded(axis).to(images.device)
            shape = list(images.shape)
            shape[2 + axis] = size
            kept = (cells >= 0).nonzero()[:, 0]
            if len(kept) < len(cells):
                images = images.index_select(2 + axis, kept)
            images = images.new_zeros(shape).index_add_(2 + axis, cells[kept], images)
        return images

    @property
    def own_pads(self) -> tuple[int, ...]:
        """What the convolution can pad by itself: the same number of zeros at both ends."""
        if self.mode == "zeros" and all(low == high for low, high in self.pads):
            return tuple(low for low, _ in self.pads)
        return (0,) * len(self.pads)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.kernel.shape[1] * self.groups, *self.size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.kernel.shape[0], *self.outputs)

    @staticmethod
    def inside(outputs: Sequence[int]) -> tuple[slice, ...]:
        """Index of the first `outputs` cells of each axis."""
        return (slice(None), slice(None), *(slice(count) for count in outputs))

    def padded(self, axis: int) -> Tensor:
        """Input cell behind each cell of the padded axis, -1 for a padded zero."""
        cells = torch.arange(self.size[axis], dtype=torch.float64)[None]
        value = -1.0 if self.mode == "zeros" else None
        return F.pad(cells, self.pads[axis], _PAD_MODES[self.mode], value)[0].long()

    def starts(self, axis: int) -> Tensor:
        """First padded cell of each window along an axis, whether or not its output is kept."""
        return torch.arange(0, self.reach(axis) + 1, self.stride[axis])

    def reach(self, axis: int) -> int:
        """Last padded cell at which a window could start."""
        extent = self.dilation[axis] * (self.kernel.shape[2 + axis] - 1) + 1
        return self.size[axis] + sum(self.pads[axis]) - extent

    def windows(self, axis: int) -> Tensor:
        """Input cell that each tap of each output reads, shape (outputs, taps)."""
        taps = self.dilation[axis] * torch.arange(self.kernel.shape[2 + axis])
        starts = self.starts(axis)[: self.outputs[axis]]
        return self.padded(axis)[starts[:, None] + taps]

    def wraps(self, axis: int, stride: int) -> bool:
        """Whether the axis is a ring on which steps of `stride` go round evenly."""
        return self.mode == "circular" and self.size[axis] % stride == 0

    def copies(self, axis: int, stride: int) -> int:
        """Square of the factor by which the norm may exceed the one on the infinite axis."""
        if self.wraps(axis, stride):
            return _most_repeated(self.starts(axis) % self.size[axis])
        cells = self.padded(axis)
        return _most_repeated(cells[cells >= 0])


def conv_spectral_norm(
    kernel: Tensor,
    input_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    transposed: bool = False,
    output_padding: int | Sequence[int] = 0,
    rtol: float = 1e-6,
) -> Tensor:
    r"""Compute the operator norm of a convolution, the smallest C of (6) for that layer.

    Golub–Kahan–Lanczos with the stopping rule of `golub_kahan_lanczos`, on products with the
    convolution itself and with its adjoint, so that every option is the one torch computes. Of the
    many images that the process goes through it keeps three; the top singular vector, which the
    gradient needs, is found by going the same steps again. With groups the map is block-diagonal,
    and its norm is the largest of the blocks'.

    Parameters
    ----------
    kernel : Tensor, shape (out, in / groups, k₁, …)
        One to three spatial axes; floating point, finite, not empty. A transposed convolution has
        the shape (in, out / groups, k₁, …).
    input_size : int or sequence of int
        Spatial size of the input, (H, W) for an image: the norm depends on it.
    stride, dilation : int or sequence of int, default 1
        As in ``torch.nn.Conv2d``.
    padding : int, sequence of int, "same" or "valid", default 0
        As in ``torch.nn.Conv2d``.
    groups : int, default 1
        As in ``torch.nn.Conv2d``.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}, default "zeros"
        As in ``torch.nn.Conv2d``.
    transposed : bool, default False
        Whether the layer is a ``torch.nn.ConvTranspose2d``.
    output_padding : int or sequence of int, default 0
        As in ``torch.nn.ConvTranspose2d``.
    rtol : float, default 1e-6
        Relative accuracy, with the probability that `golub_kahan_lanczos` states for a random
        start; it is fixed, so the result is deterministic, and `conv_norm_bounds` is what cannot
        be misled.

    Returns
    -------
    Tensor, shape ()
        In the dtype of `kernel`, and differentiable once: with the top singular vectors u and v
        taken for constants, the gradient is that of ``⟨u, conv(v)⟩``. A second time raises a
        RuntimeError.

    Raises
    ------
    TypeError
        If `kernel` is not a floating-point tensor, or a size or option not an integer.
    ValueError
        If the kernel is empty or not finite, or an option does not fit it or `input_size`.

    Examples
    --------
    >>> ones = torch.ones(1, 1, 3, 3)
    >>> conv_spectral_norm(ones, 8, padding=1)  # the reshaped kernel has norm 3
    tensor(8.2909)
    >>> conv_spectral_norm(ones, 2)
    Traceback (most recent call last):
    ValueError: input_size must reach the extent 3 of the kernel on axis 0, ...
    """
    check_positive(rtol, "rtol")
    refuse_transforms(
        kernel,
        "conv_spectral_norm",
        "take torch.autograd, or the induced norm of conv_matrix, which it can differentiate",
    )
    options = (stride, padding, dilation, groups, padding_mode, transposed, output_padding)
    conv = _checked(kernel, input_size, *options)
    working = torch.float64 if kernel.dtype == torch.float64 else torch.float32
    searched = conv._replace(kernel=conv.kernel.detach().to(working))
    with torch.no_grad():
        search = _Search(searched)
        theta, weights = search.run(rtol)
    # Not by new_tensor, which the imaginary part of a conjugate does not have.
    norm = math.sqrt(max(theta, 0.0))
    sigma = torch.tensor(norm, dtype=conv.kernel.dtype, device=conv.kernel.device)
    if conv.kernel.requires_grad:
        sigma = _Differentiable.apply(conv.kernel, sigma, conv, search, weights)  # type: ignore[no-untyped-call]
    return (sigma * conv.scale).to(kernel.dtype)


class _Differentiable(torch.autograd.Function):
    """The norm, with a derivative for which the top vector is found when it is asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: Tensor,
        sigma: Tensor,
        conv: _Convolution,
        search: _Search,
        weights: NDArray[np.float64],
    ) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.conv, ctx.search, ctx.weights = conv, search, weights
        return sigma.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (kernel,) = ctx.saved_tensors
        image = ctx.search.image(ctx.weights).double()
        with torch.enable_grad():
            known = kernel.detach().requires_grad_()
            stretched = torch.linalg.vector_norm(ctx.conv(image, known))
        (gradient,) = torch.autograd.grad(stretched, known, grad)
        refusal = (
            "conv_spectral_norm can be differentiated once only; the induced norm of conv_matrix "
            "any number of times"
        )
        return only_once(gradient, kernel, refusal), None, None, None, None


class _Search:
    """The search for the top vector of ``AᵀA`` or ``AAᵀ``, the smaller of the two."""

    def __init__(self, conv: _Convolution) -> None:
        self.conv = conv
        shapes = (conv.input_shape, conv.output_shape)
        self.from_inputs = math.prod(shapes[0]) <= math.prod(shapes[1])
        self.shape = (1, *shapes[0 if self.from_inputs else 1])
        self.n = math.prod(self.shape)
        self.spans = self.n <= _SMALL
        self.vectors: KrylovBasis | _Recurrence
        if self.spans:
            self.vectors = KrylovBasis(self.normal, random_start(self.n, like=conv.kernel))
        else:
            self.vectors = _Recurrence(self.normal, self.n, like=conv.kernel)

    def normal(self, x: Tensor) -> Tensor:
        """Apply the convolution and its adjoint, in the order that leads back."""
        products = self.conv.__call__, self.conv.adjoint
        there, back = products if self.from_inputs else reversed(products)
        with torch.backends.cudnn.flags(allow_tf32=False):
            return self.vector(back(there(self.images(x))))

    def images(self, x: Tensor) -> Tensor:
        """Return a vector as images; large ones with the channels of a pixel side by side.

        So oneDNN reads and writes them, which otherwise makes a copy of each.
        """
        if self.spans:
            return x.view(self.shape)
        return x.view(1, *self.shape[2:], self.shape[1]).movedim(-1, 1)

    def vector(self, images: Tensor) -> Tensor:
        """Return images as a vector."""
        return (images if self.spans else images.movedim(1, -1)).flatten()

    def run(self, rtol: float) -> tuple[float, NDArray[np.float64]]:
        """Return the squared norm and what `image` needs."""
        steps = self.n if self.spans else 2 * self.n
        dtype = self.conv.kernel.dtype
        process = self.vectors.advance, self.n, dtype, rtol, steps
        top = top_of_krylov(*process, spans=self.spans, fresh=self.vectors.fresh)
        return top.theta, top.weights

    def image(self, weights: NDArray[np.float64]) -> Tensor:
        """Return the top right vector as a unit image, or 0."""
        top = self.images(self.vectors.combine(weights))
        if not self.from_inputs:
            top = self.conv.adjoint(top)
        length = math.sqrt(_dot(top, top))
        return top / length if length > 0 else top


class _Recurrence:
    """Lanczos on a symmetric operator that keeps two vectors, and no basis.

    A basis would be hundreds of images. What it is needed for, the weighted sum of its vectors, is
    made by going the same steps again.
    """

    def __init__(self, apply: Callable[[Tensor], Tensor], n: int, like: Tensor) -> None:
        self.apply, self.n, self.like = apply, n, like
        self.begins: set[int] = set()
        self.fresh(0)

    def fresh(self, step: int) -> None:
        """Go on from another direction, as at the beginning."""
        self.begins.add(step)
        self.rest = fresh_start(self.n, self.like, step)
        self.residual = math.sqrt(_dot(self.rest, self.rest))
        self.last: Tensor | None = None

    def advance(self) -> tuple[float, float]:
        """Take the next vector in, and return what `top_of_krylov` asks for."""
        before, self.last = self.last, self.rest.div_(self.residual)
        image = self.apply(self.last)
        if before is not None:  # whose memory is used again: an allocator of blocks leaves holes
            image = torch.sub(image, before, alpha=self.residual, out=before)
        overlap = _dot(self.last, image)
        self.rest = image.sub_(self.last, alpha=overlap)
        self.residual = math.sqrt(_dot(self.rest, self.rest))
        return overlap, self.residual

    def combine(self, weights: NDArray[np.float64]) -> Tensor:
        """Return the sum of the first vectors, weighted."""
        total = torch.zeros_like(self.rest)
        for step, weight in enumerate(weights.tolist()):
            if step in self.begins:
                self.fresh(step)
            self.advance()
            total.add_(cast(Tensor, self.last), alpha=weight)
        return total


def _dot(x: Tensor, y: Tensor) -> float:
    """Inner product of all entries in float64; a sum in float32 would be wrong by 1e-5."""
    x, y = x.flatten(), y.flatten()
    piece = _PIECE if x.is_cpu else x.numel()  # with no copy as large as an image
    copies = x.new_empty(2, min(piece, len(x)), dtype=torch.float64)
    dots = []
    for pair in zip(x.split(piece), y.split(piece), strict=True):  # type: ignore[no-untyped-call]
        one, other = (
            copy[: len(part)].copy_(part) for copy, part in zip(copies, pair, strict=True)
        )
        dots.append(float(torch.dot(one, other)))
    return math.fsum(dots)


def conv_norm_bounds(
    kernel: Tensor,
    input_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    transposed: bool = False,
    output_padding: int | Sequence[int] = 0,
    oversampling: int = 8,
) -> NormBounds:
    r"""Bracket the operator norm of a convolution from small matrices, for every option.

    Write R for the kernel reshaped to ``(out, in · taps)``, per group.

    *Below.* One output pixel is a linear map of the cells that its window reads, so the norm of
    that map is a lower bound; for a pixel whose taps read different cells inside the input it is
    ``‖R‖``. The pixel taken is the middle one, with taps in the padding dropped and taps on the
    same cell added up.

    *Above, by counting.* ``conv = R P`` for each output pixel, with P the map that copies cells
    into windows. :math:`P^\top P` is diagonal and counts how often a cell is read, so that
    ``‖conv‖ ≤ √(max count) ‖R‖``. With zero or circular padding the count is at most
    ⌈k_h/s⌉⌈k_w/s⌉, the known √-bound; with reflect and replicate padding border cells are read
    more often, and they are counted.

    *Above, by the symbol.* A convolution with zero padding is a part of the convolution on the
    infinite grid, whose norm is the maximum over all frequencies ω of ``‖F(ω)‖``,
    :math:`F(ω) = \sum_j K_j e^{-i⟨ω, j⟩}` (Araujo et al. 2021). A stride s makes it one of stride
    1 with fewer taps, from the s cells of a step side by side as s times the channels; dilation
    stretches ω. Circular padding sees some of these ω if the stride divides the input, and as
    often as an output is repeated; all other padding is a copying of cells, with its own count,
    followed by an unpadded convolution. For constant x, ``‖F(ω)x‖²`` is a trigonometric polynomial
    of degree k - 1 in each axis, and its maximum is at most the one over N equispaced points
    divided by cos(π(k-1)/N) (Ehlich & Zeller 1964), so a finite grid suffices.

    Parameters
    ----------
    kernel, input_size, stride, padding, dilation, groups, padding_mode
        As in `conv_spectral_norm`.
    transposed, output_padding
        As in `conv_spectral_norm`.
    oversampling : int, default 8
        N / (k - 1): at 8 the grid loses 4 % per axis, at 16 1 %. At least 3.

    Returns
    -------
    NormBounds
        ``lower, upper``, each of shape (), in float64 and constant for autograd.

    Raises
    ------
    TypeError, ValueError
        As `conv_spectral_norm`, or if `oversampling` is not an integer of at least 3.

    Examples
    --------
    >>> lower, upper = conv_norm_bounds(torch.ones(1, 1, 3, 3), 8, padding=1)
    >>> print(f"{lower:.3f} {upper:.3f}")  # and the norm is 8.291
    3.000 9.000
    >>> conv_norm_bounds(torch.ones(1, 1, 3, 3), 8, oversampling=2)
    Traceback (most recent call last):
    ValueError: oversampling must be at least 3, got 2
    """
    check_count(oversampling, "oversampling", least=3)
    refuse_transforms(kernel, "conv_norm_bounds", "take one kernel after the other")
    options = (stride, padding, dilation, groups, padding_mode, transposed, output_padding)
    conv = _checked(kernel, input_size, *options)
    with torch.no_grad():
        lower = _norm_of_window(conv)
        upper = _bound_by_counting(conv)
        for strides in dict.fromkeys((conv.stride, tuple(1 for _ in conv.stride))):
            if strides == conv.stride or not all(map(conv.wraps, range(len(strides)), conv.stride)):
                upper = min(upper, _bound_by_symbol(conv, strides, oversampling))
    # Of float64 arithmetic on sums of this length, with a wide margin.
    slack = 1e-10 + 2.0**-50 * conv.kernel.numel() / conv.groups
    scale = conv.scale
    return NormBounds(lower * (1 - slack) * scale, upper * (1 + slack) * scale)


def circular_conv_spectral_norm(
    kernel: Tensor,
    input_size: int | Sequence[int],
    *,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    r"""Compute the norm of a circular convolution with stride 1, by Fourier transform.

    The transform makes the map block-diagonal with the blocks :math:`F(2πm/N)`, so the largest
    of their norms is exact (Sedghi et al. 2019). It is *not* an upper bound on the convolution
    with zero padding, which mixes the frequencies between those of the grid: there the maximum
    over all ω is (see `conv_norm_bounds`).

    Parameters
    ----------
    kernel, input_size, dilation, groups
        As in `conv_spectral_norm`.

    Returns
    -------
    Tensor, shape ()
        In the dtype of `kernel`, differentiable.

    Raises
    ------
    TypeError, ValueError
        As `conv_spectral_norm`; here the kernel may be larger than the input, and wraps.

    Examples
    --------
    >>> kernel = torch.tensor([[[1.0, -1.0, 1.0]]])
    >>> circular_conv_spectral_norm(kernel, 3)
    tensor(2.)
    >>> conv_spectral_norm(kernel, 3, padding=1)
    tensor(2.4142)
    >>> circular_conv_spectral_norm(kernel, 0)
    Traceback (most recent call last):
    ValueError: input_size must be at least 1, got 0
    """
    unit, scale = _checked_kernel(kernel, groups)
    axes = kernel.ndim - 2
    size = _per_axis(input_size, "input_size", axes)
    dilations = _per_axis(dilation, "dilation", axes)
    symbol = _symbol(unit, _frequencies(unit, size, dilations), groups)
    norms: Tensor = torch.linalg.matrix_norm(symbol, 2)
    return (norms.amax() * scale).to(kernel.dtype)


def conv_matrix(
    kernel: Tensor,
    input_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    transposed: bool = False,
    output_padding: int | Sequence[int] = 0,
) -> Tensor:
    """Write a convolution out as the matrix it is, for study: small inputs only.

    Parameters
    ----------
    kernel, input_size, stride, padding, dilation, groups, padding_mode
        As in `conv_spectral_norm`.
    transposed, output_padding
        As in `conv_spectral_norm`.

    Returns
    -------
    Tensor, shape (out · output pixels, in · input pixels)
        In the dtype of `kernel`, differentiable; it maps flattened images to flattened images.

    Raises
    ------
    TypeError, ValueError
        As `conv_spectral_norm`.

    Examples
    --------
    >>> conv_matrix(torch.tensor([[[1.0, 2.0]]]), 3)
    tensor([[1., 2., 0.],
            [0., 1., 2.]])
    >>> conv_matrix(torch.ones(1, 2), 3)
    Traceback (most recent call last):
    ValueError: kernel must have 3 to 5 axes (out, in / groups, *kernel_size), ...
    """
    options = (stride, padding, dilation, groups, padding_mode, transposed, output_padding)
    conv = _checked(kernel, input_size, *options)
    pixels = math.prod(conv.input_shape)
    images = torch.eye(pixels, dtype=torch.float64, device=kernel.device)
    columns = conv(images.reshape(pixels, *conv.input_shape)).flatten(1)
    matrix = columns if transposed else columns.T
    return (matrix * conv.scale).to(kernel.dtype)


def _norm_per_group(reshaped: Tensor, groups: int) -> float:
    """Largest spectral norm of the groups' (out, in · taps) matrices."""
    if reshaped.numel() == 0:  # a window that sees padding only
        return 0.0
    blocks = reshaped.reshape(groups, reshaped.shape[0] // groups, -1)
    if blocks.shape[1] > blocks.shape[2]:
        blocks = blocks.mT
    largest = torch.linalg.eigvalsh(blocks @ blocks.mT)[:, -1].amax()
    return math.sqrt(max(float(largest), 0.0))


def _norm_of_window(conv: _Convolution) -> float:
    """Norm of the map from the cells that one output reads to that output."""
    window_map = conv.kernel
    for axis in range(len(conv.size)):
        fullest = max(conv.windows(axis), key=lambda cells: len(cells[cells >= 0].unique()))
        distinct = fullest[fullest >= 0].unique()
        read = (fullest[:, None] == distinct).to(window_map)
        window_map = torch.tensordot(window_map, read, dims=([2], [0]))  # rotates the axes
    return _norm_per_group(window_map.flatten(2), conv.groups)


def _bound_by_counting(conv: _Convolution) -> float:
    windows = [conv.windows(axis) for axis in range(len(conv.size))]
    count = math.prod(_most_repeated(window[window >= 0]) for window in windows)
    return _norm_per_group(conv.kernel.flatten(2), conv.groups) * math.sqrt(count)


def _bound_by_symbol(conv: _Convolution, strides: Sequence[int], oversampling: int) -> float:
    """Bound the convolution with these strides, of which its own keep a part of the outputs."""
    kernel = conv.kernel
    for axis, (stride, dilation) in enumerate(zip(strides, conv.dilation, strict=True)):
        kernel = _unshuffled(kernel, axis, stride, dilation)
    kernel = kernel.flatten(len(strides) + 2).movedim(-1, 1).flatten(1, 2)
    degrees = [taps - 1 for taps in kernel.shape[2:]]
    grid = [max(1, oversampling * degree) for degree in degrees]
    loss = math.cos(math.pi / oversampling) ** sum(degree > 0 for degree in degrees)
    copies = math.prod(map(conv.copies, range(len(strides)), strides))
    return _largest_symbol(kernel, grid, conv.groups) * math.sqrt(copies / loss)


def _unshuffled(kernel: Tensor, axis: int, stride: int, dilation: int) -> Tensor:
    """Write a strided axis as one of stride 1 on `stride` times the channels, in the last axis.

    Tap j reads cell ``dilation · j``, which is the cell number ``dilation · j // stride`` of those
    with the same remainder. What stride and dilation have in common only stretches the axis.
    """
    common = math.gcd(stride, dilation)
    stride, dilation = stride // common, dilation // common
    if stride == 1:
        return kernel[..., None]
    cells = dilation * torch.arange(kernel.shape[2 + axis], device=kernel.device)
    shape = list(kernel.shape)
    shape[2 + axis] = int(cells[-1]) // stride + 1
    shuffled = kernel.new_zeros(*shape, stride)
    along = kernel.movedim(2 + axis, 0)
    shuffled.movedim(2 + axis, 0).movedim(-1, 1)[cells // stride, cells % stride] = along
    return shuffled


def _frequencies(
    kernel: Tensor, grid: Sequence[int], dilation: Sequence[int] | None = None
) -> Tensor:
    """Angles ``2π ⟨m / grid, tap⟩`` for half of all m, since F(-ω) is the conjugate of F(ω)."""
    angles = kernel.new_zeros(1, 1)
    for axis, points in enumerate(grid):
        frequencies = torch.arange(points // 2 + 1 if axis == 0 else points)
        taps = torch.arange(kernel.shape[2 + axis]) * (dilation[axis] if dilation else 1)
        phases = (2 * math.pi / points * (frequencies[:, None] * taps % points)).to(kernel)
        angles = angles[:, None, :, None] + phases[None, :, None, :]
        angles = angles.flatten(2).flatten(0, 1)
    return angles


def _symbol(kernel: Tensor, angles: Tensor, groups: int) -> Tensor:
    """Matrices ``F(ω)``, shape (frequencies, groups, out / groups, in / groups)."""
    waves = torch.polar(torch.ones_like(angles), -angles)
    symbol = waves @ kernel.flatten(2).flatten(0, 1).T.to(waves)
    return symbol.view(len(angles), groups, -1, kernel.shape[1])


def _largest_symbol(kernel: Tensor, grid: Sequence[int], groups: int) -> float:
    """Largest ``‖F(2πm / grid)‖`` over all m and groups, or a little more."""
    if kernel.shape[0] // groups > kernel.shape[1]:  # the adjoint's symbol has the same norm
        per_group = kernel.reshape(groups, -1, *kernel.shape[1:]).transpose(1, 2)
        return _largest_symbol(per_group.flatten(0, 1), grid, groups)
    angles = _frequencies(kernel, grid)
    if kernel.shape[0] // groups > _EASY:
        blocks = kernel.reshape(groups, -1, *kernel.shape[1:])
        return math.sqrt(max(_largest_gram_symbol(block, angles) for block in blocks))
    largest = 0.0
    for some in torch.split(angles, max(1, _CHUNK // kernel[:, :, 0].numel())):
        symbol = _symbol(kernel, some, groups)
        squared = torch.linalg.eigvalsh(symbol @ symbol.mH)[..., -1].amax()
        largest = max(largest, float(squared))
    return math.sqrt(largest)


def _largest_gram_symbol(kernel: Tensor, angles: Tensor) -> float:
    """Largest eigenvalue of all ``F(ω)F(ω)ᴴ``, or a little more.

    They are ``∑ C_d exp(-i⟨ω, d⟩)`` with the autocorrelation C of the kernel. That those of the
    next frequencies are no larger than the largest so far is seen from Cholesky factors of the
    differences; in random order, few have to be decomposed.
    """
    order = torch.randperm(len(angles), generator=torch.Generator().manual_seed(0))
    shifts, real, imaginary = _autocorrelation(kernel, angles[order.to(angles.device)])
    side = len(kernel)
    eye = torch.eye(side, dtype=torch.complex64, device=kernel.device)
    largest, begin = 0.0, 0
    while begin < len(shifts):
        some = shifts[begin : begin + max(1, _CHUNK // side**2)] if begin else shifts[:1]
        begin += len(some)
        parts = torch.cos(some) @ real, -torch.sin(some) @ imaginary
        grams = torch.complex(*parts).view(-1, side, side)
        factors = torch.linalg.cholesky_ex(largest * (1 + _MARGIN) * eye - grams)
        if bool(factors.info.any()):
            top = torch.linalg.eigvalsh(grams[factors.info != 0])[:, -1].amax()
            largest = max(largest, float(top))
    return largest * (1 + 2 * _MARGIN)


def _autocorrelation(kernel: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the angles of all shifts of the taps, and what their cosines and sines multiply."""
    taps = list(itertools.product(*map(range, kernel.shape[2:])))
    matrices = kernel.flatten(2).movedim(2, 0).contiguous()
    sums: dict[tuple[int, ...], Tensor] = {}
    shifts: dict[tuple[int, ...], Tensor] = {}
    for (i, one), (j, other) in itertools.combinations_with_replacement(enumerate(taps), 2):
        shift = tuple(b - a for a, b in zip(one, other, strict=True))
        product = matrices[j] @ matrices[i].T
        sums[shift] = sums[shift].add_(product) if shift in sums else product
        shifts[shift] = angles[:, j] - angles[:, i]
    even = [part + part.T if any(shift) else part for shift, part in sums.items()]
    odd = [part - part.T for part in sums.values()]
    real, imaginary = (torch.stack(parts).flatten(1).float() for parts in (even, odd))
    return torch.stack(list(shifts.values()), 1).float(), real, imaginary


def _most_repeated(cells: Tensor) -> int:
    """How often the most frequent entry occurs; 0 if there are none."""
    return int(torch.bincount(cells.flatten()).max()) if cells.numel() else 0


def _per_axis(value: int | Sequence[int], name: str, axes: int, least: int = 1) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) != axes:
        raise ValueError(f"{name} must be one integer or {axes}, got {value}")
    return tuple(check_count(one, name, least=least) for one in values)


def _checked_kernel(kernel: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return the kernel in float64, near 1, and its scale."""
    check_tensor(kernel, "kernel")
    shape = tuple(kernel.shape)
    if not 3 <= kernel.ndim <= 5:
        raise ValueError(
            f"kernel must have 3 to 5 axes (out, in / groups, *kernel_size), got shape {shape}"
        )
    if shape[0] % check_count(groups, "groups"):
        raise ValueError(f"groups must divide the {shape[0]} output channels, got {groups}")
    unit, scale = split_scale(kernel.double().flatten(1))
    return unit.view(shape), scale


def _checked(
    kernel: Tensor,
    input_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    groups: int,
    padding_mode: PaddingMode,
    transposed: bool,
    output_padding: int | Sequence[int],
) -> _Convolution:
    unit, scale = _checked_kernel(kernel, groups)
    axes = kernel.ndim - 2
    size = _per_axis(input_size, "input_size", axes)
    strides = _per_axis(stride, "stride", axes)
    dilations = _per_axis(dilation, "dilation", axes)
    extras = _per_axis(output_padding, "output_padding", axes, least=0)
    extents = [d * (taps - 1) + 1 for d, taps in zip(dilations, kernel.shape[2:], strict=True)]
    if padding_mode not in _PAD_MODES:
        raise ValueError(
            f"padding_mode must be one of {', '.join(_PAD_MODES)}, got {padding_mode!r}"
        )
    pads = _pads(padding, strides, extents)
    if check_bool(transposed, "transposed"):
        _check_transposed(padding, padding_mode, extras, strides, dilations)
        outputs, size = size, _transposed_size(size, strides, pads, extents, extras)
    else:
        if any(extras):
            raise ValueError(f"output_padding needs transposed=True, got {output_padding}")
        _check_reach(size, pads, extents, padding_mode)
        room = [
            length + sum(pad) - extent
            for length, pad, extent in zip(size, pads, extents, strict=True)
        ]
        outputs = tuple(left // step + 1 for left, step in zip(room, strides, strict=True))
    return _Convolution(unit, scale, size, outputs, strides, pads, dilations, groups, padding_mode)


def _pads(
    padding: Padding, strides: Sequence[int], extents: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    if padding == "same":
        if any(step != 1 for step in strides):
            raise ValueError(f"padding='same' needs stride 1, got {strides[0]}")
        return tuple(((extent - 1) // 2, extent // 2) for extent in extents)
    if isinstance(padding, str) and padding != "valid":
        raise ValueError(f"padding must be integers, 'same' or 'valid', got {padding!r}")
    both = 0 if isinstance(padding, str) else padding
    return tuple((one, one) for one in _per_axis(both, "padding", len(extents), least=0))


def _check_reach(
    size: Sequence[int],
    pads: Sequence[tuple[int, int]],
    extents: Sequence[int],
    padding_mode: PaddingMode,
) -> None:
    widest = {"zeros": math.inf, "replicate": math.inf, "reflect": -1, "circular": 0}[padding_mode]
    for axis, (length, pad, extent) in enumerate(zip(size, pads, extents, strict=True)):
        if max(pad) > length + widest:
            raise ValueError(
                f"padding must be at most {length + widest} on axis {axis} for an input of "
                f"{length} with padding_mode={padding_mode!r}, got {max(pad)}"
            )
        if length + sum(pad) < extent:
            raise ValueError(
                f"input_size must reach the extent {extent} of the kernel on axis {axis}, "
                f"got {length} + {sum(pad)} padding"
            )


def _check_transposed(
    padding: Padding,
    padding_mode: PaddingMode,
    extras: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> None:
    if isinstance(padding, str) or padding_mode != "zeros":
        raise ValueError(
            "a transposed convolution has integers as padding and padding_mode='zeros', "
            f"got {padding!r} and {padding_mode!r}"
        )
    for extra, stride, dilation in zip(extras, strides, dilations, strict=True):
        if extra >= max(stride, dilation):
            raise ValueError(
                "output_padding must be smaller than stride or dilation, "
                f"got {extra} with {stride} and {dilation}"
            )


def _transposed_size(
    size: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    extents: Sequence[int],
    extras: Sequence[int],
) -> tuple[int, ...]:
    """Size of what a transposed convolution returns: the input of the convolution."""
    large = tuple(
        (length - 1) * stride - sum(pad) + extent + extra
        for length, stride, pad, extent, extra in zip(
            size, strides, pads, extents, extras, strict=True
        )
    )
    if min(large) < 1:
        raise ValueError(f"padding {tuple(pads)} leaves an output of size {large}, of none")
    return large
