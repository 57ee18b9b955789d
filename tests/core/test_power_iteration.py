"""Power iteration, the exact norm by every route, and a bracket that rounding cannot break."""

from __future__ import annotations

import functools
import importlib
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from lipbook import _blas
from lipbook.power_iteration import (
    article_keras_spectral_norm,
    golub_kahan_lanczos,
    power_iteration,
    random_start,
    spectral_norm,
    spectral_norm_bounds,
)

METHODS = ("auto", "gram", "lanczos", "svd")
every_method = pytest.mark.parametrize("method", METHODS)
modest = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 7)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_singular_values(values: torch.Tensor, m: int, n: int, seed: int = 0) -> torch.Tensor:
    """Matrix of shape (m, n) with the given singular values and random singular vectors."""
    u = torch.linalg.qr(gaussian(m, len(values), seed=seed)).Q
    v = torch.linalg.qr(gaussian(n, len(values), seed=seed + 1)).Q
    return (u * values) @ v.T


def svd_norm(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.matrix_norm(matrix.double(), 2)


# --- power iteration ---------------------------------------------------------------------------


@modest
@given(seed=seeds, m=sizes, n=sizes, r=st.integers(1, 6))
def test_both_forms_are_the_same_iteration(seed, m, n, r):
    """PI3: (15) from u = Wx is (13) from x."""
    matrix, x = gaussian(m, n, seed=seed), gaussian(n, seed=seed + 1)
    gram = power_iteration(matrix, r, init=x, form="gram", history=True)
    two = power_iteration(matrix, r, init=matrix @ x, history=True)
    for ours, theirs in zip(gram, two, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert gram.history.shape == (r,)
    assert gram.history[-1] == gram.sigma


@modest
@given(seed=seeds, m=sizes, n=sizes, form=st.sampled_from(["two-vector", "gram"]))
def test_estimates_rise_towards_the_norm(seed, m, n, form):
    """PI6: from below, never falling; u and v are unit vectors that attain the estimate."""
    matrix = gaussian(m, n, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    result = power_iteration(matrix, 30, generator=generator, form=form, history=True)
    steps = torch.cat([result.history, svd_norm(matrix)[None] * (1 + 1e-12)])
    assert (steps.diff() >= -1e-12 * steps[-1]).all()
    torch.testing.assert_close(result.u @ matrix @ result.v, result.sigma)
    torch.testing.assert_close(result.u.norm(), torch.tensor(1.0).double())
    torch.testing.assert_close(result.v.norm(), torch.tensor(1.0).double())


@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_error_falls_at_the_predicted_rate(ratio):
    matrix = with_singular_values(torch.tensor([1.0, ratio]).double(), 6, 5)
    history = power_iteration(matrix, 12, init=gaussian(6, seed=9), history=True).history
    error = 1 - history
    torch.testing.assert_close(
        error[5:8] / error[4:7], torch.full((3,), ratio**4).double(), rtol=0.25, atol=0
    )


def test_all_ones_start_can_be_lost():
    """PI4: the smallest counterexamples; 0 and .1 at every r instead of √2, and no NaN."""
    lost = torch.tensor([[1.0], [-1.0]])
    assert power_iteration(lost, init="ones").sigma == 0
    assert article_keras_spectral_norm(lost) == 0
    missed = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.1]])
    history = power_iteration(missed, 50, init="ones", history=True).history
    torch.testing.assert_close(history, torch.full((50,), 0.1))
    assert spectral_norm(missed).item() == pytest.approx(math.sqrt(2), rel=1e-6)


@pytest.mark.parametrize("form", ["two-vector", "gram"])
def test_power_iteration_batches(form):
    batch = gaussian(2, 3, 4, 5)
    start = gaussian(2, 3, 4 if form == "two-vector" else 5, seed=1)
    result = power_iteration(batch, 3, init=start, form=form, history=True)
    assert (result.sigma.shape, result.history.shape) == ((2, 3), (3, 2, 3))
    assert (result.u.shape, result.v.shape) == ((2, 3, 4), (2, 3, 5))
    one = power_iteration(batch[1, 2], 3, init=start[1, 2], form=form)
    torch.testing.assert_close(result.sigma[1, 2], one.sigma)
    shared = power_iteration(batch, 3, init=start[0, 0], form=form)
    torch.testing.assert_close(shared.sigma[0, 0], result.sigma[0, 0])


def test_gradient_through_the_vectors_and_around_them():
    matrix = gaussian(4, 3).requires_grad_()
    start = gaussian(4, seed=1)
    assert gradcheck(lambda w: power_iteration(w, 3, init=start).sigma, matrix)
    assert gradcheck(lambda w: power_iteration(w, 3, init=start[:3], form="gram").sigma, matrix)
    detached = power_iteration(matrix, 3, init=start, detach=True)
    (grad,) = torch.autograd.grad(detached.sigma, matrix)
    torch.testing.assert_close(grad, torch.outer(detached.u, detached.v))
    (through,) = torch.autograd.grad(power_iteration(matrix, 3, init=start).sigma, matrix)
    assert not torch.allclose(through, grad, rtol=1e-3)
    long = torch.autograd.grad(power_iteration(matrix, 200, init=start).sigma, matrix)[0]
    (exact,) = torch.autograd.grad(svd_norm(matrix), matrix)
    torch.testing.assert_close(long, exact)


def test_power_iteration_random_state():
    matrix = gaussian(4, 3)
    torch.manual_seed(0)
    first = power_iteration(matrix, 1).sigma
    torch.manual_seed(0)
    assert power_iteration(matrix, 1).sigma == first
    seeded = [power_iteration(matrix, 1, generator=torch.Generator().manual_seed(1)) for _ in "ab"]
    assert seeded[0].sigma == seeded[1].sigma != first


@modest
@given(seed=seeds, shape=st.sampled_from([(3, 2), (2, 3, 4), (3, 3, 2, 5), (6,)]))
def test_keras_listing_is_the_two_vector_form_from_ones(seed, shape):
    kernel = gaussian(*shape, seed=seed)
    reshaped = kernel.reshape(-1, shape[-1])
    expected = power_iteration(reshaped, 5, init="ones").sigma
    torch.testing.assert_close(article_keras_spectral_norm(kernel), expected)


def test_keras_listing_on_a_vector_is_its_length():
    """SP4: as a constraint on γ it is ‖γ‖₂, and the constant of a BatchNorm is max |γ|."""
    gamma = torch.tensor([3.0, -4.0])
    assert article_keras_spectral_norm(gamma).item() == pytest.approx(5)


def test_the_package_exports_the_function():
    import lipbook.power_iteration
    from lipbook.power_iteration import PowerIteration

    assert lipbook.power_iteration is power_iteration
    assert isinstance(lipbook.power_iteration(torch.eye(2)), PowerIteration)
    assert importlib.import_module("lipbook.power_iteration").spectral_norm is spectral_norm


def test_numpy_numbers_are_numbers():
    matrix = gaussian(4, 3)
    start = gaussian(4, seed=1)
    by_numpy = power_iteration(matrix, np.int64(3), init=start)
    assert by_numpy.sigma == power_iteration(matrix, 3, init=start).sigma
    assert spectral_norm_bounds(matrix, n_squarings=np.int32(2)).upper > 0
    assert spectral_norm(matrix, rtol=np.float32(1e-6)) > 0


# --- the exact norm ----------------------------------------------------------------------------


def test_spectral_norm_is_no_eigenvalue():
    """PI2: norm 1 and eigenvalues 0; the two agree for normal matrices, and bound otherwise."""
    nilpotent = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    assert spectral_norm(nilpotent).item() == pytest.approx(1)
    assert torch.linalg.eigvals(nilpotent).abs().max().item() < 1e-6
    matrix = gaussian(6, 6)
    assert torch.linalg.eigvals(matrix).abs().max() < spectral_norm(matrix)
    for normal in (matrix + matrix.T, matrix - matrix.T, torch.linalg.qr(matrix).Q):
        largest = torch.linalg.eigvals(normal).abs().max()
        torch.testing.assert_close(largest, spectral_norm(normal), rtol=1e-6, atol=0)


HARD = {
    "gaussian": gaussian(70, 60),
    "wide": gaussian(3, 300),
    "tall": gaussian(300, 3),
    "row": gaussian(1, 50),
    "column": gaussian(50, 1),
    "scalar": gaussian(1, 1),
    "rank one": torch.outer(gaussian(40), gaussian(30, seed=1)),
    "identity": torch.eye(40).double(),
    "orthogonal": torch.linalg.qr(gaussian(60, 60)).Q,
    "positive": gaussian(80, 200).abs(),
    "near tie": with_singular_values(torch.cat([torch.ones(2), 0.99999 * torch.ones(40)]), 60, 50),
    "cluster": with_singular_values(1 - 1e-4 * torch.rand(50).double(), 60, 50),
    "graded": with_singular_values(torch.logspace(0, -12, 50).double(), 60, 50),
    "square, not normal": torch.diag(torch.ones(49), 1).double(),
    "sparse": torch.diag(torch.tensor([1.0] * 30 + [1.001])).double(),
}


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("matrix", HARD.values(), ids=HARD)
def test_exact_against_svd(matrix, dtype, method):
    matrix = matrix.to(dtype)
    sigma = spectral_norm(matrix, method=method)
    torch.testing.assert_close(sigma.double(), svd_norm(matrix), rtol=1e-6, atol=0)
    assert sigma.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [8, 16, 40])
def test_all_singular_values_may_tie(n, dtype):
    """LAPACK's routine for one eigenvector found none for some of these, and said so nowhere."""
    for seed in range(40):
        entries = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        weight = nn.Parameter(torch.linalg.qr(entries)[0])
        sigma = spectral_norm(weight)
        (slope,) = torch.autograd.grad(sigma, weight)
        assert sigma.item() == pytest.approx(1, rel=1e-5)
        assert (slope * weight).sum().item() == pytest.approx(1, rel=1e-5)


def test_a_krylov_space_may_tie():
    value, vector = _blas.top_pair_of_tridiagonal([1.0] * 8, [1e-17] * 7)
    assert value == pytest.approx(1)
    assert np.linalg.norm(vector) == pytest.approx(1)


@pytest.mark.parametrize("method", ["auto", "lanczos"])
@pytest.mark.parametrize("shape", [(3, 3), (16, 16), (200, 200), (1000, 170)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_direction_that_the_fixed_start_misses_is_found(shape, method, dtype):
    """An identity, and 10 along what is orthogonal to the start, of which it sees nothing."""
    n = shape[1]
    start = random_start(n, like=torch.empty(0, dtype=torch.float64))
    missed = torch.zeros(n, dtype=torch.float64)
    missed[:2] = torch.stack([start[1], -start[0]]) / start[:2].norm()
    along = F.pad(missed.outer(missed), (0, 0, 0, shape[0] - n))
    matrix = (torch.eye(*shape) + 9 * along).to(dtype)
    assert spectral_norm(matrix, method=method).item() == pytest.approx(10, rel=1e-5)
    batch = torch.stack([matrix, matrix])
    assert spectral_norm(batch, method=method).tolist() == pytest.approx([10, 10], rel=1e-5)
    found = golub_kahan_lanczos(matrix.mv, matrix.T.mv, start.to(dtype))
    assert found.converged
    assert matrix.mv(found.right).norm().item() == pytest.approx(10, rel=1e-5)


def test_auto_above_the_limit_of_gram():
    """By Lanczos, on the matrix or, where a side is long and no gap shows, on its Gram matrix."""
    shapes = (300, 280), (270, 500), (170, 800), (900, 165), (2, 200, 180)
    for matrix in [gaussian(*shape, seed=s) for s, shape in enumerate(shapes)]:
        narrow = matrix.float()
        torch.testing.assert_close(
            spectral_norm(narrow).double(), svd_norm(narrow), rtol=1e-6, atol=0
        )
        torch.testing.assert_close(
            spectral_norm(matrix).double(), svd_norm(matrix), rtol=1e-6, atol=0
        )


def test_auto_gives_up_on_slow_lanczos(monkeypatch):
    """A cluster without a gap that needs more than the steps allowed ends with the Gram route."""
    module = importlib.import_module("lipbook.power_iteration")
    monkeypatch.setattr(module, "_GRAM_LIMIT", 10)
    monkeypatch.setattr(module, "_LANCZOS_LIMIT", 5)
    matrix = HARD["cluster"]
    torch.testing.assert_close(spectral_norm(matrix), svd_norm(matrix))


@every_method
@modest
@given(seed=seeds, m=sizes, n=sizes, factor=st.floats(-1e3, 1e3))
def test_norm_axioms_and_invariances(method, seed, m, n, factor):
    norm = lambda w: spectral_norm(w, method=method)  # noqa: E731
    a, b = gaussian(2, m, n, seed=seed)
    sigma, close = norm(a), {"rtol": 2e-6, "atol": 0}
    torch.testing.assert_close(norm(factor * a), abs(factor) * sigma, **close)
    torch.testing.assert_close(norm(a.T), sigma, **close)
    left = torch.linalg.qr(gaussian(m, m, seed=seed + 1)).Q
    right = torch.linalg.qr(gaussian(n, n, seed=seed + 2)).Q
    torch.testing.assert_close(norm(left @ a @ right), sigma, **close)
    assert norm(a + b) <= (sigma + norm(b)) * (1 + 2e-6)
    assert norm(a @ b.T) <= sigma * norm(b) * (1 + 2e-6)


@every_method
def test_gradient_is_the_outer_product(method):
    for matrix in (gaussian(5, 4).requires_grad_(), gaussian(3, 6).requires_grad_()):
        norm = lambda w: spectral_norm(w, method=method, rtol=1e-12)  # noqa: E731
        assert gradcheck(norm, matrix)
        (grad,) = torch.autograd.grad(norm(matrix), matrix)
        u, _, vh = torch.linalg.svd(matrix.detach())
        torch.testing.assert_close(grad, torch.outer(u[:, 0], vh[0]))


@pytest.mark.parametrize("shape", [(6, 4), (300, 200)])
def test_the_imaginary_part_of_a_conjugate_has_other_signs_than_its_memory(shape):
    matrix = gaussian(*shape)
    part = torch.complex(matrix, -matrix).conj().imag.requires_grad_()
    assert part.is_neg()
    expected = spectral_norm(matrix.requires_grad_())
    assert spectral_norm(part).item() == expected.item()
    found = torch.autograd.grad(spectral_norm(part), part)[0]
    torch.testing.assert_close(found, torch.autograd.grad(expected, matrix)[0])


def test_second_derivative_is_right_or_refused():
    matrix = gaussian(4, 3).requires_grad_()
    assert gradgradcheck(lambda w: spectral_norm(w, method="svd"), matrix)
    (grad,) = torch.autograd.grad(spectral_norm(matrix).square(), matrix, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once only; method='svd' any"):
        grad.sum().backward()


@pytest.mark.parametrize("method", ["auto", "gram", "lanczos"])
@pytest.mark.parametrize("beside", [lambda w: w.square().sum() / 2, torch.zeros_like])
def test_no_second_derivative_leaves_the_norm_out(method, beside):
    """It did, unnoticed, as soon as the loss held anything else."""
    matrix = gaussian(4, 3).requires_grad_()
    loss = spectral_norm(matrix @ matrix.T, method=method) + beside(matrix).sum()
    (grad,) = torch.autograd.grad(loss, matrix, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once only; method='svd' any"):
        torch.autograd.grad(grad.sum(), matrix)


@every_method
def test_batches_and_views(method):
    batch = gaussian(2, 3, 5, 4)
    torch.testing.assert_close(
        spectral_norm(batch, method=method), svd_norm(batch), rtol=1e-6, atol=0
    )
    view = gaussian(8, 6).T[::2, 1:]
    assert not view.is_contiguous()
    torch.testing.assert_close(
        spectral_norm(view, method=method), svd_norm(view), rtol=1e-6, atol=0
    )


def test_long_vectors_are_summed_without_loss():
    """A sum of squares in float32, as torch takes it, is off by 1e-5 for a million entries."""
    column = torch.randn(1_000_000, 1, generator=torch.Generator().manual_seed(0))
    for method in METHODS[:3]:
        sigma = spectral_norm(column, method=method)
        assert sigma.item() == pytest.approx(column.double().norm().item(), rel=2e-7)


@pytest.mark.parametrize("shape", [(40, 30), (300, 280), (900, 170), (2, 30, 20)])
def test_any_grad_mode_and_any_thread_count(shape):
    matrix = gaussian(*shape).float().requires_grad_()
    value = spectral_norm(matrix)
    (grad,) = torch.autograd.grad(value.sum(), matrix)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(spectral_norm(matrix), value)
            assert spectral_norm_bounds(matrix).lower.shape == shape[:-2]
    with torch.inference_mode():
        inside = matrix.detach().clone()
        assert torch.equal(spectral_norm(inside), value)
    assert grad.shape == shape


SCALES = [
    (torch.float32, 1e30),
    (torch.float32, 1e-30),
    (torch.float64, 1e200),
    (torch.float64, 1e-200),
]


@pytest.mark.parametrize(("dtype", "factor"), SCALES)
def test_scales(dtype, factor):
    matrix = gaussian(6, 5)
    scaled = (matrix * factor).to(dtype)
    expected = scaled.double().div(factor)
    for method in METHODS:
        sigma = spectral_norm(scaled, method=method).double() / factor
        torch.testing.assert_close(sigma, svd_norm(expected), rtol=1e-6, atol=0)
    for form in ("two-vector", "gram"):
        sigma = power_iteration(scaled, 300, form=form).sigma.double() / factor
        torch.testing.assert_close(sigma, svd_norm(expected), rtol=1e-6, atol=0)
    start = gaussian(6, seed=1)
    huge = power_iteration(scaled, 3, init=(start * factor).to(dtype)).sigma
    torch.testing.assert_close(huge, power_iteration(scaled, 3, init=start.to(dtype)).sigma)
    lower, upper = spectral_norm_bounds(scaled)
    assert lower / factor <= svd_norm(expected) * (1 + 1e-12)
    assert upper / factor >= svd_norm(expected) * (1 - 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    matrix = gaussian(20, 30).to(dtype)
    rtol = torch.finfo(dtype).eps
    for method in METHODS:
        sigma = spectral_norm(matrix, method=method)
        assert sigma.dtype == dtype
        torch.testing.assert_close(sigma.double(), svd_norm(matrix), rtol=rtol, atol=0)
    result = power_iteration(matrix, 100, history=True)
    assert {part.dtype for part in result} == {dtype}
    torch.testing.assert_close(result.sigma.double(), svd_norm(matrix), rtol=2 * rtol, atol=0)
    assert article_keras_spectral_norm(matrix.float()).dtype == torch.float32


@every_method
def test_zero_matrix(method):
    zero = torch.zeros(3, 4, requires_grad=True)
    sigma = spectral_norm(zero, method=method)
    assert sigma == 0
    assert not torch.isnan(torch.autograd.grad(sigma, zero)[0]).any()
    sigma = power_iteration(zero).sigma
    assert sigma == 0
    assert not torch.isnan(torch.autograd.grad(sigma, zero)[0]).any()
    assert spectral_norm_bounds(zero) == (0, 0)


def test_random_state_is_untouched():
    before = torch.get_rng_state()
    spectral_norm(gaussian(5, 4), method="lanczos")
    spectral_norm_bounds(gaussian(5, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_storage_can_be_resized_afterwards():
    """As FSDP does; ``Tensor.numpy()`` would forbid it for good."""
    for shape in ((30, 20), (300, 280)):
        matrix = torch.randn(*shape)
        spectral_norm(matrix)
        assert matrix.untyped_storage().resizable()


# --- Lanczos -----------------------------------------------------------------------------------


def test_lanczos_bound_sees_what_the_residual_does_not():
    """A start almost without the top vector: the residual is small long before the error is."""
    values = torch.cat([torch.tensor([1.0, 1 - 2e-5]), torch.linspace(0.9, 0, 198)]).double()
    matrix = torch.diag(values)
    start = random_start(200, like=matrix)
    start /= start.norm()
    start[0], start[1] = 5e-3, 0.5  # about as unlucky as one start in twenty
    found = golub_kahan_lanczos(matrix.mv, matrix.T.mv, start)
    assert found.converged
    assert matrix.mv(found.right).norm().item() == pytest.approx(1, rel=1e-6)


def test_lanczos_needs_fewer_products_than_power_iteration():
    matrix = gaussian(200, 180)
    found = golub_kahan_lanczos(matrix.mv, matrix.T.mv, random_start(180, like=matrix))
    steps = len(found.tridiagonal)
    sigma = svd_norm(matrix)
    history = torch.linalg.eigvalsh(found.tridiagonal)[-1].sqrt()
    torch.testing.assert_close(history, sigma, rtol=1e-6, atol=0)
    start = random_start(180, like=matrix)
    assert power_iteration(matrix, steps, init=start, form="gram").sigma < sigma * (1 - 1e-5)


def test_lanczos_basis_stays_orthogonal():
    """A single sweep of Gram–Schmidt loses all digits here within 60 steps."""
    matrix = gaussian(1200, 300)
    seen: list[torch.Tensor] = []

    def matvec(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return matrix.mv(x)

    found = golub_kahan_lanczos(matvec, matrix.T.mv, random_start(300, like=matrix), rtol=1e-300)
    basis = torch.stack(seen)
    assert len(seen) > 64  # more than the first allocation
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(seen)).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        basis @ matrix.T @ matrix @ basis.T, found.tridiagonal, rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("length", [1.0, 1e-40])
def test_lanczos_takes_weights_and_starts_of_any_length(length):
    weight = nn.Linear(3, 4).weight
    found = golub_kahan_lanczos(weight.mv, weight.T.mv, torch.full((3,), length))
    assert found.converged
    assert not found.right.requires_grad
    assert weight.mv(found.right).norm().item() == pytest.approx(
        spectral_norm(weight).item(), rel=1e-5
    )


def test_lanczos_reports_failure():
    matrix = gaussian(200, 180)
    start = random_start(180, like=matrix)
    assert not golub_kahan_lanczos(matrix.mv, matrix.T.mv, start, max_steps=4).converged


# --- bounds ------------------------------------------------------------------------------------


@modest
@given(seed=seeds, m=sizes, n=sizes, k=st.integers(0, 12))
def test_bounds_bracket(seed, m, n, k):
    matrix = gaussian(m, n, seed=seed)
    lower, upper = spectral_norm_bounds(matrix, n_squarings=k)
    sigma = svd_norm(matrix)
    assert lower <= sigma * (1 + 1e-14)
    assert sigma <= upper * (1 + 1e-14)
    assert upper <= sigma * min(m, n) ** (0.5 ** (k + 2)) * (1 + 1e-10)
    assert upper <= torch.linalg.matrix_norm(matrix, "fro") * (1 + 1e-10)


@modest
@given(
    entries=st.lists(st.integers(-(2**26), 2**26), min_size=2, max_size=6),
    exponent=st.integers(-500, 400),
)
def test_bounds_are_certified_in_exact_arithmetic(entries, exponent):
    """The norm of a column is a root of a rational: Fraction decides, with no rounding."""
    column = torch.tensor(entries, dtype=torch.float64)[:, None] * 2.0**exponent
    square = sum(Fraction(float(x)) ** 2 for x in column[:, 0])
    lower, upper = spectral_norm_bounds(column)
    assert Fraction(float(lower)) ** 2 <= square <= Fraction(float(upper)) ** 2
    assert upper - lower <= 1e-12 * upper


def test_bounds_cover_rounding_of_large_sums():
    """The all-0.1 matrix, whose float64 entries have an exactly known norm, in every position."""
    matrix = torch.full((200, 50), 0.1, dtype=torch.float64)
    square = 10_000 * Fraction(0.1) ** 2
    lower, upper = spectral_norm_bounds(matrix)
    assert Fraction(float(lower)) ** 2 <= square <= Fraction(float(upper)) ** 2


def test_bounds_types_and_batches():
    batch = gaussian(2, 3, 5, 4).float().requires_grad_()
    lower, upper = spectral_norm_bounds(batch)
    assert lower.shape == upper.shape == (2, 3)
    assert lower.dtype == upper.dtype == torch.float64
    assert not upper.requires_grad
    assert ((lower <= svd_norm(batch)) & (svd_norm(batch) <= upper)).all()
    torch.testing.assert_close(lower, svd_norm(batch), rtol=1e-3, atol=0)


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [power_iteration, spectral_norm, spectral_norm_bounds])
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([[1.0]], TypeError, "matrix must be a torch.Tensor, got list"),
        (torch.ones(2, 2, dtype=torch.int32), TypeError, "floating-point dtype, got torch.int32"),
        (torch.ones(3), ValueError, r"at least 2 axes, got shape \(3,\)"),
        (torch.ones(0, 3), ValueError, r"must not be empty, got shape \(0, 3\)"),
        (torch.tensor([[1.0, math.nan]]), ValueError, r"finite, got nan at index \(0, 1\)"),
        (torch.tensor([[-math.inf]]), ValueError, "finite, got -inf"),
    ],
)
def test_refused_matrices(function, bad, error, message):
    with pytest.raises(error, match=message):
        function(bad)


I = torch.eye(2)  # noqa: E741


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: power_iteration(I, 0), ValueError, "n_iterations must be at least 1, got 0"),
        (lambda: power_iteration(I, 1.5), TypeError, "n_iterations must be an integer"),
        (lambda: power_iteration(I, generator=0), TypeError, "must be a torch.Generator, got int"),
        (lambda: power_iteration(I, form="qr"), ValueError, "form must be .* got 'qr'"),
        (lambda: power_iteration(I, init="zeros"), ValueError, "init must be .* got 'zeros'"),
        (
            lambda: power_iteration(I, init=torch.ones(3)),
            ValueError,
            r"init must broadcast to shape \(2,\), got shape \(3,\)",
        ),
        (lambda: power_iteration(I, init=torch.zeros(2)), ValueError, "init must not be zero"),
        (lambda: power_iteration(I, init=I[0].int()), TypeError, "init must have a real"),
        (lambda: power_iteration(I, init=I[0] / 0), ValueError, "init must be finite"),
        (lambda: spectral_norm(I, method="qr"), ValueError, "method must be .* got 'qr'"),
        (lambda: spectral_norm(I, rtol=0.0), ValueError, "rtol must be a finite number above 0"),
        (lambda: spectral_norm_bounds(I, n_squarings=-1), ValueError, "n_squarings .* got -1"),
        (lambda: golub_kahan_lanczos(I.mv, I.mv, I[0] / 0), ValueError, "start must be finite"),
        (lambda: golub_kahan_lanczos(I.mv, I.mv, I[0].int()), TypeError, "start must have a real"),
        (lambda: golub_kahan_lanczos(I.mv, I.mv, [1.0, 1.0]), TypeError, "start must be a torch.T"),
        (lambda: golub_kahan_lanczos(I.mv, I.mv, I), ValueError, "start must have 1 axes"),
        (lambda: article_keras_spectral_norm(I, 0), ValueError, "n_iterations must be at least 1"),
        (lambda: article_keras_spectral_norm(I.int()), TypeError, "kernel must have a real"),
        (lambda: article_keras_spectral_norm(I.sum()), ValueError, "kernel must have at least 1"),
    ],
)
def test_refused_options(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("n", [4, 200])
def test_compiled_and_traced(n):
    matrix = gaussian(n + 5, n)
    torch.compiler.reset()
    for method in ("auto", "gram", "lanczos"):
        found = torch.compile(functools.partial(spectral_norm, method=method), backend="eager")
        torch.testing.assert_close(found(matrix), spectral_norm(matrix))
    with pytest.raises(RuntimeError, match="trace would keep one value of spectral_norm, whatever"):
        torch.jit.trace(spectral_norm, matrix, check_trace=False)


def test_torch_func_is_told_what_it_can_transform():
    matrix = gaussian(5, 4)
    with pytest.raises(RuntimeError, match=r"torch\.func cannot transform spectral_norm; .* 'svd'"):
        torch.func.grad(spectral_norm)(matrix)
    found = torch.func.grad(lambda w: spectral_norm(w, method="svd"))(matrix)
    (expected,) = torch.autograd.grad(spectral_norm(matrix.requires_grad_()), matrix)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
