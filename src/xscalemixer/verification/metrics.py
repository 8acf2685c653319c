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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import xarray as xr

__all__ = ["METRICS", "ROOTED", "Metric", "average", "crps", "field_means"]

_BLOCK = 2**18  # cells looked at together: bounds the memory of temporaries


@dataclass(frozen=True)
class Metric:
    """How a metric follows from averaged area means.

    Attributes
    ----------
    means : tuple of str
        Area means it is made of, see `field_means` and `crps`.
    finish : callable
        ``finish(averages)``, with one DataArray for each of the area means, and ``members``.
    units : "same", "square" or "1"
    needs : "climatology", "members" or None
    is_error : bool
        Smaller is better and 0 is perfect: a skill and a difference of two models make sense.
    """

    means: tuple[str, ...]
    finish: Callable[[Mapping[str, xr.DataArray]], xr.DataArray]
    units: Literal["same", "square", "1"] = "same"
    needs: Literal["climatology", "members"] | None = None
    is_error: bool = False


def _same(name: str, **kwargs) -> Metric:
    return Metric((name,), lambda mean: mean[name], **kwargs)


def _root(name: str, **kwargs) -> Metric:
    return Metric((name,), lambda mean: np.sqrt(mean[name]), **kwargs)


def _spread_skill(mean: Mapping[str, xr.DataArray]) -> xr.DataArray:
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


def average(mean: xr.DataArray, name: str, average_over: Callable[[xr.DataArray], xr.DataArray], root: str) -> xr.DataArray:
    """Average an area mean over fields; ``root="before"`` averages the roots of squared quantities instead, and squares that."""
    if name in ROOTED and root == "before":
        return average_over(np.sqrt(mean)) ** 2
    return average_over(mean)


def field_means(
    names: tuple[str, ...],
    forecast: xr.DataArray,
    truth: xr.DataArray,
    area: xr.DataArray,
    climatology: xr.DataArray | None = None,
) -> dict[str, xr.DataArray]:
    """Area means of each field, all in one pass over the data; lazy where these are.

    Parameters
    ----------
    names : tuple of str
        Of "bias", "mae", "mse", "correlation", "variance", and with a climatology "acc", "activity", "truth_activity".
    forecast : xr.DataArray
        With the dims of ``truth``, and ``member`` or not.
    truth, climatology : xr.DataArray
    area : xr.DataArray
        Weights, with the two horizontal dims, or ones with the dim ``station``.

    Returns
    -------
    dict
        One DataArray for each name without the horizontal dims; ``share``: the share (0..1) of the area with values; and
        ``weight``: how much the field counts in averages over fields, 1 on grids and the number of reports at stations, 0
        where there is no value.
    """
    members = ("member",) if "member" in forecast.dims else ()
    arrays = [forecast, truth, area] + ([climatology] if climatology is not None else [])
    cores = [(*members, *area.dims)] + [area.dims] * (len(arrays) - 1)
    arrays = [array.chunk(dict.fromkeys(core, -1)) if array.chunks else array for array, core in zip(arrays, cores, strict=True)]
    names = ("share", "weight", *names)
    means = xr.apply_ufunc(
        partial(_means, names, bool(members), area.ndim),
        *arrays,
        input_core_dims=cores,
        output_core_dims=[("mean",)],
        dask="parallelized",
        dask_gufunc_kwargs={"output_sizes": {"mean": len(names)}},
        output_dtypes=[np.float64],
    )
    return {name: means.isel(mean=i) for i, name in enumerate(names)}


def _means(names: tuple[str, ...], has_members: bool, ndim: int, forecast, truth, area, climatology=None) -> np.ndarray:
    """Fields of shape (..., [M], *places) and (..., *places) to means of shape (..., len(names)), a block of fields at a time."""
    kept = has_members + ndim
    lead = np.broadcast_shapes(truth.shape[:-ndim], forecast.shape[:-kept])

    def flat(array: np.ndarray, kept: int) -> np.ndarray:
        """Shape (N, [M], places)."""
        own = array.shape[-kept:]
        return np.broadcast_to(array, lead + own).reshape(-1, *own[: kept - ndim], area.size)

    forecast, truth = flat(forecast, kept), flat(truth, ndim)
    climatology = None if climatology is None else flat(climatology, ndim)
    out = np.empty((len(truth), len(names)))
    step = max(1, _BLOCK // max(1, forecast[:1].size))
    for start in range(0, len(truth), step):
        block = slice(start, start + step)
        fields = forecast[block].astype("f8"), truth[block].astype("f8")
        background = None if climatology is None else climatology[block].astype("f8")
        means = _block_means(*fields, area.ravel(), background, has_members)
        means["weight"] = partial(_field_weight, means["share"](), area.size if ndim == 1 else None)
        out[block] = np.stack([means[name]() for name in names], axis=-1)
    return out.reshape(*lead, len(names))


def _field_weight(share: np.ndarray, stations: int | None) -> np.ndarray:
    return np.where(share > 0, 1.0, 0.0) if stations is None else np.round(share * stations)


def _block_means(forecast, truth, area, climatology, has_members: bool) -> dict[str, Callable[[], np.ndarray]]:
    """One function for each area mean, so that only what is asked for is computed."""
    center = forecast.mean(axis=1) if has_members else forecast
    valid = np.isfinite(center) & np.isfinite(truth)
    mean, share = _weighted_mean(valid, area)
    error = center - truth
    out = {
        "share": lambda: share,
        "bias": lambda: mean(error),
        "mae": lambda: mean(np.abs(error)),
        "mse": lambda: mean(error**2),
        "correlation": lambda: _correlation(_centered(center, mean), _centered(truth, mean), mean),
        "variance": lambda: mean(forecast.var(axis=1, ddof=1)) if has_members else np.full(len(truth), np.nan),
    }
    if climatology is None:
        return out
    known, _ = _weighted_mean(valid & np.isfinite(climatology), area)
    anomaly, truth_anomaly = center - climatology, truth - climatology
    return out | {
        "acc": lambda: _correlation(anomaly, truth_anomaly, known),
        "activity": lambda: known(_centered(anomaly, known) ** 2),
        "truth_activity": lambda: known(_centered(truth_anomaly, known) ** 2),
    }


def _weighted_mean(valid: np.ndarray, area: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
    """A function that averages over valid places, (N, P) -> (N,), NaN where there is none; and their share of the area."""
    weights = np.where(valid, area, 0.0)
    total = weights.sum(axis=-1)
    weights /= np.where(total > 0, total, np.nan)[:, None]
    everywhere = valid.all()
    mean = lambda values: np.einsum("np,np->n", values if everywhere else np.where(valid, values, 0.0), weights)
    return mean, total / area.sum()


def _centered(values: np.ndarray, mean: Callable) -> np.ndarray:
    return values - mean(values)[:, None]


def _correlation(one: np.ndarray, other: np.ndarray, mean: Callable) -> np.ndarray:
    scale = np.sqrt(mean(one**2) * mean(other**2))
    return mean(one * other) / np.where(scale > 0, scale, np.nan)


def crps(forecast: xr.DataArray, truth: xr.DataArray, area: xr.DataArray) -> dict[str, xr.DataArray]:
    """Area means of the plain and the fair CRPS of each field, by `scores.probability.crps_for_ensemble`.

    A cell where any member is missing does not count. Members enter as their difference to the truth, which changes nothing
    but the rounding: pressures in float32 would lose it all.

    Returns
    -------
    dict
        "crps", and "crps_fair" (NaN for one member).
    """
    from scores.probability import crps_for_ensemble

    error = (forecast - truth).astype("f8")
    error = error.where(error.notnull().all("member"))
    kept = [dim for dim in truth.dims if dim not in area.dims]
    keywords = {"weights": area, "preserve_dims": kept, "include_components": True}
    parts = crps_for_ensemble(error, xr.zeros_like(error.isel(member=0, drop=True)), "member", **keywords)
    plain, spread = (parts.sel(component=name, drop=True) for name in ("total", "spread"))
    number = forecast.sizes["member"]
    # the spread terms differ by the factor M / (M - 1)
    return {"crps": plain, "crps_fair": plain - spread / (number - 1) if number > 1 else plain * np.nan}
