import numpy as np
import pytest
import xarray as xr

from xscalemixer.physics import humidity as h

TEMPERATURE = np.linspace(220.0, 315.0, 40)


def test_saturation_at_triple_point_is_the_same_over_water_and_ice():
    values = [h.saturation_vapor_pressure(273.16, phase) for phase in ("water", "ice", "mixed")]
    np.testing.assert_allclose(values, 611.21)


def test_saturation_over_water_matches_bolton():
    celsius = TEMPERATURE - 273.15
    bolton = 611.2 * np.exp(17.67 * celsius / (celsius + 243.5))
    warm = celsius > -20
    np.testing.assert_allclose(h.saturation_vapor_pressure(TEMPERATURE)[warm], bolton[warm], rtol=5e-3)


def test_ice_saturates_before_water_below_freezing_only():
    ice, water = (h.saturation_vapor_pressure(TEMPERATURE, phase) for phase in ("ice", "water"))
    assert np.array_equal(ice < water, TEMPERATURE < 273.16)


def test_mixed_phase_is_ice_when_cold_and_water_when_warm():
    mixed = h.saturation_vapor_pressure(np.array([240.0, 250.16, 262.0, 280.0]), "mixed")
    ice, water = (h.saturation_vapor_pressure(np.array([240.0, 250.16, 262.0, 280.0]), phase) for phase in ("ice", "water"))
    np.testing.assert_allclose(mixed[[0, 1, 3]], [ice[0], ice[1], water[3]])
    assert ice[2] < mixed[2] < water[2]


def test_vapor_pressure_inverts_specific_humidity():
    vapor = np.linspace(1.0, 4000.0, 9)
    np.testing.assert_allclose(h.vapor_pressure(h.specific_humidity(vapor, 95000.0), 95000.0), vapor)


def test_dew_point_inverts_specific_humidity():
    humidity = h.specific_humidity_from_dew_point(TEMPERATURE, 98000.0)
    np.testing.assert_allclose(h.dew_point(humidity, 98000.0), TEMPERATURE, rtol=1e-7)


def test_dew_point_of_dry_air_is_finite():
    assert np.isfinite(h.dew_point(np.array([0.0, -1e-5]), 1e5)).all()


def test_saturated_air_has_its_temperature_as_dew_point():
    humidity = h.specific_humidity_from_relative_humidity(1.0, 290.0, 1e5, "water")
    assert h.dew_point(humidity, 1e5) == pytest.approx(290.0)


@pytest.mark.parametrize("phase", ["water", "mixed", "ice"])
def test_xarray_dask_and_float32_pass_through(phase):
    lazy = xr.DataArray(TEMPERATURE.astype("f4"), dims="x").chunk(x=7)
    result = h.specific_humidity_from_relative_humidity(0.5, lazy, np.float32(9e4), phase)
    assert result.chunks is not None and result.dtype == "f4"
    expected = h.specific_humidity_from_relative_humidity(0.5, TEMPERATURE, 9e4, phase)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
