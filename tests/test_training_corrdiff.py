"""Training of CorrDiff: pairs and their checks, objectives, resuming, what the model keeps."""

import argparse
import copy
import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from pairs import config, forecasts, over_relief, pair, trained
from torch.utils.data import default_collate
from worlds import HOUR, forecaster

import xscalemixer as xsm
from xscalemixer.downscaler import Downscaler
from xscalemixer.errors import CheckpointError, InputError, SchemaError
from xscalemixer.nn.corrdiff import Condition
from xscalemixer.nn.draws import drawing_for, normal
from xscalemixer.state import STATICS
from xscalemixer.training.corrdiff import CoarseToFine, DiffusionObjective, PairData, RegressionObjective
from xscalemixer.training.ranks import Ranks
from xscalemixer.variables import Schema


@pytest.fixture(scope="module")
def data():
    return PairData.of(config(), pair())


@pytest.fixture(scope="module")
def model():
    return trained()


def chain_pair():
    return xr.DataTree.from_dict({"/input": forecasts(4), "/target": pair(48)["target"].to_dataset()})


def batch(data, model, count=2):
    samples = data.samples(model, config().train)
    return default_collate([samples[i] for i in range(count)])


# --- pairs


def test_statistics_are_those_of_the_interpolated_fields(data):
    source = pair()["input"].to_dataset()["t2m"].isel(time=slice(18))
    fine = data.fine.grid
    inside = source.interp(latitude=list(fine.latitude), longitude=list(fine.longitude))
    assert data.coarse.stats.mean["t2m"] == pytest.approx(float(inside.mean()), abs=1e-2)
    assert data.coarse.stats.std["t2m"] == pytest.approx(float(inside.std()), rel=1e-3)
    assert data.fine.stats.mean["ssrd"] == 0.0


def test_samples_match_input_and_truth_in_time(data, model):
    sample = data.samples(model, (("2020-06-02T06", "2020-06-02T12"),))[2]
    truth = pair()["target"]["t2m"].sel(time="2020-06-02T09").values
    found = sample["target"][0].numpy() * data.fine.stats.std["t2m"] + data.fine.stats.mean["t2m"]
    np.testing.assert_allclose(found, truth, rtol=1e-5)


def test_forecasts_are_matched_by_valid_time_and_stay_in_their_period():
    tree = chain_pair()
    pairs = PairData.of(config(inputs=("t2m", "u10")), tree).pairs
    assert (pairs.reference + pairs.lead * HOUR == pairs.time).all()
    np.testing.assert_array_equal(tree["target"]["time"].values[pairs.place], pairs.time)
    chosen = pairs.within((("2020-06-01T18", "2020-06-02T03"),))
    # from 18 UTC nine leads, from 00 UTC three; those from 12 UTC begin before the period
    assert sorted(pairs.lead[chosen]) == sorted([*range(1, 10), *range(1, 4)])


def test_lazy_data_give_the_same(data):
    lazy = xr.DataTree.from_dict({name: pair()[name].to_dataset().chunk(time=5) for name in ("input", "target")})
    assert PairData.of(config(), lazy, memory=0.0).digests == data.digests


def test_terrain_as_the_settings_ask():
    settings = config(statics=STATICS, validation=())
    data = PairData.of(settings, pair())
    fresh = CoarseToFine(settings).fresh(data)
    again = Downscaler.from_dict(json.loads(json.dumps(fresh.to_dict())))
    # three channels, six constant fields, insolation
    assert data.samples(fresh, settings.train)[0]["fields"].shape == (10, 12, 16)
    assert again.domain.statics.shape == (6, 12, 16) and set(fresh.static) == {"orog", "lsm"}


# --- objectives


def test_regression_starts_from_the_input(data):
    """A network that adds nothing leaves shared variables as interpolated."""
    fresh = CoarseToFine(config()).fresh(data)
    one = batch(data, fresh)
    with torch.no_grad():
        mean = fresh.network.regression.eval()(Condition(one["fields"], one["scalars"]))
    physical = mean[:, 0] * data.fine.stats.std["t2m"] + data.fine.stats.mean["t2m"]
    coarse = one["fields"][:, 0] * data.coarse.stats.std["t2m"] + data.coarse.stats.mean["t2m"]
    torch.testing.assert_close(physical, coarse, atol=0.05, rtol=0)


def test_relief_need_not_be_learned():
    """A network that adds nothing knows pressure and temperature over fine relief, unless told to learn them as they are."""
    tree, errors = over_relief(), {}
    for reduced in (True, False):
        settings = config(inputs=("t2m", "sp"), outputs=("t2m", "sp"), reduced=reduced)
        data = PairData.of(settings, tree)
        made = CoarseToFine(settings).fresh(data)
        fresh = Downscaler.from_dict(json.loads(json.dumps(made.to_dict())))
        fresh.modules.load_state_dict(made.modules.state_dict())
        mean = fresh.condition(fresh.inputs(data.pairs.inputs[5:6][0], data.pairs.time[5], 0)).mean
        found = fresh.physical(mean, data.pairs.time[5])[0].detach().numpy()
        truth = np.stack([tree["target"][v].isel(time=5).values for v in ("t2m", "sp")])
        errors[reduced] = abs(found - truth).max((1, 2))
        assert data.fine.stats.reduced == data.coarse.stats.reduced == reduced and (fresh.height is not None) == reduced
    assert errors[True][0] < 0.02 and errors[True][1] < 5.0  # K and Pa
    assert errors[False][0] > 0.2 and errors[False][1] > 200.0


def test_relief_is_learned_where_the_input_has_no_orography(caplog):
    tree = over_relief()
    tree["input"] = xr.DataTree(tree["input"].to_dataset().drop_vars("orog"))
    data = PairData.of(config(inputs=("t2m", "sp")), tree)
    assert not data.coarse.stats.reduced and not data.fine.stats.reduced and data.pairs.height is None
    assert "t2m and sp are learned with the relief in them" in caplog.text and "reduced=False" in caplog.text
    caplog.clear()
    PairData.of(config(inputs=("t2m", "sp"), reduced=False), tree)
    PairData.of(config(inputs=("u10", "t_850")), tree)
    assert "relief" not in caplog.text


@pytest.mark.parametrize("patch", [None, (8, 8)])
def test_diffusion_leaves_the_regression_alone(data, model, patch):
    objective = DiffusionObjective(model, config(patch=patch)).train()
    assert not objective.network.regression.training and objective.network.diffusion.training
    value, _ = objective.loss(batch(data, model))
    value.backward()
    assert all(p.grad is None for p in model.network.regression.parameters())
    assert any(p.grad is not None for p in objective.trainable())
    objective.zero_grad(set_to_none=True), model.eval()


@pytest.mark.parametrize(("both", "seen"), [(False, (12, 16)), (True, (8, 8))])
def test_what_the_regression_sees(data, both, seen):
    """In both stages and when it is used: the whole domain, as in the paper, or patches, which the diffusion always sees."""
    settings = config(patch=(8, 8), patch_regression=both)
    model = CoarseToFine(settings).fresh(data)
    sizes = {"regression": set(), "diffusion": set()}
    for name, each in sizes.items():
        getattr(model.network, name).unet.register_forward_pre_hook(lambda module, given, each=each: each.add(given[0].shape[2:]))
    for kind in (RegressionObjective, DiffusionObjective):
        kind(model, settings).eval().loss(batch(data, model))
    model.eval()
    xsm.downscale(pair(2)["input"].to_dataset(), 1, model=model, solver="fast")
    assert sizes == {"regression": {seen}, "diffusion": {(8, 8)}}
    again = Downscaler.from_dict(json.loads(json.dumps(model.to_dict())))
    assert again.patched_mean == both and again.patch == (8, 8)


def test_validation_is_always_the_same(data, model):
    objective = DiffusionObjective(model, config(patch=(8, 8))).eval()
    (one, parts), (two, _) = (objective.loss(batch(data, model)) for _ in range(2))
    assert one == two
    levels = [value for name, value in parts.items() if name.startswith("noise_")]
    assert len(levels) == 3 and torch.stack(levels).mean().item() == pytest.approx(one.item(), rel=1e-5)


def test_passes_draw_what_the_whole_batch_would():
    with drawing_for(0, 4, 4, 7):
        whole = normal(8, 3)
    parts = []
    for first in (0, 2):
        with drawing_for(first, 2, 4, 7):
            parts.append(normal(4, 3))
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [RegressionObjective, DiffusionObjective])
def test_passes_give_the_losses_of_the_batch(data, kind, training):
    """With dropout and patches: what per_pass changes is not the result."""
    drops = {name: {"width": 8, "dropout": 0.3} for name in ("regression", "diffusion")}
    settings = config(patch=(8, 8), network=drops)
    torch.manual_seed(0)
    objective = kind(CoarseToFine(settings).fresh(data), settings).train(training)
    for layer in (each for each in objective.modules() if isinstance(each, torch.nn.Conv2d)):
        torch.nn.init.xavier_uniform_(layer.weight)
    whole = batch(data, CoarseToFine(settings).fresh(data), 4)

    def loss(first, size):
        with drawing_for(first, size, 4, 7):
            return objective.loss({name: value[first : first + size] for name, value in whole.items()})[0].item()

    assert np.mean([loss(first, 1) for first in range(4)]) == pytest.approx(loss(0, 4), rel=1e-4)


def test_regression_loss_is_the_mean_square_over_channels(data, model):
    value, parts = RegressionObjective(model, config()).eval().loss(batch(data, model))
    assert value.item() == pytest.approx(np.mean([parts[c].item() for c in ("t2m", "u10", "ssrd")]), rel=1e-5)


def test_change_of_shared_variables_is_measured(data):
    """A network that adds nothing has an error of 1 in every channel, as the climate has where the input knows nothing."""
    fresh = CoarseToFine(config()).fresh(data)
    data.measure_change(fresh, config().train, Ranks(torch.device("cpu"), 0, 1))
    every = [data.samples(fresh, config().train)[i] for i in range(18)]
    whole = {name: torch.stack([each[name] for each in every]) for name in every[0]}
    _, parts = RegressionObjective(fresh, config()).eval().loss(whole)
    assert parts["t2m"].item() == pytest.approx(1.0, abs=0.02) and parts["u10"].item() == pytest.approx(1.0, abs=0.02)
    assert fresh.network.regression.change_scale.flatten()[2] == 1.0  # radiation is made from nothing


def test_scale_of_the_residual_is_measured(data, model):
    """What the diffusion learns has the standard deviation that it expects."""
    errors = []
    for sample in data.samples(model, config().train):
        one = {name: value[None] for name, value in sample.items()}
        errors.append(one["target"] - model.network.mean(Condition(one["fields"], one["scalars"])))
    found = torch.cat(errors).square().mean((0, 2, 3)).sqrt() / model.network.residual_scale.flatten()
    torch.testing.assert_close(found, torch.full((3,), 0.5), rtol=1e-3, atol=0)


def test_each_process_measures_its_share_of_the_residual(data, model):
    sums, scale = [], model.network.residual_scale.clone()

    class Half(Ranks):
        def total(self, values):
            sums.append(values.clone())
            return values

    for rank in (0, 1):
        data.measure_residual(copy.deepcopy(model), config().train, Half(torch.device("cpu"), rank, 2))
    wanted = (scale * model.network.diffusion.sigma_data).flatten().square()
    torch.testing.assert_close(sum(sums).float(), wanted)
    assert (sums[0] < 0.8 * sum(sums)).all()


# --- runs


def test_a_run_goes_on_and_gives_the_same(tmp_path, model):
    xsm.train(config(), pair(), folder=tmp_path, min_samples=1, workers=1)
    (tmp_path / "1-diffusion.safetensors").unlink()
    again = xsm.train(config(), pair(), folder=tmp_path, min_samples=1, workers=1)
    for name, value in model.modules.state_dict().items():
        torch.testing.assert_close(again.modules.state_dict()[name], value, rtol=0, atol=0)
    finished = xsm.train(config(), pair(), folder=tmp_path, min_samples=1, workers=1)
    assert finished.about == again.about and finished.about["residual"]["std"].keys() == {"t2m", "u10", "ssrd"}
    with pytest.raises(InputError, match="stages of another run"):
        xsm.train(config(seed=1), pair(), folder=tmp_path, min_samples=1)


def test_training_lowers_the_errors():
    stages = (xsm.Stage(kind="regression", updates=40, batch=4, peak=5e-3),)
    found = xsm.train(config(stages=stages, check_every=40), pair(), min_samples=1, workers=1)
    record = found.about["training"][0]
    assert record["update"] > 0 and record["validation"] < 0.5


def test_rain_and_radar_are_synthesized():
    """Skewed variables that the input lacks, dry in half of all cells; no member rains less than nothing."""
    tree = pair()
    target = tree["target"].to_dataset()
    wet = np.clip(target["u10"] - target["u10"].mean(), 0, None)
    target["pr"], target["refc"] = 1e-3 * wet**2, 10 * wet
    target["pr"].attrs["units"], target["refc"].attrs["units"] = "kg m-2 s-1", "dBZ"
    rainy = lambda ds: xr.DataTree.from_dict({"/input": tree["input"].to_dataset(), "/target": ds})
    stages = (xsm.Stage(kind="regression", updates=60, batch=4, peak=5e-3), config().stages[1])
    settings = config(outputs=("t2m", "pr", "refc"), stages=stages, check_every=10)
    found = xsm.train(settings, rainy(target), min_samples=1, workers=1)
    record = found.about["training"][0]
    assert record["pr"] < 0.3 and record["refc"] < 0.3  # the climate has 1
    members = xsm.downscale(tree["input"].to_dataset().isel(time=[20]), 2, model=found, solver="fast")
    assert float(members["pr"].min()) == 0.0 and members["pr"].attrs["units"] == "kg m-2 s-1"
    assert float(members["pr"].std("member").max()) > 0 and float(members["refc"].std("member").max()) > 0
    with pytest.raises(SchemaError, match="refc: .* values are missing"):
        xsm.train(settings, rainy(target.assign(refc=target["refc"].where(target["refc"] > 0))), min_samples=1)


def test_saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "mine")
    again = xsm.load(tmp_path / "mine")
    assert isinstance(again, Downscaler) and again.weights_sha256() == model.weights_sha256()
    assert json.dumps({**again.to_dict(), "name": "tiny"}) == json.dumps(model.to_dict())
    np.testing.assert_array_equal(again.static["orog"], model.static["orog"])


def test_description_with_other_keys(model):
    with pytest.raises(CheckpointError, match="missing key 'leads'"):
        Downscaler.from_dict({key: value for key, value in model.to_dict().items() if key != "leads"})


def test_settings_from_json():
    settings = config(patch=(8, 8))
    assert xsm.CorrDiffConfig.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(InputError, match="patch='8'. Needed: a list or null"):
        xsm.CorrDiffConfig.from_dict({**settings.to_dict(), "patch": "8"})


def test_each_setting_of_the_example_has_its_own_folder(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    example = importlib.import_module("train_corrdiff")
    options = [argparse.Namespace(setting=setting, runs=Path("runs")) for setting in example.SETTINGS]
    assert len({example.folder_of("corrdiff-hrrr", each) for each in options}) == len(options)


# --- bad input

STAGES = config().stages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ()}, "inputs: none. Needed: at least one channel"),
        ({"outputs": ("t2m", "t2m")}, "t2m is named twice"),
        ({"outputs": ("t_850x", "q")}, "'t_850x' is no channel.*'q' is no channel"),
        ({"stages": STAGES[1:]}, "no regression before it"),
        ({"stages": STAGES[::-1]}, "which was trained on the errors of the regression before"),
        ({"stages": (xsm.Stage(kind="regional", updates=1),)}, "a stage of another network than CorrDiffConfig trains"),
        (
            {"stages": (replace(STAGES[0], steps=2, detach=True),)},
            "(?s)detach=True. Needed: a roll-out.*steps=2. Needed: a stage of",
        ),
        ({"first_guess": "terrain"}, "first_guess: 'terrain'. Needed: nothing"),
        ({"statics": ("orog",)}, '"orog" and "lsm", then some of'),
        ({"patches": 8}, "patches=8, patch_regression=False. Needed: patch= too"),
        ({"patch_regression": True}, "patch_regression=True. Needed: patch= too"),
        ({"patch": (64, 8)}, r"\(64, 8\) is larger than the target, 12 x 16"),
        ({"size": "huge"}, 'one of "tiny", "small", "paper", "china"'),
        ({"network": {"width": 3}}, "unknown key 'width'"),
        ({"validation": (("2020-06-01T18", "2020-06-02T12"),)}, "no common times"),
        ({"validation": (("2030-01-01", "2030-01-02"),)}, "0 pairs of input and target"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(InputError, match=message):
        xsm.train(config(**changes), pair(), min_samples=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["input"].to_dataset(), "a Dataset. Needed: a DataTree"),
        (lambda t: xr.DataTree.from_dict({"/input": t["input"].to_dataset()}), "'/target'"),
        (lambda t: later(t), "share no valid time"),
        (lambda t: without(t, "target", "orog"), "no orog"),
        (lambda t: without(t, "target", "ssrd"), "ssrd: no surface downward"),
        (lambda t: without(t, "input", "t"), "/input: t"),
    ],
)
def test_bad_pairs(change, message):
    with pytest.raises(InputError, match=message):
        xsm.train(config(), change(pair()), min_samples=1)


def later(tree):
    target = tree["target"].to_dataset()
    moved = target.assign_coords(time=target["time"] + np.timedelta64(99, "D"))
    return xr.DataTree.from_dict({"/input": tree["input"].to_dataset(), "/target": moved})


def without(tree, group, name):
    parts = {key: tree[key].to_dataset() for key in ("input", "target")}
    return xr.DataTree.from_dict({**parts, group: parts[group].drop_vars(name)})


def test_the_two_trainings_are_told_apart():
    with pytest.raises(InputError, match="a CorrDiffConfig trains no model with a global network. Leave out outer="):
        xsm.train(config(), pair(), outer=forecaster())
    with pytest.raises(InputError, match="kind='residual'; choose one of .*'regression', 'diffusion'"):
        xsm.Stage(kind="residual", updates=1)


def test_channels_by_name():
    assert Schema.of_channels("refc", "t_500", "pr").channels == ("refc", "t_500", "pr")
    with pytest.raises(SchemaError, match="needed names such as"):
        Schema.of_channels("t2m_850")
