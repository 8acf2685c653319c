"""Relief: heights on their grid, and all that follows from them alone."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr

from xscalemixer.conform import translate
from xscalemixer.conform.grid import to_canonical_grid
from xscalemixer.conform.match import Inventory
from xscalemixer.errors import GridError
from xscalemixer.grids import CurvilinearGrid, Grid, cell_centers, cell_steps, grid_of
from xscalemixer.physics import terrain
from xscalemixer.physics.sunlight import Sunshine, insolation_with_sky
from xscalemixer.regridding import Regridder, interpolation, regrid
from xscalemixer.report import Report
from xscalemixer.variables import CATALOG, Schema

__all__ = ["Relief", "read_relief"]


@dataclass(frozen=True, eq=False)
class Relief:
    """Heights and all that follows from them alone; each is computed once, when needed.

    Attributes
    ----------
    height : xr.DataArray, shape (H, W)
        m, the sea at 0, no gaps.
    land : xr.DataArray or None
        Land fraction.
    grid : Grid or CurvilinearGrid
    """

    height: xr.DataArray
    land: xr.DataArray | None
    grid: Grid | CurvilinearGrid

    @classmethod
    def of(cls, height: np.ndarray, grid: Grid) -> Relief:
        """Heights in m on latitudes and longitudes, shape (H, W)."""
        axes = {"latitude": list(grid.latitude), "longitude": list(grid.longitude)}
        return cls(xr.DataArray(height, axes, ("latitude", "longitude")), None, grid)

    @property
    def dims(self) -> tuple[Hashable, ...]:
        """Names of rows and columns."""
        return self.height.dims

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude of every cell in degrees, shape (H, W) each."""
        return cell_centers(self.grid)

    @cached_property
    def steps(self) -> np.ndarray:
        """See `xscalemixer.grids.cell_steps`."""
        return cell_steps(self.grid)

    @cached_property
    def gradient(self) -> np.ndarray:
        """See `xscalemixer.physics.terrain.gradient`."""
        return terrain.gradient(self.height.values, self.steps)

    @cached_property
    def horizon(self) -> np.ndarray:
        """See `xscalemixer.physics.terrain.horizon_angles`."""
        return terrain.horizon_angles(self.height.values, self.steps)

    @cached_property
    def sky(self) -> np.ndarray:
        """Sky view per horizontal area, shape (H, W), float32; see `xscalemixer.physics.terrain.sky_view`."""
        view = terrain.sky_view(self.gradient, self.horizon) / np.cos(terrain.slope(self.gradient))
        return view.astype(np.float32)

    @cached_property
    def sunshine(self) -> Sunshine:
        """Flux on level ground and on the slopes."""
        return Sunshine(*self.places, self.gradient, self.horizon)

    def insolation(self, ends: np.ndarray) -> np.ndarray:
        """Means over the hours that end at each time, as the slopes get them through a fair sky, W m-2, shape (T, H, W).

        See `xscalemixer.physics.sunlight.insolation_with_sky`.
        """
        return insolation_with_sky(*self.sunshine(ends), self.sky)


def read_relief(orography: object, grid: Grid | CurvilinearGrid | None, report: Report) -> Relief | None:
    """Heights on their grid, or on the one asked for; problems go to the report."""
    if isinstance(orography, xr.DataArray):
        orography = orography.rename("orog").to_dataset()
    if not isinstance(orography, xr.Dataset):
        found = f"a {type(orography).__name__}"
        fix = 'Open it: xr.open_dataset("relief.nc"); or take the orography of another dataset: other["orog"].'
        report.error("relief", found, "an xarray.Dataset or DataArray with heights in m", fix)
        return None
    own = Report("relief")
    heights = to_canonical_grid(orography, own)
    names = [name for name in ("orog", "lsm") if Inventory(heights, Report("")).find(CATALOG[name]) is not None]
    if "orog" not in names:
        found = f"no heights among {', '.join(map(str, orography.data_vars)) or 'no variables'}"
        own.error("orog", found, "surface_altitude in m", 'Name them: orography.rename({"NAME": "orog"}), or give the DataArray.')
    if own.ok:
        heights = translate(heights, Schema.of(*names), own, dims=())
    report.extend(own, "relief: ")
    if not own.ok:
        return None
    heights = _without_sea_floor(heights, report)
    try:
        heights = heights if grid is None else _onto(heights, grid)
        own_grid = grid_of(heights)
    except GridError as error:
        report.error("relief", ": ".join([error.task, *error.problems]), kind=GridError)
        return None
    return _complete(heights.load(), own_grid, report)


def _onto(heights: xr.Dataset, grid: Grid | CurvilinearGrid) -> xr.Dataset:
    """Heights on another grid; finer ones without kinks, which would be ridges, and never beyond the given heights."""
    regridder = Regridder(grid_of(heights), grid)
    if regridder.method == "conservative" or interpolation(regridder.source, grid) == "bilinear":
        return regrid(heights, regridder)
    smooth = regrid(heights[["orog"]], grid, method="bicubic")
    bounds = heights["orog"].min(), heights["orog"].max()
    return regrid(heights, regridder).assign(orog=smooth["orog"].clip(*bounds, keep_attrs=True))


def _complete(heights: xr.Dataset, grid: Grid | CurvilinearGrid, report: Report) -> Relief | None:
    missing = np.isnan(heights["orog"].values)
    if missing.any():
        found = f"{missing.sum()} of {missing.size} heights are missing (NaN)"
        fix = "Fill them where they are sea: orography.fillna(0.0); else crop to where heights are known."
        report.error("relief", found, "a height in every cell", fix, kind=GridError)
        return None
    return Relief(heights["orog"], heights.get("lsm"), grid)


def _without_sea_floor(heights: xr.Dataset, report: Report) -> xr.Dataset:
    below = heights["orog"] < 0
    sea = below & (heights["lsm"] < 0.5) if "lsm" in heights else below
    count = int(sea.sum())
    if count:
        report.assume("relief", f"{count} heights below zero taken as sea and set to 0")
    return heights.assign(orog=heights["orog"].where(~sea, 0.0))
