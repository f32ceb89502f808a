r"""The optimiser loop that all training uses.

:func:`fit` minimises any closure that returns a loss and a batch of log importance weights. It
looks at the weights' effective sample size a window of steps at a time, lowers the learning rate
where that does not grow, and stops where lowering it no longer helps. A step whose loss or gradient
is not finite is skipped on the device, and counted; nothing inside a step waits for the device.

A training can be stored and go on later with the same steps (:mod:`pyro_flowsamp.checkpoint`).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from .. import progress
from ..checkpoint.scope import Scope, entered
from ..distributed import SharedTraining, is_hidden, shared_training
from ..options import FitOptions
from .history import History
from .plateau import VERDICTS, Plateau

__all__ = ["Stepper", "Stored", "fit"]

WHEN = ("later", "now")  #: whether to store a training, as workers tell each other


class Stepper:
    """Adam, whose steps are skipped on the device where the loss or a gradient is not finite.

    torch's functional Adam takes the gradient's scale and the flag to skip as tensors, as under
    automatic mixed precision, so that neither clipping nor skipping waits for the device. (Its
    class ``torch.optim.Adam`` would import torch's compiler on first use, which takes longer than
    many trainings.) Parameters that a loss does not depend on are not changed, and their steps are
    not counted.

    Arguments:
        parameters: Parameters to train; those that require no gradient are left out.
        options: The learning rate and the bound on the gradient.

    Raises:
        ValueError: No parameter requires a gradient.

    Example::

        >>> import torch
        >>> x = torch.nn.Parameter(torch.tensor(3.0))
        >>> stepper = Stepper([x], FitOptions(learning_rate=0.5))
        >>> _ = stepper.step(x.square())
        >>> _ = stepper.step(x * torch.inf)  # is skipped
        >>> float(x.detach()), float(stepper.skipped)
        (2.5, 1.0)
    """

    def __init__(self, parameters: Iterable[nn.Parameter], options: FitOptions) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        if not self.parameters:
            raise ValueError("the flow has no trainable parameter")
        self.clip_norm, self.learning_rate = options.clip_norm, options.learning_rate
        self.factor = 1.0  #: factor of the learning rate, set by the schedule
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.counts = [torch.zeros((), device=p.device) for p in self.parameters]
        self.skipped = torch.zeros((), device=self.parameters[0].device)
        self.shared: SharedTraining | None = None  #: the workers that share out the batches

    def step(self, loss: Tensor, skip: Tensor | None = None) -> Tensor:
        """Makes one step, unless ``skip``, 0-d, is 1, or the loss or a gradient is not finite.

        Returns:
            The loss, detached; of several workers the mean.
        """
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        used = [i for i, grad in enumerate(found) if grad is not None]
        parameters, first, second, counts = (
            [values[i] for i in used]
            for values in (self.parameters, self.first, self.second, self.counts)
        )
        grads, loss = [found[i] for i in used], loss.detach()
        if self.shared is not None:
            grads, loss = self.shared.average(grads, loss)
        grads = [_laid_out(grad, like) for grad, like in zip(grads, parameters)]
        norm = nn.utils.get_total_norm(grads)
        found_inf = (~torch.isfinite(norm + loss)).float()
        self.skipped += found_inf
        if skip is not None:
            found_inf = torch.maximum(found_inf, skip.to(found_inf))
        with torch.no_grad():
            adam(
                parameters,
                grads,
                first,
                second,
                [],
                counts,
                fused=True,
                grad_scale=(norm / self.clip_norm).clamp(min=1.0).float(),
                found_inf=found_inf,
                lr=self.learning_rate * self.factor,
                beta1=0.9,
                beta2=0.999,
                eps=1e-8,
                weight_decay=0.0,
                amsgrad=False,
                maximize=False,
            )
        return loss

    def decay(self, factor: float) -> None:
        self.learning_rate *= factor

    def state_dict(self) -> dict[str, Any]:
        """The parameters, the averages of their gradients and the counts of steps."""
        names = "parameters", "first", "second", "counts"
        tensors = {name: [value.detach() for value in getattr(self, name)] for name in names}
        return {**tensors, "skipped": self.skipped, "learning_rate": self.learning_rate}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the state of :meth:`state_dict`; the parameters are changed in place."""
        for name in ("parameters", "first", "second", "counts"):
            for own, stored in zip(getattr(self, name), state[name], strict=True):
                own.copy_(stored)
        self.skipped = state["skipped"].to(self.skipped.device)
        self.learning_rate = state["learning_rate"]


@runtime_checkable
class Stored(Protocol):
    """A part of a training beside its parameters, such as a discriminator, that can be stored.

    Example:
        >>> isinstance(torch.nn.Linear(1, 1), Stored), isinstance(torch.zeros(1), Stored)
        (True, False)
    """

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def _laid_out(grad: Tensor, like: Tensor) -> Tensor:
    """Returns a gradient in the memory layout of its parameter.

    Fused Adam reads both in one order, and does not check this on the CPU. ``backward`` makes such
    gradients, ``torch.autograd.grad`` does not.
    """
    return grad if grad.stride() == like.stride() else torch.empty_like(like).copy_(grad)


def _mean_of_finite(losses: list[Tensor]) -> float:
    """The mean over the steps that were not skipped."""
    loss = torch.stack(losses)
    return float(torch.where(torch.isfinite(loss), loss, torch.nan).nanmean())


def _no_nan(log_weights: list[Tensor]) -> Tensor:
    """Joins batches of log weights, with zero weight where a draw or its density was NaN."""
    log_w = torch.cat(log_weights)
    return torch.where(log_w.isnan(), -torch.inf, log_w)


class _Training:
    """The state of a training between two steps.

    Arguments:
        parameters: Parameters to train.
        options: Options of the training.
        others: Further parts of its state.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], options: FitOptions, others: Iterable[Stored]
    ) -> None:
        self.stepper, self.plateau = Stepper(parameters, options), Plateau(options)
        self.history, self.others = History(), list(others)
        self.losses: list[Tensor] = []
        self.weights: list[Tensor] = []

    def state_dict(self, seconds: float, finished: bool) -> dict[str, Any]:
        plateau = {k: v for k, v in vars(self.plateau).items() if k != "options"}
        shared = self.stepper.shared
        return {
            "shared": None if shared is None else shared.state_dict(),
            "stepper": self.stepper.state_dict(),
            "plateau": plateau,
            "history": self.history.updated(seconds=seconds),
            "losses": self.losses,
            "weights": self.weights,
            "others": [other.state_dict() for other in self.others],
            "finished": finished,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stepper.load_state_dict(state["stepper"])
        if self.stepper.shared is not None and state.get("shared") is not None:
            self.stepper.shared.load_state_dict(state["shared"], state["history"].steps)
        vars(self.plateau).update(state["plateau"])
        self.history = state["history"]
        self.losses, self.weights = state["losses"], state["weights"]
        for other, stored in zip(self.others, state["others"], strict=True):
            other.load_state_dict(stored)

    def due(self, scope: Scope) -> bool:
        """Whether to store the training after a step; several workers do at the end of a window.

        Rank 0 says whether it is time. There the workers have no log weights of their own.
        """
        due, shared = scope.due(), self.stepper.shared
        if shared is None or not scope.stores:
            return due
        return not self.losses and shared.agreed(WHEN[due], WHEN) == WHEN[True]

    def end_of_window(self, ess: Callable[[Tensor], Tensor]) -> str:
        """Notes the window of steps that has ended, and returns how the training goes on."""
        history = self.history
        history.loss.append(_mean_of_finite(self.losses))
        shared = self.stepper.shared
        if self.weights:
            log_w = _no_nan(self.weights)
            log_w = log_w if shared is None else shared.gathered(log_w)
        history.ess.append(float(ess(log_w)) if self.weights else math.nan)
        self.losses, self.weights = [], []
        verdict = self.plateau.verdict(history.ess[-1], history.loss[-1])
        return verdict if shared is None else shared.agreed(verdict, VERDICTS)


def fit(
    parameters: Iterable[nn.Parameter],
    closure: Callable[[], tuple[Tensor, Tensor | None]],
    ess: Callable[[Tensor], Tensor],
    options: FitOptions | None = None,
    others: Iterable[Stored] | None = (),
    shared: bool = False,
) -> History:
    r"""Minimises the loss of ``closure`` until the importance ESS no longer grows.

    Ctrl-C ends the training early and keeps the parameters as they are then.

    With ``options.checkpoint``, or inside of a computation that is stored, the training is stored
    too. A step that Ctrl-C or an error has ended is not: the same call goes on from the state
    that was stored last. A training whose batches are shared out to workers is stored by rank 0, at
    the end of a window of ``options.eval_every`` steps, and goes on with any number of workers.

    Arguments:
        parameters: Parameters to train; those that require no gradient are left out.
        closure: Returns a loss and log importance weights ``(batch,)``, detached, or None.
        ess: Maps log weights ``(n,)`` to their ESS fraction.
        options: See :class:`~pyro_flowsamp.FitOptions`.
        others: What else changes in a step, to be stored with the parameters; None where that
            cannot be stored, so that only the end of the training is.
        shared: Whether each of several workers draws a part of the batch in ``closure``
            (:mod:`pyro_flowsamp.distributed.training`).

    Returns:
        The record of the training.

    Raises:
        ValueError: No parameter requires a gradient; or there are workers, and the training is not
            shared out.
        CheckpointError: The checkpoint cannot be read or written.

    References:
        Kingma & Ba, *Adam: A Method for Stochastic Optimization*, 2014,
        https://arxiv.org/abs/1412.6980

    Example::

        >>> import torch
        >>> from pyro_flowsamp import FitOptions, ess_fraction
        >>> x = torch.nn.Parameter(torch.tensor(3.0))
        >>> options = FitOptions(max_steps=500, learning_rate=0.1, progress=False)
        >>> history = fit([x], lambda: ((x - 1).square(), None), ess_fraction, options)
        >>> round(float(x.detach()), 2), history.stopped
        (1.0, 'flat')
    """
    options = options or FitOptions()
    start, silent = time.perf_counter(), is_hidden(not options.progress)
    training = _Training(parameters, options, others or ())
    stepper = training.stepper
    stepper.shared = shared_training(stepper.parameters, shared)
    own = nullcontext if stepper.shared is None else stepper.shared.random_numbers
    with (
        entered(options.checkpoint, "fit") as scope,
        progress.bar("Train", options.max_steps, "step", silent) as bar,
    ):
        with scope.restoring("state") as found:
            if found is not None:
                training.load_state_dict(found)
                bar.update(training.history.steps)
        history = training.history
        start -= history.seconds
        finished = found is not None and found["finished"]
        try:
            while history.steps < options.max_steps and not finished:
                with own():
                    loss, log_weights = closure()
                stepper.factor = options.schedule(history.steps)
                training.losses.append(stepper.step(loss))
                if log_weights is not None:
                    training.weights.append(log_weights)
                history.steps += 1
                if len(training.losses) >= options.eval_every or history.steps >= options.max_steps:
                    verdict = training.end_of_window(ess)
                    bar.update(history.steps - bar.n)
                    left = options.batch_size * (options.max_steps - history.steps)
                    told = f"loss={history.loss[-1]:.3f}, ess={history.ess[-1]:.3f}"
                    bar.set_postfix_str(f"{told}, at most {progress.work_left(left)}")
                    if verdict in ("flat", "enough"):
                        history.stopped = verdict
                        break
                    if verdict == "decay":
                        stepper.decay(options.lr_decay)
                if others is not None and training.due(scope):
                    seconds = time.perf_counter() - start
                    scope.write({"state": training.state_dict(seconds, False)}, "training")
        except KeyboardInterrupt:
            if stepper.shared is not None and stepper.shared.group.size > 1:
                raise  # the others are at other steps
            history.stopped = "interrupted"
            warnings.warn(f"training interrupted after {history.steps} steps", stacklevel=2)
        history.skipped = int(stepper.skipped)
        history.seconds = time.perf_counter() - start
        if scope.stores and not finished and history.stopped != "interrupted":
            scope.write({"state": training.state_dict(history.seconds, True)}, "trained")
    return history
