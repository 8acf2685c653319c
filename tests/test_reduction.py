"""Reduction to sea level: what is left over relief, and that networks see it and users never do."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from alone import region, settings
from train_tiny import PERIODS, small_config, small_tree, stages
from worlds import HOUR, START, forecaster

import xscalemixer as xsm
from xscalemixer.errors import CheckpointError, SchemaError
from xscalemixer.physics.pressure import standard_pressure, standard_temperature
from xscalemixer.reduction import to_sea_level
from xscalemixer.samples import Series, survey
from xscalemixer.state import State
from xscalemixer.training.data import TrainingData
from xscalemixer.variables import REGIONAL, Stats

pytestmark = pytest.mark.usefixtures("few_samples")
HEIGHT = np.array([[0.0, 1500.0, 4000.0], [-200.0, 300.0, 6000.0]])
T2M, SP = (REGIONAL.channels.index(name) for name in ("t2m", "sp"))


def standard_atmosphere(times=3):
    """The standard atmosphere over the relief, and random values of everything else."""
    fields = np.random.default_rng(0).normal(size=(times, 7, *HEIGHT.shape)).astype("f4")
    fields[:, T2M], fields[:, SP] = standard_temperature(HEIGHT), standard_pressure(HEIGHT)
    return fields


def test_the_standard_atmosphere_is_the_same_everywhere():
    offset, factor = to_sea_level(REGIONAL, HEIGHT)
    reduced = (standard_atmosphere() - offset) / factor
    np.testing.assert_allclose(reduced[:, T2M], 288.15, rtol=1e-6)
    np.testing.assert_allclose(reduced[:, SP], 101325.0, rtol=1e-6)
    others = [i for i in range(7) if i not in (T2M, SP)]
    np.testing.assert_array_equal(reduced[:, others], standard_atmosphere()[:, others])


def test_statistics_are_those_of_the_weather():
    """A wave of 3 K and 2 hPa (at sea level) in time over relief that spans 40 K and 550 hPa."""
    swing = np.array([-1.0, 0.0, 1.0], "f4")[:, None, None]
    fields = standard_atmosphere()
    fields[:, T2M] += 3.0 * swing
    fields[:, SP] *= 1.0 + 200.0 / 101325.0 * swing
    time = START + np.arange(3) * HOUR
    about = [survey(Series(time, fields), REGIONAL, [(START - HOUR, time[-1])], height=height).stats for height in (HEIGHT, None)]
    spread = np.sqrt(2.0 / 3.0)
    assert about[0].std["t2m"] == pytest.approx(3.0 * spread, rel=1e-4)
    assert about[0].std["sp"] == pytest.approx(200.0 * spread, rel=1e-3)
    assert about[1].std["t2m"] > 10.0 and about[1].std["sp"] > 15000.0
    assert [each.reduced for each in about] == [True, False]
    assert Stats.from_dict(json.loads(json.dumps(about[0].to_dict()))) == about[0]


def test_a_field_over_relief_is_scaled_by_what_is_left_of_it():
    stats = replace(forecaster().inner.stats, reduced=True)
    mean, std = replace(forecaster().inner, stats=stats).scale(HEIGHT)
    offset, factor = to_sea_level(REGIONAL, HEIGHT)
    fields, (m, s) = standard_atmosphere(), stats.arrays(REGIONAL)
    by_hand = ((fields - offset) / factor - m[:, None, None]) / s[:, None, None]
    np.testing.assert_allclose((fields - mean) / std, by_hand, rtol=1e-3, atol=1e-3)
    with pytest.raises(CheckpointError, match="reduced to sea level; needed orog"):
        replace(forecaster().inner, stats=stats).scale(None)


@torch.inference_mode()
def test_a_network_that_changes_nothing_keeps_the_physical_state():
    model = forecaster()
    model.inner = replace(model.inner, stats=replace(model.inner.stats, reduced=True))
    still = lambda outer, inner, *_: type("", (), {"outer": outer, "inner": inner})()
    model.network.forward = still
    state = State(START, torch.zeros(1, len(model.outer.schema), *model.outer.grid.shape), torch.zeros(1, 6, 7, 1, 1))
    mean, std = (torch.from_numpy(part) for part in model.inner.scale(1000.0 * model.network.inner.statics[0].numpy()))
    history = (mean + 0.1 * std).expand(1, 6, -1, -1, -1)
    ahead = model.step(replace(state, inner=history)).inner
    torch.testing.assert_close(ahead[:, :, [T2M, SP]], history[:, :, [T2M, SP]], rtol=1e-5, atol=0.0)


def high_tree():
    """The small world with mountains in its region."""
    tree = small_tree()
    inner = tree["regional"].to_dataset()
    height = 4000.0 * np.random.default_rng(1).random(inner["orog"].shape)
    inner["orog"] = inner["orog"].copy(data=height)
    inner["sp"] = inner["sp"] * standard_pressure(inner["orog"]) / standard_pressure(0.0)
    inner["sp"].attrs["units"] = "Pa"
    return xr.DataTree.from_dict({"/global": tree["global"].to_dataset(), "/regional": inner})


def test_a_trained_model_is_reduced_and_stays_so(tmp_path):
    tree = high_tree()
    config = small_config(stages=stages(1), reduced=True)
    windows = TrainingData.of(config, tree).windows(("hour",), PERIODS["train"], 1)
    rough = TrainingData.of(replace(config, reduced=False), tree).windows(("hour",), PERIODS["train"], 1)
    roughness = [each[0]["inner"][:, SP].std((1, 2)).mean() / each[0]["inner"][:, SP].std() for each in (windows, rough)]
    assert roughness[0] < roughness[1]
    model = xsm.train(config, tree)
    model.save(tmp_path / "model")
    loaded = xsm.load(tmp_path / "model")
    assert loaded.inner.stats.reduced and loaded.inner == model.inner
    start, region = tree["global"].to_dataset().isel(time=[-1]), tree["regional"].to_dataset()
    forecasts = [xsm.forecast(start, 6, model=each, regional=region) for each in (model, loaded)]
    xr.testing.assert_allclose(*forecasts)
    assert float(abs(forecasts[0]["sp"][0, 0] / region["sp"][-1] - 1).max()) < 0.05  # the relief is still in it


@pytest.mark.parametrize("name", ["t2m", "sp"])
def test_a_constant_over_relief_is_still_a_constant(name):
    tree = high_tree()
    field = tree["regional"][name]
    tree["regional"][name] = field.copy(data=np.full_like(field, 285.0 if name == "t2m" else 9e4))
    with pytest.raises(SchemaError, match=f" {name}: the same value everywhere"):
        TrainingData.of(small_config(stages=stages(1)), tree)


def test_networks_that_get_global_fields_do_without():
    config = small_config(stages=stages(1), network={"coupling": "lam", "sunlit_channel": 6})
    assert config.reduced and not TrainingData.of(config, small_tree()).inner.stats.reduced


def test_a_model_on_another_relief_is_reduced():
    """A model of plain z-scores stays plain in its region, and is reduced in another one."""
    tree = small_tree()
    base = xsm.train(small_config(stages=stages(1), reduced=False), tree)
    elsewhere = tree.map_over_datasets(lambda ds: ds)
    elsewhere["regional"] = xr.DataTree(tree["regional"].to_dataset().isel(longitude=slice(None, -1)))
    tuned = [xsm.finetune(each, model=base, epochs=1, least=0.0, **PERIODS) for each in (tree, elsewhere)]
    assert [model.inner.stats.reduced for model in (base, *tuned)] == [False, False, True]


def test_a_region_alone_is_reduced_where_orography_comes_with_it():
    hours = region(START + np.arange(1, 37) * HOUR)
    bare = hours.drop_vars("orog")
    reduced, plain = (xsm.train(settings("implicit"), ds) for ds in (hours, bare))
    assert [model.inner.stats.reduced for model in (reduced, plain)] == [True, False]
    assert reduced.scale.mean.shape == (3, 9, 13) and plain.scale.mean.shape == (3, 1, 1)
    place = reduced.inner.schema.channels.index("t2m")
    fall = reduced.scale.mean[place] - reduced.scale.mean[place].mean()
    height = hours["orog"].values - float(hours["orog"].mean())
    np.testing.assert_allclose(fall, -0.0065 * height, atol=1e-3)  # the lapse rate of the standard atmosphere
    assert np.ptp(plain.scale.mean[place].numpy()) == 0.0
