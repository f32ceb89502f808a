"""Draws of any source, in the form that all checks take."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..chains.streaming import Empty, in_memory, joined_columns
from ..export import to_arviz
from ..flows.proposal import Proposal
from ..target.density import Target, as_target
from ..target.site import Values

__all__ = ["DiagnosedDraws", "read_draws"]


class DiagnosedDraws(NamedTuple):
    """Draws with all that is known of where they come from.

    Attributes:
        columns: Constrained draws, one column for each number, ``(C, n, D)``, float64.
        names: Names of the columns.
        x: Unconstrained draws ``(C, n, d)``; None where they are not known.
        statistics: Statistics of each draw ``(C, n)``, by their names in ArviZ.
        attributes: Attributes of an ArviZ object.
        target: The target; None where it is not known.
        proposal: The flow; None where it is not known.
        kernel: The kernel that made the draws; None where it is not known.
        groups: The superchain of each chain, ``(C,)``; None where it is not known.
        starts: The point where each chain began, ``(C, d)``; None where it is not known.
        thin: Steps of a chain for each draw.
        earlier: Steps that chains made before these draws; None where it is not known.

    Example:
        >>> x = torch.zeros(4, 100, 1)
        >>> stats = {"log_weight": x[..., 0]}
        >>> draws = DiagnosedDraws(x, ("x",), x, stats, {}, None, None, None, None)
        >>> draws.jumps_only, draws.of_a_guide
        (True, False)
    """

    columns: Tensor
    names: tuple[str, ...]
    x: Tensor | None
    statistics: Values
    attributes: dict[str, Any]
    target: Target | None
    proposal: Proposal | None
    kernel: Any
    groups: Tensor | None
    starts: Tensor | None = None
    thin: int = 1
    earlier: int | None = None

    @property
    def of_a_guide(self) -> bool:
        """Whether the draws are independent ones of a guide, and not of the target."""
        return "log_q" in self.statistics

    @property
    def jumps_only(self) -> bool:
        """Whether the sampler makes no local moves: it has weights, and no step size."""
        return "log_weight" in self.statistics and "step_size" not in self.statistics


def read_draws(source: Any, guide: Any = None, target: Any = None) -> DiagnosedDraws:
    """Reads the draws of a run or of an ArviZ object of either line.

    Arguments:
        source: A :class:`~pyro_flowsamp.VectorizedMCMC`, a :class:`pyro.infer.MCMC` or an ArviZ
            object with a group "posterior".
        guide: A trained guide of the same posterior, or None.
        target: The target of the draws, or a Pyro model without arguments, or None.

    Raises:
        ValueError: The source is none of these or has no draws, the guide is untrained, or the
            target is at several contexts, or has other sites.

    Example:
        >>> import xarray as xr
        >>> posterior = xr.Dataset({"x": (("chain", "draw", "side"), np.zeros((4, 100, 2)))})
        >>> draws = read_draws({"posterior": posterior})
        >>> draws.names, draws.columns.shape, draws.x is None  # without a target
        (('x[0]', 'x[1]'), torch.Size([4, 100, 2]), True)
    """
    if target is not None and not isinstance(target, Target):
        target = as_target(target)
    if guide is not None and not getattr(guide, "trained", False):
        raise ValueError("the guide is untrained: call guide.fit(...) first")
    kernel = proposal = x = None
    attributes: dict[str, Any] = {}
    groups, starts, thin, earlier = None, None, 1, None
    if hasattr(source, "gathered"):
        source = source.gathered(to_all=True)
    if hasattr(source, "unconstrained") and hasattr(source, "statistics"):
        values = source.get_samples(group_by_chain=True)
        statistics = dict(source.statistics)
        if source.step_size is not None:
            statistics["step_size"] = source.step_size
        x, target = source.unconstrained, target or source.target
        starts = source.starts if len(source.starts) == len(x) else None
        thin, earlier = source.thin, source.warmup_steps
        if source.target is not None and source.kernel.target is source.target:
            kernel, proposal = source.kernel, source.kernel.proposal
    else:
        data = source
        if hasattr(source, "get_samples"):
            data = to_arviz(source, log_likelihood=False)
            target = target or _kernel_target(source.kernel)
        values, statistics, groups = _read_arviz(data)
        attributes = dict(getattr(data, "attrs", {}))
        thin, earlier = int(attributes.get("thin", 1)), attributes.get("warmup_steps")
    if guide is not None:
        target = target or _guide_target(guide)
        proposal = guide.proposal() if proposal is None else proposal
    if target is not None and target.contexts is not None:
        raise ValueError(
            "diagnose() looks at draws at one context, and the target is at several: give the "
            "draws of each context with the target there"
        )
    columns, names = _columns(values, getattr(source, "memory_for_draws", in_memory))
    if x is None and target is not None:
        x = _packed(target, values)
    if x is not None and target is not None and x.shape[-1] != target.dim:
        x = proposal = kernel = None  # not all sites were kept
    known = (statistics, attributes, target, proposal, kernel, groups, starts, thin, earlier)
    return DiagnosedDraws(columns, names, x, *known)


def _kernel_target(kernel: Any) -> Target | None:
    try:
        return kernel.target
    except (AttributeError, RuntimeError):  # a kernel of Pyro's
        return None


def _guide_target(guide: Any) -> Target:
    if isinstance(guide.model_source, Target):
        return guide.model_source
    raise ValueError(
        "the arguments of the guide's model are not known: give target=Target.from_model(model, "
        "...) too"
    )


def _read_arviz(data: Any) -> tuple[Values, Values, Tensor | None]:
    try:
        posterior = data["posterior"]
    except (KeyError, TypeError, IndexError):
        raise ValueError(
            f"an object of type {type(data).__name__} has no draws: give a run, or an ArviZ object "
            f"with a group 'posterior'"
        ) from None
    statistics: Values = {}
    try:
        for name in (stats := data["sample_stats"]).data_vars:
            statistics[str(name)] = _tensor(stats[name].values)
    except KeyError:
        pass
    values = {str(name): _tensor(posterior[name].values) for name in posterior.data_vars}
    values = {name: value for name, value in values.items() if value.dim() > 1 and value.numel()}
    if not values:
        raise ValueError("there are no draws in the group 'posterior'")
    groups = None
    if "superchain" in posterior.coords:
        groups = _tensor(np.unique(posterior.coords["superchain"].values, return_inverse=True)[1])
    return values, statistics, groups


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(values))


def _columns(values: Values, empty: Empty) -> tuple[Tensor, tuple[str, ...]]:
    if not values:
        raise ValueError("there are no draws yet: call run(...) first")
    names: list[str] = []
    for name, value in values.items():
        size = value.shape[2:].numel()
        names += [name] if value.dim() == 2 else [f"{name}[{i}]" for i in range(size)]
    parts = [value.detach() for value in values.values()]
    return joined_columns(parts, torch.double, empty), tuple(names)


def _packed(target: Target, values: Values) -> Tensor | None:
    """Unconstrained draws; None where sites were not kept.

    Raises:
        ValueError: A site has another shape than in the target.
    """
    if any(site.name not in values for site in target.sites):
        return None
    like = torch.zeros((), dtype=target.dtype, device=target.device)
    return target.pack({s.name: values[s.name].to(like) for s in target.sites})
