"""Losses, the gradient penalty and the constraints, against formulas and other routes."""

import copy
import functools
import itertools
import math
from functools import partial
from types import SimpleNamespace

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.utils import prune

from lipbook.lab.networks import mlp
from lipbook.lipschitz import jacobian_norms, layer_product_bound
from lipbook.normalization import spectral_normalize
from lipbook.wgan import (
    Constraint,
    FrobeniusClipping,
    FrobeniusExcess,
    GradientPenalty,
    R1Penalty,
    Unconstrained,
    WeightClipping,
    clip_frobenius_,
    clip_weights_,
    critic_loss,
    frobenius_excess_penalty,
    generator_loss,
    gradient_norms,
    gradient_penalty,
    hinge_critic_loss,
    interpolate,
    r1_penalty,
    wasserstein_estimate,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = [(), (1,), (3,), (2, 3), (2, 2, 2)]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64).to(dtype)


def net(*sizes, activation=nn.Tanh, seed=0):
    torch.manual_seed(seed)
    return mlp(sizes, activation).double()


def linear(*weights, dtype=torch.float64):
    """The critic x ↦ w·x, whose gradient is w everywhere."""
    layer = nn.Linear(len(weights), 1, bias=False, dtype=dtype)
    layer.weight.data = torch.tensor([weights], dtype=dtype)
    return layer


def half_square(x):
    """The critic whose gradient at x is x."""
    return x.reshape(len(x), -1).square().sum(1) / 2


# --- losses ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_by_hand(dtype):
    real, fake = torch.tensor([1, 2, 6], dtype=dtype), torch.tensor([[4], [0]], dtype=dtype)
    losses = wasserstein_estimate(real, fake), critic_loss(real, fake), generator_loss(fake)
    assert [loss.item() for loss in losses] == [1, -1, -2]
    assert all(loss.dtype == dtype and loss.shape == () for loss in losses)


def test_losses_differentiate_through_views():
    real, fake = normal(3, 2, seed=1).T.requires_grad_(), normal(4, seed=2)[::2].requires_grad_()
    assert torch.autograd.gradcheck(critic_loss, (real, fake))
    assert torch.autograd.gradcheck(generator_loss, (fake,))
    critic_loss(real, fake).backward()
    assert real.grad.tolist() == [[pytest.approx(-1 / 6)] * 3] * 2
    assert fake.grad.tolist() == [0.5, 0.5]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 9), m=st.integers(1, 9))
def test_hinge_loss_is_the_papers_formula(seed, n, m):
    """Miyato et al. (2018): the critic maximizes E min(0, D(x) - 1) + E min(0, -1 - D(G(z)))."""
    real, fake = 2 * normal(n, seed=seed), 2 * normal(m, 1, seed=seed + 1)
    zero = torch.zeros(()).double()
    value = torch.minimum(zero, real - 1).mean() + torch.minimum(zero, -1 - fake).mean()
    assert hinge_critic_loss(real, fake).item() == pytest.approx(-value.item())


def test_hinge_loss_leaves_scores_beyond_the_margin_alone():
    real, fake = (torch.tensor(x, requires_grad=True) for x in ([2.0, 0.0], [-3.0, 0.0, 5.0, -1.5]))
    hinge_critic_loss(real, fake).backward()
    assert real.grad.tolist() == [0, -1 / 2]
    assert fake.grad.tolist() == [0, 1 / 4, 1 / 4, 0]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 9), m=st.integers(1, 9))
def test_no_critic_of_constant_1_exceeds_the_distance(seed, n, m):
    real, fake = normal(n, seed=seed), 2 * normal(m, seed=seed + 1) + 1
    distance = scipy.stats.wasserstein_distance(real, fake)
    centre = normal(1, seed=seed + 2)
    for critic in (torch.abs, torch.sin, lambda x: -x, lambda x: (x - centre).abs()):
        assert wasserstein_estimate(critic(real), critic(fake)).item() <= distance + 1e-12
    # A shift is the case where the identity is the best critic.
    assert wasserstein_estimate(real + 3, real).item() == pytest.approx(3)


@pytest.mark.parametrize("loss", [wasserstein_estimate, critic_loss, hinge_critic_loss])
def test_losses_name_the_scores_that_they_refuse(loss):
    with pytest.raises(TypeError, match="real_scores must have a real floating-point dtype"):
        loss(torch.tensor([1]), torch.ones(1))
    with pytest.raises(ValueError, match="fake_scores must not be empty"):
        loss(torch.ones(2), torch.ones(0))
    with pytest.raises(ValueError, match="fake_scores must not be empty"):
        generator_loss(torch.ones(0))
    # To look at every score would wait for the device; the loss tells.
    assert loss(torch.ones(2), torch.tensor([0.0, math.nan])).isnan()


# --- interpolation ---


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_interpolation_draws_one_epsilon_a_sample(shape, dtype):
    real, fake = torch.ones(50, *shape, dtype=dtype), torch.zeros(50, *shape, dtype=dtype)
    x = interpolate(real, fake, generator=rng())
    assert x.shape == real.shape
    assert x.dtype == dtype
    epsilon = x.reshape(50, -1)
    assert torch.equal(epsilon, epsilon[:, :1].expand_as(epsilon))
    assert epsilon[:, 0].unique().numel() > 30  # bfloat16 has few numbers below 1
    expected = torch.rand(50, generator=rng(), dtype=torch.promote_types(dtype, torch.float32))
    assert torch.equal(epsilon[:, 0], expected.to(dtype))


def test_epsilon_weighs_the_real_sample_and_is_uniform():
    n = 4000
    x = interpolate(torch.full((n,), 5.0), torch.full((n,), 3.0), generator=rng(1))
    assert scipy.stats.kstest((x.numpy() - 3) / 2, "uniform").pvalue > 1e-3


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), shape=st.sampled_from(SHAPES))
def test_points_lie_on_the_segments_of_their_pair(seed, shape):
    real, fake = normal(5, *shape, seed=seed), normal(5, *shape, seed=seed + 1)
    x = interpolate(real, fake, generator=rng(seed))
    lengths = [gradient_norms(difference) for difference in (real - x, x - fake, real - fake)]
    assert (lengths[0] + lengths[1]).tolist() == pytest.approx(lengths[2].tolist())


def test_interpolation_differentiates_in_both_and_takes_views():
    real, fake = normal(4, 3, seed=1).T, normal(6, 4, seed=2)[::2]
    pair = real.requires_grad_(), fake.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: interpolate(a, b, generator=rng()), pair)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2)])
def test_a_given_epsilon_is_where_the_points_lie(shape):
    real, fake = normal(4, *shape, seed=1), normal(4, *shape, seed=2)
    epsilon = torch.tensor([0.0, 0.25, 0.5, 1.0])
    rows = epsilon.double().reshape(4, *[1] * len(shape))
    expected = rows * real + (1 - rows) * fake
    for given_ in (epsilon, rows):
        torch.testing.assert_close(interpolate(real, fake, epsilon=given_), expected)
    assert torch.equal(interpolate(real, fake, epsilon=1), real)
    for one in (epsilon.tolist(), epsilon.numpy()):
        torch.testing.assert_close(interpolate(real, fake, epsilon=one), expected)
    for n in (1, 4):
        half = interpolate(real[:n], fake[:n], epsilon=torch.tensor(0.5))
        assert torch.equal(half, interpolate(real[:n], fake[:n], epsilon=0.5))
    norms = gradient_norms(expected)
    penalty = gradient_penalty(half_square, real, fake, epsilon=epsilon)
    assert penalty.item() == pytest.approx((norms - 1).square().mean().item())


@pytest.mark.parametrize(
    ("epsilon", "message"),
    [
        (torch.rand(3), r"one number a sample, shape \(4,\), got shape \(3,\)"),
        (torch.rand(1, 4), r"one number a sample, .* got shape \(1, 4\)"),
        (torch.tensor([0.0, 0.5, 1.5, 1.0]), r"epsilon must lie in \[0, 1\], got 0.0 to 1.5"),
        (1.0001, r"epsilon must lie in \[0, 1\], got 1.0001 to 1.0001"),
        ([0.5, 0.5], r"one number a sample, shape \(4,\), got shape \(2,\)"),
        (-0.5, r"epsilon must lie in \[0, 1\]"),
        (math.nan, "epsilon must be finite"),
    ],
)
def test_an_epsilon_that_is_none_is_refused(epsilon, message):
    for call in (interpolate, lambda *x, **y: gradient_penalty(half_square, *x, **y)):
        with pytest.raises(ValueError, match=message):
            call(normal(4, 2), normal(4, 2), epsilon=epsilon)
    with pytest.raises(ValueError, match="must not both be given"):
        interpolate(normal(4, 2), normal(4, 2), epsilon=0.5, generator=rng())


@pytest.mark.parametrize("epsilon", ["a", {}, [[0.5], [0.5, 0.5]]], ids=str)
def test_what_is_no_number_is_no_epsilon(epsilon):
    kind = type(epsilon).__name__
    with pytest.raises(TypeError, match=f"epsilon must be a number or numbers, got {kind}"):
        interpolate(normal(4, 2), normal(4, 2), epsilon=epsilon)


def test_what_is_no_generator_is_refused():
    for call in (interpolate, partial(gradient_penalty, half_square)):
        with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, got int"):
            call(normal(4, 2), normal(4, 2), generator=0)


def test_interpolation_draws_from_the_global_generator_by_default():
    real, fake = normal(5, 2, seed=1), normal(5, 2, seed=2)
    torch.manual_seed(3)
    first = interpolate(real, fake)
    assert torch.equal(first, interpolate(real, fake, generator=rng(3)))
    assert not torch.equal(first, interpolate(real, fake))


@pytest.mark.parametrize(
    "function", [interpolate, lambda real, fake: gradient_penalty(half_square, real, fake)]
)
def test_pairs_that_do_not_match_are_refused(function):
    with pytest.raises(ValueError, match=r"one shape, got \(3, 2\) and \(4, 2\); draw as many"):
        function(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(TypeError, match=r"one dtype, got torch\.float32 and torch\.float64"):
        function(torch.ones(3), torch.ones(3).double())
    with pytest.raises(ValueError, match="one device, got cpu, meta"):
        function(torch.ones(3, 2), _Elsewhere(torch.ones(3, 2)))
    with pytest.raises(TypeError, match=r"fake must have a real floating-point dtype"):
        function(torch.ones(3), torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="real must have at least 1 axes"):
        function(torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(ValueError, match="real must be finite"):
        function(torch.tensor([math.inf]), torch.ones(1))
    with pytest.raises(ValueError, match="fake must not be empty"):
        function(torch.ones(1, 2), torch.ones(0, 2))


class _Elsewhere(torch.Tensor):
    """A tensor that says it is on another device: there may be only one here."""

    @property
    def device(self):
        return torch.device("meta")


# --- gradient penalty ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("weights", "two_sided", "one_sided"),
    [((3.0, 4.0), 16, 16), ((0.0, 0.5), 0.25, 0), ((0,), 1, 0)],
)
def test_penalty_of_a_linear_critic_by_hand(weights, two_sided, one_sided, dtype):
    critic = linear(*weights, dtype=dtype)
    real, fake = (normal(7, len(weights), seed=seed, dtype=dtype) for seed in (1, 2))
    for sided, expected in ((False, two_sided), (True, one_sided)):
        critic.zero_grad()
        penalty = gradient_penalty(critic, real, fake, one_sided=sided)
        assert penalty.item() == pytest.approx(expected)
        assert penalty.dtype == torch.promote_types(dtype, torch.float32)
        penalty.backward()
        assert critic.weight.grad.isfinite().all()  # at the norm's kink in 0 too


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), shape=st.sampled_from(SHAPES), target=st.floats(0, 3))
def test_penalty_is_taken_at_the_interpolated_points(seed, shape, target):
    real, fake = normal(6, *shape, seed=seed), normal(6, *shape, seed=seed + 1)
    norms = gradient_norms(interpolate(real, fake, generator=rng(seed)))
    for one_sided in (False, True):
        excess = norms - target
        excess = excess.clamp(min=0) if one_sided else excess
        penalty = gradient_penalty(
            half_square, real, fake, one_sided=one_sided, target=target, generator=rng(seed)
        )
        assert penalty.item() == pytest.approx(excess.square().mean().item(), abs=1e-12)


def test_penalty_agrees_with_the_norms_of_the_jacobian():
    critic = net(3, 8, 8, 1)
    real, fake = normal(5, 3, seed=1), normal(5, 3, seed=2)
    norms = jacobian_norms(critic, interpolate(real, fake, generator=rng()))
    penalty = gradient_penalty(critic, real, fake, generator=rng())
    assert penalty.item() == pytest.approx((norms - 1).square().mean().item())


@pytest.mark.parametrize("one_sided", [False, True])
def test_penalty_differentiates_in_the_parameters(one_sided):
    critic = net(2, 4, 1)
    names = [name for name, _ in critic.named_parameters()]
    # Slopes on both sides of 0.2, so that neither version is flat or smooth by luck.
    real, fake = normal(4, 2, seed=1), normal(4, 2, seed=2)

    def penalty(*parameters):
        weights = dict(zip(names, parameters, strict=True))
        return gradient_penalty(
            lambda x: functional_call(critic, weights, (x,)),
            *(real, fake),
            one_sided=one_sided,
            target=0.2,
            generator=rng(),
        )

    parameters = tuple(critic.parameters())
    assert torch.autograd.gradcheck(penalty, parameters)
    assert penalty(*parameters).item() == pytest.approx(
        gradient_penalty(
            critic, real, fake, one_sided=one_sided, target=0.2, generator=rng()
        ).item()
    )


def test_penalty_sends_no_gradient_to_samples_and_leaves_grads_alone():
    critic = net(2, 4, 1)
    real, fake = normal(3, 2, seed=1).requires_grad_(), normal(3, 2, seed=2).requires_grad_()
    penalty = gradient_penalty(critic, real, fake)
    assert all(parameter.grad is None for parameter in critic.parameters())
    penalty.backward()
    assert real.grad is None
    assert fake.grad is None
    assert critic[0].weight.grad is not None


def test_penalty_takes_flat_scores_views_images_and_conditions():
    critic = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 1)).double()
    real, fake = normal(6, 6, 3, 5, seed=1).permute(3, 2, 0, 1), normal(10, 3, 6, 6)[::2]
    column = gradient_penalty(critic, real, fake, generator=rng())
    flat = gradient_penalty(lambda x: critic(x)[:, 0], real, fake, generator=rng())
    assert column.item() == flat.item()
    labels = torch.tensor([2.0, -2.0, 3.0, 3.0, 0.0]).double()
    conditional = gradient_penalty(lambda x: labels * x.sum((1, 2, 3)), real, fake)
    expected = (labels.abs() * math.sqrt(3 * 6 * 6) - 1).square().mean()
    assert conditional.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(4),
        nn.SyncBatchNorm(4),
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.LazyBatchNorm1d(),
    ],
)
def test_batch_norm_is_refused_with_the_reason(layer):
    critic = nn.Sequential(nn.Linear(2, 4), nn.Sequential(layer), nn.Linear(4, 1))
    real, fake = torch.randn(2, 5, 2, generator=rng())
    reason = "BatchNorm layer (in training mode|without running statistics): it lets a score depend"
    holder = SimpleNamespace(net=critic)
    label = functools.partial(lambda x, net, sign: sign * net(x), net=critic, sign=-1)
    for function in (critic, lambda x: critic(x), lambda x: holder.net(x), critic.forward, label):
        with pytest.raises(ValueError, match=reason):
            gradient_penalty(function, real, fake)
        with pytest.raises(ValueError, match=reason):
            R1Penalty().penalty(function, real, fake, rng())
    assert not any(module._forward_pre_hooks for module in critic[1:].modules())
    other = nn.Linear(2, 1)  # beside one that is there and does not run
    gradient_penalty(lambda x: other(x) if holder.net else critic(x), real, fake)


def test_batch_norm_passes_in_evaluation_unless_it_has_no_statistics():
    critic = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Linear(4, 1))
    real, fake = torch.randn(2, 5, 2, generator=rng())
    assert gradient_penalty(critic.eval(), real, fake).isfinite()
    critic[1] = nn.BatchNorm1d(4, track_running_stats=False).eval()
    with pytest.raises(ValueError, match=r"without running statistics: .*GroupNorm$"):
        gradient_penalty(critic, real, fake)


def patches():
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 1, 2)
    return nn.Sequential(*layers).double()


def test_a_map_of_scores_counts_by_its_mean():
    """As in the losses: the score of a sample is the mean of its map, and so is its gradient."""
    critic, real, fake = patches(), normal(5, 3, 6, 6, seed=1), normal(5, 3, 6, 6, seed=2)
    assert critic(real).shape == (5, 1, 3, 3)
    norms = jacobian_norms(
        lambda x: critic(x).mean((1, 2, 3)), interpolate(real, fake, epsilon=0.3)
    )
    penalty = gradient_penalty(critic, real, fake, epsilon=0.3)
    assert penalty.item() == pytest.approx((norms - 1).square().mean().item())
    summed = gradient_penalty(lambda x: critic(x).flatten(1).sum(1), real, fake, epsilon=0.3)
    assert summed.item() == pytest.approx((9 * norms - 1).square().mean().item())
    r1 = r1_penalty(critic, real)
    norms = jacobian_norms(lambda x: critic(x).mean((1, 2, 3)), real)
    assert r1.item() == pytest.approx(norms.square().mean().item() / 2)


def test_r1_is_half_the_mean_squared_gradient_at_the_data():
    """(9) of Mescheder et al. (2018), with γ = 1, and its derivative in the parameters."""
    real = normal(6, 3, seed=1)
    assert r1_penalty(half_square, real).item() == pytest.approx(real.square().sum(1).mean() / 2)
    critic = net(3, 4, 1)
    names = [name for name, _ in critic.named_parameters()]

    def penalty(*parameters):
        weights = dict(zip(names, parameters, strict=True))
        return r1_penalty(lambda x: functional_call(critic, weights, (x,)), real)

    assert torch.autograd.gradcheck(penalty, tuple(critic.parameters()))
    found = R1Penalty(3.0).penalty(critic, real, None, None)
    assert found.item() == pytest.approx(3 * r1_penalty(critic, real).item())


PENALTIES = [
    lambda critic, real, fake: gradient_penalty(critic, real, fake, generator=rng()),
    lambda critic, real, _: r1_penalty(critic, real),
    lambda critic, real, fake: GradientPenalty().penalty(critic, real, fake, rng()),
    lambda critic, real, fake: R1Penalty().penalty(critic, real, fake, rng()),
    lambda critic, *_: frobenius_excess_penalty(critic, 0.1),
]


@pytest.mark.parametrize(
    ("beginning", "plain"),
    [
        (nn.LeakyReLU(0.5, inplace=True), nn.LeakyReLU(0.5)),
        (lambda x: x.mul_(3), lambda x: x * 3),
    ],
)
@pytest.mark.parametrize("at_an_end", [False, True])
def test_a_critic_may_begin_in_place(beginning, plain, at_an_end):
    critic, samples = net(3, 8, 1), normal(2, 4, 3)
    given = samples.clone()
    for penalty in (
        lambda f, real, fake: gradient_penalty(f, real, fake, epsilon=float(at_an_end)),
        lambda f, real, _: r1_penalty(f, real.requires_grad_(at_an_end)),
        lambda f, real, fake: R1Penalty().penalty(f, real, fake, None),
    ):
        expected = penalty(lambda x: critic(plain(x)), *samples)
        torch.testing.assert_close(penalty(lambda x: critic(beginning(x)), *given), expected)
        assert torch.equal(given, samples)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_callers_mode_changes_no_penalty(penalty, mode):
    critic, samples = net(2, 4, 1), (normal(5, 2, seed=1), normal(5, 2, seed=2))
    outside = penalty(critic, *samples).item()
    with mode():
        assert penalty(critic, *samples).item() == outside
        assert penalty(critic, *(x.clone() for x in samples)).item() == outside
        inner = [x.clone() for x in samples]
    assert penalty(critic, *inner).item() == outside
    for parameter in critic.parameters():
        assert parameter.grad is None


@pytest.mark.parametrize("penalty", PENALTIES[:-1])
def test_a_critic_that_was_made_in_inference_mode_has_its_penalties(penalty):
    """So have two layers of it that share a weight; and one that is still lazy."""
    with torch.inference_mode():
        critic = net(2, 4, 4, 1)
        critic.insert(3, nn.Linear(4, 4).double())
        critic[3].weight = critic[2].weight
    ordinary = copy.deepcopy(critic)
    for layer in ordinary:
        for name, parameter in layer.named_parameters():
            setattr(layer, name, nn.Parameter(parameter.clone()))
    samples = normal(5, 2, seed=1), normal(5, 2, seed=2)
    weights = [*critic.parameters()]
    value = penalty(critic, *samples)
    assert value.item() == pytest.approx(penalty(ordinary, *samples).item())
    assert penalty(lambda x: critic(x), *samples).item() == value.item()
    assert all(map(torch.equal, weights, critic.parameters()))
    assert all(parameter.is_inference() for parameter in critic.parameters())
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 1)).double()
    gradient_penalty(lazy, *samples).backward()
    assert lazy[0].weight.grad.any()


def test_a_critic_without_a_gradient_is_refused():
    critic = torch.no_grad()(lambda x: x.sum(1))
    with pytest.raises(ValueError, match="critic must be differentiable, its scores have no grad"):
        gradient_penalty(critic, torch.ones(4, 2), torch.zeros(4, 2))


@pytest.mark.parametrize("scores", [{}, (torch.ones(4),), None, 1.0, torch.ones(4).numpy()])
def test_a_critic_that_returns_no_tensor_is_refused(scores):
    message = f"critic's score must be a torch.Tensor, got {type(scores).__name__}"
    for call in (gradient_penalty, lambda critic, real, _: r1_penalty(critic, real)):
        with pytest.raises(TypeError, match=message):
            call(lambda _: scores, torch.ones(4, 2), torch.zeros(4, 2))


def test_a_critic_with_complex_scores_or_that_ignores_its_input_is_refused():
    real, fake = torch.ones(4, 2), torch.zeros(4, 2)
    with pytest.raises(TypeError, match=r"critic must return real scores, got torch\.complex64"):
        gradient_penalty(lambda x: 1j * x.sum(1), real, fake)
    constant = torch.ones(4, requires_grad=True)
    with pytest.raises(ValueError, match="critic must depend on its input, its scores do not"):
        gradient_penalty(lambda _: 2 * constant, real, fake)


@pytest.mark.parametrize("one_sided", ["two-sided", 1, None])
def test_what_is_no_bool_is_no_side(one_sided):
    message = f"one_sided must be a bool, got {type(one_sided).__name__}"
    with pytest.raises(TypeError, match=message):
        gradient_penalty(half_square, torch.ones(4, 2), torch.ones(4, 2), one_sided=one_sided)
    with pytest.raises(TypeError, match=message):
        GradientPenalty(one_sided=one_sided)


@pytest.mark.parametrize(
    "critic", [nn.Linear(2, 3), torch.sum, nn.Identity(), nn.Unflatten(1, (2, 1))]
)
def test_penalty_refuses_critics_without_one_score_a_sample(critic):
    with pytest.raises(ValueError, match=r"score a sample, shape \(4,\) or \(4, 1\), or .* got"):
        gradient_penalty(critic, torch.ones(4, 2), torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("target", "error"),
    [(-1.0, ValueError), (math.inf, ValueError), (math.nan, ValueError), ("1", TypeError)],
)
def test_targets_that_are_no_norm_are_refused(target, error):
    with pytest.raises(error, match="target must be a"):
        gradient_penalty(half_square, torch.ones(1, 1), torch.ones(1, 1), target=target)
    with pytest.raises(error, match="target must be a"):
        GradientPenalty(target=target)


# --- clipping and excess ---


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), c=st.floats(1e-3, 2))
def test_weight_clipping_clamps_every_parameter(seed, c):
    critic = net(2, 5, 1, seed=seed)
    before = [parameter.detach().clone() for parameter in critic.parameters()]
    clip_weights_(critic, c)
    for old, new in zip(before, critic.parameters(), strict=True):
        assert torch.equal(new, old.clamp(-c, c))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bound_beyond_the_dtype_clips_nothing(dtype):
    critic = nn.Sequential(nn.Linear(2, 2), nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    state = {name: x.clone() for name, x in critic.to(dtype).state_dict().items()}
    clip_weights_(critic, 1e300)
    assert all(torch.equal(x, state[name]) for name, x in critic.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_weight_is_rounded_to_above_the_bound(dtype):
    torch.manual_seed(0)
    assert clip_weights_(nn.Linear(9, 9).to(dtype), 0.01).weight.max().item() <= 0.01


@pytest.mark.parametrize("clip", [clip_weights_, clip_frobenius_])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_weight_that_is_not_finite_is_clipped(clip, bad):
    """One infinity made all others 0 and itself NaN."""
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    layers[1].weight.data[0, 0] = bad
    before = layers[0].weight.detach().clone()
    with pytest.raises(ValueError, match=f"1.weight must be finite, got {bad} at index"):
        clip(layers, 1e-3)
    assert torch.equal(layers[0].weight, before)
    with pytest.raises(TypeError, match=r"must have (a real floating|real weights)"):
        clip(nn.Linear(2, 2, dtype=torch.complex64), 1.0)


def test_clipping_does_not_only_rescale():
    """Two samples at one distance, and clipping's best estimates of it differ by a factor of 2.

    a·(relu(w x + b)) is monotone, which suits a step from 0 to 1. From 0 to both -1 and 1 its gain
    is a·(relu(b - w) + relu(b + w)) / 2 - a·relu(b), and at most (|w| - |b|) / 2.
    """
    critic = mlp([1, 1, 1]).double()
    parameters = nn.utils.parameters_to_vector(critic.parameters())  # w, b, a and an offset

    def best_estimate(real, fake):
        estimates = []
        for values in itertools.product(torch.linspace(-2, 2, 9).double(), repeat=3):
            vector = torch.stack([*values, parameters[3]])
            nn.utils.vector_to_parameters(vector, critic.parameters())
            clip_weights_(critic, 1.0)
            estimates.append(wasserstein_estimate(critic(real), critic(fake)).item())
        return max(estimates)

    zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    both = torch.cat([-one, one])
    for real, estimate in ((one, 1.0), (both, 0.5)):
        assert scipy.stats.wasserstein_distance(real[:, 0], zero[:, 0]) == 1
        assert best_estimate(real, zero) == pytest.approx(estimate)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), limit=st.floats(1e-3, 3))
def test_frobenius_clipping_keeps_directions_and_bounds_the_critic(seed, limit):
    critic = net(2, 5, 5, 1, activation=nn.ReLU, seed=seed)
    before = [parameter.detach().clone() for parameter in critic.parameters()]
    clip_frobenius_(critic, limit)
    for old, new in zip(before, critic.parameters(), strict=True):
        factor = min(1.0, limit / old.norm().item()) if old.ndim > 1 else 1.0
        assert new.flatten().tolist() == pytest.approx((factor * old).flatten().tolist())
    assert layer_product_bound(critic, (2,)).value <= limit**3 * (1 + 1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_frobenius_norms_are_safe_in_every_dtype_and_at_zero(dtype):
    layer = nn.Conv2d(4, 8, 3, dtype=dtype)
    nn.init.constant_(layer.weight, 20.0)  # the square of the norm overflows float16
    norm = 20 * math.sqrt(layer.weight.numel())
    penalty = frobenius_excess_penalty(layer, 1.0)
    assert penalty.item() == pytest.approx((norm - 1) ** 2, rel=1e-5)
    clip_frobenius_(layer, 2.0)
    size = layer.weight.double().norm().item()
    assert size == pytest.approx(2, rel=4 * torch.finfo(dtype).eps)
    nn.init.zeros_(layer.weight)
    clip_frobenius_(layer, 1.0)
    frobenius_excess_penalty(layer, 1.0).backward()
    assert not layer.weight.any()
    assert not layer.weight.grad.any()


def test_excess_counts_each_matrix_above_the_limit_and_no_bias():
    critic = nn.Sequential(linear(3.0, 4.0), linear(1.0), nn.Linear(1, 1))
    nn.init.zeros_(critic[2].weight)
    nn.init.constant_(critic[2].bias, 100.0)
    assert frobenius_excess_penalty(critic, 2.0).item() == pytest.approx(9)
    assert frobenius_excess_penalty(critic, 0.5).item() == pytest.approx(4.5**2 + 0.5**2)
    assert frobenius_excess_penalty(critic, 5.0).item() == 0


def test_excess_pulls_each_matrix_towards_the_limit():
    critic = net(3, 4, 2)
    frobenius_excess_penalty(critic, 0.3).backward()
    for weight in (critic[0].weight, critic[2].weight):
        norm = weight.detach().norm()
        expected = 2 * (norm - 0.3) / norm * weight
        assert weight.grad.flatten().tolist() == pytest.approx(expected.flatten().tolist())
    assert critic[0].bias.grad is None


@pytest.mark.parametrize("function", [clip_frobenius_, frobenius_excess_penalty])
def test_modules_without_a_matrix_are_refused(function):
    with pytest.raises(ValueError, match="module must have a parameter with two axes"):
        function(nn.LayerNorm(3), 1.0)


@pytest.mark.parametrize(
    ("function", "name"),
    [(clip_weights_, "c"), (clip_frobenius_, "limit"), (frobenius_excess_penalty, "limit")],
)
@pytest.mark.parametrize(
    ("bad", "error"),
    [(0.0, ValueError), (-1, ValueError), (math.nan, ValueError), ("1", TypeError)],
)
def test_limits_that_bound_nothing_are_refused(function, name, bad, error):
    with pytest.raises(error, match=f"{name} must be a"):
        function(nn.Linear(1, 1), bad)


# --- weights that are made of others ---


def weight_normalized(*sizes):
    critic = net(*sizes)
    for layer in critic[::2]:
        nn.utils.parametrizations.weight_norm(layer)
    return critic


def test_clipping_bounds_the_weight_that_the_layer_uses():
    critic = weight_normalized(2, 5, 1)
    before = critic[0].weight.detach().clone()
    assert clip_weights_(critic, 0.1) is critic
    torch.testing.assert_close(critic[0].weight, before.clamp(-0.1, 0.1))
    assert clip_frobenius_(critic, 0.05) is critic
    for layer in critic[::2]:
        assert layer.weight.norm().item() == pytest.approx(0.05)
    assert layer_product_bound(critic, (2,)).value <= 0.05**2 * (1 + 1e-9)


@pytest.mark.parametrize("normalize", [spectral_normalize, nn.utils.parametrizations.spectral_norm])
def test_weights_that_undo_the_clipping_are_refused_and_kept(normalize):
    critic = nn.Sequential(normalize(nn.Linear(4, 4)))
    before = [tensor.clone() for tensor in critic.state_dict().values()]
    for clip in (clip_weights_, clip_frobenius_):
        with pytest.raises(ValueError, match=r"0\.weight cannot be set .*remove_parametrizations"):
            clip(critic, 0.01)
        clip(critic, 10.0)  # within bounds already
    for constraint in (WeightClipping(0.01), FrobeniusClipping(0.01)):
        with pytest.raises(ValueError, match="cannot be set"):
            constraint.after_step(critic)
    kept = list(critic.state_dict().items())
    assert all(
        torch.equal(old, new) or "bias" in name
        for old, (name, new) in zip(before, kept, strict=True)
    )


def test_excess_counts_the_weight_that_the_layer_uses_and_moves_no_vector():
    critic = nn.Sequential(spectral_normalize(nn.Linear(4, 4), n_power_iterations=50)).double()
    vectors = [buffer.clone() for buffer in critic.buffers()]
    penalty = frobenius_excess_penalty(critic, 0.5)
    assert all(map(torch.equal, critic.buffers(), vectors))
    weight = critic[0].weight
    assert penalty.item() == pytest.approx((weight.norm().item() - 0.5) ** 2)
    penalty.backward()
    assert critic[0].parametrizations.weight.original.grad.any()


@pytest.mark.parametrize(
    "hook", [nn.utils.spectral_norm, lambda m: prune.random_unstructured(m, "weight", 0.5)]
)
def test_weights_that_a_hook_makes_are_refused(hook):
    critic = nn.Sequential(hook(nn.Linear(4, 4)))
    for function in (clip_weights_, clip_frobenius_, frobenius_excess_penalty):
        with pytest.raises(ValueError, match=r"0\.weight is made by a hook, .*parametrizations"):
            function(critic, 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_norm_whose_square_overflows_is_not_zero(dtype):
    layer = nn.Linear(4, 4, dtype=dtype)
    nn.init.constant_(layer.weight, torch.finfo(dtype).max / 16)
    clip_frobenius_(layer, 2.0)
    torch.testing.assert_close(layer.weight, torch.full_like(layer.weight, 0.5))


# --- constraints as objects ---


def penalty_and_step(constraint, critic):
    real, fake = normal(4, 2, seed=1), normal(4, 2, seed=2)
    penalty = constraint.penalty(critic, real, fake, rng())
    before = nn.utils.parameters_to_vector(critic.parameters()).detach().clone()
    constraint.after_step(critic)
    after = nn.utils.parameters_to_vector(critic.parameters()).detach()
    return penalty, not torch.equal(before, after)


@pytest.mark.parametrize(
    ("constraint", "penalizes", "changes"),
    [
        (Unconstrained(), False, False),
        (WeightClipping(0.1), False, True),
        (FrobeniusClipping(0.1), False, True),
        (FrobeniusExcess(0.1), True, False),
        (GradientPenalty(), True, False),
        (GradientPenalty(one_sided=True, target=0.01), True, False),
        (R1Penalty(), True, False),
    ],
)
def test_each_constraint_acts_in_its_own_place(constraint, penalizes, changes):
    critic = net(2, 4, 1)
    penalty, changed = penalty_and_step(constraint, critic)
    assert penalty.shape == ()
    assert (penalty.item() > 0) == penalizes
    assert penalty.requires_grad == penalizes
    assert changed == changes


def test_constraints_are_their_functions_times_the_weight():
    critic, real, fake = net(2, 4, 1), normal(4, 2, seed=1), normal(4, 2, seed=2)
    penalty = GradientPenalty(3.0, one_sided=True, target=0.1).penalty(critic, real, fake, rng())
    expected = gradient_penalty(critic, real, fake, one_sided=True, target=0.1, generator=rng())
    assert penalty.item() == pytest.approx(3 * expected.item())
    penalty = FrobeniusExcess(0.2, 3.0).penalty(critic, real, fake, rng())
    assert penalty.item() == pytest.approx(3 * frobenius_excess_penalty(critic, 0.2).item())
    clipped = net(2, 4, 1)
    WeightClipping(0.05).after_step(clipped)
    assert max(p.abs().max().item() for p in clipped.parameters()) == 0.05
    FrobeniusClipping(0.01).after_step(clipped)
    assert layer_product_bound(clipped, (2,)).value <= 1e-4 * (1 + 1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: WeightClipping(0.0),
        lambda: FrobeniusClipping(-1.0),
        lambda: FrobeniusExcess(limit=0.0),
        lambda: FrobeniusExcess(strength=0.0),
        lambda: GradientPenalty(strength=0.0),
        lambda: R1Penalty(-1.0),
    ],
)
def test_constraints_that_constrain_nothing_are_refused(make):
    with pytest.raises(ValueError, match="must be a finite number above 0"):
        make()


def test_a_constraint_of_ones_own_overrides_what_it_needs():
    class Nothing(Constraint):
        pass

    penalty, changed = penalty_and_step(Nothing(), net(2, 4, 1))
    assert penalty.item() == 0
    assert not changed


def test_constraints_are_values():
    assert GradientPenalty(5) == GradientPenalty(strength=5)
    assert WeightClipping(0.1) != WeightClipping(0.2)
    assert repr(FrobeniusExcess(2.0, 3.0)) == "FrobeniusExcess(limit=2.0, strength=3.0)"
    with pytest.raises(AttributeError):
        WeightClipping(0.1).c = 0.2


def test_torch_func_cannot_transform_a_penalty():
    critic = nn.Linear(2, 1)
    weights = {name: weight.detach() for name, weight in critic.named_parameters()}
    with pytest.raises(
        RuntimeError, match=r"torch\.func cannot transform a gradient penalty; take"
    ):
        torch.func.grad(
            lambda p: r1_penalty(lambda x: functional_call(critic, p, (x,)), torch.ones(3, 2))
        )(weights)
