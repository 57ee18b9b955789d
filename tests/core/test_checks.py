from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbook import (
    activation_constant,
    conv_matrix,
    conv_norm_bounds,
    conv_spectral_norm,
    difference_quotients,
    exact_lipschitz,
    frobenius_norm,
    gradient_penalty,
    induced_norm,
    input_gradient_penalty,
    jacobian_norms,
    l2_attack,
    layer_product_bound,
    lipschitz_certificate,
    lower_bound_from_pairs,
    maximize_jacobian_norm,
    power_iteration,
    r1_penalty,
    spectral_norm,
    spectral_norm_bounds,
    stable_rank,
)
from lipbook._checks import check_count, check_positive, check_tensor

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def gradient_penalty_of(real: torch.Tensor) -> torch.Tensor:
    return gradient_penalty(torch.nn.Linear(3, 1), real, real)


NUMPY = (np.float64, np.float32, np.float16, np.int64, np.int8)


LABELS = torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: conv_norm_bounds(x[:, None], 4).upper,
        lambda x: lower_bound_from_pairs(torch.sin, x),
        lambda x: maximize_jacobian_norm(torch.sin, x).point,
        lambda x: l2_attack(torch.sin, x, LABELS, 0.1),
        lambda x: input_gradient_penalty(torch.sin, x, LABELS),
        lambda x: r1_penalty(lambda y: y.sum(1), x),
        lambda x: x * activation_constant(torch.nn.GELU()),
        lambda x: x * lipschitz_certificate(torch.nn.GELU(), (2,)).value,
        spectral_norm,
    ],
)
def test_what_vmap_cannot_transform_says_so(function):
    with pytest.raises(RuntimeError, match=r"torch\.func cannot transform .*; "):
        torch.func.vmap(function)(torch.randn(3, 4, 2))


def test_rows_that_are_equal_are_named_under_vmap_too():
    x = torch.arange(24.0).view(3, 4, 2)
    y = x + 1
    y[1, 2] = x[1, 2]
    with pytest.raises(ValueError, match="must differ in every row, row 2 is the same"):
        torch.func.vmap(lambda a, b: difference_quotients(torch.sin, a, b))(x, y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(torch.ones(2, 3), id="plain"),
        pytest.param(torch.ones(6, 6).t()[::2, 1::3], id="non-contiguous"),
        pytest.param(torch.ones(1, 1).expand(4, 4), id="expanded"),
        pytest.param(torch.ones(2, 3, requires_grad=True), id="requires_grad"),
    ],
)
def test_a_good_tensor_comes_back_as_it_is(tensor: torch.Tensor, dtype: torch.dtype):
    tensor = tensor.to(dtype)
    assert check_tensor(tensor, "matrix", ndim=2) is tensor


@pytest.mark.parametrize(
    "function",
    [
        frobenius_norm,
        induced_norm,
        stable_rank,
        lambda x: power_iteration(x, init="ones").sigma,
        lambda x: spectral_norm_bounds(x).upper,
        torch.func.grad(lambda x: spectral_norm(x, method="svd")),
        lambda x: conv_matrix(x[:, None], 4),
        lambda x: jacobian_norms(torch.sin, x),
        lambda x: difference_quotients(torch.sin, x, x.flip(0)),
    ],
)
@pytest.mark.parametrize("axis", [0, 2])
def test_vmap_gives_what_each_sample_gives(function, axis):
    scales = torch.tensor([1.0, 1e-12, 1e9])[:, None, None]  # beyond what needs no scaling
    samples = scales * torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    found = torch.func.vmap(function, in_dims=axis)(samples.movedim(0, axis))
    torch.testing.assert_close(found, torch.stack([function(x) for x in samples]))
    samples[1, 0, 1] = torch.nan
    with pytest.raises(ValueError, match="must be finite, got nan at index"):
        torch.func.vmap(function, in_dims=axis)(samples.movedim(0, axis))


def test_largest_and_smallest_numbers_are_finite():
    info = torch.finfo(torch.float32)
    extremes = torch.tensor([info.max, info.min, info.tiny, info.smallest_normal / 2, -0.0])
    assert check_tensor(extremes, "x") is extremes


@pytest.mark.parametrize(
    ("given_value", "kind"),
    [([[1.0]], "list"), (np.ones((2, 2)), "ndarray"), (1.0, "float"), (None, "NoneType")],
)
def test_what_is_no_tensor_is_refused(given_value, kind):
    with pytest.raises(
        TypeError, match=rf"matrix must be a torch\.Tensor, got {kind}; .*as_tensor"
    ):
        check_tensor(given_value, "matrix")


@pytest.mark.parametrize(
    "convert",
    [
        torch.Tensor.to_sparse,
        torch.Tensor.to_sparse_csr,
        torch.Tensor.to_mkldnn,
        lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
    ],
)
@pytest.mark.parametrize(
    "function", [spectral_norm, frobenius_norm, power_iteration, gradient_penalty_of]
)
def test_what_is_not_dense_is_refused(function, convert):
    with pytest.raises(TypeError, match=r"must be a dense tensor, got .*to_dense\(\) converts"):
        function(convert(torch.eye(3)))


@pytest.mark.parametrize(
    "function",
    [
        *(spectral_norm, induced_norm, frobenius_norm, stable_rank, spectral_norm_bounds),
        *(power_iteration, lambda x: spectral_norm(x, method="svd")),
        lambda x: conv_matrix(x[:, None], 4),
        lambda x: conv_norm_bounds(x[:, None], 4),
        lambda x: conv_spectral_norm(x[:, None], 4),
        lambda x: layer_product_bound(torch.nn.Linear(3, 3).to(x.device), (3,)),
        lambda x: layer_product_bound(torch.nn.Conv1d(3, 3, 1, bias=False).to(x.device), (3, 2)),
        lambda x: pytest.importorskip("lipbook.lab.transport").wasserstein_distance(x, x),
    ],
)
def test_what_has_no_numbers_is_refused(function):
    with pytest.raises(TypeError, match="must hold numbers, got a meta tensor; make it on an"):
        function(torch.ones(3, 3, device="meta"))


@pytest.mark.parametrize("function", [spectral_norm, induced_norm, frobenius_norm, stable_rank])
def test_float8_is_refused(function):
    with pytest.raises(TypeError, match=r"got torch.float8_e4m3fn; matrix.to\(torch.float32\)"):
        function(torch.eye(3).to(torch.float8_e4m3fn))


@pytest.mark.parametrize(
    "function",
    [
        lambda f: lipschitz_certificate(f, (4,)),
        lambda f: layer_product_bound(f, (4,)),
        lambda f: exact_lipschitz(f, (-1, 1)),
    ],
)
def test_a_function_is_no_module(function):
    with pytest.raises(
        TypeError, match=r"must be an nn.Module, whose forward may call a function, got f"
    ):
        function(lambda x: x)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_other_dtypes_are_refused(dtype: torch.dtype):
    with pytest.raises(TypeError, match=f"weight must have .* got {dtype}; weight.to"):
        check_tensor(torch.ones(2, 2, dtype=dtype), "weight")


@pytest.mark.parametrize(
    ("shape", "required", "message"),
    [
        ((3,), {"ndim": 2}, r"kernel must have 2 axes, got shape \(3,\)"),
        ((1, 2, 3), {"ndim": 2}, r"kernel must have 2 axes, got shape \(1, 2, 3\)"),
        ((), {"min_ndim": 1}, r"kernel must have at least 1 axes, got shape \(\)"),
        ((0,), {}, r"kernel must not be empty, got shape \(0,\)"),
        ((2, 0, 3), {"ndim": 3}, r"kernel must not be empty, got shape \(2, 0, 3\)"),
    ],
)
def test_wrong_shapes_are_refused(shape, required, message):
    with pytest.raises(ValueError, match=message):
        check_tensor(torch.ones(shape), "kernel", **required)


def test_batch_axes_are_welcome_from_min_ndim_on():
    assert check_tensor(torch.ones(5, 4, 2, 3), "matrix", min_ndim=2).ndim == 4


@given(
    shape=st.lists(st.integers(1, 4), max_size=3),
    bad=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_a_bad_entry_is_named_with_its_place(shape, bad, dtype, data):
    tensor = torch.zeros(shape, dtype=dtype)
    place = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    tensor[place] = bad
    with pytest.raises(ValueError, match="x must be finite") as caught:
        check_tensor(tensor.requires_grad_(), "x")
    assert f"got {bad} at index {place}" in str(caught.value)


@pytest.mark.parametrize("value", [1, 0.5, 1e-300, *(kind(2) for kind in NUMPY)])
def test_positive_numbers_come_back_as_floats(value):
    checked = check_positive(value, "radius")
    assert isinstance(checked, float)
    assert checked == value


@pytest.mark.parametrize("value", [0, -0.0, -1, float("inf"), float("nan")])
def test_numbers_not_above_zero_are_refused(value):
    with pytest.raises(ValueError, match=f"radius must be a finite number above 0, got {value}"):
        check_positive(value, "radius")


@pytest.mark.parametrize("value", ["1", True, np.True_, None, 1j, torch.tensor(1.0)])
def test_radius_must_be_a_real_number(value):
    with pytest.raises(
        TypeError, match=f"radius must be a real number, got {type(value).__name__}"
    ):
        check_positive(value, "radius")


@pytest.mark.parametrize(
    ("value", "least"), [(1, 1), (7, 1), (0, 0), (-2, -2), (np.int64(3), 1), (np.uint8(3), 3)]
)
def test_counts_come_back_as_integers(value, least):
    checked = check_count(value, "steps", least=least)
    assert type(checked) is int
    assert checked == value


@pytest.mark.parametrize(("value", "least"), [(0, 1), (-3, 0), (1, 2)])
def test_counts_below_the_least_are_refused(value, least):
    with pytest.raises(ValueError, match=f"steps must be at least {least}, got {value}"):
        check_count(value, "steps", least=least)


@pytest.mark.parametrize("value", [1.0, "1", True, None, np.float64(1.0), np.True_])
def test_a_count_must_be_an_integer(value):
    with pytest.raises(TypeError, match=f"steps must be an integer, got {type(value).__name__}"):
        check_count(value, "steps")
