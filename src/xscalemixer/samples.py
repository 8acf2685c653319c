"""Training samples: windows of consecutive six-hour steps cut from global and regional time series."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import Dataset

from xscalemixer.errors import TimeError
from xscalemixer.grids import Grid
from xscalemixer.physics.solar import hourly_insolation
from xscalemixer.state import HOURS, calendar_features, fields_of, outer_insolation
from xscalemixer.variables import Schema, Stats

__all__ = ["Series", "Windows", "estimate_stats", "window_starts"]

HOUR = np.timedelta64(1, "h")


@dataclass(frozen=True)
class Series:
    """Fields of one branch along time, in memory.

    Attributes
    ----------
    time : array of datetime64, shape (T,), ascending
    values : array, shape (T, C, H, W), float32, canonical units
    """

    time: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, ds: xr.Dataset, schema: Schema) -> Series:
        """From a canonical dataset."""
        return cls(ds["time"].values.astype("datetime64[ns]"), fields_of(ds, schema))

    def within(self, periods: Iterable[tuple]) -> np.ndarray:
        """True for times with start < time <= end of any period, shape (T,)."""
        inside = [(self.time > np.datetime64(start)) & (self.time <= np.datetime64(end)) for start, end in periods]
        return np.logical_or.reduce(inside)


def estimate_stats(series: Series, schema: Schema, periods, *, zero_mean: tuple[str, ...] = (), source: str = "") -> Stats:
    """Mean and standard deviation per channel over the given periods.

    Parameters
    ----------
    zero_mean : tuple of str
        Channels that keep zero as zero: mean 0, and the root mean square in place of the standard deviation.

    Raises
    ------
    TimeError
        If the periods hold no data.
    """
    values = series.values[series.within(periods)]
    if not len(values):
        span = f"{series.time[0]} to {series.time[-1]}" if series.time.size else "nothing"
        raise TimeError("no data in the training periods", [f"the data span {span}; the periods are {periods}"])
    mean = values.mean((0, 2, 3), dtype="f8")
    mean[[schema.channels.index(channel) for channel in zero_mean]] = 0.0
    std = np.sqrt(((values - mean[:, None, None].astype("f4")) ** 2).mean((0, 2, 3), dtype="f8"))
    pairs = zip(schema.channels, mean, std, strict=True)
    rows = [(channel, float(f"{m:.8g}"), float(f"{s:.8g}")) for channel, m, s in pairs]
    return Stats(mean={c: m for c, m, _ in rows}, std={c: s for c, _, s in rows}, source=source)


class Windows(Dataset):
    """Samples of ``steps`` consecutive six-hour steps, all inside one period.

    A sample is a dict of tensors, normalized except where noted:

    - ``outer`` (steps + 1, C_g, H, W): global states at t, t+6, ...
    - ``inner`` (6 (steps + 1), C_r, h, w): regional hours t-5 .. t+6 steps
    - ``outer_forcing`` (steps, 2, H, W), ``inner_forcing`` (steps, 12, h, w): insolation
    - ``calendar`` (steps, 4)

    Parameters
    ----------
    outer, inner : Series
        Normalized values.
    grids : (Grid, Grid)
        Global and regional grid.
    periods : list of (start, end)
        Start exclusive, end inclusive; no window crosses from one into another.
    steps : int
    sunlit_scale : float
        W m-2 that the regional insolation is divided by (the std of ``ssrd``).
    calendar : tuple of str
        Parts of the calendar that are given to the network.

    Raises
    ------
    TimeError
        If no window fits.
    """

    def __init__(
        self, outer: Series, inner: Series, grids: tuple[Grid, Grid], periods, steps: int, sunlit_scale: float, calendar
    ):
        self.outer, self.inner, self.steps, self.calendar = outer, inner, steps, calendar
        self.starts = window_starts(outer.time, inner.time, periods, steps)
        lat, lon = np.array(grids[1].latitude)[:, None], np.array(grids[1].longitude)[None, :]
        self.inner_sun = hourly_insolation(inner.time, lat, lon) / np.float32(sunlit_scale)  # (T_r, h, w)
        self.outer_sun = torch.cat([outer_insolation(time, grids[0]) for time in outer.time])  # (T_g, 2, H, W)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        i, j = self.starts[item]
        hours = slice(j - HOURS + 1, j + HOURS * self.steps + 1)
        sun = torch.from_numpy(self.inner_sun[hours])
        return {
            "outer": torch.from_numpy(self.outer.values[i : i + self.steps + 1]),
            "inner": torch.from_numpy(self.inner.values[hours]),
            "outer_forcing": self.outer_sun[i : i + self.steps],
            "inner_forcing": sun.unfold(0, 2 * HOURS, HOURS).movedim(-1, 1).contiguous(),
            "calendar": calendar_features(self.outer.time[i : i + self.steps], self.calendar),
        }


def window_starts(outer: np.ndarray, inner: np.ndarray, periods: Iterable[tuple], steps: int) -> list[tuple[int, int]]:
    """Index pairs (global, regional) of the times from which a whole window fits into one of the periods.

    Parameters
    ----------
    outer, inner : array of datetime64, shapes (T_g,) and (T_r,)
        Times of the two series, ascending.
    periods : iterable of (start, end)
        Start exclusive, end inclusive.
    steps : int

    Raises
    ------
    TimeError
        If no window fits.
    """
    pairs = [(np.datetime64(start), np.datetime64(end)) for start, end in periods]
    found = [start for pair in pairs for start in _starts(outer, inner, *pair, steps)]
    if not found:
        held = [sum(int(((time > start) & (time <= end)).sum()) for start, end in pairs) for time in (outer, inner)]
        have = f"no training window fits into {len(pairs)} periods with {held[0]} global and {held[1]} regional times"
        needed = f"{HOURS} hours before and {HOURS * steps} hours after a global time, without a gap"
        raise TimeError("there is nothing to train on", [f"{have}; needed {needed}"])
    return found


def _starts(outer: np.ndarray, inner: np.ndarray, start, end, steps: int) -> Iterable[tuple[int, int]]:
    """Index pairs (global, regional) of the times t from which a whole window fits between start and end."""
    for i, t in enumerate(outer[: outer.size - steps]):
        j = int(np.searchsorted(inner, t))
        first, last = j - HOURS + 1, j + HOURS * steps
        if first < 0 or last >= inner.size or inner[j] != t:
            continue
        inside = start < inner[first] and inner[last] <= end
        gapless = inner[last] - inner[first] == (last - first) * HOUR and outer[i + steps] - t == steps * HOURS * HOUR
        if inside and gapless:
            yield i, j
