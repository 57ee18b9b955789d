"""Fréchet distances against closed forms, and what the two kinds of features see."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lipbook.lab import fidelity
from lipbook.lab.data import digits, split
from lipbook.lab.fidelity import (
    FacialFeatures,
    digit_features,
    frechet_distance,
    random_features,
)
from lipbook.lab.images import photo_patches

modest = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
EPS = torch.finfo(torch.float64).eps


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def sample(mean: torch.Tensor, root: torch.Tensor, n: int = 40, seed: int = 0) -> torch.Tensor:
    """Points whose mean is `mean` and whose covariance is `root @ root.T`, up to rounding."""
    x = gaussian(n, len(mean), seed=seed)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / n)).T
    return mean + white @ root.T


def tolerance(*samples: torch.Tensor) -> float:
    """What W₂ of samples whose standard deviations are near 1 or above may be off by.

    Eigenvalues of a product are exact to d·eps·λ², their roots to λ/λ₀ times less, and d of them
    make up W₂².
    """
    covariances = [torch.atleast_2d(x.T.cov(correction=0)) for x in samples]
    roots = torch.stack([torch.linalg.eigvalsh(c) for c in covariances])
    d = samples[0].shape[1]
    return math.sqrt(4 * d**2 * EPS * roots.max() ** 2 / roots.min())


# --- the distance ---


@modest
@given(seed=seeds, d=st.integers(1, 5), shift=st.floats(-3, 3))
def test_commuting_covariances_differ_by_their_standard_deviations(seed, d, shift):
    q = torch.linalg.qr(gaussian(d, d, seed=seed)).Q
    a, b = (1 + gaussian(d, seed=seed + k).abs() for k in (1, 2))
    mean, other = gaussian(2, d, seed=seed + 3)
    x = sample(mean, q * a, n=30, seed=seed + 4)
    y = sample(other + shift, q * b, n=50, seed=seed + 5)
    expected = math.hypot((mean - other - shift).norm().item(), (a - b).norm().item())
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9, abs=tolerance(x, y))


@modest
@given(seed=seeds)
def test_any_two_covariances_in_the_plane(seed):
    """A 2×2 matrix M with positive eigenvalues has ``tr √M = √(tr M + 2 √det M)``."""
    roots = [gaussian(2, 2, seed=seed + k) + 3 * torch.eye(2) for k in (0, 1)]
    a, b = (root @ root.T for root in roots)
    cross = ((a @ b).trace() + 2 * (a.det() * b.det()).sqrt()).sqrt()
    expected = (a.trace() + b.trace() - 2 * cross).clamp(min=0).sqrt().item()
    x, y = (sample(torch.zeros(2), root, seed=seed) for root in roots)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6, abs=tolerance(x, y))


def test_large_samples_come_near_the_distance_of_their_distributions():
    n = 20_000
    x, y = gaussian(n, 2), 3 * gaussian(n, 2, seed=1) + 1
    expected = math.sqrt(2 + 2 * (3 - 1) ** 2)
    # Means are off by 3/√n, standard deviations by 3/√(2n); W₂ is 1-Lipschitz in both.
    assert frechet_distance(x, y) == pytest.approx(expected, abs=4 * 3 * math.sqrt(2 / n))


@modest
@given(seed=seeds, d=st.integers(1, 5))
def test_it_is_a_distance_between_bags_of_rows(seed, d):
    x, y, z = (3 * gaussian(40, d, seed=seed + k) * (1 + k) for k in range(3))
    close = tolerance(x, y, z)
    assert frechet_distance(x, x) <= close
    assert frechet_distance(x, x.flip(0)) <= close
    assert frechet_distance(x, torch.cat([x, x])) <= close
    xy = frechet_distance(x, y)
    assert xy > 0.1
    assert frechet_distance(y, x) == pytest.approx(xy, abs=close)
    assert frechet_distance(x.flip(0), y) == pytest.approx(xy, rel=1e-9)
    assert xy <= frechet_distance(x, z) + frechet_distance(z, y) + close
    assert frechet_distance(3 * x, 3 * y) == pytest.approx(3 * xy, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_precisions_are_read_in_float64(dtype):
    x, y = gaussian(40, 3).to(dtype), (2 * gaussian(40, 3, seed=1)).to(dtype).requires_grad_()
    found = frechet_distance(x, y)
    assert isinstance(found, float)
    assert found == frechet_distance(x.double(), y.detach().double())


def test_a_singular_covariance_has_a_distance_too():
    samples = [1e3 * gaussian(3, 9, seed=k) for k in range(40)]
    assert all(math.isfinite(frechet_distance(x, x)) for x in samples)


def test_it_is_in_the_unit_of_the_features():
    x, y = gaussian(40, 3), 2 * gaussian(40, 3, seed=1)
    found = frechet_distance(1e-4 * x, 1e-4 * y)
    assert found == pytest.approx(1e-4 * frechet_distance(x, y), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ([[1.0, 2.0]] * 3, TypeError, "must be a torch.Tensor, got list"),
        (torch.ones(3, 2, dtype=torch.int64), TypeError, "must have a real floating-point dtype"),
        (torch.ones(3), ValueError, r"must have 2 axes, got shape \(3,\)"),
        (torch.ones(3, 2, 1), ValueError, r"must have 2 axes, got shape \(3, 2, 1\)"),
        (torch.ones(3, 0), ValueError, r"must not be empty, got shape \(3, 0\)"),
        (torch.full((3, 2), math.nan), ValueError, "must be finite, got nan"),
        (torch.ones(1, 2), ValueError, r"must have at least 2 rows .* got shape \(1, 2\)"),
    ],
)
@pytest.mark.parametrize("name", ["real", "fake"])
def test_refused_samples(change, error, message, name):
    with pytest.raises(error, match=f"^{name} {message}"):
        frechet_distance(**{"real": torch.ones(3, 2), "fake": torch.ones(3, 2), name: change})


def test_rows_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match=r"rows of one length, got \(3, 2\) and \(4, 3\)"):
        frechet_distance(torch.ones(3, 2), torch.ones(4, 3))


# --- features of digits ---


@pytest.fixture(scope="module")
def parts():
    return split(digits())


def test_digits_are_nearer_to_digits_than_what_is_none(parts):
    features = digit_features()
    real = features(parts.validation.inputs)
    among_themselves = frechet_distance(real, features(parts.test.inputs))
    shifted = frechet_distance(real, features(parts.test.inputs.roll(1, dims=1)))
    noise = torch.rand(360, 64, generator=torch.Generator().manual_seed(0))
    assert 3 * among_themselves < shifted < frechet_distance(real, features(noise))


def test_the_features_tell_digits_apart(parts):
    """By the nearest mean of a class: more than by the pixels, so something was learnt."""

    def accuracy(features) -> float:
        (x, labels), (y, truth) = ((features(p.inputs), p.labels) for p in (parts[0], parts[2]))
        means = torch.stack([x[labels == k].mean(0) for k in range(10)])
        return (torch.cdist(y, means).argmin(1) == truth).double().mean().item()

    assert accuracy(digit_features()) > accuracy(lambda pixels: pixels) > 0.85


def test_the_classifier_is_trained_on_the_training_part_only(parts, monkeypatch):
    seen = []
    monkeypatch.setattr(
        fidelity, "train_classifier", lambda model, *data, **_: seen.extend([*data, model])
    )
    digit_features.__wrapped__()
    inputs, labels, model = seen
    assert torch.equal(inputs, parts.train.inputs)
    assert torch.equal(labels, parts.train.labels)
    assert model(inputs).shape == (len(inputs), 10)


def test_features_of_digits_are_the_same_in_every_process():
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first = digit_features.__wrapped__()(images)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = digit_features.__wrapped__()(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again, first)
    assert digit_features() is digit_features()


@pytest.mark.parametrize("shape", [(3, 64), (3, 8, 8), (3, 1, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_features_of_digits_have_32_columns_and_no_gradient(shape, dtype):
    found = digit_features()(torch.zeros(shape, dtype=dtype, requires_grad=True))
    assert (found.shape, found.dtype, found.requires_grad) == ((3, 32), torch.float32, False)
    assert (found >= 0).all()  # after the ReLU


# --- features of other images ---


@pytest.fixture(scope="module")
def patches():
    return photo_patches(300, min_contrast=0.1, generator=torch.Generator().manual_seed(0))


def test_random_features_are_means_and_standard_deviations_of_each_layer(patches):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(n, 16, 5, stride=2, padding=2) for n in (3, 16, 16)]
    image, columns = patches[:4], []
    for layer in layers:
        image = F.leaky_relu(layer(image), 0.2)
        pixels = image.flatten(2)
        mean = pixels.mean(2, keepdim=True)
        variance = (pixels - mean).square().mean(2)
        columns += [mean.squeeze(2), variance.sqrt()]
    torch.testing.assert_close(
        random_features()(patches[:4]), torch.cat(columns, 1).detach(), rtol=1e-4, atol=1e-6
    )


def test_patches_are_nearer_to_patches_than_what_is_none(patches):
    features = random_features()
    one, other = features(patches[:150]), features(patches[150:])
    between = frechet_distance(one, other)
    noise = torch.rand(150, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    blurred = F.avg_pool2d(patches[150:], 5, stride=1, padding=2)
    for fake in (noise, blurred, -patches[150:]):
        assert frechet_distance(one, features(fake)) > 1.5 * between


def test_random_features_are_the_same_in_every_process(patches):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = random_features.__wrapped__()(patches[:2])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again, random_features()(patches[:2]))
    assert random_features() is random_features()


@pytest.mark.parametrize(("channels", "width"), [(1, 16), (4, 3)])
@pytest.mark.parametrize("side", [16, 33])
def test_other_channels_and_widths(channels, width, side):
    images = torch.zeros(3, channels, side, side + 4, dtype=torch.float64, requires_grad=True)
    found = random_features(channels, width)(images)
    expected = ((3, 6 * width), torch.float32, False)
    assert (found.shape, found.dtype, found.requires_grad) == expected
    assert found.isfinite().all()
    with pytest.raises(RuntimeError, match=f"to have {channels} channels, but got 2"):
        random_features(channels, width)(torch.zeros(3, 2, side, side))


def test_a_layer_of_one_pixel_has_no_deviation():
    seen = random_features()(torch.ones(2, 3, 8, 8))
    assert bool(seen.isfinite().all())
    assert bool((seen[:, -16:] == 0).all())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_first_callers_mode_decides_nothing(mode, monkeypatch):
    """Features are made once in a process, maybe under a mode in which nothing can be trained."""
    images = gaussian(2, 64).float()
    expected = digit_features()(images)
    for make in (digit_features, random_features):
        with mode():
            features = make.__wrapped__()
        assert features is not make()
    monkeypatch.setattr(fidelity, "digit_features", digit_features.__wrapped__)
    with mode():
        torch.testing.assert_close(fidelity.digit_features()(images), expected)


# --- the features of a face ---


def smooth_heads(n=6, side=24, seed=0):
    """Images without detail: a colour each, and a slope of grey."""
    colours = gaussian(n, 3, 1, 1, seed=seed)
    return colours + torch.linspace(-1, 1, side, dtype=torch.float64)[:, None].expand(side, side)


def with_eyes(heads, contrast=1.0, row=10):
    drawn = heads.clone()
    drawn[:, :, row, [8, 15]] -= contrast
    return drawn


@pytest.fixture
def features():
    heads = smooth_heads()
    return FacialFeatures(with_eyes(heads), heads)


@pytest.mark.parametrize("contrast", [0.0, 0.5, 1.0])
def test_features_count_by_their_contrast_and_not_by_colour(features, contrast):
    others = smooth_heads(seed=1)
    expected = torch.full((6,), contrast, dtype=torch.float64)
    torch.testing.assert_close(features(with_eyes(others, contrast)), expected)


def test_features_elsewhere_or_as_large_as_the_head_are_none(features):
    heads = smooth_heads(seed=1)
    assert features(with_eyes(heads, row=19)).abs().max() < 0.1
    spotted = heads.clone()
    spotted[:, :, 4:17, 2:22] -= 1
    assert features(spotted).abs().max() < 0.1


@pytest.mark.parametrize(
    ("shapes", "edge", "said"),
    [
        (((2, 3, 8, 8), (3, 3, 8, 8)), 7, r"of one shape .* got \(2, 3, 8, 8\) and \(3, 3, 8, 8\)"),
        (((3, 8, 8), (3, 8, 8)), 7, r"of one shape .* got \(3, 8, 8\)"),
        (((2, 3, 8, 8), (2, 3, 8, 8)), 4, "edge must be odd, got 4"),
        (((2, 3, 8, 8), (2, 3, 8, 8)), 0, "edge"),
    ],
)
def test_what_is_no_pair_of_faces_and_heads_is_refused(shapes, edge, said):
    with pytest.raises(ValueError, match=said):
        FacialFeatures(*(torch.rand(shape) for shape in shapes), edge=edge)


def test_heads_with_edges_of_their_own_are_still_the_zero():
    heads = smooth_heads()
    heads[:, :, 10, 8:16] -= 2  # where the eyes come, in all of them
    faces = with_eyes(heads)
    seen_by = FacialFeatures(faces, heads)
    assert seen_by(heads).mean().item() == pytest.approx(0)
    assert seen_by(faces).mean().item() == pytest.approx(1)
