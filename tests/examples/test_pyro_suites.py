"""The studies of Pyro's own tests and of Pyro's potentials: what they run, and how they judge."""

import json
import sys
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from stored_runs import RESULTS, load, names
from suites import pyro_densities, pyro_tests
from suites.pyro_distributions import ENTRIES
from suites.pyro_examples import ExampleModel
from suites.pyro_reasons import BY_DESIGN, matches

from pyro_flowsamp import Target


def main(module, *arguments):
    """Runs a script's ``main`` in this process."""
    with mock.patch.object(sys, "argv", [module.__file__, *map(str, arguments)]):
        module.main()


# ---- Pyro's own tests ----------------------------------------------------------------------------


@pytest.mark.slow
def test_tests_smoke(tmp_path):
    """It runs a checkout, and finds whose fault a failure is."""
    main(pyro_tests, "--smoke", "--results", tmp_path)
    store = tmp_path / pyro_tests.STUDY
    faults = {name.split("::")[1]: load(store, name)[0]["fault"] for name in names(store)}
    assert faults == {"test_nuts": "", "test_mass_matrix": "ours", "test_both_fail": "theirs"}


@pytest.mark.parametrize("arguments", [(), ("--pyro", "/nowhere")])
def test_no_checkout(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(pyro_tests, "--results", tmp_path, *arguments)
    assert stopped.value.code == 2
    assert "There is no checkout of Pyro" in capsys.readouterr().err


def test_fault():
    test, (text, why) = "tests/x.py::test_a[1]", ("no such argument", "It has none.")
    failed = {"outcome": "failed", "error": "TypeError: no such argument", "own": "passed"}
    with mock.patch.dict(BY_DESIGN, {"*::test_a[*": (text, why)}):
        assert pyro_tests.fault(test, failed) == "by design"
        assert pyro_tests.fault(test, {**failed, "own": "failed"}) == "theirs"
        assert pyro_tests.fault(test, {**failed, "error": "AssertionError"}) == "ours"
        assert pyro_tests.fault("tests/x.py::test_b[1]", failed) == "ours"
        assert pyro_tests.fault(test, {**failed, "outcome": "passed"}) == ""


def test_patterns():
    assert matches("a/b.py::test_c[1-x]", "*::test_c[*") and matches("abc", "abc")
    assert not matches("a/b.py::test_cd[1]", "*::test_c[*") and not matches("abcd", "abc")


def test_stored_faults():
    """The faults that are stored are those that the present reasons give."""
    store = RESULTS / pyro_tests.STUDY
    for name in names(store):
        result = load(store, name)[0]
        assert result["fault"] == pyro_tests.fault(name, result), name


def test_table_of_tests(tmp_path, capsys):
    store = tmp_path / pyro_tests.STUDY
    result = {"outcome": "failed", "error": "A: b|c", "made": 1, "own": "passed", "fault": "theirs"}
    store.write_text(json.dumps({"name": "tests/x.py::test_a[1]", "seed": 0, **result}) + "\n")
    main(pyro_tests, "--judge", "--results", tmp_path)
    assert "| `tests/x.py::test_a` | 1 | A: b\\|c |" in capsys.readouterr().out
    assert load(store, "tests/x.py::test_a[1]")[0]["fault"] == "ours"


# ---- densities -----------------------------------------------------------------------------------


def test_densities_smoke(tmp_path, capsys):
    main(pyro_densities, "--smoke", "--results", tmp_path)
    first = capsys.readouterr().out
    assert first.count("| same |") == 4  # three models, and their count
    main(pyro_densities, "--smoke", "--results", tmp_path)
    assert first.endswith(capsys.readouterr().out)  # nothing is computed twice
    assert len(ENTRIES) >= 50
    with pytest.raises(SystemExit, match="2"):
        main(pyro_densities, "--pyro", tmp_path, "--results", tmp_path)


def gamma(rate=1.0):
    x = pyro.sample("x", dist.Gamma(2.0, rate))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5))


def test_other_coordinates(double):
    """A potential over w = 2u, with Pyro's own u, leads to the same density of x."""
    target = Target.from_model(gamma)
    potential, transforms = pyro_densities.potential_of_pyro(ExampleModel(gamma))
    doubled = torch.distributions.AffineTransform(0.0, 2.0)

    def over_w(values):
        return potential({"x": values["x"] / 2}) + torch.tensor(2.0).log()

    other = {"x": torch.distributions.ComposeTransform([transforms["x"], doubled])}
    x = torch.randn(4, 1)
    assert not pyro_densities.same_coordinates(target, other, x[0])
    found = [pyro_densities.density_of_pyro(target, over_w, other, row) for row in x]
    assert torch.allclose(torch.stack(found), target.log_prob(x))


@pytest.mark.parametrize("wrong", ["value", "gradient"])
def test_differences_are_seen(wrong, double):
    """A target whose log density, or only its gradient, is slightly wrong does not pass."""
    target = Target.from_model(gamma)

    def log_prob_and_grad(x):
        value, grad = Target.log_prob_and_grad(target, x)
        return value + 1e-7 * (wrong == "value"), grad + 1e-5 * (wrong == "gradient")

    target_of_errors = mock.patch.object(target, "log_prob_and_grad", log_prob_and_grad)
    with mock.patch.object(Target, "from_model", return_value=target):
        assert pyro_densities.measure(ExampleModel(gamma))["verdict"] == "same"
        with target_of_errors:
            assert pyro_densities.measure(ExampleModel(gamma))["verdict"] == "different"


def test_no_density(double):
    def model():
        pyro.sample("x", dist.Wishart(torch.tensor(3.0), torch.eye(2)))

    result = pyro_densities.measure(ExampleModel(model))
    assert result["verdict"] == "neither" and "no bijection" in result["error"]
