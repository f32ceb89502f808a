"""Over-dispersed starting distributions for annealed particles."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor

from ..flows.gaussian_fit import ascend
from ..target.density import Target

__all__ = ["TemperedStart", "overdispersed_base"]


SLACK = 10.0  #: nats


class TemperedStart:
    """N(loc, diag(scale²)), uniform on angles."""

    def __init__(self, loc: Tensor, scale: Tensor, angles: Tensor) -> None:
        self.loc, self.scale, self.angles = loc, scale, angles.to(loc.device)

    def sample(self, num: int) -> Tensor:
        x = self.loc + self.scale * self.loc.new_empty(num, len(self.loc)).normal_()
        return torch.where(self.angles, torch.empty_like(x).uniform_(-pi, pi), x)

    def log_prob_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u = (x - self.loc) / self.scale
        normal = -0.5 * u.square() - self.scale.log() - 0.5 * log(2 * pi)
        log_b = torch.where(self.angles, -log(2 * pi), normal).sum(-1)
        return log_b, torch.where(self.angles, 0.0, -u / self.scale)


def overdispersed_base(target: Target, num: int) -> TemperedStart:
    """A Gaussian twice as wide as the better half of many points, moved uphill to their modes.

    They start on scales up to eight times those of :meth:`~pyro_flowsamp.Target.initial_points`,
    and any whose log density ends within :data:`SLACK` of that half's is kept too: without, a mode
    that is far out, or a little lower than another, may have no part in the base.
    """
    contexts = 1 if target.contexts is None else len(target.contexts)
    x = target.initial_points(num)
    octaves = torch.where(target.angles, 0.0, 3 * torch.rand_like(x[:, :1]))
    x = ascend(target, x * 2**octaves, steps=300, rate=0.3)[-1]
    with torch.no_grad():
        log_p = target.log_prob(x).view(-1, contexts)  # at several contexts, of each
    middle = log_p.sort(0, descending=True).values[len(log_p) // 2 - 1]
    x = x[(log_p >= middle - SLACK).flatten()]
    return TemperedStart(x.mean(0), 2 * x.std(0) + 1.0, target.angles)
