"""``score``: numbers that say how good forecasts are, by variable and lead time, with the uncertainty of differences."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import wraps
from numbers import Integral
from os import PathLike
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from xscalemixer.errors import InputError, SchemaError
from xscalemixer.report import Report
from xscalemixer.verification.alignment import Aligned, CommonGrid, Region, align
from xscalemixer.verification.bootstrap import block_length, lag_correlation, resampled_counts, segment_lengths, widening
from xscalemixer.verification.evaluation import Storage, area_means, open_means, sums_at_places
from xscalemixer.verification.metrics import CELLWISE, METRICS, ROOTED, average

__all__ = ["rescore", "score"]

_BY = ("variable", "lead_time", "reference_time", "place")
_ORDER = ("metric", "lead_time", "reference_time", "level", "model")
_ONE = "forecast"
_INTERVAL = (0.025, 0.975)
_FEWEST_BLOCKS = 2


def _for_each_truth(function: Callable) -> Callable:
    """Let ``truth`` be a tree: a tree of scores comes back, with the same names of nodes."""

    @wraps(function)
    def over_tree(forecast, truth, **options):
        if not isinstance(truth, xr.DataTree):
            return function(forecast, truth, **options)
        if options.get("to") is not None:
            problem = (
                "to= keeps the area means of one truth; score the nodes one by one: xsm.score(fc, tree['name'].to_dataset())"
            )
            raise InputError("these scores cannot be computed", [problem])
        nodes = {node.path: node.to_dataset() for node in truth.subtree if node.data_vars}
        if not nodes:
            raise SchemaError("these scores cannot be computed", ["truth is a tree without data; needed a Dataset in some node"])
        return xr.DataTree.from_dict({path: function(forecast, ds, **options) for path, ds in nodes.items()}, name=truth.name)

    return over_tree


@_for_each_truth
def score(
    forecast: xr.Dataset | Mapping[str, xr.Dataset],
    truth: xr.Dataset | pd.DataFrame | xr.DataTree,
    *,
    climatology: xr.Dataset | None = None,
    skill_against: str | None = None,
    region: Region | None = None,
    by: Iterable[str] = ("variable", "lead_time"),
    metrics: Iterable[str] | None = None,
    variables: Iterable[str] | None = None,
    grid: CommonGrid = "coarser",
    root: Literal["after", "before"] = "after",
    draws: int = 1000,
    block: int | None = None,
    seed: int = 0,
    to: str | PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    memory: str | int = "1 GiB",
    progress: bool | None = None,
) -> xr.Dataset | xr.DataTree:
    """Score forecasts against analyses on a grid, or against reports of stations.

    Parameters
    ----------
    forecast : Dataset or dict of Dataset
        A forecast of any system in any layout, or several by name, which are then compared on the fields that all have.
    truth : Dataset, DataFrame or DataTree
        Fields at valid times, in any layout; found for each start and lead time. Or reports of stations, in any form that
        `xscalemixer.read_stations` reads without further arguments; forecasts on grids come to them by
        `xscalemixer.at_stations` with its defaults (call it first for others). A tree of several truths gives a tree of scores.
    climatology : Dataset, optional
        From `xscalemixer.climatology`; needed for ``acc``, ``activity`` and ``truth_activity``.
    skill_against : str, optional
        One of the models. Adds, for each error metric such as ``rmse``: ``rmse_skill`` (1 - error / its error),
        ``rmse_difference`` (error - its error; negative is better) and ``rmse_difference_low`` and ``_high``, the 95 %
        interval of the difference, NaN with fewer than two blocks of starts. A difference is significant where both bounds have
        one sign.
    region : (north, west, south, east), optional
        Degrees; cells whose centers lie inside count.
    by : iterable of str
        Of "variable" (always), "lead_time", "reference_time" and "place"; the scores are averages over what is not named.
        With "place" each cell has scores of its own, over starts; metrics of whole fields (correlation, acc, activity) and
        intervals are then not to be had, and the result must fit into memory.
    metrics : iterable of str, optional
        See `xscalemixer.verification.metrics`; default: all that the data allow, except ``mse``. ``count``, the number of
        fields that were averaged (at stations: of reports), comes with them.
    variables : iterable of str, optional
        Catalog names; default: all that the forecasts and the truth have.
    grid : "coarser", "truth" or Grid
        Cells to compare on: the coarsest of the grids, onto which the finer ones are averaged; the truth's; or any other.
    root : "after" or "before"
        Take the root of squared errors (and spreads and activities) after averaging over fields, or of each field before.
    draws, block, seed : int
        Of the paired block bootstrap: resamples, successive starts drawn together (default: from their number and from how
        alike successive differences are; never across a gap between starts), and the seed of the random numbers.
    to : path, optional
        Keep the area means of all fields in this Zarr store, batch by batch of starts. A killed run goes on with
        ``resume=True``; `xscalemixer.rescore` makes other scores from the store without reading the data again.
    resume, overwrite : bool
        Go on with, or replace, an existing store at ``to``. A store of other settings, coordinates or climatology is refused;
        of the values, the fields of five starts are looked at.
    memory : str or int
        Bound for the fields of one batch, see `xscalemixer.verification.evaluation`.
    progress : bool, optional
        Show a progress bar; default: only in a terminal or notebook.

    Returns
    -------
    Dataset
        One variable for each scored variable, in float64, dims ``(metric, lead_time, [reference_time], [level], [model])``, and
        with "place" those of the cells;
        ``dimensionless(metric)`` tells which metrics have units of 1, the others have those of the variable (``mse``:
        squared). The attribute ``report`` says what was aligned, converted and left out. The data are read in one pass,
        by the workers of an active client of dask.distributed if they are lazy; the scores themselves are in memory.

    Raises
    ------
    InputError, SchemaError, GridError, TimeError
        If there is nothing to compare, or a metric lacks what it needs; every problem is listed.

    References
    ----------
    Formulas: `xscalemixer.verification.metrics`; resampling: `xscalemixer.verification.bootstrap`.
    """
    forecasts = _by_name(forecast)
    by, asked = _names(by), None if metrics is None else _names(metrics)
    problems = _settings_problems(by, asked, root, draws, block) + _model_problems(forecasts, skill_against, by)
    problems += _metric_problems(asked, climatology, by) + _storage_problems(to, resume, overwrite, by)
    if problems:
        raise InputError("these scores cannot be computed", problems)
    aligned, report = align(forecasts, truth, climatology=climatology, variables=variables, grid=grid, region=region)
    members = {name: one.forecast.sizes.get("member", 1) for name, one in aligned.items()}
    chosen = _choose(asked, members, climatology is not None, by, report)
    names = tuple(dict.fromkeys(name for metric in chosen for name in METRICS[metric].means))
    places = "stations" if "station" in next(iter(aligned.values())).area.dims else "cells"
    attrs = {"region": "all" if region is None else str(tuple(region)), "places": places}
    if "place" in by:
        sums = sums_at_places(aligned, names, by=by, root=root, memory=memory, report=report, progress=progress)
        out = _finish_places(sums, chosen, members, _described(aligned), by, skill_against, root, report)
        out.attrs |= attrs
    else:
        storage = None if to is None else Storage(to, resume, overwrite)
        means = area_means(aligned, names, attrs=attrs, storage=storage, memory=memory, report=report, progress=progress)
        out = _finish(means, chosen, by, skill_against, root, draws, block, seed)
    return out.isel(model=0, drop=True) if list(forecasts) == [_ONE] else out


def rescore(
    store: str | PathLike,
    *,
    skill_against: str | None = None,
    by: Iterable[str] = ("variable", "lead_time"),
    metrics: Iterable[str] | None = None,
    root: Literal["after", "before"] = "after",
    draws: int = 1000,
    block: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Other scores from area means that `score` kept; the data are not read again.

    Parameters
    ----------
    store : path
        Given as ``to=`` to `score`.
    skill_against, by, metrics, root, draws, block, seed
        As for `score`, but for "place"; only metrics whose area means are in the store.

    Returns
    -------
    Dataset
        As `score` returns it.

    Raises
    ------
    InputError
        If the store is not complete, or lacks what a metric needs.
    """
    means = open_means(store)
    by, asked = _names(by), None if metrics is None else _names(metrics)
    held = set(means["mean"].values)
    models = dict.fromkeys(means["model"].values)
    problems = _settings_problems(by, asked, root, draws, block) + _model_problems(models, skill_against, by)
    if "place" in by:
        problems.append("by='place'; the store has area means. Type xsm.score(forecast, truth, by=...)")
    lost = [name for name in asked or () if name in METRICS and not set(METRICS[name].means) <= held]
    if lost:
        problems.append(f"{', '.join(lost)} cannot be had from the area means {', '.join(sorted(held - {'share', 'weight'}))}")
    if problems:
        raise InputError("these scores cannot be computed", problems)
    members = dict(zip(models, means["members"].values, strict=True))
    known = any(METRICS[name].needs == "climatology" and set(METRICS[name].means) <= held for name in METRICS)
    chosen = _choose(asked, members, known, by, Report(""))
    chosen = tuple(name for name in chosen if set(METRICS[name].means) <= held)
    out = _finish(means, chosen, by, skill_against, root, draws, block, seed)
    return out.isel(model=0, drop=True) if list(models) == [_ONE] else out


def _by_name(forecast) -> dict[str, xr.Dataset]:
    if isinstance(forecast, list | tuple):
        raise SchemaError(
            "these scores cannot be computed",
            [f"found a {type(forecast).__name__} of forecasts; needed names: {{'ours': fc, 'other': other}}"],
        )
    return dict(forecast) if isinstance(forecast, Mapping) and not isinstance(forecast, xr.Dataset) else {_ONE: forecast}


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _settings_problems(by, metrics, root, draws, block) -> list[str]:
    problems = [f"by={name!r}; needed some of {', '.join(_BY)}" for name in by if name not in _BY]
    if {"place", "reference_time"} <= set(by):
        problems.append("by= has 'place' and 'reference_time': these are the errors themselves; leave one of them out")
    for name in [name for name in metrics or () if name not in METRICS]:
        near = f". Did you mean {name.lower()!r}?" if name.lower() in METRICS else ""
        problems.append(f"metric {name!r} is unknown; known are {', '.join(METRICS)}{near}")
    if root not in ("after", "before"):
        problems.append(f"root={root!r}; needed 'after' or 'before'")
    numbers = {"draws": draws, "block": 1 if block is None else block}
    problems += [f"{name}={n!r}; needed a whole number from 1" for name, n in numbers.items() if not _is_count(n)]
    if root == "before" and "mse" in (metrics or ()):
        problems.append("mse has no root to take before averaging; leave it or root='before' out")
    return problems


def _is_count(number) -> bool:
    return isinstance(number, Integral) and int(number) >= 1


def _model_problems(models, skill_against, by) -> list[str]:
    problems = [] if models else ["no forecast in the dict; needed at least one"]
    if skill_against is not None and skill_against not in models:
        problems.append(f"skill_against={skill_against!r} is not one of the forecasts: {', '.join(models)}")
    elif skill_against is not None and "reference_time" in by:
        problems.append("skill_against needs averages over starts; leave 'reference_time' out of by=")
    return problems


def _metric_problems(metrics, climatology, by) -> list[str]:
    known = [name for name in metrics or () if name in METRICS]
    bare = [name for name in known if METRICS[name].needs == "climatology" and climatology is None]
    problems = []
    if bare:
        problems.append(f"{', '.join(bare)}: no climatology. Type climatology=xsm.climatology(archive), from a long archive")
    spatial = [name for name in known if "place" in by and not _is_cellwise(name)]
    if spatial:
        problems.append(
            f"{', '.join(spatial)}: a metric of whole fields, which no single place has; leave out 'place' or this metric"
        )
    return problems


def _storage_problems(to, resume, overwrite, by) -> list[str]:
    if to is None and (resume or overwrite):
        return ["resume and overwrite belong to a store on disk; add to='scores.zarr'"]
    return (
        ["to= keeps area means, which scores by 'place' are not made of; leave out one of them"] if to and "place" in by else []
    )


def _is_cellwise(metric: str) -> bool:
    return set(METRICS[metric].means) <= set(CELLWISE)


def _choose(metrics, members: Mapping[str, int], has_climatology: bool, by, report: Report) -> tuple[str, ...]:
    """The metrics that the data allow; those asked for that need members and find one only are an error."""
    ensemble = max(members.values()) > 1
    if metrics is None:
        allowed = {None} | ({"climatology"} if has_climatology else set()) | ({"members"} if ensemble else set())
        metrics = tuple(name for name, metric in METRICS.items() if metric.needs in allowed and name != "mse")
        metrics = metrics if ensemble else tuple(name for name in metrics if name != "crps")
        metrics = tuple(name for name in metrics if _is_cellwise(name)) if "place" in by else metrics
    lone = [name for name in metrics if METRICS[name].needs == "members" and not ensemble]
    if lone:
        found = f"one member; {', '.join(lone)} cannot be had from one"
        report.error("member", found, "a forecast with two or more members", "Leave them out of metrics=; crps equals mae")
        report.raise_errors("these scores cannot be computed")
    single = [name for name, number in members.items() if number == 1]
    if "crps" in metrics and single:
        report.warn("crps", f"one member in {', '.join(single)}: equals the mean absolute error")
    return metrics


# ------------------------------------------------------------------------------------------------ from area means to scores


def _finish(means: xr.Dataset, metrics, by, skill_against, root, draws, block, seed) -> xr.Dataset:
    """Scores from the area means of all fields."""
    report = Report.from_dict(json.loads(means.attrs["report"]))
    members, means = means["members"].drop_vars("members"), means.drop_vars("members")
    share = means.sel(mean="share", drop=True)
    _check_share(share, report)
    means = means.where((share > 0).all("model")).sortby("reference_time")  # fields that any model lacks count for none
    weights = means.sel(mean="weight", drop=True).fillna(0.0)
    averaged = [dim for dim in ("reference_time", "lead_time") if dim not in by]
    over = lambda counts: lambda field: field.map(lambda array: _weighted(array, weights[array.name], averaged, counts))
    scores = _scores(means, metrics, members, over(None), root)
    if skill_against is not None:
        errors = tuple(name for name in metrics if METRICS[name].is_error)
        series = _differences(means, errors, skill_against)
        counts, factor = _resamples(means["reference_time"].values, series, draws, block, seed, report)
        spread = {} if counts is None else _scores(means, errors, members, over(counts), root)
        scores |= _compared(scores, spread, skill_against, factor)
    scores["count"] = weights.sum(averaged)
    out = _assemble(scores, {name: array.attrs for name, array in means.items()})
    return _with_attrs(out, averaged, root, report).assign_attrs(region=means.attrs["region"], places=means.attrs["places"])


def _finish_places(sums: xr.Dataset, metrics, members, described, by, skill_against, root, report: Report) -> xr.Dataset:
    """Scores from the sums over starts at each cell."""
    number = sums.sel(mean="count", drop=True)
    means = sums.drop_sel(mean="count") / number.where(number > 0)
    squared = lambda field, name: field**2 if root == "before" and name in ROOTED else field
    averages: dict[str, Any] = {name: squared(means.sel(mean=name, drop=True), name) for name in means["mean"].values}
    averages["members"] = xr.DataArray(list(members.values()), {"model": list(members)}, dims="model")
    scores = {metric: METRICS[metric].finish(averages) for metric in metrics}
    if skill_against is not None:
        report.warn("differences", "no intervals at single places")
        scores |= {name: s for name, s in _compared(scores, {}, skill_against).items() if not name.endswith(("_low", "_high"))}
    scores["count"] = number
    averaged = ["reference_time"] + ["lead_time"] * ("lead_time" not in by)
    return _with_attrs(_assemble(scores, described), averaged, root, report)


def _described(aligned: Mapping[str, Aligned]) -> dict[Hashable, dict]:
    return {name: array.attrs for name, array in next(iter(aligned.values())).forecast.items()}


def _with_attrs(out: xr.Dataset, averaged: list[str], root: str, report: Report) -> xr.Dataset:
    attrs = {"title": "scores", "root": f"{root} averaging", "averaged_over": ", ".join(averaged) or "nothing"}
    out.attrs = attrs | {"report": repr(report)}
    return out


def _weighted(array: xr.DataArray, weights: xr.DataArray, dims: list[str], counts: xr.DataArray | None) -> xr.DataArray:
    """Mean over fields with weights; of each resample, if there are counts of starts."""
    weights = weights.where(array.notnull(), 0.0)
    total = (lambda a: a.sum(dims)) if counts is None else (lambda a: xr.dot(counts, a.drop_vars("reference_time"), dim=dims))
    number = total(weights)
    return total(array.fillna(0.0) * weights) / number.where(number > 0)


def _check_share(share: xr.Dataset, report: Report) -> None:
    """All missing is an error; models with values at different cells are told."""
    problems = []
    for variable, values in share.items():
        covered = values.max([dim for dim in values.dims if dim != "model"])
        for model in covered["model"].values[(~(covered > 0)).values]:
            problems.append(f"{variable} of {model}: no place where forecast and truth both have a value; all are NaN")
        others = [dim for dim in values.dims if dim != "lead_time"]
        empty = values["lead_time"].values[~(values.max(others) > 0).values]
        if empty.size and not problems:
            report.warn(str(variable), f"no values at lead times {', '.join(map(str, empty))} h")
        typical = values.mean([dim for dim in values.dims if dim != "model"])
        if typical.min() < 1 - 1e-6:
            shares = ", ".join(f"{model} {float(s):.1%}" for model, s in zip(typical["model"].values, typical, strict=True))
            report.warn(str(variable), f"values at part of the places: {shares}")
    if problems:
        raise SchemaError(
            "these scores cannot be computed", [f"{p}. Check the mask, or leave it out of variables=" for p in problems]
        )


def _scores(means: xr.Dataset, metrics: tuple[str, ...], members, average_over: Callable, root: str) -> dict[str, xr.Dataset]:
    names = dict.fromkeys(name for metric in metrics for name in METRICS[metric].means)
    averages = {name: average(means.sel(mean=name, drop=True), name, average_over, root) for name in names}
    return {metric: METRICS[metric].finish(averages | {"members": members}) for metric in metrics}


def _differences(means: xr.Dataset, errors: tuple[str, ...], against: str) -> np.ndarray:
    """Differences of the first area mean of errors to one model, shape (starts, series)."""
    if not errors:
        return np.zeros((means.sizes["reference_time"], 1))
    field = means.sel(mean=METRICS[errors[0]].means[0], drop=True)
    others = field - field.sel(model=against, drop=True)
    columns = [a.transpose("reference_time", ...).values.reshape(a.sizes["reference_time"], -1) for a in others.values()]
    return np.concatenate(columns, axis=1)


def _resamples(
    starts: np.ndarray, series: np.ndarray, draws: int, block: int | None, seed: int, report: Report
) -> tuple[xr.DataArray | None, float]:
    """How often each start is drawn, and the factor for few blocks; None where starts are too few for intervals."""
    lengths = segment_lengths(starts)
    if block is None:
        block = block_length(starts.size, lag_correlation(series, lengths) if starts.size > 1 else 0.0)
    blocks = float(np.maximum(1.0, lengths / block).sum())
    if blocks < _FEWEST_BLOCKS:
        found = f"no intervals: {starts.size} starts make {blocks:.1f} blocks of {block}; needed {_FEWEST_BLOCKS} or more"
        report.warn("differences", found, "Give more starts")
        return None, 1.0
    spells = f" within {lengths.size} spells without a gap" if lengths.size > 1 else ""
    found = f"95 % intervals from {draws} resamples of {starts.size} starts in blocks of {block}{spells}"
    report.assume("differences", f"{found}, widened by {widening(blocks):.2f} for {blocks:.1f} blocks")
    return resampled_counts(lengths, draws, block, seed), widening(blocks)


def _compared(
    scores: Mapping[str, xr.Dataset], drawn: Mapping[str, xr.Dataset], against: str, factor: float = 1.0
) -> dict[str, xr.Dataset]:
    """Skill and difference of each error metric against one model, with the interval of the difference."""
    out = {}
    for name in [name for name in scores if METRICS[name].is_error]:
        reference = scores[name].sel(model=against, drop=True)
        out[f"{name}_skill"] = 1.0 - scores[name] / reference.where(reference > 0)
        out[f"{name}_difference"] = scores[name] - reference
        low = high = scores[name] * np.nan
        if name in drawn:
            difference = drawn[name] - drawn[name].sel(model=against, drop=True)
            middle = out[f"{name}_difference"]
            ends = (difference.quantile(q, "draw").drop_vars("quantile") for q in _INTERVAL)
            low, high = (middle + factor * (end - middle) for end in ends)
        out |= {f"{name}_difference_low": low, f"{name}_difference_high": high}
    return out


def _assemble(scores: Mapping[str, xr.Dataset], described: Mapping[Hashable, Mapping]) -> xr.Dataset:
    out = xr.concat(list(scores.values()), "metric", coords="minimal", compat="override", join="outer")
    bases = [name.split("_difference")[0] for name in scores]
    unitless = [name.endswith("_skill") or name == "count" or (name in METRICS and METRICS[name].units == "1") for name in bases]
    out = out.assign_coords(metric=list(scores), dimensionless=("metric", unitless))
    for name, array in out.items():
        array.attrs = {key: described[name][key] for key in ("standard_name", "long_name", "units") if key in described[name]}
    return out.transpose(*_ORDER, ..., missing_dims="ignore")
