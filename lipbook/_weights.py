"""The weights that layers use, parametrized or not: found, read, assigned; and constants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from lipbook._checks import check_module
from lipbook._layers import evaluation_mode, try_out, whole_shape


class Weight(NamedTuple):
    """A parameter as its layer uses it; `name` is what ``state_dict`` would call it unparametrized.

    Examples
    --------
    >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    >>> [weight.name for weight in used_weights(layer)]
    ['bias', 'weight']
    """

    name: str
    layer: nn.Module
    attribute: str

    @property
    def parametrizations(self) -> ParametrizationList | None:
        """What the layer computes the weight by, or None for a plain parameter."""
        if not is_parametrized(self.layer, self.attribute):
            return None
        lists = cast(nn.ModuleDict, self.layer.parametrizations)
        return cast(ParametrizationList, lists[self.attribute])

    def value(self) -> Tensor:
        """Return the weight that the layer uses.

        To look changes nothing: a parametrization that moves with each access, as spectral
        normalization does in training mode, is read in evaluation mode.
        """
        listed = self.parametrizations
        if listed is None:
            return cast(Tensor, getattr(self.layer, self.attribute))
        with evaluation_mode(listed):
            return cast(Tensor, getattr(self.layer, self.attribute))

    @torch.no_grad()
    def assign(self, value: Tensor) -> None:
        """Make the layer use `value`.

        Raises
        ------
        ValueError
            If the layer's parametrization undoes or does not take it; the layer stays as it was.
        """
        listed = self.parametrizations
        if listed is None:
            cast(Tensor, getattr(self.layer, self.attribute)).copy_(value)
            return
        kept = {name: tensor.clone() for name, tensor in listed.state_dict().items()}
        cause = ""
        try:
            setattr(self.layer, self.attribute, value)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            cause = f" ({error})"
        tolerance = 1e-3 * value.abs().max().item()
        if not cause and torch.allclose(self.value(), value, rtol=1e-3, atol=tolerance):
            return
        listed.load_state_dict(kept)
        makers = ", ".join(type(maker).__name__ for maker in listed)
        raise ValueError(
            f"{self.name} cannot be set to what is asked: {makers} makes the layer's weight and "
            f"does not give it back{cause}; bound it by what makes it, or take that off with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )


def used_weights(module: nn.Module) -> Iterator[Weight]:
    """Yield every parameter of a network as its layers use it, each shared one once.

    Raises
    ------
    ValueError
        If a hook makes a weight, as pruning and the old `torch.nn.utils.spectral_norm` do, or a
        lazy layer has none yet: what is used is then known only after a forward pass.

    Examples
    --------
    >>> [weight.name for weight in used_weights(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))]
    ['0.weight', '0.bias']
    >>> list(used_weights(nn.utils.spectral_norm(nn.Linear(2, 3))))
    Traceback (most recent call last):
    ValueError: weight is made by a hook, SpectralNorm; ...
    """
    check_module(module, "module")
    makers: set[nn.Module] = set()
    seen: set[Tensor | None] = set()
    for prefix, layer in module.named_modules():
        if layer in makers:  # parameters of a parametrization are no layer's weights
            continue
        names = [name for name, parameter in layer._parameters.items() if parameter is not None]
        if is_parametrized(layer):
            lists = cast(nn.ModuleDict, layer.parametrizations)
            makers.update(lists.modules())
            names += lists
        refuse_hooks(prefix, layer)
        for name in names:
            parameter = layer._parameters.get(name)
            if nn.parameter.is_lazy(parameter):
                raise uninitialized(module, layer)
            if parameter is None or parameter not in seen:
                yield Weight(f"{prefix}.{name}".lstrip("."), layer, name)
            seen.add(parameter)


def used_matrices(module: nn.Module, name: str = "module") -> list[Weight]:
    """Return the weights with two axes or more: matrices and kernels, no biases, no scales.

    Raises
    ------
    TypeError
        If one is complex.
    ValueError
        If there is none, and as in `used_weights`.

    Examples
    --------
    >>> used_matrices(nn.BatchNorm1d(3), "model")
    Traceback (most recent call last):
    ValueError: model must have a parameter with two axes or more, BatchNorm1d has none; ...
    """
    matrices = [weight for weight in used_weights(module) if weight.value().ndim >= 2]
    if not matrices:
        raise ValueError(
            f"{name} must have a parameter with two axes or more, {type(module).__name__} has "
            "none; biases and the parameters of norm layers do not count"
        )
    if odd := [weight.name for weight in matrices if weight.value().is_complex()]:
        raise TypeError(f"{name} must have real weights, {odd[0]} is complex: its squares are, too")
    return matrices


def image_shapes(
    module: nn.Module, input_shape: Sequence[int], layers: Iterable[nn.Module]
) -> dict[nn.Module, tuple[int, ...]]:
    """Return what images the convolutions see when the module is given one input: their shape.

    Parameters
    ----------
    module : nn.Module
        Runs once, in evaluation mode.
    input_shape : sequence of int
        Of one input, without the batch.
    layers : iterable of nn.Module
        The convolutions to look at; one that sees no images has no shape.

    Raises
    ------
    TypeError, ValueError
        If the module does not take such an input, or one layer sees images of several shapes, or
        is given them by name, past the hooks.

    Examples
    --------
    >>> net = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 1, 3))
    >>> list(image_shapes(net, (3, 8, 8), [net[1]]).values())
    [(3, 4, 4)]
    >>> image_shapes(net, (3, 4, 4), [net[1]])
    Traceback (most recent call last):
    ValueError: module does not take inputs of shape (3, 4, 4): ...
    """
    seen: dict[nn.Module, dict[Any, None]] = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        shape = tuple(inputs[0].shape[1:]) if inputs else None
        seen.setdefault(layer, {})[shape] = None

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        try_out(module, whole_shape(input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    for layer, shapes in seen.items():
        if None in shapes:
            raise ValueError(f"{layer} must be given its images by position, not by name")
        if len(shapes) > 1:
            raise ValueError(
                f"the norm of {layer} depends on the size of its images, which are of shape "
                f"{' and of shape '.join(map(str, shapes))}; leave input_shape out, or take each "
                "layer by itself, this one with the largest size"
            )
    return {layer: next(iter(shapes)) for layer, shapes in seen.items()}


def constant(tensor: Tensor) -> Tensor:
    """Return the tensor without its history; one of inference mode as an ordinary one.

    Examples
    --------
    >>> with torch.inference_mode():
    ...     x = torch.ones(2)
    >>> constant(x).requires_grad_().requires_grad
    True
    """
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def uninitialized(owner: nn.Module, layer: nn.Module) -> ValueError:
    """Return the error to raise about a lazy layer."""
    where = "" if owner is layer else f" in {type(owner).__name__}"
    return ValueError(f"{layer}{where} must be initialized; run a batch through it first")


def refuse_hooks(prefix: str, layer: nn.Module) -> None:
    for hook in layer._forward_pre_hooks.values():
        name = getattr(hook, "name", getattr(hook, "_tensor_name", None))
        if isinstance(name, str) and name not in layer._parameters:
            where = f"{prefix}.{name}".lstrip(".")
            raise ValueError(
                f"{where} is made by a hook, {type(hook).__name__}; take its successor in "
                "torch.nn.utils.parametrizations, or make it permanent first (prune.remove, "
                "remove_spectral_norm, remove_weight_norm)"
            )
