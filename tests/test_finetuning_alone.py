"""Fine-tuning of a region alone: any grid, fewer variables, adapters; what is taken over, kept, refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from alone import alone, settings
from worlds import HOUR, START, box, forecaster

import xscalemixer as xsm
from xscalemixer.errors import InputError, SchemaError, TimeError
from xscalemixer.nn.met2net import Met2Net, Met2NetObjective
from xscalemixer.regional import RegionalForecaster
from xscalemixer.training.adapting import HourlyAdaptation

HOURS = START + np.arange(1, 37) * HOUR
PERIODS = {"train": (("2020-06-01T12", "2020-06-02T12"),), "validation": (("2020-06-02T12", "2020-06-03T00"),)}
QUICK = {"epochs": 1, "precision": "fp32", "min_samples": 1, **PERIODS}
TWO = (xsm.Stage(kind="implicit", updates=2, batch=2),)


@pytest.fixture(scope="module")
def base():
    return alone()


@pytest.fixture(scope="module")
def elsewhere():
    """Another place, spacing and size than those of the model."""
    return box(HOURS, north=20.0, west=-30.0, step=0.25, shape=(6, 5))


def regrouped(base, groups) -> RegionalForecaster:
    torch.manual_seed(3)
    network = Met2Net(replace(base.network.config, groups=groups))
    return RegionalForecaster("grouped", network, base.inner, base.statics)


def adapted(base, schema):
    """The network before any update, and what it has from its base."""
    contract = HourlyAdaptation(base, {"inner": schema}, "keep")
    config = contract.config(name="x", stages=TWO, **PERIODS)

    class Data:
        branch = replace(base.inner, schema=schema, stats=contract.stats(schema))
        model = lambda self, contract, config: RegionalForecaster(
            "x", Met2Net(contract.network(config, schema, base.inner.grid)), self.branch
        )

    return contract.begin(Data(), config)


# --- what moves along


@pytest.mark.parametrize("groups", [None, ((6, 0), (1, 2), (3,), (4, 5))])
@pytest.mark.parametrize("missing", [(), ("tcc",), ("u10", "t2m"), ("u10", "v10", "ssrd")])
def test_variables_that_are_left_keep_their_encoders_and_decoders(base, groups, missing):
    """Each latent is that of the old encoder with zeros in place of what is missing; so are the decoded fields."""
    base = base if groups is None else regrouped(base, groups)
    model, takeover = adapted(base, base.inner.schema.without(missing))
    old, new = base.network, model.network
    kept = [i for i, name in enumerate(base.inner.schema.channels) if name not in missing]
    past = torch.randn(1, 4, 7, 9, 13)
    past[:, :, [i for i in range(7) if i not in kept]] = 0.0
    left = [g for g, members in enumerate(old.config.members) if set(members) & set(kept)]
    torch.testing.assert_close(new.encode(past[:, :, kept]), old.encode(past)[:, left])
    latent = torch.randn(1, len(old.config.members), 4 * old.config.width, 5, 7)
    torch.testing.assert_close(new.decoders(latent[:, left], (9, 13)), old.decoders(latent, (9, 13))[:, :, kept])
    assert takeover.share == 1 and not takeover.anew and bool(takeover.sliced) is (groups is not None and bool(missing))


def test_the_translator_moves_with_its_running_statistics(base):
    model, _ = adapted(base, base.inner.schema.without(["tcc"]))
    for name, value in base.network.translator.state_dict().items():
        assert torch.equal(value, model.network.translator.state_dict()[name]), name


def test_same_variables_forecast_the_same_before_any_update(base):
    model, _ = adapted(base, base.inner.schema)
    past = torch.randn(1, 4, 7, 9, 13)
    with torch.no_grad():
        assert torch.equal(model.eval().network(past), base.network(past))


# --- the whole way


@pytest.mark.parametrize(("missing", "rank"), [((), None), (("tcc", "ssrd"), None), (("sp",), 2)])
def test_another_place_and_fewer_variables(base, elsewhere, missing, rank, tmp_path):
    before = base.weights_sha256()
    ds = elsewhere.drop_vars(list(missing))
    model = ds.scalemixer.finetune(base, missing=missing, rank=rank, folder=tmp_path / "run", **QUICK)
    assert base.weights_sha256() == before and model.inner.grid.shape == (6, 5)
    model.save(tmp_path / "mine")
    fc = ds.scalemixer.forecast(6, model=xsm.load(tmp_path / "mine"))
    assert set(fc.data_vars) == set(model.inner.schema.names) | {"orog", "lsm"} and np.isfinite(fc["t2m"]).all()
    about = json.loads((tmp_path / "mine" / "model.json").read_text())["about"]
    assert about["finetuned"]["from"] == "alone" and about["finetuned"]["missing"] == list(missing)
    assert [stage["kind"] for stage in about["training"]] == ["implicit"] and about["finetuned"]["estimates"]
    again = ds.scalemixer.finetune(base, missing=missing, rank=rank, folder=tmp_path / "run", **QUICK)
    assert again.weights_sha256() == model.weights_sha256()


def test_stages_are_those_of_the_training(base, elsewhere):
    explicit = RegionalForecaster("x", Met2Net(base.network.config.changed({"objective": {"way": "explicit"}})), base.inner)
    model = xsm.finetune(elsewhere, explicit, **QUICK)
    assert [stage["kind"] for stage in model.about["training"]] == ["autoencoder", "translator"]
    translator = (xsm.Stage(kind="translator", updates=1, batch=2),)
    assert xsm.finetune(elsewhere, base, stages=translator, **QUICK).network.config.objective.way == "explicit"


def test_statistics_of_the_model_or_of_the_data(base, elsewhere):
    kept, new = (xsm.finetune(elsewhere, base, statistics=each, stages=TWO, **QUICK) for each in ("keep", "new"))
    assert kept.inner.stats == base.inner.stats
    assert new.inner.stats.mean["sp"] == pytest.approx(float(elsewhere["sp"][:24].mean()), rel=1e-5)


def test_low_rank_changes_are_of_low_rank(base, elsewhere):
    model = xsm.finetune(elsewhere, base, rank=2, stages=(xsm.Stage(kind="joint", updates=6, batch=4, peak=3e-3),), **QUICK)
    block = lambda each: each.network.translator.blocks[0]
    for part in (lambda b: b.attention.project[0], lambda b: b.attention.out[0], lambda b: b.unit.leave, lambda b: b.unit.mlp[0]):
        change = (part(block(model)).weight - part(block(base)).weight).flatten(1)
        assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2
    outside = model.network.translator.enter.weight - base.network.translator.enter.weight
    assert torch.linalg.matrix_rank(outside.flatten(1), rtol=1e-4) > 2
    assert set(model.modules.state_dict()) == set(base.modules.state_dict())


def test_low_rank_trains_no_frozen_weight(base):
    from xscalemixer.nn.lowrank import add_low_rank

    network = alone().network
    add_low_rank(network, 2)
    objective = Met2NetObjective(network).train()
    trained = {id(p) for p in objective.trainable("implicit")}
    frozen = [p for name, p in network.named_parameters() if name.endswith("original")]
    assert frozen and not trained & {id(p) for p in frozen}
    objective.loss({name: torch.randn(1, 4, 7, 8, 8) for name in ("past", "future")}, "implicit")[0].backward()
    assert all(p.grad is None for p in frozen)


def test_default_periods(base, elsewhere, caplog):
    caplog.set_level("INFO", "xscalemixer")
    model = elsewhere.scalemixer.finetune(
        base, epochs=1, min_samples=1, precision="fp32", test=(("2020-06-02T20", "2020-06-03"),)
    )
    assert "train=(('2020-06-01T12', '2020-06-02T10'),), validation=(('2020-06-02T12', '2020-06-02T20'),)" in caplog.text
    assert model.about["trained_on"][-1]["test"] == [["2020-06-02T20", "2020-06-03"]]


# --- before anything is trained


def test_all_that_is_wrong_at_once(base, elsewhere):
    told = ["rank: 0", r'missing: no tcc in the data(?s:.)*To do without: missing=\("tcc",\)']
    with pytest.raises(InputError, match="(?s:.)*".join(told)):
        elsewhere.drop_vars("tcc").scalemixer.finetune(base, rank=0, **QUICK)


def test_data_of_another_kind(base, elsewhere):
    tree = xr.DataTree.from_dict({"/regional": elsewhere})
    with pytest.raises(SchemaError, match=r'data: a DataTree(?s:.)*tree\["regional"\].to_dataset\(\)'):
        tree.scalemixer.finetune(base)
    with pytest.raises(SchemaError, match="data: a Dataset. Needed: a DataTree"):
        elsewhere.scalemixer.finetune(forecaster())
    with pytest.raises(SchemaError, match="data: a list. Needed: the Dataset"):
        xsm.finetune([elsewhere], base)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"missing": ("tccc",)}, """'tccc' is none of the model's.*Is it "tcc"?"""),
        ({"stages": (xsm.Stage(kind="regional", updates=1),)}, "a stage of another network than Met2NetTrainConfig trains"),
        ({"recompute": True}, "recompute=True. Needed: a stage of a coupled model"),
        ({"test": PERIODS["validation"]}, "test: it shares 2020-06-02T12 to 2020-06-03T00 with validation="),
    ],
)
def test_settings_that_cannot_work(base, elsewhere, settings, message):
    with pytest.raises(InputError, match=message):
        elsewhere.scalemixer.finetune(base, **{**QUICK, **settings})


def test_too_few_hours_and_another_step(base, elsewhere):
    with pytest.raises(TimeError, match="12 hours outside of test=. Needed: at least 17"):
        elsewhere.isel(time=slice(12)).scalemixer.finetune(base)
    with pytest.raises(TimeError, match="every 3 h. Needed: every 1 h"):
        elsewhere.isel(time=slice(None, None, 3)).scalemixer.finetune(base, **QUICK)


def test_a_verdict_on_times_that_the_model_has_seen_is_refused(base, elsewhere):
    first = xsm.finetune(elsewhere, base, stages=TWO, **QUICK)
    periods = {"train": (("2020-06-01T12", "2020-06-02"),), "validation": (("2020-06-02", "2020-06-02T12"),)}
    with pytest.raises(TimeError, match="has been chosen by .*, in this region"):
        elsewhere.scalemixer.finetune(first, stages=TWO, test=PERIODS["validation"], **{**QUICK, **periods})


# --- real hours


def test_from_cornwall_to_davos(shared_data):
    """A month of ERA5 on 5 x 7 cells by the sea, then on 4 x 5 cells in the Alps, where wind and cloud are missing."""
    read = lambda *parts: xsm.open(shared_data.joinpath("real", *parts))
    cornwall = read("era5_cornwall", "data_stream-oper_stepType-instant.nc")
    davos = read("era5_davos", "SURF_202001.nc")[["t2m", "sp"]]
    month = str(cornwall["valid_time"].values[0])[:7]
    periods = {"train": ((f"{month}-01", f"{month}-08"),), "validation": ((f"{month}-09", f"{month}-10"),)}
    config = settings("implicit", variables=("t2m", "u10", "v10", "sp", "tcc"), **periods)
    model = xsm.train(config, cornwall)
    periods = {"train": (("2020-01-01", "2020-01-08"),), "validation": (("2020-01-09", "2020-01-10"),)}
    tuned = davos.scalemixer.finetune(model, missing=("u10", "v10", "tcc"), stages=TWO, **{**QUICK, **periods})
    fc = davos.scalemixer.forecast(6, model=tuned)
    assert fc["t2m"].sizes["latitude"] == 4 and fc["t2m"].min() > 230 and fc["t2m"].max() < 320
    assert tuned.about["finetuned"]["from"] == "alone" and set(fc.data_vars) >= {"t2m", "sp"}
