"""Lower, upper and exact Lipschitz constants, each checked against another route."""

import copy
import math
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lipbook.certificate import lipschitz_certificate
from lipbook.lab.networks import digits_cnn, mlp
from lipbook.lipschitz import (
    activation_constant,
    activation_constants,
    difference_quotients,
    exact_lipschitz,
    jacobian_norms,
    l2_attack,
    layer_matrix,
    layer_product_bound,
    lower_bound_from_pairs,
    maximize_jacobian_norm,
)


@pytest.fixture(scope="module")
def lab() -> types.ModuleType:
    """The laboratory: where only the core is installed, what needs it is skipped."""
    return pytest.importorskip("lipbook.lab.classification")


SLACK = 1 + 1e-9  # rounding of float64 through a few layers
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def points(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def dense(*weights_and_biases, activation=nn.ReLU):
    """A float64 net from explicit weights and biases."""
    layers = []
    for weight, bias in weights_and_biases:
        weight, bias = (torch.tensor(t, dtype=torch.float64) for t in (weight, bias))
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        layer.weight.data, layer.bias.data = weight, bias
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


def absolute():
    return dense(([[1.0], [-1.0]], [0.0, 0.0]), ([[1.0, 1.0]], [0.0]))


def tent(n):
    """The n-fold tent map: 2ⁿ pieces of slope ±2ⁿ on [0, 1]."""
    first = ([[1.0], [1.0]], [0.0, -0.5])
    inner = ([[2.0, -4.0], [2.0, -4.0]], [0.0, -0.5])
    return dense(first, *[inner] * (n - 1), ([[2.0, -4.0]], [0.0]))


small_nets = st.builds(
    lambda seed, n_inputs, widths, n_outputs, kind: (
        torch.manual_seed(seed),
        mlp([n_inputs, *widths, n_outputs], kind).double(),
    )[1],
    seed=st.integers(0, 10_000),
    n_inputs=st.integers(1, 2),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    n_outputs=st.integers(1, 3),
    kind=st.sampled_from([nn.ReLU, lambda: nn.LeakyReLU(0.3), lambda: nn.LeakyReLU(-0.5)]),
)


# --- sandwich, scaling, composition ---


@settings(deadline=None, max_examples=60, derandomize=True)
@given(net=small_nets, seed=st.integers(0, 100))
def test_sampled_is_below_exact_is_below_product(net, seed):
    n_inputs = net[0].in_features
    x = 3 * (2 * torch.rand(80, n_inputs, generator=torch.Generator().manual_seed(seed)) - 1)
    exact = exact_lipschitz(net, (-3, 3))
    sampled = lower_bound_from_pairs(net, x.double())
    local = maximize_jacobian_norm(net, x.double(), steps=2, box=(-3, 3)).value
    assert sampled <= exact.value * SLACK
    assert local <= exact.value * SLACK
    assert exact.value <= layer_product_bound(net, (n_inputs,)).value * SLACK


@settings(deadline=None, max_examples=30, derandomize=True)
@given(net=small_nets, factor=st.floats(0.01, 100))
def test_all_estimates_scale_with_the_function(net, factor):
    n_inputs = net[0].in_features
    scaled = copy.deepcopy(net)
    with torch.no_grad():
        scaled[-1].weight *= -factor
        scaled[-1].bias *= -factor
    x = points(20, n_inputs)

    def estimates(f):
        return [
            lower_bound_from_pairs(f, x),
            jacobian_norms(f, x).max().item(),
            exact_lipschitz(f, (-2, 2)).value,
            layer_product_bound(f, (n_inputs,)).value,
        ]

    assert estimates(scaled) == pytest.approx([factor * c for c in estimates(net)], rel=1e-9)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(inner=small_nets, seed=st.integers(0, 1000))
def test_constants_of_a_composition_multiply_at_most(inner, seed):
    torch.manual_seed(seed)
    n_inputs, n_middle = inner[0].in_features, inner[-1].out_features
    outer = mlp([n_middle, 5, 2]).double()
    both = nn.Sequential(inner, outer)
    outer_bound = layer_product_bound(outer, (n_middle,)).value
    exact = exact_lipschitz(both, (-1, 1)).value
    assert exact <= exact_lipschitz(inner, (-1, 1)).value * outer_bound * SLACK
    product = layer_product_bound(both, (n_inputs,)).value
    assert product == pytest.approx(layer_product_bound(inner, (n_inputs,)).value * outer_bound)


# --- difference quotients and pairs ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_difference_quotients_by_hand(dtype):
    x1 = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=dtype)
    x2 = torch.tensor([[3.0, 4.0], [1.0, 2.0]], dtype=dtype)
    quotients = difference_quotients(lambda x: 2 * x, x1, x2)
    assert quotients.dtype == torch.promote_types(dtype, torch.float32)
    assert quotients.tolist() == pytest.approx([2, 2])


def test_difference_quotients_flatten_take_views_and_differentiate():
    x1, x2 = points(3, 4, 2, seed=1).transpose(1, 2), points(2, 4, 3, seed=2).permute(2, 0, 1)
    x1.requires_grad_()
    expected = (x1.sin() - x2.sin()).reshape(3, -1).norm(dim=1) / (x1 - x2).reshape(3, -1).norm(
        dim=1
    )
    torch.testing.assert_close(difference_quotients(torch.sin, x1, x2), expected)
    assert torch.autograd.gradcheck(lambda a: difference_quotients(torch.sin, a, x2), x1)


def test_rows_without_axes_are_numbers():
    assert difference_quotients(torch.square, torch.tensor([0.0]), torch.tensor([3.0])) == 3
    assert jacobian_norms(torch.square, torch.tensor([-3.0])) == 6


def test_pairs_find_the_steepest_and_skip_duplicates():
    x = torch.tensor([[0.0], [0.0], [1.0], [3.0], [3.0]], requires_grad=True)
    assert lower_bound_from_pairs(torch.square, x) == 4


def test_pairs_agree_with_difference_quotients():
    model, x = mlp([3, 4, 2], nn.Tanh).double(), points(12, 3)
    i, j = torch.triu_indices(12, 12, offset=1)
    expected = difference_quotients(model, x[i], x[j]).max().item()
    assert lower_bound_from_pairs(model, x) == pytest.approx(expected, rel=1e-12)


def test_a_function_with_small_gradient_and_large_quotients():
    """On a slit annulus the angle has ‖∇‖ ≤ 1, and jumps across the slit: (5) needs convexity."""
    angle = lambda x: torch.atan2(x[:, 1], x[:, 0])  # noqa: E731
    above = torch.tensor([[-1.0, 1e-3]], dtype=torch.float64)
    below = above * torch.tensor([1.0, -1.0])
    assert jacobian_norms(angle, above).item() <= 1
    assert difference_quotients(angle, above, below).item() > 3000


# --- Jacobians ---


def test_jacobian_norms_agree_with_autograd():
    model, x = mlp([3, 5, 2], nn.GELU).double(), points(6, 3)
    expected = [
        torch.linalg.matrix_norm(torch.autograd.functional.jacobian(model, row), 2) for row in x
    ]
    torch.testing.assert_close(jacobian_norms(model, x), torch.stack(expected))
    torch.testing.assert_close(jacobian_norms(model, x, chunk_size=2), torch.stack(expected))


def test_jacobian_norms_of_images_in_evaluation_mode():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.9)).double()
    norms = jacobian_norms(model, points(2, 1, 5, 4))
    expected = torch.linalg.matrix_norm(layer_matrix(model, (1, 5, 4)), 2).expand(2)
    torch.testing.assert_close(norms, expected)
    assert all(module.training for module in model.modules())


def test_jacobian_norms_differentiate_in_points_and_parameters():
    model, x = mlp([2, 3, 2], nn.Tanh).double(), points(2, 2)
    assert torch.autograd.gradcheck(lambda a: jacobian_norms(model, a), x.requires_grad_())
    jacobian_norms(model, x).sum().backward()
    assert model[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_jacobian_norms_in_every_precision(dtype):
    norms = jacobian_norms(torch.square, torch.tensor([[1.0, 3.0]], dtype=dtype))
    assert norms.dtype == dtype
    assert norms.item() == 6


def test_ascent_finds_the_steepest_slope_of_gelu():
    value, point = maximize_jacobian_norm(F.gelu, torch.tensor([[0.5], [-4.0]]), steps=200)
    assert value == pytest.approx(1.128904, abs=1e-4)
    assert point.item() == pytest.approx(math.sqrt(2), abs=0.05)


def test_ascent_stays_in_its_box_and_leaves_the_start_alone():
    start = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    high = torch.tensor([2.0, 1.0])
    value, point = maximize_jacobian_norm(torch.square, start, lr=0.3, box=(0, high))
    assert value == pytest.approx(4)
    assert point[0].item() == pytest.approx(2)
    assert start.tolist() == [[0.5, 0.5]]


def test_ascent_on_an_affine_function_stays_at_its_start():
    value, point = maximize_jacobian_norm(lambda x: 3 * x, torch.ones(1, 2), steps=3)
    assert value == pytest.approx(3)
    assert point.tolist() == [1, 1]


def test_ascent_of_no_steps_evaluates_the_starts():
    value, point = maximize_jacobian_norm(torch.square, torch.tensor([[1.0], [-2.0]]), steps=0)
    assert (value, point.item()) == (4, -2)


# --- layers as matrices ---


class Unrolled(nn.Module):
    """A linear recurrent net over the axis of time, its last state as output."""

    def __init__(self, rho):
        super().__init__()
        self.rho = nn.Parameter(torch.tensor(rho, dtype=torch.float64))

    def forward(self, x):
        state = torch.zeros_like(x[:, 0])
        for step in x.unbind(1):
            state = self.rho * state + step
        return state


LAYERS = [
    (nn.Linear(3, 2), (3,)),
    (nn.Linear(3, 2, bias=False), (4, 3)),
    (nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 7)),
    (nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2), (2, 6, 5)),
    *((nn.Conv2d(1, 2, 3, padding=1, padding_mode=m), (1, 4, 5)) for m in ("circular", "reflect")),
    (nn.Conv2d(1, 2, 3, padding="same"), (1, 4, 4)),
    (nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    (nn.ConvTranspose2d(2, 1, 3, stride=2, output_padding=1), (2, 3, 3)),
    (nn.AvgPool2d(2, padding=1, count_include_pad=False), (2, 4, 4)),
    (nn.AdaptiveAvgPool2d(1), (2, 3, 3)),
    (nn.Upsample(scale_factor=2), (1, 2, 2)),
    (nn.Unflatten(1, (2, 2)), (4,)),
    (nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Dropout(), nn.Linear(4, 1)), (2, 3)),
    (parametrizations.spectral_norm(nn.Linear(3, 2)), (3,)),
    (Unrolled(0.5), (4, 2)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda x: str(x).split("(")[0])
def test_layer_matrix_reproduces_the_layer(layer, shape):
    layer = layer.double()
    matrix = layer_matrix(layer, shape)
    x = points(5, *shape)
    with torch.no_grad():
        was_training = layer.training
        layer.eval()
        change = (layer(x) - layer(torch.zeros_like(x))).flatten(1)
        layer.train(was_training)
    torch.testing.assert_close(x.flatten(1) @ matrix.T, change)


def test_layer_matrix_of_batch_norm_is_diagonal():
    layer = nn.BatchNorm1d(3)
    layer.weight.data = torch.tensor([1.0, -2.0, 3.0])
    layer.running_var = torch.tensor([1.0, 4.0, 0.25])
    torch.testing.assert_close(
        layer_matrix(layer, (3,)).detach(), torch.tensor([1.0, -1.0, 6.0]).diag(), rtol=1e-4, atol=0
    )
    assert layer.training
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_matrix_of_a_dense_layer_is_its_weight_in_its_dtype(dtype):
    layer = nn.Linear(4, 3, dtype=dtype)
    layer.bias.data.fill_(1000.0)  # which costs no digits
    torch.testing.assert_close(layer_matrix(layer, (4,)), layer.weight)


def test_layer_matrix_of_a_plain_function_and_its_norm_over_time():
    matrix = layer_matrix(lambda x: x.flip(1).cumsum(1), (3,))
    assert matrix.tolist() == [[0, 0, 1], [0, 1, 1], [1, 1, 1]]
    norm = torch.linalg.matrix_norm(layer_matrix(Unrolled(2.0), (5, 1)), 2).item()
    assert norm == pytest.approx(math.sqrt(sum(4.0**k for k in range(5))))


def test_layer_matrix_is_differentiable():
    layer = Unrolled(0.5)
    (gradient,) = torch.autograd.grad(layer_matrix(layer, (4, 1)).sum(), layer.rho)
    assert gradient.item() == pytest.approx(1 + 2 * 0.5 + 3 * 0.25)


@pytest.mark.parametrize(
    "layer",
    [nn.ReLU(), nn.Tanh(), nn.Hardtanh(-50, 50), nn.Softplus(), nn.LayerNorm(4), nn.Softmax(1)],
)
def test_layer_matrix_refuses_what_is_not_affine(layer):
    with pytest.raises(ValueError, match="layer must be affine"):
        layer_matrix(layer, (4,))


def test_layer_matrix_refuses_other_shapes_and_outputs():
    with pytest.raises(ValueError, match=r"input_shape \(5,\) does not suit Linear"):
        layer_matrix(nn.Linear(4, 2), (5,))
    with pytest.raises(TypeError, match="must return a tensor, got tuple"):
        layer_matrix(nn.RNN(2, 2), (3, 2))
    with pytest.raises(ValueError, match=r"f must keep the batch of \d+ rows, got shape \(\)"):
        layer_matrix(torch.sum, (3,))


# --- activations ---

KNOWN = {
    "ELU": 1,
    "GELU": 0.5 * (1 + math.erf(1)) + math.exp(-1) / math.sqrt(math.pi),  # its slope at √2
    "Hardshrink": math.inf,
    "Hardsigmoid": 1 / 6,
    "Hardswish": 1.5,
    "LeakyReLU": 1,
    "Mish": 1.0884990,
    "ReLU": 1,
    "SELU": 1.0507009873554805 * 1.6732632423543772,
    "SiLU": 1.0998393,
    "Sigmoid": 0.25,
    "Softplus": 1,
    "Softsign": 1,
    "Tanh": 1,
    "Tanhshrink": 1,
}


def test_activation_constants_against_closed_forms():
    constants = activation_constants()
    assert len(constants) == 20
    assert {name: constants[name] for name in KNOWN} == pytest.approx(KNOWN, rel=1e-6)


@pytest.mark.parametrize(
    ("activation", "constant"),
    [
        (nn.LeakyReLU(-3.0), 3),
        (nn.ELU(alpha=2.5), 2.5),
        (nn.PReLU(init=4.0), 4),
        (nn.Softplus(beta=30), 1),
        (nn.ReLU(inplace=True), 1),
        (nn.Threshold(0.5, 0.0), math.inf),
        (nn.Threshold(0.5, 0.4999), math.inf),  # from here on a step of less than the grid's
        (nn.Hardshrink(1e-5), math.inf),
        (nn.Softshrink(1e-5), 1),
        (nn.Hardtanh(0.0, 1e-5), 1),
        (nn.Hardtanh(2.0, 2.0 + 1e-9), 1),
        (nn.Softplus(beta=0.01, threshold=5), math.inf),
        (nn.Identity(), 1),
    ],
)
def test_activation_constant_honours_parameters(activation, constant):
    assert activation_constant(activation) == pytest.approx(constant, rel=1e-8)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    name=st.sampled_from(sorted(set(activation_constants()) - {"Hardshrink"})),
    x=st.floats(-30, 30),
    step=st.floats(1e-3, 5),
)
def test_no_secant_is_steeper_than_the_constant(name, x, step):
    activation = getattr(nn, name)()
    pair = torch.tensor([x, x + step], dtype=torch.float64)
    secant = difference_quotients(activation, pair[:1], pair[1:]).item()
    assert secant <= activation_constant(activation) * (1 + 1e-6)


@pytest.mark.parametrize("module", [nn.Softmax(0), nn.Softmin(0), nn.Unflatten(0, (3, -1))])
def test_activation_constant_refuses_what_mixes_elements(module):
    with pytest.raises(TypeError, match="activation must work element by element"):
        activation_constant(module)


# --- the product over layers ---


def test_product_of_the_absolute_value_is_twice_its_constant():
    bound = layer_product_bound(absolute(), (1,))
    assert bound.value == pytest.approx(2)
    assert exact_lipschitz(absolute(), (-1, 1)).value == 1
    assert [factor.type for factor in bound.factors] == ["Linear", "ReLU", "Linear"]
    assert bound.factors[-1].product == bound.value


@pytest.mark.parametrize("beta", [0.01, 1.0, 50.0])
def test_the_jump_of_softplus_is_neglected_where_float32_has_none(beta):
    for threshold, constant in ((12, math.inf), (13, math.inf), (14, 1), (20, 1)):
        activation = nn.Softplus(beta, threshold)
        assert activation_constant(activation) == constant
        kink = torch.tensor(threshold / beta, dtype=torch.float64)
        formula = torch.log1p(torch.exp(beta * kink)) / beta
        assert (formula - kink > kink * torch.finfo(torch.float32).eps / 2) == (constant > 1)
        if constant == 1:  # and the certificate says the same
            assert lipschitz_certificate(activation, (2,)).value == pytest.approx(1, rel=1e-5)
        else:
            with pytest.raises(TypeError, match="jumps at its threshold"):
                lipschitz_certificate(activation, (2,))


@pytest.mark.parametrize(
    "module", [nn.Hardtanh(12_000, 13_000), nn.Softshrink(2e4), nn.Softplus(beta=1e-4)]
)
def test_activations_that_bend_beyond_the_grid_are_refused(module):
    with pytest.raises(TypeError, match=r"bend within ±10,000, .* does at (13000|20000|200000); "):
        activation_constant(module)
    with pytest.raises(TypeError, match="must bend within"):  # 0 before
        layer_product_bound(module, (3,))


def test_product_over_every_kind_of_layer():
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.LeakyReLU(2.0)),
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(3, 2, 2),
        nn.AvgPool2d(3, stride=1),
        nn.Dropout2d(),
        nn.Flatten(),
        nn.Linear(18, 4),
        nn.Tanh(),
    )
    nn.init.uniform_(model[1][1].running_var, 0.5, 2.0)
    bound = layer_product_bound(model, (64,))
    constants = {factor.layer: factor.constant for factor in bound.factors}
    with torch.no_grad():
        norms = {
            name: torch.linalg.matrix_norm(layer_matrix(layer, shape), 2).item()
            for name, layer, shape in [
                ("1.0", model[1][0], (1, 8, 8)),
                ("1.1", model[1][1], (3, 8, 8)),
                ("3", model[3], (3, 4, 4)),
                ("4", model[4], (2, 5, 5)),
                ("7", model[7], (18,)),
            ]
        }
    assert {name: constants[name] for name in norms} == pytest.approx(norms, rel=1e-5)
    assert constants["1.2"] == 2
    assert {constants[name] for name in ("0", "2", "5", "6", "8")} == {1}
    assert bound.value == pytest.approx(math.prod(constants.values()))
    assert all(module.training for module in model.modules())
    assert jacobian_norms(model, points(20, 64, dtype=torch.float32)).max() <= bound.value


def test_product_holds_for_the_trained_cnn(lab):
    torch.manual_seed(0)
    inputs, labels = lab.digits()
    model = digits_cnn((3, 4))
    lab.train_classifier(model, inputs[:300], labels[:300], epochs=5, lr=0.01)
    lower = lower_bound_from_pairs(model, inputs[:100])
    assert 0 < lower < layer_product_bound(model, (64,)).value


@pytest.mark.parametrize(
    ("pool", "shape", "constant"),
    [
        (nn.MaxPool1d(3), (1, 9), 1),
        (nn.MaxPool1d(3, stride=1, padding=1), (1, 9), math.sqrt(3)),
        (nn.MaxPool2d((3, 2), stride=(2, 2)), (1, 8, 8), math.sqrt(2)),
        (nn.MaxPool1d(3, stride=2, dilation=2), (1, 12), math.sqrt(3)),
        (nn.MaxPool1d(3, stride=2, dilation=3), (1, 16), math.sqrt(2)),
        (nn.MaxPool3d(2, stride=1), (1, 3, 3, 3), math.sqrt(8)),
    ],
)
def test_max_pooling_is_bounded_by_its_overlap_and_attains_it(pool, shape, constant):
    assert layer_product_bound(pool, shape).value == pytest.approx(constant)
    n = math.prod(shape)
    pulses = torch.eye(n).reshape(n, *shape)  # one input raised: every window that holds it moves
    quotients = difference_quotients(pool, torch.zeros_like(pulses), pulses)
    assert quotients.max().item() == pytest.approx(constant)


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


def test_constants_may_be_given_by_name_or_by_class():
    model = nn.Sequential(nn.Sequential(Twice()), Twice(), nn.ReLU())
    bound = layer_product_bound(model, (3,), constants={Twice: 2.0, "0.0": 2.5, "2": 1.5})
    assert [factor.constant for factor in bound.factors] == [2.5, 2.0, 1.5]
    assert bound.value == 7.5
    normalized = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    assert layer_product_bound(normalized, (3,), constants={nn.Linear: 2.0}).value == 2


def test_product_refuses_what_it_does_not_know():
    with pytest.raises(TypeError, match=r"layer '1.1' \(GLU\) is not known; pass constants="):
        layer_product_bound(
            nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.GLU())), (3,)
        )
    with pytest.raises(TypeError, match=r"layer '0' \(Hardshrink\) is not known; pass .* it jumps"):
        layer_product_bound(nn.Sequential(nn.Hardshrink()), (3,))


def test_product_follows_layers_with_a_forward_of_their_own():
    class Residual(nn.Sequential):  # no chain
        def forward(self, x):
            return x + super().forward(x)

    class Tripled(nn.Linear):
        def forward(self, x):
            return 3 * super().forward(x)

    layer = nn.Linear(3, 3)
    norm = torch.linalg.matrix_norm(layer.weight.detach(), 2).item()
    value = layer_product_bound(nn.Sequential(Residual(layer)), (3,)).value
    assert value == pytest.approx(1 + norm)
    tripled = Tripled(3, 3)
    tripled.load_state_dict(layer.state_dict())
    assert layer_product_bound(tripled, (3,)).value == pytest.approx(3 * norm)
    layer.register_forward_hook(lambda _layer, _inputs, output: 5 * output)
    assert layer_product_bound(layer, (3,)).value == pytest.approx(5 * norm)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_product_refuses_constants_that_are_none(value):
    with pytest.raises(ValueError, match=r"constants\['0'\] must be"):
        layer_product_bound(nn.Sequential(Twice()), (3,), constants={"0": value})


def test_product_refuses_batch_statistics_and_wrong_shapes():
    with pytest.raises(ValueError, match="takes its statistics from the batch"):
        layer_product_bound(nn.BatchNorm1d(3, track_running_stats=False), (3,))
    with pytest.raises(ValueError, match=r"layer '1' does not take inputs of shape \(4,\)"):
        layer_product_bound(nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 4)), (3,))


def test_a_normalized_weight_is_the_one_of_evaluation_mode_and_stays_as_it_is():
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 5))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    values = [layer_product_bound(layer, (2,)).value, exact_lipschitz(layer, (-1, 1)).value]
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    expected = torch.linalg.matrix_norm(layer.eval().weight, 2).item()
    assert values == pytest.approx([expected, expected], rel=1e-6)


@pytest.mark.parametrize("call", [layer_product_bound, layer_matrix])
def test_a_shape_that_a_layer_does_not_take_is_refused_however_it_says_so(call):
    class Fourth(nn.Module):
        def forward(self, x):
            return x[:, 3]

    class Square(nn.Module):
        def forward(self, x):
            assert x.shape[-1] == x.shape[-2], "no square"
            return x

    for layer, message in ((Fourth(), "index 3 is out of bounds"), (Square(), "no square")):
        with pytest.raises(ValueError, match=message):
            call(layer, (2, 3))


# --- exact constants ---


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_tent_maps_have_their_pieces_and_slope(n):
    exact = exact_lipschitz(tent(n), (0, 1))
    assert exact.value == pytest.approx(2**n)
    assert len(exact.regions) == len(exact.norms) == 2**n
    assert sorted(r.min() for r in exact.regions) == pytest.approx(np.arange(2**n) / 2**n)


def test_exact_value_depends_on_the_box():
    net = dense(([[1.0], [1.0]], [0.0, -1.0]), ([[1.0, 5.0]], [0.0]))  # slopes 0, 1, 6
    assert [exact_lipschitz(net, box).value for box in [(-2, -1), (-1, 1), (0, 2)]] == [0, 1, 6]


@pytest.mark.parametrize("n_inputs", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_an_unbounded_box_gives_the_constant_on_all_of_it(n_inputs, seed):
    """0.0 before: corners at infinity made every value NaN."""
    torch.manual_seed(seed)
    net = mlp([n_inputs, 8, 6, 2]).double()
    unbounded = exact_lipschitz(net, (-math.inf, math.inf))
    assert unbounded.value == pytest.approx(exact_lipschitz(net, (-1e4, 1e4)).value)
    half = exact_lipschitz(net, (np.float32(-1), math.inf)).value
    assert half == pytest.approx(exact_lipschitz(net, (-1, 1e4)).value)
    low, high = [-math.inf] + [0.0] * (n_inputs - 1), [2.0] * n_inputs
    strip = exact_lipschitz(net, (low, high)).value
    assert strip == pytest.approx(exact_lipschitz(net, ([-1e4, 0.0][:n_inputs], high)).value)
    ends = np.concatenate(unbounded.regions)
    assert np.isinf(ends).any()
    assert not np.isnan(ends).any()


@pytest.mark.parametrize(
    ("row", "low", "high"),
    [([1.0], [1.0], [math.inf]), ([-1.0], [-math.inf], [-1.0]), ([1, -1], [1, 0], [math.inf, 5])],
)
def test_a_box_may_begin_where_its_direction_points(row, low, high):
    """0 before: the corner at 1 was taken for the direction to infinity."""
    net = nn.Sequential(dense(([row], [-5.0])), nn.ReLU())
    steepest = math.hypot(*row)
    assert exact_lipschitz(net, (low, high)).value == pytest.approx(steepest)


@pytest.mark.parametrize("box", [(math.nan, 1), (-1, math.nan), (math.inf, math.inf)])
def test_boxes_that_are_none_are_refused(box):
    with pytest.raises(ValueError, match="lows below its highs"):
        exact_lipschitz(nn.Linear(1, 1), box)


def test_estimates_do_not_depend_on_the_mode_of_the_caller():
    torch.manual_seed(0)
    net = mlp([2, 8, 3]).double()
    x, labels = torch.randn(5, 2).double(), torch.arange(5) % 3
    estimates = [
        lambda: l2_attack(net, x, labels, np.float64(0.5), steps=np.int64(3)),
        lambda: jacobian_norms(net, x),
        lambda: maximize_jacobian_norm(net, x, steps=2).value,
        lambda: layer_product_bound(net, (2,)).value,
        lambda: exact_lipschitz(net, (-1, 1)).value,
        lambda: activation_constant(nn.GELU()),
        lambda: difference_quotients(net, x, x + 1),
        lambda: layer_matrix(net[0], (2,)),
    ]
    for estimate in estimates:
        expected = torch.as_tensor(estimate())
        for mode in (torch.no_grad(), torch.inference_mode()):
            with mode:
                assert torch.equal(torch.as_tensor(estimate()), expected)


def test_models_and_inputs_of_inference_mode():
    with torch.inference_mode():
        torch.manual_seed(0)
        net, x, labels = mlp([2, 8, 3]), torch.randn(5, 2), torch.arange(5) % 3
        inside = l2_attack(net, x, labels, 0.5), jacobian_norms(net, x)
    outside = l2_attack(net, x, labels, 0.5), jacobian_norms(net, x)
    assert torch.equal(inside[0], outside[0])
    assert torch.equal(inside[1], outside[1])


def test_cuts_through_the_corners_leave_no_slivers():
    net = dense(([[1.0, -1.0], [1.0, 1.0], [-3.0, 3.0]], [0.0] * 3), ([[1.0, 1.0, 0.0]], [0.0]))
    exact = exact_lipschitz(net, (-1, 1))
    assert len(exact.regions) == 4
    assert exact.value == pytest.approx(2)
    assert sorted(exact.norms) == pytest.approx([0, math.sqrt(2), math.sqrt(2), 2])


@pytest.mark.parametrize("n_inputs", [1, 2])
def test_units_that_share_a_line_cut_it_once(n_inputs):
    """The second cut meets vertices which the first put on its line, but for rounding."""
    torch.manual_seed(2)
    net = mlp([n_inputs, 7, 1]).double()
    doubled = mlp([n_inputs, 21, 1]).double()
    with torch.no_grad():
        for parameter, original in zip(doubled[0].parameters(), net[0].parameters(), strict=True):
            parameter.copy_(torch.cat([original, -0.7 * original, original / 3]))
    regions, again = (exact_lipschitz(f, (-3, 3)).regions for f in (net, doubled))
    assert len(regions) == len(again) > n_inputs + 1


def polygon_area(vertices):
    x, y = vertices.T
    return abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2


@settings(deadline=None, max_examples=30, derandomize=True)
@given(net=small_nets)
def test_regions_tile_the_box_and_their_norms_are_the_local_ones(net):
    n_inputs = net[0].in_features
    low, high = np.array([-2.0, -1.0])[:n_inputs], np.array([1.0, 3.0])[:n_inputs]
    exact = exact_lipschitz(net, (low.tolist(), torch.as_tensor(high)))
    sizes = [np.ptp(r) if n_inputs == 1 else polygon_area(r) for r in exact.regions]
    assert sum(sizes) == pytest.approx(np.prod(high - low), rel=1e-7)
    centres = torch.as_tensor(np.stack([region.mean(0) for region in exact.regions]))
    torch.testing.assert_close(
        jacobian_norms(net, centres), torch.as_tensor(exact.norms), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("n_inputs", [1, 2])
def test_exact_agrees_with_a_dense_search(n_inputs):
    torch.manual_seed(4)
    net = mlp([n_inputs, 6, 6, 2]).double()
    with torch.no_grad():
        net[0].bias *= 2
    axis = torch.linspace(-3, 3, 20_001 if n_inputs == 1 else 201, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * n_inputs).reshape(-1, n_inputs)
    searched = jacobian_norms(net, grid).max().item()
    assert exact_lipschitz(net, (-3, 3)).value == pytest.approx(searched, rel=1e-9)


def test_exact_takes_single_layers_final_activations_and_float32():
    layer = nn.Linear(2, 3, bias=False)
    expected = torch.linalg.matrix_norm(layer.weight, 2).item()
    exact = exact_lipschitz(layer, (-1, 1))
    assert exact.value == pytest.approx(expected, rel=1e-6)
    assert len(exact.regions) == 1
    closed = nn.Sequential(dense(([[3.0]], [-5.0])), nn.ReLU())
    assert exact_lipschitz(closed, (-1, 1)).value == 0


@pytest.mark.parametrize(
    ("net", "error", "message"),
    [
        (nn.Sequential(), TypeError, "must start with a Linear layer"),
        (nn.ReLU(), TypeError, "must start with a Linear layer"),
        (nn.Linear(3, 1), ValueError, "one or two inputs, got 3; bracket its constant"),
        (mlp([1, 2, 1], nn.Tanh), TypeError, r"LeakyReLU layers only, got Tanh\(\) at '1'"),
        (nn.Linear(0, 1), ValueError, "one or two inputs, got 0"),
        (nn.Linear(1, 1, dtype=torch.complex64), TypeError, "real numbers in its .*complex64"),
        (nn.Linear(1, 1, device="meta"), TypeError, "real numbers in its weights, got meta"),
        (
            nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(3, 1)),
            ValueError,
            r"layer '2' \(Linear\(.* does not take inputs of length 2",
        ),
        (tent(6), ValueError, "at most max_regions=10 pieces, got more at layer '7'"),
    ],
)
def test_exact_refuses(net, error, message):
    with pytest.raises(error, match=message):
        exact_lipschitz(net, (0, 1), max_regions=10)


@pytest.mark.parametrize("scale", [1e-200, 1e155, 1e160, 1e300])
def test_exact_slopes_whose_squares_are_beyond_float64(scale):
    """0 before from 1e155 on, where no unit was seen to change its sign."""
    net = dense(([[scale]], [0.0]), ([[1 / scale]], [0.0]))
    assert exact_lipschitz(net, (-1, 1)).value == pytest.approx(1)
    absolute = dense(([[scale], [-scale]], [0.0, 0.0]), ([[1.0, -1.0]], [0.0]))
    assert exact_lipschitz(absolute, (-1, 2)).value == pytest.approx(scale)


def test_values_beyond_float64_are_refused():
    """0 before: the middle of a part was infinite, or no number."""
    net = dense(([[1.0]], [0.0]), ([[1.0]], [0.0]))
    with pytest.raises(ValueError, match="finite values in the box, they are beyond float64"):
        exact_lipschitz(net, (-1e308, 1e308))
    wide = dense(([[1e300, 1e300]], [0.0]), ([[1.0]], [0.0]))
    with pytest.raises(ValueError, match="beyond float64"):
        exact_lipschitz(wide, (-1e300, 1e300))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("layer", [nn.Linear(1, 1), nn.Conv1d(1, 1, 1)])
def test_a_bias_must_be_finite(layer, value):
    layer = copy.deepcopy(layer)
    layer.bias.data.fill_(value)
    with pytest.raises(ValueError, match=f"the bias of layer '1' must be finite, got {value}"):
        layer_product_bound(nn.Sequential(nn.ReLU(), layer), (1, 1))
    if isinstance(layer, nn.Linear):
        with pytest.raises(ValueError, match="net must hold finite numbers, got"):
            exact_lipschitz(nn.Sequential(layer, nn.ReLU(), nn.Linear(1, 1)), (-1, 1))


def test_scripts_are_evaluated_or_refused():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).eval()
    x = points(4, 2, dtype=torch.float32)
    script = torch.jit.script(net)
    assert lower_bound_from_pairs(script, x) == pytest.approx(lower_bound_from_pairs(net, x))
    with pytest.raises(TypeError, match="a frozen script has no mode to switch; give the module"):
        lower_bound_from_pairs(torch.jit.freeze(script), x)
    for one in (script, torch.jit.freeze(script)):
        with pytest.raises(TypeError, match="is scripted and cannot be lent weights; give the mod"):
            layer_product_bound(one, (2,))


def test_no_layer_is_taken_for_itself_while_a_hook_is_on_all():
    net = mlp([1, 2, 1])
    expected = 5 * layer_product_bound(net[0], (1,)).value
    register = nn.modules.module.register_module_forward_hook
    handle = register(lambda m, _, out: 5 * out if isinstance(m, nn.Linear) else None)
    try:
        assert layer_product_bound(net[0], (1,)).value == pytest.approx(expected)
        with pytest.raises(TypeError, match="must start with a Linear layer"):
            exact_lipschitz(net, (-1, 1))
    finally:
        handle.remove()


@pytest.mark.parametrize("box", [(0, 1, 2), ([0, 0, 0], 1), ("low", "high"), 3.0])
def test_a_box_has_two_bounds_that_suit_an_input(box):
    with pytest.raises(ValueError, match=r"two bounds, each a number or of shape \(2,\), got"):
        exact_lipschitz(nn.Linear(2, 1), box)
    with pytest.raises(ValueError, match=r"two bounds, each a number or of shape \(2,\), got"):
        l2_attack(nn.Identity(), torch.zeros(1, 2), torch.tensor([0]), 1.0, box=box)


@pytest.mark.parametrize("box", [(1, 0), (0, 0), (0, math.nan), (0, (1, -1))])
def test_boxes_must_not_be_empty(box):
    with pytest.raises(ValueError, match="box must have its lows below its highs"):
        exact_lipschitz(nn.Linear(2, 1), box)


# --- attack ---


@pytest.fixture(scope="module")
def classifier(lab):
    torch.manual_seed(0)
    inputs, labels = lab.digits()
    model = mlp([64, 32, 10])
    lab.train_classifier(model, inputs, labels, epochs=8, lr=5e-3)
    return model, inputs[:200], labels[:200]


def test_attack_flips_what_a_random_step_does_not(lab, classifier):
    model, inputs, labels = classifier
    attacked = l2_attack(model, inputs, labels, 1.0, box=(0, 1))
    random = F.normalize(points(*inputs.shape, dtype=torch.float32))
    assert lab.accuracy(model, inputs + random, labels) > 0.9
    assert lab.accuracy(model, attacked, labels) < 0.5


def test_attack_keeps_to_ball_and_box_and_is_deterministic(classifier):
    model, inputs, labels = classifier
    attacked = l2_attack(model, inputs, labels, 0.7, steps=5, box=(0, torch.ones(64)))
    assert (attacked - inputs).norm(dim=1).max() <= 0.7 * (1 + 1e-5)
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert not attacked.requires_grad
    again = l2_attack(model, inputs, labels, 0.7, steps=5, box=(0, torch.ones(64)))
    torch.testing.assert_close(attacked, again, rtol=0, atol=0)


def test_attack_moves_logits_by_at_most_the_constant(classifier):
    model, inputs, labels = classifier
    attacked = l2_attack(model, inputs, labels, 0.5)
    quotients = difference_quotients(model, inputs, attacked)
    assert quotients.max() <= layer_product_bound(model, (64,)).value


def test_attack_on_two_logits_goes_straight():
    """For a linear model of two classes the best step is known: along the difference of rows."""
    layer = nn.Linear(3, 2).double()
    inputs, labels = points(4, 3).requires_grad_(), torch.tensor([0, 1, 0, 1])
    direction = F.normalize((layer.weight[1] - layer.weight[0]).detach(), dim=0)
    expected = inputs.detach() + 0.3 * torch.stack([direction, -direction] * 2)
    torch.testing.assert_close(l2_attack(layer, inputs, labels, 0.3), expected)
    assert layer.weight.grad is None
    assert inputs.grad is None


def test_attack_stays_inside_the_ball_when_its_steps_end_there():
    attacked = l2_attack(
        nn.Identity(), torch.zeros(1, 2), torch.tensor([0]), 1.0, steps=2, step_size=0.1
    )
    assert attacked.norm().item() == pytest.approx(0.2, rel=1e-5)


def test_attack_sees_the_gradient_of_a_confident_model():
    """Gradients near 1e-30 have squares that float32 loses; the step must keep its length."""
    confident = lambda x: torch.stack([70 + x[:, 0], x[:, 1]], 1)  # noqa: E731
    attacked = l2_attack(confident, torch.zeros(1, 2), torch.tensor([0]), 1.0)
    assert attacked.norm().item() == pytest.approx(1, rel=1e-5)
    # Where the gradient is exactly zero there is no direction, and no NaN either.
    constant = lambda x: 0 * x  # noqa: E731
    assert torch.equal(
        l2_attack(constant, torch.ones(1, 2), torch.tensor([0]), 1.0), torch.ones(1, 2)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_attack_in_every_precision_and_on_images(dtype):
    model = nn.Sequential(nn.Dropout(0.9), nn.Flatten(), nn.Linear(12, 3)).to(dtype)
    inputs = points(5, 3, 4, dtype=dtype).transpose(1, 2)
    attacked = l2_attack(model, inputs, torch.tensor([0, 1, 2, 0, 1]), 0.5, steps=3)
    assert attacked.dtype == dtype
    assert attacked.shape == inputs.shape
    slack = 1 + 20 * torch.finfo(dtype).eps
    assert (attacked - inputs).double().reshape(5, -1).norm(dim=1).max() <= 0.5 * slack
    assert model.training


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inputs": torch.ones(2, 2).long()}, TypeError, "inputs must have a real floating"),
        ({"inputs": torch.full((2, 2), torch.nan)}, ValueError, "inputs must be finite"),
        ({"labels": torch.ones(2)}, TypeError, "labels must be an int64 tensor"),
        ({"labels": torch.tensor([0])}, ValueError, "labels must have shape"),
        ({"radius": 0.0}, ValueError, "radius must be"),
        ({"radius": "1"}, TypeError, "radius must be"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"step_size": -0.1}, ValueError, "step_size must be"),
        ({"box": (2, 3)}, ValueError, "inputs must lie inside the box"),
        ({"box": (3, 2)}, ValueError, "box must have its lows below"),
    ],
)
def test_attack_refuses(arguments, error, message):
    arguments = {
        "inputs": torch.ones(2, 2),
        "labels": torch.tensor([0, 1]),
        "radius": 1.0,
    } | arguments
    with pytest.raises(error, match=message):
        l2_attack(nn.Identity(), **arguments)


# --- refusals of the rest ---

BAD = [
    ([[1.0]], TypeError, "must be a torch.Tensor, got list"),
    (torch.ones(2, 1).long(), TypeError, "must have a real floating-point dtype"),
    (torch.ones(2, 1) * 1j, TypeError, "must have a real floating-point dtype"),
    (torch.ones(0, 1), ValueError, "must not be empty"),
    (torch.tensor(1.0), ValueError, "must have at least 1 axes"),
    (torch.tensor([[1.0], [torch.inf]]), ValueError, r"must be finite, got inf at index \(1, 0\)"),
]


CALLS = [
    ("x1", lambda bad: difference_quotients(torch.square, bad, torch.ones(2, 1))),
    ("x2", lambda bad: difference_quotients(torch.square, torch.ones(2, 1), bad)),
    ("points", lambda bad: lower_bound_from_pairs(torch.square, bad)),
    ("points", lambda bad: jacobian_norms(torch.square, bad)),
    ("start", lambda bad: maximize_jacobian_norm(torch.square, bad)),
]


@pytest.mark.parametrize(("name", "call"), CALLS)
@pytest.mark.parametrize(("bad", "error", "message"), BAD)
def test_points_are_checked_by_name(name, call, bad, error, message):
    with pytest.raises(error, match=f"{name} {message}"):
        call(bad)


def test_pairs_must_match_and_differ():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 1\) and \(3, 1\)"):
        difference_quotients(torch.square, torch.ones(2, 1), torch.ones(3, 1))
    x = torch.tensor([[0.0], [1.0]])
    with pytest.raises(ValueError, match="row 1 is the same"):
        difference_quotients(torch.square, x, torch.ones(2, 1))
    with pytest.raises(ValueError, match="two distinct points, got 4 equal ones"):
        lower_bound_from_pairs(torch.square, torch.ones(4, 1))


@pytest.mark.parametrize(
    "function",
    [
        lambda f, x, y: difference_quotients(f, x, y),
        lambda f, x, y: torch.tensor(lower_bound_from_pairs(f, torch.cat([x, y]))),
        lambda f, x, _: jacobian_norms(f, x),
        lambda f, x, _: torch.autograd.grad(jacobian_norms(f, x.requires_grad_()).sum(), x)[0],
        lambda f, x, _: maximize_jacobian_norm(f, x, steps=3).point,
        lambda f, x, _: l2_attack(f, x, torch.tensor([0, 1]), 0.5),
    ],
)
@pytest.mark.parametrize(
    ("beginning", "plain"),
    [
        (nn.LeakyReLU(0.5, inplace=True), nn.LeakyReLU(0.5)),
        (lambda x: x.mul_(3), lambda x: x * 3),
    ],
)
def test_a_function_may_begin_in_place(function, beginning, plain):
    torch.manual_seed(0)
    rest = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    points = torch.randn(2, 2, 3)
    expected = function(lambda x: rest(plain(x)), *points.clone())
    given = points.clone()
    torch.testing.assert_close(function(lambda x: rest(beginning(x)), *given), expected)
    assert torch.equal(given, points)


def test_an_affine_layer_may_begin_in_place():
    assert torch.equal(layer_matrix(lambda x: x.mul_(3), (2,)), 3 * torch.eye(2).double())
    with pytest.raises(ValueError, match="layer must be affine"):
        layer_matrix(nn.ReLU(inplace=True), (2,))


def test_functions_must_return_a_batch():
    with pytest.raises(TypeError, match="f must return a tensor, got float"):
        lower_bound_from_pairs(lambda x: x.sum().item(), torch.ones(2, 1))
    with pytest.raises(ValueError, match="f must keep the batch of 2 rows"):
        lower_bound_from_pairs(torch.sum, torch.ones(2, 1))


@pytest.mark.parametrize(("keyword", "value"), [("steps", -1), ("lr", 0.0)])
def test_ascent_refuses_its_settings(keyword, value):
    with pytest.raises(ValueError, match=f"{keyword} must be"):
        maximize_jacobian_norm(torch.square, torch.ones(1, 1), **{keyword: value})


def test_product_bound_refuses_a_constant_for_a_layer_that_is_not_there():
    with pytest.raises(ValueError, match="constants names '3', which is no layer of the module"):
        layer_product_bound(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), (2,), constants={"3": 1.0})


@pytest.mark.parametrize("box", [(-math.inf, math.inf), (0, math.inf), (-math.inf, 1e12)])
@pytest.mark.parametrize("place", [2e5, 1e7, 1e9])
def test_pieces_far_from_0_are_found_on_an_open_side(box, place):
    net = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    net[0].weight.data.fill_(1.0)
    net[0].bias.data = -torch.tensor([place, place + 1, place + 2], dtype=torch.float64)
    net[2].weight.data = torch.tensor([[1.0, -2.0, 1.0]], dtype=torch.float64)
    assert exact_lipschitz(net, box).value == pytest.approx(1)


def test_a_step_jumps_and_a_box_beyond_float64_is_named():
    class Step(nn.Module):
        def forward(self, x):
            return (x > 0).to(x)

    assert activation_constant(Step()) == math.inf
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with pytest.raises(ValueError, match="beyond float64"):
        exact_lipschitz(net, (-1e308, 1e308))
