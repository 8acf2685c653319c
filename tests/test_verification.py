import numpy as np
import pytest
import scores.continuous
import scores.probability
import xarray as xr

import xscalemixer as xsm
from xscalemixer.errors import GridError, InputError, SchemaError, TimeError
from xscalemixer.grids import Grid
from xscalemixer.variables import CATALOG
from xscalemixer.verification import brier, fss, power_spectrum, rank_histogram
from xscalemixer.verification.bootstrap import block_length, resampled_counts
from xscalemixer.verification.metrics import field_means

GRID = Grid.regular(60, 10, "2.5", (6, 8))
STARTS = np.arange("2001-08-10T00", "2001-08-11T00", 6, dtype="M8[h]").astype("M8[ns]")
LEADS = np.array([6, 12])
VALID = STARTS[:, None] + LEADS.astype("m8[h]")
K = {"units": "K", "standard_name": "air_temperature"}


def random(*shape, seed=0):
    return 280 + np.random.default_rng(seed).normal(size=shape).astype("f4")


def forecast(values, grid=GRID, starts=STARTS, leads=LEADS):
    """Values of shape (starts, leads, [members], H, W), or anything that broadcasts to it."""
    members = ("member",) if np.ndim(values) == 5 else ()
    shape = (len(starts), len(leads), *np.shape(values)[2:-2], *grid.shape)
    coords = {"reference_time": starts, "lead_time": ("lead_time", leads, {"units": "hours"})}
    coords |= {"latitude": list(grid.latitude), "longitude": list(grid.longitude)}
    dims = ("reference_time", "lead_time", *members, "latitude", "longitude")
    coords |= {"member": np.arange(shape[2])} if members else {}
    return xr.Dataset({"t2m": (dims, np.broadcast_to(values, shape).astype("f4"), K)}, coords)


def analysis(values, grid=GRID, times=None):
    """Values of shape (times, H, W), or anything that broadcasts to it."""
    times = np.unique(VALID) if times is None else times
    coords = {"time": times, "latitude": list(grid.latitude), "longitude": list(grid.longitude)}
    dims = ("time", "latitude", "longitude")
    return xr.Dataset({"t2m": (dims, np.broadcast_to(values, (len(times), *grid.shape)).astype("f4"), K)}, coords)


@pytest.fixture
def truth():
    return analysis(random(5, *GRID.shape))


def raised(ds, by):
    return ds.assign(t2m=(ds["t2m"] + by).assign_attrs(ds["t2m"].attrs))


def beside(truth):
    """Truth in the axes of the forecast, as an array."""
    return truth["t2m"].sel(time=xr.DataArray(VALID, dims=("reference_time", "lead_time"))).values


@pytest.fixture
def fc(truth):
    return forecast(beside(truth) + random(4, 2, *GRID.shape, seed=1) - 280)


def value(sc, metric):
    return sc["t2m"].sel(metric=metric).values


# closed forms


def test_a_constant_error(truth):
    sc = xsm.score(forecast(beside(truth) - 2), truth)
    assert sc["t2m"].dims == ("metric", "lead_time") and sc["t2m"].attrs["units"] == "K"
    np.testing.assert_allclose(value(sc, "bias"), -2, atol=1e-4)
    np.testing.assert_allclose([value(sc, name) for name in ("mae", "rmse")], 2, atol=1e-4)
    np.testing.assert_allclose(value(sc, "correlation"), 1, atol=1e-6)
    np.testing.assert_array_equal(value(sc, "count"), 4)
    assert sc["dimensionless"].values.tolist() == [False, False, False, True, True]


def test_cells_count_with_their_area():
    wrong = np.zeros(GRID.shape)
    wrong[0] = 1
    sc = xsm.score(forecast(280 + wrong), analysis(280.0))
    north, south = np.sin(np.deg2rad([61.25, 46.25]))
    share = (north - np.sin(np.deg2rad(58.75))) / (north - south)
    np.testing.assert_allclose(value(sc, "mae"), share, rtol=1e-6)


def test_the_order_of_root_and_average():
    errors = np.array([1.0, 3.0, 1.0, 3.0])[:, None, None, None]
    fc, truth = forecast(280 + errors), analysis(280.0)
    np.testing.assert_allclose(value(xsm.score(fc, truth), "rmse"), np.sqrt(5), rtol=1e-6)
    np.testing.assert_allclose(value(xsm.score(fc, truth, root="before"), "rmse"), 2, rtol=1e-6)


def test_scores_of_each_start():
    errors = np.array([1.0, 3.0, 1.0, 3.0])[:, None, None, None]
    sc = xsm.score(forecast(280 + errors), analysis(280.0), by=["variable", "lead_time", "reference_time"], metrics=["rmse"])
    assert sc["t2m"].dims == ("metric", "lead_time", "reference_time")
    np.testing.assert_allclose(value(sc, "rmse"), [[1, 3, 1, 3]] * 2, rtol=1e-6)
    pooled = xsm.score(forecast(280 + errors), analysis(280.0), by="variable", metrics="mae")
    assert pooled["t2m"].dims == ("metric",) and float(value(pooled, "mae")) == pytest.approx(2) and value(pooled, "count") == 8


@pytest.fixture
def normal():
    """A climatology of 280 K everywhere."""
    hours, days = [0, 6, 12, 18], np.arange(220, 226)
    shape = (len(hours), len(days), *GRID.shape)
    coords = {"hour": hours, "dayofyear": days, "latitude": list(GRID.latitude), "longitude": list(GRID.longitude)}
    return xr.Dataset({"t2m": (("hour", "dayofyear", "latitude", "longitude"), np.full(shape, 280, "f4"), K)}, coords)


@pytest.mark.parametrize(("factor", "acc"), [(1, 1), (2, 1), (-1, -1)])
def test_anomaly_correlation_and_activity(truth, normal, factor, acc):
    sc = xsm.score(forecast(280 + factor * (beside(truth) - 280)), truth, climatology=normal)
    np.testing.assert_allclose(value(sc, "acc"), acc, atol=1e-5)
    np.testing.assert_allclose(value(sc, "activity"), abs(factor) * value(sc, "truth_activity"), rtol=1e-4)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape", [(17, 13), (20, 24), (58, 89)])
def test_constant_fields_have_no_correlation(shape, dtype):
    draw, area = np.random.default_rng(0), xr.DataArray(Grid.regular(60, 10, "0.5", shape).area, dims=("y", "x"))
    correlation = lambda *pair: field_means(("correlation",), *(xr.DataArray(np.broadcast_to(values, (3, *shape)).astype(dtype),
                                            dims=("t", "y", "x")) for values in pair), area).sel(mean="correlation")  # fmt: skip
    cloud = draw.random((3, *shape))
    for value in (1.0, 0.3, 101325.7):
        assert np.isnan(correlation(value, value)).all() and np.isnan(correlation(value, cloud)).all()
        assert np.isnan(correlation(cloud, value)).all()
    np.testing.assert_allclose(correlation(cloud, 1e4 + cloud), 1, atol=1e-5)
    assert np.isnan(correlation(np.full((3, 1, 1), [[[0.1]], [[0.2]], [[0.7]]]), 0.0)).all()


def test_a_forecast_of_the_climatology_has_no_acc(truth, normal):
    pattern = np.random.default_rng(3).normal(280, 5, GRID.shape)  # the climatology in float64, the forecast in float32
    sc = xsm.score(forecast(pattern), truth, climatology=(normal * 0 + pattern).assign(t2m=lambda ds: ds["t2m"].assign_attrs(K)))
    assert np.isnan(value(sc, "acc")).all() and np.isfinite(value(sc, "rmse")).all()


def test_anomaly_correlation_is_not_centered(normal):
    east = np.where(np.arange(8) < 4, 1.0, 3.0)
    west = east[::-1]
    sc = xsm.score(forecast(np.broadcast_to(280 + east, GRID.shape)), analysis(280 + west), climatology=normal)
    np.testing.assert_allclose(value(sc, "acc"), 6 / 10, rtol=1e-5)
    np.testing.assert_allclose(value(sc, "correlation"), -1, rtol=1e-5)


def test_two_members_either_side_of_the_truth():
    pair = np.array([-1.0, 1.0])[:, None, None] * np.ones(GRID.shape)
    sc = xsm.score(forecast(280 + pair[None, None]), analysis(280.0))
    closed = {"rmse": 0, "crps": 0.5, "crps_fair": 0, "spread": np.sqrt(2)}
    for metric, expected in closed.items():
        np.testing.assert_allclose(value(sc, metric), expected, atol=1e-6)


def test_one_member_scores_its_absolute_error(fc, truth):
    sc = xsm.score(fc.expand_dims(member=[0], axis=2), truth, metrics=["crps", "mae"])
    np.testing.assert_array_equal(value(sc, "crps"), value(sc, "mae"))
    assert "one member in forecast: equals the mean absolute error" in sc.attrs["report"]


def test_an_ensemble_beside_a_single_forecast(fc, truth):
    members = forecast(beside(truth)[:, :, None] + random(4, 2, 5, *GRID.shape, seed=3) - 280)
    sc = xsm.score({"many": members, "one": fc}, truth)
    one = sc["t2m"].sel(model="one")
    np.testing.assert_array_equal(one.sel(metric="crps"), one.sel(metric="mae"))
    assert np.isnan(one.sel(metric=["crps_fair", "spread", "spread_skill"])).all()
    xr.testing.assert_allclose(sc["t2m"].sel(model="many", drop=True), xsm.score(members, truth)["t2m"])
    assert "one member in one" in sc.attrs["report"]


def test_a_reliable_ensemble():
    grid = Grid.regular(30, 10, "0.5", (60, 60))
    center = random(4, 2, 1, *grid.shape, seed=5)
    draws = np.random.default_rng(6).normal(size=(4, 2, 6, *grid.shape))
    members, drawn = center + draws[:, :, :5], (center + draws[:, :, 5:])[:, :, 0]
    valid = np.array([0, 1, 2, 3]) * 24 * np.timedelta64(1, "h") + STARTS[0]
    fc = forecast(members, grid, valid)
    times = (valid[:, None] + LEADS.astype("m8[h]")).ravel()
    truth = analysis(drawn.reshape(-1, *grid.shape), grid, times)
    np.testing.assert_allclose(value(xsm.score(fc, truth), "spread_skill"), 1, atol=0.02)
    np.testing.assert_allclose(rank_histogram(fc, truth)["t2m"], 1 / 6, atol=0.012)


def test_truth_above_all_members_has_the_last_rank():
    members = 280 + np.arange(3.0)[:, None, None] * np.ones(GRID.shape)
    out = rank_histogram(forecast(members[None, None]), analysis(290.0))
    assert out["t2m"].sizes["rank"] == 4
    np.testing.assert_array_equal(out["t2m"].sel(rank=4), 1)


def test_brier_score_of_half_the_members():
    members = np.array([279.0, 281.0])[:, None, None] * np.ones(GRID.shape)
    out = brier(forecast(members[None, None]), analysis(281.0), "t2m", [280.0, 285.0])
    assert out.dims == ("threshold", "lead_time")
    np.testing.assert_allclose(out.sel(threshold=280.0), 0.25)
    np.testing.assert_allclose(out.sel(threshold=285.0), 0.0)
    np.testing.assert_allclose(brier(forecast(members[None, None]), analysis(281.0), "t2m", 280.0, fair=True), 0.0, atol=1e-12)


def test_fractions_skill_score_forgives_a_shift_in_a_wide_window():
    spot, moved = np.zeros(GRID.shape), np.zeros(GRID.shape)
    spot[3, 3], moved[3, 4] = 1, 1
    fc, truth = forecast(280 + spot), analysis(280 + moved)
    out = fss(fc, truth, "t2m", 280.5, [1, 3, 5])
    assert float(out.isel(window=0).max()) == 0 and np.all(np.diff(out.isel(lead_time=0)) > 0)
    np.testing.assert_allclose(out.sel(window=3), 6 / 9)
    np.testing.assert_allclose(fss(forecast(280 + moved), truth, "t2m", 280.5, 1), 1)


def test_a_wave_is_in_one_ring_and_all_rings_are_the_variance():
    grid = Grid.regular(5, 10, "0.5", (20, 24))
    wave = np.cos(np.pi * 6 * (np.arange(24) + 0.5) / 24) * np.ones(grid.shape)
    out = power_spectrum(analysis(280 + wave, grid, VALID[0]))["t2m"]
    assert out.dims == ("time", "wavenumber") and out.attrs["units"] == "(K)2"
    strongest = out.isel(time=0, wavenumber=int(np.argmax(out.values[0])))
    np.testing.assert_allclose(strongest, 0.5, rtol=1e-4)
    length = 2 * 24 * 0.5 / 6 * 111.195 * np.cos(np.deg2rad(np.mean(grid.latitude)))
    np.testing.assert_allclose(strongest["wavelength"], length, rtol=0.1)
    noise = random(2, *grid.shape)
    total = power_spectrum(analysis(noise, grid, VALID[0]))["t2m"].sum("wavenumber")
    np.testing.assert_allclose(total, noise.var(axis=(1, 2)), rtol=1e-3)


# other libraries


def test_surface_pressure_keeps_its_digits():
    rng = np.random.default_rng(0)
    pressure = (1e5 + rng.normal(size=(4, 2, 3, *GRID.shape))).astype("f4")
    attrs = {"units": "Pa", "standard_name": "surface_air_pressure"}
    fc = forecast(pressure).rename(t2m="sp").assign_coords()
    fc["sp"].attrs = attrs
    truth = analysis(1e5).rename(t2m="sp")
    truth["sp"].attrs = attrs
    expected = scores.probability.crps_for_ensemble(fc["sp"].astype("f8") - 1e5, xr.zeros_like(fc["sp"].isel(member=0)), "member",
                                                    preserve_dims=["lead_time"], weights=xr.DataArray(GRID.area, dims=("latitude", "longitude")))  # fmt: skip # noqa: E501
    np.testing.assert_allclose(xsm.score(fc, truth)["sp"].sel(metric="crps"), expected, rtol=1e-6)


# any layout, unit, order


def celsius(ds):
    return ds.assign(t2m=(ds["t2m"].astype("f8") - 273.15).assign_attrs(units="degC"))


CHANGES = {
    "units": celsius,
    "name": lambda ds: ds.rename(t2m="2m_temperature"),
    "south first": lambda ds: ds.isel(latitude=slice(None, None, -1)),
    "west as negative": lambda ds: ds.assign_coords(longitude=ds["longitude"] - 360),
    "dims": lambda ds: ds.transpose("longitude", ...),
    "lazy": lambda ds: ds.chunk(latitude=2),
    "more": lambda ds: ds.assign(lsm=ds["t2m"].isel({ds["t2m"].dims[0]: 0}) * 0, other=ds["t2m"].assign_attrs(standard_name="x")),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_form_does_not_matter(fc, truth, change):
    plain = xsm.score(fc, truth)["t2m"].values
    np.testing.assert_allclose(xsm.score(change(fc), truth)["t2m"], plain, atol=2e-5)
    np.testing.assert_allclose(xsm.score(fc, change(truth))["t2m"], plain, atol=2e-5)


@pytest.mark.parametrize("export", [xsm.to_weatherbench2, xsm.to_cfgrib])
def test_layouts_of_others_and_the_accessor(fc, truth, export):
    xr.testing.assert_equal(export(fc).scalemixer.score(truth), xsm.score(fc, truth))


def test_symmetry(fc, truth):
    first = fc.isel(lead_time=[0])
    ours, back = xsm.score(first, truth), xsm.score(forecast(beside(truth)[:, :1], leads=LEADS[:1]), first)
    for metric in ("mae", "rmse", "correlation"):
        np.testing.assert_allclose(value(back, metric), value(ours, metric), rtol=1e-6)
    np.testing.assert_allclose(value(back, "bias"), -value(ours, "bias"), atol=1e-6)


def test_members_in_chunks(truth):
    fc = forecast(beside(truth)[:, :, None] + random(4, 2, 5, *GRID.shape, seed=3) - 280)
    lazy = fc.chunk(member=2, reference_time=1)
    xr.testing.assert_allclose(xsm.score(lazy, truth), xsm.score(fc, truth))
    xr.testing.assert_allclose(rank_histogram(lazy, truth), rank_histogram(fc, truth))
    xr.testing.assert_allclose(brier(lazy, truth, "t2m", 280.0), brier(fc, truth, "t2m", 280.0))


def test_lazy_data_are_scored_alike(fc, truth, normal):
    plain = xsm.score(fc, truth, climatology=normal)
    lazy = xsm.score(fc.chunk(lead_time=1, longitude=3), truth.chunk(time=2), climatology=normal.chunk(hour=1))
    xr.testing.assert_allclose(lazy, plain)


# grids and regions


def test_the_finer_grid_is_averaged_onto_the_coarser(truth):
    coarse = Grid.regular("58.75", "11.25", "5", (3, 4))
    averaged = xsm.regrid(truth, coarse, method="conservative")
    fc = forecast(averaged["t2m"].sel(time=xr.DataArray(VALID, dims=("a", "b"))).values, coarse)
    sc = xsm.score(fc, truth)
    np.testing.assert_allclose(value(sc, "rmse"), 0, atol=1e-4)
    assert "truth: grid: conservative from 6 x 8" in sc.attrs["report"]
    onto = xsm.score(fc, truth, grid="truth")
    assert "forecast: grid: bilinear from 3 x 4" in onto.attrs["report"] and np.all(value(onto, "rmse") > 0.1)


def test_cells_partly_outside_the_finer_data_are_left_out():
    fine, coarse = Grid.regular("59.5", "12.5", "1", (9, 9)), Grid.regular("58.75", "11.25", "2.5", (4, 5))
    north = np.array(fine.latitude)[:, None] * np.ones(fine.shape)  # what half a cell holds is not the mean of the cell
    sc = xsm.score(forecast(north, fine), xsm.regrid(analysis(north, fine), coarse, method="conservative").fillna(0), by="place")
    assert sc["latitude"].values.tolist() == [58.75, 56.25, 53.75] and sc["longitude"].values.tolist() == [13.75, 16.25, 18.75]
    np.testing.assert_allclose(value(sc, "rmse"), 0, atol=1e-4)
    assert "11 cells at the edge, partly outside it, left out" in sc.attrs["report"]


def test_the_regional_twin_is_the_truth_of_the_global_one(shared_data):
    regional, coarse = (
        xr.open_dataset(shared_data / "nature" / f"{name}_2001-08-10.nc")[["t2m"]] for name in ("regional", "global")
    )
    fc = regional.rename(time="lead_time").assign_coords(lead_time=("lead_time", np.arange(1, 121), {"units": "hours"}))
    sc = xsm.score(fc.expand_dims(reference_time=regional["time"].values[:1] - np.timedelta64(1, "h")), coarse)
    assert np.all(value(sc, "rmse") < 0.05) and "41 cells at the edge" in sc.attrs["report"]


def test_a_part_of_a_larger_grid_is_picked(fc, truth):
    part = {"latitude": slice(1, 5), "longitude": slice(2, 7)}
    sc = xsm.score(fc.isel(part), truth)
    assert "grid:" not in sc.attrs["report"]
    error = (fc["t2m"] - beside(truth)).isel(part).astype("f8")
    weights = xr.DataArray(GRID.area, dims=("latitude", "longitude")).isel(part)
    np.testing.assert_allclose(
        value(sc, "bias"), error.weighted(weights).mean(["latitude", "longitude", "reference_time"]), rtol=1e-5
    )


def test_region(fc, truth):
    inside = fc.isel(latitude=slice(1, 4), longitude=slice(0, 3))
    sc = xsm.score(fc, truth, region=(57.5, 10, 52.5, 15))
    np.testing.assert_allclose(sc["t2m"], xsm.score(inside, truth)["t2m"], rtol=1e-6)
    xr.testing.assert_equal(xsm.score(fc, truth, region=(57.5, -350, 52.5, -345))["t2m"], sc["t2m"])
    with pytest.raises(GridError, match=r"holds no cell(?s:.)*\(north, west, south, east\); the common area is 47\.5\.\.60 N"):
        xsm.score(fc, truth, region=(10, 10, 0, 20))
    with pytest.raises(GridError, match="needed \\(north, west, south, east\\)"):
        xsm.score(fc, truth, region=(0, 10, 10, 20))


def test_a_region_without_width(fc, truth):
    with pytest.raises(GridError, match=r"which is 15 E alone; type region=\(60, 15, 50, 375\) for all longitudes"):
        xsm.score(fc, truth, region=(60, 15, 50, 15))
    xr.testing.assert_identical(xsm.score(fc, truth, region=(90, -180, -90, 180))["t2m"], xsm.score(fc, truth)["t2m"])


def test_grids_of_one_size_in_different_places_need_a_choice(fc):
    shifted = Grid.regular("59", "11", "2.5", (6, 8))
    other = analysis(random(5, *GRID.shape), shifted)
    with pytest.raises(GridError, match=r"none is the coarser; needed a choice: grid='truth'"):
        xsm.score(fc, other)
    assert np.isfinite(xsm.score(fc, other, grid="truth")["t2m"]).all()


def test_curvilinear_grids_are_compared_cell_by_cell(truth):
    longitude, latitude = np.meshgrid(10 + np.arange(8.0), 60 - np.arange(6.0))
    bend = lambda ds: ds.rename(latitude="y", longitude="x").drop_vars(["y", "x"]).assign_coords(
        latitude=(("y", "x"), latitude + longitude / 50), longitude=(("y", "x"), longitude)
    )  # fmt: skip
    sc = xsm.score(bend(forecast(beside(truth) - 2)), bend(truth))
    np.testing.assert_allclose(value(sc, "bias"), -2, atol=1e-4)
    with pytest.raises(GridError, match="needed a latitude-longitude grid as the coarsest one"):
        xsm.score(bend(forecast(beside(truth))), analysis(280.0, Grid.regular("59.8", "10.3", "0.5", (6, 8))))


def test_grids_apart(fc):
    with pytest.raises(GridError, match="do not overlap"):
        xsm.score(fc, analysis(280.0, Grid.regular(-10, 10, "2.5", (6, 8))))


# gaps and bad input


def test_gaps_count_nowhere(fc, truth):
    holes = truth.copy(deep=True)
    holes["t2m"][:, 2, 3] = np.nan
    other = fc.copy(deep=True)
    other["t2m"][:, :, 2, 3] = 999 - 700
    xr.testing.assert_equal(xsm.score(other, holes), xsm.score(fc, holes))
    assert "values at part of the places" in xsm.score(fc, holes).attrs["report"]


def test_no_truth_at_some_hours(fc, truth):
    sc = xsm.score(fc, truth.isel(time=[0, 1]))
    np.testing.assert_array_equal(value(sc, "count"), [2, 1])
    assert "3 of 8 fields compared" in sc.attrs["report"]


def test_no_overlap(fc, truth):
    later = truth.assign_coords(time=truth["time"] + np.timedelta64(365, "D"))
    with pytest.raises(TimeError, match="no overlap: forecast is valid from 2001-08-10T06:00 to .*; the truth from 2002"):
        xsm.score(fc, later)


def test_all_missing(fc, truth):
    with pytest.raises(SchemaError, match="t2m of forecast: no place where forecast and truth both have a value"):
        xsm.score(fc, raised(truth, np.nan))


def test_nothing_in_common(fc, truth):
    with pytest.raises(SchemaError, match="nothing in common: forecast has t2m; the truth has nothing known"):
        xsm.score(fc, truth.rename(t2m="x").map(lambda a: a.assign_attrs(standard_name="x"), keep_attrs=True))


def test_all_problems_at_once(fc, truth):
    with pytest.raises(
        InputError, match=r"3 problems(?s:.)*by='step'(?s:.)*'rmes' is unknown(?s:.)*acc: no climatology.*xsm.climatology"
    ):
        xsm.score(fc, truth, by=["step"], metrics=["rmes", "acc"])
    with pytest.raises(InputError, match="skill_against='ifs' is not one of the forecasts: a"):
        xsm.score({"a": fc}, truth, skill_against="ifs")


def test_ensemble_metrics_of_one_member(fc, truth):
    with pytest.raises(SchemaError, match=r"one member; crps_fair, spread cannot be had"):
        xsm.score(fc, truth, metrics=["crps_fair", "spread"])
    with pytest.raises(InputError, match="one member; needed two or more"):
        rank_histogram(fc, truth)


def test_an_analysis_is_not_scored_as_a_forecast(truth):
    with pytest.raises(TimeError, match="not a forecast"):
        xsm.score(truth, truth)


def test_accumulated_radiation_is_left_out_unless_asked_for(fc, truth):
    sums = {"ssrd": fc["t2m"].assign_attrs(units="J m-2", standard_name="surface_downwelling_shortwave_flux_in_air")}
    assert "ssrd: not compared" in xsm.score(fc.assign(sums), truth).attrs["report"]
    with pytest.raises(SchemaError, match="nothing says over which time"):
        xsm.score(fc.assign(sums), truth, variables=["ssrd"])


# climatology


def test_climatology_of_a_daily_cycle():
    times = np.arange("2001-06-01", "2001-07-01", 6, dtype="M8[h]").astype("M8[ns]")
    hours = (times - times.astype("M8[D]")) / np.timedelta64(1, "h")
    out = xsm.climatology(analysis(280 + hours[:, None, None], times=times), window=0)
    assert out["t2m"].dims == ("hour", "dayofyear", "latitude", "longitude") and out["t2m"].attrs["units"] == "K"
    assert out["dayofyear"].values.tolist() == list(range(152, 182))
    np.testing.assert_allclose(out["t2m"], (280 + out["hour"]).broadcast_like(out["t2m"]))


def test_climatology_window_turns_with_the_year():
    times = np.array(["2000-12-31T00", "2002-01-01T00", "2003-06-01T00"], "M8[ns]")
    out = xsm.climatology(analysis(np.array([280.0, 290.0, np.nan])[:, None, None], times=times), window=1)
    picked = out["t2m"].isel(hour=0, latitude=0, longitude=0)
    np.testing.assert_allclose(picked.sel(dayofyear=[1, 366, 2, 365]), [285, 285, 290, 280])
    assert out["samples"].sel(hour=0, dayofyear=1) == 2 and np.isnan(picked.sel(dayofyear=152))
    assert 100 not in out["dayofyear"]


def test_lazy_climatology(truth):
    lazy = xsm.climatology(truth.chunk(time=1))
    assert lazy["t2m"].chunks is not None
    xr.testing.assert_allclose(lazy.compute(), xsm.climatology(truth))


def test_climatology_must_cover_the_valid_times(fc, truth, normal):
    with pytest.raises(TimeError, match="no dayofyear 223; found"):
        xsm.score(fc, truth, climatology=normal.sel(dayofyear=slice(220, 222)))
    with pytest.raises(SchemaError, match=r"needed hour and dayofyear. Make one: xsm.climatology"):
        xsm.score(fc, truth, climatology=truth)
    with pytest.raises(InputError, match="needed whole days"):
        xsm.climatology(truth, window=1.5)


# two models


def test_skill_and_difference(fc, truth):
    worse = forecast(2 * fc["t2m"].values - beside(truth))
    sc = xsm.score({"ours": fc, "ifs": worse}, truth, skill_against="ifs", metrics=["rmse"])
    assert sc["t2m"].dims == ("metric", "lead_time", "model")
    ours = sc["t2m"].sel(model="ours")
    np.testing.assert_allclose(ours.sel(metric="rmse_skill"), 0.5, rtol=1e-4)
    np.testing.assert_allclose(ours.sel(metric="rmse_difference"), -ours.sel(metric="rmse"), rtol=1e-4)
    low, high = ours.sel(metric="rmse_difference_low"), ours.sel(metric="rmse_difference_high")
    assert np.all((low <= ours.sel(metric="rmse_difference")) & (ours.sel(metric="rmse_difference") <= high) & (high < 0))
    np.testing.assert_array_equal(sc["t2m"].sel(model="ifs", metric="rmse_difference_low"), 0)


def test_models_are_compared_on_common_fields(fc, truth):
    gap = fc.isel(reference_time=slice(1, None)).copy(deep=True)
    gap["t2m"][0] = np.nan
    sc = xsm.score({"a": fc, "b": gap}, truth)
    np.testing.assert_array_equal(value(sc, "count"), 2)
    assert np.isfinite(sc["t2m"]).all() and not np.allclose(
        value(sc, "rmse"), value(xsm.score(fc, truth), "rmse")[:, None], rtol=1e-3
    )
    np.testing.assert_allclose(sc["t2m"].sel(model="a"), sc["t2m"].sel(model="b"))


def test_one_start_has_no_interval(fc, truth):
    sc = xsm.score(
        {"a": fc.isel(reference_time=[0]), "b": raised(fc.isel(reference_time=[0]), 1)}, truth, skill_against="b", metrics=["mae"]
    )
    assert np.isnan(value(sc, "mae_difference_low")).all() and "one sample" in sc.attrs["report"]


def test_resamples_are_blocks_that_wrap():
    counts = resampled_counts([10], 4000, 3, seed=1)
    np.testing.assert_array_equal(counts.sum("reference_time"), 10)
    np.testing.assert_allclose(counts.mean("draw"), 1, atol=0.1)
    single = resampled_counts([10], 50, 10, seed=1)
    np.testing.assert_array_equal(single, 1)
    assert [block_length(n) for n in (2, 8, 9, 730)] == [2, 2, 3, 10]


def test_interval_has_the_width_of_the_normal_distribution():
    starts = STARTS[0] + np.arange(400) * np.timedelta64(12, "h")
    errors = np.random.default_rng(2).normal(5, 1, size=400)[:, None, None, None]
    valid = starts + np.timedelta64(6, "h")
    models = {"a": forecast(280 + errors, starts=starts, leads=[6]), "b": forecast(280, starts=starts, leads=[6])}
    sc = xsm.score(models, analysis(280.0, times=valid), skill_against="b", metrics=["mae"], block=1)
    low, high = (float(sc["t2m"].sel(model="a", metric=f"mae_difference_{side}").squeeze()) for side in ("low", "high"))
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_scores_can_be_written(fc, truth, tmp_path):
    sc = xsm.score({"a": fc, "b": raised(fc, 1)}, truth, skill_against="b")
    sc.to_netcdf(tmp_path / "scores.nc")
    with xr.open_dataset(tmp_path / "scores.nc") as back:
        xr.testing.assert_equal(back.load(), sc)


# stations


def reports(values, times=None, latitude=(58.0, 55.0), longitude=(12.0, 17.0), name="t2m", units="K"):
    """Values of shape (times, stations), or anything that broadcasts to it."""
    times = np.unique(VALID) if times is None else times
    places = {"latitude": ("station", list(latitude)), "longitude": ("station", list(longitude))}
    places |= {"altitude": ("station", np.full(len(latitude), np.nan)), "station": [f"s{i}" for i in range(len(latitude))]}
    full = np.broadcast_to(values, (len(times), len(latitude))).astype("f4")
    return xr.Dataset({name: (("time", "station"), full, {"units": units})}, {"time": times, **places})


def test_reports_count_the_same_whatever_field_they_are_in():
    observed = np.full((5, 2), 280.0)
    observed[1:3, 1] = np.nan
    errors = np.array([1.0, 3.0, 1.0, 3.0])[:, None, None, None]
    sc = xsm.score(forecast(280 + errors), reports(observed), metrics=["mae", "rmse"])
    valid = np.searchsorted(np.unique(VALID), VALID)
    number = np.isfinite(observed).sum(axis=1)[valid]
    np.testing.assert_array_equal(value(sc, "count"), number.sum(axis=0))
    pooled = (number * errors[:, 0, 0]).sum(axis=0) / number.sum(axis=0)
    np.testing.assert_allclose(value(sc, "mae"), pooled, rtol=1e-6)
    np.testing.assert_allclose(
        value(sc, "rmse") ** 2, (number * errors[:, 0, 0] ** 2).sum(axis=0) / number.sum(axis=0), rtol=1e-6
    )


def test_stations_of_any_form(fc):
    truth = reports(random(5, 2, seed=4))
    sc = xsm.score(fc, truth)
    table = truth.to_dataframe().reset_index().rename(columns={"t2m": "t2m [K]"}).drop(columns="altitude")
    xr.testing.assert_allclose(xsm.score(fc, table)["t2m"], sc["t2m"])
    at = xsm.at_stations(fc, truth)
    xr.testing.assert_allclose(xsm.score(at, truth)["t2m"], sc["t2m"])
    xr.testing.assert_allclose(xsm.score(fc.chunk(lead_time=1), truth.chunk(time=2))["t2m"], sc["t2m"])
    by_hand = at["t2m"].isel(lead_time=0).values - truth["t2m"].sel(time=VALID[:, 0]).values
    np.testing.assert_allclose(value(sc, "rmse")[0], np.sqrt((by_hand**2).mean()), rtol=1e-5)


def test_models_are_compared_on_the_same_reports(fc):
    gap = fc.copy(deep=True)
    gap["t2m"][:, :, :2] = np.nan
    truth = reports(280.0)
    sc = xsm.score({"a": fc, "b": gap}, truth, skill_against="a", metrics=["rmse"])
    np.testing.assert_array_equal(value(sc, "count"), 4)
    np.testing.assert_allclose(sc["t2m"].sel(metric="rmse", model="a"), sc["t2m"].sel(metric="rmse", model="b"))
    np.testing.assert_array_equal(sc["t2m"].sel(metric="rmse_difference_high", model="b"), 0)
    alone = xsm.score(fc, truth.isel(station=[1]), metrics=["rmse"])
    np.testing.assert_allclose(sc["t2m"].sel(metric="rmse", model="a"), value(alone, "rmse"))


def test_members_at_stations(truth):
    members = forecast(beside(truth)[:, :, None] + random(4, 2, 5, *GRID.shape, seed=3) - 280)
    observed = random(5, 2, seed=4)
    observed[2, 0] = np.nan
    sc = xsm.score(members, reports(observed), by="variable")
    at = xsm.at_stations(members, reports(observed))["t2m"].astype("f8")
    target = xr.DataArray(observed[np.searchsorted(np.unique(VALID), VALID)], dims=("reference_time", "lead_time", "station"))
    for metric, method in (("crps", "ecdf"), ("crps_fair", "fair")):
        theirs = scores.probability.crps_for_ensemble(at.drop_vars(at.coords), target.astype("f8"), "member", method=method)
        np.testing.assert_allclose(value(sc, metric), theirs, rtol=1e-6)


def test_intervals_weigh_fields_with_their_reports():
    starts = STARTS[0] + np.arange(20) * np.timedelta64(12, "h")
    times = starts + np.timedelta64(6, "h")
    errors = np.where(np.arange(20) % 2, 3.0, 1.0)[:, None, None, None]
    observed = np.where(np.arange(20)[:, None] % 2, [280, np.nan], [280.0, 280.0])
    models = {"a": forecast(280 + errors, starts=starts, leads=[6]), "b": forecast(280, starts=starts, leads=[6])}
    sc = xsm.score(models, reports(observed, times), skill_against="b", metrics=["mae"], block=10)
    for side in ("_low", "", "_high"):  # every block has as many of both kinds: every resample is the sample
        np.testing.assert_allclose(sc["t2m"].sel(model="a", metric=f"mae_difference{side}"), (2 * 1 + 3) / 3, rtol=1e-6)


def test_climatology_of_stations(fc):
    times = np.arange("2001-08-01", "2001-08-21", 6, dtype="M8[h]").astype("M8[ns]")
    archive = reports(random(len(times), 2, seed=7), times)
    normal = xsm.climatology(archive, window=2)
    assert normal["t2m"].dims == ("hour", "dayofyear", "station")
    xr.testing.assert_allclose(xsm.climatology(archive.chunk(time=10), window=2).compute(), normal)
    sc = xsm.score(xsm.at_stations(fc, archive), archive, climatology=normal)
    assert np.all(np.abs(value(sc, "acc")) <= 1) and np.isfinite(value(sc, "activity")).all()
    with pytest.raises(SchemaError, match="it is on a grid, the truth at stations"):
        xsm.score(fc, archive, climatology=xsm.climatology(analysis(280.0)))


def test_region_of_stations(fc):
    truth = reports(random(5, 2, seed=4))
    north = xsm.score(fc, truth, region=(60, 10, 57, 20))
    xr.testing.assert_allclose(north["t2m"], xsm.score(fc, truth.isel(station=[0]))["t2m"])
    with pytest.raises(GridError, match="holds no station"):
        xsm.score(fc, truth, region=(40, 10, 30, 20))


def test_stations_and_grids_are_not_mixed_up(fc, truth):
    observed = reports(280.0)
    with pytest.raises(GridError, match="no grid. Leave grid= out"):
        xsm.score(fc, observed, grid="truth")
    with pytest.raises(GridError, match=r"Type truth=xsm.at_stations\(truth, forecast\)"):
        xsm.score(xsm.at_stations(fc, observed), truth)
    at = {"fc": xsm.at_stations(fc, observed), "truth": xsm.at_stations(truth, observed)}
    np.testing.assert_array_equal(value(xsm.score(at["fc"], at["truth"]), "count"), 8)
    with pytest.raises(GridError, match="no station is inside the grid"):
        xsm.score(fc, reports(280.0, latitude=(0.0, 1.0)))
    other = observed.assign_coords(station=["x", "y"])
    with pytest.raises(GridError, match="no station is left"):
        xsm.score(xsm.at_stations(fc, observed), other)


def test_heights_of_stations_are_corrected_once(fc):
    hills = fc.assign(
        orog=(("latitude", "longitude"), np.full(GRID.shape, 300.0), {"units": "m", "standard_name": "surface_altitude"})
    )
    truth = reports(280.0).assign_coords(altitude=("station", [100.0, 100.0]))
    shift = value(xsm.score(hills, truth), "bias") - value(xsm.score(fc, truth), "bias")
    np.testing.assert_allclose(shift, 0.0065 * 200, atol=1e-4)
    xr.testing.assert_allclose(xsm.score(xsm.at_stations(hills, truth), truth)["t2m"], xsm.score(hills, truth)["t2m"])


# which variables are compared


def winds(ds):
    part = lambda by, name: (ds["t2m"] - by).assign_attrs(units="m s-1", standard_name=name)
    return ds.assign(u10=part(277, "eastward_wind"), v10=part(276, "northward_wind"))


def test_what_one_side_holds_and_the_other_determines_is_compared(fc, truth):
    sc = xsm.score(winds(fc), winds(truth))
    assert set(sc.data_vars) == {"t2m", "u10", "v10"}
    observed = reports(5.0, name="ws10", units="m s-1").assign(
        wd10=(("time", "station"), np.full((5, 2), 210.0), {"units": "degree"})
    )
    sc = xsm.score(winds(fc), observed)
    assert set(sc.data_vars) == {"u10", "v10", "ws10"}
    assert set(xsm.score(winds(fc), winds(truth), variables=["ws10"]).data_vars) == {"ws10"}
    with pytest.raises(SchemaError, match="an angle has no mean error. Score u10 and v10"):
        xsm.score(winds(fc), observed, variables=["wd10"])


def test_variables_outside_the_catalog_are_named(fc, truth):
    extra = lambda ds: ds.assign(sst=ds["t2m"].assign_attrs(standard_name="sea_surface_temperature"))
    assert "sst not compared: no variable of the catalog" in xsm.score(extra(fc), extra(truth)).attrs["report"]


def test_humidity_from_relative_humidity_is_named(fc, truth):
    other = lambda ds, factor, units, name: (ds["t2m"] * factor).assign_attrs(units=units, standard_name=name)
    pressure = lambda ds: ds.assign(sp=other(ds, 350, "Pa", "surface_air_pressure"))
    moist = lambda ds: pressure(ds).assign(r2m=other(ds, 1 / 560, "1", "relative_humidity"))
    dry = pressure(truth).assign(q2m=other(truth, 2e-5, "kg kg-1", "specific_humidity"))
    assert "q2m: not compared: of forecast follow only from relative humidity" in xsm.score(moist(fc), dry).attrs["report"]
    with pytest.raises(SchemaError, match="whether over water, ice or the mixed phase"):
        xsm.score(moist(fc), dry, variables=["q2m"])
    known = moist(fc).assign_attrs(GRIB_centre="kwbc")
    assert "q2m" in xsm.score(known, dry)


def test_radiation_over_different_times_is_not_compared(fc, truth):
    name = "surface_downwelling_shortwave_flux_in_air"
    flux = lambda ds, **attrs: ds.assign(ssrd=(ds["t2m"] - 100).assign_attrs(units="W m-2", standard_name=name, **attrs))
    hour, day = ({"cell_methods": f"time: mean (interval: {n} hour)"} for n in (1, 24))
    assert "ssrd" in xsm.score(flux(fc), flux(truth)) and "ssrd" in xsm.score(flux(fc, **hour), flux(truth, **hour))
    sc = xsm.score(flux(fc, **hour), flux(truth, **day))
    assert (
        "ssrd" not in sc
        and "ssrd: not compared: means over different times: forecast 1 h (stated), the truth 24 h (stated)" in sc.attrs["report"]
    )
    with pytest.raises(SchemaError, match=r"truth 6 h \(the spacing of its times, none stated\)(?s:.)*cell_methods"):
        xsm.score(flux(fc, **hour), flux(truth), variables=["ssrd"])


def test_models_are_compared_on_values_that_all_have(fc, truth):
    half = fc.where(fc["latitude"] > 52)
    sc = xsm.score({"whole": fc, "half": half}, truth, skill_against="whole", metrics=["rmse"])
    assert not np.any(value(sc.sel(model="half"), "rmse_difference"))
    alone = xsm.score(half, truth, metrics=["rmse"])
    np.testing.assert_allclose(value(sc.sel(model="whole"), "rmse"), value(alone, "rmse"), rtol=1e-6)


def test_two_starts_have_no_intervals(fc, truth):
    two = fc.isel(reference_time=[0, 1])
    sc = xsm.score({"a": two, "b": raised(two, 1)}, truth, skill_against="b", metrics=["mae"])
    assert np.isnan(value(sc.sel(model="a"), "mae_difference_low")).all()
    assert "no intervals: 2 starts make 1.0 blocks of 2; needed 2 or more" in sc.attrs["report"]


def test_starts_before_the_truth_count_for_nothing(fc, truth):
    late = truth.isel(time=slice(3, None))
    whole = xsm.score(fc, late, metrics=["rmse", "mae"])
    pieces = xsm.score(fc, late, metrics=["rmse", "mae"], memory=1)
    xr.testing.assert_allclose(whole, pieces)
    assert value(whole, "count").tolist() == [1, 2]


def test_spacing_of_radiation_is_the_least_where_hours_are_missing():
    name = {"units": "W m-2", "standard_name": "surface_downwelling_shortwave_flux_in_air"}
    flux = lambda ds: ds.rename(t2m="ssrd").assign(ssrd=lambda d: d["ssrd"].assign_attrs(name))
    hours = np.arange("2001-08-10T01", "2001-08-12T12", dtype="M8[h]").astype("M8[ns]")
    truth = flux(analysis(280.0, times=np.delete(hours, 7)))
    with pytest.raises(SchemaError, match=r"forecast 6 h(?s:.)*the truth 1 h"):
        xsm.score(flux(forecast(280.0)), truth, variables=["ssrd"])
    one = xsm.score(flux(forecast(280.0, leads=[6])), truth)
    assert "of forecast: one time only, and nothing says over which time it is a mean" in one.attrs["report"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draws": 10.5}, "draws=10.5; needed a whole number from 1"),
        ({"block": 0}, "block=0; needed a whole number"),
        ({"memory": "lots"}, "memory='lots'; needed bytes"),
        ({"root": "before", "metrics": ["mse"]}, "mse has no root to take before averaging"),
        ({"variables": ["orog"]}, "orog: a constant field"),
    ],
)
def test_settings_that_mean_nothing_are_told(fc, truth, options, words):
    with pytest.raises(InputError, match=words):
        xsm.score(fc, truth, **options)


# real and twin data


@pytest.mark.parametrize(
    ("name", "point", "mean"),
    [("ssrd", {"GRIB_stepType": "instant"}, {"cell_methods": "time: mean (interval: 6 hours)"}),
     ("tcc", {"cell_methods": "area: mean time: point"}, {"cell_methods": "time: mean (over the hour before)"})],
)  # fmt: skip
def test_instantaneous_values_against_means_are_told(fc, truth, name, point, mean):
    row = CATALOG[name]
    attrs = {"units": row.units, "standard_name": row.standard_name}
    held = lambda ds, also: xr.Dataset({name: (ds["t2m"] - 279.5).clip(0, 1).assign_attrs(attrs | also)})
    told = lambda *attrs: (
        f"! {name}: instantaneous values against means: forecast has instantaneous"
        in xsm.score(held(fc, attrs[0]), held(truth, attrs[1])).attrs["report"]
    )
    assert told(point, mean) and not told(point, point) and not told(mean, mean) and not told({}, mean)
    assert told(point, {}) == (name == "ssrd"), "radiation is taken as a mean where nothing is stated"


def test_repeated_reports_are_named(fc):
    truth = reports(280.0)
    with pytest.raises(TimeError, match=r"valid times occur more than once: 2001-08-10T06:00\. Needed: every valid time once"):
        xsm.score(fc, xr.concat([truth, truth.isel(time=[0])], "time"))
    with pytest.raises(SchemaError, match="ids occur more than once: s1"):
        xsm.score(fc, xr.concat([truth, truth.isel(station=[1])], "station"))


def test_persistence_of_the_twin_world(shared_data):
    files = [shared_data / "nature" / f"regional_2001-08-{day}.nc" for day in (10, 15)]
    truth = xr.concat([xr.open_dataset(file)[["t2m", "sp"]] for file in files], "time").load()
    start = truth["time"][11:180:12].rename(time="reference_time")
    lead = xr.DataArray([1, 3, 6, 24], dims="lead_time", attrs={"units": "hours"})
    held = truth.sel(time=start).drop_vars("time").expand_dims(lead_time=lead.size, axis=1)
    sc = held.assign_coords(reference_time=start.values, lead_time=lead).scalemixer.score(truth)
    assert set(sc.data_vars) == {"t2m", "sp"} and value(sc, "count").tolist() == [15] * 4
    rmse = value(sc, "rmse")
    assert np.all(np.diff(rmse[:3]) > 0) and rmse[3] < rmse[2], "the day comes round after 24 h"
    later = truth["t2m"].sel(time=start + np.timedelta64(6, "h")).values
    grid = Grid(tuple(truth["lat"].values), tuple(truth["lon"].values))
    by_hand = np.sqrt(np.average((held["t2m"].isel(lead_time=0) - later) ** 2, axis=(1, 2), weights=grid.area).mean())
    assert rmse[2] == pytest.approx(by_hand, rel=1e-6)


def test_near_misses_are_answered_with_what_to_type(fc, truth):
    with pytest.raises(InputError, match="metric 'RMSE' is unknown.*Did you mean 'rmse'"):
        xsm.score(fc, truth, metrics="RMSE")
    with pytest.raises(SchemaError, match=r"(?s)t2: not a variable of the catalog.*Type variables=\['t2m'\]"):
        xsm.score(fc, truth, variables="t2")
    with pytest.raises(SchemaError, match="found a list of forecasts; needed names"):
        xsm.score([fc], truth)
    with pytest.raises(GridError, match=r"type region=\(60, 10, 45, 30\)"):
        xsm.score(fc, truth, region=(10, 45, 30, 60))
    late = truth.assign_coords(time=truth["time"] + np.timedelta64(30, "m"))
    with pytest.raises(TimeError, match=r"(?s)from 2001-08-10T06:30 .*truth\[.time.\] - np.timedelta64\(30, .m.\)"):
        xsm.score(fc, late)


@pytest.mark.parametrize("dim", ["lead_time", "reference_time", "latitude"])
def test_empty_forecasts_are_told(fc, truth, dim):
    with pytest.raises(SchemaError, match=f"forecast: nothing along {dim}; needed one value"):
        xsm.score(fc.isel({dim: []}), truth)


def test_one_name_is_one_variable(fc, truth):
    assert set(xsm.score(fc, truth, variables="t2m")) == {"t2m"}


def test_lead_times_without_values_are_named(fc, truth):
    sc = xsm.score(fc.where(fc["lead_time"] == 6), truth)
    assert "t2m: no values at lead times 12 h" in sc.attrs["report"]
    assert np.isnan(sc["t2m"].sel(metric="rmse", lead_time=12))


def test_models_may_be_called_truth_and_climatology(fc, truth):
    sc = xsm.score(
        {"truth": fc, "climatology": raised(fc, 1.0)}, truth, climatology=xsm.climatology(truth), metrics=["rmse", "acc"]
    )
    alone = xsm.score(raised(fc, 1.0), truth, metrics="rmse")
    xr.testing.assert_allclose(
        sc["t2m"].sel(metric="rmse", model="climatology", drop=True), alone["t2m"].sel(metric="rmse", drop=True)
    )
