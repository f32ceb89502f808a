r"""What an expectation is asked of: a density that paths start from, and h with its relaxation.

See :mod:`pyro_flowsamp.expectations.rare_events` for what is made of them.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from .._zuko import zuko
from ..flows.recipes import gaussian, spline
from ..guides.auto_flow import AutoFlow
from ..guides.base import FlowGuide
from ..objectives import ForwardKL
from ..options import FitOptions
from ..target.density import Target
from ..train import fit
from ..weights import ess_fraction

__all__ = ["Integrand", "ONE", "SampledDensity", "integrands", "source_of"]


NUM_DRAWS = 4096  #: of p, by which h is checked and relaxed
WIDER = 2.0  #: standard deviations of a posterior's start, in units of its own
FLOOR = 0.1  #: epsilon, in units of the mean of h over draws of the start
SHARPNESS = 20.0  #: kappa, in units of the standard deviation of g over them
MAX_COMPONENTS = 16  #: of the mixture under a flow fitted to data
DENSITY = FitOptions(1000, 512, 2e-3, progress=False)


# ---- p ------------------------------------------------------------------------------------------
class SampledDensity(NamedTuple):
    r"""A density, and where paths from it start.

    Attributes:
        target: :math:`\log\tilde p` on :math:`\mathbb R^d`.
        start: A flow that can be sampled.
        draws: Of p, as well as is known beforehand, ``(N, d)``.
        values: Makes of points ``(N, d)`` what h takes.
        normalised: Whether the start is p itself.
        already: Densities asked of the target before.
    """

    target: Target
    start: nn.Module
    draws: Tensor
    values: Callable[[Tensor], Any]
    normalised: bool
    already: int = 0


def source_of(
    model: Any, args: tuple, data: Tensor | None, guide: FlowGuide | None
) -> SampledDensity:
    if (model is None) == (data is None):
        raise ValueError("give either a model (or a distribution, or a flow) or data=, not both")
    if data is not None:
        model = _flow_of(data)
    if isinstance(model, Distribution):
        model = _as_flow(model)
    if isinstance(model, zuko.lazy.LazyDistribution):
        start = deepcopy(model).requires_grad_(False)
        return SampledDensity(_energy_of(start), start, _draws(start), lambda x: x, True)
    guide = AutoFlow(model) if guide is None else guide
    target = guide.target_for(*args)
    already = target.evaluations
    if not guide.trained:
        guide.fit(*args)
    assert guide.flow is not None
    values = (lambda x: x) if isinstance(model, Target) else target.unpack
    draws = _draws(guide.flow)
    return SampledDensity(target, _widened(draws), draws, values, False, already)


@torch.no_grad()
def _draws(flow: nn.Module) -> Tensor:
    return flow(None).sample((NUM_DRAWS,))


def _widened(draws: Tensor) -> nn.Module:
    """A Gaussian wide enough to have tails where a posterior's, or an event, may be."""
    d = draws.shape[-1]
    flow = gaussian(d).to(draws)
    root = torch.linalg.cholesky(torch.cov(draws.double().mT).reshape(d, d))
    flow.affine.initialize(draws.mean(0), WIDER * root.to(draws))
    return flow


def _as_flow(p: Distribution) -> nn.Module:
    """The distribution as the base of a flow that moves nothing."""
    if p.batch_shape or len(p.event_shape) != 1:
        raise ValueError(
            f"a distribution must have batch shape () and event shape (d,), got "
            f"{tuple(p.batch_shape)} and {tuple(p.event_shape)}: use .expand([d]).to_event(1)"
        )
    x = p.sample()
    far, support = 1e3 * torch.randn(64, len(x)).to(x), p.support
    if support is None or not bool(support.check(far).all()):
        raise ValueError(
            "the distribution does not live on all of R^d: write it as a Pyro model, whose sites "
            "are mapped there"
        )
    flow = gaussian(len(x)).to(x)
    flow.base = zuko.lazy.UnconditionalDistribution(lambda: p)
    return flow


def _energy_of(flow: nn.Module) -> Target:
    x = flow(None).sample()

    def energy(x: Tensor) -> Tensor:
        return -flow(None).log_prob(x)

    return Target.from_energy(energy, len(x), dtype=x.dtype, device=x.device)


def _flow_of(data: Tensor) -> nn.Module:
    r"""A density of draws ``(N, d)``: a mixture, bent by splines where that predicts better.

    By forward KL on four fifths of the draws; the rest says whether the splines are of use.
    """
    if data.dim() != 2 or len(data) < 100 or not data.is_floating_point():
        raise ValueError(
            f"data must be at least 100 draws (N, d) of a floating type, got {tuple(data.shape)} "
            f"of {data.dtype}"
        )
    if not bool(torch.isfinite(data).all()):
        bad = int((~torch.isfinite(data)).any(-1).sum())
        raise ValueError(f"{bad} of {len(data)} rows of data are NaN or infinite: drop them")
    data = data[torch.randperm(len(data), device=data.device)]
    held_out, seen = data[: len(data) // 5], data[len(data) // 5 :]
    flow = spline(data.shape[-1], components=MAX_COMPONENTS).to(data)
    flow.initialize_from(seen)
    plain = deepcopy(flow)
    plain.depth = 0
    objective, target = ForwardKL(seen), _energy_of(flow)
    fit(
        flow.parameters(),
        lambda: objective(flow, target, DENSITY.batch_size),
        ess_fraction,
        DENSITY,
    )
    with torch.no_grad():
        bent, flat = (q(None).log_prob(held_out).mean() for q in (flow, plain))
    return flow if bent > flat else plain


# ---- h ------------------------------------------------------------------------------------------
Log = Callable[[Tensor], Tensor]  #: points ``(N, d)`` → ``(N,)``


class Integrand(NamedTuple):
    r""":math:`\log h`, and :math:`\log h_\epsilon`, positive everywhere and differentiable."""

    exact: Log
    relaxed: Log


def _zero(x: Tensor) -> Tensor:
    return torch.zeros_like(x[:, 0])


ONE = Integrand(_zero, _zero)  #: h = 1, whose expectation is the evidence of p


def _checked(values: Any, num: int, name: str) -> Tensor:
    """Numbers ``(N,)``, finite, in float64."""
    if not isinstance(values, Tensor) or values.shape != (num,):
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} of {num} draws must be of shape ({num},), got {found}")
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{name} is NaN or infinite at {bad} of {num} draws of the path")
    return values.double()


def integrands(source: SampledDensity, h: Any, event: Any, signed: bool) -> list[Integrand]:
    if (h is None) == (event is None):
        raise ValueError("give either h, or event= (a function that is positive where it happens)")
    if event is not None:
        if signed:
            raise ValueError("signed=True is for h; an event has no sign")
        return [_event(lambda x: event(source.values(x)), source.draws)]
    parts = [1.0, -1.0] if signed else [1.0]
    return [_function(lambda x: h(source.values(x)), source.draws, sign, signed) for sign in parts]


def _event(g: Callable[[Tensor], Tensor], pilot: Tensor) -> Integrand:
    values = g(pilot)
    if isinstance(values, Tensor) and not values.is_floating_point():
        raise ValueError(
            "event= returns true and false: return a number that is positive where the event "
            "happens and says how far it is elsewhere, x - 4 rather than x > 4"
        )
    spread = float(_checked(values, len(pilot), "event=").std())
    if spread == 0:
        raise ValueError("event= is the same at all draws of p: nothing leads to the event")

    def exact(x: Tensor) -> Tensor:
        return (_checked(g(x), len(x), "event=") > 0).double().log()

    return Integrand(exact, lambda x: logsigmoid(SHARPNESS / spread * g(x)))


def _function(h: Callable[[Tensor], Tensor], pilot: Tensor, sign: float, signed: bool) -> Integrand:
    def exact(x: Tensor) -> Tensor:
        values = sign * _checked(h(x), len(x), "h")
        if not signed and bool((values < 0).any()):
            raise ValueError("h is negative at some draws: signed=True splits it into two parts")
        return values.clamp(min=0).log()

    mean = float(exact(pilot).exp().mean())
    if mean == 0:
        part = {1.0: "positive ", -1.0: "negative "}[sign] if signed else ""
        raise ValueError(
            f"h has no {part}value at any of {len(pilot)} draws of p, so nothing leads to where "
            f"it has: for a rare event give event=, a function that is positive there and grows "
            f"towards it"
        )

    def relaxed(x: Tensor) -> Tensor:
        return ((sign * h(x)).clamp(min=0) + FLOOR * mean).log()

    return Integrand(exact, relaxed)
