"""What a forecast looks like as a Dataset: CF axes, attributes and provenance."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from xscalemixer._version import __version__
from xscalemixer.errors import GridError, SchemaError
from xscalemixer.grids import Grid
from xscalemixer.variables import CATALOG, Schema, Variable

if TYPE_CHECKING:
    from dask.array import Array as DaskArray

__all__ = ["MEMBER_ATTRS", "TIME_ATTRS", "chunk_sizes", "ensemble_dataset", "forecast_dataset"]

_TIME_ENCODING = {"units": "seconds since 1970-01-01T00:00:00", "calendar": "standard", "dtype": "int64", "_FillValue": None}
_EXACT = {"_FillValue": None}
_STATIC = tuple(name for name, variable in CATALOG.items() if variable.role == "static")
_CLOCK = {"units_metadata": "leap_seconds: none"}

TIME_ATTRS = {
    "reference_time": {"standard_name": "forecast_reference_time", "long_name": "start of the forecast"} | _CLOCK,
    "lead_time": {"standard_name": "forecast_period", "long_name": "time since the start of the forecast", "units": "hours"},
    "valid_time": {"standard_name": "time", "long_name": "time the forecast is valid at"} | _CLOCK,
}
_LEVEL_ATTRS = {"standard_name": "air_pressure", "long_name": "pressure level", "units": "hPa", "positive": "down", "axis": "Z"}
MEMBER_ATTRS = {"standard_name": "realization", "long_name": "ensemble member", "units": "1"}


def forecast_dataset(
    fields: np.ndarray | DaskArray,
    *,
    schema: Schema,
    grid: Grid,
    reference_time: np.datetime64 | str,
    lead_time: ArrayLike,
    attrs: Mapping[str, object],
    static: Mapping[str, ArrayLike] | None = None,
) -> xr.Dataset:
    """Put predicted fields into a CF-1.11 Dataset that NetCDF and Zarr give back unchanged.

    Parameters
    ----------
    fields : array, shape (L, C, H, W) or (L, M, C, H, W)
        Forecast in canonical units, channels in the order of ``schema``; M is the number of members. May be lazy.
    schema : Schema
        Variables on levels have all the same ones.
    grid : Grid
        Latitudes north to south.
    reference_time : datetime64
        Start of the forecast, UTC.
    lead_time : array of int, shape (L,)
        Hours since ``reference_time``.
    attrs : mapping
        Provenance, written as global attributes (replacing those set here); nested values become JSON text.
    static : mapping of name to array, shape (H, W), optional
        Fields without time, such as ``orog`` (m) and ``lsm`` (1).

    Returns
    -------
    xarray.Dataset
        Dims ``(reference_time, lead_time, [member], [level], latitude, longitude)``, float32; ``lead_time`` in integer hours and
        ``valid_time(reference_time, lead_time)``.

    Raises
    ------
    SchemaError
        If variables have different levels, channels or leads do not match ``fields``, or a static name is unknown.
    GridError
        If fields do not have the shape of the grid.
    """
    lead_time = np.asarray(lead_time)
    static = {} if static is None else static
    _check(fields, schema, grid, lead_time, static)
    arrays, first = {}, 0
    for variable in schema.variables:
        channels = slice(first, first + len(variable.levels)) if variable.levels else first
        arrays[variable.name] = fields[None, ..., channels, :, :]
        first += len(variable.channels)
    times = _forecast_times(np.array([reference_time], "datetime64[ns]"), lead_time)
    members = np.arange(fields.shape[1]) if fields.ndim == 5 else None
    return _assembled(arrays, times, members, schema, grid, static, _global_attrs(reference_time, attrs, "forecast"))


def ensemble_dataset(
    fields: Mapping[str, np.ndarray | DaskArray],
    *,
    schema: Schema,
    grid: Grid,
    members: ArrayLike,
    time: ArrayLike | None = None,
    reference_time: ArrayLike | None = None,
    lead_time: ArrayLike | None = None,
    attrs: Mapping[str, object],
    static: Mapping[str, ArrayLike],
) -> xr.Dataset:
    """Put downscaled members, of analyses or of forecasts, into a CF-1.11 Dataset.

    Parameters
    ----------
    fields : mapping of name to array
        In canonical units, shape (T, M, [level], H, W) or (S, L, M, [level], H, W): times, or starts and leads, and members. May
        be lazy. The levels are those of the schema, ascending.
    schema : Schema
    grid : Grid
        Latitudes north to south.
    members : array of int, shape (M,)
    time : array of datetime64, shape (T,)
        Valid times of analyses.
    reference_time, lead_time : array of datetime64, shape (S,), and of int, shape (L,)
        Starts of forecasts, and hours since then.
    attrs, static
        As for `forecast_dataset`.

    Returns
    -------
    xarray.Dataset
        Dims ``(time, member, [level], latitude, longitude)`` or ``(reference_time, lead_time, member, ...)``, float32.
    """
    if time is None:
        times = _forecast_times(np.asarray(reference_time, "datetime64[ns]"), np.asarray(lead_time))
    else:
        stamps, axis = np.asarray(time, "datetime64[ns]"), TIME_ATTRS["valid_time"] | {"axis": "T"}
        times = {"time": xr.Variable("time", stamps, axis, _TIME_ENCODING)}
    start = next(iter(times.values())).values[0]
    return _assembled(fields, times, np.asarray(members), schema, grid, static, _global_attrs(start, attrs, "downscale"))


def _assembled(
    arrays: Mapping[str, np.ndarray | DaskArray],
    times: dict[str, xr.Variable],
    members: np.ndarray | None,
    schema: Schema,
    grid: Grid,
    static: Mapping[str, ArrayLike],
    attrs: dict,
) -> xr.Dataset:
    """Variables along times, members and levels, where they have them, on a grid."""
    coords = times | _place(grid)
    dims = [name for name, axis in times.items() if axis.dims == (name,)]
    if members is not None:
        coords["member"] = xr.Variable("member", members, MEMBER_ATTRS, _EXACT)
        dims.append("member")
    if schema.levels:
        coords["level"] = xr.Variable("level", np.array(schema.levels, "f8"), _LEVEL_ATTRS, _EXACT)
    heights = {variable.height for variable in schema.variables if variable.height is not None}
    coords |= {_height_name(height): _height(height) for height in sorted(heights)}
    data = {}
    for variable in schema.variables:
        own = (*dims, *(("level",) if variable.levels else ()), "latitude", "longitude")
        data[variable.name] = _field(own, arrays[variable.name], variable)
    data |= {name: _field(("latitude", "longitude"), np.asarray(values), CATALOG[name]) for name, values in static.items()}
    return xr.Dataset(data, coords, attrs)


def _check(
    fields: np.ndarray | DaskArray, schema: Schema, grid: Grid, lead_time: np.ndarray, static: Mapping[str, ArrayLike]
) -> None:
    uneven = [v for v in schema.variables if v.levels and v.levels != schema.levels]
    problems = [f"{v.name} is on levels {v.levels}; needed those of all: {schema.levels}" for v in uneven]
    if fields.ndim not in (4, 5):
        problems.append(f"fields have shape {fields.shape}; needed (lead, [member], channel, latitude, longitude)")
    elif fields.shape[-3] != len(schema):
        problems.append(f"fields have {fields.shape[-3]} channels; needed {len(schema)}: {', '.join(schema.channels)}")
    if fields.shape[:1] != lead_time.shape:
        problems.append(f"lead_time has shape {lead_time.shape}; needed ({fields.shape[0]},), one per field")
    if lead_time.dtype.kind not in "iu":
        problems.append(f"lead_time is {lead_time.dtype}; needed whole hours as integers")
    problems += [f"static field {name!r} is unknown; known are {', '.join(_STATIC)}" for name in static if name not in _STATIC]
    if problems:
        raise SchemaError("these fields cannot become a forecast", problems)
    shapes = {"fields": fields.shape[-2:]} | {name: np.shape(values) for name, values in static.items()}
    problems = [f"{name}: {shape} points; needed {grid.shape}" for name, shape in shapes.items() if shape != grid.shape]
    if problems:
        raise GridError("these fields do not fit their grid", problems)


def _field(dims: tuple[str, ...], values: np.ndarray | DaskArray, variable: Variable) -> xr.Variable:
    attrs = {"standard_name": variable.standard_name, "long_name": variable.long_name, "units": variable.units}
    if variable.units == "K":
        attrs["units_metadata"] = "temperature: on_scale"
    timed = "lead_time" in dims
    if (timed or "time" in dims) and variable.interval_mean is not None:
        # "time" is the standard name of valid_time, which CF 7.3.4 admits where the interval is not a cell of an axis
        hour = f"mean (over the hour that ends at {'valid_time' if timed else 'time'})"
        attrs["cell_methods"] = f"time: {hour if variable.interval_mean else 'point'}"
    encoding = {"dtype": "float32", "_FillValue": np.float32(np.nan), "zlib": True, "complevel": 1}
    encoding["chunksizes"] = chunk_sizes(dims, values.shape)
    encoding["original_shape"] = values.shape  # lets xarray drop the chunks where a selection has changed the shape
    # without this, xarray would attach every scalar coordinate to every variable: a surface pressure at 2 m
    own = ["valid_time"] if timed else []
    own += [_height_name(variable.height)] if variable.height is not None else []
    encoding |= {"coordinates": " ".join(own) or None}
    return xr.Variable(dims, values.astype("float32", copy=False), attrs, encoding)


def chunk_sizes(dims: tuple[Hashable, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """One chunk is the whole field at one lead time of one member."""
    return tuple(size if dim in ("latitude", "longitude") else 1 for dim, size in zip(dims, shape, strict=True))


def _forecast_times(start: np.ndarray, lead_time: np.ndarray) -> dict[str, xr.Variable]:
    lead_time = lead_time.astype("int64")
    valid = start[:, None] + lead_time.astype("timedelta64[h]").astype("timedelta64[ns]")
    return {
        "reference_time": xr.Variable("reference_time", start, TIME_ATTRS["reference_time"], _TIME_ENCODING),
        "lead_time": xr.Variable("lead_time", lead_time, TIME_ATTRS["lead_time"], _EXACT),
        "valid_time": xr.Variable(("reference_time", "lead_time"), valid, TIME_ATTRS["valid_time"], _TIME_ENCODING),
    }


def _place(grid: Grid) -> dict[str, xr.Variable]:
    latitude = {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north", "axis": "Y"}
    longitude = {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east", "axis": "X"}
    return {
        "latitude": xr.Variable("latitude", np.array(grid.latitude), latitude, _EXACT),
        "longitude": xr.Variable("longitude", np.array(grid.longitude), longitude, _EXACT),
    }


def _height_name(height: float) -> str:
    return f"height_{height:g}m"


def _height(height: float) -> xr.Variable:
    attrs = {"standard_name": "height", "long_name": "height above ground", "units": "m", "positive": "up", "axis": "Z"}
    return xr.Variable((), np.float64(height), attrs, _EXACT)


def _global_attrs(reference_time: np.datetime64 | str, attrs: Mapping[str, object], verb: str) -> dict[str, str | int | float]:
    start = np.datetime_as_string(np.datetime64(reference_time), unit="m")
    general = {
        "Conventions": "CF-1.11",
        "title": f"xscalemixer forecast started {start}Z",
        "source": f"xscalemixer {__version__}",
        "history": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} xscalemixer {__version__}: {verb}",
        "institution": "not stated",
        "references": "ScaleMixer, arXiv:2603.28173",
        "complete": "true",
    }
    return general | {name: _plain(value) for name, value in attrs.items()}


def _plain(value: object) -> str | int | float:
    """Give a value that NetCDF and Zarr attributes both hold; all but text and numbers become JSON."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    return json.dumps(value)
