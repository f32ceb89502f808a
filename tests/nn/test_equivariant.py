"""Networks with shared weights are equivariant or invariant, before and after training."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from pyro_flowsamp.guides.deformation.energy_path import EnergyMLP
from pyro_flowsamp.lattice import lattice_symmetries, phi4, phi4_symmetries
from pyro_flowsamp.nn import equivariant
from pyro_flowsamp.nn.equivariant import group, tie, tied
from pyro_flowsamp.nn.mlp import VelocityMLP

#: name → generators, order of the group, whether it is abelian
GROUPS = {
    "one sign": ([([0, 1, 2], [1, -1, 1])], 2, True),
    "turn by 90°": ([([1, 0], [1, -1])], 4, True),
    "turns and mirrors": ([([1, 0], [1, -1]), ([1, 0], [1, 1])], 8, False),
    "exchange": ([([1, 0, 2], [1, 1, 1])], 2, True),
    "turns of a cube": ([([1, 0, 2], [1, -1, 1]), ([0, 2, 1], [1, 1, -1])], 24, False),
    "circle": (lattice_symmetries(5), 10, False),
    "phi^4": (phi4_symmetries(4), 16, False),
    "square lattice": (lattice_symmetries((2, 2)), 8, False),
}


@pytest.fixture(params=GROUPS)
def elements(request):
    torch.set_default_dtype(torch.float64)
    return group(GROUPS[request.param][0])


def matrices(elements):
    """R_g, one column at a time."""
    return elements.act(torch.eye(elements.order.shape[1])).mT


def networks(elements, kernels):
    order, dim = elements.order.shape
    velocity = VelocityMLP(dim, 2 * order, kernels, units=0)
    return velocity, EnergyMLP(dim, 2 * order, kernels)


def shaken(nets, elements, steps=3):
    """After some steps of Adam on a loss that knows nothing of the symmetry."""
    parameters = [p for net in nets for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, 0.1)
    dim = elements.order.shape[1]
    for _ in range(steps):
        x, t = torch.randn(50, dim), torch.rand(50)
        skew = torch.arange(1.0, dim + 1)
        loss = sum(((net(t, x) - skew) * (1 + x[:, :1])).square().mean() for net in nets)
        for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.grad = grad
        optimiser.step()


def symmetry_errors(nets, elements):
    """How far a velocity is from equivariant, an energy from invariant; and the values' sizes."""
    velocity, energy = nets
    dim = elements.order.shape[1]
    x, t = torch.randn(7, dim), torch.rand(7)
    orbit = elements.act(x).flatten(0, 1)
    times = t.repeat(len(elements.order))
    v, e = velocity(t, x), energy(t, x)
    gap_v = velocity(times, orbit) - elements.act(v).flatten(0, 1)
    gap_e = energy(times, orbit) - e.repeat(len(elements.order), 1)
    return gap_v.abs().max(), gap_e.abs().max(), v.abs().max(), (e - e[0]).abs().max()


@pytest.mark.parametrize("name", GROUPS)
def test_the_group(name):
    generators, order, abelian = GROUPS[name]
    elements = group(generators)
    assert len(elements.order) == order
    r = matrices(elements).float()
    assert_close(r[0], torch.eye(r.shape[-1]))
    assert len({tuple(m.flatten().tolist()) for m in r}) == order
    for i, (p, s) in enumerate(zip(elements.order, elements.sign)):
        x = torch.randn(r.shape[-1])
        assert_close(r[i] @ x, s * x[p])
    products = torch.einsum("aij,bkj->abik", r, r)  # R_a R_b⁻¹, for they are orthogonal
    assert_close(r[elements.quotient], products)
    commute = torch.equal(torch.einsum("aij,bjk->abik", r, r), torch.einsum("bij,ajk->abik", r, r))
    assert commute is abelian


@pytest.mark.parametrize("kernels", [1, 3])
def test_equivariant_and_invariant_after_training(elements, kernels):
    nets = networks(elements, kernels)
    with tied(nets, elements):
        shaken(nets, elements)
        gap_v, gap_e, v, e = symmetry_errors(nets, elements)
    assert max(gap_v, gap_e) < 1e-12 and e > 1e-3
    assert v > 1e-3


def test_untied_training_breaks_it(elements):
    nets = networks(elements, 1)
    for net in nets:
        tie(net, elements)
    shaken(nets, elements)
    gap_v, gap_e, _, _ = symmetry_errors(nets, elements)
    assert min(gap_v, gap_e) > 1e-3


def test_a_tied_start(elements):
    """With weights of the last layer too: fresh ones are zero, of any symmetry."""
    nets = networks(elements, 2)
    with torch.no_grad():
        for net in nets:
            net.out_weight.normal_()
            net.out_bias.normal_()
    assert symmetry_errors(nets, elements)[0] > 1e-2
    for net in nets:
        tie(net, elements)
    gap_v, gap_e, v, e = symmetry_errors(nets, elements)
    assert max(gap_v, gap_e) < 1e-12 and min(v, e) > 1e-2
    before = [p.clone() for net in nets for p in net.parameters()]
    for net in nets:
        tie(net, elements)
    assert_close([p for net in nets for p in net.parameters()], before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_copies_train_as_tied(duplicate):
    torch.set_default_dtype(torch.float64)
    elements = group(GROUPS["phi^4"][0])
    nets = networks(elements, 1)
    with tied(nets, elements):
        shaken(nets, elements)
        copies = duplicate(nets)
    with tied(copies, elements):
        shaken(copies, elements)
    assert max(symmetry_errors(copies, elements)[:2]) < 1e-12


def test_the_gradient_is_free_again():
    elements = group(GROUPS["exchange"][0])
    nets = networks(elements, 1)
    with tied(nets, elements):
        pass
    shaken(nets, elements)
    assert min(symmetry_errors(nets, elements)[:2]) > 1e-3


@pytest.mark.parametrize("sizes", [4, 6, (2, 3), (3, 3)])
def test_the_action_has_its_symmetries(sizes):
    target = phi4(sizes, alpha=0.0).target
    elements = group(phi4_symmetries(sizes))
    x = torch.randn(5, target.dim)
    energies = torch.stack([target.log_prob(y) for y in elements.act(x)])
    assert_close(energies, energies[0].expand_as(energies))


@pytest.mark.parametrize(
    "generators, message",
    [
        ([], "at least one generator"),
        ([([0, 0], [1, 1])], "not a permutation of 2"),
        ([([1, 2], [1, 1])], "not a permutation of 2"),
        ([([0, 1], [1, 2])], "with signs"),
        ([([0, 1], [1])], "with signs"),
        ([([0, 1], [1, 1]), ([0, 1, 2], [1, 1, 1])], "not a permutation of 2"),
    ],
)
def test_bad_generators(generators, message):
    with pytest.raises(ValueError, match=message):
        group(generators)


def test_too_large_a_group(monkeypatch):
    monkeypatch.setattr(equivariant, "MAX_ELEMENTS", 9)
    with pytest.raises(ValueError, match="more than 9 elements"):
        group(lattice_symmetries(5))


def test_networks_that_cannot_be_tied():
    elements = group(GROUPS["circle"][0])
    with pytest.raises(ValueError, match="multiple of the symmetry's 10 elements, got 16"):
        tie(VelocityMLP(5, 16, units=0), elements)
    with pytest.raises(ValueError, match="permutes 5 coordinates, the target has 4"):
        tie(EnergyMLP(4, 20), elements)
    with pytest.raises(ValueError, match="separate units"):
        tie(VelocityMLP(5, 20), elements)
