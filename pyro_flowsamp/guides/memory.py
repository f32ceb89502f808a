r"""The memory that a training needs, computed from counts before its first step.

At the end of the forward pass of a step a training holds

- the gradient of each trained parameter, and Adam's two averages of it;
- what autograd keeps of the flow, for each draw of the batch. It is counted on two small batches;
  their difference leaves out what all draws share;
- what autograd keeps of the density, for each draw, up to the bytes from which on the density is
  evaluated in chunks (:mod:`pyro_flowsamp.target.evaluation`);
- the log weights of a window of steps, and the particles of a guide that trains on particles.

Their sum is a lower bound, since results that are not kept come on top. So no training is refused
that would have fitted; one that takes slightly less than all free memory may still fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..distributed import number_here
from ..free_memory import TooLittleMemoryError, free_bytes
from ..objectives import draw
from ..options import FitOptions
from ..seeding import kept_generators
from ..target.density import Target
from ..target.evaluation import MEMORY_BUDGET, saved_bytes

__all__ = ["WITHOUT_DENSITY", "CountedTraining", "bytes_per_draw"]

FEW = 8  #: draws of the smaller of two batches on which the bytes of a draw are counted
COPIES = 3  #: of the trained parameters: their gradient, and Adam's two averages of it
#: takes the place of a target in an objective whose memory is counted without the density
WITHOUT_DENSITY: Any = SimpleNamespace(log_prob=lambda x, context=None: x.sum(-1))
SEED = 0  #: of the draws on which bytes are counted


def bytes_per_draw(compute: Callable[[int], Any], device: torch.device | str = "cpu") -> int:
    """The bytes that autograd keeps for each draw of a batch.

    Arguments:
        compute: Computes what is differentiated, for a number of draws.
        device: The device of the draws. Its random generator is left as it was.

    Returns:
        The number of bytes; 0 where the computation raises an error.

    Example:
        >>> x = torch.ones(1, requires_grad=True)
        >>> bytes_per_draw(lambda num: (x * torch.randn(num, 5)).exp())  # the numbers, and exp
        40
    """

    def once(num: int) -> int:
        return saved_bytes(lambda: compute(num))

    try:
        with kept_generators(device, SEED):
            return max(0, (once(2 * FEW) - once(FEW)) // FEW)
    except Exception:  # the training computes the same, and raises its error there
        return 0


class CountedTraining:
    """The part of a guide that knows how much memory its training needs.

    A guide whose training step is not a batch of draws of its flow says what it is instead, by
    :meth:`trial_step` and :meth:`trained_parameters`.

    Example:
        >>> from pyro_flowsamp import AutoFlow
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> guide = AutoFlow(target, flow="gaussian", options=FitOptions(batch_size=10))
        >>> _ = guide.target_for()
        >>> guide.bytes_of_training(target)["parameters"]  # three parameters, thrice 4 bytes each
        36
        >>> guide.options = FitOptions(batch_size=10**13)
        >>> guide.check_memory(target)
        Traceback (most recent call last):
        pyro_flowsamp.free_memory.TooLittleMemoryError: a training step with 10000000000000 draws...
    """

    options: FitOptions
    shares_batches: ClassVar[bool]
    #: whether a training step differentiates the density
    differentiates_density: ClassVar[bool] = True

    @property
    def trained_flow(self) -> nn.Module:
        """The flow."""
        raise NotImplementedError

    def trained_parameters(self, target: Target) -> Iterable[nn.Parameter]:
        """The parameters that a training changes at the same time."""
        return self.trained_flow.parameters()

    def trial_step(self, target: Target, num: int, context: Tensor | None) -> Any:
        """Computes what a training step differentiates, for few draws and without the density.

        Arguments:
            target: The target.
            num: The number of draws.
            context: Their contexts ``(num, c)``, or None.
        """
        return draw(self.trained_flow, num, context)

    def particle_bytes(self, target: Target) -> int:
        """The bytes of particles that a training holds."""
        return 0

    def bytes_of_training(self, target: Target, contexts: Tensor | None = None) -> dict[str, int]:
        """The bytes that a training holds at least, by what they are for.

        Arguments:
            target: The target.
            contexts: The contexts ``(M, c)`` to train on, or None.
        """
        size = torch.empty(0, dtype=target.dtype).element_size()
        num, options = self._draws_of_step(), self.options
        with kept_generators(target.device, SEED):  # a guide may make a network to count it
            trained = [p for p in self.trained_parameters(target) if p.requires_grad]
        density = num * target.density.bytes_per_point * self.differentiates_density
        return {
            "draws": num * self._bytes_per_draw(target, contexts),
            "density": min(density, MEMORY_BUDGET),
            "parameters": COPIES * sum(p.numel() * p.element_size() for p in trained),
            "log weights": num * min(options.eval_every, options.max_steps) * size,
            "particles": self.particle_bytes(target),
        }

    def check_memory(self, target: Target, contexts: Tensor | None = None) -> None:
        """Refuses a training that needs more memory than there is.

        Arguments:
            target: The target.
            contexts: The contexts ``(M, c)`` to train on, or None.

        Raises:
            TooLittleMemoryError: There is too little memory.
        """
        free = free_bytes(torch.device(target.device))
        needed = self.bytes_of_training(target, contexts)
        total = sum(needed.values())
        if free is None or total <= free:
            return
        parts = ", ".join(f"{value:,} for {name}" for name, value in needed.items() if value)
        raise TooLittleMemoryError(
            f"a training step with {self._draws_of_step()} draws in a batch needs at least "
            f"{total:,} bytes on {target.device} ({parts}), and {free:,} are free",
            "take a smaller batch by FitOptions(batch_size=...), or a smaller flow",
        )

    def _draws_of_step(self) -> int:
        num = self.options.batch_size
        return number_here(num) if self.shares_batches else num

    def _bytes_per_draw(self, target: Target, contexts: Tensor | None) -> int:
        kept = [(buffer, buffer.clone()) for buffer in self.trained_flow.buffers()]

        def compute(num: int) -> Any:
            row = None if contexts is None else contexts[:1].expand(num, -1)
            return self.trial_step(target, num, row)

        try:
            return bytes_per_draw(compute, target.device)
        finally:  # a batch norm, for example, counts the batches that it has seen
            for buffer, value in kept:
                buffer.copy_(value)
