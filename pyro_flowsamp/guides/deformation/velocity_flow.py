"""The flow of a velocity field from a generalised normal to the data."""

from __future__ import annotations

from math import gamma, log
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

from ..._zuko import zuko
from ...flows.affine import Affine
from ...flows.continuous import ContinuousTransform, Inverse
from ...flows.frozen import frozen
from ...nn.mlp import VelocityMLP
from .energy_path import BoltzmannPath

__all__ = ["DeformationFlow", "GeneralisedNormal"]


class GeneralisedNormal(dist.TorchDistribution):
    r""":math:`p(u) \propto e^{-\sum_i |u_i|^p}`, with
    :math:`Z = (2\,\Gamma(1 + 1/p))^d`; :math:`|u_i|^p \sim \mathrm{Gamma}(1/p)`.

    Example:
        >>> GeneralisedNormal(torch.zeros(1), 1.0).log_prob(torch.tensor([[3.0]]))  # -3 - log 2
        tensor([-3.6931])
    """

    arg_constraints: dict = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, like: Tensor, power: float, batch_shape: Size = Size()) -> None:
        super().__init__(batch_shape, like.shape, validate_args=False)
        self.like, self.power = like, power
        self.log_z = len(like) * log(2 * gamma(1 + 1 / power))

    def expand(self, batch_shape: Any, _instance: Any = None) -> GeneralisedNormal:
        return GeneralisedNormal(self.like, self.power, Size(batch_shape))

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        if self.power == 2:
            return torch.randn(shape, dtype=self.like.dtype, device=self.like.device) * 0.5**0.5
        size = torch._standard_gamma(self.like.new_full(shape, 1 / self.power))
        return size.pow(1 / self.power) * torch.randn_like(size).sign()

    def log_prob(self, u: Tensor) -> Tensor:
        return -u.abs().pow(self.power).sum(-1) - self.log_z


class GeneralisedNormalBase(zuko.lazy.LazyDistribution):
    """The standard generalised normal as the base of a flow.

    Example:
        >>> GeneralisedNormalBase(2, 1.0)().log_prob(torch.zeros(1, 2))  # -2 log 2
        tensor([-1.3863])
    """

    like: Tensor

    def __init__(self, features: int, power: float) -> None:
        super().__init__()
        self.power = power
        self.register_buffer("like", torch.zeros(features), persistent=False)

    def forward(self, c: Tensor | None = None) -> GeneralisedNormal:
        return GeneralisedNormal(self.like, self.power)


class DeformationFlow(zuko.lazy.Flow):
    """Base → velocity → place and scale → data, with the path that the velocity follows.

    Arguments:
        path: The path.
        velocity: Along it.
        slices: Of time, each with a step size for Langevin moves.
        steps: Of the integrator.

    Example:
        >>> path = BoltzmannPath(1, 1.0, None, None)
        >>> flow = DeformationFlow(path, VelocityMLP(1), slices=4, steps=2)
        >>> flow.set_loc_scale(torch.tensor([3.0]), torch.tensor([2.0]))
        >>> round(float(flow().log_prob(torch.tensor([[3.0]]))), 4)  # -log 2 of base and of scale
        -1.3863
    """

    step_sizes: Tensor

    def __init__(self, path: BoltzmannPath, velocity: VelocityMLP, slices: int, steps: int) -> None:
        affine = Affine(len(path.loc))
        frozen(affine)
        block = ContinuousTransform(velocity, steps)
        base = GeneralisedNormalBase(len(path.loc), path.power)
        super().__init__([Inverse(affine), Inverse(block)], base)
        self.path = path
        self.register_buffer("step_sizes", torch.ones(slices))

    @property
    def block(self) -> ContinuousTransform:
        return self.transform.transforms[1].block

    @property
    def velocity(self) -> VelocityMLP:
        return self.block.velocity  # type: ignore[return-value]

    def set_loc_scale(self, loc: Tensor, scale: Tensor) -> None:
        r"""Sets :math:`\mu` and :math:`\sigma`."""
        self.path.loc.copy_(loc)
        self.path.scale.copy_(scale)
        self.transform.transforms[0].block.initialize(loc, scale)
