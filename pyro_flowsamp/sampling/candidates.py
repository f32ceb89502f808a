"""The guides that ``sample()`` compares: fitted Gaussians and mixtures, and trained flows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import isinf
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.scope import deactivated
from ..flows.frozen import FlowAtContext
from ..flows.mixture_fit import Mixture
from ..flows.recipes import LayeredFlow, gaussian
from ..guides.auto_flow import AutoFlow
from ..guides.base import FlowGuide
from ..guides.checks import first_tensor
from ..options import FitOptions, SearchOptions
from ..target.density import Target
from ..target.site import site_shapes
from ..target.work import WorkCounter
from ..training.history import History
from ..validation import shown

__all__ = [
    "better_gaussian",
    "fixed_guide",
    "flow_candidates",
    "gaussian_guide",
    "given_guide",
    "mixture_guide",
    "mixture_name",
    "train_guide",
]


def gaussian_guide(target: Target, loc: Tensor, scale_tril: Tensor) -> AutoFlow:
    """A Gaussian with a given mean and covariance, as a guide that counts as trained.

    Arguments:
        target: The target of the guide.
        loc: The mean, ``(d,)``.
        scale_tril: The lower Cholesky factor of the covariance, ``(d, d)``.

    Example:
        >>> target = Target.from_energy(lambda x: 0.5 * ((x - 3) / 2).square().sum(-1), 1)
        >>> guide = gaussian_guide(target, torch.tensor([3.0]), torch.tensor([[2.0]]))
        >>> round(float(guide.flow().log_prob(torch.tensor([[3.0]]))), 4)  # -log 2 - log(2π) / 2
        -1.6121
    """
    return _trained(target, gaussian, loc, scale_tril)[0]


def mixture_guide(target: Target, loc: Tensor, scale_tril: Tensor, mixture: Mixture) -> AutoFlow:
    r"""A mixture in the coordinates :math:`u = L^{-1}(x - \mu)`, as a guide that counts as trained.

    Arguments:
        target: The target of the guide.
        loc, scale_tril: :math:`\mu` and L.
        mixture: The mixture of u; a target with angles takes only its affine map.

    Example:
        >>> target = Target.from_energy(lambda x: 0.5 * (x.abs() - 5).square().sum(-1), 1)
        >>> locs, roots = torch.tensor([[-5.0], [5.0]]), torch.ones(2, 1, 1)
        >>> mixture = Mixture(torch.tensor([0.5, 0.5]).log(), locs, roots)
        >>> guide = mixture_guide(target, torch.zeros(1), torch.eye(1), mixture)
        >>> round(float(guide.flow().log_prob(torch.tensor([[5.0]]))), 4)  # log 1/2 - log(2π) / 2
        -1.6121
    """
    if target.circular:
        return gaussian_guide(target, loc, scale_tril)
    count = max(2, len(mixture.locs))
    guide, flow = _trained(target, partial(gaussian, components=count), loc, scale_tril)
    flow.base.initialize(mixture)
    return guide


def given_guide(
    guide: Any, model: Any, target: Target, args: tuple, kwargs: dict[str, Any]
) -> AutoFlow:
    """A copy of a caller's trained guide as a guide of a target with the same sites.

    Arguments:
        guide: The guide, which stays as it is. It may have been trained on other data.
        model: The model, which a guide that was pickled gets back.
        target: Its target, that is drawn from.
        args, kwargs: Arguments of the model; an amortised guide reads its context from them.

    Raises:
        TypeError: It is no flow guide of this package.
        ValueError: It is not trained; a site is missing, unknown or has another shape; the
            arguments are of several contexts.

    Example:
        >>> from pyro_flowsamp import FitOptions
        >>> def energy(x):
        ...     return 0.5 * x.square().sum(-1)
        >>> guide = AutoFlow(Target.from_energy(energy, 2), options=FitOptions(progress=False))
        >>> _ = guide.fit()
        >>> target = Target.from_energy(energy, 2)
        >>> given_guide(guide, target, target, (), {}).trained
        True
        >>> target = Target.from_energy(energy, 3)
        >>> given_guide(guide, target, target, (), {})
        Traceback (most recent call last):
        ...
        ValueError: guide: site 'x' has the shape (2,), in the model (3,): train a guide for this model
    """  # noqa: E501
    if not isinstance(guide, FlowGuide):
        raise TypeError(
            f"guide must be a trained flow guide of this package, such as AutoFlow(model), got "
            f"{shown(guide)}"
        )
    if not guide.trained:
        raise ValueError(
            "guide is not trained: call guide.fit(...) first (after training it by SVI, set "
            "guide.trained = True)"
        )
    guide.restore_model(model)
    if isinstance(guide.model_source, Target):
        args, kwargs = (), {}
    own = guide.target_for(*args, **kwargs)
    theirs, ours = site_shapes(own.sites), site_shapes(target.sites)
    wrong = [f"it has no site '{name}'" for name in ours if name not in theirs]
    wrong += [f"'{name}' is no site of the model" for name in theirs if name not in ours]
    wrong += [
        f"site '{name}' has the shape {theirs[name]}, in the model {shape}"
        for name, shape in ours.items()
        if name in theirs and theirs[name] != shape
    ]
    if wrong:
        raise ValueError(f"guide: {'; '.join(wrong)}: train a guide for this model")
    flow, row = guide.trained_flow, None
    if guide.context_names:
        row = guide.context_arguments.single_row(guide.model_source, args, kwargs)
        row = row.to(first_tensor(flow))
    return fixed_guide(target, FlowAtContext(flow, row))


def fixed_guide(target: Target, flow: nn.Module) -> AutoFlow:
    """A guide of a target whose flow is a copy of a given one, and counts as trained.

    Arguments:
        target: The target; the copy has its type.
        flow: A flow that takes no context.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 2)
        >>> flow = gaussian(2)
        >>> guide = fixed_guide(target, flow)
        >>> guide.trained, guide.trained_flow is flow
        (True, False)
    """
    guide = AutoFlow(target, flow=copy.deepcopy(flow))
    guide.target_for()
    guide.trained = True
    return guide


def mixture_name(target: Target, mixture: Mixture) -> str:
    """The name of the sampler that jumps by a mixture.

    Arguments:
        target: The target.
        mixture: The mixture.

    Example:
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> zero, one = torch.zeros(2, 1), torch.ones(2, 1, 1)
        >>> [mixture_name(target, Mixture(zero[:k, 0], zero[:k], one[:k])) for k in (1, 2)]
        ['Gaussian', 'mixture']
    """
    if len(mixture.locs) > 1 and not target.circular:
        return "mixture"
    return "Gaussian" if target.circular or isinf(mixture.df) else "Student-t"


def _trained(
    target: Target, flow: Any, loc: Tensor, scale_tril: Tensor
) -> tuple[AutoFlow, LayeredFlow]:
    guide = AutoFlow(target, flow=flow)
    guide.target_for()
    assert isinstance(guide.flow, LayeredFlow)
    guide.flow.affine.initialize(loc.to(target.dtype), scale_tril.to(target.dtype))
    guide.trained = True
    return guide, guide.flow


def better_gaussian(x: Tensor, loc: Tensor, scale_tril: Tensor) -> tuple[Tensor, Tensor]:
    """The better of a given Gaussian and the one with the moments of points.

    The moments of one half of the points are judged by the density of the other half. In many
    dimensions few points give a worse covariance than a fit to the target's gradients does.

    Arguments:
        x: Points ``(N, d)``, float64, in random order.
        loc, scale_tril: The given Gaussian.

    Returns:
        A mean and a lower Cholesky factor of a covariance.

    Example::

        >>> _ = torch.manual_seed(0)
        >>> x = 2 * torch.randn(500, 1).double()
        >>> loc, scale = better_gaussian(x, torch.zeros(1).double(), torch.eye(1).double())
        >>> abs(float(scale) - 2) < 0.2
        True
    """
    half = len(x) // 2
    moments = _moments(x[:half])
    if moments is None or _log_density(x[half:], *moments) < _log_density(
        x[half:], loc, scale_tril
    ):
        return loc, scale_tril
    return _moments(x) or moments


def _moments(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and Cholesky factor of the covariance; None where there are too few points."""
    std = x.std(0)
    if len(x) <= x.shape[-1] or not bool((std > 0).all()):
        return None
    standard = (x - x.mean(0)) / std
    chol, info = torch.linalg.cholesky_ex(standard.mT @ standard / (len(x) - 1))
    return None if int(info) else (x.mean(0), std[:, None] * chol)


def _log_density(x: Tensor, loc: Tensor, scale_tril: Tensor) -> float:
    """Mean log density of points under a Gaussian, but for a constant."""
    u = torch.linalg.solve_triangular(scale_tril, (x - loc).mT, upper=False)
    return float(-0.5 * u.square().sum(0).mean() - scale_tril.diagonal().log().sum())


def flow_candidates(target: Target, several_modes: bool) -> Iterator[tuple[str, bool]]:
    """Names of flows, each with whether it is trained on draws too, in the order to try them in.

    Draws cost the low-density regions between modes that no particle has entered, and chains from
    these draws do not show the loss. So each flow is first trained by reverse KL alone. This may
    lose modes, but chains that start in a lost mode never move, which is seen.

    Arguments:
        target: The target.
        several_modes: Whether the search has found more than one mode.

    Example:
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> list(flow_candidates(target, several_modes=False))
        [('coupling', False), ('spline', False)]
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
    affine: tuple[Tensor, Tensor],
    work: float,
    worth_trying: Callable[[float, float], bool],
    options: SearchOptions,
    progress: bool,
) -> AutoFlow | None:
    """Trains a flow with no more work than it could save.

    Arguments:
        target: The target of the guide.
        flow: Name of the flow.
        draws: Draws of the target, ``(N, d)``, to train on too, or None.
        affine: Mean and Cholesky factor with which the flow starts where there are no draws.
        work: The work that it could save.
        worth_trying: Decides for a number of evaluations and an amount of work if the training may
            take as much.
        options: Training steps of which the work is counted, and steps that training needs.
        progress: Whether to show progress bars.

    Returns:
        The guide; None if training takes more work than it can save.

    Raises:
        KeyboardInterrupt: It was interrupted.
        RuntimeError, ValueError: The flow cannot be trained on this target.

    Example:
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> affine, few = (torch.zeros(2), torch.eye(2)), SearchOptions(training_steps=1)
        >>> def never(evaluations, work):
        ...     return False
        >>> train_guide(target, "coupling", None, affine, 1e3, never, few, False) is None
        True
    """
    first = FitOptions(max_steps=1, progress=False)
    ensemble = None if draws is None else lambda target: draws
    guide = AutoFlow(target, flow=flow, ensemble=ensemble, options=first)
    guide.target_for()
    if draws is None:
        assert isinstance(guide.flow, LayeredFlow)
        guide.flow.affine.initialize(*(part.to(target.dtype) for part in affine))
        guide.trained = True
    guide.fit()  # the first step, and the mixture that it starts from
    guide.options = replace(first, max_steps=options.training_steps)
    _raise_if_interrupted(guide.history)
    with deactivated(), WorkCounter() as counter:  # a step that is read from a file is no work
        history = guide.train_flow(target, None)
    _raise_if_interrupted(history)
    step = counter.work / options.training_steps
    evaluations = FitOptions.batch_size * options.min_training_steps
    if not worth_trying(evaluations, step * options.min_training_steps):
        return None
    steps = min(FitOptions.max_steps, work / step)
    while steps > options.min_training_steps and not worth_trying(
        FitOptions.batch_size * steps, 0.0
    ):
        steps *= 0.5
    guide.options = FitOptions(max_steps=max(1, int(steps)), progress=progress)
    _raise_if_interrupted(guide.fit())
    return guide


def _raise_if_interrupted(history: History | None) -> None:
    """Raises the KeyboardInterrupt that has ended a training."""
    if history is not None and history.stopped == "interrupted":
        raise KeyboardInterrupt
