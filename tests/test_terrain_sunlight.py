"""Light on relief: split, slopes, shadows, and where energy must be conserved."""

import numpy as np
import pytest
from reliefs import CELL, flat_steps, places

from xscalemixer.physics import sunlight, terrain
from xscalemixer.physics.solar import hourly_insolation

SHAPE = (12, 96)
LATITUDE, LONGITUDE = np.full(SHAPE, 30.0), np.full(SHAPE, 100.0)
NOON = np.array(["2020-03-20T05:30"], "datetime64[ns]")  # the sun is 60 degrees high in the south at 100 E, about 05:27 UTC
OPEN = np.zeros((16, *SHAPE), "f4")
EAST, _ = places(SHAPE)


def insolation(gradient, time=NOON, horizon=OPEN, hours=0):
    return sunlight.insolation_on_relief(time, LATITUDE, LONGITUDE, gradient, horizon, hours)


def plane(east, north):
    return np.stack([np.full(SHAPE, float(east)), np.full(SHAPE, float(north))])


def test_diffuse_fraction_at_the_ends_and_where_its_pieces_meet():
    np.testing.assert_allclose(sunlight.diffuse_fraction([-1, 0.0, 0.5, 0.9, 2.0]), [1, 1, 0.6591, 0.165, 0.165], atol=1e-4)
    k = np.array([0.22, 0.8])
    np.testing.assert_allclose(sunlight.diffuse_fraction(k - 1e-9), sunlight.diffuse_fraction(k + 1e-9), atol=2e-3)


def test_level_ground_gets_what_there_is():
    level, relief = insolation(plane(0, 0))
    np.testing.assert_allclose(relief, level)
    np.testing.assert_allclose(level, hourly_insolation(NOON, LATITUDE, LONGITUDE, 0), rtol=1e-5)
    hourly = insolation(plane(0, 0), hours=1)[0]
    np.testing.assert_allclose(hourly, hourly_insolation(NOON, LATITUDE, LONGITUDE), rtol=1e-5)


def test_a_slope_square_to_the_sun_gets_most():
    level, relief = insolation(plane(0, np.tan(np.deg2rad(30))))  # uphill to the north: faces the sun
    assert relief[0, 0, 0] * np.cos(np.deg2rad(30)) == pytest.approx(1361, rel=0.015)  # per area of the slope
    assert level[0, 0, 0] == pytest.approx(1361 * np.sin(np.deg2rad(60)), rel=0.015)


def test_tilted_planes_that_close_conserve_energy():
    slopes = [plane(0.4, 0.0), plane(-0.4, 0.0), plane(0.0, 0.4), plane(0.0, -0.4)]
    mean = np.mean([insolation(gradient)[1] for gradient in slopes], axis=0)
    np.testing.assert_allclose(mean, insolation(plane(0, 0))[0], rtol=1e-5)


@pytest.mark.parametrize("hour", [0, 1, 2, 5])
def test_ridges_take_from_their_shadows_what_their_sunny_sides_gain(hour):
    waves = 800 * np.cos(2 * np.pi * EAST / (24 * CELL))
    steps = flat_steps(SHAPE)
    time = np.array([f"2020-03-20T{hour:02}:40"], "datetime64[ns]")
    horizon = terrain.horizon_angles(waves, steps, directions=32)
    level, relief = insolation(terrain.gradient(waves, steps), time, horizon)
    inner = slice(24, 72)
    assert relief[0, 6, inner].mean() == pytest.approx(level[0, 6, inner].mean(), rel=0.12 if hour == 0 else 0.03)


def test_diffuse_light_over_ridges_and_valleys_is_what_falls_from_the_sky():
    waves = 1500 * np.cos(2 * np.pi * EAST / (24 * CELL))
    steps = flat_steps(SHAPE)
    gradient = terrain.gradient(waves, steps)
    sky = terrain.sky_view(gradient, terrain.horizon_angles(waves, steps, directions=32)) / np.cos(terrain.slope(gradient))
    assert sky[6, 24:72].mean() == pytest.approx(1.0, abs=0.02)
    assert sky[6, 36] < 0.97 and sky[6, 48] == pytest.approx(1.0, abs=1e-3)  # valley and crest


def test_shadow_of_a_ridge_ends_where_geometry_says():
    height = np.zeros(SHAPE)
    height[:, 60] = 1000.0
    horizon = terrain.horizon_angles(height, flat_steps(SHAPE))
    sun = np.broadcast_to(np.array([np.cos(0.2), 0.0, np.sin(0.2)])[:, None, None, None], (3, 1, *SHAPE))  # low in the east
    lit = sunlight.is_sunlit(horizon, sun)[0, 6]
    reach = 1000 / np.tan(0.2) / CELL  # 4.9 cells
    np.testing.assert_array_equal(lit[50:60], 60 - np.arange(50, 60) > reach)
    assert lit[61:].all()


def test_night_is_dark_whatever_the_clearness():
    night = NOON + np.timedelta64(12, "h")
    level, relief = insolation(plane(0.5, 0.5), night, hours=1)
    assert not level.any() and not relief.any()
    assert not sunlight.short_wave_on_relief(0.7, level, relief, 1.0, 1.0).any()


def test_level_ground_at_the_same_height_keeps_its_radiation():
    k = np.linspace(0, 1, 21)
    np.testing.assert_allclose(sunlight.short_wave_on_relief(k, 900.0, 900.0, 1.0, 1.0), 900 * k, rtol=1e-6)


def test_higher_ground_gets_more_direct_light_and_overcast_none():
    high, low = (sunlight.short_wave_on_relief(0.7, 900.0, 900.0, 1.0, ratio) for ratio in (0.7, 1.0))
    assert high > 1.05 * low
    overcast = [sunlight.short_wave_on_relief(0.1, 900.0, relief, 1.0, 0.7) for relief in (0.0, 1200.0)]
    assert overcast[1] - overcast[0] < 0.1 * overcast[0] + 60
    assert sunlight.short_wave_on_relief(1.0, 900.0, 900.0, 1.0, 0.5) <= 900.0


def test_insolation_with_sky():
    """On level ground the insolation itself, in a shadow the diffuse part of the sky that is seen."""
    level = np.array([400.0, 400.0, 0.0], "f4")
    found = sunlight.insolation_with_sky(level, np.array([400.0, 0.0, 50.0], "f4"), np.array([1.0, 0.8, 1.0], "f4"))
    np.testing.assert_allclose(found, [400.0, 0.8 * 400.0 * sunlight.diffuse_fraction(np.array(0.6)), 0.0], rtol=1e-5)
