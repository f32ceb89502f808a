"""Several modes: every mode with its share of the posterior, where a chain of NUTS stays in one.

Only the squares of two numbers were measured, so the sign of each is open, and the posterior has
four narrow modes. The prior favours some of them. Their shares are known by numerical integration,
because the two numbers are independent. The flow is trained on tempered particles, which find the
modes, and IMH makes its draws exact.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS

from pyro_flowsamp import IMH, AutoFlow, FitOptions, VectorizedMCMC, tempered_smc

PRIOR_MEAN, SQUARES = torch.tensor([0.1, -0.05]), torch.tensor([9.0, 16.0])


def model(squares):
    x = pyro.sample("x", dist.Normal(PRIOR_MEAN, 1.0).to_event(1))
    pyro.sample("squares", dist.Normal(x**2, 1.0).to_event(1), obs=squares)


def exact_shares():
    x = torch.linspace(-8, 8, 16_001, dtype=torch.double).unsqueeze(-1)
    log_p = dist.Normal(PRIOR_MEAN, 1.0).log_prob(x) + dist.Normal(x**2, 1.0).log_prob(SQUARES)
    first, second = ((x > 0) * log_p.softmax(0)).sum(0)  # probabilities that they are positive
    return first * second, first * (1 - second), (1 - first) * second, (1 - first) * (1 - second)


def shares(x):
    first, second = (x > 0).T
    modes = first & second, first & ~second, ~first & second, ~first & ~second
    return [mode.double().mean() for mode in modes]


pyro.set_rng_seed(0)
options = FitOptions(progress=False)
guide = AutoFlow(model, flow="spline", ensemble=tempered_smc, options=options)
mcmc = VectorizedMCMC(IMH(model, guide=guide), num_samples=200, warmup_steps=100, num_chains=200)
mcmc.run(SQUARES)
nuts = MCMC(NUTS(model), num_samples=300, warmup_steps=200, disable_progbar=True)
nuts.run(SQUARES)

print(f"{'signs':16s}  + +    + -    - +    - -")
drawn, in_nuts = shares(mcmc.get_samples()["x"]), shares(nuts.get_samples()["x"])
for name, row in (("exact", exact_shares()), ("flow and IMH", drawn), ("one NUTS chain", in_nuts)):
    print(f"{name:16s} " + "  ".join(f"{share:.3f}" for share in row))
