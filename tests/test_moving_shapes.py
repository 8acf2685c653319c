"""Moving shapes: same motion in all channels, occlusion, and the same sequence for the same index."""

import time

import numpy as np
import pytest

from xscalemixer.moving_shapes import CHANNELS, MovingShapes

ONE = MovingShapes(seed=4, objects=1, frames=30)


def inked(frames):
    """Cells that show something: bright on black, or dark on white."""
    return np.stack([frames[:, :, 0] > 0.5, frames[:, :, 1] > 0.01, frames[:, :, 2] < 0.5], 2)


def test_shape_range_and_names():
    frames = MovingShapes(frames=7, size=40, extent=15).sequences([3, 9])
    assert frames.shape == (2, 7, len(CHANNELS), 40, 40) and frames.dtype == np.float32
    assert frames.min() == 0.0 and frames.max() <= 1.0
    assert set(np.unique(frames[:, :, 2])) == {0.0, 1.0}


def test_all_channels_move_with_the_track():
    frames, tracks = inked(ONE.sequences(range(8))), ONE.tracks(range(8))[:, 0]
    for sequence in range(8):
        still = [
            np.roll(frames[sequence, t], tuple(-tracks[sequence, t]), axis=(1, 2)) for t in range(ONE.frames)
        ]  # each frame in the frame of its object
        assert all(np.array_equal(frame, still[0]) for frame in still)
        assert still[0][:, : ONE.extent, : ONE.extent].sum() == still[0].sum()


def test_an_object_looks_different_in_each_channel_but_has_one_outline():
    stroke, filled, ink = inked(ONE.sequences([0]))[0, 0]
    assert np.array_equal(stroke, ink)
    assert (filled | ~stroke).all() and filled.sum() > stroke.sum()


def test_speed_is_constant_and_walls_reflect():
    tracks = ONE.tracks(range(50))[:, 0]
    free = ONE.size - ONE.extent
    assert tracks.min() >= 0 and tracks.max() <= free
    way = np.hypot(*np.moveaxis(np.diff(tracks, axis=1), -1, 0))
    away = ((tracks > 5) & (tracks < free - 5)).all(-1)
    steady = away[:, 1:] & away[:, :-1]
    np.testing.assert_allclose(way[steady], ONE.step * free, atol=1.5)  # whole cells
    assert (np.diff(np.sign(np.diff(tracks, axis=1)), axis=1) != 0).any((1, 2)).all()  # each hits a wall


def test_brighter_wins_on_black_and_darker_on_white():
    both = MovingShapes(seed=2, objects=2)
    frames, (first, second) = both.sequences([5])[0], both.tracks([5])[0]
    draws = both._draws([5])
    looks = both._looks(draws)[0]
    expected = np.zeros_like(frames)
    for t in range(both.frames):
        for look, (row, column) in zip(looks, (first[t], second[t]), strict=True):
            place = (t, slice(None), slice(row, row + 28), slice(column, column + 28))
            expected[place] = np.maximum(expected[place], look)
    expected[:, 2] = np.minimum(1.0, 1.0 - expected[:, 2])
    np.testing.assert_array_equal(frames, expected)


def test_objects_do_overlap_sometimes():
    tracks = MovingShapes().tracks(range(20))
    near = (np.abs(tracks[:, 0] - tracks[:, 1]) < 14).all(-1)
    assert 0.05 < near.mean() < 0.6


def test_a_sequence_follows_from_its_seed_and_index_alone():
    shapes = MovingShapes(seed=7)
    batch = shapes.sequences([4, 1, 4])
    np.testing.assert_array_equal(batch[0], batch[2])
    np.testing.assert_array_equal(batch[1], shapes.sequences([1])[0])
    assert not np.array_equal(batch[0], batch[1])
    assert not np.array_equal(batch[0], MovingShapes(seed=8).sequences([4])[0])


def test_more_frames_continue_the_same_sequence():
    short, long = (MovingShapes(frames=n).sequences([0])[0] for n in (5, 12))
    np.testing.assert_array_equal(long[:5], short)


def test_an_object_must_fit():
    with pytest.raises(ValueError, match="extent=28; needed 5 to size=20 cells"):
        MovingShapes(size=20)


def test_drawing_is_fast():
    MovingShapes().sequences(range(4))
    start = time.process_time()
    MovingShapes().sequences(range(32))
    assert 32 / (time.process_time() - start) > 50  # sequences per second
