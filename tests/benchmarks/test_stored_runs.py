"""Stored runs of the studies: what a kill leaves, several writers, and nothing computed twice."""

import multiprocessing

import pytest
from stored_runs import RESULTS, append, collect, load, names, stored

COMPLETE = (
    '{"name": "a", "seed": 0, "value": 1.5}\n{"name": "b-2", "seed": 10, "value": [1, NaN]}\n'
)


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "study.jsonl"
    path.write_text(COMPLETE)
    return path


def test_what_is_appended_is_read_back(tmp_path):
    store = tmp_path / "new folder" / "study.jsonl"
    assert stored(store) == {} and names(store) == [] and load(store, "a") == []
    result = {"value": 0.1 + 0.2, "text": "x²", "list": [1, 2.0, None], "far": float("inf")}
    for seed in (10, 2):
        append(store, "a", seed, {**result, "seed of it": seed})
    append(store, "a-1", 0, {})
    assert load(store, "a") == [{**result, "seed of it": seed} for seed in (2, 10)]
    assert names(store) == ["a", "a-1"]


@pytest.mark.parametrize("rest", ['{"name": "c", "seed": 0, "val', "{", '{"name": "\u00e9'])
def test_a_line_cut_short_is_ignored_with_a_sentence(store, rest, capsys):
    store.write_bytes(COMPLETE.encode() + rest.encode()[: len(rest)])  # perhaps within a character
    assert names(store) == ["a", "b-2"]
    assert "last line" in capsys.readouterr().err
    append(store, "c", 0, {"value": 2})
    assert store.read_text() == COMPLETE + '{"name": "c", "seed": 0, "value": 2}\n'


def test_a_last_line_without_its_end_is_kept_where_it_is_complete(store, capsys):
    store.write_text(COMPLETE[:-1])
    append(store, "c", 0, {})
    assert names(store) == ["a", "b-2", "c"] and capsys.readouterr().err == ""


def test_damage_in_the_middle_is_an_error(store):
    store.write_text(COMPLETE.replace('"value": 1.5}', ""))
    with pytest.raises(ValueError, match="line 1 of .*study.jsonl is not JSON"):
        stored(store)


def test_nothing_is_computed_or_stored_twice(store):
    calls = []

    def overtaken():
        """Another process stores the same run first, and the next one besides."""
        calls.append("c")
        append(store, "c", 0, {"value": "faster"})
        append(store, "c", 1, {"value": "also stored"})
        return {"value": 3}

    def plain():
        calls.append("a")
        return {"value": 4}

    collect(store, {"a": plain, "c": overtaken}, [0, 1])
    assert calls == ["c", "a"]
    assert [run["value"] for run in load(store, "a")] == [1.5, 4]
    assert [run["value"] for run in load(store, "c")] == ["faster", "also stored"]
    assert len(store.read_text().splitlines()) == 5


def _write(store, worker, barrier):
    barrier.wait()
    for seed in range(40):
        append(store, f"worker-{worker}", seed, {"value": ["x" * 5000, worker, seed]})
        append(store, "shared", seed, {"value": worker})


def test_several_processes_write_whole_lines(tmp_path):
    context, store = multiprocessing.get_context("fork"), tmp_path / "study.jsonl"
    barrier = context.Barrier(4)
    workers = [context.Process(target=_write, args=(store, k, barrier)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(store.read_text().splitlines()) == len(stored(store)) == 40 * 5
    for k in range(4):
        found = [run["value"] for run in load(store, f"worker-{k}")]
        assert found == [["x" * 5000, k, seed] for seed in range(40)]


def test_the_stored_runs_of_every_study_can_be_read():
    counts = {path.stem: len(stored(path)) for path in RESULTS.glob("*.jsonl")}
    assert (
        counts.keys() >= {"advnf_xy", "against_nuts", "sample_suite"} and min(counts.values()) > 0
    )
