"""Vertical axis: pressure levels in hPa, interpolation between near neighbors, values below the ground."""

from __future__ import annotations

import re

import numpy as np
import xarray as xr

from xscalemixer.physics.pressure import extend_geopotential
from xscalemixer.report import Report
from xscalemixer.units import conversion, is_pressure

__all__ = ["extend_below_ground", "fill_below_ground", "levels_apart", "needed_levels", "onto_levels", "pressure_levels"]

_NAMES = {"level", "lev", "levels", "plev", "pressure", "pressure_level", "pres", "isobaric", "isobaricinhpa", "isobaricinpa"}


def pressure_levels(coordinate: xr.DataArray, report: Report) -> np.ndarray | None:
    """Levels in hPa if this coordinate is pressure, else None; units that are missing are told from the values."""
    attrs, values = coordinate.attrs, coordinate.values.ravel()
    units = str(attrs.get("units", ""))
    if values.dtype.kind in "OUS":
        found = [match for value in values if (match := re.fullmatch(r"\s*([\d.]+)\s*([A-Za-z]*)\s*", str(value)))]
        if not found or len(found) < values.size or str(coordinate.name).lower() not in _NAMES:
            return None
        values, units = np.array([float(match[1]) for match in found]), found[0][2] or units
    if values.dtype.kind not in "iuf":
        return None
    if is_pressure(units):
        return _in_hpa(values, units)
    is_named = str(coordinate.name).lower() in _NAMES or attrs.get("standard_name") == "air_pressure"
    if units not in ("", "1") or not is_named or attrs.get("standard_name", "air_pressure") != "air_pressure":
        return None
    if np.array_equal(np.sort(values), np.arange(values.size) + values.min()) and values.size > 1:
        return None  # model levels counted one by one
    units = "Pa" if values.max() > 1100 else "hPa"
    report.warn(str(coordinate.name), f"no units; values {values.min():g} to {values.max():g} read as {units}")
    return _in_hpa(values, units)


def _in_hpa(values: np.ndarray, units: str) -> np.ndarray:
    factor, _ = conversion(units, "hPa")
    return np.round(values.astype("f8") * factor, 4)


def needed_levels(native: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """The native levels (hPa, ascending) that are wanted, and the neighbors of wanted ones that are absent."""
    keep = set()
    for level in wanted:
        if level in native:
            keep.add(float(level))
        else:
            keep |= {*native[native < level][-1:], *native[native > level][:1]}
    return np.array(sorted(keep))


def onto_levels(array: xr.DataArray, wanted: tuple[int, ...], max_ratio: float, report: Report) -> xr.DataArray | None:
    """Bring an array with dimension ``level`` (hPa, ascending) onto the wanted levels.

    Levels that are absent are interpolated linearly in the logarithm of pressure between neighbors whose pressures differ by
    a factor of at most ``max_ratio``; all others are reported in one finding, and None is returned.
    """
    native = array["level"].values
    if apart := levels_apart(native, wanted, max_ratio):
        found = f"levels {_list(apart)} hPa are missing; the data have {_list(native)} hPa"
        needed = f"these levels, or neighbors whose pressures differ by a factor of at most {max_ratio:g} to interpolate between"
        report.error(str(array.name), found, needed, "Get these levels, or choose a model that needs fewer")
        return None
    if between := [level for level in wanted if level not in native]:
        report.assume(str(array.name), f"interpolated linearly in log pressure to {_list(between)} hPa")
    return _interpolate(array, wanted) if between else array.sel(level=list(wanted))


def levels_apart(native: np.ndarray, wanted: tuple[int, ...], max_ratio: float) -> list[int]:
    """Wanted levels (hPa) that are absent from native ones (ascending) and have no near neighbors to interpolate between."""
    brackets = {level: (native[native < level][-1:], native[native > level][:1]) for level in wanted if level not in native}
    near = lambda above, below: above.size and below.size and below[0] / above[0] <= max_ratio
    return [level for level, neighbors in brackets.items() if not near(*neighbors)]


def _interpolate(array: xr.DataArray, wanted: tuple[int, ...]) -> xr.DataArray:
    native, target = np.log(array["level"].values), np.log(np.array(wanted, dtype="f8"))
    upper = np.clip(np.searchsorted(native, target, side="right") - 1, 0, native.size - 2)
    weight = xr.DataArray(((target - native[upper]) / (native[upper + 1] - native[upper])).astype("f4"), dims="level")
    above, below = (array.isel(level=index).drop_vars("level") for index in (upper, upper + 1))
    between = xr.where(weight == 0, above, xr.where(weight == 1, below, above + (below - above) * weight))
    return between.assign_coords(level=("level", np.array(wanted, dtype="f8"))).transpose(*array.dims).rename(array.name)


def fill_below_ground(array: xr.DataArray) -> xr.DataArray:
    """Fill NaN with the lowest valid value above; ``level`` is ascending in hPa."""
    layers = [array.isel(level=0)]
    for index in range(1, array.sizes["level"]):
        layers.append(array.isel(level=index).fillna(layers[-1]))
    return _stack(layers, array)


def extend_below_ground(array: xr.DataArray, temperature: xr.DataArray) -> xr.DataArray:
    """Extend geopotential hydrostatically below its lowest valid value; both with ``level`` ascending in hPa."""
    lowest, warmth = array.isel(level=0), temperature.isel(level=0)
    pressure = xr.full_like(lowest, float(array["level"][0]))
    layers = [lowest]
    for index, level in enumerate(array["level"].values[1:], 1):
        here, known = array.isel(level=index), array.isel(level=index).notnull()
        layers.append(here.where(known, extend_geopotential(lowest, pressure, warmth, float(level))))
        lowest, pressure = here.where(known, lowest), pressure.where(~known, float(level))
        warmth = temperature.isel(level=index).where(known, warmth)
    return _stack(layers, array)


def _stack(layers: list[xr.DataArray], like: xr.DataArray) -> xr.DataArray:
    layers = [layer.drop_vars("level", errors="ignore") for layer in layers]
    return xr.concat(layers, like["level"]).transpose(*like.dims).rename(like.name).astype(like.dtype)


def _list(levels) -> str:
    return ", ".join(f"{level:g}" for level in levels)
