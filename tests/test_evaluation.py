"""One pass over the data in batches: no batch, no resume and no worker changes a score; memory and graphs are bounded."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc

import dask
import numpy as np
import pytest
import scores.probability
import xarray as xr
from test_verification import GRID, LEADS, analysis, beside, forecast, raised, random, value

import xscalemixer as xsm
from xscalemixer.errors import InputError, SchemaError
from xscalemixer.report import Report
from xscalemixer.verification import evaluation
from xscalemixer.verification.alignment import align
from xscalemixer.verification.bootstrap import resampled_counts, segment_lengths
from xscalemixer.verification.metrics import field_means

GRID_DIMS = ["latitude", "longitude"]
FIELD = 2 * GRID.shape[0] * GRID.shape[1] * 4  # bytes of one forecast field and its truth


@pytest.fixture(scope="module")
def truth():
    return analysis(random(5, *GRID.shape))


@pytest.fixture(scope="module")
def fc(truth):
    return forecast(beside(truth) + random(4, 2, *GRID.shape, seed=1) - 280)


def blocks_of(fc, truth, memory, names=("mse",)):
    aligned, report = align({"a": fc}, truth)
    return evaluation.batches(aligned, lambda block: evaluation._lazy_means(aligned, names, block), memory, report), report


# --- batches


@pytest.mark.parametrize("memory", [1, 2 * FIELD, 4 * FIELD, 6 * FIELD, "1 GiB"])
@pytest.mark.parametrize("chunks", [None, {"reference_time": 1, "lead_time": 1}, {"reference_time": 3, "latitude": 2}])
def test_batches_change_nothing(fc, truth, memory, chunks):
    lazy = fc if chunks is None else fc.chunk(chunks)
    xr.testing.assert_identical(xsm.score(lazy, truth, memory=memory), xsm.score(fc, truth))


@pytest.mark.parametrize(("fields", "starts", "leads"), [(0.5, 1, 1), (1, 1, 1), (2, 1, 2), (5, 2, 2), (99, 4, 2)])
def test_a_batch_fits_into_the_memory(fc, truth, fields, starts, leads):
    first, *_ = blocks_of(fc, truth, int(fields * FIELD))[0]
    assert first == {"reference_time": [0, starts], "lead_time": [0, leads]}


def test_batches_cover_each_field_once(fc, truth):
    seen = np.zeros((4, 2), int)
    for block in blocks_of(fc, truth, 6 * FIELD)[0]:
        seen[tuple(evaluation._spans(block).values())] += 1
    assert (seen == 1).all()


def test_batches_end_where_chunks_end(fc, truth):
    blocks, _ = blocks_of(fc.chunk(reference_time=2), truth, 6 * FIELD)
    assert [block["reference_time"] for block in blocks] == [[0, 2], [2, 4]]


def long_forecast(starts=400, chunk=1):
    times = np.datetime64("2001-01-01", "ns") + np.arange(starts) * np.timedelta64(12, "h")
    valid = np.unique(times[:, None] + LEADS.astype("m8[h]"))
    return forecast(280.0, starts=times).chunk(reference_time=chunk, lead_time=1), analysis(280.0, times=valid).chunk(time=1)


def test_the_graph_of_a_batch_is_small(monkeypatch):
    fc, truth = long_forecast(100)
    sizes = []
    monkeypatch.setattr(evaluation, "_TASKS", 300)
    monkeypatch.setattr(evaluation, "_compute", lambda *lazy: sizes.append(evaluation._tasks(*lazy)) or dask.compute(*lazy))
    xsm.score(fc, truth, metrics="rmse")
    assert len(sizes) > 3 and max(sizes) <= 300


def test_badly_chunked_data_are_told_and_scored(monkeypatch):
    fc, truth = long_forecast(40)
    monkeypatch.setattr(evaluation, "_MUCH", 0)
    bad = truth.load().chunk(time=-1, latitude=2)
    message = r"truth: chunks of 80 along time are read again for each of 10 batches: .* GB(?s:.)*ds.chunk\(time=8, latitude=-1"
    with pytest.warns(UserWarning, match=message):
        sc = xsm.score(fc, bad, memory=8 * FIELD)
    xr.testing.assert_equal(sc, xsm.score(fc, truth))


def test_well_chunked_data_are_scored_in_silence(monkeypatch, recwarn):
    fc, truth = long_forecast(50)
    monkeypatch.setattr(evaluation, "_MUCH", 0)
    assert "chunks" not in xsm.score(fc, truth, memory=8 * FIELD).attrs["report"] and not recwarn.list


# --- stores


def two(fc):
    return {"a": fc, "b": raised(fc, 1)}


def test_a_store_changes_nothing_and_gives_other_scores(fc, truth, tmp_path):
    stored = xsm.score(two(fc), truth, to=tmp_path / "s.zarr", memory=4 * FIELD, metrics=["rmse", "bias"])
    plain = xsm.score(two(fc), truth, metrics=["rmse", "bias"])
    xr.testing.assert_identical(stored, plain)
    again = xsm.rescore(tmp_path / "s.zarr", by=["reference_time"], skill_against=None, root="before")
    expected = xsm.score(two(fc), truth, metrics=["bias", "rmse"], by=["reference_time"], root="before")
    xr.testing.assert_identical(again, expected)
    paired = xsm.rescore(tmp_path / "s.zarr", skill_against="b", metrics="mse")
    xr.testing.assert_identical(paired, xsm.score(two(fc), truth, skill_against="b", metrics="mse"))


def interrupt(monkeypatch, batch):
    """Stop in the middle of a batch, when its first chunks are on disk."""
    calls = iter(range(99))
    real = evaluation.BlockStore._sync

    def stop(store, where):
        real(store, where)
        if next(calls) == batch:
            raise KeyboardInterrupt

    monkeypatch.setattr(evaluation.BlockStore, "_sync", stop)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_a_killed_run_goes_on_where_it_was(fc, truth, tmp_path, monkeypatch, batch):
    keywords = {"to": tmp_path / "s.zarr", "memory": 2 * FIELD}
    with monkeypatch.context() as patch:
        interrupt(patch, batch)
        with pytest.raises(KeyboardInterrupt):
            xsm.score(fc, truth, **keywords)
    with pytest.raises(InputError, match="holds no complete area means(?s:.)*resume=True"):
        xsm.rescore(tmp_path / "s.zarr")
    computed = []
    real = evaluation._lazy_means
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "_lazy_means", lambda a, n, block: computed.append(block) or real(a, n, block))
        sc = xsm.score(fc, truth, resume=True, **keywords)
    assert len(computed) - 1 == 4 - batch, "one look at the graph, and the batches that were not complete"
    xr.testing.assert_identical(sc, xsm.score(fc, truth))


def test_memory_may_change_between_runs(fc, truth, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            xsm.score(fc, truth, to=tmp_path / "s.zarr", memory=2 * FIELD)
    sc = xsm.score(fc, truth, to=tmp_path / "s.zarr", resume=True)
    xr.testing.assert_identical(sc, xsm.score(fc, truth))


def test_a_damaged_batch_is_made_again(fc, truth, tmp_path):
    plain = xsm.score(fc, truth, to=tmp_path / "s.zarr", memory=2 * FIELD)
    chunk = next((tmp_path / "s.zarr" / "t2m").glob("[0-9]*"))
    chunk.write_bytes(chunk.read_bytes()[:-3])
    xr.testing.assert_identical(xsm.score(fc, truth, to=tmp_path / "s.zarr", resume=True), plain)


FOREIGN = {
    "metrics": (lambda fc, truth: (fc, truth, {"metrics": "bias"}), "area means: the store has"),
    "region": (lambda fc, truth: (fc, truth, {"region": (60, 10, 50, 20)}), "region: the store has 'all', this run"),
    "starts": (lambda fc, truth: (fc.isel(reference_time=[0, 1]), truth, {}), "starts: the store has '4 from"),
    "leads": (lambda fc, truth: (fc.isel(lead_time=[0]), truth, {}), r"lead times: the store has \[6, 12\]"),
    "models": (lambda fc, truth: (two(fc), truth, {}), "model a: the store has None"),
    "forecast": (lambda fc, truth: (raised(fc, 1), truth, {}), "model forecast: the store has '1 members"),
    "truth": (lambda fc, truth: (fc, raised(truth, 1), {}), "model forecast: the store has"),
    "middle": (lambda fc, truth: (fc, warmer_at(truth, 2), {}), "model forecast: the store has"),
}  # fmt: skip


def warmer_at(truth, place):
    return truth.assign(t2m=(truth["t2m"] + (np.arange(5) == place)[:, None, None]).assign_attrs(truth["t2m"].attrs))


@pytest.mark.parametrize(("change", "message"), FOREIGN.values(), ids=FOREIGN)
def test_another_evaluation_is_not_resumed(fc, truth, tmp_path, change, message):
    xsm.score(fc, truth, to=tmp_path / "s.zarr")
    forecasts, other, keywords = change(fc, truth)
    with pytest.raises(InputError, match=f"holds another set of results and cannot be resumed(?s:.)*{message}"):
        xsm.score(forecasts, other, to=tmp_path / "s.zarr", resume=True, **keywords)


def test_another_climatology_is_not_resumed(fc, truth, tmp_path):
    normal = xsm.climatology(truth)
    xsm.score(fc, truth, climatology=normal, to=tmp_path / "s.zarr")
    with pytest.raises(InputError, match="climatology: the store has"):
        xsm.score(fc, truth, climatology=raised(normal, 1), to=tmp_path / "s.zarr", resume=True)


def test_metrics_of_a_climatology_are_rescored(fc, truth, tmp_path):
    sc = xsm.score(fc, truth, climatology=xsm.climatology(truth), metrics=["activity"], to=tmp_path / "s.zarr")
    xr.testing.assert_identical(xsm.rescore(tmp_path / "s.zarr"), sc)


def test_stores_are_not_overwritten_by_accident(fc, truth, tmp_path):
    plain = xsm.score(fc, truth, to=tmp_path / "s.zarr")
    with pytest.raises(InputError, match="exists(?s:.)*resume=True to go on with the set of results in it"):
        xsm.score(fc, truth, to=tmp_path / "s.zarr")
    xr.testing.assert_identical(xsm.score(fc, truth, to=tmp_path / "s.zarr", overwrite=True), plain)
    with pytest.raises(InputError, match=r"add to='scores.zarr'"):
        xsm.score(fc, truth, resume=True)


def test_what_cannot_be_rescored(fc, truth, tmp_path):
    xsm.score(fc, truth, to=tmp_path / "s.zarr", metrics="bias")
    with pytest.raises(
        InputError, match=r"3 problems(?s:.)*by='step'(?s:.)*not one of the forecasts(?s:.)*rmse cannot be had from"
    ):
        xsm.rescore(tmp_path / "s.zarr", metrics=["rmse", "bias"], by=["step"], skill_against="ifs")
    with pytest.raises(InputError, match=r"holds no area means(?s:.)*xsm.score\(forecast, truth, to="):
        xsm.rescore(tmp_path / "nothing.zarr")


KILLED = """
    import sys, time, dask.array, numpy as np
    sys.path.insert(0, {tests!r})
    from test_verification import analysis, forecast, random, beside
    from test_evaluation import FIELD, made
    import xscalemixer as xsm
    from xscalemixer.verification import evaluation
    real = evaluation._compute
    evaluation._compute = lambda *lazy: time.sleep(0.2) or real(*lazy)
    xsm.score(*made(), to={to!r}, memory=2 * FIELD)
"""


def made():
    truth = analysis(random(5, *GRID.shape))
    return forecast(beside(truth) + random(4, 2, *GRID.shape, seed=1) - 280), truth


@pytest.mark.slow
def test_killed_for_good(tmp_path):
    to = tmp_path / "s.zarr"
    code = textwrap.dedent(KILLED).format(tests=os.path.dirname(__file__), to=str(to))
    process = subprocess.Popen([sys.executable, "-c", code])
    journal = to / "progress" / "journal.jsonl"
    while not (journal.exists() and journal.read_text().count("\n") >= 3):
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    sc = xsm.score(*made(), to=to, resume=True)
    assert len(journal.read_text().splitlines()) == 5
    xr.testing.assert_identical(sc, xsm.score(*made()))


# --- workers


@pytest.mark.slow
def test_two_workers_give_the_same_scores(fc, truth):
    distributed = pytest.importorskip("distributed")
    lazy = fc.chunk(reference_time=1), truth.chunk(time=1)
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        theirs = xsm.score(*lazy)
        places = xsm.score(*lazy, by=["place"])
        tasks = client.run(lambda dask_worker: len(dask_worker.state.log))
    assert all(number > 0 for number in tasks.values())
    xr.testing.assert_identical(theirs, xsm.score(fc, truth))
    xr.testing.assert_allclose(places, xsm.score(fc, truth, by=["place"]))


# --- places


@pytest.mark.parametrize("root", ["after", "before"])
@pytest.mark.parametrize("memory", [1, 4 * FIELD, "1 GiB"])
def test_scores_at_each_place(fc, truth, memory, root):
    sc = xsm.score(fc.chunk(lead_time=1), truth, by=["lead_time", "place"], memory=memory, root=root)
    assert sc["t2m"].dims == ("metric", "lead_time", "latitude", "longitude")
    np.testing.assert_array_equal(sc["latitude"], GRID.latitude)
    error = fc["t2m"].values.astype("f8") - beside(truth)
    expected = {
        "bias": error.mean(0),
        "mae": np.abs(error).mean(0),
        "rmse": np.sqrt((error**2).mean(0)),
        "count": 4 + 0 * error[0],
    }
    expected |= {"rmse": expected["mae"]} if root == "before" else {}
    assert sorted(sc["metric"].values) == sorted(expected)
    for metric, values in expected.items():
        np.testing.assert_allclose(value(sc, metric), values, rtol=1e-6, atol=1e-6)


def test_places_of_an_ensemble_without_leads(truth):
    fc = forecast(beside(truth)[:, :, None] + random(4, 2, 5, *GRID.shape, seed=3) - 280)
    sc = xsm.score(fc, truth, by=["place"])
    assert sc["t2m"].dims == ("metric", "latitude", "longitude") and value(sc, "count").max() == 8
    target = fc["t2m"].isel(member=0).copy(data=beside(truth))
    for metric, method in (("crps", "ecdf"), ("crps_fair", "fair")):
        theirs = scores.probability.crps_for_ensemble(
            fc["t2m"].astype("f8"), target, "member", method=method, preserve_dims=GRID_DIMS
        )
        np.testing.assert_allclose(value(sc, metric), theirs, rtol=1e-6)
    variance = fc["t2m"].astype("f8").var("member", ddof=1).mean(["reference_time", "lead_time"])
    np.testing.assert_allclose(value(sc, "spread"), np.sqrt(variance), rtol=1e-6)


def test_area_mean_of_places_is_the_score(fc, truth):
    places = xsm.score(fc, truth, by=["lead_time", "place"], metrics=["mse", "bias"])
    mean = places["t2m"].weighted(xr.DataArray(GRID.area, dims=GRID_DIMS)).mean(GRID_DIMS)
    sc = xsm.score(fc, truth, metrics=["mse", "bias"])
    np.testing.assert_allclose(mean.sel(metric=["mse", "bias"]), sc["t2m"].sel(metric=["mse", "bias"]), rtol=1e-6)


def test_places_count_what_all_models_have(fc, truth):
    gap = fc.copy(deep=True)
    gap["t2m"][0, :, 2, 3] = np.nan
    gap["t2m"][:, :, 0, 0] = np.nan
    sc = xsm.score({"a": fc, "b": gap}, truth, by="place", skill_against="a", metrics="mae")
    assert sc["t2m"].dims == ("metric", "model", *GRID_DIMS)
    assert (sc["t2m"].sel(metric="count")[:, 2, 3] == 6).all() and (sc["t2m"].sel(metric="count")[:, 0, 0] == 0).all()
    assert np.isnan(sc["t2m"].sel(metric="mae")[:, 0, 0]).all()
    assert not [metric for metric in sc["metric"].values if metric.endswith(("low", "high"))]
    np.testing.assert_array_equal(value(sc, "mae_difference")[:, 1:], 0)


def test_places_of_curvilinear_grids_keep_their_coordinates(truth):
    longitude, latitude = np.meshgrid(10 + np.arange(8.0), 60 - np.arange(6.0))
    bend = lambda ds: ds.rename(latitude="y", longitude="x").drop_vars(["y", "x"]).assign_coords(
        latitude=(("y", "x"), latitude + longitude / 50), longitude=(("y", "x"), longitude)
    )  # fmt: skip
    sc = xsm.score(bend(forecast(beside(truth) - 2)), bend(truth), by="place", metrics="bias")
    assert sc["t2m"].dims == ("metric", "y", "x") and sc["latitude"].dims == ("y", "x")
    np.testing.assert_allclose(value(sc, "bias"), -2, atol=1e-4)


def at_points(ds):
    """Four cells of a dataset as if they were stations."""
    picked = ds.isel(latitude=xr.DataArray([0, 1, 2, 3], dims="station"), longitude=xr.DataArray([1, 2, 3, 4], dims="station"))
    height = ("station", np.zeros(4), {"units": "m"})
    return picked.reset_coords(drop=True).assign_coords(
        station=list("abcd"), latitude=picked["latitude"], longitude=picked["longitude"], altitude=height
    )


def test_scores_at_stations(fc, truth, tmp_path):
    forecasts, reports = two(at_points(fc)), at_points(truth)
    reports["t2m"][0, 1] = np.nan
    sc = xsm.score(forecasts, reports, by=["place"], metrics="mae")
    assert sc["t2m"].dims == ("metric", "model", "station") and sc["latitude"].dims == ("station",)
    plain = xsm.score(forecasts, reports, by=[], metrics="mae", to=tmp_path / "s.zarr", memory=1)
    count = sc["t2m"].sel(metric="count")
    assert (count.sum("station") == plain["t2m"].sel(metric="count")).all()
    pooled = sc["t2m"].sel(metric="mae").weighted(count.isel(model=0, drop=True)).mean("station")
    np.testing.assert_allclose(pooled, plain["t2m"].sel(metric="mae"), rtol=1e-9)


def test_what_no_place_has(fc, truth):
    with pytest.raises(
        InputError, match=r"3 problems(?s:.)*errors themselves(?s:.)*correlation: a metric of whole fields(?s:.)*to="
    ):
        xsm.score(fc, truth, by=["place", "reference_time"], metrics=["correlation", "bias"], to="scores.zarr")


# --- trees


def test_a_tree_of_truths_gives_a_tree_of_scores(fc, truth):
    tree = xr.DataTree.from_dict({"/era": truth, "/own/analysis": raised(truth, 1)})
    sc = xsm.score({"a": fc, "b": fc}, tree, metrics="bias")
    xr.testing.assert_identical(sc["own/analysis"].to_dataset(), xsm.score({"a": fc, "b": fc}, raised(truth, 1), metrics="bias"))
    bias = [sc[path].sel(metric="bias", model="a").values for path in ("era/t2m", "own/analysis/t2m")]
    np.testing.assert_allclose(bias[0] - bias[1], 1, atol=1e-3)


def test_trees_that_cannot_be_scored(fc, truth):
    with pytest.raises(SchemaError, match="a tree without data"):
        xsm.score(fc, xr.DataTree())
    with pytest.raises(InputError, match="to= keeps the area means of one truth"):
        xsm.score(fc, xr.DataTree.from_dict({"/era": truth}), to="s.zarr")


# --- many members


def fields(members, truth):
    """Members of shape (N, M, H, W) and truth of shape (N, H, W) as arrays with names."""
    dims = ("reference_time", "member", *GRID_DIMS)
    return xr.DataArray(members, dims=dims), xr.DataArray(truth, dims=(dims[0], *GRID_DIMS))


def test_crps_of_many_members_is_that_of_scores(monkeypatch):
    monkeypatch.setattr("xscalemixer.verification.metrics._BLOCK", 1000)  # three cells at a time
    pair = fields(random(2, 300, *GRID.shape, seed=4), random(2, *GRID.shape, seed=5))
    area = xr.DataArray(GRID.area, dims=GRID_DIMS)
    ours = field_means(("crps", "crps_fair"), *pair, area)
    exact = [array.astype("f8") for array in pair]
    for name, method in (("crps", "ecdf"), ("crps_fair", "fair")):
        keywords = {"method": method, "weights": area, "preserve_dims": ["reference_time"]}
        np.testing.assert_allclose(
            ours.sel(mean=name), scores.probability.crps_for_ensemble(*exact, "member", **keywords), rtol=1e-9
        )


def test_memory_does_not_grow_with_the_members():
    area, peaks = xr.DataArray(np.ones((60, 100)), dims=GRID_DIMS), []
    for number in (100, 800):
        pair = fields(random(1, number, 60, 100), random(1, 60, 100))
        tracemalloc.start()
        field_means(("crps", "variance"), *pair, area)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


# --- gaps between starts


def test_segments_end_at_gaps():
    days = np.array([0, 1, 2, 4, 30, 31, 90], "m8[D]") + np.datetime64("2001-01-01")
    assert segment_lengths(days).tolist() == [4, 2, 1]
    assert segment_lengths(days[:1]).tolist() == [1]
    assert segment_lengths(days[:3]).tolist() == [3]


def test_no_block_spans_a_gap():
    counts = resampled_counts([5, 2, 3], 4000, 3, seed=1)
    np.testing.assert_array_equal(counts.sum("reference_time"), 10)
    np.testing.assert_allclose(counts.mean("draw"), 1, atol=0.1)
    whole = resampled_counts([4, 4], 300, 4, seed=1)
    first = whole.isel(reference_time=slice(4))
    assert (first == first.isel(reference_time=0)).all(), "a segment of one block is drawn as a whole"
    np.testing.assert_array_equal(np.unique(first), [0, 1, 2])


def test_a_wide_gap_is_told(truth):
    starts = np.datetime64("2001-01-01", "ns") + np.array([0, 1, 2, 3, 200, 201, 202]) * np.timedelta64(1, "D")
    valid = np.unique(starts[:, None] + LEADS.astype("m8[h]"))
    fc = forecast(280 + random(7, 2, *GRID.shape), starts=starts)
    sc = xsm.score(two(fc), analysis(280.0, times=valid), skill_against="a", metrics="mae")
    assert "7 starts in blocks of 2 within 2 spells without a gap" in sc.attrs["report"]


def test_a_report_survives_json():
    report = Report("x")
    report.warn("t2m", "odd", "look")
    report.error("sp", "lost", "some", kind=SchemaError)
    assert list(Report.from_dict(json.loads(json.dumps(report.to_dict())))) == list(report)
