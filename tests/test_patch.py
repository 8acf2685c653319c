"""Token grids, their alignment, and fields through tokens and back."""

import numpy as np
import pytest
import torch

from xscalemixer.nn.patch import (
    Alignment,
    Deconvolution,
    LeadTimeModulation,
    PatchEmbedding,
    PredictionHead,
    TokenGrid,
    bilinear,
)


def globe(step=10.0, patch=2):
    rows, columns = int(180 / step), int(360 / step)
    return TokenGrid(
        tuple(90 - (i + 0.5) * step for i in range(rows)), tuple((j + 0.5) * step for j in range(columns)), patch, periodic=True
    )


def box(north, west, step, shape, patch, offset=(0, 0)):
    return TokenGrid(
        tuple(north - (i + 0.5) * step for i in range(shape[0])),
        tuple(west + (j + 0.5) * step for j in range(shape[1])),
        patch,
        offset,
    )


def test_token_centers_are_patch_means():
    grid = box(40, 100, 1.0, (4, 6), 2)
    np.testing.assert_allclose(grid.axes[0], [39, 37])
    np.testing.assert_allclose(grid.axes[1], [101, 103, 105])
    np.testing.assert_allclose(grid.edges[1], [100, 102, 104, 106])
    np.testing.assert_allclose(grid.centers[4], [37, 103])


def test_padding_makes_any_box_fit():
    grid = box(40, 100, 1.0, (5, 7), 4, offset=(1, 2))
    assert grid.padding == (2, 3, 1, 2)  # west, east, north, south
    assert grid.shape == (2, 3)
    np.testing.assert_allclose(grid.axes[0], [39, 35])  # the padded row counts: 41..37


def test_uneven_latitudes_are_kept():
    grid = TokenGrid((60.0, 50.0, 30.0, 0.0), (0.0, 10.0), 2)
    np.testing.assert_allclose(grid.axes[0], [55, 15])
    np.testing.assert_allclose(grid.edges[0], [65, 40, -15])


def test_nested_alignment_returns_the_containing_tokens():
    outer, inner = globe(), box(70, 40, 2.0, (20, 30), 10)
    alignment = Alignment(outer, inner)
    assert alignment.nested
    np.testing.assert_allclose(outer.centers[alignment.box], inner.centers)
    tokens = torch.randn(1, len(outer), 3)
    assert torch.equal(alignment.to_inner(tokens), tokens[:, alignment.box])
    back = torch.randn(1, 6, 3)
    torch.testing.assert_close(alignment.to_box(back), back)


def test_other_patches_are_interpolated_and_averaged():
    outer, inner = globe(), box(65, 47, 1.0, (20, 20), 5)
    alignment = Alignment(outer, inner)
    assert not alignment.nested
    linear = torch.as_tensor(outer.centers @ np.array([2.0, 3.0]), dtype=torch.float32)[None, :, None]
    wanted = torch.as_tensor(inner.centers @ np.array([2.0, 3.0]), dtype=torch.float32)
    torch.testing.assert_close(alignment.to_inner(linear)[0, :, 0], wanted, rtol=1e-5, atol=1e-3)
    ones = alignment.to_box(torch.ones(1, len(inner), 2))
    torch.testing.assert_close(ones, torch.ones(1, alignment.box.numel(), 2))


def test_box_across_the_date_line_and_greenwich():
    for west in (170.0, -10.0, 350.0):
        inner = box(60, west, 2.0, (20, 20), 5)
        alignment = Alignment(globe(), inner)
        lon = torch.as_tensor(np.cos(np.deg2rad(globe().centers[:, 1])), dtype=torch.float32)[None, :, None]
        wanted = torch.as_tensor(np.cos(np.deg2rad(inner.centers[:, 1])), dtype=torch.float32)
        torch.testing.assert_close(alignment.to_inner(lon)[0, :, 0], wanted, atol=0.02, rtol=0)


def test_averages_conserve_the_sum_over_the_box():
    alignment = Alignment(globe(), box(65, 47, 1.0, (20, 20), 5))
    tokens = torch.rand(1, 16, 1)
    members = torch.bincount(alignment.member).float()
    assert (alignment.to_box(tokens)[0, :, 0] * members).sum().item() == pytest.approx(tokens.sum().item(), rel=1e-5)


def test_embedding_sees_each_patch_once():
    grid = box(40, 100, 1.0, (4, 4), 2)
    embedding = PatchEmbedding(1, 1, grid)
    torch.nn.init.ones_(embedding.project.weight), torch.nn.init.zeros_(embedding.project.bias)
    field = torch.arange(16.0).view(1, 1, 4, 4)
    assert embedding(field).flatten().tolist() == [10, 18, 42, 50]


@pytest.mark.parametrize("strides", [(2,), (5,), (2, 5), (2, 4, 5)])
def test_deconvolution_returns_the_shape_of_the_field(strides):
    patch = int(np.prod(strides))
    grid = box(40, 100, 0.1, (2 * patch - 1, 3 * patch - 2), patch, offset=(1, 0))
    module = Deconvolution((4,) * len(strides), 2, strides, grid)
    assert module(torch.randn(1, len(grid), 4)).shape == (1, 2, 2 * patch - 1, 3 * patch - 2)


def test_deconvolution_of_equal_tokens_has_no_seams():
    """Equal tokens give one pattern, repeated patch by patch up to the edges of the field."""
    grid = box(40, 100, 0.1, (15, 20), 5)
    module = Deconvolution((4,), 1, (5,), grid)
    field = module(torch.randn(1, 1, 4).expand(1, len(grid), 4))[0, 0].detach()
    torch.testing.assert_close(field.unfold(0, 5, 5).unfold(1, 5, 5), field[:5, :5].expand(3, 4, 5, 5))


@pytest.mark.parametrize("strides", [(5,), (2, 5), (4, 5)])
def test_even_deconvolution_of_equal_tokens_is_even(strides):
    """Whatever the weights; and it still tells tokens apart."""
    patch = int(np.prod(strides))
    grid = box(40, 100, 0.1, (3 * patch, 4 * patch), patch)
    module = Deconvolution((4,) * len(strides), 2, strides, grid, even=True)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    field = module(torch.randn(1, 1, 4).expand(1, len(grid), 4)).detach()
    torch.testing.assert_close(field, field[..., :1, :1].expand_as(field), atol=1e-4, rtol=1e-4)
    assert module(torch.randn(1, len(grid), 4)).std() > 0.5


def test_periodic_deconvolution_turns_with_its_tokens():
    grid = globe(10.0, 2)
    module = Deconvolution((4,), 1, (2,), grid)
    tokens = torch.randn(1, len(grid), 4)
    turned = tokens.unflatten(1, grid.shape).roll(3, 2).flatten(1, 2)
    torch.testing.assert_close(module(turned), module(tokens).roll(6, 3), atol=1e-6, rtol=1e-5)


def test_head_depends_on_the_lead():
    grid = box(40, 100, 1.0, (4, 4), 2)
    head, modulation = PredictionHead(8, (8,), (2,), 3, grid), LeadTimeModulation(8)
    tokens = torch.randn(1, 4, 8)
    fields = [head(tokens, *modulation(torch.tensor(lead))) for lead in (1.0, 2.0)]
    assert fields[0].shape == (1, 3, 4, 4)
    assert not torch.allclose(*fields)


def test_wrong_strides_are_refused():
    with pytest.raises(ValueError, match="must be as many and multiply to patch 4"):
        Deconvolution((8, 8), 1, (2, 3), box(40, 100, 1.0, (4, 4), 4))


@pytest.mark.parametrize("turn", [-360.0, 0.0, 360.0])
def test_whole_turns_change_nothing_in_a_driver_that_is_a_box(turn):
    outer = TokenGrid(tuple(np.arange(52.0, 48.0, -0.5)), tuple(np.arange(-6.0, -2.0, 0.5)), 2)
    lon = np.arange(-5.0, -3.0, 0.25)
    inner = TokenGrid(tuple(np.arange(51.0, 49.0, -0.25)), tuple(lon + turn), 4)
    index, weight = bilinear(outer, *inner.axes)
    plain = TokenGrid(inner.latitude, tuple(lon), 4)
    np.testing.assert_array_equal(Alignment.holders(outer, inner), Alignment.holders(outer, plain))
    np.testing.assert_allclose(weight, bilinear(outer, *plain.axes)[1], atol=1e-12)
    np.testing.assert_array_equal(index, bilinear(outer, *plain.axes)[0])


def test_patches_of_padding_lie_where_their_cells_are():
    """The last patch has one cell; its center is outside of the driver, the cell is in its corner."""
    outer = TokenGrid((4.0, 3.0, 2.0, 1.0), (1.0, 2.0, 3.0, 4.0), 2)
    inner = TokenGrid((1.2, 1.0, 0.8, 0.6), (3.6, 3.8, 4.0, 4.2), 3)
    np.testing.assert_array_equal(Alignment.holders(outer, inner), [3, 3, 3, 3])


def test_one_token_is_a_driver_too():
    outer = TokenGrid((1.0, 0.0), (0.0, 1.0), 2)
    inner = TokenGrid((1.0, 0.5, 0.0), (0.0, 0.5, 1.0), 2)
    alignment = Alignment(outer, inner)
    tokens = torch.randn(1, 1, 3)
    torch.testing.assert_close(alignment.to_inner(tokens), tokens.expand(1, 4, 3))


def fine_geometry():
    """Tokens of 11.25 degrees, and those of 1 degree in a box that begins and ends inside them."""
    return globe(5.625, 2), box(36, 94, 0.05, (240, 240), 20)


def test_tokens_of_one_degree_in_a_coarse_globe_do_not_nest():
    outer, inner = fine_geometry()
    alignment = Alignment(outer, inner)
    assert not alignment.nested and len(inner) == 144 and alignment.box.numel() == 4
    lat, lon = (torch.as_tensor(part, dtype=torch.float32) for part in (outer.centers.T, inner.centers.T))
    np.testing.assert_allclose(alignment.to_inner(lat.T[None])[0], lon.T, atol=1e-4)  # linear in place: exact


def test_averages_and_gradients_of_tokens_that_do_not_nest_are_conserved():
    alignment = Alignment(*fine_geometry())
    tokens = torch.randn(1, 144, 3, requires_grad=True)
    members = torch.bincount(alignment.member)
    means = alignment.to_box(tokens)
    torch.testing.assert_close((means * members[None, :, None]).sum(1), tokens.sum(1))
    (means * members[None, :, None]).sum().backward()
    torch.testing.assert_close(tokens.grad, torch.ones_like(tokens))  # every token counts, and once
    outer = torch.randn(1, 16 * 32, 3, requires_grad=True)
    alignment.to_inner(outer).sum().backward()
    assert float(outer.grad.sum()) == pytest.approx(3 * 144, rel=1e-5)


def test_refinement_in_two_parts_is_that_on_both_together():
    torch.manual_seed(0)
    grid = box(40, 100, 1.0, (12, 12), 4)
    head = PredictionHead(8, (8,), (4,), 3, grid, detail=5, local=2)
    tokens, local = torch.randn(2, len(grid), 8), torch.randn(2, 2, 12, 12)
    zero = torch.zeros(8)
    features = head.deconvolution(head.narrow(head.norm(tokens)))
    torch.testing.assert_close(head(tokens, zero, zero, local), head.refine(torch.cat([features, local], 1)))
