"""Checks of a guide's flow, and of a state before it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..options import FitOptions
from ..target.arguments import check_model
from ..target.density import Target
from ..validation import as_tensor, check_kind, shown

__all__ = [
    "check_dtype",
    "check_flow",
    "check_guide",
    "checked_levels",
    "extra_state",
    "first_tensor",
    "load_or_reset",
    "load_or_restore",
]


def check_guide(model: Any, options: Any) -> None:
    """Checks the arguments that all guides have.

    Raises:
        TypeError: The model cannot be called, or the options are none of a training.

    Example:
        >>> check_guide(lambda: None, {"max_steps": 10})
        Traceback (most recent call last):
        TypeError: options must be FitOptions(...), got {'max_steps': 10}
    """
    check_model(model)
    check_kind("options", options, FitOptions)


def checked_levels(quantiles: Any) -> Tensor:
    """Levels of quantiles as a tensor, of any shape.

    Raises:
        ValueError: One is no number in [0, 1].

    Example:
        >>> checked_levels([0.5])
        tensor([0.5000])
    """
    given = 1.0 * quantiles if isinstance(quantiles, Tensor) else quantiles
    levels = as_tensor("quantiles", given, torch.get_default_dtype(), torch.device("cpu"))
    if not bool(((levels >= 0) & (levels <= 1)).all()):
        raise ValueError(f"quantiles must lie in [0, 1], got {shown(levels.tolist())}")
    return levels


def extra_state(state: Any, with_flow: bool) -> dict[str, Any]:
    """The part of a guide's state that is no parameter: whether it is trained, and on what.

    Arguments:
        state: The state.
        with_flow: Whether it must have the parameters of a flow.

    Raises:
        TypeError: The state is no dictionary.
        ValueError: It is not one of a guide.

    Example:
        >>> extra_state({"flow.shift": 0.0}, with_flow=True)
        {'trained': True}
    """
    if not isinstance(state, Mapping):
        raise TypeError(
            f"expected a state, as guide.state_dict() or torch.load(file) return it, got "
            f"{shown(state)}"
        )
    extra = state.get("_extra_state", {"trained": True})
    if not isinstance(extra, Mapping) or "trained" not in extra:
        raise ValueError(
            f"'_extra_state' must be what a guide's state_dict() has there, got {shown(extra)}"
        )
    if with_flow and not any(str(name).startswith("flow.") for name in state):
        raise ValueError(
            "this state holds no flow: the guide was saved before it was built, by fit or its "
            "first use"
        )
    return dict(extra)


def load_or_restore(guide: Any, state: Mapping[str, Any], load: Callable[..., Any]) -> Any:
    """Loads a state into a guide that has its flow; nothing has changed where it does not fit.

    Arguments:
        guide: The guide.
        state: The state.
        load: ``load_state_dict`` of modules, as bound to the guide.

    Returns:
        The keys that are missing or left over, as modules return them.

    Raises:
        ValueError: A parameter is missing, left over, or has another shape.

    Example:
        >>> from functools import partial
        >>> from pyro_flowsamp import AutoFlow, Target
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 2)
        >>> guide = AutoFlow(target, flow="gaussian")
        >>> _ = guide.target_for()
        >>> load_or_restore(guide, {}, partial(nn.Module.load_state_dict, guide))
        Traceback (most recent call last):
        ValueError: the state does not fit this guide, which is left as it was: ...
    """
    own = {k: v.clone() if isinstance(v, Tensor) else v for k, v in guide.state_dict().items()}
    known = guide.trained, guide.context_arguments.range
    try:
        return load(state)
    except RuntimeError as error:
        load(own)
        guide.trained, guide.context_arguments.range = known
        wrong = [line.strip() for line in str(error).splitlines()[1:3]]
        raise ValueError(
            f"the state does not fit this guide, which is left as it was: {' '.join(wrong)} Make "
            f"the guide with the flow and for the model that the state was saved with"
        ) from error


def load_or_reset(guide: Any, *state: Any) -> None:
    """Loads a state that was given before there was a flow.

    Where it does not fit, the guide is as if no state had been given: without a flow and untrained.

    Arguments:
        guide: The guide, whose flow has just been built.
        state: The arguments of ``load_state_dict``.

    Raises:
        ValueError: See :func:`load_or_restore`.

    Example:
        >>> from pyro_flowsamp import AutoFlow, Target
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 2)
        >>> guide = AutoFlow(target, flow="gaussian")
        >>> _ = guide.target_for()
        >>> load_or_reset(guide, {})
        Traceback (most recent call last):
        ValueError: the state does not fit this guide, which is left as it was: ...
        >>> guide.flow is None
        True
    """
    try:
        guide.load_state_dict(*state)
    except Exception:
        guide.flow, guide.trained, guide.context_arguments.range = None, False, None
        raise


def first_tensor(flow: nn.Module) -> Tensor:
    """A tensor of a flow's dtype and device; a flow may have no parameters, all of it fixed.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> first_tensor(gaussian(2).double()).dtype
        torch.float64
    """
    return next(value for value in flow.state_dict().values() if isinstance(value, Tensor))


def check_flow(flow: nn.Module, target: Target, row: Tensor | None) -> None:
    """Checks that a flow draws and scores in one pass, in as many dimensions as the target has.

    Arguments:
        flow: The flow.
        target: The target.
        row: A context ``(c,)``, or None.

    Raises:
        ValueError: The flow's distribution has another dimension, or no ``rsample_and_log_prob``.

    Example:
        >>> from pyro_flowsamp import Target
        >>> from pyro_flowsamp.flows import gaussian
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 2)
        >>> check_flow(gaussian(3), target, None)
        Traceback (most recent call last):
        ValueError: the flow has (3,) features, the model needs (2,) (x: 2).
    """
    distribution = flow(None if row is None else row.to(first_tensor(flow)))
    if not hasattr(distribution, "rsample_and_log_prob"):
        raise ValueError(
            f"the flow returns a {type(distribution).__name__}, which cannot draw and score in one "
            f"pass (rsample_and_log_prob): return a zuko.distributions.NormalizingFlow."
        )
    shape = distribution.event_shape
    if tuple(shape) != (target.dim,):
        sizes = ", ".join(f"{s.name}: {s.size}" for s in target.sites)
        raise ValueError(
            f"the flow has {tuple(shape)} features, the model needs ({target.dim},) ({sizes})."
        )


def check_dtype(flow: nn.Module, target: Target) -> None:
    """Checks that a flow's parameters have the type of the target's points.

    Raises:
        ValueError: They have another one.

    Example:
        >>> from pyro_flowsamp import Target
        >>> from pyro_flowsamp.flows import gaussian
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 2)
        >>> check_dtype(gaussian(2).double(), target)
        Traceback (most recent call last):
        ValueError: this guide's flow is of torch.float64, the model's sites are torch.float32: ...
    """
    if others := {p.dtype for p in flow.parameters()} - {target.dtype}:
        raise ValueError(
            f"this guide's flow is of {others.pop()}, the model's sites are {target.dtype}: "
            f"make a new guide for it, or convert this one with guide.to({target.dtype})."
        )
