r"""NumPyro's NUTS, its cost counted in leapfrog steps.

::

    python examples/benchmarks/baselines/leapfrogs.py --model radon --data radon.npz --seed 0

prints one measurement as JSON. It needs NumPyro and ArviZ, and no torch: the data come from a file
that ``suites/gradients.py`` writes. A leapfrog step is one gradient. All chains and their warm-up
count; the search for a first step size and for starting points does not.

Chains are looked at when the draws after the warm-up have doubled. The goal of :math:`g` effective
draws is reached once the least bulk effective sample size :math:`e` of any unconstrained component
is at least :math:`g` and the largest rank-normalised split :math:`\hat R` is small enough. With
:math:`w` leapfrog steps of the warm-up and :math:`l` of the draws, the cost is

.. math:: w + l\,\max(g / e,\, n' / n),

where :math:`n` is the number of draws and :math:`n'` that of the look before, which was not enough:
the draws beyond the goal do not count.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
COMPONENTS = 50  #: components, evenly spaced, whose means are reported


@dataclass(frozen=True)
class NUTSOptions:
    """Settings of a measurement.

    Attributes:
        chains: Number of chains.
        warmup: Warm-up steps of each; a multiple of ``block``.
        block: Draws of each chain at the first look.
        max_r_hat: The largest R-hat of chains that agree.
        max_leapfrogs: Leapfrog steps of all chains after which no more draws are made.
        max_seconds: Seconds of the processor after which no more draws are made.
    """

    chains: int = 4
    warmup: int = 1000
    block: int = 250
    max_r_hat: float = 1.01
    max_leapfrogs: int = 20_000_000
    max_seconds: float = 300.0


@dataclass(frozen=True)
class Look:
    """The chains at one moment.

    Attributes:
        ess: The least bulk effective sample size; NaN where a chain has not moved.
        r_hat: The largest R-hat; NaN likewise.
        draws: Draws of each chain after the warm-up.
        before: Those at the look before.
        leapfrogs: Leapfrog steps of the draws.
    """

    ess: float
    r_hat: float
    draws: int
    before: int
    leapfrogs: int

    def reached(self, goal: float, options: NUTSOptions) -> bool:
        """Whether the draws are enough and the chains agree."""
        return self.ess >= goal and self.r_hat <= options.max_r_hat

    def cost(self, goal: float, warmup: int) -> float:
        """Leapfrog steps until the goal, where it is reached, with those of the warm-up."""
        return warmup + self.leapfrogs * max(goal / self.ess, self.before / self.draws)


class Problem(NamedTuple):
    """Data of a model.

    Attributes:
        data: Its arguments.
        names: Its latent sites, in the order of the columns of draws.
        points: A few unconstrained values of each, ``{site: (N, ...)}``.
    """

    data: tuple[np.ndarray, ...]
    names: list[str]
    points: dict[str, np.ndarray]


def write(file: Path, problem: Problem) -> None:
    """Writes the data of a model."""
    data = {f"data{i}": value for i, value in enumerate(problem.data)}
    points = {f"point.{name}": problem.points[name] for name in problem.names}
    np.savez(file, arguments=len(data), sites=np.array(problem.names), **data, **points)


def read(file: Path) -> Problem:
    """Reads what :func:`write` has written."""
    stored = np.load(file)
    data = tuple(stored[f"data{i}"] for i in range(int(stored["arguments"])))
    names = [str(name) for name in stored["sites"]]
    return Problem(data, names, {name: stored[f"point.{name}"] for name in names})


def log_densities(model: Callable[..., None], problem: Problem) -> np.ndarray:
    """Log densities of a NumPyro model at the unconstrained points, ``(N,)``."""
    import jax
    from numpyro.infer.util import potential_energy

    energy = jax.vmap(lambda point: potential_energy(model, problem.data, {}, point))
    return -np.asarray(energy(problem.points))


def worst_ess_and_r_hat(x: np.ndarray) -> tuple[float, float]:
    """The least bulk effective sample size and the largest R-hat of ``(chains, draws, d)``."""
    import arviz as az

    parts = np.moveaxis(x, -1, 0)
    ess = np.min([az.ess(part, method="bulk") for part in parts])
    return float(ess), float(np.max([az.rhat(part, method="rank") for part in parts]))


def means_with_errors(x: np.ndarray) -> dict[str, list[float]]:
    """Means of some components of ``(chains, draws, d)``, with standard errors."""
    import arviz as az

    some = np.moveaxis(x[..., :: -(-x.shape[-1] // COMPONENTS)].astype(float), -1, 0)
    errors = [part.std() / az.ess(part, method="mean") ** 0.5 for part in some]
    return {
        "means": [float(f"{part.mean():.6g}") for part in some],
        "errors": [float(f"{error:.3g}") for error in errors],
    }


class Chains:
    """Chains of NUTS that are continued in blocks, one chain after another.

    Arguments:
        model: A NumPyro model.
        problem: Its data.
        seed: Of the random numbers.
        options: Settings.

    Attributes:
        warmup, leapfrogs: Leapfrog steps of the warm-up, and of the draws so far.
        divergences: Of the draws so far.
    """

    def __init__(
        self,
        model: Callable[..., None],
        problem: Problem,
        seed: int,
        options: NUTSOptions,
    ) -> None:
        import jax
        from numpyro.infer import NUTS

        kernel = NUTS(model)
        keys = jax.random.split(jax.random.PRNGKey(seed), options.chains)
        self.states = [kernel.init(key, options.warmup, None, problem.data, {}) for key in keys]
        self.parts: list[np.ndarray] = []  # each (chains, block, d)
        self.warmup = self.leapfrogs = self.divergences = 0

        def step(state, _):
            state = kernel.sample(state, problem.data, {})
            flat = [state.z[name].reshape(-1) for name in problem.names]
            return state, (jax.numpy.concatenate(flat), state.num_steps, state.diverging)

        def block(state):
            return jax.lax.scan(step, state, length=options.block)

        self._block = jax.jit(block)
        for _ in range(options.warmup // options.block):
            self.warmup += self._advance()[1]

    def _advance(self) -> tuple[np.ndarray, int, int]:
        """Draws ``(chains, block, d)`` of one more block, with its leapfrogs and divergences."""
        draws, leapfrogs, divergences = [], 0, 0
        for i, state in enumerate(self.states):
            self.states[i], (x, steps, diverging) = self._block(state)
            draws.append(np.asarray(x))
            leapfrogs += int(steps.sum())
            divergences += int(diverging.sum())
        return np.stack(draws), leapfrogs, divergences

    def draw(self) -> None:
        """Makes one block of draws."""
        x, leapfrogs, divergences = self._advance()
        self.parts.append(x)
        self.leapfrogs += leapfrogs
        self.divergences += divergences

    @property
    def draws(self) -> np.ndarray:
        """All draws so far, ``(chains, draws, d)``."""
        return np.concatenate(self.parts, 1)

    def look(self, before: int) -> Look:
        """The chains now, after ``before`` draws at the look before."""
        x = self.draws
        return Look(*worst_ess_and_r_hat(x), x.shape[1], before, self.leapfrogs)


def measure(
    chains: Chains, goals: Sequence[int], options: NUTSOptions, clock: Callable[[], float]
) -> dict[str, Any]:
    """Draws until all goals are reached, or a bound is.

    Arguments:
        chains: Chains after their warm-up.
        goals: Effective sample sizes, ascending.
        options: Bounds.
        clock: Seconds so far.

    Returns:
        ``goals``, the cost of each that is reached, and the chains at the end.
    """
    found: dict[str, Any] = {}
    left, bounded, before = list(goals), False, 0
    while left and not bounded:
        while len(chains.parts) * options.block < max(2 * before, options.block) and not bounded:
            chains.draw()
            spent = chains.warmup + chains.leapfrogs
            bounded = spent >= options.max_leapfrogs or clock() >= options.max_seconds
        look = chains.look(before)
        while left and look.reached(left[0], options):
            goal = left.pop(0)
            found[str(goal)] = {
                "leapfrogs": look.cost(goal, chains.warmup),
                "ess": look.ess,
                "r_hat": look.r_hat,
                "draws": look.draws,
                "spent": chains.warmup + chains.leapfrogs,
            }
        before = look.draws
    return {
        "goals": found,
        "warmup_leapfrogs": chains.warmup,
        "leapfrogs": chains.warmup + chains.leapfrogs,
        "ess": look.ess,
        "r_hat": look.r_hat,
        "draws": look.draws,
        "divergences": chains.divergences,
        **means_with_errors(chains.draws),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True, help="file of suites/gradients.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--goals", type=int, nargs="+", default=[1000, 10_000])
    for field in fields(NUTSOptions):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default)
    args = parser.parse_args()
    options = NUTSOptions(**{f.name: getattr(args, f.name) for f in fields(NUTSOptions)})
    os.environ.setdefault("XLA_FLAGS", ONE_THREAD)  # seconds of the processor are then one thread's
    import jax

    from baselines.numpyro_models import MODELS

    jax.config.update("jax_enable_x64", True)
    model, problem = MODELS[args.model], read(args.data)
    log_p = log_densities(model, problem)
    found = measure(
        Chains(model, problem, args.seed, options), sorted(args.goals), options, process_time
    )
    print(json.dumps({**found, "log_densities": log_p.tolist(), "seconds": process_time()}))


if __name__ == "__main__":
    main()
