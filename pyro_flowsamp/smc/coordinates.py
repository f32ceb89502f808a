r"""Whitened coordinates of a target: the density of :math:`u`, where :math:`x = \mu + L u`.

Particles that are moved coordinate by coordinate cannot follow a ridge, and step sizes cannot suit
scales that differ by orders of magnitude. In coordinates in which the posterior has nearly unit
covariance both are easy. All linear algebra is in float64, so that a ridge with a correlation of
0.99999 keeps its width; the target itself is evaluated in its own type.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..flows.pathfinder import lower_factor
from ..target.density import Target

__all__ = ["WhitenedTarget", "of_reals"]


def of_reals(scale_tril: Tensor, real: Tensor) -> Tensor:
    """The lower Cholesky factor of the real coordinates' covariance, the identity for angles.

    The covariance itself is not formed, so that a narrow ridge keeps its width.

    Arguments:
        scale_tril: The factor of all coordinates, ``(d, d)``.
        real: 1 for real coordinates and 0 for angles, ``(d,)``.

    Example:
        >>> factor = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
        >>> of_reals(factor, torch.tensor([1.0, 0.0]))
        tensor([[2., 0.],
                [0., 1.]])
    """
    if bool((real > 0).all()):
        return scale_tril
    root = torch.cat([scale_tril * real[:, None], torch.diag(1 - real)], -1)
    return lower_factor(root)


class WhitenedTarget:
    r"""A target in the coordinates :math:`u = L^{-1}(x - \mu)`, with the log-det of the change.

    Its evidence is that of the target: :math:`\int \tilde p(\mu + L u)\,|\det L|\,du = Z`.

    Arguments:
        target: The target.
        loc: :math:`\mu`, ``(d,)``; not used for angles, which stay as they are.
        scale_tril: The lower Cholesky factor L of a covariance, ``(d, d)``.

    Attributes:
        dim, device, angles: Those of the target.
        dtype: float64.
        contexts: None; the density is at one context.

    Example:
        >>> target = Target.from_energy(lambda x: 0.5 * ((x - 3) / 2).square().sum(-1), 1)
        >>> whitened = WhitenedTarget(target, torch.tensor([3.0]), torch.tensor([[2.0]]))
        >>> log_p, grad = whitened.log_prob_and_grad(torch.ones(1, 1, dtype=torch.double))
        >>> round(float(log_p), 4), float(grad)  # -1/2 + log 2, and -u
        (0.1931, -1.0)
    """

    dtype = torch.double
    contexts: Tensor | None = None

    def __init__(self, target: Target, loc: Tensor, scale_tril: Tensor) -> None:
        self.target = target
        self.dim, self.device, self.angles = target.dim, target.device, target.angles
        real = (~target.angles).to(loc.device).double()
        self.loc = (loc.double() * real).to(self.device)
        self.scale_tril = of_reals(scale_tril.double(), real).to(self.device)
        self.log_det = self.scale_tril.diagonal().log().sum()

    @classmethod
    def restored(cls, target: Target, parts: dict[str, Tensor]) -> WhitenedTarget:
        """The coordinates of a target with the same numbers, bit by bit.

        Arguments:
            target: The target.
            parts: The value of :attr:`parts`.
        """
        made = cls(target, parts["loc"], parts["scale_tril"])
        made.__dict__.update(parts)
        return made

    @property
    def parts(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint stores."""
        return {"loc": self.loc, "scale_tril": self.scale_tril, "log_det": self.log_det}

    def to_x(self, u: Tensor) -> Tensor:
        """Points ``(N, d)`` in the target's own coordinates and type."""
        return (self.loc + u.double() @ self.scale_tril.mT).to(self.target.dtype)

    def to_u(self, x: Tensor) -> Tensor:
        """Points of the target ``(N, d)`` in whitened coordinates, float64."""
        centred = (x.double() - self.loc).mT
        return torch.linalg.solve_triangular(self.scale_tril, centred, upper=False).mT

    def log_prob(self, u: Tensor) -> Tensor:
        """Log density of u, ``(N, d) → (N,)``, float64."""
        return self.target.log_prob(self.to_x(u)).double() + self.log_det

    def log_prob_and_grad(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log density of u and its gradient, ``(N,)`` and ``(N, d)``, float64."""
        log_p, grad = self.target.log_prob_and_grad(self.to_x(u))
        return log_p.double() + self.log_det, grad.double() @ self.scale_tril

    def wrap(self, u: Tensor) -> Tensor:
        r"""Brings angles into :math:`[-\pi, \pi)`."""
        return self.target.wrap(u)
