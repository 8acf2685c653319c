"""CorrDiff: preconditioning and loss against the formulas, what each input does, samples, sizes."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from xscalemixer.errors import InputError
from xscalemixer.nn.blocks import Normalizer
from xscalemixer.nn.corrdiff import (
    Condition,
    CorrDiff,
    CorrDiffNetworkConfig,
    PositionConfig,
    Regression,
    ResidualDiffusion,
    precondition,
)
from xscalemixer.nn.sampling import SolverConfig, spread_factor
from xscalemixer.nn.tiling import Crops, TilingConfig, random_crops
from xscalemixer.nn.unet import UNetConfig

TINY = CorrDiffNetworkConfig.tiny()
FULL = replace(
    TINY,
    statics=2,
    scalars=2,
    context=True,
    shared=(1, None, 3),
    positions=PositionConfig(kind="learned", shape=(24, 36), spacing=5),
)
FEW = SolverConfig(steps=3)


def condition(config=TINY, batch=2, shape=(24, 36), seed=0):
    random = torch.Generator().manual_seed(seed)
    normal = lambda *size: torch.randn(batch, *size, generator=random)
    return Condition(
        normal(config.coarse + config.statics, *shape),
        normal(config.scalars) if config.scalars else None,
        normal(config.outputs, *shape),
    )


def build(kind, config=TINY, seed=0, *, loud=True):
    """A network in evaluation mode; loud: with weights large enough to carry a signal everywhere."""
    torch.manual_seed(seed)
    net = kind(config).eval()
    for layer in net.modules():
        if loud and isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.xavier_uniform_(layer.weight)
    return net


def residual(config=TINY, batch=2, shape=(24, 36), seed=5):
    return torch.randn(batch, config.outputs, *shape, generator=torch.Generator().manual_seed(seed)) * 0.5


# --- preconditioning, noise levels and loss


@pytest.mark.parametrize("deviation", [0.5, (0.2, 0.5, 1.5)])
def test_preconditioning_of_the_paper(deviation):
    s, d = np.array([0.01, 0.7, 30.0]), np.broadcast_to(deviation, 3)
    found = precondition(torch.from_numpy(s), torch.tensor(d, dtype=torch.float64)[:, None, None])
    s = s[:, None]
    wanted = d**2 / (s**2 + d**2), s * d / np.sqrt(s**2 + d**2), 1 / np.sqrt(s**2 + d**2)
    for one, other in zip(found[:3], wanted, strict=True):
        np.testing.assert_allclose(one[:, :, 0, 0].numpy(), other, rtol=1e-14)
    np.testing.assert_allclose(found[3].numpy(), np.log(s[:, 0]) / 4, rtol=1e-14)


def test_network_sees_and_makes_unit_variance():
    """Of c_in (r + n) and of the network's target (r - c_skip (r + n)) / c_out, for a Gaussian r."""
    sigma, d = torch.tensor([0.05, 0.5, 5.0], dtype=torch.float64), 0.3
    c_skip, c_out, c_in, _ = precondition(sigma, torch.full((1, 1, 1), d, dtype=torch.float64))
    noise = sigma[:, None, None, None] ** 2
    ones = torch.ones(3, 1, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(c_in**2 * (d**2 + noise), ones)
    torch.testing.assert_close(((1 - c_skip) ** 2 * d**2 + c_skip**2 * noise) / c_out**2, ones)


def test_denoiser_is_the_preconditioned_network():
    net, c, r = build(ResidualDiffusion).double(), condition(), residual().double()
    sigma, d = torch.tensor([0.4, 3.0], dtype=torch.float64), 0.5
    s = sigma[:, None, None, None]
    total = torch.sqrt(s**2 + d**2)
    inner = net.unet(torch.cat([r / total, c.mean, c.fields], 1), torch.log(sigma) / 4)
    torch.testing.assert_close(net(r, sigma, c), d**2 / total**2 * r + s * d / total * inner)


def test_loss_of_the_paper():
    net, c, r, d = build(ResidualDiffusion), condition(), residual(), 0.5
    draw = torch.Generator().manual_seed(3)
    sigma = torch.exp(0.0 + 1.2 * torch.randn(2, generator=draw))
    noisy = r + sigma[:, None, None, None] * torch.randn(r.shape, generator=draw)
    weight = (sigma**2 + d**2) / (sigma * d) ** 2
    wanted = (weight[:, None, None, None] * (net(noisy, sigma, c) - r) ** 2).mean()
    torch.testing.assert_close(net.loss(r, c, generators=[torch.Generator().manual_seed(3)]), wanted)


def test_errors_of_a_network_that_knows_nothing_are_one_at_every_level():
    net = build(ResidualDiffusion, loud=False)
    errors, sigma = net.errors(residual(batch=64), condition(batch=64), generators=[torch.Generator().manual_seed(0)])
    assert errors.shape == (64, 3)
    torch.testing.assert_close(errors, torch.ones(64, 3), rtol=0.0, atol=0.25)
    assert sigma.log().mean().item() == pytest.approx(0.0, abs=3 * 1.2 / 8)
    assert sigma.log().std().item() == pytest.approx(1.2, rel=3 / math.sqrt(128))


def test_regression_loss_is_the_mean_square_in_units_of_the_change():
    a, b = residual(), residual(seed=6)
    net = build(Regression)
    torch.testing.assert_close(net.loss(a, b), ((a - b) ** 2).mean((0, 2, 3)))
    net.change_scale.copy_(torch.tensor([1.0, 0.5, 0.01])[:, None, None])
    torch.testing.assert_close(net.loss(a, b), ((a - b) ** 2).mean((0, 2, 3)) * torch.tensor([1.0, 4.0, 1e4]))


def test_what_the_regression_adds_is_in_units_of_the_change():
    net, c = build(Regression, replace(TINY, shared=(2, None, 0))), condition()
    base = c.fields[:, [2, 0]]
    one = net(c).detach()
    net.change_scale.copy_(torch.tensor([0.1, 1.0, 2.0])[:, None, None])
    two = net(c).detach()
    torch.testing.assert_close(two[:, [0, 2]] - base, (one[:, [0, 2]] - base) * torch.tensor([0.1, 2.0])[:, None, None])
    assert torch.equal(two[:, 1], one[:, 1])


@pytest.mark.parametrize("config", [TINY, FULL])
def test_gradients_reach_every_parameter(config):
    net, c = CorrDiff(config), condition(config)
    crops = random_crops(c.fields, (8, 12), 3, [torch.Generator().manual_seed(0)])
    target = crops.cut(residual())
    loss = net.regression.loss(net.regression(c, crops), target).mean() + net.diffusion.loss(residual(), c, crops)
    loss.backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


# --- the mean


def test_regression_starts_at_the_shared_variables():
    """Corrected where they are, and nothing yet where the input has no such variable."""
    net, c = build(Regression, replace(TINY, shared=(2, None, 0)), loud=False), condition()
    mean = net(c).detach()
    torch.testing.assert_close(mean[:, [0, 2]], c.fields[:, [2, 0]], rtol=0.0, atol=1e-3)
    assert mean[:, 1].abs().max() < 1e-3


def test_shared_variables_keep_their_value_between_normalizations():
    net = build(Regression, replace(TINY, shared=(2, None, 0)), loud=False)
    coarse, outputs = Normalizer([280.0, 0.0, 5.0, 1.0], [10.0, 1.0, 2.0, 1.0]), Normalizer([4.0, 0.0, 275.0], [3.0, 1.0, 12.0])
    net.match(coarse, outputs)
    physical = coarse.inverse(condition().fields)
    found = outputs.inverse(net(condition()).detach())
    torch.testing.assert_close(found[:, [0, 2]], physical[:, [2, 0]], rtol=0.0, atol=0.02)
    assert {"shared_scale", "shared_offset"} <= set(net.state_dict())


def test_shared_variables_are_not_rounded_by_autocast():
    net, c = build(Regression, replace(TINY, shared=(2, None, 0)), loud=False), condition()
    with torch.autocast("cpu", torch.bfloat16):
        mean = net(c).detach()
    torch.testing.assert_close(mean[:, [0, 2]], c.fields[:, [2, 0]], rtol=0.0, atol=1e-3)


def test_mean_in_patches_is_close_to_the_whole():
    net, c = build(CorrDiff), condition(shape=(40, 50))
    tiles = TilingConfig(patch=(40, 50), overlap=0, margin=0)
    assert torch.equal(net.mean(c, tiling=tiles)[0], net.mean(Condition(c.fields[:1]))[0])
    patched = net.mean(c, tiling=TilingConfig(patch=(32, 32), overlap=16, margin=4))
    assert (patched - net.mean(c)).square().mean().sqrt() < 0.3 * net.mean(c).std()


# --- what the networks are told


@pytest.mark.parametrize(
    "positions",
    [
        PositionConfig(),
        PositionConfig(kind="sinusoidal", shape=(24, 36), channels=8),
        PositionConfig(kind="learned", shape=(24, 36), channels=5),
        PositionConfig(kind="learned", shape=(24, 36), channels=5, spacing=7),
    ],
)
def test_positions_of_a_patch_are_those_of_the_domain(positions):
    net = build(Regression, replace(TINY, positions=positions))
    like = torch.empty(1, 1, 24, 36)
    crops = Crops((0, 0), ((3, 5), (14, 20)), (10, 16))
    whole = net.positions(Crops.whole(like), (24, 36), like)
    assert whole.shape == (1, 0 if positions.kind == "none" else positions.channels, 24, 36)
    torch.testing.assert_close(net.positions(crops, (24, 36), like), crops.cut(whole), rtol=1e-4, atol=1e-5)


def test_sinusoidal_positions_tell_all_cells_apart():
    net = build(Regression, replace(TINY, positions=PositionConfig(kind="sinusoidal", shape=(24, 36))))
    like = torch.empty(1, 1, 24, 36)
    cells = net.positions(Crops.whole(like), (24, 36), like).flatten(2)[0].T
    assert torch.pdist(cells).min() > 1e-3


def test_learned_positions_are_the_table():
    net = build(Regression, replace(TINY, positions=PositionConfig(kind="learned", shape=(24, 36), channels=2)))
    like = torch.empty(1, 1, 24, 36)
    torch.testing.assert_close(net.positions(Crops.whole(like), (24, 36), like)[0], net.positions.table, rtol=0.0, atol=1e-5)


def test_another_domain_is_refused_by_positions():
    with pytest.raises(InputError, match=r"they are \(20, 20\), its learned positions belong to \(24, 36\)"):
        build(Regression, FULL)(condition(FULL, shape=(20, 20)))


def test_patches_hear_from_far_away_only_through_the_context():
    crops = Crops((0,), ((0, 0),), (8, 8))
    near, far = condition(batch=1), condition(batch=1)
    far.fields[..., 20:] += 1.0
    for context, changes in ((True, True), (False, False)):
        net = build(Regression, replace(TINY, context=context))
        assert torch.equal(net(near, crops), net(far, crops)) is not changes


def test_context_is_the_mean_of_the_domain_at_the_size_of_a_patch():
    c = condition(shape=(24, 36))
    c.fields[:] = torch.arange(24.0)[:, None]
    found = build(Regression, replace(TINY, context=True)).surveyed(c, (4, 6)).context
    torch.testing.assert_close(found[0, 0, 1:3, 0], torch.tensor([8.5, 14.5]))


def test_diffusion_hears_the_mean_only_if_asked():
    c = condition()
    other = c._replace(mean=c.mean + 1.0)
    for asked in (True, False):
        net = build(ResidualDiffusion, replace(TINY, mean_conditioning=asked))
        assert torch.equal(net(residual(), torch.ones(2), c), net(residual(), torch.ones(2), other)) is not asked


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"fields": torch.zeros(2, 5, 24, 36)}, r"coarse and static fields has shape \(2, 5, 24, 36\), needed \(None, 6,"),
        ({"scalars": None}, r"scalars is missing, needed a tensor of shape \(2, 2\)"),
        ({"context": torch.zeros(2, 4, 5, 5)}, r"context has shape \(2, 4, 5, 5\), needed \(2, 4, 24, 36\)"),
        ({"mean": None}, r"mean is missing, needed a tensor of shape \(2, 3, 24, 36\)"),
    ],
)
def test_wrong_conditions_say_what_was_needed(bad, message):
    with pytest.raises(ValueError, match=message):
        build(ResidualDiffusion, FULL)(residual(), torch.ones(2), condition(FULL)._replace(**bad))


# --- samples


def test_gaussian_residual_is_sampled_with_the_deviation_of_each_channel():
    """An untrained network is the ideal denoiser of independent Gaussian cells."""
    deviation = (0.2, 0.5, 1.5)
    net = build(ResidualDiffusion, replace(TINY, sigma_data=deviation), loud=False)
    solver = SolverConfig(steps=12)
    found = net.sample(condition(batch=1, shape=(64, 96)), [0], solver=solver).std((0, 2, 3))
    wanted = torch.tensor([d * spread_factor(solver, d) for d in deviation])
    torch.testing.assert_close(found, wanted, rtol=0.03, atol=0.0)


@pytest.mark.parametrize("tiling", [None, TilingConfig(patch=(16, 16), overlap=6, margin=2)])
def test_a_member_alone_equals_the_member_among_many(tiling):
    net, c = build(CorrDiff, FULL), condition(FULL, batch=1)
    many = net.sample(c, [4, 8, 15], solver=FEW, tiling=tiling)
    assert torch.equal(many[1:2], net.sample(c, [8], solver=FEW, tiling=tiling))
    assert (many[0] - many[1]).abs().mean() > 0.01


def test_several_at_once_differ_by_rounding_only():
    net, c = build(CorrDiff, FULL), condition(FULL, batch=1)
    one, three = (net.sample(c, [4, 8, 15], solver=FEW, tiling=TilingConfig(at_once=n)) for n in (1, 3))
    assert (one - three).abs().max() < 1e-4 * one.abs().max()


def test_one_seed_per_input():
    net, c = build(CorrDiff, FULL), condition(FULL)
    both = net.sample(c, [4, 8], solver=FEW)
    second = Condition(*(part if part is None else part[1:] for part in c))
    assert torch.equal(both[1:], net.sample(second, [8], solver=FEW))


def test_sample_is_mean_plus_residual():
    net, c = build(CorrDiff), condition(batch=1)._replace(mean=None)
    mean = net.mean(c)
    wanted = mean + net.diffusion.sample(c._replace(mean=mean), [1], solver=FEW)
    assert torch.equal(net.sample(c, [1], solver=FEW), wanted)


def test_one_patch_of_the_size_of_the_domain_changes_nothing():
    net, c = build(CorrDiff, FULL), condition(FULL, batch=1)
    tiling = TilingConfig(patch=(24, 36), overlap=8, margin=2)
    assert torch.equal(net.sample(c, [1], solver=FEW, tiling=tiling), net.sample(c, [1], solver=FEW))


@pytest.mark.parametrize("shape", [(23, 37), (5, 50)])
def test_any_domain_can_be_sampled(shape):
    net, c = build(CorrDiff), condition(batch=1, shape=shape)
    for tiling in (None, TilingConfig(patch=(16, 16), overlap=6, margin=2)):
        assert net.sample(c, [1, 2], solver=SolverConfig(method="euler", steps=2), tiling=tiling).isfinite().all()


def test_double_precision_stays_outside_of_the_network():
    net, c = build(CorrDiff, FULL), condition(FULL, batch=1)
    double = Condition(*(part if part is None else part.double() for part in c))
    found = net.sample(double, [1], solver=FEW)
    assert found.dtype == torch.float64
    assert next(net.parameters()).dtype == torch.float32


def test_memory_of_a_call_does_not_grow_with_the_domain():
    net, cells = build(ResidualDiffusion), []
    net.unet.register_forward_pre_hook(lambda _, args: cells.append(args[0].shape[0] * math.prod(args[0].shape[2:])))
    tiling = TilingConfig(patch=(16, 16), overlap=4, margin=1, at_once=2)
    for shape in ((16, 20), (40, 60)):
        net.sample(condition(batch=1, shape=shape), [1], solver=SolverConfig(steps=2), tiling=tiling)
    assert max(cells) == 2 * 16 * 16


def test_seeds_and_inputs_must_fit():
    with pytest.raises(InputError, match="3 seeds for 2 inputs; give one seed per input or one input"):
        build(CorrDiff).sample(condition(), [1, 2, 3])
    with pytest.raises(InputError, match="0 seeds for 1 inputs"):
        build(CorrDiff).sample(condition(batch=1), [])


def test_no_samples_in_training_mode():
    with pytest.raises(InputError, match="training mode, where dropout adds noise; call .eval"):
        build(CorrDiff).train().sample(condition(), [1, 2])


# --- settings


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (CorrDiffNetworkConfig.tiny(), 0.177),
        (CorrDiffNetworkConfig.small(), 1.76),
        (CorrDiffNetworkConfig.paper(), 80.0),
        (CorrDiffNetworkConfig.china(), 470.6),
    ],
)
def test_sizes(config, millions):
    with torch.device("meta"):
        net = CorrDiff(config)
    assert sum(p.numel() for p in net.diffusion.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("config", [FULL, CorrDiffNetworkConfig.china(), replace(TINY, sigma_data=(0.1, 0.2, 0.3))])
def test_config_round_trip(config):
    assert CorrDiffNetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_weights_round_trip():
    a, b = build(CorrDiff, FULL, seed=0), build(CorrDiff, FULL, seed=1)
    b.load_state_dict(a.state_dict())
    c = condition(FULL)
    assert torch.equal(a.sample(c, [1, 2], solver=FEW), b.sample(c, [1, 2], solver=FEW))


def test_bad_settings_are_all_named():
    with pytest.raises(InputError) as error:
        CorrDiffNetworkConfig(coarse=0, outputs=2, statics=-1, shared=(0, 5, None), sigma_data=(0.5, -1.0, 1.0), noise=(0.0, 0.0))
    assert len(error.value.problems) == 7
    assert "shared has 3 entries for outputs=2; needed one per target channel" in str(error.value)
    assert "sigma_data has 3 values for outputs=2" in str(error.value)


def test_bad_positions_are_all_named():
    with pytest.raises(InputError, match="3 problems") as error:
        PositionConfig(kind="sinusoidal", channels=6, spacing=0)
    assert "shape=None; 'sinusoidal' needs the (rows, columns) of the domain" in str(error.value)


def test_unknown_keys_are_refused():
    with pytest.raises(InputError, match="unknown key 'colour'"):
        CorrDiffNetworkConfig.from_dict({**TINY.to_dict(), "colour": 1})
    with pytest.raises(InputError, match="this UNetConfig cannot be read"):
        CorrDiffNetworkConfig.from_dict({**TINY.to_dict(), "diffusion": {"depth": 1}})


def test_networks_may_differ():
    config = replace(TINY, regression=UNetConfig(width=8, multipliers=(1,), blocks=1, attention=()))
    net = build(CorrDiff, config)
    assert len(list(net.regression.parameters())) < len(list(net.diffusion.parameters()))
