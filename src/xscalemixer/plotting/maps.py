"""Maps of a forecast: units and colors a forecaster expects, coast and relief from the dataset itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
import xarray as xr

from xscalemixer.errors import SchemaError, TimeError
from xscalemixer.grids import Grid
from xscalemixer.plotting.axes import choose_leads, draw_terrain, dress_map, lat_aspect, open_ends, ranges
from xscalemixer.plotting.styles import STYLES, Style, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_maps", "plot_overview"]

_KNOT = 1852 / 3600  # m s-1, International Hydrographic Conference 1929
_ARROWS = (1, 2, 5, 10, 20, 50)  # m s-1, of the arrow of the legend


def plot_maps(
    fc: xr.Dataset,
    variable: str = "t2m",
    lead_time: int | Sequence[int] | np.ndarray | None = None,
    *,
    ax: Axes | None = None,
    member: int | None = None,
    limits: tuple[float, float] | None = None,
    arrows: Literal["quiver", "barbs"] = "quiver",
) -> Axes | np.ndarray:
    """Draw a map of one variable at one lead time, or one map per lead time with a common color scale.

    Parameters
    ----------
    fc : xarray.Dataset
        One forecast, dims ``(reference_time, lead_time, [member], latitude, longitude)``.
    variable : str
        Name in the dataset, or ``"wind"`` for the speed of ``u10``, ``v10`` with its direction.
    lead_time : int or several, optional
        Hours; default the last one.
    ax : matplotlib Axes, optional
        Where to draw a single map.
    member : int, optional
        Ensemble member; default their mean.
    limits : (float, float), optional
        Ends of the color scale in the units shown; default from the data drawn.
    arrows : "quiver" or "barbs"
        Direction of the wind as arrows, or as barbs in knots.

    Returns
    -------
    matplotlib Axes, or an array of them, shape (L,), if ``lead_time`` is a sequence

    Raises
    ------
    SchemaError, TimeError
        If the dataset has no such variable, lead time or member; the message lists what it has.
    """
    leads = _select_leads(fc, lead_time)
    style = _style(fc, variable)
    maps = _maps(fc, variable, leads, member)
    norm, extend = _norm(maps["shade"] * style.scale + style.offset, style, limits)
    several = lead_time is not None and np.ndim(lead_time) > 0
    if several and ax is not None:
        raise TimeError(f"{len(leads)} maps do not fit one ax", ["give one lead_time, or leave out ax"])
    panels = _panels(maps, len(leads), ax)
    for panel, lead in zip(panels, leads, strict=True):
        mesh = _draw(panel, maps.sel(lead_time=lead), style, norm, arrows)
        # smaller where several stand side by side: the scale of the arrows is beside the title
        panel.set_title(f"{_valid(fc, lead)} (+{lead} h)", fontsize="medium" if several else "large")
        draw_terrain(panel, fc)
        dress_map(panel, fc["latitude"])
    panels[0].figure.colorbar(mesh, ax=list(panels), extend=extend, shrink=0.9, label=style.units)
    heading = style.label + _of_members(fc, member)
    if several:
        panels[0].figure.suptitle(f"{heading}, start {_valid(fc, 0)}")
    else:
        panels[0].set_title(f"{heading}\n{panels[0].get_title()}")
    return panels if several else panels[0]


def plot_overview(fc: xr.Dataset, path: str | Path | BinaryIO) -> Figure:
    """Save one picture of a forecast: four variables at their most telling hours, and the diurnal cycle over land.

    Each map shows the lead time at which the area mean of its variable is greatest.

    Parameters
    ----------
    fc : xarray.Dataset
        One forecast with ``t2m``, ``u10``, ``v10``, ``ssrd`` and ``tcc``.
    path : path-like or file
        Format by its ending.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    SchemaError
        If variables are missing; lists all of them.
    """
    from matplotlib.figure import Figure

    missing = [name for name in ("t2m", "u10", "v10", "ssrd", "tcc") if name not in fc]
    if missing:
        raise SchemaError("this forecast has no overview", [f"it lacks {', '.join(missing)}; needed t2m, u10, v10, ssrd, tcc"])
    figure = Figure(figsize=(12, 11), layout="constrained")
    axes = figure.subplot_mosaic([["t2m", "wind"], ["ssrd", "tcc"], ["cycle", "cycle"]], height_ratios=[1, 1, 0.6])
    area = _area(fc)
    for variable in ("t2m", "wind", "ssrd", "tcc"):
        series = _maps(fc, variable, fc["lead_time"].values, None)["shade"].weighted(area).mean(area.dims)
        plot_maps(fc, variable, int(series.idxmax("lead_time")), ax=axes[variable])
    _draw_cycle(axes["cycle"], fc, area)
    figure.suptitle(f"Forecast started {_valid(fc, 0)}", fontsize="x-large")
    figure.savefig(path, dpi=120)
    return figure


def _select_leads(fc: xr.Dataset, lead_time: int | Sequence[int] | np.ndarray | None) -> list[int]:
    missing = {"lead_time", "latitude", "longitude"} - set(fc.dims) | {"reference_time"} - set(fc.coords)
    if missing or fc["reference_time"].size != 1:
        found = ", ".join(f"{dim}={size}" for dim, size in fc.sizes.items())
        needed = "needed one reference_time and lead_time, latitude, longitude"
        raise SchemaError(
            "this dataset is not one forecast", [f"found dims {found}; {needed}; select with .isel(reference_time=0)"]
        )
    there = fc["lead_time"].values.tolist()
    return choose_leads(lead_time, there, [there[-1]])


def _style(fc: xr.Dataset, variable: str) -> Style:
    names = {"u10", "v10"} if variable == "wind" else {variable}
    drawable = [str(name) for name, field in fc.data_vars.items() if "lead_time" in field.dims]
    if not names <= set(drawable):
        wind = [] if {"u10", "v10"} - set(drawable) else ["wind"]
        raise SchemaError(f"no map of {variable!r}", [f"this forecast has {', '.join(drawable + wind)}"])
    return STYLES[variable] if variable in STYLES else style_of(variable, fc[variable].attrs)


def _maps(fc: xr.Dataset, variable: str, leads: Sequence[int] | np.ndarray, member: int | None) -> xr.Dataset:
    """Fields to draw, dims (lead_time, latitude, longitude): ``shade`` and for wind its components ``u``, ``v``."""
    fc = fc.sel(lead_time=leads)
    fc = fc.isel(reference_time=0) if "reference_time" in fc.dims else fc
    if variable == "wind":
        maps = xr.Dataset({"shade": np.hypot(fc["u10"], fc["v10"]), "u": fc["u10"], "v": fc["v10"]})
    else:
        maps = xr.Dataset({"shade": fc[variable]})
    members = maps["member"].values.tolist() if "member" in maps.dims else []
    if member is not None and member not in members:
        raise SchemaError(
            f"no member {member}", [f"this forecast has {f'members {ranges(members)}' if members else 'no members'}"]
        )
    if members:
        maps = maps.mean("member") if member is None else maps.sel(member=member)
    return maps.transpose("lead_time", "latitude", "longitude").load()


def _of_members(fc: xr.Dataset, member: int | None) -> str:
    if "member" not in fc.dims:
        return ""
    return f", mean of {fc.sizes['member']} members" if member is None else f", member {member}"


def _norm(values: xr.DataArray, style: Style, limits: tuple[float, float] | None):
    """Discrete color scale with round levels, and which of its ends are open."""
    from matplotlib.colors import BoundaryNorm
    from matplotlib.ticker import MaxNLocator

    low, high = float(values.min()), float(values.max())
    bottom, top = limits or (np.nanquantile(values, [0.005, 0.995]) if np.isfinite(low) else (0, 1))
    if not limits and style.lower is not None and (style.upper is not None or bottom - style.lower < (top - style.lower) / 2):
        bottom = style.lower  # else all of it lies far above, and would look alike
    top = top if limits or style.upper is None else style.upper
    levels = MaxNLocator(16, steps=[1, 2, 2.5, 5, 10]).tick_values(bottom, top)
    extend = open_ends(low < levels[0], high > levels[-1])
    return BoundaryNorm(levels, 256, extend=extend), extend


def _panels(maps: xr.Dataset, number: int, ax: Axes | None) -> np.ndarray:
    """One Axes per map, in rows of at most three."""
    import matplotlib.pyplot as plt

    if ax is not None:
        return np.array([ax])
    columns = 2 if number == 4 else min(number, 3)
    rows = -(-number // columns)
    width = 7.0 if number == 1 else 4.2
    height = width * min(lat_aspect(maps["latitude"]) * np.ptp(maps["latitude"].values) / np.ptp(maps["longitude"].values), 1.5)
    size = (width * columns + 1, height * rows + 0.8)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True)
    for spare in axes.flat[number:]:
        figure.delaxes(spare)
    return axes.ravel()[:number]


def _draw(ax: Axes, fields: xr.Dataset, style: Style, norm, arrows: str):
    values = fields["shade"] * style.scale + style.offset
    colors = {"cmap": style.cmap, "norm": norm, "shading": "nearest", "rasterized": True}
    mesh = ax.pcolormesh(fields["longitude"], fields["latitude"], values, **colors)
    if "u" in fields:
        _draw_arrows(ax, fields, arrows)
    return mesh


def _draw_arrows(ax: Axes, fields: xr.Dataset, arrows: str) -> None:
    step = max(1, max(fields.sizes["latitude"], fields.sizes["longitude"]) // 24)
    thin = fields.isel(latitude=slice(step // 2, None, step), longitude=slice(step // 2, None, step))
    lat = np.broadcast_to(thin["latitude"].values[:, None], thin["u"].shape)
    if arrows == "barbs":
        knots = thin["u"] / _KNOT, thin["v"] / _KNOT
        # barbs point to low pressure: mirrored south of the equator
        ax.barbs(thin["longitude"], thin["latitude"], *knots, length=5, linewidth=0.6, flip_barb=lat < 0)
        return
    strong = float(np.nanquantile(np.hypot(thin["u"], thin["v"]), 0.95))
    shown = max((each for each in _ARROWS if each <= strong), default=_ARROWS[0])
    quiver = ax.quiver(thin["longitude"], thin["latitude"], thin["u"], thin["v"], color="0.1", width=0.0025, scale=20 * shown)
    ax.quiverkey(quiver, 1.12, 1.03, shown, f"{shown} m s$^{{-1}}$", labelpos="N", fontproperties={"size": "small"})


def _valid(fc: xr.Dataset, lead: int) -> str:
    start = fc["reference_time"].values.ravel()[0]
    return np.datetime_as_string(start + np.timedelta64(lead, "h"), unit="m").replace("T", " ") + " UTC"


def _area(fc: xr.Dataset) -> xr.DataArray:
    grid = Grid(tuple(fc["latitude"].values), tuple(fc["longitude"].values))
    return xr.DataArray(grid.area, dims=("latitude", "longitude"))


def _draw_cycle(ax: Axes, fc: xr.Dataset, area: xr.DataArray) -> None:
    """Area means of temperature and radiation against lead time, over land where the forecast has ``lsm``."""
    from matplotlib.ticker import MultipleLocator

    land = "lsm" in fc and bool((fc["lsm"] >= 0.5).any())
    weights = area.where(fc["lsm"] >= 0.5, 0) if land else area
    leads = fc["lead_time"].values
    for panel, variable, color in ((ax, "t2m", "tab:red"), (ax.twinx(), "ssrd", "tab:orange")):
        style = STYLES[variable]
        series = _maps(fc, variable, leads, None)["shade"].weighted(weights).mean(area.dims) * style.scale + style.offset
        panel.plot(leads, series, color=color, marker=".")
        panel.set_ylabel(f"{style.label} [{style.units}]", color=color)
        panel.tick_params(axis="y", labelcolor=color)
    ax.set_title(f"Diurnal cycle, mean over {'land' if land else 'the area'}")
    ax.set_xlabel("lead time [h]")
    ax.set_xlim(leads[0], leads[-1])
    ax.xaxis.set_major_locator(MultipleLocator(6))
    ax.grid(alpha=0.3)
