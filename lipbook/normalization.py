"""Chapter 6: weights divided by their norm, inside the forward pass or after the step.

`spectral_normalize` makes a layer use ``W/‖W‖₂`` and trains through the division (Miyato et al.
2018); `project_spectral_` overwrites W after the optimizer's step, as the article's first Keras
listing does. `certificate.lipschitz_certificate` bounds what either makes of a whole network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipbook._checks import check_bool, check_count, check_module, check_positive, check_tensor
from lipbook._layers import BATCH_NORM, CONVOLUTIONS, TRANSPOSED, evaluation_mode
from lipbook._weights import (
    Weight,
    image_shapes,
    refuse_hooks,
    uninitialized,
    used_matrices,
    used_weights,
)
from lipbook.convolution import Padding, conv_spectral_norm
from lipbook.parametrizations import (
    BatchNormNormalization,
    Chain,
    ConvNormalization,
    MatrixNormalization,
    Normalization,
    Options,
    VectorNormalization,
    inverse_std,
)
from lipbook.power_iteration import article_keras_spectral_norm, spectral_norm
from lipbook.wgan import Constraint


def spectral_normalize(
    module: nn.Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    norm: Literal["matrix", "operator"] = "matrix",
    input_size: int | tuple[int, ...] | None = None,
    coefficient: float = 1.0,
    at_most: bool = False,
) -> nn.Module:
    r"""Replace a weight W by ``c W / ‖W‖₂`` whenever the layer uses it, and train through that.

    A drop-in for `torch.nn.utils.parametrizations.spectral_norm`: same arguments, buffers,
    ``state_dict``, random draws and warm start, hence the same training up to rounding. Every
    access does `n_power_iterations` steps of (15) from the vectors that the last access in
    training mode has left, and divides by the estimate, a lower bound on the norm. With
    :math:`\bar W = cW/σ` and a loss gradient G with respect to :math:`\bar W`, the gradient with
    respect to W is :math:`c\,(G - ⟨G, W⟩ u v^\top/σ)/σ`: u and v count as constants, and what
    would only lengthen W is taken out of G. Differs from torch's where that one goes wrong:

    - A weight with an estimate of at most `eps`, zero say, is left as it is, where torch gives
      NaN or, of one row, ``W/eps``; its gradient passes unchanged, and the vectors are kept.
      ``eps=0`` restores torch's NaN.
    - In evaluation mode torch divides by ``⟨u, Wv⟩`` with the stored vectors, which may belong to
      another weight; here the steps are done on copies of them, once for each new weight, so the
      first output in evaluation differs from the last in training by what one more step changes.
    - A weight that evaluation mode meets in place of another one, with the same vectors, or that
      was loaded without vectors, has its norm found from a random vector, for as many steps as that
      takes. Of one that was overwritten between the last access in training and the first in
      evaluation nobody can know it, but a σ below what a random vector shows is replaced likewise.
      A graph that `torch.compile`, `torch.export`, `torch.jit.trace` or `torch.func` make cannot
      depend on values, and notices nothing.
    - Assigning to the weight finds new vectors, and is refused for another shape or dtype. That the
      vectors were overwritten is noticed unless it was by way of ``.data``. They may be averaged
      beside the weights, as EMA and SWA do; on a CPU, vectors that are zero or not finite are
      replaced in training, too.
    - Half precision is normalized in float32, also under autocast. Weights whose squared norm
      overflows are divided by their norm all the same, if that is finite in their dtype.
    - The σ of a complex weight is a real number in the derivative, too, where torch's is complex.
    - ``load_state_dict`` reads what `torch.nn.utils.spectral_norm` saved (``weight_orig``, …).
    - γ of a BatchNorm is divided by the layer's norm in evaluation mode, ``max |γ/std|`` with the
      running variance, where torch divides by ‖γ‖₂ (SP4); transferred to another layer, by the
      variance of its first one. Other 1-D weights are one row.

    And where it does not do what torch's does:

    - Each new weight has vectors of its own in evaluation mode, which its derivative takes for
      constants: `torch.autograd.gradcheck` needs vectors that have settled, and ``gradgradcheck``
      fails.
    - The graph holds the weight itself and saves no copy, so that ``saved_tensors_hooks`` do not
      see it: written to or converted before the backward pass, it raises a RuntimeError.
    - Under `torch.utils.checkpoint`, a normalized BatchNorm in training mode has another σ in the
      second run, by the variance that the first one has moved: leave it out. With
      ``use_reentrant=False`` the gradient of a weight is that of the first run.
    - Norms within a hundred of 1e-12 take more steps, of which `eps` is the reason.
    - A DTensor can be read in training mode only; FSDP gathers its weights first.

    Parameters
    ----------
    module : nn.Module
        Changed in place.
    name : str, default "weight"
        Of the parameter.
    n_power_iterations : int, default 1
        For each access in training mode.
    eps : float, default 1e-12
        Norms up to it count as 0; not negative.
    dim : int, optional
        Axis of the outputs, the rows of the matrix: by default 0, or 1 for ``nn.ConvTranspose*d``.
        The operator of a convolution has none.
    norm : {"matrix", "operator"}, default "matrix"
        What to divide a convolution by: the norm of its reshaped kernel, as Miyato et al. and the
        article do, or the norm of its map from images to images (PI7), which is not
        available for transposed convolutions, nor in `torch.jit.trace`; stride, padding and the
        other options are those that the layer has now. Dense layers have one norm.
    input_size : int or tuple of int, optional
        Spatial size of the convolution's input, on which its operator norm depends.
    coefficient : float, default 1.0
        The norm c to give the weight.
    at_most : bool, default False
        Whether to leave smaller weights as they are: ``W / max(1, σ/c)``.

    Returns
    -------
    nn.Module
        `module`, with a parametrization that `torch.nn.utils.parametrize` can remove again. The
        memory of a weight in training mode may be NumPy's, which ``resize_`` does not take.

    Raises
    ------
    TypeError
        If an option has the wrong type, or ``norm="operator"`` is asked of another layer.
    ValueError
        If there is no such weight, or none yet, as in a lazy layer, or it is empty or not finite,
        or γ of a BatchNorm without running statistics, or an option is out of range.

    Examples
    --------
    >>> layer = spectral_normalize(nn.Linear(20, 40), n_power_iterations=50)
    >>> round(torch.linalg.matrix_norm(layer.weight, 2).item(), 3)
    1.0

    Divided by the norm of its reshaped kernel, a convolution stays too steep on images:

    >>> _ = torch.manual_seed(0)
    >>> conv = nn.Conv2d(3, 64, 3, padding=1)
    >>> conv = spectral_normalize(conv, n_power_iterations=50)
    >>> round(conv_spectral_norm(conv.weight, 32, padding=1).item(), 1)
    2.4
    >>> conv = nn.Conv2d(3, 64, 3, padding=1)
    >>> options = {"norm": "operator", "input_size": 32}
    >>> conv = spectral_normalize(conv, n_power_iterations=50, **options)
    >>> round(conv_spectral_norm(conv.weight, 32, padding=1).item(), 1)
    1.0
    >>> spectral_normalize(nn.Conv2d(1, 1, 3), norm="operator")
    Traceback (most recent call last):
    ValueError: input_size must be given for norm='operator': ...
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"module must have a parameter named {name!r}, {module} has none")
    if nn.parameter.is_lazy(weight):
        raise uninitialized(module, module)
    check_tensor(_as_real(weight).detach(), name, min_ndim=1)  # no view may outlive this
    if norm not in ("matrix", "operator"):
        raise ValueError(f"norm must be 'matrix' or 'operator', got {norm!r}")
    check_count(n_power_iterations, "n_power_iterations")
    if dim is not None:
        check_count(dim, "dim", least=-weight.ndim)
    options = _checked_options(coefficient, at_most, eps)
    normalization: Normalization
    if isinstance(module, BATCH_NORM) and name == "weight":
        normalization = BatchNormNormalization(module, weight, options)
    elif weight.ndim == 1:
        normalization = VectorNormalization(options)
    elif norm == "matrix" or isinstance(module, nn.Linear):
        dim = int(isinstance(module, TRANSPOSED)) if dim is None else dim
        if not -weight.ndim <= dim < weight.ndim:
            raise ValueError(f"dim must be an axis of shape {tuple(weight.shape)}, got {dim}")
        normalization = MatrixNormalization(weight, dim, n_power_iterations, options)
    else:
        normalization = ConvNormalization(module, weight, input_size, n_power_iterations, options)
    parametrize.register_parametrization(module, name, normalization)
    chain = module.parametrizations[name]  # type: ignore[index]
    if type(chain) is parametrize.ParametrizationList:
        chain.__class__ = Chain
    hook = partial(_before_loading, name=name)
    module.register_load_state_dict_pre_hook(hook)  # type: ignore[no-untyped-call]
    return module


def _as_real(weight: Tensor) -> Tensor:
    return torch.view_as_real(weight.resolve_conj()) if weight.is_complex() else weight


def _checked_options(coefficient: float, at_most: bool, eps: float) -> Options:
    eps = check_positive(eps, "eps", zero=True)
    at_most = check_bool(at_most, "at_most")
    return Options(check_positive(coefficient, "coefficient"), at_most, eps)


def _before_loading(
    module: nn.Module, state: dict[str, Any], prefix: str, *_: object, name: str
) -> None:
    """Rename what `torch.nn.utils.spectral_norm` has saved, and see what comes without vectors."""
    if not parametrize.is_parametrized(module, name):
        return
    place = f"{prefix}parametrizations.{name}"
    old = {}
    if f"{prefix}{name}_orig" in state:
        state.pop(f"{prefix}{name}", None)  # the quotient, which its first version saved, too
        old = {key: state.pop(f"{prefix}{name}_{key}", None) for key in ("orig", "u", "v")}
        state[f"{place}.original"] = old["orig"]
    if f"{place}.original" not in state:
        return
    for index, normalization in enumerate(module.parametrizations[name]):  # type: ignore[index]
        if not isinstance(normalization, Normalization):
            continue
        known = True
        for key, buffer in normalization.named_buffers():
            found = state.get(f"{place}.{index}.{key}")
            if old:
                found = old[key.removeprefix("_")]
                if found is None or found.shape != buffer.shape:
                    found = None  # of another norm, or of the first version
                state[f"{place}.{index}.{key}"] = buffer if found is None else found
            known = known and found is not None
        normalization.disown(foreign=not known)


def spectral_normalize_network(
    network: nn.Module,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    *,
    input_shape: Sequence[int] | None = None,
    batch_norms: bool = False,
    skip: Collection[str] = (),
    coefficient: float = 1.0,
    at_most: bool = False,
) -> nn.Module:
    """Apply `spectral_normalize` to every layer of a network that multiplies by a weight.

    These are the layers with a parameter ``weight`` of two axes or more: dense, convolutional,
    transposed, bilinear, and embeddings. Left alone are biases, the scales of normalization layers
    (but see `batch_norms`), weights of other names, as recurrent layers and the input projections
    of attention have them, and weights that are parametrized already.

    Parameters
    ----------
    network : nn.Module
        Changed in place.
    n_power_iterations, eps, coefficient, at_most
        As in `spectral_normalize`.
    input_shape : sequence of int, optional
        Of one input of the network, without the batch. With it, convolutions are divided by the
        norm of their map from images to images; else, and transposed ones always, by that of the
        reshaped kernel.
    batch_norms : bool, default False
        Whether to divide the γ of BatchNorms by the layer's norm in evaluation mode.
    skip : collection of str, optional
        Names of modules, as in ``network.named_modules()``, to leave alone with all they contain.

    Returns
    -------
    nn.Module
        `network`; `remove_spectral_normalization` takes it off again.

    Raises
    ------
    TypeError, ValueError
        If there is no weight to normalize, or no module of a name in `skip`, or a weight is not
        there yet, as in lazy layers, or made by a hook, or a convolution sees images of several
        sizes, or none; and as in `spectral_normalize`. The network stays as it was then.

    Examples
    --------
    >>> critic = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> critic = spectral_normalize_network(critic, skip=["2"])
    >>> [parametrize.is_parametrized(layer) for layer in critic]
    [True, False, False]
    >>> spectral_normalize_network(nn.ReLU())
    Traceback (most recent call last):
    ValueError: network must have a weight to normalize, ReLU() has none
    """
    check_module(network, "network")
    layers = _to_normalize(network, set(skip), check_bool(batch_norms, "batch_norms"))
    convolutions = [layer for layer in layers if isinstance(layer, CONVOLUTIONS)]
    shapes = {} if input_shape is None else image_shapes(network, input_shape, convolutions)
    done: list[tuple[nn.Module, dict[str, Any]]] = []
    try:
        for layer in layers:
            shape = shapes.get(layer)
            if input_shape is not None and layer in convolutions and shape is None:
                raise ValueError(f"{layer} is given no images in evaluation mode; name it in skip")
            parameters = dict(layer._parameters)
            spectral_normalize(
                layer,
                n_power_iterations=n_power_iterations,
                eps=eps,
                norm="matrix" if shape is None else "operator",
                input_size=None if shape is None else shape[1:],
                coefficient=coefficient,
                at_most=at_most,
            )
            done.append((layer, parameters))
    except (RuntimeError, TypeError, ValueError):
        for layer, parameters in done:  # a refused network stays as it was
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            layer._parameters.clear()
            layer._parameters.update(parameters)  # in their order, by which optimizers go
            layer._load_state_dict_pre_hooks.popitem()
        raise
    return network


def _to_normalize(network: nn.Module, skip: Collection[str], batch_norms: bool) -> list[nn.Module]:
    """Return the layers with a plain ``weight`` to normalize; two that share theirs are two."""
    modules = dict(network.named_modules(remove_duplicate=False))  # a shared one has several names
    for name in skip:
        if name not in modules:
            raise ValueError(f"skip must name modules of the network, it has no {name!r}")
    skipped = {layer for name in skip for layer in modules[name].modules()}
    layers = []
    for name, layer in network.named_modules():
        weight = layer._parameters.get("weight")
        inside_one = "parametrizations" in name.split(".")
        if layer in skipped or inside_one:
            continue
        if "weight" in vars(layer):  # neither a parameter nor parametrized
            refuse_hooks(name, layer)
        scales = isinstance(layer, nn.modules.batchnorm._NormBase) and not batch_norms
        if nn.parameter.is_lazy(weight) and not scales:
            raise uninitialized(network, layer)
        if weight is None:
            continue
        if batch_norms if isinstance(layer, BATCH_NORM) else weight.ndim > 1:
            layers.append(layer)
    if not layers:
        raise ValueError(f"network must have a weight to normalize, {network} has none")
    return layers


def remove_spectral_normalization(
    network: nn.Module, *, leave_parametrized: bool = True
) -> nn.Module:
    """Take `spectral_normalize` off every weight of a module and of all that it contains.

    Parameters
    ----------
    network : nn.Module
        Changed in place.
    leave_parametrized : bool, default True
        Whether each weight becomes the quotient that evaluation mode uses, so that the network in
        evaluation mode stays the same function; otherwise the weight before the division.

    Returns
    -------
    nn.Module
        `network`.

    Raises
    ------
    ValueError
        If no weight is normalized, or one has another parametrization besides, which torch cannot
        keep, or layers share one but divide it by norms that differ by more than a tenth, or one
        of them does not divide it: the quotient of one would then be the other's weight, too.

    Examples
    --------
    >>> layer = spectral_normalize(nn.Linear(20, 40), n_power_iterations=50)
    >>> remove_spectral_normalization(layer)
    Linear(in_features=20, out_features=40, bias=True)
    >>> round(torch.linalg.matrix_norm(layer.weight, 2).item(), 3)
    1.0
    >>> remove_spectral_normalization(layer)
    Traceback (most recent call last):
    ValueError: network must have a normalized weight, Linear(...) has none
    """
    check_module(network, "network")
    check_bool(leave_parametrized, "leave_parametrized")
    found = [
        (layer, name, list(parametrization))
        for layer in network.modules()
        if parametrize.is_parametrized(layer)
        for name, parametrization in layer.parametrizations.items()  # type: ignore[union-attr, operator]
        if any(isinstance(one, Normalization) for one in parametrization)
    ]
    if not found:
        raise ValueError(f"network must have a normalized weight, {network} has none")
    for layer, name, chain in found:
        if len(chain) > 1:
            raise ValueError(
                f"{name} of {layer} must have no parametrization besides, it has {len(chain)}; "
                "torch.nn.utils.parametrize.remove_parametrizations removes all of them"
            )
    with evaluation_mode(network):
        if leave_parametrized:
            _refuse_uneven_sharing(network, [(layer, name) for layer, name, _ in found])
        for layer, name, _ in found:
            _own_class(layer)
            parametrize.remove_parametrizations(layer, name, leave_parametrized=leave_parametrized)
    return network


def _own_class(layer: nn.Module) -> None:
    """Give a layer a copy of its class, from which torch would take the weight of its copies too.

    torch makes a class for a parametrized layer, and `copy.deepcopy` has both share it.
    """
    shared = type(layer)
    members = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    layer.__class__ = type(shared.__name__, shared.__bases__, members)


@torch.no_grad()
def _refuse_uneven_sharing(network: nn.Module, found: list[tuple[Any, str]]) -> None:
    lists = {layer.parametrizations[name]: (layer, name) for layer, name in found}
    users = [(w, m) for m in network.modules() for w in m._parameters.values() if w is not None]
    uses = Counter(weight for weight, _ in users)
    factors = {weight: 1.0 for weight, module in users if module not in lists}
    for weight, module in users:
        if module not in lists or uses[weight] == 1:
            continue
        layer, name = lists[module]
        length = torch.linalg.vector_norm(weight).item()
        factor = torch.linalg.vector_norm(getattr(layer, name)).item() / length if length else 1.0
        expected = factors.setdefault(weight, factor)
        if abs(factor - expected) > 0.1 * expected:  # less is what two estimates may differ by
            kind = parametrize.type_before_parametrizations(layer).__name__
            raise ValueError(
                f"{name} of {kind} must be divided as in the layer that it is shared with, it is "
                f"multiplied by {factor:.3g} here and by {expected:.3g} there; give each a weight "
                "of its own first, or take the division off with leave_parametrized=False"
            )


def project_spectral_(
    module: nn.Module,
    *,
    variant: Literal["exact", "article"] = "exact",
    n_iterations: int = 5,
    input_shape: Sequence[int] | None = None,
    coefficient: float = 1.0,
) -> None:
    """Divide every weight by its norm in place, as a Keras constraint does after each step.

    The gradient of the next step knows nothing of the division, and the step leaves the set that
    the projection returns to (SP7); `spectral_normalize` has neither fault.

    Parameters
    ----------
    module : nn.Module
        Its parameters named ``weight`` with two axes or more are divided, and the γ of BatchNorms.
    variant : {"exact", "article"}, default "exact"
        ``"article"`` is the listing: `article_keras_spectral_norm` of the kernel in Keras's
        layout, so a lower bound from an all-ones start, for a convolution not the operator's norm,
        ‖γ‖₂ for a BatchNorm, and a division by zero where the start is lost. ``"exact"`` is its
        repair: `spectral_norm`, ``max |γ/std|`` with the running variance, and 0 stays 0.
    n_iterations : int, default 5
        The article's r, for ``"article"``.
    input_shape : sequence of int, optional
        Of one input of the module, without the batch. With it, ``"exact"`` divides convolutions
        by their operator norm, and else by that of their reshaped kernel, the usual choice.
    coefficient : float, default 1.0
        The norm to give each weight.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range, or a weight not finite, made by a hook or, in a lazy layer,
        not there yet.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 4.0], [0.0, 0.0]]))
    >>> project_spectral_(layer)
    >>> layer.weight.tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    >>> project_spectral_(layer, variant="keras")
    Traceback (most recent call last):
    ValueError: variant must be 'exact' or 'article', got 'keras'
    """
    _check_projection(variant, n_iterations, coefficient)
    convolutions = [layer for layer in module.modules() if isinstance(layer, CONVOLUTIONS)]
    shapes = {} if input_shape is None else image_shapes(module, input_shape, convolutions)
    quotients = []
    with torch.no_grad():
        for weight in _constrained(module):
            value, layer = weight.value(), weight.layer
            if variant == "article":
                quotient = value * (coefficient / _keras_norm(value, n_iterations))
            else:
                norm = _exact_norm(layer, value, shapes.get(layer))
                norm = torch.where(norm > 0, norm, coefficient)
                factor = coefficient / norm  # infinite for a subnormal norm, or 0
                in_range = torch.finfo(factor.dtype).tiny <= factor < torch.inf
                quotient = value * factor if in_range else value / norm * coefficient
            quotients.append((weight, quotient))
        for weight, quotient in quotients:  # once none is refused
            weight.assign(quotient)


def _check_projection(variant: str, n_iterations: int, coefficient: float) -> None:
    if variant not in ("exact", "article"):
        raise ValueError(f"variant must be 'exact' or 'article', got {variant!r}")
    check_count(n_iterations, "n_iterations")
    check_positive(coefficient, "coefficient")


def article_spectral_normalize(module: nn.Module, n_iterations: int = 5) -> nn.Module:
    """Divide every weight inside the forward pass, by the article's own estimate of its norm.

    This is what the article's patched ``add_weight`` makes of its listing, for study only: each
    access runs `article_keras_spectral_norm` anew from the all-ones start, and autograd goes
    through all of its steps. `spectral_normalize` starts where the last access ended, needs one
    step, and knows convolutions and BatchNorms.

    Parameters
    ----------
    module : nn.Module
        Changed in place: its parameters named ``weight`` with two axes or more, and the γ of
        BatchNorms, which are divided by ‖γ‖₂ (SP4).
    n_iterations : int, default 5
        The article's r.

    Returns
    -------
    nn.Module
        `module`, with parametrizations that `torch.nn.utils.parametrize` can remove again.

    Raises
    ------
    TypeError, ValueError
        If `n_iterations` is not an integer of at least 1, or a weight is made by a hook or, in a
        lazy layer, not there yet.

    Examples
    --------
    >>> layer = article_spectral_normalize(nn.Linear(1, 4))
    >>> round(layer.weight.norm().item(), 4)
    1.0
    >>> article_spectral_normalize(nn.Linear(1, 4), n_iterations=0)
    Traceback (most recent call last):
    ValueError: n_iterations must be at least 1, got 0
    """
    check_count(n_iterations, "n_iterations")
    for weight in _constrained(module):
        if weight.parametrizations is None:
            division = _ArticleNormalization(n_iterations)
            parametrize.register_parametrization(weight.layer, "weight", division)
    return module


class _ArticleNormalization(nn.Module):
    def __init__(self, n_iterations: int) -> None:
        super().__init__()
        self.n_iterations = n_iterations

    def forward(self, weight: Tensor) -> Tensor:
        return weight / _keras_norm(weight, self.n_iterations)


def _constrained(module: nn.Module) -> list[Weight]:
    """Return the weights that the article's listing constrains, as the layers use them."""
    return [
        weight
        for weight in used_weights(module)
        if weight.attribute == "weight"
        and (weight.value().ndim > 1 or isinstance(weight.layer, BATCH_NORM))
    ]


def _keras_norm(weight: Tensor, n_iterations: int) -> Tensor:
    kernel = weight.permute(*range(2, weight.ndim), 1, 0) if weight.ndim > 1 else weight
    return article_keras_spectral_norm(kernel, n_iterations)


@dataclass(frozen=True)
class OrthonormalPenalty(Constraint):
    """λ times the sum of ``‖W Wᵀ - I‖_F²`` over the weights, with Wᵀ W where that is smaller.

    It pulls *every* singular value towards 1, where spectral normalization fixes the largest
    (Brock et al. 2016). Weights are reshaped to one row an output.

    Examples
    --------
    >>> critic = nn.Linear(2, 2, bias=False)
    >>> _ = critic.weight.data.copy_(torch.diag(torch.tensor([1.0, 2.0])))
    >>> penalty = OrthonormalPenalty(0.1).penalty  # 0.1 (2² - 1)²
    >>> penalty(critic, *torch.zeros(2, 1, 2), None)
    tensor(0.9000, grad_fn=<MulBackward0>)
    >>> OrthonormalPenalty(strength=0.0)
    Traceback (most recent call last):
    ValueError: strength must be a finite number above 0, got 0.0
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.strength, "strength")

    def penalty(
        self,
        critic: nn.Module,
        real: Tensor,  # noqa: ARG002
        fake: Tensor,  # noqa: ARG002
        generator: torch.Generator | None,  # noqa: ARG002
    ) -> Tensor:
        """Return λ times the penalty of the weights, as the critic's layers use them."""
        rows = [weight.value().flatten(1) for weight in used_matrices(critic, "critic")]
        squares = [w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w for w in rows]
        deviations = [s - torch.eye(len(s), dtype=s.dtype, device=s.device) for s in squares]
        return self.strength * torch.stack([d.square().sum() for d in deviations]).sum()


@dataclass(frozen=True)
class SpectralProjection(Constraint):
    """`project_spectral_` after every step, as a `Constraint` for `lipbook.lab.training`'s loops.

    Spectral normalization inside the critic needs none.

    Examples
    --------
    >>> SpectralProjection("article")
    SpectralProjection(variant='article', n_iterations=5, ...)
    >>> SpectralProjection("exact", coefficient=-1.0)
    Traceback (most recent call last):
    ValueError: coefficient must be a finite number above 0, got -1.0
    """

    variant: Literal["exact", "article"] = "exact"
    n_iterations: int = 5
    input_shape: tuple[int, ...] | None = None
    coefficient: float = 1.0

    def __post_init__(self) -> None:
        _check_projection(self.variant, self.n_iterations, self.coefficient)

    def after_step(self, critic: nn.Module) -> None:
        """Divide every weight by its norm."""
        project_spectral_(critic, **vars(self))


def _exact_norm(layer: nn.Module, weight: Tensor, input_shape: tuple[int, ...] | None) -> Tensor:
    if isinstance(layer, BATCH_NORM):
        return (weight * inverse_std(layer, weight)).abs().amax()
    if isinstance(layer, CONVOLUTIONS) and input_shape is not None:
        return conv_spectral_norm(
            weight,
            input_shape[1:],
            stride=layer.stride,
            padding=cast(Padding, layer.padding),
            dilation=layer.dilation,
            groups=layer.groups,
            padding_mode=layer.padding_mode,
        )
    rows = 1 if isinstance(layer, TRANSPOSED) else 0
    return spectral_norm(weight.movedim(rows, 0).flatten(1))
