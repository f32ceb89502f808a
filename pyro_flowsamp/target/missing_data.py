"""Missing data: observed sites with a mask, and hidden entries that are latent or summed out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import biject_to

from .nodes import is_data, is_discrete, is_random, latent_nodes
from .support import WRAPPERS, has_bounds, inside, unwrapped

__all__ = ["DATA_KEY", "Imputed", "refuse_missing_counts", "summed_out", "without_influence"]


DATA_KEY = "_flowsamp_data"  #: the key of a site's data as the user gave them
CHANGES = 8  #: times that missing values are changed, to see what depends on them
FARTHEST_CHANGE = 64  #: by how much a count is changed at most


class Imputed(Messenger):
    """Makes the posterior of a model with ``obs_mask`` proper, and its gradients finite.

    ``pyro.sample("y", fn, obs=data, obs_mask=mask)`` draws "y_unobserved" for every datum and uses
    it where ``mask`` is false. Elsewhere Pyro gives it no density: nothing depends on these
    coordinates, and the posterior is improper. Here they have the density of ``fn``, whatever the
    scale of the other terms. It integrates to one, and the posterior of all other sites does not
    change. Data that an outer mask hides stay hidden. NaN and infinities among data that any mask
    hides would make all gradients NaN; a point of the support replaces each of them.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro import poutine
        >>> def model():
        ...     with pyro.plate("rows", 2):
        ...         y, shown = torch.tensor([1.0, torch.nan]), torch.tensor([True, False])
        ...         pyro.sample("y", dist.Normal(0.0, 1.0), obs=y, obs_mask=shown)
        >>> with Imputed():
        ...     trace = poutine.trace(model).get_trace()
        >>> filled = trace.nodes["y_unobserved"]["value"]
        >>> normal = dist.Normal(0.0, 1.0)  # once for the datum, and once for each imputed value
        >>> truth = normal.log_prob(torch.tensor(1.0)) + normal.log_prob(filled).sum()
        >>> bool(torch.isclose(trace.log_prob_sum(), truth))
        True
    """

    def __enter__(self) -> Any:
        self._shown: dict[str, Tensor] = {}
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        stem, _, kind = msg["name"].rpartition("_")
        mask, scale, value = msg["mask"], msg["scale"], msg["value"]
        if isinstance(value, Tensor) and is_data(msg) and kind != "unobserved":
            shown = _shown(msg["fn"], mask)
            if shown is not None:
                msg["infer"] = {**msg["infer"], DATA_KEY: value}
                msg["value"] = _filled(value, shown, msg["fn"])
        if not isinstance(mask, Tensor):
            return
        if kind == "observed" and isinstance(value, Tensor):
            self._shown[stem] = mask
        elif kind == "unobserved" and stem in self._shown:
            shown = self._shown[stem]
            msg["mask"] = shown | mask
            if isinstance(scale, Tensor) or scale != 1:
                msg["scale"] = torch.where(shown & ~mask, 1.0, scale)


def _shown(fn: Any, mask: Any) -> Tensor | None:
    """The mask of a value's elements that the density depends on; None where it hides nothing."""
    shown = None
    while True:
        if isinstance(mask, Tensor):
            mask = mask.reshape(mask.shape + (1,) * fn.event_dim)
            shown = mask if shown is None else shown & mask
        if not isinstance(fn, WRAPPERS):
            return shown
        mask, fn = getattr(fn, "_mask", None), fn.base_dist


def _filled(data: Tensor, shown: Tensor, fn: Any) -> Tensor:
    """The data, with a point of the support in place of what is hidden and not finite."""
    if not data.is_floating_point():
        return data
    mixture = unwrapped(fn)
    if isinstance(mixture, dist.MaskedMixture):  # a point inside of the part that has bounds
        fn = mixture.component1 if has_bounds(mixture.component1) else mixture.component0
    try:
        transform = biject_to(fn.support)
        point = transform(data.new_zeros(transform.inverse_shape(fn.event_shape)))
    except NotImplementedError:  # discrete
        point = data.new_zeros(fn.event_shape)
    return torch.where(~shown & ~data.isfinite(), point, data)


# ---- missing counts ------------------------------------------------------------------------------


class _SummedOut(Messenger):
    """Sums missing data out of a model where nothing depends on them.

    The sum of their density over all values is 1. So their sites become deterministic, at any
    value.

    Arguments:
        values: Values of the sites.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            value = self.values[msg["name"]]
            msg["fn"] = dist.Delta(value, event_dim=msg["fn"].event_dim).mask(False)
            msg["value"], msg["is_observed"] = value, True


def summed_out(model: Callable, values: Mapping[str, Tensor]) -> Callable:
    """The model without the missing data that can be summed out.

    Arguments:
        model: A Pyro model.
        values: What :func:`without_influence` returns.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro import poutine
        >>> def model():
        ...     y, shown = torch.tensor([1.0, 0.0]), torch.tensor([True, False])
        ...     with pyro.plate("rows", 2):
        ...         pyro.sample("y", dist.Poisson(3.0), obs=y, obs_mask=shown)
        >>> smaller = summed_out(model, {"y_unobserved": torch.zeros(2)})
        >>> [list(poutine.trace(m).get_trace().stochastic_nodes) for m in (model, smaller)]
        [['rows', 'y_unobserved'], ['rows']]
    """
    if not values:
        return model

    @wraps(model, updated=())
    def smaller(*args: Any, **kwargs: Any) -> Any:
        with _SummedOut(values):
            return model(*args, **kwargs)

    return smaller


def _missing_counts(trace: Trace) -> dict[str, dict]:
    """The discrete sites of missing data, by name."""
    return {
        node["name"]: node
        for node in latent_nodes(trace)
        if is_discrete(node["fn"])
        and node["name"].endswith("_unobserved")
        and f"{_user_name(node['name'])}_observed" in trace
    }


def _user_name(name: str) -> str:
    return name.removesuffix("_unobserved")


def without_influence(model: Callable, args: tuple, kwargs: dict, traces: list[Trace]) -> dict:
    r"""Values of the discrete missing data that can be summed out, as nothing depends on them.

    Let m be missing data, and let no factor of the joint density but their own depend on them:
    :math:`p(x, y, m) = p(x, y)\,p(m \mid x, y)`. Then :math:`\sum_m p(x, y, m) = p(x, y)`, however
    many values m has. Whether that is so is seen by changing m while all other values stay. All
    other factors must stay the same, to the last bit, in the runs of ``traces``, where all of m is
    changed, and where random parts of it are. Where a factor changes, the sites whose change alone
    does it are left as they are.

    Arguments:
        model: A Pyro model.
        args, kwargs: Its arguments.
        traces: Runs of it, under :class:`Imputed`.

    Returns:
        A value for each site of such data.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro import poutine
        >>> def model():
        ...     rate = pyro.sample("rate", dist.Exponential(1.0))
        ...     with pyro.plate("rows", 2):
        ...         y, shown = torch.tensor([1.0, 0.0]), torch.tensor([True, False])
        ...         pyro.sample("y", dist.Poisson(rate), obs=y, obs_mask=shown)
        >>> with poutine.block(), Imputed():
        ...     traces = [poutine.trace(model).get_trace() for _ in range(2)]
        >>> list(without_influence(model, (), {}, traces))
        ['y_unobserved']
    """
    found = _missing_counts(traces[0])
    unscaled = {n for n, node in found.items() if (torch.as_tensor(node["scale"]) == 1).all()}
    names = sorted(unscaled)

    def influence(of: list[str]) -> list[str]:
        return [name for trace in traces for name in _dependents(model, args, kwargs, trace, of)]

    while names and influence(names):
        alone = [name for name in names if influence([name])]
        names = [name for name in names if alone and name not in alone]
    return {name: found[name]["value"].detach() for name in names}


def _dependents(
    model: Callable, args: tuple, kwargs: dict, trace: Trace, names: list[str]
) -> list[str]:
    """Sites whose factors change with the values of the sites ``names``."""
    others = {n["name"]: n["value"] for n in latent_nodes(trace) if n["name"] not in names}
    fixed = poutine.condition(model, data=others)

    def factors(values: dict[str, Tensor]) -> dict[str, Tensor]:
        with Imputed(), poutine.condition(data=values):
            run = poutine.trace(fixed).get_trace(*args, **kwargs)
        run.compute_log_prob()
        nodes = filter(is_random, run.nodes.values())
        return {n["name"]: n["log_prob"] for n in nodes if n["name"] not in names}

    own = {name: trace.nodes[name]["value"] for name in names}
    before, changed = factors(own), set[str]()
    for i in range(CHANGES):
        share = 1.0 if i == 0 else 0.5
        fns = {name: trace.nodes[name]["fn"] for name in names}
        after = factors({n: _another(fns[n], value, share) for n, value in own.items()})
        changed |= before.keys() ^ after.keys()
        changed |= {n for n in before.keys() & after.keys() if not _same(before[n], after[n])}
    return sorted(changed)


def _same(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.allclose(one, two, rtol=0, atol=0, equal_nan=True)


def _another(fn: Any, value: Tensor, share: float) -> Tensor:
    """Values of a discrete distribution, a random share of which is changed where possible."""

    def differs(other: Tensor) -> Tensor:
        unequal = other != value
        return unequal.flatten(-fn.event_dim).any(-1) if fn.event_dim else unequal

    def choose(where: Tensor, one: Tensor, two: Tensor) -> Tensor:
        return torch.where(where.reshape(where.shape + (1,) * fn.event_dim), one, two)

    value = value.expand(fn.shape())
    kept = torch.rand(fn.batch_shape, device=value.device) >= share
    if fn.has_enumerate_support:
        states = fn.enumerate_support(expand=True)
        first = torch.randint(len(states), fn.batch_shape, device=value.device)
        shape = (1, *fn.batch_shape) + (1,) * fn.event_dim
        index = torch.stack([first, (first + 1) % len(states)])
        one, two = (states.gather(0, i.reshape(shape).expand(1, *fn.shape()))[0] for i in index)
        return choose(kept, value, choose(differs(one), one, two))
    step = torch.randint(1, FARTHEST_CHANGE, value.shape, device=value.device).to(value)
    candidates = [value + step, value - step, value + 1, value - 1]
    other = fn.sample()
    if fn.event_dim:  # counts of a fixed sum
        candidates.append(value.roll(1, -1))
    for candidate in candidates:
        other = choose(differs(other) | ~inside(fn, candidate), other, candidate)
    return choose(kept, value, other)


def refuse_missing_counts(model: Callable, args: tuple, kwargs: dict, traces: list[Trace]) -> None:
    """Raises a ValueError where missing data have no finite number of values to be summed over.

    Arguments:
        model: A Pyro model.
        args, kwargs: Its arguments.
        traces: Runs of it, in which data that nothing depends on are summed out already.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro import poutine
        >>> def model():
        ...     with pyro.plate("rows", 2):
        ...         y, shown = torch.tensor([1.0, 0.0]), torch.tensor([True, False])
        ...         y = pyro.sample("y", dist.Poisson(3.0), obs=y, obs_mask=shown)
        ...         pyro.sample("z", dist.Normal(y, 1.0), obs=torch.zeros(2))
        >>> with poutine.block(), Imputed():
        ...     traces = [poutine.trace(model).get_trace()]
        >>> refuse_missing_counts(model, (), {}, traces)
        Traceback (most recent call last):
        ValueError: site 'y': its missing values (obs_mask=) are discrete (Poisson) and cannot ...
    """
    for name, node in _missing_counts(traces[0]).items():
        if node["fn"].has_enumerate_support:
            continue
        changed = {_user_name(n) for n in _dependents(model, args, kwargs, traces[0], [name])}
        reason = f"{sorted(changed)} depend on them" if changed else "poutine.scale scales them"
        raise ValueError(
            f"site '{_user_name(name)}': its missing values (obs_mask=) are discrete "
            f"({type(node['fn']).__name__}) and cannot be enumerated, nor left out, since "
            f"{reason}: sum over them by hand, or observe them."
        )
