"""Lapse rates of worlds whose lapse rate is known."""

import numpy as np
import pytest
from reliefs import flat_steps

from xscalemixer.physics.lapse import LAPSE_RATE_BOUNDS, local_lapse_rate

SHAPE = (9, 11)
RNG = np.random.default_rng(3)
HEIGHT = 800.0 * RNG.random(SHAPE)
STEPS = flat_steps(SHAPE, 30e3)


@pytest.mark.parametrize("rate", [2e-3, 6.5e-3, 9e-3])
def test_a_linear_world_gives_its_own_rate(rate):
    rows, columns = np.indices(SHAPE)
    temperature = 290 + 0.8 * rows - 0.3 * columns - rate * HEIGHT  # colder to the north and east, too
    np.testing.assert_allclose(local_lapse_rate(temperature, HEIGHT, STEPS), rate, rtol=1e-3)


def test_a_plain_has_the_standard_rate():
    temperature = 290 + RNG.normal(size=SHAPE)
    np.testing.assert_allclose(local_lapse_rate(temperature, np.zeros(SHAPE), STEPS), 6.5e-3)


def test_noise_without_relation_to_height_changes_little():
    temperature = 290 - 6.5e-3 * HEIGHT + 5 * RNG.normal(size=SHAPE)
    assert np.abs(local_lapse_rate(temperature, HEIGHT, STEPS) - 6.5e-3).mean() < 1.5e-3


def test_inversions_and_unstable_air_are_bounded():
    for rate, bound in ((-5e-3, LAPSE_RATE_BOUNDS[0]), (20e-3, LAPSE_RATE_BOUNDS[1])):
        np.testing.assert_allclose(local_lapse_rate(290 - rate * HEIGHT, HEIGHT, STEPS), bound)


def test_gaps_are_left_at_the_standard_rate_and_times_do_not_mix():
    temperature = np.stack([290 - 3e-3 * HEIGHT, 290 - 3e-3 * HEIGHT])
    temperature[0, 4, 4] = np.nan
    rate = local_lapse_rate(temperature, HEIGHT, STEPS)
    assert rate[0, 4, 5] == np.float32(6.5e-3)
    np.testing.assert_allclose(rate[1], 3e-3, rtol=1e-3)
    assert rate[0, 0, 0] == rate[1, 0, 0]
