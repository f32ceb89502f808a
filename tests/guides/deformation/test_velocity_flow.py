"""The deformation flow's weights have the right mean, whatever the velocity is."""

import copy
import math
import pickle

import pytest
import torch
from support.deformation import (
    KINDS,
    LOG_Z,
    QUICK,
    SMALL,
    bad_guide,
    flipped_divergence,
    narrow,
    no_rate,
)
from support.mutations import must_fail
from support.particles import stale_log_pi, weights_kept
from torch.testing import assert_close

from pyro_flowsamp import AutoDeformationFlow, DeformationOptions, Target, log_evidence
from pyro_flowsamp.flows import continuous
from pyro_flowsamp.guides.deformation import guide as deformation_guide
from pyro_flowsamp.guides.deformation import training
from pyro_flowsamp.lattice import phi4, phi4_symmetries
from pyro_flowsamp.nn.equivariant import group

# ---- E[w] = Z_1 / Z_0, whatever the velocity -----------------------------------------------------


def by_path(guide):
    return log_evidence(guide.weighted_samples(20_000)[1])


def by_flow(guide):
    with torch.no_grad():
        x, log_q = guide.flow(None).rsample_and_log_prob((20_000,))
        return log_evidence(guide.target_for().log_prob(x) - log_q)


def by_particles(guide):
    return guide.particles(16_384, islands=64).evidence


def by_one_slice(guide):
    guide.time_grid = [0.0, 1.0]
    return by_particles(guide)


def by_uneven_slices(guide):
    guide.time_grid = [0.0, 0.1, 0.9, 1.0]
    return guide.particles(16_384, islands=64, moves=2).evidence


def z_score(evidence):
    return abs(math.exp(evidence.value - LOG_Z) - 1) / float(evidence.standard_error)


WAYS = [by_path, by_flow, by_particles, by_one_slice, by_uneven_slices]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_the_mean_weight(way, kind):
    evidence = way(bad_guide(kind))
    assert evidence.standard_error < 0.05
    assert z_score(evidence) < 4.5


@pytest.mark.parametrize(
    "mistake, way",
    [
        (flipped_divergence, by_path),
        (flipped_divergence, by_flow),
        (flipped_divergence, by_particles),
        (flipped_divergence, by_one_slice),
        (no_rate, by_path),
        (stale_log_pi, by_particles),
        (weights_kept, by_one_slice),
    ],
)
def test_the_check_sees_mistakes(mistake, way):
    guide = bad_guide("trainable")
    must_fail(mistake, score=lambda: z_score(way(guide)), above=9)


@pytest.mark.parametrize("kind", KINDS)
def test_path_weights_are_importance_weights(kind, double):
    guide = bad_guide(kind)
    guide.flow.block.steps = 64
    x, log_w = guide.weighted_samples(200)
    with torch.no_grad():
        expected = guide.target_for().log_prob(x) - guide.flow(None).log_prob(x)
    assert_close(log_w, expected, atol=1e-4, rtol=0)


def test_weighted_particles_have_the_target_s_moments():
    cloud = bad_guide("trainable").particles(16_384, islands=64)
    for value, truth in ((cloud.x[:, 0], 0.5), ((cloud.x[:, 1] - 0.5).square(), 0.64)):
        mean = cloud.mean(value)
        assert abs(mean.value - truth) < 4.5 * mean.standard_error
    assert not cloud.x.requires_grad and not cloud.state.log_pi.requires_grad


def test_slices_are_integrated_as_finely_as_was_refined(monkeypatch):
    guide, slices = bad_guide("linear", time_grid=[0, 0.01, 0.5, 1]), []
    guide.flow.block.steps = 40
    make = continuous.ContinuousMap

    def counted(velocity, steps, method, recompute, start, end):
        slices.append((start, end, steps))
        return make(velocity, steps, method, recompute, start, end)

    monkeypatch.setattr(deformation_guide, "ContinuousMap", counted)
    guide.particles(16)
    assert slices == [(0, 0.01, 1), (0.01, 0.5, 20), (0.5, 1, 20)]


def test_nothing_is_adapted_while_particles_run():
    guide = bad_guide("trainable")
    before = copy.deepcopy(guide.state_dict())
    guide.particles(512)
    guide.weighted_samples(512)
    assert_close(guide.state_dict(), before, rtol=0, atol=0)


# ---- training ------------------------------------------------------------------------------------


def test_as_few_steps_as_will_do(monkeypatch):
    monkeypatch.setattr(training, "refine", continuous.refine)
    guide = AutoDeformationFlow(Target.from_energy(narrow, 2), **SMALL)
    history = guide.fit()
    assert guide.flow.block.steps <= 8 and history.log_q_error < 1e-3
    log_z, error = log_evidence(guide.weighted_samples(10_000)[1])
    assert abs(log_z - LOG_Z) < 4.5 * error < 0.1


# ---- symmetry ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.5, None])
def test_a_symmetric_flow(scale, double):
    """Also where the base was placed by points that know no symmetry, and after copying."""
    generators = phi4_symmetries(4)
    elements = group(generators)
    guide = AutoDeformationFlow(
        phi4(4, alpha=0.0).target,
        symmetry=generators,
        base_scale=scale,
        settings=DeformationOptions(time_kernels=2, time_grid=4, hidden_features=16),
        options=QUICK,
    )
    for _ in range(2):
        guide.fit()
        t, u = torch.rand(20), torch.randn(20, 4)
        flow, target = guide.flow, guide.target_for()
        v = flow.velocity(t, u)
        states = [flow.path.state_at(target, t, y) for y in elements.act(u)]
        for y, w, spot in zip(elements.act(u), elements.act(v), states):
            assert_close(flow.velocity(t, y), w)
            assert_close(spot.log_pi, states[0].log_pi)
        assert v.abs().max() > 1e-3 and flow.path.learned_terms(t, u)[0].abs().max() > 1e-5
        guide = pickle.loads(pickle.dumps(guide))
        guide.restore_model(target)


def test_a_width_that_symmetry_does_not_divide():
    guide = AutoDeformationFlow(
        phi4(4, alpha=0.0).target,
        symmetry=phi4_symmetries(4),
        settings=DeformationOptions(hidden_features=20),
    )
    with pytest.raises(ValueError, match="multiple of the symmetry's 16 elements, got 20"):
        guide.target_for()


# ---- what is refused -----------------------------------------------------------------------------


def test_particles_divide_into_islands():
    guide = bad_guide("linear")
    for num, islands in ((100, 16), (0, 16), (16, 0)):
        with pytest.raises(ValueError, match="do not divide|must be at least 1"):
            guide.particles(num, islands=islands)
