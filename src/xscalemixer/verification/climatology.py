"""Climatology: the mean state at each place, hour of day and time of year."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import xarray as xr

from xscalemixer.errors import InputError
from xscalemixer.verification.alignment import read_analysis

__all__ = ["climatology"]

_DAYS = 366
_CUT = ("latitude", "y", "station")  # dims that are cut into chunks where the archive is lazy


def climatology(ds: xr.Dataset, *, window: int = 15, variables: Iterable[str] | None = None) -> xr.Dataset:
    """Mean of an archive for each grid point, hour of day and day of year.

    Parameters
    ----------
    ds : Dataset
        Fields at valid times, in any layout, names and units; the longer, the better.
    window : int
        Days before and after a day of year whose values count too, across the turn of the year.
    variables : iterable of str, optional
        Catalog names; default: all that the archive has.

    Returns
    -------
    Dataset
        Canonical names and units, dims ``(hour, dayofyear, [level], latitude, longitude)``, lazy where ``ds`` is (in chunks
        of places). Hours (UTC) and days of year (1..366) are those with at least one value in the window; ``samples(hour,
        dayofyear)`` says how many. NaN in the archive do not count.

    Raises
    ------
    InputError
        If ``window`` is not a number of days, or the archive cannot be read.

    References
    ----------
    Rasp et al. 2024, WeatherBench 2, doi:10.1029/2023MS004019; its window has weights, this one is a plain box.
    """
    if not (isinstance(window, int) and 0 <= window <= _DAYS // 2):
        raise InputError("this climatology cannot be made", [f"window={window!r}; needed whole days from 0 to {_DAYS // 2}"])
    archive, report = read_analysis(ds, variables)
    weights, hours, days = _window_weights(archive["time"], window)
    out = xr.Dataset({name: _windowed(array, weights, hours.size, days.size) for name, array in archive.items()})
    coords = {
        "hour": ("hour", hours, {"long_name": "hour of day (UTC)", "units": "hours"}),
        "dayofyear": ("dayofyear", days, {"long_name": "day of year", "units": "1"}),
        "samples": (("hour", "dayofyear"), weights.sum(axis=1).reshape(hours.size, days.size).astype("int64"), {"units": "1"}),
    }
    first, last = (np.datetime_as_string(archive["time"].values[i], unit="h") for i in (0, -1))
    attrs = {"title": f"climatology of {first} to {last}", "window": f"{window} days before and after", "report": repr(report)}
    return out.assign_coords({**archive.drop_vars("time").coords, **coords}).assign_attrs(attrs)


def _window_weights(time: xr.DataArray, window: int):
    """0/1 matrix (hour * day, time) of the times that count for each hour and day, in rows that have any; hours; days."""
    from scipy.sparse import csr_array

    hour, day = time.dt.hour.values, time.dt.dayofyear.values
    hours, days = np.unique(hour), np.arange(1, _DAYS + 1)
    apart = np.abs(days[:, None] - day)
    near = np.minimum(apart, _DAYS - apart) <= window
    days, near = days[near.any(axis=1)], near[near.any(axis=1)]
    return csr_array(np.concatenate([near & (hour == wanted) for wanted in hours]).astype("f8")), hours, days


def _windowed(array: xr.DataArray, weights, hours: int, days: int) -> xr.DataArray:
    if array.chunks is not None:
        array = array.chunk({"time": -1, next(dim for dim in array.dims if dim in _CUT): "auto"})
    mean = xr.apply_ufunc(
        partial(_window_mean, weights, hours, days),
        array,
        input_core_dims=[["time"]],
        output_core_dims=[["hour", "dayofyear"]],
        dask="parallelized",
        dask_gufunc_kwargs={"output_sizes": {"hour": hours, "dayofyear": days}},
        output_dtypes=[np.float32],
        keep_attrs=True,
    )
    return mean.transpose("hour", "dayofyear", ...)


def _window_mean(weights, hours: int, days: int, values: np.ndarray) -> np.ndarray:
    """Mean over the times that count, shape (..., T) -> (..., hours, days)."""
    flat = values.reshape(-1, values.shape[-1]).T.astype("f8")
    valid = np.isfinite(flat)
    count = weights @ valid.astype("f8")
    total = weights @ np.where(valid, flat, 0.0)
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return mean.T.reshape(*values.shape[:-1], hours, days).astype("f4")
