r"""Export of draws to ArviZ 0.2x (``InferenceData``) and 1.x (``DataTree``), by the same call.

Each source is turned into constrained draws, statistics of each draw, and the target that they were
drawn from. The target has the model, from which further groups are computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..target.context import split_by_context
from ..target.density import Target
from ..target.quantities import ModelVariables, model_variables
from ..target.site import Values
from .dimensions import RESERVED, dimensions_of, free_names, variables_of
from .groups import ModelGroups, check_groups, constant_data
from .sources import ExportedDraws, draws_of, gathered

__all__ = ["to_arviz"]


def to_arviz(
    source: Any,
    *args: Any,
    log_likelihood: bool = True,
    groups: Sequence[str] = (),
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence] | None = None,
    num_samples: int = 1000,
    **kwargs: Any,
) -> Any:
    r"""Turns draws into an ArviZ object: ``InferenceData`` in ArviZ 0.2x, ``DataTree`` in 1.x.

    The groups, for C chains with D draws each, are:

    - ``posterior``: constrained draws ``(C, D, ...)`` of the sites that were saved, and of the
      sites of :func:`pyro.deterministic`. Its coordinate ``superchain`` has one number for all
      chains that began at the same point;
    - ``sample_stats`` ``(C, D)``: ``lp`` (log density of the unconstrained draw), ``log_weight``
      (:math:`\log\tilde p - \log q`), ``accepted``, ``acceptance_rate``, ``diverging``, and
      ``step_size`` if the kernel has one. A guide has ``lp``, ``log_q`` and ``log_weight``. Pyro's
      own kernels have only ``diverging`` and ``acceptance_rate``, the latter as the share of moves
      that the chain accepted, the same for each draw;
    - ``log_likelihood``: of each observation, ``(C, D, *batch_shape)``, without ``poutine.scale``;
    - ``observed_data``, and ``constant_data``: the other tensors among the model's arguments.

    ``groups`` asks for more of them:

    - ``log_prior``: log prior density of each latent site, ``(C, D, *batch_shape)``, of its
      constrained value and without ``poutine.scale``;
    - ``unconstrained_posterior``: the draws in :math:`\mathbb R^d`, by site;
    - ``posterior_predictive``: new data ``(C, D, ...)``, one set for each draw;
    - ``prior`` and ``prior_predictive``: draws ``(1, num_samples, ...)`` of all sites given
      nothing. Factors are ignored.

    New data and draws from the prior use torch's random numbers (:func:`pyro.set_rng_seed`). They
    are made by ``torch.vmap``, or one by one where it cannot sample the model, which is slow.

    What is computed from the model needs draws of every latent site. If a site was not saved, if
    the group would have more than 5e8 numbers, or if it depends on discrete sites, which are summed
    out, it is left out with a warning.

    A dimension inside a plate has the name of the plate. This name is not used where a variable has
    it, or where plates of this name have two sizes. A site that is called "chain", "draw" or
    "superchain" gets an underscore at the end of its name, and "part/x" becomes "part.x", because
    ArviZ 1.x and netCDF read a slash as a path; both with a warning.

    A run at K contexts has C/K chains for each. Its variables have a dimension for the context
    after chain and draw, ``(C/K, D, K, ...)``. If the context is one number this dimension has the
    name of the model argument, and its values as coordinates. Otherwise it is called "context", and
    ``constant_data`` lists the values. Only ``posterior``, without deterministic sites, and
    ``sample_stats`` are made.

    Arguments:
        source: A :class:`~pyro_flowsamp.VectorizedMCMC` or a :class:`pyro.infer.MCMC`, with any
            kernel, after ``run``; or a trained guide.
        args, kwargs: Arguments of the model, for a guide; a run has stored its own.
        log_likelihood: Whether to make that group.
        groups: Names of further groups to make.
        dims: Names of the dimensions after chain and draw, by variable; None in place of a name
            leaves a dimension as it is.
        coords: Labels along named dimensions, those of plates included.
        num_samples: Draws of a guide, in one chain (at each context), and draws from the prior.

    Returns:
        The ArviZ object. Of a run that was shared out to workers rank 0 returns the draws of all
        chains, and the other ranks return None; all must make this call.

    Raises:
        ValueError: The source is none of these, has no draws yet or is untrained, or a run is
            given model arguments; a name in ``groups``, ``dims`` or ``coords`` is unknown or taken,
            or there are too many names or labels, or a wrong number of them; ``groups`` are asked
            for at several contexts.

    Warns:
        UserWarning: A group was left out, or a site got another name.

    Example::

        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_flowsamp import IMH, AutoFlow, FitOptions, VectorizedMCMC, to_arviz
        >>> _ = pyro.set_rng_seed(0)
        >>> def model(error, y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.deterministic("double", 2 * mean)
        ...     with pyro.plate("person", 2):
        ...         pyro.sample("y", dist.Normal(mean, error), obs=y)
        >>> guide = AutoFlow(model, flow="gaussian", options=FitOptions(progress=False))
        >>> run = VectorizedMCMC(IMH(model, guide=guide), 50, 10, 20, disable_progbar=True)
        >>> run.run(torch.tensor([0.5, 1.0]), torch.ones(2))
        >>> data = to_arviz(run, groups=["posterior_predictive"], coords={"person": ["A", "B"]})
        >>> list(data["posterior"].data_vars), list(data["constant_data"].data_vars)
        (['mean', 'double'], ['error'])
        >>> dict(data["posterior_predictive"].sizes)
        {'chain': 20, 'draw': 50, 'person': 2}
        >>> data["observed_data"]["y"].sel(person="A").item()
        1.0
    """
    check_groups(groups)
    if source is not None and (source := gathered(source)) is None:
        return None
    drawn = draws_of(source, args, kwargs, num_samples)
    target = drawn.target
    if target is not None and target.contexts is not None:
        if groups:
            raise ValueError(
                f"groups {list(groups)} cannot be made at {len(target.contexts)} contexts: run the "
                f"kernel at one of them"
            )
        return _by_context(drawn, target, dims, coords)
    found = _variables(drawn)
    constant = {} if target is None else constant_data(target, found.data)
    variables = {**variables_of(constant, 0), **found.all}
    renamed = free_names(variables)
    dimensions = dimensions_of(
        {renamed.get(name, name): v for name, v in variables.items()},
        {renamed.get(name, name): v for name, v in (dims or {}).items()},
        coords,
    )
    made: dict[str, Values] = {"posterior": drawn.samples, "sample_stats": drawn.statistics}
    made |= {"observed_data": found.data, "constant_data": constant}
    problems = [
        f"'{old}' {_reason(old)}: this site is called '{new}' in the result"
        for old, new in renamed.items()
    ]
    if target is None:
        problems += [f"no {name} group: the model is unknown" for name in groups]
    else:
        more = ModelGroups(drawn, found)
        made["posterior"] = {**drawn.samples, **more.deterministic()}
        if log_likelihood and found.observed:
            made["log_likelihood"] = more.log_likelihood()
        made |= more.requested(groups, num_samples)
        problems += more.left_out
    for problem in problems:
        warnings.warn(problem, stacklevel=2)
    arrays = {
        group: {renamed.get(name, name): _array(value) for name, value in values.items()}
        for group, values in made.items()
        if values
    }
    names = {
        group: {
            name: dimensions.of(name, value.shape[0 if group.endswith("_data") else 2 :])
            for name, value in values.items()
        }
        for group, values in arrays.items()
    }
    return _convert(arrays, names, coords or {}, drawn.superchains)


def _variables(drawn: ExportedDraws) -> ModelVariables:
    """The sites of the model at a draw; those of the draws where the model is unknown."""
    if drawn.target is None:
        return ModelVariables(variables_of(drawn.samples), {}, {}, {}, {}, [])
    sites = [site.name for site in drawn.target.sites]
    point = None
    if set(sites) <= set(drawn.samples):
        point = {name: drawn.samples[name][0, 0] for name in sites}
    return model_variables(drawn.target, point)


def _by_context(
    drawn: ExportedDraws, target: Target, dims: Mapping | None, coords: Mapping | None
) -> Any:
    """Exports draws of chains at K contexts, chain i at that of i mod K, with a dimension for K."""
    contexts = target.contexts
    assert contexts is not None
    num, single = len(contexts), contexts.shape[1] == 1
    name = target.context_names[0] if single else "context"
    rows = [
        [float(f"{v:.7g}") for v in row] for row in contexts.tolist()
    ]  # without float32's error
    values = [row[0] for row in rows] if single else list(range(num))
    variables, reserved = variables_of(drawn.samples), (*RESERVED, name)
    renamed = free_names(variables, reserved)
    for old, new in renamed.items():
        warnings.warn(f"'{old}' {_reason(old)}: this site is '{new}'", stacklevel=3)
    dimensions = dimensions_of(
        {renamed.get(key, key): v for key, v in variables.items()},
        {renamed.get(key, key): v for key, v in (dims or {}).items()},
        coords,
        reserved,
    )

    def split(group: Values) -> dict[str, Any]:
        parts = {k: split_by_context(torch.as_tensor(v), num) for k, v in group.items()}
        return {renamed.get(key, key): _array(value) for key, value in parts.items()}

    groups = {"posterior": split(drawn.samples), "sample_stats": split(drawn.statistics)}
    names = {
        group: {key: [name, *dimensions.of(key, v.shape[3:])] for key, v in arrays.items()}
        for group, arrays in groups.items()
    }
    if not single:
        groups["constant_data"] = {"context_values": _array(torch.tensor(rows, dtype=torch.double))}
        names["constant_data"] = {"context_values": [name, "context_values_dim_0"]}
    return _convert(groups, names, {**(coords or {}), name: values}, None)


def _reason(name: str) -> str:
    """Why a site cannot keep its name."""
    return "has a slash, as paths have" if "/" in name else "is the name of a coordinate"


def _array(value: Any) -> Any:
    return torch.as_tensor(value).detach().cpu().numpy()


def _convert(
    groups: Mapping[str, Mapping[str, Any]],
    dims: Mapping[str, Mapping[str, list[str]]],
    coords: Mapping[str, Sequence],
    superchains: Tensor | None,
) -> Any:
    """Makes the ArviZ object, whose type differs between its versions.

    Arguments:
        groups: Arrays by group and variable.
        dims: Names of their dimensions after chain and draw.
        coords: Labels along dimensions.
        superchains: Numbers of the starting points of chains, or None.
    """
    import arviz as az  # here, because both are slow to import, and the first warns
    import xarray

    old = az.__version__.startswith("0.")  # 1.x has shims for names of 0.x
    constant: dict[str, Any] = {"default_dims" if old else "sample_dims": []}
    with warnings.catch_warnings():  # more chains than draws are intended here
        warnings.filterwarnings("ignore", "(More|Found) chain")
        made = {
            group: az.dict_to_dataset(
                dict(arrays),
                dims=dict(dims[group]),
                coords=dict(coords),
                **(constant if group.endswith("_data") else {}),
            )
            for group, arrays in groups.items()
        }
    if superchains is not None:
        labels = superchains.cpu().numpy()
        made["posterior"] = made["posterior"].assign_coords(superchain=("chain", labels))
    return az.InferenceData(**made) if old else xarray.DataTree.from_dict(made)
