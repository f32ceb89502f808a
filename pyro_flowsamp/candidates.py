"""The guides that ``sample()`` compares: fitted Gaussian mixtures and trained flows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from torch import Tensor

from .flows.recipes import LayeredFlow, gaussian
from .guides.auto_flow import AutoFlow
from .options import FitOptions, SearchOptions
from .target.density import Target

__all__ = ["fit_mixture_guide", "flow_candidates", "num_components", "train_guide"]


def fit_mixture_guide(target: Target, particles: Tensor, components: int) -> AutoFlow:
    """Fits a Gaussian, or a mixture of Gaussians, to particles.

    Arguments:
        target: The target of the guide.
        particles: Points ``(N, d)`` that are distributed nearly as the target.
        components: Largest number of components; 1 for a Gaussian.

    Returns:
        A guide that counts as trained.

    Example::

        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * (x - 3).square().sum(-1), 2)
        >>> guide = fit_mixture_guide(target, 3 + torch.randn(500, 2), 1)
        >>> guide.trained, num_components(guide)
        (True, 1)
    """
    guide = AutoFlow(target, flow=partial(_mixture, most=components))
    guide.target_for()
    assert isinstance(guide.flow, LayeredFlow)
    guide.flow.initialize_from(particles)
    guide.trained = True
    return guide


def _mixture(
    features: int, context: int = 0, angles: Tensor | None = None, most: int = 1
) -> LayeredFlow:
    return gaussian(features, context, angles, components=most if angles is None else 1)


def num_components(guide: AutoFlow) -> int:
    """The number of components of a mixture by :func:`fit_mixture_guide`."""
    return int(guide.flow.base.used)  # type: ignore[union-attr, arg-type]


def flow_candidates(target: Target, several_modes: bool) -> Iterator[tuple[str, bool]]:
    """Names of flows, each with whether it is trained on draws too, in the order to try them in.

    Draws cost the low-density regions between modes that no particle has entered, and chains from
    these draws do not show the loss. So each flow is first trained by reverse KL alone. This may
    lose modes, but chains that start in a lost mode never move, which is seen.
    """
    if target.dim == 1:
        return  # no coordinates to couple
    for flow in ("circular",) if target.circular else ("coupling", "spline"):
        yield flow, False
        if several_modes:
            yield flow, True


def train_guide(
    target: Target,
    flow: str,
    draws: Tensor | None,
    seconds: float,
    worth_trying: Callable[[float], bool],
    options: SearchOptions,
    progress: bool,
) -> AutoFlow | None:
    """Trains a flow for no longer than the time that it could save.

    Arguments:
        target: The target of the guide.
        flow: Name of the flow.
        draws: Draws of the target, ``(N, d)``, to train on too, or None.
        seconds: The time that it could save.
        worth_trying: Decides for a number of seconds if the training may take as long.
        options: Training steps for the estimate of the time, and steps that training needs.
        progress: Whether to show progress bars.

    Returns:
        The guide; None if training takes longer than it can save.
    """
    first = FitOptions(max_steps=1, progress=False)
    ensemble = None if draws is None else lambda target: draws
    guide = AutoFlow(target, flow=flow, ensemble=ensemble, options=first)
    guide.fit()  # the first step, and the mixture that it starts from
    guide.options = replace(first, max_steps=options.timing_steps)
    step = guide.train_flow(target, None).seconds / options.timing_steps
    if not worth_trying(step * options.min_training_steps):
        return None
    steps = min(FitOptions.max_steps, seconds / step)
    guide.options = FitOptions(max_steps=int(steps), progress=progress)
    guide.fit()
    return guide
