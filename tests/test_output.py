import json
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from xscalemixer.errors import GridError, SchemaError
from xscalemixer.grids import Grid
from xscalemixer.output import forecast_dataset
from xscalemixer.variables import REGIONAL, Schema

GRID = Grid.regular(36, 94, "0.05", (6, 8))


def make(fields, first=1, **changes):
    leads = np.arange(first, first + len(fields))
    attrs = {"history": "2001-08-10T01:00:00Z test"}
    wanted = {"schema": REGIONAL, "grid": GRID, "reference_time": "2001-08-10T00", "lead_time": leads, "attrs": attrs}
    return forecast_dataset(fields, **(wanted | changes))


@pytest.fixture
def fields():
    return np.random.default_rng(0).normal(size=(4, 7, *GRID.shape)).astype("float32")


# the dataset -------------------------------------------------------------------------------------------------------------


def test_every_channel_lands_in_its_variable(fields):
    fc = make(fields)
    assert fc["u10"].dims == ("reference_time", "lead_time", "latitude", "longitude")
    for channel, name in enumerate(REGIONAL.names):
        np.testing.assert_array_equal(fc[name].values[0], fields[:, channel])


def test_valid_time_is_start_plus_lead(fields):
    fc = make(fields, reference_time="2001-12-31T21:30", lead_time=[1, 2, 3, 6])
    assert fc["valid_time"].dims == ("reference_time", "lead_time")
    assert fc["valid_time"].values[0, -1] == np.datetime64("2002-01-01T03:30")
    assert fc["lead_time"].dtype == "int64"


def test_members_come_after_lead_time():
    fc = make(np.zeros((2, 3, 7, *GRID.shape), dtype="f4"))
    assert fc["t2m"].dims == ("reference_time", "lead_time", "member", "latitude", "longitude")
    assert fc["member"].attrs["standard_name"] == "realization"


def test_static_fields_have_no_time(fields):
    fc = make(fields, static={"orog": np.full(GRID.shape, 2500.0)})
    assert fc["orog"].dims == ("latitude", "longitude")
    assert fc["orog"].attrs["standard_name"] == "surface_altitude"


def test_interval_means_differ_from_instants(fields):
    fc = make(fields)
    assert fc["ssrd"].attrs["cell_methods"] == "time: mean (over the hour that ends at valid_time)"
    assert fc["t2m"].attrs["cell_methods"] == "time: point"


def test_provenance_becomes_text_or_numbers(fields):
    attrs = make(fields, attrs={"seed": np.int64(3), "assumptions": ["units: K"], "deterministic": True, "source": "mine"}).attrs
    assert attrs["seed"] == 3 and attrs["deterministic"] == "true" and attrs["source"] == "mine"
    assert json.loads(attrs["assumptions"]) == ["units: K"]


def test_lazy_fields_stay_lazy(fields):
    dask_array = pytest.importorskip("dask.array")
    fc = make(dask_array.from_array(fields, chunks=(1, 7, -1, -1)))
    assert fc["t2m"].chunks is not None
    np.testing.assert_array_equal(fc["t2m"].values[0], fields[:, 0])


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf", "zarr2", "zarr3"])
@pytest.mark.parametrize("members", [(), (2,)])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_disk_gives_back_what_was_written(tmp_path, engine, members):
    rng = np.random.default_rng(1)
    attrs = {"seed": 3, "empty": "", "share": 0.5, "nested": {"größe": [1, None]}}
    fc = make(rng.normal(size=(2, *members, 7, *GRID.shape)), attrs=attrs, static={"lsm": np.ones(GRID.shape)})
    if engine.startswith("zarr"):
        fc.to_zarr(tmp_path / "fc.zarr", zarr_format=int(engine[-1]))
        back = xr.open_zarr(tmp_path / "fc.zarr")
    else:
        fc.to_netcdf(tmp_path / "fc.nc", engine=engine)
        back = xr.open_dataset(tmp_path / "fc.nc", engine=engine)
    with back:
        xr.testing.assert_identical(back.load(), fc)


@pytest.mark.parametrize("part", [{"lead_time": 0}, {"latitude": slice(2)}, {"longitude": [1, 5]}])
def test_a_selection_can_be_written_too(tmp_path, fields, part):
    fc = make(fields).isel(part)
    fc.to_netcdf(tmp_path / "part.nc")
    with xr.open_dataset(tmp_path / "part.nc") as back:
        xr.testing.assert_identical(back.load(), fc)


def test_times_are_whole_numbers_on_disk(tmp_path, fields):
    make(fields).to_netcdf(tmp_path / "fc.nc")
    with xr.open_dataset(tmp_path / "fc.nc", decode_cf=False) as raw:
        assert [raw[name].dtype for name in ("reference_time", "lead_time", "valid_time")] == ["int64"] * 3
        assert raw["lead_time"].attrs["units"] == "hours"
        assert raw["t2m"].attrs["coordinates"] == "valid_time height_2m"
        assert raw["sp"].attrs["coordinates"] == "valid_time"


CHECK = """if True:
    import sys
    from compliance_checker.runner import CheckSuite, ComplianceChecker
    CheckSuite.load_all_available_checkers()
    options = {"verbose": 0, "criteria": "strict", "output_filename": sys.argv[2], "output_format": "json"}
    ComplianceChecker.run_checker(sys.argv[1], ["cf:1.11"], **options)
"""


def test_cf_compliance(tmp_path):
    pytest.importorskip("compliance_checker")
    fc = make(np.ones((2, 2, 7, *GRID.shape)), static={"orog": np.ones(GRID.shape), "lsm": np.ones(GRID.shape)})
    fc.to_netcdf(tmp_path / "fc.nc")
    report = tmp_path / "report.json"
    # in a process of its own: the C libraries that the checker loads abort this one at its end
    subprocess.run([sys.executable, "-c", CHECK, tmp_path / "fc.nc", report], check=False, capture_output=True)
    results = json.loads(report.read_text())["cf:1.11"]
    failed = [r for p in ("high", "medium", "low") for r in results[f"{p}_priorities"] if r["value"][0] < r["value"][1]]
    assert results["possible_points"] > 400
    # a recommendation only, and one that no file with a start and a lead axis can follow: both are left of latitude here
    assert [r["name"] for r in failed] == ["§2.4 Dimensions"]


def test_mlwp_data_specs_rules(fields):
    """Traits forecast, grid and ensemble of mlwp-data-specs 0.1: dims with coords, standard names and exact units."""
    fc = make(fields[:, None])
    names = {"reference_time": "forecast_reference_time", "lead_time": "forecast_period", "valid_time": "time"}
    names |= {"latitude": "latitude", "longitude": "longitude", "member": "realization"}
    assert {name: fc.coords[name].attrs["standard_name"] for name in names} == names
    assert set(fc.sizes) == set(names) - {"valid_time"}
    units = {name: fc[name].attrs["units"] for name in ("lead_time", "latitude", "longitude")}
    assert units == {"lead_time": "hours", "latitude": "degrees_north", "longitude": "degrees_east"}


def test_all_mismatches_are_listed(fields):
    with pytest.raises(SchemaError, match=r"(?s)3 problems.*7 channels; needed 2: t2m, sp.*needed \(4,\).*'slope' is unknown"):
        make(fields, schema=Schema.of("t2m", "sp"), lead_time=[1], static={"slope": 0})
    with pytest.raises(SchemaError, match="float64; needed whole hours"):
        make(fields, lead_time=np.arange(4.0))
    uneven = Schema((*Schema.of("t", levels=[500]).variables, *Schema.of("z", levels=[850]).variables))
    with pytest.raises(SchemaError, match=r"t is on levels \(500,\); needed those of all: \(500, 850\)"):
        make(fields[:, :2], schema=uneven)
    with pytest.raises(GridError, match=r"orog: \(8, 6\) points; needed \(6, 8\)"):
        make(fields, static={"orog": np.zeros((8, 6))})


def test_variables_on_levels(fields, tmp_path):
    fc = make(fields[:, :5], schema=Schema.of("t", "t2m", "z", levels=[500, 850]))
    assert fc["t"].dims == ("reference_time", "lead_time", "level", "latitude", "longitude")
    np.testing.assert_array_equal(fc["level"], [500, 850])
    for name, level, channel in (("t", 500, 0), ("t", 850, 1), ("z", 500, 3), ("z", 850, 4)):
        np.testing.assert_array_equal(fc[name].sel(level=level)[0], fields[:, channel])
    np.testing.assert_array_equal(fc["t2m"][0], fields[:, 2])
    fc.to_netcdf(tmp_path / "fc.nc")
    with xr.open_dataset(tmp_path / "fc.nc") as back:
        xr.testing.assert_identical(back.load(), fc)
