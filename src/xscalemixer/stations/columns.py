"""Which column of a table of reports is which, and in which units: by CF attributes, known names and documented formats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from xscalemixer.report import Report
from xscalemixer.units import UnitsError, conversion
from xscalemixer.variables import CATALOG, Variable

__all__ = ["PLACES", "Column", "surface_rows", "understand"]

PLACES = ("station", "time", "latitude", "longitude", "altitude")
_METERS = "m"

_NAMES: Mapping[str, tuple[str, ...]] = {
    "station": ("station", "station_id", "stationid", "station_name", "stationname", "station_code", "id", "sid", "wmo", "wmo_id",
                "wigos_id", "icao", "usaf", "platform"),
    "time": ("time", "valid_time", "valid", "timeobs", "datetime", "date", "obstime", "obs_time", "report_time", "timestamp",
             "dtg", "date_time"),
    "latitude": ("latitude", "lat", "station_latitude"),
    "longitude": ("longitude", "lon", "long", "lng", "station_longitude"),
    "altitude": ("altitude", "elevation", "elev", "alt", "station_altitude", "station_elevation", "stn_elev"),
    "t2m": ("temperature", "temp", "air_temp", "air_temperature", "airtemp", "tmpf", "tmpc", "tt"),
    "d2m": ("dewpoint", "dew_point", "dew_point_temperature", "dewpoint_temperature", "dwpf", "dwpc", "dwpt", "td"),
    "r2m": ("relative_humidity", "humidity", "rh", "relh", "rhum"),
    "ws10": ("wind_speed", "windspeed", "sknt", "wspd", "ws", "ff", "s10m"),
    "wd10": ("wind_direction", "wind_dir", "winddir", "wind_from_direction", "drct", "wdir", "wd", "dd", "d10m"),
    "sp": ("station_pressure", "stationpressure", "pstn"),
    "msl": ("sea_level_pressure", "sealevelpress", "slp", "pmsl"),
    "tcc": ("cloud_cover", "cctot"),
}  # fmt: skip
_STANDARD_NAMES = {
    "station": ("platform_id", "platform_name"),
    "altitude": ("altitude", "surface_altitude", "height_above_mean_sea_level", "ground_level_altitude"),
    "msl": ("air_pressure_at_mean_sea_level", "air_pressure_at_sea_level"),
}
# Names that say their unit: https://mesonet.agron.iastate.edu/request/download.phtml
_SAYING = {"tmpf": "degF", "tmpc": "degC", "dwpf": "degF", "dwpc": "degC", "sknt": "knot", "relh": "%"}


@dataclass(frozen=True)
class _Format:
    """A documented format: the columns that give it away, its units, and its flags of values that failed the checks."""

    title: str
    marks: frozenset[str]
    units: Mapping[str, str]
    flag: str = ""
    rejected: tuple[str, ...] = ()


_FORMATS = (
    # https://madis-data.ncep.noaa.gov: metar.cdl for the units, qc_info.txt for the flags
    _Format("MADIS", frozenset({"timeobs", "stationname"}),
            {"temperature": "K", "dewpoint": "K", "winddir": "degree", "windspeed": "m s-1", "sealevelpress": "Pa",
             "elevation": "m"}, "dd", ("X", "Q", "B")),
    _Format("Iowa Environmental Mesonet", frozenset({"station", "valid"}),
            {"drct": "degree", "mslp": "hPa", "elevation": "m"}),
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """What one column of a table holds.

    Attributes
    ----------
    name : str
        In the table.
    factor, offset : float
        ``canonical = factor * value + offset``.
    flag : str or None
        Column with quality flags.
    rejected : tuple of str
        Flags of values that do not count.
    """

    name: str
    factor: float = 1.0
    offset: float = 0.0
    flag: str | None = None
    rejected: tuple[str, ...] = ()


def surface_rows() -> dict[str, Variable]:
    """Rows of the catalog that stations report."""
    return {name: row for name, row in CATALOG.items() if not row.levels and row.role != "static"}


def understand(
    columns: Mapping[str, Mapping],
    units: Mapping[str, str] | None,
    report: Report,
    *,
    is_frame: bool,
    places_only: bool = False,
) -> dict[str, Column]:
    """Say what each column is.

    Parameters
    ----------
    columns : dict
        Names, and attributes (empty for a data frame).
    units : mapping of str, optional
        Units that the user states, by column.
    report : Report
        Receives columns without units, several columns for one thing, and what is not read.
    is_frame : bool
        Whether the table is a data frame, which decides what to type where units are missing.
    places_only : bool
        Look for no more than id, position and altitude.

    Returns
    -------
    dict of Column
        By catalog name, or one of "station", "time", "latitude", "longitude", "altitude".
    """
    units = dict(units or {})
    for name in sorted(set(units) - set(columns)):
        report.error("units", f"no column {name!r}", f"one of {', '.join(map(str, columns))}")
    lower = {str(name).lower() for name in columns}
    known = next((table for table in _FORMATS if table.marks <= lower), None)
    found: dict[str, list[str]] = {}
    for name, attrs in columns.items():
        role = _role(str(name), attrs)
        if role is not None and not (places_only and (role == "time" or role not in PLACES)):
            found.setdefault(role, []).append(name)
    for role, names in found.items():
        if len(names) > 1:
            fix = f'Leave one: {"drop(columns=" if is_frame else "ds.drop_vars("}"{names[1]}")'
            report.error(role, f"{', '.join(map(repr, names))} all look like it", "one column", fix)
    understood = {role: _column(role, names[0], columns, units, known, is_frame, report) for role, names in found.items()}
    flags = {column.flag for column in understood.values() if column}
    idle = [str(name) for name in columns if not any(name in names for names in found.values()) and name not in flags]
    if idle and not places_only:
        report.assume("columns", f"not read: {', '.join(idle[:12])}{f' and {len(idle) - 12} more' if len(idle) > 12 else ''}")
    if known is not None and not places_only:
        report.assume("columns", f"taken as the {known.title} format, units as documented there")
    return {role: column for role, column in understood.items() if column is not None}


def _bare(name: str) -> tuple[str, str | None]:
    """Name in lower case without units in brackets, and these units: ``"T2M [degC]"`` -> ``("t2m", "degC")``."""
    match = re.fullmatch(r"(.+?)\s*[\[(](.+)[\])]", name.strip())
    return (match[1].strip().lower(), match[2]) if match else (name.strip().lower(), None)


def _role(name: str, attrs: Mapping) -> str | None:
    rows = surface_rows()
    if _is_elsewhere(attrs):
        return None
    standard_name = attrs.get("standard_name")
    by_standard = {row.standard_name: key for key, row in rows.items()} | {key: key for key in ("time", "latitude", "longitude")}
    by_standard |= {text: key for key, texts in _STANDARD_NAMES.items() for text in texts}
    if standard_name in by_standard:
        return by_standard[standard_name]
    if attrs.get("cf_role") == "timeseries_id":
        return "station"
    word, _ = _bare(name)
    by_name = {text.lower(): key for key, row in rows.items() for text in (row.name, *row.aliases)}
    by_name |= {text: key for key, texts in _NAMES.items() for text in texts}
    named = by_name.get(word)
    something_else = standard_name in {row.standard_name for row in CATALOG.values()}
    return None if something_else and named not in PLACES else named


def _is_elsewhere(attrs: Mapping) -> bool:
    """A minimum, a maximum, or the flags of another variable."""
    methods = str(attrs.get("cell_methods", ""))
    return "maximum" in methods or "minimum" in methods or "flag_meanings" in attrs


def _column(
    role: str, name: str, columns: Mapping, units: Mapping[str, str], known, is_frame: bool, report: Report
) -> Column | None:
    if role in ("station", "time", "latitude", "longitude"):
        return Column(name)
    word, bracketed = _bare(str(name))
    documented = known.units.get(word) if known else None
    given = units.get(name) or columns[name].get("units") or bracketed or documented or _SAYING.get(word)
    target = _METERS if role == "altitude" else CATALOG[role].units
    if not given:
        examples = {"altitude": "m", "K": "degC", "Pa": "hPa", "m s-1": "knots", "1": "%", "degree": "degree"}
        example = examples.get(role, examples.get(target, target))
        stated = f'Rename it "{word} [{example}]"' if is_frame else f'ds["{name}"].attrs["units"] = "{example}"'
        fix = f'{stated}, or xsm.read_stations(..., units={{"{name}": "{example}"}})'
        report.error(role, f"column {name!r} has no units", f"units convertible to {target}", fix)
        return None
    try:
        factor, offset = conversion(str(given), target)
    except UnitsError as error:
        fix = f'xsm.read_stations(..., units={{"{name}": "..."}})'
        report.error(role, f"column {name!r}: {error}", f"units convertible to {target}", fix)
        return None
    if (factor, offset) != (1.0, 0.0):
        report.assume(role, f"{name!r} converted from {given} to {target}")
    flag = next((other for other in columns if known and known.flag and str(other).lower() == word + known.flag), None)
    return Column(name, factor, offset, flag, known.rejected if flag else ())
