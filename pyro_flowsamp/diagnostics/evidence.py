r"""The evidence :math:`Z = \int \tilde p(x)\,dx` of a run, a guide, log weights, or ``sample()``.

*Importance sampling* averages the weights :math:`w = \tilde p / q` of draws of the flow q, the
largest of them smoothed. *Bridge sampling* uses draws of the target too:

.. math:: Z = \frac{\mathbb E_q[\tilde p\, h]}{\mathbb E_p[q\, h]},\qquad
          h = \frac{1}{s_1 \tilde p + s_2 Z q},

for any function h with finite means; this one has the least error for independent draws, where
:math:`s_1 : s_2` is the ratio of effective draws of p and of q. Z on the right is that of the
iteration before. The ratios :math:`\tilde p / (s_1 \tilde p + s_2 Z q) \le 1 / s_1` and
:math:`q / (s_1 \tilde p + s_2 Z q) \le 1 / (s_2 Z)` are bounded, so that the estimate has a
variance whatever the tails of the weights are.

*Rounding.* The weights of a flow that is nearly exact hardly vary, and their spread gives an error
far below the rounding of :math:`\log\tilde p`, which all of them may have in common. So its size is
added to the error (:func:`~pyro_flowsamp.weights.rounding_size`). Of log weights alone it is not
known.

None of them sees a mode that neither the flow nor the chains have reached. Annealed particles may:
:func:`~pyro_flowsamp.sample` compares their evidence with that of bridge sampling, and stores the
latter where it lacks no mass. :func:`evidence_estimates` has all that there are; they should agree.

References:
    Xiao-Li Meng and Wing Hung Wong, *Simulating ratios of normalizing constants via a simple
    identity: a theoretical exploration*, 1996,
    https://www3.stat.sinica.edu.tw/statistica/j6n4/j6n43/j6n43.htm

    Sylvia Frühwirth-Schnatter, *Estimating marginal likelihoods for mixture and Markov switching
    models using bridge sampling techniques*, 2004,
    https://doi.org/10.1111/j.1368-423X.2004.00125.x (the standard error)
"""

from __future__ import annotations

from math import inf, isnan, log
from typing import Any

import torch
from torch import Tensor

from ..convergence import effective_sample_sizes
from ..trust import FlowDraws, draws_of_flow
from ..weights import (
    Estimate,
    degrees_of_variance,
    log_mean_weight,
    smoothed_log_weights,
    summed_degrees,
)
from .draws import DiagnosedDraws, read_draws
from .options import EvidenceOptions

__all__ = [
    "FEWEST_DRAWS",
    "bridge_evidence",
    "estimates_of_draws",
    "evidence_estimates",
    "log_evidence",
    "weights_of_states",
]


FEWEST_DRAWS = 4  #: draws of a chain from which on effective sample sizes are defined


def log_evidence(
    source: Any,
    *args: Any,
    guide: Any = None,
    target: Any = None,
    options: EvidenceOptions = EvidenceOptions(),
    **kwargs: Any,
) -> Estimate:
    r"""The log evidence :math:`\log Z`, with its standard error.

    - Of log weights ``(N, ...)``: :math:`\log \frac1N \sum_i w_i` of each column; of one column
      with the degrees of freedom of its error.
    - Of a trained guide: importance sampling with smoothed weights of fresh draws.
    - Of a run: bridge sampling between its draws and fresh draws of its flow.
    - Of an ArviZ object, or a run of Pyro's own kernels: bridge sampling where a guide and a target
      are given. Where a target is given alone, bridge sampling between the draws and a mixture
      that is fitted to half of them (:mod:`pyro_flowsamp.diagnostics.fitted_evidence`).
    - Of an ArviZ object alone: the estimate that ``sample()`` has stored.

    The evidence is that of the model, so that two models of the same data can be compared by it
    (``az.compare`` compares them by their predictions instead). It depends on the prior, also where
    the posterior hardly does. The density must be normalised, as that of a Pyro model is; else it
    is the logarithm of the integral of whatever it is.

    :meth:`Estimate.interval <pyro_flowsamp.weights.Estimate.interval>` takes the degrees of freedom
    of the standard error: few where few draws or islands decide it.

    Arguments:
        source: Any of these.
        args, kwargs: Arguments of the model, for a guide.
        guide: A trained guide whose flow is used, for an ArviZ object or a run of Pyro's own
            kernels.
        target: The target; needed where the source does not know it.
        options: Number of draws, and when iterations end.

    Returns:
        Two tensors, 0-d, or of one number for each column of weights.

    Raises:
        ValueError: The source is none of these, or the flow or the target is not known.

    References:
        Aki Vehtari, Daniel Simpson, Andrew Gelman, Yuling Yao and Jonah Gabry, *Pareto Smoothed
        Importance Sampling*, 2024, https://arxiv.org/abs/1507.02646

        Meng & Wong, *Simulating ratios of normalizing constants via a simple identity*, 1996,
        https://www3.stat.sinica.edu.tw/statistica/j6n4/j6n43/j6n43.htm

    Example::

        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_flowsamp import IMH, AutoFlow, FitOptions, VectorizedMCMC
        >>> _ = pyro.set_rng_seed(0)
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> guide = AutoFlow(model, flow="gaussian", options=FitOptions(progress=False))
        >>> run = VectorizedMCMC(IMH(model, guide=guide), 50, 10, 20, disable_progbar=True)
        >>> run.run(torch.tensor(1.0))
        >>> found = log_evidence(run)
        >>> truth = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(1.0))
        >>> bool(abs(found.value - truth) < 0.01)
        True
    """
    if isinstance(source, Tensor):
        found = log_mean_weight(source)
        if source.dim() > 1:
            return found
        relative = (source.double() - found.value).exp()
        return Estimate(*found, degrees_of_variance(relative, len(source)))
    if hasattr(source, "trained") and hasattr(source, "proposal"):
        if not source.trained:
            raise ValueError("the guide is untrained: call guide.fit(...) first")
        target = target or source.target_for(*args, **kwargs)
        proposal = source.proposal(*args, **kwargs)
        return _importance(draws_of_flow(proposal, target, options.num_draws))
    if args or kwargs:
        raise ValueError("a run has stored its model's arguments: give them for a guide only")
    draws = read_draws(source, guide, target)
    if target is not None and draws.proposal is None and draws.x is not None:
        from .fitted_evidence import fitted_evidence  # it needs bridge_evidence of this module

        assert draws.target is not None
        return fitted_evidence(draws.x, draws.target, options)
    estimates = estimates_of_draws(draws, options)
    for name in ("bridge", "importance", "stored"):
        if name in estimates:
            return estimates[name]
    raise ValueError(
        "the evidence needs a flow and a target: give guide= and target=, or a result of sample()"
    )


def evidence_estimates(
    source: Any,
    guide: Any = None,
    target: Any = None,
    options: EvidenceOptions = EvidenceOptions(),
) -> dict[str, Estimate]:
    """All estimates of the log evidence that can be made, which should agree.

    Arguments:
        source: A run, or an ArviZ object.
        guide, target: A trained guide and the target, where the source does not know them.
        options: Number of draws, and when iterations end.

    Returns:
        Those of "bridge", "importance" and "stored" that there are; the last is the one that
        :func:`~pyro_flowsamp.sample` has stored in its result.

    Raises:
        ValueError: See :func:`log_evidence`.

    Example:
        >>> import xarray as xr
        >>> class Result(dict):  # stands for an ArviZ object of sample()
        ...     attrs = {"log_evidence": -3.0, "log_evidence_error": 0.1}
        >>> x = torch.zeros(2, 9).numpy()
        >>> result = Result(posterior=xr.Dataset({"x": (("chain", "draw"), x)}))
        >>> {name: float(found.value) for name, found in evidence_estimates(result).items()}
        {'stored': -3.0}
    """
    return estimates_of_draws(read_draws(source, guide, target), options)


def estimates_of_draws(
    draws: DiagnosedDraws, options: EvidenceOptions, made: FlowDraws | None = None
) -> dict[str, Estimate]:
    """All estimates that draws allow, by name.

    Arguments:
        draws: The draws.
        options: Number of draws, and when iterations end.
        made: Draws of the flow that have been made already, in place of new ones.

    Returns:
        Those of "importance", "bridge" and "stored" that there are.

    Example:
        >>> from pyro_flowsamp import Target
        >>> from pyro_flowsamp.flows import Proposal, gaussian
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> x = torch.zeros(2, 9, 1)
        >>> flow = Proposal(gaussian(1))  # standard normal, as the target is
        >>> draws = DiagnosedDraws(x, ("x",), x, {}, {}, target, flow, None, None)
        >>> found = estimates_of_draws(draws, EvidenceOptions(num_draws=100))
        >>> {name: round(float(log_z.value), 4) for name, log_z in found.items()}  # log(2π) / 2
        {'importance': 0.9189, 'bridge': 0.9189}
    """
    found: dict[str, Estimate] = {}
    if draws.proposal is not None and draws.target is not None:
        if made is None:
            made = draws_of_flow(draws.proposal, draws.target, options.num_draws)
        found["importance"] = _importance(made)
        states = None if draws.of_a_guide else weights_of_states(draws)
        if states is not None and states.shape[1] >= FEWEST_DRAWS:
            bridge = bridge_evidence(states, made.log_weights, options)
            found["bridge"] = bridge.with_error(made.rounding)
    value = draws.attributes.get("log_evidence", float("nan"))
    error = draws.attributes.get("log_evidence_error", float("nan"))
    if not isnan(float(value)):
        value, error = (torch.tensor(float(v)).double() for v in (value, error))
        degrees = float(draws.attributes.get("log_evidence_degrees", inf))
        found["stored"] = Estimate(value, error, degrees)
    return found


def weights_of_states(draws: DiagnosedDraws) -> Tensor | None:
    """Log weights of the states under the flow, ``(C, n)``; None where they are not known.

    Recorded ones belong to the flow of the run. With another flow they are computed anew.

    Arguments:
        draws: The draws.

    Example:
        >>> x = torch.zeros(1, 2, 1)
        >>> recorded = {"log_weight": torch.tensor([[1.0, 2.0]])}
        >>> weights_of_states(DiagnosedDraws(x, ("x",), x, recorded, {}, None, None, None, None))
        tensor([[1., 2.]], dtype=torch.float64)
    """
    recorded = draws.statistics.get("log_weight")
    if draws.kernel is not None or draws.proposal is None:
        return None if recorded is None else recorded.double()
    if draws.x is None or draws.target is None:
        return None
    x = draws.x.flatten(0, 1)
    with torch.no_grad():
        log_w = draws.target.log_prob(x).double() - draws.proposal.log_prob(x).double()
    return log_w.unflatten(0, draws.x.shape[:2])


def _importance(made: FlowDraws) -> Estimate:
    smooth = smoothed_log_weights(made.log_weights)
    value, error = log_mean_weight(smooth)
    degrees = degrees_of_variance((smooth - value).exp(), len(smooth))
    return Estimate(value, error, degrees).with_error(made.rounding)


def bridge_evidence(
    states: Tensor, fresh: Tensor, options: EvidenceOptions = EvidenceOptions()
) -> Estimate:
    r"""The log evidence by bridge sampling.

    With the log weights l of N states of chains and of M draws of the flow, the effective number
    :math:`n` of the states, :math:`s_1 = n / (n + M)` and :math:`s_2 = M / (n + M)`, the iteration
    is

    .. math:: r \leftarrow \frac{\frac1M \sum_j e^{l_j} / (s_1 e^{l_j} + s_2 r)}
                                {\frac1N \sum_i 1 / (s_1 e^{l_i} + s_2 r)} .

    The relative variance is :math:`\mathrm{Var}_q f / (M (\mathbb E_q f)^2) +
    \mathrm{Var}_p g / (n_g (\mathbb E_p g)^2)`, with the summands f and g, and the effective number
    :math:`n_g` of the g of the states. That r itself is estimated adds nothing of this order:
    :math:`\mathbb E_q f / \mathbb E_p g = Z` for every r, so that its derivative by r is zero. The
    two variances have degrees of freedom by :func:`~pyro_flowsamp.weights.degrees_of_variance`, of
    M and of :math:`n_g` values, and their sum those of Welch.

    Arguments:
        states: Log weights of states, ``(chains, draws)``.
        fresh: Log weights of independent draws of the flow, ``(M,)``.
        options: When iterations end.

    Returns:
        The estimate, with its degrees of freedom; NaN where all weights are zero.

    Example:
        >>> states = torch.zeros(4, 100)
        >>> float(bridge_evidence(states, torch.zeros(400)).value)
        0.0
    """
    states, fresh = states.double(), fresh.double()
    ratio = torch.sigmoid(states - fresh.logsumexp(0) + log(len(fresh)))
    size = float(effective_sample_sizes(ratio[None])[0])
    s1, s2 = log(size / (size + len(fresh))), log(len(fresh) / (size + len(fresh)))
    log_r = log_mean_weight(fresh).value
    for _ in range(options.max_steps):
        f, g = _bridge_terms(states, fresh, s1, s2, log_r)
        new = f.logsumexp(0) - log(len(f)) - g.flatten().logsumexp(0) + log(g.numel())
        done = bool((new - log_r).abs() <= options.tolerance) or bool(new.isnan())
        log_r = new
        if done:
            break
    log_f, log_g = _bridge_terms(states, fresh, s1, s2, log_r)
    f, g = log_f.exp(), (log_g + log_r).exp()  # g times r: its square overflows without
    size = float(effective_sample_sizes(g[None])[0])
    of_flow = f.var() / (len(f) * f.mean().square())
    of_states = g.var() / (size * g.mean().square())
    degrees = summed_degrees(
        (float(of_flow), degrees_of_variance(f, len(f))),
        (float(of_states), degrees_of_variance(g, size)),
    )
    return Estimate(log_r, (of_flow + of_states).sqrt(), degrees)


def _bridge_terms(
    states: Tensor, fresh: Tensor, s1: float, s2: float, log_r: Tensor
) -> tuple[Tensor, Tensor]:
    """Logs of the summands f of draws of the flow, and g of states."""
    f = fresh - torch.logaddexp(s1 + fresh, s2 + log_r)
    return f, -torch.logaddexp(s1 + states, s2 + log_r)
