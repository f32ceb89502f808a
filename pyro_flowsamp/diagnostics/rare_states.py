r"""Checks of the states at which a sampler stays longest.

Those of an independence sampler follow from its weights, see :mod:`pyro_flowsamp.stays`. How much
they matter is asked in three ways, at the accuracy that is asked of all other numbers:

- of the states themselves: the share of the tenth of the mass at which chains stay longest;
- of averages: the effective number of draws of the ranks and of the tails of each coordinate, if
  the chains stay as long as the weights at annealed particles say;
- of errors: whether those of the same averages, and of smaller tails, are much larger than the
  chains' autocorrelations state. Chains that have not been in a tail do not know that they would
  stay there.

A sampler with local moves is run from such states. Its sets are
:math:`A_j = \{x : \log w(x) \ge c_j\}`, in which the flow is thin and global moves lead out the
least. With the weights :math:`v_i` of particles

.. math:: \sum_{\log w(x_i) \ge c_j} v_i \approx 2^{-j} p_0, \qquad p_0 = 0.01, \quad j = 0, 1, ...

The bound :math:`c_j` is halfway between the weights of the last particle inside and the next one.

The same number of chains begins between any two :math:`c_j`, so that the innermost sets, of few
points, have as many as the others. A chain counts by the mass between the bounds that it began in.
The effective number of draws of each set is that of :func:`~pyro_flowsamp.stays.ess_of_visits`.

Draws do not define the sets: chains that have never entered a region have no draw in it.

The smallest of these numbers counts, however few the particles in the set are: of a place that
chains hardly leave, and so hardly enter, the probability is not known. If the share of
:math:`A_j` has the effective number n, and no draw is in it, then a probability of 3 / n is not
excluded, at the level :math:`e^{-3}`. A single particle decides if chains from it stay.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from ..convergence import TAILS, columns_at_once, effective_sample_sizes
from ..smc.particles import systematic
from ..stays import (
    ess_of_longest_stays,
    ess_of_rare_states,
    ess_of_visits,
    expected_stays,
    variances_by_stays,
)
from ..target.density import Target
from ..weights import are_flat
from .agreement import RETRAIN
from .checks import Check
from .draws import DiagnosedDraws
from .evidence import weights_of_states
from .options import DiagnosisOptions

__all__ = ["error_checks", "rare_states_check", "visits_check"]

FEWEST_DRAWS = 8  #: draws of a chain from which on autocorrelations are computed

#: what to try where chains hardly leave a region
FASTER = (
    "run longer chains, reparametrise the model, or give it more informative priors: a thin arm of "
    "the posterior is hardly ever entered"
)


def rare_states_check(
    draws: DiagnosedDraws,
    of_flow: Tensor,
    particles: Tensor | None,
    weights: Tensor | None,
    options: DiagnosisOptions,
) -> list[Check]:
    """The effective number of draws of the states at which an independence sampler stays longest.

    Chains that have hardly been in a tail do not show how long they would stay there. So the states
    are those of the chains, and annealed particles; the smaller number counts, see
    :mod:`pyro_flowsamp.stays`.
    No stay counts for more than the steps of a chain: of such states the mass is looked at.

    The share p of these states has the standard error :math:`\sqrt{p (1 - p) / n}` where its
    effective number is n. So ``min_ess`` effective draws of a hundredth would be half a per cent of
    error, a third of what is asked of shares of regions, whatever the states are: of a tenth they
    are as much.

    Arguments:
        draws: The draws.
        of_flow: Log weights of draws of the flow, ``(M,)``.
        particles: Log weights of particles, ``(N,)``, or None.
        weights: Weights of the particles, ``(N,)``, or None.
        options: The share of the states, and the least effective number.

    Returns:
        The check; none where the sampler has local moves.

    Example:
        >>> import torch
        >>> x, log_w = torch.zeros(4, 100, 1), torch.zeros(4, 100)
        >>> draws = DiagnosedDraws(x, ("x",), x, {"log_weight": log_w}, {}, None, None, None, None)
        >>> particles = torch.tensor([0.0, 5.0]).repeat_interleave(torch.tensor([90, 10]))
        >>> check = rare_states_check(draws, torch.zeros(9), particles, None, DiagnosisOptions())[0]
        >>> round(check.value, 2), check.ok  # 400 / (2 · 100 - 1)
        (2.01, False)
    """
    log_w = weights_of_states(draws)
    if log_w is None or not draws.jumps_only:
        return []
    share, steps = options.rare_share, log_w.shape[1] * draws.thin
    sizes = [ess_of_rare_states(log_w, draws.thin, share, of_flow)]
    if particles is not None:
        known = particles.isfinite()  # another check counts the rest
        stays = expected_stays(particles[known], of_flow).clamp(max=steps)
        mass = None if weights is None else weights[known]
        sizes.append(ess_of_longest_stays(stays, len(log_w) * steps, share, mass))
    value, least = min(sizes), options.min_ess
    text = (
        f"the {share:.0%} of states at which chains would stay longest have an effective sample "
        f"size of {value:.0f}, not {least}: the flow is thin there"
    )
    return [Check("ESS of rare states", value, least, value >= least, text, RETRAIN, True)]


def error_checks(
    draws: DiagnosedDraws,
    of_flow: Tensor,
    particles: Tensor,
    weights: Tensor,
    x: Tensor,
    options: DiagnosisOptions,
) -> list[Check]:
    r"""Errors of averages by an independence sampler, by its stays at annealed particles.

    The averages are those of the normal scores of the ranks of each coordinate, and of indicators
    of its being below quantiles. Their variances :math:`V` are those of
    :func:`~pyro_flowsamp.stays.variances_by_stays`, over the number of chains. Those that the
    chains state, :math:`\hat V`, are variances of the functions over their effective numbers.

    - The effective numbers :math:`1 / V` of the scores, and :math:`q (1 - q) / V` of the tails of
      5 %, must be ``min_ess``, as those by the chains.
    - :math:`(V / \hat V)^{1/2}` must be at most ``max_error_ratio``. If chains are expected to come
      k times to a rare set A, its share has the variance :math:`V = 2 p_A^2 / k`. Answers that lack
      A entirely are off by :math:`p_A`, so by :math:`(k / 2)^{1/2}` times the ratio in stated
      errors, and lack it with the probability :math:`e^{-k}`.

    V is a sum over particles, some of which may make up most of it by chance. So in the ratio it is
    less by its standard error, the root of the sum of their squares.

    Arguments:
        draws: The draws.
        of_flow: Log weights of draws of the flow, ``(M,)``.
        particles, weights, x: Log weights, weights and places of particles, ``(N,)``, ``(N, d)``.
        options: The quantiles and the bounds.

    Returns:
        Two checks; none where the sampler has local moves.

    Example:
        >>> x = torch.randn(200, 100, 1, generator=torch.manual_seed(0)).double()
        >>> stats = {"log_weight": torch.zeros(200, 100)}
        >>> draws = DiagnosedDraws(x, ("x",), x, stats, {}, None, None, None, None)
        >>> points = torch.randn(1000, 1).double()
        >>> thin = 10.0 * (points[:, 0] > 2)  # there chains would stay for thousands of steps
        >>> even = torch.full((1000,), 0.001)
        >>> found = error_checks(draws, torch.zeros(9), thin, even, points, DiagnosisOptions())
        >>> [check.ok for check in found]
        [True, False]
    """
    log_w, own = weights_of_states(draws), draws.x
    known = particles.isfinite()  # another check counts the rest
    scores, mass = particles[known].double(), weights[known].double()
    if log_w is None or own is None or not draws.jumps_only or own.shape[1] < FEWEST_DRAWS:
        return []
    if not len(scores):
        return []
    stays, mass = expected_stays(scores, of_flow), mass / mass.sum()
    tails = [i for i, q in enumerate(options.error_quantiles) if q in TAILS]
    sizes, ratios, at_once = [], [], max(1, columns_at_once(own) // len(options.error_quantiles))
    for mine, theirs in zip(own.double().split(at_once, -1), x[known].double().split(at_once, -1)):
        functions, spread = _functions(mine, options)
        parts = variances_by_stays(
            functions(theirs).flatten(1), scores, stays, own.shape[1], draws.thin, mass
        )
        variance = parts.sum(0).reshape(spread.shape) / len(own)
        sizes.append((spread / variance)[:, [*tails, -1]].flatten())
        less = variance - parts.square().sum(0).sqrt().reshape(spread.shape) / len(own)
        ratios.append((less.clamp(min=0.0) / _stated(mine, functions, less, spread)).amax(1).sqrt())
    ratio, worst = torch.cat(ratios).max(0)
    size, least, most = float(torch.cat(sizes).min()), options.min_ess, options.max_error_ratio
    number = (
        f"by the weights of annealed particles averages have an effective sample size of "
        f"{size:.0f} only, not {least}: the flow is thin where chains have hardly been"
    )
    error = (
        f"errors of averages are up to {float(ratio):.1f} times as large as the chains state, by "
        f"the weights of annealed particles (unconstrained coordinate {int(worst)})"
    )
    return [
        Check("ESS by stays", size, least, size >= least, number, RETRAIN, True),
        Check("errors by stays", float(ratio), most, float(ratio) <= most, error, RETRAIN),
    ]


def _functions(x: Tensor, options: DiagnosisOptions) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Indicators and scores of points ``(N, d)`` by draws ``(C, n, d)``, and their variances.

    Returns:
        A function to ``(N, d, Q + 1)``, Q quantiles and then the scores, and ``(d, Q + 1)``.
    """
    ordered = x.flatten(0, 1).mT.contiguous().sort(-1).values
    count = ordered.shape[1]
    q = x.new_tensor(options.error_quantiles)
    edges = ordered[:, (q * (count - 1)).round().long()]
    spread = torch.cat([q * (1 - q), q.new_ones(1)]).expand(len(edges), -1)

    def functions(points: Tensor) -> Tensor:
        ranks = torch.searchsorted(ordered, points.mT.contiguous()).mT
        scores = torch.special.ndtri((ranks + 0.5) / (count + 1))
        return torch.cat([(points[..., None] <= edges).double(), scores[..., None]], -1)

    return functions, spread


def _stated(
    x: Tensor, functions: Callable[[Tensor], Tensor], variance: Tensor, spread: Tensor
) -> Tensor:
    """The variances that chains ``(C, n, d)`` state, ``(d, Q + 1)``.

    They are at least those of independent draws, and not computed where these are large enough.
    """
    chains, steps, columns = x.shape
    stated = spread / (chains * steps)
    some = (variance > stated).any(1)
    if not bool(some.any()):
        return stated
    values = functions(x.flatten(0, 1))[:, some].permute(1, 2, 0)
    sizes = effective_sample_sizes(values.unflatten(-1, (chains, steps)))
    found = values.var(-1) / sizes
    return stated.index_copy(0, some.nonzero()[:, 0], torch.maximum(found, stated[some]))


def visits_check(
    draws: DiagnosedDraws, particles: Tensor, weights: Tensor, x: Tensor, options: DiagnosisOptions
) -> list[Check]:
    """The effective number of draws of the states at which local moves and jumps stay longest.

    A copy of the kernel makes ``search.rare_steps`` steps, or fewer: no more than take
    ``search.rare_evaluations`` of the evaluations so far.

    Arguments:
        draws: The draws.
        particles: Log weights of particles, ``(N,)``.
        weights: Weights of the particles, ``(N,)``, of sum one.
        x: The particles, ``(N, d)``.
        options: The sets, the number of steps, and the least effective number.

    Returns:
        The check; none where the sampler has no local moves or its kernel is not known, where its
        weights hardly vary, and where two steps would take too many evaluations.

    Example:
        >>> from pyro_flowsamp import LatentHMC, VectorizedMCMC
        >>> from pyro_flowsamp.sampling.candidates import gaussian_guide
        >>> from pyro_flowsamp.diagnostics.draws import read_draws
        >>> from pyro_flowsamp.trust import log_weights
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> _ = torch.manual_seed(0)
        >>> kernel = LatentHMC(guide=gaussian_guide(target, torch.zeros(1), 0.8 * torch.eye(1)))
        >>> run = VectorizedMCMC(kernel, 50, 100, 100, disable_progbar=True)
        >>> run.run()
        >>> x, weights = torch.randn(500, 1), torch.full((500,), 0.002)
        >>> log_w = log_weights(kernel, target, x, 0.01)
        >>> [check] = visits_check(read_draws(run), log_w, weights, x, DiagnosisOptions())
        >>> check.ok
        True
    """
    log_w, kernel, target = weights_of_states(draws), draws.kernel, draws.target
    if log_w is None or kernel is None or target is None or draws.x is None or draws.jumps_only:
        return []
    known = particles.isfinite()  # another check counts the rest
    scores, mass = particles[known], weights[known].double()
    if not len(scores) or are_flat(scores, options.flat_log_weights):
        return []
    mass = mass / mass.sum()
    starts, counts, bounds = _starts(scores, mass, options)
    inside = _shares(kernel, target, x[known][starts].to(target.dtype), bounds, options)
    if len(inside) < 2:
        return []
    chains, steps = len(log_w), log_w.shape[1] * draws.thin
    began = scores[starts] >= bounds[:, None]
    share = (mass * (scores >= bounds[:, None])).sum(-1)  # more where scores are equal
    each = began * counts
    each = each / each.sum(-1, keepdim=True)
    stay = (inside * each).sum(-1)
    sizes = [
        ess_of_visits(stay[:, j], float(share[j]), chains, steps, float(1 / each[j].square().sum()))
        for j in range(len(bounds))
    ]
    value, least = min(sizes), options.min_ess
    where = float(share[sizes.index(value)])
    text = (
        f"the {where:.2%} of the particles at which the flow is thinnest have an effective sample "
        f"size of {value:.0f}, not {least}: chains hardly leave that region, and hardly enter it"
    )
    return [Check("ESS of rare states", value, least, value >= least, text, FASTER, True)]


def _starts(
    scores: Tensor, mass: Tensor, options: DiagnosisOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the starts, the mass that each counts for, and the bounds of the sets."""
    search = options.search
    order = scores.argsort(descending=True)
    total = mass[order].cumsum(0)
    halves = 0.5 ** torch.arange(search.rare_halvings + 1, device=mass.device)
    sizes = torch.searchsorted(total, search.rare_states * halves.to(total)) + 1
    sizes = sizes.clamp(max=len(order)).unique()  # ascending: the innermost set first
    below = order[sizes.clamp(max=len(order) - 1)]
    bounds = (scores[order[sizes - 1]] + scores[below]) / 2  # else a last particle is at the edge
    each, found, counts = max(1, search.rare_chains // len(sizes)), [], []
    for low, high in zip([0, *sizes[:-1].tolist()], sizes.tolist()):
        between = order[low:high]
        found.append(between[systematic(mass[between].log()[None], each)[0]])
        counts.append((mass[between].sum() / each).expand(each))
    return torch.cat(found), torch.cat(counts), bounds


def _shares(
    kernel: Any, target: Target, x: Tensor, bounds: Tensor, options: DiagnosisOptions
) -> Tensor:
    """Whether chains from x are in each set after each step, ``(steps, sets, chains)``."""
    search, before = options.search, target.evaluations
    most, found = search.rare_evaluations * before, []
    kernel = copy(kernel)
    state = kernel.state_at(target.unpack_unconstrained(x))
    for step in range(search.rare_steps):
        state, _ = kernel.step(state)
        log_w = (state.log_p - state.log_q).nan_to_num(nan=torch.inf, posinf=torch.inf)
        found.append(log_w >= bounds[:, None])
        if (target.evaluations - before) * (step + 2) > most * (step + 1):  # with one more
            break
    return torch.stack(found).double()
