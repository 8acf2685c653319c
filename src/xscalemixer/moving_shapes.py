r"""Moving shapes: objects that bounce in a box, seen by three channels at once; free of any licence.

Stands for the multivariate moving digits and clothes (MvMm-FNIST) on which Met2Net was tested (arXiv 2507.17189): every
object has one track and three looks, so that each channel tells where the objects of the others are.

======= =========================================== ============================
channel look of an object                           where objects overlap
======= =========================================== ============================
stroke  its outline, bright on black                the brighter (the digit)
filled  its area with stripes, bright on black      the brighter (the clothes)
ink     its outline without shades, black on white  the darker (the inverse digit)
======= =========================================== ============================

An outline is a closed curve with 2 to 5 lobes, :math:`r(\theta) = r_0 [1 + a \cos k (\theta - \phi)]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

__all__ = ["CHANNELS", "MovingShapes"]

CHANNELS = ("stroke", "filled", "ink")
_DRAWS = 9  # random numbers of an object: place (2), direction, and its look (6)


@dataclass(frozen=True, kw_only=True)
class MovingShapes:
    """Sequences of moving shapes; each follows from the seed and its index alone, whatever else is drawn.

    Attributes
    ----------
    seed : int
        Two seeds share no sequence: use one for training, another for tests.
    frames : int
        Frames of a sequence, past and future together.
    size, extent : int
        Side of a frame and of the square that holds an object, in cells.
    objects : int
    step : float
        Way per frame, as a share of the free way ``size - extent``.

    Examples
    --------
    >>> shapes = MovingShapes(seed=1, frames=20).sequences(range(16))
    >>> shapes.shape, shapes.dtype
    ((16, 20, 3, 64, 64), dtype('float32'))
    >>> past, future = shapes[:, :10], shapes[:, 10:]
    """

    seed: int = 0
    frames: int = 20
    size: int = 64
    extent: int = 28
    objects: int = 2
    step: float = 0.1

    def __post_init__(self):
        if not 5 <= self.extent <= self.size:
            raise ValueError(f"extent={self.extent}; needed 5 to size={self.size} cells")

    def sequences(self, indices: Iterable[int]) -> np.ndarray:
        """Draw sequences.

        Parameters
        ----------
        indices : iterable of int, length N
            Which sequences, 0 or more.

        Returns
        -------
        array, shape (N, frames, 3, size, size), float32
            Channels in the order of ``CHANNELS``, 0 (black) to 1 (white).
        """
        draws = self._draws(indices)
        corners, looks = self._corners(draws), self._looks(draws)
        canvas = np.zeros((draws.shape[0], self.frames, 3, self.size, self.size), np.float32)
        windows = sliding_window_view(canvas, (self.extent, self.extent), axis=(-2, -1), writeable=True)
        sequence, frame = np.ogrid[: draws.shape[0], : self.frames]
        for i in range(self.objects):
            place = (sequence, frame, slice(None), corners[:, i, :, 0], corners[:, i, :, 1])
            windows[place] = np.maximum(windows[place], looks[:, i, None])
        canvas[:, :, 2] = 1.0 - canvas[:, :, 2]  # the darker of two inverses is the inverse of the brighter
        return canvas

    def tracks(self, indices: Iterable[int]) -> np.ndarray:
        """Row and column of the north-west cell of each object, shape (N, objects, frames, 2), int."""
        return self._corners(self._draws(indices))

    def _draws(self, indices: Iterable[int]) -> np.ndarray:
        """Random numbers from 0 to 1, shape (N, objects, 9)."""
        shape = (self.objects, _DRAWS)
        return np.stack([np.random.default_rng((self.seed, index)).random(shape) for index in indices])

    def _corners(self, draws: np.ndarray) -> np.ndarray:
        """Constant speed, reflected at the walls: in closed form, a triangle wave of period 2."""
        angle = 2.0 * np.pi * draws[..., 2]
        velocity = self.step * np.stack([np.sin(angle), np.cos(angle)], -1)[:, :, None]  # (N, objects, 1, 2)
        way = draws[:, :, None, :2] + velocity * np.arange(self.frames)[:, None]
        return np.rint((1.0 - np.abs(1.0 - way % 2.0)) * (self.size - self.extent)).astype(int)

    def _looks(self, draws: np.ndarray) -> np.ndarray:
        """The objects in their three looks, bright on black, shape (N, objects, 3, extent, extent), float32."""
        half = (self.extent - 1) / 2.0
        y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
        lobes, swing, turn, thickness, slant, stripes = np.moveaxis(draws[..., 3:, None, None].astype(np.float32), 2, 0)
        radius, angle = np.hypot(x, y), np.arctan2(y, x)
        swing = 0.1 + 0.25 * swing
        edge = 0.9 * half * (1.0 + swing * np.cos((2 + np.floor(4 * lobes)) * (angle - 2 * np.pi * turn))) / (1.0 + swing)
        depth = edge - radius  # cells inside the outline
        width = half * (0.12 + 0.1 * thickness)
        stroke = np.clip(width + 0.5 - np.abs(depth - width), 0.0, 1.0)
        wave = np.cos((2.0 + 3.0 * stripes) * (x * np.cos(np.pi * slant) + y * np.sin(np.pi * slant)) * np.pi / half)
        filled = np.clip(depth + 0.5, 0.0, 1.0) * (0.65 + 0.35 * wave)
        return np.stack([stroke, filled, stroke > 0.5], 2, dtype=np.float32)
