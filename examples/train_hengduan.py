"""Train `hengduan-0p05` on world B: hourly maps of 0.05 degrees over the Hengduan Mountains, around a trained global network.

    python examples/train_hengduan.py DATA RELIEF pretrained/hengduan-0p05 --outer pretrained/twin-ea-small --runs runs/hengduan

DATA holds the packed twin world A (docs/models.md), RELIEF heights of the earth in m. World B is what terrain physics makes of
the regional hours of world A over real relief; it is computed when it is needed and never stored. Periods are those of
`train_twin_ea.py`. Finished stages are kept in --runs; a run that is started again goes on from there.
"""

from pathlib import Path

import xarray as xr
from train_twin_ea import read_twin_world

import xscalemixer as xsm

GRID = xsm.Grid.regular("35.975", "94.025", "0.05", (240, 240))
CARD = Path(__file__).parents[1] / "docs" / "cards" / "hengduan-0p05.md"


def read_world_b(folder: Path, relief: Path, grid: xsm.Grid = GRID) -> xr.DataTree:
    """Both branches of world B: the globe of world A, and its region carried to the relief, six lazy hours at a time."""
    world = read_twin_world(folder)
    coarse = world["regional"].to_dataset().chunk(time=6)  # a training sample is two such blocks
    heights = xr.open_dataset(relief)["z"].assign_attrs(units="m", standard_name="surface_altitude")
    fine = xsm.adjust_to_terrain(coarse, heights, grid=grid)
    land = xr.where(fine["orog"] > 0, 1.0, 0.0).assign_attrs(units="1", standard_name="land_area_fraction")
    return xr.DataTree.from_dict({"/global": world["global"].to_dataset(), "/regional": fine.assign(lsm=land)})
