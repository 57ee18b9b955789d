"""The norm of a convolution against the SVD of its dense matrix, for every option."""

from __future__ import annotations

import gc
import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from lipbook.convolution import (
    circular_conv_spectral_norm,
    conv_matrix,
    conv_norm_bounds,
    conv_spectral_norm,
)
from lipbook.power_iteration import random_start

MODES = ("zeros", "reflect", "replicate", "circular")


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_norm(kernel: torch.Tensor, *args, **options) -> torch.Tensor:
    return torch.linalg.matrix_norm(conv_matrix(kernel, *args, **options), 2)


def _pair(value):
    return value if isinstance(value, tuple) else (value, value)


def _living(least: int) -> int:
    """Entries of all tensors of at least this size that are alive, each storage counted once."""
    storages = {}
    for one in gc.get_objects():
        if type(one) is torch.Tensor and one.numel() >= least:
            storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return sum(storages.values()) // 4


COMBINATIONS = [
    (mode, stride, padding, dilation, groups)
    for mode, stride, padding, dilation, groups in itertools.product(
        MODES, (1, 2, (2, 1)), (0, 1, (2, 1), "same", "valid"), (1, 2, (1, 2)), (1, 2)
    )
    if padding != "same" or stride == 1
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("mode", MODES)
def test_every_combination_against_the_dense_matrix(mode):
    """The matrix is torch's own layer, the norm its largest singular value, inside the bounds."""
    for _, stride, padding, dilation, groups in (c for c in COMBINATIONS if c[0] == mode):
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        layer = nn.Conv2d(4, 2, (3, 2), bias=False, padding_mode=mode, **options).double()
        kernel, size = layer.weight.detach(), (6, 5)
        matrix = conv_matrix(kernel, size, padding_mode=mode, **options)
        images = gaussian(3, 4, *size)
        expected = layer(images).flatten(1)
        torch.testing.assert_close(images.flatten(1) @ matrix.T, expected)
        exact = torch.linalg.matrix_norm(matrix, 2)
        sigma = conv_spectral_norm(kernel, size, padding_mode=mode, **options)
        torch.testing.assert_close(sigma, exact, rtol=1e-6, atol=0)
        lower, upper = conv_norm_bounds(kernel, size, padding_mode=mode, **options)
        assert lower <= exact <= upper, options


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    axes=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)),
    data=st.data(),
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 2**31),
    sign=st.booleans(),
)
def test_bounds_bracket_the_dense_matrix(axes, channels, data, mode, seed, sign):
    largest = {1: 9, 2: 5, 3: 3}[axes]
    draw = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(axes))  # noqa: E731
    size, taps = draw(1, largest), draw(1, 4 if axes < 3 else 3)
    stride, dilation, padding = draw(1, 3), draw(1, 2), draw(0, 4 if axes < 3 else 1)
    for length, k, pad, step in zip(size, taps, padding, dilation, strict=True):
        assume(length + 2 * pad > step * (k - 1))
        assume(mode != "reflect" or pad < length)
        assume(mode != "circular" or pad <= length)
    out, within, groups = channels
    kernel = gaussian(out * groups, within, *taps, seed=seed)
    kernel = kernel.abs() if sign else kernel  # the all-positive kernel meets the upper bounds
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "padding_mode": mode,
    }
    exact = dense_norm(kernel, size, **options)
    lower, upper = conv_norm_bounds(kernel, size, **options)
    assert lower <= exact <= upper
    sigma = conv_spectral_norm(kernel, size, **options)
    torch.testing.assert_close(sigma, exact, rtol=1e-6, atol=1e-12)


TRANSPOSED = [
    (stride, padding, extra, dilation, groups)
    for stride, padding, extra, dilation, groups in itertools.product(
        (1, 2, (2, 3)), (0, 1, (2, 1)), (0, 1, (1, 2)), (1, 2, (1, 3)), (1, 2)
    )
    if all(
        one < max(step, spread)
        for one, step, spread in zip(*map(_pair, (extra, stride, dilation)), strict=True)
    )
]


def test_every_transposed_combination_against_the_dense_matrix():
    for stride, padding, extra, dilation, groups in TRANSPOSED:
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        options["output_padding"] = extra
        layer = nn.ConvTranspose2d(4, 2, (3, 2), bias=False, **options).double()
        kernel, size = layer.weight.detach(), (4, 3)
        matrix = conv_matrix(kernel, size, transposed=True, **options)
        images = gaussian(3, 4, *size)
        torch.testing.assert_close(images.flatten(1) @ matrix.T, layer(images).flatten(1))
        exact = torch.linalg.matrix_norm(matrix, 2)
        sigma = conv_spectral_norm(kernel, size, transposed=True, **options)
        torch.testing.assert_close(sigma, exact, rtol=1e-6, atol=0)
        lower, upper = conv_norm_bounds(kernel, size, transposed=True, **options)
        assert lower <= exact <= upper, options


@pytest.mark.parametrize("layer", [nn.ConvTranspose1d, nn.ConvTranspose3d])
def test_transposed_in_one_and_three_axes(layer):
    kernel = gaussian(3, 2, *(3,) * (1 if layer is nn.ConvTranspose1d else 3)).requires_grad_()
    options = {"stride": 2, "padding": 1, "output_padding": 1, "transposed": True}
    exact = dense_norm(kernel, 3, **options)
    sigma = conv_spectral_norm(kernel, 3, rtol=1e-12, **options)
    torch.testing.assert_close(sigma, exact)
    torch.testing.assert_close(*(torch.autograd.grad(n, kernel)[0] for n in (sigma, exact)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("size", "options"),
    [
        (7, {"padding": 1}),
        (7, {"padding": 1, "stride": 2}),
        (6, {"padding": "same", "padding_mode": "reflect"}),
        (8, {"padding": 2, "padding_mode": "circular", "groups": 2}),
        (4, {"padding": 1, "stride": 2, "output_padding": 1, "transposed": True}),
    ],
)
def test_without_a_basis(size, options, dtype, monkeypatch):
    """As for images too large to keep a basis of; the gradient is from steps gone twice."""
    monkeypatch.setattr("lipbook.convolution._SMALL", 0)
    kernel = gaussian(4, 4 // options.get("groups", 1), 3, 3).to(dtype).requires_grad_()
    exact = dense_norm(kernel.double(), size, **options)
    sigma = conv_spectral_norm(kernel, size, **options)
    torch.testing.assert_close(sigma.double(), exact, rtol=1e-6, atol=0)
    gradients = (torch.autograd.grad(n, kernel)[0] for n in (sigma, exact))
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("n", [4, 1100])
def test_a_direction_that_the_fixed_start_misses_is_found(n):
    """With a basis and without: 1 before, for a kernel whose certain lower bound is 10."""
    start = random_start(n, like=torch.empty(0, dtype=torch.float64))
    missed = torch.zeros(n, dtype=torch.float64)
    missed[:2] = torch.stack([start[1], -start[0]]) / start[:2].norm()
    kernel = (torch.eye(n).double() + 9 * missed.outer(missed))[:, :, None].requires_grad_()
    norm = conv_spectral_norm(kernel, 1)
    assert norm.item() == pytest.approx(10, rel=1e-6)
    (gradient,) = torch.autograd.grad(norm, kernel)
    torch.testing.assert_close(gradient[:, :, 0], missed.outer(missed), rtol=0, atol=1e-3)


def test_memory_does_not_grow_with_the_steps():
    """No more than a few images are alive at the end of a step, however many were taken."""
    image = 8 * 32 * 32
    kernel = gaussian(8, 8, 3, 3).float()
    steps, alive = itertools.count(), []

    class Looking(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.convolution.default and next(steps) % 16 == 0:
                alive.append(_living(image))
            return function(*args, **(kwargs or {}))

    before = _living(image)
    with Looking():
        conv_spectral_norm(kernel, 32, padding=1)
    assert len(alive) > 2
    assert max(alive) - before <= 6 * image


def test_strided_bounds_see_the_stride():
    """Within 15 %, where the kernel without its stride says 54 % more."""
    for shape, size in (((64, 3, 5, 5), 32), ((8, 8, 3, 3), 16), ((16, 4, 4, 4), 16)):
        kernel = gaussian(*shape)
        options = {"stride": 2, "padding": shape[-1] // 2}
        sigma = conv_spectral_norm(kernel, size, **options)
        assert sigma <= conv_norm_bounds(kernel, size, **options).upper <= 1.15 * sigma


def test_bounds_with_many_channels_are_those_with_few(monkeypatch):
    """From Cholesky factors in float32, and with every frequency decomposed in float64."""
    for shape, options in (
        ((70, 66, 3, 3), {"padding": 1}),
        ((66, 70, 3, 2), {"stride": 2}),
        ((140, 66, 3), {"groups": 2, "dilation": 2, "padding_mode": "circular", "padding": 1}),
    ):
        kernel = gaussian(*shape)
        lower, upper = conv_norm_bounds(kernel, 6, **options)
        with monkeypatch.context() as patch:
            patch.setattr("lipbook.convolution._EASY", 1000)
            expected = conv_norm_bounds(kernel, 6, **options)
        assert lower == expected.lower
        assert expected.upper <= upper <= 1.001 * expected.upper
    zero = torch.zeros(70, 70, 3, 3)
    assert conv_norm_bounds(zero, 6) == (0, 0)


def test_any_grad_mode():
    kernel = gaussian(4, 4, 3, 3).requires_grad_()
    for call in (
        lambda: conv_spectral_norm(kernel, 20, padding=1),
        lambda: conv_spectral_norm(kernel, 5, padding=1, padding_mode="reflect"),
        lambda: conv_norm_bounds(kernel, 6).upper,
        lambda: circular_conv_spectral_norm(kernel, 6),
        lambda: conv_matrix(kernel, 4),
    ):
        value = call()
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                torch.testing.assert_close(call(), value.detach(), rtol=1e-12, atol=0)


def test_bounds_are_attained():
    """A window as large as the input: ‖R‖ below and above; a large input: the symbol's maximum."""
    kernel = gaussian(3, 2, 3, 3)
    lower, upper = conv_norm_bounds(kernel, 3)
    torch.testing.assert_close(upper, lower)
    blocks = conv_norm_bounds(kernel, 12, stride=3)
    torch.testing.assert_close(blocks.upper, blocks.lower)
    smooth = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    fine = conv_norm_bounds(smooth, 40, padding=1, oversampling=64).upper
    assert dense_norm(torch.ones(1, 1, 3, dtype=torch.float64), 40, padding=1) ** 2 > 0.99 * fine


def test_symbol_is_tighter_than_counting():
    kernel = gaussian(8, 8, 3, 3)
    upper = conv_norm_bounds(kernel, 16, padding=1).upper
    reshaped = torch.linalg.matrix_norm(kernel.flatten(1), 2)
    assert upper < 0.75 * 3 * reshaped


def test_reshaped_kernel_is_not_the_operator():
    """PI7: the all-ones 3×3 kernel on 8×8 has norm 8.29, its reshape 3."""
    ones = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    toeplitz = 1 + 2 * math.cos(math.pi / 9)  # eigenvalues of the tridiagonal all-ones matrix
    sigma = conv_spectral_norm(ones, 8, padding=1)
    assert sigma.item() == pytest.approx(toeplitz**2, rel=1e-6)
    assert torch.linalg.matrix_norm(ones.flatten(1), 2).item() == pytest.approx(3)


@pytest.mark.parametrize(
    ("width", "stride", "limit"), [(3, 1, 3), (3, 3, 1), (3, 2, 5 / 3), (5, 2, 13 / 5)]
)
def test_ones_approach_the_square_root_bound_only_if_the_stride_divides(width, stride, limit):
    """PI7: their norm over the kernel's, from the symbol of the product with the adjoint."""
    ones = torch.ones(1, 1, width, width, dtype=torch.float64)
    sigma = conv_spectral_norm(ones, 63, stride=stride, padding=width // 2)
    assert sigma.item() / width == pytest.approx(limit, rel=0.01)
    assert sigma.item() / width < limit + 1e-6


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [(5, 6), (7,), (3, 4, 3), (2, 2)])
def test_fourier_norm_is_the_circular_one(size, dilation, groups):
    kernel = gaussian(4, 2, *(3,) * len(size))
    norm = circular_conv_spectral_norm(kernel, size, dilation=dilation, groups=groups)
    if min(size) >= dilation:  # torch pads circularly by one period at most
        exact = dense_norm(
            kernel,
            size,
            padding=dilation,
            dilation=dilation,
            groups=groups,
            padding_mode="circular",
        )
        torch.testing.assert_close(norm, exact)
    assert gradcheck(
        lambda k: circular_conv_spectral_norm(k, size, dilation=dilation, groups=groups),
        kernel.requires_grad_(),
    )


def test_fourier_norm_is_no_bound_for_zero_padding():
    kernel = torch.tensor([[[1.0, -1.0, 1.0]]], dtype=torch.float64)
    assert circular_conv_spectral_norm(kernel, 3).item() == pytest.approx(2)
    assert conv_spectral_norm(kernel, 3, padding=1).item() == pytest.approx(1 + math.sqrt(2))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "same", "padding_mode": "reflect"},
        {"padding": (1, 2), "stride": 2, "padding_mode": "circular", "groups": 2},
        {"padding": 2, "dilation": 2, "padding_mode": "replicate"},
    ],
)
def test_gradient(options):
    kernel = gaussian(2, 2 // options.get("groups", 1), 3, 3).requires_grad_()
    assert gradcheck(lambda k: conv_spectral_norm(k, (5, 6), rtol=1e-12, **options), kernel)
    dense = torch.autograd.grad(dense_norm(kernel, (5, 6), **options), kernel)[0]
    ours = torch.autograd.grad(conv_spectral_norm(kernel, (5, 6), rtol=1e-12, **options), kernel)
    torch.testing.assert_close(ours[0], dense)


def test_second_derivative_is_refused():
    kernel = gaussian(2, 2, 3).requires_grad_()
    sigma = conv_spectral_norm(kernel, 6)
    for loss in (sigma, sigma.square(), sigma + kernel.square().sum()):
        (grad,) = torch.autograd.grad(loss, kernel, create_graph=True, retain_graph=True)
        with pytest.raises(RuntimeError, match="differentiated once only; the induced norm of"):
            torch.autograd.grad(grad.sum(), kernel)


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        (torch.float32, 1e30),
        (torch.float32, 1e-30),
        (torch.float64, 1e200),
        (torch.float64, 1e-200),
    ],
)
def test_scales(dtype, factor):
    kernel = gaussian(3, 2, 3, 3)
    scaled = (kernel * factor).to(dtype)
    expected = (conv_spectral_norm(kernel, 5) * factor).to(dtype)
    torch.testing.assert_close(conv_spectral_norm(scaled, 5), expected, rtol=1e-6, atol=0)
    lower, upper = conv_norm_bounds(scaled, 5)
    assert lower <= expected <= upper
    circular = (circular_conv_spectral_norm(kernel, 5) * factor).to(dtype)
    torch.testing.assert_close(circular_conv_spectral_norm(scaled, 5), circular, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_and_views(dtype):
    kernel = gaussian(2, 3, 3, 4).to(dtype).permute(3, 1, 2, 0)
    assert not kernel.is_contiguous()
    sigma = conv_spectral_norm(kernel, 6)
    assert sigma.dtype == dtype
    expected = conv_spectral_norm(kernel.double(), 6).to(dtype)
    torch.testing.assert_close(sigma, expected, rtol=max(1e-6, torch.finfo(dtype).eps), atol=0)
    assert circular_conv_spectral_norm(kernel, 6).dtype == dtype
    assert conv_matrix(kernel, (4, 3)).dtype == dtype


def test_the_imaginary_part_of_a_conjugate():
    kernel = gaussian(3, 2, 3, 3)
    part = torch.complex(kernel, -kernel).conj().imag.requires_grad_()
    assert part.is_neg()
    expected = conv_spectral_norm(kernel.requires_grad_(), 6)
    torch.testing.assert_close(conv_spectral_norm(part, 6), expected)
    found = torch.autograd.grad(conv_spectral_norm(part, 6), part)[0]
    torch.testing.assert_close(found, torch.autograd.grad(expected, kernel)[0])


def test_zero_kernel():
    kernel = torch.zeros(2, 2, 3, 3, requires_grad=True)
    sigma = conv_spectral_norm(kernel, 5)
    assert sigma == 0
    assert not torch.isnan(torch.autograd.grad(sigma, kernel)[0]).any()
    assert conv_spectral_norm(kernel, 5, stride=3) == 0
    assert conv_norm_bounds(kernel, 5) == (0, 0)
    assert circular_conv_spectral_norm(kernel, 5) == 0


def test_random_state_is_untouched():
    before = torch.get_rng_state()
    conv_spectral_norm(gaussian(2, 2, 3), 9)
    assert torch.equal(torch.get_rng_state(), before)


K = torch.ones(2, 2, 3, 3)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        (([1.0], 5), {}, TypeError, "kernel must be a torch.Tensor, got list"),
        ((K.int(), 5), {}, TypeError, "kernel must have a real floating-point dtype"),
        ((K * math.nan, 5), {}, ValueError, "kernel must be finite, got nan"),
        ((K[:0], 5), {}, ValueError, "kernel must not be empty"),
        ((K[0, 0], 5), {}, ValueError, r"kernel must have 3 to 5 axes .* got shape \(3, 3\)"),
        ((K, 2), {}, ValueError, r"reach the extent 3 of the kernel on axis 0, got 2 \+ 0"),
        ((K, (5, 4)), {"dilation": 2}, ValueError, r"extent 5 of the kernel on axis 1, got 4"),
        ((K, (5,)), {}, ValueError, r"input_size must be one integer or 2, got \(5,\)"),
        ((K, 0), {}, ValueError, "input_size must be at least 1, got 0"),
        ((K, 5.0), {}, TypeError, "input_size must be an integer"),
        ((K, 5), {"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ((K, 5), {"dilation": (1, 0)}, ValueError, "dilation must be at least 1, got 0"),
        ((K, 5), {"groups": 3}, ValueError, "groups must divide the 2 output channels, got 3"),
        ((K, 5), {"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ((K, 5), {"padding": "full"}, ValueError, "'same' or 'valid', got 'full'"),
        ((K, 5), {"padding": "same", "stride": 2}, ValueError, "'same' needs stride 1, got 2"),
        ((K, 5), {"padding_mode": "wrap"}, ValueError, "padding_mode must be one of .*'wrap'"),
        (
            (K, 3),
            {"padding": 3, "padding_mode": "reflect"},
            ValueError,
            "padding must be at most 2",
        ),
        ((K, 3), {"padding": 4, "padding_mode": "circular"}, ValueError, "must be at most 3"),
    ],
)
def test_refusals(args, options, error, message):
    for function in (conv_spectral_norm, conv_norm_bounds, conv_matrix):
        with pytest.raises(error, match=message):
            function(*args, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_padding": 1}, "output_padding must be smaller than stride or dilation, got 1"),
        ({"padding": "same"}, "a transposed convolution has integers as padding"),
        ({"padding_mode": "reflect"}, "and padding_mode='zeros', got 0 and 'reflect'"),
        ({"padding": 4}, "leaves an output of size"),
        ({"transposed": False, "output_padding": 1}, "output_padding needs transposed=True, got 1"),
    ],
)
def test_refused_transposed(options, message):
    for function in (conv_spectral_norm, conv_norm_bounds, conv_matrix):
        with pytest.raises(ValueError, match=message):
            function(K, 3, **{"transposed": True, **options})


def test_own_refusals():
    with pytest.raises(ValueError, match="rtol must be a finite number above 0, got 0"):
        conv_spectral_norm(K, 5, rtol=0)
    with pytest.raises(ValueError, match="oversampling must be at least 3, got 2"):
        conv_norm_bounds(K, 5, oversampling=2)
    with pytest.raises(ValueError, match="dilation must be one integer or 2"):
        circular_conv_spectral_norm(K, 5, dilation=(1, 1, 1))


def test_torch_func_is_told_what_it_can_transform():
    kernel = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    with pytest.raises(RuntimeError, match=r"torch\.func cannot transform .* conv_matrix"):
        torch.func.grad(lambda k: conv_spectral_norm(k, 5))(kernel)
    found = torch.func.grad(lambda k: torch.linalg.matrix_norm(conv_matrix(k, 5), 2))(kernel)
    (expected,) = torch.autograd.grad(conv_spectral_norm(kernel.requires_grad_(), 5), kernel)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
