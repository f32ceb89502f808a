"""The search for the sampler with the least time for the draws of one target."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from .candidates import fit_mixture_guide, flow_candidates, num_components, train_guide
from .guides.auto_flow import MAX_COMPONENTS, AutoFlow
from .kernels.base import FlowKernel
from .kernels.imh import IMH
from .kernels.latent import LatentHMC
from .kernels.local_global import LocalGlobalHMC
from .options import FitOptions, SearchOptions
from .pilot import Candidate, iqr, run_pilot
from .smc.tempering import tempered_smc
from .target.density import Target

__all__ = ["SamplerSearch"]


class SamplerSearch:
    """The search for the fastest sampler of one target, with the time that it has taken.

    Arguments:
        target: The target.
        num_samples: Draws of each chain that are wanted.
        num_chains: Number of chains that are wanted.
        progress: Whether to show progress bars.
        options: Options of the search.

    Attributes:
        particles: Annealed particles ``(N, d)``, in random order; set by :meth:`run_smc`.
        seconds: Time of the "start", the "training", the "pilot" runs and the "sampling".

    Example::

        >>> _ = torch.manual_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> search = SamplerSearch(target, num_samples=10, num_chains=100, progress=False)
        >>> search.search().reliable
        True
    """

    def __init__(
        self,
        target: Target,
        num_samples: int,
        num_chains: int,
        progress: bool,
        options: SearchOptions = SearchOptions(),
    ) -> None:
        self.target, self.progress, self.options = target, progress, options
        self.num_samples, self.num_chains = num_samples, num_chains
        self.seconds = dict.fromkeys(("start", "training", "pilot", "sampling"), 0.0)
        self.compared: list[str] = []
        self._evaluations_before = target.evaluations
        self._stopped = False  # by Ctrl-C, or because the posterior seems to be improper
        self._failure: Exception | None = None
        self._searched = 0.0  # seconds since the first reliable candidate

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the time of a block to a phase of :attr:`seconds`."""
        clock = perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += perf_counter() - clock
            self._searched += perf_counter() - clock

    @property
    def evaluations(self) -> int:
        """Evaluations of the target since the search began."""
        return self.target.evaluations - self._evaluations_before

    def attributes(self, best: Candidate) -> dict[str, Any]:
        """The attributes of :func:`sample`'s result, of types that ArviZ can store."""
        return {
            "method": best.name,
            "reliable": int(best.reliable),
            "thin": best.thin,
            "candidates": ", ".join(self.compared),
            "evaluations": self.evaluations,
            **{f"seconds_{name}": value for name, value in self.seconds.items()},
        }

    # ---- the search -----------------------------------------------------------------------------

    def run_smc(self, many_modes: bool = False) -> None:
        """Anneals particles, and measures the time of an evaluation."""
        num, moves = self.options.particles, self.options.mcmc_steps
        if many_modes:
            num, moves = self.options.particles_many_modes, self.options.mcmc_steps_many_modes
        with self.timed("start"):
            x = tempered_smc(self.target, num, mcmc_steps=moves).x
        # Neighbours may descend from one particle.
        self.particles = x[torch.randperm(len(x), device=x.device)]
        self._seconds_per_evaluation = self.seconds["start"] / self.evaluations

    def search(self) -> Candidate:
        """Returns the best kernel, once no other could save more time than it takes to find out.

        Raises:
            RuntimeError: No kernel runs on the target.
            KeyboardInterrupt: It was interrupted before the end of the first pilot run.
        """
        self.run_smc()
        mixture = self.fit_mixture_guide(MAX_COMPONENTS)
        if num_components(mixture) > 1:  # few particles give the modes inaccurate weights
            self.run_smc(many_modes=True)
            mixture = self.fit_mixture_guide(MAX_COMPONENTS)
        gaussian = self.fit_mixture_guide(1)
        several_modes = num_components(mixture) > 1
        name = "mixture" if several_modes else "Gaussian"
        hmc = LatentHMC(guide=gaussian, num_steps=self.options.hmc_steps)
        best = self.consider(None, f"IMH ({name})", IMH(guide=mixture))
        best = self.consider(best, "HMC", hmc)
        best = self.consider(best, f"LocalGlobalHMC ({name})", LocalGlobalHMC(guide=mixture))
        for flow, from_draws in flow_candidates(self.target, several_modes):
            if from_draws and self.cost_to_finish(best) < inf:
                continue
            if (guide := self.train_candidate(flow, from_draws, best)) is None:
                break
            name = f"{flow}, from draws" if from_draws else flow
            best = self.consider(best, f"IMH ({name})", IMH(guide=guide))
            best = self.consider(best, f"LocalGlobalHMC ({name})", LocalGlobalHMC(guide=guide))
        if best is None:
            raise RuntimeError("no kernel runs on this posterior") from self._failure
        return best

    def cost_to_finish(self, best: Candidate | None) -> float:
        """Seconds in which the best candidate so far makes the draws; infinite if unknown."""
        return inf if best is None else best.cost_to_finish(self.num_samples)

    def worth_trying(self, best: Candidate | None, seconds: float) -> bool:
        """Whether a step of the search that takes so many seconds could save as many.

        The whole search must not take longer than ``patience`` times the time for all draws,
        either.
        """
        left = self.cost_to_finish(best)
        patient = self._searched + seconds <= self.options.patience * left
        return not self._stopped and seconds <= left and patient

    def consider(self, best: Candidate | None, name: str, kernel: FlowKernel) -> Candidate | None:
        """Returns the better of the best candidate so far and a kernel.

        The kernel is run only if that costs less than it may save.
        """
        steps = self.options.pilot_chains * self.options.min_pilot_steps
        evaluations = steps * _evaluations_per_step(kernel, self.options)
        if not self.worth_trying(best, self._seconds_per_evaluation * evaluations):
            return best
        try:
            with self.timed("pilot"):
                candidate = self.run_pilot(name, kernel, self.cost_to_finish(best))
        except KeyboardInterrupt:
            self._stop(best)
            return best
        except (RuntimeError, ValueError) as error:
            self._failure = error
            warnings.warn(f"{name} is left out: {error}", stacklevel=4)
            return best
        self.compared.append(f"{name}: {self.cost_to_finish(candidate):.3g} s")
        if self.cost_to_finish(best) == inf:
            self._searched = 0.0
        return min(best or candidate, candidate, key=lambda found: found.sort_key)

    def run_pilot(self, name: str, kernel: FlowKernel, seconds: float) -> Candidate:
        """Runs a kernel until it is known whether it makes the draws in less than ``seconds``.

        If its chains spread without bound, the search ends with a warning.
        """
        starts = self.particles[: self.options.pilot_chains]
        candidate = run_pilot(
            name,
            kernel,
            self.target,
            starts,
            self.num_chains,
            self.num_samples,
            seconds,
            self.options,
        )
        growth = float((iqr(candidate.run.unconstrained[:, -1]) / iqr(self.particles)).max())
        if growth > self.options.max_spread:
            self._stopped = True
            warnings.warn(
                f"chains of {name} spread without bound: their interquartile range is "
                f"{growth:.2g} times that of the annealed particles that they started at. The "
                f"posterior may be improper: give every site a proper prior.",
                stacklevel=5,
            )
        return candidate

    def _stop(self, best: Candidate | None) -> None:
        """Ends the search after Ctrl-C.

        Raises:
            KeyboardInterrupt: There is no candidate yet.
        """
        if best is None:
            raise KeyboardInterrupt
        self._stopped = True
        warnings.warn(
            f"interrupted: the search ends, and {best.name} makes the draws", stacklevel=5
        )

    # ---- flows ----------------------------------------------------------------------------------

    def fit_mixture_guide(self, components: int) -> AutoFlow:
        """Fits a Gaussian, or a mixture of Gaussians, to the particles."""
        with self.timed("training"):
            return fit_mixture_guide(self.target, self.particles, components)

    def train_candidate(
        self, flow: str, from_draws: bool, best: Candidate | None
    ) -> AutoFlow | None:
        """Trains a flow for no longer than it could save; None if that is too short."""
        evaluations = FitOptions.batch_size * self.options.min_training_steps
        if not self.worth_trying(best, self._seconds_per_evaluation * evaluations):
            return None
        with self.timed("training"):
            guide = train_guide(
                self.target,
                flow,
                self._chain_draws(best) if from_draws else None,
                self.cost_to_finish(best),
                partial(self.worth_trying, best),
                self.options,
                self.progress,
            )
        if guide is not None and guide.history and guide.history.stopped == "interrupted":
            self._stop(best)
            return None
        return guide

    def _chain_draws(self, best: Candidate | None) -> Tensor:
        """The particles, and as many draws of the best chains so far."""
        if best is None:
            return self.particles
        chains = best.run.unconstrained.flatten(0, 1)
        index = torch.randperm(len(chains), device=chains.device)[: len(self.particles)]
        return torch.cat([self.particles, chains[index]])


def _evaluations_per_step(kernel: FlowKernel, options: SearchOptions) -> int:
    """Target evaluations of a step in a pilot run, for each chain."""
    if isinstance(kernel, LocalGlobalHMC):
        return options.local_global_evaluations
    return kernel.num_steps if isinstance(kernel, LatentHMC) else 1
