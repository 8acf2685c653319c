"""Fine-tuning: a trained model goes on learning in another region, with another driver, on fewer variables."""

from __future__ import annotations

import copy
import difflib
import logging
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any

import numpy as np
import xarray as xr

from xscalemixer.conform import absent, on_canonical_axes, valid_times
from xscalemixer.errors import GridError, InputError, TimeError
from xscalemixer.forecaster import Forecaster
from xscalemixer.grids import grid_of
from xscalemixer.model import ForecastModel, Model
from xscalemixer.nn.lowrank import add_low_rank, merge_low_rank
from xscalemixer.regional import RegionalForecaster
from xscalemixer.report import Report
from xscalemixer.running import model_of
from xscalemixer.state import GROUPS, HOUR, HOURS
from xscalemixer.training.adapting import Adaptation, HourlyAdaptation
from xscalemixer.training.config import Periods, Stage, are_periods
from xscalemixer.training.data import check_unseen
from xscalemixer.training.estimating import Estimate, estimate, free_memory
from xscalemixer.training.protocol import Run, Way, objective_of, run
from xscalemixer.training.ranks import process_count
from xscalemixer.variables import Schema

__all__ = ["finetune"]

log = logging.getLogger(__name__)

_DEFAULT = "twin-ea-small"
_ADAPTATIONS: dict[type[ForecastModel], Any] = {Forecaster: Adaptation, RegionalForecaster: HourlyAdaptation}
_BATCH = 4
_MOST = 0.95  # share of the parameters taken over below which it is a warning


def finetune(
    tree: xr.DataTree | xr.Dataset,
    model: str | PathLike | Model | None = None,
    *,
    epochs: float = 5,
    train: Periods | None = None,
    validation: Periods | None = None,
    test: Periods = (),
    missing: Iterable[str | int] = (),
    statistics: str = "new",
    rank: int | None = None,
    stages: tuple[Stage, ...] | None = None,
    per_pass: int | None = None,
    recompute: bool = False,
    least: float = 0.5,
    seed: int = 0,
    precision: str = "bf16",
    folder: str | PathLike | None = None,
    device: str | None = None,
    sharded: bool = False,
    memory: float = 4.0,
    skip: float = 0.01,
    min_samples: int = 8,
    workers: int = 2,
    save_updates: int = 200,
    save_minutes: float = 10.0,
) -> Model:
    """Adapt a trained model to another region, driver, resolution or set of variables.

    Parameters
    ----------
    tree : DataTree or Dataset
        ``/global`` and ``/regional``, as for `train`; the grids may be any. For a model of a region alone a Dataset of hourly
        fields.
    model : str, path or model, optional
        What to start from; it is not changed. Default: ``twin-ea-small``, whose worth in real regions was measured.
    epochs : float
        How often each stage sees each sample; a roll-out, which follows the one-step stages, sees a fifth of that.
    train, validation : periods, optional
        Pairs of dates, start exclusive, end inclusive. By default the last fifth of the time validates, and a gap of a day (in
        short data: a twentieth of the time) separates it from what comes before. ``validation=()``: see `TrainConfig`.
    test : periods, optional
        Times kept for a final verdict, which neither trains nor validates.
    missing : names
        Variables that the data lack and the new model shall do without: ``"tcc"``, ``"global/q2m"``, a level of one variable
        ``"z_50"``, or a level of all of them ``50``.
    statistics : "new" or "keep"
        Mean and standard deviation of the training periods, or those of the model. A driver on the model's own grid with all
        of its channels keeps the model's in either case.
    rank : int, optional
        Train low-rank adapters instead of the linear layers of attention and MLPs, and of the layers of a translator that mix
        its channels (`nn.lowrank`); they are merged in the end.
    stages : tuple of Stage, optional
        By default "global" (if the driver has another grid or fewer channels), "regional", "rollout" of two steps (where
        data allow) and "cold_start", with a third of the learning rates from scratch. Of a model of a region alone those that
        it was trained in.
    per_pass, recompute
        Of each of these default stages: less memory for more time, see `Stage`.
    least : float
        Smallest share of the parameters that has to come from the model.
    seed, precision
        As in `TrainConfig`.
    folder, device, sharded, memory, skip, min_samples, workers, save_updates, save_minutes
        As for `train`.

    Returns
    -------
    Forecaster or RegionalForecaster
        Of the kind of the model; ``about["finetuned"]`` tells from what, on what, and how much was taken over.

    Raises
    ------
    InputError
        With everything that is wrong, before anything is trained.
    CheckpointError
        If less than ``least`` of the parameters can be taken over.
    """
    report = Report("fine-tuning")
    missing = _listed(missing)
    _check_arguments(epochs, statistics, rank, least, (train, validation), () if stages is None else stages, report)
    base = _base(model, report)
    kind: Any = Adaptation if base is None else _ADAPTATIONS[type(base)]
    groups = {branch: on_canonical_axes(ds, Report("")) for branch, ds in kind.groups(tree, report).items()}
    schemas = None if base is None else _schemas(base, missing, groups, kind.titles, report)
    times = {branch: valid_times(ds, report) for branch, ds in groups.items()}
    usable = len(times) == len(kind.titles) and all(found.size for found in times.values())
    if base is None or schemas is None or not usable or not _are_stages(stages or ()):
        report.raise_errors("nothing was fine-tuned")
    contract = kind(base, schemas, statistics)
    if train is None or validation is None:
        train, validation = _split(times, test, report, contract.shortest)
        log.info("train=%s, validation=%s", train, validation)
    check_unseen(contract.base, test, validation, "inner", _grid(groups["inner"]), report)
    if stages is None:
        driver = _grid(groups["outer"]) if "outer" in groups else None
        rates = {each: contract.rates[each] for each in contract.kinds(driver)}
        passes = epochs if _is_epochs(epochs) else 1  # said already; look on for other problems
        more = {"per_pass": per_pass, "recompute": recompute}
        count = lambda periods, steps: _count(contract, times, periods, steps)
        stages = _default_stages(rates, count, train, validation, passes, more, min_samples, process_count())
    config = contract.config(
        name=f"{contract.base.name}-finetuned",
        train=train,
        validation=validation,
        test=test,
        stages=tuple(stages),
        seed=seed,
        precision=precision,
        check_every=max(1, max((stage.updates for stage in stages), default=1) // 10),
    )
    way = Way(folder, device, sharded, memory, skip, min_samples, workers, save_updates, save_minutes)
    settings = {"missing": list(missing), "statistics": statistics, "rank": rank}
    origin = {"starting weights": contract.base.weights_sha256(), **settings}
    with run(config, tree, way, contract, origin=origin, report=report) as protocol:
        tuned, takeover = contract.begin(protocol.data, config)
        takeover.require(least, f"{contract.base.name!r} was not fine-tuned")
        log.log(logging.INFO if takeover.share >= _MOST else logging.WARNING, "%s: %s", contract.base.name, takeover)
        if rank is not None:
            add_low_rank(tuned.network, rank)
        estimates = _estimates(protocol, tuned, contract.less_memory)
        source = {"from": contract.base.name, "sha256": contract.base.weights_sha256()}
        about = {**source, **settings, **takeover.to_dict(), "estimates": [each.to_dict() for each in estimates]}
        tuned.about = {"finetuned": about, "trained_on": list(contract.base.about.get("trained_on", ()))}
        protocol.to_the_end(tuned)
    merge_low_rank(tuned.network)
    return tuned


# ------------------------------------------------------------------------------------------------------------- arguments


def _check_arguments(epochs, statistics, rank, least, periods, stages, report: Report) -> None:
    if not _is_epochs(epochs):
        report.error("epochs", repr(epochs), "a number from 1 on", "epochs=5", kind=InputError)
    if statistics not in ("new", "keep"):
        report.error("statistics", repr(statistics), '"new" or "keep"', 'statistics="new"', kind=InputError)
    if rank is not None and (not isinstance(rank, numbers.Integral) or rank < 1):
        report.error("rank", repr(rank), "a whole number from 1 on, or None", "rank=8", kind=InputError)
    if not isinstance(least, numbers.Real) or not 0 <= float(least) <= 1:
        report.error("least", repr(least), "a share from 0 to 1", "least=0.5", kind=InputError)
    if not _are_stages(stages):
        report.error("stages", repr(stages), "stages", 'stages=(xsm.Stage(kind="regional", updates=100),)', kind=InputError)
    if sum(each is None for each in periods) == 1:
        given, other = ("train", "validation") if periods[1] is None else ("validation", "train")
        found, fix = f"{given}= without {other}=", f'Add {other}=(("2020-06-01", "2020-06-08"),), or leave out {given}='
        fix += "; validation=() if there is too little to validate on" if other == "validation" else ""
        report.error("periods", found, "both or none", fix, kind=TimeError)


def _is_epochs(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 1 <= float(value) < np.inf


def _are_stages(value) -> bool:
    return isinstance(value, Iterable) and all(isinstance(stage, Stage) for stage in value)


def _base(model, report: Report) -> ForecastModel | None:
    try:
        found = model_of(_DEFAULT if model is None else model)
    except InputError as error:
        report.error("model", "; ".join([error.task, *error.problems]), kind=type(error))
        return None
    if type(found) in _ADAPTATIONS:
        return found
    known = " or ".join(kind.kind for kind in _ADAPTATIONS)
    report.error("model", f"{found.name!r}, a {found.kind} model", f"a {known} one, such as xsm.load()", kind=InputError)
    return None


# -------------------------------------------------------------------------------------------------------------- variables


def _listed(missing) -> tuple[str | int, ...]:
    """Names and levels; digits are levels."""
    rows = tuple(missing) if isinstance(missing, Iterable) and not isinstance(missing, str) else (missing,)
    is_level = lambda row: row.isdigit() if isinstance(row, str) else isinstance(row, numbers.Integral)
    return tuple(int(row) if is_level(row) else row for row in rows)


def _schemas(
    base: ForecastModel, missing: tuple, groups: Mapping[str, xr.Dataset], titles: Mapping[str, str], report: Report
) -> dict[str, Schema] | None:
    """The schemas of a model without what is missing; what else the data lack goes to the report, with what to type."""
    schemas = {each.part: each.branch.schema for each in base.inputs}
    known = [name for name in missing if any(_named(name, branch, schema) for branch, schema in schemas.items())]
    for name in (name for name in missing if name not in known):
        _report_unknown(name, schemas, report)
    left = {}
    for branch, schema in schemas.items():
        left[branch] = schema.without(channel for name in known for channel in _named(name, branch, schema))
        if not left[branch]:
            report.error("missing", f"{missing!r} leaves nothing of {titles[branch]}", "at least one variable")
    if not all(left.values()):
        return None
    lacking = {branch: set(absent(ds, left[branch])) for branch, ds in groups.items()}
    if any(lacking.values()):
        names = [*known, *_shortest_names(left, lacking)]
        found = "; ".join(f"no {', '.join(sorted(gone))} in {titles[branch]}" for branch, gone in lacking.items() if gone)
        line = f"missing={tuple(names)!r}".replace("'", '"')
        report.error("missing", found, "all variables of the model, or leave to do without them", f"To do without: {line}")
    return left


def _named(name: str | int, branch: str, schema: Schema) -> tuple[str, ...]:
    """Channels of a schema that an entry of ``missing`` means."""
    if isinstance(name, str):
        group, slash, rest = name.rpartition("/")
        if slash and group != GROUPS[branch]:
            return ()
        name = int(rest) if rest.isdigit() else rest
    level = lambda channel: channel.rpartition("_")[2]
    if isinstance(name, int):
        return tuple(channel for v in schema.variables if v.levels for channel in v.channels if level(channel) == str(name))
    return next((v.channels for v in schema.variables if v.name == name), (name,) if name in schema.channels else ())


def _report_unknown(name, schemas: Mapping[str, Schema], report: Report) -> None:
    known = [known for schema in schemas.values() for known in (*schema.names, *schema.channels)]
    near = difflib.get_close_matches(str(name).rpartition("/")[2], known, 1)
    needed = f"variables of the model ({', '.join(dict.fromkeys(n for s in schemas.values() for n in s.names))}) or levels in hPa"
    report.error("missing", f"{name!r} is none of the model's", needed, f'Is it "{near[0]}"?' if near else "")


def _shortest_names(schemas: Mapping[str, Schema], lacking: Mapping[str, set[str]]) -> list[str | int]:
    """Entries of ``missing`` that mean these channels and no others: variables, then levels, then channels."""
    names: list[str | int] = []
    for branch, schema in schemas.items():
        all_gone = lacking.get(branch, set())
        gone, own = set(all_gone), list[str | int]()
        candidates: tuple[str | int, ...] = (*schema.names, *schema.levels, *schema.channels)
        for name in candidates:
            meant = set(_named(name, branch, schema.without(all_gone - gone)))  # of what is not named yet
            if meant and meant <= gone:
                own.append(name)
                gone -= meant
        names += [name if _means_only(name, schemas, lacking) else f"{GROUPS[branch]}/{name}" for name in own]
    return list(dict.fromkeys(names))


def _means_only(name: str | int, schemas: Mapping[str, Schema], lacking: Mapping[str, set[str]]) -> bool:
    """True if all that an entry means, in both groups, is lacking."""
    return all(set(_named(name, branch, schema)) <= lacking.get(branch, set()) for branch, schema in schemas.items())


# ---------------------------------------------------------------------------------------------------------------- periods


def _split(
    times: Mapping[str, np.ndarray], test: Periods, report: Report, shortest: np.timedelta64 = Adaptation.shortest
) -> tuple[Periods, Periods]:
    """What comes before the last fifth of the time outside of ``test``, but for a gap; and the last fifth.

    Both are at least ``shortest``.

    Raises
    ------
    InputError
        With all problems so far, if that leaves nothing to train on.
    """
    begin = times["inner"][0]
    if "outer" in times:
        begin = max(begin, times["outer"][0] - (HOURS - 1) * HOUR)  # the hours up to the first global time
    span = [(begin - HOUR, min(found[-1] for found in times.values()))]  # starts are exclusive
    pieces = _minus(span, [tuple(np.datetime64(date, "ns") for date in period) for period in test] if are_periods(test) else [])
    total = sum((end - start for start, end in pieces), np.timedelta64(0, "ns"))
    last = max(total // 5, shortest)
    gap = min(24 * HOUR, total // 20)
    if total < 2 * shortest + gap:
        found = f"{total / HOUR:g} hours {'in both groups ' if len(times) > 1 else ''}outside of test="
        needed = f"at least {(2 * shortest + gap) / HOUR:.0f}, better weeks"
        report.error("time", found, needed, "Give more data", kind=TimeError)
        report.raise_errors("nothing was fine-tuned")
    return _within(pieces, 0 * HOUR, total - last - gap), _within(pieces, total - last, total)


def _minus(pieces: list[tuple], others: Iterable[tuple]) -> list[tuple]:
    """Periods without the times of others."""
    for begin, finish in others:
        cut = [part for start, end in pieces for part in ((start, min(end, begin)), (max(start, finish), end))]
        pieces = [(start, end) for start, end in cut if start < end]
    return pieces


def _within(pieces: list[tuple], low: np.timedelta64, high: np.timedelta64) -> Periods:
    """The part of consecutive pieces of time from ``low`` to ``high`` of their total, to the hour."""
    passed, rows = 0 * HOUR, []
    for start, end in pieces:
        begin, finish = ((start + np.clip(edge - passed, 0 * HOUR, end - start)).astype("datetime64[h]") for edge in (low, high))
        rows += [(str(begin), str(finish))] if begin < finish else []
        passed = passed + (end - start)
    return tuple(rows)


def _grid(ds: xr.Dataset):
    """The grid of a dataset; None where it has none, which training data are checked for."""
    try:
        return grid_of(ds)
    except GridError:
        return None


# ----------------------------------------------------------------------------------------------------------------- stages


def _default_stages(
    rates: Mapping[str, float],
    count: Callable[[Periods, int], int],
    train: Periods,
    validation: Periods,
    epochs: float,
    more: dict[str, Any],
    fewest: int = 1,
    processes: int = 1,
) -> tuple[Stage, ...]:
    """One stage of each kind, with epochs as updates; a roll-out if there are enough samples of that length.

    Each process has the same share of a batch.
    """
    stages = []
    for kind, rate in rates.items():
        steps = 2 if kind == "rollout" else 1
        samples = count(train, steps)
        if kind == "rollout" and (samples < max(1, fewest) or not count(validation or train, steps)):
            continue
        batch = -(-min(_BATCH // steps, max(1, samples)) // processes) * processes
        updates = max(1, math.ceil(epochs * (0.2 if kind == "rollout" else 1) * samples / batch))
        settings = more if kind != "cold_start" else {**more, "recompute": False}
        stages.append(Stage(kind=kind, updates=updates, batch=batch, peak=rate, steps=steps, **settings))
    return tuple(stages)


def _count(contract: Adaptation | HourlyAdaptation, times: Mapping[str, np.ndarray], periods: Periods, steps: int) -> int:
    """Samples within periods."""
    if not are_periods(periods):
        return 0
    try:
        return contract.count(times, periods, steps)
    except TimeError:
        return 0  # said with what is needed where training data are checked


def _estimates(protocol: Run, model: Model, less_memory: str) -> list[Estimate]:
    """What each stage that is left will take; logged, with a warning where memory is short."""
    found = []
    for number in protocol.pending:
        stage, config = protocol.config.stages[number], protocol.config
        objective, samples = objective_of(stage, config, protocol.data, copy.deepcopy(model))
        trained, checked = (samples(periods) for periods in config.periods_of(stage))
        found.append(estimate(objective, trained, len(checked), protocol.plan(number), protocol.group))
        log.info("%s", found[-1])
    free = free_memory(protocol.group.device)
    if free is not None and (needed := max((each.memory for each in found), default=0)) > free:
        told = "%.1f GiB of memory are needed and %.1f GiB are free; less is needed with %s"
        log.warning(told, needed / 2**30, free / 2**30, less_memory)
    return found
