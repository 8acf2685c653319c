"""Hindcasts: forecasts from many starts, checked before the first is computed, on one machine or many workers."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from functools import lru_cache
from os import PathLike

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from xscalemixer.conform import valid_times
from xscalemixer.errors import InputError, TimeError
from xscalemixer.model import ForecastModel
from xscalemixer.output import forecast_dataset
from xscalemixer.progress import progress_bar
from xscalemixer.report import Report
from xscalemixer.running import (
    device_of,
    horizon,
    in_convention,
    model_of,
    provenance,
    require_store,
    run_blocks,
    state_digest,
)
from xscalemixer.starting import Start, data_of, minute, prepare, starts_at
from xscalemixer.state import HOUR, State
from xscalemixer.store import BlockStore

__all__ = ["hindcast"]

_MEMORY = 2**30  # bytes of starts that are held at once
_CHUNK = 2**24  # bytes of a variable in one chunk of a store, at most
_Problems = dict[np.datetime64, list[tuple[type[InputError], str]]]  # of each start: kind and words


def hindcast(
    driver: xr.Dataset | xr.DataTree,
    init_times,
    hours: int = 48,
    *,
    model: str | PathLike | ForecastModel | None = None,
    regional: xr.Dataset | None = None,
    rh_phase: str | None = None,
    to: str | PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Hourly regional forecasts from many starts.

    All starts are checked before the first forecast is computed. With an active client of dask.distributed each worker runs
    one start after the other; the weights are sent to each worker once.

    Parameters
    ----------
    driver : Dataset or DataTree
        Global fields at all starts, as `xscalemixer.forecast` takes them. A DataTree has ``/global`` and, for warm starts,
        ``/regional``. For a model of a region alone: its hourly fields.
    init_times : array of datetime-like
        Starts, such as ``pd.date_range("2001-08-10", "2001-08-20", freq="12h")``; without a time zone they are UTC.
    hours : int
        Length of each forecast. Text such as ``"2 days"`` works too.
    model, rh_phase, device
        As for `xscalemixer.forecast`.
    regional : Dataset, optional
        Hourly regional analyses; each start needs those of the six hours up to it. Without them the history is invented
        (cold start).
    to : path, optional
        Write to this Zarr store, start by start; default: the result is in memory.
    resume, overwrite : bool
        Go on with, or replace, an existing store at ``to``. A start that was cut off is made again.
    progress : bool, optional
        Show a progress bar; default: only in a terminal or notebook.

    Returns
    -------
    Dataset
        Dims ``(reference_time, lead_time, latitude, longitude)``, starts in order of time; opened lazily from ``to`` if given.

    Raises
    ------
    SchemaError, GridError, TimeError, InputError
        Before anything is computed or written, listing every start that cannot be made, and why.
    """
    hours, model = horizon(hours), model_of(model)
    require_store(to, resume or overwrite)
    source = _Source(driver, model, regional, rh_phase, _times(init_times))
    model.to(device_of(device))
    digest, describe = source.check(hours)
    template = _assembled(source.times, _nothing(model, hours), hours, describe)
    if to is None:
        with progress_bar(source.times.size * hours, "h", "hindcast", progress) as bar:
            made = dict(_runs(model, source, source.times, hours, bar))
        return _assembled(source.times, [made[time] for time in source.times], hours, describe)
    run = {
        "weights": model.weights_sha256(),
        "starts": f"{source.times.size} from {source.times.min()} to {source.times.max()}",
        "hours": hours,
        "input": digest,
    }
    blocks = [{"reference_time": [i, i + 1]} for i in range(source.times.size)]
    store = BlockStore.resume(to, run) if resume else BlockStore.create(to, template, run, blocks, overwrite=overwrite)
    with store, progress_bar(source.times.size * hours, "h", "hindcast", progress) as bar:
        pending = source.times[[block["reference_time"][0] for block in store.pending]]
        bar.update((source.times.size - pending.size) * hours)
        for time, fields in _runs(model, source, pending, hours, bar):
            i = int(np.searchsorted(source.times, time))
            store.write(blocks[i], _assembled(source.times[[i]], [fields], hours, describe))
        store.finish()
    return xr.open_zarr(to)


class _Source:
    """Where starts come from; holds one group of prepared starts at a time."""

    def __init__(self, driver, model: ForecastModel, regional, rh_phase, times: np.ndarray):
        report = Report(f"input for {model.name!r}")
        self._data = data_of(driver, regional, model, report)
        report.raise_errors("no hindcast was made")
        self.times = times
        self._model, self._given = model, {"ds": driver, "regional": regional, "rh_phase": rh_phase}
        self._group = lru_cache(maxsize=1)(self._prepared)

    def groups(self, times: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[Start, ...], Report]]:
        """Starts at these times, group by group."""
        step = max(1, _MEMORY // sum(each.nbytes for each in self._model.inputs))
        for first in range(0, times.size, step):
            group = times[first : first + step]
            starts, report = self._group(tuple(group))
            yield group, starts, report

    def check(self, hours: int) -> tuple[str, dict]:
        """Look at all starts; their digest, and what describes all forecasts.

        Raises
        ------
        InputError
            Listing every start that cannot be made.
        """
        self._check_times()
        digest = hashlib.sha256()
        problems: _Problems = {}
        for group, starts, report in self.groups(self.times):
            if not report.ok:
                problems |= self._one_by_one(group, report)
            for start in starts:
                digest.update(state_digest(start.state).encode())
        _refuse(problems, self._model)
        attrs = provenance(self._model, starts[0], report, hours)
        number = self.times.size
        attrs |= {
            "title": f"{hours}-hour regional hindcast by {self._model.name}, {number} starts",
            "input_sha256": digest.hexdigest(),
        }
        describe = {
            "schema": self._model.inner.schema,
            "grid": in_convention(self._model.inner.grid, starts[0].west_negative),
            "attrs": attrs,
            "static": self._model.static,
        }
        return digest.hexdigest(), describe

    def _prepared(self, times: tuple[np.datetime64, ...]) -> tuple[tuple[Start, ...], Report]:
        report = Report(f"input for {self._model.name!r}")
        starts = starts_at(np.array(times), self._data, self._model, report, rh_phase=self._given["rh_phase"])
        return tuple(starts), report

    def _check_times(self) -> None:
        """All hours up to every start that the model needs are in the data.

        Raises
        ------
        TimeError
            Listing every start that is not.
        """
        report = Report("input")
        problems: _Problems = {}
        for each in (each for each in self._model.inputs if each.part in self._data):
            known = valid_times(self._data[each.part], report)
            report.raise_errors("no hindcast was made")
            hours = self.times[:, None] - np.arange(each.hours) * HOUR
            lost = ~np.isin(hours, known)
            span = f"{minute(known.min())} to {minute(known.max())}" if known.size else "no time"
            for time, row, missing in zip(self.times, hours, lost, strict=True):
                if missing.any():
                    hour = ", ".join(minute(t) for t in np.sort(row[missing]))
                    problems.setdefault(time, []).append((TimeError, f"not in the {each.words} ({span}): {hour}"))
        _refuse(problems, self._model)

    def _one_by_one(self, times: np.ndarray, whole: Report) -> _Problems:
        """Problems of each start of a group that has some."""
        problems: _Problems = {}
        for time in times:
            _, report = prepare(model=self._model, init_time=time, **self._given)
            if not report.ok:
                problems[time] = [(finding.error, str(finding)) for finding in report.select("error")]
        return problems or {times[0]: [(finding.error, str(finding)) for finding in whole.select("error")]}


def _refuse(problems: _Problems, model: ForecastModel) -> None:
    """Raise one error that lists all starts with problems, those with the same problem together."""
    alike: dict[str, list[np.datetime64]] = {}
    for time, ones in problems.items():
        for _, text in ones:
            alike.setdefault(text, []).append(time)
    if alike:
        kinds = {kind for ones in problems.values() for kind, _ in ones}
        kind = kinds.pop() if len(kinds) == 1 else InputError
        lines = [f"{', '.join(map(minute, times))}: {text}" for text, times in alike.items()]
        lines[-1] += ". Leave these starts out, or give complete data"
        raise kind(f"{len(problems)} starts cannot be made by {model.name!r}", lines)


def _times(init_times) -> np.ndarray:
    """Starts in UTC and in order, shape (N,) datetime64[ns].

    Raises
    ------
    TimeError
        If they are no dates, none, or not all different.
    """
    try:
        times = pd.to_datetime(np.atleast_1d(init_times), utc=True).tz_localize(None).to_numpy("datetime64[ns]")
    except (ValueError, TypeError) as error:
        fix = 'pd.date_range("2001-08-10", "2001-08-20", freq="12h")'
        raise TimeError("no hindcast was made", [f"init_times cannot be read as dates ({error}); needed e.g. {fix}"]) from None
    unique, counts = np.unique(times, return_counts=True)
    if not unique.size or np.isnat(unique).any() or counts.max() > 1:
        twice = ", ".join(map(minute, unique[counts > 1]))
        found = f"{twice} more than once" if twice else f"{times.size} starts, {np.isnat(times).sum()} of them missing"
        raise TimeError("no hindcast was made", [f"found {found} in init_times; needed one or more dates, each once"])
    return unique


def _runs(
    model: ForecastModel, source: _Source, times: np.ndarray, hours: int, bar: tqdm
) -> Iterator[tuple[np.datetime64, np.ndarray]]:
    """Start and fields (L, C, h, w) of each forecast as they get ready."""
    client = _client()
    shared = model if client is None else client.scatter(model, broadcast=True, hash=False)
    for _, starts, _ in source.groups(times):
        if client is None:
            for start in starts:
                yield start.time, _run(model, start.state, hours, bar)
        else:
            from distributed import as_completed

            jobs = {client.submit(_run, shared, start.state, hours, pure=False): start.time for start in starts}
            for job in as_completed(jobs):
                yield jobs[job], job.result()
                bar.update(hours)
                job.release()


def _run(model: ForecastModel, start: State, hours: int, bar: tqdm | None = None) -> np.ndarray:
    """One forecast, shape (L, C, h, w)."""
    silent = tqdm(disable=True) if bar is None else bar
    try:
        blocks = run_blocks(model, start.to(model.device), hours, 0, silent)
        return np.concatenate([fields for _, fields in blocks])
    except InputError as error:
        raise InputError(f"the hindcast stopped at the start {minute(start.time)}", error.problems) from error


def _client():
    """The active client of dask.distributed, if there is one."""
    if "distributed" not in sys.modules:
        return None
    from distributed import default_client

    try:
        return default_client()
    except ValueError:
        return None


def _nothing(model: ForecastModel, hours: int) -> Iterator[np.ndarray]:
    """Lazy fields without values, in the chunks of a store, without end."""
    import dask.array

    cells = int(np.prod(model.inner.grid.shape))
    leads = min(hours, max(1, _CHUNK // (4 * cells)))
    shape = (hours, len(model.inner.schema), *model.inner.grid.shape)
    while True:
        yield dask.array.full(shape, np.nan, dtype="f4", chunks=(leads, *shape[1:]))


def _assembled(times: np.ndarray, fields, hours: int, describe: dict) -> xr.Dataset:
    """One dataset of the forecasts from several starts."""
    leads = np.arange(1, hours + 1)
    parts = [
        forecast_dataset(f, reference_time=time, lead_time=leads, **describe) for time, f in zip(times, fields, strict=False)
    ]
    return xr.concat(parts, "reference_time", data_vars="minimal", coords="minimal", compat="override", combine_attrs="override")
