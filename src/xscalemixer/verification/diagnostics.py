"""What one number cannot tell: events above thresholds, where the truth falls among the members, and variance by scale."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

import numpy as np
import xarray as xr

from xscalemixer.conform import require_dataset
from xscalemixer.conform.grid import to_canonical_grid
from xscalemixer.errors import GridError, InputError, SchemaError
from xscalemixer.grids import CurvilinearGrid, grid_of
from xscalemixer.projections import EARTH_RADIUS
from xscalemixer.report import Report
from xscalemixer.verification.alignment import Aligned, CommonGrid, Region, align

__all__ = ["brier", "fss", "power_spectrum", "rank_histogram"]


def brier(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    variable: str,
    thresholds: float | Sequence[float],
    *,
    fair: bool = False,
    region: Region | None = None,
    grid: CommonGrid = "coarser",
) -> xr.DataArray:
    r"""Brier score of the event "at or above a threshold", by `scores.probability.brier_score_for_ensemble`.

    :math:`E \langle (k / M - o)^2 \rangle`, with k of M members in the event and o = 1 if it happened, else 0; units 1. The
    fair score subtracts :math:`k (M - k) / (M^2 (M - 1))`.

    Parameters
    ----------
    forecast, truth, region, grid
        As for `xscalemixer.score`.
    variable : str
        Catalog name.
    thresholds : float or sequence of float
        In canonical units.
    fair : bool
        What an infinite ensemble would score; for one member the same.

    Returns
    -------
    DataArray
        Dims ``(threshold, lead_time, [level])``, averaged over starts and, weighted with area, over cells.

    References
    ----------
    Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2; Ferro 2014, doi:10.1002/qj.2270.
    """
    from scores.probability import brier_score_for_ensemble

    one, report = _single(forecast, truth, variable, region, grid)
    field = one.forecast[variable] if "member" in one.forecast.dims else one.forecast[variable].expand_dims("member")
    field = field.where(field.notnull().all("member"))
    levels = [float(level) for level in np.atleast_1d(thresholds)]
    kept = [dim for dim in one.truth[variable].dims if dim not in one.area.dims]
    keywords = {"weights": one.area, "preserve_dims": kept, "fair_correction": fair, "event_threshold_operator": operator.ge}
    out = brier_score_for_ensemble(field, one.truth[variable], "member", levels, **keywords).mean("reference_time").compute()
    return _described(out.rename(variable), "Brier score", report).transpose("threshold", "lead_time", ...)


def fss(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    variable: str,
    threshold: float,
    windows: int | Sequence[int],
    *,
    region: Region | None = None,
    grid: CommonGrid = "coarser",
) -> xr.DataArray:
    r"""Fractions skill score of the event "at or above a threshold", by `scores.spatial.fss_2d`.

    :math:`1 - E (P_f - P_a)^2 / (E P_f^2 + E P_a^2)`, with P the share of event cells in a square window around each cell
    inside the area; 1 is perfect, 0 no overlap at that scale; units 1. Sums run over starts and members before the division.

    Parameters
    ----------
    forecast, truth, region, grid
        As for `xscalemixer.score`.
    variable : str
        Catalog name.
    threshold : float
        In canonical units.
    windows : int or sequence of int
        Widths of the window in cells.

    Returns
    -------
    DataArray
        Dims ``(window, lead_time, [level])``. All cells count the same. The variable is read into memory.

    Raises
    ------
    SchemaError
        If values are missing: a gap is neither event nor none.

    References
    ----------
    Roberts and Lean 2008, doi:10.1175/2007MWR2123.1.
    """
    from scores.spatial import fss_2d

    one, report = _single(forecast, truth, variable, region, grid)
    field, target = one.forecast[variable].compute(), one.truth[variable].compute()
    gaps = int(field.isnull().sum() + target.isnull().sum())
    if gaps:
        raise SchemaError(
            "the fractions skill score cannot be computed", [f"{gaps} values of {variable} are missing; crop with region="]
        )
    target = target.expand_dims(member=field["member"]) if "member" in field.dims else target
    sizes = [int(window) for window in np.atleast_1d(windows)]
    most = min(field.sizes[dim] for dim in one.area.dims)
    if not all(1 <= size <= most for size in sizes):
        raise InputError("the fractions skill score cannot be computed", [f"windows={sizes}; needed 1 to {most} cells"])
    kept = [dim for dim in target.dims if dim not in (*one.area.dims, "reference_time", "member")]
    keywords = {
        "event_threshold": threshold,
        "spatial_dims": one.area.dims,
        "preserve_dims": kept,
        "threshold_operator": np.greater_equal,
    }
    parts = [fss_2d(field, target.transpose(*field.dims), window_size=(size, size), **keywords) for size in sizes]
    out = xr.concat(parts, xr.Variable("window", sizes, {"units": "1", "long_name": "width in cells"}))
    return _described(out.rename(variable), "fractions skill score", report).transpose("window", "lead_time", ...)


def rank_histogram(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    *,
    variables: Iterable[str] | None = None,
    region: Region | None = None,
    grid: CommonGrid = "coarser",
) -> xr.Dataset:
    """Where the truth falls among the members, by `scores.probability.rank_histogram`.

    Parameters
    ----------
    forecast, truth, variables, region, grid
        As for `xscalemixer.score`; the forecast has two or more members.

    Returns
    -------
    Dataset
        Relative frequency (sums to 1) of ``rank`` 1..M+1, dims ``(rank, lead_time, [level])``; flat if reliable, raised at
        both ends if members are too close. Cells count with their area; the ranks of ties share one count.

    Raises
    ------
    InputError
        If there is one member only.

    References
    ----------
    Hamill 2001, doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2.
    """
    from scores.probability import rank_histogram as histogram

    aligned, report = align({"forecast": forecast}, truth, variables=variables, region=region, grid=grid)
    one = aligned["forecast"]
    if one.forecast.sizes.get("member", 1) < 2:
        raise InputError("a rank histogram cannot be made", ["the forecast has one member; needed two or more"])
    out = {}
    for name, field in one.forecast.items():
        kept = [dim for dim in one.truth[name].dims if dim not in (*one.area.dims, "reference_time")]
        out[name] = histogram(field, one.truth[name], "member", preserve_dims=kept, weights=one.area).compute()
    return _described(xr.Dataset(out), "relative frequency", report).transpose("rank", "lead_time", ...)


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
        in km-1 (centers of the rings) and ``wavelength`` in km.

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
    ring, centers = _rings(grid)
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
    return out.assign_coords(wavenumber=wavenumber, wavelength=wavelength)


def _rings(grid) -> tuple[np.ndarray, np.ndarray]:
    """Ring of each wave, shape (H, W), -1 for the mean; and wavenumbers of the rings' centers in km-1."""
    north_south, east_west = (np.deg2rad(step) * EARTH_RADIUS / 1000 for step in grid.spacing)
    east_west *= np.cos(np.deg2rad(np.mean(grid.latitude)))
    rows, columns = grid.shape
    lengths = 2 * rows * north_south, 2 * columns * east_west
    wavenumber = np.hypot(np.arange(rows)[:, None] / lengths[0], np.arange(columns)[None, :] / lengths[1])
    width = 1 / min(lengths)
    ring = np.maximum(np.rint(wavenumber / width).astype(int), 1) - 1
    ring[0, 0] = -1
    return ring, (np.arange(ring.max() + 1) + 1) * width


def _radial_sums(values: np.ndarray, ring: np.ndarray, number: int) -> np.ndarray:
    """Fields (..., H, W) to variance in each ring (..., number)."""
    from scipy.fft import dctn

    power = dctn(values.astype("f8"), axes=(-2, -1), norm="ortho") ** 2 / ring.size
    flat = power.reshape(-1, ring.size)[:, ring.ravel() >= 0]
    places = ring[ring >= 0]
    sums = np.stack([np.bincount(places, weights=row, minlength=number) for row in flat])
    return sums.reshape(*values.shape[:-2], number)


def _single(forecast: xr.Dataset, truth: xr.Dataset, variable: str, region, grid) -> tuple[Aligned, Report]:
    aligned, report = align({"forecast": forecast}, truth, variables=[variable], region=region, grid=grid)
    return aligned["forecast"], report


def _described(out, long_name: str, report: Report):
    for array in [out] if isinstance(out, xr.DataArray) else out.values():
        array.attrs = {"long_name": long_name, "units": "1"}
    return out.assign_attrs(report=repr(report))
