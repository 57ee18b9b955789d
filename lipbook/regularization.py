"""Chapter 4: terms that a training adds to its loss, on the weights (11), (16) or the gradient.

Each term is a differentiable number without its factor λ, for use as a penalty of a loss. Weights
that count are those of `penalized_weights`: biases and the parameters of norm layers are left
alone.

A weight whose output goes straight into BatchNorm is a weight without a scale: the layer after it
takes out what the term takes off. There, with λ of 1e-2 or more and momentum, the term shrinks the
weight until a single step explodes (chapter 2), so leave such weights out, by penalizing the other
layers only: ``SpectralPenalty(nn.ModuleList([net[3]]))``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipbook._checks import (
    check_count,
    check_labelled,
    is_transforming,
    untransformable,
    wrong_type,
)
from lipbook._layers import CONVOLUTIONS, TRANSPOSED, normal_state
from lipbook._weights import Weight, constant, image_shapes, used_matrices

_NO_GRADIENT = "model must be differentiable, and its output depend on the inputs"
_FIRST_ITERATIONS = 15  # as torch.nn.utils.parametrizations.spectral_norm


def penalized_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights with two axes or more: those of dense and other linear maps.

    Biases, and the scales and shifts of norm layers, have one axis. A parametrized weight is the
    one that the layer uses, differentiable in what it is made of; others are the parameters.

    Parameters
    ----------
    model : nn.Module
        Of any kind.

    Returns
    -------
    dict of str to Tensor
        By the names of ``model.named_parameters()``, of a parametrized weight by the name that it
        had before; a shared weight once.

    Raises
    ------
    ValueError
        If there are none, or a hook makes one (pruning, the old `torch.nn.utils.spectral_norm`),
        or a lazy layer has none yet.

    Examples
    --------
    >>> list(penalized_weights(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))))
    ['0.weight']
    >>> halved = nn.utils.parametrizations.spectral_norm(
    ...     nn.Linear(2, 2), n_power_iterations=30
    ... )
    >>> weight = penalized_weights(halved)["weight"]
    >>> round(torch.linalg.matrix_norm(weight, 2).item(), 3)
    1.0
    >>> penalized_weights(nn.BatchNorm1d(3))
    Traceback (most recent call last):
    ValueError: model must have a parameter with two axes or more, ...
    """
    return {weight.name: weight.value() for weight in used_matrices(model, "model")}


def frobenius_penalty(model: nn.Module) -> Tensor:
    """Sum of the squared entries of the weights: the l2 term (12), ``Σ ‖W‖_F²``.

    Parameters
    ----------
    model : nn.Module
        See `penalized_weights`.

    Returns
    -------
    Tensor, shape ()
        At least float32. Its gradient is ``2 W``.

    Raises
    ------
    ValueError
        If no weight counts.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> _ = nn.init.eye_(layer.weight)
    >>> frobenius_penalty(layer)
    tensor(2., grad_fn=...)
    >>> frobenius_penalty(nn.ReLU())
    Traceback (most recent call last):
    ValueError: model must have a parameter with two axes or more, ...
    """
    return torch.stack(
        [_at_least_float32(w).square().sum() for w in penalized_weights(model).values()]
    ).sum()


class SpectralPenalty(nn.Module):
    r"""Sum of the squared spectral norms of the weights, (16): ``Σ ‖W‖₂²``, by power iteration.

    A unit vector v is kept for each weight. Every call improves it by steps of power iteration,
    (13), and returns ``Σ ‖W v‖²`` with v taken for a constant, so that the gradient is
    :math:`2σ u v^\top` with :math:`σu = Wv`, of rank one. The weights move little between two
    calls, and the vectors follow them (Yoshida & Miyato 2017). The value is a lower bound: the
    term itself draws the largest singular values together, and among near ties one step a call
    sees a part of it, about 86 % in chapter 4, and more steps more. As in torch's
    ``spectral_norm``, the first vectors get fifteen steps, and in evaluation mode they stay as
    they are.

    The module holds the model, so that its ``state_dict`` has weights and vectors, and loading it
    resumes a training where it was; ``to`` moves both.

    Parameters
    ----------
    model : nn.Module
        See `penalized_weights`.
    input_shape : sequence of int, optional
        Of one input, without the batch. With it, a convolution that sees such inputs counts with
        its operator norm (`lipbook.conv_spectral_norm`); without it, and for weights of any other
        kind, each weight W counts as the matrix ``W.flatten(1)``, which for a convolution is a
        lower bound (PI7).
    n_power_iterations : int, default 1
        Steps in each call.
    generator : torch.Generator, optional
        On the CPU; draws the first vectors. By default a fresh one of seed 0.

    Raises
    ------
    TypeError, ValueError
        If no weight counts, as in `penalized_weights`, or an argument has the wrong type or range.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> layer.weight.data = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> penalty = SpectralPenalty(layer)
    >>> round(penalty().item(), 4)
    9.0
    >>> sorted(penalty.state_dict())
    ['model.bias', 'model.weight', 'v0']
    >>> SpectralPenalty(layer, n_power_iterations=0)
    Traceback (most recent call last):
    ValueError: n_power_iterations must be at least 1, got 0
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        input_shape: Sequence[int] | None = None,
        n_power_iterations: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.n_power_iterations = check_count(n_power_iterations, "n_power_iterations")
        weights = used_matrices(model, "model")
        self.names = [weight.name for weight in weights]
        kernels: dict[nn.Module, str] = {
            weight.layer: weight.name
            for weight in weights
            if weight.attribute == "weight"
            and isinstance(weight.layer, (*CONVOLUTIONS, *TRANSPOSED))
        }
        shapes = {} if input_shape is None else image_shapes(model, input_shape, kernels)
        self.images = {kernels[layer]: shape for layer, shape in shapes.items()}
        if not isinstance(generator, torch.Generator | None):
            raise wrong_type(generator, "generator", "a torch.Generator")
        generator = generator or torch.Generator().manual_seed(0)
        with torch.inference_mode(False), torch.no_grad():
            for i, weight in enumerate(weights):
                value = _at_least_float32(weight.value())
                shape = self.images.get(weight.name, value[0].flatten().shape)
                v = torch.randn(1, *shape, generator=generator).to(value)
                for _ in range(_FIRST_ITERATIONS):
                    v = self._step(weight, value, v)
                self.register_buffer(f"v{i}", v)

    def forward(self) -> Tensor:
        """Return the penalty, shape (), in float32 or float64."""
        # Found anew in each call: a copy of this module has another model.
        weights = {weight.name: weight for weight in used_matrices(self.model, "model")}
        terms = [self._squared_norm(i, weights[name]) for i, name in enumerate(self.names)]
        return torch.stack(terms).sum()

    def _squared_norm(self, i: int, weight: Weight) -> Tensor:
        stored, value = self.get_buffer(f"v{i}"), _at_least_float32(weight.value())
        v = stored.to(value, copy=True).detach()
        if self.training:
            for _ in range(self.n_power_iterations):
                v = self._step(weight, value, v)
            stored.copy_(v)
        return self._product(weight, value, v).square().sum()

    @torch.inference_mode(False)
    @torch.enable_grad()
    def _step(self, weight: Weight, value: Tensor, v: Tensor) -> Tensor:
        """Take one step of (13): the gradient of ‖Wv‖² in v is 2WᵀWv, whatever linear map W is."""
        value, start = constant(value), constant(v).requires_grad_()
        squared = self._product(weight, value, start).square().sum()
        (image,) = torch.autograd.grad(squared, start)
        length = torch.linalg.vector_norm(image)
        # Where W is 0, so is the image; the vector waits for a weight that is not.
        usable = (length > 0) & length.isfinite()
        return torch.where(usable, image / length, start.detach())

    def _product(self, weight: Weight, value: Tensor, v: Tensor) -> Tensor:
        """Apply the weight as the linear map that it is, without its bias; v has a batch axis."""
        if weight.name not in self.images:
            return F.linear(v, value.flatten(1))
        layer: Any = weight.layer
        if isinstance(layer, CONVOLUTIONS):
            return cast(Tensor, layer._conv_forward(v, value, None))
        transposed = getattr(F, f"conv_transpose{v.ndim - 2}d")
        options = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        return cast(Tensor, transposed(v, value, None, *options))


def input_gradient_penalty(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Tensor:
    """Mean squared length of the loss's gradient with respect to the input: double backpropagation.

    The older relative of (19) for a supervised model: it takes the gradient of the loss, and
    brings it to 0 instead of 1 (Drucker & LeCun 1992; Ross & Doshi-Velez 2018). SR4 compares both.

    Parameters
    ----------
    model : nn.Module
        From inputs to logits of shape (n, n_classes), row by row, and differentiable twice. It is
        run in its present mode; BatchNorm in training mode makes an example's gradient depend on
        the others.
    inputs : Tensor, shape (n, ...)
        On the device and of the dtype of the model.
    labels : Tensor, shape (n,)
        int64 classes from 0.
    criterion : callable, default torch.nn.functional.cross_entropy
        From logits and labels to a mean loss.

    Returns
    -------
    Tensor, shape ()
        At least float32, differentiable in the parameters, and in the inputs if they need it.

    Raises
    ------
    TypeError, ValueError
        If the inputs are no finite floating-point tensor, the labels no matching classes, or the
        loss does not depend on the inputs by autograd.

    Examples
    --------
    >>> x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([0])
    >>> input_gradient_penalty(nn.Identity(), x, y)  # the gradient is (-1/2, 1/2)
    tensor(0.5000, grad_fn=...)
    >>> input_gradient_penalty(nn.Identity(), x, y.float())
    Traceback (most recent call last):
    TypeError: labels must be an int64 tensor, got torch.float32; ...
    """
    check_labelled(inputs, labels)
    if is_transforming():
        raise untransformable("input_gradient_penalty", "take torch.autograd.grad or backward")
    modules = [model] if isinstance(model, nn.Module) else []
    with torch.inference_mode(False), torch.enable_grad(), normal_state(modules):
        labels = constant(labels)
        x = inputs if inputs.requires_grad else constant(inputs).requires_grad_()
        # A clone, which the model may change in place.
        total = criterion(model(x.clone()), labels) * len(x)
        if not total.requires_grad:
            raise ValueError(_NO_GRADIENT)
        (gradient,) = torch.autograd.grad(total, x, create_graph=True, allow_unused=True)
        if gradient is None:
            raise ValueError(_NO_GRADIENT)
        return _at_least_float32(gradient).square().sum() / len(x)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
