"""One step and one first guess, against what they are made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from worlds import HOUR, OUTER, START, box, forecaster, globe

from xscalemixer.forecaster import Forecaster
from xscalemixer.grids import Grid
from xscalemixer.model import bound
from xscalemixer.nn.coldstart import ColdStart
from xscalemixer.physics import humidity
from xscalemixer.samples import Series, Windows
from xscalemixer.state import STATICS, State
from xscalemixer.variables import REGIONAL, Schema


@pytest.fixture(scope="module")
def model():
    return forecaster()


@torch.inference_mode()
def test_step_is_the_network_on_a_training_window(model):
    """Physical state in, physical state out, by the same inputs that training gives."""
    grid = model.outer.grid
    axes = np.array(grid.latitude), np.array(grid.longitude)
    outer = Series.of(globe([START, START + 6 * HOUR], *axes), OUTER)
    inner = Series.of(box(START + np.arange(-5, 7) * HOUR), REGIONAL)
    scales = [branch.stats.arrays(branch.schema) for branch in (model.outer, model.inner)]
    period = (START - 6 * HOUR, START + 6 * HOUR)
    sun = model.inner.insolation(model.static["orog"])
    window = Windows(outer, inner, grid, scales, [period], 1, lambda ends: sun(ends) / model.sunlit_scale, model.calendar)[0]
    by_hand = model.network(
        window["outer"][:1], window["inner"][None, :6], window["calendar"], window["outer_forcing"], window["inner_forcing"]
    )

    state = State(START, torch.from_numpy(outer.values[:1]), torch.from_numpy(inner.values[None, :6]))
    ahead = model.step(state)
    assert ahead.time == START + 6 * HOUR
    torch.testing.assert_close(model.scale_outer(ahead.outer), by_hand.outer, atol=1e-4, rtol=1e-4)
    lower, upper = (torch.from_numpy(limit)[:, None, None] for limit in REGIONAL.limits())
    wanted = model.scale_inner.inverse(by_hand.inner).clamp(lower, upper)
    wanted[:, :, 6] *= window["inner_forcing"][:, 6:] > 0
    torch.testing.assert_close(model.scale_inner(ahead.inner), model.scale_inner(wanted), atol=1e-4, rtol=1e-4)
    assert (ahead.inner - state.inner[:, -1:]).abs().amax() > 0.1


def test_the_sun_of_a_network_that_knows_the_slopes_is_on_them(model):
    """A plain gets what a level model gets; between ridges there is shadow when the sun is low, but no darkness by day."""
    grid = model.inner.grid
    ends = np.datetime64("2020-06-01T00", "ns") + np.arange(24) * HOUR
    level = model.inner.insolation(np.zeros(grid.shape))(ends)
    on_slopes = replace(model.inner, statics=STATICS).insolation
    np.testing.assert_allclose(on_slopes(np.zeros(grid.shape))(ends), level, rtol=1e-4, atol=0.02)
    ridges = np.where(np.arange(grid.shape[1]) % 4 < 2, 0.0, 8e4) * np.ones(grid.shape)  # m: cells are a hundred kilometers wide
    among = on_slopes(ridges)(ends)
    day = level > 1.0
    assert (among[day] > 0).all() and (among[level == 0] == 0).all()
    low = day & (level < 200.0)
    assert np.median(among[..., 1::4][low[..., 1::4]] / level[..., 1::4][low[..., 1::4]]) < 0.7


@pytest.mark.parametrize(("statics", "most"), [(STATICS[:2], 300.0), (STATICS[:3], 5000.0)])
def test_no_more_sunshine_than_above_the_air(statics, most):
    """But a slope may face the sun; the night is dark on any ground."""
    branch = replace(forecaster().inner, statics=statics)
    fields, insolation = torch.full((2, 7, 4, 5), 5000.0), torch.full((2, 4, 5), 300.0)
    insolation[0] = 0.0
    sunshine = bound(fields, branch, insolation)[:, 6]
    assert (sunshine[0] == 0.0).all() and (sunshine[1] == most).all()


def test_first_guess_over_a_plateau():
    """From terrain at 1 km to terrain at 3 km: 13 K colder, pressure by the hypsometric equation, all else as it is."""
    model = forecaster()
    model.network.outer.statics[0] = 1.0
    model.network.inner.statics[0] = 3.0
    values = {"t2m": 290.0, "u10": 5.0, "v10": -3.0, "q2m": 0.008, "sp": 89875.0}
    outer = np.empty((1, len(OUTER), *model.outer.grid.shape), "f4")
    outer[:] = np.array([values.get(name, 1e4) for name in OUTER.channels])[:, None, None]

    fields = model.first_guess(outer, np.array([START + 6 * HOUR]))[0]  # 18 UTC

    guess = fields[:5] * model.scale_inner.std[:5] + model.scale_inner.mean[:5]
    wanted = [290.0 - 13.0, 5.0, -3.0, 0.008, 89875.0 * (277.0 / 290.0) ** (9.80665 / (287.0597 * 0.0065))]
    for channel, value in enumerate(wanted):
        np.testing.assert_allclose(guess[channel], value, rtol=1e-5, err_msg=REGIONAL.channels[channel])
    orography, land, rise, sine, cosine = fields[5:]
    assert (orography == 3.0).all() and torch.equal(land, model.network.inner.statics[1])
    np.testing.assert_allclose(rise, 2.0, rtol=1e-6)
    np.testing.assert_allclose(torch.stack([sine.unique(), cosine.unique()]).flatten(), [-1.0, 0.0], atol=1e-6)


def test_parameters_are_counted_once(model):
    networks = model.network.outer, model.network.inner, model.network.mixers, model.cold_start
    assert model.parameter_count == sum(p.numel() for network in networks for p in network.parameters())


def carried(statics=STATICS[:2], west=None):
    """A model whose cold start begins with terrain physics over 4 km of plateau, north-west of a plain."""
    model = forecaster()
    settings = replace(model.cold_start.config, guess="terrain", inputs=len(statics) + 8)
    model.cold_start = ColdStart(settings)
    if west is not None:
        moved = tuple(lon - model.inner.grid.longitude[0] + west for lon in model.inner.grid.longitude)
        model.inner = replace(model.inner, grid=Grid(model.inner.grid.latitude, moved))
    model.network.outer.statics[0] = 1.0
    model.network.inner.statics[0] = 1.0
    model.network.inner.statics[0, :20, :30] = 5.0
    return model


def guessed(model, values):
    """Physical first guess from uniform fields."""
    outer = np.empty((2, len(OUTER), *model.outer.grid.shape), "f4")
    outer[:] = np.array([values.get(name, 1e4) for name in OUTER.channels])[:, None, None]
    fields = model.first_guess(outer, np.array([START, START + 6 * HOUR]))
    assert fields.shape[:2] == (2, model.cold_start.config.inputs)
    return (fields[0, :5] * model.scale_inner.std[:5] + model.scale_inner.mean[:5]).numpy()


@pytest.mark.parametrize("west", [None, 150.0])  # the second crosses the date line
def test_first_guess_by_terrain_physics(west):
    values = {"t2m": 290.0, "u10": 5.0, "v10": -3.0, "q2m": 0.008, "sp": 89875.0}
    t2m, u10, v10, q2m, sp = guessed(carried(west=west), values)
    np.testing.assert_allclose(t2m[:20, :30], 290.0 - 26.0, atol=0.01)  # nothing tells the lapse rate: the standard one
    np.testing.assert_allclose(t2m[20:], 290.0, atol=0.01)
    assert (humidity.vapor_pressure(q2m, sp) <= 1.001 * humidity.saturation_vapor_pressure(t2m)).all()
    assert sp[5, 5] == pytest.approx(54940, rel=1e-3) and sp[30, 40] == pytest.approx(89875, rel=1e-4)
    assert np.ptp(u10) > 0.5 and abs(u10.mean() - 5.0) < 0.5 and abs(v10.mean() + 3.0) < 0.5


def test_descriptions_from_before_the_names_of_statics_still_work(model):
    data = model.to_dict()
    assert Forecaster.from_dict(data).inner.statics == ("orog", "lsm")
    for branch in ("outer", "inner"):
        del data[branch]["statics"]
    del data["cold_start"]["guess"]
    old = Forecaster.from_dict(data)
    assert old.inner.statics == ("orog", "lsm") and old.cold_start.config.guess == "standard"
    assert old.to_dict() == model.to_dict()


def test_a_model_prints_what_it_is_in_three_lines(model):
    first, globe, region = repr(model).splitlines()
    size = model.parameter_count / 1e6
    assert first == f"Forecaster {model.name!r}: {size:.2f} million parameters (ScaleMixer, arXiv:2603.28173)"
    assert globe == f"  global, every 6 hours: {model.outer.schema} on {model.outer.grid}"
    assert region == f"  regional, hourly: {model.inner.schema} on {model.inner.grid}"


def test_a_schema_prints_its_variables():
    assert str(Schema.of("t", "q", "t2m", levels=(500, 850))) == "t (2 levels), q (2 levels), t2m"
