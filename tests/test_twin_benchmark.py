"""The comparison in the twin world: who is trained how, on what it is scored, and what the gains are made of."""

import numpy as np
import pytest
import torch
import xarray as xr
from programs import benchmark_module
from worlds import HOUR, START, box

import xscalemixer as xsm
from xscalemixer.nn.scalemixer import CoupledModel, ScaleMixerConfig

INIT = START + np.arange(0, 120, 6) * HOUR


@pytest.fixture(scope="module")
def benchmark():
    with benchmark_module("twin_ea") as module:
        yield module


def test_starts_stay_within_what_is_held_out(benchmark):
    times = np.arange("2001-05-14", "2002-08-20", 6, dtype="M8[h]").astype("M8[ns]")
    tree = xr.DataTree.from_dict({"/global": xr.Dataset(coords={"time": times})})
    for name, periods in benchmark.BLOCKS.items():
        found = benchmark.starts(tree, name)
        first, last = found - 6 * HOUR, found + 48 * HOUR
        inside = [(first >= np.datetime64(a)) & (last <= np.datetime64(b)) for a, b in periods]
        assert found.size and np.any(inside, axis=0).all()
    assert benchmark.starts(tree).size == 2 * 4
    assert set(np.diff(benchmark.starts(tree, "later run")) / HOUR) == {18.0}
    assert {int(str(t)[11:13]) for t in benchmark.starts(tree, "later run")} == {0, 6, 12, 18}  # all hours of the day


def test_trained_parameters_are_within_a_tenth_of_those_of_scalemixer(benchmark):
    """But for depth, which is what two of them are about."""

    def trained(system):
        with torch.device("meta"):
            model = CoupledModel(ScaleMixerConfig.small(**system.network))
        return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("outer."))

    counts = {system.name: trained(system) for system in benchmark.SYSTEMS}
    shares = {name: count / counts[benchmark.BEST] for name, count in counts.items() if not name.startswith("L_r")}
    assert len(shares) == len(benchmark.SYSTEMS) - 2 and all(0.9 < share < 1.1 for share in shares.values())


def test_all_have_the_same_samples_updates_and_rates(benchmark):
    setting = benchmark.SETTINGS["cpu"]
    plans = {
        tuple((stage.updates, stage.batch, stage.steps, stage.peak, stage.floor) for stage in config.stages)
        for config in (benchmark.regional_config(system, 0, setting) for system in benchmark.SYSTEMS)
    }
    assert len(plans) == 1


@pytest.fixture(scope="module")
def scored(benchmark, tmp_path_factory):
    """Systems whose errors are multiples of those of persistence, in every start."""
    truth, random = box(START + np.arange(0, 140) * HOUR, shape=(6, 8))[benchmark.VARIABLES], np.random.default_rng(0)
    for name in benchmark.VARIABLES:  # all of them change
        truth[name] = truth[name] * random.uniform(0.9, 1.0, (140, 1, 1)).astype("f4")
        truth[name].attrs = box()[name].attrs
    still = xsm.persistence_forecast(truth, INIT, 6)[benchmark.VARIABLES]
    valid = xr.DataArray(INIT[:, None] + np.arange(1, 7) * HOUR, dims=("reference_time", "lead_time"))
    real = truth.sel(time=valid).transpose(*still["t2m"].dims)
    worse = lambda factor: still.copy(data={v: real[v].values + factor * (still[v] - real[v].values) for v in truth.data_vars})
    factors = {"ScaleMixer #0": 0.8, "ScaleMixer #1": 0.9, "LAM #0": 1.0, "LAM #1": 1.2, "D regional only #0": 2.0}
    store = tmp_path_factory.mktemp("scores") / "scores.zarr"
    climatology = xsm.climatology(truth)
    systems = {name: worse(factor) for name, factor in factors.items()}
    by_lead = xsm.score(systems, truth, climatology=climatology, metrics=["rmse", "acc", "bias"], to=store)
    return by_lead, store


def test_gains_are_those_of_all_pairs_of_seeds(benchmark, scored):
    gains = benchmark.gain(scored[1], benchmark.by_system(scored[0]))
    assert set(gains) == {"LAM", "D regional only"}
    pairs = [100 * (1 - own / other) for own in (0.8, 0.9) for other in (1.0, 1.2)]
    for value, low, high in gains["LAM"]:
        assert value == pytest.approx(np.mean(pairs), rel=1e-3) and low <= min(pairs) + 1e-3 and high >= max(pairs) - 1e-3
    assert [row[0] for row in gains["D regional only"]] == pytest.approx([57.5] * 7, rel=1e-3)


def test_the_table_tells_ours_beside_the_claim(benchmark, scored):
    text = benchmark.tables(*scored)
    (line,) = [line for line in text.splitlines() if line.startswith("| D regional only") and "better" in line]
    assert line.endswith("| 57.5 | 45.9 | 7 better, 0 worse |")
    assert text.count("| ScaleMixer |") == 2 and "±" in text
