"""What a stage may switch on: recomputing, detached steps, a cached global network; and where gradients go."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch.autograd.graph import saved_tensors_hooks
from train_tiny import PERIODS, small_config, small_tree, stages
from worlds import HOUR, START, box

import xscalemixer as xsm
from xscalemixer.errors import InputError, TimeError
from xscalemixer.nn.scalemixer import CoupledModel, SamplerConfig
from xscalemixer.state import HOURS, STATICS
from xscalemixer.training import objectives
from xscalemixer.training.data import FromScratch, TrainingData
from xscalemixer.training.objectives import CoupledObjective, GlobalObjective

pytestmark = pytest.mark.usefixtures("few_samples")


@pytest.fixture(scope="module")
def tree() -> xr.DataTree:
    return small_tree()


@pytest.fixture(scope="module")
def world(tree):
    return TrainingData.of(small_config(stages=(xsm.Stage(kind="regional", updates=1),)), tree)


def stage(kind="rollout", **changes):
    return xsm.Stage(**{"kind": kind, "updates": 2, "batch": 2, "steps": 2 if kind == "rollout" else 1, **changes})


def network(world, coupling="two_way"):
    torch.manual_seed(0)
    settings = {"sunlit_channel": 6, "coupling": coupling}
    return FromScratch(small_config(network=settings)).fresh(world).network


def batch(world, steps=2):
    sample = world.windows(("hour",), PERIODS["train"], steps)[1]
    return {name: value[None] for name, value in sample.items()}


def gradients(objective, sample):
    objective.eval()  # no stochastic depth
    objective.zero_grad()
    value, _ = objective.loss(sample)
    value.backward()
    return {name: p.grad.clone() for name, p in objective.network.named_parameters() if p.grad is not None}


def saved_bytes(objective, sample):
    total = []
    with saved_tensors_hooks(lambda x: total.append(x.nbytes) or x, lambda x: x):
        objective.loss(sample)
    return sum(total)


def test_entropy_is_relative_to_the_tokens_that_may_be_keys(world):
    """Before anything is learned all of them are alike, far fewer than there are."""
    settings = {"sunlit_channel": 6, "sampler": SamplerConfig(keys=8, halo=1)}
    model = FromScratch(small_config(network=settings)).fresh(world).network
    for mixer in model.mixers:
        torch.nn.init.zeros_(mixer.sampler.score.weight)
    _, parts = CoupledObjective(model, world, stage("regional")).eval().loss(batch(world, 1))
    assert parts["key_entropy"].item() == pytest.approx(1.0, abs=1e-5)


# --- gradients


def test_gradients_pass_through_the_frozen_global_layers(world):
    """What the first exchange feeds back reaches the region only through the second group of global layers."""
    objective = CoupledObjective(network(world), world, stage("regional"))
    found = gradients(objective, batch(world, 1))
    assert found["mixers.0.adapter.2.weight"].abs().sum() > 0
    assert not [name for name in found if name.startswith("outer.")]


def test_weight_of_the_global_error(world):
    model, sample = network(world).eval(), batch(world)
    loss = lambda kind, **changes: CoupledObjective(model, world, stage(kind, **changes)).eval().loss(sample)[0].item()
    alone, one, four = (loss("rollout", global_weight=weight) for weight in (0.0, 1.0, 4.0))
    assert one > alone and four - alone == pytest.approx(4 * (one - alone))
    share = model.alignment.box.numel() / len(model.config.outer.tokens)
    usual = loss("rollout")
    assert usual - alone == pytest.approx((one - alone) / share) and 0 < share < 1
    assert loss("regional") == pytest.approx(loss("regional", global_weight=1 / share))
    assert loss("regional") > loss("regional", global_weight=0.0)


def test_no_global_error_where_the_region_does_not_answer(world):
    model, sample = network(world, "one_way").eval(), batch(world)
    losses = {CoupledObjective(model, world, stage(global_weight=w)).eval().loss(sample)[0].item() for w in (None, 0.0, 9.0)}
    assert len(losses) == 1


def test_no_gradient_through_the_global_layers_one_way(world):
    """Key positions are chosen from tokens that nothing trained has touched."""
    model = network(world, "one_way")
    CoupledObjective(model, world, stage("regional"))
    sample = batch(world, 1)
    tower = model.tower(sample["outer"][:, 0], sample["outer_forcing"][:, 0])
    assert not tower.tokens.requires_grad and not tower.state.requires_grad


@pytest.mark.parametrize("kind", ["global", "rollout"])
def test_recomputing_keeps_gradients_and_saves_memory(world, kind):
    results = []
    for recompute in (False, True):
        model = network(world)
        settings = stage(kind, recompute=recompute)
        made = GlobalObjective(model.outer, world, settings) if kind == "global" else CoupledObjective(model, world, settings)
        results.append((gradients(made, batch(world)), saved_bytes(made, batch(world))))
    (plain, much), (again, little) = results
    assert little < 0.9 * much  # the heads keep theirs
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-8)


def test_recomputing_repeats_the_same_random_numbers(world):
    losses = [xsm.train(small_config(stages=(stage("regional", recompute=r),)), small_tree()) for r in (False, True)]
    for name, value in losses[0].modules.state_dict().items():
        torch.testing.assert_close(losses[1].modules.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_detached_steps_have_the_gradients_of_single_steps(world):
    model, sample = network(world), batch(world)
    detached = gradients(CoupledObjective(model, world, stage(detach=True)), sample)
    attached = gradients(CoupledObjective(model, world, stage()), sample)
    with torch.no_grad():
        first = model(
            sample["outer"][:, 0], sample["inner"][:, :HOURS], sample["calendar"][:, 0],
            sample["outer_forcing"][:, 0], sample["inner_forcing"][:, 0],
        )  # fmt: skip
    second = {name: value[:, 1:] for name, value in sample.items() if name not in ("outer", "inner")}
    second["outer"] = torch.cat([first.outer[:, None], sample["outer"][:, 2:]], 1)
    second["inner"] = torch.cat([first.inner, sample["inner"][:, 2 * HOURS :]], 1)
    one = {name: value[:, :1] for name, value in sample.items() if name not in ("outer", "inner")}
    one |= {"outer": sample["outer"][:, :2], "inner": sample["inner"][:, : 2 * HOURS]}
    made = CoupledObjective(model, world, stage(steps=1))
    parts = [gradients(made, each) for each in (one, second)]
    for name, value in detached.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2, rtol=1e-4, atol=1e-7)
    assert any(not torch.allclose(attached[name], value, rtol=1e-2) for name, value in detached.items())


@pytest.mark.parametrize(
    "settings",
    [{"coupling": coupling} for coupling in ("two_way", "one_way", "none", "lam", "nested", "downscaled")]
    + [{"sampler": SamplerConfig(keys=8, **choice)} for choice in ({"mode": "random"}, {"mode": "fixed"}, {"gate": "none"})],
    ids=str,
)
def test_all_that_is_trained_gets_a_gradient(world, settings):
    """Several processes would wait for one that never comes."""
    model = FromScratch(small_config(network={"sunlit_channel": 6, **settings})).fresh(world).network
    objective = CoupledObjective(model, world, stage("regional"))
    objective.loss(batch(world, 1))[0].backward()
    assert [p.grad is not None for p in objective.trainable()].count(False) == 0


# --- a global network that is computed once


@pytest.mark.parametrize("settings", ["one_way", "one_way with driver fields", "lam", "nested", "downscaled"])
def test_cached_global_network_gives_the_same_losses(tree, tmp_path, settings):
    stages = [tuple(stage(kind, cache=cache) for kind in ("regional", "rollout")) for cache in (False, True)]
    settings = {"sunlit_channel": 6, "coupling": settings.split()[0], "driver_width": 3 * ("fields" in settings)}
    plain, cached = (
        xsm.train(small_config(stages=each, network=settings), tree, folder=tmp_path / str(number))
        for number, each in enumerate(stages)
    )
    for a, b in zip(plain.about["training"], cached.about["training"], strict=True):
        assert a["validation"] == pytest.approx(b["validation"], rel=1e-5)
    for label in ("0-regional", "1-rollout-2"):
        texts = [(tmp_path / run / label / "losses.jsonl").read_text().splitlines() for run in "01"]
        values = [np.array([float(x.split(":")[2].split(",")[0].strip("}")) for x in text]) for text in texts]
        np.testing.assert_allclose(*values, rtol=1e-5)


def test_nothing_is_computed_twice(tree, tmp_path, monkeypatch):
    """Not in training, not when a stage is repeated with another learning rate."""
    calls = []
    tower = CoupledModel.tower
    monkeypatch.setattr(CoupledModel, "tower", lambda self, *args: calls.append(len(args[0])) or tower(self, *args))
    one_way = {"sunlit_channel": 6, "coupling": "one_way"}
    run = lambda **changes: xsm.train(
        small_config(stages=(stage("regional", cache=True, **changes),), network=one_way), tree, folder=tmp_path
    )
    run()
    assert sum(calls) == 7 + 3  # training and validation samples
    calls.clear()
    for path in tmp_path.glob("0-regional.*"):
        path.unlink()
    run(peak=1e-5)
    assert not calls


def test_other_weights_are_not_mistaken(tree, tmp_path):
    one_way = {"sunlit_channel": 6, "coupling": "one_way"}
    for seed in (0, 1):
        config = small_config(stages=(stage("regional", cache=True),), network=one_way, seed=seed)
        xsm.train(config, tree, folder=tmp_path / str(seed))
    names = [{path.name for path in (tmp_path / seed / "towers").iterdir()} for seed in "01"]
    assert len(names[0]) == 1 and not names[0] & names[1]  # fp32 trains and validates: one folder


def test_season_shift_cannot_be_cached(tree, tmp_path):
    settings = small_config(
        stages=(stage("regional", cache=True, season_shift=5.0),), network={"sunlit_channel": 6, "coupling": "one_way"}
    )
    with pytest.raises(xsm.InputError, match="cache=True and season_shift"):
        xsm.train(settings, tree, folder=tmp_path)


def test_cache_needs_a_folder(tree):
    settings = small_config(stages=(stage("regional", cache=True),), network={"sunlit_channel": 6, "coupling": "one_way"})
    with pytest.raises(xsm.InputError, match="cache=True. Needed: a folder"):
        xsm.train(settings, tree)


def test_loss_is_that_of_the_objective_by_name(world):
    """Parts of the global objective: every variable, area weighted, and persistence."""
    made = GlobalObjective(network(world).outer, world, stage("global")).eval()
    sample = batch(world, 1)
    value, parts = made.loss(sample)
    assert list(parts) == ["persistence", *world.outer.schema.names]
    start, end = sample["outer"][:, 0], sample["outer"][:, 1]
    weights = objectives.row_weights(world.outer.grid)
    z = (made.error.by_variable(start, end))["z"]
    wanted = ((start - end)[:, :2].abs().mean((0, 1, 3)) * weights).mean()  # two levels
    torch.testing.assert_close(z, wanted)
    assert value.item() > 0


# --- around a global network that is trained already


def test_a_global_network_is_taken_over_whatever_its_groups(tree):
    first = xsm.train(small_config(stages=stages(2)[:1]), tree)
    one_block = {"sunlit_channel": 6, "inner": {"depth": 1}, "blocks": 1}
    model = xsm.train(small_config(stages=stages(2)[1:2], network=one_block), tree, outer=first)
    for known, parameter in zip(first.network.outer.parameters(), model.network.outer.parameters(), strict=True):
        assert torch.equal(known, parameter)
    assert len(model.network.mixers) == 1 and model.outer.stats == first.outer.stats


def test_times_that_the_global_network_has_seen(tree, caplog):
    """Its archive and its validation are no test of the model around it; its archive is told where it validates."""
    archive, middle, late = (("2020-06-01T12", "2020-06-02T12"),), (("2020-06-02T12", "2020-06-03T12"),), PERIODS["validation"]
    first = xsm.train(small_config(train=middle, stages=(stage("global", periods=archive),)), tree)
    around = lambda **changes: xsm.train(small_config(**{"stages": (stage("regional"),), **changes}), tree, outer=first)
    for test in (archive, late):
        with pytest.raises(TimeError, match="test: 'tiny' has (trained on|been chosen by) .* on this global grid.*other test="):
            around(train=middle, validation=(), test=test)
    model = around(train=middle, validation=archive)
    assert "validation: 'tiny' has trained on 2020-06-01T12 to 2020-06-02T12" in caplog.text
    assert [row["train"] for row in model.about["trained_on"]] == [
        [*map(list, middle), *map(list, archive)],
        [*map(list, middle)],
    ]
    assert len(first.about["trained_on"]) == 1


def test_another_global_network_is_refused(tree):
    first = xsm.train(small_config(stages=stages(2)[:1]), tree)
    with pytest.raises(InputError, match="around the global network of 'tiny': its width, outer.depth differ. Choose size="):
        xsm.train(small_config(stages=stages(2)[1:2], network={"width": 64, "outer": {"depth": 2}}), tree, outer=first)


# --- regions in odd places


@pytest.mark.parametrize("west_negative", [False, True])
def test_a_box_of_sea_across_the_date_line(west_negative):
    """No land, no slope, longitudes in either count: trained with all statics, cold started by terrain physics."""
    hours = START + np.arange(1, 73) * HOUR
    sea = box(hours, west=171.0, shape=(16, 24))
    sea = sea.assign(orog=0.0 * sea["orog"], lsm=0.0 * sea["lsm"]).map(lambda field: field.assign_attrs(box()[field.name].attrs))
    if west_negative:
        sea = sea.assign_coords(longitude=(sea["longitude"] + 180) % 360 - 180)
    tree = xr.DataTree.from_dict({"/global": small_tree()["global"].to_dataset(), "/regional": sea})
    config = small_config(stages=stages(1), statics=STATICS, first_guess="terrain")
    model = xsm.train(config, tree)
    fc = xsm.forecast(tree["global"].to_dataset(), 6, model=model)
    assert all(np.isfinite(field).all() for field in fc.values())
    driver = tree["global"]["t2m"].isel(time=-1).interp(latitude=52.0, longitude=185.0)
    assert float(fc["t2m"][0, 0].sel(latitude=52.0, longitude=185.0, method="nearest")) == pytest.approx(float(driver), abs=15.0)
