"""A zuko flow of your own as the guide's flow, and exact draws with it.

AutoFlow takes any flow of zuko, here a masked autoregressive flow of your own size. IMH corrects
its draws, so the moments below are those of the posterior and not of the flow. The posterior is a
banana: x1 is normal with deviation 1, and x2 is normal around x1**2 with deviation 1. So the mean
of x2 is 1, and its variance is 1 + Var(x1**2) = 3.
"""

import pyro
import pyro.distributions as dist
import zuko

from pyro_flowsamp import IMH, AutoFlow, FitOptions, VectorizedMCMC


def model():
    x1 = pyro.sample("x1", dist.Normal(0.0, 1.0))
    pyro.sample("x2", dist.Normal(x1**2, 1.0))


pyro.set_rng_seed(0)
flow = zuko.flows.MAF(features=2, transforms=3, hidden_features=(64, 64))
guide = AutoFlow(model, flow=flow, options=FitOptions(max_steps=500, progress=False))
history = guide.fit()
mcmc = VectorizedMCMC(IMH(model, guide=guide), num_samples=200, warmup_steps=100, num_chains=500)
mcmc.run()

x = mcmc.get_samples()
print(f"effective share of the flow's own draws {history.final_ess:.2f}")
print(f"share of them that IMH accepted {mcmc.statistics['accepted'].float().mean():.2f}")
print(f"mean of x1 {x['x1'].mean():.2f} (exact 0), variance {x['x1'].var():.2f} (exact 1)")
print(f"mean of x2 {x['x2'].mean():.2f} (exact 1), variance {x['x2'].var():.2f} (exact 3)")
