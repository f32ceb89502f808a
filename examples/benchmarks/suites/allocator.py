"""The cost of glibc's allocator: training and drawing with its defaults and with blocks kept.

    python examples/benchmarks/suites/allocator.py

glibc maps blocks above a threshold that grows to 32 MB at most, and unmaps them when freed. Tensors
above it, some ten thousand points in hidden layers, are fetched and zeroed page by page at every
operation; those of a training's batches are not. Two environment variables keep them. Pairs of
processes in turn; ratios of wall-clock seconds.

It prints these ratios, and takes minutes.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stored_runs import measured

KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
PARTS = ("training", "drawing")


def run(steps: int) -> dict[str, float]:
    """Seconds to train a flow for phi^4, and to draw 100 points a step from it, all at once."""
    import torch

    from pyro_flowsamp import AutoDeformationFlow, DeformationOptions, FitOptions
    from pyro_flowsamp.lattice import phi4

    torch.manual_seed(0)
    options = FitOptions(
        steps, 600, 2e-2, eval_every=steps, cosine_schedule=True, stop_at_ess=1.0, progress=False
    )
    settings = DeformationOptions(time_kernels=4)
    guide = AutoDeformationFlow(phi4(16, 1.0).target, options=options, settings=settings)
    start = perf_counter()
    guide.fit()
    trained = perf_counter()
    guide.proposal().sample_and_log_prob(100 * steps)
    return {"training": trained - start, "drawing": perf_counter() - trained}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="seconds, for the tests")
    parser.add_argument("--steps", type=int, help="in this process, and print its seconds")
    args = parser.parse_args()
    if args.steps:
        print(json.dumps(run(args.steps)))
        return
    pairs, steps = (1, 2) if args.smoke else (args.pairs, 200)
    ratios: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(pairs):
        for name in KEEP:  # those of the shell are no default
            os.environ.pop(name, None)
        default = measured(Path(__file__), ["--steps", str(steps)])
        os.environ.update(KEEP)
        kept = measured(Path(__file__), ["--steps", str(steps)])
        for part, found in ratios.items():
            found.append(default[part] / kept[part])
            print(f"{part}: default {default[part]:.1f} s, kept {kept[part]:.1f} s", flush=True)
    for part, found in ratios.items():
        shown = f"{min(found):.2f} to {max(found):.2f}"
        print(f"{part}: ratio {statistics.median(found):.2f}, from {shown}")


if __name__ == "__main__":
    main()
