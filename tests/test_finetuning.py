"""Fine-tuning: any grid, fewer variables, adapters; what is taken over, kept, refused."""

import ast
import copy
import json
from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr
from train_tiny import PERIODS, small_config, small_tree
from worlds import HOUR, START, box, forecaster, globe

import xscalemixer as xsm
from xscalemixer.__main__ import main
from xscalemixer.errors import CheckpointError, InputError, SchemaError, TimeError
from xscalemixer.nn.patch import TokenGrid
from xscalemixer.starting import _onto_terrain
from xscalemixer.training import adapting, estimating, finetuning
from xscalemixer.training.adapting import Adaptation
from xscalemixer.training.data import TrainingData, check_unseen

TIMES = START + np.arange(1, 73) * HOUR
TEST = (("2020-06-04T06", "2020-06-04T12"),)
QUICK = {"epochs": 1, "precision": "fp32", **PERIODS}
COLD = (xsm.Stage(kind="cold_start", updates=1, batch=1),)
BOTH = (xsm.Stage(kind="regional", updates=1, batch=2), *COLD)


def tree_of(outer, inner) -> xr.DataTree:
    return xr.DataTree.from_dict({"/global": outer, "/regional": inner})


@cache
def alpine(shape=(8, 15), step=0.135, cells=(20, 30), fine=0.027, drop=(), drop_regional=()) -> xr.DataTree:
    """A driver that is a box, and a region in it; not where the model was trained."""
    outer = globe(TIMES[5::6], 46.0 - step * np.arange(shape[0]), 7.0 + step * np.arange(shape[1]))
    inner = box(TIMES, north=46.0, west=7.0, step=fine, shape=cells)
    return tree_of(outer.drop_vars(list(drop)), inner.drop_vars(list(drop_regional)))


@pytest.fixture(scope="module", autouse=True)
def few_samples():
    """The made-up world lasts three days."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(xsm.finetune.__kwdefaults__, "min_samples", 1)
        yield


@pytest.fixture(scope="module")
def base():
    return forecaster()


@pytest.fixture(scope="module")
def tree():
    return small_tree()


def adapted(base, tree, missing=(), statistics="new"):
    """The model before any update, and what it has from its base."""
    schemas = finetuning._schemas(base, missing, {}, Adaptation.titles, xsm.Report(""))
    contract = Adaptation(base, schemas, statistics)
    config = xsm.TrainConfig(name="x", stages=(xsm.Stage(kind="regional", updates=1, batch=1),), **PERIODS)
    return contract.begin(TrainingData.of(config, tree, contract), config)


# --- what moves along


def test_same_grids_and_variables_take_over_everything(base, tree):
    model, takeover = adapted(base, tree)
    assert takeover.share == 1 and not takeover.anew and not takeover.sliced
    for name, value in base.modules.named_parameters():
        assert torch.equal(value, dict(model.modules.named_parameters())[name]), name


@pytest.mark.parametrize("width", [0, 5])
def test_equal_variables_keep_their_weights(tree, width):
    """Without z and tcc: the network gives for the others what the old one gives where the lost inputs are 0.

    With an encoder for each variable 0 has features too, so that of tcc is made to give none.
    """
    base = forecaster(variable_width=width)
    if width:
        for parameter in base.network.inner.embedding.narrow.parameters():
            torch.nn.init.zeros_(parameter[5 * width : 6 * width])
    thin = tree_of(tree["global"].to_dataset().drop_vars("z"), tree["regional"].to_dataset().drop_vars("tcc"))
    model, takeover = adapted(base, thin, ("z", "tcc"), "keep")
    assert len(takeover.sliced) == 3 + (5 if width else 1) + 6 * 2 + 2 and not takeover.anew
    torch.manual_seed(0)
    outer, inner = torch.randn(1, len(base.outer.schema), 32, 64), torch.randn(1, 6, 7, 40, 60)
    outer[:, :2], inner[:, :, 5] = 0.0, 0.0
    rest = torch.randn(1, 4), torch.randn(1, 2, 32, 64), torch.rand(1, 12, 40, 60)
    with torch.no_grad():
        old = base.network(outer, inner, *rest)
        new = model.network(outer[:, 2:], inner[:, :, [0, 1, 2, 3, 4, 6]], *rest)
        torch.testing.assert_close(new.outer, old.outer[:, 2:], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(new.inner, old.inner[:, :, [0, 1, 2, 3, 4, 6]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"coupling": "lam"}, {"coupling": "nested"}, {"coupling": "downscaled"}, {"driver_width": 3}]
)
def test_those_that_see_global_fields_move_too(tree, changes):
    base = forecaster(**changes)
    thin = tree_of(tree["global"].to_dataset().drop_vars("u10"), tree["regional"].to_dataset().drop_vars("tcc"))
    model, takeover = adapted(base, thin, ("global/u10", "tcc"))
    assert takeover.share == 1
    assert "u10" not in {model.inner.schema.channels[row[0]] for row in model.network.config.shared}


def test_cold_start_guesses_what_both_sides_have(base):
    drop = ("t2m", "q2m")
    model, _ = adapted(base, alpine(drop=drop, drop_regional=("v10",)), ("global/t2m", "global/q2m", "regional/v10"))
    assert [model.inner.schema.channels[i] for i in model.cold_start.config.guessed] == ["u10", "sp"]
    new, old = model.cold_start.widen.weight, base.cold_start.widen.weight
    assert torch.equal(new, old[:, [1, 4, *range(5, 16)]])


@pytest.mark.parametrize("carry", ["first guess", "start"])
def test_pressure_without_a_temperature_follows_the_standard_atmosphere(base, carry):
    """From 1 km to 3 km without t2m."""
    wanted = 89875.0 * (268.65 / 281.65) ** (9.80665 / (287.0597 * 0.0065))
    if carry == "start":
        ds = xr.Dataset({"sp": ("latitude", [89875.0]), "orog": ("latitude", [1000.0])})
        assert _onto_terrain(ds, np.array([3000.0]))["sp"].item() == pytest.approx(wanted, rel=1e-6)
        return
    model, _ = adapted(base, alpine(drop=("t2m",)), ("global/t2m",))
    model.network.outer.statics[0], model.network.inner.statics[0] = 1.0, 3.0
    fields = model.first_guess(np.full((1, len(model.outer.schema), 8, 15), 89875.0, "f4"), np.array([START]))
    sp = fields[0, 3] * model.scale_inner.std[4] + model.scale_inner.mean[4]
    np.testing.assert_allclose(sp, wanted, rtol=1e-5)


def test_keys_are_no_more_than_global_tokens(base):
    model, _ = adapted(base, alpine((4, 5), 0.25, (4, 5), 0.2))
    assert base.network.config.sampler.keys == 8 and model.network.config.sampler.keys == 2


def line(*values):
    return tuple(map(float, values))


def test_positions_move_to_tokens_of_similar_size():
    """A table that is linear in latitude and longitude is interpolated exactly."""
    old = TokenGrid(line(*range(40, 0, -1)), line(*range(60)), 4)
    new = TokenGrid(line(*np.arange(30, 10, -1.5)), line(*np.arange(10, 40, 1.5)), 4)
    table = torch.tensor(old.centers, dtype=torch.float32)
    moved, why = adapting._moved(table, old, new)
    assert not why
    np.testing.assert_allclose(moved, new.centers, atol=1e-4)


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (TokenGrid(line(30, 29.9), line(10, 10.1), 2), "tokens of 0.2 x 0.2 degrees instead of 4 x 4"),
        (TokenGrid(line(*range(-10, -30, -1)), line(*range(20)), 4), "another place on earth"),
        (TokenGrid(line(*range(30, 10, -1)), line(*range(50, 70)), 4), "another place on earth"),
    ],
)
def test_positions_start_anew_elsewhere(new, why):
    old = TokenGrid(line(*range(40, 0, -1)), line(*range(60)), 4)
    assert adapting._moved(torch.zeros(150, 2), old, new) == (None, why)


def test_statistics_of_the_model_or_of_the_data(base):
    tree = alpine()
    kept, new = (adapted(base, tree, ("tcc",), each)[0] for each in ("keep", "new"))
    assert kept.inner.stats.mean == {name: base.inner.stats.mean[name] for name in kept.inner.schema.channels}
    assert new.inner.stats.mean["sp"] == pytest.approx(float(tree["regional"]["sp"][:48].mean()), rel=1e-5)


def test_global_network_on_its_own_grid_stays_as_it_is(base, tree):
    model = xsm.finetune(tree, base, **QUICK)
    assert model.outer.stats == base.outer.stats
    assert [stage["kind"] for stage in model.about["training"]] == ["regional", "rollout", "cold_start"]
    for name, value in base.network.outer.state_dict().items():
        assert torch.equal(value, model.network.outer.state_dict()[name]), name


# --- the whole way


@pytest.mark.parametrize(
    ("tree", "missing"),
    [
        (alpine(), ()),
        (alpine((4, 5), 0.25, (4, 5), 0.25), ()),
        (alpine((2, 2), 0.25, (4, 5), 0.05), ()),
        (alpine(drop_regional=("u10", "v10", "tcc", "ssrd")), ("regional/u10", "regional/v10", "tcc", "ssrd")),
        (alpine(drop=("z", "t")), ("z", "t")),
        (alpine(drop=("t2m", "u10", "v10", "q2m", "sp")), tuple(f"global/{n}" for n in ("t2m", "u10", "v10", "q2m", "sp"))),
    ],
    ids=["15 km", "4x5 on 4x5", "2x2 driver", "three variables", "surface driver", "driver aloft only"],
)
def test_any_box_any_driver(base, tree, missing, tmp_path):
    before = base.weights_sha256()
    model = tree.scalemixer.finetune(base, missing=missing, stages=BOTH, **QUICK)
    assert base.weights_sha256() == before
    model.save(tmp_path / "mine")
    fc = tree.scalemixer.forecast(7, model=xsm.load(tmp_path / "mine"))
    assert fc.attrs["start"] == "warm" and set(model.inner.schema.names) == set(fc.data_vars) - {"orog", "lsm"}
    cold = xsm.hindcast(tree["global"].to_dataset(), ["2020-06-02T12", "2020-06-03T00"], 6, model=model)
    assert all(np.isfinite(data[name]).all() for data in (fc, cold) for name in model.inner.schema.names)
    about = json.loads((tmp_path / "mine" / "model.json").read_text())["about"]
    assert about["finetuned"]["from"] == "tiny" and about["finetuned"]["missing"] == list(missing)


def test_levels_may_be_missing(base):
    tree = alpine()
    thin = tree_of(tree["global"].to_dataset().sel(level=[850.0]), tree["regional"].to_dataset())
    model = xsm.finetune(thin, base, missing=500, stages=COLD, **QUICK)
    assert model.outer.schema.channels[:3] == ("z_850", "t_850", "t2m")


def test_low_rank_changes_are_of_low_rank(base, tree, tmp_path):
    model = xsm.finetune(tree, base, rank=2, stages=(xsm.Stage(kind="regional", updates=3, batch=2, peak=1e-2),), **QUICK)
    before, after = base.network, model.network
    change = lambda part: part(after) - part(before)
    layer = change(lambda network: network.inner.groups[0][0].attention.query.weight)
    assert torch.linalg.matrix_rank(layer, rtol=1e-4) == 2
    assert torch.linalg.matrix_rank(change(lambda network: network.inner.merge.weight), rtol=1e-4) > 2
    assert set(model.modules.state_dict()) == set(base.modules.state_dict())
    model.save(tmp_path / "mine")
    assert xsm.load(tmp_path / "mine").weights_sha256() == model.weights_sha256()


def test_interrupted_run_goes_on_exactly(base, tmp_path, monkeypatch):
    """Stopped after the second update of the regional stage, with adapters, on another grid, without ssrd."""
    stages = (xsm.Stage(kind="global", updates=2, batch=2), xsm.Stage(kind="regional", updates=3, batch=2))
    tree = alpine(drop_regional=("ssrd",))
    settings = {**QUICK, "missing": "ssrd", "rank": 2, "save_updates": 1, "stages": stages}
    whole = xsm.finetune(tree, base, folder=tmp_path / "whole", **settings)
    from xscalemixer.training.objectives import CoupledObjective

    loss, calls = CoupledObjective.loss, []

    def stopping(self, batch):
        calls.append(self.training)
        if sum(calls) > 4:  # two updates, after two passes that are timed
            raise KeyboardInterrupt
        return loss(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CoupledObjective, "loss", stopping)
        xsm.finetune(tree, base, folder=tmp_path / "cut", **settings)
    assert list((tmp_path / "cut" / "1-regional").glob("update-*"))
    again = xsm.finetune(tree, base, folder=tmp_path / "cut", **settings)
    assert again.weights_sha256() == whole.weights_sha256()
    logs = [(tmp_path / run / "1-regional" / "losses.jsonl").read_text() for run in ("whole", "cut")]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """The settings of a run whose folder is complete."""
    settings = {"model": base, "stages": COLD, "folder": tmp_path_factory.mktemp("finished"), **QUICK}
    xsm.finetune(alpine(), **settings)
    return settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 2}, "rank: the folder has None, this run 2"),
        ({"statistics": "keep"}, "statistics: the folder has 'new', this run 'keep'"),
        ({"model": forecaster(seed=1)}, "starting weights: the folder has"),
    ],
)
def test_folder_of_another_fine_tuning_is_refused(finished, changes, message):
    with pytest.raises(InputError, match=message):
        xsm.finetune(alpine(), **{**finished, **changes})


# --- periods


def test_last_fifth_validates_after_a_gap(caplog, base):
    tree = alpine()
    caplog.set_level("INFO", "xscalemixer")
    times = {"outer": START + np.arange(0, 2401, 6) * HOUR, "inner": START + np.arange(1, 2401) * HOUR}
    train, validation = finetuning._split(times, (), xsm.Report(""))
    assert (train, validation) == ((("2020-06-01T12", "2020-08-19T12"),), (("2020-08-20T12", "2020-09-09T12"),))
    model = xsm.finetune(tree, base, stages=COLD)
    assert "validation=(('2020-06-03T18', '2020-06-04T12'),)" in caplog.text
    assert model.about["trained_on"][-1]["validation"] == [["2020-06-03T18", "2020-06-04T12"]]


def test_one_day_without_validation(base, caplog):
    """From hourly global data; too few windows of a roll-out, which is left out."""
    hours = START + np.arange(1, 25) * HOUR
    outer = globe(hours, 46.0 - 0.135 * np.arange(8), 7.0 + 0.135 * np.arange(15))
    day = tree_of(outer, box(hours, north=46.0, west=7.0, step=0.054, shape=(10, 15)))
    periods = {"train": ((str(START), "2020-06-02T12"),), "validation": ()}
    model = xsm.finetune(day, base, epochs=1, min_samples=8, precision="fp32", **periods)
    assert [(s["kind"], s["updates"]) for s in model.about["training"]] == [("global", 4), ("regional", 4), ("cold_start", 4)]
    assert "tells nothing about other weather" in caplog.text


def test_choosing_by_times_that_the_model_has_seen_is_told(base, caplog):
    first = copy.deepcopy(base)
    first.about["trained_on"] = [{"train": [list(PERIODS["validation"][0])], "validation": []}]
    xsm.finetune(alpine(), first, stages=COLD, **QUICK)
    assert "validation: 'tiny' has trained on 2020-06-03T12 to 2020-06-04T12" in caplog.text


def test_default_periods_begin_with_the_driver():
    """Hours from long before are of no use; the first window ends with the first global time."""
    times = {"outer": START + np.arange(2400, 4801, 6) * HOUR, "inner": START + np.arange(1, 4801) * HOUR}
    train, _ = finetuning._split(times, (), xsm.Report(""))
    assert train[0][0] == str((START + 2394 * HOUR).astype("datetime64[h]"))


def test_default_batches_are_shared_evenly():
    rates = {kind: 1e-4 for kind in ("global", "rollout")}
    made = finetuning._default_stages(rates, lambda *_: 30, PERIODS["train"], PERIODS["validation"], 5, {}, 1, 8)
    assert [(stage.batch, stage.updates) for stage in made] == [(8, 19), (8, 4)]


def test_default_periods_leave_out_what_is_tested_on():
    times = {name: START + np.arange(1, 1001) * HOUR for name in ("outer", "inner")}
    test = (("2020-06-10", "2020-06-15"), ("2020-07-10", "2020-07-20"))
    train, validation = finetuning._split(times, test, xsm.Report(""))
    assert train == (("2020-06-01T12", "2020-06-10T00"), ("2020-06-15T00", "2020-07-02T07"))
    assert validation == (("2020-07-03T07", "2020-07-10T00"),)


def test_verdict_on_times_that_the_model_has_seen_is_refused(base):
    tree = alpine()
    first = xsm.finetune(tree, base, stages=COLD, **QUICK)
    periods = {"train": (("2020-06-01", "2020-06-02T12"),), "validation": (("2020-06-02T18", "2020-06-03T12"),), "test": TEST}
    message = "'tiny-finetuned' has been chosen by 2020-06-04T06 to 2020-06-04T12, in this region"
    with pytest.raises(TimeError, match=message):
        xsm.finetune(tree, first, stages=COLD, **periods)


def test_the_same_times_elsewhere_are_told(caplog):
    first = forecaster()
    first.about["trained_on"] = [{"train": [["2020-06-04", "2020-06-05"]], "validation": [], "inner grid": "another"}]
    report = xsm.Report("")
    check_unseen(first, TEST, (), "inner", None, report)
    assert report.ok and "has trained on 2020-06-04T06 to 2020-06-04T12, in another region" in str(report)


def test_train_tells_on_what_it_trained(tree):
    model = xsm.train(small_config(stages=COLD), tree, min_samples=1)
    (row,) = model.about["trained_on"]
    assert row["train"] == [list(period) for period in PERIODS["train"]] and "inner grid" in row


# --- before anything is trained


def test_all_that_is_wrong_at_once(base):
    with pytest.raises(InputError, match="7 problems") as caught:
        xsm.finetune(globe(), "nix", epochs=0, rank=0, statistics="old", least=3, train=PERIODS["train"])
    told = str(caught.value)
    for part in (
        "epochs=5",
        'statistics="new"',
        "rank=8",
        "least=0.5",
        "Add validation=",
        "no model 'nix'",
        "xr.DataTree.from_dict",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("drop", "drop_regional", "missing", "line"),
    [
        ((), ("tcc",), (), 'missing=("tcc",)'),
        (("u10",), (), (), 'missing=("global/u10",)'),
        (("u10",), ("u10",), (), 'missing=("u10",)'),
        (("z",), ("tcc",), ("ssrd",), 'missing=("ssrd", "z", "tcc")'),
        (("z", "t"), (), (), 'missing=("z", "t")'),
    ],
)
def test_what_the_data_lack_can_be_pasted(base, drop, drop_regional, missing, line):
    tree = alpine(drop=drop, drop_regional=(*drop_regional, *missing))
    with pytest.raises(SchemaError) as caught:
        xsm.finetune(tree, base, missing=missing)
    assert f"To do without: {line}" in str(caught.value)
    assert adapted(base, tree, ast.literal_eval(line.removeprefix("missing=")))


def test_levels_that_the_data_lack_can_be_pasted(base):
    tree = alpine()
    outer = tree["global"].to_dataset()
    whole, part = outer.sel(level=[850.0]), outer.drop_vars("z").merge(outer["z"].sel(level=[850.0]).rename(level="lev"))
    for thin, line in ((whole, "missing=(500,)"), (part, 'missing=("z_500",)')):
        with pytest.raises(SchemaError) as caught:
            xsm.finetune(tree_of(thin, tree["regional"].to_dataset()), base)
        assert f"To do without: {line}" in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (("tccc",), """'tccc' is none of the model's.*Is it "tcc"?"""),
        ((51,), "51 is none of the model's"),
        (("regional/z",), "'regional/z' is none"),
        (5.5, "5.5 is none"),
        (("t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd"), "leaves nothing of /regional"),
    ],
)
def test_names_that_make_no_sense(base, tree, missing, message):
    with pytest.raises(SchemaError, match=message):
        xsm.finetune(tree, base, missing=missing)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": "five"}, "epochs: 'five'"),
        ({"epochs": float("nan")}, "epochs: nan"),
        ({"rank": 1.5}, "rank: 1.5"),
        ({"stages": ("regional",)}, r"stages: \('regional',\). Needed: stages"),
        ({"stages": ()}, "stages: none. Needed: at least one"),
        ({"test": "2020"}, "test: '2020'. Needed: pairs of dates"),
        ({"train": "2020", "validation": "2021"}, "(?s)train: '2020'.*validation: '2021'"),
        ({"test": PERIODS["validation"]}, "test: it shares 2020-06-03T12 to 2020-06-04T12 with validation="),
        ({"per_pass": 0}, "per_pass=0. Needed: 1 or more"),
        ({"precision": "fp16"}, "precision: 'fp16'"),
    ],
)
def test_settings_that_cannot_work(base, settings, message):
    with pytest.raises(InputError, match=message):
        xsm.finetune(alpine(), base, **{**QUICK, **settings})


def test_little_data_is_told_in_hours(base):
    short = alpine()
    inner = short["regional"].to_dataset().isel(time=slice(0, 10))
    with pytest.raises(TimeError, match="10 hours in both groups outside of test=. Needed: at least 36"):
        xsm.finetune(tree_of(short["global"].to_dataset(), inner), base)


def test_too_little_taken_over_is_refused(base):
    message = r"(?s)99.* % of the parameters are taken over.*position.table starts anew: .*accept it: least=0\.9"
    with pytest.raises(CheckpointError, match=message):
        xsm.finetune(alpine(), base, least=1, **QUICK)


def test_half_of_the_parameters_are_asked_for_by_default(base, monkeypatch):
    monkeypatch.setattr(adapting.Takeover, "share", property(lambda _: 0.49))
    with pytest.raises(CheckpointError, match="needed 50 % of the parameters"):
        xsm.finetune(alpine(), base, stages=COLD, **QUICK)


@pytest.mark.parametrize(("share", "level"), [(0.94, "WARNING"), (0.96, "INFO")])
def test_what_is_taken_over_is_told(base, monkeypatch, caplog, share, level):
    monkeypatch.setattr(adapting.Takeover, "share", property(lambda _: share))
    with caplog.at_level("INFO", "xscalemixer"):
        xsm.finetune(alpine(), base, stages=COLD, **QUICK)
    assert [record.levelname for record in caplog.records if "are taken over" in record.getMessage()] == [level]


def test_batches_are_no_larger_than_the_data(base):
    tree = alpine()
    inner = tree["regional"].to_dataset().isel(time=slice(0, 41))
    model = xsm.finetune(tree_of(tree["global"].to_dataset(), inner), base, epochs=1)
    assert [stage["batch"] for stage in model.about["training"]] == [2, 2, 2]


# --- what it takes


@pytest.fixture
def told(base, caplog):
    def tell(**settings):
        caplog.clear()
        caplog.set_level("INFO", "xscalemixer")
        xsm.finetune(alpine(), base, **{**QUICK, **settings})
        return [record.getMessage() for record in caplog.records if "estimating" in record.name or "finetuning" in record.name]

    return tell


def test_time_and_memory_are_told_before(told, monkeypatch):
    monkeypatch.setattr(finetuning, "free_memory", lambda device: 1)
    lines = told(stages=BOTH)
    assert any("regional: about" in line and "MiB of memory" in line for line in lines)
    assert any("less is needed with per_pass=1, recompute=True" in line for line in lines)


def test_less_memory_is_estimated_with_fewer_samples_per_pass(base):
    kept = []
    for changes in ({}, {"per_pass": 1}, {"recompute": True}):
        stages = (xsm.Stage(kind="regional", updates=1, batch=4, **changes),)
        (row,) = xsm.finetune(alpine(), base, stages=stages, **QUICK).about["finetuned"]["estimates"]
        kept.append(row["activations"])
    assert kept[1] == pytest.approx(kept[0] / 4, rel=0.3)
    assert kept[2] < kept[0]


def test_epochs_become_updates():
    times = {"outer": TIMES[5::6], "inner": TIMES}
    count = lambda periods, steps: Adaptation.count(times, periods, steps)
    rates = {kind: 1e-4 for kind in ("global", "rollout", "cold_start")}
    more = {"per_pass": 1, "recompute": True}
    made = finetuning._default_stages(rates, count, PERIODS["train"], PERIODS["validation"], 5, more)
    assert [(s.kind, s.batch, s.updates, s.recompute) for s in made] == [
        ("global", 4, 9, True), ("rollout", 2, 3, True), ("cold_start", 4, 9, False)
    ]  # fmt: skip


def test_free_memory_of_this_machine():
    free = estimating.free_memory(torch.device("cpu"))
    assert free is None or 2**24 < free < 2**50


# --- shell


def test_finetune_from_the_shell(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base.save("tiny")
    tree = alpine(drop_regional=("tcc",))
    for name in tree.children:
        tree[name].to_dataset().to_netcdf(f"{name}.nc")
    data = ["--global", "global.nc", "--regional", "regional.nc", "--model", "tiny"]
    assert main(["finetune", "mine", *data, "--epochs", "1"]) == 1
    assert 'missing=("tcc",)' in capsys.readouterr().err
    periods = [text for name, rows in PERIODS.items() for text in (f"--{name}", *rows[0])]
    assert main(["finetune", "mine", *data, "--epochs", "1", "--missing", "tcc", "--rank", "2", *periods]) == 0
    about = xsm.load("mine").about
    assert about["finetuned"]["rank"] == 2 and about["trained_on"][0]["train"] == [list(PERIODS["train"][0])]
    assert main(["finetune", "mine", *data]) == 1
    assert "mine exists" in capsys.readouterr().err
