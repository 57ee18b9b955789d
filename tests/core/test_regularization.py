"""The penalties: their values and gradients against exact norms, their state, every refusal."""

from __future__ import annotations

import copy
import io
import math
import types
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn import functional as F

from lipbook.convolution import conv_spectral_norm
from lipbook.lab.networks import digits_cnn, mlp
from lipbook.matrix_norms import frobenius_norm, induced_norm
from lipbook.normalization import OrthonormalPenalty, spectral_normalize
from lipbook.regularization import (
    SpectralPenalty,
    frobenius_penalty,
    input_gradient_penalty,
    penalized_weights,
)
from lipbook.wgan import clip_frobenius_, frobenius_excess_penalty


@pytest.fixture(scope="module")
def lab() -> types.ModuleType:
    """The laboratory: where only the core is installed, what needs it is skipped."""
    return pytest.importorskip("lipbook.lab.classification")


modest = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(m: int, n: int, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(n, m).double()
    layer.weight.data = gaussian(m, n, seed=seed)
    return layer


def converged(model: nn.Module, **options) -> SpectralPenalty:
    penalty = SpectralPenalty(model, **options)
    penalty.n_power_iterations = 500
    penalty()
    penalty.n_power_iterations = 1
    return penalty


def gradients(value: torch.Tensor, model: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, list(penalized_weights(model).values())))


# --- what counts


def test_weights_count_and_biases_and_norm_layers_do_not():
    model = nn.Sequential(
        nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(3, 4), nn.LayerNorm(4)
    )
    assert list(penalized_weights(model)) == ["0.weight", "3.weight"]
    recurrent = penalized_weights(nn.GRU(2, 3))
    assert list(recurrent) == ["weight_ih_l0", "weight_hh_l0"]


def test_a_shared_weight_counts_once():
    layer = nn.Linear(3, 3)
    assert list(penalized_weights(nn.Sequential(layer, nn.ReLU(), layer))) == ["0.weight"]


@pytest.mark.parametrize("term", [penalized_weights, frobenius_penalty, SpectralPenalty])
def test_a_model_without_weights_is_refused(term):
    with pytest.raises(ValueError, match="two axes or more, BatchNorm1d has none"):
        term(nn.BatchNorm1d(3))


@pytest.mark.parametrize(
    "normalize",
    [
        nn.utils.parametrizations.weight_norm,
        partial(spectral_normalize, n_power_iterations=60),
        partial(nn.utils.parametrizations.spectral_norm, n_power_iterations=60),
    ],
)
def test_weights_count_as_their_layers_use_them(normalize):
    model = nn.Sequential(normalize(dense(4, 3)), nn.ReLU(), dense(2, 4))
    buffers = [buffer.clone() for buffer in model.buffers()]
    weights = penalized_weights(model)
    assert list(weights) == ["0.weight", "2.weight"]
    value, top = frobenius_penalty(model), converged(model)()
    assert all(map(torch.equal, model.buffers(), buffers))  # to look moves no vector
    used = model.eval()[0].weight, model[2].weight
    torch.testing.assert_close(weights["0.weight"], used[0])
    assert value.item() == pytest.approx(sum(frobenius_norm(w).item() ** 2 for w in used))
    assert top.item() == pytest.approx(sum(induced_norm(w).item() ** 2 for w in used), rel=1e-6)
    value.backward()
    assert all(parameter.grad is not None for parameter in model[0].parametrizations.parameters())


def test_a_normalized_convolution_counts_as_the_operator_that_it_is():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3, padding=1).double())
    exact = conv_spectral_norm(layer.weight, (6, 6), padding=1, rtol=1e-12)
    found = converged(layer, input_shape=(2, 6, 6))()
    torch.testing.assert_close(found, exact**2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("term", [penalized_weights, frobenius_penalty, SpectralPenalty])
def test_a_weight_that_a_hook_makes_is_refused(term):
    with pytest.raises(ValueError, match=r"weight is made by a hook, SpectralNorm; .*permanent"):
        term(nn.utils.spectral_norm(nn.Linear(3, 3)))


# --- Frobenius


def test_frobenius_penalty_is_the_sum_of_squared_norms():
    model = mlp([3, 4, 2]).double()
    norms = [frobenius_norm(layer.weight) for layer in model[::2]]
    torch.testing.assert_close(frobenius_penalty(model), norms[0] ** 2 + norms[1] ** 2)
    for gradient, layer in zip(gradients(frobenius_penalty(model), model), model[::2], strict=True):
        torch.testing.assert_close(gradient, 2 * layer.weight)


# --- spectral


@modest
@given(seed=seeds, m=st.integers(1, 6), n=st.integers(1, 6))
def test_it_never_exceeds_the_squared_norm_and_converges_to_it(seed, m, n):
    layer = dense(m, n, seed)
    exact = induced_norm(layer.weight).square().item()
    values = [SpectralPenalty(layer)().item(), converged(layer)().item()]
    assert all(value <= exact * (1 + 1e-12) for value in values)
    assert values[1] >= values[0] * (1 - 1e-12)
    assert values[1] == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("shape", [(4, 3), (3, 5), (1, 4), (4, 1)])
def test_the_gradient_is_two_sigma_u_v_and_that_of_the_exact_norm(shape):
    layer = dense(*shape)
    (gradient,) = gradients(converged(layer)(), layer)
    u, s, vh = torch.linalg.svd(layer.weight.detach())
    torch.testing.assert_close(gradient, 2 * s[0] * torch.outer(u[:, 0], vh[0]))
    (exact,) = gradients(induced_norm(layer.weight).square(), layer)
    torch.testing.assert_close(gradient, exact)
    assert torch.linalg.matrix_rank(gradient) == 1


def test_gradcheck_of_the_exact_norm_with_the_gradient_of_the_penalty():
    """The derivative of the exact norm, by finite differences, is what the penalty backpropagates.

    The value is the exact one and the gradient the penalty's: v may be taken for a constant.
    """

    class Hybrid(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            ctx.save_for_backward(weight)
            return induced_norm(weight).square()

        @staticmethod
        def backward(ctx, output_gradient):
            layer = dense(4, 3)
            layer.weight.data = ctx.saved_tensors[0].detach()
            with torch.enable_grad():
                return output_gradient * gradients(converged(layer)(), layer)[0]

    assert gradcheck(Hybrid.apply, dense(4, 3).weight.detach().requires_grad_())


OPTIONS = [
    {"stride": 2, "padding": 1},
    {"padding": "same", "dilation": 2, "bias": False},
    {"padding": 1, "padding_mode": "circular", "groups": 2},
    {"padding": 2, "padding_mode": "reflect"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_with_an_input_shape_convolutions_count_as_operators(options):
    layer = nn.Conv2d(2, 4, 3, **options).double()
    known = {key: value for key, value in options.items() if key != "bias"}
    exact = conv_spectral_norm(layer.weight, (6, 5), rtol=1e-12, **known)
    penalty = converged(layer, input_shape=(2, 6, 5))
    torch.testing.assert_close(penalty(), exact**2, rtol=1e-6, atol=0)
    theirs, ours = gradients(exact**2, layer)[0], gradients(penalty(), layer)[0]
    assert F.cosine_similarity(theirs.flatten(), ours.flatten(), dim=0) > 0.999


def test_transposed_convolutions_count_as_operators_too():
    layer = nn.ConvTranspose1d(1, 1, 2, stride=2).double()
    layer.weight.data[:] = torch.tensor([3.0, 4.0])  # windows do not overlap: the norm is 5
    torch.testing.assert_close(converged(layer, input_shape=(1, 4))().item(), 25.0)


def test_without_an_input_shape_convolutions_count_as_reshaped_kernels():
    model = digits_cnn((2, 3)).double()
    norms = [induced_norm(w.flatten(1)) for w in penalized_weights(model).values()]
    by_kernel, by_operator = converged(model)(), converged(model, input_shape=(64,))()
    torch.testing.assert_close(by_kernel, torch.stack(norms).square().sum(), rtol=1e-6, atol=0)
    assert by_operator > by_kernel
    with torch.no_grad():
        assert torch.equal(model(torch.zeros(2, 64).double()), model(torch.zeros(2, 64).double()))


def test_a_convolution_that_no_input_reaches_counts_as_its_kernel():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    model.unused = nn.Conv1d(1, 1, 2).double()
    model.forward = lambda x: model[1](model[0](x))
    exact = induced_norm(model[1].weight) ** 2 + induced_norm(model.unused.weight.flatten(1)) ** 2
    torch.testing.assert_close(converged(model, input_shape=(4,))(), exact, rtol=1e-6, atol=0)


def test_the_vectors_follow_weights_that_move():
    """One warm step a call stays with a drifting matrix; a cold start of one step does not."""
    layer = dense(40, 40)
    penalty = SpectralPenalty(layer)
    drift = 0.01 * gaussian(40, 40, seed=1)
    for _ in range(200):
        layer.weight.data += drift
        followed = penalty()
    exact = induced_norm(layer.weight).square().item()
    start = F.normalize(gaussian(1, 40, seed=2))
    cold = (layer.weight @ F.normalize(start @ layer.weight.T @ layer.weight).T).square().sum()
    assert 1 - followed.item() / exact < (1 - cold.item() / exact) / 10


def test_evaluation_mode_keeps_the_vectors():
    penalty = SpectralPenalty(dense(5, 4))
    before = penalty.v0.clone()
    penalty.eval()()
    assert torch.equal(penalty.v0, before)
    penalty.train()()
    assert not torch.equal(penalty.v0, before)


def test_two_calls_may_share_one_backward_pass():
    layer = dense(5, 4)
    penalty = SpectralPenalty(layer)
    (penalty() + penalty.eval()() + penalty.train()()).backward()
    assert torch.isfinite(layer.weight.grad).all()


def test_a_training_resumes_from_its_saved_state(lab):
    def trained(epochs: list[int], *, saved: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        penalty = SpectralPenalty(mlp([4, 8, 2]))
        inputs, labels = gaussian(20, 4).float(), torch.arange(20) % 2
        for part in epochs:
            if saved:
                file = io.BytesIO()
                torch.save(penalty.state_dict(), file)
                file.seek(0)
                penalty = SpectralPenalty(
                    mlp([4, 8, 2]), generator=torch.Generator().manual_seed(9)
                )
                penalty.load_state_dict(torch.load(file))
            lab.train_classifier(
                penalty.model,
                inputs,
                labels,
                epochs=part,
                batch_size=20,
                penalty=lambda *_: 0.1 * penalty(),  # noqa: B023
                optimizer=torch.optim.SGD(penalty.model.parameters(), lr=0.1),
            )
        return penalty.state_dict()

    whole, halves = trained([4], saved=False), trained([2, 2], saved=True)
    assert whole.keys() == halves.keys()
    # The batches are whole epochs; only their order, and so the rounding, differs.
    for key in whole:
        torch.testing.assert_close(whole[key], halves[key], rtol=1e-3, atol=1e-5)


def test_a_copy_has_a_model_of_its_own():
    penalty = SpectralPenalty(nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten()), input_shape=(1, 6))
    other = copy.deepcopy(penalty)
    before = other().item()
    penalty.model[0].weight.data.zero_()
    assert other().item() == pytest.approx(before, rel=0.1)
    assert penalty().item() == 0


def test_a_weight_that_was_zero_can_come_back():
    layer = dense(4, 3)
    weight = layer.weight.detach().clone()
    layer.weight.data.zero_()
    penalty = SpectralPenalty(layer)
    assert penalty().item() == 0
    assert torch.isfinite(gradients(penalty(), layer)[0]).all()
    layer.weight.data = weight
    assert converged(layer)().item() == pytest.approx(induced_norm(weight).item() ** 2)
    penalty.n_power_iterations = 200
    assert penalty().item() == pytest.approx(induced_norm(weight).item() ** 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precisions(dtype):
    model = mlp([4, 5, 2]).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    exact = sum(induced_norm(w.detach().double()) ** 2 for w in penalized_weights(model).values())
    value = converged(model)()
    assert value.dtype == frobenius_penalty(model).dtype == wide
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    assert all(g.dtype == dtype for g in gradients(value, model))
    half = SpectralPenalty(mlp([4, 5, 2])).to(dtype)
    assert half().dtype == wide


def test_non_contiguous_weights():
    layer = dense(4, 3)
    layer.weight = nn.Parameter(gaussian(3, 8).T[::2])
    assert not layer.weight.is_contiguous()
    assert converged(layer)().item() == pytest.approx(induced_norm(layer.weight).item() ** 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_penalties_on_a_gpu():  # pragma: no cover
    model = digits_cnn().cuda()
    x, y = torch.rand(5, 64, device="cuda"), torch.arange(5, device="cuda")
    terms = [SpectralPenalty(model, input_shape=(64,))(), input_gradient_penalty(model, x, y)]
    assert all(term.device.type == "cuda" for term in [*terms, frobenius_penalty(model)])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_power_iterations": 0}, ValueError, "n_power_iterations must be at least 1, got 0"),
        ({"n_power_iterations": 1.0}, TypeError, "n_power_iterations must be an integer"),
        ({"generator": 0}, TypeError, "generator must be a torch.Generator, got int"),
        ({"input_shape": (3, 8, 8)}, ValueError, r"does not take inputs of shape \(3, 8, 8\)"),
    ],
)
def test_spectral_penalty_refuses(options, error, message):
    with pytest.raises(error, match=message):
        SpectralPenalty(digits_cnn(), **options)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            lambda x, f: f(x).sum((2, 3)) + f(x[..., :4]).sum((2, 3)),
            r"\(1, 8, 8\) and .*\(1, 8, 4\)",
        ),
        (lambda x, f: f(input=x), "must be given its images by position"),
        (lambda x, f: f(x)[:, 3], "does not take inputs .* index 3 is out of bounds"),
    ],
)
def test_the_sizes_of_images_must_be_known(forward, message):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3)

        def forward(self, x):
            return forward(x, self.conv)

    with pytest.raises(ValueError, match=message):
        SpectralPenalty(Net(), input_shape=(1, 8, 8))


def test_a_refused_shape_leaves_no_hook_behind():
    model = digits_cnn()
    with pytest.raises(ValueError, match="does not take inputs"):
        SpectralPenalty(model, input_shape=(3,))
    assert not any(layer._forward_pre_hooks for layer in model.modules())


@pytest.mark.parametrize(
    "function",
    [
        frobenius_penalty,
        SpectralPenalty,
        lambda net: frobenius_excess_penalty(net, 1.0),
        lambda net: clip_frobenius_(net, 1.0),
        lambda net: OrthonormalPenalty().penalty(net, torch.ones(1), torch.ones(1), None),
    ],
)
def test_complex_weights_are_refused(function):
    """The sum of their squares is no squared norm, nor real."""
    with pytest.raises(TypeError, match=r"must have real weights, 1\.weight is complex"):
        function(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.complex64)))


# --- input gradient


def test_input_gradient_of_a_linear_model_by_hand():
    """For logits z = Wx the gradient of the cross entropy is Wᵀ(softmax(z) - e_y)."""
    layer = dense(3, 5)
    x, y = gaussian(7, 5), torch.arange(7) % 3
    residual = torch.softmax(layer(x), 1) - F.one_hot(y, 3)
    expected = (residual @ layer.weight).square().sum(1).mean()
    torch.testing.assert_close(input_gradient_penalty(layer, x, y), expected)


def test_its_gradient_in_the_parameters():
    model = mlp([3, 4, 2], nn.Tanh).double()
    x, y = gaussian(4, 3), torch.tensor([0, 1, 1, 0])
    names = [name for name, _ in model.named_parameters()]

    def value(*parameters: torch.Tensor) -> torch.Tensor:
        with_them = dict(zip(names, parameters, strict=True))
        return input_gradient_penalty(Stub(model, with_them), x, y)

    assert gradcheck(value, tuple(p.detach().clone().requires_grad_() for p in model.parameters()))


class Stub(nn.Module):
    """A model whose parameters are given from outside."""

    def __init__(self, model: nn.Module, parameters: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.call = lambda x: functional_call(model, parameters, (x,))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(x)


@pytest.mark.parametrize("of_caller", [torch.detach, lambda x: x.requires_grad_(), torch.square])
@pytest.mark.parametrize("first", [nn.LeakyReLU(0.5, inplace=True), lambda x: x.mul_(3)])
def test_a_model_may_begin_in_place(of_caller, first):
    layer, labels = dense(3, 4), torch.tensor([0, 1])
    start = gaussian(2, 4).requires_grad_(of_caller is torch.square)
    inputs = of_caller(start)
    before = inputs.detach().clone()
    expected = input_gradient_penalty(lambda x: layer(first(x.clone())), before, labels)
    found = input_gradient_penalty(lambda x: layer(first(x)), inputs, labels)
    torch.testing.assert_close(found, expected)
    assert torch.equal(inputs, before)


def test_it_works_without_grad_mode_and_keeps_the_inputs_gradient():
    model, x, y = dense(2, 3), gaussian(4, 3).requires_grad_(), torch.tensor([0, 1, 0, 1])
    with torch.no_grad():
        value = input_gradient_penalty(model, x, y)
    assert value.requires_grad
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.abs().max() > 0
    fixed = x.detach()
    input_gradient_penalty(model, fixed, y)
    assert not fixed.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_changes_no_value(mode):
    model, x, y = mlp([3, 4, 2]).double(), gaussian(5, 3), torch.arange(5) % 2
    outside = input_gradient_penalty(model, x, y).item()
    spectral, twin = SpectralPenalty(model), SpectralPenalty(model)
    values = [spectral().item() for _ in range(3)]
    with mode():
        assert input_gradient_penalty(model, x, y).item() == outside
        inner, made = (x.clone(), y.clone()), SpectralPenalty(model)
        assert input_gradient_penalty(model, *inner).item() == outside
        assert [twin().item() for _ in range(3)] == values
        assert made().item() == values[0]
    assert input_gradient_penalty(model, *inner).item() == outside
    with torch.inference_mode():
        twin = copy.deepcopy(model)
        twin[0].weight = nn.Parameter(twin[0].weight.clone())
    assert twin[0].weight.is_inference()
    assert input_gradient_penalty(twin, x, y).item() == outside
    made().backward()  # its vectors are ordinary tensors
    assert made().item() == values[2]


def test_vectors_outlive_a_weight_whose_square_overflows():
    layer = nn.Linear(3, 3)
    penalty = SpectralPenalty(layer)
    weight = layer.weight.detach().clone()
    layer.weight.data.fill_(1e25)
    assert penalty().item() == math.inf
    layer.weight.data = weight
    assert penalty().isfinite()


def test_another_criterion():
    model, x, y = dense(3, 4), gaussian(5, 4), torch.arange(5) % 3
    smooth = nn.CrossEntropyLoss(label_smoothing=0.2)
    a, b = (input_gradient_penalty(model, x, y, criterion=c) for c in (F.cross_entropy, smooth))
    assert a != b


def test_it_is_accumulated_in_float32():
    model = nn.Linear(3, 2).half()
    value = input_gradient_penalty(model, torch.ones(4, 3).half(), torch.tensor([0, 1, 0, 1]))
    assert value.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inputs": torch.ones(4, 3).long()}, TypeError, "inputs must have a real floating"),
        ({"inputs": torch.full((4, 3), math.nan)}, ValueError, "inputs must be finite"),
        ({"labels": torch.zeros(4)}, TypeError, "labels must be an int64 tensor"),
        ({"labels": torch.zeros(3).long()}, ValueError, r"labels must have shape \(4,\)"),
    ],
)
def test_input_gradient_penalty_refuses(arguments, error, message):
    arguments = {"inputs": torch.ones(4, 3), "labels": torch.zeros(4).long()} | arguments
    with pytest.raises(error, match=message):
        input_gradient_penalty(nn.Linear(3, 2), **arguments)


@pytest.mark.parametrize("with_grad", [True, False])
def test_input_gradient_penalty_refuses_a_model_that_ignores_its_input(with_grad):
    scores = torch.ones(4, 2, requires_grad=with_grad)
    with pytest.raises(ValueError, match="model must be differentiable, and its output depend on"):
        input_gradient_penalty(lambda _: scores, torch.ones(4, 3), torch.zeros(4).long())


# --- in a training


@pytest.mark.parametrize("kind", ["frobenius", "spectral", "input gradient"])
def test_a_training_makes_what_is_penalized_smaller(lab, kind):
    def final(strength: float) -> tuple[float, float]:
        torch.manual_seed(0)
        model = mlp([2, 16, 2])
        spectral = SpectralPenalty(model)
        term = {
            "frobenius": lambda *_: frobenius_penalty(model),
            "spectral": lambda *_: spectral(),
            "input gradient": lambda x, y: input_gradient_penalty(model, x, y),
        }[kind]
        x, y = gaussian(40, 2).float(), (gaussian(40, 2)[:, 0] > 0).long()
        history = lab.train_classifier(
            model, x, y, epochs=60, lr=0.01, penalty=lambda x, y: strength * term(x, y)
        )
        assert (history["penalty"] > 0).all()
        return term(x, y).item(), lab.accuracy(model, x, y)

    (with_it, reads), (without, _) = final(0.1), final(1e-12)
    assert with_it < 0.8 * without
    assert reads > 0.9
