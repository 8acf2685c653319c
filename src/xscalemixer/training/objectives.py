"""What each stage minimizes: a network, the loss of a batch, and what is trained by it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from xscalemixer.augmentation import TurnAndMirror
from xscalemixer.grids import Grid
from xscalemixer.nn.blocks import Group
from xscalemixer.nn.coldstart import ColdStart
from xscalemixer.nn.scalemixer import CoupledModel, GlobalModel, ScaleMixer, Tower
from xscalemixer.state import HOURS
from xscalemixer.training.config import Stage
from xscalemixer.training.data import TrainingData
from xscalemixer.variables import Schema

__all__ = ["ColdStartObjective", "CoupledObjective", "GlobalObjective", "channel_weights", "relative_entropy", "row_weights"]

Losses = tuple[Tensor, dict[str, Tensor]]  # what is minimized, shape (), and parts to look at, detached


class _NetworkObjective(nn.Module):
    """Trains the parameters of one network that are not frozen; nothing follows an update."""

    def __init__(self, network: nn.Module, stage: Stage):
        super().__init__()
        self.network = network
        for module in network.modules():
            if isinstance(module, Group):
                module.recompute = stage.recompute

    def trainable(self) -> list[nn.Parameter]:
        """Parameters to optimize."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def after_step(self) -> None:
        """Nothing."""


class GlobalObjective(_NetworkObjective):
    """Eq. 14, on samples that are turned and mirrored while training.

    Parts: mean absolute error of each variable, normalized, and of persistence by eq. 14.
    """

    network: GlobalModel

    def __init__(self, network: GlobalModel, data: TrainingData, stage: Stage):
        super().__init__(network, stage)
        self.error = _GlobalError(data)
        self.turn_and_mirror = TurnAndMirror(data.outer)

    def loss(self, batch: Mapping[str, Tensor]) -> Losses:
        """Of a batch of `samples.Windows`."""
        start, end, forcing = batch["outer"][:, 0], batch["outer"][:, 1], batch["outer_forcing"][:, 0]
        statics = self.network.statics.expand(start.shape[0], -1, -1, -1)
        if self.training:
            (start, end), (forcing, statics) = self.turn_and_mirror([start, end], [forcing, statics])
        prediction = self.network(start, forcing, statics)
        parts = {"persistence": self.error(start, end), **self.error.by_variable(prediction.detach(), end)}
        return self.error(prediction, end), parts


class CoupledObjective(_NetworkObjective):
    """Eq. 15, over one or more steps; with eq. 14 for the global branch where that hears of the region.

    Parts: mean absolute error of each regional variable, normalized; of learned keys the entropy of their distribution,
    relative to the uniform one (1: no choice yet, 0: all on one token).
    """

    network: CoupledModel

    def __init__(self, network: CoupledModel, data: TrainingData, stage: Stage):
        super().__init__(network.freeze_outer(), stage)
        self.detach, self.global_weight = stage.detach, _global_weight(network, stage)
        self.error = _GlobalError(data) if self.global_weight else None
        self.shift = data.season_shift(stage)
        self.channels = data.inner.schema.channels

    def trainable(self) -> list[nn.Parameter]:
        """What is not frozen; nor the score networks if no gate lets a gradient reach them."""
        if self.network.config.sampler.gate != "none":
            return super().trainable()
        idle = {id(parameter) for name, parameter in self.network.mixers.named_parameters() if ".sampler." in name}
        return [parameter for parameter in super().trainable() if id(parameter) not in idle]

    def loss(self, batch: Mapping[str, Tensor]) -> Losses:
        """Of a batch of `samples.Windows`, or of `towers.WithTower`."""
        batch = self.shift(batch) if self.training and self.shift else batch
        outer, inner = batch["outer"][:, 0], batch["inner"][:, :HOURS]
        steps, value, predicted, entropies = batch["calendar"].shape[1], outer.new_zeros(()), [], []
        mixers = cast("Iterable[ScaleMixer]", self.network.mixers)  # a ModuleList does not know the kind of its modules
        for i in range(steps):
            forcing = batch["outer_forcing"][:, i], batch["inner_forcing"][:, i]
            tower = Tower(batch["tower_tokens"][:, i], batch["tower_state"][:, i]) if "tower_state" in batch else None
            result = self.network(outer, inner, batch["calendar"][:, i], *forcing, tower=tower)
            outer, inner = result.outer, result.inner
            truth = batch["inner"][:, HOURS * (i + 1) : HOURS * (i + 2)]
            value = value + self.network.loss(inner, truth) / steps
            if self.error is not None:
                value = value + self.global_weight * self.error(outer, batch["outer"][:, i + 1]) / steps
            predicted.append(inner.detach())
            for mixer, keys in zip(mixers, result.keys, strict=True):
                entropies.append(relative_entropy(keys.scores.detach(), mixer.sampler.domain_size))
            if self.detach:
                outer, inner = outer.detach(), inner.detach()
        error = (torch.cat(predicted, 1) - batch["inner"][:, HOURS:]).abs().mean((0, 1, 3, 4))
        parts = dict(zip(self.channels, error, strict=True))
        if entropies and self.network.config.sampler.mode == "adaptive":
            parts["key_entropy"] = torch.stack(entropies).mean()
        return value, parts


def _global_weight(network: CoupledModel, stage: Stage) -> float:
    """Of eq. 14; 0 where the global network does not hear of the region, and its error does not depend on what is trained."""
    if network.config.coupling != "two_way":
        return 0.0
    hearing = network.alignment.box.numel() / len(network.config.outer.tokens)
    return 1.0 / hearing if stage.global_weight is None else stage.global_weight


def relative_entropy(scores: Tensor, size: int) -> Tensor:
    """Entropy of distributions over that of the uniform one on ``size`` tokens, mean over the batch: (B, N) -> ()."""
    return -torch.xlogy(scores, scores).sum(-1).mean() / math.log(max(size, 2))


class ColdStartObjective(_NetworkObjective):
    """Mean absolute error of the invented history. Parts: the same of each variable."""

    network: ColdStart

    def __init__(self, network: ColdStart, data: TrainingData, stage: Stage):
        super().__init__(network, stage)
        self.shift = data.season_shift(stage)
        self.channels = data.inner.schema.channels

    def loss(self, batch: Mapping[str, Tensor]) -> Losses:
        """Of a batch of `data.ColdStartSamples`."""
        batch = self.shift(batch) if self.training and self.shift else batch
        prediction = self.network(batch["fields"], batch["sun"])
        error = (prediction.detach() - batch["inner"]).abs().mean((0, 1, 3, 4))
        return self.network.loss(prediction, batch["inner"]), dict(zip(self.channels, error, strict=True))


# --------------------------------------------------------------------------------------------------------------- weights


class _GlobalError(nn.Module):
    """Eq. 14 on one grid."""

    channel_weight: Tensor
    row_weight: Tensor
    variable: Tensor

    def __init__(self, data: TrainingData):
        super().__init__()
        schema = data.outer.schema
        self.names = schema.names
        self.register_buffer("channel_weight", channel_weights(schema), persistent=False)
        self.register_buffer("row_weight", row_weights(data.outer.grid), persistent=False)
        index = [number for number, variable in enumerate(schema.variables) for _ in variable.channels]
        self.register_buffer("variable", torch.tensor(index), persistent=False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B, C, H, W), (B, C, H, W) -> ()."""
        return GlobalModel.loss(prediction, target, self.channel_weight, self.row_weight)

    def by_variable(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Mean absolute error of each variable over its levels, area weighted."""
        error = ((prediction - target).abs().mean((0, 3)) * self.row_weight).mean(-1)  # (C,)
        total = error.new_zeros(len(self.names)).index_add(0, self.variable, error)
        return dict(zip(self.names, total / self.variable.bincount(), strict=True))


def channel_weights(schema: Schema) -> Tensor:
    """Weights of eq. 14, shape (C,), sum 1: upper air by pressure, damped above 300 hPa, and surface weights.

    Upper air ``p / sum(p)`` over the levels, times 0.1, 0.2, 0.4, 0.6, 0.8 at 50, 100, 150, 250, 300 hPa, 3.2 at
    200 hPa and 1.6 at 500 hPa; surface 0.2 (t2m), 0.15 (winds, msl), 0.08 (others). Those of the group's public model.
    """
    factor = {50: 0.1, 100: 0.2, 150: 0.4, 200: 3.2, 250: 0.6, 300: 0.8, 500: 1.6}
    surface = {"t2m": 0.2, "u10": 0.15, "v10": 0.15, "msl": 0.15}
    total = sum(schema.levels)
    rows: list[float] = []
    for variable in schema.variables:
        rows += [level / total * factor.get(level, 1.0) for level in variable.levels] or [surface.get(variable.name, 0.08)]
    weights = torch.tensor(rows)
    return weights / weights.sum()


def row_weights(grid: Grid) -> Tensor:
    """Latitude factor of eq. 14, ``sqrt(cos / mean cos)`` scaled to mean 1, shape (H,)."""
    cos = torch.tensor(grid.latitude).deg2rad().cos()
    weight = (cos / cos.mean()).sqrt()
    return weight / weight.mean()
