"""Short-wave radiation on relief: direct and diffuse light, tilted ground, cast shadows, thinner air."""

from __future__ import annotations

import numpy as np

from xscalemixer.physics.solar import local_basis, normal_insolation, sun_vector

__all__ = ["Sunshine", "diffuse_fraction", "insolation_on_relief", "insolation_with_sky", "is_sunlit", "short_wave_on_relief"]

_FAIR = 0.6  # clearness index of a sky with some haze or cloud: two fifths of the light are diffuse


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
    horizon : array, shape (N, ...)
        Radians, from `xscalemixer.physics.terrain.horizon_angles`.
    sun : array, shape (3, ...) or (3, T, ...)
        Direction to the sun: east, north, up.

    Returns
    -------
    array of bool, shape (...) or (T, ...)
    """
    east, north, up = sun
    turn = np.arctan2(east, north) * np.float32(len(horizon) / (2 * np.pi))
    before = np.floor(turn).astype(int)
    share = turn - before
    cells = horizon.reshape(len(horizon), -1)
    place = np.arange(cells.shape[1]).reshape(horizon.shape[1:])
    lower, upper = cells[before % len(horizon), place], cells[(before + 1) % len(horizon), place]
    return (up > 0) & (up > np.sin(lower + share * (upper - lower)))


class Sunshine:
    """Solar flux without an atmosphere on level and on real ground; what does not change with time is computed once.

    Parameters
    ----------
    latitude, longitude : array, shape (H, W)
        Degrees north and east.
    gradient : array, shape (2, H, W)
        Slope toward east and north.
    horizon : array, shape (N, H, W)
        Radians, from `xscalemixer.physics.terrain.horizon_angles`.
    """

    def __init__(self, latitude: np.ndarray, longitude: np.ndarray, gradient: np.ndarray, horizon: np.ndarray):
        basis = local_basis(latitude, longitude).astype(np.float32)  # (3, 3, H, W)
        east, north, up = basis.reshape(3, 3, -1)
        facing = up - gradient[0].ravel() * east - gradient[1].ravel() * north
        self.shape, self.horizon = horizon.shape[1:], horizon.reshape(len(horizon), -1)
        self._vertical = np.concatenate([up, facing], axis=1).astype(np.float32)  # (3, 2 H W)
        self._east, self._north = east, north
        self._always_lit = np.sin(self.horizon.max(axis=0))  # a higher sun stands above every ridge

    def __call__(self, time: np.ndarray, hours: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Mean over the ``hours`` that end at each time; 0: at the instant.

        Parameters
        ----------
        time : array of datetime64, shape (T,)
            UTC.
        hours : int

        Returns
        -------
        level, relief : array, shape (T, H, W), float32
            W m-2, both per horizontal area: without shadows their means over relief that ends as high as it begins are the same.
        """
        minutes = np.arange(5, 60 * hours, 10) if hours else np.zeros(1, dtype=int)
        level, relief = np.zeros((2, len(time), self.horizon.shape[1]), dtype=np.float32)
        for minute in minutes:  # ten-minute samples, as in `hourly_insolation`; a loop keeps memory at one field per time
            moment = time - minute.astype("timedelta64[m]")
            sun = sun_vector(moment).astype(np.float32)
            flux = (normal_insolation(moment) / len(minutes)).astype(np.float32)
            for i in range(len(time)):
                up, facing = (sun[i] @ self._vertical).reshape(2, -1)
                if up.max() <= 0:
                    continue
                np.maximum(up, 0.0, out=up)
                level[i] += flux[i] * up
                np.maximum(facing, 0.0, out=facing)
                facing[up == 0.0] = 0.0
                low = np.flatnonzero((up > 0.0) & (up <= self._always_lit))
                direction = np.stack([sun[i] @ self._east[:, low], sun[i] @ self._north[:, low], up[low]])
                facing[low] *= is_sunlit(self.horizon[:, low], direction)
                relief[i] += flux[i] * facing
        return level.reshape(-1, *self.shape), relief.reshape(-1, *self.shape)


def insolation_on_relief(
    time: np.ndarray, latitude: np.ndarray, longitude: np.ndarray, gradient: np.ndarray, horizon: np.ndarray, hours: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """`Sunshine` for one call: its arguments, and those of the call."""
    return Sunshine(latitude, longitude, gradient, horizon)(time, hours)


def insolation_with_sky(level: np.ndarray, relief: np.ndarray, sky: np.ndarray) -> np.ndarray:
    """Insolation as relief gets it through a fair sky: `short_wave_on_relief` over the clearness.

    On level ground it is the insolation itself; in the shadow of a ridge the diffuse part is left.

    Parameters
    ----------
    level, relief, sky : array
        As for `short_wave_on_relief`.

    Returns
    -------
    array, float32
        W m-2.
    """
    clearness, as_high = np.array(_FAIR, "f4"), np.array(1.0, "f4")
    return short_wave_on_relief(clearness, level, relief, sky, as_high) / clearness


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
