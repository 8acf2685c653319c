import sys
from types import ModuleType, SimpleNamespace

import dask.array
import numpy as np
import pyproj
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator
from scipy.sparse import coo_array

from xscalemixer.errors import GridError
from xscalemixer.grids import CurvilinearGrid, Grid, grid_of
from xscalemixer.projections import from_projection, to_projection
from xscalemixer.regridding import Regridder, regrid

LAMBERT = pyproj.CRS("+proj=lcc +lat_0=38.5 +lon_0=262.5 +lat_1=38.5 +lat_2=38.5 +R=6371229")
GLOBAL = Grid.regular(90, 0, 5, (37, 72))
GAUSSIAN = Grid(tuple(np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(40)[0]))[::-1]), tuple(np.arange(80) * 4.5))
METHODS = ("bilinear", "conservative")


def smooth(latitude, longitude):
    """A field that is smooth and periodic on the sphere."""
    lat, lon = np.deg2rad(latitude), np.deg2rad(longitude)
    return 2 + np.cos(lat) ** 2 * np.cos(2 * lon) + np.sin(lat) * np.cos(lat) * np.sin(lon)


def on(grid, function=smooth):
    if isinstance(grid, CurvilinearGrid):
        return function(grid.latitude, grid.longitude)
    return function(*np.meshgrid(grid.latitude, grid.longitude, indexing="ij"))


def dataset(grid, values=None, **dims):
    """Dataset with one float32 variable ``t``, repeated along ``dims``."""
    values = on(grid) if values is None else values
    if isinstance(grid, CurvilinearGrid):
        last, coords = ("y", "x"), {n: (("y", "x"), getattr(grid, n)) for n in ("latitude", "longitude")}
    else:
        last, coords = ("latitude", "longitude"), {"latitude": list(grid.latitude), "longitude": list(grid.longitude)}
    ds = xr.Dataset({"t": (last, values.astype("f4"), {"units": "K"})}, coords)
    if isinstance(grid, CurvilinearGrid) and grid.crs:
        ds["crs"] = ((), 0, grid.crs.to_cf())
    return ds.assign(t=ds["t"].expand_dims(dims)) if dims else ds


def lambert(rows=120, columns=150, step=3000.0):
    y, x = np.arange(rows) * step - 4e5, np.arange(columns) * step + 2e5
    return CurvilinearGrid(*from_projection(LAMBERT, *np.meshgrid(y, x, indexing="ij")), LAMBERT)


SOURCES = {"global": GLOBAL, "gaussian": GAUSSIAN, "lambert": lambert(), "regional": Grid.regular(50, -110, "0.5", (50, 60))}
INSIDE = Grid.regular("36.5", "-94.5", "0.4", (5, 6))


def sampled_mean(source, values, grid, row, column, n=200):
    """Area mean of piecewise constant source cells over one cell of ``grid``, by n x n points of equal area."""
    north, south = np.sin(np.deg2rad(grid.latitude_bounds[row : row + 2]))
    west, east = grid.longitude_bounds[column : column + 2]
    part = (np.arange(n) + 0.5) / n
    lat, lon = np.rad2deg(np.arcsin(south + (north - south) * part)), west + (east - west) * part
    i = np.searchsorted(-source.latitude_bounds, -lat) - 1
    j = np.searchsorted(source.longitude_bounds, (lon - source.longitude_bounds[0]) % 360 + source.longitude_bounds[0]) - 1
    return values[np.ix_(i, j)].mean()


def test_conservative_weights_by_hand():
    """Six cells onto cells of one and a half columns: 2/3 of the outer source cell, 1/3 from the middle one."""
    source, target = Grid((0.5, -0.5), (1, 2, 3)), Grid((0.5, -0.5), (1.25, 2.75))
    weights = Regridder(source, target, "conservative").weights
    np.testing.assert_allclose(weights.columns.toarray(), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]])
    np.testing.assert_allclose(weights.rows.toarray(), np.eye(2), atol=1e-12)


def test_conservative_rows_count_by_the_sine_of_latitude():
    source, target = Grid((75, 45, 15), (0, 90)), Grid((60, 0), (0, 90))
    rows = Regridder(source, target, "conservative").weights.rows.toarray()
    assert rows[0, 0] == pytest.approx((1 - np.sin(np.pi / 3)) / (1 - 0.5))
    assert rows[0, 1] == pytest.approx((np.sin(np.pi / 3) - 0.5) / (1 - 0.5))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SOURCES)
def test_constants_stay_constant(name, method):
    source = SOURCES[name]
    out = Regridder(source, INSIDE, method)(np.full(source.shape, 287.15))
    np.testing.assert_allclose(out, 287.15, rtol=1e-12)


@pytest.mark.parametrize("source", [GLOBAL, GAUSSIAN], ids=str)
def test_global_integral_is_conserved(source):
    target = Grid.regular(84, -173, 12, (15, 30))
    values = on(source) + np.random.default_rng(0).normal(size=source.shape)
    out = Regridder(source, target, "conservative")(values)
    assert (out * target.area).sum() == pytest.approx((values * source.area).sum(), rel=1e-12)


def test_conservative_is_the_mean_of_finely_sampled_cells():
    values = np.random.default_rng(1).normal(size=GAUSSIAN.shape)
    target = Grid.regular(60, 170, 13, (8, 5))
    out = Regridder(GAUSSIAN, target, "conservative")(values)
    for row, column in ((0, 0), (3, 1), (7, 4)):
        assert out[row, column] == pytest.approx(sampled_mean(GAUSSIAN, values, target, row, column), abs=0.02)


def test_bilinear_agrees_with_scipy():
    values = np.random.default_rng(2).normal(size=GAUSSIAN.shape)
    target = Grid.regular(70, 3, "1.3", (100, 200))
    reference = RegularGridInterpolator((GAUSSIAN.latitude[::-1], GAUSSIAN.longitude), values[::-1])
    points = np.stack(np.meshgrid(target.latitude, target.longitude, indexing="ij"), axis=-1)
    np.testing.assert_allclose(Regridder(GAUSSIAN, target, "bilinear")(values), reference(points), atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    north=st.integers(-20, 60),
    west=st.integers(-360, 360),
    step=st.sampled_from(["0.3", "1", "2.5", "7"]),
    method=st.sampled_from(METHODS),
)
def test_any_target_stays_within_the_range_of_the_source(north, west, step, method):
    values = np.random.default_rng(3).normal(size=GLOBAL.shape)
    out = Regridder(GLOBAL, Grid.regular(north, west, step, (9, 11)), method)(values)
    assert np.isfinite(out).all()
    assert values.min() - 1e-9 <= out.min() <= out.max() <= values.max() + 1e-9


@settings(max_examples=15, deadline=None)
@given(a=st.floats(-5, 5), b=st.floats(-5, 5), step=st.sampled_from(["0.7", "0.9", "1.3"]))
def test_bilinear_is_exact_for_linear_fields(a, b, step):
    linear = lambda latitude, longitude: a * latitude + b * longitude + 1
    source, target = Grid.regular(50, 10, 2, (20, 30)), Grid.regular(45, 15, step, (15, 15))
    np.testing.assert_allclose(Regridder(source, target, "bilinear")(on(source, linear)), on(target, linear), atol=1e-9)


def test_bilinear_onto_itself_is_the_identity():
    values = np.random.default_rng(4).normal(size=GAUSSIAN.shape)
    np.testing.assert_array_equal(Regridder(GAUSSIAN, GAUSSIAN, "bilinear")(values), values)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("west", [-200, -30, 340, 165, 525])
def test_longitude_convention_of_source_and_target_changes_nothing(west, method):
    target = Grid.regular(60, west, "1.5" if method == "bilinear" else 8, (10, 14))
    rolled = Grid(GLOBAL.latitude, tuple(np.arange(-180.0, 180, 5)))
    shifted = Grid(target.latitude, tuple(np.array(target.longitude) + 360))
    values = on(GLOBAL)
    expected = Regridder(GLOBAL, target, method)(values)
    np.testing.assert_allclose(Regridder(rolled, target, method)(np.roll(values, 36, axis=1)), expected, rtol=1e-12)
    np.testing.assert_allclose(Regridder(GLOBAL, shifted, method)(values), expected, rtol=1e-12)


@pytest.mark.parametrize("west", ["-0.6", "359.4", "357.5", "179.4"])
def test_no_gap_column_at_the_seam(west):
    target = Grid.regular(10, west, "0.2", (4, 30))
    np.testing.assert_allclose(Regridder(GLOBAL, target, "bilinear")(on(GLOBAL)), on(target), atol=0.01)


def test_regional_source_across_the_dateline():
    source, target = Grid.regular(30, 170, 1, (20, 20)), Grid.regular(25, -184, "0.5", (10, 12))
    np.testing.assert_allclose(Regridder(source, target, "bilinear")(on(source)), on(target), atol=1e-3)


def test_target_rows_beyond_the_last_source_row_take_its_values():
    target = Grid((90, 89.9, 0, -90), GAUSSIAN.longitude)
    values = on(GAUSSIAN)
    out = Regridder(GAUSSIAN, target, "bilinear")(values)
    np.testing.assert_allclose(out[[0, 1, 3]], values[[0, 0, -1]])


@pytest.mark.parametrize("method", METHODS)
def test_nothing_outside_the_source_is_filled(method):
    source, target = Grid.regular(30, 0, 1, (20, 20)), Grid.regular(40, -10, 2, (30, 30))
    out = Regridder(source, target, method)(np.ones(source.shape, "f4"))
    lat, lon = np.meshgrid(target.latitude, target.longitude, indexing="ij")
    outside = (lat > 31.6) | (lat < 9.4) | (lon < -1.6) | (lon > 20.6)
    assert np.isnan(out[outside]).all()
    np.testing.assert_allclose(out[~np.isnan(out)], 1)
    assert np.isfinite(out[(lat < 30) & (lat > 12) & (lon > 0) & (lon < 18)]).all()


def test_bilinear_reaches_to_the_cell_edges_and_no_further():
    source = Grid.regular(10, 0, 1, (5, 5))
    out = Regridder(source, Grid((10.6, 10.4, 8.0), (-0.6, -0.4, 2.0)), "bilinear")(np.ones((5, 5)))
    np.testing.assert_array_equal(np.isnan(out), [[1, 1, 1], [1, 0, 0], [1, 0, 0]])


def test_partly_covered_cells_need_half_and_are_normalized():
    source = Grid((1, 0, -1), (0, 1, 2, 3))  # longitudes from -0.5 to 3.5
    out = Regridder(source, Grid((1, 0, -1), (-1.5, 0.6, 2.7, 4.8)), "conservative")(np.full((3, 4), 5.0))
    np.testing.assert_allclose(out[0], [np.nan, 5, 5, np.nan])


@pytest.mark.parametrize(("west", "covered"), [(-0.55, False), (-0.45, True)])  # 47.5 and 52.5 % of the first cell
def test_half_of_a_cell_is_the_limit(west, covered):
    source = Grid((1, 0, -1), (0, 1, 2, 3))
    assert Regridder(source, Grid((1, 0), (west, west + 2)), "conservative").covered[0, 0] == covered


def test_no_overlap_is_an_error():
    with pytest.raises(GridError, match=r"do not overlap(?s:.*)needed a target inside the source"):
        Regridder(Grid.regular(30, 0, 1, (20, 20)), Grid.regular(30, 100, 1, (20, 20)))


def test_a_hole_in_bilinear_spreads_to_the_cells_that_use_it_only():
    source, target = Grid.regular(10, 0, 1, (11, 11)), Grid.regular(10, 0, "0.5", (21, 21))
    values = np.ones(source.shape, "f4")
    values[5, 5] = np.nan
    hole = np.isnan(Regridder(source, target, "bilinear")(values))
    expected = np.zeros((21, 21), bool)
    expected[9:12, 9:12] = True
    np.testing.assert_array_equal(hole, expected)


def test_rounded_coordinates_do_not_reach_for_a_missing_neighbor():
    source, target = Grid.regular(10, 0, 1, (11, 11)), Grid((7 + 1e-9, 4), (2 - 1e-9, 6))
    values = np.full(source.shape, np.nan)
    values[3, 2] = 5.0
    assert Regridder(source, target, "bilinear")(values)[0, 0] == 5.0


@pytest.mark.parametrize(("missing", "expected"), [(2, 1.0), (3, np.nan)])
def test_conservative_ignores_missing_cells_up_to_half(missing, expected):
    source, target = Grid.regular("0.5", 0, 1, (2, 4)), Grid((0.5, -0.5), (1.5, 5.5))  # first column holds all four
    values = np.ones((2, 4))
    values[0, :missing] = np.nan
    out = Regridder(source, target, "conservative")(values)
    np.testing.assert_allclose(out[:, 0], [expected, 1.0], rtol=1e-12)


def test_missing_cells_count_against_the_covered_part():
    source = Grid.regular("0.5", 0, 1, (2, 3))
    values = np.ones((2, 3))
    values[0, 0] = np.nan
    out = Regridder(source, Grid((0.5, -0.5), (2.0, 7.0)), "conservative")(values)  # 60 % covered, 2/3 of that valid
    np.testing.assert_allclose(out[:, 0], 1, rtol=1e-12)


def test_min_valid_is_a_choice():
    source, target = Grid.regular("0.5", 0, 1, (2, 4)), Grid((0.5, -0.5), (1.5, 5.5))
    values = np.ones((2, 4))
    values[0, :3] = np.nan
    assert Regridder(source, target, "conservative", min_valid=0.25)(values)[0, 0] == pytest.approx(1)


def test_fields_with_different_holes_do_not_touch_each_other():
    values = np.stack([on(GLOBAL)] * 3)
    values[1, :10] = np.nan
    regridder = Regridder(GLOBAL, Grid.regular(75, 15, 30, (6, 12)), "conservative")
    np.testing.assert_allclose(regridder(values), np.stack([regridder(field) for field in values]), rtol=1e-14)
    assert np.isnan(regridder(values)).any(axis=(1, 2)).tolist() == [False, True, False]


@pytest.mark.parametrize(("step", "expected"), [("5", "bilinear"), ("1", "bilinear"), ("6", "bilinear"), ("10", "conservative")])
def test_auto_averages_when_the_target_is_coarser(step, expected):
    out = regrid(dataset(GLOBAL), Grid.regular(60, 0, step, (5, 6)))
    assert out.attrs["regridding"].startswith(f"{expected} from 37 x 72")


def test_auto_from_a_projected_source():
    source = lambert()
    assert Regridder(source, Grid.regular(38, -94, "0.03", (20, 20))).method == "bilinear"
    assert Regridder(source, Grid.regular(38, -94, "0.25", (4, 4))).method == "conservative"


def test_projected_source_reproduces_an_analytic_field():
    source, target = lambert(), Grid.regular("37.5", "-94.5", "0.02", (60, 100))
    np.testing.assert_allclose(Regridder(source, target, "bilinear")(on(source)), on(target), atol=1e-5)


def test_projected_source_is_exact_for_fields_linear_in_the_plane():
    source = lambert()
    y, x = np.meshgrid(*source.axes, indexing="ij")
    target = Grid.regular("37.5", "265.5", "0.02", (60, 100))
    to_y, to_x = to_projection(LAMBERT, *np.meshgrid(target.latitude, target.longitude, indexing="ij"))
    np.testing.assert_allclose(Regridder(source, target, "bilinear")(3 * x - y + 7), 3 * to_x - to_y + 7, atol=1e-4)


def test_projected_source_upside_down_gives_the_same():
    source = lambert()
    flipped = CurvilinearGrid(source.latitude[::-1], source.longitude[::-1] + 360, LAMBERT)
    values, target = np.random.default_rng(5).normal(size=source.shape), Grid.regular(38, -95, "0.1", (12, 12))
    for method in METHODS:
        expected = Regridder(source, target, method)(values)
        np.testing.assert_allclose(Regridder(flipped, target, method)(values[::-1]), expected, atol=1e-9)


def test_projected_source_covers_what_lies_in_its_cells():
    source = lambert()
    covered = Regridder(source, Grid.regular(41, -99, "0.1", (90, 100)), "bilinear").covered
    area = (Grid.regular(41, -99, "0.1", (90, 100)).area * covered).sum()
    assert area == pytest.approx(source.area.sum(), rel=0.01)


@pytest.mark.parametrize("step", ["0.06", "0.1", "0.5"])
def test_averaging_a_projected_source_is_close_to_the_cell_mean(step):
    source = lambert()
    size = float(step)
    target = Grid.regular("37.4", "-94.4", step, (int(2 / size), int(2 / size)))
    fine = Grid.regular(37.4 + 0.45 * size, -94.4 - 0.45 * size, size / 10, tuple(10 * n for n in target.shape))
    expected = on(fine).reshape(target.shape[0], 10, target.shape[1], 10).mean(axis=(1, 3))
    np.testing.assert_allclose(Regridder(source, target, "conservative")(on(source)), expected, atol=1e-3)


def test_averaging_a_projected_source_conserves_the_integral():
    source = lambert()
    values = on(source)
    target = Grid.regular(45, -101, "0.5", (30, 30))
    total = Regridder(source, target, "conservative").weights(values[None])[0]
    assert (total * target.area).sum() == pytest.approx((values * source.area).sum(), rel=1e-9)


def test_whole_cells_of_a_projected_source():
    source, target = lambert(), Grid.regular(45, -101, "0.5", (30, 30))
    across = np.linspace(-0.25, 0.25, 21)
    latitude, longitude = (np.add.outer(axis, across) for axis in (np.array(target.latitude), np.array(target.longitude)))
    shape = (30, 30, 21, 21)
    places = np.broadcast_to(latitude[:, None, :, None], shape), np.broadcast_to(longitude[None, :, None], shape)
    inside = [(at > axis.min() - 1500) & (at < axis.max() + 1500)
              for at, axis in zip(to_projection(LAMBERT, *places), source.axes, strict=True)]  # fmt: skip
    whole = Regridder(source, target, "conservative").whole
    np.testing.assert_array_equal(whole, np.logical_and(*inside).all(axis=(2, 3)))
    as_curvilinear = CurvilinearGrid(*np.meshgrid(np.arange(49.95, 40, -0.1), np.arange(10.05, 20, 0.1), indexing="ij"))
    assert Regridder(as_curvilinear, Grid.regular("49.5", "10.5", 1, (10, 10)), "conservative").whole.all()


def test_averaging_over_a_pole():
    crs = pyproj.CRS("+proj=stere +lat_0=90 +lat_ts=60 +lon_0=-45 +R=6371229")
    axis = np.linspace(-2e6, 2e6, 201)
    source = CurvilinearGrid(*from_projection(crs, *np.meshgrid(axis, axis, indexing="ij")), crs)
    target = Grid.regular(88, 0, 4, (3, 90))
    for method in METHODS:
        np.testing.assert_allclose(Regridder(source, target, method)(on(source)), on(target), atol=0.02)


def test_unknown_projection_says_what_to_do():
    source = CurvilinearGrid(lambert().latitude, lambert().longitude)
    with pytest.raises(GridError, match=r"grid_mapping variable.*conda install.*from_weights.*conservative"):
        Regridder(source, INSIDE, "bilinear", backend="builtin")
    assert np.isfinite(Regridder(source, INSIDE, "conservative")(on(source))).all()


def test_everything_but_the_grid_is_kept():
    ds = dataset(GLOBAL, time=[0, 6], level=[500, 850]).assign(
        land=(("longitude", "latitude"), np.ones((72, 37), bool)), run=((), 7), f8=(("latitude", "longitude"), on(GLOBAL))
    )
    ds = ds.assign_coords(valid_time=("time", [1, 2])).assign_attrs(source="GFS")
    ds["level"].attrs["units"] = "hPa"
    out = regrid(ds, INSIDE)
    assert list(out.data_vars) == ["t", "land", "run", "f8"]
    assert out["t"].dims == ("time", "level", "latitude", "longitude")
    assert (out["t"].dtype, out["f8"].dtype, out["land"].dtype) == (np.float32, np.float64, np.float32)
    assert out["t"].attrs == {"units": "K"} and out["level"].attrs == {"units": "hPa"}
    assert set(out.coords) == {"time", "level", "valid_time", "latitude", "longitude"}
    assert out["latitude"].attrs["units"] == "degrees_north"
    assert out.attrs["source"] == "GFS"
    assert grid_of(out) == INSIDE


def test_coordinates_on_the_grid_move_along():
    ds = dataset(GLOBAL).assign_coords(orog=(("latitude", "longitude"), on(GLOBAL)))
    out = regrid(ds, INSIDE)
    np.testing.assert_allclose(out.coords["orog"], Regridder(GLOBAL, INSIDE)(on(GLOBAL)))


def test_description_of_the_source_grid_is_left_behind():
    ds = dataset(lambert()).assign_coords(x=np.arange(150.0), y=np.arange(120.0))
    ds["t"].attrs |= {"grid_mapping": "crs", "GRIB_gridType": "lambert", "GRIB_Nx": 150, "GRIB_shortName": "t"}
    ds["latitude"].attrs["bounds"] = "latitude_bnds"
    ds["latitude_bnds"] = (("y", "x", "corner"), np.zeros((120, 150, 4)))
    out = regrid(ds, INSIDE)
    assert set(out.variables) == {"t", "latitude", "longitude"}
    assert out["t"].attrs == {"units": "K", "GRIB_shortName": "t"}


def test_the_given_dataset_is_not_changed():
    ds = dataset(lambert(), time=[0])
    before = ds.copy(deep=True)
    regrid(ds, INSIDE)
    xr.testing.assert_identical(ds, before)


def test_all_problem_variables_are_listed():
    ds = dataset(lambert()).assign(
        zonal=("y", np.ones(120)),
        when=(("y", "x"), np.zeros((120, 150), "datetime64[ns]")),
        u10=(("y", "x"), np.ones((120, 150)), {"standard_name": "x_wind"}),
    )
    with pytest.raises(GridError, match=r"(?s)3 problems.*zonal varies along y only.*when has dtype.*u10 .*rotate_winds"):
        regrid(ds, INSIDE)


@pytest.mark.parametrize("name", SOURCES)
def test_lazy_input_stays_lazy_and_gives_the_same(name):
    ds = dataset(SOURCES[name], time=np.arange(3))
    lazy = regrid(ds.chunk({"time": 1, ds["t"].dims[-1]: 7}), INSIDE)
    assert lazy["t"].chunks == ((1, 1, 1), (5,), (6,))
    assert lazy["t"].dtype == np.float32
    np.testing.assert_array_equal(lazy["t"], regrid(ds, INSIDE)["t"])


def test_nothing_is_computed_before_it_is_asked_for():
    def explode(block):
        raise RuntimeError("computed")

    ds = dataset(GLOBAL, time=np.arange(2)).chunk(time=1)
    ds["t"] = ds["t"].copy(data=dask.array.map_blocks(explode, ds["t"].data, dtype="f4", meta=np.empty((0, 0, 0), "f4")))
    lazy = regrid(ds, INSIDE)
    with pytest.raises(RuntimeError, match="computed"):
        lazy.compute()


def test_a_regridder_can_be_used_again():
    regridder = Regridder(GLOBAL, INSIDE, "conservative")
    out = regrid(dataset(GLOBAL), regridder)
    xr.testing.assert_identical(out, regrid(dataset(GLOBAL), INSIDE, method="conservative"))
    with pytest.raises(GridError, match="these weights are for another grid"):
        regrid(dataset(GAUSSIAN), regridder)
    with pytest.raises(GridError, match="belong to the regridder"):
        regrid(dataset(GLOBAL), regridder, method="bilinear")


def test_a_regridder_takes_any_leading_dimensions():
    regridder = Regridder(GLOBAL, INSIDE)
    assert regridder(np.ones((2, 1, 3, *GLOBAL.shape), "f4")).shape == (2, 1, 3, *INSIDE.shape)
    assert regridder(np.ones((0, *GLOBAL.shape))).shape == (0, *INSIDE.shape)
    with pytest.raises(GridError, match=r"shape \(72, 37\); needed \(\.\.\., 37, 72\)"):
        regridder(np.ones((72, 37)))


def test_unknown_choices_are_refused():
    with pytest.raises(GridError, match="method='nearest'; needed one of 'auto', 'bilinear', 'bicubic', 'conservative'"):
        regrid(dataset(GLOBAL), INSIDE, method="nearest")
    with pytest.raises(GridError, match="backend='cdo'"):
        regrid(dataset(GLOBAL), INSIDE, backend="cdo")
    with pytest.raises(GridError, match="min_valid=50; needed a share"):
        Regridder(GLOBAL, INSIDE, min_valid=50)


def weights_file(path, source, target, *, flip=False):
    """Bilinear weights in xESMF's layout; ``flip`` writes them for a source from south to north."""
    built = Regridder(source, target, "bilinear").weights
    rows, columns = built.rows.toarray(), built.columns.toarray()
    matrix = coo_array(np.kron(rows[:, ::-1] if flip else rows, columns))
    row, col = matrix.coords
    xr.Dataset({"S": ("n_s", matrix.data), "row": ("n_s", row + 1), "col": ("n_s", col + 1)}).to_netcdf(path)
    return path


def test_weights_file_round_trip(tmp_path):
    target = Grid.regular(85, 100, 3, (20, 20))
    read = Regridder.from_weights(weights_file(tmp_path / "w.nc", GLOBAL, target), GLOBAL, target, method="bilinear")
    np.testing.assert_allclose(read(on(GLOBAL)), Regridder(GLOBAL, target, "bilinear")(on(GLOBAL)), rtol=1e-12)


def test_weights_file_leaves_unmapped_cells_missing(tmp_path):
    source, target = Grid.regular(30, 0, 1, (20, 20)), Grid.regular(40, 0, 1, (20, 20))
    read = Regridder.from_weights(weights_file(tmp_path / "w.nc", source, target), source, target, method="bilinear")
    assert np.isnan(read(np.ones(source.shape))[:9]).all()


def test_weights_file_for_other_grids_is_refused(tmp_path):
    path = weights_file(tmp_path / "w.nc", GLOBAL, INSIDE, flip=True)
    with pytest.raises(GridError, match=r"are for other grids(?s:.*)same orientation"):
        Regridder.from_weights(path, GLOBAL, INSIDE, method="bilinear")
    with pytest.raises(GridError, match="are for other grids"):
        Regridder.from_weights(path, INSIDE, GLOBAL, method="bilinear")
    xr.Dataset({"S": ("n_s", [1.0])}).to_netcdf(tmp_path / "no.nc")
    with pytest.raises(GridError, match=r"is not a weights file(?s:.*)no row, col; found S"):
        Regridder.from_weights(tmp_path / "no.nc", GLOBAL, INSIDE, method="bilinear")


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'esmpy'"), KeyError("ESMFMKFILE"), FileNotFoundError("esmf.mk")]
)
def test_xesmf_that_cannot_be_imported_is_one_clear_error(monkeypatch, error):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "xesmf":
                raise error

    monkeypatch.delitem(sys.modules, "xesmf", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(GridError, match=r"backend 'xesmf' cannot be used(?s:.*)conda install -c conda-forge xesmf"):
        regrid(dataset(GLOBAL), INSIDE, backend="xesmf")


def test_xesmf_weights_are_applied_by_the_library(monkeypatch):
    """With a stand-in for xESMF that returns known weights."""
    built = Regridder(GLOBAL, INSIDE, "bilinear")
    matrix = coo_array(np.kron(built.weights.rows.toarray(), built.weights.columns.toarray()))
    calls = []

    def fake(grid_in, grid_out, method, **options):
        calls.append((grid_in["lat"].shape, method, options))
        return SimpleNamespace(weights=SimpleNamespace(data=SimpleNamespace(to_scipy_sparse=lambda: matrix)))

    module = ModuleType("xesmf")
    module.Regridder = fake
    monkeypatch.setitem(sys.modules, "xesmf", module)
    out = regrid(dataset(GLOBAL), INSIDE, method="bilinear", backend="xesmf")
    np.testing.assert_allclose(out["t"], regrid(dataset(GLOBAL), INSIDE, method="bilinear")["t"], rtol=1e-6)
    assert calls == [((37,), "bilinear", {"periodic": True, "unmapped_to_nan": False})]


def test_hrrr_file_onto_a_regular_grid(shared_data):
    pytest.importorskip("cfgrib")
    path = sorted((shared_data / "real" / "hrrr_idaho").glob("*.grib2"))[0]
    keys = {"typeOfLevel": "heightAboveGround", "level": 2}
    with xr.open_dataset(path, engine="cfgrib", backend_kwargs={"indexpath": "", "filter_by_keys": keys}) as ds:
        t2m = ds[["t2m"]].load()
    out = regrid(t2m, Grid.regular("43.8", "-117", "0.05", (30, 20)))["t2m"]
    assert 0.8 < out.notnull().mean() <= 1
    assert t2m["t2m"].min() <= out.min() <= out.max() <= t2m["t2m"].max()
    assert out.mean() == pytest.approx(t2m["t2m"].mean().item(), abs=2)


def test_arome_file_onto_a_regular_grid(shared_data):
    with xr.open_dataset(shared_data / "real" / "arome_arctic_20180710.nc") as ds:
        one = ds[["t", "t2m"]].isel(time=slice(2)).load()
    crs = pyproj.CRS("+proj=lcc +lat_0=77.5 +lon_0=-25 +lat_1=77.5 +lat_2=77.5 +R=6367470")
    out = regrid(one.assign(crs=((), 0, crs.to_cf())), Grid.regular(79, 12, "0.05", (20, 50)))
    for name in ("t", "t2m"):
        assert out[name].notnull().all()
        assert one[name].min() <= out[name].min() <= out[name].max() <= one[name].max()


def test_onto_a_curvilinear_grid():
    target = CurvilinearGrid(*np.broadcast_arrays(*np.meshgrid([41.3, 40.1], [358.5, 359.9, 361.0], indexing="ij")))
    out = regrid(dataset(GLOBAL), target)
    assert out["t"].dims[-2:] == ("y", "x") and grid_of(out).shape == (2, 3)
    straight = regrid(dataset(GLOBAL), Grid((41.3, 40.1), (358.5, 359.9, 361.0)), method="bilinear")
    np.testing.assert_allclose(out["t"], straight["t"], rtol=1e-6)


def test_from_one_curvilinear_grid_onto_another_keeps_a_linear_field():
    y, x = np.arange(0.0, -90e3, -10e3), np.arange(0.0, 80e3, 10e3)
    source, target = (CurvilinearGrid(*from_projection(LAMBERT, *np.meshgrid(b, a, indexing="ij")), LAMBERT)
                      for b, a in ((y, x), (y[1:-1] + 3e3, x[1:-1] + 4e3)))  # fmt: skip
    field = np.add.outer(2 * y, -x)
    np.testing.assert_allclose(Regridder(source, target)(field), np.add.outer(2 * (y[1:-1] + 3e3), -(x[1:-1] + 4e3)), atol=1e-3)


@pytest.mark.parametrize("backend", ["auto", "xesmf"])
def test_cells_of_a_curvilinear_grid_are_not_averaged_over(backend):
    y, x = np.arange(0.0, -90e3, -10e3), np.arange(0.0, 80e3, 10e3)
    target = CurvilinearGrid(*from_projection(LAMBERT, *np.meshgrid(y, x, indexing="ij")), LAMBERT)
    with pytest.raises(GridError, match=r"cannot be averaged over(?s:.*)needed method='bilinear'"):
        Regridder(GLOBAL, target, "conservative", backend=backend)


def test_bicubic_is_exact_for_parabolas_and_has_no_kinks():
    source, target = Grid.regular(40, 100, 1, (20, 20)), Grid.regular(35, 105, "0.05", (200, 200))
    bent = on(source, lambda lat, lon: lat**2 - 3 * lon**2 + lat * lon)
    exact = on(target, lambda lat, lon: lat**2 - 3 * lon**2 + lat * lon)
    np.testing.assert_allclose(Regridder(source, target, "bicubic")(bent), exact, rtol=1e-9)
    noise = np.random.default_rng(0).normal(size=source.shape)
    bends = {method: np.abs(np.diff(Regridder(source, target, method)(noise), 2)).max() for method in ("bilinear", "bicubic")}
    assert bends["bicubic"] < 0.3 * bends["bilinear"]


def test_bicubic_goes_through_the_values_and_around_the_globe():
    globe = Grid.regular("87.1875", "2.8125", "5.625", (32, 64))
    noise = np.random.default_rng(0).normal(size=globe.shape)
    np.testing.assert_allclose(Regridder(globe, globe, "bicubic")(noise), noise, atol=1e-12)
    wave = on(globe, lambda lat, lon: np.cos(np.deg2rad(lon)) + 0 * lat)
    across = Grid.regular(10, -5, "0.5", (3, 20))
    exact = on(across, lambda lat, lon: np.cos(np.deg2rad(lon)) + 0 * lat)
    np.testing.assert_allclose(Regridder(globe, across, "bicubic")(wave), exact, atol=1e-4)


def test_bicubic_on_uneven_axes_has_no_kinks_either():
    lat = np.array([30.0, 28.7, 27.9, 26.0, 25.1, 24.0])
    source, target = Grid(tuple(lat), tuple(range(100, 106))), Grid.regular("29.5", "101", "0.01", (500, 3))
    noise = np.random.default_rng(0).normal(size=source.shape)
    slopes = np.diff(Regridder(source, target, "bicubic")(noise)[:, 0]) / 0.01
    assert np.abs(np.diff(slopes)).max() < 0.1  # a kink of bilinear interpolation is of the order of 1


def test_bicubic_needs_axes():
    with pytest.raises(GridError, match="(?s)bicubic.*latitudes and longitudes as axes"):
        Regridder(lambert(), Grid.regular(40, 100, 1, (4, 4)), "bicubic")
