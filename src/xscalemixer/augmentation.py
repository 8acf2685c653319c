"""Augmentation: other versions of a training sample that the atmosphere could have produced."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from xscalemixer.forecaster import Branch
from xscalemixer.nn.blocks import Normalizer
from xscalemixer.nn.draws import uniform
from xscalemixer.physics.pressure import R_DRY

__all__ = ["SeasonShift", "TurnAndMirror"]


class TurnAndMirror(nn.Module):
    """Turns the globe around its axis and mirrors it at the equator: exact symmetries if terrain and sun go along."""

    sign: Tensor
    shift: Tensor

    def __init__(self, outer: Branch):
        super().__init__()
        mean, std = (torch.from_numpy(a) for a in outer.stats.arrays(outer.schema))
        northward = torch.tensor([channel.split("_")[0] in ("v", "v10") for channel in outer.schema.channels])
        _constant(self, "sign", torch.where(northward, -1.0, 1.0)[:, None, None])
        _constant(self, "shift", torch.where(northward, -2.0 * mean / std, 0.0)[:, None, None])  # -x, normalized

        lat = torch.tensor(outer.grid.latitude)
        self.turns, self.mirrors = outer.grid.periodic, bool(torch.allclose(lat, -lat.flip(0)))

    def forward(self, states: list[Tensor], others: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """States (B, C, H, W), normalized, and fields without wind (B, F, H, W), all by one random move."""
        if self.mirrors and torch.rand(()) < 0.5:
            states = [x.flip(2) * self.sign + self.shift for x in states]
            others = [x.flip(2) for x in others]
        turn = int(torch.randint(states[0].shape[3], ())) if self.turns else 0
        return [x.roll(turn, 3) for x in states], [x.roll(turn, 3) for x in others]


class SeasonShift(nn.Module):
    """Makes half of the samples colder (or a little warmer) towards the poles, most over land, as another season would.

    Training data of a few months would tie every temperature change to the temperatures of that season. The shift is
    the same at all times of a sample. Temperature changes by ``delta p / 1000 hPa``; geopotential follows
    hydrostatically, ``R delta (1 - p / 1000 hPa)``; humidity by 6.5 % per K, which keeps relative humidity (the
    Clausius-Clapeyron relation); wind and surface pressure stay, so it is a regularization, no exact symmetry.

    Parameters
    ----------
    outer, inner : Branch
    grounds : (array, array)
        Constant fields on both grids, shapes (S, H, W) and (S, h, w): orography in km and land fraction first.
    guessed : tuple of int
        Regional channels that the first fields of a cold-start batch are a guess of.
    coldest, warmest : float
        Range of the shift over land at 60 degrees and beyond, K.
    """

    HUMIDITY_PER_KELVIN = 0.065

    def __init__(
        self,
        outer: Branch,
        inner: Branch,
        grounds: tuple[np.ndarray, np.ndarray],
        guessed: tuple[int, ...],
        *,
        coldest: float,
        warmest: float = 5.0,
    ):
        super().__init__()
        self.range, self.guessed = (-coldest, warmest), list(guessed)
        self.parts = nn.ModuleDict(
            {"outer": _ShiftedFields(outer, *grounds[0][:2]), "inner": _ShiftedFields(inner, *grounds[1][:2])}
        )

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A training batch (see `samples.Windows`) or one of the cold start with shifted fields."""
        size = len(next(iter(batch.values())))
        low, high = self.range
        delta = (low + (high - low) * uniform(size)) * (uniform(size) < 0.5)
        shifted = {name: part(batch[name], delta) for name, part in self.parts.items() if name in batch}
        if "fields" in batch:
            guess, fixed = batch["fields"].tensor_split([len(self.guessed)], 1)
            shifted["fields"] = torch.cat([self.parts["inner"](guess, delta, self.guessed), fixed], 1)
        return {**batch, **shifted}


class _ShiftedFields(nn.Module):
    """The shift on one grid, in normalized values."""

    pattern: Tensor
    mean: Tensor
    std: Tensor
    warming: Tensor
    lifting: Tensor
    moistening: Tensor

    def __init__(self, branch: Branch, orography: np.ndarray, land: np.ndarray):
        super().__init__()
        lat = torch.tensor(branch.grid.latitude)[:, None]
        _constant(self, "pattern", ((lat.abs() - 10.0) / 50.0).clamp(0.0, 1.0) * (0.3 + 0.7 * torch.from_numpy(land)))
        scale = Normalizer(*branch.scale(1000.0 * orography))
        for name in ("mean", "std"):
            _constant(self, name, getattr(scale, name))
        names = [(v.name, level) for v in branch.schema.variables for level in v.levels or (1000,)]
        column = lambda pick: torch.tensor([pick(name, level / 1000.0) for name, level in names])[:, None, None]
        _constant(self, "warming", column(lambda name, p: p if name in ("t", "t2m") else 0.0))  # K per K
        _constant(self, "lifting", column(lambda name, p: R_DRY * (1.0 - p) if name == "z" else 0.0))  # m2 s-2 per K
        moistening = column(lambda name, p: SeasonShift.HUMIDITY_PER_KELVIN * p if name in ("q", "q2m") else 0.0)
        _constant(self, "moistening", moistening)

    def forward(self, x: Tensor, delta: Tensor, channels: list[int] | slice = slice(None)) -> Tensor:
        """(B, [T], C, H, W) with the given channels and shifts in K, shape (B,), -> the same shape."""
        field = delta.to(x.device)[:, None, None, None] * self.pattern  # (B, 1, H, W)
        field = field if x.ndim == 4 else field[:, None]
        mean, std = self.mean[channels], self.std[channels]
        added = field * (self.warming + self.lifting)[channels] / std
        amount = x + mean / std  # in standard deviations above physical zero
        return x + amount * torch.expm1(field * self.moistening[channels]) + added


def _constant(module: nn.Module, name: str, values: Tensor) -> None:
    """A tensor that moves to another device with its module and is not saved with it."""
    module.register_buffer(name, values, persistent=False)
