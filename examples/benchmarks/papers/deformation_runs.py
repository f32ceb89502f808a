"""Code that both deformation studies share: training, training by reverse KL, and chains."""

import warnings
from typing import Any

from pyro_flowsamp import (
    IMH,
    AutoDeformationFlow,
    FitOptions,
    History,
    ReverseKL,
    VectorizedMCMC,
    ess_fraction,
)
from pyro_flowsamp.problems import Problem
from pyro_flowsamp.training.train import fit

__all__ = ["options", "through_imh", "train", "train_by_reverse_kl"]


def options(steps: int, rate: float, batch: int) -> FitOptions:
    """A rate that rises and falls, and looks at the flow every 200 steps."""
    return FitOptions(
        steps,
        batch,
        rate,
        eval_every=min(200, steps),
        cosine_schedule=True,
        warmup_fraction=0.1,
        stop_at_ess=1.0,
        progress=False,
    )


def train(guide: AutoDeformationFlow) -> History:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is missed stands in the table
        return guide.fit()


def train_by_reverse_kl(guide: AutoDeformationFlow, known: Problem, steps: int) -> History:
    """Trains the network and base of a guide by reverse KL alone; the guide must be bound."""
    assert guide.flow is not None
    flow = guide.flow
    history = fit(
        flow.velocity.parameters(),
        lambda: ReverseKL()(flow, known.target, 256),
        ess_fraction,
        options(steps, 3e-3, 256),
    )
    guide.trained = True
    return history


def through_imh(guide: Any, known: Problem, chains: int, samples: int) -> dict[str, float]:
    """Independent Metropolis–Hastings: acceptance, ESS per draw, modes' shares of the draws."""
    kernel = IMH(known.target, guide=guide)
    mcmc = VectorizedMCMC(kernel, samples, 20, chains, disable_progbar=True)
    mcmc.run()
    x = known.target.pack(mcmc.get_samples())
    sites = [d for d in mcmc.diagnostics().values() if isinstance(d, dict) and "n_eff" in d]
    return {
        "acceptance": float(mcmc.statistics["accepted"].double().mean()),
        "imh_ess": min(float(d["n_eff"].min()) for d in sites) / len(x),
        "imh_share": float(known.mode_fractions(x)[0]),
    }
