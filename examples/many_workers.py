"""Many workers: one script, started on many processes or GPUs, makes the draws of one.

    torchrun --nproc-per-node 2 examples/many_workers.py
    python examples/many_workers.py

Both print the same numbers, and the same digest of all draws: islands of particles and blocks of
chains are shared out, each with random numbers of its own. The small flow is trained by every
process alike. The posterior is known: two modes of a number whose square was measured, of which the
prior favours one.
"""

import hashlib

import pyro
import pyro.distributions as dist
import torch

from pyro_flowsamp import (
    IMH,
    AutoFlow,
    FitOptions,
    Target,
    VectorizedMCMC,
    tempered_smc,
    to_arviz,
    workers,
)

MEASURED = torch.tensor(9.0)


def model(square):
    x = pyro.sample("x", dist.Normal(0.2, 1.0))
    pyro.sample("square", dist.Normal(x**2, 1.0), obs=square)


def exact_share():
    x = torch.linspace(-8, 8, 16_001, dtype=torch.double)
    log_p = dist.Normal(0.2, 1.0).log_prob(x) + dist.Normal(x**2, 1.0).log_prob(MEASURED)
    return float(((x > 0) * log_p.softmax(0)).sum())


torch.set_num_threads(1)
pyro.set_rng_seed(0)
target = Target.from_model(model, MEASURED)
guide = AutoFlow(target, ensemble=tempered_smc, options=FitOptions(max_steps=300, progress=False))
guide.fit()
with workers() as group:
    particles = tempered_smc(target, 4096, islands=8, mcmc_steps=5)
    mcmc = VectorizedMCMC(IMH(guide=guide), 200, warmup_steps=50, num_chains=512)
    mcmc.run()
    data = to_arviz(mcmc)

if group.rank == 0:
    x = data.posterior["x"].values
    log_z, error = particles.evidence
    print(f"share of the positive mode: {(x > 0).mean():.3f}, exact {exact_share():.3f}")
    print(
        f"log evidence: {log_z:.3f} ± {error:.3f}, of {x.shape[0]} chains on {group.size} workers"
    )
    print(f"digest of the draws: {hashlib.sha256(x.tobytes()).hexdigest()[:16]}")
