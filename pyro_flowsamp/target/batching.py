"""Batching: vmap, an outer plate or a Python loop, and the checks that choose among them.

The loop evaluates one point at a time and is right for any model. A faster way is taken where it
agrees with the loop, in value and gradient, and where points in one batch do not change each
other's density.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .inspection import ModelStructureError, RandomDensityError
from .site import Site

__all__ = [
    "FAR",
    "RANDOM_DENSITY",
    "ChosenBatching",
    "Density",
    "check_repeatable",
    "choose_batching",
    "couples",
    "fixed_points",
    "value_and_grad",
    "warn_of_gradient",
    "warn_of_loop",
]


Density = Callable[[Tensor, Tensor | None], Tensor]
FAR = 3.0, 10.0, 100.0  #: radii of the points that must not change the density of others
REPEATS = 8  #: evaluations of a density whose first two differ, to see how much they vary
NOISE = 1e-3  #: nats by which evaluations at the same point may vary, beside rounding errors
#: rounding errors by which they may, in units of eps times the density; by atomic sums on a device
ULPS, ULPS_ON_DEVICE = 2.0, 64.0


def fixed_points(like: Tensor, num: int) -> Tensor:
    """Points ``(num, d)`` in the box from -1 to 1, always the same; no global seed is used.

    Example:
        >>> torch.equal(fixed_points(torch.zeros(2), 3), fixed_points(torch.zeros(2), 3))
        True
        >>> float(fixed_points(torch.zeros(2), 100).abs().max()) <= 1
        True
    """
    generator = torch.Generator("cpu").manual_seed(0)
    points = torch.rand(num, like.shape[-1], generator=generator, device="cpu")
    return (2 * points - 1).to(like)


def value_and_grad(density: Density, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    """Densities ``(N,)`` and their gradients ``(N, d)`` at points.

    Arguments:
        density: A batched density.
        x: The points.
        c: Their contexts ``(N, c)``, or None.

    Raises:
        ValueError: There is no gradient.

    Example:
        >>> value_and_grad(lambda x, c: -x.square().sum(-1), torch.tensor([[3.0]]), None)
        (tensor([-9.]), tensor([[-6.]]))
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = density(x, c)
        grad = None
        if value.requires_grad:
            (grad,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
    if grad is None:
        raise ValueError(
            "the density does not depend on any latent site, or autograd cannot follow "
            "the dependence (NumPy, .item() or .detach() on the way): write it with torch functions"
        )
    return value.detach(), grad


def _close(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> bool:
    """Whether values and gradients agree, but for round-off."""
    return one[0].shape == two[0].shape and all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in zip(one, two)
    )


def check_repeatable(density: Density, x: Tensor, c: Tensor | None, first: Tensor) -> None:
    """Checks that a density is the same at each evaluation.

    Its values may be huge and differ by little, which is all that an acceptance probability depends
    on. So the standard deviation over evaluations at the same point is compared with rounding
    errors, and not with the density.

    Arguments:
        density: The density.
        x: Points ``(N, d)``.
        c: Their contexts ``(N, c)``, or None.
        first: The densities of one evaluation, ``(N,)``.

    Raises:
        RandomDensityError: It is not.

    Example:
        >>> noisy = lambda x, c: 1e6 + torch.randn(len(x))
        >>> x = torch.zeros(2, 1)
        >>> check_repeatable(noisy, x, None, noisy(x, None))
        Traceback (most recent call last):
        ...
        pyro_flowsamp.target.inspection.RandomDensityError: the density is random: ...
    """
    with torch.no_grad():
        again = density(x, c)
        if torch.equal(again, first):
            return
        found = torch.stack([first, again, *(density(x, c) for _ in range(REPEATS))]).double()
    finite = found.isfinite()
    ulps = ULPS if found.device.type == "cpu" else ULPS_ON_DEVICE
    rounding = ulps * torch.finfo(first.dtype).eps * found.nan_to_num(posinf=0, neginf=0).abs()
    noise = found.where(finite.all(0), 0.0).std(0)
    if bool((finite == finite[0]).all() & (noise <= NOISE + rounding.amax(0)).all()):
        return
    raise RandomDensityError(RANDOM_DENSITY)


def far_points(points: Tensor) -> Tensor:
    """Random points ``(M, d)``, some of them far from the origin.

    Example:
        >>> x = far_points(torch.zeros(2, 5))
        >>> x.shape, bool(x.abs().max() > 30)  # four batches at each of three radii, up to 100
        (torch.Size([24, 5]), True)
    """
    return torch.cat([torch.empty_like(points).uniform_(-r, r) for r in FAR for _ in range(4)])


def couples(
    density: Density,
    points: Tensor,
    alone: Tensor,
    far: Tensor,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> bool:
    """Whether the densities of points change with the other points in the batch.

    A density may sum over the whole batch, or branch on ``x.any()``. Far points are added to
    the batch, on which neither values nor gradients of the others may depend.

    Arguments:
        density: The batched density.
        points: The points, ``(N, d)``.
        alone: Their densities without the far points, ``(N,)``.
        far: Other points, ``(M, d)``.
        rtol, atol: Bounds, relative and in nats, of a difference that counts as an error of
            rounding or of a solver.

    Example:
        >>> def shared(x, c):  # normalised by the whole batch
        ...     return -x.square().sum(-1) / x.std()
        >>> def alone(x, c):
        ...     return -x.square().sum(-1)
        >>> x, far = torch.tensor([[1.0], [2.0]]), torch.tensor([[50.0]])
        >>> [couples(density, x, density(x, None), far) for density in (shared, alone)]
        [True, False]
    """
    with torch.enable_grad():
        x = torch.cat([points, far]).requires_grad_()
        try:
            near = density(x, None)[: len(points)]
            (grad,) = torch.autograd.grad(near.sum(), x)
        except Exception:  # these points are not the user's: an error there is no answer
            return False
    same = torch.allclose(near, alone, rtol=rtol, atol=atol, equal_nan=True)
    return not same or bool((grad[len(points) :].nan_to_num(nan=0.0) != 0).any())


def warn_of_gradient(sites: Sequence[Site], value: Tensor, grad: Tensor) -> None:
    """Warns of coordinates on which the density does not depend, and of NaN in the gradient.

    Arguments:
        sites: The sites of the coordinates.
        value, grad: Densities ``(N,)`` and gradients ``(N, d)`` at some points.

    Example:
        >>> from pyro_flowsamp.target.site import real_site
        >>> sites, grad = [real_site("x", torch.Size([2]))], torch.tensor([[1.0, 0.0], [2.0, 0.0]])
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_gradient(sites, torch.zeros(2), grad)
        >>> str(caught[0].message)[:44]
        "the density does not depend on 1 of 'x' (coo"
    """
    finite = value.isfinite()[:, None]
    if bool((grad.isnan() & finite).any()):
        warnings.warn(
            "the density is finite where its gradient is NaN. Such a gradient counts as zero, so "
            "that training and kernels that use it work badly. The cause may be NaN or infinite "
            "data that a mask hides (replace them by any number), torch.where, or sqrt at 0.",
            stacklevel=4,
        )
    angles = torch.tensor([s.circular for s in sites for _ in range(s.size)], device=grad.device)
    flat = ((grad == 0) & finite).all(0) & ~angles
    if not bool(flat.any()):
        return
    parts = zip(sites, flat.split([s.size for s in sites]))
    found = ", ".join(f"{int(f.sum())} of '{s.name}'" for s, f in parts if bool(f.any()))
    warnings.warn(
        f"the density does not depend on {found} (coordinates, at two points): unless it is zero "
        f"somewhere, the posterior is improper there. Give them a prior, or leave them out.",
        stacklevel=4,
    )


RANDOM_DENSITY = (
    "the density is random: two evaluations at the same points differ, and no exact sampler or "
    "training can use it. Give the whole model, if poutine.block hides some of its latent sites "
    "here; else draw random numbers once, outside the model."
)


class ChosenBatching(NamedTuple):
    """A way of batching, and the reasons against the faster ways.

    Attributes:
        name: ``"vmap"``, ``"plate"`` or ``"loop"``.
        value, grad: Densities ``(N,)`` and gradients ``(N, d)`` at some points.
        reasons: Why each faster way is not used.

    Example:
        >>> one = torch.ones(1, 1)
        >>> chosen = choose_batching({"loop": lambda x, c: -x.square().sum(-1)}, one, None)
        >>> chosen.name, chosen.value, chosen.reasons
        ('loop', tensor([-1.]), [])
    """

    name: str
    value: Tensor
    grad: Tensor
    reasons: Sequence[str]


def choose_batching(ways: dict[str, Density], points: Tensor, c: Tensor | None) -> ChosenBatching:
    """Chooses the first way of batching that agrees with the last one, the loop.

    Arguments:
        ways: Batched densities by name, the fastest first.
        points: Points on which they are compared, ``(N, d)``.
        c: Their contexts ``(N, c)``, or None.

    Raises:
        RandomDensityError: Two evaluations at the same points differ.
        ValueError: The density depends on no latent site.

    Example:
        >>> def loop(x, c):
        ...     return torch.stack([-row.square().sum() for row in x])
        >>> def wrong(x, c):
        ...     return -x.sum(-1)
        >>> chosen = choose_batching({"vmap": wrong, "loop": loop}, torch.randn(2, 3), None)
        >>> chosen.name, chosen.reasons
        ('loop', ["vmap: its densities differ from the loop's"])
    """
    *fast, (slow_name, slow) = ways.items()
    reference = value_and_grad(slow, points, c)
    check_repeatable(slow, points, c, reference[0])
    reasons = []
    for name, density in fast:
        try:
            result = value_and_grad(density, points, c)
            more = _of_another_size(density, points, c)
        except ModelStructureError:
            raise
        except Exception as error:  # whatever the model's code raises under this batching
            reasons.append(
                f"{name}: {str(error).strip().splitlines()[0] if str(error) else error!r}"
            )
            continue
        if not _close(result, reference) or not _close((more, more), (reference[0].repeat(2),) * 2):
            reasons.append(f"{name}: its densities differ from the loop's")
        elif name == "plate" and couples(density, points, result[0], far_points(points)):
            reasons.append(
                f"{name}: points that are evaluated together change each other's density"
            )
        else:
            return ChosenBatching(name, *reference, reasons)
    return ChosenBatching(slow_name, *reference, reasons)


def _of_another_size(density: Density, points: Tensor, c: Tensor | None) -> Tensor:
    """Densities of a batch with each point twice, ``(2 N,)``.

    Data with as many rows as the batch has points may be broadcast against it by coincidence.
    """
    with torch.no_grad():
        return density(points.repeat(2, 1), None if c is None else c.repeat(2, 1))


def warn_of_loop(chosen: ChosenBatching) -> None:
    """Warns where points are evaluated in a Python loop.

    Example:
        >>> chosen = ChosenBatching("loop", torch.zeros(2), torch.zeros(2, 1), ["vmap: .item()"])
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_loop(chosen)
        >>> str(caught[0].message)[:78]
        'the density is evaluated point by point, in a Python loop (vmap: .item()). Thi'
    """
    if chosen.name != "loop":
        return
    warnings.warn(
        f"the density is evaluated point by point, in a Python loop ({'; '.join(chosen.reasons)}). "
        f"This can be a thousand times slower than a model without Python branches on tensors, "
        f".item() or in-place writes.",
        stacklevel=4,
    )
