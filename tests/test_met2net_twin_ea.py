"""The shipped model of a region alone: sane values, dark nights, and better than persistence where it can be known."""

import numpy as np
import pytest
from test_twin_ea_small import BEHIND
from worlds import HOUR, START, box

import xscalemixer as xsm

NAME = "met2net-twin-ea"
LIMITS = {  # in canonical units
    "t2m": (200, 330), "u10": (-45, 45), "v10": (-45, 45), "q2m": (0, 0.04), "sp": (45e3, 108e3),
    "tcc": (0, 1), "ssrd": (0, 1300),
}  # fmt: skip


@pytest.fixture(scope="module")
def fc():
    region = box(START - np.arange(11, -1, -1) * HOUR, north=66.0, west=59.0, step=1.0, shape=(68, 104))
    return region.scalemixer.forecast(hours=15, model=NAME)


@pytest.mark.parametrize("name", LIMITS)
def test_values_are_sane(fc, name):
    low, high = LIMITS[name]
    assert fc.sizes["lead_time"] == 15 and low <= float(fc[name].min()) and float(fc[name].max()) <= high


def test_nights_are_dark_and_days_are_not(fc):
    """From 12 UTC on: midnight at 90 E is at 18 UTC, noon at 135 E at 03 UTC of the next day."""
    sun = fc["ssrd"].isel(reference_time=0)
    assert float(sun.sel(lead_time=6).sel(longitude=90, latitude=20, method="nearest")) == 0.0
    assert float(sun.sel(lead_time=15).sel(longitude=135, latitude=20, method="nearest")) > 100


def test_variables_have_learned_to_listen_to_themselves_first():
    """In the mean over blocks, heads and variables more than half of the weight; with random weights it is a seventh."""
    model = xsm.load(NAME)
    past = model.network.config.past
    random = np.random.default_rng(0).standard_normal((1, past, 7, *model.inner.grid.shape)).astype("f4")
    weights = model.network.attention(model.scale.mean.new_tensor(random))
    assert weights.shape[-2:] == (7, 7) and float(weights.diagonal(dim1=-2, dim2=-1).detach().mean()) > 0.5


def test_held_out_block_beats_persistence(shared_data):
    """From a test block of twin world A: after six hours every variable is better than persistence, t2m by a third."""
    region = xsm.open(str(shared_data / "nature" / "regional_2001-10-04.nc"))
    region = region.assign_coords(time=region["time"] - BEHIND)
    start = np.datetime64("2001-07-10T00")
    fc = region.scalemixer.forecast(hours=6, model=NAME, init_time=start)
    now, later = (region.sel(time=t) for t in (start, start + 6 * HOUR))
    error = lambda field, name: float(np.sqrt(((field - later[name].values) ** 2).mean()))
    ratio = {name: error(fc[name].values[0, 5], name) / error(now[name].values, name) for name in LIMITS}
    assert ratio["t2m"] < 0.67 and max(ratio.values()) < 1, ratio
