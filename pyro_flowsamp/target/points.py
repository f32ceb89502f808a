"""Points at which a target has a density: over-dispersed ones, and draws from a model's prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Independent

from ..validation import check_count
from .context import every
from .missing_data import Imputed
from .model import ModelDensity
from .site import SiteLayout, Values

__all__ = [
    "check_finite_above",
    "complete_groups",
    "is_drawn_from_its_prior",
    "overdispersed_points",
    "prior_points",
]

FAR_SCALES = 30.0, 100.0, 1e3, 1e4  #: half widths of boxes where nearer ones have no density
PRIOR_DRAWS = 500  #: draws of the prior that are tried there


def check_finite_above(log_p: Tensor) -> None:
    r"""Checks that log densities at random points are not :math:`+\infty`.

    A random point lies in a set only if the set has a positive size. A pole in a single point is
    no hindrance.

    Raises:
        ValueError: Some are.

    Example:
        >>> check_finite_above(torch.tensor([0.0, torch.inf]))
        Traceback (most recent call last):
        ...
        ValueError: the log density is +inf at 1 of 2 random points: ...
    """
    infinite = int((log_p == torch.inf).sum())
    if infinite:
        raise ValueError(
            f"the log density is +inf at {infinite} of {len(log_p)} random points: a density that "
            f"is infinite on a set of positive size cannot be normalised. Where there is no "
            f"density its logarithm is -inf, and an energy or a potential +inf"
        )


def overdispersed_points(
    log_prob: Callable[[Tensor], Tensor],
    unbounded: Callable[[Tensor], Tensor],
    layout: SiteLayout,
    num: int,
    scales: Sequence[float],
    starts: Tensor | None = None,
    prior: Callable[[int], Tensor | None] | None = None,
) -> Tensor:
    r"""Points of finite density, see :meth:`Target.initial_points`.

    Arguments:
        log_prob: Log densities ``(N,)`` of points ``(N, d)``, :math:`-\infty` where not finite.
        unbounded: The same, with :math:`+\infty` where that is the value.
        layout: The sites of the points.
        num: The number of points.
        scales: Half widths of the boxes around the origin in which points are drawn, until there
            are enough; and then of boxes around ``starts``. Where they have none, draws of the
            prior follow, and wider boxes, of :data:`FAR_SCALES`.
        starts: Points ``(N, d)`` that are among the result, up to half of it; or None.
        prior: Gives at most so many draws of the prior, all of finite density, or None.

    Raises:
        ValueError: No point has a finite density, or some an infinite one.

    Example:
        >>> from pyro_flowsamp.target.site import real_site
        >>> sites = [real_site("x", torch.Size([1]))]
        >>> layout = SiteLayout(sites, torch.float32, torch.device("cpu"))
        >>> def log_prob(x):  # no density below 1
        ...     return torch.where(x[:, 0] > 1, -x[:, 0], -torch.inf)
        >>> x = overdispersed_points(log_prob, log_prob, layout, 5, scales=(2.0,))
        >>> x.shape, bool((x > 1).all() & (x < 2).all())
        (torch.Size([5, 1]), True)
    """
    check_count("num", num)
    dim, dtype, device = layout.dim, layout.dtype, layout.device

    def finite(x: Tensor) -> Tensor:
        with torch.no_grad():
            usable = torch.isfinite(log_prob(x))
            if not bool(usable.all()):
                check_finite_above(unbounded(x))
            return x[usable]

    def boxes(scale: float) -> Tensor:
        x = torch.empty(4 * num + 16, dim, dtype=dtype, device=device).uniform_(-scale, scale)
        return torch.where(layout.angles, x * (pi / scale), x)

    found = torch.empty(0, dim, dtype=dtype, device=device)
    centres: list[Tensor | None] = [None]
    if starts is not None and len(given := finite(starts.to(found))):
        found = every(given, min(len(given), (num + 1) // 2))
        centres = [None, every(given, 4 * num + 16)]
    for centre in centres:
        for scale in scales:
            x = boxes(scale)
            found = torch.cat([found, finite(x if centre is None else x + centre)])
            if len(found) >= num:
                return found[:num]
    if not len(found):  # data in their own units can ask for values far from the origin
        found = _far_points(finite, boxes, prior)
    if len(found):
        return every(found, num)
    raise ValueError(
        "the log density is NaN or -inf at every initial point: check the model's supports, "
        "data for NaN, or give initial_params inside the support."
    )


def _far_points(
    finite: Callable[[Tensor], Tensor],
    boxes: Callable[[float], Tensor],
    prior: Callable[[int], Tensor | None] | None,
) -> Tensor:
    """Points of finite density by draws of the prior, or else in wide boxes; maybe none."""
    drawn = None if prior is None else prior(PRIOR_DRAWS)
    if drawn is not None:
        return drawn
    for scale in FAR_SCALES:
        found = finite(boxes(scale))
        if len(found):
            break
    return found


# ---- the prior -----------------------------------------------------------------------------------


def prior_points(
    model: ModelDensity, layout: SiteLayout, contexts: Tensor | None, num: int
) -> Tensor | None:
    r"""Draws of a model's latent sites, given nothing, as points ``(num, d)``.

    The model is run once for each draw, with the data in their places. What it observes changes no
    draw, and its factors are ignored. Discrete sites are drawn and dropped, so that the others are
    draws from their marginal.

    Arguments:
        model: The density of a Pyro model.
        layout: The sites of the points.
        contexts: The contexts ``(num, c)`` of the draws, or None.
        num: The number of draws.

    Returns:
        The points, with NaN where a matrix could not be factorised; or None where the prior cannot
        be sampled, since it is improper, its terms are masked or scaled, or the model fails.

    Example:
        >>> from pyro_flowsamp import Target
        >>> def model():
        ...     pyro.sample("x", dist.Normal(3.0, 0.1))
        ...     pyro.factor("f", torch.tensor(-100.0))
        >>> target = Target.from_model(model)
        >>> x = prior_points(target.model, target.layout, None, 50)
        >>> x.shape, round(float(x.mean()), 1)
        (torch.Size([50, 1]), 3.0)
    """
    rows = [None] * num if contexts is None else contexts
    try:
        draws = [_draw(model, layout, model.context.arguments(row)) for row in rows]
        values = {s.name: torch.stack([draw[s.name] for draw in draws]) for s in layout.sites}
        return layout.pack({name: value.to(layout.dtype) for name, value in values.items()})
    except Exception:  # whatever the model's code raises on draws from its prior
        return None


def _draw(model: ModelDensity, layout: SiteLayout, context: Values) -> Values:
    """One draw of the continuous latent sites, of NaN where a matrix cannot be factorised.

    Raises:
        ValueError: A site has no proper prior.
    """
    try:
        with torch.no_grad(), poutine.block(), Imputed(), pyro.validation_enabled(False):
            traced = poutine.trace(model.model)
            trace = traced.get_trace(*model.args, **{**model.kwargs, **context})
    except torch.linalg.LinAlgError:
        nan = torch.full((), torch.nan, device=layout.device)
        return {site.name: nan.expand(site.value_shape) for site in layout.sites}
    for site in layout.sites:
        if not is_drawn_from_its_prior(trace.nodes[site.name]):
            raise ValueError(f"the prior of site '{site.name}' is masked or scaled")
    return {site.name: trace.nodes[site.name]["value"] for site in layout.sites}


def is_drawn_from_its_prior(node: dict) -> bool:
    """Whether a site's term of the log density is that of the distribution that it is drawn from.

    It is not where it is masked, wholly or in part, or scaled.

    Example:
        >>> plain = {"fn": dist.Normal(0.0, 1.0), "mask": None, "scale": 1.0}
        >>> is_drawn_from_its_prior(plain), is_drawn_from_its_prior({**plain, "scale": 2.0})
        (True, False)
    """
    fn: Any = node["fn"]
    masks = [node["mask"]]
    while isinstance(fn, Independent | dist.MaskedDistribution | dist.ExpandedDistribution):
        masks.append(getattr(fn, "_mask", None))
        fn = fn.base_dist
    shown = all(bool(torch.as_tensor(mask).all()) for mask in masks if mask is not None)
    return shown and bool((torch.as_tensor(node["scale"]) == 1).all())


def complete_groups(x: Tensor, usable: Tensor, size: int) -> Tensor:
    """The points of the groups, of so many rows in turn, in which all rows are usable.

    At K contexts row i of a batch is at that of i mod K, and groups of K rows can be left out.

    Arguments:
        x: Points ``(N, d)``.
        usable: Mask ``(N,)``.
        size: The number of rows of a group.

    Example:
        >>> x = torch.arange(5)[:, None]
        >>> complete_groups(x, x[:, 0] != 1, 2)[:, 0].tolist()
        [2, 3]
    """
    num = len(x) // size * size
    whole = usable[:num].reshape(-1, size).all(1).repeat_interleave(size)
    return x[:num][whole]
