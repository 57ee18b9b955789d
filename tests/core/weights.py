"""What the tests of normalized weights share: layers and networks to normalize, and exact norms."""

from __future__ import annotations

import torch
from torch import nn


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def norm(matrix: torch.Tensor) -> float:
    return torch.linalg.matrix_norm(matrix.detach().double().flatten(1), 2).item()


def original(layer: nn.Module) -> nn.Parameter:
    return layer.parametrizations.weight.original


def critic(normalize=lambda layer: layer, seed: int = 0, dtype=torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 6, 6)),
        nn.Conv2d(1, 3, 3, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(3, 2, 3),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(50, 1),
    ).to(dtype)
    for layer in net:
        if hasattr(layer, "weight"):
            normalize(layer)
    return net
