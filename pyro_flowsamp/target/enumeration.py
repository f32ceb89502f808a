"""Summing discrete sites out of a model, under vmap too.

Pyro's own enumeration is used, except for three small pieces that do not work under vmap: an access
to ``value.data``, an ``autograd.Function`` without vmap support, and an evaluator that cannot keep
a batch plate. This module is also the einsum backend that replaces the second piece.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from pyro.ops.contract import contract_to_tensor
from pyro.ops.einsum.util import Tensordot
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = ["Enumerate", "einsum", "marginal_log_prob", "tensordot", "transpose"]


def transpose(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Permutes dimensions, as Pyro's einsum backends must.

    Example:
        >>> transpose(torch.zeros(2, 3), (1, 0)).shape
        torch.Size([3, 2])
    """
    return a.permute(axes)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Sum-product in log space, by ``logsumexp`` over the aligned sum of the operands.

    Where all terms of a sum are zero the gradient is zero; that of ``logsumexp`` would be NaN.

    Arguments:
        equation: The equation of the einsum, such as ``"ab,b->a"``.
        operands: Logarithms of the factors.

    Example:
        >>> einsum("ab,b->a", torch.zeros(2, 3), torch.zeros(3)).exp().round()
        tensor([3., 3.])
    """
    inputs, output = equation.split("->")
    summed = sorted(set(inputs) - set(output) - {","})
    symbols = [*output, *summed]
    total = sum(_align(x, dims, symbols) for x, dims in zip(operands, inputs.split(",")))
    assert isinstance(total, Tensor)
    if not summed:
        return total.clone()
    dims = tuple(range(len(output), len(symbols)))
    none = total.detach().amax(dims, keepdim=True).isneginf()
    result = total.masked_fill(none, 0.0).logsumexp(dims)
    return result.masked_fill(none.reshape(result.shape), -torch.inf)


def _align(x: Tensor, dims: str, symbols: list[str]) -> Tensor:
    present = [s for s in symbols if s in dims]
    x = x.permute([dims.index(s) for s in present])
    return x[tuple(slice(None) if s in present else None for s in symbols)]


tensordot = Tensordot(einsum)


class _Ring(LogRing):
    _backend = __name__


class Enumerate(EnumMessenger):
    """Pyro's enumeration handler, with an empty tensor of the same shape for ``value.data``.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model():
        ...     return pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        >>> with Enumerate(first_available_dim=-1):
        ...     model()
        tensor([0., 1.])
    """

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if isinstance(value, Tensor):
            msg["value"] = torch.empty(value.shape, device="meta")
        super()._pyro_post_sample(msg)
        msg["value"] = value


def marginal_log_prob(trace: Trace, keep: str) -> Tensor:
    """The log density of an enumerated trace: a scalar, or one for each slice of plate ``keep``.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro import poutine
        >>> def model():
        ...     z = pyro.sample("z", dist.Bernoulli(0.25), infer={"enumerate": "parallel"})
        ...     pyro.sample("y", dist.Bernoulli(0.2 + 0.4 * z), obs=torch.tensor(1.0))
        >>> trace = poutine.trace(Enumerate(first_available_dim=-1)(model)).get_trace()
        >>> round(float(marginal_log_prob(trace, "").exp()), 4)  # 0.75 * 0.2 + 0.25 * 0.6
        0.3
    """
    trace.compute_log_prob()
    trace.pack_tensors()
    plates = trace.plate_to_symbol
    factors: OrderedDict = OrderedDict()
    for node in trace.nodes.values():
        if node["type"] == "sample" and not site_is_subsample(node):
            ordinal = frozenset(plates[f.name] for f in node["cond_indep_stack"] if f.vectorized)
            factors.setdefault(ordinal, []).append(node["packed"]["log_prob"])
    discrete = set(trace.symbol_to_dim) - set(plates.values())
    kept = frozenset([plates[keep]]) if keep in plates else frozenset()
    return contract_to_tensor(factors, discrete, target_ordinal=kept, ring=_Ring())
