"""Coarse fields of any dataset, analysis or forecast, item by item on the grid that a CorrDiff model reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from xscalemixer.conform import conform, require_dataset
from xscalemixer.errors import GridError, InputError
from xscalemixer.grids import CurvilinearGrid, Grid, grid_of
from xscalemixer.layouts import is_forecast, to_forecast
from xscalemixer.reduction import REDUCED, changes
from xscalemixer.regridding import Regridder, regrid
from xscalemixer.report import Report
from xscalemixer.samples import Fields, LazyFields
from xscalemixer.state import HOUR, fields_of
from xscalemixer.variables import Schema

__all__ = ["Coarse", "Interpolated", "origin_of"]

_COVER = "Give data that cover it, or choose another model"
_HELD = 2**30  # bytes of coarse fields that are read at once and kept


@dataclass(frozen=True)
class Coarse:
    """Fields in canonical form along one axis of items: the times of an analysis, or the leads of all forecasts in turn.

    Attributes
    ----------
    ds : Dataset
        Dims ``(time, [level], latitude, longitude)``, or ``(..., y, x)``; ``time`` is the valid time and may repeat itself.
    schema : Schema
    reference, lead : array, shape (N,)
        Starts, and whole hours since then; the valid time and 0 for an analysis.
    forecast : bool
        It is a forecast.
    west_negative : bool
        Longitudes are counted from -180 to 180 degrees.
    origin : str
        Name of the model that made the forecast; empty where its attributes do not tell.
    """

    ds: xr.Dataset
    schema: Schema
    reference: np.ndarray
    lead: np.ndarray
    forecast: bool
    west_negative: bool
    origin: str = ""

    @classmethod
    def of(
        cls, ds: xr.Dataset, schema: Schema, report: Report, what: str, *, rh_phase: str | None = None, skip: float | None = None
    ) -> Coarse | None:
        """Conform a dataset; None where that fails, with every problem in the report.

        Parameters
        ----------
        ds : Dataset
            Any layout, names and units; forecasts with one or more starts and lead times, without members.
        schema : Schema
        report : Report
        what : str
            How the report calls the dataset.
        rh_phase, skip
            As for `conform`.

        Raises
        ------
        SchemaError, TimeError
            If it is no dataset, or its time axes contradict each other.
        """
        require_dataset(ds)
        forecast = is_forecast(ds)
        parts = _starts(ds, report, what) if forecast else [ds]
        conformed = [conform(part, schema, rh_phase=rh_phase, skip=skip, title=what) for part in parts]
        told: set[str] = set()
        for _, findings in conformed:
            report.extend(Report(what, [f for f in findings if str(f) not in told]), f"{what}: ")
            told |= {str(finding) for finding in findings}
        if not conformed or not all(findings.ok for _, findings in conformed):
            return None
        pieces = [piece for piece, _ in conformed]
        whole = pieces[0] if len(pieces) == 1 else _joined(pieces)
        time = whole["time"].values.astype("datetime64[ns]")
        starts = [part["reference_time"].values[0] for part in parts] if forecast else []
        reference = np.repeat(starts, [piece.sizes["time"] for piece in pieces]).astype(time.dtype) if forecast else time
        lead = ((time - reference) / HOUR).astype("int64")
        return cls(whole, schema, reference, lead, forecast, bool((whole["longitude"] < 0).any()), origin_of(ds))

    @property
    def time(self) -> np.ndarray:
        """Valid times, shape (N,)."""
        return self.ds["time"].values.astype("datetime64[ns]")

    def on(self, grid: Grid, report: Report, what: str, fix: str = _COVER, *, height: np.ndarray | None = None) -> Coarse | None:
        """The same on another grid, lazily; None where it does not cover that, with the problem and its remedy in the report.

        Parameters
        ----------
        height : array, shape (h, w), m, optional
            Of the ground on that grid: temperature and pressure come reduced to sea level (`reduction`). What is taken out
            first, before anything is averaged or interpolated, is the relief of the data; where they have no ``orog``, this.
        """
        if height is not None and "orog" in self.ds:
            return self._at_sea_level(self.ds["orog"].values).on(grid, report, what, fix)
        moved = self._moved(grid, report, what, fix)
        if moved is None or height is None or not (names := self.over_relief):
            return moved
        found = f"no orography; taken as if on the terrain of training, averaged: {', '.join(names)}"
        report.warn(what, found, 'Add that of your system: ds["orog"] = ...')
        return moved._at_sea_level(height)

    @property
    def over_relief(self) -> tuple[str, ...]:
        """Variables that a reduction to sea level changes."""
        return tuple(name for name in REDUCED if name in self.schema.names)

    def _at_sea_level(self, height: np.ndarray) -> Coarse:
        names, pairs = self.schema.channels, changes(self.schema, height)
        reduced = {names[i]: (self.ds[names[i]] - offset) / factor for i, (offset, factor) in pairs.items()}
        return replace(self, ds=self.ds.assign(reduced))

    def _moved(self, grid: Grid, report: Report, what: str, fix: str) -> Coarse | None:
        source = grid_of(self.ds)
        if source == grid:
            return self
        if isinstance(source, Grid) and (share := source.outside(grid)) > 0:
            found = f"{100 * share:.0f} % of the grid that the model reads lies outside the data ({source})"
            report.error(what, found, f"{grid}", fix, kind=GridError)
            return None
        names = list(self.schema.names)
        moved = regrid(self.ds[names], grid)
        report.assume(what, f"regridded: {moved.attrs['regridding']}")
        if isinstance(source, CurvilinearGrid):
            probe = moved[names[0]].isel(time=0)
            holes = float(probe.isnull().mean())
            if holes:
                found = f"{100 * holes:.0f} % of the grid that the model reads lies outside the data ({source})"
                report.error(what, found, f"{grid}", fix, kind=GridError)
                return None
        return replace(self, ds=moved)

    def only(self, chosen: np.ndarray) -> Coarse:
        """Some of the items, by number or by a mask."""
        return replace(self, ds=self.ds.isel(time=chosen), reference=self.reference[chosen], lead=self.lead[chosen])

    @property
    def nbytes(self) -> int:
        """Bytes of the fields in single precision."""
        return 4 * self.time.size * len(self.schema) * int(np.prod(grid_of(self.ds).shape))

    def values(self, memory: float = _HELD) -> Fields:
        """Fields (N, C, H, W): in memory, or of larger lazy data read as they are asked for."""
        lazy = all(self.ds[name].chunks for name in self.schema.names)
        if lazy and self.nbytes > memory:
            return LazyFields(self.ds, self.schema)
        return fields_of(self.ds, self.schema)


def origin_of(ds: xr.Dataset) -> str:
    """Name of the model of this library that made a forecast; empty for analyses and for forecasts of others."""
    return str(ds.attrs.get("model", "")) if is_forecast(ds) else ""


class Interpolated:
    """Coarse fields on the fine grid, as they are asked for."""

    def __init__(self, values: Fields, regridder: Regridder):
        self._values, self._regridder = values, regridder
        self.shape = (*values.shape[:2], *regridder.target.shape)

    def __getitem__(self, times: slice | np.ndarray) -> np.ndarray:
        """(n, C, H, W)."""
        return self._regridder(self._values[times])


def _starts(ds: xr.Dataset, report: Report, what: str) -> list[xr.Dataset]:
    """One forecast each, axes named."""
    ds = to_forecast(ds)
    if (count := ds.sizes.get("member", 1)) > 1:
        fix = "Choose one, ds.isel(member=0), or their mean, ds.mean('member')"
        report.error(what, f"{count} members", "a forecast without members", fix, kind=InputError)
        return []
    ds = ds.squeeze("member", drop=True) if "member" in ds.dims else ds
    return [ds.isel(reference_time=[i]) for i in range(ds.sizes["reference_time"])]


def _joined(pieces: list[xr.Dataset]) -> xr.Dataset:
    return xr.concat(
        pieces, "time", data_vars="minimal", coords="minimal", compat="override", join="override", combine_attrs="override"
    )
