"""Training on a region alone: every way runs, repeats itself, goes on after a kill, and leaves alone what it must."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from alone import NETWORK, PERIODS, alone, region, settings
from worlds import HOUR, START, globe

import xscalemixer as xsm
from xscalemixer.__main__ import main
from xscalemixer.conform import conform
from xscalemixer.errors import GridError, InputError, TimeError
from xscalemixer.grids import Grid
from xscalemixer.nn.met2net import Met2Net, Met2NetObjective
from xscalemixer.samples import LazyFields, Sequences, Series, sequence_starts
from xscalemixer.training.alone import Met2NetStage, RegionAlone
from xscalemixer.training.config import config_of
from xscalemixer.variables import REGIONAL, Schema
from xscalemixer.verification.openstl import openstl_errors

WAYS = {"implicit": ("implicit",), "joint": ("joint",), "explicit": ("autoencoder", "translator")}
HOURS = START + np.arange(1, 37) * HOUR


@pytest.fixture(scope="module", autouse=True)
def few_samples():
    patch = pytest.MonkeyPatch()
    patch.setitem(xsm.train.__kwdefaults__, "min_samples", 1)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def ds():
    return region(HOURS)


@pytest.fixture(scope="module")
def trained(ds):
    return xsm.train(settings("implicit"), ds)


# --- samples


def test_samples_are_consecutive_hours_within_a_period():
    time = np.delete(HOURS, 12)  # a gap after the first twelve
    starts = sequence_starts(time, [(START, START + 20 * HOUR), (START + 20 * HOUR, START + 28 * HOUR)], 8)
    np.testing.assert_array_equal(starts, [0, 1, 2, 3, 4, 19])
    with pytest.raises(TimeError, match="found 20 times in 1 periods and no 24 consecutive hours without a gap"):
        sequence_starts(time, [(START, START + 21 * HOUR)], 24)


def test_a_sample_is_the_past_and_the_future_of_its_hour(ds):
    series, scale = Series.of(ds, REGIONAL), (np.full(7, 3.0), np.full(7, 2.0))
    lazy = Series(series.time, LazyFields(ds.chunk(time=5), REGIONAL))
    for each in (series, lazy):
        sample = Sequences(each, scale, [(START, START + 36 * HOUR)], 3, 2)[4]
        np.testing.assert_allclose(torch.cat([sample["past"], sample["future"]]), (series.values[4:9] - 3) / 2, rtol=1e-6)
        assert sample["past"].shape == (3, 7, 9, 13)


# --- what is trained


@pytest.mark.parametrize("way", WAYS)
def test_every_way_trains_and_forecasts(way, ds, tmp_path):
    model = xsm.train(settings(*WAYS[way]), ds, folder=tmp_path / "runs")
    assert [row["kind"] for row in model.about["training"]] == list(WAYS[way])
    assert model.network.config.objective.way == way
    model.save(tmp_path / "mine")
    fc = ds.scalemixer.forecast(6, model=tmp_path / "mine")
    assert np.isfinite(fc["t2m"]).all() and float(fc["t2m"].std()) > 0


def test_validation_is_the_error_of_the_forecast(trained, ds):
    """By hand from forecasts of all validation samples, in units of the statistics, before limits."""
    branch, network = trained.inner, trained.network
    values = (Series.of(ds, branch.schema).values - trained.scale.mean.numpy()) / trained.scale.std.numpy()
    starts = sequence_starts(HOURS, PERIODS["validation"], 8)
    past, future = (torch.from_numpy(np.stack([values[i + a : i + b] for i in starts])) for a, b in ((0, 4), (4, 8)))
    with torch.no_grad():
        error = (network(past) - future).square().mean((0, 1, 3, 4))
    record = trained.about["training"][0]
    assert record["validation"] == pytest.approx(float(error.mean()), rel=1e-4)
    assert record["persistence"] == pytest.approx(float((past[:, -1:] - future).square().mean()), rel=1e-4)
    assert record["t2m"] == pytest.approx(float(error[branch.schema.channels.index("t2m")]), rel=1e-3)


def test_a_stage_minimizes_what_its_objective_says(ds):
    network = alone().network
    batch = {name: torch.randn(2, 4, 7, 9, 13) for name in ("past", "future")}
    value, parts = Met2NetStage(network, "implicit", REGIONAL.channels).train().loss(batch)
    assert set(parts) == {"reconstruction", "latent"} and value.item() == pytest.approx(sum(p.item() for p in parts.values()))
    by_hand, _ = Met2NetObjective(network).train().loss(batch, "implicit")
    assert value.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_the_second_explicit_stage_leaves_autoencoders_alone(ds):
    first, both = (xsm.train(settings(*kinds, updates=4), ds).network for kinds in (("autoencoder",), WAYS["explicit"]))
    torch.manual_seed(0)
    fresh = Met2Net(both.config)
    for part in ("encoders", "decoders"):
        weights = [torch.cat([p.flatten() for p in getattr(net, part).parameters()]) for net in (first, both, fresh)]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_training_learns(ds, tmp_path):
    """Twenty updates take half off the loss of the fresh weights."""
    xsm.train(settings("implicit", updates=20, check_every=20), ds, folder=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "0-implicit" / "losses.jsonl").read_text().splitlines()]
    losses = [row["train"] for row in rows if "train" in row]
    assert len(losses) == 20 and np.mean(losses[-4:]) < 0.5 * np.mean(losses[:2])


# --- repeats itself


def test_same_seed_same_weights(trained, ds):
    assert xsm.train(settings("implicit"), ds).weights_sha256() == trained.weights_sha256()
    assert xsm.train(settings("implicit", seed=1), ds).weights_sha256() != trained.weights_sha256()


def test_lazy_data_give_the_same_weights(trained, ds):
    assert xsm.train(settings("implicit"), ds.chunk(time=6), memory=0.0).weights_sha256() == trained.weights_sha256()


def test_a_killed_run_goes_on_to_the_same_weights(ds, tmp_path, monkeypatch):
    """The frozen translator is in the checkpoint too."""
    config = settings("implicit", updates=6)
    whole = xsm.train(config, ds)
    follow, calls = Met2NetObjective.after_step, []
    with monkeypatch.context() as patch:
        patch.setattr(
            Met2NetObjective, "after_step", lambda self: follow(self) if not calls.append(1) and len(calls) < 5 else 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            xsm.train(config, ds, folder=tmp_path, save_updates=2)
    losses = [json.loads(line) for line in (tmp_path / "0-implicit" / "losses.jsonl").read_text().splitlines()]
    assert max(row["update"] for row in losses) < 5
    assert xsm.train(config, ds, folder=tmp_path, save_updates=2).weights_sha256() == whole.weights_sha256()


def test_another_run_is_refused(ds, tmp_path):
    xsm.train(settings("joint"), ds, folder=tmp_path)
    with pytest.raises(InputError, match=r"variables"):
        xsm.train(settings("joint", variables=("t2m", "u10")), ds, folder=tmp_path)


def test_settings_from_json():
    config = settings("autoencoder", "translator", levels=(1000,), variables=("t2m", "r"))
    assert xsm.Met2NetTrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# --- bad input


def test_everything_wrong_is_told_at_once(ds):
    stages = (
        xsm.Stage(kind="implicit", updates=1, steps=2, batch=2),
        xsm.Stage(kind="joint", updates=1),
        xsm.Stage(kind="global", updates=1),
    )
    config = settings(stages=stages, calendar=("hour",), size="small")
    told = [
        'size: \'small\'. Needed: one of "tiny", "weatherbench"',
        "steps=2. Needed: a stage of a coupled model",
        "a stage of another network than Met2NetTrainConfig trains",
        r"calendar: \('hour',\). Needed: nothing",
        "stages of implicit and joint training",
        "hourly fields: sp: no surface pressure",
    ]
    with pytest.raises(InputError, match="(?s:.)*".join(told)):
        xsm.train(config, ds.drop_vars("sp"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variables": ("t2m", "orog")}, "unknown 'orog'. Needed: some of t2m, "),
        ({"variables": ("t2m", "r")}, r"levels: \(\) for r. Needed: pressure levels in hPa.*levels=\(500, 850\)"),
        ({"network": {"depth": 3}}, "network={'depth': 3}: .*unexpected keyword argument 'depth'"),
        ({"network": {**NETWORK, "past": 24, "future": 24}}, "no 48 consecutive hours without a gap"),
        ({"stages": settings("translator").stages}, "that nothing has trained. Needed: an autoencoder stage before it"),
        ({"train": (("2020-06-01T12", "2020-06-01T21"),)}, "2 samples of 8 hours for stage joint with batch=2(?s:.)*at least 9"),
    ],
)
def test_settings_that_cannot_work(ds, changes, message):
    with pytest.raises(InputError, match=message):
        xsm.train(replace(settings("joint"), **changes), ds, min_samples=9)


def test_data_that_cannot_be_used(ds, trained):
    three_hourly = region(START + np.arange(1, 30) * 3 * HOUR)
    with pytest.raises(TimeError, match="every 3 h. Needed: every 1 h"):
        xsm.train(settings("joint"), three_hourly)
    tree = xr.DataTree.from_dict({"/global": globe(), "/regional": ds})
    with pytest.raises(InputError, match=r'data: a DataTree(?s:.)*tree\["regional"\].to_dataset\(\)'):
        xsm.train(settings("joint"), tree)
    with pytest.raises(InputError, match=r"Leave out outer="):
        xsm.train(settings("joint"), ds, outer=trained)
    x = xr.DataArray(np.broadcast_to(ds["longitude"], (9, 13)), dims=("y", "x"))
    y = xr.DataArray(np.broadcast_to(ds["latitude"].values[:, None], (9, 13)), dims=("y", "x"))
    tilted = (
        ds.drop_vars(["latitude", "longitude"])
        .rename(latitude="y", longitude="x")
        .assign_coords(latitude=y + 0.1 * x, longitude=x)
    )
    with pytest.raises(GridError, match="latitudes and longitudes as axes"):
        xsm.train(settings("joint"), tilted)


def test_statics_are_taken_where_there_are_some(ds):
    bare = xsm.train(settings("joint"), ds.drop_vars(["orog", "lsm"]))
    assert bare.static == {} and "orog" not in ds.scalemixer.forecast(2, model=bare)


# --- WeatherBench


@pytest.fixture(scope="module")
def weatherbench(tmp_path_factory):
    """Files as WeatherBench publishes them: a folder for each variable, a file for each year, south to north."""
    folder = tmp_path_factory.mktemp("weatherbench")
    lat, lon, random = np.arange(-87.1875, 90, 5.625), np.arange(0, 360, 5.625), np.random.default_rng(0)
    coords = {"lat": ("lat", lat), "lon": ("lon", lon)}
    rows = {
        "2m_temperature": ("t2m", "K", 280, 10), "10m_u_component_of_wind": ("u10", "m s**-1", 0, 5),
        "10m_v_component_of_wind": ("v10", "m s**-1", 0, 5), "total_cloud_cover": ("tcc", "(0 - 1)", 0.5, 0.1),
        "relative_humidity": ("r", "%", 50, 10),
    }  # fmt: skip
    level = ("level", np.array([850, 925, 1000], "i4"), {"units": "millibars", "long_name": "pressure_level"})
    for name, (short, units, mean, std) in rows.items():
        (folder / name).mkdir()
        for year in (2010, 2011):
            time = np.datetime64(f"{year}-01-01", "ns") + np.arange(20) * HOUR
            dims, shape = (
                ("time", *(["level"] if short == "r" else []), "lat", "lon"),
                (20, *([3] if short == "r" else []), 32, 64),
            )
            values = (mean + std * random.uniform(-1, 1, shape)).astype("f4")
            own = coords | {"time": time} | ({"level": level} if short == "r" else {})
            xr.Dataset({short: (dims, values, {"units": units})}, own).to_netcdf(folder / name / f"{name}_{year}_5.625deg.nc")
    constants = {
        "orography": (("lat", "lon"), np.zeros((32, 64)), {"units": "m"}),
        "lsm": (("lat", "lon"), np.ones((32, 64)), {"units": "(0 - 1)"}),
        "slt": (("lat", "lon"), np.ones((32, 64)), {"units": "~"}),
        "lat2d": (("lat", "lon"), np.broadcast_to(lat[:, None], (32, 64))),
        "lon2d": (("lat", "lon"), np.broadcast_to(lon, (32, 64))),
    }
    (folder / "constants").mkdir()
    xr.Dataset(constants, coords).to_netcdf(folder / "constants" / "constants_5.625deg.nc")
    return folder


def test_weatherbench_files_train_the_published_network(weatherbench):
    ds = xsm.open(str(weatherbench / "*" / "*_5.625deg.nc"))
    network = {"past": 2, "future": 2, "width": 4, "translator": {"width": 8, "depth": 1, "heads": 2}}
    config = settings(
        "implicit", size="weatherbench", network=network, variables=("u10", "v10", "t2m", "tcc", "r"), levels=(1000,),
        train=(("2009-12-31", "2010-12-31"),), validation=(("2010-12-31", "2011-12-31"),),
    )  # fmt: skip
    model = xsm.train(config, ds)
    assert model.network.config.periodic and model.inner.schema.channels == ("u10", "v10", "t2m", "tcc", "r_1000")
    fc = ds.scalemixer.forecast(3, model=model)
    assert fc["r"].sizes["level"] == 1 and fc["r"]["level"].attrs["units"] == "hPa"
    assert fc["t2m"].sizes == {"reference_time": 1, "lead_time": 3, "latitude": 32, "longitude": 64}
    starts = np.datetime64("2011-01-01T03", "ns") + np.arange(0, 8, 2) * HOUR
    hc = ds.scalemixer.hindcast(starts, 2, model=model)
    truth = conform(ds, model.inner.schema)[0]["r"].sel(time=hc["valid_time"])
    assert truth.shape == hc["r"].shape == (4, 2, 1, 32, 64)
    np.testing.assert_allclose(truth["latitude"], hc["latitude"])
    np.testing.assert_allclose(truth["longitude"] % 360, hc["longitude"] % 360)
    errors = openstl_errors(100 * hc["r"].values, 100 * truth.values, spatial_norm=True)
    assert errors["mse"] == pytest.approx(1e4 * float(((hc["r"] - truth.values) ** 2).mean()), rel=1e-5)


def test_the_example_has_the_published_settings_and_opens_the_files(weatherbench, monkeypatch):
    text = json.loads((Path(__file__).parents[1] / "examples" / "met2net_weatherbench.json").read_text())
    monkeypatch.chdir(weatherbench.parent)
    assert set(xsm.open(text.pop("data").replace("weatherbench/", f"{weatherbench.name}/"))) >= {"t2m", "r", "orography"}
    config = config_of(text)
    (stage,) = config.stages
    assert (stage.kind, stage.batch, stage.peak) == ("implicit", 16, 1e-3)
    assert stage.updates == pytest.approx(50 * 6 * 365.25 * 24 / 16, rel=0.01)
    schema = Schema.of(*config.variables, levels=config.levels)
    grid = Grid.regular("87.1875", "0", "5.625", (32, 64))
    with torch.device("meta"):
        network = Met2Net(RegionAlone(config).network(config, schema, grid))
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(8.70e6, rel=0.01)
    assert not network.config.periodic and network.config.objective.momentum == 0.9 and network.config.past == 12


# --- shell


@pytest.fixture
def written(tmp_path, monkeypatch, ds):
    """Writes the settings of a short run beside its data."""
    monkeypatch.chdir(tmp_path)
    ds.to_netcdf("region.nc")
    plain = json.loads(json.dumps(settings("implicit").to_dict()))

    def write(**changes):
        text = {"kind": "met2net", "data": "region.nc", **plain, **changes}
        (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in text.items() if value is not None}))
        return str(tmp_path / "config.json")

    return write


def test_train_and_finetune_from_the_shell(written, capsys, monkeypatch):
    assert main(["train", written()]) == 0
    assert xsm.load("alone").about["training"][0]["kind"] == "implicit"
    assert main(["train", written(data=None), "--regional", "region.nc", "--output", "again"]) == 0  # from the finished stage
    assert xsm.load("again").weights_sha256() == xsm.load("alone").weights_sha256()
    monkeypatch.setitem(xsm.finetune.__kwdefaults__, "min_samples", 1)
    periods = [text for name, rows in PERIODS.items() for text in (f"--{name}", *rows[0])]
    command = ["finetune", "mine", "--model", "./alone", "--regional", "region.nc", "--epochs", "1", *periods]
    assert main(command) == 0 and xsm.load("mine").about["finetuned"]["from"] == "alone"
    assert main(["finetune", "other", "--model", "./alone", "--global", "a.nc", "--regional", "region.nc"]) == 1
    assert "needed --regional alone: it has no driver" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kind": "regional"},
            """kind='regional'; needed "scalemixer" (TrainConfig) or "met2net" (Met2NetTrainConfig)""",
        ),
        ({"kind": "metnet"}, 'Is it "met2net"?'),
        ({"kind": ["met2net"]}, """kind=['met2net']; needed"""),
        ({"kind": None}, "no 'kind', and 'levels', a stage 'implicit', which only a Met2NetTrainConfig has"),
        ({"kind": None}, 'Add "kind": "met2net"'),
        ({"kind": "scalemixer", "levels": [500]}, "unknown key 'levels'"),
        ({"kind": None, "inputs": ["t2m"], "levels": None, "stages": None}, 'Add "kind": "corrdiff"'),
        ({"variabels": ["t2m"]}, "Is it 'variables'?"),
        ({"levels": "1000"}, "levels='1000'. Needed: a list"),
        ({"data": None}, "found {'global': None, 'regional': None, 'data': None}; needed --regional alone"),
        ({"data": {"global": "g.nc", "regional": "region.nc"}}, "needed --regional alone"),
    ],
)
def test_settings_that_are_not_of_a_kind_are_refused(written, capsys, changes, message):
    assert main(["train", written(**changes)]) == 1
    assert message in capsys.readouterr().err
