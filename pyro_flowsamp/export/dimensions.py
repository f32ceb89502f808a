"""Names of the dimensions of exported variables: those of plates, and those that the user gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from ..target.density import Target
from ..target.quantities import Variable, model_variables
from ..target.site import Values
from .groups import constant_data

__all__ = ["RESERVED", "Dimensions", "check_names", "dimensions_of", "free_names", "variables_of"]


RESERVED = ("chain", "draw", "superchain")  #: names that ArviZ or this export uses for coordinates


class Dimensions(NamedTuple):
    """The names of the dimensions of all variables, without chain and draw.

    Attributes:
        names: The names by variable.
        sizes: The size of each named dimension.
        variables: The shapes of the variables.

    Example:
        >>> school = Variable(torch.Size([3]), 1, ("school",))
        >>> dimensions = Dimensions({"x": ["school"]}, {"school": 3}, {"x": school})
        >>> dimensions.of("x", (3,)), dimensions.of("y", (2,))
        (['school'], ['y_dim_0'])
    """

    names: dict[str, list[str]]
    sizes: dict[str, int]
    variables: dict[str, Variable]

    def of(self, name: str, shape: Sequence[int]) -> list[str]:
        """The names of the dimensions of an array that belongs to a variable.

        A log density has the leading dimensions of its variable only. An unconstrained value may
        have other event dimensions, which get names of their own.

        Arguments:
            name: The name of the variable.
            shape: The shape of the array, without chain and draw.
        """
        variable = self.variables.get(name)
        if variable is None:
            return _defaults(name, len(shape))
        if tuple(shape) == tuple(variable.shape):
            return self.names[name]
        own = variable.shape[: variable.batch_dims]
        return [
            self.names[name][i] if i < len(own) and size == own[i] else f"{name}_event_dim_{i}"
            for i, size in enumerate(shape)
        ]


def _defaults(name: str, count: int) -> list[str]:
    return [f"{name}_dim_{i}" for i in range(count)]


def variables_of(samples: Values, skip: int = 2) -> dict[str, Variable]:
    """The shapes of arrays, without the first ``skip`` dimensions; none of them has a plate.

    Example:
        >>> variables_of({"x": torch.zeros(4, 100, 3)})["x"].shape  # 4 chains of 100 draws
        torch.Size([3])
    """
    shapes = {name: torch.as_tensor(value).shape[skip:] for name, value in samples.items()}
    return {name: Variable(s, len(s), (None,) * len(s)) for name, s in shapes.items()}


def free_names(names: Iterable[str], reserved: Iterable[str] = RESERVED) -> dict[str, str]:
    """New names for variables that have the name of a coordinate, or a slash in theirs.

    Pyro's ``scope`` makes names with slashes. ArviZ 1.x and netCDF read these as paths.

    Example:
        >>> free_names(["chain", "x", "chain_", "part/x"])
        {'chain': 'chain__', 'part/x': 'part.x'}
    """
    taken, changed = {*names, *reserved}, {}
    coordinates = set(reserved)
    for name in sorted(name for name in set(names) if name in coordinates or "/" in name):
        new = _without_slash(name)
        new = name + "_" if new == name else new
        while new in taken:
            new += "_"
        taken.add(new)
        changed[name] = new
    return changed


def _without_slash(name: str) -> str:
    return name.replace("/", ".")


def check_names(
    target: Target,
    dims: Mapping[str, Sequence[str]] | None,
    coords: Mapping[str, Sequence] | None,
) -> None:
    """Checks names of dimensions and their labels before there are draws.

    Arguments:
        target: The target whose sites the names are for.
        dims: Names of the dimensions of values, by site.
        coords: Labels along named dimensions.

    Raises:
        ValueError: See :func:`~pyro_flowsamp.to_arviz`.

    Example:
        >>> check_names(Target.from_energy(lambda x: x.square().sum(-1), 2), {"y": ["axis"]}, None)
        Traceback (most recent call last):
        ...
        ValueError: dims: ['y'] are no variables of the result, which has ['x']
    """
    if not dims and not coords:
        return
    found = model_variables(target)
    constant = variables_of(constant_data(target, found.data), 0)
    dimensions_of({**constant, **found.all}, dims, coords)


def dimensions_of(
    variables: Mapping[str, Variable],
    dims: Mapping[str, Sequence[str]] | None,
    coords: Mapping[str, Sequence] | None,
    reserved: Iterable[str] = RESERVED,
) -> Dimensions:
    """The names of all dimensions: the user's, else those of plates, else ArviZ's defaults.

    A plate gives no name where its name is that of a variable or coordinate, or where plates of
    this name have two sizes.

    Arguments:
        variables: The shapes of all variables.
        dims: The user's names, by variable.
        coords: The user's labels, by dimension.
        reserved: Names that no dimension may have.

    Raises:
        ValueError: A name is unknown or taken, or there are too many names or labels, or of the
            wrong number.

    Example:
        >>> y = Variable(torch.Size([3, 2]), 1, ("people", None))
        >>> dimensions_of({"y": y}, None, {"people": "abc"}).names
        {'y': ['people', 'y_dim_1']}
    """
    dims, coords = dims or {}, coords or {}
    _check_dims(variables, dims, set(reserved))
    given = {name for names in dims.values() for name in names if name is not None}
    plates = _plates(variables, {*variables, *reserved})
    names = {
        name: _named(name, v, [plates.get(p) for p in v.plates], dims.get(name, ()))
        for name, v in variables.items()
    }
    sizes: dict[str, dict[int, str]] = defaultdict(dict)
    for name, variable in variables.items():
        for dim, size in zip(names[name], variable.shape):
            sizes[dim].setdefault(size, name)
    for dim, found in sizes.items():
        if len(found) > 1:
            raise ValueError(
                f"dims: '{dim}' would have the sizes {sorted(found)}, of {sorted(found.values())}: "
                f"give them different names{'' if dim in given else ', or rename the plate'}"
            )
    known = {dim: next(iter(found)) for dim, found in sizes.items()}
    _check_coords(coords, known)
    return Dimensions(names, known, dict(variables))


def _plates(variables: Mapping[str, Variable], taken: set[str]) -> dict[str | None, str]:
    """The names that dimensions get of plates whose names are free and have one size."""
    sizes = defaultdict(set)
    for variable in variables.values():
        for plate, size in zip(variable.plates, variable.shape):
            if plate is not None:
                sizes[plate].add(size)
    return {
        plate: _without_slash(plate)
        for plate, found in sizes.items()
        if len(found) == 1 and plate not in taken
    }


def _named(
    name: str, variable: Variable, plates: Sequence[str | None], given: Sequence[str | None]
) -> list[str]:
    """The first of given name, plate and default that there is, for each dimension."""
    padded = [*given, *[None] * (len(variable.shape) - len(given))]
    named = [own or plate for own, plate in zip(padded, plates)]
    named = [dim if named.count(dim) == 1 else own for dim, own in zip(named, padded)]
    return [dim or default for dim, default in zip(named, _defaults(name, len(named)))]


def _check_dims(
    variables: Mapping[str, Variable], dims: Mapping[str, Sequence[str]], reserved: set[str]
) -> None:
    unknown = sorted(set(dims) - set(variables))
    if unknown:
        raise ValueError(
            f"dims: {unknown} are no variables of the result, which has {sorted(variables)}"
        )
    for name, given in dims.items():
        shape = tuple(variables[name].shape)
        if isinstance(given, str):
            raise ValueError(f"dims['{name}'] must be a list of names: ['{given}']")
        if len(given) > len(shape):
            raise ValueError(
                f"dims['{name}'] has {len(given)} names, but a value of '{name}' has the shape "
                f"{shape}: give one name for each of its dimensions"
            )
        own = [dim for dim in given if dim is not None]
        for dim in own:
            if dim in reserved or dim in variables or own.count(dim) > 1:
                raise ValueError(
                    f"dims['{name}']: '{dim}' is the name of a variable, of a coordinate or of "
                    f"another dimension: choose another"
                )
            if "/" in dim:
                raise ValueError(
                    f"dims['{name}']: '{dim}' has a slash, and netCDF cannot store it: choose "
                    f"another name"
                )


def _check_coords(coords: Mapping[str, Sequence], sizes: Mapping[str, int]) -> None:
    unknown = sorted(set(coords) - set(sizes))
    if unknown:
        raise ValueError(
            f"coords: {unknown} are no dimensions of the result, which has {sorted(sizes)}: name "
            f"others by dims="
        )
    for dim, labels in coords.items():
        if len(labels) != sizes[dim]:
            raise ValueError(
                f"coords['{dim}'] has {len(labels)} labels, but this dimension has the size "
                f"{sizes[dim]}"
            )
