"""Surface fields carried to relief: recovery of known worlds, laziness, layouts, and what is said when it cannot be done."""

import json

import numpy as np
import pytest
import xarray as xr
from dask.base import is_dask_collection
from worlds import globe

import xscalemixer as xsm
from xscalemixer import carrying
from xscalemixer.conform import conform
from xscalemixer.grids import Grid, grid_of
from xscalemixer.output import forecast_dataset
from xscalemixer.physics import humidity
from xscalemixer.physics.pressure import GRAVITY, R_DRY
from xscalemixer.physics.solar import hourly_insolation
from xscalemixer.regridding import regrid
from xscalemixer.variables import CATALOG, REGIONAL, Schema

HOURS = np.datetime64("2020-06-01T00", "ns") + np.arange(3) * np.timedelta64(4, "h")
LAPSE = 5e-3


def relief(west=84.0, north=34.0, step=0.1, shape=(50, 60), amplitude=900.0):
    """Ridges and valleys around the smooth hills of `world`."""
    lat, lon = north - step * np.arange(shape[0]), west + step * np.arange(shape[1])
    rough = amplitude * np.sin(2 * np.pi * lon / 0.9) * np.cos(2 * np.pi * lat[:, None] / 1.1)
    height = np.maximum(hills(lat[:, None], lon) + rough, 0.0)
    return xr.DataArray(height, {"latitude": lat, "longitude": lon}, ("latitude", "longitude"), attrs={"units": "m"})


def hills(lat, lon):
    return 2000 + 800 * np.sin(np.deg2rad(20 * lon)) * np.cos(np.deg2rad(25 * lat))


def world(lat=None, lon=None, times=HOURS, height=None):
    """Temperature linear in height, standard pressure, 60 % humidity, uniform wind, 70 % of the sun."""
    lat = np.arange(40, 20, -1.0) if lat is None else lat
    lon = np.arange(75, 100, 1.0) if lon is None else lon
    height = hills(lat[:, None], lon) if height is None else height
    t2m = 300 - LAPSE * height + 0.2 * (lat[:, None] - 30) + 0 * lon
    sp = 101325.0 * (t2m / (t2m + LAPSE * height)) ** (GRAVITY / (R_DRY * LAPSE))
    fields = {
        "t2m": t2m,
        "u10": np.full(t2m.shape, 6.0),
        "v10": np.full(t2m.shape, -2.0),
        "q2m": humidity.specific_humidity_from_relative_humidity(0.6, t2m, sp),
        "sp": sp,
        "tcc": np.full(t2m.shape, 0.3),
        "ssrd": 0.7 * hourly_insolation(times, lat[:, None], lon[None, :]),
    }
    shape = (len(times), lat.size, lon.size)
    dims = ("time", "latitude", "longitude")
    ds = xr.Dataset(coords={"time": times, "latitude": lat, "longitude": lon})
    for name, values in fields.items():
        ds[name] = dims, np.broadcast_to(values, shape).astype("f4"), {"units": CATALOG[name].units}
    ds["orog"] = dims[1:], height.astype("f4"), {"units": "m"}
    return ds


def relative_humidity(ds):
    return humidity.vapor_pressure(ds["q2m"], ds["sp"]) / humidity.saturation_vapor_pressure(ds["t2m"])


@pytest.fixture(scope="module")
def carried():
    return world().scalemixer.terrain(relief())


def test_the_result_is_canonical_and_complete(carried):
    assert list(carried) == [*REGIONAL.names, "orog"]
    assert all(array.dtype == np.float32 and not array.isnull().any() for array in carried.values())
    assert carried["t2m"].dims == ("time", "latitude", "longitude")
    assert grid_of(carried) == grid_of(relief())
    assert carried["sp"].attrs["standard_name"] == "surface_air_pressure"
    assert any("bicubic from" in line for line in json.loads(carried.attrs["assumptions"]))


def test_a_world_linear_in_height_is_recovered(carried):
    truth = 300 - LAPSE * relief() + 0.2 * (relief()["latitude"] - 30)
    np.testing.assert_allclose(carried["t2m"][0], truth, atol=0.02)


def test_pressure_is_hypsometric():
    out = world().drop_vars("q2m").scalemixer.terrain(relief())
    ground = 300 + 0.2 * (relief()["latitude"] - 30)
    expected = 101325 * (1 - LAPSE * relief() / ground) ** (GRAVITY / (R_DRY * LAPSE))
    np.testing.assert_allclose(out["sp"][0], expected, rtol=2e-4)


def test_moist_air_is_lighter(carried):
    dry = world().drop_vars("q2m").scalemixer.terrain(relief())
    coarse = regrid(world(), grid_of(relief()))
    deep = (relief() - coarse["orog"] < -500).values
    assert (dry["sp"].values > carried["sp"].values)[:, deep].all()


def test_block_means_of_pressure_stay_those_of_the_data():
    ds = world()
    means = regrid(ds.scalemixer.terrain(relief())[["sp"]], Grid.regular("33.4", "84.6", "1", (4, 4)), method="conservative")
    heights = regrid(relief().to_dataset(name="h"), Grid.regular("33.4", "84.6", "1", (4, 4)), method="conservative")["h"]
    there = regrid(ds[["sp", "orog"]], Grid.regular("33.4", "84.6", "1", (4, 4)), method="bilinear")
    expected = there["sp"] * np.exp(-(heights - there["orog"]) / 8300)
    np.testing.assert_allclose(means["sp"], expected, rtol=5e-3)  # the mean over heights that vary by hundreds of meters


def test_humidity_stays_relative_and_never_above_saturation(carried):
    np.testing.assert_allclose(relative_humidity(carried), 0.6, atol=2e-3)
    soaked = world().assign(q2m=lambda ds: (3 * ds["q2m"]).assign_attrs(units="kg kg-1"))
    assert float(relative_humidity(soaked.scalemixer.terrain(relief())).max()) <= 1 + 1e-4


def test_night_is_dark_and_the_sun_rises_in_the_east():
    dawn = np.datetime64("2020-06-01T00", "ns") + np.arange(-4, 2) * np.timedelta64(20, "m")
    out = world(times=dawn).scalemixer.terrain(relief(amplitude=0.0))["ssrd"]
    sun = hourly_insolation(dawn, out["latitude"].values[:, None], out["longitude"].values)
    assert not out.values[sun == 0].any() and (sun == 0).any()
    assert float(out[-1, 25, -1]) > float(out[-1, 25, 0])
    assert not world(times=HOURS[:1] + np.timedelta64(18, "h")).scalemixer.terrain(relief())["ssrd"].any()


def test_flat_relief_changes_nothing_beyond_interpolation():
    ds = world(height=np.full((20, 25), 1500.0))
    level = xr.full_like(relief(), 1500.0)
    out, plain = ds.scalemixer.terrain(level), regrid(ds, grid_of(level))
    for name in ("t2m", "u10", "v10", "sp", "tcc"):
        np.testing.assert_allclose(out[name], plain[name], rtol=2e-5)
    np.testing.assert_allclose(out["q2m"], plain["q2m"], rtol=1e-3)
    exact = 0.7 * hourly_insolation(HOURS, level["latitude"].values[:, None], level["longitude"].values)
    np.testing.assert_allclose(out["ssrd"], exact, rtol=2e-3)  # better than interpolated: the sun is where it is


def test_radiation_over_relief_keeps_its_mean():
    noon = world(times=HOURS[1:2] + np.timedelta64(2, "h"))
    out = noon.scalemixer.terrain(relief(amplitude=300.0))["ssrd"].mean()
    level = noon.scalemixer.terrain(relief(amplitude=0.0))["ssrd"].mean()
    assert float(out) == pytest.approx(float(level), rel=0.01)


def test_lazy_stays_lazy_and_gives_the_same(carried):
    lazy = world().chunk(time=1).scalemixer.terrain(relief())
    assert all(is_dask_collection(lazy[name].data) for name in REGIONAL.names)
    assert lazy["t2m"].chunks[0] == (1, 1, 1)
    xr.testing.assert_allclose(lazy.compute(), carried)


def test_nothing_is_computed_before_it_is_asked_for(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    for name in ("hourly_insolation", "local_lapse_rate", "short_wave_on_relief"):
        monkeypatch.setattr(carrying, name, refuse)
    monkeypatch.setattr("xscalemixer.relief.Sunshine", refuse)
    ds = world().chunk(time=1)
    blocks = {name: ds[name].data.map_blocks(refuse, dtype="f4", meta=np.empty((0, 0, 0), "f4")) for name in REGIONAL.names}
    out = ds.assign({name: ds[name].copy(data=block) for name, block in blocks.items()}).scalemixer.terrain(relief())
    assert out["ssrd"].shape == (3, 50, 60)


def test_order_and_longitude_convention_of_the_axes_do_not_matter(carried):
    turned = world().isel(latitude=slice(None, None, -1)).scalemixer.terrain(relief().isel(latitude=slice(None, None, -1)))
    xr.testing.assert_allclose(turned, carried.drop_attrs(deep=False).assign_attrs(turned.attrs))
    lon = np.arange(0, 360, 4.0)
    ds = world(lon=lon, lat=np.arange(60, 0, -4.0))
    negative = relief(west=-3.0)
    positive = negative.assign_coords(longitude=negative["longitude"] + 360)
    for name, array in ds.scalemixer.terrain(negative).items():
        np.testing.assert_allclose(array, ds.scalemixer.terrain(positive)[name], rtol=1e-5, atol=1e-5)


def test_a_relief_across_the_date_line():
    ds = world(lon=np.arange(0, 360, 4.0), lat=np.arange(60, 0, -4.0))
    across = relief(west=177.0)
    split = across.assign_coords(longitude=(across["longitude"] + 180) % 360 - 180).sortby("longitude")
    ours, theirs = (ds.scalemixer.terrain(field) for field in (across, split))
    np.testing.assert_allclose(theirs["longitude"] % 360, across["longitude"] % 360)
    np.testing.assert_allclose(theirs["t2m"], ours["t2m"], rtol=1e-6)
    np.testing.assert_allclose(theirs["ssrd"], ours["ssrd"], rtol=1e-3, atol=0.1)


def test_open_sea_is_left_alone():
    ds = world(height=np.zeros((20, 25)))
    out = ds.scalemixer.terrain(xr.full_like(relief(), -3000.0))
    assert not out["orog"].any()
    np.testing.assert_allclose(out["u10"], 6.0, rtol=1e-5)
    np.testing.assert_allclose(out["t2m"], regrid(ds, grid_of(relief()))["t2m"], rtol=1e-6)


def test_land_below_the_sea_is_kept_where_there_is_a_land_fraction():
    heights = xr.full_like(relief(), -300.0)
    land = xr.where(heights["longitude"] > 86, 1.0, 0.0).broadcast_like(heights).assign_attrs(units="1")
    out = world().scalemixer.terrain(xr.Dataset({"orog": heights, "lsm": land}))
    assert set(np.unique(out["orog"])) == {-300.0, 0.0}
    assert "lsm" in out and "taken as sea" in out.attrs["assumptions"]


def test_a_forecast_keeps_its_axes():
    coarse = world(times=HOURS)
    fields = np.stack([coarse[name].values for name in REGIONAL.names], axis=1)
    members = np.stack([fields, fields + np.float32(0)], axis=1)
    fc = forecast_dataset(
        members, schema=REGIONAL, grid=grid_of(coarse), reference_time=HOURS[0] - np.timedelta64(4, "h"),
        lead_time=np.array([4, 8, 12]), attrs={}, static={"orog": coarse["orog"].values},
    )  # fmt: skip
    out = fc.scalemixer.terrain(relief())
    assert out["t2m"].dims == ("reference_time", "lead_time", "member", "latitude", "longitude")
    xr.testing.assert_identical(out["valid_time"], fc["valid_time"].drop_vars(set(fc["valid_time"].coords) - set(out.coords)))
    direct = coarse.scalemixer.terrain(relief())
    for name in REGIONAL.names:
        np.testing.assert_allclose(out[name][0, :, 1], direct[name], rtol=1e-4, atol=1e-4)


def test_gaps_in_the_data_stay_gaps():
    ds = world().load()
    ds["t2m"][0, 5, 5] = ds["u10"][1, 5, 5] = np.nan  # 35 N, 80 E: outside the relief
    ds["t2m"][1, 8, 12] = ds["u10"][1, 8, 12] = np.nan  # 32 N, 87 E: inside
    out = ds.scalemixer.terrain(relief())
    assert not out.isel(time=[0, 2]).isnull().any().to_array().any()
    share = out.isel(time=1).isnull().mean()
    assert 0.3 < float(share["t2m"]) == float(share["u10"]) < 0.5 and not share["tcc"]


def test_some_variables_are_enough():
    out = world()[["t2m", "orog"]].scalemixer.terrain(relief())
    assert list(out) == ["t2m", "orog"]
    assert list(world()[["u10", "v10", "orog"]].scalemixer.terrain(relief())) == ["u10", "v10", "orog"]


def test_heights_can_be_brought_to_another_grid_first():
    target = Grid.regular(33, 85, "0.25", (8, 9))
    assert grid_of(world().scalemixer.terrain(relief(), grid=target)) == target


def test_curvilinear_relief(carried):
    heights = relief()
    latitude, longitude = xr.broadcast(heights["latitude"], heights["longitude"])
    swapped = heights.assign_coords(lat2=latitude + 1e-4 * longitude, lon2=longitude + 1e-4 * latitude)
    curved = swapped.drop_vars(["latitude", "longitude"]).rename(latitude="y", longitude="x", lat2="latitude", lon2="longitude")
    out = world().scalemixer.terrain(curved)
    assert out["t2m"].dims == ("time", "y", "x")
    np.testing.assert_allclose(out["t2m"], carried["t2m"], atol=0.1)
    assert float(np.abs(out["ssrd"].values - carried["ssrd"].values).mean()) < 0.3  # shadows begin elsewhere


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        ({}, "a mean over the hour that ends"),
        ({"stepType": "instant"}, "instantaneous, as its GRIB metadata say"),
        ({"stepType": "avg", "stepRange": "114-120"}, "a mean over 6 h"),
    ],
)
def test_what_radiation_is_a_mean_over_is_told_by_grib_metadata(metadata, found):
    ds = world()
    ds["ssrd"].attrs |= {f"GRIB_{key}": value for key, value in metadata.items()}
    out = ds.scalemixer.terrain(relief())
    assert found in out.attrs["assumptions"]
    hours = {"instant": 0, "avg": 6}.get(metadata.get("stepType"), 1)
    xr.testing.assert_equal(out["ssrd"], world().scalemixer.terrain(relief(), radiation_hours=hours)["ssrd"])


def test_means_over_intervals_of_several_lengths_are_refused():
    ds = world()
    ds["ssrd"].attrs |= {"GRIB_stepType": "avg", "GRIB_stepRange": "0-1 0-2 0-3"}
    with pytest.raises(xsm.SchemaError, match="intervals 0-1 0-2 0-3.*radiation_hours=1"):
        ds.scalemixer.terrain(relief())


@pytest.mark.parametrize(
    ("change", "heights", "message"),
    [
        (lambda ds: ds.drop_vars("orog"), relief(), r"orog: no orography.*ds.rename\(z=\"orog\"\)"),
        (lambda ds: ds.drop_vars("t2m"), relief(), r"q2m: found without t2m.*\n.*sp: found without t2m"),
        (lambda ds: ds, relief(west=-120.0), r"do not overlap.*source 20 x 25"),
        (lambda ds: ds, relief(west=97.0), r"relief: \d+ % of its cells lie outside the data.*orography.sel\(latitude=slice\(34"),
        (lambda ds: ds, relief().where(relief()["longitude"] > 85), r"550 of 3000 heights are missing.*fillna\(0.0\)"),
        (lambda ds: ds, relief().to_dataset(name="thing"), r"no heights among thing.*rename"),
        (lambda ds: ds, "relief.nc", r"relief: a str.*xr.open_dataset"),
        (lambda ds: ds, relief().drop_attrs(), r"relief: orog: .*no units"),
        (lambda ds: ds[["orog"]], relief(), r"nothing to carry among orog"),
    ],
)
def test_what_cannot_be_done_is_said(change, heights, message):
    with pytest.raises(xsm.InputError, match=f"(?s)cannot be carried to this terrain.*(?:{message})"):
        change(world()).scalemixer.terrain(heights)


def test_radiation_hours_are_whole():
    with pytest.raises(xsm.SchemaError, match="radiation_hours: -1. Needed: a whole number"):
        world().scalemixer.terrain(relief(), radiation_hours=-1)


def test_all_problems_are_listed_at_once():
    with pytest.raises(xsm.InputError, match=r"\(2 problems\)(?s:.*)heights are missing(?s:.*)no orography"):
        world().drop_vars("orog").scalemixer.terrain(relief().where(relief()["longitude"] > 85))


def test_a_globe_is_cropped_before_anything_is_computed():
    ds = globe(times=HOURS[:1])[["t2m", "orog"]]
    out = ds.scalemixer.terrain(relief(amplitude=0.0))
    small = ds.sel(latitude=slice(50, 14), longitude=slice(68, 106)).scalemixer.terrain(relief(amplitude=0.0))
    np.testing.assert_allclose(out["t2m"], small["t2m"], rtol=1e-6)


def test_idaho_at_3_km(shared_data):
    pytest.importorskip("cfgrib")
    raw = xsm.open(str(shared_data / "real" / "hrrr_idaho" / "hrrr.20180722.hrrr.t20z.wrfsfcf01.grib2"))
    fine = conform(raw, Schema.of("t2m", "sp"))[0].load().isel(y=slice(70), x=slice(40))
    coarse = fine.coarsen(y=10, x=10).mean()
    errors = lambda ds, name: float(np.sqrt(((ds[name].values - fine[name].values) ** 2)[:, 5:-5, 5:-5].mean()))
    adjusted, bilinear = coarse.scalemixer.terrain(fine["orog"]), regrid(coarse, grid_of(fine))
    assert errors(adjusted, "t2m") < 0.7 * errors(bilinear, "t2m")
    assert errors(adjusted, "sp") < 0.05 * errors(bilinear, "sp")
