"""The posteriors of posteriordb that the tests have, with the reference draws' means and quantiles.

Each is sampled in float32 and in float64. Where the tests or their data are missing there are none.
"""

import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .reference import Draws, Function, KnownPosterior, Made, Statistic, below

TESTS = Path(__file__).resolve().parents[4] / "tests"
REFERENCE_DRAWS = 10_000  #: independent draws behind each number, in posteriordb
QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


def loader() -> Any:
    """Returns the module of the tests that loads the posteriors; None where it is missing."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    try:
        from support import posteriordb
    except ImportError:
        return None
    return posteriordb if posteriordb.DATA.exists() else None


@cache
def names() -> list[str]:
    """Returns the posteriors' names, or says why there are none."""
    module = loader()
    if module is None:
        print(f"no problems of posteriordb: {TESTS} has no support/posteriordb.py", file=sys.stderr)
        return []
    return list(module.NAMES)


def make(name: str) -> Made:
    """Makes the model with its data."""
    posterior = loader().load(name)
    return posterior.model, posterior.args


def statistics(name: str) -> list[Statistic]:
    """Means, and probabilities below the reference's quantiles, with the reference's errors."""
    posterior = loader().load(name)

    def parameter(key: str) -> Function:
        def values(draws: Draws) -> np.ndarray:
            first = next(iter(draws.values()))
            flat = {k: torch.as_tensor(np.asarray(v)).flatten(0, 1) for k, v in draws.items()}
            return posterior.constrain(flat)[key].double().numpy().reshape(first.shape[:2])

        return values

    found = []
    for key, known in posterior.reference.items():
        f, error = parameter(key), known["sd"] / REFERENCE_DRAWS**0.5
        found.append(Statistic(key, f, known["mean"], error))
        for quantile, share in QUANTILES.items():
            error = (share * (1 - share) / REFERENCE_DRAWS) ** 0.5
            text = f"P({key} < {quantile})"
            found.append(Statistic(text, below(f, known[quantile]), share, error, share=True))
    return found


def dimension(name: str) -> int:
    """Returns the number of parameters of the reference, without those that others determine."""
    return len(loader().load(name).reference)


PROBLEMS = {
    name if bits == 32 else f"{name}_float64": KnownPosterior(
        partial(make, name),
        partial(statistics, name),
        dimension(name),
        "10 000 reference draws of posteriordb",
        double=bits == 64,
    )
    for bits in (32, 64)
    for name in names()
}
