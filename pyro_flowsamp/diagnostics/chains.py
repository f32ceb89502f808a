r"""Checks of the chains themselves: whether they agree, move, and visit every region.

Chains that all miss the same region agree perfectly. The checks of :mod:`.agreement` are for that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import inf, isinf, log, log1p

import torch
from torch import Tensor

from ..convergence import (
    bulk_and_tail_ess,
    columns_at_once,
    effective_sample_sizes,
    group_by_start,
    nested_r_hat,
    never_accepted_fraction,
    rank_r_hat,
)
from .checks import Check
from .draws import DiagnosedDraws
from .options import DiagnosisOptions

__all__ = ["chain_checks", "long_run_error", "longest_runs", "region_checks"]


FEWEST_DRAWS = 8  #: draws of a chain from which on its two halves can be compared
LONGER = "draw longer chains, or use a sampler that mixes better"


def chain_checks(draws: DiagnosedDraws, options: DiagnosisOptions) -> list[Check]:
    """All checks that need nothing but the draws and their statistics.

    Arguments:
        draws: The draws.
        options: Thresholds.

    Returns:
        The checks; of very short chains only those that need no long ones.

    Example:
        >>> x = torch.randn(4, 500, 1, generator=torch.manual_seed(0)).double()
        >>> x[0] += 3.0  # a chain that is elsewhere
        >>> draws = DiagnosedDraws(x, ("x",), None, {}, {}, None, None, None, None)
        >>> [check.name for check in chain_checks(draws, DiagnosisOptions()) if not check.ok]
        ['rank R-hat', 'bulk ESS', 'tail ESS', 'ESS per chain']
    """
    checks = _number_checks(draws)
    x = draws.columns
    if x.shape[1] < FEWEST_DRAWS or not checks[0].ok:
        return checks
    return [
        *checks,
        *_convergence(draws, options),
        *_moves(x, options),
        *_divergences(draws, options),
    ]


def _number_checks(draws: DiagnosedDraws) -> list[Check]:
    bad = int(_any_column(draws.columns, lambda x: ~torch.isfinite(x)).sum())
    checks = [
        Check(
            "draws not finite",
            bad,
            0,
            bad == 0,
            f"{bad} draws are NaN or infinite",
            "evaluate the model in float64",
        )
    ]
    if (lp := draws.statistics.get("lp")) is not None:
        zero = int((~torch.isfinite(lp)).sum())
        checks.append(
            Check(
                "log densities not finite",
                zero,
                0,
                zero == 0,
                f"the log density of {zero} draws is NaN or infinite",
                "give initial_params inside the support",
            )
        )
    if (log_w := draws.statistics.get("log_weight")) is not None and not draws.of_a_guide:
        off = int((~torch.isfinite(log_w)).sum())
        checks.append(
            Check(
                "log weights not finite",
                off,
                0,
                off == 0,
                f"the flow has no density, or an unknown one, at {off} states",
                "use a flow whose density is positive everywhere",
            )
        )
    return checks


def _any_column(x: Tensor, test: Callable[[Tensor], Tensor]) -> Tensor:
    """Whether a test holds for any column of draws ``(C, n, D)``, looked at a few at a time."""
    parts = (test(part).any(-1) for part in x.split(columns_at_once(x), -1))
    return reduce(torch.logical_or, parts)


# ---- convergence ---------------------------------------------------------------------------------
def _convergence(draws: DiagnosedDraws, options: DiagnosisOptions) -> list[Check]:
    x, names = draws.columns, draws.names
    chains = len(x)
    checks = []
    if chains > 1:
        found = rank_r_hat(x).nan_to_num(nan=1.0, posinf=inf)
        worst, value = int(found.argmax()), float(found.max())
        each = max(options.min_ess_per_chain, options.min_ess / chains)
        most = max(options.max_r_hat, (1 + 2 / each) ** 0.5)
        ok = value <= most
        text = f"the chains disagree: the rank R-hat of {names[worst]} is {value:.4g}"
        checks.append(Check("rank R-hat", value, most, ok, text, LONGER))
    checks += _nested(draws, options)
    for name, sizes in zip(("bulk", "tail"), bulk_and_tail_ess(x)):
        sizes = sizes.nan_to_num(nan=float("inf"))
        worst, value = int(sizes.argmin()), float(sizes.min())
        ok = value >= options.min_ess
        text = (
            f"the {name} of {names[worst]} has an effective sample size of {value:.0f}, not "
            f"{options.min_ess}"
        )
        checks.append(Check(f"{name} ESS", value, options.min_ess, ok, text, LONGER, True))
    each = min(checks[-1].value, checks[-2].value) / chains
    ok = each >= options.min_ess_per_chain
    text = f"a chain has only {each:.2g} effective draws, so that their number is not well known"
    advice = "draw fewer and longer chains"
    least = options.min_ess_per_chain
    checks.append(Check("ESS per chain", each, least, ok, text, advice, True))
    return checks


def _nested(draws: DiagnosedDraws, options: DiagnosisOptions) -> list[Check]:
    """The nested R-hat of superchains, or else of chains that began near each other.

    Where that is not known either, chains are grouped by their first draws, and the later half of
    their draws is compared.
    """
    x, groups = draws.columns, draws.groups
    if isinf(options.max_nested_r_hat):  # the caller has judged it
        return []
    if groups is None or len(groups.unique()) > len(x) // 2:
        if len(x) < 2 * options.start_groups:
            return []
        points = x[:, 0] if draws.starts is None else draws.starts.double()
        groups = group_by_start(points, options.start_groups)
        x = x[:, x.shape[1] // 2 :] if draws.starts is None else x
    value = nested_r_hat(x, groups)
    ok = value <= options.max_nested_r_hat
    text = f"chains depend on where they started: nested R-hat is {value:.4g}"
    return [Check("nested R-hat", value, options.max_nested_r_hat, ok, text, LONGER)]


# ---- moves ---------------------------------------------------------------------------------------
def longest_runs(moved: Tensor) -> Tensor:
    """The longest run of draws without a move in each chain, ``(chains, draws) -> (chains,)``.

    Example:
        >>> longest_runs(torch.tensor([[True, False, False, True, False]]))
        tensor([2])
    """
    step = torch.arange(1, moved.shape[1] + 1, device=moved.device)
    last = torch.where(moved, step, 0).cummax(1).values
    return (step - last).max(1).values


def _moves(x: Tensor, options: DiagnosisOptions) -> list[Check]:
    moved = _any_column(x, lambda x: x[:, 1:] != x[:, :-1])
    never = never_accepted_fraction(moved)
    ok = never <= options.max_never_moved
    text = f"{int((~moved.any(1)).sum())} of {len(x)} chains never moved"
    advice = "the sampler hardly proposes points near where they are: train the flow on more modes"
    checks = [
        Check(
            "chains that never moved",
            never,
            options.max_never_moved,
            ok,
            text,
            advice,
        )
    ]
    runs, steps = longest_runs(moved), moved.shape[1]
    rate = float(moved.double().mean())
    chance = log(options.chance / moved.numel()) / log1p(-rate) if 0 < rate < 1 else 0.0
    least = max(options.long_run * steps, chance)
    long, error = long_run_error(moved, least)
    ok = error <= options.max_share_error
    text = (
        f"{int((runs > least).sum())} of {len(x)} chains stay at one point for more than "
        f"{options.long_run:.0%} of their draws, {int(runs.max())} at most: the mass where they do "
        f"is known to {error:.3f} only"
    )
    advice = "the flow is too thin there: use local moves too (LocalGlobalHMC), or train it longer"
    none = float("nan")
    checks.append(Check("longest run without a move", int(runs.max()), none, True))
    checks.append(Check("draws in long runs", long, none, True))
    most = options.max_share_error
    checks.append(Check("error of long runs", error, most, ok, text, advice))
    return checks


def long_run_error(moved: Tensor, least: float) -> tuple[float, float]:
    r"""The share of draws in long runs of equal draws, and its standard error.

    Chain c of C, with n draws each, has :math:`T_c` draws in runs of more than ``least`` moves that
    were not made. The share is :math:`\sum_c T_c / (C n)`. Chains are independent, so that its
    standard error is :math:`(\mathrm{Var}_c(T_c) / C)^{1/2} / n`, however few such runs make it up.
    Of a single chain it is the share itself.

    Arguments:
        moved: Whether each chain moved, ``(chains, steps)``.
        least: The longest run that is not long, in steps.

    Example:
        >>> moved = torch.ones(100, 50, dtype=torch.bool)
        >>> moved[0] = False  # a hundredth of the draws, and its error is as large
        >>> share, error = long_run_error(moved, least=10)
        >>> round(share, 4), round(error, 4)
        (0.01, 0.01)
    """
    chains, steps = moved.shape
    first = torch.nn.functional.pad(moved, (1, 0), value=True)  # draws that begin a run
    run = first.flatten().cumsum(0) - 1
    length = run.bincount()
    inside = torch.where(length > least + 1, length, 0).double()
    chain = torch.arange(chains, device=moved.device).repeat_interleave(first.sum(1))
    total = inside.new_zeros(chains).index_add_(0, chain, inside)
    error = total.std() / chains**0.5 if chains > 1 else total[0]
    return float(total.mean()) / (steps + 1), float(error) / (steps + 1)


def _divergences(draws: DiagnosedDraws, options: DiagnosisOptions) -> list[Check]:
    diverging = draws.statistics.get("diverging")
    if diverging is None:
        return []
    share = float(diverging.double().mean())
    ok = share <= options.max_diverging
    text = f"{share:.2%} of the trajectories diverged"
    advice = "reparametrise the model, or use a smaller step size"
    return [Check("divergences", share, options.max_diverging, ok, text, advice)]


# ---- regions -------------------------------------------------------------------------------------
def region_checks(regions: Tensor, options: DiagnosisOptions) -> list[Check]:
    r"""Checks of how often chains visit each of several separate regions.

    The share s of a region has the standard error :math:`\sqrt{s (1 - s) / n}`, where n is the
    effective number of draws of its indicator. Chains that never leave the region in which they
    start have n of about their number: then the shares are those of the starting points.

    Arguments:
        regions: The region of each draw, ``(chains, draws)``; whole numbers from zero.
        options: Thresholds.

    Returns:
        Two checks, or none where there is one region.

    Example:
        >>> stuck = torch.tensor([[0], [1]]).expand(2, 100)  # each chain in a region of its own
        >>> checks = region_checks(stuck, DiagnosisOptions())
        >>> checks[0].name, round(checks[0].value, 1), checks[0].ok  # one effective draw in all
        ('visits of regions', 0.5, False)
    """
    chains, steps = regions.shape
    indicator = torch.nn.functional.one_hot(regions).double().permute(2, 0, 1)
    share = indicator.mean((1, 2))
    large = share >= options.min_region
    if int(large.sum()) < 2 or steps < FEWEST_DRAWS:
        return []
    sizes = effective_sample_sizes(indicator[large])
    visits = float(sizes.min()) / chains
    ok = visits >= options.min_visits
    text = (
        f"chains hardly ever go from one of {int(large.sum())} regions to another: {visits:.2g} "
        f"effective visits each"
    )
    advice = "use a flow that jumps between them, such as AutoFlow(ensemble=tempered_smc)"
    error = float((share[large] * (1 - share[large]) / sizes).sqrt().max())
    checks = [Check("visits of regions", visits, options.min_visits, ok, text, advice, True)]
    ok = error <= options.max_share_error
    text = f"the share of a region has a standard error of {error:.3f}"
    most = options.max_share_error
    checks.append(Check("error of shares", error, most, ok, text, LONGER))
    return checks
