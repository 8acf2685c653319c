import numpy as np
import pandas as pd
import pytest
import xarray as xr

import xscalemixer as xsm
from xscalemixer import readers
from xscalemixer.errors import GridError, InputError


@pytest.fixture
def ds():
    time = pd.date_range("2024-06-03", periods=4, freq="6h")
    coords = {"time": time, "latitude": [1.0, 0.0], "longitude": [0.0, 1.0, 2.0]}
    values = np.arange(24.0).reshape(4, 2, 3)
    dims = ("time", "latitude", "longitude")
    return xr.Dataset({"t2m": (dims, values, {"units": "K"}), "sp": (dims, values + 1e5, {"units": "Pa"})}, coords)


def write_grib(path, *messages, shape=(3, 4)):
    """Write a GRIB 2 file; each message is a dict of keys, with ``value`` for a constant field."""
    eccodes = pytest.importorskip("eccodes")
    rows, columns = shape
    with path.open("wb") as file:
        for keys in messages:
            message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
            grid = {
                "Ni": columns,
                "Nj": rows,
                "latitudeOfFirstGridPointInDegrees": 20.0,
                "latitudeOfLastGridPointInDegrees": 10.0,
            }
            grid |= {"longitudeOfFirstGridPointInDegrees": 0.0, "longitudeOfLastGridPointInDegrees": 15.0}
            grid |= {
                "centre": "kwbc",
                "iDirectionIncrementInDegrees": 5.0,
                "jDirectionIncrementInDegrees": 5.0,
                "dataDate": 20240603,
                "dataTime": 0,
            }
            for key, value in {**grid, **{k: v for k, v in keys.items() if k != "value"}}.items():
                eccodes.codes_set(message, key, value)
            eccodes.codes_set_values(message, np.full(rows * columns, keys["value"]))
            eccodes.codes_write(message, file)
            eccodes.codes_release(message)
    return path


def surface(name, value, level_type="surface", **keys):
    return {"typeOfLevel": level_type, "shortName": name, "value": value, **keys}


def upper(name, level, value, **keys):
    return {"typeOfLevel": "isobaricInhPa", "level": level, "shortName": name, "value": value, **keys}


# --- NetCDF and Zarr -------------------------------------------------------------------------------------------------


def test_netcdf_round_trip_is_lazy(ds, tmp_path):
    ds.to_netcdf(tmp_path / "a.nc")
    opened = readers.open(tmp_path / "a.nc")
    assert opened["t2m"].chunks is not None
    xr.testing.assert_equal(opened, ds)


def test_zarr_round_trip(ds, tmp_path):
    pytest.importorskip("zarr")
    ds.to_zarr(tmp_path / "a.zarr")
    xr.testing.assert_equal(readers.open(str(tmp_path / "a.zarr")), ds)


@pytest.mark.parametrize("how", ["pattern", "list", "folder"])
def test_other_times_are_put_behind_each_other(ds, tmp_path, how):
    ds.isel(time=slice(2, 4)).to_netcdf(tmp_path / "a.nc")
    ds.isel(time=slice(0, 2)).to_netcdf(tmp_path / "b.nc")
    paths = {"pattern": str(tmp_path / "*.nc"), "list": [tmp_path / "a.nc", tmp_path / "b.nc"], "folder": tmp_path}
    xr.testing.assert_equal(readers.open(paths[how]), ds)


def test_other_variables_are_put_beside_each_other(ds, tmp_path):
    ds[["t2m"]].to_netcdf(tmp_path / "a.nc")
    ds[["sp"]].to_netcdf(tmp_path / "b.nc")
    xr.testing.assert_equal(readers.open(tmp_path), ds)


def test_same_name_on_levels_and_at_the_surface_is_kept_apart(ds, tmp_path):
    levels = ds[["t2m"]].rename(t2m="z").expand_dims(level=[500.0, 850.0])
    levels.to_netcdf(tmp_path / "levels.nc")
    (ds[["t2m"]].rename(t2m="z") * 2).to_netcdf(tmp_path / "surface.nc")
    opened = readers.open(tmp_path)
    assert opened["z"].sizes["level"] == 2
    np.testing.assert_array_equal(opened["z_surface"], ds["t2m"] * 2)


def test_files_of_one_scalar_time_each(ds, tmp_path):
    for index in range(4):
        ds.isel(time=index).to_netcdf(tmp_path / f"{index}.nc")
    xr.testing.assert_equal(readers.open(tmp_path), ds)


# --- what cannot be opened -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"", "the file is empty"), (b"hello world, I am text", "neither GRIB, NetCDF nor Zarr"),
     (b"\x89HDF\r\n\x1a\n" + b"x" * 99, "damaged"),
     (b"CDF\x01" + b"\xff" * 99, "damaged"), (b"GRIB" + b"\x00" * 99, "damaged or incomplete after 0 messages")],
)  # fmt: skip
def test_bad_files(tmp_path, content, match):
    (tmp_path / "bad.dat").write_bytes(content)
    with pytest.raises(InputError, match=match):
        readers.open(tmp_path / "bad.dat")


def test_truncated_grib(tmp_path):
    path = write_grib(tmp_path / "a.grib2", surface("2t", 280.0), surface("sp", 1e5))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="damaged or incomplete after 1 messages"):
        readers.open(path)


@pytest.mark.parametrize(
    ("path", "match"),
    [("nowhere.nc", "does not exist"), ("nowhere/*.nc", "nothing matches this pattern"), ([], "an empty list"),
     (3, "cannot open a int"),
     (xr.Dataset(), "cannot open a Dataset")],
)  # fmt: skip
def test_nothing_to_open(path, match):
    with pytest.raises(InputError, match=match):
        readers.open(path)


def test_folder_without_data(tmp_path):
    (tmp_path / "readme.txt").write_text("no data")
    with pytest.raises(InputError, match="holds no GRIB, NetCDF or Zarr"):
        readers.open(tmp_path)


def test_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "a.grib").write_bytes(b"GRIB....")
    with pytest.raises(InputError, match=r'pip install "xscalemixer\[grib\]"'):
        readers.open(tmp_path / "a.grib")


# --- GRIB ------------------------------------------------------------------------------------------------------------


def test_homonyms_keep_apart_by_level_type(tmp_path):
    messages = [
        surface("tcc", 60.0, "atmosphere"), surface("tcc", 20.0, "convectiveCloudLayer"), surface("t", 290.0),
        upper("t", 500, 250.0), upper("t", 850, 280.0), surface("t", 210.0, "tropopause"),
    ]  # fmt: skip
    opened = readers.open(write_grib(tmp_path / "a.grib2", *messages))
    expected = {"tcc": 60, "tcc_convectiveCloudLayer": 20, "t_surface": 290, "t_tropopause": 210}
    assert {name: float(opened[name].mean()) for name in expected} == pytest.approx(expected, rel=1e-4)
    assert opened["t"].sel(isobaricInhPa=850).values == pytest.approx(280)


def test_other_level_sets_have_other_dimensions(tmp_path):
    messages = [upper("t", 500, 250.0), upper("t", 850, 280.0), upper("r", 850, 50.0)]
    opened = readers.open(write_grib(tmp_path / "a.grib2", *messages))
    assert opened["t"].dims[0] == "isobaricInhPa" and opened["r"].dims[0] == "isobaricInhPa1"
    assert not opened["r"].isnull().any()


def test_heights_are_attributes(tmp_path):
    messages = [surface("2t", 280.0, "heightAboveGround", level=2), surface("10u", 5.0, "heightAboveGround", level=10)]
    opened = readers.open(write_grib(tmp_path / "a.grib2", *messages))
    assert [opened[name].attrs["GRIB_heightAboveGround"] for name in ("t2m", "u10")] == [2, 10]


def test_files_of_one_run_share_their_steps(tmp_path):
    for step in (0, 6, 12):
        write_grib(tmp_path / f"f{step:03}.grib2", surface("sp", 1e5 + step, forecastTime=step))
    opened = readers.open(tmp_path)
    assert opened["sp"].dims == ("step", "latitude", "longitude")
    np.testing.assert_allclose(opened["sp"][:, 0, 0], [100000, 100006, 100012], atol=1)
    assert opened["valid_time"].dims == ("step",)


def test_lagged_runs_are_joined_by_valid_time(tmp_path):
    messages = [surface("sp", 1e5, dataTime=0, forecastTime=6), surface("sp", 1e5, dataTime=1200, forecastTime=0)]
    opened = readers.open(write_grib(tmp_path / "a.grib2", *messages))
    assert opened["sp"].sizes["valid_time"] == 2 and not opened["sp"].isnull().any()


def test_several_grids_are_refused(tmp_path):
    write_grib(tmp_path / "a.grib2", surface("sp", 1e5))
    write_grib(tmp_path / "b.grib2", surface("sp", 1e5), shape=(5, 4))
    with pytest.raises(GridError, match="2 horizontal grids"):
        readers.open(tmp_path)


def test_no_index_file_is_left_behind(tmp_path):
    readers.open(write_grib(tmp_path / "a.grib2", surface("sp", 1e5)))["sp"].load()
    assert [path.name for path in tmp_path.iterdir()] == ["a.grib2"]


# --- real files ------------------------------------------------------------------------------------------------------


def test_gfs_file_loses_no_message(shared_data):
    from cfgrib.messages import FileStream

    path = shared_data / "real" / "gfs_2p5deg_2011011012_f120.grib2"
    opened = readers.open(path)
    fields = sum(array.size // (73 * 144) for array in opened.data_vars.values())
    assert fields == len(FileStream(str(path)))
    assert opened["sdswrf"].attrs["GRIB_stepRange"] == "114-120"
    assert opened["orog"].attrs["standard_name"] == "surface_altitude"


@pytest.mark.parametrize(
    ("name", "names", "sizes"),
    [("hrrr_idaho/hrrr.20180722.hrrr.t0[0-3]z.wrfsfcf01.grib2", {"t2m", "lcc", "sdswrf", "orog"}, {"time": 4, "y": 78, "x": 41}),
     ("meteonet_nw/arpege_*.grib", {"t2m", "u10", "msl", "r"}, {"step": 25, "latitude": 58, "longitude": 80}),
     ("era5_cornwall", {"t2m", "ssrd", "avg_sdlwrf"}, {"valid_time": 744, "latitude": 5, "longitude": 7}),
     ("era5_davos", {"z", "z_surface", "t2m"}, {"time": 744, "level": 6, "latitude": 4, "longitude": 5}),
     ("ifs_pl_10deg_20240603.grib", {"z", "t", "r"}, {"time": 4, "step": 2, "isobaricInhPa": 6}),
     ("era5_10members_3deg_20170101.grib", {"z", "t"}, {"number": 10, "time": 4, "isobaricInhPa": 2})],
)  # fmt: skip
def test_real_files(shared_data, name, names, sizes):
    opened = readers.open(shared_data / "real" / name)
    assert names <= set(opened.data_vars)
    assert sizes.items() <= dict(opened.sizes).items()


def test_geopotential_of_the_ground_is_its_altitude():
    """As in files of the ECMWF, where ``z`` at the surface stands beside ``gh`` on levels."""
    ds = xsm.sample()
    attrs = {"GRIB_typeOfLevel": "surface", "standard_name": "geopotential", "units": "m**2 s**-2"}
    report = ds.drop_vars("orog").assign(z=readers._describe((ds["orog"] * 9.80665).assign_attrs(attrs))).scalemixer.check()
    assert "orog: 'z' converted from m**2 s**-2 to m" in str(report) and not report.select("warning")
