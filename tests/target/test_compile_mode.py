"""The mode of compilation: what is given to guides, kernels and sample() reaches the target."""

import copy
import pickle

import pytest
import torch
from support import models

from pyro_flowsamp import IMH, AutoFlow, FitOptions, Target, VectorizedMCMC, sample
from pyro_flowsamp.target.options import TracingOptions

QUICK = FitOptions(max_steps=5, progress=False)


def test_guides():
    guide = AutoFlow(models.conjugate, options=QUICK)
    assert guide.compile_mode == "auto"
    target = guide.target_for(*models.conjugate_data())
    guide.compile_mode = False
    assert copy.deepcopy(guide).compile_mode is False
    assert pickle.loads(pickle.dumps(guide._source)).compile_mode is False
    assert guide.target_for(*models.conjugate_data()).compile_mode is False
    assert target.compile_mode == "auto"
    with pytest.raises(ValueError, match="compile must be 'auto', True or False, got 3"):
        guide.compile_mode = 3


def test_kernels():
    guide = AutoFlow(Target.from_energy(models.energy, 2), flow="gaussian", options=QUICK)
    guide.compile_mode = False
    guide.fit()
    found = []
    for mode in (True, False):
        kernel = IMH(guide=guide)
        kernel.compile_mode = mode
        run = VectorizedMCMC(kernel, 4, 4, num_chains=6, disable_progbar=True)
        torch.manual_seed(0)
        run.run()
        found.append(run.unconstrained)
        assert kernel.target.compile_mode is mode is kernel.compile_mode
        recorded = kernel.target.density.density.sizes or kernel.step_graphs.names[0]
        assert bool(recorded) == mode
    assert torch.equal(*found)


def test_a_target_keeps_its_own_mode():
    target = Target.from_energy(models.energy, 2)
    target.compile_mode = False
    target.tracing = TracingOptions(calls=3)
    guide = AutoFlow(target, options=QUICK)
    kernel = IMH(guide=guide)
    assert guide.compile_mode is kernel.compile_mode is False
    guide.fit()
    assert target.compile_mode is False


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sample():
    target = Target.from_energy(models.energy, 2)
    target.tracing = TracingOptions(calls=20, steps=False)
    options = {"num_samples": 5, "num_chains": 64, "seed": 0, "progress": False}
    options |= {"candidates": ["HMC"]}
    found = [sample(target, **options), sample(target, **options)]  # the second has the graphs
    assert target.density.density.sizes and target.compile_mode == "auto"
    draws = [torch.as_tensor(each["posterior"]["x"].values) for each in found]
    assert torch.equal(draws[0], draws[1])
    with pytest.raises(ValueError, match="compile must be"):
        sample(target, compile="yes", **options)
