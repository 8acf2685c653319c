"""Tables of the CorrDiff benchmark on Gaussian noise, where every number is known."""

import numpy as np
import pytest
import xarray as xr
from pairs import over_relief, trained
from programs import benchmark_module

from xscalemixer.nn.sampling import SolverConfig

HOUR = np.timedelta64(1, "h")
CENTER = {"t2m": 280.0, "u10": 0.0, "v10": 0.0, "q2m": 5e-3, "sp": 9e4, "tcc": 0.5, "ssrd": 500.0}
SIGMA = {"t2m": 2.0, "u10": 2.0, "v10": 2.0, "q2m": 1e-4, "sp": 200.0, "tcc": 0.02, "ssrd": 20.0}
UNITS = {"t2m": "K", "u10": "m s-1", "v10": "m s-1", "q2m": "1", "sp": "Pa", "tcc": "1", "ssrd": "W m-2"}
TIMES = np.datetime64("2001-06-01", "ns") + np.arange(12) * 6 * HOUR


@pytest.fixture(scope="module")
def benchmark():
    with benchmark_module("corrdiff") as module:
        yield module


def noise(scale: float, members: int = 0, seed: int = 0) -> xr.Dataset:
    random, ones = np.random.default_rng(seed), (members,) if members else ()
    dims = ("time", *(("member",) if members else ()), "latitude", "longitude")
    axes = {"time": TIMES, "latitude": np.arange(40.0, 20, -1), "longitude": np.arange(100.0, 124)}
    ds = xr.Dataset(coords=axes)
    for v, center in CENTER.items():
        values = center + scale * SIGMA[v] * random.standard_normal((TIMES.size, *ones, 20, 24))
        ds[v] = (dims, values, {"units": UNITS[v]})
    return ds


@pytest.fixture(scope="module")
def systems(benchmark):
    found = {"bilinear": noise(0.0), "regression": noise(0.0), benchmark.RAW: noise(0.5, 4, 1), "CorrDiff": noise(1.0, 8, 2)}
    return {name: benchmark.at_lead_zero(ds) for name, ds in found.items()}


@pytest.fixture(scope="module")
def truth():
    return noise(1.0, seed=3)


def test_ratio_of_members_that_are_like_the_truth(benchmark, systems, truth):
    """E|x - a| - E|x - x'| / 2 of one distribution is the root of one half of the mean error of its center."""
    for cell in benchmark.ratios(systems["CorrDiff"], systems["regression"], truth):
        value, low, high = (float(part.strip("[],")) for part in cell.split())
        assert value == pytest.approx(2**-0.5, abs=0.01) and low <= value <= high and high - low < 0.1


def test_no_interval_from_two_days(benchmark, systems, truth):
    for starts, within in ((8, 0.015), (2, 0.03)):
        few = {name: ds.isel(reference_time=slice(starts)) for name, ds in systems.items()}
        (cell, *_) = benchmark.ratios(few["CorrDiff"], few["regression"], truth)
        assert float(cell) == pytest.approx(2**-0.5, abs=within)


def test_tables_tell_spread_from_its_lack(benchmark, systems, truth):
    lines = {line.split(" | ")[0].strip("| "): line for line in benchmark.ranks(systems, truth).splitlines()}
    outside = [float(cell) for cell in lines["CorrDiff"].split("|")[2:-1]]
    assert outside == pytest.approx([1.0] * 7, abs=0.1)
    assert min(float(cell) for cell in lines[benchmark.RAW].split("|")[2:-1]) > 1.3
    table = benchmark.tables(systems, truth).split("\n\n")[2].splitlines()
    assert [float(cell) for cell in table[-1].split("|")[2:-1]] == pytest.approx([1.0] * 7, abs=0.1)


def test_variance_of_short_waves(benchmark, systems, truth):
    text, power = benchmark.spectra(systems, truth)
    rows = [[float(cell) for cell in line.split("|")[2:-1]] for line in text.splitlines()[2:]]
    np.testing.assert_allclose(np.array(rows)[[0, 2, 3]], np.array([[0.0] * 7, [0.25] * 7, [1.0] * 7]), atol=0.1)
    assert power["system"].values.tolist() == ["truth", *systems]


def test_by_lead_time(benchmark, systems, truth):
    assert benchmark.by_lead(systems["CorrDiff"], truth) == ""
    later = systems["CorrDiff"].isel(reference_time=slice(10)).assign_coords(lead_time=[6])
    both = xr.concat([later.assign_coords(lead_time=[0]), later], "lead_time")
    both["lead_time"].attrs = later["lead_time"].attrs | {"units": "hours", "standard_name": "forecast_period"}
    first = benchmark.by_lead(both, truth).splitlines()[2].split("|")
    assert first[1].strip() == "t2m (K)" and [float(cell.split()[0]) for cell in first[2:4]] == pytest.approx([2.0, 2.0], abs=0.1)


def test_a_model_without_radiation(benchmark, systems, truth, tmp_path):
    few = {name: ds.drop_vars(["tcc", "ssrd"]) for name, ds in systems.items()}
    assert benchmark.tails(few, truth).splitlines()[0] == "| 99.9 % quantile | wind (m/s) |"
    for text in (benchmark.tables(few, truth), benchmark.ranks(few, truth), benchmark.spectra(few, truth)[0]):
        assert "tcc" not in text and "sp" in text
    for name, draw in (("ranks", benchmark.draw_ranks), ("maps", benchmark.draw_maps)):
        draw(few, truth, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_pictures(benchmark, systems, truth, tmp_path):
    power = benchmark.spectra(systems | {benchmark.CARRIED: systems["bilinear"]}, truth)[1]
    for name, draw in (("ranks", benchmark.draw_ranks), ("maps", benchmark.draw_maps)):
        draw(systems, truth, tmp_path / f"{name}.png")
    benchmark.draw_spectra(power, tmp_path / "spectra.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("ranks", "maps", "spectra"))


def test_a_model_as_it_was_trained(benchmark):
    model = trained()
    model.network.spread.fill_(2.0)
    model.solver = SolverConfig.fast()
    raw = benchmark.uncalibrated(model)
    assert raw.network.spread.unique().tolist() == [1.0] and raw.solver == SolverConfig()
    assert model.network.spread.unique().tolist() == [2.0] and model.solver == SolverConfig.fast()


def test_interpolated_at_sea_level_and_carried_back(benchmark):
    tree, channels = over_relief(), ("t2m", "sp")
    pair = {"inputs": channels, "outputs": channels}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pairs.pair", lambda: tree)
        model = trained(**pair)
    truth = tree["target"].to_dataset()
    found = benchmark.carried(tree["input"].to_dataset(), model, channels)
    assert {"t2m", "sp"} <= set(found) and found["sp"].attrs["units"] == "Pa"
    for name, within in (("t2m", 0.02), ("sp", 5.0)):
        np.testing.assert_allclose(found[name].transpose(*truth[name].dims), truth[name], atol=within)
