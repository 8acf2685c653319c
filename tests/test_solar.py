"""Sun: closed forms and known instants."""

import numpy as np
import pytest

from xscalemixer.physics.solar import SOLAR_CONSTANT, cos_zenith, hourly_insolation

LAT, LON = np.linspace(89, -89, 90)[:, None], np.arange(0, 360, 5.0)[None, :]


def test_sun_is_overhead_at_noon_on_the_equator_at_the_equinox():
    noon = np.array(["2021-03-20T12:07"], "datetime64[s]")  # equation of time: 7.4 minutes
    assert cos_zenith(noon, np.array([[0.0]]), np.array([[0.0]]))[0, 0, 0] == pytest.approx(1.0, abs=2e-4)


@pytest.mark.parametrize(
    ("day", "declination"), [("2021-06-21T03:32", 23.44), ("2021-12-21T15:59", -23.44), ("2021-09-22T19:21", 0.0)]
)
def test_declination_at_solstices_and_equinox(day, declination):
    pole = cos_zenith(np.array([day], "datetime64[s]"), np.array([[90.0]]), np.array([[0.0]]))
    assert np.rad2deg(np.arcsin(pole[0, 0, 0])) == pytest.approx(declination, abs=0.02)


def test_leap_years_do_not_shift_the_seasons():
    days = np.array(["2020-06-21T12:00", "2021-06-21T12:00"], "datetime64[s]")
    a, b = np.rad2deg(np.arcsin(cos_zenith(days, np.array([[90.0]]), np.array([[0.0]]))))[:, 0, 0]
    assert a == pytest.approx(b, abs=0.03)


def test_global_mean_is_a_quarter_of_the_solar_constant():
    flux = hourly_insolation(np.array(["2021-04-04T00"], "datetime64[h]"), LAT, LON, hours=24)[0]  # mean distance
    weight = np.broadcast_to(np.cos(np.deg2rad(LAT)), flux.shape)
    assert np.average(flux, weights=weight) == pytest.approx(SOLAR_CONSTANT / 4, rel=3e-3)


def test_daily_mean_at_the_equator_at_the_equinox_is_s0_over_pi():
    flux = hourly_insolation(np.array(["2021-03-21T00"], "datetime64[h]"), np.array([[0.0]]), np.array([[0.0]]), hours=24)
    assert flux[0, 0, 0] == pytest.approx(SOLAR_CONSTANT / np.pi * 1.008, rel=3e-3)  # 1.008: distance in March


def test_polar_night_is_dark_and_polar_day_is_not():
    flux = hourly_insolation(np.array(["2021-12-21T06"], "datetime64[h]"), np.array([[80.0], [-80.0]]), LON)
    assert (flux[0, 0] == 0).all() and (flux[0, 1] > 300).all()


def test_mean_is_over_the_hour_before():
    sunrise = np.array(["2021-03-20T06", "2021-03-20T07", "2021-03-20T08"], "datetime64[h]")
    flux = hourly_insolation(sunrise, np.array([[0.0]]), np.array([[0.0]]))[:, 0, 0]
    assert flux[0] == pytest.approx(0.0, abs=1.0) and 0 < flux[1] < flux[2]


def test_turning_the_earth_is_waiting():
    later = hourly_insolation(np.array(["2021-05-01T13"], "datetime64[h]"), LAT, LON - 15.0)
    now = hourly_insolation(np.array(["2021-05-01T12"], "datetime64[h]"), LAT, LON)
    np.testing.assert_allclose(later, now, atol=0.5)
