"""One forecast beside its truth for the diagnostics, and results that say what went into them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import xarray as xr

from xscalemixer.report import Report
from xscalemixer.verification.alignment import Aligned, CommonGrid, Region, align

__all__ = ["align_pair", "described"]

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


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)
