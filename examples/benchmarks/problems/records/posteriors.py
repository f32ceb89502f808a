r"""Posteriors of published samplers, as Pyro models: regressions, a random walk, a point process.

All log likelihoods have their constants, so that the evidence is that of the data, but for the
point process, whose definition leaves out the factorials and a power of the area.

References:
    Chen, Richter, Berner, Blessing, Neumann and Anandkumar, *Sequential Controlled Langevin
    Diffusions*, 2024, https://arxiv.org/abs/2412.07081

    Crowder, *Beta-binomial Anova for proportions*, 1978, https://doi.org/10.2307/2346223 (seeds)

    Møller, Syversveen and Waagepetersen, *Log Gaussian Cox processes*, 1998,
    https://doi.org/10.1111/1467-9469.00115
"""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..known.reference import tensor
from ..models import DATA
from .target import LiteratureTarget, Made

# ---- seeds ---------------------------------------------------------------------------------------

GERMINATED = "10 23 23 26 17 5 53 55 32 46 10 8 10 8 23 0 3 22 15 32 3"
PLANTED = "39 62 81 51 39 6 74 72 51 79 13 16 30 28 45 4 12 41 30 51 7"
BEAN = [0] * 11 + [1] * 10
CUCUMBER = [0] * 5 + [1] * 6 + [0] * 5 + [1] * 5


def seed_data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns counts of germinated and planted seeds, ``(21,)``, and predictors ``(21, 4)``."""
    r, n = (np.array(text.split(), dtype=float) for text in (GERMINATED, PLANTED))
    x1, x2 = np.array(BEAN, dtype=float), np.array(CUCUMBER, dtype=float)
    return r, n, np.stack([np.ones(len(r)), x1, x2, x1 * x2], 1)


def seeds(germinated: Tensor, planted: Tensor, X: Tensor) -> None:
    r"""Germination of seeds on 21 plates, a logistic regression with random effects: d = 26.

    .. math:: \tau \sim \mathrm{Gamma}(.01, .01),\; a \sim N(0, 10^2 I_4),\;
              b_j \sim N(0, 1 / \tau),

        r_j \sim \mathrm{Binomial}(N_j, \mathrm{logit} = X_j a + b_j)

    Arguments:
        germinated: Seeds that have germinated on each plate, ``(21,)``.
        planted: Seeds on each plate, ``(21,)``.
        X: Ones, type of seed, type of extract, and their product, ``(21, 4)``.
    """
    tau = pyro.sample("tau", dist.Gamma(0.01, 0.01))
    a = pyro.sample("a", dist.Normal(0.0, 10.0).expand([4]).to_event(1))
    with pyro.plate("plates", len(planted)):
        b = pyro.sample("b", dist.Normal(0.0, tau.rsqrt()))
        pyro.sample("r", dist.Binomial(planted, logits=X @ a + b), obs=germinated)


def make_seeds() -> Made:
    """Makes the model with its data."""
    return seeds, tuple(map(tensor, seed_data()))


# ---- logistic regressions ------------------------------------------------------------------------


def logistic(X: Tensor, y: Tensor, sd: float | None) -> None:
    r"""A logistic regression with :math:`w \sim N(0, s^2 I)`, or without a prior.

    Arguments:
        X: Predictors with a column of ones, ``(N, d)``.
        y: Outcomes, 0 or 1, ``(N,)``.
        sd: :math:`s`, or None for a flat prior of density 1.
    """
    prior = dist.Normal(0.0, 1.0 if sd is None else sd).expand([X.shape[1]]).to_event(1)
    w = pyro.sample("w", prior.mask(False) if sd is None else prior)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=X @ w), obs=y)


def standardised(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns standardised predictors with a column of ones, and outcomes; constants become 0."""
    table = np.loadtxt(DATA / f"{name}.csv", delimiter=",", skiprows=1)
    x, y = table[:, :-1], (table[:, -1] > 0).astype(float)
    sd = x.std(0)
    x = np.where(sd > 0, (x - x.mean(0)) / np.where(sd > 0, sd, 1.0), 0.0)
    return np.column_stack([np.ones(len(x)), x]), y


def scaled_credit() -> tuple[np.ndarray, np.ndarray]:
    """Returns the predictors of credit risk divided by their sd, with a column of ones first."""
    table = np.loadtxt(DATA / "german_credit.csv", delimiter=",", skiprows=1)
    x = table[:, :-1] / table[:, :-1].std(0)
    return np.column_stack([np.ones(len(x)), x]), table[:, -1]


def make_standardised(name: str) -> Made:
    """Makes the regression of sonar or radar returns, with unit normal priors."""
    return logistic, (*map(tensor, standardised(name)), 1.0)


def make_credit(sd: float | None) -> Made:
    """Makes the regression of credit risk."""
    return logistic, (*map(tensor, scaled_credit()), sd)


# ---- Brownian motion -----------------------------------------------------------------------------

STEPS = 30
SEEN = [*range(10), *range(20, 30)]  #: times at which the motion is observed
OBSERVED = """
    .21592641 .118771404 -.07945447 .037677474 -.27885845 -.1484156 -.3250906 -.22957903 -.44110894
    -.09830782 -.8786016 -.83736074 -.7384849 -.8939254 -.7774566 -.70238715 -.87771565 -.51853573
    -.6948214 -.6202789
"""


def brownian_data() -> np.ndarray:
    """Returns the observations, ``(20,)``."""
    return np.array(OBSERVED.split(), dtype=float)


def brownian(y: Tensor) -> None:
    r"""Brownian motion with two unknown scales, observed before and after a gap: d = 32.

    .. math:: \sigma_i, \sigma_o \sim \mathrm{LogNormal}(0, 2),\; x_0 \sim N(0, \sigma_i),\;
              x_t \sim N(x_{t - 1}, \sigma_i),\; y_t \sim N(x_t, \sigma_o)

    Arguments:
        y: Observations at the times 0 to 9 and 20 to 29, ``(20,)``.
    """
    inner = pyro.sample("inner", dist.LogNormal(0.0, 2.0))
    outer = pyro.sample("outer", dist.LogNormal(0.0, 2.0))
    x: list[Tensor] = []
    for t in range(STEPS):
        before = x[-1] if x else torch.zeros_like(inner)
        x.append(pyro.sample(f"x{t}", dist.Normal(before, inner)))
    seen = torch.stack([x[t] for t in SEEN], -1)
    pyro.sample("y", dist.Normal(seen, outer[..., None]).to_event(1), obs=y)


def make_brownian() -> Made:
    """Makes the model with its data."""
    return brownian, (tensor(brownian_data()),)


# ---- log-Gaussian Cox process --------------------------------------------------------------------

SIDE, TREES, VARIANCE = 40, 126, 1.91
LENGTH = SIDE / 33  #: of the correlation, in cells
MEAN = float(np.log(TREES)) - VARIANCE / 2


def tree_counts() -> np.ndarray:
    """Returns the number of saplings in each of 40 × 40 cells, ``(1600,)``."""
    place = np.loadtxt(DATA / "pines.csv", delimiter=",", skiprows=1)
    cell = np.minimum((place * SIDE).astype(int), SIDE - 1)
    return np.bincount(cell[:, 0] * SIDE + cell[:, 1], minlength=SIDE**2).astype(float)


def cell_covariance() -> np.ndarray:
    r"""Returns :math:`K = 1.91\,e^{-33 r / 40}` of the distances r between cells."""
    axis = np.arange(SIDE)
    place = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    distance = np.sqrt(((place[:, None] - place) ** 2).sum(-1))
    return VARIANCE * np.exp(-distance / LENGTH)


def cox(counts: Tensor, factor: Tensor, whitened: bool) -> None:
    r"""A Poisson process with the log intensity :math:`f \sim N(\mu, K)`: d = 1600.

    The log likelihood is :math:`\sum_i y_i f_i - e^{f_i} / 1600`.

    Arguments:
        counts: Points in each cell, ``(1600,)``.
        factor: The Cholesky factor of K, ``(1600, 1600)``.
        whitened: Whether the site is :math:`z` with :math:`f = \mu + L z`, in place of :math:`f`.
    """
    cells = len(counts)
    if whitened:
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([cells]).to_event(1))
        f = pyro.deterministic("f", MEAN + z @ factor.T)
    else:
        mean = factor.new_full((cells,), MEAN)
        f = pyro.sample("f", dist.MultivariateNormal(mean, scale_tril=factor))
    pyro.factor("counts", (counts * f - f.exp() / cells).sum(-1))


def make_cox(whitened: bool) -> Made:
    """Makes the model with its data."""
    factor = np.linalg.cholesky(cell_covariance())
    return cox, (tensor(tree_counts()), tensor(factor), whitened)


TRUTH = "python examples/benchmarks/suites/records.py --truth"
OTHERS = ("SCLD", "CMCD", "DBS")


def published(*values: str, **more: str) -> dict[str, str]:
    """The log evidences of SCLD, CMCD and DBS, and of others."""
    return {name: f"log Z {value}" for name, value in {**dict(zip(OTHERS, values)), **more}.items()}


TARGETS: dict[str, LiteratureTarget] = {
    "seeds": LiteratureTarget(
        make_seeds,
        26,
        -73.405,
        TRUTH,
        0.005,
        reference=("normal", 10.0),
        published=published("−73.45", "−73.45", "−73.50"),
    ),
    "sonar": LiteratureTarget(
        partial(make_standardised, "sonar"),
        61,
        -108.384,
        TRUTH,
        0.005,
        reference=("normal", 1.0),
        published=published("−108.17 ± .25", "−108.83", "−108.88"),
    ),
    "ionosphere": LiteratureTarget(
        partial(make_standardised, "ionosphere"), 35, -111.614, TRUTH, 0.004
    ),
    "credit_flat": LiteratureTarget(
        partial(make_credit, None),
        25,
        -504.483,
        TRUTH,
        0.004,
        reference=("normal", 30.0),
        published=published("−504.46 ± .09", "−504.58", "−504.71"),
    ),
    "credit": LiteratureTarget(
        partial(make_credit, 10.0), 25, -585.094, TRUTH, 0.005, reference=("normal", 10.0)
    ),
    "brownian": LiteratureTarget(
        make_brownian,
        32,
        1.18775,
        TRUTH,
        reference=("normal", 3.0),
        published=published("1.00 ± .18", "1.06", ".85"),
    ),
}
POINT_PROCESS = published("486.77", "465.8", "469.9") | {
    "SMC-ESS": "log Z 497.85",
    "DDS, weighted": "log Z 489.3",
    "FAB": "mean abs error .194 ± .039",
}
for name, whitened in (("lgcp", False), ("lgcp_whitened", True)):
    TARGETS[name] = LiteratureTarget(
        partial(make_cox, whitened), SIDE**2, 501.8, TRUTH, 0.1, published=POINT_PROCESS
    )
