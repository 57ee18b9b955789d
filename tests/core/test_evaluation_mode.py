"""What evaluation mode keeps of a normalized weight is never another weight's, nor another graph's.

A copy has kept nothing: whatever was written, and by whichever way, the layer must agree with it to
the last bit, in value and gradient.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from weights import gaussian, original

from lipbook import _blas
from lipbook.normalization import spectral_normalize

NAME = "parametrizations.weight.original"
KINDS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: spectral_normalize(nn.Linear(4, 5)),
    "columns": lambda: spectral_normalize(nn.Linear(4, 5), dim=1),
    "kernel": lambda: spectral_normalize(nn.Conv2d(2, 3, 3)),
    "operator": lambda: spectral_normalize(nn.Conv1d(2, 3, 3), norm="operator", input_size=6),
    "vector": lambda: spectral_normalize(nn.LayerNorm(5)),
    "BatchNorm": lambda: spectral_normalize(nn.BatchNorm1d(5)),
    "bfloat16": lambda: spectral_normalize(nn.Linear(4, 5).bfloat16()),
    "at most": lambda: spectral_normalize(nn.Linear(4, 5), at_most=True, coefficient=0.7),
}


def fresh(kind: str) -> nn.Module:
    layer = KINDS[kind]().eval()
    w = original(layer)
    w.data.copy_(gaussian(*w.shape, seed=3))
    return layer


def other(layer: nn.Module) -> torch.Tensor:
    w = original(layer)
    return 3 * gaussian(*w.shape, seed=7).to(w)


def access(layer: nn.Module) -> list[torch.Tensor]:
    """The value without a gradient and with one, and two gradients of one graph."""
    with torch.no_grad():
        bare = layer.weight
    weight, w = layer.weight, original(layer)
    direction = gaussian(*w.shape, seed=11).to(w)
    first = torch.autograd.grad(weight, w, direction, retain_graph=True)
    return [bare, weight.detach(), *first, *torch.autograd.grad(weight, w, -2 * direction)]


def assert_nothing_stale(layer: nn.Module) -> None:
    for found, expected in zip(access(layer), access(copy.deepcopy(layer)), strict=True):
        assert torch.equal(found, expected)


def by_sgd(layer: nn.Module, **options: bool) -> None:
    w = original(layer)
    w.grad = gaussian(*w.shape, seed=5).to(w)
    torch.optim.SGD([w], lr=1.0, **options).step()
    w.grad = None


def by_adam(layer: nn.Module, **options: bool) -> None:
    w = original(layer)
    w.grad = gaussian(*w.shape, seed=5).to(w)
    torch.optim.Adam([w], lr=1.0, **options).step()
    w.grad = None


def by_numpy(layer: nn.Module) -> None:
    first = original(layer).detach().view(-1)[:1]
    first.view(torch.uint8).numpy()[-1] ^= 0x80  # the sign of an entry


def by_loading(layer: nn.Module, **options: bool) -> None:
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    state[NAME] = other(layer)
    layer.load_state_dict(state, **options)


def by_another_parameter(layer: nn.Module) -> None:
    layer.parametrizations.weight.original = nn.Parameter(other(layer))


def by_swapping_equals(layer: nn.Module) -> None:
    w = original(layer)
    torch.utils.swap_tensors(w, nn.Parameter(w.detach().clone()))


def by_swapping(layer: nn.Module) -> None:
    torch.utils.swap_tensors(original(layer), nn.Parameter(other(layer)))


def with_torch(write: Callable[[torch.Tensor, torch.Tensor], object]) -> Callable[..., None]:
    def call(layer: nn.Module) -> None:
        with torch.no_grad():
            write(original(layer), other(layer))

    return call


WRITES: dict[str, Callable[[nn.Module], object]] = {
    "copy_": with_torch(lambda w, new: w.copy_(new)),
    "data.copy_": with_torch(lambda w, new: w.data.copy_(new)),
    "data.mul_": with_torch(lambda w, _: w.data.mul_(1.5)),
    "data.neg_": with_torch(lambda w, _: w.data.neg_()),
    "one entry": with_torch(lambda w, _: w.data.view(-1)[-1:].add_(9)),
    "two rows": with_torch(lambda w, _: w.data[:2].copy_(w.data[:2].flip(0))),
    "data =": with_torch(lambda w, new: setattr(w, "data", new)),
    "set_": with_torch(lambda w, new: w.set_(new)),
    "assigned": lambda layer: setattr(layer, "weight", other(layer)),
    "NumPy": by_numpy,
    "another parameter": by_another_parameter,
    "swap_tensors": by_swapping,
    "swap_tensors with equal numbers": by_swapping_equals,
    "SGD": by_sgd,
    "foreach SGD": lambda layer: by_sgd(layer, foreach=True),
    "fused SGD": lambda layer: by_sgd(layer, fused=True),
    "foreach Adam": lambda layer: by_adam(layer, foreach=True),
    "fused Adam": lambda layer: by_adam(layer, fused=True),
    "load_state_dict": by_loading,
    "load_state_dict, assigned": lambda layer: by_loading(layer, assign=True),
    "double": lambda layer: layer.double(),
    "there and back": lambda layer: layer.double().float(),
    "trained in between": lambda layer: [layer.train().weight, layer.weight, layer.eval()],
    "frozen and released": lambda layer: [
        original(layer).requires_grad_(False),
        layer.weight,
        original(layer).requires_grad_(True),
    ],
    "NaN and back": lambda layer: [
        original(layer).data.fill_(torch.nan),
        layer.weight,
        original(layer).data.copy_(other(layer)),
    ],
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_written_nothing_stale_is_used(kind, write):
    layer = fresh(kind)
    access(layer)
    WRITES[write](layer)
    assert_nothing_stale(layer)


@pytest.mark.parametrize("kind", ["dense", "operator", "BatchNorm"])
def test_buffers_count_too(kind):
    layer = fresh(kind)
    access(layer)
    for name, buffer in list(layer.named_buffers()):
        if buffer.is_floating_point():
            buffer.copy_(buffer.abs() + 0.5)
            assert_nothing_stale(layer), name
    if kind != "BatchNorm":
        norm = layer.parametrizations.weight[0]
        norm._u = norm._u.neg()
        assert_nothing_stale(layer)


def test_steps_count_too():
    torch.manual_seed(0)
    layer = spectral_normalize(nn.Linear(64, 64)).eval()
    access(layer)
    layer.parametrizations.weight[0].n_power_iterations = 50
    assert_nothing_stale(layer)


def test_vectors_whose_versions_nobody_counts():
    with torch.inference_mode():
        layer = spectral_normalize(nn.Linear(64, 64)).double().eval()
        before = layer.weight
        for _ in range(20):
            _ = layer.train().weight
        assert layer.parametrizations.weight[0]._u.is_inference()
        assert not torch.equal(layer.eval().weight, before)
        assert torch.equal(layer.weight, copy.deepcopy(layer).weight)


@pytest.mark.parametrize("kind", ["dense", "columns", "kernel", "operator"])
def test_layers_that_were_cut(kind):
    """An input and an output less, and vectors to match, as pruning by surgery does it."""
    layer = fresh(kind)
    access(layer)
    norm, w = layer.parametrizations.weight[0], original(layer).detach()[1:, 1:].clone()
    layer.parametrizations.weight.original = nn.Parameter(w)
    if kind == "operator":
        norm._u, norm._v = norm._u[:, 1:].clone(), norm._v[:, 1:].clone()
    else:
        norm._u = torch.ones(w.shape[norm.dim])
        norm._v = torch.ones(w.numel() // len(norm._u))
    assert_nothing_stale(layer)
    for threads in (1, 2):  # by BLAS and by torch
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "get_num_threads", lambda n=threads: n)
            patch.setattr(_blas, "_SHORT", 0)
            layer.train().weight.sum().backward()
        assert original(layer).grad.shape == w.shape


@pytest.mark.parametrize("with_grad", [True, False])
def test_weights_of_a_functional_call_come_and_go(with_grad):
    layer, x = fresh("dense"), gaussian(2, 4).float()
    news = [gaussian(5, 4, seed=seed).float().requires_grad_(with_grad) for seed in (1, 2)]
    access(layer)
    for new in (*news, original(layer), *news):
        twin = copy.deepcopy(layer)
        twin.parametrizations.weight.original = nn.Parameter(new.detach().clone())
        with torch.set_grad_enabled(with_grad):
            found = functional_call(layer, {NAME: new}, (x,))
        assert torch.equal(found, twin(x))
        if with_grad:
            twin(x).square().sum().backward()
            (gradient,) = torch.autograd.grad(found.square().sum(), new)
            torch.testing.assert_close(gradient, original(twin).grad)


class Doubled(nn.Module):
    def forward(self, w):
        return 2 * w

    def right_inverse(self, w):
        return w / 2


def test_a_weight_that_is_computed_keeps_no_graph():
    """Behind another parametrization each access has a graph of its own, which goes with it."""
    layer = nn.Linear(4, 5)
    parametrize.register_parametrization(layer, "weight", Doubled())
    spectral_normalize(layer).eval()
    gradients = []
    for _ in range(3):
        layer.weight.square().sum().backward()
        gradients.append(original(layer).grad.clone())
        original(layer).grad = None
    assert torch.equal(gradients[0], gradients[2])
    assert layer.parametrizations.weight[1]._kept.weight is None


def test_one_factor_serves_any_number_of_graphs():
    layer, w = fresh("dense"), None
    w = original(layer)
    a, b = layer.weight.sin().sum(), layer.weight.cos().sum()
    (a + b).backward()
    together, w.grad = w.grad, None
    layer.weight.sin().sum().backward()
    layer.weight.cos().sum().backward()
    torch.testing.assert_close(w.grad, together)
    with pytest.raises(RuntimeError, match="second time"):
        a.backward()
    weight = layer.weight
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        weight.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_in_evaluation_mode(reentrant):
    layer, x = fresh("dense"), gaussian(3, 4).float().requires_grad_()
    layer(x).square().sum().backward()
    expected, original(layer).grad = original(layer).grad, None
    for _ in range(2):
        checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
        torch.testing.assert_close(original(layer).grad, expected)
        original(layer).grad = None


def test_hooks_of_the_weight_see_each_gradient():
    layer, seen = fresh("dense"), []
    original(layer).register_post_accumulate_grad_hook(lambda w: seen.append(w.grad.clone()))
    for _ in range(2):
        layer.weight.square().sum().backward()
        original(layer).grad = None
    assert len(seen) == 2
    assert torch.equal(*seen)


def test_what_is_kept_leads_not_back():
    layer = fresh("dense")
    norm, weight = copy.deepcopy(layer.parametrizations.weight[0]), original(layer)
    norm(weight).sum().backward()
    gone = weakref.ref(norm)
    gc.disable()
    try:
        del norm
        assert gone() is None
    finally:
        gc.enable()


def test_copies_and_pickles_keep_nothing():
    layer = fresh("dense")
    access(layer)
    norm = layer.parametrizations.weight[0]
    for twin in (copy.copy(norm), copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert twin._kept is None
        assert torch.equal(twin(original(layer)), layer.weight)
