"""Events "at or above a threshold": Brier score, reliability, and how far off in space they are.

SEEPS is not among them: it scores precipitation against the wet and dry days of a local climatology, and no model here
forecasts precipitation.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial

import numpy as np
import xarray as xr

from xscalemixer.errors import GridError, InputError, SchemaError
from xscalemixer.report import Report
from xscalemixer.variables import CATALOG
from xscalemixer.verification._scores import require_scores
from xscalemixer.verification.alignment import CommonGrid, Region
from xscalemixer.verification.pairs import align_pair, described, require_values

__all__ = ["brier", "fss", "reliability"]

_MOST_MEMBERS = 20  # up to these, each probability that members can give has its own bin
_BINS = 10


def brier(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    variable: str,
    thresholds: float | Sequence[float],
    *,
    fair: bool = False,
    region: Region | None = None,
    grid: CommonGrid = "coarser",
) -> xr.DataArray:
    r"""Brier score of the event "at or above a threshold", by `scores.probability.brier_score_for_ensemble`.

    :math:`E \langle (k / M - o)^2 \rangle`, with k of M members in the event and o = 1 if it happened, else 0; units 1. The
    fair score subtracts :math:`k (M - k) / (M^2 (M - 1))`.

    Parameters
    ----------
    forecast, truth, region, grid
        As for `xscalemixer.score`.
    variable : str
        Catalog name.
    thresholds : float or sequence of float
        In canonical units. The report warns of those that are never or always reached.
    fair : bool
        What an infinite ensemble would score; for one member the same.

    Returns
    -------
    DataArray
        Dims ``(threshold, lead_time, [level])``, averaged over starts and, weighted with area, over cells; at stations over all
        reports.

    Raises
    ------
    ImportError
        If the package ``scores`` is missing.
    SchemaError
        If forecast and truth have no value in common.

    References
    ----------
    Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2; Ferro 2014, doi:10.1002/qj.2270.
    """
    import dask

    require_scores("the Brier score")
    from scores.probability import brier_score_for_ensemble

    one, report = align_pair(forecast, truth, [variable], region, grid)
    field, target = _with_members(one.forecast[variable]), one.truth[variable]
    field = field.where(field.notnull().all("member"))
    levels = _thresholds(thresholds)
    pooled = one.area.dims if one.area.ndim == 2 else ("reference_time", *one.area.dims)  # as `score`: fields, or reports
    kept = [dim for dim in target.dims if dim not in pooled]
    keywords = {"weights": one.area, "preserve_dims": kept, "fair_correction": fair, "event_threshold_operator": operator.ge}
    out = brier_score_for_ensemble(field, target, "member", levels, **keywords)
    out = out.mean("reference_time") if "reference_time" in out.dims else out
    out, facts = dask.compute(out, _facts(field, target, one.area))
    require_values("the Brier score", {variable: out.notnull()})
    _warn_of_thresholds(levels, facts, variable, report)
    out = out.rename(variable).assign_coords(threshold=_threshold_axis(levels, variable))
    out.attrs = {"long_name": "Brier score", "units": "1"}
    return described(out, "Brier score", one, report).transpose("threshold", "lead_time", ...)


def reliability(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    variable: str,
    thresholds: float | Sequence[float],
    *,
    bins: int | None = None,
    region: Region | None = None,
    grid: CommonGrid = "coarser",
) -> xr.Dataset:
    """Forecast probability of the event "at or above a threshold" against how often it then happened.

    The probability is the share of members in the event. For one member it is 0 or 1, and the observed frequencies say how
    often the event came after a "no" and after a "yes".

    Parameters
    ----------
    forecast, truth, region, grid
        As for `xscalemixer.score`.
    variable : str
        Catalog name.
    thresholds : float or sequence of float
        In canonical units. The report warns of those that are never or always reached.
    bins : int, optional
        Number of bins of equal width; a probability on an edge belongs to the upper one. Default: M + 1, which gives each
        probability that M members can have a bin of its own, and 10 for more than 20 members.

    Returns
    -------
    Dataset
        ``forecast_probability`` and ``observed_frequency``, means over the cases of a bin (NaN where it is empty), and
        ``count``, its number of cases, all with dims ``(threshold, lead_time, [level], probability)`` and units 1. A case is
        one cell of one field and counts with the area of the cell relative to the mean cell. ``probability`` is the center of
        the bin, ``variable`` the name.

    Raises
    ------
    InputError
        If there are fewer than 2 bins.
    SchemaError
        If forecast and truth have no value in common.

    References
    ----------
    Wilks 2011, Statistical Methods in the Atmospheric Sciences, 3rd edition, section 8.4.4. The package ``scores`` has the
    diagram without bins: `scores.processing.isotonic_fit`.
    """
    import dask

    one, report = align_pair(forecast, truth, [variable], region, grid)
    field, target = _with_members(one.forecast[variable]), one.truth[variable]
    number = field.sizes["member"]
    if bins is None:
        bins = number + 1 if number <= _MOST_MEMBERS else _BINS
    if bins < 2:
        raise InputError("reliability cannot be computed", [f"bins={bins}; needed 2 or more"])
    levels = _thresholds(thresholds)
    weights = one.area / one.area.where(one.area > 0).mean()
    sums = _over_fields(
        partial(_bin_sums, levels=levels, bins=bins),
        [field, target, weights],
        [("member", *one.area.dims), one.area.dims, one.area.dims],
        {"sum": 3, "threshold": len(levels), "probability": bins},
    )
    sums, facts = dask.compute(sums.sum("reference_time"), _facts(field, target, one.area))
    require_values("reliability", {variable: sums > 0})
    _warn_of_thresholds(levels, facts, variable, report)
    count, probability, observed = (sums.isel(sum=i) for i in range(3))
    filled = count.where(count > 0)
    out = xr.Dataset(
        {"forecast_probability": probability / filled, "observed_frequency": observed / filled, "count": count},
        {"threshold": _threshold_axis(levels, variable), "probability": (np.arange(bins) + 0.5) / bins},
    )
    names = {
        "forecast_probability": "mean forecast probability",
        "observed_frequency": "observed relative frequency",
        "count": "number of cases, weighted with area",
        "probability": "center of the bin of forecast probability",
    }
    for name, long_name in names.items():
        out[name].attrs = {"long_name": long_name, "units": "1"}
    out = described(out.assign_coords(variable=variable), "reliability", one, report)
    return out.transpose("threshold", "lead_time", ..., "probability")


def fss(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    variable: str,
    threshold: float,
    windows: int | Sequence[int],
    *,
    region: Region | None = None,
    grid: CommonGrid = "coarser",
) -> xr.DataArray:
    r"""Fractions skill score of the event "at or above a threshold".

    :math:`1 - E (P_f - P_a)^2 / (E P_f^2 + E P_a^2)`, with P the share of event cells in each square window that lies wholly
    inside the area; 1 is perfect, 0 no overlap at that scale; units 1. Sums run over starts and members before the division.
    The numbers are those of `scores.spatial.fss_2d`, which needs all fields in memory; here they are read chunk by chunk.

    Parameters
    ----------
    forecast, truth, region, grid
        As for `xscalemixer.score`.
    variable : str
        Catalog name.
    threshold : float
        In canonical units. The report warns if it is never or always reached.
    windows : int or sequence of int
        Widths of the window in cells.

    Returns
    -------
    DataArray
        Dims ``(window, lead_time, [level])``. All cells count the same. NaN where the event is neither forecast nor observed.

    Raises
    ------
    GridError
        If the truth is at stations.
    InputError
        If no window of a width fits into the area.
    SchemaError
        If values are missing: a gap is neither event nor none.

    References
    ----------
    Roberts and Lean 2008, doi:10.1175/2007MWR2123.1.
    """
    import dask

    task = "the fractions skill score cannot be computed"
    one, report = align_pair(forecast, truth, [variable], region, grid)
    field, target = one.forecast[variable], one.truth[variable]
    sizes = [int(window) for window in np.atleast_1d(windows)]
    if one.area.ndim != 2:
        raise GridError(task, [f"found places along {', '.join(map(str, one.area.dims))}; needed a grid as truth"])
    inside = one.area.values > 0  # all cells of a box, but on a curvilinear grid the region is none
    whole = {size: _window_counts(inside, size) == size**2 for size in sizes if 1 <= size <= min(inside.shape)}
    lost = [size for size in sizes if not (size in whole and whole[size].any())]
    if lost:
        most = max(size for size in range(1, min(inside.shape) + 1) if (_window_counts(inside, size) == size**2).any())
        raise InputError(task, [f"windows={sizes}; needed 1 to {most} cells, the widest that fits into the area"])
    sums = _over_fields(
        partial(_window_sums, threshold=float(threshold), whole=[whole[size] for size in sizes], sizes=sizes),
        [field, target],
        [one.area.dims, one.area.dims],
        {"sum": 2, "window": len(sizes)},
    )
    pooled = [dim for dim in ("reference_time", "member") if dim in field.dims]
    sums, facts = dask.compute(sums.sum(pooled), _facts(field, target, one.area))
    gaps = int(facts.isel(fact=0).sum())
    if gaps:
        raise SchemaError(task, [f"{gaps} values of {variable} are missing; crop with region="])
    _warn_of_thresholds([float(threshold)], facts, variable, report)
    difference, total = (sums.isel(sum=i) for i in range(2))
    out = (1 - difference / total.where(total > 0)).rename(variable)
    out = out.assign_coords(window=("window", sizes, {"units": "1", "long_name": "width in cells"}))
    out.attrs = {"long_name": "fractions skill score", "units": "1", "threshold": float(threshold)}
    return described(out, "fractions skill score", one, report).transpose("window", "lead_time", ...)


def _with_members(field: xr.DataArray) -> xr.DataArray:
    return field if "member" in field.dims else field.expand_dims("member")


def _thresholds(thresholds: float | Sequence[float]) -> list[float]:
    levels = [float(threshold) for threshold in np.atleast_1d(thresholds)]
    if not levels:
        raise InputError("events cannot be scored", ["no threshold; needed one or more in canonical units"])
    return levels


def _threshold_axis(levels: list[float], variable: str) -> xr.Variable:
    return xr.Variable("threshold", levels, {"long_name": f"threshold of {variable}", "units": CATALOG[variable].units})


def _over_fields(function, arrays: list[xr.DataArray], cores: list[tuple], sizes: dict[str, int]) -> xr.DataArray:
    """Apply a function of one field each over all others, lazily where the arrays are; ``sizes``: its output's dims."""
    whole = [array.chunk(dict.fromkeys(core, -1)) if array.chunks else array for array, core in zip(arrays, cores, strict=True)]
    return xr.apply_ufunc(
        function,
        *whole,
        input_core_dims=cores,
        output_core_dims=[tuple(sizes)],
        vectorize=True,
        dask="parallelized",
        dask_gufunc_kwargs={"output_sizes": sizes},
        output_dtypes=[np.float64],
    )


def _bin_sums(members: np.ndarray, truth: np.ndarray, weights: np.ndarray, levels: list[float], bins: int) -> np.ndarray:
    """Members (M, ...) and truth (...) of one field to the weights of all, their probabilities and events: (3, T, bins)."""
    number = len(members)
    valid = np.isfinite(members).all(axis=0) & np.isfinite(truth)
    weights = weights[valid]
    out = np.empty((3, len(levels), bins))
    for i, level in enumerate(levels):
        inside = (members >= level).sum(axis=0)[valid]
        place = np.minimum(inside * bins // number, bins - 1)  # integers: a share of 0.3 is in its bin exactly
        parts = weights, weights * inside / number, weights * (truth[valid] >= level)
        out[:, i] = [np.bincount(place, part, bins) for part in parts]
    return out


def _window_sums(
    forecast: np.ndarray, truth: np.ndarray, threshold: float, whole: list[np.ndarray], sizes: list[int]
) -> np.ndarray:
    """Two fields (H, W) to sums of squared differences of event counts in windows, and of their squares: (2, windows).

    ``whole`` says for each size which of its windows, shape (H - size + 1, W - size + 1), count.
    """
    out = np.empty((2, len(sizes)))
    for i, (size, counts) in enumerate(zip(sizes, whole, strict=True)):
        ours, theirs = (_window_counts(field >= threshold, size)[counts] for field in (forecast, truth))
        out[:, i] = ((ours - theirs) ** 2).sum(), (ours**2 + theirs**2).sum()
    return out


def _window_counts(events: np.ndarray, size: int) -> np.ndarray:
    """Number of events in each window of the given width: (H, W) to (H - size + 1, W - size + 1)."""
    table = np.pad(events.astype("i8"), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)  # events north-west of each corner
    return table[size:, size:] - table[:-size, size:] - table[size:, :-size] + table[:-size, :-size]


def _facts(field: xr.DataArray, target: xr.DataArray, area: xr.DataArray) -> xr.DataArray:
    """Of each field and its truth where there is area: number of missing values, least and greatest value, dim ``fact``."""
    cores = [("member", *area.dims) if "member" in field.dims else area.dims, area.dims]
    return _over_fields(partial(_facts_of_field, inside=area.values > 0), [field, target], cores, {"fact": 3})


def _facts_of_field(members: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    values = np.concatenate([members[..., inside].ravel(), truth[inside]])
    return np.array([np.isnan(values).sum(), np.fmin.reduce(values), np.fmax.reduce(values)])


def _warn_of_thresholds(levels: list[float], facts: xr.DataArray, variable: str, report: Report) -> None:
    """Tell which events never or always happen, in both datasets: often a threshold in other units."""
    low, high = float(facts.isel(fact=1).min()), float(facts.isel(fact=2).max())
    for level in levels:
        if level > high or level <= low:
            verdict = "never" if level > high else "always"
            found = f"at or above {level:g} {verdict} happens: forecast and truth lie between {low:g} and {high:g}"
            report.warn(variable, f"{found} {CATALOG[variable].units}", "Thresholds are in these units")
