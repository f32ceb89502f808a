r"""A target together with its exact draws, evidence, modes and entropy, as far as they are known.

They allow to judge a sampler by numbers: the fraction of draws in each mode is compared with the
mode's mass, draws with exact draws, an estimate of the evidence with :math:`\log Z`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from ..target.density import Target
from ..validation import default_device

__all__ = ["Problem"]


@dataclass(frozen=True, eq=False)
class Problem:
    r"""A target with known answers; those that are not known are None.

    Attributes:
        target: The unnormalised log density. It is also a Pyro model with one site, ``"x"``.
        sample: Draws exact independent points, ``num → (num, d)``, by torch's global generator.
        log_z: Logarithm of the integral of the target's density.
        modes: Positions of the modes, ``(K, d)``.
        weights: The mass of each mode, ``(K,)``.
        entropy: :math:`-\mathbb E_p[\log p]` of the normalised density in nats. No model of the
            draws has a lower negative log-likelihood.
        assignment: Maps points ``(N, d)`` to the index of their mode, ``(N,)``; by default that is
            the nearest mode.

    Example::

        >>> from pyro_flowsamp.problems import gmm
        >>> problem = gmm(components=6)
        >>> problem.log_z, problem.modes.shape
        (0.0, torch.Size([6, 2]))
    """

    target: Target
    sample: Callable[[int], Tensor] | None = None
    log_z: float | None = None
    modes: Tensor | None = None
    weights: Tensor | None = None
    entropy: float | None = None
    assignment: Callable[[Tensor], Tensor] | None = None

    def assign(self, x: Tensor) -> Tensor:
        """Returns the index of the mode to which each of the points ``(N, d)`` belongs, ``(N,)``.

        Raises:
            ValueError: The target has no separate modes.
        """
        if self.assignment is not None:
            return self.assignment(x)
        if self.modes is None:
            raise ValueError("this target has no modes to assign points to")
        return torch.cdist(x, self.modes.to(x)).argmin(-1)

    def mode_fractions(self, x: Tensor, log_weights: Tensor | None = None) -> Tensor:
        r"""Returns the fraction of (weighted) draws in each mode, ``(K,)``.

        Arguments:
            x: Draws, ``(N, d)``.
            log_weights: Unnormalised log importance weights, ``(N,)``; all equal where None.

        Raises:
            ValueError: The masses of the modes are not known.
        """
        mode = self.assign(x)
        if self.weights is None:
            raise ValueError("the masses of this target's modes are not known")
        log_w = x.new_zeros(len(x)) if log_weights is None else log_weights
        fractions = torch.zeros(len(self.weights), dtype=torch.float64, device=x.device)
        return fractions.index_add(0, mode, log_w.double().softmax(0)).to(self.weights.dtype)


class TensorOptions(TypedDict):
    """The dtype and device of a target, as keyword arguments of tensor constructors.

    Example:
        >>> options: TensorOptions = {"dtype": torch.float64, "device": torch.device("cpu")}
        >>> torch.zeros(2, **options) == torch.zeros(2, **EXACT)
        tensor([True, True])
    """

    dtype: torch.dtype
    device: torch.device


#: Exact answers are computed in float64 on the CPU.
EXACT: TensorOptions = {"dtype": torch.float64, "device": torch.device("cpu")}


def tensor_options(dtype: torch.dtype | None, device: torch.device | str | None) -> TensorOptions:
    """Returns the dtype and device, which are torch's defaults where None.

    Example:
        >>> tensor_options(torch.float64, "cpu") == EXACT
        True
    """
    return {
        "dtype": dtype or torch.get_default_dtype(),
        "device": torch.device(device) if device is not None else default_device(),
    }
