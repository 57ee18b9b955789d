"""The projection, the article's own division, the orthonormal penalty, and all refusals."""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from weights import critic, gaussian, norm, original

from lipbook.convolution import conv_spectral_norm
from lipbook.lipschitz import jacobian_norms
from lipbook.matrix_norms import induced_norm
from lipbook.normalization import (
    OrthonormalPenalty,
    SpectralProjection,
    article_spectral_normalize,
    project_spectral_,
    remove_spectral_normalization,
    spectral_normalize,
    spectral_normalize_network,
)
from lipbook.parametrizations import Normalization
from lipbook.power_iteration import article_keras_spectral_norm, power_iteration
from lipbook.regularization import SpectralPenalty, frobenius_penalty
from lipbook.wgan import (
    GradientPenalty,
    clip_frobenius_,
    clip_weights_,
    frobenius_excess_penalty,
)


@pytest.fixture(scope="module")
def lab() -> types.ModuleType:
    """The laboratory: where only the core is installed, what needs it is skipped."""
    return pytest.importorskip("lipbook.lab.training")


modest = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


# --- the projection ----------------------------------------------------------------------------


def test_article_projection_is_the_listing():
    """r = 5 from all ones, in Keras's layout; ‖γ‖₂ for a BatchNorm; NaN where the start is lost."""
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2)
    ).double()
    torch.manual_seed(0)
    net[1].weight.data.uniform_(1, 2)
    kernel, gamma, dense = (net[i].weight.detach().clone() for i in (0, 1, 3))

    def listing(w: torch.Tensor) -> torch.Tensor:
        w = w.reshape(-1, w.shape[-1])
        u = torch.ones(1, len(w), dtype=w.dtype)
        for _ in range(5):
            v = F.normalize(u @ w)
            u = F.normalize(v @ w.T)
        return (u @ w @ v.T).sum()

    project_spectral_(net, variant="article")
    hwio = kernel.permute(2, 3, 1, 0)
    torch.testing.assert_close(net[0].weight.detach(), kernel / listing(hwio))
    torch.testing.assert_close(net[1].weight.detach(), gamma / gamma.norm())
    torch.testing.assert_close(net[3].weight.detach(), dense / listing(dense.T))
    assert norm(net[0].weight) >= 1 - 1e-12
    lost = nn.Linear(2, 1, bias=False)
    lost.weight.data.copy_(torch.tensor([[1.0, -1.0]]))
    project_spectral_(lost, variant="article")
    assert not lost.weight.isfinite().any()


def test_exact_projection():
    net = critic()
    project_spectral_(net, coefficient=0.5)
    for layer in (net[1], net[6]):
        assert norm(layer.weight) == pytest.approx(0.5, rel=1e-6)
    assert norm(net[3].weight.transpose(0, 1)) == pytest.approx(0.5, rel=1e-6)
    before = net[6].weight.detach().clone()
    project_spectral_(net, input_shape=(36,))
    assert conv_spectral_norm(net[1].weight, 6, stride=2, padding=1).item() == pytest.approx(1)
    torch.testing.assert_close(net[6].weight.detach(), 2 * before)
    zero = nn.Linear(2, 2)
    nn.init.zeros_(zero.weight)
    project_spectral_(zero)
    assert (zero.weight == 0).all()
    bn = nn.BatchNorm1d(3)
    bn.running_var.fill_(4.0)
    project_spectral_(nn.Sequential(bn, nn.LayerNorm(3)))
    torch.testing.assert_close(bn.weight.detach(), torch.full((3,), 2.0), rtol=1e-4, atol=0)


def test_projection_to_a_norm_far_below_the_weights():
    layer = nn.Linear(3, 3)
    layer.weight.data.mul_(1e25)
    project_spectral_(layer, coefficient=1e-25)
    assert norm(1e25 * layer.weight) == pytest.approx(1, rel=1e-5)


def test_projection_of_the_smallest_numbers():
    """Their norm has two digits, and its inverse is infinite."""
    layer = nn.Linear(30, 30)
    layer.weight.data.copy_(1e-44 * gaussian(30, 30).sign())
    project_spectral_(layer, coefficient=2.0)
    assert norm(layer.weight) == pytest.approx(2, rel=0.01)


def test_a_refused_projection_changes_nothing():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    nn.init.constant_(net[1].weight, math.nan)
    before = net[0].weight.detach().clone()
    with pytest.raises(ValueError, match="must be finite, got nan"):
        project_spectral_(net)
    assert torch.equal(net[0].weight, before)


def test_constraint_object_in_the_trainer(lab):
    real, fake = gaussian(32, 2) + 3, gaussian(32, 2, seed=1)
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    lab.fit_critic(net, real, fake, SpectralProjection("exact"), steps=5, lr=1e-2)
    for layer in (net[0], net[2]):
        assert norm(layer.weight) == pytest.approx(1, rel=1e-6)
    assert SpectralProjection() != GradientPenalty()


# --- the article's division inside the forward pass ----------------------------------------------


def keras_layout(weight: torch.Tensor) -> torch.Tensor:
    """Outputs last: a dense kernel transposed, HWIO for a convolution, γ as it is."""
    return weight if weight.ndim == 1 else weight.permute(*range(2, weight.ndim), 1, 0)


ARTICLES_LAYERS = [
    nn.Linear(4, 3),
    nn.Conv1d(2, 3, 2),
    nn.Conv2d(2, 3, 4),
    nn.ConvTranspose2d(2, 3, 4),
    nn.BatchNorm1d(5),
    nn.BatchNorm2d(5),
]


def with_weight_of_its_own(layer: nn.Module) -> nn.Module:
    layer = copy.deepcopy(layer).double()
    layer.weight.data.copy_(gaussian(*layer.weight.shape))
    return layer


@pytest.mark.parametrize("layer", ARTICLES_LAYERS, ids=str)
@pytest.mark.parametrize("steps", [1, 5])
def test_article_inside_is_the_listing_in_keras_layout(layer, steps):
    layer = with_weight_of_its_own(layer)
    weight = layer.weight.detach().clone().requires_grad_()
    expected = weight / article_keras_spectral_norm(keras_layout(weight), steps)
    article_spectral_normalize(layer, steps)
    torch.testing.assert_close(layer.weight, expected)
    outer = gaussian(*weight.shape, seed=1)
    expected.backward(outer)
    layer.weight.backward(outer)
    torch.testing.assert_close(original(layer).grad, weight.grad)  # through all the steps
    torch.testing.assert_close(layer.eval().weight, expected)  # in both modes, from all ones


def test_article_inside_makes_five_steps_unless_told():
    few, five = (with_weight_of_its_own(nn.Linear(9, 9)) for _ in range(2))
    article_spectral_normalize(few), article_spectral_normalize(five, 5)
    assert torch.equal(few.weight, five.weight)


def test_article_inside_agrees_with_the_projection_but_trains_through_it():
    inside, after = critic(), critic()
    article_spectral_normalize(inside)
    project_spectral_(after, variant="article")
    x = gaussian(4, 36)
    torch.testing.assert_close(inside(x), after(x))
    inside(x).sum().backward()
    for layer in (inside[1], inside[3], inside[6]):
        # Its estimate grows with the weight, so lengthening the weight changes nothing.
        overlap = (original(layer).grad * original(layer)).sum()
        assert abs(overlap) < 1e-12 * original(layer).grad.norm() * original(layer).norm()


def test_article_inside_leaves_the_rest_alone():
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.BatchNorm1d(3), nn.GroupNorm(1, 3))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    assert article_spectral_normalize(net) is net
    assert [parametrize.is_parametrized(layer) for layer in net] == [True, False, True, False]
    for name, value in before.items():
        if name not in ("0.weight", "2.weight"):
            assert torch.equal(net.get_parameter(name), value)
    assert torch.equal(original(net[0]), before["0.weight"])
    article_spectral_normalize(net)  # what is normalized is not normalized again
    assert len(net[0].parametrizations.weight) == 1
    for layer in (net[0], net[2]):
        parametrize.remove_parametrizations(layer, "weight")
    torch.testing.assert_close(
        net[0].weight, before["0.weight"] / article_keras_spectral_norm(before["0.weight"].T)
    )


def test_article_inside_divides_gamma_by_its_length():
    """SP4: ``max |γ/std|`` is what a BatchNorm stretches by; ‖γ‖₂ shrinks n equal ones to 1/√n."""
    layer = article_spectral_normalize(nn.BatchNorm1d(16))
    torch.testing.assert_close(layer.weight.detach(), torch.full((16,), 0.25))


@pytest.mark.parametrize("weight", [[[1.0, -1.0]], [[2.0, -1.0, -1.0]], [[0.0, 0.0]]])
def test_article_inside_divides_by_zero_where_the_start_is_lost(weight):
    """PI4: Keras' kernel ``[[1], [-1]]`` is orthogonal to all ones."""
    layer = nn.Linear(len(weight[0]), 1, bias=False)
    layer.weight.data.copy_(torch.tensor(weight))
    assert article_keras_spectral_norm(layer.weight.T) == 0
    article_spectral_normalize(layer)
    assert not layer.weight.isfinite().any()
    assert not layer(torch.ones(1, len(weight[0]))).isfinite().any()


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [(0, ValueError, "must be at least 1, got 0"), (2.0, TypeError, "must be an integer")],
)
def test_article_inside_refuses_steps_that_are_no_count(steps, error, message):
    layer = nn.Linear(2, 2)
    with pytest.raises(error, match=f"n_iterations {message}"):
        article_spectral_normalize(layer, steps)
    assert not parametrize.is_parametrized(layer)


# --- the orthonormal penalty -------------------------------------------------------------------


def orthonormal(net: nn.Module, weight: float = 1.0) -> torch.Tensor:
    nothing = torch.zeros(0)
    return OrthonormalPenalty(weight).penalty(net, nothing, nothing, torch.Generator())


@modest
@given(seed=seeds, m=st.integers(1, 6), n=st.integers(1, 6), strength=st.floats(0.1, 10))
def test_orthonormal_penalty_is_of_the_singular_values(seed, m, n, strength):
    """``λ Σ (σ² - 1)²`` over the min(m, n) of them, for tall and for wide weights."""
    net = nn.Sequential(nn.Linear(n, m), nn.Tanh(), nn.Linear(m, 2 * m)).double()
    expected = 0.0
    for k, layer in enumerate((net[0], net[2])):
        layer.weight.data.copy_(gaussian(*layer.weight.shape, seed=seed + k))
        sigma = torch.linalg.svdvals(layer.weight.detach())
        expected += strength * (sigma**2 - 1).square().sum().item()
    assert orthonormal(net, strength).item() == pytest.approx(expected)


def test_orthonormal_penalty_takes_convolutions_by_outputs_and_no_vectors():
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.LayerNorm(3)).double()
    rows = net[0].weight.detach().reshape(3, 8)
    expected = (rows @ rows.T - torch.eye(3)).square().sum()
    torch.testing.assert_close(orthonormal(net).detach(), expected)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_orthonormal_penalty_and_its_gradient_vanish_at_orthonormal_weights_only(shape):
    layer = nn.Linear(*shape).double()
    nn.init.orthogonal_(layer.weight)
    for scale in (1.0, 1.5):
        layer.weight.data.mul_(scale)
        layer.weight.grad = None
        penalty = orthonormal(layer)
        penalty.backward()
        # A square of deviations of rounding; the gradient 4 (W Wᵀ - I) W is one of them.
        assert (penalty.item() < 1e-24) is (scale == 1)
        assert (layer.weight.grad.abs().max().item() < 1e-12) is (scale == 1)
    assert layer.bias.grad is None


def test_orthonormal_penalty_in_the_trainer_pulls_every_singular_value_to_1(lab):
    real = gaussian(32, 2)
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    lab.fit_critic(net, real, real, OrthonormalPenalty(10.0), steps=200, lr=3e-2)
    for layer in (net[0], net[2]):
        assert (torch.linalg.svdvals(layer.weight.detach()) - 1).abs().max() < 0.1


def test_orthonormal_penalty_is_named_in_checkpoints():
    """By its repr, which therefore tells two strengths apart."""
    assert repr(OrthonormalPenalty()) == "OrthonormalPenalty(strength=1.0)"
    assert repr(OrthonormalPenalty(0.5)) == "OrthonormalPenalty(strength=0.5)"
    assert OrthonormalPenalty(0.5) == OrthonormalPenalty(0.5) != OrthonormalPenalty()


@pytest.mark.parametrize(
    ("weight", "error"),
    [
        (0.0, ValueError),
        (-1.0, ValueError),
        (math.inf, ValueError),
        ("1", TypeError),
        (True, TypeError),
    ],
)
def test_orthonormal_penalty_refuses_weights_that_are_not_positive(weight, error):
    with pytest.raises(error, match="strength must be a"):
        OrthonormalPenalty(weight)


# --- a whole network ----------------------------------------------------------------------------


def mixed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2, padding=1),
        nn.BatchNorm2d(2),
        nn.PReLU(2),
        nn.ConvTranspose2d(2, 2, 3),
        nn.Flatten(),
        nn.Linear(50, 4),
        nn.LayerNorm(4),
        parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.Linear(4, 1),
    ).double()


def normalized(net: nn.Module) -> list[int]:
    """Which layers ours normalizes: by the vectors, or by the owner, that it has."""
    return [
        index
        for index, layer in enumerate(net)
        if parametrize.is_parametrized(layer)
        and isinstance(layer.parametrizations.weight[0], Normalization)
    ]


def test_every_layer_of_a_network_that_multiplies_is_normalized():
    for options, expected in [
        ({}, [0, 3, 5, 8]),
        ({"batch_norms": True}, [0, 1, 3, 5, 8]),
        ({"skip": ["0", "8"]}, [3, 5]),
    ]:
        net = mixed()
        assert spectral_normalize_network(net, n_power_iterations=50, **options) is net
        assert normalized(net) == expected
        for index in {0, 5, 8}.intersection(expected):
            assert norm(net[index].weight) == pytest.approx(1, rel=1e-3)


def test_with_the_shape_of_an_input_convolutions_are_operators():
    net = spectral_normalize_network(mixed(), 100, input_shape=(1, 6, 6)).eval()
    sigma = conv_spectral_norm(net[0].weight, 6, stride=2, padding=1)
    assert sigma.item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("leave", [True, False])
def test_what_is_taken_off_a_copy_stays_on_the_original(leave):
    """AttributeError before, from the original: torch took the weight from the class of both."""
    layer = spectral_normalize(nn.Linear(3, 3), n_power_iterations=20).eval()
    x = torch.randn(2, 3)
    expected = layer(x)
    bare = remove_spectral_normalization(copy.deepcopy(layer), leave_parametrized=leave)
    assert type(bare) is nn.Linear
    torch.testing.assert_close(layer(x), expected)
    remove_spectral_normalization(layer, leave_parametrized=leave)
    torch.testing.assert_close(layer(x), bare(x))


class Pyramid(nn.Module):
    """One convolution for images of several sizes, and one that no image sees."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.shared, self.unused = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3)
        self.function = forward

    def forward(self, x):
        return self.function(x, self.shared)


def test_a_norm_that_depends_on_the_size_of_images_needs_to_know_it():
    halves = Pyramid(lambda x, f: f(x).sum((2, 3)) + f(F.avg_pool2d(x, 2)).sum((2, 3)))
    by_name = Pyramid(lambda x, f: f(input=x))
    unused = Pyramid(lambda x, f: f(x))
    for call in (spectral_normalize_network, project_spectral_):
        with pytest.raises(ValueError, match=r"shape \(1, 8, 8\) and of shape \(1, 4, 4\)"):
            call(halves, input_shape=(1, 8, 8))
        with pytest.raises(ValueError, match="must be given its images by position"):
            call(by_name, input_shape=(1, 8, 8))
    with pytest.raises(ValueError, match="is given no images in evaluation mode; name it in skip"):
        spectral_normalize_network(unused, input_shape=(1, 8, 8))
    assert not any(parametrize.is_parametrized(layer) for layer in unused.modules())
    spectral_normalize_network(unused, input_shape=(1, 8, 8), skip=["unused"])
    assert parametrize.is_parametrized(unused.shared)
    net = nn.Sequential(halves, nn.Linear(1, 1))  # what is left alone may see any size
    spectral_normalize_network(net, input_shape=(1, 8, 8), skip=["0"])
    assert normalized(net) == [1]


def test_a_layer_that_is_used_twice_may_be_skipped_by_either_name():
    layer = nn.Linear(4, 4)
    for name in ("0", "2"):
        net = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 1))
        spectral_normalize_network(net, skip=[name])
        assert normalized(net) == [3]


def test_layers_that_share_a_weight_go_on_sharing_it():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    spectral_normalize_network(net)
    assert normalized(net) == [0, 1]
    assert original(net[0]) is original(net[1])


@pytest.mark.parametrize("leave", [True, False])
def test_taking_it_off_again(leave):
    x, net, plain = gaussian(3, 1, 6, 6), mixed().eval(), mixed().eval()
    spectral_normalize_network(net, 50)
    before = net(x)
    remove_spectral_normalization(net, leave_parametrized=leave)
    assert normalized(net) == []
    torch.testing.assert_close(net(x), before if leave else plain(x))
    assert parametrize.is_parametrized(net[7])  # another's parametrization stays


def test_what_a_network_may_be_asked():
    with pytest.raises(ValueError, match="must have a weight to normalize, ReLU"):
        spectral_normalize_network(nn.ReLU())
    with pytest.raises(ValueError, match="skip must name modules of the network, it has no 'x'"):
        spectral_normalize_network(mixed(), skip=["x"])
    with pytest.raises(ValueError, match="must have a normalized weight"):
        remove_spectral_normalization(mixed())
    layer = spectral_normalize(nn.Linear(2, 2))
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    with pytest.raises(ValueError, match="no parametrization besides, it has 2"):
        remove_spectral_normalization(layer)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.LazyLinear(2), r"LazyLinear\(.* in Sequential must be initialized; run a batch"),
        (nn.LazyConv2d(2, 3), r"LazyConv2d\(.* must be initialized"),
        (nn.utils.spectral_norm(nn.Linear(3, 3)), "1.weight is made by a hook, SpectralNorm"),
        (prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.5), "made by a hook, L1Unstructured"),
        (nn.Linear(3, 3).requires_grad_(False), "must be finite, got nan"),
    ],
    ids=["lazy", "lazy convolution", "old", "pruned", "nan"],
)
def test_no_layer_is_passed_over_in_silence_and_a_refused_network_is_as_it_was(layer, message):
    if message.startswith("must be finite"):
        layer.weight.fill_(torch.nan)
    net = nn.Sequential(nn.Linear(3, 3), layer, nn.LazyBatchNorm1d())
    weight = net[0].weight
    with pytest.raises(ValueError, match=message):
        spectral_normalize_network(net)
    assert net[0].weight is weight
    assert [*net[0]._parameters] == ["weight", "bias"]
    assert not net[0]._load_state_dict_pre_hooks
    assert not parametrize.is_parametrized(net[0])
    spectral_normalize_network(net, skip=(name for name in ["1"]))
    assert normalized(net) == [0]


def tied(second: nn.Module, skip: Sequence[str]) -> nn.Sequential:
    """Two layers that share a weight, of norm 5 by its rows; one of them perhaps undivided."""
    torch.manual_seed(0)
    first = nn.Conv2d(2, 3, 3) if second.weight.ndim == 4 else nn.Embedding(7, 4)
    nn.init.orthogonal_(first.weight, gain=5)
    second.weight = first.weight
    return spectral_normalize_network(nn.Sequential(first, second).eval(), 50, skip=skip)


@pytest.mark.parametrize(
    ("second", "skip"),
    [(nn.Linear(4, 7), ["1"]), (nn.Linear(4, 7), ["0"]), (nn.ConvTranspose2d(3, 2, 3), [])],
)
def test_a_shared_weight_that_is_not_divided_alike_cannot_become_the_quotient(second, skip):
    net = tied(second, skip)
    before = [layer.weight.detach().clone() for layer in net]
    with pytest.raises(ValueError, match=r"weight of [A-Za-z2]+ must be divided as in the"):
        remove_spectral_normalization(net)
    assert all(torch.equal(a.weight, b) for a, b in zip(net, before, strict=True))
    remove_spectral_normalization(net, leave_parametrized=False)
    assert normalized(net) == []


def test_a_shared_weight_that_is_divided_alike_becomes_the_quotient():
    net = tied(nn.Linear(4, 7), [])
    before = net(torch.tensor([1, 2]))
    remove_spectral_normalization(net)
    torch.testing.assert_close(net(torch.tensor([1, 2])), before)
    assert net[0].weight is net[1].weight
    meta = spectral_normalize_network(nn.Linear(4, 7, device="meta"))  # whose norm nobody knows
    assert remove_spectral_normalization(meta).weight.is_meta


def test_the_projection_and_the_penalty_act_on_the_weight_in_use():
    layer = parametrizations.weight_norm(nn.Linear(3, 2, bias=False, dtype=torch.float64))
    project_spectral_(layer, coefficient=2.0)
    assert norm(layer.weight) == pytest.approx(2)
    for variant in ("exact", "article"):
        fixed = spectral_normalize(nn.Linear(3, 2), coefficient=3.0)
        with pytest.raises(ValueError, match="cannot be set"):
            project_spectral_(fixed, variant=variant)
    halved = spectral_normalize(nn.Linear(2, 2, bias=False).double(), coefficient=0.5).eval()
    rows = halved.weight.detach()
    expected = (rows @ rows.T - torch.eye(2)).square().sum()
    torch.testing.assert_close(orthonormal(halved).detach(), expected)


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: spectral_normalize_network([nn.Linear(2, 2)]), TypeError, "network must be an nn"),
        (lambda: remove_spectral_normalization(None), TypeError, "network must be an nn.Module"),
        (lambda: clip_weights_(None, 0.1), TypeError, "module must be an nn.Module"),
        (
            lambda: spectral_normalize_network(nn.Linear(2, 2), batch_norms="no"),
            TypeError,
            "a bool",
        ),
        (
            lambda: remove_spectral_normalization(nn.Linear(2, 2), leave_parametrized="no"),
            TypeError,
            "a bool",
        ),
        (lambda: conv_spectral_norm(torch.ones(1, 1, 3), 5, transposed="no"), TypeError, "a bool"),
        (lambda: power_iteration(torch.eye(2), detach="no"), TypeError, "detach must be a bool"),
        (lambda: induced_norm(torch.eye(2), np.array([1, 2])), ValueError, "p must be 1, 2 or inf"),
        (lambda: induced_norm(torch.eye(2), "2"), ValueError, "p must be 1, 2 or inf, got '2'"),
        (
            lambda: jacobian_norms(torch.sin, torch.ones(1, 2), chunk_size=0),
            ValueError,
            "k_size must be",
        ),
    ],
)
def test_what_was_taken_or_refused_by_torch_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_numpys_booleans_are_booleans():
    layer = spectral_normalize(nn.Linear(2, 2), at_most=np.True_)
    assert "at_most=True" in repr(layer)


@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        (nn.ReLU(), {}, ValueError, "must have a parameter named 'weight', ReLU"),
        (nn.Linear(2, 2, bias=False), {"name": "bias"}, ValueError, "a parameter named 'bias'"),
        (nn.Linear(2, 2), {"norm": "frobenius"}, ValueError, "norm must be .* got 'frobenius'"),
        (nn.Linear(2, 2), {"dim": 2}, ValueError, r"dim must be an axis of shape \(2, 2\), got 2"),
        (nn.Linear(2, 2), {"dim": 1.0}, TypeError, "dim must be an integer, got float"),
        (nn.Linear(2, 2), {"dim": "0"}, TypeError, "dim must be an integer, got str"),
        (nn.Linear(2, 2), {"dim": True}, TypeError, "dim must be an integer, got bool"),
        (nn.LayerNorm(2), {"dim": "0"}, TypeError, "dim must be an integer, got str"),
        (nn.Linear(2, 2), {"eps": False}, TypeError, "eps must be a real number, got bool"),
        (nn.Linear(2, 2), {"eps": torch.zeros(())}, TypeError, "eps must be a real .* got Tensor"),
        (nn.LazyLinear(2), {}, ValueError, "must be initialized; run a batch through it first"),
        (nn.LazyBatchNorm1d(), {}, ValueError, "must be initialized; run a batch"),
        (
            nn.Conv2d(1, 1, 3),
            {"norm": "operator", "input_size": 4.0},
            TypeError,
            "input_size must be an integer, got float",
        ),
        (nn.Linear(2, 2), {"n_power_iterations": 0}, ValueError, "n_power_iterations .* got 0"),
        (nn.Linear(2, 2), {"coefficient": 0.0}, ValueError, "coefficient must be .* got 0"),
        (nn.Linear(2, 2), {"eps": -1.0}, ValueError, "eps must be a finite .* of at least 0"),
        (nn.Linear(2, 2), {"at_most": 1.0}, TypeError, "at_most must be a bool, got float"),
        (nn.Conv2d(1, 1, 3), {"norm": "operator"}, ValueError, "input_size must be given"),
        (
            nn.Conv2d(1, 1, 3),
            {"norm": "operator", "input_size": (4, 4, 4)},
            ValueError,
            r"one integer or 2, got \(4, 4, 4\)",
        ),
        (
            nn.Conv2d(1, 1, 3),
            {"norm": "operator", "input_size": 2},
            ValueError,
            "input_size 2 does not suit",
        ),
        (
            nn.Conv2d(1, 1, 3),
            {"norm": "operator", "input_size": 0},
            ValueError,
            "input_size must be at least 1, got 0",
        ),
        (
            nn.ConvTranspose2d(1, 1, 3),
            {"norm": "operator", "input_size": 4},
            TypeError,
            "a dense layer or a convolution, got ConvTranspose2d",
        ),
        (
            type("Other", (nn.Conv2d,), {"_conv_forward": lambda *_: None})(1, 1, 3),
            {"norm": "operator", "input_size": 4},
            TypeError,
            "a dense layer or a convolution, got Other",
        ),
        (
            nn.BatchNorm1d(3, track_running_stats=False),
            {},
            ValueError,
            "must track running statistics",
        ),
    ],
)
def test_refusals(module, options, error, message):
    with pytest.raises(error, match=message):
        spectral_normalize(module, **options)
    assert not parametrize.is_parametrized(module)


def test_refused_weights():
    layer = nn.Linear(2, 2)
    layer.weight.data[0, 1] = math.nan
    with pytest.raises(ValueError, match=r"weight must be finite, got nan at index \(0, 1\)"):
        spectral_normalize(layer)
    with pytest.raises(ValueError, match="must be finite"):
        project_spectral_(layer)


@pytest.mark.parametrize(
    "function",
    [
        project_spectral_,
        article_spectral_normalize,
        partial(clip_weights_, c=1e-3),
        partial(clip_frobenius_, limit=1e-3),
        partial(frobenius_excess_penalty, limit=1.0),
        frobenius_penalty,
        SpectralPenalty,
        orthonormal,
    ],
)
@pytest.mark.parametrize("lazy", [nn.LazyLinear, lambda _: nn.LazyBatchNorm1d()])
def test_no_lazy_layer_is_passed_over_in_silence(function, lazy):
    net = nn.Sequential(nn.Linear(3, 4), lazy(1))
    before = net[0].weight.clone()
    with pytest.raises(ValueError, match=r"Lazy.* must be initialized; run a batch through it"):
        function(net)
    assert torch.equal(net[0].weight, before)
    net(torch.ones(2, 3))
    function(net)


@pytest.mark.parametrize(
    "function", [spectral_normalize_network, project_spectral_, SpectralPenalty]
)
def test_a_number_is_no_shape(function):
    with pytest.raises(TypeError, match="input_shape must be integers, got one int"):
        function(nn.Linear(5, 5), input_shape=5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: project_spectral_(nn.Linear(2, 2), variant="keras"), "variant must be"),
        (lambda: project_spectral_(nn.Linear(2, 2), n_iterations=0), "n_iterations must be"),
        (lambda: project_spectral_(nn.Linear(2, 2), coefficient=0.0), "coefficient must be"),
        (lambda: project_spectral_(nn.Linear(2, 2), input_shape=(3,)), r"inputs of shape \(3,\)"),
        (
            lambda: project_spectral_(Pyramid(lambda x, f: f(x)[:, 3]), input_shape=(1, 8, 8)),
            r"inputs of shape \(1, 8, 8\): index 3 is out of bounds",
        ),
        (lambda: SpectralProjection("keras"), "variant must be"),
        (lambda: SpectralProjection(n_iterations=0), "n_iterations must be"),
        (lambda: SpectralProjection(coefficient=-1.0), "coefficient must be"),
    ],
)
def test_refused_projections(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_orthonormal_penalty_of_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"critic must have a parameter with two axes .* ReLU"):
        OrthonormalPenalty().penalty(nn.ReLU(), torch.zeros(1), torch.zeros(1), None)
