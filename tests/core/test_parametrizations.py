"""The normalized weight against torch's and against autograd, and its traps, by each route."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from weights import critic, gaussian, norm, original

from lipbook import _blas
from lipbook.convolution import conv_spectral_norm
from lipbook.lipschitz import jacobian_norms
from lipbook.normalization import spectral_normalize
from lipbook.wgan import gradient_penalty

modest = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


@pytest.fixture(params=[(1, 0), (1, _blas._SHORT), (2, 0)], ids=["1", "short", "2"], autouse=True)
def threads(request, monkeypatch) -> int:
    """With one thread matrices are left to BLAS, with two to torch, and short ones to BLAS alone.

    So every test runs three times. Two threads are only said to be there: beside another worker
    they would wait for each other's cores.
    """
    n_threads, short = request.param
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    monkeypatch.setattr(_blas, "_SHORT", short)
    return n_threads


def linear(weight: torch.Tensor, **options) -> nn.Linear:
    """A normalized layer without bias, of that weight."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight.data.copy_(weight)
    return spectral_normalize(layer, **options)


def vectors(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.parametrizations.weight[0]._u, layer.parametrizations.weight[0]._v


# --- a drop-in for torch's ---------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_call_of_2018_normalizes_for_real():
    """SP11: PyTorch 0.4.1 had one call a layer, which trains through the division."""
    layer = torch.nn.utils.spectral_norm(nn.Linear(6, 4), n_power_iterations=100)
    x, y = gaussian(5, 6).float(), gaussian(5, 4, seed=1).float()
    (layer(x) * y).sum().backward()
    assert norm(layer.weight.detach()) == pytest.approx(1, abs=1e-5)
    weight = layer.weight_orig
    assert weight.grad.norm() > 0.1
    assert (weight.grad * weight).sum().abs() < 1e-4  # what would only lengthen it is taken out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 3])
def test_swapped_into_a_training_run(steps, dtype):
    """Same draws, same warm start, same state after the same steps, with momentum and all."""
    x, y = gaussian(16, 36, dtype=dtype), gaussian(16, 1, seed=1, dtype=dtype)
    states, losses = [], []
    for normalize in (parametrizations.spectral_norm, spectral_normalize):
        net = critic(lambda m, f=normalize: f(m, n_power_iterations=steps), dtype=dtype)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(20):
            loss = (net(x) - y).square().mean() + net(x).mean()  # two accesses a step
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss)
        states.append(net.state_dict())
    theirs, ours = states
    assert list(theirs) == list(ours)
    # 20 steps of Adam, which divides by small numbers, and eps = 1e-12 enters in another way.
    tolerance = 1e4 * torch.finfo(dtype).eps + 1e-10
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=tolerance)
    torch.testing.assert_close(*losses, rtol=tolerance, atol=0)


def test_state_travels_both_ways():
    for source, target in [
        (spectral_normalize, parametrizations.spectral_norm),
        (parametrizations.spectral_norm, spectral_normalize),
        (spectral_normalize, spectral_normalize),
    ]:
        a, b = critic(source), critic(target, seed=1)
        b.load_state_dict(a.state_dict())
        x = gaussian(4, 36)
        # The vectors are converged to 15 steps only, and torch's evaluation takes them as they are.
        a.train(), b.train()
        for _ in range(200):
            a(x), b(x)
        torch.testing.assert_close(a.eval()(x), b.eval()(x))


def test_torch_can_remove_it():
    layer = linear(gaussian(4, 3), n_power_iterations=100)
    weight = layer.weight.detach()
    parametrize.remove_parametrizations(layer, "weight")
    torch.testing.assert_close(layer.weight.detach(), weight)


# --- the norm, the gradient --------------------------------------------------------------------


@modest
@given(seed=seeds, m=st.integers(1, 7), n=st.integers(1, 7), c=st.floats(0.1, 10))
def test_norm_after_many_steps(seed, m, n, c):
    weight = gaussian(m, n, seed=seed)
    layer = linear(weight, n_power_iterations=300, coefficient=c)
    assert c * (1 - 1e-9) <= norm(layer.weight) <= c * 1.02
    cosine = F.cosine_similarity(layer.weight.flatten(), weight.flatten(), dim=0)
    assert cosine.item() == pytest.approx(1)
    limited = linear(weight, n_power_iterations=300, coefficient=c, at_most=True)
    assert norm(limited.weight) == pytest.approx(min(c, norm(weight)), rel=0.02)
    if norm(weight) < c:
        torch.testing.assert_close(limited.weight.detach(), weight)


@modest
@given(seed=seeds, steps=st.integers(1, 3))
def test_the_estimate_is_from_below(seed, steps):
    """So the normalized weight has a norm of at least 1: the lag of SP1."""
    layer = linear(gaussian(6, 5, seed=seed), n_power_iterations=steps)
    assert norm(layer.weight) >= 1 - 1e-12


OPTIONS = [{}, {"coefficient": 0.7}, {"at_most": True}, {"coefficient": 49.0, "at_most": True}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("training", [True, False])
def test_gradients(options, training):
    """The gradient and the one of the gradient, u and v held: as if σ were ⟨uvᵀ, W⟩."""
    weight = gaussian(4, 3).requires_grad_()
    layer = linear(weight.detach(), **options)
    for _ in range(500):
        _ = layer.weight
    layer.train(training)
    normalize = layer.parametrizations.weight[0]
    u, v = (x.clone() for x in vectors(layer))

    def access(w: torch.Tensor) -> torch.Tensor:
        vectors(layer)[0].copy_(u), vectors(layer)[1].copy_(v)
        return normalize(w)

    # At converged vectors their own derivative vanishes, by the extremality of σ.
    assert gradcheck(access, weight, atol=1e-6)
    c, at_most = options.get("coefficient", 1.0), options.get("at_most", False)

    def formula(w: torch.Tensor) -> torch.Tensor:
        sigma = u @ w @ v
        return w * c / (sigma.clamp(min=c) if at_most else sigma)

    outer = gaussian(4, 3, seed=1).requires_grad_()
    results = []
    for function in (access, formula):
        (first,) = torch.autograd.grad(function(weight), weight, outer, create_graph=True)
        second = torch.autograd.grad(first.sin().sum(), (weight, outer))
        results.append((first, *second))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_gradient_is_orthogonal_to_the_weight():
    """SP7's formula: lengthening W changes nothing, so ⟨gradient, W⟩ = 0, converged or not."""
    layer = linear(gaussian(5, 4))
    layer.weight.backward(gaussian(5, 4, seed=1))
    cosine = F.cosine_similarity(original(layer).grad.flatten(), original(layer).flatten(), dim=0)
    assert abs(cosine.item()) < 1e-12


def test_gradient_of_a_view_that_is_not_contiguous():
    gradients = []
    for g in (gaussian(4, 5).T, gaussian(4, 5).T.contiguous()):
        layer = linear(gaussian(5, 4))
        vectors(layer)[0].copy_(F.normalize(gaussian(5), dim=0))
        vectors(layer)[1].copy_(F.normalize(gaussian(4), dim=0))
        layer.weight.backward(g)
        gradients.append(original(layer).grad)
    torch.testing.assert_close(*gradients)


def test_gradient_penalty_through_a_normalized_critic():
    """SN + GP differentiates twice, with the vectors constant as in torch's own."""
    real, fake = gaussian(8, 36), gaussian(8, 36, seed=1)
    gradients = []
    for normalize in (parametrizations.spectral_norm, spectral_normalize):
        net = critic(normalize)
        generator = torch.Generator().manual_seed(0)
        gradient_penalty(net, real, fake, generator=generator).backward()
        gradients.append([p.grad for p in net.parameters() if p.grad is not None])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert len(gradients[0]) > 3


def test_backward_through_two_forward_passes():
    """``D(real) - D(fake)``: the second pass moves the vectors that the first one used."""
    x = gaussian(3, 4)
    layer, reference = linear(gaussian(5, 4)), linear(gaussian(5, 4))
    for there, here in zip(vectors(reference), vectors(layer), strict=True):
        there.copy_(here)
    first, second = layer(x), layer(-x)
    (first.sin() + second.cos()).sum().backward()
    for sign, function in [(1, torch.sin), (-1, torch.cos)]:
        function(reference(sign * x)).sum().backward()
    torch.testing.assert_close(original(layer).grad, original(reference).grad)


@pytest.mark.parametrize(
    ("layer", "by_numbers"),
    [
        (nn.Linear(4, 3), True),
        (nn.Conv2d(2, 3, 3).double(), True),
        (nn.ConvTranspose2d(2, 3, 3), False),
        (nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last), False),
    ],
)
def test_what_lies_as_blas_reads_it_takes_the_short_way(layer, by_numbers):
    layer = spectral_normalize(copy.deepcopy(layer))
    by_numbers = by_numbers and torch.get_num_threads() == 1
    assert isinstance(layer.weight.grad_fn.quotient.factor, float) == by_numbers


@pytest.mark.parametrize(("outputs", "by_numbers"), [(64, True), (65, False)])
def test_what_is_too_short_to_be_shared_takes_the_short_way_too(outputs, by_numbers, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    layer = spectral_normalize(nn.Linear(128, outputs))
    assert isinstance(layer.weight.grad_fn.quotient.factor, float) == by_numbers


@pytest.mark.parametrize("options", OPTIONS)
def test_weights_that_count_as_zero_are_left_alone(options):
    """Also where they are not 0, and their estimate is small but no rounding error."""
    g = gaussian(4, 3)
    layer = linear(1e-13 * gaussian(4, 3), **options)
    layer.weight.backward(g)
    torch.testing.assert_close(layer.weight, original(layer), rtol=0, atol=0)
    torch.testing.assert_close(original(layer).grad, g, rtol=0, atol=0)


TINY = {
    "matrix": (lambda: nn.Linear(3, 3, bias=False), {}),
    "operator": (lambda: nn.Conv1d(3, 3, 1), {"norm": "operator", "input_size": 2}),
    "vector": (lambda: nn.LayerNorm(3), {}),
}


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 0.1])
@pytest.mark.parametrize("kind", TINY)
def test_eps_is_a_threshold_and_no_part_of_the_norm(eps, kind):
    """By every route, in both gradients: it was part of σ, and weights up to 2 eps counted as 0."""
    make, options = TINY[kind]
    close = partial(torch.testing.assert_close, rtol=1e-7, atol=0)
    for ratio in (0.5, 1.1, 1.5, 1.9, 3.0):
        layer, weight = make().double(), torch.tensor([1.0, 0.1, 0.05]).double()
        weight = weight / weight.norm() if kind == "vector" else weight.diag()
        weight = weight.view(layer.weight.shape)  # of norm 1
        layer.weight.data.copy_(ratio * eps * weight)
        spectral_normalize(layer, eps=eps, n_power_iterations=50, **options)
        w, g = original(layer), gaussian(*weight.shape)
        expected = weight if ratio > 1 else w.detach()
        for mode in (True, False):
            normalized = layer.train(mode).weight
            close(normalized.detach(), expected)
            (once,) = torch.autograd.grad(normalized, w, g, retain_graph=True)
            (again,) = torch.autograd.grad(normalized, w, g, create_graph=True)
            close(once, again.detach(), atol=1e-7 * once.abs().max().item())
        close(vmap(layer.parametrizations.weight[0])(w.detach()[None])[0], expected)


def test_many_gradients_at_once():
    layer = linear(gaussian(4, 3))
    weight, outer = layer.weight, gaussian(5, 4, 3, seed=1)
    one_by_one = [
        torch.autograd.grad(weight, original(layer), g, retain_graph=True)[0] for g in outer
    ]
    (together,) = torch.autograd.grad(weight, original(layer), outer, is_grads_batched=True)
    torch.testing.assert_close(together, torch.stack(one_by_one))


def test_a_weight_that_was_laid_out_anew_before_the_backward_pass():
    """Its version stays the same, and its memory has another order: ⟨gradient, W⟩ was 23."""
    gradients = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        layer = spectral_normalize(nn.Conv2d(4, 5, 3))
        weight = layer.weight
        layer.to(memory_format=memory_format)
        weight.backward(torch.arange(180.0).view(5, 4, 3, 3))
        gradients.append(original(layer).grad)
    torch.testing.assert_close(*gradients)


def test_a_gradient_that_is_zero_and_has_no_memory():
    """As sgn's is, of which the second derivative of an absolute value is made."""
    layer = linear(gaussian(4, 3))
    (slope,) = torch.autograd.grad(layer.weight.sum().abs(), original(layer), create_graph=True)
    (curvature,) = torch.autograd.grad(slope.square().sum(), original(layer))
    assert curvature.isfinite().all()


def test_a_gradient_whose_memory_is_its_negative():
    """The imaginary part of a conjugate; of one entry it counts as contiguous."""
    layer = spectral_normalize(nn.Linear(1, 1, bias=False))
    z = torch.complex(torch.full((1, 1), 2.0), layer.weight)
    (z.conj() * torch.tensor(3 + 1j)).imag.sum().backward()
    assert abs(original(layer).grad.item()) < 1e-3  # of w / |w|


def test_a_weight_that_was_overwritten_cannot_be_differentiated():
    layer = linear(gaussian(4, 3))
    weight = layer.weight
    with torch.no_grad():
        original(layer).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        weight.sum().backward()


def test_gradient_through_a_checkpoint():
    """The backward's vectors come from the second pass, and so must all that goes with them."""
    gradients = []
    for passes in (lambda f, x: f(x), partial(checkpoint, use_reentrant=False)):
        layer = linear(gaussian(6, 5))
        with torch.no_grad():
            original(layer).copy_(gaussian(6, 5, seed=1))  # vectors of another weight
        passes(layer, gaussian(3, 5)).square().sum().backward()
        w, g = original(layer).detach(), original(layer).grad
        gradients.append(F.cosine_similarity(g.flatten(), w.flatten(), dim=0).item())
    assert gradients == pytest.approx([0, 0], abs=1e-12)


def test_traced_graphs_depend_on_the_weight():
    layer, name = linear(gaussian(5, 4)), "parametrizations.weight.original"
    x, other = gaussian(2, 4), gaussian(5, 4, seed=1)

    def call(weight, x):
        return functional_call(layer, {name: weight}, (x,))

    graph = make_fx(call)(original(layer).detach(), x)
    assert not torch.equal(graph(other, x), graph(original(layer).detach(), x))


def passed_through_infinity(layer: nn.Module) -> None:
    weight = original(layer).detach().clone()
    original(layer).data[0, 0] = torch.inf
    assert layer.train().weight.isnan().any()
    original(layer).data.copy_(weight)


LOST = {
    "zero": lambda layer: [vector.zero_() for vector in vectors(layer)],
    "NaN": lambda layer: [vector.fill_(torch.nan) for vector in vectors(layer)],
    "u is NaN": lambda layer: vectors(layer)[0].fill_(torch.nan),
    "u is infinite": lambda layer: vectors(layer)[0].fill_(torch.inf),
    "infinite weight": passed_through_infinity,
    "infinite weight, and assigned": lambda layer: [
        passed_through_infinity(layer),
        setattr(layer, "weight", original(layer).detach().clone()),
    ],
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"norm": "operator", "input_size": 1}], ids=str)
@pytest.mark.parametrize("lose", LOST)
def test_vectors_that_were_lost_are_found_again(lose, options, training):
    """As of an average of (u, v) and (-u, -v): they made the weight NaN in training, for ever."""
    layer = nn.Conv1d(30, 40, 1, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(gaussian(40, 30, 1))
    layer = spectral_normalize(layer, **options)
    LOST[lose](layer)
    for _ in range(100):
        weight = layer.train(training).weight
    assert norm(weight) == pytest.approx(1, abs=0.01)
    assert all(vector.isfinite().all() for vector in vectors(layer)) or not training


def orthogonal_and_a_direction(n: int, length: float) -> tuple[torch.Tensor, torch.Tensor]:
    q, a, b = torch.linalg.qr(gaussian(n, n)).Q, gaussian(n, seed=1), gaussian(n, seed=2)
    return q.float(), (q + length * torch.outer(a / a.norm(), b / b.norm())).float()


def diagonals(n: int, length: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The vectors of the first have no part in the top ones of the second."""
    first, second = torch.ones(n), torch.ones(n)
    first[0], second[-1] = 9.0, length
    return first.diag(), second.diag()


REPLACE = {
    "loaded": lambda layer, new: layer.load_state_dict(
        {"parametrizations.weight.original": new}, strict=False
    ),
    "copied": lambda layer, new: original(layer).data.copy_(new),
    "assigned": lambda layer, new: setattr(layer, "weight", new),
}


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("replace", REPLACE)
@pytest.mark.parametrize(
    ("pair", "options"),
    [
        (orthogonal_and_a_direction(200, 3.0), {}),
        (diagonals(100, 2.9), {}),
        (diagonals(100, 2.9), {"dim": 1}),
    ],
)
def test_no_weight_is_taken_for_another_with_the_same_vectors(pair, options, replace, seen):
    """Evaluation gave norms of up to 5.9, where a random vector was no longer than the estimate."""
    if replace == "copied" and not seen:
        return  # nobody can know it from a step of an optimizer
    old, new = pair
    layer = linear(old, **options)
    for _ in range(30):
        _ = layer.weight
    if seen:
        _ = layer.eval().weight
    REPLACE[replace](layer, new)
    assert norm(layer.eval().weight) == pytest.approx(1, abs=1e-4)
    for twin in (copy.deepcopy(layer), copy.deepcopy(layer).double()):
        assert norm(twin.weight) == pytest.approx(1, abs=1e-4)
    if replace == "assigned":
        assert norm(layer.train().weight) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("complex_", [True, False])
def test_operators_are_found_after_their_weights_were_replaced(complex_):
    dtype = torch.complex128 if complex_ else torch.float64
    layer = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect", dtype=dtype)
    options = {"norm": "operator", "input_size": 6}
    exact = spectral_normalize(copy.deepcopy(layer), n_power_iterations=1000, **options)
    spectral_normalize(layer, **options)
    layer.weight = original(exact).detach()
    torch.testing.assert_close(layer.eval().weight, exact.weight, rtol=1e-5, atol=0)


# --- traps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("at_most", [True, False])
def test_zero_weight(training, at_most):
    layer = linear(torch.zeros(3, 4), at_most=at_most).train(training)
    assert (layer.weight == 0).all()
    g = gaussian(3, 4, dtype=torch.float32)
    layer.weight.backward(g)
    torch.testing.assert_close(original(layer).grad, g)
    for vector in vectors(layer):
        assert vector.norm().item() == pytest.approx(1, rel=1e-5)
    with torch.no_grad():  # and it wakes up
        original(layer).copy_(5 * g)
    layer.train()
    for _ in range(100):
        weight = layer.weight
    assert norm(weight) == pytest.approx(1, rel=1e-3)


def test_torch_gives_nan_for_a_zero_weight():
    """The trap above is real."""
    layer = nn.Linear(4, 3)
    layer.weight.data.zero_()
    assert parametrizations.spectral_norm(layer).weight.isnan().all()


def test_vectors_orthogonal_to_the_weight_are_left():
    weight = torch.zeros(4, 4, dtype=torch.float64)
    weight[0, 0] = 3.0
    layer = linear(weight)
    other = weight.flip(0, 1)
    with torch.no_grad():
        for vector in vectors(layer):
            assert vector[3] == 0 or vector[3].abs() < 1e-11
            vector.zero_()[0] = 1.0
        layer.weight = other  # the assignment starts anew
    assert norm(layer.weight) == pytest.approx(1)


@pytest.mark.parametrize("norm_kind", ["matrix", "operator"])
def test_replaced_weights_in_evaluation_mode(norm_kind):
    """Assigned or overwritten, the weight is not divided by what its old vectors make of it."""
    layer = nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64)
    spectral_normalize(layer, norm=norm_kind, input_size=5, n_power_iterations=50).eval()
    new = gaussian(3, 2, 3, 3, seed=5)
    exact = norm(new) if norm_kind == "matrix" else conv_spectral_norm(new, 5, padding=1).item()
    before = [vector.clone() for vector in vectors(layer)]
    original(layer).data.copy_(new)
    torch.testing.assert_close(layer.weight.detach(), new / exact, rtol=0.01, atol=1e-3)
    for now, then in zip(vectors(layer), before, strict=True):
        assert torch.equal(now, then)
    layer.weight = new
    torch.testing.assert_close(layer.weight.detach(), new / exact, rtol=0.05, atol=0.02)
    layer.weight = -new
    torch.testing.assert_close(layer.weight.detach(), -new / exact, rtol=0.05, atol=0.02)


def test_evaluation_mode_leaves_the_vectors_and_is_repeatable():
    layer = linear(gaussian(5, 4))
    layer.eval()
    before = [vector.clone() for vector in vectors(layer)]
    first, second = layer.weight, layer.weight
    assert torch.equal(first, second)
    with torch.no_grad():
        torch.testing.assert_close(layer.weight, first.detach())
    for now, then in zip(vectors(layer), before, strict=True):
        assert torch.equal(now, then)


def test_deep_copies_are_independent():
    layer = spectral_normalize(nn.Conv2d(2, 3, 3), norm="operator", input_size=5)
    bn = spectral_normalize(nn.BatchNorm1d(3))
    for module in (layer, bn, linear(gaussian(3, 3))):
        twin = copy.deepcopy(module)
        torch.testing.assert_close(twin.eval().weight, module.eval().weight)
        with torch.no_grad():
            original(twin).mul_(-1)
        assert not torch.equal(twin.weight, module.weight)
    twin = copy.deepcopy(bn)
    twin.running_var.fill_(4.0)
    torch.testing.assert_close(twin.weight, 2 * bn.weight, rtol=1e-4, atol=0)


def test_averaged_weights():
    """EMA with and without the buffers: averaged vectors have lost their length, not their use."""
    for use_buffers in (False, True):
        layer = linear(gaussian(6, 5), n_power_iterations=1)
        average = AveragedModel(
            layer, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers
        )
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        for step in range(60):
            loss = (layer(gaussian(16, 5, seed=step)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(layer)
        averaged = average.module.eval().weight
        assert 1 - 1e-9 <= norm(averaged) <= 1.05


def test_buffers_are_overwritten_in_place():
    """What a broadcast of DistributedDataParallel writes into is what the next access reads."""
    a, b = linear(gaussian(5, 4)), linear(gaussian(5, 4))
    held = vectors(a)
    out = a.weight
    assert all(x is y for x, y in zip(vectors(a), held, strict=True))
    for target, source in zip(held, vectors(b), strict=True):
        target.copy_(source)  # between forward and backward
    out.sum().backward()
    torch.testing.assert_close(a.weight, b.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    weight = (1.5e4 * gaussian(20, 30)).to(dtype)  # whose norm overflows float16
    layer = linear(weight, n_power_iterations=100)
    assert layer.weight.dtype == dtype
    assert {vector.dtype for vector in vectors(layer)} == {dtype}
    assert norm(layer.weight) == pytest.approx(1, abs=2 * torch.finfo(dtype).eps)
    layer.weight.sum().backward()
    assert original(layer).grad.dtype == dtype
    assert original(layer).grad.isfinite().all()


def test_weights_in_another_precision_than_their_vectors():
    layer = linear(gaussian(5, 4).float(), n_power_iterations=300)
    weight = gaussian(5, 4).requires_grad_()
    normalized = layer.parametrizations.weight[0](weight)
    assert norm(normalized) == pytest.approx(1, abs=1e-12)  # single precision has no part in it
    normalized.sum().backward()
    assert weight.grad.dtype == torch.float64
    assert {vector.dtype for vector in vectors(layer)} == {torch.float32}


def test_subclasses_of_tensors_stay_what_they_are():
    class Named(torch.Tensor):
        """Stands for those that have no memory of their own, such as torch's fake tensors."""

    layer = linear(gaussian(5, 4))
    weight = original(layer).detach().as_subclass(Named).requires_grad_()
    assert type(layer.parametrizations.weight[0](weight)) is Named


def test_autocast():
    torch.manual_seed(0)
    plain = spectral_normalize(nn.Conv2d(2, 3, 3), norm="operator", input_size=5)
    cast = copy.deepcopy(plain)
    with torch.autocast("cpu", torch.bfloat16):
        output = cast(torch.ones(1, 2, 5, 5))
    assert output.dtype == torch.bfloat16
    _ = plain.weight
    for ours, theirs in zip(vectors(cast), vectors(plain), strict=True):
        assert torch.equal(ours, theirs)


def test_functional_transforms():
    """Jacobians and per-sample gradients, in evaluation mode: the vectors may not move."""
    net = critic(spectral_normalize)
    points = gaussian(3, 36)
    norms = jacobian_norms(net, points)
    point = points[:1].clone().requires_grad_()
    net.eval()
    (slope,) = torch.autograd.grad(net(point).sum(), point)
    torch.testing.assert_close(norms[0], slope.norm())
    layer = linear(gaussian(1, 4)).eval()
    state = {"parametrizations.weight.original": original(layer).detach()}
    inputs = gaussian(5, 4)
    loss = grad(lambda s, x: functional_call(layer, s, (x,)).sum())
    samples = vmap(loss, (None, 0))(state, inputs)
    for x, sample in zip(inputs, *samples.values(), strict=True):
        original(layer).grad = None
        layer(x).sum().backward()
        torch.testing.assert_close(sample, original(layer).grad)


def test_compiled():
    compiled = torch.compile(linear(gaussian(5, 4)), backend="eager", fullgraph=True)
    plain = linear(gaussian(5, 4))
    for target, source in zip(vectors(compiled), vectors(plain), strict=True):
        target.copy_(source)
    x = gaussian(2, 4)
    for mode in (True, True, False):
        torch.testing.assert_close(compiled.train(mode)(x), plain.train(mode)(x))
    compiled.train()(x).sum().backward()
    plain.train()(x).sum().backward()
    torch.testing.assert_close(original(compiled).grad, original(plain).grad)


# --- convolutions and vectors ------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": 2, "groups": 2},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": "same", "padding_mode": "reflect"},
        {"stride": (2, 1), "padding": (1, 0), "padding_mode": "replicate"},
    ],
    ids=str,
)
def test_operator_norm(options):
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 4, 3, **options, dtype=torch.float64)
    kernel = layer.weight.detach().clone()
    spectral_normalize(layer, norm="operator", input_size=(6, 5), n_power_iterations=200)
    sigma = conv_spectral_norm(kernel, (6, 5), **options)
    torch.testing.assert_close(layer.weight.detach(), kernel / sigma, rtol=1e-3, atol=1e-5)
    normalize = layer.eval().parametrizations.weight[0]
    normalize.n_power_iterations = 1
    small = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # along two directions
    directions = torch.stack([kernel, gaussian(*kernel.shape)])
    along = lambda s: normalize(kernel + torch.tensordot(s, directions, 1))  # noqa: E731
    assert gradcheck(along, small, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3, stride=2, groups=2),
        nn.Conv2d(2, 3, (3, 2), padding=(1, 0), dilation=2),
        nn.Conv2d(2, 3, (4, 3), padding="same"),
        nn.Conv2d(2, 3, (4, 3), padding="same", padding_mode="reflect"),
        nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="replicate"),
        nn.Conv3d(2, 3, 3, padding=2, padding_mode="circular"),
    ],
    ids=str,
)
def test_adjoint_convolution_and_gradient_of_the_kernel(layer, dtype):
    """``⟨u, W v⟩`` has to come out of either, with groups, strides and every kind of padding."""
    torch.manual_seed(0)
    layer = spectral_normalize(copy.deepcopy(layer).to(dtype), norm="operator", input_size=5)
    normalize, w = layer.parametrizations.weight[0], original(layer).detach()
    u, v = map(torch.randn_like, vectors(layer))
    product = (u.conj() * normalize.product(w, v, torch.zeros_like(u))).sum()
    back = normalize.adjoint(w, u, torch.zeros_like(v))
    left, right = normalize.derivative(w, u, v)
    torch.testing.assert_close((back.conj() * v).sum(), product)
    torch.testing.assert_close((left * right.conj() * w).sum(), product)


@pytest.mark.parametrize("axes", [1, 3])
def test_operator_norm_of_other_dimensions(axes):
    layer = (nn.Conv1d, nn.Conv3d)[axes // 3](1, 2, 3, padding=1, dtype=torch.float64)
    kernel = layer.weight.detach().clone()
    spectral_normalize(layer, norm="operator", input_size=4, n_power_iterations=300)
    sigma = conv_spectral_norm(kernel, 4, padding=1)
    torch.testing.assert_close(layer.weight.detach(), kernel / sigma, rtol=1e-3, atol=1e-5)


def test_operator_norm_of_a_dense_layer_is_the_matrix_norm():
    layer = linear(gaussian(5, 4), norm="operator", n_power_iterations=200)
    assert norm(layer.weight) == pytest.approx(1)


def test_reshaped_kernel_is_not_the_operator():
    """PI7: after the usual normalization the all-ones kernel still stretches."""
    layer = nn.Conv2d(1, 1, 3, padding=1)
    nn.init.ones_(layer.weight)
    spectral_normalize(layer)
    assert conv_spectral_norm(layer.weight, 8, padding=1).item() == pytest.approx(
        8.2909 / 3, rel=1e-4
    )


@modest
@given(seed=seeds)
def test_relu_sees_half_of_a_fold(seed):
    """SP2: real samples at ±1 and fakes at 0 are 1 apart, and ReLU critics see half of that."""
    at = torch.tensor([[-1.0], [1.0], [0.0]]).double()

    def estimate(first, activation, last, bias):
        net = nn.Sequential(linear(first), activation, linear(last))
        net[0].bias = nn.Parameter(bias)
        scores = net(at).squeeze(1)
        return (scores[:2].mean() - scores[2]).item()

    w, a, b = (
        gaussian(16, 1, seed=seed),
        gaussian(1, 16, seed=seed + 1),
        gaussian(16, seed=seed + 2),
    )
    assert estimate(w, nn.ReLU(), a, b) <= 0.5 + 1e-12
    w, a, b = torch.tensor([[1.0], [-1.0]]).double(), torch.ones(1, 2).double(), torch.zeros(2)
    assert estimate(w, nn.ReLU(), a, b.double()) == pytest.approx(0.5)


@modest
@given(seed=seeds)
def test_batch_norm(seed):
    """SP4: the constant in evaluation mode is max |γ/std|, and ‖γ‖₂ has no part in it."""
    layer = nn.BatchNorm1d(5, dtype=torch.float64)
    layer.weight.data.copy_(gaussian(5, seed=seed))
    layer.running_var.copy_(gaussian(5, seed=seed + 1).exp())
    spectral_normalize(layer, coefficient=2.0).eval()
    stretched = (layer(torch.eye(5).double()) - layer(torch.zeros(1, 5).double())).abs()
    assert stretched.amax().item() == pytest.approx(2)
    weight = original(layer).detach().requires_grad_()
    assert gradcheck(layer.parametrizations.weight[0], weight)


def test_statistics_go_where_a_replica_of_the_weight_is():
    """As DataParallel has it: on another device than the layer that has the statistics."""
    layer = spectral_normalize(nn.BatchNorm1d(3)).eval()
    assert layer.parametrizations.weight[0](torch.ones(3, device="meta")).is_meta


def test_other_vectors_are_rows():
    layer = nn.LayerNorm(5, dtype=torch.float64)
    layer.weight.data.copy_(gaussian(5))
    spectral_normalize(layer)
    torch.testing.assert_close(layer.weight.detach(), F.normalize(gaussian(5), dim=0))
    zero = nn.BatchNorm1d(3)
    nn.init.zeros_(zero.weight)
    spectral_normalize(zero)
    zero.weight.sum().backward()
    assert (zero.weight == 0).all()
    assert (original(zero).grad == 1).all()
