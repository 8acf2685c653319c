"""Augmentation: what must stay, stays; what must change, changes by the formula."""

import numpy as np
import pytest
import torch
from worlds import OUTER, box, forecaster, globe

from xscalemixer.augmentation import SeasonShift, TurnAndMirror
from xscalemixer.state import fields_of
from xscalemixer.variables import REGIONAL

MODEL = forecaster()
GROUNDS = tuple(network.statics.numpy() for network in (MODEL.network.outer, MODEL.network.inner))
GUESSED = MODEL.cold_start.config.guessed


def normalized_globe():
    grid = MODEL.outer.grid
    return MODEL.scale_outer(torch.from_numpy(fields_of(globe(lat=np.array(grid.latitude), lon=np.array(grid.longitude)), OUTER)))


def test_mirror_turns_only_the_northward_wind_around(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(0.0))
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(3))
    x = normalized_globe()
    (moved,), (sun,) = TurnAndMirror(MODEL.outer)([x], [x[:, :1]])
    before, after = MODEL.scale_outer.inverse(x), MODEL.scale_outer.inverse(moved)
    for c, name in enumerate(OUTER.channels):
        wanted = before[:, c].flip(1).roll(3, 2) * (-1 if name == "v10" else 1)
        torch.testing.assert_close(after[:, c], wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sun, x[:, :1].flip(2).roll(3, 3))


@pytest.fixture
def shifted(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.zeros(size))  # the coldest, always
    batch = {
        "outer": normalized_globe()[:, None],
        "inner": MODEL.scale_inner(torch.from_numpy(fields_of(box(), REGIONAL)))[None],
        "calendar": torch.ones(1, 1, 4),
    }
    return batch, SeasonShift(MODEL.outer, MODEL.inner, GROUNDS, GUESSED, coldest=20.0)(batch)


def test_temperature_falls_by_the_pattern(shifted):
    before, after = ((MODEL.scale_inner.inverse(batch["inner"])) for batch in shifted)
    lat, land = torch.tensor(MODEL.inner.grid.latitude), torch.from_numpy(GROUNDS[1][1])
    wanted = -20.0 * ((lat - 10) / 50).clamp(0, 1)[:, None] * (0.3 + 0.7 * land)
    torch.testing.assert_close((after - before)[0, 2, 0], wanted, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close((after - before)[0, 0, 0], (after - before)[0, 5, 0], atol=1e-3, rtol=0)  # all hours alike


def test_relative_humidity_stays(shifted):
    from xscalemixer.physics.humidity import saturation_vapor_pressure

    before, after = ((MODEL.scale_inner.inverse(batch["inner"]))[0, 0].double().numpy() for batch in shifted)
    ratio = [field[3] / saturation_vapor_pressure(field[0], "mixed") for field in (before, after)]
    warm = after[0] > 265
    np.testing.assert_allclose(ratio[1][warm], ratio[0][warm], rtol=0.25)
    assert (after[3] >= 0).all()


def test_geopotential_follows_hydrostatically(shifted):
    before, after = (MODEL.scale_outer.inverse(batch["outer"][:, 0])[0] for batch in shifted)
    change = dict(zip(OUTER.channels, after - before, strict=True))
    torch.testing.assert_close(change["z_500"], 287.06 * 0.5 * change["t2m"], rtol=1e-2, atol=0.5)
    torch.testing.assert_close(change["t_500"], 0.5 * change["t2m"], rtol=1e-2, atol=1e-2)


def test_wind_pressure_and_calendar_stay(shifted):
    before, after = shifted
    keep = [REGIONAL.channels.index(name) for name in ("u10", "v10", "sp", "tcc", "ssrd")]
    torch.testing.assert_close(after["inner"][:, :, keep], before["inner"][:, :, keep], atol=1e-5, rtol=1e-5)
    assert after["calendar"] is before["calendar"]


def test_half_of_the_samples_stay_as_they_are():
    torch.manual_seed(0)
    x = normalized_globe()[:, None].expand(200, -1, -1, -1, -1)
    moved = SeasonShift(MODEL.outer, MODEL.inner, GROUNDS, GUESSED, coldest=20.0)({"outer": x})["outer"]
    same = ((moved - x).abs().amax((1, 2, 3, 4)) < 1e-5).float().mean()
    assert 0.35 < same < 0.65


def test_first_guess_moves_with_the_channels_it_guesses(monkeypatch):
    """In whatever order it comes; the other inputs of the cold start stay."""
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.zeros(size))
    inner = MODEL.scale_inner(torch.from_numpy(fields_of(box(), REGIONAL)))[None]
    order = (4, 3, 0)  # sp, q2m, t2m
    fields = torch.cat([inner[:, -1, list(order)], inner[:, -1, :2]], 1)
    shifted = SeasonShift(MODEL.outer, MODEL.inner, GROUNDS, order, coldest=20.0)({"inner": inner, "fields": fields})
    torch.testing.assert_close(shifted["fields"][:, :3], shifted["inner"][:, -1, list(order)])
    assert torch.equal(shifted["fields"][:, 3:], fields[:, 3:])
