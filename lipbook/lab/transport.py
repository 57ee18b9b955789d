"""How far apart two samples are: exact optimal transport, against which critics are scored.

POT (Flamary et al. 2021) solves the linear program of which (17) is the dual. What it returns is
not taken on trust: the potentials must prove the plan optimal, and costs are scaled anew until they
do. The samples are tensors of shape (n, …), points in the space of their flattened axes with the
Euclidean distance and equal weights. Everything is computed in float64 on the CPU, without
gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import ot
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipbook._checks import check_count, check_positive, check_tensor, unusable

#: The network simplex method needs about n to n² pivots; POT's own limit is 100,000.
_MAX_ITERATIONS = 100_000_000
_ROUNDS = 12  # of scaling and refining; one is the rule, and three are many
_RTOL = 1e-8  # what the cost of the plan may exceed its lower bound by
_EPS = float(np.finfo(np.float64).eps)
_UNDERFLOW = 1e-300  # costs below have lost digits

Array = NDArray[np.float64]


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

    The plan is an upper bound on the cost, the potentials are a lower bound, and the two agree to
    eight digits, whatever the scales of the samples and however far out some of the points lie.
    Time and memory grow at least as ``n · m``; 2000 points each take about two seconds. For larger
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
        If a sample is not a floating-point tensor.
    ValueError
        If one is empty or not finite, their shapes do not fit, ``p < 1``, or float64 cannot hold
        their distances, or the potentials, whose unit is the p-th power of a distance.
    RuntimeError
        If the solver does not reach the optimum; says how far off it may be.

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
    plan = _solved(real, fake, p)
    with np.errstate(over="ignore", under="ignore"):
        unit = np.float64(plan.unit) ** p
    if not 0 < unit < math.inf:
        raise ValueError(
            f"real and fake must be rescaled: their potentials are in units of {plan.unit:.3g} to "
            f"the power {p}, which float64 cannot hold; wasserstein_distance needs no potentials"
        )
    u, v = (torch.as_tensor(unit * potential) for potential in (plan.u, plan.v))
    pairs, mass = torch.as_tensor(plan.pairs), torch.as_tensor(plan.mass)
    return OptimalTransport(plan.distance, pairs, mass, u + v.mean(), v - v.mean())


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
    >>> far = torch.tensor([[1e9, 1e9]])  # in both samples, so that it need not move
    >>> real, fake = torch.cat([points, far]), torch.cat([far, points + torch.tensor([3.0, 4.0])])
    >>> round(wasserstein_distance(real, fake, p=2) * (51 / 50) ** 0.5, 4)
    5.0
    >>> wasserstein_distance(points, points, p=0.5)
    Traceback (most recent call last):
    ValueError: p must be at least 1, got 0.5: below, W_p is no distance
    """
    return _solved(real, fake, p).distance


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
        From floating-point points (k, …), on any device, to values (k,) in their dtype;
        differentiable. The mean over `fake` is 0.

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
    with torch.inference_mode(False):  # the critic may be differentiated later
        potential = optimal_transport(real, fake).fake_potential
        centres = torch.as_tensor(_points(real, fake)[1])

    shape = fake.shape[1:]

    def critic(points: Tensor) -> Tensor:
        check_tensor(points, "points", min_ndim=1, finite=False)
        if points.shape[1:] != shape:
            raise ValueError(f"points must have shape {('k', *shape)}, got {(*points.shape,)}")
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
    points = _points(real, fake)
    p = _checked_order(p)
    shape = (points[0].shape[1], check_count(n_projections, "n_projections"))
    lines = torch.randn(shape, dtype=torch.float64, generator=generator)
    lines = torch.nn.functional.normalize(lines, dim=0)
    left, right = (np.sort(array @ lines.numpy(), axis=0) for array in points)
    from_left, to_right, mass = _on_a_line(len(left), len(right))
    return _mean_power(np.abs(left[from_left] - right[to_right]), mass / shape[1], p)


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
    arrays = _points(samples, centres, names=("samples", "centres"), ndim=2)
    distance, nearest = torch.as_tensor(_distances(*arrays)).min(dim=1)
    near = distance <= check_positive(radius, "radius")
    counts = nearest[near].bincount(minlength=len(centres))
    hit = counts >= check_count(min_count, "min_count")
    return ModeCoverage(hit.double().mean().item(), near.double().mean().item(), counts)


class _Plan(NamedTuple):
    """A plan that its potentials prove optimal; they are for distances in the `unit`."""

    distance: float
    pairs: NDArray[np.int64]
    mass: Array
    unit: float
    u: Array
    v: Array


def _solved(real: Tensor, fake: Tensor, p: float) -> _Plan:
    """Solve, and solve again with the costs scaled anew, until the potentials prove the plan.

    The solver's tolerances belong to the largest cost, so that beside one far point all others
    count as equal. But a plan of cost C carries nothing over a pair that costs more than C over
    the smallest mass, whatever it costs: such costs are cut off there. What is then left of the
    gap goes by solving for the reduced costs, ``cost − u − v``, whose best plan is the same.
    """
    distances, p = _distances(*_points(real, fake)), _checked_order(p)
    n, m = distances.shape
    parts = math.lcm(n, m)  # masses as integers: sums of 1/n leave crumbs, and those travel too
    unit, u, v = float(distances.max()), np.zeros(n), np.zeros(m)
    cost = reduced = _powers(distances, unit, p)
    for _ in range(_ROUNDS):
        pairs, mass, du, dv = _network_simplex(reduced, parts)
        chosen = tuple(pairs.T)
        distance = _mean_power(distances[chosen], mass, p)
        if distance == 0:
            return _Plan(0.0, pairs, mass, unit or 1.0, np.zeros(n), np.zeros(m))
        u, v = u + du, v + dv
        u = u - max(0.0, float((u[:, None] + v - cost).max()))  # now u + v ≤ cost for certain
        reduced = np.maximum(cost - u[:, None] - v, 0)
        rounding = 4 * _EPS * (np.abs(u).max() + np.abs(v).max()) + _UNDERFLOW
        gap, total = float(mass @ reduced[chosen]) + rounding, (distance / unit) ** p
        if gap <= _RTOL * total:
            return _Plan(distance, pairs, mass, unit, u, v)
        dearest = distance * parts ** (1 / p) * (1 + _RTOL)
        if dearest < unit / 2:
            unit, u, v = dearest, np.zeros(n), np.zeros(m)
            cost = reduced = _powers(distances, unit, p)
        else:
            reduced = np.minimum(reduced, gap * parts)
    excess = gap / max(total, _UNDERFLOW)
    raise RuntimeError(
        "no optimal transport between real and fake: the best plan found has "
        f"W_p = {distance:.6g}, and {excess:.1e} of its cost may be too much; "
        f"look for points that lie far out, or take a smaller p than {p:g}"
    )


def _network_simplex(cost: Array, parts: int) -> tuple[NDArray[np.int64], Array, Array, Array]:
    """Return pairs, their masses, and potentials for equal weights, by POT."""
    n, m = cost.shape
    weights = np.full(n, parts / n), np.full(m, parts / m)
    scale = float(cost.max()) or 1.0
    flow, log = ot.emd(*weights, cost / scale, numItermax=_MAX_ITERATIONS, log=True)
    if log["warning"]:
        raise RuntimeError(f"no optimal transport between real and fake: POT says {log['warning']}")
    pairs = np.argwhere(flow)
    return pairs, flow[tuple(pairs.T)] / parts, scale * log["u"], scale * log["v"]


def _powers(distances: Array, unit: float, p: float) -> Array:
    """Return the costs of distances in a unit, none above 1."""
    with np.errstate(under="ignore"):
        powers: Array = (np.minimum(distances, unit) / (unit or 1.0)) ** p
    return powers


def _mean_power(distances: Array, mass: Array, p: float) -> float:
    """Return ``(Σ mass · distanceᵖ)^(1/p)``, whatever the scale of the distances."""
    top = float(distances.max()) or 1.0
    with np.errstate(under="ignore"):
        mean = float((mass * ((distances / top) ** p).T).sum())
    return top * float(mean ** (1 / p))


def _distances(x: Array, y: Array) -> Array:
    """Return ``‖x_i − y_j‖`` to the last digits, for points of any scale."""
    # Not by matrix products: they leave near points with half of their digits.
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    found: Array = torch.cdist(*tensors, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    unsafe: NDArray[np.bool_] = (found < 1e-140) | (
        found > 1e140
    )  # squares may have left the range of float64
    for i in np.flatnonzero(unsafe.any(axis=1)):
        with np.errstate(all="ignore"):
            difference = np.abs(y[unsafe[i]] - x[i])
            top = difference.max(axis=1, initial=0.0)
            parts = difference / np.where(top > 0, top, 1)[:, None]
            found[i, unsafe[i]] = top * np.linalg.norm(parts, axis=1)
    if not np.isfinite(found).all():
        raise ValueError(
            "the samples must be rescaled: some points lie further apart than float64 can hold"
        )
    return found


def _on_a_line(n: int, m: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Return which of n sorted points sends mass to which of m, and how much."""
    parts = math.lcm(n, m)
    ends = np.union1d(np.arange(1, n + 1) * (parts // n), np.arange(1, m + 1) * (parts // m))
    last = ends - 1  # the last of the equal parts in each piece
    return last // (parts // n), last // (parts // m), np.diff(ends, prepend=0) / parts


def _points(
    first: Tensor,
    second: Tensor,
    *,
    names: tuple[str, str] = ("real", "fake"),
    ndim: int | None = None,
) -> tuple[Array, Array]:
    """Return both samples as rows of float64, on the CPU."""
    for sample, name in zip((first, second), names, strict=True):
        if error := unusable(sample, name):
            raise error
        check_tensor(sample, name, ndim=ndim, min_ndim=1)
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have equal shapes but for the first axis, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
    rows = (sample.detach().reshape(len(sample), -1) for sample in (first, second))
    # Copies: a tensor that has been an array can never be resized.
    one, other = (sample.to("cpu", torch.float64, copy=True).numpy() for sample in rows)
    return one, other


def _checked_order(p: float) -> float:
    if check_positive(p, "p") < 1:
        raise ValueError(f"p must be at least 1, got {p}: below, W_p is no distance")
    return float(p)
