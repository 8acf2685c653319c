"""The shipped CorrDiff model on the sample: members differ, values are sane, forecasts are not taken for analyses unasked."""

import pytest

import xscalemixer as xsm
from xscalemixer.downscaling import DEFAULTS
from xscalemixer.errors import CheckpointError

NAME = "corrdiff-twin-ea"


@pytest.fixture(scope="module")
def members():
    return xsm.sample().scalemixer.downscale(members=2, model=NAME, solver="fast").load()


def test_it_is_the_default_for_analyses():
    assert DEFAULTS[False] == NAME in xsm.models()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("t2m", 190, 325),
        ("u10", -45, 45),
        ("v10", -45, 45),
        ("q2m", 0, 0.04),
        ("sp", 42e3, 108e3),
        ("tcc", 0, 1),
        ("ssrd", 0, 1361),
    ],
)
def test_values_are_sane(members, name, low, high):
    assert low <= float(members[name].min()) and float(members[name].max()) <= high


def test_members_differ_but_not_by_more_than_weather_does(members):
    spread = members[["t2m", "u10", "v10"]].std("member").mean()
    assert 0.1 < float(spread["t2m"]) < 5.0
    assert 0.1 < float(spread["u10"]) < 5.0


def test_a_forecast_is_told_what_there_is():
    with pytest.raises(
        CheckpointError, match=f'no weights for downscaling forecasts.*model="{NAME}" takes its fields for analyses'
    ):
        xsm.sample().scalemixer.downscale(members=2)  # five days old when it was valid
