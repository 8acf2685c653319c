"""Downscaling: ensembles of fine fields from coarse ones, analyses or forecasts, by CorrDiff."""

from __future__ import annotations

import calendar
import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from os import PathLike
from typing import Any, Literal, cast

import numpy as np
import xarray as xr
from torch import Tensor

from xscalemixer.coarse import Coarse, Interpolated, origin_of
from xscalemixer.conform import require_dataset, valid_times
from xscalemixer.downscaler import Downscaler
from xscalemixer.errors import CheckpointError, InputError, TimeError
from xscalemixer.layouts import is_forecast, to_forecast
from xscalemixer.model import ForecastModel
from xscalemixer.nn.corrdiff import Condition
from xscalemixer.nn.sampling import Seed, SolverConfig
from xscalemixer.nn.tiling import Tiling, TilingConfig
from xscalemixer.output import ensemble_dataset
from xscalemixer.pretrained import models
from xscalemixer.progress import progress_bar
from xscalemixer.report import Report
from xscalemixer.running import any_model_of, device_of, in_convention, made_by, model_of, require_store
from xscalemixer.samples import Fields, Series, survey
from xscalemixer.starting import minute
from xscalemixer.state import HOUR
from xscalemixer.store import BlockStore
from xscalemixer.variables import Stats

__all__ = ["downscale", "downscaler_of", "downscaling_pair", "seeds_of", "solver_of"]

log = logging.getLogger(__name__)

DEFAULTS = {False: "corrdiff-twin-ea", True: "corrdiff-twin-ea-chain"}  # for coarse fields, and for forecasts of this library
_KEPT = 2**28  # bytes of means that are kept for the next member
_LARGE = 2**32  # bytes of a result in memory that are told
_BEYOND = 0.5  # standard deviations beyond the range of training from which on it is told
SOLVERS = {"heun": SolverConfig(), "fast": SolverConfig.fast()}


def downscale(
    ds: xr.Dataset,
    members: int | Iterable[int] | Literal["mean"] = 16,
    *,
    model: str | PathLike | Downscaler | None = None,
    to: str | PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    solver: str | SolverConfig | None = None,
    coherence: float | None = None,
    source: xr.Dataset | tuple[xr.Dataset, xr.Dataset] | None = None,
    patch: tuple[int, int] | None = None,
    together: int | None = None,
    rh_phase: str | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Ensemble of fine fields from coarse ones: a regression of the mean, and samples of what it misses.

    Parameters
    ----------
    ds : Dataset
        An analysis, or a forecast with one or more starts, in any layout, names and units.
    members : int, sequence of int, or "mean"
        Their number, or which: ``members=[7]`` makes again the eighth of 16 (they count from 0). ``"mean"``: the regression
        alone, without a dimension ``member``.
    model : str, path or Downscaler, optional
        Name from ``xsm.models()``, a saved folder, or a model in hand. Default: "corrdiff-twin-ea", which takes forecasts of
        other systems for analyses at their valid times; for forecasts of this library "corrdiff-twin-ea-chain".
    to : path, optional
        Stream to this Zarr store, member by member; memory does not grow with their number.
    resume, overwrite : bool
        Go on with, or replace, an existing store at ``to``.
    seed : int
        Each member follows from it, its number and its time alone, whichever others are made.
    solver : "heun", "fast" or SolverConfig, optional
        35 network calls per member as in the paper, nine (too narrow unless calibrated), or others; default: the model's.
    coherence : float, optional
        Hours after which the noise of a member is another one: it turns slowly along time, or along lead time. ``math.inf``: it
        stays the same. Default: every time has its own.
    source : Dataset or (Dataset, Dataset), optional
        Past fields of the system that ``ds`` comes from, if it is not that of training. Their mean and standard deviation take
        the place of those of the training input, which removes the mean bias of each channel; they should cover the months
        of training. With fields of the system of training at the same times, ``source=(archive, reference)``, any weeks will
        do: the statistics of training are changed as the two differ.
    patch : (int, int), optional
        Rows and columns of the patches that a large domain is sampled in, which bound memory; default: as in training, 256 for
        domains of more than 512 x 512 cells, else the whole domain.
    together : int, optional
        Members per network call, of a domain in patches: patches per network call; for a GPU. By default one member, so that
        it does not depend on the others by rounding, or those of its patches that have the cells of one of 256 x 256.
    rh_phase, device
        As for `xscalemixer.forecast`.
    progress : bool, optional
        Show a progress bar; default: only in a terminal or notebook.

    Returns
    -------
    Dataset
        Dims ``(time, member, [level], latitude, longitude)``, of forecasts ``(reference_time, lead_time, member, ...)``;
        lazily opened from ``to`` if given.

    Raises
    ------
    SchemaError, GridError, TimeError, InputError
        Before anything is computed or written, listing every problem. Later, if the disk is full: what was written is intact.

    References
    ----------
    Mardani et al. 2025, arXiv:2309.15214.
    """
    settings = _Settings.of(members, seed, solver, coherence, together, patch)
    require_store(to, resume or overwrite)
    require_dataset(ds)
    model = downscaler_of(model, bool(origin_of(ds)))
    model.require_lead(is_forecast(ds), "nothing was downscaled")
    report = Report(f"input for {model.name!r}")
    coarse = Coarse.of(ds, model.coarse.schema, report, "input", rh_phase=rh_phase)
    coarse = None if coarse is None else _on_grid(coarse, model, report)
    report.raise_errors("nothing was downscaled")
    coarse = cast("Coarse", coarse)
    stats = None if source is None else _stats_of(source, model, report, rh_phase)
    model.to(device_of(device))
    job = _Job(model, coarse, coarse.values(), settings, stats)
    digest = job.survey(report)
    if to is None and job.nbytes > _LARGE:
        report.warn("members", f"the result takes {job.nbytes / 1e9:.0f} GB of memory", 'Stream it to disk: to="ens.zarr"')
    for finding in report.select("warning"):
        log.warning("%s", finding)
    describe = _Description(job, _provenance(job, report, digest))
    with progress_bar(settings.members.size * coarse.time.size, "field", "downscale", progress) as bar:
        if to is not None:
            made = _stream(job, describe, digest, to, resume=resume, overwrite=overwrite, bar=bar)
        else:
            arrays = describe.empty()
            for place, channels in job.run(bar=bar):
                describe.put(arrays, place, channels)
            made = describe(arrays)
    return made.isel(member=0, drop=True) if settings.mean else made


def downscaling_pair(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    *,
    leads: Iterable[int] | None = None,
    model: str | PathLike | ForecastModel | None = None,
) -> xr.DataTree:
    """Pair of forecasts and what came true, for a CorrDiff model of the errors of a model: `xscalemixer.train` takes it.

    Nothing is computed, and lazy data stay lazy.

    Parameters
    ----------
    forecast : Dataset
        As from `xscalemixer.hindcast`, best from starts that its model was not trained on: there it errs less than it will.
    truth : Dataset
        Fields at the valid times, in any layout.
    leads : sequence of int, optional
        Lead times in hours to learn from; default: all.
    model : str, path, Forecaster or RegionalForecaster, optional
        What made the forecast; starts in its training periods are then told.

    Returns
    -------
    DataTree
        ``/input`` and ``/target``; ``orog`` and ``lsm`` that the truth lacks are those of the forecast.

    Raises
    ------
    TimeError
        If forecast and truth have no valid time in common, or lead times are missing.
    """
    fc, report = to_forecast(forecast), Report("pair")
    if leads is not None:
        wanted = np.array(list(leads))
        if missing := sorted(set(wanted.tolist()) - set(fc["lead_time"].values.tolist())):
            held = fc["lead_time"].values
            found = f"no lead times {missing} h in the forecast, which has {held.min()} to {held.max()} h"
            raise TimeError("no pair was made", [f"{found}. Choose others, leads=[...]"])
        fc = fc.sel(lead_time=wanted)
    known = valid_times(truth, report)
    report.raise_errors("no pair was made")
    needed = (fc["reference_time"].values[:, None] + fc["lead_time"].values * HOUR).astype("datetime64[ns]")
    if not np.isin(needed, known).any():
        spans = [f"{minute(t.min())} to {minute(t.max())}" if t.size else "no time" for t in (needed, known)]
        found = f"forecasts are valid from {spans[0]}, the truth has {spans[1]}"
        raise TimeError("no pair was made", [f"{found}; needed common times"])
    if model is not None:
        _warn_of_training(fc["reference_time"].values, model_of(model))
    if all(_same_axis(truth, fc, name) for name in ("latitude", "longitude")):
        statics = {name: fc[name] for name in ("orog", "lsm") if name in fc and name not in truth}
        truth = truth.assign({name: (field.dims, field.data, field.attrs) for name, field in statics.items()})
    return xr.DataTree.from_dict({"/input": fc, "/target": truth})


def _same_axis(one: xr.Dataset, other: xr.Dataset, name: str) -> bool:
    """Both have the dimension, with the same coordinates in the same order."""
    values = [ds[name].values for ds in (one, other) if name in ds.dims and name in ds.coords]
    return len(values) == 2 and values[0].shape == values[1].shape and np.allclose(values[0], values[1], rtol=0.0, atol=1e-3)


def downscaler_of(model: str | PathLike | Downscaler | None, forecast: bool = False) -> Downscaler:
    """The model in hand, by name, from a folder, or the default one.

    Raises
    ------
    InputError
        If it is no model that downscales; CheckpointError if there is none of that name.
    """
    if model is None and DEFAULTS[forecast] not in models():
        what = "downscaling forecasts" if forecast else "downscaling"
        fix = "train one: xsm.train(xsm.CorrDiffConfig(...), pair), see docs/corrdiff.md, and pass model="
        if forecast and DEFAULTS[False] in models():
            fix = f'model="{DEFAULTS[False]}" takes its fields for analyses; for the errors of forecasts {fix}'
        raise CheckpointError("nothing was downscaled", [f"no weights for {what} come with this version; {fix}"])
    found = any_model_of(model, DEFAULTS[forecast], "downscale")
    if isinstance(found, Downscaler):
        return found
    fix = "choose a CorrDiff model, or train one: xsm.train(xsm.CorrDiffConfig(...), pair)"
    raise InputError(f"{found.name!r} cannot downscale", [f"it is a model that forecasts; {fix}"])


def seeds_of(seed: int, member: int, start: int, hour: float, coherence: float | None = None) -> Seed:
    """Seeds of the noise of a member at one time.

    With ``coherence`` the noise turns from one knot to the next, ``cos(a) e_k + sin(a) e_{k+1}`` with a from 0 to 90 degrees: its
    variance is one everywhere, it is smooth along time, and independent two knots away. No noise depends on the one before, so
    that any time can be made alone.

    Parameters
    ----------
    seed, member : int
    start : int
        Number of the start; 0 for analyses.
    hour : float
        Lead time, for analyses hours since 1970.
    coherence : float, optional
        Hours between knots; infinite: one noise for all times; None: one for each.
    """
    if coherence is None:
        return _key(seed, member, start, round(60 * hour))
    knot, angle = (0.0, 0.0) if math.isinf(coherence) else divmod(hour / coherence, 1.0)
    parts = [(0, math.cos(angle * math.pi / 2)), (1, math.sin(angle * math.pi / 2))]
    return tuple((_key(seed, member, start, int(knot) + i), weight) for i, weight in parts if weight > 0.0)


def _key(*numbers: int) -> int:
    sequence = np.random.SeedSequence([number % 2**63 for number in numbers])
    return int(sequence.generate_state(1, np.uint64)[0])


# ------------------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class _Settings:
    """What decides the members beside model and input, checked."""

    members: np.ndarray
    mean: bool
    seed: int
    solver: SolverConfig | None
    coherence: float | None
    together: int | None
    patch: tuple[int, int] | None

    @classmethod
    def of(cls, members, seed, solver, coherence, together, patch) -> _Settings:
        problems: list[str] = []
        mean = isinstance(members, str) and members == "mean"
        numbers = np.zeros(1, int) if mean else _numbers(members, problems)
        if not isinstance(seed, Integral) or isinstance(seed, bool):
            problems.append(f"seed={seed!r}; needed one whole number. Members differ by their numbers: members=[0, 1, 2]")
        solver = None if solver is None else solver_of(solver, problems)
        if coherence is not None and not _is_positive(coherence):
            problems.append(f"coherence={coherence!r}; needed a positive number of hours, math.inf, or None")
        if together is not None and (not isinstance(together, Integral) or isinstance(together, bool) or together < 1):
            problems.append(f"together={together!r}; needed a whole number from 1, or None")
        if patch is not None and not _is_patch(patch):
            problems.append(f"patch={patch!r}; needed whole numbers of rows and columns, both 16 or more: patch=(256, 256)")
        if problems:
            raise InputError("nothing was downscaled", problems)
        return cls(numbers, mean, int(seed), solver, coherence, together, None if patch is None else tuple(patch))


def solver_of(solver, problems: list[str]) -> SolverConfig | None:
    """A solver by its name or in hand; None, and a problem more, for anything else."""
    found = SOLVERS.get(solver) if isinstance(solver, str) else solver
    if isinstance(found, SolverConfig):
        return found
    problems.append(f"solver={solver!r}; needed 'heun', 'fast' or a SolverConfig")
    return None


def _is_patch(patch) -> bool:
    return isinstance(patch, (tuple, list)) and len(patch) == 2 and all(isinstance(n, Integral) and int(n) >= 16 for n in patch)


def _is_positive(hours) -> bool:
    return isinstance(hours, Real) and not isinstance(hours, (bool, np.timedelta64)) and float(hours) > 0


def _numbers(members, problems: list[str]) -> np.ndarray:
    """Numbers of the members."""
    if isinstance(members, Integral) and not isinstance(members, bool):
        if members < 1:
            problems.append(f"members={members}; needed 1 or more")
        return np.arange(max(int(members), 0))
    numbers = np.atleast_1d(members)
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1 or not numbers.size or numbers.min() < 0:
        problems.append(f"members={members!r}; needed their number, a list of whole numbers from 0 on, or 'mean'")
        return np.arange(0)
    unique, counts = np.unique(numbers, return_counts=True)
    if counts.max() > 1:
        twice = ", ".join(map(str, unique[counts > 1]))
        problems.append(f"members {twice} occur more than once; they would have the same noise. Leave one of each out")
    return numbers


# ------------------------------------------------------------------------------------------------------------------ job


@dataclass(frozen=True)
class _Job:
    """Members of all items of an input."""

    model: Downscaler
    coarse: Coarse
    values: Fields
    settings: _Settings
    stats: Stats | None

    @property
    def shape(self) -> tuple[int, ...]:
        """(T,) or (S, L): times, or starts and leads."""
        if not self.coarse.forecast:
            return (self.coarse.time.size,)
        starts = np.unique(self.coarse.reference).size
        return starts, self.coarse.time.size // starts

    @property
    def field_bytes(self) -> int:
        """Of all channels of one member at one time."""
        return 4 * len(self.model.fine.schema) * math.prod(self.model.fine.grid.shape)

    @property
    def nbytes(self) -> int:
        """Of the result."""
        return self.field_bytes * self.coarse.time.size * self.settings.members.size

    @property
    def dims(self) -> tuple[str, ...]:
        return ("reference_time", "lead_time") if self.coarse.forecast else ("time",)

    def survey(self, report: Report) -> str:
        """Hash of the input; what lies outside of the range of training goes to the report."""
        schema, digest = self.model.coarse.schema, hashlib.sha256(self.coarse.time.tobytes() + self.coarse.lead.tobytes())
        low, high = np.full(len(schema), np.inf), np.full(len(schema), -np.inf)
        series = Series(self.coarse.time, self.values)
        for block in series.blocks():
            values = np.ascontiguousarray(self.values[block])
            digest.update(values.view("u1").data)
            low, high = np.minimum(low, values.min((0, 2, 3))), np.maximum(high, values.max((0, 2, 3)))
        known = self.model.coarse.stats
        mean, std = (self.stats or known).mean, (self.stats or known).std
        for channel, least, most in zip(schema.channels, low, high, strict=True):
            if not np.isfinite([least, most]).all():
                report.error(channel, "missing or infinite values", "complete fields")
                continue
            (lowest, highest), units = self.model.extremes[channel], schema[channel.partition("_")[0]].units
            for raw, edge, word, side in ((least, lowest, "least", "below"), (most, highest, "greatest", "above")):
                value = (raw - mean[channel]) / std[channel] * known.std[channel] + known.mean[channel]
                beyond = (edge - value if side == "below" else value - edge) / known.std[channel]
                if beyond > _BEYOND:
                    level = " at sea level" if known.reduced and channel in self.coarse.over_relief else ""
                    found = (
                        f"{value:.5g} {units}{level} lies {beyond:.1f} standard deviations {side} the {word} value of training"
                    )
                    fix = "The networks extrapolate; if another system made the input, give its past: source=archive"
                    report.warn(channel, f"{found}, {edge:.5g}", fix)
        self._survey_leads(report)
        report.raise_errors("nothing was downscaled")
        return digest.hexdigest()

    def _survey_leads(self, report: Report) -> None:
        if (known := self.model.leads) is not None:
            lead = self.coarse.lead
            if lead.min() < known[0] or lead.max() > known[1]:
                found = f"{lead.min()} to {lead.max()} h, where the model was trained on {known[0]} to {known[1]} h"
                report.warn("lead_time", found)

    def run(self, pending: set | None = None, bar=None) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Place, (time or start and lead, member), and channels (C, H, W) of each field, member by member.

        ``pending`` holds the places that are still wanted.
        """
        # those of the first items: a scan over all of them begins anew with each member, when the latest ones are the farthest
        means: dict[int, Tensor | None] = {}
        numbers, size = self.settings.members, self._members_together
        for first in range(0, numbers.size, size):
            group = range(first, min(first + size, numbers.size))
            for item, place in enumerate(np.ndindex(self.shape)):
                wanted = [i for i in group if pending is None or (*place, i) in pending]
                if not wanted:
                    continue
                condition = self._condition(item, means.get(item))
                if len(means) < self._kept:
                    means[item] = condition.mean
                fields = self._sample(condition, item, numbers[wanted])
                for i, channels in zip(wanted, fields, strict=True):
                    yield (*place, i), channels
                if bar is not None:
                    bar.update(len(wanted))

    @property
    def tiling(self) -> TilingConfig:
        """How the domain is covered, and how much a network call takes."""
        return self.model.tiling(self.settings.patch, self.settings.together)

    @property
    def _members_together(self) -> int:
        patches = len(Tiling(self.tiling, self.model.fine.grid.shape))
        return math.ceil((self.settings.together or 1) / patches)

    @property
    def _kept(self) -> int:
        return max(1, _KEPT // self.field_bytes)

    def _condition(self, item: int, mean: Tensor | None) -> Condition:
        inputs = self.model.inputs(
            self.values[item : item + 1][0], self.coarse.time[item], int(self.coarse.lead[item]), self.stats
        )
        return self.model.condition(inputs, self.tiling, mean)

    def _sample(self, condition, item: int, members: np.ndarray) -> np.ndarray:
        s, coarse, time = self.settings, self.coarse, self.coarse.time[item]
        if s.mean:
            return self._finite(self.model.physical(condition.mean, time).cpu().numpy(), time)
        start = int(coarse.reference[item].astype("datetime64[m]").astype(int)) if coarse.forecast else 0
        hour = float(coarse.lead[item]) if coarse.forecast else float((time - np.datetime64(0, "ns")) / HOUR)
        seeds = [seeds_of(s.seed, int(member), start, hour, s.coherence) for member in members]
        return self._finite(self.model.sample(condition, seeds, time, solver=s.solver, tiling=self.tiling).cpu().numpy(), time)

    def _finite(self, fields: np.ndarray, time: np.datetime64) -> np.ndarray:
        if not np.isfinite(fields).all():
            bad = [c for c, ok in zip(self.model.fine.schema.channels, np.isfinite(fields).all((0, 2, 3)), strict=True) if not ok]
            raise InputError(
                "downscaling stopped", [f"{', '.join(bad)} are not finite at {minute(time)}; look at the input there"]
            )
        return fields


class _Description:
    """How the arrays of a job become a Dataset."""

    def __init__(self, job: _Job, attrs: dict):
        coarse, model, shape = job.coarse, job.model, job.shape
        self.schema, self.grid, self.dims = model.fine.schema, model.fine.grid, (*job.dims, "member")
        self.shape = (*shape, job.settings.members.size)
        axes = {"time": coarse.time}
        if coarse.forecast:
            axes = {"reference_time": coarse.reference.reshape(shape)[:, 0], "lead_time": coarse.lead.reshape(shape)[0]}
        self._known: dict[str, Any] = {
            "schema": self.schema, "grid": in_convention(self.grid, coarse.west_negative), "members": job.settings.members,
            "attrs": attrs, "static": model.static, **axes,
        }  # fmt: skip

    def __call__(self, arrays: Mapping) -> xr.Dataset:
        return ensemble_dataset(arrays, **self._known)

    def levels(self, name: str) -> tuple[int, ...]:
        """Positions of the levels of a variable among those of all."""
        return tuple(self.schema.levels.index(level) for level in self.schema[name].levels)

    def full_shape(self, name: str) -> tuple[int, ...]:
        """Of one variable."""
        levels = (len(self.schema.levels),) if self.schema[name].levels else ()
        return *self.shape, *levels, *self.grid.shape

    def empty(self) -> dict[str, np.ndarray]:
        """Arrays in memory, NaN."""
        return {name: np.full(self.full_shape(name), np.nan, "f4") for name in self.schema.names}

    def lazy(self) -> dict:
        """The same without values, one chunk per field."""
        import dask.array

        return {
            name: dask.array.full(shape, np.nan, dtype="f4", chunks=(*(1,) * (len(shape) - 2), *shape[-2:]))
            for name in self.schema.names
            if (shape := self.full_shape(name))
        }

    def put(self, arrays: Mapping[str, np.ndarray], place: tuple[int, ...], channels: np.ndarray) -> None:
        """Channels (C, H, W) of one field to their places."""
        first = 0
        for variable in self.schema.variables:
            part = channels[first : first + len(variable.channels)]
            first += len(variable.channels)
            if variable.levels:
                arrays[variable.name][place][list(self.levels(variable.name))] = part
            else:
                arrays[variable.name][place] = part[0]

    def block(self, channels: np.ndarray) -> xr.Dataset:
        """One field as a Dataset with all dimensions, for a store."""
        ones = (1,) * len(self.shape)
        arrays = {name: np.full((*ones, *self.full_shape(name)[len(ones) :]), np.nan, "f4") for name in self.schema.names}
        self.put(arrays, (0,) * len(ones), channels)
        axes = ("latitude", "longitude")
        dims = {name: (*self.dims, *(("level",) if self.schema[name].levels else ()), *axes) for name in arrays}
        return xr.Dataset({name: (dims[name], array) for name, array in arrays.items()})


def _stream(job: _Job, describe: _Description, digest: str, to, *, resume: bool, overwrite: bool, bar) -> xr.Dataset:
    """Write field by field and open the store lazily."""
    s, model = job.settings, job.model
    run = {
        "weights": model.weights_sha256(), "input": digest, "members": "mean" if s.mean else s.members.tolist(), "seed": s.seed,
        "solver": (s.solver or model.solver).to_dict(), "coherence": str(s.coherence), "patch": model.tiling(s.patch).to_dict(),
        "source": None if job.stats is None else job.stats.to_dict(),
    }  # fmt: skip
    axes = describe.dims
    # member by member: complete ones are first
    places = [(*place, i) for i in range(s.members.size) for place in np.ndindex(job.shape)]
    blocks = {place: {dim: [i, i + 1] for dim, i in zip(axes, place, strict=True)} for place in places}
    if resume:
        store = BlockStore.resume(to, run)
    else:
        store = BlockStore.create(to, describe(describe.lazy()), run, list(blocks.values()), overwrite=overwrite)
    with store:
        pending = {tuple(block[dim][0] for dim in axes) for block in store.pending}
        bar.update(len(places) - len(pending))
        for place, channels in job.run(pending, bar):
            store.write(blocks[place], describe.block(channels))
        store.finish()
    return xr.open_zarr(to)


def _on_grid(coarse: Coarse, model: Downscaler, report: Report) -> Coarse | None:
    """On the grid that the model reads; forecasts of another model than it learned from are told."""
    known = model.about.get("forecasts_of", coarse.origin)
    if coarse.forecast and model.leads is None:
        report.assume("input", f"a forecast, taken for analyses at its valid times: {model.name!r} knows no errors of forecasts")
    if coarse.origin == known:
        return coarse.on(model.coarse.grid, report, "input", height=model.height)
    fix = f'Give those that it knows: ds.scalemixer.forecast(hours=48, model="{known}")'
    found = f"forecasts of {coarse.origin or 'an unknown model'}; {model.name!r} learned the errors of those of {known}"
    report.warn("input", found, fix)
    return coarse.on(model.coarse.grid, report, "input", f"{fix}; or choose another model", height=model.height)


def _stats_of(source, model: Downscaler, report: Report, rh_phase: str | None) -> Stats:
    """Statistics that take the place of those of training: of past fields of another system, on the fine grid.

    Beside fields of the system of training at the same times: those of training, changed as the two differ.
    """
    given = source if isinstance(source, (tuple, list)) else (source,)
    if len(given) not in (1, 2):
        found = f"source= has {len(given)} datasets; needed its past fields, or these and those of the system of training"
        raise InputError("nothing was downscaled", [f"{found}: source=(archive, reference)"])
    read = [Coarse.of(ds, model.coarse.schema, report, "source", rh_phase=rh_phase) for ds in given]
    moved = [None if each is None else each.on(model.coarse.grid, report, "source", height=model.height) for each in read]
    report.raise_errors("nothing was downscaled")
    past, known = cast("list[Coarse]", moved), model.coarse.stats
    if len(past) == 1:
        _warn_of_season(past[0], model, report)
        stats = _surveyed(past[0], model)
    else:
        common = np.intersect1d(past[0].time, past[1].time)
        if not common.size:
            raise TimeError("nothing was downscaled", ["both datasets of source= have no time in common; needed the same times"])
        own, reference = (_surveyed(each.only(np.isin(each.time, common)), model) for each in past)
        mean = {c: known.mean[c] + own.mean[c] - reference.mean[c] for c in known.mean}
        std = {c: known.std[c] * own.std[c] / reference.std[c] for c in known.std}
        stats = Stats(mean=mean, std=std, source=own.source)
    units = {c: model.coarse.schema[c.partition("_")[0]].units for c in known.mean}
    apart = [f"{c} {stats.mean[c] - known.mean[c]:+.3g} {units[c]} x {stats.std[c] / known.std[c]:.2f}" for c in known.mean]
    report.assume("source", f"mean and standard deviation of {stats.source} for those of training: {', '.join(apart)}")
    return stats


def _surveyed(past: Coarse, model: Downscaler) -> Stats:
    series = Series(past.time, Interpolated(past.values(), model.interpolate))
    period = (past.time.min() - HOUR, past.time.max())
    return survey(series, model.coarse.schema, [period], source=f"{past.time.size} fields of the source").stats


def _warn_of_season(past: Coarse, model: Downscaler, report: Report) -> None:
    """Months that only one of source and training has."""
    (run,) = model.about.get("trained_on", [])[-1:] or [{}]
    days = [np.arange(np.datetime64(a, "D"), np.datetime64(b, "D") + 1) for a, b in run.get("train", [])]
    if not days:
        return
    numbers = [np.unique(time.astype("M8[M]").astype(int) % 12 + 1).tolist() for time in (np.concatenate(days), past.time)]
    of_training, own = (", ".join(calendar.month_abbr[number] for number in each) for each in numbers)
    if own != of_training:
        found = f"it has {own}, training had {of_training}: what seasons differ by would be removed as its bias"
        report.warn("source", found, "Give fields of the system of training at the same times too: source=(archive, reference)")


def _provenance(job: _Job, report: Report, digest: str) -> dict:
    model, s = job.model, job.settings
    solver, kind = s.solver or model.solver, "forecast" if job.coarse.forecast else "analysis"
    drawn = {
        "seed": s.seed,
        "solver": f"{solver.method}, {solver.calls} network calls",
        "coherence": "none" if s.coherence is None else f"{s.coherence:g} h",
    }
    return {
        "title": f"{'mean' if s.mean else f'{s.members.size} members'} downscaled from a coarse {kind} by {model.name}",
        **made_by(model, digest, report),
        **({} if s.mean else drawn),
    }


def _warn_of_training(starts: np.ndarray, model: ForecastModel) -> None:
    """Starts from which the model has been trained."""
    periods = [period for run in model.about.get("trained_on", []) for period in run.get("train", [])]
    seen = np.zeros(starts.size, bool)
    for start, end in periods:
        seen |= (starts > np.datetime64(start)) & (starts <= np.datetime64(end))
    if seen.any():
        told = "%d of %d starts lie in the training periods of %s, where its errors are smaller than elsewhere; use others"
        log.warning(told, seen.sum(), seen.size, model.name)
