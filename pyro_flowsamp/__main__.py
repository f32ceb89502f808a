"""The command line: ``python -m pyro_flowsamp report|selftest|info``."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .diagnostics import diagnose
from .reporting import report
from .selftest import run_self_test
from .versions import versions

__all__ = ["main"]


DTYPES = {"float32": torch.float32, "float64": torch.float64}
OPTIONAL = {
    "report": ("jinja2", "matplotlib"),
    "reading .nc files": ("h5netcdf",),
}  #: packages that parts of the package need, by part


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, and returns its exit code: 0 if all is well, 1 if not, 2 for wrong usage.

    Arguments:
        arguments: The arguments; by default those of the process.

    Example::

        >>> main(["info"])  # doctest: +ELLIPSIS
        python            3...
        0
    """
    parser = argparse.ArgumentParser(
        prog="python -m pyro_flowsamp", description="Reports on results, and a test of the kernels."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for add in (_report_command, _selftest_command, _info_command):
        add(commands)
    chosen = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = chosen.run
    try:
        return run(chosen)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"{parser.prog} {chosen.command}: {error}", file=sys.stderr)
        return 1


# ---- report -------------------------------------------------------------------------------------
def _report_command(commands: Any) -> None:
    command = commands.add_parser(
        "report",
        help="write a report on a result as one HTML file",
        description="Writes a report on a result as one HTML file. docs/report.md explains it.",
    )
    command.add_argument("result", type=Path, help="a file written by to_netcdf() of a result")
    command.add_argument("-o", "--output", type=Path, help="by default the result's name, .html")
    command.add_argument("--proposals", type=Path, help="a file of to_arviz(guide): flow's draws")
    command.add_argument("--title", help="the heading; by default the result's name")
    command.add_argument("--var", action="append", metavar="SITE", help="show only these sites")
    command.set_defaults(run=_report)


def _report(chosen: argparse.Namespace) -> int:
    path = chosen.output or chosen.result.with_suffix(".html")
    if path.resolve() == chosen.result.resolve():
        raise ValueError(f"the report would replace the result {path}: give another name by -o")
    result = _read(chosen.result)
    made = report(
        result,
        path,
        diagnosis=diagnose(result),
        proposals=None if chosen.proposals is None else _read(chosen.proposals),
        var_names=chosen.var,
        title=chosen.title or chosen.result.stem,
    )
    print(made)
    return 0


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ announces its new version
        import arviz as az
        import xarray as xr

        read = getattr(az, "from_netcdf", xr.open_datatree)  # ArviZ 1.x has trees of xarray
        try:
            return read(path)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} cannot be read as a result: write it by to_netcdf() of an ArviZ object"
            ) from error


# ---- selftest -----------------------------------------------------------------------------------
def _selftest_command(commands: Any) -> None:
    command = commands.add_parser(
        "selftest",
        help="test whether the kernels are exact on this machine",
        description="Draws from densities of known moments by each kernel, with flows that are bad "
        "on purpose. It takes one or two minutes on one core. The exit code is 0 if all pass.",
    )
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    command.add_argument("--dtype", default="float32", choices=DTYPES)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=_selftest)


def _selftest(chosen: argparse.Namespace) -> int:
    try:
        torch.zeros((), device=chosen.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device {chosen.device} cannot be used: {reason} See the devices of 'info'."
        ) from error
    passed, count = 0, 0
    for check in run_self_test(chosen.device, DTYPES[chosen.dtype], chosen.seed):
        words = (
            f"largest |z| {check.score:.1f} of {check.moments} moments, "
            f"acceptance {check.acceptance:.0%}"
        )
        name = f"{check.kernel} on {check.density}"
        print(f"{'ok  ' if check.ok else 'FAIL'} {name:<58} {words}", flush=True)
        passed, count = passed + check.ok, count + 1
    print(f"{passed} of {count} passed")
    if passed < count:
        print(
            "Draws of a kernel that has failed cannot be trusted here. Run again with another "
            "--seed, with --dtype float64 and on --device cpu to see what it depends on.",
            file=sys.stderr,
        )
    return 0 if passed == count else 1


# ---- info ---------------------------------------------------------------------------------------
def _info_command(commands: Any) -> None:
    command = commands.add_parser(
        "info", help="print versions, devices and threads", description="Prints versions, devices "
        "and threads, for a report of a problem.",
    )  # fmt: skip
    command.set_defaults(run=_info)


def _info(chosen: argparse.Namespace) -> int:
    found = dict(versions())
    found["devices"] = ", ".join(_devices())
    found["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    found["default dtype"] = str(torch.get_default_dtype()).removeprefix("torch.")
    for part, packages in OPTIONAL.items():
        missing = [name for name in packages if not _installed(name)]
        found[part] = f"needs {', '.join(missing)}" if missing else "installed"
    for name, value in found.items():
        print(f"{name:<18}{value}")
    return 0


def _devices() -> list[str]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count)]
    if torch.backends.mps.is_available():
        names.append("mps")
    return ["cpu", *names]


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
