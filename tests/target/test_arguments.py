"""Arguments of a model, and options of the same names."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_flowsamp import Target, sample
from pyro_flowsamp.target.arguments import check_fits, check_shared_names, check_values


def model(y, seed, start=0.0):
    x = pyro.sample("x", dist.Normal(start, 1.0))
    pyro.sample("y", dist.Normal(x + seed, 1.0), obs=y)


def check(model, *args, **given):
    check_shared_names(sample, model, args, given)


def test_arguments_whose_values_are_known():
    check(model, 1.0, 2.0, seed=0)  # by position
    check(partial(model, seed=2.0), 1.0, seed=0)
    check(partial(partial(model, seed=2.0), start=1.0), 1.0, seed=0, start=3)
    check(partial(model, 1.0, 2.0), seed=0)
    check(Target.from_energy(lambda x: x.square().sum(-1), 2), seed=0)
    check(lambda *args, **kwargs: None, seed=0)  # nobody can know
    check(print, seed=0)
    check(model, 1.0, seed=None, start=None)  # not given


@pytest.mark.parametrize("given", [{"seed": 0}, {"start": 3}])
def test_arguments_that_an_option_may_be_meant_for(given):
    (name,) = given
    with pytest.raises(ValueError, match=rf"'{name}' is an option of sample\(\) and an argument"):
        check(model, 1.0, **given)


class Module(torch.nn.Module):
    def forward(self, y, seed):
        return model(y, seed)


def test_a_module_has_the_names_of_its_forward():
    with pytest.raises(ValueError, match="'seed' is an option"):
        check(Module(), 1.0, seed=0)


def test_an_argument_called_model():
    def other(model):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=model)

    with pytest.raises(ValueError, match="max_seconds must be positive"):  # nothing before
        sample(other, model=torch.zeros(()), max_seconds=-1)


def test_wrong_arguments_are_told_only_where_they_are_wrong():
    error = TypeError("of the model's own code")
    check_fits(model, (1.0, 2.0), {}, error)
    with pytest.raises(TypeError, match="missing a required argument: 'seed'") as caught:
        check_fits(model, (1.0,), {}, error)
    assert caught.value.__cause__ is error


def test_a_type_error_of_the_model_stays():
    def broken(y):
        pyro.sample("x", dist.Normal(0.0, 1.0)) + "text"

    with pytest.raises(TypeError, match="unsupported operand"):
        Target.from_model(broken, 1.0)


def test_parameters_on_meta():
    module = torch.nn.Linear(2, 1, device="meta")
    with pytest.raises(ValueError, match="the parameter 'weight' is on the device 'meta'"):
        check_values(module, (), {})
    with pytest.raises(ValueError, match="the model's argument 'y' is on"):
        check_values(model, (), {"y": torch.zeros(1, device="meta")})
    try:
        torch.set_default_device("meta")
        with pytest.raises(ValueError, match="default device is 'meta'"):
            check_values(model, (), {})
    finally:
        torch.set_default_device(None)
