"""Do Pyro's own tests pass with the kernels and guides of this package?

::

    python examples/benchmarks/suites/pyro_tests.py --pyro PATH        # what is missing, the table
    python examples/benchmarks/suites/pyro_tests.py --table            # the table of stored runs
    python examples/benchmarks/suites/pyro_tests.py --table --write    # and docs/pyro_tests.md
    python examples/benchmarks/suites/pyro_tests.py --judge            # after a change of reasons
    python examples/benchmarks/suites/pyro_tests.py --pyro PATH --again    # our failures once more

``PATH`` is a checkout of Pyro, of the version that is installed. Its tests run with the installed
Pyro, in which ``pyro_replacements.py`` puts this package's classes in the place of Pyro's. A test
that uses none of them is not run, nor one that differs from another in arguments only that have no
meaning here, such as ``jit``. A failing test is run again with Pyro's own classes. The fault of a
failure is

- *theirs* if it fails with Pyro's own classes too,
- *by design* if ``pyro_reasons.py`` gives a reason for this test and this error,
- *ours* otherwise.

Each test file runs in a process of its own, and each test is stopped after two minutes of
the processor. Without a
checkout the script says so and ends with exit code 2.

The stored runs took a quarter of an hour. The table counts, for each test file, the tests that
passed, failed by whose fault, or were skipped.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stored_runs import DOCS, RESULTS, append, load, markdown, names, stored
from suites.pyro_reasons import LEFT_OUT, reason

STUDY = "pyro_tests.jsonl"  #: the file of its stored runs
RECORDER = Path(__file__).with_name("pyro_recorder.py")
LIMIT = 120.0  #: seconds of the processor after which a test is stopped
#: Files of tests, in a checkout of Pyro.
FILES = (
    "tests/infer/mcmc/test_hmc.py",
    "tests/infer/mcmc/test_nuts.py",
    "tests/infer/mcmc/test_mcmc_api.py",
    "tests/infer/mcmc/test_mcmc_util.py",
    "tests/infer/mcmc/test_valid_models.py",
    "tests/infer/test_predictive.py",
    "tests/infer/test_autoguide.py",
    "tests/infer/autoguide/test_inference.py",
    "tests/infer/reparam/test_neutra.py",
)
WELL = ("passed", "skipped", "expected to fail")  #: outcomes that are no failures
FAULTS = ("ours", "by design", "theirs")

#: A checkout for ``--smoke``: one test that passes, one that fails by design and one that is ours.
SMOKE_TESTS = """
import pyro
import pyro.distributions as dist
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO


def model():
    pyro.sample("x", dist.Normal(0.0, 1.0))


def test_nuts():
    mcmc = MCMC(NUTS(model), 3, 2, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["x"].shape == (3,)


def test_mass_matrix():
    NUTS(model).inverse_mass_matrix


def test_both_fail():
    assert NUTS is None


def test_none_of_ours():
    assert SVI is not None
"""


# ---- running -------------------------------------------------------------------------------------


def record(folder: Path, file: str, seconds: float, **options: Any) -> dict[str, dict[str, Any]]:
    """Runs a file of tests and returns the results by test id.

    A test that ends its process is stored as *crashed*, and the tests after it run in a new one.

    Arguments:
        folder: The folder of tests.
        file: The file in it.
        seconds: The limit of one test.
        options: ``own=True`` for Pyro's own classes, ``only=ids`` for some tests, ``skip=ids``.
    """
    results: dict[str, dict[str, Any]] = {}
    skip = set(options.get("skip", ()))
    while True:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "results.jsonl"
            command = [sys.executable, str(RECORDER), file, str(out), str(seconds)]
            command += ["--own"] if options.get("own") else []
            for option, ids in (("only", options.get("only")), ("skip", skip | set(results))):
                if ids is not None:
                    (Path(scratch) / option).write_text(json.dumps(sorted(ids)))
                    command += [f"--{option}", str(Path(scratch) / option)]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            lines = out.read_text().splitlines() if out.exists() else []
        found = {line.pop("name"): line for line in map(json.loads, lines)}
        finished = found.pop("", None) is not None
        begun = [name for name, line in found.items() if line["outcome"] == "started"]
        for name in begun:
            found[name] = {"outcome": "crashed", "error": done.stderr.strip()[-100:], "made": 1}
        results |= found
        if finished:
            return results
        if not found:
            raise RuntimeError(f"{file} cannot be run:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")


def fault(test: str, result: dict[str, Any]) -> str:
    """Whose fault a result is; empty where the test has not failed."""
    if result["outcome"] in WELL:
        return ""
    if result["own"] not in WELL:
        return "theirs"
    return "by design" if reason(test, result["error"]) else "ours"


def run(folder: Path, file: str, store: Path, seconds: float) -> None:
    """Runs the tests of a file that are not stored yet, and stores their results."""
    known = set(names(store))
    results = record(folder, file, seconds, skip=known)
    failing = [name for name, result in results.items() if result["outcome"] not in WELL]
    own = record(folder, file, seconds, own=True, only=failing) if failing else {}
    for name, result in results.items():
        result["own"] = own.get(name, {"outcome": ""})["outcome"]
        result["fault"] = fault(name, result)
        append(store, name, 0, result)
        print(f"{result['outcome']:8s}{result['fault']:10s}{name}", flush=True)


def copy_tests(checkout: Path, folder: Path) -> None:
    """Copies Pyro's tests without the package itself, so that the installed one is imported."""
    shutil.copytree(checkout / "tests", folder / "tests")
    if (checkout / "setup.cfg").exists():
        shutil.copy(checkout / "setup.cfg", folder)


def smoke_checkout(folder: Path) -> None:
    """Writes a checkout with a few tests of seconds."""
    file = folder / FILES[0]
    file.parent.mkdir(parents=True)
    file.write_text(SMOKE_TESTS)


def judge(store: Path, again: bool = False) -> None:
    """Writes the stored results again, with the faults that the present reasons give.

    Arguments:
        store: The file of results.
        again: Whether failures that are ours are left out, so that these tests run again.
    """
    lines = []
    for (name, seed), result in stored(store).items():
        result["fault"] = fault(name, result)
        if not (again and result["fault"] == "ours"):
            lines.append(json.dumps({"name": name, "seed": seed, **result}) + "\n")
    store.write_text("".join(lines))


# ---- the table -----------------------------------------------------------------------------------

PREFACE = """# Pyro's own tests, with the kernels and guides of this package

Made by `python examples/benchmarks/suites/pyro_tests.py --table --write` from the stored runs in
`examples/benchmarks/results/pyro_tests.jsonl`; with `--pyro PATH`, a checkout of Pyro, it runs what
is missing.

The tests are those of Pyro's HMC, NUTS, `MCMC`, autoguides, `Predictive` and NeuTra. Instead of
Pyro's classes they get these, behind the same constructors:

| in the place of | is |
| --- | --- |
| `HMC` | `LatentHMC` |
| `NUTS` | `IMH` |
| `AutoDiagonalNormal` | `AutoFlow(flow="gaussian")` |
| `AutoMultivariateNormal` | `AutoFlow(flow="coupling")` |
| `AutoIAFNormal` | `AutoFlow(flow="spline")` |

Step sizes, mass matrices, tree depths, initial locations and scales have no counterpart and are
ignored. A test that uses none of these classes is not run, nor one that differs from another in
such an argument only. Each test may take {limit:.0f} seconds of the processor. A failure is
*theirs* if the test fails with Pyro's own classes too, *by design* if this package does on purpose
what the test does not expect, and *ours* otherwise.

"""


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|").replace("<", "\\<")


def table(store: Path) -> str:
    """The tables of the stored results, in Markdown."""
    results = {name: load(store, name)[0] for name in names(store)}
    files: dict[str, Counter] = {}
    for name, result in results.items():
        kind = result["fault"] or result["outcome"]
        files.setdefault(name.split("::")[0], Counter())[kind] += 1
    columns = ("passed", "expected to fail", "skipped", *FAULTS)
    rows = [[file, *(counts[c] for c in columns)] for file, counts in sorted(files.items())]
    rows.append(["together", *(sum(c[kind] for c in files.values()) for kind in columns)])
    text = markdown(["tests", *columns], rows)
    for kind in FAULTS:
        text += f"\n\n## Failures: {kind}\n\n" + failures(results, kind)
    untouched = [name for name, r in results.items() if r["outcome"] == "passed" and not r["made"]]
    if untouched:
        text += f"\n\n{len(untouched)} of the passed tests make no kernel or guide."
    left_out = [[f"`{pattern}`", why] for pattern, why in LEFT_OUT.items()]
    return text + "\n\n## Left out\n\n" + markdown(["tests", "why"], left_out)


def failures(results: dict[str, dict[str, Any]], kind: str) -> str:
    """The failures of one fault, one row for a test function and an error."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, result in results.items():
        if result["fault"] == kind:
            test = name.split("[")[0].removeprefix("tests/infer/")
            why = reason(name, result["error"]) if kind == "by design" else result["error"]
            groups.setdefault((test, why), []).append(name)
    if not groups:
        return "None."
    rows = [[f"`{test}`", len(which), cell(why)] for (test, why), which in groups.items()]
    return markdown(["test", "cases", "why" if kind == "by design" else "error"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pyro", type=Path, help="a checkout of Pyro")
    parser.add_argument("--files", nargs="+", default=list(FILES), choices=FILES)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the stored runs")
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    parser.add_argument("--write", action="store_true", help="print it, and write its page in docs")
    parser.add_argument("--again", action="store_true", help="run failures that are ours again")
    parser.add_argument("--judge", action="store_true", help="judge the stored results again")
    parser.add_argument(
        "--smoke", action="store_true", help="a few tests of its own, for the tests"
    )
    args = parser.parse_args()
    store = args.results / STUDY
    if args.judge:
        judge(store)
    if not (args.table or args.write or args.judge):
        with tempfile.TemporaryDirectory() as scratch:
            folder, checkout = Path(scratch) / "tests", args.pyro
            if args.smoke:
                args.files, checkout = [FILES[0]], Path(scratch) / "checkout"
                smoke_checkout(checkout)
            missing = checkout is None or not (checkout / FILES[0]).exists()
            if missing:
                where = "--pyro PATH is missing" if checkout is None else f"not in {checkout}"
                print(f"There is no checkout of Pyro ({where}).", file=sys.stderr)
                sys.exit(2)
            copy_tests(checkout, folder)
            if args.again:
                judge(store, again=True)
            for file in args.files:
                run(folder, file, store, LIMIT)
    text = table(store)
    print(text)
    if args.write:
        (DOCS / "pyro_tests.md").write_text(f"{PREFACE.format(limit=LIMIT)}{text}\n")


if __name__ == "__main__":
    main()
