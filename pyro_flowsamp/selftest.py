r"""A test of the kernels on this machine: are their draws exact, however bad the flow is?

Each kernel draws from densities whose moments are known, with a flow that is bad on purpose: random
couplings, shifted and too wide. Many independent chains start spread over a box. If :math:`m_i` is
the mean of a function along chain i of C, and :math:`\mu` its true mean, then

.. math:: z = \frac{\bar m - \mu}{s / \sqrt C}, \qquad
          s^2 = \frac1{C - 1} \sum_i (m_i - \bar m)^2,

is nearly standard normal if the chains have forgotten their start and leave the density as it is. A
wrong operation of a device, a wrong log-determinant or a ratio without a term shows as a large
:math:`|z|`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .chains.vectorized import VectorizedMCMC
from .flows.recipes import LayeredFlow, circular, coupling, spline
from .guides.auto_flow import AutoFlow
from .kernels.base import FlowKernel
from .kernels.imh import IMH
from .kernels.latent import LatentHMC, LatentMALA
from .kernels.local_global import LocalGlobalHMC
from .target.density import Target
from .target.site import Values
from .validation import default_device

__all__ = ["ExactnessCheck", "SelfTestOptions", "run_self_test"]


@dataclass(frozen=True)
class SelfTestOptions:
    """Sizes of the test of the kernels.

    Attributes:
        bound: Largest :math:`|z|` of a moment that passes. A right kernel exceeds 4.5 in about one
            of 150 000 moments, and there are fewer than 200.
        num_chains: Independent chains of a kernel.
        warmup_steps: Steps of a chain before its first draw.
        num_samples: Draws of a chain.
        independence_chains, independence_warmup: The same for IMH, whose steps are cheap and which
            rejects many proposals of a bad flow.
        spread: Standard deviation of the noise in the couplings of the bad flows.
        shift: Shift of the flows, in standard deviations of the density.
        width: Factor by which the flows are too wide.

    Example:
        >>> options = SelfTestOptions(bound=0.0, independence_chains=20, independence_warmup=5)
        >>> next(run_self_test(options=options)).ok  # no score is within a bound of zero
        False
    """

    bound: float = 4.5
    num_chains: int = 800
    warmup_steps: int = 120
    num_samples: int = 20
    independence_chains: int = 1500
    independence_warmup: int = 500
    spread: float = 0.1
    shift: float = 0.3
    width: float = 1.7


class ExactnessCheck(NamedTuple):
    """The result of one kernel on one density.

    Attributes:
        kernel: The kernel.
        density: The density.
        score: The largest :math:`|z|` of its moments.
        moments: The number of moments.
        acceptance: Share of accepted proposals.
        ok: Whether the score is within the bound, and the chains have moved.

    Example:
        >>> options = SelfTestOptions(independence_chains=20, independence_warmup=5)
        >>> check = next(run_self_test(options=options))
        >>> check.kernel, check.ok == (check.score <= options.bound)
        ('IMH', True)
    """

    kernel: str
    density: str
    score: float
    moments: int
    acceptance: float
    ok: bool


class KnownDensity(NamedTuple):
    """A density with known moments.

    Attributes:
        source: The target or Pyro model.
        flow: The untrained flow.
        loc, scale: Roughly where it lies, in unconstrained coordinates.
        moments: Functions of the draws ``{site: (chains, draws, ...)}`` with their true means.

    Example:
        >>> known = DENSITIES["two modes"]()
        >>> draws = {"x": torch.zeros(1, 1, 2)}
        >>> len(known.loc) == known.flow.features, known.moments[0][0](draws).shape
        (True, torch.Size([1, 1]))
    """

    source: Callable
    flow: LayeredFlow
    loc: list[float]
    scale: list[float]
    moments: list[tuple[Callable[[Values], Tensor], float]]


def run_self_test(
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    options: SelfTestOptions = SelfTestOptions(),
) -> Iterator[ExactnessCheck]:
    """Runs each kernel on densities of known moments, and yields a result for each.

    Arguments:
        device: The device.
        dtype: The type in which densities are evaluated.
        seed: Seed of all generators.
        options: Sizes and the bound.

    Yields:
        The results, as they are made.

    Example::

        >>> options = SelfTestOptions(independence_chains=200, independence_warmup=100)
        >>> check = next(run_self_test(options=options))
        >>> check.kernel, check.density, check.ok
        ('IMH', 'a correlated normal', True)
    """
    for kernel, make in KERNELS.items():
        for density in DENSITIES:
            if kernel in FEWER and density not in FEWER[kernel]:
                continue
            with _settings(device, dtype):
                yield _check(kernel, make, density, seed, options)


@contextmanager
def _settings(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Sets torch's default device and dtype for a block."""
    before = torch.get_default_dtype(), default_device()
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(before[0])
        torch.set_default_device(before[1] if before[1].type != "cpu" else None)


def _check(
    name: str,
    make: Callable[[AutoFlow], FlowKernel],
    density: str,
    seed: int,
    options: SelfTestOptions,
) -> ExactnessCheck:
    pyro.set_rng_seed(seed)
    known = DENSITIES[density]()
    guide = _bad_guide(known, options)
    kernel = make(guide)
    chains, warmup = options.num_chains, options.warmup_steps
    if isinstance(kernel, IMH):
        chains, warmup = options.independence_chains, options.independence_warmup
    target = guide.target_for()
    spread = 2 * torch.rand(chains, target.dim) - 1
    starts = torch.tensor(known.loc) + torch.tensor(known.scale) * spread
    run = VectorizedMCMC(
        kernel,
        options.num_samples,
        warmup,
        chains,
        initial_params=target.unpack_unconstrained(starts),
        disable_progbar=True,
    )
    run.min_acceptance = 0.0  # the result has the acceptance, without a warning
    run.run()
    draws = run.get_samples(group_by_chain=True)
    score = max(abs(_z_score(f(draws), truth)) for f, truth in known.moments)
    accepted = float(run.statistics["accepted"].double().mean())
    ok = accepted > 0 and score <= options.bound  # a NaN is not within it
    return ExactnessCheck(name, density, score, len(known.moments), accepted, ok)


def _z_score(values: Tensor, truth: float) -> float:
    """The z-score of a true mean, by the means of independent chains."""
    means = values.double().mean(1)
    if not bool(means.isfinite().all()):
        return float("inf")
    return float((means.mean() - truth) / (means.std() / len(means) ** 0.5))


@torch.no_grad()
def _bad_guide(known: KnownDensity, options: SelfTestOptions) -> AutoFlow:
    """A guide whose flow is wrong in every layer, and counts as trained."""
    guide = AutoFlow(known.source, flow=known.flow)
    guide.target_for()
    flow = known.flow
    scale = torch.tensor(known.scale)
    shift = options.shift * scale * torch.randn(len(scale))
    flow.affine.initialize(torch.tensor(known.loc) + shift, torch.diag(options.width * scale))
    nets: list[Any] = [layer.net for layer in flow.couplings]
    for net in nets:
        for parameter in net[-1].parameters():
            parameter += options.spread * torch.randn_like(parameter)
    for parameter in flow.affine.parameters():
        parameter += 0.3 * options.spread * torch.randn_like(parameter)
    guide.trained = True
    return guide


# ---- densities of known moments -----------------------------------------------------------------
def _entry(i: int, power: int = 1, site: str = "x") -> Callable[[Values], Tensor]:
    return lambda draws: draws[site][..., i] ** power


def _scalar(site: str, power: int = 1) -> Callable[[Values], Tensor]:
    return lambda draws: draws[site] ** power


def _product(i: int, j: int) -> Callable[[Values], Tensor]:
    return lambda draws: draws["x"][..., i] * draws["x"][..., j]


def _correlated_normal() -> KnownDensity:
    r""":math:`N(\mu, L L^\top)`: means, and second moments :math:`L L^\top + \mu \mu^\top`."""
    mean = torch.tensor([1.0, -2.0, 0.5])
    root = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-0.4, 0.3, 1.5]])
    density = torch.distributions.MultivariateNormal(mean, scale_tril=root)
    second = (root @ root.mT + torch.outer(mean, mean)).tolist()
    moments = [(_entry(i), float(mean[i])) for i in range(3)]
    moments += [(_product(i, j), second[i][j]) for i in range(3) for j in range(i + 1)]
    return KnownDensity(
        Target.from_energy(lambda x: 7.0 - density.log_prob(x), 3),
        coupling(3, transforms=2, hidden_features=(24,)),
        mean.tolist(),
        root.norm(dim=-1).tolist(),
        moments,
    )


def _two_modes() -> KnownDensity:
    """A quarter and three quarters of a normal at two places; moments of mixtures."""
    centres = torch.tensor([[-1.5, 0.0], [1.5, 0.5]])
    log_weights = torch.tensor([0.25, 0.75]).log()

    def energy(x: Tensor) -> Tensor:
        squares = (x[:, None] - centres).square().sum(-1) / 0.7**2
        return -(log_weights - 0.5 * squares).logsumexp(-1)

    moments = [
        (_entry(0), 0.75),
        (_entry(1), 0.375),
        (_entry(0, 2), 2.25 + 0.49),
        (_entry(1, 2), 0.75 * 0.25 + 0.49),
        (_product(0, 1), 0.75 * 0.75),
    ]
    flow = spline(2, transforms=2, hidden_features=(24,))
    return KnownDensity(Target.from_energy(energy, 2), flow, [0.0, 0.0], [1.6, 0.8], moments)


def _conjugate_model() -> KnownDensity:
    r"""A Pyro model on a half line, an interval and a simplex, with conjugate priors.

    The posteriors are :math:`\Gamma(10, 4)`, :math:`\mathrm B(4, 2)` and a Dirichlet distribution
    with :math:`\alpha = (3, 2, 4.5)`.
    """
    counts, flips = torch.tensor([3.0, 1.0, 4.0]), torch.tensor([1.0, 1.0, 0.0, 1.0])
    alpha, seen = torch.tensor([1.0, 2.0, 1.5]), torch.tensor([2.0, 0.0, 3.0])

    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        chance = pyro.sample("chance", dist.Uniform(0.0, 1.0))
        shares = pyro.sample("shares", dist.Dirichlet(alpha))
        with pyro.plate("counts", 3):
            pyro.sample("count", dist.Poisson(rate), obs=counts)
        with pyro.plate("flips", 4):
            pyro.sample("flip", dist.Bernoulli(chance), obs=flips)
        pyro.sample("seen", dist.Multinomial(5, shares, validate_args=False), obs=seen)

    moments = [
        (_scalar("rate"), 10 / 4),
        (_scalar("rate", 2), 10 * 11 / 16),
        (_scalar("chance"), 4 / 6),
        (_scalar("chance", 2), 4 * 5 / 42),
        *((_entry(i, 1, "shares"), a / 9.5) for i, a in enumerate((3.0, 2.0, 4.5))),
        (_entry(0, 2, "shares"), 3 * 4 / (9.5 * 10.5)),
    ]
    flow = coupling(4, transforms=2, hidden_features=(24,))
    return KnownDensity(model, flow, [0.9, 0.8, -0.1, -0.7], [0.35, 1.0, 0.8, 0.9], moments)


def _angles() -> KnownDensity:
    r"""Two von Mises angles: :math:`\mathbb E \cos(x - \mu) = I_1(\kappa) / I_0(\kappa)`."""
    loc, concentration = torch.tensor([1.0, -2.5]), torch.tensor([2.0, 1.0])

    def energy(x: Tensor) -> Tensor:
        return -(concentration * (x - loc).cos()).sum(-1)

    def wave(i: int, function: Callable[[Tensor], Tensor]) -> Callable[[Values], Tensor]:
        return lambda draws: function(draws["x"][..., i] - loc[i])

    truth = (torch.special.i1e(concentration) / torch.special.i0e(concentration)).tolist()
    moments = [(wave(i, torch.cos), truth[i]) for i in range(2)]
    moments += [(wave(i, torch.sin), 0.0) for i in range(2)]
    flow = circular(2, transforms=2, hidden_features=(24,))
    target = Target.from_energy(energy, 2, angles=[0, 1])
    return KnownDensity(target, flow, loc.tolist(), [1.0, 1.0], moments)


#: the densities, by name
DENSITIES: dict[str, Callable[[], KnownDensity]] = {
    "a correlated normal": _correlated_normal,
    "two modes": _two_modes,
    "a half line, an interval and a simplex": _conjugate_model,
    "angles": _angles,
}
#: the kernels, by name; each is made of a guide
KERNELS: dict[str, Callable[[AutoFlow], FlowKernel]] = {
    "IMH": lambda guide: IMH(guide=guide),
    "LatentMALA": lambda guide: LatentMALA(guide=guide),
    "LatentMALA, Jacobian metric": lambda guide: LatentMALA(guide=guide, metric="jacobian"),
    "LatentHMC": lambda guide: LatentHMC(guide=guide),
    "LatentHMC, adapted trajectories": lambda guide: LatentHMC(guide=guide, trajectory="adapted"),
    "LocalGlobalHMC": lambda guide: LocalGlobalHMC(guide=guide, local_steps=2, num_steps=2),
}
#: kernels that differ from another in one part run on few densities
FEWER = {
    "LatentMALA, Jacobian metric": ("a correlated normal", "two modes"),
    "LatentHMC, adapted trajectories": ("a correlated normal", "two modes"),
}
