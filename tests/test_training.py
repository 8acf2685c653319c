"""Training: every stage runs, repeats itself, resumes, and leaves alone what it must."""

import json
import math

import numpy as np
import pytest
import torch
import xarray as xr
from worlds import HOUR, LEVELS, OUTER, START, box, globe

import xscalemixer as xsm
from xscalemixer.errors import InputError, TimeError
from xscalemixer.grids import Grid
from xscalemixer.training import Stage, TrainConfig, channel_weights, data, engine, objectives
from xscalemixer.training.data import ColdStartSamples, FromScratch, TrainingData
from xscalemixer.training.objectives import row_weights
from xscalemixer.variables import Schema

pytestmark = pytest.mark.usefixtures("few_samples")
HOURS = START + np.arange(1, 73) * HOUR
PERIODS = {"train": ((str(START), "2020-06-03T12"),), "validation": (("2020-06-03T12", "2020-06-04T12"),)}
STAGES = tuple(
    Stage(kind=kind, updates=2, batch=2, steps=steps)
    for kind, steps in (("global", 1), ("regional", 1), ("rollout", 2), ("cold_start", 1))
)
SMALL = Grid.regular("87.1875", "2.8125", "5.625", (32, 64))


@pytest.fixture(scope="module")
def tree():
    outer = globe(HOURS[5::6], np.array(SMALL.latitude), np.array(SMALL.longitude))
    return xr.DataTree.from_dict({"/global": outer, "/regional": box(HOURS)})


def config(**changes):
    settings = {"name": "tiny", "size": "tiny", "stages": STAGES, "check_every": 1, "warmup": 1, **PERIODS}
    settings |= {"global_variables": OUTER.names, "global_levels": LEVELS}
    return TrainConfig(**{**settings, "network": {"sunlit_channel": 6}, **changes})


@pytest.fixture(scope="module")
def trained(tree):
    return xsm.train(config(), tree)


def test_trained_model_forecasts_and_can_be_saved(trained, tree, tmp_path):
    trained.save(tmp_path / "tiny")
    fc = tree.scalemixer.forecast(7, model=xsm.load(tmp_path / "tiny"))
    assert fc.attrs["start"] == "warm" and np.isfinite(fc["t2m"]).all()
    assert [stage["kind"] for stage in trained.about["training"]] == ["global", "regional", "rollout", "cold_start"]


def test_same_seed_same_weights(trained, tree):
    again = xsm.train(config(), tree)
    for name, value in trained.modules.state_dict().items():
        assert torch.equal(value, again.modules.state_dict()[name]), name


def test_interrupted_run_goes_on_with_the_next_stage(trained, tree, tmp_path):
    xsm.train(config(stages=STAGES[:2]), tree, folder=tmp_path)
    resumed = xsm.train(config(), tree, folder=tmp_path)
    for name, value in trained.modules.state_dict().items():
        assert torch.equal(value, resumed.modules.state_dict()[name]), name


def test_global_weights_stay_after_their_stage(tree):
    stages = (xsm.train(config(stages=STAGES[:n]), tree).network.outer.state_dict() for n in (1, 3))
    first, third = stages
    assert all(torch.equal(value, third[name]) for name, value in first.items())


def test_training_learns(tree, tmp_path):
    """Thirty updates take a fifth off the loss of the fresh weights."""
    stage = Stage(kind="regional", updates=30, batch=2, peak=5e-3, global_weight=0.0)
    xsm.train(config(stages=(stage,), check_every=30), tree, folder=tmp_path)
    losses = [json.loads(line)["train"] for line in (tmp_path / "0-regional" / "losses.jsonl").read_text().splitlines()[1:-1]]
    assert len(losses) == 30 and np.mean(losses[-4:]) < 0.8 * np.mean(losses[:2])


# --- what is kept


def test_moving_average_forgets_the_first_iterate():
    """After 100 updates the first one weighs prod (1 + n) / (10 + n) for n = 1..99 = 100! 10! / 109!: nothing."""
    module = torch.nn.Linear(1, 1, bias=False).double()
    parameters = dict(module.named_parameters())
    average = engine.MovingAverage(parameters, 0.998)
    shares = []
    for update in range(100):
        torch.nn.init.constant_(module.weight, float(update == 0))
        average.update(parameters)
        shares.append(average.values["weight"].item())
    assert shares[:3] == pytest.approx([1, 2 / 11, 2 / 11 * 3 / 12])
    assert shares[-1] == pytest.approx(math.factorial(100) * math.factorial(10) / math.factorial(109), rel=1e-9)
    assert shares[-1] < 0.05


def test_moving_average_keeps_its_decay_later():
    module = torch.nn.Linear(1, 1, bias=False).double()
    parameters = dict(module.named_parameters())
    average = engine.MovingAverage(parameters, 0.5)
    for value in (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0):  # (1 + 9) / (10 + 9) > 0.5
        torch.nn.init.constant_(module.weight, value)
        average.update(parameters)
    assert average.values["weight"].item() == pytest.approx(0.5)


def test_average_stands_in_for_a_while():
    module = torch.nn.Linear(1, 1, bias=False)
    parameters = dict(module.named_parameters())
    average = engine.MovingAverage(parameters, 0.5)
    start = module.weight.item()
    torch.nn.init.constant_(module.weight, 9.0)
    with average.standing_in(parameters):
        assert module.weight.item() == start
    assert module.weight.item() == 9.0


def test_starting_weights_are_kept_if_training_makes_them_worse(tree):
    """At this rate the first update spoils the network."""
    stage = Stage(kind="global", updates=1, batch=2, peak=10.0)
    model = xsm.train(config(stages=(stage,), ema=0.0), tree)
    assert model.about["training"][0]["update"] == 0
    torch.manual_seed(0)
    fresh = FromScratch(config()).fresh(TrainingData.of(config(), tree))
    assert all(
        torch.equal(a, b) for a, b in zip(model.network.state_dict().values(), fresh.network.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("augment", "message"), [(True, "training loss is nan at update 1"), (False, "validation loss is nan at update 0")]
)
def test_loss_that_is_not_finite_stops(tree, monkeypatch, augment, message):
    loss = objectives.CoupledObjective.loss

    def spoiled(self, batch):
        value, parts = loss(self, batch)
        return (value * torch.nan if self.training is augment else value), parts

    monkeypatch.setattr(objectives.CoupledObjective, "loss", spoiled)
    with pytest.raises(InputError, match=f"(?s)stage regional stopped.*{message} of 2.*lower peak="):
        xsm.train(config(stages=STAGES[1:2]), tree)


@pytest.fixture(scope="module")
def kept(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    xsm.train(config(stages=STAGES[:1]), tree, folder=folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed: the folder has 0, this run 1"),
        ({"train": ((str(START), "2020-06-03T06"),)}, "(?s)outer statistics.*train: the folder has"),
        ({"stages": (Stage(kind="global", updates=3, batch=2),)}, r"stages\[0\].updates: the folder has 2, this run 3"),
    ],
)
def test_stages_of_another_run_are_refused(tree, kept, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        xsm.train(config(stages=STAGES[:1], **changes) if "stages" not in changes else config(**changes), tree, folder=kept)
    assert "or delete" in str(caught.value) and 'folder="' in str(caught.value)


def test_stages_of_other_data_are_refused(tree, kept):
    other = tree.copy()
    other["regional"] = xr.DataTree(box(HOURS).assign(sp=lambda ds: (ds["sp"] + 10).assign_attrs(ds["sp"].attrs)))
    with pytest.raises(InputError, match="inner data: the folder has"):
        xsm.train(config(stages=STAGES[:1]), other, folder=kept)


def test_another_name_is_the_same_run(tree, kept, caplog):
    caplog.set_level("INFO", "xscalemixer")
    assert xsm.train(config(name="other", stages=STAGES[:1]), tree, folder=kept).name == "other"
    assert "finished earlier" in caplog.text


def test_stages_without_a_record_are_refused(tree, tmp_path):
    (tmp_path / "0-global.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="0-global.safetensors: nothing beside it tells"):
        xsm.train(config(), tree, folder=tmp_path)


# --- bad input: one error that lists everything, before anything runs


def test_missing_group_is_named(tree):
    with pytest.raises(InputError, match=r"Needed: '/regional'. Build it: xr.DataTree"):
        xsm.train(config(), xr.DataTree.from_dict({"/global": tree["global"].to_dataset()}))


def test_too_little_data(tree):
    with pytest.raises(TimeError, match="train: no training window fits into 1 periods with 1 global"):
        xsm.train(config(train=((str(START), "2020-06-01T20"),)), tree)
    with pytest.raises(TimeError, match="validation: .* with 0 global and 0 regional times"):
        xsm.train(config(validation=(("1999-01-01", "1999-02-01"),)), tree)


def test_nan_in_the_data_is_named(tree):
    broken = tree.copy()
    regional = broken["regional"].to_dataset().copy(deep=True)
    regional["t2m"][30, 3, 3] = np.nan
    broken["regional"] = xr.DataTree(regional)
    with pytest.raises(InputError, match="t2m"):
        xsm.train(config(), broken, skip=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "huge"}, """size: 'huge'. Needed: one of "tiny", "small", "fine", "base", "paper". size="tiny\""""),
        ({"precision": "fp16"}, """precision: 'fp16'. Needed: one of "bf16", "fp32\""""),
        ({"network": {"colour": 1}}, "network: size='tiny'.*colour"),
        ({"network": {"blocks": 3}}, "outer depth 4 is not a multiple of blocks=3"),
        ({"stages": STAGES[1::-1]}, r"stages\[1\] \(global\): it follows a regional stage.*to the front"),
        ({"stages": ()}, "stages: none. Needed: at least one"),
        ({"stages": (Stage(kind="global", updates=0),)}, r"stages\[0\] \(global\): updates=0. Needed: 1 or more"),
        ({"stages": (Stage(kind="global", updates=1, peak=0.0),)}, "peak=0.0.*Needed: 0 < peak"),
        ({"calendar": ("moon",)}, r"calendar: unknown parts \['moon'\]"),
        ({"ema": 1.0}, "ema: 1.0. Needed: 0 or more and less than 1"),
        ({"clip": 0.0}, "clip: 0.0. Needed: more than 0. clip=1.0"),
        ({"clip": math.nan, "seed": -1, "warmup": -1}, "(?s)seed: -1. Needed: 0 or more.*warmup: -1.*clip: nan"),
        ({"betas": (0.9, 1.0)}, r"betas: \(0.9, 1.0\). Needed: two of 0 or more and less than 1"),
        ({"betas": 0.9, "weight_decay": -0.1, "seed": None}, "(?s)seed: None.*betas: 0.9.*weight_decay: -0.1"),
        ({"stages": (Stage(kind="regional", updates=1, season_shift=-1.0),)}, "season_shift=-1.0. Needed: 0 or more"),
        ({"check_every": 0}, "check_every: 0. Needed: 1 or more"),
        ({"train": (("2020-06-03", "yesterday"),)}, "train: .*yesterday.*Needed: pairs of dates"),
    ],
)
def test_settings_that_cannot_work(tree, changes, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        xsm.train(config(**changes), tree)


def changed(tree, group, change):
    return xr.DataTree.from_dict({f"/{name}": tree[name].to_dataset() for name in tree.children} | {f"/{group}": change})


MINUTES = {number: np.timedelta64(number, "m") for number in (30, 90)}
LAT, LON = (np.array(axis) for axis in (SMALL.latitude, SMALL.longitude))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tree: tree["global"].to_dataset(), "a Dataset. Needed: a DataTree.*xr.DataTree.from_dict"),
        (lambda tree: changed(tree, "regional", box(HOURS).drop_vars("orog")), r"/regional: no orog.*ds.assign\(orog="),
        (
            lambda tree: changed(tree, "global", globe(START + np.arange(4) * MINUTES[90], LAT, LON)),
            r"/global: time: every 1.5 h. Needed: every 1 or 2 or 3 or 6 h. Get data that are",
        ),
        (
            lambda tree: changed(tree, "global", globe(START + np.arange(6) * MINUTES[30], LAT, LON)),
            "/global: time: every 0.5 h. Needed: every 1 or 2 or 3 or 6 h.*dt.minute == 0",
        ),
        (lambda tree: changed(tree, "regional", box(HOURS[::3])), "/regional: time: every 3 h. Needed: every 1 h"),
        (
            lambda tree: changed(tree, "global", globe(HOURS[5::6], LAT[16:], LON)),
            r"/regional: \d+ % of the regional grid .* outside",
        ),
    ],
    ids=["Dataset", "no orography", "driver out of step", "half-hourly driver", "three-hourly region", "region outside"],
)
def test_data_that_do_not_fit(tree, spoil, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        xsm.train(config(), spoil(tree))


def test_all_problems_of_settings_and_data_at_once(tree):
    bad = changed(tree, "global", globe(HOURS, LAT, LON).drop_vars(["lsm", "sp"]))
    with pytest.raises(InputError, match="4 problems") as caught:
        xsm.train(config(size="huge", precision="fp16"), bad)
    for subject in ("size: 'huge'", "precision: 'fp16'", "/global: no lsm", "/global: sp"):
        assert subject in str(caught.value)


def test_unknown_stage():
    with pytest.raises(ValueError, match="kind='magic'; choose"):
        Stage(kind="magic", updates=1)


def test_channel_weights_grow_with_pressure():
    usual = TrainConfig(name="", train=())
    schema = Schema.of(*usual.global_variables, levels=usual.global_levels)
    weights = dict(zip(schema.channels, channel_weights(schema).tolist(), strict=True))
    assert sum(weights.values()) == pytest.approx(1.0, abs=1e-6)
    assert weights["t_1000"] / weights["t_700"] == pytest.approx(1000 / 700, rel=1e-5)
    assert weights["t_500"] / weights["t_1000"] == pytest.approx(0.5 * 1.6, rel=1e-5)
    assert weights["t2m"] / weights["u10"] == pytest.approx(0.2 / 0.15, rel=1e-5)


def test_row_weights_have_mean_one():
    weights = row_weights(SMALL)
    assert weights.mean().item() == pytest.approx(1.0, abs=1e-6)
    assert weights[0] < weights[16]


def test_patches_start_where_global_cells_do():
    """1.125 degree cells in 5.625 degree cells: the box begins two rows and four columns inside one."""
    edges = np.linspace(90, -90, 33), np.linspace(0, 360, 65)
    inner = Grid.regular("64.6875", "61.3125", "1.125", (20, 30))  # north edge 67.5 - 2 rows, west edge 56.25 + 4 columns
    assert data._nesting_offset(edges, inner, 5) == (2, 4)
    flush = Grid.regular("66.9375", "56.8125", "1.125", (20, 30))
    assert data._nesting_offset(edges, flush, 5) == (0, 0)


@torch.inference_mode()
def test_cold_start_trains_on_what_it_will_be_given(tree):
    """The first sample, sent through the network by hand, is the history that a forecast would invent."""
    world = TrainingData.of(config(), tree)
    model = FromScratch(config()).fresh(world)
    torch.nn.init.normal_(model.cold_start.head.weight, std=0.1)
    samples = ColdStartSamples(world, model, PERIODS["train"])
    sample = {name: value[None] for name, value in samples[0].items()}
    i, j = samples.windows.starts[0]
    time = world.series["outer"].time[i]
    by_hand = model.scale_inner.inverse(model.cold_start(sample["fields"], sample["sun"]))
    invented = model.invent_history(torch.from_numpy(world.series["outer"].values[i : i + 1]), time)
    torch.testing.assert_close(invented, model.bound(by_hand, sample["sun"] * model.sunlit_scale))
    truth = world.series["inner"]
    assert truth.time[j] == time
    wanted = torch.from_numpy(truth.values[None, j - 5 : j + 1])
    torch.testing.assert_close(model.scale_inner.inverse(sample["inner"]), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("coupling", ["lam", "nested", "downscaled"])
def test_baselines_train_save_and_forecast(tree, tmp_path, coupling):
    model = xsm.train(config(network={"sunlit_channel": 6, "coupling": coupling}), tree)
    model.save(tmp_path / coupling)
    fc = tree.scalemixer.forecast(7, model=xsm.load(tmp_path / coupling))
    assert np.isfinite(fc["t2m"]).all() and fc.attrs["start"] == "warm"


def test_shared_channels_carry_global_values_into_regional_units(tree):
    run = config(network={"sunlit_channel": 6, "coupling": "lam"})
    prepared = TrainingData.of(run, tree)
    rows = FromScratch(run).fresh(prepared).network.config.shared
    names = [prepared.inner.schema.channels[row[0]] for row in rows]
    assert names == ["t2m", "u10", "v10", "q2m", "sp"]
    _, outer, scale, offset = rows[0]
    assert prepared.outer.schema.channels[outer] == "t2m"
    kelvin = 285.0
    normalized = [(kelvin - branch.stats.mean["t2m"]) / branch.stats.std["t2m"] for branch in (prepared.outer, prepared.inner)]
    assert normalized[0] * scale + offset == pytest.approx(normalized[1], rel=1e-5)
