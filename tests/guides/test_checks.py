"""A state that does not fit a guide changes nothing."""

from copy import deepcopy

import pytest
import torch
from support.bad_inputs import quadratic

from pyro_flowsamp import AutoFlow, FitOptions, Target, VectorizedMCMC
from pyro_flowsamp.kernels import IMH

OPTIONS = FitOptions(max_steps=2, batch_size=8, progress=False)


def made(dim=2, flow="gaussian"):
    return AutoFlow(Target.from_energy(quadratic, dim), flow=flow, options=OPTIONS)


def built(dim=2, flow="gaussian", trained=False):
    guide = made(dim, flow)
    guide.target_for()
    guide.trained = trained
    return guide


def wrong_states():
    right = built(trained=True).state_dict()
    name = next(k for k, v in right.items() if isinstance(v, torch.Tensor) and v.dim())
    yield "another dimension", built(3, trained=True).state_dict()
    yield "another flow", built(2, "coupling", trained=True).state_dict()
    yield "a parameter is missing", {k: v for k, v in right.items() if k != name}
    yield "one is left over", {**right, "flow.more": torch.zeros(2)}
    yield "another shape", {**right, name: torch.zeros(7)}


WRONG = dict(wrong_states())


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_a_built_guide_is_as_before(name, trained, assign):
    guide = built(trained=trained)
    before = deepcopy(guide.state_dict())
    with pytest.raises(ValueError, match="does not fit this guide, which is left as it was"):
        guide.load_state_dict(WRONG[name], assign=assign)
    after = guide.state_dict()
    assert guide.trained == trained and before.keys() == after.keys()
    tensors = {k: v for k, v in before.items() if isinstance(v, torch.Tensor)}
    assert tensors and all(torch.equal(after[k], v) for k, v in tensors.items())


@pytest.mark.parametrize("name", WRONG)
def test_an_unbuilt_guide_stays_untrained(name):
    guide = made()
    guide.load_state_dict(WRONG[name])
    with pytest.raises(ValueError, match="does not fit this guide"):
        guide.target_for()
    assert guide.flow is None and not guide.trained
    run = VectorizedMCMC(IMH(guide=guide), 5, 1, 9, disable_progbar=True)
    run.run()  # trains it
    assert guide.trained and guide.history is not None


def test_a_right_state_is_loaded():
    trained = made()
    trained.fit()
    for guide in (built(), made()):
        guide.load_state_dict(trained.state_dict())
        guide.target_for()
        assert guide.trained
        x = torch.randn(5, 2)
        assert torch.equal(guide.flow().log_prob(x), trained.flow().log_prob(x))


def test_a_flow_of_another_dimension_is_not_kept():
    import zuko

    guide = AutoFlow(Target.from_energy(quadratic, 2), flow=zuko.flows.NSF(3, hidden_features=(4,)))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"the flow has \(3,\) features"):
            guide.fit()
