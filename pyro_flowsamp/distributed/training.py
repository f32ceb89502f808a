r"""Trainings whose batches are shared out to workers.

Every worker draws a part of the batch, by random numbers of its own. With K workers and losses
:math:`L_k` that are means over equally many draws, the gradient

.. math:: \nabla L = \frac1K \sum_{k=1}^K \nabla L_k

is that of the mean over the whole batch. It is added up as one vector, the losses with it. A part
that is not finite makes the sum not finite, so that all workers skip the same steps.

Where the loss is another function of the whole batch, it is the mean of that of the parts. The
reverse KL leaves out draws outside of the support: each part has the mean over its other draws,
whose expectation is the same in all parts, however many they are. A loss that divides by a sum of
the batch's weights has the bias of a batch of one worker's size.

A step is the same on every number of workers only in distribution: where the batch is split it has
other random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..seeding import Stream
from .context import refuse_workers, splitting_workers
from .group import WorkerGroup
from .replication import check_alike, replicated, replicating_workers

__all__ = ["SharedTraining", "shared_training", "training_of_all"]


class SharedTraining:
    """The exchange between the workers of a training.

    All begin with the parameters of rank 0.

    Arguments:
        group: The workers.
        parameters: Parameters to train.

    Example:
        >>> from pyro_flowsamp.distributed import workers
        >>> x = torch.nn.Parameter(torch.ones(2))
        >>> with workers() as group:
        ...     shared = SharedTraining(group, [x])
        ...     grads, loss = shared.average([2 * torch.ones(2)], torch.tensor(3.0))
        >>> grads, loss
        ([tensor([2., 2.])], tensor(3.))
    """

    def __init__(self, group: WorkerGroup, parameters: Sequence[Tensor]) -> None:
        self.group = group
        self._device, self._seed = parameters[0].device, group.shared_seed()
        self._stream = Stream(self._seed, "training", group.rank, self._device)
        with torch.no_grad():
            flat = torch.cat([p.detach().flatten().double() for p in parameters])
            for own, first in zip(parameters, _split(group.broadcast(flat), parameters)):
                own.copy_(first)

    def state_dict(self) -> dict[str, Any]:
        """The places of all workers in their random numbers; a message, two on GPUs."""
        own = self._stream.state_dict()
        places = {
            name: None
            if place is None
            else self.group.all_gather(place.to(self.group.device)).cpu()
            for name, place in own.items()
        }
        return {"seed": self._seed, **places}

    def load_state_dict(self, state: dict[str, Any], steps: int) -> None:
        """Goes on from the places of :meth:`state_dict`.

        Where there are other numbers of workers, they have random numbers that none has used.

        Arguments:
            state: The state.
            steps: The steps of the training so far.
        """
        group, self._seed = self.group, state["seed"]
        if len(state["cpu"]) == group.size:
            own = {name: state[name] for name in ("cpu", "cuda")}
            own = {k: None if v is None else v[group.rank].clone() for k, v in own.items()}
            self._stream.load_state_dict(own)
            return
        phase = f"training of {group.size} workers after {steps} steps"
        self._stream = Stream(self._seed, phase, group.rank, self._device)

    @contextmanager
    def random_numbers(self) -> Iterator[None]:
        """A context with the random numbers of this worker."""
        with self._stream.active():
            yield

    def average(self, grads: Sequence[Tensor], loss: Tensor) -> tuple[list[Tensor], Tensor]:
        """The means of gradients and losses over the workers."""
        flat = torch.cat(
            [*(grad.flatten() for grad in grads), loss.detach().reshape(1).to(grads[0])]
        )
        mean = self.group.add(flat) / self.group.size
        return _split(mean[:-1], grads), mean[-1]

    def gathered(self, log_weights: Tensor) -> Tensor:
        """The log weights ``(n,)`` of all workers, in the order of ranks."""
        return self.group.all_gather(log_weights.double()).flatten()

    def agreed(self, verdict: str, verdicts: Sequence[str]) -> str:
        """The verdict of rank 0, of those that there are."""
        number = torch.tensor(verdicts.index(verdict), device=self.group.device)
        return verdicts[int(self.group.broadcast(number))]


def _split(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Parts of a vector in the shapes and types of others."""
    parts = flat.split([value.numel() for value in like])
    return [part.view_as(value).to(value.dtype) for part, value in zip(parts, like)]


def shared_training(parameters: Sequence[Tensor], shared: bool) -> SharedTraining | None:
    """The exchange of a training where there are workers, else None.

    Arguments:
        parameters: Parameters to train.
        shared: Whether each worker draws a part of the batch.

    Returns:
        The exchange; None where there are no workers, or all make the same training.

    Raises:
        ValueError: There are workers, and it does not.

    Example:
        >>> shared_training([torch.nn.Parameter(torch.ones(2))], shared=True) is None  # no workers
        True
    """
    if not shared:
        refuse_workers("this training", "train the guide before workers() is entered")
    group = splitting_workers()
    return None if group is None or group.replicates else SharedTraining(group, parameters)


@contextmanager
def training_of_all(flow: nn.Module, target: Any, shared: bool) -> Iterator[None]:
    """A context in which all workers make the same training, if its batches are not shared out.

    Arguments:
        flow: The flow that is trained; it must be the same on all workers in the end.
        target: A :class:`~pyro_flowsamp.Target`.
        shared: Whether each worker draws a part of the batch.

    Raises:
        ValueError: The workers have other targets, random numbers, or flows.

    Example::

        >>> from pyro_flowsamp import Target, workers
        >>> target, flow = Target.from_energy(lambda x: x.square().sum(-1), 1), nn.Linear(1, 1)
        >>> with workers() as group, training_of_all(flow, target, shared=False):
        ...     group.replicates
        True
    """
    if shared and replicating_workers() is None:
        yield
        return
    with replicated("a training", target, first_order=shared):
        yield
        check_alike("the trained flow", flow.state_dict())
