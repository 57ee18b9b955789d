"""Where torch's `spectral_norm` works, `spectral_normalize` does, and gives the same."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, parametrize, skip_init
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from weights import gaussian, norm, original

from lipbook.normalization import spectral_normalize

Normalize = Callable[..., nn.Module]
NAME = "parametrizations.weight.original"

torchs = parametrizations.spectral_norm
single = partial(gaussian, dtype=torch.float32)


def settled(normalize: Normalize, layer: nn.Module, training: bool, **options) -> nn.Module:
    """The layer with a weight of its own, whose vectors have settled, so that both agree."""
    torch.manual_seed(0)
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(gaussian(*parameter.shape))
    layer = normalize(layer, **options)
    for _ in range(300):
        _ = layer.weight
    return layer.train(training)


def dense(normalize: Normalize, training: bool) -> nn.Module:
    return settled(normalize, nn.Linear(4, 3, dtype=torch.float64), training)


class OnePixel(nn.Conv1d):
    """A convolution whose norm as an operator is that of its kernel as a matrix."""

    def __init__(self) -> None:
        super().__init__(4, 3, 1, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[..., None])[..., 0]


def call(layer: nn.Module, state, x: torch.Tensor) -> torch.Tensor:
    return functional_call(layer, state, (x,)).sin().sum()


def transformed(transform) -> Callable[[Normalize, bool], object]:
    def case(normalize, training):
        layer, x = dense(normalize, training), gaussian(5, 4, seed=1)
        return transform(partial(call, layer), dict(layer.named_parameters()), x)

    return case


def stacked(transform) -> Callable[[Normalize, bool], object]:
    """Three networks at once: weights and vectors have a first axis that `vmap` goes along."""

    def case(normalize, training):
        layer = dense(normalize, training)
        layers = [copy.deepcopy(layer) for _ in range(3)]
        for k, one in enumerate(layers):
            original(one).data.mul_(k + 1)
        function = transform(lambda state, buffers, x: call(layer, (state, buffers), x))
        return vmap(function, (0, 0, None))(*stack_module_state(layers), gaussian(5, 4, seed=1))

    return case


def dual(normalize, training):
    layer, x = dense(normalize, training), gaussian(5, 4, seed=1)
    with forward_ad.dual_level():
        moving = forward_ad.make_dual(x, gaussian(5, 4, seed=2))
        return tuple(forward_ad.unpack_dual(layer(moving)))


def dual_weight(normalize, training):
    layer, x = dense(normalize, training), gaussian(5, 4, seed=1)
    with forward_ad.dual_level():
        moving = forward_ad.make_dual(original(layer).detach(), original(layer).detach().sin())
        return tuple(forward_ad.unpack_dual(functional_call(layer, {NAME: moving}, (x,))))


def made_fx(normalize, training):
    layer, x = dense(normalize, training), gaussian(5, 4, seed=1)
    function = partial(call, layer)
    graph = make_fx(function)({NAME: original(layer).detach()}, x)
    return graph({NAME: 2 * original(layer).detach()}, 3 * x)


def traced(normalize, training):
    layer, x = dense(normalize, training), gaussian(5, 4, seed=1)
    graph = torch.jit.trace(layer, x)
    with torch.no_grad():
        original(layer).mul_(2)
    return graph(3 * x)


def exported(normalize, training):
    layer, x = dense(normalize, training), gaussian(5, 4, seed=1)
    return torch.export.export(layer, (x,)).module()(3 * x)


def compiled(backend: str) -> Callable[[Normalize, bool], object]:
    def case(normalize, training):
        torch.compiler.reset()
        layer, x = dense(normalize, training), gaussian(5, 4, seed=1)
        function = torch.compile(layer, backend=backend, fullgraph=True)
        results = []
        for factor in (1, 2, 3):  # the second access sees another weight
            function(x).sin().sum().backward()
            results += [function(x), original(layer).grad.clone()]
            original(layer).data.mul_(factor)
        return results

    return case


def on_meta(normalize, training):
    with torch.device("meta"):
        layer = normalize(nn.Linear(4, 3)).train(training)
    assert layer(torch.empty(2, 4, device="meta")).device.type == "meta"
    layer = layer.to_empty(device="cpu")
    layer.load_state_dict(settled(normalize, nn.Linear(4, 3), training).state_dict())
    return layer(single(2, 4))


def fake(normalize, training):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        layer = normalize(nn.Conv2d(2, 3, 3)).train(training)
        output = layer(torch.empty(5, 2, 8, 8))
        output.sum().backward()
    return torch.tensor(output.shape), torch.tensor(original(layer).grad.shape)


def skipped(normalize, training):
    layer = skip_init(nn.Linear, 4, 3)
    nn.init.zeros_(layer.weight)
    layer = normalize(layer)
    layer.load_state_dict(settled(normalize, nn.Linear(4, 3), training).state_dict())
    return layer.train(training)(single(2, 4))


def embedding(sparse: bool) -> Callable[[Normalize, bool], object]:
    def case(normalize, training):
        layer = settled(normalize, nn.Embedding(7, 3, sparse=sparse), training)
        layer(torch.tensor([[1, 2], [1, 5]])).sin().sum().backward()
        return original(layer).grad

    return case


def complex_weight(normalize, training):
    layer = nn.Linear(4, 3, dtype=torch.complex128)
    return settled(normalize, layer, training)(gaussian(5, 4, seed=1) + 1j * gaussian(5, 4))


def conjugated(normalize, training):
    layer = nn.Linear(4, 3, dtype=torch.complex128)
    layer.weight = nn.Parameter(torch.complex(gaussian(3, 4), gaussian(3, 4, seed=1)).conj())
    return normalize(layer, n_power_iterations=300).train(training).weight


def swapped(normalize, training):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return complex_weight(normalize, training)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def vectorized(normalize, training):
    layer, x = dense(normalize, training), gaussian(5, 4, seed=1)
    function = lambda weight: call(layer, {NAME: weight}, x)  # noqa: E731
    options = {"strategy": "forward-mode", "vectorize": True}
    return torch.autograd.functional.jacobian(function, original(layer).detach(), **options)


def no_eps(normalize, training):
    layer = settled(normalize, nn.Linear(4, 3, dtype=torch.float64), training, eps=0)
    return layer(gaussian(5, 4, seed=1))


def of_layer(layer: nn.Module, *shape: int, **options) -> Callable[[Normalize, bool], object]:
    def case(normalize, training):
        one = settled(normalize, layer.double(), training, **options)
        x = gaussian(*shape, seed=1)
        first, second = one(x), one(-x)  # two accesses before backward
        (first.sin().sum() + second.cos().sum()).backward()
        return first, second, *(p.grad for p in one.parameters() if p.grad is not None)

    return case


def twice_differentiated(normalize, training):
    layer = dense(normalize, training)
    x = gaussian(5, 4, seed=1).requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
    slope.square().sum().backward()
    return original(layer).grad, x.grad


def checkpointed(normalize, training):
    layer = dense(normalize, training)
    checkpoint(layer, gaussian(5, 4, seed=1), use_reentrant=False).sin().sum().backward()
    return original(layer).grad


def shared_memory(normalize, training):
    layer = dense(normalize, training).share_memory()
    return layer(gaussian(5, 4, seed=1))


def without_grad(mode) -> Callable[[Normalize, bool], object]:
    def case(normalize, training):
        with mode():
            layer = dense(normalize, training)
            inside = layer(gaussian(5, 4, seed=1)).clone()
        outside = layer(gaussian(5, 4, seed=1))  # no inference tensor is left behind
        outside.sum().backward()
        return torch.as_tensor(inside.tolist()), outside, original(layer).grad

    return case


def switched(normalize, training):
    layer, x = dense(normalize, training), gaussian(5, 4, seed=1)
    return [layer.train(mode)(x) for mode in (True, False, False, True, False)]


def overwritten_by_state(normalize, training):
    other = settled(normalize, nn.Linear(4, 3, dtype=torch.float64), training)
    state = {name: x.clone() for name, x in other.state_dict().items()}
    layer = dense(normalize, training)
    layer(gaussian(5, 4))
    with torch.no_grad():
        original(layer).copy_(gaussian(3, 4, seed=7))
    layer.load_state_dict(state)
    return layer(gaussian(5, 4, seed=1))


def reduced(dtype: torch.dtype) -> Callable[[Normalize, bool], object]:
    def case(normalize, training):
        return settled(normalize, nn.Linear(4, 3), training).to(dtype)(single(5, 4).to(dtype))

    return case


def autocast(normalize, training):
    layer = settled(normalize, nn.Linear(4, 3), training)
    with torch.autocast("cpu", torch.bfloat16):
        return layer(single(5, 4))


def copied(normalize, training):
    layer = dense(normalize, training)
    layer(gaussian(5, 4))
    return copy.deepcopy(layer)(gaussian(5, 4, seed=1))


def converted(normalize, training):
    layer = settled(normalize, nn.Linear(4, 3), training)
    layer(single(5, 4))
    return layer.double()(gaussian(5, 4, seed=1))


def removed(normalize, training):
    layer = dense(normalize, training)
    return parametrize.remove_parametrizations(layer, "weight").weight


def cached(normalize, training):
    layer, x = dense(normalize, training), gaussian(5, 4, seed=1)
    with parametrize.cached():
        return layer(x), layer(-x)


def chained(normalize, training):
    """A second parametrization on top, as torch's tests have it."""
    layer = dense(normalize, training)
    parametrize.register_parametrization(layer, "weight", nn.Hardtanh(-0.3, 0.3))
    return layer(gaussian(5, 4, seed=1))


def of_batch_norm(name: str) -> Callable[[Normalize, bool], object]:
    """A parameter that is not γ: the layer's norm has nothing to do with it."""

    def case(normalize, training):
        torch.manual_seed(0)
        layer = nn.BatchNorm1d(3, dtype=torch.float64)
        layer.projection = nn.Parameter(gaussian(3, 3))
        layer.bias.data.copy_(gaussian(3))
        layer.running_var.fill_(100.0)
        layer = normalize(layer, name, n_power_iterations=300).train(training)
        return getattr(layer, name)

    return case


CASES: dict[str, Callable[[Normalize, bool], object]] = {
    "grad": transformed(lambda f, state, x: grad(f)(state, x)),
    "vjp": transformed(lambda f, state, x: vjp(f, state, x)[1](torch.ones(()).double())),
    "jacrev": transformed(lambda f, state, x: jacrev(f)(state, x)),
    "jacfwd": transformed(lambda f, state, x: jacfwd(f)(state, x)),
    "hessian": transformed(lambda f, state, x: hessian(f)(state, x)),
    "jvp": transformed(lambda f, state, x: jvp(partial(f, x=x), (state,), (state,))),
    "jvp of the input": transformed(lambda f, state, x: jvp(partial(f, state), (x,), (x,))),
    "hessian of the input": transformed(lambda f, state, x: hessian(partial(f, state))(x)),
    "vmap": transformed(lambda f, state, x: vmap(f, (None, 0))(state, x)),
    "gradients of samples": transformed(lambda f, s, x: vmap(grad(f), (None, 0))(s, x)),
    "stack_module_state": stacked(lambda f: f),
    "grad of stack_module_state": stacked(grad),
    "dual input": dual,
    "dual weight": dual_weight,
    "make_fx": made_fx,
    "jit.trace": traced,
    "export": exported,
    "compile, eager": compiled("eager"),
    "compile, aot_eager": compiled("aot_eager"),
    "meta": on_meta,
    "FakeTensorMode": fake,
    "skip_init": skipped,
    "embedding": embedding(sparse=False),
    "sparse embedding": embedding(sparse=True),
    "complex": complex_weight,
    "conjugate": conjugated,
    "complex, swapped": swapped,
    "jacobian, vectorized": vectorized,
    "eps=0": no_eps,
    "dense": of_layer(nn.Linear(4, 3), 5, 4),
    "dense, dim=1": of_layer(nn.Linear(4, 3), 5, 4, dim=1),
    "dense, dim=-1": of_layer(nn.Linear(4, 3), 5, 4, dim=-1),
    "dense, three steps": of_layer(nn.Linear(4, 3), 5, 4, n_power_iterations=3),
    "convolution": of_layer(nn.Conv2d(2, 3, 3, groups=1), 5, 2, 6, 6),
    "transposed": of_layer(nn.ConvTranspose2d(2, 3, 3), 5, 2, 6, 6),
    "transposed, 1-D": of_layer(nn.ConvTranspose1d(2, 3, 3), 5, 2, 6),
    "transposed, 3-D": of_layer(nn.ConvTranspose3d(2, 3, 2), 5, 2, 3, 3, 3),
    "transposed, dim=0": of_layer(nn.ConvTranspose2d(2, 3, 3), 5, 2, 6, 6, dim=0),
    "bias of a BatchNorm": of_batch_norm("bias"),
    "matrix of a BatchNorm": of_batch_norm("projection"),
    "LayerNorm": of_layer(nn.LayerNorm(6), 5, 6),
    "twice differentiated": twice_differentiated,
    "checkpoint": checkpointed,
    "share_memory": shared_memory,
    "no_grad": without_grad(torch.no_grad),
    "switched": switched,
    "load_state_dict": overwritten_by_state,
    "autocast": autocast,
    "bfloat16": reduced(torch.bfloat16),
    "deepcopy": copied,
    "another precision": converted,
    "remove_parametrizations": removed,
    "cached": cached,
    "chained": chained,
}
# Where torch's raises, ours may do better.
NOT_TORCHS = {
    ("jacfwd", True),
    ("hessian", True),
    ("jvp", True),
    ("stack_module_state", True),
    ("grad of stack_module_state", True),
    ("dual weight", True),
    ("jit.trace", True),
    ("jacobian, vectorized", True),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", CASES)
def test_torchs_and_ours_agree(name, training):
    assert_agreement(name, training, spectral_normalize)


def assert_agreement(name: str, training: bool, normalize: Normalize) -> None:
    case = CASES[name]
    if (name, training) in NOT_TORCHS:
        with pytest.raises((RuntimeError, NotImplementedError)):
            case(torchs, training)
        theirs = case(torchs, False)
    else:
        theirs = case(torchs, training)
    ours = case(normalize, training)
    half = name in ("autocast", "bfloat16")
    for a, b in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
        tolerance = {"rtol": 0.02, "atol": 0.02} if half else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(a, b, **tolerance)


USES_OF_DENSE = [
    *("grad", "vjp", "jacrev", "jacfwd", "hessian", "jvp", "jvp of the input", "vmap"),
    *("hessian of the input", "gradients of samples", "stack_module_state", "dual input"),
    *("grad of stack_module_state", "dual weight", "make_fx", "export", "compile, eager"),
    *("compile, aot_eager", "jacobian, vectorized", "twice differentiated", "checkpoint"),
    *("no_grad", "switched", "deepcopy", "remove_parametrizations", "share_memory"),
]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", USES_OF_DENSE)
def test_operators_go_wherever_matrices_do(name, training, monkeypatch):
    one_pixel = lambda normalize, training: settled(normalize, OnePixel(), training)  # noqa: E731
    monkeypatch.setitem(globals(), "dense", one_pixel)
    options = {"norm": "operator", "input_size": 1}
    ours = lambda layer, **steps: spectral_normalize(layer, **options, **steps)  # noqa: E731
    assert_agreement(name, training, ours)


# --- where ours does more, or it takes more than one call to see --------------------------------


def replaced(layer: nn.Module, value: torch.Tensor) -> float:
    """Norm in evaluation mode after the weight was overwritten past every counter."""
    original(layer).data.copy_(value)
    return norm(layer.weight)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("with_grad", [True, False])
def test_what_evaluation_keeps_is_never_another_weights(threads, with_grad):
    torch.set_num_threads(threads)
    first = torch.diag(torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64))
    layer = settled(spectral_normalize, nn.Linear(3, 3, bias=False).double(), training=False)
    with torch.set_grad_enabled(with_grad):
        assert replaced(layer, first) == pytest.approx(1, abs=0.05)
        for corner in (100.0, 200.0):  # the part that the vectors see stays the same
            other = first.clone()
            other[2, 2] = corner
            assert replaced(layer, other) == pytest.approx(1)
        kept = layer.parametrizations.weight[0]._kept
        assert torch.equal(layer.weight, layer.weight)
        assert layer.parametrizations.weight[0]._kept is kept  # found once
    torch.set_num_threads(1)


def test_evaluation_depends_on_the_vectors_that_are_loaded():
    layer = dense(spectral_normalize, False)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.parametrizations.weight[0]._v.mul_(torch.tensor([1.0, 0.5, 1.5, 1.0]).double())
    assert not torch.equal(layer.weight, before)


EXTREMES = [
    (torch.float32, (1e-24, 1e-15, 1e19, 1e25, 1e37)),
    (torch.float64, (1e-200, 1e155, 1e300)),
    (torch.complex128, (1e-200, 1e155, 1e300)),
]


def extreme(kind: str, scale: float, dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor]:
    """A layer of a weight whose squares leave the range of the dtype, and the true quotient."""
    shape, options = (4,) if kind == "vector" else (3, 4), {}
    layer = nn.LayerNorm(4, dtype=dtype) if kind == "vector" else nn.Linear(4, 3, dtype=dtype)
    if kind == "operator":
        shape, options = (3, 4, 1), {"norm": "operator", "input_size": 1}
        layer = nn.Conv1d(4, 3, 1, dtype=dtype)
    weight = gaussian(*shape).to(dtype)
    layer.weight.data.copy_(scale * weight)
    options |= {"dim": 1} if kind == "columns" else {}
    layer = spectral_normalize(layer, n_power_iterations=300, eps=scale / 1e20, **options)
    return layer, weight / torch.linalg.matrix_norm(weight.reshape(-1, 4), 2)


@pytest.mark.parametrize("kind", ["matrix", "columns", "operator", "vector"])
@pytest.mark.parametrize(("dtype", "scale"), [(d, s) for d, scales in EXTREMES for s in scales])
def test_a_square_out_of_range_is_no_norm(kind, dtype, scale):
    layer, expected = extreme(kind, scale, dtype)
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode).weight.detach(), expected)
    norm = layer.parametrizations.weight[0]
    torch.testing.assert_close(vmap(norm)(original(layer).detach()[None])[0], expected)


@pytest.mark.parametrize("kind", ["matrix", "columns", "operator"])
@pytest.mark.parametrize("scale", [1e19, 1e20, 1e25, 1e30])
def test_gradients_of_weights_whose_squares_overflow(kind, scale):
    """By every road: ``1/σ²`` is 0 in float32, and with it was a term of the gradient."""
    layer, _ = extreme(kind, scale, torch.float32)
    w = original(layer)
    g = single(*w.shape, seed=1)
    exact = (w.detach().double() / scale).requires_grad_()
    quotient = exact / torch.linalg.matrix_norm(exact.reshape(3, 4), 2)
    expected = torch.autograd.grad(quotient, exact, g.double())[0].float() / scale
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5 / scale)
    norm = layer.parametrizations.weight[0]
    for mode in (True, False):
        layer.train(mode)
        close(torch.autograd.grad(layer.weight, w, g)[0], expected)
        close(torch.autograd.grad(layer.weight, w, g, create_graph=True)[0].detach(), expected)
        close(grad(lambda x: (norm(x) * g).sum())(w.detach()), expected)


def test_a_counter_of_operations_changes_no_weight():
    layer = spectral_normalize(nn.Linear(40, 30, bias=False))
    _ = layer.weight, layer.eval().weight
    original(layer).data = torch.eye(30, 40) * torch.linspace(1, 9, 40)
    with FlopCounterMode(display=False):
        counted = layer.weight
    assert torch.equal(counted, layer.weight)
    assert norm(counted) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_kind", ["matrix", "operator"])
def test_the_modes_that_record_nothing(training, norm_kind):
    """Made, read and assigned to in inference mode, then trained outside."""

    def make() -> nn.Module:
        layer = nn.Linear(4, 3) if norm_kind == "matrix" else OnePixel().float()
        return spectral_normalize(layer, norm=norm_kind, input_size=1).train(training)

    with torch.inference_mode():
        layer = make()
        layer.weight = 2 * layer.weight
        inside = layer(single(2, 4)).tolist()
    layer = make()
    with torch.inference_mode():
        inside = layer(single(2, 4)).tolist()
    assert not any(buffer.is_inference() for buffer in layer.buffers())
    outside = layer(single(2, 4))
    outside.sum().backward()
    if not training:
        assert outside.tolist() == inside


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv2d(3, 4, 3)], ids=str)
def test_no_weight_of_another_shape_or_dtype_is_assigned(layer):
    """Torch takes another shape, which no layer can use, and computes vectors before it refuses."""
    layer = spectral_normalize(copy.deepcopy(layer))
    old = layer.weight.detach()
    state = {name: x.clone() for name, x in layer.state_dict().items()}
    shape = rf"float32 of shape \({', '.join(map(str, old.shape))},?\) cannot become"
    for value, error, message in [
        (old[1:], ValueError, rf"{shape} torch.float32 of shape \(3"),
        (old[..., None], ValueError, shape),
        (old.double(), ValueError, rf"{shape} torch.float64"),
        (old.long(), TypeError, "must be a floating-point tensor, got torch.int64 of shape"),
        (1.0, TypeError, "must be a floating-point tensor, got float"),
    ]:
        with pytest.raises(error, match=message):
            layer.weight = value
        assert all(torch.equal(x, state[name]) for name, x in layer.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_gradient_of_a_complex_weight(training):
    weight = torch.complex(gaussian(3, 4), gaussian(3, 4, seed=1)).requires_grad_()
    layer = settled(spectral_normalize, nn.Linear(4, 3, dtype=torch.complex128), training)
    layer.weight = weight.detach()
    normalize = layer.parametrizations.weight[0]
    for _ in range(500):
        _ = layer.train().weight
    state = {name: x.clone() for name, x in normalize.named_buffers()}
    layer.train(training)

    def access(w: torch.Tensor) -> torch.Tensor:
        normalize._u.copy_(state["_u"]), normalize._v.copy_(state["_v"])
        return torch.view_as_real(normalize(w))

    assert torch.autograd.gradcheck(access, weight, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(4, 3), (5, 4)),
        (nn.Conv2d(2, 3, 3), (1, 2, 5, 5)),
        (nn.ConvTranspose2d(2, 3, 3), (1, 2, 5, 5)),
        (nn.LayerNorm(4), (5, 4)),
    ],
    ids=str,
)
def test_legacy_checkpoints_are_read(layer, x):
    old = nn.utils.spectral_norm(copy.deepcopy(layer).double())
    for _ in range(200):
        old(gaussian(*x))
    saved = old.eval().state_dict()
    new = nn.Sequential(spectral_normalize(copy.deepcopy(layer).double())).eval()
    new.load_state_dict({f"0.{name}": value for name, value in saved.items()})
    torch.testing.assert_close(new(gaussian(*x)), old(gaussian(*x)))
    assert "weight_orig" in saved  # the caller's own dictionary is as it was
    without_v = {k: v for k, v in saved.items() if k != "weight_v"}
    new[0].load_state_dict(without_v)
    torch.testing.assert_close(new(gaussian(*x)), old(gaussian(*x)), rtol=1e-3, atol=1e-3)
    new[0].load_state_dict(new[0].state_dict())
    parametrize.remove_parametrizations(new[0], "weight")
    with pytest.raises(RuntimeError, match="weight_orig"):
        new[0].load_state_dict(saved)


def test_pickle_is_refused_as_torchs_is():
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(dense(spectral_normalize, True))


def test_repr_shows_what_was_asked_for():
    layer = spectral_normalize(nn.Linear(4, 3), n_power_iterations=2, coefficient=0.5, at_most=True)
    shown = "(n_power_iterations=2, dim=0, coefficient=0.5, at_most=True)"
    assert f"MatrixNormalization{shown}" in repr(layer)
    kernel = spectral_normalize(nn.Conv1d(2, 3, 3), norm="operator", input_size=8)
    assert "ConvNormalization(n_power_iterations=1, input_size=(8,))" in repr(kernel)


DISTRIBUTED = """
import sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils.parametrizations import spectral_norm
from lipbook.normalization import spectral_normalize
store = sys.argv[1]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
results = {}
for threads in (1, 2):
    torch.set_num_threads(threads)
    for kind in ("fsdp", "ddp"):
        for normalize in (spectral_norm, spectral_normalize):
            torch.manual_seed(0)
            net = nn.Sequential(normalize(nn.Linear(4, 8)), nn.ReLU(), normalize(nn.Linear(8, 1)))
            if kind == "fsdp":
                mesh = init_device_mesh("cpu", (1,))
                for layer in net:
                    fully_shard(layer, mesh=mesh)
                fully_shard(net, mesh=mesh)
            else:
                net = nn.parallel.DistributedDataParallel(net)
            adam = torch.optim.Adam(net.parameters(), lr=0.1)
            for step in range(6):
                if step == 5:
                    net.eval()
                adam.zero_grad()
                loss = net(torch.ones(3, 4)).square().sum()
                loss.backward()
                adam.step()
            results[threads, kind, normalize is spectral_norm] = loss.item()
for (threads, kind, theirs), loss in results.items():
    assert abs(loss - results[threads, kind, True]) < 0.02 * abs(loss), results
dist.destroy_process_group()
"""


def test_sharded_and_replicated(tmp_path):
    """FSDP2 resizes the storage of what was read; DDP writes the buffers. On 1 and 2 threads."""
    command = [sys.executable, "-c", DISTRIBUTED, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
