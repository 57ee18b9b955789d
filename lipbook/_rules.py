"""How far the result of each torch operation may move when its inputs move.

A rule takes a `Call` and returns a `Move` for each result. What has no rule here is refused by the
walk (`lipbook._walk`), never taken for a constant. Every bound is Euclidean, over all entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lipbook.convolution import conv_spectral_norm
from lipbook.matrix_norms import induced_norm

INF = math.inf
_EPSILON = float(np.finfo(np.float64).eps)
_TINY = float(np.finfo(np.float64).tiny)
_RTOL = 1e-6  # what the iterated norm of a convolution is rounded up by
_AT_ONCE = 2**22  # entries of the images that are pooled together: 32 MiB
_LARGEST_SPREAD = 1024  # entries of a value whose directions are followed, an n × n matrix


class UncertifiedError(TypeError):
    """A network does something whose effect on distances is not known: what, and what to do.

    Examples
    --------
    >>> from lipbook import UncertifiedError, lipschitz_certificate
    >>> try:
    ...     lipschitz_certificate(torch.nn.Hardshrink(), (8,))
    ... except UncertifiedError as error:
    ...     print(str(error).partition(";")[0])
    the constant of operation 'hardshrink' is not known
    """


class Move(NamedTuple):
    """How a value moves with the input: ``‖Δvalue‖ ≤ bound · ‖Δinput‖``, and where it stays.

    All entries lie between `low` and `high`. With a `spread` C, a matrix of norm at most 1, the
    value moves only by ``bound · C r`` with ``‖r‖ ≤ ‖Δinput‖``. What jumps says why in `jumps`.
    """

    bound: float
    low: float = -INF
    high: float = INF
    spread: Tensor | None = None
    jumps: str = ""
    error: float = 0.0  # how far the spread may be from C, in norm, by rounding

    @property
    def peak(self) -> float:
        """The largest absolute value of an entry."""
        return max(abs(self.low), abs(self.high))


class Call(NamedTuple):
    """One operation: its arguments by the names of torch's schema, and how they move."""

    name: str
    function: Callable[..., Any]  # the operation that returns its result, never one in place
    arguments: dict[str, Any]
    moves: dict[str, Any]  # a Move, or for a list of tensors a list with None for constants
    radius: float

    def run(call, /, **changed: Any) -> Any:  # noqa: N805 - torch's operations have a `self`
        """Return the result for other arguments."""
        return call.function(**{**call.arguments, **changed})

    def move(self, key: str) -> Move:
        """Return how an argument moves, not at all if it is a constant."""
        if isinstance(move := self.moves.get(key), Move):
            return move
        value = torch.as_tensor(self.arguments[key], dtype=torch.float64)
        return Move(0.0, float(value.min()), float(value.max()))

    def only(self, *keys: str) -> None:
        """Refuse what moves beside the arguments that the rule is about."""
        if others := [key for key in self.moves if key not in keys]:
            raise UncertifiedError(f"its argument {others[0]!r} depends on the input")


Rule = Callable[[Call], Any]


def times(a: float, b: float) -> float:
    """Multiply bounds: what does not move stays, whatever it is multiplied by.

    What would underflow becomes the smallest normal number.
    """
    return 0.0 if a == 0 or b == 0 else max(a * b, _TINY)


def _repeats(call: Call, key: str, *others: str) -> float:
    """How far broadcasting stretches an argument: it repeats the entries."""
    shapes = [torch.as_tensor(call.arguments[k]).shape for k in (key, *others)]
    together = math.prod(np.broadcast_shapes(*shapes))
    return math.sqrt(together / max(shapes[0].numel(), 1))


# Reshapes, and other maps that only put entries elsewhere or add them up.


def _same(call: Call) -> Move:
    call.only("self")
    if call.arguments.get("dtype") is not None:
        raise UncertifiedError("it reads the bytes of its argument as numbers of another kind")
    return call.move("self")


def _cast(call: Call) -> Move:
    call.only("self")
    dtype = call.arguments.get("dtype")
    if dtype is not None and not dtype.is_floating_point:
        return Move(INF, jumps=f"a conversion to {dtype} jumps")
    return call.move("self")


def _copied(call: Call) -> Move:
    target = torch.as_tensor(call.arguments["self"])
    source = torch.as_tensor(call.arguments["src"])
    move = call.move("src")
    return move._replace(bound=move.bound * math.sqrt(target.numel() / source.numel()), spread=None)


def _filled(call: Call) -> Move:
    move = call.move("value") if "value" in call.arguments else Move(0.0, 0.0, 0.0)
    return move._replace(bound=move.bound * math.sqrt(call.arguments["self"].numel()), spread=None)


def _of_parts(*keys: str) -> Rule:
    """Bound a map that is affine in `keys` jointly, with weights of one sign for each of them.

    Schur's test: the norm is at most the root of the largest row sum times the largest column
    sum; the first are the map's values at 1, the second its gradient. Exact for copies, windows
    that do not overlap, sums and means. Arguments that reach no common entry add up as squares.
    """

    def rule(call: Call) -> Any:
        call.only(*keys)
        tensors = [(k, i, m) for k in keys for i, m in _moving(call.moves.get(k))]
        zero = {k: _map(call.arguments[k], torch.zeros_like) for k in keys if k in call.moves}
        fixed = dict(zero)
        for k, value in zero.items():  # the constants of a list stay
            if isinstance(value, list):
                here = [i for key, i, _ in tensors if key == k]
                own = call.arguments[k]
                fixed[k] = [value[j] if j in here else own[j].double() for j in range(len(own))]
        offsets = _results(call.run(**fixed))
        # Beside zeros: ones that are added to large constants would be rounded away.
        given = {k: call.arguments[k] for k in keys}
        zeros = {k: _map(v, torch.zeros_like) for k, v in given.items() if not _is_number(v)}
        nothing = _results(call.run(**zeros))
        parts = []
        for key, index, _ in tensors:
            ones = torch.ones_like(_pick(zeros[key], index), requires_grad=True)
            outputs = _results(call.run(**{**zeros, key: _put(zeros[key], index, ones)}))
            parts.append([_sums(o, f, ones) for o, f in zip(outputs, nothing, strict=True)])
        moves = [move for *_, move in tensors]
        found = [_gather(f, moves, [p[j] for p in parts]) for j, f in enumerate(offsets)]
        return found if isinstance(call.run(**fixed), list | tuple) else found[0]

    return rule


def _moving(moves: Any) -> list[tuple[int | None, Move]]:
    if isinstance(moves, list):
        return [(i, m) for i, m in enumerate(moves) if m is not None]
    return [] if moves is None else [(None, moves)]


def _is_number(value: Any) -> bool:
    return not isinstance(value, Tensor | list | tuple)


def _map(value: Any, function: Callable[..., Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value, dtype=torch.float64)
    return [function(one, dtype=torch.float64) for one in value]


def _pick(value: Any, index: int | None) -> Tensor:
    picked: Tensor = value if index is None else value[index]
    return picked


def _put(value: Any, index: int | None, new: Tensor) -> Any:
    return new if index is None else [*value[:index], new, *value[index + 1 :]]


def _results(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _sums(output: Tensor, offset: Tensor, ones: Tensor) -> tuple[Tensor, float]:
    """Row sums of a linear map, and its largest column sum."""
    columns = torch.zeros_like(ones)
    if output.requires_grad:
        columns = torch.autograd.grad(output.sum(), ones)[0]
    rows = torch.where(output == offset, 0.0, output - offset)  # a constant -inf does not move
    return rows.detach(), float(columns.abs().max()) if columns.numel() else 0.0


def _gather(offset: Tensor, moves: Sequence[Move], parts: Sequence[tuple[Tensor, float]]) -> Move:
    if offset.numel() == 0:
        return Move(0.0, 0.0, 0.0)
    rows = torch.stack([row for row, _ in parts])
    factors = [math.sqrt(float(r.abs().max()) * c) for r, (_, c) in zip(rows, parts, strict=True)]
    bounds = [times(f, m.bound) for f, m in zip(factors, moves, strict=True)]
    apart = int((rows != 0).sum(0).max()) <= 1
    low, high = offset.clone(), offset.clone()
    for row, move in zip(rows, moves, strict=True):
        ends = row * move.low, row * move.high  # a negative alpha of index_add turns them round
        low += torch.where(row != 0, torch.minimum(*ends), 0.0)
        high += torch.where(row != 0, torch.maximum(*ends), 0.0)
    bound = math.hypot(*bounds) if apart else sum(bounds)
    return Move(bound, float(low.min()), float(high.max()))


def _along_axes(count: int) -> Rule:
    """Bound pooling and interpolation: a matrix for each of the last axes, one after the other.

    An image that is 1 along all axes but one shows the matrix of that axis, up to what the image
    of ones shows of the others; the norm of the whole is the product of theirs, and exact.
    """

    def rule(call: Call) -> Move:
        call.only("self")
        size = call.arguments["self"].shape[-count:]
        ones = call.run(self=torch.ones(1, 1, *size, dtype=torch.float64))[0, 0]
        place = [int(i) for i in torch.unravel_index(ones.abs().argmax(), ones.shape)]
        total, norm, largest = float(ones[tuple(place)]), 1.0, 1.0
        for axis, length in enumerate(size):
            shape = [length if a == axis else 1 for a in range(count)]
            units = torch.eye(length, dtype=torch.float64).reshape(length, 1, *shape)
            index = (slice(None) if a == axis else i for a, i in enumerate(place))
            images = units.expand(length, 1, *size)
            matrix = _lines(call, images, (slice(None), 0, *index))
            norm *= float(induced_norm(matrix))
            largest *= float(matrix.abs().sum(0).max())
        share = abs(total) ** (count - 1)
        move = call.move("self")
        peak = _end(largest / share, move.peak)
        return Move(times(move.bound, norm / share), -peak, peak)

    return rule


def _lines(call: Call, images: Tensor, index: tuple[Any, ...]) -> Tensor:
    """Return one line of each result, a few images at a time: all at once may not fit."""
    parts = torch.split(images, max(1, _AT_ONCE // images[0].numel()))
    return torch.cat([call.run(self=part.contiguous())[index].clone() for part in parts])


# Sums, products and quotients, of numbers, constants and values that move.


def _added(sign: float, first: str = "self", second: str = "other") -> Rule:
    def rule(call: Call) -> Move:
        a, b = call.move(first), call.move(second)
        alpha = sign * call.arguments.get("alpha", 1)
        bound = times(a.bound, _repeats(call, first, second))
        bound += times(b.bound, abs(alpha) * _repeats(call, second, first))
        ends = sorted((_end(alpha, b.low), _end(alpha, b.high)))
        shifted = b.bound == 0 and a.bound > 0 and _repeats(call, first, second) == 1
        return Move(
            bound, a.low + ends[0], a.high + ends[1], a.spread if shifted else None, error=a.error
        )

    return rule


def _end(a: float, b: float) -> float:
    if a == 0 or b == 0:  # 0 · inf is 0 at the end of an interval
        return 0.0
    return math.copysign(max(abs(a * b), _TINY), a) * math.copysign(1.0, b)


def _negated(call: Call) -> Move:
    move = call.move("self")
    return move._replace(low=-move.high, high=-move.low)


def _multiplied(call: Call) -> Move:
    a, b = call.move("self"), call.move("other")
    bound = times(times(a.bound, b.peak), _repeats(call, "self", "other"))
    bound += times(times(b.bound, a.peak), _repeats(call, "other", "self"))
    ends = [_end(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    low = 0.0 if call.arguments["self"] is call.arguments["other"] else min(ends)
    low = min(low, 0.0) if low <= _TINY else low  # where it underflows
    number = not isinstance(call.arguments["other"], Tensor)
    return Move(bound, low, max(ends), a.spread if number else None, error=a.error)


def _divided(call: Call) -> Move:
    if call.arguments.get("rounding_mode") is not None:
        raise UncertifiedError("a rounded quotient jumps")
    a, b = call.move("self"), call.move("other")
    if b.bound == 0:
        least = float(torch.as_tensor(call.arguments["other"], dtype=torch.float64).abs().min())
    else:
        least = max(b.low, -b.high, 0.0)
    if least == 0:
        raise UncertifiedError("its divisor may come near 0")
    bound = times(times(a.bound, 1 / least), _repeats(call, "self", "other"))
    bound += times(times(b.bound, a.peak / least**2), _repeats(call, "other", "self"))
    return Move(bound, -a.peak / least, a.peak / least)


def _mixed(call: Call) -> Move:
    if isinstance(share := call.arguments["weight"], Tensor):
        raise UncertifiedError("its weight is a tensor")
    bound = times(abs(1 - share) * _repeats(call, "self", "end"), call.move("self").bound)
    return Move(bound + times(abs(share) * _repeats(call, "end", "self"), call.move("end").bound))


def _of_difference(call: Call) -> Move:
    """Losses of each entry, which grow by at most `delta`, or 1, with the difference."""
    if call.arguments["reduction"] != 0:
        raise UncertifiedError("it takes the batch together; with reduction='none' it does not")
    difference = _added(-1, "self", "target")(call)
    return Move(times(call.arguments.get("delta", 1.0), difference.bound), low=0.0)


def _sampled(call: Call) -> Any:
    if call.arguments["interpolation_mode"] == 2:
        raise UncertifiedError("bicubic weights have both signs")
    return _of_parts("input")(call)


def _extreme(call: Call) -> Move:
    """Functions of two entries whose gradient is no longer than 1."""
    a, b = call.move("self"), call.move("other")
    bound = math.hypot(
        times(a.bound, _repeats(call, "self", "other")),
        times(b.bound, _repeats(call, "other", "self")),
    )
    if call.name not in ("maximum", "minimum", "fmax", "fmin"):
        return Move(bound)
    pick = max if "max" in call.name else min
    return Move(bound, pick(a.low, b.low), pick(a.high, b.high))


def _matrix_product(first: str, second: str, added: str | None = None) -> Rule:
    def rule(call: Call) -> Move:
        call.only(first, second, *([added] if added else []))
        a, b = call.move(first), call.move(second)
        left, right = call.arguments[first], call.arguments[second]
        scale = abs(call.arguments.get("alpha", 1))
        bound = times(a.bound, _size(call, second, right))
        move = Move(scale * (bound + times(b.bound, _size(call, first, left))))
        if b.bound == 0 and left.numel() == left.shape[-1] and right.ndim == 2:
            move = _turned(a, scale * right.double().T)
        elif a.bound == 0 and right.ndim == 1 and left.ndim == 2:
            move = _turned(b, scale * left.double())
        peak = scale * _largest_entry(call, first, second)
        if added:
            offset, beta = call.move(added), abs(call.arguments.get("beta", 1))
            peak += _end(beta, offset.peak)
            if added in call.moves:
                repeats = math.sqrt(call.run().numel() / call.arguments[added].numel())
                move = Move(move.bound + times(beta * repeats, offset.bound))
        return move._replace(low=-peak, high=peak)

    return rule


def _largest_entry(call: Call, first: str, second: str) -> float:
    """Bound the entries of a product: those of the one times absolute sums of the other."""
    left, right = call.arguments[first].double(), call.arguments[second].double()
    if second not in call.moves:
        sums = right.abs().sum(-1 if right.ndim == 1 else -2)
        return _end(call.move(first).peak, float(sums.max()))
    if first not in call.moves:
        return _end(call.move(second).peak, float(left.abs().sum(-1).max()))
    return _end(left.shape[-1] * call.move(first).peak, call.move(second).peak)


def _size(call: Call, key: str, matrix: Tensor) -> float:
    """Return the norm of a constant matrix, the largest Frobenius norm of one that moves."""
    matrix = matrix.double()
    if key not in call.moves:
        matrix = matrix[:, None] if matrix.ndim == 1 else matrix
        return float(induced_norm(matrix).max())
    move, batch = call.move(key), math.prod(matrix.shape[:-2])
    by_entries = move.peak * math.sqrt(matrix.numel() / batch)
    return min(by_entries, float(matrix.norm()) + times(move.bound, call.radius))


def _turned(move: Move, matrix: Tensor) -> Move:
    """Multiply a vector by a matrix, and follow the directions: ECLipsE-Fast."""
    reached = matrix if move.spread is None else matrix @ move.spread
    error = 0.0
    if move.spread is not None:  # a sum that cancels has errors beyond its own size
        rounding = len(move.spread) * _EPSILON * float(move.spread.norm())
        error = float(matrix.norm()) * (rounding + move.error)
    norm = float(induced_norm(reached)) + error
    if not (0 < norm < INF and len(matrix) <= _LARGEST_SPREAD):
        return Move(times(move.bound, norm))
    error = error / norm + len(matrix) * _EPSILON
    return Move(times(move.bound, norm), spread=reached / norm, error=error)


def activated(move: Move, steepest: float, flattest: float) -> Move:
    r"""Apply an element-wise function with slopes between `flattest` and `steepest`.

    Slopes in [0, 1] turn the spread C into a root of :math:`½ (I - C C^T / 2)^{-1} ≤ I`, the
    closed form of ECLipsE-Fast (Xu & Sivaranjani 2024), where its multipliers are 2 over the norm.
    """
    spread = None
    if move.spread is not None and flattest >= 0:
        gram = move.spread @ move.spread.T
        unit = torch.eye(len(gram)).to(gram)
        inner = 2 * unit - gram
        above = 2 * move.error * unit  # what rounding may have taken away
        spread = torch.linalg.cholesky(torch.linalg.inv((inner + inner.T) / 2) + above)
    return Move(times(move.bound, steepest), spread=spread)


# Functions of each entry.


def _elementwise(slopes: Callable[..., tuple[float, float]], *options: str, rising: bool) -> Rule:
    """`slopes(low, high, *options)` are the steepest and the flattest slope on an interval."""

    def rule(call: Call) -> Any:
        call.only("self")
        move = call.move("self")
        chosen = (call.arguments[name] for name in options)
        result = activated(move, *slopes(move.low, move.high, *chosen))
        tensors = [key for key, value in call.arguments.items() if isinstance(value, Tensor)]
        if (repeats := _repeats(call, "self", *tensors)) > 1:  # by a limit of clamp, say
            result = Move(times(result.bound, repeats))
        if rising:
            # One after the other: limits of clamp may have axes of their own.
            axes = [1] * call.arguments["self"].ndim
            ends = (torch.full(axes, end, dtype=torch.float64) for end in (move.low, move.high))
            low, high = (_results(call.run(self=end))[0] for end in ends)
            result = result._replace(low=float(low.min()), high=float(high.max()))
        return result

    return rule


def _fixed(steepest: float, flattest: float = 0.0, *, rising: bool = True) -> Rule:
    return _elementwise(lambda _low, _high: (steepest, flattest), rising=rising)


def _leaky(low: float, high: float, slope: float) -> tuple[float, float]:  # noqa: ARG001
    return max(1.0, abs(slope)), min(1.0, slope)


def _elu(low: float, high: float, alpha: float, scale: float, rate: float) -> tuple[float, float]:  # noqa: ARG001
    if rate < 0:
        raise UncertifiedError("it grows exponentially for a negative input_scale")
    slopes = (scale, alpha * scale * rate)
    return max(map(abs, slopes)), min(0.0, *slopes)


def _celu(low: float, high: float, alpha: float) -> tuple[float, float]:  # noqa: ARG001
    if alpha <= 0:
        raise UncertifiedError("it grows exponentially for a negative alpha")
    return 1.0, 0.0


def _softplus(low: float, high: float, beta: float, threshold: float) -> tuple[float, float]:  # noqa: ARG001
    # It jumps by log(1 + exp(-threshold)) / beta to its argument, threshold / beta; from 14 on that
    # is less than float32 would round away there, and neglected.
    if beta <= 0 or threshold < 14:
        raise UncertifiedError(f"it jumps at its threshold, which must be 14 at least: {threshold}")
    return 1.0, 0.0


def _threshold(low: float, high: float, threshold: float, value: float) -> tuple[float, float]:  # noqa: ARG001
    if value != threshold:
        raise UncertifiedError(f"it jumps from {value} to {threshold}")
    return 1.0, 0.0


def _power(low: float, high: float, exponent: float | Tensor) -> tuple[float, float]:
    if isinstance(exponent, Tensor) and exponent.numel() > 1:
        raise UncertifiedError("its exponent is a tensor of several numbers")
    exponent = float(exponent)
    if exponent == 0:
        return 0.0, 0.0
    if exponent < 1:
        return _positive(low, high, lambda x: abs(exponent) * x ** (exponent - 1)), -INF
    if low < 0 and exponent != int(exponent):
        raise UncertifiedError("it is a root of a value that may be negative")
    peak = max(abs(low), abs(high))
    return (_grown(lambda: exponent * peak ** (exponent - 1)) if exponent > 1 else 1.0), -INF


def _positive(low: float, high: float, slope: Callable[[float], float]) -> float:  # noqa: ARG001
    if low <= 0:
        raise UncertifiedError("its slope is unbounded at an end that its argument may reach")
    return _grown(lambda: slope(low))


def _grown(value: Callable[[], float]) -> float:
    try:
        return value()
    except OverflowError:
        return INF


def _curved(steepest: Callable[[float, float], float]) -> Rule:
    """For functions whose slope depends on where the argument is."""
    return _elementwise(lambda low, high: (steepest(low, high), -INF), rising=False)


def _exponential(base: float) -> Callable[[float, float], tuple[float, float]]:
    rate = math.log(base)
    return lambda _, high: (_grown(lambda: rate * math.exp(rate * high)), 0.0)


def _logarithm(base: float, shift: float = 0.0) -> Callable[[float, float], tuple[float, float]]:
    rate = math.log(base)
    return lambda low, high: (_positive(shift + low, high, lambda x: 1 / (rate * x)), 0.0)


def _square_root(low: float, high: float) -> tuple[float, float]:
    return _positive(low, high, lambda x: 0.5 / math.sqrt(x)), 0.0


def _gelu(call: Call) -> Move:
    exact = call.arguments["approximate"] == "none"
    return activated(call.move("self"), 1.1289042 if exact else 1.1289931, -1.0)


def _prelu(call: Call) -> Move:
    call.only("self")
    slopes = call.move("weight")
    return activated(call.move("self"), max(1.0, slopes.peak), min(1.0, slopes.low))


def _gated(call: Call) -> Move:
    # a σ(b) has the gradient (s, a s (1 - s)) with s = σ(b), whose length is largest at s = 1 or
    # where its derivative vanishes for the first time.
    move = call.move("self")
    steepest = 1.0
    if move.peak**2 > 8:
        s = (3 - math.sqrt(1 - 8 / move.peak**2)) / 4
        steepest = max(1.0, s * math.hypot(1, move.peak * (1 - s)))
    return Move(times(move.bound, steepest))


# Functions of several entries.


def _order(call: Call) -> Any:
    """Order statistics: each result is one of the entries that it looks at, and moves no more."""
    call.only("self")
    if call.arguments.get("sorted") is False:
        raise UncertifiedError("with sorted=False its results may change places")
    results = _results(call.run())
    move = call.move("self")._replace(spread=None)
    jump = Move(INF, jumps=f"the indices of {call.name!r} jump")
    found = [move if result.is_floating_point() else jump for result in results]
    return found if len(results) > 1 else found[0]


def _running(call: Call) -> Any:
    length = torch.as_tensor(call.arguments["self"]).shape[call.arguments["dim"]]
    move = call.move("self")
    widened = move._replace(bound=move.bound * math.sqrt(length), spread=None)
    return [widened, Move(INF, jumps=f"the indices of {call.name!r} jump")]


def _log_sum_exp(call: Call) -> Move:
    return Move(call.move("self").bound)


def _softmax(call: Call) -> Move:
    # The Jacobian diag(p) - p pᵀ is a Laplacian whose rows add up to 2 p (1 - p) at most.
    call.only("self")
    return Move(times(0.5, call.move("self").bound), 0.0, 1.0)


def _log_softmax(call: Call) -> Move:
    # I - 1 pᵀ is a projection, so its norm is that of 1 pᵀ, and |p| ≤ 1.
    call.only("self")
    length = call.arguments["self"].shape[call.arguments["dim"]]
    return Move(times(math.sqrt(length), call.move("self").bound), high=0.0)


def _vector_norm(call: Call) -> Move:
    order = call.arguments.get("ord", call.arguments.get("p"))
    order = 2.0 if order is None else float(order)
    if order < 1:
        raise UncertifiedError(f"a norm of order {order} is none")
    tensor = call.arguments["self"]
    added = tensor.numel() / max(call.run().numel(), 1)
    factor: float = added ** max(0.0, 1 / order - 0.5)
    return Move(times(factor, call.move("self").bound), low=0.0)


def _deviation(call: Call) -> Move:
    tensor, correction = call.arguments["self"], call.arguments.get("correction")
    added = tensor.numel() / max(call.run().numel(), 1)
    degrees = added - (1 if correction is None else correction)
    if degrees <= 0:
        raise UncertifiedError("it divides by 0")
    return Move(call.move("self").bound / math.sqrt(degrees), low=0.0)


def _weight_peak(call: Call) -> float:
    weight = call.arguments["weight"]
    return 1.0 if weight is None else float(weight.double().abs().max())


def _standardized(call: Call) -> Any:
    """LayerNorm and GroupNorm: a projection, divided by at least √ε; no entry beyond √n."""
    call.only("input")
    epsilon = call.arguments["eps"]
    if not epsilon > 0:
        raise UncertifiedError("its eps must be above 0")
    tensor, bias = call.arguments["input"], call.arguments["bias"]
    count = tensor.numel() // call.arguments.get("group", 1)
    count = math.prod(call.arguments.get("normalized_shape", [count]))
    steepest = _weight_peak(call) / math.sqrt(epsilon)
    peak = _weight_peak(call) * math.sqrt(count)
    peak += 0.0 if bias is None else float(bias.double().abs().max())
    hidden = Move(INF, jumps="the statistics of a normalization are not followed")
    return [Move(times(call.move("input").bound, steepest), -peak, peak), hidden, hidden]


def _batch_normalized(call: Call) -> Any:
    if call.arguments.get("training", False) or call.arguments.get("running_mean") is None:
        return _standardized(call)
    call.only("input")
    scale = (call.arguments["running_var"].double() + call.arguments["eps"]).rsqrt()
    if call.arguments["weight"] is not None:
        scale = scale * call.arguments["weight"].double()
    hidden = Move(INF, jumps="the statistics of a normalization are not followed")
    return [Move(times(call.move("input").bound, float(scale.abs().max()))), hidden, hidden]


def _convolved(call: Call) -> Move:
    call.only("input")
    arguments, image = call.arguments, call.arguments["input"]
    size = call.run().shape[2:] if arguments["transposed"] else image.shape[2:]
    names = ("stride", "padding", "dilation", "groups")
    kernel = _narrow(arguments["weight"])
    found = conv_spectral_norm(kernel, size, rtol=_RTOL / 10, **{k: arguments[k] for k in names})
    norm = float(found) * (1 + _RTOL)
    taps = arguments["weight"].double().abs()
    sums = taps.flatten(2).sum((0, 2) if arguments["transposed"] else (1, 2))
    peak = _end(call.move("input").peak, float(sums.max()))
    peak += 0.0 if arguments["bias"] is None else float(arguments["bias"].double().abs().max())
    return Move(times(call.move("input").bound, norm), -peak, peak)


def _narrow(kernel: Tensor) -> Tensor:
    """Return a kernel in float32 if that holds it exactly: its norm is found in half the time."""
    narrow = kernel.float()
    return narrow if torch.equal(narrow.double(), kernel) else kernel


def layer_norm(layer: Any, size: Sequence[int], weight: Tensor) -> float:
    """Return the norm of a convolution layer with such a weight, to nine digits."""
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    options = {name: getattr(layer, name) for name in names}
    return float(conv_spectral_norm(weight.detach().double(), size, rtol=1e-9, **options))


def _max_pooled(call: Call) -> Any:
    # |max x - max y| over a window is at most ‖x - y‖ on it; the squares add up over windows,
    # ⌈k·gcd(s, d)/s⌉ of which share an input along an axis of kernel k, stride s, dilation d.
    kernels = call.arguments["kernel_size"]
    strides, dilations = call.arguments.get("stride") or kernels, call.arguments["dilation"]
    axes = int(call.name[len("max_pool")])
    wide = [list(v) * axes if len(v) == 1 else list(v) for v in (kernels, strides, dilations)]
    shared = math.prod(-(-k * math.gcd(s, d) // s) for k, s, d in zip(*wide, strict=True))
    return _pooled(call, shared)


def _adaptively_max_pooled(call: Call) -> Any:
    tensor, shared = call.arguments["self"], 1
    sizes = call.arguments["output_size"]
    for length, out in zip(tensor.shape[-len(sizes) :], sizes, strict=True):
        windows = [range(i * length // out, -(-(i + 1) * length // out)) for i in range(out)]
        shared *= max(sum(cell in w for w in windows) for cell in range(length))
    return _pooled(call, shared)


def _pooled(call: Call, shared: int) -> list[Move]:
    call.only("self")
    move = call.move("self")
    values = Move(times(math.sqrt(shared), move.bound), move.low, move.high)
    return [values, Move(INF, jumps=f"the indices of {call.name!r} jump")]


RULES: dict[str, Rule] = {}


def _table(rule: Rule, names: str) -> None:
    RULES.update(dict.fromkeys(names.split(), rule))


_table(_same, "view _unsafe_view reshape _reshape_alias clone detach alias contiguous positive")
_table(_same, "squeeze unsqueeze lift_fresh lift_fresh_copy view_as")
_table(_cast, "_to_copy to")
_table(_copied, "copy")
_table(_filled, "fill zero")
_table(
    _of_parts("self"),
    "slice select split unsafe_split split_with_sizes unsafe_split_with_sizes unbind chunk narrow "
    "diagonal unfold expand repeat repeat_interleave tile index index_select gather take "
    "t transpose permute swapaxes movedim flip roll rot90 pixel_shuffle pixel_unshuffle "
    "channel_shuffle tril triu im2col col2im constant_pad_nd "
    "reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d "
    "sum nansum mean cumsum trace diag_embed narrow_copy",
)
for _axes in (1, 2, 3):
    _kinds = ("upsample_nearest", "_upsample_nearest_exact", "avg_pool", "adaptive_avg_pool")
    _table(_along_axes(_axes), " ".join(f"{kind}{_axes}d" for kind in _kinds))
_table(_along_axes(1), "upsample_linear1d")
_table(_along_axes(2), "_adaptive_avg_pool2d upsample_bilinear2d upsample_bicubic2d")
_table(_along_axes(2), "_upsample_bilinear2d_aa _upsample_bicubic2d_aa")
_table(_along_axes(3), "_adaptive_avg_pool3d upsample_trilinear3d")
_table(_of_parts("tensors"), "cat stack")
_table(
    _of_parts("self", "src"), "slice_scatter select_scatter diagonal_scatter scatter scatter_add"
)
_table(_of_parts("self", "source"), "index_add index_copy")
_table(_of_parts("self", "values"), "index_put _unsafe_index_put")
_table(_of_parts("self", "value"), "masked_fill index_fill")
_table(_of_parts("self", "other"), "where")
_table(_added(1), "add")
_table(_added(-1), "sub")
_table(_added(-1, "other", "self"), "rsub")
_table(_negated, "neg")
_table(_multiplied, "mul")
_table(_divided, "div")
_table(_mixed, "lerp")
_table(_extreme, "maximum minimum fmax fmin hypot logaddexp logaddexp2")
_table(_of_difference, "huber_loss smooth_l1_loss")
_table(_sampled, "grid_sampler_2d grid_sampler_3d")
_table(_matrix_product("self", "mat2"), "mm bmm")
_table(_matrix_product("mat1", "mat2", "self"), "addmm")
_table(_matrix_product("batch1", "batch2", "self"), "baddbmm")
_table(_matrix_product("self", "vec"), "mv")
_table(_matrix_product("mat", "vec", "self"), "addmv")
_table(_matrix_product("self", "tensor"), "dot")
_table(_fixed(1.0), "relu relu6 hardtanh clamp clamp_min clamp_max tanh log_sigmoid_forward")
_table(_fixed(1.0), "softshrink atan asinh")
_table(_fixed(1.0, -1.0, rising=False), "abs sin cos")
_table(_fixed(0.25), "sigmoid")
_table(_fixed(1 / 6), "hardsigmoid")
_table(_fixed(1.5, -1.5, rising=False), "hardswish")
_table(_fixed(1.0998394, -1.0, rising=False), "silu")
_table(_fixed(1.0884982, -1.0, rising=False), "mish")
_table(_fixed(2 / math.sqrt(math.pi)), "erf")
_table(_fixed(2 / math.sqrt(math.pi), -INF, rising=False), "erfc")
_table(_elementwise(_leaky, "negative_slope", rising=False), "leaky_relu")
_table(_elementwise(_elu, "alpha", "scale", "input_scale", rising=False), "elu")
_table(_elementwise(_celu, "alpha", rising=False), "celu")
_table(_elementwise(_softplus, "beta", "threshold", rising=True), "softplus")
_table(_elementwise(_threshold, "threshold", "value", rising=True), "threshold")
_table(_elementwise(_exponential(math.e), rising=True), "exp expm1")
_table(_elementwise(_exponential(2.0), rising=True), "exp2")
_table(_elementwise(_logarithm(math.e), rising=True), "log")
_table(_elementwise(_logarithm(2.0), rising=True), "log2")
_table(_elementwise(_logarithm(10.0), rising=True), "log10")
_table(_elementwise(_logarithm(math.e, 1.0), rising=True), "log1p")
_table(_elementwise(_square_root, rising=True), "sqrt")
_table(_curved(lambda low, high: _positive(low, high, lambda x: 0.5 * x**-1.5)), "rsqrt")
_table(_curved(lambda low, high: _positive(max(low, -high), INF, lambda x: x**-2)), "reciprocal")
_table(_curved(lambda low, high: 2 * max(abs(low), abs(high))), "square")
_table(_elementwise(_power, "exponent", rising=False), "pow")
_table(_gelu, "gelu")
_table(_prelu, "_prelu_kernel")
_table(_gated, "glu")
_table(_order, "amax amin max min median nanmedian kthvalue sort msort topk aminmax")
_table(_running, "cummax cummin")
_table(_log_sum_exp, "logsumexp")
_table(_softmax, "_softmax _safe_softmax")
_table(_log_softmax, "_log_softmax")
_table(_vector_norm, "linalg_vector_norm norm")
_table(_deviation, "std")
_table(_standardized, "native_layer_norm native_group_norm")
_table(_batch_normalized, "native_batch_norm _native_batch_norm_legit cudnn_batch_norm")
_table(_batch_normalized, "_native_batch_norm_legit_no_training")
_table(_convolved, "convolution")
_table(_max_pooled, "max_pool2d_with_indices max_pool3d_with_indices")
_table(_adaptively_max_pooled, "adaptive_max_pool2d adaptive_max_pool3d")
