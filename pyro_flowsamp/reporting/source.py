"""The numbers of a report, read from an ArviZ object of either line of versions."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..convergence import bulk_and_tail_ess
from ..seeding import kept_generators
from ..weights import pareto_k
from .options import ReportOptions

__all__ = ["ReportSource", "Summary", "read_source"]


LEAST_DRAWS = 4  #: of a chain, for which ArviZ computes effective sample sizes and R-hat
LEAST_SHORT = 8  #: of a chain, for which the package's own estimator does
QUANTILES = 0.05, 0.5, 0.95  #: of the summary


@dataclass(frozen=True, eq=False)
class Summary:
    """A summary of each of P scalar parameters, arrays ``(P,)``.

    Attributes:
        mean, sd: Mean and standard deviation.
        low, median, high: The quantiles at 5, 50 and 95 %.
        error: Standard error of the mean, the standard deviation over the root of the bulk ESS.
        ess_bulk, ess_tail: Effective sample sizes; NaN for constants and for very short chains.
        r_hat: R-hat by ranks; NaN for constants, for one chain and for very short chains.
        order: Parameters from the worst to the best; constants come last.

    Example:
        >>> import xarray as xr
        >>> values = np.random.default_rng(0).normal(size=(4, 100)) + 3.0
        >>> source = read_source({"posterior": xr.Dataset({"x": (("chain", "draw"), values)})})
        >>> source.summary.mean.round(), source.summary.r_hat.round(1)
        (array([3.]), array([1.]))
    """

    mean: np.ndarray
    sd: np.ndarray
    low: np.ndarray
    median: np.ndarray
    high: np.ndarray
    error: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray
    r_hat: np.ndarray
    order: np.ndarray


@dataclass(frozen=True, eq=False)
class ReportSource:
    """The draws of a result and all that is recorded beside them.

    Attributes:
        names: Names of P scalar parameters, such as ``theta[2]``.
        draws: The draws, ``(chains, draws, P)``.
        proposals: Draws of the flow ``(N, P)``; None where there are none.
        proposal_log_weights: Their log weights ``(N,)``, or None.
        stats: Statistics of each draw, ``{name: (chains, draws)}``.
        attrs: Attributes of the result.
        left_out: Scalar parameters that the report does not show.
        options: Options of the report.

    Example:
        >>> import xarray as xr
        >>> posterior = xr.Dataset({"x": (("chain", "draw"), np.zeros((4, 100)))})
        >>> source = read_source({"posterior": posterior})
        >>> source.num_chains, source.num_draws, len(source.varying)  # x is constant
        (4, 100, 0)
    """

    names: list[str]
    draws: np.ndarray
    proposals: np.ndarray | None
    proposal_log_weights: np.ndarray | None
    stats: dict[str, np.ndarray]
    attrs: dict[str, Any]
    left_out: int
    options: ReportOptions

    @property
    def num_chains(self) -> int:
        """The number of chains."""
        return self.draws.shape[0]

    @property
    def num_draws(self) -> int:
        """The number of draws of a chain."""
        return self.draws.shape[1]

    @cached_property
    def summary(self) -> Summary:
        """The summary of each parameter."""
        flat = self.draws.reshape(-1, len(self.names))
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of constants, and of parameters that are not finite
            low, median, high = _quantiles(flat)
            mean, sd = flat.mean(0, dtype=np.float64), flat.std(0, dtype=np.float64)
            bulk, tail, r_hat = self._convergence(sd)
            error = sd / np.sqrt(bulk)
        bound = self.options.r_hat_bound(self.num_draws)
        least = np.fmin(bulk, tail)
        last = np.where(np.isnan(least), np.inf, least)
        agrees = ~(r_hat > bound)
        order = np.lexsort((last, agrees, np.isnan(bulk) & np.isfinite(sd)))
        return Summary(mean, sd, low, median, high, error, bulk, tail, r_hat, order)

    def _convergence(self, sd: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Effective sample sizes of bulk and tails, and R-hat."""
        import arviz as az  # here, because it is slow to import
        import xarray as xr

        missing = np.full(len(self.names), np.nan)
        if self.num_draws < LEAST_DRAWS or not len(self.names):
            return missing, missing, missing

        def dataset(x: np.ndarray) -> Any:
            return xr.Dataset({"x": (("chain", "draw", "parameter"), x)})

        whole, less = dataset(self.draws), dataset(_thinned(self.draws, self.options.max_draws))
        if LEAST_SHORT <= self.num_draws < self.options.short:
            with kept_generators("cpu", seed=0):  # ranks of ties are in random order
                bulk, tail = (v.numpy() for v in bulk_and_tail_ess(torch.as_tensor(self.draws)))
        else:
            bulk, tail = (az.ess(whole, method=m)["x"].values for m in ("bulk", "tail"))
        several = self.num_chains > 1
        r_hat = az.rhat(less, method="rank")["x"].values if several else missing
        varies = sd > 0
        return tuple(np.where(varies, v, np.nan) for v in (bulk, tail, r_hat))  # type: ignore

    @cached_property
    def varying(self) -> np.ndarray:
        """Indices of the parameters that are not constant and are finite, from the worst on."""
        order = self.summary.order
        return order[self.summary.sd[order] > 0]

    @property
    def log_weights(self) -> np.ndarray | None:
        """Log weights of the chains' states, ``(chains · draws,)``, or None."""
        found = self.stats.get("log_weight")
        return None if found is None else found.reshape(-1)

    @cached_property
    def pareto_k_states(self) -> float | None:
        """The Pareto k of the weights of the states, by the package's own fit; None without."""
        return _shape(self.log_weights, self.options.flat)

    @cached_property
    def pareto_k_proposals(self) -> float | None:
        """The Pareto k of the weights of the flow's draws; None where there are none."""
        return _shape(self.proposal_log_weights, self.options.flat)


def _shape(log_weights: np.ndarray | None, flat: float) -> float | None:
    if log_weights is None or not np.isfinite(log_weights).any():
        return None
    finite = log_weights[np.isfinite(log_weights)]
    if finite.max() - np.median(finite) <= np.log(flat):
        return float("-inf")
    return pareto_k(torch.as_tensor(finite))


def _quantiles(flat: np.ndarray) -> Iterator[np.ndarray]:
    """Empirical quantiles of columns; a partial sort takes less time than np.quantile."""
    places = [min(len(flat) - 1, int(q * len(flat))) for q in QUANTILES]
    ordered = np.partition(flat, places, axis=0)
    return (ordered[place].astype(np.float64) for place in places)


def _thinned(x: np.ndarray, most: int) -> np.ndarray:
    """Draws thinned to about so many: fewer chains where they are many, else fewer draws."""
    excess = -(-x.shape[0] * x.shape[1] // most)
    if excess <= 1:
        return x
    return x[::excess] if x.shape[0] >= 8 * excess else x[:, ::excess]


# ---- reading ------------------------------------------------------------------------------------
def read_source(
    data: Any,
    proposals: Any = None,
    var_names: Sequence[str] | None = None,
    options: ReportOptions = ReportOptions(),
) -> ReportSource:
    """Reads the draws, statistics and attributes of an ArviZ object.

    Arguments:
        data: ``InferenceData`` or ``DataTree``, with the group "posterior".
        proposals: An ArviZ object of draws of the flow, as ``to_arviz(guide)``; by default the
            groups ``proposal`` and ``proposal_stats`` of ``data``, where it has them.
        var_names: Sites to show; all by default.
        options: Options of the report.

    Raises:
        ValueError: There is no group "posterior", no numbers in it, or a name is not a site.

    Example::

        >>> import xarray as xr
        >>> values = np.random.default_rng(0).normal(size=(4, 100, 2))
        >>> posterior = xr.Dataset({"x": (("chain", "draw", "side"), values)})
        >>> source = read_source({"posterior": posterior})
        >>> source.names, source.draws.shape
        (['x[0]', 'x[1]'], (4, 100, 2))
    """
    posterior = _group(data, "posterior")
    if posterior is None:
        raise ValueError(
            f"the result of type {type(data).__name__} has no group 'posterior': give the ArviZ "
            f"object of sample() or to_arviz(), or a file that was written by its to_netcdf()"
        )
    sites = [str(name) for name in posterior.data_vars]
    if isinstance(var_names, str):
        raise ValueError(f"var_names must be a list of names, got the string {var_names!r}")
    unknown = sorted(set(var_names or ()) - set(sites))
    if unknown:
        raise ValueError(f"var_names: {unknown} are not among the sites {sites}")
    wanted = [name for name in sites if var_names is None or name in var_names]
    wanted = [name for name in wanted if posterior[name].dtype.kind in "fiub"]
    names = list(itertools.chain(*(_labels(name, posterior[name]) for name in wanted)))
    if not names or not posterior.sizes.get("draw", 1):
        raise ValueError("the group 'posterior' has no draws of any real number")
    kept = names[: options.max_parameters]
    flow, weights = _proposals(data if proposals is None else proposals, proposals is not None)
    shown = _matching(flow, posterior, wanted, len(kept))
    sample_stats = _group(data, "sample_stats")
    shape = posterior.sizes["chain"], posterior.sizes["draw"]
    stats = {} if sample_stats is None else _statistics(sample_stats, shape)
    draws = _columns(posterior, wanted, len(kept))
    left_out = len(names) - len(kept)
    attrs = {**posterior.attrs, **dict(getattr(data, "attrs", {}))}
    return ReportSource(kept, draws, shown, weights, stats, attrs, left_out, options)


def _group(data: Any, name: str) -> Any:
    """A group as a Dataset, None where it is missing."""
    try:
        found = data[name]
    except (KeyError, TypeError, AttributeError, IndexError):
        return None
    if hasattr(found, "to_dataset") and hasattr(found, "children"):  # DataTree
        found = found.to_dataset()
    return found if hasattr(found, "data_vars") else None


def _labels(name: str, values: Any) -> list[str]:
    """Names of the entries of a site, with labels of its coordinates or with indices."""
    dims = values.dims[2:]
    if not dims:
        return [name]
    axes = []
    for dim, size in zip(dims, values.shape[2:]):
        labels = values.coords[dim].values if dim in values.coords else range(size)
        axes.append([str(label) for label in labels])
    return [f"{name}[{', '.join(index)}]" for index in itertools.product(*axes)]


def _columns(dataset: Any, wanted: list[str], most: int) -> np.ndarray:
    """The entries of sites side by side, ``(chains, draws, P)``."""
    columns: list[np.ndarray] = []
    for name in wanted:
        if sum(c.shape[-1] for c in columns) >= most:
            break
        values = dataset[name].transpose("chain", "draw", ...).values
        columns.append(values.reshape(*values.shape[:2], -1)[..., :most])
    dtype = np.result_type(np.float32, *columns)
    return np.concatenate(columns, -1)[..., :most].astype(dtype, copy=False)


def _matching(flow: Any, posterior: Any, wanted: list[str], most: int) -> np.ndarray | None:
    """The flow's draws of the same columns ``(N, P)``, NaN for sites that it does not draw.

    Deterministic sites are among the draws of the posterior only.
    """
    import xarray as xr

    if flow is None or not any(name in flow for name in wanted):
        return None
    sizes = flow.sizes["chain"], flow.sizes["draw"]
    arrays = {}
    for name in wanted:
        shape = posterior[name].shape[2:]
        if name in flow and flow[name].shape[2:] == shape:
            arrays[name] = flow[name]
        else:
            missing = np.full((*sizes, *shape), np.nan, dtype=np.float32)
            arrays[name] = xr.DataArray(missing, dims=posterior[name].dims)
    found = _columns(arrays, wanted, most)
    return found.reshape(-1, found.shape[-1])


def _proposals(data: Any, given: bool) -> tuple[Any, np.ndarray | None]:
    """The group of the flow's draws, and their log weights."""
    draws = _group(data, "posterior" if given else "proposal")
    stats = _group(data, "sample_stats" if given else "proposal_stats")
    if given and draws is None:
        raise ValueError(
            f"proposals of type {type(data).__name__} have no group 'posterior': give "
            f"to_arviz(guide)"
        )
    weights = None
    if stats is not None and "log_weight" in stats:
        weights = np.asarray(stats["log_weight"].values, dtype=np.float64).reshape(-1)
    return draws, weights


def _statistics(group: Any, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Statistics of each draw; others, as those by context, are left out."""
    values = {str(name): group[name].values for name in group.data_vars}
    return {name: value for name, value in values.items() if value.shape == shape}
