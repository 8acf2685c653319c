"""Settings of a training run, their checks, and the way to JSON and back."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from xscalemixer.errors import InputError, TimeError
from xscalemixer.nn.coldstart import GUESSES
from xscalemixer.report import Report
from xscalemixer.state import STATICS
from xscalemixer.variables import CATALOG, REGIONAL, Schema

__all__ = [
    "SIZES",
    "CorrDiffConfig",
    "Met2NetTrainConfig",
    "Periods",
    "Stage",
    "TrainConfig",
    "are_periods",
    "check_settings",
    "config_of",
    "schema_of",
]

Periods = tuple[tuple[str, str], ...]

COUPLED = ("global", "regional", "rollout", "cold_start")
ALONE = ("implicit", "joint", "autoencoder", "translator")
CORRDIFF = ("regression", "diffusion")
KINDS = COUPLED + ALONE + CORRDIFF
SIZES = ("tiny", "small", "fine", "base", "paper")
PRECISIONS = ("bf16", "fp32")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training.

    Attributes
    ----------
    kind : "global", "regional", "rollout" or "cold_start"
        For Met2Net "implicit", "joint", "autoencoder" or "translator"; for CorrDiff "regression" or "diffusion".
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
    global_weight : float, optional
        Weight of eq. 14 beside eq. 15 in regional stages and roll-outs, where the region answers the driver; elsewhere it would
        be a constant and is left out. By default the inverse of the share of the global tokens that hear of the region, so that
        it counts as much for these as eq. 15 does; 0 is eq. 15 alone.
    detach : bool
        Let no gradient pass from one step of a roll-out to the step before.
    per_pass : int, optional
        Samples per forward and backward pass of one device; gradients are accumulated over the passes of an update. By
        default all of the device. It changes memory and speed only, but for Met2Net, whose batch norms see one pass.
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
    global_weight: float | None = None
    detach: bool = False
    per_pass: int | None = None
    recompute: bool = False
    cache: bool = False

    def __post_init__(self):
        if self.kind not in KINDS:
            near = difflib.get_close_matches(str(self.kind), KINDS, 1)
            found = f"kind={self.kind!r}; choose one of {', '.join(map(repr, KINDS))}{_is_it(near)}"
            raise InputError("there is no such stage", [found])

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
        Periods as ISO dates, start exclusive, end inclusive. Without validation periods the training samples are checked
        instead, which tells how well they are fitted and nothing about other weather.
    test : tuple of (start, end)
        Periods kept for a final verdict: nothing is read from them, and it is an error if they touch one of the others.
    size : "tiny", "small", "fine", "base" or "paper"
    variables : tuple of str
        Catalog names of the hourly regional fields, in the order of the channels.
    global_variables, global_levels : tuple of str, tuple of int
        Those of the global states, and the pressure levels (hPa) of those on levels. Around a global network that is trained
        already they are the ones of that network.
    statics : tuple of str
        Constant fields that the regional network sees, of `state.STATICS`: orography and land fraction first, then as wanted
        the slope of the ground, its parts toward east and north, and the roughness of the terrain. The global network sees the
        first two.
    first_guess : "standard" or "terrain"
        What cold starts begin with: the driver, interpolated, with the standard lapse rate; or carried to the relief by
        `xscalemixer.carrying.Carrier`, as for a region much finer than its driver.
    reduced : bool
        Temperature and pressure of the region are normalized after reduction to sea level (`xscalemixer.reduction`), so that
        they tell of the weather and not of the relief. The paper does without; so do networks that get global fields
        ("lam", "nested", "downscaled").
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
    validation: Periods = ()
    test: Periods = ()
    size: str = "small"
    variables: tuple[str, ...] = REGIONAL.names
    global_variables: tuple[str, ...] = ("z", "q", "u", "v", "t", "t2m", "u10", "v10", "q2m", "sp")
    global_levels: tuple[int, ...] = (50, 100, 200, 300, 400, 500, 600, 700, 850, 925, 1000)
    statics: tuple[str, ...] = STATICS[:2]
    first_guess: str = "standard"
    reduced: bool = True
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
    idle: ClassVar[tuple[str, ...]] = ()  # settings that its networks have no use for

    def periods_of(self, stage: Stage) -> tuple[Periods, Periods]:
        """On which a stage is trained, and on which it is checked."""
        own = stage.periods or self.train
        return own, self.validation or own

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
class Met2NetTrainConfig(TrainConfig):
    """Everything that decides the training of a `Met2Net` on the hours of a region alone, but the data.

    Its stages: ``kind="implicit"`` (both stages of the paper in every update), or ``"joint"``, or ``"autoencoder"`` and then
    ``"translator"`` (explicit two-stage). By default AdamW is the Adam of the paper, and nothing is averaged over updates: the
    translator normalizes with running statistics, which belong to the last weights.

    Attributes
    ----------
    levels : tuple of int
        Pressure levels (hPa) of those variables that are on levels.
    size : str
        A preset of `nn.met2net.Met2NetConfig`.
    network : dict
        Changes to the preset, e.g. ``{"past": 6, "translator": {"depth": 4}, "objective": {"momentum": 0.99}}``.
    calendar : tuple
        Empty: the network has no such input.
    """

    levels: tuple[int, ...] = ()
    size: str = "weatherbench"
    calendar: tuple[str, ...] = ()
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    ema: float = 0.0

    sizes = ("tiny", "weatherbench", "weatherbench_fine", "era5_cropped", "mvmm_fnist", "taxibj")
    kinds = ALONE
    idle = ("calendar", "statics", "first_guess", "global_variables", "global_levels")


@dataclass(frozen=True, kw_only=True)
class CorrDiffConfig(TrainConfig):
    """Everything that decides the training of a CorrDiff model but the data; what `TrainConfig` has means the same.

    By default AdamW is the Adam of the paper. The paper trains with a peak of 2e-4, in batches of 256, on millions of samples
    (patches count), without clipping; published code tells its networks the place of patches by 100 learned channels:
    ``network={"positions": {"kind": "learned", "channels": 100}}``.

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
    reduced : bool
        Temperature and pressure are reduced to sea level (`xscalemixer.reduction`) before they are interpolated, and carried
        back to the fine relief, where the input has orography: what is interpolated and learned is the weather then, not the
        relief. The paper does without.
    patch : (int, int), optional
        Train the diffusion on patches of these rows and columns; default: on the whole domain.
    patches : int
        Patches per sample.
    patch_regression : bool
        Train the regression on them too, for domains that do not fit and for few samples, which it would learn by heart as
        whole fields; by default it sees the whole domain, as in the paper.
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    residual: bool = True
    patch: tuple[int, int] | None = None
    patches: int = 4
    patch_regression: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0

    sizes = ("tiny", "small", "paper", "china")
    kinds = CORRDIFF
    idle = ("variables", "global_variables", "global_levels", "first_guess")


_CONFIGS = {"scalemixer": TrainConfig, "met2net": Met2NetTrainConfig, "corrdiff": CorrDiffConfig}  # by the network


def config_of(data: Mapping[str, Any]) -> TrainConfig:
    """Settings of any kind from plain data: ``"kind"`` tells which, without it "scalemixer"; the rest is as for ``from_dict``.

    >>> config_of({"kind": "met2net", "name": "davos", "train": [["2020-01-01", "2020-10-01"]]}).size
    'weatherbench'

    Raises
    ------
    InputError
        With every key that is unknown or missing and every value of a wrong type.
    """
    settings = dict(data)
    kind = settings.pop("kind", "scalemixer")
    known = " or ".join(f'"{each}" ({each_config.__name__})' for each, each_config in _CONFIGS.items())
    if not isinstance(kind, str) or kind not in _CONFIGS:
        near = difflib.get_close_matches(str(kind), _CONFIGS, 1)
        raise InputError("these training settings cannot be read", [f"kind={kind!r}; needed {known}{_is_it(near)}"])
    for other, each_config in _CONFIGS.items():
        if "kind" not in data and (signs := _signs_of(each_config, settings)):
            found = f"no 'kind', and {', '.join(signs)}, which only a {each_config.__name__} has; needed {known}"
            raise InputError("these training settings cannot be read", [f'{found}. Add "kind": "{other}"'])
    return _CONFIGS[kind].from_dict(settings)


def _is_it(near: list[str]) -> str:
    return f'. Is it "{near[0]}"?' if near else ""


def _signs_of(kind: type[TrainConfig], settings: Mapping[str, Any]) -> list[str]:
    """Keys and stages that only one kind of settings has, and those of coupled models not."""
    rows = settings.get("stages", ())
    stages = [row.get("kind") for row in rows if isinstance(row, Mapping)] if isinstance(rows, (list, tuple)) else []
    keys = {each.name for each in fields(kind)} - {each.name for each in fields(TrainConfig)}
    own = set(kind.kinds) - set(TrainConfig.kinds)
    return [*(repr(key) for key in sorted(keys & set(settings))), *(f"a stage {each!r}" for each in stages if each in own)]


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
    annotated = typing.get_type_hints(kind)  # with sizes, kinds and idle, which are no settings
    hints = {each.name: annotated[each.name] for each in fields(kind)}
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


def schema_of(prefix: str, variables: tuple[str, ...], levels: tuple[int, ...], report: Report) -> Schema | None:
    """The schema of settings called ``{prefix}variables`` and ``{prefix}levels``; what is wrong goes to the report."""
    known = [name for name, row in CATALOG.items() if row.role != "static"]
    unknown = [name for name in variables if name not in known]
    if unknown or not variables or len(set(variables)) < len(variables):
        found = f"unknown {', '.join(map(repr, unknown))}" if unknown else repr(variables)
        needed = f"some of {', '.join(known)}, each once"
        report.error(f"{prefix}variables", found, needed, f'{prefix}variables=("t2m", "u10", "v10")', kind=InputError)
        return None
    above = [name for name in variables if CATALOG[name].levels]
    if bool(above) != bool(levels) or len(set(levels)) < len(levels):
        found = f"{levels} for {', '.join(above) or 'no variable on levels'}"
        fix = f"{prefix}levels={(500, 850) if above else ()}"
        needed = "pressure levels in hPa, each once, where a variable has levels"
        report.error(f"{prefix}levels", found, needed, fix, kind=InputError)
        return None
    return Schema.of(*variables, levels=levels)


_FROM_ONE = (lambda value: value >= 1, "1 or more", "1")
_FROM_ZERO = (lambda value: 0 <= value < np.inf, "0 or more", "0")
_RANGES: dict[str, tuple[Callable[[Any], bool], str, str]] = {  # of settings and stages: what holds, in words, an example
    **dict.fromkeys(("updates", "batch", "steps", "patience", "per_pass", "check_every"), _FROM_ONE),
    **dict.fromkeys(("seed", "warmup", "weight_decay", "season_shift", "global_weight"), _FROM_ZERO),
    "clip": (lambda value: value > 0, "more than 0", "1.0"),
    "ema": (lambda value: 0 <= value < 1, "0 or more and less than 1", "0.998"),
    "betas": (lambda pair: [0 <= each < 1 for each in pair] == [True, True], "two of 0 or more and less than 1", "(0.9, 0.95)"),
}


def _out_of_range(settings: TrainConfig | Stage) -> Iterator[tuple[str, Any, str, str]]:
    """Name and value of what cannot work, what is needed, and what to type."""
    for each in (each for each in fields(settings) if each.name in _RANGES):
        (holds, needed, example), value = _RANGES[each.name], getattr(settings, each.name)
        try:
            fits = holds(value) if value is not None else each.default is None
        except TypeError:
            fits = False
        if not fits:
            yield each.name, value, needed, f"{each.name}={example}"


def check_settings(config: TrainConfig, report: Report) -> None:
    """Whatever is wrong whichever data there are."""
    for name, choices in (("size", config.sizes), ("precision", PRECISIONS), ("first_guess", GUESSES)):
        if (value := getattr(config, name)) not in choices:
            needed = ", ".join(f'"{choice}"' for choice in choices)
            report.error(name, repr(value), f"one of {needed}", f'{name}="{choices[0]}"', kind=InputError)
    if config.statics[:2] != STATICS[:2] or set(config.statics) - set(STATICS) or len(set(config.statics)) < len(config.statics):
        needed = f'"orog" and "lsm", then some of {", ".join(STATICS[2:])}'
        report.error("statics", f"{config.statics}", needed, f"statics={STATICS}", kind=InputError)
    _check_periods(config, report)
    if unknown := [part for part in config.calendar if part not in ("hour", "day")]:
        report.error("calendar", f"unknown parts {unknown}", '"hour" and "day", or one of them', kind=InputError)
    for name, value, needed, fix in _out_of_range(config):
        report.error(name, f"{value}", needed, fix, kind=InputError)
    if not config.stages:
        fix = f'stages=(xsm.Stage(kind="{config.kinds[0]}", updates=1000), ...)'
        report.error("stages", "none", "at least one", fix, kind=InputError)
    for number, stage in enumerate(config.stages):
        _check_stage(f"stages[{number}] ({stage.label})", stage, config, config.stages[:number], report)
    for name in (name for name in config.idle if getattr(config, name) != getattr(type(config), name)):
        needed = f"nothing: a {type(config).__name__} has no use for it"
        report.error(name, repr(getattr(config, name)), needed, f"Leave {name}= out", kind=InputError)


def _check_periods(config: TrainConfig, report: Report) -> None:
    """They are periods, and no two sets share a time; stages may train on the same ones."""
    if config.validation == ():
        report.warn("validation", "no periods; the training samples are checked instead, which tells nothing about other weather")
    given = {"train": config.train} | {name: ps for name in ("validation", "test") if (ps := getattr(config, name)) != ()}
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


def _purpose(name: str) -> str:
    return "train" if name.endswith(".periods") else name


def _check_stage(subject: str, stage: Stage, config: TrainConfig, earlier: tuple[Stage, ...], report: Report) -> None:
    for name, value, range_, fix in _out_of_range(stage):
        report.error(subject, f"{name}={value}", range_, fix, kind=InputError)
    if stage.kind not in config.kinds:
        needed = ", ".join(f'"{kind}"' for kind in config.kinds)
        report.error(subject, f"a stage of another network than {type(config).__name__} trains", needed, kind=InputError)
    if not 0 <= stage.floor <= stage.peak or stage.peak <= 0:
        report.error(subject, f"peak={stage.peak}, floor={stage.floor}", "0 < peak and 0 <= floor <= peak", kind=InputError)
    if stage.kind == "global" and any(s.kind in ("regional", "rollout") for s in earlier):
        found = "it follows a regional stage or a roll-out, which freeze the global weights"
        report.error(subject, found, "global stages before all others", "Move it to the front of stages=", kind=InputError)
    users = {} if stage.kind == "rollout" else {"detach": "a roll-out"}
    if stage.kind not in ("regional", "rollout"):
        users["global_weight"] = "a regional stage or a roll-out"
    if stage.kind not in COUPLED:
        users |= dict.fromkeys(("steps", "season_shift", "recompute", "cache"), "a stage of a coupled model")
    for name, user in users.items():
        if getattr(stage, name) != getattr(Stage, name):
            report.error(subject, f"{name}={getattr(stage, name)}", user, f"Leave {name}= out", kind=InputError)
