"""Regions driven by a finished global step instead of an exchange of tokens: the baselines of the paper.

coupling        regional network                                     global fields it gets
-------------   --------------------------------------------------   ------------------------------------------------
"lam"           RegionalModel, as a limited-area model               at t and t+6, interpolated to its cells
"nested"        RegionalModel, as the neural nested grid             at t+6, interpolated to its cells, and the same of
                (arXiv 2502.00338)                                   a crop with a halo, squeezed onto its cells
"downscaled"    Downscaler (Swin layers, arXiv 2103.14030)           at t and t+6; it has no regional history

Shapes as in `scalemixer`. The global step comes first and hears nothing of the region.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from xscalemixer.nn.blocks import HOURS, MLP, Attention, require_shape
from xscalemixer.nn.patch import PatchEmbedding, TokenGrid, bilinear, pad_field

__all__ = ["DRIVEN", "Downscaler", "Driver", "DriverTokens"]

DRIVEN = ("lam", "nested", "downscaled")
_HALO = 2  # global cells around the box in the enlarged crop of "nested"


class Driver(nn.Module):
    """Global fields on the cells of the region.

    Attributes
    ----------
    channels : int
        Fields it makes: twice the global channels.
    """

    target: Tensor
    source: Tensor
    scale: Tensor
    offset: Tensor
    frame: Tensor

    def __init__(self, config):
        super().__init__()
        outer, inner = config.outer, config.inner
        self.kind, self.shape, self.channels = config.coupling, inner.shape, 2 * outer.channels
        self.inner_channels = inner.channels
        self.to_cells = _ToCells(outer, inner)
        self.to_halo = _ToCells(outer, inner, halo=_HALO) if self.kind == "nested" else None

        rows = list(zip(*config.shared, strict=True)) or [()] * 4
        for name, row in zip(("target", "source"), rows, strict=False):
            self.register_buffer(name, torch.tensor(row, dtype=torch.long), persistent=False)
        for name, row in zip(("scale", "offset"), rows[2:], strict=True):
            self.register_buffer(name, torch.tensor(row, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        frame = torch.ones(inner.channels, *inner.shape, dtype=torch.bool)
        frame[:, config.frame : inner.shape[0] - config.frame, config.frame : inner.shape[1] - config.frame] = False
        shared = torch.zeros(inner.channels, 1, 1, dtype=torch.bool)
        shared[self.target] = True
        self.register_buffer("frame", frame & shared, persistent=False)

    def forward(self, now: Tensor, ahead: Tensor) -> Tensor:
        """Global states at t and t+6 (B, C_g, H, W) -> (B, 2 C_g, h, w)."""
        other = self.to_cells(now) if self.to_halo is None else self.to_halo(ahead)
        return torch.cat([other, self.to_cells(ahead)], 1)

    def guess(self, fields: Tensor) -> Tensor:
        """Result of `forward` (not of "nested") to hours t+1..t+6, linear in time, normalized as the region: (B, 6, C, h, w).

        Channels that the driver lacks are 0, their mean.
        """
        now, ahead = fields.chunk(2, 1)
        share = torch.arange(1, HOURS + 1, device=fields.device, dtype=fields.dtype)[None, :, None, None, None] / HOURS
        between = torch.lerp(now[:, None, self.source], ahead[:, None, self.source], share) * self.scale + self.offset
        return fields.new_zeros(fields.shape[0], HOURS, self.inner_channels, *self.shape).index_copy(2, self.target, between)

    def impose(self, inner: Tensor, guess: Tensor) -> Tensor:
        """Overwrite the frame of the shared channels: (B, 6, C, h, w), (B, 6, C, h, w) -> the same."""
        return torch.where(self.frame, guess, inner)


class DriverTokens(nn.Module):
    """Global fields at t and t+6 on the cells of the region, as regional tokens.

    They are narrowed to a few features before they are interpolated: both are linear, and the global grid has fewer cells.
    """

    def __init__(self, config):
        super().__init__()
        outer, inner = config.outer, config.inner
        self.narrow = nn.Conv2d(2 * outer.channels, config.driver_width, 1)
        self.embedding = PatchEmbedding(config.driver_width, config.width, inner.tokens)
        self.to_cells = _ToCells(outer, inner)

    def forward(self, now: Tensor, ahead: Tensor) -> Tensor:
        """Global states at t and t+6 (B, C_g, H, W) -> (B, N_r, d)."""
        return self.embedding(self.to_cells(self.narrow(torch.cat([now, ahead], 1))))


class _ToCells(nn.Module):
    """Global fields on the cells of a region, bilinear; with a halo, those of a wider box squeezed onto them.

    The halo is in global cells at every edge.
    """

    index: Tensor
    weight: Tensor

    def __init__(self, outer, inner, halo: float = 0):
        super().__init__()
        cells = TokenGrid(outer.latitude, outer.longitude, 1, periodic=outer.periodic)
        steps = [np.abs(np.diff(axis)).mean() for axis in cells.axes]
        axes = [
            _enlarged(np.array(axis), halo * step) for axis, step in zip((inner.latitude, inner.longitude), steps, strict=True)
        ]
        index, weight = bilinear(cells, *axes)
        self.shape = inner.shape
        self.register_buffer("index", torch.as_tensor(index), persistent=False)
        self.register_buffer("weight", torch.as_tensor(weight, dtype=torch.float32), persistent=False)

    def forward(self, fields: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, h, w)."""
        return (fields.flatten(2)[:, :, self.index] * self.weight).sum(-1).unflatten(-1, self.shape)


def _enlarged(axis: np.ndarray, halo: float) -> np.ndarray:
    """An axis stretched by ``halo`` degrees at both ends."""
    middle, half = (axis[0] + axis[-1]) / 2, (axis[-1] - axis[0]) / 2
    return middle + (axis - middle) * (1 + halo / abs(half))


class Downscaler(nn.Module):
    """Global fields at t and t+6 to regional hours t+1..t+6, corrected by Swin layers.

    Where a regional channel is in the driver too, the result is the interpolated one (linear in time) plus a correction.
    """

    statics: Tensor

    def __init__(self, config):
        super().__init__()
        branch, width = config.inner, config.width
        self.config, self.sunlit_channel = branch, config.sunlit_channel
        self.grid = branch.tokens
        self.register_buffer("statics", torch.zeros(branch.statics, *branch.shape))
        self.embedding = PatchEmbedding(2 * config.outer.channels + branch.statics + branch.forcings, width, self.grid)
        self.calendar = MLP(4, width, width)
        self.position = nn.Parameter(torch.empty(len(self.grid), width).normal_(std=0.02))
        self.layers = nn.ModuleList(
            _WindowLayer(width, config.heads, config.mlp_ratio, self.grid.shape, shifted=bool(i % 2)) for i in range(branch.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, HOURS * branch.channels * self.grid.patch**2)
        with torch.no_grad():
            self.head.weight.mul_(0.1), self.head.bias.zero_()

    def forward(self, driver: Tensor, guess: Tensor, forcing: Tensor | None, calendar: Tensor) -> Tensor:
        """Driver (B, 2 C_g, h, w), guess (B, 6, C, h, w), insolation t-5..t+6 (B, F, h, w), calendar (B, 4) -> like guess."""
        batch = driver.shape[0]
        fields = [driver, self.statics.expand(batch, -1, -1, -1)]
        if self.config.forcings:
            fields.append(require_shape("regional forcing", forcing, (batch, self.config.forcings, *self.config.shape)))
        tokens = self.embedding(torch.cat(fields, 1)) + self.position + self.calendar(calendar)[:, None]
        for layer in self.layers:
            tokens = layer(tokens)
        change = self._to_cells(self.head(self.norm(tokens)))
        result = guess + change
        if self.sunlit_channel is not None:
            c = self.sunlit_channel
            insolation = require_shape("regional forcing", forcing, (batch, 2 * HOURS, None, None))[:, HOURS:]
            sunlit = insolation * (0.5 + change[:, :, c])
            result = torch.cat([result[:, :, :c], sunlit[:, :, None], result[:, :, c + 1 :]], 2)
        return result

    def _to_cells(self, tokens: Tensor) -> Tensor:
        """(B, N, 6 C p^2) -> (B, 6, C, h, w)."""
        x = functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, self.grid.shape), self.grid.patch)
        west, _, north, _ = self.grid.padding
        rows, columns = self.config.shape
        return x[..., north : north + rows, west : west + columns].unflatten(1, (HOURS, self.config.channels))


class _WindowLayer(nn.Module):
    """Transformer layer whose attention stays within windows of 8 x 8 tokens; every second layer shifts them by half."""

    window = 8

    def __init__(self, width: int, heads: int, mlp_ratio: float, shape: tuple[int, int], shifted: bool):
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, heads), MLP(width, int(width * mlp_ratio), width)
        self.shape = shape
        # padding instead of the cyclic shift of the paper: a region has edges, nothing wraps
        before = self.window // 2 if shifted else 0
        south, east = (-(size + before) % self.window for size in shape)
        self.padding = (before, east, before, south)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, d) -> (B, N, d)."""
        h = self._cut(self.norm_attention(x))
        x = x + self._join(self.attention(h, h), x.shape[0])
        return x + self.mlp(self.norm_mlp(x))

    def _cut(self, tokens: Tensor) -> Tensor:
        """(B, N, d) -> (B windows, 64, d); edge tokens are repeated beyond the edge."""
        field = pad_field(tokens.transpose(1, 2).unflatten(2, self.shape), self.padding, periodic=False)
        blocks = field.unflatten(3, (-1, self.window)).unflatten(2, (-1, self.window))  # (B, d, rows, 8, columns, 8)
        return blocks.permute(0, 2, 4, 3, 5, 1).flatten(0, 2).flatten(1, 2)

    def _join(self, windows: Tensor, batch: int) -> Tensor:
        """Inverse of `_cut`."""
        west, east, north, south = self.padding
        rows, columns = (self.shape[0] + north + south) // self.window, (self.shape[1] + west + east) // self.window
        blocks = windows.unflatten(1, (self.window, self.window)).unflatten(0, (batch, rows, columns))
        field = blocks.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        field = field[..., north : north + self.shape[0], west : west + self.shape[1]]
        return field.flatten(2).transpose(1, 2)
