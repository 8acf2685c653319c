"""From coarse surface fields to real relief: published physics of height, slope and shadow, onto any grid of heights."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from functools import partial

import numpy as np
import xarray as xr

from xscalemixer._version import __version__
from xscalemixer.carrying import Carrier
from xscalemixer.conform import holdings, require_dataset, translate
from xscalemixer.conform.grid import to_canonical_grid
from xscalemixer.conform.match import Inventory
from xscalemixer.conform.radiation import to_mean_flux
from xscalemixer.conform.time import to_valid_time
from xscalemixer.errors import GridError
from xscalemixer.grids import CurvilinearGrid, Grid, grid_of, surroundings
from xscalemixer.output import TIME_ATTRS
from xscalemixer.projections import EARTH_RADIUS
from xscalemixer.regridding import Regridder, interpolation
from xscalemixer.relief import Relief, read_relief
from xscalemixer.report import Report
from xscalemixer.variables import CATALOG, REGIONAL, Schema

__all__ = ["adjust_to_terrain"]

_TASK = "this dataset cannot be carried to this terrain"
_NEEDS = {"u10": ("v10",), "v10": ("u10",), "sp": ("t2m",), "q2m": ("t2m", "sp"), "ssrd": ("t2m", "sp")}
_MARGIN = 3  # cells of the data kept around the relief, so that lapse rates see their neighbors
_FORECAST = ("reference_time", "lead_time")


def adjust_to_terrain(
    ds: xr.Dataset,
    orography: xr.Dataset | xr.DataArray,
    *,
    grid: Grid | CurvilinearGrid | None = None,
    radiation_hours: int | None = None,
) -> xr.Dataset:
    """Carry coarse surface fields to a fine grid with real relief.

    Parameters
    ----------
    ds : xr.Dataset
        Any of t2m, u10 and v10, q2m, sp, tcc and ssrd, or what they follow from, and its own orography; in any layout, also
        a forecast. Other variables are left out.
    orography : xr.Dataset or xr.DataArray
        Heights in m, or surface geopotential, on the grid to go to: latitudes and longitudes, or curvilinear. Heights below
        zero are sea and become 0; where a land fraction ``lsm`` comes with them, only if there is less than half land.
    grid : Grid or CurvilinearGrid, optional
        Where to go instead; the heights are regridded there first.
    radiation_hours : int, optional
        ``ssrd`` is the mean over so many hours that end at its time stamp; 0: it is instantaneous. By default what GRIB
        metadata say, else 1.

    Returns
    -------
    xr.Dataset
        Those of the seven variables that ``ds`` has, and ``orog``: float32 in canonical units on the grid of the relief, with
        dims ``(time, [member], ...)``, or ``(reference_time, lead_time, [member], ...)`` for forecasts of this library. Lazy
        where ``ds`` is. Radiation is per horizontal area. The attribute ``assumptions`` lists what was converted or assumed.

    Raises
    ------
    SchemaError, GridError, TimeError
        If the relief, the orography of the data or a variable that another one needs is missing, heights have gaps, or the data
        do not cover the relief; all problems at once.

    Notes
    -----
    Everything is first interpolated, without kinks (bicubic) where both grids have latitudes and longitudes as axes, else
    bilinearly. ``t2m`` follows the local lapse rate of the data (`xscalemixer.physics.lapse`), ``sp`` the hypsometric equation
    with virtual temperatures, ``q2m`` constant relative humidity over water, at most saturated. The wind gets weights of slope
    and curvature and is then made to conserve mass (`xscalemixer.physics.wind`). ``ssrd`` is its clearness index times the
    insolation of the fine grid, the direct part changed by slope, shadow and pressure, the diffuse part by the sky view
    (`xscalemixer.physics.sunlight`). ``tcc`` stays as it is.
    """
    require_dataset(ds)
    report = Report("terrain")
    relief = read_relief(orography, grid, report)
    data = _read_fields(ds, report)
    hours = _radiation_hours(ds, radiation_hours, report)
    if relief is None or data is None:
        raise report.failure(_TASK)
    _cover(data, relief, report)
    report.raise_errors(_TASK)
    around = _around(data, relief)
    fine, source = _carry(around, relief, hours), grid_of(around)
    how = f"{interpolation(source, relief.grid)} from {source} to {relief.grid}"
    attrs = {
        "Conventions": "CF-1.11",
        "title": "surface fields carried to relief",
        "source": f"xscalemixer {__version__}, terrain adjustment of: {ds.attrs.get('source', 'not stated')}",
        "assumptions": json.dumps([*report.assumptions, f"interpolated: {how}"]),
    }
    return _describe(fine, relief, around).assign_attrs(attrs)


def _times(data: xr.Dataset) -> xr.DataArray:
    """Valid times, in chunks where the data have them."""
    times = data["valid_time"] if "valid_time" in data.coords else data["time"]
    chunks = {dim: sizes for dim, sizes in data.chunksizes.items() if dim in times.dims}
    bare = xr.DataArray(times.values, dims=times.dims)  # an index would not be chunked
    return bare.chunk(chunks) if chunks else bare


def _carry(data: xr.Dataset, relief: Relief, hours: int) -> dict[str, xr.DataArray]:
    """The seven variables on the relief, as far as there is something to make them of; lazy where the data are."""
    carrier = Carrier(grid_of(data), data["orog"].values, relief)
    coarse = data["orog"].dims
    whole = data.chunk(dict.fromkeys(coarse, -1)) if data.chunks else data
    sizes = dict(zip(relief.dims, relief.grid.shape, strict=True))

    def carry(function, *inputs: xr.DataArray, core: list[tuple[Hashable, ...]], outputs: int = 1):
        bare = [array.drop_vars(set(array.coords) & {*coarse, "latitude", "longitude"}) for array in inputs]
        return xr.apply_ufunc(
            function, *bare, input_core_dims=core, output_core_dims=[relief.dims] * outputs, exclude_dims={*coarse},
            dask="parallelized", output_dtypes=["f4"] * outputs, dask_gufunc_kwargs={"output_sizes": sizes},
        )  # fmt: skip

    fine: dict[str, xr.DataArray] = {}
    if "t2m" in data:
        names = [name for name in ("t2m", "sp", "q2m") if name in data]
        single = len(names) == 1
        air = (lambda t2m: carrier.air(t2m)[0]) if single else carrier.air
        parts = carry(air, *(whole[name] for name in names), core=[coarse] * len(names), outputs=len(names))
        fine |= dict(zip(names, [parts] if single else parts, strict=True))
    if "u10" in data:
        fine["u10"], fine["v10"] = carry(carrier.wind, whole["u10"], whole["v10"], core=[coarse] * 2, outputs=2)
    if "tcc" in data:
        fine["tcc"] = carry(carrier.cloud, whole["tcc"], core=[coarse])
    if "ssrd" in data:
        light = partial(carrier.light, hours=hours)
        core = [coarse, coarse, relief.dims, ()]
        fine["ssrd"] = carry(light, whole["ssrd"], whole["sp"], fine["sp"], _times(data), core=core)
    return fine


def _describe(fine: dict[str, xr.DataArray], relief: Relief, data: xr.Dataset) -> xr.Dataset:
    """One dataset with CF attributes, variables in the order of the regional schema, time axes as the data have them."""
    fields = {**fine, "orog": relief.height} | ({} if relief.land is None else {"lsm": relief.land})
    out = {}
    for name in (name for name in (*REGIONAL.names, "orog", "lsm") if name in fields):
        row, array = CATALOG[name], fields[name]
        lead = (dim for dim in (*_FORECAST, "time", "member") if dim in array.dims)
        out[name] = array.astype("f4").transpose(*lead, *relief.dims).rename(name)
        out[name].attrs = {"standard_name": row.standard_name, "long_name": row.long_name, "units": row.units}
    axes = {name: data[name].variable for name in (*_FORECAST, "time", "member", "valid_time") if name in data.coords}
    return xr.Dataset(out).assign_coords(axes)


def _read_fields(ds: xr.Dataset, report: Report) -> xr.Dataset | None:
    """The variables that can be carried and the orography, in canonical form; problems go to the report."""
    own = Report("data")
    forecast = set(_FORECAST) <= set(ds.dims)
    flux = Report("")
    axes = to_mean_flux(ds, flux)
    if axes is not ds:  # else there was nothing to convert
        own.extend(flux)
    axes = to_canonical_grid(axes if forecast else to_valid_time(axes, own), own)
    held = holdings(axes).levels
    names = [name for name in REGIONAL.names if name in held]
    lacking = {name: [other for other in _NEEDS.get(name, ()) if other not in names] for name in names}
    for name, others in ((name, others) for name, others in lacking.items() if others):
        needed = " and ".join(others)
        own.error(name, f"found without {needed}", f"{needed} too", f'Add what is missing, or ds.drop_vars("{name}").')
    if not names:
        listed = ", ".join(map(str, ds.data_vars)) or "no variables"
        own.error("variables", f"nothing to carry among {listed}", f"at least one of {', '.join(REGIONAL.names)}")
    if Inventory(axes, Report("")).find(CATALOG["orog"]) is None:
        found = "no orography, so nobody knows at which height the data are"
        fix = 'Add that of their model: ds.assign(orog=...) with units; or ds.rename(z="orog") if z is surface geopotential.'
        own.error("orog", found, "surface_altitude on the grid of the data", fix)
    fields = translate(axes, Schema.of(*names, "orog"), own, dims=_leading(forecast)) if own.ok else None
    report.extend(own, "data: ")
    if fields is None or not own.ok:
        return None
    return fields.assign_coords(valid_time=_valid_time(ds)) if forecast else fields


def _leading(forecast: bool) -> tuple[str, ...]:
    return (*_FORECAST, "member") if forecast else ("time", "member")


def _valid_time(fc: xr.Dataset) -> xr.DataArray:
    """Valid time of a forecast of this library, whose lead times are whole hours."""
    valid = fc["reference_time"] + fc["lead_time"].astype("timedelta64[h]")
    return valid.reset_coords(drop=True).drop_attrs(deep=False).assign_attrs(TIME_ATTRS["valid_time"])


def _radiation_hours(ds: xr.Dataset, asked: int | None, report: Report) -> int:
    """Hours over which radiation is averaged: as asked, or from GRIB metadata where they are."""
    if asked is not None:
        if isinstance(asked, bool) or not isinstance(asked, int | np.integer) or asked < 0:
            report.error("radiation_hours", f"{asked!r}", "a whole number of hours, 0 for an instantaneous flux")
        return asked
    array = Inventory(ds, Report("")).find(CATALOG["ssrd"])
    if array is None:
        return 1
    kind, steps, unit = (array.attrs.get(f"GRIB_{key}") for key in ("stepType", "stepRange", "stepUnits"))
    ranges = np.array(re.findall(r"(\d+)-(\d+)", str(steps)), dtype=int).reshape(-1, 2)
    if kind == "instant":
        report.assume("ssrd", "instantaneous, as its GRIB metadata say")
        return 0
    if not ranges.size:
        report.assume("ssrd", "a mean over the hour that ends at its time stamp")
        return 1
    lengths = set(ranges[:, 1] - ranges[:, 0])
    if kind == "accum" and len(lengths) > 1:  # since the start of the forecast
        lengths = set(np.diff(ranges[:, 1], prepend=ranges[0, 0]))
    if len(lengths) > 1 or unit not in (None, 1):
        fix = "Select steps of one kind, or say what it is: radiation_hours=1."
        report.error("ssrd", f"its GRIB metadata give intervals {steps} (unit {unit})", "means over one number of hours", fix)
        return 1
    report.assume("ssrd", f"a mean over {max(lengths)} h, as its GRIB metadata say")
    return int(max(lengths))


def _cover(data: xr.Dataset, relief: Relief, report: Report) -> None:
    """Put into the report how much of the relief lies outside the data."""
    source = grid_of(data)
    try:
        share = 1.0 - float(Regridder(source, relief.grid, "bilinear").covered.mean())
    except GridError as error:
        report.error("relief", ": ".join([error.task, *error.problems]), kind=GridError)
        return
    if share > 0:
        found = f"{100 * share:.2g} % of its cells lie outside the data ({source})"
        report.error(
            "relief", found, f"a relief inside them; it is {relief.grid}", _cropping(source, relief.grid), kind=GridError
        )


def _cropping(source: Grid | CurvilinearGrid, target: Grid | CurvilinearGrid) -> str:
    if not (isinstance(source, Grid) and isinstance(target, Grid)):
        return "Crop the relief, or give data of a larger area."
    lat = [value for value in target.latitude if source.latitude_bounds[-1] <= value <= source.latitude_bounds[0]]
    west, east = source.longitude_bounds[[0, -1]]
    lon = [value for value in target.longitude if (value - west) % 360 <= east - west]
    box = f"latitude=slice({lat[0]:.6g}, {lat[-1]:.6g}), longitude=slice({lon[0]:.6g}, {lon[-1]:.6g})"
    return f"Crop it: orography.sel({box}), latitudes the other way round if the file runs northward; or give more data."


def _around(data: xr.Dataset, relief: Relief) -> xr.Dataset:
    """The part of the data that the relief needs; longitudes are counted as the relief counts them."""
    grid = grid_of(data)
    if isinstance(grid, Grid):
        rows, columns, part = surroundings(grid, relief.grid, _MARGIN)
        moved = ("longitude", np.array(part.longitude), data["longitude"].attrs)
        return data.isel(latitude=rows, longitude=columns).assign_coords(longitude=moved)
    latitude, longitude = relief.places
    unwrapped = np.unwrap(np.unwrap(longitude, period=360.0, axis=1), period=360.0, axis=0)
    west, width = unwrapped.min(), np.ptp(unwrapped)
    margin = np.rad2deg(_MARGIN * np.sqrt(grid.area.max()) / EARTH_RADIUS)
    inside = (grid.latitude > latitude.min() - margin) & (grid.latitude < latitude.max() + margin)
    margin = margin / np.cos(np.deg2rad(grid.latitude))
    inside &= (grid.longitude - west + margin) % 360 < width + 2 * margin
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    return data.isel(y=slice(rows[0], rows[-1] + 1), x=slice(columns[0], columns[-1] + 1))
