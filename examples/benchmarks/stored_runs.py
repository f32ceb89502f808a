"""Runs stored one by one: what was interrupted goes on where it stopped, tables come from files.

A *run* is a named function of a seed that returns numbers (and short lists of numbers). Each is
written to ``results/<name>-<seed>.json`` as it finishes, with its wall-clock seconds, and not
computed again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

RESULTS = Path(__file__).parent / "results"

Result = dict[str, Any]
Run = Callable[[], Result]


def collect(results: Path, runs: Mapping[str, Run], seeds: Iterable[int]) -> None:
    """Computes what is not stored yet, seed by seed, so that all runs advance together."""
    import pyro

    results.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for name, run in runs.items():
            path = results / f"{name}-{seed}.json"
            if path.exists():
                continue
            pyro.set_rng_seed(seed)
            start = perf_counter()
            result = {**run(), "seconds": perf_counter() - start}
            path.write_text(json.dumps(result, indent=1) + "\n")
            print(f"{name} seed {seed}: {result['seconds']:.1f} s", flush=True)


def measured(script: Path, arguments: Sequence[str], limit: float | None = None) -> Result:
    """What a script prints, as JSON, in the last line of its output.

    After ``limit`` seconds it is stopped: ``{"stopped": True, "seconds": limit}``.

    Raises:
        RuntimeError: It failed; with the end of what it said.
    """
    command = [sys.executable, str(script), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"stopped": True, "seconds": limit}
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def collect_measured(
    results: Path,
    runs: Mapping[str, Callable[[int], Result]],
    seeds: int,
    told: str,
) -> None:
    """Runs what is not stored yet, seed by seed, so that all advance together.

    Arguments:
        results: Where ``<name>-<seed>.json`` are.
        runs: By name, of a seed.
        seeds: How many.
        told: What is printed of a result, with its fields in braces.
    """
    results.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for name, run in runs.items():
            path = results / f"{name}-{seed}.json"
            if path.exists():
                continue
            result = run(seed)
            path.write_text(json.dumps(result))
            print(f"{name:32s}seed {seed}  {told.format(**result)}", flush=True)


def load(results: Path, name: str) -> list[dict[str, Any]]:
    """What is stored of a run, in order of its seeds."""
    return [json.loads(p.read_text()) for p in sorted(results.glob(f"{name}-[0-9]*.json"))]


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean ± standard deviation over seeds."""
    values = list(values)
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


def markdown(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def options(description: str, results: Path) -> argparse.ArgumentParser:
    """What every script takes that stores runs, prints a table, writes a page and draws."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--image", type=Path, help="only draw the picture, to this file")
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    parser.add_argument("--write", action="store_true", help="write the page in docs as well")
    parser.add_argument("--smoke", action="store_true", help="seconds, for the tests")
    return parser
