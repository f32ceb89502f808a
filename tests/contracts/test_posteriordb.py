"""Both kernels reproduce the reference draws of eight posteriors of posteriordb."""

import arviz as az
import pyro
import pytest
import torch
from support.posteriordb import NAMES, load

from pyro_flowsamp import IMH, AutoFlow, FitOptions, LatentMALA, VectorizedMCMC

REFERENCE_DRAWS = 10_000


@pytest.fixture(scope="module", params=NAMES)
def trained(request):
    """A posterior and its guide, trained once for both kernels."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    posterior = load(request.param)
    guide = AutoFlow(posterior.model, options=FitOptions(max_steps=600, progress=False))
    guide.fit(*posterior.args)
    yield posterior, guide
    torch.set_default_dtype(default)


@pytest.mark.slow
@pytest.mark.parametrize("make", [IMH, LatentMALA])
def test_means_and_sds(trained, make):
    posterior, guide = trained
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(1)
    kernel = make(posterior.model, guide=guide)
    mcmc = VectorizedMCMC(
        kernel, num_samples=100, warmup_steps=100, num_chains=200, disable_progbar=True
    )
    mcmc.run(*posterior.args)
    samples = mcmc.get_samples()
    for name, draws in posterior.constrain(samples).items():
        reference = posterior.reference[name]
        by_chain = draws.reshape(200, 100).numpy()
        ess = float(az.ess(by_chain))
        assert ess > 1000, f"{name}: ESS {ess:.0f}"
        sd = reference["sd"]
        bound = 4 * (sd**2 / ess + sd**2 / REFERENCE_DRAWS) ** 0.5
        assert abs(by_chain.mean() - reference["mean"]) < bound, name
        assert by_chain.std() == pytest.approx(sd, rel=0.1), name
