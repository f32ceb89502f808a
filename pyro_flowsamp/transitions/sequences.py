"""Quasi-random sequences: the numbers of steps and the step sizes of trajectories."""

from __future__ import annotations

from math import ceil

__all__ = ["numbers_of_steps", "step_size_factor", "van_der_corput"]

GOLDEN_RATIO = (5**0.5 - 1) / 2  #: the irrational number whose multiples are spread most evenly


def van_der_corput(num: int) -> list[float]:
    r"""The first ``num`` points of the van der Corput sequence in base 2, for a power of 2.

    They are shifted by half the distance between neighbours, so that their mean is 1/2.

    Example::

        >>> van_der_corput(4)
        [0.125, 0.625, 0.375, 0.875]
    """
    points = [0.0]
    while len(points) < num:
        points += [point + 0.5 / len(points) for point in points]
    return [point + 0.5 / num for point in points]


def numbers_of_steps(mean: float, most: int, points: list[float]) -> list[int]:
    r"""Numbers of steps :math:`\min(M, \max(1, \lceil h \lambda \rceil))` for :math:`h = 2u`.

    Arguments:
        mean: :math:`\lambda`.
        most: M.
        points: Points u in (0, 1).

    Example::

        >>> numbers_of_steps(2.0, 3, van_der_corput(4))
        [1, 3, 2, 3]
    """
    return [min(most, max(1, ceil(2 * point * mean))) for point in points]


def step_size_factor(t: int, share: float, octaves: float) -> float:
    r"""The factor :math:`2^{-s_t}` of the step size of trajectory t.

    The points are those of an additive recurrence with the golden ratio. They are evenly spread
    beside the numbers of steps, which follow a sequence in base 2.

    Arguments:
        t: The number of the trajectory.
        share: Share of the trajectories that have a factor below 1.
        octaves: Their :math:`s_t` is uniform between 0 and this number.

    Example::

        >>> [round(step_size_factor(t, 0.5, 3.0), 2) for t in range(4)]
        [1.0, 0.61, 1.0, 0.23]
    """
    point = (0.5 + t * GOLDEN_RATIO) % 1.0
    return 2.0 ** (-octaves * point / share) if point < share else 1.0
