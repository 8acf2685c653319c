"""How certain a difference of two models is: a paired block bootstrap over the starts of the forecasts."""

from __future__ import annotations

import numpy as np
import xarray as xr

__all__ = ["block_length", "resampled_counts"]


def block_length(starts: int) -> int:
    """Default number of successive starts that are drawn together: the cube root of their number, rounded up.

    References
    ----------
    Künsch 1989, doi:10.1214/aos/1176347265; Wilks 1997, doi:10.1175/1520-0442(1997)010<0065:RHTFAF>2.0.CO;2.
    """
    return int(np.ceil(round(starts ** (1 / 3), 9)))


def resampled_counts(starts: int, draws: int, block: int, seed: int) -> xr.DataArray:
    """How often each start occurs in each of many resamples made of circular blocks of successive starts.

    Blocks keep forecasts together that see the same weather; the circle lets every start occur equally often (Politis and
    Romano 1992). Used for two models alike, the resamples are paired.

    Parameters
    ----------
    starts : int
        Number of starts, in order of time.
    draws : int
        Number of resamples.
    block : int
        Starts in a block.
    seed : int
        Of the random numbers.

    Returns
    -------
    xr.DataArray, dims (draw, reference_time)
        Each row sums to ``starts``.
    """
    number = -(-starts // block)
    first = np.random.default_rng(seed).integers(starts, size=(draws, number, 1))
    chosen = ((first + np.arange(block)) % starts).reshape(draws, -1)[:, :starts]
    counts = np.zeros((draws, starts))
    np.add.at(counts, (np.arange(draws)[:, None], chosen), 1.0)
    return xr.DataArray(counts, dims=("draw", "reference_time"))
