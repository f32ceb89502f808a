"""A rare event: its probability under a distribution, with a standard error.

The probability that a normal vector in two dimensions is longer than 6 is exp(-18), about 1.5e-8.
No chain of practical length would visit the event. importance_flow carries particles from the
distribution to the event, and weights tell how much was carried.
"""

from math import exp

import pyro
import pyro.distributions as dist
import torch

from pyro_flowsamp import FitOptions, importance_flow


def event(x):
    return x.norm(dim=-1) - 6  # positive where the event happens, and growing towards it


pyro.set_rng_seed(0)
p = dist.Normal(torch.zeros(2), 1.0).to_event(1)
options = FitOptions(max_steps=40, progress=False)
found = importance_flow(p, event=event, target_ess=0.5, num_particles=2048, options=options)

exact = exp(-18)
print(f"estimate {found.value:.3e} ± {found.standard_error:.1e}, Pareto k {found.pareto_k:.2f}")
print(f"exact    {exact:.3e}, off by {(found.value - exact) / found.standard_error:+.1f} errors")
