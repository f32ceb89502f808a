r"""Paths of Boltzmann densities, and by how much a velocity field fails to follow one.

A path of energies :math:`f_t`, from a base that can be sampled, :math:`f_0(u) = \sum_i |u_i|^p`, to
the target, :math:`f_1 = -\log\tilde p`, is followed by a velocity :math:`V` exactly where the
*deformation error*

.. math:: E_t = \partial_t f_t + \nabla f_t \cdot V_t - \nabla\cdot V_t + C_t,
          \qquad C_t = \partial_t \log Z_t,

is zero (Máté & Fleuret, 2023, https://arxiv.org/abs/2301.07388). It is the continuity equation
divided by the density, and may be demanded at any points, wherever they come from (LFIS: Tian et
al., 2024, https://arxiv.org/abs/2405.06672; NETS: Albergo & Vanden-Eijnden, 2024,
https://arxiv.org/abs/2410.02711). Along a trajectory of V

.. math:: \log w = \int_0^1 (\nabla\cdot V - \nabla f_t \cdot V - \partial_t f_t)\,dt
          = f_0(u_0) - f_1(u_1) + \int_0^1 \nabla\cdot V\,dt,

the importance weight of the trajectory's end, up to :math:`Z_0`, whatever V is: :math:`\mathbb E[w]
= Z_1 / Z_0`. All this happens in coordinates :math:`u = (x - \mu) / \sigma` in which the base is
standard.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import log, pi
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...nn.mlp import TimeMLP
from ...target.density import Target

__all__ = ["BoltzmannPath", "EnergyMLP", "PathState", "diffusion"]


class EnergyMLP(TimeMLP):
    """A scalar function of time and place, with its derivatives in closed form.

    Example:
        >>> energy, x = EnergyMLP(2, 8), torch.ones(1, 2, requires_grad=True)
        >>> _ = [nn.init.normal_(p) for p in energy.parameters()]
        >>> value, rate, slope = energy.with_derivatives(torch.tensor([0.5]), x)
        >>> torch.allclose(slope, torch.autograd.grad(value.sum(), x)[0], atol=1e-4)
        True
    """

    def __init__(self, features: int, hidden_features: int = 64, kernels: int = 1) -> None:
        super().__init__(features, 1, hidden_features, kernels)

    def with_derivatives(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r""":math:`g`, :math:`\partial_t g` ``(N,)`` and :math:`\nabla g` ``(N, d)``; t ``(N,)``."""
        second, first_slope, second_slope = self.layers(t, x)
        value = self._value(x, second)[..., 0]  # (M, N)
        back = (second_slope * self.out_weight) @ self.mid_weight * first_slope
        denergy_dt, grad_energy = (back * self.time_weight).sum(-1), back @ self.in_weight
        if self.kernels == 1:
            return value[0], denergy_dt[0], grad_energy[0]
        mix = self.mix(t)
        assert isinstance(mix, Tensor)
        pull = (self.centres - t) * (self.kernels - 1) ** 2
        mix_rate = mix * (pull - (mix * pull).sum(0))
        return (
            (mix * value).sum(0),
            (mix_rate * value + mix * denergy_dt).sum(0),
            (mix[..., None] * grad_energy).sum(0),
        )


class FixedTerms(NamedTuple):
    r"""The terms of a path that are not learned, at N points.

    Attributes:
        energy: :math:`f_t`, ``(N,)``.
        denergy_dt: :math:`\partial_t f_t`, ``(N,)``.
        grad_energy: :math:`\nabla f_t`, ``(N, d)``.
        dgrad_dt: :math:`\partial_t \nabla f_t`; zero where energies are given.

    Example:
        >>> path = BoltzmannPath(1, 2.0, None, None)  # from x² to 2x²
        >>> target = Target.from_energy(lambda x: 2 * x.square().sum(-1), 1)
        >>> found = path.fixed_terms(target, torch.tensor([0.5]), torch.tensor([[1.0]]))
        >>> found.energy, found.denergy_dt, found.grad_energy
        (tensor([1.5000]), tensor([1.]), tensor([[3.]]))
    """

    energy: Tensor
    denergy_dt: Tensor
    grad_energy: Tensor
    dgrad_dt: Tensor


class PathState(NamedTuple):
    r"""N points of a path; a :class:`~pyro_flowsamp.transitions.hamiltonian.HMCState`, and more.

    Attributes:
        z, x: Positions u, ``(N, d)``.
        log_pi: :math:`-f_t`, ``(N,)``, float64.
        grad: :math:`-\nabla f_t`, ``(N, d)``.
        denergy_dt, grad_energy, dgrad_dt: Without the learned term, see :class:`FixedTerms`.

    Example:
        >>> path = BoltzmannPath(1, 2.0, None, None)  # from x² to 2x²
        >>> target = Target.from_energy(lambda x: 2 * x.square().sum(-1), 1)
        >>> state = path.state_at(target, torch.tensor([0.5]), torch.tensor([[1.0]]))
        >>> state.log_pi, state.grad
        (tensor([-1.5000], dtype=torch.float64), tensor([[-3.]]))
    """

    z: Tensor
    log_pi: Tensor
    grad: Tensor
    x: Tensor
    denergy_dt: Tensor
    grad_energy: Tensor
    dgrad_dt: Tensor


Energy = Callable[[Tensor, Tensor], Tensor]


class BoltzmannPath(nn.Module):
    r"""Energies from base to target: linear, linear with a learned term, or given.

    .. math:: f_t = (1-\beta_t) f_0 + \beta_t f_1 \;[\,+\; s\,t(1-t) f^\theta_t\,],
              \qquad \beta_t = \frac{\kappa^t - 1}{\kappa - 1},

    where :math:`\kappa = 1`, so that :math:`\beta_t = t`, unless the base is so wide that most
    happens near its end: from a variance s² to 1 the logarithm of the precision then grows steadily
    with :math:`\kappa = s^2`.

    Arguments:
        features: The dimension.
        power: :math:`p` of the base.
        learned_term: :math:`f^\theta`, or None.
        given: :math:`f_t(x)` of times ``(N,)`` and places ``(N, d)``, instead; ``(N,)``.

    Attributes:
        loc, scale: :math:`\mu` and :math:`\sigma`, ``(d,)``.
        log_kappa: :math:`\log\kappa`, 0-d.
        constants: By how much given energies exceed those of base and target, ``(2,)``.
        learned_fraction: :math:`s`, the weight of the learned term: 0 before training. While it is
            0, the learned term is not evaluated and has no gradient.

    Example:
        >>> path = BoltzmannPath(1, 2.0, None, None)  # from x² to 2x²
        >>> target, ones = Target.from_energy(lambda x: 2 * x.square().sum(-1), 1), torch.ones(3, 1)
        >>> path.state_at(target, torch.tensor([0.0, 0.5, 1.0]), ones).log_pi
        tensor([-1.0000, -1.5000, -2.0000], dtype=torch.float64)
    """

    loc: Tensor
    scale: Tensor
    log_kappa: Tensor
    constants: Tensor

    def __init__(
        self, features: int, power: float, learned_term: EnergyMLP | None, given: Energy | None
    ) -> None:
        super().__init__()
        self.power, self.learned_term, self.given = power, learned_term, given
        self.register_buffer("loc", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("log_kappa", torch.zeros(()))
        self.register_buffer("constants", torch.zeros(2))
        self.learned_fraction = 0.0

    def get_extra_state(self) -> float:
        """The part of the state that is no tensor: the learned fraction."""
        return self.learned_fraction

    def set_extra_state(self, state: float) -> None:
        self.learned_fraction = state

    def base(self, u: Tensor, width: float = 1.0) -> tuple[Tensor, Tensor]:
        r""":math:`f_0(u/\text{width})` and its gradient."""
        v = u / width
        grad_energy = v.abs().pow(self.power - 1) * v.sign() * (self.power / width)
        return v.abs().pow(self.power).sum(-1), grad_energy

    def beta_at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\beta_t` and its rate."""
        steady = self.log_kappa.abs() < 1e-3
        log_kappa = torch.where(steady, 1.0, self.log_kappa)
        end = torch.expm1(log_kappa)
        beta = torch.where(steady, t, torch.expm1(log_kappa * t) / end)
        return beta, torch.where(
            steady, torch.ones_like(t), log_kappa * torch.exp(log_kappa * t) / end
        )

    def target_energy(self, target: Target, u: Tensor) -> Tensor:
        """:math:`f_1(u)`, the change of volume included."""
        return -target.log_prob(self.loc + self.scale * u) - self.scale.log().sum()

    def fixed_terms(self, target: Target, t: Tensor, u: Tensor) -> FixedTerms:
        """Energy and derivatives without the learned term, at points ``(N, d)``, times ``(N,)``."""
        if self.given is not None:
            return self._given(t, u)
        f_0, g_0 = self.base(u)
        f_1, g_1 = _with_slope(lambda v: self.target_energy(target, v), u)
        beta, log_kappa = self.beta_at(t)
        gap, dgrad_dt = f_1 - f_0, g_1 - g_0
        energy = torch.where(t > 0, f_0 + beta * gap, f_0)  # also off the support: 0 times infinity
        return FixedTerms(
            energy, log_kappa * gap, g_0 + beta[:, None] * dgrad_dt, log_kappa[:, None] * dgrad_dt
        )

    def _given(self, t: Tensor, u: Tensor) -> FixedTerms:
        assert self.given is not None
        keep = u.requires_grad
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            v = u if keep else u.detach().requires_grad_()
            energy = self.given(t, self.loc + self.scale * v)
            if energy.shape != t.shape:
                raise ValueError(
                    f"the interpolation must return energies ({len(t)},), got {tuple(energy.shape)}"
                )
            energy = energy - self.constants[0].lerp(self.constants[1], t)
            denergy_dt, grad_energy = torch.autograd.grad(energy.sum(), (t, v), create_graph=keep)
        return FixedTerms(
            energy if keep else energy.detach(), denergy_dt, grad_energy, torch.zeros_like(u)
        )

    def extrapolate(
        self,
        t: Tensor,
        shift: Tensor,
        u: Tensor,
        denergy_dt: Tensor,
        grad_energy: Tensor,
        dgrad_dt: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Rate and slope a little later, ``t + shift``, without asking the target again."""
        if self.given is not None:
            _, denergy_dt, grad_energy, _ = self._given(t + shift, u)
            return denergy_dt, grad_energy
        (beta, log_kappa), (later, faster) = self.beta_at(t), self.beta_at(t + shift)
        passed = (later - beta) / log_kappa
        return denergy_dt * faster / log_kappa, grad_energy + passed[:, None] * dgrad_dt

    def learned_terms(self, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Energy, time derivative and gradient of the learned term."""
        if self.learned_term is None or not self.learned_fraction:
            zero = torch.zeros_like(t)
            return zero, zero, torch.zeros_like(u)
        value, denergy_dt, grad_energy = self.learned_term.with_derivatives(t, u)
        bump, bump_rate = self.learned_fraction * t * (1 - t), self.learned_fraction * (1 - 2 * t)
        return bump * value, bump_rate * value + bump * denergy_dt, bump[:, None] * grad_energy

    def state_at(
        self, target: Target, t: Tensor, u: Tensor, width: float = 1.0, learned_term: bool = True
    ) -> PathState:
        """Everything there is to know of points ``(N, d)`` at times ``(N,)``.

        ``width`` is that of the base of another, straight path; rate and slope stay of this one.
        """
        fixed = self.fixed_terms(target, t, u)
        energy, grad_energy = fixed.energy, fixed.grad_energy
        if width != 1:
            (f_0, g_0), (wide, g_wide), (beta, _) = (
                self.base(u),
                self.base(u, width),
                self.beta_at(t),
            )
            energy = energy + (1 - beta) * (wide - f_0)
            grad_energy = grad_energy + (1 - beta)[:, None] * (g_wide - g_0)
        if learned_term and self.learned_term is not None:
            more, _, steeper = self.learned_terms(t, u)
            energy, grad_energy = energy + more, grad_energy + steeper
        return PathState(u, -energy.double(), -grad_energy, u, *fixed[1:])

    def log_prob_at(self, s: float, state: PathState, t: float) -> Tensor:
        """:math:`-f_s`, ``(N,)``, at points looked at at time t > 0, the target not asked again."""
        earlier, later = (torch.full_like(state.denergy_dt, time) for time in (s, t))
        if self.given is not None:
            return -self._given(earlier, state.x).energy.double()
        if s == 0:
            return -self.base(state.x)[0].double()
        (before, _), (after, log_kappa) = self.beta_at(earlier), self.beta_at(later)
        learned_term = (
            self.learned_terms(earlier, state.x)[0] - self.learned_terms(later, state.x)[0]
        )
        return (
            state.log_pi - ((before - after) / log_kappa * state.denergy_dt + learned_term).double()
        )

    @torch.no_grad()
    def check(self, target: Target, u: Tensor) -> None:
        """Sets :attr:`constants`, where energies are given.

        Raises:
            ValueError: They are no function of times and places, or do not end where they should.
        """
        if self.given is None:
            return
        zeros, ones = torch.zeros_like(u[:, 0]), torch.ones_like(u[:, 0])
        try:
            first, last = (
                self.fixed_terms(target, zeros, u).energy,
                self.fixed_terms(target, ones, u).energy,
            )
        except (AttributeError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"the interpolation must map times (N,) and places (N, d) to differentiable "
                f"energies (N,): {error}"
            ) from error
        truths = self.base(u)[0], self.target_energy(target, u)
        ends = "the base's at time 0", "the target's at time 1"
        for i, (energy, truth, end) in enumerate(zip((first, last), truths, ends)):
            gap = energy - truth
            if not (gap - gap.mean()).abs().max() <= 1e-3 * (1 + truth.abs().max()):
                raise ValueError(f"the interpolation's energies are not {end}, up to a constant")
            self.constants[i] += gap.mean()


def diffusion(weights: Tensor, means: Tensor, variances: Tensor, scale: float) -> Energy:
    r"""The energies of a Gaussian mixture that diffuses into the base, which has base_power 2.

    At diffusion time :math:`s = t^2` the component :math:`N(\mu, \Sigma)` has become

    .. math:: N\bigl(t \mu,\; t^2 \Sigma + (1 - t^2)\, \sigma^2 / 2\bigr),

    (Máté & Fleuret, 2023, Sec. 3.3; :math:`\sigma^2 / 2` is the variance of
    :math:`e^{-|x/\sigma|^2}`). In t itself, with :math:`\sqrt t \mu`, the velocity would be
    infinite at the start.

    Arguments:
        weights: Of the components, ``(K,)``.
        means: ``(K, d)``.
        variances: The diagonals of the covariances, ``(K, d)``, or ``(K, 1)`` where all are equal.
        scale: :math:`\sigma` of the base, as given to the guide.

    Example:
        >>> one = torch.ones(1, 1)
        >>> energy = diffusion(torch.ones(1), 3 * one, one, scale=2**0.5)  # from N(0, 1) to N(3, 1)
        >>> energy(torch.tensor([0.0, 1.0]), torch.tensor([[0.0], [3.0]]))  # log(2π) / 2
        tensor([0.9189, 0.9189])
    """
    return partial(_diffused, weights=weights, means=means, variances=variances, scale=scale)


def _diffused(
    t: Tensor, x: Tensor, weights: Tensor, means: Tensor, variances: Tensor, scale: float
) -> Tensor:
    clock = t[:, None, None]
    variance = clock.square() * variances + (1 - clock.square()) * scale**2 / 2
    variance = variance.expand(len(x), *means.shape)
    square = (x[:, None] - clock * means).square() / variance
    log_normal = -0.5 * (square + variance.log() + log(2 * pi)).sum(-1)
    return -(log_normal + weights.log()).logsumexp(-1)


def _with_slope(energy: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    """An energy and its gradient, differentiable where the points are."""
    keep = u.requires_grad
    with torch.enable_grad():
        v = u if keep else u.detach().requires_grad_()
        value = energy(v)
        (grad_energy,) = torch.autograd.grad(value.sum(), v, create_graph=keep)
    return (value if keep else value.detach()), grad_energy
