"""Checkpoints of a stage in progress: one safetensors file each, complete or not there, the last two and the best kept."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from xscalemixer.errors import CheckpointError, InputError

__all__ = ["Checkpoints", "LossLog", "owned", "write_tensors", "write_whole"]

log = logging.getLogger(__name__)

_LAST = 2
_DAMAGED = "its checksum differs; the file was damaged after it was written"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a crash or a power cut leaves the old one or the new one, never a part."""
    draft = path.with_name(path.name + ".draft")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _publish(draft, path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """The same with tensors, as safetensors; ``about`` goes into the header."""
    draft = path.with_name(path.name + ".draft")
    safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, draft, dict(about or {}))
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    _publish(draft, path)


def _publish(draft: Path, path: Path) -> None:
    draft.replace(path)
    with suppress(PermissionError):  # Windows opens no folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def owned(folder: Path | None) -> Iterator[None]:
    """Keep another run out of a folder; the operating system frees the lock of a killed one.

    Raises
    ------
    InputError
        If another process trains there.
    """
    if folder is None:
        yield
        return
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".lock", thread_local=False).acquire(blocking=False)
    except Timeout:
        raise InputError(f"{folder} is in use", ["another process trains there; stop it, or choose another folder"]) from None
    with lock:
        yield


class Checkpoints:
    """A folder of checkpoints, ``update-00000200.safetensors`` and ``best-00000100.safetensors``.

    A checkpoint holds tensors and, in its header, plain data and checksums of these and of the tensors. The best weights lie in
    a file of their own that checkpoints refer to, so a checkpoint never speaks of weights that are not on the disk.

    Parameters
    ----------
    folder : Path
    run : dict
        Identity of the run; written into each checkpoint.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]):
        self.folder, self.run = folder, dict(run)
        self._good: set[Path] = set()  # best weights that this process has written, or read and found whole

    def save(self, update: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], best: Mapping[str, Tensor]) -> None:
        """Write the state after an update, and the best weights (``state["best"]`` is their update) if they are new."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (target := self._file("best", state["best"])) not in self._good:
            write_tensors(target, best, _signed({"tensors": _checksum(best)}))
            self._good.add(target)
        about = {"run": json.dumps(self.run), "state": json.dumps(state), "tensors": _checksum(tensors)}
        write_tensors(self._file("update", update), tensors, _signed(about))
        self._tidy()

    def latest(self) -> int:
        """Update of the newest checkpoint that can be read with its best weights; 0 if there is none.

        Those that are passed over are removed: their numbers would make them newer than what comes next.

        Raises
        ------
        InputError
            If it belongs to another run.
        """
        found, useless = 0, []
        for path in reversed(self._updates()):
            try:
                about = _header(path)
                best = self._file("best", json.loads(about["state"])["best"])
                _read(path), _read(best)
            except CheckpointError as error:
                log.warning("%s", error)
                useless.append(path)
                continue
            require_same_run(json.loads(about["run"]), self.run, self.folder.parent)
            self._good.add(best)
            found = int(path.stem.split("-")[1])
            break
        for path in useless:
            path.unlink()
        return found

    def load(self, update: int) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
        """Tensors, state and best weights as they were saved."""
        path = self._file("update", update)
        state = json.loads(_header(path)["state"])
        return _read(path), state, _read(self._file("best", state["best"]))

    def clear(self) -> None:
        """Remove all checkpoints; the stage is finished."""
        for path in (*self.folder.glob("update-*"), *self.folder.glob("best-*")):
            path.unlink()

    def _file(self, kind: str, update: int) -> Path:
        return self.folder / f"{kind}-{update:08d}.safetensors"

    def _updates(self) -> list[Path]:
        return sorted(self.folder.glob("update-*.safetensors"))

    def _tidy(self) -> None:
        """Keep the last two, and the best weights they refer to."""
        for path in self._updates()[:-_LAST]:
            path.unlink()
        used = set()
        for path in self._updates():
            try:
                used.add(self._file("best", json.loads(_header(path)["state"])["best"]))
            except CheckpointError as error:
                log.warning("%s", error)
                path.unlink()
        for path in set(self.folder.glob("best-*.safetensors")) - used:
            path.unlink()
        for path in self.folder.glob("*.draft"):
            path.unlink()


def require_same_run(kept: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Raise an InputError with every difference between the run that a folder holds and this one."""
    keys = sorted(key for key in kept.keys() | wanted.keys() if kept.get(key) != wanted.get(key))
    if keys:
        problems = [f"{key}: the folder has {kept.get(key)!r}, this run {wanted.get(key)!r}" for key in keys]
        raise InputError(f"{folder} holds stages of another run", [*problems, elsewhere(folder)])


def elsewhere(folder: Path) -> str:
    """What to do about a folder of another run."""
    return f'keep this run elsewhere, e.g. folder="{folder}-2", repeat the run that began it, or delete {folder} to train anew'


def _header(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be used", [f"damaged or incomplete: {error}"]) from error
    if "header" not in about:
        raise CheckpointError(f"{path} cannot be used", ["it has no checksum"])
    if about != _signed({name: text for name, text in about.items() if name != "header"}):
        raise CheckpointError(f"{path} cannot be used", [_DAMAGED])
    return about


def _read(path: Path) -> dict[str, Tensor]:
    about = _header(path)
    tensors = safetensors.torch.load_file(path)
    if _checksum(tensors) != about["tensors"]:
        raise CheckpointError(f"{path} cannot be used", [_DAMAGED])
    return tensors


def _signed(about: Mapping[str, str]) -> dict[str, str]:
    """A header with a checksum of itself."""
    return {**about, "header": f"{zlib.crc32(json.dumps(about, sort_keys=True).encode()):08x}"}


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data, zlib.crc32(name.encode(), value))
    return f"{value:08x}"


class LossLog:
    """One line of JSON per update and per validation, nothing in it that depends on the clock."""

    def __init__(self, path: Path | None, update: int):
        self._file = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        write_whole(path, "".join(line for line in lines if update and _update_of(line) <= update).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record."""
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _update_of(line: str) -> float:
    """Update of a line; infinite for a line that a kill has torn."""
    try:
        return json.loads(line)["update"]
    except ValueError:
        return float("inf")
