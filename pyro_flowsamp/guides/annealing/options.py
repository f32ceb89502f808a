"""Settings of AutoAnnealingFlow that few users change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...flows.continuous import METHODS
from ...validation import check_options
from .losses import Loss, TransportBatch, log_variance

__all__ = ["AnnealingOptions"]


@dataclass(frozen=True)
class AnnealingOptions:
    r"""Settings of the blocks of an annealing flow, and of their training.

    Attributes:
        objective: A function that maps a :class:`~pyro_flowsamp.guides.annealing.TransportBatch` to
            the loss of a block, 0-d, and to the log weights ``(N,)`` by which the training is
            judged, or None.
        transport_cost: :math:`\gamma`, the weight of the mean squared displacement that is added to
            the loss; ½ for a block of unit time in the paper.
        refinement_blocks: Number of further blocks, trained on the flow's own draws at
            :math:`\beta = 1`. They improve the flow as a proposal; corrected particles have no need
            of them.
        hidden_features: Width of the velocity networks.
        method: The integrator, see :data:`pyro_flowsamp.flows.continuous.METHODS`.
        max_blocks: Number of blocks after which a path counts as endless.
        retries: Number of repeated trainings of a block that makes the weights worse, each at a
            third of the learning rate.
        target_accept_prob: Acceptance probability that the step size of MALA is tuned to.
        defensive_grid: The defensive weights to choose from: shares of the particles that a block
            leaves behind, in falling order. The first is 1.
        min_effective: Number of effective particles that must be left after a block.
        good_ess: ESS fraction of the weights without a block, from which a block that failed gives
            no warning.
        max_uncovered: Share of particles above which a guide warns that they ended where the
            reference has no draws.

    Raises:
        TypeError: The objective is not a function.
        ValueError: A value is out of range.

    Example::

        >>> options = AnnealingOptions(hidden_features=32, method="dopri5")
        >>> AnnealingOptions(method="rk5")
        Traceback (most recent call last):
        ValueError: method must be one of ['dopri5', 'euler', 'midpoint', 'rk4'], got 'rk5'
    """

    objective: Callable[[TransportBatch], Loss] = log_variance
    transport_cost: float = 0.0
    refinement_blocks: int = 0
    hidden_features: int = 64
    method: str = "rk4"
    max_blocks: int = 300
    retries: int = 2
    target_accept_prob: float = 0.574
    defensive_grid: tuple[float, ...] = (1.0, 0.4, 0.2, 0.1, 0.05, 0.02)
    min_effective: float = 10.0
    good_ess: float = 0.9
    max_uncovered: float = 0.01

    def __post_init__(self) -> None:
        check_options(self)
        if not callable(self.objective):
            raise TypeError(
                f"objective must be a function of a TransportBatch, such as log_variance, got "
                f"{self.objective!r}"
            )
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {sorted(METHODS)}, got '{self.method}'")
        for name in ("transport_cost", "refinement_blocks", "retries"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("hidden_features", "max_blocks", "min_effective"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("target_accept_prob", "good_ess", "max_uncovered"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in (0, 1), got {getattr(self, name)}")
        grid = self.defensive_grid
        if grid[:1] != (1.0,) or not all(0 < share <= 1 for share in grid):
            raise ValueError(f"defensive_grid holds shares in (0, 1], the first is 1, got {grid}")
