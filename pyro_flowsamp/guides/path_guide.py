"""Base of the guides that lead particles along a path of densities, and correct them on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..smc.driver import Stage, run_smc
from ..smc.particles import Particles
from ..target.density import Target
from ..validation import check_count
from .base import FlowGuide

__all__ = ["PathGuide"]


class PathGuide(FlowGuide):
    """A guide whose flow follows a path of densities on R^d from a base to the target.

    A subclass makes the stages of its path, each a density with the map that leads there, and has
    the times of these densities and the particles on the way.

    Attributes:
        time_name: The name of these times, for pictures.

    Example:
        >>> guide = PathGuide(Target.from_energy(lambda x: x.square().sum(-1), 2))
        >>> guide.check_islands(12, 3)
        >>> guide.check_islands(10, 3)
        Traceback (most recent call last):
        ValueError: 10 particles do not divide into 3 islands: take a multiple
    """

    time_name = "time t"

    def path_times(self) -> list[float]:
        """The times of the densities of the path, from 0 at the base to 1 at the target."""
        raise NotImplementedError

    def intermediate_particles(
        self, target: Target, num_particles: int, islands: int
    ) -> Iterator[Particles]:
        """Particles of the base, then after every stage: one for each of :meth:`path_times`."""
        raise NotImplementedError

    def check_target(self, target: Target) -> None:
        """Refuses a target with angles.

        Raises:
            ValueError: The target has periodic coordinates.
        """
        if target.circular:
            raise ValueError(
                f"{type(self).__name__} needs a target on R^d, and this target has angles: use "
                f"AutoFlow(flow='circular', ensemble=tempered_smc)."
            )

    def check_islands(self, num_particles: int, islands: int) -> None:
        """Refuses numbers of particles that cannot be shared out among islands.

        Raises:
            ValueError: ``num_particles`` is not a positive multiple of ``islands``.
        """
        check_count("num_particles", num_particles)
        check_count("islands", islands)
        if num_particles % islands:
            raise ValueError(
                f"{num_particles} particles do not divide into {islands} islands: take a multiple"
            )

    def run_stages(
        self, first: Particles, stages: Iterable[Stage], mcmc_steps: int
    ) -> Iterator[Particles]:
        """Carries particles through the stages, and yields them at first and after each stage.

        Arguments:
            first: Particles of the base.
            stages: The stages, in the order of the path.
            mcmc_steps: MCMC steps after each stage, of a size that was fixed before.
        """
        steps = (stage.step(mcmc_steps) for stage in stages)
        yield first
        yield from run_smc(first, lambda _: next(steps, None))
