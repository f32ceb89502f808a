r"""Export of draws to ArviZ 0.2x (``InferenceData``) and 1.x (``DataTree``), by the same call.

Each source is turned into constrained draws, statistics of each draw, and the target that they were
drawn from. The target has the data and the likelihood of each observation.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .target.context import split_by_context
from .target.density import Target
from .target.site import Values

__all__ = ["to_arviz"]


MAX_NUMBERS = 500_000_000  #: numbers of the largest log_likelihood group: 2 GB in float32
FLAGS = ("accepted", "diverging")  #: Boolean statistics, which Pyro's MCMC reports as numbers


class ExportedDraws(NamedTuple):
    """The draws of a source, in the form that all sources are turned into.

    Attributes:
        samples: Constrained values ``{site: (chains, draws, ...)}``.
        statistics: Statistics of each draw by their names in ArviZ, ``{name: (chains, draws)}``.
        target: The posterior that was drawn from; None where it is unknown.
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
    r"""Turns draws into an ArviZ object: ``InferenceData`` in ArviZ 0.2x, ``DataTree`` in 1.x.

    The groups, for C chains with D draws each, are:

    - ``posterior``: constrained draws ``(C, D, ...)`` of the sites that were saved;
    - ``sample_stats`` ``(C, D)``: ``lp`` (log density of the unconstrained draw), ``log_weight``
      (:math:`\log\tilde p - \log q`), ``accepted``, ``acceptance_rate``, ``diverging``, and
      ``step_size`` if the kernel has one. A guide has ``lp``, ``log_q`` and ``log_weight``. Pyro's
      own kernels have only ``diverging`` and ``acceptance_rate``, the latter as the share of moves
      that the chain accepted, the same for each draw;
    - ``log_likelihood``: of each observation, ``(C, D, *batch_shape)``;
    - ``observed_data``.

    The last two need a Pyro model with observations. The log-likelihood also needs draws of every
    latent site, and memory for C · D numbers per observation. If a site was not saved or is summed
    out, or if there are more than 5e8 numbers, the group is left out with a warning.

    A run at K contexts has C/K chains for each. Its variables have a dimension for the context
    after chain and draw, ``(C/K, D, K, ...)``. If the context is one number this dimension has the
    name of the model argument, and its values as coordinates. Otherwise it is called "context", and
    ``constant_data`` lists the values. Only ``posterior`` and ``sample_stats`` are made.

    Arguments:
        source: A :class:`~pyro_flowsamp.VectorizedMCMC` or a :class:`pyro.infer.MCMC`, with any
            kernel, after ``run``; or a trained guide.
        args, kwargs: Arguments of the model, for a guide; a run has stored its own.
        log_likelihood: Whether to make that group.
        dims: Names of the dimensions after chain and draw, by site.
        coords: Labels along named dimensions.
        num_samples: Draws of a guide, in one chain (at each context); not used for a run.

    Returns:
        The ArviZ object.

    Raises:
        ValueError: The source is none of these, has no draws yet or is untrained, or a run is
            given model arguments.

    Example::

        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_flowsamp import IMH, AutoFlow, FitOptions, VectorizedMCMC, to_arviz
        >>> _ = pyro.set_rng_seed(0)
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)
        >>> guide = AutoFlow(model, flow="gaussian", options=FitOptions(progress=False))
        >>> run = VectorizedMCMC(IMH(model, guide=guide), 50, 10, 20, disable_progbar=True)
        >>> run.run(torch.ones(2))
        >>> data = to_arviz(run, dims={"mean": ["side"]}, coords={"side": ["left", "right"]})
        >>> dict(data["posterior"].sizes)
        {'chain': 20, 'draw': 50, 'side': 2}
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
        raise ValueError("a run has stored its model's arguments: give them for a guide only.")
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
    """The statistics in ``MCMC.diagnostics()``; few kernels report all of them."""
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
    """Exports draws of chains at K contexts, chain i at that of i mod K, with a dimension for K."""
    contexts = target.contexts
    assert contexts is not None
    num, single = len(contexts), contexts.shape[1] == 1
    name = target.context_names[0] if single else "context"
    rows = [
        [float(f"{v:.7g}") for v in row] for row in contexts.tolist()
    ]  # without float32's error
    values = [row[0] for row in rows] if single else list(range(num))

    def split(group: Values) -> Values:
        return {key: split_by_context(torch.as_tensor(v), num) for key, v in group.items()}

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
    """Calls ArviZ, whose versions differ."""
    import arviz as az  # here, because it is slow to import, and warns

    names: dict[str, Any] = {"dims": {k: list(v) for k, v in (dims or {}).items()}}
    names["coords"] = coords
    with warnings.catch_warnings():  # more chains than draws are intended here
        warnings.filterwarnings("ignore", "(More|Found) chain")
        if az.__version__.startswith("0."):  # 1.x has shims for names of 0.x
            return az.from_dict(**groups, **names)
        return az.from_dict(groups, **names)
