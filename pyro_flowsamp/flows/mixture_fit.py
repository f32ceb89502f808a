r"""A mixture fitted to draws: a latent distribution for targets of several modes or heavy tails.

:func:`fit_mixture` runs expectation-maximisation for several numbers of components, Gaussian or
Student-t, and keeps the mixture that predicts held-out draws best. For Student-t components of
:math:`\nu` degrees of freedom the draws have the weights
:math:`u = (\nu + d) / (\nu + \|L^{-1}(x - \mu)\|^2)` in the moments beside the responsibilities.

References:
    Arthur Dempster, Nan Laird and Donald Rubin, *Maximum likelihood from incomplete data via the EM
    algorithm*, 1977, https://doi.org/10.1111/j.2517-6161.1977.tb01600.x.

    David Peel and Geoffrey McLachlan, *Robust mixture modelling using the t distribution*, 2000,
    https://doi.org/10.1023/A:1008981510081.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isinf, lgamma, log, pi
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Gamma

from ..validation import check_at_least_one

__all__ = ["Mixture", "MixtureFitOptions", "fit_mixture"]


@dataclass(frozen=True)
class MixtureFitOptions:
    """Options of :func:`fit_mixture`.

    Attributes:
        steps: Iterations of expectation-maximisation for each number of components, at most.
        tolerance: Gain of the mean log density, in nats, below which they end; 0 makes all of them.
        held_out: One in this many draws is held out.
        min_gain: Standard errors by which more components must predict the held-out draws better.
        max_failures: The number of times in a row that they may fail to.
        ridge: Variance added to every component, relative to that of the draws.
        degrees_of_freedom: Degrees of freedom of the components that are tried, infinite for
            Gaussians.
        min_tail_gain: Standard errors by which later ones of them must predict the held-out draws,
            or all draws, better.
        heavier_tail_errors: Where the best of them are finite, fewer of them are taken that predict
            the draws worse by at most so many standard errors. Weights of a target beside tails
            that are too heavy are bounded, and beside tails that are too thin they are not.

    Raises:
        ValueError: An option is out of range, or of another type.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.cat([torch.randn(200, 1) - 5, torch.randn(200, 1) + 5])
        >>> len(fit_mixture(x, 4, options=MixtureFitOptions(steps=10)).log_weights)
        2
    """

    steps: int = 50
    tolerance: float = 0.0
    held_out: int = 5
    min_gain: float = 2.0
    max_failures: int = 2
    ridge: float = 1e-4
    degrees_of_freedom: tuple[float, ...] = (inf,)
    min_tail_gain: float = 0.0
    heavier_tail_errors: float = 0.0

    def __post_init__(self) -> None:
        check_at_least_one(self)


class Mixture(NamedTuple):
    r""":math:`\sum_k \pi_k \mathcal N(\mu_k, L_k L_k^\top)`, or the same with Student-t components.

    Attributes:
        log_weights: :math:`\log\pi_k`, ``(K,)``.
        locs: :math:`\mu_k`, ``(K, d)``.
        scale_trils: :math:`L_k`, ``(K, d, d)``.
        df: Degrees of freedom of all components; infinite for Gaussians.

    Example:
        >>> mixture = Mixture(torch.zeros(1), torch.zeros(1, 2), torch.eye(2)[None])
        >>> mixture.log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    log_weights: Tensor
    locs: Tensor
    scale_trils: Tensor
    df: float = inf

    def square_distances(self, x: Tensor) -> Tensor:
        r""":math:`\|L_k^{-1}(x - \mu_k)\|^2`, ``(N, d) → (N, K)``."""
        centred = (x[None] - self.locs[:, None]).mT
        u = torch.linalg.solve_triangular(self.scale_trils, centred, upper=False)
        return u.square().sum(-2).mT

    def joint_log_prob(self, x: Tensor) -> Tensor:
        r""":math:`\log \pi_k` plus the log density of component k, ``(N, d) → (N, K)``."""
        return self.component_log_prob(self.square_distances(x))

    def component_log_prob(self, square: Tensor) -> Tensor:
        """:meth:`joint_log_prob` at given square distances ``(N, K)``."""
        half_log_det = self.scale_trils.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        dim, df = self.locs.shape[-1], self.df
        if isinf(df):
            return self.log_weights - half_log_det - 0.5 * (dim * log(2 * pi) + square)
        constant = lgamma(0.5 * (df + dim)) - lgamma(0.5 * df) - 0.5 * dim * log(df * pi)
        kernel = -0.5 * (df + dim) * (square / df).log1p()
        return self.log_weights - half_log_det + constant + kernel

    def separated(self, x: Tensor, overlap: float) -> Tensor:
        """Groups of components that do not overlap: the group of each, ``(K,)``.

        Two components overlap if points that are most probably of the one are of the other with a
        mean probability of more than ``overlap``. Groups are connected by such pairs.

        Arguments:
            x: Draws of the mixture, or nearly so, ``(N, d)``.
            overlap: The probability.

        Example:
            >>> locs = torch.tensor([[0.0], [1.0], [50.0]])
            >>> mixture = Mixture(torch.zeros(3).log_softmax(0), locs, torch.ones(3, 1, 1))
            >>> points = (locs + torch.linspace(-1, 1, 9)).reshape(-1, 1)
            >>> mixture.separated(points, overlap=0.01).tolist()
            [0, 0, 1]
        """
        return self.groups(self.joint_log_prob(x), overlap)

    def groups(self, joint: Tensor, overlap: float) -> Tensor:
        """The group of each component as of :meth:`separated`, by :meth:`joint_log_prob` of points.

        Example:
            >>> locs = torch.tensor([[0.0], [1.0], [50.0]])
            >>> mixture = Mixture(torch.zeros(3).log_softmax(0), locs, torch.ones(3, 1, 1))
            >>> points = (locs + torch.linspace(-1, 1, 9)).reshape(-1, 1)
            >>> mixture.groups(mixture.joint_log_prob(points), overlap=0.01).tolist()
            [0, 0, 1]
        """
        member = torch.nn.functional.one_hot(joint.argmax(-1), len(self.locs)).to(joint)
        mean = member.mT @ joint.softmax(-1) / member.sum(0).clamp(min=1)[:, None]
        linked = ((mean > overlap) | (mean.mT > overlap)).to(joint) + torch.eye(len(mean)).to(joint)
        for _ in range(len(mean).bit_length()):
            linked = (linked @ linked > 0).to(joint)
        return linked.argmax(-1).unique(return_inverse=True)[1]

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density, ``(N, d) → (N,)``."""
        return self.joint_log_prob(x).logsumexp(-1)

    def sample(self, num: int) -> Tensor:
        """Draws, ``(num, d)``."""
        k = self.log_weights.softmax(0).multinomial(num, replacement=True)
        noise = torch.randn(num, self.locs.shape[-1], dtype=self.locs.dtype, device=k.device)
        if not isinf(self.df):
            half = noise.new_tensor(0.5 * self.df)
            noise = noise / Gamma(half, half).sample((num, 1)).sqrt()
        scaled = noise @ self.scale_trils.mT  # of every component: smaller than L for every draw
        return self.locs[k] + scaled[k, torch.arange(num, device=k.device)]


def _maximize(x: Tensor, resp: Tensor, weights: Tensor, ridge: float, df: float) -> Mixture:
    """The M step: weighted moments, with a ridge that keeps every covariance positive."""
    mass, each = resp.sum(0) + 1e-9, resp * weights
    locs = each.mT @ x / (each.sum(0) + 1e-9)[:, None]
    centred = x[None] - locs[:, None]
    cov = (each.mT[..., None] * centred).mT @ centred / mass[:, None, None]
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return Mixture((mass / mass.sum()).log(), locs, torch.linalg.cholesky(cov + ridge * eye), df)


def _spread_out(x: Tensor, count: int) -> Tensor:
    """k-means++ seeding: each centre far from those before it, ``(count, d)``."""
    centres = x[torch.randint(len(x), (1,), device=x.device)]
    for _ in range(count - 1):
        distance = torch.cdist(x, centres).min(-1).values.square() + 1e-12
        centres = torch.cat([centres, x[distance.multinomial(1)]])
    return centres


def _expectation_maximisation(
    x: Tensor, components: int, df: float, options: MixtureFitOptions, start: Mixture | None = None
) -> Mixture:
    """Iterations from a mixture, by default from that of the points nearest to spread-out ones."""
    ridge = options.ridge * float(x.var(0).mean())
    if start is None:
        nearest = torch.cdist(x, _spread_out(x, components)).argmin(-1)
        resp = torch.nn.functional.one_hot(nearest, components).to(x)
        mixture = _maximize(x, resp, torch.ones_like(resp), ridge, df)
    else:
        mixture = start._replace(df=df)
    reached = -inf
    for _ in range(options.steps if components > 1 or not isinf(df) else 0):
        square = mixture.square_distances(x)
        joint = mixture.component_log_prob(square)
        if options.tolerance:
            level = float(joint.logsumexp(-1).mean())
            if level < reached + options.tolerance:
                break
            reached = level
        weights = torch.ones_like(square) if isinf(df) else (df + x.shape[-1]) / (df + square)
        mixture = _maximize(x, joint.softmax(-1), weights, ridge, df)
    return mixture


def fit_mixture(
    x: Tensor,
    max_components: int,
    options: MixtureFitOptions | None = None,
    held_out: Tensor | None = None,
) -> Mixture:
    """Fits a mixture of one, two, four, … components to draws.

    More components are taken where they predict the held-out draws better by some standard errors;
    the search ends where that fails several times in a row.

    Components of the next degrees of freedom are taken where they predict the held-out draws, or
    all draws, better. Few draws are far out, and of these hardly one is held out: so all are asked,
    to which one number more is no close fit. More components are one: all draws may prefer several
    Gaussians that are fitted to them to one Student-t distribution, which predicts held-out draws
    better. Beside heavy tails those that are a little heavier are taken where the draws do not tell
    them apart.

    Arguments:
        x: The draws, ``(N, d)``.
        max_components: Bound on the number of components.
        options: How to fit.
        held_out: Mask ``(N,)`` of the draws that are held out; by default one in
            ``options.held_out``, by chance. Draws that depend on each other, such as copies that
            have moved a little, belong on one side: else a component for every cluster of copies
            predicts the copies that are held out.

    Example:
        >>> import pyro
        >>> pyro.set_rng_seed(0)
        >>> modes = torch.tensor([[-5.0], [5.0]]).repeat(200, 1)
        >>> len(fit_mixture(modes + torch.randn(400, 1), 8).locs)
        2
    """
    options = options or MixtureFitOptions()
    order = torch.randperm(len(x), device=x.device)
    x, num = x[order].double(), len(x) // options.held_out
    aside = torch.arange(len(x), device=x.device) < num if held_out is None else held_out[order]
    others, rest = x[aside], x[~aside]
    best: Mixture | None = None
    heavy: list[Mixture] = []
    for df in options.degrees_of_freedom:  # heavier tails need no more components
        if heavy:  # other tails hardly move the components
            found = _expectation_maximisation(rest, len(heavy[-1].locs), df, options, heavy[-1])
        else:
            most = max_components if best is None else len(best.locs)
            found = _best_count(rest, others, most, df, options)
        if not isinf(df):
            heavy.append(found)
        if best is None or any(
            _predicts_better(found, best, draws, options.min_tail_gain) for draws in (others, x)
        ):
            best = found
    assert best is not None
    if isinf(best.df):
        return best
    errors = options.heavier_tail_errors
    fair = [mixture for mixture in heavy if not _predicts_better(best, mixture, x, errors)]
    return min([best, *fair], key=lambda mixture: mixture.df)


def _best_count(
    rest: Tensor, held_out: Tensor, most: int, df: float, options: MixtureFitOptions
) -> Mixture:
    """The best mixture of components of one kind."""
    best, count, failed = _expectation_maximisation(rest, 1, df, options), 2, 0
    while count <= most and failed < options.max_failures:
        mixture = _expectation_maximisation(rest, count, df, options)
        better = _predicts_better(mixture, best, held_out, options.min_gain)
        best, failed = (mixture, 0) if better else (best, failed + 1)
        count *= 2
    return best


def _predicts_better(one: Mixture, other: Mixture, held_out: Tensor, min_gain: float) -> bool:
    """Whether the first mixture predicts held-out draws better, by some standard errors."""
    gain = one.log_prob(held_out) - other.log_prob(held_out)
    return bool(gain.mean() > min_gain * gain.std() / len(gain) ** 0.5)
