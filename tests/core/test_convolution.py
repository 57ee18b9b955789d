"""The norm of a convolution against the SVD of its dense matrix, for every option."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck

from lipbook.convolution import (
    circular_conv_spectral_norm,
    conv_matrix,
    conv_norm_bounds,
    conv_spectral_norm,
)

MODES = ("zeros", "reflect", "replicate", "circular")


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_norm(kernel: torch.Tensor, *args, **options) -> torch.Tensor:
    return torch.linalg.matrix_norm(conv_matrix(kernel, *args, **options), 2)


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
    (grad,) = torch.autograd.grad(sigma.square(), kernel, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


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


def test_own_refusals():
    with pytest.raises(ValueError, match="rtol must be a finite number above 0, got 0"):
        conv_spectral_norm(K, 5, rtol=0)
    with pytest.raises(ValueError, match="oversampling must be at least 3, got 2"):
        conv_norm_bounds(K, 5, oversampling=2)
    with pytest.raises(ValueError, match="dilation must be one integer or 2"):
        circular_conv_spectral_norm(K, 5, dilation=(1, 1, 1))
