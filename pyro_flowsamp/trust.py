r"""Checks of a sampler that jumps by a flow: the tails of its weights, and local moves.

An independence sampler never shows the regions that its flow does not reach. Two checks do not
share this blind spot.

*Tails.* Of states :math:`x \sim p` the weights :math:`w = p(x) / q(x)` show where the flow is too
thin. If those of draws of q have a Pareto tail of shape k, those of draws of p have the shape
:math:`k / (1 - k)`. Where it is 0.7 or more, averages converge too slowly to be seen to. (Weights
that hardly vary have no tail to speak of: their shape is not asked for.)

*Local moves.* If states are distributed as the target, then moves that leave the target invariant
leave the distribution of every function of them as it is. The mean change of functions over many
chains is compared with its standard error. And the moves lead to places that the flow hardly ever
proposes, if there are such: there the weights are large. They are looked at too.
"""

from __future__ import annotations

from math import hypot, isnan
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from .chains.short_runs import short_run
from .convergence import iqr
from .flows.proposal import Proposal
from .kernels.base import FlowKernel
from .kernels.latent import LatentHMC
from .options import SearchOptions
from .target.density import Target
from .target.tails import radial_slope
from .weights import are_flat, pareto_k, rounding_size

__all__ = [
    "FlowDraws",
    "LocalChange",
    "draws_of_flow",
    "ends_of_steps",
    "growth_without_bound",
    "immobile_problem",
    "jumps_problem",
    "local_change",
    "log_weights",
    "weights_problem",
]


def log_weights(kernel: FlowKernel, target: Target, x: Tensor, tolerance: float) -> Tensor:
    r"""Log weights :math:`\log\tilde p - \log q` at points ``(N, d)``, by the pass that samples.

    NaN where the flow does not lead back to the point, by more than ``tolerance`` of the points'
    interquartile ranges: its density there is not known.

    Arguments:
        kernel: A kernel with a frozen flow.
        target: Its target.
        x: The points.
        tolerance: The part of an interquartile range by which the flow may miss a point.

    Returns:
        The log weights, ``(N,)``, float64.

    Example:
        >>> from types import SimpleNamespace
        >>> from pyro_flowsamp.flows import gaussian
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> kernel = SimpleNamespace(proposal=Proposal(gaussian(1)))
        >>> log_weights(kernel, target, torch.tensor([[0.0], [2.0]]), 0.1).float()  # log(2π) / 2
        tensor([0.9189, 0.9189])
    """
    proposal = kernel.proposal
    with torch.no_grad():
        z = proposal.pull(x)
        back, ladj = proposal.push(z)
        log_q = proposal.base_log_prob(z).double() - ladj.double()
        log_p = target.log_prob(x).double()
        off = ((target.wrap(back - x)).abs() > tolerance * iqr(x)).any(-1)
    return torch.where(off, torch.nan, log_p - log_q)


def weights_problem(log_w: Tensor, options: SearchOptions) -> str:
    """Why jumps cannot be trusted, by the weights of states; empty where they can.

    Arguments:
        log_w: Log weights of states of different chains, and of particles, ``(N,)``.
        options: Bounds.

    Example::

        >>> options = SearchOptions()
        >>> weights_problem(torch.zeros(2000), options)
        ''
        >>> steep = -3 * torch.rand(2000, generator=torch.Generator().manual_seed(0)).log()
        >>> weights_problem(steep, options)[:30]
        'the weights of states have a P'
    """
    bad = int(torch.isnan(log_w).sum())
    if bad:
        return f"the flow does not invert at {bad} of {len(log_w)} states"
    unreached = int((log_w == torch.inf).sum())
    if unreached:
        return f"the flow has no density at {unreached} of {len(log_w)} states"
    finite = log_w[torch.isfinite(log_w)]
    if not len(finite):
        return "the target has no density at any state"
    if are_flat(finite, options.flat_log_weights):
        return ""
    k = pareto_k(finite)
    if isnan(k) or k >= options.max_pareto_k:
        return f"the weights of states have a Pareto k of {k:.2f}"
    return ""


def jumps_problem(
    kernel: FlowKernel, target: Target, x: Tensor, particles: Tensor, options: SearchOptions
) -> str:
    """Why a sampler that only jumps cannot be trusted; empty where it can.

    Arguments:
        kernel: The sampler.
        target: Its target.
        x: Its draws ``(chains, draws, d)``.
        particles: Points ``(N, d)`` that are distributed nearly as the target.
        options: Counts and bounds.

    Example:
        >>> from types import SimpleNamespace
        >>> from pyro_flowsamp.flows import gaussian
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> kernel, x = SimpleNamespace(proposal=Proposal(gaussian(1))), torch.zeros(4, 9, 1)
        >>> jumps_problem(kernel, target, x, torch.randn(100, 1), SearchOptions())  # none
        ''
    """
    chains, draws, _ = x.shape
    each = max(1, min(draws, -(-options.check_states // chains)))
    states = x[:, :: max(1, draws // each)][:, :each]
    both = torch.cat([states.flatten(0, 1), particles])
    log_w = log_weights(kernel, target, both, options.inversion_tolerance)
    if problem := weights_problem(log_w, options):
        return problem
    if are_flat(log_w, options.flat_log_weights):
        return ""
    change = local_change(kernel, target, states, options)
    if problem := weights_problem(change.log_weights, options):
        return f"local moves lead to places that the flow hardly ever proposes: {problem}"
    return change.problem


class FlowDraws(NamedTuple):
    """Fresh draws of a flow, with what their importance weights are made of.

    Attributes:
        x: The draws, ``(N, d)``.
        log_p, log_q: Their log densities under the target and the flow, ``(N,)``, in float64.

    Example:
        >>> draws = FlowDraws(torch.zeros(2, 1), torch.tensor([1.0, 2.0]), torch.tensor([0.5, 2.0]))
        >>> draws.log_weights.tolist(), len(draws.first(1).x)
        ([0.5, 0.0], 1)
    """

    x: Tensor
    log_p: Tensor
    log_q: Tensor

    @property
    def log_weights(self) -> Tensor:
        """Their log weights, ``(N,)``."""
        return self.log_p - self.log_q

    @property
    def rounding(self) -> float:
        """The standard deviation of an error by rounding that all log weights have in common.

        It is that of the type of the draws, in which the densities are taken to be computed.
        """
        dtype = self.x.dtype
        return hypot(rounding_size(self.log_p, dtype), rounding_size(self.log_q, dtype))

    def first(self, num: int) -> FlowDraws:
        """The first of them."""
        return FlowDraws(*(value[:num] for value in self))


@torch.no_grad()
def draws_of_flow(proposal: Proposal, target: Target, num: int) -> FlowDraws:
    """So many fresh draws of a flow, with their densities.

    Example:
        >>> from pyro_flowsamp.flows.recipes import gaussian
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> draws = draws_of_flow(Proposal(gaussian(2)), target, 5)
        >>> draws.x.shape, draws.log_weights.dtype
        (torch.Size([5, 2]), torch.float64)
    """
    x, log_q = proposal.sample_and_log_prob(num)
    return FlowDraws(x, target.log_prob(x).double(), log_q.double())


def ends_of_steps(
    kernel: FlowKernel, target: Target, x: Tensor, num_steps: int
) -> tuple[Tensor, Tensor]:
    """The positions of chains that begin at given points, first and after some steps.

    Arguments:
        kernel: The sampler, after its warm-up.
        target: Its target.
        x: Unconstrained points ``(N, d)``.
        num_steps: The number of steps.

    Returns:
        Positions ``(N, d)`` of the first and of the last states. The first may differ from ``x`` by
        rounding, since the flow leads there and back.

    Example:
        >>> from pyro_flowsamp import LatentHMC, VectorizedMCMC
        >>> from pyro_flowsamp.sampling.candidates import gaussian_guide
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> kernel = LatentHMC(guide=gaussian_guide(target, torch.zeros(1), torch.eye(1)))
        >>> VectorizedMCMC(kernel, 1, 20, 20, disable_progbar=True).run()
        >>> starts, ends = ends_of_steps(kernel, target, torch.full((50, 1), 8.0), 20)
        >>> float(starts.min()), bool(ends.mean() < 3)
        (8.0, True)
    """
    start = state = kernel.state_at(target.unpack_unconstrained(x))
    for _ in range(num_steps):
        state, _ = kernel.step(state)
    return start.x, state.x


def immobile_problem(
    kernel: FlowKernel, target: Target, particles: Tensor, options: SearchOptions
) -> str:
    """Why a sampler with local moves cannot be trusted; empty where it can.

    A place that chains hardly leave is a place that they hardly enter, by detailed balance. So the
    kernel makes a few steps from every particle, also from those in regions that its own chains
    have not visited, such as the neck of a funnel.

    Arguments:
        kernel: The sampler, after its warm-up.
        target: Its target.
        particles: Points ``(N, d)`` that are distributed nearly as the target.
        options: The number of steps, and the share of particles that may not move.

    Example:
        >>> from types import SimpleNamespace
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> still = SimpleNamespace(
        ...     state_at=lambda values: SimpleNamespace(**values), step=lambda state: (state, None)
        ... )
        >>> immobile_problem(still, target, torch.zeros(4, 1), SearchOptions())
        'it does not move 100.00% of the particles, and hardly enters their places'
    """
    starts, ends = ends_of_steps(kernel, target, particles, options.check_immobile_steps)
    immobile = float((ends == starts).all(-1).double().mean())
    if immobile <= options.max_immobile:
        return ""
    return f"it does not move {immobile:.2%} of the particles, and hardly enters their places"


def growth_without_bound(
    target: Target, particles: Tensor, x: Tensor, options: SearchOptions
) -> float | None:
    r"""The growth of chains that spread without bound, if the density has no integral there.

    The slope of the log density (:func:`~pyro_flowsamp.target.tails.radial_slope`) is measured
    between the chains that are farthest out and points that are farther by
    :attr:`~pyro_flowsamp.SearchOptions.growth_factor`. The dimensions that do not grow stay where
    they are.

    Arguments:
        target: The target.
        particles: Points ``(N, d)`` that the chains started at.
        x: Where the chains are, ``(C, d)``.
        options: The growth from which on the density is asked, and how far out.

    Returns:
        The largest growth of an interquartile range; None where it is small, or the density falls.

    Example:
        >>> target = Target.from_energy(lambda x: (1 + x.square()).log().sum(-1) / 4, 1)  # improper
        >>> particles = torch.linspace(-1, 1, 100)[:, None]
        >>> round(growth_without_bound(target, particles, 1000 * particles, SearchOptions()))
        1000
    """
    growth = iqr(x) / iqr(particles)
    growing = growth > options.max_spread
    if not bool(growing.any()):
        return None
    centre = particles.double().median(0).values
    far = x.double() - centre
    order = far[:, growing].abs().amax(-1).argsort(descending=True)
    far = far[order[: len(far) // 4 + 1]]
    farther = torch.where(growing, options.growth_factor, 1.0) * far
    slope = radial_slope(target, centre + far, centre + farther, options.growth_factor)
    finite = slope[torch.isfinite(slope)]
    if not len(finite) or float(finite.median()) <= -float(growing.sum()):
        return None
    return float(growth.max())


class LocalChange(NamedTuple):
    """The change of a distribution by local moves.

    Attributes:
        z: z-scores of the mean changes of functions, ``(m,)``.
        bound: What the largest of them does not exceed for draws of the target.
        log_weights: Log weights of the states after the later half of the moves.

    Example:
        >>> LocalChange(torch.tensor([0.1, -7.0]), 4.0, torch.zeros(3)).problem
        'local moves change the distribution of the states, by 7.0 errors'
        >>> LocalChange(torch.tensor([0.1, -2.0]), 4.0, torch.zeros(3)).problem
        ''
    """

    z: Tensor
    bound: float
    log_weights: Tensor

    @property
    def problem(self) -> str:
        """A sentence that says by how much they have changed it; empty where they have not."""
        largest = float(self.z.abs().max())
        if largest <= self.bound:
            return ""
        return f"local moves change the distribution of the states, by {largest:.1f} errors"


def local_change(
    kernel: FlowKernel, target: Target, x: Tensor, options: SearchOptions
) -> LocalChange:
    """Moves states by HMC in the latent space of a kernel's flow, and compares before and after.

    The functions are the latent coordinates, their squares, their squared length, and the log
    density of the target.

    Arguments:
        kernel: A kernel with a frozen flow.
        target: Its target.
        x: States, ``(C, n, d)``: n of each chain, whose changes are averaged.
        options: Lengths of the warm-up and of the moves, and the error that is allowed.

    Example:
        >>> from pyro_flowsamp import AutoFlow
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> guide = AutoFlow(target, flow="gaussian")
        >>> _ = guide.target_for()
        >>> guide.trained = True  # a new Gaussian flow is standard normal
        >>> options = SearchOptions(check_warmup_chains=10, check_warmup=5, check_moves=4)
        >>> kernel, x = LatentHMC(guide=guide), 3 * torch.randn(200, 1, 1)  # far too wide
        >>> local_change(kernel, target, x, options).problem != ""
        True
    """
    local = LatentHMC(guide=kernel.guide, num_steps=options.check_leapfrogs)
    tuned, x = x[: options.check_warmup_chains, 0], x[options.check_warmup_chains :]
    run = short_run(local, target, tuned, options.check_warmup)
    run.run()
    if run.interrupted:
        raise KeyboardInterrupt
    before = state = local.state_at(target.unpack_unconstrained(x.flatten(0, 1)))
    log_weights = []
    for move in range(options.check_moves):
        state, _ = local.step(state)
        if move >= options.check_moves // 2:
            log_weights.append(state.log_p - state.log_q)
    change = (_functions(state) - _functions(before)).unflatten(0, x.shape[:2]).mean(1)
    error = change.std(0) / len(change) ** 0.5
    z = torch.where(error > 0, change.mean(0) / error, 0.0)
    level = options.check_error / (2 * len(z))
    return LocalChange(z, NormalDist().inv_cdf(1 - level), torch.cat(log_weights))


def _functions(state: object) -> Tensor:
    z, log_p = state.z.double(), state.log_p.double()  # type: ignore[attr-defined]
    square = z.square()
    return torch.cat([z, square, square.sum(-1, keepdim=True), log_p[:, None]], -1)
