"""Met2Net: published sizes, what each stage trains, moving averages in closed form, the two-copy form of the paper."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import mse_loss

from xscalemixer.moving_shapes import MovingShapes
from xscalemixer.nn.met2net import (
    Met2Net,
    Met2NetConfig,
    Met2NetObjective,
    ObjectiveConfig,
    TemporalAttentionUnit,
    TranslatorConfig,
    VariableAttention,
)

SMALL = TranslatorConfig(width=16, depth=1, heads=2, drop_path=0.0)
TINY = Met2NetConfig.tiny(past=2, future=2, translator=SMALL)


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return Met2Net(replace(TINY, **changes)).eval()


def objective_of(way="implicit", seed=0, momentum=0.9, encoder_momentum=0.0, forecast_weight=0.0, **changes):
    settings = ObjectiveConfig(way=way, momentum=momentum, encoder_momentum=encoder_momentum, forecast_weight=forecast_weight)
    return Met2NetObjective(build(seed, objective=settings, **changes)).train()


def batch_of(seed=0, frames=(2, 2), channels=3, size=(8, 8), dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    past, future = (torch.randn(2, n, channels, *size, generator=random, dtype=dtype) for n in frames)
    return {"past": past, "future": future}


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def count(module):
    return sum(p.numel() for p in module.parameters())


# --- sizes


@pytest.mark.parametrize("preset, millions", [("weatherbench", 8.70), ("era5_cropped", 8.90), ("mvmm_fnist", 34.4)])
def test_presets_have_the_published_number_of_parameters(preset, millions):
    config = getattr(Met2NetConfig, preset)()
    with torch.device("meta"):
        found = count(Met2Net(config))
    assert found / 1e6 == pytest.approx(millions, rel=0.01)
    # what is missing is a squeeze and excitation (reduction 16) that the published blocks hold and never use
    never_used = config.translator.depth * 2 * config.translator.width**2 // 16
    assert (found + never_used) / 1e6 == pytest.approx(millions, rel=5e-4)


def test_encoder_and_decoder_have_the_published_sizes():
    with torch.device("meta"):
        network = Met2Net(Met2NetConfig.weatherbench())
    assert round(count(network.encoders.networks[0]), -2) == 9_700
    assert round(count(network.decoders.networks[0]), -2) == 46_400


def test_implicit_training_adds_one_translator_that_is_not_trained():
    objective = objective_of()
    assert count(objective) == count(objective.network) + count(objective.network.translator)
    assert sum(p.numel() for p in objective.trainable("implicit")) == count(objective.network)


# --- configuration


def test_config_round_trip():
    config = replace(TINY, groups=((0,), (1, 2)), objective=ObjectiveConfig(way="joint"))
    assert Met2NetConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("part", [None, "translator", "objective"])
def test_config_rejects_unknown_keys(part):
    data = TINY.to_dict()
    (data[part] if part else data)["beats"] = 1
    with pytest.raises(TypeError, match="beats"):
        Met2NetConfig.from_dict(data)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda: replace(TINY, width=7), "width=7 is odd"),
        (lambda: replace(TINY, future=0), "future=0; needed at least 1"),
        (lambda: replace(TINY, groups=((0, 1), (1, 2))), "each of the channels 0 to 2 exactly once"),
        (lambda: replace(TINY, groups=((0, 1), (2,), ())), "each of the channels 0 to 2 exactly once"),
        (lambda: replace(SMALL, heads=3), "width 16 is not a multiple of heads=3"),
        (lambda: replace(SMALL, depth=0), "depth=0; needed at least 1"),
        (lambda: ObjectiveConfig(way="both"), "way='both'; choose one of"),
        (lambda: ObjectiveConfig(momentum=1.5), "momentum=1.5; needed 0 to 1"),
        (lambda: ObjectiveConfig(forecast_weight=-1.0), "forecast_weight=-1.0; needed 0 or more"),
    ],
)
def test_bad_settings_say_what_was_needed(change, message):
    with pytest.raises(ValueError, match=message):
        change()


# --- shapes and grids


@pytest.mark.parametrize("units", [1, 2, 4])
@pytest.mark.parametrize("size", [(8, 12), (7, 9), (1, 5)])
def test_any_grid_and_any_number_of_frames_out(size, units):
    network = build(past=3, future=5, units=units)
    assert network(torch.randn(2, 3, 3, *size)).shape == (2, 5, 3, *size)


@pytest.mark.parametrize("channels", [1, 2, 9])
def test_any_number_of_variables(channels):
    assert build(channels=channels)(torch.randn(1, 2, channels, 4, 4)).shape == (1, 2, channels, 4, 4)


def test_an_odd_grid_is_padded_with_its_edges_and_cropped():
    network, past = build(), batch_of(size=(7, 9))["past"]
    padded = torch.cat([past, past[..., -1:]], -1)
    padded = torch.cat([padded, padded[..., -1:, :]], -2)
    torch.testing.assert_close(network(past), network(padded)[..., :7, :9])


@pytest.mark.parametrize("periodic", [True, False])
def test_turning_the_globe_turns_the_forecast(periodic):
    network, past = build(periodic=periodic), batch_of(size=(6, 12))["past"]
    turned = network(past.roll(4, -1)).roll(-4, -1)
    assert torch.allclose(turned, network(past), atol=1e-5) is periodic


@pytest.mark.parametrize(
    "shape, message", [((2, 3, 3, 8, 8), "past has shape"), ((2, 2, 4, 8, 8), "past has shape"), ((2, 3, 8, 8), "past has shape")]
)
def test_a_wrong_history_or_variable_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        build()(torch.zeros(shape))


def test_a_future_on_another_grid_or_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"future has shape \(2, 3, 3, 8, 8\), needed \(2, 2, 3, 8, 8\)"):
        objective_of().loss(batch_of(frames=(2, 3)), "implicit")


# --- variables


def test_each_channel_as_its_own_group_is_the_default():
    past = batch_of()["past"]
    torch.testing.assert_close(build()(past), build(groups=((0,), (1,), (2,)))(past), rtol=0, atol=0)


def test_grouped_channels_come_back_in_their_places():
    network = build(groups=((2, 0), (1,)))
    with torch.no_grad():
        for decoder, values in zip(network.decoders.networks, ([2.0, 0.0], [1.0]), strict=True):
            decoder[-1].weight.zero_()
            decoder[-1].bias.copy_(torch.tensor(values))
    assert network(batch_of()["past"]).mean((0, 1, 3, 4)).tolist() == [0.0, 1.0, 2.0]


def test_order_of_variables_does_not_matter():
    network, past, order = build(), batch_of()["past"], [2, 0, 1]
    other = copy.deepcopy(network)
    for part in ("encoders", "decoders"):
        networks = getattr(network, part).networks
        getattr(other, part).networks = torch.nn.ModuleList(copy.deepcopy(networks[i]) for i in order)
    torch.testing.assert_close(other(past[:, :, order]), network(past)[:, :, order])


@pytest.mark.parametrize("listens", [True, False])
def test_variables_hear_of_each_other_through_the_attention_alone(listens):
    network, past = build(), batch_of()["past"]
    if not listens:  # the attention ends in SiLU(weight * x + bias) = 0
        norm = network.translator.blocks[0].attention.out[1]
        torch.nn.init.zeros_(norm.weight)
    other = past.clone()
    other[:, :, 2] += 1.0 + torch.randn(8, 8)
    change = (network(other) - network(past)).abs().amax((0, 1, 3, 4))
    assert change[2] > 1e-4
    assert (change[:2] > 1e-6).all() if listens else (change[:2] == 0).all()


def test_attention_tells_which_variable_listens_to_which():
    network = build(channels=5, groups=((0,), (1, 2), (3, 4)), translator=replace(SMALL, depth=2))
    weights = network.attention(batch_of(channels=5)["past"])
    assert weights.shape == (2, 2, 2, 3, 3)  # batch, blocks, heads, listener, heard
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 2, 3))
    assert weights.std() > 0


def test_equal_variables_are_heard_equally():
    u = torch.randn(2, 1, 16, 3, 5).expand(2, 4, 16, 3, 5)
    weights = VariableAttention(16, heads=2).weights(u)
    torch.testing.assert_close(weights, torch.full((2, 2, 4, 4), 0.25))


def test_attention_weights_are_those_of_the_forward_pass():
    torch.manual_seed(0)
    attention, u = VariableAttention(8, heads=2), torch.randn(2, 3, 8, 4, 4)
    values = attention.project(u.flatten(0, 1)).unflatten(0, (2, 3))[:, :, 16:].unflatten(2, (2, 4))  # (B, G, heads, d, h, w)
    mixed = torch.einsum("bnij,bjnchw->binchw", attention.weights(u), values).flatten(2, 3)
    torch.testing.assert_close(attention(u), attention.out(mixed.flatten(0, 1)).unflatten(0, (2, 3)))


def test_attention_grows_sharper_with_the_root_of_the_area():
    torch.manual_seed(0)
    attention, u = VariableAttention(16, heads=2), torch.randn(1, 3, 16, 4, 4)
    small, large = (attention.weights(x).log() for x in (u, u.repeat(1, 1, 1, 2, 2)))
    contrast = lambda log_weights: log_weights - log_weights.mean(-1, keepdim=True)
    torch.testing.assert_close(contrast(large), 2.0 * contrast(small), rtol=1e-4, atol=1e-4)


# --- blocks


def test_temporal_attention_unit_without_layer_scale_is_the_identity():
    unit, x = TemporalAttentionUnit(8, drop_path=0.0, periodic=False, scale=0.0), torch.randn(2, 8, 5, 5)
    assert torch.equal(unit(x), x)


def test_both_halves_of_the_temporal_attention_unit_have_their_skips():
    unit, x = TemporalAttentionUnit(8, drop_path=0.0, periodic=False, scale=0.5), torch.randn(2, 8, 5, 5)
    for layer in (unit.leave, unit.mlp[-1]):
        torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    torch.testing.assert_close(unit(x), x + 0.5 * unit.norm_gate(x))


def test_temporal_attention_unit_sees_23_cells():
    unit, x = TemporalAttentionUnit(4, drop_path=0.0, periodic=False, scale=1.0).eval(), torch.zeros(1, 4, 1, 41)
    unit.mlp[1] = torch.nn.Identity()
    other = x.index_fill(-1, torch.tensor([20]), 1.0)
    changed = (unit(other) - unit(x)).abs().amax((0, 1, 2)).nonzero().squeeze(1)
    assert (int(changed.min()), int(changed.max())) == (20 - 11, 20 + 11)


def test_queries_keys_and_values_are_normalized_apart():
    attention, u = VariableAttention(16, heads=2), torch.randn(1, 3, 16, 4, 4)
    before = attention.weights(u)
    with torch.no_grad():
        attention.project[0].weight[32:].mul_(100.0)  # the values
    torch.testing.assert_close(attention.weights(u), before)


def test_paths_are_dropped_more_often_in_later_blocks():
    blocks = build(translator=replace(SMALL, depth=3, drop_path=0.2)).translator.blocks
    assert [block.unit.drop_path.rate for block in blocks] == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize("double", [True, False])
def test_double_residual(double):
    block = build(translator=replace(SMALL, double_residual=double)).translator.blocks[0]
    u = torch.randn(1, 3, 16, 4, 4)
    first = block.norm_attention((u + block.attention(u)).flatten(0, 1))
    expected = block.norm_unit((2 * first if double else 0) + block.unit(first))
    torch.testing.assert_close(block(u), expected.unflatten(0, (1, 3)))


# --- what each stage trains


@pytest.mark.parametrize(
    "way, stage, parts",
    [
        ("implicit", "implicit", ("encoders", "decoders", "translator")),
        ("joint", "joint", ("encoders", "decoders", "translator")),
        ("explicit", "autoencoder", ("encoders", "decoders")),
        ("explicit", "translator", ("translator",)),
    ],
)
def test_gradients_reach_exactly_what_a_stage_trains(way, stage, parts):
    objective = objective_of(way)
    objective.loss(batch_of(), stage)[0].backward()
    reached = {name for name, p in objective.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {name for name, _ in objective.named_parameters() if name.startswith(tuple(f"network.{p}" for p in parts))}
    trained = {id(p) for p in objective.trainable(stage)}
    assert reached == {name for name, p in objective.named_parameters() if id(p) in trained}


@pytest.mark.parametrize(("encoder_momentum", "weight"), [(0.0, 0.0), (0.5, 0.0), (0.0, 1.0)])
def test_each_part_of_the_implicit_loss_trains_its_own_stage(encoder_momentum, weight):
    objective, batch = objective_of(encoder_momentum=encoder_momentum, forecast_weight=weight), batch_of()
    net, latent = objective.network, objective.network.encode(batch["past"])
    outside = [*net.encoders.parameters(), *net.decoders.parameters()]
    stage_1 = objective.reconstruction_loss(latent, batch["future"])
    stage_2 = sum(objective.second_stage(batch["past"], latent, batch["future"]).values())
    gradients = torch.autograd.grad(stage_1, [*outside, *net.translator.parameters()], retain_graph=True, allow_unused=True)
    assert all(g is not None for g in gradients[: len(outside)]) and set(gradients[len(outside) :]) == {None}
    gradients = torch.autograd.grad(stage_2, [*net.translator.parameters(), *outside], allow_unused=True)
    assert all(g is not None for g in gradients[: -len(outside)]) and set(gradients[-len(outside) :]) == {None}


def test_loss_is_the_sum_of_its_parts():
    total, parts = objective_of().loss(batch_of(), "implicit")
    assert set(parts) == {"reconstruction", "latent"}
    torch.testing.assert_close(total.detach(), sum(parts.values()))
    assert not any(part.requires_grad for part in parts.values())


def test_the_third_term_is_the_weighted_error_of_the_forecast():
    objective, batch = objective_of(forecast_weight=0.5), batch_of()
    parts = objective.loss(batch, "implicit")[1]
    forecast = objective.network(batch["past"])
    torch.testing.assert_close(parts["forecast"], 0.5 * (forecast - batch["future"]).square().mean().detach())


def test_autoencoders_learn_past_and_future_frames_alike():
    objective, batch = objective_of("explicit"), batch_of()
    swapped = {"past": batch["future"], "future": batch["past"]}
    losses = [objective.loss(b, "autoencoder")[0] for b in (batch, swapped, {**batch, "future": batch["past"]})]
    torch.testing.assert_close(losses[0], losses[1])
    assert losses[0] != losses[2]


def test_a_stage_of_another_way_is_refused():
    with pytest.raises(ValueError, match=r"stage='joint'; training the explicit way has \('autoencoder', 'translator'\)"):
        objective_of("explicit").loss(batch_of(), "joint")
    with pytest.raises(ValueError, match="training the joint way has no reconstruction through a frozen translator"):
        objective_of("joint").reconstruction_loss(*batch_of().values())
    with pytest.raises(ValueError, match="stage='translator'; training the implicit way"):
        objective_of().trainable("translator")


# --- moving averages


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 1.0])
def test_frozen_translator_is_the_moving_average_in_closed_form(momentum):
    objective = objective_of(momentum=momentum)
    weight = objective.network.translator.enter.weight
    history = [weight.detach().clone()]
    for i in range(1, 6):
        torch.nn.init.constant_(weight, float(i))
        history.append(weight.detach().clone())
        objective.after_step()
    n = len(history) - 1
    expected = momentum**n * history[0] + (1 - momentum) * sum(momentum ** (n - i) * history[i] for i in range(1, n + 1))
    torch.testing.assert_close(objective.frozen_translator.enter.weight.data, expected)


def test_after_step_averages_running_statistics_too():
    objective = objective_of(momentum=0.75)
    objective.loss(batch_of(), "implicit")
    objective.after_step()
    trained, frozen = (part.blocks[0].unit.norm_mlp for part in (objective.network.translator, objective.frozen_translator))
    assert trained.running_var.std() > 0
    torch.testing.assert_close(frozen.running_var, 0.75 + 0.25 * trained.running_var)  # it began as 1


@pytest.mark.parametrize("way", ["implicit", "joint", "explicit"])
def test_evaluation_leaves_every_weight_untouched(way):
    objective = objective_of(way, encoder_momentum=0.5).eval()
    before = weights_of(objective)
    with torch.no_grad():
        objective.network(batch_of()["past"])
        for stage in objective.stages:
            objective.loss(batch_of(), stage)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_only_after_step_moves_the_frozen_translator():
    objective = objective_of()
    optimizer = torch.optim.SGD(objective.trainable("implicit"), 0.1)
    before = weights_of(objective.frozen_translator)
    objective.loss(batch_of(), "implicit")[0].backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in objective.frozen_translator.state_dict().items())
    objective.after_step()
    assert not torch.equal(objective.frozen_translator.enter.weight, before["enter.weight"])


def test_slow_encoders_lag_behind():
    objective = objective_of(encoder_momentum=0.5)
    before = weights_of(objective.slow_encoders)
    torch.nn.init.ones_(objective.network.encoders.networks[0][0][0].weight)
    objective.after_step()
    name = "networks.0.0.0.weight"
    torch.testing.assert_close(objective.slow_encoders.state_dict()[name], 0.5 * before[name] + 0.5)


class TwoCopies:
    """The published form: two copies of every part; the frozen one is synchronized or averaged."""

    def __init__(self, network, momentum, encoder_momentum):
        self.trained, self.frozen = copy.deepcopy(network).train(), copy.deepcopy(network).eval().requires_grad_(False)
        self.momentum, self.encoder_momentum = momentum, encoder_momentum
        self.optimizer = torch.optim.Adam(self.trained.parameters(), 1e-2)

    def update(self, past, future):
        q, k = self.trained, self.frozen
        reconstruction = mse_loss(q.decoders(k.translator(q.encoders(past)), past.shape[-2:]), future)
        self.average(k.encoders, q.encoders, self.encoder_momentum)
        self.average(k.decoders, q.decoders, self.encoder_momentum)
        latent = mse_loss(q.translator(k.encoders(past)), k.encoders(future))
        self.optimizer.zero_grad()
        (reconstruction + latent).backward()
        self.optimizer.step()
        self.average(k.translator, q.translator, self.momentum)
        return reconstruction.item(), latent.item()

    @staticmethod
    def average(old, new, momentum):
        for kind in ("parameters", "buffers"):
            for a, b in zip(getattr(old, kind)(), getattr(new, kind)(), strict=True):
                a.data = (momentum * a + (1 - momentum) * b).detach() if a.is_floating_point() else b.clone()


@pytest.mark.parametrize("momentum, encoder_momentum", [(0.9, 0.0), (0.0, 0.0), (0.9, 0.8)])
def test_one_copy_trains_as_the_two_copies_of_the_paper_step_by_step(momentum, encoder_momentum):
    translator = replace(SMALL, depth=2, drop_path=0.3)
    objective = objective_of(momentum=momentum, encoder_momentum=encoder_momentum, translator=translator).double()
    paper = TwoCopies(objective.network, momentum, encoder_momentum)
    optimizer = torch.optim.Adam(objective.trainable("implicit"), 1e-2)
    for step in range(4):
        batch = batch_of(seed=step, dtype=torch.float64)
        torch.manual_seed(step)  # both drop the same paths
        total, parts = objective.loss(batch, "implicit")
        optimizer.zero_grad(), total.backward(), optimizer.step(), objective.after_step()
        torch.manual_seed(step)
        assert [float(part) for part in parts.values()] == pytest.approx(paper.update(**batch), rel=1e-12)
        for ours, theirs in ((objective.network, paper.trained), (objective.frozen_translator, paper.frozen.translator)):
            torch.testing.assert_close(weights_of(ours), weights_of(theirs), rtol=1e-9, atol=1e-9)


# --- learning


def shapes_batch():
    frames = torch.from_numpy(MovingShapes(seed=3, frames=4, size=16, extent=8).sequences(range(2)))
    frames = (frames - frames.mean((0, 1, 3, 4), keepdim=True)) / frames.std((0, 1, 3, 4), keepdim=True)
    return {"past": frames[:, :2], "future": frames[:, 2:]}


@torch.no_grad()
def forecast_error(network, batch):
    network.eval()
    error = network.loss(network(batch["past"]), batch["future"]).item()
    network.train()
    return error


@pytest.mark.parametrize("way", ["implicit", "joint", "explicit"])
def test_every_way_of_training_learns_one_batch(way):
    objective, batch = objective_of(way, seed=1), shapes_batch()
    start = forecast_error(objective.network, batch)
    for stage in objective.stages:
        optimizer = torch.optim.Adam(objective.trainable(stage), 1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            objective.loss(batch, stage)[0].backward()
            optimizer.step(), objective.after_step()
    assert forecast_error(objective.network, batch) < start / 2


def test_training_in_half_precision_has_nearly_the_same_loss():
    objective, batch = objective_of("joint"), batch_of()
    exact = objective.loss(batch, "joint")[0].item()
    with torch.autocast("cpu", torch.bfloat16):
        assert objective.loss(batch, "joint")[0].item() == pytest.approx(exact, rel=0.02)


def test_a_resumed_training_goes_on_as_if_never_stopped():
    objective, other = objective_of(encoder_momentum=0.5), objective_of(seed=1, encoder_momentum=0.5)
    torch.nn.init.ones_(objective.network.translator.enter.weight)
    objective.after_step()
    other.load_state_dict(objective.state_dict())
    assert other.loss(batch_of(), "implicit")[0] == objective.loss(batch_of(), "implicit")[0]
