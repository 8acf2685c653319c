"""The shipped CorrDiff models on what can be had without the data they were trained on: sane values, spread, the right input."""

import json
from pathlib import Path

import numpy as np
import pytest

import xscalemixer as xsm
from xscalemixer.conform import conform
from xscalemixer.downscaling import DEFAULTS
from xscalemixer.errors import GridError
from xscalemixer.verification import power_spectrum

PLAIN, CHAIN = "corrdiff-twin-ea", "corrdiff-twin-ea-chain"
LIMITS = {"t2m": (190, 330), "u10": (-45, 45), "v10": (-45, 45), "q2m": (0, 0.04), "sp": (42e3, 108e3)}
COARSE = xsm.Grid.regular("60", "65", "5", (10, 19))


def test_they_are_the_defaults():
    assert {False: PLAIN, True: CHAIN} == DEFAULTS and set(DEFAULTS.values()) < set(xsm.models())


# --- from analyses


@pytest.fixture(scope="module")
def members():
    return xsm.sample().scalemixer.downscale(members=2, solver="fast").load()


@pytest.mark.parametrize("name", LIMITS)
def test_values_are_sane(members, name):
    low, high = LIMITS[name]
    assert low <= float(members[name].min()) and float(members[name].max()) <= high


def test_members_differ_but_not_by_more_than_weather_does(members):
    spread = members[["t2m", "u10", "v10"]].std("member").mean()
    assert 0.1 < float(spread["t2m"]) < 5.0
    assert 0.1 < float(spread["u10"]) < 5.0


def test_what_was_known_is_kept_and_what_was_not_is_added(members):
    """Means over large cells are those of the input; short waves are there in the members and not in the interpolated input."""
    model = xsm.load(PLAIN)
    given = conform(xsm.sample(), model.coarse.schema)[0]
    away = xsm.regrid(members.isel(member=0), COARSE)["t2m"] - xsm.regrid(given[["t2m"]], COARSE)["t2m"]
    assert float(abs(away).mean()) < 2.0
    plain = xsm.regrid(xsm.regrid(given[["t2m"]], model.coarse.grid), model.fine.grid)
    power = [power_spectrum(ds[["t2m"]].squeeze())["t2m"] for ds in (plain, members.isel(member=0))]
    short = power[0]["wavelength"] < 500
    assert float(power[1][short].sum()) > 2 * float(power[0][short].sum())


# --- from forecasts


@pytest.fixture(scope="module")
def forecast():
    return xsm.sample().scalemixer.forecast(hours=12, model="twin-ea-small")


def test_an_ensemble_around_a_forecast(forecast):
    some = forecast.sel(lead_time=[6, 12])
    ens = some.scalemixer.downscale(members=2, solver="fast")
    assert ens["t2m"].dims == ("reference_time", "lead_time", "member", "latitude", "longitude")
    np.testing.assert_allclose(ens["latitude"], forecast["latitude"])
    away = ens["t2m"].mean("member") - some["t2m"]
    assert float(abs(away).mean()) < 2.0 and float(ens["t2m"].std("member").mean()) > 0.1


def test_it_knows_the_errors_of_one_model_only(forecast):
    default = xsm.sample().scalemixer.forecast(hours=1)
    with pytest.raises(GridError, match='Give those that it knows: .*model="twin-ea-small"'):
        default.scalemixer.downscale(members=2)


# --- 30 to 3 km


def test_idaho(shared_data):
    """An hour that the model was not trained on: the members beat the interpolated input."""
    model = xsm.load("corrdiff-hrrr")
    fine, report = conform(xsm.open(str(shared_data / "real" / "hrrr_idaho" / "hrrr.20180723.*.grib2")), model.fine.schema)
    report.raise_errors()
    truth = xsm.regrid(fine.isel(time=[-1]).load(), model.fine.grid)
    coarse = truth.coarsen(latitude=10, longitude=10).mean().drop_vars("lsm")
    members = coarse.scalemixer.downscale(members=4, model=model)
    plain = xsm.regrid(coarse, model.fine.grid)
    error = lambda ds, v: float(abs(ds[v] - truth[v]).mean())
    mean = members.mean("member")
    assert error(mean, "t2m") < 0.95 * error(plain, "t2m") and error(mean, "sp") < 0.1 * error(plain, "sp")
    outside = [
        float(((truth[v] < members[v].min("member")) | (truth[v] > members[v].max("member"))).mean()) for v in ("t2m", "sp")
    ]
    assert max(outside) < 0.75  # chance gives 0.4


def test_notebook(shared_data, monkeypatch):
    """Its cells run one after the other, here with fewer hours and members."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    book = json.loads((Path(__file__).parents[1] / "examples" / "downscale_hrrr.ipynb").read_text("utf-8"))
    code = "\n".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code")
    files = str(shared_data / "real" / "hrrr_idaho" / "hrrr.20180723.*.grib2")
    for old, new in (
        ('"hrrr.20180723.*.grib2"', repr(files)),
        ("slice(-7, None)", "slice(-1, None)"),
        ("members=8", 'members=2, solver="fast"'),
    ):
        assert code.count(old) == 1
        code = code.replace(old, new)
    names: dict = {}
    exec(compile(code, "downscale_hrrr.ipynb", "exec"), names)
    error = {label: float(ds["sp"]) for label, ds in names["rows"].items()}
    assert error["CRPS, ensemble"] < 0.1 * error["MAE, interpolated"] and len(names["figure"].axes) == 12
