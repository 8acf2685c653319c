"""Hourly regional weather forecasts from any xarray dataset, by a global and a regional network that talk to each other.

>>> import xscalemixer as xsm
>>> gfs = xsm.open("gfs.grib2")  # doctest: +SKIP
>>> fc = gfs.scalemixer.forecast(hours=48)  # doctest: +SKIP
"""

from importlib import import_module

from xscalemixer._version import __version__

# name -> module; imported on first use, so that `import xscalemixer` costs little and never imports torch
_LAZY = {
    "open": "readers",
    "sample": "readers",
    "adjust_to_terrain": "terrain",
    "regrid": "regridding",
    "Grid": "grids",
    "Report": "report",
    "check": "forecasting",
    "forecast": "forecasting",
    "key_positions": "forecasting",
    "hindcast": "hindcasting",
    "downscale": "downscaling",
    "downscaling_pair": "downscaling",
    "calibrate": "calibrating",
    "load": "pretrained",
    "models": "pretrained",
    "train": "training",
    "finetune": "training",
    "TrainConfig": "training",
    "Met2NetTrainConfig": "training",
    "CorrDiffConfig": "training",
    "Stage": "training",
    "score": "verification",
    "rescore": "verification",
    "read_stations": "stations",
    "at_stations": "stations",
    "climatology": "verification",
    "climatology_forecast": "verification",
    "persistence_forecast": "verification",
    "plot": "plotting",
    "plot_overview": "plotting",
    "to_weatherbench2": "layouts",
    "from_weatherbench2": "layouts",
    "to_cfgrib": "layouts",
    "to_climpred": "layouts",
    "to_forecast": "layouts",
    "InputError": "errors",
    "SchemaError": "errors",
    "GridError": "errors",
    "TimeError": "errors",
    "CheckpointError": "errors",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f"xscalemixer.{_LAZY[name]}"), name)
    if name in _LAZY.values():  # their modules have more
        return import_module(f"xscalemixer.{name}")
    raise AttributeError(f"module 'xscalemixer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


from xscalemixer import accessor as _accessor  # noqa: E402, F401  registers .scalemixer
