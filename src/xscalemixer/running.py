"""Running a model: which one, where, for how long, and what the result says of itself."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from xscalemixer._version import __version__
from xscalemixer.conform import whole_hours
from xscalemixer.errors import InputError
from xscalemixer.forecaster import Forecaster
from xscalemixer.grids import Grid
from xscalemixer.model import ForecastModel, Model
from xscalemixer.pretrained import DEFAULT, load
from xscalemixer.report import Report
from xscalemixer.starting import Start, minute
from xscalemixer.state import State

__all__ = [
    "any_model_of",
    "coupled_model_of",
    "device_of",
    "horizon",
    "in_convention",
    "made_by",
    "model_of",
    "provenance",
    "require_store",
    "run_blocks",
    "state_digest",
]

log = logging.getLogger(__name__)

HORIZON = 48  # hours; the forecasts of the shipped models were verified up to here, on their twin world
FILES = (".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".grib", ".grib2", ".grb", ".grb2", ".zip")  # endings that no Zarr folder has


def any_model_of(model: str | PathLike | Model | None, default: str, verb: str) -> Model:
    """The model in hand, by name, from a folder, or the default one, of any kind.

    Raises
    ------
    InputError
        If it is nothing of these; ``verb`` says what it cannot do.
    """
    if isinstance(model, Model):
        return model
    if model is not None and not isinstance(model, str | PathLike):
        fix = "give a name from xsm.models(), a model folder, or xsm.load(...)"
        raise InputError(f"model={type(model).__name__} cannot {verb}", [fix])
    return load(default if model is None else model)


def model_of(model: str | PathLike | Model | None) -> ForecastModel:
    """The same, for forecasts."""
    found = any_model_of(model, DEFAULT, "forecast")
    if isinstance(found, ForecastModel):
        return found
    raise InputError(
        f"{found.name!r} cannot forecast", ["it is a model that downscales; type ds.scalemixer.downscale(model=...)"]
    )


def coupled_model_of(model: str | PathLike | Model | None, what: str) -> Forecaster:
    """The same, for what only a global and a regional network that talk to each other can do.

    Raises
    ------
    InputError
        If the model is of another kind.
    """
    found = model_of(model)
    if isinstance(found, Forecaster):
        return found
    problem = f"it is a {found.kind} model; needed one with a global and a regional network, such as xsm.load()"
    raise InputError(f"{found.name!r} has no {what}", [problem])


def horizon(hours) -> int:
    """Hours of a forecast, see `xscalemixer.conform.whole_hours`; beyond what was verified, the log says so."""
    number = whole_hours(hours)
    if number > HORIZON:
        log.warning("hours=%s: no model here was verified beyond %s h", hours, HORIZON)
    return number


def require_store(to: str | PathLike | None, restarted: bool) -> None:
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


def device_of(wanted: str | None) -> str:
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


def run_blocks(model: ForecastModel, start: State, hours: int, done: int, bar) -> Iterator[tuple[State, np.ndarray]]:
    """State after each step and its new hours, shape (T, C, h, w); stops at ``hours``, begins after ``done``."""
    steps = -(-(hours - done) // model.hours)
    for state in model.rollout(start, steps):
        fields = state.inner[0, -model.hours :][: hours - done].cpu().numpy()
        _require_finite(fields, model, done)
        done += len(fields)
        bar.update(len(fields))
        yield state, fields


def _require_finite(fields: np.ndarray, model: ForecastModel, done: int) -> None:
    bad = np.argwhere(~np.isfinite(fields))
    if bad.size:
        lead, channel, row, column = bad[0]
        place = f"{model.inner.grid.latitude[row]:.2f} N {model.inner.grid.longitude[column]:.2f} E"
        found = f"{model.inner.schema.channels[channel]} is not finite at lead {done + lead + 1} h, {place}"
        raise InputError("the forecast stopped", [f"{found}; earlier hours are intact if they were streamed with to="])


def provenance(model: ForecastModel, start: Start, report: Report, hours: int) -> dict:
    """Global attributes: what made this forecast from what, and every assumption."""
    return {
        "title": f"{hours}-hour regional forecast by {model.name}",
        **made_by(model, state_digest(start.state), report),
        "start": "cold" if start.cold else "warm",
    }


def made_by(model: Model, input_sha256: str, report: Report) -> dict:
    """Global attributes of whatever a model makes: weights, input, machine, and every assumption."""
    weights = model.sha256 or model.weights_sha256()
    return {
        "source": f"xscalemixer {__version__}, model {model.name}, weights sha256 {weights}",
        "references": model.references,
        "model": model.name,
        "model_sha256": weights,
        "torch_version": torch.__version__,
        "device": str(model.device),
        "precision": "float32",
        "input_sha256": input_sha256,
        "assumptions": report.assumptions,
    }


def state_digest(state: State) -> str:
    """Hash of the start, to tell runs apart."""
    digest = hashlib.sha256(minute(state.time).encode())
    for tensor in state.parts.values():
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return digest.hexdigest()


def in_convention(grid: Grid, west_negative: bool) -> Grid:
    """The grid with longitudes as the input counts them, where that keeps them ascending."""
    lon = np.array(grid.longitude)
    if west_negative and (lon >= 180).all():
        lon = lon - 360
    elif not west_negative and (lon < 0).all():
        lon = lon + 360
    return Grid(grid.latitude, tuple(lon))
