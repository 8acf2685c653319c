"""The shipped model: coupled, seamless, within physical ranges, and better than persistence where it can be known."""

import json

import numpy as np
import pytest
import xarray as xr

import xscalemixer as xsm

HOUR = np.timedelta64(1, "h")
BEHIND = np.timedelta64(88, "D")  # the sun of twin world A behind its calendar, see docs/models.md


@pytest.fixture(scope="module")
def fc():
    return xsm.sample().scalemixer.forecast(48, model="twin-ea-small", diagnose=True)


def test_both_branches_hear_each_other(fc):
    response = json.loads(fc.attrs["coupling_response"])
    assert response["driver_outside_moves_region"] > 1e-3
    assert response["region_moves_driver_inside"] > 1e-3
    assert response["region_moves_driver_outside"] > 1e-5


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("t2m", 210, 320),
        ("u10", -40, 40),
        ("v10", -40, 40),
        ("q2m", 0, 0.03),
        ("sp", 48e3, 106e3),
        ("tcc", 0, 1),
        ("ssrd", 0, 1250),
    ],
)
def test_values_are_sane(fc, name, low, high):
    assert low <= float(fc[name].min()) and float(fc[name].max()) <= high


def test_terrain_is_visible(fc):
    """Air is colder and pressure lower on the Tibetan plateau than in the plain at the same latitude."""
    tibet, plain = (
        fc.sel(latitude=32, longitude=lon, method="nearest").isel(reference_time=0, lead_time=24) for lon in (88, 118)
    )
    assert float(tibet["sp"]) < 65e3 and float(plain["sp"]) > 98e3
    assert float(tibet["t2m"]) < float(plain["t2m"]) - 8


def test_sun_rises_and_warms(fc):
    """Over land in the tropics: dark at night, warmer in the afternoon than before sunrise, on both days."""
    land = fc.where(fc["lsm"] > 0.5).sel(latitude=slice(30, 8), longitude=slice(95, 110)).mean(("latitude", "longitude"))
    for day in (0, 24):
        before_sunrise, afternoon = (land.sel(lead_time=day + lead).isel(reference_time=0) for lead in (9, 19))  # 21 and 07 UTC
        assert float(before_sunrise["ssrd"]) == 0.0 and float(afternoon["ssrd"]) > 200
        assert float(afternoon["t2m"]) > float(before_sunrise["t2m"]) + 1.5


def curvature_by_phase(field, axis, offset, patch):
    """Mean absolute second difference along an axis by position within the patch, relative to the mean; shape (patch,)."""
    other = tuple(i for i in range(field.ndim) if i != axis)
    curvature = np.abs(np.diff(field, n=2, axis=axis)).mean(other)
    phase = (np.arange(1, curvature.size + 1) + offset) % patch
    return np.array([curvature[phase == k].mean() for k in range(patch)]) / curvature.mean()


@pytest.mark.parametrize("name", ["t2m", "u10", "v10", "q2m", "tcc", "ssrd"])
def test_no_seams_between_patches(fc, name):
    """Cells at patch borders are no rougher than the others."""
    inner = xsm.load("twin-ea-small").network.config.inner
    for axis, offset in zip((2, 1), inner.offset[::-1], strict=True):
        rough = curvature_by_phase(fc[name].values[0], axis, offset, inner.patch)
        assert max(rough[0], rough[-1]) < 1.2, rough


def test_held_out_block_beats_persistence(shared_data):
    """Warm start in a test block of twin world A: t2m after six hours at least 30 % better, every variable better."""
    files = (str(shared_data / "nature" / f"{branch}_2001-10-04.nc") for branch in ("global", "regional"))
    outer, inner = (ds.assign_coords(time=ds["time"] - BEHIND) for ds in map(xsm.open, files))
    tree, start = xr.DataTree.from_dict({"/global": outer, "/regional": inner}), np.datetime64("2001-07-10T00")
    fc = tree.scalemixer.forecast(6, model="twin-ea-small", init_time=start)
    now, later = (tree["regional"].to_dataset().sel(time=t) for t in (start, start + 6 * HOUR))
    error = lambda field, name: float(np.sqrt(((field - later[name].values) ** 2).mean()))
    ratio = {
        name: error(fc[name].values[0, 5], name) / error(now[name].values, name)
        for name in ("t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd")
    }
    assert ratio["t2m"] < 0.7
    assert max(ratio.values()) < 1, ratio


def test_sample_has_land_and_sea():
    assert set(np.unique(xsm.sample()["lsm"])) == {0.0, 1.0}
