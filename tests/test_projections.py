import numpy as np
import pyproj
import pytest
import xarray as xr

from xscalemixer.errors import GridError
from xscalemixer.grids import grid_of
from xscalemixer.projections import crs_of, from_projection, is_grid_relative, rotate_winds, to_projection

HRRR = {
    "GRIB_gridType": "lambert",
    "GRIB_LaDInDegrees": 38.5,
    "GRIB_Latin1InDegrees": 38.5,
    "GRIB_Latin2InDegrees": 38.5,
    "GRIB_LoVInDegrees": 262.5,
}
CRSES = {
    "lambert": "+proj=lcc +lat_0=38.5 +lon_0=262.5 +lat_1=38.5 +lat_2=38.5 +R=6371229",
    "north polar": "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=-45 +R=6371229",
    "south polar": "+proj=stere +lat_0=-90 +lat_ts=-60 +lon_0=30 +R=6371229",
    "mercator": "+proj=merc +lat_ts=20 +lon_0=0 +R=6371229",
}
ROTATED = {
    "grid_mapping_name": "rotated_latitude_longitude",
    "grid_north_pole_latitude": 39.25,
    "grid_north_pole_longitude": -162.0,
    "earth_radius": 6371229.0,
}


def winds(crs, latitude, longitude, speed=10.0):
    """Winds along grid x and y of a flow that is purely eastward on the earth, by displacing each point a little."""
    step = 1e-3 / np.cos(np.deg2rad(latitude))
    y0, x0 = to_projection(crs, latitude, longitude - step)
    y1, x1 = to_projection(crs, latitude, longitude + step)
    dx, dy = x1 - x0, y1 - y0
    if crs.is_geographic:
        dx = dx * np.cos(np.deg2rad((y0 + y1) / 2))
    length = np.hypot(dx, dy)
    coords = {"latitude": (("y", "x"), latitude), "longitude": (("y", "x"), longitude)}
    make = lambda part: xr.DataArray(speed * part / length, coords, ("y", "x"), attrs={"units": "m s-1"})
    return make(dx), make(dy)


def test_crs_of_a_cf_grid_mapping():
    crs = pyproj.CRS(CRSES["lambert"])
    ds = xr.Dataset({"t": ("x", [1.0], {"grid_mapping": "proj"}), "proj": ((), 0, crs.to_cf())})
    assert crs_of(ds) == pyproj.CRS.from_cf(crs.to_cf())


def test_crs_of_reads_grid_mapping_decoded_into_encoding_and_the_long_form():
    ds = xr.Dataset({"t": ("x", [1.0]), "a": ((), 0, ROTATED), "b": ((), 0, pyproj.CRS(CRSES["mercator"]).to_cf())})
    ds["t"].encoding["grid_mapping"] = "a: rlon rlat"
    assert crs_of(ds) == pyproj.CRS.from_cf(ROTATED)


def test_crs_of_hrrr_grib_is_the_ncep_sphere():
    crs = crs_of(xr.Dataset({"t": ("x", [1.0], HRRR)}))
    assert crs.ellipsoid.semi_major_metre == 6371229
    y, x = to_projection(crs, np.array([21.138123]), np.array([237.280472]))  # first point of the HRRR domain
    assert (y[0], x[0]) == (pytest.approx(-1587306, abs=1), pytest.approx(-2697520, abs=1))


@pytest.mark.parametrize(
    ("attrs", "point"),
    [
        ({"gridType": "polar_stereographic", "LaDInDegrees": 60.0, "orientationOfTheGridInDegrees": 255.0}, (90, 0)),
        ({"gridType": "polar_stereographic", "LaDInDegrees": -60.0, "orientationOfTheGridInDegrees": 0.0,
          "projectionCentreFlag": 1}, (-90, 0)),
        ({"gridType": "mercator", "LaDInDegrees": 20.0, "longitudeOfFirstGridPointInDegrees": 190.0}, (0, 190)),
        ({"gridType": "rotated_ll", "latitudeOfSouthernPoleInDegrees": -39.25, "longitudeOfSouthernPoleInDegrees": 18.0},
         (50.75, 18)),
    ],
)  # fmt: skip
def test_crs_of_grib_puts_its_center_at_the_origin(attrs, point):
    crs = crs_of(xr.Dataset({"t": ("x", [1.0], {f"GRIB_{key}": value for key, value in attrs.items()})}))
    y, x = to_projection(crs, *np.array(point, dtype=float)[:, None])
    np.testing.assert_allclose([y[0], x[0]], 0, atol=1e-3)


@pytest.mark.parametrize("attrs", [{}, {"GRIB_gridType": "regular_ll"}, {"GRIB_gridType": "mercator"}])
def test_crs_of_nothing_known(attrs):
    assert crs_of(xr.Dataset({"t": ("x", [1.0], attrs)})) is None


def test_crs_of_refuses_two_projections():
    other = {**HRRR, "GRIB_LoVInDegrees": 250.0}
    with pytest.raises(GridError, match=r"2 different projections \(t, u\)"):
        crs_of(xr.Dataset({"t": ("x", [1.0], HRRR), "u": ("x", [1.0], other)}))


def test_crs_of_refuses_what_it_cannot_read():
    with pytest.raises(GridError, match="proj is not a grid mapping"):
        crs_of(xr.Dataset({"proj": ((), 0, {"grid_mapping_name": "no_such_projection"})}))
    with pytest.raises(GridError, match="shapeOfTheEarth is 7"):
        crs_of(xr.Dataset({"t": ("x", [1.0], {**HRRR, "GRIB_shapeOfTheEarth": 7})}))


def test_grib_earths():
    radius = {**HRRR, "GRIB_shapeOfTheEarth": 1, "GRIB_radius": 6371000.0}
    wgs84 = {**HRRR, "GRIB_shapeOfTheEarth": 5}
    assert crs_of(xr.Dataset({"t": ("x", [1.0], radius)})).ellipsoid.semi_major_metre == 6371000
    assert crs_of(xr.Dataset({"t": ("x", [1.0], wgs84)})).ellipsoid.inverse_flattening == pytest.approx(298.257, abs=1e-3)


@pytest.mark.parametrize("name", CRSES)
def test_projection_round_trip(name):
    crs = pyproj.CRS(CRSES[name])
    latitude, longitude = np.array([10.0, 40.0, -33.0]), np.array([-100.0, 20.0, 3.0])
    back = from_projection(crs, *to_projection(crs, latitude, longitude))
    np.testing.assert_allclose(back, [latitude, longitude], atol=1e-9)


def test_lambert_winds_turn_by_the_closed_form_convergence():
    crs = pyproj.CRS(CRSES["lambert"])
    latitude, longitude = np.meshgrid(np.linspace(50, 22, 8), np.linspace(-125, -65, 9), indexing="ij")
    coords = {"latitude": (("y", "x"), latitude), "longitude": (("y", "x"), longitude)}
    rng = np.random.default_rng(0)
    u, v = (xr.DataArray(rng.normal(size=latitude.shape), coords, ("y", "x")) for _ in range(2))
    eastward, northward = rotate_winds(u, v, crs)
    angle = np.sin(np.deg2rad(38.5)) * np.deg2rad(longitude + 97.5)
    np.testing.assert_allclose(eastward, u * np.cos(angle) + v * np.sin(angle), atol=1e-8)
    np.testing.assert_allclose(northward, -u * np.sin(angle) + v * np.cos(angle), atol=1e-8)


@pytest.mark.parametrize("name", [*CRSES, "rotated pole"])
def test_an_eastward_flow_comes_out_eastward(name):
    crs = pyproj.CRS(CRSES[name]) if name in CRSES else pyproj.CRS.from_cf(ROTATED)
    latitude, longitude = np.meshgrid(np.linspace(75, -75, 11), np.linspace(-170, 70, 13), indexing="ij")
    if name != "mercator":
        latitude = np.abs(latitude) * (-1 if "south" in name else 1)
    eastward, northward = rotate_winds(*winds(crs, latitude, longitude), crs)
    np.testing.assert_allclose(eastward, 10, atol=1e-5)
    np.testing.assert_allclose(northward, 0, atol=1e-4)


def test_winds_at_the_pole_have_a_direction():
    crs = pyproj.CRS(CRSES["north polar"])
    coords = {"latitude": (("y", "x"), [[90.0]]), "longitude": (("y", "x"), [[-45.0]])}
    u, v = (xr.DataArray([[value]], coords, ("y", "x")) for value in (3.0, 4.0))
    eastward, northward = rotate_winds(u, v, crs)
    assert (eastward.item(), northward.item()) == (pytest.approx(3), pytest.approx(4))


def test_rotation_keeps_speed_dtype_order_chunks_and_attributes():
    crs = pyproj.CRS(CRSES["lambert"])
    u, v = winds(crs, *np.meshgrid([40.0, 30.0], [-120.0, -110.0, -80.0], indexing="ij"))
    u, v = (w.astype("f4").expand_dims(time=4).chunk(time=1).rename(n) for w, n in ((u, "u10"), (v, "v10")))
    u.attrs |= {"standard_name": "x_wind", "GRIB_uvRelativeToGrid": 1}
    u["latitude"].attrs["units"] = "degrees_north"
    eastward, northward = rotate_winds(u, v, crs)
    assert eastward.chunks == u.chunks
    assert (eastward.dtype, eastward.dims, eastward.name) == (np.float32, ("time", "y", "x"), "u10")
    assert eastward.attrs == {"units": "m s-1", "standard_name": "eastward_wind", "GRIB_uvRelativeToGrid": 0}
    assert northward.attrs == {"units": "m s-1", "standard_name": "northward_wind"}
    assert eastward["latitude"].attrs == {"units": "degrees_north"}
    np.testing.assert_allclose(np.hypot(eastward, northward), 10, rtol=1e-6)


def test_rotation_needs_a_projection():
    u = xr.DataArray([[1.0]], {"latitude": (("y", "x"), [[1.0]]), "longitude": (("y", "x"), [[1.0]])}, ("y", "x"))
    with pytest.raises(GridError, match=r"grid-relative winds cannot be turned(?s:.*)needed a grid_mapping"):
        rotate_winds(u, u, None)


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ({"standard_name": "x_wind"}, True),
        ({"standard_name": "grid_northward_wind"}, True),
        ({"GRIB_cfName": "northward_wind", "GRIB_uvRelativeToGrid": 1}, True),
        ({"GRIB_cfName": "northward_wind", "GRIB_uvRelativeToGrid": 0}, False),
        ({"standard_name": "air_temperature", "GRIB_uvRelativeToGrid": 1}, False),
    ],
)
def test_is_grid_relative(attrs, expected):
    assert is_grid_relative(xr.DataArray(0.0, attrs=attrs)) is expected


def test_hrrr_file_is_lambert_with_3_km_steps(shared_data):
    pytest.importorskip("cfgrib")
    path = sorted((shared_data / "real" / "hrrr_idaho").glob("*.grib2"))[0]
    keys = {"typeOfLevel": "heightAboveGround", "level": 10, "stepType": "instant"}
    with xr.open_dataset(path, engine="cfgrib", backend_kwargs={"indexpath": "", "filter_by_keys": keys}) as ds:
        for axis in grid_of(ds).axes:
            np.testing.assert_allclose(np.diff(axis), 3000, atol=0.5)
        eastward, northward = rotate_winds(ds["u10"], ds["v10"], crs_of(ds))
        np.testing.assert_allclose(np.hypot(eastward, northward), np.hypot(ds["u10"], ds["v10"]), atol=1e-5)


def test_arome_file_says_nothing_but_fits_its_projection(shared_data):
    with xr.open_dataset(shared_data / "real" / "arome_arctic_20180710.nc") as ds:
        assert crs_of(ds) is None
        crs = pyproj.CRS("+proj=lcc +lat_0=77.5 +lon_0=-25 +lat_1=77.5 +lat_2=77.5 +R=6367470")
        for axis in grid_of(ds.assign(crs=((), 0, crs.to_cf()))).axes:
            np.testing.assert_allclose(np.abs(np.diff(axis)), 2500, atol=0.5)
