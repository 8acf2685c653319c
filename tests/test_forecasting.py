"""The main job: any layout of the same state gives the same forecast; bad input gives one error and no file."""

import json

import numpy as np
import pytest
import xarray as xr
from worlds import HOUR, START, box, forecaster, globe

import xscalemixer as xsm
from xscalemixer import forecasting, running, starting
from xscalemixer.errors import GridError, InputError, SchemaError, TimeError
from xscalemixer.physics.pressure import standard_pressure, standard_temperature


@pytest.fixture(scope="module")
def model():
    return forecaster()


@pytest.fixture(scope="module")
def reference(model):
    return xsm.forecast(globe(), 7, model=model)


def close(a, b):
    """Equal to 1e-5 of each variable's spread."""
    for name in ("t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd"):
        spread = float(a[name].std())
        np.testing.assert_allclose(b[name].values, a[name].values, atol=1e-5 * max(spread, 1e-3), rtol=1e-5, err_msg=name)


# --- shape and meaning of the result


def test_hours_are_cut_to_what_is_asked(reference):
    assert reference["lead_time"].values.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert reference["valid_time"].values[0, -1] == START + 7 * HOUR
    assert set(reference.data_vars) == {"t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd", "orog", "lsm"}


def test_short_forecast_is_the_start_of_a_long_one(model, reference):
    short = xsm.forecast(globe(), 2, model=model)
    xr.testing.assert_equal(short["t2m"], reference["t2m"].isel(lead_time=slice(2)))


@pytest.mark.parametrize(("hours", "leads"), [("2 days", 48), (np.timedelta64(3, "h"), 3), (5.0, 5)])
def test_hours_in_other_words(model, hours, leads):
    assert running.horizon(hours) == leads


def test_hours_beyond_what_was_verified_are_told(caplog):
    assert running.horizon(48) == 48 and not caplog.text
    assert running.horizon(72) == 72 and "hours=72: no model here was verified beyond 48 h" in caplog.text


@pytest.mark.parametrize("hours", [0, -1, 1.5, "soon", None, True, float("inf")])
def test_impossible_hours(model, hours):
    with pytest.raises(TimeError, match="needed a whole number from 1 on"):
        xsm.forecast(globe(), hours, model=model)


def test_results_are_physical(reference):
    assert reference["q2m"].min() >= 0
    assert reference["tcc"].min() >= 0 and reference["tcc"].max() <= 1
    assert reference["ssrd"].min() >= 0


def test_night_is_dark(model):
    fc = xsm.forecast(globe([START + 6 * HOUR]), 3, model=model)  # 19 to 21 UTC is night around 100 E
    assert float(fc["ssrd"].sel(longitude=slice(85, 110), latitude=slice(40, 20)).max()) == 0.0


def test_provenance_tells_what_was_assumed(reference, model):
    assert reference.attrs["start"] == "cold"
    assert "cold start" in reference.attrs["assumptions"]
    assert reference.attrs["model"] == "tiny"


# --- metamorphic: the same state in another dress


def rolled(ds):
    return ds.assign_coords(longitude=(ds["longitude"] + 180) % 360 - 180).sortby("longitude")


def renamed(ds):
    names = {"t2m": "2t", "u10": "10u", "v10": "10v", "sp": "ps", "latitude": "lat", "longitude": "lon", "level": "isobaricInhPa"}
    return ds.rename(names)


def rescaled(ds):
    out = ds.copy()
    for name, units, change in (
        ("t2m", "degC", lambda x: x - 273.15),
        ("sp", "hPa", lambda x: x / 100),
        ("q2m", "g kg-1", lambda x: x * 1000),
        ("u10", "km h-1", lambda x: x * 3.6),
    ):
        out[name] = change(ds[name].astype("f8")).assign_attrs({**ds[name].attrs, "units": units})
    return out.assign_coords(level=("level", ds["level"].values * 100, {"units": "Pa"}))


def with_height(ds):
    height = (ds["z"].astype("f8") / 9.80665).assign_attrs(standard_name="geopotential_height", units="gpm")
    return ds.drop_vars("z").assign(gh=height)


DRESSES = {
    "latitude flipped": lambda ds: ds.isel(latitude=slice(None, None, -1)),
    "longitude -180..180": rolled,
    "dims transposed": lambda ds: ds.transpose("longitude", "level", "latitude", "time"),
    "levels reversed": lambda ds: ds.isel(level=slice(None, None, -1)),
    "renamed": renamed,
    "other units": rescaled,
    "geopotential height": with_height,
    "time as scalar": lambda ds: ds.isel(time=0),
    "earlier times too": lambda ds: xr.concat([globe([START - 6 * HOUR]), ds], "time", data_vars="minimal"),
    "unrelated variables": lambda ds: ds.assign(snow=ds["t2m"] * np.nan),
    "dask": lambda ds: ds.chunk({"time": 1, "latitude": 11}),
    "double precision": lambda ds: ds.astype("f8"),
    "member of length one": lambda ds: ds.expand_dims(number=[0]),
}


@pytest.mark.parametrize("dress", DRESSES)
def test_same_state_same_forecast(dress, model, reference):
    close(reference, xsm.forecast(DRESSES[dress](globe()), 7, model=model))


def test_input_is_not_modified(model):
    ds = globe()
    before = ds.copy(deep=True)
    ds.scalemixer.forecast(1, model=model)
    xr.testing.assert_identical(ds, before)


# --- warm start


def test_warm_start_uses_the_analyses(model, reference):
    warm = xsm.forecast(globe(), 7, model=model, regional=box())
    assert warm.attrs["start"] == "warm"
    assert float(abs(warm["t2m"] - reference["t2m"]).max()) > 0.01


def test_tree_is_the_same_as_two_datasets(model):
    tree = xr.DataTree.from_dict({"/global": globe(), "/regional": box()})
    warm = xsm.forecast(globe(), 3, model=model, regional=box())
    xr.testing.assert_equal(tree.scalemixer.forecast(3, model=model)["t2m"], warm["t2m"])


def test_rollout_equals_single_steps(model):
    start, _ = starting.prepare(globe(), model, regional=box())
    states = list(model.rollout(start.state, 3))
    state = start.state
    for _ in range(3):
        (state,) = model.rollout(state, 1)
    assert (states[-1].inner == state.inner).all() and (states[-1].outer == state.outer).all()


# --- coupling


def test_each_branch_hears_the_other(model):
    fc = xsm.forecast(globe(), 1, model=model, diagnose=True)
    response = json.loads(fc.attrs["coupling_response"])
    assert min(response.values()) > 0
    start, _ = starting.prepare(globe(), model)
    uncoupled = forecasting.coupling_response(forecaster(coupling="none"), start.state)
    assert set(uncoupled.values()) == {0.0}


def test_coupling_response_says_who_moves_whom():
    """Without feedback the driver moves the region and the region moves nothing."""
    one_way = forecaster(coupling="one_way")
    start, _ = starting.prepare(globe(), one_way)
    response = forecasting.coupling_response(one_way, start.state)
    assert response["driver_outside_moves_region"] > 0
    assert response["region_moves_driver_inside"] == response["region_moves_driver_outside"] == 0


def test_key_positions_are_on_the_globe(model):
    keys = globe().scalemixer.key_positions(model=model)
    assert keys.sizes == {"block": 2, "key": 8, "token_latitude": 8, "token_longitude": 16}
    assert abs(keys["latitude"]).max() <= 90
    np.testing.assert_allclose(keys["importance"].sum(("token_latitude", "token_longitude")), 1, rtol=1e-5)


def test_uncoupled_model_has_no_keys():
    with pytest.raises(InputError, match="no key positions"):
        xsm.key_positions(globe(), model=forecaster(coupling="none"))


# --- streaming


def test_streamed_equals_in_memory(model, reference, tmp_path):
    streamed = xsm.forecast(globe(), 7, model=model, to=tmp_path / "run.zarr")
    for name in reference.data_vars:
        np.testing.assert_array_equal(streamed[name].values, reference[name].values, err_msg=name)
    assert streamed["t2m"].chunks is not None


def test_resumed_equals_uninterrupted(model, reference, tmp_path, monkeypatch):
    path, step, calls = tmp_path / "run.zarr", type(model).step, []

    def dying(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(type(model), "step", dying)
    with pytest.raises(KeyboardInterrupt):
        xsm.forecast(globe(), 7, model=model, to=path)
    monkeypatch.undo()
    resumed = xsm.forecast(globe(), 7, model=model, to=path, resume=True)
    np.testing.assert_array_equal(resumed["t2m"].values, reference["t2m"].values)


def test_netcdf_round_trip(reference, tmp_path):
    reference.to_netcdf(tmp_path / "fc.nc")
    xr.testing.assert_identical(xr.open_dataset(tmp_path / "fc.nc").load(), reference)


# --- bad input: one error that lists everything, nothing written


def test_all_problems_at_once(model, tmp_path):
    bad = globe().drop_vars(["u10", "z"]).sel(level=[500])
    bad["sp"].attrs["units"] = "furlong"
    with pytest.raises(SchemaError) as caught:
        xsm.forecast(bad, 6, model=model, to=tmp_path / "run.zarr")
    message = str(caught.value)
    for subject in ("u10", "z", "850", "furlong"):
        assert subject in message, message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda ds: ds.assign(t2m=(ds["t2m"] - 273.15).assign_attrs(ds["t2m"].attrs)), "degC"),
        (lambda ds: ds.assign(t2m=ds["t2m"].where(ds["latitude"] < 80).assign_attrs(ds["t2m"].attrs)), "t2m.*NaN"),
        (lambda ds: ds.isel(level=[0]), "850"),
        (lambda ds: ds["t2m"], "to_dataset"),
        (lambda ds: ds.isel(time=[]), "empty|no time"),
    ],
    ids=["Celsius labelled K", "NaN", "missing level", "DataArray", "no time"],
)
def test_bad_state(model, spoil, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        xsm.forecast(spoil(globe()), 6, model=model)


def test_a_wrong_start_does_not_hide_other_problems(model):
    with pytest.raises(InputError, match="(?s)1999-01-01T00:00 is not in the data.*no surface pressure"):
        xsm.forecast(globe().drop_vars("sp"), 6, model=model, init_time="1999-01-01")


def test_path_is_not_a_dataset(model):
    with pytest.raises(SchemaError, match=r'xscalemixer.open\("gfs.grib2"\)'):
        xsm.forecast("gfs.grib2", model=model)


def test_three_hourly_analyses(model):
    hours = START - np.arange(9, -1, -3) * HOUR
    with pytest.raises(TimeError, match=r"(?s)regional analyses.*2020-06-01T11"):
        xsm.forecast(globe(), 6, model=model, regional=box(hours))


def test_driver_that_does_not_cover_the_model(model):
    north = globe().sel(latitude=slice(90, 0))
    with pytest.raises(GridError, match="50 % of the model's grid lies outside the data"):
        xsm.forecast(north, 6, model=model)


def test_analyses_of_another_region(model):
    elsewhere = box(north=0.0, west=-60.0)
    with pytest.raises(GridError, match="regional analyses.*100 % of the model's grid"):
        xsm.forecast(globe(), 6, model=model, regional=elsewhere)


def test_start_that_is_not_there(model):
    with pytest.raises(TimeError, match='init_time="2020-06-01T12:00"'):
        xsm.forecast(globe(), 6, model=model, init_time="1999-01-01")


def test_start_with_time_zone(model):
    fc = xsm.forecast(globe(), 1, model=model, init_time="2020-06-01T20:00+08:00")
    assert fc["reference_time"].values[0] == START


def test_start_as_a_selection(model):
    ds = xr.concat([globe([START - 6 * HOUR]), globe()], "time", data_vars="minimal")
    for init_time in (ds["time"][0], ds["time"].values[:1], ds["time"].to_index()[0], ds["time"].to_index()[0].to_pydatetime()):
        start, _ = starting.prepare(ds, model, init_time=init_time)
        assert start.time == START - 6 * HOUR


def test_start_in_the_calendar_of_the_data(model):
    ds = globe().convert_calendar("standard", use_cftime=True)
    start, _ = starting.prepare(ds, model, init_time=ds["time"][0])
    assert start.time == START


@pytest.mark.parametrize("init_time", [12, 1.5, True, np.int64(12), "soon", "NaT", globe()["time"][[0, 0]]], ids=str)
def test_starts_that_are_no_dates(model, init_time):
    with pytest.raises(TimeError, match="(?s)init_time: .*is not a date. Needed: an ISO date"):
        xsm.forecast(globe(), 6, model=model, init_time=init_time)


def test_phase_is_checked_even_if_nothing_needs_it(model):
    with pytest.raises(InputError, match="""rh_phase: 'steam'. Needed: one of "water", "mixed", "ice\""""):
        xsm.forecast(globe(), 6, model=model, rh_phase="steam")


def test_tree_as_analyses_names_the_right_group(model):
    tree = xr.DataTree.from_dict({"/global": globe(), "/regional": box()})
    with pytest.raises(SchemaError, match=r'regional=tree\["regional"\].to_dataset\(\)'):
        xsm.forecast(globe(), 6, model=model, regional=tree)


@pytest.mark.parametrize("name", ["fc.nc", "fc.GRIB2", "fc.zip"])
def test_store_that_is_called_like_a_file(model, tmp_path, name):
    with pytest.raises(InputError, match=r"(?s)Zarr store is a folder; type to='.*fc.zarr'.*fc.to_netcdf\("):
        xsm.forecast(globe(), 6, model=model, to=tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_tree_without_global(model):
    tree = xr.DataTree.from_dict({"/world": globe()})
    with pytest.raises(SchemaError, match=r"'/global'.*xr.DataTree.from_dict"):
        tree.scalemixer.forecast(6, model=model)


@pytest.mark.parametrize("device", ["abacus", "cpu:9", "cuda:99", "cpu:x", ""])
def test_unknown_device(model, device):
    with pytest.raises(InputError, match=f"device '{device}' cannot be used.*\n.*usable here: .*cpu"):
        xsm.forecast(globe(), 6, model=model, device=device)


def test_check_reports_without_running(model, monkeypatch):
    monkeypatch.setattr(type(model), "step", None)
    monkeypatch.setattr(type(model), "invent_history", None)
    report = globe().scalemixer.check(model=model)
    assert report.ok
    assert "cold start" in repr(report)
    assert "<table>" in report._repr_html_()


def test_another_model_does_not_resume(model, tmp_path, monkeypatch):
    monkeypatch.setattr(type(model), "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        xsm.forecast(globe(), 7, model=model, to=tmp_path / "run.zarr")
    monkeypatch.undo()
    with pytest.raises(InputError, match="weights"):
        xsm.forecast(globe(), 7, model=forecaster(seed=1), to=tmp_path / "run.zarr", resume=True)


@pytest.mark.parametrize(
    ("lon", "west_negative", "wanted"), [(200.0, True, -160.0), (-120.0, False, 240.0), (100.0, True, 100.0)]
)
def test_longitudes_are_counted_as_in_the_input(lon, west_negative, wanted):
    from xscalemixer.grids import Grid

    grid = Grid.regular(40, lon, 1, (3, 4))
    assert running.in_convention(grid, west_negative).longitude[0] == wanted


def test_misspelled_group_is_not_ignored(model):
    tree = xr.DataTree.from_dict({"/global": globe(), "/region": box()})
    with pytest.raises(SchemaError, match=r"unknown groups \['region'\]"):
        tree.scalemixer.forecast(6, model=model)


def test_arguments_that_need_a_store(model):
    with pytest.raises(InputError, match="add to="):
        xsm.forecast(globe(), 6, model=model, resume=True)


def test_surface_is_moved_to_the_terrain_of_the_model():
    ds = globe().assign(orog=lambda d: d["orog"] + 100.0)  # the file's terrain is 100 m higher than the model's
    terrain = globe()["orog"].values
    moved = starting._onto_terrain(ds, terrain)
    np.testing.assert_allclose(moved["t2m"] - ds["t2m"], 0.65, atol=1e-3)
    wanted = ds["sp"] * np.exp(9.80665 * 100 / (287.06 * (ds["t2m"] + 0.325)))
    np.testing.assert_allclose(moved["sp"], wanted, rtol=1e-5)


def test_the_standard_atmosphere_is_kept_over_rough_relief(model):
    """Ridges of 4 km, which the grid of the model does not see: the mean of their pressures is not that of the mean height."""
    ds = globe()
    relief = 4000.0 * (np.indices(ds["orog"].shape).sum(0) % 2)
    fields = {"t2m": standard_temperature(relief), "sp": standard_pressure(relief)}
    ds = ds.assign(orog=ds["orog"].copy(data=relief), **{name: ds[name].copy(data=v[None]) for name, v in fields.items()})
    start, report = starting.prepare(ds, model)
    report.raise_errors()
    terrain, names = model.inputs[0].terrain, model.outer.schema.channels
    found = dict(zip(names, start.state.outer[0].numpy(), strict=True))
    np.testing.assert_allclose(found["t2m"], standard_temperature(terrain), rtol=1e-5)
    np.testing.assert_allclose(found["sp"], standard_pressure(terrain), rtol=2e-4)


def test_missing_orography_is_said(model):
    assert "moved from its own terrain" in repr(globe().scalemixer.check(model=model))
    assert "no orography" in repr(globe().drop_vars("orog").scalemixer.check(model=model))


def test_existing_store_is_kept(model, tmp_path):
    path = tmp_path / "run.zarr"
    xsm.forecast(globe(), 1, model=model, to=path)
    before = sorted(path.rglob("*"))
    with pytest.raises(InputError, match="overwrite=True"):
        xsm.forecast(globe(), 1, model=model, to=path)
    assert sorted(path.rglob("*")) == before
