"""The border: channel order, calendar, insolation."""

import numpy as np
import pytest
import torch
from worlds import LEVELS, OUTER, START, box, globe

from xscalemixer.grids import Grid
from xscalemixer.state import (
    STATICS,
    calendar_features,
    fields_of,
    inner_insolation,
    level_insolation,
    outer_insolation,
    statics_of,
)

GRID = Grid.regular(60, 100, 2, (10, 12))


def test_channels_follow_the_schema():
    ds = globe()
    fields = fields_of(ds, OUTER)
    assert fields.shape == (1, len(OUTER), 45, 90) and fields.dtype == np.float32
    for channel, name in enumerate(OUTER.channels):
        variable, _, level = name.partition("_")
        wanted = ds[variable].sel(level=int(level)) if level else ds[variable]
        np.testing.assert_array_equal(fields[0, channel], wanted.values[0])


def test_order_of_levels_in_the_file_does_not_matter():
    np.testing.assert_array_equal(fields_of(globe().sel(level=list(LEVELS[::-1])), OUTER), fields_of(globe(), OUTER))


def test_lazy_equals_eager():
    np.testing.assert_array_equal(fields_of(globe().chunk(), OUTER), fields_of(globe(), OUTER))


def test_statics_are_in_km():
    assert statics_of(globe()).max() == pytest.approx(float(globe()["orog"].max()) / 1000)


def test_further_statics_follow_from_the_heights():
    ds = box()
    fields = dict(zip(STATICS, statics_of(ds, STATICS), strict=True))
    np.testing.assert_array_equal(fields["orog"], statics_of(ds)[0])
    np.testing.assert_allclose(np.hypot(fields["slope_east"], fields["slope_north"]), fields["slope"], rtol=1e-5)
    rise = np.diff(ds["orog"].values[20]) / (1.125 * 111195 * np.cos(np.deg2rad(float(ds["latitude"][20]))))
    np.testing.assert_allclose(fields["slope_east"][20, 1:-1], 10 * (rise[1:] + rise[:-1]) / 2, rtol=1e-3, atol=1e-6)


def test_the_open_sea_is_flat():
    ds = box().assign(orog=lambda ds: 0 * ds["orog"], lsm=lambda ds: 0 * ds["lsm"])
    assert not statics_of(ds, STATICS).any()


def test_calendar_has_the_period_of_a_day_and_a_year():
    features = calendar_features(np.array(["2021-01-01T00", "2021-01-02T00", "2021-07-02T12", "2021-01-01T06"], "datetime64[h]"))
    torch.testing.assert_close(features[0, :2], features[1, :2], atol=1e-6, rtol=0)
    torch.testing.assert_close(features[0, 2:], -features[2, 2:], atol=1e-2, rtol=0)  # half a year apart
    torch.testing.assert_close(features[3, :2], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)


def test_last_day_of_a_leap_year_joins_the_first():
    features = calendar_features(np.array(["2020-12-31T23:59:59", "2021-01-01T00:00:00"], "datetime64[s]"))
    torch.testing.assert_close(features[0], features[1], atol=1e-4, rtol=0)


def test_calendar_parts_that_are_left_out_are_zero():
    assert (calendar_features(START, ("hour",))[:, 2:] == 0).all()
    assert (calendar_features(START, ("hour",))[:, :2] != 0).any()


def test_insolation_covers_the_hours_before_and_after():
    inner, outer = inner_insolation(START, level_insolation(GRID)), outer_insolation(START, GRID)
    assert inner.shape == (1, 12, 10, 12) and outer.shape == (1, 2, 10, 12)
    mean = inner.unflatten(1, (2, 6)).mean(2) / (1361.0 / 4)
    torch.testing.assert_close(outer, mean, atol=1e-4, rtol=1e-4)


def test_hours_can_be_chosen():
    torch.testing.assert_close(
        inner_insolation(START, level_insolation(GRID), last=0), inner_insolation(START, level_insolation(GRID))[:, :6]
    )
