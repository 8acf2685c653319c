"""Training: global pretraining, regional one-step with the global weights frozen, roll-out fine-tuning, cold start."""

from __future__ import annotations

import copy
import json
import logging
import math
import sys
import time as clock
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from xscalemixer.augmentation import SeasonShift, TurnAndMirror
from xscalemixer.conform import conform
from xscalemixer.errors import InputError
from xscalemixer.forecaster import Branch, Forecaster
from xscalemixer.grids import Grid, grid_of
from xscalemixer.nn.coldstart import ColdStart, ColdStartConfig
from xscalemixer.nn.scalemixer import CoupledModel, GlobalModel, ScaleMixerConfig
from xscalemixer.samples import Series, Windows, estimate_stats
from xscalemixer.state import HOURS, statics_of
from xscalemixer.variables import REGIONAL, Schema

__all__ = ["OUTER", "Stage", "TrainConfig", "channel_weights", "train"]

log = logging.getLogger(__name__)

LEVELS = (50, 100, 200, 300, 400, 500, 600, 700, 850, 925, 1000)
OUTER = Schema.of("z", "q", "u", "v", "t", "t2m", "u10", "v10", "q2m", "sp", levels=LEVELS)
SURFACE_GUESS = ("t2m", "u10", "v10", "q2m", "sp")


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
        AdamW moments, decay, and decay of the moving average of the weights that is kept.
    check_every : int
        Updates between validations.
    precision : "bf16" or "fp32"
        Arithmetic of the forward and backward pass (autocast); weights and losses stay in single precision.
    """

    name: str
    train: tuple[tuple[str, str], ...]
    validation: tuple[tuple[str, str], ...]
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
        Finished stages are kept there; a run that starts again skips them.

    Returns
    -------
    Forecaster

    Raises
    ------
    InputError
        If the data do not fit; every problem is listed.
    """
    torch.manual_seed(config.seed)
    data = TrainingData.of(config, tree)
    model = data.fresh_model(config)
    for number, stage in enumerate(config.stages):
        torch.manual_seed(config.seed + number + 1)
        kept = folder and Path(folder) / f"{number}-{stage.label}.safetensors"
        if kept and kept.exists():
            log.info("stage %s: finished earlier, loaded %s", stage.label, kept)
            model.modules.load_state_dict(safetensors.torch.load_file(kept))
            history = json.loads(kept.with_suffix(".json").read_text(encoding="utf-8"))
        else:
            history = _run_stage(stage, config, data, model)
            if kept:
                _keep(model, history, kept)
        model.about.setdefault("training", []).append({**asdict(stage), **min(history, key=lambda record: record["validation"])})
    model.eval()
    return model


def _keep(model: Forecaster, history: list[dict], path: Path) -> None:
    """Write the weights after a stage; they appear under their name only when they are complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(history, indent=1), encoding="utf-8")
    draft = path.with_suffix(".draft")
    safetensors.torch.save_file(model.modules.state_dict(), draft)
    draft.replace(path)


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
        """Conform, read and normalize both groups of the tree."""
        groups = {"outer": ("global", OUTER, ()), "inner": ("regional", REGIONAL, ("ssrd",))}
        branches, series, scaled, statics = {}, {}, {}, {}
        for branch, (group, schema, zero_mean) in groups.items():
            if group not in tree.children:
                raise InputError(f"training needs a group '/{group}'", [f"found groups {list(tree.children)}"])
            ds, report = conform(tree[group].to_dataset(), schema, title=f"/{group}")
            report.raise_errors(f"'/{group}' cannot be trained on")
            series[branch] = Series.of(ds, schema)
            stats = estimate_stats(
                series[branch], schema, config.train, zero_mean=zero_mean, source=f"training periods of {config.name}"
            )
            mean, std = (a[:, None, None] for a in stats.arrays(schema))
            scaled[branch] = Series(series[branch].time, (series[branch].values - mean) / std)
            branches[branch] = Branch(schema, grid_of(ds), stats)
            statics[branch] = statics_of(ds)
        return cls(branches["outer"], branches["inner"], series, scaled, statics)

    def fresh_model(self, config: TrainConfig) -> Forecaster:
        """A model of the configured size on these grids, with random weights."""
        preset = getattr(ScaleMixerConfig, config.size)(**config.network)
        network = CoupledModel(fit_to_grids(preset, self.outer, self.inner))
        for branch, target in (("outer", network.outer), ("inner", network.inner)):
            target.statics.copy_(torch.from_numpy(self.statics[branch]))
        channels = self.inner.schema.channels
        guessed = tuple(channels.index(name) for name in SURFACE_GUESS)
        cold = ColdStartConfig(
            inputs=len(guessed) + 5, channels=len(channels), guessed=guessed, sunlit_channel=channels.index("ssrd")
        )
        return Forecaster(config.name, network, ColdStart(cold), self.outer, self.inner, calendar=config.calendar)

    def season_shift(self, stage: Stage) -> SeasonShift | None:
        """The augmentation of a stage."""
        if not stage.season_shift:
            return None
        land = tuple(torch.from_numpy(self.statics[branch][1]) for branch in ("outer", "inner"))
        return SeasonShift(self.outer, self.inner, land, coldest=stage.season_shift)

    def windows(self, config: TrainConfig, periods, steps: int) -> Windows:
        """Normalized training windows."""
        grids = (self.outer.grid, self.inner.grid)
        scale = self.inner.stats.std["ssrd"]
        return Windows(self.scaled["outer"], self.scaled["inner"], grids, periods, steps, scale, config.calendar)


def fit_to_grids(preset: ScaleMixerConfig, outer: Branch, inner: Branch) -> ScaleMixerConfig:
    """The preset on other grids and channels; patches start where global patches do if the cells nest."""
    place = lambda branch: {
        "latitude": branch.grid.latitude, "longitude": branch.grid.longitude,
        "periodic": branch.grid.periodic, "channels": len(branch.schema), "statics": 2,
    }  # fmt: skip
    outer_config = replace(preset.outer, **place(outer))
    inner_config = replace(preset.inner, **place(inner), offset=(0, 0))
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
    if stage.kind == "cold_start":
        module, loss = model.cold_start, _ColdStartLoss(data, stage)
        sets = [_ColdStartSamples(data, model, periods) for periods in (config.train, config.validation)]
    else:
        sets = [data.windows(config, periods, stage.steps) for periods in (config.train, config.validation)]
        if stage.kind == "global":
            module, loss = model.network.outer, _GlobalLoss(data)
        else:
            module, loss = model.network.freeze_outer(), _CoupledLoss(data, stage)
    generator = torch.Generator().manual_seed(config.seed)
    loader = DataLoader(sets[0], stage.batch, shuffle=True, drop_last=len(sets[0]) >= stage.batch, generator=generator)
    checks = DataLoader(sets[1], stage.batch)
    return _fit(module, loss, loader, checks, stage, config)


def _fit(
    module: nn.Module, loss: Callable, loader: DataLoader, checks: DataLoader, stage: Stage, config: TrainConfig
) -> list[dict]:
    """AdamW with warm-up and cosine; keeps the moving average that validates best."""
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=stage.peak, betas=config.betas, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(stage, config.warmup))
    average = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema), use_buffers=False
    )
    best, history, running, started = (math.inf, None), [], [], clock.perf_counter()
    bar = tqdm(
        _cycle(loader, stage.updates), total=stage.updates, desc=stage.label, disable=not sys.stderr.isatty(), unit="update"
    )
    for update, batch in enumerate(bar, 1):
        module.train()
        with torch.autocast(trained[0].device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            value, _ = loss(module, batch, augment=True)
        if not torch.isfinite(value):
            raise InputError(
                f"stage {stage.label} stopped",
                [f"the loss is {value.item()} at update {update}; lower peak={stage.peak} or check the data"],
            )
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(trained, config.clip)
        optimizer.step(), schedule.step(), average.update_parameters(module)
        running.append(value.item())
        if update % config.check_every == 0 or update == stage.updates:
            record = {"update": update, "train": float(np.mean(running)), **_validate(average.module, loss, checks)}
            record["minutes"] = (clock.perf_counter() - started) / 60
            history.append({key: round(number, 5) for key, number in record.items()})
            log.info("%s %s", stage.label, history[-1])
            bar.set_postfix(train=history[-1]["train"], validation=history[-1]["validation"])
            running.clear()
            if record["validation"] < best[0]:
                best = record["validation"], copy.deepcopy(average.module.state_dict())
    module.load_state_dict(best[1])
    return history


@torch.inference_mode()
def _validate(module: nn.Module, loss: Callable, checks: DataLoader) -> dict[str, float]:
    """Mean validation loss and its parts."""
    module.eval()
    sums, count = {}, 0
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
        steps, value, predicted = batch["calendar"].shape[1], 0.0, []
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


class _ColdStartSamples(torch.utils.data.Dataset):
    """First guess and insolation against the six hours that really were; global times with a full history."""

    def __init__(self, data: TrainingData, model: Forecaster, periods):
        self.windows = data.windows(TrainConfig(name="", train=(), validation=()), periods, 1)
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
    weights = []
    for variable in schema.variables:
        weights += [level / total * factor.get(level, 1.0) for level in variable.levels] or [surface.get(variable.name, 0.08)]
    weights = torch.tensor(weights)
    return weights / weights.sum()


def row_weights(grid: Grid) -> Tensor:
    """Latitude factor of eq. 14, ``sqrt(cos / mean cos)`` scaled to mean 1, shape (H,)."""
    cos = torch.tensor(grid.latitude).deg2rad().cos()
    weight = (cos / cos.mean()).sqrt()
    return weight / weight.mean()
