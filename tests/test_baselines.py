import numpy as np
import pytest
import xarray as xr

import xscalemixer as xsm
from xscalemixer.errors import TimeError

DAYS = np.arange("2001-08-10T00", "2001-08-14T00", dtype="M8[h]").astype("M8[ns]")
STARTS = DAYS[[24, 30, 48]]
K = {"units": "degC", "standard_name": "air_temperature"}


@pytest.fixture
def archive():
    """Two by three cells that show the hours since the first time, in degrees Celsius / 10."""
    hours = np.arange(DAYS.size, dtype="f4") / 10
    lat, lon = [20.0, 10.0], [100.0, 110.0, 120.0]
    field = np.broadcast_to(hours[:, None, None], (DAYS.size, 2, 3))
    return xr.Dataset({"t2m": (("time", "latitude", "longitude"), field, K)}, {"time": DAYS, "latitude": lat, "longitude": lon})


def hours_shown(fc):
    return (fc["t2m"].isel(latitude=0, longitude=0) - 273.15).values * 10


def test_persistence_shows_the_hour_of_the_start(archive):
    fc = xsm.persistence_forecast(archive, STARTS, hours=3)
    assert dict(fc.sizes) == {"reference_time": 3, "lead_time": 3, "latitude": 2, "longitude": 3}
    np.testing.assert_allclose(hours_shown(fc), np.array([[24.0], [30], [48]]) * np.ones(3), atol=1e-3)


def test_daily_persistence_repeats_the_last_day(archive):
    fc = xsm.persistence_forecast(archive, STARTS[:1], hours=30, period=24)
    expected = [*range(1, 25), *range(1, 7)]  # the 24 hours up to hour 24, then again
    np.testing.assert_allclose(hours_shown(fc)[0], expected, atol=1e-3)


def test_climatology_forecast_is_the_mean_of_the_same_hour(archive):
    climate = xsm.climatology(archive, window=15)
    fc = xsm.climatology_forecast(climate, STARTS[1], hours=24)
    expected = [np.mean([hour + 24 * day for day in range(4)]) for hour in [(6 + lead) % 24 for lead in range(1, 25)]]
    np.testing.assert_allclose(hours_shown(fc)[0], expected, atol=1e-3)


def test_baselines_stay_lazy(archive):
    fc = xsm.persistence_forecast(archive.chunk(time=24), STARTS, hours=3)
    climate = xsm.climatology_forecast(xsm.climatology(archive.chunk(latitude=1)), STARTS, hours=3)
    assert fc["t2m"].chunks is not None
    assert climate["t2m"].chunks is not None


def test_forecast_that_is_the_truth_has_no_error(archive):
    fc = xsm.persistence_forecast(archive.isel(time=slice(0, 1)), DAYS[0], hours=5)
    flat = archive.isel(time=slice(0, 10)).assign(t2m=archive["t2m"].isel(time=0).broadcast_like(archive["t2m"]))
    flat["t2m"].attrs = archive["t2m"].attrs
    assert float(xsm.score(fc, flat)["t2m"].sel(metric="rmse").max()) == 0


def test_missing_hours_and_wrong_numbers_are_told(archive):
    with pytest.raises(TimeError, match="23 hours are not in the analyses, the first 2001-08-09T01"):
        xsm.persistence_forecast(archive, DAYS[0], period=24)
    with pytest.raises(TimeError, match="hours=0; needed a whole number"):
        xsm.persistence_forecast(archive, DAYS[0], hours=0)
    with pytest.raises(TimeError, match=r"hours=1\.5"):
        xsm.persistence_forecast(archive, DAYS[0], period=1.5)
    with pytest.raises(TimeError, match="no hour"):
        xsm.climatology_forecast(xsm.climatology(archive.isel(time=slice(0, 3))), DAYS[0])
