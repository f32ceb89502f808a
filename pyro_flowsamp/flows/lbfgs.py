r"""Limited-memory inverse Hessians of many paths side by side.

A pair :math:`(s, y)` is a step and the change of the energy's gradient along it. Pairs are stored
divided by :math:`\sqrt{s^\top y}`, which the BFGS update does not notice, so that :math:`s^\top y =
1` for each. With the pairs as columns of :math:`S, Y`, the upper triangle :math:`R` of
:math:`S^\top Y`, :math:`D = \mathrm{diag}(\alpha)` and :math:`M = I + Y^\top D Y`,

.. math::
    H = D + [DY, S]\, \gamma\, [DY, S]^\top, \quad
    \gamma = \begin{pmatrix} 0 & -R^{-1} \\ -R^{-\top} & R^{-\top} M R^{-1} \end{pmatrix}.

A slot of the memory that is not used yet holds zeros, and one on the diagonal of :math:`R`: it
adds nothing.

References:
    Richard H. Byrd, Jorge Nocedal and Robert B. Schnabel, *Representations of quasi-Newton matrices
    and their use in limited memory methods*, 1994, https://doi.org/10.1007/BF01582063.

    Jean Charles Gilbert and Claude Lemaréchal, *Some numerical experiments with variable-storage
    quasi-Newton algorithms*, 1989, https://doi.org/10.1007/BF01589113.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["InverseHessians", "LowRankFactor"]


class LowRankFactor(NamedTuple):
    r"""The factor :math:`A = \mathrm{diag}(\sigma)\,(I + Q (L - I) Q^\top)` of P covariances.

    Attributes:
        scale: :math:`\sigma`, ``(P, d)``.
        basis: :math:`Q` with orthonormal columns, ``(P, d, r)``.
        root: The lower-triangular :math:`L`, ``(P, r, r)``.

    Example:
        >>> factor = LowRankFactor(torch.ones(1, 2), torch.eye(2)[None], 3 * torch.eye(2)[None])
        >>> factor.times(torch.ones(5, 1, 2))[0]
        tensor([[3., 3.]])
    """

    scale: Tensor
    basis: Tensor
    root: Tensor

    def times(self, u: Tensor) -> Tensor:
        """The products A u of vectors ``(..., P, d)``."""
        inside = u[..., None, :] @ self.basis  # (..., P, 1, r)
        change = (inside @ self.root.mT - inside) @ self.basis.mT
        return self.scale * (u + change[..., 0, :])

    def log_det(self) -> Tensor:
        """The logarithm of the determinant of A, ``(P,)``."""
        return self.scale.log().sum(-1) + self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def dense(self) -> Tensor:
        """The matrices A, ``(P, d, d)``; they are not triangular."""
        eye = torch.eye(self.root.shape[-1], dtype=self.root.dtype, device=self.root.device)
        change = self.basis @ (self.root - eye) @ self.basis.mT
        return self.scale[..., None] * (change + torch.eye(change.shape[-1]).to(change))


class InverseHessians(NamedTuple):
    """Inverse Hessians of the energy on P paths, each a diagonal and at most J pairs.

    Attributes:
        diagonal: The diagonals, ``(P, d)``.
        steps, changes: The normalised pairs, the latest last, ``(P, J, d)``.

    Example:
        >>> hessians = InverseHessians.scaled(torch.ones(1, 2).double(), memory=3)
        >>> step = torch.tensor([[1.0, 0.0]]).double()
        >>> hessians = hessians.updated(step, 4 * step, torch.ones(1) > 0)
        >>> hessians.times(torch.ones(1, 2).double())
        tensor([[0.2500, 0.2500]], dtype=torch.float64)
    """

    diagonal: Tensor
    steps: Tensor
    changes: Tensor

    @classmethod
    def scaled(cls, diagonal: Tensor, memory: int) -> InverseHessians:
        """Diagonal matrices, without pairs."""
        paths, dim = diagonal.shape
        empty = diagonal.new_zeros(paths, memory, dim)
        return cls(diagonal, empty, empty)

    def has_pairs(self) -> Tensor:
        """Tells which paths have at least one pair, ``(P,)``."""
        return (self.steps[:, -1] != 0).any(-1)

    def updated(self, step: Tensor, change: Tensor, which: Tensor) -> InverseHessians:
        r"""Appends pairs, and updates the diagonals by

        .. math::
            \alpha_l'^{-1} = \frac{a}{b\,\alpha_l} + \frac{y_l^2}{b}
                - \frac{a\, s_l^2}{b\, c\, \alpha_l^2}, \quad
            a = y^\top D y,\; b = s^\top y,\; c = s^\top D^{-1} s .

        Arguments:
            step, change: The pairs, ``(P, d)``.
            which: The paths that get theirs, with :math:`s^\top y > 0`, ``(P,)``.
        """
        which = which[:, None]
        norm = torch.where(which, (step * change).sum(-1, keepdim=True), 1.0).sqrt()
        s, y = step / norm, change / norm
        a = (y.square() * self.diagonal).sum(-1, keepdim=True) / self.diagonal
        share = s.square() / self.diagonal
        share = share / share.sum(-1, keepdim=True)
        inverse = (a * (1 - share)).clamp(min=0) + y.square()
        tiny = torch.finfo(a.dtype).eps * a  # a coordinate whose gradient did not change at all
        diagonal = torch.where(which, 1 / torch.maximum(inverse, tiny), self.diagonal)
        steps = torch.cat([self.steps[:, 1:], s[:, None]], 1)
        changes = torch.cat([self.changes[:, 1:], y[:, None]], 1)
        return InverseHessians(
            diagonal,
            torch.where(which[..., None], steps, self.steps),
            torch.where(which[..., None], changes, self.changes),
        )

    def times(self, v: Tensor) -> Tensor:
        """The products H v of vectors ``(P, d)``."""
        inverse, middle = self._middle()
        scaled = self.diagonal * v
        first = inverse @ (self.steps @ v[..., None])
        second = inverse.mT @ (middle @ first - self.changes @ scaled[..., None])
        on_changes = self.diagonal * (self.changes.mT @ first)[..., 0]
        return scaled - on_changes + (self.steps.mT @ second)[..., 0]

    def factor(self) -> tuple[LowRankFactor, Tensor]:
        """Factors A of H = A Aᵀ, and which of them exist in floating point, ``(P,)``."""
        inverse, middle = self._middle()
        scale = self.diagonal.sqrt()
        columns = torch.cat(
            [self.changes * scale[:, None], self.steps / scale[:, None]], 1
        ).mT  # (P, d, 2J)
        fine = torch.isfinite(columns).all(-1).all(-1)
        basis, upper = torch.linalg.qr(torch.where(fine[:, None, None], columns, 0.0))
        lower_right = inverse.mT @ middle @ inverse
        gamma = torch.cat(
            [
                torch.cat([torch.zeros_like(inverse), -inverse], -1),
                torch.cat([-inverse.mT, lower_right], -1),
            ],
            -2,
        )
        eye = torch.eye(upper.shape[-2], dtype=upper.dtype, device=upper.device)
        inner = eye + upper @ gamma @ upper.mT
        fine = fine & torch.isfinite(inner).all(-1).all(-1)
        inner = torch.where(fine[:, None, None], 0.5 * (inner + inner.mT), eye)
        root, info = torch.linalg.cholesky_ex(inner)
        fine = fine & (info == 0)
        return LowRankFactor(scale, basis, torch.where(fine[:, None, None], root, eye)), fine

    def _middle(self) -> tuple[Tensor, Tensor]:
        """The matrices R⁻¹ and M, ``(P, J, J)``."""
        products = self.steps @ self.changes.mT
        eye = torch.eye(products.shape[-1], dtype=products.dtype, device=products.device)
        upper = products.triu(1) + eye
        inverse = torch.linalg.solve_triangular(upper, eye.expand_as(upper), upper=True)
        return inverse, eye + (self.changes * self.diagonal[:, None]) @ self.changes.mT
