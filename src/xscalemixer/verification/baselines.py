"""Forecasts that cost nothing and are hard to beat: the weather stays as it is, repeats itself, or is what it usually is."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import xarray as xr

from xscalemixer.conform import whole_hours
from xscalemixer.errors import TimeError
from xscalemixer.layouts import to_forecast
from xscalemixer.verification.alignment import at_valid_times, read_analysis

__all__ = ["climatology_forecast", "persistence_forecast"]


def persistence_forecast(
    analyses: xr.Dataset,
    init_times,
    hours: int = 48,
    *,
    period: int | None = None,
    variables: Iterable[str] | None = None,
) -> xr.Dataset:
    """Forecast that the weather of the start goes on, or that the last ``period`` hours repeat themselves.

    Parameters
    ----------
    analyses : Dataset
        Fields at valid times, in any layout, names and units.
    init_times : datetime-like or several
        Starts of the forecasts.
    hours : int
        Length; lead times are 1..hours.
    period : int, optional
        Hours that are repeated: 24 keeps the diurnal cycle. Default: the state of the start stays.
    variables : iterable of str, optional
        Catalog names; default: all that the analyses have.

    Returns
    -------
    Dataset
        Canonical names and units, dims ``(reference_time, lead_time, ...)``; lazy where ``analyses`` is.

    Raises
    ------
    TimeError
        If the analyses lack a time that is needed, or ``hours`` or ``period`` is not a positive whole number.
    InputError
        If the analyses cannot be read.
    """
    starts, leads = _axes(init_times, hours)
    period = None if period is None else whole_hours(period)
    analyses, _ = read_analysis(analyses, variables)
    back = xr.zeros_like(leads) if period is None else (leads - 1) % period + 1 - period
    return _forecast(_at(analyses, starts + back.astype("timedelta64[h]")), leads)


def climatology_forecast(climatology: xr.Dataset, init_times, hours: int = 48) -> xr.Dataset:
    """Forecast what is usual at each place, hour of day and day of year.

    Parameters
    ----------
    climatology : Dataset
        From `xscalemixer.climatology`.
    init_times : datetime-like or several
        Starts of the forecasts.
    hours : int
        Length; lead times are 1..hours.

    Returns
    -------
    Dataset
        Dims ``(reference_time, lead_time, ...)``; lazy where ``climatology`` is.

    Raises
    ------
    TimeError
        If the climatology lacks an hour or a day of year that is needed, or ``hours`` is not a positive whole number.
    """
    starts, leads = _axes(init_times, hours)
    return _forecast(at_valid_times(climatology, starts + leads.astype("timedelta64[h]")), leads)


def _axes(init_times, hours: int) -> tuple[xr.DataArray, xr.DataArray]:
    starts = pd.DatetimeIndex(np.atleast_1d(np.asarray(init_times)).ravel()).unique().sort_values()
    leads = xr.DataArray(np.arange(1, whole_hours(hours) + 1), dims="lead_time")
    return xr.DataArray(starts.values, {"reference_time": starts.values}, dims="reference_time"), leads


def _at(analyses: xr.Dataset, times: xr.DataArray) -> xr.Dataset:
    place = pd.Index(analyses["time"].values).get_indexer(times.values.ravel()).reshape(times.shape)
    lost = np.unique(times.values[place < 0])
    if lost.size:
        found = f"{lost.size} hours are not in the analyses, the first {np.datetime_as_string(lost[0], unit='h')}"
        raise TimeError("no forecast was made", [f"{found}; needed the hours before every start"])
    return analyses.isel(time=times.copy(data=place).reset_coords(drop=True)).drop_vars("time")


def _forecast(fields: xr.Dataset, leads: xr.DataArray) -> xr.Dataset:
    axis = leads.variable.copy()
    axis.attrs = {"standard_name": "forecast_period", "units": "hours"}
    return to_forecast(fields.assign_coords(lead_time=axis))
