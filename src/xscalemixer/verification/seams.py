"""Seams: whether the patches of a network can be seen in its fields."""

from __future__ import annotations

import numpy as np
import xarray as xr

from xscalemixer.conform import require_dataset
from xscalemixer.conform.grid import to_canonical_grid
from xscalemixer.errors import GridError, SchemaError
from xscalemixer.grids import Grid, grid_of
from xscalemixer.report import Report

__all__ = ["patch_seams"]

_AXES = ("latitude", "longitude")
_TASK = "seams cannot be looked for"


def patch_seams(ds: xr.Dataset, patch: int, offset: tuple[int, int] = (0, 0)) -> xr.Dataset:
    """Roughness of fields by the place within a patch, relative to the mean over all places.

    The jump between two cells is their difference less the mean of the differences before and after it; a plane and a parabola
    have none. Its mean square is taken along each axis for every place that a pair of cells can have within a patch. Fields
    that know nothing of patches give 1 everywhere, up to chance; a network whose patches do not fit together has a peak at 0.

    Parameters
    ----------
    ds : Dataset
        Fields on a latitude-longitude grid, any other dims.
    patch : int
        Cells per side of a patch.
    offset : (int, int)
        Cells by which the first patch begins north and west of the grid, as in `BackboneConfig.offset`.

    Returns
    -------
    Dataset
        Each horizontal variable with dims ``(axis, place)``, 1: ``axis`` is the one that pairs lie along, and ``place`` the
        number of cells of the patch before the second cell; at 0 the border of two patches runs through the pair.

    Raises
    ------
    GridError
        If the grid is curvilinear or smaller than three patches.
    SchemaError
        If no variable lies on the grid.
    """
    require_dataset(ds)
    report = Report("this dataset")
    ds = to_canonical_grid(ds, report)
    report.raise_errors(_TASK)
    grid = grid_of(ds)
    if not isinstance(grid, Grid) or min(grid.shape) < 3 * patch or patch < 2:
        raise GridError(_TASK, [f"{grid}, patches of {patch} cells; needed latitudes and longitudes, three patches each way"])
    fields = {name: array for name, array in ds.items() if {*_AXES} <= set(array.dims) and array.dtype.kind == "f"}
    if not fields:
        raise SchemaError(_TASK, ["no variable has latitude and longitude as dimensions"])
    seams = {name: _by_place(array, patch, offset) for name, array in fields.items()}
    for name, array in seams.items():
        array.attrs = {"long_name": f"mean squared jump of {name} by place in the patch", "units": "1"}
    return xr.Dataset(seams).assign_attrs(title="patch seams", patch=patch)


def _by_place(field: xr.DataArray, patch: int, offset: tuple[int, int]) -> xr.DataArray:
    rows = []
    for axis, before in zip(_AXES, offset, strict=True):
        step = field.astype("f8").diff(axis, label="upper").drop_vars(_AXES, errors="ignore")
        jump = step.isel({axis: slice(1, -1)}) - (step.isel({axis: slice(2, None)}) + step.isel({axis: slice(-2)})) / 2
        places = xr.DataArray((np.arange(jump.sizes[axis]) + 2 + before) % patch, dims=axis, name="place")
        square = (jump**2).mean([dim for dim in jump.dims if dim != axis])
        rows.append(square.groupby(places).mean())
    table = xr.concat(rows, xr.DataArray(list(_AXES), dims="axis", name="axis"))
    return table / table.mean("place")
