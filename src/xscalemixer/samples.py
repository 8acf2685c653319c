"""Training samples: windows of consecutive six-hour steps cut from global and regional time series."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import Dataset

from xscalemixer.errors import SchemaError, TimeError
from xscalemixer.grids import Grid
from xscalemixer.reduction import to_sea_level
from xscalemixer.state import HOUR, HOURS, Insolation, calendar_features, channels_of, fields_of, outer_insolation
from xscalemixer.variables import Schema, Stats

__all__ = [
    "GlobalPairs",
    "LazyFields",
    "Sequences",
    "Series",
    "Survey",
    "Windows",
    "pair_starts",
    "sequence_starts",
    "survey",
    "window_starts",
]

_BLOCK = 2**26  # bytes of a block that is surveyed at once
_KEPT = 2**28  # bytes of chunks, and of insolation, that are kept for the next samples


class Fields(Protocol):
    """What a series needs of its values: an array, or something that reads one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, C, H, W)."""

    def __getitem__(self, times: slice | np.ndarray) -> np.ndarray:
        """Values at some times, by their numbers in ascending order; float32."""


class LazyFields:
    """Fields that are read when they are asked for, in whole chunks of time; the last chunks are kept. Threads may share it.

    Parameters
    ----------
    ds : canonical dataset, dask arrays
    schema : Schema
    """

    def __init__(self, ds: xr.Dataset, schema: Schema):
        self._array = channels_of(ds, schema)
        self.shape: tuple[int, ...] = self._array.shape
        self._ends = np.cumsum(self._array.chunksizes["time"])
        per_time = 4 * int(np.prod(self.shape[1:]))
        self.chunk = int(max(self._array.chunksizes["time"]))  # times that are read at once
        self._read = lru_cache(max(2, _KEPT // (self.chunk * per_time)))(self._chunk)

    def __getitem__(self, times: slice | np.ndarray) -> np.ndarray:
        """Values at some times, by their numbers in ascending order; float32."""
        places = np.arange(self.shape[0])[times]
        chunks = np.searchsorted(self._ends, places, side="right")
        values = [self._read(number)[places[chunks == number] - self._bounds(number)[0]] for number in np.unique(chunks).tolist()]
        return values[0] if len(values) == 1 else np.concatenate(values)

    def _bounds(self, number: int) -> tuple[int, int]:
        return (int(self._ends[number - 1]) if number else 0), int(self._ends[number])

    def _chunk(self, number: int) -> np.ndarray:
        return self._array.isel(time=slice(*self._bounds(number))).values.astype("f4")


@dataclass(frozen=True)
class Series:
    """Fields of one branch along time.

    Attributes
    ----------
    time : array of datetime64, shape (T,), ascending
    values : array or `LazyFields`, shape (T, C, H, W), float32, canonical units
    """

    time: np.ndarray
    values: Fields

    @classmethod
    def of(cls, ds: xr.Dataset, schema: Schema, *, lazy: bool = False) -> Series:
        """From a canonical dataset; in memory, or read piece by piece."""
        return cls(ds["time"].values.astype("datetime64[ns]"), LazyFields(ds, schema) if lazy else fields_of(ds, schema))

    def within(self, periods: Iterable[tuple]) -> np.ndarray:
        """True for times with start < time <= end of any period, shape (T,)."""
        inside = [(self.time > np.datetime64(start)) & (self.time <= np.datetime64(end)) for start, end in periods]
        return np.logical_or.reduce(inside)

    def blocks(self) -> Iterator[slice]:
        """Consecutive times whose values are read together, in order."""
        size = max(1, _BLOCK // (4 * int(np.prod(self.values.shape[1:]))))
        if isinstance(self.values, LazyFields):
            size = self.values.chunk * max(1, size // self.values.chunk)
        return (slice(first, first + size) for first in range(0, self.time.size, size))


class Survey(NamedTuple):
    """What one pass over a series tells: statistics, and a hash of times and values."""

    stats: Stats
    digest: str


def survey(
    series: Series,
    schema: Schema,
    periods,
    *,
    zero_mean: tuple[str, ...] = (),
    source: str = "",
    height: np.ndarray | None = None,
) -> Survey:
    """Mean and standard deviation per channel over the given periods, and a hash of everything; reads the values once.

    Sums are those of differences to the mean of the first training time: nothing cancels, and they do not depend on the blocks.

    Parameters
    ----------
    zero_mean : tuple of str
        Channels that keep zero as zero: mean 0, and the root mean square in place of the standard deviation.
    height : array, shape (H, W), m, optional
        Of the ground: the statistics are those of fields reduced to sea level, see `reduction`.

    Raises
    ------
    TimeError
        If the periods hold no data.
    SchemaError
        If a channel is the same everywhere and always; all such channels are named.
    """
    inside, digest = series.within(periods), hashlib.sha256(series.time.tobytes())
    if not inside.any():
        span = f"{series.time[0]} to {series.time[-1]}" if series.time.size else "nothing"
        raise TimeError("no data in the training periods", [f"the data span {span}; the periods are {periods}"])
    reduced = (lambda values: values) if height is None else _reduction(schema, height)
    first = int(inside.argmax())
    near = reduced(series.values[first : first + 1]).mean((0, 2, 3), dtype="f8").astype("f4")[:, None, None]
    count, total, square = 0, np.zeros(len(schema)), np.zeros(len(schema))
    low, high = np.full(len(schema), np.inf), np.full(len(schema), -np.inf)
    for block in series.blocks():
        values = series.values[block]
        digest.update(np.ascontiguousarray(values).view("u1").data)
        known = values[inside[block]]
        low = np.minimum(low, known.min((0, 2, 3), initial=np.inf))
        high = np.maximum(high, known.max((0, 2, 3), initial=-np.inf))
        change = reduced(known) - near
        count += change.size // len(schema)
        total += change.sum((0, 2, 3), dtype="f8")
        square += np.square(change, out=change).sum((0, 2, 3), dtype="f8")
    apart = total / count
    mean, std = near.ravel() + apart, np.sqrt(np.maximum(square / count - apart**2, 0.0))
    constant = [c for c, a, b in zip(schema.channels, low, high, strict=True) if b - a <= 1e-6 * max(abs(a), abs(b))]
    if constant:
        found = f"{', '.join(constant)}: the same value everywhere in the training periods; needed fields that change"
        raise SchemaError(
            "nothing can be learned from a constant", [f"{found}. Look at where the data come from, or give longer periods"]
        )
    free = [schema.channels.index(channel) for channel in zero_mean]
    std[free], mean[free] = np.hypot(std[free], mean[free]), 0.0
    rows = [(c, float(f"{m:.8g}"), float(f"{s:.8g}")) for c, m, s in zip(schema.channels, mean, std, strict=True)]
    stats = Stats(mean={c: m for c, m, _ in rows}, std={c: s for c, _, s in rows}, source=source, reduced=height is not None)
    return Survey(stats, digest.hexdigest()[:16])


def _reduction(schema: Schema, height: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fields (..., C, H, W) to sea level."""
    offset, factor = to_sea_level(schema, height)
    return lambda values: (values - offset) / factor


class Windows(Dataset):
    """Samples of ``steps`` consecutive six-hour steps, all inside one period; threads may share it.

    A sample starts at any global time from which global fields every six hours and regional fields every hour are there: with
    hourly global data at any hour. It is a dict of tensors, normalized except where noted:

    - ``outer`` (steps + 1, C_g, H, W): global states at t, t+6, ...
    - ``inner`` (6 (steps + 1), C_r, h, w): regional hours t-5 .. t+6 steps
    - ``outer_forcing`` (steps, 2, H, W), ``inner_forcing`` (steps, 12, h, w): insolation
    - ``calendar`` (steps, 4)

    Parameters
    ----------
    outer, inner : Series
        Physical values.
    grid : Grid
        Of the globe.
    scales : (mean, std), (mean, std)
        Of the global and of the regional fields, shape (C,) or (C, H, W) each.
    periods : list of (start, end)
        Start exclusive, end inclusive; no window crosses from one into another.
    steps : int
    insolation : callable
        Ends of hours (T,) to the mean insolation of the region (T, h, w), normalized.
    calendar : tuple of str
        Parts of the calendar that are given to the network.

    Raises
    ------
    TimeError
        If no window fits.
    """

    def __init__(
        self,
        outer: Series,
        inner: Series,
        grid: Grid,
        scales,
        periods,
        steps: int,
        insolation: Insolation,
        calendar: tuple[str, ...],
    ):
        self.outer, self.inner, self.steps, self.calendar = outer, inner, steps, calendar
        self.scales = [tuple(map(_by_channel, scale)) for scale in scales]
        self.starts = window_starts(outer.time, inner.time, periods, steps)
        first = outer.time[[i for i, _ in self.starts]]
        self._states = np.searchsorted(outer.time, _every_six_hours(first, steps))  # (N, steps + 1)
        self._inner_sun = _kept(lambda j: insolation(inner.time[j : j + 1])[0], inner.values.shape[2:])
        self._outer_sun = _kept(lambda i: outer_insolation(outer.time[i], grid)[0], (2, *grid.shape))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        states, j = self._states[item], self.starts[item][1]
        hours = range(j - HOURS + 1, j + HOURS * self.steps + 1)
        sun = torch.from_numpy(np.stack([self._inner_sun(hour) for hour in hours]))
        return {
            "outer": _normalized(self.outer, states, *self.scales[0]),
            "inner": _normalized(self.inner, slice(hours.start, hours.stop), *self.scales[1]),
            "outer_forcing": torch.stack([self._outer_sun(int(i)) for i in states[:-1]]),
            "inner_forcing": sun.unfold(0, 2 * HOURS, HOURS).movedim(-1, 1).contiguous(),
            "calendar": calendar_features(self.outer.time[states[:-1]], self.calendar),
        }


class GlobalPairs(Dataset):
    """Global states six hours apart, with or without regional hours; threads may share it.

    A sample is a dict of tensors as in `Windows`: ``outer`` (2, C_g, H, W), normalized, and ``outer_forcing`` (1, 2, H, W).

    Parameters
    ----------
    outer : Series
    grid : Grid
    scale : (mean, std), shape (C_g,) each
    periods : list of (start, end)
        Start exclusive, end inclusive.

    Raises
    ------
    TimeError
        If no pair fits.
    """

    def __init__(self, outer: Series, grid: Grid, scale, periods):
        self.outer = outer
        self.scale = tuple(map(_by_channel, scale))
        self.pairs = pair_starts(outer.time, periods)
        self._sun = _kept(lambda i: outer_insolation(outer.time[i], grid)[0], (2, *grid.shape))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        pair = self.pairs[item]
        return {"outer": _normalized(self.outer, pair, *self.scale), "outer_forcing": self._sun(int(pair[0]))[None]}


class Sequences(Dataset):
    """Consecutive hours of one series, all inside one period; threads may share it.

    A sample is a dict of tensors, normalized: ``past`` (T, C, H, W) and ``future`` (T', C, H, W).

    Parameters
    ----------
    series : Series
    scale : (mean, std), shape (C,) each
    periods : list of (start, end)
        Start exclusive, end inclusive; no sample crosses from one into another.
    past, future : int
        T and T'.

    Raises
    ------
    TimeError
        If no sample fits.
    """

    def __init__(self, series: Series, scale, periods, past: int, future: int):
        self.series, self.past, self.future = series, past, future
        self.scale = tuple(map(_by_channel, scale))
        self.starts = sequence_starts(series.time, periods, past + future)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        first = int(self.starts[item])
        fields = _normalized(self.series, slice(first, first + self.past + self.future), *self.scale)
        return {"past": fields[: self.past], "future": fields[self.past :]}


def _kept(function: Callable[[int], Any], shape: tuple[int, ...]) -> Callable[[int], Any]:
    """A function of an index that remembers as many of its fields as fit into memory set aside for that."""
    return lru_cache(max(32, _KEPT // (4 * int(np.prod(shape)))))(function)


def _by_channel(statistic: np.ndarray) -> np.ndarray:
    """Shape (C,) or (C, H, W) to one that broadcasts against (T, C, H, W)."""
    values = np.asarray(statistic, "f4")
    return values[:, None, None] if values.ndim == 1 else values


def _normalized(series: Series, times: slice | np.ndarray, mean: np.ndarray, std: np.ndarray) -> Tensor:
    return torch.from_numpy((series.values[times] - mean) / std)


def pair_starts(time: np.ndarray, periods: Iterable[tuple]) -> np.ndarray:
    """Indices of the times in one of the periods (start exclusive) and of those six hours later in it, shape (N, 2).

    Raises
    ------
    TimeError
        If there is none.
    """
    pairs = _places(time, _every_six_hours(time, 1))
    later = time + HOURS * HOUR
    inside = [(time > np.datetime64(start)) & (later <= np.datetime64(end)) for start, end in periods]
    found = pairs[(pairs >= 0).all(1) & np.logical_or.reduce(inside)]
    if not found.size:
        problem = f"found {time.size} global times and none with another one {HOURS} h later within the {len(inside)} periods"
        raise TimeError("there is nothing to train on", [problem])
    return found


def sequence_starts(time: np.ndarray, periods: Iterable[tuple], hours: int) -> np.ndarray:
    """Indices of the times from which consecutive hours without a gap fit into one of the periods, shape (N,).

    Parameters
    ----------
    time : array of datetime64, shape (T,)
        Ascending, at least an hour apart.
    periods : iterable of (start, end)
        Start exclusive, end inclusive.
    hours : int

    Raises
    ------
    TimeError
        If there is none.
    """
    last = time + (hours - 1) * HOUR
    gapless = _places(time, last) - np.arange(time.size) == hours - 1
    inside = [(time > np.datetime64(start)) & (last <= np.datetime64(end)) for start, end in periods]
    found = np.flatnonzero(gapless & np.logical_or.reduce(inside))
    if not found.size:
        held = int(np.logical_or.reduce([(time > np.datetime64(a)) & (time <= np.datetime64(b)) for a, b in periods]).sum())
        problem = f"found {held} times in {len(inside)} periods and no {hours} consecutive hours without a gap within one of them"
        raise TimeError("there is nothing to train on", [problem])
    return found


def window_starts(outer: np.ndarray, inner: np.ndarray, periods: Iterable[tuple], steps: int) -> list[tuple[int, int]]:
    """Index pairs (global, regional) of the times from which a whole window fits into one of the periods.

    Parameters
    ----------
    outer, inner : array of datetime64, shapes (T_g,) and (T_r,)
        Times of the two series, ascending; regional ones at least an hour apart.
    periods : iterable of (start, end)
        Start exclusive, end inclusive.
    steps : int

    Raises
    ------
    TimeError
        If no window fits.
    """
    pairs = [(np.datetime64(start), np.datetime64(end)) for start, end in periods]
    found = _starts(outer, inner, pairs, steps)
    if not found:
        held = [sum(int(((time > start) & (time <= end)).sum()) for start, end in pairs) for time in (outer, inner)]
        have = f"no training window fits into {len(pairs)} periods with {held[0]} global and {held[1]} regional times"
        needed = f"{HOURS} hours before and {HOURS * steps} hours after a global time, without a gap"
        raise TimeError("there is nothing to train on", [f"{have}; needed {needed}"])
    return found


def _starts(outer: np.ndarray, inner: np.ndarray, periods: list[tuple], steps: int) -> list[tuple[int, int]]:
    """Index pairs (global, regional), period by period."""
    first, last = outer - (HOURS - 1) * HOUR, outer + HOURS * steps * HOUR
    begin, end = _places(inner, first), _places(inner, last)
    gapless = (
        (begin >= 0) & (end - begin == HOURS * (steps + 1) - 1) & (_places(outer, _every_six_hours(outer, steps)) >= 0).all(1)
    )
    chosen = [np.flatnonzero(gapless & (start < first) & (last <= stop)) for start, stop in periods]
    return [(i, j + HOURS - 1) for each in chosen for i, j in zip(each.tolist(), begin[each].tolist(), strict=True)]


def _every_six_hours(time: np.ndarray, steps: int) -> np.ndarray:
    """Times t, t+6, ... t + 6 steps: (N,) -> (N, steps + 1)."""
    return time[:, None] + HOURS * np.arange(steps + 1) * HOUR


def _places(time: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Number of each wanted time in a series of ascending times, -1 where it is not there; any shape."""
    if not time.size:
        return np.full(wanted.shape, -1)
    places = np.searchsorted(time, wanted)
    return np.where(time[np.minimum(places, time.size - 1)] == wanted, places, -1)
