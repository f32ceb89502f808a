"""All that can be known about the quality of draws, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from math import isnan
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from ..chains.streaming import some_draws
from ..distributed import check_alike, check_same_density, replicated, replicating_workers
from ..kernels.imh import IMH
from ..seeding import kept_generators
from ..smc.found_modes import FoundModes
from ..smc.particle_mixture import particle_mixture
from ..trust import FlowDraws, draws_of_flow, log_weights
from ..weights import Estimate, pareto_k
from .agreement import (
    evidence_checks,
    move_checks,
    state_weight_checks,
    weight_checks,
)
from .chains import chain_checks, region_checks
from .checks import Check, Diagnosis
from .draws import DiagnosedDraws, read_draws
from .evidence import estimates_of_draws, weights_of_states
from .missed_modes import (
    draws_of_paths,
    own_search,
    particle_checks,
    path_checks,
    region_of,
)
from .options import DiagnosisOptions
from .rare_states import error_checks, rare_states_check, visits_check
from .searches import (
    compare_evidences,
    direction_check,
    distance_of_searches,
    evidence_of_draws,
    one_mode,
    path_mode_check,
    search_checks,
    stranded_check,
    unseen_check,
)

__all__ = ["diagnose"]


FEWEST_DRAWS = 8  #: draws of a chain that are kept where chains are thinned
TOO_MANY_DIMENSIONS = "missed modes: there are too many dimensions for annealed particles"


def diagnose(
    source: Any,
    guide: Any = None,
    target: Any = None,
    *,
    modes: FoundModes | None = None,
    search: bool = True,
    groups: Tensor | None = None,
    reported: Sequence[str] = (),
    flow_draws: FlowDraws | None = None,
    options: DiagnosisOptions = DiagnosisOptions(),
) -> Diagnosis:
    r"""Looks for everything that may be wrong with draws, and says what to try.

    What is checked depends on what is known:

    - Of any draws: numbers that are not finite, rank R-hat, nested R-hat, effective sample sizes of
      the bulk and of the tails, chains that never move or stay at one point for long, divergences,
      and how often chains go from one region to another.
    - Of draws with weights: the Pareto k of the weights of states.
    - With a flow and the target, as of a run, or with ``guide`` and ``target``: importance ESS and
      Pareto k of draws of the flow, averages by their weights beside those of the chains, and the
      evidence by importance and bridge sampling.
    - With the target: two searches for modes, of up to 100 000 evaluations of its density. Draws
      that have missed a region, or give it another share, differ from the particles.
    - With the run's kernel: whether local moves change the distribution of the states, or the
      sampler does not move some of the particles.

    Chains that have all missed the same mode agree perfectly. Only the target and the flow can show
    that, so give them where the source does not have them. Draws that pass all checks can still
    be wrong.

    Inside of :func:`~pyro_flowsamp.workers` every worker must call it, with its part of a run, or
    with the same draws. All have the result.

    ``problems`` that :func:`~pyro_flowsamp.sample` has stored are included. Under ArviZ 1.x
    ``arviz_stats.diagnose(data, ess_threshold=400)`` shows R-hat and effective sample sizes of each
    parameter beside this.

    Arguments:
        source: A :class:`~pyro_flowsamp.VectorizedMCMC`, a :class:`pyro.infer.MCMC` of any kernel,
            or an ArviZ object of draws.
        guide: A trained guide of the same posterior; a run of this package has its own.
        target: The target of the draws.
        modes: The result of the search for modes on which the draws depend, in place of new ones.
        search: Whether to search for modes where the target is known and there are no ``modes``.
        groups: The superchain of each chain, ``(chains,)``: chains of a group have started at the
            same point or near each other. Also read from the coordinate "superchain".
        reported: What is known to be wrong already, in words.
        flow_draws: Draws of the flow that have been made already, in place of new ones.
        options: Thresholds.

    Returns:
        The :class:`Diagnosis`; printing it shows a table.

    Raises:
        ValueError: The source has no draws, the guide is untrained, the target is at several
            contexts or not known, or there is not one group for each chain.

    References:
        Vehtari et al., *Rank-Normalization, Folding, and Localization: An Improved R-hat for
        Assessing Convergence of MCMC*, 2021, https://arxiv.org/abs/1903.08008

        Vehtari, Simpson, Gelman, Yao & Gabry, *Pareto Smoothed Importance Sampling*, 2024,
        https://arxiv.org/abs/1507.02646

    Example::

        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_flowsamp import IMH, AutoFlow, FitOptions, VectorizedMCMC
        >>> _ = pyro.set_rng_seed(0)
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> guide = AutoFlow(model, flow="gaussian", options=FitOptions(progress=False))
        >>> run = VectorizedMCMC(IMH(model, guide=guide), 50, 10, 200, disable_progbar=True)
        >>> run.run(torch.tensor(1.0))
        >>> found = diagnose(run)
        >>> found.reliable, found["bulk ESS"].ok
        (True, True)
    """
    with replicated("a diagnosis of draws"):
        draws = read_draws(source, guide, target)
        told = [*reported, *_stored_problems(draws)]
        check_alike("the diagnosed run", draws.columns, draws.statistics, told)
        if draws.target is not None and (group := replicating_workers()) is not None:
            check_same_density(group, draws.target)
        with replicated("a diagnosis of draws", draws.target):
            return _diagnosis(draws, groups, told, modes, search, flow_draws, options)


def _diagnosis(
    draws: DiagnosedDraws,
    groups: Tensor | None,
    told: list[str],
    modes: FoundModes | None,
    search: bool,
    flow_draws: FlowDraws | None,
    options: DiagnosisOptions,
) -> Diagnosis:
    """The diagnosis of draws that have been read, see :func:`diagnose`."""
    if groups is not None:
        if tuple(groups.shape) != (len(draws.columns),):
            raise ValueError(
                f"groups has shape {tuple(groups.shape)}: give one number for each of the "
                f"{len(draws.columns)} chains"
            )
        draws = draws._replace(groups=groups)
    if draws.kernel is not None and not isinstance(draws.kernel, IMH):
        draws = draws._replace(statistics={"step_size": torch.empty(0), **draws.statistics})
    with kept_generators(seed=options.seed):
        found, unchecked, notes = _all_checks(draws, modes, search, flow_draws, bool(told), options)
    known = {check.message for check in found}
    checks = [_reported(text) for text in told if text not in known]
    return Diagnosis(tuple(checks + found), tuple(unchecked), tuple(notes))


def _reported(text: str) -> Check:
    return Check("reported", 1, 0, False, text)


def _stored_problems(draws: DiagnosedDraws) -> list[str]:
    """Problems that sample() has stored; "unreliable" where it has stored none of them."""
    problems = str(draws.attributes.get("problems", ""))
    if problems:
        return problems.split("; ")
    if not draws.attributes.get("reliable", 1):
        return ["the sampler has reported that its draws are not reliable"]
    return []


def _all_checks(
    draws: DiagnosedDraws,
    modes: FoundModes | None,
    search: bool,
    made: FlowDraws | None,
    wrong: bool,
    options: DiagnosisOptions,
) -> tuple[list[Check], list[str], list[str]]:
    """All checks, what could not be checked, and notes; ``wrong`` if something is known to be."""
    unchecked: list[str] = []
    if draws.of_a_guide:
        unchecked.append("chains: these are independent draws of a guide, not of the target")
        checks: list[Check] = []
    else:
        checks = chain_checks(draws, options)
    if checks and not checks[0].ok:
        return checks, ["everything else: draws are not finite"], []
    given, outside = modes is not None, []
    if modes is None and search and draws.target is not None:
        modes, found, problem = _searched(draws, options)
        checks += found
        unchecked += [problem] if problem else []
    elif modes is None:
        unchecked.append("missed modes: they need target=, and search=True")
    elif isnan(modes.agreement.unseen):  # there are points of paths, and no particles
        interrupted = "missed modes: Ctrl-C ended the search for them"
        unchecked.append(interrupted if modes.interrupted else TOO_MANY_DIMENSIONS)
        outside, modes = search_checks(modes, options), None
    if not draws.of_a_guide:
        checks += _regions(draws, modes, options)
    found, made = _of_the_flow(draws, modes, made, options)
    checks += [*outside, *found]
    if made is None:
        unchecked.append("the weights of the flow: they need guide= and target=")
    checks += move_checks(draws, modes, options) if options.moves else []
    if modes is not None:
        checks += _of_the_search(draws, modes, given, checks, options)
    elif not isnan(unseen := float(draws.attributes.get("unseen_mass", float("nan")))):
        checks.append(unseen_check(unseen, options))
    checks += _of_evidences(draws, modes, made, options)
    if modes is None or not given:
        return checks, unchecked, []
    log_w = None if made is None else made.log_weights
    own = evidence_of_draws(weights_of_states(draws), log_w, modes.agreement, options)
    wrong = wrong or not all(check.ok for check in checks)
    distance = cache(lambda: _distance(draws, modes, wrong, options))
    found, note = compare_evidences(modes.agreement, own, distance, options)
    found += direction_check(modes.agreement, own, distance, options)
    return [*checks, *found], unchecked, [note] if note else []


def _of_the_flow(
    draws: DiagnosedDraws,
    modes: FoundModes | None,
    made: FlowDraws | None,
    options: DiagnosisOptions,
) -> tuple[list[Check], FlowDraws | None]:
    """Checks of weights, and draws of the flow; None where it is not known."""
    if draws.proposal is None or draws.target is None:
        return state_weight_checks(draws, None, options), None
    if made is None:
        made = draws_of_flow(draws.proposal, draws.target, options.evidence.num_draws)
    fewer = draws if draws.x is None else draws._replace(x=_thinned(draws.x, options.max_draws))
    checks = weight_checks(fewer, made.x, made.log_weights, options)
    particles = shares = None
    if modes is not None:
        shares = modes.weights
        flow = cast(Any, SimpleNamespace(proposal=draws.proposal))
        tolerance = options.search.inversion_tolerance
        particles = log_weights(flow, draws.target, modes.x, tolerance)
    checks += rare_states_check(draws, made.log_weights, particles, shares, options)
    if modes is not None and particles is not None:
        checks += visits_check(draws, particles, modes.weights, modes.x, options)
        if not draws.of_a_guide:
            known = particles, modes.weights, modes.x
            checks += error_checks(draws, made.log_weights, *known, options)
    return [*checks, *state_weight_checks(draws, particles, options, shares)], made


def _of_the_search(
    draws: DiagnosedDraws,
    modes: FoundModes,
    given: bool,
    others: Sequence[Check],
    options: DiagnosisOptions,
) -> list[Check]:
    """Checks of two searches, and of the draws beside their particles."""
    checks = search_checks(modes, options, given)
    if draws.x is None or draws.of_a_guide:
        return checks
    x = _thinned(draws.x, options.max_draws)
    checks += particle_checks(x, modes, options, given or modes.settled, given)
    if given and draws.target is not None:
        size = _effective_number(others, draws.x)
        flat = some_draws(draws.x, options.max_draws)
        checks += path_mode_check(flat, size, modes, draws.target, options)
        around = replace(options, explorations=0)  # the search has had paths from everywhere
        checks += path_checks(x, draws_of_paths(draws.target, x, around), options)
        if draws.kernel is not None:
            checks.append(stranded_check(x, modes, draws.kernel, draws.target, options))
    return checks


def _of_evidences(
    draws: DiagnosedDraws,
    modes: FoundModes | None,
    made: FlowDraws | None,
    options: DiagnosisOptions,
) -> list[Check]:
    """Evidences of particles, and a stored one, beside those of the flow and the chains."""
    own = estimates_of_draws(draws, options.evidence, made)
    annealed = {"the stored estimate": own.pop("stored")} if "stored" in own else {}
    if made is not None and pareto_k(made.log_weights) >= options.max_pareto_k:
        own = {}
    if modes is not None:
        values, errors = modes.agreement.log_evidence, modes.agreement.error
        for i, name in enumerate(("the first search", "the second search")):
            annealed[name] = Estimate(values[i], errors[i])
    return evidence_checks(annealed, own, options)


def _distance(
    draws: DiagnosedDraws, modes: FoundModes, wrong: bool, options: DiagnosisOptions
) -> float:
    """The distance of particles and draws; infinity where the draws depend on the evidences."""
    if wrong or not one_mode(modes) or draws.x is None or draws.target is None:
        return float("inf")
    return distance_of_searches(draws.x, modes, draws.target, options)


def _effective_number(checks: Sequence[Check], x: Tensor) -> float:
    """The effective number of draws, or their number where it is not known."""
    sizes = [check.value for check in checks if check.name == "bulk ESS"]
    return min([float(x[..., 0].numel()), *sizes])


def _searched(
    draws: DiagnosedDraws, options: DiagnosisOptions
) -> tuple[FoundModes | None, list[Check], str]:
    """The result of a search for modes, checks by its paths, and what it leaves unchecked."""
    target, known = draws.target, not draws.of_a_guide
    checks: list[Check] = []
    assert target is not None
    try:
        x = _thinned(draws.x, options.max_draws) if draws.x is not None and known else None
        paths = draws_of_paths(target, x, options)
        checks = [] if x is None else path_checks(x, paths, options)
        found = own_search(target, paths, options)
    except ValueError as error:
        return None, checks, f"missed modes: {error}"
    if isnan(found.agreement.unseen):
        return None, checks, TOO_MANY_DIMENSIONS
    return found, checks, "" if found.settled else "missed modes: two searches for them disagree"


def _thinned(x: Tensor, most: int) -> Tensor:
    """About so many draws of all chains, and at least eight of each."""
    return x[:, :: max(1, min(x[..., 0].numel() // most, x.shape[1] // FEWEST_DRAWS))]


def _regions(
    draws: DiagnosedDraws, modes: FoundModes | None, options: DiagnosisOptions
) -> list[Check]:
    """Visits of the regions that a search has found, or that a mixture of the draws has."""
    x = draws.x if draws.x is not None else draws.columns
    x = _thinned(x, options.max_draws)
    if modes is not None and draws.x is not None:
        found = region_of(modes, x.flatten(0, 1))
        return region_checks(found.unflatten(0, x.shape[:2]), options)
    flat = x.flatten(0, 1).double()
    flat = flat[:, (flat != flat[0]).any(0)]
    fitted = some_draws(flat, options.fitted_draws)
    if len(fitted) < options.region_draws_per_dimension * flat.shape[1] or not flat.shape[1]:
        return []
    low, middle, high = fitted.quantile(torch.tensor([0.25, 0.5, 0.75]).to(fitted), 0)
    scale = (high - low).clamp(min=torch.finfo(fitted.dtype).tiny)
    fitted, flat = (fitted - middle) / scale, (flat - middle) / scale
    mixture = particle_mixture(fitted, replace(options.search.modes, many_draws=0.0))
    groups = mixture.separated(fitted, options.search.modes.overlap)
    found = groups[mixture.joint_log_prob(flat).argmax(-1)]
    return region_checks(found.unflatten(0, x.shape[:2]), options)
