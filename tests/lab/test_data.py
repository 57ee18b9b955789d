"""Digits, toys, mixtures, splits and label noise: the same on every call."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipbook.lab.data import (
    LabelledData,
    digits,
    flip_labels,
    gaussian_mixture,
    gaussian_ring,
    moons,
    ring_centres,
    split,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_digits_are_the_real_ones():
    inputs, labels = digits()
    assert inputs.shape == (1797, 64)
    assert inputs.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert inputs.min() == 0
    assert inputs.max() == 1
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_as_images_are_the_same_pixels():
    images = digits(flat=False).inputs
    assert images.shape == (1797, 1, 8, 8)
    assert torch.equal(images.flatten(1), digits().inputs)


def test_moons_depend_on_the_seed_alone():
    first, again, other = moons(50, seed=3), moons(50, seed=3), moons(50, seed=4)
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.inputs, other.inputs)


def test_moons_without_noise_lie_on_two_circles():
    inputs, labels = moons(40, noise=0.0)
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.5]])[labels]
    torch.testing.assert_close((inputs - centres).norm(dim=1), torch.ones(40))


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    train=st.none() | st.integers(20, 100),
    test=st.integers(20, 60) | st.floats(0.1, 0.3),
)
def test_split_parts_are_disjoint_and_of_the_size_asked_for(seed, train, test):
    n = 200
    data = LabelledData(torch.arange(n, dtype=torch.float32)[:, None], torch.arange(n) % 4)
    parts = split(data, train=train, validation=0.1, test=test, seed=seed)
    members = torch.cat([part.inputs.flatten() for part in parts])
    assert len(members.unique()) == len(members)
    assert len(parts.validation.labels) == 20
    assert len(parts.test.labels) == (test if isinstance(test, int) else round(test * n))
    assert len(parts.train.labels) == (train or n - 20 - len(parts.test.labels))
    for part in parts:  # inputs and labels still belong together, classes keep their shares
        assert torch.equal(part.inputs.flatten().long() % 4, part.labels)
        counts = part.labels.bincount(minlength=4)
        assert counts.max() - counts.min() <= 2


def test_split_is_deterministic_and_its_test_part_does_not_depend_on_the_rest():
    data = digits()
    first, again = split(data, seed=5), split(data, train=0.1, validation=50, seed=5)
    assert torch.equal(first.test.inputs, again.test.inputs)
    assert torch.equal(first.test.labels, again.test.labels)
    assert not torch.equal(first.test.inputs, split(data, seed=6).test.inputs)
    assert len(again.train.labels) == 180


def test_split_refuses_parts_larger_than_the_whole():
    with pytest.raises(ValueError, match="should be smaller"):
        split(digits(), train=1000, validation=500, test=500)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(
    fraction=st.floats(0, 1),
    n=st.integers(1, 60),
    n_classes=st.integers(2, 7),
    seed=st.integers(0, 10_000),
)
def test_flip_labels_changes_exactly_the_fraction(fraction, n, n_classes, seed):
    labels = torch.arange(n) % n_classes
    before = labels.clone()
    noisy = flip_labels(labels, fraction, generator=seeded(seed), n_classes=n_classes)
    assert (noisy != labels).sum() == round(fraction * n)
    assert noisy.min() >= 0
    assert noisy.max() < n_classes
    assert noisy.dtype == labels.dtype
    assert torch.equal(labels, before)
    again = flip_labels(labels, fraction, generator=seeded(seed), n_classes=n_classes)
    assert torch.equal(noisy, again)


def test_flip_labels_reaches_every_other_class_equally():
    noisy = flip_labels(
        torch.full((9000,), 2), 1.0, generator=torch.Generator().manual_seed(0), n_classes=4
    )
    counts = noisy.bincount(minlength=4)
    assert counts[2] == 0
    assert counts[[0, 1, 3]].min() > 2800  # 3000 expected, standard deviation 45


@pytest.mark.parametrize(
    ("labels", "fraction", "n_classes", "error", "message"),
    [
        (torch.ones(3), 0.1, None, TypeError, "integer dtype, got torch.float32"),
        (torch.ones(3) > 0, 0.1, None, TypeError, "integer dtype, got torch.bool"),
        (torch.ones(2, 2).long(), 0.1, None, ValueError, r"vector, got shape \(2, 2\)"),
        (torch.ones(0).long(), 0.1, None, ValueError, "non-empty"),
        (torch.ones(3).long(), 1.5, None, ValueError, "fraction must lie in"),
        (torch.ones(3).long(), float("nan"), None, ValueError, "fraction must lie in"),
        (torch.ones(3).long(), 0.1, 0, ValueError, "n_classes must be at least 2, got 0"),
        (torch.zeros(3).long(), 0.1, None, ValueError, "n_classes must be at least 2, got 1"),
        (torch.tensor([0, 5]), 0.1, 3, ValueError, "0 … 2, got 0 to 5"),
        (torch.tensor([-1, 2]), 0.1, None, ValueError, "0 … 2, got -1 to 2"),
    ],
)
def test_flip_labels_refuses(labels, fraction, n_classes, error, message):
    with pytest.raises(error, match=message):
        flip_labels(labels, fraction, generator=torch.Generator(), n_classes=n_classes)


def test_moons_refuses_fewer_than_two_points():
    with pytest.raises(ValueError, match="n_samples must be at least 2"):
        moons(1)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(n=st.integers(1, 40), radius=st.floats(0.1, 10))
def test_ring_centres_are_equally_spaced_on_the_circle(n, radius):
    centres = ring_centres(n, radius=radius).double()
    tolerance = {"rtol": 1e-5, "atol": 1e-5 * radius}
    torch.testing.assert_close(centres.norm(dim=1), torch.full((n,), radius).double(), **tolerance)
    gaps = (centres - centres.roll(1, 0)).norm(dim=1)
    gap = torch.tensor(2 * radius * math.sin(math.pi / n)).double()
    torch.testing.assert_close(gaps, gap.expand(n), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_mixture_has_the_dtype_and_the_numbers_of_its_centres(dtype):
    centres = torch.zeros(3, 4, dtype=dtype).T
    points, modes = gaussian_mixture(7, centres, std=1.0, generator=seeded(0))
    assert (points.shape, points.dtype, modes.dtype) == ((7, 3), dtype, torch.int64)
    expected = gaussian_mixture(7, torch.zeros(4, 3), std=1.0, generator=seeded(0))
    torch.testing.assert_close(points, expected.inputs.to(dtype))
    assert torch.equal(modes, expected.labels)


@pytest.mark.parametrize("seed", range(3))
def test_a_mixture_draws_modes_evenly_and_points_about_them(seed):
    n, std = 20_000, 0.5
    centres = torch.tensor([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0]])
    points, modes = gaussian_mixture(n, centres, std=std, generator=seeded(seed))
    assert abs(modes.sum().item() - n / 2) < 5 * math.sqrt(n) / 2
    offsets = points - centres[modes]
    assert offsets.mean(dim=0).abs().max() < 5 * std / math.sqrt(n)
    assert (offsets.std(dim=0) / std - 1).abs().max() < 5 / math.sqrt(2 * n)


def test_a_ring_is_a_mixture_about_its_centres():
    points, modes = gaussian_ring(2000, std=0.01, generator=seeded(0))
    assert torch.equal(torch.cdist(points, ring_centres()).argmin(dim=1), modes)
    again = gaussian_mixture(2000, ring_centres(), std=0.01, generator=seeded(0))
    assert torch.equal(points, again.inputs)
    assert not torch.equal(points, gaussian_ring(2000, std=0.01, generator=seeded(1)).inputs)


def test_the_ring_passes_its_shape_on():
    points, modes = gaussian_ring(500, n_modes=3, radius=7.0, std=1e-3, generator=seeded(0))
    centres = ring_centres(3, radius=7.0)
    assert (points - centres[modes]).norm(dim=1).max() < 0.01


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda _: ring_centres(0), ValueError, "n_modes must be at least 1, got 0"),
        (lambda _: ring_centres(2.0), TypeError, "n_modes must be an integer"),
        (lambda _: ring_centres(radius=-1.0), ValueError, "radius must be a finite number above 0"),
        (lambda g: gaussian_ring(0, generator=g), ValueError, "n must be at least 1, got 0"),
        (lambda g: gaussian_ring(3, std=0.0, generator=g), ValueError, "std must be a finite"),
        (
            lambda g: gaussian_mixture(3, torch.ones(4), std=1.0, generator=g),
            ValueError,
            r"centres must have 2 axes, got shape \(4,\)",
        ),
        (
            lambda g: gaussian_mixture(3, torch.ones(4, 2).long(), std=1.0, generator=g),
            TypeError,
            "centres must have a real floating-point dtype",
        ),
    ],
)
def test_toys_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call(seeded(0))
