"""Humidity: saturation over water, ice and mixed phase, and the conversions between its measures.

All functions take and return numpy arrays, xarray objects or dask arrays of any shape that broadcasts.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import numpy as np

__all__ = [
    "Phase",
    "dew_point",
    "saturation_vapor_pressure",
    "specific_humidity",
    "specific_humidity_from_dew_point",
    "specific_humidity_from_relative_humidity",
    "vapor_pressure",
]

Phase = Literal["water", "mixed", "ice"]
Array = TypeVar("Array", bound=Any)

# IFS documentation, Part IV (Physical processes), eq. 7.5: e_sat = A1 exp(a3 (T - T0) / (T - a4)), with
# Buck (1981) over water and the AERKi formula of Alduchov and Eskridge (1996) over ice.
A1 = 611.21  # Pa
T0 = 273.16  # K, triple point
T_ICE = 250.16  # K, all condensate is ice below
WATER = (17.502, 32.19)  # a3, a4 in K
ICE = (22.587, -0.7)
EPSILON = 287.0597 / 461.5250  # ratio of the gas constants of dry air and water vapor, same source


def saturation_vapor_pressure(temperature: Array, phase: Phase = "water") -> Array:
    """Saturation vapor pressure over water, ice, or the mixed phase of the IFS.

    Parameters
    ----------
    temperature : array
        K. For ``"mixed"``, water above 273.16 K, ice below 250.16 K, and between them both, weighted by the
        square of the position in that interval.
    phase : "water", "mixed" or "ice"

    Returns
    -------
    array
        Pa.

    References
    ----------
    IFS documentation Cy41r2, Part IV, eqs. 7.4 and 7.5.

    >>> round(float(saturation_vapor_pressure(293.15)))
    2336
    """
    if phase == "mixed":
        share = np.minimum(np.maximum((temperature - T_ICE) / (T0 - T_ICE), 0.0), 1.0) ** 2
        return share * _tetens(temperature, *WATER) + (1.0 - share) * _tetens(temperature, *ICE)
    return _tetens(temperature, *{"water": WATER, "ice": ICE}[phase])


def specific_humidity(vapor_pressure: Array, pressure: Array) -> Array:
    """Specific humidity in kg kg-1 from vapor pressure and air pressure, both in Pa."""
    return EPSILON * vapor_pressure / (pressure - (1.0 - EPSILON) * vapor_pressure)


def vapor_pressure(humidity: Array, pressure: Array) -> Array:
    """Vapor pressure in Pa from specific humidity in kg kg-1 and air pressure in Pa; inverse of `specific_humidity`."""
    return humidity * pressure / (EPSILON + (1.0 - EPSILON) * humidity)


def specific_humidity_from_relative_humidity(
    relative_humidity: Array, temperature: Array, pressure: Array, phase: Phase = "water"
) -> Array:
    """Specific humidity in kg kg-1 from relative humidity (0..1), temperature in K and pressure in Pa.

    ``phase`` says what the relative humidity refers to: NCEP models publish it over water, the IFS over its mixed phase.
    """
    return specific_humidity(relative_humidity * saturation_vapor_pressure(temperature, phase), pressure)


def specific_humidity_from_dew_point(dew_point: Array, pressure: Array) -> Array:
    """Specific humidity in kg kg-1 from dew point (over water, by definition) in K and pressure in Pa."""
    return specific_humidity(saturation_vapor_pressure(dew_point, "water"), pressure)


def dew_point(humidity: Array, pressure: Array) -> Array:
    """Dew point in K from specific humidity in kg kg-1 and pressure in Pa; inverse of `specific_humidity_from_dew_point`.

    Air without any vapor has no dew point; humidity is taken to be at least 1e-9 kg kg-1.

    >>> round(float(dew_point(0.010, 100000.0)), 1)
    287.2
    """
    ratio = np.log(vapor_pressure(np.maximum(humidity, 1e-9), pressure) / A1)
    a3, a4 = WATER
    return (a3 * T0 - a4 * ratio) / (a3 - ratio)


def _tetens(temperature, a3, a4):
    return A1 * np.exp(a3 * (temperature - T0) / (temperature - a4))
