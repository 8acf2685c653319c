"""Variables that a file lacks but determines: one row per formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from xscalemixer.conform.source import Source
from xscalemixer.physics import humidity, pressure
from xscalemixer.report import Report
from xscalemixer.variables import CATALOG

__all__ = ["RECIPES", "Recipe", "derive", "plan", "relative_humidity_phase"]

_PHASES: Mapping[humidity.Phase, str] = {"water": "water", "mixed": "the mixed phase of the IFS", "ice": "ice"}
_TETENS = "the Tetens formula of the IFS documentation"
_CENTERS: Mapping[str, tuple[humidity.Phase, str]] = {
    "kwbc": ("water", "NCEP models publish relative humidity over water"),
    "ecmf": ("mixed", "the IFS publishes relative humidity over its mixed phase, IFS documentation Part IV"),
}


@dataclass(frozen=True)
class Recipe:
    """How a variable follows from others.

    Attributes
    ----------
    needs : tuple of str
        Catalog names of the ingredients.
    compute : callable
        ``compute(ingredients, phase)`` returns the variable in canonical units; lazy. The phase is None if nothing tells it.
    words : str
        Ends the sentence "derived from d2m and sp: ...".
    """

    needs: tuple[str, ...]
    compute: Callable[[Mapping[str, xr.DataArray], humidity.Phase | None], xr.DataArray]
    words: str

    @property
    def needs_phase(self) -> bool:
        """True if the formula depends on the phase that relative humidity refers to."""
        return bool({"r", "r2m"} & set(self.needs))


def _q(x, phase):
    return humidity.specific_humidity_from_relative_humidity(x["r"], x["t"], x["t"]["level"].astype("f4") * 100, phase)


def _q2m_from_dew_point(x, phase):
    return humidity.specific_humidity_from_dew_point(x["d2m"], x["sp"])


def _q2m_from_relative_humidity(x, phase):
    return humidity.specific_humidity_from_relative_humidity(x["r2m"], x["t2m"], x["sp"], phase)


def _d2m(x, phase):
    return humidity.dew_point(x["q2m"].astype("f8"), x["sp"])


def _ws10(x, phase):
    return np.hypot(x["u10"], x["v10"])


def _u10(x, phase):
    return -x["ws10"] * np.sin(np.deg2rad(x["wd10"]))


def _v10(x, phase):
    return -x["ws10"] * np.cos(np.deg2rad(x["wd10"]))


def _wd10(x, phase):
    direction = np.rad2deg(np.arctan2(-x["u10"], -x["v10"])) % 360.0
    calm = (x["u10"] == 0) & (x["v10"] == 0)
    return direction.where(direction > 0, 360.0).where(x["u10"].notnull() & x["v10"].notnull()).where(~calm, 0.0)


def _sp(x, phase):
    return pressure.pressure_at_altitude(x["msl"], 0.0, x["orog"], x["t2m"])


def _tcc(x, phase):
    return 1.0 - (1.0 - x["lcc"]) * (1.0 - x["mcc"]) * (1.0 - x["hcc"])


RECIPES: Mapping[str, tuple[Recipe, ...]] = {
    "q": (Recipe(("r", "t"), _q, f"q = e eps / (p - (1 - eps) e), e from {_TETENS}"),),
    "q2m": (
        Recipe(("d2m", "sp"), _q2m_from_dew_point, f"vapor pressure over water at the dew point from {_TETENS}"),
        Recipe(("r2m", "t2m", "sp"), _q2m_from_relative_humidity, f"vapor pressure from {_TETENS}"),
    ),
    "d2m": (Recipe(("q2m", "sp"), _d2m, f"vapor pressure at the surface, and its dew point over water from {_TETENS}"),),
    "ws10": (Recipe(("u10", "v10"), _ws10, "length of the wind vector at each point"),),
    "wd10": (Recipe(("u10", "v10"), _wd10, "where the wind vector points from, 360 for north and 0 for calm"),),
    "u10": (Recipe(("ws10", "wd10"), _u10, "-speed sin(direction)"),),
    "v10": (Recipe(("ws10", "wd10"), _v10, "-speed cos(direction)"),),
    "sp": (Recipe(("msl", "orog", "t2m"), _sp, "hypsometric equation with 6.5 K km-1 from sea level to the orography"),),
    "tcc": (Recipe(("lcc", "mcc", "hcc"), _tcc, "random overlap, 1 - (1 - low)(1 - medium)(1 - high)"),),
}


def plan(name: str, source: Source, above: tuple[str, ...] = ()) -> dict[str, Recipe | None] | None:
    """What to get and compute for a variable, ingredients first; None if it cannot be had.

    Parameters
    ----------
    name : str
        Catalog name.
    source : Source
        The file.
    above : tuple of str
        Variables that this one is an ingredient of: recipes run both ways, and a circle determines nothing.

    Returns
    -------
    dict
        Catalog name -> None if the file holds it, else its recipe.
    """
    if source.has(name):
        return {name: None}
    for recipe in RECIPES.get(name, ()):
        steps: dict[str, Recipe | None] = {}
        for need in recipe.needs:
            found = plan(need, source, (*above, name)) if need not in (*above, name) else None
            if found is None:
                break
            steps |= found
        else:
            return {**steps, name: recipe}
    return None


def derive(
    name: str,
    recipe: Recipe,
    fields: Mapping[str, xr.DataArray | None],
    phase: humidity.Phase | None,
    report: Report,
) -> xr.DataArray | None:
    """Compute one variable; None if an ingredient or the phase is unusable, which the report says already."""
    ingredients = {need: array for need in recipe.needs if (array := fields[need]) is not None}
    if len(ingredients) < len(recipe.needs):
        return None
    where = ""
    if recipe.needs_phase:
        if phase is None:
            return None
        where = f" (relative humidity over {_PHASES[phase]})"
    report.assume(name, f"derived from {', '.join(recipe.needs)}{where}: {recipe.words}")
    order = max(ingredients.values(), key=lambda array: array.ndim).dims
    array = recipe.compute(ingredients, phase).astype("f4").rename(name)
    return array.transpose(*(dim for dim in order if dim in array.dims)).assign_attrs(units=CATALOG[name].units)


def relative_humidity_phase(ds: xr.Dataset, rh_phase: str | None, report: Report) -> humidity.Phase | None:
    """The phase that relative humidity refers to: as told, or as the producing center is known to do it."""
    for phase in _PHASES:
        if rh_phase == phase:
            return phase
    choices = ", ".join(f'"{phase}"' for phase in _PHASES)
    if rh_phase is not None:
        report.error("relative humidity", f"rh_phase={rh_phase!r}", f"one of {choices}")
        return None
    center = str(ds.attrs.get("GRIB_centre", ""))
    if center in _CENTERS:
        phase, words = _CENTERS[center]
        report.assume("relative humidity", f"taken over {_PHASES[phase]} ({words})")
        return phase
    found = "humidity is given as relative humidity, and nothing says whether over water, ice or the mixed phase"
    report.error("relative humidity", found, "the convention of the producing model", f"Pass rh_phase= one of {choices}")
    return None
