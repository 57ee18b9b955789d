"""A constant for each pair of answers: above every slope, below the product of the norms."""

import math

import pytest
import torch
from torch import nn

from lipbook.lab.networks import mlp
from lipbook.lab.pairs import pair_constants, safe_steps


def network(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return mlp([*sizes]).double()


@pytest.mark.parametrize("sizes", [(6, 12, 4), (6, 12, 8, 4), (3, 8, 8, 8, 3)])
def test_constants_lie_between_the_slopes_and_the_products(sizes):
    net = network(*sizes)
    points = torch.randn(200, sizes[0], generator=torch.Generator().manual_seed(1)).double()
    jacobians = torch.func.vmap(torch.func.jacrev(net))(points).detach()
    *inner, outer = [layer.weight.detach() for layer in net[::2]]
    product = math.prod(torch.linalg.matrix_norm(weight, 2) for weight in inner)
    found = pair_constants(net)
    slopes = torch.func.vmap(lambda j: torch.linalg.norm(j[:, None] - j, dim=2))(jacobians)
    assert (slopes <= found + 1e-9).all()
    assert (found <= product * torch.cdist(outer, outer) + 1e-9).all()
    assert torch.equal(found, found.T)


def test_a_longer_descent_never_gives_more():
    net = network(6, 12, 8, 4)
    assert (pair_constants(net, 80) <= pair_constants(net, 20)).all()


def test_two_equal_rows_never_differ():
    net = network(6, 12, 3)
    net[2].weight.data[1] = net[2].weight.data[0]
    found = pair_constants(net)
    assert found[0, 1] < 1e-9
    assert found[0, 2] > 0.1


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(4, 2)),
    ],
)
def test_other_networks_are_refused(net):
    with pytest.raises(TypeError, match="a ReLU between"):
        pair_constants(net)


def test_the_first_rival_to_draw_level_counts():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 5.0]])
    slopes = torch.tensor([[0.0, 4, 30], [4, 0, 1], [30, 1, 0]])
    assert safe_steps(logits, slopes).tolist() == pytest.approx([0.1, 1 / 6])
    assert safe_steps(logits, 2.0).tolist() == [1.0, 2.0]
