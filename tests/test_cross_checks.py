"""The numbers of other libraries and of WeatherBench 2 on the same arrays, and what must not change a score."""

import numpy as np
import pytest
import scores.continuous
import scores.functions
import scores.probability
import scores.spatial
import xarray as xr
import xskillscore as xs
from hypothesis import given, settings
from hypothesis import strategies as st
from scores.continuous.correlation import pearsonr

import xscalemixer as xsm
from xscalemixer.grids import Grid
from xscalemixer.variables import CATALOG
from xscalemixer.verification import brier, fss, rank_histogram

GAUSSIAN = tuple(np.degrees(np.arcsin(np.polynomial.legendre.leggauss(16)[0]))[::-1])  # uneven, no row at the poles
GLOBE = Grid(GAUSSIAN, tuple(np.arange(0, 360, 22.5)))
POLES = Grid.regular(90, 0, "22.5", (9, 16))
BOX = Grid(GAUSSIAN[2:9], tuple(np.arange(10, 25, 1.5)))
EQUATOR = Grid((1.0, -1.0), tuple(np.arange(60.0)))  # two rows of cells of one size: a mean without weights is the same
STARTS = np.arange("2001-08-10T00", "2001-08-11T12", 12, dtype="M8[h]").astype("M8[ns]")
LEADS = np.array([6, 12])
VALID = (STARTS[:, None] + LEADS.astype("m8[h]")).ravel()
CELLS = ["latitude", "longitude"]
FIELDS = ["reference_time", "lead_time"]
DIMS = (*FIELDS, "member", *CELLS)


def world(grid, members=5, gaps=True, seed=0):
    """Members around a truth with gaps that differ from field to field; float32, as a file would have them."""
    rng = np.random.default_rng(seed)
    attrs = {"units": "K", "standard_name": "air_temperature"}
    values = rng.normal(280, 3, size=(6, *grid.shape)).astype("f4")
    drawn = values.reshape(3, 2, 1, *grid.shape) + rng.normal(0.5, 2, size=(3, 2, members, *grid.shape)).astype("f4")
    if gaps:
        values[rng.uniform(size=values.shape) < 0.2] = np.nan
    coords = {"latitude": list(grid.latitude), "longitude": list(grid.longitude)}
    starts = coords | {"reference_time": STARTS, "lead_time": ("lead_time", LEADS, {"units": "hours"}), "member": range(members)}
    truth = xr.Dataset({"t2m": (("time", *CELLS), values, attrs)}, coords | {"time": VALID})
    return xr.Dataset({"t2m": (DIMS, drawn.astype("f4"), attrs)}, starts), truth


def arrays(fc, truth, grid):
    """Members, their mean, truth and cell areas in float64 with equal dims, as other libraries want them."""
    members = fc["t2m"].astype("f8")
    shape = (*(fc.sizes[dim] for dim in FIELDS), *grid.shape)
    mean = members.mean("member") if "member" in fc.dims else members
    target = xr.DataArray(truth["t2m"].values.reshape(shape).astype("f8"), mean.coords, mean.dims)
    return members, mean, target, xr.DataArray(grid.area, {d: mean[d] for d in CELLS}, CELLS)


def of_each_field(fc, truth, metric):
    return xsm.score(fc, truth, by=FIELDS, metrics=[metric])["t2m"].sel(metric=metric).transpose(*FIELDS)


SCORES = {
    "bias": lambda f, m, a, w: scores.continuous.additive_bias(m, a, preserve_dims=FIELDS, weights=w),
    "mae": lambda f, m, a, w: scores.continuous.mae(m, a, preserve_dims=FIELDS, weights=w),
    "mse": lambda f, m, a, w: scores.continuous.mse(m, a, preserve_dims=FIELDS, weights=w),
    "rmse": lambda f, m, a, w: scores.continuous.rmse(m, a, preserve_dims=FIELDS, weights=w),
    "crps": lambda f, m, a, w: scores.probability.crps_for_ensemble(f, a, "member", preserve_dims=FIELDS, weights=w),
    "crps_fair": lambda f, m, a, w: scores.probability.crps_for_ensemble(
        f, a, "member", method="fair", preserve_dims=FIELDS, weights=w
    ),
}
XSKILLSCORE = {
    "bias": lambda f, m, a, w: xs.me(m, a, dim=CELLS, weights=w, skipna=True),
    "mae": lambda f, m, a, w: xs.mae(m, a, dim=CELLS, weights=w, skipna=True),
    "mse": lambda f, m, a, w: xs.mse(m, a, dim=CELLS, weights=w, skipna=True),
    "rmse": lambda f, m, a, w: xs.rmse(m, a, dim=CELLS, weights=w, skipna=True),
    "correlation": lambda f, m, a, w: xs.pearson_r(m, a, dim=CELLS, weights=w, skipna=True),
    "crps": lambda f, m, a, w: xs.crps_ensemble(a, f, dim=CELLS, weights=w),
}


@pytest.mark.parametrize("grid", [GLOBE, BOX], ids=["globe", "box"])
@pytest.mark.parametrize(
    ("metric", "theirs"),
    [pytest.param(*item, id=f"{library}-{item[0]}") for library, table in (("scores", SCORES), ("xskillscore", XSKILLSCORE))
     for item in table.items()],
)  # fmt: skip
def test_same_number_for_each_field(metric, theirs, grid):
    fc, truth = world(grid)
    np.testing.assert_allclose(of_each_field(fc, truth, metric), theirs(*arrays(fc, truth, grid)), rtol=1e-9)


def test_fields_count_the_same_here_but_by_their_valid_area_when_pooled():
    fc, truth = world(BOX)
    _, mean, target, area = arrays(fc, truth, BOX)
    pooled = scores.continuous.mse(mean, target, preserve_dims=["lead_time"], weights=area)
    known = area.where(target.notnull()).sum(CELLS)
    again = (of_each_field(fc, truth, "mse") * known).sum("reference_time") / known.sum("reference_time")
    np.testing.assert_allclose(again, pooled, rtol=1e-9)
    ours = xsm.score(fc, truth, metrics=["mse"])["t2m"].sel(metric="mse")
    np.testing.assert_allclose(ours, of_each_field(fc, truth, "mse").mean("reference_time"), rtol=1e-9)
    assert np.all(np.abs(ours / pooled.values - 1) > 1e-5)


def test_without_gaps_the_order_of_averages_does_not_matter():
    fc, truth = world(GLOBE, gaps=False)
    _, mean, target, area = arrays(fc, truth, GLOBE)
    ours = xsm.score(fc, truth, metrics=["rmse"])["t2m"].sel(metric="rmse")
    kept = {"preserve_dims": ["lead_time"], "weights": area}
    np.testing.assert_allclose(ours, scores.continuous.rmse(mean, target, **kept), rtol=1e-9)
    pooled = ["reference_time", *CELLS]
    weights = area.expand_dims(reference_time=mean["reference_time"])  # xskillscore wants all dims it averages over
    np.testing.assert_allclose(ours, xs.rmse(mean, target, dim=pooled, weights=weights), rtol=1e-9)


@pytest.mark.parametrize(("grid", "alike"), [(Grid.regular(60, 10, "2.5", (6, 8)), True), (BOX, False)], ids=["even", "gaussian"])
def test_cosines_of_latitude_are_the_same_weights_on_even_rows_only(grid, alike):
    """The integral of the cosine over rows of one width is proportional to its value in the middle."""
    fc, truth = world(grid)
    _, mean, target, _ = arrays(fc, truth, grid)
    cosine = scores.functions.create_latitude_weights(mean["latitude"])
    theirs = scores.continuous.mae(mean, target, preserve_dims=FIELDS, weights=cosine)
    apart = np.abs(of_each_field(fc, truth, "mae") / theirs - 1)
    assert np.all(apart < 1e-12) if alike else np.all(apart > 1e-6)


def test_correlation_without_weights():
    fc, truth = world(EQUATOR, gaps=False)
    _, mean, target, _ = arrays(fc, truth, EQUATOR)
    theirs = pearsonr(mean, target, preserve_dims=FIELDS)
    np.testing.assert_allclose(of_each_field(fc, truth, "correlation"), theirs, rtol=1e-9)


def test_rank_histogram():
    fc, truth = world(EQUATOR, gaps=False)
    members, _, target, _ = arrays(fc, truth, EQUATOR)
    ours = rank_histogram(fc, truth)["t2m"].transpose("lead_time", "rank")
    counts = xs.rank_histogram(target, members, dim=["reference_time", *CELLS])  # numbers of cases, not shares of area
    np.testing.assert_allclose(ours, counts / counts.sum("rank"), rtol=1e-9)
    theirs = scores.probability.rank_histogram(members, target, "member", preserve_dims=["lead_time"])
    np.testing.assert_allclose(ours, theirs.transpose("lead_time", "rank"), rtol=1e-9)


def test_weighted_rank_histogram():
    fc, truth = world(BOX)
    members, _, target, area = arrays(fc, truth, BOX)
    theirs = scores.probability.rank_histogram(members, target, "member", preserve_dims=["lead_time"], weights=area)
    np.testing.assert_allclose(rank_histogram(fc, truth)["t2m"], theirs.transpose("rank", "lead_time"), rtol=1e-9)


def test_brier_score_is_not_fair_unless_asked():
    fc, truth = world(BOX, gaps=False)
    members, _, target, area = arrays(fc, truth, BOX)
    plain = brier(fc, truth, "t2m", [279.0, 283.0])
    event = xs.threshold_brier_score(target, members, [279.0, 283.0], dim=["reference_time", *CELLS], weights=area)
    np.testing.assert_allclose(plain, event.transpose("threshold", "lead_time"), rtol=1e-9)
    kept = {"preserve_dims": ["lead_time"], "weights": area}
    default = scores.probability.brier_score_for_ensemble(members, target, "member", [279.0, 283.0], **kept)
    default = default.transpose("threshold", "lead_time")
    np.testing.assert_allclose(brier(fc, truth, "t2m", [279.0, 283.0], fair=True), default, rtol=1e-9)
    share = (members >= xr.DataArray([279.0, 283.0], dims="threshold")).mean("member")
    correction = (share * (1 - share) / (5 - 1)).weighted(area).mean(["reference_time", *CELLS])
    np.testing.assert_allclose(plain - default, correction.transpose("threshold", "lead_time"), rtol=1e-9)


@pytest.mark.parametrize("window", [1, 3, 5])
def test_fractions_skill_score(window):
    fc, truth = world(BOX, members=1, gaps=False)
    fc = fc.squeeze("member", drop=True)
    _, mean, target, _ = arrays(fc, truth, BOX)
    theirs = scores.spatial.fss_2d(
        mean, target, event_threshold=282.0, window_size=(window, window), spatial_dims=CELLS, preserve_dims=["lead_time"]
    )
    np.testing.assert_allclose(fss(fc, truth, "t2m", 282.0, window).squeeze("window"), theirs, rtol=1e-9)


# WeatherBench 2: Rasp et al. 2024, doi:10.1029/2023MS004019, appendix A; weatherbench2/metrics.py


def row_weights(latitude, ends):
    """Areas of latitude rows between bounds halfway, in all order; the outer ones are those given (degrees)."""
    bounds = np.concatenate([[ends[0]], (latitude[1:] + latitude[:-1]) / 2, [ends[1]]])
    return np.diff(np.sin(np.deg2rad(bounds)))


def weatherbench2(fc, truth, climatology, ends=(-90.0, 90.0)):
    """What its evaluation computes from files in its layout: (metric, lead), in float64."""
    north_up = lambda ds: ds.sortby("latitude").transpose(..., "latitude", "longitude")
    fc, truth, climatology = north_up(fc), north_up(truth), north_up(climatology)
    name = "2m_temperature"
    f = fc[name].transpose("number", "time", "prediction_timedelta", "latitude", "longitude").values.astype("f8")
    valid = fc["time"] + fc["prediction_timedelta"]
    a = truth[name].sel(time=valid).values.astype("f8")
    c = climatology[name].sel(dayofyear=valid.dt.dayofyear, hour=valid.dt.hour)
    c = c.transpose("time", "prediction_timedelta", "latitude", "longitude").values.astype("f8")
    weights = row_weights(fc["latitude"].values, ends)
    mean = lambda x: np.average(x.mean(axis=-1), axis=-1, weights=weights)
    m, size = f.mean(axis=0), len(f)
    skill = mean(np.abs(f - a)).mean(axis=0)
    spread = mean(np.abs(f[:, None] - f[None, :])).sum(axis=(0, 1)) / (size * (size - 1))
    each = {
        "bias": mean(m - a),
        "mae": mean(np.abs(m - a)),
        "mse": mean((m - a) ** 2),
        "acc": mean((m - c) * (a - c)) / np.sqrt(mean((m - c) ** 2) * mean((a - c) ** 2)),
        "crps_fair": skill - spread / 2,
        "variance": mean(f.var(axis=0, ddof=1)),
    }
    out = {key: value.mean(axis=0) for key, value in each.items()}
    return out | {"rmse": np.sqrt(out["mse"]), "spread": np.sqrt(out.pop("variance"))}


def in_their_layout(grid):
    fc, truth = world(grid, gaps=False)
    normal = xsm.climatology(world(grid, gaps=False, seed=1)[1], window=3)
    return (fc, truth, normal), tuple(xsm.to_weatherbench2(ds) for ds in (fc, truth, normal))


@pytest.mark.parametrize("grid", [POLES, GLOBE], ids=["rows at the poles", "gaussian"])
def test_numbers_of_weatherbench2(grid):
    ours, theirs = in_their_layout(grid)
    expected = weatherbench2(*theirs)
    sc = xsm.score(*ours[:2], climatology=ours[2], metrics=list(expected))["t2m"]
    for metric, numbers in expected.items():
        np.testing.assert_allclose(sc.sel(metric=metric), numbers, rtol=1e-9, err_msg=metric)


def test_numbers_of_weatherbench_x_on_a_box():
    """Its bounds of the outer rows are half a spacing out (weatherbenchX/weighting.py), as here; so are its other formulas."""
    ours, theirs = in_their_layout(BOX)
    rows = np.array(BOX.latitude)[::-1]
    expected = weatherbench2(*theirs, ends=(1.5 * rows[0] - rows[1] / 2, 1.5 * rows[-1] - rows[-2] / 2))
    sc = xsm.score(*ours[:2], climatology=ours[2], metrics=list(expected))["t2m"]
    for metric, numbers in expected.items():
        np.testing.assert_allclose(sc.sel(metric=metric), numbers, rtol=1e-9, err_msg=metric)


def test_weatherbench2_stretches_the_outer_rows_of_a_box_to_the_poles():
    fc, truth = world(BOX, gaps=False)
    inner = xr.zeros_like(fc["t2m"])
    inner[..., 3, :] = 1.0
    fc = fc.assign(t2m=xr.zeros_like(fc["t2m"]) + 280 + inner).assign(t2m=lambda ds: ds["t2m"].assign_attrs(units="K"))
    truth = truth.assign(t2m=xr.full_like(truth["t2m"], 280.0))
    theirs = weatherbench2(xsm.to_weatherbench2(fc), xsm.to_weatherbench2(truth), in_their_layout(BOX)[1][2])
    north, south = np.sin(np.deg2rad(BOX.latitude_bounds[[0, -1]]))
    ours = xsm.score(fc, truth, metrics=["mae"])["t2m"].sel(metric="mae")
    np.testing.assert_allclose(theirs["mae"], ours * (north - south) / 2, rtol=1e-9)


@pytest.mark.parametrize("store", ["netcdf", "zarr"])
def test_files_of_weatherbench2_are_scored_like_what_they_were_made_of(store, tmp_path):
    ours, theirs = in_their_layout(BOX)
    files = []
    for name, ds in zip(("forecast", "analysis", "climatology"), theirs, strict=True):
        path = tmp_path / f"{name}.{store}"
        _ = ds.to_netcdf(path) if store == "netcdf" else ds.to_zarr(path, zarr_format=2)
        files.append(xr.open_dataset(path, engine="zarr" if store == "zarr" else None))
    assert files[0]["prediction_timedelta"].dtype.kind == "m" and files[2]["hour"].dtype.kind == "i"
    fc, truth, normal = (xsm.from_weatherbench2(ds) for ds in files)
    xr.testing.assert_equal(xsm.score(fc, truth, climatology=normal)["t2m"], xsm.score(*ours[:2], climatology=ours[2])["t2m"])
    xr.testing.assert_equal(xsm.score(files[0], files[1])["t2m"], xsm.score(*ours[:2])["t2m"])
    xr.testing.assert_equal(xsm.score(xsm.to_forecast(files[0]), truth)["t2m"], xsm.score(*ours[:2])["t2m"])


# a real ensemble


def test_ten_members_of_era5_against_both_libraries(shared_data):
    pytest.importorskip("cfgrib")
    path = shared_data / "real" / "era5_10members_3deg_20170101.grib"
    with xr.open_dataset(path, engine="cfgrib", indexpath="", decode_timedelta=True) as ds:
        ds = ds.load()
    fc, truth = ds.isel(number=slice(9)), ds.isel(number=9, drop=True)
    sc = xsm.score(fc, truth)
    ranks = rank_histogram(fc, truth)
    area = Grid(tuple(ds["latitude"].values), tuple(ds["longitude"].values)).area
    cells = {dim: ds[dim] for dim in ("time", *CELLS)}
    weights = xr.DataArray(np.broadcast_to(area, (4, *area.shape)), cells, tuple(cells))
    for name in ("z", "t"):
        members, target = fc[name].astype("f8"), truth[name].astype("f8")
        kept = {"preserve_dims": ["isobaricInhPa"], "weights": weights}
        theirs = {
            "crps": [scores.probability.crps_for_ensemble(members, target, "number", **kept),
                     xs.crps_ensemble(target, members, member_dim="number", dim=list(cells), weights=weights)],
            "crps_fair": [scores.probability.crps_for_ensemble(members, target, "number", method="fair", **kept)],
            "rmse": [scores.continuous.rmse(members.mean("number"), target, **kept),
                     xs.rmse(members.mean("number"), target, dim=list(cells), weights=weights)],
        }  # fmt: skip
        for metric, numbers in theirs.items():
            for number in numbers:
                ours = sc[name].sel(metric=metric).squeeze("lead_time")
                np.testing.assert_allclose(ours, number.sortby("isobaricInhPa"), rtol=1e-9)
        spread = np.sqrt(members.var("number", ddof=1).weighted(weights).mean(list(cells)))
        expected = (np.sqrt(10 / 9) * spread / theirs["rmse"][0]).sortby("isobaricInhPa")
        np.testing.assert_allclose(sc[name].sel(metric="spread_skill").squeeze("lead_time"), expected, rtol=1e-9)
        histogram = scores.probability.rank_histogram(members, target, "number", **kept).sortby("isobaricInhPa")
        np.testing.assert_allclose(ranks[name].squeeze("lead_time"), histogram.transpose("rank", ...), atol=1e-6)


# what must not change a score


def same(fc, truth, **kwargs):
    return xsm.score(fc, truth, **kwargs)["t2m"]


def converted(ds, factor, offset, units):
    return ds.assign(t2m=(ds["t2m"].astype("f8") * factor + offset).assign_attrs(units=units))


CHANGES = {  # and the tolerance: order of float64 sums, or rounding of float32 values near 280 (3e-5)
    "south first": (lambda ds: ds.isel(latitude=slice(None, None, -1)), 1e-12),
    "rolled": (lambda ds: ds.roll(longitude=3, roll_coords=True), 1e-9),
    "dims": (lambda ds: ds.transpose("longitude", "latitude", ...), 1e-12),
    "chunks": (lambda ds: ds.chunk({ds["t2m"].dims[0]: 1, "latitude": 5}), 1e-9),
    "float64": (lambda ds: ds.astype("f8"), 1e-12),
    "celsius": (lambda ds: converted(ds, 1.0, -273.15, "degC"), 1e-4),
    "fahrenheit": (lambda ds: converted(ds, 1.8, -459.67, "degF"), 1e-4),
}


@pytest.mark.parametrize(("change", "tolerance"), CHANGES.values(), ids=CHANGES)
def test_the_form_of_the_data_does_not_matter(change, tolerance):
    fc, truth = world(GLOBE)
    np.testing.assert_allclose(same(change(fc), change(truth)), same(fc, truth), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("alias", CATALOG["t2m"].aliases)
def test_any_name_of_a_variable(alias):
    fc, truth = world(BOX, members=2)
    bare = lambda ds: ds.assign(t2m=ds["t2m"].drop_attrs(deep=False).assign_attrs(units="K")).rename(t2m=alias)
    xr.testing.assert_equal(same(bare(fc), truth), same(fc, truth))


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31), members=st.integers(1, 4), rows=st.integers(2, 6), columns=st.integers(2, 6))
def test_relations_that_always_hold(seed, members, rows, columns):
    grid = Grid(GAUSSIAN[3 : 3 + rows], tuple(np.arange(5.0, 5.0 + columns)))
    fc, truth = world(grid, members, gaps=False, seed=seed)
    sc = same(fc, truth, metrics=["mse", "rmse", "crps", "mae"])
    np.testing.assert_allclose(sc.sel(metric="rmse") ** 2, sc.sel(metric="mse"), rtol=1e-12)
    assert np.all(sc.sel(metric="mae") ** 2 <= sc.sel(metric="mse") * (1 + 1e-12)) and np.all(sc.sel(metric="crps") > 0)
    one = fc.isel(member=0, drop=True)
    single = same(fc.isel(member=[0]), truth, metrics=["crps", "mae"])
    np.testing.assert_array_equal(single.sel(metric="crps"), single.sel(metric="mae"))
    forward, back = (same(*pair, metrics=["mae"]).sel(metric="mae") for pair in ((one, truth), swapped(one, truth)))
    np.testing.assert_allclose(forward, back, rtol=1e-12)
    skill = fss(one, truth, "t2m", 280.0, [1, 2])
    assert np.all((skill >= 0) & (skill <= 1))


def swapped(fc, truth):
    """Forecast and truth with their values exchanged."""
    values = truth["t2m"].values.reshape(fc["t2m"].shape)
    return fc.assign(t2m=fc["t2m"].copy(data=values)), truth.assign(
        t2m=truth["t2m"].copy(data=fc["t2m"].values.reshape(-1, *values.shape[2:]))
    )


@pytest.mark.parametrize("grid", [POLES, GLOBE, BOX], ids=["poles", "gaussian", "box"])
def test_weights_of_cells_average_to_one(grid):
    fc, truth = world(grid, members=1, gaps=False)
    truth["t2m"][:] = np.round(4 * truth["t2m"]) / 4  # the error is exact in float32
    fc["t2m"][:] = truth["t2m"].values.reshape(fc["t2m"].shape) + 0.25
    np.testing.assert_allclose(same(fc, truth, metrics=["mae", "bias"]).sel(metric=["mae", "bias"]), 0.25, rtol=1e-12)
