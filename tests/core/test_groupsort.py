"""GroupSort: a permutation of each group, and what follows from that."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lipbook.certificate import lipschitz_certificate
from lipbook.groupsort import GroupSort
from lipbook.lipschitz import jacobian_norms

modest = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
sizes = st.sampled_from([2, 3, 4, 6, 12, None])


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@modest
@given(seed=seeds, size=sizes)
def test_each_group_is_sorted_and_keeps_its_entries(seed, size):
    x = gaussian(3, 5, 12, seed=seed)
    y = GroupSort(size)(x)
    for before, after in zip(x.split(size or 12, -1), y.split(size or 12, -1), strict=True):
        assert torch.equal(after, before.sort(-1).values)
        assert (after.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("dim", [0, 1, -2])
@pytest.mark.parametrize("size", [None, 2, 4])
def test_another_axis_is_sorted_as_the_last_one_is(dim, size):
    x = gaussian(4, 8, 12)
    expected = GroupSort(size)(x.movedim(dim, -1)).movedim(-1, dim)
    assert torch.equal(GroupSort(size, dim=dim)(x), expected)
    assert not torch.equal(expected, GroupSort(size)(x))


@modest
@given(seed=seeds)
def test_groups_of_two_are_maxmin(seed):
    x = gaussian(4, 10, seed=seed)
    a, b = x[:, ::2], x[:, 1::2]
    expected = torch.stack([torch.minimum(a, b), torch.maximum(a, b)], -1).flatten(1)
    assert torch.equal(GroupSort(2)(x), expected)


@modest
@given(seed=seeds, size=sizes)
def test_every_gradient_keeps_its_length(seed, size):
    x = gaussian(4, 12, seed=seed).requires_grad_()
    gradient = gaussian(4, 12, seed=seed + 1)
    GroupSort(size)(x).backward(gradient)
    torch.testing.assert_close(x.grad.norm(dim=1), gradient.norm(dim=1))
    assert torch.equal(x.grad.sort(-1).values, gradient.sort(-1).values)


@modest
@given(seed=seeds, size=sizes, distance=st.sampled_from([1e-3, 1.0, 10.0]))
def test_no_pair_of_points_is_pulled_apart(seed, size, distance):
    x = gaussian(50, 12, seed=seed)
    y = x + distance * gaussian(50, 12, seed=seed + 1)
    for p in (1, 2, torch.inf):
        before = torch.linalg.vector_norm(x - y, p, dim=-1)
        after = torch.linalg.vector_norm(GroupSort(size)(x) - GroupSort(size)(y), p, dim=-1)
        assert (after <= before * (1 + 1e-12)).all()


def test_a_network_of_orthogonal_layers_has_gradients_of_length_1():
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8, dtype=torch.float64) for _ in range(3)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    last = nn.Linear(8, 1, dtype=torch.float64)
    last.weight.data = F.normalize(last.weight.data)
    for activation, shortens in ((GroupSort(2), False), (nn.ReLU(), True)):
        net = nn.Sequential(*(m for layer in layers for m in (layer, activation)), last)
        norms = jacobian_norms(net, gaussian(20, 8))
        assert torch.allclose(norms, torch.ones_like(norms)) is not shortens


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_shape_and_dtype_stay(dtype):
    for shape in [(6,), (2, 6), (2, 3, 6)]:
        y = GroupSort(3)(torch.ones(shape, dtype=dtype))
        assert (y.shape, y.dtype) == (shape, dtype)


def test_other_strides_give_the_same():
    x = gaussian(6, 4).T
    assert not x.is_contiguous()
    assert torch.equal(GroupSort(2)(x), GroupSort(2)(x.contiguous()))
    assert torch.equal(GroupSort(2)(x[:, ::3]), GroupSort(2)(x[:, ::3].contiguous()))


def test_the_input_is_left_alone_and_there_is_nothing_to_train():
    x = gaussian(2, 4)
    before = x.clone()
    layer = GroupSort(4)
    layer(x)
    assert torch.equal(x, before)
    assert not layer.state_dict()
    assert str(layer) == "GroupSort(group_size=4)"
    assert str(GroupSort(dim=1)) == "GroupSort(group_size=None, dim=1)"


@pytest.mark.parametrize("size", [2, 4])
def test_equal_entries_have_a_permutation_as_jacobian_too(size):
    x = torch.ones(1, 4, dtype=torch.float64, requires_grad=True)
    gradient = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    GroupSort(size)(x).backward(gradient)
    assert torch.equal(x.grad.sort().values, gradient)


@pytest.mark.parametrize("size", [2, 4])
def test_a_certificate_knows_it(size):
    net = nn.Sequential(nn.Linear(4, 4), GroupSort(size), nn.Linear(4, 1))
    bound = lipschitz_certificate(net, (4,)).value
    norms = (torch.linalg.matrix_norm(layer.weight.detach(), 2) for layer in net[::2])
    assert bound == pytest.approx(torch.stack([*norms]).prod().item(), rel=1e-5)


def test_a_constant_that_is_given_certifies_it():
    net = nn.Sequential(nn.Linear(4, 4), GroupSort(2), nn.Linear(4, 1))
    bound = lipschitz_certificate(net, (4,), constants={GroupSort: 1.0}).value
    norms = (torch.linalg.matrix_norm(layer.weight.detach(), 2) for layer in net[::2])
    assert bound == pytest.approx(torch.stack([*norms]).prod().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (1, ValueError, "group_size must be at least 2, got 1"),
        (0, ValueError, "group_size must be at least 2, got 0"),
        (2.0, TypeError, "group_size must be an integer, got float"),
        (True, TypeError, "group_size must be an integer, got bool"),
    ],
)
def test_refused_sizes(size, error, message):
    with pytest.raises(error, match=message):
        GroupSort(size)


@pytest.mark.parametrize("width", [1, 5, 7])
def test_a_group_that_is_left_over_is_refused(width):
    message = rf"must divide the length of axis -1, got 3 for shape \(3, {width}\)"
    with pytest.raises(ValueError, match=message):
        GroupSort(3)(torch.zeros(3, width))


def test_an_axis_that_is_not_there_is_refused():
    with pytest.raises(IndexError, match="out of range"):
        GroupSort(2, dim=1)(torch.zeros(4))


def test_an_empty_batch_stays_empty():
    for activation in (GroupSort(), GroupSort(2)):
        assert activation(torch.zeros(0, 4)).shape == (0, 4)
