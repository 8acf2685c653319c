"""Patches: weights that add up to one, fields in bounded memory without seams, crops for training, patch size."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from xscalemixer.errors import InputError
from xscalemixer.nn.sampling import MemberNoise, SolverConfig, solve
from xscalemixer.nn.tiling import Crops, Tiling, TilingConfig, autocorrelation, random_crops, suggest_patch
from xscalemixer.nn.unet import UNet, UNetConfig

HARD = TilingConfig(patch=(32, 32), overlap=0, margin=0)
SMOOTH = TilingConfig(patch=(32, 32), overlap=16, margin=2, at_once=3)


def field(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- covering a domain


@pytest.mark.parametrize("shape", [(32, 32), (33, 32), (64, 95), (71, 200), (20, 40), (5, 7)])
@pytest.mark.parametrize("config", [HARD, SMOOTH, TilingConfig(patch=(32, 24), overlap=23, margin=11)])
def test_weights_add_up_to_one(shape, config):
    tiles = Tiling(config, shape)
    total = tiles.fuse(lambda crops: torch.ones(len(crops.corner), 1, *crops.size), torch.zeros(2, 1, *shape))
    torch.testing.assert_close(total, torch.ones(2, 1, *shape))


def test_patches_share_at_least_the_overlap_and_fill_the_domain():
    tops = sorted({top for top, _ in Tiling(SMOOTH, (100, 32)).corners})
    assert tops[0] == 0 and tops[-1] == 100 - 32
    assert max(b - a for a, b in itertools.pairwise(tops)) <= 32 - 16


def test_margins_have_no_weight():
    tiles = Tiling(SMOOTH, (64, 32))
    weight = tiles.weight((16, 0), torch.zeros(1, dtype=torch.float64))
    assert (weight[[0, 1, -2, -1]] == 0).all()
    assert (weight[2:-2] > 0).all()


def test_cutting_and_adding_is_the_identity():
    x = field(2, 3, 8, 8)
    crops = Crops((0, 0, 1, 1), ((0, 0), (0, 4), (0, 0), (0, 4)), (8, 4))
    total = torch.zeros_like(x)
    crops.add(crops.cut(x), total)
    assert torch.equal(total, x)
    assert Crops.whole(x).cut(x) is x


def test_one_patch_is_the_domain_exactly():
    x = field(1, 2, 20, 30)
    tiles = Tiling(SMOOTH, (20, 30))
    assert len(tiles) == 1
    assert torch.equal(tiles.fuse(lambda crops: crops.cut(x), torch.zeros_like(x)), x)


def test_no_patch_is_the_whole_domain():
    tiles = Tiling(TilingConfig(at_once=5), (200, 3))
    assert tiles.corners == ((0, 0),)
    assert tiles.size == (200, 3)


def test_pixels_per_call_do_not_grow_with_the_domain():
    for shape in ((64, 64), (200, 300)):
        x, pixels = field(2, 1, *shape), []
        run = lambda crops, x=x, pixels=pixels: pixels.append((y := crops.cut(x)).numel()) or y
        torch.testing.assert_close(Tiling(SMOOTH, shape).fuse(run, torch.zeros_like(x)), x)
        assert max(pixels) == 3 * 32 * 32


def test_bad_settings_are_all_named():
    with pytest.raises(InputError, match="3 problems") as error:
        TilingConfig(patch=(16, 32), overlap=16, margin=9, at_once=0)
    assert "overlap=16; needed 0 <= overlap < 16, the shorter side" in str(error.value)
    with pytest.raises(InputError, match=r"patch=32; needed \(rows, columns\)"):
        TilingConfig(patch=32)


# --- sampling in patches


def blur(cells):
    """A local ideal-like denoiser that sees ``cells`` in each direction."""
    kernel = torch.full((1, 1, 2 * cells + 1, 2 * cells + 1), (2 * cells + 1) ** -2.0, dtype=torch.float64)
    return lambda x, sigma: functional.conv2d(x, kernel, padding=cells) / (1.0 + sigma**2)


def in_patches(denoise, config):
    def run(x, sigma):
        return Tiling(config, x.shape[2:]).fuse(lambda crops: denoise(crops.cut(x), sigma), torch.zeros_like(x))

    return run


@pytest.mark.parametrize("solver", [SolverConfig(steps=6), SolverConfig(steps=6, churn=5.0), SolverConfig.fast()])
def test_patched_sample_of_a_local_denoiser_equals_the_whole(solver):
    """Patches discard as many cells as the denoiser sees, so only rounding is left."""
    draw = lambda: MemberNoise([3], (1, 50, 81), like=torch.zeros(1, dtype=torch.float64))
    whole = solve(blur(2), draw(), solver)
    torch.testing.assert_close(solve(in_patches(blur(2), SMOOTH), draw(), solver), whole, rtol=1e-12, atol=1e-12)
    hard = solve(in_patches(blur(2), HARD), draw(), solver)
    assert (hard - whole).abs().max() > 0.01 * whole.std()


def correlated(length):
    """The ideal denoiser of a smooth Gaussian field, by Fourier transform of what it is given."""

    def denoise(x, sigma):
        rows, columns = x.shape[2:]
        square = torch.fft.fftfreq(rows)[:, None] ** 2 + torch.fft.rfftfreq(columns) ** 2
        power = 2 * math.pi * length**2 * torch.exp(-2.0 * (math.pi * length) ** 2 * square)
        return torch.fft.irfft2(torch.fft.rfft2(x) * (power / (power + sigma**2)), s=(rows, columns))

    return denoise


def seam(x, border=32):
    """Second differences across the borders of hard patches, over the usual ones."""
    rough = x.diff(n=2, dim=3).square().mean((0, 1, 2)).sqrt()
    at = torch.arange(border, x.shape[3], border)
    return (rough[torch.cat([at - 2, at - 1])].mean() / rough.median()).item()


def noisy_share(x, above=0.2):
    """Share of the variance at wavelengths below five cells, where the target has none."""
    window = torch.hann_window(x.shape[2])[:, None] * torch.hann_window(x.shape[3])
    power = torch.fft.rfft2(x * window).abs().square().mean((0, 1))
    frequency = torch.hypot(torch.fft.fftfreq(x.shape[2])[:, None], torch.fft.rfftfreq(x.shape[3]))
    return (power[frequency > above].sum() / power.sum()).item()


def test_samples_have_no_seams():
    draw = lambda: MemberNoise(range(4), (1, 96, 128))
    samples = {config: solve(in_patches(correlated(5.0), config), draw(), SolverConfig(steps=9)) for config in (HARD, SMOOTH)}
    assert seam(samples[SMOOTH]) < 1.15 < 1.8 < seam(samples[HARD])
    assert noisy_share(samples[SMOOTH]) < 0.1 * noisy_share(samples[HARD])


def test_a_random_convolutional_network_has_no_seams():
    torch.manual_seed(0)
    net = UNet(UNetConfig(width=16, multipliers=(1, 2), blocks=1, attention=(), dropout=0.0), 2, 4, noise=False)
    torch.nn.init.xavier_uniform_(net.last.weight)
    row, column = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    x = torch.stack([torch.sin(column / 30 + i) * torch.cos(row / 25 - i) for i in range(2)])[None]
    with torch.no_grad():
        fused = [
            Tiling(config, (96, 128)).fuse(lambda crops: net(crops.cut(x)), torch.zeros(1, 4, 96, 128))
            for config in (HARD, SMOOTH)
        ]
    assert seam(fused[1]) < 1.25 < 3 < seam(fused[0])


# --- crops for training


def test_crops_lie_inside_and_reach_every_edge():
    crops = random_crops(torch.empty(2, 1, 40, 50), (16, 24), 200, [torch.Generator().manual_seed(n) for n in (0, 1)])
    corners = torch.tensor(crops.corner)
    assert corners.amin(0).tolist() == [0, 0]
    assert corners.amax(0).tolist() == [24, 26]
    assert crops.sample == (0,) * 200 + (1,) * 200
    seen = torch.zeros(2, 1, 40, 50)
    crops.add(torch.ones(400, 1, 16, 24), seen)
    assert seen[0, 0, 0].mean() / seen[0, 0, 12:28].mean() == pytest.approx(0.5, abs=0.15)


def test_crops_belong_to_their_field():
    draw = lambda *seeds: (
        random_crops(
            torch.empty(len(seeds), 1, 40, 50), (16, 24), 5, [torch.Generator().manual_seed(seed) for seed in seeds]
        ).corner
    )
    assert draw(1, 2) == draw(1) + draw(2) and draw(1) != draw(2)


def test_too_large_crops_are_refused():
    with pytest.raises(InputError, match=r"patch \(64, 8\) is larger than the field \(40, 50\)"):
        random_crops(torch.empty(1, 1, 40, 50), (64, 8), 1)


# --- patch size


def smooth(length, shape=(8, 1, 128, 160), seed=0):
    """White noise through a Gaussian filter: its autocorrelation is exp(-r^2 / (4 length^2))."""
    distance = torch.arange(-4 * length, 4 * length + 1, dtype=torch.float64)
    kernel = torch.exp(-(distance**2) / (2 * length**2))
    x = field(*shape, seed=seed)
    return functional.conv2d(functional.conv2d(x, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def test_autocorrelation_of_filtered_noise():
    found = autocorrelation(smooth(3))
    wanted = torch.exp(-(torch.arange(15.0) ** 2) / (4 * 3**2))
    assert found.shape == (1, 53)
    torch.testing.assert_close(found[0, :15], wanted.double(), rtol=0.0, atol=0.03)


def test_suggested_patch_is_where_correlation_ends():
    reach = 2 * 3 * math.sqrt(math.log(20.0))  # 10.4 cells
    assert suggest_patch(smooth(3), multiple=1) == pytest.approx(reach, abs=1.5)
    assert suggest_patch(smooth(3), multiple=16) == 16


def test_channel_that_remembers_longest_decides():
    both = torch.cat([smooth(1)[..., :80, :80], smooth(4)[..., :80, :80]], 1)
    assert suggest_patch(both, multiple=1) == suggest_patch(both[:, 1:], multiple=1)


def test_residual_without_a_scale_is_refused():
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    with pytest.raises(InputError, match="2 problems") as error:
        suggest_patch(torch.cat([torch.ones(1, 1, 32, 32), ramp + ramp.mT], 1))
    assert "channel 0 is constant" in str(error.value)
    assert "channel 1 is still correlated" in str(error.value)
