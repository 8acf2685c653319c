"""Settings and data of a training run: to JSON and back, lazily, and refused where they cannot work."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from train_tiny import PERIODS, small_config, small_tree, stages
from worlds import HOUR, OUTER, START, box

import xscalemixer as xsm
from xscalemixer.__main__ import main
from xscalemixer.errors import InputError, SchemaError, TimeError
from xscalemixer.report import Report
from xscalemixer.samples import LazyFields, Series, survey
from xscalemixer.state import STATICS, fields_of, statics_of
from xscalemixer.training import data
from xscalemixer.training.data import FromScratch, TrainingData
from xscalemixer.training.towers import WithTower
from xscalemixer.variables import REGIONAL

pytestmark = pytest.mark.usefixtures("few_samples")
ONE = stages(2)[1:2]
MIN_SAMPLES = xsm.train.__kwdefaults__["min_samples"]


@pytest.fixture(scope="module")
def tree():
    return small_tree()


@pytest.fixture(scope="module")
def store(tree, tmp_path_factory):
    """The same in a Zarr store with uneven reads: chunks of five regional hours and two global times."""
    path = tmp_path_factory.mktemp("data") / "tree.zarr"
    parts = {name: tree[name].to_dataset().chunk(time=n) for name, n in (("global", 2), ("regional", 5))}
    xr.DataTree.from_dict({f"/{name}": ds for name, ds in parts.items()}).to_zarr(path)
    return path


# --- settings


def test_settings_survive_json():
    config = small_config(stages=stages(3, patience=2, per_pass=1, recompute=True), test=(("2021-01-01", "2021-02-01"),))
    assert xsm.TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_everything_wrong_in_settings_at_once():
    settings = small_config(stages=ONE).to_dict()
    settings |= {"warm_up": 3, "seed": "7", "ema": True, "kinds": ["global"]}
    settings["stages"] = [{**settings["stages"][0], "udpates": 3, "batch": 2.5}, {"kind": "magic", "updates": 1}, 4]
    del settings["name"]
    with pytest.raises(InputError, match="9 problems") as caught:
        xsm.TrainConfig.from_dict(settings)
    for message in (
        "unknown key 'warm_up'.*Is it 'warmup'", "unknown key 'kinds'", "seed='7'. Needed: a whole number",
        "ema=True. Needed: a number", "no 'name'",
        r"stages\[0\]: unknown key 'udpates'.*Is it 'updates'", r"stages\[0\]: batch=2.5. Needed: a whole number",
        r"stages\[1\]: kind='magic'", r"stages\[2\]: a int",
    ):  # fmt: skip
        assert caught.match(message)


def test_settings_that_are_no_settings(tree):
    with pytest.raises(InputError, match=r"a dict; needed a TrainConfig, a Met2NetTrainConfig.*xsm.TrainConfig.from_dict"):
        xsm.train(small_config(stages=ONE).to_dict(), tree)
    with pytest.raises(InputError, match="kind='regionl'; choose one of 'global', .*Is it \"regional\"?"):
        xsm.Stage(kind="regionl", updates=1)


def test_nothing_may_be_tested_that_was_trained_on(tree):
    with pytest.raises(TimeError, match=r"test: it shares 2020-06-03 to 2020-06-03T12 with train=.*must not be trained on"):
        xsm.train(small_config(stages=ONE, test=(("2020-06-03", "2020-06-05"),)), tree)
    with pytest.raises(TimeError, match="validation: it shares .* with train="):
        xsm.train(small_config(stages=ONE, validation=PERIODS["train"]), tree)


def test_a_stage_with_periods_of_its_own(tree):
    early = (("2020-06-01T00", "2020-06-02T12"),)
    other = lambda periods: (xsm.Stage(kind="global", updates=2, batch=2, periods=periods),)
    longer = xr.DataTree.from_dict(
        {"/global": tree["global"].to_dataset(), "/regional": tree["regional"].to_dataset().isel(time=slice(24, None))}
    )
    settings = {
        "train": (("2020-06-02T12", "2020-06-03T12"),),
        "stages": (*other(early), xsm.Stage(kind="regional", updates=2, batch=2)),
    }
    model = xsm.train(small_config(**settings), longer)  # no regional hours in the first stage
    assert model.about["training"][0]["periods"] == early
    with pytest.raises(TimeError, match=r"stages\[0\].periods: it shares .* with validation="):
        xsm.train(small_config(stages=other(PERIODS["validation"])), tree)


def test_periods_may_touch(tree):
    assert PERIODS["train"][0][1] == PERIODS["validation"][0][0]
    assert TrainingData.of(small_config(stages=ONE), tree)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 0}, r"patience=0. Needed: 1 or more"),
        ({"per_pass": 0}, r"per_pass=0. Needed: 1 or more"),
        ({"detach": True}, r"detach=True. Needed: a roll-out"),
        ({"detach": True}, r"detach=True. Needed: a roll-out"),
        ({"cache": True}, "cache=True for kind='regional' and coupling='two_way'"),
    ],
)
def test_stage_settings_that_cannot_work(tree, changes, message):
    with pytest.raises(InputError, match=message):
        xsm.train(small_config(stages=(xsm.Stage(kind="regional", updates=1, batch=2, **changes),)), tree)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statics": ("orog", "lsm", "aspect")}, r"statics: .*Needed: \"orog\" and \"lsm\", then some of slope, slope_east"),
        ({"statics": ("lsm", "orog")}, r"statics: .*Needed: \"orog\" and \"lsm\""),
        ({"first_guess": "physics"}, r"first_guess: 'physics'. Needed: one of \"standard\", \"terrain\""),
    ],
)
def test_statics_and_first_guess_that_do_not_exist(tree, changes, message):
    with pytest.raises(InputError, match=message):
        xsm.train(small_config(stages=ONE, **changes), tree)


def test_the_region_sees_further_statics(tree):
    config = small_config(stages=ONE, statics=STATICS, first_guess="terrain")
    found = TrainingData.of(config, tree)
    model = FromScratch(config).fresh(found)
    assert (found.outer.statics, found.inner.statics) == (STATICS[:2], STATICS)
    np.testing.assert_array_equal(model.network.inner.statics, statics_of(tree["regional"].to_dataset(), STATICS))
    sample = data.ColdStartSamples(found, model, PERIODS["train"])[0]
    model.cold_start(sample["fields"][None], sample["sun"][None])
    copy = type(model).from_dict(json.loads(json.dumps(model.to_dict())))
    copy.modules.load_state_dict(model.modules.state_dict())
    torch.testing.assert_close(copy.network.inner.statics, model.network.inner.statics)


# --- bad data: each ends with what is wrong, where, and what to do


def changed(tree, group, name, change):
    ds = tree[group].to_dataset().copy(deep=True)
    ds[name] = ds[name].copy(data=change(ds[name].values.copy()))
    return xr.DataTree.from_dict({**{f"/{g}": tree[g].to_dataset() for g in tree.children}, f"/{group}": ds})


def spoil(value, *times):
    def change(values):
        for time in times:
            values[time, 3, 3] = value
        return values

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e20])
def test_corrupt_samples_are_named_by_time(tree, value):
    message = (
        r"(?s)/regional: time: bad values \(t2m\) at 2 of 72 times: 2020-06-02T19:00, 2020-06-03T20:00\. "
        r"Needed: good values at 99 % .*ds.drop_sel\(time=.*skip=0.028"
    )
    with pytest.raises(InputError, match=message):
        xsm.train(small_config(stages=ONE), changed(tree, "regional", "t2m", spoil(value, 30, 55)))


@pytest.mark.parametrize(("group", "number"), [("regional", 30), ("global", 4)])
@pytest.mark.parametrize("value", [np.nan, 1e20])
def test_one_corrupt_time_is_left_out(tree, caplog, group, number, value):
    """Samples, statistics and hashes are those of the data without it."""
    time = tree[group]["time"].values[number]
    others = {f"/{g}": tree[g].to_dataset() for g in tree.children} | {f"/{group}": tree[group].to_dataset().drop_sel(time=time)}
    spoiled = TrainingData.of(small_config(stages=ONE), changed(tree, group, "t2m", spoil(value, number)))
    without = TrainingData.of(small_config(stages=ONE), xr.DataTree.from_dict(others))
    assert f"/{group}: time: bad values (t2m) at 1 of {tree[group].sizes['time']} times: {str(time)[:16]}" in caplog.text
    assert spoiled.digests == without.digests
    assert np.isfinite([list(stats) for stats in spoiled.outer.stats.arrays(OUTER)]).all()
    a, b = (each.windows(("hour",), PERIODS["train"], 1) for each in (spoiled, without))
    assert a.starts == b.starts and all(torch.equal(a[3][name], b[3][name]) for name in b[3])


def test_more_corrupt_times_may_be_left_out(tree):
    spoiled = changed(tree, "regional", "t2m", spoil(np.nan, 30, 55))
    assert TrainingData.of(small_config(stages=ONE), spoiled, skip=0.028).series["inner"].time.size == 70


@pytest.mark.parametrize("skip", [-0.1, 1.0, np.nan])
def test_skip_is_a_share(tree, skip):
    with pytest.raises(InputError, match=f"skip: {skip}. Needed: a share"):
        xsm.train(small_config(stages=ONE), tree, skip=skip)


def test_no_corrupt_time_is_left_out_if_none_may_be(tree):
    with pytest.raises(InputError, match=r"bad values \(t2m\) at 1 of 72 times.*Needed: good values at 100 %"):
        xsm.train(small_config(stages=ONE), changed(tree, "regional", "t2m", spoil(np.nan, 30)), skip=0)


def test_corrupt_static_fields_are_refused(tree):
    with pytest.raises(SchemaError, match="/regional: orog: 40 of 2400 values are missing"):
        xsm.train(
            small_config(stages=ONE),
            changed(tree, "regional", "orog", lambda values: np.where(np.arange(60) == 7, np.nan, values)),
        )


def test_lazy_data_are_read_twice_and_no_more(tree):
    """Once to check them, once for statistics; with a corrupt time too."""
    read = []
    spoiled = changed(tree, "regional", "t2m", spoil(np.nan, 30)).chunk(time=6)
    counted = {
        f"/{name}": spoiled[name]
        .to_dataset()
        .map(lambda array: array.copy(data=array.data.map_blocks(lambda x: read.append(1) or x, meta=np.empty(0, "f4"))))
        for name in spoiled.children
    }
    blocks = sum(array.data.npartitions for ds in counted.values() for array in ds.data_vars.values())
    read.clear()
    world = TrainingData.of(small_config(stages=ONE), xr.DataTree.from_dict(counted), memory=0.0)
    assert isinstance(world.series["inner"].values, LazyFields) and world.series["inner"].time.size == 71
    assert len(read) == 2 * blocks


def test_data_without_the_corrupt_times_train(tree):
    regional = tree["regional"].to_dataset().drop_sel(time=["2020-06-02T19:00"])
    mended = xr.DataTree.from_dict({"/global": tree["global"].to_dataset(), "/regional": regional})
    whole, holed = (
        TrainingData.of(small_config(stages=ONE), each).windows(("hour",), PERIODS["train"], 1) for each in (tree, mended)
    )
    assert len(holed) == len(whole) - 2  # the windows that end or begin around it


@pytest.mark.parametrize(("group", "name"), [("regional", "tcc"), ("global", "q2m")])
def test_constant_variables_are_refused(tree, group, name):
    flat = changed(tree, group, name, lambda values: np.full_like(values, 0.01))
    with pytest.raises(SchemaError, match=f" {name}: the same value everywhere in the training periods.*give longer periods"):
        xsm.train(small_config(stages=ONE), flat)


def test_three_days_are_not_enough_for_a_usual_batch(tree):
    stage = xsm.Stage(kind="regional", updates=10, batch=8)
    with pytest.raises(TimeError, match="train: 7 samples of 6 hours .* batch=8. Needed: at least 8 samples.*, or batch=7"):
        xsm.train(small_config(stages=(stage,)), tree)


def test_three_days_are_not_enough_to_train_from_scratch(tree):
    """Forty samples are needed, and 33 more come from 8.25 days."""
    message = "train: 7 samples of 6 hours for stage regional with batch=4. Needed: at least 40 samples. Give 9 more days of data"
    with pytest.raises(TimeError, match=message) as caught:
        xsm.train(small_config(stages=ONE), tree, min_samples=MIN_SAMPLES)
    assert "or batch=" not in str(caught.value)
    assert TrainingData.of(small_config(stages=ONE), tree, min_samples=7)


# --- global data every hour


@pytest.fixture(scope="module")
def hourly():
    return small_tree(1)


def test_hourly_global_data_give_samples_at_every_hour(hourly, tmp_path):
    """Two days less the six hours before and after: 48 - 11; each has a cached global network of its own."""
    world = TrainingData.of(small_config(stages=ONE), hourly, min_samples=37)
    windows = world.windows(("hour",), PERIODS["train"], 1)
    assert len(windows) == 37
    towers = WithTower(windows, tmp_path)
    assert len({towers.file(item) for item in range(37)}) == 37


def test_hourly_global_data_train(hourly):
    chosen = stages(1)[2:]  # a roll-out and the cold start
    model = xsm.train(small_config(stages=chosen), hourly)
    assert all(np.isfinite(stage["validation"]) for stage in model.about["training"])


def test_few_samples_seen_very_often_are_told(tree, caplog):
    TrainingData.of(small_config(stages=(xsm.Stage(kind="regional", updates=4000, batch=4),)), tree)
    assert "7 samples, and stage regional sees each of them 2286 times" in caplog.text


# --- larger than memory


def open_store(store):
    return xr.open_datatree(store, engine="zarr", chunks={})


def test_lazy_data_give_the_same_samples(store):
    lazy, held = (TrainingData.of(small_config(stages=ONE), open_store(store), memory=m) for m in (0.0, 4.0))
    assert isinstance(lazy.series["inner"].values, LazyFields) and isinstance(held.series["inner"].values, np.ndarray)
    assert lazy.digests == held.digests
    a, b = (each.windows(("hour",), PERIODS["train"], 2)[3] for each in (lazy, held))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_only_the_chunks_of_a_sample_are_read(store, monkeypatch):
    lazy = Series.of(xr.open_zarr(store, group="regional", chunks={}), REGIONAL, lazy=True).values
    read = []
    monkeypatch.setattr(lazy, "_read", lambda n: read.append(n) or lazy._chunk(n))
    values = lazy[9:16]
    assert read == [1, 2, 3]
    np.testing.assert_array_equal(values, fields_of(box(START + np.arange(10, 17) * HOUR), REGIONAL))


def test_every_slice_of_lazy_fields(store):
    ds = xr.open_zarr(store, group="regional", chunks={})
    lazy, held = LazyFields(ds, REGIONAL), fields_of(ds, REGIONAL)
    for first, last in ((0, 1), (0, 72), (4, 5), (4, 6), (5, 10), (71, 72), (66, 80)):
        np.testing.assert_array_equal(lazy[first:last], held[first:last])


def test_chunks_that_are_far_too_long_are_told(tree):
    """A day and a half of hours at once, where a sample of one step needs twelve, is fine; two years are not."""
    series = Series.of(tree["regional"].to_dataset().chunk(time=36), REGIONAL, lazy=True)
    for chunk, told in ((36, False), (17520, True)):
        series.values.chunk = chunk
        report = Report("data")
        data.warn_of_chunks("inner", series, 12, report)
        assert ("of which a sample needs 12; reading will be slow" in str(report.assumptions)) == told


def test_scattered_times_of_lazy_fields(store, monkeypatch):
    """Only chunks with one of the times are read."""
    lazy = LazyFields(xr.open_zarr(store, group="regional", chunks={}), REGIONAL)
    read, original = [], lazy._read
    monkeypatch.setattr(lazy, "_read", lambda number: read.append(number) or original(number))
    np.testing.assert_array_equal(lazy[np.array([3, 9, 27])], lazy[0:72][[3, 9, 27]])
    assert read[:3] == [0, 1, 5]


def test_statistics_of_blocks_are_those_of_the_whole(monkeypatch):
    from xscalemixer import samples

    series = Series.of(box(START + np.arange(48) * HOUR, shape=(8, 9)), REGIONAL)
    periods = [(START + 3 * HOUR, START + 40 * HOUR)]
    monkeypatch.setattr(samples, "_BLOCK", 1)  # every time a block of its own
    stats = survey(series, REGIONAL, periods, zero_mean=("ssrd",)).stats
    values = series.values[4:41].astype("f8")
    mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3))
    mean[6], std[6] = 0.0, np.sqrt((values[:, 6] ** 2).mean())
    np.testing.assert_allclose(stats.arrays(REGIONAL)[0], mean, rtol=1e-6)
    np.testing.assert_allclose(stats.arrays(REGIONAL)[1], std, rtol=1e-5)


# --- shell


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(small_config(stages=ONE).to_dict()))
    return tmp_path / "config.json"


def test_train_from_the_shell(settings, store, capsys):
    assert main(["train", str(settings), "--data", str(store)]) == 0
    assert xsm.load(settings.parent / "tiny").about["training"][0]["kind"] == "regional"
    assert (settings.parent / "runs" / "tiny" / "0-regional.safetensors").exists()
    assert main(["train", str(settings), "--data", str(store)]) == 1
    assert "pass --overwrite" in capsys.readouterr().err
    assert main(["train", str(settings), "--data", str(store), "--overwrite"]) == 0  # from the finished stage


def test_train_from_files_named_in_the_settings(settings, tree):
    for name in tree.children:
        tree[name].to_dataset().to_netcdf(settings.parent / f"{name}.nc")
    plain = json.loads(settings.read_text())
    settings.write_text(json.dumps({**plain, "data": {"global": "global*.nc", "regional": ["regional.nc"]}}))
    assert main(["train", str(settings), "--output", "model"]) == 0
    assert (settings.parent / "model" / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("{", [], "cannot be read"),
        ("[1]", [], "it holds a list; needed settings by name"),
        (None, [], "needed --global and --regional, or --data alone"),
        (None, ["--global", "a.nc"], "needed --global and --regional"),
        (None, ["--data", "nowhere.zarr"], "nowhere.zarr"),
        (None, ["--global", "a.nc", "--regional", "b.nc"], "a.nc"),
    ],
)
def test_bad_commands_are_one_message(settings, capsys, content, options, message):
    if content is not None:
        settings.write_text(content)
    assert main(["train", str(settings), *options]) == 1
    assert message in capsys.readouterr().err


def test_without_validation_periods_the_training_samples_are_checked(tree, caplog):
    settings = small_config(stages=ONE, validation=PERIODS["train"]).to_dict()
    assert xsm.TrainConfig.from_dict({key: value for key, value in settings.items() if key != "validation"}).validation == ()
    model = xsm.train(small_config(stages=ONE, validation=()), tree)
    assert "the training samples are checked instead, which tells nothing about other weather" in caplog.text
    assert model.about["trained_on"][0]["validation"] == []
    with pytest.raises(TimeError, match="validation: None. Needed: pairs of dates"):
        xsm.train(small_config(stages=ONE, validation=None), tree)


# --- which variables


def test_variables_are_settings(tree):
    """A wind model on one level: no temperature to be carried to the relief, no sun, and a forecast of what was asked for."""
    chosen = {"variables": ("v10", "u10"), "global_variables": ("z", "u10", "v10"), "global_levels": (500,), "network": {}}
    model = xsm.train(small_config(stages=stages(1)[2:], **chosen), tree)
    assert model.outer.schema.channels == ("z_500", "u10", "v10") and model.inner.schema.channels == ("v10", "u10")
    fc = tree.scalemixer.forecast(7, model=model)
    assert {"u10", "v10"} <= set(fc.data_vars) and "t2m" not in fc and np.isfinite(fc["u10"]).all()


def test_variables_that_cannot_be_used(tree):
    wrong = {"variables": ("t2m", "t2m"), "global_variables": ("z", "wind"), "network": {}}
    with pytest.raises(InputError) as caught:
        xsm.train(small_config(stages=ONE, **wrong), tree)
    assert "variables: ('t2m', 't2m'). Needed: some of" in str(caught.value) and "unknown 'wind'" in str(caught.value)
    with pytest.raises(InputError, match=r"global_levels: \(\) for z. Needed: pressure levels(?s:.)*global_levels=\(500, 850\)"):
        xsm.train(small_config(stages=ONE, global_variables=("z",), global_levels=()), tree)
