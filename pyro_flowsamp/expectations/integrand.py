r"""The two inputs of an expectation: a density p, and a function h with a relaxation.

:mod:`pyro_flowsamp.expectations.rare_events` builds a path of densities from them.
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
from ..target.density import Target
from ..training.train import fit
from ..weights import ess_fraction
from .options import ImportanceOptions

__all__ = ["ONE", "Integrand", "SampledDensity", "as_density", "integrands"]


# ---- p ------------------------------------------------------------------------------------------
class SampledDensity(NamedTuple):
    r"""A density p, together with a flow where paths from it start.

    Attributes:
        target: :math:`\log\tilde p` on :math:`\mathbb R^d`.
        start: A flow that can be sampled.
        draws: Draws of p, or of an approximation of it, ``(N, d)``.
        values: Converts points ``(N, d)`` into the argument of h.
        normalised: Whether the start is p itself.
        evaluations_before: Evaluations of the target before the call.

    Example:
        >>> normal = torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1))
        >>> density = as_density(normal, (), None, None, ImportanceOptions(pilot_draws=10))
        >>> density.draws.shape, density.target.log_prob(torch.zeros(1, 1))
        (torch.Size([10, 1]), tensor([-0.9189]))
    """

    target: Target
    start: nn.Module
    draws: Tensor
    values: Callable[[Tensor], Any]
    normalised: bool
    evaluations_before: int = 0


def as_density(
    model: Any,
    args: tuple,
    data: Tensor | None,
    guide: FlowGuide | None,
    options: ImportanceOptions,
) -> SampledDensity:
    """Makes the density of a model, of a distribution, of a flow, or of data.

    Arguments:
        model: A Pyro model, a target, a distribution, a flow, or None.
        args: The model's arguments.
        data: Draws ``(N, d)`` in place of a model, or None.
        guide: A guide of the model, or None. It is fitted here if it is not yet.
        options: Settings.

    Raises:
        ValueError: There is neither a model nor data, or both; the data or the distribution have
            the wrong shape.

    Example:
        >>> normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> as_density(normal, (), None, None, ImportanceOptions()).normalised
        True
        >>> as_density(normal, (), torch.zeros(10, 2), None, ImportanceOptions())
        Traceback (most recent call last):
        ValueError: give either a model (or a distribution, or a flow) or data=, not both
    """
    if (model is None) == (data is None):
        raise ValueError("give either a model (or a distribution, or a flow) or data=, not both")
    if data is not None:
        model = _flow_of_data(data, options)
    if isinstance(model, Distribution):
        model = _flow_of_distribution(model)
    if isinstance(model, zuko.lazy.LazyDistribution):
        start = deepcopy(model).requires_grad_(False)
        target = _target_of(start)
        draws = _draws(start, options.pilot_draws)
        return SampledDensity(target, start, draws, lambda x: x, True)
    guide = AutoFlow(model) if guide is None else guide
    target = guide.target_for(*args)
    before = target.evaluations
    if not guide.trained:
        guide.fit(*args)
    values = (lambda x: x) if isinstance(model, Target) else target.unpack
    draws = _draws(guide.trained_flow, options.pilot_draws)
    start = _gaussian_of(draws, options.start_width)
    return SampledDensity(target, start, draws, values, False, before)


@torch.no_grad()
def _draws(flow: nn.Module, num: int) -> Tensor:
    return flow(None).sample((num,))


def _gaussian_of(draws: Tensor, width: float) -> nn.Module:
    """Makes a Gaussian with the draws' mean, and ``width`` times their standard deviation."""
    d = draws.shape[-1]
    flow = gaussian(d).to(draws)
    root = torch.linalg.cholesky(torch.cov(draws.double().mT).reshape(d, d))
    flow.affine.initialize(draws.mean(0), width * root.to(draws))
    return flow


def _flow_of_distribution(p: Distribution) -> nn.Module:
    """Makes a flow whose base is the distribution and whose map is the identity."""
    if p.batch_shape or len(p.event_shape) != 1:
        raise ValueError(
            f"a distribution must have batch shape () and event shape (d,), got "
            f"{tuple(p.batch_shape)} and {tuple(p.event_shape)}: use .expand([d]).to_event(1)"
        )
    x = p.sample()
    far, support = 1e3 * torch.randn(64, len(x)).to(x), p.support
    if support is None or not bool(support.check(far).all()):
        raise ValueError(
            "the distribution does not have all of R^d as its support: write it as a Pyro model, "
            "whose sites are mapped there"
        )
    flow = gaussian(len(x)).to(x)
    flow.base = zuko.lazy.UnconditionalDistribution(lambda: p)
    return flow


def _target_of(flow: nn.Module) -> Target:
    x = flow(None).sample()

    def energy(x: Tensor) -> Tensor:
        return -flow(None).log_prob(x)

    return Target.from_energy(energy, len(x), dtype=x.dtype, device=x.device)


def _flow_of_data(data: Tensor, options: ImportanceOptions) -> nn.Module:
    r"""Fits a flow to draws ``(N, d)``: a Gaussian mixture, with splines where they help.

    The forward KL is taken on four fifths of the draws. The splines are kept if they raise the
    likelihood of the rest.
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
    flow = spline(data.shape[-1], components=options.components).to(data)
    flow.initialize_from(seen)
    mixture = deepcopy(flow)
    mixture.depth = 0
    objective, target, training = ForwardKL(seen), _target_of(flow), options.data_fit
    fit(
        flow.parameters(),
        lambda: objective(flow, target, training.batch_size),
        ess_fraction,
        training,
    )
    with torch.no_grad():
        with_splines, without = (q(None).log_prob(held_out).mean() for q in (flow, mixture))
    return flow if with_splines > without else mixture


# ---- h ------------------------------------------------------------------------------------------
LogFunction = Callable[[Tensor], Tensor]  #: points ``(N, d)`` → ``(N,)``


class Integrand(NamedTuple):
    r"""The logarithm of h, and that of a relaxation which is positive and differentiable.

    Attributes:
        exact: :math:`\log h`.
        relaxed: :math:`\log h_\epsilon`.

    Example:
        >>> h = Integrand(lambda x: (x[:, 0] > 1).double().log(), lambda x: logsigmoid(x[:, 0] - 1))
        >>> h.exact(torch.tensor([[0.0], [2.0]])), h.relaxed(torch.tensor([[1.0]]))  # log 1/2
        (tensor([-inf, 0.], dtype=torch.float64), tensor([-0.6931]))
    """

    exact: LogFunction
    relaxed: LogFunction


def _zero(x: Tensor) -> Tensor:
    return torch.zeros_like(x[:, 0])


ONE = Integrand(_zero, _zero)  #: h = 1, whose integral is the evidence of p


def _checked(values: Any, num: int, name: str) -> Tensor:
    """Returns the values in float64; raises ValueError unless they are ``(num,)`` and finite."""
    if not isinstance(values, Tensor) or values.shape != (num,):
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} of {num} draws must be of shape ({num},), got {found}")
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{name} is NaN or infinite at {bad} of {num} draws of the path")
    return values.double()


def integrands(
    density: SampledDensity, h: Any, event: Any, signed: bool, options: ImportanceOptions
) -> list[Integrand]:
    """Makes the integrand of h or of an event; for a signed h one for each sign.

    Arguments:
        density: The density.
        h: A function of draws, or None.
        event: A function of draws that is positive where the event happens, or None.
        signed: Whether h has both signs.
        options: How h and the event are relaxed.

    Raises:
        ValueError: There is neither h nor an event, or both; h is zero at all pilot draws; the
            event's function is constant, or has a sign.

    Example:
        >>> normal = torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1))
        >>> options = ImportanceOptions(pilot_draws=100)
        >>> density = as_density(normal, (), None, None, options)
        >>> beyond = integrands(density, None, lambda x: x[:, 0] - 1, False, options)[0]
        >>> beyond.exact(torch.tensor([[0.0], [2.0]])).exp()
        tensor([0., 1.], dtype=torch.float64)
        >>> len(integrands(density, lambda x: x[:, 0], None, True, options))  # one for each sign
        2
    """
    if (h is None) == (event is None):
        raise ValueError("give either h, or event= (a function that is positive where it happens)")
    draws = density.draws
    if event is not None:
        if signed:
            raise ValueError("signed=True is for h; an event has no sign")
        return [_event(lambda x: event(density.values(x)), draws, options.sharpness)]
    signs = {"positive ": 1.0, "negative ": -1.0} if signed else {"": 1.0}
    return [
        _function(lambda x: h(density.values(x)), draws, name, sign, options.floor)
        for name, sign in signs.items()
    ]


def _event(g: Callable[[Tensor], Tensor], pilot: Tensor, sharpness: float) -> Integrand:
    values = g(pilot)
    if isinstance(values, Tensor) and not values.is_floating_point():
        raise ValueError(
            "event= returns true and false: return a number that is positive where the event "
            "happens and says how far it is elsewhere, x - 4 rather than x > 4"
        )
    spread = float(_checked(values, len(pilot), "event=").std())
    if spread == 0:
        raise ValueError("event= is the same at all draws of p, so that the path has no direction")

    def exact(x: Tensor) -> Tensor:
        return (_checked(g(x), len(x), "event=") > 0).double().log()

    return Integrand(exact, lambda x: logsigmoid(sharpness / spread * g(x)))


def _function(
    h: Callable[[Tensor], Tensor], pilot: Tensor, name: str, sign: float, floor: float
) -> Integrand:
    """Makes the integrand of h, or of the part of a signed h that ``name`` says."""

    def exact(x: Tensor) -> Tensor:
        values = sign * _checked(h(x), len(x), "h")
        if not name and bool((values < 0).any()):
            raise ValueError("h is negative at some draws: signed=True splits it into two parts")
        return values.clamp(min=0).log()

    mean = float(exact(pilot).exp().mean())
    if mean == 0:
        raise ValueError(
            f"h has no {name}value at any of {len(pilot)} draws of p, so that the path has no "
            f"direction: for a rare event give event=, a function that is positive there and grows "
            f"towards it"
        )

    def relaxed(x: Tensor) -> Tensor:
        return ((sign * h(x)).clamp(min=0) + floor * mean).log()

    return Integrand(exact, relaxed)
