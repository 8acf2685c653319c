"""From any dataset to the canonical one that a model reads, with a report of all that was found and assumed.

A pipeline of small steps, one module each: radiation (accumulations), time, grid, match (which variable is which),
source (units and winds), derive (what is missing), levels, quality (values).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import xarray as xr

from xscalemixer.conform.derive import RECIPES, Recipe, derive, plan, relative_humidity_phase
from xscalemixer.conform.grid import to_canonical_grid
from xscalemixer.conform.levels import levels_apart, onto_levels
from xscalemixer.conform.quality import check
from xscalemixer.conform.radiation import to_mean_flux
from xscalemixer.conform.source import Source
from xscalemixer.conform.time import to_valid_time, valid_times, whole_hours
from xscalemixer.errors import GridError, SchemaError
from xscalemixer.report import Report
from xscalemixer.variables import CATALOG, Schema

__all__ = [
    "Holdings",
    "absent",
    "conform",
    "holdings",
    "on_canonical_axes",
    "require_dataset",
    "translate",
    "valid_times",
    "whole_hours",
]

_STATICS = ("orog", "lsm")
_MAX_RATIO = 1.5


def conform(
    ds: xr.Dataset,
    schema: Schema,
    *,
    times: np.ndarray | None = None,
    rh_phase: str | None = None,
    max_level_ratio: float = _MAX_RATIO,
    skip: float | None = None,
    title: str = "this dataset",
) -> tuple[xr.Dataset, Report]:
    """Bring a dataset into the canonical form of a schema.

    Parameters
    ----------
    ds : xr.Dataset
        Any layout, names, units and order of axes; it is not modified. Dask arrays stay lazy, but the values at the selected
        times are read once to check them.
    schema : Schema
        Variables and levels wanted.
    times : datetime64 array, optional
        Valid times wanted; only these are read. All times by default.
    rh_phase : "water", "mixed" or "ice", optional
        What relative humidity refers to, if humidity comes as that. Known for GRIB files of NCEP and ECMWF.
    max_level_ratio : float
        Levels that are missing are interpolated between neighbors whose pressures differ by at most this factor.
    skip : float, optional
        Leave out times with values that are missing or cannot be right, up to this share of all times, but at least one if it is
        not 0. If there are more, the report names them. By default every time must be good.
    title : str
        How the report calls the dataset.

    Returns
    -------
    canonical : xr.Dataset
        The variables of the schema (and ``orog`` and ``lsm`` if the dataset has them) as float32 in canonical units, with dims
        ``(time, [level], latitude, longitude)``, or ``(time, [level], y, x)`` with 2-D ``latitude`` and ``longitude`` on
        curvilinear grids. ``time`` is the valid time; ``level`` is in hPa and ascending; latitude runs from north to south and
        longitude from west to east. What cannot be had is left out.
    report : Report
        All problems, and all conversions and assumptions that were made.

    Raises
    ------
    SchemaError
        If ``ds`` is not a dataset. Bad content never raises: ``report.raise_errors()`` does.
    """
    require_dataset(ds)
    report = Report(title)
    ds = _plain(ds)
    if "ssrd" in schema.names:
        ds = to_mean_flux(ds, report)
    ds = to_valid_time(ds, report, times)
    ds = to_canonical_grid(ds, report)
    fields = _collect(ds, schema, rh_phase, max_level_ratio, skip, report)
    return _with_projection(_assemble(fields, schema), ds, report), report


def on_canonical_axes(ds: xr.Dataset, report: Report) -> xr.Dataset:
    """A dataset with valid times and canonical horizontal axes, all else as it is; problems go to the report."""
    return to_canonical_grid(to_valid_time(_plain(ds), report, None), report)


def absent(ds: xr.Dataset, schema: Schema) -> tuple[str, ...]:
    """Channels of a schema that `conform` cannot get from a dataset because nothing there holds or determines them.

    What is there but cannot be used (units, values) is not absent. Nothing but coordinates is computed.

    Parameters
    ----------
    ds : xr.Dataset
        With canonical axes, see `on_canonical_axes`.
    schema : Schema
    """
    held = holdings(ds)
    missing: list[str] = []
    for variable in schema.variables:
        if variable.name in held.doubtful:
            continue
        if variable.name not in held.levels:
            missing += variable.channels
        elif variable.levels:
            apart = levels_apart(np.array(held.levels[variable.name], "f8"), variable.levels, _MAX_RATIO)
            missing += [f"{variable.name}_{level}" for level in apart]
    return tuple(missing)


def translate(ds: xr.Dataset, schema: Schema, report: Report, *, dims: tuple[str, ...] = ("time",)) -> xr.Dataset:
    """Names, units, levels and wind directions of a schema; values are neither checked nor filled, so gaps stay gaps.

    Parameters
    ----------
    ds : xr.Dataset
        With canonical horizontal axes, and ``dims``. Dask arrays stay lazy unless their units have to be told from the values.
    schema : Schema
        Variables and levels wanted; levels must be there.
    report : Report
        Receives all problems, conversions and assumptions.
    dims : tuple of str
        Time-like dimensions to keep, such as ``("reference_time", "lead_time", "member")``.

    Returns
    -------
    xr.Dataset
        float32 in canonical units, dims ``(*dims, [level], latitude, longitude)`` or ``(..., y, x)``. What cannot be had is
        left out, and an error in the report.
    """
    fields, _ = _gather(ds, schema, None, 1.0, report, dims)
    there = {name: array for name, array in fields.items() if name in schema.names and array is not None}
    return _with_projection(_assemble(there, schema), ds, report)


@dataclass(frozen=True)
class Holdings:
    """What a dataset with canonical horizontal axes holds or determines.

    Attributes
    ----------
    levels : dict of tuple of int
        Catalog names without statics, and the levels in hPa of those on pressure levels.
    direct : frozenset of str
        Those that are in the file; the others follow from recipes.
    doubtful : tuple of str
        Further ones that follow only from relative humidity, of which nothing says over which phase it is.
    unknown : frozenset of str
        Variables with a time-like and the horizontal dimensions that no row of the catalog describes, by their own names.
    has_orography : bool
        Altitudes of the ground are known.
    """

    levels: dict[str, tuple[int, ...]]
    direct: frozenset[str]
    doubtful: tuple[str, ...]
    unknown: frozenset[str]
    has_orography: bool


def holdings(ds: xr.Dataset) -> Holdings:
    """Look through a dataset for variables of the catalog; nothing is computed."""
    source = Source(ds, Report(""), ())
    known_phase = relative_humidity_phase(ds, None, Report("")) is not None
    dynamic = [name for name, row in CATALOG.items() if row.role != "static"]
    plans = {name: steps for name in dynamic if (steps := plan(name, source)) is not None}
    doubtful = (
        () if known_phase else tuple(name for name, steps in plans.items() if any(r and r.needs_phase for r in steps.values()))
    )
    levels = {name: _levels(name, steps, source) for name, steps in plans.items() if name not in doubtful}
    found = {name: source.inventory.find(row) for name, row in CATALOG.items()}
    named = {array.name for array in found.values() if array is not None}
    fields = {name for name, array in ds.data_vars.items() if array.ndim > 2 or "station" in array.dims}
    direct = frozenset(name for name in levels if found[name] is not None)
    return Holdings(levels, direct, doubtful, frozenset(map(str, fields - named)), found["orog"] is not None)


def _levels(name: str, steps: dict[str, Recipe | None], source: Source) -> tuple[int, ...]:
    """Whole levels in hPa that a variable has, or all of its ingredients that are on levels have."""
    if not CATALOG[name].levels:
        return ()
    rows = [CATALOG[need] for need, recipe in steps.items() if recipe is None and CATALOG[need].levels]
    arrays = [array for row in rows if (array := source.inventory.find(row)) is not None]
    columns = [source.inventory.column(str(array.name)) for array in arrays]
    shared = sorted(set.intersection(*(set(column.tolist()) for column in columns)))
    return tuple(int(level) for level in shared if level == int(level))


def require_dataset(ds) -> None:
    """Raise a SchemaError that says how to make a Dataset of what is not one."""
    if isinstance(ds, xr.Dataset):
        return
    kind = type(ds).__name__
    if isinstance(ds, (str, os.PathLike)):
        fix = f'needed an xarray.Dataset. Open it: xscalemixer.open("{os.fspath(ds)}")'
    elif isinstance(ds, xr.DataArray):
        fix = f'needed an xarray.Dataset. Make one: array.to_dataset(name="{ds.name or "t2m"}")'
    elif isinstance(ds, xr.DataTree):
        fix = 'needed an xarray.Dataset. Take one group: tree["global"].to_dataset()'
    elif type(ds).__module__.startswith("pandas"):
        fix = 'needed an xarray.Dataset. Make one: frame.set_index(["time", "latitude", "longitude"]).to_xarray()'
    else:
        fix = "needed an xarray.Dataset"
    raise SchemaError(f"a {kind} cannot be used here", [fix])


def _plain(ds: xr.Dataset) -> xr.Dataset:
    """A shallow copy without pint quantities."""
    quantities = {name: array for name, array in ds.variables.items() if hasattr(array.data, "magnitude")}
    plain = {name: (v.dims, v.data.magnitude, {**v.attrs, "units": f"{v.data.units:~D}"}) for name, v in quantities.items()}
    return ds.assign(plain) if plain else ds.copy(deep=False)


def _collect(
    ds: xr.Dataset, schema: Schema, rh_phase, max_level_ratio: float, skip: float | None, report: Report
) -> dict[str, xr.DataArray]:
    """Find, convert, derive and check every variable of the schema, and the statics that are there."""
    fields, source = _gather(ds, schema, rh_phase, max_level_ratio, report)
    keep = frozenset((*schema.names, *_STATICS))
    present = {name: array for name, array in fields.items() if array is not None}
    checked = check(present, source, report, keep, skip=skip)
    return {name: array for name, array in checked.items() if name in keep}


def _gather(
    ds: xr.Dataset, schema: Schema, rh_phase, max_level_ratio: float, report: Report, dims: tuple[str, ...] = ("time",)
) -> tuple[dict[str, xr.DataArray | None], Source]:
    """Find, convert and derive every variable of the schema, its ingredients, and the statics that are there."""
    source = Source(ds, report, schema.levels, dims)
    plans = {name: plan(name, source) for name in schema.names}
    _report_missing([name for name, steps in plans.items() if steps is None], source, report)
    steps = {name: recipe for found in plans.values() for name, recipe in (found or {}).items()}
    steps |= {name: None for name in _STATICS if source.has(name)}
    source.load_units(name for name, recipe in steps.items() if recipe is None)
    phase = relative_humidity_phase(ds, rh_phase, report) if any(r and r.needs_phase for r in steps.values()) else "water"
    fields: dict[str, xr.DataArray | None] = {}
    for name, recipe in steps.items():
        fields[name] = source.get(name) if recipe is None else derive(name, recipe, fields, phase, report)
    return {name: _on_levels(array, name, schema, max_level_ratio, report) for name, array in fields.items()}, source


def _on_levels(array: xr.DataArray | None, name: str, schema: Schema, max_ratio: float, report: Report) -> xr.DataArray | None:
    """Ingredients stay on their levels, wanted variables go onto the wanted ones."""
    if array is None or name not in schema.names or not schema[name].levels:
        return array
    return onto_levels(array, schema[name].levels, max_ratio, report)


def _report_missing(names: list[str], source: Source, report: Report) -> None:
    known = {finding.subject for finding in report.select("error")}
    for name in (name for name in names if name not in known):
        others = [" and ".join(recipe.needs) for recipe in RECIPES.get(name, ())]
        needed = " or ".join([CATALOG[name].standard_name + f" ({name})", *others])
        report.error(name, f"no {CATALOG[name].long_name}", needed, source.hint(name))


def _assemble(fields: dict[str, xr.DataArray], schema: Schema) -> xr.Dataset:
    """One dataset with the attributes of the catalog, variables in the order of the schema."""
    names = [*schema.names, *(name for name in _STATICS if name not in schema.names)]
    ordered = {name: fields[name] for name in names if name in fields}
    for name, array in ordered.items():
        row = CATALOG[name]
        array.attrs = {"standard_name": row.standard_name, "units": row.units, "long_name": row.long_name}
        array.encoding = {}
    return xr.Dataset(ordered)


def _with_projection(canonical: xr.Dataset, ds: xr.Dataset, report: Report) -> xr.Dataset:
    """Keep the projection of a curvilinear grid, as the CF grid mapping ``crs``: regridding needs it."""
    if "y" not in canonical.dims:
        return canonical
    from xscalemixer.projections import crs_of

    try:
        crs = crs_of(ds)
    except GridError as error:
        report.warn("projection", "; ".join(error.problems))
        crs = None
    return canonical if crs is None else canonical.assign_coords(crs=((), 0, crs.to_cf()))
