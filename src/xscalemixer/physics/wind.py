"""Wind near the ground over relief: speed and direction by slope and curvature, and conservation of mass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.fft import dct, idct

from xscalemixer.physics.terrain import per_meter

__all__ = ["CURVATURE_WEIGHT", "LAYER_DEPTH", "SLOPE_WEIGHT", "MassBalance", "layer_depth", "over_relief"]

# SnowModel defaults (snowmodel.par): the two add up to one, so that speeds change by at most a half.
SLOPE_WEIGHT = 0.58
CURVATURE_WEIGHT = 0.42
LEAST_RELIEF = 0.05  # m m-1; gentler terrain than this is not stretched to full weights
LAYER_DEPTH = 2000.0  # m, layer that has to pass over or around the relief: a deep mixed layer over mountains


def over_relief(u: np.ndarray, v: np.ndarray, gradient: np.ndarray, curvature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Faster on ridges and windward slopes, slower in valleys and lees, and turned along the slopes.

    Parameters
    ----------
    u, v : array, shape (..., H, W)
        Eastward and northward wind in m s-1.
    gradient : array, shape (2, H, W)
        Slope toward east and north, from `xscalemixer.physics.terrain.gradient`.
    curvature : array, shape (H, W)
        From `xscalemixer.physics.terrain.curvature`.

    Returns
    -------
    u, v : array, shape (..., H, W)

    Notes
    -----
    With slope angle b and aspect x of the ground and direction t from which the wind comes, W = 1 + 0.58 S + 0.42 C,
    S = b cos(t - x) and C the curvature, both scaled to -0.5..0.5 by the largest in the domain; the direction turns by
    -0.5 S sin(2 (x - t)) (Ryan 1977). As the scale is that of the domain, the same hill counts for more among lower ones.
    Ours: slopes and curvatures are never scaled by less than 0.05, or ripples on a plain would become mountains.

    References
    ----------
    Liston and Elder (2006), doi:10.1175/JHM486.1, wind speed and direction model. Ryan (1977),
    doi:10.1175/1520-0450(1977)016<0571:AMMFDA>2.0.CO;2.
    """
    steepness = np.hypot(*gradient)
    angle = np.arctan(steepness).astype(np.result_type(u, np.float32))
    facing = -np.divide(gradient, steepness, out=np.zeros_like(gradient), where=steepness > 0).astype(angle.dtype)  # downhill
    speed = np.hypot(u, v)
    inverse = 1 / np.maximum(speed, 1e-6)
    from_east, from_north = -u * inverse, -v * inverse
    along = from_east * facing[0] + from_north * facing[1]  # cos(t - x)
    across = facing[0] * from_north - facing[1] * from_east  # sin(x - t)
    sloping = angle / (2 * max(float(angle.max()), LEAST_RELIEF)) * along
    curved = (curvature / (2 * max(np.abs(curvature).max(), LEAST_RELIEF))).astype(angle.dtype)
    weight = 1 + SLOPE_WEIGHT * sloping + CURVATURE_WEIGHT * curved
    turn = -0.5 * sloping * 2 * across * along
    sin, cos = weight * np.sin(turn), weight * np.cos(turn)
    return u * cos + v * sin, v * cos - u * sin


def layer_depth(rise: np.ndarray) -> np.ndarray:
    """Depth in m of the layer between relief and its smooth lid, from the height in m of the relief above the smooth terrain.

    `LAYER_DEPTH` less the rise for small rises, and by exponential continuation never zero; rises count up to `LAYER_DEPTH`.
    """
    return LAYER_DEPTH * np.exp(-np.clip(rise / LAYER_DEPTH, -1.0, 1.0))


@dataclass(frozen=True)
class MassBalance:
    """Smallest change of the flow in a layer over relief that lets it pass without piling up.

    Parameters
    ----------
    depth : array, shape (H, W)
        Depth of the layer in m, see `layer_depth`; single precision is enough, and then that of the result.
    steps : array, shape (2, 2, H, W)
        Displacement (east, north) in m to the next row and the next column; rows and columns at right angles.
    length : float
        m; divergence on larger scales than this is left to vertical motion, so that the coarse flow is kept.

    Notes
    -----
    Fluxes U = depth (u, v) change by dU so that the integral of |dU|^2 + length^2 (div(U + dU) - D)^2 is least, D being the
    divergence that the undisturbed flow has in the undisturbed layer. Then dU = grad(p) with
    div(grad(p)) - p / length^2 = D - div(U), solved by cosine transforms along the rows and elimination across them, with
    spacings averaged along each row.

    References
    ----------
    Sasaki (1970), doi:10.1175/1520-0493(1970)098<0875:SBFINV>2.3.CO;2: weak constraints. Sherman (1978),
    doi:10.1175/1520-0450(1978)017<0312:AMCMFW>2.0.CO;2: mass-consistent winds. Dickerson (1978),
    doi:10.1175/1520-0450(1978)017<0241:MMCAFM>2.0.CO;2: fluxes in one layer between relief and a lid.
    """

    depth: np.ndarray
    steps: np.ndarray
    length: float

    def divergence(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Horizontal divergence, in the unit of ``u`` per m, shape (..., H, W)."""
        along_row, along_column = (self._ways[k, 0] * u + self._ways[k, 1] * v for k in (0, 1))
        rows = np.gradient(self._area * along_row, axis=-2)
        return (rows + np.gradient(self._area * along_column, axis=-1)) / self._area

    def __call__(self, u: np.ndarray, v: np.ndarray, free_u: np.ndarray, free_v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Adjust a wind.

        Parameters
        ----------
        u, v : array, shape (..., H, W)
            Wind over the relief in m s-1.
        free_u, free_v : array, shape (..., H, W)
            Undisturbed wind in m s-1; its divergence is kept.

        Returns
        -------
        u, v : array, shape (..., H, W)
        """
        excess = self.divergence(*(self.depth * ours - LAYER_DEPTH * free for ours, free in ((u, free_u), (v, free_v))))
        excess = np.where(np.isfinite(excess), excess, 0.0)  # beside a gap nothing is known; the wind in it stays NaN
        slopes = np.stack(np.gradient(self._solve(-excess), axis=(-2, -1)))
        east, north = (self._ways[0, k] * slopes[0] + self._ways[1, k] * slopes[1] for k in (0, 1))
        return u + east / self.depth, v + north / self.depth

    @cached_property
    def _ways(self) -> np.ndarray:
        return per_meter(self.steps).astype(self.depth.dtype)

    @cached_property
    def _area(self) -> np.ndarray:
        (a, b), (c, d) = self.steps
        return np.maximum(np.abs(a * d - b * c), 1.0).astype(self.depth.dtype)

    @cached_property
    def _elimination(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row areas (H, 1), conductances between rows (H - 1, 1), and pivots (H, W) for every wavenumber."""
        area = self._area.mean(axis=1, keepdims=True, dtype=float)
        (down, right) = (np.hypot(*way).mean(axis=1, keepdims=True) for way in self.steps)
        between = area / down**2
        between = (between[1:] + between[:-1]) / 2
        width = self.depth.shape[1]
        waves = 2 * np.cos(np.pi * np.arange(width) / width) - 2
        diagonal = area / np.maximum(right, 1.0) ** 2 * waves - area / self.length**2
        diagonal[1:] -= between
        diagonal[:-1] -= between
        pivots = diagonal.copy()
        for row in range(1, len(pivots)):
            pivots[row] -= between[row - 1] ** 2 / pivots[row - 1]
        return tuple(part.astype(self.depth.dtype) for part in (area, between, pivots))

    def _solve(self, source: np.ndarray) -> np.ndarray:
        """Potential p of div(grad(p)) - p / length^2 = source, no flux through the edges; shape (..., H, W)."""
        area, between, pivots = self._elimination
        p = np.moveaxis(dct(area * source, axis=-1, norm="ortho"), -2, 0)
        for row in range(1, len(p)):
            p[row] -= between[row - 1] / pivots[row - 1] * p[row - 1]
        p[-1] /= pivots[-1]
        for row in range(len(p) - 2, -1, -1):
            p[row] = (p[row] - between[row] * p[row + 1]) / pivots[row]
        return idct(np.moveaxis(p, 0, -2), axis=-1, norm="ortho")
