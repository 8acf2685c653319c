"""Command line."""

import pytest
import xarray as xr
from worlds import box, forecaster, globe

from xscalemixer.__main__ import main


@pytest.fixture
def file(tmp_path):
    globe().to_netcdf(tmp_path / "globe.nc")
    forecaster().save(tmp_path / "tiny")
    return tmp_path


def test_check_tells_and_returns_the_verdict(file, capsys):
    assert main(["check", str(file / "globe.nc"), "--model", str(file / "tiny")]) == 0
    assert "ready" in capsys.readouterr().out
    globe().drop_vars("sp").to_netcdf(file / "bad.nc")
    assert main(["check", str(file / "bad.nc"), "--model", str(file / "tiny")]) == 1


def test_forecast_writes_a_store(file, capsys):
    arguments = [
        "forecast",
        str(file / "globe.nc"),
        "--model",
        str(file / "tiny"),
        "--hours",
        "3",
        "--to",
        str(file / "run.zarr"),
    ]
    assert main(arguments) == 0
    assert xr.open_zarr(file / "run.zarr").sizes["lead_time"] == 3
    assert main(arguments) == 1  # it exists
    assert "overwrite" in capsys.readouterr().err


def test_warm_start_and_coupling_from_the_shell(file, capsys):
    box().to_netcdf(file / "box.nc")
    inputs = [str(file / "globe.nc"), "--model", str(file / "tiny"), "--regional", str(file / "box.nc")]
    assert main(["check", *inputs]) == 0
    assert "cold start" not in capsys.readouterr().out
    assert main(["forecast", *inputs, "--hours", "1", "--to", str(file / "warm.zarr"), "--diagnose", "--device", "cpu"]) == 0
    assert "region_moves_driver_inside" in capsys.readouterr().out
    assert xr.open_zarr(file / "warm.zarr").attrs["start"] == "warm"


def test_missing_file_is_one_line(capsys):
    assert main(["check", "nowhere.grib2"]) == 1
    assert "nowhere.grib2" in capsys.readouterr().err


def test_models(capsys):
    assert main(["models"]) == 0
    assert "twin-ea-small" in capsys.readouterr().out


def test_demo_leaves_a_forecast_and_a_map(tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path / "output")]) == 0
    fc = xr.open_dataset(tmp_path / "output" / "forecast.nc")
    assert fc.sizes["lead_time"] == 48
    assert (tmp_path / "output" / "forecast.png").stat().st_size > 50_000
    assert "48-hour regional forecast by hengduan-0p05" in capsys.readouterr().out
