"""Map projections: find the one a dataset is on, go to and fro, and turn winds from grid to earth axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from xscalemixer._pyproj import import_pyproj
from xscalemixer.errors import GridError

if TYPE_CHECKING:
    from pyproj import CRS

__all__ = ["EARTH_RADIUS", "crs_of", "from_projection", "grid_mappings", "is_grid_relative", "rotate_winds", "to_projection"]

EARTH_RADIUS = 6_371_229.0  # m, the sphere of GRIB edition 2 code table 3.2, entry 6

# GRIB edition 2 code table 3.2 in the terms of CF appendix F.
_EARTHS: dict[int, dict] = {
    0: {"earth_radius": 6_367_470.0},
    4: {"reference_ellipsoid_name": "GRS 1980"},
    5: {"reference_ellipsoid_name": "WGS 84"},
    6: {"earth_radius": EARTH_RADIUS},
    8: {"earth_radius": 6_371_200.0},
}


def crs_of(ds: xr.Dataset) -> CRS | None:
    """Find the coordinate reference system of a dataset's horizontal grid.

    Looks at CF grid mapping variables first, then at the ``GRIB_`` attributes that cfgrib writes for the grid types
    lambert, polar_stereographic, mercator and rotated_ll. Where GRIB does not state the shape of the earth (cfgrib
    leaves it out by default), the NCEP sphere of 6371229 m is taken; on a sphere the radius only scales the plane, so
    neither positions within the grid nor wind directions depend on it.

    Parameters
    ----------
    ds : xr.Dataset

    Returns
    -------
    pyproj.CRS or None
        None when the dataset says nothing about its projection.

    Raises
    ------
    GridError
        If a grid mapping cannot be read, or variables are on different ones.
    """
    pyproj = import_pyproj()
    from pyproj.exceptions import CRSError

    mappings = grid_mappings(ds) or _grib_mappings(ds)
    distinct = {repr(sorted(attrs.items())): (name, attrs) for name, attrs in mappings.items()}  # parsing is slow
    found, problems = [], []
    for name, attrs in distinct.values():
        try:
            crs = pyproj.CRS.from_cf(dict(attrs))
        except (CRSError, KeyError) as error:
            problems.append(f"{name} is not a grid mapping that pyproj can read ({error}); needed attributes as in CF appendix F")
            continue
        if crs not in found:
            found.append(crs)
    if len(found) > 1:
        names = ", ".join(mappings)
        problems.append(f"variables are on {len(found)} different projections ({names}); select those on one of them")
    if problems:
        raise GridError("the projection of this dataset cannot be read", problems)
    return found[0] if found else None


def grid_mappings(ds: xr.Dataset) -> dict[str, Mapping]:
    """Attributes of the grid mapping variables by name: those that are referred to, else any that is there."""
    references = [v.attrs.get("grid_mapping", v.encoding.get("grid_mapping", "")) for v in ds.variables.values()]
    names = {word.rstrip(":") for text in references for word in str(text).split()}
    described = [str(n) for n, v in ds.variables.items() if {"grid_mapping_name", "crs_wkt"} & set(v.attrs)]
    chosen = [name for name in described if name in names] or described
    return {name: ds[name].attrs for name in chosen}


def _grib_mappings(ds: xr.Dataset) -> dict[str, Mapping]:
    """CF grid mappings by variable, from the attributes that cfgrib writes."""
    mappings = {str(name): _grib_mapping(v.attrs) for name, v in ds.data_vars.items()}
    return {name: mapping for name, mapping in mappings.items() if mapping}


def _grib_mapping(attrs: Mapping) -> dict | None:
    """One CF grid mapping, or None where the grid is not projected or its keys are missing."""
    get = lambda key, default=None: attrs.get(f"GRIB_{key}", default)
    kind, standard = get("gridType"), get("LaDInDegrees")
    if kind == "lambert" and get("LoVInDegrees") is not None and get("Latin1InDegrees") is not None:
        first = get("Latin1InDegrees")
        mapping = {
            "grid_mapping_name": "lambert_conformal_conic",
            "standard_parallel": (first, get("Latin2InDegrees", first)),
            "latitude_of_projection_origin": first if standard is None else standard,
            "longitude_of_central_meridian": get("LoVInDegrees"),
        }
    elif kind == "polar_stereographic" and standard is not None and get("orientationOfTheGridInDegrees") is not None:
        mapping = {
            "grid_mapping_name": "polar_stereographic",
            "standard_parallel": standard,
            "latitude_of_projection_origin": -90.0 if get("projectionCentreFlag", 0) else 90.0,
            "straight_vertical_longitude_from_pole": get("orientationOfTheGridInDegrees"),
        }
    elif kind == "mercator" and standard is not None:
        mapping = {
            "grid_mapping_name": "mercator",
            "standard_parallel": standard,
            "longitude_of_projection_origin": get("longitudeOfFirstGridPointInDegrees", 0.0),
        }
    elif kind == "rotated_ll" and get("latitudeOfSouthernPoleInDegrees") is not None:
        mapping = {
            "grid_mapping_name": "rotated_latitude_longitude",
            "grid_north_pole_latitude": -get("latitudeOfSouthernPoleInDegrees"),
            "grid_north_pole_longitude": get("longitudeOfSouthernPoleInDegrees", 0.0) - 180.0,
            "north_pole_grid_longitude": get("angleOfRotationInDegrees", 0.0),
        }
    else:
        return None
    return mapping | _grib_earth(attrs)


def _grib_earth(attrs: Mapping) -> dict:
    shape = attrs.get("GRIB_shapeOfTheEarth", 6)
    if "GRIB_radius" in attrs and shape in (1, 6):
        return {"earth_radius": float(attrs["GRIB_radius"])}
    if shape not in _EARTHS:
        needed = ", ".join(map(str, _EARTHS))
        raise GridError(
            "the projection of this dataset cannot be read",
            [f"GRIB_shapeOfTheEarth is {shape}; known are {needed}. Add a CF grid_mapping variable to the dataset"],
        )
    return _EARTHS[shape]


def to_projection(crs: CRS, latitude: np.ndarray, longitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project geographic coordinates.

    Parameters
    ----------
    crs : pyproj.CRS
        Geographic coordinates are on its own ellipsoid or sphere: no datum shift.
    latitude, longitude : np.ndarray
        Degrees north and east, any common shape.

    Returns
    -------
    y, x : np.ndarray
        Meters (degrees for rotated poles), infinite where the projection is not defined.
    """
    x, y = _transformer(crs).transform(longitude, latitude)
    return np.asarray(y), np.asarray(x)


def from_projection(crs: CRS, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverse of `to_projection`: ``(latitude, longitude)`` in degrees, longitudes from -180 to 180."""
    longitude, latitude = _transformer(crs).transform(x, y, direction="INVERSE")
    return np.asarray(latitude), np.asarray(longitude)


def _transformer(crs: CRS):
    return import_pyproj().Transformer.from_crs(crs.source_crs or crs.geodetic_crs, crs, always_xy=True)


def rotate_winds(u: xr.DataArray, v: xr.DataArray, crs: CRS | None) -> tuple[xr.DataArray, xr.DataArray]:
    """Turn winds along the axes of a projected grid into eastward and northward winds.

    The direction of true north in the projection plane comes from the projection itself, by central differences of
    1e-3 degrees along the meridian (good to 1e-9 rad; 1e-7 near a rotated pole); on a Lambert conformal cone it equals
    ``-n * (longitude - longitude0)``. The axes are taken as orthogonal on the earth, as they are on Lambert conformal,
    stereographic, Mercator and rotated-pole grids.

    Parameters
    ----------
    u, v : xr.DataArray
        Components along grid x and y with 2-D coordinates ``latitude`` and ``longitude`` in degrees; may be lazy.
    crs : pyproj.CRS or None
        Projection of the grid, see `crs_of`.

    Returns
    -------
    eastward, northward : xr.DataArray
        As ``u`` and ``v``, with standard names ``eastward_wind`` and ``northward_wind``.

    Raises
    ------
    GridError
        If the projection is not known.
    """
    if crs is None:
        raise GridError(
            "grid-relative winds cannot be turned to east and north",
            ["found no projection; needed a grid_mapping variable (CF appendix F) or the GRIB keys of the grid. "
             "Add one: ds['crs'] = xr.DataArray(0, attrs=pyproj.CRS(...).to_cf())"],
        )  # fmt: skip
    north_x, north_y = xr.apply_ufunc(
        lambda latitude, longitude: _north(crs, latitude, longitude),
        u["latitude"],
        u["longitude"],
        output_core_dims=[(), ()],
        dask="parallelized",
        output_dtypes=[float, float],
    )
    north_x, north_y = north_x.astype(u.dtype), north_y.astype(u.dtype)
    eastward, northward = u * north_y - v * north_x, u * north_x + v * north_y
    return _as_wind(eastward, u, "eastward"), _as_wind(northward, v, "northward")


def is_grid_relative(wind: xr.DataArray) -> bool:
    """True for wind components along the axes of the grid: by CF standard name, or by what GRIB says about them."""
    names = {wind.attrs.get(key) for key in ("standard_name", "GRIB_cfName")}
    if names & {"x_wind", "y_wind", "grid_eastward_wind", "grid_northward_wind"}:
        return True
    return bool(names & {"eastward_wind", "northward_wind"} and wind.attrs.get("GRIB_uvRelativeToGrid", 0))


def _as_wind(turned: xr.DataArray, original: xr.DataArray, direction: str) -> xr.DataArray:
    attrs = {**original.attrs, "standard_name": f"{direction}_wind"}
    if "GRIB_uvRelativeToGrid" in attrs:
        attrs["GRIB_uvRelativeToGrid"] = 0
    return turned.drop_attrs(deep=False).transpose(*original.dims).rename(original.name).assign_attrs(attrs)


def _north(crs: CRS, latitude: np.ndarray, longitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vector (x, y) of true north in the projection plane, of the shape of ``latitude``."""
    step = 1e-3
    y0, x0 = to_projection(crs, np.maximum(latitude - step, -90.0), longitude)
    y1, x1 = to_projection(crs, np.minimum(latitude + step, 90.0), longitude)
    dx, dy = x1 - x0, y1 - y0
    if crs.is_geographic:  # plane coordinates are degrees: shrink east-west distances, undo the jump at 180
        dx = ((dx + 180.0) % 360.0 - 180.0) * np.cos(np.deg2rad((y0 + y1) / 2))
    length = np.hypot(dx, dy)
    return dx / length, dy / length
