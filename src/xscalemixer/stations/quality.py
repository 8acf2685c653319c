"""Checks of station reports: missing codes, gross range, dew point and temperature, calm; nothing is filled or corrected."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from xscalemixer.report import Report
from xscalemixer.variables import CATALOG

__all__ = ["is_code", "screen"]

# Codes for "no value" that no quantity takes in any unit in use; positive ones such as 9999 fall out of the range.
_CODES = np.array(
    [-99.0, -99.9, -999.0, -999.9, -9999.0, -9999.9, -99999.0, -32767.0, -32768.0, 1e20, 1e30, 9.969209968386869e36], "f4"
)
_SATURATION = 0.5  # K by which rounding may lift the dew point above the temperature


def is_code(values: np.ndarray) -> np.ndarray:
    """True where a raw value is a code for "missing"; shape as given."""
    return np.isin(np.asarray(values, "f4"), _CODES)


def screen(ds: xr.Dataset, coded: dict[str, Any], report: Report) -> xr.Dataset:
    """Set to NaN what cannot be right, and say how often.

    Parameters
    ----------
    ds : xr.Dataset
        Canonical names and units, dims ``(time, station)``.
    coded : dict
        Number of missing codes and rejected flags of each variable that were set to NaN before.
    report : Report
        Receives one line for each variable, and an error where most values do not fit their units.

    Returns
    -------
    xr.Dataset
        Lazy where ``ds`` is; the values are read once to count.
    """
    import dask

    outside = {name: _outside(array) for name, array in ds.items()}
    ranged = ds.assign({name: array.where(~outside[name]) for name, array in ds.items()})
    contradicted = _contradicted(ranged)
    out = ranged.assign({name: ranged[name].where(~contradicted) for name in ("t2m", "d2m") if contradicted is not None})
    counts = {
        name: {"outside": outside[name].sum().data, "left": out[name].notnull().sum().data,
               "stations": out[name].notnull().any("time").sum().data}
        for name in ds
    }  # fmt: skip
    pairs = 0 if contradicted is None else contradicted.sum().data
    (counts, pairs, coded) = dask.compute(counts, pairs, coded)
    for name, number in counts.items():
        _tell(name, number, int(pairs) if name in ("t2m", "d2m") else 0, int(coded.get(name, 0)), report)
    return _calm(out, report)


def _outside(array: xr.DataArray) -> xr.DataArray:
    low, high = CATALOG[str(array.name)].valid_range
    return array.notnull() & ~((array >= low) & (array <= high))


def _contradicted(ds: xr.Dataset) -> xr.DataArray | None:
    """Where the dew point is above the temperature: one of them is wrong, and nothing says which."""
    return ds["d2m"] > ds["t2m"] + _SATURATION if {"t2m", "d2m"} <= set(ds.data_vars) else None


def _tell(name: str, number: dict, pairs: int, coded: int, report: Report) -> None:
    row = CATALOG[name]
    outside, left = int(number["outside"]), int(number["left"])
    if outside > max(left, 1):
        found = (
            f"{outside} of {outside + left + pairs} values are outside {row.valid_range[0]:g}..{row.valid_range[1]:g} {row.units}"
        )
        report.error(name, found, "the units that the values have", 'State them: units={"COLUMN": "..."} or attrs["units"]')
        return
    set_missing = {
        "missing codes or rejected by their flag": coded,
        "out of range": outside,
        "dew point above temperature": pairs,
    }
    parts = [f"{count} {words}" for words, count in set_missing.items() if count]
    text = f"{left} values at {int(number['stations'])} stations" + (f"; set to missing: {', '.join(parts)}" if parts else "")
    if outside or pairs:
        report.warn(name, text)
    else:
        report.assume(name, text)


def _calm(ds: xr.Dataset, report: Report) -> xr.Dataset:
    """WMO code 0877: calm has direction 0, north is 360; reports mix them, or leave the direction of calm out."""
    if not {"ws10", "wd10"} <= set(ds.data_vars):
        return ds
    calm = ds["ws10"] == 0
    direction = ds["wd10"].where(ds["wd10"] != 0, 360.0).where(~calm, 0.0)
    report.assume("wd10", "0 where it is calm, 360 for north")
    return ds.assign(wd10=direction.astype("f4"))
