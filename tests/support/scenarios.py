"""Targets of known truth, flows bad on purpose, and the one check that every exact sampler passes.

A :class:`Scenario` says what to sample, with what flow, and what the averages of some functions
are. :func:`spoil` makes a guide whose flow is wrong in every layer. :func:`z_scores` compares the
draws with the truth, the mean of each independent chain counting as one datum.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from math import erf, exp, pi, sqrt
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy.special import iv
from torch import Tensor, nn

from pyro_flowsamp import AutoFlow, Target
from pyro_flowsamp._zuko import zuko
from pyro_flowsamp.flows.mixture_fit import Mixture
from pyro_flowsamp.flows.recipes import LayeredFlow, circular, coupling, spline

THRESHOLD = 4.5  #: of |z|; about one false alarm in 150 000 moments

Draws = dict[str, Tensor]


class Scenario(NamedTuple):
    """A target of known truth.

    Attributes:
        source: Makes the Pyro model, or the target.
        flow: Makes the flow, untrained.
        loc, scale: Roughly where the target lies, in unconstrained space, one value per coordinate.
        moments: Named functions of the draws ``{site: (..., *shape)}`` and their true averages.
    """

    source: Callable[[], Callable]
    flow: Callable[[], nn.Module]
    loc: list[float]
    scale: list[float]
    moments: dict[str, tuple[Callable[[Draws], Tensor], float]]


def spoil(guide: AutoFlow, scenario: Scenario | None = None, size: float = 0.1) -> AutoFlow:
    """Builds the guide's flow and makes it bad: random couplings, shifted, too wide.

    A flow that is none of the package's stays at its random start, which knows nothing.
    """
    guide.target_for()
    flow = guide.flow
    guide.trained = True
    if not isinstance(flow, LayeredFlow):
        return guide
    if scenario is not None:
        scale = torch.tensor(scenario.scale)
        width = 2.0 if len(scale) < 5 else 1.5
        shift = 0.3 * scale * torch.randn(len(scale))
        flow.affine.initialize(torch.tensor(scenario.loc) + shift, torch.diag(width * scale))
    shake(flow, size)
    return guide


@torch.no_grad()
def shake(flow: LayeredFlow, size: float = 0.1) -> LayeredFlow:
    """Perturbs the couplings' last layers, the affine layer's trained part, and a mixture base."""
    for layer in flow.couplings:
        for parameter in layer.net[-1].parameters():
            parameter += size * torch.randn_like(parameter)
    for parameter in flow.affine.parameters():
        parameter += 0.3 * size * torch.randn_like(parameter)
    if flow.base.components > 1:
        root = torch.tril(3 * size * torch.randn_like(flow.base.scale_trils), -1)
        eye = torch.eye(flow.features)
        locs = 5 * size * torch.randn_like(flow.base.locs)
        log_weights = torch.randn(flow.base.components).log_softmax(0)
        flow.base.initialize(Mixture(log_weights, locs, eye + root))
    return flow


FAR_WIDTH = 0.5


def far_modes() -> Target:
    """A mixture of a third and two thirds, sixteen standard deviations apart."""
    centres = torch.tensor([[-4.0, 0.0], [4.0, 1.0]])

    def energy(x):
        squares = (x[:, None] - centres).square().sum(-1) / FAR_WIDTH**2
        return -(torch.tensor([1 / 3, 2 / 3]).log() - 0.5 * squares).logsumexp(-1)

    return Target.from_energy(energy, 2)


def starts(target: Target, scenario: Scenario, num_chains: int) -> Draws:
    """Where chains begin: spread over a box, which is not how any of the targets looks."""
    loc, scale = torch.tensor(scenario.loc), torch.tensor(scenario.scale)
    x = loc + scale * torch.empty(num_chains, target.dim).uniform_(-0.9, 0.9)
    return target.unpack_unconstrained(x)


def z_scores(draws: Draws, scenario: Scenario) -> dict[str, float]:
    """How many standard errors each moment is off, for draws ``{site: (chains, draws, ...)}``."""
    scores = {}
    for name, (function, truth) in scenario.moments.items():
        values = function(draws).double()
        assert values.dim() == 2 and values.isfinite().all(), name
        means = values.mean(1)
        scores[name] = float((means.mean() - truth) / means.std() * sqrt(len(means)))
    return scores


def largest_score(draws: Draws, scenario: Scenario) -> float:
    """The largest of all absolute z-scores."""
    return max(map(abs, z_scores(draws, scenario).values()))


def assert_exact(draws: Draws, scenario: Scenario) -> None:
    """The check: every moment within :data:`THRESHOLD` standard errors of the truth."""
    scores = z_scores(draws, scenario)
    off = {name: round(z, 1) for name, z in scores.items() if not abs(z) < THRESHOLD}
    assert not off, f"standard errors away from the truth: {off}"


# ---- functions of draws ------------------------------------------------------------------------


def _power(site: str, *index: int, power: int = 1) -> Callable[[Draws], Tensor]:
    return lambda draws: draws[site][(..., *index)] ** power


def _product(site: str, i: int, j: int) -> Callable[[Draws], Tensor]:
    return lambda draws: draws[site][..., i] * draws[site][..., j]


# ---- real spaces -------------------------------------------------------------------------------

GAUSSIAN_ROOT = torch.tensor(
    [
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [0.6, 0.8, 0.0, 0.0, 0.0],
        [-0.4, 0.3, 1.5, 0.0, 0.0],
        [0.0, 0.3, -0.3, 0.5, 0.0],
        [0.2, 0.0, 0.5, 1.0, 2.0],
    ]
)
GAUSSIAN_MEAN = torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5])


def _gaussian() -> Target:
    density = torch.distributions.MultivariateNormal(GAUSSIAN_MEAN, scale_tril=GAUSSIAN_ROOT)
    return Target.from_energy(lambda x: -density.log_prob(x) + 7.0, 5)


def _gaussian_moments() -> dict:
    second = GAUSSIAN_ROOT @ GAUSSIAN_ROOT.T + torch.outer(GAUSSIAN_MEAN, GAUSSIAN_MEAN)
    pairs = itertools.combinations_with_replacement(range(5), 2)
    moments = {f"x{i}": (_power("x", i), float(GAUSSIAN_MEAN[i])) for i in range(5)}
    return moments | {
        f"x{i}x{j}": (_product("x", i, j), float(second[i, j]))
        for i, j in itertools.islice(pairs, 0, 15)
    }


def _funnel() -> Target:
    def energy(x: Tensor) -> Tensor:
        v, rest = x[:, 0], x[:, 1:]
        return 0.5 * (v / 0.9).square() + v + 0.5 * rest.square().sum(-1) * (-v).exp()

    return Target.from_energy(energy, 3)


def _modes() -> Target:
    centres = torch.tensor([[-1.5, 0.0], [1.5, 0.5]])

    def energy(x: Tensor) -> Tensor:
        squares = (x[:, None] - centres).square().sum(-1) / 0.7**2
        return -(torch.tensor([0.25, 0.75]).log() - 0.5 * squares).logsumexp(-1)

    return Target.from_energy(energy, 2)


def _phi(x: float) -> float:
    return 0.5 * (1 + erf(x / sqrt(2)))


# ---- supports ----------------------------------------------------------------------------------


def _half_space() -> Target:
    """A half normal, and a normal around it; no density where the first is negative."""

    def energy(x: Tensor) -> Tensor:
        inside = 0.5 * x[:, 0].square() + 0.5 * ((x[:, 1] - x[:, 0]) / 0.5).square()
        return torch.where(x[:, 0] < 0, torch.inf, inside)

    return Target.from_energy(energy, 2)


def _conjugate() -> Callable:
    counts, flips = torch.tensor([3.0, 1.0, 4.0]), torch.tensor([1.0, 1.0, 0.0, 1.0])

    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        chance = pyro.sample("chance", dist.Uniform(0.0, 1.0))
        pyro.sample("scale", dist.HalfNormal(2.0))
        with pyro.plate("counts", 3):
            pyro.sample("count", dist.Poisson(rate), obs=counts)
        with pyro.plate("flips", 4):
            pyro.sample("flip", dist.Bernoulli(chance), obs=flips)

    return model


def _manifolds() -> Callable:
    """A simplex with a conjugate posterior, a correlation matrix, and three sorted normals."""

    def model() -> None:
        shares = pyro.sample("shares", dist.Dirichlet(torch.tensor([1.0, 2.0, 1.5])))
        counts = torch.tensor([2.0, 0.0, 3.0])
        pyro.sample("counts", dist.Multinomial(5, shares, validate_args=False), obs=counts)
        pyro.sample("root", dist.LKJCholesky(3, 2.0))
        sorted_reals = dist.ImproperUniform(constraints.ordered_vector, (), (3,))
        x = pyro.sample("sorted", sorted_reals)
        pyro.factor("normal", -0.5 * x.square().sum(-1))

    return model


def _correlation(i: int, j: int, power: int) -> Callable[[Draws], Tensor]:
    def function(draws: Draws) -> Tensor:
        root = draws["root"]
        return (root[..., i, :] * root[..., j, :]).sum(-1) ** power

    return function


# ---- angles ------------------------------------------------------------------------------------


def _torus() -> Callable:
    def model() -> None:
        concentration = torch.tensor([2.0, 1.0])
        with pyro.plate("angles", 2):
            pyro.sample("x", dist.VonMises(torch.tensor([1.0, -2.5]), concentration))

    return model


def _angle() -> Target:
    return Target.from_energy(lambda x: -2 * (x[:, 0] - 1.0).cos(), 1, angles=[0])


def _circular_spline_flow() -> nn.Module:
    """zuko's spline flow on the circle, whose base is uniform on one period and zero elsewhere."""
    return zuko.flows.NCSF(1, transforms=2, bins=3)


def _cylinder() -> Target:
    """An angle, and a real coordinate that follows its cosine."""

    def energy(x: Tensor) -> Tensor:
        cosine = (x[:, 0] - 3.0).cos()
        return -1.5 * cosine + 0.5 * ((x[:, 1] - 2 * cosine) / 0.7).square()

    return Target.from_energy(energy, 2, angles=[0])


def _wave(i: int, loc: float, wave: int, sine: bool = False) -> Callable[[Draws], Tensor]:
    def function(draws: Draws) -> Tensor:
        angle = wave * (draws["x"][..., i] - loc)
        return angle.sin() if sine else angle.cos()

    return function


def _bessel(order: int, concentration: float) -> float:
    return float(iv(order, concentration) / iv(0, concentration))


# ---- discrete sites ----------------------------------------------------------------------------

_OBSERVED = [-1.3, 0.4, 1.9, 2.2]


def _enumerated() -> Callable:
    def model() -> None:
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        gap = pyro.sample("gap", dist.Normal(1.0, 1.0))
        with pyro.plate("data", len(_OBSERVED)):
            upper = pyro.sample("upper", dist.Bernoulli(share))
            pyro.sample("y", dist.Normal(gap * upper - 1, 1.0), obs=torch.tensor(_OBSERVED))

    return model


@cache
def _enumerated_truth() -> dict[str, float]:
    """By brute force: a grid over both parameters, and a sum over all sixteen assignments."""
    share = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.double)[:, None]
    gap = torch.linspace(-6, 8, 1401, dtype=torch.double)
    y = torch.tensor(_OBSERVED, dtype=torch.double)
    density = torch.zeros(1000, 1401, dtype=torch.double)
    for upper in itertools.product((0.0, 1.0), repeat=len(y)):
        term = torch.ones_like(density)
        for value, u in zip(y, upper):
            chance = share if u else 1 - share
            term = term * chance * (-0.5 * (value - gap * u + 1).square()).exp()
        density += term
    density *= share * (1 - share) * (-0.5 * (gap - 1).square()).exp()
    density /= density.sum()

    def average(values: Tensor) -> float:
        return float((density * values).sum())

    return {
        "share": average(share),
        "share2": average(share.square()),
        "gap": average(gap),
        "gap2": average(gap.square()),
        "share gap": average(share * gap),
    }


# ---- the registry ------------------------------------------------------------------------------


def _small(recipe: Callable, features: int, **kwargs: object) -> Callable[[], LayeredFlow]:
    return lambda: recipe(features, transforms=2, hidden_features=(24,), **kwargs)


def _scenarios() -> dict[str, Scenario]:
    left, right = 1 - _phi(1.5 / 0.7), _phi(1.5 / 0.7)
    dirichlet = [3.0, 2.0, 4.5]  # of 9.5
    cosine, cosine2 = _bessel(1, 1.5), 0.5 + 0.5 * _bessel(2, 1.5)
    torus = {}
    for i, loc, kappa in ((0, 1.0, 2.0), (1, -2.5, 1.0)):
        torus[f"sin {i}"] = (_wave(i, loc, 1, sine=True), 0.0)
        torus |= {f"cos {k} {i}": (_wave(i, loc, k), _bessel(k, kappa)) for k in (1, 2, 3)}
    mixture = _enumerated_truth()
    return {
        "gaussian": Scenario(
            _gaussian,
            _small(coupling, 5),
            GAUSSIAN_MEAN.tolist(),
            (GAUSSIAN_ROOT @ GAUSSIAN_ROOT.T).diagonal().sqrt().tolist(),
            _gaussian_moments(),
        ),
        "funnel": Scenario(
            _funnel,
            _small(coupling, 3),
            [0.0, 0.0, 0.0],
            [0.9, 1.5, 1.5],
            {
                "v": (_power("x", 0), 0.0),
                "v2": (_power("x", 0, power=2), 0.81),
                "x1": (_power("x", 1), 0.0),
                "x1 squared": (_power("x", 1, power=2), exp(0.405)),
                "x2 squared": (_power("x", 2, power=2), exp(0.405)),
                "|x2|": (lambda d: d["x"][..., 2].abs(), sqrt(2 / pi) * exp(0.81 / 8)),
            },
        ),
        "modes": Scenario(
            _modes,
            _small(spline, 2, components=3),
            [0.0, 0.0],
            [1.6, 0.8],
            {
                "x0": (_power("x", 0), 0.75),
                "x1": (_power("x", 1), 0.375),
                "x0 squared": (_power("x", 0, power=2), 2.25 + 0.49),
                "x1 squared": (_power("x", 1, power=2), 0.75 * 0.25 + 0.49),
                "x0x1": (_product("x", 0, 1), 0.75 * 0.75),
                "right": (lambda d: (d["x"][..., 0] > 0).float(), 0.25 * left + 0.75 * right),
            },
        ),
        "half space": Scenario(
            _half_space,
            _small(coupling, 2),
            [0.8, 0.8],
            [0.7, 0.8],
            {
                "x0": (_power("x", 0), sqrt(2 / pi)),
                "x0 squared": (_power("x", 0, power=2), 1.0),
                "x1": (_power("x", 1), sqrt(2 / pi)),
                "x1 squared": (_power("x", 1, power=2), 1.25),
                "x0x1": (_product("x", 0, 1), 1.0),
            },
        ),
        "conjugate": Scenario(
            _conjugate,
            _small(coupling, 3),
            [0.9, 0.8, 0.4],
            [0.35, 1.0, 1.0],
            {
                "rate": (_power("rate"), 10 / 4),
                "rate2": (_power("rate", power=2), 10 * 11 / 16),
                "chance": (_power("chance"), 4 / 6),
                "chance2": (_power("chance", power=2), 4 * 5 / 42),
                "scale": (_power("scale"), 2 * sqrt(2 / pi)),
                "scale2": (_power("scale", power=2), 4.0),
                "rate chance": (lambda d: d["rate"] * d["chance"], 10 / 4 * 4 / 6),
            },
        ),
        "manifolds": Scenario(
            _manifolds,
            _small(coupling, 8),
            [-0.1, -0.7, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0],
            [0.8, 0.9, 0.5, 0.5, 0.5, 0.7, 0.8, 0.8],
            {
                **{f"share {i}": (_power("shares", i), dirichlet[i] / 9.5) for i in range(3)},
                "share 0 squared": (_power("shares", 0, power=2), 3 * 4 / (9.5 * 10.5)),
                "r01": (_correlation(0, 1, 1), 0.0),
                "r12": (_correlation(1, 2, 1), 0.0),
                **{f"r{i}{j} squared": (_correlation(i, j, 2), 1 / 6) for i, j in ((0, 1), (1, 2))},
                "least": (_power("sorted", 0), -3 / (2 * sqrt(pi))),
                "middle": (_power("sorted", 1), 0.0),
                "greatest": (_power("sorted", 2), 3 / (2 * sqrt(pi))),
                "squares": (lambda d: d["sorted"].square().sum(-1), 3.0),
            },
        ),
        "torus": Scenario(_torus, _small(circular, 2), [1.0, -2.5], [1.0, 1.0], torus),
        "bounded base": Scenario(
            _angle,
            _circular_spline_flow,
            [1.0],
            [1.0],
            {name: moment for name, moment in torus.items() if name.endswith("0")},
        ),
        "cylinder": Scenario(
            _cylinder,
            _small(circular, 2, angles=torch.tensor([True, False])),
            [3.0, 1.0],
            [1.0, 1.3],
            {
                "cos": (_wave(0, 3.0, 1), cosine),
                "sin": (_wave(0, 3.0, 1, sine=True), 0.0),
                "cos 2": (_wave(0, 3.0, 2), _bessel(2, 1.5)),
                "x1": (_power("x", 1), 2 * cosine),
                "x1 squared": (_power("x", 1, power=2), 0.49 + 4 * cosine2),
                "x1 cos": (lambda d: d["x"][..., 1] * (d["x"][..., 0] - 3).cos(), 2 * cosine2),
            },
        ),
        "enumerated": Scenario(
            _enumerated,
            _small(coupling, 2),
            [0.0, 1.5],
            [1.0, 1.0],
            {
                "share": (_power("share"), mixture["share"]),
                "share2": (_power("share", power=2), mixture["share2"]),
                "gap": (_power("gap"), mixture["gap"]),
                "gap2": (_power("gap", power=2), mixture["gap2"]),
                "share gap": (lambda d: d["share"] * d["gap"], mixture["share gap"]),
            },
        ),
    }


SCENARIOS = _scenarios()
