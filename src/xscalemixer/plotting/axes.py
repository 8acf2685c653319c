"""Panels, axes of maps and lead times, coast and relief: what all pictures share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from xscalemixer.errors import InputError, SchemaError, TimeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "choose_leads",
    "draw_terrain",
    "dress_leads",
    "dress_map",
    "fields",
    "finished",
    "lat_aspect",
    "open_ends",
    "panels",
    "ranges",
]

_RELIEF = (500, 1000, 2000, 3000, 4000, 5000, 6000)  # m


def ranges(numbers: list[int]) -> str:
    """Short form of a list: ``1..48`` or ``3, 6, 12``."""
    steps = set(np.diff(numbers))
    return f"{numbers[0]}..{numbers[-1]}" if steps == {1} else ", ".join(map(str, numbers))


def open_ends(below: bool, above: bool) -> Literal["neither", "min", "max", "both"]:
    """Ends of a color scale that values lie beyond, in the words of matplotlib."""
    if below:
        return "both" if above else "min"
    return "max" if above else "neither"


def choose_leads(lead_time: int | Sequence[int] | np.ndarray | None, there: list[int], default: list[int]) -> list[int]:
    """Lead times asked for.

    Raises
    ------
    TimeError
        If any is not there.
    """
    leads = default if lead_time is None else [int(lead) for lead in np.atleast_1d(lead_time)]
    absent = [lead for lead in leads if lead not in there]
    if absent or not leads:
        raise TimeError("no such lead time", [f"asked for {absent or leads}; this forecast has {ranges(there)} hours"])
    return leads


def fields(ds: xr.Dataset, variables: str | Iterable[str] | None, dim: str) -> list[tuple[str, xr.DataArray]]:
    """Variables with a dim, and each of their levels on its own: (variable, array without level).

    Raises
    ------
    SchemaError
        If a variable asked for is not there, or none is.
    """
    there = [str(name) for name, array in ds.data_vars.items() if dim in array.dims]
    wanted = there if variables is None else [variables] if isinstance(variables, str) else list(variables)
    absent = [name for name in wanted if name not in there]
    if absent or not wanted:
        asked = f"asked for {', '.join(absent)}; " if absent else ""
        raise SchemaError("nothing to draw", [f"{asked}this dataset has {', '.join(there) or f'no variable with a dim {dim!r}'}"])
    return [(name, array) for name in wanted for array in _at_levels(ds[name])]


def _at_levels(array: xr.DataArray) -> list[xr.DataArray]:
    """The array at each level that holds anything: variables of one dataset may have different ones."""
    if "level" not in array.dims:
        return [array]
    array = array.compute()
    return [array.sel(level=level) for level in array.dropna("level", how="all")["level"].values]


def panels(number: int, size: tuple[float, float], ax: Axes | None = None, columns: int = 3, **keywords) -> np.ndarray:
    """Axes in rows, shape (number,), each of a size in inches; or the user's own.

    Raises
    ------
    InputError
        If there is more to draw than one ax takes.
    """
    import matplotlib.pyplot as plt

    if ax is not None:
        if number != 1:
            raise InputError(f"{number} panels do not fit one ax", ["choose one variable, level and model, or leave out ax"])
        return np.array([ax])
    columns = {4: min(columns, 2), 7: columns + 1, 8: columns + 1}.get(number, min(number, columns)) if columns > 1 else 1
    rows = -(-number // columns)
    shape = (size[0] * columns, size[1] * rows + 0.7)
    figure, axes = plt.subplots(rows, columns, figsize=shape, layout="constrained", squeeze=False, **keywords)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    for spare in axes.flat[number:]:
        figure.delaxes(spare)
    return axes.ravel()[:number]


def finished(axes: np.ndarray, variables: str | Iterable[str] | None, ax: Axes | None, heading: str) -> Axes | np.ndarray:
    """Panels with a heading, unless they stand in the user's figure; a single one that was asked for by name, or given, alone."""
    if ax is None:
        axes[0].figure.suptitle(heading, fontsize="medium")
    return axes[0] if len(axes) == 1 and (isinstance(variables, str) or ax is not None) else axes


def dress_leads(ax: Axes, leads: np.ndarray) -> None:
    """Axis of lead times with ticks at hours that people count in."""
    from matplotlib.ticker import MultipleLocator

    ax.set_xlabel("lead time [h]")
    if len(leads) > 1:
        ax.set_xlim(leads[0], leads[-1])
    step = next((step for step in (1, 3, 6, 12, 24, 48) if leads[-1] / step <= 10), 120)
    ax.xaxis.set_major_locator(MultipleLocator(step))


def lat_aspect(latitude: xr.DataArray) -> float:
    """Length of a degree of latitude in degrees of longitude at the middle of the map."""
    return float(1 / np.cos(np.deg2rad((latitude.max() + latitude.min()) / 2)))


def dress_map(ax: Axes, latitude: xr.DataArray) -> None:
    """Aspect and labels of a map."""
    ax.set_aspect(lat_aspect(latitude))
    ax.xaxis.set_major_formatter(lambda value, _: _degrees((value + 180) % 360 - 180, "EW"))
    ax.yaxis.set_major_formatter(lambda value, _: _degrees(value, "NS"))
    ax.tick_params(labelsize="small")


def _degrees(value: float, signs: str) -> str:
    """Axis label such as 120°E.

    >>> _degrees(-33.5, "NS")
    '33.5°S'
    """
    return f"{abs(value):g}°" + (signs[0] if value > 0 else signs[1] if value < 0 else "")


def draw_terrain(ax: Axes, ds: xr.Dataset) -> None:
    """Draw the coast at half land and relief contours, where the dataset has ``lsm`` and ``orog``."""
    from matplotlib.patheffects import withStroke

    x, y = ds["longitude"], ds["latitude"]
    levels = [level for level in _RELIEF if "orog" in ds and ds["orog"].min() < level < ds["orog"].max()]
    if levels:
        ax.contour(x, y, ds["orog"], levels=levels, colors="0.35", linewidths=0.4, alpha=0.7)
    if "lsm" in ds and ds["lsm"].min() < 0.5 < ds["lsm"].max():
        coast = ax.contour(x, y, ds["lsm"], levels=[0.5], colors="black", linewidths=0.9)
        coast.set_path_effects([withStroke(linewidth=1.8, foreground="white", alpha=0.6)])
