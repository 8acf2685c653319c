"""The U-Net: published sizes, any field size, what it is told matters."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from xscalemixer.errors import InputError
from xscalemixer.nn.draws import drawing_for, dropout
from xscalemixer.nn.unet import SelfAttention, UNet, UNetConfig

TINY = UNetConfig(width=8, multipliers=(1, 2, 2), blocks=1, attention=(2,), dropout=0.0)


def build(config=TINY, seed=0, **settings):
    """A network with weights large enough to carry a signal everywhere."""
    torch.manual_seed(seed)
    net = UNet(config, 3, 2, **{"noise": True, "scalars": 2, **settings})
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.xavier_uniform_(layer.weight)
    return net.eval()


def inputs(height=12, width=20, batch=2, seed=1):
    random = torch.Generator().manual_seed(seed)
    shapes = (batch, 3, height, width), (batch,), (batch, 2)
    return [torch.randn(shape, generator=random) for shape in shapes]


@pytest.mark.parametrize(
    ("config", "inputs", "outputs", "millions"),
    [
        (UNetConfig(multipliers=(2, 2, 2), attention=(1,)), 3, 3, 55.7),  # DDPM++ for 32 x 32 pictures
        (UNetConfig(), 24, 4, 80.0),  # CorrDiff for Taiwan
    ],
)
def test_published_sizes(config, inputs, outputs, millions):
    with torch.device("meta"):
        net = UNet(config, inputs, outputs, noise=True)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize("shape", [(12, 20), (13, 21), (1, 7), (3, 2)])
def test_any_size_comes_back(shape):
    assert build()(*inputs(*shape)).shape == (2, 2, *shape)


def test_odd_sizes_are_continued_at_the_edge():
    net, (x, *rest) = build(), inputs(13, 18)
    padded = functional.pad(x, (0, 2, 0, 3), mode="replicate")
    assert torch.equal(net(x, *rest), net(padded, *rest)[..., :13, :18])


def test_samples_of_a_batch_do_not_mix():
    net, parts = build(), inputs()
    torch.testing.assert_close(net(*parts)[1:], net(*(part[1:] for part in parts)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_every_input_matters(part):
    net, parts = build(), inputs()
    other = [p + 1.0 if i == part else p for i, p in enumerate(parts)]
    assert (net(*parts) - net(*other)).abs().max() > 1e-3


def test_attention_equals_its_definition():
    torch.manual_seed(0)
    layer, x = SelfAttention(8, heads=2).double(), torch.randn(1, 8, 3, 5, dtype=torch.float64)
    q, k, v = layer.query_key_value(layer.norm(x))[0].reshape(3, 2, 4, 15)  # heads of 4 features, 15 cells
    weights = (torch.einsum("hcq,hck->hqk", q, k) / 2.0).softmax(-1)  # sqrt(4)
    attended = torch.einsum("hqk,hck->hcq", weights, v).reshape(1, 8, 3, 5)
    torch.testing.assert_close(layer(x), layer.out(attended))


def test_gradients_reach_every_parameter():
    net = build().train()
    net(*inputs()).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_dropout_belongs_to_the_sample():
    """Equal samples get masks of their own, the same in passes of any size."""
    net = build(replace(TINY, dropout=0.3)).train()
    parts = [part[:1].expand(4, *part.shape[1:]) for part in inputs()]

    def passed(first, size):
        with drawing_for(first, size, 4, seed=1):
            return net(*(part[:size] for part in parts))

    whole = passed(0, 4)
    torch.testing.assert_close(torch.cat([passed(first, 1) for first in range(4)]), whole, rtol=1e-4, atol=1e-4)
    assert (whole[0] - whole[1]).abs().max() > 0.01


def test_dropout_keeps_the_mean():
    with drawing_for(0, 2, 2, seed=0):
        found = dropout(torch.ones(2, 8, 50, 50), 0.25)
    assert found.mean().item() == pytest.approx(1.0, abs=0.02) and found.unique().tolist() == pytest.approx([0.0, 4 / 3])


def test_training_starts_near_zero():
    torch.manual_seed(0)
    assert UNet(TINY, 3, 2, noise=True, scalars=2)(*inputs()).abs().max() < 1e-3


def test_a_network_without_noise_level_has_no_embedding():
    net = build(noise=False, scalars=0)
    assert net.embedding is None
    assert net(inputs()[0]).shape == (2, 2, 12, 20)


def test_wrong_channels_say_what_was_needed():
    with pytest.raises(ValueError, match=r"U-Net input has shape \(2, 2, 12, 20\), needed \(None, 3, None, None\)"):
        build()(inputs()[0][:, :2])


def test_missing_noise_level_is_refused():
    with pytest.raises(ValueError, match="noise level is missing, needed a tensor"):
        build()(inputs()[0])


def test_bad_settings_are_all_named():
    with pytest.raises(InputError) as error:
        UNetConfig(width=10, multipliers=(1, 0), blocks=0, attention=(0, 5), heads=3, dropout=1.0)
    assert len(error.value.problems) == 5
    assert "attention at levels [5]; multipliers has levels 0 to 1" in str(error.value)
    with pytest.raises(InputError, match=r"heads=3 does not divide the features of levels \[0\]"):
        UNetConfig(attention=(0,), heads=3)
