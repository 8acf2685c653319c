"""Wind over hills: published weights, and conservation of mass."""

import numpy as np
import pytest
from reliefs import CELL, flat_steps, places

from xscalemixer.physics import terrain, wind

SHAPE = (40, 50)
STEPS = flat_steps(SHAPE)
EAST, NORTH = places(SHAPE)
HILL = 600 * np.exp(-(((EAST - 25 * CELL) / (6 * CELL)) ** 2) - ((NORTH + 20 * CELL) / (6 * CELL)) ** 2)
FLAT = np.zeros(SHAPE)


def over(height, u, v):
    return wind.over_relief(u, v, terrain.gradient(height, STEPS), terrain.curvature(height, STEPS))


def balance(rise=FLAT, length=30e3):
    return wind.MassBalance(wind.layer_depth(rise), STEPS, length)


def test_uniform_flow_over_a_plain_is_unchanged():
    u, v = np.full(SHAPE, 5.0), np.full(SHAPE, -3.0)
    adjusted = balance()(*over(FLAT + 1200, u, v), u, v)
    np.testing.assert_allclose(adjusted[0], 5.0, rtol=1e-9)
    np.testing.assert_allclose(adjusted[1], -3.0, rtol=1e-9)


def test_calm_stays_calm():
    u, v = over(HILL, FLAT, FLAT)
    assert not u.any() and not v.any()


def test_windward_slopes_are_faster_than_lee_slopes_and_crests_than_valleys():
    u, _ = over(HILL, np.full(SHAPE, 5.0), FLAT)
    assert u[20, 21] > 5 > u[20, 29]
    assert u[20, 25] > 5
    assert over(-HILL, np.full(SHAPE, 5.0), FLAT)[0][20, 25] < 5


def test_weights_reach_their_published_extremes_and_no_more():
    slope = 0.3 * EAST
    u, _ = over(slope, np.full(SHAPE, 10.0), FLAT)  # the steepest slope there is, straight uphill
    np.testing.assert_allclose(u, 10 * (1 + 0.58 * 0.5))
    u, v = over(HILL, np.full(SHAPE, 6.0), np.full(SHAPE, -8.0))
    speed = np.hypot(u, v)
    assert speed.min() > 5 and speed.max() < 15


def test_wind_turns_along_the_slope_and_not_straight_up_or_across():
    height = 0.3 * (EAST + NORTH)  # uphill to the north-east
    u, v = over(height, np.full(SHAPE, 10.0), FLAT)  # at 45 degrees to the slope: turned by half the scaled slope
    scaled = 0.5 * np.cos(np.pi / 4)
    np.testing.assert_allclose(np.arctan2(v, u), -0.5 * scaled)  # to the right, away from the hill
    for angle in (45, 135):
        u, v = over(height, *(np.full(SHAPE, f(np.deg2rad(angle))) for f in (np.cos, np.sin)))
        np.testing.assert_allclose(np.rad2deg(np.arctan2(v, u)), angle)


def test_ripples_on_a_plain_are_no_mountains():
    ripples = 1.0 * np.random.default_rng(0).random(SHAPE)
    u, _ = over(ripples, np.full(SHAPE, 10.0), FLAT)
    assert np.abs(u - 10).max() < 0.1


def test_mass_conservation_reduces_divergence():
    solver, ones = balance(HILL), np.full(SHAPE, 5.0)
    u, v = over(HILL, ones, FLAT)
    before = solver.divergence(solver.depth * u, solver.depth * v)
    u, v = solver(u, v, ones, FLAT)
    after = solver.divergence(solver.depth * u, solver.depth * v)
    inner = (slice(3, -3), slice(3, -3))
    assert np.abs(after[inner]).mean() < 0.4 * np.abs(before[inner]).mean()


def test_flow_goes_around_a_hill_and_over_a_ridge():
    ones, solver = np.full(SHAPE, 5.0), balance(HILL, 300e3)
    u, v = solver(ones, FLAT, ones, FLAT)
    assert v[15, 21] > 0.05 and v[25, 21] < -0.05  # aside before the hill
    ridge = 400 * np.exp(-(((EAST - 25 * CELL) / (4 * CELL)) ** 2))
    u, v = balance(ridge, 1e7)(ones, FLAT, ones, FLAT)
    np.testing.assert_allclose(v, 0.0, atol=1e-9)
    through = u * wind.layer_depth(ridge)  # the same air passes everywhere
    assert np.ptp(through[20, 2:-2]) < 0.02 * through.mean()
    assert u[20, 25] == pytest.approx(u[20, 5] * np.exp(400 / 2000), rel=0.02)


def test_divergence_of_the_coarse_flow_is_kept():
    u = 5.0 + 1e-4 * EAST
    adjusted = balance()(u, FLAT, u, FLAT)
    np.testing.assert_allclose(adjusted[0], u, rtol=1e-9)


def test_divergence_of_a_known_flow():
    np.testing.assert_allclose(balance().divergence(2e-4 * EAST, -3e-4 * NORTH), -1e-4, rtol=1e-9)


def test_a_gap_stays_where_it_is():
    u = np.full(SHAPE, 5.0)
    u[10, 12] = np.nan
    adjusted = balance(HILL, 20e3)(*over(HILL, u, FLAT), u, FLAT)
    assert [np.argwhere(np.isnan(part)).tolist() for part in adjusted] == [[[10, 12]], [[10, 12]]]
