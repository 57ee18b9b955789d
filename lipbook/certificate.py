"""An upper bound of a whole network's Lipschitz constant, by the graph of its operations.

`lipschitz.layer_product_bound` multiplies the constants of a chain of layers; this follows any
network that `torch.fx` can trace, so residual blocks and concatenations too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, cast

import pandas as pd
import torch
from torch import Tensor, fx, nn

from lipbook._layers import evaluation_mode
from lipbook.lipschitz import activation_constant, layer_matrix, layer_product_bound
from lipbook.matrix_norms import induced_norm

_BATCH = 3  # inputs that are sent through, to see where their axis goes
_WIDENED = 1 + 1e-6  # for the rounding of a norm in float64, or of its iteration
_SUMS = ("add", "iadd", "sub", "isub", "neg")
_RESHAPES = (
    *("flatten", "view", "reshape", "squeeze", "unsqueeze", "contiguous"),
    *("permute", "transpose", "movedim"),
)
_ACTIVATIONS = (
    *("relu", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "abs"),
    *("tanh", "sigmoid", "hardtanh", "hardsigmoid", "hardswish", "logsigmoid"),
)


class Certificate(NamedTuple):
    """An upper bound of a network's Lipschitz constant, and how it came about.

    `table` has one row for each operation, with columns `operation`, `constant`, its own factor
    (NaN for a sum and the like), and `bound`, of the network from its input to there.
    """

    value: float
    table: pd.DataFrame


def lipschitz_certificate(
    module: nn.Module,
    input_size: Sequence[int],
    *,
    constants: Mapping[str | type[nn.Module], float] | None = None,
) -> Certificate:
    """Bound the Lipschitz constant of a network from above, in evaluation mode.

    The network is traced by `torch.fx`, and the bound follows its graph: layers multiply it by
    the constants of `layer_product_bound`, with the exact norms of affine layers as they are
    now, normalized or not; a sum adds those of its terms, so that a residual block
    ``x + g(x)`` has one more than g; a concatenation is the root of the sum of their squares.
    Each factor is widened by 1e-6 for rounding. (The norm of a convolution is iterative, and
    right with the probability that `golub_kahan_lanczos` states.)

    Parameters
    ----------
    module : nn.Module
        Of layers that `layer_product_bound` knows, sums, differences and multiples, reshapes,
        concatenations, element-wise activations, means and sums over axes but the batch's.
    input_size : sequence of int
        Shape of one input, without the batch.
    constants : mapping, optional
        Constants to use instead, by the name of a layer ("0", "block.conv", …) or by its class.

    Returns
    -------
    Certificate
        ``value, table``.

    Raises
    ------
    TypeError
        If the constant of an operation is not known, or the forward pass cannot be traced.
    ValueError
        If the module does not take such an input, or `constants` names none of its layers.

    Examples
    --------
    >>> from lipbook.normalization import spectral_normalize
    >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> for layer in (net[0], net[2]):
    ...     _ = spectral_normalize(layer, n_power_iterations=100)
    >>> round(lipschitz_certificate(net, (8,)).value, 3)
    1.0
    >>> lipschitz_certificate(nn.Softmax(1), (8,))
    Traceback (most recent call last):
    TypeError: the constant of layer '0' (Softmax) is not known; pass ...
    """
    constants, root = constants or {}, nn.Sequential(module)
    try:
        graph = fx.GraphModule(root, _Tracer(constants).trace(root))
    except fx.proxy.TraceError as error:
        raise TypeError(f"module must be traceable by torch.fx: {error}") from error
    try_out(module, input_size)
    known = {key for name, layer in module.named_modules() for key in (name, type(layer))}
    if unknown := [key for key in constants if key not in known]:
        raise ValueError(f"constants names {unknown[0]!r}, which is no layer of the module")
    certifier = _Certifier(graph, constants)
    with evaluation_mode(module):
        certifier.run(_zeros(module, input_size))
    table = pd.DataFrame(certifier.rows, columns=["operation", "constant", "bound"])
    return Certificate(certifier.rows[-1][-1], table)


class _Tracer(fx.Tracer):
    """Looks into no layer whose constant is given."""

    def __init__(self, constants: Mapping[str | type[nn.Module], float]) -> None:
        super().__init__()
        self.constants = constants

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        given = type(m) in self.constants or module_qualified_name[2:] in self.constants
        return given or super().is_leaf_module(m, module_qualified_name)


class _Certifier(fx.Interpreter):
    """Runs a traced network, and carries a bound from its input along with each value."""

    def __init__(
        self, graph: fx.GraphModule, constants: Mapping[str | type[nn.Module], float]
    ) -> None:
        super().__init__(graph)
        self.constants = constants
        self.bounds: dict[fx.Node, float] = {}
        self.rows: list[tuple[str, float, float]] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "placeholder":
            self.bounds[n] = 1.0
        elif n.op == "output":
            self._record("output", math.nan, self._bound(n.args[0]))
        elif isinstance(value, Tensor) and any(map(self._bound, n.all_input_nodes)):
            self.bounds[n] = self._layer(n) if n.op == "call_module" else self._function(n, value)
        return value

    def _bound(self, argument: Any) -> float:
        """Return the bound of a value; parameters, shapes and numbers do not move."""
        return self.bounds.get(argument, 0.0) if isinstance(argument, fx.Node) else 0.0

    def _record(self, operation: str, constant: float, bound: float) -> float:
        self.rows.append((operation, constant, bound))
        return bound

    def _layer(self, node: fx.Node) -> float:
        name, layer = str(node.target).removeprefix("0."), self.fetch_attr(str(node.target))
        source = self.env[cast(fx.Node, node.args[0])]
        constant = self.constants.get(name, self.constants.get(type(layer)))
        if constant is None:
            try:
                constant = _WIDENED * _layer_constant(layer, source.shape[1:])
            except (TypeError, ValueError) as error:
                what = f"layer {name!r} ({type(layer).__name__})"
                raise self._unknown(what) from error
        return self._record(name, constant, constant * self._bound(node.args[0]))

    def _function(self, node: fx.Node, value: Tensor) -> float:
        name = getattr(node.target, "__name__", str(node.target)).removesuffix("_")
        arguments, options = self.fetch_args_kwargs_from_env(node)
        terms: Any = node.args[0] if name == "cat" else node.args
        bounds = [self._bound(term) for term in terms]
        if value.shape[:1] != (_BATCH,):
            raise self._unknown(f"operation {name!r} on the axis of the batch")
        if name in _SUMS and not options:
            # Broadcasting repeats the entries of the smaller term.
            repeats = (value.numel() / getattr(x, "numel", value.numel)() for x in arguments)
            bound = sum(b * math.sqrt(r) for b, r in zip(bounds, repeats, strict=True))
            return self._record(name, math.nan, bound)
        if name == "cat":
            return self._record(name, math.nan, math.hypot(*bounds))
        constant = self._factor(name, node, arguments, options, value)
        return self._record(name, constant, constant * sum(bounds))

    def _factor(
        self, name: str, node: fx.Node, arguments: Any, options: Any, value: Tensor
    ) -> float:
        if name in _RESHAPES:
            return 1.0
        if name in _ACTIVATIONS:
            return activation_constant(_Elementwise(node.target, arguments[1:], options))
        if name in ("mul", "imul", "truediv", "div", "itruediv") and not options:
            numbers = [x for x in arguments if isinstance(x, int | float)]
            if len(numbers) == 1 and (name in ("mul", "imul") or numbers[0] is arguments[1]):
                return abs(numbers[0] if name in ("mul", "imul") else 1 / numbers[0])
        if name in ("mean", "sum"):
            added = arguments[0].numel() / value.numel()
            return math.sqrt(added if name == "sum" else 1 / added)
        raise self._unknown(f"operation {name!r}")

    def _unknown(self, what: str) -> TypeError:
        return TypeError(
            f"the constant of {what} is not known; pass constants={{name: value}} with the name "
            "or the class of a layer, and make a layer of what is none"
        )


def _layer_constant(layer: nn.Module, shape: Sequence[int]) -> float:
    try:
        return layer_product_bound(layer, shape).value
    except TypeError:  # of no class that it knows, but affine perhaps
        return float(induced_norm(layer_matrix(layer, shape).detach().double()))


class _Elementwise(nn.Module):
    """An activation that was called as a function."""

    def __init__(self, function: Any, arguments: Any, options: Any) -> None:
        super().__init__()
        self.function = getattr(Tensor, function) if isinstance(function, str) else function
        self.arguments, self.options = arguments, options

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.function(x, *self.arguments, **self.options)
        return output


def _zeros(module: nn.Module, shape: Sequence[int]) -> Tensor:
    """Return zero inputs of a module, in the dtype and on the device of its parameters."""
    like = next(chain(module.parameters(), module.buffers()), torch.empty(0))
    return torch.zeros(_BATCH, *shape, dtype=like.dtype, device=like.device)


def try_out(module: nn.Module, shape: Sequence[int]) -> None:
    """Refuse the shape of one input, without the batch, that `module` does not take.

    Raises
    ------
    ValueError
        With the module's own message.

    Examples
    --------
    >>> try_out(nn.Linear(2, 3), (2,))
    >>> try_out(nn.Linear(2, 3), (4,))
    Traceback (most recent call last):
    ValueError: module does not take inputs of shape (4,): mat1 and mat2 shapes cannot be ...
    """
    try:
        with evaluation_mode(module), torch.no_grad():
            module(_zeros(module, shape))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"module does not take inputs of shape {(*shape,)}: {error}") from error
