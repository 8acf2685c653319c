"""Fields to tokens and back: patch embedding, token grids and their alignment, prediction heads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from xscalemixer.nn.blocks import MLP, FourierEmbedding, require_shape

__all__ = [
    "Alignment",
    "Deconvolution",
    "PatchEmbedding",
    "PredictionHead",
    "TokenGrid",
    "VariableEmbedding",
    "bilinear",
    "pad_field",
    "start_small",
]


@dataclass(frozen=True)
class TokenGrid:
    """Where the tokens of a rectilinear field are.

    Patches are blocks of ``patch`` x ``patch`` cells counted from the north-west edge, after ``offset`` rows and
    columns of padding; the last block is padded too, so any box works.

    Parameters
    ----------
    latitude, longitude : tuple of float
        Cell centers of the field in degrees, north to south and west to east.
    patch : int
        Cells per patch side.
    offset : (int, int)
        Padding rows at the north edge and columns at the west edge.
    periodic : bool
        Longitude wraps around the globe.
    """

    latitude: tuple[float, ...]
    longitude: tuple[float, ...]
    patch: int
    offset: tuple[int, int] = (0, 0)
    periodic: bool = False

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Padding cells (west, east, north, south)."""
        north, west = self.offset
        south = -(len(self.latitude) + north) % self.patch
        east = -(len(self.longitude) + west) % self.patch
        return west, east, north, south

    @property
    def shape(self) -> tuple[int, int]:
        """Token rows and columns."""
        west, east, north, south = self.padding
        rows, columns = len(self.latitude) + north + south, len(self.longitude) + west + east
        return rows // self.patch, columns // self.patch

    def __len__(self) -> int:
        return math.prod(self.shape)

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Latitudes (rows,) and longitudes (columns,) of the token centers, degrees."""
        west, east, north, south = self.padding
        return (
            _extend(self.latitude, north, south).reshape(-1, self.patch).mean(1),
            _extend(self.longitude, west, east).reshape(-1, self.patch).mean(1),
        )

    @property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Latitude edges (rows + 1,) and longitude edges (columns + 1,) of the patches, degrees."""
        west, east, north, south = self.padding
        edges = []
        for centers, before, after in ((self.latitude, north, south), (self.longitude, west, east)):
            extended = _extend(centers, before + 1, after + 1)
            edges.append(((extended[:-1] + extended[1:]) / 2)[:: self.patch])
        return edges[0], edges[1]

    @property
    def centers(self) -> np.ndarray:
        """Latitude and longitude of every token, row by row, shape (N, 2), degrees."""
        lat, lon = self.axes
        return np.stack(np.broadcast_arrays(lat[:, None], lon[None, :]), -1).reshape(-1, 2)


def _extend(centers, before: int, after: int) -> np.ndarray:
    """Continue an axis beyond both ends with its outermost steps."""
    a = np.asarray(centers, dtype="f8")
    head = a[0] - (a[1] - a[0]) * np.arange(before, 0, -1)
    tail = a[-1] + (a[-1] - a[-2]) * np.arange(1, after + 1)
    return np.concatenate([head, a, tail])


def pad_field(x: Tensor, padding: tuple[int, int, int, int], periodic: bool) -> Tensor:
    """Pad (B, C, H, W) by (west, east, north, south): edge values, or the far side where longitude wraps."""
    west, east, north, south = padding
    if west or east:
        x = functional.pad(x, (west, east, 0, 0), mode="circular" if periodic else "replicate")
    if north or south:
        x = functional.pad(x, (0, 0, north, south), mode="replicate")
    return x


class PatchEmbedding(nn.Module):
    """Convolution with kernel = stride = patch: (B, C, H, W) -> (B, N, d)."""

    def __init__(self, channels: int, width: int, grid: TokenGrid):
        super().__init__()
        self.grid = grid
        self.project = nn.Conv2d(channels, width, grid.patch, grid.patch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, d), tokens row by row from the north-west."""
        return self.project(pad_field(x, self.grid.padding, self.grid.periodic)).flatten(2).transpose(1, 2)


class VariableEmbedding(nn.Module):
    """An encoder of its own for each channel: (B, C, H, W) -> (B, N, C * features), the features of a channel side by side.

    Without an activation the sum over channels would be a `PatchEmbedding`; with one, what is told of a variable does not depend
    on the others until something mixes them (as in Met2Net, arXiv 2507.17189).

    Parameters
    ----------
    channels : int
    features : int
        Of each channel.
    hidden : int
        Width of each encoder; as many weights for the patches as a `PatchEmbedding` of that width has.
    grid : TokenGrid
    """

    def __init__(self, channels: int, features: int, hidden: int, grid: TokenGrid):
        super().__init__()
        self.grid = grid
        self.project = nn.Conv2d(channels, channels * hidden, grid.patch, grid.patch, groups=channels)
        self.narrow = nn.Conv2d(channels * hidden, channels * features, 1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, C * features), tokens row by row from the north-west."""
        patches = functional.gelu(self.project(pad_field(x, self.grid.padding, self.grid.periodic)))
        return self.narrow(patches).flatten(2).transpose(1, 2)


class Deconvolution(nn.Module):
    """Tokens to fields by transposed convolutions with kernel 2s and stride s, so that neighboring patches overlap.

    Parameters
    ----------
    widths : tuple of int
        Channels before each stage.
    channels : int
        Channels of the result.
    strides : tuple of int
        Upsampling of each stage; the product must equal the patch size.
    grid : TokenGrid
    even : bool
        Equal tokens give an even field, whatever was learned. Else they give one pattern, repeated patch by patch; where inputs
        are unlike those of training nothing hides it.
    """

    def __init__(self, widths: tuple[int, ...], channels: int, strides: tuple[int, ...], grid: TokenGrid, *, even: bool = False):
        super().__init__()
        self.even = even
        if math.prod(strides) != grid.patch or len(strides) != len(widths):
            raise ValueError(f"strides {strides} and widths {widths} must be as many and multiply to patch {grid.patch}")
        self.grid = grid
        outputs = [*widths[1:], channels]
        self.stages = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 2 * s, s, padding=(s + 1) // 2, output_padding=s % 2)
            for a, b, s in zip(widths, outputs, strides, strict=True)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, widths[0]) -> (B, channels, H, W)."""
        x = tokens.transpose(1, 2).unflatten(2, self.grid.shape)
        # one token around the edge gives border cells the same overlap as inner ones
        x = pad_field(x, (1, 1, 1, 1), self.grid.periodic)
        for i, stage in enumerate(self.stages):
            x = self._expand(cast("nn.ConvTranspose2d", stage), functional.gelu(x) if i else x)
        west, _, north, _ = self.grid.padding
        top, left = north + self.grid.patch, west + self.grid.patch
        return x[..., top : top + len(self.grid.latitude), left : left + len(self.grid.longitude)]

    def _expand(self, stage: nn.ConvTranspose2d, x: Tensor) -> Tensor:
        if not self.even:
            return stage(x)
        stride = stage.stride[0]
        quarters = stage.weight.unflatten(3, (2, stride)).unflatten(2, (2, stride))  # (in, out, 2, s, 2, s)
        response = quarters.sum((2, 4), keepdim=True)  # to equal tokens, at each place in a patch
        even = quarters - (response - response.mean((3, 5), keepdim=True)) / 4
        kernel = even.flatten(4, 5).flatten(2, 3)
        shape = cast("tuple[int, int]", stage.padding), cast("tuple[int, int]", stage.output_padding)
        return functional.conv_transpose2d(x, kernel, stage.bias, stride, *shape)


class PredictionHead(nn.Module):
    """Tokens to the field of one lead time, conditioned on the lead by adaptive layer norm (eqs 3-4).

    Parameters
    ----------
    width : int
        Width of the incoming tokens, 2d when coupled.
    widths, strides : tuple of int
        Stages of the deconvolution.
    channels : int
    grid : TokenGrid
    detail : int
        If positive, the deconvolution ends in that many features and two 3x3 convolutions turn them, with the local
        fields at full resolution, into the result. 0 is the head of the paper.
    local : int
        Number of local fields (last hour, statics, forcing at the lead).
    even : bool
        See `Deconvolution`.
    """

    def __init__(self, width, widths, strides, channels, grid: TokenGrid, *, detail: int = 0, local: int = 0, even: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.narrow = nn.Linear(width, widths[0])
        self.deconvolution = Deconvolution(widths, detail or channels, strides, grid, even=even)
        self.refine = (
            nn.Sequential(
                _conv3x3(detail + local, detail), nn.GELU(), _conv3x3(detail, detail), nn.GELU(), nn.Conv2d(detail, channels, 1)
            )
            if detail
            else None
        )

    def forward(self, tokens: Tensor, scale: Tensor, shift: Tensor, local: Tensor | None = None) -> Tensor:
        """(B, N, width), scale and shift (width,) or (B, 1, width), local (B, L, H, W) -> (B, C, H, W)."""
        x = self.deconvolution(self.narrow((1.0 + scale) * self.norm(tokens) + shift))
        if self.refine is None:
            return x
        first, *others = self.refine
        first = cast("nn.Conv2d", first)  # a Sequential does not know the kind of its layers
        x = _on_both(first, x, require_shape("local fields", local, (None,) * 4))
        for layer in others:
            x = layer(x)
        return x

    @property
    def last(self) -> nn.Module:
        """The layer that makes the result."""
        return self.deconvolution.stages[-1] if self.refine is None else self.refine[-1]


def start_small(layer: nn.Module) -> None:
    """Scale a last layer down, so that training starts near persistence."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.mul_(0.1 if name == "weight" else 0.0)


def _on_both(convolution: nn.Conv2d, x: Tensor, local: Tensor) -> Tensor:
    """A convolution on the channels of both; in two parts, so that no gradient is computed for local fields that need none."""
    ours, theirs = convolution.weight.split([x.shape[1], local.shape[1]], 1)
    pad = lambda field: functional.pad(field, (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(pad(x), ours, convolution.bias) + functional.conv2d(pad(local), theirs)


def _conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, padding_mode="replicate")


class LeadTimeModulation(nn.Module):
    """Scale and shift of the adaptive layer norm from the lead time, shared by all heads (eq. 3)."""

    def __init__(self, width: int, features: int = 64, hidden: int = 256):
        super().__init__()
        self.embedding = FourierEmbedding(features)
        self.mlp = MLP(features, hidden, 2 * width)

    def forward(self, lead: Tensor) -> tuple[Tensor, Tensor]:
        """Hours (...) -> scale (..., width) and shift (..., width)."""
        return self.mlp(self.embedding(lead)).chunk(2, dim=-1)


class Alignment(nn.Module):
    """Matches regional tokens with global ones through the coordinates of their centers.

    Where the patches nest one to one (same size, edges within a tenth of a patch) the match is an index. Otherwise
    global tokens are interpolated bilinearly to regional centers and regional tokens are averaged into the global
    token that contains them.

    Attributes
    ----------
    nested : bool
    box : Tensor of int, shape (N_box,)
        Global tokens that contain at least one regional token.
    """

    box: Tensor
    member: Tensor
    share: Tensor
    index: Tensor
    weight: Tensor

    def __init__(self, outer: TokenGrid, inner: TokenGrid):
        super().__init__()
        rows, columns = _holding_rows_and_columns(outer, inner)
        holder = self.holders(outer, inner)
        box, member = np.unique(holder, return_inverse=True)
        self.nested = _nests(outer, inner, rows, columns)
        if self.nested:
            index, weight = holder[:, None], np.ones((holder.size, 1))
        else:
            index, weight = bilinear(outer, *inner.axes)
        self.register_buffer("box", torch.as_tensor(box), persistent=False)
        self.register_buffer("member", torch.as_tensor(member), persistent=False)
        self.register_buffer("share", torch.as_tensor(1.0 / np.bincount(member)[:, None], dtype=torch.float32), persistent=False)
        self.register_buffer("index", torch.as_tensor(index), persistent=False)
        self.register_buffer("weight", torch.as_tensor(weight, dtype=torch.float32), persistent=False)

    @staticmethod
    def holders(outer: TokenGrid, inner: TokenGrid) -> np.ndarray:
        """Index of the global token that contains each regional one, shape (N_r,).

        Raises
        ------
        ValueError
            If the region lies partly outside the driver.
        """
        rows, columns = _holding_rows_and_columns(outer, inner)
        return (rows[:, None] * outer.shape[1] + columns[None, :]).reshape(-1)

    def to_inner(self, outer_tokens: Tensor) -> Tensor:
        """Global tokens at the regional centers: (B, N_g, d) -> (B, N_r, d)."""
        if self.nested:
            return outer_tokens[:, self.index[:, 0]]
        return (outer_tokens[:, self.index] * self.weight[..., None]).sum(2)

    def to_box(self, inner_tokens: Tensor) -> Tensor:
        """Regional tokens averaged in the global tokens of the box: (B, N_r, d) -> (B, N_box, d)."""
        shape = (inner_tokens.shape[0], self.box.numel(), inner_tokens.shape[2])
        total = inner_tokens.new_zeros(shape).index_add(1, self.member, inner_tokens)
        return total * self.share


def _holding_rows_and_columns(outer: TokenGrid, inner: TokenGrid) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the outer token that contains each inner row and column.

    Patches that are mostly padding count as where their outermost cell is: their center may lie outside the driver.
    """
    (lat_edges, lon_edges), (lat, lon) = outer.edges, inner.axes
    lat = np.clip(lat, inner.latitude[-1], inner.latitude[0])
    lon = np.clip(lon, inner.longitude[0], inner.longitude[-1])
    lon = lon_edges[0] + (lon - lon_edges[0]) % 360.0 if outer.periodic else _in_turn_of(lon_edges, lon)
    rows, columns = _containing(lat_edges, lat), _containing(lon_edges, lon)
    if (rows < 0).any() or (columns < 0).any():
        raise ValueError("the region lies partly outside the driver's domain")
    return rows, columns


def _containing(edges: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Index of the cell that contains each value; -1 outside. Edges may descend."""
    sign, tolerance = np.sign(edges[-1] - edges[0]), 1e-6
    edges, values = sign * edges, sign * values
    index = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, edges.size - 2)
    return np.where((values < edges[0] - tolerance) | (values > edges[-1] + tolerance), -1, index)


def _in_turn_of(axis: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Longitudes moved by whole turns to within 180 degrees of the middle of an axis."""
    return longitude + 360.0 * np.round(((axis[0] + axis[-1]) / 2 - longitude) / 360.0)


def _nests(outer: TokenGrid, inner: TokenGrid, rows: np.ndarray, columns: np.ndarray) -> bool:
    """True when each regional patch covers one global patch to within a tenth of its side."""
    for axis, holders in enumerate((rows, columns)):
        if np.unique(holders).size != holders.size:
            return False
        a, b = outer.edges[axis], inner.edges[axis]
        size = np.abs(np.diff(a))[holders]
        for side in (0, 1):
            distance = np.abs(a[holders + side] - b[np.arange(holders.size) + side])
            distance = np.minimum(distance, np.abs(360.0 - distance)) if axis else distance
            if (distance > 0.1 * size).any():
                return False
    return True


def bilinear(outer: TokenGrid, lat: np.ndarray, lon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights (N_r, 4) of the outer tokens around each point of lat x lon; edges hold their value."""
    if not outer.periodic:
        lon = _in_turn_of(outer.axes[1], np.asarray(lon))
    r0, r1, fr = _neighbors(outer.axes[0], lat, None)
    c0, c1, fc = _neighbors(outer.axes[1], lon, 360.0 if outer.periodic else None)
    width = outer.shape[1]
    index = np.stack([r[:, None] * width + c[None, :] for r in (r0, r1) for c in (c0, c1)], -1)
    weight = np.stack([a[:, None] * b[None, :] for a in (1 - fr, fr) for b in (1 - fc, fc)], -1)
    return index.reshape(-1, 4), weight.reshape(-1, 4)


def _neighbors(axis: np.ndarray, values: np.ndarray, period: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper neighbor and the fraction between them, on a monotonic axis that may be periodic."""
    if axis.size == 1:
        zeros = np.zeros(values.size, dtype=int)
        return zeros, zeros, np.zeros(values.size)
    if period:
        axis = np.append(axis, axis[0] + period)
        values = axis[0] + (values - axis[0]) % period
    sign = np.sign(axis[-1] - axis[0])
    low = np.clip(np.searchsorted(sign * axis, sign * values, side="right") - 1, 0, axis.size - 2)
    fraction = np.clip((values - axis[low]) / (axis[low + 1] - axis[low]), 0.0, 1.0)
    high = low + 1
    return low, (high % (axis.size - 1) if period else high), fraction
