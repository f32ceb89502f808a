"""Settings of importance_flow."""

from __future__ import annotations

from dataclasses import dataclass

from ..guides.annealing.options import AnnealingOptions
from ..options import FitOptions
from ..validation import check_options

__all__ = ["ImportanceOptions"]


@dataclass(frozen=True)
class ImportanceOptions:
    r"""Numbers that importance_flow uses before and after its paths of densities.

    Attributes:
        pilot_draws: Number of draws of p by which h is checked and relaxed.
        start_width: Standard deviation of the Gaussian where the path of a posterior starts, in
            units of the posterior's.
        floor: :math:`\epsilon`, in units of the mean of h over the pilot draws.
        sharpness: :math:`\kappa`, in units of one over the standard deviation of g over the pilot
            draws.
        components: Largest number of components of the mixture under a flow that is fitted to data.
        data_fit: Options of that fit.
        groups: Number of groups of particles that have classifiers of their own, for the estimator
            "ratio".
        classifier_fit: Options of the training of the classifiers.
        classifier_width: Number of units in both hidden layers of a classifier.
        classifier_reach: A classifier's network is constant beyond so many standard deviations of
            its training draws.
        annealing: Settings of the annealing flows.

    Raises:
        ValueError: A number is not positive, or there are fewer than two groups.

    Example::

        >>> options = ImportanceOptions(sharpness=10.0)  # a relaxation twice as wide
        >>> ImportanceOptions(sharpness=0.0)
        Traceback (most recent call last):
        ValueError: ImportanceOptions.sharpness must be positive, got 0.0
    """

    pilot_draws: int = 4096
    start_width: float = 2.0
    floor: float = 0.1
    sharpness: float = 20.0
    components: int = 16
    data_fit: FitOptions = FitOptions(1000, 512, 2e-3, progress=False)
    groups: int = 8
    classifier_fit: FitOptions = FitOptions(200, 128, 1e-3, cosine_schedule=True, progress=False)
    classifier_width: int = 32
    classifier_reach: float = 3.0
    annealing: AnnealingOptions = AnnealingOptions()

    def __post_init__(self) -> None:
        check_options(self)
        for name, value in vars(self).items():
            if not isinstance(value, FitOptions | AnnealingOptions) and not value > 0:
                raise ValueError(f"ImportanceOptions.{name} must be positive, got {value}")
        if self.groups < 2:
            raise ValueError("ImportanceOptions.groups must be at least 2, for a standard error")
