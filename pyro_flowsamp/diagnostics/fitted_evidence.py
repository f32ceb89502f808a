r"""The evidence of draws alone: bridge sampling from a mixture that is fitted to half of them.

Chains of Hamiltonian Monte Carlo have no flow whose draws could be weighted. But a Gaussian mixture
q that is fitted to the draws of one half of the chains is independent of the other half, and bridge
sampling between them,

.. math:: Z = \frac{\mathbb E_q[\tilde p\, h]}{\mathbb E_p[q\, h]},

is consistent whatever q is, see :func:`~pyro_flowsamp.diagnostics.evidence.bridge_evidence`. Draws
to which q was fitted would not do: q is too large at them, and Z comes out too small. The halves
change places, and the mean of the two estimates of log Z is taken. With their standard errors
:math:`s_1` and :math:`s_2`, which come of different chains and of different draws of q, that of the
mean is :math:`\frac12 (s_1^2 + s_2^2)^{1/2}`, with the degrees of freedom of Welch. An error by
rounding of :math:`\log\tilde p` is common to both, and is added to that of the mean.

References:
    Antony M. Overstall and Jonathan J. Forster, *Default Bayesian model determination methods for
    generalised linear mixed models*, 2010, https://doi.org/10.1016/j.csda.2010.03.008 (fitting to
    one half of the draws)

    Quentin F. Gronau, Alexandra Sarafoglou, Dora Matzke and others, *A tutorial on bridge
    sampling*, 2017, https://doi.org/10.1016/j.jmp.2017.09.005
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..flows.mixture_fit import fit_mixture
from ..smc.coordinates import WhitenedTarget
from ..target.density import Target
from ..weights import Estimate, rounding_size, summed_degrees
from .evidence import bridge_evidence
from .options import EvidenceOptions

__all__ = ["fitted_evidence"]


FEWEST_KEPT = 16  #: draws of a chain that thinning leaves, for its effective sample size


@torch.no_grad()
def fitted_evidence(
    x: Tensor, target: Target, options: EvidenceOptions = EvidenceOptions()
) -> Estimate:
    r"""The log evidence by bridge sampling between draws and a mixture fitted to others of them.

    It does not see a mode that no chain has reached.

    Arguments:
        x: Unconstrained draws of chains, ``(C, n, d)``. A single chain is cut in the middle.
        target: The target, without angles and at one context.
        options: Number of draws of the mixture, its components, and when iterations end.

    Returns:
        Two 0-d tensors, float64.

    Raises:
        ValueError: The target has angles, or each half has too few draws for a covariance.

    Example:
        >>> import math
        >>> _ = torch.manual_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> value, error = fitted_evidence(torch.randn(4, 500, 2), target)
        >>> bool(abs(value - math.log(2 * math.pi)) < 4 * error < 0.1)
        True
    """
    if target.circular:
        raise ValueError(
            "a mixture of Gaussians is no density of angles: give guide= with a circular flow"
        )
    first, second = _halves(x.double(), options)
    both = [
        _bridged(fitted, states, target, options)
        for fitted, states in ((first, second), (second, first))
    ]
    found, rounding = [one for one, _ in both], max(size for _, size in both)
    value = torch.stack([one.value for one in found]).mean()
    variance = torch.stack([one.standard_error for one in found]).square().sum()
    parts = ((float(one.standard_error) ** 2, one.degrees) for one in found)
    mean = Estimate(value, 0.5 * variance.sqrt(), summed_degrees(*parts))
    return mean.with_error(rounding)


def _halves(x: Tensor, options: EvidenceOptions) -> tuple[Tensor, Tensor]:
    """Two sets of chains that share no draw, thinned to at most ``max_states`` draws each."""
    if len(x) > 1:
        halves = x[::2], x[1::2]
    else:
        middle = x.shape[1] // 2
        halves = x[:, :middle], x[:, middle:]
    least = min(half.shape[0] * half.shape[1] for half in halves)
    needed = int(options.draws_per_dimension * x.shape[2]) + 1
    if least < needed:
        raise ValueError(
            f"{least} draws in each half are too few to fit a covariance in {x.shape[2]} "
            f"dimensions, which needs {needed}: draw more, or give guide="
        )
    return tuple(_thinned(half, options.max_states) for half in halves)  # type: ignore[return-value]


def _thinned(x: Tensor, most: int) -> Tensor:
    """Every k-th draw; of chains that are shorter than that, every k-th chain."""
    step = -(-x.shape[0] * x.shape[1] // most)
    along = min(step, max(1, x.shape[1] // FEWEST_KEPT))
    return x[:: -(-step // along), ::along]


def _bridged(
    fitted: Tensor, states: Tensor, target: Target, options: EvidenceOptions
) -> tuple[Estimate, float]:
    """The log evidence by states ``(C, n, d)``, with a mixture fitted to other draws.

    Beside it, the size of the rounding of the target's log density. States and mixture are in
    coordinates where the draws of the fit have unit covariance.
    """
    x = fitted.flatten(0, 1)
    covariance = torch.cov(x.mT).reshape(x.shape[1], x.shape[1])
    density = WhitenedTarget(target, x.mean(0), torch.linalg.cholesky(covariance))
    q = fit_mixture(density.to_u(x), options.max_components)

    def log_p_and_weights(u: Tensor) -> tuple[Tensor, Tensor]:
        log_p = density.log_prob(u)
        return log_p, torch.where(log_p.isfinite(), log_p - q.log_prob(u), -torch.inf)

    log_p, fresh = log_p_and_weights(q.sample(options.num_draws))
    of_states = log_p_and_weights(density.to_u(states.flatten(0, 1)))[1]
    found = bridge_evidence(of_states.unflatten(0, states.shape[:2]), fresh, options)
    return found, rounding_size(log_p, target.dtype)
