"""Train `hengduan-0p05` on world B: hourly maps of 0.05 degrees over the Hengduan Mountains, around a trained global network.

    python examples/train_hengduan.py DATA RELIEF pretrained/hengduan-0p05 --outer pretrained/twin-ea-small --runs runs/hengduan

DATA holds the packed twin world A (docs/models.md), RELIEF heights of the earth in m. World B is what terrain physics makes of
the regional hours of world A over real relief; it is computed when it is needed and never stored. Periods are those of
`train_twin_ea.py`. Finished stages are kept in --runs; a run that is started again goes on from there.
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import xarray as xr
from train_twin_ea import TEST, TRAIN, VALIDATION, read_twin_world

import xscalemixer as xsm

MARGIN = 4.5  # degrees of world A around the relief: three cells and what they are interpolated from
GRID = xsm.Grid.regular("35.975", "94.025", "0.05", (240, 240))
CARD = Path(__file__).parents[1] / "docs" / "cards" / "hengduan-0p05.md"
CONFIG = xsm.TrainConfig(
    name="hengduan-0p05",
    train=TRAIN,
    validation=VALIDATION,
    test=TEST,
    size="fine",
    statics=("orog", "lsm", "slope", "slope_east", "slope_north", "roughness"),
    first_guess="terrain",
    calendar=("hour",),
    stages=(  # with samples that look like other seasons
        xsm.Stage(kind="regional", updates=2200, batch=2, peak=2e-3, season_shift=35.0),
        xsm.Stage(kind="rollout", updates=80, batch=2, peak=2e-4, steps=4, season_shift=35.0),
        xsm.Stage(kind="cold_start", updates=240, batch=2, peak=1e-3, season_shift=35.0),
    ),
)


def read_world_b(folder: Path, relief: Path, grid: xsm.Grid = GRID) -> xr.DataTree:
    """Both branches of world B: the globe of world A, and its region carried to the relief, six lazy hours at a time."""
    world = read_twin_world(folder)
    (north, south), (west, east) = grid.latitude_bounds[[0, -1]], grid.longitude_bounds[[0, -1]]
    around = {"lat": slice(north + MARGIN, south - MARGIN), "lon": slice(west - MARGIN, east + MARGIN)}
    coarse = world["regional"].to_dataset().sel(around).load().chunk(time=6)  # a training sample is two such blocks
    heights = xr.open_dataset(relief)["z"].assign_attrs(units="m", standard_name="surface_altitude")
    fine = xsm.adjust_to_terrain(coarse, heights, grid=grid)
    land = xr.where(fine["orog"] > 0, 1.0, 0.0).assign_attrs(units="1", standard_name="land_area_fraction")
    return xr.DataTree.from_dict({"/global": world["global"].to_dataset(), "/regional": fine.assign(lsm=land)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("relief", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--outer", default="twin-ea-small", help="name or folder of the model whose global network is taken over")
    parser.add_argument("--runs", type=Path, default=Path("runs/hengduan-0p05"))
    parser.add_argument("--memory", type=float, default=1.0, help="GiB of fields to hold; with 4 all of them are computed once")
    parser.add_argument("--updates", type=float, default=1.0, help="share of the updates, to try things out")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("xscalemixer").setLevel(logging.INFO)
    stages = tuple(replace(stage, updates=max(1, round(options.updates * stage.updates))) for stage in CONFIG.stages)
    outer, tree = xsm.load(options.outer), read_world_b(options.data, options.relief)
    network = {"heads": outer.network.config.heads, "driver_width": 16}  # heads: those of the global network
    config = replace(CONFIG, stages=stages, network=network)
    model = xsm.train(config, tree, outer=outer, folder=options.runs, memory=options.memory)
    model.save(options.target, card=CARD.read_text(encoding="utf-8"), overwrite=True, half=True)


if __name__ == "__main__":
    main()
