"""Pictures of diagnostics: reliability, ranks, quantiles and spectra."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from xscalemixer.errors import SchemaError
from xscalemixer.plotting.axes import choose_leads, fields, finished, panels, ranges
from xscalemixer.plotting.styles import COLORS, STYLES, Style, field_label, squared, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_quantiles", "plot_ranks", "plot_reliability", "plot_spectrum"]

_NAMED = {0.01: "1 %", 0.5: "median", 0.99: "99 %"}


def plot_reliability(ds: xr.Dataset, lead_time: int | Sequence[int] | np.ndarray | None = None) -> np.ndarray:
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
    ds = ds.squeeze("level") if "level" in ds.dims else ds
    ds, leads = _of_leads(ds, lead_time)
    probability, observed, count, climate = _pooled(ds)
    figure, axes = plt.subplots(2, 1, sharex=True, height_ratios=[3, 1], figsize=(5.4, 7.4), layout="constrained")
    axes[0].plot([0, 1], [0, 1], "--", color="0.5", linewidth=1, label="perfectly reliable")
    number = ds.sizes["threshold"]
    width = 1 / ds.sizes["probability"] / number
    for i, level in enumerate(ds["threshold"].values):
        color, picked = COLORS[i % len(COLORS)], {"threshold": level}
        line = probability.sel(picked), observed.sel(picked)
        axes[0].plot(*line, "o-", color=color, markersize=4, label=_event(ds, level))
        axes[0].axhline(float(climate.sel(picked)), color=color, linestyle=":", linewidth=1)
        places = ds["probability"] + (i - (number - 1) / 2) * width
        axes[1].bar(places, count.sel(picked), width * 0.9, color=color)
    axes[0].plot([], [], ":", color="0.3", linewidth=1, label="observed on average")
    axes[0].set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="observed relative frequency [1]")
    axes[0].legend(fontsize="small", loc="upper left")
    axes[1].set(xlabel="forecast probability [1]", ylabel="cases in each bin", yscale="log")
    for panel in axes:
        panel.grid(alpha=0.3)
    name = field_label(str(ds["variable"].item()), count)
    figure.suptitle(f"Reliability of {name}, {leads}\n{ds.attrs.get('sample', '')}", fontsize="medium")
    return axes


def plot_ranks(
    ds: xr.Dataset,
    variables: str | Iterable[str] | None = None,
    lead_time: int | Sequence[int] | np.ndarray | None = None,
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
    from matplotlib.ticker import MaxNLocator

    ds, leads = _of_leads(ds, lead_time)
    chosen = fields(ds, variables, "rank")
    axes = panels(len(chosen), (3.6, 2.8), ax)
    number = ds.sizes["rank"]
    for panel, (name, array) in zip(axes, chosen, strict=True):
        panel.bar(array["rank"], array.mean("lead_time"), 0.92, color=COLORS[0])
        panel.axhline(1 / number, color=COLORS[1], linestyle="--", label="reliable")
        panel.set(xlabel=f"rank of the truth among {number - 1} members", ylabel="relative frequency [1]")
        panel.set_title(field_label(name, array), fontsize="medium")
        panel.xaxis.set_major_locator(MaxNLocator(11, integer=True))
        panel.set_xlim(0.4, number + 0.6)
    axes[0].legend(fontsize="small")
    return finished(axes, variables, ax, f"Rank histogram, {leads}\n{ds.attrs.get('sample', '')}")


def plot_quantiles(
    ds: xr.Dataset,
    variables: str | Iterable[str] | None = None,
    lead_time: int | Sequence[int] | np.ndarray | None = None,
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
        ends = _ends(values)
        panel.plot(ends, ends, "--", color="0.5", linewidth=1)
        for i, lead in enumerate(leads):
            line = truth.sel(lead_time=lead), forecast.sel(lead_time=lead)
            panel.plot(*line, "o-", color=COLORS[i % len(COLORS)], markersize=3.5, linewidth=1, label=f"+{lead} h")
        _name_quantiles(panel, truth.sel(lead_time=leads[0]), forecast.sel(lead_time=leads[0]))
        panel.set(xlabel=f"truth [{style.units}]", ylabel=f"forecast [{style.units}]", xlim=ends, ylim=ends, aspect="equal")
        panel.set_title(field_label(name, array), fontsize="medium")
        panel.grid(alpha=0.3)
    axes[0].legend(fontsize="small", loc="upper left")
    wanted = ds["quantile"].values
    span = f"{100 * wanted.min():g} % to {100 * wanted.max():g} %"
    return finished(axes, variables, ax, f"Quantiles from {span}\n{ds.attrs.get('sample', '')}")


def plot_spectrum(
    ds: xr.Dataset | Mapping[str, xr.Dataset],
    variables: str | Iterable[str] | None = None,
    lead_time: int | Sequence[int] | np.ndarray | None = None,
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
    parts = {label: fields(_complete(one), variables, "wavenumber") for label, one in spectra.items()}
    chosen = next(iter(parts.values()))
    axes = panels(len(chosen), (4.2, 3.6), ax)
    numbers: set[int] = set()
    for panel, (name, array) in zip(axes, chosen, strict=True):
        style = STYLES.get(name, Style(label=name, units=array.attrs.get("units", "no units")))
        lines = [line for label, part in parts.items() for line in _lines(label, part, name, array, lead_time)]
        for number, (label, line) in enumerate(lines):
            pooled = [dim for dim in line.dims if dim != "wavenumber"]
            power = line.mean(pooled) * style.scale**2
            numbers.add(line.size // power.size)
            panel.loglog(line["wavenumber"], power, color=COLORS[number % len(COLORS)], linewidth=1.5, label=label or None)
        units = squared(style.difference_units) if name in STYLES else style.units
        panel.set(xlabel="wavenumber [km$^{-1}$]", ylabel=f"variance in each ring [{units}]")
        _add_wavelengths(panel)
        panel.set_title(field_label(name, array) if name in STYLES else name, fontsize="medium")
        panel.grid(alpha=0.3, which="both", linewidth=0.4)
    if axes[0].get_legend_handles_labels()[1]:
        axes[0].legend(fontsize="small", loc="lower left")
    return finished(axes, variables, ax, f"Variance by scale, mean of {_many(sorted(numbers))}")


def _complete(ds: xr.Dataset) -> xr.Dataset:
    """Without the corners of the spectrum, where rings hold waves of some directions only and variance seems to drop."""
    return ds.isel(wavenumber=ds["complete"].values) if "complete" in ds.coords else ds


def _many(numbers: list[int]) -> str:
    first, last = numbers[0], numbers[-1]
    return f"{first} field{'s' * (first > 1)}" if first == last else f"{first} to {last} fields"


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


def _pooled(ds: xr.Dataset) -> tuple[xr.DataArray, ...]:
    """Cases of all lead times together: probability, observed frequency and count of each bin, and the overall frequency."""
    count = ds["count"].sum("lead_time")
    probability, observed = (
        (ds[name] * ds["count"]).sum("lead_time") / count.where(count > 0)
        for name in ("forecast_probability", "observed_frequency")
    )
    return probability, observed, count, (observed * count).sum("probability") / count.sum("probability")


def _event(ds: xr.Dataset, level: float) -> str:
    style = style_of(str(ds["variable"].item()), ds["threshold"].attrs)
    number = f"{level * style.scale + style.offset:.4g}".replace("-", "−")
    return f"≥ {number} {style.units}"


def _ends(values: xr.DataArray) -> tuple[float, float]:
    """Common limits of both axes, with a margin."""
    low, high = (float(values.min()), float(values.max())) if values.notnull().any() else (0.0, 1.0)
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


def _name_quantiles(panel: Axes, truth: xr.DataArray, forecast: xr.DataArray) -> None:
    """Write the names of some quantiles beside the line, unless one with a name is too near."""
    low, high = panel.get_xlim()
    named: list[tuple[float, float]] = []
    for quantile, words in _NAMED.items():
        there = bool((truth["quantile"] == quantile).any())
        place = (float(truth.sel(quantile=quantile)), float(forecast.sel(quantile=quantile))) if there else (np.nan, np.nan)
        if not np.isfinite(place).all() or any(np.hypot(*np.subtract(place, other)) < 0.15 * (high - low) for other in named):
            continue
        named.append(place)
        upper = place[0] > (low + high) / 2
        offset, side = ((-8, 3), "right") if upper else ((8, -8), "left")
        panel.annotate(words, place, offset, textcoords="offset points", ha=side, fontsize="x-small", color="0.3")
