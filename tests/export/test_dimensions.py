"""Names of dimensions: those of plates, those of the user, and what is refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.models import data, location

from pyro_flowsamp import Target
from pyro_flowsamp.export import check_names
from pyro_flowsamp.export.dimensions import dimensions_of, free_names, variables_of
from pyro_flowsamp.target.quantities import Variable, model_variables


def variable(*shape, plates=None, batch=None):
    batch = len(shape) if batch is None else batch
    return Variable(torch.Size(shape), batch, plates or (None,) * len(shape))


def names(variables, dims=None, coords=None):
    return dimensions_of(variables, dims, coords).names


def test_plates_give_names_unless_they_are_taken():
    x = variable(3, 2, plates=("schools", None))
    assert names({"x": x}) == {"x": ["schools", "x_dim_1"]}
    assert names({"x": x, "schools": variable()})["x"] == ["x_dim_0", "x_dim_1"]
    assert names({"x": variable(3, plates=("chain",))}) == {"x": ["x_dim_0"]}


def test_plates_of_two_sizes_give_no_names():
    x, y = variable(3, plates=("data",)), variable(4, plates=("data",))
    assert names({"x": x, "y": y}) == {"x": ["x_dim_0"], "y": ["y_dim_0"]}
    assert names({"x": x, "y": y}, {"y": ["data"]}) == {"x": ["x_dim_0"], "y": ["data"]}


def test_names_of_the_user_come_first():
    x = variable(3, 2, plates=("schools", None))
    assert names({"x": x}, {"x": ["here", "there"]}) == {"x": ["here", "there"]}
    assert names({"x": x}, {"x": [None, "there"]}) == {"x": ["schools", "there"]}
    assert names({"x": x}, {"x": ["here"]}) == {"x": ["here", "x_dim_1"]}
    assert names({"x": x}, {"x": [None, "schools"]}) == {"x": ["x_dim_0", "schools"]}


def test_arrays_of_other_shapes_than_the_variable():
    """Log densities have no event dimensions, unconstrained values others."""
    found = dimensions_of({"x": variable(3, 4, batch=1)}, {"x": ["who", "where"]}, None)
    assert found.of("x", (3, 4)) == ["who", "where"]
    assert found.of("x", (3,)) == ["who"]
    assert found.of("x", (3, 6)) == ["who", "x_event_dim_1"]
    assert found.of("unknown", (5,)) == ["unknown_dim_0"]


def test_free_names():
    assert free_names(["x", "draw", "superchain"]) == {"draw": "draw_", "superchain": "superchain_"}
    assert free_names(["x", "y"]) == {}


X = {"x": variable(3, 2), "y": variable(4)}


@pytest.mark.parametrize(
    "dims, coords, message",
    [
        ({"z": ["a"]}, None, r"\['z'\] are no variables of the result, which has \['x', 'y'\]"),
        ({"x": "ab"}, None, r"dims\['x'\] must be a list of names"),
        ({"y": ["a", "b"]}, None, r"2 names, but a value of 'y' has the shape \(4,\)"),
        ({"x": ["a", "a"]}, None, "another dimension: choose another"),
        ({"x": ["chain"]}, None, "'chain' is the name of a variable, of a coordinate"),
        ({"x": ["y"]}, None, "'y' is the name of a variable"),
        ({"x": ["a"], "y": ["a"]}, None, r"'a' would have the sizes \[3, 4\], of \['x', 'y'\]"),
        (None, {"b": [1]}, r"\['b'\] are no dimensions of the result, which has \['x_dim_0'"),
        ({"y": ["a"]}, {"a": "abc"}, r"coords\['a'\] has 3 labels, but .* has the size 4"),
    ],
    ids=lambda value: None,
)
def test_what_is_refused(dims, coords, message):
    with pytest.raises(ValueError, match=message):
        dimensions_of(X, dims, coords)


def grouped(weight, y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("people", len(y)):
        pyro.sample("y", dist.Normal(weight * x, 1.0), obs=y)


def test_names_are_checked_against_a_model():
    target = Target.from_model(grouped, torch.ones(3), torch.zeros(3))
    check_names(target, {"weight": ["person"]}, {"people": "abc", "person": "abc"})
    check_names(target, None, None)
    with pytest.raises(ValueError, match="'people'"):
        check_names(target, None, {"persons": "abc"})
    with pytest.raises(ValueError, match=r"\['people'\] are no variables"):
        check_names(target, {"people": ["person"]}, None)


def test_a_target_of_an_energy_has_names_too():
    target = Target.from_energy(lambda x: x.square().sum(-1), 2)
    check_names(target, {"x": ["axis"]}, {"axis": ["north", "east"]})


def test_event_dimensions_have_no_plate():
    found = model_variables(Target.from_model(location, data(1.0, 2.0)))
    assert names(found.all) == {"x": ["x_dim_0"], "y": ["y_dim_0"]}
    assert variables_of({"x": torch.zeros(2, 3, 4)})["x"].shape == (4,)
