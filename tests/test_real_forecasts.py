"""``score`` on forecasts as users have them: GRIB of IFS and HRRR, NetCDF of the CDS, a Lambert grid of AROME."""

import numpy as np
import pytest
import xarray as xr

import xscalemixer as xsm
from xscalemixer.grids import CurvilinearGrid, Grid

LAYOUTS = {"as it is": lambda ds: ds, "weatherbench2": xsm.to_weatherbench2, "climpred": xsm.to_climpred}


@pytest.fixture(scope="module")
def ifs(shared_data):
    pytest.importorskip("cfgrib")
    path = shared_data / "real" / "ifs_pl_10deg_20240603.grib"
    with xr.open_dataset(path, engine="cfgrib", indexpath="", decode_timedelta=True) as ds:
        return ds[["z", "t"]].load()


@pytest.fixture(scope="module")
def era5(shared_data):
    with xr.open_dataset(shared_data / "real" / "era5_cornwall" / "data_stream-oper_stepType-instant.nc") as ds:
        return ds.load()


@pytest.fixture(scope="module")
def arome(shared_data):
    with xr.open_dataset(shared_data / "real" / "arome_arctic_20180710.nc") as ds:
        return ds[["t2m", "u10", "v10", "sp"]].load()


def by_hand(error, area):
    """Root of the mean over all fields of the area mean of squared errors."""
    return np.sqrt(np.average(np.mean(error.astype("f8") ** 2, axis=0), weights=area))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_ifs_persistence_against_six_hour_forecasts(ifs, layout):
    """Each start held for six hours, and the forecast from there as truth: this file has no later analysis at these hours."""
    held = ifs.isel(step=[0]).assign_coords(step=ifs["step"][1:]).drop_vars("valid_time")
    sc = xsm.score(layout(held), ifs.isel(step=1))
    assert sc["t"].sel(metric="count").values.tolist() == [[4.0] * 6] and sc["lead_time"].values.tolist() == [6]
    area = Grid(tuple(ifs["latitude"].values), tuple(ifs["longitude"].values)).area
    at_500 = ifs["t"].sel(isobaricInhPa=500)
    expected = by_hand((at_500.isel(step=0) - at_500.isel(step=1)).values, area)
    np.testing.assert_allclose(sc["t"].sel(metric="rmse", level=500).item(), expected, rtol=1e-6)


def test_era5_of_the_cds_against_its_own_persistence(era5):
    held = era5.rename(valid_time="reference_time").drop_vars("expver").isel(reference_time=slice(0, 700, 24))
    held = held.expand_dims(lead_time=3).assign_coords(lead_time=("lead_time", [1, 6, 24], {"units": "hours"}))
    sc = xsm.score(held, era5)
    assert {"t2m", "sp", "u10", "v10", "tcc", "d2m"} <= set(sc) and np.all(sc["t2m"].sel(metric="count") == 30)
    area = Grid(tuple(era5["latitude"].values), tuple(era5["longitude"].values)).area
    error = era5["t2m"].values[0:700:24] - era5["t2m"].values[6:706:24]
    np.testing.assert_allclose(sc["t2m"].sel(metric="rmse", lead_time=6), by_hand(error, area), rtol=1e-6)


def test_arome_on_its_lambert_grid_against_itself_an_hour_late(arome):
    truth = arome.assign_coords(time=arome["time"] + np.timedelta64(3, "h"))
    sc = arome.rename(time="valid_time").assign_coords(reference_time=arome["time"].values[0]).scalemixer.score(truth)
    np.testing.assert_array_equal(sc["lead_time"], np.arange(3, 49, 3))
    area = CurvilinearGrid(arome["latitude"].values, arome["longitude"].values).area
    error = arome["t2m"].isel(time=[5]).values - arome["t2m"].isel(time=[4]).values
    np.testing.assert_allclose(sc["t2m"].sel(metric="rmse", lead_time=15), by_hand(error, area), rtol=1e-6)


def test_arome_is_smoother_than_itself(arome):
    fc = arome.rename(time="valid_time").assign_coords(reference_time=arome["time"].values[0])
    smooth = lambda width: arome.rolling(y=width, x=width, center=True, min_periods=1).mean()
    near, far = (xsm.score(fc, smooth(width), metrics=["rmse", "correlation"])["t2m"] for width in (3, 9))
    assert np.all(near.sel(metric="rmse") < far.sel(metric="rmse"))
    assert np.all(near.sel(metric="correlation") > far.sel(metric="correlation"))


def test_hrrr_grib_against_the_next_hour(shared_data):
    pytest.importorskip("cfgrib")
    files = sorted((shared_data / "real" / "hrrr_idaho").glob("*t0[0-3]z*.grib2"))[:4]
    two_meters = {"typeOfLevel": "heightAboveGround", "level": 2}
    keywords = {"engine": "cfgrib", "indexpath": "", "decode_timedelta": True, "filter_by_keys": two_meters}
    hours = [xr.open_dataset(file, **keywords)[["t2m"]].load() for file in files]
    hrrr = xr.concat(hours, "time", coords="different", compat="equals")
    earlier = ("time", hrrr["valid_time"].values - np.timedelta64(1, "h"))
    late = hrrr.drop_vars(["time", "step"]).assign_coords(valid_time=earlier)
    sc = xsm.score(hrrr, late)
    assert sc["t2m"].sel(metric="count").item() == 3 and sc["lead_time"].item() == 1
    area = CurvilinearGrid(hrrr["latitude"].values, hrrr["longitude"].values).area
    expected = by_hand(-hrrr["t2m"].diff("time").values, area)
    np.testing.assert_allclose(sc["t2m"].sel(metric="rmse").item(), expected, rtol=1e-6)


def test_wrf_output_once_its_start_is_known(arome):
    """The same fields with the axes of WRF: coordinates that repeat at every time, and no word of a start."""
    names = {"time": "Time", "y": "south_north", "x": "west_east", "latitude": "XLAT", "longitude": "XLONG", "t2m": "T2"}
    wrf = arome[["t2m"]].isel(time=slice(3)).rename(names)
    repeated = {name: (("Time", *wrf[name].dims), np.stack([wrf[name].values] * 3)) for name in ("XLAT", "XLONG")}
    wrf = wrf.drop_vars("Time").assign_coords(repeated | {"XTIME": ("Time", arome["time"].values[:3])})
    with pytest.raises(xsm.TimeError, match="needed a start"):
        xsm.score(wrf, arome)
    sc = xsm.score(wrf.assign_coords(reference_time=wrf["XTIME"].values[0]), arome, variables=["t2m"])
    assert sc["lead_time"].values.tolist() == [0, 3, 6] and np.all(sc["t2m"].sel(metric="rmse") == 0)
