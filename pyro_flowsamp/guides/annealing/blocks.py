"""The blocks of an annealing flow and the flow that they make."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...flows.continuous import ContinuousTransform, TransportFlow
from ...flows.frozen import frozen
from ...nn.mlp import VelocityMLP
from ...smc import driver
from ...target.density import Target
from ...transitions.step_size import optimal_step_size
from ..memory import CountedTraining

__all__ = ["AnnealedFlow", "BlockReport", "CountedBlocks"]


class BlockReport(NamedTuple):
    """Report of the training of one block.

    Attributes:
        beta: Where it ends.
        ess_before: ESS fraction of the particles weighted from the last density to this one.
        ess: The same with the block in between.
        rollbacks: Number of trainings that made the weights worse or were not finite.
        steps: Optimiser steps, of the last try.
        integration_steps: Steps of the integrator that its log density needs.
        log_q_error: What is left of its error, in nats on 99.9 % of particles.
        defensive_weight: Share of particles that it leaves behind; 1 where the map makes the
            weights worse.
        seconds: Wall-clock time.

    Example:
        >>> names = "rollbacks steps integration_steps log_q_error defensive_weight seconds".split()
        >>> report = BlockReport(beta=0.5, ess_before=0.6, ess=0.9, **dict.fromkeys(names, 1))
        >>> report.covers  # all particles are left behind
        False
    """

    beta: float
    ess_before: float
    ess: float
    rollbacks: int
    steps: int
    integration_steps: int
    log_q_error: float
    defensive_weight: float
    seconds: float

    @property
    def covers(self) -> bool:
        """Whether any particles go by it."""
        return self.defensive_weight < 1


class Standardized(VelocityMLP):
    r"""A velocity :math:`s \cdot v((x - m) / s)`, whose divergence is that of :math:`v`.

    Example:
        >>> velocity = Standardized(1, 8)
        >>> _ = [torch.nn.init.normal_(p) for p in velocity.parameters()]
        >>> before = velocity(0.5, torch.zeros(1, 1))
        >>> velocity.standardize(torch.tensor([3.0]), torch.tensor([2.0]))
        >>> torch.allclose(velocity(0.5, torch.tensor([[3.0]])), 2 * before)
        True
    """

    loc: Tensor
    spread: Tensor

    def __init__(self, features: int, hidden_features: int) -> None:
        super().__init__(features, hidden_features)
        self.register_buffer("loc", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))

    def standardize(self, loc: Tensor, spread: Tensor) -> None:
        """Sets :math:`m` and :math:`s`."""
        self.loc.copy_(loc)
        self.spread.copy_(spread)

    def forward(self, t: Tensor | float, x: Tensor) -> Tensor:
        return super().forward(t, (x - self.loc) / self.spread) * self.spread

    def with_divergence(self, t: Tensor | float, x: Tensor) -> tuple[Tensor, Tensor]:
        velocity, divergence = super().with_divergence(t, (x - self.loc) / self.spread)
        return velocity * self.spread, divergence


class Block(ContinuousTransform):
    """A continuous block that knows where on the path it ends, and how to move there.

    It is trained by a single midpoint step, which is cheap, and then integrated to the end.

    Example:
        >>> block, z = Block(1, 8), torch.ones(1, 1)
        >>> float(block.map(z))  # the velocity starts at zero
        1.0
        >>> block.defensive_weight = 1.0
        >>> block.map is None
        True
    """

    SAVED = ("beta", "refinement", "defensive_weight", "method")
    scale: Tensor
    step_size: Tensor

    def __init__(self, features: int, hidden_features: int) -> None:
        super().__init__(Standardized(features, hidden_features), 1, "midpoint")
        self.beta, self.refinement, self.defensive_weight = 1.0, False, 0.0
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("step_size", torch.tensor(optimal_step_size(features)))

    @property
    def map(self) -> driver.Pushes | None:
        """The map of the block, or None where all particles are left behind."""
        return self(None) if self.defensive_weight < 1 else None

    def get_extra_state(self) -> dict[str, Any]:
        return {**super().get_extra_state(), **{name: getattr(self, name) for name in self.SAVED}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        for name in self.SAVED:
            setattr(self, name, state[name])


class AnnealedFlow(TransportFlow):
    """The blocks found so far on top of a start; a state_dict brings its own number of blocks.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> flow, other = AnnealedFlow(gaussian(1), 1, 8), AnnealedFlow(gaussian(1), 1, 8)
        >>> flow.blocks.append(flow.new_block())
        ModuleList(
        ...
        >>> _ = other.load_state_dict(flow.state_dict())
        >>> len(other.annealing_blocks), other.count_refinements()
        (1, 0)
    """

    like: Tensor

    def __init__(self, start: nn.Module, features: int, hidden_features: int) -> None:
        super().__init__(frozen(start))
        self.sizes = features, hidden_features
        self.register_buffer("like", torch.empty(0), persistent=False)

    def fresh_block(self) -> Block:
        """One that leaves every point where it is."""
        return Block(*self.sizes).to(self.like)

    def new_block(self) -> Block:
        """A copy of the last block to go on from, or a fresh one."""
        block = self.fresh_block()
        if self.blocks:
            last = self.blocks[-1]
            assert isinstance(last, Block)
            block.velocity.load_state_dict(last.velocity.state_dict())
        return block

    @property
    def annealing_blocks(self) -> list[Block]:
        """The blocks along the path, without those that refine the flow at its end."""
        return [block for block in self.blocks if not block.refinement]  # type: ignore[misc]

    def count_refinements(self) -> int:
        """The number of blocks that refine the flow at the end of the path."""
        return len(self.blocks) - len(self.annealing_blocks)

    def get_extra_state(self) -> int:
        return len(self.blocks)

    def set_extra_state(self, count: int) -> None:
        del self.blocks[count:]
        while len(self.blocks) < count:
            self.blocks.append(self.new_block())


class CountedBlocks(CountedTraining):
    """The memory of a guide that trains one block after the other, on particles.

    Example:
        >>> from pyro_flowsamp import AutoAnnealingFlow
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> guide = AutoAnnealingFlow(target, num_particles=1000)
        >>> _ = guide.target_for()
        >>> guide.particle_bytes(target)  # twice five vectors and three numbers of each
        88000
    """

    num_particles: int

    def _fresh_block(self) -> Block:
        flow = self.trained_flow
        assert isinstance(flow, AnnealedFlow)
        return flow.fresh_block()

    def trained_parameters(self, target: Target) -> Iterable[nn.Parameter]:
        """Those of one block."""
        return self._fresh_block().parameters()

    def trial_step(self, target: Target, num: int, context: Tensor | None) -> Any:
        """The map of a block."""
        x = torch.zeros(num, target.dim, dtype=target.dtype, device=target.device)
        return self._fresh_block()(None).push(x)

    def particle_bytes(self, target: Target) -> int:
        """The bytes of particles before a block and after it; of five vectors and three numbers."""
        size = torch.empty(0, dtype=target.dtype).element_size()
        return 2 * self.num_particles * (5 * target.dim * size + 3 * torch.double.itemsize)


class BaseDensity:
    """The start's density, with its gradient, as paths take it.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> BaseDensity(gaussian(1)).log_prob_and_grad(torch.tensor([[2.0]]))
        (tensor([-2.9189]), tensor([[-2.]]))
    """

    def __init__(self, flow: nn.Module) -> None:
        self.distribution = flow(None)

    @torch.no_grad()
    def sample(self, num: int) -> Tensor:
        return self.distribution.sample((num,))

    def log_prob(self, x: Tensor) -> Tensor:
        return self.distribution.log_prob(x)

    def log_prob_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            log_b = self.log_prob(x)
            (grad,) = torch.autograd.grad(log_b.sum(), x)
        return log_b.detach(), grad
