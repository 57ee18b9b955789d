"""The layers of a network: their kinds, their modes, a copy of a network that may be changed."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import operator
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ACTIVATIONS = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh),
    *(nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid),
    *(nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink),
)
# The methods that a call goes through; nn.Sequential iterates over itself.
_WAY = ("__call__", "_call_impl", "forward", "_conv_forward", "__iter__")
BATCH_NORM = nn.modules.batchnorm._BatchNorm  # also the lazy ones
RESHAPES = (nn.Identity, nn.Flatten, nn.Unflatten)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)

# Whose parametrizations depend on the weight and on nothing that a network may change.
_SETTLED = ("torch.nn.utils.parametrizations", "lipbook.parametrizations")
_TENSORS = (Tensor, nn.Parameter, nn.Buffer)  # no subclasses: they may compute differently

Function = TypeVar("Function", bound=Callable[..., Any])


@contextmanager
def evaluation_mode(f: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Switch every module in `f` to evaluation mode, and back to its own mode at the end.

    Dropout and BatchNorm are functions of one input only in evaluation mode. A plain function is
    left alone.

    Examples
    --------
    >>> import torch
    >>> dropout = nn.Dropout(0.5)
    >>> with evaluation_mode(dropout):
    ...     dropout(torch.ones(3)), dropout.training
    (tensor([1., 1., 1.]), False)
    >>> dropout.training
    True
    """
    if isinstance(f, nn.Module) and not all(hasattr(m, "training") for m in f.modules()):
        raise TypeError(
            "a frozen script has no mode to switch; give the module that it was made of"
        )
    modes = {m: m.training for m in f.modules()} if isinstance(f, nn.Module) else {}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def any_grad_mode(function: Function) -> Function:
    """Have a function compute gradients as it needs them, whatever mode its caller is in.

    Its result is detached if the caller wants no gradients.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        wanted = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            args = tuple(_normal(one) for one in args)
            kwargs = {key: _normal(one) for key, one in kwargs.items()}
            with normal_state([f for f in (*args, *kwargs.values()) if isinstance(f, nn.Module)]):
                result = function(*args, **kwargs)
            return result.detach() if isinstance(result, Tensor) and not wanted else result

    return cast(Function, call)


def _normal(value: Any) -> Any:
    """Copy a tensor of inference mode, which autograd does not take."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


@contextmanager
def normal_state(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put copies in the places of a module's inference tensors for a while."""
    with contextlib.ExitStack() as stack:
        for module in modules:
            copies = {
                f"{prefix}.{name}".lstrip("."): tensor.clone()
                for prefix, layer in module.named_modules()  # each once, though it may share
                for name, tensor in chain(layer._parameters.items(), layer._buffers.items())
                if tensor is not None and not nn.parameter.is_lazy(tensor) and tensor.is_inference()
            }
            if copies:
                stack.enter_context(torch.nn.utils.stateless._reparametrize_module(module, copies))
        yield


def reached(f: object, depth: int = 3) -> list[nn.Module]:
    """Return the modules that a function may call: those it names, and itself.

    Examples
    --------
    >>> layer = nn.ReLU()
    >>> reached(layer), reached(lambda x: layer(x)), reached(layer.forward)
    ([ReLU()], [ReLU()], [ReLU()])
    """
    if isinstance(f, nn.Module):
        return [f]
    held: list[object] = []
    if depth == 0 or (isinstance(f, types.FunctionType) and f.__module__.startswith("torch.")):
        return []
    if isinstance(f, functools.partial):
        held = [f.func, *f.args, *f.keywords.values()]
    elif isinstance(f, types.MethodType):
        held = [f.__self__, f.__func__]
    elif isinstance(f, types.FunctionType):
        cells = [cell.cell_contents for cell in f.__closure__ or () if cell != types.CellType()]
        named = [f.__globals__[name] for name in f.__code__.co_names if name in f.__globals__]
        held = [*cells, *named, *(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
    elif not isinstance(f, type | types.ModuleType):
        held = [one for one in getattr(f, "__dict__", {}).values() if isinstance(one, nn.Module)]
    return list(dict.fromkeys(m for one in held for m in reached(one, depth - 1)))


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module computes what torch's classes do: no way to its result or hook of its own.

    Examples
    --------
    >>> layer = nn.ReLU()
    >>> is_plain(layer, nn.ReLU), is_plain(layer, nn.Tanh)
    (True, False)
    >>> _ = layer.register_forward_hook(lambda module, inputs, output: 5 * output)
    >>> is_plain(layer, nn.ReLU)
    False
    """
    everywhere = nn.modules.module
    hooks = (
        *(module._forward_hooks, everywhere._global_forward_hooks),
        *(module._forward_pre_hooks, everywhere._global_forward_pre_hooks),
    )
    kind = next((kind for kind in kinds if isinstance(module, kind)), None)
    if kind is None or any(hooks) or not vars(module).keys().isdisjoint(_WAY):
        return False
    return all(getattr(type(module), way, None) == getattr(kind, way, None) for way in _WAY)


def layers(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Walk through a (nested) ``nn.Sequential`` in order, with dotted names."""
    if not is_plain(model, nn.Sequential):
        yield prefix, model
        return
    for name, child in model._modules.items():  # named_children leaves a second occurrence out
        if child is not None:
            yield from layers(child, f"{prefix}.{name}" if prefix else name)


def mixes_rows(layer: nn.Module) -> bool:
    """Whether a BatchNorm layer has no statistics but those of the batch, in evaluation too."""
    return isinstance(layer, BATCH_NORM) and layer.running_mean is None


def whole_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one input as integers.

    Raises
    ------
    TypeError
        If it is not a sequence, or an axis is not an integer.
    ValueError
        If an axis is shorter than 1.
    """
    if not isinstance(input_shape, Iterable):
        raise TypeError(f"input_shape must be integers, got one {type(input_shape).__name__}")
    try:
        shape = tuple(operator.index(length) for length in input_shape)
    except TypeError as error:
        raise TypeError(f"input_shape must be integers, got {input_shape}") from error
    if any(length < 1 for length in shape):
        raise ValueError(f"input_shape must have axes of at least 1, got {shape}")
    return shape


def frozen_copy(module: nn.Module) -> nn.Module:
    """Copy a network as it computes in evaluation mode, without gradients.

    Raises
    ------
    TypeError
        If the network cannot be copied, or holds tensors without memory.
    """
    return copied(module)[0]


class Originals(NamedTuple):
    """What a copy was made of: the copy must not change it, nor read it where it changes itself."""

    memories: set[int]
    own: set[int]  # memories of the copy
    state: list[tuple[Any, list[int]]]  # containers, and what they hold, by `id`
    own_state: list[tuple[Any, list[int]]]

    def check(self, taken: Iterable[Tensor], *, changes: bool) -> None:
        """Refuse a copy that was given such tensors while it changes, or that changed them."""
        read = changes and any(_address(tensor) in self.memories for tensor in taken)
        if read or has_changed(self.state):
            raise TypeError(
                "module cannot be copied: a function that it holds, a hook perhaps, reads or "
                "changes the module itself; make it a method, or a module that is given what it "
                "needs"
            )


def copied(module: nn.Module, *, wide: bool = False) -> tuple[nn.Module, Originals]:
    """Make a frozen copy, with its parameters and buffers in float64 if `wide`.

    Tensors that share their memory do so in the copy, and parametrizations stay.
    """
    with torch.inference_mode(False), torch.no_grad():
        _check_numbers(module)
        # copy.deepcopy takes no tensor that was computed, such as the weight that a hook leaves.
        held = [v for m in module.modules() for v in vars(m).values() if isinstance(v, Tensor)]
        held += [*module.parameters(), *module.buffers()]
        computed = [t for t in held if not t.is_leaf or t.is_inference()]
        memo: dict[int, Any] = {
            id(t): nn.Parameter(t.clone(), False)
            if isinstance(t, nn.Parameter)
            else t.detach().clone()
            for t in computed
        }
        try:
            twin = copy.deepcopy(module, memo)
        except Exception as error:
            raise TypeError(f"module must be copied before it is followed: {error}") from error
        # copy.deepcopy keeps alive what it has copied.
        originals = [*{id(one): one for one in [*computed, *memo[id(memo)]]}.values()]
        _share(module, originals, memo, wide=wide)
        twin.eval()
        for part in list(twin.modules()):
            if wide and isinstance(part, torch.jit.ScriptModule):
                part.double()
            elif parametrize.is_parametrized(part):
                _settle(part, wide=wide)
        for parameter in twin.parameters():  # one by one: a scripted module cannot do it
            parameter.requires_grad_(False)
        copies = [memo[id(one)] for one in originals if id(one) in memo]
        memories, own = _memories(originals), _memories(copies)
        return twin, Originals(memories, own, _state(originals), _state(copies))


def _settle(part: Any, *, wide: bool) -> None:
    """Keep the weights that parametrizations compute from themselves alone; let others follow.

    torch's `remove_parametrizations` would take them from the class, which a copy shares.
    """
    lists = list(part.parametrizations.values())
    if any(type(maker).__module__ not in _SETTLED for makers in lists for maker in makers):
        for makers in lists if wide else ():
            makers.append(_Double())
        return
    weights = {name: getattr(part, name).detach().clone() for name in part.parametrizations}
    del part.parametrizations
    part.__class__ = type(part).__bases__[0]
    for name, weight in weights.items():
        double = wide and weight.is_floating_point()
        part.register_parameter(name, nn.Parameter(weight.double() if double else weight, False))


def _state(objects: Sequence[Any]) -> list[tuple[Any, list[int]]]:
    states = [vars(one) for one in objects if hasattr(one, "__dict__")]
    containers = [o for o in (*states, *objects) if isinstance(o, dict | list | set)]
    return [(one, _held(one)) for one in containers]


def has_changed(state: Iterable[tuple[Any, list[int]]]) -> bool:
    return any(_held(one) != held for one, held in state)


def _memories(objects: Iterable[Any]) -> set[int]:
    """Return where the memories begin; refuse those that copies of arrays would separate."""
    arrays = [np.lib.array_utils.byte_bounds(o) for o in objects if isinstance(o, np.ndarray)]
    tensors = {_address(o): o for o in objects if isinstance(o, Tensor) and _address(o)}
    spans = [(a, a + t.untyped_storage().nbytes()) for a, t in tensors.items()]
    for i, (start, stop) in enumerate(arrays):
        if any(a < stop and start < b for a, b in (*arrays[:i], *spans)):
            raise TypeError("module must not hold an array of NumPy that shares its memory")
    return {start for start, _ in (*arrays, *spans)}


class _Double(nn.Module):
    """What a parametrization computed in its own dtype, in that of the copy."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.double()


def _share(
    module: nn.Module, originals: Sequence[Any], memo: Mapping[int, Any], *, wide: bool
) -> None:
    """Give copies of tensors one memory where the originals have one, in float64 if `wide`."""
    makers = {
        maker
        for part in module.modules()
        if parametrize.is_parametrized(part)
        for maker in cast(nn.Module, part.parametrizations).modules()
    }
    used = {
        id(tensor)
        for part in module.modules()
        if part not in makers
        for tensor in chain(part._parameters.values(), part._buffers.values())
    }
    groups: dict[int, list[Tensor]] = {}
    for one in originals:
        if type(one) in _TENSORS and one.layout is torch.strided and one.numel():
            groups.setdefault(_address(one), []).append(one)
    for tensors in groups.values():
        first = tensors[0]
        if len({tensor.dtype for tensor in tensors}) > 1:
            raise TypeError("module must not hold one memory as numbers of two kinds")
        size = first.untyped_storage().nbytes() // first.itemsize
        memory = first.detach().as_strided((size,), (1,), 0)
        if wide and first.is_floating_point() and any(id(t) in used for t in tensors):
            memory = memory.to(torch.float64, copy=True)
        elif len(tensors) == 1:
            continue
        else:
            memory = memory.clone()
        for tensor in tensors:
            memo[id(tensor)].data = memory.as_strided(
                tensor.shape, tensor.stride(), tensor.storage_offset()
            )


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


def _held(container: Any) -> list[int]:
    return [*map(id, gc.get_referents(container))]


def _check_numbers(module: nn.Module) -> None:
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if tensor.layout is not torch.strided:
            raise TypeError(f"module must hold dense tensors, {name!r} is sparse; densify it")
        if nn.parameter.is_lazy(tensor):
            raise TypeError(f"module must be initialized, {name!r} is not; call it once before")
        if tensor.is_meta or type(tensor) not in _TENSORS:
            kind = "a meta tensor" if tensor.is_meta else f"a {type(tensor).__name__}"
            raise TypeError(f"module must hold its numbers, {name!r} is {kind}")
        if tensor.is_floating_point() and tensor.itemsize == 1:  # torch hardly computes in float8
            raise TypeError(f"module must compute in float16 at least, {name!r} is {tensor.dtype}")
        finite = torch.isfinite(tensor)
        if not isinstance(tensor, nn.Parameter):  # a mask of attention is -inf where it is shut
            finite |= tensor == -torch.inf
        if not bool(finite.all()):
            raise ValueError(f"module must hold finite numbers, {name!r} does not")


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
    like = next(chain(module.parameters(), module.buffers()), torch.empty(0))
    inputs = torch.zeros(3, *shape, dtype=like.dtype, device=like.device)
    refused = f"module does not take inputs of shape {(*shape,)}"
    with told_why(refused), evaluation_mode(module), torch.no_grad():
        module(inputs)


@contextmanager
def told_why(refused: str) -> Iterator[None]:
    """Say what was refused in front of what a module says of an input that it does not take.

    Examples
    --------
    >>> with told_why("no such input"):
    ...     nn.Linear(2, 3)(torch.zeros(4))
    Traceback (most recent call last):
    ValueError: no such input: ...
    """
    try:
        yield
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        raise ValueError(f"{refused}: {error}") from error
