"""Pictures of diagnostics: reliability, ranks, quantiles and spectra."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from xscalemixer.errors import SchemaError
from xscalemixer.plotting.axes import choose_leads, fields, panels, ranges
from xscalemixer.plotting.styles import COLORS, field_label, squared, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_quantiles", "plot_ranks", "plot_reliability", "plot_spectrum"]

_NAMED = (0.01, 0.5, 0.99)  # quantiles with a name in the picture


def plot_reliability(ds: xr.Dataset, lead_time: int | Iterable[int] | None = None) -> np.ndarray:
    """Draw a reliability diagram above the number of cases by forecast probability: a line for each threshold.

    On the diagonal, events happen as often as forecast; dotted is how often they happen at all.

    Parameters
    ----------
    ds : Dataset
        From `xscalemixer.verification.reliability`.
    lead_time : int or several, optional
        Hours whose cases are taken together; default all.

    Returns
    -------
    array of matplotlib Axes, shape (2,)
        The diagram and the histogram.

    Raises
    ------
    SchemaError, TimeError
        If there is no such lead time, or more than one level.
    """
    import matplotlib.pyplot as plt

    if ds.sizes.get("level", 1) > 1:
        raise SchemaError(
            "one diagram shows one level", [f"found {ds['level'].values.tolist()} hPa. Select with .sel(level=...)"]
        )
    ds = ds.squeeze("level", drop=True) if "level" in ds.dims else ds
    ds, leads = _of_leads(ds, lead_time)
    count = ds["count"].sum("lead_time")
    mean = lambda name: (ds[name] * ds["count"]).sum("lead_time") / count.where(count > 0)
    probability, observed = mean("forecast_probability"), mean("observed_frequency")
    climate = (observed * count).sum("probability") / count.sum("probability")
    keywords = {"height_ratios": [3, 1], "figsize": (5.6, 7.2), "layout": "constrained", "sharex": True}
    figure, axes = plt.subplots(2, 1, **keywords)
    axes[0].plot([0, 1], [0, 1], "--", color="0.5", linewidth=1, label="perfectly reliable")
    width = 1 / ds.sizes["probability"] / ds.sizes["threshold"]
    for i, level in enumerate(ds["threshold"].values):
        color = COLORS[i % len(COLORS)]
        picked = {"threshold": level}
        line = probability.sel(picked), observed.sel(picked)
        axes[0].plot(*line, "o-", color=color, markersize=4, label=_event(ds, level))
        axes[0].axhline(float(climate.sel(picked)), color=color, linestyle=":", linewidth=1)
        places = ds["probability"] + (i - (ds.sizes["threshold"] - 1) / 2) * width
        axes[1].bar(places, count.sel(picked), width * 0.9, color=color)
    axes[0].plot([], [], ":", color="0.3", linewidth=1, label="observed on average")
    axes[0].set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", ylabel="observed relative frequency [1]")
    axes[0].legend(fontsize="small", loc="upper left")
    axes[1].set(xlabel="forecast probability [1]", ylabel="number of cases", yscale="log")
    for panel in axes:
        panel.grid(alpha=0.3)
    name = style_of(ds.attrs["variable"], {}).label if "variable" in ds.attrs else ""
    figure.suptitle(f"Reliability of {name}, {leads}\n{ds.attrs.get('sample', '')}", fontsize="medium")
    return axes


def plot_ranks(
    ds: xr.Dataset,
    variables: str | Iterable[str] | None = None,
    lead_time: int | Iterable[int] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes | np.ndarray:
    """Draw rank histograms: a panel for each variable and level, with the flat line of a reliable ensemble.

    There is no band of what chance would do: neighboring cells are not independent, and how many are is not known.

    Parameters
    ----------
    ds : Dataset
        From `xscalemixer.verification.rank_histogram`.
    variables : str or several, optional
        Default: all.
    lead_time : int or several, optional
        Hours whose mean is shown; default all.
    ax : matplotlib Axes, optional
        Where to draw a single panel.

    Returns
    -------
    matplotlib Axes, or an array of them unless ``variables`` is a name and one panel was drawn

    Raises
    ------
    SchemaError, TimeError
        If there is no such variable or lead time.
    """
    ds, leads = _of_leads(ds, lead_time)
    chosen = fields(ds, variables, "rank")
    axes = panels(len(chosen), (3.6, 2.8), ax)
    number = ds.sizes["rank"]
    for panel, (name, array) in zip(axes, chosen, strict=True):
        panel.bar(array["rank"], array.mean("lead_time"), 0.92, color=COLORS[0])
        panel.axhline(1 / number, color=COLORS[1], linestyle="--", label="reliable")
        panel.set(xlabel=f"rank of the truth among {number - 1} members", ylabel="relative frequency [1]")
        panel.set_title(field_label(name, array), fontsize="medium")
        panel.set_xticks(*[np.unique(np.linspace(1, number, min(number, 11)).round().astype(int))] * 1)
        panel.set_xlim(0.4, number + 0.6)
    axes[0].legend(fontsize="small", loc="lower center")
    return _finished(axes, variables, ax, f"Rank histogram, {leads}\n{ds.attrs.get('sample', '')}")


def plot_quantiles(
    ds: xr.Dataset,
    variables: str | Iterable[str] | None = None,
    lead_time: int | Iterable[int] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes | np.ndarray:
    """Draw quantiles of the forecast against those of the truth: a panel for each variable and level.

    Parameters
    ----------
    ds : Dataset
        From `xscalemixer.verification.quantiles`.
    variables : str or several, optional
        Default: all.
    lead_time : int or several, optional
        Hours, a line each; default the first and the last.
    ax : matplotlib Axes, optional
        Where to draw a single panel.

    Returns
    -------
    matplotlib Axes, or an array of them unless ``variables`` is a name and one panel was drawn

    Raises
    ------
    SchemaError, TimeError
        If there is no such variable or lead time.
    """
    there = ds["lead_time"].values.tolist()
    leads = choose_leads(lead_time, there, sorted({there[0], there[-1]}))
    chosen = fields(ds, variables, "quantile")
    axes = panels(len(chosen), (3.8, 3.6), ax)
    for panel, (name, array) in zip(axes, chosen, strict=True):
        style = style_of(name, array.attrs)
        values = array.sel(lead_time=leads) * style.scale + style.offset
        truth, forecast = values.sel(source="truth"), values.sel(source="forecast")
        panel.axline((float(truth.mean()),) * 2, slope=1, color="0.5", linestyle="--", linewidth=1)
        for i, lead in enumerate(leads):
            line = truth.sel(lead_time=lead), forecast.sel(lead_time=lead)
            panel.plot(*line, "o-", color=COLORS[i % len(COLORS)], markersize=3.5, linewidth=1, label=f"+{lead} h")
        _name_quantiles(panel, truth.sel(lead_time=leads[0]), forecast.sel(lead_time=leads[0]))
        panel.set(xlabel=f"truth [{style.units}]", ylabel=f"forecast [{style.units}]")
        panel.set_title(field_label(name, array), fontsize="medium")
        panel.grid(alpha=0.3)
    axes[0].legend(fontsize="small", loc="upper left")
    ends = ds["quantile"].values
    span = f"{100 * ends.min():g} % to {100 * ends.max():g} %"
    return _finished(axes, variables, ax, f"Quantiles from {span}\n{ds.attrs.get('sample', '')}")


def plot_spectrum(
    ds: xr.Dataset | Mapping[str, xr.Dataset],
    variables: str | Iterable[str] | None = None,
    lead_time: int | Iterable[int] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes | np.ndarray:
    """Draw variance by horizontal scale: a panel for each variable and level, a line for each dataset and lead time.

    Parameters
    ----------
    ds : Dataset or dict of Dataset
        From `xscalemixer.verification.power_spectrum`; of several, such as ``{"forecast": ..., "truth": ...}``, those
        variables are drawn that the first one has. Means over starts, times and members are shown.
    variables : str or several, optional
        Default: all.
    lead_time : int or several, optional
        Hours, a line each; default their mean.
    ax : matplotlib Axes, optional
        Where to draw a single panel.

    Returns
    -------
    matplotlib Axes, or an array of them unless ``variables`` is a name and one panel was drawn

    Raises
    ------
    SchemaError, TimeError
        If there is no such variable or lead time.
    """
    spectra = {"": ds} if isinstance(ds, xr.Dataset) else dict(ds)
    parts = [fields(one, variables, "wavenumber") for one in spectra.values()]
    chosen = parts[0]
    axes = panels(len(chosen), (4.2, 3.6), ax)
    for i, panel in enumerate(axes):
        name, array = chosen[i]
        lines = [line for label, part in zip(spectra, parts, strict=True) for line in _lines(label, part, name, array, lead_time)]
        style = style_of(name, {**array.attrs, "units": array.attrs.get("units", "").removesuffix("2").strip("()")})
        for number, (label, line) in enumerate(lines):
            power = line.mean([dim for dim in line.dims if dim != "wavenumber"]) * style.scale**2
            panel.loglog(line["wavenumber"], power, color=COLORS[number % len(COLORS)], linewidth=1.5, label=label or None)
        units = "K" if style.offset else style.units
        panel.set(xlabel="wavenumber [km$^{-1}$]", ylabel=f"variance in each ring [{squared(units)}]")
        _add_wavelengths(panel)
        panel.set_title(style.label if "level" not in array.coords else field_label(name, array), fontsize="medium")
        panel.grid(alpha=0.3, which="both", linewidth=0.4)
    if axes[0].get_legend_handles_labels()[1]:
        axes[0].legend(fontsize="small", loc="lower left")
    samples = {label: int(np.prod([size for dim, size in part[0][1].sizes.items() if dim != "wavenumber"]))
               for label, part in zip(spectra, parts, strict=True)}  # fmt: skip
    counts = ", ".join(f"{number} {label} fields".replace("  ", " ") for label, number in samples.items())
    return _finished(axes, variables, ax, f"Variance by scale, mean of {counts}")


def _lines(label: str, part, name: str, like: xr.DataArray, lead_time) -> list[tuple[str, xr.DataArray]]:
    """Lines of one dataset in the panel of a variable and level: (label, spectra)."""
    level = like.coords.get("level")
    same = [array for other, array in part if other == name and (level is None or float(array["level"]) == float(level))]
    if not same or lead_time is None or "lead_time" not in same[0].dims:
        return [(label, array) for array in same]
    leads = choose_leads(lead_time, same[0]["lead_time"].values.tolist(), [])
    return [(f"{label} +{lead} h".strip(), same[0].sel(lead_time=lead)) for lead in leads]


def _add_wavelengths(panel: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    inverse = lambda value: 1 / np.maximum(value, 1e-9)
    top = panel.secondary_xaxis("top", functions=(inverse, inverse))
    top.set_xlabel("wavelength [km]")
    top.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    top.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    top.xaxis.set_minor_formatter(NullFormatter())


def _of_leads(ds: xr.Dataset, lead_time) -> tuple[xr.Dataset, str]:
    """The lead times asked for, and their name."""
    there = ds["lead_time"].values.tolist()
    leads = choose_leads(lead_time, there, there)
    return ds.sel(lead_time=leads), f"lead time {ranges(leads)} h"


def _event(ds: xr.Dataset, level: float) -> str:
    name = ds.attrs.get("variable", "")
    style = style_of(name, {"units": ds["threshold"].attrs.get("units", "")})
    return f"at or above {level * style.scale + style.offset:.4g} {style.units}"


def _name_quantiles(panel: Axes, truth: xr.DataArray, forecast: xr.DataArray) -> None:
    for quantile in set(_NAMED) & set(truth["quantile"].values.tolist()):
        place = float(truth.sel(quantile=quantile)), float(forecast.sel(quantile=quantile))
        words = "median" if quantile == 0.5 else f"{100 * quantile:g} %"
        panel.annotate(words, place, (6, -9), textcoords="offset points", fontsize="x-small", color="0.3")


def _finished(axes: np.ndarray, variables, ax: Axes | None, heading: str) -> Axes | np.ndarray:
    if ax is None:
        axes[0].figure.suptitle(heading, fontsize="medium")
    return axes[0] if len(axes) == 1 and (isinstance(variables, str) or ax is not None) else axes
