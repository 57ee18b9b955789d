"""Kinds of layers, chains of layers, and copies that may be changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from lipbook._layers import any_grad_mode, frozen_copy, is_plain, layers, normal_state, whole_shape


class Called(nn.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Steeper(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias)


class Implemented(nn.Linear):
    def _call_impl(self, x):
        return 2 * super()._call_impl(x)


class Repeated(nn.Sequential):
    def __iter__(self):
        return iter([*super().__iter__()] * 2)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        *((changed(2, 2), nn.Linear) for changed in (Doubled, Called, Implemented)),
        (Steeper(2, 2, 3), nn.Conv2d),
        (Repeated(), nn.Sequential),
    ],
)
def test_a_layer_is_plain_if_it_computes_what_its_class_does(layer, kind):
    assert is_plain(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)), nn.Linear)
    assert not is_plain(layer, kind)


@pytest.mark.parametrize("name", ["forward", "_call_impl"])
def test_a_layer_that_was_patched_is_not_plain(name):
    patched = nn.Linear(2, 2)
    setattr(patched, name, lambda x: x)
    assert not is_plain(patched, nn.Linear)


@pytest.mark.parametrize(
    "register", [register_module_forward_hook, register_module_forward_pre_hook]
)
def test_no_layer_is_plain_while_a_hook_is_on_all(register):
    handle = register(lambda *_: None)
    try:
        assert not is_plain(nn.Linear(2, 2), nn.Linear)
    finally:
        handle.remove()
    assert is_plain(nn.Linear(2, 2), nn.Linear)


def test_chains_are_walked_in_order_with_repeated_layers():
    shared = nn.Linear(2, 2)
    chain = nn.Sequential(shared, nn.Sequential(nn.ReLU(), shared), Doubled(2, 2))
    assert [name for name, _ in layers(chain)] == ["0", "1.0", "1.1", "2"]


def test_a_frozen_copy_computes_the_same_and_leaves_the_original_alone():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)).eval()
    twin = frozen_copy(layer)
    x = torch.randn(2, 3)
    assert torch.equal(twin(x), layer(x))
    assert isinstance(twin, nn.Linear)
    twin.weight.zero_()
    assert nn.utils.parametrize.is_parametrized(layer)
    assert layer.weight.abs().sum() > 0
    broken = nn.Linear(2, 2)
    broken.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="'weight' does not"):
        frozen_copy(broken)


def test_a_buffer_may_be_a_mask_and_none_may_be_sparse():
    masked = nn.Linear(2, 2)
    masked.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    assert torch.equal(frozen_copy(masked).mask, masked.mask)
    masked.mask.neg_()
    with pytest.raises(ValueError, match="'mask' does not"):
        frozen_copy(masked)
    masked.mask = torch.eye(2).to_sparse()
    with pytest.raises(TypeError, match="'mask' is sparse"):
        frozen_copy(masked)


def test_shapes():
    assert whole_shape(torch.Size([2, 3])) == (2, 3)
    with pytest.raises(ValueError, match="axes of at least 1"):
        whole_shape((2, 0))


def test_gradients_are_computed_in_any_mode_and_detached_for_those_who_want_none():
    @any_grad_mode
    def slope(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(x.square().sum(), x, create_graph=True)[0]

    x = torch.ones(2)
    assert slope(x).requires_grad
    with torch.inference_mode():
        result = slope(torch.ones(2))
    assert not result.requires_grad
    assert torch.equal(result, 2 * x)


def test_layers_that_share_a_weight_of_inference_mode_are_lent_an_ordinary_one_each():
    with torch.inference_mode():
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Sequential(), nn.BatchNorm1d(2))
    net[1].weight = net[0].weight
    net[2].append(net[0])  # one layer at two places
    own = {name: id(x) for name, x in net.state_dict(keep_vars=True).items()}
    with normal_state([net]):
        assert not any(x.is_inference() for x in net.state_dict().values())
    assert {name: id(x) for name, x in net.state_dict(keep_vars=True).items()} == own
