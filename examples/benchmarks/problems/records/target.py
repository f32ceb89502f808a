"""A target of the literature: how to make it, its log evidence, and exact draws where there are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyro_flowsamp.problems import Problem

Made = tuple[Callable, tuple]  #: a Pyro model with its arguments, or a target without


@dataclass(frozen=True)
class LiteratureTarget:
    """A target of published samplers, and what is known of it.

    Attributes:
        make: Returns a Pyro model with its arguments, or a target without, in the default dtype.
        dim: The dimension.
        log_z: The log of the integral of its density, as far as it is known.
        log_z_error: The standard error of that; zero where it is exact.
        source: The origin of ``log_z``, in words.
        problem: Returns the target with its exact draws, or is None.
        clip: Draws are clipped to this absolute value before distances are taken, because of tails
            without second moments, or with all but infinite ones; None where they are not.
        wells: Coordinates that have two wells each, whose signs are compared.
        well_share: The mass of each right well.
        reference: The start of other packages' samplers, ``"box"`` and half its width or
            ``"normal"`` and its standard deviation; None where they are not tried.
        published: Figures of other samplers, ``{sampler: text}``.
    """

    make: Callable[[], Made]
    dim: int
    log_z: float | None
    source: str
    log_z_error: float = 0.0
    problem: Callable[[], Problem] | None = None
    clip: float | None = None
    wells: tuple[int, ...] = ()
    well_share: float = 0.5
    reference: tuple[str, float] | None = None
    published: dict[str, str] = field(default_factory=dict)


def of_problem(make: Callable[[], Problem], dim: int, source: str, **more: Any) -> LiteratureTarget:
    """A target that has exact draws, and the log evidence that its maker states."""
    return LiteratureTarget(
        lambda: (make().target, ()), dim, make().log_z, source, problem=make, **more
    )
