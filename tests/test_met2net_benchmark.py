"""What the comparison of ways of training says, and that it goes on where it was stopped."""

import argparse
import re
from dataclasses import replace

import numpy as np
import pytest
from programs import benchmark_module


@pytest.fixture(scope="module")
def benchmark():
    with benchmark_module("met2net") as module:
        yield module


def test_what_is_saved_in_closed_form(benchmark):
    other = np.random.default_rng(0).random((3, 40, 2)) + 0.5
    value, low, high = benchmark.saved_of_sequences(0.8 * other, other)
    for each in (value, low, high):  # paired: however the samples differ, each of them saves 20 %
        np.testing.assert_allclose(each, 20.0)
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
