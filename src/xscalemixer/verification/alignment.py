"""Forecasts beside their truth: the same variables, units, valid times and places, and a report of how they got there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from xscalemixer.conform import Holdings, holdings, require_dataset, translate
from xscalemixer.conform.grid import to_canonical_grid
from xscalemixer.conform.match import Inventory
from xscalemixer.conform.radiation import INTERVAL, processing, to_mean_flux
from xscalemixer.conform.time import to_valid_time
from xscalemixer.errors import GridError, SchemaError, TimeError
from xscalemixer.grids import CurvilinearGrid, Grid, grid_of
from xscalemixer.layouts import is_forecast, to_forecast
from xscalemixer.output import TIME_ATTRS
from xscalemixer.projections import EARTH_RADIUS
from xscalemixer.regridding import Regridder, regrid
from xscalemixer.report import Report
from xscalemixer.stations import bring_to_stations, holds_stations, is_canonical, read, read_places
from xscalemixer.variables import CATALOG, Schema

__all__ = ["Aligned", "CommonGrid", "Region", "align", "at_valid_times", "read_analysis"]

CommonGrid = Literal["coarser", "truth"] | Grid
Region = tuple[float, float, float, float]

_TRUTH, _NORMAL = "the truth", "the climatology"  # beside forecasts, which may be called "climatology"
_FORECAST_DIMS = ("reference_time", "lead_time", "member")
_NOT_PLACES = (*_FORECAST_DIMS, "time", "level", "hour", "dayofyear")
_COARSER = 1.8  # cells at least this many times as large (in area) count as coarser
_SLACK = 0.01  # share of the spacing by which centers of one lattice may differ (rounded coordinates do)
_INTERVAL_FIX = 'ds["ssrd"].attrs["cell_methods"] = "time: mean (interval: 1 hour)"'
_AnyGrid = Grid | CurvilinearGrid


@dataclass(frozen=True)
class Aligned:
    """One forecast beside its truth, in canonical units; lazy where the inputs are.

    Attributes
    ----------
    forecast : xr.Dataset
        Dims ``(reference_time, lead_time, [member], [level], latitude, longitude)``, or ``(..., y, x)`` or ``(..., station)``.
    analysis : xr.Dataset
        The truth at the valid times that it has, dims ``(time, [level], ...)``.
    position : xr.DataArray
        Where the truth of each start and lead time is along ``time``, dims ``(reference_time, lead_time)``; -1 where there is
        none.
    normal : xr.Dataset or None
        The climatology by ``hour`` and ``dayofyear``.
    area : xr.DataArray
        Weights: cell areas in m2, from half-cell bounds of the grid before it was cropped; at stations 1 each.
    """

    forecast: xr.Dataset
    analysis: xr.Dataset
    position: xr.DataArray
    normal: xr.Dataset | None
    area: xr.DataArray

    @property
    def truth(self) -> xr.Dataset:
        """The truth with the dims of the forecast but ``member``; NaN where there is none."""
        analysis = self.analysis
        if _is_lazy(self.forecast) and not _is_lazy(analysis):
            analysis = analysis.chunk(time=24)  # else dask would cut the forecast to one chunk
        picked = analysis.isel(time=self.position.drop_vars(self.position.coords)).drop_vars("time", errors="ignore")
        return _in_chunks_of(self.forecast, _known(picked, self.position))

    @property
    def climatology(self) -> xr.Dataset | None:
        """The climatology at the valid times, with the dims of ``truth``."""
        if self.normal is None:
            return None
        normal = self.normal
        if _is_lazy(self.forecast) and not _is_lazy(normal):
            normal = normal.chunk(dayofyear=1)
        return _in_chunks_of(self.forecast, at_valid_times(normal, _times_of(self.position)))

    def part(self, **spans: slice) -> Aligned:
        """Some starts and lead times: only the truth at their valid times comes along, so that a graph of a part is small."""
        position, used = _used(self.position.isel(spans))
        return replace(self, forecast=self.forecast.isel(spans), analysis=self.analysis.isel(time=used), position=position)


def align(
    forecasts: Mapping[str, xr.Dataset],
    truth: xr.Dataset | pd.DataFrame,
    *,
    climatology: xr.Dataset | None = None,
    variables: Iterable[str] | None = None,
    grid: CommonGrid = "coarser",
    region: Region | None = None,
) -> tuple[dict[str, Aligned], Report]:
    """Bring forecasts and truth to common variables, units, starts, lead times, valid times and cells or stations.

    Parameters
    ----------
    forecasts : dict of xr.Dataset
        In any layout that `xscalemixer.to_forecast` knows, with any names and units.
    truth : xr.Dataset or pd.DataFrame
        Fields at valid times, in any layout; or reports of stations, in any form that `xscalemixer.read_stations` knows without
        further arguments: forecasts on grids are brought to them by `xscalemixer.at_stations` with its defaults, forecasts that
        are at stations are taken as they are.
    climatology : xr.Dataset, optional
        From `xscalemixer.climatology`.
    variables : iterable of str, optional
        Catalog names; default: what one of the datasets holds and the others hold or determine.
    grid : "coarser", "truth" or Grid
        Cells to compare on: the coarsest of the grids, onto which the finer ones are averaged; the truth's; or any other.
    region : (north, west, south, east), optional
        Degrees; cells whose centers lie inside are compared.

    Returns
    -------
    aligned : dict of Aligned
        Lazy where the inputs are.
    report : Report
        Conversions, overlap counts, what was left out.

    Raises
    ------
    SchemaError, GridError, TimeError
        If nothing is left to compare, listing every problem.
    """
    report = Report("this verification")
    asked = _asked(variables)
    at_points = holds_stations(truth)
    forecasts = {name: _forecast_axes(ds, asked, report, name) for name, ds in forecasts.items()}
    _check_places(forecasts, at_points, grid, report)
    analysis = _analysis_axes(truth, asked, report, _TRUTH)
    report.raise_errors("these datasets cannot be compared")
    places = read_places(analysis) if at_points else None
    schema = _common_schema({**forecasts, _TRUTH: analysis}, asked, report)
    forecasts = {name: _forecast_fields(ds, schema, at_points, report, name) for name, ds in forecasts.items()}
    analysis = _translated(analysis, schema, report, _TRUTH, ("time",))
    report.raise_errors("these datasets cannot be compared")
    forecasts, analysis, position = _common_times(forecasts, analysis, report)
    parts = {**forecasts, _TRUTH: analysis}
    if climatology is not None:
        parts[_NORMAL] = _check_climatology(climatology, schema, at_points)
        _days_of(climatology, _times_of(position))
    parts, area = _common_cells(parts, grid, report) if places is None else _common_stations(parts, places, schema.names, report)
    parts, area = _crop(parts, area, region)
    beside = parts[_TRUTH], position, parts.get(_NORMAL), area
    return {name: Aligned(_whole_members(parts[name]), *beside) for name in forecasts}, report


def read_analysis(ds: xr.Dataset | pd.DataFrame, variables: Iterable[str] | None = None) -> tuple[xr.Dataset, Report]:
    """Fields at valid times in canonical names and units; lazy where ``ds`` is.

    Returns
    -------
    analysis : xr.Dataset
        Dims ``(time, [level], latitude, longitude)``, or ``(time, [level], y, x)``, or ``(time, station)``.
    report : Report
        Conversions and assumptions.

    Raises
    ------
    SchemaError, GridError, TimeError
        If the dataset cannot be used, listing every problem.
    """
    report = Report("this dataset")
    asked = _asked(variables)
    analysis = _analysis_axes(ds, asked, report, "")
    report.raise_errors()
    schema = _common_schema({_TRUTH: analysis}, asked, report)
    analysis = _translated(analysis, schema, report, "", ("time",))
    report.raise_errors()
    return analysis, report


def _asked(variables: Iterable[str] | None) -> tuple[str, ...] | None:
    return (variables,) if isinstance(variables, str) else None if variables is None else tuple(variables)


def _forecast_axes(ds: xr.Dataset, asked: tuple[str, ...] | None, report: Report, name: str) -> xr.Dataset:
    require_dataset(ds)
    own = Report(name)
    empty = [str(dim) for dim, size in ds.sizes.items() if not size]
    if empty:
        found = f"{name}: nothing along {', '.join(empty)}"
        raise SchemaError("these datasets cannot be compared", [f"{found}; needed one value at least. Check the selection"])
    ds = to_forecast(_at_lead_zero(_mean_radiation(ds, asked, own), own))
    ds = ds if "station" in ds.dims else to_canonical_grid(ds, own)
    report.extend(own, f"{name}: ")
    return ds


def _at_lead_zero(ds: xr.Dataset, report: Report) -> xr.Dataset:
    """An ensemble of analyses as forecasts of no length; anything else as it is."""
    if not {"time", "member"} <= set(ds.dims) or is_forecast(ds):
        return ds
    report.assume("time", "an ensemble of analyses, taken as forecasts at lead time 0")
    ds = ds.rename(time="reference_time").expand_dims(lead_time=[0])
    ds["reference_time"].attrs, ds["lead_time"].attrs = (dict(TIME_ATTRS[name]) for name in ("reference_time", "lead_time"))
    return ds


def _analysis_axes(ds: xr.Dataset | pd.DataFrame, asked: tuple[str, ...] | None, report: Report, name: str) -> xr.Dataset:
    if holds_stations(ds):
        ds, own = _canonical_stations(ds, name) if is_canonical(ds) else read(ds)
        report.extend(own, f"{name}: " if name else "")
        return ds
    require_dataset(ds)
    own = Report(name)
    ds = to_canonical_grid(to_valid_time(_mean_radiation(ds, asked, own), own), own)
    report.extend(own, f"{name}: " if name else "")
    return ds


def _canonical_stations(ds: xr.Dataset, name: str) -> tuple[xr.Dataset, Report]:
    """Reports that need no reading; files put together may repeat hours or stations."""
    report = Report(name)
    ids = ds["station"].to_index()
    if not ids.is_unique:
        listed = ", ".join(ids[ids.duplicated()].unique()[:5])
        report.error("station", f"ids occur more than once: {listed}", "every station once", 'ds.drop_duplicates("station")')
    return to_valid_time(ds, report), report


def _mean_radiation(ds: xr.Dataset, asked: tuple[str, ...] | None, report: Report) -> xr.Dataset:
    """Radiation as a mean flux; where that is impossible and nobody asked for radiation, it is left out with a warning."""
    if asked is not None and "ssrd" not in asked:
        return ds
    own = Report("")
    ds = to_mean_flux(ds, own)
    for finding in own:
        if finding.severity == "error" and asked is None:
            report.warn(finding.subject, f"not compared: {finding.found}", finding.fix)
        else:
            report.findings.append(finding)
    return ds


def _check_places(forecasts: Mapping[str, xr.Dataset], at_points: bool, choice: CommonGrid, report: Report) -> None:
    """Forecasts at stations need a truth at stations, which has no grid to choose."""
    for name in [name for name, ds in forecasts.items() if "station" in ds.dims and not at_points]:
        found = "is at stations, the truth on a grid"
        report.error(name, found, "both at stations", "Type truth=xsm.at_stations(truth, forecast)", kind=GridError)
    if at_points and choice != "coarser":
        report.error("grid", f"grid={choice!r}, but the truth is at stations", "no grid", "Leave grid= out", kind=GridError)


def _common_schema(datasets: Mapping[str, xr.Dataset], asked: tuple[str, ...] | None, report: Report) -> Schema:
    """Variables and levels that all datasets hold or determine; what is left out is reported, what was asked for an error."""
    held = {side: holdings(ds) for side, ds in datasets.items()}
    without = _left_out(datasets, held, asked, report)
    wanted = tuple(CATALOG) if asked is None else tuple(dict.fromkeys(asked))
    rows, absent = [], {}
    for name in wanted:
        lacking = [side for side, has in held.items() if name not in has.levels]
        levels = sorted(set.intersection(*(set(has.levels[name]) for has in held.values()))) if not lacking else []
        direct = any(name in has.direct for has in held.values()) or asked is not None or len(held) == 1
        if asked is not None and name in CATALOG and CATALOG[name].role == "static":
            report.error(name, "a constant field", "one that changes with time", "Leave it out of variables=")
        elif name not in CATALOG:
            known = [row.name for row in CATALOG.values() if name.lower() in (row.name, row.standard_name, *row.aliases)]
            fix = f"Type variables={known!r}" if known else ""
            report.error(name, "not a variable of the catalog", f"one of {', '.join(CATALOG)}", fix)
        elif name in without:
            continue
        elif lacking:
            absent[name] = lacking
        elif CATALOG[name].levels and not levels:
            report.warn(name, "no pressure level is in all of the datasets; not compared")
        elif direct:
            rows.append(CATALOG[name].at(levels) if levels else CATALOG[name])
    if asked is None:
        if any(row.name == "z" for row in rows):
            rows = [row for row in rows if row.name != "gh"]  # the same quantity
        for side, has in held.items():
            only = sorted(name for name, lacking in absent.items() if name in has.direct)
            if only:
                report.warn(side, f"{', '.join(only)} not compared: not in all of the datasets")
    for name, lacking in absent.items() if asked is not None else ():
        report.error(name, f"not in {', '.join(lacking)}", CATALOG[name].standard_name, "Leave it out of variables=")
    if not rows and report.ok:
        found = "; ".join(f"{side} has {', '.join(has.levels) or 'nothing known'}" for side, has in held.items())
        reasons = "".join(f"; {w.subject}: {w.found}" for w in report.select("warning") if w.subject not in held)
        report.error("variables", f"nothing in common: {found}{reasons}", "one variable that all have, with its CF standard_name")
    report.raise_errors("these datasets cannot be compared")
    _tell_processing(datasets, [row.name for row in rows], report)
    return Schema(tuple(rows))


def _tell_processing(datasets: Mapping[str, xr.Dataset], names: Iterable[str], report: Report) -> None:
    """Warn of variables that are values at a time in one dataset and means over an interval in another."""
    inventories = {side: Inventory(ds, Report("")) for side, ds in datasets.items()}
    for name in names:
        arrays = {side: inventory.find(CATALOG[name]) for side, inventory in inventories.items()}
        words = {side: processing(array, CATALOG[name]) for side, array in arrays.items() if array is not None}
        if len(set(words.values()) - {None}) > 1:
            found = "; ".join(f"{side} has {text}" for side, text in words.items() if text is not None)
            fix = f"Average the former over the intervals of the latter, or leave {name} out of variables="
            report.warn(name, f"instantaneous values against means: {found}", fix)


def _left_out(datasets: Mapping[str, xr.Dataset], held: Mapping[str, Holdings], asked, report: Report) -> set[str]:
    """Variables that no number can be given for, each in the report: as an error if it was asked for."""
    without = {"wd10"}
    tell = lambda name, found, fix: (
        report.warn(name, f"not compared: {found}", fix) if asked is None else report.error(name, found, fix=fix)
    )
    if "wd10" in (asked or ()) or (asked is None and all("wd10" in has.direct for has in held.values())):
        tell("wd10", "an angle has no mean error", "Score u10 and v10")
    lengths = _intervals(datasets, report) if "ssrd" in (asked or CATALOG) and len(datasets) > 1 else {}
    if len({round(hours, 6) for hours, _ in lengths.values()}) > 1:
        without.add("ssrd")
        listed = ", ".join(f"{side} {hours:g} h ({words})" for side, (hours, words) in lengths.items())
        fix = f"Average one to the times of the other; if the interval is another one, state it: {_INTERVAL_FIX}"
        tell("ssrd", f"means over different times: {listed}", fix)
    for side, has in held.items():
        elsewhere = {name for other in held.values() if other is not has for name in other.direct}
        moist = [name for name in has.doubtful if name in (elsewhere if asked is None else asked)]
        if moist:
            without.update(moist)
            found = f"of {side} follow only from relative humidity, and nothing says whether over water, ice or the mixed phase"
            tell(", ".join(moist), found, "Compute q2m first, with xscalemixer.physics.humidity, or set ds.attrs['GRIB_centre']")
    shared = set.intersection(*(set(has.unknown) for has in held.values()))
    if shared and asked is None and len(held) > 1:
        report.warn("variables", f"{', '.join(sorted(shared))} not compared: no variable of the catalog; rename if it is one")
    return without


def _intervals(datasets: Mapping[str, xr.Dataset], report: Report) -> dict[str, tuple[float, str]]:
    """Hours that radiation is a mean over where it is there, and how that is known: stated, or the least spacing of times."""
    found = {}
    for side, ds in datasets.items():
        array = Inventory(ds, Report("")).find(CATALOG["ssrd"])
        leads = "lead_time" in ds.coords
        steps = np.diff(ds["lead_time"].values) if leads else np.diff(ds["time"].values) / np.timedelta64(1, "h")
        if array is not None and INTERVAL in array.attrs:
            found[side] = (array.attrs[INTERVAL], "stated")
        elif array is not None and steps.size:
            found[side] = (float(steps.min()), "the spacing of its times, none stated")
        elif array is not None:
            report.warn("ssrd", f"of {side}: one time only, and nothing says over which time it is a mean", _INTERVAL_FIX)
    return found


def _forecast_fields(ds: xr.Dataset, schema: Schema, at_points: bool, report: Report, name: str) -> xr.Dataset:
    """The variables of the schema; with those that a height correction needs, if the forecast is to be brought to stations."""
    if at_points and "station" not in ds.dims:
        held = holdings(ds)
        needed = [CATALOG["t2m"]] * ("t2m" in held.direct) + [CATALOG["orog"]] * held.has_orography
        schema = Schema((*schema.variables, *(row for row in needed if row.name not in schema.names)))
    return _translated(ds, schema, report, name, _FORECAST_DIMS)


def _translated(ds: xr.Dataset, schema: Schema, report: Report, name: str, dims: tuple[str, ...]) -> xr.Dataset:
    """The variables of the schema in canonical units; each upper-air variable has its own levels."""
    own = Report(name)
    ds = translate(ds, schema, own, dims=dims)
    report.extend(own, f"{name}: " if name else "")
    return ds


def _common_times(forecasts: dict[str, xr.Dataset], analysis: xr.Dataset, report: Report):
    """Starts and lead times that all forecasts have and the truth covers; the truth at the valid times in between."""
    axes = [ds[["reference_time", "lead_time"]].reset_coords(drop=True) for ds in forecasts.values()]
    shared = xr.align(*axes, join="inner")[0]
    leads = shared["lead_time"].values.astype("timedelta64[h]")
    valid = shared["reference_time"].values[:, None] + leads
    place = pd.Index(analysis["time"].values).get_indexer(valid.ravel()).reshape(valid.shape)
    found = place >= 0
    if not found.any():
        spans = [f"{name} is valid {_span(_valid(ds))}" for name, ds in forecasts.items()]
        spans.append(f"the truth {_span(analysis['time'].values)}")
        needed = "forecasts with the same starts and lead times, and a truth at their valid times"
        report.error("time", f"no overlap: {'; '.join(spans)}", needed, _time_fix(valid, analysis["time"].values), kind=TimeError)
        report.raise_errors("these datasets cannot be compared")
    starts, hours = found.any(axis=1), found.any(axis=0)
    for name, ds in forecasts.items():
        total = ds.sizes["reference_time"] * ds.sizes["lead_time"]
        report.assume(
            f"{name}: times", f"{found.sum()} of {total} fields compared: {starts.sum()} starts, {hours.sum()} lead times"
        )
    if starts.sum() == 1:
        report.warn("times", "one start only: these scores are one sample and carry no uncertainty")
    keep = shared.isel(reference_time=starts, lead_time=hours)
    place = xr.DataArray(place[starts][:, hours], keep.coords, ("reference_time", "lead_time"))
    position, used = _used(place)
    forecasts = {name: ds.isel(_places(ds, keep)) for name, ds in forecasts.items()}
    return forecasts, analysis.isel(time=used), position


def _time_fix(valid: np.ndarray, times: np.ndarray) -> str:
    """What to type where the truth lies beside the full hours of the forecast."""
    if not valid.size:
        return "Give forecasts that share starts and lead times"
    offset = (times - times.astype("datetime64[h]")).astype("timedelta64[m]").astype(int)
    if offset[0] == 0 or np.ptp(offset):
        return "Give other times"
    return f'If the truth is meant for full hours: truth["time"] = truth["time"] - np.timedelta64({offset[0]}, "m")'


def _used(place: xr.DataArray) -> tuple[xr.DataArray, slice | np.ndarray]:
    """The times that are used at all, and the places among these; -1 stays."""
    found = place.values >= 0
    used, index = np.unique(place.values[found], return_inverse=True)
    used = used if used.size else np.array([0])  # there is always one to point at
    position = np.full(place.shape, -1)
    position[found] = index
    return place.copy(data=position), _span_of(used)


def _places(ds: xr.Dataset, keep: xr.Dataset) -> dict[str, slice | np.ndarray]:
    """Where the starts and lead times to be kept are."""
    return {dim: _span_of(pd.Index(ds[dim].values).get_indexer(keep[dim].values)) for dim in ("reference_time", "lead_time")}


def _span_of(index: np.ndarray) -> slice | np.ndarray:
    """The same positions as a slice, if they are successive: of a list of positions dask makes one task for each chunk."""
    if index.size and np.array_equal(index, np.arange(index[0], index[0] + index.size)):
        return slice(int(index[0]), int(index[0]) + index.size)
    return index


def _valid(ds: xr.Dataset | xr.DataArray) -> np.ndarray:
    return ds["reference_time"].values[:, None] + ds["lead_time"].values.astype("timedelta64[h]")


def _span(times: np.ndarray) -> str:
    if not times.size:
        return "nowhere"
    first, last = (np.datetime_as_string(time, unit="m") for time in (times.min(), times.max()))
    return f"at {first}" if first == last else f"from {first} to {last}"


def _check_climatology(climatology: xr.Dataset, schema: Schema, at_points: bool) -> xr.Dataset:
    """The climatology of the variables that are compared.

    Raises
    ------
    SchemaError
        If it is none, or lacks a variable or level.
    """
    lacks = [dim for dim in ("hour", "dayofyear") if dim not in climatology.dims]
    problems = [f"found dims {', '.join(map(str, climatology.dims))}; needed hour and dayofyear"] if lacks else []
    problems += [f"no {name}; found {', '.join(map(str, climatology))}" for name in schema.names if name not in climatology]
    if at_points and "station" not in climatology.dims:
        problems.append("it is on a grid, the truth at stations; needed one of reports of the stations")
    levels = climatology["level"].values if "level" in climatology.coords else ()
    lost = sorted({level for row in schema.variables for level in row.levels} - set(levels))
    problems += [f"no levels {', '.join(map(str, lost))} hPa"] if lost else []
    if problems:
        raise SchemaError(
            "this is not a climatology of these variables", [f"{p}. Make one: xsm.climatology(archive)" for p in problems]
        )
    return climatology[list(schema.names)].sel({"level": list(schema.levels)} if schema.levels else {})


def _common_cells(parts: dict[str, xr.Dataset], choice: CommonGrid, report: Report) -> tuple[dict[str, xr.Dataset], xr.DataArray]:
    """All datasets on the cells of one grid, and the areas of these cells."""
    grids = {name: grid_of(ds) for name, ds in parts.items()}
    target = _target(grids, choice)
    dims = ("latitude", "longitude") if isinstance(target, Grid) else ("y", "x")
    moved = {name: _onto(ds, grids[name], target, choice, report, name) for name, ds in parts.items()}
    centers = {"latitude": list(target.latitude), "longitude": list(target.longitude)} if isinstance(target, Grid) else {}
    area = xr.DataArray(target.area, centers, dims)
    objects: list[Any] = [*moved.values(), area]  # the annotations of align know no mixture
    *aligned, area = xr.align(*objects, join="inner", exclude=_NOT_PLACES)
    if not area.size:
        described = [f"{name} on {grid}" for name, grid in grids.items()]
        raise GridError("these datasets do not overlap", [f"{'; '.join(described)}; needed a common area"])
    return dict(zip(moved, aligned, strict=True)), area


def _common_stations(
    parts: dict[str, xr.Dataset], places: xr.Dataset, names: tuple[str, ...], report: Report
) -> tuple[dict[str, xr.Dataset], xr.DataArray]:
    """All datasets at the stations that all have, each of which counts the same."""
    moved = {}
    for name, ds in parts.items():
        if name in (_TRUTH, _NORMAL):
            moved[name] = ds
            continue
        own, raw = Report(name), "station" not in ds.dims
        at = bring_to_stations(ds, places, own, height_correction=raw, max_height_difference=500.0 if raw else None)
        report.extend(own, f"{name}: ")
        moved[name] = at[list(names)]
    aligned = xr.align(*moved.values(), join="inner", exclude=_NOT_PLACES)
    shared = aligned[0]["station"]
    if not shared.size:
        raise GridError("these datasets have no station in common", ["needed ids that are the same; see ds['station']"])
    report.assume("stations", f"{shared.size} of {places.sizes['station']} compared")
    known = places.sel(station=shared).coords
    parts = {name: ds.assign_coords(known) for name, ds in zip(moved, aligned, strict=True)}
    return parts, xr.DataArray(np.ones(shared.size), {"station": shared.values}, "station")


def _target(grids: Mapping[str, _AnyGrid], choice: CommonGrid) -> _AnyGrid:
    """The grid to compare on.

    Raises
    ------
    GridError
        If it is not clear which one is meant, or nothing can be regridded onto it.
    """
    first = grids[_TRUTH]
    if isinstance(choice, Grid):
        return choice
    if choice not in ("coarser", "truth"):
        raise GridError("these grids cannot be compared", [f"grid={choice!r}; needed 'coarser', 'truth' or an xsm.Grid"])
    if all(_same_lattice(grid, first) for grid in grids.values()):
        return first
    name = _TRUTH if choice == "truth" else max(grids, key=lambda name: _cell_size(grids[name]))
    target = grids[name]
    described = "; ".join(f"{label} on {grid}" for label, grid in grids.items())
    fix = "Type grid=xsm.Grid.regular(north, west, step, shape) for common cells"
    if isinstance(target, CurvilinearGrid):
        raise GridError(
            "these grids cannot be compared", [f"{described}; needed a latitude-longitude grid as the coarsest one. {fix}"]
        )
    size = _cell_size(target)
    alike = [label for label, grid in grids.items() if not _same_lattice(grid, target) and size / _cell_size(grid) < _COARSER]
    if choice == "coarser" and alike:
        problem = (
            f"{described}; {', '.join(alike)} and {name} have cells of about one size in different places, so none is the coarser"
        )
        raise GridError(
            "these grids cannot be compared", [f"{problem}; needed a choice: grid='truth' interpolates to the truth's. {fix}"]
        )
    return target


def _cell_size(grid: _AnyGrid) -> float:
    """Typical cell in square degrees at the equator."""
    if isinstance(grid, Grid):
        return grid.spacing[0] * grid.spacing[1]
    return float(grid.area.mean() / np.cos(np.deg2rad(grid.latitude)).mean() / (EARTH_RADIUS * np.deg2rad(1.0)) ** 2)


def _same_lattice(one: _AnyGrid, other: _AnyGrid) -> bool:
    """True if the centers of both grids coincide wherever the grids overlap."""
    if isinstance(one, CurvilinearGrid) and isinstance(other, CurvilinearGrid):
        return one.shape == other.shape and np.allclose(one.points, other.points, rtol=0, atol=1e-6)
    if isinstance(one, CurvilinearGrid) or isinstance(other, CurvilinearGrid):
        return False
    if one == other:
        return True
    if not np.allclose(one.spacing, other.spacing, rtol=0.02):
        return False
    (rows, _), (columns, _) = _matches(one, other)
    if not (rows.size and columns.size):
        return one.outside(other) == 1.0  # nothing in common: said later
    return all(big.outside(small) < 1.0 and _all_matched(big, small) for big, small in ((one, other), (other, one)))


def _all_matched(big: Grid, small: Grid) -> bool:
    """True if every center of ``small`` inside ``big`` is a center of ``big``."""
    (_, rows), (_, columns) = _matches(big, small)
    inside = round((1.0 - big.outside(small)) * len(small.latitude) * len(small.longitude))
    return rows.size * columns.size == inside


def _matches(one: Grid, other: Grid) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Positions in ``one`` and ``other`` of common latitudes, and of common longitudes (modulo 360)."""
    latitude = np.subtract.outer(np.array(one.latitude), np.array(other.latitude))
    longitude = (np.subtract.outer(np.array(one.longitude), np.array(other.longitude)) + 180) % 360 - 180
    pairs = (np.nonzero(np.abs(gap) < _SLACK * step) for gap, step in zip((latitude, longitude), one.spacing, strict=True))
    rows, columns = ((first[np.argsort(second)], np.sort(second)) for first, second in pairs)
    return rows, columns


def _onto(ds: xr.Dataset, source: _AnyGrid, target: _AnyGrid, choice: CommonGrid, report: Report, name: str) -> xr.Dataset:
    """One dataset on cells of the target: the same ones picked, or others regridded and cropped to what they cover.

    Where it is averaged, cells that lie only partly inside it are left out: the mean of a part is not that of the cell. Missing
    values inside may take up to half of a cell, whose mean is then that of the rest.
    """
    if isinstance(target, CurvilinearGrid):
        return ds
    if isinstance(source, Grid) and _same_lattice(source, target):
        (rows, at_rows), (columns, at_columns) = _matches(source, target)
        picked = ds.isel(latitude=_span_of(rows), longitude=_span_of(columns))
        cells = {"latitude": np.array(target.latitude)[at_rows], "longitude": np.array(target.longitude)[at_columns]}
        return picked.assign_coords({dim: (dim, values, ds[dim].attrs) for dim, values in cells.items()})
    regridder = Regridder(source, target, "conservative" if choice == "coarser" else "auto")
    whole = regridder.whole
    parts = int(((regridder.weights.coverage > 1e-3) & ~whole).sum())
    left_out = f"; {parts} cells at the edge, partly outside it, left out" if parts else ""
    report.assume(f"{name}: grid", f"{regridder.method} from {source} to {target}{left_out}")
    rows, columns = (np.flatnonzero(whole.any(axis)) for axis in (1, 0))
    moved = regrid(ds, regridder).isel(latitude=rows, longitude=columns)
    inside = xr.DataArray(whole[rows][:, columns], dims=("latitude", "longitude"))
    return moved if inside.all() else moved.where(inside)


def _crop(parts: dict[str, xr.Dataset], area: xr.DataArray, region: Region | None) -> tuple[dict[str, xr.Dataset], xr.DataArray]:
    """Keep the cells inside the region.

    Raises
    ------
    GridError
        If it is not a region, or holds no cell.
    """
    if region is None:
        return parts, area
    if len(region) != 4 or not region[0] > region[2]:
        found = f"found {region}; needed (north, west, south, east) in degrees"
        turned = f". If these are west, south, east and north, type region={(region[3], *region[:3])}" if len(region) == 4 else ""
        raise GridError("this region cannot be used", [found + turned])
    north, west, south, east = region
    if west == east:
        found = f"found {region} as (north, west, south, east), which is {west:g} E alone"
        raise GridError(
            "this region cannot be used", [f"{found}; type region={(north, west, south, west + 360)} for all longitudes"]
        )
    truth = parts[_TRUTH]
    latitude, longitude = truth["latitude"], truth["longitude"]
    width = (east - west) % 360 or 360.0
    inside = (latitude <= north) & (latitude >= south) & ((longitude - west) % 360 <= width)
    if not inside.any():
        span = f"{float(latitude.min()):g}..{float(latitude.max()):g} N, {float(longitude.min()):g}..{float(longitude.max()):g} E"
        what = "station" if "station" in area.dims else "cell"
        raise GridError(
            f"this region holds no {what}", [f"found {region} as (north, west, south, east); the common area is {span}"]
        )
    keep = {dim: inside.any([d for d in inside.dims if d != dim]).values for dim in inside.dims}
    return {name: ds.isel(keep) for name, ds in parts.items()}, area.where(inside.variable, 0.0).isel(keep)


def _whole_members(forecast: xr.Dataset) -> xr.Dataset:
    return forecast.chunk(member=-1) if _is_lazy(forecast) and "member" in forecast.dims else forecast


def _known(ds: xr.Dataset, position: xr.DataArray) -> xr.Dataset:
    """NaN where the truth has no such time."""
    ds = ds.assign_coords(position.coords)
    return ds if (position.values >= 0).all() else ds.where(position.variable >= 0)


def _in_chunks_of(forecast: xr.Dataset, ds: xr.Dataset) -> xr.Dataset:
    sizes = lambda name: {dim: forecast[name].chunksizes[dim] for dim in ("reference_time", "lead_time")}
    return ds.assign({name: array.chunk(sizes(name)) for name, array in ds.items() if forecast[name].chunks is not None})


def _is_lazy(ds: xr.Dataset) -> bool:
    return any(array.chunks is not None for array in ds.values())


def _times_of(position: xr.DataArray) -> xr.DataArray:
    """Valid times of all starts and leads; NaT where there is no truth."""
    return xr.DataArray(_valid(position), position.coords, position.dims).where(position >= 0)


def at_valid_times(climatology: xr.Dataset, valid: xr.DataArray) -> xr.Dataset:
    """The climatology at valid times of any shape; NaN where these are NaT.

    Raises
    ------
    TimeError
        If it lacks an hour or a day of year.
    """
    known = valid.notnull()
    index = _days_of(climatology, valid)
    picked = climatology.isel(index).drop_vars([*index, "samples"], errors="ignore").assign_coords(valid.coords)
    return picked if known.all() else picked.where(known.variable)


def _days_of(climatology: xr.Dataset, valid: xr.DataArray) -> dict[str, xr.DataArray]:
    """Where the hour and the day of year of each valid time are in a climatology.

    Raises
    ------
    TimeError
        If one is not in it.
    """
    known = valid.notnull()
    index, problems = {}, []
    for dim in ("hour", "dayofyear"):
        values = getattr(valid.dt, dim)
        places = pd.Index(climatology[dim].values).get_indexer(values.values.ravel()).reshape(values.shape)
        lost = np.unique(values.values[(places < 0) & known.values])
        if lost.size:
            numbers = ", ".join(f"{number:g}" for number in lost[:6])
            problems.append(f"no {dim} {numbers}; found {climatology[dim].values[:6].tolist()} ...")
        index[dim] = xr.DataArray(places, dims=valid.dims)
    if problems:
        raise TimeError(
            "this climatology does not cover the valid times", [f"{p}. Make one from a longer archive" for p in problems]
        )
    return index
