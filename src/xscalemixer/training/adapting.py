"""A trained model on other grids and fewer variables: which weights move along, which start anew, and a report of both.

`Adaptation` is of coupled models, `HourlyAdaptation` of models of a region alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from xscalemixer.errors import CheckpointError
from xscalemixer.forecaster import Branch, Forecaster
from xscalemixer.grids import Grid
from xscalemixer.nn.driving import DRIVEN
from xscalemixer.nn.met2net import STAGES, Met2NetConfig
from xscalemixer.nn.patch import TokenGrid, bilinear
from xscalemixer.nn.scalemixer import ScaleMixerConfig, with_fitting_keys
from xscalemixer.regional import RegionalForecaster
from xscalemixer.report import Report
from xscalemixer.samples import sequence_starts, window_starts
from xscalemixer.state import GROUPS, HOUR, HOURS
from xscalemixer.training.alone import HourlyContract, HourlyData, dataset_of, trained_by
from xscalemixer.training.config import Met2NetTrainConfig, Periods, TrainConfig
from xscalemixer.training.data import Contract, TrainingData, groups_of, network_config
from xscalemixer.variables import Schema, Stats

__all__ = ["Adaptation", "HourlyAdaptation", "Takeover"]

Times = Mapping[str, np.ndarray]  # by branch

_SIMILAR = 2.0  # positions are interpolated between token grids whose spacings differ by at most this factor


@dataclass(frozen=True)
class Takeover:
    """What an adapted model has from the one it comes from.

    Attributes
    ----------
    tensors, parameters : (int, int)
        Number that was taken over, and number of all.
    sliced : tuple of str
        Tensors that were taken over without the channels of missing variables.
    anew : dict of str
        Tensors that start anew, and why.
    """

    tensors: tuple[int, int]
    parameters: tuple[int, int]
    sliced: tuple[str, ...]
    anew: dict[str, str]

    @property
    def share(self) -> float:
        """Share of the parameters, 0..1."""
        return self.parameters[0] / self.parameters[1]

    @property
    def shares(self) -> str:
        """Both in words."""
        tensors, parameters = (100 * taken / count for taken, count in (self.tensors, self.parameters))
        return f"{tensors:.1f} % of the tensors and {parameters:.1f} % of the parameters are taken over"

    def __str__(self) -> str:
        sliced = f", {len(self.sliced)} of the tensors without the channels of missing variables" if self.sliced else ""
        anew = "; ".join(f"{name} starts anew: {why}" for name, why in self.anew.items())
        return f"{self.shares}{sliced}. {anew}".strip()

    def to_dict(self) -> dict:
        """Plain data."""
        return {
            "tensors": list(self.tensors),
            "parameters": list(self.parameters),
            "sliced": list(self.sliced),
            "anew": self.anew,
        }

    def require(self, least: float, task: str) -> None:
        """Refuse a model that has little from the one it comes from.

        Raises
        ------
        CheckpointError
            With both shares and all that starts anew.
        """
        if self.share >= least:
            return
        fix = f"Train from scratch (xsm.train), choose fewer cells, or accept it: least={int(100 * self.share) / 100:g}"
        problems = [f"{name} starts anew: {why}" for name, why in self.anew.items()]
        raise CheckpointError(f"{task}: {self.shares}", [*problems, f"needed {100 * least:g} % of the parameters. {fix}"])


class Adaptation(Contract):
    """What a trained model asks of other data, and how its weights get there.

    Parameters
    ----------
    base : Forecaster
        It is not changed.
    schemas : dict of Schema
        Its own ones by ``"outer"`` and ``"inner"``, or parts of them.
    statistics : "new" or "keep"
        Of the training periods, or its own. A driver on its own grid with all of its channels keeps its statistics in
        either case, because the global network then need not be trained again.
    """

    advice = "Choose another region, or another driver"
    titles = {branch: f"/{group}" for branch, group in GROUPS.items()}
    less_memory = "per_pass=1, recompute=True"
    rates = {"global": 3e-4, "regional": 3e-4, "rollout": 5e-5, "cold_start": 3e-4}
    shortest = 18 * HOUR  # any period of that length holds a sample: 12 hours around a time at 0, 6, 12 or 18 UTC

    def __init__(self, base: Forecaster, schemas: dict[str, Schema], statistics: str):
        self.base, self.schemas, self.statistics = base, schemas, statistics
        self.statics = base.inner.statics
        self.cold_start = {name: getattr(base.cold_start.config, name) for name in ("width", "depth", "guess")}
        self.words = f"the network of {base.name!r}"

    def network(self, outer, inner) -> ScaleMixerConfig:
        """Its network on other grids, with as many keys as there are global tokens, if these are fewer."""
        settings = self.base.network.config
        one_key = replace(settings, sampler=replace(settings.sampler, keys=1))
        placed = network_config(one_key, outer, inner)
        if (outer.grid, inner.grid) == (self.base.outer.grid, self.base.inner.grid):
            placed = replace(placed, inner=replace(placed.inner, offset=settings.inner.offset))
        return with_fitting_keys(placed, settings.sampler.keys)

    def schema(self, name: str, report: Report) -> Schema | None:
        """Its own, without what the data lack."""
        return self.schemas[name]

    def stats(self, name: str, grid: Grid) -> Stats | None:
        """Its own statistics of the channels that are left, where they are kept."""
        if self.statistics == "new" and not (name == "outer" and self.same_driver(grid)):
            return None
        own: Branch = getattr(self.base, name)
        return _part_of(own.stats, self.schemas[name])

    def reduced(self, grid: Grid) -> bool:
        """New statistics are those of reduced fields where the model's own are, and in another region if its network may be."""
        moved = grid != self.base.inner.grid and self.base.network.config.coupling not in DRIVEN
        return moved or self.base.inner.stats.reduced

    def same_driver(self, grid: Grid) -> bool:
        """True if the global branch meets the grid and the channels it was trained on."""
        return grid == self.base.outer.grid and self.schemas["outer"] == self.base.outer.schema

    @staticmethod
    def groups(tree: xr.DataTree, report: Report) -> dict[str, xr.Dataset]:
        """The data by branch; problems go to the report."""
        return groups_of(tree, report)

    def kinds(self, driver: Grid | None) -> list[str]:
        """Stages of a fine-tuning, unless others are given."""
        kinds = list(self.rates)
        return kinds[1:] if driver is not None and self.same_driver(driver) else kinds

    @staticmethod
    def count(times: Times, periods: Periods, steps: int) -> int:
        """Samples within periods; TimeError if there is none."""
        return len(window_starts(times["outer"], times["inner"], periods, steps))

    def config(self, **settings) -> TrainConfig:
        """Settings of a run."""
        return TrainConfig(calendar=self.base.calendar, **settings)

    def begin(self, data: TrainingData, config: TrainConfig) -> tuple[Forecaster, Takeover]:
        """The adapted model to train from; what starts anew does so by the seed of the settings."""
        torch.manual_seed(config.seed)
        model = data.model(self, config)
        places = dict(_places(self.base, model))
        channels = dict(_sliced_channels(self.base, model))
        known, wanted = self.base.modules.state_dict(), model.modules.state_dict()
        parameters = {name for name, _ in model.modules.named_parameters()}
        taken, anew = {}, {}
        for name in parameters:
            if name in places:
                value, why = _moved(known[name].cpu(), *places[name])
            elif name in channels:
                axis, index = channels[name]
                value, why = known[name].cpu().index_select(axis, torch.tensor(index, dtype=torch.long)), ""
            else:
                value, why = known[name].cpu(), ""
            if value is None:
                anew[name] = why
            else:
                taken[name] = value
        model.modules.load_state_dict({**wanted, **taken})
        count = lambda names: sum(wanted[name].numel() for name in names)
        cut = tuple(sorted(name for name in channels if known[name].shape != wanted[name].shape))
        takeover = Takeover((len(taken), len(parameters)), (count(taken), count(parameters)), cut, dict(sorted(anew.items())))
        return model, takeover


class HourlyAdaptation(HourlyContract):
    """What a trained model of a region alone asks of other data, and how its weights get there.

    None of them belongs to a place or to a number of variables: all move along, but for the encoders and decoders of variables
    that are missing.

    Parameters
    ----------
    base : RegionalForecaster
        It is not changed.
    schemas : dict of Schema
        Its own one, or a part of it, as ``"inner"``.
    statistics : "new" or "keep"
        Of the training periods, or its own.
    """

    advice = "Choose another region"
    trained = True
    titles = {"inner": "the data"}
    less_memory = "per_pass=1"
    rates = dict.fromkeys((kind for kinds in STAGES.values() for kind in kinds), 3e-4)

    def __init__(self, base: RegionalForecaster, schemas: dict[str, Schema], statistics: str):
        self.base, self.statistics = base, statistics
        self.own = schemas["inner"]
        self.words = f"the network of {base.name!r}"
        settings = base.network.config
        self.hours = settings.past + settings.future
        self.shortest = self.hours * HOUR

    @staticmethod
    def groups(ds: xr.Dataset, report: Report) -> dict[str, xr.Dataset]:
        """The data by branch; problems go to the report."""
        found = dataset_of(ds, report)
        return {} if found is None else {"inner": found}

    def kinds(self, driver: Grid | None) -> list[str]:
        """Stages of a fine-tuning, unless others are given: those that the model was trained in."""
        return list(STAGES[self.base.network.config.objective.way])

    def count(self, times: Times, periods: Periods, steps: int) -> int:
        """Samples within periods; TimeError if there is none."""
        return len(sequence_starts(times["inner"], periods, self.hours))

    def config(self, **settings) -> Met2NetTrainConfig:
        """Settings of a run."""
        return Met2NetTrainConfig(variables=self.own.names, levels=self.own.levels, **settings)

    def schema(self, config: Met2NetTrainConfig, report: Report) -> Schema:
        """The channels of the model that are left."""
        return self.own

    def network(self, config: Met2NetTrainConfig, schema: Schema, grid: Grid | None) -> Met2NetConfig:
        """Its network for these channels; longitude wraps where the grid does, unless it did not wrap on such a grid before."""
        base, places = self.base.network.config, {name: place for place, name in enumerate(schema.channels)}
        groups = tuple(tuple(places[name] for name in names) for _, names in self._groups(schema)) if base.groups else None
        wraps = grid is not None and grid.periodic and (base.periodic or not self.base.inner.grid.periodic)
        return trained_by(replace(base, channels=len(schema), groups=groups, periodic=wraps), config)

    def stats(self, schema: Schema) -> Stats | None:
        """Its own statistics of the channels that are left, where they are kept."""
        return _part_of(self.base.inner.stats, schema) if self.statistics == "keep" else None

    def reduced(self, grid: Grid) -> bool:
        """New statistics are those of reduced fields where the model's own are, and in another region."""
        return grid != self.base.inner.grid or self.base.inner.stats.reduced

    def begin(self, data: HourlyData, config: Met2NetTrainConfig) -> tuple[RegionalForecaster, Takeover]:
        """The adapted model to train from."""
        torch.manual_seed(config.seed)
        model = data.model(self, config)
        known, wanted = self.base.network.state_dict(), model.network.state_dict()
        values = {name: self._taken(name, known).cpu() for name in wanted}
        model.network.load_state_dict(values)
        names = [name for name, _ in model.network.named_parameters()]
        cut = tuple(f"network.{name}" for name in names if known[self._origin(name)].shape != wanted[name].shape)
        count, tensors = sum(wanted[name].numel() for name in names), len(names)
        return model, Takeover((tensors, tensors), (count, count), cut, {})

    def _groups(self, schema: Schema) -> list[tuple[int, list[str]]]:
        """Encoders and decoders of the model that are left, with the channels that they keep."""
        channels = self.base.inner.schema.channels
        members = enumerate([channels[i] for i in group] for group in self.base.network.config.members)
        kept = [(number, [name for name in names if name in schema.channels]) for number, names in members]
        return [(number, names) for number, names in kept if names]

    def _origin(self, name: str) -> str:
        """The tensor of the model that a tensor of the adapted one comes from."""
        part, *rest = name.split(".")
        if part in ("encoders", "decoders"):
            rest[1] = str(self._groups(self.own)[int(rest[1])][0])
        return ".".join((part, *rest))

    def _taken(self, name: str, known: Mapping[str, Tensor]) -> Tensor:
        """Its values, without the channels that are missing."""
        value, settings = known[self._origin(name)], self.base.network.config
        part, *rest = name.split(".")
        first, last = "0.0.weight", (f"{settings.units}.weight", f"{settings.units}.bias")
        if part not in ("encoders", "decoders") or ".".join(rest[2:]) not in ((first,) if part == "encoders" else last):
            return value
        number, names = self._groups(self.own)[int(rest[1])]
        before = [self.base.inner.schema.channels[i] for i in settings.members[number]]
        return value.index_select(1 if part == "encoders" else 0, torch.tensor([before.index(name) for name in names]))


def _part_of(stats: Stats, schema: Schema) -> Stats:
    """Statistics of some channels."""
    pick = lambda table: {channel: table[channel] for channel in schema.channels}
    return replace(stats, mean=pick(stats.mean), std=pick(stats.std))


def _moved(table: Tensor, old: TokenGrid, new: TokenGrid) -> tuple[Tensor | None, str]:
    """Learned positions (N, d) on another token grid, or None and why they cannot move.

    The same tokens keep theirs. On tokens of similar size within the old grid they are interpolated: a position tells of
    the climate of its place, and of its neighbors by how far it differs from theirs. Elsewhere neither holds.
    """
    if old == new:
        return table, ""
    steps = [[abs(edges[-1] - edges[0]) / (edges.size - 1) for edges in grid.edges] for grid in (old, new)]
    ratio = max(max(a / b, b / a) for a, b in zip(*steps, strict=True))
    if ratio > _SIMILAR:
        return None, f"tokens of {steps[1][0]:.3g} x {steps[1][1]:.3g} degrees instead of {steps[0][0]:.3g} x {steps[0][1]:.3g}"
    if not _covers(old, new):
        return None, "another place on earth"
    index, weight = bilinear(old, *new.axes)
    return torch.einsum("nkd,nk->nd", table[torch.as_tensor(index)], torch.as_tensor(weight, dtype=table.dtype)), ""


def _covers(old: TokenGrid, new: TokenGrid) -> bool:
    """True if all cells of a field lie within the tokens of another one."""
    (lat_edges, lon_edges), lat, lon = old.edges, new.latitude, new.longitude
    columns = old.periodic or all((x - lon_edges[0]) % 360 <= lon_edges[-1] - lon_edges[0] for x in lon)
    return lat_edges[-1] <= lat[-1] and lat[0] <= lat_edges[0] and columns


def _places(base: Forecaster, model: Forecaster) -> Iterator[tuple[str, tuple[TokenGrid, TokenGrid]]]:
    """Parameters that belong to places, with the tokens they belong to before and after."""
    names = {name for name, _ in model.modules.named_parameters()}
    for branch in ("outer", "inner"):
        grids = tuple(getattr(each.network.config, branch).tokens for each in (base, model))
        for name in (f"network.{branch}.position.table", f"network.{branch}.position"):
            if name in names:
                yield name, grids


def _sliced_channels(base: Forecaster, model: Forecaster) -> Iterator[tuple[str, tuple[int, list[int]]]]:
    """Parameters with an axis of channels: its number, and which of the old places along it the new ones are."""
    before = _channel_axes(base)
    for name, (axis, labels) in _channel_axes(model).items():
        places = {label: place for place, label in enumerate(before[name][1])}
        yield name, (axis, [places[label] for label in labels])


def _channel_axes(model: Forecaster) -> dict[str, tuple[int, list]]:
    """Parameters with an axis of channels: its number, and what stands along it."""
    config = model.network.config
    outer, inner = list(model.outer.schema.channels), list(model.inner.schema.channels)
    fixed = lambda branch: [(kind, i) for kind in ("statics", "forcings") for i in range(getattr(branch, kind))]
    driver = list(product(("now", "ahead"), outer))
    last = len(config.outer.head_widths) - 1
    axes: dict[str, tuple[int, list]] = {
        "network.outer.embedding.project.weight": (1, outer + fixed(config.outer)),
        f"network.outer.head.stages.{last}.weight": (1, outer),
        f"network.outer.head.stages.{last}.bias": (0, outer),
    }
    if config.driver_width:
        axes["network.driver_tokens.narrow.weight"] = (1, driver)
    if config.coupling == "downscaled":
        axes["network.inner.embedding.project.weight"] = (1, driver + fixed(config.inner))
        cells = list(product(range(HOURS), inner, range(config.inner.patch**2)))
        axes |= {f"network.inner.head.{part}": (0, cells) for part in ("weight", "bias")}
    else:
        axes |= _embedding_axes(config, inner)
        if model.network.inner.driver_embedding is not None:
            axes["network.inner.driver_embedding.project.weight"] = (1, driver)
        for hour in range(HOURS):
            axes |= _head_axes(f"network.inner.heads.{hour}", config, inner)
    cold = model.cold_start.config
    inputs = [inner[channel] for channel in cold.guessed] + list(range(cold.inputs - len(cold.guessed) + HOURS))
    axes["cold_start.widen.weight"] = (1, inputs)
    axes |= {f"cold_start.head.{part}": (0, list(product(range(HOURS), inner))) for part in ("weight", "bias")}
    return axes


def _embedding_axes(config: ScaleMixerConfig, inner: list[str]) -> dict[str, tuple[int, list]]:
    """The same of the embedding of the regional hours, or of the encoders of the variables and the layer that mixes them."""
    if not config.variable_width:
        return {"network.inner.embedding.project.weight": (1, inner)}
    features = list(product(inner, range(config.variable_width)))
    rows = {"project": list(product(inner, range(config.width))), "narrow": features}
    axes = {f"network.inner.embedding.{name}.{part}": (0, rows[name]) for name in rows for part in ("weight", "bias")}
    return axes | {"network.inner.merge.weight": (1, list(product(range(HOURS), features)))}


def _head_axes(name: str, config: ScaleMixerConfig, inner: list[str]) -> dict[str, tuple[int, list]]:
    """The same of the head of one lead time."""
    if not config.detail:
        last = f"{name}.deconvolution.stages.{len(config.inner.head_widths) - 1}"
        return {f"{last}.weight": (1, inner), f"{last}.bias": (0, inner)}
    others = config.inner.statics + (2 if config.inner.forcings else 0)
    inputs = list(range(config.detail)) + inner + [("local", i) for i in range(others)]
    return {f"{name}.refine.0.weight": (1, inputs), f"{name}.refine.4.weight": (0, inner), f"{name}.refine.4.bias": (0, inner)}
