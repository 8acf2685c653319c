"""``at_stations``: fields on a grid at the places of stations, and at their altitude."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from typing import Literal, get_args

import numpy as np
import xarray as xr

from xscalemixer.conform import holdings, require_dataset, translate
from xscalemixer.conform.grid import to_canonical_grid
from xscalemixer.conform.radiation import to_mean_flux
from xscalemixer.conform.time import LEADS, find_coordinate, to_valid_time
from xscalemixer.errors import GridError, InputError
from xscalemixer.grids import CurvilinearGrid, Grid, grid_of, unit_vectors
from xscalemixer.layouts import to_forecast
from xscalemixer.physics.pressure import LAPSE_RATE, pressure_at_altitude
from xscalemixer.projections import EARTH_RADIUS
from xscalemixer.regridding import point_weights
from xscalemixer.report import Report
from xscalemixer.stations.reading import SAME_PLACE, Source, read_places
from xscalemixer.variables import CATALOG, Schema

__all__ = ["at_stations", "bring_to_stations"]

Method = Literal["bilinear", "nearest"]

_REPORTED = ("d2m", "ws10", "sp")  # what stations report and grids often only determine
_CORRECTED = {
    "t2m": "6.5 K km-1",
    "d2m": "6.5 K km-1, as the temperature, so that its depression stays",
    "sp": "hypsometric equation",
}
_TIMES = ("reference_time", "lead_time", "time", "member")
_STANDARD_TEMPERATURE = 288.15  # K at sea level, ICAO standard atmosphere


def at_stations(
    fc: xr.Dataset,
    stations: Source,
    *,
    method: Method = "bilinear",
    height_correction: bool = True,
    max_distance: float | None = None,
    max_height_difference: float | None = 500.0,
) -> xr.Dataset:
    """Bring a forecast or an analysis to weather stations.

    Parameters
    ----------
    fc : Dataset
        On a latitude-longitude or curvilinear grid, in any layout, names and units; or at stations already, of which those
        asked for are picked.
    stations : Dataset, DataFrame or path
        From `read_stations`, or anything with positions and, where known, ids and altitudes.
    method : "bilinear" or "nearest"
        Bilinear in latitude and longitude, or in the coordinates of the projection, which must be known for a curvilinear
        grid; or the value of the cell with the nearest center.
    height_correction : bool
        Bring ``t2m``, ``d2m`` and ``sp`` from the orography of the model (needs ``orog`` in ``fc``) to the altitude of the
        station: temperatures by the standard lapse rate of 6.5 K km-1, pressure by the hypsometric equation. Stations of
        unknown altitude get none.
    max_distance : float, optional
        m; stations farther from the nearest cell center are left out.
    max_height_difference : float or None
        m; stations whose altitude differs more than this from the orography of the model are left out.

    Returns
    -------
    Dataset
        Catalog names and units, float32, dims ``(reference_time, lead_time, [member], [level], station)``, or ``(time,
        [level], station)`` for an analysis; lazy where ``fc`` is. ``orog(station)`` is the altitude that the values are for:
        after the correction that of the station, so that a second call changes nothing. What the grid determines is added
        before interpolation (``ws10`` from the wind, ``d2m``, ``sp``). The attribute ``report`` says what was left out.

    Raises
    ------
    GridError
        If no station is left, or the grid allows no bilinear interpolation.
    InputError
        If an argument is not known.

    Notes
    -----
    Nothing is extrapolated: stations outside the outermost cell centers are left out.

    Wind speed is computed at the cells and then interpolated. The other order, interpolating the components first, gives
    lower speeds wherever the direction changes between cells (the length of a mean vector is at most the mean length), an
    error of interpolation that a score would charge to the model; a station reports a mean of speeds. Components asked for
    as such are interpolated as components. A direction is an angle and is not interpolated.

    References
    ----------
    Lapse rate: ICAO standard atmosphere (Doc 7488).
    """
    require_dataset(fc)
    _check(method, max_distance, max_height_difference)
    report = Report("this forecast at stations")
    places = read_places(stations)
    ds = _canonical(fc, report)
    report.raise_errors("this forecast cannot be brought to stations")
    out = bring_to_stations(
        ds,
        places,
        report,
        method=method,
        height_correction=height_correction,
        max_distance=max_distance,
        max_height_difference=max_height_difference,
    )
    return out.assign_attrs(report=repr(report))


def bring_to_stations(
    ds: xr.Dataset,
    places: xr.Dataset,
    report: Report,
    *,
    method: Method = "bilinear",
    height_correction: bool = True,
    max_distance: float | None = None,
    max_height_difference: float | None = 500.0,
) -> xr.Dataset:
    """As `at_stations`, for canonical variables and places, with a report of the caller.

    Parameters
    ----------
    ds : xr.Dataset
        Canonical; with ``orog`` if heights are to be corrected. At stations already: those asked for are picked.
    places : xr.Dataset
        From `read_places`.
    """
    out = _picked(ds, places, report) if "station" in ds.dims else _interpolated(ds, places, method, max_distance, report)
    if "orog" in out:
        out = _near_in_height(_static(out), max_height_difference, report)
    if height_correction:
        out = _corrected(out, report)
    if not out.sizes["station"]:
        raise GridError("no station is left", [str(finding) for finding in report.select("warning")])
    return out


def _check(method: str, max_distance: float | None, max_height_difference: float | None) -> None:
    problems = [f"method={method!r}; needed 'bilinear' or 'nearest'"] if method not in get_args(Method) else []
    limits = {"max_distance": max_distance, "max_height_difference": max_height_difference}
    problems += [
        f"{name}={limit!r}; needed a positive number of m"
        for name, limit in limits.items()
        if limit is not None and not limit > 0
    ]
    if problems:
        raise InputError("this forecast cannot be brought to stations", problems)


def _canonical(fc: xr.Dataset, report: Report) -> xr.Dataset:
    """What the forecast holds, and what stations report and it determines, in canonical names, units and axes."""
    flux = Report("")
    ds = to_mean_flux(fc, flux)
    for finding in flux.select("error"):
        report.warn(finding.subject, f"left out: {finding.found}", finding.fix)
    ds = to_forecast(ds) if find_coordinate(ds, "forecast_period", LEADS) is not None else to_valid_time(ds, report)
    ds = ds if "station" in ds.dims else to_canonical_grid(ds, report)
    if not report.ok:
        return ds
    held = holdings(ds)
    names = [name for name in CATALOG if name in held.direct or (name in _REPORTED and name in held.levels)]
    if "wd10" in names:
        names.remove("wd10")
        report.assume("wd10", "left out: a direction is not interpolated; it follows from u10 and v10")
        names += [name for name in ("u10", "v10") if name not in names and name in held.levels]
    rows = [CATALOG[name].at(held.levels[name]) if held.levels[name] else CATALOG[name] for name in names]
    rows += [CATALOG["orog"]] if held.has_orography else []
    if not names:
        report.error("variables", f"nothing known among {', '.join(map(str, ds.data_vars))}", "a variable of the catalog")
        return ds
    return translate(ds, Schema(tuple(rows)), report, dims=_TIMES).assign_attrs(fc.attrs)


# --- places ----------------------------------------------------------------------------------------------------------


def _interpolated(ds: xr.Dataset, places: xr.Dataset, method: str, max_distance: float | None, report: Report) -> xr.Dataset:
    """All fields at the stations inside the grid."""
    grid = grid_of(ds)
    matrix, inside = _weights(grid, places, method)
    total = inside.size
    if not inside.all():
        report.warn("station", f"{(~inside).sum()} of {total} are outside the grid ({grid}) and left out")
    if max_distance is not None:
        far = inside & (_nearest(grid, places)[1] > max_distance)
        if far.any():
            report.warn("station", f"{far.sum()} of {total} are more than {max_distance:g} m from a cell center and left out")
        inside &= ~far
    if not inside.any():
        raise GridError("no station is inside the grid", [f"{total} stations between {_extent(places)}; the grid is {grid}"])
    report.assume("station", f"{method} interpolation to {inside.sum()} stations")
    apply = partial(_apply, matrix[inside], matrix[inside].astype("f4"))
    dims = ds["latitude"].dims if isinstance(grid, CurvilinearGrid) else ("latitude", "longitude")
    fields = {
        name: _at_points(array, apply, dims, int(inside.sum())) for name, array in ds.items() if set(dims) <= set(array.dims)
    }
    kept = {name: c for name, c in ds.coords.items() if not set(c.dims) & set(dims) and c.ndim and name != "crs"}
    return xr.Dataset(fields, kept, ds.attrs).assign_coords(places.isel(station=inside).coords)


def _extent(places: xr.Dataset) -> str:
    spans = ((places[name].values, letter) for name, letter in (("latitude", "N"), ("longitude", "E")))
    return ", ".join(f"{values.min():.2f}..{values.max():.2f} {letter}" for values, letter in spans)


def _weights(grid: Grid | CurvilinearGrid, places: xr.Dataset, method: str):
    """Sparse matrix (N, H * W), and which stations are inside the grid."""
    from scipy.sparse import csr_array

    latitude, longitude = places["latitude"].values, places["longitude"].values
    if isinstance(grid, Grid) or grid.crs is not None:
        matrix = point_weights(grid, latitude, longitude)
        inside = np.diff(matrix.indptr) > 0
    elif method == "bilinear":
        fix = 'Type method="nearest", or add the projection: ds["crs"] = xr.DataArray(0, attrs=pyproj.CRS(...).to_cf())'
        raise GridError("this grid allows no bilinear interpolation", [f"{grid}; needed a known projection. {fix}"])
    else:
        cell, distance = _nearest(grid, places)
        inside = distance <= _reach(grid)[cell]
    if method == "nearest":
        cell, _ = _nearest(grid, places)
        matrix = csr_array((np.ones(cell.size), cell, np.arange(cell.size + 1)), shape=(cell.size, grid.shape[0] * grid.shape[1]))
    return matrix, inside


def _nearest(grid: Grid | CurvilinearGrid, places: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Flat number of the cell with the nearest center, and the great-circle distance to it in m; shapes (N,)."""
    from scipy.spatial import KDTree

    axes = (grid.latitude, grid.longitude)
    points = unit_vectors(*np.meshgrid(*axes, indexing="ij")) if isinstance(grid, Grid) else grid.points
    wanted = unit_vectors(places["latitude"].values, places["longitude"].values)
    known = np.isfinite(wanted).all(axis=1)
    cell, distance = np.zeros(known.size, int), np.full(known.size, np.inf)
    chord, cell[known] = KDTree(points.reshape(-1, 3)).query(wanted[known])
    distance[known] = 2 * EARTH_RADIUS * np.arcsin(chord / 2)
    return cell, distance


def _reach(grid: CurvilinearGrid) -> np.ndarray:
    """Half the longer diagonal of each cell in m: what is farther from its center is outside; shape (H * W,)."""
    down, right = np.gradient(grid.points, axis=(0, 1))
    diagonals = [np.linalg.norm(down + right, axis=-1), np.linalg.norm(down - right, axis=-1)]
    return EARTH_RADIUS * np.max(diagonals, axis=0).ravel() / 2


def _at_points(array: xr.DataArray, apply, dims: tuple[Hashable, ...], size: int) -> xr.DataArray:
    if array.chunks is not None:
        array = array.chunk(dict.fromkeys(dims, -1))
    return xr.apply_ufunc(
        apply,
        array.drop_vars([name for name, c in array.coords.items() if set(c.dims) & set(dims)]),
        input_core_dims=[dims],
        output_core_dims=[("station",)],
        dask="parallelized",
        dask_gufunc_kwargs={"output_sizes": {"station": size}},
        output_dtypes=[array.dtype],
        keep_attrs=True,
    )


def _apply(double, single, fields: np.ndarray) -> np.ndarray:
    """Interpolate fields of shape (..., H, W) to (..., N), one by one: all at once would need a transposed copy of all."""
    matrix = single if fields.dtype == np.float32 else double
    flat = fields.reshape(-1, fields.shape[-2] * fields.shape[-1])
    out = np.empty((len(flat), matrix.shape[0]), fields.dtype)
    for target, source in zip(out, flat, strict=True):
        target[:] = matrix @ source
    return out.reshape(*fields.shape[:-2], matrix.shape[0])


def _picked(ds: xr.Dataset, places: xr.Dataset, report: Report) -> xr.Dataset:
    """The stations asked for out of a forecast that is at stations already."""
    shared = np.isin(places["station"].values, ds["station"].values)
    if not shared.all():
        report.warn("station", f"{(~shared).sum()} of {shared.size} are not in this forecast and left out")
    wanted = places.isel(station=shared)
    out = ds.sel(station=wanted["station"].values)
    north = np.abs(out["latitude"].values - wanted["latitude"].values)
    east = np.abs((out["longitude"].values - wanted["longitude"].values + 180) % 360 - 180)
    apart = ~((north <= SAME_PLACE) & (east <= SAME_PLACE))
    if apart.any():
        here = [f"{name} ({_where(out, i)}, asked for at {_where(wanted, i)})"
                for i, name in enumerate(wanted["station"].values) if apart[i]]  # fmt: skip
        raise GridError("these are not the same stations", [f"{apart.sum()} ids are in other places: {', '.join(here[:5])}"])
    return out.assign_coords(wanted.coords)


def _where(ds: xr.Dataset, number: int) -> str:
    return f"{ds['latitude'].values[number]:g} N {ds['longitude'].values[number]:g} E"


# --- heights ---------------------------------------------------------------------------------------------------------


def _static(ds: xr.Dataset) -> xr.Dataset:
    """The orography once, where a file repeats it."""
    orog = ds["orog"]
    return ds.assign(orog=orog.isel({dim: 0 for dim in orog.dims if dim != "station"}, drop=True).compute())


def _near_in_height(ds: xr.Dataset, limit: float | None, report: Report) -> xr.Dataset:
    """Without stations whose altitude the model misses by too much."""
    difference = (ds["altitude"] - ds["orog"]).values
    far = np.abs(difference) > (np.inf if limit is None else limit)
    if far.any():
        worst = np.flatnonzero(far)[np.argsort(-np.abs(difference[far]))][:5]
        named = ", ".join(f"{ds['station'].values[i]} ({difference[i]:+.0f} m)" for i in worst)
        report.warn("altitude", f"{far.sum()} of {far.size} stations differ by more than {limit:g} m from the orography of the "
                                f"model and are left out, the worst: {named}")  # fmt: skip
    return ds.isel(station=~far)


def _corrected(ds: xr.Dataset, report: Report) -> xr.Dataset:
    """Temperatures and pressure at the altitude of the station; ``orog`` becomes that altitude."""
    names = [name for name in _CORRECTED if name in ds]
    if not names:
        return ds
    if "orog" not in ds:
        report.warn("altitude", f"{', '.join(names)} stay at the height of the model: the forecast has no orog",
                    'ds["orog"] = orography of the model in m')  # fmt: skip
        return ds
    known = ds["altitude"].notnull()
    if not known.all():
        report.warn("altitude", f"unknown at {int((~known).sum())} of {known.size} stations: no height correction there")
    drop = (ds["orog"] - ds["altitude"]).where(known, 0.0)
    altitude = ds["orog"] - drop
    new = {name: ds[name] + LAPSE_RATE * drop for name in ("t2m", "d2m") if name in ds}
    if "sp" in ds:
        standard = _STANDARD_TEMPERATURE - LAPSE_RATE * altitude
        new["sp"] = pressure_at_altitude(ds["sp"], ds["orog"], altitude, new.get("t2m", standard))
        if "t2m" not in ds:
            report.assume("sp", "corrected with the temperature of the standard atmosphere: the forecast has no t2m")
    for name, array in new.items():
        new[name] = (
            array.astype("f4").transpose(*ds[name].dims).assign_attrs({**ds[name].attrs, "height_correction": _CORRECTED[name]})
        )
    moved = int((np.abs(drop) > 0).sum())
    if moved:
        size = float(np.abs(drop.where(known)).mean())
        what = f"{', '.join(names)} brought from the orography of the model to the altitude of {moved} stations"
        report.assume("altitude", f"{what}, {size:.0f} m away on average")
    return ds.assign(new | {"orog": altitude.astype("f4").assign_attrs(ds["orog"].attrs)})
