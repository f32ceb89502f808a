"""A check of the states at which an independence sampler stays longest."""

from __future__ import annotations

from torch import Tensor

from ..stays import ess_of_longest_stays, ess_of_rare_states, expected_stays
from .agreement import RETRAIN
from .checks import Check
from .draws import DiagnosedDraws
from .evidence import weights_of_states
from .options import DiagnosisOptions

__all__ = ["rare_states_check"]


def rare_states_check(
    draws: DiagnosedDraws,
    of_flow: Tensor,
    particles: Tensor | None,
    weights: Tensor | None,
    options: DiagnosisOptions,
) -> list[Check]:
    """The effective number of draws of the states at which an independence sampler stays longest.

    Chains that have hardly been in a tail do not show how long they would stay there. So the states
    are those of the chains, and annealed particles; the smaller number counts, see
    :mod:`pyro_flowsamp.stays`.
    No stay counts for more than the steps of a chain: of such states the mass is looked at.

    Arguments:
        draws: The draws.
        of_flow: Log weights of draws of the flow, ``(M,)``.
        particles: Log weights of particles, ``(N,)``, or None.
        weights: Weights of the particles, ``(N,)``, or None.
        options: The share of the states, and the least effective number.

    Returns:
        The check; none where the sampler has local moves.

    Example:
        >>> import torch
        >>> x, log_w = torch.zeros(4, 100, 1), torch.zeros(4, 100)
        >>> draws = DiagnosedDraws(x, ("x",), x, {"log_weight": log_w}, {}, None, None, None, None)
        >>> particles = torch.tensor([0.0, 5.0]).repeat_interleave(torch.tensor([99, 1]))
        >>> check = rare_states_check(draws, torch.zeros(9), particles, None, DiagnosisOptions())[0]
        >>> round(check.value, 2), check.ok  # 400 / (2 · 100 - 1)
        (2.01, False)
    """
    log_w = weights_of_states(draws)
    if log_w is None or not draws.jumps_only:
        return []
    share, steps = options.search.rare_states, log_w.shape[1] * draws.thin
    sizes = [ess_of_rare_states(log_w, draws.thin, share, of_flow)]
    if particles is not None:
        known = particles.isfinite()  # another check counts the rest
        stays = expected_stays(particles[known], of_flow).clamp(max=steps)
        mass = None if weights is None else weights[known]
        sizes.append(ess_of_longest_stays(stays, len(log_w) * steps, share, mass))
    value, least = min(sizes), options.min_ess
    text = (
        f"the {share:.0%} of states at which chains would stay longest have an effective sample "
        f"size of {value:.0f}, not {least}: the flow is thin there"
    )
    return [Check("ESS of rare states", value, least, value >= least, text, RETRAIN, True)]
