r"""A folder with the two last generations of a run's state.

A state is made of parts, each a file of its own that is never changed. ``MANIFEST.json`` names the
parts of the last generation, with the number of bytes and the SHA-256 digest of each, and
``MANIFEST.previous.json`` those of the one before. A part is written to a temporary file, brought
to the disk by ``fsync``, and renamed; then the manifests follow in the same way. So at every moment
each manifest names whole files. The files that neither names are deleted in the end.

The last generation is used if all of its files have the digests that they should have, else the one
before, with a warning. The folder is locked, so that two processes never write to it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from .plain import from_plain, to_plain

try:
    import fcntl
except ImportError:  # not on Windows, where a folder is not locked
    fcntl = None  # type: ignore[assignment]

__all__ = ["SCHEMA", "CheckpointError", "CheckpointFolder", "decoded", "encoded"]

SCHEMA = 1  #: version of the layout of folders; older versions read no newer ones
MANIFEST, PREVIOUS, LOCK = "MANIFEST.json", "MANIFEST.previous.json", "LOCK"
PART = "part-"  #: beginning of the names of the files of parts; no other files are deleted


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, written or used; the message says why, and what to do.

    Example:
        >>> try:
        ...     CheckpointFolder(Path("/dev/null/run"))
        ... except CheckpointError as error:
        ...     str(error)
        'checkpoints cannot be written to /dev/null/run: ...'
    """


class CheckpointFolder:
    """The files of a checkpoint, open for one process.

    Arguments:
        path: The folder; it is made where there is none.

    Attributes:
        path: The folder.
        generation: The number of the generation that was read or written last; 0 for none.
        facts: What the manifest says of the run, beside its files.

    Raises:
        CheckpointError: The folder cannot be written to, is open in another process, was written by
            a newer version, or has no generation that is whole.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as path:
        ...     folder = CheckpointFolder(Path(path))
        ...     folder.commit({"state": {"steps": 3}}, {"phase": "warmup"})
        ...     folder.close()
        ...     again = CheckpointFolder(Path(path))
        ...     again.read("state"), again.facts["phase"], again.generation
        ({'steps': 3}, 'warmup', 1)
    """

    def __init__(self, path: Path) -> None:
        self.path, self.generation = path, 0
        self.facts: dict[str, Any] = {}
        self._parts: dict[str, dict[str, Any]] = {}
        self._lock = _locked(path)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        problems = []
        for name in (MANIFEST, PREVIOUS):
            file = self.path / name
            try:
                manifest = _checked_manifest(file)
                for part in manifest["parts"].values():
                    _bytes_of(self.path, part)
            except FileNotFoundError as error:
                problems.append(f"{Path(error.filename).name} is missing")
                continue
            except OSError as error:
                raise CheckpointError(
                    f"{error.filename or file} cannot be read: {error.strerror or error}. Give the "
                    f"rights to read it, or give another folder"
                ) from error
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                problems.append(str(error) or f"{name} is damaged")
                continue
            self.generation, self._parts = manifest["generation"], manifest["parts"]
            self.facts = manifest["facts"]
            if problems:
                warnings.warn(
                    f"the last checkpoint in {self.path} is damaged ({'; '.join(problems)}): the "
                    f"run goes on from the one before it",
                    stacklevel=6,
                )
            return
        if any((self.path / name).exists() for name in (MANIFEST, PREVIOUS)):
            raise CheckpointError(
                f"no checkpoint in {self.path} is whole ({'; '.join(problems)}): delete the folder "
                f"to begin anew, or give another one"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    @property
    def names(self) -> list[str]:
        """The names of the parts."""
        return list(self._parts)

    def read_bytes(self, name: str) -> bytes:
        """The bytes of a part.

        Raises:
            CheckpointError: The file is damaged.
        """
        try:
            return _bytes_of(self.path, self._parts[name])
        except (ValueError, OSError) as error:
            raise _unreadable(self.path / self._parts[name]["file"], error) from error

    def read(self, name: str) -> Any:
        """The value of a part.

        Raises:
            CheckpointError: The file holds something else than tensors, numbers and strings, or is
                damaged.
        """
        return decoded(self.read_bytes(name), self.path / self._parts[name]["file"])

    def commit(self, parts: dict[str, Any], facts: dict[str, Any], drop: str | None = None) -> None:
        """Writes a new generation: the parts so far, and new ones, which replace those of a name.

        Arguments:
            parts: New values by name.
            facts: What the manifest is to say beside; numbers and strings.
            drop: Parts whose names begin with this are left out, unless they are new ones; None to
                keep all.

        Raises:
            CheckpointError: The disk is full, or the folder cannot be written to any more. The
                generations that there are stay whole.
            TypeError: A value cannot be written.
        """
        generation, kept = self.generation + 1, dict(self._parts)
        if drop is not None:
            kept = {name: part for name, part in kept.items() if not name.startswith(drop)}
        try:
            for name, value in parts.items():
                kept[name] = self._write_part(generation, name, value)
            manifest = {
                "schema": SCHEMA,
                "generation": generation,
                "facts": facts,
                "parts": kept,
            }
            last = self.path / MANIFEST
            if _is_whole(last, self.generation):
                _write(self.path / PREVIOUS, last.read_bytes())
            _write(last, _signed(manifest))
            _sync_folder(self.path)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint in {self.path} cannot be written: {error.strerror or error}. The "
                f"one before it is whole: make room or give the rights to write, and make the same "
                f"call again"
            ) from error
        self.generation, self._parts, self.facts = generation, kept, facts
        self._delete_unused()

    def _write_part(self, generation: int, name: str, value: Any) -> dict[str, Any]:
        data = encoded(value, name)
        file = f"{PART}{generation:08d}-{name.replace('/', '.')}.pt"
        _write(self.path / file, data)
        return {"file": file, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def _delete_unused(self) -> None:
        used = {part["file"] for part in self._parts.values()}
        try:
            previous = json.loads((self.path / PREVIOUS).read_bytes())
            used |= {part["file"] for part in previous["parts"].values()}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # there is none, or it is damaged
        for file in self.path.glob(f"{PART}*"):
            if file.name not in used:
                file.unlink(missing_ok=True)

    def close(self) -> None:
        """Gives the folder free for other processes."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(path: Path) -> int | None:
    """A descriptor of the folder's lock, which ends with the process."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CheckpointError(
            f"checkpoints cannot be written to {path}: {error.strerror or error}. Give a folder "
            f"that may be written to"
        ) from error
    if fcntl is None:
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise CheckpointError(
            f"the checkpoints in {path} are in use by another run: wait for its end, or give a "
            f"folder of its own to each run"
        ) from error
    return descriptor


# ---- values as bytes -----------------------------------------------------------------------------


def encoded(value: Any, name: str) -> bytes:
    """The bytes of a value of tensors, numbers, strings and objects made of them.

    Arguments:
        value: The value.
        name: Its name, for the message.

    Raises:
        TypeError: A part of it is something else.

    Example:
        >>> decoded(encoded({"steps": 3}, "state"), Path("state"))
        {'steps': 3}
    """
    buffer = io.BytesIO()
    torch.save(to_plain(value, name), buffer)
    return buffer.getvalue()


def decoded(data: bytes, file: Path) -> Any:
    """The value of :func:`encoded` bytes; nothing in them is executed.

    Arguments:
        data: The bytes.
        file: Where they come from, for the message.

    Raises:
        CheckpointError: They are of something else.
    """
    try:
        return from_plain(torch.load(io.BytesIO(data), weights_only=True))
    except (pickle.UnpicklingError, ValueError, RuntimeError, EOFError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{file} cannot be read: it is damaged, or holds something else than "
        f"tensors, numbers and strings, none of which is executed. Delete the folder to "
        f"begin anew ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    )


# ---- files ---------------------------------------------------------------------------------------


def _write(file: Path, data: bytes) -> None:
    """Writes a file such that it is whole under its name, or not there at all."""
    temporary = file.with_name(file.name + ".tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def _sync_folder(path: Path) -> None:
    """Brings the names of files to the disk; folders cannot be opened on Windows."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _bytes_of(path: Path, part: dict[str, Any]) -> bytes:
    """The bytes of a part; raises a ValueError where they are not those that were written."""
    file, wanted = str(part["file"]), part["sha256"]
    if Path(file).name != file:
        raise ValueError(f"{file} is not in the folder")
    data = (path / file).read_bytes()
    if len(data) != part["bytes"]:
        raise ValueError(f"{file} has {len(data)} bytes in place of {part['bytes']}")
    if hashlib.sha256(data).hexdigest() != wanted:
        raise ValueError(f"{file} has been changed")
    return data


def _signed(manifest: dict[str, Any]) -> bytes:
    """A manifest with the digest of its own text."""
    text = json.dumps(manifest, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({**manifest, "sha256": digest}, indent=1, sort_keys=True).encode()


def _checked_manifest(file: Path) -> dict[str, Any]:
    """The content of a manifest.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It has been changed, or cut short.
        CheckpointError: It was written by a newer version.
    """
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file.name} is cut short or damaged") from error
    if not isinstance(found, dict) or not isinstance(found.get("schema"), int):
        raise ValueError(f"{file.name} is damaged")
    if found["schema"] > SCHEMA:
        raise CheckpointError(
            f"{file} was written by a newer version of the package (schema {found['schema']}, this "
            f"one reads up to {SCHEMA}): update the package, or give another folder"
        )
    digest = found.pop("sha256", None)
    text = json.dumps(found, sort_keys=True)
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ValueError(f"{file.name} has been changed")
    return found


def _is_whole(file: Path, generation: int) -> bool:
    """Whether a manifest is that of a generation, so that it may become the one before."""
    try:
        return _checked_manifest(file)["generation"] == generation
    except (ValueError, KeyError, OSError):
        return False
