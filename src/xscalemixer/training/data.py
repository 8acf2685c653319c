"""Data of a training run: checked, surveyed, and cut into samples."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import Dataset

from xscalemixer.augmentation import SeasonShift
from xscalemixer.conform import conform
from xscalemixer.errors import GridError, InputError, TimeError
from xscalemixer.forecaster import Branch, Forecaster
from xscalemixer.grids import Grid, grid_of
from xscalemixer.model import Model
from xscalemixer.nn.coldstart import ColdStart, ColdStartConfig
from xscalemixer.nn.driving import DRIVEN
from xscalemixer.nn.scalemixer import CoupledModel, ScaleMixerConfig
from xscalemixer.report import Report
from xscalemixer.samples import GlobalPairs, LazyFields, Series, Windows, pair_starts, survey, window_starts
from xscalemixer.state import GROUPS, HOUR, HOURS, STATICS, statics_of
from xscalemixer.training.config import SIZES, Periods, Stage, TrainConfig, are_periods, check_settings, schema_of
from xscalemixer.variables import Schema, Stats

__all__ = [
    "GROUPS",
    "AroundGlobal",
    "ColdStartSamples",
    "Contract",
    "FromScratch",
    "Source",
    "TrainingData",
    "check_count",
    "check_skip",
    "check_unseen",
    "digest_of",
    "grid_digest",
    "groups_of",
    "network_config",
    "read_source",
    "statistics_digest",
    "too_large",
    "warn_of_chunks",
]

log = logging.getLogger(__name__)

_KEPT = 2**28  # bytes of first guesses that are kept for the next samples
SURFACE_GUESS = ("t2m", "u10", "v10", "q2m", "sp")


class Contract(Protocol):
    """What the model to be trained asks of the data, and the network it puts on them.

    Attributes
    ----------
    statics : tuple of str
        Constant fields of the region.
    cold_start : dict
        Settings of the cold-start network, where they are not the usual ones.
    words, advice : str
        What the network is called, and what to change where it does not fit.
    """

    statics: tuple[str, ...]
    cold_start: dict[str, Any]
    words: str
    advice: str

    def network(self, outer: Branch | Source, inner: Branch | Source) -> ScaleMixerConfig:
        """The network on these grids and channels."""

    def schema(self, name: str, report: Report) -> Schema | None:
        """Of the branch ``"outer"`` or ``"inner"``; None where the settings give none, with the problems in the report."""

    def stats(self, name: str, grid: Grid) -> Stats | None:
        """Statistics that a branch brings with it; None: those of the training periods."""

    def reduced(self, grid: Grid) -> bool:
        """The region is normalized after reduction to sea level, if its statistics are new."""

    def collect(self, config: TrainConfig, tree: xr.DataTree | xr.Dataset, *, report: Report, **how) -> TrainingData:
        """The data, checked and surveyed; for ``how`` see `TrainingData.of`."""
        return TrainingData.of(config, tree, self, report=report, **how)


class FromScratch(Contract):
    """The configured preset on the configured variables."""

    advice = "Change network= or size= of the TrainConfig"

    def __init__(self, config: TrainConfig):
        self.config, self.statics = config, config.statics
        self.cold_start: dict[str, Any] = {"guess": config.first_guess}
        self.words = f"size={config.size!r}, network={config.network}"

    def network(self, outer: Branch | Source, inner: Branch | Source) -> ScaleMixerConfig:
        """The configured preset."""
        return network_config(getattr(ScaleMixerConfig, self.config.size)(**self.config.network), outer, inner)

    def schema(self, name: str, report: Report) -> Schema | None:
        """The configured variables."""
        if name == "inner":
            return schema_of("", self.config.variables, (), report)
        return schema_of("global_", self.config.global_variables, self.config.global_levels, report)

    def stats(self, name: str, grid: Grid) -> Stats | None:
        """None."""

    def reduced(self, grid: Grid) -> bool:
        """As configured; the networks that get global fields compare them with their own, and do without."""
        return self.config.reduced and self.config.network.get("coupling") not in DRIVEN

    def fresh(self, data: TrainingData) -> Forecaster:
        """A model to train, with random weights."""
        return data.model(self, self.config)


class AroundGlobal(FromScratch):
    """The configured preset around a global network that is trained already, with the channels and statistics of that."""

    advice = "Choose size=, network= and the global grid as they were for that model"

    def __init__(self, config: TrainConfig, base: Forecaster):
        super().__init__(config)
        self.base = base
        self.words += f" around the global network of {base.name!r}"

    def network(self, outer: Branch | Source, inner: Branch | Source) -> ScaleMixerConfig:
        """The configured preset; ValueError where it has another global network."""
        settings, known = super().network(outer, inner), self.base.network.config
        names = ("width", "heads", "mlp_ratio", "output", "positions")
        different = [name for name in names if getattr(settings, name) != getattr(known, name)]
        parts = asdict(settings.outer), asdict(known.outer)
        different += [f"outer.{name}" for name in parts[0] if parts[0][name] != parts[1][name] and name != "drop_path"]
        if different:
            raise ValueError(f"its {', '.join(different)} differ")
        return settings

    def collect(self, config: TrainConfig, tree: xr.DataTree | xr.Dataset, *, report: Report, **how) -> TrainingData:
        """The data, checked and surveyed; periods that the global network has seen go to the report."""
        check_unseen(self.base, config.test, config.validation, "outer", self.base.outer.grid, report)
        return super().collect(config, tree, report=report, **how)

    def schema(self, name: str, report: Report) -> Schema | None:
        """That of the global network, and the configured variables of the region."""
        return self.base.outer.schema if name == "outer" else super().schema(name, report)

    def stats(self, name: str, grid: Grid) -> Stats | None:
        """Those of the global branch."""
        return self.base.outer.stats if name == "outer" else None

    def fresh(self, data: TrainingData) -> Forecaster:
        """A model to train around the weights of the global network, whose layers may be grouped otherwise."""
        model = super().fresh(data)
        model.about["trained_on"] = list(self.base.about.get("trained_on", ()))
        values = list(self.base.network.outer.parameters())
        with torch.no_grad():
            for parameter, value in zip(model.network.outer.parameters(), values, strict=True):
                parameter.copy_(value)
        return model


@dataclass(frozen=True)
class TrainingData:
    """Both series in physical units, with their contracts.

    Attributes
    ----------
    branches : dict of Branch
        Schema, grid and statistics, by ``"outer"`` and ``"inner"``.
    series : dict of Series
    statics : dict of array, shape (S, H, W)
        See `state.statics_of`.
    digests : dict of str
        Hashes that tell other data, grids or statistics apart.
    """

    branches: dict[str, Branch]
    series: dict[str, Series]
    statics: dict[str, np.ndarray]
    digests: dict[str, str]

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        tree: xr.DataTree | xr.Dataset,
        contract: Contract | None = None,
        *,
        memory: float = 4.0,
        skip: float = 0.01,
        min_samples: int = 1,
        report: Report | None = None,
    ) -> TrainingData:
        """Check settings and data, and survey both groups of the tree.

        Parameters
        ----------
        contract : Contract, optional
            By default that of a model from scratch.
        memory : float
            GiB of fields that are held in memory; of a larger dataset only what a sample needs is read.
        skip : float
            Times with bad values are left out, with a warning, up to this share of the times of a group, but at least one if it
            is not 0; no sample spans them.
        min_samples : int
            Fewest training samples that a stage may have.
        report : Report, optional
            Problems that are known already.

        Raises
        ------
        InputError
            With every problem of the settings and of both groups.
        """
        report = Report(f"training of {config.name!r}") if report is None else report
        contract = FromScratch(config) if contract is None else contract
        check_settings(config, report)
        check_skip(skip, report)
        sources = _sources(tree, contract, skip, report)
        if len(sources) == 2:
            _check_together(config, contract, sources["outer"], sources["inner"], min_samples, report)
        report.raise_errors(f"{config.name!r} cannot be trained")
        lazy = too_large(sum(source.nbytes for source in sources.values()), memory)
        branches, series, statics, digests = {}, {}, {}, {}
        for name, source in sources.items():
            zero_mean = ("ssrd",) if name == "inner" and "ssrd" in source.schema.names else ()
            statics[name] = statics_of(source.ds, source.statics)
            height = 1000.0 * statics[name][0] if name == "inner" and contract.reduced(source.grid) else None
            series[name] = Series.of(source.ds, source.schema, lazy=lazy and source.is_lazy)
            per_step = int(HOURS * HOUR / np.diff(series[name].time).min())
            warn_of_chunks(f"{name} data", series[name], max(stage.steps for stage in config.stages) * per_step + HOURS, report)
            about = f"training periods of {config.name}"
            found, digest = survey(series[name], source.schema, config.train, zero_mean=zero_mean, source=about, height=height)
            stats = contract.stats(name, source.grid) or found
            branches[name] = Branch(source.schema, source.grid, stats, source.statics)
            digests[f"{name} grid"] = grid_digest(source.grid)
            digests[f"{name} statistics"] = statistics_digest(stats, source.schema)
            digests[f"{name} data"] = f"{digest} {digest_of(statics[name])}"
        for finding in report.select("warning"):
            log.warning("%s", finding)
        return cls(branches, series, statics, digests)

    @property
    def outer(self) -> Branch:
        """Contract of the global branch."""
        return self.branches["outer"]

    @property
    def inner(self) -> Branch:
        """Contract of the regional branch."""
        return self.branches["inner"]

    def model(self, contract: Contract, config: TrainConfig) -> Forecaster:
        """The network of a contract on these grids, with random weights and the name and calendar of the settings."""
        settings = contract.network(self.outer, self.inner)
        if settings.coupling in DRIVEN:
            settings = replace(settings, shared=_shared_channels(self.outer, self.inner))
        network = CoupledModel(settings)
        network.outer.statics.copy_(torch.from_numpy(self.statics["outer"]))
        network.inner.statics.copy_(torch.from_numpy(self.statics["inner"]))
        channels = self.inner.schema.channels
        cold = ColdStartConfig(
            inputs=len(self.guessed) + len(self.inner.statics) + 3,
            channels=len(channels),
            guessed=self.guessed,
            sunlit_channel=channels.index("ssrd") if "ssrd" in channels else None,
            **contract.cold_start,
        )
        return Forecaster(config.name, network, ColdStart(cold), self.outer, self.inner, calendar=config.calendar)

    @property
    def guessed(self) -> tuple[int, ...]:
        """Regional channels that a cold start begins with: those that the driver has too."""
        names = [name for name in SURFACE_GUESS if name in self.outer.schema.names and name in self.inner.schema.names]
        return tuple(self.inner.schema.channels.index(name) for name in names)

    def season_shift(self, stage: Stage) -> SeasonShift | None:
        """The augmentation of a stage."""
        if not stage.season_shift:
            return None
        grounds = (self.statics["outer"], self.statics["inner"])
        return SeasonShift(self.outer, self.inner, grounds, self.guessed, coldest=stage.season_shift)

    def windows(self, calendar: tuple[str, ...], periods: Periods, steps: int) -> Windows:
        """Normalized training windows."""
        heights = {name: 1000.0 * statics[0] for name, statics in self.statics.items()}
        scales = tuple(self.branches[name].scale(heights[name]) for name in ("outer", "inner"))
        sun, scale = self.inner.insolation(heights["inner"]), np.float32(self.inner.sunlit_scale)
        series = self.series["outer"], self.series["inner"]
        return Windows(*series, self.outer.grid, scales, periods, steps, lambda ends: sun(ends) / scale, calendar)

    def pairs(self, periods: Periods) -> GlobalPairs:
        """Normalized global states six hours apart."""
        outer = self.outer
        return GlobalPairs(self.series["outer"], outer.grid, outer.stats.arrays(outer.schema), periods)


class ColdStartSamples(Dataset):
    """First guess and insolation against the six hours that really were; global times with a full history."""

    def __init__(self, data: TrainingData, model: Forecaster, periods: Periods):
        self.windows, self.outer = data.windows(model.calendar, periods, 1), data.series["outer"]
        fields = len(data.guessed) + len(data.inner.statics) + 3
        per_guess = 4 * fields * data.inner.grid.shape[0] * data.inner.grid.shape[1]
        self._first_guess = lru_cache(max(2, _KEPT // per_guess))(
            lambda i: model.first_guess(self.outer.values[i : i + 1], self.outer.time[i : i + 1])[0]
        )

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        sample, i = self.windows[item], self.windows.starts[item][0]
        return {"fields": self._first_guess(i), "sun": sample["inner_forcing"][0, :HOURS], "inner": sample["inner"][:HOURS]}


def grid_digest(grid: Grid) -> str:
    """A short hash that tells grids apart."""
    return digest_of(np.array(grid.latitude), np.array(grid.longitude))


def statistics_digest(stats: Stats, schema: Schema) -> str:
    """The same of statistics, and whether they are those of reduced fields."""
    return digest_of(*stats.arrays(schema)) + (" reduced" if stats.reduced else "")


def digest_of(*arrays: np.ndarray) -> str:
    """A short hash of values."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).view("u1").data)
    return digest.hexdigest()[:16]


# --------------------------------------------------------------------------------------------------------------- sources


@dataclass(frozen=True)
class Source:
    """One group of the tree in canonical form, before its values are read."""

    schema: Schema
    ds: xr.Dataset
    grid: Grid
    statics: tuple[str, ...]

    @property
    def is_lazy(self) -> bool:
        """True if nothing has been read."""
        return all(self.ds[name].chunks for name in self.schema.names)

    @property
    def nbytes(self) -> int:
        """Bytes in single precision."""
        return 4 * self.ds.sizes["time"] * len(self.schema) * self.grid.shape[0] * self.grid.shape[1]


def groups_of(tree: xr.DataTree | xr.Dataset, report: Report, groups: Mapping[str, str] = GROUPS) -> dict[str, xr.Dataset]:
    """The groups that are there, by branch; problems go to the report."""
    parts = ", ".join(f'"/{group}": {group}_ds' for group in groups.values())
    build = f"Build it: xr.DataTree.from_dict({{{parts}}})"
    if not isinstance(tree, xr.DataTree):
        needed = " and ".join(f"'/{group}'" for group in groups.values())
        report.error("data", f"a {type(tree).__name__}", f"a DataTree with {needed}", build)
        return {}
    for group in (group for group in groups.values() if group not in tree.children):
        report.error("groups", f"found {list(tree.children) or 'none'}", f"'/{group}'", build)
    return {branch: tree[group].to_dataset() for branch, group in groups.items() if group in tree.children}


def _sources(tree: xr.DataTree | xr.Dataset, contract: Contract, skip: float, report: Report) -> dict[str, Source]:
    """The groups that can be used, by branch; problems go to the report."""
    hours = {"outer": (1, 2, 3, HOURS), "inner": (1,)}
    statics = {"outer": STATICS[:2], "inner": tuple(name for name in contract.statics if name in STATICS)}
    schemas = {branch: contract.schema(branch, report) for branch in GROUPS}
    found = {
        branch: read_source(ds, f"/{GROUPS[branch]}", schema, statics[branch], hours[branch], skip, report)
        for branch, ds in groups_of(tree, report).items()
        if (schema := schemas[branch]) is not None
    }
    return {branch: source for branch, source in found.items() if source is not None}


def check_skip(skip: float, report: Report) -> None:
    """It is a share of the times."""
    if not 0 <= skip < 1:
        report.error("skip", f"{skip}", "a share, 0 or more and less than 1", "skip=0.01", kind=InputError)


def read_source(
    ds: xr.Dataset,
    title: str,
    schema: Schema,
    statics: tuple[str, ...],
    hours: tuple[int, ...] | None,
    skip: float | None,
    report: Report,
) -> Source | None:
    """One group, conformed, with the constant fields that are named, on latitudes and longitudes, at one of these time steps."""
    ds, findings = conform(ds, schema, skip=skip, title=title)
    report.extend(findings, f"{title}: ")
    if missing := [name for name in ("orog", "lsm") if statics and name not in ds]:
        needed = "orog (surface altitude, m) and lsm (land fraction)"
        report.error(
            title, f"no {' and no '.join(missing)}", needed, f"ds = ds.assign({missing[0]}=...), on the grid of the data"
        )
    if not findings.ok:
        return None
    if hours is not None:
        _check_step(ds["time"].values, title, hours, report)
    grid = grid_of(ds)
    if not isinstance(grid, Grid):
        fix = 'First ds = xsm.regrid(ds, xsm.Grid.regular(north=..., west=..., step="0.1", shape=(...)))'
        report.error(title, f"{grid}", "latitudes and longitudes as axes", fix, kind=GridError)
        return None
    return None if missing else Source(schema, ds, grid, statics)


def _check_step(time: np.ndarray, title: str, hours: tuple[int, ...], report: Report) -> None:
    """The shortest step is one of these; longer ones are gaps."""
    shortest = np.diff(time).min() / HOUR if time.size > 1 else hours[-1]
    if shortest not in hours:
        needed, thinned = " or ".join(map(str, hours)), 'ds = ds.sel(time=ds["time"].dt.minute == 0)'
        fix = thinned if shortest < 1 else "Get data that are; they are not interpolated in time"
        report.error(f"{title}: time", f"every {shortest:g} h", f"every {needed} h", fix, kind=TimeError)


def too_large(nbytes: int, memory: float) -> bool:
    """Whether fields of so many bytes take more than ``memory`` GiB; logged."""
    size = nbytes / 2**30
    log.info("data: %.1f GiB, %s", size, "read as needed" if (large := size > memory) else "held in memory")
    return large


def warn_of_chunks(name: str, series: Series, used: int, report: Report) -> None:
    """Every sample reads whole chunks of time, of which it uses some times."""
    if isinstance(series.values, LazyFields) and series.values.chunk > 8 * used:
        found = f"chunks of {series.values.chunk} times, of which a sample needs {used}; reading will be slow"
        report.warn(name, found, f'Rewrite them: ds.chunk(time={used}).to_zarr("rechunked.zarr")')


# ---------------------------------------------------------------------------------------------------- data with settings


def _check_together(
    config: TrainConfig, contract: Contract, outer: Source, inner: Source, min_samples: int, report: Report
) -> None:
    """The region lies in the driver, the network fits on both, and windows fit into the periods."""
    if share := outer.grid.outside(inner.grid):
        found = f"{100 * share:.0f} % of the regional grid ({inner.grid}) lies outside the global one ({outer.grid})"
        report.error("/regional", found, "a region inside the driver", "Cut it: ds.sel(latitude=slice(...), ...)", kind=GridError)
    elif contract.cold_start.get("guess") == "terrain" and (lacking := _lacking(outer.schema, inner.schema)):
        found, needed = f"the driver or the region lacks {' and '.join(lacking)}", "surface fields that follow from one another"
        report.error("first_guess", found, needed, 'first_guess="standard"', kind=InputError)
    elif config.size in SIZES:
        try:
            with torch.device("meta"):
                network = CoupledModel(contract.network(outer, inner))
        except (AttributeError, TypeError, ValueError) as error:
            report.error("network", f"{contract.words}: {error}", fix=contract.advice, kind=InputError)
        else:
            _check_caches(config, network.config, report)
    _check_samples(config, outer.ds["time"].values, inner.ds["time"].values, min_samples, report)


def _lacking(outer: Schema, inner: Schema) -> list[str]:
    """Surface fields without which others cannot be carried to the relief."""
    shared = [name for name in SURFACE_GUESS if name in outer.names and name in inner.names]
    needs = {"u10": ("v10",), "v10": ("u10",), "sp": ("t2m",), "q2m": ("t2m", "sp")}
    return sorted({need for name in shared for need in needs.get(name, ()) if need not in shared})


def _check_samples(config: TrainConfig, outer: np.ndarray, inner: np.ndarray, min_samples: int, report: Report) -> None:
    """Every stage has samples to validate on, and enough to learn from, for a batch, and for its updates."""
    wanted: dict[tuple, list[Stage]] = {}  # stages by where their samples come from
    for number, stage in enumerate(config.stages):
        own = f"stages[{number}].periods" if stage.periods else "train"
        for name, periods in ((own, config.periods_of(stage)[0]), ("validation", config.validation)):
            if are_periods(periods):
                wanted.setdefault((name, periods, 0 if stage.kind == "global" else stage.steps), []).append(stage)
    for (name, periods, steps), stages in wanted.items():
        try:
            count = len(window_starts(outer, inner, periods, steps) if steps else pair_starts(outer, periods))
        except TimeError as error:
            report.error(name, "; ".join(error.problems), fix="Change these periods or give more data", kind=TimeError)
            continue
        for stage in stages if name != "validation" else ():
            check_count(name, count, stage, stage.steps * HOURS, min_samples, np.diff(outer).min() / HOUR, report)


def check_count(name: str, count: int, stage: Stage, hours: int, min_samples: int, step: float, report: Report) -> None:
    """There are enough samples, of some hours each and starting every ``step`` hours, for a batch and for the updates."""
    needed = max(stage.batch, min_samples)
    if count < needed:
        found = f"{count} samples of {hours} hours for stage {stage.label} with batch={stage.batch}"
        fix = f"Give {np.ceil((needed - count) * step / 24):g} more days of data (a sample can start every {step:g} h)"
        fix += f", or batch={count}" if count >= min_samples else ""
        report.error(name, found, f"at least {needed} samples", fix, kind=TimeError)
    elif (times := stage.updates * stage.batch / count) > 1000:
        report.warn(name, f"{count} samples, and stage {stage.label} sees each of them {times:.0f} times")


def check_unseen(base: Model, test: Periods, validation: Periods, branch: str, grid: Any, report: Report) -> None:
    """Periods that a model has been trained on or chosen by: a verdict there would be none, and a choice a poor one.

    Parameters
    ----------
    base : Model
        What a run starts from.
    test, validation : periods
        Of the run.
    branch : "outer" or "inner"
        The part that meets ``grid``: on the same grid a test is refused, on another one it is told.
    grid : Grid or None
    report : Report
    """
    known, place = base.about.get("trained_on", ()), {"inner": "in {} region", "outer": "on {} global grid"}[branch]
    if test and not known:
        report.warn("test", f"nothing tells on which times {base.name!r} was trained; needed others than these")
    for row, (name, wanted) in product(known, (("test", test), ("validation", validation))):
        here = isinstance(grid, Grid) and row.get(f"{branch} grid") == grid_digest(grid)
        where = place.format("this") if here else f"{place.format('another')}; the weather of a time is everywhere"
        for part, verb in (("train", "trained on"), ("validation", "been chosen by")):
            shared = _shared(row.get(part, ()), wanted) if are_periods(wanted) else []
            found = f"{base.name!r} has {verb} {', '.join(f'{start} to {end}' for start, end in shared)}, {where}"
            if shared and name == "test" and here:
                report.error(name, found, "other times", "Choose other test=", kind=TimeError)
            elif shared and (name == "test" or part == "train"):
                report.warn(name, found)


def _shared(pieces: Iterable, others: Periods) -> list[tuple]:
    """Times that periods have in common with others."""
    ends = [[tuple(map(np.datetime64, period)) for period in periods] for periods in (pieces, others)]
    pairs = [(max(start, begin), min(end, finish)) for start, end in ends[0] for begin, finish in ends[1]]
    return [(start, end) for start, end in pairs if start < end]


def _check_caches(config: TrainConfig, network: ScaleMixerConfig, report: Report) -> None:
    """What is cached must not depend on what is trained, nor on chance."""
    for number, stage in enumerate(config.stages):
        if not stage.cache:
            continue
        subject = f"stages[{number}] ({stage.label})"
        if stage.kind not in ("regional", "rollout") or network.coupling == "two_way":
            found = f"cache=True for kind={stage.kind!r} and coupling={network.coupling!r}"
            needed = "a regional stage or a roll-out in which the global network does not hear of the region"
            report.error(subject, found, needed, 'network={"coupling": "one_way"}, or leave cache= out', kind=InputError)
        if stage.season_shift:
            report.error(subject, "cache=True and season_shift", "one of them; shifted samples differ each time", kind=InputError)


def network_config(settings: ScaleMixerConfig, outer: Branch | Source, inner: Branch | Source) -> ScaleMixerConfig:
    """A network on these grids, channels, statics and forcings; patches start where global patches do."""
    place = lambda branch, forcings: {
        "latitude": branch.grid.latitude, "longitude": branch.grid.longitude,
        "periodic": branch.grid.periodic, "channels": len(branch.schema), "statics": len(branch.statics), "forcings": forcings,
    }  # fmt: skip
    outer_config = replace(settings.outer, **place(outer, 2))
    inner_config = replace(settings.inner, **place(inner, 2 * HOURS), offset=(0, 0))
    offset = _nesting_offset(outer_config.tokens.edges, inner.grid, inner_config.patch)
    sunlit = None
    if settings.sunlit_channel is not None and "ssrd" in inner.schema.channels:
        sunlit = inner.schema.channels.index("ssrd")
    return replace(settings, outer=outer_config, inner=replace(inner_config, offset=offset), sunlit_channel=sunlit)


def _shared_channels(outer: Branch, inner: Branch) -> tuple[tuple[int, int, float, float], ...]:
    """Regional and global channel of the same variable, and scale and offset between their normalized values."""
    rows = []
    for i, name in enumerate(inner.schema.channels):
        if name in outer.schema.channels:
            (mean, std), (outer_mean, outer_std) = ((b.stats.mean[name], b.stats.std[name]) for b in (inner, outer))
            rows.append((i, outer.schema.channels.index(name), outer_std / std, (outer_mean - mean) / std))
    return tuple(rows)


def _nesting_offset(edges: tuple[np.ndarray, np.ndarray], grid: Grid, patch: int) -> tuple[int, int]:
    """Padding rows and columns that put the first patch edge on an edge of the outer tokens."""
    (lat_edges, lon_edges), (dlat, dlon) = edges, grid.spacing
    reach = dlat / 2 + 1e-6  # the center of the first row may lie on the edge of the driver
    north = min(edge - grid.latitude_bounds[0] for edge in lat_edges if edge >= grid.latitude_bounds[0] - reach)
    west = min((grid.longitude_bounds[0] - edge + dlon / 2) % 360 - dlon / 2 for edge in lon_edges)
    return round(north / dlat) % patch, round(west / dlon) % patch
