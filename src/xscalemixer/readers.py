"""Opening files: GRIB, NetCDF or Zarr, one or many, into one lazy CF dataset."""

from __future__ import annotations

import glob
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import xarray as xr

from xscalemixer.errors import GridError, InputError

if TYPE_CHECKING:
    from cfgrib.messages import Message

__all__ = ["open", "sample"]

_INSTALL = {
    "grib": 'GRIB needs cfgrib and eccodes: pip install "xscalemixer[grib]"',
    "netcdf": 'NetCDF needs netCDF4 or h5netcdf: pip install "xscalemixer[io]"',
    "zarr": 'Zarr needs zarr: pip install "xscalemixer[io]"',
}
_PACKAGES = {"grib": ("cfgrib",), "netcdf": ("netCDF4", "h5netcdf"), "zarr": ("zarr",)}
_MAGIC = {b"GRIB": "grib", b"CDF\x01": "netcdf", b"CDF\x02": "netcdf", b"CDF\x05": "netcdf", b"\x89HDF": "netcdf"}
_ZARR_MARKS = ("zarr.json", ".zgroup", ".zmetadata")
_SUFFIXES = {".nc", ".nc4", ".cdf", ".netcdf", ".h5", ".hdf5", ".grib", ".grib1", ".grib2", ".grb", ".grb1", ".grb2"}

# Level types that keep the plain name of a parameter, best first; all others carry their level type in the name
# as soon as the name is taken.
_PLAIN_LEVELS = ("isobaricInhPa", "heightAboveGround", "surface", "meanSea", "atmosphereSingleLayer", "atmosphere")
_STEP_TYPES = ("instant", "avg", "accum", "max", "min")


def open(path: str | os.PathLike | Iterable[str | os.PathLike], **kwargs: Any) -> xr.Dataset:
    """Open weather files as one dataset; data are read when they are needed.

    Parameters
    ----------
    path : path, URL, glob pattern, or a list of paths
        GRIB 1 and 2, NetCDF, or Zarr, told apart by content. A folder stands for all the files in it. Several files are
        joined by what they hold: other times are put behind each other, other variables beside each other.
    **kwargs
        For `xarray.open_dataset`.

    Returns
    -------
    xr.Dataset
        All variables of all files, dask-backed. In GRIB files, the level type tells homonyms apart:

        - A parameter keeps its name on pressure levels, at a height above ground, at the surface, at mean sea level or for the
          whole column, in this order of preference; where the name is taken, the level type is appended
          (``tcc_convectiveCloudLayer``, ``t_tropopause``), and after that the kind of time processing (``sdswrf_avg``).
        - Parameters given on different sets of levels have different vertical dimensions (``isobaricInhPa``,
          ``isobaricInhPa1``), so that no level is made up and filled with NaN.
        - The height or level of a single-level parameter is an attribute (``GRIB_heightAboveGround``), and so are the steps that
          a mean or an accumulation covers, in hours unless ``GRIB_stepUnits`` differs (``GRIB_stepRange: "114-120"``).

    Raises
    ------
    InputError
        If there is nothing to open, the format is not known, a file is damaged, or the package that reads it is missing.
    GridError
        If the files are on several horizontal grids.
    """
    files = _expand(path)
    formats = {file: _format(file) for file in files}
    unknown = [f"{file}: {problem}" for file, problem in formats.items() if problem not in _INSTALL]
    if unknown:
        raise InputError("these files cannot be opened" if len(unknown) > 1 else "this file cannot be opened", unknown)
    for kind in dict.fromkeys(formats.values()):
        _require(kind)
    grib = [file for file in files if formats[file] == "grib"]
    datasets = [_open_grib(grib, **kwargs)] if grib else []
    datasets += [_open_other(file, formats[file], **kwargs) for file in files if formats[file] != "grib"]
    return datasets[0] if len(datasets) == 1 else _combine(datasets)


def sample() -> xr.Dataset:
    """The global state that comes with the package: NOAA GFS, 2.5 degrees, valid 2011-01-15 12 UTC (public domain)."""
    return open(Path(__file__).with_name("sample.nc"))


def _expand(path) -> list[str]:
    """File names and URLs behind a path, pattern, folder or list of them."""
    if not isinstance(path, (str, os.PathLike)):
        if not isinstance(path, Iterable) or isinstance(path, (xr.Dataset, xr.DataArray, Mapping)):
            raise InputError(f"cannot open a {type(path).__name__}", ["needed a path, a pattern or a list of paths"])
        paths = [name for item in path for name in _expand(item)]
        if not paths:
            raise InputError("cannot open an empty list of files", ["needed at least one path"])
        return paths
    name = os.fspath(path)
    if "://" in name:
        return [name]
    if os.path.isdir(name) and not _is_zarr(name):
        inside = sorted(str(p) for p in Path(name).iterdir() if p.suffix.lower() in _SUFFIXES or _is_zarr(p))
        if not inside:
            raise InputError(f"the folder {name} cannot be opened", ["it holds no GRIB, NetCDF or Zarr file"])
        return inside
    if os.path.exists(name):
        return [name]
    found = sorted(glob.glob(name)) if glob.has_magic(name) else []
    if not found:
        what = "nothing matches this pattern" if glob.has_magic(name) else "it does not exist"
        raise InputError(f"{name} cannot be opened", [f"{what} (working directory {os.getcwd()})"])
    return [file for match in found for file in _expand(match)]


def _is_zarr(path) -> bool:
    return os.path.isdir(path) and any(os.path.exists(os.path.join(path, mark)) for mark in _ZARR_MARKS)


def _format(name: str) -> str:
    """``"grib"``, ``"netcdf"`` or ``"zarr"``; any other text says what is wrong."""
    if "://" in name:
        return "zarr" if ".zarr" in name else "netcdf"
    if os.path.isdir(name):
        return "zarr"
    with Path(name).open("rb") as file:
        head = file.read(1024)
    if not head:
        return "the file is empty; fetch it again"
    if head[:4] in _MAGIC:
        return _MAGIC[head[:4]]
    if b"GRIB" in head:  # a bulletin header may come first
        return "grib"
    if head[:2] == b"PK" and name.endswith(".zip"):
        return "zarr"
    return f"neither GRIB, NetCDF nor Zarr (it begins with {head[:12]!r})"


def _require(kind: str) -> None:
    """Raise unless a package that reads this kind of file can be imported."""
    from importlib.util import find_spec

    if not any(find_spec(package) for package in _PACKAGES[kind]):
        raise InputError("these files cannot be opened", [_INSTALL[kind]])


def _open_other(name: str, kind: str, **kwargs) -> xr.Dataset:
    kwargs = {"chunks": {}, **({"engine": "zarr"} if kind == "zarr" else {}), **kwargs}
    try:
        return xr.open_dataset(name, **kwargs)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"{name} cannot be opened", [f"damaged, incomplete or not {kind}: {_first_line(error)}"]) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


# --- several files ---------------------------------------------------------------------------------------------------


def _combine(datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Put files with other times behind each other and files with other variables beside each other."""
    datasets = [_with_time_dimension(ds) for ds in _without_homonyms(datasets)]
    try:
        combined = xr.combine_by_coords(
            datasets, join="outer", compat="no_conflicts", data_vars="minimal", coords="minimal", combine_attrs="drop_conflicts"
        )
        return cast("xr.Dataset", combined)  # a DataArray comes of DataArrays only
    except (ValueError, xr.MergeError) as error:
        raise InputError("these files do not fit together", [f"{_first_line(error)}. Open them one by one"]) from error


def _with_time_dimension(ds: xr.Dataset) -> xr.Dataset:
    """Make a scalar time a dimension, so that files of one time each can be put behind each other."""
    for name in ("time", "valid_time"):
        if name in ds.coords and ds[name].ndim == 0 and ds[name].dtype.kind == "M":
            return ds.expand_dims(name)
    return ds


def _without_homonyms(datasets: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """Rename a variable that has a vertical dimension in one file and none in another (z on levels, z at the surface)."""
    ndims = defaultdict(set)
    for ds in datasets:
        for name, array in ds.data_vars.items():
            ndims[name].add(array.squeeze().ndim)
    clashing = {name for name, sizes in ndims.items() if max(sizes) >= 3 and len(sizes) > 1}
    low = [{n: f"{n}_surface" for n in clashing & set(ds.data_vars) if ds[n].squeeze().ndim < max(ndims[n])} for ds in datasets]
    return [ds.rename(names) for ds, names in zip(datasets, low, strict=True)]


# --- GRIB ------------------------------------------------------------------------------------------------------------


class _Messages(Mapping):
    """The messages of one hypercube, each read when it is asked for."""

    def __init__(self, places: Sequence[tuple[str, Any]]):
        self.places = tuple(places)

    def __getitem__(self, place: tuple[str, Any]) -> Message:
        from cfgrib.messages import FileStream

        path, offset = place
        return FileStream(path, errors="raise")[offset]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __dask_tokenize__(self):
        return (type(self).__name__, self.places, [os.path.getmtime(path) for path in {path for path, _ in self.places}])


def _open_grib(files: Sequence[str], **kwargs) -> xr.Dataset:
    """Merge the hypercubes of GRIB files; reads every header once to sort the messages, and once more to build the cubes."""
    cubes = _sort_messages(files)
    lagged = not all(_is_full(messages, ("run", "step")) for messages in cubes.values())
    time_dims = ("valid_time",) if lagged and all(_is_full(m, ("valid",)) for m in cubes.values()) else ("time", "step")
    arrays = [_open_cube(messages, time_dims, **kwargs) for messages in cubes.values()]
    arrays = _share_vertical_dimensions([_with_level(array) for array in arrays])
    named = {name: _describe(array.rename(name).copy(deep=False)) for name, array in _names(arrays).items()}
    ds = xr.merge(named.values(), join="outer", compat="override", combine_attrs="drop_conflicts")
    ds.attrs = {**arrays[0].attrs["dataset"], "Conventions": "CF-1.7"}
    return _squeeze_time(ds)


class _Header(NamedTuple):
    """Where a message is, and what tells it from the others of its hypercube."""

    place: tuple[str, Any]
    number: Any
    level: float
    run: tuple[int, int]
    step: int
    valid: tuple[int, int]
    range: str


def _sort_messages(files: Sequence[str]) -> dict[tuple, list[_Header]]:
    """All messages by hypercube; a second message with the same header (another layer, another interval) opens another one."""
    from cfgrib.messages import FileStream
    from eccodes import CodesInternalError

    cubes: dict[tuple, list[_Header]] = defaultdict(list)
    grids: Counter[str] = Counter()
    seen: Counter[tuple] = Counter()
    for file in files:
        count = 0
        try:
            for offset, message in FileStream(file, errors="raise").items():
                key, header = _cube_key(message), _header(message, (file, offset))
                seen[key, header[1:5]] += 1
                cubes[*key, seen[key, header[1:5]]].append(header)
                grids[message.message_get("md5GridSection")] += 1
                count += 1
        except (CodesInternalError, EOFError) as error:
            problem = f"damaged or incomplete after {count} messages ({_first_line(error)}); fetch it again"
            raise InputError(f"{file} cannot be opened", [problem]) from error
    if len(grids) > 1:
        raise GridError("these messages do not fit together", [f"{len(grids)} horizontal grids. Open one grid at a time"])
    return dict(cubes)


def _header(message: Message, place: tuple[str, Any]) -> _Header:
    get = lambda key, kind=None: message.message_get(key, kind, default=0)
    run, valid = (get("dataDate"), get("dataTime")), (get("validityDate"), get("validityTime"))
    return _Header(place, get("number"), get("level", float), run, get("endStep", int), valid, str(get("stepRange", str)))


def _is_full(messages: Sequence[_Header], times: tuple[str, ...]) -> bool:
    """True if the messages fill a cube of all their members, levels and times."""
    return len(messages) == np.prod([len({getattr(m, key) for m in messages}) for key in ("number", "level", *times)])


def _cube_key(message: Message) -> tuple:
    """What the messages of one hypercube have in common: parameter, level type, step type, data type, step unit."""
    get = lambda key: message.message_get(key, default="")
    parameter = get("paramId")
    if parameter == 0:  # not in the tables of ecCodes
        second = ("discipline", "parameterCategory", "parameterNumber")
        keys = second if get("edition") == 2 else ("table2Version", "indicatorOfParameter")
        parameter = "_".join(str(get(key)) for key in keys)
    return parameter, get("typeOfLevel"), get("stepType"), get("dataType"), get("stepUnits")


def _open_cube(messages: Sequence[_Header], time_dims: tuple[str, ...], **kwargs) -> xr.DataArray:
    """One hypercube with dims (number, times, level, ..., y, x), all kept, and its dataset's attributes under ``"dataset"``."""
    options = {"squeeze": False, "time_dims": time_dims, "read_keys": ("shapeOfTheEarth", "radius")}
    options |= kwargs.get("backend_kwargs", {})
    rest = {key: value for key, value in kwargs.items() if key != "backend_kwargs"}
    rest = {"chunks": dict.fromkeys((*time_dims, "number"), 1), "decode_timedelta": True, **rest}
    fields = _Messages([message.place for message in messages])
    ds = xr.open_dataset(cast("Any", fields), engine="cfgrib", backend_kwargs=options, **rest)
    (array,) = ds.data_vars.values()
    if str(array.name).startswith(("unknown", "paramId")):
        array = array.rename(f"unknown_{_cube_key(fields[messages[0].place])[0]}")
    attrs: dict[str, Any] = {"dataset": {key: value for key, value in ds.attrs.items() if key != "history"}}
    if array.attrs.get("GRIB_stepType", "instant") != "instant":
        attrs["GRIB_stepRange"] = " ".join(dict.fromkeys(m.range for m in sorted(messages, key=lambda m: m.step)))
    return array.assign_attrs(attrs).drop_vars("valid_time" if "valid_time" not in time_dims else [], errors="ignore")


def _with_level(array: xr.DataArray) -> xr.DataArray:
    """Keep several levels, and any pressure level, as a dimension; make one other level an attribute."""
    kind = array.attrs.get("GRIB_typeOfLevel", "level")
    if kind not in array.dims or array.sizes[kind] > 1 or kind.startswith("isobaric"):
        return array
    value = array[kind].item()
    return array.squeeze(kind, drop=True).assign_attrs({f"GRIB_{kind}": value})


def _share_vertical_dimensions(arrays: list[xr.DataArray]) -> list[xr.DataArray]:
    """Number the vertical dimensions of the same type with different levels; the one with most levels has the plain name."""
    kinds = [array.attrs.get("GRIB_typeOfLevel", "level") for array in arrays]
    columns = [tuple(a[kind].values.tolist()) if kind in a.dims else () for a, kind in zip(arrays, kinds, strict=True)]
    by_kind: dict[str, Counter[tuple]] = defaultdict(Counter)
    for kind, column in zip(kinds, columns, strict=True):
        by_kind[kind][column] += 1
    ranked = {kind: sorted(count, key=lambda c: (-len(c), -count[c], c)) for kind, count in by_kind.items()}
    names = [f"{kind}{ranked[kind].index(column) or ''}" for kind, column in zip(kinds, columns, strict=True)]
    return [a.rename({k: n}) if k in a.dims else a for a, k, n in zip(arrays, kinds, names, strict=True)]


def _names(arrays: Sequence[xr.DataArray]) -> dict[str, xr.DataArray]:
    """Give every array a name of its own: plain, with its level type, with its step type, with its data type, numbered."""
    named: dict[str, xr.DataArray] = {}
    for array in sorted(arrays, key=_rank):
        get = lambda key, array=array: array.attrs.get(f"GRIB_{key}", "")
        name = str(array.name)
        for suffix in (get("typeOfLevel"), get("stepType"), get("dataType"), *map(str, range(2, 1000))):
            if name not in named:
                break
            taken = named[name].attrs
            if suffix and not any(taken.get(f"GRIB_{key}") == suffix for key in ("typeOfLevel", "stepType", "dataType")):
                name = f"{name}_{suffix}"
        named[name] = array
    return named


def _rank(array: xr.DataArray) -> tuple:
    level, step = array.attrs.get("GRIB_typeOfLevel"), array.attrs.get("GRIB_stepType")
    levels = _PLAIN_LEVELS.index(level) if level in _PLAIN_LEVELS else len(_PLAIN_LEVELS)
    steps = _STEP_TYPES.index(step) if step in _STEP_TYPES else len(_STEP_TYPES)
    return levels, steps, str(level), str(array.name)


_GROUND = {"geopotential_height": "surface_altitude", "geopotential": "surface_geopotential"}


def _describe(array: xr.DataArray) -> xr.DataArray:
    """Drop attributes that say nothing, and call the geopotential (height) of the ground what it is."""
    attrs = {key: value for key, value in array.attrs.items() if key != "dataset" and value != "unknown"}
    if attrs.get("GRIB_typeOfLevel") == "surface" and attrs.get("standard_name") in _GROUND:
        attrs["standard_name"] = _GROUND[attrs["standard_name"]]
    array.attrs = attrs
    return array


def _squeeze_time(ds: xr.Dataset) -> xr.Dataset:
    """Make single times, steps and members scalars, and add the valid time."""
    ds = ds.squeeze([dim for dim in ("number", "time", "step", "valid_time") if ds.sizes.get(dim) == 1])
    if "time" in ds.coords and "step" in ds.coords:
        ds = ds.assign_coords(valid_time=ds["time"] + ds["step"])
        ds["valid_time"].attrs = {"standard_name": "time", "long_name": "time"}
    return ds
