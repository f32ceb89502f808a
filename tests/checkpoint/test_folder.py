"""Folders of checkpoints: two whole generations, and clear refusals."""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from support.mutations import broken, mutation

from pyro_flowsamp.checkpoint import folder
from pyro_flowsamp.checkpoint.folder import CheckpointError, CheckpointFolder


def written(path, *values):
    made = CheckpointFolder(path)
    for value in values:
        made.commit({"state": value}, {"phase": "sampling"})
    made.close()
    return made


def read(path):
    found = CheckpointFolder(path)
    try:
        return found.read("state")
    finally:
        found.close()


def newest(path, name="state"):
    return path / json.loads((path / "MANIFEST.json").read_text())["parts"][name]["file"]


def test_the_last_generation_is_read(tmp_path):
    written(tmp_path, 1, 2, 3)
    assert read(tmp_path) == 3
    assert len(list(tmp_path.glob("part-*"))) == 2  # of two generations


@pytest.mark.parametrize("damage", ["cut short", "changed", "deleted", "manifest", "manifest cut"])
def test_a_damaged_generation_gives_way_to_the_one_before(tmp_path, damage):
    written(tmp_path, 1, 2, 3)
    file = tmp_path / "MANIFEST.json" if "manifest" in damage else newest(tmp_path)
    data = file.read_bytes()
    if damage == "deleted":
        file.unlink()
    elif "cut" in damage:
        file.write_bytes(data[: len(data) // 2])
    elif damage == "manifest":
        file.write_text(data.decode().replace('"phase": "sampling"', '"phase": "warmup"'))
    else:
        file.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.warns(UserWarning, match="the last checkpoint in .* is damaged"):
        assert read(tmp_path) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written(tmp_path, 4)
    assert read(tmp_path) == 4
    newest(tmp_path).unlink()
    with pytest.warns(UserWarning, match="damaged"):
        assert read(tmp_path) == 2


def test_where_both_are_damaged_nothing_is_begun_anew(tmp_path):
    written(tmp_path, 1, 2)
    for file in tmp_path.glob("part-*"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint in .* is whole"):
        read(tmp_path)


def test_a_newer_schema_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "SCHEMA", 2)
    written(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="newer version of the package"):
        read(tmp_path)


def test_a_manifest_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    """And the older generation is not taken in its place."""
    written(tmp_path, 1, 2)
    right = Path.read_bytes

    def read_bytes(file):
        if file.name == "MANIFEST.json":
            raise PermissionError(13, "Permission denied", str(file))
        return right(file)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(CheckpointError, match="MANIFEST.json cannot be read: Permission denied. "):
        read(tmp_path)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_foreign_pickle_is_not_executed(tmp_path, form):
    """Even where the manifest has its digest."""
    path, trap = tmp_path / "run", tmp_path / "trap"
    written(path, 1)
    data = pickle.dumps(Evil(trap))
    if form == "torch":
        torch.save({"value": Evil(trap)}, tmp_path / "file")
        data = (tmp_path / "file").read_bytes()
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest.pop("sha256")
    part = manifest["parts"]["state"]
    (path / part["file"]).write_bytes(data)
    part.update(bytes=len(data), sha256=folder.hashlib.sha256(data).hexdigest())
    (path / "MANIFEST.json").write_bytes(folder._signed(manifest))
    with pytest.raises(CheckpointError, match="none of which is executed"):
        read(path)
    assert not trap.exists()


def test_a_folder_belongs_to_one_run(tmp_path):
    first = CheckpointFolder(tmp_path)
    with pytest.raises(CheckpointError, match="in use by another run"):
        CheckpointFolder(tmp_path)
    code = f"""
from pathlib import Path
from pyro_flowsamp.checkpoint.folder import CheckpointError, CheckpointFolder
try:
    CheckpointFolder(Path({str(tmp_path)!r}))
except CheckpointError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "in use by another run" in done.stdout, done.stderr
    first.close()
    CheckpointFolder(tmp_path).close()


@pytest.mark.parametrize("path", ["/proc/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_written_to_is_refused(path):
    with pytest.raises(CheckpointError, match="may be written to"):
        CheckpointFolder(Path(path))


def test_a_full_disk_leaves_the_generations_whole(tmp_path):
    """A limit of the size of files stands for the full disk."""
    made = CheckpointFolder(tmp_path)
    made.commit({"state": torch.zeros(10)}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(CheckpointError, match="cannot be written: File too large"):
            made.commit({"state": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    made.close()
    assert not list(tmp_path.glob("*.tmp")) and torch.equal(read(tmp_path), torch.zeros(10))


def test_other_files_in_the_folder_are_kept(tmp_path):
    other = tmp_path / "model.pt"
    other.write_bytes(b"mine")
    written(tmp_path, 1, 2, 3)
    assert other.read_bytes() == b"mine"


# ---- broken on purpose ---------------------------------------------------------------------------


@mutation(folder, "_bytes_of")
def digests_not_compared(_, path, part):
    return (path / part["file"]).read_bytes()


@mutation(folder, "_is_whole")
def never_kept_for_the_next(_, file, generation):
    return False


@mutation(folder, "_checked_manifest")
def manifest_taken_as_it_is(_, file):
    return json.loads(file.read_bytes())


@pytest.mark.parametrize(
    ("wrong", "damage"),
    [
        (digests_not_compared, "changed"),
        (never_kept_for_the_next, "cut short"),
        (manifest_taken_as_it_is, "manifest"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_mutations_are_seen(tmp_path, wrong, damage):
    with broken(wrong), pytest.raises(BaseException) as found:
        test_a_damaged_generation_gives_way_to_the_one_before(tmp_path, damage)
    assert found.type is not KeyboardInterrupt
