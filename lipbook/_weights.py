"""The weights that layers use, parametrized or not: found, read, assigned; and constants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from lipbook._layers import evaluation_mode


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
