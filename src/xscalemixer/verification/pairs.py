"""One forecast beside its truth for the diagnostics, and results that say what went into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import xarray as xr

from xscalemixer.errors import SchemaError
from xscalemixer.report import Report
from xscalemixer.verification.alignment import Aligned, CommonGrid, Region, align

__all__ = ["align_pair", "described", "require_values"]

_Xarray = TypeVar("_Xarray", xr.DataArray, xr.Dataset)


def align_pair(
    forecast: xr.Dataset, truth: xr.Dataset, variables: Iterable[str] | None, region: Region | None, grid: CommonGrid
) -> tuple[Aligned, Report]:
    """One forecast beside its truth, see `xscalemixer.verification.alignment.align`."""
    aligned, report = align({"forecast": forecast}, truth, variables=variables, region=region, grid=grid)
    return aligned["forecast"], report


def described(out: _Xarray, title: str, one: Aligned, report: Report) -> _Xarray:
    """Attributes of a diagnostic: what it is, how many starts and places went into it, and the report of the alignment."""
    places = "stations" if "station" in one.area.dims else "cells"
    sample = f"{_plural(one.forecast.sizes['reference_time'], 'start')}, {int((one.area > 0).sum())} {places}"
    return out.assign_attrs(title=title, sample=sample, report=repr(report))


def require_values(what: str, known: Mapping[str, xr.DataArray]) -> None:
    """Make sure that each variable has a value somewhere.

    Parameters
    ----------
    what : str
        What is to be computed, e.g. ``"the Brier score"``.
    known : dict of xr.DataArray
        By variable: True where the result has a value.

    Raises
    ------
    SchemaError
        If one has none.
    """
    lost = [name for name, there in known.items() if not there.any()]
    problem = "no place where forecast and truth both have a value; all are NaN. Check the mask"
    if lost:
        raise SchemaError(f"{what} cannot be computed", [f"{name}: {problem}" for name in lost])


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)
