"""Windows never leave their period and never cross a gap."""

import numpy as np
import pytest
import torch
from worlds import HOUR, OUTER, START, box, globe

from xscalemixer.errors import TimeError
from xscalemixer.grids import grid_of
from xscalemixer.samples import GlobalPairs, Series, Windows, survey
from xscalemixer.state import level_insolation
from xscalemixer.variables import REGIONAL

HOURS = START + np.arange(1, 49) * HOUR
SIX = START + np.arange(6, 49, 6) * HOUR
ALWAYS = [(START, HOURS[-1])]


@pytest.fixture(scope="module")
def series():
    outer, inner = globe(SIX), box(HOURS, shape=(8, 9))
    return Series.of(outer, OUTER), Series.of(inner, REGIONAL), (grid_of(outer), grid_of(inner))


def windows(series, periods=ALWAYS, steps=1):
    outer, inner, (globe_grid, box_grid) = series
    sun = lambda ends: level_insolation(box_grid)(ends) / np.float32(200.0)
    scales = [(np.zeros(n), np.ones(n)) for n in (len(OUTER), len(REGIONAL))]
    return Windows(outer, inner, globe_grid, scales, periods, steps, sun, ("hour", "day"))


@pytest.mark.parametrize(("steps", "count"), [(1, 7), (2, 6), (7, 1)])
def test_number_of_windows(series, steps, count):
    assert len(windows(series, steps=steps)) == count


def test_sample_holds_what_it_says(series):
    outer, inner, _ = series
    sample = windows(series, steps=2)[1]  # starts at hour 12
    np.testing.assert_array_equal(sample["outer"], outer.values[1:4])
    np.testing.assert_array_equal(sample["inner"], inner.values[6:24])
    assert sample["inner_forcing"].shape == (2, 12, 8, 9)
    torch.testing.assert_close(sample["inner_forcing"][0, 6:], sample["inner_forcing"][1, :6])
    assert sample["calendar"].shape == (2, 4) and sample["outer_forcing"].shape == (2, 2, 45, 90)


def test_no_window_crosses_a_period(series):
    split = START + 24 * HOUR
    early, late = windows(series, [(START, split)]), windows(series, [(split, HOURS[-1])])
    assert len(early) == 3 and len(late) == 3  # one less than in 48 hours: none spans the split
    assert len(windows(series, [(START, split), (split, HOURS[-1])])) == 6


def test_no_window_crosses_a_gap(series):
    outer, inner, grids = series
    holed = Series(np.delete(inner.time, 20), np.delete(inner.values, 20, 0))
    starts = [outer.time[i] for i, _ in windows((outer, holed, grids)).starts]
    gap = inner.time[20]
    assert starts and all(not t - 6 * HOUR < gap <= t + 6 * HOUR for t in starts)


def test_global_pairs_need_no_regional_hours(series):
    outer, _, grids = series
    holed = Series(np.delete(outer.time, 3), np.delete(outer.values, 3, 0))
    scale = np.zeros(len(OUTER)), np.ones(len(OUTER))
    pairs = GlobalPairs(holed, grids[0], scale, ALWAYS)
    assert len(pairs) == 5  # of eight times one is missing, and the last has no successor
    np.testing.assert_array_equal(pairs[1]["outer"], outer.values[1:3])
    torch.testing.assert_close(pairs[0]["outer_forcing"], windows(series)[0]["outer_forcing"])
    with pytest.raises(TimeError, match="found 7 global times and none with another one 6 h later"):
        GlobalPairs(holed, grids[0], scale, [(START, START + 6 * HOUR)])


@pytest.mark.parametrize(("step", "count"), [(1, 31), (2, 16), (3, 11), (6, 6)])
def test_every_global_time_starts_a_window(series, step, count):
    """From hour 6 to hour 36 of 48, for two steps; what begins at hour 12 is the same however fine the data are."""
    _, inner, grids = series
    finer = windows((Series.of(globe(START + np.arange(step, 49, step) * HOUR), OUTER), inner, grids), steps=2)
    assert len(finer) == count
    a, b = windows(series, steps=2)[1], finer[6 // step]
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_missing_global_hour_loses_what_begins_or_ends_there(series):
    _, inner, grids = series
    hourly = Series.of(globe(HOURS), OUTER)
    holed = Series(np.delete(hourly.time, 20), np.delete(hourly.values, 20, 0))
    starts = [[each.outer.time[i] for i, _ in each.starts] for each in (windows((s, inner, grids)) for s in (hourly, holed))]
    gap = hourly.time[20]
    assert set(starts[0]) - set(starts[1]) == {gap, gap - 6 * HOUR}


def test_too_short_a_period_says_what_is_needed(series):
    with pytest.raises(TimeError, match="6 hours before and 12 hours after a global time"):
        windows(series, [(START, START + 12 * HOUR)], steps=2)


def test_stats_are_those_of_the_training_period_only(series):
    _, inner, _ = series
    stats = survey(inner, REGIONAL, [(START, START + 24 * HOUR)], zero_mean=("ssrd",)).stats
    values = inner.values[:24]
    assert stats.mean["t2m"] == pytest.approx(values[:, 0].mean(), rel=1e-5)
    assert stats.std["t2m"] == pytest.approx(values[:, 0].std(), rel=1e-3)
    assert stats.mean["ssrd"] == 0.0
    assert stats.std["ssrd"] == pytest.approx(np.sqrt((values[:, 6] ** 2).mean()), rel=1e-3)
