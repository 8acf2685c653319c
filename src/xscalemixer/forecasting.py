"""Forecasts: from a dataset to hourly regional fields, checked before and described after."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from os import PathLike
from typing import cast

import numpy as np
import torch
import xarray as xr

from xscalemixer.errors import InputError
from xscalemixer.forecaster import Forecaster
from xscalemixer.model import ForecastModel
from xscalemixer.nn.scalemixer import Step
from xscalemixer.output import forecast_dataset
from xscalemixer.progress import progress_bar
from xscalemixer.report import Report
from xscalemixer.running import (
    coupled_model_of,
    device_of,
    horizon,
    in_convention,
    model_of,
    provenance,
    require_store,
    run_blocks,
    state_digest,
)
from xscalemixer.starting import Start, minute, prepare
from xscalemixer.state import HOUR, State
from xscalemixer.store import ForecastStore

__all__ = ["check", "coupling_response", "forecast", "key_positions"]

Describe = Callable[..., xr.Dataset]  # fields and lead times to a forecast with everything else filled in


def forecast(
    ds: xr.Dataset | xr.DataTree,
    hours: int = 48,
    *,
    model: str | PathLike | ForecastModel | None = None,
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
    """Hourly regional forecast from a global state, or from the hours before it of the region alone.

    Parameters
    ----------
    ds : Dataset or DataTree
        Global fields in any layout, names and units that CF attributes or the alias table explain. A DataTree has
        ``/global`` and, for a warm start, ``/regional``. For a model of a region alone: its hourly fields.
    hours : int
        Length of the forecast; any positive number of hours. Text such as ``"2 days"`` works too.
    model : str, path or model, optional
        Name from ``xsm.models()``, a saved folder, or a model in hand. Default: `xscalemixer.pretrained.DEFAULT`.
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
    hours = horizon(hours)
    model = model_of(model)
    require_store(to, resume or overwrite)
    device = device_of(device)
    start, report = _prepared(ds, model, regional, init_time, rh_phase)
    model.to(device)
    state = start.state
    attrs = provenance(model, start, report, hours)
    if diagnose:
        attrs["coupling_response"] = coupling_response(coupled_model_of(model, "coupling"), state)
    describe = partial(
        forecast_dataset,
        schema=model.inner.schema,
        grid=in_convention(model.inner.grid, start.west_negative),
        reference_time=state.time,
        attrs=attrs,
        static=model.static,
    )
    with progress_bar(hours, "h", "forecast", progress) as bar:
        if to is not None:
            return _stream(model, state, hours, describe, to, resume=resume, overwrite=overwrite, bar=bar)
        blocks = [fields for _, fields in run_blocks(model, state, hours, 0, bar)]
        return describe(np.concatenate(blocks), lead_time=np.arange(1, hours + 1))


def check(
    ds: xr.Dataset | xr.DataTree,
    *,
    model: str | PathLike | ForecastModel | None = None,
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
    return prepare(ds, model_of(model), regional=regional, init_time=init_time, rh_phase=rh_phase)[1]


def key_positions(ds: xr.Dataset | xr.DataTree, *, model=None, regional=None, init_time=None, rh_phase=None) -> xr.Dataset:
    """Where the model looked in its first step: key positions and importance of every global token; arguments as for `forecast`.

    Returns
    -------
    Dataset
        ``latitude``, ``longitude`` (degrees) and ``score`` of each key with dims (block, key), and ``importance``
        (1, sums to 1 over the globe) with dims (block, token_latitude, token_longitude).
    """
    model = coupled_model_of(model, "key positions")
    if not model.network.mixers:
        raise InputError(f"{model.name!r} has no key positions", ["it was trained with coupling='none'; use another model"])
    start, _ = _prepared(ds, model, regional, init_time, rh_phase)
    trace: list[Step] = []
    with torch.inference_mode():
        model.step(start.state, trace)
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
    outer, inner = start.parts["outer"], start.inner
    inside = torch.from_numpy(model.outer.grid.within(model.inner.grid)).to(outer.device)
    raised_outer = State(start.time, outer + model.scale_outer.std * ~inside, inner)
    raised_inner = State(start.time, outer, inner + model.scale_inner.std)
    last = lambda state: list(model.rollout(state, steps))[-1].parts
    plain, driven, fed = last(start), last(raised_outer), last(raised_inner)
    change = ((fed["outer"] - plain["outer"]) / model.scale_outer.std).abs().mean((0, 1))
    return {
        "driver_outside_moves_region": float(((driven["inner"] - plain["inner"]) / model.scale_inner.std).abs().mean()),
        "region_moves_driver_inside": float(change[inside].mean()),
        "region_moves_driver_outside": float(change[~inside].mean()),
    }


def _prepared(ds, model: ForecastModel, regional, init_time, rh_phase) -> tuple[Start, Report]:
    """As `prepare`, for those who cannot go on without a start.

    Raises
    ------
    InputError
        With every problem of the input.
    """
    start, report = prepare(ds, model, regional=regional, init_time=init_time, rh_phase=rh_phase)
    report.raise_errors(f"this dataset cannot start {model.name!r}")
    return cast("Start", start), report  # without problems there is one


def _stream(
    model: ForecastModel, start: State, hours: int, describe: Describe, to, *, resume: bool, overwrite: bool, bar
) -> xr.Dataset:
    """Write the forecast block by block and open it lazily."""
    import dask.array

    run = {"weights": model.weights_sha256(), "start": minute(start.time), "hours": hours, "input": state_digest(start)}
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
            parts = {name: torch.from_numpy(values).to(model.device) for name, values in store.restart.items()}
            start = State.of(start.time + done * HOUR, parts)
        for state, fields in run_blocks(model, start, hours, done, bar) if done < hours else ():
            leads = np.arange(store.next_lead + 1, store.next_lead + 1 + len(fields))
            block = describe(fields, lead_time=leads)
            store.write(store.next_lead, block, {name: part.cpu().numpy() for name, part in state.parts.items()})
        store.finish()
    return xr.open_zarr(to)
