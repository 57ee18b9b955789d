"""The certificate against exact values, against attacks, and what it refuses."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lipbook.certificate import lipschitz_certificate
from lipbook.lipschitz import (
    difference_quotients,
    layer_product_bound,
    lower_bound_from_pairs,
    maximize_jacobian_norm,
)
from lipbook.normalization import spectral_normalize

SHAPE = (2, 6, 6)


class Function(nn.Module):
    """A network given by its forward pass."""

    def __init__(self, function, *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def elsewhere(x: Tensor) -> Tensor:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(lambda: 3 * x).result()


def residual(channels: int) -> Function:
    branch = nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular"),
    )
    return Function(lambda x, g: F.relu(x + 0.5 * g(x)), branch)


def network(seed: int, *, normalized: bool) -> nn.Sequential:
    """Dense and convolutional layers, stride, padding, pooling, residual sum, BatchNorm."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.Tanh(),
        residual(4),
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(4, 6, 2),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.SiLU(),
        Function(
            lambda x, a, b: torch.cat([a(x), 2 - b(x) / 3], 1), nn.Linear(5, 2), nn.Linear(5, 2)
        ),
    ).double()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.uniform_(0.2, 3)
            layer.running_mean.normal_()
            layer.weight.data.normal_()
        if normalized and isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            spectral_normalize(layer, n_power_iterations=3)
    return net


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), normalized=st.booleans())
def test_attack(seed, normalized):
    """Whatever pairs, Jacobians and an ascent find stays below the certificate."""
    net = network(seed, normalized=normalized)
    value = lipschitz_certificate(net, SHAPE).value
    points = torch.randn(12, *SHAPE, generator=torch.Generator().manual_seed(seed)).double()
    found = maximize_jacobian_norm(net, points[:3], steps=8, lr=0.3)
    near = points + 1e-6 * torch.randn_like(points)
    found_by_pairs = difference_quotients(net, points, near).max().item()
    lower = max(found.value, lower_bound_from_pairs(net, points), found_by_pairs)
    assert 0 < lower <= value * (1 + 1e-8)


def test_attack_on_linear_networks_reaches_the_certificate():
    """Where layers stretch one direction, the bound is attained: it cannot be made smaller."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 1)).double()
    net[0].weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0, 1.0, 1.0])))
    net[2].weight.data.copy_(torch.tensor([[2.0, 0.0, 0.0, 0.0]]))
    found = maximize_jacobian_norm(net, torch.zeros(1, 4).double(), steps=0).value
    assert found == pytest.approx(6)
    assert found <= lipschitz_certificate(net, (4,)).value <= 6 * (1 + 1e-5)


def test_normalized_network_is_one_lipschitz_and_residual_blocks_add():
    """SP1 and SP3: dense layers give at most 1, and k blocks x + g(x) give 2ᵏ."""
    net = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 1))
    for layer in (net[0], net[2]):
        spectral_normalize(layer, n_power_iterations=200)
    assert 0.5 < lipschitz_certificate(net, (5,)).value < 1.001
    assert lipschitz_certificate(net[:2], (5,)).value == pytest.approx(1, rel=1e-3)
    blocks = [
        Function(lambda x, g: x + g(x), spectral_normalize(nn.Linear(5, 5), n_power_iterations=300))
        for _ in range(3)
    ]
    assert lipschitz_certificate(nn.Sequential(*blocks), (5,)).value == pytest.approx(8, rel=1e-2)


def test_chains_agree_with_the_product_of_layers():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ELU(2.0), nn.Flatten(), nn.Linear(48, 2))
    value, steps = lipschitz_certificate(net, SHAPE)
    assert value == pytest.approx(layer_product_bound(net, SHAPE).value, rel=1e-5)
    called = [("0", "convolution"), ("1", "elu"), ("3", "addmm"), ("", "output")]
    assert [(step.layer, step.operation) for step in steps] == called
    assert steps[-1].bound == value


def changed_in_place(x):
    y = 2 * x
    y.add_(100 * x)
    return y


def dropped(x):
    h = 2 * x
    h.mul_(30)
    nn.ReLU(inplace=True)(h)
    return h


def written_into(x):
    y = torch.zeros(len(x), 6).to(x)
    y[:, :4] = 3 * x
    view = y[:, :2]
    view *= 5
    return y


def handed_out(x):
    y = torch.empty_like(x)
    torch.mul(x, 30, out=y)
    return y


OPERATIONS = [
    # Operations of several results, and what changes in place: 0 or 30 times too small before.
    (lambda x: sum(5 * part for part in x.chunk(2, 1)), 10),
    (lambda x: sum(5 * part for part in x.split([1, 3], 1)[1:]), 5),
    (lambda x: torch.stack(x.unbind(1), 1), 2),
    (lambda x: 4 * x.max(1).values, 4),
    (lambda x: x.topk(2, 1)[0] * 4, 4),
    (lambda x: 4 * x.sort(1)[0].cummax(1)[0], 8),
    (lambda x: F.max_pool1d(x[:, None], 2, return_indices=True)[0], 1),
    (changed_in_place, 102),
    (dropped, 60),
    (written_into, math.hypot(3, 15)),
    (handed_out, 30),
    (lambda x: 3 * x.detach().data, 3),
    (lambda x: nn.LeakyReLU(0.1)(x), 1),
    (lambda x: x + x, 2),
    (lambda x: x - 3 * x, 4),
    (lambda x: -x, 1),
    (lambda x: x / 4 + 1, 0.25),
    (lambda x: 1 - x * 0.5, 0.5),
    (lambda x: x.add_(1).relu_(), 1),
    (lambda x: F.leaky_relu(x, 3.0), 3),
    (lambda x: torch.sigmoid(x), 0.25),
    (lambda x: x.tanh(), 1),
    (lambda x: x.sum(1), math.sqrt(4)),
    (lambda x: x.mean(1, keepdim=True), 0.5),
    (lambda x: torch.cat([x, x], dim=1), math.sqrt(2)),
    (lambda x: x.view(x.shape[0], 2, -1).transpose(1, 2).flatten(1), 1),
    (lambda x: x + x.sum(1, keepdim=True), 1 + 2 * 2),
    (lambda x: 0 * x, 0),
]


@pytest.mark.parametrize(("function", "expected"), OPERATIONS)
def test_operations(function, expected):
    net = Function(function)
    assert lipschitz_certificate(net, (4,)).value == pytest.approx(expected, rel=1e-6)
    points = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double()
    # Clones, since some of the functions work in place.
    assert lower_bound_from_pairs(lambda x: net(x.clone()), points) <= expected * (1 + 1e-6)


def test_modes_and_vectors_are_left_alone():
    net = nn.Sequential(spectral_normalize(nn.Linear(4, 4)), nn.BatchNorm1d(4), nn.Dropout())
    net[2].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    lipschitz_certificate(net, (4,))
    assert [layer.training for layer in net] == [True, True, False]
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_constants_may_be_given():
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.PReLU()))
    base = layer_product_bound(net[0], (4,)).value
    for key in ("1.0", nn.PReLU):
        value = lipschitz_certificate(net, (4,), constants={key: 2.0}).value
        assert value == pytest.approx(2 * base, rel=1e-5)


@pytest.mark.parametrize(
    ("net", "options", "error", "message"),
    [
        (nn.Hardshrink(), {}, TypeError, "operation 'hardshrink' is not known; pass constants="),
        (nn.Sequential(nn.GLU()), {}, TypeError, "operation 'glu' in layer '0' .* pass radius="),
        (Function(lambda x: x * x), {}, TypeError, "operation 'mul' is not known"),
        (Function(lambda x: 1 / x), {}, TypeError, "operation 'reciprocal' is not known"),
        (Function(lambda x: torch.exp(x)), {}, TypeError, "operation 'exp' is not known"),
        (Function(lambda x: x.flatten()), {}, TypeError, "must map each row of a batch by itself"),
        (Function(lambda x: x - x.mean(0)), {}, TypeError, "must map each row of a batch by"),
        (Function(F.dropout), {}, TypeError, "draws random numbers"),
        (Function(lambda x: x if x.max() > 0 else -x), {}, TypeError, "operation 'gt' is not"),
        (Function(lambda x: x * float(x[0, 0])), {}, TypeError, "by itself|depends on the data"),
        (Function(lambda x: x.max(1)), {}, TypeError, "must return one tensor, got max"),
        (Function(lambda x: {"y": x}), {}, TypeError, "must return one tensor, got dict"),
        (Function(lambda x: x.max(1).indices * 1.0), {}, TypeError, "the indices of 'max' jump"),
        (Function(lambda x: x.round()), {}, TypeError, "operation 'round' is not known"),
        (Function(lambda x: x.long() * 1.0), {}, TypeError, "a conversion to torch.int64 jumps"),
        (Function(lambda x: torch.from_numpy(x.numpy())), {}, TypeError, "'numpy' is not known"),
        (Function(lambda x: torch.tensor(x.tolist())), {}, TypeError, "'tolist' is not known"),
        (Function(elsewhere), {}, TypeError, "is below a slope of 3"),
        (nn.Bilinear(4, 4, 2), {}, ValueError, "does not take inputs"),
        (Function(lambda x, f: f(x, x), nn.Bilinear(4, 4, 2)), {}, TypeError, "'_trilinear'"),
        (nn.Linear(3, 2), {}, ValueError, r"does not take inputs of shape \(4,\)"),
        (nn.Linear(4, 2), {"constants": {"7": 1.0}}, ValueError, "names '7', which is no layer"),
        (nn.Linear(4, 2), {"constants": {"": math.nan}}, ValueError, "must be a finite number"),
        (nn.Linear(4, 2), {"radius": math.nan}, ValueError, "radius must be a finite number"),
        (nn.Linear(4, 2, device="meta"), {}, TypeError, "must hold its numbers, 'weight'"),
        (nn.LazyLinear(2), {}, TypeError, "must be initialized"),
        (nn.BatchNorm1d(4, track_running_stats=False), {}, TypeError, "fails on|by itself"),
    ],
)
def test_refusals(net, options, error, message):
    with pytest.raises(error, match=message):
        lipschitz_certificate(net, (4,), **options)
