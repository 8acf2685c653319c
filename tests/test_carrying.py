"""Fields from smooth terrain to relief, as arrays: the same as by datasets, anywhere on the globe."""

import numpy as np
from test_terrain import relief, world

from xscalemixer.carrying import Carrier
from xscalemixer.grids import grid_of
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
