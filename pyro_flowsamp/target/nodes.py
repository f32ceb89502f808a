"""Nodes of the trace of a model: which are random, latent, discrete or data."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample

from .support import unwrapped

__all__ = ["is_data", "is_discrete", "is_random", "latent_nodes"]


def is_discrete(fn: Any) -> bool:
    """Whether a Pyro distribution is discrete (enumerable or not)."""
    try:
        return fn.has_enumerate_support or fn.support.is_discrete
    except NotImplementedError:
        return False


def is_random(node: dict) -> bool:
    """Whether a node of a trace is a sample statement, and no subsample of a plate."""
    return node["type"] == "sample" and not site_is_subsample(node)


def latent_nodes(trace: Trace) -> list[dict]:
    """The nodes of latent sites, discrete ones included."""
    return [n for _, n in trace.iter_stochastic_nodes() if not site_is_subsample(n)]


def is_data(node: dict) -> bool:
    """Whether a site has observed data; ``pyro.deterministic`` makes an observed Delta, no data."""
    return node["is_observed"] and not isinstance(unwrapped(node["fn"]), dist.Delta)
