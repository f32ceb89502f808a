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
from ..stays import expected_stays
from ..target.density import Target
from ..trust import draws_of_flow, ends_of_steps, local_change, weights_problem
from ..weights import Estimate, are_flat, ess_fraction, pareto_k
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
LONGEST_STAY = 1e200  #: steps of a stay that are reported at most, as it may be infinite
RETRAIN = "train the flow longer, or use local moves too (LocalGlobalHMC)"


# ---- weights -------------------------------------------------------------------------------------
def state_weight_checks(
    draws: DiagnosedDraws,
    particles: Tensor | None,
    options: DiagnosisOptions,
    shares: Tensor | None = None,
) -> list[Check]:
    """The weights of states, and of annealed particles: where a sampler that jumps would stay.

    With particles the mass of the regions that are left too seldom decides, see
    :func:`_stay_checks`, and the Pareto k is reported only. Without them k decides too: states do
    not show the regions that chains have not entered, and the tail of the weights may.

    Arguments:
        draws: The draws.
        particles: Log weights of particles ``(N,)``, or None.
        options: Thresholds.
        shares: The share of each particle, ``(N,)``; None where they are equal.

    Example:
        >>> x = torch.zeros(4, 100, 1)
        >>> stats = {"log_weight": -3 * torch.rand(4, 100, generator=torch.manual_seed(0)).log()}
        >>> draws = DiagnosedDraws(x, ("x",), x, stats, {}, None, None, None, None)
        >>> check = state_weight_checks(draws, None, DiagnosisOptions())[1]
        >>> check.name, check.value > 1, check.ok  # the weights 1 / u³ have k = 3
        ('Pareto k of states', True, False)
    """
    log_w = weights_of_states(draws)
    if log_w is None or draws.of_a_guide:
        return []
    log_w = log_w.flatten()
    checks = _stay_checks(draws, log_w, particles, shares, options) if draws.jumps_only else []
    log_w = log_w[:: -(-len(log_w) // options.max_draws)]
    if particles is not None:
        checks.append(_without_density(draws, particles, options))
        log_w = torch.cat([log_w, particles])
    log_w = log_w[torch.isfinite(log_w)]
    if not len(log_w):
        return checks
    k = pareto_k(log_w)
    decides = draws.jumps_only and particles is None
    decides = decides and not are_flat(log_w, options.flat_log_weights)
    wrong = decides and (isnan(k) or k >= options.max_state_pareto_k)
    text = f"the weights of states have a Pareto k of {k:.2f}"
    bound = options.max_state_pareto_k if decides else float("nan")
    advice = RETRAIN
    return [*checks, Check("Pareto k of states", k, bound, not wrong, text, advice)]


def _stay_checks(
    draws: DiagnosedDraws,
    log_w: Tensor,
    particles: Tensor | None,
    shares: Tensor | None,
    options: DiagnosisOptions,
) -> list[Check]:
    r"""The mass of regions in which an independence sampler stays longer than its chains are.

    At a state of weight w it stays for 1 / a(w) steps in the mean (:mod:`pyro_flowsamp.stays`). Let
    n be the steps of a chain, those before its draws included, and

    .. math:: m = P_p(1 / a(w) > n)

    the mass of the region of stays longer than these. A stationary chain leaves it in a step with
    the probability :math:`\mathbb E_p[a\, 1_{1 / a > n}] < m / n` at most, and enters it as seldom:
    less than m times in n steps.

    So chains that did not begin there lack about this mass, and a share that they give is off by up
    to m. Particles, which have come there on other ways, estimate m by the share of them there; the
    states do not, where no chain has been. The larger share of the two must be at most
    ``max_stay_mass``.

    Without particles the longest stay decides, where the weights have a heavy tail: elsewhere no
    weight is much larger than those that the chains have left again.

    Arguments:
        draws: The draws, of a sampler that only jumps.
        log_w: Log weights of the states, ``(N,)``.
        particles, shares: Log weights of particles, and their shares; None as above.
        options: The longest stay, the mass, and the Pareto k of a heavy tail.
    """
    earlier = options.earlier_steps if draws.earlier is None else int(draws.earlier)
    steps = earlier + draws.columns.shape[1] * draws.thin
    log_w = log_w[log_w.isfinite()]
    if not len(log_w):
        return []
    stays = expected_stays(log_w)
    stay = min(float(stays.max()), LONGEST_STAY)
    bound, name = options.max_stay * steps, "longest expected stay"
    if particles is None:
        wrong = weights_problem(log_w, options.search)
        text = f"chains stay at single draws for up to {stay:.2g} steps: {wrong}"
        most = bound if wrong else float("nan")
        return [Check(name, stay, most, not wrong or stay <= bound, text, RETRAIN)]
    known = ~particles.isnan()  # another check counts the rest
    long = ((expected_stays(particles, states=log_w) > bound) & known).double()
    of_particles = float(long.mean() if shares is None else long @ shares.to(long))
    mass = max(of_particles, float((stays > bound).double().mean()))
    text = (
        f"chains hardly leave, and so hardly enter, regions with about {mass:.2%} of the mass, "
        f"where they would stay for more than their {steps} steps"
    )
    most = options.max_stay_mass
    return [
        Check(name, stay, float("nan"), True),
        Check("mass of long stays", mass, most, mass <= most, text, RETRAIN),
    ]


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

    Averages are compared where the weights have a variance. Fresh draws of the flow hardly show a
    region where it is thin, but states do: their weights have the shape k / (1 - k), which must
    show the same. The averages are those of :math:`u = F(x_i)` and :math:`(2 u - 1)^2` for each
    coordinate, with the distribution function F of the chains' draws: their expectations are 1/2
    and 1/3. Where they differ, new draws of the flow must differ too: few draws with large weights
    have errors that are less normal than those of the chains.

    Arguments:
        draws: The draws; their ``x`` must be known.
        points: Draws of the flow, ``(M, d)``.
        log_w: Their log weights, ``(M,)``.
        options: Thresholds.

    Example:
        >>> x = torch.zeros(4, 2, 1)
        >>> stats = {"log_weight": x[..., 0]}
        >>> draws = DiagnosedDraws(x, ("x",), x, stats, {}, None, None, None, None)
        >>> log_w = torch.tensor([0.0, 0.0, -torch.inf, -torch.inf])  # half have a weight
        >>> check = weight_checks(draws, torch.zeros(4, 1), log_w, DiagnosisOptions())[0]
        >>> check.name, check.value, check.ok
        ('importance ESS of the flow', 0.5, True)
    """
    ess, k = float(ess_fraction(log_w)), pareto_k(log_w)
    flat = are_flat(log_w, options.flat_log_weights)
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
    most = options.max_average_pareto_k
    known = (flat or k < most) and ess * len(log_w) >= options.min_weighted_draws
    if known and (states := weights_of_states(draws)) is not None:
        states = states.flatten()[:: -(-states.numel() // options.max_draws)]
        states = states[torch.isfinite(states)]
        even = are_flat(states, options.flat_log_weights)
        known = even or pareto_k(states) < most / (1 - most)
    if not known or draws.x is None or draws.x.shape[1] <= 3 or draws.of_a_guide:
        return checks
    x = draws.x.double()
    found = _weighted_averages(x, points.double(), log_w, options)
    if not found.ok and draws.proposal is not None and draws.target is not None:
        new = draws_of_flow(draws.proposal, draws.target, len(points))
        again = _weighted_averages(x, new.x.double(), new.log_weights, options)
        found = min(found, again, key=lambda check: check.value)
    return [*checks, found]


def _weighted_averages(x: Tensor, y: Tensor, log_w: Tensor, options: DiagnosisOptions) -> Check:
    flat = x.flatten(0, 1).mT.contiguous()  # rows are sorted faster than columns
    order, share = flat.sort(-1).values, log_w.softmax(0)

    def rank(points: Tensor) -> Tensor:
        return torch.searchsorted(order, points, right=True) / flat.shape[-1]

    mine, theirs = rank(flat), rank(y.mT.contiguous())
    z = []
    for u, v in ((mine, theirs), ((2 * mine - 1).square(), (2 * theirs - 1).square())):
        sizes = effective_sample_sizes(u.double().unflatten(-1, x.shape[:2]))
        mean = (share * v).sum(-1)
        error = (share * (v - mean[:, None])).square().sum(-1) + u.var(-1) / sizes
        z.append(((mean - u.mean(-1)) / error.clamp(min=1e-300).sqrt()).abs())
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

    Example:
        >>> x = torch.zeros(4, 2, 1)
        >>> draws = DiagnosedDraws(x, ("x",), x, {}, {}, None, None, None, None)
        >>> move_checks(draws, None, DiagnosisOptions())  # nothing to move without the kernel
        []
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
    starts, ends = ends_of_steps(kernel, target, few, search.check_immobile_steps)
    share = float((ends == starts).all(-1).double().mean())
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

    Example:
        >>> def of(value):
        ...     return Estimate(torch.tensor(value), torch.tensor(0.1))
        >>> more, less = {"particles": of(-9.0)}, {"importance": of(-10.0)}
        >>> [evidence_checks(one, two, DiagnosisOptions())[0].ok for one, two in
        ...     ((more, less), (less, more))]  # particles that find more mass are an alarm
        [False, True]
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
