"""The coupled model with everything it needs to know about its data: schemas, grids, statistics, static fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from xscalemixer.carrying import Carrier
from xscalemixer.grids import surroundings
from xscalemixer.model import Branch, ForecastModel, Input, network_settings, require_keys
from xscalemixer.nn.blocks import Normalizer
from xscalemixer.nn.coldstart import ColdStart, ColdStartConfig
from xscalemixer.nn.scalemixer import CoupledModel, ScaleMixerConfig, Step
from xscalemixer.physics.pressure import LAPSE_RATE, pressure_at_altitude, standard_temperature
from xscalemixer.regridding import Regridder
from xscalemixer.relief import Relief
from xscalemixer.state import HOURS, Insolation, State, calendar_features, inner_insolation, outer_insolation

__all__ = ["Branch", "Forecaster"]


@dataclass(repr=False)
class Forecaster(ForecastModel):
    """Coupled network, cold-start network and their data contract; rolls states forward.

    Attributes
    ----------
    name : str
    network : CoupledModel
    cold_start : ColdStart
    outer, inner : Branch
    calendar : tuple of str
        Parts of the calendar the network was trained with.
    about : dict
        Data, period, scores and licence; plain data for the card.
    sha256 : str
        Hash of the weights file; empty for a model that was never saved.
    """

    kind: ClassVar[str] = "coupled"
    references: ClassVar[str] = "ScaleMixer, arXiv:2603.28173"
    hours: ClassVar[int] = HOURS

    name: str
    network: CoupledModel
    cold_start: ColdStart
    outer: Branch
    inner: Branch
    calendar: tuple[str, ...] = ("hour", "day")
    about: dict = field(default_factory=dict)
    sha256: str = ""

    def __post_init__(self):
        self.calendar = tuple(self.calendar)
        self.scale_outer = Normalizer(*self.outer.stats.arrays(self.outer.schema))
        self.eval()

    # ---------------------------------------------------------------------------------------------- description

    @property
    def branches(self) -> dict[str, Branch]:
        """The globe and the region."""
        return {"global, every 6 hours": self.outer, "regional, hourly": self.inner}

    @property
    def settings(self) -> dict:
        """Network, data contract and what else it takes to use them, as plain data."""
        return {
            "network": self.network.config.to_dict(),
            "cold_start": self.cold_start.config.to_dict(),
            "outer": self.outer.to_dict(),
            "inner": self.inner.to_dict(),
            "calendar": list(self.calendar),
        }

    @classmethod
    def from_dict(cls, data: dict) -> Forecaster:
        """A model with fresh weights from its description.

        Raises
        ------
        CheckpointError
            For another format version, or missing or unknown keys.
        """
        needed = ("format", "kind", "name", "network", "cold_start", "outer", "inner", "calendar", "about")
        require_keys(data, needed)
        with network_settings():
            network = CoupledModel(ScaleMixerConfig.from_dict(data["network"]))
            cold_start = ColdStart(ColdStartConfig.from_dict(data["cold_start"]))
        outer, inner = (Branch.from_dict(data[name]) for name in ("outer", "inner"))
        return cls(data["name"], network, cold_start, outer, inner, calendar=data["calendar"], about=data["about"])

    @property
    def modules(self) -> nn.ModuleDict:
        """The networks under the names used in the weights file."""
        return nn.ModuleDict({"network": self.network, "cold_start": self.cold_start})

    @property
    def scales(self) -> tuple[Normalizer]:
        """The normalizer of the globe."""
        return (self.scale_outer,)

    @property
    def scale_inner(self) -> Normalizer:
        """Normalizer of the region, on the device of the weights, from which it has the heights."""
        heights = self.network.inner.statics[0].cpu().numpy() * np.float32(1000.0)
        return Normalizer(*self.inner.scale(heights)).to(self.device)

    @property
    def static(self) -> dict[str, np.ndarray]:
        """Orography (m) and land fraction on the regional grid, shape (h, w) each."""
        orography, land = self.network.inner.statics[:2].cpu().numpy()
        return {"orog": orography * np.float32(1000.0), "lsm": land}

    # -------------------------------------------------------------------------------------------------- running

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The driver at the start, and six hours of the region, which are invented where they are not given."""
        terrain = self.network.outer.statics[0].cpu().numpy() * np.float32(1000.0)
        otherwise = "no analyses given; the six hours before the start are invented from the driver (cold start)"
        return (
            Input(part="outer", branch=self.outer, hours=1, words="driver", terrain=terrain),
            Input(part="inner", branch=self.inner, hours=HOURS, words="regional analyses", otherwise=otherwise),
        )

    def begin(self, time: np.datetime64, fields: Mapping[str, Tensor]) -> State:
        """The state at a time; without regional hours they are invented."""
        outer = fields["outer"][:, -1]
        return State(time, outer, fields["inner"] if "inner" in fields else self.invent_history(outer, time))

    def step(self, state: State, trace: list[Step] | None = None) -> State:
        """Six hours ahead: State at t to State at t + 6 h, both physical.

        Parameters
        ----------
        state : State
        trace : list, optional
            Receives the raw network step (key positions included).
        """
        sun, scale_inner = inner_insolation(state.time, self._insolation).to(self.device), self.scale_inner
        result = self.network(
            self.scale_outer(state.outer),
            scale_inner(state.inner),
            calendar_features(state.time, self.calendar).to(self.device),
            outer_insolation(state.time, self.outer.grid).to(self.device),
            sun / self.sunlit_scale,
        )
        if trace is not None:
            trace.append(result)
        inner = self.bound(scale_inner.inverse(result.inner.float()), sun[:, HOURS:])
        outer = self.scale_outer.inverse(result.outer.float())
        return State(state.time + np.timedelta64(HOURS, "h"), outer, inner)

    @cached_property
    def _insolation(self) -> Insolation:
        return self.inner.insolation(self.static["orog"])

    @property
    def sunlit_scale(self) -> float:
        """W m-2 per unit of normalized insolation."""
        return self.inner.sunlit_scale

    @torch.inference_mode()
    def invent_history(self, outer: Tensor, time: np.datetime64) -> Tensor:
        """Cold start: regional hours t-5..t from the global state, (1, C_g, H, W) -> (1, 6, C_r, h, w), physical."""
        fields = self.first_guess(outer.cpu().numpy(), np.atleast_1d(time)).to(self.device)
        sun = inner_insolation(time, self._insolation, last=0).to(self.device)
        return self.bound(self.scale_inner.inverse(self.cold_start(fields, sun / self.sunlit_scale)), sun)

    def first_guess(self, outer: np.ndarray, time: np.ndarray) -> Tensor:
        """Inputs of the cold start: surface fields carried to the regional terrain, statics and the hour.

        With ``guess="terrain"`` by the physics of `xscalemixer.carrying.Carrier`. Else interpolated bilinearly; temperature
        follows the standard lapse rate and pressure the hypsometric equation between the smooth and the actual terrain, at that
        temperature (where it is not guessed, of the standard atmosphere).

        Parameters
        ----------
        outer : array, shape (B, C_g, H, W), physical
        time : array of datetime64, shape (B,)

        Returns
        -------
        Tensor, shape (B, inputs, h, w)
            Guessed channels (normalized), statics of the region, terrain difference (km), hour of day (2).
        """
        guess, rise = self._carried(outer) if self.cold_start.config.guess == "terrain" else self._interpolated(outer)
        channels = list(self.cold_start.config.guessed)
        scale = self.scale_inner
        mean, std = (a.cpu().numpy()[channels] for a in (scale.mean, scale.std))
        shape = (guess.shape[0], 1, *rise.shape)
        hour = calendar_features(time, ("hour",))[:, :2, None, None].expand(-1, -1, *rise.shape)
        statics = self.network.inner.statics.cpu().numpy()
        fixed = np.concatenate([np.broadcast_to(f, shape) for f in (*statics, rise / 1000.0)], 1)
        return torch.cat([torch.from_numpy(np.concatenate([(guess - mean) / std, fixed], 1).astype("f4")), hour], 1)

    def _carried(self, outer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Guessed channels by terrain physics (B, G, h, w), and the rise of the terrain in m (h, w)."""
        rows, columns, carrier = self._carrier
        names = [self.inner.schema.channels[c] for c in self.cold_start.config.guessed]
        near = outer[..., rows[:, None], columns]
        fine = carrier({name: near[:, self.outer.schema.channels.index(name)] for name in names})
        return np.stack([fine[name] for name in names], 1), carrier.rise

    @cached_property
    def _carrier(self) -> tuple[np.ndarray, np.ndarray, Carrier]:
        """Rows and columns of the driver around the region, and what carries their fields to its relief."""
        heights = (branch.statics[0].cpu().numpy() * 1000.0 for branch in (self.network.outer, self.network.inner))
        smooth, actual = heights
        relief = Relief.of(actual, self.inner.grid)
        rows, columns, grid = surroundings(self.outer.grid, relief.grid)
        return rows, columns, Carrier(grid, smooth[rows[:, None], columns], relief)

    def _interpolated(self, outer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same by bilinear interpolation and the standard atmosphere."""
        to_inner = Regridder(self.outer.grid, self.inner.grid, "bilinear")
        names = [self.inner.schema.channels[c] for c in self.cold_start.config.guessed]
        guess = to_inner(outer[:, [self.outer.schema.channels.index(name) for name in names]])
        smooth = to_inner(self.network.outer.statics[:1].cpu().numpy())[0]
        terrain = self.network.inner.statics[0].cpu().numpy()
        rise = (terrain - smooth) * 1000.0  # m
        temperature = standard_temperature(terrain * 1000.0)
        if "t2m" in names:
            t2m = names.index("t2m")
            temperature = guess[:, t2m] = guess[:, t2m] - LAPSE_RATE * rise
        if "sp" in names:
            sp = names.index("sp")
            guess[:, sp] = pressure_at_altitude(guess[:, sp], smooth * 1000.0, terrain * 1000.0, temperature)
        return guess, rise
