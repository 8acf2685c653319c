"""Variables of a file in canonical units: found, converted, turned to east and north, one by one when asked for."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np
import xarray as xr

from xscalemixer.conform.levels import needed_levels
from xscalemixer.conform.match import Inventory
from xscalemixer.errors import GridError, TimeError
from xscalemixer.physics.pressure import GRAVITY, standard_geopotential
from xscalemixer.report import Report
from xscalemixer.units import UnitsError, conversion
from xscalemixer.variables import CATALOG, Variable

__all__ = ["Source", "is_plausible", "plausible_units"]

# Units that are worth trying when none is given, or the given one cannot be right.
_CANDIDATES = {
    "K": ("K", "degC"),
    "Pa": ("Pa", "hPa"),
    "kg kg-1": ("kg kg-1", "g kg-1"),
    "1": ("1", "%"),
    "m s-1": ("m s-1",),
    "W m-2": ("W m-2",),
    "m2 s-2": ("m2 s-2", "m"),
    "m": ("m", "m2 s-2"),
    "degree": ("degree",),
    "dBZ": ("dBZ",),
    "kg m-2 s-1": ("kg m-2 s-1",),
}
# The maximum of a field lies in here when its units are right: narrower than the valid range.
_TYPICAL_MAXIMUM = {"kg kg-1": (2e-4, 0.05), "1": (0.02, 1.7), "K": (180.0, 345.0)}
_DIMS = ("level", "latitude", "longitude", "y", "x", "station")
_PAIRS = {"u": ("u", "v"), "v": ("u", "v"), "u10": ("u10", "v10"), "v10": ("u10", "v10")}


class Source:
    """Canonical variables of one dataset, found lazily and kept.

    Parameters
    ----------
    ds : xr.Dataset
        With canonical time and horizontal axes.
    report : Report
        Receives findings about the variables that are asked for, and about no others.
    levels : tuple of int
        Pressure levels wanted, hPa.
    dims : tuple of str
        Time-like dimensions that variables may have and keep, in this order.
    """

    def __init__(self, ds: xr.Dataset, report: Report, levels: tuple[int, ...], dims: tuple[str, ...] = ("time",)):
        self.ds, self.report, self.levels = ds, report, levels
        self.dims = (*dims, *_DIMS)
        self.inventory = Inventory(ds, report)
        self._has_axes = not any(issubclass(finding.error, (GridError, TimeError)) for finding in report.select("error"))
        self._raw: dict[str, xr.DataArray | None] = {}
        self.conversions: dict[str, tuple[str, str, float, float]] = {}
        self._doubtful_winds: set[tuple[str, str]] = set()

    def has(self, name: str) -> bool:
        """True if the file holds the variable, whatever its state."""
        return self._find(name) is not None

    def hint(self, name: str) -> str:
        """What to type if the variable is missing."""
        return self.inventory.hint(CATALOG[name])

    def _find(self, name: str) -> xr.DataArray | None:
        if name not in self._raw:
            array = self.inventory.find(CATALOG[name])
            self._raw[name] = None if array is None else self._place(array, CATALOG[name])
        return self._raw[name]

    def load_units(self, names: Iterable[str]) -> None:
        """Read the values of the variables that have no units, all in one pass, and conclude the units from them."""
        import dask

        bare = {name: array for name in names if (array := self._find(name)) is not None and _is_bare(array)}
        if not bare:
            return
        (ranges,) = dask.compute({name: _range(array) for name, array in bare.items()})
        fitting = {name: plausible_units(CATALOG[name], array, *map(np.asarray, ranges[name])) for name, array in bare.items()}
        found = {name: units[0] for name, units in fitting.items() if len(units) == 1}
        self._raw |= {name: bare[name].assign_attrs(units=units) for name, units in found.items()}
        if found:
            listed = ", ".join(f"{bare[name].name} ({units})" for name, units in found.items())
            self.report.warn("units", f"no units on some variables; taken are the only ones that fit the values: {listed}")

    def get(self, name: str) -> xr.DataArray | None:
        """The variable in canonical units as float32, None if it is absent or unusable (which is then in the report)."""
        array, row = self._find(name), CATALOG[name]
        if array is None:
            return None
        converted = self._convert(array, row)
        if converted is None or name not in _PAIRS:
            return converted
        return self._earth_wind(name, array, converted)

    def _place(self, array: xr.DataArray, row: Variable) -> xr.DataArray | None:
        """Bring the dims to (time, [level], y, x): level in hPa, one height, one member; drop all other coordinates."""
        place = self.inventory.places[str(array.name)]
        if row.levels and place.pressure is not None:
            array = self._on_pressure(array, place.pressure)
        elif place.height in array.dims:
            array = array.isel({place.height: int(np.argmin(np.abs(np.array(place.heights) - row.height)))})
        if row.role == "static" and "time" in array.dims:
            array = array.isel(time=0)
        array = self._one_member(array, row)
        dims = tuple(dim for dim in self.dims if dim in array.dims)
        extra = [dim for dim in array.dims if dim not in dims]
        if extra and self._has_axes:
            found = f"{array.name!r} has more dimensions: {', '.join(f'{dim} ({array.sizes[dim]})' for dim in extra)}"
            self.report.error(row.name, found, f"dims {dims}", f"Choose one, e.g. ds = ds.isel({extra[0]}=0)")
            array = array.isel(dict.fromkeys(extra, 0))
        keep = {*dims, "latitude", "longitude"}
        return array.drop_vars([c for c in array.coords if c not in keep]).transpose(*dims, ...)

    def _on_pressure(self, array: xr.DataArray, name: Hashable) -> xr.DataArray:
        values = self.inventory.levels[name]
        if name not in array.dims:
            array = array.expand_dims(name)
        keep = [c for c in array.coords if name in array[c].dims or c == "level"]
        array = array.drop_vars(keep).rename({name: "level"} if name != "level" else {})
        attrs = {"standard_name": "air_pressure", "long_name": "pressure level", "units": "hPa", "positive": "down", "axis": "Z"}
        array = array.assign_coords(level=("level", np.atleast_1d(values), attrs))
        return array.sel(level=needed_levels(np.sort(array["level"].values), self.levels))

    def _one_member(self, array: xr.DataArray, row: Variable) -> xr.DataArray:
        """Drop dims of length one, and join ERA5 with its preliminary part (``expver``), which fill each other's gaps."""
        array = array.squeeze([dim for dim in array.dims if array.sizes[dim] == 1 and dim not in self.dims])
        if "expver" not in array.dims:
            return array
        self.report.assume(row.name, "final (expver 1) and preliminary (expver 5) data joined")
        joined = array.isel(expver=0)
        for index in range(1, array.sizes["expver"]):
            joined = joined.fillna(array.isel(expver=index))
        return joined.assign_attrs(array.attrs)

    def _convert(self, array: xr.DataArray, row: Variable) -> xr.DataArray | None:
        problem = _undecoded(array)
        if problem:
            self.report.error(row.name, f"{array.name!r} {problem}", "decoded numbers", "Open the file with mask_and_scale=True")
            return None
        units = str(array.attrs.get("units", ""))
        type_units = f'ds["{array.name}"].attrs["units"] = "{row.units}"'
        if _is_bare(array):
            found = f"{array.name!r} has no units, and its values do not tell"
            self.report.error(row.name, found, " or ".join(_CANDIDATES[row.units]), f"{type_units}, or what is right")
            return None
        try:
            factor, offset = _conversion(units, row.units)
        except UnitsError as error:
            self.report.error(row.name, f"{array.name!r}: {error}", f"something convertible to {row.units}", type_units)
            return None
        self.conversions[row.name] = (str(array.name), units, factor, offset)
        if (factor, offset) != (1.0, 0.0):
            self.report.assume(row.name, f"{array.name!r} converted from {units} to {row.units}")
            array = array.astype("f8") * factor + offset
        return array.astype("f4").rename(row.name)

    def _earth_wind(self, name: str, raw: xr.DataArray, converted: xr.DataArray) -> xr.DataArray | None:
        """Turn winds along the axes of a projected grid to east and north."""
        if "y" not in converted.dims:
            return converted
        standard_name, relative = raw.attrs.get("standard_name", ""), raw.attrs.get("GRIB_uvRelativeToGrid")
        if relative == 0 or (relative is None and standard_name in ("eastward_wind", "northward_wind")):
            return converted
        if relative is None and not standard_name.startswith(("x_", "y_", "grid_")):
            if _PAIRS[name] not in self._doubtful_winds:
                self._doubtful_winds.add(_PAIRS[name])
                found = f"{raw.name!r} is on a projected grid and does not say along which axes; taken as eastward and northward"
                self.report.warn(" and ".join(_PAIRS[name]), found)
            return converted
        return self._rotated(name, converted)

    def _rotated(self, name: str, converted: xr.DataArray) -> xr.DataArray | None:
        from xscalemixer import projections

        pair = _PAIRS[name]
        winds = {n: array for n in pair if (array := self._find(n)) is not None}
        kept = {array.name for array in winds.values()}
        others = [n for n, array in self.ds.data_vars.items() if array.ndim >= 2 and n not in kept]
        try:
            crs, problem = projections.crs_of(self.ds.drop_vars(others)), "its projection is not given"
        except GridError as error:
            crs, problem = None, "; ".join(error.problems)
        u, v = (converted if n == name else self._convert(winds[n], CATALOG[n]) if n in winds else None for n in pair)
        if crs is None or u is None or v is None:
            found = f"winds run along the axes of the grid, and {problem if crs is None else 'the other component is missing'}"
            needed = "both components and a CF grid_mapping variable to rotate them, or eastward and northward winds"
            self.report.error(name, found, needed, "Rotate them first, or add the grid mapping to the dataset")
            return None
        self.report.assume(name, "winds along the axes of the grid turned to east and north")
        return projections.rotate_winds(u, v, crs)[pair.index(name)].rename(name).astype("f4")


def plausible_units(row: Variable, array: xr.DataArray, low: np.ndarray, high: np.ndarray) -> list[str]:
    """Units in which values between ``low`` and ``high`` (each scalar, or one per level) make sense."""
    return [units for units in _CANDIDATES[row.units] if is_plausible(row, array, *(_apply(units, row, x) for x in (low, high)))]


def _apply(units: str, row: Variable, values: np.ndarray) -> np.ndarray:
    factor, offset = _conversion(units, row.units)
    return factor * values.astype("f8") + offset


def is_plausible(row: Variable, array: xr.DataArray, low: np.ndarray, high: np.ndarray) -> bool:
    """True if a variable can run from ``low`` to ``high`` in canonical units; geopotential is held against a standard profile."""
    if not (low.min() >= row.valid_range[0] and high.max() <= row.valid_range[1]):
        return False
    if row.name in ("z", "gh") and np.isfinite([low, high]).all():
        return _near_standard(array["level"].values, (low + high) / 2, GRAVITY if row.name == "gh" else 1.0)
    least, most = _TYPICAL_MAXIMUM.get(row.units, (-np.inf, np.inf))
    return row.role == "static" or least <= high.max() <= most


def _near_standard(levels: np.ndarray, middle: np.ndarray, factor: float) -> bool:
    """True if geopotential is near that of the standard atmosphere, as far as the levels are high enough to tell."""
    high = levels <= 700
    ratio = middle[high] * factor / standard_geopotential(levels[high] * 100.0)
    return bool(np.all((ratio > 0.75) & (ratio < 1.3)))


def _conversion(units: str, target: str) -> tuple[float, float]:
    """Like `conversion`, with geopotential and height made one quantity by standard gravity."""
    try:
        return conversion(units, target)
    except UnitsError:
        if target == "m2 s-2":
            factor, _ = conversion(units, "m")
            return factor * GRAVITY, 0.0
        if target == "m":
            factor, _ = conversion(units, "m2 s-2")
            return factor / GRAVITY, 0.0
        raise


def _is_bare(array: xr.DataArray) -> bool:
    return array.dtype.kind in "iuf" and str(array.attrs.get("units", "")).strip().lower() in ("", "unknown")


def _undecoded(array: xr.DataArray) -> str:
    if array.dtype.kind in "iu" and {"scale_factor", "add_offset"} & set(array.attrs):
        return "holds packed integers (scale_factor and add_offset are still in its attributes)"
    if array.dtype.kind not in "iufb":
        return f"holds {array.dtype} values"
    return ""


def _range(array: xr.DataArray) -> tuple:
    """Least and largest finite value, one pair per level."""
    dims = [dim for dim in array.dims if dim != "level"]
    finite = np.isfinite(array)
    return array.where(finite, np.inf).min(dims).data, array.where(finite, -np.inf).max(dims).data
