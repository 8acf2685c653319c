"""The pass over the data, batch by batch of starts: area means of every field, or sums at every cell.

Memory: the fields of a batch, forecasts with all members and their truth, take at most ``memory`` bytes as they are stored,
unless one lead time of one start alone takes more; to this come a few MB for each thread, and for each thread the largest
chunk of the input where a chunk holds more than a batch. What is returned is small, but for sums at every cell.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import and_
from os import PathLike
from typing import NamedTuple

import numpy as np
import xarray as xr

from xscalemixer.errors import InputError
from xscalemixer.progress import progress_bar
from xscalemixer.report import Report
from xscalemixer.store import Block, BlockStore
from xscalemixer.verification.alignment import Aligned
from xscalemixer.verification.metrics import field_means, place_sums

__all__ = ["Storage", "area_means", "batches", "open_means", "sums_at_places"]

_TASKS = 50_000  # in the graph of a batch
_PIECE = 2**23  # bytes of a variable that one task looks at, where chunks are smaller
_WASTE = 4  # times what is used may be read before it is told
_MUCH = 2**28  # bytes read in vain that are worth a warning
_SAMPLES = 5  # starts whose first and last fields tell evaluations apart
_AXES = ("reference_time", "lead_time")
_FIRST = ("mean", "model", *_AXES)


class Storage(NamedTuple):
    """Where area means are kept, see `xscalemixer.score`."""

    to: str | PathLike
    resume: bool = False
    overwrite: bool = False


def area_means(
    aligned: Mapping[str, Aligned],
    names: tuple[str, ...],
    *,
    memory: str | int,
    report: Report,
    attrs: Mapping[str, str],
    storage: Storage | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Area means of each field of each model.

    Each batch is one call of `dask.compute`, so that an active client of dask.distributed does the work.

    Parameters
    ----------
    aligned : dict of Aligned
        With common starts and lead times.
    names : tuple of str
        Area means, see `xscalemixer.verification.metrics.field_means`.
    memory : str or int
        Bound for the fields of a batch, in bytes or as "1 GiB".
    report : Report
        Receives a warning where chunks are read many times over; it is kept with the area means.
    attrs : mapping
        What is evaluated, kept as attributes.
    storage : Storage, optional
        Zarr store to write batch by batch; default: memory.
    progress : bool, optional
        Show a progress bar; default: only in a terminal or notebook.

    Returns
    -------
    Dataset
        Each variable with dims ``(mean, model, reference_time, lead_time, [level])``, float64; ``members(model)``.

    Raises
    ------
    InputError
        If the store cannot be used, or holds other area means.
    """
    blocks = batches(aligned, lambda block: _lazy_means(aligned, names, block), memory, report)
    template = _template(aligned, names, blocks)
    template.attrs = {"title": "area means", **attrs, "report": json.dumps(report.to_dict())}
    if storage is None:
        means = template.map(lambda array: array.copy(data=np.full(array.shape, np.nan)))
        for block, values in _computed(blocks, aligned, names, template, progress):
            for name, array in means.items():
                array[_spans(block)] = values[name]
        return means.assign_attrs(template.attrs)
    fingerprint = _fingerprint(aligned, names, attrs)
    if storage.resume:
        store = BlockStore.resume(storage.to, fingerprint)
    else:
        store = BlockStore.create(storage.to, template, fingerprint, blocks, overwrite=storage.overwrite)
    with store:
        for block, values in _computed(store.pending, aligned, names, template, progress):
            store.write(block, values)
        store.finish()
    return open_means(storage.to)


def open_means(store: str | PathLike) -> xr.Dataset:
    """Area means that were kept in a complete store.

    Raises
    ------
    InputError
        If it is no such store, or not complete.
    """
    import zarr

    try:
        attrs = zarr.open_group(store, mode="r", use_consolidated=False).attrs
    except FileNotFoundError:
        raise InputError(f"{store} holds no area means", ["make them: xsm.score(forecast, truth, to=...)"]) from None
    if attrs.get("title") != "area means" or attrs.get("complete") != "true":
        found = f"title {attrs.get('title')!r}, complete {attrs.get('complete')!r}"
        fix = "finish it with xsm.score(forecast, truth, to=..., resume=True)"
        raise InputError(f"{store} holds no complete area means", [f"found {found}; {fix}"])
    return xr.open_zarr(store, decode_timedelta=False).load()


def sums_at_places(
    aligned: Mapping[str, Aligned],
    names: tuple[str, ...],
    *,
    by: tuple[str, ...],
    root: str,
    memory: str | int,
    report: Report,
    progress: bool | None = None,
) -> xr.Dataset:
    """Sums over the starts at each cell, of values that all models have there.

    Parameters
    ----------
    aligned, memory, report, progress
        As for `area_means`.
    names : tuple of str
        Of `xscalemixer.verification.metrics.CELLWISE`.
    by : tuple of str
        Where "lead_time" is not in it, sums run over lead times, too.
    root : "after" or "before"
        Sum squared quantities, or their roots.

    Returns
    -------
    Dataset
        Each variable with dims ``(mean, model, [lead_time], [level], *cells)``, float64; ``mean`` has ``count``, too.
    """
    lazy = lambda block: _lazy_sums(aligned, names, block, root)
    blocks = batches(aligned, lazy, memory, report)
    over = () if "lead_time" in by else ("lead_time",)
    total: dict[int, xr.Dataset] = {}
    with _bar(blocks, progress) as bar:
        for block in blocks:
            (sums,) = _compute(lazy(block).sum(over) if over else lazy(block))
            first = 0 if over else block["lead_time"][0]
            total[first] = total[first] + sums if first in total else sums
            bar.update(_fields(block))
    return total[0] if over else xr.concat([total[first] for first in sorted(total)], "lead_time")


def batches(
    aligned: Mapping[str, Aligned], lazy: Callable[[Block], xr.Dataset], memory: str | int, report: Report
) -> list[Block]:
    """Blocks of starts, and of lead times where one start is too much, within the bounds on memory and on the graph.

    Parameters
    ----------
    aligned : dict of Aligned
    lazy : callable
        ``lazy(block)``, what is computed of a block.
    memory : str or int
        Bound for the fields of a batch.
    report : Report
        Receives a warning where chunks are read many times over.
    """
    sizes = [next(iter(aligned.values())).position.sizes[dim] for dim in _AXES]
    field = sum(_bytes_of_a_field(one) for one in aligned.values())  # all variables at one start and lead time
    tasks = _tasks(lazy({"reference_time": [0, 1], "lead_time": [0, sizes[1]]}))
    most = max(1, min(_bytes(memory) // max(1, field), _TASKS * sizes[1] // max(1, tasks)))
    starts, leads = max(1, most // sizes[1]), min(sizes[1], most)
    chunk = max(max(_chunks(one.forecast, "reference_time"), default=1) for one in aligned.values())
    starts -= starts % chunk if starts > chunk else 0
    blocks: list[Block] = [
        {"reference_time": [i, min(i + starts, sizes[0])], "lead_time": [j, min(j + leads, sizes[1])]}
        for i in range(0, sizes[0], starts)
        for j in range(0, sizes[1], leads)
    ]
    for name, one in aligned.items():
        _tell_waste(name, one, blocks, report)
    return blocks


def _bytes(memory: str | int) -> int:
    from dask.utils import parse_bytes

    try:
        return parse_bytes(memory)
    except ValueError:
        raise InputError("these scores cannot be computed", [f"memory={memory!r}; needed bytes, such as '1 GiB'"]) from None


def _bytes_of_a_field(one: Aligned) -> int:
    beside = one.forecast.isel(member=0, missing_dims="ignore")
    return sum(array.nbytes for ds in (one.forecast, beside) for array in ds.values()) // one.position.size


def _chunks(ds: xr.Dataset, dim: str) -> Iterator[int]:
    yield from (max(array.chunksizes[dim]) for array in ds.values() if array.chunks is not None and dim in array.dims)


def _tasks(lazy: xr.Dataset) -> int:
    import dask

    (lazy,) = dask.optimize(lazy)
    return len(lazy.__dask_graph__() or ())


def _tell_waste(name: str, one: Aligned, blocks: Sequence[Block], report: Report) -> None:
    """Warn where chunks hold much more along an axis than a batch uses, so that they are read again for every batch."""
    parts = [one.position.isel(_spans(block)).values for block in blocks]
    times = [np.unique(part[part >= 0]) for part in parts]
    used = {dim: [np.arange(*block[dim]) for block in blocks] for dim in _AXES}
    for what, ds, axes in ((name, one.forecast, used), ("truth", one.analysis, {"time": times})):
        lazy = {key: array for key, array in ds.items() if array.chunks is not None}
        read = sum(_read(array, axes) for array in lazy.values())
        needed = sum(_needed(array, axes) for array in lazy.values())
        if read > _WASTE * needed and read - needed > _MUCH:
            held = ", ".join(f"{max(_chunks(ds, dim))} along {dim}" for dim in axes)
            found = f"chunks of {held} are read again for each of {len(blocks)} batches"
            found += f": {read / 1e9:.3g} GB are read for {needed / 1e9:.3g} GB"
            sizes = ", ".join(f"{dim}={max(map(len, places))}" for dim, places in axes.items())
            fix = f"Rechunk once, ds.chunk({sizes}, latitude=-1, longitude=-1).to_zarr(...), or give more memory="
            if fix not in [finding.fix for finding in report]:
                report.warn(f"{what}: chunks", found, fix)
                warnings.warn(f"{what}: {found}. {fix}", UserWarning, stacklevel=6)


def _needed(array: xr.DataArray, axes: Mapping[str, list[np.ndarray]]) -> float:
    """Bytes that all batches use."""
    return array.nbytes * sum(math.prod([len(p) / array.sizes[dim] for dim, p in zip(axes, batch, strict=True)])
                              for batch in zip(*axes.values(), strict=True))  # fmt: skip


def _read(array: xr.DataArray, axes: Mapping[str, list[np.ndarray]]) -> float:
    """Bytes of the chunks that all batches touch."""
    bounds = {dim: np.cumsum(array.chunksizes[dim]) for dim in axes}
    share = 0.0
    for batch in zip(*axes.values(), strict=True):
        touched = [np.unique(np.searchsorted(bounds[dim], places, side="right")) for dim, places in zip(axes, batch, strict=True)]
        share += np.prod([
            np.take(array.chunksizes[dim], chunks).sum() / array.sizes[dim] for dim, chunks in zip(axes, touched, strict=True)
        ])  # fmt: skip
    return array.nbytes * share


def _spans(block: Block) -> dict[str, slice]:
    return {dim: slice(*block[dim]) for dim in _AXES}


def _fields(block: Block) -> int:
    return int(np.prod([last - first for first, last in block.values()]))


def _bar(blocks: list[Block], progress: bool | None):
    return progress_bar(sum(map(_fields, blocks)), " fields", "score", progress)


def _computed(blocks, aligned, names, template, progress) -> Iterator[tuple[Block, xr.Dataset]]:
    with _bar(blocks, progress) as bar:
        for block in blocks:
            (values,) = _compute(_lazy_means(aligned, names, block))
            yield block, values.map(lambda array: array.transpose(*template[array.name].dims))
            bar.update(_fields(block))


def _compute(*lazy):
    import dask

    return dask.compute(*lazy)


def _lazy_means(aligned: Mapping[str, Aligned], names: tuple[str, ...], block: Block) -> xr.Dataset:
    """Area means of a batch, not yet computed."""
    parts = {model: _in_pieces(one.part(**_spans(block))) for model, one in aligned.items()}
    known = _known_to_all(parts) if len(parts) > 1 else {}  # models are compared on the same values
    out = []
    for part in parts.values():
        truth, background, means = part.truth, part.climatology, {}
        for name, field in part.forecast.items():
            order = [dim for dim in field.dims if dim != "member"]
            target = truth[name].where(known[name]) if known else truth[name]
            normal = None if background is None else background[name].transpose(*order)
            means[name] = field_means(names, field, target.transpose(*order), part.area, normal)
        out.append(xr.Dataset(means))
    return xr.concat(out, xr.Variable("model", list(parts)))


def _lazy_sums(aligned: Mapping[str, Aligned], names: tuple[str, ...], block: Block, root: str) -> xr.Dataset:
    """Sums over the starts of a batch at each cell, not yet computed."""
    parts = {model: _in_pieces(one.part(**_spans(block))) for model, one in aligned.items()}
    known = _known_to_all(parts)
    out = []
    for part in parts.values():
        truth, sums = part.truth, {}
        for name, field in part.forecast.items():
            order = [dim for dim in field.dims if dim != "member"]
            target = truth[name].transpose(*order)
            valid = (known[name] & (part.area > 0)).transpose(*order) & target.notnull()
            sums[name] = place_sums(names, field, target, valid, part.area.dims, root)
        out.append(xr.Dataset(sums))
    return xr.concat(out, xr.Variable("model", list(parts)))


def _in_pieces(part: Aligned) -> Aligned:
    """Small chunks joined: the overhead of a task is that of a hundred small fields."""
    return replace(part, forecast=part.forecast.map(lambda array: _joined(array, part.area.dims), keep_attrs=True))


def _joined(array: xr.DataArray, cells: tuple[Hashable, ...]) -> xr.DataArray:
    if array.chunks is None:
        return array
    starts, leads = (array.sizes[dim] for dim in _AXES)
    fields = max(1, _PIECE * starts * leads // max(1, array.nbytes))
    wanted = {"reference_time": max(1, fields // leads), "lead_time": fields}
    whole = [dim for dim in ("member", *cells) if dim in array.dims]
    # chunks that are larger already stay as they are
    sizes = {dim: array.chunksizes[dim] if max(array.chunksizes[dim]) >= size else size for dim, size in wanted.items()}
    return array.chunk(sizes | dict.fromkeys(whole, -1))


def _known_to_all(parts: Mapping[str, Aligned]) -> dict[Hashable, xr.DataArray]:
    """Where all members of all models have a value, by variable."""
    has = lambda field: field.notnull().all("member") if "member" in field.dims else field.notnull()
    names = next(iter(parts.values())).forecast
    return {name: reduce(and_, (has(part.forecast[name]) for part in parts.values())) for name in names}


def _template(aligned: Mapping[str, Aligned], names: tuple[str, ...], blocks: list[Block]) -> xr.Dataset:
    """All area means with their coordinates, lazily NaN, in chunks of a batch."""
    import dask.array

    first = next(iter(aligned.values()))
    kept = first.forecast.isel(dict.fromkeys(first.area.dims, 0), drop=True).isel(member=0, drop=True, missing_dims="ignore")
    sizes: dict[Hashable, int] = {dim: blocks[0][dim][1] for dim in _AXES}
    means = ["share", "weight", *names]
    out = {}
    for name, array in kept.items():
        dims = ("mean", "model", *_AXES, *(dim for dim in array.dims if dim not in _AXES))
        shape = [{"mean": len(means), "model": len(aligned), **kept.sizes}[dim] for dim in dims]
        chunks = [sizes.get(dim, size) for dim, size in zip(dims, shape, strict=True)]
        attrs = {key: array.attrs[key] for key in ("standard_name", "long_name", "units") if key in array.attrs}
        out[name] = dims, dask.array.full(shape, np.nan, dtype="f8", chunks=chunks), attrs
    coords = {dim: (dim, kept[dim].values, kept[dim].attrs) for dim in (*_AXES, "level") if dim in kept.dims}
    members = ("model", [one.forecast.sizes.get("member", 1) for one in aligned.values()])
    return xr.Dataset(out, coords | {"mean": means, "model": list(aligned), "members": members})


def _fingerprint(aligned: Mapping[str, Aligned], names: tuple[str, ...], attrs: Mapping[str, str]) -> dict:
    """What makes an evaluation this one: settings, coordinates, and the values of five fields and of the climatology."""
    first = next(iter(aligned.values()))
    samples = np.unique(np.linspace(0, first.position.sizes["reference_time"] - 1, _SAMPLES).round().astype(int))
    starts = first.position["reference_time"].values
    cells = [first.area.values, *(first.analysis[c].values for c in ("latitude", "longitude"))]
    settings = {
        "area means": list(names),
        **attrs,
        "variables": {name: array.attrs.get("units") for name, array in first.forecast.items()},
        "levels": first.forecast["level"].values.tolist() if "level" in first.forecast.dims else [],
        "starts": f"{starts.size} from {starts.min()} to {starts.max()}, sha256 {_sha256(starts)}",
        "lead times": first.position["lead_time"].values.tolist(),
        "cells": f"{first.area.size}, sha256 {_sha256(*cells)}",
    }
    for model, one in aligned.items():
        lead = one.position.sizes["lead_time"] - 1
        fields = [one.part(reference_time=slice(i, i + 1), lead_time=slice(j, j + 1)) for i in samples for j in (0, lead)]
        values = [
            array.values for ds in _compute(*(f.forecast for f in fields), *(f.truth for f in fields)) for array in ds.values()
        ]
        members = one.forecast.sizes.get("member", 1)
        settings[f"model {model}"] = f"{members} members, fields of {samples.size} starts sha256 {_sha256(*values)}"
    if first.normal is not None:
        (normal,) = _compute(first.normal.isel(dayofyear=[0, -1]))
        settings["climatology"] = f"sha256 {_sha256(*(array.values for array in normal.values()))}"
    return settings


def _sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).view("u1").data)
    return digest.hexdigest()[:16]
