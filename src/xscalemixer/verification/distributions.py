"""Whole distributions: where the truth falls among the members, and the quantiles of forecast and truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import xarray as xr

from xscalemixer.errors import InputError
from xscalemixer.report import Report
from xscalemixer.verification._scores import require_scores
from xscalemixer.verification.alignment import Aligned, CommonGrid, Region
from xscalemixer.verification.pairs import align_pair, described, require_values

__all__ = ["quantiles", "rank_histogram"]

_STEPS = 2**14  # of the cumulative distribution between the least and the greatest value
_FEW = 10  # values beyond a quantile that make it more than an anecdote
_PROBABILITIES = (
    0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999
)  # fmt: skip


def rank_histogram(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    *,
    variables: Iterable[str] | None = None,
    region: Region | None = None,
    grid: CommonGrid = "coarser",
) -> xr.Dataset:
    """Where the truth falls among the members, by `scores.probability.rank_histogram`.

    Parameters
    ----------
    forecast, truth, variables, region, grid
        As for `xscalemixer.score`; the forecast has two or more members.

    Returns
    -------
    Dataset
        Relative frequency (sums to 1) of ``rank`` 1..M+1, dims ``(rank, lead_time, [level])``; flat if reliable, raised at
        both ends if members are too close. Cells count with their area; the ranks of ties share one count.

    Raises
    ------
    InputError
        If there is one member only.
    ImportError
        If the package ``scores`` is missing.
    SchemaError
        If forecast and truth of a variable have no value in common.

    References
    ----------
    Hamill 2001, doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2.
    """
    require_scores("the rank histogram")
    from scores.probability import rank_histogram as histogram

    one, report = align_pair(forecast, truth, variables, region, grid)
    if one.forecast.sizes.get("member", 1) < 2:
        raise InputError("a rank histogram cannot be made", ["the forecast has one member; needed two or more"])
    out = {}
    for name, field in one.forecast.items():
        kept = [dim for dim in one.truth[name].dims if dim not in (*one.area.dims, "reference_time")]
        out[name] = histogram(field, one.truth[name], "member", preserve_dims=kept, weights=one.area).compute()
        out[name].attrs = {"long_name": "relative frequency", "units": "1"}
    require_values("the rank histogram", {str(name): array.notnull() for name, array in out.items()})
    return described(xr.Dataset(out), "rank histogram", one, report).transpose("rank", "lead_time", ...)


def quantiles(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    probabilities: Sequence[float] = _PROBABILITIES,
    *,
    variables: Iterable[str] | None = None,
    region: Region | None = None,
    grid: CommonGrid = "coarser",
) -> xr.Dataset:
    """Quantiles of forecast and truth side by side: whether the forecast has the right range of values, tails included.

    Values count with the area of their cell, those of each member alike, and only where forecast and truth both have one. The
    data are read twice, chunk by chunk: for the range of values, and for the share of area in each of 16384 equal steps of
    it, between which quantiles are interpolated. That is their precision.

    Parameters
    ----------
    forecast, truth, variables, region, grid
        As for `xscalemixer.score`.
    probabilities : sequence of float
        Between 0 and 1, both excluded. The report warns if fewer than ten values of a lead time lie beyond the outermost.

    Returns
    -------
    Dataset
        One variable for each that is compared, in canonical units, dims ``(source, quantile, lead_time, [level])``; ``source``
        is "forecast" or "truth".

    Raises
    ------
    InputError
        If ``probabilities`` are none.
    SchemaError
        If forecast and truth of a variable have no value in common.

    References
    ----------
    Wilks 2011, Statistical Methods in the Atmospheric Sciences, 3rd edition, section 4.5.2.
    """
    wanted = np.atleast_1d(np.asarray(probabilities, dtype="f8"))
    if not ((wanted > 0) & (wanted < 1)).all() or not wanted.size:
        raise InputError("these quantiles cannot be computed", [f"probabilities={wanted.tolist()}; needed numbers inside 0..1"])
    one, report = align_pair(forecast, truth, variables, region, grid)
    _warn_of_tails(wanted, one, report)
    out = xr.Dataset({name: _quantiles(field, one.truth[name], one.area, wanted) for name, field in one.forecast.items()})
    require_values("quantiles", {str(name): array.notnull() for name, array in out.items()})
    out = out.assign_coords(
        source=["forecast", "truth"], quantile=("quantile", wanted, {"long_name": "probability of lower values", "units": "1"})
    )
    for name, array in out.items():
        array.attrs = {key: text for key, text in one.truth[name].attrs.items() if key in ("standard_name", "long_name", "units")}
    return described(out, "quantiles", one, report).transpose("source", "quantile", "lead_time", ...)


def _warn_of_tails(wanted: np.ndarray, one: Aligned, report: Report) -> None:
    values = int((one.area > 0).sum()) * one.forecast.sizes["reference_time"]
    if values * min(wanted.min(), 1 - wanted.max()) < _FEW:
        report.warn("quantiles", f"fewer than {_FEW} of the {values} values at each lead time lie beyond the outermost quantile")


def _quantiles(field: xr.DataArray, target: xr.DataArray, area: xr.DataArray, wanted: np.ndarray) -> xr.DataArray:
    import dask

    field = field if "member" in field.dims else field.expand_dims("member")
    if field.chunks is None:
        field, target = (array.chunk(reference_time=1) for array in (field, target))  # bounds the histograms held at once
    whole = {"member": -1} | dict.fromkeys(area.dims, -1)
    field, target = field.chunk(whole), target.chunk(dict.fromkeys(area.dims, -1))
    pooled = ["reference_time", "lead_time", *area.dims]
    known = field.notnull().all("member") & target.notnull() & (area > 0)
    ours, theirs = field.where(known), target.where(known)
    ends = dask.compute(ours.min([*pooled, "member"]), theirs.min(pooled), ours.max([*pooled, "member"]), theirs.max(pooled))
    low, high = np.fmin(*ends[:2]), np.fmax(*ends[2:])
    shares = xr.apply_ufunc(
        _histograms,
        field,
        target,
        area,
        low,
        high,
        input_core_dims=[("member", *area.dims), area.dims, area.dims, (), ()],
        output_core_dims=[("source", "step")],
        vectorize=True,
        dask="parallelized",
        dask_gufunc_kwargs={"output_sizes": {"source": 2, "step": _STEPS}},
        output_dtypes=[np.float64],
    )
    return xr.apply_ufunc(
        partial(_inverted, wanted=wanted),
        shares.sum("reference_time").compute(),
        low,
        high,
        input_core_dims=[("step",), (), ()],
        output_core_dims=[("quantile",)],
        vectorize=True,
    )


def _histograms(members: np.ndarray, truth: np.ndarray, area: np.ndarray, low: float, high: float) -> np.ndarray:
    """Area with values in each step from low to high, of members (M, ...) and of truth (...): (2, steps)."""
    valid = np.isfinite(members).all(axis=0) & np.isfinite(truth) & (area > 0)
    weights, per_step = area[valid], _STEPS / (high - low) if high > low else 0.0
    place = lambda values: np.minimum(((values.astype("f8") - low) * per_step).astype("i8"), _STEPS - 1)
    ours = np.bincount(place(members[:, valid]).ravel(), np.tile(weights / len(members), len(members)), _STEPS)
    return np.stack([ours, np.bincount(place(truth[valid]), weights, _STEPS)])


def _inverted(shares: np.ndarray, low: float, high: float, wanted: np.ndarray) -> np.ndarray:
    """Values at which the cumulative shares (steps,) reach the wanted probabilities; NaN where there is nothing."""
    total = shares.sum()
    if not total > 0:
        return np.full(wanted.size, np.nan)
    return np.interp(wanted, np.append(0.0, shares.cumsum() / total), np.linspace(low, high, _STEPS + 1))
