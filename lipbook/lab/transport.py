"""How far apart two samples are: exact optimal transport, against which critics are scored.

POT (Flamary et al. 2021) solves the linear program of which (17) is the dual. The samples are
tensors of shape (n, …), points in the space of their flattened axes with the Euclidean distance
and equal weights. Everything is computed in float64 on the CPU, without gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import ot
import torch
from torch import Tensor

from lipbook._checks import check_count, check_positive, check_tensor

#: The network simplex method needs about n to n² pivots; POT's own limit is 100,000.
_MAX_ITERATIONS = 100_000_000


class OptimalTransport(NamedTuple):
    """A cheapest way to carry one sample into another, and the proof that none is cheaper.

    Attributes
    ----------
    distance : float
        The Wasserstein distance W_p, in the unit of the samples.
    pairs : Tensor, shape (k, 2)
        int64: which point of `real` sends mass to which of `fake`; k < n + m, and k = n for
        samples of equal size.
    mass : Tensor, shape (k,)
        How much of the whole mass 1 each pair carries, float64.
    real_potential, fake_potential : Tensor, shape (n,) and (m,)
        Kantorovich potentials u and v, float64: ``u_i + v_j ≤ ‖x_i − y_j‖ᵖ``, with equality on
        the pairs, so that ``mean(u) + mean(v) = W_pᵖ``. One choice of many; v has mean 0.
    """

    distance: float
    pairs: Tensor
    mass: Tensor
    real_potential: Tensor
    fake_potential: Tensor


class ModeCoverage(NamedTuple):
    """What `mode_coverage` finds: two shares from 0 to 1, and the count of each mode."""

    share_of_modes: float
    share_of_samples: float
    counts: Tensor


def optimal_transport(real: Tensor, fake: Tensor, *, p: float = 1) -> OptimalTransport:
    """Solve the transport problem between two samples exactly.

    Time and memory grow at least as ``n · m``; 2000 points each take about a second. For larger
    samples there is `sliced_wasserstein_distance`.

    Parameters
    ----------
    real, fake : Tensor, shape (n, …) and (m, …)
        Floating point, finite, of equal trailing shape.
    p : float, default 1
        Moving mass costs the distance to this power; at least 1.

    Returns
    -------
    OptimalTransport
        The distance, who goes where, and the potentials.

    Raises
    ------
    TypeError
        If a sample is no floating-point tensor.
    ValueError
        If one is empty or not finite, their shapes do not fit, or ``p < 1``.
    RuntimeError
        If the solver does not reach the optimum.

    Examples
    --------
    >>> real, fake = torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [3.0]])
    >>> solution = optimal_transport(real, fake, p=2)
    >>> round(solution.distance ** 2, 9), solution.pairs.tolist()
    (12.5, [[0, 1], [1, 0]])
    >>> optimal_transport(real, torch.ones(2, 3))
    Traceback (most recent call last):
    ValueError: real and fake must have equal shapes but for the first axis, got ...
    """
    real, fake = _points(real, fake)
    p = _checked_order(p)
    # Not by matrix products: they leave near points with half of their digits.
    distances = torch.cdist(real, fake, compute_mode="donot_use_mm_for_euclid_dist")
    scale = float(distances.max()) or 1.0  # the solver's tolerances are absolute
    cost = (distances / scale) ** p
    plan, log = ot.emd(
        ot.unif(len(real)), ot.unif(len(fake)), cost.numpy(), numItermax=_MAX_ITERATIONS, log=True
    )
    if log["warning"]:
        raise RuntimeError(f"no optimal transport between real and fake: POT says {log['warning']}")
    mass = torch.as_tensor(plan)
    pairs = mass.nonzero()
    u, v = (scale**p * torch.as_tensor(log[name]) for name in "uv")
    distance = scale * float((mass * cost).sum()) ** (1 / p)
    return OptimalTransport(distance, pairs, mass[tuple(pairs.T)], u + v.mean(), v - v.mean())


def wasserstein_distance(real: Tensor, fake: Tensor, *, p: float = 1) -> float:
    """Exact Wasserstein distance W_p between two samples: for p = 1 the value of (17).

    Parameters
    ----------
    real, fake, p
        As in `optimal_transport`.

    Returns
    -------
    float
        In the unit of the samples: W₂ is the root of the mean squared distance travelled.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `optimal_transport`.

    Examples
    --------
    >>> points = torch.randn(50, 2, generator=torch.Generator())
    >>> round(wasserstein_distance(points, points + torch.tensor([3.0, 4.0])), 4)
    5.0
    >>> wasserstein_distance(points, points, p=0.5)
    Traceback (most recent call last):
    ValueError: p must be at least 1, got 0.5: below, W_p is no distance
    """
    return optimal_transport(real, fake, p=p).distance


def optimal_critic(real: Tensor, fake: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a critic that attains the maximum of (17) between two samples.

    It is ``f(z) = min_j ‖z − y_j‖ − v_j`` with the potential v of `optimal_transport`: a minimum
    of functions of slope 1, so 1-Lipschitz everywhere, and ``mean f(real) − mean f(fake)`` is W₁.
    Away from the samples it is one of many.

    Parameters
    ----------
    real, fake : Tensor, shape (n, …) and (m, …)
        As in `optimal_transport`.

    Returns
    -------
    callable
        From points (k, …), on any device, to values (k,) in their dtype; differentiable. The
        mean over `fake` is 0.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `optimal_transport`.

    Examples
    --------
    >>> critic = optimal_critic(torch.tensor([[4.0]]), torch.tensor([[1.0]]))
    >>> critic(torch.tensor([[1.0], [4.0], [0.0]])).tolist()
    [0.0, 3.0, 1.0]
    >>> optimal_critic(torch.ones(2, 1), torch.ones(2, 0))
    Traceback (most recent call last):
    ValueError: fake must not be empty, got shape (2, 0)
    """
    potential = optimal_transport(real, fake).fake_potential
    _, centres = _points(real, fake)

    def critic(points: Tensor) -> Tensor:
        rows = points.reshape(len(points), -1).to(torch.float64)
        distances = torch.cdist(
            rows, centres.to(rows.device), compute_mode="donot_use_mm_for_euclid_dist"
        )
        values: Tensor = (distances - potential.to(rows.device)).amin(dim=1)
        return values.to(points.dtype)

    return critic


def sliced_wasserstein_distance(
    real: Tensor,
    fake: Tensor,
    *,
    n_projections: int = 128,
    p: float = 1,
    generator: torch.Generator,
) -> float:
    """Mean of W_p over random lines onto which both samples are projected.

    ``(mean W_pᵖ)^(1/p)``, at most W_p, and equal to it in one dimension (Bonneel et al. 2015). It
    sorts where the exact distance solves a linear program, so samples may have 10⁵ points.

    Parameters
    ----------
    real, fake : Tensor, shape (n, …) and (m, …)
        Floating point, finite, of equal trailing shape.
    n_projections : int, default 128
        The standard error falls as one over its root.
    p : float, default 1
        At least 1.
    generator : torch.Generator
        On the CPU; decides the lines. Two calls are comparable if they use the same ones.

    Returns
    -------
    float
        In the unit of the samples.

    Raises
    ------
    TypeError, ValueError
        As `optimal_transport`, or if `n_projections` is not positive.

    Examples
    --------
    >>> real, fake = torch.tensor([0.0, 1.0]), torch.tensor([5.0, 3.0])
    >>> round(sliced_wasserstein_distance(real, fake, generator=torch.Generator()), 4)
    3.5
    >>> sliced_wasserstein_distance(real, fake, n_projections=0, generator=torch.Generator())
    Traceback (most recent call last):
    ValueError: n_projections must be at least 1, got 0
    """
    real, fake = _points(real, fake)
    p = _checked_order(p)
    shape = (real.shape[1], check_count(n_projections, "n_projections"))
    lines = torch.randn(shape, dtype=torch.float64, generator=generator)
    lines = torch.nn.functional.normalize(lines, dim=0)
    arrays = (tensor.numpy() for tensor in (real, fake))
    return float(ot.sliced_wasserstein_distance(*arrays, projections=lines.numpy(), p=p))


def noise_floor(
    sample: Callable[[int, torch.Generator], Tensor],
    n: int,
    *,
    repetitions: int = 10,
    distance: Callable[[Tensor, Tensor], float] = wasserstein_distance,
    generator: torch.Generator,
) -> Tensor:
    """Distances between pairs of samples from one distribution: what a perfect generator shows.

    Two samples of n points differ even if their distributions do not. W₁ between them falls as
    n^(−1/d) only, for d > 2 dimensions (Fournier & Guillin 2015).

    Parameters
    ----------
    sample : callable
        ``sample(k, generator)`` draws k points, shape (k, …). It is asked for 2n at once, so that
        from a finite set, drawn without replacement, the two halves are disjoint.
    n : int
        Points in each sample of a pair.
    repetitions : int, default 10
        Pairs.
    distance : callable, default `wasserstein_distance`
        From two samples to a number.
    generator : torch.Generator
        Passed on to `sample`.

    Returns
    -------
    Tensor, shape (repetitions,)
        float64.

    Raises
    ------
    TypeError, ValueError
        If a number is not positive, or `sample` does not return as many points as it should.

    Examples
    --------
    >>> def normal(k, generator):
    ...     return torch.randn(k, 2, generator=generator)
    >>> small, large = (noise_floor(normal, n, generator=torch.Generator()) for n in (10, 200))
    >>> bool(large.max() < small.min())
    True
    >>> noise_floor(lambda k, generator: torch.ones(3), 2, generator=torch.Generator())
    Traceback (most recent call last):
    ValueError: sample must return 4 points when asked for them, got 3: two samples of n = 2 ...
    """
    check_count(n, "n")
    floors = torch.empty(check_count(repetitions, "repetitions"), dtype=torch.float64)
    for i in range(repetitions):
        points = sample(2 * n, generator)
        if len(points) != 2 * n:
            raise ValueError(
                f"sample must return {2 * n} points when asked for them, got {len(points)}: two "
                f"samples of n = {n} share no point"
            )
        floors[i] = distance(points[:n], points[n:])
    return floors


def mode_coverage(
    samples: Tensor, centres: Tensor, radius: float, *, min_count: int = 1
) -> ModeCoverage:
    """Count the samples near each mode of a mixture.

    A sample belongs to the nearest centre if it is no further from it than `radius`, and to none
    otherwise. With three standard deviations for a radius, the mixture itself has
    ``share_of_samples = 1 − exp(−9/2) ≈ 0.989`` in the plane.

    Parameters
    ----------
    samples : Tensor, shape (n, d)
        Floating point, finite.
    centres : Tensor, shape (n_modes, d)
        The means of the mixture.
    radius : float
        Above 0.
    min_count : int, default 1
        How many samples make a mode count as hit.

    Returns
    -------
    ModeCoverage
        ``share_of_modes`` that are hit, ``share_of_samples`` that belong to a mode, and
        ``counts``, int64, shape (n_modes,).

    Raises
    ------
    TypeError, ValueError
        If a tensor is no finite matrix, the shapes do not fit, or a number is not positive.

    Examples
    --------
    >>> centres = torch.tensor([[0.0, 0.0], [9.0, 9.0]])
    >>> mode_coverage(torch.tensor([[0.1, 0.0], [0.0, 0.2], [5.0, 5.0], [0.0, 0.0]]), centres, 1.0)
    ModeCoverage(share_of_modes=0.5, share_of_samples=0.75, counts=tensor([3, 0]))
    >>> mode_coverage(centres, centres, 0.0)
    Traceback (most recent call last):
    ValueError: radius must be a finite number above 0, got 0.0
    """
    samples, centres = _points(samples, centres, names=("samples", "centres"), ndim=2)
    distances = torch.cdist(samples, centres, compute_mode="donot_use_mm_for_euclid_dist")
    distance, nearest = distances.min(dim=1)
    near = distance <= check_positive(radius, "radius")
    counts = nearest[near].bincount(minlength=len(centres))
    hit = counts >= check_count(min_count, "min_count")
    return ModeCoverage(hit.double().mean().item(), near.double().mean().item(), counts)


def _points(
    first: Tensor,
    second: Tensor,
    *,
    names: tuple[str, str] = ("real", "fake"),
    ndim: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return both samples as rows, float64, on the CPU."""
    for sample, name in zip((first, second), names, strict=True):
        check_tensor(sample, name, ndim=ndim, min_ndim=1)
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have equal shapes but for the first axis, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
    rows = (sample.detach().reshape(len(sample), -1) for sample in (first, second))
    first, second = (sample.to("cpu", torch.float64) for sample in rows)
    return first, second


def _checked_order(p: float) -> float:
    if check_positive(p, "p") < 1:
        raise ValueError(f"p must be at least 1, got {p}: below, W_p is no distance")
    return float(p)
