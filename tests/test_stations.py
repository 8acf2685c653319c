import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import xscalemixer as xsm
from xscalemixer.errors import GridError, InputError, SchemaError, TimeError
from xscalemixer.grids import Grid
from xscalemixer.physics import humidity
from xscalemixer.physics.pressure import pressure_at_altitude

HOURS = pd.date_range("2020-01-01", periods=3, freq="h")


def frame(**columns):
    """Two stations at three hours, with these columns instead or besides."""
    base = {
        "station": ["a"] * 3 + ["b"] * 3, "time": [*HOURS, *HOURS], "lat": [50.0] * 3 + [51.0] * 3, "lon": [7.0] * 3 + [8.5] * 3,
        "elevation (m)": [100.0] * 3 + [np.nan] * 3, "t2m [K]": 280.0 + np.arange(6),
    }  # fmt: skip
    return pd.DataFrame({name: values for name, values in (base | columns).items() if values is not None})


def report(ds):
    return ds.attrs["report"]


# reading


def test_a_table():
    ds = xsm.read_stations(frame())
    assert ds["t2m"].dims == ("time", "station") and ds["t2m"].dtype == "f4" and ds["t2m"].attrs["units"] == "K"
    np.testing.assert_array_equal(ds["t2m"], [[280, 283], [281, 284], [282, 285]])
    assert ds["station"].values.tolist() == ["a", "b"] and ds["longitude"].values.tolist() == [7.0, 8.5]
    np.testing.assert_array_equal(ds["altitude"], [100, np.nan])
    xr.testing.assert_identical(xsm.read_stations(ds).drop_attrs(), ds.drop_attrs())


def series():
    ds = xsm.read_stations(frame()).rename(station="site").assign_attrs(featureType="timeSeries")
    ds["site"].attrs["cf_role"] = "timeseries_id"
    return ds


FORMS = {
    "shuffled": lambda: frame().sample(frac=1, random_state=1),
    "indexed": lambda: frame().set_index(["time", "station"]),
    "other names": lambda: frame().rename(columns={"station": "wmo", "time": "valid", "lat": "Latitude", "t2m [K]": "T2M (K)"}),
    "text": lambda: frame().astype({"time": str, "t2m [K]": str}),
    "zone": lambda: frame(time=[*(HOURS.tz_localize("UTC").tz_convert("Asia/Tokyo"))] * 2),
    "minutes": lambda: frame(time=[*(HOURS - pd.Timedelta("9min"))] * 2),
    "points": lambda: frame().rename(columns={"t2m [K]": "t2m", "elevation (m)": "alt"}).rename_axis("obs").to_xarray().assign(
        t2m=("obs", 280.0 + np.arange(6), {"units": "K"}), alt=("obs", frame()["elevation (m)"], {"units": "m"})),
    "series": series,
    "lazy series": lambda: series().chunk(time=1),
    "transposed": lambda: series().transpose(),
    "ten minutes late": lambda: series().assign_coords(time=series()["time"] + np.timedelta64(10, "m")),
    "bytes": lambda: series().assign_coords(site=("site", np.array([b"a ", b"b "]), {"cf_role": "timeseries_id"})),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_form_does_not_matter(form):
    xr.testing.assert_equal(xsm.read_stations(form()), xsm.read_stations(frame()))


def test_lazy_series_stay_lazy():
    assert xsm.read_stations(series().chunk(time=1))["t2m"].chunks is not None


@pytest.mark.parametrize("kind", ["contiguous", "indexed"])
def test_ragged_arrays(kind):
    index = {"contiguous": ("row_size", ("site", [2, 1], {"sample_dimension": "obs"})),
             "indexed": ("parent", ("obs", [0, 0, 1], {"instance_dimension": "site"}))}[kind]  # fmt: skip
    name = ("site", ["a", "b"], {"cf_role": "timeseries_id"})
    ds = xr.Dataset(
        {"t2m": ("obs", [280.0, 281, 282], {"units": "K"}), "id": name, index[0]: index[1]},
        {"time": ("obs", HOURS[[0, 1, 1]]), "lat": ("site", [50.0, 51]), "lon": ("site", [7.0, 8])},
    )
    np.testing.assert_array_equal(xsm.read_stations(ds)["t2m"], [[280, np.nan], [281, 282]])


@pytest.mark.parametrize(("units", "value", "kelvin"), [("degC", 10, 283.15), ("degF", 50, 283.15), ("K", 283.15, 283.15)])
def test_units(units, value, kelvin):
    ds = xsm.read_stations(frame(**{"t2m [K]": None, "t2m": float(value)}), units={"t2m": units})
    np.testing.assert_allclose(ds["t2m"], kelvin, rtol=1e-6)


def test_okta_knots_hectopascals_and_percent():
    columns = {"tcc [okta]": 4, "ff [knots]": 10, "sp [hPa]": 990, "rh [%]": 80, "t2m [K]": None}
    ds = xsm.read_stations(frame(**columns)).isel(time=0, station=0)
    np.testing.assert_allclose([ds["tcc"], ds["ws10"], ds["sp"], ds["r2m"]], [0.5, 5.14444, 99000, 0.8], rtol=1e-5)


def test_names_of_documented_formats_say_their_units():
    asos = frame(
        **{"t2m [K]": None, "elevation (m)": None, "time": None, "valid": [*HOURS] * 2, "tmpf": 50.0, "sknt": 10.0, "drct": "M"}
    )
    ds = xsm.read_stations(asos)
    np.testing.assert_allclose(ds["t2m"], 283.15, rtol=1e-6)
    assert ds["wd10"].isnull().all() and "6 texts such as 'M' are no values" in report(ds)
    assert "Iowa Environmental Mesonet" in report(ds)


def test_units_are_not_told_from_values():
    bare = frame(**{"t2m [K]": None, "elevation (m)": None, "temp": 280.0, "elev": 100.0})
    with pytest.raises(SchemaError, match=r'2 problems(?s:.)*Rename it "temp \[degC\]", or(?s:.)*units=\{"elev": "m"\}'):
        xsm.read_stations(bare)
    with pytest.raises(SchemaError, match="no column 'tmp'"):
        xsm.read_stations(bare, units={"temp": "K", "elev": "m", "tmp": "K"})
    with pytest.raises(SchemaError, match="t2m: 6 of 6 values are outside 170..345 K"):
        xsm.read_stations(bare, units={"temp": "degC", "elev": "m"})


def test_datasets_are_told_what_to_type_for_datasets():
    bare = xsm.read_stations(frame()).drop_attrs()
    with pytest.raises(
        SchemaError, match=r'ds\["t2m"\].attrs\["units"\] = "degC", or(?s:.)*ds\["altitude"\].attrs\["units"\] = "m"'
    ):
        xsm.read_stations(bare)
    with pytest.raises(SchemaError, match=r'Rename yours: ds.rename\(\{"NAME": "latitude"\}\)'):
        xsm.read_stations(bare.rename(latitude="where"))


def test_all_problems_at_once():
    with pytest.raises(InputError, match=r"3 problems(?s:.)*no latitude among(?s:.)*no time among(?s:.)*nothing known"):
        xsm.read_stations(frame(lat=None, time=None, **{"t2m [K]": None}))
    with pytest.raises(SchemaError, match="'t2m', '2t' all look like it"):
        xsm.read_stations(frame(**{"t2m [K]": None, "t2m": 280.0, "2t": 281.0}), units={"t2m": "K"})
    with pytest.raises(TimeError, match="holds numbers"):
        xsm.read_stations(frame(time=2020010100))


@pytest.mark.parametrize("code", [-999.9, -9999, 9.969209968386869e36])
def test_missing_codes(code):
    values = [280, code, 282, 283, 284, 285]
    for source in (frame(**{"t2m [K]": values}), frame(**{"t2m [K]": values, "elevation (m)": code})):
        ds = xsm.read_stations(source)
        assert int(ds["t2m"].isnull().sum()) == 1 and "1 missing codes" in report(ds)
    assert ds["altitude"].isnull().all()
    raw = series()
    raw["t2m"][1, 0] = code
    assert "1 missing codes" in report(xsm.read_stations(raw))


def test_values_that_cannot_be():
    ds = xsm.read_stations(frame(**{"t2m [K]": [280, 400, 282, 283, 284, 285], "d2m [K]": [280.4, 280, 283, 280, 280, 280]}))
    assert np.isnan(ds["t2m"].sel(station="a")).values.tolist() == [False, True, True]
    assert np.isnan(ds["d2m"].sel(station="a")).values.tolist() == [False, False, True]
    assert "t2m: 4 values at 2 stations; set to missing: 1 out of range, 1 dew point above temperature" in report(ds)


def test_calm_has_no_direction_and_north_is_360():
    ds = xsm.read_stations(frame(**{"ws [m/s]": [0.0, 0, 5, 5, 5, 5], "wd [degree]": [360, np.nan, 0, 360, 90, np.nan]}))
    np.testing.assert_array_equal(ds["wd10"].T, [[0, 0, 360], [360, 90, np.nan]])


def test_flags_of_madis():
    madis = {"timeObs": [*HOURS] * 2, "stationName": list("aaabbb"), "temperature": 280.0, "temperatureDD": list("VSQXZB")}
    ds = xsm.read_stations(frame(station=None, time=None, **{"t2m [K]": None, "elevation (m)": None}).assign(**madis))
    np.testing.assert_array_equal(ds["t2m"].notnull().T, [[1, 1, 0], [0, 1, 0]])
    assert "3 missing codes or rejected by their flag" in report(ds)


def test_each_value_is_from_the_nearest_report_that_has_it():
    early = frame(time=[*(HOURS - pd.Timedelta("12min"))] * 2, **{"t2m [K]": 270.0, "d2m [K]": 260.0})
    late = frame(time=[*(HOURS + pd.Timedelta("5min"))] * 2, **{"d2m [K]": np.nan})
    ds = xsm.read_stations(pd.concat([early, late]))
    np.testing.assert_array_equal(ds["t2m"], xsm.read_stations(frame())["t2m"])
    np.testing.assert_array_equal(ds["d2m"], 260)
    assert "12 of 12 reports within 15 minutes of a full hour, 12 of them moved to it; 6 further" in report(ds)
    assert "6 of 12 reports within 5 minutes" in report(xsm.read_stations(pd.concat([early, late]), tolerance=5))
    with pytest.raises(TimeError, match="none of 6 reports is within 3 minutes"):
        xsm.read_stations(late, tolerance=3)


def test_duplicates():
    twice = pd.concat([frame(), frame()])
    xr.testing.assert_equal(xsm.read_stations(twice), xsm.read_stations(frame()))
    other = frame(**{"t2m [K]": [280.0, 281, 290, 283, 284, 285]})
    ds = xsm.read_stations(pd.concat([frame(), other]))
    assert int(ds["t2m"].isnull().sum()) == 1 and "2 contradict" not in report(ds)
    assert (
        "1 contradict another one of the same station and time in t2m; these values are set to missing: a at 2020-01-01T02:00"
        in report(ds)
    )
    with pytest.raises(SchemaError, match=r"1 ids are used in several places: a \(a at 50 N 7 E; 50.5 N 7 E\)"):
        xsm.read_stations(pd.concat([frame(), frame(lat=[50.5] * 3 + [51.0] * 3)]))


def test_duplicated_ids_of_a_series():
    ds = series()
    double = xr.concat([ds, ds.isel(site=[0])], "site")
    xr.testing.assert_equal(xsm.read_stations(double), xsm.read_stations(frame()))
    away = double.assign_coords(latitude=("site", [50.0, 51, 60]))
    with pytest.raises(SchemaError, match="used in several places"):
        xsm.read_stations(away)


def test_reports_without_a_place_are_left_out():
    ds = xsm.read_stations(frame(lat=[50.0, 50, 50, -9999, 51, 51]))
    assert "1 of 6 left out: no valid position or time" in report(ds) and np.isnan(ds["t2m"].sel(station="b")[0])


@pytest.mark.parametrize("suffix", ["csv", "parquet", "nc"])
def test_files(tmp_path, suffix):
    path = tmp_path / f"reports.{suffix}"
    {"csv": lambda: frame().to_csv(path, index=False), "parquet": lambda: frame().to_parquet(path),
     "nc": lambda: xsm.read_stations(frame()).to_netcdf(path)}[suffix]()  # fmt: skip
    with xsm.read_stations(path) as ds:
        xr.testing.assert_equal(ds.load(), xsm.read_stations(frame()))


def test_what_is_no_source(tmp_path):
    with pytest.raises(SchemaError, match="found a list"):
        xsm.read_stations([1])
    with pytest.raises(GridError, match="5 x 9 cells of a grid(?s:.)*xsm.at_stations"):
        xsm.read_stations(field(280.0).isel(reference_time=0, lead_time=0).assign_coords(time=HOURS[0]))
    with pytest.raises(SchemaError, match="no valid position in 0 rows"):
        xsm.at_stations(field(280.0), frame().iloc[:0])
    with pytest.raises(InputError, match="does not exist"):
        xsm.read_stations(tmp_path / "no.parquet")
    with pytest.raises(InputError, match="needed 0 to 30 minutes"):
        xsm.read_stations(frame(), tolerance=60)


# at stations

GRID = Grid.regular(52, 6, "0.5", (5, 9))
WORLD = Grid.regular(80, 0, "10", (17, 36))


def field(values, grid=GRID, name="t2m", units="K", **others):
    """A forecast with one start and two lead times; values of shape (H, W)."""
    dims = ("reference_time", "lead_time", "latitude", "longitude")
    coords = {"reference_time": [HOURS.values[0]], "lead_time": ("lead_time", [1, 2], {"units": "hours"})}
    coords |= {"latitude": list(grid.latitude), "longitude": list(grid.longitude)}
    full = lambda v: np.broadcast_to(v, (1, 2, *grid.shape)).astype("f4")
    fields = {name: (dims, full(values), {"units": units})} | {n: (dims, full(v), {"units": u}) for n, (v, u) in others.items()}
    return xr.Dataset(fields, coords)


def places(latitude, longitude, altitude=np.nan):
    n = len(latitude)
    coords = {"latitude": ("station", latitude), "longitude": ("station", longitude), "station": [f"s{i}" for i in range(n)]}
    return xr.Dataset(coords=coords | {"altitude": ("station", np.broadcast_to(np.float64(altitude), n), {"units": "m"})})


def plane(grid=GRID):
    return 280 + 2 * np.array(grid.latitude)[:, None] - np.array(grid.longitude)


def with_orog(fc, values):
    orog = np.broadcast_to(np.asarray(values, "f4"), GRID.shape)
    return fc.assign(orog=(("latitude", "longitude"), orog, {"units": "m", "standard_name": "surface_altitude"}))


def test_a_linear_field_is_interpolated_exactly():
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(50, 52, 40), rng.uniform(6, 10, 40)
    out = xsm.at_stations(field(plane()), places(lat, lon))
    assert out["t2m"].dims == ("reference_time", "lead_time", "station") and out["t2m"].attrs["units"] == "K"
    np.testing.assert_allclose(out["t2m"][0, 0], 280 + 2 * lat - lon, atol=1e-4)


CHANGES = {
    "south first": lambda fc: fc.isel(latitude=slice(None, None, -1)),
    "west as negative": lambda fc: fc.assign_coords(longitude=fc["longitude"] - 360),
    "dims": lambda fc: fc.transpose("longitude", ...),
    "name": lambda fc: fc.rename(t2m="2m_temperature", latitude="lat", longitude="lon"),
    "cfgrib": xsm.to_cfgrib,
    "lazy": lambda fc: fc.chunk(latitude=2, lead_time=1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_layout_does_not_matter(change):
    fc, stations = xsm.to_forecast(field(plane())), places([50.3, 51.2], [6.1, 9.9])
    xr.testing.assert_allclose(xsm.at_stations(change(fc), stations), xsm.at_stations(fc, stations))


def test_lazy_forecasts_stay_lazy():
    out = xsm.at_stations(with_orog(field(plane()).chunk(lead_time=1), 100.0), places([50.3], [6.1], 300.0))
    assert out["t2m"].chunks is not None


@pytest.mark.parametrize("longitude", [-175.0, 185.0])
def test_around_the_date_line_and_greenwich(longitude):
    wave = lambda lon: 280 + 10 * np.cos(np.deg2rad(lon))
    fc = field(np.broadcast_to(wave(np.array(WORLD.longitude)), WORLD.shape), WORLD)
    middle = (wave(180) + wave(190)) / 2
    np.testing.assert_allclose(xsm.at_stations(fc, places([0.0], [longitude]))["t2m"], middle, rtol=1e-6)
    ends = xsm.at_stations(fc, places([0.0, 0.0], [-5.0, 355.0]))["t2m"]
    np.testing.assert_allclose(ends, (wave(350) + wave(0)) / 2, rtol=1e-6)


def test_nothing_is_extrapolated():
    stations = places([51.0, 52.1, 51.0, np.nan], [7.0, 7.0, 5.9, 7.0])
    for method in ("bilinear", "nearest"):
        out = xsm.at_stations(field(plane()), stations, method=method)
        assert out["station"].values.tolist() == ["s0"] and "3 of 4 are outside the grid" in report(out)
    with pytest.raises(GridError, match=r"no station is inside the grid(?s:.)*60.00..60.00 N, 7.00..7.00 E; the grid is 5 x 9"):
        xsm.at_stations(field(plane()), places([60.0], [7.0]))


def test_nearest_cell_and_its_distance():
    fc, stations = field(plane()), places([51.1, 51.24], [7.1, 7.24])
    out = xsm.at_stations(fc, stations, method="nearest")
    np.testing.assert_allclose(out["t2m"], 280 + 2 * 51 - 7)
    near = xsm.at_stations(fc, stations, method="nearest", max_distance=20e3)
    assert near["station"].values.tolist() == ["s0"] and "1 of 2 are more than 20000 m" in report(near)


def test_a_gap_is_not_interpolated_over():
    values = plane()
    values[2, 3] = np.nan
    out = xsm.at_stations(field(values), places([51.1, 51.0], [7.4, 8.0]))["t2m"]
    assert np.isnan(out[..., 0]).all() and np.isfinite(out[..., 1]).all()


def bent(fc, crs=None):
    rows, columns = np.meshgrid(np.arange(GRID.shape[0]), np.arange(GRID.shape[1]), indexing="ij")
    turned = {
        "latitude": (("y", "x"), 52 - 0.4 * rows + 0.05 * columns),
        "longitude": (("y", "x"), 6 + 0.4 * columns + 0.05 * rows),
    }
    return fc.rename(latitude="y", longitude="x").drop_vars(["y", "x"]).assign_coords(turned)


def test_curvilinear_grids_without_projection_take_the_nearest_cell():
    fc = bent(field(np.arange(45.0).reshape(5, 9) + 280))
    stations = places([52 - 0.8 + 0.15, 52 - 0.8 + 0.16, 40.0], [6 + 1.2 + 0.1, 6 + 1.2 + 0.12, 7.0])
    with pytest.raises(GridError, match='method="nearest"'):
        xsm.at_stations(fc, stations)
    out = xsm.at_stations(fc, stations, method="nearest")
    np.testing.assert_array_equal(out["t2m"][0, 0], 280 + 2 * 9 + 3)
    assert out.sizes["station"] == 2


def test_projected_grids_are_interpolated_in_their_plane():
    import pyproj

    crs = pyproj.CRS("+proj=lcc +lat_1=50 +lat_2=50 +lat_0=50 +lon_0=8 +R=6371229")
    x, y = np.meshgrid(np.arange(-4, 5) * 2e4, np.arange(2, -3, -1) * 2e4)
    lon, lat = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(x, y)
    fc = field(280 + x / 1e4 - y / 1e4).rename(latitude="y", longitude="x").drop_vars(["y", "x"])
    fc = fc.assign_coords(latitude=(("y", "x"), lat), longitude=(("y", "x"), lon)).assign(crs=((), 0, crs.to_cf()))
    east, north = pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform(8.3, 50.1)
    out = xsm.at_stations(fc, places([50.1], [8.3]))
    np.testing.assert_allclose(out["t2m"], 280 + east / 1e4 - north / 1e4, rtol=1e-5)


def test_an_analysis_with_levels_and_members():
    level = field(plane(), name="t").isel(reference_time=0, lead_time=0, drop=True)
    ds = level.expand_dims(time=HOURS[:2], number=[0, 1], level=[500, 850]).assign(t2m=level["t"].expand_dims(time=HOURS[:2]))
    ds["level"].attrs["units"] = "hPa"
    ds = ds.rename(number="member")
    ds["t2m"].attrs = ds["t"].attrs = {"units": "K"}
    out = xsm.at_stations(ds, places([51.25], [7.25]))
    assert out["t"].dims == ("time", "member", "level", "station") and out["t2m"].dims == ("time", "station")
    np.testing.assert_allclose(out["t"], 280 + 2 * 51.25 - 7.25, rtol=1e-6)


# heights


def test_a_field_linear_in_height_is_corrected_exactly_once():
    hills = 200 + 50 * np.array(GRID.latitude)[:, None] % 100 + 0 * np.array(GRID.longitude)
    profile = lambda z: 290 - 0.0065 * z
    fc = with_orog(field(profile(hills), d2m=(profile(hills) - 3, "K")), hills)
    stations = places([50.3, 51.8], [6.2, 9.1], [0.0, 400.0])
    out = xsm.at_stations(fc, stations)
    np.testing.assert_allclose(out["t2m"][0, 0], profile(np.array([0, 400])), atol=1e-3)
    np.testing.assert_allclose(out["t2m"] - out["d2m"], 3, atol=1e-3)
    np.testing.assert_allclose(out["orog"], [0, 400], atol=1e-3)
    xr.testing.assert_allclose(xsm.at_stations(out, stations), out)
    assert out["t2m"].attrs["height_correction"] == "6.5 K km-1"


def test_correction_later_is_the_same_as_at_once():
    fc, stations = with_orog(field(280.0, sp=(9e4, "Pa")), 500.0), places([50.3], [6.2], 300.0)
    later = xsm.at_stations(xsm.at_stations(fc, stations, height_correction=False), stations)
    xr.testing.assert_allclose(later, xsm.at_stations(fc, stations))
    np.testing.assert_allclose(later["t2m"], 281.3, rtol=1e-6)
    np.testing.assert_allclose(later["sp"], pressure_at_altitude(9e4, 500.0, 300.0, 281.3), rtol=1e-6)


def test_what_is_not_corrected_is_said():
    fc = with_orog(field(280.0, sp=(9e4, "Pa"), u10=(3.0, "m s-1")), 100.0)
    stations = places([50.3, 50.3, 50.3], [6.2, 6.3, 6.4], [np.nan, 700.0, 300.0])
    out = xsm.at_stations(fc, stations)
    assert out["station"].values.tolist() == ["s0", "s2"] and out["t2m"][0, 0, 0] == 280
    assert "1 of 3 stations differ by more than 500 m" in report(out) and "s1 (+600 m)" in report(out)
    assert "unknown at 1 of 2 stations" in report(out) and "200 m away on average" in report(out)
    np.testing.assert_array_equal(out["u10"], 3)
    assert xsm.at_stations(fc, stations, max_height_difference=None).sizes["station"] == 3
    assert "the forecast has no orog" in report(xsm.at_stations(fc.drop_vars("orog"), stations))
    with pytest.raises(GridError, match="no station is left"):
        xsm.at_stations(fc, stations.isel(station=[1]))


def test_arguments_of_at_stations():
    with pytest.raises(InputError, match=r"2 problems(?s:.)*method='cubic'(?s:.)*max_distance=0"):
        xsm.at_stations(field(280.0), places([50.3], [6.2]), method="cubic", max_distance=0)


def test_other_stations_of_the_same_name():
    out = xsm.at_stations(field(plane()), places([50.3, 51.0], [6.2, 7.0]))
    assert xsm.at_stations(out, places([50.3], [6.2])).sizes["station"] == 1
    assert xsm.at_stations(out, places([50.3], [-353.8])).sizes["station"] == 1
    for place in ([51.3], [6.2]), ([50.3], [6.5]):
        where = rf"(50.3 N 6.2 E, asked for at {place[0][0]} N {place[1][0]} E)"
        with pytest.raises(GridError, match=f"not the same stations(?s:.)*1 ids are in other places: .* {re.escape(where)}"):
            xsm.at_stations(out, places(*place))


# what stations report


def test_wind_speed_is_computed_before_interpolation():
    east = np.where(np.arange(9) % 2 == 0, 4.0, -4.0) * np.ones(GRID.shape)
    out = xsm.at_stations(field(east, name="u10", units="m s-1", v10=(3.0, "m s-1")), places([51.0], [6.25]))
    np.testing.assert_allclose([out["u10"][0, 0, 0], out["ws10"][0, 0, 0]], [0, 5], atol=1e-6)


def test_dew_point_from_specific_humidity():
    fc = field(humidity.specific_humidity_from_dew_point(283.15, 9.5e4), name="q2m", units="kg kg-1", sp=(9.5e4, "Pa"))
    np.testing.assert_allclose(xsm.at_stations(fc, places([51.0], [7.0]))["d2m"], 283.15, atol=1e-3)


def test_a_direction_is_not_interpolated():
    direction = np.where(np.arange(9) % 2 == 0, 350.0, 10.0) * np.ones(GRID.shape)
    out = xsm.at_stations(field(5.0, name="ws10", units="m s-1", wd10=(direction, "degree")), places([51.0], [6.25]))
    assert "wd10" not in out and float(out["v10"][0, 0, 0]) == pytest.approx(-5 * np.cos(np.deg2rad(10)), rel=1e-5)
    assert abs(float(out["u10"][0, 0, 0])) < 1e-5


@pytest.mark.parametrize(
    ("u", "v", "direction"), [(0, -5, 360), (0, 5, 180), (5, 0, 270), (-5, 0, 90), (0, 0, 0), (np.nan, 1, np.nan)]
)
def test_direction_of_the_wind(u, v, direction):
    fc = field(u, name="u10", units="m s-1", v10=(v, "m s-1"))
    schema = xsm.variables.Schema.of("wd10", "ws10")
    found = xsm.conform.translate(fc.isel(reference_time=0, drop=True), schema, xsm.Report(""), dims=("lead_time",))
    np.testing.assert_allclose(found["wd10"], direction, atol=1e-4)
    np.testing.assert_allclose(found["ws10"], np.hypot(u, v))
    back = xsm.conform.translate(found, xsm.variables.Schema.of("u10", "v10"), xsm.Report(""), dims=("lead_time",))
    np.testing.assert_allclose([back["u10"][0, 0, 0], back["v10"][0, 0, 0]], [u, v if np.isfinite(u) else np.nan], atol=1e-6)


# real files


def test_synop(shared_data):
    ds = xsm.read_stations(shared_data / "real" / "synop" / "synop_20190217_48h.nc")
    assert dict(ds.sizes) == {"time": 48, "station": 8451}
    assert "t2m: 154616 values at 7834 stations; set to missing: 12 out of range" in report(ds)
    assert float(ds["tcc"].max()) <= 1.01 and float(ds["msl"].min()) > 8e4


def test_metar(shared_data):
    ds = xsm.read_stations(shared_data / "real" / "synop" / "metar_202001.parquet")
    assert ds.sizes["station"] == 12 and "MADIS" in report(ds) and "339 missing codes or rejected" in report(ds)
    assert ((ds["wd10"] == 0) == (ds["ws10"] == 0)).all()


def test_arpege_and_era5_agree(shared_data):
    pytest.importorskip("cfgrib")
    real = shared_data / "real"
    fc = xsm.open(real / "meteonet_nw" / "arpege_2m_NW_20180501000000.grib")
    era5 = xr.open_dataset(real / "era5_cornwall" / "data_stream-oper_stepType-instant.nc")[["t2m", "d2m"]].isel(
        valid_time=slice(25)
    )
    cells = places(*(axis.ravel() for axis in np.meshgrid(era5["latitude"], era5["longitude"], indexing="ij")))
    truth = xsm.at_stations(era5, cells)
    sc = xsm.score(fc, truth, metrics=["rmse"], by="variable")
    assert sc["t2m"].sel(metric="count") == 750 and float(sc["t2m"].sel(metric="rmse")) == pytest.approx(0.685, abs=0.005)


def test_parquet_without_its_package_says_what_to_install(monkeypatch, tmp_path):
    path = tmp_path / "reports.parquet"
    path.touch()
    monkeypatch.setattr("pandas.io.parquet.get_engine", lambda engine: (_ for _ in ()).throw(ImportError("no engine")))
    with pytest.raises(ImportError, match=r"pip install 'xscalemixer\[tables\]'"):
        xsm.read_stations(path)
