"""Compiled densities: equal to rounding, padded rightly, and taken over at a fixed call."""

import time

import pyro
import pytest
import torch
from support import models
from support.mutations import broken, mutation

from pyro_flowsamp import Target
from pyro_flowsamp.target import compiling
from pyro_flowsamp.target.options import TracingOptions
from pyro_flowsamp.target.tracing import TracedDensity

NUM = 9  # is padded to 10


def compiles():
    """Whether TorchInductor compiles a graph here."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:
        return False
    return True


needs_compiler = pytest.mark.skipif(not compiles(), reason="there is no C++ compiler")


def fake(monkeypatch, delay=0.0):
    """Let a function that adds a rounding error take the place of the compiler."""
    import torch._inductor

    def compile_slowly(module, inputs):
        time.sleep(delay)

        def run(*inputs):
            value, *rest = module(*inputs)
            return (value * (1 + 2e-7), *rest)

        return run

    monkeypatch.setenv("PYRO_FLOWSAMP_COMPILE", "1")
    monkeypatch.setattr(torch._inductor, "compile", compile_slowly)


def is_near(traced, eager, x):
    pairs = zip(traced.log_prob_and_grad(x), eager.log_prob_and_grad(x))
    near = all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in pairs)
    with torch.no_grad():
        near &= torch.allclose(traced.log_prob(x), eager.log_prob(x), rtol=1e-4, atol=1e-4)
    return near and traced.evaluations == eager.evaluations


def two(model, *args):
    traced, eager = Target.from_model(model, *args), Target.from_model(model, *args)
    traced.compile_mode, eager.compile_mode = True, False
    return traced, eager


@pytest.mark.slow
@needs_compiler
def test_a_real_compiler(monkeypatch):
    """One compilation, which takes seconds: padding, data that change, and a bad matrix."""
    monkeypatch.setenv("PYRO_FLOWSAMP_COMPILE", "1")
    data = torch.tensor([2.0, 1.0])

    def energy(x):
        matrix = torch.diag_embed(4 + x)
        return torch.linalg.cholesky(matrix).sum((-2, -1)) + (x - data).square().sum(-1)

    targets = [Target.from_energy(energy, 2) for _ in range(2)]
    targets[0].compile_mode, targets[1].compile_mode = True, False
    x = torch.randn(NUM, 2)
    found = [t.log_prob_and_grad(x) for t in targets]
    data.add_(1.0)
    found += [t.log_prob_and_grad(x) for t in targets]
    x[4] = -5.0
    found += [t.log_prob_and_grad(x) for t in targets]
    assert found[-2][0].isneginf().nonzero().tolist() == [[4]]
    for compiled, own in zip(found[::2], found[1::2]):
        torch.testing.assert_close(compiled, own, rtol=1e-5, atol=1e-5)
    assert not torch.equal(found[0][0], found[2][0])
    assert targets[0].density.density.compiled_sizes == [10]


def test_padding_changes_no_result_and_no_count(monkeypatch):
    fake(monkeypatch)
    traced, eager = two(models.schools, torch.tensor([0.5, -1.0, 2.0]))
    for num in (1, 3, NUM, 10):
        assert is_near(traced, eager, torch.randn(num, traced.dim))
    assert set(traced.density.density.compiled_sizes) == {1, 3}  # four compilations at most
    bad = Target.from_energy(lambda x: x[:, 0].log(), 1)
    bad.compile_mode = True
    x = torch.ones(NUM, 1)
    x[-1] = -1.0  # the point that is copied
    bad.log_prob(x)
    assert bad.density.density.compiled_sizes == [10] and int(bad.nonfinite) == 1


def test_wrong_padding_is_seen(monkeypatch):
    fake(monkeypatch)

    @mutation(compiling, "padded")
    def in_front(padded, x, num):
        return torch.cat([x[:1].expand(num - len(x), -1), x])

    with broken(in_front):
        traced, eager = two(models.conjugate, *models.conjugate_data())
        assert is_near(traced, eager, torch.randn(10, 2))
        assert not is_near(traced, eager, torch.randn(NUM, 2))


def draws(monkeypatch, delay):
    """Return the densities that a random walk sees; the compiler takes over on the way."""
    fake(monkeypatch, delay)
    target = Target.from_model(models.conjugate, *models.conjugate_data())
    target.tracing = TracingOptions(calls=5, compile_operations=20)
    generator = torch.Generator().manual_seed(0)
    x, found = torch.zeros(NUM, 2), []
    log_p = target.log_prob(x)
    for _ in range(60):
        y = x + torch.randn(NUM, 2, generator=generator)
        log_q = target.log_prob(y)
        found.append(log_q)
        accepted = torch.rand(NUM, generator=generator).log() < log_q - log_p
        x, log_p = torch.where(accepted[:, None], y, x), torch.where(accepted, log_q, log_p)
    assert target.density.density.compiled_sizes == [10]
    return torch.stack(found)


def test_a_slow_compiler_changes_no_draw(monkeypatch):
    assert torch.equal(draws(monkeypatch, 0.0), draws(monkeypatch, 0.3))


def test_the_work_decides_when(monkeypatch):
    fake(monkeypatch)
    density = TracedDensity(lambda x, c: -x.square().sum(-1))
    density.options = TracingOptions(calls=2, compile_operations=10)
    x, at = torch.ones(NUM, 2), []
    for _run in range(2):
        values = torch.stack([density(x, None)[0] for _ in range(100)])
        at.append(int((values != -2.0).int().argmax()))
        density.restart()
    assert at[0] == at[1] > 2  # the same call, though the second run finds a compilation


def test_without_a_compiler(monkeypatch):
    import torch._inductor

    def missing(module, inputs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setenv("PYRO_FLOWSAMP_COMPILE", "1")
    monkeypatch.setattr(torch._inductor, "compile", missing)
    monkeypatch.setattr(compiling, "_said", set())
    traced, eager = two(models.conjugate, *models.conjugate_data())
    x = torch.randn(NUM, 2)
    with pytest.warns(UserWarning, match="traced and not compiled.*No working C"):
        assert is_near(traced, eager, x)
    assert is_near(traced, eager, x) and traced.density.density.sizes == [NUM]
    assert is_near(*two(models.turned, torch.tensor(1.0)), x)  # says it once


def test_a_compiler_that_is_wrong_is_not_used(monkeypatch):
    import torch._inductor

    monkeypatch.setenv("PYRO_FLOWSAMP_COMPILE", "1")
    monkeypatch.setattr(
        torch._inductor,
        "compile",
        lambda module, _: lambda *xs: (module(*xs)[0] + 1, module(*xs)[1]),
    )
    traced, eager = two(models.conjugate, *models.conjugate_data())
    assert is_near(traced, eager, torch.randn(NUM, 2))
    assert "other values or gradients" in traced.density.density.uncompiled_reason


@pytest.mark.slow
def test_draws_of_pyros_nuts(double):
    """Pyro's NUTS on the traced potential makes the draws that it makes on the model."""
    args = models.conjugate_data()
    target = Target.from_model(models.conjugate, *args)
    target.compile_mode = True
    start = target.unpack_unconstrained(torch.zeros(target.dim))
    fixed = {"step_size": 0.3, "adapt_step_size": False, "adapt_mass_matrix": False}
    kernels = [
        pyro.infer.NUTS(models.conjugate, **fixed),
        pyro.infer.NUTS(potential_fn=target.potential_fn, **fixed),
    ]
    found = []
    for kernel in kernels:
        kernel.initial_params = start
        kernel.setup(0, *args)
        pyro.set_rng_seed(1)
        values, each = start, []
        for _ in range(10):
            values = kernel.sample(values)
            each.append(target.pack_unconstrained(values))
        found.append(torch.stack(each))
    assert target.density.density.sizes == [1]
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)
    assert found[0].std() > 0.1
