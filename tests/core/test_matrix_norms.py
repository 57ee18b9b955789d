"""Norms by definition: known values, the axioms, every dtype and scale, every refusal."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from lipbook.matrix_norms import frobenius_norm, induced_norm, split_scale, stable_rank

INF = math.inf
NORMS = {
    "frobenius": frobenius_norm,
    "one": lambda w: induced_norm(w, 1),
    "spectral": induced_norm,
    "infinity": lambda w: induced_norm(w, INF),
}
every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


seeds = st.integers(0, 2**31)
sizes = st.integers(1, 6)
modest = settings(max_examples=40, deadline=None, derandomize=True)


def test_known_values():
    matrix = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    assert frobenius_norm(matrix).item() == pytest.approx(math.sqrt(30))
    assert induced_norm(matrix, 1).item() == 6
    assert induced_norm(matrix, INF).item() == 7
    # The singular values' squares are the roots of z² - 30z + 100.
    assert induced_norm(matrix).item() == pytest.approx(math.sqrt(15 + math.sqrt(125)))
    assert stable_rank(matrix).item() == pytest.approx(30 / (15 + math.sqrt(125)))


@every_norm
@modest
@given(seed=seeds, m=sizes, n=sizes, factor=st.floats(-1e3, 1e3))
def test_norm_axioms(norm, seed, m, n, factor):
    a, b = gaussian(2, m, n, seed=seed)
    torch.testing.assert_close(norm(factor * a), abs(factor) * norm(a))
    assert norm(a + b) <= (norm(a) + norm(b)) * (1 + 1e-12)
    assert norm(a) > 0


@every_norm
@modest
@given(seed=seeds, m=sizes, k=sizes, n=sizes)
def test_submultiplicative(norm, seed, m, k, n):
    a, b = gaussian(m, k, seed=seed), gaussian(k, n, seed=seed + 1)
    assert norm(a @ b) <= norm(a) * norm(b) * (1 + 1e-12)


@modest
@given(seed=seeds, m=sizes, n=sizes)
def test_orderings_and_invariances(seed, m, n):
    matrix = gaussian(m, n, seed=seed)
    sigma, frobenius = induced_norm(matrix), frobenius_norm(matrix)
    slack = 1 + 1e-12
    assert sigma <= frobenius * slack <= math.sqrt(min(m, n)) * sigma * slack**2
    assert sigma**2 <= induced_norm(matrix, 1) * induced_norm(matrix, INF) * slack
    assert 1 / slack <= stable_rank(matrix) <= min(m, n) * slack
    torch.testing.assert_close(induced_norm(matrix.T), sigma)
    torch.testing.assert_close(induced_norm(matrix.T, 1), induced_norm(matrix, INF))
    left = torch.linalg.qr(gaussian(m, m, seed=seed + 1)).Q
    right = torch.linalg.qr(gaussian(n, n, seed=seed + 2)).Q
    torch.testing.assert_close(induced_norm(left @ matrix @ right), sigma)
    torch.testing.assert_close(frobenius_norm(left @ matrix @ right), frobenius)


@every_norm
@modest
@given(seed=seeds, m=sizes, n=sizes)
def test_definition_bounds_every_direction(norm, seed, m, n):
    """(6), (10): no x is stretched by more than the norm, in the norm's own p."""
    p = {NORMS["one"]: 1, NORMS["infinity"]: INF}.get(norm, 2)
    matrix, x = gaussian(m, n, seed=seed), gaussian(n, 50, seed=seed + 1)
    stretch = torch.linalg.vector_norm(matrix @ x, p, 0) / torch.linalg.vector_norm(x, p, 0)
    assert stretch.max() <= norm(matrix) * (1 + 1e-12)


@every_norm
def test_batches_views_and_grad(norm):
    batch = gaussian(2, 3, 4, 5)
    one_by_one = torch.stack([norm(w) for w in batch.reshape(-1, 4, 5)]).reshape(2, 3)
    torch.testing.assert_close(norm(batch), one_by_one)
    view = gaussian(5, 4).T[::2]
    assert not view.is_contiguous()
    torch.testing.assert_close(norm(view), norm(view.contiguous()))
    matrix = gaussian(4, 3).requires_grad_()
    assert gradcheck(norm, matrix)
    assert gradgradcheck(norm, matrix)


@every_norm
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float32, 1e30),
        (torch.float32, 1e-30),
        (torch.float32, 1e-44),
        (torch.float64, 1e200),
        (torch.float64, 1e-200),
    ],
)
def test_extreme_scales(norm, dtype, scale):
    matrix = torch.tensor([[1.0, 2.0, 0.0], [2.0, 1.0, -2.0]], dtype=dtype) * scale
    exact = matrix.double() / matrix.double().abs().max()
    expected = norm(exact) * matrix.double().abs().max()
    rtol = 1e-6 if scale > 1e-40 else 0.5  # 1e-44 is subnormal: one bit or two
    torch.testing.assert_close(norm(matrix).double(), expected, rtol=rtol, atol=0)
    grad = torch.autograd.functional.jacobian(norm, matrix)
    assert torch.isfinite(grad).all()
    assert grad.abs().max() > 0.1


def test_mixed_scales_in_one_batch():
    batch = torch.stack([torch.eye(2) * 1e30, torch.zeros(2, 2), torch.eye(2) * 1e-30])
    torch.testing.assert_close(induced_norm(batch), torch.tensor([1e30, 0.0, 1e-30]))


@every_norm
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(norm, dtype):
    matrix = gaussian(20, 30).to(dtype)
    result = norm(matrix)
    assert result.dtype == dtype
    assert result == norm(matrix.double()).to(dtype)


@every_norm
def test_zero_matrix(norm):
    zero = torch.zeros(3, 2, requires_grad=True)
    value = norm(zero)
    (grad,) = torch.autograd.grad(value, zero)
    assert value == 0
    assert torch.isfinite(grad).all()
    assert stable_rank(zero) == 0


def test_split_scale_is_exact():
    matrix = gaussian(2, 3, 4, dtype=torch.float32) * torch.tensor([1e30, 1e-30])[:, None, None]
    unit, scale = split_scale(matrix)
    assert torch.equal(unit * scale[:, None, None], matrix)
    assert ((unit.abs().amax(dim=(1, 2)) >= 1) & (unit.abs().amax(dim=(1, 2)) < 2)).all()
    ordinary = gaussian(3, 4)
    assert split_scale(ordinary)[0] is ordinary  # no copy of what needs no scaling
    largest = torch.full((1, 1), torch.finfo(torch.float32).max)
    assert induced_norm(largest) == largest.item()


@every_norm
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([[1.0]], TypeError, "matrix must be a torch.Tensor, got list"),
        (torch.ones(2, 2, dtype=torch.int32), TypeError, "floating-point dtype, got torch.int32"),
        (torch.ones(2, 2, dtype=torch.complex64), TypeError, "got torch.complex64"),
        (torch.ones(3), ValueError, r"at least 2 axes, got shape \(3,\)"),
        (torch.ones(0, 3), ValueError, r"must not be empty, got shape \(0, 3\)"),
        (torch.tensor([[1.0, math.nan]]), ValueError, r"finite, got nan at index \(0, 1\)"),
        (torch.tensor([[INF]]), ValueError, "finite, got inf"),
    ],
)
def test_refusals(norm, bad, error, message):
    with pytest.raises(error, match=message):
        norm(bad)


@pytest.mark.parametrize("p", [0, 3, -2, "fro"])
def test_other_p(p):
    with pytest.raises(ValueError, match=f"p must be 1, 2 or inf, got {p!r}"):
        induced_norm(torch.eye(2), p)
