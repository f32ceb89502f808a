r"""sample(): the posterior of a model in one call.

A ladder is climbed only while it pays. Its rungs are HMC in a whitened space, a Gaussian mixture,
an affine coupling flow and a spline flow, each of the last three with two kernels: jumps alone
(:class:`~pyro_flowsamp.IMH`), and local moves between jumps (:class:`~pyro_flowsamp.JumpHMC`).
Particles annealed from an over-dispersed Gaussian
(:func:`~pyro_flowsamp.tempered`) find the modes, whiten the space, start all chains, and are what
the flows learn from where a mixture has more than one part: by forward KL on them and on draws of
the best chains so far, beside the path gradient of the reverse KL. Where it has one, and for a
posterior that is merely bent, the latter is all it takes.

After a short warm-up a kernel is tried for :data:`TRIAL` steps, or longer where chains have made
fewer than :data:`FEWEST` effective draws by then. Let s be its seconds a step, and e the effective
draws that a draw is worth. Draws are worth having at :math:`e \ge` :data:`WORTH`, so that each
chain must make :math:`t = \mathrm{WORTH} / e` steps for one to keep, and :math:`T = s\,t \cdot`
``num_samples`` is what is left to do. No other kernel can save more than T: it is tried, and its
flow trained, only if T exceeds what that takes, and the kernel with the least T does the rest.
Where no flow earns its keep that is HMC.

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
from typing import Any, NamedTuple

import pyro
import torch
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from .export import to_arviz
from .flows import LayeredFlow, gaussian
from .guides import AutoFlow
from .guides.flow import MAX_COMPONENTS
from .kernels import IMH, FlowKernel, JumpHMC, LatentHMC
from .mcmc import VectorizedMCMC
from .target import Target
from .train import FitOptions
from .transitions.tempering import tempered

__all__ = ["sample"]

NUM_PARTICLES, MOVES = 1024, 5  #: of the annealing, and Langevin moves at each of its stages
TRIED = 256  #: chains that try a kernel
WARMUP, TRIAL = 50, 32  #: steps of every rung
LEAPS = 8  #: leapfrog steps of the whitened HMC
WORTH = 0.5  #: effective draws that a draw should be worth
LONGEST_TRIAL = 128
FEWEST = 5  #: effective draws of a chain by which a trial can be relied on
LEAST_ALONE = 0.2  #: effective draws that a draw must be worth where there are jumps alone
CYCLE = 25  #: evaluations of a JumpHMC step in warm-up
MOST_THINNED = 20  #: draws for one that is kept
TASTE, STEPS = 10, 300  #: of training: by which a flow's cost is foretold, and the least it needs
AXES = 8  #: directions in which chains must mix, beside the coordinates
R_HAT = 1.05  #: beyond which chains disagree
RUNAWAY = 30.0  #: times the particles' spread that no posterior has


class Rung(NamedTuple):
    """A run that is ready to go on, and what that would cost.

    Attributes:
        name: Of the method.
        run: Chains that have been warmed up and tried.
        worth: Effective draws that a draw is worth.
        thin: Steps for each draw to keep.
        seconds: What is left to do.
    """

    name: str
    run: VectorizedMCMC
    worth: float
    thin: int
    seconds: float


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

    Draws are exact up to the chains' warm-up; where they are worth less than half an independent
    one they are thinned, 20-fold at most. Attributes of the result tell how they were made:
    ``method``, ``rungs`` tried with the seconds each promised, ``thin``, ``evaluations`` of the
    target, and ``seconds_start``, ``seconds_training`` (flows), ``seconds_trials`` (warm-up and
    trial of every rung) and ``seconds_sampling``.

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
            of range.

    Warns where chains disagree, where they run away, as with an improper posterior, and where
    the model has no data. What pays depends on the machine: a seed gives the same draws again where
    the same kernel is chosen, after as much training.
    """
    if num_samples < 1 or num_chains < 2:
        raise ValueError(f"need a sample and two chains at least, got {num_samples}, {num_chains}")
    if seed is not None:
        pyro.set_rng_seed(seed)
    target = model if isinstance(model, Target) else Target.from_model(model, *args, **kwargs)
    if not target.conditioned:
        warnings.warn("nothing is observed: these are draws of the model's prior", stacklevel=2)
    ladder = Ladder(target, num_samples, num_chains, progress)
    best = ladder.climb()
    ladder.finish(best)
    _judge(best, ladder.draws(best.run))
    data = to_arviz(best.run, log_likelihood=log_likelihood)
    data.attrs.update(ladder.attributes(best))
    return data


class Ladder:
    """The rungs of one target, and what has been spent on them."""

    def __init__(self, target: Target, num_samples: int, num_chains: int, progress: bool) -> None:
        self.target, self.progress = target, progress
        self.num_samples, self.num_chains = num_samples, num_chains
        self.seconds = dict.fromkeys(("start", "training", "trials", "sampling"), 0.0)
        self.tried: list[Rung] = []
        self.runaway = False

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        clock = perf_counter()
        yield
        self.seconds[what] += perf_counter() - clock

    def attributes(self, best: Rung) -> dict[str, Any]:
        """What is worth knowing of how the draws were made, as ArviZ can store it."""
        promised = [f"{rung.name}: {rung.seconds:.3g} s" for rung in self.tried]
        spent = {f"seconds_{name}": value for name, value in self.seconds.items()}
        made = {"method": best.name, "rungs": ", ".join(promised), "thin": best.thin}
        return {**made, "evaluations": self.target.evaluations, **spent}

    def anneal(self) -> None:
        """Particles of every mode, and about what an evaluation takes."""
        with self.timed("start"):
            self.particles = tempered(self.target, NUM_PARTICLES, moves=MOVES).x
        self.price = self.seconds["start"] / self.target.evaluations

    def climb(self) -> Rung:
        """The best kernel, once no other would pay."""
        self.anneal()
        mixture, gaussian = self.placed(MAX_COMPONENTS), self.placed(1)
        self.modes = int(mixture.flow.base.used)  # type: ignore
        best = self._try("IMH (mixture)", IMH(guide=mixture), inf)
        best = self._better(best, "HMC", LatentHMC(guide=gaussian, num_steps=LEAPS), LEAPS)
        best = self._better(best, "JumpHMC (mixture)", JumpHMC(guide=mixture), CYCLE)
        for flow, draws in self._lessons():
            if (guide := self._taught(flow, draws, best)) is None:
                break
            name = f"{flow}, from draws" if draws else flow
            best = self._better(best, f"IMH ({name})", IMH(guide=guide), 1)
            best = self._better(best, f"JumpHMC ({name})", JumpHMC(guide=guide), CYCLE)
        return best

    def _lessons(self) -> Iterator[tuple[str, bool]]:
        """Flows, and whether they learn from draws too: a mixture has modes, or is merely bent."""
        for flow in ("circular",) if self.target.circular else ("coupling", "spline"):
            if self.modes > 1:
                yield flow, True
            yield flow, False

    def finish(self, best: Rung) -> None:
        """The draws that were asked for, by chains that go on from those of the trial."""
        x = self.draws(best.run).flatten(0, 1)
        x = x[torch.randperm(len(x), device=x.device)]
        x = x[torch.arange(self.num_chains, device=x.device) % len(x)]
        best.run.disable_progbar = not self.progress
        with self.timed("sampling"):
            best.run.resume(self.num_samples, best.thin, self.target.unpack_unconstrained(x))

    # ---- trials ---------------------------------------------------------------------------------

    def _better(self, best: Rung, name: str, kernel: FlowKernel, evaluations: int) -> Rung:
        """The better of the best so far and this kernel, if trying it costs less than it may save.

        ``evaluations`` is what a step of it asks of the target for each chain.
        """
        price = self.price * self._tried_chains * (WARMUP + TRIAL) * evaluations
        if best.seconds < price or self.runaway:
            return best
        return min(best, self._try(name, kernel, best.seconds), key=lambda rung: rung.seconds)

    @property
    def _tried_chains(self) -> int:
        return min(self.num_chains, TRIED)

    def _try(self, name: str, kernel: FlowKernel, least: float) -> Rung:
        """Tries a kernel until it is known well enough, or known to need more than ``least``."""
        starts = self.target.unpack_unconstrained(self.particles[: self._tried_chains])
        run = VectorizedMCMC(
            kernel,
            TRIAL,
            WARMUP,
            self._tried_chains,
            initial_params=starts,
            disable_progbar=True,
        )
        with self.timed("trials"):
            run.run()
            self._watch(name, self.draws(run))
            while self._unsure(rung := self._rung(name, run), least):
                run.resume(2 * run.num_samples)
        self.tried.append(rung if self._reliable(rung) else rung._replace(seconds=inf))
        return self.tried[-1]

    def _watch(self, name: str, x: Tensor) -> None:
        """Warns where chains have run away from the particles that they started at."""
        growth = float((x.std((0, 1)) / self.particles.std(0)).nan_to_num(nan=inf).max())
        if growth > RUNAWAY and not self.runaway:
            self.runaway = True
            warnings.warn(
                f"chains of {name} run away: they spread {growth:.2g} times as wide as the "
                f"annealed particles that they started at. The posterior may be improper: give "
                f"every site a proper prior.",
                stacklevel=6,
            )

    def _reliable(self, rung: Rung) -> bool:
        """Few effective draws tell only that there are few.

        And jumps alone never show what their flow does not reach: it must be a good one.
        """
        many = rung.worth * rung.run.num_samples >= FEWEST
        return many and (rung.worth >= LEAST_ALONE or not isinstance(rung.run.kernel, IMH))

    def _unsure(self, rung: Rung, least: float) -> bool:
        few = rung.worth * rung.run.num_samples < FEWEST
        return few and rung.seconds < least and rung.run.num_samples < LONGEST_TRIAL

    def _rung(self, name: str, run: VectorizedMCMC) -> Rung:
        """What a trial tells."""
        worth, pace = _worth(self.draws(run)), run.seconds["sampling"] / run.num_samples
        growth = self.num_chains / self._tried_chains  # of a step's cost: at most in proportion
        seconds = pace * growth * max(1, WORTH / worth) * self.num_samples
        return Rung(name, run, worth, min(MOST_THINNED, ceil(WORTH / worth)), seconds)

    def draws(self, run: VectorizedMCMC) -> Tensor:
        """Unconstrained, ``(chains, draws, d)``."""
        return self.target.pack(run.get_samples(group_by_chain=True))

    # ---- flows ----------------------------------------------------------------------------------

    def placed(self, components: int) -> AutoFlow:
        """A Gaussian, or a mixture of them, fitted to the particles."""
        guide = AutoFlow(self.target, flow=partial(_gaussian, most=components))
        guide.bind()
        assert isinstance(guide.flow, LayeredFlow)
        with self.timed("training"):
            guide.flow.initialize_from(self.particles)
        guide.trained = True
        return guide

    def _taught(self, flow: str, draws: bool, best: Rung) -> AutoFlow | None:
        """A flow trained for no longer than it could save; None where that is too short."""
        options = FitOptions(max_steps=TASTE, progress=False)
        if best.seconds < self.price * options.batch_size * STEPS or self.runaway:
            return None
        ensemble = self.target.unpack(self._replayed(best)) if draws else None
        first = replace(options, max_steps=1)
        guide = AutoFlow(self.target, flow=flow, ensemble=ensemble, options=first)
        with self.timed("training"):
            guide.fit()  # its first step, and the mixture that it starts from
            guide.options = options
            step = guide.fit().seconds / TASTE
            if best.seconds < step * STEPS:
                return None
            steps = int(min(FitOptions.max_steps, best.seconds / step))
            guide.options = FitOptions(max_steps=steps, progress=self.progress)
            guide.fit()
        return guide

    def _replayed(self, best: Rung) -> Tensor:
        """As many draws of the chains as there are particles, beside those."""
        chains, particles = self.draws(best.run).flatten(0, 1), self.particles
        index = torch.randperm(len(chains), device=chains.device)[: len(particles)]
        return torch.cat([particles, chains[index]])


def _gaussian(
    features: int, context: int = 0, angles: Tensor | None = None, most: int = 1
) -> LayeredFlow:
    return gaussian(features, context, angles, components=most if angles is None else 1)


def _worth(x: Tensor) -> float:
    """Effective draws for a draw, the least of several functions of them ``(chains, draws, d)``.

    That are coordinates and their distances from the median, by rank (Vehtari et al., 2021,
    https://arxiv.org/abs/1903.08008), and the :data:`AXES` directions of most spread among the
    standardised ones, along which modes part that hardly do in any one coordinate.
    """
    flat = x.double().flatten(0, 1)
    u = (flat - flat.mean(0)) / flat.std(0).clamp(min=1e-30)
    _, axes = torch.linalg.eigh(u.mT @ u)
    folded = (u - u.median(0).values).abs()
    z = _normalised_ranks(torch.cat([u, folded, u @ axes[:, -AXES:]], -1)).unflatten(0, x.shape[:2])
    effective = effective_sample_size(z, chain_dim=0, sample_dim=1).nan_to_num(nan=1.0)
    return float(effective.min().clamp(min=1)) / len(flat)


def _normalised_ranks(x: Tensor) -> Tensor:
    """Normal quantiles of the ranks in each column."""
    ranks = x.argsort(0).argsort(0)
    return torch.special.ndtri((ranks + 0.625) / (len(x) + 0.25))


def _judge(best: Rung, x: Tensor) -> None:
    """Warns of what the draws ``(chains, draws, d)`` show to be wrong."""
    if best.worth < WORTH / MOST_THINNED:
        warnings.warn(
            f"the draws are correlated: by {best.name} a step is worth {best.worth:.2g} effective "
            f"draws. Read the effective sample sizes, or ask for more samples.",
            stacklevel=3,
        )
    if x.shape[1] < 4:
        return
    x = x.double()
    r_hat = float(split_gelman_rubin(x, chain_dim=0, sample_dim=1).nan_to_num(nan=1.0).max())
    if r_hat > max(R_HAT, (1 + 8 / x.shape[1]) ** 0.5):  # what a short chain of half draws has
        warnings.warn(f"the chains disagree: R-hat is {r_hat:.2f}", stacklevel=3)
