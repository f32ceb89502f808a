"""Models of posteriordb are batched, and contain their references."""

import pyro
import pytest
import torch
from support import posteriordb
from torch.testing import assert_close


def reference_points(reference, statistics=("mean", "q05", "q50", "q95")):
    """The reference's statistics as draws ``{site: (4, ...)}``."""
    columns = {}
    for key, known in reference.items():
        row = torch.tensor([known[s] for s in statistics])
        columns.setdefault(key.split("[")[0], []).append(row)
    points = {k: torch.stack(c, -1) if len(c) > 1 else c[0] for k, c in columns.items()}
    if "tau" in points:  # eight schools: θ = μ + τ z
        mu, tau = points["mu"], points["tau"]
        z = (points["theta"] - mu[:, None]) / tau[:, None]
        points = {"mu": mu, "tau": tau, "z": z}
    return points


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", posteriordb.NAMES)
def test_batches_and_contains_its_reference(name, dtype):
    torch.set_default_dtype(dtype)
    posterior = posteriordb.load(name)
    points = reference_points(posterior.reference)

    def log_joint(values):
        model = pyro.condition(posterior.model, values)
        return pyro.poutine.trace(model).get_trace(*posterior.args).log_prob_sum()

    with pyro.validation_enabled(False):
        batched = torch.func.vmap(log_joint)(points)
        single = [log_joint({k: v[i] for k, v in points.items()}) for i in range(4)]
    assert batched.dtype == dtype and batched.isfinite().all()
    assert_close(batched, torch.stack(single), rtol=1e-5, atol=1e-5)

    parameters = posterior.constrain(points)
    assert parameters.keys() == posterior.reference.keys()
    for key, known in posterior.reference.items():
        assert_close(parameters[key][0], torch.tensor(known["mean"]), rtol=1e-4, atol=1e-4)
