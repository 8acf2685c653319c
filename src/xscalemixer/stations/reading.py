"""``read_stations``: reports from tables, point files and time series, as one Dataset with dims ``(time, station)``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import pandas as pd
import xarray as xr

from xscalemixer.errors import GridError, InputError, SchemaError, TimeError
from xscalemixer.report import Report
from xscalemixer.stations.columns import PLACES, Column, surface_rows, understand
from xscalemixer.stations.quality import is_code, screen
from xscalemixer.variables import CATALOG

__all__ = ["SAME_PLACE", "holds_stations", "is_canonical", "read", "read_places", "read_stations"]

SAME_PLACE = 0.02  # degrees by which the coordinates of one station may differ between reports (rounding, small moves)
_ATTRS = {
    "time": {"standard_name": "time", "long_name": "hour of the reports", "axis": "T"},
    "station": {"long_name": "station", "cf_role": "timeseries_id"},
    "latitude": {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north"},
    "longitude": {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east"},
    "altitude": {"standard_name": "altitude", "long_name": "altitude of the station", "units": "m"},
}
Source: TypeAlias = xr.Dataset | pd.DataFrame | str | os.PathLike


def read_stations(source: Source, *, units: Mapping[str, str] | None = None, tolerance: int = 15) -> xr.Dataset:
    """Read weather reports of stations into one form.

    Parameters
    ----------
    source : Dataset, DataFrame or path
        CF time series (a station and a time dimension), CF point data (one dimension of reports, ragged arrays too), a table
        with columns for place, time, and optionally the id and altitude of the station, or a file with one of these:
        parquet, CSV, or anything `xscalemixer.open` reads.
    units : mapping of str, optional
        Units of columns that do not state them, such as ``{"wind": "knots"}``. Units are taken from here, from attributes,
        from brackets in the name (``"t2m [degC]"``), and from the documentation of MADIS and of the Iowa Environmental
        Mesonet (``tmpf``, ``sknt``); they are never told from the values.
    tolerance : int
        Minutes from the full hour within which reports count for it.

    Returns
    -------
    Dataset
        Dims ``(time, station)``: hours in UTC, ids as text. Coordinates ``latitude(station)``, ``longitude(station)`` in
        degrees and ``altitude(station)`` in m, NaN where unknown. Variables in catalog names and units, float32, NaN where
        there is no value. The attribute ``report`` says what was converted, set to missing and left out, with counts. Time
        series stay lazy if they are (they are read once to count); other forms are read into memory.

    Raises
    ------
    InputError, SchemaError, TimeError
        If places, times or units are missing, or one id is used in several places; every problem is listed.
    ImportError
        For a parquet file without the package pyarrow.

    Notes
    -----
    Set to missing are: codes such as -999.9; values that the flags of MADIS reject (X, Q, B); values outside the valid range
    of the catalog; temperature and dew point where the latter is more than 0.5 K above the former; values that contradict
    each other in two reports of one station and time. Of several reports within the tolerance, each value is that of the
    report nearest to the hour that has it (in time series with one time axis: all are those of the nearest time). No step or
    persistence check is made.
    """
    ds, report = read(source, units=units, tolerance=tolerance)
    return ds.assign_attrs(report=repr(report))


def read(source: Source, *, units: Mapping[str, str] | None = None, tolerance: int = 15) -> tuple[xr.Dataset, Report]:
    """As `read_stations`, with the report as an object."""
    if not 0 <= tolerance <= 30:
        raise InputError("these reports cannot be read", [f"tolerance={tolerance!r}; needed 0 to 30 minutes from the hour"])
    report = Report("these station reports")
    raw, columns = _understood(_opened(source), units, report)
    _check_columns(raw, columns, report)
    report.raise_errors("these station reports cannot be read")
    if isinstance(raw, xr.Dataset) and _is_series(raw, columns):
        ds, coded = _from_series(raw, columns, tolerance, report)
    else:
        frame = raw if isinstance(raw, pd.DataFrame) else raw.to_dataframe().reset_index()
        ds, coded = _from_table(frame, columns, tolerance, report)
    report.raise_errors("these station reports cannot be read")
    unknown = int(ds["altitude"].isnull().sum())
    if unknown:
        report.assume("altitude", f"unknown at {unknown} of {ds.sizes['station']} stations")
    ds = screen(ds, coded, report)
    report.raise_errors("these station reports cannot be read")
    return _described(ds), report


def read_places(source: Source) -> xr.Dataset:
    """Ids, positions and altitudes of stations; times and values are not looked at.

    Returns
    -------
    xr.Dataset
        No variables; dim ``station``, coordinates ``latitude``, ``longitude`` and ``altitude`` (NaN where unknown).
    """
    if is_canonical(source):
        return source.drop_vars([*source.data_vars, "time"], errors="ignore")
    report = Report("these stations")
    raw, columns = _understood(_opened(source), None, report, places_only=True)
    _require(columns, ("latitude", "longitude"), raw, report)
    report.raise_errors("these stations cannot be used")
    frame = raw if isinstance(raw, pd.DataFrame) else _only(raw, columns).to_dataframe().reset_index()
    table = _one_place_each(_places(frame, columns, report), report)
    if not table[["latitude", "longitude"]].notna().all(axis=1).any():
        report.error("station", f"no valid position in {len(frame)} rows", "at least one station")
    report.raise_errors("these stations cannot be used")
    return _described(xr.Dataset(coords=_coordinates(table)))


def is_canonical(ds: object) -> TypeGuard[xr.Dataset]:
    """True for what `read_stations` returns, or a selection of it."""
    if not isinstance(ds, xr.Dataset):
        return False
    places = all(name in ds.coords and ds[name].dims == ("station",) for name in ("latitude", "longitude", "altitude"))
    fields = [array for name, array in ds.items() if name != "orog"]
    known = all(
        a.dims == ("time", "station") and a.name in CATALOG and a.attrs.get("units") == CATALOG[str(a.name)].units for a in fields
    )
    return places and known and bool(fields) and ds["station"].dims == ("station",)


def holds_stations(source: object) -> bool:
    """True if this is data of stations rather than fields on a grid: a table, CF point data, or a dimension of stations."""
    if isinstance(source, pd.DataFrame):
        return True
    if not isinstance(source, xr.Dataset):
        return False
    if source.attrs.get("featureType") in ("point", "timeSeries") or "station" in source.dims:
        return True
    return any(v.attrs.get("cf_role") == "timeseries_id" for v in source.variables.values())


def _opened(source: Source) -> xr.Dataset | pd.DataFrame:
    if isinstance(source, pd.DataFrame | xr.Dataset):
        return source
    if not isinstance(source, str | os.PathLike):
        found = f"a {type(source).__name__}"
        raise SchemaError("these station reports cannot be read", [f"found {found}; needed a Dataset, a DataFrame or a path"])
    suffix = Path(source).suffix.lower()
    if suffix in (".parquet", ".csv") and not Path(source).exists():
        raise InputError(f"{os.fspath(source)} cannot be opened", ["it does not exist"])
    if suffix == ".parquet":
        return _read_parquet(source)
    if suffix == ".csv":
        return pd.read_csv(source)
    from xscalemixer.readers import open as open_file

    return open_file(source)


def _read_parquet(path: str | os.PathLike) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError as error:
        raise ImportError("parquet files need the package pyarrow: pip install 'xscalemixer[tables]'") from error


def _understood(raw, units, report: Report, **kwargs) -> tuple[xr.Dataset | pd.DataFrame, dict[str, Column]]:
    """The source as a flat table or a Dataset without ragged arrays, and what its columns are."""
    if isinstance(raw, pd.DataFrame):
        named = [name for name in raw.index.names if name is not None]
        raw = (raw.reset_index(named) if named else raw).reset_index(drop=True)
        return raw, understand({name: {} for name in raw.columns}, units, report, is_frame=True, **kwargs)
    raw = _per_report(raw)
    return raw, understand({name: array.attrs for name, array in raw.variables.items()}, units, report, is_frame=False, **kwargs)


def _per_report(ds: xr.Dataset) -> xr.Dataset:
    """Stations repeated for each of their reports, where CF ragged arrays count or number them (CF 9.3.3 and 9.3.4)."""
    for name, array in ds.variables.items():
        if "sample_dimension" in array.attrs:
            index, dim, reports = np.repeat(np.arange(array.size), array.values), array.dims[0], array.attrs["sample_dimension"]
        elif "instance_dimension" in array.attrs:
            index, dim, reports = array.values, array.attrs["instance_dimension"], array.dims[0]
        else:
            continue
        return ds.drop_vars([name]).isel({dim: xr.DataArray(index, dims=reports)})
    return ds


def _only(ds: xr.Dataset, columns: Mapping[str, Column]) -> xr.Dataset:
    return ds.reset_coords()[[column.name for column in columns.values() if column.name not in ds.dims]]


def _check_columns(raw: xr.Dataset | pd.DataFrame, columns: Mapping[str, Column], report: Report) -> None:
    """Errors for columns that are missing, and for fields on a grid."""
    _require(columns, ("latitude", "longitude", "time"), raw, report)
    if isinstance(raw, xr.Dataset) and _is_grid(raw, columns):
        found = f"{' x '.join(str(raw[columns[role].name].size) for role in ('latitude', 'longitude'))} cells of a grid"
        fix = "Fields come to stations by xsm.at_stations(ds, stations)"
        report.error("station", found, "reports of stations", fix, kind=GridError)
    rejected = {finding.subject for finding in report.select("error")} & set(surface_rows())
    if not (set(columns) - set(PLACES) or rejected):
        known = ", ".join(surface_rows())
        report.error("variables", f"nothing known among {', '.join(map(str, raw))}", f"at least one of {known}")


def _require(columns: Mapping[str, Column], needed: tuple[str, ...], raw, report: Report) -> None:
    for role in needed:
        if role not in columns and not any(finding.subject == role for finding in report.select("error")):
            found = f"no {role} among {', '.join(map(str, raw.columns if isinstance(raw, pd.DataFrame) else raw.variables))}"
            kind = TimeError if role == "time" else SchemaError
            fix = f'rename(columns={{"NAME": "{role}"}})' if isinstance(raw, pd.DataFrame) else f'ds.rename({{"NAME": "{role}"}})'
            report.error(role, found, f"a column called {role}", f"Rename yours: {fix}", kind=kind)


# --- tables ----------------------------------------------------------------------------------------------------------


def _from_table(frame: pd.DataFrame, columns: Mapping[str, Column], tolerance: int, report: Report):
    """Reports in rows as a Dataset ``(time, station)``, and the numbers of missing codes; None with errors in the report."""
    table = _places(frame, columns, report).assign(time=_times(frame[columns["time"].name], report))
    values, coded = _values(frame, columns, report)
    if not report.ok:
        return None, {}
    whole = table[["latitude", "longitude", "time"]].notna().all(axis=1).to_numpy()
    if not whole.all():
        report.warn("reports", f"{(~whole).sum()} of {whole.size} left out: no valid position or time")
    places = _one_place_each(table[whole], report).sort_index()
    rows = _hourly(table[whole], values[whole], tolerance, report)
    if not (len(rows) and report.ok):
        return None, {}
    hours, at_hours = np.unique(rows.index.get_level_values("time"), return_inverse=True)
    at_stations = places.index.get_indexer(rows.index.get_level_values("station"))
    fields = {}
    for name, column in rows.items():
        field = np.full((hours.size, len(places)), np.nan, "f4")
        field[at_hours, at_stations] = column.to_numpy()
        fields[name] = (("time", "station"), field)
    return xr.Dataset(fields, {**_coordinates(places), "time": hours.astype("datetime64[ns]")}), coded


def _places(frame: pd.DataFrame, columns: Mapping[str, Column], report: Report) -> pd.DataFrame:
    """Id, latitude, longitude and altitude of each row; NaN for positions that are none."""
    table = pd.DataFrame({role: _numbers(frame[columns[role].name], report) for role in ("latitude", "longitude")})
    lost = ~(table["latitude"].abs() <= 90) | ~(table["longitude"].abs() <= 360)
    table = table.mask(lost)
    altitude = np.full(len(frame), np.nan)
    if "altitude" in columns:
        column = columns["altitude"]
        raw = _numbers(frame[column.name], report)
        altitude = (column.factor * raw + column.offset).where(~is_code(raw))
    table["altitude"] = pd.Series(altitude, frame.index).where(lambda z: (z > -500) & (z < 9000))
    if "station" in columns:
        return table.assign(station=_text(frame[columns["station"].name].to_numpy()))
    report.assume("station", "no id; every position is a station of its own")
    labels = table["latitude"].map("{:.4f}".format) + " " + table["longitude"].map("{:.4f}".format)
    return table.assign(station=labels.to_numpy(str))


def _text(ids: np.ndarray) -> np.ndarray:
    """Ids as text, without padding; numbers without a trailing .0."""
    if ids.dtype.kind == "f" and np.all(ids == np.round(ids)):
        ids = ids.astype("int64")
    if ids.dtype.kind == "S":
        ids = np.char.decode(ids, "utf-8", "replace")
    return np.char.strip(np.array([i.decode("utf-8", "replace") if isinstance(i, bytes) else str(i) for i in ids], dtype=str))


def _numbers(column: pd.Series, report: Report) -> pd.Series:
    """The column as float64; text such as "M" is no value."""
    if column.dtype.kind in "iuf":
        return column.astype("f8")
    numbers = pd.to_numeric(column, errors="coerce").astype("f8")
    lost = numbers.isna() & column.notna()
    if lost.any():
        report.assume(str(column.name), f"{lost.sum()} texts such as {str(column[lost].iloc[0])!r} are no values")
    return numbers


def _times(column: pd.Series, report: Report) -> pd.Series:
    """The column as naive datetime64 in UTC."""
    if column.dtype.kind in "iuf":
        fix = f'frame["{column.name}"] = pd.to_datetime(frame["{column.name}"], format="%Y%m%d%H")'
        report.error("time", f"column {column.name!r} holds numbers", "dates", fix, kind=TimeError)
        return column
    try:
        times = pd.to_datetime(column, utc=True, format=None if column.dtype.kind == "M" else "ISO8601")
    except (ValueError, TypeError) as error:
        fix = f'frame["{column.name}"] = pd.to_datetime(frame["{column.name}"], format=...)'
        report.error("time", f"column {column.name!r} cannot be read as dates ({error})", "dates", fix, kind=TimeError)
        return column
    if isinstance(column.dtype, pd.DatetimeTZDtype) and str(column.dt.tz) != "UTC":
        report.warn("time", f"times in {column.dt.tz} converted to UTC")
    return times.dt.tz_localize(None)


def _values(frame: pd.DataFrame, columns: Mapping[str, Column], report: Report) -> tuple[pd.DataFrame, dict[str, int]]:
    """Variables in canonical units without missing codes and rejected values, and how many of these there were."""
    values, coded = {}, {}
    for role, column in columns.items():
        if role in PLACES:
            continue
        raw = _numbers(frame[column.name], report)
        lost = is_code(raw)
        if column.flag is not None:
            lost |= frame[column.flag].isin(column.rejected).to_numpy() & raw.notna().to_numpy()
        values[role] = column.factor * raw.where(~lost) + column.offset
        coded[role] = int(lost.sum())
    return pd.DataFrame(values, frame.index), coded


def _one_place_each(table: pd.DataFrame, report: Report) -> pd.DataFrame:
    """One row for each station, indexed by id; an id in several places is an error that lists them."""
    by_id = table.groupby("station", sort=False)
    first = table[["latitude", "longitude"]] - by_id[["latitude", "longitude"]].transform("first")
    away = (first["latitude"].abs() > SAME_PLACE) | (((first["longitude"] + 180) % 360 - 180).abs() > SAME_PLACE)
    moved = table.loc[away.to_numpy(), "station"].unique()
    if moved.size:
        positions = table[table["station"] == moved[0]][["latitude", "longitude"]].drop_duplicates().to_numpy()
        where = "; ".join(f"{lat:g} N {lon:g} E" for lat, lon in positions[:3])
        found = f"{moved.size} ids are used in several places: {_listed(moved)} ({moved[0]} at {where})"
        report.error("station", found, "one place for each id", "Give each place an id of its own, or drop these")
    span = by_id["altitude"].max() - by_id["altitude"].min()
    doubtful = span.index[span > 50].to_numpy()
    places = by_id[["latitude", "longitude", "altitude"]].first()
    if doubtful.size:
        report.warn(
            "altitude", f"{doubtful.size} stations report altitudes more than 50 m apart, taken as unknown: {_listed(doubtful)}"
        )
        places.loc[doubtful, "altitude"] = np.nan
    return places


def _hourly(table: pd.DataFrame, values: pd.DataFrame, tolerance: int, report: Report) -> pd.DataFrame:
    """Values by station and hour, each from the nearest report that has it."""
    hour = table["time"].dt.round("h")
    offset = (table["time"] - hour).abs()
    near = (offset <= np.timedelta64(tolerance, "m")).to_numpy()
    if not near.any():
        found = f"none of {near.size} reports is within {tolerance} minutes of a full hour"
        report.error("time", found, "reports at full hours", "Pass tolerance= up to 30 minutes", kind=TimeError)
        return values[near]
    keys = pd.DataFrame({"station": table["station"], "time": hour, "offset": offset, "moment": table["time"]})[near]
    order = keys.sort_values(["station", "time", "offset", "moment"], kind="stable").index
    keys, values = keys.loc[order], _without_contradictions(keys.loc[order], values.loc[order], report)
    rows = values.groupby([keys["station"], keys["time"]]).first()
    moved = int((offset[near] > np.timedelta64(0)).sum())
    text = f"{near.sum()} of {near.size} reports within {tolerance} minutes of a full hour, {moved} of them moved to it"
    report.assume("time", f"{text}; {len(keys) - len(rows)} further reports of one station and hour joined")
    return rows


def _without_contradictions(keys: pd.DataFrame, values: pd.DataFrame, report: Report) -> pd.DataFrame:
    """NaN where reports of one station and moment hold different values; a copy if there are any."""
    pair = [keys["station"], keys["moment"]]
    twice = keys.duplicated(["station", "moment"], keep=False).to_numpy()
    if not twice.any():
        return values
    spread = values[twice].groupby([key[twice] for key in pair])
    apart = spread.transform("max") > spread.transform("min")
    if apart.to_numpy().any():
        where = keys[twice][apart.any(axis=1).to_numpy()].drop_duplicates(["station", "moment"])
        shown = [f"{row.station} at {row.moment:%Y-%m-%dT%H:%M}" for row in where.itertuples()]
        names = ", ".join(apart.columns[apart.any()])
        report.warn("reports", f"{len(shown)} contradict another one of the same station and time in {names}; "
                               f"these values are set to missing: {_listed(shown)}")  # fmt: skip
    values = values.copy()
    values[twice] = values[twice].mask(apart)
    return values


def _listed(items, most: int = 5) -> str:
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most} more" if len(items) > most else "")


def _coordinates(places: pd.DataFrame) -> dict[str, tuple]:
    fields = {name: ("station", places[name].to_numpy("f8")) for name in ("latitude", "longitude", "altitude")}
    return {"station": ("station", places.index.to_numpy(str)), **fields}


# --- time series -----------------------------------------------------------------------------------------------------


def _is_grid(ds: xr.Dataset, columns: Mapping[str, Column]) -> bool:
    dims = [set(ds[columns[role].name].dims) for role in ("latitude", "longitude") if role in columns]
    return len(dims) == 2 and all(dims) and not dims[0] & dims[1]


def _is_series(ds: xr.Dataset, columns: Mapping[str, Column]) -> bool:
    """True if time and station are two dimensions with a coordinate each, and all ids are different."""
    latitude, time = ds[columns["latitude"].name], ds[columns["time"].name]
    if latitude.ndim != 1 or ds[columns["longitude"].name].dims != latitude.dims or time.ndim > 1 or time.dims == latitude.dims:
        return False
    fields = [ds[column.name] for role, column in columns.items() if role not in PLACES]
    fits = all(set(field.dims) <= {*latitude.dims, *time.dims} for field in fields)
    return fits and ("station" not in columns or ds[columns["station"].name].to_index().is_unique)


def _from_series(ds: xr.Dataset, columns: Mapping[str, Column], tolerance: int, report: Report):
    """A Dataset with a time and a station dimension in canonical form, lazy if it is, and the numbers of missing codes."""
    (dim,), time = ds[columns["latitude"].name].dims, ds[columns["time"].name]
    frame = _only(ds, {role: column for role, column in columns.items() if role in PLACES and role != "time"})
    places = _places(frame.to_dataframe().reset_index(), columns, report)
    placed = places[["latitude", "longitude"]].notna().all(axis=1).to_numpy()
    if not placed.all():
        report.warn("station", f"{(~placed).sum()} of {placed.size} left out: no valid position")
    moments = _times(pd.Series(np.atleast_1d(time.values), name=time.name), report)
    fields, coded = {}, {}
    for role, column in columns.items():
        if role not in PLACES and (found := _field(ds[column.name], column, report)) is not None:
            fields[role], coded[role] = found
    if not report.ok:
        return None, {}
    chosen, hours = _full_hours(moments, tolerance, report)
    fields = {role: field if time.ndim else field.expand_dims("time") for role, field in fields.items()}
    names = {dim: "station", **dict.fromkeys(time.dims, "time")}
    coordinates = _coordinates(places[placed].set_index("station"))
    out = xr.Dataset({role: array.drop_vars(array.coords).rename({o: n for o, n in names.items() if o in array.dims and o != n})
                      for role, array in fields.items()})  # fmt: skip
    return out.isel(time=chosen, station=placed).assign_coords({**coordinates, "time": hours}).transpose("time", "station"), coded


def _field(array: xr.DataArray, column: Column, report: Report) -> tuple[xr.DataArray, Any] | None:
    """One variable in canonical units, and the number of missing codes in it, lazy where it is; None if it is not decoded."""
    if array.dtype.kind not in "iuf" or {"scale_factor", "add_offset"} & set(array.attrs):
        found = f"{array.name!r} holds {array.dtype} values that are not decoded"
        report.error(str(array.name), found, "numbers", "Open the file with mask_and_scale=True")
        return None
    lost = xr.apply_ufunc(is_code, array, dask="parallelized", output_dtypes=[bool])
    values = (column.factor * array.where(~lost).astype("f8") + column.offset).astype("f4")
    return values, lost.sum().data


def _full_hours(moments: pd.Series, tolerance: int, report: Report) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the times that are nearest to a full hour, within the tolerance, and these hours, ascending."""
    hour = moments.dt.round("h")
    offset = (moments - hour).abs()
    order = np.lexsort((moments, offset, hour))
    order = order[(offset.iloc[order] <= np.timedelta64(tolerance, "m")).to_numpy()]
    hours, first = np.unique(hour.iloc[order].to_numpy("datetime64[ns]"), return_index=True)
    chosen = order[first]
    if not hours.size:
        found = f"none of {moments.size} times is within {tolerance} minutes of a full hour"
        report.error("time", found, "full hours", "Pass tolerance= up to 30 minutes", kind=TimeError)
    moved = int((offset.iloc[chosen] > np.timedelta64(0)).sum())
    if moved or chosen.size < moments.size:
        report.assume("time", f"{chosen.size} of {moments.size} times taken, one for each hour; {moved} of them moved to it")
    return chosen, hours


def _described(ds: xr.Dataset) -> xr.Dataset:
    """Attributes of the catalog and of CF time series."""
    for name, array in ds.variables.items():
        row = CATALOG.get(str(name))
        array.attrs = (
            {"standard_name": row.standard_name, "units": row.units, "long_name": row.long_name} if row else _ATTRS[str(name)]
        )
        array.encoding = {}
    return ds.assign_attrs({"Conventions": "CF-1.11", "featureType": "timeSeries", "title": "station reports"})
