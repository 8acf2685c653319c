"""Seams of patches: found where they are, and not where there are none."""

import numpy as np
import pytest
import torch
import xarray as xr

import xscalemixer as xsm
from xscalemixer.nn.patch import PatchEmbedding, PredictionHead, TokenGrid
from xscalemixer.verification import patch_seams

GRID = xsm.Grid.regular("35.975", "94.025", "0.05", (60, 80))


def fields(values):
    """Times of one variable on the grid."""
    coords = {"time": np.arange(len(values)), "latitude": list(GRID.latitude), "longitude": list(GRID.longitude)}
    return xr.Dataset({"t2m": (tuple(coords), np.asarray(values, dtype=float))}, coords)


def smooth(count=20):
    """Fields that know nothing of patches."""
    noise = np.random.default_rng(0).normal(size=(count, *GRID.shape))
    return sum(np.roll(noise, (i, j), (1, 2)) for i in range(3) for j in range(3))


def test_fields_without_patches_have_no_seams():
    seams = patch_seams(fields(smooth()), 10)["t2m"]
    assert seams.dims == ("axis", "place") and seams.shape == (2, 10)
    np.testing.assert_allclose(seams, 1.0, atol=0.15)


def test_planes_and_parabolas_are_no_jumps():
    row, column = np.indices(GRID.shape)
    bent = 5 + row - 2 * column + 0.1 * (row**2 - row * column)
    seams = patch_seams(fields(smooth() + 50 * bent), 10)
    np.testing.assert_allclose(seams["t2m"], patch_seams(fields(smooth()), 10)["t2m"], rtol=1e-6)


@pytest.mark.parametrize("offset", [(0, 0), (4, 7)])
def test_steps_between_patches_stand_out_at_the_border(offset):
    steps = np.random.default_rng(1).normal(size=(20, 7, 9)).repeat(10, 1).repeat(10, 2)
    north, west = offset
    seams = patch_seams(fields(smooth() + 5 * steps[:, north : north + 60, west : west + 80]), 10, offset)["t2m"]
    assert (seams.argmax("place") == 0).all() and float(seams.sel(place=0).min()) > 2


def test_order_of_the_axes_does_not_matter():
    ds = fields(smooth(3))
    turned = ds.isel(latitude=slice(None, None, -1)).transpose("longitude", "time", "latitude")
    xr.testing.assert_allclose(patch_seams(turned, 10), patch_seams(ds, 10))


def test_grids_smaller_than_three_patches_are_refused():
    with pytest.raises(xsm.GridError, match="60 x 80.*patches of 30 cells; needed.*three patches each way"):
        patch_seams(fields(smooth(1)), 30)
    with pytest.raises(xsm.SchemaError, match="no variable"):
        patch_seams(fields(smooth(1)).mean("latitude").assign_coords(latitude=fields(smooth(1))["latitude"]), 10)


def red_noise(count):
    """Smooth random fields (N, 1, H, W), as large on average as their patches."""
    waves = torch.fft.rfft2(torch.randn(count, 1, *GRID.shape))
    number = torch.hypot(torch.fft.fftfreq(GRID.shape[0])[:, None], torch.fft.rfftfreq(GRID.shape[1])[None])
    field = torch.fft.irfft2(waves / (number + 0.01) ** 2, s=GRID.shape)
    return field / field.std()


def seams_of_a_trained_head(detail):
    """Roughness by place after a head has learned to shift fields by two cells."""
    torch.manual_seed(0)
    grid = TokenGrid(GRID.latitude, GRID.longitude, 20)
    embedding, head = PatchEmbedding(1, 32, grid), PredictionHead(32, (32, 8), (4, 5), 1, grid, detail=detail, local=1)
    optimizer = torch.optim.Adam([*embedding.parameters(), *head.parameters()], 5e-3)
    forecast = lambda x: head(embedding(x), torch.zeros(32), torch.zeros(32), x)
    for _ in range(60):
        x = red_noise(4)
        optimizer.zero_grad()
        (forecast(x) - x.roll(2, 3)).abs().mean().backward()
        optimizer.step()
    return patch_seams(fields(forecast(red_noise(20))[:, 0].detach().numpy()), 20)["t2m"]


def test_refinement_at_full_resolution_leaves_no_seams():
    plain, refined = (float(seams_of_a_trained_head(detail).std()) for detail in (0, 8))
    assert plain > 0.25 and refined < 0.12
