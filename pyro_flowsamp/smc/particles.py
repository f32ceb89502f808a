r"""Particles carried through a sequence of densities by maps, and corrected on the way.

Densities :math:`\tilde f_0, \dots, \tilde f_K`, of which the first can be sampled, and bijections
:math:`T_k` that should, but need not, carry :math:`f_{k-1}` to :math:`f_k`. A particle that moves
from :math:`x` to :math:`x' = T_k(x)` takes the weight

.. math:: \Delta\log w = \log\tilde f_k(x') - \log\tilde f_{k-1}(x)
          + \log\left|\det \partial T_k / \partial x\right| .

By the change of variables :math:`\int \tilde f_{k-1}(x)\,e^{\Delta\log w}\,h(T_k(x))\,dx = \int
\tilde f_k(x')\,h(x')\,dx'` for every function :math:`h`, so that weighted particles stay properly
weighted; resampling and moves that leave :math:`f_k` invariant keep them so (Del Moral et al.,
2006, https://doi.org/10.1111/j.1467-9868.2006.00553.x; with flows Arbel et al., 2021,
https://arxiv.org/abs/2102.07501). The product of the mean weights is an unbiased estimate of
:math:`Z_K / Z_0` where the maps, the densities and the step sizes were fixed beforehand, whether or
not the particles decide when to resample.

One condition: :math:`\tilde f_{k-1}` is positive wherever :math:`\tilde f_k \circ T_k` is. A map
that draws away from the edge of a support leaves mass behind that no weight makes up for; away from
a steep slope it leaves weights so large and so rare that no sample shows them, and their mean comes
out too low, with a small error. So a stage may leave a random share :math:`\epsilon` of the
particles behind, the *defensive weight*, and weigh all by the mixture of the two ways to be at
:math:`x'` (a defensive mixture: Hesterberg, 1995,
https://doi.org/10.1080/00401706.1995.10484303),

.. math:: \Delta\log w = \log\tilde f_k(x') - \log\Bigl[(1 - \epsilon)\,\tilde f_{k-1}
          \bigl(T_k^{-1} x'\bigr) \bigl|\det \partial T_k^{-1} / \partial x'\bigr| +
          \epsilon\,\tilde f_{k-1}(x')\Bigr] .

With each particle left behind with probability :math:`\epsilon`, whatever its place, the bracket is
the density of where it ends when it starts from :math:`\tilde f_{k-1}`: particles stay properly
weighted. Now :math:`\Delta\log w \le \log\tilde f_k(x') - \log\tilde f_{k-1}(x') -
\log\epsilon`: however bad the map, weights are at most :math:`1/\epsilon` times those without it.

Particles live on *islands* that never exchange any, so that the spread of their estimates is an
honest standard error. Islands of :func:`~pyro_flowsamp.smc.tempering.tempered_smc` have their
inverse temperatures in common.
"""

from __future__ import annotations

from math import inf, log
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..transitions import hamiltonian
from ..weights import Estimate, ess_fraction, log_mean_weight

__all__ = ["Particles", "init", "resample", "reweight", "systematic"]


class Particles(NamedTuple):
    r"""R islands of n particles each.

    Attributes:
        state: Positions with all that is known of them at the current density; ``R·n`` rows.
        log_w: Log weights since the island was last resampled, ``(R, n)``, float64.
        log_z: Log of the product of mean weights up to then, ``(R,)``, float64.
        betas: Inverse temperatures that were visited, ``(stages + 1, R)``; None for other paths.

    Example:
        >>> from pyro_flowsamp.transitions.hamiltonian import HMCState
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> state = HMCState(x, x[:, 0].double(), x, x, x[:, 0], x[:, 0])
        >>> log_w = torch.tensor([[1.0, 3.0]], dtype=torch.double).log()
        >>> particles = Particles(state, log_w, torch.zeros(1))
        >>> float(particles.mean(x).value)  # (1 * 0 + 3 * 1) / 4
        0.75
        >>> round(float(particles.evidence.value.exp()), 6)  # the mean weight
        2.0
    """

    state: Any
    log_w: Tensor
    log_z: Tensor
    betas: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """Positions, ``(R·n, d)``."""
        return self.state.x

    @property
    def log_weights(self) -> Tensor:
        r"""Log weights over all islands, ``(R·n,)``: averages with them estimate :math:`f_k`."""
        return (self.log_w + self.log_z[:, None]).flatten()

    @property
    def evidences(self) -> Tensor:
        r"""Each island's estimate of :math:`\log (Z_k/Z_0)`, ``(R,)``."""
        return self.log_z + self.log_w.logsumexp(-1) - log(self.log_w.shape[-1])

    @property
    def evidence(self) -> Estimate:
        """The log of the mean over islands, whose mean is unbiased, and its standard error.

        It has R - 1 degrees of freedom; on one island the error is not known. What all islands
        lack, since moves mix slowly, their spread does not show: see
        :func:`~pyro_flowsamp.tempered_smc`.
        """
        islands = len(self.evidences)
        return Estimate(*log_mean_weight(self.evidences), islands - 1 if islands > 1 else inf)

    def mean(self, values: Tensor) -> Estimate:
        r"""Average of values ``(R·n, ...)`` under :math:`f_k`, with an error from the islands.

        With island averages :math:`m_r` and evidences :math:`Z_r`, the mean is :math:`m = \sum_r
        \omega_r m_r`, :math:`\omega_r = Z_r / \sum_s Z_s`, and its standard error, by the delta
        method, :math:`\bigl(\tfrac{R}{R-1} \sum_r \omega_r^2 (m_r - m)^2\bigr)^{1/2}`.
        """
        islands, num = self.log_w.shape
        values = values.double().unflatten(0, (islands, num))
        shape = (islands, num) + (1,) * (values.dim() - 2)
        weights = self.log_w.softmax(-1).reshape(shape)
        means = torch.where(weights > 0, weights * values, 0.0).sum(
            1
        )  # x of weight zero may be NaN
        share = self.evidences.softmax(0).reshape((islands,) + (1,) * (values.dim() - 2))
        mean = (share * means).sum(0)
        variance = (share * (means - mean)).square().sum(0)
        factor = islands / (islands - 1) if islands > 1 else float("nan")
        return Estimate(mean, (factor * variance).sqrt())

    def equally_weighted(self) -> Tensor:
        """Equally weighted draws, one for each particle, islands in a row, ``(R·n, d)``."""
        return resample(self, torch.inf).x if bool(self.log_w.any()) else self.x

    def draw(self, num: int) -> Tensor:
        """Equally weighted draws ``(num, d)``, by systematic resampling over all islands."""
        return self.x[systematic(self.log_weights[None], num)[0]]


def init(x: Tensor, density: hamiltonian.Density, islands: int = 1) -> Particles:
    r"""Equally weighted draws ``(R·n, d)`` of :math:`f_0`, at unit scale.

    Arguments:
        x: The draws.
        density: Makes states of positions.
        islands: The number of islands R.

    Example:
        >>> from pyro_flowsamp.transitions.hamiltonian import HMCState
        >>> def normal(x):
        ...     log_pi = -0.5 * x.double().square().sum(-1)
        ...     return HMCState(x, log_pi, -x, x, log_pi, torch.zeros_like(log_pi))
        >>> particles = init(torch.randn(6, 1), normal, islands=2)
        >>> particles.log_w.shape, particles.evidences
        (torch.Size([2, 3]), tensor([0., 0.], dtype=torch.float64))
    """
    state = density(x)
    log_w = torch.zeros_like(state.log_pi).unflatten(0, (islands, -1))
    return Particles(state, log_w, torch.zeros_like(log_w[:, 0]))


def reweight(cloud: Particles, state: Any, ladj: Tensor | float = 0.0) -> Particles:
    """Gives every particle its state at the next density, and the weight of getting there.

    A particle that has left the support has lost its weight for good: where it comes from a density
    of zero, or its gain is not a number, it goes to zero.

    Arguments:
        cloud: The particles.
        state: Their states at the next density.
        ladj: Log-determinants ``(N,)`` of the map that has carried them there.

    Example:
        >>> from pyro_flowsamp.transitions.hamiltonian import HMCState
        >>> def density(x, beta):
        ...     log_pi = -0.5 * beta * x.double().square().sum(-1)
        ...     return HMCState(x, log_pi, -beta * x, x, log_pi, torch.zeros_like(log_pi))
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> particles = init(x, lambda x: density(x, 1.0))
        >>> reweight(particles, density(x, 2.0)).log_w
        tensor([[ 0., -2.]], dtype=torch.float64)
    """
    gain = state.log_pi - cloud.state.log_pi + ladj
    gain = torch.where(gain.isfinite(), gain, -torch.inf)
    return cloud._replace(state=state, log_w=cloud.log_w + gain.view_as(cloud.log_w))


def systematic(log_w: Tensor, draws: int | None = None) -> Tensor:
    """Indices of a systematic resampling of each row, ``(R, n)`` → ``(R, draws)``.

    Arguments:
        log_w: Log weights.
        draws: The number of indices of each row; by default n.

    Example:
        >>> log_w = torch.tensor([[0.5, 0.0, 0.5]]).log()
        >>> systematic(log_w, draws=4)  # as many draws of each as its weight says
        tensor([[0, 0, 2, 2]])
    """
    islands, num = log_w.shape
    draws = num if draws is None else draws
    edges = log_w.softmax(-1).cumsum(-1)
    offset = torch.rand(islands, 1, dtype=edges.dtype, device=edges.device)
    grid = (torch.arange(draws, device=edges.device) + offset) / draws
    return torch.searchsorted(edges, grid * edges[:, -1:]).clamp(max=num - 1)


def resample(cloud: Particles, below: float) -> Particles:
    """Resamples the islands whose effective sample size, as a fraction, is below a bound.

    Arguments:
        cloud: The particles.
        below: The bound.

    Returns:
        The particles; those of resampled islands have equal weights.

    Example:
        >>> from pyro_flowsamp.transitions.hamiltonian import HMCState
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> state = HMCState(x, x[:, 0].double(), x, x, x[:, 0], x[:, 0])
        >>> log_w = torch.tensor([[-torch.inf, 0.0]], dtype=torch.double)
        >>> after = resample(Particles(state, log_w, torch.zeros(1).double()), below=0.9)
        >>> after.x.tolist(), after.log_w.tolist(), after.log_z.exp().tolist()
        ([[1.0], [1.0]], [[0.0, 0.0]], [0.5])
    """
    islands, num = cloud.log_w.shape
    poor = ess_fraction(cloud.log_w.mT)[:, None] < below
    stay = torch.arange(num, device=poor.device).expand(islands, -1)
    index = torch.where(poor, systematic(cloud.log_w), stay)
    rows = (index + num * torch.arange(islands, device=poor.device)[:, None]).flatten()
    state = type(cloud.state)(*(value[rows] for value in cloud.state))
    log_z = torch.where(poor[:, 0], cloud.evidences, cloud.log_z)
    log_w = torch.where(poor, 0.0, cloud.log_w)
    return cloud._replace(state=state, log_w=log_w, log_z=log_z)
