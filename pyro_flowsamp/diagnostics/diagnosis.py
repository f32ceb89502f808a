"""All that can be known about the quality of draws, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isnan
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from ..kernels.imh import IMH
from ..smc.found_modes import FoundModes
from ..smc.particle_mixture import particle_mixture
from ..trust import log_weights
from ..weights import Estimate, pareto_k
from .agreement import evidence_checks, move_checks, state_weight_checks, weight_checks
from .chains import chain_checks, region_checks
from .checks import Check, Diagnosis
from .draws import DiagnosedDraws, read_draws
from .evidence import estimates_of_draws
from .missed_modes import (
    draws_of_paths,
    own_search,
    particle_checks,
    path_checks,
    region_of,
    search_checks,
    unseen_check,
)
from .options import DiagnosisOptions

__all__ = ["diagnose"]


FEWEST_DRAWS = 8  #: draws of a chain that are kept where chains are thinned


def diagnose(
    source: Any,
    guide: Any = None,
    target: Any = None,
    *,
    modes: FoundModes | None = None,
    search: bool = True,
    groups: Tensor | None = None,
    reported: Sequence[str] = (),
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

    ``problems`` that :func:`~pyro_flowsamp.sample` has stored are included. Under ArviZ 1.x
    ``arviz_stats.diagnose(data, ess_threshold=400)`` shows R-hat and effective sample sizes of each
    parameter beside this.

    Arguments:
        source: A :class:`~pyro_flowsamp.VectorizedMCMC`, a :class:`pyro.infer.MCMC` of any kernel,
            or an ArviZ object of draws.
        guide: A trained guide of the same posterior; a run of this package has its own.
        target: The target of the draws.
        modes: The result of a search for modes, in place of new ones.
        search: Whether to search for modes where the target is known and there are no ``modes``.
        groups: The superchain of each chain, ``(chains,)``: chains of a group have started at the
            same point or near each other. Also read from the coordinate "superchain".
        reported: What is known to be wrong already, in words.
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
    draws = read_draws(source, guide, target)
    if groups is not None:
        if tuple(groups.shape) != (len(draws.columns),):
            raise ValueError(
                f"groups has shape {tuple(groups.shape)}: give one number for each of the "
                f"{len(draws.columns)} chains"
            )
        draws = draws._replace(groups=groups)
    if draws.kernel is not None and not isinstance(draws.kernel, IMH):
        draws = draws._replace(statistics={"step_size": torch.empty(0), **draws.statistics})
    checks = [_reported(text) for text in [*reported, *_stored_problems(draws)]]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(options.seed)
        found, unchecked = _all_checks(draws, modes, search, options)
    return Diagnosis(tuple(checks + found), tuple(unchecked))


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
    draws: DiagnosedDraws, modes: FoundModes | None, search: bool, options: DiagnosisOptions
) -> tuple[list[Check], list[str]]:
    unchecked: list[str] = []
    if draws.of_a_guide:
        unchecked.append("chains: these are independent draws of a guide, not of the target")
        checks: list[Check] = []
    else:
        checks = chain_checks(draws, options)
    if checks and not checks[0].ok:
        return checks, ["everything else: draws are not finite"]
    given = modes is not None
    if modes is None and search and draws.target is not None:
        modes, found, problem = _searched(draws, options)
        checks += found
        unchecked += [problem] if problem else []
    elif modes is None:
        unchecked.append("missed modes: they need target=, and search=True")
    if not draws.of_a_guide:
        checks += _regions(draws, modes, options)
    particles, log_w = None, None
    if draws.proposal is not None and draws.target is not None:
        points, log_q = draws.proposal.sample_and_log_prob(options.evidence.num_draws)
        with torch.no_grad():
            log_w = draws.target.log_prob(points).double() - log_q.double()
        checks += weight_checks(draws, points, log_w, options)
        if modes is not None:
            flow = cast(Any, SimpleNamespace(proposal=draws.proposal))
            tolerance = options.search.inversion_tolerance
            particles = log_weights(flow, draws.target, modes.x, tolerance)
    else:
        unchecked.append("the weights of the flow: they need guide= and target=")
    own = estimates_of_draws(draws, options.evidence, log_w)
    annealed = {"stored particles": own.pop("particles")} if "particles" in own else {}
    if log_w is not None and pareto_k(log_w) >= options.max_pareto_k:
        own = {}
    checks += state_weight_checks(draws, particles, options)
    checks += move_checks(draws, modes, options)
    if modes is not None:
        checks += search_checks(modes, options, given)
        if draws.x is not None and not draws.of_a_guide:
            checks += particle_checks(
                _thinned(draws.x, options.max_draws), modes, options, given or modes.settled
            )
        for i, name in enumerate(("the first search", "the second search")):
            agreement = modes.agreement
            annealed[name] = Estimate(agreement.log_evidence[i], agreement.error[i])
    elif not isnan(unseen := float(draws.attributes.get("unseen_mass", float("nan")))):
        checks.append(unseen_check(unseen, options))
    return [*checks, *evidence_checks(annealed, own, options)], unchecked


def _some(x: Tensor, most: int) -> Tensor:
    return x[torch.randperm(len(x), device=x.device)[:most]]


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
        return None, checks, "missed modes: there are too many dimensions for annealed particles"
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
    fitted = _some(flat, options.fitted_draws)
    if len(fitted) < options.region_draws_per_dimension * flat.shape[1] or not flat.shape[1]:
        return []
    low, middle, high = fitted.quantile(torch.tensor([0.25, 0.5, 0.75]).to(fitted), 0)
    scale = (high - low).clamp(min=torch.finfo(fitted.dtype).tiny)
    fitted, flat = (fitted - middle) / scale, (flat - middle) / scale
    mixture = particle_mixture(fitted, replace(options.search.modes, many_draws=0.0))
    groups = mixture.separated(fitted, options.search.modes.overlap)
    found = groups[mixture.joint_log_prob(flat).argmax(-1)]
    return region_checks(found.unflatten(0, x.shape[:2]), options)
