"""A region alone behind the same verbs: any layout of its hours, rolled on, saved, streamed; bad input is told in one error."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from alone import alone, region
from test_pretrained import reseal
from worlds import HOUR, START, globe

import xscalemixer as xsm
from xscalemixer import starting
from xscalemixer.errors import CheckpointError, GridError, InputError, SchemaError, TimeError

HOURS = START - np.arange(7, -1, -1) * HOUR


@pytest.fixture(scope="module")
def model():
    return alone()


@pytest.fixture(scope="module")
def ds():
    return region(HOURS)


@pytest.fixture(scope="module")
def reference(ds, model):
    return ds.scalemixer.forecast(hours=6, model=model)


def test_a_forecast_like_any_other(reference, ds):
    assert reference["t2m"].sizes == {"reference_time": 1, "lead_time": 6, "latitude": 9, "longitude": 13}
    assert reference["reference_time"].values[0] == START and np.isfinite(reference["t2m"]).all()
    assert reference["q2m"].min() >= 0 and reference["tcc"].min() >= 0 and reference["tcc"].max() <= 1
    np.testing.assert_array_equal(reference["orog"], ds["orog"])
    assert reference.attrs["references"] == "Met2Net, arXiv:2507.17189" and reference.attrs["start"] == "warm"


@pytest.mark.parametrize(("past", "future"), [(4, 4), (3, 5), (5, 2)])
def test_rolled_further_is_the_forecast_from_a_later_start(past, future, ds):
    """The hours of the first step, taken for analyses, lead to those of the second."""
    model = alone(past, future)
    start, _ = starting.prepare(ds, model)
    first, second = model.rollout(start.state, 2)
    hours = torch.cat([start.state.inner, first.inner[:, -future:]], 1)[:, -past:]
    (again,) = model.rollout(model.begin(first.time, {"inner": hours}), 1)
    assert again.time == second.time == START + 2 * future * HOUR
    torch.testing.assert_close(again.inner[:, -future:], second.inner[:, -future:])
    fc = ds.scalemixer.forecast(future + 1, model=model)
    np.testing.assert_allclose(fc["t2m"][0, -1], second.inner[0, -future, 0], rtol=1e-6)


def test_no_sun_at_night(ds, model):
    """At 55 to 63 N and 70 to 83 E the sun is down from 18 to 20 UTC on the first of June."""
    fc = ds.scalemixer.forecast(12, model=model)
    assert float(fc["ssrd"].sel(lead_time=[7, 8]).max()) == 0.0 < float(fc["ssrd"].max())


def rescaled(ds):
    return ds.assign(t2m=(ds["t2m"].astype("f8") - 273.15).assign_attrs({**ds["t2m"].attrs, "units": "degC"}))


DRESSES = {
    "south to north": lambda ds: ds.isel(latitude=slice(None, None, -1)),
    "Celsius": rescaled,
    "dask": lambda ds: ds.chunk(time=3),
    "a tree of one group": lambda ds: xr.DataTree.from_dict({"/regional": ds}),
}


@pytest.mark.parametrize("dress", DRESSES)
def test_same_hours_same_forecast(dress, ds, model, reference):
    fc = DRESSES[dress](ds).scalemixer.forecast(hours=6, model=model)
    for name in ("t2m", "sp", "tcc"):
        np.testing.assert_allclose(fc[name], reference[name], rtol=1e-5, atol=1e-5 * float(reference[name].std()))


def test_a_larger_region_is_cut_to_the_grid(ds, model):
    from worlds import box

    wide = box(HOURS, north=65.25, west=66.75, shape=(14, 18))
    assert "regridded" in str(wide.scalemixer.check(model=model)) and wide.scalemixer.check(model=model).ok
    with pytest.raises(GridError, match="% of the model's grid lies outside the data"):
        ds.isel(latitude=slice(4)).scalemixer.forecast(model=model)


# --- saved, streamed, hindcast, scored


def test_saved_and_loaded(ds, model, reference, tmp_path):
    model.save(tmp_path / "mine")
    again = xsm.load(tmp_path / "mine")
    assert type(again) is type(model) and again.weights_sha256() == model.weights_sha256()
    xr.testing.assert_equal(ds.scalemixer.forecast(6, model=tmp_path / "mine"), reference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "spectral"}, "kind 'spectral'; this version of xscalemixer has 'coupled', 'regional', 'corrdiff'"),
        ({"kind": "coupled"}, "unknown key 'statics'.*missing key 'calendar'"),
        ({"format": 2}, "format 2"),
        ({"network": {}}, "network settings"),
    ],
)
def test_wrong_descriptions(model, tmp_path, change, message):
    model.save(tmp_path / "mine")
    file = tmp_path / "mine" / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    reseal(file.parent)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        xsm.load(file.parent)


def test_streamed_and_gone_on_with(ds, model, reference, tmp_path, monkeypatch):
    to, step, calls = tmp_path / "run.zarr", type(model).step, []
    dying = lambda self, state: step(self, state) if not calls.append(1) and len(calls) < 2 else 1 / 0
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "step", dying)
        with pytest.raises(ZeroDivisionError):
            ds.scalemixer.forecast(6, model=model, to=to)
    resumed = ds.scalemixer.forecast(6, model=model, to=to, resume=True)
    xr.testing.assert_equal(resumed.load(), reference)


def test_hindcasts_are_forecasts_and_are_scored(ds, model, reference):
    hc = ds.scalemixer.hindcast([START - HOUR, START], 6, model=model)
    xr.testing.assert_equal(hc.isel(reference_time=[1]), reference)
    sc = hc.scalemixer.score(region(START + np.arange(6) * HOUR), metrics=["rmse"])
    assert sc["t2m"].sizes["lead_time"] >= 5 and np.isfinite(sc["t2m"].sel(metric="rmse", lead_time=1))


def test_hindcasts_tell_every_missing_hour(ds, model):
    told = r"not in the hourly fields \(2020-06-01T05:00 to 2020-06-01T12:00\): 2020-06-01T03:00, 2020-06-01T04:00"
    with pytest.raises(TimeError, match=told):
        ds.scalemixer.hindcast([HOURS[1], START], 6, model=model)


# --- bad input


def test_too_short_a_history_and_a_missing_variable(ds, model):
    told = [
        r"hourly fields: time: 2020-06-01T10:00 to 2020-06-01T12:00, without 2020-06-01T09:00",
        r"Needed: hourly fields of the 4 hours up to the start. Give data from 2020-06-01T09:00 on",
        r"hourly fields: sp: no surface pressure",
    ]
    with pytest.raises(InputError, match="(?s:.)*".join(told)):
        ds.isel(time=slice(5, None)).drop_vars("sp").scalemixer.forecast(model=model)


def test_a_start_too_early_names_the_first_one_that_works(ds, model):
    with pytest.raises(TimeError, match=r'or start at one of the hours from init_time="2020-06-01T08:00" on'):
        ds.scalemixer.forecast(model=model, init_time=HOURS[1])


def test_another_step_length(ds, model):
    told = r"every 3 h, without 2020-06-01T10:00, 2020-06-01T11:00(?s:.)*Get hourly data; they are not interpolated in time"
    with pytest.raises(TimeError, match=told):
        region(START - np.arange(4)[::-1] * 3 * HOUR).scalemixer.forecast(model=model)


def test_a_driver_that_is_not_used(ds, model):
    with pytest.raises(InputError, match=r"a driver, and regional= beside it(?s:.)*xsm.forecast\(regional, model=...\)"):
        xsm.forecast(globe(), model=model, regional=ds)
    tree = xr.DataTree.from_dict({"/global": globe(), "/regional": ds})
    with pytest.raises(InputError, match=r"'/global', which 'alone' does not use(?s:.)*tree\[\"regional\"\].to_dataset"):
        tree.scalemixer.forecast(model=model)
    with pytest.raises(SchemaError, match=r"found \['global'\]. Needed: '/regional'. Build it"):
        xr.DataTree.from_dict({"/global": globe()}).scalemixer.check(model=model).raise_errors()


def test_what_only_coupled_models_have(ds, model):
    for call, what in (
        (lambda: ds.scalemixer.key_positions(model=model), "key positions"),
        (lambda: ds.scalemixer.forecast(1, model=model, diagnose=True), "coupling"),
    ):
        with pytest.raises(InputError, match=f"'alone' has no {what}"):
            call()
