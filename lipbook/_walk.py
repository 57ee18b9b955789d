"""Follows how each value of a network moves with its input, operation by operation.

The network runs once, at 0, under a dispatch mode that sees every operation below autograd:
methods, functions, whatever a layer calls, captured or changes in place. Each result gets a `Move`
by the rules of `lipbook._rules`; an operation without one is refused. Values that share their
memory are known by their storage, so that a change through one is a change of all.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from lipbook._checks import check_positive, is_transforming, untransformable
from lipbook._layers import CONVOLUTIONS, Originals, copied, has_changed, is_plain
from lipbook._rules import RULES, Call, Move, UncertifiedError, activated, layer_norm, times

_WAY_OUT = "pass constants={name: value} with the name or the class of a module that holds it"
_OUTWARD = 1e-12  # what the ends of a range are rounded by
# Operations that take no more than the shape of a tensor.
_SHAPES_ONLY = {
    *("empty_like", "zeros_like", "ones_like", "full_like", "is_same_size"),
    *("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"),
}
# Operations that hand a value to Python, or have a shape that depends on values.
_VALUES = {
    *("_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero", "masked_select", "unique"),
}
# Methods that hand the memory of a tensor over to something that torch does not see.
_ESCAPES = {
    *("numpy", "tolist", "__array__", "__dlpack__", "data_ptr", "__deepcopy__", "__reduce_ex__"),
    *("untyped_storage", "storage", "_typed_storage", "__set__", "share_memory_"),
    *("apply_", "map_", "map2_", "__repr__"),
}
_INERT = bool | int | float | complex | str | None  # what holds no tensor
# Functions that take the numbers out of tensors in a list.
_FROM_DATA = {"tensor", "as_tensor", "asarray", "new_tensor", "new"}
_FROM_LISTS = {*_FROM_DATA, "__getitem__", "__setitem__"}
_UNSEEN = (
    "it takes a tensor that was made where torch does not show how, by NumPy, a thread or "
    "torch.Tensor([...]); make it before, as a buffer, or by torch.tensor"
)


_INSIDE = Move(math.inf, jumps="it was made or changed by a module that counts as a whole")


class Step(NamedTuple):
    """One operation of a network.

    Attributes
    ----------
    layer : str
        The name of the module that called it.
    operation : str
        Its name.
    bound : float
        The bound on the network from its input to the result of this operation.
    """

    layer: str
    operation: str
    bound: float


class _Memory:
    """One storage: how all of it moves, and which of its bytes were written one after the other."""

    def __init__(self, *, constant: bool) -> None:
        self.move: Move | None = None
        self.writes: list[range] = []
        self.constant = constant  # but for what was written

    def untouched(self, tensor: Tensor, since: int) -> bool:
        """Whether no later write reached a tensor."""
        cells = _cells(tensor)
        return all(w.stop <= cells.start or cells.stop <= w.start for w in self.writes[since:])


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Holds all tensors that operations take and return: what a later run finds ready-made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held: list[Tensor] = []  # so that no number of a tensor or storage is used twice

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to wrap the mode for torch.compile would import the compiler, for seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.held += _dense((args, kwargs, result))
        return result


class Walk(_Seen):
    """Carries a `Move` along with each tensor that depends on the input."""

    def __init__(self, radius: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.radius = radius
        self.least = min(dtype.itemsize, 4)  # bytes of a number that is not rounded much
        self.steps: list[Step] = []
        self.layers: list[str] = [""]
        self.paused = False
        self.thread = threading.get_ident()
        self._memories: dict[int, _Memory] = {}
        self._moves: dict[int, tuple[int, Move]] = {}
        self.refusal = ""
        self.looking = 0  # inside a function of torch that `_Escapes` has let pass
        self._seen: dict[int, int] = {}  # storages of constants, and their bytes
        self.exported: set[int] = set()  # constants whose memory went to NumPy or elsewhere
        self._blank: set[int] = set()  # that no operation wrote to: TorchScript may
        self._worker = ThreadPoolExecutor(1)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._worker.shutdown()

    def moving(self) -> Iterable[int]:
        """Return the memories that moved, by where they start."""
        return self._memories

    def elsewhere(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call in another thread, where no mode is on; autograd is off inside a dispatch mode."""
        return self._worker.submit(function, *args).result()

    def move(self, tensor: Any) -> Move | None:
        """Return how a tensor moves; None for a constant."""
        if not isinstance(tensor, Tensor):
            return None
        if tensor.layout is not torch.strided:
            raise UncertifiedError("it takes a sparse tensor")
        memory = self._memories.get(_storage(tensor))
        if memory is None:
            return None
        since, move = self._moves.get(id(tensor), (0, None))
        known = move is not None or memory.constant
        if memory.move is None or (known and memory.untouched(tensor, since)):
            return move
        return memory.move._replace(bound=memory.move.bound * _multiplicity(tensor), spread=None)

    def put(
        self, tensor: Tensor, move: Move, *, write: bool = False, over_constant: bool = False
    ) -> None:
        """Say how a tensor moves, after it was made or written, into a constant perhaps."""
        if write and not move.jumps and _storage(tensor) not in self._memories:
            self._check_alone(tensor)
        memory = self._memories.setdefault(_storage(tensor), _Memory(constant=over_constant))
        self.held.append(tensor)
        if write or memory.move is None:
            with torch._C.DisableTorchFunction():
                size = tensor.untyped_storage().nbytes()
            whole = tensor.numel() * tensor.element_size() == size and _multiplicity(tensor) == 1
            before = memory.move
            if whole:
                memory.move = move
            elif write:
                memory.move = _beside(before, move)
            else:  # a view that no one wrote to, or a part of a new storage
                memory.move = _beside(None, move)
            if write:
                memory.writes.append(_cells(tensor))
        self._moves[id(tensor)] = (len(memory.writes), move)

    def _check_alone(self, tensor: Tensor) -> None:
        """Refuse a write into a constant that something else reads, NumPy or another storage."""
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
            start, stop = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
            meets = (a < stop and start < a + n and a != start for a, n in self._seen.items())
            if start in self.exported or not storage.resizable() or any(meets):
                with self.refusing("copy_"):
                    raise UncertifiedError(
                        "it writes to memory that NumPy or another storage shares; clone it before"
                    )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if self.paused:
            return self._inside(func, args, kwargs)
        schema = func._schema
        arguments = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        arguments.update(zip((a.name for a in schema.arguments), args, strict=False))
        arguments.update(kwargs)
        written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
        if arguments.get("training"):  # batch statistics, which the schemas do not say are written
            written += [k for k in ("running_mean", "running_var") if arguments.get(k) is not None]
        outs = {a.name for a in schema.arguments if a.is_out}
        inputs = {key: value for key, value in arguments.items() if key not in outs}
        name = schema.name.removeprefix("aten::")  # another library's add may be no sum
        with self.refusing(name):
            _check_writes(_dense([arguments[w] for w in written]), _dense(inputs))
            aside = {
                a.name for a in schema.arguments if a.alias_info
            }  # written or viewed, not read
            for key, value in arguments.items():
                self.check_seen(name, _dense(value), blank=key in aside or name in _SHAPES_ONLY)
            moves = {k: m for k, v in inputs.items() if (m := self._found(v)) is not None}
            if torch.Tag.nondeterministic_seeded in func.tags:
                raise UncertifiedError("it draws random numbers")
        if not moves or name in _SHAPES_ONLY:
            result = func(*args, **kwargs)
            self._record_constants(name, result, _dense([arguments[w] for w in written]))
            return result
        with self.refusing(name):
            if written and not all(r.alias_info for r in schema.returns):
                raise UncertifiedError("it writes to one tensor and returns another")
            found = self.elsewhere(self._apply, func, name, inputs, moves, bool(written))
        result = func(*args, **kwargs)
        outputs = [arguments[w] for w in written] if written else [result]
        self._record(name, tree_leaves(outputs), found, write=bool(written))
        return result

    def see(self, tensors: Iterable[Tensor]) -> None:
        """Know constants from now on; held, so that none made unseen lies in their memory."""
        for tensor in tensors:
            self.held.append(tensor)
            with torch._C.DisableTorchFunction():
                self._seen[_storage(tensor)] = tensor.untyped_storage().nbytes()

    def check_seen(self, name: str, tensors: Iterable[Tensor], *, blank: bool) -> None:
        """Refuse what no operation made since the walk began, from values that move perhaps."""
        known = (self._memories, self._seen, self._blank if blank else ())
        for tensor in tensors:
            if tensor.numel() == 0 or any(_storage(tensor) in places for places in known):
                continue
            if not (name.startswith("lift") and self.looking):
                raise UncertifiedError(_UNSEEN)
            self.see([tensor])

    def _inside(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Run a part of a module that counts as a whole: what it makes is nobody else's."""
        given = _dense((args, kwargs))
        with self.refusing(func._schema.name):
            if any(move and move.jumps != _INSIDE.jumps for move in map(self.move, given)):
                raise UncertifiedError("a module that counts as a whole takes it from elsewhere")
        constant = {_storage(t) for t in given if self.move(t) is None}
        result = func(*args, **kwargs)
        pairs = zip(func._schema.arguments, args, strict=False)
        made = [t for t in _dense(result) if _storage(t) not in constant]
        made += _dense([v for a, v in pairs if a.alias_info and a.alias_info.is_write])
        for tensor in made:
            self.put(tensor, _INSIDE, write=True)
        return result

    def _found(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            moves = [self.move(one) for one in value]
            return moves if any(m is not None for m in moves) else None
        return self.move(value)

    def _apply(self, func: Any, name: str, inputs: Any, moves: Any, mutable: bool) -> list[Move]:
        base = name.removesuffix("_") if mutable else name
        if base not in RULES:
            raise UncertifiedError("what follows depends on the data" if base in _VALUES else "")
        given = tree_leaves(list(moves.values()), is_leaf=_is_move)
        if jumps := [move for move in given if move is not None and move.jumps]:
            return jumps[:1]
        function = func
        if mutable:
            packet = getattr(torch.ops.aten, base)
            overload = func._overloadname if func._overloadname in packet.overloads() else "default"
            function = getattr(packet, overload.replace("out", "default"), packet)
        seen: dict[int, Tensor] = {}
        inputs = {k: _doubled(v, seen) for k, v in inputs.items()}
        found = RULES[base](Call(base, function, inputs, moves, self.radius))
        found = found if isinstance(found, list) else [found]
        if any(not m.jumps and not m.bound < math.inf for m in found):
            bounded = self.radius < math.inf
            more = " on this ball too" if bounded else ": where inputs are bounded, pass radius="
            raise UncertifiedError(f"it may grow without limit{more}")
        return found

    def _record_constants(self, name: str, result: Any, written: Iterable[Tensor]) -> None:
        if "empty" in name:
            self._blank.add(_storage(result))
            self.held.append(result)
        self.see(tensor for tensor in _dense(result) if _storage(tensor) not in self._blank)
        for tensor in written:
            self.see([tensor])
            if _storage(tensor) in self._memories:  # a constant, but over what moved
                self.put(tensor, Move(0.0), write=True)

    def _record(self, name: str, outputs: list[Any], found: list[Move], *, write: bool) -> None:
        tensors = [t for t in outputs if isinstance(t, Tensor)]
        hidden = Move(math.inf, jumps=f"a second result of {name!r} is not followed")
        for i, tensor in enumerate(tensors):
            move = found[i] if i < len(found) else hidden
            if not tensor.is_floating_point() and not move.jumps:
                kind = "is complex" if tensor.is_complex() else "jumps"
                move = Move(math.inf, jumps=f"the result of {name!r} {kind}")
            elif tensor.is_floating_point() and tensor.itemsize < self.least:
                with self.refusing(name):
                    raise UncertifiedError(
                        f"it rounds to {tensor.dtype}, which makes small steps look far steeper; "
                        "certify a copy without casts to less than float32, and without autocast"
                    )
            self.put(tensor, self.near(tensor, move), write=write, over_constant=write)
        if name not in ("view", "t", "clone", "detach", "alias"):
            self.steps.append(Step(self.layers[-1], name, max(m.bound for m in found)))

    def near(self, tensor: Tensor, move: Move) -> Move:
        """Narrow the range of a value on the ball around 0, on which the network runs at 0."""
        if move.jumps:
            return move
        reach = times(move.bound, self.radius) * (1 + _OUTWARD)
        low, high = tensor.detach().double().aminmax() if tensor.numel() else (0.0, 0.0)
        if math.isfinite(low) and math.isfinite(high):
            low, high = max(float(low) - reach, move.low), min(float(high) + reach, move.high)
        else:
            low, high = move.low, move.high
        return move._replace(  # outward, for rounding; 0 is exact, as of relu
            low=low - abs(low) * _OUTWARD, high=high + abs(high) * _OUTWARD
        )

    @contextlib.contextmanager
    def refusing(self, name: str) -> Iterator[None]:
        """Name the operation and the module in a refusal."""
        try:
            yield
        except Exception as error:
            where = f" in layer {self.layers[-1]!r}" if self.layers[-1] else ""
            why = f": {error}" if str(error) else ""
            text = f"the constant of operation {name!r}{where} is not known{why}; {_WAY_OUT}"
            self.refusal = self.refusal or text
            # Not a TypeError, which operators of torch would take for an operand of another kind.
            raise RuntimeError(text) from error


class _Escapes(TorchFunctionMode):
    """Refuses what takes a value out of torch's sight: NumPy, lists, pointers."""

    def __init__(self, walk: Walk) -> None:
        super().__init__()
        self.walk = walk

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = getattr(func, "__name__", ""), (*args, *(kwargs or {}).values())
        if not self.walk.paused:
            self._check(name, given)
        arrays = name in _FROM_DATA and any(isinstance(g, np.ndarray) for g in tree_leaves(given))
        self.walk.looking += not arrays  # which may hold what NumPy made of values that move
        try:
            if func in _KNOWN and not self.walk.paused:
                return self._known(func, args, kwargs or {})
            return func(*args, **(kwargs or {}))
        finally:
            self.walk.looking -= not arrays

    def _check(self, name: str, given: Sequence[Any]) -> None:
        taken = given if name in _ESCAPES else ()
        if name in _FROM_LISTS:
            taken = tree_leaves([one for one in given if isinstance(one, list | tuple)])
        if any(self.walk.move(one) is not None for one in taken):
            with self.walk.refusing(name):
                raise UncertifiedError("its result cannot be followed")
        self.walk.exported.update(map(_storage, _dense(given) if name in _ESCAPES else ()))

    def _known(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Follow a function as a whole if its slopes say more than its operations do."""
        given = inspect.signature(func).bind(*args, **kwargs)
        given.apply_defaults()
        x, *options = given.args
        alone = not any(self.walk.move(one) for one in options) and self.walk.move(x)
        slopes = self.walk.elsewhere(_KNOWN[func], x, *options) if alone else None
        if slopes is None:
            return func(*args, **kwargs)
        return _as_a_whole(self.walk, func.__name__, func, slopes, args, kwargs)


def follow(
    module: nn.Module,
    shape: Sequence[int],
    *,
    radius: float = math.inf,
    constants: Mapping[str | type[nn.Module], float] | None = None,
) -> tuple[float, list[Step]]:
    """Bound the constant of a module on the ball of inputs, and say how it came about."""
    if is_transforming():
        raise untransformable("a certificate", "it is a number; call for it outside")
    with torch.inference_mode(False), torch.no_grad():
        used, (network, originals), dtype = _runnable(module, shape)
        sample = _Sample(used, network, shape, dtype, radius)
        changes = has_changed(originals.own_state)  # by itself: the walk will change its layers
        seen = chain(sample.seen.held, network.parameters(), network.buffers())
        move, steps, moving = _walk_through(network, shape, dtype, radius, constants or {}, seen)
        changes = changes or not originals.own.isdisjoint(moving)
        originals.check(sample.seen.held, changes=changes)
        if move.jumps:
            raise UncertifiedError(f"module may jump: {move.jumps}; {_WAY_OUT}")
        if not constants:
            sample.check(move.bound)
    return move.bound, steps


def checked_constants(
    parts: Iterable[tuple[str, nn.Module]], constants: Mapping[str | type[nn.Module], float]
) -> dict[str | type[nn.Module], float]:
    """Refuse constants that are none, or that belong to none of the named parts.

    Examples
    --------
    >>> checked_constants([("0", nn.ReLU())], {nn.ReLU: 1})
    {<class 'torch.nn.modules.activation.ReLU'>: 1.0}
    >>> checked_constants([("0", nn.ReLU())], {"1": 1})
    Traceback (most recent call last):
    ValueError: constants names '1', which is no layer of the module
    """
    known = {key for name, part in parts for key in (name, type_before_parametrizations(part))}
    if unknown := [key for key in constants if key not in known]:
        raise ValueError(f"constants names {unknown[0]!r}, which is no layer of the module")
    return {
        key: check_positive(np.asarray(c).item(), f"constants[{key!r}]")
        for key, c in constants.items()
    }


def _walk_through(
    network: nn.Module,
    shape: Sequence[int],
    dtype: torch.dtype,
    radius: float,
    constants: Mapping[str | type[nn.Module], float],
    seen: Iterable[Tensor],
) -> tuple[Move, list[Step], Iterable[int]]:
    walk = Walk(radius, dtype)
    x = torch.zeros(1, *shape, dtype=dtype, device=_device(network))
    for name, part in network.named_modules():
        given = constants.get(name, constants.get(type_before_parametrizations(part)))
        if isinstance(part, torch.jit.ScriptModule):
            if given is not None:
                raise UncertifiedError(
                    f"constants cannot name a scripted layer, {name!r}; name a module that holds it"
                )
            continue
        known = known_slopes(part) if given is None else _given(given)
        part.forward = functools.partial(_visit, walk, name, part, part.forward, known)
    y: Any = None
    try:
        with _plain_kernels(), _Escapes(walk), walk:
            walk.see([x, *_dense(list(seen))])
            walk.put(x, walk.near(x, Move(1.0)))
            y = network(x.clone())
            with walk.refusing("return"):
                walk.check_seen("return", _dense(y), blank=False)
    except Exception as error:
        if not walk.refusal:
            text = f"module cannot be followed: {error or type(error).__name__}; {_WAY_OUT}"
            raise UncertifiedError(text) from error
    if walk.refusal:
        raise UncertifiedError(walk.refusal)
    return walk.move(y) or Move(0.0), walk.steps, walk.moving()


def _given(constant: float) -> Callable[..., tuple[float, float]]:
    return lambda *_: (constant, -math.inf)


@contextlib.contextmanager
def _plain_kernels() -> Iterator[None]:
    """Have recurrent and attention layers call the operations that they are made of."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            warnings.catch_warnings(action="ignore"),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _device(module: nn.Module) -> torch.device:
    return next(chain(module.parameters(), module.buffers()), torch.empty(0)).device


def _visit(
    walk: Walk,
    name: str,
    module: nn.Module,
    forward: Callable[..., Any],
    known: Callable[..., tuple[float, float]] | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call a module, as a whole where its constant is given or follows from its class."""
    if walk.thread != threading.get_ident():
        with walk.refusing(type(module).__name__):
            raise UncertifiedError("it runs in a thread of its own")
    if walk.paused:
        return forward(*args, **kwargs)
    walk.layers.append(name)
    try:
        if known is None:
            return forward(*args, **kwargs)
        with walk.refusing(type(module).__name__):
            given = inspect.signature(forward).bind(*args, **kwargs)
            weight = getattr(module, "weight", None)  # here, where a parametrization is followed
            if walk.move(weight) is not None:
                raise UncertifiedError("its weight depends on the input")
            slopes = walk.elsewhere(known, weight, *given.args)
        return _as_a_whole(walk, type(module).__name__, forward, slopes, args, kwargs)
    finally:
        walk.layers.pop()


def _as_a_whole(
    walk: Walk,
    kind: str,
    forward: Any,
    slopes: tuple[float, float],
    args: Any,
    kwargs: Any,
) -> Any:
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    moves = [move for t in tensors if (move := walk.move(t)) is not None]
    with walk.refusing(kind):
        for move in moves:
            if move.jumps:
                raise UncertifiedError(move.jumps)
    result, copies = _on_copies(walk, kind, forward, tensors, (args, kwargs))
    held = {_storage(t) for t in _dense(result)}
    for tensor in tensors:
        if _storage(copies[id(tensor)]) in held:  # who changes a view of it would change it, too
            walk.put(tensor, _INSIDE, write=True)
    joint = moves[0] if len(moves) == 1 else Move(math.hypot(*(m.bound for m in moves)))
    found = walk.elsewhere(activated, joint, *slopes)  # whose products are not the network's
    for tensor in tree_leaves(result):
        if isinstance(tensor, Tensor):
            own = found if tensor.shape == tensors[0].shape else found._replace(spread=None)
            with _disable_current_modes():
                own = walk.near(tensor, own)
            walk.put(tensor, own, write=True)
    walk.steps.append(Step(walk.layers[-1], kind, found.bound))
    return result


def _on_copies(
    walk: Walk, kind: str, forward: Any, tensors: Sequence[Tensor], given: tuple[Any, Any]
) -> tuple[Any, dict[int, Tensor]]:
    """Run a layer unseen on copies of its tensors; return its result and the copies by `id`."""
    with _disable_current_modes():
        copies = {id(t): t.clone() for t in tensors}
    args, kwargs = tree_map(lambda t: copies.get(id(t), t), given)
    for tensor in copies.values():
        walk.put(tensor, _INSIDE)
    walk.paused = True
    try:
        result = forward(*args, **kwargs)
    finally:
        walk.paused = False
    with walk.refusing(kind):
        if any(c._version for c in copies.values()):
            raise UncertifiedError("it changes its input in place")
        if odd := [one for one in tree_leaves(result) if not isinstance(one, Tensor | _INERT)]:
            raise UncertifiedError(f"it returns {type(odd[0]).__name__}, which may hold tensors")
    lent = {id(copies[id(t)]): t for t in tensors}
    # The argument itself, where it is returned.
    return tree_map(lambda t: lent.get(id(t), t), result), copies


def known_slopes(module: Any) -> Callable[..., tuple[float, float]] | None:
    """Steepest and flattest slope of a layer, where they say more than its operations do."""
    if is_plain(module, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d):
        return lambda _, x: (_copies(module, x), -math.inf)
    if is_plain(module, *CONVOLUTIONS) and module.padding_mode != "zeros":
        axes = len(module.kernel_size)  # of the image, which may come without a batch
        return lambda weight, x: (layer_norm(module, x.shape[-axes:], weight), -math.inf)
    return None


def _normalize(x: Tensor, p: float, dim: Any, eps: float, *_: Any) -> tuple[float, float] | None:
    """``x / max(‖x‖, eps)`` is steepest where the norm is eps; for p = 2 it is x / eps there."""
    length = math.prod(x.shape[axis] for axis in np.atleast_1d(dim))
    factor = 1 if p == 2 else 1 + length ** abs(1 / 2 - 1 / max(p, 1))
    return (factor / eps, -math.inf) if p >= 1 and eps > 0 else None


def _rms_norm(_x: Tensor, _: Any, weight: Tensor | None, eps: float | None) -> Any:
    peak = 1.0 if weight is None else float(weight.abs().max())
    return (peak / math.sqrt(eps), -math.inf) if eps else None


def _rrelu(_: Tensor, lower: float, upper: float, training: bool, _inplace: bool) -> Any:
    slope = (lower + upper) / 2
    return None if training else (max(1.0, abs(slope)), min(1.0, slope))


# By their arguments; None where their operations have to be followed.
_KNOWN: dict[Any, Callable[..., tuple[float, float] | None]] = {
    functional.normalize: _normalize,
    functional.rms_norm: _rms_norm,
    functional.rrelu: _rrelu,
    **dict.fromkeys((functional.softsign, functional.tanhshrink), lambda _: (1.0, 0.0)),
}


def _copies(module: Any, x: Tensor) -> float:
    """Root of how often a layer that copies entries repeats one."""
    cells = torch.arange(x.numel(), dtype=torch.float64).reshape(x.shape)
    padded = functional.pad(cells, module.padding, mode="circular")
    return math.sqrt(int(torch.bincount(padded.flatten().long()).max()))


def _dense(values: Any) -> list[Tensor]:
    found = (v for v in tree_leaves(values) if isinstance(v, Tensor))
    return [tensor for tensor in found if tensor.layout is torch.strided]


def _is_move(value: Any) -> bool:
    return isinstance(value, Move)


def _storage(tensor: Tensor) -> int:
    with torch._C.DisableTorchFunction():
        storage = tensor.untyped_storage()
        return int(storage.data_ptr() or storage._cdata)  # two storages may share their memory


def _cells(tensor: Tensor) -> range:
    """Bytes of a storage between the first and the last entry of a tensor."""
    spans = ((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    start, size = tensor.storage_offset(), tensor.element_size()
    return range(start * size, (start + sum(spans) + 1) * size)


def _multiplicity(tensor: Tensor) -> float:
    """Root of how often a view repeats an entry of its storage."""
    if tensor.is_contiguous():
        return 1.0
    with torch._C.DisableTorchFunction():
        cells = torch.arange(tensor.untyped_storage().nbytes() // tensor.element_size())
    seen = cells.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return math.sqrt(int(torch.bincount(seen.flatten()).max()))


def _check_writes(written: Iterable[Tensor], read: Sequence[Tensor]) -> None:
    """Refuse writes that a functional operation, which the rules are about, would not do alike."""
    for target in written:
        if _multiplicity(target) > 1:
            raise UncertifiedError("it writes to entries that share their memory")
        cells, place = _cells(target), (_cells(target), target.shape, target.stride())
        for source in read:
            own = _cells(source)
            meets = own.start < cells.stop and cells.start < own.stop
            same = (own, source.shape, source.stride()) == place
            if meets and not same and _storage(source) == _storage(target):
                raise UncertifiedError("it reads memory that it writes; clone what it reads")


def _beside(before: Move | None, move: Move) -> Move:
    """Bound a storage of which a part was written, unknown in its constants."""
    before = before or Move(0.0)
    if before.jumps or move.jumps:
        return Move(math.inf, jumps=before.jumps or move.jumps)
    return Move(math.hypot(before.bound, move.bound))


def _doubled(value: Any, seen: dict[int, Tensor]) -> Any:
    """Widen to float64, and keep one tensor one."""
    if isinstance(value, list | tuple):
        return [_doubled(one, seen) for one in value]
    if not isinstance(value, Tensor):
        return value
    wide = value.detach()
    return seen.setdefault(id(value), wide.double() if wide.is_floating_point() else wide)


def _runnable(
    module: nn.Module, shape: Sequence[int]
) -> tuple[nn.Module, tuple[nn.Module, Originals], torch.dtype]:
    """Copy a module in float64, or in its own dtype if it insists; refuse what it refuses.

    The first of the two copies was called.
    """
    floating = (t.dtype for t in chain(module.parameters(), module.buffers()))
    own = next((d for d in floating if d.is_floating_point), torch.get_default_dtype())
    for dtype in (torch.float64, own):
        (used, _), (network, originals) = (
            copied(module, wide=dtype == torch.float64) for _ in range(2)
        )
        for part in chain(used.modules(), network.modules()):
            if isinstance(part, nn.RMSNorm) and part.eps is None:  # the default of its dtype
                part.eps = torch.finfo(torch.promote_types(own, torch.float32)).eps
        try:
            used(torch.zeros(3, *shape, dtype=dtype, device=_device(used)))
        except Exception as error:
            problem = error
        else:
            return used, (network, originals), dtype
    raise ValueError(f"module does not take inputs of shape {(*shape,)}: {problem}") from problem


class _Sample:
    """A few inputs and their images, which a true bound cannot contradict."""

    def __init__(
        self,
        used: nn.Module,
        network: nn.Module,
        shape: Sequence[int],
        dtype: torch.dtype,
        radius: float,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        base = torch.randn(3, math.prod(shape), generator=generator, dtype=torch.float64)
        step = torch.randn(3, math.prod(shape), generator=generator, dtype=torch.float64)
        points = torch.cat([base, base + step / 10])
        if radius < math.inf:
            points *= radius / points.norm(dim=1).max()
        self.points = points.reshape(6, *shape).to(dtype).to(_device(network))
        images, single, pair = self._images(used, network)
        if not isinstance(images, Tensor):
            raise UncertifiedError(
                f"module must return one tensor, got {type(images).__name__}; certify a module "
                "that returns one of its results, or all of them joined by torch.cat"
            )
        if images.numel() == 0 or images.is_complex() or images.is_meta:
            kind = f"{images.dtype} of shape {(*images.shape,)} on {images.device}"
            raise UncertifiedError(f"module must return real numbers, got {kind}")
        rows = images.reshape(6, -1) if images.shape[:1] == (6,) else None
        if bool(images.isnan().any()):
            raise UncertifiedError("module returns NaN for a random input")
        loose = 1e-6 if dtype == torch.float64 else 1e-2
        if rows is None or not (_close(rows[:1], single, loose) and _close(rows[4:], pair, loose)):
            raise UncertifiedError(
                "module must map each row of a batch by itself, in the same way each time; "
                "it mixes rows, draws random numbers, computes in less than float32, asks whether "
                "autograd is on, or remembers calls; call it once before, if that sets it up"
            )
        self.images, self.loose = rows.double(), loose

    def _images(self, used: nn.Module, network: nn.Module) -> tuple[Any, Any, Any]:
        """Call with all inputs, with one as the walk does, and with two while autograd is on."""
        try:
            # Clones, for a network that begins in place.
            with parametrize.cached():
                images = used(self.points.clone())
                with torch.enable_grad():
                    pair = used(self.points[4:].clone())
            with _Seen() as self.seen:
                single = network(self.points[:1].clone())
            return images, single, pair
        except Exception as error:
            raise UncertifiedError(f"module fails on a random input: {error}") from error

    def check(self, value: float) -> None:
        """Refuse a bound that the slopes between the inputs exceed."""
        distances = nn.functional.pdist(self.points.double().reshape(6, -1))
        steepest = float((nn.functional.pdist(self.images) / distances).max())
        noise = float(self.loose * self.images.abs().max() / distances.min())  # inf, if they meet
        if steepest > value + noise:
            raise UncertifiedError(
                f"the bound {value:.4g} is below a slope of {steepest:.4g} that was measured: the "
                "module does something that cannot be followed, outside of torch perhaps"
            )


def _close(rows: Tensor, single: object, loose: float) -> bool:
    if not isinstance(single, Tensor) or single.numel() != rows.numel():
        return False
    return torch.allclose(
        rows, single.reshape(rows.shape), rtol=loose, atol=loose * float(rows.abs().max())
    )
