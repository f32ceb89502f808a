r"""Draws for ArviZ, the same call for ArviZ 0.2x (``InferenceData``) and 1.x (``DataTree``).

Whatever the source, it comes down to constrained draws, per-draw statistics and the target that
they were drawn for; the target knows the data and the likelihood of each observation.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .target.density import Target
from .target.site import Values

__all__ = ["to_arviz"]


MAX_NUMBERS = 500_000_000  #: in the largest log_likelihood group made: 2 GB in float32
FLAGS = ("accepted", "diverging")  #: statistics that MCMC's kernels report as numbers


class ExportedDraws(NamedTuple):
    """What every source comes down to.

    Attributes:
        samples: Constrained values ``{site: (chains, draws, ...)}``.
        statistics: By their names in ArviZ, ``{name: (chains, draws)}``.
        target: The posterior drawn from; None where it is unknown.
    """

    samples: Values
    statistics: Values
    target: Target | None


def to_arviz(
    source: Any,
    *args: Any,
    log_likelihood: bool = True,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence] | None = None,
    num_samples: int = 1000,
    **kwargs: Any,
) -> Any:
    r"""Draws as an ArviZ object: ``InferenceData`` in ArviZ 0.2x, ``DataTree`` in 1.x.

    The groups, of C chains and D draws each:

    - ``posterior``: constrained draws ``(C, D, ...)`` of the sites that were saved;
    - ``sample_stats`` ``(C, D)``: ``lp`` (log density of the unconstrained draw), ``log_weight``
      (:math:`\log\tilde p - \log q`), ``accepted``, ``acceptance_rate``, ``diverging``, and the
      ``step_size`` of a kernel that has one; of a guide ``lp``, ``log_q`` and ``log_weight``. Of
      Pyro's own kernels only ``diverging`` and ``acceptance_rate`` are known, the latter as the
      share of moves that the chain accepted, the same for each draw;
    - ``log_likelihood``: of each observation, ``(C, D, *batch_shape)``;
    - ``observed_data``.

    Of a run at K contexts, C/K chains of each, every variable has their dimension after chain and
    draw, ``(C/K, D, K, ...)``: named after the context's argument with its values as coordinates,
    or "context", numbered and listed in ``constant_data``, where that is more than one number. The
    other groups are left out.

    The last two need a Pyro model with observations. The log-likelihood also needs draws of every
    latent site, and memory for C · D numbers per observation: where a site was not saved or is
    summed out, or these are more than 5e8 numbers, the group is left out with a warning.

    Example::

        mcmc = VectorizedMCMC(IMH(model), num_samples=1000, num_chains=100)
        mcmc.run(data)
        az.loo(to_arviz(mcmc, dims={"theta": ["school"]}, coords={"school": names}))

    Arguments:
        source: A :class:`~pyro_flowsamp.VectorizedMCMC` or a :class:`pyro.infer.MCMC`, with any
            kernel, after ``run``; or a trained guide.
        args, kwargs: The model's arguments, for a guide; a run remembers its own.
        log_likelihood: Whether to make that group.
        dims: Names of the dimensions beyond chain and draw, by site.
        coords: Labels along named dimensions.
        num_samples: Draws of a guide, in one chain (at each context); not used for a run.

    Raises:
        ValueError: The source is none of these, has no draws yet or is untrained, or a run is
            given model arguments.
    """
    samples, statistics, target = _draws(source, args, kwargs, num_samples)
    if target is not None and target.contexts is not None:
        return _by_context(samples, statistics, target, dims or {}, coords or {})
    groups = {"posterior": samples, "sample_stats": statistics}
    if target is not None and (observed := target.observed_data()):
        groups["observed_data"] = observed
        if log_likelihood:
            groups["log_likelihood"] = _log_likelihood(target, samples)
    return _convert({name: _arrays(group) for name, group in groups.items() if group}, dims, coords)


# ---- sources -------------------------------------------------------------------------------------
def _draws(source: Any, args: tuple, kwargs: dict, num_samples: int) -> ExportedDraws:
    if hasattr(source, "trained"):
        return _guide_draws(source, args, kwargs, num_samples)
    if not (hasattr(source, "kernel") and hasattr(source, "get_samples")):
        raise ValueError(
            f"cannot export an object of type {type(source).__name__}: give a VectorizedMCMC, a "
            f"pyro.infer.MCMC or a trained flow guide."
        )
    if args or kwargs:
        raise ValueError("a run remembers its model's arguments: give them for a guide only.")
    return _run_draws(source)


@torch.no_grad()
def _guide_draws(guide: Any, args: tuple, kwargs: dict, num: int) -> ExportedDraws:
    if not guide.trained:
        raise ValueError("the guide is untrained: call guide.fit(...) first.")
    if num < 1:
        raise ValueError(f"num_samples must be at least 1, got {num}")
    target = guide.target_for(*args, **kwargs)
    contexts = 1 if target.contexts is None else len(target.contexts)
    x, log_q = guide.proposal(*args, **kwargs).sample_and_log_prob(num * contexts)
    scored = (x, target.log_prob(x).double(), log_q.double())
    x, lp, log_q = (value.unflatten(0, (num, contexts)).transpose(0, 1) for value in scored)
    statistics = {"lp": lp, "log_q": log_q, "log_weight": lp - log_q}
    return ExportedDraws(target.unpack(x), statistics, target)


def _run_draws(run: Any) -> ExportedDraws:
    samples = run.get_samples(group_by_chain=True) if getattr(run, "_samples", None) else {}
    if not any(value.numel() for value in samples.values()):
        raise ValueError("there are no draws yet: call run(...) first.")
    shape = next(iter(samples.values())).shape[:2]
    vectorized = hasattr(run, "statistics")
    statistics = _recorded(run, shape) if vectorized else _reported(run.diagnostics(), shape)
    return ExportedDraws(samples, statistics, _target(run))


def _target(run: Any) -> Target | None:
    kernel = run.kernel
    if (drawn := getattr(run, "target", None)) is not None:
        return drawn
    try:
        known = kernel.target
    except (AttributeError, RuntimeError):  # a kernel of Pyro's, or set up in other processes
        known = None
    guide: Any = getattr(kernel, "guide", None)
    if known is None and getattr(guide, "context_names", None):
        guide.restore_model(kernel.model)
        return guide.target_for(*run._args, **run._kwargs)
    if kernel.model is None or (known is not None and known.contexts is not None):
        return known
    return Target.from_model(kernel.model, *run._args, **run._kwargs)


def _recorded(run: Any, shape: torch.Size) -> Values:
    """The statistics of a vectorised run, whose chains share one step size."""
    step_size = run.step_size
    shared = {} if step_size is None else {"step_size": step_size.expand(shape)}
    return {**run.statistics, **shared}


def _reported(report: dict[str, Any], shape: torch.Size) -> Values:
    """What ``MCMC.diagnostics()`` tells, by name and chain; few kernels tell everything."""
    chains = [f"chain {i}" for i in range(shape[0])]
    statistics = {}
    for name, key in (("acceptance_rate", "acceptance rate"), ("step_size", "step size")):
        if key in report:
            values = torch.tensor([report[key][chain] for chain in chains], dtype=torch.double)
            statistics[name] = values[:, None].expand(shape)
    if "divergences" in report:
        statistics["diverging"] = torch.zeros(shape, dtype=torch.bool)
        for row, chain in zip(statistics["diverging"], chains):
            row[report["divergences"][chain]] = True
    recorded = [report.get("statistics", {}).get(chain, {}) for chain in chains]
    for name in recorded[0]:
        value = torch.stack([torch.as_tensor(chain[name]) for chain in recorded])
        statistics[name] = value.bool() if name in FLAGS else value
    return statistics


# ---- groups --------------------------------------------------------------------------------------
def _log_likelihood(target: Target, samples: Values) -> Values:
    """``{observed site: (chains, draws, *batch_shape)}``; empty, with a warning, if impossible."""
    missing = [s.name for s in target.sites if s.name not in samples]
    if missing:
        return _left_out(f"the draws of {missing} were not saved (save_params)")
    if target.enumerated:
        return _left_out("the model has discrete sites, which were summed out")
    shape = samples[target.sites[0].name].shape[:2]
    flat = {s.name: samples[s.name].flatten(0, 1) for s in target.sites}
    first = target.pointwise_log_likelihood({name: v[:1] for name, v in flat.items()})
    numbers = shape.numel() * sum(v.numel() for v in first.values())
    if numbers > MAX_NUMBERS:
        return _left_out(f"it would hold {numbers:.1e} numbers; draw or keep fewer (thin=...)")
    values = target.pointwise_log_likelihood(flat)
    return {name: v.unflatten(0, shape) for name, v in values.items()}


def _by_context(
    samples: Values, statistics: Values, target: Target, dims: Mapping, coords: Mapping
) -> Any:
    """Draws of which chain i is at the context of i mod K, with a dimension for these."""
    contexts = target.contexts
    assert contexts is not None
    num, single = len(contexts), contexts.shape[1] == 1
    name = target.context_names[0] if single else "context"
    rows = [[float(f"{v:.7g}") for v in row] for row in contexts.tolist()]  # .05, not float32's
    values = [row[0] for row in rows] if single else list(range(num))

    def split(group: Values) -> Values:
        shaped = {key: torch.as_tensor(v).unflatten(0, (-1, num)) for key, v in group.items()}
        return {key: v.transpose(1, 2) for key, v in shaped.items()}

    groups = {"posterior": split(samples), "sample_stats": split(statistics)}
    if not single:
        groups["constant_data"] = {"context_values": torch.tensor(rows, dtype=torch.double)}
    dims = {key: [name, *dims.get(key, ())] for group in groups.values() for key in group}
    arrays = {key: _arrays(group) for key, group in groups.items()}
    return _convert(arrays, dims, {**coords, name: values})


def _left_out(reason: str) -> Values:
    warnings.warn(
        f"no log_likelihood group: {reason}. log_likelihood=False silences this.", stacklevel=4
    )
    return {}


def _arrays(group: Values) -> dict[str, Any]:
    return {name: torch.as_tensor(value).detach().cpu().numpy() for name, value in group.items()}


def _convert(groups: dict[str, Any], dims: Any, coords: Any) -> Any:
    """The one place that knows ArviZ and its versions."""
    import arviz as az  # here, since it is slow to import, and warns

    names: dict[str, Any] = {"dims": {k: list(v) for k, v in (dims or {}).items()}}
    names["coords"] = coords
    with warnings.catch_warnings():  # many short chains are what vectorised kernels are for
        warnings.filterwarnings("ignore", "(More|Found) chain")
        if az.__version__.startswith("0."):  # 1.x has shims for names of 0.x
            return az.from_dict(**groups, **names)
        return az.from_dict(groups, **names)
