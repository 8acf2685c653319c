"""Short-wave radiation on relief: direct and diffuse light, tilted ground, cast shadows, thinner air."""

from __future__ import annotations

import numpy as np

from xscalemixer.physics.solar import normal_insolation, sun_direction

__all__ = ["diffuse_fraction", "insolation_on_relief", "is_sunlit", "short_wave_on_relief"]


def diffuse_fraction(clearness: np.ndarray) -> np.ndarray:
    """Share of diffuse light in the global radiation, from the clearness index (radiation over that at the top), both 0..1.

    References
    ----------
    Erbs, Klein and Duffie (1982), doi:10.1016/0038-092X(82)90302-4, hourly relation.
    """
    k = np.clip(clearness, 0.0, 1.0)
    middle = 0.9511 + k * (-0.1604 + k * (4.388 + k * (-16.638 + k * 12.336)))
    return np.where(k <= 0.22, 1.0 - 0.09 * k, np.where(k <= 0.8, middle, 0.165))


def is_sunlit(horizon: np.ndarray, sun: np.ndarray) -> np.ndarray:
    """Whether the sun stands above the terrain.

    Parameters
    ----------
    horizon : array, shape (N, H, W)
        Radians, from `xscalemixer.physics.terrain.horizon_angles`.
    sun : array, shape (3, T, H, W)
        Direction to the sun: east, north, up.

    Returns
    -------
    array of bool, shape (T, H, W)
    """
    east, north, up = sun
    turn = np.arctan2(east, north) / (2 * np.pi) * len(horizon)
    before = np.floor(turn).astype(int)
    share = turn - before
    lower = np.take_along_axis(horizon, before % len(horizon), axis=0)
    upper = np.take_along_axis(horizon, (before + 1) % len(horizon), axis=0)
    return (up > 0) & (up > np.sin(lower + share * (upper - lower)))


def insolation_on_relief(
    time: np.ndarray, latitude: np.ndarray, longitude: np.ndarray, gradient: np.ndarray, horizon: np.ndarray, hours: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Solar flux without an atmosphere on level and on real ground, mean over the ``hours`` that end at each time.

    Parameters
    ----------
    time : array of datetime64, shape (T,)
        UTC.
    latitude, longitude : array, shape (H, W)
        Degrees north and east.
    gradient : array, shape (2, H, W)
        Slope toward east and north.
    horizon : array, shape (N, H, W)
        Radians, from `xscalemixer.physics.terrain.horizon_angles`.
    hours : int
        Length of the interval; 0 for the instant.

    Returns
    -------
    level, relief : array, shape (T, H, W), float32
        W m-2, both per horizontal area: without shadows their means over relief that ends as high as it begins are the same.
    """
    minutes = np.arange(5, 60 * hours, 10) if hours else np.zeros(1, dtype=int)
    level = relief = 0.0
    for minute in minutes:  # ten-minute samples, as in `hourly_insolation`; a loop keeps memory at one field per time
        moment = time - minute.astype("timedelta64[m]")
        sun = sun_direction(moment, latitude, longitude).astype(np.float32)
        flux = normal_insolation(moment).astype(np.float32)[:, None, None]
        incidence = sun[2] - gradient[0] * sun[0] - gradient[1] * sun[1]
        level = level + flux * np.maximum(sun[2], 0.0)
        relief = relief + flux * np.where(is_sunlit(horizon, sun), np.maximum(incidence, 0.0), 0.0)
    return (level / len(minutes)).astype(np.float32), (relief / len(minutes)).astype(np.float32)


def short_wave_on_relief(
    clearness: np.ndarray, level: np.ndarray, relief: np.ndarray, sky: np.ndarray, pressure_ratio: np.ndarray
) -> np.ndarray:
    """Global radiation on relief, per horizontal area.

    Parameters
    ----------
    clearness : array
        Radiation on level ground at the smooth terrain over that at the top of the atmosphere, 0..1.
    level, relief : array
        W m-2, from `insolation_on_relief`.
    sky : array
        Sky view per horizontal area: `xscalemixer.physics.terrain.sky_view` over the cosine of the slope.
    pressure_ratio : array
        Surface pressure on the relief over that on the smooth terrain.

    Returns
    -------
    array, float32
        W m-2; zero where the sun is down.

    Notes
    -----
    The direct part loses light by Beer's law along a path proportional to the pressure, so its transmittance is that of
    the smooth terrain to the power of the pressure ratio. Diffuse light is even over the sky. What the ground reflects is
    left out.

    References
    ----------
    Split, elevation and topography in this order: Fiddes and Gruber (2014), doi:10.5194/gmd-7-387-2014, short-wave radiation.
    """
    clearness = np.clip(clearness, 0.0, 1.0)
    diffuse = diffuse_fraction(clearness) * clearness
    direct = np.minimum((clearness - diffuse) ** pressure_ratio, 1.0 - diffuse)
    return np.where(level > 0, direct * relief + diffuse * level * sky, 0.0).astype(np.float32)
