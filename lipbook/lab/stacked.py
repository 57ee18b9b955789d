"""Many small networks of one shape, trained at once: each is a row of one tensor.

A network of a few layers keeps neither a GPU nor a core busy. Hundreds of them, with other data,
settings and seeds, cost little more than one where each layer is one batched product. The loss of
a stack is the sum of its networks' losses, so that the gradient of each is its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

#: Of each parameter of one network, by name.
Shapes = Mapping[str, tuple[int, ...]]


def initial(shapes: Shapes, seeds: Sequence[int]) -> Tensor:
    """Draw the first weights of a stack, float32 on the CPU, a row a network.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        A matrix is (inputs, outputs), drawn uniformly within ±√(6 / inputs) as He et al. (2015)
        do; a parameter of one axis begins at 0.
    seeds : sequence of int
        One a network: equal seeds, equal weights.

    Returns
    -------
    Tensor, shape (len(seeds), total number of parameters)

    Examples
    --------
    >>> rows = initial({"W": (3, 2), "b": (2,)}, [5, 5, 6])
    >>> rows.shape, bool((rows[0] == rows[1]).all()), bool((rows[0] == rows[2]).all())
    (torch.Size([3, 8]), True, False)
    """
    drawn = {seed: _drawn(shapes, torch.Generator().manual_seed(seed)) for seed in set(seeds)}
    return torch.stack([drawn[seed] for seed in seeds])


def _drawn(shapes: Shapes, generator: torch.Generator) -> Tensor:
    parts = []
    for shape in shapes.values():
        uniform = 2 * torch.rand(shape, generator=generator) - 1
        reach = math.sqrt(6 / shape[0]) if len(shape) > 1 else 0.0
        parts.append((reach * uniform).flatten())
    return torch.cat(parts)


def parameters(rows: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Return the parameters of a stack by name, each of shape (networks, *shape): views.

    Examples
    --------
    >>> parts = parameters(torch.zeros(4, 8), {"W": (3, 2), "b": (2,)})
    >>> parts["W"].shape, parts["b"].shape
    (torch.Size([4, 3, 2]), torch.Size([4, 2]))
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    split = rows.split(sizes, dim=1)  # type: ignore[no-untyped-call]
    return {
        name: part.unflatten(1, shape)
        for (name, shape), part in zip(shapes.items(), split, strict=True)
    }


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a dense layer of each network to its own batch: ``x W + b``.

    Parameters
    ----------
    x : Tensor, shape (networks, n, inputs)
    weight : Tensor, shape (networks, inputs, outputs)
    bias : Tensor, shape (networks, outputs)

    Examples
    --------
    >>> affine(torch.ones(2, 5, 3), torch.ones(2, 3, 1), torch.zeros(2, 1)).shape
    torch.Size([2, 5, 1])
    """
    return torch.baddbmm(bias[:, None], x, weight)


class SideBySide(nn.Module):
    """Dense networks of one shape as one module, each for its own share of a batch.

    Small networks leave a processor idle between the calls for their layers. Side by side, a layer
    of all of them is one product. The mean loss over the batch is the mean of the networks' own
    losses: its gradient moves each network as if it were trained alone, up to a factor on which
    Adam's steps do not depend. What shuffles a batch, as `training.fit_critic` does with the fakes,
    mixes the shares: they have to be alike.

    Parameters
    ----------
    networks : sequence of nn.Sequential
        As `networks.mlp` makes them, of equal sizes. Their weights are copied.

    Raises
    ------
    TypeError
        If a network has another kind of layer with weights than `nn.Linear` with a bias.

    Examples
    --------
    >>> from lipbook.lab.networks import mlp
    >>> two = [mlp([2, 8, 1]), mlp([2, 8, 1])]
    >>> x = torch.randn(5, 2)
    >>> alone = torch.cat([network(x) for network in two])
    >>> torch.allclose(SideBySide(two)(torch.cat([x, x])), alone, atol=1e-6)
    True
    """

    def __init__(self, networks: Sequence[nn.Sequential]) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.activations: list[nn.Module | None] = []
        for same in zip(*networks, strict=True):
            dense = isinstance(same[0], nn.Linear) and same[0].bias is not None
            if not dense and any(True for _ in same[0].parameters()):
                raise TypeError(f"only nn.Linear with a bias may have weights, not {same[0]}")
            self.activations.append(None if dense else same[0])
            if dense:
                self.weights.append(torch.stack([layer.weight.detach().T for layer in same]))
                self.biases.append(torch.stack([layer.bias.detach() for layer in same]))

    def forward(self, x: Tensor) -> Tensor:
        """Map (networks · n, inputs) to (networks · n, outputs), the first n by the first one."""
        layers = zip(self.weights, self.biases, strict=True)
        x = x.reshape(len(self.biases[0]), -1, x.shape[-1])
        for activation in self.activations:
            if activation is None:
                weight, bias = next(layers)
                x = affine(x, weight, bias)
            else:
                x = activation(x)
        return x.flatten(0, 1)

    @torch.no_grad()
    def copy_into(self, networks: Sequence[nn.Sequential]) -> None:
        """Give each network of the stack, in their order, the weights that it has here."""
        for index, network in enumerate(networks):
            dense = [layer for layer in network if isinstance(layer, nn.Linear)]
            for layer, weight, bias in zip(dense, self.weights, self.biases, strict=True):
                layer.weight.copy_(weight[index].T)
                layer.bias.copy_(bias[index])


class Adam:
    """Adam (Kingma & Ba 2015) on a stack, each network with its own step size.

    Parameters
    ----------
    rows : Tensor, shape (networks, parameters)
        Changed in place by `step`.
    lr : Tensor, shape (networks,)
        The step sizes.
    betas : pair of float, default (0.9, 0.999)
        Of the two moments.

    Examples
    --------
    >>> rows = torch.zeros(2, 3)
    >>> Adam(rows, torch.tensor([0.1, 0.2])).step(torch.ones(2, 3))
    >>> rows[:, 0]
    tensor([-0.1000, -0.2000])
    """

    def __init__(
        self, rows: Tensor, lr: Tensor, *, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        self.rows, self.lr, self.betas = rows.detach(), lr[:, None], betas
        self.first, self.second = torch.zeros_like(self.rows), torch.zeros_like(self.rows)
        self.steps = 0

    def step(self, gradient: Tensor) -> None:
        """Take one step down."""
        self.steps += 1
        beta1, beta2 = self.betas
        self.first.lerp_(gradient, 1 - beta1)
        self.second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (self.second / (1 - beta2**self.steps)).sqrt_().add_(1e-8)
        self.rows.sub_(self.lr * self.first / (1 - beta1**self.steps) / scale)


def spectral_step(weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """One step of (15) on each matrix: estimates of the norms, and the next `u`.

    Parameters
    ----------
    weight : Tensor, shape (networks, m, n)
    u : Tensor, shape (networks, n)
        Of length 1; a constant.

    Returns
    -------
    tuple of Tensor
        Norms, shape (networks,), differentiable in the weights; vectors, shape (networks, n).

    Examples
    --------
    >>> norms, u = spectral_step(torch.diag(torch.tensor([3.0, 0.0]))[None], torch.eye(2)[:1])
    >>> norms, u
    (tensor([3.]), tensor([[1., 0.]]))
    """
    with torch.no_grad():
        v = torch.nn.functional.normalize(weight @ u[..., None], dim=1)
        u = torch.nn.functional.normalize(weight.mT @ v, dim=1)[..., 0]
    return (v.mT @ weight @ u[..., None])[:, 0, 0], u
