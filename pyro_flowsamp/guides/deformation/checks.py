"""Checks of a deformation guide: of its arguments, of the energy, and of what it has missed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import inf

import torch
from torch import Tensor

from ...target.density import Target
from ...validation import check_number
from ...weights import Estimate
from .collocation import TerminalParticles
from .energy_path import Energy
from .velocity_flow import DeformationFlow

__all__ = [
    "check_base",
    "check_gradient",
    "log_weights",
    "missed_mass",
    "warn_of_missed_modes",
]

SIGMAS, NATS = 4.0, 0.1  #: by how much evidences may differ
MAX_DENSITY_DEFICIT = 5.0  #: nats by which the flow's density may be too small at a particle
MAX_MISSED_MASS = 0.01  #: share of the evidence that may lie where the deficit is larger


def check_base(
    interpolation: str | Energy,
    base_power: float,
    base_scale: float | None,
    exploration_scale: float,
) -> None:
    """Refuses arguments of the guide that are out of range, or that do not go together.

    Arguments:
        interpolation: "trainable", "linear", or a function of times and places.
        base_power, base_scale: The power and the scale of the base; a scale of None is found.
        exploration_scale: The width of the base from which training explores.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> check_base("trainable", base_power=2.0, base_scale=None, exploration_scale=1.0)
        >>> check_base("cubic", 2.0, None, 1.0)
        Traceback (most recent call last):
        ValueError: interpolation must be 'trainable', 'linear' or a function, got 'cubic'
    """
    if not callable(interpolation) and interpolation not in ("trainable", "linear"):
        raise ValueError(
            f"interpolation must be 'trainable', 'linear' or a function, got '{interpolation}'"
        )
    scales = {"base_scale": base_scale, "exploration_scale": exploration_scale}
    for name, value in {"base_power": base_power, **scales}.items():
        if value is not None:
            check_number(name, value, 0, open_least=True, open_most=True)
    own_base = base_scale is not None and exploration_scale == 1
    if callable(interpolation) and not own_base:
        raise ValueError(
            "a given interpolation has a base of its own: give its base_scale, and leave "
            "exploration_scale at 1"
        )


def check_gradient(target: Target) -> None:
    """Refuses a target without a gradient.

    Raises:
        ValueError: The gradient cannot be computed, or is zero everywhere.

    Example:
        >>> check_gradient(Target.from_energy(lambda x: (0 * x).sum(-1), 2))
        Traceback (most recent call last):
        ValueError: the energy's gradient is zero everywhere, but training needs one.
    """
    x = target.initial_points(16)  # raises where the density is not finite anywhere
    try:
        grad = target.log_prob_and_grad(x)[1]
    except RuntimeError as error:
        raise ValueError(
            f"the energy has no gradient ({error}), but training needs one."
        ) from error
    if not grad.abs().sum() > 0:
        raise ValueError("the energy's gradient is zero everywhere, but training needs one.")


@torch.no_grad()
def log_weights(flow: DeformationFlow, target: Target, num: int) -> Tensor:
    r"""Returns the log importance weights :math:`\log \pi - \log q` of draws of the flow.

    Arguments:
        flow: The flow.
        target: The density :math:`\pi`.
        num: The number of draws.

    Returns:
        Float64 log weights ``(num,)``; NaN became :math:`-\infty`.

    Example:
        >>> from pyro_flowsamp.guides.deformation.energy_path import BoltzmannPath
        >>> from pyro_flowsamp.nn import VelocityMLP
        >>> flow = DeformationFlow(BoltzmannPath(1, 2.0, None, None), VelocityMLP(1), 4, 2)
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)  # the base itself
        >>> log_weights(flow, target, 2)  # log Z, of which the base knows log π / 2
        tensor([0.5724, 0.5724], dtype=torch.float64)
    """
    x, log_q = flow(None).rsample_and_log_prob((num,))
    log_w = target.log_prob(x).double() - log_q.double()
    return torch.where(log_w.isnan(), -torch.inf, log_w)


@torch.no_grad()
def missed_mass(flow: DeformationFlow, population: TerminalParticles, own: Tensor) -> float:
    """Returns the evidence where the flow has next to no density, relative to the flow's own.

    This ratio is meaningful however low the evidence of the particles is: an estimate that is all
    but unbiased rarely is much larger than the mass there.

    Arguments:
        flow: The flow.
        population: Annealed particles.
        own: log Z by the flow's weights.

    Example:
        >>> from pyro_flowsamp.guides.deformation.collocation import TerminalParticles
        >>> from pyro_flowsamp.guides.deformation.energy_path import BoltzmannPath
        >>> from pyro_flowsamp.nn import VelocityMLP
        >>> flow = DeformationFlow(BoltzmannPath(1, 2.0, None, None), VelocityMLP(1), 4, 2)
        >>> x, weights = torch.tensor([[0.0], [9.0]]), torch.tensor([0.75, 0.25])
        >>> log_z = torch.tensor(0.5724).double()
        >>> evidence = Estimate(log_z, torch.zeros(()).double())
        >>> particles = TerminalParticles(x, torch.zeros(2).double(), weights, evidence)
        >>> round(missed_mass(flow, particles, log_z), 4)  # the flow has next to no density at 9
        0.25
    """
    if population.evidence.value == -inf:
        return 0.0
    log_q = flow(None).log_prob(population.x).double()
    # NaN, where the flow's inverse is not finite, counts as too small.
    sparse = ~(population.log_prob - log_q - own <= MAX_DENSITY_DEFICIT)
    share = (population.weights * sparse).sum().double().log()
    return float((share + population.evidence.value - own).exp())


def warn_of_missed_modes(
    evidences: Mapping[str, Estimate], missed: Mapping[str, float], given_path: bool
) -> None:
    """Warns where annealed particles know of modes that the flow has missed.

    A mean weight knows only the modes that the flow visits. Annealed particles that reach another
    mode show it by a greater evidence, or by their share where the flow has next to no density.

    Arguments:
        evidences: log Z with its standard error, of the "flow" and of each set of particles.
        missed: The missed mass of each set of particles, see :func:`missed_mass`.
        given_path: Whether the user gave the interpolation.

    Example:
        >>> import warnings
        >>> def of(value):
        ...     return Estimate(torch.tensor(value), torch.tensor(0.01))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_missed_modes({"flow": of(0.0), "base": of(0.7)}, {"base": 0.0}, False)
        >>> str(caught[0].message)[:56]
        'log Z is 0.00 ± 0.01 by the flow, but 0.70 ± 0.01 by ann'
    """
    remedy = "Train longer, or give a larger base_scale, or exploration_scale."
    if given_path:
        remedy = "Train longer, or give an interpolation from a wider base."
    own, error = evidences["flow"]
    for name, (log_z, other) in evidences.items():
        spread = (error**2 + other**2).nan_to_num().sqrt()  # NaN where no weight is left
        if log_z - own > SIGMAS * spread + NATS:
            warnings.warn(
                f"log Z is {own:.2f} ± {error:.2f} by the flow, but {log_z:.2f} ± {other:.2f} "
                f"by annealed particles ({name}): the flow has missed modes, which its "
                f"weights cannot show. {remedy}",
                stacklevel=5,
            )
            return
    name, mass = max(missed.items(), key=lambda item: item[1])
    if mass > MAX_MISSED_MASS:
        warnings.warn(
            f"annealed particles ({name}) find {mass:.1%} of the flow's own evidence where "
            f"it has less than e^-{MAX_DENSITY_DEFICIT:.0f} of the density that it ought to "
            f"have: it has missed modes, which its weights cannot show, or is not trained "
            f"yet. {remedy}",
            stacklevel=5,
        )
