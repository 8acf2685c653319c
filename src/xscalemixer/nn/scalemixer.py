"""ScaleMixer: a global and a regional transformer that exchange information at key positions (arXiv 2603.28173).

Paper                                   here
-------------------------------------   -------------------------------------------------------------
sec. 3.1  global backbone (ViT)         GlobalModel: embed, groups of layers, decode
sec. 3.2  regional backbone             RegionalModel: embed, groups of layers, decode (six heads)
eqs 3-4   lead-time conditioned heads   patch.PredictionHead, patch.LeadTimeModulation
eqs 5-6   importance, top K, gate       KeyPositionSampler
eqs 7-8   global-to-position attention  ScaleMixer.look
eq. 9     refinement at the positions   ScaleMixer.refine
eqs 10-11 position-to-regional          ScaleMixer.inform
eqs 12-13 feedback                      ScaleMixer.feed_back
eq. 2     one coupled step of 6 hours   CoupledModel
eqs 14-15 losses                        GlobalModel.loss, CoupledModel.loss
baselines LAM, nested grid, downscaling driving.Driver, driving.Downscaler

Shapes: B batch, C channels, H x W cells, N tokens, d width, K keys, g global (outer), r regional (inner).
All fields are normalized; a step takes the global state at t and the regional hours t-5..t to t+6 and t+1..t+6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from xscalemixer.nn.blocks import HOURS, MLP, Attention, Group, TransformerLayer, require_shape
from xscalemixer.nn.draws import uniform
from xscalemixer.nn.driving import DRIVEN, Downscaler, Driver, DriverTokens
from xscalemixer.nn.patch import (
    Alignment,
    Deconvolution,
    LeadTimeModulation,
    PatchEmbedding,
    PredictionHead,
    TokenGrid,
    VariableEmbedding,
    start_small,
)

__all__ = [
    "BackboneConfig",
    "CoupledModel",
    "GlobalModel",
    "KeyPositionSampler",
    "Keys",
    "RegionalModel",
    "SamplerConfig",
    "ScaleMixer",
    "ScaleMixerConfig",
    "Step",
    "Tower",
    "with_fitting_keys",
]

# ---------------------------------------------------------------------------------------------------- configuration


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """One branch: its fields, its tokens, its depth.

    Attributes
    ----------
    latitude, longitude : tuple of float
        Cell centers in degrees, north to south and west to east.
    periodic : bool
        Longitude wraps around the globe.
    channels, statics, forcings : int
        Predicted channels, constant fields, and known future fields (insolation) per sample.
    patch : int
        Cells per patch side.
    offset : (int, int)
        Padding rows in the north and columns in the west, to make patches nest.
    depth : int
        Transformer layers.
    drop_path : float
        Stochastic depth of the last layer; it grows linearly from 0.
    head_widths, head_strides : tuple of int
        Stages of the deconvolution; strides multiply to ``patch``.
    """

    latitude: tuple[float, ...]
    longitude: tuple[float, ...]
    channels: int
    patch: int
    depth: int
    head_widths: tuple[int, ...]
    head_strides: tuple[int, ...]
    statics: int = 0
    forcings: int = 0
    periodic: bool = False
    offset: tuple[int, int] = (0, 0)
    drop_path: float = 0.1

    def __post_init__(self):
        for name in ("latitude", "longitude", "head_widths", "head_strides", "offset"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return len(self.latitude), len(self.longitude)

    @property
    def tokens(self) -> TokenGrid:
        """The token grid."""
        return TokenGrid(self.latitude, self.longitude, self.patch, self.offset, self.periodic)


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How key positions are chosen (eqs 5-6).

    Attributes
    ----------
    keys : int
        K, number of key positions.
    mode : "adaptive", "random" or "fixed"
        Learned top K, or the paper's ablations A (random) and B (uniform grid).
    gate : "tanh", "softmax" or "none"
        ``cap * tanh(N S / cap) * LN(Z)``, the literal ``S * Z``, or ``Z``.
    cap : float
        Largest gate of the "tanh" form.
    halo : int or None
        Keys stay within the box plus this many global patches; None: anywhere.
    shift : float
        Largest move of a key (delta in eq. 8), in global patches.
    layers : int
        3x3 convolutions of the importance network.
    """

    keys: int = 16
    mode: Literal["adaptive", "random", "fixed"] = "adaptive"
    gate: Literal["tanh", "softmax", "none"] = "tanh"
    cap: float = 10.0
    halo: int | None = None
    shift: float = 2.0
    layers: int = 2

    def __post_init__(self):
        _choice("mode", self.mode, ("adaptive", "random", "fixed"))
        _choice("gate", self.gate, ("tanh", "softmax", "none"))


@dataclass(frozen=True, kw_only=True)
class ScaleMixerConfig:
    """The coupled network.

    Attributes
    ----------
    outer, inner : BackboneConfig
        Global and regional branch.
    sampler : SamplerConfig
    width, heads, mlp_ratio : int, int, float
        Token width d, attention heads, hidden width of the MLPs over d.
    blocks : int
        Coupling blocks; both depths must be multiples of it.
    coupling : "two_way", "one_way", "none", "lam", "nested" or "downscaled"
        Full exchange, no feedback (ablation C), no exchange at all (ablation D), or a baseline of `nn.driving`.
    feedback : "residual" or "replace"
        Eq. 13 as ``Z + D`` (zero at the start of training) or literally ``D``.
    output : "residual" or "direct"
        Heads predict the change since the last input, or the field itself.
    positions : "learned" or "fourier"
        Learned per token, or a function of latitude and longitude that can move to another box.
    detail : int
        Features of the full-resolution refinement in the regional heads; 0 as in the paper.
    even : bool
        Equal regional tokens give an even field, see `nn.patch.Deconvolution`; not so in the paper.
    variable_width : int
        Features of each regional variable at an hour, from an encoder of its own; about ``width`` over the number of variables
        keeps the network as large as it is. 0: one embedding of all variables, as in the paper.
    driver_width : int
        Features of the global fields at t and t + 6 h that the regional heads see on their cells, beside the tokens; 0 as in
        the paper. Only where tokens are exchanged: other couplings have the fields, or hear nothing.
    shared : tuple of (int, int, float, float)
        For "lam" and "downscaled": regional channel, global channel that is the same variable, and scale and offset from
        the normalized values of the second to those of the first.
    frame : int
        For "lam": cells at the edge of the region where the shared channels are overwritten with the driver.
    sunlit_channel : int or None
        Regional channel predicted as insolation times a transmissivity, so that it is zero at night.
    """

    outer: BackboneConfig
    inner: BackboneConfig
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    width: int
    heads: int
    mlp_ratio: float = 4.0
    blocks: int = 4
    coupling: Literal["two_way", "one_way", "none", "lam", "nested", "downscaled"] = "two_way"
    feedback: Literal["residual", "replace"] = "residual"
    output: Literal["residual", "direct"] = "residual"
    positions: Literal["learned", "fourier"] = "learned"
    detail: int = 0
    even: bool = False
    variable_width: int = 0
    driver_width: int = 0
    shared: tuple[tuple[int, int, float, float], ...] = ()
    frame: int = 0
    sunlit_channel: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "shared", tuple(tuple(row) for row in self.shared))
        _choice("coupling", self.coupling, ("two_way", "one_way", "none", *DRIVEN))
        _choice("feedback", self.feedback, ("residual", "replace"))
        _choice("output", self.output, ("residual", "direct"))
        _choice("positions", self.positions, ("learned", "fourier"))
        if self.frame and self.coupling != "lam":
            raise ValueError(f"frame={self.frame} needs coupling='lam'; found {self.coupling!r}")
        if self.variable_width < 0 or (self.variable_width and self.coupling == "downscaled"):
            found = f"variable_width={self.variable_width} with coupling={self.coupling!r}"
            raise ValueError(f"{found}; needed 0 or more, and regional hours as input, which 'downscaled' has not")
        if self.driver_width < 0 or (self.driver_width and not self.exchanges):
            found = f"driver_width={self.driver_width} with coupling={self.coupling!r}"
            raise ValueError(f"{found}; needed 0, or a positive number and 'two_way' or 'one_way'")
        for name in ("outer", "inner"):
            depth = getattr(self, name).depth
            if depth % self.blocks:
                raise ValueError(f"{name} depth {depth} is not a multiple of blocks={self.blocks}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads={self.heads}")
        if self.sunlit_channel is not None and self.inner.forcings != 2 * HOURS:
            raise ValueError(f"sunlit_channel needs inner.forcings={2 * HOURS} (hourly insolation t-5..t+6)")
        if self.exchanges and self.sampler.keys > len(self.outer.tokens):
            raise ValueError(f"keys={self.sampler.keys} exceeds the {len(self.outer.tokens)} global tokens")

    @property
    def exchanges(self) -> bool:
        """True if tokens are exchanged between the branches."""
        return self.coupling in ("two_way", "one_way")

    def to_dict(self) -> dict:
        """Plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> ScaleMixerConfig:
        """Inverse of `to_dict`; unknown keys raise TypeError."""
        parts = {"outer": BackboneConfig(**data["outer"]), "inner": BackboneConfig(**data["inner"])}
        return cls(**{**data, **parts, "sampler": SamplerConfig(**data["sampler"])})

    @classmethod
    def tiny(cls, **changes) -> ScaleMixerConfig:
        """For tests: global 32x64, region 2x3 patches at five times the resolution."""
        branches = _sunlit_branches(
            {**_globe(5.625), "channels": 9, "patch": 4, "depth": 4, "head_widths": (32, 16), "head_strides": (2, 2)},
            {**_box(45.0, 67.5, 1.125, (40, 60)), "patch": 20, "depth": 2, "head_widths": (32, 16), "head_strides": (4, 5)},
        )
        settings = {"width": 32, "heads": 2, "blocks": 2, "sampler": SamplerConfig(keys=8)}
        return cls(**_changed({**branches, **settings}, changes))

    @classmethod
    def small(cls, **changes) -> ScaleMixerConfig:
        """For a CPU: global 32x64 in 2x2 patches, region 60x95 in 5x5 patches, about 5 M parameters."""
        branches = _sunlit_branches(
            {**_globe(5.625), "channels": 60, "patch": 2, "depth": 8, "head_widths": (128,), "head_strides": (2,)},
            {**_box(67.5, 56.25, 1.125, (60, 95)), "patch": 5, "depth": 4, "head_widths": (64,), "head_strides": (5,)},
        )
        settings = {"width": 128, "heads": 2, "sampler": SamplerConfig(keys=32), "detail": 24, "sunlit_channel": 6}
        return cls(**_changed({**branches, **settings}, changes))

    @classmethod
    def fine(cls, **changes) -> ScaleMixerConfig:
        """For a CPU: the globe of `small`, region 240x240 at 0.05 degrees in patches of 1 degree, about 6 M parameters.

        The patches of both branches do not nest. A training update of two samples takes a CPU core a second.
        """
        box = {**_box(36.0, 94.0, 0.05, (240, 240)), "patch": 20, "head_widths": (64, 32), "head_strides": (4, 5)}
        small = cls.small(inner=box, detail=16, even=True)
        return dataclasses.replace(small, **_changed(vars(small), changes))

    @classmethod
    def base(cls, **changes) -> ScaleMixerConfig:
        """For one GPU: global 1 degree (180x360), region 160x200 at 0.2 degrees, 115 M parameters."""
        branches = _sunlit_branches(
            {**_globe(1.0), "channels": 71, "patch": 4, "depth": 12, "head_widths": (576, 288), "head_strides": (2, 2)},
            {**_box(56.0, 72.0, 0.2, (160, 200)), "patch": 20, "depth": 4, "head_widths": (384, 96), "head_strides": (4, 5)},
        )
        settings = {"width": 576, "heads": 9, "sampler": SamplerConfig(keys=64), "detail": 32, "sunlit_channel": 6}
        return cls(**_changed({**branches, **settings}, changes))

    @classmethod
    def paper(cls, **changes) -> ScaleMixerConfig:
        """The published sizes: 736 M global, 1.07 B in all; 0.25 degrees (720x1440) and 800x1280 at 0.05 degrees."""
        outer = BackboneConfig(
            **_globe(0.25), channels=71, statics=3, patch=8, depth=24, drop_path=0.2,
            head_widths=(1536, 768, 384), head_strides=(2, 2, 2),
        )  # fmt: skip
        inner = BackboneConfig(
            **_box(56.0, 72.0, 0.05, (800, 1280)), channels=7, statics=2, patch=40, depth=4,
            head_widths=(1024, 384, 96), head_strides=(2, 4, 5),
        )  # fmt: skip
        settings = {"width": 1536, "heads": 16, "sampler": SamplerConfig(keys=256, layers=1)}
        return cls(**_changed({"outer": outer, "inner": inner, **settings}, changes))


def _changed(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with some of them replaced; ``{"inner": {"depth": 8}}`` replaces a part of one."""
    whole = {
        name: dataclasses.replace(settings[name], **value) if isinstance(value, Mapping) and name in settings else value
        for name, value in changes.items()
    }
    return {**settings, **whole}


def _choice(name: str, value, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}; choose one of {allowed}")


def _sunlit_branches(outer: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
    """Both branches with two static fields and insolation: six hours before and after for the globe, each hour for the region."""
    return {
        "outer": BackboneConfig(**outer, statics=2, forcings=2),
        "inner": BackboneConfig(**inner, channels=7, statics=2, forcings=2 * HOURS),
    }


def _globe(step: float) -> dict:
    """Axes of a global grid whose cells touch the poles."""
    rows, columns = round(180 / step), round(360 / step)
    return {
        "latitude": tuple(90 - (i + 0.5) * step for i in range(rows)),
        "longitude": tuple((j + 0.5) * step for j in range(columns)),
        "periodic": True,
    }


def _box(north: float, west: float, step: float, shape: tuple[int, int]) -> dict:
    """Axes of a box from its north-west corner."""
    return {
        "latitude": tuple(north - (i + 0.5) * step for i in range(shape[0])),
        "longitude": tuple(west + (j + 0.5) * step for j in range(shape[1])),
    }


# ------------------------------------------------------------------------------------------------------ token features


class Position(nn.Module):
    """Adds to each token where it is: learned per token, or an MLP of its latitude and longitude."""

    waves: Tensor

    def __init__(self, grid: TokenGrid, width: int, kind: str):
        super().__init__()
        self.learned = kind == "learned"
        if self.learned:
            self.table = nn.Parameter(torch.empty(len(grid), width).normal_(std=0.02))
            return
        angle = torch.as_tensor(grid.centers, dtype=torch.float32).deg2rad()[:, :, None] * 2.0 ** torch.arange(5)
        self.register_buffer("waves", torch.cat([angle.sin(), angle.cos()], -1).flatten(1), persistent=False)
        self.mlp = MLP(20, width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, d) -> (B, N, d)."""
        return tokens + (self.table if self.learned else self.mlp(self.waves))


def _groups(config: ScaleMixerConfig, branch: BackboneConfig) -> nn.ModuleList:
    """Layers of one backbone in as many groups as there are coupling blocks."""
    rates = torch.linspace(0, branch.drop_path, branch.depth, device="cpu").tolist()
    layers = [TransformerLayer(config.width, config.heads, config.mlp_ratio, rate) for rate in rates]
    size = branch.depth // config.blocks
    return nn.ModuleList(Group(*layers[i : i + size]) for i in range(0, branch.depth, size))


# ----------------------------------------------------------------------------------------------------------- backbones


class GlobalModel(nn.Module):
    """Plain vision transformer for one global step of six hours.

    Any backbone can stand in that offers ``grid``, ``embed``, ``groups`` (callables on tokens) and ``decode``.
    """

    statics: Tensor

    def __init__(self, config: ScaleMixerConfig):
        super().__init__()
        branch = config.outer
        self.config, self.residual = branch, config.output == "residual"
        self.grid = branch.tokens
        self.register_buffer("statics", torch.zeros(branch.statics, *branch.shape))
        self.embedding = PatchEmbedding(branch.channels + branch.statics + branch.forcings, config.width, self.grid)
        self.position = Position(self.grid, config.width, config.positions)
        self.groups = _groups(config, branch)
        self.norm = nn.LayerNorm(config.width)
        self.narrow = nn.Linear(config.width, branch.head_widths[0]) if branch.head_widths[0] != config.width else nn.Identity()
        self.head = Deconvolution(branch.head_widths, branch.channels, branch.head_strides, self.grid)
        if self.residual:
            start_small(self.head.stages[-1])

    def embed(self, x: Tensor, forcing: Tensor | None = None, statics: Tensor | None = None) -> Tensor:
        """Fields (B, C, H, W) and forcing (B, F, H, W) to tokens (B, N_g, d); statics (B, S, H, W) if not the model's own."""
        require_shape("global state", x, (None, self.config.channels, *self.config.shape))
        parts = [x, self.statics.expand(x.shape[0], -1, -1, -1) if statics is None else statics]
        if self.config.forcings:
            parts.append(require_shape("global forcing", forcing, (x.shape[0], self.config.forcings, *self.config.shape)))
        return self.position(self.embedding(torch.cat(parts, 1)))

    def decode(self, tokens: Tensor, x: Tensor) -> Tensor:
        """Tokens (B, N_g, d) and the state they came from to the next state (B, C, H, W)."""
        change = self.head(self.narrow(self.norm(tokens)))
        return x + change if self.residual else change

    def forward(self, x: Tensor, forcing: Tensor | None = None, statics: Tensor | None = None) -> Tensor:
        """State at t (B, C, H, W) and forcing (B, F, H, W) to the state at t + 6 h (B, C, H, W)."""
        tokens = self.embed(x, forcing, statics)
        for group in self.groups:
            tokens = group(tokens)
        return self.decode(tokens, x)

    @staticmethod
    def loss(prediction: Tensor, target: Tensor, channel_weight: Tensor, row_weight: Tensor) -> Tensor:
        """Weighted mean absolute error (eq. 14).

        Parameters
        ----------
        prediction, target : Tensor, shape (B, C, H, W), normalized
        channel_weight : Tensor, shape (C,), sums to 1
        row_weight : Tensor, shape (H,), mean 1
        """
        error = (prediction - target).abs().mean((0, 3))  # (C, H)
        return torch.einsum("ch,c,h->", error, channel_weight, row_weight) / row_weight.numel()


class RegionalModel(nn.Module):
    """Transformer for six regional hours from the six before."""

    statics: Tensor

    def __init__(self, config: ScaleMixerConfig):
        super().__init__()
        branch = config.inner
        self.config, self.output, self.sunlit_channel = branch, config.output, config.sunlit_channel
        self.grid, width = branch.tokens, config.width
        self.register_buffer("statics", torch.zeros(branch.statics, *branch.shape))
        features = branch.channels * config.variable_width or width
        self.embedding = (  # shared by the six hours
            VariableEmbedding(branch.channels, config.variable_width, width, self.grid)
            if config.variable_width
            else PatchEmbedding(branch.channels, width, self.grid)
        )
        self.merge = nn.Linear(HOURS * features, width)
        self.static_embedding = PatchEmbedding(branch.statics, width, self.grid) if branch.statics else None
        self.forcing_embedding = PatchEmbedding(branch.forcings, width, self.grid) if branch.forcings else None
        driven = config.coupling in DRIVEN
        self.driver_embedding = PatchEmbedding(2 * config.outer.channels, width, self.grid) if driven else None
        self.calendar = MLP(4, width, width)
        self.position = Position(self.grid, width, config.positions)
        self.groups = _groups(config, branch)
        head_width = 2 * width if config.exchanges else width
        self.modulation = LeadTimeModulation(head_width)
        local = branch.channels + branch.statics + (2 if branch.forcings else 0)
        sizes = head_width, branch.head_widths, branch.head_strides, branch.channels
        heads = [PredictionHead(*sizes, self.grid, detail=config.detail, local=local, even=config.even) for _ in range(HOURS)]
        if config.output == "residual":
            for head in heads:
                start_small(head.last)
        self.heads = nn.ModuleList(heads)

    def embed(self, history: Tensor, forcing: Tensor | None, calendar: Tensor, driver: Tensor | None = None) -> Tensor:
        """Hours t-5..t (B, 6, C, H, W), forcing (B, F, H, W), calendar (B, 4), driver (B, 2 C_g, H, W) to tokens (B, N_r, d)."""
        batch = history.shape[0]
        require_shape("regional history", history, (None, HOURS, self.config.channels, *self.config.shape))
        require_shape("calendar", calendar, (batch, 4))
        hours = self.embedding(history.flatten(0, 1)).unflatten(0, (batch, HOURS))  # (B, 6, N, features)
        tokens = self.merge(hours.permute(0, 2, 1, 3).flatten(2)) + self.calendar(calendar)[:, None]
        if self.static_embedding is not None:
            tokens = tokens + self.static_embedding(self.statics[None])
        if self.forcing_embedding is not None:
            forcing = require_shape("regional forcing", forcing, (batch, self.config.forcings, *self.config.shape))
            tokens = tokens + self.forcing_embedding(forcing)
        if self.driver_embedding is not None:
            tokens = tokens + self.driver_embedding(driver)
        return self.position(tokens)

    def decode(self, tokens: Tensor, history: Tensor, forcing: Tensor | None) -> Tensor:
        """Tokens (B, N_r, d or 2d) and the inputs they came from to hours t+1..t+6 (B, 6, C, H, W)."""
        leads = torch.arange(1, HOURS + 1, device=tokens.device, dtype=tokens.dtype)
        scale, shift = self.modulation(leads)
        hours = [head(tokens, scale[i], shift[i], self._local(history, forcing, i)) for i, head in enumerate(self.heads)]
        return self._compose(torch.stack(hours, 1), history, forcing)

    def _local(self, history: Tensor, forcing: Tensor | None, lead: int) -> Tensor | None:
        """Full-resolution fields for the refinement: last hour, statics, insolation now and at the lead."""
        if self.heads[lead].refine is None:
            return None
        parts = [history[:, -1], self.statics.expand(history.shape[0], -1, -1, -1)]
        if forcing is not None:
            parts.append(forcing[:, [HOURS - 1, HOURS + lead]])
        return torch.cat(parts, 1)

    def _compose(self, change: Tensor, history: Tensor, forcing: Tensor | None) -> Tensor:
        """Add the last hour; the sunlit channel is insolation times a transmissivity around one half."""
        fields = history[:, -1:] + change if self.output == "residual" else change
        if self.sunlit_channel is None:
            return fields
        c = self.sunlit_channel
        insolation = require_shape("regional forcing", forcing, (None, 2 * HOURS, None, None))[:, HOURS:]
        sunlit = insolation * (0.5 + change[:, :, c])
        return torch.cat([fields[:, :, :c], sunlit[:, :, None], fields[:, :, c + 1 :]], 2)


# ------------------------------------------------------------------------------------------------------------ exchange


class Keys(NamedTuple):
    """Chosen key positions of one block.

    chosen : (B, K) int, global tokens; tokens : (B, K, d) gated; positions : (B, K, 2) latitude and longitude in degrees;
    scores : (B, N_g) importance, sums to 1.
    """

    chosen: Tensor
    tokens: Tensor
    positions: Tensor
    scores: Tensor


class KeyPositionSampler(nn.Module):
    """Scores every global token and keeps the K most important ones (eqs 5-6)."""

    centers: Tensor
    allowed: Tensor
    fixed: Tensor

    def __init__(self, config: ScaleMixerConfig):
        super().__init__()
        self.config, self.grid = config.sampler, config.outer.tokens
        self.norm = nn.LayerNorm(config.width)
        self.register_buffer("centers", torch.as_tensor(self.grid.centers, dtype=torch.float32), persistent=False)
        allowed = _key_domain(config)
        self.domain_size = int(allowed.sum())
        self.register_buffer("allowed", torch.as_tensor(allowed), persistent=False)
        if self.config.mode == "adaptive":
            widths = [config.width] + [config.width // 4] * self.config.layers
            self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3) for a, b in pairwise(widths))
            self.score = nn.Linear(widths[-1], 1)
        elif self.config.mode == "fixed":
            fixed = _spread_evenly(self.grid, allowed, self.config.keys)
            self.register_buffer("fixed", torch.as_tensor(fixed)[None], persistent=False)

    def importance(self, tokens: Tensor) -> Tensor:
        """Softmax over tokens of the score network: (B, N_g, d) -> (B, N_g); uniform when keys are not learned."""
        if self.config.mode != "adaptive":
            return self.allowed.float().expand(tokens.shape[0], -1) / self.domain_size
        x = self.norm(tokens).transpose(1, 2).unflatten(2, self.grid.shape)
        for convolution in self.convolutions:
            x = functional.pad(x, (1, 1, 0, 0), mode="circular" if self.grid.periodic else "replicate")
            x = functional.gelu(convolution(functional.pad(x, (0, 0, 1, 1), mode="replicate")))
        logits = self.score(x.flatten(2).transpose(1, 2)).squeeze(-1)
        return logits.masked_fill(~self.allowed, -torch.inf).softmax(-1)

    def choose(self, scores: Tensor) -> Tensor:
        """Indices of the keys: (B, N_g) -> (B, K)."""
        batch, keys = scores.shape[0], self.config.keys
        if self.config.mode == "fixed":
            return self.fixed.expand(batch, -1)
        if self.config.mode == "random":
            # inference repeats itself: one fixed draw; training draws anew
            seed = torch.Generator(scores.device).manual_seed(0)
            fixed = lambda: torch.rand(scores.shape, generator=seed, device=scores.device)
            drawn = uniform(*scores.shape, device=scores.device) if self.training else fixed()
            scores = drawn.masked_fill(~self.allowed, -1.0)
        return scores.topk(keys, dim=-1).indices

    def forward(self, tokens: Tensor) -> Keys:
        """(B, N_g, d) -> Keys."""
        scores = self.importance(tokens)
        index = self.choose(scores)
        chosen = tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))
        return Keys(index, self._gate(chosen, scores.gather(1, index), scores), self.centers[index], scores)

    def _gate(self, chosen: Tensor, score: Tensor, scores: Tensor) -> Tensor:
        """Let gradients reach the score network; top K itself passes none."""
        if self.config.gate == "none":
            return chosen
        if self.config.gate == "softmax":
            return chosen * score[..., None]
        # the gate comes after the norm (a norm would cancel it) and saturates smoothly (a hard cap has no gradient)
        relative = score * self.domain_size
        return self.norm(chosen) * (self.config.cap * torch.tanh(relative / self.config.cap))[..., None]


def with_fitting_keys(config: ScaleMixerConfig, keys: int) -> ScaleMixerConfig:
    """The same network with so many keys, or as many as there are global tokens that may become keys."""
    one = dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, keys=1))
    fitting = min(keys, int(_key_domain(one).sum()))
    return dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, keys=fitting))


def _key_domain(config: ScaleMixerConfig) -> np.ndarray:
    """Global tokens that may become keys, shape (N_g,) bool."""
    grid, halo = config.outer.tokens, config.sampler.halo
    if halo is None:
        return np.ones(len(grid), dtype=bool)
    rows, columns = np.divmod(Alignment.holders(grid, config.inner.tokens), grid.shape[1])
    reach = np.arange(-halo, halo + 1)
    rows, columns = np.unique(rows[:, None] + reach), np.unique(columns[:, None] + reach)
    columns = columns % grid.shape[1] if grid.periodic else columns[(columns >= 0) & (columns < grid.shape[1])]
    allowed = np.zeros(grid.shape, dtype=bool)
    allowed[np.ix_(rows[(rows >= 0) & (rows < grid.shape[0])], columns)] = True
    if allowed.sum() < config.sampler.keys:
        raise ValueError(f"keys={config.sampler.keys} exceeds the {allowed.sum()} tokens within halo={halo}")
    return allowed.ravel()


def _spread_evenly(grid: TokenGrid, allowed: np.ndarray, keys: int) -> np.ndarray:
    """K distinct allowed tokens on an even lattice, chosen farthest-first from one another, shape (K,)."""
    candidates = np.flatnonzero(allowed)
    radians = np.deg2rad(grid.centers[candidates])
    cos = np.cos(radians[:, 0])
    points = np.stack([cos * np.cos(radians[:, 1]), cos * np.sin(radians[:, 1]), np.sin(radians[:, 0])], -1)
    chosen = [int(np.argmax(points @ points.mean(0)))]
    distance = np.full(len(candidates), np.inf)
    for _ in range(keys - 1):
        distance = np.minimum(distance, 1.0 - points @ points[chosen[-1]])
        chosen.append(int(np.argmax(distance)))
    return candidates[chosen]


def _start_at_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class ScaleMixer(nn.Module):
    """One exchange between the two token sets (eqs 5-13)."""

    inner_latitude: Tensor
    inner_longitude: Tensor
    patch_size: Tensor
    box_edges: Tensor
    domain: Tensor

    def __init__(self, config: ScaleMixerConfig, alignment: Alignment):
        super().__init__()
        width, heads = config.width, config.heads
        self.config, self.alignment = config, alignment
        self.outer_grid, self.inner_grid = config.outer.tokens, config.inner.tokens
        self.sampler = KeyPositionSampler(config)
        self.norm_outer, self.norm_inner, self.norm_keys = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.outer_to_keys = Attention(width, heads, extra=2)
        self.move = nn.Linear(width, 2)  # W_P
        self.keys_to_inner = Attention(width, heads)
        _start_at_zero(self.move)
        for name, axis in zip(("latitude", "longitude"), self.inner_grid.axes, strict=True):
            self.register_buffer(f"inner_{name}", torch.as_tensor(axis, dtype=torch.float32), persistent=False)
        self._register_extent()
        if config.coupling == "two_way":
            self.adapter = MLP(2 * width, width, width)
            if config.feedback == "residual":
                # zero at first: training starts from the undisturbed global forecast
                _start_at_zero(self.adapter[-1])

    def _register_extent(self):
        lat, lon = self.outer_grid.axes
        edge_lat, edge_lon = self.inner_grid.edges
        size = [
            abs(np.diff(axis).mean() if axis.size > 1 else np.diff(edges).item())
            for axis, edges in zip((lat, lon), self.outer_grid.edges, strict=True)
        ]
        register = lambda name, value: self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)
        register("patch_size", size)
        register("box_edges", [[edge_lat[-1], edge_lon[0]], [edge_lat[0], edge_lon[-1]]])
        allowed = _key_domain(self.config).reshape(self.outer_grid.shape)
        self.wraps = self.outer_grid.periodic and bool(allowed.any(0).all())
        lat, lon = lat[allowed.any(1)], lon[allowed.any(0)]
        if self.outer_grid.periodic and not self.wraps:
            lon = _frame(lon, edge_lon[0], edge_lon[-1])
        register("domain", [[lat.min(), lon.min()], [lat.max(), lon.max()]])

    def forward(self, outer: Tensor, inner: Tensor) -> tuple[Tensor, Tensor, Keys]:
        """(B, N_g, d), (B, N_r, d) -> the same shapes and the keys with their final positions."""
        keys = self.sampler(outer)
        tokens, positions = self.look(keys, outer)
        inner = self.inform(inner, self.refine(tokens, positions, inner))
        if self.config.coupling == "two_way":
            outer = self.feed_back(outer, inner)
        return outer, inner, keys._replace(positions=positions)

    def look(self, keys: Keys, outer: Tensor) -> tuple[Tensor, Tensor]:
        """Keys gather from the whole globe and move (eqs 7-8): -> (B, K, d), (B, K, 2) degrees."""
        queries = torch.cat([keys.tokens, self._relative(keys.positions)], -1)
        attended = self.outer_to_keys.attend(queries, self.norm_outer(outer))
        moved = keys.positions + torch.tanh(self.move(attended)) * self.config.sampler.shift * self.patch_size
        return keys.tokens + self.outer_to_keys.out(attended), self._inside_domain(moved)

    def refine(self, tokens: Tensor, positions: Tensor, inner: Tensor) -> Tensor:
        """Add regional tokens, interpolated at the positions; nothing outside the box (eq. 9): -> (B, K, d)."""
        field = self.norm_inner(inner).transpose(1, 2).unflatten(2, self.inner_grid.shape)
        sampled, inside = sample_bilinear(
            field, self._into_box_frame(positions), self.inner_latitude, self.inner_longitude, self.box_edges
        )
        return tokens + inside[..., None] * sampled

    def inform(self, inner: Tensor, tokens: Tensor) -> Tensor:
        """Regional tokens attend to the keys (eqs 10-11): -> (B, N_r, d)."""
        return inner + self.keys_to_inner(self.norm_inner(inner), self.norm_keys(tokens))

    def feed_back(self, outer: Tensor, inner: Tensor) -> Tensor:
        """Global tokens in the box hear from the region (eqs 12-13): -> (B, N_g, d)."""
        box = self.alignment.box
        mixed = torch.cat([self.norm_outer(outer[:, box]), self.norm_inner(self.alignment.to_box(inner))], -1)
        change = self.adapter(mixed)
        if self.config.feedback == "replace":
            change = change - outer[:, box]
        return outer.index_add(1, box, change.to(outer.dtype))

    def _relative(self, positions: Tensor) -> Tensor:
        """Degrees to numbers within -1..1, longitude relative to the middle of the box."""
        lat, lon = positions.unbind(-1)
        middle = (self.box_edges[0, 1] + self.box_edges[1, 1]) / 2
        return torch.stack([lat / 90.0, ((lon - middle + 180.0) % 360.0 - 180.0) / 180.0], -1)

    def _inside_domain(self, positions: Tensor) -> Tensor:
        """Clip to the centers of the tokens that may be keys; longitude wraps instead where they go around the globe."""
        low, high = self.domain
        if self.wraps:
            return torch.stack([positions[..., 0].clamp(low[0], high[0]), positions[..., 1] % 360.0], -1)
        return (self._into_box_frame(positions) if self.outer_grid.periodic else positions).clamp(low, high)

    def _into_box_frame(self, positions: Tensor) -> Tensor:
        """Longitudes in the convention of the box."""
        return torch.stack([positions[..., 0], _frame(positions[..., 1], *self.box_edges[:, 1])], -1)


def _frame(longitude, west, east):
    """Longitudes counted so that their seam lies opposite the box between ``west`` and ``east``."""
    cut = (west + east) / 2 - 180.0
    return cut + (longitude - cut) % 360.0


def sample_bilinear(
    field: Tensor, positions: Tensor, latitude: Tensor, longitude: Tensor, edges: Tensor
) -> tuple[Tensor, Tensor]:
    """Bilinear sampling of a token field; differentiable in the field and in the positions.

    Parameters
    ----------
    field : Tensor, shape (B, d, rows, columns)
    positions : Tensor, shape (B, K, 2)
        Latitude and longitude in degrees, in the convention of ``longitude``.
    latitude, longitude : Tensor, shapes (rows,) and (columns,)
        Token centers; latitude descends, longitude ascends.
    edges : Tensor, shape (2, 2)
        South-west and north-east corner of the box.

    Returns
    -------
    sampled : Tensor, shape (B, K, d)
        Between the outermost centers and the edges the outermost tokens hold.
    inside : Tensor, shape (B, K)
        1 inside the box, 0 outside.
    """
    lat, lon = positions.unbind(-1)
    row = _fractional_index(-latitude, -lat)
    column = _fractional_index(longitude, lon)
    # align_corners: -1 and 1 are the centers of the outermost tokens
    unit = [2.0 * i / max(n - 1, 1) - 1.0 for i, n in ((column, longitude.numel()), (row, latitude.numel()))]
    grid = torch.stack(unit, -1)[:, :, None]  # (B, K, 1, 2)
    sampled = functional.grid_sample(field, grid.to(field.dtype), padding_mode="border", align_corners=True)
    low, high = edges
    inside = ((positions >= low) & (positions <= high)).all(-1)
    return sampled.squeeze(-1).transpose(1, 2), inside.to(field.dtype)


def _fractional_index(axis: Tensor, values: Tensor) -> Tensor:
    """Position of values on an ascending axis in units of its points, linear between them and beyond the ends."""
    if axis.numel() == 1:
        return torch.zeros_like(values)
    low = (torch.searchsorted(axis, values.detach().contiguous(), right=True) - 1).clamp(0, axis.numel() - 2)
    return low + (values - axis[low]) / (axis[low + 1] - axis[low])


# --------------------------------------------------------------------------------------------------------- whole model


class Step(NamedTuple):
    """Result of one coupled step.

    outer : (B, C_g, H, W), global state at t+6; inner : (B, 6, C_r, h, w), regional hours t+1..t+6; keys : one per block.
    """

    outer: Tensor
    inner: Tensor
    keys: tuple[Keys, ...]


class Tower(NamedTuple):
    """What the global backbone says of one state where it does not hear of the region.

    tokens : (B, blocks, N_g, d), after each group of layers, or (B, 0, N_g, d) where no tokens are exchanged;
    state : (B, C_g, H, W), at t+6.
    """

    tokens: Tensor
    state: Tensor


class CoupledModel(nn.Module):
    """Global and regional backbones with a ScaleMixer after each group of layers."""

    def __init__(self, config: ScaleMixerConfig):
        super().__init__()
        self.config = config
        self.outer = GlobalModel(config)
        self.inner: RegionalModel | Downscaler = Downscaler(config) if config.coupling == "downscaled" else RegionalModel(config)
        self.alignment = Alignment(config.outer.tokens, config.inner.tokens)
        self.mixers = nn.ModuleList(ScaleMixer(config, self.alignment) for _ in range(config.blocks if config.exchanges else 0))
        self.driver = Driver(config) if config.coupling in DRIVEN else None
        self.driver_tokens = DriverTokens(config) if config.driver_width else None
        self._frozen = False

    def freeze_outer(self) -> CoupledModel:
        """Stop training the global backbone (stages 2 and 3); gradients still pass through it."""
        self.outer.requires_grad_(False)
        self._frozen = True
        return self.train(self.training)

    def train(self, mode: bool = True) -> CoupledModel:
        """Set training mode; a frozen global backbone stays in evaluation mode."""
        super().train(mode)
        if self._frozen:
            self.outer.eval()
        return self

    def forward(
        self,
        outer: Tensor,
        inner: Tensor,
        calendar: Tensor,
        outer_forcing=None,
        inner_forcing=None,
        *,
        tower: Tower | None = None,
    ) -> Step:
        """One step of six hours, everything normalized.

        Parameters
        ----------
        outer : Tensor, shape (B, C_g, H, W)
            Global state at t.
        inner : Tensor, shape (B, 6, C_r, h, w)
            Regional hours t-5..t.
        calendar : Tensor, shape (B, 4)
            Sine and cosine of the hour of day and of the day of year at t.
        outer_forcing : Tensor, shape (B, F_g, H, W), optional
        inner_forcing : Tensor, shape (B, F_r, h, w), optional
            Insolation; hours t-5..t+6 for the region.
        tower : Tower, optional
            Result of `tower`, if it is known already.
        """
        if self.config.coupling == "two_way":
            return self._exchanging(outer, inner, calendar, outer_forcing, inner_forcing)
        tower = self.tower(outer, outer_forcing) if tower is None else tower
        if self.driver is not None:
            return self._driven(self.driver, outer, inner, calendar, inner_forcing, tower.state)
        region, keys = self._hearing_region, []
        z_inner = region.embed(inner, inner_forcing, calendar)
        for i, layers in enumerate(region.groups):
            z_inner = layers(z_inner)
            if self.mixers:
                _, z_inner, chosen = self.mixers[i](tower.tokens[:, i], z_inner)
                keys.append(chosen)
        if self.mixers:
            z_inner = self._informed(z_inner, tower.tokens[:, -1], outer, tower.state)
        return Step(tower.state, region.decode(z_inner, inner, inner_forcing), tuple(keys))

    def tower(self, outer: Tensor, outer_forcing: Tensor | None = None) -> Tower:
        """The global backbone alone; where the coupling is not two-way, it does not depend on the region."""
        z, tokens = self.outer.embed(outer, outer_forcing), []
        for layers in self.outer.groups:
            z = layers(z)
            tokens.append(z)
        heard = torch.stack(tokens, 1) if self.config.exchanges else z.new_empty(z.shape[0], 0, *z.shape[1:])
        return Tower(heard, self.outer.decode(z, outer))

    @property
    def _hearing_region(self) -> RegionalModel:
        return cast("RegionalModel", self.inner)  # "downscaled" alone has another network, and always a driver

    def _exchanging(self, outer: Tensor, inner: Tensor, calendar: Tensor, outer_forcing, inner_forcing) -> Step:
        """Both branches side by side, with an exchange after each group of layers."""
        region, keys = self._hearing_region, []
        z_outer = self.outer.embed(outer, outer_forcing)
        z_inner = region.embed(inner, inner_forcing, calendar)
        for global_layers, regional_layers, mixer in zip(self.outer.groups, region.groups, self.mixers, strict=True):
            z_outer, z_inner, chosen = mixer(global_layers(z_outer), regional_layers(z_inner))
            keys.append(chosen)
        ahead = self.outer.decode(z_outer, outer)
        z_inner = self._informed(z_inner, z_outer, outer, ahead)
        return Step(ahead, region.decode(z_inner, inner, inner_forcing), tuple(keys))

    def _informed(self, z_inner: Tensor, z_outer: Tensor, now: Tensor, ahead: Tensor) -> Tensor:
        """What the regional heads get: regional tokens, with the driver's fields if they see them, and global tokens above."""
        if self.driver_tokens is not None:
            z_inner = z_inner + self.driver_tokens(now, ahead)
        return torch.cat([z_inner, self.alignment.to_inner(z_outer)], -1)

    def _driven(self, driver: Driver, outer: Tensor, inner: Tensor, calendar: Tensor, inner_forcing, ahead: Tensor) -> Step:
        """The region with the fields of a finished global step as inputs."""
        fields = driver(outer, ahead)
        if isinstance(self.inner, Downscaler):
            return Step(ahead, self.inner(fields, driver.guess(fields), inner_forcing, calendar), ())
        tokens = self.inner.embed(inner, inner_forcing, calendar, fields)
        for layers in self.inner.groups:
            tokens = layers(tokens)
        result = self.inner.decode(tokens, inner, inner_forcing)
        if self.config.frame:
            result = driver.impose(result, driver.guess(fields))
        return Step(ahead, result, ())

    @staticmethod
    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        """Mean absolute error over lead times, variables and cells (eq. 15); tensors (B, 6, C, h, w), normalized."""
        return (prediction - target).abs().mean()
