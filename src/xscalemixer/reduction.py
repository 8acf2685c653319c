"""Reduction to sea level by the standard atmosphere: what temperature and pressure are beside the height of their place.

Over mountains the spread of surface pressure is that of the relief: a hundred hectopascals, of which the weather is one or two.
A network that is to learn the weather does better with what is left when the standard atmosphere at the height of each
cell is taken out, and what it has learned moves to another relief more easily.
"""

from __future__ import annotations

import numpy as np

from xscalemixer.physics.pressure import standard_pressure, standard_temperature
from xscalemixer.variables import Schema

__all__ = ["REDUCED", "changes", "to_sea_level"]

REDUCED = ("t2m", "sp")  # channels that change


def changes(schema: Schema, height: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Offset and factor of the channels that change, by their number: reduced = (field - offset) / factor.

    Parameters
    ----------
    schema : Schema
    height : array, any shape, m

    Returns
    -------
    dict of (offset, factor), arrays of that shape, float32
        ``t2m`` is reduced with the lapse rate of the ICAO standard atmosphere, ``sp`` by the ratio of its pressures.
    """
    found = {}
    for channel, name in enumerate(schema.channels):
        if name in REDUCED:
            offset, factor = np.zeros(height.shape, "f4"), np.ones(height.shape, "f4")
            if name == "t2m":
                offset[...] = standard_temperature(height) - standard_temperature(0.0)
            else:
                factor[...] = standard_pressure(height) / standard_pressure(0.0)
            found[channel] = offset, factor
    return found


def to_sea_level(schema: Schema, height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offset and factor of each channel: reduced = (field - offset) / factor; channels that do not change have 0 and 1.

    Parameters
    ----------
    schema : Schema
    height : array, shape (h, w), m

    Returns
    -------
    offset, factor : array, shape (C, h, w), float32
    """
    shape = (len(schema), *height.shape)
    offset, factor = np.zeros(shape, "f4"), np.ones(shape, "f4")
    for channel, pair in changes(schema, height).items():
        offset[channel], factor[channel] = pair
    return offset, factor
