"""Hydrostatics: geopotential, pressure between altitudes, and values below the ground.

All functions take and return numpy arrays, xarray objects or dask arrays of any shape that broadcasts.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

__all__ = [
    "GRAVITY",
    "LAPSE_RATE",
    "R_DRY",
    "extend_geopotential",
    "geopotential",
    "hypsometric_pressure",
    "pressure_at_altitude",
    "standard_geopotential",
    "standard_pressure",
    "standard_temperature",
]

Array = TypeVar("Array", bound=Any)

GRAVITY = 9.80665  # m s-2, exact by definition (WMO)
R_DRY = 287.0597  # J kg-1 K-1, dry air, IFS documentation Part IV
LAPSE_RATE = 0.0065  # K m-1, ICAO standard atmosphere


def geopotential(height: Array) -> Array:
    """Geopotential in m2 s-2 from geopotential height in m (gpm)."""
    return height * GRAVITY


def pressure_at_altitude(pressure: Array, altitude_from: Array, altitude_to: Array, temperature_to: Array) -> Array:
    """Move pressure from one altitude to another below or above it (hypsometric equation, standard lapse rate).

    Parameters
    ----------
    pressure : array
        Pa, at ``altitude_from``.
    altitude_from, altitude_to : array
        m.
    temperature_to : array
        Air temperature at ``altitude_to`` in K.

    Returns
    -------
    array
        Pressure at ``altitude_to`` in Pa.

    Notes
    -----
    With T linear in height, p2 = p1 (T2 / T1)^(g / (R L)), where T1 = T2 + L (z2 - z1).

    >>> round(pressure_at_altitude(101325.0, 0.0, 1000.0, 281.65))
    89875
    """
    temperature_from = temperature_to + LAPSE_RATE * (altitude_to - altitude_from)
    return pressure * (temperature_to / temperature_from) ** (GRAVITY / (R_DRY * LAPSE_RATE))


def hypsometric_pressure(pressure: Array, rise: Array, temperature_from: Array, temperature_to: Array) -> Array:
    """Pressure at the other end of a layer, from the virtual temperatures at both ends (hypsometric equation).

    Parameters
    ----------
    pressure : array
        Pa, at the end to start from.
    rise : array
        m from there to the other end, negative downward.
    temperature_from, temperature_to : array
        Virtual temperature at both ends in K, linear in height between them.

    Returns
    -------
    array
        Pa.

    Notes
    -----
    p2 = p1 exp(-g rise / (R Tm)) with the logarithmic mean Tm of both temperatures, approximated to better than 1 mK by
    (4 sqrt(T1 T2) + T1 + T2) / 6 (Carlson 1972, doi:10.2307/2317088).

    >>> round(hypsometric_pressure(101325.0, 1000.0, 288.15, 281.65))
    89875
    """
    mean = (4.0 * np.sqrt(temperature_from * temperature_to) + temperature_from + temperature_to) / 6.0
    return pressure * np.exp(-GRAVITY * rise / (R_DRY * mean))


def extend_geopotential(geopotential_above: Array, pressure_above: Array, temperature_above: Array, pressure: Array) -> Array:
    """Geopotential on a pressure level below the lowest one that is known (standard lapse rate downward).

    Parameters
    ----------
    geopotential_above, pressure_above, temperature_above : array
        m2 s-2, Pa (or any unit of pressure) and K on the lowest known level.
    pressure : array
        Level wanted, in the unit of ``pressure_above``.

    Returns
    -------
    array
        m2 s-2.
    """
    growth = (pressure / pressure_above) ** (R_DRY * LAPSE_RATE / GRAVITY)
    return geopotential_above - GRAVITY * temperature_above / LAPSE_RATE * (growth - 1.0)


def standard_temperature(altitude: Array) -> Array:
    """Temperature in K of the ICAO standard atmosphere at an altitude in m in the troposphere.

    >>> round(standard_temperature(1000.0), 2)
    281.65
    """
    return 288.15 - altitude * LAPSE_RATE


def standard_pressure(altitude: Array) -> Array:
    """Pressure in Pa of the ICAO standard atmosphere at an altitude in m in the troposphere.

    >>> round(standard_pressure(1000.0))
    89875
    """
    return 101325.0 * (standard_temperature(altitude) / 288.15) ** (GRAVITY / (R_DRY * LAPSE_RATE))


def standard_geopotential(pressure: Array) -> Array:
    """Geopotential in m2 s-2 of the ICAO standard atmosphere at a pressure in Pa, isothermal above 226.32 hPa."""
    troposphere = 288.15 / LAPSE_RATE * (1.0 - (np.maximum(pressure, 22632.0) / 101325.0) ** (R_DRY * LAPSE_RATE / GRAVITY))
    stratosphere = R_DRY * 216.65 / GRAVITY * np.log(22632.0 / np.minimum(pressure, 22632.0))
    return GRAVITY * (troposphere + stratosphere)
