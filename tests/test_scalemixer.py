"""The coupled network: published sizes, invariants of the exchange, ablations on one code path."""

from dataclasses import replace

import pytest
import torch

from xscalemixer.nn.blocks import Attention
from xscalemixer.nn.patch import TokenGrid
from xscalemixer.nn.scalemixer import (
    CoupledModel,
    GlobalModel,
    KeyPositionSampler,
    Position,
    SamplerConfig,
    ScaleMixerConfig,
    sample_bilinear,
)

TINY = ScaleMixerConfig.tiny()


def inputs(config=TINY, batch=2, seed=0):
    random = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(batch, *shape, generator=random)
    outer, inner = config.outer, config.inner
    return {
        "outer": normal(outer.channels, *outer.shape),
        "inner": normal(6, inner.channels, *inner.shape),
        "calendar": normal(4),
        "outer_forcing": normal(outer.forcings, *outer.shape),
        "inner_forcing": normal(inner.forcings, *inner.shape),
    }


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return CoupledModel(replace(TINY, **changes)).eval()


def stir(model, seed=1):
    """Give zero-initialized layers weights, so that every path carries a signal."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for mixer in model.mixers:
            for layer in (mixer.move, *([mixer.adapter[-1]] if hasattr(mixer, "adapter") else [])):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=random) * 0.3)
    return model


# --- sizes


def count(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_paper_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = CoupledModel(ScaleMixerConfig.paper())
    assert count(model.outer) == pytest.approx(736, rel=0.02)
    assert count(model) == pytest.approx(1070, rel=0.02)


def test_paper_patches_nest_one_to_one():
    with torch.device("meta"):
        model = CoupledModel(ScaleMixerConfig.paper())
    assert model.alignment.nested
    assert model.config.inner.tokens.shape == (20, 32)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_forward_shapes(size):
    config = getattr(ScaleMixerConfig, size)()
    model = CoupledModel(config).eval()
    with torch.inference_mode():
        step = model(**inputs(config, batch=1))
    assert step.outer.shape == (1, config.outer.channels, *config.outer.shape)
    assert step.inner.shape == (1, 6, config.inner.channels, *config.inner.shape)
    assert len(step.keys) == config.blocks


def test_base_builds_with_finite_size():
    with torch.device("meta"):
        assert count(CoupledModel(ScaleMixerConfig.base())) == pytest.approx(115, abs=1)


# --- configuration


def test_config_round_trip():
    config = replace(TINY, coupling="one_way", sampler=SamplerConfig(keys=5, halo=1))
    assert ScaleMixerConfig.from_dict(config.to_dict()) == config


def test_unknown_key_is_refused():
    with pytest.raises(TypeError, match="colour"):
        ScaleMixerConfig.from_dict({**TINY.to_dict(), "colour": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coupling": "off"}, "coupling='off'; choose one of"),
        ({"blocks": 3}, "outer depth 4 is not a multiple of blocks=3"),
        ({"width": 33}, "width 33 is not a multiple of heads=2"),
        ({"sampler": SamplerConfig(keys=1000)}, "keys=1000 exceeds the 128 global tokens"),
        ({"variable_width": -1}, "variable_width=-1 with coupling='two_way'; needed 0 or more"),
        ({"variable_width": 5, "coupling": "downscaled"}, "regional hours as input, which 'downscaled' has not"),
        (
            {"driver_width": 3, "coupling": "lam"},
            "driver_width=3 with coupling='lam'; needed 0, or a positive number and 'two_way'",
        ),
        ({"sunlit_channel": 6, "inner": replace(TINY.inner, forcings=0)}, "sunlit_channel needs inner.forcings=12"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_wrong_shape_says_what_was_needed():
    bad = inputs()
    bad["inner"] = bad["inner"][:, :5]
    with pytest.raises(ValueError, match=r"regional history has shape \(2, 5, 7, 40, 60\), needed"):
        build()(**bad)


# --- invariants of the exchange


def test_untrained_feedback_leaves_the_global_forecast_untouched():
    model, x = build(), inputs()
    alone = model.outer(x["outer"], x["outer_forcing"])
    assert torch.equal(model(**x).outer, alone)


def test_literal_feedback_does_not():
    model, x = build(feedback="replace"), inputs()
    assert not torch.allclose(model(**x).outer, model.outer(x["outer"], x["outer_forcing"]))


def test_order_of_keys_does_not_matter():
    model = stir(build())
    mixer, outer, inner = model.mixers[0], torch.randn(1, 128, 32), torch.randn(1, 6, 32)
    keys = mixer.sampler(outer)
    turned = keys._replace(chosen=keys.chosen.flip(1), tokens=keys.tokens.flip(1), positions=keys.positions.flip(1))
    results = [mixer.inform(inner, mixer.refine(*mixer.look(k, outer), inner)) for k in (keys, turned)]
    torch.testing.assert_close(*results)


def test_with_all_keys_and_no_gate_the_score_network_has_no_effect():
    sampler = SamplerConfig(keys=128, gate="none")
    model, x = stir(build(sampler=sampler)), inputs()
    before = model(**x)
    with torch.no_grad():
        for mixer in model.mixers:
            mixer.sampler.score.weight.normal_()
    after = model(**x)
    torch.testing.assert_close(after.inner, before.inner)
    torch.testing.assert_close(after.outer, before.outer)


@pytest.mark.parametrize("gate", ["tanh", "softmax"])
def test_score_network_learns_through_the_gate(gate):
    model = build(sampler=SamplerConfig(keys=8, gate=gate))
    model(**inputs()).inner.square().mean().backward()
    for mixer in model.mixers:
        assert mixer.sampler.score.weight.grad.abs().max() > 0
        assert mixer.sampler.convolutions[0].weight.grad.abs().max() > 0


def test_softmax_gate_is_the_literal_product():
    sampler = KeyPositionSampler(replace(TINY, sampler=SamplerConfig(keys=8, gate="softmax")))
    tokens = torch.randn(1, 128, 32)
    keys = sampler(tokens)
    torch.testing.assert_close(keys.tokens, tokens[:, keys.chosen[0]] * keys.scores[:, keys.chosen[0], None])
    assert keys.scores.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert set(keys.chosen[0].tolist()) == set(keys.scores[0].topk(8).indices.tolist())


def test_sampling_at_token_centers_returns_the_tokens():
    mixer = build().mixers[0]
    field = torch.randn(1, 4, 2, 3)
    centers = torch.as_tensor(TINY.inner.tokens.centers, dtype=torch.float32)[None]
    sampled, inside = sample_bilinear(field, centers, mixer.inner_latitude, mixer.inner_longitude, mixer.box_edges)
    torch.testing.assert_close(sampled, field.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
    assert inside.all()


def test_sampling_is_linear_between_centers_and_differentiable_in_the_position():
    latitude, longitude = torch.tensor([30.0, 20.0, 5.0]), torch.tensor([100.0, 110.0, 125.0, 130.0])  # uneven axes
    field = (2 * latitude[:, None] + 3 * longitude[None, :])[None, None]
    position = torch.tensor([[[12.0, 121.0]]], requires_grad=True)
    value, _ = sample_bilinear(field, position, latitude, longitude, torch.tensor([[0.0, 95.0], [35.0, 135.0]]))
    value.sum().backward()
    assert value.item() == pytest.approx(2 * 12 + 3 * 121, rel=1e-6)
    torch.testing.assert_close(position.grad, torch.tensor([[[2.0, 3.0]]]), rtol=1e-4, atol=1e-4)


def test_keys_outside_the_box_get_nothing_from_the_region():
    mixer = build().mixers[0]
    tokens, inner = torch.randn(1, 2, 32), torch.randn(1, 6, 32)
    positions = torch.tensor([[[-40.0, 300.0], [30.0, 90.0]]])
    refined = mixer.refine(tokens, positions, inner)
    assert torch.equal(refined[:, 0], tokens[:, 0])
    assert not torch.allclose(refined[:, 1], tokens[:, 1])


def test_keys_may_wrap_the_date_line_but_not_the_poles():
    mixer = build().mixers[0]
    moved = mixer._inside_domain(torch.tensor([[[95.0, 370.0], [-95.0, -10.0]]]))
    highest = float(mixer.domain[1, 0])
    torch.testing.assert_close(moved, torch.tensor([[[highest, 10.0], [-highest, 350.0]]]))


def test_frozen_weights_do_not_change_but_the_rest_learns():
    model = build().train().freeze_outer()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    model.loss(model(**inputs()).inner, torch.zeros(2, 6, 7, 40, 60)).backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert not any(name.startswith("outer.") for name in changed)
    assert any(name.startswith("mixers.") for name in changed)
    assert not model.outer.training and model.inner.training


# --- who hears whom


def disturbed(x, name, amount=1.0):
    return {**x, name: x[name] + amount}


def reach(model, name):
    """Change of both outputs when one input is disturbed."""
    x = inputs()
    with torch.inference_mode():
        before, after = model(**x), model(**disturbed(x, name))
    return (after.outer - before.outer).abs().amax((0, 1)), (after.inner - before.inner).abs().amax()


def test_two_way_each_hears_the_other():
    model = stir(build())
    region = reach(model, "outer")[1]
    driver = reach(model, "inner")[0]
    assert region > 1e-4
    assert driver.min() > 1e-6  # later layers carry the region's news around the globe


def test_feedback_of_the_last_block_stays_in_the_box():
    model = stir(build())
    outer, inner = torch.randn(1, 128, 32), torch.randn(1, 6, 32)
    mixer = model.mixers[-1]
    after = mixer.feed_back(outer, inner)
    changed = (after != outer).any(-1)[0].nonzero()[:, 0]
    assert changed.tolist() == sorted(model.alignment.box.tolist())


@pytest.mark.parametrize("coupling", ["two_way", "one_way"])
def test_the_heads_see_the_fields_of_the_driver_at_both_times(coupling):
    """Beside what they hear from tokens; without the fields the network is what it was."""
    model = stir(build(coupling=coupling, driver_width=3))
    plain = build(coupling=coupling)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "driver" not in name})
    now, ahead = torch.randn(2, 1, TINY.outer.channels, *TINY.outer.shape)
    tokens = torch.randn(1, 6, 32), torch.randn(1, 128, 32)
    heard = model._informed(*tokens, now, ahead)
    for other in (model._informed(*tokens, 2 * now, ahead), model._informed(*tokens, now, 2 * ahead)):
        assert (other[..., :32] != heard[..., :32]).any(-1).all() and torch.equal(other[..., 32:], heard[..., 32:])
    for parameter in model.driver_tokens.embedding.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs()).inner, plain(**inputs()).inner)


def test_one_way_the_driver_does_not_hear_the_region():
    model = stir(build(coupling="one_way"))
    assert reach(model, "inner")[0].max() == 0
    assert reach(model, "outer")[1] > 1e-4


def test_uncoupled_nobody_hears_anybody():
    model = build(coupling="none")
    assert reach(model, "inner")[0].max() == 0
    assert reach(model, "outer")[1] == 0
    assert model(**inputs()).keys == ()


@pytest.mark.parametrize("mode", ["adaptive", "random", "fixed"])
def test_ablations_share_the_code_path(mode):
    model, x = build(sampler=SamplerConfig(keys=8, mode=mode)), inputs()
    first, second = model(**x), model(**x)
    assert first.keys[0].chosen.shape == (2, 8)
    assert len(set(first.keys[0].chosen[0].tolist())) == 8
    assert torch.equal(first.inner, second.inner)  # also random keys repeat themselves at inference


def test_random_keys_are_drawn_anew_in_training():
    sampler = KeyPositionSampler(replace(TINY, sampler=SamplerConfig(keys=8, mode="random"))).train()
    tokens = torch.randn(1, 128, 32)
    assert not torch.equal(sampler(tokens).chosen, sampler(tokens).chosen)


def test_halo_keeps_keys_near_the_box():
    sampler = KeyPositionSampler(replace(TINY, sampler=SamplerConfig(keys=8, halo=1)))
    allowed = sampler.allowed.view(8, 16)
    assert allowed.sum() == 4 * 5  # 2 x 3 patches and one around
    assert sampler.allowed[sampler(torch.randn(1, 128, 32)).chosen].all()


@pytest.mark.parametrize("west", [67.5, 337.5, -22.5, 157.5])
def test_keys_that_move_stay_in_the_halo(west):
    """Wherever the seams of the longitudes are: at most one global patch (22.5 degrees) from the centers of the box's patches."""
    inner = replace(TINY.inner, longitude=tuple(west + 1.125 * (i + 0.5) for i in range(60)))
    model = build(inner=inner, sampler=SamplerConfig(keys=8, halo=1, shift=5.0))
    for mixer in stir(model).mixers:
        mixer.move.weight.data.mul_(100.0)
    lat, lon = inner.tokens.axes
    for key in model(**inputs(replace(TINY, inner=inner))).keys:
        assert (key.positions[..., 0] <= lat[0] + 22.5 + 1e-4).all() and (key.positions[..., 0] >= lat[-1] - 22.5 - 1e-4).all()
        east = (key.positions[..., 1] - (lon[0] - 22.5) + 1e-3) % 360
        assert (east <= lon[-1] - lon[0] + 45.0 + 2e-3).all()
        start = model.mixers[0].sampler.centers[key.chosen]
        assert (key.positions - start)[..., 0].abs().max() > 10.0  # they did move


def test_halo_of_a_regional_driver_ends_at_its_edge():
    outer = replace(
        TINY.outer,
        latitude=tuple(70 - 2.0 * i for i in range(36)),
        longitude=tuple(40 + 2.0 * i for i in range(60)),
        periodic=False,
    )
    mixer = build(outer=outer, sampler=SamplerConfig(keys=8, halo=2)).mixers[0]
    allowed = mixer.sampler.centers[mixer.sampler.allowed]
    moved = mixer._inside_domain(torch.tensor([[[90.0, 500.0], [-90.0, -500.0]]]))[0]
    torch.testing.assert_close(moved, torch.stack([allowed.amax(0), allowed.amin(0)]))


def test_regional_driver_works_and_does_not_wrap():
    outer = replace(
        TINY.outer,
        latitude=tuple(70 - 2.0 * i for i in range(36)),
        longitude=tuple(40 + 2.0 * i for i in range(60)),
        periodic=False,
    )
    config = replace(TINY, outer=outer)
    model = CoupledModel(config).eval()
    assert not model.alignment.nested
    west, east = outer.longitude[0], outer.longitude[-1]
    lon = model.mixers[0]._inside_domain(torch.tensor([[[30.0, 500.0], [30.0, -500.0]]]))[..., 1]
    assert (lon >= west).all() and (lon <= east).all()
    assert model(**inputs(config)).inner.isfinite().all()


def test_region_outside_the_driver_is_refused():
    outer = replace(TINY.outer, latitude=tuple(-2.0 - 2.0 * i for i in range(36)), periodic=False)
    with pytest.raises(ValueError, match="region lies partly outside"):
        CoupledModel(replace(TINY, outer=outer))


# --- regional heads


def test_sunlit_channel_is_zero_where_there_is_no_insolation():
    model, x = build(sunlit_channel=6), inputs()
    x["inner_forcing"] = x["inner_forcing"].abs()
    x["inner_forcing"][:, 6:, :, 30:] = 0.0
    sunlit = model(**x).inner[:, :, 6]
    assert (sunlit[..., 30:] == 0).all() and (sunlit[..., :30] != 0).any()


def test_residual_output_starts_near_persistence():
    model, x = build(), inputs()
    step = model(**x)
    assert (step.inner - x["inner"][:, -1:]).abs().mean() < 0.2
    assert (step.outer - x["outer"]).abs().mean() < 0.2


def test_any_box_comes_back_in_its_own_shape():
    inner = replace(TINY.inner, latitude=TINY.inner.latitude[:37], longitude=TINY.inner.longitude[:53], offset=(3, 2))
    config = replace(TINY, inner=inner)
    step = CoupledModel(config).eval()(**inputs(config))
    assert step.inner.shape == (2, 6, 7, 37, 53)


def test_fourier_positions_depend_on_place_only():
    """Token (i, j) of a box that begins one patch further south and east gets what token (i + 1, j + 1) gets here."""
    position = build(positions="fourier").outer.position
    grid = TINY.outer.tokens
    part = TokenGrid(grid.latitude[4:], grid.longitude[4:], patch=4)
    moved = Position(part, TINY.width, "fourier")
    moved.load_state_dict(position.state_dict())
    here = position(torch.zeros(1, len(grid), TINY.width)).unflatten(1, grid.shape)[:, 1:, 1:].flatten(1, 2)
    torch.testing.assert_close(moved(torch.zeros(1, len(part), TINY.width)), here)
    assert here.std(1).max() > 1e-3  # and other places get something else


def test_encoders_of_the_variables_see_their_own_only():
    model, hours = build(variable_width=5).inner, inputs()["inner"][:, 0]
    changed = model.embedding(hours) - model.embedding(hours.index_fill(1, torch.tensor([2]), 0.0))
    moved = changed.unflatten(2, (7, 5)).abs().amax((0, 1, 3)) > 0
    assert model.embedding(hours).shape == (2, 6, 35) and moved.tolist() == [False, False, True, *[False] * 4]


def test_every_encoder_learns_and_every_variable_matters():
    model, given = build(variable_width=5), inputs()
    given["inner"].requires_grad_()
    model(**given).inner.square().sum().backward()
    assert given["inner"].grad.abs().amax((0, 1, 3, 4)).min() > 0
    for part in (model.inner.embedding.project, model.inner.embedding.narrow):
        assert part.weight.grad.unflatten(0, (7, -1)).abs().amax((1, 2, 3, 4)).min() > 0


def test_encoders_of_the_variables_are_no_sum():
    """A shared embedding adds up what it sees of each variable; encoders with an activation do not."""
    hours = inputs()["inner"][:, 0]
    for width, linear in ((0, True), (5, False)):
        embedding = build(variable_width=width).inner.embedding
        a, b, none = (embedding(x) for x in (hours, 2.0 * hours, 0.0 * hours))
        assert torch.allclose(b - a, a - none, atol=1e-5) is linear


@pytest.mark.parametrize("size", ["small", "fine", "base", "paper"])
def test_encoders_of_the_variables_keep_the_size(size):
    with torch.device("meta"):
        plain = getattr(ScaleMixerConfig, size)()
        shared, own = (count(CoupledModel(c)) for c in (plain, replace(plain, variable_width=plain.width // 7)))
    assert own == pytest.approx(shared, rel=0.01)


def test_models_of_before_have_one_embedding():
    data = TINY.to_dict()
    del data["variable_width"]
    assert ScaleMixerConfig.from_dict(data) == TINY and set(build().state_dict()) == set(CoupledModel(TINY).state_dict())


def test_global_loss_is_the_weighted_mean():
    prediction, target = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]]]), torch.zeros(1, 2, 1, 2)
    value = GlobalModel.loss(prediction, target, torch.tensor([0.75, 0.25]), torch.tensor([1.0]))
    assert value.item() == pytest.approx(0.75 * 2.0)


def test_random_seed_gives_the_same_model():
    assert torch.equal(build(seed=3)(**inputs()).inner, build(seed=3)(**inputs()).inner)


def test_attention_for_gradients_equals_the_fused_one():
    torch.manual_seed(0)
    attention, queries, context = Attention(16, 2, extra=2), torch.randn(2, 5, 18), torch.randn(2, 7, 16)
    with torch.no_grad():
        fused = attention(queries, context)
    torch.testing.assert_close(attention(queries, context), fused)


def test_changes_reach_into_the_parts_of_a_preset():
    settings = ScaleMixerConfig.tiny(inner={"depth": 4}, sampler={"keys": 3, "mode": "fixed"}, coupling="one_way")
    tiny = ScaleMixerConfig.tiny()
    assert settings == replace(
        tiny, inner=replace(tiny.inner, depth=4), sampler=replace(tiny.sampler, keys=3, mode="fixed"), coupling="one_way"
    )
    with pytest.raises(TypeError, match="widht"):
        ScaleMixerConfig.tiny(sampler={"widht": 3})
