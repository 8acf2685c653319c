import numpy as np
import pytest

from xscalemixer.physics import pressure as p


def test_geopotential_of_one_meter_is_standard_gravity():
    assert p.geopotential(1.0) == 9.80665


@pytest.mark.parametrize(("height", "expected"), [(0, 101325), (1000, 89874.6), (5000, 54019.9)])
def test_pressure_matches_the_standard_atmosphere(height, expected):
    assert p.pressure_at_altitude(101325.0, 0.0, height, 288.15 - 0.0065 * height) == pytest.approx(expected, rel=1e-4)


def test_pressure_there_and_back_is_unchanged():
    up = p.pressure_at_altitude(1e5, 200.0, 1500.0, 280.0)
    assert p.pressure_at_altitude(up, 1500.0, 200.0, 280.0 + 0.0065 * 1300) == pytest.approx(1e5)


@pytest.mark.parametrize(
    ("pressure", "height"), [(101325, 0), (85000, 1457.3), (50000, 5574.4), (10000, 16179.7), (5000, 20575.8)]
)
def test_standard_geopotential_matches_the_icao_table(pressure, height):
    assert p.standard_geopotential(float(pressure)) / p.GRAVITY == pytest.approx(height, abs=3)


def test_extension_downward_follows_the_standard_atmosphere():
    above = p.standard_geopotential(85000.0)
    temperature = 288.15 - p.LAPSE_RATE * above / p.GRAVITY
    assert p.extend_geopotential(above, 85000.0, temperature, 100000.0) == pytest.approx(
        p.standard_geopotential(100000.0), abs=1e-6
    )


def test_extension_to_the_same_level_changes_nothing():
    above = np.array([1e4, 1.5e4])
    np.testing.assert_array_equal(p.extend_geopotential(above, 850.0, 270.0, 850.0), above)


def test_hypsometric_equation_agrees_with_any_lapse_rate_and_undoes_itself():
    standard = p.pressure_at_altitude(90000.0, 1000.0, 3000.0, 268.65)
    assert p.hypsometric_pressure(90000.0, 2000.0, 281.65, 268.65) == pytest.approx(standard, rel=1e-7)
    isothermal = 90000.0 * np.exp(-p.GRAVITY * 2000.0 / (p.R_DRY * 250.0))
    assert p.hypsometric_pressure(90000.0, 2000.0, 250.0, 250.0) == pytest.approx(isothermal)
    there = p.hypsometric_pressure(90000.0, -1500.0, 270.0, 290.0)
    assert p.hypsometric_pressure(there, 1500.0, 290.0, 270.0) == pytest.approx(90000.0)
