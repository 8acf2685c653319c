"""Solar geometry: where the sun is and how much of it arrives at the top of the atmosphere."""

from __future__ import annotations

import numpy as np

__all__ = [
    "SOLAR_CONSTANT",
    "cos_zenith",
    "hourly_insolation",
    "local_basis",
    "normal_insolation",
    "sun_direction",
    "sun_vector",
]

SOLAR_CONSTANT = 1361.0  # W m-2, Kopp and Lean (2011), doi:10.1029/2010GL045777


def cos_zenith(time: np.ndarray, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Cosine of the solar zenith angle, negative when the sun is down.

    Parameters
    ----------
    time : array of datetime64, shape (T,)
        UTC.
    latitude, longitude : array, broadcastable to (H, W)
        Degrees north and east.

    Returns
    -------
    array, shape (T, H, W), float64

    Notes
    -----
    Low-precision ephemeris of the Astronomical Almanac (Michalsky 1988, doi:10.1016/0038-092X(88)90045-X): right to
    0.01 degrees between 1950 and 2050.
    """
    declination, hour_at_greenwich, _ = (part[:, None, None] for part in _sun(time))
    lat, lon = np.deg2rad(latitude), np.deg2rad(longitude)
    return np.sin(lat) * np.sin(declination) + np.cos(lat) * np.cos(declination) * np.cos(hour_at_greenwich + lon)


def hourly_insolation(time: np.ndarray, latitude: np.ndarray, longitude: np.ndarray, hours: int = 1) -> np.ndarray:
    """Downward solar flux at the top of the atmosphere, mean over the ``hours`` that end at each time.

    Parameters
    ----------
    time : array of datetime64, shape (T,)
        End of the interval, UTC.
    latitude, longitude : array, broadcastable to (H, W)
        Degrees north and east.
    hours : int
        Length of the interval; 0 for the instant.

    Returns
    -------
    array, shape (T, H, W), float32, W m-2
        Mean of six ten-minute midpoints per hour; zero where the sun stays down.
    """
    time = np.atleast_1d(time)
    minutes = np.arange(5, 60 * hours, 10) if hours else np.zeros(1, dtype=int)
    samples = time[:, None] - minutes.astype("timedelta64[m]")
    total = np.zeros(())
    for sample in samples.T:  # a loop over ten-minute samples keeps memory at one field per time
        total = total + np.maximum(cos_zenith(sample, latitude, longitude), 0.0) / _sun(sample)[2][:, None, None] ** 2
    return (SOLAR_CONSTANT * total / minutes.size).astype("f4")


def sun_direction(time: np.ndarray, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Unit vector toward the sun: its eastward, northward and upward parts; arguments as for `cos_zenith`.

    Returns
    -------
    array, shape (3, T, H, W), float64
        The last part is `cos_zenith`.
    """
    return np.einsum("ti,kihw->kthw", sun_vector(time), local_basis(latitude, longitude))


def sun_vector(time: np.ndarray) -> np.ndarray:
    """Unit vector toward the sun from the center of the earth: parts toward 0 E and 90 E at the equator and toward the north
    pole, shape (T,) -> (T, 3).
    """
    declination, hour_at_greenwich, _ = _sun(time)
    flat = np.cos(declination)
    return np.stack([flat * np.cos(hour_at_greenwich), -flat * np.sin(hour_at_greenwich), np.sin(declination)], axis=-1)


def local_basis(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """East, north and up at places on the globe, in the frame of `sun_vector`, shape (3, 3, H, W), float64."""
    lat, lon = np.broadcast_arrays(np.deg2rad(latitude), np.deg2rad(longitude))
    east = [-np.sin(lon), np.cos(lon), np.zeros_like(lon)]
    north = [-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)]
    up = [np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)]
    return np.stack([np.stack(part) for part in (east, north, up)])


def normal_insolation(time: np.ndarray) -> np.ndarray:
    """Solar flux through a plane that faces the sun, at the top of the atmosphere, W m-2, shape (T,) -> (T,)."""
    return SOLAR_CONSTANT / _sun(time)[2] ** 2


def _sun(time: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Declination and Greenwich hour angle in radians, and distance in astronomical units, shape (T,) each."""
    time = np.atleast_1d(time).astype("datetime64[s]")
    days = (time - np.datetime64("2000-01-01T12", "s")) / np.timedelta64(1, "D")
    mean_longitude = np.deg2rad(280.460 + 0.9856474 * days)
    anomaly = np.deg2rad(357.528 + 0.9856003 * days)
    longitude = mean_longitude + np.deg2rad(1.915) * np.sin(anomaly) + np.deg2rad(0.020) * np.sin(2 * anomaly)
    obliquity = np.deg2rad(23.439 - 4e-7 * days)
    declination = np.arcsin(np.sin(obliquity) * np.sin(longitude))
    right_ascension = np.arctan2(np.cos(obliquity) * np.sin(longitude), np.cos(longitude))
    turn = (time - time.astype("datetime64[D]")) / np.timedelta64(1, "D")
    hour_angle = 2 * np.pi * turn - np.pi + mean_longitude - right_ascension
    return declination, hour_angle, 1.00014 - 0.01671 * np.cos(anomaly) - 0.00014 * np.cos(2 * anomaly)
