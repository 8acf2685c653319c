"""Slope, curvature, horizon and sky view of planes and ridges in closed form."""

import numpy as np
import pytest
from reliefs import CELL, flat_steps, places

from xscalemixer.grids import CurvilinearGrid, Grid, cell_steps
from xscalemixer.physics import terrain


def test_slope_and_aspect_of_a_plane():
    east, north = places((6, 7))
    gradient = terrain.gradient(0.3 * east - 0.4 * north, flat_steps((6, 7)))
    np.testing.assert_allclose(gradient[:, 2, 3], [0.3, -0.4])
    np.testing.assert_allclose(terrain.slope(gradient), np.arctan(0.5))
    np.testing.assert_allclose(np.rad2deg(terrain.aspect(gradient)), 360 - np.rad2deg(np.arctan2(3, 4)))  # down to north-west


def test_gradient_does_not_depend_on_how_the_grid_is_turned():
    angle = np.deg2rad(30)
    turned = np.einsum("ab,ibhw->iahw", [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], flat_steps((6, 7)))
    east = turned[0, 0] * np.indices((6, 7))[0] + turned[1, 0] * np.indices((6, 7))[1]
    np.testing.assert_allclose(terrain.gradient(0.1 * east, turned)[0], 0.1)
    np.testing.assert_allclose(terrain.gradient(0.1 * east, turned)[1], 0.0, atol=1e-12)


def test_gradient_at_the_pole_is_zero_and_not_infinite():
    steps = cell_steps(Grid.regular(90, 0, 30, (4, 12)))
    assert np.isfinite(terrain.gradient(np.random.default_rng(0).normal(size=(4, 12)), steps)).all()


def test_curvature_of_a_plane_a_ridge_and_a_valley():
    east, north = places((5, 7))
    steps = flat_steps((5, 7))
    np.testing.assert_allclose(terrain.curvature(0.2 * east + 0.1 * north, steps), 0.0, atol=1e-12)
    ridge = -0.1 * np.abs(east - 3 * CELL)  # one of four directions runs along the ridge, the diagonals are sqrt(2) longer
    expected = 0.1 * CELL / (2 * CELL) * (1 + 2 / np.sqrt(2)) / 4
    np.testing.assert_allclose(terrain.curvature(ridge, steps)[2], [0, 0, 0, expected, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(terrain.curvature(-ridge, steps), -terrain.curvature(ridge, steps))


def test_horizon_of_a_wall():
    height = np.zeros((41, 41))
    height[:, 30] = 500.0
    horizon = terrain.horizon_angles(height, flat_steps((41, 41)), directions=4)
    distance = CELL * (30 - np.arange(20, 30))  # up to ten cells away, every cell is looked at
    np.testing.assert_allclose(horizon[1, 20, 20:30], np.arctan(500 / distance - distance / (2 * 6371229)), rtol=1e-5)
    assert not horizon[[0, 2, 3], 20, :28].any()  # north, south and west are open


def test_horizon_of_a_plain_is_zero_and_far_mountains_sink():
    steps = flat_steps((3, 200))
    assert not terrain.horizon_angles(np.full((3, 200), 700.0), steps).any()
    height = np.zeros((3, 200))
    height[:, -1] = 600.0
    horizon = terrain.horizon_angles(height, steps, directions=4)
    assert horizon[1, 1, 101] == 0.0  # 98 km away, the earth hides the first 750 m


def test_sky_view_of_plain_slope_and_valley():
    east, _ = places((9, 61))
    steps = flat_steps((9, 61))
    tilted = terrain.gradient(0.5 * east, steps)
    open_slope = terrain.sky_view(tilted, np.zeros((64, 9, 61), "f4"))
    np.testing.assert_allclose(open_slope, (1 + np.cos(np.arctan(0.5))) / 2, rtol=2e-3)
    valley = 1.0 * np.abs(east - 30 * CELL)
    sky = terrain.sky_view(terrain.gradient(valley, steps), terrain.horizon_angles(valley, steps, directions=64))
    assert sky[4, 30] == pytest.approx(np.cos(np.pi / 4), rel=0.02)  # endless trench: cosine of the angle of its walls
    np.testing.assert_allclose(terrain.sky_view(0 * tilted, np.zeros((16, 9, 61))), 1.0)


def test_steps_of_a_projected_grid_are_those_of_its_points():
    grid = Grid.regular(40, 10, "0.1", (5, 6))
    same = CurvilinearGrid(*np.meshgrid(grid.latitude, grid.longitude, indexing="ij"))
    np.testing.assert_allclose(cell_steps(same), cell_steps(grid))
    down, right = cell_steps(grid)
    np.testing.assert_allclose(down[1], -6371229 * np.deg2rad(0.1), rtol=1e-6)
    np.testing.assert_allclose(right[0, 0], 6371229 * np.deg2rad(0.1) * np.cos(np.deg2rad(40)), rtol=1e-6)


def test_roughness_is_the_standard_deviation_around_a_cell():
    height = 5000 + np.random.default_rng(0).normal(size=(9, 9))
    assert terrain.roughness(height)[4, 4] == pytest.approx(height[2:7, 2:7].std())
    np.testing.assert_allclose(terrain.roughness(np.full((6, 6), 4321.0)), 0.0, atol=1e-6)
