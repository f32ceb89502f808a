"""Trainings of guides in a checkpoint: what is stored, and what must be the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..checkpoint.description import describe_settings, describe_target, digest
from ..checkpoint.scope import Scope
from ..target.context import ContextCall
from ..target.density import Target

__all__ = ["describe_training", "restore_training", "store_training"]

#: ends of a training that the same call goes on with
UNFINISHED = ("interrupted", "unfinished")


def describe_training(guide: Any, target: Target, call: ContextCall, scope: Scope) -> None:
    """Says what is trained, and how, and stores the target's counters from now on.

    Inside of another computation it says nothing: the outer one describes the run.

    Arguments:
        guide: The guide.
        target: The target of the training.
        call: The arguments of the model.
        scope: The training's place in the checkpoint.

    Raises:
        CheckpointError: The checkpoint is of another training.
    """
    scope.watch(target)
    if not scope.is_outermost:
        return
    options = replace(guide.options, progress=True, checkpoint=None)
    own = ("options", "ensemble")
    settings = {k: v for k, v in describe_settings(guide).items() if k not in own}
    described = describe_target(target, call.args, call.kwargs)
    ensemble = digest(getattr(guide, "ensemble", None))
    scope.describe(**described, **settings, ensemble=ensemble, options=repr(options))


def _state(guide: Any) -> dict[str, Any]:
    return {
        "flow": guide.trained_flow.state_dict(),
        "extra": guide.get_extra_state(),
        "history": guide.history,
        "results": {name: getattr(guide, name) for name in guide.training_results},
    }


def restore_training(guide: Any, scope: Scope) -> bool:
    """Gives a guide the flow with which its training has begun, or that of the finished training.

    Arguments:
        guide: The guide, whose flow has been built.
        scope: The training's place in the checkpoint.

    Returns:
        Whether the training has been finished.

    Raises:
        CheckpointError: The checkpoint cannot be read, or written for the first time.
    """
    finished = "trained" in scope
    with scope.restoring("trained" if finished else "start") as state:
        if state is None:
            if scope.stores:
                scope.write({"start": _state(guide)}, "start")
            return False
        guide.trained_flow.load_state_dict(state["flow"])
        guide.set_extra_state(state["extra"])
        guide.history = state["history"]
        for name, value in state["results"].items():
            setattr(guide, name, value)
    return finished


def store_training(guide: Any, scope: Scope) -> None:
    """Stores a trained guide; one whose training Ctrl-C has ended only where a run goes on with it.

    Arguments:
        guide: The guide, with its history.
        scope: The training's place in the checkpoint.

    Raises:
        CheckpointError: The checkpoint cannot be written.
    """
    if scope.stores and (not scope.is_outermost or guide.history.stopped not in UNFINISHED):
        scope.write({"trained": _state(guide)}, "trained", drop="")
