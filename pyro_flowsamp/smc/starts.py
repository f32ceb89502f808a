"""Over-dispersed starting distributions for annealed particles."""

from __future__ import annotations

from math import lgamma, log, pi

import torch
from torch import Tensor
from torch.distributions import Gamma

from ..flows.gaussian_fit import ascend
from ..target.density import Target
from .coordinates import WhitenedTarget, of_reals

__all__ = ["PriorStart", "StudentStart", "TemperedStart", "overdispersed_base", "stretched_points"]


SLACK = 10.0  #: nats
OUTER_SHARE = 0.1  #: of the mass of a Student-t distribution that is called its outside
#: of the mass of a Gaussian: its tails are so thin that particles of a target which is not wider
#: are never there
GAUSSIAN_OUTER_SHARE = 1e-6
COVERED = 3.0  #: standard deviations of a Gaussian base up to which points are covered
MAX_OCTAVES = 3.0  #: the greatest power of two by which points are stretched


class TemperedStart:
    """N(loc, diag(scale²)), uniform on angles.

    Arguments:
        loc, scale: Mean and standard deviation of each coordinate, ``(d,)``.
        angles: Mask of periodic coordinates, ``(d,)``.

    Example:
        >>> angles = torch.tensor([False, True])
        >>> start = TemperedStart(torch.zeros(2), torch.tensor([2.0, 1.0]), angles)
        >>> log_b, grad = start.log_prob_and_grad(torch.tensor([[4.0, 1.0]]))
        >>> grad  # -x / scale², and nothing along the angle
        tensor([[-1.,  0.]])
        >>> bool(start.sample(100)[:, 1].abs().max() <= pi)
        True
    """

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

    def outside(self, x: Tensor) -> Tensor:
        """Mask of points that are farther out than nearly all draws, ``(N, d) → (N,)``.

        The bound of the squared distance is the quantile of the chi-squared distribution at 1 -
        :data:`GAUSSIAN_OUTER_SHARE`.
        """
        real = int((~self.angles).sum())
        if not real:
            return torch.zeros_like(x[:, 0], dtype=torch.bool)
        u = torch.where(self.angles, 0.0, (x - self.loc) / self.scale)
        from scipy.special import chdtri  # takes long to import

        return u.square().sum(-1) > float(chdtri(real, GAUSSIAN_OUTER_SHARE))


def stretched_points(target: Target, num: int) -> Tensor:
    r"""Points of finite density on several scales: initial points times random powers of two.

    The exponents are uniform up to :data:`MAX_OCTAVES`. A point stays where it was if its density
    would be zero: no power of two of points in a box around 50 is in this box. Angles stay too.

    Arguments:
        target: The target, whose :attr:`~pyro_flowsamp.Target.starts` are among the points.
        num: The number of points.

    Returns:
        The points, ``(num, d)``.

    Raises:
        ValueError: The density is NaN or zero at all initial points.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> bool(stretched_points(target, 64).abs().max() > 4)  # initial points are in (-2, 2)
        True
    """
    x = target.initial_points(num)
    octaves = torch.where(target.angles, 0.0, MAX_OCTAVES * torch.rand_like(x[:, :1]))
    stretched = x * 2**octaves
    with torch.no_grad():
        finite = torch.isfinite(target.log_prob(stretched))
    return torch.where(finite[:, None], stretched, x)


def overdispersed_base(target: Target, num: int) -> TemperedStart:
    """A Gaussian twice as wide as the better half of many points, moved uphill to their modes.

    They start on scales up to eight times those of :meth:`~pyro_flowsamp.Target.initial_points`
    where the density is not zero there, and any whose log density ends within :data:`SLACK` of that
    half's is kept too: without, a mode that is far out, or a little lower than another, may have no
    part in the base. It is made wider where such a point would be more than :data:`COVERED`
    standard deviations out.

    Arguments:
        target: The target.
        num: The number of points.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * (x - 5).square().sum(-1), 1)
        >>> base = overdispersed_base(target, 16)
        >>> base.loc.round(), bool(base.scale >= 1)
        (tensor([5.]), True)
    """
    contexts = 1 if target.contexts is None else len(target.contexts)
    x = ascend(target, stretched_points(target, num), steps=300, rate=0.3)[-1]
    with torch.no_grad():
        log_p = target.log_prob(x).view(-1, contexts)  # at several contexts, of each
    middle = log_p.sort(0, descending=True).values[len(log_p) // 2 - 1]
    x = x[(log_p >= middle - SLACK).flatten()]
    loc, scale = x.mean(0), 2 * x.std(0) + 1.0
    farthest = (x - loc).abs().amax(0) / COVERED
    return TemperedStart(loc, torch.maximum(scale, farthest), target.angles)


class StudentStart:
    r"""A multivariate Student-t distribution on real coordinates, uniform on angles.

    .. math:: b(x) \propto \Bigl(1 + \tfrac1\nu\,\|S^{-1}(x - m)\|^2\Bigr)^{-(\nu + k)/2}
              \qquad\text{for the } k \text{ real coordinates.}

    With a Gaussian base the weights of the last step to a target with heavier tails have an
    infinite variance, however short the step is, and an effective sample size does not show it.
    With a Student-t base of few degrees of freedom they are bounded for most targets.

    Arguments:
        loc: m, ``(d,)``, float64.
        scale_tril: S, lower triangular ``(d, d)``; rows and columns of angles are not used.
        angles: Mask ``(d,)`` of periodic coordinates.
        df: Degrees of freedom :math:`\nu`.

    References:
        Samuel Kotz and Saralees Nadarajah, *Multivariate t Distributions and Their Applications*,
        2004, https://doi.org/10.1017/CBO9780511550683

    Example:
        >>> start = StudentStart(torch.zeros(1), torch.eye(1), torch.tensor([False]), df=1.0)
        >>> log_b, grad = start.log_prob_and_grad(torch.ones(1, 1))  # Cauchy: 1/(2 pi) at 1
        >>> round(float(log_b.exp()), 4), float(grad)
        (0.1592, -1.0)
    """

    def __init__(self, loc: Tensor, scale_tril: Tensor, angles: Tensor, df: float = 3.0) -> None:
        self.angles, self.df = angles.to(loc.device), df
        real = (~self.angles).to(loc)
        self.loc = loc * real
        self.scale_tril = of_reals(scale_tril, real)
        self._real, self._count = real, int(real.sum())
        k = self._count
        self._constant = lgamma(0.5 * (df + k)) - lgamma(0.5 * df) - 0.5 * k * log(df * pi)
        self._constant = self._constant - (len(loc) - k) * log(2 * pi)
        self._log_det = self.scale_tril.diagonal().log().sum()

    @classmethod
    def covering(
        cls, x: Tensor, angles: Tensor, widen: float = 2.0, jitter: float = 1e-9, df: float = 3.0
    ) -> StudentStart:
        """The distribution with the mean of points ``(N, d)``, and ``widen`` times their spread.

        Arguments:
            x: The points, float64.
            angles: Mask ``(d,)`` of periodic coordinates.
            widen: Scale in units of the points' standard deviation.
            jitter: Weight of the identity beside the points' correlations. Where there are fewer
                than two points for each dimension it has the weight d / (N + d).
            df: Degrees of freedom.
        """
        std = x.std(0).clamp(min=torch.finfo(x.dtype).tiny)
        standard = (x - x.mean(0)) / std
        correlation = standard.mT @ standard / (len(x) - 1)
        few = max(x.shape[1] / (len(x) + x.shape[1]), jitter) if len(x) < 2 * x.shape[1] else jitter
        shrunk = (1 - few) * correlation + few * torch.eye(len(std)).to(x)
        chol = torch.linalg.cholesky(shrunk)
        return cls(x.mean(0), widen * std[:, None] * chol, angles, df)

    def widened(self, factor: float) -> StudentStart:
        """A distribution of the same shape, wider by a factor.

        Example:
            >>> start = StudentStart(torch.zeros(1), torch.eye(1), torch.tensor([False]))
            >>> start.widened(3.0).scale_tril
            tensor([[3.]])
        """
        return StudentStart(self.loc, factor * self.scale_tril, self.angles, self.df)

    def standardised(self, x: Tensor) -> Tensor:
        r"""Points :math:`S^{-1}(x - m)`, ``(N, d)``, zero for angles."""
        centred = ((x - self.loc) * self._real).mT
        return torch.linalg.solve_triangular(self.scale_tril, centred, upper=False).mT

    def outside(self, x: Tensor) -> Tensor:
        r"""Mask of points that are farther out than most draws of this distribution.

        For a draw, :math:`\|S^{-1}(x - m)\|^2 / k` has Fisher's distribution with k and
        :math:`\nu` degrees of freedom. The bound is its quantile at 1 - :data:`OUTER_SHARE`.
        Particles of a target that is not wider than this distribution are mostly inside, however
        heavy its tails are.
        """
        if not self._count:
            return torch.zeros_like(x[:, 0], dtype=torch.bool)
        from scipy.special import fdtri  # takes long to import

        bound = self._count * float(fdtri(self._count, self.df, 1 - OUTER_SHARE))
        return self.standardised(x).square().sum(-1) > bound

    def sample(self, num: int) -> Tensor:
        """Draws, ``(num, d)``."""
        like = self.loc
        noise = torch.randn(num, len(like), dtype=like.dtype, device=like.device)
        gamma = Gamma(like.new_tensor(0.5 * self.df), like.new_tensor(0.5 * self.df))
        noise = noise * self._real / gamma.sample((num, 1)).sqrt()
        x = self.loc + noise @ self.scale_tril.mT
        return torch.where(self.angles, torch.empty_like(x).uniform_(-pi, pi), x)

    def log_prob_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log density ``(N,)`` and its gradient ``(N, d)``."""
        u = self.standardised(x)
        square = u.square().sum(-1, keepdim=True)
        power = 0.5 * (self.df + self._count)
        log_b = self._constant - self._log_det - power * (square[:, 0] / self.df).log1p()
        slope = -2 * power / (self.df + square) * u
        grad = torch.linalg.solve_triangular(self.scale_tril.mT, slope.mT, upper=True).mT
        return log_b, grad * self._real


class PriorStart:
    """The prior of a model as the base of a path: particles start at draws of it.

    The path from there tempers the likelihood alone, so that it follows the shape of the prior,
    however narrow the prior is in places.

    Arguments:
        density: The prior's density.
        draws: Draws of it, ``(N, d)``, in the coordinates of the density.

    Attributes:
        loc: The origin of these coordinates, about which particles are scaled.

    Example:
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> whitened = WhitenedTarget(target, torch.zeros(1), torch.eye(1))
        >>> start = PriorStart(whitened, torch.tensor([[1.0], [2.0]]))
        >>> start.sample(3).flatten()
        tensor([1., 2., 1.])
    """

    def __init__(self, density: WhitenedTarget, draws: Tensor) -> None:
        self.density, self.draws, self.angles = density, draws, density.angles
        self.loc = torch.zeros_like(draws[0])

    def sample(self, num: int) -> Tensor:
        """The first ``num`` draws, ``(num, d)``; they start anew where there are too few."""
        return self.part(0, num).draws

    def part(self, island: int, num: int) -> PriorStart:
        """The prior with the draws of an island of ``num`` particles, which no other one has."""
        first = island * num
        rows = torch.arange(first, first + num, device=self.draws.device) % len(self.draws)
        return PriorStart(self.density, self.draws[rows])

    def outside(self, x: Tensor) -> Tensor:
        """None of the points: a posterior has no mass outside of its prior."""
        return torch.zeros_like(x[:, 0], dtype=torch.bool)

    def log_prob_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log density ``(N,)`` and its gradient ``(N, d)``."""
        return self.density.log_prob_and_grad(x)
