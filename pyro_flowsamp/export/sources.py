"""Draws of every source, in one form: a VectorizedMCMC, Pyro's MCMC, or a trained guide."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..chains.streaming import Empty, in_memory
from ..target.density import Target
from ..target.site import Values

__all__ = ["ExportedDraws", "draws_of", "gathered", "numbered", "unconstrained_values"]


FLAGS = ("accepted", "diverging")  #: Boolean statistics, which Pyro's MCMC reports as numbers


class ExportedDraws(NamedTuple):
    """The draws of a source, in the form that all sources are turned into.

    Attributes:
        samples: Constrained values ``{site: (chains, draws, ...)}``.
        statistics: Statistics of each draw by their names in ArviZ, ``{name: (chains, draws)}``.
        target: The posterior that was drawn from; None where it is unknown.
        packed: The same draws of the saved sites in R^d, ``(chains, draws, d)``, where the source
            has them; else None.
        superchains: The starting point of each chain as a number, ``(chains,)``.
        empty: Makes memory for what is computed of the draws; where they are in files, a file.

    Example:
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> x = torch.tensor([[[1.0], [3.0]]])  # two draws of one chain
        >>> drawn = ExportedDraws({"x": x}, {}, target, None, torch.zeros(1))
        >>> float(drawn.samples["x"].mean())
        2.0
    """

    samples: Values
    statistics: Values
    target: Target | None
    packed: Tensor | None
    superchains: Tensor
    empty: Empty = in_memory


def draws_of(source: Any, args: tuple, kwargs: dict, num_samples: int) -> ExportedDraws:
    """Returns the draws of a source.

    Arguments:
        source: A run or a guide, see :func:`~pyro_flowsamp.to_arviz`.
        args, kwargs: Arguments of the model, for a guide.
        num_samples: Draws of a guide.

    Raises:
        ValueError: The source is of another type, has no draws or is untrained, or a run is given
            arguments.

    Example:
        >>> from pyro_flowsamp import AutoFlow, Target
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> guide = AutoFlow(target, flow="gaussian")
        >>> _ = guide.target_for()
        >>> guide.trained = True
        >>> draws_of(guide, (), {}, 10).samples["x"].shape
        torch.Size([1, 10, 2])
    """
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


def gathered(source: Any) -> Any:
    """The source with the chains of all workers, on rank 0; None on other ranks.

    Arguments:
        source: A run or a guide; one that was not shared out is returned as it is.

    Example:
        >>> gathered("anything else")
        'anything else'
    """
    return source.gathered() if hasattr(source, "gathered") else source


def numbered(x: Tensor) -> Tensor:
    """A number for each row of a matrix, the same for equal rows, in the order of appearance.

    Arguments:
        x: A matrix ``(N, d)``.

    Example:
        >>> numbered(torch.tensor([[5.0], [2.0], [5.0], [7.0]])).tolist()
        [0, 1, 0, 2]
    """
    unique, kind = torch.unique(x, dim=0, return_inverse=True)
    rows = torch.arange(len(x), device=x.device)
    first = torch.full((len(unique),), len(x), device=x.device)
    return first.scatter_reduce(0, kind, rows, "amin").argsort().argsort()[kind]


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
    superchains = torch.arange(contexts)
    return ExportedDraws(target.unpack(x), statistics, target, x, superchains)


def _run_draws(run: Any) -> ExportedDraws:
    samples = run.get_samples(group_by_chain=True) if getattr(run, "_samples", None) else {}
    if not any(value.numel() for value in samples.values()):
        raise ValueError("there are no draws yet: call run(...) first.")
    shape = next(iter(samples.values())).shape[:2]
    vectorized = hasattr(run, "statistics")
    statistics = _recorded(run, shape) if vectorized else _reported(run.diagnostics(), shape)
    superchains = numbered(run.starts) if vectorized else torch.arange(shape[0])
    packed = run.unconstrained if vectorized else None
    empty = getattr(run, "_empty", in_memory)
    return ExportedDraws(samples, statistics, _target(run), packed, superchains, empty)


def unconstrained_values(drawn: ExportedDraws) -> Values:
    """The draws of the saved sites in R^d, ``{site: (chains, draws, ...)}``.

    Arguments:
        drawn: Draws whose target is known.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_flowsamp import Target
        >>> def model():
        ...     pyro.sample("rate", dist.Exponential(1.0))
        >>> drawn = ExportedDraws(
        ...     {"rate": torch.tensor([[1.0]])}, {}, Target.from_model(model), None, torch.zeros(1)
        ... )
        >>> unconstrained_values(drawn)  # log 1
        {'rate': tensor([[0.]])}
    """
    assert drawn.target is not None
    sites = [site for site in drawn.target.sites if site.name in drawn.samples]
    if drawn.packed is None:
        return {site.name: site.transform.inv(drawn.samples[site.name]) for site in sites}
    blocks = drawn.packed.split([site.size for site in sites], -1)
    return {s.name: b.reshape(b.shape[:-1] + s.shape) for s, b in zip(sites, blocks)}


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
