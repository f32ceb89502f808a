r"""Posteriors of data in their own units, with exact draws by quadrature in one or two dimensions.

Each function returns a :class:`~pyro_flowsamp.problems.Problem`. Of two unknowns the density is
summed over the cells of a fine grid: a draw is uniform in a cell that is drawn by its mass. In more
dimensions one unknown is drawn so, and the others from their conditional distributions.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_flowsamp import Target
from pyro_flowsamp.problems import Problem

LINE, PLANE = 100_000, 2000  #: cells of a line, and of each side of a plane
SCHOOLS = (
    [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0],
    [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10, 18],
)
PUMP_YEARS = [94.3, 15.7, 62.9, 126.0, 5.24, 31.4, 1.05, 1.05, 2.1, 10.5]
PUMP_FAILURES = [5.0, 1.0, 5.0, 14.0, 3.0, 19.0, 1.0, 1.0, 4.0, 22.0]
DOSES, DEATHS, ANIMALS = [-0.86, -0.30, -0.05, 0.73], [0.0, 1.0, 3.0, 5.0], 5.0
SPEEDS = [850.0, 740.0, 900.0, 1070.0, 930.0]  #: Michelson's first, in km/s above 299 000
OFFSETS = [-4.2, -3.7, -3.5, 3.1, 4.4]  #: two groups of measured positions, in metres


def on_a_line(log_p: Callable[[Tensor], Tensor], low: float, high: float, num: int) -> Tensor:
    """Draws ``(num,)`` of a density on an interval, float64."""
    width = (high - low) / LINE
    x = low + width * (torch.arange(LINE).double() + 0.5)
    cell = torch.multinomial(log_p(x).softmax(0), num, replacement=True)
    return x[cell] + width * (torch.rand(num).double() - 0.5)


def in_a_plane(
    energy: Callable[[Tensor], Tensor], low: tuple[float, float], high: tuple[float, float]
) -> Problem:
    """Two unknowns in a rectangle outside of which there is next to no mass."""
    at = torch.tensor(low).double()
    width = (torch.tensor(high).double() - at) / PLANE

    def sample(num: int) -> Tensor:
        steps = torch.arange(PLANE).double() + 0.5
        points = torch.cartesian_prod(*(at[i] + width[i] * steps for i in range(2)))
        masses = torch.cat([(-energy(part)) for part in points.split(100_000)]).softmax(0)
        x = points[torch.multinomial(masses, num, replacement=True)]
        return (x + width * (torch.rand(num, 2).double() - 0.5)).float()

    return Problem(Target.from_energy(energy, 2), sample)


def eight_schools() -> Problem:
    r"""Eight schools, centred: :math:`\mu`, :math:`\log\tau` and the eight effects.

    References:
        Donald Rubin, *Estimation in Parallel Randomized Experiments*, 1981,
        https://doi.org/10.3102/10769986006004377
    """
    y, sigma = (torch.tensor(values) for values in SCHOOLS)

    def prior(log_tau: Tensor) -> Tensor:
        return log_tau - ((2 * log_tau).exp() / 25).log1p()  # half-Cauchy of scale 5, Jacobian

    def energy(x: Tensor) -> Tensor:
        mu, log_tau, theta = x[:, 0], x[:, 1], x[:, 2:]
        likelihood = ((y - theta) / sigma).square().sum(-1)
        effects = (theta - mu[:, None]).square().sum(-1) * (-2 * log_tau).exp()
        square = (mu / 5).square() + effects + likelihood
        return 0.5 * square + len(y) * log_tau - prior(log_tau)

    def mean(log_tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The posterior mean and variance of mu, and the log evidence, of each tau."""
        variance = sigma.double().square() + (2 * log_tau)[..., None].exp()
        precision = 1 / 25 + (1 / variance).sum(-1)
        loc = (y / variance).sum(-1) / precision
        log_z = -0.5 * (variance.log() + y.square() / variance).sum(-1)
        return loc, 1 / precision, log_z + 0.5 * (loc.square() * precision - precision.log())

    def sample(num: int) -> Tensor:
        log_tau = on_a_line(lambda t: mean(t)[2] + prior(t), -20.0, 8.0, num)
        loc, variance, _ = mean(log_tau)
        mu = loc + variance.sqrt() * torch.randn(num).double()
        inner = (-2 * log_tau)[:, None].exp()
        precision = inner + 1 / sigma.double().square()
        centre = (mu[:, None] * inner + y / sigma.double().square()) / precision
        theta = centre + torch.randn(num, len(y)).double() / precision.sqrt()
        return torch.cat([mu[:, None], log_tau[:, None], theta], -1).float()

    return Problem(Target.from_energy(energy, 2 + len(y)), sample)


def pumps() -> Problem:
    """Failures of ten pumps: logs of a common scale and of ten rates, in failures per 1000 hours.

    References:
        Alan Gelfand and Adrian Smith, *Sampling-Based Approaches to Calculating Marginal
        Densities*, 1990, https://doi.org/10.1080/01621459.1990.10476213
    """
    years, failures = torch.tensor(PUMP_YEARS), torch.tensor(PUMP_FAILURES)

    def energy(x: Tensor) -> Tensor:
        beta, rates = x[:, 0], x[:, 1:]
        each = rates.exp() * (beta.exp()[:, None] + years) - (1 + failures) * rates
        return each.sum(-1) + beta.exp() - (1 + len(years)) * beta

    def marginal(beta: Tensor) -> Tensor:
        sums = (1 + failures) * (beta.exp()[:, None] + years).log()
        return (1 + len(years)) * beta - beta.exp() - sums.sum(-1)

    def sample(num: int) -> Tensor:
        beta = on_a_line(marginal, -15.0, 6.0, num)
        shape = (1 + failures).double()
        rates = torch.distributions.Gamma(shape, beta.exp()[:, None] + years).sample()
        return torch.cat([beta[:, None], rates.log()], -1).float()

    return Problem(Target.from_energy(energy, 1 + len(years)), sample)


def bioassay() -> Problem:
    """The logistic dose response of twenty animals, with wide normal priors: a skewed density.

    References:
        Amy Racine et al., *Bayesian Methods in Practice: Experiences in the Pharmaceutical
        Industry*, 1986, https://doi.org/10.2307/2347264
    """
    doses, deaths = torch.tensor(DOSES), torch.tensor(DEATHS)

    def energy(x: Tensor) -> Tensor:
        logit = x[:, :1] + x[:, 1:] * doses.to(x)
        fit = deaths * logsigmoid(logit) + (ANIMALS - deaths) * logsigmoid(-logit)
        return 0.5 * (x / x.new_tensor([5.0, 20.0])).square().sum(-1) - fit.sum(-1)

    return in_a_plane(energy, (-8.0, -10.0), (16.0, 90.0))


def speed_of_light() -> Problem:
    """The mean and the log standard deviation of five speeds of light, with wide priors."""
    y = torch.tensor(SPEEDS)

    def energy(x: Tensor) -> Tensor:
        mean, log_sd = x[:, :1], x[:, 1]
        square = (y.to(x) - mean).square().sum(-1) * (-2 * log_sd).exp()
        wide = ((mean[:, 0] - 900) / 500).square() + ((log_sd - 4.5) / 1.5).square()
        return 0.5 * (square + wide) + len(y) * log_sd

    return in_a_plane(energy, (-1700.0, 3.0), (3500.0, 9.5))


def two_groups() -> Problem:
    """The location and the log scale of Cauchy measurements in two groups: two modes."""
    y = torch.tensor(OFFSETS)

    def energy(x: Tensor) -> Tensor:
        z = (y.to(x) - x[:, :1]) * (-x[:, 1:]).exp()
        wide = (x[:, 0] / 10).square() + x[:, 1].square()
        return z.square().log1p().sum(-1) + len(y) * x[:, 1] + 0.5 * wide

    return in_a_plane(energy, (-16.0, -5.0), (16.0, 5.0))
