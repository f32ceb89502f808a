"""The picture of the README: ``python docs/images/first_picture.py`` writes first_picture.png.

The model is that of the tutorial "Many modes, where NUTS is wrong".
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS

import pyro_flowsamp

PRIOR_MEAN, SQUARES = torch.tensor([0.1, -0.05]), torch.tensor([9.0, 16.0])


def model(squares):
    x = pyro.sample("x", dist.Normal(PRIOR_MEAN, 1.0).to_event(1))
    pyro.sample("squares", dist.Normal(x**2, 1.0).to_event(1), obs=squares)


pyro.set_rng_seed(0)
nuts = MCMC(NUTS(model), num_samples=1000, warmup_steps=200, disable_progbar=True)
nuts.run(SQUARES)
r_hat = float(nuts.diagnostics()["x"]["r_hat"].max())
data = pyro_flowsamp.sample(model, SQUARES, seed=0, progress=False)
drawn = torch.tensor(data["posterior"]["x"].values).flatten(0, 1)
points = {
    f"one chain of NUTS, R-hat {r_hat:.2f}": nuts.get_samples()["x"],
    "sample(), all four modes": drawn[torch.randperm(len(drawn))[:3000]],
}
plt.rcParams["font.size"] = 11
figure, axes = plt.subplots(1, 2, figsize=(8, 3.3), sharex=True, sharey=True, layout="constrained")
for ax, (title, x), colour in zip(axes, points.items(), ("#d9822b", "#3d85c8")):
    ax.plot(*x.T, ".", markersize=2.5, alpha=0.5, color=colour, markeredgewidth=0)
    ax.set(title=title, xlabel="first number", xlim=(-5, 5), ylim=(-6, 6))
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("second number")
figure.savefig(Path(__file__).with_name("first_picture.png"), dpi=120)
