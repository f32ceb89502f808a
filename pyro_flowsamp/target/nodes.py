"""Nodes of the trace of a model: which are random, latent, discrete or data."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample

from .support import unwrapped

__all__ = ["is_data", "is_discrete", "is_random", "latent_nodes"]


def is_discrete(fn: Any) -> bool:
    """Whether a Pyro distribution is discrete (enumerable or not).

    Example:
        >>> is_discrete(dist.Poisson(1.0)), is_discrete(dist.Normal(0.0, 1.0))
        (True, False)
    """
    try:
        return fn.has_enumerate_support or fn.support.is_discrete
    except NotImplementedError:
        return False


def is_random(node: dict) -> bool:
    """Whether a node of a trace is a sample statement, and no subsample of a plate.

    Example:
        >>> import pyro
        >>> from pyro import poutine
        >>> def model():
        ...     with pyro.plate("rows", 3):
        ...         pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> trace = poutine.trace(model).get_trace()
        >>> [name for name, node in trace.nodes.items() if is_random(node)]
        ['x']
    """
    return node["type"] == "sample" and not site_is_subsample(node)


def latent_nodes(trace: Trace) -> list[dict]:
    """The nodes of latent sites, discrete ones included.

    Example:
        >>> import pyro
        >>> from pyro import poutine
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=x.new_tensor(2.0))
        >>> [node["name"] for node in latent_nodes(poutine.trace(model).get_trace())]
        ['x']
    """
    return [n for _, n in trace.iter_stochastic_nodes() if not site_is_subsample(n)]


def is_data(node: dict) -> bool:
    """Whether a site has observed data; ``pyro.deterministic`` makes an observed Delta, no data.

    Example:
        >>> import pyro
        >>> from pyro import poutine
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.deterministic("z", x + 1)
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=x.new_tensor(2.0))
        >>> nodes = poutine.trace(model).get_trace().nodes
        >>> [is_data(nodes[name]) for name in "xzy"]
        [False, False, True]
    """
    return node["is_observed"] and not isinstance(unwrapped(node["fn"]), dist.Delta)
