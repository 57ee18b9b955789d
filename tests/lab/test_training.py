"""The two loops: equal to loops written by hand, in any grad mode, and stopped by a NaN."""
# ruff: noqa: ARG002  (a constraint is given what it may not need)

import contextlib
import copy
import gc
import math
import weakref
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from lipbook.lab import training
from lipbook.lab.networks import mlp
from lipbook.lab.training import critic_step, fit_critic, generator_step, train_wgan
from lipbook.lipschitz import exact_lipschitz, jacobian_norms
from lipbook.normalization import spectral_normalize
from lipbook.wgan import (
    Constraint,
    FrobeniusClipping,
    FrobeniusExcess,
    GradientPenalty,
    R1Penalty,
    Unconstrained,
    WeightClipping,
    interpolate,
    wasserstein_estimate,
)

CONSTRAINTS = [
    Unconstrained(),
    WeightClipping(0.1),
    FrobeniusClipping(0.5),
    FrobeniusExcess(0.5, 3.0),
    GradientPenalty(),
    GradientPenalty(5.0, one_sided=True),
    R1Penalty(),
]
COLUMNS = ["step", "critic_loss", "estimate", "penalty", "gradient_norm", "generator_loss"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def points(n, *shape, seed=0, shift=0.0):
    return shift + torch.randn(n, *shape, generator=rng(seed), dtype=torch.float64)


def net(*sizes, seed=0, activation=nn.Tanh):
    torch.manual_seed(seed)
    return mlp(sizes, activation).double()


def state(module):
    return [tensor.clone() for tensor in module.state_dict().values()]


def same(module, tensors):
    return all(torch.equal(a, b) for a, b in zip(state(module), tensors, strict=True))


def sample_real(n, generator):
    return 3 + torch.randn(n, 2, generator=generator, dtype=torch.float64)


def train(steps=6, *, networks=None, seed=1, **kwargs):
    """Train small networks briefly; return them and the history."""
    generator_net, critic = networks or (net(3, 4, 2, seed=1), net(2, 5, 1, seed=2))
    settings = {
        "latent_dim": 3,
        "constraint": GradientPenalty(),
        "critic_steps": 2,
        "batch_size": 7,
        "generator": rng(seed),
    }
    history = train_wgan(generator_net, critic, sample_real, steps=steps, **{**settings, **kwargs})
    return generator_net, critic, history


# --- a critic between two fixed samples ---


@pytest.mark.parametrize("distance", [2.0, 10.0])
@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("slope", [-1.0, 1.0])
def test_two_point_masses_follow_the_formula(distance, one_sided, slope):
    """From the right side the slope is 1 + W/(2λ); from the wrong one, two-sided, it gets stuck."""
    weight = 10.0
    critic = nn.Linear(1, 1).double()
    nn.init.constant_(critic.weight, slope)
    real, fake = torch.full((4, 1), distance).double(), torch.zeros(4, 1).double()
    constraint = GradientPenalty(weight, one_sided=one_sided)
    fit_critic(critic, real, fake, constraint, steps=400, lr=0.02, optimizer=torch.optim.SGD)
    expected = 1 + distance / (2 * weight)
    if slope < 0 and not one_sided:
        expected -= 2  # a minimum of (19), with the samples ranked the wrong way round
    assert critic.weight.item() == pytest.approx(expected, rel=1e-6)


def test_estimate_never_exceeds_the_exact_distance_times_the_constant():
    real, fake = points(40, 2, seed=1, shift=2.0), points(40, 2, seed=2)
    costs = torch.cdist(real, fake).numpy()
    distance = costs[linear_sum_assignment(costs)].mean()  # W₁ of samples of equal size
    for constraint in CONSTRAINTS:
        critic = net(2, 12, 1, seed=3, activation=nn.ReLU)
        fit_critic(critic, real, fake, constraint, steps=100, lr=0.01)
        estimate = wasserstein_estimate(critic(real), critic(fake)).item()
        constant = exact_lipschitz(critic, (-10, 10)).value
        assert 0 < estimate <= constant * distance * (1 + 1e-9)


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
@pytest.mark.parametrize("batch_size", [None, 5])
def test_fit_critic_is_the_loop_written_by_hand(constraint, batch_size):
    real, fake = points(8, 2, seed=1, shift=1.0), points(8, 2, seed=2)
    critic = net(2, 6, 1)
    twin = copy.deepcopy(critic)
    history = fit_critic(
        critic, real, fake, constraint, steps=7, lr=0.01, batch_size=batch_size, generator=rng(4)
    )
    generator = rng(4)
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.01, betas=(0.0, 0.9))
    losses = []
    for _ in range(7):
        if batch_size is None:
            x, y = real, fake[torch.randperm(8, generator=generator)]
        else:
            x = real[torch.randint(8, (batch_size,), generator=generator)]
            y = fake[torch.randint(8, (batch_size,), generator=generator)]
        loss = twin(y).mean() - twin(x).mean()
        loss = loss + constraint.penalty(twin, x, y, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        constraint.after_step(twin)
        losses.append(loss.item())
    for mine, theirs in zip(critic.parameters(), twin.parameters(), strict=True):
        assert mine.flatten().tolist() == pytest.approx(theirs.flatten().tolist(), rel=1e-9)
    assert history["loss"].tolist() == pytest.approx(losses, rel=1e-9)


def test_fit_critic_reports_what_it_minimizes():
    real, fake = points(6, 2, seed=1, shift=1.0), points(6, 2, seed=2)
    critic = net(2, 6, 1)
    at_first = copy.deepcopy(critic)
    history = fit_critic(critic, real, fake, GradientPenalty(), steps=45)
    assert isinstance(history, pd.DataFrame)
    columns = ["step", "loss", "estimate", "penalty", "gradient_norm", "seconds"]
    assert history.columns.tolist() == columns
    assert history["step"].tolist() == list(range(1, 46))
    gap = history["penalty"] - history["estimate"] - history["loss"]
    assert gap.abs().max() <= 1e-12
    assert history["estimate"][0] == pytest.approx(
        (at_first(real).mean() - at_first(fake).mean()).item()
    )
    measured = history.dropna()
    assert measured["step"].tolist() == [1, 21, 41]
    norms = jacobian_norms(at_first, torch.cat([real, fake]))
    assert measured["gradient_norm"][0] == pytest.approx(norms.mean().item())
    assert (history["seconds"] > 0).all()
    assert not critic.training


def test_gradient_norms_weigh_samples_of_unequal_size_alike():
    real, fake = points(3, 2, seed=1), points(9, 2, seed=2)
    critic = net(2, 6, 1)
    norms = jacobian_norms(critic, torch.cat([real, fake]))
    history = fit_critic(critic, real, fake, WeightClipping(0.1), steps=1)
    assert history["gradient_norm"][0] == pytest.approx(norms.mean().item())


def test_fit_critic_depends_on_its_generator_alone():
    real, fake = points(8, 2, seed=1), points(8, 2, seed=2)

    def fitted(seed, global_seed):
        critic = net(2, 6, 1)
        torch.manual_seed(global_seed)
        generator = None if seed is None else rng(seed)
        fit_critic(critic, real, fake, GradientPenalty(), steps=3, generator=generator)
        return state(critic), torch.rand(1)

    (default, drawn), (zero, _), (one, _) = fitted(None, 1), fitted(0, 2), fitted(1, 1)
    assert all(torch.equal(a, b) for a, b in zip(default, zero, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(default, one, strict=True))
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_fit_critic_takes_other_dtypes_images_and_samples_that_require_gradients(dtype):
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)).to(dtype)
    real = points(5, 4, 4, 1).permute(0, 3, 1, 2).to(dtype).requires_grad_()
    history = fit_critic(critic, real, points(5, 1, 4, 4).to(dtype), GradientPenalty(), steps=2)
    assert history[["loss", "estimate", "penalty"]].notna().all(axis=None)
    assert real.grad is None


@dataclass(frozen=True)
class Recorder(Constraint):
    """A constraint from outside the package, which notes what it is given."""

    calls: list

    def penalty(self, critic, real, fake, generator):
        self.calls.append((critic.training, real, fake, generator))
        return super().penalty(critic, real, fake, generator)

    def after_step(self, critic):
        self.calls.append(critic[0].weight.detach().clone())


def test_a_constraint_of_ones_own_needs_no_change_to_the_loop():
    real, fake = points(4, 2, seed=1), points(4, 2, seed=2)
    critic, generator, recorder = net(2, 3, 1), rng(), Recorder([])
    critic.eval()
    before = critic[0].weight.detach().clone()
    fit_critic(critic, real, fake, recorder, steps=2, generator=generator)
    (training, x, y, source), after, _, last = recorder.calls
    assert training
    assert torch.equal(x, real)
    assert sorted(y.tolist()) == sorted(fake.tolist())  # paired anew
    assert not x.requires_grad
    assert not y.requires_grad
    assert source is generator
    assert not torch.equal(before, after)  # called after the optimizer's step
    assert torch.equal(last, critic[0].weight)


def test_whole_samples_are_paired_anew_in_each_step():
    recorder = Recorder([])
    fit_critic(net(1, 3, 1), points(20, 1), points(20, 1, seed=1), recorder, steps=2)
    first, second = (call[2] for call in recorder.calls[::2])
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"lr": 0.0}, ValueError, "lr must be a finite number above 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"loss": "logistic"}, ValueError, "loss must be one of 'wasserstein', 'hinge', got 'log"),
        ({"real": torch.ones(3, dtype=torch.int64)}, TypeError, "real must have a real float"),
        ({"fake": torch.full((3, 2), math.nan)}, ValueError, "fake must be finite"),
        ({"fake": torch.ones(3, 1)}, ValueError, r"samples of one shape, got \(2,\) and \(1,\)"),
        ({"fake": torch.ones(4, 2)}, ValueError, "real and fake must have one shape"),
    ],
)
def test_fit_critic_names_what_it_refuses(change, error, message):
    arguments = {"real": torch.ones(3, 2), "fake": torch.ones(3, 2), "steps": 1, **change}
    real, fake = arguments.pop("real"), arguments.pop("fake")
    with pytest.raises(error, match=message):
        fit_critic(mlp([2, 1]), real, fake, GradientPenalty(), **arguments)


# --- a generator against a critic ---


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
def test_train_wgan_is_the_loop_written_by_hand(constraint):
    generator_net, critic, history = train(3, constraint=constraint, critic_lr=0.01)
    g, d, generator = net(3, 4, 2, seed=1), net(2, 5, 1, seed=2), rng(1)
    g_adam = torch.optim.Adam(g.parameters(), lr=1e-4, betas=(0.0, 0.9))
    d_adam = torch.optim.Adam(d.parameters(), lr=0.01, betas=(0.0, 0.9))

    def latents():
        return torch.randn(7, 3, generator=generator, dtype=torch.float64)

    for _ in range(3):
        for _ in range(2):
            real, fake = sample_real(7, generator), g(latents()).detach()
            estimate = d(real).mean() - d(fake).mean()
            loss = constraint.penalty(d, real, fake, generator) - estimate
            d_adam.zero_grad()
            loss.backward()
            d_adam.step()
            constraint.after_step(d)
        g_loss = -d(g(latents())).mean()
        g_adam.zero_grad()
        g_loss.backward()
        g_adam.step()
    for ours, bare in ((generator_net, g), (critic, d)):
        for mine, theirs in zip(ours.parameters(), bare.parameters(), strict=True):
            assert mine.flatten().tolist() == pytest.approx(theirs.flatten().tolist(), rel=1e-9)
    assert history.columns.tolist() == [*COLUMNS, "seconds"]
    last = history.iloc[-1]
    assert last["critic_loss"] == pytest.approx(loss.item())
    assert last["estimate"] == pytest.approx(estimate.item())
    assert last["generator_loss"] == pytest.approx(g_loss.item())


def test_the_hinge_loss_is_the_loop_written_by_hand():
    generator_net, critic, history = train(3, loss="hinge", critic_steps=1, constraint=R1Penalty(2))
    g, d, generator = net(3, 4, 2, seed=1), net(2, 5, 1, seed=2), rng(1)
    g_adam, d_adam = (torch.optim.Adam(m.parameters(), lr=1e-4, betas=(0.0, 0.9)) for m in (g, d))
    for _ in range(3):
        real = sample_real(7, generator).requires_grad_()
        z = torch.randn(7, 3, generator=generator, dtype=torch.float64)
        (slope,) = torch.autograd.grad(d(real).sum(), real, create_graph=True)
        hinge = (1 - d(real)).clamp(min=0).mean() + (1 + d(g(z).detach())).clamp(min=0).mean()
        loss = hinge + slope.square().sum(1).mean()  # γ/2 = 1
        d_adam.zero_grad()
        loss.backward()
        d_adam.step()
        g_loss = -d(g(torch.randn(7, 3, generator=generator, dtype=torch.float64))).mean()
        g_adam.zero_grad()
        g_loss.backward()
        g_adam.step()
    for ours, bare in ((generator_net, g), (critic, d)):
        for mine, theirs in zip(ours.parameters(), bare.parameters(), strict=True):
            assert mine.flatten().tolist() == pytest.approx(theirs.flatten().tolist(), rel=1e-9)
    assert history["critic_loss"].iloc[-1] == pytest.approx(loss.item())


@pytest.mark.parametrize("loss", ["wasserstein", "hinge"])
def test_the_measured_slope_is_that_of_the_critic_whatever_the_loss(loss):
    """Beyond its margin a sample has no gradient in the hinge loss, but the critic has a slope."""
    critic = nn.Linear(2, 1).double()
    critic.weight.data = torch.tensor([[3.0, 4.0]]).double()
    history = fit_critic(
        *(critic, points(6, 2, shift=9.0), points(5, 2, shift=-9.0)),
        Unconstrained(),
        steps=1,
        loss=loss,
    )
    assert history["gradient_norm"][0] == pytest.approx(5)


def test_a_critic_may_return_a_map():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 1, 2)).double()
    norms = jacobian_norms(lambda x: critic(x).mean((1, 2, 3)), points(5, 1, 6, 6)).mean().item()
    history = fit_critic(
        *(critic, points(5, 1, 6, 6), points(5, 1, 6, 6)), GradientPenalty(), steps=2
    )
    assert history["gradient_norm"][0] == pytest.approx(norms)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_changes_no_training(mode):
    expected, *_ = train(3)
    pair = net(3, 4, 2, seed=1), net(2, 5, 1, seed=2)
    with mode():
        train(3, networks=pair)
        real, fake = points(6, 2, seed=1), points(6, 2, seed=2)
    assert same(pair[0], state(expected))
    critic, twin = net(2, 4, 1), net(2, 4, 1)
    fit_critic(critic, points(6, 2, seed=1), points(6, 2, seed=2), GradientPenalty(), steps=3)
    with mode():
        fit_critic(twin, real, fake, GradientPenalty(), steps=3)
    assert same(critic, state(twin))


def test_numpy_counts_are_counts():
    *_, history = train(np.int64(2), critic_steps=np.int64(1), batch_size=np.int32(4))
    assert len(history) == 2


def test_training_moves_the_generator_to_the_data():
    generator_net = nn.Linear(2, 2).double()
    kwargs = {"latent_dim": 2, "critic_lr": 0.02, "generator_lr": 0.02, "batch_size": 64}
    networks = generator_net, net(2, 16, 1)
    train(250, networks=networks, constraint=WeightClipping(0.2), **kwargs)
    mean = generator_net(points(1000, 2)).mean(0)
    assert ((mean - 3).abs() < 1).all()
    assert not any(network.training for network in networks)


def test_generator_step_asks_nothing_of_the_critic_and_spares_frozen_weights():
    generator_net, critic = net(3, 4, 2), net(2, 4, 1)
    generator_net[0].weight.requires_grad_(False)
    frozen = generator_net[0].weight.clone()
    optimizer = torch.optim.SGD(generator_net.parameters(), lr=1.0)
    before = state(generator_net)
    loss = generator_step(generator_net, critic, optimizer, points(5, 3))
    assert loss.shape == ()
    assert not loss.requires_grad
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert torch.equal(frozen, generator_net[0].weight)
    assert not same(generator_net, before)


def test_critic_step_returns_detached_scalars():
    critic = net(2, 4, 1)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    for measure in (False, True):
        numbers = critic_step(
            *(critic, optimizer, GradientPenalty(), points(4, 2), points(4, 2, seed=1), rng()),
            measure=measure,
        )
        assert all(n.shape == () and not n.requires_grad for n in numbers)
        assert numbers[-1].isnan().item() != measure


def normalized(*sizes, seed=0):
    critic = net(*sizes, seed=seed)
    for layer in critic[::2]:
        spectral_normalize(layer)
    return critic


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.1)


@pytest.mark.parametrize(
    "constraint", [c for c in CONSTRAINTS if "Clipping" not in type(c).__name__], ids=repr
)
def test_a_step_makes_one_power_iteration_a_layer(constraint):
    """Two passes and a penalty see one weight: its vectors are those of a single access."""
    critic = normalized(3, 8, 8, 1)
    twin = copy.deepcopy(critic)
    for _ in range(3):
        for layer in twin[::2]:
            _ = layer.weight
        critic_step(
            *(critic, sgd(critic), constraint, points(4, 3, shift=1.0), points(4, 3, seed=1)), rng()
        )
        for mine, theirs in zip(critic.buffers(), twin.buffers(), strict=True):
            assert torch.equal(mine, theirs)
        with torch.no_grad():
            for mine, theirs in zip(critic.parameters(), twin.parameters(), strict=True):
                theirs.copy_(mine)


def test_the_gradient_goes_through_the_one_weight_of_the_step():
    critic = normalized(3, 1)
    twin = copy.deepcopy(critic)
    real, fake = points(4, 3, shift=1.0), points(4, 3, seed=1)
    _, estimate, _, norm = critic_step(
        *(critic, sgd(critic), GradientPenalty(), real, fake, rng()), measure=True
    )
    weight = twin[0].weight
    slope = weight.norm()
    ((slope - 1) ** 2 * 10 - (weight @ (real.mean(0) - fake.mean(0))).sum()).backward()
    for mine, theirs in zip(critic.parameters(), twin.parameters(), strict=True):
        if theirs.grad is not None:  # the bias has none
            torch.testing.assert_close(mine.grad, theirs.grad)
    assert estimate.item() == pytest.approx((weight @ (real - fake).mean(0)).item())
    assert norm.item() == pytest.approx(slope.item())


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
def test_a_critic_without_a_parametrization_makes_the_same_step_as_ever(constraint):
    critic = net(3, 5, 1)
    twin = copy.deepcopy(critic)
    real, fake = points(4, 3, shift=1.0), points(4, 3, seed=1)
    critic_step(critic, sgd(critic), constraint, real, fake, rng())
    estimate = twin(real).mean() - twin(fake).mean()
    (constraint.penalty(twin, real, fake, rng()) - estimate).backward()
    sgd(twin).step()
    constraint.after_step(twin)
    assert same(twin, state(critic))


@pytest.mark.parametrize("spoil", [False, True])
def test_no_weight_of_a_step_outlives_it(spoil):
    """After it, or after an error in it, an access is a fresh one."""

    class Spoiler(Constraint):
        def penalty(self, critic, real, fake, generator):
            assert critic[0].weight is critic[0].weight
            if spoil:
                raise ZeroDivisionError
            return super().penalty(critic, real, fake, generator)

        def after_step(self, critic):
            assert critic[0].weight is not critic[0].weight

    critic = normalized(3, 4, 1)
    with pytest.raises(ZeroDivisionError) if spoil else contextlib.nullcontext():
        critic_step(critic, sgd(critic), Spoiler(), points(4, 3), points(4, 3, seed=1), rng())
    first, second = critic[0].weight, critic[0].weight
    assert not torch.equal(first, second)  # one more power iteration


def test_any_optimizer_of_torch_will_do():
    adam, rms = (train(3, optimizer=kind)[0] for kind in (torch.optim.Adam, torch.optim.RMSprop))
    assert not same(adam, state(rms))


def test_time_in_callbacks_does_not_count(monkeypatch):
    now = [0.0]

    def tick():
        now[0] += 1.0
        return now[0]

    def on_step(_):
        now[0] += 1000.0

    monkeypatch.setattr(training.time, "perf_counter", tick)
    *_, history = train(4, on_step=on_step)
    assert (history["seconds"] < 10).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"latent_dim": 0}, ValueError, "latent_dim must be at least 1"),
        ({"critic_steps": 1.5}, TypeError, "critic_steps must be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"critic_lr": -1.0}, ValueError, "critic_lr must be a finite number above 0"),
        ({"generator_lr": 0.0}, ValueError, "generator_lr must be a finite number above 0"),
        ({"loss": "logistic"}, ValueError, "loss must be one of 'wasserstein', 'hinge', got 'log"),
        ({"latent_dim": 4}, ValueError, "latent_dim=4 does not suit generator_net: mat1"),
        ({"networks": (net(3, 5), net(2, 1))}, ValueError, r"the real ones, \(2,\), got \(5,\)"),
        ({"networks": (nn.ReLU(), net(2, 1))}, ValueError, "empty parameter list"),
    ],
)
def test_train_wgan_names_what_it_refuses(change, error, message):
    with pytest.raises(error, match=message):
        train(1, **change)


@pytest.mark.parametrize(
    ("sampler", "error", "message"),
    [
        (lambda n, _: torch.ones(n + 1, 2), ValueError, "must draw 7 samples when asked, got 8"),
        (lambda n, _: [[0.0, 0.0]] * n, TypeError, "a batch of sample_real must be a torch.Tensor"),
        (lambda n, _: torch.full((n, 2), math.inf), ValueError, "sample_real must be finite"),
    ],
)
def test_samplers_that_do_not_sample_are_refused(sampler, error, message):
    with pytest.raises(error, match=message):
        train_wgan(
            *(net(3, 2), net(2, 1), sampler),
            latent_dim=3,
            constraint=Unconstrained(),
            steps=1,
            batch_size=7,
        )


# --- divergence ---


@dataclass(frozen=True)
class Saboteur(Constraint):
    """Spoils the penalty or a weight in one step of the critic."""

    step: int
    spoil: str
    count: list

    def penalty(self, critic, real, fake, generator):
        self.count.append(0)
        spoilt = len(self.count) == self.step and self.spoil == "penalty"
        return real.new_tensor(math.nan if spoilt else 0.0)

    def after_step(self, critic):
        if len(self.count) == self.step and self.spoil == "weight":
            critic[0].bias.data[1] = math.inf

    def __repr__(self):
        return "Saboteur()"


@pytest.mark.parametrize("steps", [30, 130])  # found at the end, or at the end of a block
def test_a_nan_stops_the_fit_with_its_step_and_cause(steps):
    saboteur = Saboteur(17, "penalty", [])
    with pytest.raises(FloatingPointError, match=r"diverged in step 17: the loss is nan; lower"):
        fit_critic(net(2, 4, 1), points(4, 2), points(4, 2), saboteur, steps=steps)
    assert len(saboteur.count) == min(steps, 100)


def test_a_weight_that_the_last_update_spoils_is_found():
    with pytest.raises(FloatingPointError, match=r"in step 9: the update left 0\.bias with"):
        fit_critic(*(net(2, 4, 1), points(4, 2), points(4, 2), Saboteur(9, "weight", [])), steps=9)


def test_an_overflow_is_found():
    critic = net(2, 4, 1).float()
    real, fake = points(4, 2).float(), points(4, 2, seed=1).float()
    with pytest.raises(FloatingPointError, match="training diverged in step"):
        fit_critic(critic, real, fake, Unconstrained(), steps=9, lr=1e38)


# --- memory ---


class Saved:
    """What autograd keeps of a forward pass, where it can be counted."""

    def __init__(self, tensor):
        self.tensor = tensor


def test_memory_does_not_grow_with_steps():
    """No graph outlives its step, and no tensor but the few numbers of the present block."""
    alive = weakref.WeakSet()
    graphs, tensors = [], []

    def pack(tensor):
        saved = Saved(tensor)
        alive.add(saved)
        return saved

    def on_step(step):
        if step % 100 == 10:
            gc.collect()
            graphs.append(len(alive))
            tensors.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        train(211, on_step=on_step, critic_steps=1)
    assert graphs[0] == graphs[1] == graphs[2]
    assert tensors[1] == tensors[2]


# --- another device ---


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
def test_a_gpu_sees_the_same_random_numbers(constraint):
    def sample(n, generator):
        return sample_real(n, generator).cuda()

    g, d = net(3, 4, 2, seed=1).cuda(), net(2, 5, 1, seed=2).cuda()
    kwargs = {"latent_dim": 3, "constraint": constraint, "critic_steps": 2, "batch_size": 7}
    history = train_wgan(g, d, sample, steps=4, generator=rng(1), **kwargs)
    *_, on_cpu = train(4, constraint=constraint)
    for column in COLUMNS[1:4]:
        assert history[column].tolist() == pytest.approx(on_cpu[column].tolist(), rel=1e-6)
    real, fake = points(6, 2, seed=1), points(6, 2, seed=2)
    x = interpolate(real.cuda(), fake.cuda(), generator=rng())
    assert torch.allclose(x.cpu(), interpolate(real, fake, generator=rng()))
    assert fit_critic(d, real.cuda(), fake.cuda(), constraint, steps=2)["loss"].notna().all()
