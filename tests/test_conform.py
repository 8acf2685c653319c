import numpy as np
import pandas as pd
import pytest
import xarray as xr

from xscalemixer import readers
from xscalemixer.conform import conform, holdings, translate
from xscalemixer.errors import GridError, SchemaError, TimeError
from xscalemixer.physics import humidity
from xscalemixer.physics.pressure import GRAVITY, standard_geopotential
from xscalemixer.report import Report
from xscalemixer.variables import CATALOG, REGIONAL, Schema

LEVELS = (200, 500, 850, 1000)
SCHEMA = Schema.of("z", "t", "q", "u", "v", "t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd", levels=LEVELS)
UPPER = Schema.of("z", "t", "q", "u", "v", levels=LEVELS)


@pytest.fixture
def ds():
    """A small global world in canonical form, with every variable of the schema."""
    rng = np.random.default_rng(0)
    latitude, longitude = np.linspace(80, -80, 9), np.arange(0, 360, 30.0)
    time = pd.date_range("2024-06-03", periods=3, freq="6h")
    coords = {
        "time": time,
        "level": ("level", [float(x) for x in LEVELS], {"units": "hPa"}),
        "latitude": latitude,
        "longitude": longitude,
    }
    noise = lambda *shape: rng.uniform(-1, 1, shape)
    height = standard_geopotential(np.array(LEVELS) * 100.0)[None, :, None, None]
    values = {
        "z": height + 300 * noise(3, 4, 9, 12), "t": 260 + 20 * noise(3, 4, 9, 12), "q": 4e-3 + 3e-3 * noise(3, 4, 9, 12),
        "u": 30 * noise(3, 4, 9, 12), "v": 30 * noise(3, 4, 9, 12), "t2m": 285 + 20 * noise(3, 9, 12),
        "u10": 10 * noise(3, 9, 12),
        "v10": 10 * noise(3, 9, 12), "q2m": 8e-3 + 5e-3 * noise(3, 9, 12), "sp": 1.02e5 + 1e3 * noise(3, 9, 12),
        "tcc": 0.5 + 0.5 * noise(3, 9, 12), "ssrd": 400 + 400 * noise(3, 9, 12), "orog": 500 + 500 * noise(9, 12),
    }  # fmt: skip
    dims = {4: ("time", "level", "latitude", "longitude"), 3: ("time", "latitude", "longitude"), 2: ("latitude", "longitude")}
    arrays = {
        n: (dims[v.ndim], v, {"units": CATALOG[n].units, "standard_name": CATALOG[n].standard_name}) for n, v in values.items()
    }
    return xr.Dataset(arrays, coords)


def good(ds, schema=SCHEMA, **kwargs):
    canonical, report = conform(ds, schema, **kwargs)
    assert report.ok, report
    return canonical


def problems(ds, schema=SCHEMA, **kwargs):
    _, report = conform(ds, schema, **kwargs)
    return "\n".join(map(str, report.select("error")))


def replace(ds, name, units=None, **attrs):
    """The dataset with other attributes on one variable."""
    return ds.assign({name: ds[name].assign_attrs(({} if units is None else {"units": units}) | attrs)})


def scaled(ds, name, units, factor, offset=0.0):
    """The dataset with one variable expressed in other units."""
    return ds.assign({name: ((ds[name] - offset) / factor).assign_attrs(ds[name].attrs, units=units)})


def close(one, other):
    """Both datasets hold the same up to a relative difference of 1e-5, whatever numbers name the longitudes."""
    one, other = (d.assign_coords(longitude=d["longitude"] % 360).sortby("longitude") for d in (one, other))
    xr.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


# --- the canonical form ----------------------------------------------------------------------------------------------


def test_canonical_form(ds):
    canonical = good(ds)
    assert list(canonical.data_vars) == [*SCHEMA.names, "orog"]
    assert canonical["t"].dims == ("time", "level", "latitude", "longitude")
    assert {array.dtype for array in canonical.data_vars.values()} == {np.dtype("f4")}
    assert canonical["q2m"].attrs == {
        "standard_name": "specific_humidity",
        "units": "kg kg-1",
        "long_name": "2 m specific humidity",
    }
    assert canonical["level"].values.tolist() == sorted(LEVELS)


def test_input_is_not_modified(ds):
    before = ds.copy(deep=True)
    conform(ds.isel(latitude=slice(None, None, -1)), SCHEMA)
    conform(ds, SCHEMA)
    xr.testing.assert_identical(ds, before)


def test_conform_is_idempotent(ds):
    once = good(ds)
    xr.testing.assert_identical(good(once), once)


ALIASES = {
    "t2m": "2t",
    "u10": "UAS",
    "v10": "10m_v_component_of_wind",
    "q2m": "SH2",
    "sp": "surface_pressure",
    "z": "geopotential",
}

SAME = {
    "latitude flipped": lambda ds: ds.isel(latitude=slice(None, None, -1)),
    "latitude shuffled": lambda ds: ds.isel(latitude=[3, 1, 0, 2, 4, 5, 8, 7, 6]),
    "longitude -180..180": lambda ds: ds.assign_coords(longitude=(ds.longitude + 180) % 360 - 180).sortby("longitude"),
    "longitude -180..180 not sorted": lambda ds: ds.assign_coords(longitude=(ds.longitude + 180) % 360 - 180),
    "longitude rolled": lambda ds: ds.roll(longitude=5, roll_coords=True),
    "longitude east to west": lambda ds: ds.isel(longitude=slice(None, None, -1)),
    "cyclic column": lambda ds: xr.concat(
        [ds, ds.isel(longitude=[0]).assign_coords(longitude=[360.0])], "longitude", data_vars="minimal"),
    "transposed": lambda ds: ds.transpose("longitude", "time", "latitude", "level"),
    "renamed": lambda ds: ds.rename(ALIASES).rename(latitude="lat", longitude="lon"),
    "2-D coordinates": lambda ds: ds.rename(latitude="j", longitude="i").drop_vars(["j", "i"]).assign_coords(
        lat=(("j", "i"), np.repeat(ds.latitude.values[:, None], 12, 1)),
        lon=(("j", "i"), np.repeat(ds.longitude.values[None], 9, 0))),
    "levels reversed": lambda ds: ds.isel(level=slice(None, None, -1)),
    "levels in Pa": lambda ds: ds.assign_coords(level=("level", ds.level.values * 100, {"units": "Pa"})),
    "levels as integers without units": lambda ds: ds.assign_coords(level=("level", ds.level.values.astype(int))),
    "levels as text": lambda ds: ds.assign_coords(level=("level", [f"{level}hPa" for level in LEVELS])),
    "more levels": lambda ds: xr.concat([ds, ds.isel(level=[0]).assign_coords(level=[100.0])], "level", data_vars="minimal"),
    "degC": lambda ds: scaled(ds, "t2m", "degC", 1, 273.15),
    "degF": lambda ds: scaled(ds, "t", "degF", 5 / 9, 255.3722222222),
    "hPa": lambda ds: scaled(ds, "sp", "hPa", 100),
    "mb": lambda ds: scaled(ds, "sp", "mb", 100),
    "%": lambda ds: scaled(ds, "tcc", "%", 0.01),
    "g kg-1": lambda ds: scaled(ds, "q", "g kg**-1", 1e-3),
    "height for geopotential": lambda ds: scaled(ds, "z", "gpm", GRAVITY),
    "km h-1": lambda ds: scaled(ds, "u10", "km h-1", 1 / 3.6),
    "times not sorted": lambda ds: ds.isel(time=[2, 0, 1]),
    "length-1 dims": lambda ds: ds.expand_dims(number=[0]),
    "big-endian doubles": lambda ds: ds.astype(">f8"),
    "dask": lambda ds: ds.chunk(time=1, latitude=4),
    "packed member of a table": lambda ds: ds.assign(unrelated=("x", np.arange(5))),
}  # fmt: skip


@pytest.mark.parametrize("change", SAME)
def test_layout_names_and_units_do_not_change_the_result(ds, change):
    close(good(SAME[change](ds)), good(ds))


def test_dask_stays_lazy(ds):
    assert all(array.chunks is not None for array in good(ds.chunk(time=1)).data_vars.values())


def test_values_are_read_in_one_pass_and_only_at_the_times_wanted(ds):
    read = []

    def spy(block, block_info=None):
        read.append(block_info[0]["chunk-location"][0])
        return block

    lazy = ds[["t2m", "sp"]].chunk(time=1).map(lambda a: a.copy(data=a.data.map_blocks(spy, dtype=a.dtype)))
    read.clear()
    good(lazy, Schema.of("t2m", "sp"), times=ds.time.values[1:2])
    assert sorted(read) == [1, 1]


def test_box_across_greenwich_is_contiguous(ds):
    box = ds.isel(longitude=[10, 11, 0, 1])
    assert good(box)["longitude"].values.tolist() == [300, 330, 360, 390]


def test_box_across_the_date_line_sorted_by_number_is_put_together():
    longitude = np.array([-178.0, -176.0, 176.0, 178.0, 180.0])
    t2m = (("time", "lat", "lon"), np.array([[[3.0, 4, 0, 1, 2]] * 2]) + 280, {"units": "K"})
    ds = xr.Dataset({"t2m": t2m}, {"time": [np.datetime64("2024-01-01")], "lat": [1.0, 0.0], "lon": longitude})
    canonical = good(ds, Schema.of("t2m"))
    assert canonical["longitude"].values.tolist() == [176, 178, 180, 182, 184]
    assert canonical["t2m"].values[0, 0].tolist() == [280, 281, 282, 283, 284]


def test_curvilinear_grid_runs_north_to_south():
    lat, lon = np.meshgrid([40.0, 41.0, 42.0], [5.0, 6.0], indexing="ij")
    lat += 0.1 * lon
    coords = {"time": pd.date_range("2024", periods=1), "lat": (("j", "i"), lat), "lon": (("j", "i"), lon)}
    ds = xr.Dataset({"t2m": (("time", "j", "i"), lat[None] + 250, {"units": "K"})}, coords)
    canonical = good(ds, Schema.of("t2m"))
    assert canonical["t2m"].dims == ("time", "y", "x")
    assert (canonical["latitude"].diff("y") < 0).all()
    np.testing.assert_allclose(canonical["t2m"][0] - 250, canonical["latitude"], rtol=1e-5)


# --- which variable is which -----------------------------------------------------------------------------------------


def test_height_tells_homonyms_apart(ds):
    heights = xr.DataArray([2.0, 80.0], dims="height", attrs={"units": "m", "standard_name": "height"})
    both = xr.concat([ds["t2m"], ds["t2m"] - 3], heights).rename("temperature_above_ground")
    close(good(xr.merge([ds.drop_vars("t2m"), both])), good(ds))


def test_level_type_tells_homonyms_apart(ds):
    other = (ds["tcc"] * 0.5).assign_attrs(ds["tcc"].attrs, GRIB_typeOfLevel="convectiveCloudLayer")
    close(good(ds.assign(tcc_convectiveCloudLayer=other)), good(ds))


def test_two_candidates_that_differ_are_named(ds):
    assert "'t2m', 'T2' all look like 2 m temperature" in problems(ds.assign(T2=ds["t2m"] + 1))
    assert "look like" not in problems(ds.assign(T2=ds["t2m"]))


def test_maxima_are_not_taken(ds):
    extreme = ds.assign(tas=(ds["t2m"] + 5).assign_attrs(ds["t2m"].attrs, cell_methods="time: maximum"))
    close(good(extreme), good(ds))


def test_all_missing_variables_are_listed_with_close_names(ds):
    text = problems(ds.drop_vars(["v10", "tcc"]).rename(t2m="temperature_2meters"))
    assert "v10: no 10 m northward wind" in text
    assert "tcc: no total cloud cover" in text
    assert 'ds = ds.rename({"temperature_2meters": "t2m"})' in text


# --- units -----------------------------------------------------------------------------------------------------------


def without_units(ds, *names):
    out = ds.copy()
    for name in names:
        out[name] = out[name].assign_attrs(units="")
    return out


def test_missing_units_are_told_from_values_that_allow_only_one(ds):
    changed = without_units(scaled(ds, "t2m", "degC", 1, 273.15), *SCHEMA.names)
    canonical, report = conform(changed, SCHEMA)
    assert report.ok, report
    assert "t2m (degC)" in str(report.select("warning")[0])
    close(canonical, good(ds))


def test_missing_units_that_values_do_not_tell_are_an_error(ds):
    changed = without_units(ds.assign(t2m=ds["t2m"] * 0 + 150), "t2m")
    assert "has no units, and its values do not tell" in problems(changed)
    assert 'ds["t2m"].attrs["units"] = "K"' in problems(changed)


@pytest.mark.parametrize(
    ("name", "wrong", "factor", "offset", "right"),
    [("t2m", "K", 1, 273.15, "degC"), ("sp", "Pa", 100, 0, "hPa"), ("q", "kg kg-1", 1e-3, 0, "g kg-1"),
     ("tcc", "1", 0.01, 0, "%"),
     ("z", "m2 s-2", GRAVITY, 0, "m"), ("z", "m", 1 / GRAVITY, 0, "m2 s-2")],
)  # fmt: skip
def test_wrong_units_are_named(ds, name, wrong, factor, offset, right):
    base = scaled(ds, "z", "m", GRAVITY) if (name, wrong) == ("z", "m") else ds
    text = problems(scaled(base, name, wrong, factor, offset))
    assert f'The values look like {right}: ds["{name}"].attrs["units"] = "{right}"' in text


def test_unreadable_units_say_what_to_type(ds):
    text = problems(replace(ds, "t2m", "furlongs(")) + problems(replace(ds, "sp", "mm"))
    assert "cannot read units 'furlongs('" in text and "'mm' does not measure what 'Pa' does" in text


# --- derived variables -----------------------------------------------------------------------------------------------


def with_relative_humidity(ds, phase):
    saturated = humidity.saturation_vapor_pressure(ds["t"], phase)
    r = 100 * humidity.vapor_pressure(ds["q"], ds["level"] * 100) / saturated
    return ds.drop_vars("q").assign(r=r.assign_attrs(units="%", standard_name="relative_humidity"))


@pytest.mark.parametrize(("center", "phase"), [("kwbc", "water"), ("ecmf", "mixed")])
def test_specific_humidity_from_relative_humidity_by_center(ds, center, phase):
    moist = ds.assign(q=ds["q"] * 0.02)
    changed = with_relative_humidity(moist, phase).assign_attrs(GRIB_centre=center)
    close(good(changed), good(moist))
    assert not np.allclose(good(with_relative_humidity(moist, phase), rh_phase="ice")["q"], good(moist)["q"], rtol=1e-2)


def test_unknown_phase_is_an_error_that_names_the_choices(ds):
    text = problems(with_relative_humidity(ds.assign(q=ds["q"] * 0.02), "water"))
    assert 'Pass rh_phase= one of "water", "mixed", "ice"' in text


def test_surface_humidity_from_dew_point(ds):
    d2m = humidity.dew_point(ds["q2m"], ds["sp"]).drop_attrs().assign_attrs(units="K")
    changed = ds.drop_vars("q2m").assign(d2m=d2m)
    close(good(changed), good(ds))
    assert "q2m: derived from d2m, sp" in str(conform(changed, SCHEMA)[1])


def test_surface_pressure_from_sea_level(ds):
    flat = ds.assign(orog=ds["orog"] * 0)
    changed = flat.drop_vars("sp").assign(msl=flat["sp"].assign_attrs(units="Pa", standard_name="air_pressure_at_mean_sea_level"))
    close(good(changed), good(flat))


def test_total_cloud_by_random_overlap(ds):
    layer = (0 * ds["tcc"] + 0.5).assign_attrs(units="1")
    layers = {name: layer.assign_attrs(standard_name=CATALOG[name].standard_name) for name in ("lcc", "mcc", "hcc")}
    canonical, report = conform(ds.drop_vars("tcc").assign(layers), SCHEMA)
    np.testing.assert_allclose(canonical["tcc"], 0.875)
    assert "random overlap" in str(report)


# --- radiation -------------------------------------------------------------------------------------------------------


def forecast(ssrd, ranges, **attrs):
    """Accumulated radiation of one run at steps 6, 12 and 18 h."""
    step = pd.to_timedelta([6, 12, 18], unit="h")
    coords = {"time": np.datetime64("2024-06-03"), "step": step, "latitude": [1.0, 0.0], "longitude": [0.0, 1.0]}
    values = np.broadcast_to(np.array(ssrd)[:, None, None], (3, 2, 2))
    attrs = {"units": "J m**-2", "GRIB_stepType": "accum", "GRIB_stepUnits": 1, "GRIB_stepRange": ranges, **attrs}
    return xr.Dataset({"ssrd": (("step", "latitude", "longitude"), values, attrs)}, coords)


@pytest.mark.parametrize(
    ("ssrd", "ranges"),
    [([100.0, 300.0, 600.0], "0-6 0-12 0-18"), ([100.0, 200.0, 300.0], "0-6 6-12 12-18")],
)
def test_accumulations_become_means(ssrd, ranges):
    canonical = good(forecast(np.array(ssrd) * 6 * 3600, ranges), Schema.of("ssrd"))
    np.testing.assert_allclose(canonical["ssrd"][:, 0, 0], [100, 200, 300])


def test_accumulation_over_unknown_time_is_refused_once(ds):
    text = problems(replace(ds, "ssrd", "J m-2"))
    assert "nothing says over which time" in text and text.count("ssrd:") == 1


def test_accumulation_over_time_bounds(ds):
    bounds = np.stack([ds.time.values - np.timedelta64(3, "h"), ds.time.values], 1)
    changed = scaled(ds, "ssrd", "J m-2", 1 / (3 * 3600)).assign(time_bnds=(("time", "nv"), bounds))
    changed["time"].attrs["bounds"] = "time_bnds"
    changed["ssrd"].attrs["cell_methods"] = "time: sum"
    close(good(changed), good(ds))


# --- levels ----------------------------------------------------------------------------------------------------------


def test_absent_level_is_interpolated_between_near_neighbors(ds):
    linear = (np.log(ds["level"]) * 10 + 180 + 0 * ds["t"]).assign_attrs(ds["t"].attrs)
    canonical = good(ds.assign(t=linear), Schema.of("t", levels=(200, 925)), max_level_ratio=1.5)
    np.testing.assert_allclose(canonical["t"].sel(level=925), np.log(925) * 10 + 180, rtol=1e-6)


def test_all_absent_levels_are_listed_at_once(ds):
    text = problems(ds, Schema.of("t", "u", levels=(50, 300, 500, 925)))
    assert "t: levels 50, 300 hPa are missing; the data have 200, 500, 850, 1000 hPa" in text
    assert "u: levels 50, 300 hPa are missing" in text


def test_model_levels_are_not_pressure(ds):
    changed = ds.assign_coords(level=("level", [1, 2, 3, 4]))
    assert "no geopotential" in problems(changed)


def test_gaps_below_the_ground_are_filled(ds):
    flat = ds.assign(sp=(ds["sp"] * 0 + 9e4).assign_attrs(ds["sp"].attrs))
    standard = standard_geopotential(flat["level"] * 100.0)
    flat["z"] = (standard + 0 * flat["z"]).assign_attrs(ds["z"].attrs)
    flat["t"] = (288.15 - 0.0065 * flat["z"] / GRAVITY).assign_attrs(ds["t"].attrs)
    below = flat["level"] * 100 > flat["sp"]
    masked = flat.assign({name: flat[name].where(~below).assign_attrs(flat[name].attrs) for name in ("z", "t", "u")})
    canonical, report = conform(masked, SCHEMA)
    assert report.ok, report
    np.testing.assert_allclose(canonical["z"].sel(level=1000), standard.sel(level=1000), atol=0.5)
    np.testing.assert_allclose(canonical["u"].sel(level=1000), ds["u"].sel(level=850), rtol=1e-6)


# --- values ----------------------------------------------------------------------------------------------------------


def poked(ds, name, value):
    """The dataset with one bad value, at the second time, third latitude and fourth longitude."""
    values = ds[name].values.copy()
    values[(1, *(0,) * (values.ndim - 3), 2, 3)] = value
    return ds.assign({name: ds[name].copy(data=values)})


@pytest.mark.parametrize(("name", "value"), [("t", np.nan), ("z", 1e20), ("q2m", -1.0), ("sp", np.inf)])
@pytest.mark.parametrize("chunks", [None, {"time": 2}])
def test_a_time_with_bad_values_is_left_out(ds, name, value, chunks):
    canonical, report = conform(poked(ds, name, value).chunk(chunks) if chunks else poked(ds, name, value), SCHEMA, skip=0.01)
    assert report.ok, report
    assert f"time: bad values ({name}) at 1 of 3 times: 2024-06-03T06:00; these times are left out" in repr(report)
    xr.testing.assert_identical(canonical.load(), good(ds.isel(time=[0, 2])))


def test_gaps_below_the_ground_are_filled_at_the_times_that_stay(ds):
    flat = ds.assign(sp=(ds["sp"] * 0 + 9e4).assign_attrs(ds["sp"].attrs))
    masked = flat.assign(u=flat["u"].where(flat["level"] * 100 <= flat["sp"]).assign_attrs(flat["u"].attrs))
    canonical = good(poked(masked, "u", np.nan), skip=0.01)
    xr.testing.assert_identical(canonical, good(masked.isel(time=[0, 2])))


@pytest.mark.parametrize(("skip", "count"), [(0.0, 1), (0.5, 2), (0.99, 3)])
def test_more_bad_times_than_may_be_left_out(ds, skip, count):
    """Where all of them are bad, the units or the variable are wrong, and no list of times helps."""
    spoiled = ds.assign(t2m=ds["t2m"].where(ds["time"] > ds["time"][count - 1]).assign_attrs(ds["t2m"].attrs))
    found = problems(spoiled, skip=skip)
    assert "t2m: " in found
    assert (f"time: bad values (t2m) at {count} of 3 times: 2024-06-03T00:00" in found) == (count < 3)
    assert (f"skip={np.ceil(1000 * count / 3) / 1000:g}" in found) == (count < 3)


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "1 of 324 values are missing"), (np.inf, "1 infinite values"), (-9999.0, "an undecoded fill value"),
     (9.96921e36, "an undecoded fill value"),
     (1e20, "an undecoded fill value"), (500.0, "the first bad value is at")],
)  # fmt: skip
def test_bad_values_are_counted_and_located(ds, value, words):
    text = problems(poked(ds, "t2m", value))
    assert words in text
    if not words.endswith("fill value"):
        assert "at time 2024-06-03T06:00, latitude 40, longitude 90" in text


def test_gap_above_the_ground_is_an_error(ds):
    assert "1 of 1296 values are missing" in problems(poked(ds, "t", np.nan))


def test_rounding_errors_are_clipped_and_counted(ds):
    canonical, report = conform(poked(poked(ds, "tcc", 1.002), "q2m", -1e-6), SCHEMA)
    assert float(canonical["tcc"].max()) == 1.0 and float(canonical["q2m"].min()) == 0.0
    assert "tcc: 1 of 324 values" in str(report) and "q2m: 1 of 324 values" in str(report)


def test_packed_integers_are_refused(ds):
    packed = ds.assign(t2m=((ds["t2m"] - 285) * 100).astype("i2").assign_attrs(units="K", scale_factor=0.01, add_offset=285.0))
    assert "holds packed integers" in problems(packed)


def test_objects_are_refused(ds):
    assert "holds object values" in problems(ds.assign(t2m=ds["t2m"].astype(object)))


# --- times -----------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "cfgrib": lambda ds: ds.rename(time="step").assign_coords(
        step=pd.to_timedelta([0, 6, 12], unit="h"), time=ds.time.values[0], valid_time=("step", ds.time.values)),
    "WeatherBench2": lambda ds: ds.rename(time="prediction_timedelta").assign_coords(
        prediction_timedelta=pd.to_timedelta([0, 6, 12], unit="h")).expand_dims(time=ds.time.values[:1]),
    "CDS": lambda ds: ds.rename(time="valid_time").assign_coords(number=0, expver=("valid_time", ["0001"] * 3)),
    "hours with units": lambda ds: ds.rename(time="lead_time").assign_coords(
        lead_time=("lead_time", [0, 6, 12], {"units": "hours"}), reference_time=ds.time.values[0]),
    "fractional hours": lambda ds: ds.rename(time="lead_time").assign_coords(
        lead_time=("lead_time", np.array([0, 6, 12]) + 1e-9, {"units": "hours"})).expand_dims(time=ds.time.values[:1]),
    "cftime": lambda ds: ds.convert_calendar("standard", use_cftime=True),
    "text": lambda ds: ds.assign_coords(time=np.datetime_as_string(ds.time.values, unit="s")),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_time_layout_gives_valid_times(ds, layout):
    close(good(LAYOUTS[layout](ds)), good(ds))


def test_scalar_time_becomes_a_dimension(ds):
    close(good(ds.isel(time=1)), good(ds).isel(time=[1]))


def test_expver_parts_are_joined(ds):
    final, preliminary = ds.where(ds.time < ds.time[2]), ds.where(ds.time >= ds.time[2])
    mixed = xr.concat([final, preliminary], pd.Index([1, 5], name="expver")).drop_vars("orog")
    close(good(mixed), good(ds).drop_vars("orog"))


def test_times_select_before_anything_is_checked(ds):
    canonical = good(poked(ds, "t2m", np.nan), times=ds.time.values[[2, 0]])
    assert np.array_equal(canonical.time, ds.time[[0, 2]])


TIME_ERRORS = {
    "1 valid times occur more than once": lambda ds: ds.isel(time=[0, 0, 1]),
    "the time axis is empty": lambda ds: ds.isel(time=[]),
    "no time coordinate": lambda ds: ds.isel(time=0, drop=True),
    "the noleap calendar": lambda ds: ds.convert_calendar("noleap"),
    "lead times of type int64 with units 'missing'": lambda ds: ds.rename(time="lead_time").assign_coords(
        lead_time=[0, 6, 12], init=ds.time[0].values
    ),
    "undecoded numbers": lambda ds: ds.assign_coords(time=("time", [0, 6, 12], {"units": "hours since 2024-06-03"})),
}


@pytest.mark.parametrize("match", TIME_ERRORS)
def test_unusable_time_axes(ds, match):
    _, report = conform(TIME_ERRORS[match](ds), Schema.of("t2m"))
    with pytest.raises(TimeError, match=match):
        report.raise_errors()


def test_no_levels_written_as_text_are_no_levels(ds):
    named = ds.assign_coords(level=("level", [f"{level}hPa" for level in LEVELS]))
    assert "z: no geopotential" in problems(named.isel(level=[]))


def test_times_that_are_not_there_are_listed(ds):
    assert "1 of 2 times are not in the data: 2030-01-01T00:00" in problems(
        ds, times=[ds.time.values[0], np.datetime64("2030-01-01")]
    )


def test_overlapping_runs_are_refused(ds):
    runs = xr.concat([LAYOUTS["WeatherBench2"](ds), LAYOUTS["WeatherBench2"](ds).assign_coords(time=[ds.time.values[1]])], "time")
    assert "2 valid times occur more than once" in problems(runs)


# --- grids -----------------------------------------------------------------------------------------------------------

GRID_ERRORS = {
    "no latitude among": lambda ds: ds.rename(latitude="a").drop_vars("a"),
    "points along one dimension": lambda ds: ds.stack(cell=("latitude", "longitude")).reset_index("cell"),
    "coordinates contain NaN": lambda ds: ds.assign_coords(latitude=np.append(ds.latitude.values[:-1], np.nan)),
    "latitudes from": lambda ds: ds.assign_coords(latitude=ds.latitude.values * 2),
    "1 latitudes occur twice": lambda ds: ds.isel(latitude=[0, 1, 1, 2]),
}


@pytest.mark.parametrize("match", GRID_ERRORS)
def test_unusable_grids(ds, match):
    _, report = conform(GRID_ERRORS[match](ds), Schema.of("t2m"))
    with pytest.raises(GridError, match=match):
        report.raise_errors()


def lambert(**attrs):
    """Winds of 10 m/s along x of a Lambert grid west of its central meridian, where x points north of east."""
    lat, lon = np.meshgrid([41.0, 42.0], [-117.0, -116.0, -115.0], indexing="ij")
    lat = lat + 0.01 * (lon + 117)
    wind = lambda speed: (("time", "y", "x"), np.full((1, 2, 3), speed), {"units": "m s-1", **attrs})
    coords = {"time": pd.date_range("2024", periods=1), "latitude": (("y", "x"), lat), "longitude": (("y", "x"), lon)}
    return xr.Dataset({"u10": wind(10.0), "v10": wind(0.0)}, coords)


def test_grid_winds_are_turned():
    cone = {"GRIB_gridType": "lambert", "GRIB_uvRelativeToGrid": 1, "GRIB_LoVInDegrees": 262.5}
    cone |= {"GRIB_LaDInDegrees": 38.5, "GRIB_Latin1InDegrees": 38.5, "GRIB_Latin2InDegrees": 38.5}
    canonical = good(lambert(**cone), Schema.of("u10", "v10"))
    angle = np.deg2rad(np.sin(np.deg2rad(38.5)) * (canonical["longitude"] + 97.5))
    np.testing.assert_allclose(canonical["u10"][0], 10 * np.cos(angle), rtol=1e-4)
    np.testing.assert_allclose(canonical["v10"][0], -10 * np.sin(angle), rtol=1e-3)


def test_grid_winds_without_projection_are_an_error():
    assert "its projection is not given" in problems(lambert(GRIB_uvRelativeToGrid=1), Schema.of("u10", "v10"))


def test_winds_of_unknown_direction_are_a_warning():
    _, report = conform(lambert(), Schema.of("u10", "v10"))
    assert report.ok and len(report.select("warning")) == 1


# --- what is not a dataset -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thing", "match"),
    [("gfs.grib2", r'xscalemixer.open\("gfs.grib2"\)'),
     (xr.DataArray([1], name="t2m"), 'to_dataset'), (pd.DataFrame(), "to_xarray"),
     (xr.DataTree(), r'tree\["global"\]'), (3, "needed an xarray.Dataset")],
)  # fmt: skip
def test_other_things_say_what_to_call(thing, match):
    with pytest.raises(SchemaError, match=match):
        conform(thing, SCHEMA)


def test_empty_dataset_lists_everything():
    text = problems(xr.Dataset())
    assert all(f"{name}: no " in text for name in (*SCHEMA.names, "latitude", "longitude"))


def test_members_must_be_chosen(ds):
    text = problems(ds.expand_dims(number=2))
    assert "has more dimensions: number (2)" in text and "ds.isel(number=0)" in text


def test_quantities_are_read(ds):
    from cf_xarray.units import units

    celsius = units.Quantity(ds["t2m"].values - 273.15, "degC")
    attrs = {key: value for key, value in ds["t2m"].attrs.items() if key != "units"}
    close(good(ds.assign(t2m=(ds["t2m"].dims, celsius, attrs))), good(ds))


# --- real files ------------------------------------------------------------------------------------------------------


def test_gfs_file_is_a_complete_state(shared_data):
    levels = (50, 100, 200, 300, 400, 500, 600, 700, 850, 925, 1000)
    schema = Schema.of("z", "q", "u", "v", "t", "t2m", "u10", "v10", "q2m", "sp", levels=levels)
    ds = readers.open(shared_data / "real" / "gfs_2p5deg_2011011012_f120.grib2")
    canonical, report = conform(ds, schema)
    assert report.ok, report
    assert 4.7e4 < float(canonical["z"].sel(level=500).min()) < float(canonical["z"].sel(level=500).max()) < 5.9e4
    np.testing.assert_allclose(canonical["orog"].max(), ds["orog"].max())
    regional, report = conform(ds, REGIONAL)
    assert report.ok, report
    assert "a mean flux over forecast steps 114-120" in str(report) and 0.4 < float(regional["tcc"].mean()) < 0.7


@pytest.mark.parametrize("name", ["era5_cornwall", "hrrr_idaho/hrrr.20180722.hrrr.t0[0-2]z.wrfsfcf01.grib2"])
def test_regional_files_are_complete(shared_data, name):
    canonical, report = conform(readers.open(shared_data / "real" / name), REGIONAL)
    assert report.ok, report
    assert set(REGIONAL.names) < set(canonical.data_vars)


def test_humidity_of_era5_agrees_with_its_relative_humidity(shared_data):
    ds = readers.open(shared_data / "real" / "era5_davos" / "PLEV_202001.nc")
    schema = Schema.of("q", levels=(300, 400, 500, 600, 700))
    ratio = good(ds.drop_vars("q"), schema, rh_phase="mixed")["q"] / good(ds, schema)["q"]
    np.testing.assert_allclose(ratio.median(("time", "latitude", "longitude")), 1.0, atol=0.01)


def test_absent_levels_of_era5_are_listed(shared_data):
    text = problems(readers.open(shared_data / "real" / "era5_davos"), Schema.of("z", "t", levels=(50, 100, 500, 925)))
    assert "z: levels 50, 100, 925 hPa are missing" in text or "z: levels 50, 100 hPa are missing" in text


def test_translating_keeps_gaps_and_further_dims(ds):
    celsius = (ds["t2m"] - 273.15).where(ds["latitude"] > 0).assign_attrs(units="degC", standard_name="air_temperature")
    fc = xr.Dataset({"2t": celsius}).rename(time="reference_time").expand_dims(member=[0, 1])
    report = Report("")
    out = translate(fc, Schema.of("t2m"), report, dims=("reference_time", "member"))["t2m"]
    assert report.ok and out.dims == ("reference_time", "member", "latitude", "longitude") and out.attrs["units"] == "K"
    np.testing.assert_allclose(out.isel(member=1), ds["t2m"].where(ds["latitude"] > 0), rtol=1e-6)


def test_holdings_are_what_is_there_or_follows(ds):
    moist = ds.rename(q2m="d2m")
    moist["d2m"].attrs = {"units": "K", "standard_name": "dew_point_temperature"}
    found = holdings(moist.drop_vars("q"))
    assert found.levels["z"] == (200, 500, 850, 1000) and found.levels["t2m"] == () and found.has_orography
    assert {"q2m", "d2m", "ws10"} <= set(found.levels) and not {"q", "orog"} & set(found.levels)
    assert "d2m" in found.direct and not {"q2m", "ws10"} & found.direct
