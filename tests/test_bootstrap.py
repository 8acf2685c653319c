"""Intervals hold the truth about as often as they say."""

import numpy as np
import pytest

from xscalemixer.verification.bootstrap import block_length, lag_correlation, resampled_counts, widening


def series(starts, correlation, trials, seed=0):
    """Autoregressive series of mean 0 and variance 1, shape (starts, trials)."""
    noise = np.random.default_rng(seed).normal(size=(starts, trials))
    out = noise.copy()
    for i in range(1, starts):
        out[i] = correlation * out[i - 1] + np.sqrt(1 - correlation**2) * noise[i]
    return out


def test_blocks_grow_with_correlation():
    assert [block_length(60, r) for r in (-0.3, 0.0, 0.5, 0.8, 1.5)] == [4, 4, 6, 11, 13]
    assert block_length(1, 0.9) == 1


def test_lag_correlation_of_long_series_is_theirs():
    values = series(4000, 0.6, 5)
    assert lag_correlation(values, [4000]) == pytest.approx(0.6, abs=0.03)
    assert lag_correlation(np.zeros((10, 3)), [10]) == 0


def test_pairs_across_a_gap_do_not_count():
    values = np.array([[1.0], [1], [-1], [-1]])
    assert lag_correlation(values, [2, 2]) == pytest.approx(0.5 + (1 + 2) / 4)
    assert lag_correlation(values, [4]) == pytest.approx(0.25 + (1 + 1) / 4)


def test_widening_is_that_of_student():
    assert widening(2) == pytest.approx(np.sqrt(2) * 12.706 / 1.95996, rel=1e-4)
    assert widening(1e6) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("starts", "correlation", "least"), [(8, 0.0, 0.91), (20, 0.0, 0.92), (20, 0.5, 0.85), (60, 0.5, 0.87)])
def test_intervals_cover_the_mean(starts, correlation, least):
    covered = []
    for i, x in enumerate(series(starts, correlation, 300).T):
        block = block_length(starts, lag_correlation(x[:, None], [starts]))
        means = resampled_counts([starts], 200, block, i).values @ x / starts
        ends = x.mean() + widening(starts / block) * (np.quantile(means, [0.025, 0.975]) - x.mean())
        covered.append(ends[0] < 0 < ends[1])
    assert least < np.mean(covered) < 0.99
