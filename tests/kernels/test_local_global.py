"""HMC with global proposals: the number of local steps is tuned, and then fixed."""

import pytest
from support.latent import bad_guide
from support.scenarios import SCENARIOS

from pyro_flowsamp import AutoFlow, LocalGlobalHMC, VectorizedMCMC


def _tuned(guide, **options):
    kernel = LocalGlobalHMC(guide=guide, num_steps=2, **options)
    mcmc = VectorizedMCMC(kernel, 1, 60, 200, disable_progbar=True)
    mcmc.run()
    return kernel


@pytest.mark.slow
def test_local_steps_follow_what_they_earn():
    target = SCENARIOS["gaussian"].source()
    good = AutoFlow(target)
    good.fit()
    bad = bad_guide("gaussian")
    bad.flow.affine.loc += 20.0
    assert _tuned(good).local_steps == 1  # jumps alone give independent draws
    assert _tuned(bad).local_steps > 1  # jumps are never accepted
    assert _tuned(bad, local_steps=3).local_steps == 3


def test_local_steps_are_frozen_after_warmup(monkeypatch):
    seen, step = [], LocalGlobalHMC.step

    def watched(self, state):
        seen.append((self.local_steps, float(self.step_size)))
        return step(self, state)

    monkeypatch.setattr(LocalGlobalHMC, "step", watched)
    kernel = LocalGlobalHMC(guide=bad_guide("funnel"), num_steps=1)
    VectorizedMCMC(kernel, 10, 20, 50, disable_progbar=True).run()
    assert len({size for _, size in seen[:20]}) == 20
    assert len(set(seen[20:])) == 1 and 1 <= seen[-1][0] <= 32
