r"""A target together with what is known of it: exact draws, evidence, modes, entropy.

With them a sampler is judged by numbers, not by looks: fractions in each mode against their
weights, a two-sample distance to exact draws, an evidence estimate against :math:`\log Z`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from ..target.density import Target

__all__ = ["Problem"]


@dataclass(frozen=True, eq=False)
class Problem:
    r"""A target whose truth is known.

    Attributes:
        target: The unnormalised log density; itself a Pyro model with one site, ``"x"``.
        sample: Exact independent draws, ``num → (num, d)``, by torch's global generator.
        log_z: Logarithm of the integral of the target's density.
        modes: Where the modes are, ``(K, d)``.
        weights: The mass of each mode, ``(K,)``.
        entropy: :math:`-\mathbb E_p[\log p]` of the normalised density: no model of the draws has a
            lower negative log-likelihood.
        assignment: Which mode points ``(N, d)`` belong to, ``(N,)``, where that is not the nearest.
    """

    target: Target
    sample: Callable[[int], Tensor] | None = None
    log_z: float | None = None
    modes: Tensor | None = None
    weights: Tensor | None = None
    entropy: float | None = None
    assignment: Callable[[Tensor], Tensor] | None = None

    def assign(self, x: Tensor) -> Tensor:
        """The index of the mode each of the points ``(N, d)`` belongs to, ``(N,)``.

        Raises:
            ValueError: The target has no separate modes.
        """
        if self.assignment is not None:
            return self.assignment(x)
        if self.modes is None:
            raise ValueError("this target has no modes to assign points to")
        return torch.cdist(x, self.modes.to(x)).argmin(-1)

    def mode_fractions(self, x: Tensor, log_weights: Tensor | None = None) -> Tensor:
        r"""The fraction of (weighted) draws in each mode, ``(K,)``, to compare with ``weights``.

        Arguments:
            x: Draws, ``(N, d)``.
            log_weights: Their importance weights, unnormalised, ``(N,)``; all equal where None.
        """
        mode = self.assign(x)
        if self.weights is None:
            raise ValueError("the masses of this target's modes are not known")
        log_w = x.new_zeros(len(x)) if log_weights is None else log_weights
        fractions = torch.zeros(len(self.weights), dtype=torch.float64, device=x.device)
        return fractions.index_add(0, mode, log_w.double().softmax(0)).to(self.weights.dtype)


class TensorOptions(TypedDict):
    """The dtype and device of a target, as keyword arguments of tensors' constructors."""

    dtype: torch.dtype
    device: torch.device


#: Where truths are computed.
EXACT: TensorOptions = {"dtype": torch.float64, "device": torch.device("cpu")}


def tensor_options(dtype: torch.dtype | None, device: torch.device | str | None) -> TensorOptions:
    """Torch's defaults where None, as in :meth:`Target.from_energy`."""
    return {
        "dtype": dtype or torch.get_default_dtype(),
        "device": torch.device(device) if device is not None else torch.get_default_device(),
    }
