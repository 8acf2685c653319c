"""A training run, stage after stage: checked, kept in a folder, and gone on with where it was stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
import xarray as xr
from torch import nn

from xscalemixer.errors import InputError
from xscalemixer.forecaster import Forecaster
from xscalemixer.model import Model
from xscalemixer.report import Report
from xscalemixer.running import coupled_model_of
from xscalemixer.samples import Windows
from xscalemixer.training.alone import Met2NetStage, RegionAlone
from xscalemixer.training.batches import Samples
from xscalemixer.training.checkpoints import Checkpoints, elsewhere, owned, require_same_run, write_tensors, write_whole
from xscalemixer.training.config import CorrDiffConfig, Met2NetTrainConfig, Periods, Stage, TrainConfig
from xscalemixer.training.corrdiff import CoarseToFine, DiffusionObjective, RegressionObjective
from xscalemixer.training.data import AroundGlobal, ColdStartSamples, Contract, FromScratch
from xscalemixer.training.engine import Plan, Saving, fit, seed_of
from xscalemixer.training.objectives import ColdStartObjective, CoupledObjective, GlobalObjective
from xscalemixer.training.ranks import Ranks, ranks
from xscalemixer.training.towers import TowerCache, WithTower

__all__ = ["Run", "Way", "objective_of", "run", "train"]

log = logging.getLogger(__name__)

# what was added later counts only where it is used: older folders stay valid
LATER_SETTINGS = ("statics", "first_guess", "variables", "global_variables", "global_levels")


def train(
    config: TrainConfig,
    tree: xr.DataTree | xr.Dataset,
    *,
    outer: str | PathLike | Model | None = None,
    folder: str | Path | None = None,
    device: str | None = None,
    sharded: bool = False,
    memory: float = 4.0,
    skip: float = 0.01,
    min_samples: int = 40,
    workers: int = 2,
    save_updates: int = 200,
    save_minutes: float = 10.0,
) -> Model:
    """Train a model from scratch, in one process or in those that torchrun started.

    Parameters
    ----------
    config : TrainConfig, Met2NetTrainConfig or CorrDiffConfig
        A coupled model, one of a region alone, or one that downscales.
    tree : DataTree or Dataset
        ``/global``: fields on pressure levels and at the surface every 1, 2, 3 or 6 hours; ``/regional``: hourly surface fields.
        Both with ``orog`` and ``lsm``, in any layout that `xscalemixer.conform` understands. For a region alone a Dataset of its
        hourly fields. For CorrDiff ``/input`` (coarse, an analysis or forecasts) and ``/target`` (fine, with ``orog`` and
        ``lsm``), see `xscalemixer.downscaling_pair`.
    outer : str, path or Forecaster, optional
        A model whose global network is taken over, with its statistics, instead of a global stage; for a coupled
        model only.
    folder : path, optional
        Finished stages and checkpoints are kept there; the same run started again goes on from them, another run is refused.
        All processes must see it.
    device : "cuda" or "cpu", optional
        By default a CUDA device for each process, if there is one.
    sharded : bool
        Spread parameters, gradients and optimizer state over the processes (FSDP2) instead of repeating them (DDP).
    memory : float
        GiB of fields that each process may hold; larger dask datasets are read sample by sample.
    skip : float
        Share of the times of each group that may have missing or absurd values (at least one time may, unless it is 0). They are
        left out with a warning, and no sample spans them; more of them are an error.
    min_samples : int
        Fewest training samples that a stage may have: forty are ten days of six-hourly starts.
    workers : int
        Threads that read samples ahead.
    save_updates, save_minutes : int, float
        A checkpoint is written when either has passed since the last one.

    Returns
    -------
    Forecaster, RegionalForecaster or Downscaler
        On the CPU, the same in every process.

    Raises
    ------
    InputError
        If settings, data, device or the stages in ``folder`` do not fit, before anything is trained; every problem is listed.
        While training, if a loss or a gradient is not finite.
    """
    way = Way(folder, device, sharded, memory, skip, min_samples, workers, save_updates, save_minutes)
    contract, origin = _contract(config, outer)
    with run(config, tree, way, contract, origin=origin) as protocol:
        torch.manual_seed(config.seed)
        return protocol.to_the_end(contract.fresh(protocol.data))


def _contract(config: TrainConfig, outer) -> tuple[Any, dict[str, str]]:
    """What a class of settings trains, and what tells its start apart."""
    kinds = {TrainConfig: FromScratch, Met2NetTrainConfig: RegionAlone, CorrDiffConfig: CoarseToFine}
    if type(config) not in kinds:
        needed = f"needed a {', a '.join(kind.__name__ for kind in kinds)}"
        fix = "from plain data: xsm.TrainConfig.from_dict(...)"
        raise InputError("nothing was trained", [f"the settings are a {type(config).__name__}; {needed}; {fix}"])
    scratch = kinds[type(config)]
    if outer is None:
        return scratch(config), {}
    if scratch is not FromScratch:
        found = f"outer= was given, and a {type(config).__name__} trains no model with a global network"
        raise InputError(f"{config.name!r} cannot be trained", [f"{found}. Leave out outer="])
    base = coupled_model_of(outer, "global network")
    return AroundGlobal(config, base), {"global network": base.weights_sha256()}


@dataclass(frozen=True)
class Way:
    """Where and how a run is done; for the meaning of each see `train`. What it leaves out shows in the hashes of the data."""

    folder: str | PathLike | None = None
    device: str | None = None
    sharded: bool = False
    memory: float = 4.0
    skip: float = 0.01
    min_samples: int = 40
    workers: int = 2
    save_updates: int = 200
    save_minutes: float = 10.0


@contextmanager
def run(
    config: TrainConfig,
    tree: xr.DataTree | xr.Dataset,
    way: Way,
    contract: Contract,
    *,
    origin: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> Iterator[Run]:
    """The stages of a run with their data, checked; within it the processes are joined and the folder is taken.

    Parameters
    ----------
    config : TrainConfig
    tree : DataTree or Dataset
    way : Way
    contract : Contract
        What is made of the data, and how.
    origin : dict, optional
        Plain data that tell apart what the run starts from; the folder of another origin is refused.
    report : Report, optional
        Problems that are known already.
    """
    kept = None if way.folder is None else Path(way.folder)
    with ranks(way.device, sharded=way.sharded) as group, owned(kept if group.first else None):
        report = Report(f"training of {config.name!r}") if report is None else report
        _check_run(config, group, kept, report)
        data = contract.collect(config, tree, memory=way.memory, skip=way.skip, min_samples=way.min_samples, report=report)
        yield Run(config, data, group, kept, way, dict(origin or {}))


def _check_run(config: TrainConfig, group: Ranks, folder: Path | None, report: Report) -> None:
    """Batches can be shared evenly, and what is to be kept has a place."""
    for number, stage in enumerate(config.stages):
        subject = f"stages[{number}] ({stage.label})"
        if stage.batch % group.count:
            needed = f"a multiple of the {group.count} processes"
            report.error(
                subject, f"batch={stage.batch}", needed, f"batch={-(-stage.batch // group.count) * group.count}", kind=InputError
            )
        if stage.cache and folder is None:
            report.error(subject, "cache=True", "a folder to keep it in", 'xsm.train(..., folder="runs")', kind=InputError)


@dataclass(frozen=True)
class Run:
    """The stages that lead from a model to a trained one.

    Attributes
    ----------
    config : TrainConfig
    data : TrainingData, HourlyData or PairData
    group : Ranks
    folder : Path, optional
    way : Way
    origin : dict
    """

    config: TrainConfig
    data: Any
    group: Ranks
    folder: Path | None
    way: Way
    origin: dict[str, Any]

    @property
    def pending(self) -> list[int]:
        """Numbers of the stages that the folder does not hold yet."""
        finished = self._finished()
        return [number for number in range(len(self.config.stages)) if number not in finished]

    def to_the_end(self, model: Any) -> Any:
        """Train a model stage after stage, in place; stages that the folder holds are loaded."""
        finished = self._finished()
        for number, stage in enumerate(self.config.stages):
            if number in finished:
                history = finished[number]["history"]
                model.about |= finished[number].get("about", {})
                model.modules.load_state_dict(safetensors.torch.load_file(self._file(number)))
                log.info("stage %s: finished earlier, loaded from %s", stage.label, self.folder)
            else:
                known = dict(model.about)
                history = self._run(number, model)
                told = {name: value for name, value in model.about.items() if known.get(name) != value}
                self._keep(number, model, history, told)
            best = min(history, key=lambda record: record["validation"])
            model.about.setdefault("training", []).append({**asdict(stage), **best})
        config = self.config
        own = [period for stage in config.stages for period in stage.periods]
        sets = {"train": dict.fromkeys((*config.train, *own)), "validation": config.validation, "test": config.test}
        periods = {name: [list(period) for period in some] for name, some in sets.items()}
        model.about.setdefault("trained_on", []).append({**periods, **self.data.digests})
        model.eval()
        return model

    def _run(self, number: int, model: Any) -> list[dict]:
        """Train the part of the model that belongs to a stage; it holds the best averaged weights afterwards."""
        config = self.config
        stage, plan = config.stages[number], self.plan(number)
        if stage.kind == "regression" and number == 0:  # later its output has its scale
            self.data.measure_change(model, config.periods_of(stage)[0], self.group)
        elif stage.kind == "diffusion":
            self.data.measure_residual(model, config.periods_of(stage)[0], self.group)
        objective, samples = objective_of(stage, config, self.data, model)
        sets: list[Any] = [samples(periods) for periods in config.periods_of(stage)]
        if stage.cache:
            sets = self._with_towers(number, model, sets)
        return fit(objective, sets[0], sets[1], plan, self.group, saving=self._saving(number), workers=self.way.workers)

    def plan(self, number: int) -> Plan:
        """How a stage is trained."""
        config, stage = self.config, self.config.stages[number]
        return Plan(
            **{name: getattr(stage, name) for name in ("label", "updates", "batch", "per_pass", "peak", "floor", "patience")},
            **{
                name: getattr(config, name)
                for name in ("warmup", "clip", "betas", "weight_decay", "ema", "check_every", "precision")
            },
            seed=seed_of(config.seed, number),
            watch={"score_network": r"\.sampler\.(convolutions|score)\."},
        )

    def _with_towers(self, number: int, model: Forecaster, sets: list[Windows]) -> list[WithTower]:
        """Training samples in the arithmetic of training, validation samples in that of validation."""
        kept = TowerCache(cast("Path", self.folder) / "towers", model.network, self.group, batch=self.config.stages[number].batch)
        about = json.dumps(self.data.digests)
        return [
            kept.of(windows, about, precision=precision)
            for windows, precision in zip(sets, (self.config.precision, "fp32"), strict=True)
        ]

    # ----------------------------------------------------------------------------------------------------------- folder

    def _file(self, number: int) -> Path:
        return cast("Path", self.folder) / f"{number}-{self.config.stages[number].label}.safetensors"

    def _checkpoints(self, number: int) -> Checkpoints:
        return Checkpoints(self._file(number).with_suffix(""), self._identity(number))

    def _saving(self, number: int) -> Saving | None:
        if self.folder is None:
            return None
        checkpoints = self._checkpoints(number)
        losses = checkpoints.folder / "losses.jsonl"
        way = self.way
        return Saving(checkpoints=checkpoints, losses=losses, updates=way.save_updates, minutes=way.save_minutes)

    def _keep(self, number: int, model: Model, history: list[dict], about: dict) -> None:
        """Write the weights after a stage and what it told; they appear under their name only when they are complete."""
        if self.folder is None or not self.group.first:
            return
        path = self._file(number)
        record = {"run": self._identity(number), "history": history, "about": about}
        write_whole(path.with_suffix(".json"), (json.dumps(record, indent=1) + "\n").encode())
        write_tensors(path, model.modules.state_dict())
        self._checkpoints(number).clear()

    def _identity(self, number: int) -> dict[str, Any]:
        """What decides the weights after a stage: settings, this and earlier stages, statistics and data; plain data."""
        aside = ("name", "test", "stages", "reduced")  # whether fields are reduced shows in the hash of their statistics
        run = {key: value for key, value in self.config.to_dict().items() if key not in aside}
        for each in fields(TrainConfig):
            if each.name in LATER_SETTINGS and run[each.name] == each.default:
                del run[each.name]
        for i, stage in enumerate(self.config.stages[: number + 1]):
            run |= {f"stages[{i}].{key}": value for key, value in stage.identity.items()}
        return json.loads(json.dumps({**run, **self.data.digests, **self.origin}))

    def _finished(self) -> dict[int, dict]:
        """Records of the stages kept in the folder, by number.

        Raises
        ------
        InputError
            If any of them belongs to another run.
        """
        if self.folder is None:
            return {}
        finished = {}
        for number in range(len(self.config.stages)):
            path = self._file(number)
            if not self.group.agreed(path.exists()):
                continue
            record = path.with_suffix(".json")
            finished[number] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
            if not isinstance(finished[number], dict) or "run" not in finished[number]:
                untold = f"{path.name}: nothing beside it tells from which settings and data it comes"
                raise InputError(f"{self.folder} holds stages of another run", [untold, elsewhere(self.folder)])
            require_same_run(finished[number]["run"], self._identity(number), self.folder)
        return finished


def objective_of(stage: Stage, config: Any, data: Any, model: Any) -> tuple[nn.Module, Callable[[Periods], Samples]]:
    """What a stage trains, and the function that makes its samples from periods; all else is that of its contract."""
    match stage.kind:
        case "cold_start":
            return ColdStartObjective(model.cold_start, data, stage), lambda periods: ColdStartSamples(data, model, periods)
        case "global":
            return GlobalObjective(model.network.outer, data, stage), data.pairs
        case "regional" | "rollout":
            samples = lambda periods: data.windows(model.calendar, periods, stage.steps)
            return CoupledObjective(model.network, data, stage), samples
        case "regression":
            return RegressionObjective(model, config), lambda periods: data.samples(model, periods)
        case "diffusion":
            return DiffusionObjective(model, config), lambda periods: data.samples(model, periods)
        case _:
            objective = Met2NetStage(model.network, stage.kind, model.inner.schema.channels)
            return objective, lambda periods: data.sequences(model.network.config, periods)
