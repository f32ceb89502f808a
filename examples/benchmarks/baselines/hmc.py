"""Hamiltonian Monte Carlo that tunes itself: many chains at once, with a diagonal mass matrix.

The trajectories are those of :mod:`pyro_flowsamp.transitions.hamiltonian`. Warm-up adapts one step
size and the scales of the coordinates over all chains. Both are fixed afterwards.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_flowsamp import Target
from pyro_flowsamp.transitions import hamiltonian
from pyro_flowsamp.transitions.step_size import StepSize, jitter

__all__ = ["HMCDraws", "density_of", "sample", "spread"]


def spread(x: Tensor) -> Tensor:
    """Standard deviations of draws ``(N, ..., d)`` over N, drawn to 0.03 where N is small."""
    num = len(x)
    variance = x.double().var(0, unbiased=False)
    return ((num * variance + 5e-3) / (num + 5)).sqrt().to(x)


class HMCDraws(NamedTuple):
    """Draws of C chains.

    Attributes:
        x: Positions, ``(C, S, d)``.
        accept_prob: Mean acceptance of each chain, ``(C,)``.
        diverging: How many trajectories of each chain diverged, ``(C,)``.
        step_size: As frozen, in the coordinates x / scale; 0-d.
        scale: Of the coordinates, ``(d,)``.
        gradients: How many were evaluated, warm-up and all chains included.
    """

    x: Tensor
    accept_prob: Tensor
    diverging: Tensor
    step_size: Tensor
    scale: Tensor
    gradients: int


def density_of(target: Target) -> hamiltonian.Density:
    """The density of a target in the form that the transitions take."""

    def density(x: Tensor) -> hamiltonian.HMCState:
        log_p, grad = target.log_prob_and_grad(x)
        log_p = log_p.double()
        return hamiltonian.HMCState(x, log_p, grad, x, log_p, torch.zeros_like(log_p))

    return density


def _rescaled(density: hamiltonian.Density, scale: Tensor) -> hamiltonian.Density:
    """Changes the coordinates of a density to z = x / scale, up to a constant."""

    def rescaled(z: Tensor) -> hamiltonian.HMCState:
        state = density(z * scale)
        return state._replace(z=z, grad=state.grad * scale)

    return rescaled


def sample(
    density: Target | hamiltonian.Density,
    x0: Tensor,
    num_samples: int,
    warmup_steps: int,
    num_steps: int,
    *,
    target_accept_prob: float = 0.8,
) -> HMCDraws:
    """Draws by HMC with a diagonal mass matrix, tuned over all chains in warm-up and then fixed.

    Arguments:
        density: A target, or a density a function of positions that returns states.
        x0: Where the chains start, ``(C, d)``.
        num_samples, warmup_steps: Trajectories a chain, kept and before.
        num_steps: Leapfrog steps a trajectory.
        target_accept_prob: What the step size is adapted to.
    """
    wrap = density.wrap if isinstance(density, Target) else lambda x: x
    density = density_of(density) if isinstance(density, Target) else density
    num_chains, dim = x0.shape
    scale, first = torch.ones_like(x0[0]), torch.full_like(x0[0, 0], dim**-0.25)
    step_size = StepSize(first, target_accept_prob)
    state, rescaled = density(x0), density
    window, kept, infos = [], [], []
    for t in range(-warmup_steps, num_samples):
        epsilon = jitter(step_size.value.expand(num_chains, 1).clone())
        momentum, log_u = torch.randn_like(state.z), torch.rand_like(state.log_pi).log()
        state, info = hamiltonian.step(
            state, rescaled, epsilon, num_steps, momentum, log_u, cut=False
        )
        if t >= 0:
            kept.append(wrap(state.x))
            infos.append(info)
            continue
        step_size.adapt(info.accept_prob.mean())
        window.append(wrap(state.x))
        if t == -1:
            step_size.freeze()
        elif -t in (3 * warmup_steps // 4, warmup_steps // 2, warmup_steps // 4):
            new = spread(torch.cat(window))
            state = state._replace(z=state.z * scale / new, grad=state.grad * new / scale)
            scale, rescaled, window = new, _rescaled(density, new), []
            step_size = StepSize(first, target_accept_prob)
    return HMCDraws(
        torch.stack(kept, 1),
        torch.stack([info.accept_prob for info in infos], 1).mean(1),
        torch.stack([info.diverging for info in infos], 1).sum(1),
        step_size.value,
        scale,
        num_chains * (1 + (warmup_steps + num_samples) * num_steps),
    )
