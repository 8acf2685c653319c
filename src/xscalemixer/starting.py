"""Starts: from the datasets of a user to the state that a model starts from, with a report of all that is wrong."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
import pandas as pd
import torch
import xarray as xr

from xscalemixer.conform import conform, require_dataset, valid_times
from xscalemixer.errors import GridError, InputError, TimeError
from xscalemixer.grids import Grid, grid_of
from xscalemixer.model import ForecastModel, Input
from xscalemixer.physics.humidity import Phase
from xscalemixer.physics.pressure import LAPSE_RATE, pressure_at_altitude, standard_pressure, standard_temperature
from xscalemixer.regridding import regrid
from xscalemixer.report import Report
from xscalemixer.state import GROUPS, HOUR, State, fields_of

__all__ = ["Start", "data_of", "minute", "prepare", "starts_at"]


@dataclass(frozen=True)
class Start:
    """A prepared start on the grids of a model.

    Attributes
    ----------
    model : ForecastModel
    time : numpy.datetime64
    fields : dict of Tensor, shape (1, T, C, H, W), physical
        Hours up to the start, by part of the state; what was not given is not there.
    west_negative : bool
        The input counts longitudes from -180 to 180 degrees.
    """

    model: ForecastModel
    time: np.datetime64
    fields: dict[str, torch.Tensor]
    west_negative: bool

    @property
    def cold(self) -> bool:
        """True if something has to be invented."""
        return len(self.fields) < len(self.model.inputs)

    @cached_property
    def state(self) -> State:
        """The state at the start, on the device of the model; a cold start invents the regional history here."""
        return self.model.begin(self.time, {part: fields.to(self.model.device) for part, fields in self.fields.items()})


def prepare(ds, model: ForecastModel, *, regional=None, init_time=None, rh_phase=None) -> tuple[Start | None, Report]:
    """Conform, regrid and collect the start; it is None where the report has errors."""
    report = Report(f"input for {model.name!r}")
    if rh_phase not in (None, *get_args(Phase)):
        needed = ", ".join(f'"{phase}"' for phase in get_args(Phase))
        report.error("rh_phase", repr(rh_phase), f"one of {needed}, or none", kind=InputError)
        rh_phase = "water"  # said already; look on for other problems
    data = data_of(ds, regional, model, report)
    if not data:
        return None, report
    time = _start_time(data, model, init_time, report)
    if time is None and (time := _latest(data)) is None:  # look at the latest state all the same, to list every problem
        return None, report
    starts = starts_at(np.array([time]), data, model, report, rh_phase=rh_phase)
    return starts[0] if starts else None, report


def starts_at(times, data: Mapping[str, xr.Dataset], model: ForecastModel, report: Report, *, rh_phase=None) -> list[Start]:
    """Prepared starts at sorted times that the data have, read together; none where the report gets errors."""
    fields, west_negative = {}, False
    for each in model.inputs:
        if each.part not in data:
            report.assume(each.group, each.otherwise)
            continue
        hours = times[:, None] - np.arange(each.hours)[::-1] * HOUR
        wanted = np.unique(hours)
        found, negative = _on_model_grid(data[each.part], each, _held(data[each.part], each, wanted, report), report, rh_phase)
        west_negative |= negative and each is model.inputs[0]
        if found is not None and len(found) == len(wanted):
            fields[each.part] = found[np.searchsorted(wanted, hours)]
    if not report.ok:
        return []
    pick = lambda i: {part: torch.from_numpy(values[i : i + 1]) for part, values in fields.items()}
    return [Start(model, time, pick(i), west_negative) for i, time in enumerate(times)]


def data_of(ds, regional, model: ForecastModel, report: Report) -> dict[str, xr.Dataset]:
    """What was given, by part of the state; nothing where the report gets errors.

    Raises
    ------
    SchemaError
        If something is neither a Dataset nor a DataTree.
    """
    first, *others = model.inputs
    if isinstance(regional, xr.DataTree):
        fix = 'Take the group that holds them: regional=tree["regional"].to_dataset()'
        report.error("regional", "a DataTree", "a Dataset of hourly analyses", fix)
        regional = None
    given = {first.group: ds}
    if isinstance(ds, xr.DataTree):
        given = _groups_of(ds, model, report)
    if regional is not None and not others:
        found = f"a driver, and regional= beside it; {model.name!r} starts from {first.words} of its region alone"
        report.error("regional", found, "one dataset", "xsm.forecast(regional, model=...)", kind=InputError)
    elif regional is not None:
        given["regional"] = regional
    for data in given.values():
        require_dataset(data)
    return {each.part: given[each.group] for each in model.inputs if each.group in given} if first.group in given else {}


def _groups_of(tree: xr.DataTree, model: ForecastModel, report: Report) -> dict[str, xr.Dataset]:
    """The groups of a tree that a model starts from; others, and a missing first one, go to the report."""
    groups = [each.group for each in model.inputs]
    first, found = groups[0], list(tree.children)
    needed = " and ".join(f"'/{group}'" for group in groups)
    if first not in found:
        required, *optional = (f"'/{group}'" for group in groups)
        warm = f" (and {optional[0]} for a warm start)" if optional else ""
        entries = ", ".join(f'"/{group}": {name}' for group, name in zip(groups, ("ds", "analyses"), strict=False))
        report.error(
            "groups", f"found {found or 'none'}", required + warm, f"Build it with xr.DataTree.from_dict({{{entries}}})."
        )
        return {}
    if unknown := sorted(set(found) - set(GROUPS.values())):
        report.error("groups", f"unknown groups {unknown}", f"{needed} only", f'Drop or rename them: "/{unknown[0]}".')
    if unused := sorted(set(found) & set(GROUPS.values()) - set(groups)):
        fix = f'Take the group that it starts from: tree["{first}"].to_dataset().scalemixer'
        report.error("groups", f"'/{unused[0]}', which {model.name!r} does not use", f"{needed} alone", fix, kind=InputError)
    return {group: tree[group].to_dataset() for group in groups if group in found}


def _held(ds: xr.Dataset, each: Input, wanted: np.ndarray, report: Report) -> np.ndarray:
    """Those of the hours up to the start that the data have; missing ones go to the report."""
    if each.hours == 1:
        return wanted
    known = valid_times(ds, Report(""))
    missing = np.setdiff1d(wanted, known)
    if not missing.size or not known.size:
        return wanted
    step = np.diff(known).min() / HOUR if known.size > 1 else 1.0
    shown = ", ".join(map(minute, missing[:12])) + (f" and {missing.size - 12} more" if missing.size > 12 else "")
    found = f"every {step:g} h" if step > 1 else f"{minute(known[0])} to {minute(known[-1])}"
    fix = "Get hourly data; they are not interpolated in time" if step > 1 else f"Give data from {minute(missing[0])} on"
    later = np.array([t for t in known if np.isin(t - np.arange(each.hours) * HOUR, known).all()])
    fix += f', or start at one of the hours from init_time="{minute(later[0])}" on' if later.size else ""
    needed = f"hourly fields of the {each.hours} hours up to the start"
    report.error(f"{each.words}: time", f"{found}, without {shown}", needed, fix, kind=TimeError)
    held = np.intersect1d(wanted, known)
    return held if held.size else known[-1:]


def _latest(data: Mapping[str, xr.Dataset]) -> np.datetime64 | None:
    """Last valid time of what a model is called on, if it has any."""
    times = valid_times(next(iter(data.values())), Report(""))
    return times.max() if times.size else None


def _start_time(data: Mapping[str, xr.Dataset], model: ForecastModel, init_time, report: Report) -> np.datetime64 | None:
    """The start: as asked, or the last time that all inputs have."""
    wanted = None if init_time is None else _moment(init_time, report)
    available, *others = (valid_times(ds, report) for ds in data.values())
    for analyses in others:
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


def _on_model_grid(ds, each: Input, times, report: Report, rh_phase) -> tuple[np.ndarray | None, bool]:
    """Fields of one input at the given times on its grid, shape (T, C, H, W); problems go to the report.

    The second value tells whether the source has negative longitudes.
    """
    branch, what, terrain_of_model = each.branch, each.words, each.terrain
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
    carried = " and ".join(name for name in ("t2m", "sp") if name in names and terrain_of_model is not None)
    terrain = terrain_of_model if carried and "orog" in canonical else None
    moved = regrid(canonical[names] if terrain is None else _at_sea_level(canonical[[*names, "orog"]]), branch.grid)
    report.assume(what, f"regridded: {moved.attrs['regridding']}")
    if terrain is not None:
        moved = _onto_terrain(_at_sea_level(moved, back=True), terrain)
        report.assume(what, f"{carried} moved from its own terrain to the model's (standard lapse rate, hypsometric equation)")
    elif carried:
        report.warn(what, "no orography; its surface fields are taken as if they lay on the model's terrain")
    fields = fields_of(moved, branch.schema)
    holes = np.isnan(fields)
    if holes.any():
        report.error(
            what, f"{100 * holes.mean():.1f} % of the values are missing on the model's grid", "complete fields", kind=GridError
        )
    return fields, west_negative


def _at_sea_level(ds: xr.Dataset, back: bool = False) -> xr.Dataset:
    """Pressure reduced by the standard atmosphere, or back: over relief its mean is not the pressure at the mean height."""
    share = standard_pressure(ds["orog"]) / standard_pressure(0.0)
    return ds.assign(sp=ds["sp"] * share if back else ds["sp"] / share) if "sp" in ds else ds


def _onto_terrain(ds: xr.Dataset, terrain: np.ndarray) -> xr.Dataset:
    """Carry t2m and sp from the dataset's orography to the terrain of the model, shape (H, W), m."""
    temperature = ds["t2m"] - LAPSE_RATE * (terrain - ds["orog"]) if "t2m" in ds else standard_temperature(terrain)
    if "t2m" in ds:
        ds = ds.assign(t2m=temperature)
    return ds.assign(sp=pressure_at_altitude(ds["sp"], ds["orog"], terrain, temperature)) if "sp" in ds else ds


def minute(time: np.datetime64) -> str:
    """A time as text, to the minute."""
    return str(time.astype("datetime64[m]"))
