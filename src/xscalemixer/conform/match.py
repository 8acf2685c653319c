"""Which variable of a file is which: CF standard name with level or height first, then the alias table."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from xscalemixer.conform.levels import pressure_levels
from xscalemixer.report import Report
from xscalemixer.variables import CATALOG, Variable

__all__ = ["Inventory", "Place"]

# Rows that hold one quantity: units decide, never names.
_SAME = {"z": ("z", "gh"), "gh": ("z", "gh")}
# Further standard names of a row. Winds along the axes of a grid are turned later.
_STANDARD_NAMES = {
    "orog": ("surface_geopotential",),
    "lsm": ("land_binary_mask",),
    "msl": ("air_pressure_at_sea_level",),
    "ssrd": ("integral_wrt_time_of_surface_downwelling_shortwave_flux_in_air",),
    **dict.fromkeys(("u", "u10"), ("x_wind", "grid_eastward_wind")),
    **dict.fromkeys(("v", "v10"), ("y_wind", "grid_northward_wind")),
}
_CLOUD_LAYERS = {"lcc": "lowCloudLayer", "mcc": "middleCloudLayer", "hcc": "highCloudLayer"}
_LEVEL_TYPES = ("surface", "meanSea", "atmosphereSingleLayer", "atmosphere", "entireAtmosphere", "heightAboveGround", "unknown")
_AXES = {"time", "latitude", "longitude", "y", "x", "station"}


@dataclass(frozen=True)
class Place:
    """Where in the vertical a variable is.

    Attributes
    ----------
    pressure : Hashable or None
        Dimension or scalar coordinate that holds its pressure.
    height : Hashable or None
        Dimension or scalar coordinate that holds its height above ground.
    heights : tuple of float
        Heights above ground in m, from that coordinate or from GRIB attributes.
    level_type : str or None
        ``GRIB_typeOfLevel``.
    """

    pressure: Hashable | None
    height: Hashable | None
    heights: tuple[float, ...]
    level_type: str | None


class Inventory:
    """The variables of a dataset with their places in the vertical.

    Parameters
    ----------
    ds : xr.Dataset
    report : Report
        Receives what is said about vertical coordinates, and about several candidates for one variable.

    Attributes
    ----------
    levels : dict of np.ndarray
        Levels in hPa of each coordinate that is pressure.
    places : dict of Place
        One for each data variable.
    """

    def __init__(self, ds: xr.Dataset, report: Report):
        self.ds, self.report = ds, report
        levels = {name: pressure_levels(c, report) for name, c in ds.coords.items() if c.ndim <= 1 and name not in _AXES}
        self.levels = {name: values for name, values in levels.items() if values is not None}
        self.places = {str(name): self._place(array) for name, array in ds.data_vars.items()}

    def _place(self, array: xr.DataArray) -> Place:
        """Read the vertical place of a variable off its dims, scalar coordinates and GRIB attributes."""
        coordinates = list(_vertical(array))
        pressure = next((c for c in coordinates if c in self.levels), None)
        height = next((c for c in coordinates if c != pressure and _is_height(array[c])), None)
        stated = array.attrs.get("GRIB_heightAboveGround", () if height is None else array[height].values)
        heights = tuple(np.round(np.ravel(stated).astype(float), 1))
        return Place(pressure, height, heights, array.attrs.get("GRIB_typeOfLevel"))

    def column(self, name: str) -> np.ndarray:
        """Levels in hPa of a variable; none where it is not on pressure."""
        pressure = self.places[name].pressure
        return np.empty(0) if pressure is None else self.levels[pressure]

    def find(self, row: Variable) -> xr.DataArray | None:
        """The variable that ``row`` describes; homonyms are told apart by level, height and time processing.

        Two candidates that differ in their values are an error that names both.
        """
        names = [name for name, place in self.places.items() if _fits(self.ds[name], place, row)]
        wanted = "avg" if row.interval_mean else "instant"
        names = [name for name in names if self.ds[name].attrs.get("GRIB_stepType", wanted) == wanted] or names
        if row.levels:  # the most complete column
            most = max((self.column(name).size for name in names), default=0)
            names = [name for name in names if self.column(name).size == most]
        if not names:
            return None
        first, *others = names
        others = [name for name in others if not _equal(self.ds[first], self.ds[name])]
        if others:
            found = f"{', '.join(map(repr, [first, *others]))} all look like {row.long_name} and differ"
            self.report.error(row.name, found, "one of them", f'Keep one: ds = ds.drop_vars("{others[0]}")')
        return self.ds[first]

    def hint(self, row: Variable) -> str:
        """Names that come close to what is missing, as something to type."""
        names = {name.lower(): name for name, place in self.places.items() if _in_place(self.ds[name], place, row)}
        words = [word for word in (row.name, *row.aliases) if len(word) >= 5]  # short names are close to everything
        close = {names[match] for word in words for match in difflib.get_close_matches(word, names, n=2, cutoff=0.75)}
        close |= {name for name in names.values() if self.ds[name].attrs.get("standard_name") == row.standard_name}
        if not close:
            known = ", ".join((row.name, *row.aliases[:3]))
            return f"Names that are understood: {known}, or the standard_name {row.standard_name}"
        first, *others = sorted(close)
        return f'Close: {", ".join([first, *others[:4]])}. If it is one of these, ds = ds.rename({{"{first}": "{row.name}"}})'


def _vertical(array: xr.DataArray) -> Iterator[Hashable]:
    """Dimensions first, then scalar coordinates, without the time and horizontal ones."""
    names = [*array.dims, *(c for c in array.coords if c not in array.dims)]
    return (c for c in names if c not in _AXES and c in array.coords and set(array[c].dims) <= {c})


def _is_height(coordinate: xr.DataArray) -> bool:
    named = coordinate.attrs.get("standard_name") == "height" or str(coordinate.name).lower().startswith("height")
    return named and str(coordinate.attrs.get("units", "m")).startswith("m") and coordinate.dtype.kind in "iuf"


def _fits(array: xr.DataArray, place: Place, row: Variable) -> bool:
    """True if a variable can be ``row``: right place in the vertical, and right standard name or known name."""
    attrs = array.attrs
    if _is_extreme(attrs) or not _in_place(array, place, row):
        return False
    rows = [CATALOG[name] for name in _SAME.get(row.name, (row.name,))]
    standard_names = {r.standard_name for r in rows} | set(_STANDARD_NAMES.get(row.name, ()))
    standard_name = attrs.get("standard_name")
    if standard_name in standard_names and (row.height is None or row.height in place.heights):
        return True
    if standard_name in {r.standard_name for r in CATALOG.values()} - standard_names and row.name != "orog":
        return False
    names = {str(text).lower() for text in (array.name, attrs.get("GRIB_cfVarName"), attrs.get("GRIB_shortName"))}
    return bool(names & {alias for r in rows for alias in (r.name, *r.aliases)})


def _is_extreme(attrs: dict) -> bool:
    methods = str(attrs.get("cell_methods", ""))
    return attrs.get("GRIB_stepType") in ("max", "min") or "maximum" in methods or "minimum" in methods


def _in_place(array: xr.DataArray, place: Place, row: Variable) -> bool:
    if row.levels:
        return place.pressure is not None
    if place.pressure in array.dims:
        return False
    if place.level_type not in (None, *_LEVEL_TYPES, _CLOUD_LAYERS.get(row.name)):
        return False
    if row.height is None:
        return place.level_type != "heightAboveGround"
    # A scalar height may have been put on all variables by a merge; a dimension or a GRIB attribute belongs to this one.
    certain = place.height in array.dims or "GRIB_heightAboveGround" in array.attrs
    return not certain or row.height in place.heights


def _equal(one: xr.DataArray, other: xr.DataArray) -> bool:
    return one.shape == other.shape and bool(np.array_equal(one.values, other.values, equal_nan=True))
