"""Chapter 5: the losses of critic and generator, gradient penalties, ways to constrain a critic.

A critic maps a batch (n, …) to one score a sample, shape (n,) or (n, 1), or to a map of scores,
shape (n, 1, …), whose mean is the sample's score: a module, or a function such as
``lambda x: functional_call(net, weights, x)``. Signs follow the dual (17): the critic raises its
scores of real samples and lowers those of fake ones. A critic's step with a gradient penalty:

>>> critic = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1))
>>> adam = torch.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.5, 0.9))
>>> real, fake = torch.randn(32, 2), torch.randn(32, 2) + 1
>>> loss = critic_loss(critic(real), critic(fake))
>>> loss = loss + 10 * gradient_penalty(critic, real, fake)
>>> loss.backward()
>>> adam.step()

A constraint is a `Constraint`. The loops of `lipbook.lab.training` call its two methods and know no
more about it, so that a new one needs no change to them.
"""

# ruff: noqa: ARG002  (a constraint is given what it may not need)

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipbook._checks import (
    check_bool,
    check_positive,
    check_tensor,
    is_transforming,
    untransformable,
    wrong_type,
)
from lipbook._layers import BATCH_NORM, mixes_rows, normal_state, reached
from lipbook._weights import constant, used_matrices, used_weights

Critic = Callable[[Tensor], Tensor]


def wasserstein_estimate(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Mean score of the real samples less that of the fake ones: the objective of (17).

    For a critic with Lipschitz constant L it is at most L times the distance W₁ of the two
    samples, and for the best critic with L = 1 it is W₁.

    Parameters
    ----------
    real_scores : Tensor
        The critic's scores of real samples, of any shape.
    fake_scores : Tensor
        Its scores of fake ones; their number may differ.

    Returns
    -------
    Tensor, shape ()
        In the dtype of the scores, differentiable; in units of distance times L.

    Raises
    ------
    TypeError, ValueError
        If the scores are not floating-point, or there are none. Scores that are not finite make a
        loss that is not finite; to check them would force a synchronization with the device.

    Examples
    --------
    >>> wasserstein_estimate(torch.tensor([3.0, 5.0]), torch.tensor([1.0]))
    tensor(3.)
    >>> wasserstein_estimate(torch.tensor([3.0]), torch.tensor([]))
    Traceback (most recent call last):
    ValueError: fake_scores must not be empty, got shape (0,)
    """
    _check_scores(real_scores, "real_scores")
    return real_scores.mean() - _check_scores(fake_scores, "fake_scores").mean()


def critic_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Return what the critic minimizes (18): `wasserstein_estimate` with its sign turned.

    Parameters
    ----------
    real_scores : Tensor
        The critic's scores of real samples, of any shape.
    fake_scores : Tensor
        Its scores of fake ones; their number may differ.

    Returns
    -------
    Tensor, shape ()
        ``mean(fake) - mean(real)``, in the dtype of the scores, differentiable.

    Raises
    ------
    TypeError, ValueError
        If the scores are not floating-point, or there are none. Scores that are not finite make a
        loss that is not finite; to check them would force a synchronization with the device.

    Examples
    --------
    >>> critic_loss(torch.tensor([3.0, 5.0]), torch.tensor([1.0]))
    tensor(-3.)
    >>> critic_loss(torch.tensor([3]), torch.tensor([1.0]))
    Traceback (most recent call last):
    TypeError: real_scores must have a real floating-point dtype, got ...
    """
    return -wasserstein_estimate(real_scores, fake_scores)


def hinge_critic_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Return the hinge loss of a critic: scores beyond 1 and -1 are good enough.

    The loss of SNGAN (Lim & Ye 2017; Miyato et al. 2018), where it is less of a race than (18): a
    sample on the right side of its margin has no gradient. The generator's loss beside it is
    `generator_loss`, as for (18).

    Parameters
    ----------
    real_scores : Tensor
        The critic's scores of real samples, of any shape.
    fake_scores : Tensor
        Its scores of fake ones; their number may differ.

    Returns
    -------
    Tensor, shape ()
        ``mean(max(0, 1 - real)) + mean(max(0, 1 + fake))``, in the dtype of the scores,
        differentiable.

    Raises
    ------
    TypeError, ValueError
        If the scores are not floating-point, or there are none.

    Examples
    --------
    >>> hinge_critic_loss(torch.tensor([3.0, 0.5]), torch.tensor([-0.5, -2.0]))
    tensor(0.5000)
    >>> hinge_critic_loss(torch.tensor([]), torch.tensor([1.0]))
    Traceback (most recent call last):
    ValueError: real_scores must not be empty, got shape (0,)
    """
    _check_scores(real_scores, "real_scores")
    _check_scores(fake_scores, "fake_scores")
    return (1 - real_scores).relu().mean() + (1 + fake_scores).relu().mean()


def generator_loss(fake_scores: Tensor) -> Tensor:
    """Return what the generator minimizes against either loss of the critic.

    The part of `wasserstein_estimate` that it can change; beside `hinge_critic_loss` it is the
    same (Lim & Ye 2017).

    Parameters
    ----------
    fake_scores : Tensor
        The critic's scores of generated samples, of any shape.

    Returns
    -------
    Tensor, shape ()
        ``-mean(fake)``, in the dtype of the scores, differentiable.

    Raises
    ------
    TypeError, ValueError
        If the scores are not floating-point, or there are none.

    Examples
    --------
    >>> generator_loss(torch.tensor([[1.0], [3.0]]))
    tensor(-2.)
    >>> generator_loss(torch.tensor([1]))
    Traceback (most recent call last):
    TypeError: fake_scores must have a real floating-point dtype, got ...
    """
    return -_check_scores(fake_scores, "fake_scores").mean()


def interpolate(
    real: Tensor,
    fake: Tensor,
    *,
    epsilon: Tensor | Sequence[float] | float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a point on the segment between each real sample and its fake partner (21).

    Parameters
    ----------
    real, fake : Tensor, shape (n, ...)
        Of one shape, dtype and device; row i is the partner of row i.
    epsilon : Tensor, sequence of float or float, optional
        The ε of each sample, n numbers in [0, 1], or one for all: 1 is the real sample. By default
        they are drawn.
    generator : torch.Generator, optional
        On the CPU; draws one ε a sample, uniform on [0, 1). By default torch's global one.

    Returns
    -------
    Tensor, shape (n, ...)
        ``ε · real + (1 - ε) · fake``, differentiable in both; their difference must be finite, too.

    Raises
    ------
    TypeError
        If one is not a floating-point tensor, their dtypes differ, or `epsilon` or `generator` is
        of the wrong type.
    ValueError
        If one is empty or not finite, their shapes or devices differ, `epsilon` is not n numbers
        in [0, 1], or both it and `generator` are given.

    Examples
    --------
    >>> x = interpolate(torch.ones(2, 3), torch.zeros(2, 3))
    >>> bool((x == x[:, :1]).all()), bool(((x >= 0) & (x <= 1)).all())
    (True, True)
    >>> epsilon = torch.tensor([0.0, 0.75])
    >>> interpolate(torch.ones(2, 1), torch.zeros(2, 1), epsilon=epsilon).tolist()
    [[0.0], [0.75]]
    >>> interpolate(torch.ones(2, 3), torch.zeros(4, 3))
    Traceback (most recent call last):
    ValueError: real and fake must have one shape, got (2, 3) and (4, 3); ...
    """
    check_tensor(real, "real", min_ndim=1)
    check_tensor(fake, "fake", min_ndim=1)
    return _between(real, fake, epsilon, generator)


def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    one_sided: bool = False,
    target: float = 1.0,
    epsilon: Tensor | Sequence[float] | float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean squared deviation of ‖∇f‖ from `target` between real and fake samples: (19), (20).

    The norm of each gradient is Euclidean over all axes but the batch, and each sample gets one
    random point of its segment, see `interpolate`. Multiply the result by λ. The caller may be in
    `torch.no_grad` or `torch.inference_mode`: gradients are taken all the same, also of a module
    that was made there.

    Parameters
    ----------
    critic : callable
        From a batch to one score a sample, differentiable twice; each score may depend on its own
        sample alone. Labels and other conditions belong into a function:
        ``gradient_penalty(lambda x: critic(x, labels), real, fake)``. Of a map of scores, shape
        (n, 1, …), the mean counts, as it does in the losses; for the sum, which some patch critics
        take, pass ``lambda x: critic(x).flatten(1).sum(1)``. Networks are seen through functions,
        bound methods and `functools.partial`, whatever they name; not inside other objects.
    real, fake : Tensor, shape (n, ...)
        Of one shape, dtype and device. Both are taken as constants: no gradient flows into the
        generator.
    one_sided : bool, default False
        Punish only norms above the target (20), as in WGAN-LP (Petzka et al. 2018).
    target : float, default 1.0
        The norm asked for, at least 0.
    epsilon : Tensor, sequence of float or float, optional
        Where on its segment each point lies, see `interpolate`. By default it is drawn.
    generator : torch.Generator, optional
        On the CPU; draws the points. By default torch's global one.

    Returns
    -------
    Tensor, shape ()
        At least float32, differentiable in the critic's parameters by autograd.

    Raises
    ------
    TypeError
        If an argument has the wrong type or dtype, or the critic returns no tensor of real numbers.
    ValueError
        If shapes differ, a tensor is empty or not finite, `target` is negative, `epsilon` does not
        suit, or the critic returns other than one score or map a sample, cannot be differentiated,
        does not depend on its input, or normalizes over the batch.

    Examples
    --------
    >>> triple = nn.Linear(1, 1)
    >>> nn.init.constant_(triple.weight, 3.0).item()
    3.0
    >>> real, fake = torch.ones(4, 1), torch.zeros(4, 1)
    >>> gradient_penalty(triple, real, fake).item()  # (3 - 1)²
    4.0
    >>> gradient_penalty(torch.tanh, real, fake, one_sided=True).item()
    0.0
    >>> gradient_penalty(nn.Sequential(triple, nn.BatchNorm1d(1)), real, fake)
    Traceback (most recent call last):
    ValueError: critic must not hold a BatchNorm layer in training mode: ...
    """
    points = interpolate(real, fake, epsilon=epsilon, generator=generator)
    _check_target(target, one_sided)
    return _mean_square(critic, points, float(target), one_sided)


def r1_penalty(critic: Critic, real: Tensor) -> Tensor:
    """Half the mean of ‖∇f‖² at the real samples: R₁ of Mescheder, Geiger & Nowozin (2018).

    Equation (9) there, without its γ. It wants the critic flat where the data are, at no fake and
    at no point between, and is zero at the equilibrium, where (19) is not.

    Parameters
    ----------
    critic : callable
        As for `gradient_penalty`.
    real : Tensor, shape (n, ...)
        Taken as constants.

    Returns
    -------
    Tensor, shape ()
        At least float32, differentiable in the critic's parameters by autograd.

    Raises
    ------
    TypeError, ValueError
        As for `gradient_penalty`.

    Examples
    --------
    >>> triple = nn.Linear(1, 1)
    >>> nn.init.constant_(triple.weight, 3.0).item()
    3.0
    >>> r1_penalty(triple, torch.ones(4, 1)).item()  # 3² / 2
    4.5
    >>> r1_penalty(triple, torch.ones(4, 1).long())
    Traceback (most recent call last):
    TypeError: real must have a real floating-point dtype, got torch.int64; ...
    """
    check_tensor(real, "real", min_ndim=1)
    return _mean_square(critic, real, 0.0, one_sided=False) / 2


def clip_weights_(module: nn.Module, c: float) -> nn.Module:
    """Clamp every weight and bias to [-c, c]: the first WGAN's constraint.

    What is clamped is what the layers use. A parametrized weight is assigned to, which weight
    normalization, say, can do; one that undoes it, as spectral normalization does, is refused
    unless it is within bounds already.

    Parameters
    ----------
    module : nn.Module
        Changed in place.
    c : float
        Above 0.

    Returns
    -------
    nn.Module
        `module`.

    Raises
    ------
    TypeError, ValueError
        If `c` is not a finite number above 0, or a weight is not finite, or complex, or what makes
        it does not let it be bounded, or a lazy layer has none yet.

    Examples
    --------
    >>> layer = clip_weights_(nn.Linear(2, 2), 0.01)
    >>> layer.weight.abs().max().item() <= 0.01
    True
    >>> clip_weights_(layer, 0)
    Traceback (most recent call last):
    ValueError: c must be a finite number above 0, got 0
    """
    check_positive(c, "c")
    with torch.no_grad():
        weights = list(used_weights(module))
        values = [_check_weight(weight.value(), weight.name) for weight in weights]  # all or none
        for weight, value in zip(weights, values, strict=True):
            bound = _rounded_down(c, value.dtype)
            if weight.parametrizations is None:
                value.clamp_(-bound, bound)
            elif value.abs().amax() > c:
                weight.assign(value.clamp(-bound, bound))
    return module


def clip_frobenius_(module: nn.Module, limit: float) -> nn.Module:
    """Scale every matrix and kernel down to a Frobenius norm of at most `limit`, up to rounding.

    These are the weights with two axes or more, as the layers use them (see `clip_weights_`):
    biases do not stretch. With 1-Lipschitz activations, a chain of k dense layers then has a
    Lipschitz constant of at most limitᵏ by (10).

    Parameters
    ----------
    module : nn.Module
        Changed in place.
    limit : float
        Above 0.

    Returns
    -------
    nn.Module
        `module`.

    Raises
    ------
    TypeError, ValueError
        If `limit` is not a finite number above 0, the module has no matrix, one is not finite, or
        what makes a weight does not let it be bounded.

    Examples
    --------
    >>> layer = clip_frobenius_(nn.Linear(3, 3), 0.5)
    >>> round(layer.weight.norm().item(), 6)
    0.5
    >>> clip_frobenius_(nn.utils.parametrizations.spectral_norm(layer), 0.5)
    Traceback (most recent call last):
    ValueError: weight cannot be set to what is asked: _SpectralNorm ...
    """
    check_positive(limit, "limit")
    with torch.no_grad():
        weights = used_matrices(module)
        values = [_check_weight(weight.value(), weight.name) for weight in weights]
        for weight, value in zip(weights, values, strict=True):
            factor = (limit / _frobenius_norm(value)).clamp(max=1.0)
            if weight.parametrizations is None:
                value.mul_(factor)
            elif factor < 1 - 1e-6:
                weight.assign(value * factor)
    return module


def frobenius_excess_penalty(module: nn.Module, limit: float) -> Tensor:
    """Sum over matrices and kernels W of ``max(‖W‖_F - limit, 0)²``: the limit made soft.

    Parameters
    ----------
    module : nn.Module
        Its weights with two axes or more count, as its layers use them.
    limit : float
        Above 0.

    Returns
    -------
    Tensor, shape ()
        At least float32, differentiable in the parameters.

    Raises
    ------
    TypeError, ValueError
        If `limit` is not a finite number above 0, or the module has no matrix.

    Examples
    --------
    >>> layer = nn.Linear(4, 4)
    >>> nn.init.eye_(layer.weight).norm().item()
    2.0
    >>> frobenius_excess_penalty(layer, 0.5).item()  # (2 - 0.5)²
    2.25
    >>> frobenius_excess_penalty(layer, -1.0)
    Traceback (most recent call last):
    ValueError: limit must be a finite number above 0, got -1.0
    """
    check_positive(limit, "limit")
    norms = [_frobenius_norm(weight.value()) for weight in used_matrices(module)]
    return torch.stack([(norm - limit).clamp(min=0.0) for norm in norms]).square().sum()


class Constraint:
    """What keeps a critic's Lipschitz constant in bounds; by default nothing does.

    Write your own by overriding one method or both, best as a frozen dataclass.

    Examples
    --------
    >>> class SmallScores(Constraint):
    ...     def penalty(self, critic, real, fake, generator):
    ...         return 0.001 * critic(real).square().mean()
    >>> real, fake = torch.full((2, 1), 10.0), torch.ones(2, 1)
    >>> SmallScores().penalty(nn.Identity(), real, fake, None)
    tensor(0.1000)
    """

    def penalty(
        self, critic: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return what each step adds to the critic's loss, λ included, as a tensor of shape ().

        Parameters
        ----------
        critic : nn.Module
            In training mode, unless the caller has decided otherwise.
        real, fake : Tensor, shape (n, ...)
            The step's batches, without gradients.
        generator : torch.Generator, optional
            The training's own; draws whatever is random.
        """
        return real.new_zeros(())

    def after_step(self, critic: nn.Module) -> None:
        """Change the critic in place after each step of its optimizer."""


@dataclass(frozen=True)
class Unconstrained(Constraint):
    """No constraint, or one that is built into the critic, such as spectral normalization.

    Examples
    --------
    >>> real = fake = torch.ones(2, 1)
    >>> Unconstrained().penalty(nn.Identity(), real, fake, None)
    tensor(0.)
    """


@dataclass(frozen=True)
class WeightClipping(Constraint):
    """`clip_weights_` after every step (Arjovsky, Chintala & Bottou 2017).

    Examples
    --------
    >>> WeightClipping(0.1)
    WeightClipping(c=0.1)
    >>> WeightClipping(-0.1)
    Traceback (most recent call last):
    ValueError: c must be a finite number above 0, got -0.1
    """

    c: float = 0.01

    def __post_init__(self) -> None:
        check_positive(self.c, "c")

    def after_step(self, critic: nn.Module) -> None:
        """Clamp every parameter."""
        clip_weights_(critic, self.c)


@dataclass(frozen=True)
class FrobeniusClipping(Constraint):
    """`clip_frobenius_` after every step: the article's first refinement.

    Examples
    --------
    >>> FrobeniusClipping(2.0)
    FrobeniusClipping(limit=2.0)
    >>> FrobeniusClipping(0.0)
    Traceback (most recent call last):
    ValueError: limit must be a finite number above 0, got 0.0
    """

    limit: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.limit, "limit")

    def after_step(self, critic: nn.Module) -> None:
        """Scale every matrix down to the limit."""
        clip_frobenius_(critic, self.limit)


@dataclass(frozen=True)
class FrobeniusExcess(Constraint):
    """λ = `strength` times `frobenius_excess_penalty`: the article's second refinement.

    Examples
    --------
    >>> FrobeniusExcess(limit=2.0)
    FrobeniusExcess(limit=2.0, strength=10.0)
    >>> FrobeniusExcess(strength=0.0)
    Traceback (most recent call last):
    ValueError: strength must be a finite number above 0, got 0.0
    """

    limit: float = 1.0
    strength: float = 10.0

    def __post_init__(self) -> None:
        check_positive(self.limit, "limit")
        check_positive(self.strength, "strength")

    def penalty(
        self, critic: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return λ times the penalty."""
        return self.strength * frobenius_excess_penalty(critic, self.limit)


@dataclass(frozen=True)
class GradientPenalty(Constraint):
    """λ = `strength` times `gradient_penalty`, two-sided (19) or one-sided (20).

    Examples
    --------
    >>> GradientPenalty(one_sided=True)
    GradientPenalty(strength=10.0, one_sided=True, target=1.0)
    >>> GradientPenalty(strength=-10.0)
    Traceback (most recent call last):
    ValueError: strength must be a finite number above 0, got -10.0
    """

    strength: float = 10.0
    one_sided: bool = False
    target: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.strength, "strength")
        _check_target(self.target, self.one_sided)

    def penalty(
        self, critic: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return λ times the penalty; samples are not checked here, the loops do that."""
        points = _between(real, fake, None, generator)
        return self.strength * _mean_square(critic, points, self.target, self.one_sided)


@dataclass(frozen=True)
class R1Penalty(Constraint):
    """γ = `strength` times `r1_penalty` (Mescheder, Geiger & Nowozin 2018).

    Examples
    --------
    >>> R1Penalty()
    R1Penalty(strength=10.0)
    >>> R1Penalty(0.0)
    Traceback (most recent call last):
    ValueError: strength must be a finite number above 0, got 0.0
    """

    strength: float = 10.0

    def __post_init__(self) -> None:
        check_positive(self.strength, "strength")

    def penalty(
        self, critic: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return γ times the penalty; samples are not checked here, the loops do that."""
        return self.strength / 2 * _mean_square(critic, real, 0.0, one_sided=False)


def gradient_norms(gradients: Tensor) -> Tensor:
    """Euclidean norm of each row over all axes but the batch, in float32 at least.

    Examples
    --------
    >>> gradient_norms(torch.tensor([[[3.0], [4.0]], [[0.0], [1.0]]]))
    tensor([5., 1.])
    """
    rows = gradients.reshape(len(gradients), -1)
    norms: Tensor = torch.linalg.vector_norm(
        rows, dim=1, dtype=torch.promote_types(rows.dtype, torch.float32)
    )
    return norms


def _mean_square(critic: Critic, points: Tensor, target: float, one_sided: bool) -> Tensor:
    """Return the mean square of what ‖∇f‖ is away from the target, or above it."""
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        with torch.inference_mode(False), torch.enable_grad():
            return _mean_square(critic, points, target, one_sided)
    if is_transforming():
        raise untransformable("a gradient penalty", "take torch.autograd.grad or backward")
    modules = reached(critic)
    if isinstance(critic, nn.Module):
        _refuse_batch_norm(critic)
    with normal_state(modules), _refusing_batch_norms(modules if modules != [critic] else []):
        gradients = _input_gradients(critic, constant(points).requires_grad_())
    deviations = gradient_norms(gradients) - target
    return (deviations.clamp(min=0.0) if one_sided else deviations).square().mean()


def _input_gradients(critic: Critic, points: Tensor) -> Tensor:
    scores = critic(points.clone())  # which the critic may change in place
    if not isinstance(scores, Tensor):
        raise wrong_type(scores, "critic's score", "a torch.Tensor")
    if scores.is_complex():
        raise TypeError(f"critic must return real scores, got {scores.dtype}")
    n = len(points)
    if scores.numel() == 0 or (scores.shape != (n,) and scores.shape[:2] != (n, 1)):
        raise ValueError(
            f"critic must return one score a sample, shape ({n},) or ({n}, 1), or a map of scores, "
            f"shape ({n}, 1, …), got {(*scores.shape,)}"
        )
    if not scores.requires_grad:
        raise ValueError(
            "critic must be differentiable, its scores have no gradient; leave torch.no_grad, "
            "detach and NumPy out of it"
        )
    shares = torch.full_like(scores, n / scores.numel())  # of a map, the mean
    (gradients,) = torch.autograd.grad(scores, points, shares, create_graph=True, allow_unused=True)
    if gradients is None:
        raise ValueError("critic must depend on its input, its scores do not")
    return gradients


def _between(
    real: Tensor,
    fake: Tensor,
    epsilon: Tensor | Sequence[float] | float | None,
    generator: torch.Generator | None,
) -> Tensor:
    if real.dtype != fake.dtype:
        raise TypeError(f"real and fake must have one dtype, got {real.dtype} and {fake.dtype}")
    if real.shape != fake.shape:
        raise ValueError(
            f"real and fake must have one shape, got {(*real.shape,)} and {(*fake.shape,)}; "
            "draw as many fakes as reals, each is the partner of one"
        )
    if real.device != fake.device:
        raise ValueError(f"real and fake must be on one device, got {real.device}, {fake.device}")
    if not isinstance(generator, torch.Generator | None):
        raise wrong_type(generator, "generator", "a torch.Generator")
    shape = (len(real), *[1] * (real.ndim - 1))
    if epsilon is None:
        dtype = torch.promote_types(real.dtype, torch.float32)  # the same draw in half precision
        epsilon = torch.rand(shape, generator=generator, dtype=dtype)
    elif generator is not None:
        raise ValueError("epsilon and generator must not both be given: one of them decides")
    else:
        epsilon = _check_epsilon(epsilon, len(real)).reshape(shape)
    return torch.lerp(fake, real, epsilon.to(real))


def _check_epsilon(epsilon: Tensor | Sequence[float] | float, n: int) -> Tensor:
    if not isinstance(epsilon, Tensor):
        try:
            epsilon = torch.tensor(epsilon, dtype=torch.float64)
        except (RuntimeError, TypeError, ValueError):
            raise wrong_type(epsilon, "epsilon", "a number or numbers") from None
    check_tensor(epsilon, "epsilon")
    if epsilon.ndim == 0:
        epsilon = epsilon.expand(n)
    if epsilon.numel() != n or epsilon.shape[0] != n:
        raise ValueError(
            f"epsilon must be one number a sample, shape ({n},), got shape {(*epsilon.shape,)}"
        )
    low, high = epsilon.aminmax()
    if low < 0 or high > 1:
        raise ValueError(
            f"epsilon must lie in [0, 1], got {low.item()} to {high.item()}: points beyond the "
            "samples are not between them"
        )
    return epsilon


def _check_scores(scores: Tensor, name: str) -> Tensor:
    return check_tensor(scores, name, finite=False)


def _refuse_batch_norm(layer: nn.Module, *_: object) -> None:
    """Refuse what holds a layer whose scores depend on the whole batch."""
    for part in layer.modules():
        if mixes_rows(part) or (isinstance(part, BATCH_NORM) and part.training):
            state, way_out = "in training mode", ", or critic.eval()"
            if mixes_rows(part):
                state, way_out = "without running statistics", ""
            raise ValueError(
                f"critic must not hold a BatchNorm layer {state}: it lets a score depend on the "
                "whole batch, and the penalty is on the gradient of each sample's own score; take "
                f"nn.LayerNorm or nn.GroupNorm{way_out}"
            )


@contextmanager
def _refusing_batch_norms(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Refuse them where they run, in modules of which a function may use a part."""
    parts = {part for module in modules for part in module.modules()}
    hooks = [
        part.register_forward_pre_hook(_refuse_batch_norm)
        for part in parts
        if isinstance(part, BATCH_NORM) and (part.training or mixes_rows(part))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _frobenius_norm(matrix: Tensor) -> Tensor:
    """Return the norm in float32 at least; a power of two is taken out, so no square overflows."""
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    _, exponent = torch.frexp(matrix.detach().abs().amax().to(dtype))
    one = torch.ones((), dtype=dtype, device=matrix.device)
    unit = torch.ldexp(one, (exponent - 1).clamp(min=-120))  # finite and not 0 in any dtype
    norm: Tensor = torch.linalg.vector_norm(matrix / unit, dtype=dtype)
    return unit * norm


def _check_weight(value: Tensor, name: str) -> Tensor:
    numbers = value.is_floating_point() or value.is_complex()
    return check_tensor(value, name) if numbers and value.numel() else value


def _rounded_down(limit: float, dtype: torch.dtype) -> float:
    """Return a limit that numbers of a dtype can have; in half precision it must not be above."""
    if not dtype.is_floating_point:
        return limit
    limit = min(limit, torch.finfo(dtype).max)
    if dtype.itemsize > 2:  # as torch rounds it
        return limit
    bound = torch.tensor(limit, dtype=dtype)
    if bound.item() > limit:
        bound = torch.nextafter(bound, torch.zeros_like(bound))
    return float(bound)


def _check_target(target: float, one_sided: bool) -> None:
    check_bool(one_sided, "one_sided")
    check_positive(target, "target", zero=True)
