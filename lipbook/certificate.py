"""An upper bound on a whole network's Lipschitz constant, by the operations that it performs.

`lipschitz.layer_product_bound` multiplies the constants of a chain of layers; this follows any
network that torch computes, so residual blocks, concatenations and attention on a ball too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from torch import nn

from lipbook._checks import check_module, check_positive
from lipbook._layers import frozen_copy, whole_shape
from lipbook._rules import UncertifiedError
from lipbook._walk import Step, checked_constants, follow

__all__ = ["Certificate", "Step", "UncertifiedError", "lipschitz_certificate"]

_MARGIN = 1e-6  # above all rounding in float64, and the error of an iterated norm


class Certificate(NamedTuple):
    """What `lipschitz_certificate` returns.

    Attributes
    ----------
    value : float
        An upper bound on the network's Lipschitz constant.
    steps : tuple of Step
        How it came about, an operation each.
    """

    value: float
    steps: tuple[Step, ...]


def lipschitz_certificate(
    module: nn.Module,
    input_shape: Sequence[int],
    *,
    radius: float = math.inf,
    constants: Mapping[str | type[nn.Module], float] | None = None,
    method: Literal["eclipse", "lipsdp"] = "eclipse",
) -> Certificate:
    """Bound the Lipschitz constant of a network from above, in evaluation mode.

    A copy of the network runs once, and the bound follows every operation. Affine layers multiply
    it by their exact norm, as their weights are now, normalized or not; a sum adds the bounds on
    its terms, so that a residual block ``x + g(x)`` has one more than g; what is joined is the root
    of the sum of the squares. The norm of a convolution is iterated and rounded up by 1e-6; the
    rule that stops the iteration fails with a probability of at most 5 % for a random start. Dense
    layers with activations whose slopes lie in [0, s] between them count with the bound
    ECLipsE-Fast (Xu & Sivaranjani 2024), which is never above the product. LayerNorm counts with
    ``max |γ| / √ε``, softmax with ½. Products of two values that move, such as attention, are
    bounded where both stay in a bounded range: on a ball, or behind a LayerNorm, tanh or sigmoid.
    What has no rule is refused by name.

    The value is rounded up by 1e-6, for rounding here. It is about the network in exact arithmetic,
    with the numbers of a copy in float64 that runs under ``torch.no_grad``, with a batch of 1: what
    a network rounds, in float32 say, can make tiny steps look steeper, and one that asks for its
    dtype, as `torch.finfo` does, may be another function in float32. The jump of torch's softplus
    at its threshold is neglected where float32 would round it away. What another thread writes into
    a tensor is not seen, nor what is hidden from torch on purpose: values that change places by
    `torch.utils.swap_tensors`, or that TorchScript reads for itself, by ``tolist`` or as text.
    Hooks and functions that the module holds have to leave the module alone: a copy is followed.

    Parameters
    ----------
    module : nn.Module
        From a batch to one tensor, each row of the batch by itself.
    input_shape : sequence of int
        Shape of one input, without the batch.
    radius : float, optional
        Bound the constant on the ball ``‖x‖ ≤ radius`` only.
    constants : mapping, optional
        Constants to use instead, by the name of a layer ("0", "block.conv", …) or by its class:
        of the map from all its inputs to all its results.
    method : {"eclipse", "lipsdp"}, default "eclipse"
        "lipsdp" solves the semidefinite program of Fazlyab et al. (2019) for an ``nn.Sequential``
        of ``nn.Linear`` and activations with slopes in [0, 1]; it needs the package cvxpy.

    Returns
    -------
    Certificate
        ``value, steps``.

    Raises
    ------
    UncertifiedError
        A TypeError: if the effect of an operation is not known, or depends on the data, or it may
        grow without limit.
    TypeError
        If the module cannot be copied or holds no numbers.
    ValueError
        If the module does not take such an input, or `constants` names none of its layers.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> _ = nn.init.constant_(net[0].weight, 0.5)  # its norm is 2
    >>> _ = nn.init.constant_(net[2].weight, 1.0)  # its norm is 2
    >>> value, steps = lipschitz_certificate(net, (4,))
    >>> round(value, 4)
    4.0
    >>> for layer, operation, bound in steps[:3]:
    ...     print(layer, operation, round(bound, 4))
    0 addmm 2.0
    1 relu 2.0
    2 addmm 4.0
    >>> lipschitz_certificate(nn.Hardshrink(), (8,))
    Traceback (most recent call last):
    UncertifiedError: the constant of operation 'hardshrink' is not known; ...
    """
    shape = whole_shape(input_shape)
    if radius != math.inf:
        radius = check_positive(radius, "radius")
    check_module(module, "module")
    given = checked_constants(module.named_modules(), constants or {})
    if method not in ("eclipse", "lipsdp"):
        raise ValueError(f"method must be 'eclipse' or 'lipsdp', got {method!r}")
    value, steps = follow(module, shape, radius=radius, constants=given)
    if method == "lipsdp":
        from lipbook._lipsdp import lipsdp  # cvxpy is no dependency of the package

        value = min(value, lipsdp(frozen_copy(module)))
    value *= 1 + _MARGIN
    return Certificate(value, (*steps, Step("", "output", value)))
