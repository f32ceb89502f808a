"""One entry for each distribution of Pyro whose density is compared: how it follows from real z.

An entry makes the distribution from a vector z of real numbers, so that it serves as a latent
variable whose parameters are latent too, and as the distribution of an observation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor

Kind = Literal["continuous", "discrete", "enumerable"]


@dataclass(frozen=True)
class Entry:
    """A distribution that depends on a vector.

    Attributes:
        size: The number of coordinates of z.
        make: Maps z to the distribution, which has no batch dimensions.
        kind: Continuous distributions are compared as latents and as observations, discrete ones as
            observations, and enumerable ones as latents too, summed out.
        moving: Whether the support depends on z. Then z is zero where the variable is latent.
        data: The observation; by default a draw.
        latent: Whether it is compared as a latent variable.
        observed: Whether it is compared as an observation.
    """

    size: int
    make: Callable[[Tensor], Any]
    kind: Kind = "continuous"
    moving: bool = False
    data: Any = None
    latent: bool = True
    observed: bool = True


def positive(z: Tensor) -> Tensor:
    return (0.5 * z).exp()


def unit(z: Tensor) -> Tensor:
    return torch.sigmoid(z)


def tril(z: Tensor, size: int) -> Tensor:
    """A Cholesky factor of a covariance matrix, of ``size (size + 1) / 2`` numbers."""
    row, column = torch.tril_indices(size, size)
    lower = torch.zeros(size, size, dtype=z.dtype).index_put((row, column), 0.3 * z)
    return lower.tril(-1) + torch.diag_embed(positive(lower.diagonal()))


def covariance(z: Tensor, size: int) -> Tensor:
    lower = tril(z, size)
    return lower @ lower.mT


def _hmm(z: Tensor) -> Any:
    eye = torch.eye(2, dtype=z.dtype)
    step = dist.Normal(z[:2], positive(z[2])).to_event(1)
    noise = dist.Normal(torch.zeros(2, dtype=z.dtype), 1.0).to_event(1)
    return dist.GaussianHMM(noise, eye, step, eye, noise, duration=3)


def _linear_hmm(z: Tensor) -> Any:
    eye = torch.eye(1, dtype=z.dtype)
    step = dist.StudentT(4.0, z[:1], positive(z[1])).to_event(1)
    noise = dist.Normal(z[2:3], 1.0).to_event(1)
    return dist.LinearHMM(noise, eye, step, eye, noise, duration=3)


def _discrete_hmm(z: Tensor) -> Any:
    transition = torch.stack([torch.stack([z[0], -z[0]]), torch.stack([z[1], -z[1]])])
    emission = dist.Normal(torch.stack([z[2], z[2] + 2]), 1.0)
    return dist.DiscreteHMM(torch.zeros_like(z[:2]), transition, emission, duration=3)


def _markov_field(z: Tensor) -> Any:
    first = dist.MultivariateNormal(z[:2], torch.eye(2, dtype=z.dtype))
    joint = dist.MultivariateNormal(torch.zeros(4, dtype=z.dtype), covariance(z[2:12], 4))
    return dist.GaussianMRF(first, joint, dist.MultivariateNormal(*_pair(z)), duration=3)


def _pair(z: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(3, dtype=z.dtype), torch.eye(3, dtype=z.dtype)


def _mixture(z: Tensor) -> Any:
    parts = dist.Normal(torch.stack([z[0], z[1] + 2]), positive(z[2]))
    return dist.MixtureSameFamily(dist.Categorical(logits=torch.stack([z[0], z[3]])), parts)


def _masked_mixture(z: Tensor) -> Any:
    mask = torch.tensor(True)
    return dist.MaskedMixture(mask, dist.Normal(z[0], 1.0), dist.Laplace(z[0], positive(z[1])))


def _transformed(z: Tensor) -> Any:
    return dist.TransformedDistribution(
        dist.Normal(z[0], positive(z[1])), [torch.distributions.transforms.ExpTransform()]
    )


def _skewed(z: Tensor) -> Any:
    base = dist.VonMises(z[:2], positive(z[2:4])).to_event(1)
    return dist.SineSkewed(base, 0.4 * torch.tanh(z[4:6]))


def _diagonal_mixture(z: Tensor) -> Any:
    locs = torch.stack([z[:2], z[:2] + 2])
    return dist.MixtureOfDiagNormals(locs, positive(torch.stack([z[2:4], z[4:6]])), z[6:8])


def _shared_mixture(z: Tensor) -> Any:
    locs = torch.stack([z[:2], z[:2] + 2])
    return dist.MixtureOfDiagNormalsSharedCovariance(locs, positive(z[2:4]), z[4:6])


def _scale_mixture(z: Tensor) -> Any:
    return dist.GaussianScaleMixture(positive(z[:2]), z[2:4], positive(z[4:6]))


#: The distributions, by name.
ENTRIES: dict[str, Entry] = {
    "AVFMultivariateNormal": Entry(
        6, lambda z: dist.AVFMultivariateNormal(z[:2], tril(z[2:5], 2), z[5:] * z.new_ones(2, 1, 2))
    ),
    "AffineBeta": Entry(
        4, lambda z: dist.AffineBeta(*positive(z[:2]), z[2], positive(z[3])), moving=True
    ),
    "AsymmetricLaplace": Entry(3, lambda z: dist.AsymmetricLaplace(z[0], *positive(z[1:]))),
    "Bernoulli": Entry(1, lambda z: dist.Bernoulli(logits=z[0]), "enumerable"),
    "Beta": Entry(2, lambda z: dist.Beta(*positive(z))),
    "BetaBinomial": Entry(2, lambda z: dist.BetaBinomial(*positive(z), 5), "enumerable"),
    "Binomial": Entry(1, lambda z: dist.Binomial(5, logits=z[0]), "enumerable"),
    "Categorical": Entry(3, lambda z: dist.Categorical(logits=z), "enumerable"),
    "Cauchy": Entry(2, lambda z: dist.Cauchy(z[0], positive(z[1]))),
    "Chi2": Entry(1, lambda z: dist.Chi2(positive(z[0]))),
    "CoalescentTimes": Entry(
        1, lambda z: dist.CoalescentTimes(torch.tensor([0.0, 0.1, 0.3]), positive(z[0]))
    ),
    "CoalescentTimesWithRate": Entry(
        4,
        lambda z: dist.CoalescentTimesWithRate(torch.tensor([0.0, 0.1, 0.3]), positive(z)),
        data=(-0.5, -0.1),
        latent=False,
    ),
    "ContinuousBernoulli": Entry(1, lambda z: dist.ContinuousBernoulli(logits=z[0])),
    "Dirichlet": Entry(3, lambda z: dist.Dirichlet(positive(z))),
    "DirichletMultinomial": Entry(
        3, lambda z: dist.DirichletMultinomial(positive(z), 5), "discrete"
    ),
    "DiscreteHMM": Entry(3, _discrete_hmm),
    "ExpandedDistribution": Entry(
        2, lambda z: dist.Laplace(z[0], positive(z[1])).expand([3]).to_event(1)
    ),
    "Exponential": Entry(1, lambda z: dist.Exponential(positive(z[0]))),
    "ExtendedBetaBinomial": Entry(
        2, lambda z: dist.ExtendedBetaBinomial(*positive(z), torch.tensor(5.0)), "discrete"
    ),
    "ExtendedBinomial": Entry(
        1, lambda z: dist.ExtendedBinomial(torch.tensor(5.0), logits=z[0]), "discrete"
    ),
    "FisherSnedecor": Entry(2, lambda z: dist.FisherSnedecor(*positive(z))),
    "FoldedDistribution": Entry(
        2, lambda z: dist.FoldedDistribution(dist.Normal(z[0], positive(z[1])))
    ),
    "Gamma": Entry(2, lambda z: dist.Gamma(*positive(z))),
    "GammaPoisson": Entry(2, lambda z: dist.GammaPoisson(*positive(z)), "discrete"),
    "GaussianHMM": Entry(3, _hmm),
    "GaussianScaleMixture": Entry(6, _scale_mixture),
    "GeneralizedPareto": Entry(
        3, lambda z: dist.GeneralizedPareto(z[0] - 3, positive(z[1]), unit(z[2])), moving=True
    ),
    "Geometric": Entry(1, lambda z: dist.Geometric(logits=z[0]), "discrete"),
    "Gumbel": Entry(2, lambda z: dist.Gumbel(z[0], positive(z[1]))),
    "HalfCauchy": Entry(1, lambda z: dist.HalfCauchy(positive(z[0]))),
    "HalfNormal": Entry(1, lambda z: dist.HalfNormal(positive(z[0]))),
    "Independent": Entry(4, lambda z: dist.Normal(z[:2], positive(z[2:])).to_event(1)),
    "IndependentHMM": Entry(3, lambda z: dist.IndependentHMM(_hmm_of_one(z))),
    "InverseGamma": Entry(2, lambda z: dist.InverseGamma(*positive(z))),
    "Kumaraswamy": Entry(2, lambda z: dist.Kumaraswamy(*positive(z))),
    "LKJCholesky": Entry(1, lambda z: dist.LKJCholesky(3, positive(z[0]))),
    "LKJ": Entry(1, lambda z: dist.LKJ(3, positive(z[0])), observed=False),
    "Laplace": Entry(2, lambda z: dist.Laplace(z[0], positive(z[1]))),
    "LinearHMM": Entry(3, _linear_hmm),
    "LogNormal": Entry(2, lambda z: dist.LogNormal(z[0], positive(z[1]))),
    "LogNormalNegativeBinomial": Entry(
        3,
        lambda z: dist.LogNormalNegativeBinomial(
            torch.tensor(5.0), z[0], positive(z[2]), num_quad_points=4
        ),
        "discrete",
        data=3.0,
    ),
    "Logistic": Entry(2, lambda z: dist.Logistic(z[0], positive(z[1]))),
    "LogisticNormal": Entry(4, lambda z: dist.LogisticNormal(z[:2], positive(z[2:]))),
    "LowRankMultivariateNormal": Entry(
        8,
        lambda z: dist.LowRankMultivariateNormal(z[:3], z[3:6].unsqueeze(-1), positive(z[5:8])),
    ),
    "MaskedDistribution": Entry(
        3,
        lambda z: dist.Normal(z, 1.0).mask(torch.tensor([True, False, True])).to_event(1),
    ),
    "MaskedMixture": Entry(2, _masked_mixture),
    "MixtureOfDiagNormals": Entry(8, _diagonal_mixture),
    "MixtureOfDiagNormalsSharedCovariance": Entry(6, _shared_mixture),
    "MixtureSameFamily": Entry(4, _mixture),
    "Multinomial": Entry(3, lambda z: dist.Multinomial(5, logits=z), "discrete"),
    "MultivariateNormal": Entry(
        8, lambda z: dist.MultivariateNormal(z[:2], scale_tril=tril(z[2:5], 2))
    ),
    "MultivariateStudentT": Entry(
        6, lambda z: dist.MultivariateStudentT(positive(z[5]), z[:2], tril(z[2:5], 2))
    ),
    "NanMaskedNormal": Entry(2, lambda z: dist.NanMaskedNormal(z[0], positive(z[1]))),
    "NanMaskedMultivariateNormal": Entry(
        5, lambda z: dist.NanMaskedMultivariateNormal(z[:2], scale_tril=tril(z[2:5], 2))
    ),
    "NegativeBinomial": Entry(
        2, lambda z: dist.NegativeBinomial(positive(z[0]), logits=z[1]), "discrete"
    ),
    "Normal": Entry(2, lambda z: dist.Normal(z[0], positive(z[1]))),
    "OMTMultivariateNormal": Entry(5, lambda z: dist.OMTMultivariateNormal(z[:2], tril(z[2:5], 2))),
    "OneHotCategorical": Entry(3, lambda z: dist.OneHotCategorical(logits=z), "enumerable"),
    "OneHotCategoricalStraightThrough": Entry(
        3, lambda z: dist.OneHotCategoricalStraightThrough(logits=z), "discrete"
    ),
    "OneOneMatching": Entry(9, lambda z: dist.OneOneMatching(z.reshape(3, 3)), "discrete"),
    "OneTwoMatching": Entry(8, lambda z: dist.OneTwoMatching(z.reshape(4, 2)), "discrete"),
    "OrderedLogistic": Entry(
        3,
        lambda z: dist.OrderedLogistic(z[0], torch.stack([z[1], z[1] + positive(z[2])])),
        "enumerable",
    ),
    "Pareto": Entry(2, lambda z: dist.Pareto(positive(z[0]), positive(z[1])), moving=True),
    "Poisson": Entry(1, lambda z: dist.Poisson(positive(z[0])), "discrete"),
    "ProjectedNormal": Entry(3, lambda z: dist.ProjectedNormal(z)),
    "RelaxedBernoulli": Entry(2, lambda z: dist.RelaxedBernoulli(positive(z[0]), logits=z[1])),
    "RelaxedOneHotCategorical": Entry(
        4, lambda z: dist.RelaxedOneHotCategorical(positive(z[0]), logits=z[1:])
    ),
    "SineBivariateVonMises": Entry(
        3,
        lambda z: dist.SineBivariateVonMises(
            z[0], z[1], positive(z[2]), positive(z[0]), correlation=0.3 * unit(z[1])
        ),
    ),
    "SineSkewed": Entry(6, _skewed),
    "SkewLogistic": Entry(3, lambda z: dist.SkewLogistic(z[0], *positive(z[1:]))),
    "SoftAsymmetricLaplace": Entry(3, lambda z: dist.SoftAsymmetricLaplace(z[0], *positive(z[1:]))),
    "SoftLaplace": Entry(2, lambda z: dist.SoftLaplace(z[0], positive(z[1]))),
    "SpanningTree": Entry(6, lambda z: dist.SpanningTree(z), "discrete"),
    "StableWithLogProb": Entry(
        4,
        lambda z: dist.StableWithLogProb(1.2 + 0.6 * unit(z[0]), torch.tanh(z[1]), *_scaled(z)),
    ),
    "Stable": Entry(2, lambda z: dist.Stable(1.5, 0.2, positive(z[1]), z[0])),
    "StudentT": Entry(3, lambda z: dist.StudentT(positive(z[0]), z[1], positive(z[2]))),
    "TransformedDistribution": Entry(2, _transformed),
    "TruncatedPolyaGamma": Entry(1, lambda z: dist.TruncatedPolyaGamma(z[0])),
    "Uniform": Entry(2, lambda z: dist.Uniform(z[0], z[0] + positive(z[1])), moving=True),
    "VonMises": Entry(2, lambda z: dist.VonMises(z[0], positive(z[1]))),
    "VonMises3D": Entry(3, lambda z: dist.VonMises3D(z), data=(0.6, 0.0, 0.8)),
    "Weibull": Entry(2, lambda z: dist.Weibull(*positive(z))),
    "Wishart": Entry(4, lambda z: dist.Wishart(3 + positive(z[0]), scale_tril=tril(z[1:4], 2))),
    "ZeroInflatedNegativeBinomial": Entry(
        3,
        lambda z: dist.ZeroInflatedNegativeBinomial(positive(z[0]), logits=z[1], gate_logits=z[2]),
        "discrete",
    ),
    "ZeroInflatedPoisson": Entry(
        2, lambda z: dist.ZeroInflatedPoisson(positive(z[0]), gate_logits=z[1]), "discrete"
    ),
    "ZeroInflatedDistribution": Entry(
        2,
        lambda z: dist.ZeroInflatedDistribution(dist.Geometric(logits=z[0]), gate_logits=z[1]),
        "discrete",
    ),
}


def _scaled(z: Tensor) -> tuple[Tensor, Tensor]:
    return positive(z[2]), z[3]


def _hmm_of_one(z: Tensor) -> Any:
    eye = torch.eye(1, dtype=z.dtype)
    step = dist.Normal(z[:2].unsqueeze(-1), 1.0).to_event(1)
    noise = dist.Normal(torch.zeros(2, 1, dtype=z.dtype), 1.0).to_event(1)
    step = dist.Normal(step.base_dist.loc.unsqueeze(-2), positive(z[2])).to_event(1)
    return dist.GaussianHMM(noise, eye, step, eye, step, duration=3)
