r"""Sampling from a model's posterior in one call, by a search over candidate samplers.

The search begins with all modes (:mod:`pyro_flowsamp.smc.mode_search`). Its particles give a
Gaussian, a mixture, and the starting points of all chains. The candidates are HMC in coordinates
where the posterior has nearly unit covariance, and samplers that jump by a flow: by the mixture, by
an affine coupling flow or by a spline flow. Each flow is used by two kernels, the independence
sampler :class:`~pyro_flowsamp.IMH` and :class:`~pyro_flowsamp.LocalGlobalHMC`, which makes local
moves too. Flows are trained by the path gradient of the reverse KL divergence. Where this loses
modes, so that no kernel mixes, they are trained by forward KL too, on the particles and on draws of
the best chains so far.

A pilot run of each kernel (:mod:`pyro_flowsamp.sampling.pilot`) estimates the work with which it
would make the draws. No other kernel can save more than the least work so far: one is run, and its
flow trained, only if this takes less. Work is counted in operations and elements. The kernel with
the least work makes the draws; if no flow takes less than HMC, that is HMC. Before the first draw
that is kept its chains run until all have moved (at several modes: until the flow's proposals have
moved them), and then as long again, or longer where steps cost little. They begin at particles of
both searches, so that also modes of small share have some of them.

Every kernel leaves the posterior invariant, whatever its flow, and is not adapted any more during
the draws that are returned. What can be wrong is what no chain has reached. So jumps are trusted
only where the tails of their weights and local moves agree (:mod:`pyro_flowsamp.trust`), two
searches for modes must agree with each other and with the chains, and chains must agree whatever
their starting points.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

from ..chains.draw_buffer import check_memory, given_points
from ..checkpoint.options import Location
from ..checkpoint.scope import entered
from ..diagnostics.checks import Diagnosis
from ..diagnostics.searches import best_evidence
from ..distributed import (
    check_alike,
    common_seed,
    is_hidden,
    refuse_with_shard,
    replicated,
)
from ..export import check_groups, check_names, to_arviz
from ..options import SearchOptions
from ..provenance import add_record
from ..seeding import seeded
from ..target.arguments import check_shared_names
from ..target.density import as_target
from ..target.options import CompileMode, check_compile
from ..target.site import Values
from ..trust import draws_of_flow
from ..validation import check_count, check_flag, check_number, check_seed, public_call, shown
from ..weights import Estimate
from .candidates import given_guide
from .final_run import finish
from .interrupts import made_again, nothing_yet
from .pilot import Candidate, Goal, check_time
from .precision import precise_enough
from .search import SamplerSearch
from .storage import begin_sampling
from .verdict import advice, judged, thresholds, with_problem

__all__ = ["sample"]

log = logging.getLogger(__name__)
#: what a caller can do where draws need too much memory
FEWER_DRAWS = "ask for fewer draws by num_samples=..., or for fewer chains by num_chains=..."
DEFAULT_ESS = 4000  #: effective draws of every parameter, where the caller asks for nothing


def sample(
    model: Callable,
    /,
    *args: Any,
    ess: int | None = None,
    num_samples: int | None = None,
    num_chains: int | None = None,
    seed: int | None = None,
    progress: bool = True,
    log_likelihood: bool = False,
    search: SearchOptions = SearchOptions(),
    candidates: Sequence[str] = (),
    exclude: Sequence[str] = (),
    initial_params: Values | None = None,
    start: Any = None,
    guide: Any = None,
    max_seconds: float | None = None,
    compile: CompileMode = "auto",
    groups: Sequence[str] = (),
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence] | None = None,
    checkpoint: Location | None = None,
    **kwargs: Any,
) -> Any:
    r"""Draws from the posterior of a model, with the MCMC method that takes the least work.

    It searches for all modes, compares Hamiltonian Monte Carlo and several normalizing flows by
    short pilot runs, and trains a flow only where it could save work. The chosen method is an exact
    MCMC kernel. It is not adapted any more during the draws that are returned. If a draw has less
    than half an effective draw, chains are thinned, at most 20-fold.

    By default it draws until every parameter has an effective sample size of 4000, of the bulk and
    of the tails; an independence sampler also until the states at which it stays longest have it,
    see :mod:`pyro_flowsamp.stays`. This is looked at when the number of draws has doubled, and not
    more often.

    Work is counted in operations and not in seconds. A seed gives the same draws however busy the
    machine is.

    What has been seen to be wrong, or not to be settled, is told in a warning and in the attributes
    ``reliable`` and ``problems``.

    Ctrl-C ends the search, and the best method so far makes the draws. If no method has been tried
    yet, the search for modes ends with what it has found, and the first method that mixes makes
    the draws. In the first pilot run the draws so far are returned, or the particles of the search
    for modes. A second Ctrl-C ends the sampling, and the draws so far are returned.

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`.
        args, kwargs: Arguments of the model.
        ess: Effective sample size that every parameter must have; by default 4000, unless
            ``num_samples`` is given.
        num_samples: Draws kept of each chain, in place of ``ess``.
        num_chains: Number of chains; by default a number that suits the work of a step, and 1000
            with ``num_samples``.
        seed: Seed of all random numbers, from 0 to 2⁶⁴ − 1; below 2³² it is that of
            :func:`pyro.set_rng_seed`. The global random state is left as it was.
        progress: Whether to show a progress bar of each stage. That of the draws counts effective
            draws, and each of them evaluations of the density.
        log_likelihood: Whether the result has the log-likelihood of each observation, see
            :func:`~pyro_flowsamp.to_arviz`.
        search: Options of the search, see :class:`~pyro_flowsamp.SearchOptions`.
        candidates, exclude: Kernels and flows to compare, and to leave out; names as in
            :attr:`SearchOptions.candidates <pyro_flowsamp.SearchOptions>`.
        initial_params: Unconstrained values ``{site: (N, ...)}`` at which the search for modes
            begins too, beside points of its own.
        start: A result of an earlier call for the same sites, for example with other data; the
            search for modes begins at draws of it too.
        guide: A trained guide of this package for the same sites, such as
            :class:`~pyro_flowsamp.AutoFlow`, maybe trained on other data. Its flow is compared too,
            under the name "guide"; the guide stays as it is.
        max_seconds: Time after which the number of draws is not doubled any more; the only use of
            the clock. A search that takes longer by itself, as a trial on a few points shows, is
            refused at once.
        compile: Whether the density is traced and compiled, see :attr:`Target.compile_mode
            <pyro_flowsamp.Target>`. "auto" is what a target has that is given as the model. The
            result is the same but for rounding errors, which change single draws.
        groups: Further groups of the result, such as "posterior_predictive" and "prior", see
            :func:`~pyro_flowsamp.to_arviz`.
        dims, coords: Names of the dimensions of a site, and labels along them, see
            :func:`~pyro_flowsamp.to_arviz`. A dimension inside a plate has the plate's name.
        checkpoint: A folder, or :class:`~pyro_flowsamp.CheckpointOptions`, where the search, the
            trainings and the draws are stored. After an end of the process the same call goes on
            from there, and has the same draws; not with ``max_seconds``, which is the clock's. With
            workers rank 0 stores them, and other numbers of workers can go on.

    Returns:
        An ArviZ object, ``InferenceData`` or (ArviZ 1.x) ``DataTree``, with the dimensions chain
        and draw. Its attributes describe the sampling:

        - ``method``: the method that made the draws;
        - ``candidates``: the methods that were compared, each with the work for all draws, or with
          what speaks against it;
        - ``reliable``: 1 if nothing has been seen to be wrong, else 0;
        - ``problems``: what has been seen to be wrong, in words, by
          :func:`~pyro_flowsamp.diagnose`; ``notes``: what else should be known;
        - ``thin``: steps of the chain for each draw;
        - ``dtype``: the type in which the density was evaluated; float64 where the rounding errors
          of float32 were too large and the model allowed it;
        - ``evaluations``: evaluations of the posterior density; ``evaluations_start``: those of the
          search for modes;
        - ``modes``: number of modes, which are components of a mixture that do not overlap;
          ``unseen_mass``: the share of the mass that one of two searches has found alone, NaN
          where there are too many dimensions for two searches;
        - ``log_evidence``, ``log_evidence_error``, ``log_evidence_degrees``: log evidence, its
          standard error, and the degrees of freedom of this error. It is by bridge sampling
          between the draws and those of the flow where they overlap and lack no mass that the
          annealed particles have, and else by these particles;
        - ``seconds_start``, ``seconds_training``, ``seconds_pilot``, ``seconds_sampling``:
          wall-clock time of the search for modes, the training of flows, the pilot runs with their
          warm-up, and the draws with their burn-in;
        - ``seed``, ``versions``, ``mode_shares`` and others that :func:`~pyro_flowsamp.report`
          shows, see :func:`~pyro_flowsamp.provenance.add_record`.

    Raises:
        CheckpointError: The checkpoint cannot be read or written, or is of another call.
        TypeError: The model is no function, or the arguments do not fit it; ``guide`` is no guide.
        ValueError: The model has no continuous site, or no point of finite density; the density
            does not fall in some direction; ``num_samples`` draws need more memory than there is;
            an option is out of range, has a wrong type, or has the name of an argument of the model
            that is not given by position; both ``ess`` and ``num_samples`` are given; a
            :class:`~pyro_flowsamp.Target` is given arguments, or is at several contexts; ``dims``
            or ``coords`` do not suit the sites; ``guide`` is not trained, or its sites are not
            those of the model; the search cannot be done in ``max_seconds``; there are
            :func:`~pyro_flowsamp.workers`, and they differ, or share out rows and ``checkpoint`` or
            ``max_seconds`` is given.
        RuntimeError: No kernel runs on the posterior; the cause is the last one's error. Or one of
            several workers has ended.
        KeyboardInterrupt: Ctrl-C came before there was any point, or a second one before the end of
            the first pilot run.

    Warns:
        UserWarning: Something has been seen to be wrong, see ``problems``; the posterior may be
            improper; a method has failed; the model has no observations.

    References:
        Del Moral, Doucet & Jasra, *Sequential Monte Carlo samplers*, 2006,
        https://doi.org/10.1111/j.1467-9868.2006.00553.x

        Gabrié, Rotskoff & Vanden-Eijnden, *Adaptive Monte Carlo augmented with normalizing flows*,
        2022, https://doi.org/10.1073/pnas.2109420119

    Example::

        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> import pyro_flowsamp
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> data = pyro_flowsamp.sample(model, torch.tensor(1.0), seed=0, progress=False)
        >>> abs(float(data["posterior"]["mean"].mean()) - 0.5) < 0.05  # truth: Normal(0.5, 0.71)
        True
        >>> data.attrs["reliable"]
        1

    Other data, with a guide that was trained before::

        >>> from pyro_flowsamp import AutoFlow, FitOptions
        >>> guide = AutoFlow(model, options=FitOptions(progress=False))
        >>> _ = guide.fit(torch.tensor(1.0))
        >>> options = {"guide": guide, "candidates": ["guide"], "progress": False}
        >>> data = pyro_flowsamp.sample(model, torch.tensor(1.2), seed=0, **options)
        >>> data.attrs["method"], abs(float(data["posterior"]["mean"].mean()) - 0.6) < 0.05
        ('IMH (guide)', True)
    """
    options: dict[str, Any] = {"ess": ess, "num_samples": num_samples, "num_chains": num_chains}
    options |= {"seed": seed, "progress": progress, "log_likelihood": log_likelihood}
    options |= {"search": search, "candidates": candidates, "exclude": exclude, "start": start}
    options |= {"initial_params": initial_params, "max_seconds": max_seconds, "groups": groups}
    options |= {"dims": dims, "coords": coords, "guide": guide, "compile": compile}
    options |= {"checkpoint": checkpoint}
    check_shared_names(sample, model, args, options)
    _check_options(seed, progress, log_likelihood, search, candidates, exclude)
    if candidates or exclude:
        search = replace(
            search,
            candidates=tuple(candidates) or search.candidates,
            exclude=tuple(exclude) or search.exclude,
        )
    if guide is None and "guide" in search.candidates:
        raise ValueError("candidates name 'guide', and there is none: give guide=..., or leave it")
    goal = _goal(ess, num_samples, num_chains, search)._replace(deadline=_deadline(max_seconds))
    check_compile(compile)
    refuse_with_shard("checkpoint", checkpoint)
    refuse_with_shard("max_seconds", max_seconds)
    progress = not is_hidden(not progress)
    target = as_target(model, *args, **kwargs)
    if target is not model or compile != "auto":
        target.compile_mode = compile
    target.restart_counts()
    if target.contexts is not None:
        raise ValueError(
            "sample() draws at one context, and the target is at several: give a target at one, or "
            "train a guide for all of them and use VectorizedMCMC"
        )
    check_names(target, dims, coords)
    check_groups(groups)
    if not target.has_observations:
        warnings.warn("nothing is observed: the draws are of the model's prior", stacklevel=2)
    seed, stored = common_seed(seed), entered(checkpoint, "sample")
    with public_call(), seeded(seed), replicated("sample()", target), stored as scope:
        with nothing_yet():
            points = given_points(target, initial_params, start)
            check_alike("a call of sample()", seed, goal._replace(deadline=None), points)
            if goal.deadline is not None:
                check_time(target, search, goal.deadline - perf_counter())
            given = None if guide is None else given_guide(guide, model, target, args, kwargs)
            if num_samples is not None and goal.num_chains is not None:
                sizes = num_samples, goal.num_chains, target.dim
                check_memory(target, *sizes, scope.stream_folder, copies=1, remedy=FEWER_DRAWS)
            begin_sampling(scope, target, goal, (args, kwargs, seed, points, given))
        sampler = SamplerSearch(target, goal, progress, points, guide=given)
        sampler.find_modes()
        sampler, problems = precise_enough(sampler)
        best = sampler.search()
        proposal, num = best.run.kernel.proposal, search.evidence_draws
        make = partial(draws_of_flow, proposal, sampler.target, num)
        fresh, _ = made_again("evidence", make)
        if sampler.cut_short is None:
            log.info("%s makes the draws, with about %.2g of work", best.name, best.at_least)
            with sampler.timed("sampling"):
                before = sampler.evaluations_before
                problems += finish(best, sampler.target, sampler.modes, progress, before)
        check_alike("the draws", best.run.unconstrained, best.run.statistics, problems)
        found = judged(best, sampler.modes, fresh, problems + sampler.problems)
        export = partial(to_arviz, best.run, dims=dims, coords=coords)
        try:
            data = export(log_likelihood=log_likelihood, groups=groups)
        except KeyboardInterrupt:
            found = with_problem(found, "Ctrl-C ended the export, which leaves groups out")
            data = export(log_likelihood=False)
    if not found.reliable:
        warnings.warn(advice(found.problems), stacklevel=2)
    with suppress(KeyboardInterrupt):  # the draws are worth more than their record
        add_record(data, best.run, seed, sampler.modes, fresh)
    states = best.run.statistics.get("log_weight")
    agreement, bounds = sampler.modes.agreement, thresholds(best)
    evidence = best_evidence(states, fresh.log_weights, agreement, bounds)
    evidence = evidence.with_error(fresh.rounding)
    data.attrs.update(_attributes(sampler, best, found, evidence))
    return data


def _goal(
    ess: int | None, num_samples: int | None, num_chains: int | None, options: SearchOptions
) -> Goal:
    if ess is not None and num_samples is not None:
        raise ValueError("give ess or num_samples, not both")
    if num_samples is None and ess is None:
        ess = DEFAULT_ESS
    if num_samples is not None and num_chains is None:
        num_chains = options.max_chains
    for name, value, least in (
        ("ess", ess, 1),
        ("num_samples", num_samples, 1),
        ("num_chains", num_chains, 2),
    ):
        if value is not None:
            check_count(name, value, least)
    return Goal(ess, num_samples, num_chains, options)


def _deadline(max_seconds: float | None) -> float | None:
    if max_seconds is None:
        return None
    return perf_counter() + check_number("max_seconds", max_seconds, 0, open_least=True)


def _check_options(
    seed: Any, progress: Any, log_likelihood: Any, search: Any, candidates: Any, exclude: Any
) -> None:
    """Raises a ValueError where an option of :func:`sample` has a value of the wrong type."""
    if seed is not None:
        check_seed(seed)
    check_flag("progress", progress)
    check_flag("log_likelihood", log_likelihood)
    if not isinstance(search, SearchOptions):
        raise ValueError(f"search must be SearchOptions(...), got {shown(search)}")
    for name, value in (("candidates", candidates), ("exclude", exclude)):
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise ValueError(f"{name} must be a list of names, such as ['HMC'], got {shown(value)}")


def _attributes(
    sampler: SamplerSearch, best: Candidate, found: Diagnosis, evidence: Estimate
) -> dict[str, Any]:
    """The attributes of the result, of types that ArviZ can store."""
    return {
        "method": best.name,
        "candidates": "; ".join(sampler.compared),
        "reliable": int(found.reliable),
        "problems": "; ".join(found.problems),
        "notes": "; ".join(found.notes),
        "thin": best.thin,
        "dtype": str(sampler.target.dtype).removeprefix("torch."),
        "evaluations": sampler.evaluations,
        "evaluations_start": sampler.modes.evaluations,
        "modes": sampler.modes.num_modes,
        "unseen_mass": sampler.modes.unseen,
        "log_evidence": float(evidence.value),
        "log_evidence_error": float(evidence.standard_error),
        "log_evidence_degrees": float(evidence.degrees),
        **{f"seconds_{name}": value for name, value in sampler.timed.seconds.items()},
    }
