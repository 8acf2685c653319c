"""Maps of a forecast: units and colors a forecaster expects, coast and relief from the dataset itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
import xarray as xr

from xscalemixer.errors import SchemaError, TimeError
from xscalemixer.grids import Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot", "plot_overview"]

_KNOT = 1852 / 3600  # m s-1, International Hydrographic Conference 1929
_RELIEF = (500, 1000, 2000, 3000, 4000, 5000, 6000)  # m


@dataclass(frozen=True, kw_only=True)
class _Style:
    """How a variable is shown: ``value * scale + offset`` in ``units``; ends of the color scale are fixed or follow the data."""

    label: str
    units: str
    cmap: str = "viridis"
    scale: float = 1.0
    offset: float = 0.0
    lower: float | None = None
    upper: float | None = None


_STYLES = {
    "t2m": _Style(label="2 m temperature", units="°C", cmap="RdYlBu_r", offset=-273.15),
    "d2m": _Style(label="2 m dew point", units="°C", cmap="BrBG", offset=-273.15),
    "wind": _Style(label="10 m wind", units="m s$^{-1}$", cmap="YlGnBu", lower=0),
    "u10": _Style(label="10 m eastward wind", units="m s$^{-1}$", cmap="PuOr"),
    "v10": _Style(label="10 m northward wind", units="m s$^{-1}$", cmap="PuOr"),
    "q2m": _Style(label="2 m specific humidity", units="g kg$^{-1}$", cmap="YlGnBu", scale=1000, lower=0),
    "sp": _Style(label="surface pressure", units="hPa", cmap="cividis", scale=0.01),
    "tcc": _Style(label="total cloud cover", units="%", cmap="Blues_r", scale=100, lower=0, upper=100),
    "ssrd": _Style(label="downward short-wave radiation", units="W m$^{-2}$", cmap="inferno", lower=0),
}


def plot(
    fc: xr.Dataset,
    variable: str = "t2m",
    lead_time: int | Iterable[int] | None = None,
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
    several = np.ndim(lead_time) > 0
    if several and ax is not None:
        raise TimeError(f"{len(leads)} maps do not fit one ax", ["give one lead_time, or leave out ax"])
    panels = _panels(maps, len(leads), ax)
    for panel, lead in zip(panels, leads, strict=True):
        mesh = _draw(panel, maps.sel(lead_time=lead), style, norm, arrows)
        # smaller where several stand side by side: the scale of the arrows is beside the title
        panel.set_title(f"{_valid(fc, lead)} (+{lead} h)", fontsize="medium" if several else "large")
        _draw_terrain(panel, fc)
        _dress(panel, fc)
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
        plot(fc, variable, int(series.idxmax("lead_time")), ax=axes[variable])
    _draw_cycle(axes["cycle"], fc, area)
    figure.suptitle(f"Forecast started {_valid(fc, 0)}", fontsize="x-large")
    figure.savefig(path, dpi=120)
    return figure


def _select_leads(fc: xr.Dataset, lead_time: int | Iterable[int] | None) -> list[int]:
    missing = {"lead_time", "latitude", "longitude"} - set(fc.dims) | {"reference_time"} - set(fc.coords)
    if missing or fc["reference_time"].size != 1:
        found = ", ".join(f"{dim}={size}" for dim, size in fc.sizes.items())
        needed = "needed one reference_time and lead_time, latitude, longitude"
        raise SchemaError(
            "this dataset is not one forecast", [f"found dims {found}; {needed}; select with .isel(reference_time=0)"]
        )
    there = fc["lead_time"].values.tolist()
    leads = [there[-1]] if lead_time is None else [int(lead) for lead in np.atleast_1d(lead_time)]
    absent = [lead for lead in leads if lead not in there]
    if absent or not leads:
        raise TimeError("no such lead time", [f"asked for {absent or leads}; this forecast has {_ranges(there)} hours"])
    return leads


def _ranges(numbers: list[int]) -> str:
    """Short form of a list: ``1..48`` or ``3, 6, 12``."""
    steps = set(np.diff(numbers))
    return f"{numbers[0]}..{numbers[-1]}" if steps == {1} else ", ".join(map(str, numbers))


def _style(fc: xr.Dataset, variable: str) -> _Style:
    names = {"u10", "v10"} if variable == "wind" else {variable}
    drawable = [str(name) for name, field in fc.data_vars.items() if "lead_time" in field.dims]
    if not names <= set(drawable):
        wind = [] if {"u10", "v10"} - set(drawable) else ["wind"]
        raise SchemaError(f"no map of {variable!r}", [f"this forecast has {', '.join(drawable + wind)}"])
    if variable in _STYLES:
        return _STYLES[variable]
    attrs = fc[variable].attrs
    return _Style(label=attrs.get("long_name", variable), units=attrs.get("units", "no units"))


def _maps(fc: xr.Dataset, variable: str, leads: list[int], member: int | None) -> xr.Dataset:
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
            f"no member {member}", [f"this forecast has {f'members {_ranges(members)}' if members else 'no members'}"]
        )
    if members:
        maps = maps.mean("member") if member is None else maps.sel(member=member)
    return maps.transpose("lead_time", "latitude", "longitude").load()


def _of_members(fc: xr.Dataset, member: int | None) -> str:
    if "member" not in fc.dims:
        return ""
    return f", mean of {fc.sizes['member']} members" if member is None else f", member {member}"


def _norm(values: xr.DataArray, style: _Style, limits: tuple[float, float] | None):
    """Discrete color scale with round levels, and which of its ends are open."""
    from matplotlib.colors import BoundaryNorm
    from matplotlib.ticker import MaxNLocator

    low, high = float(values.min()), float(values.max())
    bottom, top = limits or (np.nanquantile(values, [0.005, 0.995]) if np.isfinite(low) else (0, 1))
    bottom = bottom if limits or style.lower is None else style.lower
    top = top if limits or style.upper is None else style.upper
    levels = MaxNLocator(16, steps=[1, 2, 2.5, 5, 10]).tick_values(bottom, top)
    ends = (low < levels[0], high > levels[-1])
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(ends, "neither")
    return BoundaryNorm(levels, 256, extend=extend), extend


def _panels(maps: xr.Dataset, number: int, ax: Axes | None) -> np.ndarray:
    """One Axes per map, in rows of at most three."""
    import matplotlib.pyplot as plt

    if ax is not None:
        return np.array([ax])
    columns = 2 if number == 4 else min(number, 3)
    rows = -(-number // columns)
    width = 7.0 if number == 1 else 4.2
    height = width * min(_aspect(maps) * np.ptp(maps["latitude"].values) / np.ptp(maps["longitude"].values), 1.5)
    size = (width * columns + 1, height * rows + 0.8)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True)
    for spare in axes.flat[number:]:
        figure.delaxes(spare)
    return axes.ravel()[:number]


def _aspect(fc: xr.Dataset) -> float:
    """Length of a degree of latitude in degrees of longitude at the middle of the map."""
    return float(1 / np.cos(np.deg2rad((fc["latitude"].max() + fc["latitude"].min()) / 2)))


def _draw(ax: Axes, fields: xr.Dataset, style: _Style, norm, arrows: str):
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
    quiver = ax.quiver(thin["longitude"], thin["latitude"], thin["u"], thin["v"], color="0.1", width=0.0025, scale=200)
    ax.quiverkey(quiver, 0.9, 1.03, 10, "10 m s$^{-1}$", labelpos="E", fontproperties={"size": "small"})


def _draw_terrain(ax: Axes, fc: xr.Dataset) -> None:
    """Draw the coast at half land and relief contours, where the forecast has ``lsm`` and ``orog``."""
    from matplotlib.patheffects import withStroke

    x, y = fc["longitude"], fc["latitude"]
    levels = [level for level in _RELIEF if "orog" in fc and fc["orog"].min() < level < fc["orog"].max()]
    if levels:
        ax.contour(x, y, fc["orog"], levels=levels, colors="0.35", linewidths=0.4, alpha=0.7)
    if "lsm" in fc and fc["lsm"].min() < 0.5 < fc["lsm"].max():
        coast = ax.contour(x, y, fc["lsm"], levels=[0.5], colors="black", linewidths=0.9)
        coast.set_path_effects([withStroke(linewidth=1.8, foreground="white", alpha=0.6)])


def _dress(ax: Axes, fc: xr.Dataset) -> None:
    ax.set_aspect(_aspect(fc))
    ax.xaxis.set_major_formatter(lambda value, _: _degrees((value + 180) % 360 - 180, "EW"))
    ax.yaxis.set_major_formatter(lambda value, _: _degrees(value, "NS"))
    ax.tick_params(labelsize="small")


def _degrees(value: float, signs: str) -> str:
    """Axis label such as 120°E.

    >>> _degrees(-33.5, "NS")
    '33.5°S'
    """
    return f"{abs(value):g}°" + (signs[0] if value > 0 else signs[1] if value < 0 else "")


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
        style = _STYLES[variable]
        series = _maps(fc, variable, leads, None)["shade"].weighted(weights).mean(area.dims) * style.scale + style.offset
        panel.plot(leads, series, color=color, marker=".")
        panel.set_ylabel(f"{style.label} [{style.units}]", color=color)
        panel.tick_params(axis="y", labelcolor=color)
    ax.set_title(f"Diurnal cycle, mean over {'land' if land else 'the area'}")
    ax.set_xlabel("lead time [h]")
    ax.set_xlim(leads[0], leads[-1])
    ax.xaxis.set_major_locator(MultipleLocator(6))
    ax.grid(alpha=0.3)
