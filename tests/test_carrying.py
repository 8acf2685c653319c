"""Fields from smooth terrain to relief, as arrays: the same as by datasets, anywhere on the globe."""

import numpy as np
import pytest
from test_terrain import relief, world

from xscalemixer.carrying import Carrier, surroundings
from xscalemixer.grids import Grid, grid_of
from xscalemixer.relief import Relief


def made(heights):
    return Relief(heights, None, grid_of(heights))


def test_arrays_are_carried_as_datasets_are():
    ds, fine = world(), world().scalemixer.terrain(relief())
    carrier = Carrier(grid_of(ds), ds["orog"].values, made(relief()))
    names = ["t2m", "u10", "v10", "q2m", "sp", "tcc"]
    carried = carrier({name: ds[name].values for name in names})
    assert set(carried) == set(names)
    for name in names:
        # a wind is balanced on the scale of the mean cell, which differs by where the data are cut
        np.testing.assert_allclose(
            carried[name], fine[name], rtol=1e-3, atol=2e-3 if name in ("u10", "v10") else 1e-6, err_msg=name
        )


def test_leading_dimensions_are_free():
    ds = world()
    carrier = Carrier(grid_of(ds), ds["orog"].values, made(relief()))
    (three,) = carrier.air(ds["t2m"].values)
    (one,) = carrier.air(ds["t2m"].values[0])
    assert one.shape == (50, 60) and one.dtype == np.float32
    np.testing.assert_array_equal(three[0], one)


@pytest.mark.parametrize("west", [84.0, 177.0, -1.0])
def test_surroundings_are_counted_as_the_relief_counts(west):
    globe = Grid.regular("87.1875", "2.8125", "5.625", (32, 64))
    rows, columns, part = surroundings(globe, made(relief(west=west)))
    assert part.shape == (rows.size, columns.size) and not part.outside(grid_of(relief(west=west)))
    np.testing.assert_allclose(np.array(part.longitude) % 360, np.array(globe.longitude)[columns])
    assert part.longitude[0] < west and part.longitude[-1] > west + 5.9


def test_small_grids_are_taken_whole():
    ds = world()
    rows, columns, part = surroundings(grid_of(ds), made(relief()), margin=100)
    assert part == grid_of(ds) and (rows.size, columns.size) == part.shape
