"""The default model on the sample: both networks hear each other, relief is seen, physical ranges, no seams."""

import json

import numpy as np
import pytest
import xarray as xr

import xscalemixer as xsm
from xscalemixer.verification import patch_seams, power_spectrum

NAME = "hengduan-0p05"


@pytest.fixture(scope="module")
def fc():
    return xsm.sample().scalemixer.forecast(48, model=NAME, diagnose=True).isel(reference_time=0).load()


def lapse(temperature, height):
    """K per km beside a linear change with latitude and longitude."""
    lat, lon = xr.broadcast(height["latitude"], height["longitude"])
    columns = np.stack([height.values.ravel() / 1000, lat.values.ravel(), lon.values.ravel(), np.ones(height.size)], 1)
    return -np.linalg.lstsq(columns, temperature.values.ravel(), rcond=None)[0][0]


def test_it_is_the_default(fc):
    assert xsm.load().name == NAME
    np.testing.assert_allclose([float(fc[axis].diff(axis).mean()) for axis in ("latitude", "longitude")], [-0.05, 0.05])


def test_both_branches_hear_each_other(fc):
    response = json.loads(fc.attrs["coupling_response"])
    assert response["driver_outside_moves_region"] > 1e-3
    assert response["region_moves_driver_inside"] > 1e-3


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("t2m", 225, 310),
        ("u10", -30, 30),
        ("v10", -30, 30),
        ("q2m", 0, 0.025),
        ("sp", 42e3, 102e3),
        ("tcc", 0, 1),
        ("ssrd", 0, 1250),
    ],
)
def test_values_are_sane(fc, name, low, high):
    assert low <= float(fc[name].min()) and float(fc[name].max()) <= high


def test_pressure_and_temperature_know_the_height(fc):
    """The lapse over the relief is near that of the free air (5.1 K/km), pressure changes by the hypsometric equation."""
    for lead in (6, 24, 48):
        now = fc.sel(lead_time=lead)
        assert 3.0 < lapse(now["t2m"], fc["orog"]) < 6.0
        rise, warm = fc["orog"].diff("longitude"), now["t2m"].rolling(longitude=2).mean().isel(longitude=slice(1, None))
        fall = np.log(now["sp"]).diff("longitude")
        far = abs(rise.values) > 150.0
        height = -fall.values * 287.06 * warm.values / 9.80665
        assert np.abs(height[far] / rise.values[far] - 1.0).mean() < 0.1


def test_valleys_and_ridges_are_in_the_maps(fc):
    """Structures smaller than 50 km that the driver of 600 km cannot have brought."""
    power = power_spectrum(fc[["t2m", "u10", "ssrd"]].sel(lead_time=[18, 42]))
    small = power.where((power["wavelength"] < 50.0) & power["complete"], drop=True)
    assert float(small["t2m"].sum("wavenumber").mean()) > 0.02
    assert float(small["u10"].sum("wavenumber").mean()) > 1e-4


def test_days_are_warmer_and_nights_dark(fc):
    mean = fc[["t2m", "ssrd"]].mean(["latitude", "longitude"])
    for day in (0, 24):
        night, noon = mean.sel(lead_time=day + 9), mean.sel(lead_time=day + 19)  # 21 and 07 UTC: 4 and 14 local
        assert float(night["ssrd"]) == 0.0 and float(noon["ssrd"]) > 200
        assert float(noon["t2m"]) > float(night["t2m"]) + 0.5


def test_the_start_is_kept_on_the_way(fc):
    """No drift to the season of the training data: within 4 K of the first hour on average over the box."""
    mean = fc["t2m"].mean(["latitude", "longitude"])
    assert float(abs(mean - mean[0]).max()) < 4.0


def test_no_seams_between_patches(fc):
    """Changes from the mean in time, which has the steps of the relief, are no rougher at borders than elsewhere."""
    some = fc[["t2m", "u10", "v10", "q2m", "tcc", "ssrd"]].isel(lead_time=slice(5, None, 6))
    rough = patch_seams(some - some.mean("lead_time"), 20).to_dataarray()
    assert (rough.sel(place=0) < 1.2 * rough.drop_sel(place=0).max("place")).all()
