"""Chapter 3: the spectral norm of a convolution, which is not the one of its kernel (PI7).

A convolution layer is a linear map from images to images. `conv_spectral_norm` is the norm of
that map, `conv_norm_bounds` brackets it from the kernel alone, `circular_conv_spectral_norm` is
the FFT's answer to a neighbouring question, and `conv_matrix` writes the map out for study.

Kernels have torch's layout ``(out, in / groups, *kernel_size)`` with one, two or three spatial
axes; the options mean what they mean in ``torch.nn.Conv1d``, ``Conv2d`` and ``Conv3d``. Values
are computed in float64 and returned in the dtype of the kernel; only the many products of
`conv_spectral_norm` that look for the top vector are done in float32 for a kernel in float32 or
narrower, with TF32 switched off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lipbook._checks import check_count, check_positive, check_tensor
from lipbook.matrix_norms import split_scale
from lipbook.power_iteration import NormBounds, first_order, golub_kahan_lanczos, random_start

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Padding = int | Sequence[int] | Literal["same", "valid"]

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
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    mode: PaddingMode

    def __call__(self, images: Tensor, kernel: Tensor | None = None) -> Tensor:
        """Convolve images of shape (batch, in, *size)."""
        if any(any(pad) for pad in self.pads):
            last_axis_first = [end for pad in reversed(self.pads) for end in pad]
            images = F.pad(images, last_axis_first, mode=_PAD_MODES[self.mode])
        convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[len(self.size) - 1]
        return convolve(
            images,
            self.kernel if kernel is None else kernel,
            stride=self.stride,
            dilation=self.dilation,
            groups=self.groups,
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.kernel.shape[1] * self.groups, *self.size)

    def padded(self, axis: int) -> Tensor:
        """Input cell behind each cell of the padded axis, -1 for a padded zero."""
        cells = torch.arange(self.size[axis], dtype=torch.float64)[None]
        value = -1.0 if self.mode == "zeros" else None
        return F.pad(cells, self.pads[axis], _PAD_MODES[self.mode], value)[0].long()

    def windows(self, axis: int) -> Tensor:
        """Input cell that each tap of each output reads, shape (outputs, taps)."""
        extent = self.dilation[axis] * (self.kernel.shape[2 + axis] - 1) + 1
        windows = self.padded(axis).unfold(0, extent, self.stride[axis])
        return windows[:, :: self.dilation[axis]]

    def copies(self, axis: int) -> int:
        """Square of the factor by which the norm may exceed the one on the infinite axis."""
        if self.mode == "circular":
            starts = self.stride[axis] * torch.arange(len(self.windows(axis)))
            return _most_repeated(starts % self.size[axis])
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
    rtol: float = 1e-6,
) -> Tensor:
    r"""Compute the operator norm of a convolution, the smallest C of (6) for that layer.

    Golub–Kahan–Lanczos (`golub_kahan_lanczos`) on products with the convolution itself and with
    its adjoint by autograd, so that every option is the one torch computes. With groups the map
    is block-diagonal, and its norm is the largest of the blocks'.

    Parameters
    ----------
    kernel : Tensor, shape (out, in / groups, *kernel_size)
        One to three spatial axes; floating point, finite, not empty.
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
    rtol : float, default 1e-6
        Relative accuracy, with the probability that `golub_kahan_lanczos` states; the start is
        fixed, so the result is deterministic.

    Returns
    -------
    Tensor, shape ()
        In the dtype of `kernel`, and differentiable once: with the top singular vectors u and v
        taken for constants, the gradient is that of ``⟨u, conv(v)⟩``.

    Raises
    ------
    TypeError
        If `kernel` is no floating-point tensor, or a size or option no integer.
    ValueError
        If the kernel is empty or not finite, or an option does not fit it or `input_size`.

    Examples
    --------
    >>> ones = torch.ones(1, 1, 3, 3)
    >>> conv_spectral_norm(ones, 8, padding=1)  # the reshaped kernel has norm 3
    tensor(8.2909)
    >>> conv_spectral_norm(ones, 2)
    Traceback (most recent call last):
    ValueError: input_size must reach the extent 3 of the kernel on axis 0, got 2 + 0 padding
    """
    check_positive(rtol, "rtol")
    conv = _checked(kernel, input_size, stride, padding, dilation, groups, padding_mode)
    working = torch.float64 if kernel.dtype == torch.float64 else torch.float32
    searched = conv._replace(kernel=conv.kernel.detach().to(working))
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        top = _top_image(searched, rtol).double()
    length = torch.linalg.vector_norm(top)
    top = top / torch.where(length > 0, length, 1.0)
    sigma: Tensor = torch.linalg.vector_norm(conv(top, first_order(conv.kernel)))
    return (sigma * conv.scale).to(kernel.dtype)


def conv_norm_bounds(
    kernel: Tensor,
    input_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
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
    :math:`F(ω) = \sum_j K_j e^{-i⟨ω, j⟩}` (Araujo et al. 2021); stride drops outputs, and
    dilation stretches ω. Circular padding sees some of these ω, and as often as an output is
    repeated; reflect and replicate padding is a copying of cells, with its own count, followed by
    an unpadded convolution. For constant x, ``‖F(ω)x‖²`` is a trigonometric polynomial of degree
    k - 1 in each axis, and its maximum is at most the one over N equispaced points divided by
    cos(π(k-1)/N) (Ehlich & Zeller 1964), so a finite grid suffices.

    Parameters
    ----------
    kernel, input_size, stride, padding, dilation, groups, padding_mode
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
        As `conv_spectral_norm`, or if `oversampling` is no integer of at least 3.

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
    conv = _checked(kernel, input_size, stride, padding, dilation, groups, padding_mode)
    conv = conv._replace(kernel=conv.kernel.detach())
    axes = range(len(conv.size))
    windows = [conv.windows(axis) for axis in axes]
    by_counting = _norm_per_group(conv.kernel.flatten(2), conv.groups) * math.sqrt(
        math.prod(_most_repeated(window[window >= 0]) for window in windows)
    )
    degrees = [taps - 1 for taps in conv.kernel.shape[2:]]
    grid = [max(1, oversampling * degree) for degree in degrees]
    loss = math.cos(math.pi / oversampling) ** sum(degree > 0 for degree in degrees)
    by_symbol = _symbol_norm(conv.kernel, grid, groups=conv.groups) * math.sqrt(
        math.prod(conv.copies(axis) for axis in axes) / loss
    )
    window_map = conv.kernel
    for window in windows:
        fullest = max(window, key=lambda cells: len(cells[cells >= 0].unique()))
        distinct = fullest[fullest >= 0].unique()
        read = (fullest[:, None] == distinct).to(window_map)
        window_map = torch.tensordot(window_map, read, dims=([2], [0]))  # rotates the axes
    slack = 1e-10  # of float64 arithmetic on sums of this length, with a wide margin
    lower = _norm_per_group(window_map.flatten(2), conv.groups) * (1 - slack)
    upper = torch.minimum(by_counting, by_symbol) * (1 + slack)
    return NormBounds(lower * conv.scale, upper * conv.scale)


def circular_conv_spectral_norm(
    kernel: Tensor,
    input_size: int | Sequence[int],
    *,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    r"""Compute the norm of a circular convolution with stride 1, by Fourier transform.

    The transform makes the map block-diagonal with the blocks :math:`F(2πm/N)`, so the largest
    of their norms is exact (Sedghi et al. 2019). It is *not* an upper bound of the convolution
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
    >>> circular_conv_spectral_norm(kernel, 3), conv_spectral_norm(kernel, 3, padding=1)
    (tensor(2.), tensor(2.4142))
    >>> circular_conv_spectral_norm(kernel, 0)
    Traceback (most recent call last):
    ValueError: input_size must be at least 1, got 0
    """
    unit, scale = _checked_kernel(kernel, groups)
    axes = kernel.ndim - 2
    size = _per_axis(input_size, "input_size", axes)
    dilations = _per_axis(dilation, "dilation", axes)
    return (_symbol_norm(unit, size, dilations, groups) * scale).to(kernel.dtype)


def conv_matrix(
    kernel: Tensor,
    input_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
) -> Tensor:
    """Write a convolution out as the matrix it is, for study: small inputs only.

    Parameters
    ----------
    kernel, input_size, stride, padding, dilation, groups, padding_mode
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
    ValueError: kernel must have 3 to 5 axes (out, in / groups, *kernel_size), got shape (1, 2)
    """
    conv = _checked(kernel, input_size, stride, padding, dilation, groups, padding_mode)
    pixels = math.prod(conv.input_shape)
    images = torch.eye(pixels, dtype=torch.float64, device=kernel.device)
    columns = conv(images.reshape(pixels, *conv.input_shape)).flatten(1)
    return (columns.T * conv.scale).to(kernel.dtype)


def _top_image(conv: _Convolution, rtol: float) -> Tensor:
    """Find the top right singular vector, up to its length; shape (1, in, *size)."""
    image = conv.kernel.new_zeros(1, *conv.input_shape)

    def forward(x: Tensor) -> Tensor:
        return conv(x.view_as(image)).flatten()

    with torch.enable_grad():
        point = image.flatten().requires_grad_()
        output = forward(point)

    def adjoint(y: Tensor) -> Tensor:
        return torch.autograd.grad(output, point, y, retain_graph=True)[0]

    if image.numel() <= output.numel():
        start = random_start(image.numel(), like=image)
        return golub_kahan_lanczos(forward, adjoint, start, rtol=rtol).right.view_as(image)
    start = random_start(output.numel(), like=image)
    left = golub_kahan_lanczos(adjoint, forward, start, rtol=rtol).right
    return adjoint(left).view_as(image)


def _norm_per_group(reshaped: Tensor, groups: int) -> Tensor:
    """Largest spectral norm of the groups' (out, in · taps) matrices."""
    blocks = reshaped.reshape(groups, reshaped.shape[0] // groups, -1)
    norms: Tensor = torch.linalg.matrix_norm(blocks, 2)
    return norms.amax()


def _symbol_norm(
    kernel: Tensor, grid: Sequence[int], dilation: Sequence[int] | None = None, groups: int = 1
) -> Tensor:
    """Largest ``‖F(2πm / grid)‖`` over all m and groups."""
    symbol = kernel.to(torch.complex128)
    for axis, points in enumerate(grid):
        # F(-ω) is the conjugate of F(ω): half of the first axis is enough.
        frequencies = torch.arange(points // 2 + 1 if axis == 0 else points)
        taps = torch.arange(kernel.shape[2 + axis]) * (dilation[axis] if dilation else 1)
        phases = 2 * math.pi / points * (taps[:, None] * frequencies % points)
        waves = torch.polar(torch.ones_like(phases), -phases).to(symbol)
        symbol = torch.tensordot(symbol, waves, dims=([2], [0]))  # rotates the axes
    blocks = symbol.flatten(2).movedim(2, 0)
    blocks = blocks.reshape(len(blocks), groups, -1, kernel.shape[1])
    norms: Tensor = torch.linalg.matrix_norm(blocks, 2)
    return norms.amax()


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
) -> _Convolution:
    unit, scale = _checked_kernel(kernel, groups)
    axes = kernel.ndim - 2
    size = _per_axis(input_size, "input_size", axes)
    strides = _per_axis(stride, "stride", axes)
    dilations = _per_axis(dilation, "dilation", axes)
    if padding_mode not in _PAD_MODES:
        raise ValueError(
            f"padding_mode must be one of {', '.join(_PAD_MODES)}, got {padding_mode!r}"
        )
    extents = [d * (taps - 1) + 1 for d, taps in zip(dilations, kernel.shape[2:], strict=True)]
    if padding == "same":
        if any(step != 1 for step in strides):
            raise ValueError(f"padding='same' needs stride 1, got {stride}")
        pads = tuple(((extent - 1) // 2, extent // 2) for extent in extents)
    elif isinstance(padding, str) and padding != "valid":
        raise ValueError(f"padding must be integers, 'same' or 'valid', got {padding!r}")
    else:
        both = _per_axis(0 if padding == "valid" else padding, "padding", axes, least=0)
        pads = tuple((one, one) for one in both)
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
    return _Convolution(unit, scale, size, strides, pads, dilations, groups, padding_mode)
