"""Training on the hours of a region alone: its data, and what the stages of Met2Net minimize."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from xscalemixer.errors import InputError, SchemaError, TimeError
from xscalemixer.grids import Grid
from xscalemixer.model import Branch
from xscalemixer.nn.met2net import STAGES, Met2Net, Met2NetConfig, Met2NetObjective, TrainingWay
from xscalemixer.regional import RegionalForecaster, Statics
from xscalemixer.report import Report
from xscalemixer.samples import Sequences, Series, sequence_starts, survey
from xscalemixer.state import HOUR
from xscalemixer.training.config import Met2NetTrainConfig, Periods, are_periods, check_settings, schema_of
from xscalemixer.training.data import (
    Source,
    check_count,
    check_skip,
    digest_of,
    grid_digest,
    read_source,
    statistics_digest,
    too_large,
    warn_of_chunks,
)
from xscalemixer.training.engine import OneStage
from xscalemixer.variables import Schema, Stats

__all__ = ["HourlyContract", "HourlyData", "Met2NetStage", "RegionAlone", "dataset_of", "trained_by"]

log = logging.getLogger(__name__)

_TITLE = "hourly fields"
_STATICS = ("orog", "lsm")


class Met2NetStage(OneStage):
    """A stage of Met2Net; while validating, all that forecast are measured alike: by the error of the forecast.

    So the best weights of each way of training are chosen by the same number. Parts while validating: mean square error of each
    channel and of persistence, normalized. Autoencoders are measured by their reconstruction.

    Parameters
    ----------
    network : Met2Net
        Trained in place.
    stage : "implicit", "joint", "autoencoder" or "translator"
    channels : tuple of str
        Names of the channels.
    """

    def __init__(self, network: Met2Net, stage: str, channels: tuple[str, ...]):
        super().__init__(Met2NetObjective(network), stage)
        self.channels = channels

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Of a batch of `samples.Sequences`."""
        if self.training or self.stage == "autoencoder":
            return super().loss(batch)
        past, future = batch["past"], batch["future"]
        error = (self.objective.network(past) - future).square().mean((0, 1, 3, 4))
        persistence = (past[:, -1:] - future).square().mean()
        return error.mean(), {"persistence": persistence, **dict(zip(self.channels, error, strict=True))}


@dataclass(frozen=True)
class HourlyData:
    """Hourly fields of one region in physical units, with their contract.

    Attributes
    ----------
    branch : Branch
    series : Series
    statics : dict of array, shape (H, W)
        Those of orography (m) and land fraction that the data have.
    digests : dict of str
        Hashes that tell other data, grids or statistics apart.
    """

    branch: Branch
    series: Series
    statics: dict[str, np.ndarray]
    digests: dict[str, str]

    @classmethod
    def of(
        cls,
        config: Met2NetTrainConfig,
        ds: xr.Dataset,
        contract: HourlyContract,
        *,
        memory: float,
        skip: float,
        min_samples: int,
        report: Report,
    ) -> HourlyData:
        """Check settings and data, and survey them; for the arguments see `data.TrainingData.of`.

        Raises
        ------
        InputError
            With every problem of settings and data.
        """
        check_settings(config, report)
        _check_stages(config, contract, report)
        check_skip(skip, report)
        schema, fields = contract.schema(config, report), dataset_of(ds, report)
        source = None if schema is None or fields is None else read_source(fields, _TITLE, schema, (), (1,), skip, report)
        settings = None
        if schema is not None and config.size in config.sizes:
            settings = _settings(config, contract, schema, source, report)
        task = f"{config.name!r} cannot be trained"
        if source is None or settings is None:
            raise report.failure(task)
        _check_samples(config, settings, source.ds["time"].values, min_samples, report)
        report.raise_errors(task)
        return cls._surveyed(config, contract, source, settings, memory, report)

    @classmethod
    def _surveyed(
        cls,
        config: Met2NetTrainConfig,
        contract: HourlyContract,
        source: Source,
        settings: Met2NetConfig,
        memory: float,
        report: Report,
    ) -> HourlyData:
        schema = source.schema
        series = Series.of(source.ds, schema, lazy=too_large(source.nbytes, memory) and source.is_lazy)
        warn_of_chunks(_TITLE, series, settings.past + settings.future, report)
        zero_mean = ("ssrd",) if "ssrd" in schema.names else ()
        about = f"training periods of {config.name}"
        statics = {name: source.ds[name].values.astype("f4") for name in _STATICS if name in source.ds}
        height = statics.get("orog") if contract.reduced(source.grid) else None
        found, digest = survey(series, schema, config.train, zero_mean=zero_mean, source=about, height=height)
        stats = contract.stats(schema) or found
        digests = {
            "inner grid": grid_digest(source.grid),
            "inner statistics": statistics_digest(stats, schema),
            "inner data": f"{digest} {digest_of(*statics.values())}",
        }
        for finding in report.select("warning"):
            log.warning("%s", finding)
        return cls(Branch(schema, source.grid, stats, tuple(statics)), series, statics, digests)

    def model(self, contract: HourlyContract, config: Met2NetTrainConfig) -> RegionalForecaster:
        """The network of a contract on this grid, with random weights and the name of the settings."""
        network = Met2Net(contract.network(config, self.branch.schema, self.branch.grid))
        return RegionalForecaster(config.name, network, self.branch, Statics(self.statics))

    def sequences(self, settings: Met2NetConfig, periods: Periods) -> Sequences:
        """Normalized training samples."""
        scale = self.branch.scale(self.statics.get("orog"))
        return Sequences(self.series, scale, periods, settings.past, settings.future)


class HourlyContract(Protocol):
    """What a model of a region alone asks of the data, and the network it puts on them.

    Attributes
    ----------
    words, advice : str
        What the network is called, and what to change where it does not fit.
    trained : bool
        Its encoders and decoders have learned something already.
    """

    words: str
    advice: str
    trained: bool

    def schema(self, config: Met2NetTrainConfig, report: Report) -> Schema | None:
        """The channels; None, with errors in the report, where there are none."""

    def network(self, config: Met2NetTrainConfig, schema: Schema, grid: Grid | None) -> Met2NetConfig:
        """The network for these channels, with the objective of the stages; longitude wraps where the grid does."""

    def stats(self, schema: Schema) -> Stats | None:
        """Statistics that the model brings with it; None: those of the training periods."""

    def reduced(self, grid: Grid) -> bool:
        """The fields are normalized after reduction to sea level, if their statistics are new and orography comes with them."""

    def collect(self, config: Met2NetTrainConfig, ds: xr.Dataset, **how) -> HourlyData:
        """The data, checked and surveyed; for ``how`` see `HourlyData.of`."""
        return HourlyData.of(config, ds, self, **how)


class RegionAlone(HourlyContract):
    """The configured preset of Met2Net on the configured variables."""

    advice = "Change network= or size= of the settings"
    trained = False

    def __init__(self, config: Met2NetTrainConfig):
        self.config = config
        self.words = f"size={config.size!r}, network={config.network}"

    def schema(self, config: Met2NetTrainConfig, report: Report) -> Schema | None:
        """The configured variables."""
        return schema_of("", config.variables, config.levels, report)

    def network(self, config: Met2NetTrainConfig, schema: Schema, grid: Grid | None) -> Met2NetConfig:
        """The configured preset."""
        settings = getattr(Met2NetConfig, config.size)(channels=len(schema), periodic=grid is not None and grid.periodic)
        return trained_by(settings.changed(config.network), config)

    def stats(self, schema: Schema) -> Stats | None:
        """None."""

    def reduced(self, grid: Grid) -> bool:
        """As configured."""
        return self.config.reduced

    def fresh(self, data: HourlyData) -> RegionalForecaster:
        """A model to train, with random weights."""
        return data.model(self, self.config)


def trained_by(settings: Met2NetConfig, config: Met2NetTrainConfig) -> Met2NetConfig:
    """The same network with the objective of the configured stages."""
    return replace(settings, objective=replace(settings.objective, way=_ways(config)[0]))


def _ways(config: Met2NetTrainConfig) -> list[TrainingWay]:
    """Ways of training that the stages belong to."""
    kinds = {stage.kind for stage in config.stages}
    return [way for way, stages in STAGES.items() if kinds & set(stages)] or list(STAGES)


# ---------------------------------------------------------------------------------------------------------------- checks


def _check_stages(config: Met2NetTrainConfig, contract: HourlyContract, report: Report) -> None:
    """They are of one way of training."""
    if len(ways := _ways(config)) > 1 and config.stages:
        found = f"stages of {' and '.join(ways)} training"
        needed = '"implicit", or "joint", or "autoencoder" and then "translator"'
        report.error("stages", found, needed, "Train each way in a run of its own", kind=InputError)
    kinds = [stage.kind for stage in config.stages]
    if "translator" in kinds and not contract.trained and "autoencoder" not in kinds[: kinds.index("translator")]:
        found, needed = "a translator between encoders and decoders that nothing has trained", "an autoencoder stage before it"
        report.error("stages", found, needed, 'stages=(xsm.Stage(kind="autoencoder", ...), ...)', kind=InputError)


def dataset_of(ds, report: Report) -> xr.Dataset | None:
    """The hourly fields, if they are a Dataset; anything else goes to the report."""
    if isinstance(ds, xr.Dataset):
        return ds
    fix = 'Take the group that holds it: tree["regional"].to_dataset()' if isinstance(ds, xr.DataTree) else "xsm.open(file)"
    report.error("data", f"a {type(ds).__name__}", "the Dataset of one region; no driver is used", fix, kind=SchemaError)
    return None


def _settings(
    config: Met2NetTrainConfig, contract: HourlyContract, schema: Schema, source: Source | None, report: Report
) -> Met2NetConfig | None:
    """Settings of a network that can be made."""
    try:
        settings = contract.network(config, schema, None if source is None else source.grid)
        with torch.device("meta"):
            Met2Net(settings)
    except (AttributeError, TypeError, ValueError) as error:
        report.error("network", f"{contract.words}: {error}", fix=contract.advice, kind=InputError)
        return None
    return settings


def _check_samples(config: Met2NetTrainConfig, settings: Met2NetConfig, time: np.ndarray, least: int, report: Report) -> None:
    """Every stage has samples to validate on, and enough to learn from."""
    hours = settings.past + settings.future
    own = {f"stages[{i}].periods": stage.periods for i, stage in enumerate(config.stages) if stage.periods}
    for name, periods in {"train": config.train, "validation": config.validation, **own}.items():
        if not are_periods(periods):
            continue
        try:
            count = len(sequence_starts(time, periods, hours))
        except TimeError as error:
            report.error(name, "; ".join(error.problems), fix="Change these periods or give more data", kind=TimeError)
            continue
        for number, stage in enumerate(config.stages) if name != "validation" else ():
            if name == (f"stages[{number}].periods" if stage.periods else "train"):
                check_count(name, count, stage, hours, least, float(np.diff(time).min() / HOUR), report)
