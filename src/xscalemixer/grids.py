"""Horizontal grids as plain numbers: cell centers, bounds, areas, and where one lies in another."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from xscalemixer.errors import GridError
from xscalemixer.projections import EARTH_RADIUS, crs_of, to_projection

if TYPE_CHECKING:
    from pyproj import CRS

__all__ = ["CurvilinearGrid", "Grid", "cell_centers", "cell_edges", "cell_steps", "grid_of", "surroundings", "unit_vectors"]

_RECTILINEAR = 0.01  # share of a cell by which projected rows and columns may wander (rounded coordinates do)


@dataclass(frozen=True)
class Grid:
    """Rectilinear latitude-longitude grid given by its cell centers; latitudes need not be evenly spaced.

    Parameters
    ----------
    latitude : tuple of float, length H
        Degrees north, strictly north to south.
    longitude : tuple of float, length W
        Degrees east, strictly west to east, spanning less than 360 degrees; values may exceed 180 or 360.

    Raises
    ------
    GridError
        If the axes are not strictly ordered, leave the sphere, or have fewer than two points.
    """

    latitude: tuple[float, ...]
    longitude: tuple[float, ...]

    def __post_init__(self):
        object.__setattr__(self, "latitude", tuple(map(float, self.latitude)))
        object.__setattr__(self, "longitude", tuple(map(float, self.longitude)))
        lat, lon = np.array(self.latitude), np.array(self.longitude)
        problems = []
        if lat.size < 2 or lon.size < 2:
            problems.append(f"{lat.size} x {lon.size} points; needed at least 2 x 2")
        if not (np.isfinite(lat).all() and np.isfinite(lon).all()):
            problems.append("coordinates contain NaN or infinity")
        if np.abs(lat).max(initial=0) > 90 + 1e-6:
            problems.append(f"latitudes from {lat.min():g} to {lat.max():g}; needed -90..90 degrees")
        if np.any(np.diff(lat) >= 0):
            problems.append("latitude does not decrease strictly from north to south (duplicate or unsorted values)")
        if np.any(np.diff(lon) <= 0):
            problems.append("longitude does not increase strictly from west to east (duplicate or unsorted values)")
        if lon.size and lon[-1] - lon[0] >= 360 - 1e-9:
            problems.append(f"longitudes span {lon[-1] - lon[0]:g} degrees; drop the repeated cyclic column")
        if problems:
            raise GridError("this is not a latitude-longitude grid", problems)

    @classmethod
    def regular(cls, north: float | str, west: float | str, step: float | str, shape: tuple[int, int]) -> Grid:
        """Regular grid from the center of its north-west cell.

        Centers are ``origin + i * step`` in exact fractions, so 0.05 degree grids lose no row to rounding.

        >>> Grid.regular(54, 70, "0.05", (721, 1401)).longitude[-1]
        140.0
        """
        top, left, by = (Fraction(str(value)).limit_denominator(10**6) for value in (north, west, step))
        rows, columns = shape
        return cls(tuple(float(top - i * by) for i in range(rows)), tuple(float(left + j * by) for j in range(columns)))

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W): number of latitudes and longitudes."""
        return len(self.latitude), len(self.longitude)

    @cached_property
    def latitude_bounds(self) -> np.ndarray:
        """Cell edges, degrees north, shape (H + 1,), north to south, clipped at the poles.

        On a grid around the globe an outer row reaches the pole when no further row would fit in between, as on Gaussian
        grids (which have no row at the pole) and on global grids that leave a pole row out.
        """
        centers = np.array(self.latitude)
        edges = np.clip(cell_edges(centers), -90.0, 90.0)
        if self.periodic:
            north, south = (centers[0] - centers[1]) / 2, (centers[-2] - centers[-1]) / 2
            edges[0] = 90.0 if 90.0 - edges[0] <= north + 1e-6 else edges[0]
            edges[-1] = -90.0 if edges[-1] + 90.0 <= south + 1e-6 else edges[-1]
        return edges

    @cached_property
    def longitude_bounds(self) -> np.ndarray:
        """Cell edges, degrees east, shape (W + 1,), west to east."""
        return cell_edges(np.array(self.longitude))

    @cached_property
    def periodic(self) -> bool:
        """True when the last cell touches the first one around the globe."""
        west, east = self.longitude_bounds[[0, -1]]
        return bool(abs(east - west - 360) < 0.01 * np.diff(self.longitude).mean())

    @cached_property
    def area(self) -> np.ndarray:
        """Cell areas in m2, shape (H, W), from half-cell bounds of the actual grid on a sphere."""
        rows = -np.diff(np.sin(np.deg2rad(self.latitude_bounds)))
        columns = np.diff(np.deg2rad(self.longitude_bounds))
        return EARTH_RADIUS**2 * rows[:, None] * columns[None, :]

    @property
    def spacing(self) -> tuple[float, float]:
        """Mean distance of neighboring centers in degrees: (latitude, longitude)."""
        return float(-np.diff(self.latitude).mean()), float(np.diff(self.longitude).mean())

    def outside(self, other: Grid) -> float:
        """Share (0..1) of the cell centers of ``other`` that lie outside the cells of this grid."""
        return 1.0 - float(other.within(self).mean())

    def within(self, other: Grid) -> np.ndarray:
        """Cells of this grid whose center lies within the cells of ``other``, bool, shape (H, W)."""
        lat, lon = np.array(self.latitude), np.array(self.longitude)
        tolerance = 1e-6
        rows = (lat <= other.latitude_bounds[0] + tolerance) & (lat >= other.latitude_bounds[-1] - tolerance)
        west, east = other.longitude_bounds[[0, -1]]
        columns = (lon - west + tolerance) % 360 <= east - west + 2 * tolerance
        return rows[:, None] & (columns | other.periodic)[None, :]

    def to_dict(self) -> dict:
        """Plain data."""
        return {"latitude": list(self.latitude), "longitude": list(self.longitude)}

    @classmethod
    def from_dict(cls, data: dict) -> Grid:
        """Inverse of `to_dict`; unknown keys are an error."""
        return cls(**{key: tuple(values) for key, values in data.items()})

    def __str__(self) -> str:
        step = "{:.4g} x {:.4g} deg".format(*self.spacing)
        lat, lon = self.latitude, self.longitude
        return f"{self.shape[0]} x {self.shape[1]} ({step}, {lat[-1]:.2f}..{lat[0]:.2f} N, {lon[0]:.2f}..{lon[-1]:.2f} E)"


@dataclass(frozen=True, eq=False)
class CurvilinearGrid:
    """Grid with two-dimensional coordinates, on a map projection or not.

    Parameters
    ----------
    latitude, longitude : np.ndarray, shape (H, W)
        Cell centers in degrees north and east.
    crs : pyproj.CRS, optional
        Map projection in which rows and columns are straight and orthogonal; None when it is not known.

    Raises
    ------
    GridError
        If the coordinates are not two finite arrays of one shape, at least 2 x 2.
    """

    latitude: np.ndarray
    longitude: np.ndarray
    crs: CRS | None = None

    def __post_init__(self):
        object.__setattr__(self, "latitude", np.asarray(self.latitude, dtype=float))
        object.__setattr__(self, "longitude", np.asarray(self.longitude, dtype=float))
        problems = []
        if self.latitude.shape != self.longitude.shape or self.latitude.ndim != 2 or min(self.latitude.shape) < 2:
            shapes = f"latitude {self.latitude.shape} and longitude {self.longitude.shape}"
            problems.append(f"{shapes}; needed two arrays of one shape, at least 2 x 2")
        if not (np.isfinite(self.latitude).all() and np.isfinite(self.longitude).all()):
            problems.append("coordinates contain NaN or infinity; crop the dataset to where they are known")
        if np.abs(self.latitude).max(initial=0, where=np.isfinite(self.latitude)) > 90 + 1e-6:
            problems.append(f"latitudes up to {np.abs(self.latitude).max():g}; needed -90..90 degrees")
        if problems:
            raise GridError("this is not a curvilinear grid", problems)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W): number of rows and columns."""
        return self.latitude.shape

    @property
    def projection(self) -> str:
        """Kind of projection in words."""
        if self.crs is None:
            return "projection unknown"
        return self.crs.coordinate_operation.method_name if self.crs.coordinate_operation else self.crs.name

    @property
    def known_crs(self) -> CRS:
        """`crs`, where there must be one.

        Raises
        ------
        GridError
            If the projection is not known.
        """
        if self.crs is None:
            raise GridError(
                "this grid has no projected axes",
                ["the projection is not known; add one: ds['crs'] = xr.DataArray(0, attrs=pyproj.CRS(...).to_cf())"],
            )
        return self.crs

    @cached_property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Projected coordinates ``(y, x)``, shapes (H,) and (W,), m or (rotated poles) degrees.

        Raises
        ------
        GridError
            If the projection is not known, or rows or columns are not straight in it, to one hundredth of a cell.
        """
        y, x = to_projection(self.known_crs, self.latitude, self.longitude)
        if self.known_crs.is_geographic:
            x = np.unwrap(np.unwrap(x, period=360.0, axis=1), period=360.0, axis=0)
        axes = y.mean(axis=1), x.mean(axis=0)
        steps = [np.diff(axis) for axis in axes]
        off = max(
            np.abs(y - axes[0][:, None]).max() / np.abs(steps[0]).min(),
            np.abs(x - axes[1][None, :]).max() / np.abs(steps[1]).min(),
        )
        one_way = all(np.all(step > 0) or np.all(step < 0) for step in steps)
        if not (one_way and off <= _RECTILINEAR):
            raise GridError(
                f"the coordinates do not belong to the projection ({self.projection})",
                [f"rows and columns wander by {off:.2g} cells when projected; needed at most {_RECTILINEAR} of a cell. "
                 "Correct the grid_mapping (standard parallels, central longitude, shape of the earth)"],
            )  # fmt: skip
        return axes

    @cached_property
    def area(self) -> np.ndarray:
        """Cell areas in m2, shape (H, W), from the spacing of neighboring centers on a sphere."""
        return EARTH_RADIUS**2 * np.linalg.norm(np.cross(*np.gradient(self.points, axis=(0, 1))), axis=-1)

    @property
    def points(self) -> np.ndarray:
        """Cell centers as unit vectors, shape (H, W, 3)."""
        return unit_vectors(self.latitude, self.longitude)

    def __str__(self) -> str:
        step = np.sqrt(self.area.mean()) / 1000
        south, north = self.latitude.min(), self.latitude.max()
        return f"{self.shape[0]} x {self.shape[1]} curvilinear, {self.projection} ({step:.3g} km, {south:.2f}..{north:.2f} N)"


def grid_of(ds: xr.Dataset) -> Grid | CurvilinearGrid:
    """Describe the horizontal grid of a dataset in canonical form.

    Parameters
    ----------
    ds : xr.Dataset
        With coordinates ``latitude`` and ``longitude``, either 1-D dimensions or both 2-D over the same two dimensions.

    Returns
    -------
    Grid or CurvilinearGrid

    Raises
    ------
    GridError
        If the coordinates are missing, not of these forms, or not ordered.
    """
    missing = [name for name in ("latitude", "longitude") if name not in ds.coords]
    if missing:
        raise GridError(
            "the horizontal grid cannot be found",
            [f"no coordinate {' and '.join(missing)}; found {', '.join(map(str, ds.coords)) or 'none'}. "
             "Rename yours: ds.rename(lat='latitude', lon='longitude')"],
        )  # fmt: skip
    latitude, longitude = ds["latitude"], ds["longitude"]
    if latitude.dims == ("latitude",) and longitude.dims == ("longitude",):
        return Grid(tuple(latitude.values), tuple(longitude.values))
    if latitude.ndim == 2 and latitude.dims == longitude.dims:
        return CurvilinearGrid(latitude.values, longitude.values, crs_of(ds))
    raise GridError(
        "the horizontal grid cannot be used",
        [f"latitude has dimensions {latitude.dims} and longitude {longitude.dims}; needed ('latitude',) and ('longitude',), "
         "or the same two dimensions for both. Scattered points (stations, reduced Gaussian grids) must be gridded first"],
    )  # fmt: skip


def surroundings(grid: Grid, target: Grid | CurvilinearGrid, margin: int = 3) -> tuple[np.ndarray, np.ndarray, Grid]:
    """The part of a grid that lies over another one, with some cells around it.

    Parameters
    ----------
    grid : Grid
    target : Grid or CurvilinearGrid
    margin : int
        Cells around it: one is enough for interpolation, three for lapse rates, which see their neighbors.

    Returns
    -------
    rows, columns : array of int
    part : Grid
        Those rows and columns, longitudes counted as the target counts them; the whole grid where hardly less would be left.
    """
    latitude, longitude = cell_centers(target)
    unwrapped = np.unwrap(np.unwrap(longitude, period=360.0, axis=1), period=360.0, axis=0)
    west, width = unwrapped.min(), np.ptp(unwrapped)
    north_south, east_west = (margin * step for step in grid.spacing)
    rows = np.array(grid.latitude)
    rows = np.flatnonzero((rows >= latitude.min() - north_south) & (rows <= latitude.max() + north_south))
    offset = (np.array(grid.longitude) - west + east_west) % 360
    columns = np.argsort(offset)[: int((offset <= width + 2 * east_west).sum())]
    if width + 2 * east_west > 360 - grid.spacing[1] or min(rows.size, columns.size) < 2:
        return np.arange(grid.shape[0]), np.arange(grid.shape[1]), grid
    own = np.array(grid.longitude)[columns]
    turns = np.round((offset[columns] + west - east_west - own) / 360)
    return rows, columns, Grid(tuple(np.array(grid.latitude)[rows].tolist()), tuple((own + 360 * turns).tolist()))


def cell_centers(grid: Grid | CurvilinearGrid) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude of every cell in degrees, shape (H, W) each."""
    if isinstance(grid, CurvilinearGrid):
        return grid.latitude, grid.longitude
    latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    return latitude, longitude


def cell_steps(grid: Grid | CurvilinearGrid) -> np.ndarray:
    """Displacement on the ground from one cell to the next.

    Parameters
    ----------
    grid : Grid or CurvilinearGrid

    Returns
    -------
    array, shape (2, 2, H, W)
        m; first axis: to the next row, to the next column; second axis: eastward and northward part. Half the way between
        both neighbors, one-sided at the edges.
    """
    latitude, longitude = cell_centers(grid)
    lat, lon = np.deg2rad(latitude), np.deg2rad(longitude)
    ways = EARTH_RADIUS * np.stack(np.gradient(unit_vectors(latitude, longitude), axis=(0, 1)))
    east = np.stack([-np.sin(lon), np.cos(lon), np.zeros_like(lon)], axis=-1)
    north = np.stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)], axis=-1)
    return np.stack([(ways * east).sum(-1), (ways * north).sum(-1)], axis=1)


def cell_edges(centers: np.ndarray) -> np.ndarray:
    """Midpoints between centers, the outer cells as wide as their inner half says; shape (n,) -> (n + 1,)."""
    middle = (centers[:-1] + centers[1:]) / 2
    return np.concatenate([[2 * centers[0] - middle[0]], middle, [2 * centers[-1] - middle[-1]]])


def unit_vectors(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Positions in degrees as unit vectors from the center of the earth, shape (...) -> (..., 3)."""
    lat, lon = np.deg2rad(latitude), np.deg2rad(longitude)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)
