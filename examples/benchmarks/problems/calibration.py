"""Targets of known truth on which the verdict of ``diagnose()`` is calibrated.

Each has exact draws, which give the truth of every statistic, and the masses of its modes where it
has several. Thresholds were chosen on ``CHOOSING``, the judging targets of earlier versions
included. ``JUDGING`` was written before any run on it, and nothing was chosen on it. Both have
heavy tails, many modes, wide, narrow, far and tiny ones, funnels, and targets that are hard and go
well.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from pyro_flowsamp.problems import (
    Problem,
    banana,
    exp_gauss,
    exp_gauss_unequal,
    funnel,
    gmm,
    mog4,
    rings4,
    unequal_pair,
)

from .families import (
    asymmetric_laplace,
    comb_of_modes,
    crowd_of_modes,
    dirichlet,
    grid_of_modes,
    gumbel,
    log_half_cauchy,
    logit_beta,
    oriented_modes,
    ring_in_space,
    secant,
    skew_normal,
    skew_student,
    sloped_funnel,
    student_funnel,
    tilted_student,
    twisted,
    two_arcs,
)
from .shapes import (
    autoregression,
    bow_tie,
    concentric,
    curved,
    dozen,
    heavy_modes,
    independent_student,
    laplace,
    laplace_funnel,
    light_tails,
    logistic,
    mixture,
    modified_exponential,
    ridge,
    ring_and_core,
    rotated,
    shell,
    sinh_arcsinh,
    skewed,
    spikes_and_slabs,
    sticks,
    student,
)
from .small_posteriors import bioassay, eight_schools, pumps, speed_of_light, two_groups

__all__ = ["CHOOSING", "JUDGING", "NEEDLES", "exact_draws", "problem"]

EXACT = 200_000  #: exact draws that give the truth of a statistic


CHOOSING: dict[str, Callable[[], Problem]] = {
    "gaussian": lambda: ridge(3, 0.5),
    "student_t3": lambda: student(2, 3.0),
    "log_gamma": lambda: skewed(3, 0.5),
    "six_modes": lambda: gmm(6),
    "unequal_pair": unequal_pair,
    "narrow_mode": lambda: mixture([[0.0, 0.0], [4.0, 4.0]], [1.0, 0.1], [0.5, 0.5]),
    "thin_mode": lambda: mixture([[0.0] * 3, [5.0] * 3], [1.0, 0.2], [0.6, 0.4]),
    "tiny_mode": lambda: mixture([[0.0, 0.0], [7.0, 7.0]], [1.0, 1.0], [0.97, 0.03]),
    "far_modes": lambda: mixture([[-100.0, 0.0], [100.0, 0.0]], [1.0, 1.0], [0.3, 0.7]),
    "funnel": lambda: funnel(3, 0.9),
    "steep_funnel": lambda: funnel(4, 3.0),
    "banana": banana,
    "concentric": lambda: concentric(2),
    "slim_mode": lambda: mixture([[0.0, 0.0], [-2.0, 9.0]], [1.0, 0.15], [0.7, 0.3]),
    "ridge": lambda: ridge(8, 0.9),
    "student_t2": lambda: student(3, 2.0),
    "laplace": lambda: laplace(4),
    "four_modes": mog4,
    "sixteen_modes": lambda: exp_gauss(6, 4, 4.0),
    "unequal_modes": lambda: exp_gauss_unequal(8, 2),
    "small_mode": lambda: mixture([[0.0] * 3, [6.0] * 3], [1.0, 0.5], [0.96, 0.04]),
    "remote_modes": lambda: mixture([[0.0, -60.0], [0.0, 90.0]], [1.0, 3.0], [0.5, 0.5]),
    "wide_funnel": lambda: funnel(5, 1.5),
    "neal_funnel": lambda: funnel(6, 3.0),
    "rings": rings4,
    "scale_mixture": lambda: concentric(5),
    "student_t2_5": lambda: student(4, 2.5),
    "tailed_coordinates": lambda: independent_student(5, 4.0),
    "skewed_tails": lambda: sinh_arcsinh(3, 0.8, 0.6),
    "modified_exponential": lambda: modified_exponential(4, 0.3),
    "logistic": lambda: logistic(6),
    "light_tails": lambda: light_tails(3),
    "dozen_modes": dozen,
    "narrow_in_four": lambda: mixture([[0.0] * 4, [3.5] * 4], [1.0, 0.15], [0.65, 0.35]),
    "distant_modes": lambda: mixture(
        [[-300.0, 10.0], [0.0, 0.0], [500.0, -40.0]], [2.0, 1.0, 5.0], [0.2, 0.5, 0.3]
    ),
    "light_mode": lambda: mixture([[0.0, 0.0], [-8.0, 1.0]], [1.0, 0.7], [0.98, 0.02]),
    "satellite_modes": lambda: mixture(
        [[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [-9.0, 0.0], [0.0, -9.0], [7.0, 7.0]],
        [1.5, 0.5, 0.5, 0.5, 0.5, 0.5],
        [0.9, 0.02, 0.02, 0.02, 0.02, 0.02],
    ),
    "two_sticks": sticks,
    "heavy_modes": heavy_modes,
    "ring_and_core": ring_and_core,
    "spikes_and_slabs": spikes_and_slabs,
    "laplace_funnel": lambda: laplace_funnel(4, 1.2),
    "deep_funnel": lambda: funnel(4, 2.2),
    "bow_tie": bow_tie,
    "parabolas": lambda: curved(lambda x: x.square(), 3, 0.4, 1.2),
    "sine_wave": lambda: curved(lambda x: 3 * (2 * x).sin(), 2, 0.4, 1.5),
    "shell": shell,
    "ill_conditioned": lambda: rotated([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]),
    "autoregression": lambda: autoregression(16, 0.95),
}
JUDGING: dict[str, Callable[[], Problem]] = {
    "skew_student": lambda: skew_student(3, 2.0, 4.0),
    "skew_normal": lambda: skew_normal(4, 6.0),
    "asymmetric_laplace": lambda: asymmetric_laplace(5, 2.0, 0.5),
    "gumbel": lambda: gumbel(6),
    "secant": lambda: secant(3),
    "tilted_student": lambda: tilted_student([0.1, 0.3, 1.0, 3.0, 10.0, 1.0], 3.5),
    "contaminated": lambda: mixture([[0.0] * 4] * 2, [1.0, 3.5], [0.9, 0.1]),
    "logit_beta": lambda: logit_beta(4, 0.6, 3.0),
    "log_half_cauchy": lambda: log_half_cauchy(3),
    "dirichlet": lambda: dirichlet([0.4, 0.7, 1.0, 2.0, 5.0]),
    "nine_modes": grid_of_modes,
    "modes_in_ten": lambda: mixture([[0.0] * 10, [1.6] * 10], [1.0, 0.8], [0.3, 0.7]),
    "modes_of_three_scales": lambda: mixture(
        [[0.0, 0.0], [20.0, 0.0], [0.0, -60.0]], [0.2, 1.5, 6.0], [0.3, 0.3, 0.4]
    ),
    "twenty_modes": crowd_of_modes,
    "faint_mode": lambda: mixture([[0.0] * 3, [5.0, -4.0, 3.0]], [1.0, 0.35], [0.96, 0.04]),
    "touching_modes": lambda: mixture([[0.0] * 3, [2.5, 0.0, 0.0]], [1.0, 0.5], [0.5, 0.5]),
    "oriented_modes": oriented_modes,
    "comb_of_modes": comb_of_modes,
    "two_arcs": two_arcs,
    "gentle_funnel": lambda: sloped_funnel(8, 1.0, 0.7),
    "long_funnel": lambda: sloped_funnel(3, 2.0, 0.3),
    "student_funnel": lambda: student_funnel(4, 1.0, 5.0),
    "twisted": lambda: twisted(6, 3.0, 0.3),
    "cubic_arm": lambda: curved(lambda x: 0.3 * x**3, 2, 0.5, 1.2),
    "ring_in_space": ring_in_space,
    "eight_schools": eight_schools,
    "pumps": pumps,
    "bioassay": bioassay,
    "speed_of_light": speed_of_light,
    "two_groups": two_groups,
}
NEEDLES: dict[str, Callable[[], Problem]] = {
    "needle": lambda: mixture([[0.0, 0.0], [3.0, 3.0]], [1.0, 0.02], [0.994, 0.006]),
    "far_needle": lambda: mixture([[0.0, 0.0], [40.0, 0.0]], [1.0, 0.2], [0.995, 0.005]),
    "hidden_needle": lambda: mixture([[0.0] * 3, [4.0, -4.0, 0.0]], [1.0, 0.05], [0.996, 0.004]),
    "inner_needle": lambda: mixture([[0.0, 0.0], [1.5, 1.0]], [1.0, 0.02], [0.992, 0.008]),
}


@cache
def problem(name: str) -> Problem:
    """The problem of a name."""
    return {**CHOOSING, **JUDGING, **NEEDLES}[name]()


@cache
def exact_draws(name: str) -> Tensor:
    """Exact draws ``(EXACT, d)``, always the same."""
    with torch.random.fork_rng([]):
        torch.manual_seed(12_345)
        return problem(name).sample(EXACT)
