"""downscale: members that depend on their own seed alone, streaming and resuming, coherence, bad input."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from pairs import config, forecasts, pair, trained
from worlds import HOUR, START, forecaster, globe

import xscalemixer as xsm
from xscalemixer import downscaling, store
from xscalemixer.coarse import Coarse
from xscalemixer.downscaling import seeds_of
from xscalemixer.errors import CheckpointError, GridError, InputError, SchemaError, TimeError
from xscalemixer.nn.corrdiff import CorrDiff
from xscalemixer.nn.sampling import MemberNoise, SolverConfig

FEW = SolverConfig(steps=3)


@pytest.fixture(scope="module")
def model():
    found = trained()
    found.solver = FEW
    return found


@pytest.fixture(scope="module")
def chain():
    tree = xr.DataTree.from_dict({"/input": forecasts(4).assign_attrs(model="first"), "/target": pair(48)["target"].to_dataset()})
    found = xsm.train(config(inputs=("t2m", "u10")), tree, min_samples=1, workers=1)
    found.solver = FEW
    return found


@pytest.fixture
def coarse():
    return pair(3)["input"].to_dataset()


def truth_of(fc):
    """Analyses on the grid of a forecast, without constant fields."""
    times = (fc["reference_time"].values[:, None] + fc["lead_time"].values * HOUR).astype("M8[ns]")
    ds = fc.isel(reference_time=0).drop_vars(["orog", "lsm", "reference_time"]).rename(lead_time="time")
    return ds.assign_coords(time=np.unique(times)[: ds.sizes["time"]])


def noise(seed, shape=(1, 60, 60)):
    return MemberNoise([seed], shape)()[0]


# --- what comes out


def test_analysis(model, coarse):
    out = coarse.scalemixer.downscale(members=2, model=model)
    assert out["t2m"].dims == ("time", "member", "latitude", "longitude")
    assert out["t2m"].shape == (3, 2, 12, 16) and out["t2m"].attrs["units"] == "K"
    assert set(out["orog"].dims) == {"latitude", "longitude"}
    assert (out["ssrd"] >= 0).all() and out["t2m"].std("member").min() > 0
    assert out.attrs["references"] == "CorrDiff, arXiv:2309.15214" and out.attrs["history"].endswith(": downscale")


def test_forecast(model):
    out = xsm.downscale(forecasts(2, 3), 2, model=model)
    assert out["u10"].dims == ("reference_time", "lead_time", "member", "latitude", "longitude")
    assert out["u10"].shape[:3] == (2, 3, 2)
    assert out["valid_time"].values[1, 2] == START + 9 * HOUR


def test_the_mean_is_the_regression(model, coarse):
    mean = xsm.downscale(coarse, "mean", model=model)
    assert "member" not in mean.dims and "seed" not in mean.attrs
    inputs = model.inputs(np.zeros((3, *model.coarse.grid.shape), "f4"), START, 0)
    assert inputs.fields.shape == (6, 12, 16) and inputs.scalars.shape == (4,)
    still = trained()
    still.network.residual_scale.zero_()
    np.testing.assert_allclose(xsm.downscale(coarse, 1, model=still, solver=FEW)["t2m"].isel(member=0), mean["t2m"], atol=1e-3)


def test_upper_air_targets():
    tree = pair()
    levels = {"level": [500.0, 850.0]}
    upper = tree["target"].to_dataset()
    upper["t"] = (upper["t2m"] - 20).expand_dims(levels, 1).assign_attrs(standard_name="air_temperature", units="K")
    upper["level"].attrs = {"units": "hPa", "standard_name": "air_pressure"}
    tree = xr.DataTree.from_dict({"/input": tree["input"].to_dataset(), "/target": upper})
    found = xsm.train(config(outputs=("t_850", "t2m", "t_500")), tree, min_samples=1, workers=1)
    out = xsm.downscale(pair(2)["input"].to_dataset(), 1, model=found, solver=FEW)
    assert out["t"].dims == ("time", "member", "level", "latitude", "longitude")
    assert out["level"].values.tolist() == [500, 850] and not out["t"].isnull().any()


def test_longitudes_as_the_input_counts_them(model, coarse):
    turned = coarse.assign_coords(longitude=(coarse["longitude"] + 180) % 360 - 180).sortby("longitude")
    east, west = (xsm.downscale(ds, 1, model=model) for ds in (coarse, turned))
    np.testing.assert_array_equal(east["t2m"].values, west["t2m"].values)


def test_a_finer_input_is_first_averaged(model):
    """Detail that the networks never saw in an input does not reach them."""
    from worlds import globe

    fine = globe((START + HOUR,), np.linspace(89.5, -89.5, 180), np.arange(0.5, 360, 1.0))
    rough = fine.assign(t2m=fine["t2m"] + 20 * (-1.0) ** np.arange(360))
    smooth, bumpy = (xsm.downscale(ds, "mean", model=model)["t2m"] for ds in (fine, rough))
    np.testing.assert_allclose(smooth, bumpy, atol=1.0)


# --- members


def test_a_member_is_the_same_alone_and_at_its_time_alone(model, coarse):
    several = xsm.downscale(coarse, 4, model=model, seed=3)
    alone = xsm.downscale(coarse.isel(time=[1]), [2], model=model, seed=3)
    assert alone["member"].values.tolist() == [2]
    np.testing.assert_array_equal(alone["t2m"].values[0, 0], several["t2m"].values[1, 2])
    other = xsm.downscale(coarse.isel(time=[1]), [2], model=model, seed=4)
    assert (other["t2m"].values != alone["t2m"].values).any()


@pytest.mark.parametrize(("patch", "batches"), [(None, {1, 3}), ((16, 16), {1, 3})])
def test_members_together_are_those_alone(model, coarse, patch, batches):
    """In calls of several members, or of the patches of several."""
    seen = set()
    with model.network.diffusion.register_forward_pre_hook(lambda module, given: seen.add(len(given[0]))):
        alone, together = (xsm.downscale(coarse, 3, model=model, together=n, patch=patch) for n in (1, 3))
    np.testing.assert_allclose(alone["t2m"], together["t2m"], rtol=1e-5)
    assert seen == batches


def test_patches_of_a_member_are_taken_together(model):
    """As many as make 256 x 256 cells, whatever the members are."""
    assert [model.tiling(patch).at_once for patch in (None, (32, 32), (256, 256), (512, 256))] == [1, 64, 1, 1]


def test_patches_together_do_not_take_more_members(model, coarse, monkeypatch):
    """Memory is that of as many patches as asked for, not of as many members."""
    monkeypatch.setattr(downscaling, "_is_patch", lambda patch: True)
    fields, patches = [], []
    sample = type(model).sample
    monkeypatch.setattr(
        type(model), "sample", lambda self, c, seeds, *a, **k: fields.append(len(seeds)) or sample(self, c, seeds, *a, **k)
    )
    with model.network.diffusion.register_forward_pre_hook(lambda module, given: patches.append(len(given[0]))):
        xsm.downscale(coarse.isel(time=[0]), 3, model=model, together=4, patch=(8, 8))  # six patches cover 12 x 16 cells
    assert fields == [1, 1, 1] and set(patches) == {4, 2}


@pytest.mark.parametrize(("hours", "wanted"), [(0, 1.0), (3, math.cos(math.pi / 4)), (6, 0.0), (12, 0.0)])
def test_coherent_noise_turns_away(hours, wanted):
    first, later = (noise(seeds_of(0, 1, 0, hour, 6.0)) for hour in (0.0, float(hours)))
    assert (first * later).mean().item() == pytest.approx(wanted, abs=0.05)
    assert later.std().item() == pytest.approx(1.0, abs=0.03)


def test_shared_noise_and_noise_of_its_own():
    assert seeds_of(0, 1, 0, 5.0, math.inf) == seeds_of(0, 1, 0, 50.0, math.inf)
    assert len({seeds_of(*key) for key in ((0, 1, 0, 5.0), (0, 1, 0, 6.0), (0, 2, 0, 5.0), (1, 1, 0, 5.0), (0, 1, 9, 5.0))}) == 5


@pytest.mark.parametrize(("kept", "calls"), [(0, 7), (2, 5), (3, 3)])
def test_means_are_kept_while_they_fit(model, coarse, monkeypatch, kept, calls):
    """Three members of three times: those of the first times, of one at least, are made once."""
    made, mean = [], CorrDiff.mean
    monkeypatch.setattr(CorrDiff, "mean", lambda *args, **how: made.append(1) or mean(*args, **how))
    monkeypatch.setattr(downscaling, "_KEPT", kept * 4 * 3 * 12 * 16)
    xsm.downscale(coarse, 3, model=model)
    assert len(made) == calls


# --- streaming


def test_streamed_is_the_same(model, tmp_path):
    fc = forecasts(2, 2)
    held, streamed = (xsm.downscale(fc, 2, model=model, to=to) for to in (None, tmp_path / "a.zarr"))
    xr.testing.assert_equal(held.drop_vars("valid_time"), streamed.load().drop_vars("valid_time"))


def test_resumed_where_it_stopped(model, coarse, tmp_path, monkeypatch):
    path, whole, made = tmp_path / "a.zarr", xsm.downscale(coarse, 2, model=model), []
    write = store.BlockStore.write

    def stop_after_four(self, where, block):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(where)
        write(self, where, block)

    monkeypatch.setattr(store.BlockStore, "write", stop_after_four)
    with pytest.raises(KeyboardInterrupt):
        xsm.downscale(coarse, 2, model=model, to=path)
    assert [where["member"] for where in made] == [[0, 1]] * 3 + [[1, 2]]  # complete members first
    monkeypatch.setattr(store.BlockStore, "write", lambda self, *block: (made.append(block), write(self, *block)))
    again = xsm.downscale(coarse, 2, model=model, to=path, resume=True)
    assert len(made) == 6
    xr.testing.assert_equal(again[["t2m"]].load(), whole[["t2m"]])
    with pytest.raises(InputError, match="seed: the store has 0, this run 1"):
        xsm.downscale(coarse, 2, model=model, to=path, resume=True, seed=1)


def test_full_disk(model, coarse, tmp_path, monkeypatch):
    sizes = iter([10**9, *[10**3] * 9])
    monkeypatch.setattr(store, "_free", lambda path: next(sizes))
    monkeypatch.setattr(store.BlockStore, "_sync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="(?s)the disk is too small .* go on with resume=True"):
        xsm.downscale(coarse, 2, model=model, to=tmp_path / "a.zarr")


# --- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": 0}, "members=0; needed 1 or more"),
        ({"members": [1, 2, 1]}, "members 1 occur more than once; they would have the same noise"),
        ({"members": [0.5]}, "needed their number, a list of whole numbers"),
        ({"seed": [1, 1]}, r"seed=\[1, 1\]; needed one whole number"),
        ({"solver": "rk4"}, "solver='rk4'; needed 'heun', 'fast'"),
        ({"coherence": 0}, "coherence=0; needed a positive number of hours"),
        ({"together": 0}, "together=0"),
        ({"together": True}, "together=True; needed a whole number"),
        ({"patch": (4, 4)}, "both 16 or more"),
        ({"patch": 64}, r"patch=64; needed whole numbers of rows and columns.*patch=\(256, 256\)"),
        ({"patch": (16.5, 16)}, r"patch=\(16.5, 16\)"),
        ({"coherence": "12h"}, "coherence='12h'; needed a positive number of hours"),
        ({"coherence": np.timedelta64(12, "h")}, "coherence=.*12.*needed a positive number of hours"),
        ({"resume": True}, "add to='run.zarr'"),
    ],
)
def test_bad_settings(model, coarse, changes, message):
    with pytest.raises(InputError, match=message):
        xsm.downscale(coarse, **{"members": 1, "model": model, **changes})


def test_all_bad_settings_at_once(model, coarse):
    with pytest.raises(InputError, match=r"\(3 problems\)"):
        xsm.downscale(coarse, 0, model=model, coherence=-1, together=0)


def test_a_result_that_takes_much_memory_is_told(model, coarse, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(downscaling, "_LARGE", 4 * 2 * 3 * 3 * 12 * 16 - 1)  # members, times, channels, cells
    xsm.downscale(coarse, 2, model=model)
    assert 'members: the result takes 0 GB of memory. Stream it to disk: to="ens.zarr"' in caplog.text
    caplog.clear()
    xsm.downscale(coarse, 2, model=model, to=tmp_path / "ens.zarr")
    xsm.downscale(coarse, 1, model=model)
    assert "GB of memory" not in caplog.text


def test_missing_levels_and_variables(model, coarse):
    with pytest.raises(SchemaError, match="850"):
        xsm.downscale(coarse.sel(level=[500.0]), 1, model=model)
    with pytest.raises(SchemaError, match="no 2 m temperature"):
        xsm.downscale(coarse.drop_vars("t2m"), 1, model=model)


def test_input_elsewhere(model, coarse):
    with pytest.raises(GridError, match="lies outside the data"):
        xsm.downscale(coarse.sel(latitude=slice(10, -80)), 1, model=model)


def test_the_relief_of_an_input_without_orography_is_that_of_training(model, coarse, caplog):
    known = xsm.downscale(coarse, "mean", model=model)
    assert "orography" not in caplog.text and model.height.shape == model.coarse.grid.shape
    bare = xsm.downscale(coarse.drop_vars("orog"), "mean", model=model)
    told = "no orography; taken as if on the terrain of training, averaged: t2m"
    assert told in caplog.text and told in bare.attrs["assumptions"]
    np.testing.assert_allclose(bare["t2m"], known["t2m"], atol=0.01)


def test_rough_relief_of_an_input_is_taken_out_before_it_is_averaged(model, coarse):
    """Air that is level on a finer grid stays level, however rough the ground below it."""
    fine = globe(coarse["time"].values, np.linspace(89.5, -89.5, 180), np.arange(0.5, 360))
    level = fine.assign(t2m=(285.0 + 0 * fine["t2m"]).assign_attrs(fine["t2m"].attrs), orog=0 * fine["orog"])
    height = 1000.0 + 1000.0 * np.cos(90.0 * np.deg2rad(fine["latitude"])) * np.sin(90.0 * np.deg2rad(fine["longitude"]))
    over = level.assign(t2m=level["t2m"] - 0.0065 * height, orog=height.astype("f4").transpose(*fine["orog"].dims))
    for v in ("t2m", "orog"):
        over[v].attrs = fine[v].attrs
    results = [xsm.downscale(ds, "mean", model=model)["t2m"] for ds in (level, over)]
    np.testing.assert_allclose(results[1], results[0], atol=0.01)


def test_beyond_the_range_of_training(model, coarse, caplog):
    hot = coarse.assign(t2m=coarse["t2m"] + 25)
    xsm.downscale(hot, "mean", model=model)
    assert (
        "t2m: 311.8 K at sea level lies" in caplog.text
        and "standard deviations above the greatest value of training" in caplog.text
    )
    caplog.clear()
    xsm.downscale(coarse, "mean", model=model)
    assert "standard deviations" not in caplog.text


def test_statistics_of_the_source_remove_its_bias(model, coarse, caplog):
    biased = lambda ds: ds.assign(t2m=ds["t2m"] + 5)
    past = pair(18)["input"].to_dataset()
    right = xsm.downscale(coarse, "mean", model=model, source=past)["t2m"]
    np.testing.assert_allclose(xsm.downscale(biased(coarse), "mean", model=model, source=biased(past))["t2m"], right, atol=1e-2)
    assert abs(float((xsm.downscale(biased(coarse), "mean", model=model)["t2m"] - right).mean())) > 1.0


def test_a_cold_spell_is_no_bias_beside_the_system_of_training(model, coarse, caplog):
    """Weeks that were cold in both systems: alone their cold is taken for bias, with both only what they differ by is."""
    cold = lambda ds: ds.assign(t2m=ds["t2m"] - 8, t=ds["t"] - 8)
    biased = lambda ds: ds.assign(t2m=ds["t2m"] + 5)
    reference = pair(18)["input"].to_dataset()
    wanted = xsm.downscale(cold(coarse), "mean", model=model)["t2m"]
    both = xsm.downscale(biased(cold(coarse)), "mean", model=model, source=(biased(cold(reference)), cold(reference)))
    np.testing.assert_allclose(both["t2m"], wanted, atol=1e-2)
    assert (
        "mean and standard deviation of 18 fields of the source for those of training: t2m +5 K x 1.00, u10 +0"
        in both.attrs["assumptions"]
    )
    alone = xsm.downscale(cold(coarse), "mean", model=model, source=cold(reference))["t2m"]
    assert float((alone - wanted).mean()) > 4.0


def test_what_is_wrong_with_a_source(model, coarse, caplog):
    past = pair(18)["input"].to_dataset()
    later = past.assign_coords(time=past["time"] + np.timedelta64(200, "D"))
    with pytest.raises(TimeError, match="no time in common"):
        xsm.downscale(coarse, 1, model=model, source=(past, later))
    with pytest.raises(InputError, match="source= has 3 datasets"):
        xsm.downscale(coarse, 1, model=model, source=(past, past, past))
    xsm.downscale(coarse, "mean", model=model, source=later)
    assert "source: it has Dec, training had Jun: what seasons differ by would be removed as its bias" in caplog.text
    caplog.clear()
    xsm.downscale(coarse.assign(t2m=coarse["t2m"] + 25), "mean", model=model, source=past)
    assert (
        "standard deviations above the greatest value of training" in caplog.text
    )  # the range of training is asked for with a source too


def test_humidity_of_the_source_is_read_like_that_of_the_input(model, coarse, monkeypatch):
    phases, of = [], Coarse.of.__func__
    monkeypatch.setattr(
        Coarse, "of", classmethod(lambda cls, *args, rh_phase: phases.append(rh_phase) or of(cls, *args, rh_phase=rh_phase))
    )
    xsm.downscale(coarse, "mean", model=model, source=pair(18)["input"].to_dataset(), rh_phase="ice")
    assert phases == ["ice", "ice"]


def test_members_of_the_input(model):
    both = xr.concat([forecasts(1, 2)] * 2, "member").assign_coords(member=[0, 1])
    with pytest.raises(InputError, match="2 members. Needed: a forecast without members"):
        xsm.downscale(both, 1, model=model)


def test_models_for_something_else(model, coarse, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="model=int cannot downscale"):
        xsm.downscale(coarse, 1, model=3)
    with pytest.raises(InputError, match="it is a model that forecasts"):
        xsm.downscale(coarse, 1, model=forecaster())
    monkeypatch.setattr(downscaling, "models", dict)
    with pytest.raises(CheckpointError, match="no weights for downscaling come with this version; train one.*pass model="):
        xsm.downscale(coarse)
    model.save(tmp_path / "corrdiff")
    for which in (model, tmp_path / "corrdiff"):
        with pytest.raises(InputError, match="it is a model that downscales"):
            xsm.forecast(coarse, 6, model=which)


# --- on top of forecasts


def test_errors_of_forecasts_need_forecasts(chain, coarse):
    assert chain.leads == (1, 12)
    with pytest.raises(InputError, match="trained on forecasts of 1 to 12 hours"):
        xsm.downscale(coarse, 1, model=chain)


def test_the_lead_time_is_told(chain, caplog):
    values = np.zeros((2, *chain.coarse.grid.shape), "f4")
    early, late = (chain.inputs(values, START, lead).scalars for lead in (1, 12))
    torch.testing.assert_close(late - early, torch.tensor([0, 0, 0, 0, 11 / 24]))
    xsm.downscale(forecasts(1, 14).isel(lead_time=[13]), "mean", model=chain)
    assert "lead_time: 14 to 14 h, where the model was trained on 1 to 12 h" in caplog.text


def test_it_knows_whose_errors_it_learned(chain, caplog):
    fc = forecasts(1, 2)
    xsm.downscale(fc.assign_attrs(model="first"), "mean", model=chain)
    assert "forecasts of" not in caplog.text
    xsm.downscale(fc, "mean", model=chain)
    assert "forecasts of an unknown model; 'tiny' learned the errors of those of first" in caplog.text
    with pytest.raises(GridError, match=r'lies outside the data.*forecast\(hours=48, model="first"\)'):
        xsm.downscale(fc.assign_attrs(model="second").sel(latitude=slice(10, -80)), 1, model=chain)


def test_pair_of_forecasts_and_truth(caplog):
    truth = pair(20)["target"].to_dataset().drop_vars(["orog", "lsm"])
    fc = forecasts(2, 6).sel(latitude=slice(52, 36), longitude=slice(76, 100))
    tree = xsm.downscaling_pair(fc, truth, leads=[2, 4])
    assert tree["input"].sizes["lead_time"] == 2 and "orog" not in tree["target"]
    assert "orog" in xsm.downscaling_pair(forecasts(2, 6), truth_of(forecasts(2, 6)))["target"]
    for elsewhere in ({"latitude": truth_of(fc)["latitude"].values[::-1]}, {"longitude": truth_of(fc)["longitude"].values + 10}):
        assert "orog" not in xsm.downscaling_pair(fc, truth_of(fc).assign_coords(elsewhere))["target"]
    seen = forecaster()
    seen.about["trained_on"] = [{"train": [[str(START - HOUR), str(START)]]}]
    xsm.downscaling_pair(fc, truth, model=seen)
    assert "1 of 2 starts lie in the training periods of tiny" in caplog.text
    with pytest.raises(CheckpointError, match="there is no model 'nix'"):
        xsm.downscaling_pair(fc, truth, model="nix")
    with pytest.raises(TimeError, match=r"no lead times \[48\] h"):
        xsm.downscaling_pair(fc, truth, leads=[48])
    with pytest.raises(TimeError, match="needed common times"):
        xsm.downscaling_pair(fc, truth.assign_coords(time=truth["time"] + np.timedelta64(400, "D")))
