"""Units: any string seen in weather files -> one factor and one offset; plain arrays everywhere else."""

from __future__ import annotations

import logging
from functools import cache, lru_cache
from tokenize import TokenError

__all__ = ["Conversion", "UnitsError", "conversion", "is_pressure"]

# Strings that the parser refuses or misreads ("mb" is its millibarn, "deg C" an angle times a temperature).
_ALIASES = {
    "(0 - 1)": "1",
    "(0-1)": "1",
    "0-1": "1",
    "0 - 1": "1",
    "~": "1",
    "-": "1",
    "none": "1",
    "dimensionless": "1",
    "proportion": "1",
    "fraction": "1",
    "mb": "hPa",
    "mbar": "hPa",
    "millibar": "hPa",
    "millibars": "hPa",
    "kelvin": "K",
    "kelvins": "K",
    "deg k": "K",
    "degk": "K",
    "degrees_k": "K",
    "c": "degC",
    "°c": "degC",
    "deg c": "degC",
    "deg_c": "degC",
    "degc": "degC",
    "degrees_c": "degC",
    "degrees c": "degC",
    "celsius": "degC",
    "degree_celsius": "degC",
    "degrees celsius": "degC",
    "f": "degF",
    "degf": "degF",
    "degrees_f": "degF",
    "fahrenheit": "degF",
    "gpm": "m",
    "gpdm": "dam",
    "degree true": "degree",
    "degrees true": "degree",
    "degrees_true": "degree",
    "okta": "0.125",
    "oktas": "0.125",
    "m of water equivalent": "m",
}

Conversion = tuple[float, float]  # canonical = factor * value + offset


class UnitsError(ValueError):
    """A units string cannot be read, or measures something else."""


@lru_cache(maxsize=512)
def conversion(units: str, target: str) -> Conversion:
    """Factor and offset with ``value_in_target = factor * value + offset``.

    Parameters
    ----------
    units : str
        As written in the file: UDUNITS, GRIB or hand-written.
    target : str
        UDUNITS string.

    Raises
    ------
    UnitsError
        If ``units`` cannot be read or does not measure the same quantity.

    >>> conversion("mb", "Pa")
    (100.0, 0.0)
    """
    if units.strip() == target:  # also units that pint does not know, such as dBZ
        return 1.0, 0.0
    import numpy as np
    import pint

    registry = _registry()
    text = _ALIASES.get(units.strip().lower(), units.strip())
    scale = 1.0
    if _is_number(text):
        text, scale = "1", float(text)
    try:
        quantity = registry.Quantity(np.array([0.0, 1.0]), registry.parse_units(text))
    except (pint.PintError, TokenError, ArithmeticError, AssertionError, AttributeError, TypeError, ValueError) as error:
        raise UnitsError(f"cannot read units {units!r}") from error
    try:
        zero, one = quantity.to(target).magnitude
    except pint.DimensionalityError as error:
        raise UnitsError(f"{units!r} does not measure what {target!r} does") from error
    return float(f"{scale * (one - zero):.12g}"), float(f"{zero:.12g}")


@cache
def _registry():
    """Units of CF. While they are made, pint keeps to itself that it knew some of them by another definition."""
    log = logging.getLogger("pint")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        from cf_xarray.units import units
    finally:
        log.setLevel(level)
    return units


def is_pressure(units: str) -> bool:
    """True if the string is a unit of pressure."""
    try:
        conversion(units, "Pa")
    except UnitsError:
        return False
    return True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
