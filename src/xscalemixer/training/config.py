"""Settings of a training run, their checks, and the way to JSON and back."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from xscalemixer.errors import InputError, SchemaError, TimeError
from xscalemixer.report import Report
from xscalemixer.variables import Schema

__all__ = ["SIZES", "CorrDiffConfig", "Periods", "Stage", "TrainConfig", "are_periods", "check_settings"]

Periods = tuple[tuple[str, str], ...]

COUPLED = ("global", "regional", "rollout", "cold_start")
CORRDIFF = ("regression", "diffusion")
KINDS = COUPLED + CORRDIFF
SIZES = ("tiny", "small", "base", "paper")
PRECISIONS = ("bf16", "fp32")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training.

    Attributes
    ----------
    kind : "global", "regional", "rollout" or "cold_start"; "regression" or "diffusion"
        The first four are stages of a `TrainConfig`, the others of a `CorrDiffConfig`.
    updates, batch : int
        Optimizer updates, and samples per update on all devices together.
    peak, floor : float
        Learning rate after the warm-up and at the end of the cosine; equal for a constant rate.
    steps : int
        Six-hour steps unrolled per sample; a growing number is a series of stages.
    season_shift : float
        Largest cooling of `augmentation.SeasonShift` in K; 0 switches it off.
    periods : tuple of (start, end)
        Training periods of this stage; by default those of the run. Global stages need no regional hours: a long global
        archive is learned from by ``periods=(("1979-01-01", "2016-01-01"),)`` and a second global stage without it.
    patience : int, optional
        Validations without a new best after which the stage ends early.
    detach : bool
        Let no gradient pass from one step of a roll-out to the step before.
    per_pass : int, optional
        Samples per forward and backward pass of one device; gradients are accumulated over the passes of an update. By
        default all of the device. It changes memory and speed only.
    recompute : bool
        Keep only the tokens between groups of layers for the backward pass, and compute the rest twice (activation
        checkpointing). It changes memory and speed only.
    cache : bool
        Compute what the frozen global network has to say once, and keep it on disk beside the stages. Only where the region
        does not answer: couplings "one_way", "lam", "nested" and "downscaled". It changes speed only.
    """

    kind: str
    updates: int
    batch: int = 4
    peak: float = 5e-4
    floor: float = 1e-6
    steps: int = 1
    season_shift: float = 0.0
    periods: Periods = ()
    patience: int | None = None
    detach: bool = False
    per_pass: int | None = None
    recompute: bool = False
    cache: bool = False

    def __post_init__(self):
        if self.kind not in KINDS:
            *others, last = map(repr, KINDS)
            raise ValueError(f"kind={self.kind!r}; choose {', '.join(others)} or {last}")

    @property
    def label(self) -> str:
        """Name in logs and file names."""
        return f"{self.kind}-{self.steps}" if self.kind == "rollout" else self.kind

    @property
    def identity(self) -> dict[str, Any]:
        """Settings that decide the weights; the others decide memory and speed."""
        return {name: value for name, value in asdict(self).items() if name not in ("per_pass", "recompute", "cache")}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run but the data.

    Attributes
    ----------
    name : str
    train, validation : tuple of (start, end)
        Periods as ISO dates, start exclusive, end inclusive.
    test : tuple of (start, end)
        Periods kept for a final verdict: nothing is read from them, and it is an error if they touch one of the others.
    size : "tiny", "small", "base" or "paper"
    network : dict
        Changes to the preset, e.g. ``{"coupling": "one_way", "inner": {"depth": 8}}``.
    stages : tuple of Stage
    calendar : tuple of str
        Calendar inputs; leave ``"day"`` out when the data cover a part of the year only.
    seed, warmup, clip : int, int, float
        Random seed, warm-up updates per stage, largest gradient norm.
    betas, weight_decay, ema : (float, float), float, float
        AdamW moments, decay, and decay of the moving average of the weights (`engine.MovingAverage`).
    check_every : int
        Updates between validations.
    precision : "bf16" or "fp32"
        Arithmetic of the forward and backward pass (autocast); weights and losses stay in single precision.
    """

    name: str
    train: Periods
    validation: Periods
    test: Periods = ()
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

    sizes: ClassVar[tuple[str, ...]] = SIZES
    kinds: ClassVar[tuple[str, ...]] = COUPLED

    def to_dict(self) -> dict:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainConfig:
        """Inverse of `to_dict`, from JSON too.

        Raises
        ------
        InputError
            With every key that is unknown or missing and every value of a wrong type.
        """
        report = Report("training settings")
        stages = _stages(data.get("stages", ()), report) if isinstance(data, Mapping) else ()
        settings = _known(cls, data, "settings", report)
        report.raise_errors("these training settings cannot be read")
        return cls(**{**settings, "stages": stages})


@dataclass(frozen=True, kw_only=True)
class CorrDiffConfig(TrainConfig):
    """Everything that decides the training of a CorrDiff model but the data; what `TrainConfig` has means the same.

    Attributes
    ----------
    size : "tiny", "small", "paper" or "china"
    network : dict
        Changes to the preset, e.g. ``{"diffusion": {"width": 48}, "context": True}``.
    stages : tuple of Stage
        Of kind "regression", then "diffusion", with the regression frozen.
    inputs, outputs : tuple of str
        Channels such as ``"t2m"`` or ``"t_850"``. Outputs that are no inputs are synthesized.
    residual : bool
        The regression adds its change to the interpolated input where a channel is both input and output (China variant), and
        makes the whole field where it is not; False: it makes all fields itself, as in the paper.
    patch : (int, int), optional
        Train on patches of these rows and columns; default: on the whole domain.
    patches : int
        Patches per sample.
    """

    size: str = "small"
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    residual: bool = True
    patch: tuple[int, int] | None = None
    patches: int = 4

    sizes: ClassVar[tuple[str, ...]] = ("tiny", "small", "paper", "china")
    kinds: ClassVar[tuple[str, ...]] = CORRDIFF


def _stages(rows: Any, report: Report) -> tuple[Stage, ...]:
    if not isinstance(rows, (list, tuple)):
        report.error("stages", f"a {type(rows).__name__}", "a list of stages", kind=InputError)
        return ()
    stages = []
    for number, row in enumerate(rows):
        known = _known(Stage, row, f"stages[{number}]", report)
        if known.get("kind", KINDS[0]) not in KINDS:
            report.error(f"stages[{number}]", f"kind={known['kind']!r}", f"one of {KINDS}", kind=InputError)
        elif report.ok:
            stages.append(Stage(**known))
    return tuple(stages)


def _known(kind: type, data: Any, subject: str, report: Report) -> dict[str, Any]:
    """The fields of a dataclass in plain data, lists as tuples; anything else goes to the report."""
    if not isinstance(data, Mapping):
        report.error(subject, f"a {type(data).__name__}", "keys and values", kind=InputError)
        return {}
    named = {each.name for each in fields(kind)}
    hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if name in named}
    for key in (key for key in data if key not in hints):
        near = difflib.get_close_matches(key, hints, 1)
        report.error(
            subject, f"unknown key {key!r}", f"some of {sorted(hints)}", f"Is it {near[0]!r}?" if near else "", kind=InputError
        )
    for name in (name for name in _required(kind) if name not in data):
        report.error(subject, f"no {name!r}", "it has no default", kind=InputError)
    found = {key: _tuples(value) if key != "network" else value for key, value in data.items() if key in hints}
    for key, value in found.items():
        if not _fits(value, hints[key]):
            report.error(subject, f"{key}={data[key]!r}", _plain(hints[key]), kind=InputError)
    return found


def _required(kind: type) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _fits(value: Any, hint: Any) -> bool:
    """True if a value has the type of a field; whole numbers are numbers, true and false are not."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _plain(hint: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        str: "a text",
        bool: "true or false",
        dict: "keys and values",
        tuple: "a list",
    }
    if isinstance(hint, types.UnionType):
        return " or ".join("null" if each is type(None) else _plain(each) for each in typing.get_args(hint))
    return names[typing.get_origin(hint) or hint]


# ---------------------------------------------------------------------------------------------------------------- checks


def are_periods(periods: Periods) -> bool:
    """True for pairs of dates, the first before the second."""
    try:
        return bool(periods) and all(np.datetime64(start) < np.datetime64(end) for start, end in periods)
    except (TypeError, ValueError):
        return False


def check_settings(config: TrainConfig, report: Report) -> None:
    """Whatever is wrong whichever data there are."""
    for name, choices in (("size", config.sizes), ("precision", PRECISIONS)):
        if (value := getattr(config, name)) not in choices:
            needed = ", ".join(f'"{choice}"' for choice in choices)
            report.error(name, repr(value), f"one of {needed}", f'{name}="{choices[0]}"', kind=InputError)
    _check_periods(config, report)
    if unknown := [part for part in config.calendar if part not in ("hour", "day")]:
        report.error("calendar", f"unknown parts {unknown}", '"hour" and "day", or one of them', kind=InputError)
    if not 0 <= config.ema < 1:
        report.error("ema", str(config.ema), "0 or more and less than 1", "ema=0.998", kind=InputError)
    if config.check_every < 1:
        report.error("check_every", str(config.check_every), "at least 1 update", "check_every=200", kind=InputError)
    if not config.stages:
        report.error("stages", "none", "at least one", 'stages=(xsm.Stage(kind="global", updates=1000), ...)', kind=InputError)
    for number, stage in enumerate(config.stages):
        _check_stage(f"stages[{number}] ({stage.label})", stage, config, config.stages[:number], report)
    if isinstance(config, CorrDiffConfig):
        _check_corrdiff(config, report)


def _check_periods(config: TrainConfig, report: Report) -> None:
    """They are periods, and no two sets share a time; stages may train on the same ones."""
    given = {name: getattr(config, name) for name in ("train", "validation", "test") if name != "test" or config.test}
    given |= {f"stages[{i}].periods": stage.periods for i, stage in enumerate(config.stages) if stage.periods}
    for name, periods in given.items():
        if not are_periods(periods):
            needed, example = "pairs of dates, the first before the second", '(("2001-08-10", "2001-08-30"),)'
            report.error(name, repr(periods), needed, f"{name.split('.')[-1]}={example}", kind=TimeError)
    valid = [(name, np.datetime64(a), np.datetime64(b)) for name, ps in given.items() if are_periods(ps) for a, b in ps]
    for i, (name, start, end) in enumerate(valid):
        for other, begin, finish in valid[i + 1 :]:
            if _purpose(name) != _purpose(other) and max(start, begin) < min(end, finish):
                shared = f"it shares {max(start, begin)} to {min(end, finish)} with {name}="
                fix = "What is validated or tested on must not be trained on: take these times out of one of them"
                report.error(other, shared, "no common times", fix, kind=TimeError)


def _check_corrdiff(config: CorrDiffConfig, report: Report) -> None:
    """Channels, patches and the order of stages."""
    for name in ("inputs", "outputs"):
        try:
            if not Schema.of_channels(*getattr(config, name)).channels:
                report.error(name, "none", "at least one channel", f'{name}=("t2m", "u10", "v10")', kind=InputError)
        except SchemaError as error:
            report.error(name, "; ".join(error.problems), fix=f'{name}=("t2m", "u10", "v10", "t_850")', kind=InputError)
    if config.patch is not None and (len(config.patch) != 2 or min(config.patch) < 1 or config.patches < 1):
        needed = "rows and columns, and 1 patch or more"
        report.error("patch", f"{config.patch}, patches={config.patches}", needed, "patch=(128, 128), patches=4", kind=InputError)
    for number, stage in enumerate(config.stages):
        if stage.kind == "diffusion" and not any(s.kind == "regression" for s in config.stages[:number]):
            found = "no regression before it, whose errors it learns"
            fix = 'Put one before it: stages=(xsm.Stage(kind="regression", ...), xsm.Stage(kind="diffusion", ...))'
            report.error(f"stages[{number}] (diffusion)", found, fix=fix, kind=InputError)
        if stage.kind == "regression" and any(s.kind == "diffusion" for s in config.stages[:number]):
            found = "it follows a diffusion, which was trained on the errors of the regression before"
            report.error(f"stages[{number}] (regression)", found, fix="Move it to the front of stages=", kind=InputError)
    idle = {"steps": 1, "season_shift": 0.0, "recompute": False, "cache": False, "detach": False}
    for number, stage in enumerate(config.stages):
        if used := [f"{name}={getattr(stage, name)}" for name, default in idle.items() if getattr(stage, name) != default]:
            subject, found = f"stages[{number}] ({stage.label})", f"{', '.join(used)} without a meaning here"
            report.error(subject, found, fix="Leave them out", kind=InputError)


def _purpose(name: str) -> str:
    return "train" if name.endswith(".periods") else name


def _check_stage(subject: str, stage: Stage, config: TrainConfig, earlier: tuple[Stage, ...], report: Report) -> None:
    for name in ("updates", "batch", "steps", "patience", "per_pass"):
        if (value := getattr(stage, name)) is not None and value < 1:
            report.error(subject, f"{name}={value}", "1 or more", f"Stage(kind={stage.kind!r}, {name}=1, ...)", kind=InputError)
    if stage.kind not in config.kinds:
        needed = " or ".join(f'"{kind}"' for kind in config.kinds)
        report.error(subject, f"kind={stage.kind!r} in a {type(config).__name__}", needed, kind=InputError)
    if not 0 <= stage.floor <= stage.peak or stage.peak <= 0:
        report.error(subject, f"peak={stage.peak}, floor={stage.floor}", "0 < peak and 0 <= floor <= peak", kind=InputError)
    if stage.kind == "global" and any(s.kind in ("regional", "rollout") for s in earlier):
        found = "it follows a regional stage or a roll-out, which freeze the global weights"
        report.error(subject, found, "global stages before all others", "Move it to the front of stages=", kind=InputError)
    if stage.kind != "rollout" and stage.detach:
        report.error(subject, "detach=True", "a roll-out", "Leave detach= out", kind=InputError)
