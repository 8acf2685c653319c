"""Variance by horizontal scale: whether a forecast keeps its small scales, or blurs with lead time."""

from __future__ import annotations

import numpy as np
import xarray as xr

from xscalemixer.conform import require_dataset
from xscalemixer.conform.grid import to_canonical_grid
from xscalemixer.errors import GridError, SchemaError
from xscalemixer.grids import CurvilinearGrid, grid_of
from xscalemixer.projections import EARTH_RADIUS
from xscalemixer.report import Report

__all__ = ["power_spectrum"]


def power_spectrum(ds: xr.Dataset) -> xr.Dataset:
    r"""Variance of fields by horizontal scale: radially summed squares of the discrete cosine transform.

    The transform of a box needs neither periodic edges nor a window. :math:`P(k) = \sum |F_{mn}|^2 / (H W)` over the waves
    with wavenumbers :math:`\sqrt{(m / 2 L_y)^2 + (n / 2 L_x)^2}` in the ring around k, without the mean; the sum over all
    rings is the variance of the field (each cell counting the same).

    Parameters
    ----------
    ds : Dataset
        Fields on a latitude-longitude grid, any other dims; distances are those at the mean latitude, so that the box should
        be small enough to be nearly flat.

    Returns
    -------
    Dataset
        Each horizontal variable with dims ``(..., wavenumber)``, in its units squared; lazy where ``ds`` is. ``wavenumber``
        in km-1 (centers of the rings) and ``wavelength`` in km. ``complete`` says which rings hold waves of all directions:
        those up to the shortest wave that both axes of the grid resolve.

    Raises
    ------
    GridError
        If the grid is curvilinear, or cannot be used.
    SchemaError
        If no variable lies on the grid.

    References
    ----------
    Denis, Cote and Laprise 2002, doi:10.1175/1520-0493(2002)130<1812:SDOTDA>2.0.CO;2.
    """
    require_dataset(ds)
    report = Report("this dataset")
    ds = to_canonical_grid(ds, report)
    report.raise_errors("a spectrum cannot be computed")
    grid = grid_of(ds)
    if isinstance(grid, CurvilinearGrid):
        raise GridError(
            "a spectrum cannot be computed", [f"{grid}; needed a latitude-longitude grid: xsm.regrid(ds, xsm.Grid.regular(...))"]
        )
    fields = {
        name: array for name, array in ds.items() if {"latitude", "longitude"} <= set(array.dims) and array.dtype.kind == "f"
    }
    if not fields:
        raise SchemaError("a spectrum cannot be computed", ["no variable has latitude and longitude as dimensions"])
    ring, centers, complete = _rings(grid)
    out = xr.apply_ufunc(
        lambda values: _radial_sums(values, ring, centers.size),
        xr.Dataset({name: array.chunk(latitude=-1, longitude=-1) if array.chunks else array for name, array in fields.items()}),
        input_core_dims=[["latitude", "longitude"]],
        output_core_dims=[["wavenumber"]],
        dask="parallelized",
        dask_gufunc_kwargs={"output_sizes": {"wavenumber": centers.size}},
        output_dtypes=[np.float64],
    )
    wavenumber = xr.Variable("wavenumber", centers, {"units": "km-1", "long_name": "horizontal wavenumber (cycles)"})
    wavelength = xr.Variable("wavenumber", 1 / centers, {"units": "km", "long_name": "wavelength"})
    for name, array in out.items():
        array.attrs = {"long_name": f"variance of {name} by scale"}
        if "units" in ds[name].attrs:
            array.attrs["units"] = f"({ds[name].attrs['units']})2"
    coords = {"wavenumber": wavenumber, "wavelength": wavelength, "complete": ("wavenumber", complete)}
    return out.assign_coords(coords).assign_attrs(title="power spectrum")


def _rings(grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ring of each wave, shape (H, W), -1 for the mean; wavenumbers of the rings' centers in km-1; which rings are complete."""
    north_south, east_west = (np.deg2rad(step) * EARTH_RADIUS / 1000 for step in grid.spacing)
    east_west *= np.cos(np.deg2rad(np.mean(grid.latitude)))
    rows, columns = grid.shape
    lengths = 2 * rows * north_south, 2 * columns * east_west
    wavenumber = np.hypot(np.arange(rows)[:, None] / lengths[0], np.arange(columns)[None, :] / lengths[1])
    width = 1 / min(lengths)
    ring = np.maximum(np.rint(wavenumber / width).astype(int), 1) - 1
    ring[0, 0] = -1
    centers = (np.arange(ring.max() + 1) + 1) * width
    return ring, centers, centers + width / 2 <= min(rows / lengths[0], columns / lengths[1])


def _radial_sums(values: np.ndarray, ring: np.ndarray, number: int) -> np.ndarray:
    """Fields (..., H, W) to variance in each ring (..., number)."""
    from scipy.fft import dctn

    power = dctn(values.astype("f8"), axes=(-2, -1), norm="ortho") ** 2 / ring.size
    flat = power.reshape(-1, ring.size)[:, ring.ravel() >= 0]
    places = ring[ring >= 0]
    sums = np.stack([np.bincount(places, weights=row, minlength=number) for row in flat])
    return sums.reshape(*values.shape[:-2], number)
