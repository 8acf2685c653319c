"""Time axis: whatever the layout of starts and lead times, one sorted axis of valid times."""

from __future__ import annotations

from numbers import Real

import numpy as np
import pandas as pd
import xarray as xr

from xscalemixer.errors import TimeError
from xscalemixer.report import Report

__all__ = ["HOURS_OF", "LEADS", "STARTS", "find_coordinate", "to_valid_time", "valid_times", "whole_hours"]

LEADS = (
    "step",
    "prediction_timedelta",
    "lead_time",
    "leadtime",
    "lead",
    "forecast_period",
    "elapsed_forecast_duration",
    "forecast_hour",
)
STARTS = ("reference_time", "forecast_reference_time", "init_time", "initialization_time", "init", "analysis_time")
_VALID = ("valid_time", "time", "datetime", "date", "xtime", "t")
HOURS_OF = {"h": 1, "hr": 1, "hrs": 1, "hour": 1, "hours": 1, "min": 1 / 60, "minute": 1 / 60, "minutes": 1 / 60}
HOURS_OF |= {"s": 1 / 3600, "second": 1 / 3600, "seconds": 1 / 3600, "ns": 1 / 3.6e12, "nanoseconds": 1 / 3.6e12}
HOURS_OF |= {"d": 24, "day": 24, "days": 24}


def to_valid_time(ds: xr.Dataset, report: Report, times: np.ndarray | None = None) -> xr.Dataset:
    """Replace starts and lead times by one sorted dimension ``time`` of valid times.

    Parameters
    ----------
    ds : xr.Dataset
        With a valid time, or with starts and lead times, as dimensions or scalars.
    report : Report
        Receives what is wrong with the time axis.
    times : datetime64 array, optional
        Valid times to keep; the others are not looked at.

    Returns
    -------
    xr.Dataset
        Variables without any of these dimensions are left as they are.
    """
    valid = _valid_time(ds, report)
    if valid is None:
        return ds
    flat = valid.values.ravel()
    if flat.size == 0:
        report.error("time", "the time axis is empty", "at least one time", kind=TimeError)
        return ds
    if np.isnat(flat).any():
        report.error("time", f"{np.isnat(flat).sum()} of {flat.size} times are missing (NaT)", "valid dates", kind=TimeError)
        return ds
    order = _choose(flat, times, report)
    if flat.size > 1 and np.any(np.diff(flat) < 0):
        report.assume("time", "times were not in order; sorted")
    return _take(ds, valid, order)


def valid_times(ds: xr.Dataset, report: Report) -> np.ndarray:
    """Valid times of a dataset in UTC, sorted, shape (T,) datetime64[ns]; empty, with errors in the report, if there are none."""
    valid = _valid_time(ds, report)
    return np.array([], "datetime64[ns]") if valid is None else np.unique(valid.values[~np.isnat(valid.values)])


def find_coordinate(ds: xr.Dataset, standard_name: str, names: tuple[str, ...]) -> xr.DataArray | None:
    """The coordinate with a CF standard name, else the first one with a known name."""
    for name in ds.coords:
        if ds[name].attrs.get("standard_name") == standard_name:
            return ds[name]
    lower = {str(name).lower(): name for name in ds.coords}
    return next((ds[lower[name]] for name in names if name in lower), None)


def whole_hours(hours) -> int:
    """Length of a forecast as a positive integer; text such as "2 days" and timedeltas are read by pandas.

    Raises
    ------
    TimeError
        If it is not a whole positive number of hours.
    """
    if isinstance(hours, Real) and not isinstance(hours, bool | np.timedelta64):
        number = float(hours)
    else:
        try:
            number = pd.Timedelta(hours) / pd.Timedelta(hours=1)
        except (ValueError, TypeError):
            number = np.nan
    if not (1 <= number < np.inf and number == round(number)):
        raise TimeError(
            "no forecast was made", [f"hours={hours!r}; needed a whole number from 1 on, e.g. hours=48 or hours='2 days'"]
        )
    return int(number)


def _valid_time(ds: xr.Dataset, report: Report) -> xr.DataArray | None:
    lead = find_coordinate(ds, "forecast_period", LEADS)
    start = find_coordinate(ds, "forecast_reference_time", STARTS)
    rest = ds.drop_vars([c.name for c in (lead, start) if c is not None])
    valid = find_coordinate(rest, "time", _VALID)
    if lead is not None and (valid is None or valid.name != "valid_time" or start is not None):
        start = valid if start is None else start  # WeatherBench2 calls the start "time"
        if start is None:
            fix = 'ds = ds.assign_coords(reference_time=np.datetime64("2024-06-03T00"))'
            report.error("time", f"lead times ({lead.name}) without a start", "the start of the forecast", fix, kind=TimeError)
            return None
        dates, leads = _dates(start, report), _leads(lead, report)
        if dates is None or leads is None:
            return None
        times = dates + leads
        _check_stated(times, ds, (start.name, lead.name), report)
        return times
    valid = start if valid is None else valid
    if valid is None:
        found = f"no time coordinate among {', '.join(map(str, ds.coords)) or 'no coordinates'}"
        fix = 'ds = ds.expand_dims(time=[np.datetime64("2024-06-03T00")])'
        report.error("time", found, "the valid time of the data", fix, kind=TimeError)
        return None
    return _dates(valid, report)


def _check_stated(times: xr.DataArray, ds: xr.Dataset, names: tuple, report: Report) -> None:
    """Refuse a coordinate valid_time that contradicts start and lead time."""
    if "valid_time" not in ds.coords or "valid_time" in names or ds["valid_time"].dtype.kind != "M":
        return
    wrong = (ds["valid_time"].variable != times.variable).values
    if wrong.any():
        found = f"valid_time is not {names[0]} plus {names[1]} at {int(wrong.sum())} places"
        fix = 'Drop the wrong one: ds.drop_vars("valid_time")'
        report.error("valid_time", found, "times that agree", fix, kind=TimeError)


def _dates(coordinate: xr.DataArray, report: Report) -> xr.DataArray | None:
    """The coordinate as naive datetime64[ns] in UTC."""
    name = str(coordinate.name)
    if coordinate.dtype.kind == "M" and isinstance(coordinate.dtype, np.dtype):
        return coordinate.astype("datetime64[ns]").reset_coords(drop=True)
    values = coordinate.values.ravel()
    calendar = getattr(values[0], "calendar", None) if values.size else None
    if calendar is not None and calendar not in ("standard", "gregorian", "proleptic_gregorian"):
        found = f"the {calendar} calendar, which has no forecasts in it"
        report.error(name, found, "the standard calendar", f'ds = ds.convert_calendar("standard", dim="{name}")', kind=TimeError)
        return None
    if coordinate.dtype.kind in "iuf":
        found = f"undecoded numbers with units {coordinate.attrs.get('units', 'missing')!r}"
        report.error(name, found, "dates", "Open the file with decode_times=True, or ds = xr.decode_cf(ds)", kind=TimeError)
        return None
    try:
        texts = [value.isoformat() if hasattr(value, "isoformat") else value for value in values]
        index = pd.DatetimeIndex(pd.to_datetime(texts, utc=True)).tz_localize(None)
    except (ValueError, TypeError) as error:
        fix = f'ds["{name}"] = pd.to_datetime(...)'
        report.error(name, f"cannot be read as dates ({error})", "datetime64", fix, kind=TimeError)
        return None
    if any(getattr(value, "tzinfo", None) is not None for value in values):
        report.warn(name, "times carry a time zone; converted to UTC")
    else:
        report.assume(name, f"{type(values[0]).__name__} values read as dates in UTC")
    data = index.values.astype("datetime64[ns]").reshape(coordinate.shape)
    coordinates = {dim: coordinate[dim] for dim in coordinate.dims if dim != name}
    return xr.DataArray(data, coordinates, coordinate.dims, name=name)


def _leads(coordinate: xr.DataArray, report: Report) -> xr.DataArray | None:
    """The coordinate as timedelta64[ns], rounded to whole seconds."""
    if coordinate.dtype.kind == "m":
        return coordinate.reset_coords(drop=True)
    units = str(coordinate.attrs.get("units", "")).lower()
    if coordinate.dtype.kind not in "iuf" or units not in HOURS_OF:
        found = f"lead times of type {coordinate.dtype} with units {units or 'missing'!r}"
        fix = f'ds["{coordinate.name}"].attrs["units"] = "hours"'
        report.error(str(coordinate.name), found, "hours, minutes, seconds or timedelta64", fix, kind=TimeError)
        return None
    seconds = (coordinate.reset_coords(drop=True) * (HOURS_OF[units] * 3600)).round()
    return seconds.astype("int64").astype("timedelta64[s]").astype("timedelta64[ns]")


def _choose(flat: np.ndarray, times: np.ndarray | None, report: Report) -> np.ndarray:
    """Positions of the wanted valid times, sorted; duplicates and missing ones are reported."""
    order = np.argsort(flat, kind="stable")
    if times is not None:
        wanted = np.asarray(times, dtype="datetime64[ns]").ravel()
        missing = np.setdiff1d(wanted, flat)
        if missing.size:
            span = f"the data run from {_text(flat.min())} to {_text(flat.max())}"
            found = f"{missing.size} of {wanted.size} times are not in the data: {_list(missing)}; {span}"
            report.error("time", found, _list(wanted), kind=TimeError)
        order = order[np.isin(flat[order], wanted)]
    chosen, counts = np.unique(flat[order], return_counts=True)
    if np.any(counts > 1):
        found = f"{np.sum(counts > 1)} valid times occur more than once: {_list(chosen[counts > 1])}"
        fix = "Choose one start or one lead time, e.g. ds.isel(step=slice(0, 2)), or ds.drop_duplicates(...)"
        report.error("time", found, "every valid time once", fix, kind=TimeError)
        order = order[np.unique(flat[order], return_index=True)[1]]
    return order


def _take(ds: xr.Dataset, valid: xr.DataArray, order: np.ndarray) -> xr.Dataset:
    """Pick positions out of the flattened dims of ``valid`` along a new dimension ``time``; lazy arrays stay lazy."""
    moments = valid.values.ravel()[order]
    old = [c for c in ds.coords if ds[c].dtype.kind in "Mm" or c in valid.dims or str(c).lower() in (*LEADS, *STARTS, *_VALID)]
    if valid.ndim == 0:
        ds = ds.drop_vars(old).expand_dims("time")
    elif valid.ndim == 1 and np.array_equal(order, np.arange(valid.size)):
        ds = ds.drop_vars(old).rename({valid.dims[0]: "time"} if valid.dims[0] != "time" else {})
    else:
        places = zip(valid.dims, np.unravel_index(order, valid.shape), strict=True)
        ds = ds.isel({dim: xr.DataArray(place, dims="__time") for dim, place in places})
        ds = ds.drop_vars(old, errors="ignore").rename(__time="time")
    return ds.assign_coords(time=("time", moments, {"standard_name": "time", "long_name": "valid time", "axis": "T"}))


def _text(moment: np.datetime64) -> str:
    return str(moment.astype("datetime64[m]"))


def _list(moments: np.ndarray, most: int = 6) -> str:
    shown = ", ".join(_text(moment) for moment in moments[:most])
    return shown + (f" and {moments.size - most} more" if moments.size > most else "")
