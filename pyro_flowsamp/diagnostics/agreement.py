r"""Checks that do not share the chains' blind spots: weights, local moves, and the evidence.

*Weights.* Weights :math:`w = \tilde p / q` of draws of q, and of states of chains, both have a
Pareto tail. If its shape is k for draws of q, it is :math:`k / (1 - k)` for draws of p: the density
of w under p is that under q times :math:`w / Z`, so that a tail :math:`w^{-1 / k}` becomes
:math:`w^{1 - 1 / k}`.

*Evidence.* Estimates of the chains and the flow, and of annealed particles, which are independent
of both, should agree. :mod:`.missed_modes` compares the particles themselves.
"""

from __future__ import annotations

from copy import deepcopy
from math import isnan, sqrt
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from ..convergence import effective_sample_sizes
from ..guides.auto_flow import AutoFlow
from ..smc.found_modes import FoundModes
from ..target.density import Target
from ..trust import local_change
from ..weights import Estimate, ess_fraction, pareto_k
from .checks import Check
from .draws import DiagnosedDraws
from .evidence import weights_of_states
from .options import DiagnosisOptions

__all__ = [
    "evidence_checks",
    "move_checks",
    "state_weight_checks",
    "weight_checks",
]


MORE = "the flow has missed mass: start chains and flow at tempered_smc particles"
RETRAIN = "train the flow longer, or use local moves too (LocalGlobalHMC)"


# ---- weights -------------------------------------------------------------------------------------
def state_weight_checks(
    draws: DiagnosedDraws, particles: Tensor | None, options: DiagnosisOptions
) -> list[Check]:
    """The tail of the weights of states, and of annealed particles where there are any.

    It decides where the sampler only jumps, and is reported elsewhere.

    Arguments:
        draws: The draws.
        particles: Log weights of particles ``(N,)``, or None.
        options: Thresholds.
    """
    log_w = weights_of_states(draws)
    if log_w is None or draws.of_a_guide:
        return []
    log_w = log_w.flatten()
    log_w = log_w[:: -(-len(log_w) // options.max_draws)]
    checks = []
    if particles is not None:
        checks.append(_without_density(draws, particles, options))
        log_w = torch.cat([log_w, particles])
    log_w = log_w[torch.isfinite(log_w)]
    if not len(log_w):
        return checks
    k = pareto_k(log_w)
    flat = float(log_w.max() - log_w.median()) <= options.flat_log_weights
    wrong = not flat and draws.jumps_only and (isnan(k) or k >= options.max_state_pareto_k)
    text = f"the weights of states have a Pareto k of {k:.2f}"
    bound = options.max_state_pareto_k if draws.jumps_only and not flat else float("nan")
    advice = RETRAIN
    return [*checks, Check("Pareto k of states", k, bound, not wrong, text, advice)]


def _without_density(draws: DiagnosedDraws, particles: Tensor, options: DiagnosisOptions) -> Check:
    """The share of particles at which the flow has no density, or does not invert."""
    share = float((particles.isnan() | (particles == torch.inf)).double().mean())
    ok = share <= options.max_far_away or not draws.jumps_only
    text = f"the flow has no density, or an unknown one, at {share:.2%} of the particles"
    bound = options.max_far_away if draws.jumps_only else float("nan")
    name = "particles without a weight"
    return Check(name, share, bound, ok, text, RETRAIN)


def weight_checks(
    draws: DiagnosedDraws, points: Tensor, log_w: Tensor, options: DiagnosisOptions
) -> list[Check]:
    r"""The weights of fresh draws of the flow, and averages by them beside those of the chains.

    The averages are those of :math:`u = F(x_i)` and :math:`(2 u - 1)^2` for each coordinate, with
    the distribution function F of the chains' draws: their expectations are 1/2 and 1/3.

    Arguments:
        draws: The draws; their ``x`` must be known.
        points: Draws of the flow, ``(M, d)``.
        log_w: Their log weights, ``(M,)``.
        options: Thresholds.
    """
    ess, k = float(ess_fraction(log_w)), pareto_k(log_w)
    flat = float(log_w.max() - log_w.median()) <= options.flat_log_weights
    low = draws.jumps_only and ess < options.min_importance_ess
    heavy = draws.of_a_guide and not flat and k >= options.max_pareto_k
    nan = float("nan")
    checks = [
        Check(
            "importance ESS of the flow",
            ess,
            options.min_importance_ess if draws.jumps_only else nan,
            not low,
            f"draws of the flow have an importance ESS of {ess:.2%}",
            RETRAIN,
            True,
        ),
        Check(
            "Pareto k of the flow",
            k,
            options.max_pareto_k if draws.of_a_guide and not flat else nan,
            not heavy,
            f"the weights of draws of the flow have a Pareto k of {k:.2f}",
            RETRAIN,
        ),
    ]
    known = (flat or k < options.max_average_pareto_k) and ess * len(
        log_w
    ) >= options.min_weighted_draws
    if known and draws.x is not None and draws.x.shape[1] > 3 and not draws.of_a_guide:
        checks.append(_weighted_averages(draws.x.double(), points.double(), log_w, options))
    return checks


def _weighted_averages(x: Tensor, y: Tensor, log_w: Tensor, options: DiagnosisOptions) -> Check:
    flat = x.flatten(0, 1)
    order = flat.sort(0).values.mT.contiguous()
    share = log_w.softmax(0)[:, None]

    def rank(points: Tensor) -> Tensor:
        return torch.searchsorted(order, points.mT.contiguous(), right=True).mT / len(flat)

    z = []
    for function in (lambda u: u, lambda u: (2 * u - 1).square()):
        mine, theirs = function(rank(flat)), function(rank(y))
        sizes = effective_sample_sizes(mine.mT.reshape(-1, *x.shape[:2]))
        mean = (share * theirs).sum(0)
        error = (share * (theirs - mean)).square().sum(0) + mine.var(0) / sizes
        z.append(((mean - mine.mean(0)) / error.clamp(min=1e-300).sqrt()).abs())
    value, bound = float(torch.cat(z).max()), _largest_score(2 * x.shape[-1], options)
    ok = value <= bound
    text = f"averages by the chains and by weighted draws of the flow are {value:.1f} errors apart"
    name = "chains and weighted draws"
    return Check(name, value, bound, ok, text, RETRAIN)


def _largest_score(m: int, options: DiagnosisOptions) -> float:
    return NormalDist().inv_cdf(1 - options.check_error / (2 * m))


# ---- moves ---------------------------------------------------------------------------------------
def move_checks(
    draws: DiagnosedDraws, modes: FoundModes | None, options: DiagnosisOptions
) -> list[Check]:
    """Moves that leave the target as it is: of the states, and of particles.

    States of a sampler that only jumps are moved by Hamiltonian Monte Carlo in the latent space of
    its flow, which must not change their distribution. A sampler that has local moves itself moves
    the particles: a place that it hardly leaves is one that it hardly enters.

    Arguments:
        draws: The draws of a run whose kernel is known.
        modes: Annealed particles, or None.
        options: Thresholds.
    """
    kernel, target, x, search = draws.kernel, draws.target, draws.x, options.search
    if kernel is None or target is None or x is None:
        return []
    if draws.jumps_only:
        if len(x) <= 2 * search.check_warmup_chains:
            return []
        each = max(1, min(x.shape[1], -(-search.check_states // len(x))))
        states = x[:, :: max(1, x.shape[1] // each)][:, :each]
        guide = kernel.guide
        if not isinstance(guide.model_source, Target):  # that runs without the model's arguments
            guide = AutoFlow(target, flow=deepcopy(guide.trained_flow))
            guide.target_for()
            guide.trained = True
        found = local_change(cast(Any, SimpleNamespace(guide=guide)), target, states, search)
        value, ok = float(found.z.abs().max()), not found.problem
        advice = RETRAIN
        return [Check("change by local moves", value, found.bound, ok, found.problem, advice)]
    if modes is None:
        return []
    few = modes.x[: options.moved_particles]  # they are in random order
    share = _immobile(kernel, target, few, search.check_immobile_steps)
    ok = share <= options.max_immobile
    text = f"it does not move {share:.2%} of the particles, and hardly enters their places"
    return [
        Check(
            "particles that do not move",
            share,
            options.max_immobile,
            ok,
            text,
            "reparametrise the model, or use a flow that follows its shape",
        )
    ]


def _immobile(kernel: Any, target: Target, particles: Tensor, steps: int) -> float:
    start = state = kernel.state_at(target.unpack_unconstrained(particles))
    for _ in range(steps):
        state, _ = kernel.step(state)
    return float((state.x == start.x).all(-1).double().mean())


# ---- evidence ------------------------------------------------------------------------------------
def evidence_checks(
    annealed: dict[str, Estimate], own: dict[str, Estimate], options: DiagnosisOptions
) -> list[Check]:
    """Log evidences of annealed particles beside those of the flow and the chains.

    A mode of mass m that the flow and the chains have missed makes their estimate too small by
    -log(1 - m). Annealed particles miss mass too, in many dimensions above all, which is no alarm.
    They rarely find too much: their estimate of the evidence is unbiased, and exceeds the truth
    c-fold with a probability of 1 / c at most.

    Arguments:
        annealed: Estimates of particles, by name.
        own: Estimates by importance and bridge sampling, by name.
        options: Thresholds.
    """
    gaps = []
    for one, a in annealed.items():
        for two, b in own.items():
            if isnan(float(a.value + a.standard_error + b.value + b.standard_error)):
                continue
            if two == "bridge" and float(b.standard_error) > options.max_evidence_error:
                continue
            more = float(a.value - b.value)
            error = sqrt(float(a.standard_error.square() + b.standard_error.square()))
            gap = more / max(error, 1e-12) if more > options.evidence_tolerance else 0.0
            text = (
                f"the log evidence is {float(b.value):.2f} by {two} sampling, and "
                f"{float(a.value):.2f} by {one}, {gap:.1f} standard errors more"
            )
            gaps.append((gap, text))
    if not gaps:
        return []
    value, text = max(gaps)
    ok = value <= options.max_evidence_gap
    most = options.max_evidence_gap
    return [Check("evidences", value, most, ok, text, MORE)]
