"""Trainings of image generators: the same losses as the core's, the same numbers as one loop."""

import pytest
import torch
from torch import nn

from lipbook.lab.gan import Rules, critic_objective, train_gan
from lipbook.wgan import critic_loss, gradient_penalty, hinge_critic_loss, r1_penalty

SHAPE = (1, 8, 8)


def critic(*, batch_norm=False):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), norm, nn.LeakyReLU(0.3), nn.Flatten(), nn.Linear(36, 1)
    )


def generator_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, SHAPE), nn.Tanh())


def samples():
    rng = torch.Generator().manual_seed(2)
    real, fake = (torch.randn(6, *SHAPE, generator=rng) for _ in range(2))
    return real, fake, torch.rand(6, generator=rng)


@pytest.mark.parametrize(
    ("loss", "expected"), [("wasserstein", critic_loss), ("hinge", hinge_critic_loss)]
)
@pytest.mark.parametrize("apart", [False, True])
def test_the_losses_are_the_cores(loss, expected, apart):
    real, fake, mixing = samples()
    net = critic()
    found = critic_objective(net, real, fake, mixing, Rules(loss=loss), apart)
    torch.testing.assert_close(found, expected(net(real), net(fake)))


@pytest.mark.parametrize("penalty", ["two-sided", "one-sided", "R1"])
def test_the_penalties_and_their_gradients_are_the_cores(penalty):
    real, fake, mixing = samples()
    ours, theirs = critic(), critic()
    for net in (ours, theirs):
        net[0].weight.data.mul_(9)  # so that some slopes exceed 1
    rules = Rules(penalty=penalty, strength=3.0)
    critic_objective(ours, real, fake, mixing, rules).backward()
    if penalty == "R1":
        added = 3.0 * r1_penalty(theirs, real)
    else:
        one_sided = penalty == "one-sided"
        added = 3.0 * gradient_penalty(theirs, real, fake, one_sided=one_sided, epsilon=mixing)
    (critic_loss(theirs(real), theirs(fake)) + added).backward()
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_batches_with_batch_norm_are_scored_apart():
    real, fake, mixing = samples()
    net = critic(batch_norm=True)
    found = critic_objective(net, real, fake, mixing, Rules(), apart=True)
    torch.testing.assert_close(found, critic_loss(net(real), net(fake)))
    joined = critic_objective(net, real, fake, mixing, Rules())
    assert (joined - found).abs() > 1e-3


def trained(stops, seed=0, **rules):
    nets = generator_net(), critic()
    pixels = torch.full((9, *SHAPE), 255, dtype=torch.uint8)
    given = {"critic_steps": 2, "batch_size": 4, **rules}
    for _ in train_gan(*nets, pixels, Rules(**given), latent_dim=3, stops=stops, seed=seed):
        pass
    return nets[0]


def test_stops_change_nothing_and_seeds_do():
    whole, parted, other = trained([60]), trained([1, 49, 51, 60]), trained([60], seed=1)
    assert torch.equal(whole[0].weight, parted[0].weight)
    assert not torch.equal(whole[0].weight, other[0].weight)


def test_a_generator_comes_to_the_data():
    with torch.no_grad():
        pixels = trained([200], penalty="R1", strength=0.1, critic_lr=5e-3, generator_lr=5e-3)(
            torch.zeros(1, 3)
        )
    assert pixels.mean() > 0.5  # from about 0, towards white


@pytest.mark.parametrize("stops", [[0, 1], [2, 2], [3, 1]])
def test_stops_must_increase(stops):
    with pytest.raises(ValueError, match="stops must increase from 1 on"):
        trained(stops)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": "logistic"}, "loss must be one of wasserstein, hinge, got 'logistic'"),
        ({"critic_steps": 0}, "critic_steps must be at least 1, got 0"),
        ({"critic_lr": 0.0}, "critic_lr must be a finite number above 0"),
    ],
)
def test_rules_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        Rules(**wrong)
