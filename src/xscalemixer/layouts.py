"""Forecast time axes as other tools name them: exporters to two layouts, and an importer for all of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import xarray as xr

from xscalemixer.errors import SchemaError, TimeError
from xscalemixer.output import MEMBER_ATTRS, TIME_ATTRS

__all__ = ["to_cfgrib", "to_forecast", "to_weatherbench2"]

# WeatherBench2 data guide and the ARCO-ERA5 names it follows; it has no name for q2m and orog in meters
_WEATHERBENCH2 = {
    "t2m": "2m_temperature",
    "u10": "10m_u_component_of_wind",
    "v10": "10m_v_component_of_wind",
    "q2m": "2m_specific_humidity",
    "sp": "surface_pressure",
    "tcc": "total_cloud_cover",
    "ssrd": "mean_surface_downward_short_wave_radiation_flux",
    "lsm": "land_sea_mask",
}
# ECMWF's ssrd is an accumulation in J m-2, avg_sdswrf the mean flux
_CFGRIB = {"q2m": "sh2", "ssrd": "avg_sdswrf"}

# role -> CF standard name, then names seen in files
_ROLES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "reference_time": (
        "forecast_reference_time",
        ("reference_time", "forecast_reference_time", "init_time", "init", "analysis_time"),
    ),
    "lead_time": (
        "forecast_period",
        ("lead_time", "prediction_timedelta", "step", "lead", "forecast_period", "elapsed_forecast_duration", "forecast_hour"),
    ),
    "valid_time": ("time", ("valid_time",)),
    "member": ("realization", ("member", "number", "ensemble", "realization", "ensemble_member")),
}
_HOURS = {"d": 24, "day": 24, "days": 24, "h": 1, "hr": 1, "hour": 1, "hours": 1, "min": 1 / 60, "minutes": 1 / 60}
_HOURS |= {"s": 1 / 3600, "seconds": 1 / 3600, "ns": 1 / 3.6e12, "nanoseconds": 1 / 3.6e12}


def to_weatherbench2(fc: xr.Dataset) -> xr.Dataset:
    """Rename a forecast to the layout of WeatherBench2 files.

    Parameters
    ----------
    fc : xarray.Dataset
        Dims ``(reference_time, lead_time, [member], latitude, longitude)``.

    Returns
    -------
    xarray.Dataset
        Dims ``(time, prediction_timedelta, [number], latitude, longitude)``, ``prediction_timedelta`` as timedelta64; values
        and units unchanged (``ssrd`` is the mean flux in W m-2, not WeatherBench2's accumulation, and named so).
    """
    names = {"reference_time": "time", "lead_time": "prediction_timedelta", "member": "number"}
    return _export(fc.drop_vars("valid_time", errors="ignore"), names | _WEATHERBENCH2)


def to_cfgrib(fc: xr.Dataset) -> xr.Dataset:
    """Rename a forecast to the layout in which cfgrib opens GRIB files.

    Parameters
    ----------
    fc : xarray.Dataset
        Dims ``(reference_time, lead_time, [member], latitude, longitude)``.

    Returns
    -------
    xarray.Dataset
        Dims ``([number], time, step, latitude, longitude)`` with ``valid_time(time, step)``; ``step`` as timedelta64.
    """
    out = _export(fc, {"reference_time": "time", "lead_time": "step", "member": "number"} | _CFGRIB)
    return out.transpose("number", "time", "step", ..., missing_dims="ignore")


def to_forecast(ds: xr.Dataset) -> xr.Dataset:
    """Give any forecast the axes of this library.

    Knows the layouts of cfgrib, CDS, WeatherBench2, earth2studio, climpred, neural-lam and this library, by CF standard
    names first and by the names of coordinates where those are absent. Data variables keep their values; only names that
    `to_weatherbench2` or `to_cfgrib` gave them are undone.

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
        If axes are missing, ambiguous, contradict each other, or leads are not whole hours in known units.
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
    if valid is not None:
        _check_valid(ds, start, lead, valid)
        ds = ds.drop_vars(valid)
    names = {found[role]: role for role in ("reference_time", "lead_time", "member") if role in found}
    return _describe(_put_axes_first(_rename(ds, names)))


def _export(fc: xr.Dataset, names: Mapping[str, str]) -> xr.Dataset:
    missing = [name for name in ("reference_time", "lead_time") if name not in fc.coords]
    if missing:
        raise TimeError("this dataset is not a forecast", [f"it lacks {', '.join(missing)}; use to_forecast(ds) first"])
    # xarray writes the unit of a timedelta64 itself and refuses to be told
    attrs = {key: value for key, value in fc["lead_time"].attrs.items() if key != "units"}
    steps = xr.Variable("lead_time", _steps(fc["lead_time"]).values, attrs)
    heights = [name for name in fc.coords if str(name).startswith("height_")]
    out = fc.assign_coords(lead_time=steps).drop_vars(heights)
    out = out.rename({old: new for old, new in names.items() if old in out.variables})
    for variable in out.variables.values():
        variable.encoding.pop("coordinates", None)
    return out


def _find_axes(ds: xr.Dataset) -> dict[str, Hashable]:
    """Coordinate of each role; the standard name decides, then the name.

    Raises
    ------
    TimeError, SchemaError
        If two coordinates claim one role.
    """
    coords = {name: ds.coords[name].attrs.get("standard_name") for name in ds.coords}
    found = {}
    for role, (standard_name, names) in _ROLES.items():
        claims = [name for name, given in coords.items() if given == standard_name]
        claims = claims or [name for name, given in coords.items() if given is None and str(name).lower() in names]
        if len(claims) > 1:
            kind = SchemaError if role == "member" else TimeError
            problem = f"{', '.join(map(str, claims))} all claim to be the {role}"
            raise kind("this forecast is ambiguous", [f"{problem}; drop all but one with ds.drop_vars"])
        found |= dict.fromkeys([role], *claims) if claims else {}
    return _settle_time(ds, found, coords.get("time", ""))


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
    if units not in _HOURS:
        fix = f"type ds[{lead.name!r}].attrs['units'] = 'hours', if that is what they are"
        raise TimeError(f"{lead.name} has no unit I can read", [f"found {units!r}; needed one of {', '.join(_HOURS)}; {fix}"])
    return _HOURS[units]


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


def _check_valid(ds: xr.Dataset, start: Hashable, lead: Hashable, valid: Hashable) -> None:
    wrong = ds[start].variable + _steps(ds[lead]) != ds[valid].variable
    if wrong.any():
        problem = f"{valid} is not {start} plus {lead} at {int(wrong.sum())} places; drop the wrong one with ds.drop_vars"
        raise TimeError("this forecast contradicts itself", [problem])


def _rename(ds: xr.Dataset, names: Mapping[Hashable, str]) -> xr.Dataset:
    """Give the axes our names, and variables that carry the names of an exported layout too."""
    exported = {new: old for table in (_WEATHERBENCH2, _CFGRIB) for old, new in table.items() if new in ds and old not in ds}
    return ds.rename({old: new for old, new in (names | exported).items() if old != new})


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
