"""Patches of large fields: cutting them out for training, and networks on domains of any size in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xscalemixer.errors import InputError
from xscalemixer.nn.draws import uniform
from xscalemixer.nn.settings import Settings

__all__ = ["Crops", "Tiling", "TilingConfig", "autocorrelation", "random_crops", "suggest_patch"]


class Crops(NamedTuple):
    """Where patches lie in a batch of fields.

    Attributes
    ----------
    sample : tuple of int, length P
        Index of the field each patch belongs to.
    corner : tuple of (int, int), length P
        First row and column of each patch.
    size : (int, int)
        Rows and columns of every patch.
    """

    sample: tuple[int, ...]
    corner: tuple[tuple[int, int], ...]
    size: tuple[int, int]

    @classmethod
    def whole(cls, fields: Tensor) -> Crops:
        """One patch per field (B, C, H, W), the field itself."""
        batch, _, height, width = fields.shape
        return cls(tuple(range(batch)), ((0, 0),) * batch, (height, width))

    def cut(self, fields: Tensor) -> Tensor:
        """(B, C, H, W) -> (P, C, h, w)."""
        if self == Crops.whole(fields):
            return fields
        patches = [fields[self._index(i)] for i in range(len(self.sample))]
        return torch.stack(patches) if len(patches) > 1 else patches[0][None]  # a view where nothing is put together

    def add(self, patches: Tensor, total: Tensor) -> None:
        """Add the patches (P, C, h, w) to their places in ``total`` (B, C, H, W)."""
        for i, patch in enumerate(patches):
            total[self._index(i)] += patch

    def _index(self, i: int) -> tuple:
        (top, left), (height, width) = self.corner[i], self.size
        return self.sample[i], slice(None), slice(top, top + height), slice(left, left + width)


def random_crops(fields: Tensor, size: tuple[int, int], count: int, generators: Sequence[torch.Generator] | None = None) -> Crops:
    """``count`` patches per field (B, C, H, W) at random places.

    The middle of a patch is uniform over the field and the patch is then moved inside. Cells at the edge are seen half as
    often as others, where uniform corners would hardly ever show them. For ``generators``, one per field, see
    `nn.draws.uniform`.

    Raises
    ------
    InputError
        If the patch is larger than the field.
    """
    (batch, _, height, width), (rows, columns) = fields.shape, size
    if rows > height or columns > width:
        raise InputError(
            "no patches can be cut", [f"patch {size} is larger than the field {(height, width)}; use a smaller patch"]
        )
    place = uniform(batch * count, 2, generators=generators)
    middle = place * torch.tensor([height, width])
    first = (middle - torch.tensor(size) / 2).round().long()
    corner = first.clamp(torch.tensor(0), torch.tensor([height - rows, width - columns]))
    samples = tuple(i for i in range(batch) for _ in range(count))
    return Crops(samples, tuple(map(tuple, corner.tolist())), (rows, columns))


# ------------------------------------------------------------------------------------------------------ whole domains


@dataclass(frozen=True, kw_only=True)
class TilingConfig(Settings):
    """How a domain is covered by patches.

    Attributes
    ----------
    patch : (int, int), optional
        Rows and columns of a patch, at best multiples of `UNetConfig.multiple`; cut to the domain where that is smaller.
        None: the whole domain.
    overlap : int
        Least cells that neighboring patches share.
    margin : int
        Cells at an inner border of a patch whose result is discarded.
    at_once : int
        Patches per network call; with 1 a result does not depend on the rest of its batch, not even by rounding.
    """

    patch: tuple[int, int] | None = None
    overlap: int = 32
    margin: int = 4
    at_once: int = 1

    def _problems(self):
        if self.patch is not None and (not isinstance(self.patch, tuple) or len(self.patch) != 2 or min(self.patch) < 1):
            yield f"patch={self.patch}; needed (rows, columns), both positive, or None"
        elif self.patch is not None and not 0 <= self.overlap < min(self.patch):
            yield f"overlap={self.overlap}; needed 0 <= overlap < {min(self.patch)}, the shorter side of the patch"
        if not 0 <= 2 * self.margin <= self.overlap:
            yield f"margin={self.margin}; needed 0 <= 2 margin <= overlap={self.overlap}, or cells would have no result"
        if self.at_once < 1:
            yield f"at_once={self.at_once}; needed 1 or more"


class Tiling:
    """Overlapping patches that cover a domain, with smooth weights that add up to one in every cell.

    Parameters
    ----------
    config : TilingConfig
    shape : (int, int)
        (H, W) of the domain.
    """

    def __init__(self, config: TilingConfig, shape: tuple[int, int]):
        (height, width), (rows, columns) = shape, config.patch or shape
        self.config, self.shape, self.size = config, (height, width), (min(rows, height), min(columns, width))
        axes = [_positions(n, p, config.overlap) for n, p in zip(shape, self.size, strict=True)]
        # weights of a patch are the product of its weights along both axes
        self._weights = [_weights(a, n, p, config.margin) for a, n, p in zip(axes, shape, self.size, strict=True)]
        self.corners = tuple((top, left) for top in axes[0] for left in axes[1])

    def __len__(self) -> int:
        return len(self.corners)

    def batches(self, batch: int) -> Iterator[Crops]:
        """The patches of ``batch`` fields, ``at_once`` at a time."""
        pairs = [(sample, corner) for sample in range(batch) for corner in self.corners]
        for i in range(0, len(pairs), self.config.at_once):
            samples, corners = zip(*pairs[i : i + self.config.at_once], strict=True)
            yield Crops(samples, corners, self.size)

    def weight(self, corner: tuple[int, int], like: Tensor) -> Tensor:
        """Weights (h, w) of the patch at ``corner``, in the dtype and on the device of ``like``."""
        rows, columns = (
            torch.as_tensor(w[c], dtype=like.dtype, device=like.device) for w, c in zip(self._weights, corner, strict=True)
        )
        return rows[:, None] * columns

    def fuse(self, function: Callable[[Crops], Tensor], total: Tensor) -> Tensor:
        """Weighted sum of what ``function`` gives for each batch of patches, (P, C, h, w), added to ``total`` (B, C, H, W)."""
        for crops in self.batches(total.shape[0]):
            patches = function(crops)
            weights = torch.stack([self.weight(corner, patches) for corner in crops.corner])
            crops.add(patches * weights[:, None], total)
        return total


def _positions(cells: int, patch: int, overlap: int) -> list[int]:
    """First cells of the fewest evenly spread patches that share at least ``overlap`` cells."""
    if patch == cells:
        return [0]
    count = 1 + math.ceil((cells - patch) / (patch - overlap))
    return np.linspace(0, cells - patch, count).round().astype(int).tolist()


def _weights(positions: list[int], cells: int, patch: int, margin: int) -> dict[int, np.ndarray]:
    """Weights (patch,) of the patches along one axis, by position; they add up to one in every cell."""
    raw = {
        here: _ramp(patch, before + patch - here, margin) * _ramp(patch, here + patch - after, margin)[::-1]
        for before, here, after in zip([-patch, *positions], positions, [*positions[1:], cells], strict=False)
    }
    total = np.zeros(cells)
    for here, weight in raw.items():
        total[here : here + patch] += weight
    return {here: weight / total[here : here + patch] for here, weight in raw.items()}


def _ramp(patch: int, overlap: int, margin: int) -> np.ndarray:
    """0 in the margin, a quarter of a sine squared over the rest of the overlap, then 1; all 1 without overlap."""
    if overlap <= 0:
        return np.ones(patch)
    distance = (np.arange(patch) + 0.5 - margin) / max(overlap - 2 * margin, 1e-9)
    return np.sin(0.5 * np.pi * distance.clip(0.0, 1.0)) ** 2


# ---------------------------------------------------------------------------------------------------------- patch size


def autocorrelation(fields: Tensor) -> Tensor:
    """Autocorrelation by distance, averaged over directions: (B, C, H, W) -> (C, R), distances 0 to min(H, W) / 2 cells.

    The mean of each field is removed; sums run over the pairs that lie inside the field (Wiener-Khinchin with zeros
    around it, divided by the number of pairs).
    """
    height, width = fields.shape[2:]
    padded = (2 * height, 2 * width)
    power = lambda x: torch.fft.irfft2(torch.fft.rfft2(x, s=padded).abs().square(), s=padded)
    pairs = power(fields.new_ones(height, width, dtype=torch.float64)).round().clamp(min=1.0)
    lags = [torch.fft.fftfreq(n, 1.0 / n, device=fields.device) for n in padded]
    distance = torch.hypot(lags[0][:, None], lags[1]).round().long()
    reach = min(height, width) // 2 + 1
    inside = distance < reach
    distance, count = distance[inside], torch.bincount(distance[inside], minlength=reach)

    def by_distance(channel: Tensor) -> Tensor:  # (B, H, W) -> (R,)
        centered = (channel - channel.mean((1, 2), keepdim=True)).double()
        covariance = (power(centered).mean(0) / pairs)[inside]
        return covariance.new_zeros(reach).index_add(0, distance, covariance) / count

    # one by one: in double precision and with zeros around it a channel takes eight times its memory
    mean = torch.stack([by_distance(channel) for channel in fields.unbind(1)])
    return mean / mean[:, :1]


def suggest_patch(residual: Tensor, *, multiple: int = 16, threshold: float = 0.05) -> int:
    """Side of a patch beyond which no channel of the residual remembers: where its autocorrelation falls to ``threshold``.

    Parameters
    ----------
    residual : Tensor, shape (B, C, H, W)
        Truth less regression, any units; more samples make the estimate steadier.
    multiple : int
        The result is a multiple of this; see `UNetConfig.multiple`.
    threshold : float
        Correlation that counts as none.

    Raises
    ------
    InputError
        If a channel is constant or correlated over half the domain: then only the whole domain will do.
    """
    correlation = autocorrelation(residual)
    low = correlation < threshold
    constant, far = correlation[:, 0].isnan(), ~low.any(1)
    problems = [f"channel {i} is constant; leave it out" for i in constant.nonzero().flatten().tolist()]
    problems += [
        f"channel {i} is still correlated ({correlation[i, -1]:.2f}) over {correlation.shape[1] - 1} cells, half the domain; "
        "use the whole domain as one patch"
        for i in (far & ~constant).nonzero().flatten().tolist()
    ]
    if problems:
        raise InputError("no patch size can be suggested", problems)
    reach = int(low.int().argmax(1).max())
    return math.ceil(reach / multiple) * multiple
