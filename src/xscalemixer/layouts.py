"""Forecasts in the layouts of other tools: a table of names, exporters, and an importer for all of them.

WeatherBench 2 (Rasp et al. 2024, doi:10.1029/2023MS004019) has layouts for analyses and climatologies too. Its variables have
the units of ERA5, which are those of this library's catalog, and often carry no attributes. WeatherBench-X reads the same files.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xscalemixer.conform import require_dataset
from xscalemixer.conform.grid import to_canonical_grid
from xscalemixer.conform.levels import pressure_levels
from xscalemixer.conform.time import HOURS_OF, LEADS, STARTS, to_valid_time
from xscalemixer.errors import SchemaError, TimeError
from xscalemixer.output import MEMBER_ATTRS, TIME_ATTRS
from xscalemixer.report import Report
from xscalemixer.units import UnitsError, conversion
from xscalemixer.variables import CATALOG

__all__ = ["from_weatherbench2", "is_forecast", "to_cfgrib", "to_climpred", "to_forecast", "to_weatherbench2"]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Names in one layout of this library's axes, and of the variables that are called otherwise there."""

    reference_time: str
    lead_time: str
    member: str
    level: str
    variables: Mapping[str, str]
    timedelta: bool = True  # lead times are timedelta64, else whole hours
    valid_time: bool = True  # kept


# The data guide of WeatherBench 2, whose names are those of ARCO-ERA5; it has none for q2m, and orography as geopotential
_WEATHERBENCH2 = _Layout(
    reference_time="time",
    lead_time="prediction_timedelta",
    member="number",
    level="level",
    variables={
        "t2m": "2m_temperature",
        "d2m": "2m_dewpoint_temperature",
        "u10": "10m_u_component_of_wind",
        "v10": "10m_v_component_of_wind",
        "q2m": "2m_specific_humidity",
        "sp": "surface_pressure",
        "msl": "mean_sea_level_pressure",
        "tcc": "total_cloud_cover",
        "lcc": "low_cloud_cover",
        "mcc": "medium_cloud_cover",
        "hcc": "high_cloud_cover",
        "ssrd": "mean_surface_downward_short_wave_radiation_flux",
        "z": "geopotential",
        "t": "temperature",
        "u": "u_component_of_wind",
        "v": "v_component_of_wind",
        "q": "specific_humidity",
        "r": "relative_humidity",
        "lsm": "land_sea_mask",
    },
    valid_time=False,
)
_CFGRIB = _Layout(
    reference_time="time",
    lead_time="step",
    member="number",
    level="isobaricInhPa",
    # ECMWF's ssrd is an accumulation in J m-2, avg_sdswrf the mean flux
    variables={"q2m": "sh2", "ssrd": "avg_sdswrf"},
)
# climpred.constants: it computes valid_time itself
_CLIMPRED = _Layout(
    reference_time="init", lead_time="lead", member="member", level="level", variables={}, timedelta=False, valid_time=False
)
_CLIMATOLOGY = {"hour", "dayofyear"}

# role -> CF standard name, then names seen in files
_ROLES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "reference_time": ("forecast_reference_time", STARTS),
    "lead_time": ("forecast_period", LEADS),
    "valid_time": ("time", ("valid_time", "xtime")),
    "member": ("realization", ("member", "number", "ensemble", "realization", "ensemble_member")),
}


def to_weatherbench2(ds: xr.Dataset) -> xr.Dataset:
    """Rename a forecast, an analysis or a climatology to the layout of WeatherBench 2, so that its evaluation can read it.

    Parameters
    ----------
    ds : xarray.Dataset
        A forecast in any layout that `to_forecast` knows, fields at valid times, or the result of `xscalemixer.climatology`;
        variables with names and units of the catalog.

    Returns
    -------
    xarray.Dataset
        Dims ``(time, prediction_timedelta, [number], ...)`` with ``time`` as the start and ``prediction_timedelta`` as
        timedelta64; ``(time, ...)``; or ``(hour, dayofyear, ...)``; then ``([level], latitude, longitude)`` with levels in
        hPa, latitudes in the order they came in and longitudes ascending in 0..360. Values unchanged; variables that
        WeatherBench 2 has no name for keep theirs (``orog`` in m is not its geopotential).

    Raises
    ------
    SchemaError
        If a variable has other units than WeatherBench 2, or none: its evaluation never looks at them.
    TimeError
        If the time axes are missing, ambiguous, or contradict each other.
    """
    require_dataset(ds)
    _check_units(ds)
    if set(ds.dims) >= _CLIMATOLOGY:
        out = _named(ds, _WEATHERBENCH2)
    elif is_forecast(ds):
        out = _export(ds, _WEATHERBENCH2)
    else:
        report = Report("this analysis")
        out = _named(to_valid_time(ds, report), _WEATHERBENCH2)
        report.raise_errors("this analysis cannot be written for WeatherBench 2")
    return _from_greenwich(out)


def from_weatherbench2(ds: xr.Dataset) -> xr.Dataset:
    """Give a forecast, an analysis or a climatology of WeatherBench 2 the names, axes and units of this library.

    Parameters
    ----------
    ds : xarray.Dataset
        A file of WeatherBench 2: a forecast whose ``time`` is the start (its init-time convention), an analysis, or a
        climatology with dims ``hour`` and ``dayofyear`` and variables with or without its suffix ``_mean``.

    Returns
    -------
    xarray.Dataset
        Dims ``(reference_time, lead_time, [member], ...)``, ``(time, ...)`` or ``(hour, dayofyear, ...)``, then ``([level],
        latitude, longitude)`` from north to south and west to east. Where a file says no units, those of its layout are
        put on. Variables that the layout does not name are kept as they are. Lazy where ``ds`` is.

    Raises
    ------
    SchemaError, TimeError, GridError
        If the file is not in this layout.
    """
    require_dataset(ds)
    report = Report("this dataset")
    ds = to_canonical_grid(ds, report)
    report.raise_errors("this cannot be read as WeatherBench 2")
    if set(ds.dims) >= _CLIMATOLOGY:
        means = {f"{new}_mean": old for old, new in _WEATHERBENCH2.variables.items() if f"{new}_mean" in ds and new not in ds}
        axes: tuple[str, ...] = ("hour", "dayofyear")
        ds = _rename(ds, means)
    elif _WEATHERBENCH2.lead_time in ds.coords:
        axes, ds = ("reference_time", "lead_time", "member"), to_forecast(ds)
    elif "time" in ds.dims:
        axes, ds = ("time",), _rename(ds, {})
    else:
        found = f"found dims {', '.join(map(str, ds.dims))}; needed time, time and prediction_timedelta, or hour and dayofyear"
        raise SchemaError("this cannot be read as WeatherBench 2", [found])
    for name in set(_WEATHERBENCH2.variables) & set(ds.data_vars):
        row = CATALOG[name]
        ds[name].attrs = {"standard_name": row.standard_name, "units": row.units, "long_name": row.long_name} | ds[name].attrs
    if "level" in ds.coords:
        ds["level"].attrs = {"standard_name": "air_pressure", "units": "hPa"} | ds["level"].attrs
    return ds.transpose(*axes, ..., "level", "latitude", "longitude", missing_dims="ignore")


def to_cfgrib(ds: xr.Dataset) -> xr.Dataset:
    """Rename a forecast to the layout in which cfgrib opens GRIB files.

    Parameters
    ----------
    ds : xarray.Dataset
        In any layout that `to_forecast` knows.

    Returns
    -------
    xarray.Dataset
        Dims ``([number], time, step, ...)`` with ``valid_time(time, step)``; ``step`` as timedelta64, levels as
        ``isobaricInhPa``.
    """
    return _export(ds, _CFGRIB).transpose("number", "time", "step", ..., missing_dims="ignore")


def to_climpred(ds: xr.Dataset) -> xr.Dataset:
    """Rename a forecast to the layout of climpred's ``HindcastEnsemble``.

    Parameters
    ----------
    ds : xarray.Dataset
        In any layout that `to_forecast` knows.

    Returns
    -------
    xarray.Dataset
        Dims ``(init, lead, [member], ...)``; ``lead`` in whole hours.
    """
    return _export(ds, _CLIMPRED)


def to_forecast(ds: xr.Dataset) -> xr.Dataset:
    """Give any forecast the axes of this library.

    Knows the layouts of cfgrib, CDS, WeatherBench2, earth2studio, climpred, neural-lam and this library, by CF standard
    names first and by the names of coordinates where those are absent. Data variables keep their values; only the names that
    an exporter gives them are undone.

    Parameters
    ----------
    ds : xarray.Dataset
        With a start and a lead time, or two of start, lead and valid time from which the third follows.

    Returns
    -------
    xarray.Dataset
        Dims ``(reference_time, lead_time, [member], ...)``, ``lead_time`` in integer hours, ``valid_time`` computed.

    Raises
    ------
    TimeError
        If axes are missing, ambiguous or repeat themselves, contradict each other, or leads are not whole hours in known units.
    SchemaError
        If two coordinates number the members.
    """
    found = _find_axes(ds)
    ds, found = _complete(ds, found)
    start, lead, valid = (found.get(role) for role in ("reference_time", "lead_time", "valid_time"))
    if start is None or lead is None:
        there = ", ".join(f"{name}{ds[name].dims}" for name in ds.coords) or "none"
        problem = f"found coordinates {there}; needed a start (reference_time) and a lead_time"
        fix = "set standard_name 'forecast_reference_time' and 'forecast_period' on them; an analysis has none"
        raise TimeError("this dataset is not a forecast", [f"{problem}; {fix}"])
    if max(ds[start].ndim, ds[lead].ndim) > 1 or set(ds[start].dims) & set(ds[lead].dims):
        problem = f"{start} has dims {ds[start].dims}, {lead} has {ds[lead].dims}; needed one dimension each"
        raise TimeError("this forecast is no grid of starts and leads", [f"{problem}; select one start with ds.isel"])
    ds = ds.assign_coords({lead: (ds[lead].dims, _whole_hours(ds[lead]))})
    _check_once(ds, start, lead)
    if valid is not None:
        _check_valid(ds, start, lead, valid)
        ds = ds.drop_vars([valid])
    names = {found[role]: role for role in ("reference_time", "lead_time", "member") if role in found}
    return _describe(_put_axes_first(_rename(ds, names)))


def is_forecast(ds: xr.Dataset) -> bool:
    """True with lead times other than the single zero that GRIB analyses carry."""
    lead = _find_axes(ds).get("lead_time")
    return lead is not None and (ds[lead].ndim > 0 or bool(ds[lead].values.astype("int64") != 0))


def _export(ds: xr.Dataset, layout: _Layout) -> xr.Dataset:
    fc = to_forecast(ds)
    fc = fc.drop_vars([name for name in fc.coords if str(name).startswith("height_")])
    if not layout.valid_time:
        fc = fc.drop_vars("valid_time")
    if layout.timedelta:
        # xarray writes the unit of a timedelta64 itself and refuses to be told
        attrs = {key: value for key, value in fc["lead_time"].attrs.items() if key != "units"}
        fc = fc.assign_coords(lead_time=("lead_time", _steps(fc["lead_time"]).values, attrs))
    axes = {axis: getattr(layout, axis) for axis in ("reference_time", "lead_time", "member") if axis in fc.coords}
    return _named(fc.rename({old: new for old, new in axes.items() if old != new}), layout)


def _named(ds: xr.Dataset, layout: _Layout) -> xr.Dataset:
    """Variables and the axis of pressure as the layout calls them; the caller's dataset keeps its encoding."""
    axes = {name: coordinate for name, coordinate in ds.coords.items() if coordinate.ndim < 2}
    levels = {name: found for name, axis in axes.items() if (found := pressure_levels(axis, Report(""))) is not None}
    if len(levels) > 1:
        raise SchemaError("these levels are ambiguous", [f"{', '.join(map(str, levels))} are all pressures; keep one"])
    for name, values in levels.items():
        whole = np.rint(values).astype("int64")
        values = (whole if np.array_equal(whole, values) else values).reshape(ds[name].shape)
        attrs = ds[name].attrs | {"units": "hPa"}
        ds = ds.assign_coords({name: (ds[name].dims, values, attrs)})
        ds = ds.rename({name: layout.level} if name != layout.level else {})
    ds = ds.rename({old: new for old, new in layout.variables.items() if old in ds.data_vars})
    for variable in ds.variables.values():
        variable.encoding = {key: value for key, value in variable.encoding.items() if key != "coordinates"}
    return ds


def _check_units(ds: xr.Dataset) -> None:
    names = [name for name in _WEATHERBENCH2.variables if name in ds.data_vars]
    problems = [_misread(name, str(ds[name].attrs.get("units", "")), CATALOG[name].units) for name in names]
    if any(problems):
        raise SchemaError("WeatherBench 2 would misread these units", [problem for problem in problems if problem])


def _misread(name: str, units: str, needed: str) -> str:
    """What is wrong with the units of a variable; nothing if they are those of the catalog."""
    try:
        factor, offset = conversion(units, needed) if units.strip() else (np.nan, np.nan)
    except UnitsError:
        factor, offset = np.nan, np.nan
    if (factor, offset) == (1.0, 0.0):
        return ""
    fix = f"type ds[{name!r}] = ({factor:g} * ds[{name!r}] + {offset:g}).assign_attrs(units={needed!r})"
    if np.isnan(factor):
        fix = f"if they are, type ds[{name!r}].attrs['units'] = {needed!r}"
    return f"{name} has units {units or 'missing'!r}; needed {needed!r}; {fix}"


def _from_greenwich(ds: xr.Dataset) -> xr.Dataset:
    """Longitudes in 0..360, ascending, where they are an axis."""
    if "longitude" not in ds.dims or "longitude" not in ds.coords:
        return ds
    turned = ds["longitude"] % 360
    if np.array_equal(turned, ds["longitude"]) and np.all(np.diff(turned) > 0):
        return ds
    return ds.assign_coords(longitude=turned.assign_attrs(ds["longitude"].attrs)).sortby("longitude")


def _find_axes(ds: xr.Dataset) -> dict[str, Hashable]:
    """Coordinate of each role; the standard name decides, then the name.

    Raises
    ------
    TimeError, SchemaError
        If two coordinates claim one role.
    """
    coords = {name: _standard_name(ds[name]) for name in ds.coords}
    found: dict[str, Hashable] = {}
    for role, (standard_name, names) in _ROLES.items():
        claims = [name for name, given in coords.items() if given == standard_name]
        claims = claims or [name for name, given in coords.items() if given is None and str(name).lower() in names]
        if len(claims) > 1:
            kind = SchemaError if role == "member" else TimeError
            problem = f"{', '.join(map(str, claims))} all claim to be the {role}"
            raise kind("this forecast is ambiguous", [f"{problem}; drop all but one with ds.drop_vars"])
        if claims:
            found[role] = claims[0]
    return _settle_time(ds, found, coords.get("time", ""))


def _standard_name(coordinate: xr.DataArray) -> str | None:
    """CF standard name; not the "time" of a coordinate that is called a start, renamed from a valid time or so by its makers."""
    given = coordinate.attrs.get("standard_name")
    return None if given == "time" and str(coordinate.name).lower() in _ROLES["reference_time"][1] else given


def _settle_time(ds: xr.Dataset, found: dict[str, Hashable], standard_name: str | None) -> dict[str, Hashable]:
    """Decide what a coordinate called ``time`` is: a start in cfgrib, WeatherBench2 and earth2studio, elsewhere valid time."""
    is_start = "lead_time" in found and "reference_time" not in found
    if "time" in ds.coords and standard_name is None:
        role = "reference_time" if is_start else "valid_time"
        return {role: "time"} | found
    lead = found.get("lead_time")
    if is_start and found.get("valid_time") == "time" and lead in ds.dims and lead not in ds["time"].dims:
        problem = f"time has standard_name 'time' (the hour the forecast is for), yet stands beside {lead} as an axis of its own"
        fix = "if it is the start, type ds['time'].attrs['standard_name'] = 'forecast_reference_time'"
        raise TimeError("this forecast is ambiguous", [f"{problem}; {fix}"])
    return found


def _whole_hours(lead: xr.DataArray) -> np.ndarray:
    """Lead times as integer hours, from timedelta64 or numbers with a unit."""
    if lead.dtype.kind == "m":
        hours = lead.values / np.timedelta64(1, "h")
    elif lead.dtype.kind in "iuf":
        hours = lead.values * _hours_per_unit(lead)
    else:
        raise TimeError(f"{lead.name} cannot be read", [f"found {lead.dtype}; needed timedelta64 or numbers with units"])
    whole = np.rint(hours)
    wrong = np.atleast_1d(hours)[np.atleast_1d(~(np.abs(hours - whole) < 1e-3))]
    if wrong.size:
        raise TimeError(f"{lead.name} is not in whole hours", [f"found {wrong[:5].tolist()} hours; select the whole ones"])
    return whole.astype("int64")


def _hours_per_unit(lead: xr.DataArray) -> float:
    units = lead.attrs.get("units", lead.encoding.get("units"))
    if units is None and lead.dtype.kind == "i" and np.all(lead.values % 3_600_000_000_000 == 0) and np.any(lead.values):
        units = "nanoseconds"  # a timedelta64 written without its unit; no forecast is 4e12 hours long
    if units not in HOURS_OF:
        fix = f"type ds[{lead.name!r}].attrs['units'] = 'hours', if that is what they are"
        raise TimeError(f"{lead.name} has no unit I can read", [f"found {units!r}; needed one of {', '.join(HOURS_OF)}; {fix}"])
    return HOURS_OF[units]


def _steps(hours: xr.DataArray) -> xr.Variable:
    return hours.variable.astype("timedelta64[h]").astype("timedelta64[ns]")


def _complete(ds: xr.Dataset, found: dict[str, Hashable]) -> tuple[xr.Dataset, dict[str, Hashable]]:
    """Derive the start or the lead from the valid time where one of them is missing."""
    start, lead, valid = (found.get(role) for role in ("reference_time", "lead_time", "valid_time"))
    if start is None and lead is not None and valid is not None:
        hours = xr.DataArray(_whole_hours(ds[lead]), dims=ds[lead].dims)
        starts = np.unique((ds[valid].variable - _steps(hours)).values)
        if starts.size != 1:
            problem = f"{valid} minus {lead} gives {starts.size} starts; add a coordinate reference_time"
            raise TimeError("this forecast has no start", [problem])
        return ds.assign_coords(reference_time=starts[0]), found | {"reference_time": "reference_time"}
    if lead is None and start is not None and valid is not None and ds[start].size == 1:
        period = ds[valid].variable - ds[start].values.ravel()[0]
        return ds.assign_coords(lead_time=period), found | {"lead_time": "lead_time"}
    return ds, found


def _check_once(ds: xr.Dataset, *axes: Hashable) -> None:
    repeated = {axis: ds[axis].size - np.unique(ds[axis]).size for axis in axes}
    fix = "ds = ds.drop_duplicates({!r}), if both are the same"
    problems = [
        f"{count} values of {axis} occur again; {fix.format(ds[axis].dims[0])}" for axis, count in repeated.items() if count
    ]
    if problems:
        raise TimeError("this forecast has something twice", problems)


def _check_valid(ds: xr.Dataset, start: Hashable, lead: Hashable, valid: Hashable) -> None:
    wrong = ds[start].variable + _steps(ds[lead]) != ds[valid].variable
    if wrong.any():
        problem = f"{valid} is not {start} plus {lead} at {int(wrong.sum())} places; drop the wrong one with ds.drop_vars"
        raise TimeError("this forecast contradicts itself", [problem])


def _rename(ds: xr.Dataset, names: Mapping[Any, str]) -> xr.Dataset:
    """Give the axes our names, and variables that carry the names of an exported layout too."""
    rows = [row for layout in (_WEATHERBENCH2, _CFGRIB) for row in layout.variables.items()]
    exported = {new: old for old, new in rows if new in ds.data_vars and old not in ds.variables}
    return ds.rename({old: new for old, new in {**exported, **names}.items() if old != new})


def _put_axes_first(ds: xr.Dataset) -> xr.Dataset:
    """Make each axis a dimension, scalars included, of all variables that depend on time."""
    axes = [name for name in ("reference_time", "lead_time", "member") if name in ds.coords]
    for axis in axes:
        if ds[axis].ndim:
            ds = ds.swap_dims({ds[axis].dims[0]: axis})
            continue
        value, ds = ds[axis].values[None], ds.drop_vars(axis)
        timed = [name for name, field in ds.data_vars.items() if set(axes) & set(field.dims)]
        ds = ds.assign({name: ds[name].expand_dims(axis) for name in timed or ds.data_vars}).assign_coords({axis: value})
    return ds.transpose(*axes, ...)


def _describe(ds: xr.Dataset) -> xr.Dataset:
    """Add the valid time, and CF attributes to all axes."""
    valid = ds["reference_time"].variable + _steps(ds["lead_time"])
    ds = ds.assign_coords(valid_time=valid)
    for name, attrs in {**TIME_ATTRS, "member": MEMBER_ATTRS}.items():
        if name in ds.coords:
            ds[name].attrs = dict(attrs)
    return ds
