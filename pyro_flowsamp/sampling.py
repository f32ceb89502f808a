r"""sample(): the posterior of a model in one call.

A ladder is climbed only while it pays. Its candidates are HMC in a whitened space, a Gaussian
mixture,
an affine coupling flow and a spline flow, each of the last three with two kernels: jumps alone
(:class:`~pyro_flowsamp.IMH`), and local moves between jumps
(:class:`~pyro_flowsamp.LocalGlobalHMC`). Particles annealed from an over-dispersed Gaussian
(:func:`~pyro_flowsamp.tempered_smc`) find the modes, whiten the space and start all chains. Flows
are trained by the path gradient of the reverse KL; where that loses modes, so that nothing mixes,
by forward KL on the particles and on draws of the best chains so far besides.

Every kernel is tried for a moment (:mod:`pyro_flowsamp.pilot`), which tells the seconds T that the
draws would take by it. No other kernel can save more than T: it is tried, and its flow trained,
only if T exceeds what that takes, and the search is given up after 2 T. The kernel with the least T
does the rest; where no flow earns its keep that is HMC. Its chains go on until all have moved (have
jumped, where there are jumps), and as long again: particles weigh modes and tails with an error
that all chains share.

Every kernel leaves the posterior invariant, whatever its flow, and is frozen before the draws that
are returned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import ceil, inf
from time import perf_counter
from typing import Any

import pyro
import torch
from torch import Tensor

from .export import to_arviz
from .flows.recipes import LayeredFlow, gaussian
from .guides.auto_flow import MAX_COMPONENTS, AutoFlow
from .kernels.base import FlowKernel
from .kernels.imh import IMH
from .kernels.latent import LatentHMC
from .kernels.local_global import LocalGlobalHMC
from .options import FitOptions
from .pilot import MIN_PILOT_STEPS, PILOT_CHAINS, Candidate, iqr, r_hat, run_pilot
from .smc.tempering import tempered_smc
from .target.density import Target, as_target
from .target.site import Values

__all__ = ["sample"]


SMALL_SMC, LARGE_SMC = (
    (1024, 5),
    (4096, 10),
)  #: particles of the annealing, and moves at each of its stages
BURN_IN_BLOCK = 10  #: times as many steps as between kept draws, by which starts must be forgotten
HMC_STEPS = 8  #: leapfrog steps of the whitened HMC
LOCAL_GLOBAL_EVALUATIONS = 25  #: evaluations of a LocalGlobalHMC step in warm-up
TIMING_STEPS, LEAST_STEPS = (
    10,
    300,
)  #: of training: by which its cost is foretold, and what it needs
R_HAT = 1.05  #: beyond which chains disagree
PATIENCE = 2.0  #: times as long as the draws would take may be spent on the search for better
MAX_GROWTH = 30.0  #: times as wide as the particles: a posterior without end


def sample(
    model: Callable,
    *args: Any,
    num_samples: int = 100,
    num_chains: int = 1000,
    seed: int | None = None,
    progress: bool = True,
    log_likelihood: bool = False,
    **kwargs: Any,
) -> Any:
    r"""Draws from the posterior of a model, by whatever method pays.

    Example::

        data = pyro_flowsamp.sample(model, y, seed=0)
        az.summary(data)

    Draws are those of an exact kernel, frozen after warm-up; where they are worth less than half
    an independent one they are thinned, 20-fold at most. The result's attributes tell how they were
    made: ``method``, ``candidates`` (what was tried, with the seconds that each promised),
    ``reliable`` (whether the chains have been seen to mix), ``thin``, ``evaluations`` of the
    target, and ``seconds_start``, ``seconds_training`` (flows), ``seconds_pilot`` (warm-up and
    trial of every rung) and ``seconds_sampling``. What pays depends on the machine: a seed gives
    the same draws again where the same kernel is chosen, after as much training.

    Ctrl-C ends the climb, and the best kernel so far makes the draws; a second one ends those, and
    what there is is returned.

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`.
        args, kwargs: The model's.
        num_samples: Draws kept per chain.
        num_chains: Chains, all in one tensor; many short ones are better than few long ones.
        seed: For :func:`pyro.set_rng_seed`; by default its state goes on.
        progress: Whether to show progress bars.
        log_likelihood: Whether the result has that group, see :func:`~pyro_flowsamp.to_arviz`.

    Returns:
        An ArviZ object.

    Raises:
        ValueError: The model has no continuous site, or no point of finite density; a count is out
            of range; a target is given arguments.
        RuntimeError: No kernel runs on the posterior; the cause is the last one's error.

    Warns where no kernel has been seen to mix, where chains disagree or run away, as with an
    improper posterior, where a kernel has failed, and where the model has no data.
    """
    if num_samples < 1 or num_chains < 2:
        raise ValueError(f"need a sample and two chains at least, got {num_samples}, {num_chains}")
    if seed is not None:
        pyro.set_rng_seed(seed)
    target = as_target(model, *args, **kwargs)
    if not target.has_observations:
        warnings.warn("nothing is observed: these are draws of the model's prior", stacklevel=2)
    search = SamplerSearch(target, num_samples, num_chains, progress)
    best = search.search()
    disagreement = r_hat(best.run.unconstrained)
    search.finish(best)
    if best.run.num_samples > 3:  # after Ctrl-C there may be fewer than were asked for
        disagreement = max(disagreement, r_hat(best.run.unconstrained))
    _judge(best, disagreement)
    data = to_arviz(best.run, log_likelihood=log_likelihood)
    data.attrs.update(search.attributes(best))
    return data


class SamplerSearch:
    """The candidates of one target, and what has been spent on them."""

    def __init__(self, target: Target, num_samples: int, num_chains: int, progress: bool) -> None:
        self.target, self.progress = target, progress
        self.num_samples, self.num_chains = num_samples, num_chains
        self.seconds = dict.fromkeys(("start", "training", "pilot", "sampling"), 0.0)
        self.already = target.evaluations
        self.promised: list[str] = []
        self.stopped = False  # the climb, by the user or since there is nothing to find
        self.failure: Exception | None = None
        self.searched = 0.0  # seconds, since a kernel has been seen to mix

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        clock = perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += perf_counter() - clock
            self.searched += perf_counter() - clock

    @property
    def evaluations(self) -> int:
        return self.target.evaluations - self.already

    def attributes(self, best: Candidate) -> dict[str, Any]:
        """What is worth knowing of how the draws were made, as ArviZ can store it."""
        spent = {f"seconds_{name}": value for name, value in self.seconds.items()}
        made = {"method": best.name, "reliable": int(best.reliable), "thin": best.thin}
        told = {"candidates": ", ".join(self.promised), "evaluations": self.evaluations}
        return {**made, **told, **spent}

    # ---- the climb ------------------------------------------------------------------------------

    def run_smc(self, num: int = SMALL_SMC[0], moves: int = SMALL_SMC[1]) -> None:
        """Particles of every mode, and about what an evaluation takes."""
        with self.timed("start"):
            x = tempered_smc(self.target, num, mcmc_steps=moves).x
        self.particles = x[torch.randperm(len(x), device=x.device)]  # neighbours are siblings
        self.price = self.seconds["start"] / self.evaluations

    def search(self) -> Candidate:
        """The best kernel, once no other would pay.

        Raises:
            RuntimeError: None has run.
        """
        self.run_smc()
        mixture = self.fit_mixture_guide(MAX_COMPONENTS)
        if mixture.flow.base.used > 1:  # type: ignore  # a few particles hardly weigh modes
            self.run_smc(*LARGE_SMC)
            mixture = self.fit_mixture_guide(MAX_COMPONENTS)
        gaussian = self.fit_mixture_guide(1)
        self.modes = int(mixture.flow.base.used)  # type: ignore
        name = "mixture" if self.modes > 1 else "Gaussian"
        best = self._consider(None, f"IMH ({name})", IMH(guide=mixture), 1)
        best = self._consider(
            best, "HMC", LatentHMC(guide=gaussian, num_steps=HMC_STEPS), HMC_STEPS
        )
        best = self._consider(
            best,
            f"LocalGlobalHMC ({name})",
            LocalGlobalHMC(guide=mixture),
            LOCAL_GLOBAL_EVALUATIONS,
        )
        for flow, draws in self._flow_candidates():
            if draws and self._cost_to_finish(best) < inf:
                continue
            if (guide := self._train_candidate(flow, draws, best)) is None:
                break
            name = f"{flow}, from draws" if draws else flow
            best = self._consider(best, f"IMH ({name})", IMH(guide=guide), 1)
            best = self._consider(
                best,
                f"LocalGlobalHMC ({name})",
                LocalGlobalHMC(guide=guide),
                LOCAL_GLOBAL_EVALUATIONS,
            )
        if best is None:
            raise RuntimeError("no kernel runs on this posterior") from self.failure
        return best

    def _flow_candidates(self) -> Iterator[tuple[str, bool]]:
        """Flows, and whether they learn from draws too: a mixture has modes, or is merely bent.

        Draws first cost the necks that particles have not entered, and no chain from there shows
        it; reverse KL first may cost modes, but chains that start in those never jump.
        """
        if self.target.dim == 1:
            return  # nothing to couple
        for flow in ("circular",) if self.target.circular else ("coupling", "spline"):
            yield flow, False
            if self.modes > 1:
                yield flow, True

    def _cost_to_finish(self, best: Candidate | None) -> float:
        return inf if best is None else best.cost_to_finish(self.num_samples)

    def _worth_trying(self, best: Candidate | None, seconds: float) -> bool:
        """Whether what takes so long may save as much, and the search has not been too long."""
        left = self._cost_to_finish(best)
        return not self.stopped and seconds <= left and self.searched + seconds <= PATIENCE * left

    def _consider(
        self, best: Candidate | None, name: str, kernel: FlowKernel, evaluations: int
    ) -> Candidate | None:
        """The better of the best so far and this kernel, if trying it costs less than it may save.

        ``evaluations`` is what a step of it asks of the target for each chain.
        """
        if not self._worth_trying(best, self.price * PILOT_CHAINS * MIN_PILOT_STEPS * evaluations):
            return best
        try:
            with self.timed("pilot"):
                candidate = self._try(name, kernel, self._cost_to_finish(best))
        except KeyboardInterrupt:
            self._stop(best)
            return best
        except (RuntimeError, ValueError) as error:
            self.failure = error
            warnings.warn(f"{name} is left out: {error}", stacklevel=4)
            return best
        self.promised.append(f"{name}: {self._cost_to_finish(candidate):.3g} s")
        if self._cost_to_finish(best) == inf:
            self.searched = 0.0
        return (
            candidate
            if best is None
            else min(best, candidate, key=lambda candidate: candidate.sort_key)
        )

    def _try(self, name: str, kernel: FlowKernel, least: float) -> Candidate:
        starts = self.particles[:PILOT_CHAINS]
        candidate = run_pilot(
            name, kernel, self.target, starts, self.num_chains, self.num_samples, least
        )
        growth = float((iqr(candidate.run.unconstrained[:, -1]) / iqr(self.particles)).max())
        if growth > MAX_GROWTH:
            self.stopped = True
            warnings.warn(
                f"chains of {name} run away: they spread {growth:.2g} times as wide as the "
                f"annealed particles that they started at. The posterior may be improper: give "
                f"every site a proper prior.",
                stacklevel=5,
            )
        return candidate

    def _stop(self, best: Candidate | None) -> None:
        """Ends the climb, where there is anything to go on with.

        Raises:
            KeyboardInterrupt: There is not.
        """
        if best is None:
            raise KeyboardInterrupt
        self.stopped = True
        warnings.warn(f"interrupted: {best.name} makes the draws", stacklevel=5)

    def finish(self, best: Candidate) -> None:
        """The draws that were asked for, by chains that go on from those of the trial."""
        run = best.run
        x = run.unconstrained.flatten(0, 1)
        x = x[torch.randperm(len(x), device=x.device)]
        x = x[torch.arange(self.num_chains, device=x.device) % len(x)]  # some at the same place
        with self.timed("sampling"):
            self._burn_in(best, self.target.unpack_unconstrained(x))
            if not run.interrupted:
                run.disable_progbar = not self.progress
                run.resume(self.num_samples, best.thin)

    def _burn_in(self, best: Candidate, starts: Values | None) -> None:
        """Goes on until every chain has moved, and as long again: particles weigh modes and tails
        with an error that all chains have in common, which their spread does not show.

        Where steps are cheap it takes more of them, for a tenth of the evaluations so far: a tail
        that a flow draws too seldom from is entered as seldom as it is left. (Not of the seconds,
        lest draws depend on the clock.)
        """
        run, blocks, spent = best.run, 0, self.target.evaluations
        moved = torch.zeros(self.num_chains, dtype=torch.bool, device=self.target.device)
        while not bool(moved.all()) and blocks < max(1, self.num_samples // BURN_IN_BLOCK):
            run.resume(BURN_IN_BLOCK * best.thin, 1, starts)
            if run.interrupted:
                return
            starts, blocks = None, blocks + 1
            moved = moved | run.statistics["accepted"].any(1)
        more = spent / 10 / max(1, self.target.evaluations - spent)
        run.resume(ceil(blocks * max(1.0, more)), BURN_IN_BLOCK * best.thin)
        if not bool(moved.all()):
            warnings.warn(
                f"{int((~moved).sum())} of {self.num_chains} chains have never moved: {best.name} "
                f"hardly reaches where they started, and the mass there is not known well",
                stacklevel=4,
            )

    # ---- flows ----------------------------------------------------------------------------------

    def fit_mixture_guide(self, components: int) -> AutoFlow:
        """A Gaussian, or a mixture of them, fitted to the particles."""
        guide = AutoFlow(self.target, flow=partial(_gaussian, most=components))
        guide.target_for()
        assert isinstance(guide.flow, LayeredFlow)
        with self.timed("training"):
            guide.flow.initialize_from(self.particles)
        guide.trained = True
        return guide

    def _train_candidate(self, flow: str, draws: bool, best: Candidate | None) -> AutoFlow | None:
        """A flow trained for no longer than it could save; None where that is too short."""
        options = FitOptions(max_steps=1, progress=False)
        if not self._worth_trying(best, self.price * options.batch_size * LEAST_STEPS):
            return None
        replayed = self._chain_draws(best) if draws else None
        ensemble = None if replayed is None else lambda target: replayed
        guide = AutoFlow(self.target, flow=flow, ensemble=ensemble, options=options)
        with self.timed("training"):
            guide.fit()  # its first step, and the mixture that it starts from
            guide.options = replace(options, max_steps=TIMING_STEPS)
            step = guide.train_flow(self.target, None).seconds / TIMING_STEPS
            if not self._worth_trying(best, step * LEAST_STEPS):
                return None
            most = min(FitOptions.max_steps, self._cost_to_finish(best) / step)
            guide.options = FitOptions(max_steps=int(most), progress=self.progress)
            if guide.fit().stopped == "interrupted":
                self._stop(best)
                return None
        return guide

    def _chain_draws(self, best: Candidate | None) -> Tensor:
        """As many draws of the chains as there are particles, beside those."""
        if best is None:
            return self.particles
        chains = best.run.unconstrained.flatten(0, 1)
        index = torch.randperm(len(chains), device=chains.device)[: len(self.particles)]
        return torch.cat([self.particles, chains[index]])


def _gaussian(
    features: int, context: int = 0, angles: Tensor | None = None, most: int = 1
) -> LayeredFlow:
    return gaussian(features, context, angles, components=most if angles is None else 1)


def _judge(best: Candidate, disagreement: float) -> None:
    """Warns of what the trial and the draws show to be wrong."""
    if not best.reliable:
        warnings.warn(
            f"no kernel has been seen to mix: by {best.name} a step is worth "
            f"{best.ess_per_draw:.2g} effective draws, if chains have seen everything. Read "
            f"effective sample sizes and "
            f"R-hat, ask for more samples, or write the model in other coordinates; an improper "
            f"posterior looks like this too.",
            stacklevel=3,
        )
    if disagreement > R_HAT:
        warnings.warn(f"the chains disagree: R-hat is {disagreement:.2f}", stacklevel=3)
