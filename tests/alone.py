"""A region alone: an untrained Met2Net on the fields of `worlds.box`, and settings to train one."""

import torch
from worlds import _stats, box

import xscalemixer as xsm
from xscalemixer.grids import grid_of
from xscalemixer.model import Branch
from xscalemixer.nn.met2net import Met2Net, Met2NetConfig
from xscalemixer.regional import RegionalForecaster, Statics
from xscalemixer.variables import REGIONAL

NETWORK = {"past": 4, "future": 4, "translator": {"width": 16, "depth": 1, "heads": 2}}
PERIODS = {
    "train": (("2020-06-01T12", "2020-06-02T12"),),
    "validation": (("2020-06-02T12", "2020-06-03T00"),),
}


def region(times=None):
    """Hourly fields on an odd number of cells."""
    return box(times, shape=(9, 13))


def alone(past=4, future=4, seed=0) -> RegionalForecaster:
    """An untrained network on the grid of `region`."""
    torch.manual_seed(seed)
    ds = region()
    settings = Met2NetConfig.tiny(channels=7).changed({**NETWORK, "past": past, "future": future})
    statics = Statics({name: ds[name].values for name in ("orog", "lsm")})
    branch = Branch(REGIONAL, grid_of(ds), _stats(ds, REGIONAL))
    return RegionalForecaster("alone", Met2Net(settings), branch, statics)


def settings(*kinds, updates=2, **changes) -> xsm.Met2NetTrainConfig:
    """A short run."""
    stages = tuple(xsm.Stage(kind=kind, updates=updates, batch=2, peak=1e-3) for kind in kinds)
    usual = {"name": "alone", "size": "tiny", "network": NETWORK, "variables": ("t2m", "sp", "tcc"), "stages": stages}
    usual |= {"check_every": 2, "warmup": 1}
    return xsm.Met2NetTrainConfig(**{**usual, "precision": "fp32", **PERIODS, **changes})
