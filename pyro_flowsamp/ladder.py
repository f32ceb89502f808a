r"""sample(): the posterior of a model in one call.

A ladder is climbed only while it pays. Each rung is a kernel with what it needs: "HMC" in a
whitened space, then jumps between the draws of a Gaussian mixture, of an affine coupling flow, of a
spline flow (:class:`~pyro_flowsamp.JumpHMC`). Particles annealed from an over-dispersed Gaussian
(:func:`~pyro_flowsamp.tempered`) find the modes, whiten the space, start all chains, and are what
the flows learn from at first: by forward KL, beside the path gradient of the reverse KL. From rung
to rung the draws of the chains take the place of half of them.

After a short warm-up every rung is tried for :data:`TRIAL` steps. Let s be its seconds a step, and
e the effective draws that a draw is worth, the least of all coordinates and their squares. Draws
are worth having at :math:`e \ge` :data:`WORTH`, so that each chain must make :math:`t =
\mathrm{WORTH} / e` steps for one to keep, and :math:`T = s\,t \cdot` ``num_samples`` is what is
left to do. No further rung can save more than T: it is built only if T exceeds what building it
takes, and the rung with the least T does the rest. Where no flow earns its keep that is "HMC".

Every kernel leaves the posterior invariant, whatever its flow, and is frozen before the draws that
are returned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import ceil
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
from .kernels import FlowKernel, JumpHMC, LatentHMC
from .mcmc import VectorizedMCMC
from .target import Target
from .train import FitOptions
from .transitions.tempering import tempered

__all__ = ["sample"]

NUM_PARTICLES = 2048
WARMUP, TRIAL = 50, 32  #: steps of every rung
LEAPS = 8  #: leapfrog steps of the whitened HMC
WORTH = 0.5  #: effective draws that a draw should be worth
MOST_THINNED = 20  #: draws for one that is kept
TASTE, STEPS = 10, 300  #: of training: by which a flow's cost is foretold, and the least it needs
AXES = 8  #: directions in which chains must mix, beside the coordinates
R_HAT = 1.05  #: beyond which chains disagree
DRIFT = 1.5  #: growth of the draws' spread, between a run's halves, that is no chance


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

    Warns where chains disagree, where they drift, as with an improper posterior, and where the
    model has no data.
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
    with ladder.timed("sampling"):
        best.run.resume(num_samples, best.thin)
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

    def climb(self) -> Rung:
        """The best rung, once the next would not pay."""
        with self.timed("start"):
            draws = tempered(self.target, NUM_PARTICLES).x
        starts = draws[torch.arange(self.num_chains, device=draws.device) % len(draws)]
        best = self._try("HMC", LatentHMC(guide=self._placed(1, draws), num_steps=LEAPS), starts)
        best = self._better(best, "mixture", self._placed(MAX_COMPONENTS, draws), starts)
        for flow in ("circular",) if self.target.circular else ("coupling", "spline"):
            if best.thin == 1 or (guide := self._taught(flow, draws, best)) is None:
                break
            best = self._better(best, flow, guide, starts)
        return best

    def _better(self, best: Rung, name: str, guide: AutoFlow, starts: Tensor) -> Rung:
        rung = self._try(name, JumpHMC(guide=guide), starts)
        return rung if rung.seconds < best.seconds else best

    def _try(self, name: str, kernel: FlowKernel, starts: Tensor) -> Rung:
        run = VectorizedMCMC(
            kernel,
            TRIAL,
            WARMUP,
            self.num_chains,
            initial_params=self.target.unpack_unconstrained(starts),
            disable_progbar=True,
        )
        with self.timed("trials"):
            run.run()
        worth = _worth(self.draws(run))
        thin = min(MOST_THINNED, ceil(WORTH / worth))
        seconds = run.seconds["sampling"] / TRIAL * max(1, WORTH / worth) * self.num_samples
        self.tried.append(Rung(name, run, worth, thin, seconds))
        return self.tried[-1]

    def draws(self, run: VectorizedMCMC) -> Tensor:
        """Unconstrained, ``(chains, draws, d)``."""
        return self.target.pack(run.get_samples(group_by_chain=True))

    # ---- flows ----------------------------------------------------------------------------------

    def _placed(self, components: int, draws: Tensor) -> AutoFlow:
        """A Gaussian, or a mixture of them, fitted to draws."""
        guide = AutoFlow(self.target, flow=partial(_gaussian, most=components))
        guide.bind()
        assert isinstance(guide.flow, LayeredFlow)
        with self.timed("training"):
            guide.flow.initialize_from(draws)
        guide.trained = True
        return guide

    def _taught(self, flow: str, draws: Tensor, best: Rung) -> AutoFlow | None:
        """A flow trained for no longer than it could save; None where that is too short."""
        options = FitOptions(max_steps=TASTE, progress=False)
        ensemble = self.target.unpack(self._replayed(draws, best))
        first = replace(options, max_steps=1)
        guide = AutoFlow(self.target, flow=flow, ensemble=ensemble, options=first)
        with self.timed("training"):
            guide.fit()  # its first step, and the mixture that it starts from
            guide.options = options
            step = guide.fit().seconds / TASTE
            saved = best.seconds - self.seconds["trials"] / len(self.tried)
            if saved < step * STEPS:
                return None
            steps = min(FitOptions.max_steps, int(saved / step))
            guide.options = FitOptions(max_steps=steps, progress=self.progress)
            guide.fit()
        return guide

    def _replayed(self, draws: Tensor, best: Rung) -> Tensor:
        """As many draws of the chains as there are particles, beside those."""
        chains = self.draws(best.run).flatten(0, 1)
        return torch.cat([draws, chains[torch.randperm(len(chains))[: len(draws)]]])


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
    if r_hat > R_HAT:
        warnings.warn(f"the chains disagree: R-hat is {r_hat:.2f}", stacklevel=3)
    first, last = (half.flatten(0, 1).std(0) for half in x.chunk(2, 1)[:2])
    growth = float((last / first).max())
    if growth > DRIFT:
        warnings.warn(
            f"the chains drift apart, {growth:.1f} times as wide in the second half of the run as "
            f"in the first: the posterior may be improper. Give every site a proper prior.",
            stacklevel=3,
        )
