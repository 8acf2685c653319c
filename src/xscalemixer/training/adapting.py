"""A trained model on other grids and fewer variables: which weights move along, which start anew, and a report of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from xscalemixer.errors import CheckpointError
from xscalemixer.forecaster import Branch, Forecaster
from xscalemixer.grids import Grid
from xscalemixer.nn.patch import TokenGrid, bilinear
from xscalemixer.nn.scalemixer import ScaleMixerConfig, with_fitting_keys
from xscalemixer.report import Report
from xscalemixer.state import HOURS
from xscalemixer.training.config import TrainConfig
from xscalemixer.training.data import Contract, TrainingData, network_config
from xscalemixer.variables import Schema, Stats

__all__ = ["Adaptation", "Takeover"]

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
        pick = lambda table: {channel: table[channel] for channel in self.schemas[name].channels}
        return Stats(mean=pick(own.stats.mean), std=pick(own.stats.std), source=own.stats.source)

    def same_driver(self, grid: Grid) -> bool:
        """True if the global branch meets the grid and the channels it was trained on."""
        return grid == self.base.outer.grid and self.schemas["outer"] == self.base.outer.schema

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
    if config.coupling == "downscaled":
        axes["network.inner.embedding.project.weight"] = (1, driver + fixed(config.inner))
        cells = list(product(range(HOURS), inner, range(config.inner.patch**2)))
        axes |= {f"network.inner.head.{part}": (0, cells) for part in ("weight", "bias")}
    else:
        axes["network.inner.embedding.project.weight"] = (1, inner)
        if model.network.inner.driver_embedding is not None:
            axes["network.inner.driver_embedding.project.weight"] = (1, driver)
        for hour in range(HOURS):
            axes |= _head_axes(f"network.inner.heads.{hour}", config, inner)
    cold = model.cold_start.config
    inputs = [inner[channel] for channel in cold.guessed] + list(range(cold.inputs - len(cold.guessed) + HOURS))
    axes["cold_start.widen.weight"] = (1, inputs)
    axes |= {f"cold_start.head.{part}": (0, list(product(range(HOURS), inner))) for part in ("weight", "bias")}
    return axes


def _head_axes(name: str, config: ScaleMixerConfig, inner: list[str]) -> dict[str, tuple[int, list]]:
    """The same of the head of one lead time."""
    if not config.detail:
        last = f"{name}.deconvolution.stages.{len(config.inner.head_widths) - 1}"
        return {f"{last}.weight": (1, inner), f"{last}.bias": (0, inner)}
    others = config.inner.statics + (2 if config.inner.forcings else 0)
    inputs = list(range(config.detail)) + inner + [("local", i) for i in range(others)]
    return {f"{name}.refine.0.weight": (1, inputs), f"{name}.refine.4.weight": (0, inner), f"{name}.refine.4.bias": (0, inner)}
