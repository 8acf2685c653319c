"""A trained CorrDiff with everything it needs to know about its data: schemas, grids, statistics, static fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from xscalemixer.errors import InputError
from xscalemixer.model import Branch, Model, bound, network_settings, require_keys
from xscalemixer.nn.blocks import Normalizer
from xscalemixer.nn.corrdiff import Condition, CorrDiff, CorrDiffNetworkConfig
from xscalemixer.nn.sampling import Seed, SolverConfig
from xscalemixer.nn.tiling import TilingConfig
from xscalemixer.physics.solar import SOLAR_CONSTANT
from xscalemixer.reduction import changes
from xscalemixer.regridding import Regridder
from xscalemixer.state import calendar_features, inner_insolation, level_insolation
from xscalemixer.variables import Stats

__all__ = ["Downscaler", "Inputs"]

_LEAD = 24.0  # hours that the lead time is divided by
_WHOLE = 512 * 512  # cells of a domain that is sampled in one piece
_PATCH = 256  # cells along the sides of patches of larger ones
_PLAIN = ("calendar", "leads", "patch", "patched_mean", "about")
_KEYS = ("format", "kind", "name", "network", "coarse", "fine", "extremes", "solver", *_PLAIN)


class Inputs(NamedTuple):
    """What the networks are told of one sample.

    Attributes
    ----------
    fields : Tensor, shape (C + S + 1, H, W)
        Coarse channels on the fine grid, normalized; constant fields; insolation in quarter solar constants.
    scalars : Tensor, shape (4,) or (5,)
        Calendar, and the lead time in days where the model is told.
    """

    fields: Tensor
    scalars: Tensor


def _pair(given: Sequence[int] | None) -> tuple[int, int] | None:
    """Two numbers as they were before JSON made a list of them."""
    if given is None:
        return None
    first, second = given
    return first, second


class _Domain(nn.Module):
    """Fields without time that are kept with the weights.

    Attributes
    ----------
    statics : Tensor, shape (S, H, W)
        Of the fine grid, see `state.statics_of`.
    height : Tensor, shape (h, w), m, or None
        Orography of the coarse grid, where fields are reduced to sea level.
    """

    statics: Tensor
    height: Tensor | None

    def __init__(self, coarse: Branch, fine: Branch):
        super().__init__()
        self.register_buffer("statics", torch.zeros(len(fine.statics), *fine.grid.shape))
        self.register_buffer("height", torch.zeros(coarse.grid.shape) if coarse.stats.reduced else None)


@dataclass(repr=False)
class Downscaler(Model):
    """CorrDiff and its data contract; makes members of fine fields from coarse ones.

    Attributes
    ----------
    name : str
    network : CorrDiff
    coarse, fine : Branch
        Input and target. Whatever grid an input has, it comes to that of ``coarse`` before it is interpolated. Constant fields
        are those of ``fine``. Where the statistics say so, both are fields reduced to sea level to the networks (`reduction`).
    extremes : dict of (float, float)
        Least and greatest value of each input channel in training.
    calendar : tuple of str
        Parts of the calendar the networks were trained with.
    leads : tuple of int, or None
        For a model of the errors of forecasts: shortest and longest lead time in training, hours.
    patch : (int, int), optional
        Rows and columns of the patches that the diffusion was trained on; None: the whole domain.
    patched_mean : bool
        The regression was trained on them too.
    solver : SolverConfig
        How members are sampled unless the caller says otherwise.
    about : dict
        Data, period, calibration and licence; plain data for the card.
    sha256 : str
        Hash of the weights file; empty for a model that was never saved.
    """

    kind: ClassVar[str] = "corrdiff"
    references: ClassVar[str] = "CorrDiff, arXiv:2309.15214"

    name: str
    network: CorrDiff
    coarse: Branch
    fine: Branch
    extremes: dict[str, tuple[float, float]]
    calendar: tuple[str, ...] = ("hour", "day")
    leads: tuple[int, int] | None = None
    patch: tuple[int, int] | None = None
    patched_mean: bool = False
    solver: SolverConfig = field(default_factory=SolverConfig)
    about: dict = field(default_factory=dict)
    sha256: str = ""

    def __post_init__(self):
        self.calendar = tuple(self.calendar)
        self.leads, self.patch = _pair(self.leads), _pair(self.patch)
        self.domain = _Domain(self.coarse, self.fine)
        self.interpolate = Regridder(self.coarse.grid, self.fine.grid, "bilinear")
        self.eval()

    # ---------------------------------------------------------------------------------------------- description

    @property
    def branches(self) -> dict[str, Branch]:
        """Input and target."""
        return {"from": self.coarse, "to": self.fine}

    @property
    def settings(self) -> dict:
        """Network, data contract and what else it takes to use them, as plain data."""
        return {
            "network": self.network.config.to_dict(),
            "coarse": self.coarse.to_dict(),
            "fine": self.fine.to_dict(),
            "extremes": {channel: list(pair) for channel, pair in self.extremes.items()},
            "calendar": list(self.calendar),
            "leads": self.leads,
            "patch": self.patch,
            "patched_mean": self.patched_mean,
            "solver": self.solver.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict) -> Downscaler:
        """A model with fresh weights from its description.

        Raises
        ------
        CheckpointError
            For another format version, or missing or unknown keys.
        """
        require_keys(data, _KEYS)
        with network_settings():
            network = CorrDiff(CorrDiffNetworkConfig.from_dict(data["network"]))
            solver = SolverConfig.from_dict(data["solver"])
        coarse, fine = (Branch.from_dict(data[name]) for name in ("coarse", "fine"))
        extremes = {channel: tuple(pair) for channel, pair in data["extremes"].items()}
        plain = {name: data[name] for name in _PLAIN}
        return cls(data["name"], network, coarse, fine, extremes, solver=solver, **plain)

    @property
    def modules(self) -> nn.ModuleDict:
        """The networks and constant fields under the names used in the weights file."""
        return nn.ModuleDict({"network": self.network, "domain": self.domain})

    @property
    def scales(self) -> tuple[Normalizer, ...]:
        """None."""
        return ()

    @property
    def height(self) -> np.ndarray | None:
        """Orography of the coarse grid, (h, w), m, for a model of fields reduced to sea level; else None."""
        return None if self.domain.height is None else self.domain.height.cpu().numpy()

    @property
    def static(self) -> dict[str, np.ndarray]:
        """Orography (m) and land fraction on the fine grid, shape (H, W) each."""
        orography, land = self.domain.statics[:2].cpu().numpy()
        return {"orog": orography * np.float32(1000.0), "lsm": land}

    # -------------------------------------------------------------------------------------------------- running

    def inputs(self, values: np.ndarray, time: np.datetime64, lead: int, stats: Stats | None = None) -> Inputs:
        """What the networks are told, on the CPU.

        Parameters
        ----------
        values : array, shape (C, h, w), physical
            On the coarse grid, at sea level for a model with a `height` (`Coarse.on`).
        time : datetime64
            Valid time.
        lead : int
            Hours since the start of the forecast; 0 for an analysis.
        stats : Stats, optional
            Of the system that ``values`` come from; default: those of training.
        """
        mean, std = ((stats or self.coarse.stats).arrays(self.coarse.schema)[i][:, None, None] for i in (0, 1))
        normalized = (self.interpolate(values.astype("f4", copy=False)) - mean) / std
        sun = self._insolation(time).numpy() / np.float32(SOLAR_CONSTANT / 4)
        fields = torch.from_numpy(np.concatenate([normalized, self.domain.statics.cpu().numpy(), sun]))
        scalars = calendar_features(time, self.calendar)[0]
        return Inputs(fields, scalars if self.leads is None else torch.cat([scalars, torch.tensor([lead / _LEAD])]))

    def _insolation(self, time: np.datetime64) -> Tensor:
        """Mean over the hour that ends at a time, shape (1, H, W), W m-2."""
        return inner_insolation(time, level_insolation(self.fine.grid), 0, 0)[0]

    def condition(self, inputs: Inputs, tiling: TilingConfig | None = None, mean: Tensor | None = None) -> Condition:
        """The same on the device with the mean, unless it is given made on the whole domain, where it was trained so and fits."""
        condition = Condition(inputs.fields[None].to(self.device), inputs.scalars[None].to(self.device), mean)
        if mean is not None:
            return condition
        tiling = (tiling or self.tiling()) if self.patched_mean or self._is_large else None
        return condition._replace(mean=self.network.mean(condition, tiling=tiling))

    def sample(
        self,
        condition: Condition,
        seeds: Sequence[Seed],
        time: np.datetime64,
        *,
        solver: SolverConfig | None = None,
        tiling: TilingConfig | None = None,
    ) -> Tensor:
        """One member per seed, shape (M, C, H, W), physical, within physical limits."""
        members = self.network.sample(condition, seeds, solver=solver or self.solver, tiling=tiling or self.tiling())
        return self.physical(members, time)

    def physical(self, fields: Tensor, time: np.datetime64, cells: np.ndarray | None = None) -> Tensor:
        """Normalized to physical within physical limits, see `model.bound`.

        Parameters
        ----------
        fields : Tensor, shape (..., C, H, W) or, of some cells, (..., C, 1, P)
        time : datetime64
        cells : array of int, shape (P,), optional
            Their numbers, row by row.
        """
        schema, insolation, height = self.fine.schema, self._insolation(time)[0], self.static["orog"]
        if cells is not None:
            insolation, height = insolation.flatten()[cells][None], height.flatten()[cells][None]
        fields = Normalizer(*self.fine.stats.arrays(schema)).to(fields.device).inverse(fields.float())
        if self.fine.stats.reduced:  # channel by channel: statistics of all cells would take as much memory as the fields
            for channel, pair in changes(schema, height).items():
                offset, factor = (torch.from_numpy(part).to(fields.device) for part in pair)
                fields[..., channel, :, :].mul_(factor).add_(offset)
        return bound(fields, self.fine, insolation.to(fields.device))

    def tiling(self, patch: tuple[int, int] | None = None, together: int | None = None) -> TilingConfig:
        """Patches of the size asked for, else of training, else small ones on a large domain; memory follows from their size.

        Parameters
        ----------
        patch : (int, int), optional
        together : int, optional
            Patches per network call; of a domain that is one patch: members. Default: as many as have the cells of one of 256
            x 256, since small ones leave a processor idle.
        """
        patch = patch or self.patch or ((_PATCH, _PATCH) if self._is_large else None)
        if patch is None:
            return TilingConfig(at_once=together or 1)
        overlap, at_once = min(32, min(patch) // 2), together or max(1, _PATCH**2 // math.prod(patch))
        return TilingConfig(patch=patch, overlap=overlap, margin=overlap // 8, at_once=at_once)

    @property
    def _is_large(self) -> bool:
        rows, columns = self.fine.grid.shape
        return rows * columns > _WHOLE

    def require_lead(self, forecast: bool, task: str) -> None:
        """Refuse an analysis where the errors of forecasts are to be added; ``task`` says what is not done.

        Raises
        ------
        InputError
        """
        if self.leads is not None and not forecast:
            found = f"an analysis; {self.name!r} was trained on forecasts of {self.leads[0]} to {self.leads[1]} hours"
            raise InputError(task, [f"found {found}. Give a forecast, or choose another model"])
