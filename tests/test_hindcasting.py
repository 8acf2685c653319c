"""Many starts: each is the forecast from that start; stores go on after a kill; every bad start is told at once."""

import os
import subprocess
import sys
import textwrap
from time import sleep

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from worlds import HOUR, START, box, forecaster, globe

import xscalemixer as xsm
from xscalemixer import hindcasting
from xscalemixer.errors import InputError, SchemaError, TimeError
from xscalemixer.store import BlockStore

TIMES = START + np.arange(4) * 12 * HOUR
NAMES = ["t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd"]


@pytest.fixture(scope="module")
def model():
    return forecaster()


@pytest.fixture(scope="module")
def driver():
    return globe(TIMES)


@pytest.fixture(scope="module")
def analyses():
    return box(np.unique(TIMES[:, None] - np.arange(6) * HOUR))


@pytest.fixture(scope="module")
def reference(model, driver):
    return xsm.hindcast(driver, TIMES, 7, model=model)


def test_each_start_is_its_forecast(model, driver, reference):
    assert reference["t2m"].dims == ("reference_time", "lead_time", "latitude", "longitude")
    assert reference["orog"].dims == ("latitude", "longitude") and "4 starts" in reference.attrs["title"]
    for time in TIMES[[0, 2]]:
        fc = xsm.forecast(driver, 7, model=model, init_time=time)
        xr.testing.assert_equal(reference.sel(reference_time=[time]), fc)
        assert reference["t2m"].attrs == fc["t2m"].attrs and set(reference.attrs) == set(fc.attrs)


def test_warm_starts_from_a_tree(model, driver, analyses):
    tree = xr.DataTree.from_dict({"/global": driver, "/regional": analyses})
    out = tree.scalemixer.hindcast(TIMES[:2], 3, model=model)
    fc = tree.scalemixer.forecast(3, model=model, init_time=TIMES[1])
    assert out.attrs["start"] == "warm"
    xr.testing.assert_equal(out.isel(reference_time=[1]), fc)
    xr.testing.assert_identical(
        driver.scalemixer.hindcast(TIMES[:2], 3, model=model, regional=analyses).drop_attrs(), out.drop_attrs()
    )


def test_groups_of_starts_change_nothing(model, driver, reference, monkeypatch):
    monkeypatch.setattr(hindcasting, "_MEMORY", 1)
    xr.testing.assert_equal(xsm.hindcast(driver, TIMES, 7, model=model), reference)


OTHER_WORDS = {
    "text": [str(time) for time in TIMES[::-1]],
    "zone": pd.DatetimeIndex(TIMES).tz_localize("UTC").tz_convert("Asia/Shanghai"),
    "stamps": list(pd.DatetimeIndex(TIMES)),
}
IMPOSSIBLE = {
    "soon": "cannot be read as dates",
    (): "found 0 starts",
    (START, START): "2020-06-01T12:00 more than once",
    (pd.NaT,): "1 of them missing",
}


@pytest.mark.parametrize("times", OTHER_WORDS.values(), ids=OTHER_WORDS)
def test_starts_in_other_words(times):
    np.testing.assert_array_equal(hindcasting._times(times), TIMES)
    np.testing.assert_array_equal(hindcasting._times("2020-06-01T12"), TIMES[:1])


@pytest.mark.parametrize(("times", "message"), IMPOSSIBLE.items())
def test_impossible_starts(driver, model, times, message):
    with pytest.raises(TimeError, match=message):
        xsm.hindcast(driver, times, model=model)


def test_every_missing_time_is_told(driver, analyses, model, tmp_path):
    wanted = [*TIMES, TIMES[-1] + 12 * HOUR, START + HOUR]
    gap = analyses.drop_sel(time=[TIMES[1] - 2 * HOUR, TIMES[1] - 5 * HOUR])
    told = [
        r"3 starts cannot be made by 'tiny' \(5 problems\)",
        r"2020-06-01T13:00: not in the driver \(2020-06-01T12:00 to 2020-06-03T00:00\): 2020-06-01T13:00",
        r"2020-06-03T12:00: not in the driver .*: 2020-06-03T12:00",
        r"2020-06-02T00:00: not in the regional analyses \(.*\): 2020-06-01T19:00, 2020-06-01T22:00",
        r"Leave these starts out",
    ]
    with pytest.raises(TimeError, match="(?s:.)*".join(told)):
        xsm.hindcast(driver, wanted, model=model, regional=gap, to=tmp_path / "h.zarr")
    assert not list(tmp_path.iterdir())


def test_every_bad_state_is_told(driver, model):
    bad = driver.copy(deep=True)
    bad["t2m"][[1, 3], 20:22] = np.nan
    with pytest.raises(InputError, match=r"2 starts(?s:.)*06-02T00:00: driver: t2m: 180 of 4050(?s:.)*06-03T00:00: driver: t2m"):
        xsm.hindcast(bad, TIMES, model=model)
    with pytest.raises(SchemaError, match=r"4 starts cannot be made(?s:.)*2020-06-01T12:00, 2020-06-02T00:00, .*: driver: sp"):
        xsm.hindcast(driver.drop_vars("sp"), TIMES, model=model)


def test_a_store_changes_nothing(driver, model, reference, tmp_path):
    stored = xsm.hindcast(driver, TIMES, 7, model=model, to=tmp_path / "h.zarr")
    assert stored["t2m"].chunks is not None and set(stored["t2m"].chunks[0]) == {1}
    xr.testing.assert_equal(stored.load(), reference)
    assert stored.attrs["complete"] == "true" and stored["t2m"].attrs == reference["t2m"].attrs


def test_large_fields_have_chunks_of_some_leads(driver, model, reference, tmp_path, monkeypatch):
    monkeypatch.setattr(hindcasting, "_CHUNK", 3 * 40 * 60 * 4)
    stored = xsm.hindcast(driver, TIMES[:2], 7, model=model, to=tmp_path / "h.zarr")
    assert stored["t2m"].chunks[1] == (3, 3, 1)
    xr.testing.assert_equal(stored.load(), reference.isel(reference_time=[0, 1]))


@pytest.mark.parametrize("start", [0, 2])
def test_a_killed_hindcast_goes_on_where_it_was(driver, model, reference, tmp_path, monkeypatch, start):
    calls, real = iter(range(9)), BlockStore._sync
    with monkeypatch.context() as patch:
        patch.setattr(BlockStore, "_sync", lambda store, where: real(store, where) if next(calls) < start else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            xsm.hindcast(driver, TIMES, 7, model=model, to=tmp_path / "h.zarr")
    assert xr.open_zarr(tmp_path / "h.zarr", consolidated=False).attrs["complete"] == "false"
    made, run = [], hindcasting._run
    monkeypatch.setattr(hindcasting, "_run", lambda model, start, *rest: made.append(start.time) or run(model, start, *rest))
    out = xsm.hindcast(driver, TIMES, 7, model=model, to=tmp_path / "h.zarr", resume=True)
    assert made == list(TIMES[start:])
    xr.testing.assert_equal(out.load(), reference)


def warmer(driver):
    return driver.assign(t2m=(driver["t2m"] + 1).assign_attrs(driver["t2m"].attrs))


def test_another_hindcast_is_not_resumed(driver, model, tmp_path):
    to = {"to": tmp_path / "h.zarr", "model": model}
    xsm.hindcast(driver, TIMES[:2], 2, **to)
    with pytest.raises(InputError, match=r"holds another set of results(?s:.)*hours: the store has 2, this run 3"):
        xsm.hindcast(driver, TIMES[:2], 3, resume=True, **to)
    with pytest.raises(
        InputError, match=r"holds another set of results(?s:.)*input: the store has(?s:.)*starts: the store has '2 from"
    ):
        xsm.hindcast(driver, TIMES[:3], 2, resume=True, **to)
    with pytest.raises(InputError, match="input: the store has"):
        xsm.hindcast(warmer(driver), TIMES[:2], 2, resume=True, **to)
    with pytest.raises(InputError, match="exists"):
        xsm.hindcast(driver, TIMES[:2], 2, **to)
    with pytest.raises(InputError, match=r"add to='run.zarr'"):
        xsm.hindcast(driver, TIMES, model=model, overwrite=True)


def test_a_start_that_fails_is_named(driver, tmp_path):
    broken = forecaster()
    torch.nn.init.constant_(next(broken.network.inner.parameters()), float("nan"))
    with pytest.raises(InputError, match=r"the hindcast stopped at the start 2020-06-01T12:00(?s:.)*is not finite"):
        xsm.hindcast(driver, TIMES, 2, model=broken)


def test_hindcasts_are_scored(reference):
    truth = box(np.unique(reference["valid_time"].values))
    sc = reference.scalemixer.score(truth, metrics=["rmse"])
    assert sc["t2m"].sizes == {"metric": 2, "lead_time": 7} and (sc["t2m"].sel(metric="count") == 4).all()


@pytest.mark.slow
def test_two_workers_make_the_same_hindcast(driver, model, reference, tmp_path):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        out = xsm.hindcast(driver, TIMES, 7, model=model, to=tmp_path / "h.zarr").load()
        busy = client.run(lambda dask_worker: len(dask_worker.state.log))
    assert all(number > 0 for number in busy.values())
    for name in NAMES:
        np.testing.assert_allclose(out[name], reference[name], rtol=1e-5, atol=1e-5 * float(reference[name].std()))


KILLED = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from test_hindcasting import TIMES, forecaster, globe, hindcasting
    real = hindcasting._run
    hindcasting._run = lambda *a: time.sleep(0.3) or real(*a)
    hindcasting.hindcast(globe(TIMES), TIMES, 7, model=forecaster(), to={to!r})
"""


@pytest.mark.slow
def test_killed_for_good(driver, model, reference, tmp_path):
    to = tmp_path / "h.zarr"
    code = textwrap.dedent(KILLED).format(tests=os.path.dirname(__file__), to=str(to))
    process = subprocess.Popen([sys.executable, "-c", code])
    journal = to / "progress" / "journal.jsonl"
    while not (journal.exists() and journal.read_text().count("\n") >= 2):
        sleep(0.02)
        assert process.poll() is None
    process.kill()
    process.wait()
    assert len(journal.read_text().splitlines()) < 5
    out = xsm.hindcast(driver, TIMES, 7, model=model, to=to, resume=True)
    xr.testing.assert_equal(out.load(), reference)
