"""Pictures of forecasts, scores and diagnostics; `plot` finds the one that fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import xarray as xr

from xscalemixer.conform import require_dataset
from xscalemixer.errors import InputError
from xscalemixer.plotting.diagnostics import plot_quantiles, plot_ranks, plot_reliability, plot_spectrum
from xscalemixer.plotting.maps import plot_maps, plot_overview
from xscalemixer.plotting.scores import plot_curves, plot_score_maps, plot_scorecard

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

__all__ = [
    "plot",
    "plot_curves",
    "plot_maps",
    "plot_overview",
    "plot_quantiles",
    "plot_ranks",
    "plot_reliability",
    "plot_score_maps",
    "plot_scorecard",
    "plot_spectrum",
]

Kind = Literal["maps", "curves", "scorecard", "score_maps", "reliability", "ranks", "quantiles", "spectrum"]
_KINDS: Mapping[str, Callable[..., Axes | np.ndarray]] = {
    "maps": plot_maps,
    "curves": plot_curves,
    "scorecard": plot_scorecard,
    "score_maps": plot_score_maps,
    "reliability": plot_reliability,
    "ranks": plot_ranks,
    "quantiles": plot_quantiles,
    "spectrum": plot_spectrum,
}


def plot(ds: xr.Dataset | Mapping[str, xr.Dataset], *args, kind: Kind | None = None, **kwargs) -> Axes | np.ndarray:
    """Draw the picture that fits a dataset.

    ================================= ================ =====================================================================
    dataset                           kind             function of `xscalemixer.plotting`
    ================================= ================ =====================================================================
    forecast                          ``maps``         ``plot_maps(fc, variable="t2m", lead_time=None, ...)``
    scores                            ``curves``       ``plot_curves(sc, variables=None, metric=None, ...)``
    scores with ``skill_against``     ``scorecard``    ``plot_scorecard(sc, variables=None, metric="rmse")``
    scores by place                   ``score_maps``   ``plot_score_maps(sc, variable=None, metric=None, lead_time=None, ...)``
    reliability                       ``reliability``  ``plot_reliability(ds, lead_time=None)``
    rank histogram                    ``ranks``        ``plot_ranks(ds, variables=None, lead_time=None, ...)``
    quantiles                         ``quantiles``    ``plot_quantiles(ds, variables=None, lead_time=None, ...)``
    one or more power spectra         ``spectrum``     ``plot_spectrum(ds, variables=None, lead_time=None, ...)``
    ================================= ================ =====================================================================

    Parameters
    ----------
    ds : Dataset, or dict of Dataset for power spectra
    kind : str, optional
        Of the table; default by the dims of the dataset, for scores by lead time ``curves``.
    *args, **kwargs
        Those of the function.

    Returns
    -------
    matplotlib Axes, or an array of them

    Raises
    ------
    InputError
        If there is no such kind, the function takes no such argument, or, of the function, what was asked for is not there.
    """
    from inspect import signature

    if kind is not None and kind not in _KINDS:
        raise InputError("no such picture", [f"kind={kind!r}; needed one of {', '.join(_KINDS)}"])
    chosen = kind or _kind(ds)
    takes = signature(_KINDS[chosen])
    try:
        takes.bind(ds, *args, **kwargs)
    except TypeError as error:
        known = ", ".join(list(takes.parameters)[1:])
        scores = (
            ". metric= belongs to scores: xsm.plot(xsm.score(fc, truth), ...)" if chosen == "maps" and "metric" in kwargs else ""
        )
        raise InputError("no such picture", [f"{error}; kind={chosen!r} takes {known}{scores}"]) from None
    return _KINDS[chosen](ds, *args, **kwargs)


def _kind(ds: xr.Dataset | Mapping[str, xr.Dataset]) -> Kind:
    """The picture that the dims of a dataset ask for."""
    if isinstance(ds, Mapping) and not isinstance(ds, xr.Dataset):
        return "spectrum"
    require_dataset(ds)
    if "metric" in ds.dims:
        return "score_maps" if {"latitude", "y", "station"} & set(ds.dims) else "curves"
    kinds: dict[str, Kind] = {"probability": "reliability", "rank": "ranks", "quantile": "quantiles", "wavenumber": "spectrum"}
    return next((kind for dim, kind in kinds.items() if dim in ds.dims), "maps")
