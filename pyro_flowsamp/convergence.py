r"""Convergence of chains: effective sample sizes and R-hat, of draws ``(chains, draws, d)``.

References:
    Aki Vehtari, Andrew Gelman, Daniel Simpson, Bob Carpenter and Paul-Christian Bürkner,
    *Rank-Normalization, Folding, and Localization: An Improved* :math:`\hat R` *for Assessing
    Convergence of MCMC*, 2021, https://arxiv.org/abs/1903.08008

    Charles Margossian, Matthew Hoffman, Pavel Sountsov, Lionel Riou-Durand, Aki Vehtari and Andrew
    Gelman, *Nested* :math:`\hat R`: *Assessing the convergence of Markov chain Monte Carlo when
    running many short chains*, 2024, https://arxiv.org/abs/2110.13017
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "bulk_and_tail_ess",
    "columns_at_once",
    "effective_sample_sizes",
    "ess_per_draw",
    "far_apart",
    "group_by_start",
    "iqr",
    "nested_r_hat",
    "never_accepted_fraction",
    "rank_r_hat",
]


MAX_NUMBERS = 10_000_000  #: of draws that the effective sample size is computed from
TAILS = 0.05, 0.95  #: quantiles whose effective sample size is that of the tails


def bulk_and_tail_ess(x: Tensor) -> tuple[Tensor, Tensor]:
    """Effective sample sizes of the bulk and of the tails of each coordinate.

    The bulk's is that of the normalised ranks. The tails' is the smaller of those of the 5 % and
    the 95 % quantile. Chains are split in halves.

    Arguments:
        x: Draws ``(chains, draws, d)``, at least eight of each chain.

    Returns:
        Two tensors ``(d,)``; NaN for coordinates that are constant.

    Example::

        >>> _ = torch.manual_seed(0)
        >>> bulk, tail = bulk_and_tail_ess(torch.randn(200, 50, 3))
        >>> bool((bulk > 8000).all()), bool((tail > 8000).all())
        (True, True)
    """
    bulk, tail, constant = [], [], []
    for part in x.split(columns_at_once(x), -1):
        halves = _halves(part)
        block = halves.flatten(0, 1)
        shaped = (block.shape[-1], *halves.shape[:2])
        bulk.append(effective_sample_sizes(_normalised_ranks(block).mT.reshape(shaped)))
        low, high = block.quantile(block.new_tensor(TAILS), 0)
        sides = [
            effective_sample_sizes((block <= edge).double().mT.reshape(shaped))
            for edge in (low, high)
        ]
        tail.append(torch.minimum(*sides))
        constant.append((block == block[0]).all(0))
    none = torch.cat(constant)
    return (
        torch.where(none, torch.nan, torch.cat(bulk)),
        torch.where(none, torch.nan, torch.cat(tail)),
    )


def _halves(x: Tensor) -> Tensor:
    """The halves of each chain as chains of their own, float64."""
    half = x.shape[1] // 2
    return torch.cat([x[:, :half], x[:, -half:]]).double()


def effective_sample_sizes(x: Tensor) -> Tensor:
    r"""Effective sample sizes of functions ``(d, chains, draws)``; at most the number of draws.

    With the variance V of the means of C chains of n draws, the mean :math:`\hat\gamma_k` of their
    autocovariances about their own means, divided by :math:`n - k`, and
    :math:`\hat\sigma^2 = \hat\gamma_0 + V`,

    .. math:: \hat\rho_k = \frac{\hat\gamma_k + V}{\hat\sigma^2}, \qquad
              \mathrm{ESS} = \frac{C n}{2 \sum_j P_j - 1}, \qquad
              P_j = \hat\rho_{2j} + \hat\rho_{2j + 1},

    where the sum goes over the first pairs that are positive, made to fall. About its own mean the
    autocovariance of a short chain is too small by the variance of that mean, which V puts right.
    That of a constant is the number of draws.

    References:
        Charles Geyer, *Practical Markov Chain Monte Carlo*, 1992,
        https://doi.org/10.1214/ss/1177011137

    Example::

        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(1, 500, 41)
        >>> y = 0.5 * (x[..., 1:] + x[..., :-1])  # of autocorrelation 1/2 at lag one: half as many
        >>> bool((effective_sample_sizes(y) / 20_000 - 0.5).abs() < 0.05)
        True
    """
    chains, draws = x.shape[-2:]
    means = x.mean(-1, keepdim=True)
    size = 2 * draws
    spectrum = torch.fft.rfft(x - means, size)
    covariance = torch.fft.irfft(spectrum * spectrum.conj(), size)[..., :draws].mean(-2)
    left = draws - torch.arange(draws, device=x.device)
    between = means[..., 0].var(-1, keepdim=True) if chains > 1 else torch.zeros_like(means[..., 0])
    rho = (covariance / left + between) / (covariance[..., :1] / draws + between)
    pairs = rho[..., : draws // 2 * 2].unflatten(-1, (-1, 2)).sum(-1)
    positive = (pairs > 0).cumprod(-1)
    falling = pairs.cummin(-1).values * positive
    found = chains * draws / (2 * falling.sum(-1) - 1).clamp(min=1.0)
    return found.nan_to_num(nan=float(chains * draws)).clamp(min=1.0)


def group_by_start(starts: Tensor, groups: int) -> Tensor:
    """Groups of chains that started near each other, ``(C,)``.

    Each chain belongs to the nearest of ``groups`` starting points that are far apart. Chains that
    have forgotten where they started agree between groups. Distances are those of the normal
    quantiles of the ranks of each coordinate, equal numbers with the mean of their ranks. So scales
    do not matter, and the groups do not become a few outliers and one group of all others, whose
    means nested R-hat could not compare.

    Arguments:
        starts: Starting points ``(C, d)``.
        groups: Number of groups.

    References:
        Aki Vehtari, Andrew Gelman, Daniel Simpson, Bob Carpenter and Paul-Christian Bürkner,
        *Rank-Normalization, Folding, and Localization: An Improved R-hat for Assessing Convergence
        of MCMC*, 2021, https://arxiv.org/abs/1903.08008

    Example::

        >>> _ = torch.manual_seed(0)
        >>> found = group_by_start(torch.tensor([[0.0], [9.0], [0.1], [9.1]]), 2)
        >>> bool(found[0] == found[2]), bool(found[0] == found[1])
        (True, False)
    """
    x = starts.double()
    z = _normal_quantiles(_mean_ranks(x.mT), len(x)).mT
    return torch.cdist(z, far_apart(z, groups)).argmin(-1)


def far_apart(x: Tensor, num: int) -> Tensor:
    """At most ``num`` of the points ``(N, d)``, each as far from those before it as any.

    Example::

        >>> far_apart(torch.tensor([[0.0], [1.0], [9.0], [5.0]]), 3)[:, 0]
        tensor([0., 9., 5.])
    """
    chosen = x[:1]
    distance = (x - chosen).norm(dim=-1)
    for _ in range(min(num, len(x)) - 1):
        chosen = torch.cat([chosen, x[distance.argmax()][None]])
        distance = torch.minimum(distance, (x - chosen[-1]).norm(dim=-1))
    return chosen


def nested_r_hat(x: Tensor, groups: Tensor) -> float:
    r"""The largest nested R-hat of the coordinates, by rank, over groups of chains.

    With the variance B of the means of groups, weighted by their sizes, and the variance W of draws
    within groups,

    .. math:: \hat R = \Bigl(1 + \frac{B}{W}\Bigr)^{1/2} .

    What B would be if groups differed by chance alone, as far as chains of a group differ, is taken
    off. Ranks of the distances from the median show groups that differ in their spread.

    Arguments:
        x: Draws ``(chains, draws, d)``.
        groups: The group of each chain, ``(chains,)``.

    Returns:
        The value; 1 where there are fewer than two chains in a group on average.

    Example::

        >>> _ = torch.manual_seed(0)
        >>> x, groups = torch.randn(64, 20, 2), torch.arange(64) % 4
        >>> nested_r_hat(x, groups) < 1.01, nested_r_hat(x + groups[:, None, None], groups) > 1.1
        (True, True)
    """
    member = torch.nn.functional.one_hot(groups).double()
    member = member[:, member.sum(0) > 0]
    if len(groups) < 2 * member.shape[1]:
        return 1.0
    shuffle = torch.randperm(x[..., 0].numel(), device=x.device)
    found = [_nested_r_hats(part, member, shuffle) for part in x.split(columns_at_once(x), -1)]
    return float(torch.cat(found).max())


def _nested_r_hats(x: Tensor, member: Tensor, shuffle: Tensor) -> Tensor:
    """The nested R-hats of coordinates, and of their distances from the median, ``(2 d,)``."""
    flat = x.double().flatten(0, 1)
    folded = (flat - flat.median(0).values).abs()
    z = _normalised_ranks(torch.cat([flat, folded], -1), shuffle).unflatten(0, x.shape[:2])
    chain_means, size = z.mean(1), member.sum(0)
    means = member.mT @ chain_means / size[:, None]
    share = (size / size.sum())[:, None]
    between = (share * (means - (share * means).sum(0)).square()).sum(0)
    deviation = chain_means - member @ means
    freedom = size.sum() - len(size)
    noise = deviation.square().sum(0) / freedom * (len(size) - 1) / size.sum()
    within = (z.flatten(0, 1).var(0) - between).clamp(min=1e-12)
    return (1 + (between - noise).clamp(min=0) / within).sqrt()


def ess_per_draw(x: Tensor, num_directions: int = 8) -> float:
    r"""Estimates effective draws per draw: the least of several functions of the draws.

    The functions are the coordinates and their distances from the median, by rank, and the
    ``num_directions`` principal directions of the standardised coordinates. Modes can be apart
    along such a direction and hardly differ in any one coordinate.

    Arguments:
        x: Draws ``(chains, draws, d)``.
        num_directions: Number of principal directions.

    Returns:
        A number between 1 / (chains · draws) and about 1.

    References:
        Vehtari et al., *Rank-Normalization, Folding, and Localization: An Improved* :math:`\hat R`
        *for Assessing Convergence of MCMC*, 2021, https://arxiv.org/abs/1903.08008

    Example::

        >>> _ = torch.manual_seed(0)
        >>> ess_per_draw(torch.randn(200, 50, 3)) > 0.8
        True
    """
    x = x[: max(16, MAX_NUMBERS // x[0].numel())].double()
    flat = x.flatten(0, 1)
    flat = flat[:, flat.std(0) > 0]
    u = (flat - flat.mean(0)) / flat.std(0)
    if not u.numel() or not torch.isfinite(u).all():
        return 1 / x[..., 0].numel()
    _, axes = torch.linalg.eigh(u.mT @ u)
    folded = (u - u.median(0).values).abs()
    functions = torch.cat([u, folded, u @ axes[:, -num_directions:]], -1)
    z = _normalised_ranks(functions).mT.reshape(functions.shape[1], *x.shape[:2])
    return float(effective_sample_sizes(z).min()) / len(flat)


def _normalised_ranks(x: Tensor, shuffle: Tensor | None = None) -> Tensor:
    """Normal quantiles of the ranks in each column, with ties in random order."""
    if shuffle is None:
        shuffle = torch.randperm(len(x), device=x.device)
    order = x[shuffle].mT.contiguous().argsort(-1)  # sorts rows, which lie together in memory
    quantiles = _normal_quantiles(torch.arange(len(x), device=x.device).to(x), len(x))
    z = torch.empty_like(x)
    z[shuffle] = (
        torch.empty_like(x.mT.contiguous()).scatter_(-1, order, quantiles.expand_as(order)).mT
    )
    return z


def _normal_quantiles(ranks: Tensor, count: int) -> Tensor:
    """Blom's normal scores of ranks from zero, of so many numbers."""
    return torch.special.ndtri((ranks + 0.625) / (count + 0.25))


def rank_r_hat(x: Tensor) -> Tensor:
    r"""The larger of the split R-hats of ranks, and of ranks of distances from the median.

    For chains of n draws with the variance B of their means, and the mean W of their variances,

    .. math:: \hat R^2 = \frac{n - 1}{n} + \frac{B}{W}

    of the normal quantiles of the ranks, where each chain counts as two halves. Equal draws have
    equal ranks. So heavy tails do not decide it, and chains that differ in their spread are seen.

    Arguments:
        x: Draws ``(chains, draws, d)``, at least four of each chain.

    Returns:
        The value of each coordinate, ``(d,)``; NaN where it is constant.

    References:
        Aki Vehtari, Andrew Gelman, Daniel Simpson, Bob Carpenter and Paul-Christian Bürkner,
        *Rank-Normalization, Folding, and Localization: An Improved R-hat for Assessing Convergence
        of MCMC*, 2021, https://arxiv.org/abs/1903.08008

    Example::

        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(4, 1000, 1)
        >>> wide = x * torch.tensor([1.0, 1.0, 1.0, 3.0])[:, None, None]
        >>> bool(rank_r_hat(x) < 1.01), bool(rank_r_hat(wide) > 1.05)
        (True, True)
    """
    found = []
    for part in x.split(columns_at_once(x), -1):
        block = _halves(part)
        folded = (block - block.flatten(0, 1).median(0).values).abs()
        found.append(torch.maximum(_r_hat_of_ranks(block), _r_hat_of_ranks(folded)))
    return torch.cat(found)


def _r_hat_of_ranks(x: Tensor) -> Tensor:
    z = _normal_quantiles(_mean_ranks(x.flatten(0, 1).mT), x[..., 0].numel())
    z = z.unflatten(-1, x.shape[:2])  # (d, chains, draws)
    n, within = x.shape[1], z.var(-1).mean(-1)
    return ((n - 1) / n + z.mean(-1).var(-1) / within).sqrt()


def _mean_ranks(x: Tensor) -> Tensor:
    """Ranks in each row, from zero; equal numbers have the mean of their ranks."""
    values, order = x.contiguous().sort(-1)
    place = torch.arange(x.shape[-1], device=x.device).expand_as(order)
    new = torch.ones_like(values, dtype=torch.bool)
    new[:, 1:] = values[:, 1:] != values[:, :-1]
    first = torch.where(new, place, 0).cummax(-1).values
    last = torch.ones_like(new)  # whether a number is the last of its equals
    last[:, :-1] = new[:, 1:]
    end = torch.where(last, place, x.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    return torch.empty_like(values).scatter_(-1, order, 0.5 * (first + end).to(x))


def columns_at_once(x: Tensor) -> int:
    """Columns of draws ``(chains, draws, d)`` that are looked at together, to save memory.

    Example::

        >>> columns_at_once(torch.zeros(1000, 500, 20))
        6
    """
    return max(1, MAX_NUMBERS // (3 * max(1, x[..., 0].numel())))


def never_accepted_fraction(accepted: Tensor) -> float:
    r"""The share of chains that never moved, or 0 where chance explains it.

    If all chains moved with the same probability r, a share :math:`(1 - r)^n` of them would not
    move in n draws. Up to three standard deviations more count as chance.

    Arguments:
        accepted: Whether each chain moved, ``(chains, draws)``.

    Example::

        >>> _ = torch.manual_seed(0)
        >>> accepted = torch.rand(100, 50) < 0.5
        >>> accepted[:3] = False
        >>> never_accepted_fraction(accepted)
        0.03
    """
    chains, draws = accepted.shape
    never = float((~accepted).all(1).double().mean())
    rate = float(accepted.double().mean())
    chance = (1 - rate) ** draws if rate else 0.0
    return never if never > chance + 3 * (chance / chains) ** 0.5 else 0.0


def iqr(x: Tensor) -> Tensor:
    """The interquartile range of each coordinate of draws ``(N, d)``.

    Example::

        >>> iqr(torch.arange(5.0)[:, None])
        tensor([2.], dtype=torch.float64)
    """
    low, high = x.double().quantile(torch.tensor([0.25, 0.75]).to(x).double(), 0)
    return high - low
