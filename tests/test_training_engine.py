"""The loop: the same losses whatever the split, exact resumption after any kill, early stopping, several stages."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import train_tiny
from torch import nn

import xscalemixer as xsm
from xscalemixer.errors import CheckpointError, InputError
from xscalemixer.nn.blocks import DropPath
from xscalemixer.nn.draws import drawing_for, uniform
from xscalemixer.nn.met2net import Met2Net, Met2NetConfig, Met2NetObjective, ObjectiveConfig
from xscalemixer.report import Report
from xscalemixer.training import protocol
from xscalemixer.training.batches import Feed, Order, passes
from xscalemixer.training.checkpoints import Checkpoints, LossLog, owned, write_whole
from xscalemixer.training.engine import OneStage, Plan, Saving, fit
from xscalemixer.training.ranks import Ranks, process_count, ranks

CPU = Ranks(torch.device("cpu"))
HERE = Path(__file__).parent


class Line(nn.Module):
    """Fits y = 2 x with a network that drops samples at random."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
        self.drop = DropPath(0.3)
        self.steps = 0

    def loss(self, batch):
        return (self.drop(self.network(batch["x"])) - batch["y"]).abs().mean(), {}

    def trainable(self):
        return list(self.network.parameters())

    def after_step(self):
        self.steps += 1


def line_data(count):
    x = torch.linspace(-1, 1, count)[:, None]
    return [{"x": a, "y": 2 * a} for a in x]


def plan(**changes):
    settings = {"label": "line", "updates": 12, "batch": 4, "peak": 0.05, "floor": 1e-3, "check_every": 3, "precision": "fp32"}
    return Plan(**{**settings, **changes})


def saving(folder, **changes):
    return Saving(checkpoints=Checkpoints(folder / "line", {}), losses=folder / "losses.jsonl", **{"updates": 5, **changes})


def run(folder, **changes):
    objective = Line()
    history = fit(objective, line_data(10), line_data(7), plan(**changes), CPU, saving=saving(folder))
    return objective, history, (folder / "losses.jsonl").read_text()


# --- what an update sees


def test_every_sample_once_before_any_twice():
    order = Order(count=10, batch=4, seed=3)
    stream = [sample for update in range(1, 6) for sample in order(update)]
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert stream[:10] != stream[10:] != list(range(10))


def test_shares_of_the_ranks_make_up_the_batch():
    batch = list(range(100, 112))
    parts = [each for rank in range(2) for each in passes(batch, rank, 2, 4)]
    assert [len(each.samples) for each in parts] == [4, 2, 4, 2]
    assert [sample for each in parts for sample in each.samples] == batch
    assert [batch[each.first] for each in parts] == [each.samples[0] for each in parts]


def test_draws_belong_to_the_sample():
    with drawing_for(0, 6, 6, seed=1):
        together = uniform(6, 2), uniform(12)  # one row per sample, then two
    for first in (0, 3):
        with drawing_for(first, 3, 6, seed=1):
            torch.testing.assert_close(uniform(3, 2), together[0][first : first + 3], rtol=0, atol=0)
            torch.testing.assert_close(uniform(6), together[1][2 * first : 2 * first + 6], rtol=0, atol=0)


def test_accumulated_passes_are_one_batch(tmp_path):
    whole, pieces = (run(tmp_path / str(size), per_pass=size)[0].state_dict() for size in (4, 3))
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-5, atol=1e-6)


def test_order_of_batches_survives_threads():
    feed = Feed(line_data(50), torch.device("cpu"), workers=4)
    order = Order(50, 5, 0)
    plans = [each for update in range(1, 11) for each in passes(order(update), 0, 1, 2)]
    found = [batch["y"].flatten() / 2 for _, batch in feed(iter(plans))]
    x = torch.linspace(-1, 1, 50)
    assert all(torch.equal(x[each.samples], values) for each, values in zip(plans, found, strict=True))


def test_sample_that_cannot_be_read_stops_the_loop():
    feed = Feed(line_data(3), torch.device("cpu"), workers=2)
    with pytest.raises(IndexError):
        list(feed(iter(passes([0, 1, 2, 7], 0, 1, 1))))


# --- the loop


def test_learns_and_keeps_the_best(tmp_path):
    objective, history, _ = run(tmp_path, updates=60)
    assert history[-1]["validation"] < 0.5 * history[0]["validation"]
    best = min(record["validation"] for record in history)
    objective.eval()
    x = torch.stack([sample["x"] for sample in line_data(7)])
    assert objective.loss({"x": x, "y": 2 * x})[0].item() == pytest.approx(best, rel=1e-5)


def test_rate_rises_and_falls():
    rates = [plan(updates=100, warmup=10, peak=1.0, floor=0.1).rate(update) for update in range(1, 102)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0) and rates[-1] == pytest.approx(0.1)


def test_patience_ends_a_stage(tmp_path):
    _, history, _ = run(tmp_path, updates=60, peak=100.0, floor=100.0, ema=0.0, patience=2)
    assert history[-1]["update"] < 60 and len(history) == min(range(len(history)), key=lambda i: history[i]["validation"]) + 3


def test_exploding_gradients_are_clipped_and_told(caplog):
    history = fit(Line(), line_data(8), line_data(2), plan(updates=2, check_every=2, clip=1e-4), CPU)
    assert history[-1]["gradient_norm"] > 0.01
    assert "line: gradients with norms up to" in caplog.text and "were clipped to 0.0001; lower peak=0.05" in caplog.text


@pytest.mark.parametrize("what", ["training loss", "norm of the gradient"])
def test_nan_stops_and_the_checkpoint_before_goes_on(tmp_path, monkeypatch, what):
    *_, losses = run(tmp_path / "whole")
    original = Line.loss

    def spoiled(self, batch):
        value, parts = original(self, batch)
        zero = torch.zeros((), requires_grad=True) * self.network[0].bias.sum() * 0
        bad = torch.nan if what == "training loss" else zero.sqrt()  # 0, with a gradient of 0 / 0
        return (value + bad if self.training and self.steps == 7 else value), parts

    with monkeypatch.context() as patch:
        patch.setattr(Line, "loss", spoiled)
        with pytest.raises(
            InputError, match=f"(?s)stage line stopped.*the {what} is nan at update 8 of 12.*Try: lower peak=0.05"
        ):
            run(tmp_path / "cut")
    assert Checkpoints(tmp_path / "cut" / "line", {}).latest() == 5
    assert run(tmp_path / "cut")[2] == losses


def test_waiting_for_data_is_measured(tmp_path):
    class Slow(list):
        def __getitem__(self, item):
            time.sleep(0.02)
            return super().__getitem__(item)

    history = fit(Line(), Slow(line_data(8)), line_data(2), plan(updates=4, check_every=2), CPU)
    assert 0.5 < history[-1]["waiting"] <= 1.0


@pytest.mark.parametrize("way", ["implicit", "joint"])
def test_objective_with_parts_that_follow(way):
    """Met2Net's frozen translator moves with each update, by its momentum."""
    network = Met2Net(Met2NetConfig.tiny(objective=ObjectiveConfig(way=way)))
    objective = Met2NetObjective(network)
    c = network.config
    samples = [
        {"past": torch.randn(c.past, c.channels, 8, 8), "future": torch.randn(c.future, c.channels, 8, 8)} for _ in range(4)
    ]
    (stage,) = objective.stages
    history = fit(OneStage(objective, stage), samples, samples[:2], plan(updates=2, batch=2, check_every=1), CPU)
    assert len(history) == 3 and all(record["validation"] > 0 for record in history)


def test_each_update_draws_anew():
    drawn = []

    class Watched(Line):
        def loss(self, batch):
            if self.training:
                drawn.append(uniform(len(batch["x"])))
            return super().loss(batch)

    fit(Watched(), line_data(8), line_data(2), plan(updates=3), CPU)
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_after_step_once_per_update():
    seen = []

    class Watched(Line):
        def after_step(self):
            seen.append(1)

    fit(Watched(), line_data(8), line_data(2), plan(updates=5, per_pass=1), CPU)
    assert len(seen) == 5


# --- resumption


class KilledError(Exception):
    pass


@pytest.mark.parametrize("moment", range(1, 13))
def test_killed_at_any_update_goes_on_exactly(tmp_path, monkeypatch, moment):
    wanted, history, losses = run(tmp_path / "whole")
    original = Line.after_step

    def after_step(self):
        original(self)
        if self.steps == moment:
            raise KilledError

    monkeypatch.setattr(Line, "after_step", after_step)
    with pytest.raises(KilledError):
        run(tmp_path / "cut")
    monkeypatch.setattr(Line, "after_step", original)
    found, again, text = run(tmp_path / "cut")
    assert text == losses
    assert [record["validation"] for record in again] == [record["validation"] for record in history]
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize("step", ["replace", "unlink"])
def test_killed_while_saving_goes_on_exactly(tmp_path, monkeypatch, step):
    """Before a checkpoint has its name, and before old ones are removed."""
    *_, losses = run(tmp_path / "whole")
    original, calls = getattr(Path, step), []

    def dying(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == 4:
            raise KilledError
        return original(self, *args, **kwargs)

    settings = {"updates": 12}
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Path, step, dying)
        fit(Line(), line_data(10), line_data(7), plan(**settings), CPU, saving=saving(tmp_path, updates=1))
    assert run(tmp_path)[2] == losses


def test_last_two_checkpoints_and_the_best_are_kept(tmp_path):
    fit(Line(), line_data(10), line_data(7), plan(), CPU, saving=saving(tmp_path, updates=2))
    names = sorted(path.stem for path in (tmp_path / "line").iterdir())
    assert names[-2:] == ["update-00000010", "update-00000012"]
    assert 1 <= len(names[:-2]) <= 2 and all(name.startswith("best-") for name in names[:-2])


def spoil(path, how):
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 16]) + content[-2:])
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, caplog, how):
    *_, losses = run(tmp_path)
    spoil(sorted((tmp_path / "line").glob("update-*"))[-1], how)
    assert run(tmp_path)[2] == losses
    assert "update-00000010.safetensors cannot be used" in caplog.text


def test_no_flipped_bit_of_the_header_is_believed(tmp_path):
    """Any bit of what a checkpoint tells of itself: it is refused, or was padding."""
    folder = tmp_path / "s"
    Checkpoints(folder, {"seed": 1}).save(3, {"a": torch.ones(2)}, {"best": 3, "history": [0.5]}, {"a": torch.ones(2)})
    path = folder / "update-00000003.safetensors"
    whole = path.read_bytes()
    header, refused = whole.index(b"}}") + 2, 0
    for place in range(8, header):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            tensors, state, _ = Checkpoints(folder, {"seed": 1}).load(3)
        except CheckpointError:
            refused += 1
        else:
            assert state == {"best": 3, "history": [0.5]} and torch.equal(tensors["a"], torch.ones(2))
    assert refused > 0.9 * (header - 8)


def test_damaged_checkpoint_is_not_newer_than_those_after_it(tmp_path):
    *_, losses = run(tmp_path)
    spoil(tmp_path / "line" / "update-00000010.safetensors", "cut")
    fit(Line(), line_data(10), line_data(7), plan(), CPU, saving=saving(tmp_path, updates=3))
    assert (tmp_path / "losses.jsonl").read_text() == losses
    assert sorted(path.stem[-2:] for path in (tmp_path / "line").glob("update-*")) == ["09", "12"]


def test_damaged_best_weights_are_written_anew(tmp_path, caplog):
    *_, losses = run(tmp_path)
    for best in (tmp_path / "line").glob("best-*"):
        spoil(best, "flipped")
    assert run(tmp_path)[2] == losses and "its checksum differs" in caplog.text
    assert Checkpoints(tmp_path / "line", {}).latest() == 10
    assert len(list((tmp_path / "line").glob("update-*"))) == 2


def test_checkpoint_of_another_run_is_refused(tmp_path):
    store = Checkpoints(tmp_path / "0-global", {"seed": 0})
    store.save(5, {"a": torch.ones(1)}, {"best": 0}, {"a": torch.ones(1)})
    with pytest.raises(InputError, match="seed: the folder has 0, this run 1"):
        Checkpoints(tmp_path / "0-global", {"seed": 1}).latest()


def test_checkpoint_returns_what_was_saved(tmp_path):
    tensors = {"weights/a": torch.randn(3, 2), "optimizer/a/step": torch.tensor(3.0), "n": torch.tensor([2, 3])}
    store, state = Checkpoints(tmp_path / "s", {}), {"best": 2, "history": [{"loss": 0.1 + 0.2}]}
    store.save(7, tensors, state, {"a": torch.zeros(2)})
    found, again, best = store.load(store.latest())
    assert again == state and torch.equal(best["a"], torch.zeros(2))
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_torn_line_of_the_log_is_dropped(tmp_path):
    path = tmp_path / "losses.jsonl"
    path.write_text('{"update": 1}\n{"update": 2}\n{"upda')
    log = LossLog(path, 1)
    log.write({"update": 2, "train": 0.5})
    log.close()
    assert path.read_text() == '{"update": 1}\n{"update": 2, "train": 0.5}\n'


def test_file_is_whole_or_the_old_one(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space left on device")))
    with pytest.raises(OSError, match="no space"):
        write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_no_checkpoint_without_a_checksum(tmp_path):
    (tmp_path / "s").mkdir()
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "s" / "update-00000003.safetensors")
    with pytest.raises(CheckpointError, match="no checksum"):
        Checkpoints(tmp_path / "s", {}).load(3)
    assert Checkpoints(tmp_path / "s", {}).latest() == 0


def test_two_runs_never_share_a_folder(tmp_path):
    with owned(tmp_path / "runs"), pytest.raises(InputError, match="another process trains there"), owned(tmp_path / "runs"):
        pass
    with owned(tmp_path / "runs"):  # free again
        pass


# --- ranks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sharded": True}, "sharded=True needs several processes.*torchrun"),
        ({"device": "tpu"}, "device 'tpu' cannot be trained on"),
    ],
)
def test_what_one_process_cannot_do(settings, message):
    with pytest.raises(InputError, match=f"(?s){message}"), ranks(**settings):
        pass


def test_batches_must_be_shared_evenly():
    config, report = train_tiny.small_config(stages=train_tiny.stages(1)), Report("run")
    protocol._check_run(config, Ranks(torch.device("cpu"), 0, 3), None, report)
    with pytest.raises(InputError, match=r"(?s)4 problems.*batch=4. Needed: a multiple of the 3 processes. batch=6"):
        report.raise_errors()


def test_all_processes_keep_the_running_statistics_of_the_first():
    class Normed(Line):
        def __init__(self):
            super().__init__()
            self.network.insert(1, nn.BatchNorm1d(4))

    class Second(Ranks):
        def share(self, tensors):
            for tensor in tensors:
                tensor.fill_(7.0)

    objective = Normed()
    fit(objective, line_data(10), line_data(7), plan(), Second(torch.device("cpu")))
    assert (objective.network[1].running_mean == 7).all() and (objective.network[1].running_var == 7).all()


def test_processes_of_torchrun_are_counted(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert process_count() == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert process_count() == 3


# --- processes of their own


def lines(folder):
    return [json.loads(line) for path in sorted(folder.glob("*/losses.jsonl")) for line in path.read_text().splitlines()]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}


def launch(folder, *options, processes=1):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    return [sys.executable, *torchrun, str(HERE / "train_tiny.py"), str(folder), *options]


@pytest.fixture(scope="module")
def distributed(tmp_path_factory):
    """Folder of runs of two processes, "ddp" and "fsdp2", and of one, "one"."""
    folder = tmp_path_factory.mktemp("runs")
    subprocess.run(launch(folder, "--distributed", processes=2), env=environment(), check=True, capture_output=True)
    config, tree = train_tiny.small_config(stages=train_tiny.stages(2)), train_tiny.small_tree()
    xsm.train(config, tree, folder=folder / "one", min_samples=1)
    return folder


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_two_processes_give_the_losses_of_one(distributed, way):
    """With stochastic depth and augmentation, through all four stages."""
    one, two = lines(distributed / "one"), lines(distributed / way)
    assert len(one) == len(two) == 16
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    one, two = (safetensors.torch.load_file(distributed / name / "3-cold_start.safetensors") for name in ("one", way))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_killed_ten_times_gives_the_losses_of_a_run_that_was_not(tmp_path):
    options = ("--updates", "12", "--save-updates", "2")
    subprocess.run(launch(tmp_path / "whole", *options), env=environment(), check=True, capture_output=True)
    chance, kills = random.Random(0), 0
    while True:
        process = subprocess.Popen(launch(tmp_path / "cut", *options), env=environment(), stderr=subprocess.DEVNULL)
        before = len(lines(tmp_path / "cut"))
        while kills < 10 and process.poll() is None and len(lines(tmp_path / "cut")) <= before:
            time.sleep(0.01)
        if kills == 10:
            assert process.wait() == 0
            break
        time.sleep(chance.uniform(0.0, 1.0))
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    whole, cut = ([p.read_text() for p in sorted((tmp_path / name).glob("*/losses.jsonl"))] for name in ("whole", "cut"))
    assert cut == whole and len(whole) == 4
