"""``score``: numbers that say how good forecasts are, by variable and lead time, with the uncertainty of differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np
import xarray as xr

from xscalemixer.errors import InputError, SchemaError
from xscalemixer.report import Report
from xscalemixer.verification.alignment import Aligned, CommonGrid, Region, align
from xscalemixer.verification.bootstrap import block_length, resampled_counts
from xscalemixer.verification.metrics import METRICS, average, crps, field_means

__all__ = ["score"]

_BY = ("variable", "lead_time", "reference_time")
_ORDER = ("metric", "lead_time", "reference_time", "level", "model")
_ONE = "forecast"
_INTERVAL = (0.025, 0.975)
_Means = dict[str, xr.Dataset]  # area mean -> variables with dims (model, reference_time, lead_time, [level])


def score(
    forecast: xr.Dataset | Mapping[str, xr.Dataset],
    truth: xr.Dataset,
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
) -> xr.Dataset:
    """Score forecasts against gridded truth.

    Parameters
    ----------
    forecast : Dataset or dict of Dataset
        A forecast of any system in any layout, or several by name, which are then compared on the fields that all have.
    truth : Dataset
        Fields at valid times, in any layout; found for each start and lead time.
    climatology : Dataset, optional
        From `xscalemixer.climatology`; needed for ``acc``, ``activity`` and ``truth_activity``.
    skill_against : str, optional
        One of the models. Adds, for each error metric such as ``rmse``: ``rmse_skill`` (1 - error / its error),
        ``rmse_difference`` (error - its error; negative is better) and ``rmse_difference_low`` and ``_high``, the 95 %
        interval of the difference. A difference is significant where both bounds have one sign.
    region : (north, west, south, east), optional
        Degrees; cells whose centers lie inside count.
    by : iterable of str
        Of "variable" (always), "lead_time" and "reference_time"; the scores are averages over what is not named.
    metrics : iterable of str, optional
        See `xscalemixer.verification.metrics`; default: all that the data allow, except ``mse``. ``count``, the number of
        fields that were averaged, comes with them.
    variables : iterable of str, optional
        Catalog names; default: all that the forecasts and the truth have.
    grid : "coarser", "truth" or Grid
        Cells to compare on: the coarsest of the grids, onto which the finer ones are averaged; the truth's; or any other.
    root : "after" or "before"
        Take the root of squared errors (and spreads and activities) after averaging over fields, or of each field before.
    draws, block, seed : int
        Of the paired block bootstrap: resamples, successive starts drawn together (default: the cube root of their number,
        rounded up), and the seed of the random numbers.

    Returns
    -------
    Dataset
        One variable for each scored variable, in float64, dims ``(metric, lead_time, [reference_time], [level], [model])``;
        ``dimensionless(metric)`` tells which metrics have units of 1, the others have those of the variable (``mse``:
        squared). The attribute ``report`` says what was aligned, converted and left out. The data are read in one pass,
        chunk by chunk if they are lazy; the scores themselves are in memory.

    Raises
    ------
    InputError, SchemaError, GridError, TimeError
        If there is nothing to compare, or a metric lacks what it needs; every problem is listed.

    References
    ----------
    Formulas: `xscalemixer.verification.metrics`; resampling: `xscalemixer.verification.bootstrap`.
    """
    forecasts = dict(forecast) if isinstance(forecast, Mapping) and not isinstance(forecast, xr.Dataset) else {_ONE: forecast}
    by = tuple([by] if isinstance(by, str) else by)
    chosen = None if metrics is None else tuple([metrics] if isinstance(metrics, str) else metrics)
    _check(forecasts, climatology, skill_against, by, chosen, root, draws, block)
    aligned, report = align(forecasts, truth, climatology=climatology, variables=variables, grid=grid, region=region)
    chosen = _choose(chosen, aligned, report)
    means = _compute(aligned, chosen, report)
    averaged = [dim for dim in ("reference_time", "lead_time") if dim not in by]
    members = xr.DataArray([_members(a) for a in aligned.values()], {"model": list(aligned)}, dims="model")
    scores = _scores(means, chosen, members, lambda field: _mean(field, means["weight"], averaged), root)
    if skill_against is not None:
        spread = _draws(means, chosen, members, averaged, root, draws, block, seed, report)
        scores |= _compared(scores, spread, skill_against)
    scores["count"] = means["weight"].sum(averaged)
    out = _assemble(scores, aligned)
    attrs = {"title": "scores", "root": f"{root} averaging", "region": "all" if region is None else str(tuple(region))}
    out = out.assign_attrs(attrs | {"averaged_over": ", ".join(averaged) or "nothing", "report": repr(report)})
    return out.isel(model=0, drop=True) if list(forecasts) == [_ONE] else out


def _check(forecasts, climatology, skill_against, by, metrics, root, draws, block) -> None:
    problems = [f"by={name!r}; needed some of {', '.join(_BY)}" for name in by if name not in _BY]
    unknown = [name for name in metrics or () if name not in METRICS]
    problems += [f"metric {name!r} is unknown; known are {', '.join(METRICS)}" for name in unknown]
    bare = [name for name in metrics or () if name in METRICS and METRICS[name].needs == "climatology" and climatology is None]
    if bare:
        problems.append(f"{', '.join(bare)}: no climatology. Type climatology=xsm.climatology(archive), from a long archive")
    if not forecasts:
        problems.append("no forecast in the dict; needed at least one")
    if skill_against is not None and skill_against not in forecasts:
        problems.append(f"skill_against={skill_against!r} is not one of the forecasts: {', '.join(forecasts)}")
    elif skill_against is not None and "reference_time" in by:
        problems.append("skill_against needs averages over starts; leave 'reference_time' out of by=")
    if root not in ("after", "before"):
        problems.append(f"root={root!r}; needed 'after' or 'before'")
    if draws < 1 or (block is not None and block < 1):
        problems.append(f"draws={draws} and block={block}; needed at least 1 each")
    if problems:
        raise InputError("these scores cannot be computed", problems)


def _members(aligned: Aligned) -> int:
    return aligned.forecast.sizes.get("member", 1)


def _choose(metrics: tuple[str, ...] | None, aligned: Mapping[str, Aligned], report: Report) -> tuple[str, ...]:
    """The metrics that the data allow; those asked for that need members and find one only are an error."""
    numbers = {name: _members(one) for name, one in aligned.items()}
    ensemble, has_climatology = max(numbers.values()) > 1, next(iter(aligned.values())).climatology is not None
    if metrics is None:
        allowed = {None} | ({"climatology"} if has_climatology else set()) | ({"members"} if ensemble else set())
        metrics = tuple(name for name, metric in METRICS.items() if metric.needs in allowed and name != "mse")
        metrics = metrics if ensemble else tuple(name for name in metrics if name != "crps")
    lone = [name for name in metrics if METRICS[name].needs == "members" and not ensemble]
    if lone:
        found = f"one member; {', '.join(lone)} cannot be had from one"
        report.error("member", found, "a forecast with two or more members", "Leave them out of metrics=; crps equals mae")
        report.raise_errors("these scores cannot be computed")
    single = [name for name, number in numbers.items() if number == 1]
    if "crps" in metrics and single:
        report.warn("crps", f"one member in {', '.join(single)}: equals the mean absolute error")
    return metrics


def _compute(aligned: Mapping[str, Aligned], metrics: tuple[str, ...], report: Report) -> _Means:
    """Area means of each field of each model, read in one pass; fields that any model lacks count for none."""
    import dask

    names = tuple(dict.fromkeys(name for metric in metrics for name in METRICS[metric].means))
    lazy = {model: _field_means(one, names) for model, one in aligned.items()}
    (computed,) = dask.compute(lazy)
    models = list(computed)
    joined = {
        name: xr.concat([computed[m][name] for m in models], xr.Variable("model", models)) for name in ("share", "weight", *names)
    }
    _check_share(joined["share"], report)
    shared = (joined["share"] > 0).all("model")
    return {name: mean.where(shared) for name, mean in joined.items()}


def _field_means(one: Aligned, names: tuple[str, ...]) -> dict[str, xr.Dataset]:
    lacks_members = _members(one) == 1
    forecast = one.forecast.squeeze("member", drop=True) if "member" in one.forecast.dims and lacks_members else one.forecast
    by_variable = {}
    for variable, field in forecast.items():
        truth = one.truth[variable].transpose(*(dim for dim in field.dims if dim != "member"))
        background = None if one.climatology is None else one.climatology[variable].transpose(*truth.dims)
        plain = tuple(name for name in names if not name.startswith("crps"))
        wants_crps = len(plain) < len(names)
        if lacks_members and wants_crps:
            plain = tuple(dict.fromkeys((*plain, "mae")))
        means = field_means(plain, field, truth, one.area, background)
        if wants_crps:
            means |= {"crps": means["mae"], "crps_fair": means["mae"] * np.nan} if lacks_members else crps(field, truth, one.area)
        by_variable[variable] = means
    return {name: xr.Dataset({v: means[name] for v, means in by_variable.items()}) for name in ("share", "weight", *names)}


def _check_share(share: xr.Dataset, report: Report) -> None:
    """All missing is an error; models with values at different cells are told."""
    problems = []
    for variable, values in share.items():
        covered = values.max([dim for dim in values.dims if dim != "model"])
        for model in covered["model"].values[(~(covered > 0)).values]:
            problems.append(f"{variable} of {model}: no cell where forecast and truth both have a value; all are NaN")
        typical = values.mean([dim for dim in values.dims if dim != "model"])
        if typical.min() < 1 - 1e-6:
            shares = ", ".join(f"{model} {float(s):.1%}" for model, s in zip(typical["model"].values, typical, strict=True))
            report.warn(str(variable), f"values on part of the area: {shares}")
    if problems:
        raise SchemaError(
            "these scores cannot be computed", [f"{p}. Check the mask, or leave it out of variables=" for p in problems]
        )


def _scores(means: _Means, metrics: tuple[str, ...], members, average_over: Callable, root: str) -> dict[str, xr.Dataset]:
    names = dict.fromkeys(name for metric in metrics for name in METRICS[metric].means)
    averages = {name: average(means[name], name, average_over, root) for name in names} | {"members": members}
    return {metric: METRICS[metric].finish(averages) for metric in metrics}


def _draws(means, metrics, members, averaged, root, draws, block, seed, report) -> dict[str, xr.Dataset]:
    """Error metrics of resampled starts, with a dim ``draw``; empty where there is one start only."""
    errors = tuple(name for name in metrics if METRICS[name].is_error)
    starts = means["share"].sizes["reference_time"]
    if starts == 1:
        return {}
    length = block_length(starts) if block is None else min(block, starts)
    report.assume("differences", f"95 % intervals from {draws} resamples of {starts} starts in blocks of {length}")
    counts = resampled_counts(starts, draws, length, seed)
    ordered = {name: mean.sortby("reference_time") for name, mean in means.items()}
    weighted = lambda field: field.map(lambda array: _resampled_mean(array, ordered["weight"][array.name], counts, averaged))
    return _scores(ordered, errors, members, weighted, root)


def _mean(field: xr.Dataset, weight: xr.Dataset, dims: list[str]) -> xr.Dataset:
    """Mean over fields, each with its weight."""
    total = weight.where(field.notnull()).sum(dims)
    return (field * weight).sum(dims) / total.where(total > 0)


def _resampled_mean(array: xr.DataArray, weight: xr.DataArray, counts: xr.DataArray, dims: list[str]) -> xr.DataArray:
    array, weight = array.drop_vars("reference_time"), weight.drop_vars("reference_time")
    number = xr.dot(counts, weight.where(array.notnull(), 0.0), dim=dims)
    return xr.dot(counts, (array * weight).fillna(0.0), dim=dims) / number.where(number > 0)


def _compared(scores: Mapping[str, xr.Dataset], drawn: Mapping[str, xr.Dataset], against: str) -> dict[str, xr.Dataset]:
    """Skill and difference of each error metric against one model, with the interval of the difference."""
    out = {}
    for name in [name for name in scores if METRICS[name].is_error]:
        reference = scores[name].sel(model=against, drop=True)
        out[f"{name}_skill"] = 1.0 - scores[name] / reference.where(reference > 0)
        out[f"{name}_difference"] = scores[name] - reference
        low = high = scores[name] * np.nan
        if name in drawn:
            difference = drawn[name] - drawn[name].sel(model=against, drop=True)
            low, high = (difference.quantile(q, "draw").drop_vars("quantile") for q in _INTERVAL)
        out |= {f"{name}_difference_low": low, f"{name}_difference_high": high}
    return out


def _assemble(scores: Mapping[str, xr.Dataset], aligned: Mapping[str, Aligned]) -> xr.Dataset:
    out = xr.concat(
        [values.drop_vars("mean", errors="ignore") for values in scores.values()],
        "metric",
        coords="minimal",
        compat="override",
        join="outer",
    )
    bases = [name.split("_difference")[0] for name in scores]
    unitless = [name.endswith("_skill") or name == "count" or (name in METRICS and METRICS[name].units == "1") for name in bases]
    out = out.assign_coords(metric=list(scores), dimensionless=("metric", unitless)).transpose(*_ORDER, missing_dims="ignore")
    described = next(iter(aligned.values())).truth
    for name, array in out.items():
        array.attrs = {
            key: described[name].attrs[key] for key in ("standard_name", "long_name", "units") if key in described[name].attrs
        }
    return out
