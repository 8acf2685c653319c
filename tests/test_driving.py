"""Baselines on the code path of the coupled network: what they hear, what they cannot hear, and their geometry."""

from dataclasses import replace

import pytest
import torch
from test_scalemixer import TINY, build, inputs

from xscalemixer.nn.driving import Driver, _WindowLayer

SHARED = ((0, 5, 2.0, 0.5), (3, 1, 1.0, 0.0))  # regional channel, global channel, scale, offset
KINDS = ["lam", "nested", "downscaled"]


def sensitivity(model, name, target):
    """Largest change of one output when one input is changed."""
    with torch.inference_mode():
        one, other = inputs(), inputs()
        other[name] = other[name] + torch.randn(other[name].shape, generator=torch.Generator().manual_seed(9))
        return float((getattr(model(**one), target) - getattr(model(**other), target)).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_region_hears_the_driver_and_the_driver_hears_nothing(kind):
    model = build(coupling=kind, shared=SHARED)
    assert sensitivity(model, "outer", "inner") > 1e-3
    assert sensitivity(model, "inner", "outer") == 0


def test_only_the_downscaler_has_no_regional_history():
    assert sensitivity(build(coupling="downscaled"), "inner", "inner") == 0
    assert sensitivity(build(coupling="lam"), "inner", "inner") > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_global_step_is_the_standalone_one(kind):
    model, given = build(coupling=kind), inputs()
    with torch.inference_mode():
        torch.testing.assert_close(model(**given).outer, model.outer(given["outer"], given["outer_forcing"]))


def coordinates(config):
    """Global state whose first channels are the latitude and the longitude of the cells."""
    outer = torch.zeros(1, config.outer.channels, *config.outer.shape)
    outer[0, 0], outer[0, 1] = torch.tensor(config.outer.latitude)[:, None], torch.tensor(config.outer.longitude)[None]
    return outer


def test_driver_interpolates_linear_fields_exactly():
    config = replace(TINY, coupling="lam")
    fields = Driver(config)(coordinates(config), 2 * coordinates(config))
    lat, lon = torch.tensor(config.inner.latitude)[:, None], torch.tensor(config.inner.longitude)[None]
    now, ahead = fields[0].chunk(2)
    torch.testing.assert_close(now[0], lat.expand(now[0].shape), rtol=0, atol=1e-4)
    torch.testing.assert_close(ahead[1], 2 * lon.expand(now[1].shape), rtol=0, atol=1e-4)


def test_nested_driver_sees_two_global_cells_beyond_the_box():
    config = replace(TINY, coupling="nested")
    lat, lon = Driver(config)(coordinates(config), coordinates(config))[0, :2]
    north, south = config.inner.latitude[0], config.inner.latitude[-1]
    west, east = config.inner.longitude[0], config.inner.longitude[-1]
    edges = torch.stack([lat[0, 0], lat[-1, 0], lon[0, 0], lon[0, -1]])
    halo = 2 * 5.625
    torch.testing.assert_close(edges, torch.tensor([north + halo, south - halo, west - halo, east + halo]), rtol=0, atol=1e-3)


def test_untrained_downscaler_returns_shared_channels_linear_in_time():
    model = build(coupling="downscaled", shared=SHARED)
    torch.nn.init.zeros_(model.inner.head.weight)
    given = inputs()
    with torch.inference_mode():
        step = model(**given)
        now, ahead = (model.driver.to_cells(x)[:, 5] for x in (given["outer"], step.outer))
    torch.testing.assert_close(step.inner[:, 5, 0], 2 * ahead + 0.5)
    torch.testing.assert_close(step.inner[:, 2, 0], now + ahead + 0.5)
    assert not step.inner[:, :, 1].any()


def test_downscaler_names_the_insolation_that_it_lacks():
    with pytest.raises(ValueError, match="regional forcing is missing"):
        build(coupling="downscaled")(**inputs() | {"inner_forcing": None})


def test_frame_of_shared_channels_is_the_driver():
    free, framed = (build(coupling="lam", shared=SHARED, frame=frame) for frame in (0, 3))
    framed.load_state_dict(free.state_dict())
    given = inputs()
    with torch.inference_mode():
        a, b = free(**given).inner, framed(**given).inner
        guess = framed.driver.guess(framed.driver(given["outer"], framed.outer(given["outer"], given["outer_forcing"])))
    torch.testing.assert_close(a[..., 3:-3, 3:-3], b[..., 3:-3, 3:-3])
    torch.testing.assert_close(b[:, :, 0, :3], guess[:, :, 0, :3])
    torch.testing.assert_close(a[:, :, 1], b[:, :, 1])


def test_frame_belongs_to_limited_area_models():
    with pytest.raises(ValueError, match="frame=2 needs coupling='lam'; found 'nested'"):
        replace(TINY, coupling="nested", frame=2)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("shape", [(8, 16), (5, 19), (17, 3)])
def test_windows_are_cut_and_joined_without_loss(shape, shifted):
    layer = _WindowLayer(4, 2, 2.0, shape, shifted)
    tokens = torch.randn(2, shape[0] * shape[1], 4)
    torch.testing.assert_close(layer._join(layer._cut(tokens), 2), tokens)


def test_attention_stays_within_its_window():
    layer, tokens = _WindowLayer(4, 2, 2.0, (16, 16), shifted=False), torch.randn(1, 256, 4)
    moved = tokens.clone()
    moved[0, 0] += torch.tensor([1.0, -1.0, 0.5, 2.0])
    changed = (layer(tokens) - layer(moved)).abs().amax(-1).reshape(16, 16) > 0
    assert changed[:8, :8].all()
    assert not changed[8:].any()
    assert not changed[:, 8:].any()
