"""The border between xarray and torch: datasets to tensors in physical units, and the known future (sun, calendar)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from xscalemixer.grids import Grid, cell_steps, grid_of
from xscalemixer.physics import terrain
from xscalemixer.physics.solar import SOLAR_CONSTANT, hourly_insolation
from xscalemixer.variables import Schema

__all__ = [
    "GROUPS",
    "HOUR",
    "HOURS",
    "STATICS",
    "Insolation",
    "State",
    "calendar_features",
    "channels_of",
    "fields_of",
    "inner_insolation",
    "level_insolation",
    "outer_insolation",
    "statics_of",
]

HOUR = np.timedelta64(1, "h")
HOURS = 6  # hours per step of the coupled model, and regional hours in its state
GROUPS = {"outer": "global", "inner": "regional"}  # parts of a state, and where their data are in a tree
Insolation = Callable[[np.ndarray], np.ndarray]  # ends of hours (T,) to the means over them, W m-2, shape (T, h, w)
STATICS = ("orog", "lsm", "slope", "slope_east", "slope_north", "roughness")  # the first two are always there


@dataclass
class State:
    """Where a roll-out stands, physical units.

    Attributes
    ----------
    time : numpy.datetime64
        Valid time t.
    outer : Tensor, shape (1, C_g, H, W), optional
        Global fields at t; None for a region alone.
    inner : Tensor, shape (1, T, C_r, h, w)
        Regional fields at t-T+1..t hours.
    """

    time: np.datetime64
    outer: Tensor | None
    inner: Tensor

    @property
    def parts(self) -> dict[str, Tensor]:
        """The parts that there are, by name."""
        return {name: part for name in GROUPS if (part := getattr(self, name)) is not None}

    def to(self, device) -> State:
        """The same state on another device."""
        return State.of(self.time, {name: part.to(device) for name, part in self.parts.items()})

    @classmethod
    def of(cls, time: np.datetime64, parts: Mapping[str, Tensor]) -> State:
        """Inverse of `parts`."""
        return cls(time, parts.get("outer"), parts["inner"])


def fields_of(ds: xr.Dataset, schema: Schema) -> np.ndarray:
    """Canonical dataset to one array, channels in schema order.

    Parameters
    ----------
    ds : Dataset with dims (time, [level], latitude, longitude)

    Returns
    -------
    array, shape (T, C, H, W), float32, canonical units
    """
    return channels_of(ds, schema).values.astype("f4")


def channels_of(ds: xr.Dataset, schema: Schema) -> xr.DataArray:
    """The same as `fields_of`, as lazy as the dataset: dims (time, channel, latitude, longitude)."""
    columns = [ds[variable.name].sel(level=level, drop=True) if level else ds[variable.name]
               for variable in schema.variables for level in variable.levels or (None,)]  # fmt: skip
    return xr.concat(columns, "channel", coords="minimal", compat="override").transpose("time", "channel", ...)


def statics_of(ds: xr.Dataset, names: tuple[str, ...] = STATICS[:2]) -> np.ndarray:
    """Fields that do not change, all of about the size of 1.

    Parameters
    ----------
    ds : canonical dataset with ``orog`` and ``lsm``
    names : tuple of str
        Some of `STATICS`. ``orog``: km. ``lsm``: land fraction. ``slope``: steepness of the ground, ``slope_east`` and
        ``slope_north``: rise toward east and north, m per 10 m (the aspect, without a jump at north). ``roughness``: standard
        deviation of the heights of 5 x 5 cells, 100 m.

    Returns
    -------
    array, shape (len(names), H, W), float32
    """
    height = np.asarray(ds["orog"], dtype=float)
    fields = {"orog": height / 1000.0, "lsm": np.asarray(ds["lsm"])}
    if set(names) - set(fields):
        east, north = terrain.gradient(height, cell_steps(grid_of(ds))) * 10.0
        fields |= {"slope": np.hypot(east, north), "slope_east": east, "slope_north": north}
        fields["roughness"] = terrain.roughness(height) / 100.0
    return np.stack([fields[name] for name in names]).astype("f4")


def calendar_features(time: np.ndarray | np.datetime64, parts: tuple[str, ...] = ("hour", "day")) -> Tensor:
    """Sine and cosine of the hour of day and of the day of year; parts not named are zero.

    Parameters
    ----------
    time : array of datetime64, shape (B,)

    Returns
    -------
    Tensor, shape (B, 4)
    """
    time = np.atleast_1d(time).astype("datetime64[s]")
    year = time.astype("datetime64[Y]")
    length = ((year + 1).astype("datetime64[s]") - year.astype("datetime64[s]")) / np.timedelta64(1, "s")
    turns = {
        "hour": (time - time.astype("datetime64[D]")) / np.timedelta64(1, "D"),
        "day": (time - year.astype("datetime64[s]")) / np.timedelta64(1, "s") / length,
    }
    waves = [f(2 * np.pi * turn) * (name in parts) for name, turn in turns.items() for f in (np.sin, np.cos)]
    return torch.as_tensor(np.stack(waves, -1), dtype=torch.float32)


def outer_insolation(time: np.datetime64, grid: Grid) -> Tensor:
    """Mean insolation over the six hours before and after t, in units of a quarter solar constant, shape (1, 2, H, W)."""
    ends = np.array([time, time + np.timedelta64(HOURS, "h")])
    flux = hourly_insolation(ends, *_mesh(grid), hours=HOURS)
    return torch.from_numpy(flux / np.float32(SOLAR_CONSTANT / 4))[None]


def level_insolation(grid: Grid) -> Insolation:
    """Above the air, on level ground."""
    return lambda ends: hourly_insolation(ends, *_mesh(grid))


def inner_insolation(time: np.datetime64, insolation: Insolation, first: int = 1 - HOURS, last: int = HOURS) -> Tensor:
    """Hourly mean insolation for hours t+first..t+last in W m-2, shape (1, last - first + 1, h, w)."""
    return torch.from_numpy(insolation(time + np.arange(first, last + 1).astype("timedelta64[h]")))[None]


def _mesh(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    return np.array(grid.latitude)[:, None], np.array(grid.longitude)[None, :]
