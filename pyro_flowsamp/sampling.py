r"""Sampling from a model's posterior in one call, by a search over candidate samplers.

The candidates are HMC in coordinates where the posterior has unit covariance, and three flows: a
Gaussian mixture, an affine coupling flow and a spline flow. Each flow is used by two kernels, the
independence sampler :class:`~pyro_flowsamp.IMH` and :class:`~pyro_flowsamp.LocalGlobalHMC`, which
makes local moves too.

Particles are annealed from an over-dispersed Gaussian (:func:`~pyro_flowsamp.tempered_smc`). They
find the modes, give the covariance, and are the starting points of all chains. Flows are trained by
the path gradient of the reverse KL divergence. Where this loses modes, so that no kernel mixes,
they are trained by forward KL too, on the particles and on draws of the best chains so far.

A pilot run of each kernel (:mod:`pyro_flowsamp.pilot`) estimates the time T in which it would make
the draws. No other kernel can save more than the least T so far: one is run, and its flow trained,
only if this takes less than T, and the search ends after 2 T. The kernel with the least T makes the
draws; if no flow is faster than HMC, that is HMC. Before the first draw that is kept its chains run
until all have moved (at several modes: until the flow's proposals have moved them), and then as
long again. Particles give modes and tails the wrong weights, with an error that all chains share.

Every kernel leaves the posterior invariant, whatever its flow, and is not adapted any more during
the draws that are returned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from math import ceil
from typing import Any

import pyro
import torch

from .export import to_arviz
from .options import SearchOptions
from .pilot import Candidate, r_hat
from .search import SamplerSearch
from .target.density import Target, as_target
from .target.site import Values

__all__ = ["burn_in", "finish", "sample"]


def sample(
    model: Callable,
    *args: Any,
    num_samples: int = 100,
    num_chains: int = 1000,
    seed: int | None = None,
    progress: bool = True,
    log_likelihood: bool = False,
    search: SearchOptions = SearchOptions(),
    **kwargs: Any,
) -> Any:
    r"""Draws from the posterior of a model, with the MCMC method that is estimated to be fastest.

    It compares Hamiltonian Monte Carlo and several normalizing flows by short pilot runs, and
    trains a flow only where it could save time. The chosen method is an exact MCMC kernel. It is
    not adapted any more during the draws that are returned. If a draw has less than half an
    effective draw, chains are thinned, at most 20-fold.

    The method depends on the speed of the machine. Two calls with the same seed give the same draws
    if they choose the same method, after the same number of training steps.

    Ctrl-C ends the search, and the best method so far makes the draws. A second Ctrl-C ends the
    sampling, and the draws so far are returned.

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`.
        args, kwargs: Arguments of the model.
        num_samples: Draws kept of each chain.
        num_chains: Number of chains. They run as one tensor, so that many short chains take less
            time than few long ones.
        seed: Seed for :func:`pyro.set_rng_seed`; by default the generator's state is left as it
            is.
        progress: Whether to show progress bars.
        log_likelihood: Whether the result has the log-likelihood of each observation, see
            :func:`~pyro_flowsamp.to_arviz`.
        search: Options of the search, see :class:`~pyro_flowsamp.SearchOptions`.

    Returns:
        An ArviZ object, ``InferenceData`` or (ArviZ 1.x) ``DataTree``, with the dimensions chain
        and draw. Its attributes describe the sampling:

        - ``method``: the method that made the draws;
        - ``candidates``: the methods that were compared, each with the estimated seconds for all
          draws; infinite if it has not been seen to mix;
        - ``reliable``: 1 if the chains have been seen to mix, else 0;
        - ``thin``: steps of the chain for each draw;
        - ``evaluations``: evaluations of the posterior density;
        - ``seconds_start``, ``seconds_training``, ``seconds_pilot``, ``seconds_sampling``:
          wall-clock time of the annealing, the training of flows, the pilot runs with their
          warm-up, and the draws with their burn-in.

    Raises:
        ValueError: The model has no continuous site, or no point of finite density; a count is out
            of range; a :class:`~pyro_flowsamp.Target` is given arguments.
        RuntimeError: No kernel runs on the posterior; the cause is the last one's error.

    Warns:
        UserWarning: No method has been seen to mix; chains disagree, never move, or spread without
            bound, as they do when the posterior is improper; a method has failed; the model has no
            observations.

    References:
        Del Moral, Doucet & Jasra, *Sequential Monte Carlo samplers*, 2006,
        https://doi.org/10.1111/j.1467-9868.2006.00553.x

        Gabrié, Rotskoff & Vanden-Eijnden, *Adaptive Monte Carlo augmented with normalizing flows*,
        2022, https://doi.org/10.1073/pnas.2109420119

    Example::

        >>> import pyro.distributions as dist
        >>> import pyro_flowsamp
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> data = pyro_flowsamp.sample(
        ...     model, torch.tensor(1.0), num_samples=20, num_chains=200, seed=0, progress=False
        ... )
        >>> abs(float(data["posterior"]["mean"].mean()) - 0.5) < 0.05  # truth: Normal(0.5, 0.71)
        True
        >>> data.attrs["reliable"]
        1
    """
    if num_samples < 1 or num_chains < 2:
        raise ValueError(
            f"num_samples must be at least 1 and num_chains at least 2, got {num_samples} and "
            f"{num_chains}"
        )
    if seed is not None:
        pyro.set_rng_seed(seed)
    target = as_target(model, *args, **kwargs)
    if not target.has_observations:
        warnings.warn("nothing is observed: the draws are of the model's prior", stacklevel=2)
    sampler = SamplerSearch(target, num_samples, num_chains, progress, search)
    best = sampler.search()
    disagreement = r_hat(best.run.unconstrained)
    with sampler.timed("sampling"):
        finish(best, target, num_samples, num_chains, progress)
    if best.run.num_samples > 3:  # after Ctrl-C there may be fewer than were asked for
        disagreement = max(disagreement, r_hat(best.run.unconstrained))
    _warn_of_problems(best, disagreement)
    data = to_arviz(best.run, log_likelihood=log_likelihood)
    data.attrs.update(sampler.attributes(best))
    return data


def finish(
    best: Candidate, target: Target, num_samples: int, num_chains: int, progress: bool
) -> None:
    """Makes the draws that were asked for, by chains that continue from those of the pilot run.

    Arguments:
        best: The candidate; the draws replace those of its run.
        target: Its target.
        num_samples: Draws kept of each chain.
        num_chains: Number of chains.
        progress: Whether to show a progress bar.
    """
    run = best.run
    x = run.unconstrained.flatten(0, 1)
    x = x[torch.randperm(len(x), device=x.device)]
    x = x[torch.arange(num_chains, device=x.device) % len(x)]  # equal where there are too few
    burn_in(best, target, num_samples, target.unpack_unconstrained(x))
    if not run.interrupted:
        run.disable_progbar = not progress
        run.resume(num_samples, best.thin)


def burn_in(best: Candidate, target: Target, num_samples: int, starts: Values) -> None:
    """Runs the chains until every one has moved, and then as long again.

    Particles give modes and tails the wrong weights, with an error that all chains share and that
    their spread does not show. A tail that a flow draws too seldom from is entered as seldom as it
    is left. So where steps are cheap it takes more of them, for a tenth of the evaluations so far.
    (It counts evaluations and not seconds, so that the draws do not depend on the clock.)
    """
    run, block, before = best.run, best.options.burn_in_block, target.evaluations
    run.resume(block * best.thin, 1, starts)
    moved, blocks = run.statistics["accepted"].any(1), 1
    while not (run.interrupted or bool(moved.all()) or blocks >= num_samples // block):
        run.resume(block * best.thin)
        moved, blocks = moved | run.statistics["accepted"].any(1), blocks + 1
    if run.interrupted:
        return
    more = best.options.burn_in_fraction * before / max(1, target.evaluations - before)
    run.resume(ceil(blocks * max(1.0, more)), block * best.thin)
    if not bool(moved.all()):
        warnings.warn(
            f"{int((~moved).sum())} of {len(moved)} chains have never moved: {best.name} hardly "
            f"ever proposes points near where they started, so that the probability of that region "
            f"is not well known",
            stacklevel=4,
        )


def _warn_of_problems(best: Candidate, disagreement: float) -> None:
    """Warns if the pilot run or the draws show that the chains have not mixed."""
    if not best.reliable:
        warnings.warn(
            f"no kernel has been seen to mix: a draw of {best.name} has {best.ess_per_draw:.2g} "
            f"effective draws, if its chains have reached every region. Read effective sample "
            f"sizes and R-hat, ask for more samples, or reparametrise the model. An improper "
            f"posterior has this effect too.",
            stacklevel=3,
        )
    if disagreement > best.options.max_r_hat:
        warnings.warn(f"the chains disagree: R-hat is {disagreement:.2f}", stacklevel=3)
