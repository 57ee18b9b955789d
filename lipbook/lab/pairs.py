"""How steep the difference of two answers can be, for each pair: chapter 3's certificate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lipbook._checks import check_count
from lipbook._layers import is_plain
from lipbook.matrix_norms import induced_norm


@torch.inference_mode(False)
@torch.enable_grad()
def pair_constants(network: nn.Sequential, steps: int = 40) -> Tensor:
    """Bound the Lipschitz constant of each difference of two logits, by LipSDP's multipliers.

    Any positive multipliers that leave the matrices positive definite give a bound (Fazlyab et al.
    2019); the descent only looks for good ones. It starts from some that give no more than the
    product of the norms, and ends early where a step leaves the positive definite matrices.

    Parameters
    ----------
    network : Sequential
        Two dense layers or more, with a ReLU between each two.
    steps : int, default 40
        Of Adam, on the logarithms of the multipliers, for all pairs at once.

    Returns
    -------
    Tensor, shape (n_logits, n_logits)
        Symmetric, 0 on the diagonal; computed in float64, on the CPU.

    Raises
    ------
    TypeError
        If the network is another one.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
    >>> _ = net[2].weight.data.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    >>> round(pair_constants(net)[0, 1].item(), 1)  # of |x|; the product of the norms is 2
    1.0
    >>> pair_constants(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
    Traceback (most recent call last):
    TypeError: network must be two Linear layers or more with a ReLU between each two
    """
    *inner, outer = _weights(network)
    check_count(steps, "steps")
    one, other = torch.triu_indices(len(outer), len(outer), offset=1)
    last = (outer[one] - outer[other])[:, None]
    later = torch.linalg.matrix_norm(last, 2)  # the product of the norms behind a layer
    logs = []
    for weight in reversed(inner):
        start = (2 * later**2).clamp_min(1e-300).log()
        logs.append(start[:, None].repeat(1, len(weight)).requires_grad_())
        later = later * induced_norm(weight)
    adam = torch.optim.Adam(logs, lr=0.05)
    least = torch.full((len(last),), math.inf, dtype=torch.float64)
    for _ in range(steps):
        squared = _squared(inner, last, [log.exp() for log in logs])
        if squared is None:
            break
        least = torch.minimum(least, squared.detach().clamp_min(0))
        adam.zero_grad()
        squared.clamp_min(1e-300).log().sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
    constants = torch.zeros(len(outer), len(outer), dtype=torch.float64)
    constants[one, other] = least.sqrt()
    return constants + constants.T


def _squared(inner: list[Tensor], last: Tensor, multipliers: list[Tensor]) -> Tensor | None:
    b = last.mT @ last
    for weight, m in zip(reversed(inner), multipliers, strict=True):
        root, failed = torch.linalg.cholesky_ex((1 - 1e-9) * torch.diag_embed(m) - b)
        if bool(failed.any()):
            return None
        scaled = m[..., None] * weight
        b = scaled.mT @ torch.cholesky_solve(scaled, root) / 4
    top: Tensor = torch.linalg.eigvalsh(b)[..., -1]
    return top


def _weights(network: nn.Sequential) -> list[Tensor]:
    layers: list[Any] = list(network)
    between = all(is_plain(layer, nn.ReLU) for layer in layers[1::2])
    dense = [layer for layer in layers[::2] if is_plain(layer, nn.Linear)]
    if not between or len(layers) < 3 or 2 * len(dense) - 1 != len(layers):
        raise TypeError("network must be two Linear layers or more with a ReLU between each two")
    return [layer.weight.detach().to("cpu", torch.float64) for layer in dense]


def safe_steps(logits: Tensor, slopes: Tensor | float) -> Tensor:
    """Length of the step up to which each answer stays, if no lead shrinks faster than its slope.

    Parameters
    ----------
    logits : Tensor, shape (n, n_logits)
        A row an input; its largest entry is the answer.
    slopes : Tensor or float
        Bounds on the slope of each difference of two logits, of shape (n_logits, n_logits), or one
        for all.

    Returns
    -------
    Tensor, shape (n,)
        The first of the steps at which a rival could draw level.

    Examples
    --------
    >>> safe_steps(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[0, 4, 1], [4, 0, 1], [1, 1, 0]]))
    tensor([0.5000])
    >>> safe_steps(torch.tensor([[3.0, 1.0, 0.0]]), 4.0)
    tensor([0.5000])
    """
    top, answer = logits.max(1)
    steepest = slopes[answer] if isinstance(slopes, Tensor) else slopes
    steps = (top[:, None] - logits) / steepest
    steps[torch.arange(len(answer)), answer] = math.inf
    return steps.amin(1)
