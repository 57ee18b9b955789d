"""Chapter 1: how much a function stretches distances, from below, from above, and exactly.

Distances are Euclidean, over all axes but the batch. A function maps a batch (n, …) to a batch
(n, …), row by row; a module is taken in evaluation mode, and its own mode is restored. Everywhere,
a tensor that is not floating point raises TypeError, an empty or not finite one ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, jacrev, vmap
from torch.nn import functional as F
from torch.nn.utils.parametrize import type_before_parametrizations as _class

from lipbook._checks import (
    check_count,
    check_labelled,
    check_module,
    check_positive,
    check_tensor,
    is_transformed,
    is_transforming,
    untransformable,
    untransformed,
    unusable,
)
from lipbook._layers import (
    ACTIVATIONS,
    CONVOLUTIONS,
    DROPOUTS,
    RESHAPES,
    any_grad_mode,
    evaluation_mode,
    is_plain,
    layers,
    mixes_rows,
    told_why,
    whole_shape,
)
from lipbook._rules import layer_norm, times
from lipbook._walk import checked_constants, follow
from lipbook.matrix_norms import induced_norm

Function = Callable[[Tensor], Tensor]
Bound = float | Sequence[float] | Tensor
Array = NDArray[np.float64]

_NEGLECTED = 2.0**-24  # what float32 rounds away, of a number


@any_grad_mode
def difference_quotients(f: Function, x1: Tensor, x2: Tensor) -> Tensor:
    """``‖f(x₁) - f(x₂)‖ / ‖x₁ - x₂‖`` for each pair of rows: what (3) bounds by C.

    Each is a lower bound on the Lipschitz constant, up to rounding: differences of near points have
    few correct digits, so take f and points in float64 where the last digits count.

    Parameters
    ----------
    f : callable
        From a batch to a batch.
    x1, x2 : Tensor, shape (n, ...)
        Of one shape, no row equal to its partner, else ValueError.

    Returns
    -------
    Tensor, shape (n,)
        At least float32, differentiable.

    Examples
    --------
    >>> x1, x2 = torch.tensor([[0.0], [1.0]]), torch.full((2, 1), 3.0)
    >>> difference_quotients(torch.square, x1, x2)
    tensor([3., 4.])
    >>> difference_quotients(torch.square, torch.zeros(1, 1), torch.zeros(1, 1))
    Traceback (most recent call last):
    ValueError: x1 and x2 must differ in every row, row 0 is the same
    """
    check_tensor(x1, "x1", min_ndim=1)
    check_tensor(x2, "x2", min_ndim=1)
    if x1.shape != x2.shape:
        raise ValueError(f"x1 and x2 must have one shape, got {(*x1.shape,)} and {(*x2.shape,)}")
    distances = torch.linalg.vector_norm(_rows(x1 - x2), dim=1)
    if not bool((apart := untransformed(distances) > 0).all()):
        row = int(apart.int().argmin()) % len(distances)
        raise ValueError(f"x1 and x2 must differ in every row, row {row} is the same")
    changes = torch.linalg.vector_norm(_rows(_outputs(f, x1) - _outputs(f, x2)), dim=1)
    quotients: Tensor = changes / distances
    return quotients


@any_grad_mode
def lower_bound_from_pairs(f: Function, points: Tensor) -> float:
    """Largest difference quotient (3) over all pairs of points.

    Parameters
    ----------
    f : callable
        From a batch to a batch.
    points : Tensor, shape (n, ...)
        Two distinct ones at least, else ValueError; n (n - 1) / 2 distances are held at once.

    Returns
    -------
    float
        A lower bound on the Lipschitz constant, up to rounding (see `difference_quotients`).

    Examples
    --------
    >>> lower_bound_from_pairs(torch.square, torch.tensor([[0.0], [1.0], [3.0]]))
    4.0
    >>> lower_bound_from_pairs(torch.square, torch.ones(5, 1))
    Traceback (most recent call last):
    ValueError: points must hold two distinct points, got 5 equal ones
    """
    points = check_tensor(points, "points", min_ndim=1).detach()
    if is_transformed(points):
        raise untransformable("lower_bound_from_pairs", "it is a number; call it outside")
    with torch.no_grad():
        outputs = _outputs(f, points)
    # pdist subtracts before it squares; cdist may not, and then loses half the digits.
    distances, images = F.pdist(_rows(points)), F.pdist(_rows(outputs))
    apart = distances > 0
    if not bool(apart.any()):
        raise ValueError(f"points must hold two distinct points, got {len(points)} equal ones")
    return (images[apart] / distances[apart]).max().item()


@any_grad_mode
def jacobian_norms(f: Function, points: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """Spectral norm of the Jacobian of f at each point: the local constants, as in (5).

    On an open convex domain their supremum is the Lipschitz constant.

    Parameters
    ----------
    f : callable
        From a batch to a batch, differentiable by `torch.func`.
    points : Tensor, shape (n, ...)
        At a kink, torch's choice of slope counts.
    chunk_size : int, optional
        Points treated at once, to bound the memory: n × outputs × inputs numbers otherwise.

    Returns
    -------
    Tensor, shape (n,)
        In the dtype of f's values, differentiable in the points and in f's parameters.

    Examples
    --------
    >>> jacobian_norms(torch.square, torch.tensor([[1.0, 3.0], [0.0, -1.0]]))
    tensor([6., 2.])
    >>> jacobian_norms(torch.square, torch.tensor([[float("nan")]]))
    Traceback (most recent call last):
    ValueError: points must be finite, got nan at index (0, 0); ...
    """
    check_tensor(points, "points", min_ndim=1)
    single: Function = lambda x: _outputs(f, x[None]).flatten()  # noqa: E731
    if chunk_size is not None:
        check_count(chunk_size, "chunk_size")
    jacobians = vmap(jacrev(single), chunk_size=chunk_size)(points)
    return induced_norm(jacobians.reshape(*jacobians.shape[:2], -1))


class JacobianMaximum(NamedTuple):
    """What `maximize_jacobian_norm` returns.

    Attributes
    ----------
    value : float
        The largest Jacobian norm that the ascent met.
    point : Tensor
        Where, of the shape of one input.
    """

    value: float
    point: Tensor


@any_grad_mode
def maximize_jacobian_norm(
    f: Function,
    start: Tensor,
    *,
    steps: int = 100,
    lr: float = 0.05,
    box: tuple[Bound, Bound] | None = None,
) -> JacobianMaximum:
    """Climb the Jacobian norm from several points at once by Adam, for a lower bound.

    The norm of a piecewise linear f is piecewise constant, so its gradient is zero and the ascent
    stays at its starts: the result is the largest over these, and more of them make a better one.

    Parameters
    ----------
    f : callable
        As for `jacobian_norms`, and twice differentiable where the ascent is to move.
    start : Tensor, shape (n, ...)
        One start or many.
    steps : int, default 100
        Gradient steps; 0 only evaluates the starts.
    lr : float, default 0.05
        Step size of Adam, in units of the input.
    box : pair, optional
        Lows and highs of the inputs, each a number or of the shape of one input (ValueError if
        they cross); every iterate is clamped to it.

    Returns
    -------
    JacobianMaximum
        `value` and `point`.

    Examples
    --------
    >>> starts = torch.tensor([[1.0], [-2.0]])
    >>> value, point = maximize_jacobian_norm(torch.sigmoid, starts)
    >>> round(value, 3), bool(point.abs() < 0.1)
    (0.25, True)
    >>> maximize_jacobian_norm(torch.sigmoid, torch.ones(1, 1), box=(1, 0))
    Traceback (most recent call last):
    ValueError: box must have its lows below its highs, got (1, 0)
    """
    check_tensor(start, "start", min_ndim=1)
    check_count(steps, "steps", least=0)
    if is_transformed(start):
        raise untransformable("maximize_jacobian_norm", "call it outside")
    low, high = _corners(box, start[0])

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        norms = jacobian_norms(f, x)
        return norms.sum(), norms

    points = start.detach().clone()
    optimizer = torch.optim.Adam([points], lr=check_positive(lr, "lr"), maximize=True)
    best = JacobianMaximum(-math.inf, points[0])
    for _ in range(steps + 1):
        points.clamp_(low, high)
        points.grad, (_, norms) = grad_and_value(objective, has_aux=True)(points)
        top = int(norms.argmax())
        if norms[top].item() > best.value:
            best = JacobianMaximum(norms[top].item(), points[top].clone())
        optimizer.step()
    return best


@any_grad_mode
def l2_attack(
    model: Function,
    inputs: Tensor,
    labels: Tensor,
    radius: float,
    *,
    steps: int = 20,
    step_size: float | None = None,
    box: tuple[Bound, Bound] | None = None,
) -> Tensor:
    """Raise the cross entropy inside an l2 ball around each input, by projected gradient ascent.

    The attack of Madry et al. 2018 without its random start, hence deterministic. A Lipschitz
    constant C limits it: the logits move by at most C · radius.

    Parameters
    ----------
    model : callable
        From inputs to logits of shape (n, n_classes).
    inputs : Tensor, shape (n, ...)
        Inside the box, if there is one, else ValueError.
    labels : Tensor, shape (n,)
        int64 classes to move away from.
    radius : float
        Largest l2 distance from each input.
    steps : int, default 20
        Gradient steps; a single one is the fast gradient method.
    step_size : float, optional
        Length of a step, ``2.5 * radius / steps`` by default.
    box : pair, optional
        Lows and highs of the inputs, each a number or of the shape of one input.

    Returns
    -------
    Tensor, shape (n, ...)
        The perturbed inputs, detached.

    Examples
    --------
    >>> l2_attack(nn.Identity(), torch.zeros(1, 2), torch.tensor([0]), 1.0)
    tensor([[-0.7071,  0.7071]])
    >>> l2_attack(nn.Identity(), torch.zeros(1, 2), torch.tensor([0]), -1.0)
    Traceback (most recent call last):
    ValueError: radius must be a finite number above 0, got -1.0
    """
    check_labelled(inputs, labels)
    if is_transforming():
        raise untransformable("l2_attack", "it takes batches, and its result is a constant")
    check_count(steps, "steps")
    check_positive(radius, "radius")
    length = check_positive(2.5 * radius / steps if step_size is None else step_size, "step_size")
    low, high = _corners(box, inputs[0])
    inputs = inputs.detach()
    if not bool(((inputs >= low) & (inputs <= high)).all()):
        raise ValueError(f"inputs must lie inside the box {box}; clamp them, or widen it")
    perturbed = inputs
    for _ in range(steps):
        perturbed = perturbed.detach().requires_grad_()
        loss = F.cross_entropy(_outputs(model, perturbed), labels, reduction="sum")
        gradient = _rows(torch.autograd.grad(loss, perturbed)[0])
        # Largest entry first, lest the squares of a confident model's gradient underflow.
        gradient /= gradient.abs().amax(1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        offset = _rows(perturbed.detach() - inputs) + length * F.normalize(gradient)
        offset *= radius / torch.linalg.vector_norm(offset, dim=1, keepdim=True).clamp_min(radius)
        # Clamping projects on the box, which never leads away from an input inside it.
        perturbed = (inputs + offset.reshape(inputs.shape).to(inputs)).clamp(low, high)
    return perturbed


@any_grad_mode
def layer_matrix(layer: Function, input_shape: Sequence[int]) -> Tensor:
    """Any linear or affine layer as the dense matrix W of ``Wx + b``: the reduction to (6).

    Column j is the image of the j-th unit vector less the image of 0, both flattened.

    Parameters
    ----------
    layer : callable
        A dense, convolutional, average-pooling or BatchNorm layer, say, or a function of float64.
    input_shape : sequence of int
        Of one input, without the batch; ValueError if the layer does not take it.

    Returns
    -------
    Tensor, shape (n_outputs, n_inputs)
        Computed in float64, returned in the dtype of the layer's parameters (float64 if it has
        none) and differentiable in them.

    Raises
    ------
    ValueError
        If the layer is not affine.

    Examples
    --------
    >>> layer_matrix(nn.AvgPool1d(2), (1, 4))
    tensor([[0.5000, 0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.5000, 0.5000]], dtype=torch.float64)
    >>> layer_matrix(nn.ReLU(), (4,))
    Traceback (most recent call last):
    ValueError: layer must be affine, ReLU() is not; jacobian_norms gives ...
    """
    f, reference = _in_float64(layer)
    unit_vectors = torch.eye(math.prod(input_shape), dtype=torch.float64, device=reference.device)
    # Probes at three scales: any activation bends between them.
    probes = torch.randn(3, len(unit_vectors), generator=torch.Generator().manual_seed(0))
    probes = probes.to(unit_vectors) * unit_vectors.new_tensor([[1.0], [1e2], [1e4]])
    probes = torch.cat([torch.zeros_like(probes[:1]), probes])
    # Two batches, lest statistics of the batch pass for constants.
    with told_why(f"input_shape {(*input_shape,)} does not suit {layer}"):
        probed, images = (
            _outputs(f, x.reshape(-1, *input_shape)).flatten(1) for x in (probes, unit_vectors)
        )
    matrix, offset = (images - probed[0]).T, probed[0]
    deviation = (probed - offset - probes @ matrix.T).abs()
    if not bool((deviation <= 1e-9 * (probes.abs() @ matrix.abs().T + offset.abs())).all()):
        raise ValueError(
            f"layer must be affine, {layer} is not; jacobian_norms gives its local constants"
        )
    return matrix.to(reference.dtype)


@any_grad_mode
def activation_constant(activation: nn.Module) -> float:
    """Lipschitz constant of an element-wise activation: its steepest slope.

    Autograd's derivative, maximized in float64 on a grid over ±11,000, dense around 0 and beside
    the kinks that its options name, then on ever finer grids around the best point; so a kink
    counts with the steeper of its sides. Neglected is a jump that float32 would round away, as
    `nn.Softplus` has where it goes over to its argument.

    Parameters
    ----------
    activation : nn.Module
        With its own parameters, such as `negative_slope`; TypeError if it mixes elements.

    Returns
    -------
    float
        To about nine digits; inf if the activation jumps.

    Examples
    --------
    >>> activation_constant(nn.LeakyReLU(3.0))
    3.0
    >>> round(activation_constant(nn.GELU()), 4)
    1.1289
    >>> activation_constant(nn.Softmax(0))
    Traceback (most recent call last):
    TypeError: activation must work element by element, Softmax(dim=0) does not
    """
    if is_transforming():
        raise untransformable("activation_constant", "it is a number; call it outside")
    kinks = [getattr(activation, name, 0) for name in ("min_val", "max_val", "lambd")]
    kinks.append(-kinks[2])
    if isinstance(activation, nn.Softplus | nn.Threshold):
        kinks.append(activation.threshold / (getattr(activation, "beta", 1) or 1))
    if max(map(abs, kinks)) > 10_000:
        raise TypeError(
            f"activation must bend within ±10,000, {activation} does at {max(kinks, key=abs):.6g}; "
            "lipschitz_certificate has most in closed form"
        )
    f, reference = _in_float64(activation)
    grid = torch.linspace(-10, 10, 20_001, dtype=torch.float64, device=reference.device).sinh()
    if any(kinks):
        middle = (kinks[0] + kinks[1]) / 2
        beside = [math.nextafter(x, end) for x in kinks for end in (-math.inf, math.inf)]
        grid = torch.cat([grid, grid.new_tensor([*kinks, *beside, middle])]).sort().values
    values = f(grid.clone()).detach()
    if values.shape != grid.shape or not values[::2].allclose(f(grid[::2].clone())):
        raise TypeError(f"activation must work element by element, {activation} does not")
    constant, x = 0.0, grid
    for _ in range(5):
        x.requires_grad_()
        total = f(x.clone()).sum()
        slopes = x.detach() * 0  # of a step
        if total.requires_grad:
            slopes = torch.autograd.grad(total, x)[0].abs()
        top = int(slopes.argmax())
        constant = max(constant, slopes[top].item())
        low, high = x[max(top - 1, 0)].item(), x[min(top + 1, len(x) - 1)].item()
        x = torch.linspace(low, high, 2_001, dtype=torch.float64, device=x.device)
    # By the mean value theorem, a secant steeper than every slope spans a jump.
    grid, rounding = grid.detach(), 4 * torch.finfo(torch.float64).eps * values.abs()[1:]
    allowed = constant * ((1 + 1e-6) * grid.diff() + _NEGLECTED * grid[1:].abs()) + rounding
    return math.inf if bool((values.diff().abs() > allowed).any()) else constant


def activation_constants() -> dict[str, float]:
    """Lipschitz constants of torch's element-wise activations at their defaults, computed.

    Returns
    -------
    dict
        From the name of the class to its constant; see `activation_constant`.

    Examples
    --------
    >>> constants = activation_constants()
    >>> [round(constants[name], 4) for name in ("ReLU", "Sigmoid", "Hardswish")]
    [1.0, 0.25, 1.5]
    """
    return {kind.__name__: activation_constant(kind()) for kind in ACTIVATIONS}


class Factor(NamedTuple):
    """One layer of a chain.

    Attributes
    ----------
    layer, type : str
        Its name in the model, and its class.
    constant : float
        Its Lipschitz constant.
    product : float
        Of the constants up to this layer.
    """

    layer: str
    type: str
    constant: float
    product: float


class ProductBound(NamedTuple):
    """What `layer_product_bound` returns.

    Attributes
    ----------
    value : float
        An upper bound on the Lipschitz constant.
    factors : tuple of Factor
        What it is the product of, a layer each.
    """

    value: float
    factors: tuple[Factor, ...]


@any_grad_mode
def layer_product_bound(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    constants: Mapping[str | type[nn.Module], float] | None = None,
) -> ProductBound:
    """Multiply the constants of the layers: an upper bound on the constant of the model.

    The recursion that follows (5): valid for every chain of layers, and rarely attained, because
    the layers stretch different directions most. Affine layers count with the exact norm of their
    matrix, activations with `activation_constant`, max pooling with the root of the number of
    windows that share an input (1 if none overlap), reshapes and Dropout with 1, other layers as
    in `lipschitz_certificate`. Nothing is rounded up.

    Parameters
    ----------
    model : nn.Module
        One layer, or an ``nn.Sequential``, nested or not.
    input_shape : sequence of int
        Of one input, without the batch.
    constants : mapping, optional
        Constants to use instead, by the name of a layer ("0", "2.1", …) or by its class.

    Returns
    -------
    ProductBound
        `value`, and `factors`, a `Factor` for each layer.

    Raises
    ------
    TypeError
        If the constant of a layer is not known.
    ValueError
        If a layer does not take its input, or has statistics of the batch only, or `constants`
        names none of the layers.

    Examples
    --------
    >>> net = nn.Sequential(nn.AvgPool1d(2), nn.Flatten(), nn.GELU())
    >>> bound = layer_product_bound(net, (1, 4))
    >>> [(factor.type, round(factor.constant, 4)) for factor in bound.factors]
    [('AvgPool1d', 0.7071), ('Flatten', 1.0), ('GELU', 1.1289)]
    >>> round(bound.value, 4)
    0.7983
    >>> layer_product_bound(nn.Sequential(nn.GLU()), (4,))
    Traceback (most recent call last):
    TypeError: the constant of layer '0' (GLU) is not known; pass ...
    """
    check_module(model, "model")
    shape = whole_shape(input_shape)
    chain_of_layers = list(layers(model))
    constants = checked_constants(chain_of_layers, constants or {})
    factors: list[Factor] = []
    total = 1.0
    x = torch.zeros(1, *shape, dtype=torch.float64, device=_in_float64(model)[1].device)
    for name, layer in chain_of_layers:
        given = constants.get(name, constants.get(_class(layer)))
        if given is None and mixes_rows(layer):
            raise ValueError(f"layer {name!r} ({layer}) takes its statistics from the batch")
        shape = tuple(x.shape[1:])
        with told_why(f"layer {name!r} does not take inputs of shape {shape}"):
            x = _outputs(_in_float64(layer)[0], x).detach()
        constant = _layer_constant(name, layer, shape) if given is None else given
        total = times(total, constant)
        factors.append(Factor(name, type(layer).__name__, constant, total))
    if not math.isfinite(total):
        raise ValueError(f"the product of the layers' constants is beyond float64: {factors}")
    return ProductBound(total, tuple(factors))


def _layer_constant(name: str, layer: Any, shape: tuple[int, ...]) -> float:
    if is_plain(layer, *RESHAPES, *DROPOUTS):
        return 1.0
    try:
        with evaluation_mode(layer):  # in which a look at a normalized weight leaves it alone
            if is_plain(layer, *ACTIVATIONS):
                constant = activation_constant(layer)
                if constant == math.inf:
                    raise TypeError("it jumps")
                return constant
            if is_plain(layer, nn.Linear, *CONVOLUTIONS) and layer.bias is not None:
                if error := unusable(layer.bias, f"the bias of layer {name!r}"):
                    raise error
                check_tensor(layer.bias, f"the bias of layer {name!r}")
            if is_plain(layer, nn.Linear):
                return induced_norm(layer.weight.detach().double()).item()
            if is_plain(layer, *CONVOLUTIONS):
                return layer_norm(layer, shape[1:], layer.weight)
            return follow(layer, shape)[0]
    except TypeError as error:
        raise TypeError(
            f"the constant of layer {name!r} ({type(layer).__name__}) is not known; pass "
            f"constants={{{name!r}: value}} or constants={{{type(layer).__name__}: value}}: {error}"
        ) from error


class ExactConstant(NamedTuple):
    """The constant of a piecewise linear net on a box, with its pieces.

    Attributes
    ----------
    value : float
        The largest of the norms.
    regions : list of array, shape (n_vertices, n_inputs)
        The vertices of each piece in order. A vertex at infinity, of an unbounded piece, has
        infinite entries, in its direction.
    norms : array, shape (n_regions,)
        The spectral norm of the net's matrix on each piece.
    """

    value: float
    regions: list[Array]
    norms: Array


@any_grad_mode
def exact_lipschitz(
    net: nn.Module, box: tuple[Bound, Bound], *, max_regions: int = 100_000
) -> ExactConstant:
    """Exact Lipschitz constant of a small ReLU net of one or two inputs, over a box.

    Cuts the box where each unit of each layer changes sign. The net is affine on every piece, and
    on a convex domain the constant is the largest norm of those matrices. Pieces thinner than
    1e-10 of the box, or of their distance from 0 on an open side, are lost in rounding.

    Parameters
    ----------
    net : nn.Module
        ``nn.Sequential`` of ``nn.Linear`` (first), ``nn.ReLU`` and ``nn.LeakyReLU``, with any
        number of outputs; computed in float64.
    box : pair
        Lows and highs of the inputs, each a number or one number for each input; -inf and inf
        leave a side open, so that ``(-math.inf, math.inf)`` gives the constant on the whole space.
    max_regions : int, default 100_000
        Give up above this number of pieces.

    Returns
    -------
    ExactConstant
        `value`, `regions` and `norms`.

    Raises
    ------
    TypeError
        If the net holds another layer.
    ValueError
        If it has more inputs or more pieces, layers that do not fit or numbers that are not
        finite, if the box is empty, or if the values in it are beyond float64.

    Examples
    --------
    >>> absolute = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> values = [[1.0], [-1.0]], [0.0, 0.0], [[1.0, 1.0]], [0.0]
    >>> for parameter, value in zip(absolute.parameters(), values):
    ...     parameter.data = torch.tensor(value)
    >>> exact_lipschitz(absolute, (-1, 1)).value
    1.0
    >>> layer_product_bound(absolute, (1,)).value
    2.0...
    >>> exact_lipschitz(nn.Linear(3, 1), (-1, 1))
    Traceback (most recent call last):
    ValueError: net must have one or two inputs, got 3; bracket its ...
    """
    check_module(net, "net")
    chain_of_layers = list(layers(net))
    first: Any = chain_of_layers[0][1] if chain_of_layers else net
    if not is_plain(first, nn.Linear):
        raise TypeError(f"net must start with a Linear layer, got {net}")
    with evaluation_mode(first):
        n_inputs = first.weight.shape[1]
    if not 1 <= n_inputs <= 2:
        raise ValueError(
            f"net must have one or two inputs, got {n_inputs}; bracket its constant between "
            "maximize_jacobian_norm or lower_bound_from_pairs and layer_product_bound"
        )
    low, high = (b.numpy() for b in _corners(box, torch.zeros(n_inputs, dtype=torch.float64)))
    if any(((np.abs(b) > 1e300) & (np.abs(b) < math.inf)).any() for b in (low, high)):
        raise ValueError("net must have finite values in the box, they are beyond float64")
    cells = [
        _Cell(points, ends, np.eye(n_inputs), np.zeros(n_inputs))
        for points, ends in _convex_parts(low, high)
    ]
    for name, layer in chain_of_layers:
        with evaluation_mode(layer), np.errstate(over="ignore", invalid="ignore"):
            cells = _through(cells, name, layer, max_regions)
    matrices = np.stack([cell.matrix for cell in cells])
    if not np.isfinite(matrices).all():
        raise ValueError("net must have finite slopes, they are beyond float64")
    norms = np.linalg.norm(matrices, ord=2, axis=(1, 2))
    return ExactConstant(norms.max().item(), [_vertices(cell) for cell in cells], norms)


class _Cell(NamedTuple):
    """A polygon or segment; a point with `ends` 0 instead of 1 is a direction to infinity."""

    points: Array
    ends: Array
    matrix: Array  # of the affine map from the input to the present layer
    offset: Array


def _convex_parts(low: Array, high: Array) -> list[tuple[Array, Array]]:
    """Write a box as polygons or segments, each with the points and directions that span it."""
    axes: list[list[tuple[float, float]]] = []  # each side from a finite end to the other one
    for a, b in zip(low.tolist(), high.tolist(), strict=True):
        if a == -math.inf:
            axes.append([(0.0, a), (0.0, b)] if b == math.inf else [(b, a)])
        else:
            axes.append([(a, b)])
    parts = []
    turns = [(0,), (1,)] if len(low) == 1 else [(0, 0), (1, 0), (1, 1), (0, 1)]
    for part in product(*axes):
        corners = [
            np.array([side[i] for side, i in zip(part, turn, strict=True)]) for turn in turns
        ]
        spanning: list[tuple[Array, float]] = []
        for corner in corners:
            far = np.isinf(corner)
            if far.sum() < 2:  # the corner at infinity of a quadrant lies between its directions
                point = np.where(far, np.sign(corner), 0.0) if far.any() else corner
                same = spanning and np.array_equal(spanning[-1][0], point)
                if not (same and far.any() and spanning[-1][1] == 0):  # a direction, once
                    spanning.append((point, float(not far.any())))
        parts.append((np.array([p for p, _ in spanning]), np.array([e for _, e in spanning])))
    return parts


def _vertices(cell: _Cell) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        far = np.where(cell.points == 0, 0.0, np.copysign(math.inf, cell.points))
        return np.where(cell.ends[:, None] > 0, cell.points / cell.ends[:, None], far)


def _through(cells: list[_Cell], name: str, layer: Any, max_regions: int) -> list[_Cell]:
    """Send the pieces through one layer."""
    if is_plain(layer, nn.Linear):
        weight = _array(layer.weight)
        bias = 0.0 if layer.bias is None else _array(layer.bias)
        if weight.shape[1] != (length := len(cells[0].offset)):
            raise ValueError(f"layer {name!r} ({layer}) does not take inputs of length {length}")
        return [
            c._replace(matrix=weight @ c.matrix, offset=weight @ c.offset + bias) for c in cells
        ]
    if not is_plain(layer, nn.ReLU, nn.LeakyReLU):
        raise TypeError(
            f"net must hold Linear, ReLU and LeakyReLU layers only, got {layer} at {name!r}"
        )
    pieces: list[_Cell] = []
    for cell in cells:
        pieces += _activate(cell, getattr(layer, "negative_slope", 0.0))
        if len(pieces) > max_regions:
            raise ValueError(
                f"net must have at most max_regions={max_regions} pieces, got more at "
                f"layer {name!r}; raise max_regions, or shrink the box or the net"
            )
    return pieces


def _array(tensor: Tensor) -> Array:
    if tensor.is_meta or not tensor.is_floating_point():
        kind = "meta tensors" if tensor.is_meta else tensor.dtype
        raise TypeError(f"net must hold real numbers in its weights, got {kind}")
    array: Array = tensor.detach().to("cpu", torch.float64, copy=True).numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"net must hold finite numbers, got {array.tolist()}")
    return array


def _activate(cell: _Cell, negative_slope: float) -> list[_Cell]:
    """Cut a cell where its units change sign, and apply the activation to each part."""
    points, ends, matrix, offset = cell
    lengths = np.hypot.reduce(np.abs(matrix), axis=1)  # whose squares may be beyond float64
    values = points @ matrix.T + ends[:, None] * offset
    tolerance = _tolerance(points, ends, lengths, offset)
    crossed = (values < -tolerance).any(0) & (values > tolerance).any(0)
    parts = [(points, ends)]
    for unit in np.flatnonzero(crossed):
        row, c = matrix[unit], offset[unit]
        thin = (_tolerance(p, e, lengths[[unit]], offset[[unit]])[:, 0] for p, e in parts)
        cuts = zip(parts, thin, strict=True)
        parts = [side for (p, e), t in cuts for side in _cut(p, e, p @ row + e * c, t)]
    middles = [matrix @ p.mean(0) + offset * e.mean() for p, e in parts]
    if not all(np.isfinite(numbers).all() for numbers in (tolerance, values, *middles)):
        raise ValueError("net must have finite values in the box, they are beyond float64")
    slopes = (np.where(middle > 0, 1.0, negative_slope) for middle in middles)
    return [
        _Cell(p, e, s[:, None] * matrix, s * offset)
        for (p, e), s in zip(parts, slopes, strict=True)
    ]


def _tolerance(points: Array, ends: Array, lengths: Array, offset: Array) -> Array:
    """Return what counts as 0 of the value of each unit at each point, or along each direction."""
    sizes = np.abs(points).max(1)
    reach = sizes[ends > 0].max(initial=0.0)
    own: Array = 1e-10 * (np.outer(sizes, lengths) + np.outer(ends, np.abs(offset)))
    least: Array = 1e-13 * reach * np.outer(ends, lengths)
    return np.where(own > least, own, least)


def _cut(points: Array, ends: Array, values: Array, tolerance: Array) -> list[tuple[Array, Array]]:
    """Cut a convex polygon or segment (Sutherland & Hodgman 1974) where `values` change sign."""
    values = np.where(np.abs(values) <= tolerance, 0.0, values)
    if values.min() >= 0 or values.max() <= 0:
        return [(points, ends)]
    sides: tuple[list[Array], list[Array]] = [], []
    joined = np.column_stack([points, ends])
    for i, (vertex, value) in enumerate(zip(joined, values, strict=True)):
        previous = values[i - 1]
        if min(previous, value) < 0 < max(previous, value):
            if ends[i] == ends[i - 1]:
                crossing = vertex + value / (value - previous) * (joined[i - 1] - vertex)
            elif ends[i] > 0:  # from a point in a direction
                crossing = vertex - value / previous * joined[i - 1]
            else:
                crossing = joined[i - 1] - previous / value * vertex
            sides[0].append(crossing)
            sides[1].append(crossing)
        if value >= 0:
            sides[0].append(vertex)
        if value <= 0:
            sides[1].append(vertex)
    return [(np.array(side)[:, :-1], np.array(side)[:, -1]) for side in sides]


def _in_float64(f: Function) -> tuple[Function, Tensor]:
    """See a module's parameters in float64; also return one of them, for its dtype and device."""
    reference = torch.empty(0, dtype=torch.float64)
    if not isinstance(f, nn.Module):
        return f, reference
    if isinstance(f, torch.jit.ScriptModule):
        kind = f.original_name
        raise TypeError(f"{kind} is scripted and cannot be lent weights; give the module itself")
    state = dict(chain(f.named_parameters(), f.named_buffers()))
    floating = {name: t for name, t in state.items() if t.is_floating_point()}
    doubled = {**state, **{name: t.double() for name, t in floating.items()}}

    def double(x: Tensor) -> Tensor:
        with evaluation_mode(f):
            y: Tensor = functional_call(f, doubled, (x,))
        return y

    return double, next(iter(floating.values()), reference)


def _outputs(f: Function, x: Tensor) -> Tensor:
    """Send a copy of a batch through f, which may change it in place, in evaluation mode."""
    with evaluation_mode(f):
        y = f(x.clone())
    if not isinstance(y, Tensor):
        raise TypeError(f"f must return a tensor, got {type(y).__name__}")
    if y.shape[:1] != x.shape[:1]:
        raise ValueError(f"f must keep the batch of {len(x)} rows, got shape {(*y.shape,)}")
    return y


def _rows(x: Tensor) -> Tensor:
    """Flatten all axes but the batch, in float32 at least."""
    return x.reshape(len(x), -1).to(torch.promote_types(x.dtype, torch.float32))


def _corners(box: tuple[Bound, Bound] | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Lows and highs of a box in the shape of one input; no box is the whole space."""
    try:
        low, high = (
            torch.as_tensor(bound, dtype=like.dtype, device=like.device).expand(like.shape)
            for bound in (box or (-math.inf, math.inf))
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"box must hold two bounds, each a number or of shape {(*like.shape,)}, got {box}"
        ) from error
    if not bool((low < high).all()):
        raise ValueError(f"box must have its lows below its highs, got {box}")
    return low, high
