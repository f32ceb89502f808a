"""Counts of work: the same at each repetition, in proportion to what is computed."""

import subprocess
import sys
from dataclasses import replace

import pyro
import pytest
import torch
from support import models
from support.models import BATCHING, QUICK, named

from pyro_flowsamp import IMH, AutoFlow, LatentMALA, Target
from pyro_flowsamp.target.work import FLOPS_PER_ELEMENT, OVERHEAD, WorkCounter


def counted(function, *args):
    with WorkCounter() as counter:
        function(*args)
    return counter.operations, counter.elements


def test_views_are_no_work():
    x = torch.ones(6, 4)
    assert counted(lambda: x.T[1:].reshape(-1)[None].expand(2, 18)) == (1, 18)
    assert counted(lambda: x.view(4, 6).detach().unsqueeze(0)) == (0, 0)


def test_an_operation_counts_its_largest_tensor():
    x = torch.ones(6, 4)
    assert counted(x.sum) == (1, 24)
    assert counted(lambda: x[:1] + x) == (1, 24)
    assert counted(lambda: x.index_select(0, torch.tensor([1]))) == (1, 4)
    assert counted(lambda: torch.empty(1000)) == (1, 0)


def test_products_count_their_flops():
    a, b, bias = torch.ones(80, 30), torch.ones(30, 20), torch.ones(20)
    flops = 2 * 80 * 30 * 20
    for product in (
        lambda: a @ b,
        lambda: torch.addmm(bias, a, b),
        lambda: torch.nn.functional.linear(a, b.T, bias),
        lambda: a.reshape(2, 40, 30) @ b.expand(2, 30, 20).contiguous(),
    ):
        elements = counted(product)[1]
        assert flops // FLOPS_PER_ELEMENT <= elements <= flops // FLOPS_PER_ELEMENT + 1200


def test_factorisations_count_their_flops():
    """Of matrices with twice as many rows eight times the work."""
    work = [counted(torch.linalg.cholesky_ex, torch.eye(n).expand(5, n, n))[1] for n in (20, 40)]
    assert work[1] == pytest.approx(8 * work[0], rel=0.1)


@pytest.mark.filterwarnings("ignore:the density is evaluated point by point")
@pytest.mark.parametrize("model, y, batching", named(BATCHING))
def test_densities(model, y, batching):
    """Gradients under vmap and all: repeated alike, linear in the number of points."""
    target = Target.from_model(model, y)
    x = 0.1 * torch.randn(48, target.dim)
    count = {n: counted(target.log_prob_and_grad, x[:n]) for n in (16, 32, 48)}
    assert count[16] == counted(target.log_prob_and_grad, x[:16])
    operations, elements = ([count[n][i] for n in (16, 32, 48)] for i in (0, 1))
    if batching == "loop":  # autograd's share grows with the square: zeros for a batch, each point
        assert operations[2] - operations[1] == operations[1] - operations[0] > 16
    else:
        assert operations[0] == operations[1] == operations[2] > 5
        assert elements[2] - elements[1] == pytest.approx(elements[1] - elements[0], rel=0.02)


def test_twice_the_operations_are_twice_the_work():
    def repeated(times):
        x = torch.ones(100, requires_grad=True)
        y = x
        for _ in range(times):
            y = y.sin()
        y.sum().backward()

    one, two, three = (counted(repeated, times) for times in (10, 20, 30))
    assert [a - b for a, b in zip(three, two)] == [a - b for a, b in zip(two, one)]
    operations, elements = (a - b for a, b in zip(two, one))
    assert operations == 10 * 3 and elements == operations * 100  # sin forwards; cos and a product


def test_counts_go_on():
    x = torch.ones(10)
    with WorkCounter() as counter:
        x.exp()
    with counter:
        x.exp()
    assert counter.work == 2 * OVERHEAD + 20


def test_trainings_and_kernel_steps():
    """The same work at each repetition; LatentMALA's for more chains is more."""
    target, counts, guides = Target.from_energy(models.energy, 2), [], []

    def training():
        pyro.set_rng_seed(0)
        guides.append(AutoFlow(target, options=replace(QUICK, max_steps=10)))
        guides[-1].fit()

    def step(kernel, num):
        state = kernel.start(num)
        return counted(kernel.step, state)

    counts = [counted(training) for _ in range(2)]
    assert counts[0] == counts[1] and counts[0][0] > 1000
    imh, mala = kernels = IMH(guide=guides[0]), LatentMALA(guide=guides[0])
    for kernel in kernels:
        kernel.bind()
        kernel.prepare(0)
        assert step(kernel, 8) == step(kernel, 8)
    assert step(mala, 800)[1] > 20 * step(mala, 8)[1]


def test_counting_does_not_import_the_compiler():
    """It would take a second of every short run."""
    code = (
        "import sys, torch; from pyro_flowsamp.target.work import WorkCounter\n"
        "with WorkCounter(): torch.ones(3).exp()\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
