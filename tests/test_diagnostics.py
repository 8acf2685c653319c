import sys
import tracemalloc
from dataclasses import replace

import dask
import dask.array
import numpy as np
import pytest
import scores.spatial
import xarray as xr

from xscalemixer.errors import GridError, InputError, SchemaError
from xscalemixer.grids import Grid
from xscalemixer.verification import brier, fss, power_spectrum, quantiles, rank_histogram, reliability
from xscalemixer.verification.pairs import align_pair

GRID = Grid.regular(60, 10, "2.5", (6, 8))
STARTS = np.arange("2001-08-10", "2001-08-14", dtype="M8[D]").astype("M8[ns]")
LEADS = np.array([6, 12])
VALID = STARTS[:, None] + LEADS.astype("m8[h]")
K = {"units": "K", "standard_name": "air_temperature"}
SHARES = GRID.area / GRID.area.sum()


def forecast(values, grid=GRID, starts=STARTS):
    """Values of shape (starts, leads, [members], H, W), or anything that broadcasts to it."""
    shape = (len(starts), len(LEADS), *np.shape(values)[2:-2], *grid.shape)
    dims = ("reference_time", "lead_time", *("member",) * (len(shape) == 5), "latitude", "longitude")
    coords = {"reference_time": starts, "lead_time": ("lead_time", LEADS, {"units": "hours"})}
    coords |= {"latitude": list(grid.latitude), "longitude": list(grid.longitude)}
    return xr.Dataset({"t2m": (dims, np.broadcast_to(values, shape).astype("f4"), K)}, coords)


def truth_of(values, grid=GRID, starts=STARTS):
    """Truth at the valid times; values of shape (starts, leads, H, W), or anything that broadcasts to it."""
    shape = (len(starts), len(LEADS), *grid.shape)
    times = (starts[:, None] + LEADS.astype("m8[h]")).ravel()
    coords = {"time": times, "latitude": list(grid.latitude), "longitude": list(grid.longitude)}
    fields = np.broadcast_to(values, shape).astype("f4").reshape(-1, *grid.shape)
    return xr.Dataset({"t2m": (("time", "latitude", "longitude"), fields, K)}, coords)


def noise(*shape, seed=0):
    return 280 + np.random.default_rng(seed).normal(size=shape)


@pytest.fixture
def ensemble():
    return forecast(noise(4, 2, 5, *GRID.shape))


@pytest.fixture
def truth():
    return truth_of(noise(4, 2, *GRID.shape, seed=1))


# reliability


def test_half_of_the_members_in_an_event_that_always_happens():
    pair = np.array([279.0, 281.0])[:, None, None] * np.ones(GRID.shape)
    out = reliability(forecast(pair[None, None]), truth_of(281.0), "t2m", 280.0).squeeze("threshold")
    assert out["count"].dims == ("lead_time", "probability") and out.attrs["sample"] == "4 starts, 48 cells"
    np.testing.assert_allclose(out["count"].isel(lead_time=0), [0, 4 * 48, 0])
    np.testing.assert_allclose(out["forecast_probability"].isel(probability=1), 0.5)
    np.testing.assert_allclose(out["observed_frequency"].isel(probability=1), 1)
    assert np.isnan(out["observed_frequency"].isel(probability=[0, 2])).all()


def test_a_calibrated_ensemble_is_on_the_diagonal():
    grid = Grid.regular(30, 10, "0.5", (60, 60))
    center = noise(4, 2, 1, *grid.shape)
    draws = np.random.default_rng(6).normal(size=(4, 2, 11, *grid.shape))
    fc, truth = forecast(center + draws[:, :, :10], grid), truth_of(center[:, :, 0] + draws[:, :, 10], grid)
    out = reliability(fc, truth, "t2m", 280.0, bins=5)
    # probabilities of ten draws scatter around the true ones: calibrated in the middle, flatter towards the ends
    middle = out.isel(probability=2)
    np.testing.assert_allclose(middle["observed_frequency"], middle["forecast_probability"], atol=0.03)
    slope = (out["observed_frequency"] - 0.5) / (out["forecast_probability"] - 0.5)
    assert np.all((slope.isel(probability=[0, 4]) > 0.7) & (slope.isel(probability=[0, 4]) < 1))


def test_one_member_says_yes_or_no():
    east = np.where(np.arange(8) < 4, 0.0, 2.0) * np.ones(GRID.shape)
    out = reliability(forecast(280 + east), truth_of(281.0), "t2m", 281.0).squeeze("threshold")
    assert out.sizes["probability"] == 2
    np.testing.assert_allclose(out["observed_frequency"], 1)
    np.testing.assert_allclose(out["count"], 4 * 24)
    np.testing.assert_allclose(out["forecast_probability"], [[0, 1]] * 2)


def test_cases_count_with_their_area():
    north = np.where(np.arange(6)[:, None] == 0, 281.0, 279.0) * np.ones(GRID.shape)
    out = reliability(forecast(north), truth_of(280.0), "t2m", 280.0)
    np.testing.assert_allclose(out["count"].isel(probability=1), 4 * 48 * SHARES[0].sum(), rtol=1e-6)
    np.testing.assert_allclose(out["count"].sum("probability"), 4 * 48)


def test_the_table_holds_the_brier_score(ensemble, truth):
    table = reliability(ensemble, truth, "t2m", [279.5, 280.0, 281.0])
    p, o = table["forecast_probability"].fillna(0), table["observed_frequency"].fillna(0)
    mean = ((p**2 - 2 * p * o + o) * table["count"]).sum("probability") / table["count"].sum("probability")
    np.testing.assert_allclose(mean, brier(ensemble, truth, "t2m", [279.5, 280.0, 281.0]), rtol=1e-5)


def test_a_probability_on_an_edge_is_in_the_upper_bin():
    members = np.where(np.arange(10) < 3, 281.0, 279.0)[:, None, None] * np.ones(GRID.shape)
    out = reliability(forecast(members[None, None]), truth_of(280.0), "t2m", 280.0, bins=10)
    assert out["count"].isel(lead_time=0, threshold=0).values.nonzero()[0].tolist() == [3]
    np.testing.assert_allclose(out["probability"], np.arange(10) / 10 + 0.05)


def test_gaps_are_no_cases(ensemble, truth):
    truth["t2m"][:, 0, 0] = np.nan
    ensemble["t2m"][:, :, 2, 0, 1] = np.nan
    count = reliability(ensemble, truth, "t2m", 280.0)["count"].sum("probability")
    np.testing.assert_allclose(count, 4 * 48 * (1 - SHARES[0, :2].sum()), rtol=1e-6)


@pytest.mark.parametrize("bins", [0, 1])
def test_bins_are_needed(bins, ensemble, truth):
    with pytest.raises(InputError, match=f"bins={bins}; needed 2 or more"):
        reliability(ensemble, truth, "t2m", 280.0, bins=bins)


# thresholds that tell nothing


@pytest.mark.parametrize("diagnostic", [brier, reliability, lambda *args: fss(*args, 3)])
def test_events_that_never_or_always_happen_are_told(diagnostic, ensemble, truth):
    report = diagnostic(ensemble, truth, "t2m", 25.0).attrs["report"]
    assert "t2m: at or above 25 always happens: forecast and truth lie between 27" in report
    assert "Thresholds are in these units" in report and " K." in report
    assert "at or above 400 never happens" in diagnostic(ensemble, truth, "t2m", 400.0).attrs["report"]
    assert "happens" not in diagnostic(ensemble, truth, "t2m", 280.0).attrs["report"]


def test_the_axis_of_thresholds_has_units(ensemble, truth):
    for out in (brier(ensemble, truth, "t2m", 280), reliability(ensemble, truth, "t2m", 280)):
        assert out["threshold"].attrs["units"] == "K"


# fractions skill score


def test_fractions_skill_score_is_that_of_scores(ensemble, truth):
    out = fss(ensemble, truth, "t2m", 280.3, [1, 2, 5])
    field = ensemble["t2m"]
    target = xr.zeros_like(field) + truth["t2m"].values.reshape(4, 2, 1, *GRID.shape)
    keywords = {"event_threshold": 280.3, "spatial_dims": ("latitude", "longitude"), "preserve_dims": ["lead_time"]}
    for size in (1, 2, 5):
        theirs = scores.spatial.fss_2d(field, target, window_size=(size, size), threshold_operator=np.greater_equal, **keywords)
        np.testing.assert_allclose(out.sel(window=size), theirs, rtol=1e-9)


def test_no_event_has_no_fractions_skill_score(ensemble, truth):
    assert np.isnan(fss(ensemble, truth, "t2m", 400.0, [1, 3])).all()


def test_fractions_need_all_values_and_windows_that_fit(ensemble, truth):
    with pytest.raises(InputError, match=r"windows=\[9\]; needed 1 to 6 cells"):
        fss(ensemble, truth, "t2m", 280.0, 9)
    truth["t2m"][0, 0, 0] = np.nan
    with pytest.raises(SchemaError, match="1 values of t2m are missing; crop with region="):
        fss(ensemble, truth, "t2m", 280.0, 3)


def test_fractions_need_a_grid(monkeypatch, ensemble, truth):
    one, report = align_pair(ensemble, truth, ["t2m"], None, "coarser")
    flat = lambda xarray: xarray.stack(station=("latitude", "longitude"), create_index=False)
    at_stations = replace(one, forecast=flat(one.forecast), analysis=flat(one.analysis), area=flat(one.area))
    monkeypatch.setattr("xscalemixer.verification.events.align_pair", lambda *_: (at_stations, report))
    with pytest.raises(GridError, match="found places along station; needed a grid as truth"):
        fss(ensemble, truth, "t2m", 280.0, 3)
    out = reliability(ensemble, truth, "t2m", 280.0)
    assert out.attrs["sample"] == "4 starts, 48 stations" and float(out["count"].sum()) == pytest.approx(4 * 2 * 48)


# regions of curvilinear grids, stations, and no values at all


def bent(ds):
    """The same values on a grid whose rows are not parallel to the equator."""
    columns, rows = np.meshgrid(np.arange(8.0), np.arange(6.0))
    ds = ds.rename(latitude="y", longitude="x").drop_vars(["y", "x"])
    return ds.assign_coords(latitude=(("y", "x"), 60 - rows + columns / 2), longitude=(("y", "x"), 10 + columns))


REGION = (61.6, 0, 57, 40)
OUTSIDE = np.add.outer(-np.arange(6.0), np.arange(8) / 2)
OUTSIDE = (60 + OUTSIDE > 61.6) | (60 + OUTSIDE < 57)


@pytest.mark.parametrize(
    "diagnostic",
    [lambda *args: fss(*args, "t2m", 280, [1, 2], region=REGION), lambda *args: quantiles(*args, [0.3, 0.7], region=REGION),
     lambda *args: reliability(*args, "t2m", 280, region=REGION), lambda *args: brier(*args, "t2m", 280, region=REGION)],
)  # fmt: skip
@pytest.mark.parametrize("value", [np.nan, 500.0])
def test_nothing_outside_the_region_counts(diagnostic, value, ensemble, truth):
    expected = diagnostic(bent(ensemble), bent(truth))
    truth["t2m"].values[:, OUTSIDE] = value
    ensemble["t2m"].values[..., OUTSIDE] = value
    changed = diagnostic(bent(ensemble), bent(truth))
    xr.testing.assert_identical(changed, expected)
    assert changed.attrs["sample"] == f"4 starts, {48 - OUTSIDE.sum()} cells"


def test_windows_lie_wholly_inside_the_region(ensemble, truth):
    one, _ = align_pair(bent(ensemble), bent(truth), ["t2m"], REGION, "coarser")
    inside, events = one.area.values > 0, [(one.forecast["t2m"] >= 280).values, (one.truth["t2m"] >= 280).values[:, :, None]]
    windows = [(i, j) for i in range(5) for j in range(7) if inside[i : i + 2, j : j + 2].all()]
    ours, theirs = (np.stack([e[..., i : i + 2, j : j + 2].sum(axis=(-2, -1)) for i, j in windows], axis=-1) for e in events)
    ours, theirs = np.broadcast_arrays(ours, theirs)
    expected = 1 - ((ours - theirs) ** 2).sum(axis=(0, 2, 3)) / (ours**2 + theirs**2).sum(axis=(0, 2, 3))
    np.testing.assert_allclose(fss(bent(ensemble), bent(truth), "t2m", 280, 2, region=REGION).squeeze("window"), expected)
    with pytest.raises(InputError, match=r"windows=\[5\]; needed 1 to 4 cells, the widest that fits into the area"):
        fss(bent(ensemble), bent(truth), "t2m", 280, 5, region=REGION)


def test_brier_score_counts_reports_at_stations():
    places = {name: ("station", values) for name, values in
              {"latitude": [50.0, 55.0], "longitude": [12.0, 20.0], "altitude": [0.0, 0.0]}.items()}  # fmt: skip
    coords = {"reference_time": STARTS[:2], "lead_time": ("lead_time", [6], {"units": "hours"}), "station": ["a", "b"], **places}
    fc = xr.Dataset({"t2m": (("reference_time", "lead_time", "station"), [[[281.0, 281]], [[279.0, 281]]], K)}, coords)
    times = STARTS[:2] + np.timedelta64(6, "h")
    reports = xr.Dataset(
        {"t2m": (("time", "station"), [[279.0, np.nan], [279, 281]], K)}, {**places, "station": ["a", "b"], "time": times}
    )
    assert brier(fc, reports, "t2m", 280.0).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("diagnostic", "what"),
    [(lambda *args: brier(*args, "t2m", 280.0), "the Brier score"), (lambda *args: quantiles(*args, [0.5]), "quantiles"),
     (lambda *args: reliability(*args, "t2m", 280.0), "reliability"), (rank_histogram, "the rank histogram")],
)  # fmt: skip
def test_no_values_in_common_are_an_error(diagnostic, what, ensemble, truth):
    with pytest.raises(SchemaError, match=rf"{what} cannot be computed(?s:.)*t2m: no place where forecast and truth both have"):
        diagnostic(ensemble, truth.where(False).assign(t2m=lambda ds: ds["t2m"].assign_attrs(K)))


# quantiles


def test_quantiles_of_even_values():
    fields = 280 + np.linspace(0, 1, 4 * 48).reshape(4, 1, *GRID.shape)
    flat = Grid.regular("0.5", 10, "0.2", (6, 8))  # at the equator all cells have the same area
    out = quantiles(forecast(fields, flat), truth_of(280 + 2 * (fields - 280), flat), [0.1, 0.5, 0.9])["t2m"]
    assert out.dims == ("source", "quantile", "lead_time") and out.attrs["units"] == "K"
    np.testing.assert_allclose(out.sel(source="forecast").T - 280, [[0.1, 0.5, 0.9]] * 2, atol=0.01)
    np.testing.assert_allclose(out.sel(source="truth").T - 280, [[0.2, 1.0, 1.8]] * 2, atol=0.02)


def test_quantiles_count_area(truth):
    north = np.where(np.arange(6)[:, None] == 0, 290.0, 280.0) * np.ones(GRID.shape)
    edge = 1 - SHARES[0].sum()
    out = quantiles(forecast(north), truth_of(285.0), [edge - 0.01, edge + 0.01])["t2m"]
    np.testing.assert_allclose(out.sel(source="forecast").T, [[280, 290]] * 2, atol=0.01)


def test_members_are_pooled_and_gaps_left_out(ensemble, truth):
    ensemble["t2m"][:, :, :, 3, 3] = 400.0
    truth["t2m"][:, 3, 3] = np.nan
    out = quantiles(ensemble, truth, [0.25, 0.9])["t2m"]
    values = ensemble["t2m"].isel(lead_time=0).values
    known = np.ones(GRID.shape, bool)
    known[3, 3] = False
    values, weights = values[..., known].ravel(), np.broadcast_to(SHARES[known], (4, 5, 47)).ravel()
    order = np.argsort(values)
    expected = np.interp([0.25, 0.9], weights[order].cumsum() / weights.sum(), values[order])
    np.testing.assert_allclose(out.sel(source="forecast").isel(lead_time=0), expected, atol=0.02)


def test_quantiles_of_one_value_and_of_none():
    np.testing.assert_allclose(quantiles(forecast(280.0), truth_of(280.0), [0.5])["t2m"], 280)
    holes = truth_of(280.0)
    holes["t2m"][::2] = np.nan  # every first lead time
    out = quantiles(forecast(281.0), holes, [0.5])["t2m"].squeeze("quantile")
    assert np.isnan(out.isel(lead_time=0)).all() and np.isfinite(out.isel(lead_time=1)).all()


def test_tails_need_a_sample(ensemble, truth):
    assert "fewer than 10 of the 192 values" in quantiles(ensemble, truth, [0.5, 0.999]).attrs["report"]
    assert "fewer than" not in quantiles(ensemble, truth, [0.1, 0.9]).attrs["report"]
    with pytest.raises(InputError, match=r"probabilities=\[0.5, 99.0\]; needed numbers inside 0..1"):
        quantiles(ensemble, truth, [0.5, 99])


# lazy data


DIAGNOSTICS = {
    "brier": lambda fc, truth: brier(fc, truth, "t2m", 280.0),
    "reliability": lambda fc, truth: reliability(fc, truth, "t2m", [280.0, 281.0]),
    "fss": lambda fc, truth: fss(fc, truth, "t2m", 280.0, [1, 3]),
    "quantiles": lambda fc, truth: quantiles(fc, truth, [0.1, 0.9]),
}


@pytest.mark.parametrize("diagnostic", DIAGNOSTICS.values(), ids=DIAGNOSTICS)
def test_lazy_data_give_the_same(diagnostic, ensemble, truth):
    lazy = diagnostic(ensemble.chunk(reference_time=1, member=2, latitude=3), truth.chunk(time=2, longitude=5))
    xr.testing.assert_allclose(lazy, diagnostic(ensemble, truth))


@pytest.mark.parametrize("name", ["reliability", "fss", "quantiles"])
def test_memory_is_bounded_by_chunks(name):
    grid, starts = Grid.regular(40, 10, "0.1", (240, 320)), STARTS[0] + np.arange(24) * np.timedelta64(1, "D")
    draw = lambda *shape: dask.array.random.random((*shape, *grid.shape), chunks=(1, *shape[1:], -1, -1)).astype("f4") + 280
    fc, truth = forecast(280.0, grid, starts), truth_of(280.0, grid, starts)
    fc, truth = fc.assign(t2m=(fc["t2m"].dims, draw(24, 2), K)), truth.assign(t2m=(truth["t2m"].dims, draw(48), K))
    with dask.config.set(scheduler="synchronous"):
        tracemalloc.start()
        DIAGNOSTICS[name](fc, truth)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < (fc["t2m"].nbytes + truth["t2m"].nbytes) / 2


# what is missing


@pytest.mark.parametrize(
    ("diagnostic", "what"), [(DIAGNOSTICS["brier"], "the Brier score"), (rank_histogram, "the rank histogram")]
)
def test_without_scores_the_error_says_what_to_type(monkeypatch, diagnostic, what, ensemble, truth):
    monkeypatch.setitem(sys.modules, "scores", None)
    with pytest.raises(ImportError, match=rf"{what} needs the package 'scores'. Type: pip install 'xscalemixer\[metrics\]'"):
        diagnostic(ensemble, truth)


@pytest.mark.parametrize("name", ["reliability", "fss", "quantiles"])
def test_these_need_no_scores(monkeypatch, name, ensemble, truth):
    monkeypatch.setitem(sys.modules, "scores", None)
    assert "this verification" in DIAGNOSTICS[name](ensemble, truth).attrs["report"]


# spectra and files


def test_rings_are_complete_up_to_the_shortest_wave_of_both_axes():
    out = power_spectrum(truth_of(noise(4, 2, *GRID.shape)))
    row = 2.5 * 111.195
    assert 0 < out["complete"].sum() < out.sizes["wavenumber"]
    assert out["wavelength"][out["complete"]].min() >= 2 * row
    assert out["wavelength"][~out["complete"]].max() < 2 * row * 1.3


def test_results_can_be_written(ensemble, truth, tmp_path):
    for number, diagnostic in enumerate((DIAGNOSTICS["reliability"], DIAGNOSTICS["quantiles"], rank_histogram)):
        out = diagnostic(ensemble, truth)
        out.to_netcdf(tmp_path / f"{number}.nc")
        with xr.open_dataset(tmp_path / f"{number}.nc", decode_timedelta=False) as back:
            xr.testing.assert_equal(back.load(), out)
            assert back.attrs["title"] in ("reliability", "quantiles", "rank histogram")


def test_reliability_of_ten_members_of_era5(shared_data):
    pytest.importorskip("cfgrib")
    file = shared_data / "real" / "era5_10members_3deg_20170101.grib"
    with xr.open_dataset(file, engine="cfgrib", indexpath="", decode_timedelta=True) as ds:
        ds = ds.load()
    table = reliability(ds.isel(number=slice(1, None)), ds.isel(number=0, drop=True), "t", 273.15).sel(level=850)
    assert table.sizes["probability"] == 10 and float(table["count"].sum()) == pytest.approx(4 * 61 * 120)
    observed = table["observed_frequency"].squeeze().values
    assert observed[0] < 0.01 and observed[-1] > 0.99 and np.all(np.diff(observed) > 0)
