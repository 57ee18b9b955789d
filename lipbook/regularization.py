"""Chapter 4: terms that a training adds to its loss, on the weights (11), (16) or the gradient.

Each term is a differentiable number without its factor λ, for use as a penalty of a loss. Weights
that count are those of `penalized_weights`: biases and the parameters of norm layers are left
alone.

A weight whose output goes straight into BatchNorm is a weight without a scale: the layer after it
takes out what the term takes off. There, with λ of 1e-2 or more and momentum, the term shrinks the
weight until a single step explodes (chapter 2), so leave such weights out, by penalizing the other
layers only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lipbook._checks import check_count, check_labelled
from lipbook._layers import evaluation_mode

_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_FIRST_ITERATIONS = 15  # as torch.nn.utils.parametrizations.spectral_norm


def penalized_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters with two axes or more: the weights of dense and other linear maps.

    Biases, and the scales and shifts of norm layers, have one axis.

    Parameters
    ----------
    model : nn.Module
        Of any kind.

    Returns
    -------
    dict of str to nn.Parameter
        By the names of ``model.named_parameters()``; a shared weight once.

    Raises
    ------
    ValueError
        If there are none.

    Examples
    --------
    >>> list(penalized_weights(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))))
    ['0.weight']
    >>> penalized_weights(nn.BatchNorm1d(3))
    Traceback (most recent call last):
    ValueError: model must have a parameter with two axes or more, BatchNorm1d has none; ...
    """
    weights = {name: p for name, p in model.named_parameters() if p.ndim >= 2}
    if not weights:
        raise ValueError(
            f"model must have a parameter with two axes or more, {type(model).__name__} has none; "
            "biases and the parameters of norm layers are not penalized"
        )
    return weights


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
    ValueError: model must have a parameter with two axes or more, ReLU has none; ...
    """
    return torch.stack([_at_least_float32(w).square().sum() for w in _weights(model)]).sum()


class SpectralPenalty(nn.Module):
    r"""Sum of the squared spectral norms of the weights, (16): ``Σ ‖W‖₂²``, by power iteration.

    A unit vector v is kept for each weight. Every call improves it by steps of power iteration,
    (13), and returns ``Σ ‖W v‖²`` with v taken for a constant, so that the gradient is
    :math:`2σ u v^\top` with :math:`σu = Wv`, of rank one. The weights move little between two
    calls, and the vectors follow them (Yoshida & Miyato 2017). The value is a lower bound: the
    term itself draws the largest singular values together, and among near ties one step a call
    sees a part of it, 85 to 90 % in chapter 4, and more steps more. As in torch's
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
        If no weight counts, or `n_power_iterations` is no positive integer.

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
        weights = penalized_weights(model)
        self.names = list(weights)
        self.images = {} if input_shape is None else _image_shapes(model, input_shape)
        generator = generator or torch.Generator().manual_seed(0)
        for i, (name, weight) in enumerate(weights.items()):
            shape = self.images.get(name, weight[0].flatten().shape)
            v = torch.randn(1, *shape, generator=generator).to(_at_least_float32(weight))
            for _ in range(_FIRST_ITERATIONS):
                v = self._step(name, v)
            self.register_buffer(f"v{i}", v)

    def forward(self) -> Tensor:
        """Return the penalty, shape (), in float32 or float64."""
        return torch.stack([self._squared_norm(*pair) for pair in enumerate(self.names)]).sum()

    def _squared_norm(self, i: int, name: str) -> Tensor:
        stored = self.get_buffer(f"v{i}")
        v = stored.to(_at_least_float32(self.model.get_parameter(name)), copy=True).detach()
        if self.training:
            for _ in range(self.n_power_iterations):
                v = self._step(name, v)
            stored.copy_(v)
        return self._product(name, v).square().sum()

    def _step(self, name: str, v: Tensor) -> Tensor:
        """Take one step of (13): the gradient of ‖Wv‖² in v is 2WᵀWv, whatever linear map W is."""
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            (image,) = torch.autograd.grad(self._product(name, v).square().sum(), v)
        length = torch.linalg.vector_norm(image)
        # Where W is 0, so is the image; the vector waits for a weight that is not.
        return torch.where(length > 0, image / length, v.detach())

    def _product(self, name: str, v: Tensor) -> Tensor:
        """Apply the weight as the linear map that it is, without its bias; v has a batch axis."""
        weight = _at_least_float32(self.model.get_parameter(name))
        if name not in self.images:
            return F.linear(v, weight.flatten(1))
        layer = self.model.get_submodule(name.rpartition(".")[0])
        parameters = {"weight": weight}
        if isinstance(layer.bias, Tensor):
            parameters["bias"] = torch.zeros_like(layer.bias, dtype=weight.dtype)
        product: Tensor = functional_call(layer, parameters, (v,))
        return product


def input_gradient_penalty(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Tensor:
    """Mean squared length of the loss's gradient in the input: double backpropagation.

    The answer to the article's question whether (19) can regularize a supervised model, with the
    target 0 in place of 1 (Drucker & LeCun 1992; Ross & Doshi-Velez 2018).

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
        If the inputs are no finite floating-point tensor, or the labels no matching classes.

    Examples
    --------
    >>> x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([0])
    >>> input_gradient_penalty(nn.Identity(), x, y)  # the gradient is (-1/2, 1/2)
    tensor(0.5000, grad_fn=...)
    >>> input_gradient_penalty(nn.Identity(), x, y.float())
    Traceback (most recent call last):
    TypeError: labels must be an int64 tensor, got torch.float32; labels.long() converts it
    """
    check_labelled(inputs, labels)
    with torch.enable_grad():
        x = inputs if inputs.requires_grad else inputs.detach().requires_grad_()
        total = criterion(model(x), labels) * len(x)
        (gradient,) = torch.autograd.grad(total, x, create_graph=True)
        return _at_least_float32(gradient).square().sum() / len(x)


def _weights(model: nn.Module) -> list[nn.Parameter]:
    return list(penalized_weights(model).values())


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _image_shapes(model: nn.Module, input_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of one input of each convolution, by the name of its weight."""
    layers: dict[nn.Module, str] = {
        layer: f"{prefix}.weight".lstrip(".")
        for prefix, layer in model.named_modules()
        if isinstance(layer, _CONVOLUTIONS)
    }
    shapes: dict[str, tuple[int, ...]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[layers[layer]] = tuple(inputs[0].shape[1:])

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with evaluation_mode(model), torch.no_grad():
            model(next(model.parameters()).new_zeros(1, *input_shape))
    except RuntimeError as error:
        raise ValueError(f"model does not take inputs {tuple(input_shape)}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return shapes
