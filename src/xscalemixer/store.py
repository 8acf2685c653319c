"""Zarr stores that grow block by block and survive being killed at any instant: one forecast by leads, or other results."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import socket
import uuid
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import numpy as np
import xarray as xr

from xscalemixer.errors import InputError
from xscalemixer.output import chunk_sizes

if TYPE_CHECKING:
    import zarr

__all__ = ["Block", "BlockStore", "ForecastStore"]

_PROGRESS = "progress"  # a Zarr subgroup without arrays while the store grows, so that Zarr passes it by


Block = Mapping[str, Sequence[int]]  # dimension -> first index and the one after the last


class _Journaled(ABC):
    """Zarr store on a local disk that grows block by block and survives being killed at any instant.

    Arrays stand at full size from the start and read NaN where nothing was written. A block counts once its line, with
    the sha256 of its chunks, is in ``progress/journal.jsonl``.
    """

    _content = "set of results"  # in messages

    def __init__(self, path: Path, head: dict, lock):
        import zarr

        self.path = path
        self._head = head
        self._journal: list[dict] = []
        self._lock = lock
        self._group = zarr.open_group(path, mode="r+", zarr_format=2, use_consolidated=False)
        self._fields = {name: self._array(name) for name in head["fields"]}

    def _array(self, name: str) -> zarr.Array:
        return cast("zarr.Array", self._group[name])  # the layout has no other group than that of the progress

    @classmethod
    def _create(cls, path: str | PathLike, template: xr.Dataset, head: Mapping[str, object], overwrite: bool):
        """Lay out a new store: lazy fields of the template, which are not read, grow; all others are written now."""
        path = _local(path)
        _check_free(path, overwrite, cls._content)
        _check_space(path, template.nbytes)
        # built beside its place and renamed: whoever is killed here leaves nothing half made at path
        names = [name for name, field in template.data_vars.items() if field.chunks is not None]
        head = {"fields": names, **_json(head)}
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            _lay_out(template, draft)
            _append(draft, head)
            _put_in_place(draft, path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return cls(path, head, _acquire(path))

    @classmethod
    def resume(cls, path: str | PathLike, fingerprint: Mapping[str, object]):
        """Open an unfinished store, compare every block with the journal, and forget what does not match.

        Raises
        ------
        InputError
            If there is no such store, another process writes to it, it holds another run, or the disk is too small.
        """
        path = _local(path)
        if not _journal_file(path).exists():
            raise InputError(f"{path} holds no {cls._content} to resume", ["leave out resume=True, or correct the path"])
        lock = _acquire(path)
        try:
            head, *entries = _read_journal(path, cls._content)
            _check_fingerprint(path, head["fingerprint"], _json(fingerprint), cls._content)
            store = cls(path, head, lock)
            store._recover(entries)
            lines = "".join(json.dumps(entry) + "\n" for entry in (head, *store._journal))
            _replace(_journal_file(path), lambda file: file.write(lines.encode()))
            _check_space(path, store._bytes_left())
        except BaseException:
            lock.release()
            raise
        return store

    def close(self) -> None:
        """Let other processes write to the store."""
        self._lock.release()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _recover(self, entries: list[dict]) -> None:
        """Keep the journal entries whose chunks are on disk unchanged."""
        self._journal = [entry for entry in entries if self._intact(entry)]

    def _intact(self, entry: dict) -> bool:
        return self._digest(entry["block"]) == entry["sha256"]

    def _write(self, where: Block, block: xr.Dataset, also: Callable[[], dict] = dict) -> None:
        """Write chunks, make sure that they are on disk, and note them in the journal with what ``also`` returns."""
        try:
            for name, array in self._fields.items():
                region = tuple(slice(*where[dim]) if dim in where else slice(None) for dim in _dims(array))
                array[region] = block[name].values
            self._sync(where)
            entry = {"block": where, "sha256": self._digest(where), **also()}
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _refuse_full_disk(self.path, self._bytes_left(), cause=error)
        _append(self.path, entry)
        self._journal.append(entry)

    def _complete(self) -> None:
        """Mark the store complete and consolidate its metadata."""
        import zarr

        self._group.attrs["complete"] = "true"
        (self.path / _PROGRESS / ".zgroup").unlink(missing_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", f"Object at {_PROGRESS}")
            zarr.consolidate_metadata(self.path, zarr_format=2)
        self.close()

    @abstractmethod
    def _share_left(self) -> float:
        """Share of the store that is still to be written."""

    def _bytes_left(self) -> int:
        return int(self._share_left() * sum(array.nbytes for array in self._fields.values()))

    def _chunk_files(self, where: Block) -> Iterator[Path]:
        """Files of a block, which consists of whole chunks; a chunk of nothing but NaN has none."""
        for name, array in self._fields.items():
            spans = []
            for dim, size, chunk in zip(_dims(array), array.shape, array.chunks, strict=True):
                first, last = where.get(dim, (0, size))
                spans.append(range(first // chunk, -(-last // chunk)))
            for place in itertools.product(*spans):
                yield self.path / name / ".".join(map(str, place))

    def _sync(self, where: Block) -> None:
        for file in filter(Path.exists, self._chunk_files(where)):
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
        for name in self._fields:
            _sync_folder(self.path / name)

    def _digest(self, where: Block) -> str:
        digest = hashlib.sha256()
        for file in self._chunk_files(where):
            digest.update(file.read_bytes() if file.exists() else b"NaN")
        return digest.hexdigest()


class BlockStore(_Journaled):
    """Zarr store of results that are computed block by block, in any order.

    Attributes
    ----------
    path : Path
    pending : list of dict
        Blocks that are not yet safely on disk: first index and the one after the last by dimension.

    Examples
    --------
    >>> with BlockStore.create("scores.zarr", template, fingerprint, blocks) as store:  # doctest: +SKIP
    ...     for block in store.pending:
    ...         store.write(block, compute(block))
    ...     store.finish()
    """

    @classmethod
    def create(
        cls,
        path: str | PathLike,
        template: xr.Dataset,
        fingerprint: Mapping[str, object],
        blocks: Sequence[Block],
        *,
        overwrite: bool = False,
    ) -> BlockStore:
        """Lay out a new store with the coordinates and plain fields of ``template``, its lazy fields all NaN.

        Parameters
        ----------
        path : path-like
            Where nothing is yet.
        template : xarray.Dataset
            Lazy fields grow: their chunks become those of the store, their values are not read.
        fingerprint : mapping
            What makes these results these, as plain data; `resume` compares it.
        blocks : sequence of mapping
            What will be written at once, of whole chunks; `resume` finds the same.
        overwrite : bool
            Replace a Zarr store at ``path``.

        Raises
        ------
        InputError
            If something is at ``path``, another process writes there, or the disk is too small.
        """
        return cls._create(path, template, {"fingerprint": fingerprint, "blocks": blocks}, overwrite)

    @property
    def pending(self) -> list[dict[str, list[int]]]:
        """Blocks that are not yet safely on disk."""
        named = lambda block: json.dumps(block, sort_keys=True)
        done = {named(entry["block"]) for entry in self._journal}
        return [block for block in self._head["blocks"] if named(block) not in done]

    def write(self, where: Block, block: xr.Dataset) -> None:
        """Write one of the pending blocks and, once it is on disk, note it in the journal.

        Raises
        ------
        InputError
            If the disk is full; earlier blocks stay intact.
        """
        self._write({dim: list(span) for dim, span in where.items()}, block)

    def finish(self) -> None:
        """Mark the store complete and consolidate its metadata.

        Raises
        ------
        InputError
            If blocks are missing.
        """
        if self.pending:
            number = len(self._head["blocks"])
            raise InputError(f"{self.path} has {number - len(self.pending)} of {number} blocks", ["write the others first"])
        self._complete()

    def _share_left(self) -> float:
        return len(self.pending) / max(1, len(self._head["blocks"]))


class ForecastStore(_Journaled):
    """Zarr store of one forecast, which grows lead by lead; the state of the model at the last lead is kept beside it.

    Attributes
    ----------
    path : Path
    next_lead : int
        Index of the first lead that is not yet safely on disk.
    restart : dict of array
        State of the model before ``next_lead``; empty at lead 0 and where a store with all leads was resumed.

    Examples
    --------
    >>> with ForecastStore.create("run.zarr", template, fingerprint) as store:  # doctest: +SKIP
    ...     for block, state in run:
    ...         store.write(store.next_lead, block, state)
    ...     store.finish()
    """

    _content = "forecast"

    def __init__(self, path: Path, head: dict, lock):
        super().__init__(path, head, lock)
        self.restart: dict[str, np.ndarray] = {}
        self._leads = self._array("lead_time")

    @classmethod
    def create(
        cls, path: str | PathLike, template: xr.Dataset, fingerprint: Mapping[str, object], *, overwrite: bool = False
    ) -> ForecastStore:
        """Lay out a new store with the coordinates and static fields of ``template``, all other values NaN.

        Parameters
        ----------
        path : path-like
            Where nothing is yet.
        template : xarray.Dataset
            As `forecast_dataset` makes it, with all leads; the values of fields that have a lead time are not read.
        fingerprint : mapping
            What makes this run this run (weights, start, hours, input), as plain data; `resume` compares it.
        overwrite : bool
            Replace a Zarr store at ``path``.

        Raises
        ------
        InputError
            If something is at ``path``, another process writes there, or the disk is too small.
        """
        import dask.array

        layout = template.copy(deep=False)
        for name, field in template.data_vars.items():
            if "lead_time" in field.dims:
                chunks = chunk_sizes(field.dims, field.shape)
                layout[name] = field.copy(data=dask.array.full(field.shape, np.nan, dtype="float32", chunks=chunks))
        return cls._create(path, layout, {"fingerprint": fingerprint}, overwrite)

    def write(self, first_lead_index: int, block: xr.Dataset, restart: Mapping[str, np.ndarray]) -> None:
        """Write the next leads and, once they are on disk, note them in the journal.

        Parameters
        ----------
        first_lead_index : int
            Equal to ``next_lead``.
        block : xarray.Dataset
            All fields of the template at consecutive leads.
        restart : mapping of name to array
            Whatever the model needs to go on after this block.

        Raises
        ------
        InputError
            If the block is not the next one or lacks fields, or if the disk is full; earlier blocks stay intact.
        """
        leads = [first_lead_index, first_lead_index + block.sizes["lead_time"]]
        self._check_block(leads, block)
        self._write({"lead_time": leads}, block, lambda: _save_restart(self.path, leads[1], restart))
        self.restart = dict(restart)
        self._drop_restarts(keep=2)

    def finish(self) -> None:
        """Mark the store complete, consolidate its metadata and remove the model states.

        Raises
        ------
        InputError
            If leads are missing.
        """
        if self.next_lead < self._n_leads:
            raise InputError(f"{self.path} has {self.next_lead} of {self._n_leads} leads", ["write the others before finish()"])
        self._drop_restarts(keep=0)
        self._complete()

    @property
    def next_lead(self) -> int:
        """Index of the first lead that is not yet safely on disk."""
        return self._journal[-1]["block"]["lead_time"][1] if self._journal else 0

    @property
    def _n_leads(self) -> int:
        return self._leads.size

    def _share_left(self) -> float:
        return 1 - self.next_lead / self._n_leads

    def _check_block(self, leads: list[int], block: xr.Dataset) -> None:
        problems = []
        if leads[0] != self.next_lead:
            problems.append(f"the block begins at lead index {leads[0]}; needed {self.next_lead}")
        if not np.array_equal(block["lead_time"].values, np.asarray(self._leads[slice(*leads)])):
            problems.append(f"lead times {block['lead_time'].values.tolist()} are not those of the store at {leads}")
        missing = [name for name in self._fields if name not in block]
        if missing:
            problems.append(f"the block lacks {', '.join(missing)}")
        if problems:
            raise InputError(f"this block cannot be written to {self.path}", problems)

    def _recover(self, entries: list[dict]) -> None:
        """Keep the leading journal entries whose chunks are on disk unchanged, up to one with its model state."""
        for entry in entries:
            if entry["block"]["lead_time"][0] != self.next_lead or not self._intact(entry):
                break
            self._journal.append(entry)
        while self._journal and self.next_lead < self._n_leads:
            restart = _load_restart(self.path, self._journal[-1])
            if restart is not None:
                self.restart = restart
                break
            self._journal.pop()

    def _drop_restarts(self, keep: int) -> None:
        kept = {entry["restart"] for entry in self._journal[len(self._journal) - keep :]}
        for file in (self.path / _PROGRESS).glob("restart-*"):
            if file.name not in kept:
                file.unlink()


def _dims(array) -> list[str]:
    return array.attrs["_ARRAY_DIMENSIONS"]


def _local(path: str | PathLike) -> Path:
    if "://" in os.fspath(path):
        raise InputError(f"{path} is not a local path", ["stream to a local folder and copy it when it is complete"])
    return Path(path).absolute()


def _check_free(path: Path, overwrite: bool, content: str) -> None:
    """Refuse a path where something is, unless it is a Zarr store that may go."""
    if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return
    is_store = not path.is_symlink() and any((path / name).exists() for name in (".zgroup", "zarr.json"))
    if not is_store:
        raise InputError(f"{path} exists and is not a Zarr store", ["choose another path; nothing was deleted"])
    if not overwrite:
        fix = f"type resume=True to go on with the {content} in it, overwrite=True to replace it, or choose another path"
        raise InputError(f"{path} exists", [f"{fix}; nothing was deleted"])


def _check_space(path: Path, needed: int) -> None:
    """Refuse to begin if the fields would not fit uncompressed."""
    if _free(path) < needed:
        _refuse_full_disk(path, needed)


def _free(path: Path) -> int:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free


def _refuse_full_disk(path: Path, needed: int, cause: OSError | None = None) -> NoReturn:
    found = f"up to {needed / 1e9:.3g} GB ({needed} bytes) are still to be written, {_free(path) / 1e9:.3g} GB are free"
    fix = "make room" + (
        " and go on with resume=True; all that is in the journal is intact" if cause else " or choose another disk"
    )
    raise InputError(f"the disk is too small for {path}", [f"{found}; {fix}"]) from cause


def _lay_out(template: xr.Dataset, path: Path) -> None:
    """Write coordinates and plain fields, and the metadata of lazy fields."""
    import zarr

    template.assign_attrs(complete="false").to_zarr(path, mode="w-", compute=False, consolidated=False, zarr_format=2)
    zarr.open_group(path, mode="r+", zarr_format=2).create_group(_PROGRESS)


def _put_in_place(draft: Path, path: Path) -> None:
    if not os.path.lexists(path):
        draft.rename(path)
    elif not any(path.iterdir()):
        path.rmdir()
        draft.rename(path)
    else:
        with _owned(path):
            old = path.with_name(f"{draft.name}.old")
            path.rename(old)
            draft.rename(path)
        shutil.rmtree(old)
    _sync_folder(path.parent)


@contextmanager
def _owned(path: Path):
    """Hold the lock of a store, if it is one of ours."""
    lock = _acquire(path) if (path / _PROGRESS).exists() else None
    try:
        yield
    finally:
        if lock:
            lock.release()


def _acquire(path: Path):
    """Lock a store for writing; the operating system frees the lock of a killed process."""
    from filelock import FileLock, Timeout

    lock, owner = FileLock(path / _PROGRESS / "lock", thread_local=False), path / _PROGRESS / "owner"
    try:
        lock.acquire(blocking=False)
    except Timeout:
        who = owner.read_text() if owner.exists() else "another process"
        problem = f"{who} is writing to it; wait until it is done, stop it, or choose another path"
        raise InputError(f"{path} is in use", [problem]) from None
    owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    return lock


def _journal_file(path: Path) -> Path:
    return path / _PROGRESS / "journal.jsonl"


def _append(path: Path, entry: dict) -> None:
    with _journal_file(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read_journal(path: Path, content: str) -> list[dict]:
    """Read entries up to the first line that a crash has torn."""
    entries = []
    for line in _journal_file(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    if not entries:
        raise InputError(f"{path} holds no {content} to resume", ["its journal is unreadable; type overwrite=True to begin anew"])
    return entries


def _replace(target: Path, write) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part."""
    draft = target.with_suffix(".draft")
    with draft.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    with suppress(PermissionError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _save_restart(path: Path, lead: int, restart: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Save arrays as ``.npy`` members of one ``.npz`` file, never pickled; return its name and sha256."""

    def write(file):
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in restart.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)

    target = path / _PROGRESS / f"restart-{lead:06d}.npz"
    _replace(target, write)
    return {"restart": target.name, "restart_sha256": _file_digest(target)}


def _load_restart(path: Path, entry: dict) -> dict[str, np.ndarray] | None:
    """Model state of a journal entry, or None if the file is gone or damaged."""
    file = path / _PROGRESS / entry["restart"]
    if not file.exists() or _file_digest(file) != entry["restart_sha256"]:
        return None
    with np.load(file, allow_pickle=False) as archive:
        return dict(archive)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(fingerprint: Mapping[str, object]) -> dict:
    return json.loads(json.dumps(dict(fingerprint)))


def _check_fingerprint(path: Path, found: dict, needed: dict, content: str) -> None:
    keys = sorted(key for key in found.keys() | needed.keys() if found.get(key) != needed.get(key))
    if keys:
        problems = [f"{key}: the store has {found.get(key)!r}, this run {needed.get(key)!r}" for key in keys]
        fix = "repeat the call that began it to resume, choose another path, or type overwrite=True"
        raise InputError(f"{path} holds another {content} and cannot be resumed", [*problems, fix])
