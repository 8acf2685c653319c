import pytest

from xscalemixer.units import UnitsError, conversion, is_pressure


@pytest.mark.parametrize(
    ("units", "target", "factor", "offset"),
    [
        ("mb", "Pa", 100, 0), ("millibars", "Pa", 100, 0), ("hPa", "Pa", 100, 0),
        ("degC", "K", 1, 273.15), ("degrees_C", "K", 1, 273.15), ("Celsius", "K", 1, 273.15), ("degF", "K", 5 / 9, 255.372222222),
        ("(0 - 1)", "1", 1, 0), ("~", "1", 1, 0), ("%", "1", 0.01, 0), ("okta", "1", 0.125, 0),
        ("kg kg**-1", "kg kg-1", 1, 0), ("g kg-1", "kg kg-1", 1e-3, 0), ("g/kg", "kg kg-1", 1e-3, 0),
        ("m s**-1", "m s-1", 1, 0), ("knots", "m s-1", 0.514444444444, 0), ("gpm", "m", 1, 0), ("m**2 s**-2", "m2 s-2", 1, 0),
        ("W m-2 s", "J m-2", 1, 0),
    ],
)  # fmt: skip
def test_conversion(units, target, factor, offset):
    assert conversion(units, target) == pytest.approx((factor, offset))


@pytest.mark.parametrize("units", ["K", "(foo", "x**", "hours since 2000-01-01", "\x00", "Integer(0-13)"])
def test_what_is_no_pressure_is_refused(units):
    with pytest.raises(UnitsError, match="cannot read units|does not measure"):
        conversion(units, "Pa")
    assert not is_pressure(units)
