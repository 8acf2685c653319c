"""Shape of the terrain: slope, curvature, horizon and sky view of a field of heights on any orthogonal grid.

Plain numpy. ``steps`` says where a cell's neighbors are, see `xscalemixer.grids.cell_steps`; H and W are rows and columns.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates, uniform_filter

__all__ = [
    "HORIZON_REACH",
    "aspect",
    "azimuths",
    "curvature",
    "gradient",
    "horizon_angles",
    "per_meter",
    "roughness",
    "sky_view",
    "slope",
]

HORIZON_REACH = 100e3  # m; a ridge 3 km higher stands 1.3 degrees above the horizon at this distance
_CURVED_EARTH = 2 * 6_371_229.0  # m, twice the radius: the ground falls by distance squared over this


def gradient(height: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Slope of the ground toward east and north.

    Parameters
    ----------
    height : array, shape (H, W)
        m.
    steps : array, shape (2, 2, H, W)
        Displacement (east, north) in m to the next row (first) and the next column (second).

    Returns
    -------
    array, shape (2, H, W)
        Rise per distance, m m-1; centered differences, one-sided at the edges.
    """
    return np.einsum("ij...,i...->j...", per_meter(steps), np.stack(np.gradient(np.asarray(height, dtype=float))))


def slope(gradient: np.ndarray) -> np.ndarray:
    """Angle between the ground and the horizontal in radians, shape (2, H, W) -> (H, W)."""
    return np.arctan(np.hypot(*gradient))


def aspect(gradient: np.ndarray) -> np.ndarray:
    """Azimuth that the ground faces, downhill, in radians clockwise from north (0..2 pi), shape (2, H, W) -> (H, W)."""
    east, north = gradient
    return np.arctan2(-east, -north) % (2 * np.pi)


def curvature(height: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Height above the mean of opposite neighbors over their distance, mean of the four directions.

    Parameters
    ----------
    height : array, shape (H, W)
        m.
    steps : array, shape (2, 2, H, W)
        As for `gradient`.

    Returns
    -------
    array, shape (H, W)
        m m-1; positive on ridges, negative in valleys, zero on any plane.

    References
    ----------
    Liston and Elder (2006), doi:10.1175/JHM486.1, topographic curvature of the wind model, with one cell as the length scale.
    """
    padded = np.pad(np.asarray(height, dtype=float), 1, mode="reflect", reflect_type="odd")  # goes on like a plane
    rows, columns = padded.shape
    down, right = steps
    total = np.zeros(np.shape(height))
    for di, dj, way in ((1, 0, down), (0, 1, right), (1, 1, down + right), (1, -1, down - right)):
        ahead = padded[1 + di : rows - 1 + di, 1 + dj : columns - 1 + dj]
        behind = padded[1 - di : rows - 1 - di, 1 - dj : columns - 1 - dj]
        total += (height - (ahead + behind) / 2) / (2 * np.hypot(*way))
    return total / 4


def roughness(height: np.ndarray, reach: int = 2) -> np.ndarray:
    """Standard deviation of the heights around every cell, ``reach`` cells to each side, m: (H, W) -> (H, W).

    Beyond the edge of the grid the terrain goes on level.
    """
    height = np.asarray(height, dtype=float)
    height = height - height.mean()  # squares of large numbers would cancel
    mean, square = (uniform_filter(part, 2 * reach + 1, mode="nearest") for part in (height, height**2))
    return np.sqrt(np.maximum(square - mean**2, 0.0))


def azimuths(directions: int) -> np.ndarray:
    """Evenly spaced directions in radians clockwise from north, shape (N,)."""
    return 2 * np.pi * np.arange(directions) / directions


def horizon_angles(height: np.ndarray, steps: np.ndarray, directions: int = 16, reach: float = HORIZON_REACH) -> np.ndarray:
    """How high the terrain stands above the horizontal in every direction, as seen from the ground.

    Parameters
    ----------
    height : array, shape (H, W)
        m.
    steps : array, shape (2, 2, H, W)
        As for `gradient`.
    directions : int
        Number of azimuths, see `azimuths`.
    reach : float
        m; what is farther away is not looked at.

    Returns
    -------
    array, shape (N, H, W), float32
        Radians, at least 0.

    Notes
    -----
    Heights are interpolated bilinearly along each ray, cell by cell near the viewer and at 10 % of the distance farther out;
    the curvature of the earth is taken into account, refraction is not. Beyond the edge of the grid the terrain goes on level.

    References
    ----------
    Dozier and Frew (1990), doi:10.1109/36.58986, who define the horizon so; they find it by another algorithm.
    """
    height = np.asarray(height, dtype=np.float32)
    ways = per_meter(steps)
    cells = np.mgrid[: height.shape[0], : height.shape[1]].astype(float)
    highest = np.zeros((directions, *height.shape), dtype=np.float32)
    if np.ptp(height) == 0:
        return highest
    cell = float(np.median(np.hypot(steps[:, 0], steps[:, 1])))
    for tangent, azimuth in zip(highest, azimuths(directions), strict=True):
        ray = np.einsum("ij...,j->i...", ways, [np.sin(azimuth), np.cos(azimuth)])  # cells per meter
        for distance in _distances(cell, reach):
            seen = map_coordinates(height, cells + distance * ray, order=1, mode="nearest", prefilter=False)
            np.maximum(tangent, (seen - height) / distance - distance / _CURVED_EARTH, out=tangent)
    return np.arctan(highest, out=highest)


def sky_view(gradient: np.ndarray, horizon: np.ndarray) -> np.ndarray:
    """Share of the diffuse light of an even sky that reaches the ground, per area of the ground.

    Parameters
    ----------
    gradient : array, shape (2, H, W)
        From `gradient`.
    horizon : array, shape (N, H, W)
        Radians, from `horizon_angles`.

    Returns
    -------
    array, shape (H, W)
        1 on an open plain, (1 + cos(slope)) / 2 on an open slope.

    References
    ----------
    Dozier and Frew (1990), doi:10.1109/36.58986, eq. 7b.
    """
    tilt = slope(gradient)
    total = np.zeros_like(tilt)
    for angle, azimuth in zip(horizon, azimuths(len(horizon)), strict=True):
        uphill = gradient[0] * np.sin(azimuth) + gradient[1] * np.cos(azimuth)
        zenith = np.pi / 2 - np.maximum(angle, np.arctan(uphill))  # the slope itself hides the sky behind it
        facing = -uphill / np.maximum(np.hypot(*gradient), 1e-12)
        total = total + np.cos(tilt) * np.sin(zenith) ** 2
        total = total + np.sin(tilt) * facing * (zenith - np.sin(zenith) * np.cos(zenith))
    return total / len(horizon)


def per_meter(steps: np.ndarray) -> np.ndarray:
    """Rows and columns per meter: inverse of ``steps``, shape (2, 2, H, W).

    The first axis is (row, column), the second (east, north); zero where a grid has no extent, as at the poles.
    """
    (a, b), (c, d) = steps
    size = a * d - b * c
    inverse = np.array([[d, -c], [-b, a]])
    return np.divide(inverse, size, out=np.zeros_like(inverse), where=np.abs(size) > 1e-6 * np.abs(size).max())


def _distances(cell: float, reach: float) -> list[float]:
    """Where to look along a ray, m."""
    distances = [cell]
    while distances[-1] < reach:
        distances.append(distances[-1] + max(cell, 0.1 * distances[-1]))
    return distances
