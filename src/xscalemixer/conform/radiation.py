"""Solar radiation: accumulations become mean fluxes when the metadata tell the interval, and are refused otherwise."""

from __future__ import annotations

import re

import numpy as np
import xarray as xr

from xscalemixer.conform.match import Inventory
from xscalemixer.conform.time import LEADS
from xscalemixer.report import Report
from xscalemixer.units import UnitsError, conversion
from xscalemixer.variables import CATALOG, Variable

__all__ = ["INTERVAL", "processing", "to_mean_flux"]

INTERVAL = "interval_hours"  # attribute: length of the interval that the values are means over, where the file states it

_STEP_SECONDS = {0: 60, 1: 3600, 2: 86400, 10: 10800, 11: 21600, 12: 43200, 13: 1}  # GRIB 2 code table 4.4


def to_mean_flux(ds: xr.Dataset, report: Report) -> xr.Dataset:
    """Turn accumulated solar radiation (J m-2) into its mean over each interval (W m-2), before the time axis is flattened.

    The interval is known from the step ranges of GRIB messages, from CF cell methods with time bounds, or from the
    conventions of ERA5 hourly files of the Climate Data Store.
    """
    array = Inventory(ds, Report("")).find(CATALOG["ssrd"])
    if array is None:
        return ds
    try:
        factor, _ = conversion(str(array.attrs.get("units", "")), "J m-2")
    except UnitsError:
        _note_flux(array, report)
        hours = _stated_hours(ds, array)
        return ds if hours is None else ds.assign({array.name: array.assign_attrs({INTERVAL: hours})})
    flux = _from_step_ranges(array, report) if "GRIB_stepRange" in array.attrs else None
    if flux is None:
        flux = _from_bounds(ds, array, report)
    if flux is None:
        flux = _from_data_store(ds, array, report)
    if flux is None:
        _refuse(array, report)
        return ds.drop_vars([array.name])
    return ds.assign(
        {array.name: (factor * flux).assign_attrs({**array.attrs, **flux.attrs, "units": "W m-2", "GRIB_stepType": "avg"})}
    )


def _note_flux(array: xr.DataArray, report: Report) -> None:
    kind, steps = array.attrs.get("GRIB_stepType"), str(array.attrs.get("GRIB_stepRange", ""))
    if kind == "instant":
        report.assume("ssrd", "an instantaneous flux, taken as the mean over the step that ends at its time stamp")
    elif kind == "avg" and steps:
        ranges = steps.split()
        shown = ", ".join(ranges[:4]) + (", ..." if len(ranges) > 4 else "")
        report.assume("ssrd", f"a mean flux over forecast steps {shown}, taken as it is")
    else:
        report.assume("ssrd", "a flux, taken as the mean over the step that ends at its time stamp")


def processing(array: xr.DataArray, row: Variable) -> str | None:
    """What the values of a variable are in time, in words, from GRIB or CF metadata: at a time, or means.

    Where these say nothing, radiation is taken as a mean; for other variables the answer is None.
    """
    match = re.search(r"time\d*: (point|mean)", str(array.attrs.get("cell_methods", "")))
    stated = {"instant": "point", "avg": "mean"}.get(str(array.attrs.get("GRIB_stepType"))) or (match[1] if match else None)
    words = {"point": "instantaneous values", "mean": "means over an interval"}
    return words.get(stated or ("mean" if row.interval_mean else ""))


def _from_step_ranges(array: xr.DataArray, report: Report) -> xr.DataArray | None:
    """Mean flux from GRIB step ranges: one range, consecutive ones, or all since the start of the forecast."""
    starts, ends = _step_ranges(array)
    if not ends.size:
        return None
    lengths = ends - starts
    if np.ptp(lengths) == 0 and lengths[0] > 0:
        report.assume("ssrd", f"accumulated over {lengths[0] / 3600:g} h before its time stamp; divided by that time")
        return _stating(array / lengths[0], lengths)
    lead = next((dim for dim in array.dims if dim in LEADS), None)
    if lead is None or np.ptp(starts) or array.sizes[lead] not in (len(ends), len(ends) + 1):
        return None
    report.assume("ssrd", "accumulated since the start of the forecast; differences between lead times divided by their distance")
    known = array.isel({lead: slice(-len(ends), None)})
    widths = xr.DataArray(np.diff(ends, prepend=starts[0]), dims=lead)
    return _stating((known - known.shift({lead: 1}, fill_value=0.0)) / widths, widths.values)


def _step_ranges(array: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of the GRIB step ranges in s; empty if there are none, or in an unknown unit."""
    texts = str(array.attrs.get("GRIB_stepRange", "")).split()
    ranges = np.array([[float(x) for x in text.split("-")] for text in texts if "-" in text]).reshape(-1, 2)
    seconds = _STEP_SECONDS.get(int(array.attrs.get("GRIB_stepUnits", 1)))
    if seconds is None:
        return np.empty(0), np.empty(0)
    starts, ends = ranges.T * seconds
    return starts, ends


def _stating(flux: xr.DataArray, seconds: np.ndarray) -> xr.DataArray:
    """The flux with the length of its intervals as an attribute, if that is one length."""
    return flux.assign_attrs({INTERVAL: float(seconds.flat[0]) / 3600}) if np.ptp(seconds) == 0 else flux


def _stated_hours(ds: xr.Dataset, array: xr.DataArray) -> float | None:
    """Length of the interval that a flux is a mean over, from GRIB step ranges or CF cell methods."""
    starts, ends = _step_ranges(array)
    if array.attrs.get("GRIB_stepType") == "avg" and ends.size and np.ptp(ends - starts) == 0:
        return float(ends[0] - starts[0]) / 3600
    match = re.search(r"(\w+): mean(?: \(interval: ([\d.]+) (\w+)\)| \(over the hour)?", str(array.attrs.get("cell_methods", "")))
    if not match:
        return None
    if match[2]:
        try:
            return float(match[2]) * conversion(match[3], "hour")[0]
        except UnitsError:
            return None
    if "over the hour" in match[0]:
        return 1.0
    seconds = _bound_lengths(ds, match[1])
    return None if seconds is None or np.ptp(seconds) else float(seconds.values.flat[0]) / 3600


def _bound_lengths(ds: xr.Dataset, name: str) -> xr.DataArray | None:
    """Lengths of the cells of a time coordinate in s, if it has bounds."""
    if name not in ds.coords or ds[name].attrs.get("bounds") not in ds.variables:
        return None
    bounds = ds[ds[name].attrs["bounds"]]
    seconds = (bounds.isel({bounds.dims[-1]: 1}) - bounds.isel({bounds.dims[-1]: 0})).values / np.timedelta64(1, "s")
    return xr.DataArray(seconds, dims=bounds.dims[:-1])


def _from_bounds(ds: xr.Dataset, array: xr.DataArray, report: Report) -> xr.DataArray | None:
    """Mean flux from ``cell_methods = "time: sum"`` and the bounds of the time coordinate."""
    match = re.search(r"(\w+): sum", str(array.attrs.get("cell_methods", "")))
    seconds = _bound_lengths(ds, match[1]) if match else None
    if seconds is None:
        return None
    report.assume("ssrd", "accumulated over the bounds of its time coordinate; divided by their length")
    return _stating(array / seconds, seconds.values)


def _from_data_store(ds: xr.Dataset, array: xr.DataArray, report: Report) -> xr.DataArray | None:
    """Mean flux of ERA5 hourly files of the Climate Data Store; not of ERA5-Land (0.1 degrees), which sums up since 00 UTC."""
    attrs = array.attrs
    is_era5 = attrs.get("GRIB_stepType") == "accum" and "valid_time" in array.dims and "expver" in ds.variables
    is_era5 &= ds.attrs.get("GRIB_centre") == "ecmf" and not set(LEADS) & set(array.dims)
    if not is_era5 or np.isclose(attrs.get("GRIB_iDirectionIncrementInDegrees", 0.25), 0.1):
        return None
    report.assume("ssrd", "an ERA5 accumulation over the hour before its time stamp; divided by 3600 s")
    return _stating(array / 3600.0, np.array([3600.0]))


def _refuse(array: xr.DataArray, report: Report) -> None:
    name, units = array.name, array.attrs.get("units")
    found = f"{name!r} is an accumulation ({units}), and nothing says over which time"
    needed = "a mean flux in W m-2, a GRIB file opened with xscalemixer.open, or cell_methods 'time: sum' with time bounds"
    line = f'ds["{name}"] = (ds["{name}"]{{}} / SECONDS).assign_attrs(units="W m-2")'
    hourly = f"If every value is the sum of the hour before it (ERA5): {line.format('').replace('SECONDS', '3600')}"
    since = f"If it grows since the start of the forecast: {line.format('.diff(dim)')}, with the seconds between lead times"
    report.error("ssrd", found, needed, f"{hourly}. {since}")
