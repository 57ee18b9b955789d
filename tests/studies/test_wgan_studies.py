"""The studies of chapter 5: fixed samples, generators, many classes."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from torch import nn

import studies
from lipbook.lab.transport import wasserstein_distance
from lipbook.wgan import (
    FrobeniusClipping,
    FrobeniusExcess,
    GradientPenalty,
    Unconstrained,
    WeightClipping,
)
from studies import wgan_classes, wgan_critics, wgan_generation


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(weight: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight), 1, dtype=torch.float64)
    layer.weight.data = torch.tensor([weight], dtype=torch.float64)
    return layer


@pytest.mark.parametrize("study", [wgan_critics, wgan_generation])
def test_choices_follow_from_the_table(study):
    table = studies.load(study.__name__.removeprefix("studies."))
    assert study.best(table) == study.CHOSEN


@pytest.mark.parametrize("study", [wgan_critics, wgan_generation])
def test_what_is_chosen_was_tried_on_seeds_that_do_not_count(study):
    cells = pd.DataFrame(study.cells())
    assert set(study.TUNING_SEEDS).isdisjoint(study.TEST_SEEDS)
    runs = cells.groupby(["method", "strength"])["seed"].agg(set)
    for method, chosen in study.CHOSEN.items():
        strength = chosen if isinstance(chosen, float) else chosen[0]
        assert runs[method, strength] >= {*study.TUNING_SEEDS, *study.TEST_SEEDS}


# --- critics between two fixed samples


@pytest.mark.parametrize("target", wgan_critics.TARGETS)
def test_every_target_is_as_far_away(target):
    real, fake = wgan_critics.samples(target, rng())
    assert real.shape == fake.shape == (wgan_critics.N_SAMPLES, 2)
    assert fake.norm(dim=1).max() < 0.5
    assert wasserstein_distance(real, fake) == pytest.approx(wgan_critics.RADIUS, rel=0.07)


def test_the_targets_differ_in_where_they_lie():
    means = {t: wgan_critics.samples(t, rng())[0].mean(0) for t in wgan_critics.TARGETS}
    assert means["beside"][0] == pytest.approx(2, abs=0.05)
    assert max(means["both sides"].norm(), means["around"].norm()) < 0.05


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        ("none", Unconstrained()),
        ("weight clipping", WeightClipping(0.5)),
        ("Frobenius clipping", FrobeniusClipping(0.5)),
        ("Frobenius penalty", FrobeniusExcess(0.5, strength=10.0)),
        ("two-sided", GradientPenalty(0.5)),
        ("one-sided", GradientPenalty(0.5, one_sided=True)),
    ],
)
def test_constraints_of_the_methods(method, rule):
    assert wgan_critics.constraint(method, 0.5) == rule
    if method in wgan_generation.STRENGTHS:
        assert wgan_generation.constraint(method, 0.5) == rule


def test_the_constant_and_the_estimate_of_a_linear_critic():
    critic = linear([3.0, 4.0])
    assert wgan_critics.lipschitz_constant(critic) == pytest.approx(5)
    real, fake = torch.tensor([[1.0, 0], [1, 2]]).double(), torch.zeros(2, 2).double()
    assert wgan_critics.final_estimate(critic, real, fake) == pytest.approx(7)


@pytest.mark.parametrize(
    ("estimates", "expected"),
    [((1.0, 1.0, 1.0), 0), ((0.0, 0.95, 1.0), 1), ((1.0, 0.5, 1.0), 2), ((0.0, 0.0, 0.0), 3)],
)
def test_the_step_from_which_an_estimate_is_settled(estimates, expected):
    assert wgan_critics.settled(pd.Series(estimates), 1.0) == expected


def test_a_strength_that_has_not_bitten_is_not_chosen():
    rows = [
        ("none", 0.0, 100, 0.4, 3.0),
        ("one-sided", 1.0, 100, 0.9, 2.0),  # the best score, and still growing
        ("one-sided", 10.0, 100, 0.8, 1.0),
        ("one-sided", 100.0, 100, 0.5, 1.0),
        ("one-sided", 100.0, 0, 1.0, 1.0),  # a test seed does not count
    ]
    table = pd.DataFrame(rows, columns=["method", "strength", "seed", "score", "growth"])
    assert wgan_critics.best(table) == {"none": 0.0, "one-sided": 10.0}


def test_a_critic_is_decided_by_its_cell(monkeypatch):
    monkeypatch.setattr(wgan_critics, "STEPS", 6)
    monkeypatch.setattr(wgan_critics, "lipschitz_constant", lambda _: 2.0)
    first = wgan_critics.measure("two-sided", 1.0, "beside", 3)
    torch.manual_seed(123)
    assert wgan_critics.measure("two-sided", 1.0, "beside", 3) == first
    assert set(wgan_critics.TOLERANCE) <= set(first)
    assert first["score"] == first["estimate"] / 2
    assert wgan_critics.measure("two-sided", 100.0, "beside", 3) != first
    assert wgan_critics.measure("two-sided", 1.0, "around", 3) != first


# --- generators


def test_quality_is_best_for_the_real_samples():
    real = wgan_generation.real_samples(400, rng(1))
    good = wgan_generation.quality(wgan_generation.real_samples(400, rng(2)), real)
    one_mode = real[:1].expand(400, 2)
    bad = wgan_generation.quality(one_mode, real)
    assert good["distance"] < 0.5 < 1.5 < bad["distance"]
    assert (good["modes"], bad["modes"]) == (1, 1 / 8)
    assert good["near a mode"] > 0.95


def test_a_generator_is_decided_by_its_cell(monkeypatch):
    monkeypatch.setattr(wgan_generation, "SNAPSHOTS", (1, 2))
    monkeypatch.setattr(wgan_generation, "N_HELD_OUT", 80)
    first = wgan_generation.measure("two-sided", 1.0, 1e-2, 3, steps=2)
    torch.manual_seed(123)
    assert wgan_generation.measure("two-sided", 1.0, 1e-2, 3, steps=2) == first
    assert [row["step"] for row in first] == [1, 2]
    assert set(wgan_generation.TOLERANCE) <= set(first[0])
    # Both step sizes start from one generator, and have left it for different places.
    slow = wgan_generation.measure("two-sided", 1.0, 1e-4, 3, steps=2)
    assert first[1]["distance"] != slow[1]["distance"]


def test_the_best_generator_has_the_smallest_last_distance():
    last = wgan_generation.STEPS
    rows = [
        ("one-sided", 1.0, 1e-3, 100, last, 0.4),
        ("one-sided", 1.0, 1e-3, 101, last, 0.6),
        ("one-sided", 10.0, 1e-3, 100, last, 0.45),  # the best mean
        ("one-sided", 10.0, 1e-3, 101, last, 0.45),
        ("one-sided", 1.0, 1e-2, 100, 25, 0.0),  # not the last step
        ("one-sided", 1.0, 1e-2, 0, last, 0.0),  # not a tuning seed
    ]
    columns = ["method", "strength", "generator_lr", "seed", "step", "distance"]
    found = wgan_generation.best(pd.DataFrame(rows, columns=columns))
    assert found == {"one-sided": (10.0, 1e-3)}


# --- many classes


@pytest.mark.parametrize(("n_classes", "dimension"), [(1, 2), (9, 2), (32, 64)])
def test_every_class_is_the_same_task(n_classes, dimension):
    real, fake, held_out = wgan_classes.samples(n_classes, dimension, rng())
    assert real.shape == fake.shape == held_out.shape == (128, dimension + 1)
    labels = real[:, -1].long()
    assert set(labels.tolist()) == set(range(n_classes))
    centres = torch.stack([real[labels == c, :-1].mean(0) for c in range(n_classes)])
    moved = torch.stack([fake[labels == c, :-1].mean(0) for c in range(n_classes)])
    noise = 6 * wgan_classes.STD * math.sqrt(dimension)
    assert (moved - centres).norm(dim=1).sub(wgan_classes.SHIFT).abs().max() < noise
    if n_classes > 1:
        between = torch.pdist(centres).min().item()
        assert between == pytest.approx(wgan_classes.SPACING, abs=2 * noise)


def test_pairs_within_a_class_stay_with_it():
    """The slope of this critic is the distance from the nearest centre: small within a class."""
    real, fake, _ = wgan_classes.samples(4, 2, rng())
    labels = real[:, -1].long()
    centres = torch.stack([real[labels == c, :-1].mean(0) for c in range(4)])

    def critic(x: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x[:, :-1], centres).amin(1, keepdim=True) ** 2 / 2

    found = {
        within: wgan_classes.PairedPenalty(1.0, within=within)
        .penalty(critic, real, fake, rng())
        .item()
        for within in (True, False)
    }
    assert found[True] < 1.2**2 < 2 * 1.2**2 < found[False]


def test_a_critic_along_the_shift_is_perfect():
    real, fake, _ = wgan_classes.samples(1, 2, rng())
    way = nn.functional.normalize((real - fake)[:, :-1].mean(0), dim=0).tolist()
    found = wgan_classes.look(linear([*way, 0.0]), real, fake, rng())
    assert found.pop("estimate") == pytest.approx(1, rel=1e-2)
    assert found.pop("between") == pytest.approx(1)
    assert found.pop("direction") == pytest.approx(1, rel=1e-2)
    assert set(found.values()) == {0.0}  # nowhere too steep


def test_a_conditional_critic_sees_the_class():
    sees, does_not = (wgan_classes.make_critic(2, n, 8, 0) for n in (3, 0))
    x = torch.zeros(3, 3, dtype=torch.float64)
    x[:, -1] = torch.arange(3)
    assert len(sees(x).unique()) == 3
    assert len(does_not(x).unique()) == 1


def test_fakes_follow_the_critic():
    real, fake, _ = wgan_classes.samples(1, 2, rng())
    way = nn.functional.normalize((real - fake)[:, :-1].mean(0), dim=0).tolist()
    penalty = wgan_classes.PairedPenalty(10.0, within=True)
    critic = linear([*way, 0.0])
    after = wgan_classes.flow(critic, penalty, real, fake, steps=10, generator=rng())
    assert wgan_classes.distance(real, after) < wgan_classes.distance(real, fake)
    assert torch.equal(after[:, -1], fake[:, -1])
