"""The multivariate normal under vmap: density and gradients as torch has them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_flowsamp import Target
from pyro_flowsamp.target import support
from pyro_flowsamp.target.batchable import batchable

DIM, NUM = 4, 7


@pytest.fixture(autouse=True)
def in_float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


def factor_of(scale):
    """A factor that depends on a number."""
    x = torch.arange(DIM).double()
    K = torch.exp(-(x[:, None] - x).abs() / scale) + 0.1 * torch.eye(DIM)
    return torch.linalg.cholesky(K)


def log_prob(scale, mean, x, mended):
    """The log density of points ``(..., DIM)``, by this package or by torch."""
    normal = dist.MultivariateNormal(mean, scale_tril=factor_of(scale))
    return (batchable(normal) if mended else normal).log_prob(x)


ARGUMENTS = {
    "scale": lambda: 1 + torch.rand(NUM),
    "mean": lambda: torch.randn(NUM, DIM),
    "x": lambda: torch.randn(NUM, DIM),
}


@pytest.mark.parametrize("batched", [("x",), ("mean",), ("scale",), tuple(ARGUMENTS)])
@pytest.mark.parametrize("extra", [(), (3,)])
def test_under_vmap_as_by_torch(batched, extra):
    """Whichever arguments are batched; values, gradients, and gradients of gradients."""
    given = {name: make() for name, make in ARGUMENTS.items()}
    given = {k: v if k in batched else v[0] for k, v in given.items()}
    if extra:
        shape = (NUM, *extra, DIM) if "x" in batched else (*extra, DIM)
        given["x"] = torch.randn(shape)
    inputs = [v.requires_grad_() for v in given.values()]
    dims = tuple(0 if k in batched else None for k in given)

    def by_vmap(*values):
        return torch.vmap(lambda *v: log_prob(*v, mended=True).sum(), dims)(*values)

    expected = torch.stack(
        [
            log_prob(*(v[i] if d == 0 else v for v, d in zip(inputs, dims)), mended=False).sum()
            for i in range(NUM)
        ]
    )
    found = by_vmap(*inputs)
    assert torch.allclose(found, expected)
    weights = torch.randn(NUM)
    ours, theirs = (
        torch.autograd.grad((weights * v).sum(), inputs, create_graph=True)
        for v in (found, expected)
    )
    for one, other in zip(ours, theirs):
        assert torch.allclose(one, other)
    again = [
        torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)
        for grads in (ours, theirs)
    ]
    for one, other in zip(*again):
        assert torch.allclose(one, other)


def test_hessians_under_vmap():
    L = factor_of(torch.tensor(2.0))

    def density(x):
        return batchable(dist.MultivariateNormal(torch.zeros(DIM), scale_tril=L)).log_prob(x)

    hessians = torch.vmap(torch.func.hessian(density))(torch.randn(NUM, DIM))
    assert torch.allclose(hessians, -torch.cholesky_inverse(L).expand(NUM, DIM, DIM))


def test_a_batch_of_covariances_is_left_to_torch():
    normal = dist.MultivariateNormal(torch.zeros(2, DIM), torch.eye(DIM).expand(2, DIM, DIM))
    assert batchable(normal) is normal


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: d.mask(True), lambda d: d.expand([3])])
def test_wrapped(wrap):
    mean, L = torch.randn(DIM), factor_of(torch.tensor(2.0))
    normal = wrap(dist.MultivariateNormal(mean, scale_tril=L))
    x = normal.sample()
    assert torch.allclose(batchable(normal).log_prob(x), normal.log_prob(x))


class Systems(TorchDispatchMode):
    """The largest number of triangular systems that one call solves apart from each other."""

    apart = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.linalg_solve_triangular:
            self.apart = max(self.apart, args[1].shape[:-2].numel())
        return func(*args, **(kwargs or {}))


def systems_of_a_model(num=30, size=50):
    """The same while the density of some points is evaluated, with its gradient."""
    L = torch.linalg.cholesky(torch.full((size, size), 0.5) + torch.eye(size))

    def model():
        f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(size), scale_tril=L))
        pyro.factor("data", -f.exp().sum(-1))

    target, x = Target.from_model(model), torch.randn(num, size)
    expected = dist.MultivariateNormal(torch.zeros(size), scale_tril=L).log_prob(x)
    assert torch.allclose(target.log_prob(x), expected - x.exp().sum(-1))
    with Systems() as systems:
        target.log_prob_and_grad(x)
    return systems.apart


def test_one_solve_for_all_points():
    assert systems_of_a_model() == 1


def test_torch_solves_point_by_point(monkeypatch):
    """Else this package need not mend it."""
    monkeypatch.setattr(support, "batchable", lambda fn: fn)
    assert systems_of_a_model(num=30) == 30
