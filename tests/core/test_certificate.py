"""The certificate against exact values, against attacks, and what it refuses."""

from __future__ import annotations

import copy
import itertools
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import List  # noqa: UP035

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lipbook import _rules
from lipbook.certificate import lipschitz_certificate
from lipbook.lipschitz import (
    difference_quotients,
    exact_lipschitz,
    jacobian_norms,
    layer_matrix,
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


def read_into(make):
    """Lengths that a list holds, beside so much that no measured slope betrays them."""
    return lambda x: 9 * x - 9 * x + make([[row.norm()] for row in x])


IMAGINARY = torch.tensor([1j])
SCRIPTED = Function(lambda x, f: f(x), torch.jit.script(nn.Hardshrink()))


UNSEEN = "a tensor that was made where torch does not show how, by NumPy, a thread or torch.Tens"


class Listed(nn.Module):
    """For TorchScript, whose lists no mode sees."""

    def forward(self, y: Tensor) -> Tensor:
        numbers: List[List[float]] = y.double().tolist()  # noqa: UP006 - TorchScript's names
        return torch.tensor(numbers, dtype=torch.float64)


class Capsule:
    """What NumPy takes for an array, past all that torch shows."""

    def __init__(self, tensor: Tensor) -> None:
        self.capsule = torch.utils.dlpack.to_dlpack(tensor)

    def __dlpack__(self, **_) -> object:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def array(y: Tensor) -> np.ndarray:
    return np.from_dlpack(Capsule(y)).copy()


def hidden(make):
    """A part that is 0 at all of the few inputs that are tried out."""
    return Function(lambda x: x + make(100 * F.relu(x - 50)))


def written(change):
    return Function(lambda x: (y := 100 * F.relu(x - 50), change(y))[0])


def zeroed(y: Tensor) -> None:
    torch.amax(y.new_zeros(len(y), 4, 2), 2, out=y[:, :1].expand(-1, 4))


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


def taken_away(x):
    """1.01 - x, by a sum with a negative factor."""
    return torch.full_like(x, 1.01).index_add(1, torch.arange(4), x, alpha=-1)


LIMITS = torch.tensor([0.0, -60.0]).double().view(2, 1, 1)
POINTS = torch.linspace(-1, 1, 6).double().view(1, 1, 3, 2)


def sampled(x: Tensor, mode: str = "bilinear") -> Tensor:
    grid = POINTS.expand(len(x), -1, -1, -1)
    return F.grid_sample(x[:, None, None], grid, mode, align_corners=True)


OPERATIONS = [
    # Limits with an axis more, each of which has its own range.
    (
        lambda x: torch.clamp_min(x, LIMITS).add(60.01).log().permute(1, 0, 2),
        100 * math.sqrt(2),
    ),
    # Closed forms.
    (lambda x: F.rrelu(3 * x), 3),
    (lambda x: F.rms_norm(x, (4,), eps=0.25), 2),
    (lambda x: F.rms_norm(x, (4,), torch.arange(4.0).to(x), eps=0.25), 6),
    (lambda x: F.softsign(x), 1),
    (lambda x: F.tanhshrink(x), 1),
    (lambda x: F.normalize(x, p=1, eps=0.5), 6),
    (lambda x: F.normalize(x.view(-1, 2, 2), p=math.inf, dim=(1, 2), eps=0.5), 6),
    (lambda x: torch.lerp(x, -x, 0.25), 1),
    (lambda x: torch.lerp(x[:, :1], torch.ones(4).to(x), 1.5), 1),
    (lambda x: x.sigmoid().log1p(), 0.25),
    (lambda x: (x.sigmoid() + 0.5).log2(), 0.5 / math.log(2)),
    (lambda x: (x.sigmoid() + 0.5).log10(), 0.5 / math.log(10)),
    (lambda x: x.clamp_max(3).exp2(), 8 * math.log(2)),
    (lambda x: x.erfc(), 2 / math.sqrt(math.pi)),
    (lambda x: torch.hypot(x, 2 * x), math.sqrt(5)),
    (lambda x: torch.logaddexp(x, torch.zeros_like(x)), 1),
    (lambda x: torch.logaddexp2(x, 3 * x), math.sqrt(10)),
    (lambda x: F.l1_loss(3 * x, x, reduction="none"), 4),
    (lambda x: F.huber_loss(3 * x, x, reduction="none", delta=0.5), 2),
    (lambda x: F.smooth_l1_loss(x, torch.ones_like(x), reduction="none"), 1),
    (lambda x: x.nansum(1), 2),
    (lambda x: torch.narrow_copy(x, 1, 1, 2), 1),
    (lambda x: F.interpolate(x[:, None, None], (1, 2), mode="bilinear", antialias=True), None),
    (sampled, None),
    # What a limit repeats; the range of what is taken away; Python's numbers to all their digits.
    (lambda x: x[:, :1].clamp(min=-torch.arange(4.0).double()), 2),
    (lambda x: x[:, :1].clamp_max(torch.arange(4.0).double()), 2),
    (lambda x: taken_away((x - 5).sigmoid()).log(), 25),
    (lambda x: 1e46 * (1e-46 * x), 1),
    (lambda x: x / 1e46 / 1e-46, 1),
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
    if expected is None:  # a linear map
        expected = torch.linalg.matrix_norm(layer_matrix(function, (4,)), 2).item()
        assert expected <= lipschitz_certificate(net, (4,)).value < 2 * expected
    else:
        assert lipschitz_certificate(net, (4,)).value == pytest.approx(expected, rel=2e-6)
    points = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double()
    # Clones, since some of the functions work in place.
    assert lower_bound_from_pairs(lambda x: net(x.clone()), points) <= expected * (1 + 1e-6)


def test_numbers_of_a_network_are_not_rounded_to_the_default_dtype():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        value = lipschitz_certificate(Function(lambda x: 0.30001 * x / 3.33001), (4,)).value
    finally:
        torch.set_default_dtype(before)
    assert value == pytest.approx(0.30001 / 3.33001, rel=2e-6)


def test_an_operation_of_another_library_is_not_torchs_of_that_name():
    with torch.library._scoped_library("lipbook_tests", "DEF") as library:
        library.define("sigmoid(Tensor self) -> Tensor")
        library.impl("sigmoid", lambda x: 5 * x, "CPU")
        # Behind a detour that is too steep on paper, so that no measured slope contradicts.
        net = Function(lambda x: torch.ops.lipbook_tests.sigmoid(x) + 9 * x - 9 * x)
        with pytest.raises(TypeError, match="operation 'lipbook_tests::sigmoid' is not known"):
            lipschitz_certificate(net, (4,))


@pytest.mark.parametrize("first", [nn.ELU(inplace=True), nn.LeakyReLU(0.1, inplace=True)])
def test_a_network_may_begin_in_place(first):
    net = nn.Sequential(first, nn.Linear(4, 4))
    value = lipschitz_certificate(net, (4,)).value
    assert value == pytest.approx(layer_product_bound(net, (4,)).value, rel=1e-5)


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


def relu_net(sizes: list[int], seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def eclipse_fast(weights: list[Tensor]) -> float:
    """The closed form of the paper, with its multipliers and its inverse as they stand."""
    root = torch.eye(weights[0].shape[1]).double()  # X⁻¹
    for weight in weights[:-1]:
        inner = weight @ root @ weight.T
        multiplier = 2 / torch.linalg.matrix_norm(inner, 2)
        root = (multiplier * torch.eye(len(weight)) - multiplier**2 / 4 * inner).inverse()
    return torch.linalg.matrix_norm(weights[-1] @ root @ weights[-1].T, 2).sqrt().item()


@pytest.mark.parametrize("sizes", [[2, 10, 1], [2, 16, 16, 1], [2, 16, 16, 16, 1], [1, 8, 8, 3]])
@pytest.mark.parametrize("seed", [0, 1])
def test_dense_chains_have_the_closed_form_of_eclipse_fast(sizes, seed):
    net = relu_net(sizes, seed)
    value = lipschitz_certificate(net, sizes[:1]).value
    weights = [layer.weight.detach() for layer in net if isinstance(layer, nn.Linear)]
    assert value == pytest.approx(eclipse_fast(weights), rel=1e-5)
    exact = exact_lipschitz(net, (-math.inf, math.inf)).value
    product = layer_product_bound(net, sizes[:1]).value
    assert exact <= value <= 0.9 * product
    # Within any network, and not where slopes may be negative.
    residual = Function(lambda x, f: torch.cat([x, f(x)], 1), net)
    assert lipschitz_certificate(residual, sizes[:1]).value == pytest.approx(math.hypot(1, value))
    curved = nn.Sequential(*(nn.GELU() if isinstance(f, nn.ReLU) else f for f in net))
    bound = lipschitz_certificate(curved, sizes[:1]).value
    assert bound == pytest.approx(layer_product_bound(curved, sizes[:1]).value, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-150, 1e-9, 1e9, 1e150])
def test_ill_conditioned_chains_stay_between_exact_and_product(scale):
    net = relu_net([2, 12, 12, 12, 2])
    with torch.no_grad():
        net[2].weight[:6] *= 1e-12
        net[0].weight *= scale
        net[4].weight /= scale
    value = lipschitz_certificate(net, (2,)).value
    product = layer_product_bound(net, (2,)).value
    assert exact_lipschitz(net, (-1, 1)).value <= value <= product * (1 + 2e-6)


def test_lipsdp_lies_between_the_exact_constant_and_the_closed_form():
    pytest.importorskip("cvxpy")
    net = relu_net([2, 10, 1])
    value = lipschitz_certificate(net, (2,), method="lipsdp").value
    assert exact_lipschitz(net, (-math.inf, math.inf)).value <= value
    assert value < 0.95 * lipschitz_certificate(net, (2,)).value


def test_lipsdp_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ImportError, match="needs the package cvxpy"):
        lipschitz_certificate(relu_net([2, 3, 1]), (2,), method="lipsdp")
    with pytest.raises(TypeError, match="got GELU at '0'"):
        lipschitz_certificate(nn.Sequential(nn.GELU()), (2,), method="lipsdp")


class Block(nn.Module):
    """A residual block of public critics: ReLU and convolution twice, average pooling."""

    def __init__(self, n_in: int, n_out: int, size: int, *, first: bool, down: bool, norm: bool):
        super().__init__()
        self.convolutions = nn.Sequential(
            *([] if first else [nn.ReLU()]),
            nn.Conv2d(n_in, n_out, 3, padding=1),
            nn.LayerNorm([n_out, size, size]) if norm else nn.Identity(),
            nn.ReLU(inplace=True),
            nn.Conv2d(n_out, n_out, 3, padding=1),
            nn.AvgPool2d(2) if down else nn.Identity(),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(n_in, n_out, 1) if down else nn.Identity(),
            nn.AvgPool2d(2) if down else nn.Identity(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.convolutions(x) + self.shortcut(x)


@pytest.mark.parametrize("normalized", ["inside", "LayerNorm"])
def test_public_residual_critics(normalized):
    """SNGAN's and WGAN-GP's critic at 32x32, an eighth of their width."""
    torch.manual_seed(0)
    norm = normalized == "LayerNorm"
    blocks = [
        Block(3, 16, 32, first=True, down=True, norm=norm),
        Block(16, 16, 16, first=False, down=True, norm=norm),
        Block(16, 16, 8, first=False, down=False, norm=norm),
        Block(16, 16, 8, first=False, down=False, norm=norm),
    ]
    summed = Function(lambda x: F.relu(x).sum((2, 3)))
    critic = nn.Sequential(*blocks, summed, nn.Linear(16, 1))
    if not norm:
        for part in critic.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                spectral_normalize(part, n_power_iterations=5)
    value = lipschitz_certificate(critic, (3, 32, 32)).value
    critic.eval()
    points = torch.randn(4, 3, 32, 32)
    assert jacobian_norms(critic, points).max() <= value < math.inf


def test_values_do_not_depend_on_the_mode_of_the_caller():
    net = relu_net([3, 5, 2])
    expected = lipschitz_certificate(net, (3,)).value
    for mode in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with mode:
            assert lipschitz_certificate(net, (np.int64(3),)).value == expected
            assert lipschitz_certificate(net, (3,), radius=np.float32(2)).value <= expected
            lipschitz_certificate(relu_net([3, 5, 2]), (3,))


def test_weights_that_a_hook_or_a_parametrization_computes():
    layer = nn.Linear(4, 4)
    norm = torch.linalg.matrix_norm(layer.weight.detach(), 2).item()
    hooked = nn.utils.spectral_norm(copy.deepcopy(layer), n_power_iterations=50)
    hooked(torch.randn(2, 4))  # leaves a weight that copy.deepcopy refuses
    assert lipschitz_certificate(hooked, (4,)).value == pytest.approx(1, rel=1e-3)
    normed = nn.utils.parametrizations.weight_norm(copy.deepcopy(layer))
    normed.parametrizations.weight.original0.data *= 3
    assert lipschitz_certificate(normed, (4,)).value == pytest.approx(3 * norm, rel=1e-5)
    assert nn.utils.parametrize.is_parametrized(normed)
    twice = nn.Sequential(layer, layer)
    squared = torch.linalg.matrix_norm(layer.weight.detach() @ layer.weight.detach(), 2).item()
    assert lipschitz_certificate(twice, (4,)).value == pytest.approx(squared, rel=1e-5)
    scripted = torch.jit.script(nn.Sequential(layer, nn.ReLU()))
    assert lipschitz_certificate(scripted, (4,)).value == pytest.approx(norm, rel=1e-5)
    half = copy.deepcopy(layer).bfloat16()
    assert lipschitz_certificate(half, (4,)).value == pytest.approx(norm, rel=1e-2)
    rounded = nn.Sequential(layer, Function(lambda x: x.half().to(x)))
    value = lipschitz_certificate(rounded, (4,), constants={"1": 1.0}).value
    assert value == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(
    "layer", [nn.AvgPool2d(3, 2), nn.Upsample(scale_factor=1.7, mode="bicubic")]
)
def test_large_images_are_pooled_in_parts(layer, monkeypatch):
    whole = lipschitz_certificate(layer, (1, 9, 8)).value
    monkeypatch.setattr(_rules, "_AT_ONCE", 150)
    assert lipschitz_certificate(layer, (1, 9, 8)).value == whole


def test_overflow_is_not_zero():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    net[0].weight.data.fill_(1e200)
    net[1].weight.data.fill_(1e200)
    with pytest.raises(TypeError, match="may grow without limit"):
        lipschitz_certificate(net, (2,))
    with pytest.raises(ValueError, match="beyond float64"):
        layer_product_bound(net, (2,))


CAUSAL = torch.ones(3, 3).tril() == 1
MASKS = [
    lambda a, mask: a + mask,
    lambda a, _: a.masked_fill(~CAUSAL, -math.inf),
    lambda a, _: torch.where(CAUSAL, a, -math.inf),
    lambda a, _: F.pad(a[..., :1], (0, 2), value=-math.inf),
]


@pytest.mark.parametrize("shut", MASKS)
def test_masks_are_infinite(shut):
    """Causal attention behind a LayerNorm; what is shut out is -inf, by a buffer or otherwise."""

    def attend(x, norm):
        queries = norm(x)
        return shut(queries @ queries.mT / 2, net.mask).softmax(-1) @ queries

    net = Function(attend, nn.LayerNorm(4, eps=0.1))
    net.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
    value = lipschitz_certificate(net, (3, 4)).value
    assert 0 < jacobian_norms(net.double(), torch.randn(20, 3, 4).double()).max() <= value < 200


def test_bounds_on_a_ball():
    """Products of what moves have slopes that grow with the radius."""
    for radius in (0.5, 2.0):
        square = lipschitz_certificate(Function(lambda x: x * x), (4,), radius=radius).value
        assert square == pytest.approx(2 * radius, rel=1e-5)
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    net = Function(lambda x, a: a(x, x, x)[0], attention)
    with pytest.raises(TypeError, match=r"operation 'bmm' in layer 'layers.0' .* pass radius="):
        lipschitz_certificate(net, (3, 4))
    bounds = [lipschitz_certificate(net, (3, 4), radius=r).value for r in (0.1, 1.0)]
    assert 0 < bounds[0] < bounds[1]
    recurrent = Function(lambda x, f: f(x)[0], nn.LSTM(4, 3, batch_first=True))
    value = lipschitz_certificate(recurrent, (5, 4)).value  # gates are bounded everywhere
    found = jacobian_norms(recurrent, torch.randn(20, 5, 4)).max().item()
    assert 0 < found <= value
    gated = Function(lambda x, f: f(x)[0], nn.GRU(4, 3, batch_first=True))  # its state is not
    value = lipschitz_certificate(gated, (2, 4), radius=1).value
    inside = 0.9 * F.normalize(torch.randn(2, 20, 8), dim=2).reshape(2, 20, 2, 4)
    with torch.no_grad():  # whose operations torch.func does not batch
        apart = (gated(inside[0]) - gated(inside[1])).flatten(1).norm(dim=1)
    assert 0 < (apart / (inside[0] - inside[1]).flatten(1).norm(dim=1)).max().item() <= value
    assert value < 100
    with pytest.raises(TypeError, match="without limit on this ball too"):
        lipschitz_certificate(Function(lambda x: (x + 800).exp()), (2,), radius=1)


def beside(x: Tensor) -> Tensor:
    memory = x.new_zeros(len(x), 6)
    left, right = memory[:, :3], memory[:, 3:]
    left.copy_(x)
    return right + 2 * x


def beside_in_other_units(x: Tensor) -> Tensor:
    memory = x.new_zeros(2 * x.numel())
    tail = memory.view(torch.uint8)[-x.numel() * x.element_size() :]
    memory[x.numel() :].copy_(x.flatten())
    return tail.view(x.dtype).reshape(x.shape) * 3


def test_what_is_written_beside_a_constant_leaves_it_one():
    assert lipschitz_certificate(Function(beside), (3,)).value == pytest.approx(2, rel=1e-5)
    try:
        value = lipschitz_certificate(Function(beside_in_other_units), (3,)).value
    except TypeError:
        return
    assert value >= 3


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda x: x[:, :0].sum(1), 0),
        (lambda x: F.pad(x[:, :0], (1, 1)), 0),
        (lambda x: x.clamp(-1, 1) ** torch.tensor(2.0), 2),
    ],
)
def test_what_has_no_entries_and_powers_that_are_tensors(forward, expected):
    value = lipschitz_certificate(Function(forward), (4,)).value
    assert isinstance(value, float)
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("peak", [0.5, 2.8, 3.0, 4.0, 10.0])
def test_a_gated_unit_is_as_steep_as_its_steepest_gate(peak):
    gates = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    points = torch.stack([torch.full_like(gates, peak), gates], 1)
    found = jacobian_norms(nn.GLU(), points).max().item()
    assert lipschitz_certificate(nn.GLU(), (2,), radius=peak).value == pytest.approx(
        found, rel=1e-5
    )


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (Function(F.normalize), 1e12),
        (Function(lambda x: F.normalize(x, eps=0.5)), 2),
        (Function(lambda x: F.normalize(input=-3 * x, dim=-1, eps=0.5)), 6),
        (nn.RMSNorm(4), torch.finfo(torch.float32).eps ** -0.5),
        (nn.RMSNorm(4).bfloat16(), torch.finfo(torch.float32).eps ** -0.5),
        (nn.RMSNorm(4).double(), torch.finfo(torch.float64).eps ** -0.5),
        (nn.RMSNorm(4, eps=0.25), 2),
        (Function(lambda x, norm: norm(x=3 * x), nn.RMSNorm(4, eps=0.25)), 6),
        (Function(lambda x, layer: layer(input=3 * x), nn.Softsign()), 3),
    ],
)
@pytest.mark.parametrize("radius", [1.0, math.inf])
def test_normalized_vectors_move_most_near_0(net, expected, radius):
    value = lipschitz_certificate(net, (4,), radius=radius).value
    assert value == pytest.approx(expected, rel=1e-5)


def applied(x: Tensor) -> Tensor:
    y = x.clone()
    y.apply_(lambda entry: entry + 5 * max(entry - 50, 0))
    return y


def mapped(x: Tensor) -> Tensor:
    return x + torch.zeros_like(x).map_(x, lambda _, entry: 5 * max(entry - 50, 0))


def through_pool(x: Tensor, layer: nn.Module) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return x + 30 * pool.submit(layer, x - 50).result()


def standardized_with(x: Tensor) -> Tensor:
    statistics = torch.zeros(4).to(x), torch.full((4,), 100.0).to(x)
    normalize = torch.ops.aten._native_batch_norm_legit
    return x + normalize(x, None, None, *statistics, False, 0.1, 1e-5)[0]


class Box:
    """What holds a tensor and is no container that torch knows."""

    def __init__(self, held: Tensor) -> None:
        self.held = held


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        (lambda box: box.held * 1, lambda x, f: f(Box(x))),
        (lambda x: Box(x * 1), lambda x, f: f(x).held),
        (lambda x: lambda: x * 1, lambda x, f: f(x)()),
    ],
)
def test_what_reaches_or_leaves_a_layer_unseen_has_no_given_constant(inner, outer):
    net = Function(outer, Function(inner))
    assert lipschitz_certificate(net, (4,)).value == pytest.approx(1, rel=1e-5)
    with pytest.raises(TypeError, match=r"takes it from elsewhere|may hold tensors"):
        lipschitz_certificate(net, (4,), constants={"layers.0": 1.0})


def test_a_layer_with_a_given_constant_takes_no_captured_value():
    """Nor does it change one: its constant is about its arguments."""
    for inner in (lambda x, held: x + held, lambda x, held: (x, held.mul_(3))[0]):
        held: list[Tensor] = []
        layer = Function(lambda x, inner=inner, held=held: inner(x, held[0]))

        def outer(x, f, held=held):
            held[:] = [10 * x]
            return f(x) + held[0]

        net = Function(outer, layer)
        assert lipschitz_certificate(net, (4,)).value > 20
        with pytest.raises(TypeError, match="takes it from elsewhere"):
            lipschitz_certificate(net, (4,), constants={"layers.0": 1.0})


def kept_aside(x: Tensor, aside: list[Tensor]) -> Tensor:
    aside[:] = [2 * x]
    return x * 1


def written_aside(x: Tensor, aside: list[Tensor]) -> Tensor:
    aside[0].copy_(x)
    return x * 1


def viewed_aside(x: Tensor, aside: list[Tensor]) -> Tensor:
    aside[:] = [x[:, :2]]
    return x * 1


@pytest.mark.parametrize("inner", [kept_aside, written_aside, viewed_aside])
def test_what_a_layer_with_a_given_constant_leaves_behind_is_refused(inner):
    aside: list[Tensor] = []

    def outer(x, f):
        aside[:] = [torch.zeros_like(x)]
        return f(x).sum(1, keepdim=True) + 50 * aside[0]

    net = Function(outer, Function(lambda x: inner(x, aside)))
    assert lipschitz_certificate(net, (4,)).value > 50
    with pytest.raises(TypeError, match="by a module that counts as a whole"):
        lipschitz_certificate(net, (4,), constants={"layers.0": 1.0})


def test_a_layer_with_a_given_constant_may_return_its_input():
    def outer(x, f):
        y = f(x)
        y.mul_(4)
        return y + x

    for layer in (nn.Identity(), Function(lambda x: x.view(-1, 4))):
        assert lipschitz_certificate(Function(outer, layer), (4,)).value == pytest.approx(8)
    given = {"layers.0": 1.0}
    net = Function(outer, nn.Identity())
    assert lipschitz_certificate(net, (4,), constants=given).value == pytest.approx(8)
    net = Function(outer, Function(lambda x: x.view(-1, 4)))
    with pytest.raises(TypeError, match="by a module that counts as a whole"):
        lipschitz_certificate(net, (4,), constants=given)


def test_weights_that_a_layer_with_a_given_constant_shares_stay_constants():
    def outer(x, f, g):
        return f(x) + F.linear(x, f.weight.t()) + g(x) + g(f(x))

    net = Function(outer, nn.Linear(4, 4, bias=False), nn.Identity())
    norm = torch.linalg.matrix_norm(net.layers[0].weight, 2).item()
    found = lipschitz_certificate(net, (4,), constants={"layers.0": norm, "layers.1": 1.0})
    assert found.value == pytest.approx(3 * norm + 1, rel=1e-4)


def test_memory_that_two_storages_share_is_followed():
    def there_and_back(x):
        y = 2 * x
        torch.from_dlpack(torch.utils.dlpack.to_dlpack(y)).mul_(5)
        return y

    value = lipschitz_certificate(Function(there_and_back), (4,)).value
    assert value == pytest.approx(10, rel=1e-5)


class Held(nn.Module):
    """Holds numbers, none of them as a parameter or buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.tensor, self.array = torch.full((4,), 2.0), np.full(4, 2.0)
        self.cached: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.cached is None:
            self.cached = torch.full((4,), 2.0)
        blank = torch.empty(4)
        blank[:3] = 2.0
        nn.init.constant_(blank[3:], 2.0)
        x = x * self.tensor * self.cached * blank * torch.tensor([2.0, 2.0, 2.0, 2.0])
        x = x * torch.from_numpy(self.array) * torch.tensor(self.array) * np.float64(2)
        return (x * LIMITS.cos().amax() * torch.tensor(2.0).sqrt())[:, [0, 1, 2, 3]]


def test_constants_may_be_held_or_made_as_is_usual():
    assert lipschitz_certificate(Held(), (4,)).value == pytest.approx(128 * math.sqrt(2), rel=1e-5)


class Shifted(nn.Module):
    """For TorchScript; frozen, it holds its numbers in its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.full((4,), 3.0)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + torch.ones(4)


def test_constants_of_scripts():
    script = torch.jit.script(Shifted().eval())
    for net in (script, torch.jit.freeze(script), torch.jit.trace(Shifted(), torch.ones(2, 4))):
        assert lipschitz_certificate(net, (4,)).value == pytest.approx(3, rel=1e-5)


def test_rows_that_parts_of_memory_share_no_entry_are_followed():
    def swapped(x):
        y = 2 * x
        y[:, :2].mul_(y[:, :2].sigmoid())
        y[:, 2:].copy_(y[:, :2])
        return y

    assert lipschitz_certificate(Function(swapped), (4,), radius=1).value < 20


def test_images_of_a_padded_convolution_may_come_without_a_batch():
    layer = nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular")
    alone = Function(lambda x, f: torch.stack([f(row) for row in x]), layer)
    value = lipschitz_certificate(alone, (2, 5)).value
    assert value == pytest.approx(lipschitz_certificate(layer, (2, 5)).value)


class Remembering(nn.Module):
    """Takes its scale from the first batch, as activation normalization does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.scale == 0:
            self.scale.copy_(3 + x.std())
        return self.scale * x


def test_a_module_that_its_first_call_sets_up_must_have_been_called():
    net = Remembering()
    with pytest.raises(TypeError, match="call it once before, if that sets it up"):
        lipschitz_certificate(net, (4,))
    net(torch.randn(5, 4))
    assert lipschitz_certificate(net, (4,)).value == pytest.approx(net.scale.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("net", "options", "error", "message"),
    [
        # What lies in one memory.
        (written(lambda y: y[:, :1].expand(-1, 4).fill_(0)), {}, TypeError, "share their memory"),
        (written(zeroed), {}, TypeError, "'amax' is not known: it writes to entries that share"),
        (written(lambda y: y.unfold(1, 2, 1).mul_(30)), {}, TypeError, "share their memory"),
        (
            written(lambda y: y[:, ::2].add_(y[:, :1], alpha=30)),
            {},
            TypeError,
            "'add_' is not known: it reads memory that it writes; clone what",
        ),
        # What comes back from where torch does not look.
        (hidden(lambda y: torch.Tensor([[r.norm()] for r in y])), {}, TypeError, UNSEEN),
        (hidden(lambda y: torch.DoubleTensor([[r.norm()] for r in y])), {}, TypeError, UNSEEN),
        (hidden(lambda y: torch.from_numpy(array(y))), {}, TypeError, UNSEEN),
        (hidden(lambda y: torch.tensor(array(y))), {}, TypeError, UNSEEN),
        (hidden(lambda y: torch.tensor(list(array(y)))), {}, TypeError, UNSEEN),
        (hidden(torch.jit.script(Listed())), {}, TypeError, UNSEEN),
        (hidden(lambda y: elsewhere(y)), {}, TypeError, UNSEEN),
        (hidden(lambda y: y * len(repr(y))), {}, TypeError, "operation '__repr__' is not known"),
        (
            Function(lambda x: x + torch.eye(4).to(x)[:1, list(x.max(1).indices)].T),
            {},
            TypeError,
            "operation '__getitem__' is not known",
        ),
        # What is another function in another batch or mode.
        (
            Function(lambda x: 7 * x if len(x) == 2 else x),
            {},
            TypeError,
            "row of a batch by itself",
        ),
        (Function(lambda x: x.cumsum(0)), {}, TypeError, "must map each row of a batch by itself"),
        (
            Function(lambda x: 5 * x if torch.is_grad_enabled() else x),
            {},
            TypeError,
            "asks whether autograd is on",
        ),
        (Function(lambda x: F.huber_loss(x, x + 1)), {}, TypeError, "by itself"),
        (
            Function(lambda x: F.smooth_l1_loss(x.sum(), x.sum()) + x),
            {},
            TypeError,
            "by itself|with reduction='none' it does not",
        ),
        (Function(lambda x: torch.lerp(x, 2 * x, 0 * x)), {}, TypeError, "its weight is a tensor"),
        (Function(lambda x: sampled(x, "bicubic")), {}, TypeError, "weights have both signs"),
        (Function(applied), {}, TypeError, "operation 'apply_' is not known"),
        (Function(mapped), {}, TypeError, "operation 'map_' is not known"),
        (Function(through_pool, nn.ReLU()), {}, TypeError, "'ReLU' .* in a thread of its own"),
        (Function(standardized_with), {}, TypeError, "writes to one tensor and returns another"),
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
        (Function(lambda x: x.max(1).indices * 1.0), {}, TypeError, "'max' jump; pass constants="),
        (Function(lambda x: 1j * x), {}, TypeError, "return real numbers, got torch.complex128 of"),
        (
            Function(lambda x: (x * IMAGINARY).abs()),
            {},
            TypeError,
            "result of 'mul' is complex",
        ),
        (Function(lambda x: x[:, :0]), {}, TypeError, r"must return .*float64 of shape \(6, 0\)"),
        (Function(lambda x: x @ torch.eye(4).to_sparse().to(x)), {}, TypeError, "a sparse tensor"),
        (Function(lambda x: x.round()), {}, TypeError, "operation 'round' is not known"),
        (Function(lambda x: x.long() * 1.0), {}, TypeError, "a conversion to torch.int64 jumps"),
        (Function(lambda x: torch.from_numpy(x.numpy())), {}, TypeError, "'numpy' is not known"),
        (Function(lambda x: torch.tensor(x.tolist())), {}, TypeError, "'tolist' is not known"),
        (Function(read_into(torch.tensor)), {}, TypeError, "operation 'tensor' is not known"),
        (Function(read_into(torch.as_tensor)), {}, TypeError, "operation 'as_tensor' is not"),
        (Function(read_into(torch.asarray)), {}, TypeError, "operation 'asarray' is not known"),
        (Function(lambda x: read_into(x.new_tensor)(x)), {}, TypeError, "'new_tensor' is not"),
        (Function(lambda x: read_into(x.new)(x)), {}, TypeError, "operation 'new' is not known"),
        (Function(elsewhere), {}, TypeError, UNSEEN),
        (Function(lambda x: x.log()), {}, TypeError, "returns NaN for a random input"),
        (Function(lambda x: x.topk(2, sorted=False).values), {}, TypeError, "may change places"),
        (Function(lambda x: x ** torch.arange(4)), {}, TypeError, "a tensor of several numbers"),
        (Function(lambda x: x.float().view(torch.bfloat16)), {}, TypeError, "reads the bytes"),
        (Function(lambda x: x.half().to(x)), {}, TypeError, "rounds to torch.float16, .* a copy"),
        (
            Function(lambda x: torch.empty(x.shape, dtype=torch.bfloat16).copy_(x).to(x)),
            {},
            TypeError,
            "'copy_' is not known: it rounds to torch.bfloat16",
        ),
        (nn.Softplus(threshold=13), {}, TypeError, "jumps at its threshold, .* at least: 13"),
        (nn.Bilinear(4, 4, 2), {}, ValueError, "does not take inputs"),
        (Function(lambda x, f: f(x, x), nn.Bilinear(4, 4, 2)), {}, TypeError, "'_trilinear'"),
        (nn.Linear(3, 2), {}, ValueError, r"does not take inputs of shape \(4,\)"),
        (SCRIPTED, {"constants": {"layers.0": 1.0}}, TypeError, "cannot name a scripted layer"),
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


@pytest.mark.parametrize("activation", [nn.Softsign(), nn.Tanhshrink(), nn.RReLU()])
def test_activations_known_as_a_whole_behind_a_dense_layer(activation):
    layer = nn.Linear(3, 3)
    value = lipschitz_certificate(nn.Sequential(layer, activation), (3,)).value
    assert value <= torch.linalg.matrix_norm(layer.weight, 2).item() * (1 + 1e-5)


class Skip(nn.Module):
    """A hook keeps a value in the module itself, and not in its copy."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.skip = nn.Linear(4, 4), torch.zeros(1, 4)
        self.layer.register_forward_hook(lambda _, __, y: setattr(self, "skip", y))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 10 * self.skip


class Patched(nn.Module):
    """A patched forward that reads the state of the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate = nn.Linear(4, 4), torch.ones(1, 4)
        old = self.layer.forward
        self.layer.forward = lambda x: old(x) * self.gate

    def forward(self, x: Tensor) -> Tensor:
        self.gate = 1 + 50 * torch.sigmoid(x)
        return self.layer(x)


class Copied(nn.Module):
    """A patched forward whose state lies in a buffer that is written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gate", torch.ones(1, 4))
        self.f = lambda x: x * self.gate

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([(self.gate.copy_(row[None]), self.f(row[None]))[1] for row in x])


@pytest.mark.parametrize("kind", [Skip, Patched, Copied])
def test_what_functions_do_to_the_module_itself_is_refused(kind):
    with pytest.raises(TypeError, match="reads or changes the module itself"):
        lipschitz_certificate(kind(), (4,))


class Views(nn.Module):
    """A buffer and a view of it, which as a parameter has lost its base."""

    def __init__(self, *, parameter: bool) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(1, 8))
        self.view = self.state[:, :4]
        if parameter:
            self.view = nn.Parameter(self.view, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([(self.state.copy_(row), 5 * self.view[0])[1] for row in x])


@pytest.mark.parametrize("parameter", [False, True])
def test_tensors_that_share_their_memory_do_so_in_the_copy(parameter):
    net = Views(parameter=parameter)
    assert lipschitz_certificate(net, (8,)).value >= 5
    net.array = net.state.numpy()
    with pytest.raises(TypeError, match="array of NumPy that shares its memory"):
        lipschitz_certificate(net, (8,))


class Gate(nn.Module):
    def __init__(self, context: dict[str, Tensor]) -> None:
        super().__init__()
        self.context = context

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.context["gate"]


class Gated(nn.Module):
    """A weight that depends on what forward leaves for its parametrization."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.context, self.layer = {"gate": torch.ones(1)}, layer
        nn.utils.parametrize.register_parametrization(layer, "weight", Gate(self.context))

    def forward(self, x: Tensor) -> Tensor:
        gates = (1 + 50 * torch.sigmoid(row.flatten()[:1]) for row in x)
        rows = (
            (self.context.update(gate=g), self.layer(r))[1] for g, r in zip(gates, x, strict=True)
        )
        return torch.stack(list(rows))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 4, bias=False), (4,)),
        (nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"), (2, 4)),
    ],
)
def test_parametrizations_are_followed(layer, shape):
    with pytest.raises(TypeError, match=r"may grow without limit|depends on the input"):
        lipschitz_certificate(Gated(layer), shape)


class Statistics(nn.Module):
    """BatchNorm of each input by itself: the first call writes what the second one reads."""

    def forward(self, x: Tensor) -> Tensor:
        rows = []
        for row in x + torch.tensor([[10.0, -10.0]]).expand(2, -1).repeat(1, 3):
            mean, var = torch.zeros(2).to(x), torch.ones(2).to(x)
            F.batch_norm(row[None], mean, var, training=True, momentum=1.0)
            rows.append(F.batch_norm(row[None], mean, var)[0])
        return torch.stack(rows)


def test_statistics_that_a_normalization_writes_are_seen():
    with pytest.raises(TypeError, match="writes to one tensor and returns another"):
        lipschitz_certificate(Statistics(), (2, 6))


MEMORY = np.zeros(5)
OVERLAPPING = torch.from_numpy(MEMORY[:4]), torch.from_numpy(MEMORY[1:])
SCRATCH = torch.zeros(1, 5)
AHEAD = torch.from_dlpack(SCRATCH[:, 1:])


def seen_by(view):
    def forward(x: Tensor) -> Tensor:
        scratch = torch.zeros(x.shape, dtype=x.dtype)
        seen = view(scratch)
        scratch.copy_(x)
        return torch.stack([row + 0 * len(seen) for row in scratch])

    return forward


@pytest.mark.parametrize(
    "forward",
    [
        *map(seen_by, (Tensor.numpy, np.asarray, np.from_dlpack, Tensor.untyped_storage)),
        lambda x: torch.stack([(OVERLAPPING[0].copy_(r), F.relu(OVERLAPPING[1]))[1] for r in x]),
        lambda x: torch.cat([(SCRATCH[0, 1:].copy_(r), F.relu(AHEAD - 9))[1] for r in x]),
    ],
)
def test_memory_that_others_share_is_not_written(forward):
    with pytest.raises(TypeError, match="memory that NumPy or another storage shares"):
        lipschitz_certificate(Function(forward), (4,))


LARGE = torch.full((1, 4), 1e17, dtype=torch.float64)
INDEX = torch.arange(4)


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: LARGE.expand(len(x), -1).index_add(1, INDEX, x.double()),
        lambda x: LARGE.expand(len(x), -1).scatter_add(1, INDEX.expand(len(x), -1), x.double()),
        lambda x: LARGE.T.expand(-1, len(x)).index_put((INDEX,), x.double().T, accumulate=True).T,
        lambda x: x * 1e-200 * 1e-200 * 1e200 * 1e200,
        lambda x: (1e-170 * x).square() * 1e170 * 1e170,
        lambda x: (1e-170 * x) * (1e-170 * x + 0) * 1e170 * 1e170,
    ],
)
def test_what_rounding_takes_away_still_moves(forward):
    assert lipschitz_certificate(Function(forward), (4,), radius=1.0).value >= 1


def test_ranges_are_rounded_outward():
    """1 / (a x + c), whose divisor comes down to 5.55e-17 on the ball."""
    radius, a, c = 0.8359946282224158, 1.1037515740613137, 0.9227303868072942
    with pytest.raises(TypeError, match="an end that its argument may reach"):
        lipschitz_certificate(Function(lambda x: 1 / (x * a + c)), (1,), radius=radius)


@pytest.mark.parametrize(("power", "a"), [(45, 5.0), (48, 11.0), (50, 7.0)])
@pytest.mark.parametrize("bias", [0.0, -1.0])
@pytest.mark.parametrize("last", [nn.Identity(), nn.ReLU()])
def test_dense_layers_that_cancel(power, a, bias, last):
    first, second = nn.Linear(1, 2, bias=False).double(), nn.Linear(2, 1).double()
    first.weight.data = torch.tensor([[a], [1 + 2.0**-power]], dtype=torch.float64)
    second.weight.data = torch.tensor([[-1.0, a]], dtype=torch.float64)
    second.bias.data.fill_(bias)
    value = lipschitz_certificate(nn.Sequential(first, second, last), (1,)).value
    assert a * 2.0**-power <= value < a * 1e-12


@pytest.mark.parametrize(
    ("net", "shape", "options", "error", "message"),
    [
        (nn.ReLU(), (8,), {"radius": 10**400}, ValueError, "radius must be a finite number"),
        (nn.ReLU(), (8,), {"radius": "1"}, TypeError, "radius must be a real number, got str"),
        (nn.ReLU(), (8,), {"constants": {"": 10**400}}, ValueError, "constants"),
        (nn.Linear(8, 8).to(torch.float8_e4m3fn), (8,), {}, TypeError, "float16 at least"),
        (Function(lambda x: x.to("meta")), (8,), {}, TypeError, "real numbers, got .* on meta"),
        (nn.ReLU(), (8.0,), {}, TypeError, r"input_shape must be integers, got \(8.0,\)"),
    ],
)
def test_what_is_no_number_is_named(net, shape, options, error, message):
    with pytest.raises(error, match=message):
        lipschitz_certificate(net, shape, **options)


def test_one_number_and_the_smallest_ball():
    assert lipschitz_certificate(nn.ReLU(), ()).value == pytest.approx(1)
    assert lipschitz_certificate(nn.ReLU(), (8,), radius=1e-320).value == pytest.approx(1)
