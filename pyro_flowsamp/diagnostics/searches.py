r"""Checks of two searches for modes beside each other, and of what paths alone have found.

A mode that one search alone has found shows that each of them can miss modes. Their log evidences
:math:`\hat\ell_1, \hat\ell_2` show more: a search that has lost mass has the smaller one. But an
evidence can be wrong, or badly known, where no mass is lost: in many dimensions annealed particles
hardly ever estimate it well. Three facts decide what that means for the draws:

- Bridge sampling between the draws and those of the flow estimates it too. Its estimate is taken
  where it is known and neither search has found more. Weights of the flow's draws alone would not
  do: where the flow is too thin it has no draws, and only states show that.
- A kernel needs the density up to a constant only. Evidences matter to its draws where they give
  the shares of several modes, or show mass that was lost.
- A search that has lost the share :math:`m = 1 - e^{-|\hat\ell_1 - \hat\ell_2|}` of the mass has
  particles in the rest only, so that their distribution has the distance m (in total variation)
  from that of right draws. Differences of several nats are then seen in the particles themselves:
  in the distribution of a coordinate, or of the log density.

So evidences that differ, or are not known, make the *draws* doubtful where there are several modes,
where any other check fails, or where particles of either search are distributed otherwise than the
draws. Else it is the *evidence* that is uncertain, which is a note.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from math import exp, isnan, log1p
from typing import Any

import torch
from torch import Tensor

from ..chains.streaming import some_draws
from ..smc.found_modes import NOT_COVERED, Agreement, FoundModes, unseen_problem
from ..target.density import Target
from ..trust import ends_of_steps
from ..weights import Estimate, summed_degrees
from .checks import Check
from .counts import distinct_points, effective_counts, most_by_chance
from .evidence import FEWEST_DRAWS, bridge_evidence
from .missed_modes import EXPLORE, far_from, kolmogorov_distance
from .options import DiagnosisOptions

__all__ = [
    "best_evidence",
    "compare_evidences",
    "direction_check",
    "distance_of_searches",
    "evidence_of_draws",
    "one_mode",
    "path_mode_check",
    "search_checks",
    "stranded_check",
    "unseen_check",
]


MORE_EVALUATIONS = "give the search more evaluations (ModeSearchOptions.max_evaluations)"


def search_checks(
    modes: FoundModes, options: DiagnosisOptions, decides: bool = True
) -> list[Check]:
    """Checks of what two searches have found.

    Arguments:
        modes: The result of the search.
        options: Thresholds.
        decides: Whether the draws depend on this search. Of any other one only what the draws lack
            is an alarm, see :mod:`.missed_modes`, and not that it has missed something itself.
    """
    none = float("nan")
    checks = [
        Check(
            "particles outside of their start",
            float(not modes.covered),
            0 if decides else none,
            modes.covered or not decides,
            NOT_COVERED,
            "give the model more informative priors",
        )
    ]
    agreement, most = modes.agreement, options.search.modes.max_missed
    if isnan(agreement.unseen):
        return checks
    checks.append(
        Check(
            "mass that particles have lost",
            agreement.missed,
            most if decides else none,
            agreement.missed <= most or not decides,
            f"both searches for modes have missed regions that quasi-Newton paths have found: they "
            f"have {agreement.missed:.2%} of the mass, and about as much may be in regions that "
            f"none has found",
            MORE_EVALUATIONS,
        )
    )
    return [*checks, unseen_check(agreement.unseen, options, decides)]


def unseen_check(unseen: float, options: DiagnosisOptions, decides: bool = True) -> Check:
    """The mass that one of two searches has found alone; an alarm where it decides.

    Example:
        >>> check = unseen_check(0.4, DiagnosisOptions())
        >>> check.ok, unseen_check(0.4, DiagnosisOptions(), decides=False).ok
        (False, True)
    """
    ok = unseen <= options.max_unseen or not decides
    bound = options.max_unseen if decides else float("nan")
    text = unseen_problem(unseen)
    return Check("unseen mass", unseen, bound, ok, text, MORE_EVALUATIONS)


def path_mode_check(
    x: Tensor, size: float, modes: FoundModes, target: Target, options: DiagnosisOptions
) -> list[Check]:
    """The mass of modes that paths alone have found, and that the draws hardly visit.

    Arguments:
        x: Unconstrained draws, ``(N, d)``.
        size: Their effective number: a mode counts where it should have some of them.
        modes: The result of the search.
        target: The target.
        options: Thresholds.
    """
    alone = modes.alone
    if alone is None or not len(alone.loc):
        return []
    mass = modes.agreement.shares_of(alone)
    share = alone.near(x, target, options.search.modes.near_deviations).double().mean(1)
    lost = (size * mass >= options.min_region_particles) & (share < options.min_share * mass)
    value = float(mass[lost].sum())
    text = (
        f"chains hardly ever visit {int(lost.sum())} modes in which quasi-Newton paths have found "
        f"{value:.2%} of the mass"
    )
    name = "mass of path modes not visited"
    advice = "use a flow that jumps between modes, such as AutoFlow(ensemble=tempered_smc)"
    return [Check(name, value, 0, not bool(lost.any()), text, advice)]


def stranded_check(
    x: Tensor, modes: FoundModes, kernel: Any, target: Target, options: DiagnosisOptions
) -> Check:
    r"""Particles that are far from all draws and stay there, beside draws of which this is so.

    Particles far out in a tail come back by a few steps. Those in a small mode stay there. What the
    chains hardly leave they hardly enter, so that draws lack it where no chain began in it.

    In a heavy tail right draws stay far from others for long, too. So particles are compared with
    draws: those of one half of the chains are far from the other half as particles are from it.
    It is an alarm where so many more particles than draws are far after the steps that the
    probability is below ``check_error``, see :mod:`.counts`. Copies of one point count once: they
    have been found on one way only.

    Arguments:
        x: Unconstrained draws, ``(chains, draws, d)``.
        modes: The result of the search.
        kernel: The kernel that made the draws, after its warm-up; a copy of it makes the steps.
        target: Its target.
        options: The number of steps, and the probability of an alarm.

    Example:
        >>> from types import SimpleNamespace
        >>> from pyro_flowsamp import LatentHMC, VectorizedMCMC
        >>> from pyro_flowsamp.sampling.candidates import gaussian_guide
        >>> target = Target.from_energy(lambda x: 0.5 * (x.abs() - 20).square().sum(-1), 1)
        >>> guide = gaussian_guide(target, torch.tensor([20.0]), torch.eye(1))
        >>> _ = torch.manual_seed(0)
        >>> run = VectorizedMCMC(LatentHMC(guide=guide), 100, 20, 20, disable_progbar=True)
        >>> run.run()
        >>> draws = run.unconstrained
        >>> modes = SimpleNamespace(
        ...     x=torch.cat([draws[0, :97], torch.tensor([[-20.0], [-20.5], [-19.5]])]),
        ...     weights=torch.full((100,), 0.01).double(),
        ... )
        >>> check = stranded_check(draws, modes, run.kernel, target, DiagnosisOptions())
        >>> round(check.value, 2), check.ok
        (0.03, False)
    """
    far, weights = far_from(x, options), modes.weights
    half = x.chunk(2)[0] if len(x) > 1 else x.chunk(2, 1)[0]
    draws = half.flatten(0, 1).to(target.dtype)
    points = torch.cat([modes.x.to(target.dtype), draws])
    away = far(points).nonzero()[:, 0]
    if len(away):
        _, ends = ends_of_steps(copy(kernel), target, points[away], options.stranded_steps)
        away = distinct_points(points, away[far(ends)])
    ours = away[away < len(weights)]
    (count, size), of_draws = effective_counts(weights, ours), len(away) - len(ours)
    most = most_by_chance(of_draws, size, len(draws), options.check_error)
    text = (
        f"{count / size:.2%} of the annealed particles are in regions that no chain has been in, "
        f"and that the kernel does not leave in {options.stranded_steps} steps, and "
        f"{of_draws / len(draws):.2%} of the draws: draws lack these regions"
    )
    name = "particles in regions without draws"
    return Check(name, count / size, most / size, count <= most, text, EXPLORE)


# ---- evidences -----------------------------------------------------------------------------------


def evidence_of_draws(
    states: Tensor | None, log_w: Tensor | None, agreement: Agreement, options: DiagnosisOptions
) -> Estimate | None:
    r"""The log evidence by bridge sampling; None where it misses mass, or is not known.

    Between the states of the chains and draws of their flow its standard error holds whatever the
    tails of the weights are, if both overlap: then the error is small
    (:attr:`~pyro_flowsamp.DiagnosisOptions.max_evidence_error`). It must not be smaller than those
    of the searches, by more than the errors of both.

    Arguments:
        states: Log weights of states under the flow, ``(chains, draws)``; None where they are not
            known.
        log_w: Log weights of fresh draws of the flow, ``(N,)``; None where it is not known.
        agreement: The evidences of two searches.
        options: Bounds.

    Example:
        >>> none = torch.zeros(2).double()
        >>> searches = Agreement(torch.ones(2, 1), torch.zeros(1), 0.0, none, none + 0.1)
        >>> states, fresh = torch.zeros(4, 100), torch.zeros(400)  # the flow is the target
        >>> options = DiagnosisOptions()
        >>> float(evidence_of_draws(states, fresh, searches, options).value)
        0.0
        >>> evidence_of_draws(states - 3, fresh - 3, searches, options)  # searches found more
    """
    if states is None or log_w is None or states.shape[1] < FEWEST_DRAWS:
        return None
    own, bounds = bridge_evidence(states, log_w, options.evidence), options.search.modes
    if not float(own.standard_error) <= options.max_evidence_error:  # NaN is unknown, too
        return None
    more = agreement.log_evidence.to(own.value) - own.value
    error = (agreement.error.to(own.value).square() + own.standard_error.square()).sqrt()
    bound = (bounds.max_gap * error).clamp(min=bounds.evidence_tolerance)
    return None if bool((more > bound).any()) else own


def one_mode(modes: FoundModes) -> bool:
    """Whether the particles of both searches, and all paths, are in one mode."""
    return modes.num_modes == 1


def best_evidence(
    states: Tensor | None, log_w: Tensor | None, agreement: Agreement, options: DiagnosisOptions
) -> Estimate:
    r"""The log evidence by bridge sampling where that is known, and else by both searches.

    The mass of modes that paths have found, and both searches have lost, is added to it.

    Where the evidences of the searches are apart, the error is at least their difference. The error
    of both searches is made of those of their islands, with one degree of freedom less than there
    are islands each, and of the difference between the searches, with one
    (:attr:`~pyro_flowsamp.smc.found_modes.Agreement.best_evidence`).

    Arguments:
        states, log_w, agreement, options: See :func:`evidence_of_draws`.

    Example:
        >>> none = torch.zeros(2).double()
        >>> searches = Agreement(torch.ones(2, 1), torch.zeros(1), 0.0, none, none + 0.1)
        >>> value, error = best_evidence(None, None, searches, DiagnosisOptions())
        >>> round(float(value), 2), round(float(error), 2)  # both searches alike
        (0.0, 0.07)
    """
    own, best = evidence_of_draws(states, log_w, agreement, options), agreement.best_evidence
    if own is not None:
        return own
    bounds = options.search.modes
    best = best._replace(value=best.value - log1p(-agreement.lost))
    if agreement.evidences_apart(bounds):
        difference = abs(agreement.log_evidence_difference)
        return Estimate(best.value, best.standard_error.clamp(min=difference), 1.0)
    share = agreement.search_weights
    inside = (share * agreement.error).square().tolist()
    between = float((share[0] - share[1]).square())
    parts = [(variance, max(1.0, bounds.islands - 1.0)) for variance in inside]
    return Estimate(*best, summed_degrees(*parts, (between, 1.0)))


def distance_of_searches(
    x: Tensor, modes: FoundModes, target: Target, options: DiagnosisOptions
) -> float:
    """The largest Kolmogorov distance between draws and the particles of either search.

    It is that of the coordinates and of the log density.

    Arguments:
        x: Unconstrained draws, ``(N, d)`` or ``(chains, draws, d)``.
        modes: The result of the search.
        target: The target, which is evaluated at some draws and at the particles.
        options: The number of draws.
    """
    some = some_draws(x, options.compared_draws)
    with torch.no_grad():
        of_draws, of_particles = (
            torch.cat([points.double(), target.log_prob(points).double()[:, None]], -1)
            for points in (some, modes.x.to(target.dtype))
        )
    searches = of_particles[~modes.second], of_particles[modes.second]
    return max(float(kolmogorov_distance(of_draws, part).max()) for part in searches)


def compare_evidences(
    agreement: Agreement,
    own: Estimate | None,
    distance: Callable[[], float],
    options: DiagnosisOptions,
) -> tuple[list[Check], str]:
    r"""Compares the log evidences of two searches.

    They agree if they are known, and differ by at most ``max_gap`` standard errors of both. If not,
    they would differ as much if one search had lost the share m of the mass. This is excluded, and
    the evidence is uncertain only, if the distance of particles and draws is below ``max_distance``
    times m. An evidence that is not known may be wrong by its error.

    Arguments:
        agreement: The evidences.
        own: That of :func:`evidence_of_draws`; it makes the comparison needless.
        distance: A function that returns that of :func:`distance_of_searches`; infinity where the
            draws depend on the evidences anyway.
        options: Bounds.

    Returns:
        The check, and a note where the evidence is uncertain and the draws do not depend on it.
    """
    values, errors, bounds = agreement.log_evidence, agreement.error, options.search.modes
    if bool((values + errors).isnan().any()):
        return [], ""
    gap, error = agreement.evidence_gap, float(errors.max())
    one, two = values.tolist()
    unknown, apart = error > bounds.max_evidence_error, agreement.evidences_apart(bounds)
    name = "evidences of two searches"
    if own is not None or not (unknown or apart):
        return [Check(name, gap, bounds.max_gap if own is None else float("nan"), True)], ""
    lost = 1 - exp(-max(abs(one - two), error if unknown else 0.0))
    if distance() <= options.max_distance * lost:
        note = (
            f"the log evidence is uncertain: those of two searches are {one:.2f} and {two:.2f}, "
            f"with errors of {float(errors[0]):.2g} and {float(errors[1]):.2g}. The draws do not "
            f"depend on it, since all particles are in one mode, and distributed as the draws"
        )
        return [Check(name, gap, float("nan"), True)], note
    if unknown:
        text = (
            f"two searches for modes cannot be compared: the log evidence of one has an error of "
            f"{error:.2g}, so that missed modes would not be seen"
        )
        most, name = bounds.max_evidence_error, "error of an evidence"
        return [Check(name, error, most, False, text, MORE_EVALUATIONS)], ""
    text = (
        f"two searches for modes disagree: their log evidences are {one:.2f} and {two:.2f}, "
        f"{gap:.1f} standard errors apart"
    )
    return [Check(name, gap, bounds.max_gap, False, text, MORE_EVALUATIONS)], ""


def direction_check(
    agreement: Agreement,
    own: Estimate | None,
    distance: Callable[[], float],
    options: DiagnosisOptions,
) -> list[Check]:
    """Compares the particles of two searches along directions.

    Searches that differ along a direction make the draws doubtful where evidences do: where the
    flow does not give the evidence, and the draws depend on the searches or are distributed
    otherwise than the particles.

    Arguments:
        agreement: The direction along which the searches differ most.
        own, distance, options: See :func:`compare_evidences`.

    Returns:
        The check; none where there is no such direction.
    """
    gap, bounds = agreement.direction, options.search.modes
    if gap is None:
        return []
    wrong = not agreement.directions_agree(bounds)
    wrong = wrong and own is None and distance() > options.max_distance
    bound = bounds.direction_tolerance if wrong else float("nan")
    name = "two searches along directions"
    return [Check(name, gap.difference, bound, not wrong, gap.problem, MORE_EVALUATIONS)]
