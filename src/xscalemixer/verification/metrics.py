r"""Metrics: means over the area or the stations of one field each, and what follows from their averages over many fields.

Notation: forecast :math:`f` (the mean of the members, if there are any), truth :math:`a`, climatology :math:`c`, anomalies
:math:`f' = f - c` and :math:`a' = a - c`, members :math:`x_1 .. x_M`. :math:`\langle \cdot \rangle` is the mean over the cells
of one field, weighted with the area of each cell (half-cell bounds of the actual grid; cells where either side has no value
count nowhere), and :math:`E` the mean over fields, each of which counts the same. At stations all reports have the weight 1 in
:math:`\langle \cdot \rangle`, and a field counts in :math:`E` as often as it has reports, so that both together are the mean
over all reports. Units are those of the variable, or 1.

============== ============================================================================ ====== =============
metric         formula                                                                      units  reference
============== ============================================================================ ====== =============
bias           :math:`E \langle f - a \rangle`                                              same   [1]_
mae            :math:`E \langle |f - a| \rangle`                                            same   [1]_
mse            :math:`E \langle (f - a)^2 \rangle`                                          square [1]_
rmse           :math:`\sqrt{E \langle (f - a)^2 \rangle}`                                   same   [2]_
correlation    :math:`E` of the centered correlation of f and a over the cells of a field   1      [1]_
acc            :math:`E [\langle f'a' \rangle / \sqrt{\langle f'^2 \rangle \langle          1      [2]_
               a'^2 \rangle}]`
activity       :math:`\sqrt{E \langle (f' - \langle f' \rangle)^2 \rangle}`                 same   [2]_
truth_activity the same of a                                                                same
crps           :math:`E \langle \sum_i |x_i - a| / M - \sum_{ij} |x_i - x_j| / (2 M^2)      same   [3]_
               \rangle`; the mae for one member
crps_fair      the same with :math:`M (M - 1)` for :math:`M^2`                              same   [4]_
spread         :math:`\sqrt{E \langle \sum_i (x_i - f)^2 / (M - 1) \rangle}`                same   [5]_
spread_skill   :math:`\sqrt{(M + 1) / M}` spread / rmse; 1 if reliable                      1      [5]_
============== ============================================================================ ====== =============

.. [1] Wilks 2011, Statistical Methods in the Atmospheric Sciences, 3rd edition, chapter 8.
.. [2] Rasp et al. 2024, WeatherBench 2, doi:10.1029/2023MS004019.
.. [3] Hersbach 2000, doi:10.1175/1520-0434(2000)015<0559:DOTCRP>2.0.CO;2.
.. [4] Ferro 2014, doi:10.1002/qj.2270.
.. [5] Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import xarray as xr

__all__ = ["CELLWISE", "METRICS", "ROOTED", "Metric", "average", "field_means", "place_sums"]

_BLOCK = 2**18  # values looked at together: bounds the memory of temporaries
_ROUNDING = 8  # steps of the floating-point numbers of the data, below which the standard deviation of a field is rounding


@dataclass(frozen=True)
class Metric:
    """How a metric follows from averaged area means.

    Attributes
    ----------
    means : tuple of str
        Area means it is made of, see `field_means`.
    finish : callable
        ``finish(averages)``, with one Dataset for each of the area means, and the DataArray ``members``.
    units : "same", "square" or "1"
    needs : "climatology", "members" or None
    is_error : bool
        Smaller is better and 0 is perfect: a skill and a difference of two models make sense.
    """

    means: tuple[str, ...]
    finish: Callable[[Mapping[str, Any]], xr.Dataset]
    units: Literal["same", "square", "1"] = "same"
    needs: Literal["climatology", "members"] | None = None
    is_error: bool = False


def _same(name: str, **kwargs) -> Metric:
    return Metric((name,), lambda mean: mean[name], **kwargs)


def _root(name: str, **kwargs) -> Metric:
    return Metric((name,), lambda mean: np.sqrt(mean[name]), **kwargs)


def _spread_skill(mean: Mapping[str, Any]) -> xr.Dataset:
    return np.sqrt((mean["members"] + 1) / mean["members"] * mean["variance"] / mean["mse"])


METRICS: Mapping[str, Metric] = {
    "bias": _same("bias"),
    "mae": _same("mae", is_error=True),
    "mse": _same("mse", units="square", is_error=True),
    "rmse": _root("mse", is_error=True),
    "correlation": _same("correlation", units="1"),
    "acc": _same("acc", units="1", needs="climatology"),
    "activity": _root("activity", needs="climatology"),
    "truth_activity": _root("truth_activity", needs="climatology"),
    "crps": _same("crps", is_error=True),
    "crps_fair": _same("crps_fair", needs="members", is_error=True),
    "spread": _root("variance", needs="members"),
    "spread_skill": Metric(("mse", "variance"), _spread_skill, units="1", needs="members"),
}
ROOTED = ("mse", "activity", "truth_activity", "variance")
CELLWISE = ("bias", "mae", "mse", "variance", "crps", "crps_fair")  # what a single cell has; the others need a field


def average(mean: xr.Dataset, name: str, average_over: Callable[[xr.Dataset], xr.Dataset], root: str) -> xr.Dataset:
    """Average an area mean over fields; ``root="before"`` averages the roots of squared quantities instead, and squares that."""
    if name in ROOTED and root == "before":
        return average_over(xr.ufuncs.sqrt(mean)) ** 2
    return average_over(mean)


def field_means(
    names: tuple[str, ...],
    forecast: xr.DataArray,
    truth: xr.DataArray,
    area: xr.DataArray,
    climatology: xr.DataArray | None = None,
) -> xr.DataArray:
    """Area means of each field, all in one pass over the data; lazy where these are.

    Parameters
    ----------
    names : tuple of str
        Of "bias", "mae", "mse", "correlation", "variance", "crps", "crps_fair", and with a climatology "acc", "activity",
        "truth_activity".
    forecast : xr.DataArray
        With the dims of ``truth``, and ``member`` or not.
    truth, climatology : xr.DataArray
    area : xr.DataArray
        Weights, with the two horizontal dims, or ones with the dim ``station``.

    Returns
    -------
    xr.DataArray
        The dims of ``truth`` without those of ``area``, then ``mean``: ``share``, which is the share (0..1) of the area with
        values; ``weight``, which is how much the field counts in averages over fields, 1 on grids and the number of reports
        at stations, 0 where there is no value; and the names.
    """
    members = ("member",) if "member" in forecast.dims else ()
    arrays = [forecast, truth, area] + ([climatology] if climatology is not None else [])
    cores = [(*members, *area.dims)] + [area.dims] * (len(arrays) - 1)
    arrays = [array.chunk(dict.fromkeys(core, -1)) if array.chunks else array for array, core in zip(arrays, cores, strict=True)]
    names = ("share", "weight", *names)
    return xr.apply_ufunc(
        partial(_means, names, bool(members)),
        *arrays,
        input_core_dims=cores,
        output_core_dims=[("mean",)],
        dask="parallelized",
        dask_gufunc_kwargs={"output_sizes": {"mean": len(names)}},
        output_dtypes=[np.float64],
    ).assign_coords(mean=list(names))


def place_sums(
    names: tuple[str, ...],
    forecast: xr.DataArray,
    truth: xr.DataArray,
    valid: xr.DataArray,
    cells: tuple[Hashable, ...],
    root: str,
) -> xr.DataArray:
    """Sums over the starts of what `CELLWISE` names at each cell, and how many values there were; lazy where the data are.

    Parameters
    ----------
    names : tuple of str
        Of `CELLWISE`.
    forecast : xr.DataArray
        With the dims of ``truth``, and ``member`` or not.
    truth : xr.DataArray
    valid : xr.DataArray
        True where a value counts; the dims of ``truth``.
    cells : tuple of Hashable
        Horizontal dims.
    root : "after" or "before"
        Sum squared quantities, or their roots.

    Returns
    -------
    xr.DataArray
        The dims of ``truth`` without ``reference_time``, then ``mean``: the names, and ``count``.
    """
    members = ("member",) if "member" in forecast.dims else ()
    plain = ("reference_time", *cells)
    cores = [("reference_time", *members, *cells), plain, plain]
    arrays = [forecast, truth, valid]
    arrays = [array.chunk(dict.fromkeys(core, -1)) if array.chunks else array for array, core in zip(arrays, cores, strict=True)]
    return xr.apply_ufunc(
        partial(_sums, names, bool(members), root, len(cells)),
        *arrays,
        input_core_dims=cores,
        output_core_dims=[(*cells, "mean")],
        dask="parallelized",
        dask_gufunc_kwargs={"output_sizes": {"mean": len(names) + 1}},
        output_dtypes=[np.float64],
    ).assign_coords(mean=[*names, "count"])


def _means(names: tuple[str, ...], has_members: bool, forecast, truth, area, climatology=None) -> np.ndarray:
    """Fields of shape (..., [M], *cells) and (..., *cells) to means of shape (..., len(names)), a block of fields at a time."""
    lead = np.broadcast_shapes(truth.shape[: -area.ndim], forecast.shape[: -area.ndim - has_members])
    flat = lambda array: np.broadcast_to(array, lead + area.shape).reshape(-1, area.size)
    members = forecast.shape[-area.ndim - 1] if has_members else 1
    forecast = np.broadcast_to(forecast, lead + (members,) * has_members + area.shape).reshape(-1, members, area.size)
    stations = area.size if area.ndim == 1 else None
    step_size = max(np.finfo(np.result_type(array, np.float32)).eps for array in (forecast, truth))
    truth, area, climatology = flat(truth), area.ravel(), None if climatology is None else flat(climatology)
    out = np.empty((len(truth), len(names)))
    step = max(1, _BLOCK // max(1, members * area.size))
    for start in range(0, len(truth), step):
        block = slice(start, start + step)
        background = None if climatology is None else climatology[block].astype("f8")
        means = _block_means(names, forecast[block], truth[block].astype("f8"), area, background, step_size)
        means["weight"] = partial(_field_weight, means["share"](), stations)
        out[block] = np.stack([means[name]() for name in names], axis=-1)
    return out.reshape(*lead, len(names))


def _field_weight(share: np.ndarray, stations: int | None) -> np.ndarray:
    return np.where(share > 0, 1.0, 0.0) if stations is None else np.round(share * stations)


def _sums(names: tuple[str, ...], has_members: bool, root: str, number: int, forecast, truth, valid) -> np.ndarray:
    """Fields (..., R, [M], *cells) and (..., R, *cells), with ``number`` dims of cells, to sums (..., *cells, len(names) + 1)."""
    cells, starts, lead = truth.shape[-number:], truth.shape[-number - 1], truth.shape[: -number - 1]
    members, size = forecast.shape[-number - 1] if has_members else 1, int(np.prod(cells))
    forecast = forecast.reshape(-1, starts, members, size)
    truth, valid = truth.reshape(-1, starts, size), valid.reshape(-1, starts, size)
    out = np.zeros((len(truth), size, len(names) + 1))
    step = max(1, _BLOCK // max(1, members * size))
    for field, start in itertools.product(range(len(truth)), range(0, starts, step)):
        block = field, slice(start, start + step)
        values = _cell_values(names, forecast[block], truth[block].astype("f8"))
        for i, name in enumerate(names):
            value = np.sqrt(values[name]) if root == "before" and name in ROOTED else values[name]
            out[field, :, i] += np.where(valid[block], value, 0.0).sum(axis=0)
        out[field, :, -1] += valid[block].sum(axis=0)
    return out.reshape(*lead, *cells, len(names) + 1)


def _block_means(names, forecast, truth, area, climatology, step_size: float) -> dict[str, Callable[[], np.ndarray]]:
    """One function for each area mean, so that only what is asked for is computed."""
    cells = _cell_values(tuple(name for name in names if name in CELLWISE), forecast, truth)
    valid = np.isfinite(cells["bias"])
    mean, share = _weighted_mean(valid, area)
    out: dict[str, Callable[[], np.ndarray]] = {name: partial(mean, field) for name, field in cells.items()}
    out["share"] = lambda: share
    values, rounding = truth + cells["bias"], (_ROUNDING * step_size) ** 2
    least = lambda: rounding * mean(values**2 + truth**2)
    out["correlation"] = lambda: _correlation(_centered(values, mean), _centered(truth, mean), mean, least())
    if climatology is None:
        return out
    known, _ = _weighted_mean(valid & np.isfinite(climatology), area)
    truth_anomaly = truth - climatology
    anomaly = truth_anomaly + cells["bias"]
    return out | {
        "acc": lambda: _correlation(anomaly, truth_anomaly, known, rounding * known(truth**2 + climatology**2)),
        "activity": lambda: known(_centered(anomaly, known) ** 2),
        "truth_activity": lambda: known(_centered(truth_anomaly, known) ** 2),
    }


def _cell_values(names: tuple[str, ...], forecast: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Quantities of `CELLWISE` and in any case the bias; (N, M, cells) and (N, cells), float64, to (N, cells) each.

    Members enter as their difference to the truth, which changes nothing but the rounding. They are looked at in blocks of
    cells, so that memory does not grow with their number.
    """
    members, cells = forecast.shape[1:]
    names = tuple(dict.fromkeys(("bias", *names)))
    if members == 1:
        return _of_errors(names, forecast - truth[:, None])
    step = max(1, _BLOCK // (len(forecast) * members))
    blocks = [slice(start, start + step) for start in range(0, cells, step)]
    parts = [_of_errors(names, forecast[..., block] - truth[:, None, block]) for block in blocks]
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in names}


def _of_errors(names: tuple[str, ...], errors: np.ndarray) -> dict[str, np.ndarray]:
    r"""Quantities of `CELLWISE` from the errors of the members, (N, M, cells) to (N, cells).

    With the errors in ascending order, :math:`\sum_{ij} |x_i - x_j| / 2 = \sum_i (2 i - M - 1) x_i`: as many operations as
    sorting takes, not the square of the number of members.
    """
    members = errors.shape[1]
    error = errors.mean(axis=1) if members > 1 else errors[:, 0]
    out = {"bias": error}
    if "mae" in names:
        out["mae"] = np.abs(error)
    if "mse" in names:
        out["mse"] = error**2
    if "variance" in names:
        out["variance"] = errors.var(axis=1, ddof=1) if members > 1 else np.full_like(error, np.nan)
    if "crps" in names or "crps_fair" in names:
        rank = 2.0 * np.arange(members) - (members - 1)
        pairs = np.einsum("m,nmc->nc", rank, np.sort(errors, axis=1))
        distance = np.abs(errors).mean(axis=1)
        out["crps"] = distance - pairs / members**2
        out["crps_fair"] = distance - pairs / (members * (members - 1)) if members > 1 else np.full_like(error, np.nan)
    return {name: out[name] for name in names}


def _weighted_mean(valid: np.ndarray, area: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
    """A function that averages over valid cells, (N, cells) -> (N,), NaN where there is none; and their share of the area."""
    if valid.all():
        weights = area / area.sum()
        return lambda values: np.einsum("nc,c->n", values, weights), np.ones(len(valid))
    weights = np.where(valid, area, 0.0)
    total = weights.sum(axis=-1)
    weights /= np.where(total > 0, total, np.nan)[:, None]
    return lambda values: np.einsum("nc,nc->n", np.where(valid, values, 0.0), weights), total / area.sum()


def _centered(values: np.ndarray, mean: Callable) -> np.ndarray:
    """Values minus their mean, twice: the rounding of a sum grows with the number of cells, that of the second one does not."""
    rest = values - mean(values)[:, None]
    return rest - mean(rest)[:, None]


def _correlation(one: np.ndarray, other: np.ndarray, mean: Callable, least: np.ndarray) -> np.ndarray:
    """NaN where the mean square of either is no more than ``least``, that of rounding."""
    squares = mean(one**2), mean(other**2)
    varies = (squares[0] > least) & (squares[1] > least)
    return mean(one * other) / np.sqrt(np.where(varies, squares[0] * squares[1], np.nan))
