import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from xscalemixer.errors import SchemaError, TimeError
from xscalemixer.grids import Grid
from xscalemixer.layouts import from_weatherbench2, to_cfgrib, to_climpred, to_forecast, to_weatherbench2
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


def test_no_start_or_lead_twice():
    twice = xr.concat([layout(("init", "step"), {"init": STARTS, "step": STEPS})] * 2, "init")
    with pytest.raises(TimeError, match=r"2 values of init occur again; ds = ds.drop_duplicates\('init'\)"):
        to_forecast(twice)
    assert to_forecast(twice.drop_duplicates("init"))["x"].shape == (2, 3)


def test_lazy_input_stays_lazy():
    ds = layout(("time", "step"), {"time": STARTS, "step": STEPS}).chunk()
    assert to_forecast(ds)["x"].chunks is not None


@pytest.mark.parametrize("coords", [{"valid_time": STARTS}, {"time": STARTS}])
def test_an_analysis_is_not_a_forecast(coords):
    with pytest.raises(TimeError, match=r"not a forecast.*\n.*an analysis has none"):
        to_forecast(layout(list(coords), coords, DATA[:, 0]))


@pytest.mark.parametrize("export", [to_weatherbench2, to_cfgrib, to_climpred])
def test_exporters_take_any_layout(export):
    other = layout(("init_time", "lead_time"), {"init_time": STARTS, "lead_time": STEPS})
    ours = layout(("reference_time", "lead_time"), {"reference_time": STARTS, "lead_time": ("lead_time", HOURS, {"units": "h"})})
    xr.testing.assert_identical(export(other), export(ours))


def test_climpred_layout(fc):
    out = to_climpred(fc)
    assert set(out["t2m"].dims) >= {"init", "lead"} and out["lead"].dtype == "int64" and out["lead"].attrs["units"] == "hours"
    xr.testing.assert_identical(to_forecast(out), fc.drop_vars(["height_2m", "height_10m"]))


# WeatherBench 2 -----------------------------------------------------------------------------------------------------------


def upper_air():
    """An analysis on two pressure levels, west of Greenwich, with the axes of a file of the CDS."""
    dims = ("valid_time", "pressure_level", "latitude", "longitude")
    values = np.arange(60.0, dtype="f4").reshape(3, 2, 2, 5)
    axes = {"valid_time": VALID[0], "pressure_level": ("pressure_level", [850.0, 500.0], {"units": "hPa"})}
    attrs = {"units": "K", "standard_name": "air_temperature"}
    return xr.Dataset({"t": (dims, values, attrs)}, axes | {"latitude": [50.0, 49.0], "longitude": np.arange(-2.0, 3.0)})


def normal():
    dims, shape = ("hour", "dayofyear", "latitude", "longitude"), (4, 3, 2, 5)
    attrs = {"units": "K", "standard_name": "air_temperature"}
    coords = {"hour": [0, 6, 12, 18], "dayofyear": [1, 2, 3], "latitude": [50.0, 49.0], "longitude": np.arange(5.0)}
    return xr.Dataset({"t2m": (dims, np.arange(120.0, dtype="f4").reshape(shape), attrs)}, coords)


DEMANDS = {  # weatherbench2/schema.py, evaluation.py and metrics.py; weatherbenchX/data_loaders/xarray_loaders.py
    "start is time": lambda out: out["time"].dims == ("time",) and out["time"].dtype.kind == "M",
    "lead is a coordinate": lambda out: out["prediction_timedelta"].dims == ("prediction_timedelta",),
    "lead is a timedelta": lambda out: out["prediction_timedelta"].dtype == "m8[ns]",
    "lead writes its own unit": lambda out: "units" not in out["prediction_timedelta"].attrs,
    "no name that renaming would hit": lambda out: not {"init_time", "lead_time", "valid_time"} & set(out.variables),
    "latitude is an ordered axis": lambda out: out.indexes["latitude"].is_monotonic_decreasing,
    "longitude ascends": lambda out: out.indexes["longitude"].is_monotonic_increasing,
    "longitude is in 0..360": lambda out: np.all((out["longitude"] >= 0) & (out["longitude"] < 360)),
    "levels are integers in hPa": lambda out: out["level"].dtype == "int64" and set(out["level"].values) == {850, 500},
    "names": lambda out: list(out) == ["temperature"],
    "float32": lambda out: out["temperature"].dtype == "f4",
}  # fmt: skip


@pytest.mark.parametrize("demand", DEMANDS.values(), ids=DEMANDS)
def test_demands_of_weatherbench2(demand):
    ds = upper_air().rename(valid_time="lead_time").assign_coords(reference_time=STARTS[0])
    assert demand(to_weatherbench2(ds.assign_coords(lead_time=("lead_time", HOURS, {"units": "hours"}))))


def test_members_are_numbers_for_weatherbench2(fc):
    assert ("number" in to_weatherbench2(fc).dims) == ("member" in fc.dims)


def test_analysis_of_weatherbench2():
    out = to_weatherbench2(upper_air())
    assert out["temperature"].dims == ("time", "level", "latitude", "longitude")
    np.testing.assert_array_equal(out["time"], VALID[0])
    assert out["longitude"].values.tolist() == [0, 1, 2, 358, 359]
    np.testing.assert_array_equal(out["temperature"].sel(longitude=358), upper_air()["t"].isel(longitude=0))


@pytest.mark.parametrize("bare", [False, True], ids=["described", "bare"])
def test_analysis_comes_back_from_weatherbench2(bare):
    theirs = to_weatherbench2(upper_air())
    theirs = theirs.drop_attrs() if bare else theirs
    back = from_weatherbench2(theirs.transpose("time", "longitude", "latitude", "level").sortby("latitude"))
    assert back["t"].dims == ("time", "level", "latitude", "longitude") and back["t"].attrs["units"] == "K"
    assert back["level"].attrs["units"] == "hPa" and back["longitude"].values.tolist() == [358, 359, 360, 361, 362]
    np.testing.assert_array_equal(back["t"], upper_air()["t"])


@pytest.mark.parametrize("suffix", ["", "_mean"])
def test_climatology_of_weatherbench2(suffix):
    theirs = to_weatherbench2(normal())
    assert theirs["2m_temperature"].dims[:2] == ("hour", "dayofyear") and theirs["hour"].dtype == "int64"
    theirs = theirs.rename({"2m_temperature": f"2m_temperature{suffix}"}).drop_attrs()
    back = from_weatherbench2(theirs.sortby("latitude").transpose("dayofyear", "hour", "longitude", "latitude"))
    assert back["t2m"].attrs["units"] == "K" and back["t2m"].dims == normal()["t2m"].dims
    np.testing.assert_array_equal(back["t2m"], normal()["t2m"])


def test_forecast_comes_back_from_weatherbench2_without_attributes(fc):
    back = from_weatherbench2(to_weatherbench2(fc).drop_attrs())
    assert back["t2m"].dims == fc["t2m"].dims
    for name in REGIONAL.names:
        np.testing.assert_array_equal(back[name], fc[name])
        assert back[name].attrs["units"] == fc[name].attrs["units"]


def test_bare_files_become_forecasts_that_mlwp_data_specs_accepts(fc):
    back = from_weatherbench2(to_weatherbench2(fc).drop_attrs())
    rules = {"reference_time": ("forecast_reference_time", None), "lead_time": ("forecast_period", "hours")}
    rules |= {"valid_time": ("time", None), "latitude": ("latitude", "degrees_north"), "longitude": ("longitude", "degrees_east")}
    rules |= {"member": ("realization", "1")} if "member" in fc.dims else {}
    assert {name: (back[name].attrs["standard_name"], back[name].attrs.get("units")) for name in rules} == rules


def test_weatherbench2_keeps_what_it_has_no_name_for():
    theirs = to_weatherbench2(upper_air()).assign(vorticity=("time", np.ones(3)))
    assert "vorticity" in from_weatherbench2(theirs) and "units" not in from_weatherbench2(theirs)["vorticity"].attrs


def test_units_must_be_those_of_weatherbench2():
    celsius = upper_air().assign(t=(upper_air()["t"] - 273.15).assign_attrs(units="degC"), z=upper_air()["t"].drop_attrs())
    with pytest.raises(
        SchemaError, match=r"(?s)2 problems.*z has units 'missing'.*t has units 'degC'; needed 'K'; type ds\['t'\] = \(1"
    ) as told:
        to_weatherbench2(celsius)
    fix = re.search(r"type (ds\['t'\] = .*)", str(told.value)).group(1).rstrip(".")
    ds = celsius.drop_vars("z")
    exec(fix)
    np.testing.assert_allclose(
        to_weatherbench2(ds)["temperature"].isel(longitude=0), upper_air()["t"].isel(longitude=2), atol=1e-4
    )


def test_what_is_not_of_weatherbench2():
    with pytest.raises(
        SchemaError, match=r"(?s)found dims latitude, longitude; needed time, time and prediction_timedelta, or hour"
    ):
        from_weatherbench2(upper_air().isel(valid_time=0, pressure_level=0, drop=True))
    with pytest.raises(SchemaError, match="pressure_level, level are all pressures; keep one"):
        to_weatherbench2(upper_air().assign_coords(level=("level", [1.0, 2.0], {"units": "hPa"})))


def test_weatherbench2_leaves_its_input_alone_and_lazy():
    ds = upper_air().chunk()
    before = ds.copy(deep=True)
    theirs = to_weatherbench2(ds)
    kept = theirs.copy(deep=True)
    assert from_weatherbench2(theirs)["t"].chunks is not None
    xr.testing.assert_identical(ds, before)
    xr.testing.assert_identical(theirs, kept)


def test_a_start_with_the_standard_name_of_a_valid_time():
    ds = layout(("reference_time", "lead_time"), {"reference_time": named("time", "reference_time", STARTS), "lead_time": STEPS})
    np.testing.assert_array_equal(to_forecast(ds)["valid_time"], VALID)


def test_a_real_grib_forecast(shared_data):
    cfgrib = pytest.importorskip("cfgrib")
    path = shared_data / "real" / "ifs_pl_10deg_20240603.grib"
    with cfgrib.open_dataset(path, indexpath="", decode_timedelta=True) as ds:
        out = to_forecast(ds)
        assert out["z"].dims[:2] == ("reference_time", "lead_time")
        assert out["lead_time"].values.tolist() == [0, 6]
        np.testing.assert_array_equal(out["valid_time"].values, ds["valid_time"].values)
