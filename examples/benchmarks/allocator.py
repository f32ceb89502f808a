"""What glibc's allocator costs: the same training by its defaults, and with large blocks kept.

    python examples/benchmarks/allocator.py

By default glibc gives freed memory back to the system, unmapping large blocks and trimming its
heap: temporaries of some thousand points are fetched, and zeroed page by page, at every step. Two
environment variables keep them. Pairs of processes in turn; the ratio of wall-clock seconds, and
what part of them went to the system.
"""

import argparse
import json
import os
import statistics
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from time import perf_counter

from processes import measured

KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


def train(steps: int) -> dict[str, float]:
    """A flow for phi^4 on 16 sites, from its annealed explorers to its last check."""
    import torch

    from pyro_flowsamp import AutoDeformationFlow, FitOptions
    from pyro_flowsamp.targets import phi4

    torch.manual_seed(0)
    options = FitOptions(steps, 600, 2e-2, window=steps, anneal=True, enough=1.0, progress=False)
    guide = AutoDeformationFlow(phi4(16, 1.0).target, hidden_features=128, options=options)
    start, before = perf_counter(), getrusage(RUSAGE_SELF).ru_stime
    guide.fit()
    return {"seconds": perf_counter() - start, "system": getrusage(RUSAGE_SELF).ru_stime - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="seconds, for the tests")
    parser.add_argument("--steps", type=int, help="in this process, and print its seconds")
    args = parser.parse_args()
    if args.steps:
        print(json.dumps(train(args.steps)))
        return
    pairs, steps = (1, 2) if args.smoke else (args.pairs, 300)
    arguments, ratios = ["--steps", str(steps)], []
    for name in KEEP:  # those of the shell are no default
        os.environ.pop(name, None)
    for _ in range(pairs):
        default = measured(Path(__file__), arguments)
        os.environ.update(KEEP)
        kept = measured(Path(__file__), arguments)
        for name in KEEP:
            del os.environ[name]
        ratios.append(default["seconds"] / kept["seconds"])
        shown = [f"{r['seconds']:.1f} s, {r['system'] / r['seconds']:.0%}" for r in (default, kept)]
        print(f"default {shown[0]} in the system; kept {shown[1]}: {ratios[-1]:.2f}", flush=True)
    print(f"ratio {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
