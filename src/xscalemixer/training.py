"""Training: global pretraining, regional one-step with the global weights frozen, roll-out fine-tuning, cold start."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import sys
import time as clock
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from xscalemixer.augmentation import SeasonShift, TurnAndMirror
from xscalemixer.conform import conform
from xscalemixer.errors import GridError, InputError, TimeError
from xscalemixer.forecaster import Branch, Forecaster
from xscalemixer.grids import Grid, grid_of
from xscalemixer.nn.coldstart import ColdStart, ColdStartConfig
from xscalemixer.nn.scalemixer import CoupledModel, GlobalModel, ScaleMixerConfig
from xscalemixer.report import Report
from xscalemixer.samples import Series, Windows, estimate_stats, window_starts
from xscalemixer.state import HOURS, statics_of
from xscalemixer.variables import REGIONAL, Schema

__all__ = ["OUTER", "Stage", "TrainConfig", "channel_weights", "train"]

log = logging.getLogger(__name__)

Periods = tuple[tuple[str, str], ...]
Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]  # (module, batch, augment) -> loss and its parts

LEVELS = (50, 100, 200, 300, 400, 500, 600, 700, 850, 925, 1000)
OUTER = Schema.of("z", "q", "u", "v", "t", "t2m", "u10", "v10", "q2m", "sp", levels=LEVELS)
SURFACE_GUESS = ("t2m", "u10", "v10", "q2m", "sp")
SIZES = ("tiny", "small", "base", "paper")
PRECISIONS = ("bf16", "fp32")
HOUR = np.timedelta64(1, "h")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training.

    Attributes
    ----------
    kind : "global", "regional", "rollout" or "cold_start"
    updates, batch : int
        Optimizer updates and samples per update.
    peak, floor : float
        Learning rate after the warm-up and at the end of the cosine; equal for a constant rate.
    steps : int
        Six-hour steps unrolled per sample.
    season_shift : float
        Largest cooling of `augmentation.SeasonShift` in K; 0 switches it off.
    """

    kind: str
    updates: int
    batch: int = 4
    peak: float = 5e-4
    floor: float = 1e-6
    steps: int = 1
    season_shift: float = 0.0

    def __post_init__(self):
        if self.kind not in ("global", "regional", "rollout", "cold_start"):
            raise ValueError(f"kind={self.kind!r}; choose 'global', 'regional', 'rollout' or 'cold_start'")

    @property
    def label(self) -> str:
        """Name in logs and file names."""
        return f"{self.kind}-{self.steps}" if self.kind == "rollout" else self.kind


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run but the data.

    Attributes
    ----------
    name : str
    train, validation : tuple of (start, end)
        Periods as ISO dates, start exclusive, end inclusive.
    size : "tiny", "small", "base" or "paper"
    network : dict
        Changes to the preset, e.g. ``{"coupling": "one_way"}``.
    stages : tuple of Stage
    calendar : tuple of str
        Calendar inputs; leave ``"day"`` out when the data cover a part of the year only.
    seed, warmup, clip : int, int, float
        Random seed, warm-up updates per stage, largest gradient norm.
    betas, weight_decay, ema : (float, float), float, float
        AdamW moments, decay, and decay of the moving average of the weights (`moving_average`).
    check_every : int
        Updates between validations.
    precision : "bf16" or "fp32"
        Arithmetic of the forward and backward pass (autocast); weights and losses stay in single precision.
    """

    name: str
    train: Periods
    validation: Periods
    size: str = "small"
    network: dict = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    calendar: tuple[str, ...] = ("hour", "day")
    seed: int = 0
    warmup: int = 100
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    ema: float = 0.998
    check_every: int = 200
    precision: str = "bf16"

    def to_dict(self) -> dict:
        """Plain data."""
        return asdict(self)


def train(config: TrainConfig, tree: xr.DataTree, *, folder: str | Path | None = None) -> Forecaster:
    """Train a coupled model from scratch.

    Parameters
    ----------
    config : TrainConfig
    tree : DataTree
        ``/global``: six-hourly fields on pressure levels and at the surface; ``/regional``: hourly surface fields.
        Both with ``orog`` and ``lsm``, in any layout that `xscalemixer.conform` understands.
    folder : path, optional
        Finished stages are kept there; the same run started again skips them, another run is refused.

    Returns
    -------
    Forecaster

    Raises
    ------
    InputError
        If settings, data or the stages in ``folder`` do not fit, before anything is trained; every problem is listed. While
        training, if a loss is not finite.
    """
    data = TrainingData.of(config, tree)
    kept = None if folder is None else Path(folder)
    finished = {} if kept is None else _finished_stages(config, data, kept)
    torch.manual_seed(config.seed)
    model = data.fresh_model(config)
    for number, stage in enumerate(config.stages):
        torch.manual_seed(config.seed + number + 1)
        if kept is not None and number in finished:
            history = finished[number]["history"]
            model.modules.load_state_dict(safetensors.torch.load_file(_stage_file(kept, number, stage)))
            log.info("stage %s: finished earlier, loaded from %s", stage.label, kept)
        else:
            history = _run_stage(stage, config, data, model)
            if kept is not None:
                _keep(model, {"run": _fingerprint(config, data, number), "history": history}, _stage_file(kept, number, stage))
        model.about.setdefault("training", []).append({**asdict(stage), **min(history, key=lambda record: record["validation"])})
    model.eval()
    return model


# ------------------------------------------------------------------------------------------------------- finished stages


def _stage_file(folder: Path, number: int, stage: Stage) -> Path:
    return folder / f"{number}-{stage.label}.safetensors"


def _keep(model: Forecaster, record: dict, path: Path) -> None:
    """Write the weights after a stage; they appear under their name only when they are complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    draft = path.with_suffix(".draft")
    safetensors.torch.save_file(model.modules.state_dict(), draft)
    draft.replace(path)


def _fingerprint(config: TrainConfig, data: TrainingData, number: int) -> dict[str, Any]:
    """What decides the weights after a stage: settings, this and earlier stages, statistics and data; plain data."""
    run = {key: value for key, value in config.to_dict().items() if key not in ("name", "stages")}
    for i, stage in enumerate(config.stages[: number + 1]):
        run |= {f"stages[{i}].{key}": value for key, value in asdict(stage).items()}
    return json.loads(json.dumps({**run, **data.digests}))


def _finished_stages(config: TrainConfig, data: TrainingData, folder: Path) -> dict[int, dict]:
    """Records of the stages kept in a folder, by number.

    Raises
    ------
    InputError
        If any of them belongs to another run.
    """
    finished, problems = {}, {}
    for number, stage in enumerate(config.stages):
        path = _stage_file(folder, number, stage)
        if not path.exists():
            continue
        record = path.with_suffix(".json")
        finished[number] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        if not isinstance(finished[number], dict) or "run" not in finished[number]:
            problems[path.name] = f"{path.name}: nothing beside it tells from which settings and data it comes"
            continue
        kept, wanted = finished[number]["run"], _fingerprint(config, data, number)
        for key in sorted(key for key in kept.keys() | wanted.keys() if kept.get(key) != wanted.get(key)):
            problems[key] = f"{key}: the folder has {kept.get(key)!r}, this run {wanted.get(key)!r}"
    if problems:
        fix = f'keep this run elsewhere, e.g. folder="{folder}-2", repeat the run that began it, or delete {folder} to train anew'
        raise InputError(f"{folder} holds stages of another run", [*problems.values(), fix])
    return finished


# ------------------------------------------------------------------------------------------------------------------ data


@dataclass
class TrainingData:
    """Both series, physical and normalized, with their contracts."""

    outer: Branch
    inner: Branch
    series: dict[str, Series]
    scaled: dict[str, Series]
    statics: dict[str, np.ndarray]

    @classmethod
    def of(cls, config: TrainConfig, tree: xr.DataTree) -> TrainingData:
        """Check settings and data, then read and normalize both groups of the tree.

        Raises
        ------
        InputError
            With every problem of the settings and of both groups.
        """
        report = Report(f"training of {config.name!r}")
        _check_settings(config, report)
        sources = _sources(tree, report)
        if len(sources) == 2:
            _check_together(config, sources["outer"], sources["inner"], report)
        report.raise_errors(f"{config.name!r} cannot be trained")
        branches, series, scaled, statics = {}, {}, {}, {}
        for branch, zero_mean in (("outer", ()), ("inner", ("ssrd",))):
            schema, ds = sources[branch].schema, sources[branch].ds
            series[branch] = Series.of(ds, schema)
            stats = estimate_stats(
                series[branch], schema, config.train, zero_mean=zero_mean, source=f"training periods of {config.name}"
            )
            mean, std = (a[:, None, None] for a in stats.arrays(schema))
            scaled[branch] = Series(series[branch].time, (series[branch].values - mean) / std)
            branches[branch] = Branch(schema, sources[branch].grid, stats)
            statics[branch] = statics_of(ds)
        return cls(branches["outer"], branches["inner"], series, scaled, statics)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Hashes that tell other data, grids or statistics apart."""
        found = {}
        for name, branch in (("outer", self.outer), ("inner", self.inner)):
            found[f"{name} grid"] = _digest(np.array(branch.grid.latitude), np.array(branch.grid.longitude))
            found[f"{name} statistics"] = _digest(*branch.stats.arrays(branch.schema))
            series = self.series[name]
            found[f"{name} data"] = _digest(series.time, series.values, self.statics[name])
        return found

    def fresh_model(self, config: TrainConfig) -> Forecaster:
        """A model of the configured size on these grids, with random weights."""
        network = CoupledModel(network_config(config, self.outer, self.inner))
        for branch, target in (("outer", network.outer), ("inner", network.inner)):
            target.statics.copy_(torch.from_numpy(self.statics[branch]))
        channels = self.inner.schema.channels
        cold = ColdStartConfig(
            inputs=len(self.guessed) + 5, channels=len(channels), guessed=self.guessed, sunlit_channel=channels.index("ssrd")
        )
        return Forecaster(config.name, network, ColdStart(cold), self.outer, self.inner, calendar=config.calendar)

    @property
    def guessed(self) -> tuple[int, ...]:
        """Regional channels that a cold start begins with."""
        return tuple(self.inner.schema.channels.index(name) for name in SURFACE_GUESS)

    def season_shift(self, stage: Stage) -> SeasonShift | None:
        """The augmentation of a stage."""
        if not stage.season_shift:
            return None
        outer, inner = (torch.from_numpy(self.statics[branch][1]) for branch in ("outer", "inner"))
        return SeasonShift(self.outer, self.inner, (outer, inner), self.guessed, coldest=stage.season_shift)

    def windows(self, calendar: tuple[str, ...], periods: Periods, steps: int) -> Windows:
        """Normalized training windows."""
        grids = (self.outer.grid, self.inner.grid)
        scale = self.inner.stats.std["ssrd"]
        return Windows(self.scaled["outer"], self.scaled["inner"], grids, periods, steps, scale, calendar)


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).view("u1").data)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _Source:
    """One group of the tree in canonical form, before its values are read."""

    schema: Schema
    ds: xr.Dataset
    grid: Grid


def _sources(tree: xr.DataTree, report: Report) -> dict[str, _Source]:
    """The groups that can be used, by branch; problems go to the report."""
    build = 'Build it: xr.DataTree.from_dict({"/global": ds, "/regional": analyses})'
    if not isinstance(tree, xr.DataTree):
        report.error("data", f"a {type(tree).__name__}", "a DataTree with '/global' and '/regional'", build)
        return {}
    found = {}
    for branch, (group, schema, hours) in {"outer": ("global", OUTER, HOURS), "inner": ("regional", REGIONAL, 1)}.items():
        if group not in tree.children:
            report.error("groups", f"found {list(tree.children) or 'none'}", f"'/{group}'", build)
        elif source := _source(tree[group].to_dataset(), f"/{group}", schema, hours, report):
            found[branch] = source
    return found


def _source(ds: xr.Dataset, title: str, schema: Schema, hours: int, report: Report) -> _Source | None:
    """One group, conformed, with statics, on latitudes and longitudes, at the right time step."""
    ds, findings = conform(ds, schema, title=title)
    report.extend(findings, f"{title}: ")
    if missing := [name for name in ("orog", "lsm") if name not in ds]:
        needed = "orog (surface altitude, m) and lsm (land fraction)"
        report.error(
            title, f"no {' and no '.join(missing)}", needed, f"ds = ds.assign({missing[0]}=...), on the grid of the data"
        )
    if not findings.ok:
        return None
    _check_step(ds["time"].values, title, hours, report)
    grid = grid_of(ds)
    if not isinstance(grid, Grid):
        fix = 'First ds = xsm.regrid(ds, xsm.Grid.regular(north=..., west=..., step="0.1", shape=(...)))'
        report.error(title, f"{grid}", "latitudes and longitudes as axes", fix, kind=GridError)
        return None
    return None if missing else _Source(schema, ds, grid)


def _check_step(time: np.ndarray, title: str, hours: int, report: Report) -> None:
    shortest = np.diff(time).min() / HOUR if time.size > 1 else hours
    if shortest == hours:
        return
    choose = 'ds["time"].dt.hour % 6 == 0' if hours == HOURS else 'ds["time"].dt.minute == 0'
    fix = f"ds = ds.sel(time={choose})" if shortest < hours else "Get data that are; they are not interpolated in time"
    report.error(f"{title}: time", f"every {shortest:g} h", f"every {hours} h", fix, kind=TimeError)


def _check_together(config: TrainConfig, outer: _Source, inner: _Source, report: Report) -> None:
    """The region lies in the driver, the network fits on both, and windows fit into the periods."""
    if share := outer.grid.outside(inner.grid):
        found = f"{100 * share:.0f} % of the regional grid ({inner.grid}) lies outside the global one ({outer.grid})"
        report.error("/regional", found, "a region inside the driver", "Cut it: ds.sel(latitude=slice(...), ...)", kind=GridError)
    elif config.size in SIZES:
        try:
            with torch.device("meta"):
                CoupledModel(network_config(config, outer, inner))
        except (AttributeError, TypeError, ValueError) as error:
            fix = "Change network= or size= of the TrainConfig"
            report.error("network", f"size={config.size!r}, network={config.network}: {error}", fix=fix, kind=InputError)
    for name in ("train", "validation"):
        if _are_periods(getattr(config, name)):
            _check_windows(name, config, outer.ds["time"].values, inner.ds["time"].values, report)


def _check_windows(name: str, config: TrainConfig, outer: np.ndarray, inner: np.ndarray, report: Report) -> None:
    for steps in sorted({stage.steps for stage in config.stages if stage.steps > 0}):
        try:
            window_starts(outer, inner, getattr(config, name), steps)
        except TimeError as error:
            report.error(name, "; ".join(error.problems), fix=f"Change {name}= or give more data", kind=TimeError)
            return


def _are_periods(periods: Periods) -> bool:
    """True for pairs of dates, the first before the second."""
    try:
        return bool(periods) and all(np.datetime64(start) < np.datetime64(end) for start, end in periods)
    except (TypeError, ValueError):
        return False


def _check_settings(config: TrainConfig, report: Report) -> None:
    """Whatever is wrong whichever data there are."""
    for name, choices in (("size", SIZES), ("precision", PRECISIONS)):
        if (value := getattr(config, name)) not in choices:
            needed = ", ".join(f'"{choice}"' for choice in choices)
            report.error(name, repr(value), f"one of {needed}", f'{name}="{choices[0]}"', kind=InputError)
    for name in ("train", "validation"):
        if not _are_periods(getattr(config, name)):
            needed = "pairs of dates, the first before the second"
            report.error(name, repr(getattr(config, name)), needed, f'{name}=(("2001-08-10", "2001-08-30"),)', kind=TimeError)
    if unknown := [part for part in config.calendar if part not in ("hour", "day")]:
        report.error("calendar", f"unknown parts {unknown}", '"hour" and "day", or one of them', kind=InputError)
    if not 0 <= config.ema < 1:
        report.error("ema", str(config.ema), "0 or more and less than 1", "ema=0.998", kind=InputError)
    if config.check_every < 1:
        report.error("check_every", str(config.check_every), "at least 1 update", "check_every=200", kind=InputError)
    if not config.stages:
        report.error("stages", "none", "at least one", 'stages=(xsm.Stage(kind="global", updates=1000), ...)', kind=InputError)
    for number, stage in enumerate(config.stages):
        _check_stage(f"stages[{number}] ({stage.label})", stage, config.stages[:number], report)


def _check_stage(subject: str, stage: Stage, earlier: tuple[Stage, ...], report: Report) -> None:
    for name in ("updates", "batch", "steps"):
        if (value := getattr(stage, name)) < 1:
            report.error(subject, f"{name}={value}", "1 or more", f"Stage(kind={stage.kind!r}, {name}=1, ...)", kind=InputError)
    if not 0 <= stage.floor <= stage.peak or stage.peak <= 0:
        report.error(subject, f"peak={stage.peak}, floor={stage.floor}", "0 < peak and 0 <= floor <= peak", kind=InputError)
    if stage.kind == "global" and any(s.kind in ("regional", "rollout") for s in earlier):
        found = "it follows a regional stage or a roll-out, which freeze the global weights"
        report.error(subject, found, "global stages before all others", "Move it to the front of stages=", kind=InputError)


def network_config(config: TrainConfig, outer: Branch | _Source, inner: Branch | _Source) -> ScaleMixerConfig:
    """The configured preset on these grids, channels, statics and forcings; patches start where global patches do."""
    preset = getattr(ScaleMixerConfig, config.size)(**config.network)
    place = lambda branch, forcings: {
        "latitude": branch.grid.latitude, "longitude": branch.grid.longitude,
        "periodic": branch.grid.periodic, "channels": len(branch.schema), "statics": 2, "forcings": forcings,
    }  # fmt: skip
    outer_config = replace(preset.outer, **place(outer, 2))
    inner_config = replace(preset.inner, **place(inner, 2 * HOURS), offset=(0, 0))
    offset = _nesting_offset(outer_config.tokens.edges, inner.grid, inner_config.patch)
    return replace(preset, outer=outer_config, inner=replace(inner_config, offset=offset))


def _nesting_offset(edges: tuple[np.ndarray, np.ndarray], grid: Grid, patch: int) -> tuple[int, int]:
    """Padding rows and columns that put the first patch edge on an edge of the outer tokens."""
    (lat_edges, lon_edges), (dlat, dlon) = edges, grid.spacing
    north = min(edge - grid.latitude_bounds[0] for edge in lat_edges if edge >= grid.latitude_bounds[0] - dlat / 2)
    west = min((grid.longitude_bounds[0] - edge + dlon / 2) % 360 - dlon / 2 for edge in lon_edges)
    return round(north / dlat) % patch, round(west / dlon) % patch


# ---------------------------------------------------------------------------------------------------------------- stages


def _run_stage(stage: Stage, config: TrainConfig, data: TrainingData, model: Forecaster) -> list[dict]:
    """Train the part of the model that belongs to the stage; the model holds the best averaged weights afterwards."""
    module: nn.Module
    loss: Loss
    sets: list[Windows] | list[_ColdStartSamples]
    if stage.kind == "cold_start":
        module, loss = model.cold_start, _ColdStartLoss(data, stage)
        sets = [_ColdStartSamples(data, model, periods) for periods in (config.train, config.validation)]
    else:
        sets = [data.windows(config.calendar, periods, stage.steps) for periods in (config.train, config.validation)]
        if stage.kind == "global":
            module, loss = model.network.outer, _GlobalLoss(data)
        else:
            module, loss = model.network.freeze_outer(), _CoupledLoss(data, stage)
    generator = torch.Generator().manual_seed(config.seed)
    loader = DataLoader(sets[0], stage.batch, shuffle=True, drop_last=len(sets[0]) >= stage.batch, generator=generator)
    checks = DataLoader(sets[1], stage.batch, generator=torch.Generator())  # its own: validating draws no random numbers
    return _fit(module, loss, loader, checks, stage, config)


def _fit(module: nn.Module, loss: Loss, loader: DataLoader, checks: DataLoader, stage: Stage, config: TrainConfig) -> list[dict]:
    """AdamW with warm-up and cosine; keeps what validates best: the weights at the start or their moving average."""
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=stage.peak, betas=config.betas, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(stage, config.warmup))
    average = moving_average(module, config.ema)
    progress = _Progress(stage)
    progress.check(0, _validate(average.module, loss, checks), average.module)
    bar = tqdm(
        _cycle(loader, stage.updates), total=stage.updates, desc=stage.label, disable=not sys.stderr.isatty(), unit="update"
    )
    for update, batch in enumerate(bar, 1):
        module.train()
        with torch.autocast(trained[0].device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            value, _ = loss(module, batch, augment=True)
        progress.train(update, value.item())
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(trained, config.clip)
        optimizer.step()
        schedule.step()
        average.update_parameters(module)
        if update % config.check_every == 0 or update == stage.updates:
            bar.set_postfix(progress.check(update, _validate(average.module, loss, checks), average.module))
    module.load_state_dict(progress.best)
    return progress.history


def moving_average(module: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel:
    """Exponential moving average of the weights that forgets its first iterates.

    Update n keeps the share ``min(decay, (1 + n) / (10 + n))`` of the average.
    """

    def mix(average: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        n = int(updates)
        return average.lerp(current, 1.0 - min(decay, (1 + n) / (10 + n)))

    return torch.optim.swa_utils.AveragedModel(module, avg_fn=mix)


class _Progress:
    """Losses of a stage and the best weights so far; stops where a loss is not finite.

    Attributes
    ----------
    history : list of dict
        One record per validation: update, mean training loss since the last one, validation loss and its parts, minutes.
    best : dict of Tensor
        Weights with the smallest validation loss.
    """

    def __init__(self, stage: Stage):
        self.stage, self.started = stage, clock.perf_counter()
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self._lowest = math.inf
        self._running: list[float] = []

    def train(self, update: int, value: float) -> None:
        """Note the training loss of an update."""
        self._require_finite("training", update, value)
        self._running.append(value)

    def check(self, update: int, losses: dict[str, float], module: nn.Module) -> dict[str, float]:
        """Note a validation, and the weights if it is the best; returns the record."""
        self._require_finite("validation", update, losses["validation"])
        if losses["validation"] < self._lowest:
            self._lowest, self.best = losses["validation"], copy.deepcopy(module.state_dict())
        mean = {"train": float(np.mean(self._running))} if self._running else {}
        record = {"update": update, **mean, **losses, "minutes": (clock.perf_counter() - self.started) / 60}
        self.history.append({name: round(number, 5) for name, number in record.items()})
        self._running.clear()
        log.info("%s %s", self.stage.label, self.history[-1])
        return self.history[-1]

    def _require_finite(self, kind: str, update: int, value: float) -> None:
        if not math.isfinite(value):
            found = f"the {kind} loss is {value} at update {update} of {self.stage.updates}; needed a finite number"
            fix = f"lower peak={self.stage.peak}, lengthen warmup=, or look for extreme values in the data"
            raise InputError(f"stage {self.stage.label} stopped", [f"{found}. Try: {fix}"])


@torch.inference_mode()
def _validate(module: nn.Module, loss: Loss, checks: DataLoader) -> dict[str, float]:
    """Mean validation loss and its parts."""
    module.eval()
    sums: dict[str, float] = {}
    count = 0
    for batch in checks:
        value, parts = loss(module, batch, augment=False)
        size = len(next(iter(batch.values())))
        for name, number in {"validation": value, **parts}.items():
            sums[name] = sums.get(name, 0.0) + float(number) * size
        count += size
    return {name: total / count for name, total in sums.items()}


def _cycle(loader: DataLoader, updates: int) -> Iterator[dict[str, Tensor]]:
    """Batches, epoch after epoch, until the updates are done."""
    done = 0
    while done < updates:
        for batch in loader:
            if done == updates:
                return
            done += 1
            yield batch


def _rate(stage: Stage, warmup: int) -> Callable[[int], float]:
    """Linear warm-up, then cosine from peak to floor, as a factor of the peak."""
    warmup = min(warmup, stage.updates // 4)
    low = stage.floor / stage.peak

    def factor(update: int) -> float:
        if update < warmup:
            return (update + 1) / warmup
        progress = (update - warmup) / max(1, stage.updates - warmup)
        return low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2

    return factor


# ---------------------------------------------------------------------------------------------------------------- losses


class _GlobalLoss:
    """Eq. 14, on samples that are turned and mirrored while training."""

    def __init__(self, data: TrainingData):
        self.channel_weight = channel_weights(data.outer.schema)
        self.row_weight = row_weights(data.outer.grid)
        self.turn_and_mirror = TurnAndMirror(data.outer)

    def __call__(self, module: GlobalModel, batch: dict[str, Tensor], augment: bool) -> tuple[Tensor, dict]:
        start, end, forcing = batch["outer"][:, 0], batch["outer"][:, 1], batch["outer_forcing"][:, 0]
        statics = module.statics.expand(start.shape[0], -1, -1, -1)
        if augment:
            (start, end), (forcing, statics) = self.turn_and_mirror([start, end], [forcing, statics])
        prediction = module(start, forcing, statics)
        value = module.loss(prediction, end, self.channel_weight, self.row_weight)
        return value, {"persistence": module.loss(start, end, self.channel_weight, self.row_weight)}


class _CoupledLoss:
    """Eq. 15, over one or more steps; with eq. 14 for the global branch in roll-outs."""

    def __init__(self, data: TrainingData, stage: Stage):
        self.with_global = stage.kind == "rollout"
        self.shift = data.season_shift(stage)
        self.channel_weight, self.row_weight = channel_weights(data.outer.schema), row_weights(data.outer.grid)
        self.channels = data.inner.schema.channels

    def __call__(self, module: CoupledModel, batch: dict[str, Tensor], augment: bool) -> tuple[Tensor, dict]:
        batch = self.shift(batch) if augment and self.shift else batch
        outer, inner = batch["outer"][:, 0], batch["inner"][:, :HOURS]
        steps, value, predicted = batch["calendar"].shape[1], outer.new_zeros(()), []
        for i in range(steps):
            result = module(outer, inner, batch["calendar"][:, i], batch["outer_forcing"][:, i], batch["inner_forcing"][:, i])
            outer, inner = result.outer, result.inner
            truth = batch["inner"][:, HOURS * (i + 1) : HOURS * (i + 2)]
            value = value + module.loss(inner, truth) / steps
            if self.with_global:
                value = value + module.outer.loss(outer, batch["outer"][:, i + 1], self.channel_weight, self.row_weight) / steps
            predicted.append(inner.detach())
        error = (torch.cat(predicted, 1) - batch["inner"][:, HOURS:]).abs().mean((0, 1, 3, 4))
        return value, dict(zip(self.channels, error, strict=True))


class _ColdStartSamples(Dataset):
    """First guess and insolation against the six hours that really were; global times with a full history."""

    def __init__(self, data: TrainingData, model: Forecaster, periods: Periods):
        self.windows = data.windows(model.calendar, periods, 1)
        chosen = [i for i, _ in self.windows.starts]
        self.fields = model.first_guess(data.series["outer"].values[chosen], data.series["outer"].time[chosen])

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        sample = self.windows[item]
        return {"fields": self.fields[item], "sun": sample["inner_forcing"][0, :HOURS], "inner": sample["inner"][:HOURS]}


class _ColdStartLoss:
    """Mean absolute error of the invented history."""

    def __init__(self, data: TrainingData, stage: Stage):
        self.shift = data.season_shift(stage)

    def __call__(self, module: ColdStart, batch: dict[str, Tensor], augment: bool) -> tuple[Tensor, dict]:
        batch = self.shift(batch) if augment and self.shift else batch
        return module.loss(module(batch["fields"], batch["sun"]), batch["inner"]), {}


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
