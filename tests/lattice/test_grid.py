"""Lattices of both models: shapes, parameters, precision, and use as Pyro models."""

from math import pi

import pytest
import torch
from pyro import poutine

from pyro_flowsamp import Target
from pyro_flowsamp.lattice import (
    exact_phi4,
    exact_xy_chain,
    exact_xy_torus,
    lattice_symmetries,
    phi4,
    phi4_action,
    phi4_model,
    phi4_observables,
    phi4_symmetries,
    vortex_density,
    xy,
    xy_energy,
    xy_model,
    xy_observables,
)


@pytest.fixture(autouse=True)
def float64(clean_slate):
    torch.set_default_dtype(torch.float64)


# ---- as Pyro models -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [5, (3, 4)])
def test_models_are_the_targets(shape):
    pairs = [
        (Target.from_model(phi4_model, shape, 0.7, 0.2, 0.3), phi4(shape, 0.7, 0.2, 0.3)),
        (Target.from_model(xy_model, shape, 0.7, 1.2), xy(shape, 0.7, coupling=1.2)),
    ]
    for model, known in pairs:
        assert model.batching == "vmap" and model.circular == known.target.circular
        x = 3 * torch.rand(4, known.target.dim)
        for ours, theirs in zip(model.log_prob_and_grad(x), known.target.log_prob_and_grad(x)):
            torch.testing.assert_close(ours, theirs)


def test_models_run_by_themselves():
    for model, args, name in [(phi4_model, ((2, 3), 1), "phi"), (xy_model, ((2, 3), 1), "theta")]:
        trace = poutine.trace(model).get_trace(*args)
        value = trace.nodes[name]["value"]
        assert value.shape == (2, 3) and value.isfinite().all()
        energy = phi4_action if name == "phi" else xy_energy
        scale = {"mass": 1} if name == "phi" else {}
        torch.testing.assert_close(trace.log_prob_sum(), -energy(value.flatten(), (2, 3), **scale))


def test_a_temperature_for_each_point():
    x = 2 * pi * torch.rand(4, 9)
    t = torch.tensor([0.5, 1.0, 1.5, 2.0])
    target = Target.from_model(xy_model, (3, 3), temperature=1.0, ring_exchange=1.0)
    log_p = target.conditional_on("temperature").log_prob(x, t[:, None])
    torch.testing.assert_close(log_p, -xy_energy(x, (3, 3), ring_exchange=1.0) / t)
    fields = (
        Target.from_model(phi4_model, 9, mass=0.5).conditional_on("mass").log_prob(x, t[:, None])
    )
    each = [-phi4_action(row, 9, float(m)) for row, m in zip(x, t)]
    torch.testing.assert_close(fields, torch.stack(each))


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [1, 0, (), (4, 1), (3, -2), (2.5, 4)])
def test_bad_shapes(shape):
    for make in (phi4, xy, lattice_symmetries, phi4_symmetries):
        with pytest.raises(ValueError, match="at least two sites along each axis"):
            make(shape)
    for model in phi4_model, xy_model:
        with pytest.raises(ValueError, match="at least two sites along each axis"):
            Target.from_model(model, shape)


def test_wrong_dimension():
    for function in (phi4_action, phi4_observables, xy_energy, xy_observables, vortex_density):
        with pytest.raises(ValueError, match=r"\(3, 4\) has 12 sites, the points have shape"):
            function(torch.zeros(2, 11), (3, 4))
    with pytest.raises(ValueError, match=r"expected points of shape \(N, 12\)"):
        xy((3, 4)).target.log_prob(torch.zeros(2, 11))


def test_bad_parameters():
    for make in (phi4, exact_phi4):
        with pytest.raises(ValueError, match="coupling must be positive"):
            make(8, 0.5, -0.1)
        with pytest.raises(ValueError, match="coupling must be positive"):
            make(8, 0.5, 0.0)
        with pytest.raises(ValueError, match="wells are too far apart, or"):
            make(8, 0.5, 1e-6)
    for make in (xy, xy_model, exact_xy_chain):
        for temperature in (0.0, -1.0, float("nan")):
            with pytest.raises(ValueError, match="temperature must be positive"):
                make(8, temperature)


def test_no_plaquettes_in_one_dimension():
    with pytest.raises(ValueError, match="plaquettes need two dimensions"):
        xy(8, ring_exchange=1.0)
    with pytest.raises(ValueError, match="plaquettes need two dimensions"):
        vortex_density(torch.zeros(8), 8)


# ---- dtype and device ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_device(dtype):
    """Nothing falls back on the defaults: neither the dtype, nor "meta", where nothing works."""
    torch.set_default_dtype(torch.float16)
    at = {"dtype": dtype, "device": "cpu"}
    with torch.device("meta"):
        field = phi4(4, 0.5, **at)
        lattice = phi4((2, 3), **at)
        angles = xy((2, 3), 0.5, ring_exchange=1.0, **at)
        x = field.sample(50)
        y = torch.linspace(-3, 3, 12, **at).reshape(2, 6)
        results = [x, field.modes, field.weights, field.mode_fractions(x)]
        results += field.target.log_prob_and_grad(x)
        results += [v for t in (lattice, angles) for v in t.target.log_prob_and_grad(y)]
        results += [*xy_observables(y, (2, 3)), vortex_density(y, (2, 3))]
        assert xy(4, 0.5, **at).log_z == pytest.approx(exact_xy_chain(4, 0.5).log_z)
        assert exact_xy_torus((2, 2), 5.0).energy < 0
    assert {(t.dtype, t.device.type) for t in results} == {(dtype, "cpu")}
