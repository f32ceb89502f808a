"""Stored runs: a study continues after an interruption, and its tables are made from the file.

A *run* is a named function that returns numbers, and lists of numbers, for one seed. The runs of a
study are the lines of one file, ``results/<study>.jsonl``. A line is a JSON object with the name of
the run, its seed and its results. It is appended as soon as the run has finished, and a run that is
stored is not computed again. Several processes may work on one study at the same time.
"""

import argparse
import fcntl
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
DOCS = Path(__file__).resolve().parents[2] / "docs"

Result = dict[str, Any]
Run = Callable[[], Result]
Key = tuple[str, int]  #: name and seed


# ---- the file -----------------------------------------------------------------------------------


def stored(store: Path) -> dict[Key, Result]:
    """Returns every run of a study by name and seed; none where the file does not exist.

    A process that is killed while it writes leaves a line without an end. This line is ignored, and
    a sentence on the error output says so.
    """
    if not store.exists():
        return {}
    with store.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return _parsed(file.read(), store)


def _parsed(content: bytes, store: Path) -> dict[Key, Result]:
    found: dict[Key, Result] = {}
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        try:
            result = json.loads(line)
        except ValueError:  # it covers invalid UTF-8 too
            if line.endswith(b"\n"):
                raise ValueError(f"line {number} of {store} is not JSON") from None
            _tell(f"The last line of {store} is incomplete. It is ignored, and its run is missing.")
            break
        found.setdefault((result.pop("name"), result.pop("seed")), result)
    return found


@cache
def _tell(sentence: str) -> None:
    """Prints a sentence once."""
    print(sentence, file=sys.stderr)


def append(store: Path, name: str, seed: int, result: Result) -> None:
    """Stores a run, unless another process has stored it in the meantime.

    The file is locked while this looks at it, and the line is written at once. An incomplete last
    line is removed first.
    """
    line = json.dumps({"name": name, "seed": seed, **result}, ensure_ascii=False).encode() + b"\n"
    store.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(store, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # closing the file releases the lock
        content = store.read_bytes()
        if (name, seed) in _parsed(content, store):
            return
        last = content[content.rfind(b"\n") + 1 :]
        if last and _is_json(last):
            line = b"\n" + line
        elif last:
            os.ftruncate(descriptor, len(content) - len(last))
        if os.write(descriptor, line) != len(line):
            raise OSError(f"{store} has not taken the whole line of {name}, seed {seed}")
    finally:
        os.close(descriptor)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def names(store: Path) -> list[str]:
    """Returns the names of the stored runs, sorted."""
    return sorted({name for name, _ in stored(store)})


def load(store: Path, name: str) -> list[Result]:
    """Returns the stored results of a run, in the order of its seeds."""
    found = {seed: result for (run, seed), result in stored(store).items() if run == name}
    return [found[seed] for seed in sorted(found)]


# ---- running what is missing --------------------------------------------------------------------


def missing(store: Path, names: Iterable[str], seeds: Iterable[int]) -> Iterator[Key]:
    """Yields what is not stored yet, seed by seed, so that all runs advance together."""
    names = list(names)
    for seed in seeds:
        for name in names:
            if (name, seed) not in stored(store):
                yield name, seed


def collect(store: Path, runs: Mapping[str, Run], seeds: Iterable[int]) -> None:
    """Computes what is not stored yet in this process, and stores the wall-clock seconds too."""
    import pyro

    for name, seed in missing(store, runs, seeds):
        pyro.set_rng_seed(seed)
        start = perf_counter()
        result = {**runs[name](), "seconds": perf_counter() - start}
        append(store, name, seed, result)
        print(f"{name} seed {seed}: {result['seconds']:.1f} s", flush=True)


def collect_measured(
    store: Path, runs: Mapping[str, Callable[[int], Result]], seeds: Iterable[int], text: str
) -> None:
    """Computes what is not stored yet by functions of the seed, which measure in a new process.

    Arguments:
        store: The file of the study.
        runs: Functions of the seed, by name; see :func:`measured`.
        seeds: The seeds.
        text: The text that is printed for a result, with its fields in braces.
    """
    for name, seed in missing(store, runs, seeds):
        result = runs[name](seed)
        append(store, name, seed, result)
        print(f"{name:32s}seed {seed}  {text.format(**result)}", flush=True)


def has_package(python: str, package: str) -> bool:
    """Whether an interpreter can find a package."""
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
    try:
        return subprocess.run([python, "-c", code], capture_output=True).returncode == 0
    except OSError:  # there is no such interpreter
        return False


def _limit_time(seconds: int) -> None:
    """Makes the system end this process, with SIGXCPU, after so much processor time."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))


def measured(
    script: Path,
    arguments: Sequence[str],
    limit: float | None = None,
    python: str = sys.executable,
    processor_limit: int | None = None,
    launcher: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Result:
    """Runs a script and returns the JSON object in the last line of its output.

    After ``limit`` seconds it is stopped: ``{"stopped": True, "seconds": limit}``. So it is after
    ``processor_limit`` seconds of processor time, which does not depend on how busy the machine is.
    It is run by the interpreter ``python``, with the arguments ``launcher`` before the script, such
    as those of torchrun, and with the variables of ``environment`` beside those that are set.

    Raises:
        RuntimeError: The script failed. The message has the end of its error output.
    """
    command = [python, *launcher, str(script), *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=limit,
            env={**os.environ, **(environment or {})},
            preexec_fn=None if processor_limit is None else partial(_limit_time, processor_limit),
        )
    except subprocess.TimeoutExpired:
        return {"stopped": True, "seconds": limit}
    if done.returncode == -signal.SIGXCPU:
        return {"stopped": True, "seconds": processor_limit}
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- tables and the command line ----------------------------------------------------------------


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean ± standard deviation over seeds."""
    values = list(values)
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


def markdown(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Returns a table in Markdown."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def add_options(parser: argparse.ArgumentParser, smoke: str = "short runs, for the tests") -> None:
    """Adds the options of a script that stores runs and writes a page.

    Arguments:
        parser: The parser.
        smoke: The help of ``--smoke``.
    """
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the stored runs")
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    parser.add_argument("--write", action="store_true", help="print it, and write its page in docs")
    parser.add_argument("--smoke", action="store_true", help=smoke)


def options(description: str) -> argparse.ArgumentParser:
    """Returns a parser with the options of a script that stores runs, writes a page and draws."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--image", type=Path, help="only draw the picture, to this file")
    add_options(parser)
    return parser
