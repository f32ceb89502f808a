"""Results as sample() and to_arviz() make them, of numbers that are drawn here."""

import arviz as az
import numpy as np
import xarray as xr

DIMS = ("chain", "draw")


def numbers(chains=4, draws=200, sites=(("mean", ()), ("theta", (2,))), seed=0, offset=None):
    """Draws of standard normals by site; ``offset`` is added to each chain."""
    rng = np.random.default_rng(seed)
    shift = np.zeros(chains) if offset is None else np.asarray(offset, dtype=float)
    return {
        name: rng.normal(size=(chains, draws, *shape)) + shift.reshape(-1, *[1] * (1 + len(shape)))
        for name, shape in sites
    }


def dataset(values):
    """A Dataset of values ``{name: (chains, draws, ...)}``."""
    return xr.Dataset(
        {
            name: ((*DIMS, *(f"{name}_dim_{i}" for i in range(v.ndim - 2))), v)
            for name, v in values.items()
        }
    )


def result(values=None, stats=None, attrs=None, tree=False, groups=None):
    """An ArviZ object; ``tree`` makes the ``DataTree`` of ArviZ 1.x, whichever is installed."""
    values = numbers() if values is None else values
    found = {"posterior": dataset(values)} | (groups or {})
    if stats is not None:
        found["sample_stats"] = dataset(stats)
    if tree or not az.__version__.startswith("0."):
        data = xr.DataTree.from_dict(found)
    else:
        data = az.InferenceData(**found)
    data.attrs.update(attrs or {})
    return data


def arviz_pareto_k(log_w):
    """Pareto k of log weights ``(N,)``; ArviZ 1.x takes their negatives, log likelihoods."""
    if az.__version__.startswith("0."):
        return float(az.psislw(log_w.numpy())[1])
    from arviz_stats.base import array_stats

    return float(array_stats.psislw(-log_w.numpy())[1])


def statistics(chains=4, draws=200, rate=0.7, seed=1):
    """Statistics of draws of a flow that fits well."""
    rng = np.random.default_rng(seed)
    return {
        "log_weight": 0.3 * rng.normal(size=(chains, draws)),
        "accepted": rng.random((chains, draws)) < rate,
        "diverging": np.zeros((chains, draws), dtype=bool),
    }


SAMPLE_ATTRS = {
    "method": "IMH (spline)",
    "candidates": "IMH (Gaussian): jumps have only 0.02 effective draws each; "
    "IMH (spline): 1e+06 of work",
    "reliable": 1,
    "problems": "",
    "thin": 1,
    "dtype": "float32",
    "evaluations": 123456,
    "evaluations_start": 23456,
    "modes": 2,
    "unseen_mass": 0.0,
    "log_evidence": -12.5,
    "log_evidence_error": 0.05,
    "seconds_sampling": 1.25,
    "kernel": "IMH",
    "seed": 7,
    "versions": "python 3.11.7; torch 2.13.0",
    "training_loss": np.array([3.0, 2.0, 1.5]),
    "training_ess": np.array([0.1, 0.4, 0.8]),
    "training_stopped": "enough",
    "training_steps": 300,
    "training_evaluations": 76800,
    "training_skipped": 0,
    "mode_shares": np.array([0.6, 0.4]),
    "mode_shares_first": np.array([0.58, 0.42]),
    "mode_shares_second": np.array([0.61, 0.39]),
}
