r"""Models of hidden states, differential equations and places, whose truths are sums on grids."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .reference import (
    Draws,
    Function,
    ImportanceOptions,
    KnownPosterior,
    Statistic,
    Truth,
    above,
    asked,
    below,
    cached,
    importance,
    site,
    tensor,
)

# ---- a hidden Markov model -----------------------------------------------------------------------

TIMES = 40


def hidden_markov(y: Tensor) -> None:
    r"""A hidden Markov model of two states, summed out: the states can be exchanged.

    .. math:: m_0, m_1 \sim N(0, 3),\; p_0, p_1 \sim \mathrm{Beta}(4, 1),\; s_1 = 0,\;
              P(s_{t+1} = s_t) = p_{s_t},\; y_t \sim N(m_{s_t}, 1)

    The first state is 0 or 1 with probability one half.

    Arguments:
        y: Observations, ``(40,)``.
    """
    means = pyro.sample("means", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    stay = pyro.sample("stay", dist.Beta(4.0, 1.0).expand([2]).to_event(1))
    rows = torch.stack([stay, 1 - stay], -1)
    transition = torch.stack([rows[..., 0, :], rows[..., 1, :].flip(-1)], -2)
    state = pyro.sample("state_0", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
    for t in pyro.markov(range(len(y))):
        index = state.long()
        if t:
            index = pyro.sample(
                f"state_{t}",
                dist.Categorical(pyro.ops.indexing.Vindex(transition)[..., index, :]),
                infer={"enumerate": "parallel"},
            )
            state = index
        mean = pyro.ops.indexing.Vindex(means)[..., index]
        pyro.sample(f"y_{t}", dist.Normal(mean, 1.0), obs=y[t])


def markov_data() -> np.ndarray:
    """Returns 40 observations of two states whose means are 1.6 apart."""
    rng = np.random.default_rng(0)
    state, found = 0, np.empty(TIMES)
    for t in range(TIMES):
        if t and rng.random() > 0.85:
            state = 1 - state
        found[t] = (-0.8, 0.8)[state] + rng.standard_normal()
    return found


def markov_density(x: Tensor) -> Tensor:
    """The log density of (means, logits of stay), ``(N, 4)`` to ``(N,)``, for ordered means."""
    means, stay = x[:, :2], x[:, 2:].sigmoid()
    y = torch.as_tensor(markov_data())
    log_p = -means.square().sum(-1) / 18 + (4 * stay.log() + (1 - stay).log()).sum(-1)
    forward = torch.full_like(means, 0.5)
    for t, value in enumerate(y):
        if t:
            moved = forward * (1 - stay)
            forward = forward * stay + moved.flip(-1)
        forward = forward * (-0.5 * (value - means).square()).exp()
        total = forward.sum(-1, keepdim=True)
        forward, log_p = forward / total, log_p + total[:, 0].log()
    return torch.where((means[:, 0] < means[:, 1]) & ~log_p.isnan(), log_p, -torch.inf)


def lower(name: str) -> Function:
    """The value of a site for the state of the lower mean."""

    def values(draws: Draws) -> np.ndarray:
        means, values = np.asarray(draws["means"], float), np.asarray(draws[name], float)
        return np.where(means[..., 0] < means[..., 1], values[..., 0], values[..., 1])

    return values


def upper(name: str) -> Function:
    """The value of a site for the state of the upper mean."""
    low = lower(name)
    return lambda draws: np.asarray(draws[name], float).sum(-1) - low(draws)


MARKOV_FUNCTIONS: dict[str, Function] = {
    "lower mean": lower("means"),
    "upper mean": upper("means"),
    "stay in the lower": lower("stay"),
    "stay in the upper": upper("stay"),
    "P(lower mean < -1)": below(lower("means"), -1.0),
    "P(upper mean > 2)": above(upper("means"), 2.0),
    "P(stay in the lower < 0.5)": below(lower("stay"), 0.5),
}


def markov_statistics() -> list[Statistic]:
    """Means and tails by importance sampling for ordered means; either order has one half."""

    def unpack(x: Tensor) -> Draws:
        return {"means": x[:, :2].numpy()[None], "stay": x[:, 2:].sigmoid().numpy()[None]}

    def compute() -> Truth:
        start = torch.tensor([-1.0, 1.0, 1.5, 1.5], dtype=torch.float64)
        options = ImportanceOptions(pairs=1_000_000, degrees=3, scale=1.6, block=20_000)
        return importance(markov_density, start, unpack, MARKOV_FUNCTIONS, options)[0]

    truth = cached("hidden_markov", MARKOV_FUNCTIONS, compute)

    def first_is_lower(draws: Draws) -> np.ndarray:
        means = np.asarray(draws["means"])
        return (means[..., 0] < means[..., 1]).astype(float)

    half = Statistic("P(first mean is the lower)", first_is_lower, 0.5, share=True)
    return [*asked(MARKOV_FUNCTIONS, truth), half]


# ---- a differential equation ---------------------------------------------------------------------

YEARS, STEPS = 20, 4  #: years of observations, and Runge-Kutta steps in each
#: prior medians and log standard deviations of the rates, of the first populations, of the noise
LOG_PRIOR = ((1.0, 0.05, 1.0, 0.05, 10.0, 10.0, 0.3), (0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0))
NAMES = ("alpha", "beta", "gamma", "delta", "prey", "predators", "noise")


def populations(theta: Tensor, years: int, steps: int) -> Tensor:
    r"""Log populations of the Lotka-Volterra equations after each year, by Runge-Kutta steps.

    .. math:: (\log u)' = \alpha - \beta v,\; (\log v)' = -\gamma + \delta u

    Arguments:
        theta: The first six of :data:`NAMES`, ``(..., 6)``.
        years: Years.
        steps: Steps in a year.

    Returns:
        Log populations, ``(..., years + 1, 2)``.
    """
    rates = torch.stack([theta[..., 0], -theta[..., 2]], -1)
    effects = torch.stack([-theta[..., 1], theta[..., 3]], -1)

    def slope(log_u: Tensor) -> Tensor:
        return rates + effects * log_u.clamp(max=20.0).exp().flip(-1)

    log_u, found, h = theta[..., 4:6].log(), [], 1 / steps
    found.append(log_u)
    for _ in range(years):
        for _ in range(steps):
            a = slope(log_u)
            b = slope(log_u + h / 2 * a)
            c = slope(log_u + h / 2 * b)
            log_u = log_u + h / 6 * (a + 2 * b + 2 * c + slope(log_u + h * c))
        found.append(log_u)
    return torch.stack(found, -2)


def lotka_volterra(y: Tensor) -> None:
    r"""Predators and prey, observed each year with multiplicative errors.

    All seven parameters have log-normal priors; :math:`\log y_t \sim N(\log u_t, s)`.

    Arguments:
        y: Log populations, ``(21, 2)``.
    """
    medians, sds = LOG_PRIOR
    theta = torch.stack(
        [
            pyro.sample(name, dist.LogNormal(float(np.log(median)), sd))
            for name, median, sd in zip(NAMES, medians, sds, strict=True)
        ],
        -1,
    )
    log_u = populations(theta[..., :6], y.shape[-2] - 1, STEPS)
    noise = theta[..., 6, None, None]
    pyro.sample("y", dist.Normal(log_u, noise).to_event(2), obs=y)


def volterra_data() -> np.ndarray:
    """Returns log populations with errors of sd 0.25."""
    rng = np.random.default_rng(0)
    theta = torch.tensor([0.55, 0.028, 0.8, 0.024, 30.0, 5.0], dtype=torch.float64)
    log_u = populations(theta, YEARS, STEPS).numpy()
    return log_u + 0.25 * rng.standard_normal(log_u.shape)


def volterra_density(x: Tensor) -> Tensor:
    """The log density of the logarithms of all parameters, ``(N, 7)`` to ``(N,)``."""
    y = torch.as_tensor(volterra_data())
    medians, sds = (torch.tensor(values, dtype=torch.float64) for values in LOG_PRIOR)
    log_p = -0.5 * ((x - medians.log()) / sds).square().sum(-1)
    log_u = populations(x[:, :6].exp(), YEARS, STEPS)
    residual = (y - log_u).square().sum((-1, -2))
    return log_p - 0.5 * residual * (-2 * x[:, 6]).exp() - y.numel() * x[:, 6]


VOLTERRA_FUNCTIONS: dict[str, Function] = {
    **{name: site(name) for name in NAMES},
    "P(alpha > 0.7)": above(site("alpha"), 0.7),
    "P(gamma < 0.6)": below(site("gamma"), 0.6),
    "P(noise > 0.23)": above(site("noise"), 0.23),
}


def volterra_statistics() -> list[Statistic]:
    """Means and tails by importance sampling."""

    def unpack(x: Tensor) -> Draws:
        return {name: x[:, i].exp().numpy()[None] for i, name in enumerate(NAMES)}

    def compute() -> Truth:
        start = torch.tensor([0.55, 0.028, 0.8, 0.024, 30.0, 5.0, 0.25], dtype=torch.float64).log()
        options = ImportanceOptions(pairs=200_000, degrees=8, scale=1.15, block=5_000)
        return importance(volterra_density, start, unpack, VOLTERRA_FUNCTIONS, options)[0]

    return asked(VOLTERRA_FUNCTIONS, cached("lotka_volterra", VOLTERRA_FUNCTIONS, compute))


# ---- places of sensors ---------------------------------------------------------------------------

ANCHORS = ((0.1, 0.15), (0.85, 0.3), (0.45, 0.9))  #: known places
PLACES = ((0.55, 0.35), (0.75, 0.75))  #: unknown places, which made the data
ERROR, REACH = 0.04, 0.4  #: of a distance, and from where on few distances are observed


def sensors(heard: Tensor, distance: Tensor) -> None:
    r"""Places of two sensors, from some distances to three anchors and to each other.

    A distance D is observed with probability :math:`e^{-D^2 / 2 R^2}`, and with an error of sd
    0.04. Two distances leave two places, mirrored at a line.

    Arguments:
        heard: 1 where a distance was observed, else 0, ``(7,)``: sensor 0 to the anchors, sensor 1
            to the anchors, and between the sensors.
        distance: The distances, ``(7,)``; anything where they were not observed.
    """
    place = pyro.sample("place", dist.Normal(0.5, 1.0).expand([2, 2]).to_event(2))
    true = distances(place)
    log_heard = -0.5 * (true / REACH) ** 2
    logits = log_heard - (-torch.expm1(log_heard.clamp(max=-1e-6))).log()
    pyro.sample("heard", dist.Bernoulli(logits=logits).to_event(1), obs=heard)
    with pyro.poutine.mask(mask=heard > 0):
        with pyro.plate("pairs", heard.shape[-1]):
            pyro.sample("distance", dist.Normal(true, ERROR), obs=distance)


def distances(place: Tensor) -> Tensor:
    """Distances of places ``(..., 2, 2)``: to the anchors, and to each other, ``(..., 7)``."""
    anchors = torch.tensor(ANCHORS, dtype=place.dtype)
    to_anchors = (place[..., None, :] - anchors).square().sum(-1)
    each_other = (place[..., 0, :] - place[..., 1, :]).square().sum(-1)
    squares = torch.cat([to_anchors.flatten(-2), each_other[..., None]], -1)
    return (squares + 1e-12).sqrt()


def sensor_data() -> tuple[np.ndarray, np.ndarray]:
    """Returns which distances were observed, and the distances."""
    rng = np.random.default_rng(3)
    true = distances(torch.tensor(PLACES, dtype=torch.float64)).numpy()
    heard = (rng.random(len(true)) < np.exp(-0.5 * (true / REACH) ** 2)).astype(float)
    return heard, np.where(heard > 0, true + ERROR * rng.standard_normal(len(true)), 0.0)


def sensor_factor(true: np.ndarray, heard: float, distance: float) -> np.ndarray:
    """The log likelihood of one distance."""
    log_heard = -0.5 * (true / REACH) ** 2
    if heard:
        return log_heard - 0.5 * ((distance - true) / ERROR) ** 2
    return np.log(-np.expm1(np.minimum(log_heard, -1e-6)))


def sensor_statistics() -> list[Statistic]:
    """Sums over a grid of both places, of all points that have any mass."""
    heard, distance = sensor_data()
    nodes = np.arange(-3.0, 4.0, 0.0125) + 0.00625  # bounds are edges of cells
    x, y = (grid.ravel() for grid in np.meshgrid(nodes, nodes, indexing="ij"))
    kept, logs = [], []
    for sensor in range(2):
        log_p = -0.5 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
        for anchor, (a, b) in enumerate(ANCHORS):
            index = 3 * sensor + anchor
            log_p += sensor_factor(np.hypot(x - a, y - b), heard[index], distance[index])
        keep = log_p > log_p.max() - 25
        kept.append(np.stack([x[keep], y[keep]], -1))
        logs.append(log_p[keep])
    sums: dict[str, float] = dict.fromkeys(SENSOR_FUNCTIONS, 0.0)
    total = 0.0
    shift = logs[0].max() + logs[1].max()
    for first in range(0, len(kept[0]), 200):
        block = kept[0][first : first + 200]
        gap = np.hypot(*(block[:, None] - kept[1]).transpose(2, 0, 1))
        weight = logs[0][first : first + 200, None] + logs[1] - shift
        weight = np.exp(weight + sensor_factor(gap, heard[6], distance[6]))
        total += weight.sum()
        place = np.stack(
            [
                np.broadcast_to(block[:, None], (*gap.shape, 2)),
                np.broadcast_to(kept[1], (*gap.shape, 2)),
            ],
            -2,
        )
        for name, function in SENSOR_FUNCTIONS.items():
            sums[name] += float((weight * function({"place": place})).sum())
    return asked(SENSOR_FUNCTIONS, {name: (value / total, 0.0) for name, value in sums.items()})


SENSOR_FUNCTIONS: dict[str, Function] = {
    f"place[{i}, {j}]": site("place", i, j) for i in range(2) for j in range(2)
} | {
    "P(place[0, 1] > 0.3)": above(site("place", 0, 1), 0.3),
    "P(place[1, 0] > 0.6)": above(site("place", 1, 0), 0.6),
    "P(place[1, 1] > 0.75)": above(site("place", 1, 1), 0.75),
}

PROBLEMS = {
    "hidden_markov": KnownPosterior(
        lambda: (hidden_markov, (tensor(markov_data()),)),
        markov_statistics,
        4,
        "importance sampling",
    ),
    "lotka_volterra": KnownPosterior(
        lambda: (lotka_volterra, (tensor(volterra_data()),)),
        volterra_statistics,
        7,
        "importance sampling",
    ),
    "sensors": KnownPosterior(
        lambda: (sensors, tuple(tensor(x) for x in sensor_data())),
        sensor_statistics,
        4,
        "sums on a grid",
    ),
}
