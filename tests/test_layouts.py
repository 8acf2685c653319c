import numpy as np
import pandas as pd
import pytest
import xarray as xr

from xscalemixer.errors import SchemaError, TimeError
from xscalemixer.grids import Grid
from xscalemixer.layouts import to_cfgrib, to_forecast, to_weatherbench2
from xscalemixer.output import forecast_dataset
from xscalemixer.variables import REGIONAL

GRID = Grid.regular(36, 94, "0.05", (3, 4))
STARTS = np.array(["2001-08-10T00", "2001-08-10T12"], dtype="M8[ns]")
HOURS = np.array([6, 12, 18])
STEPS = HOURS.astype("m8[h]").astype("m8[ns]")
VALID = STARTS[:, None] + STEPS
DATA = np.arange(6.0).reshape(2, 3)


@pytest.fixture(params=[(), (2,)], ids=["one", "ensemble"])
def fc(request):
    fields = np.random.default_rng(0).normal(size=(3, *request.param, 7, *GRID.shape)).astype("f4")
    static = {"orog": np.ones(GRID.shape), "lsm": np.ones(GRID.shape)}
    keywords = {"schema": REGIONAL, "grid": GRID, "reference_time": STARTS[0], "lead_time": HOURS}
    return forecast_dataset(fields, **keywords, attrs={}, static=static)


def layout(dims, coords, values=DATA):
    return xr.Dataset({"x": (dims, values)}, coords)


def named(standard_name, dims, values):
    return (dims, values, {"standard_name": standard_name})


def test_weatherbench2_layout(fc):
    out = to_weatherbench2(fc)
    assert out["2m_temperature"].dims[:2] == ("time", "prediction_timedelta")
    assert out["prediction_timedelta"].dtype == "m8[ns]"
    assert "valid_time" not in out.coords and "land_sea_mask" in out
    np.testing.assert_array_equal(out["mean_surface_downward_short_wave_radiation_flux"], fc["ssrd"])


def test_cfgrib_layout(fc):
    out = to_cfgrib(fc)
    assert out["t2m"].dims == (*(("number",) if "member" in fc.dims else ()), "time", "step", "latitude", "longitude")
    assert out["valid_time"].dims == ("time", "step")
    assert {"sh2", "avg_sdswrf", "orog"} <= set(out)


@pytest.mark.parametrize("export", [to_weatherbench2, to_cfgrib])
def test_round_trip(fc, export):
    back = to_forecast(export(fc))
    xr.testing.assert_identical(back, fc.drop_vars(["height_2m", "height_10m"]))


@pytest.mark.parametrize("export", [to_weatherbench2, to_cfgrib])
def test_exports_can_be_written(fc, export, tmp_path):
    export(fc).to_netcdf(tmp_path / "fc.nc")
    with xr.open_dataset(tmp_path / "fc.nc", decode_timedelta=True) as found:
        xr.testing.assert_equal(to_forecast(found).load(), fc.drop_vars(["height_2m", "height_10m"]))


def test_own_layout_is_left_as_it_is(fc):
    xr.testing.assert_identical(to_forecast(fc), fc)


LAYOUTS = {
    "cfgrib": (("time", "step"), {"time": STARTS, "step": STEPS, "valid_time": (("time", "step"), VALID)}),
    "weatherbench2": (("time", "prediction_timedelta"), {"time": STARTS, "prediction_timedelta": STEPS}),
    "weatherbenchX": (("init_time", "lead_time"), {"init_time": STARTS, "lead_time": STEPS}),
    "earth2studio": (("time", "lead_time"), {"time": STARTS, "lead_time": STEPS}),
    "climpred": (("init", "lead"), {"init": STARTS, "lead": ("lead", HOURS, {"units": "hours"})}),
    "neural-lam": (
        ("analysis_time", "elapsed_forecast_duration"),
        {"analysis_time": STARTS, "elapsed_forecast_duration": STEPS},
    ),
    "cds": (
        ("forecast_reference_time", "forecast_period"),
        {
            "forecast_reference_time": named("forecast_reference_time", "forecast_reference_time", STARTS),
            "forecast_period": ("forecast_period", HOURS * 1.0, {"standard_name": "forecast_period", "units": "hours"}),
            "valid_time": named("time", ("forecast_reference_time", "forecast_period"), VALID),
        },
    ),
    "standard names only": (
        ("a", "b"),
        {"a": named("forecast_reference_time", "a", STARTS), "b": named("forecast_period", "b", STEPS)},
    ),
    "cf time beside start": (
        ("a", "b"),
        {
            "a": named("forecast_reference_time", "a", STARTS),
            "b": STEPS,
            "step": ("b", STEPS),
            "time": named("time", ("a", "b"), VALID),
        },
    ),
}


@pytest.mark.parametrize("dims, coords", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_becomes_ours(dims, coords):
    out = to_forecast(layout(dims, coords))
    assert out["x"].dims == ("reference_time", "lead_time")
    assert out["lead_time"].dtype == "int64" and out["lead_time"].attrs["units"] == "hours"
    np.testing.assert_array_equal(out["lead_time"], HOURS)
    np.testing.assert_array_equal(out["valid_time"], VALID)
    np.testing.assert_array_equal(out["x"], DATA)


@pytest.mark.parametrize("name", ["number", "ensemble", "realization", "ensemble_member", "member"])
def test_members_of_every_name(name):
    ds = layout((name, "time", "step"), {"time": STARTS, "step": STEPS, name: [0, 1]}, np.stack([DATA, -DATA]))
    out = to_forecast(ds)
    assert out["x"].dims == ("reference_time", "lead_time", "member")
    np.testing.assert_array_equal(out["x"].sel(member=1), -DATA)


@pytest.mark.parametrize(
    ("dims", "coords", "values"),
    [
        ("step", {"time": STARTS[0], "step": STEPS}, DATA[0]),
        ("time", {"time": STARTS, "step": STEPS[0]}, DATA[:, 0]),
        ((), {"time": STARTS[0], "step": STEPS[0]}, DATA[0, 0]),
        ("time", {"time": named("time", "time", VALID[0]), "forecast_reference_time": STARTS[0]}, DATA[0]),
        ("step", {"step": STEPS, "valid_time": ("step", VALID[0])}, DATA[0]),
    ],
    ids=["one start", "one lead", "one field", "lead from valid time", "start from valid time"],
)
def test_scalar_axes_become_dims_and_the_third_time_follows(dims, coords, values):
    out = to_forecast(layout(dims, coords, values))
    starts, leads = out["reference_time"].values, out["lead_time"].values
    assert out["x"].shape == (starts.size, leads.size)
    np.testing.assert_array_equal(starts, STARTS[: starts.size])
    np.testing.assert_array_equal(leads, HOURS[: leads.size])
    np.testing.assert_array_equal(out["x"], DATA[: starts.size, : leads.size])


def test_static_fields_stay_without_time():
    ds = layout("step", {"time": STARTS[0], "step": STEPS}, DATA[0]).assign(lsm=("lat", [0.0, 1.0]))
    assert to_forecast(ds)["lsm"].dims == ("lat",)


@pytest.mark.parametrize(
    ("lead", "units"),
    [(HOURS / 24, "days"), (HOURS * 3600, "s"), (HOURS + 1e-6, "h"), (STEPS.astype("int64"), None), (HOURS * 60, "minutes")],
)
def test_numbers_with_a_unit_become_hours(lead, units):
    attrs = {"units": units} if units else {}
    out = to_forecast(layout(("init", "lead"), {"init": STARTS, "lead": ("lead", lead, attrs)}))
    np.testing.assert_array_equal(out["lead_time"], HOURS)


def test_leads_are_never_guessed():
    with pytest.raises(TimeError, match=r"(?s)lead has no unit I can read.*\['lead'\]\.attrs\['units'\] = 'hours'"):
        to_forecast(layout(("init", "lead"), {"init": STARTS, "lead": HOURS}))
    with pytest.raises(TimeError, match=r"(?s)not in whole hours.*\[0.5, 1.5\] hours"):
        to_forecast(layout(("init", "step"), {"init": STARTS, "step": pd.to_timedelta([30, 60, 90], "min")}))


def test_a_time_that_says_it_is_valid_time_is_ambiguous_beside_a_lead():
    ds = layout(("time", "step"), {"time": named("time", "time", STARTS), "step": STEPS})
    with pytest.raises(TimeError, match=r"(?s)ambiguous.*ds\['time'\].attrs\['standard_name'\] = 'forecast_reference_time'"):
        to_forecast(ds)


def test_two_claims_are_ambiguous():
    ds = layout(("init", "step"), {"init": STARTS, "step": STEPS, "analysis_time": ("init", STARTS)})
    with pytest.raises(TimeError, match="init, analysis_time all claim to be the reference_time"):
        to_forecast(ds)
    ds = layout(("time", "step"), {"time": STARTS, "step": STEPS, "number": 0, "member": 1})
    with pytest.raises(SchemaError, match=r"claim to be the member.*drop_vars"):
        to_forecast(ds)


def test_contradictions_are_refused():
    ds = layout(("time", "step"), {"time": STARTS, "step": STEPS, "valid_time": (("time", "step"), VALID + STEPS)})
    with pytest.raises(TimeError, match="valid_time is not time plus step at 6 places"):
        to_forecast(ds)


def test_a_different_lead_at_each_start_is_no_grid():
    coords = {"init_time": STARTS, "lead_time": ("init_time", STEPS[:2])}
    with pytest.raises(TimeError, match=r"no grid of starts and leads.*\n.*needed one dimension each"):
        to_forecast(layout("init_time", coords, DATA[:, 0]))


def test_lazy_input_stays_lazy():
    ds = layout(("time", "step"), {"time": STARTS, "step": STEPS}).chunk()
    assert to_forecast(ds)["x"].chunks is not None


@pytest.mark.parametrize("coords", [{"valid_time": STARTS}, {"time": STARTS}])
def test_an_analysis_is_not_a_forecast(coords):
    with pytest.raises(TimeError, match=r"not a forecast.*\n.*an analysis has none"):
        to_forecast(layout(list(coords), coords, DATA[:, 0]))


def test_exporters_want_our_layout():
    with pytest.raises(TimeError, match=r"lacks reference_time, lead_time; use to_forecast"):
        to_weatherbench2(layout(("time", "step"), {"time": STARTS, "step": STEPS}))


def test_a_real_grib_forecast(shared_data):
    cfgrib = pytest.importorskip("cfgrib")
    path = shared_data / "real" / "ifs_pl_10deg_20240603.grib"
    with cfgrib.open_dataset(path, indexpath="", decode_timedelta=True) as ds:
        out = to_forecast(ds)
        assert out["z"].dims[:2] == ("reference_time", "lead_time")
        assert out["lead_time"].values.tolist() == [0, 6]
        np.testing.assert_array_equal(out["valid_time"].values, ds["valid_time"].values)
