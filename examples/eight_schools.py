"""Eight schools: exact draws from a Pyro model, a summary by ArviZ and a picture.

Eight schools tried a coaching programme. Each measured its effect y with a standard error sigma,
and the model pools them. A normalising flow is trained on the posterior, and independent
Metropolis-Hastings (IMH) corrects its draws. The means of posteriordb's reference draws are 4.41
for mu, 3.60 for tau and 6.15 for the effect theta of the first school.
"""

from pathlib import Path

try:
    import matplotlib.pyplot as plt
except ImportError:
    raise SystemExit("This example needs matplotlib: pip install matplotlib") from None

import arviz as az
import pyro
import pyro.distributions as dist
import torch

from pyro_flowsamp import IMH, VectorizedMCMC, to_arviz


def model(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

pyro.set_rng_seed(0)
mcmc = VectorizedMCMC(IMH(model), num_samples=500, warmup_steps=100, num_chains=100)
mcmc.run(y, sigma)  # trains the flow, then draws

data = to_arviz(mcmc, dims={"z": ["school"]})
posterior = data["posterior"]
posterior["theta"] = posterior["mu"] + posterior["tau"] * posterior["z"]
print(az.summary(data, var_names=["mu", "tau", "theta"]).to_string())
print(f"accepted share of the draws: {mcmc.statistics['accepted'].float().mean():.2f}")

theta = posterior["theta"].values.reshape(-1, 8)
plt.boxplot(theta, whis=(5, 95), showfliers=False, tick_labels=list("ABCDEFGH"))
plt.plot(range(1, 9), y, "x", label="measured effect")
plt.xlabel("school")
plt.ylabel("effect of coaching (median, quartiles, 90 %)")
plt.legend()
Path("out").mkdir(exist_ok=True)
plt.savefig("out/eight_schools.png", dpi=120)
print("The picture is out/eight_schools.png.")
