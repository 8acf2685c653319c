import numpy as np
import pyproj
import pytest
import xarray as xr

from xscalemixer.errors import GridError
from xscalemixer.grids import EARTH_RADIUS, CurvilinearGrid, Grid, cell_edges, grid_of, surroundings, unit_vectors
from xscalemixer.projections import from_projection

LAMBERT = pyproj.CRS("+proj=lcc +lat_0=38.5 +lon_0=262.5 +lat_1=38.5 +lat_2=38.5 +R=6371229")


def gaussian(rows, columns):
    latitude = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(rows)[0]))[::-1]
    return Grid(tuple(latitude), tuple(np.arange(columns) * 360.0 / columns))


def lambert(rows=30, columns=40, step=3000.0, crs=LAMBERT):
    y, x = np.arange(rows) * step - 4e5, np.arange(columns) * step + 2e5
    return CurvilinearGrid(*from_projection(crs, *np.meshgrid(y, x, indexing="ij")), crs), y, x


@pytest.mark.parametrize(("first", "last"), [((18, 54), 721), ((15, 55), 801), ((70, 140), 1401)])
def test_regular_0p05_loses_no_row(first, last):
    south, north = first
    grid = Grid.regular(north - 60, 0, "0.05", (last, 2))
    assert grid.latitude[-1] == south - 60
    assert grid.spacing[0] == pytest.approx(0.05, abs=1e-12)


def test_regular_agrees_with_decimal_labels():
    longitude = Grid.regular(54, 70, "0.05", (721, 1401)).longitude
    assert list(longitude) == [float(f"{70 + 5 * i / 100:.2f}") for i in range(1401)]


@pytest.mark.parametrize("grid", [Grid.regular(90, 0, "2.5", (73, 144)), gaussian(32, 64), gaussian(160, 320)], ids=str)
def test_cells_of_a_global_grid_cover_the_sphere(grid):
    assert grid.periodic
    assert grid.area.sum() == pytest.approx(4 * np.pi * EARTH_RADIUS**2, rel=1e-12)


def test_global_grid_without_a_pole_row_still_reaches_both_poles():
    grid = Grid.regular(90, 0, "0.25", (720, 1440))
    assert grid.latitude_bounds[[0, -1]].tolist() == [90, -90]


def test_regional_grid_does_not_reach_for_the_pole():
    grid = Grid.regular(89, 0, 1, (10, 20))
    assert grid.latitude_bounds[0] == 89.5


def test_area_of_an_octant():
    grid = Grid((67.5, 22.5), (22.5, 67.5))
    assert grid.area.sum() == pytest.approx(np.pi / 2 * EARTH_RADIUS**2)
    assert grid.area[1, 0] / grid.area[0, 0] == pytest.approx(np.sin(np.pi / 4) / (1 - np.sin(np.pi / 4)))


def test_edges_lie_between_uneven_centers():
    assert cell_edges(np.array([0.0, 1.0, 3.0])).tolist() == [-0.5, 0.5, 2.0, 4.0]


@pytest.mark.parametrize(("west", "expected"), [(170, 0.0), (-190, 0.0), (350, 0.5), (80, 1.0)])
def test_outside_counts_centers_in_any_longitude_convention(west, expected):
    grid = Grid.regular(40, 160, 1, (20, 200))
    assert grid.outside(Grid.regular(35, west, 1, (10, 20))) == pytest.approx(expected)


def test_nothing_is_outside_a_global_grid():
    assert Grid.regular(90, 0, 1, (181, 360)).outside(Grid.regular(90, "-179.9", "0.1", (1801, 3600))) == 0


@pytest.mark.parametrize(
    ("latitude", "longitude", "message"),
    [
        ((1, 2), (0, 1), "does not decrease strictly"),
        ((2, 2), (0, 1), "does not decrease strictly"),
        ((2, 1), (350, 10), "does not increase strictly"),
        ((2, 1), tuple(range(361)), "drop the repeated cyclic column"),
        ((95, 90), (0, 1), r"needed -90\.\.90"),
        ((1,), (0, 1), "at least 2 x 2"),
        ((1, np.nan), (0, 1), "NaN"),
    ],
)
def test_grid_refuses(latitude, longitude, message):
    with pytest.raises(GridError, match=message):
        Grid(latitude, longitude)


def test_grid_lists_all_problems_at_once():
    with pytest.raises(GridError, match="2 problems"):
        Grid((1, 2), (1, 0))


def test_grid_round_trip():
    grid = gaussian(8, 16)
    assert Grid.from_dict(grid.to_dict()) == grid


def test_projected_axes_are_recovered():
    grid, y, x = lambert()
    np.testing.assert_allclose(grid.axes[0], y, atol=1e-6)
    np.testing.assert_allclose(grid.axes[1], x, atol=1e-6)


def test_axes_survive_coordinates_rounded_to_single_precision():
    grid, y, _ = lambert()
    rounded = CurvilinearGrid(grid.latitude.astype("f4"), grid.longitude.astype("f4"), LAMBERT)
    np.testing.assert_allclose(rounded.axes[0], y, atol=1)


def test_axes_of_a_rotated_pole_grid_across_its_own_dateline():
    crs = pyproj.CRS.from_cf(
        {
            "grid_mapping_name": "rotated_latitude_longitude",
            "grid_north_pole_latitude": 39.25,
            "grid_north_pole_longitude": -162.0,
        }
    )
    y, x = np.linspace(10, -10, 21), 170 + np.arange(20.0)
    grid = CurvilinearGrid(*from_projection(crs, *np.meshgrid(y, x, indexing="ij")), crs)
    np.testing.assert_allclose(np.diff(grid.axes[1]), 1, atol=1e-9)
    np.testing.assert_allclose(grid.axes[0], y, atol=1e-9)


def test_axes_refuse_another_projection():
    grid, _, _ = lambert()
    other = pyproj.CRS("+proj=lcc +lat_0=38.5 +lon_0=250 +lat_1=38.5 +lat_2=38.5 +R=6371229")
    with pytest.raises(GridError, match="do not belong to the projection"):
        _ = CurvilinearGrid(grid.latitude, grid.longitude, other).axes


def test_axes_are_unknown_without_a_projection():
    grid, _, _ = lambert()
    with pytest.raises(GridError, match="projection is not known; add one"):
        _ = CurvilinearGrid(grid.latitude, grid.longitude).axes


def test_area_of_curvilinear_cells_is_that_of_the_same_rectilinear_cells():
    regular = Grid.regular(50, 0, "0.1", (30, 40))
    grid = CurvilinearGrid(*np.meshgrid(regular.latitude, regular.longitude, indexing="ij"))
    np.testing.assert_allclose(grid.area[1:-1, 1:-1], regular.area[1:-1, 1:-1], rtol=1e-5)
    np.testing.assert_allclose(grid.area, regular.area, rtol=5e-3)


def test_curvilinear_grid_lists_all_problems():
    with pytest.raises(GridError, match=r"(?s)2 problems.*NaN.*needed -90"):
        CurvilinearGrid([[99, 1], [1, np.nan]], np.zeros((2, 2)))
    with pytest.raises(GridError, match="of one shape"):
        CurvilinearGrid(np.zeros((2, 2)), np.zeros((2, 3)))


def test_curvilinear_grid_says_what_it_is():
    grid, _, _ = lambert()
    assert "30 x 40 curvilinear, Lambert Conic Conformal" in str(grid)
    assert "projection unknown" in str(CurvilinearGrid(grid.latitude, grid.longitude))


def test_grid_of_rectilinear():
    grid = Grid.regular(50, -10, 1, (4, 5))
    ds = xr.Dataset(coords={"latitude": list(grid.latitude), "longitude": list(grid.longitude)})
    assert grid_of(ds) == grid


def test_grid_of_projected():
    grid, _, _ = lambert()
    coords = {"latitude": (("y", "x"), grid.latitude), "longitude": (("y", "x"), grid.longitude)}
    ds = xr.Dataset({"crs": ((), 0, LAMBERT.to_cf())}, coords)
    found = grid_of(ds)
    assert isinstance(found, CurvilinearGrid)
    assert found.crs == LAMBERT


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ({"lat": [2, 1], "lon": [1, 2]}, r"no coordinate latitude and longitude; found lat, lon.*ds\.rename"),
        ({"latitude": ("values", [2, 1]), "longitude": ("values", [1, 2])}, "Scattered points"),
        ({"latitude": [1, 2], "longitude": [1, 2]}, "does not decrease"),
    ],
)
def test_grid_of_refuses(coords, message):
    with pytest.raises(GridError, match=message):
        grid_of(xr.Dataset(coords=coords))


def test_unit_vectors():
    np.testing.assert_allclose(unit_vectors([0, 0, 90], [0, 90, 7]), np.eye(3), atol=1e-15)


@pytest.mark.parametrize("west", [84.0, 177.0, -1.0])
def test_surroundings_are_counted_as_the_target_counts(west):
    globe, target = Grid.regular("87.1875", "2.8125", "5.625", (32, 64)), Grid.regular("35", str(west), "0.1", (50, 60))
    rows, columns, part = surroundings(globe, target)
    assert part.shape == (rows.size, columns.size) and not part.outside(target)
    np.testing.assert_array_equal(np.array(part.longitude) % 360, np.array(globe.longitude)[columns])
    assert part.longitude[0] < west and part.longitude[-1] > west + 5.9


def test_surroundings_are_no_larger_than_needed():
    globe = Grid.regular(88, 0, 4, (44, 90))
    assert surroundings(globe, Grid.regular(50, 80, 1, (10, 10)), margin=1)[2] == Grid.regular(52, 76, 4, (4, 5))
    assert surroundings(globe, Grid.regular(50, -5, 1, (10, 10)), margin=1)[2].longitude == (-8.0, -4.0, 0.0, 4.0, 8.0)


def test_small_grids_are_taken_whole():
    few = Grid.regular(50, 80, 1, (10, 10))
    rows, columns, part = surroundings(few, few, margin=100)
    assert part == few and (rows.size, columns.size) == few.shape


def test_cells_within_another_grid():
    """Around the globe, in either count of longitude, and nowhere."""
    globe = Grid.regular("87.5", "2.5", "5", (36, 72))
    box = Grid.regular("19.5", "-9.5", "1", (20, 20))  # 20 N to the equator, 10 W to 10 E
    inside = globe.within(box)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert np.array(globe.latitude)[rows].tolist() == [17.5, 12.5, 7.5, 2.5]
    assert np.array(globe.longitude)[columns].tolist() == [2.5, 7.5, 352.5, 357.5] and inside.sum() == 16
    assert box.within(globe).all() and globe.outside(box) == 0.0
    assert not globe.within(Grid.regular("-60.1", "0.1", "0.1", (3, 3))).any()
