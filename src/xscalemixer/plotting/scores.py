"""Pictures of scores: curves by lead time, the scorecard of several models, and maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from xscalemixer.conform.grid import to_canonical_grid
from xscalemixer.errors import SchemaError
from xscalemixer.plotting.axes import (
    choose_leads,
    draw_terrain,
    dress_leads,
    dress_map,
    fields,
    finished,
    lat_aspect,
    open_ends,
    panels,
)
from xscalemixer.plotting.styles import (
    COLORS,
    Shown,
    field_label,
    is_relative,
    metric_label,
    reference_of,
    score_shown,
    style_of,
)
from xscalemixer.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_curves", "plot_score_maps", "plot_scorecard"]

_DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
_SKILLS = (-50, -20, -10, -5, -2, -1, 1, 2, 5, 10, 20, 50)  # %
_PLACES = ({"latitude", "longitude"}, {"y", "x"}, {"station"})
_MOST_MAPS = 12
_ZERO_BASED = ("mae", "mse", "rmse", "crps", "crps_fair", "spread", "activity", "truth_activity")
_SIGNED = ("bias", "correlation", "acc")


def plot_curves(
    sc: xr.Dataset,
    variables: str | Iterable[str] | None = None,
    metric: str | Sequence[str] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes | np.ndarray:
    """Draw scores against lead time: a panel for each variable and level, a line for each model.

    Where the scores were made with ``skill_against``, a dot on an error metric or its skill marks where the 95 % interval of
    the difference to that model excludes zero, and ``metric="rmse_difference"`` shows the interval itself.

    Parameters
    ----------
    sc : Dataset
        From `xscalemixer.score`, by lead time.
    variables : str or several, optional
        Default: all.
    metric : str or several, optional
        Several of one unit, such as ``["rmse", "spread"]``, share a panel. Default: rmse, or the first one there is.
    ax : matplotlib Axes, optional
        Where to draw a single panel.

    Returns
    -------
    matplotlib Axes, or an array of them unless ``variables`` is a name and one panel was drawn

    Raises
    ------
    SchemaError
        If there is no such variable or metric, or the scores have further dims; says what there is.
    """
    chosen = fields(sc, variables, "metric")
    metrics = _metrics(sc, metric)
    _require_dims(chosen, {"metric", "lead_time"}, {"model"})
    shown = [_common_units(metrics, name, array) for name, array in chosen]
    axes = panels(len(chosen), (4.3, 3.0), ax)
    for panel, (name, array), units in zip(axes, chosen, shown, strict=True):
        for metric, dashes in zip(metrics, _DASHES, strict=False):
            _draw_curves(panel, array, metric, units.scale, dashes, several=len(metrics) > 1)
        _dress_curves(panel, array, metrics, units)
        panel.set_title(field_label(name, array), fontsize="medium")
    _draw_legend(axes, chosen[0][1], metrics, ax)
    heading = " and ".join(metric_label(metric, reference_of(chosen[0][1])) for metric in metrics)
    return finished(axes, variables, ax, _heading(heading, sc))


def plot_scorecard(
    sc: xr.Dataset, variables: str | Iterable[str] | None = None, metric: str = "rmse", *, ax: Axes | None = None
) -> Axes | np.ndarray:
    """Draw the skill of each model against the reference by variable, level and lead time: blue is better, red is worse.

    A dot marks where the 95 % interval of the difference excludes zero.

    Parameters
    ----------
    sc : Dataset
        From `xscalemixer.score` with ``skill_against``, by lead time.
    variables : str or several, optional
        Default: all.
    metric : str
        An error metric: "rmse", "mae", "crps" ...
    ax : matplotlib Axes, optional
        Where to draw the card of a single model.

    Returns
    -------
    array of matplotlib Axes, shape (models,), or ``ax``

    Raises
    ------
    SchemaError
        If the scores hold no such skill; says what to type.
    """
    from matplotlib.colors import BoundaryNorm

    chosen = fields(sc, variables, "metric")
    reference = reference_of(chosen[0][1])
    if f"{metric}_skill" not in sc["metric"] or f"{metric}_difference" not in sc["metric"]:
        fix = f'xsm.score({{"ours": fc, "persistence": other}}, truth, skill_against="persistence", metrics=["{metric}"])'
        raise SchemaError("no scorecard", [f"these scores hold no {metric}_skill. Type {fix}"])
    _require_dims(chosen, {"metric", "lead_time", "model"}, set())
    models = [model for model in sc["model"].values.tolist() if model != reference]
    leads = sc["lead_time"].values
    width = min(max(3.0 + 0.16 * len(leads), 5.5), 12.0)
    axes = panels(len(models), (width, 0.9 + 0.32 * len(chosen)), ax, columns=1, sharex=True)
    norm = BoundaryNorm(_SKILLS, 256, extend="both")
    for panel, model in zip(axes, models, strict=True):
        skill = [100 * array.sel(metric=f"{metric}_skill", model=model) for _, array in chosen]
        sure = [_significant(array, metric).sel(model=model) for _, array in chosen]
        edges = {"edgecolors": "white", "linewidth": 0.3}
        mesh = panel.pcolormesh(np.stack(skill), cmap="RdBu", norm=norm, **edges)
        rows, columns = np.nonzero(np.stack(sure))
        # a white rim keeps dots visible on dark cells
        panel.scatter(columns + 0.5, rows + 0.5, s=9, color="black", edgecolors="white", linewidths=0.4)
        panel.set_yticks(np.arange(len(chosen)) + 0.5, [field_label(name, array) for name, array in chosen])
        panel.invert_yaxis()
        panel.tick_params(length=0)
        panel.set_title(str(model), fontsize="medium")
    places = _ticks(leads)
    axes[-1].set_xticks(np.array(places) + 0.5, [f"{leads[place]:g}" for place in places])
    axes[-1].set_xlabel("lead time [h]")
    label = f"{metric_label(f'{metric}_skill', reference)} [%]"
    axes[0].figure.colorbar(mesh, ax=list(axes), ticks=_SKILLS, label=label, extend="both", aspect=14)
    dots = "blue is better; dots: the 95 % interval of the difference excludes zero"
    heading = _heading(f"{metric_label(metric)} against {reference}", sc)
    return finished(axes, None, ax, f"{heading}\n{dots}")


def plot_score_maps(
    sc: xr.Dataset,
    variable: str | None = None,
    metric: str | None = None,
    lead_time: int | Sequence[int] | np.ndarray | None = None,
    *,
    terrain: xr.Dataset | None = None,
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes | np.ndarray:
    """Draw maps of a score: a panel for each model, level and lead time, with one color scale.

    Parameters
    ----------
    sc : Dataset
        From `xscalemixer.score` with ``by=["place", ...]``: on a grid of any kind, or at stations.
    variable : str, optional
        Default: the first one.
    metric : str, optional
        Default: rmse, or the first one there is. Signed scores have colors that change at zero; blue is better in skills.
    lead_time : int or several, optional
        Hours; default the last one.
    terrain : Dataset, optional
        With ``lsm`` and ``orog`` on its own grid, for coast and relief; the forecast will do.
    limits : (float, float), optional
        Ends of the color scale in the units shown; default from the data drawn, for skills the levels of the scorecard.
    ax : matplotlib Axes, optional
        Where to draw a single map.

    Returns
    -------
    array of matplotlib Axes, or ``ax``

    Raises
    ------
    SchemaError, TimeError
        If there is no such variable, metric or lead time, or more than 12 maps would result.
    """
    name = fields(sc, variable, "metric")[0][0]
    (metric,) = _metrics(sc, metric)
    reference, shown = reference_of(sc[name]), score_shown(metric, name, sc[name])
    maps, place = _maps(sc[name], metric, lead_time)
    maps = maps * shown.scale
    norm, colors, extend = _scale(maps, metric, limits)
    axes = panels(maps.sizes["panel"], _map_size(maps), ax, sharex=True, sharey=True)
    terrain = None if terrain is None else to_canonical_grid(terrain, Report("terrain"))
    for i, panel in enumerate(axes):
        one = maps.isel(panel=i)
        mesh = _draw_places(panel, one, place, norm, colors)
        if terrain is not None:
            window = panel.get_xlim(), panel.get_ylim()
            draw_terrain(panel, terrain)
            panel.set(xlim=window[0], ylim=window[1])
        dress_map(panel, one["latitude"])
        panel.set_title(_panel_title(one), fontsize="medium")
    label = f"{metric_label(metric, reference)} [{shown.units}]"
    axes[0].figure.colorbar(mesh, ax=list(axes), ticks=norm.boundaries, extend=extend, shrink=0.9, label=label)
    heading = f"{style_of(name, sc[name].attrs).label}, {metric_label(metric, reference)}"
    return finished(axes, None, ax, _heading(heading, sc))


def _maps(array: xr.DataArray, metric: str, lead_time: int | Sequence[int] | np.ndarray | None) -> tuple[xr.DataArray, set[str]]:
    """What is to be drawn, with a dim ``panel`` for all but the places; and the dims of these."""
    place = next((dims for dims in _PLACES if dims <= set(array.dims)), None)
    if place is None:
        found = f"found dims {', '.join(map(str, array.dims))}"
        raise SchemaError("no map of scores", [f'{found}. Type xsm.score(..., by=["place"])'])
    reference = reference_of(array)
    array = array.sel(metric=metric, drop=True)
    if "lead_time" in array.dims:
        there = array["lead_time"].values.tolist()
        array = array.sel(lead_time=choose_leads(lead_time, there, there[-1:]))
    if reference is not None and is_relative(metric):
        array = array.drop_sel(model=reference)
    spare = [dim for dim in array.dims if dim not in place]
    maps = array.stack(panel=spare, create_index=False) if spare else array.expand_dims("panel")
    number = maps.sizes["panel"]
    if number > _MOST_MAPS:
        problem = f"{number} maps; needed at most {_MOST_MAPS}. Select with lead_time=, or sc.sel(model=..., level=...)"
        raise SchemaError("too many maps", [problem])
    return maps.compute(), place


def _metrics(sc: xr.Dataset, metric: str | Sequence[str] | None) -> list[str]:
    there = sc["metric"].values.tolist()
    if metric is None:
        return ["rmse" if "rmse" in there else next(name for name in there if name != "count")]
    wanted = [metric] if isinstance(metric, str) else list(metric)
    absent = [name for name in wanted if name not in there]
    if absent or not 1 <= len(wanted) <= len(_DASHES):
        raise SchemaError("no such score", [f"asked for {', '.join(absent or wanted)}; these scores hold {', '.join(there)}"])
    return wanted


def _require_dims(chosen, needed: set[str], allowed: set[str]) -> None:
    for name, array in chosen:
        further = set(array.dims) - needed - allowed
        if further or needed - set(array.dims):
            found = ", ".join(map(str, array.dims))
            wants = ", ".join(sorted(needed)) + (f" and at most {', '.join(allowed)}" if allowed else "")
            fix = "Select with .sel" if "lead_time" in array.dims else 'Type xsm.score(..., by=["variable", "lead_time"])'
            raise SchemaError("these scores cannot be drawn so", [f"{name} has dims {found}; needed {wants}. {fix}"])


def _common_units(metrics: list[str], name: str, array: xr.DataArray) -> Shown:
    units = {metric: score_shown(metric, name, array) for metric in metrics}
    if len(set(units.values())) > 1:
        found = ", ".join(f"{metric} in {shown.units}" for metric, shown in units.items())
        raise SchemaError("these metrics do not fit one panel", [f"{name}: {found}; draw them one by one"])
    return units[metrics[0]]


def _significant(array: xr.DataArray, metric: str) -> xr.DataArray:
    """Where the interval of the difference to the reference excludes zero; nowhere if there is none."""
    names = [f"{metric}_difference_{side}" for side in ("low", "high")]
    if not set(names) <= set(array["metric"].values.tolist()):
        return xr.zeros_like(array.isel(metric=0, drop=True), dtype=bool)
    low, high = (array.sel(metric=name, drop=True) for name in names)
    return (low > 0) | (high < 0)


def _compared(array: xr.DataArray, metric: str) -> list[str]:
    """Models with something to show: a skill or difference of the reference to itself says nothing."""
    models = array["model"].values.tolist() if "model" in array.dims else []
    return [model for model in models if model != reference_of(array)] if is_relative(metric) else models


def _color(array: xr.DataArray, model: str | None) -> str:
    return COLORS[array["model"].values.tolist().index(model) % len(COLORS) if model is not None else 0]


def _draw_curves(panel: Axes, array: xr.DataArray, metric: str, scale: float, dashes: str, several: bool) -> None:
    leads = array["lead_time"].values
    models: list[str | None] = [*_compared(array, metric)] or [None]
    marker = "o" if len(leads) == 1 else None
    for model in models:
        one = array if model is None else array.sel(model=model)
        color = _color(array, model)
        values = scale * one.sel(metric=metric)
        label = None if several else model
        panel.plot(leads, values, dashes, color=color, linewidth=1.6, label=label, marker=marker)
        bounds = [f"{metric}_{side}" for side in ("low", "high")]
        if set(bounds) <= set(one["metric"].values.tolist()):
            low, high = (scale * one.sel(metric=bound) for bound in bounds)
            panel.fill_between(leads, low, high, color=color, alpha=0.2, linewidth=0)
        sure = _significant(one, metric.removesuffix("_skill")).values
        if sure.any():
            panel.plot(leads[sure], values.values[sure], "o", color=color, markersize=4, gid="significant")


def _dress_curves(panel: Axes, array: xr.DataArray, metrics: list[str], shown: Shown) -> None:
    dress_leads(panel, array["lead_time"].values)
    label = metric_label(metrics[0]) if len(metrics) == 1 else "score"
    panel.set_ylabel(f"{label} [{shown.units}]", fontsize="small")
    panel.grid(alpha=0.3)
    if all(metric in _ZERO_BASED for metric in metrics):
        panel.set_ylim(bottom=0)
    elif any(metric in _SIGNED or is_relative(metric) for metric in metrics):
        panel.axhline(0, color="0.4", linewidth=0.8)


def _draw_legend(axes: np.ndarray, array: xr.DataArray, metrics: list[str], ax: Axes | None) -> None:
    """One legend for all panels: models by color, metrics by dashes, and what the dots mean."""
    from matplotlib.lines import Line2D

    models = _compared(array, metrics[0])
    handles = [Line2D([], [], color=_color(array, model), label=str(model)) for model in models]
    if len(metrics) > 1:
        handles += [
            Line2D([], [], color="0.3", linestyle=d, label=metric_label(m)) for m, d in zip(metrics, _DASHES, strict=False)
        ]
    reference = reference_of(array)
    if any(line.get_gid() == "significant" for panel in axes for line in panel.lines):
        words = f"differs from {reference} (95 %)"
        handles.append(Line2D([], [], color="0.3", marker="o", markersize=4, linestyle="", label=words))
    if metrics[0].endswith("_difference") and f"{metrics[0]}_low" in array["metric"]:
        handles.append(Line2D([], [], color="0.3", alpha=0.2, linewidth=8, label="95 % interval"))
    if not handles:
        return
    if ax is not None:
        ax.legend(handles=handles, fontsize="small")
        return
    figure = axes[0].figure
    longest = 0.09 * max(len(str(handle.get_label())) for handle in handles) + 0.7  # inches
    columns = max(1, min(len(handles), int(figure.get_figwidth() / longest)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def _heading(text: str, sc: xr.Dataset) -> str:
    """What is drawn, of how many fields or reports, and where."""
    parts = [text[:1].upper() + text[1:]]
    if "count" in sc["metric"].values:
        count = sc.sel(metric="count").to_dataarray()
        low, high = int(count.min()), int(count.max())
        at_stations = "station" in sc.dims or sc.attrs.get("places") == "stations"
        noun = "report" if at_stations else "field"
        parts.append(f"n = {low} {noun}{'s' * (low != 1)}" if low == high else f"n = {low}..{high} {noun}s")
    if sc.attrs.get("region", "all") != "all":
        parts.append(f"region {sc.attrs['region']}")
    return ", ".join(parts)


def _ticks(leads: np.ndarray) -> list[int]:
    """Positions of lead times to be labeled, at most about 16, at round hours where there are any."""
    if len(leads) <= 16:
        return list(range(len(leads)))
    for step in (3, 6, 12, 24, 48, 120):
        places = [place for place, lead in enumerate(leads) if lead % step == 0]
        if len(places) <= 16:
            break
    return places or [0, len(leads) - 1]


def _scale(maps: xr.DataArray, metric: str, limits: tuple[float, float] | None):
    """Color scale with round levels: (norm, colors, open ends)."""
    from matplotlib.colors import BoundaryNorm
    from matplotlib.ticker import MaxNLocator

    values = maps.values[np.isfinite(maps.values)]
    better_is_more = is_relative(metric) and metric.endswith("_skill")
    signed = is_relative(metric) or metric == "bias"
    if better_is_more and limits is None:  # a few cells with hardly an error to compare with would set any other scale
        return BoundaryNorm(_SKILLS, 256, extend="both"), "RdBu", "both"
    if limits is None:
        low, high = np.quantile(values, [0.01, 0.99]) if values.size else (0, 1)
        limits = (-max(-low, high), max(-low, high)) if signed else (0 if metric in _ZERO_BASED else low, high)
    levels = MaxNLocator(14, steps=[1, 2, 2.5, 5, 10], symmetric=signed).tick_values(*limits)
    extend = open_ends(bool((values < levels[0]).any()), bool((values > levels[-1]).any()))
    colors = ("RdBu" if better_is_more else "RdBu_r") if signed else ("YlOrRd" if metric in _ZERO_BASED else "YlGnBu")
    return BoundaryNorm(levels, 256, extend=extend), colors, extend


def _map_size(maps: xr.DataArray) -> tuple[float, float]:
    width = 7.0 if maps.sizes["panel"] == 1 else 4.6
    span = [max(np.ptp(maps[axis].values), 1e-3) for axis in ("latitude", "longitude")]
    return width, 0.87 * width * min(max(lat_aspect(maps["latitude"]) * span[0] / span[1], 0.4), 1.5)


def _draw_places(panel: Axes, one: xr.DataArray, place: set[str], norm, colors: str):
    keywords: dict[str, Any] = {"cmap": colors, "norm": norm}
    if place == {"station"}:
        size = float(np.clip(4000 / max(one.size, 1), 5, 60))
        known = one.dropna("station")
        edges: dict[str, Any] = {"edgecolors": "0.2", "linewidths": 0.3}
        return panel.scatter(known["longitude"], known["latitude"], size, known, **edges, **keywords)
    rows, columns = ("latitude", "longitude") if "latitude" in place else ("y", "x")
    values = one.transpose(rows, columns)
    return panel.pcolormesh(one["longitude"], one["latitude"], values, shading="nearest", rasterized=True, **keywords)


def _panel_title(one: xr.DataArray) -> str:
    parts = [str(one["model"].item())] if "model" in one.coords else []
    parts += [f"{float(one['level']):g} hPa"] if "level" in one.coords else []
    parts += [f"+{one['lead_time'].item():g} h"] if "lead_time" in one.coords else []
    return ", ".join(parts)
