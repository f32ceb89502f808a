"""Short runs of a kernel, from which its cost or its agreement with others is read."""

from __future__ import annotations

from torch import Tensor

from ..kernels.base import FlowKernel
from ..target.density import Target
from .vectorized import VectorizedMCMC

__all__ = ["short_run"]


def short_run(
    kernel: FlowKernel, target: Target, starts: Tensor, warmup_steps: int
) -> VectorizedMCMC:
    """A run that has not begun, with one draw of each chain, and without warnings or a bar.

    Arguments:
        kernel: The kernel.
        target: Its target.
        starts: Starting points of the chains, ``(C, d)``.
        warmup_steps: The length of its warm-up.

    Example:
        >>> import torch
        >>> from pyro_flowsamp import IMH
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 2)
        >>> run = short_run(IMH(target), target, torch.zeros(8, 2), warmup_steps=10)
        >>> run.num_chains, run.warmup_steps
        (8, 10)
    """
    run = VectorizedMCMC(
        kernel,
        1,
        warmup_steps,
        len(starts),
        initial_params=target.unpack_unconstrained(starts),
        disable_progbar=True,
    )
    run.min_acceptance = 0.0  # no warning: a kernel that hardly moves will not be chosen
    return run
