"""Calls of ``sample()`` by workers, in processes that are forked or spawned."""

from support.models import conjugate, conjugate_data

import pyro_flowsamp as pf
from pyro_flowsamp import ModeSearchOptions, SearchOptions

#: a search of little work; runs of 64 chains and more are several blocks of 32
SMALL = ModeSearchOptions(paths=16, particles=128, min_particles=64, survey_points=1024)
SEARCH = SearchOptions(modes=SMALL, pilot_warmup=20, evidence_draws=256, check_states=256)
QUICK = {"progress": False, "search": SEARCH, "ess": 400, "num_chains": 64}
BLOCKS = {"chains_per_block": 32}


def found(data):
    """Draws and attributes of a result, without those that are seconds."""
    draws = {str(name): data["posterior"][name].values for name in data["posterior"].data_vars}
    stats = {
        str(name): data["sample_stats"][name].values for name in data["sample_stats"].data_vars
    }
    attrs = {k: repr(v) for k, v in data.attrs.items() if "seconds" not in k}
    return draws | {f"stats {k}": v for k, v in stats.items()}, attrs


def sampled(group, checkpoint=None, **options):
    """The draws of a Gaussian."""
    options = {**QUICK, "seed": 0, "candidates": ["HMC"], **options}
    return found(pf.sample(pf.Target.from_energy(gaussian, 2), **options, checkpoint=checkpoint))


def gaussian(x):
    return 0.5 * (x / 2 - 1).square().sum(-1)


def sampled_model(group, **options):
    """The draws of a model with a prior, by the best of all kernels."""
    options = {**QUICK, "seed": 0, **options}
    return found(pf.sample(conjugate, *conjugate_data(), **options))


def sampled_banana(group, **options):
    """The draws of a banana by a trained flow."""
    options = {**QUICK, "seed": 0, "candidates": ["coupling"], **options}
    return found(pf.sample(pf.Target.from_energy(banana, 2), **options))


def banana(x):
    return 0.5 * (x[:, 0] / 2).square() + 0.5 * ((x[:, 1] - x[:, 0].square()) / 0.5).square()
