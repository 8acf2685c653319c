"""Values: ranges, gaps, fill values; all variables are looked at in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from xscalemixer.conform.levels import extend_below_ground, fill_below_ground
from xscalemixer.conform.source import Source, is_plausible, plausible_units
from xscalemixer.report import Report
from xscalemixer.variables import CATALOG, Variable

__all__ = ["check"]

_FILL_VALUES = (9.969209968386869e36, 9.96921e36, 1e20, 1e30, 9.999e20, -9999.0, -999.9, -32767.0, 3.4028235e38)


@dataclass(frozen=True)
class _Summary:
    """What one pass over a variable tells; arrays of shape (T, L), with 1 for a dimension it does not have."""

    low: np.ndarray
    high: np.ndarray
    nan: np.ndarray
    infinite: np.ndarray
    under: np.ndarray
    over: np.ndarray

    def of(self, times: np.ndarray | slice) -> _Summary:
        """Some times together; arrays of shape (L,)."""
        counts = (part[times].sum(0) for part in (self.nan, self.infinite, self.under, self.over))
        return _Summary(self.low[times].min(0), self.high[times].max(0), *counts)


def check(
    fields: Mapping[str, xr.DataArray], source: Source, report: Report, keep: frozenset[str], *, skip: float | None = None
) -> dict[str, xr.DataArray]:
    """Refuse values that cannot be right, fill below the ground, and clip what is out of bounds by a rounding error.

    Parameters
    ----------
    fields : dict of xr.DataArray
        Canonical variables, ingredients of derived ones included.
    source : Source
        Knows the units each one had.
    report : Report
    keep : set of str
        Variables that are handed on; gaps are only filled in these.
    skip : float, optional
        Times with bad values are left out, up to this share of all times, but at least one if it is not 0. If there are more, an
        error names them.

    Returns
    -------
    dict of xr.DataArray
        The same variables, filled and clipped; still lazy where they were.
    """
    fields = {name: array for name, array in fields.items() if array.size}
    by_time = _summarize(fields)
    gaps = _gaps_below_ground(fields, by_time)
    good = None if skip is None else _good_times(_bad_times(fields, by_time, gaps, source), fields, skip, report)
    times = {name: slice(None) if good is None or "time" not in array.dims else good for name, array in fields.items()}
    if good is not None:
        fields = {name: _only(array, good) if "time" in array.dims else array for name, array in fields.items()}
    summaries = {name: summary.of(times[name]) for name, summary in by_time.items()}
    below = {name: tuple(int(count[times[name]].sum()) for count in counts) for name, counts in gaps.items()}
    checked = {}
    for name, array in fields.items():
        row, summary = CATALOG[name], summaries[name]
        _check_infinite(row, array, summary, report)
        array = _fill(row, array, summary, below.get(name), fields, report, quiet=name not in keep)
        _check_range(row, array, summary, source, report)
        checked[name] = _clip(row, array, summary, report)
    return checked


def _summarize(fields: Mapping[str, xr.DataArray]) -> dict[str, _Summary]:
    import dask

    lazy = {name: _reductions(CATALOG[name], array) for name, array in fields.items()}
    (values,) = dask.compute(lazy)
    shapes = {name: [array.sizes.get(dim, 1) for dim in ("time", "level")] for name, array in fields.items()}
    return {name: _Summary(*(np.reshape(part, shapes[name]) for part in parts)) for name, parts in values.items()}


def _reductions(row: Variable, array: xr.DataArray) -> tuple:
    dims = [dim for dim in array.dims if dim not in ("time", "level")]
    nan, infinite = array.isnull(), xr.ufuncs.isinf(array)
    bad = nan | infinite
    low, high = (-np.inf if row.bounds[0] is None else row.bounds[0]), (np.inf if row.bounds[1] is None else row.bounds[1])
    parts = (array.where(~bad, np.inf).min(dims), array.where(~bad, -np.inf).max(dims), nan.sum(dims), infinite.sum(dims))
    return tuple(part.data for part in (*parts, (array < low).sum(dims), (array > high).sum(dims)))


def _gaps_below_ground(fields, by_time: Mapping[str, _Summary]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per variable with gaps on levels: how many of them are below the ground, and how many are not, shape (T,) each."""
    import dask

    gappy = [name for name, array in fields.items() if "level" in array.dims and by_time[name].nan.sum()]
    surface = fields.get("sp")
    if not gappy or surface is None:
        return {}
    counts = {}
    for name in gappy:
        missing, ground = fields[name].isnull(), fields[name]["level"] * 100.0 > surface
        counts[name] = tuple(
            (missing & where).sum([dim for dim in missing.dims if dim != "time"]).data for where in (ground, ~ground)
        )
    (values,) = dask.compute(counts)
    return {name: (np.atleast_1d(inside), np.atleast_1d(outside)) for name, (inside, outside) in values.items()}


def _bad_times(fields, by_time: Mapping[str, _Summary], gaps, source: Source) -> dict[str, np.ndarray]:
    """Per variable with such times: where values are missing, infinite or out of range, shape (T,)."""
    found = {}
    for name, summary in by_time.items():
        low, high = _limits(CATALOG[name], source)
        missing = gaps[name][1] if name in gaps else summary.nan.sum(1)
        bad = (missing > 0) | (summary.infinite > 0).any(1) | (summary.low < low).any(1) | (summary.high > high).any(1)
        if "time" in fields[name].dims and bad.any():
            found[name] = bad
    return found


def _good_times(bad: Mapping[str, np.ndarray], fields, skip: float, report: Report) -> np.ndarray | None:
    """Where values are good, shape (T,); None if all of them are, or too many are bad to leave them out."""
    if not bad:
        return None
    time, spoiled = fields[next(iter(bad))]["time"].values, np.logical_or.reduce(list(bad.values()))
    count = int(spoiled.sum())
    if count == time.size:  # what is wrong with all of them is told by variable
        return None
    first = [str(each)[:16] for each in time[spoiled][:20]]
    found = f"bad values ({', '.join(bad)}) at {count} of {time.size} times: {', '.join(first)}{', ...' if count > 20 else ''}"
    if count <= (max(1, skip * time.size) if skip else 0):
        report.warn("time", f"{found}; these times are left out")
        return ~spoiled
    needed = f"good values at {100 * (1 - skip):g} % of the times or more (skip={skip:g})"
    share = np.ceil(1000 * count / time.size) / 1000
    listed = ", ".join(map(repr, first[:3])) + (", ..." if count > 3 else "")
    fix = f"Mend them, leave them out (ds = ds.drop_sel(time=[{listed}])), or let them be left out: skip={share:g}"
    report.error("time", found, needed, fix)
    return None


def _only(array: xr.DataArray, good: np.ndarray) -> xr.DataArray:
    """Some times of an array, run by run: chosen one by one they would move from one chunk to the next."""
    runs = np.flatnonzero(np.diff(good, prepend=False, append=False)).reshape(-1, 2).tolist()
    parts = [array.isel(time=slice(start, end)) for start, end in runs]
    return xr.concat(parts, "time", coords="minimal", compat="override", join="override")


def _check_infinite(row: Variable, array: xr.DataArray, summary: _Summary, report: Report) -> None:
    count = int(summary.infinite.sum())
    if count:
        report.error(row.name, f"{count} infinite values, the first {_first(xr.ufuncs.isinf(array))}", "finite values")


def _fill(row, array, summary, below, fields, report, *, quiet) -> xr.DataArray:
    """Fill gaps below the ground; any other gap is an error."""
    count = int(summary.nan.sum())
    if not count:
        return array
    inside, outside = below if below is not None else (0, count)
    if outside:
        found = f"{outside} of {array.size} values are missing (NaN), the first {_first(array.isnull())}"
        fix = f'Fill them first, e.g. with ds["{row.name}"].interpolate_na(...), or choose other times'
        if "level" in array.dims and below is None:
            fix = "If they are below the ground, add the surface pressure (sp) to the dataset, and they are filled"
        report.error(row.name, found, "a value everywhere", fix)
        return array
    temperature = fields.get("t")
    if row.name == "z" and temperature is None:
        report.error(row.name, f"{inside} values below the ground are missing", "temperature on the same levels to extend it")
        return array
    if not quiet:
        how = "extended hydrostatically downward" if row.name == "z" else "filled with the lowest value above"
        report.assume(row.name, f"{inside} missing values below the ground {how}")
    return extend_below_ground(array, temperature) if row.name == "z" else fill_below_ground(array)


def _check_range(row: Variable, array: xr.DataArray, summary: _Summary, source: Source, report: Report) -> None:
    low, high = summary.low.min(), summary.high.max()
    if not np.isfinite([low, high]).all():
        return
    if row.name in source.conversions:
        _check_source_range(row, array, summary, source, report)
    elif low < _limits(row, source)[0] or high > row.valid_range[1]:
        found = f"derived values run from {low:.6g} to {high:.6g} {row.units}"
        report.error(row.name, found, _range_of(row), "Check what it was derived from")


def _limits(row: Variable, source: Source) -> tuple[float, float]:
    """Valid range; derived values below a bound are clipped."""
    clipped = row.name not in source.conversions and row.bounds[0] is not None
    return -np.inf if clipped else row.valid_range[0], row.valid_range[1]


def _check_source_range(row: Variable, array: xr.DataArray, summary: _Summary, source: Source, report: Report) -> None:
    name, units, factor, offset = source.conversions[row.name]
    low, high = ((edge - offset) / factor for edge in (summary.low, summary.high))
    fitting = plausible_units(row, array, low, high)
    inside = summary.low.min() >= row.valid_range[0] and summary.high.max() <= row.valid_range[1]
    if inside and (row.name not in ("z", "gh") or is_plausible(row, array, summary.low, summary.high) or len(fitting) != 1):
        return
    found = f"{name!r} runs from {low.min():.6g} to {high.max():.6g} {units}"
    fill = next((f for f in _FILL_VALUES for edge in (low.min(), high.max()) if np.isclose(edge, f, rtol=1e-4)), None)
    needed = _range_of(row)
    if fill is not None:
        fix = f'ds["{name}"] = ds["{name}"].where(ds["{name}"] != {fill:g}), and fill the gaps'
        report.error(row.name, f"{found}: an undecoded fill value", needed, fix)
    elif len(fitting) == 1 and fitting[0] != units:
        fix = f'The values look like {fitting[0]}: ds["{name}"].attrs["units"] = "{fitting[0]}"'
        report.error(row.name, found, needed, fix)
    else:
        at = _first((array < row.valid_range[0]) | (array > row.valid_range[1]))
        report.error(row.name, f"{found}; the first bad value is {at}", needed, f'Check ds["{name}"] and its units')


def _range_of(row: Variable) -> str:
    return f"{row.valid_range[0]:g} to {row.valid_range[1]:g} {row.units}"


def _clip(row: Variable, array: xr.DataArray, summary: _Summary, report: Report) -> xr.DataArray:
    count = int(summary.under.sum() + summary.over.sum())
    low, high = row.bounds
    if not count or row.name in {finding.subject for finding in report.select("error")}:
        return array
    limits = " and ".join(f"{word} {limit:g}" for word, limit in (("below", low), ("above", high)) if limit is not None)
    extremes = f"from {summary.low.min():.3g} to {summary.high.max():.3g}"
    report.assume(row.name, f"{count} of {array.size} values {limits} clipped (they ran {extremes} {row.units})")
    return array.clip(low, high, keep_attrs=True)


def _first(mask: xr.DataArray) -> str:
    """Where a mask is first true, in words."""
    values = mask.values
    place = np.unravel_index(int(np.argmax(values)), values.shape)
    labels = []
    for dim, index in zip(mask.dims, place, strict=True):
        label = mask[dim].values[index] if dim in mask.coords else index
        labels.append(f"{dim} {str(label)[:16] if mask[dim].dtype.kind == 'M' else format(label, 'g')}")
    return "at " + ", ".join(labels)
