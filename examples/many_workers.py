"""Many workers: one script, started on many processes or GPUs, makes the draws of one.

    torchrun --nproc-per-node 2 examples/many_workers.py
    python examples/many_workers.py

Both print the same numbers, and the same digest of all draws: every process makes the same call of
sample(), and shares out islands of particles and blocks of chains, each with random numbers of its
own. The posterior is known: two modes of a number whose square was measured, of which the prior
favours one.
"""

import hashlib

import pyro
import pyro.distributions as dist
import torch

import pyro_flowsamp
from pyro_flowsamp import WorkersOptions

MEASURED = torch.tensor(9.0)


def model(square):
    x = pyro.sample("x", dist.Normal(0.2, 1.0))
    pyro.sample("square", dist.Normal(x**2, 1.0), obs=square)


def exact():
    """The share of the positive mode, and the log evidence, by a sum over a grid."""
    x = torch.linspace(-8, 8, 16_001, dtype=torch.double)
    log_p = dist.Normal(0.2, 1.0).log_prob(x) + dist.Normal(x**2, 1.0).log_prob(MEASURED)
    return float(((x > 0) * log_p.softmax(0)).sum()), float(
        (log_p + (x[1] - x[0]).log()).logsumexp(0)
    )


torch.set_num_threads(1)
with pyro_flowsamp.workers(options=WorkersOptions(chains_per_block=64)) as group:
    data = pyro_flowsamp.sample(model, MEASURED, seed=0, num_chains=512, progress=False)

if group.rank == 0:
    x, found = data.posterior["x"].values, data.attrs
    share, log_z = exact()
    print(f"share of the positive mode: {(x > 0).mean():.3f}, exact {share:.3f}")
    print(f"log evidence: {found['log_evidence']:.3f}, exact {log_z:.3f}")
    print(f"{found['method']}, {x.shape[0]} chains on {group.size} workers")
    print(f"digest of the draws: {hashlib.sha256(x.tobytes()).hexdigest()[:16]}")
