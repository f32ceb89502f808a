"""A guide in Pyro's own algorithms: trained by SVI, then NUTS in its latent space (NeuTra).

The model is a funnel: v is normal with mean 0 and deviation 2, and both components of x are normal
with deviation exp(v / 2). NUTS mixes slowly on v and x, because the funnel is narrow where v is
small. A flow that is trained by SVI maps the funnel to nearly a normal distribution, and there the
same number of NUTS steps gives many more effective draws.
"""

import pyro
import pyro.distributions as dist
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.reparam import NeuTraReparam
from pyro.ops.stats import effective_sample_size

from pyro_flowsamp import AutoFlow


def model():
    v = pyro.sample("v", dist.Normal(0.0, 2.0))
    scale = (v / 2).exp().unsqueeze(-1).expand(*v.shape, 2)
    pyro.sample("x", dist.Normal(0.0, scale).to_event(1))


def run_nuts(model):
    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True)
    mcmc = MCMC(kernel, num_samples=300, warmup_steps=100, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples()


def show(name, v):
    ess = float(effective_sample_size(v.unsqueeze(-1), chain_dim=1, sample_dim=0))
    print(f"{name}: mean of v {v.mean():.2f}, deviation {v.std():.2f}, {ess:.0f} effective draws")


pyro.set_rng_seed(0)
guide = AutoFlow(model)
elbo = Trace_ELBO(num_particles=256, vectorize_particles=True, max_plate_nesting=0)
svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.993}), elbo)
losses = [svi.step() for _ in range(400)]
print(f"ELBO {-sum(losses[-50:]) / 50:.3f}; it is at most the log evidence, which is 0")

guide.requires_grad_(False)
neutra = NeuTraReparam(guide)
(latent,) = run_nuts(neutra.reparam(model)).values()
show("NUTS in latent space", neutra.transform_sample(latent)["v"])
show("NUTS on v and x", run_nuts(model)["v"])
print("exact: mean of v 0, deviation 2")
