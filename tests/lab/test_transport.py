"""Exact transport against other solvers, its own dual, and distances known in closed form."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance as scipy_wasserstein_1d

from lipbook.lab import transport
from lipbook.lab.data import gaussian_ring, ring_centres
from lipbook.lab.transport import (
    mode_coverage,
    noise_floor,
    optimal_critic,
    optimal_transport,
    sliced_wasserstein_distance,
    wasserstein_distance,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ORDERS = st.sampled_from([1, 1.5, 2, 3])
SIZES = st.integers(1, 12)
SEEDS = st.integers(0, 10_000)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=seeded(seed))


def distances(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    return (real.flatten(1)[:, None] - fake.flatten(1)).norm(dim=-1)


@settings(max_examples=40)
@given(n=SIZES, shape=st.sampled_from([(), (1,), (2,), (2, 3)]), p=ORDERS, seed=SEEDS)
def test_equal_sizes_agree_with_the_assignment_problem(n, shape, p, seed):
    real, fake = normal(n, *shape, seed=seed), normal(n, *shape, seed=seed + 1)
    cost = distances(real.reshape(n, -1), fake.reshape(n, -1)) ** p
    expected = float(cost[linear_sum_assignment(cost)].mean()) ** (1 / p)
    assert wasserstein_distance(real, fake, p=p) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=40)
@given(n=SIZES, m=SIZES, seed=SEEDS)
def test_unequal_sizes_on_a_line_agree_with_scipy(n, m, seed):
    real, fake = normal(n, seed=seed), normal(m, seed=seed + 1)
    expected = scipy_wasserstein_1d(real.numpy(), fake.numpy())
    assert wasserstein_distance(real, fake) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=20)
@given(n=st.integers(1, 5), m=st.integers(1, 5), p=ORDERS, seed=SEEDS)
def test_unequal_sizes_are_those_of_repeated_points(n, m, p, seed):
    real, fake = normal(n, 2, seed=seed), normal(m, 2, seed=seed + 1)
    repeated = real.repeat(m, 1), fake.repeat(n, 1)
    expected = wasserstein_distance(*repeated, p=p)
    assert wasserstein_distance(real, fake, p=p) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=20)
@given(n=SIZES, m=SIZES, p=ORDERS, seed=SEEDS)
def test_it_is_a_distance(n, m, p, seed):
    a, b, c = normal(n, 2, seed=seed), normal(m, 2, seed=seed + 1), normal(n, 2, seed=seed + 2)
    w = partial(wasserstein_distance, p=p)
    assert w(a, a.flip(0)) == 0
    assert w(a, b) == pytest.approx(w(b, a), rel=1e-9)
    assert w(a, b) <= w(a, c) + w(c, b) + 1e-9


@pytest.mark.parametrize("scale", [1e-100, 1e-9, 1.0, 1e9, 1e100])
@pytest.mark.parametrize("p", [1, 2])
def test_the_unit_does_not_matter(scale, p):
    real, fake = normal(30, 2), normal(20, 2, seed=1)
    expected = scale * wasserstein_distance(real, fake, p=p)
    assert wasserstein_distance(scale * real, scale * fake, p=p) == pytest.approx(
        expected, rel=1e-9
    )


@pytest.mark.parametrize("p", [1, 2])
def test_near_points_far_from_the_origin_keep_their_digits(p):
    real = 1000 + normal(60, 2)
    fake = real + torch.tensor([3e-7, 4e-7])
    assert wasserstein_distance(real, fake, p=p) == pytest.approx(5e-7, rel=1e-5)


@settings(max_examples=30)
@given(n=SIZES, m=SIZES, p=ORDERS, seed=SEEDS, scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_the_potentials_prove_the_plan_optimal(n, m, p, seed, scale):
    real, fake = scale * normal(n, 2, seed=seed), scale * normal(m, 2, seed=seed + 1)
    solution = optimal_transport(real, fake, p=p)
    u, v = solution.real_potential, solution.fake_potential
    cost = distances(real, fake) ** p
    tolerance = 1e-9 * float(cost.max())
    slack = cost - u[:, None] - v
    assert slack.min() >= -tolerance
    assert slack[tuple(solution.pairs.T)].abs().max() <= tolerance
    assert (u.mean() + v.mean()).item() == pytest.approx(solution.distance**p, abs=tolerance)
    assert abs(v.mean().item()) <= tolerance


@settings(max_examples=30)
@given(n=SIZES, m=SIZES, seed=SEEDS)
def test_the_plan_carries_all_mass_and_splits_little(n, m, seed):
    solution = optimal_transport(normal(n, 2, seed=seed), normal(m, 2, seed=seed + 1))
    from_real, to_fake = solution.pairs.T
    sent = torch.zeros(n, dtype=torch.float64).index_add(0, from_real, solution.mass)
    received = torch.zeros(m, dtype=torch.float64).index_add(0, to_fake, solution.mass)
    torch.testing.assert_close(sent, torch.full_like(sent, 1 / n))
    torch.testing.assert_close(received, torch.full_like(received, 1 / m))
    assert len(solution.pairs) < n + m
    if n == m:
        assert sorted(to_fake.tolist()) == list(range(n))


def assigned(real: torch.Tensor, fake: torch.Tensor, p: float) -> float:
    """W_p of samples of equal size by SciPy's assignment."""
    cost = distances(real, fake)
    chosen = cost[linear_sum_assignment((cost / cost.max()) ** p)]
    return float(chosen.max() * ((chosen / chosen.max()) ** p).mean() ** (1 / p))


@pytest.mark.parametrize("far", [1e3, 1e6, 1e9, 1e12])
@pytest.mark.parametrize("p", [1, 1.5, 2, 2.7, 3])
@pytest.mark.parametrize("n", [2, 5, 60])
def test_points_far_out_change_nothing_about_the_others(n, p, far):
    """Two outliers that match; a third that does not would be the whole distance."""
    real, fake = normal(n, 2), normal(n, 2, seed=1)
    real[0], fake[-1] = real[0] + far, fake[-1] + far
    assert wasserstein_distance(real, fake, p=p) == pytest.approx(assigned(real, fake, p), rel=1e-9)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("far", [1e9, 1e30, 1e120])
def test_samples_of_unequal_sizes_may_have_points_far_out(p, far):
    """Half of either sample is far away, and neither half sends anything to the other."""
    real, fake = normal(12, 2), normal(18, 2, seed=1)
    outside = torch.tensor([[far, 0.0], [far, far]], dtype=torch.float64)
    expected = wasserstein_distance(real, fake, p=p) * 0.5 ** (1 / p)
    shared = torch.cat([real, outside.repeat(6, 1)]), torch.cat([fake, outside.repeat(9, 1)])
    assert wasserstein_distance(*shared, p=p) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_clusters_within_clusters(p):
    """Pairs that move by 1, at distances of 1e6, 1e9, … from one another: every scale counts."""
    centres = torch.tensor([[0.0], [1e6], [1e9], [1e12], [-1e7]], dtype=torch.float64)
    assert wasserstein_distance(centres, centres.flip(0) + 1, p=p) == pytest.approx(1, rel=1e-3)
    tiny = torch.tensor([[0.0], [1e-200], [1e200]], dtype=torch.float64)
    moved = torch.tensor([[1e200], [4e-200], [3e-200]], dtype=torch.float64)
    expected = {1: 2, 2: 6**0.5, 3: 18 ** (1 / 3)}[p]  # two of three move by 3e-200
    assert wasserstein_distance(tiny, moved, p=p) == pytest.approx(expected * 1e-200, rel=1e-9)


@settings(max_examples=25)
@given(n=st.integers(2, 15), m=st.integers(2, 15), p=ORDERS, seed=SEEDS)
def test_the_potentials_prove_the_plan_beside_points_far_out(n, m, p, seed):
    """The dual value is the cost of the plan in nine digits of *it*, not of the largest cost."""
    real, fake = normal(n, 2, seed=seed).round(), normal(m, 2, seed=seed + 1).round()  # ties
    real[0], fake[0] = 1e9 + real[0], 1e9 + fake[0]
    solution = optimal_transport(real, fake, p=p)
    u, v = solution.real_potential, solution.fake_potential
    assert (u.mean() + v.mean()).item() == pytest.approx(solution.distance**p, rel=1e-8)
    cost = distances(real, fake) ** p
    assert (u[:, None] + v - cost).max() <= 1e-9 * cost.max()
    assert solution.distance == pytest.approx(
        float((solution.mass * cost[tuple(solution.pairs.T)]).sum()) ** (1 / p), rel=1e-9
    )


@pytest.mark.parametrize("scale", [1e-170, 1e-30, 1e30, 1e170])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_distances_whose_squares_leave_float64(scale, p):
    real, fake = normal(9, 2), normal(6, 2, seed=1)
    expected = wasserstein_distance(real, fake, p=p)
    assert wasserstein_distance(scale * real, scale * fake, p=p) / scale == pytest.approx(expected)


def test_what_float64_cannot_hold_is_said():
    real, fake = 1e308 * torch.ones(2, 1).double(), -1e308 * torch.ones(3, 1).double()
    with pytest.raises(ValueError, match="must be rescaled: some points lie further apart"):
        wasserstein_distance(real, fake)
    with pytest.raises(ValueError, match=r"potentials are in units of 2e\+200 to the power 2"):
        optimal_transport(1e-108 * real, 1e-108 * fake, p=2)
    assert wasserstein_distance(1e-108 * real, 1e-108 * fake, p=2) == pytest.approx(2e200)


def test_a_wrong_plan_is_an_error_that_says_by_how_much(monkeypatch):
    """The solver is not believed: the plan that it returns here costs 3, and the best 1."""

    def careless(a, b, cost, **_):
        return np.array([[0.0, 1.0], [1.0, 0.0]]), {"warning": None, "u": 0 * a, "v": 0 * b + 1 / 3}

    monkeypatch.setattr(transport.ot, "emd", careless)
    real, fake = torch.tensor([[0.0], [2.0]]).double(), torch.tensor([[1.0], [3.0]]).double()
    with pytest.raises(RuntimeError, match=r"W_p = 2, and \S+ of its cost may be too much"):
        optimal_transport(real, fake)


def test_a_solver_that_stops_early_is_an_error(monkeypatch):
    monkeypatch.setattr(transport, "_MAX_ITERATIONS", 1)
    with (
        pytest.warns(UserWarning, match="numItermax"),
        pytest.raises(RuntimeError, match="no optimal transport between real and fake"),
    ):
        optimal_transport(normal(20, 2), normal(20, 2, seed=1))


@settings(max_examples=20)
@given(n=SIZES, m=SIZES, shape=st.sampled_from([(1,), (2,), (2, 3)]), seed=SEEDS)
def test_the_critic_attains_the_dual_and_is_1_lipschitz_everywhere(n, m, shape, seed):
    real, fake = normal(n, *shape, seed=seed), normal(m, *shape, seed=seed + 1)
    critic = optimal_critic(real, fake)
    gap = (critic(real).mean() - critic(fake).mean()).item()
    assert gap == pytest.approx(wasserstein_distance(real, fake), rel=1e-9)
    assert abs(critic(fake).mean().item()) < 1e-9

    anywhere = torch.cat([real, fake, 3 * normal(40, *shape, seed=seed + 2)])
    values = critic(anywhere)
    stretch = (values[:, None] - values).abs() - distances(anywhere, anywhere)
    assert stretch.max() < 1e-9


def test_the_critic_has_the_values_of_the_potentials():
    real, fake = normal(15, 2), normal(10, 2, seed=1)
    solution, critic = optimal_transport(real, fake), optimal_critic(real, fake)
    torch.testing.assert_close(critic(real), solution.real_potential)
    torch.testing.assert_close(critic(fake), -solution.fake_potential)


@pytest.mark.parametrize(
    ("points", "error", "message"),
    [
        (torch.ones(2, 2).long(), TypeError, "points must have a real floating-point dtype"),
        (torch.ones(2, 2).cfloat(), TypeError, "points must have a real floating-point dtype"),
        (torch.ones(2, 3), ValueError, r"points must have shape \('k', 2\), got \(2, 3\)"),
        (torch.ones(0, 2), ValueError, "points must not be empty"),
        ([[1.0, 2.0]], TypeError, "points must be a torch.Tensor, got list"),
    ],
)
def test_the_critic_takes_floating_point_points_of_its_space(points, error, message):
    with pytest.raises(error, match=message):
        optimal_critic(torch.zeros(3, 2), torch.ones(3, 2))(points)


def test_a_power_that_float64_cannot_hold_is_named():
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises((RuntimeError, ValueError), match="100000"):
        optimal_transport(x * 3, x + 1, p=1e5)


def test_the_critic_is_differentiable_with_slope_1_almost_everywhere():
    critic = optimal_critic(normal(15, 2), normal(10, 2, seed=1))
    points = normal(50, 2, seed=2).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(points).sum(), points)
    torch.testing.assert_close(gradient.norm(dim=1), torch.ones(50, dtype=torch.float64))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_changes_nothing(mode):
    real, fake = normal(12, 2), normal(9, 2, seed=1)
    outside = wasserstein_distance(real, fake)
    with mode():
        assert wasserstein_distance(real, fake) == outside
        critic = optimal_critic(normal(12, 2), normal(9, 2, seed=1))
    points = real.clone().requires_grad_()
    critic(points).sum().backward()
    torch.testing.assert_close(points.grad.norm(dim=1), torch.ones(12).double())


def test_the_samples_stay_resizable():
    real = normal(4, 2)
    wasserstein_distance(real, normal(4, 2, seed=1))
    sliced_wasserstein_distance(real, real, generator=seeded(0))
    real.untyped_storage().resize_(0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_dtype_device_and_layout(device, dtype):
    real = normal(2, 12).to(device, dtype).T.requires_grad_()
    fake = normal(9, 2, seed=1).to(device, dtype)
    assert not real.is_contiguous()
    copies = real.detach().double().cpu().contiguous(), fake.double().cpu()
    assert wasserstein_distance(real, fake) == wasserstein_distance(*copies)
    sliced = partial(sliced_wasserstein_distance, n_projections=5)
    assert sliced(real, fake, generator=seeded(0)) == sliced(*copies, generator=seeded(0))
    assert torch.equal(
        mode_coverage(real, fake, 0.5).counts, mode_coverage(*copies, radius=0.5).counts
    )
    values = optimal_critic(real, fake)(real)
    assert (values.dtype, values.device) == (dtype, real.device)
    eps = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        values.detach().double().cpu(), optimal_critic(*copies)(copies[0]), rtol=eps, atol=eps
    )


@settings(max_examples=20)
@given(n=SIZES, m=SIZES, p=ORDERS, seed=SEEDS)
def test_sliced_is_exact_on_a_line_and_never_above_the_distance(n, m, p, seed):
    sliced = partial(sliced_wasserstein_distance, n_projections=7, p=p)
    a, b = normal(n, seed=seed), normal(m, seed=seed + 1)
    exact = wasserstein_distance(a, b, p=p)
    assert sliced(a, b, generator=seeded(seed)) == pytest.approx(exact, rel=1e-6)
    a, b = normal(n, 3, seed=seed), normal(m, 3, seed=seed + 1)
    assert sliced(a, b, generator=seeded(seed)) <= wasserstein_distance(a, b, p=p) * (1 + 1e-9)


def test_sliced_distance_of_a_shift():
    """A shift by t moves each projection by ‖t‖ |cos|: mean 2/π in the plane, mean square 1/2."""
    points, lines = normal(10, 2), 4000
    shifted = points + torch.tensor([3.0, 4.0])
    sliced = partial(sliced_wasserstein_distance, points, shifted, n_projections=lines)
    for p, expected in ((1, 10 / math.pi), (2, 5 / math.sqrt(2))):
        # |cos| has standard deviation 0.31, and cos² 0.35, which the root halves.
        error = 5 * 5 * 0.31 / math.sqrt(lines)
        assert sliced(p=p, generator=seeded(0)) == pytest.approx(expected, abs=error)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_sliced_is_exact_on_a_line_with_points_far_out(p):
    """Sums of 1/3 and 1/2 differ by a crumb of mass, which must not travel."""
    far = torch.full((6,), 1e18).double()
    real, fake = torch.cat([normal(3), far[:3]]), torch.cat([normal(2, seed=1), far[:2]])
    expected = wasserstein_distance(normal(3), normal(2, seed=1), p=p) * 0.5 ** (1 / p)
    found = sliced_wasserstein_distance(real, fake, n_projections=1, p=p, generator=seeded(0))
    assert found == pytest.approx(expected, rel=1e-9)


def test_sliced_depends_on_the_generator_alone():
    sliced = partial(sliced_wasserstein_distance, normal(20, 3), normal(30, 3, seed=1))
    assert sliced(generator=seeded(0)) == sliced(generator=seeded(0))
    assert sliced(generator=seeded(0)) != sliced(generator=seeded(1))


def test_the_noise_floor_of_a_finite_set_compares_disjoint_halves():
    pool = torch.arange(20, dtype=torch.float64)[:, None]
    seen = []

    def draw(k, generator):
        return pool[torch.randperm(len(pool), generator=generator)[:k]]

    def shared(real, fake):
        seen.append((real, fake))
        return np.intersect1d(real, fake).size

    floors = noise_floor(draw, 10, repetitions=4, distance=shared, generator=seeded(0))
    assert floors.tolist() == [0.0] * 4
    assert floors.dtype == torch.float64
    assert all(len(real) == len(fake) == 10 for real, fake in seen)
    assert not torch.equal(seen[0][0], seen[1][0])


def test_the_noise_floor_falls_and_lies_below_another_distribution():
    def draw(k, generator):
        return gaussian_ring(k, generator=generator).inputs

    few, many = (noise_floor(draw, n, repetitions=5, generator=seeded(0)) for n in (16, 256))
    assert len(many) == 5
    assert many.max() < few.min()
    other = normal(256, 2) + torch.tensor([3.0, 0.0])
    assert many.max() < wasserstein_distance(draw(256, seeded(1)), other)


def test_a_sample_that_runs_out_is_an_error():
    pool = torch.ones(7, 1)
    message = "sample must return 8 points when asked for them, got 7"
    with pytest.raises(ValueError, match=message):
        noise_floor(lambda k, _: pool[:k], 4, generator=seeded(0))


@pytest.mark.parametrize("seed", range(3))
def test_a_mixture_covers_its_own_modes(seed):
    n, std = 4000, 0.02
    points, modes = gaussian_ring(n, std=std, generator=seeded(seed))
    coverage = mode_coverage(points, ring_centres(), 3 * std)
    within = 1 - math.exp(-9 / 2)
    assert coverage.share_of_modes == 1
    assert coverage.share_of_samples == pytest.approx(
        within, abs=5 * math.sqrt(within * (1 - within) / n)
    )
    assert coverage.counts.sum().item() == round(n * coverage.share_of_samples)
    assert bool((coverage.counts <= modes.bincount()).all())


def test_a_collapsed_generator_hits_one_mode_of_eight():
    coverage = mode_coverage(ring_centres()[:1].repeat(50, 1), ring_centres(), 0.1)
    assert coverage.share_of_modes == 1 / 8
    assert coverage.share_of_samples == 1
    assert coverage.counts.tolist() == [50, *[0] * 7]


def test_each_sample_counts_once_and_up_to_the_radius():
    centres = torch.tensor([[0.0], [1.0]])
    samples = torch.tensor([[0.25], [0.75], [2.0], [2.5], [-3.0]])
    coverage = mode_coverage(samples, centres, 1.0)
    assert coverage.counts.tolist() == [1, 2]
    assert coverage.share_of_samples == 3 / 5
    assert mode_coverage(samples, centres, 1.0, min_count=2).share_of_modes == 1 / 2
    far = mode_coverage(samples + 100, centres, 1.0)
    assert (far.share_of_modes, far.share_of_samples) == (0, 0)


GOOD = torch.ones(3, 2)


@pytest.mark.parametrize("distance", [wasserstein_distance, optimal_critic, optimal_transport])
@pytest.mark.parametrize(
    ("real", "fake", "error", "message"),
    [
        (np.ones((3, 2)), GOOD, TypeError, "real must be a torch.Tensor"),
        (GOOD, GOOD.long(), TypeError, "fake must have a real floating-point dtype"),
        (GOOD, GOOD[:0], ValueError, r"fake must not be empty, got shape \(0, 2\)"),
        (GOOD.sum(), GOOD, ValueError, "real must have at least 1 axes"),
        (GOOD * math.nan, GOOD, ValueError, "real must be finite"),
        (GOOD, torch.ones(3, 4), ValueError, r"equal shapes .* got \(3, 2\) and \(3, 4\)"),
    ],
)
def test_samples_are_checked(distance, real, fake, error, message):
    with pytest.raises(error, match=message):
        distance(real, fake)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (partial(wasserstein_distance, p=0.9), ValueError, "p must be at least 1, got 0.9"),
        (partial(wasserstein_distance, p=math.inf), ValueError, "p must be a finite number"),
        (partial(wasserstein_distance, p="2"), TypeError, "p must be a real number"),
        (
            partial(sliced_wasserstein_distance, p=0.5, generator=torch.Generator()),
            ValueError,
            "p must be at least 1",
        ),
        (
            partial(sliced_wasserstein_distance, n_projections=0, generator=torch.Generator()),
            ValueError,
            "n_projections must be at least 1, got 0",
        ),
        (partial(mode_coverage, radius=-1.0), ValueError, "radius must be a finite number above 0"),
        (partial(mode_coverage, radius=1.0, min_count=0), ValueError, "min_count must be at least"),
    ],
)
def test_numbers_are_checked(call, error, message):
    with pytest.raises(error, match=message):
        call(GOOD, GOOD)


@pytest.mark.parametrize(
    ("samples", "centres", "message"),
    [
        (torch.ones(3), GOOD, "samples must have 2 axes"),
        (GOOD, torch.ones(2), "centres must have 2 axes"),
        (GOOD, torch.ones(2, 3), "samples and centres must have equal shapes"),
    ],
)
def test_mode_coverage_takes_matrices_that_fit(samples, centres, message):
    with pytest.raises(ValueError, match=message):
        mode_coverage(samples, centres, 1.0)


@pytest.mark.parametrize(("n", "repetitions"), [(0, 1), (1, 0)])
def test_noise_floor_counts_are_positive(n, repetitions):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        noise_floor(lambda *_: GOOD, n, repetitions=repetitions, generator=seeded(0))
