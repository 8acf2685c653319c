"""A short run that tests start in processes of their own: ``python train_tiny.py FOLDER [--distributed] [...]``."""

import argparse

import numpy as np
import torch
import xarray as xr
from worlds import HOUR, LEVELS, OUTER, START, box, globe

import xscalemixer as xsm
from xscalemixer.grids import Grid

SMALL = Grid.regular("87.1875", "2.8125", "5.625", (32, 64))
PERIODS = {"train": ((str(START), "2020-06-03T12"),), "validation": (("2020-06-03T12", "2020-06-04T12"),)}


def small_tree(step: int = 6) -> xr.DataTree:
    """Three days of both branches, the global one every ``step`` hours."""
    hours = START + np.arange(1, 73) * HOUR
    outer = globe(hours[step - 1 :: step], np.array(SMALL.latitude), np.array(SMALL.longitude))
    return xr.DataTree.from_dict({"/global": outer, "/regional": box(hours)})


def stages(updates: int, **changes) -> tuple[xsm.Stage, ...]:
    """All kinds, with all that draws random numbers."""
    kinds = {"global": (1, 0.0), "regional": (1, 10.0), "rollout": (2, 0.0), "cold_start": (1, 10.0)}
    return tuple(
        xsm.Stage(kind=kind, updates=updates, batch=4, steps=steps, season_shift=shift, peak=1e-3, **changes)
        for kind, (steps, shift) in kinds.items()
    )


def small_config(**changes) -> xsm.TrainConfig:
    settings = {
        "name": "tiny",
        "size": "tiny",
        "check_every": 2,
        "warmup": 1,
        "precision": "fp32",
        "network": {"sunlit_channel": 6},
        "global_variables": OUTER.names,
        "global_levels": LEVELS,
    }
    return xsm.TrainConfig(**{**settings, **PERIODS, **changes})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--distributed", action="store_true", help="with DDP in FOLDER/ddp, and with FSDP2 in FOLDER/fsdp2")
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--save-updates", type=int, default=200)
    options = parser.parse_args()
    config, settings = small_config(stages=stages(options.updates)), {"save_updates": options.save_updates, "min_samples": 1}
    if not options.distributed:
        xsm.train(config, small_tree(), folder=options.folder, **settings)
    else:
        torch.distributed.init_process_group("gloo")
        for name, sharded in (("ddp", False), ("fsdp2", True)):
            xsm.train(config, small_tree(), folder=f"{options.folder}/{name}", sharded=sharded, **settings)
        torch.distributed.destroy_process_group()
