"""Forecasts: from a dataset to hourly regional fields, checked before and described after."""

from __future__ import annotations

import hashlib
import logging
import numbers
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import cast, get_args

import numpy as np
import pandas as pd
import torch
import xarray as xr

from xscalemixer._version import __version__
from xscalemixer.conform import conform, require_dataset, valid_times
from xscalemixer.errors import GridError, InputError, TimeError
from xscalemixer.forecaster import Branch, Forecaster
from xscalemixer.grids import Grid, grid_of
from xscalemixer.nn.scalemixer import Step
from xscalemixer.output import forecast_dataset
from xscalemixer.physics.humidity import Phase
from xscalemixer.physics.pressure import LAPSE_RATE, pressure_at_altitude
from xscalemixer.pretrained import load
from xscalemixer.progress import progress_bar
from xscalemixer.regridding import regrid
from xscalemixer.report import Report
from xscalemixer.state import HOURS, State, fields_of
from xscalemixer.store import ForecastStore

__all__ = ["check", "coupling_response", "forecast", "key_positions"]

log = logging.getLogger(__name__)

Describe = Callable[..., xr.Dataset]  # fields and lead times to a forecast with everything else filled in

HOUR = np.timedelta64(1, "h")
HORIZON = 48  # hours; the shipped model was verified up to here, on its twin world
FILES = (".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".grib", ".grib2", ".grb", ".grb2", ".zip")  # endings that no Zarr folder has


def forecast(
    ds: xr.Dataset | xr.DataTree,
    hours: int = 48,
    *,
    model: str | PathLike | Forecaster | None = None,
    regional: xr.Dataset | None = None,
    init_time=None,
    rh_phase: str | None = None,
    to: str | PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    diagnose: bool = False,
    progress: bool | None = None,
) -> xr.Dataset:
    """Hourly regional forecast from a global state.

    Parameters
    ----------
    ds : Dataset or DataTree
        Global fields in any layout, names and units that CF attributes or the alias table explain. A DataTree has
        ``/global`` and, for a warm start, ``/regional``.
    hours : int
        Length of the forecast; any positive number of hours. Text such as ``"2 days"`` works too.
    model : str, path or Forecaster, optional
        Name from ``xsm.models()``, a saved folder, or a model in hand. Default: ``xsm.models.DEFAULT``.
    regional : Dataset, optional
        Hourly regional analyses t-5..t for a warm start; without them the history is invented from ``ds`` (cold start).
    init_time : datetime-like, optional
        Start of the forecast; default: the last time in the data.
    rh_phase : "water", "mixed" or "ice", optional
        What relative humidity refers to, where the metadata do not tell.
    to : path, optional
        Stream to this Zarr store, lead time by lead time; memory does not grow with ``hours``. For NetCDF, leave it out and
        call ``fc.to_netcdf``.
    resume, overwrite : bool
        Go on with, or replace, an existing store at ``to``.
    device : "cuda", "mps" or "cpu", optional
        Default: the first of these that works; ``"cuda:1"`` picks one of several.
    diagnose : bool
        Also measure how far each branch responds to the other; written to the attribute ``coupling_response``.
    progress : bool, optional
        Show a progress bar; default: only in a terminal or notebook.

    Returns
    -------
    Dataset
        Dims ``(reference_time, lead_time, latitude, longitude)``; lazily opened from ``to`` if given.

    Raises
    ------
    SchemaError, GridError, TimeError, InputError
        Before anything is computed or written, listing every problem.
    """
    hours = _whole_hours(hours)
    model = _model(model)
    _require_store(to, resume or overwrite)
    device = _device(device)
    start, report = _prepared(ds, model, regional, init_time, rh_phase)
    model.to(device)
    state = start.state
    attrs = _provenance(model, start, report, hours)
    if diagnose:
        attrs["coupling_response"] = coupling_response(model, state)
    describe = partial(
        forecast_dataset,
        schema=model.inner.schema,
        grid=_in_convention(model.inner.grid, start.west_negative),
        reference_time=state.time,
        attrs=attrs,
        static=model.static,
    )
    with progress_bar(hours, "h", "forecast", progress) as bar:
        if to is not None:
            return _stream(model, state, hours, describe, to, resume=resume, overwrite=overwrite, bar=bar)
        blocks = [fields for _, fields in _blocks(model, state, hours, 0, bar)]
        return describe(np.concatenate(blocks), lead_time=np.arange(1, hours + 1))


def check(
    ds: xr.Dataset | xr.DataTree,
    *,
    model: str | PathLike | Forecaster | None = None,
    regional: xr.Dataset | None = None,
    init_time=None,
    rh_phase: str | None = None,
) -> Report:
    """What fits, what is converted or assumed, and what is missing for a forecast; makes no forecast.

    Parameters
    ----------
    ds, model, regional, init_time, rh_phase
        As for `forecast`.

    Returns
    -------
    Report
        Prints as text; a table in Jupyter.
    """
    return prepare(ds, _model(model), regional=regional, init_time=init_time, rh_phase=rh_phase)[1]


def key_positions(ds: xr.Dataset | xr.DataTree, *, model=None, regional=None, init_time=None, rh_phase=None) -> xr.Dataset:
    """Where the model looked in its first step: key positions and importance of every global token; arguments as for `forecast`.

    Returns
    -------
    Dataset
        ``latitude``, ``longitude`` (degrees) and ``score`` of each key with dims (block, key), and ``importance``
        (1, sums to 1 over the globe) with dims (block, token_latitude, token_longitude).
    """
    model = _model(model)
    if not model.network.mixers:
        raise InputError(f"{model.name!r} has no key positions", ["it was trained with coupling='none'; use another model"])
    start, _ = _prepared(ds, model, regional, init_time, rh_phase)
    trace: list[Step] = []
    next(model.rollout(start.state, 1, trace))
    keys = trace[0].keys
    lat, lon = model.network.config.outer.tokens.axes
    stack = lambda pick: np.stack([pick(key).cpu().numpy() for key in keys])
    positions = stack(lambda key: key.positions[0])
    return xr.Dataset(
        {
            "latitude": (("block", "key"), positions[..., 0], {"standard_name": "latitude", "units": "degrees_north"}),
            "longitude": (("block", "key"), positions[..., 1] % 360, {"standard_name": "longitude", "units": "degrees_east"}),
            "score": (("block", "key"), stack(lambda key: key.scores[0, key.chosen[0]]), {"units": "1"}),
            "importance": (
                ("block", "token_latitude", "token_longitude"),
                stack(lambda key: key.scores[0].unflatten(0, (lat.size, lon.size))),
                {"long_name": "importance of global tokens (eq. 5)", "units": "1"},
            ),
        },
        {"token_latitude": lat, "token_longitude": lon, "time": start.time},
        {"model": model.name},
    )


@torch.inference_mode()
def coupling_response(model: Forecaster, start: State, steps: int = 2) -> dict[str, float]:
    """How far each branch moves when the other is disturbed; zero means that they do not talk.

    All channels of one branch are raised by one standard deviation at the start: the globe outside the region, or the
    region. The response is the mean absolute change after ``steps`` steps, in standard deviations.

    Returns
    -------
    dict
        ``driver_outside_moves_region``: change of the region when the driver is disturbed outside of it;
        ``region_moves_driver_inside`` and ``region_moves_driver_outside``: change of the driver, inside and outside of the
        region, when the region is disturbed.
    """
    inside = _inside(model.outer.grid, model.inner.grid).to(start.outer.device)
    raised_outer = State(start.time, start.outer + model.scale_outer.std * ~inside, start.inner)
    raised_inner = State(start.time, start.outer, start.inner + model.scale_inner.std)
    last = lambda state: list(model.rollout(state, steps))[-1]
    plain, driven, fed = last(start), last(raised_outer), last(raised_inner)
    change = ((fed.outer - plain.outer) / model.scale_outer.std).abs().mean((0, 1))
    return {
        "driver_outside_moves_region": float(((driven.inner - plain.inner) / model.scale_inner.std).abs().mean()),
        "region_moves_driver_inside": float(change[inside].mean()),
        "region_moves_driver_outside": float(change[~inside].mean()),
    }


# ---------------------------------------------------------------------------------------------------------- preparation


@dataclass(frozen=True)
class Start:
    """A prepared start on the grids of a model.

    Attributes
    ----------
    model : Forecaster
    time : numpy.datetime64
    outer : Tensor, shape (1, C_g, H, W), physical
    inner : Tensor, shape (1, 6, C_r, h, w), physical, or None
        Regional hours t-5..t; None for a cold start.
    west_negative : bool
        The input counts longitudes from -180 to 180 degrees.
    """

    model: Forecaster
    time: np.datetime64
    outer: torch.Tensor
    inner: torch.Tensor | None
    west_negative: bool

    @property
    def cold(self) -> bool:
        """True if the regional history has to be invented."""
        return self.inner is None

    @cached_property
    def state(self) -> State:
        """The state at the start, on the device of the model; a cold start invents the regional history here."""
        outer = self.outer.to(self.model.device)
        inner = self.model.invent_history(outer, self.time) if self.inner is None else self.inner.to(self.model.device)
        return State(self.time, outer, inner)


def _prepared(ds, model: Forecaster, regional, init_time, rh_phase) -> tuple[Start, Report]:
    """As `prepare`, for those who cannot go on without a start.

    Raises
    ------
    InputError
        With every problem of the input.
    """
    start, report = prepare(ds, model, regional=regional, init_time=init_time, rh_phase=rh_phase)
    report.raise_errors(f"this dataset cannot start {model.name!r}")
    return cast("Start", start), report  # without problems there is one


def prepare(ds, model: Forecaster, *, regional=None, init_time=None, rh_phase=None) -> tuple[Start | None, Report]:
    """Conform, regrid and collect the start; it is None where the report has errors."""
    report = Report(f"input for {model.name!r}")
    if rh_phase not in (None, *get_args(Phase)):
        needed = ", ".join(f'"{phase}"' for phase in get_args(Phase))
        report.error("rh_phase", repr(rh_phase), f"one of {needed}, or none", kind=InputError)
        rh_phase = "water"  # said already; look on for other problems
    if isinstance(regional, xr.DataTree):
        fix = 'Take the group that holds them: regional=tree["regional"].to_dataset()'
        report.error("regional", "a DataTree", "a Dataset of hourly analyses", fix)
        regional = None
    if isinstance(ds, xr.DataTree):
        ds, regional = _branches(ds, regional, report)
        if ds is None:
            return None, report
    for data in (ds,) if regional is None else (ds, regional):
        require_dataset(data)
    time = _start_time(ds, regional, init_time, report)
    if time is None and (time := _latest(ds)) is None:  # look at the latest state all the same, to list every problem
        return None, report
    starts = starts_at(np.array([time]), ds, model, report, regional=regional, rh_phase=rh_phase)
    return starts[0] if starts else None, report


def starts_at(times, ds: xr.Dataset, model: Forecaster, report: Report, *, regional=None, rh_phase=None) -> list[Start]:
    """Prepared starts at sorted times that the data have, read together; none where the report gets errors."""
    terrain = model.network.outer.statics[0].cpu().numpy() * 1000.0
    outer, west_negative = _on_model_grid(ds, model.outer, times, report, rh_phase, "driver", terrain)
    inner, hours = None, times[:, None] - np.arange(HOURS)[::-1] * HOUR
    if regional is None:
        report.assume("regional", "no analyses given; the six hours before the start are invented from the driver (cold start)")
    else:
        history = np.unique(hours)
        inner, _ = _on_model_grid(regional, model.inner, history, report, rh_phase, "regional analyses")
    if outer is None or not report.ok:
        return []
    starts = []
    for i, time in enumerate(times):
        before = None if inner is None else torch.from_numpy(inner[np.searchsorted(history, hours[i])])[None]
        starts.append(Start(model, time, torch.from_numpy(outer[i : i + 1]), before, west_negative))
    return starts


def _branches(tree: xr.DataTree, regional, report: Report) -> tuple[xr.Dataset | None, xr.Dataset | None]:
    """The two groups of a tree."""
    if "global" not in tree.children:
        report.error("groups", f"found {list(tree.children) or 'none'}", "'/global' (and '/regional' for a warm start)",
                     'Build it with xr.DataTree.from_dict({"/global": ds, "/regional": analyses}).')  # fmt: skip
        return None, None
    others = sorted(set(tree.children) - {"global", "regional"})
    if others:
        report.error(
            "groups", f"unknown groups {others}", "'/global' and '/regional' only", f'Drop or rename them: "/{others[0]}".'
        )
    inside = tree["regional"].to_dataset() if "regional" in tree.children else None
    return tree["global"].to_dataset(), regional if regional is not None else inside


def _latest(ds: xr.Dataset) -> np.datetime64 | None:
    """Last valid time of a dataset, if it has any."""
    times = valid_times(ds, Report(""))
    return times.max() if times.size else None


def _start_time(ds, regional, init_time, report: Report) -> np.datetime64 | None:
    """The start: as asked, or the last time that both inputs have."""
    wanted = None if init_time is None else _moment(init_time, report)
    available = valid_times(ds, report)
    if regional is not None:
        analyses = valid_times(regional, report)
        both = np.intersect1d(available, analyses)
        if available.size and analyses.size and not both.size:
            spans = [f"{_text(times.min())} to {_text(times.max())}" for times in (available, analyses)]
            found = f"driver ({spans[0]}) and regional analyses ({spans[1]}) have no time in common"
            report.error("time", found, "the driver at the start and hourly analyses up to it", kind=TimeError)
        available = both
    if not available.size:
        if report.ok:
            report.error("time", "no time at all", "at least one", kind=TimeError)
        return None
    if init_time is None:
        return available.max()
    if wanted is None:
        return None
    if wanted not in available:
        nearest = available[np.abs(available - wanted).argmin()]
        report.error("init_time", f"{_text(wanted)} is not in the data ({_text(available.min())} to {_text(available.max())})",
                     fix=f'Nearest: init_time="{_text(nearest)}".', kind=TimeError)  # fmt: skip
        return None
    return wanted


def _moment(init_time, report: Report) -> np.datetime64 | None:
    """A date in any form that pandas reads, or a scalar array of one, as UTC."""
    given = init_time.values if isinstance(init_time, xr.DataArray) else init_time
    if isinstance(given, np.ndarray) and given.size == 1:
        given = given.reshape(-1)[0]
    text = given.isoformat() if hasattr(given, "isoformat") else given  # cftime too
    try:
        moment = pd.NaT if isinstance(text, numbers.Number) else pd.Timestamp(text)
    except (ValueError, TypeError):
        moment = pd.NaT
    if moment is pd.NaT:
        report.error("init_time", f"{given!r} is not a date", "an ISO date such as '2011-01-15T12'", kind=TimeError)
        return None
    return np.datetime64(moment.tz_convert(None) if moment.tz else moment, "ns")


def _on_model_grid(
    ds, branch: Branch, times, report: Report, rh_phase, what: str, terrain_of_model: np.ndarray | None = None
) -> tuple[np.ndarray | None, bool]:
    """Fields of one branch at the given times on its grid, shape (T, C, H, W); problems go to the report.

    The second value tells whether the source has negative longitudes.
    """
    canonical, findings = conform(ds, branch.schema, times=np.atleast_1d(times), rh_phase=rh_phase, title=what)
    report.extend(findings, f"{what}: ")
    if not findings.ok:
        return None, False
    source, west_negative = grid_of(canonical), bool((canonical["longitude"] < 0).any())
    if isinstance(source, Grid) and (share := source.outside(branch.grid)) > 0:
        report.error(what, f"{100 * share:.0f} % of the model's grid lies outside the data ({source})", f"{branch.grid}",
                     "Give data that cover it, or pick another model from xsm.models().", kind=GridError)  # fmt: skip
        return None, west_negative
    names = list(branch.schema.names)
    if source == branch.grid:
        return fields_of(canonical[names], branch.schema), west_negative
    moved = regrid(canonical[[*names, *(["orog"] if "orog" in canonical and terrain_of_model is not None else [])]], branch.grid)
    report.assume(what, f"regridded: {moved.attrs['regridding']}")
    if terrain_of_model is not None and "orog" in moved:
        moved = _onto_terrain(moved, terrain_of_model)
        report.assume(what, "t2m and sp moved from its own terrain to the model's (standard lapse rate, hypsometric equation)")
    elif terrain_of_model is not None:
        report.warn(what, "no orography; its surface fields are taken as if they lay on the model's terrain")
    fields = fields_of(moved, branch.schema)
    holes = np.isnan(fields)
    if holes.any():
        report.error(
            what, f"{100 * holes.mean():.1f} % of the values are missing on the model's grid", "complete fields", kind=GridError
        )
    return fields, west_negative


def _onto_terrain(ds: xr.Dataset, terrain: np.ndarray) -> xr.Dataset:
    """Carry t2m and sp from the dataset's orography to the terrain of the model, shape (H, W), m."""
    t2m = ds["t2m"] - LAPSE_RATE * (terrain - ds["orog"])
    return ds.assign(t2m=t2m, sp=pressure_at_altitude(ds["sp"], ds["orog"], terrain, t2m))


def _in_convention(grid: Grid, west_negative: bool) -> Grid:
    """The grid with longitudes as the input counts them, where that keeps them ascending."""
    lon = np.array(grid.longitude)
    if west_negative and (lon >= 180).all():
        lon = lon - 360
    elif not west_negative and (lon < 0).all():
        lon = lon + 360
    return Grid(grid.latitude, tuple(lon))


def _inside(outer: Grid, inner: Grid) -> torch.Tensor:
    """Cells of the global grid whose center lies in the region, shape (H, W)."""
    north, south = inner.latitude_bounds[[0, -1]]
    west, east = inner.longitude_bounds[[0, -1]]
    lat, lon = np.array(outer.latitude), np.array(outer.longitude)
    rows, columns = (lat <= north) & (lat >= south), (lon - west) % 360 <= east - west
    return torch.from_numpy(rows[:, None] & columns[None, :])


# -------------------------------------------------------------------------------------------------------------- running


def _blocks(model: Forecaster, start: State, hours: int, done: int, bar) -> Iterator[tuple[State, np.ndarray]]:
    """State after each step and its new hours, shape (up to 6, C, h, w); stops at ``hours``, begins after ``done``."""
    steps = -(-(hours - done) // HOURS)
    for state in model.rollout(start, steps):
        fields = state.inner[0, : min(HOURS, hours - done)].cpu().numpy()
        _require_finite(fields, model, done)
        done += len(fields)
        bar.update(len(fields))
        yield state, fields


def _require_finite(fields: np.ndarray, model: Forecaster, done: int) -> None:
    bad = np.argwhere(~np.isfinite(fields))
    if bad.size:
        lead, channel, row, column = bad[0]
        place = f"{model.inner.grid.latitude[row]:.2f} N {model.inner.grid.longitude[column]:.2f} E"
        found = f"{model.inner.schema.channels[channel]} is not finite at lead {done + lead + 1} h, {place}"
        raise InputError("the forecast stopped", [f"{found}; earlier hours are intact if they were streamed with to="])


def _stream(
    model: Forecaster, start: State, hours: int, describe: Describe, to, *, resume: bool, overwrite: bool, bar
) -> xr.Dataset:
    """Write the forecast block by block and open it lazily."""
    import dask.array

    run = {"weights": model.weights_sha256(), "start": _text(start.time), "hours": hours, "input": _digest(start)}
    if resume:
        store = ForecastStore.resume(to, run)
    else:
        empty = dask.array.full((hours, len(model.inner.schema), *model.inner.grid.shape), np.nan, dtype="f4")
        template = describe(empty, lead_time=np.arange(1, hours + 1))
        store = ForecastStore.create(to, template, run, overwrite=overwrite)
    with store:
        done = store.next_lead
        bar.update(done)
        if store.restart:
            outer, inner = (torch.from_numpy(store.restart[name]).to(model.device) for name in ("outer", "inner"))
            start = State(start.time + done * HOUR, outer, inner)
        for state, fields in _blocks(model, start, hours, done, bar) if done < hours else ():
            leads = np.arange(store.next_lead + 1, store.next_lead + 1 + len(fields))
            block = describe(fields, lead_time=leads)
            store.write(store.next_lead, block, {"outer": state.outer.cpu().numpy(), "inner": state.inner.cpu().numpy()})
        store.finish()
    return xr.open_zarr(to)


def _model(model) -> Forecaster:
    if isinstance(model, Forecaster):
        return model
    if model is not None and not isinstance(model, str | PathLike):
        raise InputError(
            f"model={type(model).__name__} cannot forecast", ["give a name from xsm.models(), a model folder, or xsm.load(...)"]
        )
    return load() if model is None else load(model)


def _whole_hours(hours) -> int:
    """Hours as a positive integer; text and timedeltas are read by pandas.

    Raises
    ------
    TimeError
        If it is not a whole positive number of hours.
    """
    if isinstance(hours, numbers.Real) and not isinstance(hours, bool | np.timedelta64):
        number = float(hours)
    else:
        try:
            number = pd.Timedelta(hours) / pd.Timedelta(hours=1)
        except (ValueError, TypeError):
            number = np.nan
    if not (1 <= number < np.inf and number == round(number)):
        raise TimeError(
            "no forecast was made", [f"hours={hours!r}; needed a whole number from 1 on, e.g. hours=48 or hours='2 days'"]
        )
    if number > HORIZON:
        log.warning("hours=%s goes beyond the %s hours up to which the shipped model was verified", hours, HORIZON)
    return int(number)


def _require_store(to: str | PathLike | None, restarted: bool) -> None:
    """Refuse a place for the forecast that is no Zarr store."""
    problems = []
    if to is None and restarted:
        problems.append("resume and overwrite belong to a store on disk; add to='run.zarr'")
    if to is not None and (file := Path(to)).suffix.lower() in FILES:
        fix = (
            f"to='{file.with_suffix('.zarr')}', or leave to= out and write the result: fc.to_netcdf('{file.with_suffix('.nc')}')"
        )
        problems.append(f"to='{file}' ends like a file, but a Zarr store is a folder; type {fix}")
    if problems:
        raise InputError("no forecast was made", problems)


def _device(wanted: str | None) -> str:
    """The device asked for, or the fastest there is; logged.

    Raises
    ------
    InputError
        If the device asked for does not work here.
    """
    usable = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    usable += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    kind = usable[0] if wanted is None else "cuda:0" if str(wanted) == "cuda" else str(wanted)
    if kind not in usable:
        raise InputError(
            f"device {str(wanted)!r} cannot be used", [f"usable here: {', '.join(usable)}; leave device out to pick the first"]
        )
    log.info("running on %s in float32", kind)
    return kind


def _provenance(model: Forecaster, start: Start, report: Report, hours: int) -> dict:
    """Global attributes: what made this forecast from what, and every assumption."""
    return {
        "title": f"{hours}-hour regional forecast by {model.name}",
        "source": f"xscalemixer {__version__}, model {model.name}, weights sha256 {model.sha256}",
        "model": model.name,
        "model_sha256": model.sha256,
        "torch_version": torch.__version__,
        "device": str(model.device),
        "precision": "float32",
        "start": "cold" if start.cold else "warm",
        "input_sha256": _digest(start.state),
        "assumptions": report.assumptions,
    }


def _digest(state: State) -> str:
    """Hash of the start, to tell runs apart."""
    digest = hashlib.sha256(_text(state.time).encode())
    for tensor in (state.outer, state.inner):
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return digest.hexdigest()


def _text(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))
