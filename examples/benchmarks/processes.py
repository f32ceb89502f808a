"""Measurements in processes of their own, one at a time, stored one by one."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["collect", "measured"]

Result = dict[str, Any]


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


def collect(
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
