"""What the comparison of ways of training says, and that it goes on where it was stopped."""

import argparse
import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from programs import benchmark_module
from worlds import HOUR, START, box, globe

import xscalemixer as xsm
from xscalemixer.nn.met2net import Met2NetConfig


@pytest.fixture(scope="module")
def benchmark():
    with benchmark_module("met2net") as module:
        yield module


def test_what_is_saved_in_closed_form(benchmark):
    other = np.random.default_rng(0).random((3, 40, 2)) + 0.5
    value, low, high = benchmark.saved_of_sequences(0.8 * other[:1], other[:1])
    for each in (value, low, high):  # paired: however the samples differ, each of them saves 20 %
        np.testing.assert_allclose(each, 20.0)
    value, low, high = benchmark.saved_of_sequences(np.stack([0.7 * other[0], 0.9 * other[0]]), other[:1])
    np.testing.assert_allclose(np.stack([value, low, high])[:, 0], [20.0, 10.0, 30.0])  # from seed to seed
    value, low, high = benchmark.saved_of_sequences(other, other[:1])
    assert (low < value).all() and (value < high).all() and value.shape == (3,)


def test_parts_share_the_runs(benchmark):
    whole = benchmark.jobs("1/1", (0, 1, 2))
    halves = [benchmark.jobs(part, (0, 1, 2)) for part in ("1/2", "2/2")]
    assert sorted(whole) == sorted(halves[0] + halves[1]) and [way for way, seed in whole[:3]] == list(benchmark.WAYS)


def test_a_stopped_benchmark_goes_on_to_the_same_table(benchmark, tmp_path, monkeypatch, capsys):
    network = {"width": 4, "units": 2, "past": 2, "future": 2, "translator": {"width": 8, "depth": 1, "heads": 2}}
    brief = replace(benchmark.SETTINGS["shapes"]["try"], updates=4, size=16, network=network, test=16, seeds=(0,))
    monkeypatch.setitem(benchmark.SETTINGS["shapes"], "try", brief)
    monkeypatch.setattr(benchmark, "SAVE", 1)
    options = lambda name: argparse.Namespace(setting="try", runs=tmp_path / name, part="1/1")
    benchmark.shapes(options("whole"))
    loss, calls = benchmark.Met2NetStage.loss, []

    def stopping(self, batch):
        calls.append(self.training)
        return loss(self, batch) if sum(calls) < 7 else benchmark.sys.exit("stopped")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(benchmark.Met2NetStage, "loss", stopping)
        benchmark.shapes(options("cut"))
    spent = benchmark.cost(tmp_path / "cut" / "shapes-try" / "joint-0")["cpu_minutes"]
    benchmark.shapes(options("cut"))
    assert 0 < spent < benchmark.cost(tmp_path / "cut" / "shapes-try" / "joint-0")["cpu_minutes"]
    tables = [(tmp_path / name / "shapes-try" / "tables.md").read_text() for name in ("whole", "cut")]
    without_costs = [re.sub(r"\| [\d.e-]+ \| 1 \|", "", table) for table in tables]
    assert without_costs[0] == without_costs[1] and "| joint |" in tables[0] and "28.82 %" in tables[0]


def test_every_way_gets_the_same(benchmark):
    setting = benchmark.SETTINGS["twin"]["cpu"]
    configs = {way: benchmark.twin_config(way, 1, setting) for way in benchmark.WAYS}
    updates = {way: sum(stage.updates for stage in config.stages) for way, config in configs.items()}
    rates = {(stage.peak, stage.floor, stage.batch) for config in configs.values() for stage in config.stages}
    assert set(updates.values()) == {setting.updates} and len(rates) == 1
    same = ("train", "validation", "test", "variables", "reduced", "network", "seed")
    beside, encoders = (benchmark.beside_config(name, 1, setting) for name in benchmark.BESIDE)
    for name in same[:5]:
        assert len({str(getattr(config, name)) for config in (*configs.values(), beside, encoders)}) == 1, name
    assert all(len({str(getattr(config, name)) for config in configs.values()}) == 1 for name in same)
    assert beside.network["coupling"] == "none" and beside.seed == 1
    assert encoders.network == beside.network | {"variable_width": 18} and encoders.stages == beside.stages


@pytest.mark.parametrize(("task", "setting"), [("shapes", "cpu"), ("shapes", "gpu"), ("twin", "cpu"), ("twin", "gpu")])
def test_the_frozen_translator_forgets_its_random_weights(benchmark, task, setting):
    chosen = benchmark.SETTINGS[task][setting]
    config = benchmark.shapes_config("implicit", chosen)
    if task == "twin":
        config = Met2NetConfig.weatherbench().changed(chosen.network)
    assert 1 / (1 - config.objective.momentum) < 0.02 * chosen.updates


@pytest.fixture
def small(benchmark, monkeypatch):
    """A week of a small world in place of the twin world."""
    hours = START + np.arange(1, 169) * HOUR
    region = box(hours, shape=(10, 12))
    region["u10"] = region["u10"] + np.sin(np.arange(168) / 5.0)[:, None, None].astype("f4")
    tree = xr.DataTree.from_dict({"/global": globe(hours[5::6]), "/regional": region})
    day = lambda first, last: ((str(START + first * 24 * HOUR), str(START + last * 24 * HOUR)),)
    monkeypatch.setattr(benchmark, "read_twin_world", lambda data, later=None: tree)
    monkeypatch.setattr(benchmark, "TRAIN", day(0, 3))
    monkeypatch.setattr(benchmark, "TEST", day(5, 7))
    monkeypatch.setattr(benchmark, "BLOCKS", {"test blocks": day(5, 7)})
    network = {"width": 4, "units": 2, "translator": {"width": 8, "depth": 2, "heads": 2}}
    setting = benchmark.Setting(
        2, 2, 1e-3, network, "cpu", seeds=(0,), hours=13, validation=day(3, 4), whole=2, regional_only=None
    )
    monkeypatch.setitem(benchmark.SETTINGS["twin"], "try", setting)


def test_twin_from_training_to_the_model_with_its_card(benchmark, small, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "BOX", (slice(1, 9), slice(2, 12)))
    to = tmp_path / "met2net-twin-ea"
    options = {"setting": "try", "runs": tmp_path, "data": tmp_path, "later": None}
    benchmark.twin(argparse.Namespace(part="1/1", **options))
    text = (tmp_path / "twin-try" / "tables.md").read_text()
    assert text.count("| joint |") == 4  # two halves of the lead times, what is saved, costs
    assert "| MSE, hours 1 to 12 | t2m (K)2" in text and "23.39 %" in text
    assert "8 x 10 cells, test blocks: 4 starts, hours 1 to 13" in text

    score, scored = benchmark.score_twin, []

    def alone(tree, root, networks, *others):
        """Without twin-ea-small, which has another region."""
        scored.append(set(networks))
        return score(tree, root, {name: model for name, model in networks.items() if name == benchmark.SHIPPED}, *others)

    monkeypatch.setattr(benchmark, "score_twin", alone)
    benchmark.whole(argparse.Namespace(figures=tmp_path, publish=to, **options))
    text, model = (tmp_path / "whole-try" / "tables.md").read_text(), xsm.load(to)
    assert "10 x 12 cells, test blocks: 4 starts" in text and "| MSE that met2net-twin-ea saves, all hours, % |" in text
    assert scored == [{benchmark.SHIPPED, "twin-ea-small"}]
    assert all((tmp_path / f"met2net-{name}.png").stat().st_size > 5000 for name in ("attention", "maps"))
    assert model.name == "met2net-twin-ea" and model.about["finetuned"]["from"] == "met2net-implicit-0"
    assert text.strip() in (to / "CARD.md").read_text()
