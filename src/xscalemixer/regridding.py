"""Regridding: bilinear and conservative weights as sparse matrices, applied lazily."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import xarray as xr

from xscalemixer.errors import GridError
from xscalemixer.grids import CurvilinearGrid, Grid, cell_centers, cell_edges, grid_of, unit_vectors
from xscalemixer.projections import EARTH_RADIUS, grid_mappings, is_grid_relative, to_projection

if TYPE_CHECKING:
    from pyproj import CRS
    from scipy.sparse import csr_array

__all__ = ["Regridder", "interpolation", "point_weights", "regrid"]

Method = Literal["auto", "bilinear", "bicubic", "conservative"]
Backend = Literal["auto", "builtin", "xesmf"]
_Places = tuple[np.ndarray, np.ndarray, np.ndarray]

_COARSER = 2.0  # "auto" averages when target cells are at least this many times as large
_WHOLE = 0.99  # share of a cell inside the source from which on it counts as inside: coordinates are rounded
_SLACK = 1e-6  # share of a cell by which rounded coordinates may miss a center or an edge
_GRIB_GEOMETRY = (
    "gridType", "gridDefinitionDescription", "numberOfPoints", "Nx", "Ny", "Ni", "Nj", "N", "pl", "DxInMetres", "DyInMetres",
    "iDirectionIncrementInDegrees", "jDirectionIncrementInDegrees", "iScansNegatively", "jScansPositively",
    "jPointsAreConsecutive",
    "latitudeOfFirstGridPointInDegrees", "latitudeOfLastGridPointInDegrees", "latitudeOfSouthernPoleInDegrees",
    "longitudeOfFirstGridPointInDegrees", "longitudeOfLastGridPointInDegrees", "longitudeOfSouthernPoleInDegrees",
    "LaDInDegrees", "LoVInDegrees", "Latin1InDegrees", "Latin2InDegrees", "angleOfRotationInDegrees",
    "orientationOfTheGridInDegrees", "projectionCentreFlag", "shapeOfTheEarth", "radius", "uvRelativeToGrid",
)  # fmt: skip


def interpolation(source: Grid | CurvilinearGrid, target: Grid | CurvilinearGrid) -> Literal["bicubic", "bilinear"]:
    """The smoothest method there is: without kinks where both grids have latitudes and longitudes as axes."""
    return "bicubic" if isinstance(source, Grid) and isinstance(target, Grid) else "bilinear"


@dataclass(frozen=True)
class _Separable:
    """Weights of a rectilinear source: one matrix per axis, shapes (h, H) and (w, W)."""

    rows: csr_array
    columns: csr_array

    @cached_property
    def coverage(self) -> np.ndarray:
        """Share of each target cell (or 0/1 of each target center) that the source covers, shape (h, w)."""
        return np.outer(self.rows.sum(axis=1), self.columns.sum(axis=1))

    @cached_property
    def _cropped(self):
        """Both matrices without the source rows and columns that no target needs, and these as slices."""
        used = [slice(m.indices.min(), m.indices.max() + 1) for m in (self.rows, self.columns)]
        return self.rows[:, used[0]], self.columns[:, used[1]], (..., *used)

    def __call__(self, fields: np.ndarray) -> np.ndarray:
        """Map fields of shape (N, H, W) to (N, h, w)."""
        rows, columns, used = self._cropped
        rows, columns = rows.astype(fields.dtype), columns.astype(fields.dtype)
        out = np.empty((len(fields), rows.shape[0], columns.shape[0]), fields.dtype)
        # Field by field: all at once needs transposed copies of everything, measured 2-6 times slower at 721 x 1440.
        for target, source in zip(out, fields[used], strict=True):
            target[:] = rows @ (columns @ source.T).T
        return out


@dataclass(frozen=True)
class _General:
    """Weights of any source: one matrix of shape (h * w, H * W) over flattened grids."""

    matrix: csr_array
    shape: tuple[int, int]

    @cached_property
    def coverage(self) -> np.ndarray:
        """As for `_Separable`."""
        return self.matrix.sum(axis=1).reshape(self.shape)

    @cached_property
    def _single(self):
        return self.matrix.astype(np.float32)

    def __call__(self, fields: np.ndarray) -> np.ndarray:
        """Map fields of shape (N, H, W) to (N, h, w)."""
        matrix = self._single if fields.dtype == np.float32 else self.matrix
        flat = matrix @ fields.reshape(len(fields), -1).T
        return np.ascontiguousarray(flat.T).reshape(len(fields), *self.shape)


@dataclass(frozen=True)
class Regridder:
    """Weights from one grid to another, to be applied to any number of fields.

    Parameters
    ----------
    source, target : Grid or CurvilinearGrid
    method : "auto", "bilinear", "bicubic" or "conservative"
        "auto" is replaced by "conservative" when target cells are at least twice as large as source cells, else by
        "bilinear", which is all there is onto a curvilinear grid. "bicubic" needs latitudes and longitudes on both sides.
    min_valid : float
        Conservative: a target cell needs this share of its area inside the source, and this share of that free of NaN.
    backend : "auto", "builtin" or "xesmf"
        What computes the weights. "auto" uses xESMF only for what the library cannot do itself: bilinear from a
        curvilinear grid without a known projection.

    Raises
    ------
    GridError
        If the grids do not overlap, or nothing available can compute the weights.

    Notes
    -----
    Bilinear from a rectilinear grid is linear in latitude and in longitude; from a projected grid it is linear in the
    projected coordinates. Target centers outside the outermost source centers but still inside the source's cells take
    the value of the edge (for the pole row of a grid without one: that of the outermost latitude). Any NaN among the
    source cells with weight gives NaN.

    Bicubic goes through the values of the source without a kink: along each axis a cubic Hermite polynomial whose slopes are
    centered differences (Keys 1981, doi:10.1109/TASSP.1981.1163711, on even axes). It is exact for planes, goes beyond its
    neighbors beside sharp edges, and its gaps are a cell wider.

    Conservative from a rectilinear grid is the exact area mean on the sphere: overlaps of longitude times overlaps of the
    sine of latitude. From a curvilinear grid it is an approximation: every source cell is split into up to 4 x 4 pieces,
    and each counts with its area for the target cell that holds its center.

    Outside the source the result is NaN, never 0.
    """

    source: Grid | CurvilinearGrid
    target: Grid | CurvilinearGrid
    method: Method = "auto"
    min_valid: float = 0.5
    backend: Backend = "auto"
    weights: _Separable | _General = field(default=None, repr=False, compare=False)  # type: ignore[assignment]

    def __post_init__(self):
        _check_choice("method", self.method, Method)
        _check_choice("backend", self.backend, Backend)
        if not 0 < self.min_valid <= 1:
            raise GridError("this regridding is not known", [f"min_valid={self.min_valid}; needed a share above 0 and up to 1"])
        if self.method == "auto":
            coarser = isinstance(self.target, Grid) and _cell_ratio(self.source, self.target) >= _COARSER
            object.__setattr__(self, "method", "conservative" if coarser else "bilinear")
        if self.weights is None:
            object.__setattr__(self, "weights", _build(self.source, self.target, self.method, self.backend))
        if not self.covered.any():
            raise GridError(
                "these grids do not overlap",
                [f"source {self.source}, target {self.target}; needed a target inside the source"],
            )

    @classmethod
    def from_weights(
        cls, path: str | Path, source: Grid | CurvilinearGrid, target: Grid, *, method: Literal["bilinear", "conservative"]
    ) -> Regridder:
        """Read weights that xESMF or ESMF wrote: variables ``S``, ``row`` and ``col`` (from 1) in a NetCDF file.

        Parameters
        ----------
        path : str or Path
        source, target : Grid or CurvilinearGrid, Grid
            The grids the weights were made for, in the same orientation (canonical: north to south).
        method : "bilinear" or "conservative"
            How they were made; decides how NaN are treated.

        Raises
        ------
        GridError
            If the file is not a weights file, or does not carry the coordinates of ``source`` to those of ``target``.
        """
        with xr.open_dataset(path) as file:
            missing = [name for name in ("S", "row", "col") if name not in file]
            if missing:
                found = ", ".join(map(str, file.variables))
                raise GridError(f"{path} is not a weights file", [f"no {', '.join(missing)}; found {found}. Needed S, row, col"])
            values, rows, columns = file["S"].values, file["row"].values - 1, file["col"].values - 1
        shape = _size(target), _size(source)
        if min(rows.min(), columns.min()) < 0 or rows.max() >= shape[0] or columns.max() >= shape[1]:
            found = f"cells up to {rows.max() + 1} and {columns.max() + 1}"
            raise GridError(
                f"the weights in {path} are for other grids", [f"{found}; the target has {shape[0]}, the source {shape[1]}"]
            )
        weights = _General(_sparse(values, rows, columns, shape), target.shape)
        _check_weights(weights, source, target, path)
        return cls(source, target, method, weights=weights)

    @cached_property
    def covered(self) -> np.ndarray:
        """Target cells that the source reaches (interpolated), or covers enough of (conservative); bool, shape (h, w)."""
        share = self.min_valid if self.method == "conservative" else 0.0
        return self.weights.coverage > max(share - _SLACK, _SLACK)

    @cached_property
    def whole(self) -> np.ndarray:
        """Target cells of `covered` that lie wholly inside the source (interpolated: all of them); bool, shape (h, w)."""
        if self.method != "conservative" or isinstance(self.target, CurvilinearGrid):  # averages are for a Grid only
            return self.covered
        if isinstance(self.source, Grid):
            return self.covered & (self.weights.coverage > _WHOLE)
        return self.covered & ~_cut(self.source, self.target)

    def __call__(self, fields: np.ndarray) -> np.ndarray:
        """Regrid an array of shape (..., H, W) to (..., h, w); floating dtypes are kept, others become floating.

        Raises
        ------
        GridError
            If the last two dimensions are not those of the source grid.
        """
        if fields.shape[-2:] != self.source.shape:
            rows, columns = self.source.shape
            raise GridError("this array is not on the source grid", [f"shape {fields.shape}; needed (..., {rows}, {columns})"])
        dtype = np.result_type(fields.dtype, np.float32)
        flat = np.asarray(fields, dtype).reshape(-1, *self.source.shape)
        out = self._average(flat) if self.method == "conservative" else self.weights(flat)
        out[:, ~self.covered] = np.nan
        return out.reshape(*fields.shape[:-2], *self.target.shape)

    def _average(self, fields: np.ndarray) -> np.ndarray:
        """Mean over the valid part of each target cell, NaN where that is too small; (N, H, W) -> (N, h, w)."""
        coverage = self.weights.coverage.astype(fields.dtype)
        missing = np.isnan(fields)
        if missing.any():
            total = self.weights(np.where(missing, fields.dtype.type(0), fields))
            valid = self.weights((~missing).astype(fields.dtype))
        else:
            total, valid = self.weights(fields), coverage
        enough = (valid > 0) & (valid >= (self.min_valid - _SLACK) * coverage)
        return np.divide(total, valid, out=np.full_like(total, np.nan), where=np.broadcast_to(enough, total.shape))


def regrid(
    ds: xr.Dataset,
    target: Grid | CurvilinearGrid | Regridder,
    *,
    method: Method = "auto",
    backend: Backend = "auto",
) -> xr.Dataset:
    """Bring every horizontal field of a dataset onto another grid.

    Parameters
    ----------
    ds : xr.Dataset
        Canonical: coordinates ``latitude`` (north to south) and ``longitude`` (west to east), 1-D or both 2-D. Winds must
        be eastward and northward already, see `xscalemixer.projections.rotate_winds`.
    target : Grid, CurvilinearGrid or Regridder
        Where to; a `Regridder` brings its own weights, method and backend.
    method, backend : str
        See `Regridder`.

    Returns
    -------
    xr.Dataset
        Same variables, attributes, dtypes and other coordinates, with ``latitude`` and ``longitude`` (``y`` and ``x`` on a
        curvilinear grid) as the last two dimensions; lazy where ``ds`` is, in chunks of whole fields. NaN outside the source.
        The attribute ``regridding``
        says what was done. Descriptions of the source grid (its bounds, grid mapping, GRIB grid keys) are left behind.

    Raises
    ------
    GridError
        If the grid cannot be used, variables lie along one horizontal dimension only, or winds are relative to the grid.
    """
    source = grid_of(ds)
    if isinstance(target, Regridder) and (method, backend) != ("auto", "auto"):
        raise GridError("method and backend belong to the regridder", ["leave them out, or give the target as a Grid"])
    regridder = target if isinstance(target, Regridder) else Regridder(source, target, method, backend=backend)
    if not _same(source, regridder.source):
        raise GridError("these weights are for another grid", [f"dataset on {source}; weights from {regridder.source}"])
    dims = ds["latitude"].dims if isinstance(source, CurvilinearGrid) else ("latitude", "longitude")
    fields = _without_source_grid(ds, dims)
    coordinates = [name for name in fields.coords if set(dims) <= set(fields[name].dims)]
    fields = fields.reset_coords(coordinates)
    _check_fields(fields, dims, source)
    moved = {name: _move(array, regridder, dims) if set(dims) <= set(array.dims) else array for name, array in fields.items()}
    out = fields.drop_vars(moved).assign(moved).set_coords(coordinates).assign_coords(_coordinates(regridder.target))
    return out.assign_attrs(regridding=f"{regridder.method} from {source} to {regridder.target}")


def _move(array: xr.DataArray, regridder: Regridder, dims: tuple[Hashable, ...]) -> xr.DataArray:
    """Regrid one variable over all its other dimensions at once, lazily if it is lazy."""
    if array.chunks is not None:
        array = array.chunk(dict.fromkeys(dims, -1))
    target = ("y", "x") if isinstance(regridder.target, CurvilinearGrid) else ("latitude", "longitude")
    sizes = dict(zip(target, regridder.target.shape, strict=True))
    moved = xr.apply_ufunc(
        regridder,
        array,
        input_core_dims=[dims],
        output_core_dims=[target],
        exclude_dims=set(dims),
        keep_attrs=True,
        dask="parallelized",
        dask_gufunc_kwargs={"output_sizes": sizes},
        output_dtypes=[np.result_type(array.dtype, np.float32)],
    )
    geometry = {"grid_mapping", *(f"GRIB_{key}" for key in _GRIB_GEOMETRY)}
    moved.attrs = {key: value for key, value in array.attrs.items() if key not in geometry}
    return moved


def _without_source_grid(ds: xr.Dataset, dims: tuple[Hashable, ...]) -> xr.Dataset:
    """Drop what describes the source grid: its axes, their bounds, its grid mapping."""
    axes = {name for name, coordinate in ds.coords.items() if len(set(dims) & set(coordinate.dims)) == 1}
    axes |= {"latitude", "longitude"}
    bounds = {ds[name].attrs.get("bounds", ds[name].encoding.get("bounds")) for name in axes}
    return ds.drop_vars((axes | bounds | set(grid_mappings(ds))) & set(ds.variables))


def _check_fields(fields: xr.Dataset, dims: tuple[Hashable, ...], source: Grid | CurvilinearGrid) -> None:
    """Raise one GridError that lists every variable that cannot be regridded."""
    problems = []
    for name, array in fields.items():
        along = [str(dim) for dim in array.dims if dim in dims]
        if len(along) == 1:
            problems.append(f"{name} varies along {along[0]} only; average it yourself or drop it: ds.drop_vars({name!r})")
        elif along and array.dtype.kind not in "fiub":
            problems.append(f"{name} has dtype {array.dtype}; needed numbers. Drop it: ds.drop_vars({name!r})")
        elif along and isinstance(source, CurvilinearGrid) and is_grid_relative(array):
            problems.append(f"{name} is a wind along the axes of the grid; needed eastward and northward. Use rotate_winds")
    if problems:
        raise GridError("this dataset cannot be regridded", problems)


def _coordinates(grid: Grid | CurvilinearGrid) -> dict[str, xr.Variable]:
    latitude = {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north", "axis": "Y"}
    longitude = {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east", "axis": "X"}
    if isinstance(grid, CurvilinearGrid):
        attributes = {"latitude": latitude, "longitude": longitude}
        del latitude["axis"], longitude["axis"]
        places = {name: xr.Variable(("y", "x"), getattr(grid, name), attrs) for name, attrs in attributes.items()}
        return places if grid.crs is None else {**places, "crs": xr.Variable((), 0, grid.crs.to_cf())}
    return {
        "latitude": xr.Variable("latitude", np.array(grid.latitude), latitude),
        "longitude": xr.Variable("longitude", np.array(grid.longitude), longitude),
    }


def _check_choice(name: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        allowed = ", ".join(map(repr, get_args(choices)))
        raise GridError("this regridding is not known", [f"{name}={value!r}; needed one of {allowed}"])


def _same(one: Grid | CurvilinearGrid, other: Grid | CurvilinearGrid) -> bool:
    if isinstance(one, Grid) or isinstance(other, Grid):
        return one == other
    return one.shape == other.shape and np.allclose(one.points, other.points, rtol=0, atol=1e-8)


def _points(grid: Grid | CurvilinearGrid) -> np.ndarray:
    """Cell centers as unit vectors, shape (H, W, 3)."""
    return unit_vectors(*cell_centers(grid))


def _axes(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    return np.array(grid.latitude), np.array(grid.longitude)


def _size(grid: Grid | CurvilinearGrid) -> int:
    return grid.shape[0] * grid.shape[1]


def _cell_ratio(source: Grid | CurvilinearGrid, target: Grid) -> float:
    """Area of target cells over that of source cells, both at the latitudes of the source."""
    size = target.spacing[0] * target.spacing[1]
    if isinstance(source, Grid):
        return size / (source.spacing[0] * source.spacing[1])
    shrink = np.cos(np.deg2rad(source.latitude)).mean()
    return float(EARTH_RADIUS**2 * np.deg2rad(1.0) ** 2 * size * shrink / source.area.mean())


def _build(source: Grid | CurvilinearGrid, target: Grid | CurvilinearGrid, method: str, backend: str) -> _Separable | _General:
    if method == "conservative" and isinstance(target, CurvilinearGrid):
        raise GridError(
            "cells of a curvilinear grid cannot be averaged over",
            ["needed method='bilinear', or a target on a latitude-longitude grid: xsm.Grid.regular(north, west, step, shape)"],
        )
    if backend == "xesmf":
        return _xesmf(source, target, method)
    if method == "bicubic":
        return _bicubic(source, target)
    if method == "conservative" and isinstance(target, Grid):
        return _overlaps(source, target) if isinstance(source, Grid) else _pieces(source, target)
    if isinstance(source, Grid):
        return _bilinear(source, target) if isinstance(target, Grid) else _scattered(source, target)
    if source.crs is not None:
        return _projected(source, target, source.crs)
    if backend == "auto" and all(find_spec(name) for name in ("xesmf", "esmpy")):
        return _xesmf(source, target, method)
    raise GridError(
        "bilinear weights from this curvilinear grid cannot be computed",
        [
            "the projection is not known; needed one of: a grid_mapping variable in the dataset "
            "(ds['crs'] = xr.DataArray(0, attrs=pyproj.CRS(...).to_cf())); xESMF (conda install -c conda-forge xesmf); "
            "a weights file (Regridder.from_weights); or method='conservative' onto a coarser grid"
        ],
    )


def _bilinear(source: Grid, target: Grid) -> _Separable:
    (latitude, longitude), (to_latitude, to_longitude) = _axes(source), _axes(target)
    rows = _locate(latitude, source.latitude_bounds, to_latitude)
    columns = _locate(longitude, source.longitude_bounds, to_longitude, wrap=True, periodic=source.periodic)
    return _Separable(_interpolation(*rows, latitude.size), _interpolation(*columns, longitude.size))


def _bicubic(source: Grid | CurvilinearGrid, target: Grid | CurvilinearGrid) -> _Separable:
    if not (isinstance(source, Grid) and isinstance(target, Grid)):
        raise GridError(
            "method 'bicubic' cannot be used here",
            ["it needs latitudes and longitudes as axes on both sides; use method='bilinear'"],
        )
    (latitude, longitude), (to_latitude, to_longitude) = _axes(source), _axes(target)
    rows = _locate(latitude, source.latitude_bounds, to_latitude)
    columns = _locate(longitude, source.longitude_bounds, to_longitude, wrap=True, periodic=source.periodic)
    return _Separable(_hermite(*rows, latitude, False), _hermite(*columns, longitude, source.periodic))


def _scattered(source: Grid, target: CurvilinearGrid) -> _General:
    """Bilinear in latitude and longitude, at points that follow neither."""
    latitude, longitude = _axes(source)
    rows = _locate(latitude, source.latitude_bounds, target.latitude.ravel())
    wrap = {"wrap": True, "periodic": source.periodic}
    columns = _locate(longitude, source.longitude_bounds, target.longitude.ravel(), **wrap)
    return _General(_corners(rows, columns, source.shape), target.shape)


def _projected(source: CurvilinearGrid, target: Grid | CurvilinearGrid, crs: CRS) -> _General:
    """Bilinear in the plane of the projection, where rows and columns are straight."""
    y_axis, x_axis = source.axes
    y, x = to_projection(crs, *(coordinate.ravel() for coordinate in cell_centers(target)))
    rows = _locate(y_axis, cell_edges(y_axis), y)
    columns = _locate(x_axis, cell_edges(x_axis), x, wrap=crs.is_geographic)
    return _General(_corners(rows, columns, source.shape), target.shape)


def point_weights(source: Grid | CurvilinearGrid, latitude: np.ndarray, longitude: np.ndarray) -> csr_array:
    """Bilinear weights from a grid to scattered points.

    Parameters
    ----------
    source : Grid or CurvilinearGrid
        Rectilinear, or with a known projection.
    latitude, longitude : np.ndarray, shape (N,)
        Degrees; longitudes in any convention.

    Returns
    -------
    csr_array, shape (N, H * W)
        Rows sum to 1; rows of points outside the outermost centers are empty, so nothing is extrapolated.

    Raises
    ------
    GridError
        If the grid is curvilinear and its projection is not known.
    """
    if isinstance(source, Grid):
        (y_axis, x_axis), y, x, wrap = _axes(source), latitude, longitude, True
    else:
        (y_axis, x_axis), crs = source.axes, source.known_crs
        (y, x), wrap = to_projection(crs, latitude, longitude), crs.is_geographic
    rows = _locate(y_axis, y_axis, np.asarray(y))
    periodic = isinstance(source, Grid) and source.periodic
    columns = _locate(x_axis, x_axis, np.asarray(x), wrap=wrap, periodic=periodic)
    return _corners(rows, columns, source.shape)


def _corners(rows: _Places, columns: _Places, shape: tuple[int, int]) -> csr_array:
    """Matrix (N, H * W) of the four cells around each point; rows of points outside are empty."""
    corners = [
        (wy * wx, row * shape[1] + column)
        for wy, row in ((1 - rows[1], rows[0]), (rows[1], rows[0] + 1))
        for wx, column in ((1 - columns[1], columns[0]), (columns[1], (columns[0] + 1) % shape[1]))
    ]
    inside = rows[2] & columns[2]
    weights, places = (np.concatenate([part[inside] for part in parts]) for parts in zip(*corners, strict=True))
    targets = np.tile(np.flatnonzero(inside), 4)
    return _sparse(weights, targets, places, (inside.size, shape[0] * shape[1]))


def _locate(axis: np.ndarray, edges: np.ndarray, points: np.ndarray, *, wrap: bool = False, periodic: bool = False) -> _Places:
    """Where points lie between the centers of an axis.

    Parameters
    ----------
    axis, edges : np.ndarray, shapes (n,) and (n + 1,)
        Cell centers and edges, both ascending or both descending.
    points : np.ndarray, shape (m,)
    wrap : bool
        Coordinates are degrees of longitude: any multiple of 360 may be added.
    periodic : bool
        The last cell touches the first one.

    Returns
    -------
    left : np.ndarray of int, shape (m,)
        Number of the center before each point.
    fraction : np.ndarray, shape (m,)
        How far on the way to the next center, 0..1; constant beyond the outer centers.
    inside : np.ndarray of bool, shape (m,)
        Within the outer edges.
    """
    if axis[0] > axis[-1]:
        axis, edges, points = -axis, -edges, -points
    slack = _SLACK * np.diff(axis).min()
    if periodic:
        axis = np.append(axis, axis[0] + 360.0)
        edges = axis
    if wrap:
        points = (points - edges[0] + slack) % 360.0 + edges[0] - slack
    inside = (points >= edges[0] - slack) & (points <= edges[-1] + slack)
    points = np.clip(np.where(inside, points, axis[0]), axis[0], axis[-1])
    left = np.clip(np.searchsorted(axis, points, side="right") - 1, 0, axis.size - 2)
    fraction = (points - axis[left]) / (axis[left + 1] - axis[left])
    nearest = np.round(fraction)
    return left, np.where(np.abs(fraction - nearest) < _SLACK, nearest, fraction), inside


def _interpolation(left: np.ndarray, fraction: np.ndarray, inside: np.ndarray, size: int):
    """Matrix (m, size) of linear interpolation along one axis; rows of points outside are empty."""
    left, fraction, targets = left[inside], fraction[inside], np.flatnonzero(inside)
    weights, places = np.concatenate([1 - fraction, fraction]), np.concatenate([left, (left + 1) % size])
    return _sparse(weights, np.tile(targets, 2), places, (inside.size, size))


def _hermite(left: np.ndarray, fraction: np.ndarray, inside: np.ndarray, axis: np.ndarray, periodic: bool):
    """Matrix (m, size) of cubic Hermite interpolation along an axis, slopes by centered differences; rows outside are empty."""
    size = axis.size
    steps = np.diff(axis, append=axis[0] + 360.0) if periodic else np.diff(axis)
    ends, places = np.arange(size), np.arange(steps.size)
    secants = _sparse(
        np.concatenate([-1 / steps, 1 / steps]),
        np.tile(places, 2),
        np.concatenate([places, (places + 1) % size]),
        (steps.size, size),
    )
    before, after = (ends - 1) % size if periodic else np.maximum(ends - 1, 0), ends if periodic else np.minimum(ends, size - 2)
    share = steps[after] / (steps[before] + steps[after])  # the nearer neighbor tells more; exact for parabolas
    slopes = (
        _sparse(np.concatenate([share, 1 - share]), np.tile(ends, 2), np.concatenate([before, after]), (size, steps.size))
        @ secants
    )
    t, low, targets = fraction[inside], left[inside], np.flatnonzero(inside)
    pick = lambda weights, which: _sparse(weights, targets, which % size, (inside.size, size))
    rise = t**2 * (3 - 2 * t)
    values = pick(1 - rise, low) + pick(rise, low + 1)
    return values + (pick(t * (1 - t) ** 2 * steps[low], low) + pick(t**2 * (t - 1) * steps[low], low + 1)) @ slopes


def _overlaps(source: Grid, target: Grid) -> _Separable:
    """Shares of target cells covered by source cells: longitude times sine of latitude."""
    sines = (-np.sin(np.deg2rad(grid.latitude_bounds)) for grid in (source, target))
    return _Separable(_overlap(*sines), _overlap(source.longitude_bounds, target.longitude_bounds, wrap=True))


def _overlap(source: np.ndarray, target: np.ndarray, *, wrap: bool = False):
    """Matrix (m, n): share of each target interval that lies in each source interval, from ascending edges (n+1,), (m+1,)."""
    cuts = source
    if wrap:  # one turn less to one turn more cover the target, whatever convention its longitudes are in
        source = source - 360.0 * np.round((source[0] - target[0]) / 360.0)
        cuts = np.concatenate([source - 360.0, source, source + 360.0])
    cuts = np.union1d(target, cuts[(cuts > target[0]) & (cuts < target[-1])])
    lengths, middles = np.diff(cuts), (cuts[:-1] + cuts[1:]) / 2
    targets = np.searchsorted(target, middles) - 1
    offsets = middles - source[0]
    sources = np.searchsorted(source - source[0], offsets % 360.0 if wrap else offsets) - 1
    inside = (sources >= 0) & (sources < source.size - 1)
    weights = lengths / np.diff(target)[targets]
    return _sparse(weights[inside], targets[inside], sources[inside], (target.size - 1, source.size - 1))


def _pieces(source: CurvilinearGrid, target: Grid) -> _General:
    """Every source cell in n x n pieces, each with its area in the target cell that holds its center."""
    number = int(np.clip(np.ceil(4 / np.sqrt(_cell_ratio(source, target))), 1, 4))
    offsets = (np.arange(number) + 0.5) / number - 0.5
    points = source.points
    down, right = np.gradient(points, axis=(0, 1))
    share = source.area.ravel() / number**2
    total = 0
    for i, j in product(offsets, offsets):
        cell, inside = _cell_of(target, (points + i * down + j * right).reshape(-1, 3))
        weights = share[inside] / target.area.ravel()[cell[inside]]
        total = total + _sparse(weights, cell[inside], np.flatnonzero(inside), (_size(target), _size(source)))
    return _General(total, target.shape)


def _cut(source: CurvilinearGrid, target: Grid) -> np.ndarray:
    """Target cells that the outline of the source runs through; bool, shape (h, w)."""
    points, along = source.points, np.linspace(-0.5, 0.5, 5)
    down, right = np.gradient(points, axis=(0, 1))
    outline = []
    for side, out in ((0, -1.5 + _WHOLE), (-1, 1.5 - _WHOLE)):  # a little outside, where it does not cut cells that end there
        outline += [points[side] + out * down[side] + step * right[side] for step in along]
        outline += [points[:, side] + out * right[:, side] + step * down[:, side] for step in along]
    cell, inside = _cell_of(target, np.concatenate(outline))
    cut = np.zeros(target.shape, bool)
    cut.flat[cell[inside]] = True
    return cut


def _cell_of(grid: Grid, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat number of the cell that holds each point (N, 3), of about unit length, and whether there is one."""
    x, y, z = points.T
    latitude, longitude = np.rad2deg(np.arctan2(z, np.hypot(x, y))), np.rad2deg(np.arctan2(y, x))
    west = grid.longitude_bounds[0]
    row = np.searchsorted(-grid.latitude_bounds, -latitude, side="right") - 1
    column = np.searchsorted(grid.longitude_bounds - west, (longitude - west) % 360.0, side="right") - 1
    inside = (row >= 0) & (row < grid.shape[0]) & (column < grid.shape[1])
    return row * grid.shape[1] + column, inside


def _xesmf(source: Grid | CurvilinearGrid, target: Grid | CurvilinearGrid, method: str) -> _General:
    """Weights from xESMF, where it works."""
    if method == "conservative" and isinstance(source, CurvilinearGrid):
        raise GridError(
            "xESMF cannot make conservative weights here",
            ["the corners of curvilinear cells are not known; use backend='builtin' or Regridder.from_weights"],
        )
    with suppress(ImportError):
        import netCDF4  # noqa: F401 - two HDF5 libraries: a wheel of netCDF4 loaded after esmpy ends the process
    try:
        import xesmf
    except (ImportError, KeyError, OSError) as error:  # the last two: esmpy without its esmf.mk
        raise GridError(
            "backend 'xesmf' cannot be used",
            [f"{type(error).__name__}: {error}. pip cannot install the ESMF library it needs; "
             "type: conda install -c conda-forge xesmf, or leave out backend='xesmf'"],
        ) from error  # fmt: skip
    periodic = isinstance(source, Grid) and source.periodic
    regridder = xesmf.Regridder(
        _xesmf_grid(source), _xesmf_grid(target), method, periodic=periodic and method == "bilinear", unmapped_to_nan=False
    )
    return _General(regridder.weights.data.to_scipy_sparse().tocsr(), target.shape)


def _xesmf_grid(grid: Grid | CurvilinearGrid) -> dict[str, np.ndarray]:
    if isinstance(grid, CurvilinearGrid):
        return {"lat": grid.latitude, "lon": grid.longitude}
    latitude, longitude = _axes(grid)
    return {"lat": latitude, "lon": longitude, "lat_b": grid.latitude_bounds, "lon_b": grid.longitude_bounds}


def _check_weights(weights: _General, source: Grid | CurvilinearGrid, target: Grid, path: str | Path) -> None:
    """Raise unless the weights carry source positions to target positions, within a cell."""
    covered = weights.coverage > 0
    moved = np.moveaxis(weights(np.moveaxis(_points(source), -1, 0)), 0, -1)[covered]
    moved /= np.maximum(np.linalg.norm(moved, axis=-1, keepdims=True), 1e-12)
    off = np.linalg.norm(moved - _points(target)[covered], axis=-1) * EARTH_RADIUS
    cell = np.sqrt(max(source.area.max(), target.area.max()))
    if covered.any() and np.median(off) > cell:
        raise GridError(
            f"the weights in {path} are for other grids",
            [f"they move points by {np.median(off) / 1000:.0f} km (median); needed the grids they were made for, in the same "
             "orientation (latitude north to south)"],
        )  # fmt: skip


def _sparse(weights: np.ndarray, targets: np.ndarray, sources: np.ndarray, shape: tuple[int, int]):
    """Sparse matrix in row form without stored zeros (a zero weight must not let a NaN through)."""
    from scipy.sparse import csr_array

    matrix = csr_array((weights, (targets, sources)), shape=shape)
    matrix.eliminate_zeros()
    return matrix
