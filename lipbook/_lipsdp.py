"""LipSDP (Fazlyab et al. 2019): the semidefinite bound on a chain of dense layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from lipbook._layers import DROPOUTS, RESHAPES, is_plain, layers
from lipbook._rules import UncertifiedError

# Slopes in [0, 1], whatever their options; a negative slope of LeakyReLU is looked at.
_MONOTONE = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Softsign, nn.LeakyReLU)


def lipsdp(network: nn.Module) -> float:
    r"""Solve the program for the largest Lipschitz constant that the slopes in [0, 1] allow.

    With a multiplier ``λ ≥ 0`` for each unit, ``‖y‖² ≤ γ ‖x‖²`` wherever the matrix M(γ, λ) is
    positive semidefinite. One multiplier a unit is what is valid; the coupled ones of the first
    version of the paper are not (Pauli et al. 2022). The solver's answer is not trusted: what M
    lacks, its least eigenvalue δ < 0, is added to γ, with the bound on each layer's values.
    """
    weights = _chain(network)
    try:
        import cvxpy as cp  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError("method='lipsdp' needs the package cvxpy: pip install cvxpy") from error
    scales = [max(float(np.linalg.norm(w, 2)), math.ulp(0.0)) for w in weights]
    unit = [w / s for w, s in zip(weights, scales, strict=True)]  # so that γ lies below 1
    if unit[0].shape[1] > len(unit[0]):  # directions of the input that no unit sees
        unit[0] = np.transpose(np.linalg.qr(unit[0].T, mode="r"))
    gamma = cp.Variable(nonneg=True)
    multipliers = [cp.Variable(len(w), nonneg=True) for w in unit[:-1]]
    problem = cp.Problem(
        cp.Minimize(gamma), [_matrix(cp, unit, gamma, [cp.diag(m) for m in multipliers]) >> 0]
    )
    problem.solve(solver=cp.SCS, eps=1e-6)  # an interior-point method takes ten times as long
    if gamma.value is None:
        raise RuntimeError(f"method='lipsdp' found no solution: {problem.status}")
    found = [np.diag(np.maximum(m.value, 0.0)) for m in multipliers]
    value = max(float(gamma.value), 0.0)
    lacking = -float(np.linalg.eigvalsh(_matrix(None, unit, value, found)).min())
    value += max(lacking + 1e-12, 0.0) * len(weights)  # each ‖φᵢ‖ ≤ ‖x‖, and so x itself
    return math.sqrt(min(value, 1.0)) * math.prod(scales)


def _matrix(cp: Any, weights: list[Any], gamma: Any, multipliers: list[Any]) -> Any:
    """Assemble M: ``γ I``, the multipliers on its diagonal, ``-½ Λᵢ Wᵢ`` beside it."""
    first = gamma * np.eye(weights[0].shape[1])
    diagonal = [first, *multipliers]
    diagonal[-1] = diagonal[-1] - weights[-1].T @ weights[-1]
    rows = []
    for i, block in enumerate(diagonal):
        row = [np.zeros((block.shape[0], other.shape[0])) for other in diagonal]
        row[i] = block
        if i > 0:
            row[i - 1] = -0.5 * multipliers[i - 1] @ weights[i - 1]
        if i + 1 < len(diagonal):
            row[i + 1] = (-0.5 * multipliers[i] @ weights[i]).T
        rows.append(row)
    return np.block(rows) if cp is None else cp.bmat(rows)


def _chain(network: nn.Module) -> list[Any]:
    """Return the weights of a chain; two layers without an activation between them are one."""
    weights: list[Any] = []
    joined = True
    for name, layer in layers(network):
        part: Any = layer
        if is_plain(part, nn.Linear):
            weight = part.weight.detach().to("cpu", torch.float64).numpy()
            if joined and weights:
                weights[-1] = weight @ weights[-1]
            else:
                weights.append(weight)
            joined = True
        elif (
            is_plain(part, *_MONOTONE) and 0 <= getattr(part, "negative_slope", 0) <= 1 and weights
        ):
            joined = False
        elif not is_plain(part, *RESHAPES, *DROPOUTS):
            raise UncertifiedError(
                f"method='lipsdp' takes an nn.Sequential of Linear layers and activations with "
                f"slopes in [0, 1], got {type(part).__name__} at {name!r}"
            )
    if not weights:
        raise UncertifiedError("method='lipsdp' takes an nn.Sequential that has Linear layers")
    return weights
