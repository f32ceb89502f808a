"""Many temperatures: one flow for a whole range of them, and exact draws at each.

The XY model has an angle at each site of a lattice, here a ring of eight, and the energy
-sum cos(difference of neighbours). The flow takes the temperature as its context. It is trained
once and drawn from at temperatures that it has not seen. The exact energies are known for a ring.
"""

import pyro
import torch

from pyro_flowsamp import IMH, AutoAdvNF, FitOptions, VectorizedMCMC, lattice_flow
from pyro_flowsamp.lattice import exact_xy_chain, xy_energy, xy_model

SHAPE = (8,)

pyro.set_rng_seed(0)
guide = AutoAdvNF(
    xy_model,
    context=["temperature"],
    flow=lattice_flow(SHAPE),
    options=FitOptions(max_steps=100, progress=False),
)
guide.fit(SHAPE, temperature=torch.linspace(0.3, 2.0, 12))

temperatures = torch.tensor([0.4, 0.8, 1.2, 1.6])  # chain i has the temperature i modulo 4
mcmc = VectorizedMCMC(IMH(xy_model, guide=guide), num_samples=100, warmup_steps=100, num_chains=400)
mcmc.run(SHAPE, temperature=temperatures)

angles = mcmc.get_samples(group_by_chain=True)["theta"].reshape(100, 4, 100, 8)
energies = xy_energy(angles, SHAPE).mean(2) / 8
accepted = mcmc.statistics["accepted"].float().reshape(100, 4, 100).mean((0, 2))
print("temperature  energy per site    exact  accepted")
for i, temperature in enumerate(temperatures.tolist()):
    mean, error = energies[:, i].mean(), energies[:, i].std() / 100**0.5
    exact = exact_xy_chain(8, temperature).energy
    print(f"{temperature:11.1f}  {mean:.4f} ± {error:.4f}  {exact:.4f}  {accepted[i]:8.2f}")
