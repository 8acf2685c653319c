"""Horizontal grids as plain numbers: cell centers, bounds, areas, and where one lies in another."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from xscalemixer.errors import GridError

__all__ = ["Grid"]

EARTH_RADIUS = 6_371_229.0  # m, the sphere of GRIB edition 2 code table 3.2, entry 6


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
        north, west, step = (Fraction(str(value)).limit_denominator(10**6) for value in (north, west, step))
        rows, columns = shape
        return cls(tuple(float(north - i * step) for i in range(rows)), tuple(float(west + j * step) for j in range(columns)))

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W): number of latitudes and longitudes."""
        return len(self.latitude), len(self.longitude)

    @cached_property
    def latitude_bounds(self) -> np.ndarray:
        """Cell edges, degrees north, shape (H + 1,), north to south, clipped at the poles."""
        return np.clip(_edges(np.array(self.latitude)), -90.0, 90.0)

    @cached_property
    def longitude_bounds(self) -> np.ndarray:
        """Cell edges, degrees east, shape (W + 1,), west to east."""
        return _edges(np.array(self.longitude))

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
        lat, lon = np.array(other.latitude), np.array(other.longitude)
        tolerance = 1e-6
        rows = (lat <= self.latitude_bounds[0] + tolerance) & (lat >= self.latitude_bounds[-1] - tolerance)
        west, east = self.longitude_bounds[[0, -1]]
        columns = (lon - west + tolerance) % 360 <= east - west + 2 * tolerance
        if self.periodic:
            columns[:] = True
        return 1.0 - rows.mean() * columns.mean()

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


def _edges(centers: np.ndarray) -> np.ndarray:
    """Midpoints between centers, the outer cells as wide as their inner half says; shape (n,) -> (n + 1,)."""
    middle = (centers[:-1] + centers[1:]) / 2
    return np.concatenate([[2 * centers[0] - middle[0]], middle, [2 * centers[-1] - middle[-1]]])
