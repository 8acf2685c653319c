"""Horizontal axes: latitude north to south, longitude west to east, on rectilinear and curvilinear grids."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import xarray as xr

from xscalemixer.errors import GridError
from xscalemixer.report import Report

__all__ = ["to_canonical_grid"]

_NAMES = {
    "latitude": ("latitude", "lat", "nav_lat", "xlat", "xlat_m", "g0_lat_0", "gridlat_0", "lats"),
    "longitude": ("longitude", "lon", "nav_lon", "xlong", "xlong_m", "g0_lon_1", "gridlon_0", "lons"),
}
_UNITS = {
    "latitude": {"degrees_north", "degree_north", "degrees_n", "degree_n", "degreen", "degreesn"},
    "longitude": {"degrees_east", "degree_east", "degrees_e", "degree_e", "degreee", "degreese"},
}
_ATTRS = {
    "latitude": {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north"},
    "longitude": {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east"},
}


def to_canonical_grid(ds: xr.Dataset, report: Report) -> xr.Dataset:
    """Name the horizontal axes ``latitude`` and ``longitude`` (1-D) or ``y`` and ``x`` (with 2-D coordinates), and order them.

    Longitudes keep the convention of the file as far as they can be monotonic: 358, 359, 0, 1 becomes 358, 359, 360, 361.
    A column that repeats another one is dropped.
    """
    axes = {kind: _find(ds, kind) for kind in _NAMES}
    lost = [kind for kind, name in axes.items() if name is None]
    if lost:
        for kind in lost:
            found = f"no {kind} among {', '.join(map(str, ds.variables)) or 'no variables'}"
            fix = f'ds = ds.rename({{"NAME": "{kind}"}}), or ds = ds.assign_coords({kind}=...)'
            report.error(kind, found, f"a {kind} coordinate in degrees", fix, kind=GridError)
        return ds
    ds = ds.set_coords(list(axes.values()))
    latitude, longitude = (_without_time(ds[name]) for name in axes.values())
    problem = _problem(latitude, longitude)
    if problem:
        report.error("grid", *problem, kind=GridError)
        return ds
    name = _name_curvilinear if latitude.ndim == 2 else _name_rectilinear
    ds = name(ds, latitude, longitude)
    if "y" in ds["latitude"].dims:
        return _order_curvilinear(ds, report)
    return _order_longitude(_order_latitude(ds, report), report)


def _find(ds: xr.Dataset, kind: str) -> Hashable | None:
    candidates = [name for name, v in ds.variables.items() if v.ndim <= 3]
    for name in candidates:
        if ds[name].attrs.get("standard_name") == kind:
            return name
    for name in candidates:
        attrs = ds[name].attrs
        if str(attrs.get("units", "")).lower() in _UNITS[kind] and not str(attrs.get("standard_name", "")).startswith("grid_"):
            return name
    lower = {str(name).lower(): name for name in candidates}
    return next((lower[name] for name in _NAMES[kind] if name in lower), None)


def _without_time(coordinate: xr.DataArray) -> xr.DataArray:
    """First time of a coordinate that is repeated at every time, as WRF writes it."""
    return coordinate.isel({dim: 0 for dim in coordinate.dims[:-2]}, drop=True)


def _problem(latitude: xr.DataArray, longitude: xr.DataArray) -> tuple[str, ...] | None:
    """(found, needed, fix) if these two cannot span a grid."""
    if not all(c.dtype.kind in "iuf" for c in (latitude, longitude)):
        return "coordinates are not numbers", "degrees", ""
    if not all(np.isfinite(c.values).all() for c in (latitude, longitude)):
        return "coordinates contain NaN or infinity", "degrees everywhere", ""
    if np.abs(latitude.values).max(initial=0) > 90 + 1e-4:
        return f"latitudes from {latitude.values.min():g} to {latitude.values.max():g}", "-90..90 degrees north", ""
    if latitude.ndim == longitude.ndim == 1 and latitude.dims == longitude.dims:
        found = f"points along one dimension ({latitude.dims[0]}): a reduced or unstructured grid, or stations"
        fix = "Interpolate to a latitude-longitude grid first; stations as a truth: xsm.read_stations(ds)"
        return found, "a grid with two dimensions", fix
    if (latitude.ndim, longitude.ndim) not in ((1, 1), (2, 2)) or latitude.size < 2 or longitude.size < 2:
        found = f"latitude of shape {latitude.shape} and longitude of shape {longitude.shape}"
        return found, "two 1-D or two 2-D coordinates of at least 2 x 2 points", ""
    return None


def _name_rectilinear(ds: xr.Dataset, latitude: xr.DataArray, longitude: xr.DataArray) -> xr.Dataset:
    names = {latitude.dims[0]: "latitude", longitude.dims[0]: "longitude"}
    ds = ds.drop_vars({latitude.name, longitude.name, *names} & set(ds.coords))
    ds = ds.rename({old: new for old, new in names.items() if old != new})
    axes = {"latitude": latitude.values.astype("f8"), "longitude": longitude.values.astype("f8")}
    return ds.assign_coords({name: (name, values, _ATTRS[name]) for name, values in axes.items()})


def _order_latitude(ds: xr.Dataset, report: Report) -> xr.Dataset:
    values = ds["latitude"].values
    if np.unique(values).size < values.size:
        found = f"{values.size - np.unique(values).size} latitudes occur twice"
        report.error("latitude", found, "every latitude once", 'ds = ds.drop_duplicates("latitude")', kind=GridError)
        return ds
    steps = np.diff(values)
    if np.all(steps < 0):
        return ds
    report.assume("latitude", "rows put in order from north to south" if np.any(steps < 0) else "rows turned from north to south")
    return ds.isel(latitude=np.argsort(-values))


def _order_longitude(ds: xr.Dataset, report: Report) -> xr.Dataset:
    values = ds["longitude"].values
    steps = np.diff(values)
    if np.all(steps > 0) and values[-1] - values[0] < 360 - 1e-6 and not _gap_inside(values):
        return ds
    order, unwrapped = _unwrap(values)
    dropped = values.size - order.size
    text = "columns put in order from west to east"
    report.assume("longitude", text + (f"; {dropped} repeated column{'s' * (dropped > 1)} dropped" if dropped else ""))
    return ds.isel(longitude=order).assign_coords(longitude=("longitude", unwrapped, _ATTRS["longitude"]))


def _gap_inside(values: np.ndarray) -> bool:
    """True if a box across the date line or Greenwich was sorted by number: its largest gap is not at the ends."""
    ends = 360 - (values[-1] - values[0])
    return np.diff(values).max() > ends + 1e-6 and np.diff(values).max() > 180


def _unwrap(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order of the columns from west to east without repeats, and their longitudes made monotonic.

    The westernmost column is the one after the largest gap around the globe; without a gap, the one that comes first in the file,
    or the lowest number if the file is only turned around.
    """
    around = np.round(values % 360, 6) % 360
    _, first = np.unique(around, return_index=True)
    gaps = np.diff(np.append(around[first], around[first[0]] + 360))
    widest = int(np.argmax(gaps))
    if gaps[widest] > 1.5 * np.median(gaps):
        start = (widest + 1) % first.size
    else:
        head = 0 if np.median(np.diff(values)) > 0 else int(np.argmin(values))
        start = int(np.flatnonzero(around[first] == around[head])[0])
    order = np.roll(first, -start)
    unwrapped = values[order[0]] + np.append(0.0, np.cumsum(np.diff(values[order]) % 360))
    return order, unwrapped


def _name_curvilinear(ds: xr.Dataset, latitude: xr.DataArray, longitude: xr.DataArray) -> xr.Dataset:
    """2-D coordinates on dims (y, x); a latitude-longitude grid stored in 2-D is made 1-D."""
    rows, columns = latitude.dims
    longitude = longitude.transpose(rows, columns)
    if np.ptp(latitude.values, axis=1).max() < 1e-6 and np.ptp(longitude.values, axis=0).max() < 1e-6:
        ds = ds.drop_vars([latitude.name, longitude.name])
        return _name_rectilinear(ds, latitude.isel({columns: 0}), longitude.isel({rows: 0}))
    names = {old: new for old, new in ((rows, "y"), (columns, "x")) if old != new}
    values = {"latitude": latitude.values.astype("f8"), "longitude": longitude.values.astype("f8")}
    ds = ds.drop_vars([latitude.name, longitude.name]).rename(names)
    return ds.assign_coords({name: (("y", "x"), data, _ATTRS[name]) for name, data in values.items()})


def _order_curvilinear(ds: xr.Dataset, report: Report) -> xr.Dataset:
    """Turn y so that latitude falls along it, and x so that longitude grows along it."""
    latitude, longitude = ds["latitude"].values, ds["longitude"].values
    eastward = (np.diff(longitude, axis=1) + 180) % 360 - 180
    turned = {}
    if np.diff(latitude, axis=0).mean() > 0:
        turned["y"] = slice(None, None, -1)
    if eastward.mean() < 0:
        turned["x"] = slice(None, None, -1)
    if turned:
        report.assume("grid", f"{' and '.join(turned)} turned so that rows run from north to south and columns from west to east")
    return ds.isel(turned)
