"""How certain a difference of two models is: a paired block bootstrap over the starts of the forecasts."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

__all__ = ["block_length", "resampled_counts", "segment_lengths"]

_GAP = 3.0  # medians of the interval between starts


def block_length(starts: int) -> int:
    """Default number of successive starts that are drawn together: the cube root of their number, rounded up.

    References
    ----------
    Künsch 1989, doi:10.1214/aos/1176347265; Wilks 1997, doi:10.1175/1520-0442(1997)010<0065:RHTFAF>2.0.CO;2.
    """
    return int(np.ceil(round(starts ** (1 / 3), 9)))


def segment_lengths(times: np.ndarray) -> np.ndarray:
    """Numbers of successive starts without a gap between them.

    A gap is an interval of more than three times the median interval: winter and summer are not one spell of weather.

    Parameters
    ----------
    times : array of datetime64, shape (N,)
        In order.

    Returns
    -------
    array of int
        Sum N.
    """
    steps = np.diff(times)
    gaps = np.flatnonzero(steps > _GAP * np.median(steps)) + 1 if steps.size else []
    return np.diff([0, *gaps, len(times)])


def resampled_counts(lengths: ArrayLike, draws: int, block: int, seed: int) -> xr.DataArray:
    """How often each start occurs in each of many resamples made of circular blocks of successive starts.

    Blocks keep forecasts together that see the same weather; the circle lets every start occur equally often (Politis and
    Romano 1992). Each segment is a circle of its own, so that no block spans a gap; a segment shorter than a block is drawn
    as a whole. Used for two models alike, the resamples are paired.

    Parameters
    ----------
    lengths : array of int
        Starts in each segment, see `segment_lengths`.
    draws : int
        Number of resamples.
    block : int
        Starts in a block.
    seed : int
        Of the random numbers.

    Returns
    -------
    xr.DataArray, dims (draw, reference_time)
        Each row sums to the number of starts.
    """
    lengths = np.asarray(lengths)
    starts = int(lengths.sum())
    length = np.repeat(lengths, lengths)  # of the segment that each start is in
    origin = np.repeat(np.cumsum(lengths) - lengths, lengths)
    number = -(-starts // min(block, int(lengths.min())))
    chance = 1 / np.minimum(block, length)  # blocks of short segments are shorter, hence more of them
    first = np.random.default_rng(seed).choice(starts, size=(draws, number, 1), p=chance / chance.sum())
    step = np.arange(block)
    chosen = origin[first] + (first - origin[first] + step) % length[first]
    taken = (step < length[first]).reshape(draws, -1)
    taken &= taken.cumsum(axis=1) <= starts
    counts = np.zeros((draws, starts))
    np.add.at(counts, (np.nonzero(taken)[0], chosen.reshape(draws, -1)[taken]), 1.0)
    return xr.DataArray(counts, dims=("draw", "reference_time"))
