"""Training: every stage runs, repeats itself, resumes, and leaves alone what it must."""

import numpy as np
import pytest
import torch
import xarray as xr
from worlds import HOUR, START, box, globe

import xscalemixer as xsm
from xscalemixer import training
from xscalemixer.errors import InputError, TimeError
from xscalemixer.grids import Grid
from xscalemixer.nn.scalemixer import ScaleMixerConfig
from xscalemixer.training import OUTER, Stage, TrainConfig, channel_weights, row_weights

HOURS = START + np.arange(1, 73) * HOUR
PERIODS = {"train": ((str(START), "2020-06-03T12"),), "validation": (("2020-06-03T12", "2020-06-04T12"),)}
STAGES = tuple(
    Stage(kind=kind, updates=2, batch=2, steps=steps)
    for kind, steps in (("global", 1), ("regional", 1), ("rollout", 2), ("cold_start", 1))
)
SMALL = Grid.regular("87.1875", "2.8125", "5.625", (32, 64))


@pytest.fixture(scope="module", autouse=True)
def narrow_schema():
    """The made-up world has two levels."""
    from worlds import OUTER as WORLD

    patch = pytest.MonkeyPatch()
    patch.setattr(training, "OUTER", WORLD)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def tree():
    outer = globe(HOURS[5::6], np.array(SMALL.latitude), np.array(SMALL.longitude))
    return xr.DataTree.from_dict({"/global": outer, "/regional": box(HOURS)})


def config(**changes):
    settings = {"name": "tiny", "size": "tiny", "stages": STAGES, "check_every": 1, "warmup": 1, **PERIODS}
    settings["network"] = {"sunlit_channel": 6, "outer": _with_forcing()}
    return TrainConfig(**{**settings, **changes})


def _with_forcing():
    from dataclasses import replace

    return replace(ScaleMixerConfig.tiny().outer, forcings=2)


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


def test_training_learns(tree):
    """On a smooth world eighty updates take a quarter off the error of the fresh model."""
    stage = Stage(kind="regional", updates=80, batch=4, peak=5e-3)
    model = xsm.train(config(stages=(stage,), check_every=80, ema=0.5), tree)
    fresh = xsm.train(config(stages=(Stage(kind="regional", updates=1, peak=1e-9, floor=1e-9),)), tree)
    losses = [m.about["training"][0]["validation"] for m in (model, fresh)]
    assert losses[0] < 0.75 * losses[1], losses


def test_missing_group_is_named(tree):
    with pytest.raises(InputError, match=r"needs a group '/regional'"):
        xsm.train(config(), xr.DataTree.from_dict({"/global": tree["global"].to_dataset()}))


def test_too_little_data(tree):
    with pytest.raises(TimeError, match="no training window fits"):
        xsm.train(config(train=((str(START), "2020-06-01T20"),)), tree)
    with pytest.raises(TimeError, match="no data in the training periods"):
        xsm.train(config(train=(("1999-01-01", "1999-02-01"),)), tree)


def test_nan_loss_stops(tree):
    broken = tree.copy()
    regional = broken["regional"].to_dataset().copy(deep=True)
    regional["t2m"][30, 3, 3] = np.nan
    broken["regional"] = xr.DataTree(regional)
    with pytest.raises(InputError, match="t2m"):
        xsm.train(config(), broken)


def test_unknown_stage():
    with pytest.raises(ValueError, match="kind='magic'; choose"):
        Stage(kind="magic", updates=1)


def test_channel_weights_grow_with_pressure():
    weights = dict(zip(OUTER.channels, channel_weights(OUTER).tolist(), strict=True))
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
    assert training._nesting_offset(edges, inner, 5) == (2, 4)
    flush = Grid.regular("66.9375", "56.8125", "1.125", (20, 30))
    assert training._nesting_offset(edges, flush, 5) == (0, 0)
