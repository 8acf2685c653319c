"""Sun: closed forms and known instants."""

import numpy as np
import pytest

from xscalemixer.physics.solar import SOLAR_CONSTANT, cos_zenith, hourly_insolation, normal_insolation, sun_direction

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


def test_direction_to_the_sun_is_a_unit_vector_whose_height_is_the_zenith_angle():
    times = np.arange("2020-02-03T00", "2020-02-04T00", 3, dtype="datetime64[h]")
    east, north, up = sun_direction(times, LAT, LON)
    np.testing.assert_allclose(east**2 + north**2 + up**2, 1.0)
    np.testing.assert_allclose(up, cos_zenith(times, LAT, LON), atol=1e-12)


@pytest.mark.parametrize(("hour", "azimuth"), [("06:07", 90.0), ("12:07", 180.0), ("18:07", 270.0)])
def test_the_sun_goes_from_east_through_south_to_west(hour, azimuth):
    time = np.array([f"2021-03-20T{hour}"], "datetime64[s]")  # equinox
    east, north, _ = sun_direction(time, np.array([[45.0]]), np.array([[0.0]]))
    assert np.rad2deg(np.arctan2(east, north))[0, 0, 0] % 360 == pytest.approx(azimuth, abs=0.2)


def test_insolation_of_an_instant_and_of_a_plane_that_faces_the_sun():
    time = np.array(["2021-01-03T12:00", "2021-07-05T12:00"], "datetime64[s]")  # perihelion and aphelion
    np.testing.assert_allclose(normal_insolation(time) / SOLAR_CONSTANT, [1.0344, 0.9673], rtol=1e-3)
    instant = hourly_insolation(time, LAT, LON, hours=0)
    expected = normal_insolation(time)[:, None, None] * np.maximum(cos_zenith(time, LAT, LON), 0)
    np.testing.assert_allclose(instant, expected, rtol=1e-6, atol=1e-4)
