"""Lapse rate of surface temperature, from the field itself."""

from __future__ import annotations

from itertools import product

import numpy as np

from xscalemixer.physics.pressure import LAPSE_RATE

__all__ = ["LAPSE_RATE_BOUNDS", "LAPSE_RATE_SPREAD", "local_lapse_rate"]

LAPSE_RATE_SPREAD = 1.5e-3  # K m-1; monthly rates in the Cascades lie between 2.5 and 7.5 K km-1, Minder et al. (2010)
LAPSE_RATE_BOUNDS = (0.0, 9.8e-3)  # K m-1, from isothermal to dry adiabatic: inversions are not carried to higher ground
_REACH = 2  # cells to each side
_NOISE = 1e-3  # K; keeps a perfect fit finite


def local_lapse_rate(temperature: np.ndarray, height: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Decrease of temperature with height around every cell.

    Parameters
    ----------
    temperature : array, shape (..., H, W)
        K.
    height : array, shape (H, W)
        m, of the same cells.
    steps : array, shape (2, 2, H, W)
        Displacement (east, north) in m to the next row and the next column.

    Returns
    -------
    array, shape (..., H, W), float32
        K m-1, positive where it gets colder upward, within `LAPSE_RATE_BOUNDS`; the standard 6.5 K km-1 where a neighbor is NaN.

    Notes
    -----
    Least squares of T = a + b x + c y - L z over 5 x 5 cells, so that a horizontal gradient is not taken for a lapse rate.
    L is then the Bayesian mean of that estimate, with the variance that its residuals imply, and of the prior
    6.5 +- 1.5 K km-1: a plain, or a field that has little to do with height, gets the standard rate; a linear world its own.

    References
    ----------
    Regression on neighboring cells is common for reanalyses, e.g. Gao et al. (2012), doi:10.5194/hess-16-4661-2012. Spread of
    observed rates: Minder et al. (2010), doi:10.1029/2009JD013493.
    """
    inside, planes, heights = _windows(np.asarray(height, dtype=float), steps)
    temperature = np.asarray(temperature, dtype=float)
    padded = np.pad(temperature, [(0, 0)] * (temperature.ndim - 2) + [(_REACH, _REACH)] * 2, mode="edge")
    rows, columns = height.shape
    squares = covariance = 0.0
    projections = [0.0, 0.0, 0.0]
    for k, (i, j) in enumerate(product(range(2 * _REACH + 1), repeat=2)):
        difference = (padded[..., i : i + rows, j : j + columns] - temperature) * inside[k]
        squares = squares + difference**2
        covariance = covariance + heights[k] * difference
        projections = [sum_ + plane[k] * difference for sum_, plane in zip(projections, planes, strict=True)]
    variance_of_height = (heights**2).sum(axis=0)
    explained = covariance**2 / np.maximum(variance_of_height, 1e-6)
    residual = np.maximum(squares - sum(p**2 for p in projections) - explained, 0.0)
    scatter = residual / np.maximum(inside.sum(axis=0) - 4, 1) + _NOISE**2
    doubt = scatter / LAPSE_RATE_SPREAD**2
    rate = (LAPSE_RATE * doubt - covariance) / (variance_of_height + doubt)
    return np.clip(np.where(np.isfinite(rate), rate, LAPSE_RATE), *LAPSE_RATE_BOUNDS).astype(np.float32)


def _windows(height: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neighbors of every cell, n = 25 of them.

    Returns
    -------
    inside : array of 0 and 1, shape (n, H, W)
        Neighbors within the grid.
    planes : array, shape (3, n, H, W)
        Orthonormal basis of all planes over the neighbors.
    heights : array, shape (n, H, W)
        Heights of the neighbors in m without their mean and their tilt.
    """
    rows, columns = np.indices(height.shape)
    offsets = np.array(list(product(range(-_REACH, _REACH + 1), repeat=2)))
    i, j = (axis + offsets[:, k, None, None] for k, axis in enumerate((rows, columns)))
    inside = ((i >= 0) & (i < height.shape[0]) & (j >= 0) & (j < height.shape[1])).astype(float)
    relative = (height[np.clip(i, 0, height.shape[0] - 1), np.clip(j, 0, height.shape[1] - 1)] - height) * inside
    places = np.einsum("nk,kd...->dn...", offsets, steps) / np.abs(steps).max()
    design = np.stack([inside, *(places * inside)])
    planes = np.moveaxis(np.linalg.qr(np.moveaxis(design, (0, 1), (-1, -2)))[0], (-1, -2), (0, 1))
    tilt = np.einsum("pn...,n...->p...", planes, relative)
    return inside, planes, (relative - np.einsum("pn...,p...->n...", planes, tilt)) * inside
