"""Starts: from the datasets of a user to the state that a model starts from, with a report of all that is wrong."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
import pandas as pd
import torch
import xarray as xr

from xscalemixer.conform import conform, require_dataset, valid_times
from xscalemixer.errors import GridError, InputError, TimeError
from xscalemixer.forecaster import Branch, Forecaster
from xscalemixer.grids import Grid, grid_of
from xscalemixer.physics.humidity import Phase
from xscalemixer.physics.pressure import LAPSE_RATE, pressure_at_altitude, standard_temperature
from xscalemixer.regridding import regrid
from xscalemixer.report import Report
from xscalemixer.state import HOUR, HOURS, State, fields_of

__all__ = ["Start", "branches_of", "minute", "prepare", "starts_at"]


@dataclass(frozen=True)
class Start:
    """A prepared start on the grids of a model.

    Attributes
    ----------
    model : Forecaster
    time : numpy.datetime64
    outer : Tensor, shape (1, C_g, H, W), physical
    inner : Tensor, shape (1, 6, C_r, h, w), physical, or None
        Regional hours t-5..t; None for a cold start.
    west_negative : bool
        The input counts longitudes from -180 to 180 degrees.
    """

    model: Forecaster
    time: np.datetime64
    outer: torch.Tensor
    inner: torch.Tensor | None
    west_negative: bool

    @property
    def cold(self) -> bool:
        """True if the regional history has to be invented."""
        return self.inner is None

    @cached_property
    def state(self) -> State:
        """The state at the start, on the device of the model; a cold start invents the regional history here."""
        outer = self.outer.to(self.model.device)
        inner = self.model.invent_history(outer, self.time) if self.inner is None else self.inner.to(self.model.device)
        return State(self.time, outer, inner)


def prepare(ds, model: Forecaster, *, regional=None, init_time=None, rh_phase=None) -> tuple[Start | None, Report]:
    """Conform, regrid and collect the start; it is None where the report has errors."""
    report = Report(f"input for {model.name!r}")
    if rh_phase not in (None, *get_args(Phase)):
        needed = ", ".join(f'"{phase}"' for phase in get_args(Phase))
        report.error("rh_phase", repr(rh_phase), f"one of {needed}, or none", kind=InputError)
        rh_phase = "water"  # said already; look on for other problems
    if isinstance(regional, xr.DataTree):
        fix = 'Take the group that holds them: regional=tree["regional"].to_dataset()'
        report.error("regional", "a DataTree", "a Dataset of hourly analyses", fix)
        regional = None
    if isinstance(ds, xr.DataTree):
        ds, regional = branches_of(ds, regional, report)
        if ds is None:
            return None, report
    for data in (ds,) if regional is None else (ds, regional):
        require_dataset(data)
    time = _start_time(ds, regional, init_time, report)
    if time is None and (time := _latest(ds)) is None:  # look at the latest state all the same, to list every problem
        return None, report
    starts = starts_at(np.array([time]), ds, model, report, regional=regional, rh_phase=rh_phase)
    return starts[0] if starts else None, report


def starts_at(times, ds: xr.Dataset, model: Forecaster, report: Report, *, regional=None, rh_phase=None) -> list[Start]:
    """Prepared starts at sorted times that the data have, read together; none where the report gets errors."""
    terrain = model.network.outer.statics[0].cpu().numpy() * 1000.0
    outer, west_negative = _on_model_grid(ds, model.outer, times, report, rh_phase, "driver", terrain)
    inner, hours = None, times[:, None] - np.arange(HOURS)[::-1] * HOUR
    if regional is None:
        report.assume("regional", "no analyses given; the six hours before the start are invented from the driver (cold start)")
    else:
        history = np.unique(hours)
        inner, _ = _on_model_grid(regional, model.inner, history, report, rh_phase, "regional analyses")
    if outer is None or not report.ok:
        return []
    starts = []
    for i, time in enumerate(times):
        before = None if inner is None else torch.from_numpy(inner[np.searchsorted(history, hours[i])])[None]
        starts.append(Start(model, time, torch.from_numpy(outer[i : i + 1]), before, west_negative))
    return starts


def branches_of(tree: xr.DataTree, regional, report: Report) -> tuple[xr.Dataset | None, xr.Dataset | None]:
    """The two groups of a tree."""
    if "global" not in tree.children:
        report.error("groups", f"found {list(tree.children) or 'none'}", "'/global' (and '/regional' for a warm start)",
                     'Build it with xr.DataTree.from_dict({"/global": ds, "/regional": analyses}).')  # fmt: skip
        return None, None
    others = sorted(set(tree.children) - {"global", "regional"})
    if others:
        report.error(
            "groups", f"unknown groups {others}", "'/global' and '/regional' only", f'Drop or rename them: "/{others[0]}".'
        )
    inside = tree["regional"].to_dataset() if "regional" in tree.children else None
    return tree["global"].to_dataset(), regional if regional is not None else inside


def _latest(ds: xr.Dataset) -> np.datetime64 | None:
    """Last valid time of a dataset, if it has any."""
    times = valid_times(ds, Report(""))
    return times.max() if times.size else None


def _start_time(ds, regional, init_time, report: Report) -> np.datetime64 | None:
    """The start: as asked, or the last time that both inputs have."""
    wanted = None if init_time is None else _moment(init_time, report)
    available = valid_times(ds, report)
    if regional is not None:
        analyses = valid_times(regional, report)
        both = np.intersect1d(available, analyses)
        if available.size and analyses.size and not both.size:
            spans = [f"{minute(times.min())} to {minute(times.max())}" for times in (available, analyses)]
            found = f"driver ({spans[0]}) and regional analyses ({spans[1]}) have no time in common"
            report.error("time", found, "the driver at the start and hourly analyses up to it", kind=TimeError)
        available = both
    if not available.size:
        if report.ok:
            report.error("time", "no time at all", "at least one", kind=TimeError)
        return None
    if init_time is None:
        return available.max()
    if wanted is None:
        return None
    if wanted not in available:
        nearest = available[np.abs(available - wanted).argmin()]
        report.error("init_time", f"{minute(wanted)} is not in the data ({minute(available.min())} to {minute(available.max())})",
                     fix=f'Nearest: init_time="{minute(nearest)}".', kind=TimeError)  # fmt: skip
        return None
    return wanted


def _moment(init_time, report: Report) -> np.datetime64 | None:
    """A date in any form that pandas reads, or a scalar array of one, as UTC."""
    given = init_time.values if isinstance(init_time, xr.DataArray) else init_time
    if isinstance(given, np.ndarray) and given.size == 1:
        given = given.reshape(-1)[0]
    text = given.isoformat() if hasattr(given, "isoformat") else given  # cftime too
    try:
        moment = pd.NaT if isinstance(text, numbers.Number) else pd.Timestamp(text)
    except (ValueError, TypeError):
        moment = pd.NaT
    if moment is pd.NaT:
        report.error("init_time", f"{given!r} is not a date", "an ISO date such as '2011-01-15T12'", kind=TimeError)
        return None
    return np.datetime64(moment.tz_convert(None) if moment.tz else moment, "ns")


def _on_model_grid(
    ds, branch: Branch, times, report: Report, rh_phase, what: str, terrain_of_model: np.ndarray | None = None
) -> tuple[np.ndarray | None, bool]:
    """Fields of one branch at the given times on its grid, shape (T, C, H, W); problems go to the report.

    The second value tells whether the source has negative longitudes.
    """
    canonical, findings = conform(ds, branch.schema, times=np.atleast_1d(times), rh_phase=rh_phase, title=what)
    report.extend(findings, f"{what}: ")
    if not findings.ok:
        return None, False
    source, west_negative = grid_of(canonical), bool((canonical["longitude"] < 0).any())
    if isinstance(source, Grid) and (share := source.outside(branch.grid)) > 0:
        report.error(what, f"{100 * share:.0f} % of the model's grid lies outside the data ({source})", f"{branch.grid}",
                     "Give data that cover it, or pick another model from xsm.models().", kind=GridError)  # fmt: skip
        return None, west_negative
    names = list(branch.schema.names)
    if source == branch.grid:
        return fields_of(canonical[names], branch.schema), west_negative
    moved = regrid(canonical[[*names, *(["orog"] if "orog" in canonical and terrain_of_model is not None else [])]], branch.grid)
    report.assume(what, f"regridded: {moved.attrs['regridding']}")
    carried = " and ".join(name for name in ("t2m", "sp") if name in names)
    if terrain_of_model is not None and carried and "orog" in moved:
        moved = _onto_terrain(moved, terrain_of_model)
        report.assume(what, f"{carried} moved from its own terrain to the model's (standard lapse rate, hypsometric equation)")
    elif terrain_of_model is not None and carried:
        report.warn(what, "no orography; its surface fields are taken as if they lay on the model's terrain")
    fields = fields_of(moved, branch.schema)
    holes = np.isnan(fields)
    if holes.any():
        report.error(
            what, f"{100 * holes.mean():.1f} % of the values are missing on the model's grid", "complete fields", kind=GridError
        )
    return fields, west_negative


def _onto_terrain(ds: xr.Dataset, terrain: np.ndarray) -> xr.Dataset:
    """Carry t2m and sp from the dataset's orography to the terrain of the model, shape (H, W), m."""
    temperature = ds["t2m"] - LAPSE_RATE * (terrain - ds["orog"]) if "t2m" in ds else standard_temperature(terrain)
    if "t2m" in ds:
        ds = ds.assign(t2m=temperature)
    return ds.assign(sp=pressure_at_altitude(ds["sp"], ds["orog"], terrain, temperature)) if "sp" in ds else ds


def minute(time: np.datetime64) -> str:
    """A time as text, to the minute."""
    return str(time.astype("datetime64[m]"))
