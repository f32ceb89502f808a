"""A report on a result as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module, resources
from os import PathLike
from pathlib import Path
from typing import Any

from ..export import to_arviz
from ..provenance import add_record
from ..versions import versions
from .checks import judge
from .contents import sections
from .options import ReportOptions
from .source import read_source

__all__ = ["report"]


NEEDED = ("jinja2", "matplotlib")  #: packages of the extra "report"


def report(
    result: Any,
    path: str | PathLike = "report.html",
    *,
    diagnosis: Any = None,
    proposals: Any = None,
    var_names: Sequence[str] | None = None,
    title: str = "Posterior draws",
    options: ReportOptions = ReportOptions(),
) -> Path:
    r"""Writes a report on a result as one HTML file, which needs nothing else and no network.

    It begins with the verdict: whether the draws can be used, what is wrong, and what to do next.
    Then come the checks behind it; a summary; R-hat and effective sample sizes; ranks and traces of
    the worst parameters; pairs of parameters with the flow's own draws beside the exact ones; the
    tails of the weights; acceptance; the training of the flow; modes; the evidence; what
    :func:`~pyro_flowsamp.sample` tried and why; versions, seed and counts of evaluations. What a
    result does not have, the section says. ``docs/report.md`` explains how to read it.

    Tables and pictures show the worst parameters, and pictures thinned draws; captions say so. The
    same result gives the same file.

    Arguments:
        result: An ArviZ object of :func:`~pyro_flowsamp.sample` or
            :func:`~pyro_flowsamp.to_arviz`, ``InferenceData`` or ``DataTree``; or a
            :class:`~pyro_flowsamp.VectorizedMCMC` after its run, which still has its flow.
        path: The file; it is replaced if there is one.
        diagnosis: A diagnosis of the result, an object with a list ``checks``, in place of the
            report's own checks and of the verdict of ``sample()``.
        proposals: An ArviZ object of draws of the flow, as ``to_arviz(guide, ...)``; by default
            those that the result has.
        var_names: Sites to show; all by default.
        title: The heading of the page.
        options: Sizes and bounds.

    Returns:
        The path of the file.

    Raises:
        ImportError: Jinja2 or Matplotlib is missing; they come with the extra "report".
        ValueError: The result has no posterior draws, or a name is not a site.
        FileNotFoundError: The folder of ``path`` does not exist.

    Example::

        >>> import pathlib, tempfile
        >>> import pyro_flowsamp as pf
        >>> target = pf.Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> options = pf.FitOptions(progress=False)
        >>> guide = pf.AutoFlow(target, flow="gaussian", options=options)
        >>> run = pf.VectorizedMCMC(pf.IMH(guide=guide), 50, 20, 100, disable_progbar=True)
        >>> run.run()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pf.report(run, pathlib.Path(folder) / "report.html", title="Two normals")
        ...     text = path.read_text(encoding="utf-8")
        >>> "Two normals" in text, "No problem was seen" in text
        (True, True)
    """
    _check_installed()
    target = Path(path)
    if not target.parent.exists():
        raise FileNotFoundError(f"the folder {target.parent} of the report does not exist: make it")
    if hasattr(result, "kernel") and hasattr(result, "get_samples"):
        run, result = result, to_arviz(result, log_likelihood=False)
        if hasattr(run, "unconstrained"):
            add_record(result, run)
    source = read_source(result, proposals, var_names, options)
    verdict = judge(source, diagnosis)
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = resources.files(__package__).joinpath("template.html").read_text(encoding="utf-8")
    page = environment.from_string(text).render(
        title=title,
        verdict=verdict,
        sections=list(sections(source, verdict)),
        chains=source.num_chains,
        draws=source.num_draws,
        parameters=len(source.names) + source.left_out,
        method=source.attrs.get("method") or source.attrs.get("kernel"),
        version=versions()["pyro_flowsamp"],
    )
    target.write_text(page, encoding="utf-8")
    return target


def _check_installed() -> None:
    missing = []
    for name in NEEDED:
        try:
            import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ImportError(
            f"a report needs {' and '.join(missing)}: pip install 'pyro_flowsamp[report]'"
        )
