"""How quantities and scores are shown: units, colors and names that a forecaster expects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import xarray as xr

__all__ = [
    "COLORS",
    "STYLES",
    "Shown",
    "Style",
    "field_label",
    "is_relative",
    "metric_label",
    "reference_of",
    "score_shown",
    "style_of",
]

_GRAVITY = 9.80665  # m s-2, standard gravity

# Okabe and Ito 2008, "Color universal design": told apart by people with any color vision
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a variable is shown: ``value * scale + offset`` in ``units``; ends of the color scale are fixed or follow the data."""

    label: str
    units: str
    cmap: str = "viridis"
    scale: float = 1.0
    offset: float = 0.0
    lower: float | None = None
    upper: float | None = None

    @property
    def difference_units(self) -> str:
        """Units of a difference of two values: kelvins for temperatures."""
        return "K" if self.offset else self.units


def _share(label: str, cmap: str) -> Style:
    return Style(label=label, cmap=cmap, units="%", scale=100, lower=0, upper=100)


_SPEED = "m s$^{-1}$"

STYLES: Mapping[str, Style] = {
    "t2m": Style(label="2 m temperature", units="°C", cmap="RdYlBu_r", offset=-273.15),
    "d2m": Style(label="2 m dew point", units="°C", cmap="BrBG", offset=-273.15),
    "wind": Style(label="10 m wind", units=_SPEED, cmap="YlGnBu", lower=0),
    "ws10": Style(label="10 m wind speed", units=_SPEED, cmap="YlGnBu", lower=0),
    "u10": Style(label="10 m eastward wind", units=_SPEED, cmap="PuOr"),
    "v10": Style(label="10 m northward wind", units=_SPEED, cmap="PuOr"),
    "q2m": Style(label="2 m specific humidity", units="g kg$^{-1}$", cmap="YlGnBu", scale=1000, lower=0),
    "r2m": _share("2 m relative humidity", "YlGnBu"),
    "sp": Style(label="surface pressure", units="hPa", cmap="cividis", scale=0.01),
    "msl": Style(label="mean sea level pressure", units="hPa", cmap="cividis", scale=0.01),
    "tcc": _share("total cloud cover", "Blues_r"),
    "lcc": _share("low cloud cover", "Blues_r"),
    "mcc": _share("medium cloud cover", "Blues_r"),
    "hcc": _share("high cloud cover", "Blues_r"),
    "ssrd": Style(label="downward short-wave radiation", units="W m$^{-2}$", cmap="inferno", lower=0),
    "z": Style(label="geopotential height", units="m", scale=1 / _GRAVITY),
    "t": Style(label="temperature", units="°C", cmap="RdYlBu_r", offset=-273.15),
    "u": Style(label="eastward wind", units=_SPEED, cmap="PuOr"),
    "v": Style(label="northward wind", units=_SPEED, cmap="PuOr"),
    "q": Style(label="specific humidity", units="g kg$^{-1}$", cmap="YlGnBu", scale=1000, lower=0),
    "r": _share("relative humidity", "YlGnBu"),
}

_METRICS = {
    "bias": "bias",
    "mae": "MAE",
    "mse": "MSE",
    "rmse": "RMSE",
    "correlation": "correlation",
    "acc": "anomaly correlation",
    "activity": "forecast activity",
    "truth_activity": "activity of the truth",
    "crps": "CRPS",
    "crps_fair": "fair CRPS",
    "spread": "spread",
    "spread_skill": "spread-skill ratio",
}


@dataclass(frozen=True)
class Shown:
    """A number in the units shown: ``value * scale``."""

    units: str
    scale: float


def style_of(name: str, attrs: Mapping) -> Style:
    """The style of a variable; those without one keep their own name and units."""
    return STYLES.get(name) or Style(label=attrs.get("long_name", name), units=attrs.get("units", "no units"))


def field_label(name: str, array: xr.DataArray) -> str:
    """Such as "2 m temperature", or "500 hPa temperature" of an array at one level."""
    label = style_of(name, array.attrs).label
    return f"{float(array['level']):g} hPa {label}" if "level" in array.coords and array["level"].ndim == 0 else label


def metric_label(metric: str, reference: str | None = None) -> str:
    """Such as "RMSE", "RMSE skill", or with a reference "RMSE skill against persistence"."""
    if not is_relative(metric):
        return _METRICS.get(metric, metric.replace("_", " "))
    base, kind = metric.rsplit("_", 1)
    words = kind if reference is None else {"skill": "skill against", "difference": "minus that of"}[kind] + f" {reference}"
    return f"{metric_label(base)} {words}"


def is_relative(metric: str) -> bool:
    """Whether a metric compares with a reference model."""
    return metric.endswith(("_skill", "_difference")) and metric != "spread_skill"


def score_shown(metric: str, name: str, array: xr.DataArray) -> Shown:
    """Units of a metric of a variable: errors of temperatures are in K, skills in percent.

    Parameters
    ----------
    metric, name : str
        Metric and variable.
    array : DataArray
        Scores of the variable, with the coordinate ``dimensionless(metric)``.
    """
    if is_relative(metric) and metric.endswith("_skill"):
        return Shown("%", 100.0)
    if bool(array["dimensionless"].sel(metric=metric)):
        return Shown("1", 1.0)
    style = style_of(name, array.attrs)
    if metric.startswith("mse"):
        return Shown(squared(style.difference_units), style.scale**2)
    return Shown(style.difference_units, style.scale)


def squared(units: str) -> str:
    """Units squared, for labels."""
    return f"({units})$^2$" if " " in units else f"{units}$^2$"


def reference_of(array: xr.DataArray) -> str | None:
    """The model that others were compared with: all its differences are zero; None if none was."""
    metrics = [metric for metric in array["metric"].values.tolist() if metric.endswith("_difference")]
    if not metrics or "model" not in array.dims:
        return None
    differences = array.sel(metric=metrics[0])
    zero = ((differences == 0) | differences.isnull()).all([dim for dim in differences.dims if dim != "model"])
    return next((str(model) for model in array["model"].values[zero.values]), None)
