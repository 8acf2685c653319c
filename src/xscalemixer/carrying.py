"""Surface fields from the smooth terrain of their model to real relief: plain arrays, whatever does not change computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from xscalemixer.grids import CurvilinearGrid, Grid, cell_centers, cell_steps
from xscalemixer.physics import humidity, terrain
from xscalemixer.physics.lapse import LAPSE_RATE_BOUNDS, local_lapse_rate
from xscalemixer.physics.pressure import hypsometric_pressure
from xscalemixer.physics.solar import hourly_insolation
from xscalemixer.physics.sunlight import short_wave_on_relief
from xscalemixer.physics.wind import MassBalance, layer_depth, over_relief
from xscalemixer.regridding import Regridder, interpolation
from xscalemixer.relief import Relief

__all__ = ["Carrier"]


@dataclass(frozen=True, eq=False)
class Carrier:
    """Carries fields from one grid and its terrain to relief.

    Parameters
    ----------
    grid : Grid or CurvilinearGrid
        Of the data, which reach around the relief.
    height : array, shape (H, W)
        Orography of the data in m.
    relief : Relief

    Notes
    -----
    Arrays have any leading dimensions and are in canonical units; (h, w) is the shape of the relief. All results are float32.
    Formulas and their sources: `xscalemixer.terrain.adjust_to_terrain`.
    """

    grid: Grid | CurvilinearGrid
    height: np.ndarray
    relief: Relief

    @cached_property
    def to_relief(self) -> Regridder:
        """Interpolation of smooth fields."""
        return Regridder(self.grid, self.relief.grid, interpolation(self.grid, self.relief.grid))

    @cached_property
    def rise(self) -> np.ndarray:
        """Relief less the interpolated orography of the data in m, shape (h, w)."""
        return (self.relief.height.values - self.to_relief(np.asarray(self.height, dtype=float))).astype(np.float32)

    def __call__(self, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Any of t2m, sp and q2m, u10 and v10, and tcc, shape (..., H, W), to those on the relief, shape (..., h, w)."""
        names = [name for name in ("t2m", "sp", "q2m") if name in fields]
        fine = dict(zip(names, self.air(*(fields[name] for name in names)), strict=True)) if names else {}
        if "u10" in fields:
            fine["u10"], fine["v10"] = self.wind(fields["u10"], fields["v10"])
        if "tcc" in fields:
            fine["tcc"] = self.cloud(fields["tcc"])
        return fine

    def air(self, t2m: np.ndarray, sp: np.ndarray | None = None, q2m: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Temperature by the local lapse rate, pressure by the hypsometric equation, humidity relative to saturation.

        Returns
        -------
        t2m, sp, q2m : array, shape (..., h, w)
            As many as were given.
        """
        t2m = np.asarray(t2m, dtype=np.float32)
        lowest, highest = map(np.float32, LAPSE_RATE_BOUNDS)
        rate = self.to_relief(local_lapse_rate(t2m, self.height, self._steps)).clip(lowest, highest)
        below = self.to_relief(t2m)
        above = below - rate * self.rise
        if sp is None:
            return (above,)
        pressure = np.exp(self.to_relief(np.log(np.asarray(sp, dtype=np.float32))))
        dry = hypsometric_pressure(pressure, self.rise, below, above)
        if q2m is None:
            return above, dry
        q2m = np.maximum(np.asarray(q2m, dtype=np.float32), 0.0)
        moisture = (humidity.vapor_pressure(q2m, sp) / humidity.saturation_vapor_pressure(t2m)).clip(max=1.0)
        relative = self.to_relief(moisture.astype(np.float32)).clip(0.0, 1.0)
        vapor = relative * humidity.saturation_vapor_pressure(above)
        virtual = lambda temperature, q: temperature * (1.0 + (1.0 / humidity.EPSILON - 1.0) * q)
        warm = virtual(below, self.to_relief(q2m)), virtual(above, humidity.specific_humidity(vapor, dry))
        moist = hypsometric_pressure(pressure, self.rise, *warm)
        return tuple(part.astype(np.float32) for part in (above, moist, humidity.specific_humidity(vapor, moist)))

    def wind(self, u10: np.ndarray, v10: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights of slope and curvature, then conservation of mass."""
        free_u, free_v = (self.to_relief(np.asarray(part, dtype=np.float32)) for part in (u10, v10))
        u, v = self._balance(*over_relief(free_u, free_v, self.relief.gradient, self._curvature), free_u, free_v)
        return u.astype(np.float32), v.astype(np.float32)

    def cloud(self, tcc: np.ndarray) -> np.ndarray:
        """Interpolated, within its limits."""
        return self.to_relief(np.asarray(tcc, dtype=np.float32)).clip(0.0, 1.0)

    def light(self, ssrd: np.ndarray, sp: np.ndarray, sp_on_relief: np.ndarray, time: np.ndarray, hours: int = 1) -> np.ndarray:
        """Clearness index times the sun of the relief: slope, shadow, sky view and thinner air.

        Parameters
        ----------
        ssrd, sp : array, shape (..., H, W)
        sp_on_relief : array, shape (..., h, w)
        time : array of datetime64, broadcastable to (...)
        hours : int
            The radiation is the mean over so many hours that end at ``time``; 0: instantaneous.
        """
        over = lambda flux: flux.reshape(*time.shape, *flux.shape[-2:])
        sun = self.to_relief(over(hourly_insolation(time.ravel(), *cell_centers(self.grid), hours)))
        level, lit = map(over, self.relief.sunshine(time.ravel(), hours))
        flux = np.maximum(self.to_relief(np.asarray(ssrd, dtype=np.float32)), 0.0)
        clearness = flux / np.where(sun > 0, sun, np.inf)
        ratio = sp_on_relief / np.exp(self.to_relief(np.log(np.asarray(sp, dtype=np.float32))))
        return short_wave_on_relief(clearness, level, lit, self.relief.sky, ratio)

    @cached_property
    def _steps(self) -> np.ndarray:
        return cell_steps(self.grid)

    @cached_property
    def _curvature(self) -> np.ndarray:
        return terrain.curvature(self.relief.height.values, self.relief.steps)

    @cached_property
    def _balance(self) -> MassBalance:
        return MassBalance(layer_depth(self.rise), self.relief.steps, float(np.sqrt(self.grid.area.mean())))
