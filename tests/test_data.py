"""Digits, toys, splits and label noise: real data, and the same on every call."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipbook.data import LabelledData, digits, flip_labels, moons, split


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
