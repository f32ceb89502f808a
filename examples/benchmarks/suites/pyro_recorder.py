"""A plugin of pytest that selects Pyro's tests, limits their time and records what happens.

::

    python pyro_recorder.py TESTFILE OUT SECONDS [--own] [--only FILE]

It is started in a folder that holds Pyro's tests, and appends a line of JSON to ``OUT`` whenever a
test begins and when it has ended. The last line says that all have run. With ``--own`` nothing is
replaced. ``--only`` names a file with the ids of the tests to run.
"""

import argparse
import functools
import inspect
import json
import signal
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from suites import pyro_replacements
from suites.pyro_reasons import LEFT_OUT, matches

#: Parameters of tests that the replacements ignore. Tests that differ in these only are run once.
IGNORED = {
    "adapt_mass_matrix",
    "adapt_step_size",
    "full_mass",
    "init_loc_fn",
    "init_scale",
    "jit",
    "jit_compile",
    "step_size",
    "trajectory_length",
    "use_multinomial_sampling",
}
#: Tests that trace their potential themselves, so that ``jit`` has a meaning.
TRACED = {"test_unnormalized_normal", "test_singular_matrix_catch"}
#: Warnings that are no failures: what this package says it does, and what Pyro says of any guide
#: that has a module of PyTorch, once its parameters are held fixed.
WARNINGS = (
    "ignore:the density is evaluated point by point:UserWarning",
    "ignore:the density does not depend on:UserWarning",
    "ignore:.*was not registered in the param store:UserWarning",
)
PATIENCE = 10.0  #: how many times longer a test may wait than compute
LONGEST = 300  #: characters of an error that are stored
NAMES = {replacement.__name__ for replacement in pyro_replacements.REPLACEMENTS}


# ---- which tests use what is replaced ------------------------------------------------------------


def uses_replaced(item: Any) -> bool:
    """Whether a test uses a class that is replaced, by its parameters or by its code.

    A parameter that is a guide or a kernel, or a function that makes a guide, decides. The code of
    the test counts where there is none.
    """
    values = getattr(getattr(item, "callspec", None), "params", {}).values()
    functions = [_unwrapped(v) for v in values]
    decisive = [v for v in functions if isinstance(v, type | types.FunctionType) and _is_guide(v)]
    if decisive:
        return any(_mentions(v, set()) for v in decisive)
    return _mentions(item.function, set())


def _unwrapped(value: Any) -> Any:
    return value.func if isinstance(value, functools.partial) else value


def _is_guide(value: Any) -> bool:
    name = value.__name__
    return name in NAMES or "auto" in name.lower() or name in ("GuideX", "<lambda>")


def _mentions(value: Any, seen: set) -> bool:
    if isinstance(value, type):
        return any(base.__name__ in NAMES for base in value.__mro__)
    if not isinstance(value, types.FunctionType) or value in seen:
        return False
    seen.add(value)
    names = set(_names(inspect.unwrap(value).__code__))
    if names & NAMES:
        return True
    others = [value.__globals__.get(name) for name in names]
    return any(
        _mentions(other, seen)
        for other in others
        if isinstance(other, types.FunctionType) and other.__module__ == value.__module__
    )


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


# ---- running them --------------------------------------------------------------------------------


class TimeLimitError(Exception):
    """A test ran longer than its limit."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises :class:`TimeLimitError` in a block that takes more seconds of the processor.

    A block that waits, which takes none, is stopped after :data:`PATIENCE` times as long.
    """

    def stop(*_: Any) -> None:
        raise TimeLimitError(f"stopped after {seconds:.0f} s")

    timers = {
        signal.SIGPROF: (signal.ITIMER_PROF, seconds),
        signal.SIGALRM: (signal.ITIMER_REAL, PATIENCE * seconds),
    }
    before = {number: signal.signal(number, stop) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


class Recorder:
    """Selects tests, limits them, and writes their results.

    Arguments:
        out: The file of results.
        seconds: The limit of one test.
        only: The ids of the tests to run; None for all that use what is replaced.
        skip: The ids of tests that are not to be run.
    """

    def __init__(self, out: Path, seconds: float, only: set | None, skip: set) -> None:
        self.out, self.seconds, self.only, self.skip = out, seconds, only, skip
        self.made, self.start = 0, 0.0
        self.seen: set[tuple[str, ...]] = set()

    def chosen(self, item: Any) -> bool:
        """Whether a test says something of this package that none before it says."""
        params = getattr(getattr(item, "callspec", None), "params", {})
        ignored = set() if item.originalname in TRACED else IGNORED
        key = [item.nodeid.split("[")[0]]
        key += [f"{name}={params[name]!r}" for name in sorted(params) if name not in ignored]
        left_out = any(matches(item.nodeid, pattern) for pattern in LEFT_OUT)
        if left_out or tuple(key) in self.seen or not uses_replaced(item):
            return False
        self.seen.add(tuple(key))
        return True

    def pytest_configure(self, config: Any) -> None:
        for warning in WARNINGS:
            config.addinivalue_line("filterwarnings", warning)

    def write(self, **line: Any) -> None:
        with self.out.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: Any, items: list) -> None:
        chosen = [item for item in items if self.chosen(item)]
        if self.only is not None:
            chosen = [item for item in items if item.nodeid in self.only]
        kept = [item for item in chosen if item.nodeid not in self.skip]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        for item in kept if self.only is None else ():
            item.own_markers = [m for m in item.own_markers if not _is_slow(m)]
        items[:] = kept

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        self.write(name=item.nodeid, outcome="started")
        self.made, self.start = pyro_replacements.made, process_time()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Iterator[None]:
        with limited(self.seconds):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Any:
        report = yield
        if report.when == "call" or report.outcome != "passed":
            outcome = report.outcome
            if hasattr(report, "wasxfail"):
                outcome = "expected to fail"
            elif call.excinfo is not None and call.excinfo.errisinstance(TimeLimitError):
                outcome = "stopped"
            self.write(
                name=item.nodeid,
                outcome=outcome,
                error=_last_line(call.excinfo) if report.outcome != "passed" else "",
                made=pyro_replacements.made - self.made,
                seconds=round(process_time() - self.start, 2),
            )
        return report


def _is_slow(mark: Any) -> bool:
    return mark.name == "skip" and str(mark.kwargs.get("reason", "")).startswith("Slow test")


def _last_line(excinfo: Any) -> str:
    if excinfo is None:
        return ""
    lines = str(excinfo.value).strip().splitlines() or [""]
    return f"{excinfo.typename}: {lines[-1].strip()}"[:LONGEST]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("out", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--own", action="store_true", help="with Pyro's own classes")
    parser.add_argument("--only", type=Path, help="a JSON list of the tests to run")
    parser.add_argument("--skip", type=Path, help="a JSON list of the tests not to run")
    args = parser.parse_args()
    only = set(json.loads(args.only.read_text())) if args.only else None
    skip = set(json.loads(args.skip.read_text())) if args.skip else set()
    if not args.own:
        pyro_replacements.replace()
    recorder = Recorder(args.out, args.seconds, only, skip)
    command = [args.file, "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider"]
    pytest.main(command, [recorder])
    recorder.write(name="", outcome="finished")


if __name__ == "__main__":
    main()
