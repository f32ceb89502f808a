"""The numbers that a user of AutoAdvNF may set: weights of the losses, and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from ...validation import check_options
from ..auto_flow import MAX_COMPONENTS

__all__ = ["AdvNFOptions", "AdvNFWeights", "Weight", "fading"]


Weight = float | Callable[[float], float]  #: constant, or a function of the progress from 0 to 1


def fading(progress: float) -> float:
    """Falls from one at the start to zero at half of the training, and stays there.

    An ensemble says where modes are, but not exactly how much each weighs.

    Example::

        >>> [fading(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
        [1.0, 0.5, 0.0, 0.0]
    """
    return max(0.0, 1.0 - 2.0 * progress)


@dataclass(frozen=True)
class AdvNFWeights:
    r"""Weights of the three losses of AdvNF.

    A weight is a number, or a function of the progress of training from 0 to 1. A weight of zero
    leaves its loss out: ``AdvNFWeights(adversarial=0)`` has no discriminator.

    Attributes:
        adversarial: :math:`\lambda_1`, or "auto": see :mod:`pyro_flowsamp.guides.advnf.adversary`.
        reverse: :math:`\lambda_2`, of the reverse KL divergence.
        forward: :math:`\lambda_3`, of the forward KL divergence. Where None, it is :func:`fading`,
            because a flow would learn few draws by heart; without a reverse KL it is 1.

    Raises:
        ValueError: A weight is negative, or all are zero.

    Example::

        >>> AdvNFWeights().divergences(0.25)
        (0.5, 0.5)
        >>> AdvNFWeights(reverse=0).divergences(0.25)
        (0, 1.0)
    """

    adversarial: Weight | str = "auto"
    reverse: Weight = 0.5
    forward: Weight | None = None

    def __post_init__(self) -> None:
        for name in ("adversarial", "reverse", "forward"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not 0 <= value < inf:
                raise ValueError(f"{name} must not be negative, got {value}")
        if isinstance(self.adversarial, str) and self.adversarial != "auto":
            raise ValueError(
                f"adversarial is 'auto', a number or a function, got '{self.adversarial}'"
            )
        if self.adversarial == self.reverse == self.forward == 0:
            raise ValueError("adversarial, reverse and forward are all zero: nothing to train")

    @property
    def uses_ensemble(self) -> bool:
        """Whether one of the losses needs draws of the target."""
        return self.adversarial != 0 or self.forward != 0

    @property
    def adversary_only(self) -> bool:
        """Whether neither divergence is used."""
        return self.reverse == 0 and self.forward == 0

    def divergences(self, progress: float) -> tuple[float, float]:
        """Returns the weights of the reverse and the forward KL at a progress from 0 to 1."""
        forward = self.forward
        if forward is None:
            forward = 1.0 if self.reverse == 0 else fading
        return weight_at(self.reverse, progress), weight_at(forward, progress)


def weight_at(weight: Weight, progress: float) -> float:
    """Returns a weight at a progress from 0 to 1.

    Example:
        >>> weight_at(2.0, 0.5), weight_at(lambda progress: 1 - progress, 0.25)
        (2.0, 0.75)
    """
    return weight(progress) if callable(weight) else weight


@dataclass(frozen=True)
class AdvNFOptions:
    """Settings of the discriminator and of the check of the ensemble.

    Attributes:
        pretraining: Part of ``FitOptions.max_steps`` before the discriminator joins in.
        learning_rate: Learning rate of the discriminator's Adam.
        held_out: Part of the ensemble by which the discriminator is judged. It is not trained on
            this part.
        pause_below: The discriminator is paused while its loss is below this part of the loss at
            chance.
        average_memory: Part of a running average of the AUC and of the loss that is kept at each
            step.
        balance_every: Steps between two measurements of the gradient norms.
        balance_memory: Part of the running ratio of the gradient norms that is kept at each
            measurement.
        ascent_starts: Number of distant points that ascend the density, to find modes that the
            ensemble misses.
        far: A mode counts as missed where its distance from the ensemble exceeds the median
            distance of neighbours in the ensemble by this factor.
        slack: A mode counts as missed only if its log density is at most this many nats below the
            ensemble's median.
        max_components: Largest number of components of the latent mixture that is fitted to the
            ensemble, where there is no context.

    Raises:
        ValueError: A value is out of range.

    Example:
        >>> options = AdvNFOptions(held_out=0.5, learning_rate=1e-4)
        >>> AdvNFOptions(held_out=1.0)
        Traceback (most recent call last):
        ValueError: held_out is a part in [0, 1), got 1.0
    """

    pretraining: float = 0.25
    learning_rate: float = 1e-3
    held_out: float = 0.2
    pause_below: float = 1e-3
    average_memory: float = 0.95
    balance_every: int = 20
    balance_memory: float = 0.5
    ascent_starts: int = 128
    far: float = 10.0
    slack: float = 5.0
    max_components: int = MAX_COMPONENTS

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("pretraining", "held_out", "average_memory", "balance_memory"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a part in [0, 1), got {getattr(self, name)}")
        for name in ("learning_rate", "balance_every", "ascent_starts", "max_components"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
