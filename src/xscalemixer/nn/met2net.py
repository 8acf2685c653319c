"""Met2Net: an encoder and a decoder for each variable, one translator between them, implicit two-stage training.

Paper (arXiv 2507.17189)              here
-----------------------------------   ---------------------------------------------------------------
encoder, decoder of each variable     Encoders, Decoders: one network for each group of channels
translator                            Translator: TranslatorBlock with VariableAttention and TemporalAttentionUnit
stage I, stage II, moving averages    Met2NetObjective: reconstruction_loss, second_stage, after_step
single-stage, explicit two-stage      Met2NetObjective with way="joint", way="explicit"

Shapes: B batch, T past frames, T' future frames, C channels, G groups of channels, S width of the features of a frame,
D width of the translator, H x W cells, h x w cells of the latent, d width of a layer. All fields are normalized.

Convolutions see zeros beyond the edges, as published, and the far side of the globe where longitude wraps.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from xscalemixer.nn.blocks import DropPath, require_shape
from xscalemixer.nn.patch import pad_field

__all__ = [
    "Decoders",
    "Encoders",
    "Met2Net",
    "Met2NetConfig",
    "Met2NetObjective",
    "ObjectiveConfig",
    "TemporalAttentionUnit",
    "Translator",
    "TranslatorBlock",
    "TranslatorConfig",
    "VariableAttention",
]

TrainingWay = Literal["implicit", "joint", "explicit"]
STAGES: dict[TrainingWay, tuple[str, ...]] = {
    "implicit": ("implicit",),
    "joint": ("joint",),
    "explicit": ("autoencoder", "translator"),
}

# ---------------------------------------------------------------------------------------------------- configuration


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """How a `Met2Net` is trained.

    Attributes
    ----------
    way : "implicit", "joint" or "explicit"
        Both stages in each update; everything from the error of the forecast; autoencoders first and then the translator.
    momentum : float
        Share of its old weights that the frozen translator keeps at each update, 0..1.
    encoder_momentum : float
        The same for the encoders that make the latents of stage II; 0: the encoders themselves, as published.
    forecast_weight : float
        Of a third term, which published code computes and weighs with 0: where the translator learns latents it also minimizes
        the error of the decoded forecast, decoders frozen.
    """

    way: TrainingWay = "implicit"
    momentum: float = 0.9
    encoder_momentum: float = 0.0
    forecast_weight: float = 0.0

    def __post_init__(self):
        if self.way not in STAGES:
            raise ValueError(f"way={self.way!r}; choose one of {tuple(STAGES)}")
        for name in ("momentum", "encoder_momentum"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name)}; needed 0 to 1")
        if self.forecast_weight < 0.0:
            raise ValueError(f"forecast_weight={self.forecast_weight}; needed 0 or more")


@dataclass(frozen=True, kw_only=True)
class TranslatorConfig:
    """Settings of the `Translator`.

    Attributes
    ----------
    width : int
        D, a multiple of ``heads``.
    depth : int
        Blocks.
    heads : int
        Heads of the attention between variables.
    double_residual : bool
        Second half of a block as published, ``norm(2 u + tau(u))`` where ``tau`` has skips of its own, or ``norm(tau(u))``.
    drop_path : float
        Stochastic depth of the last block; it grows linearly from 0.
    """

    width: int = 256
    depth: int = 8
    heads: int = 8
    double_residual: bool = True
    drop_path: float = 0.1

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads={self.heads}")
        if self.depth < 1:
            raise ValueError(f"depth={self.depth}; needed at least 1")


@dataclass(frozen=True, kw_only=True)
class Met2NetConfig:
    """The network, and how it is trained.

    The presets other than `tiny` are those of the paper. They were trained with Adam and a cosine in batches of 16:

    ================= ========================== ========= ====== ========
    preset            data                       peak rate epochs momentum
    ================= ========================== ========= ====== ========
    weatherbench      32x64, 5, 6, 8 variables   1e-3,     50     0.9
                                                 1e-4,
                                                 5e-4
    weatherbench_fine 64x128, 5 variables        1e-3      50     0.9
    era5_cropped      128x128, 4 variables       5e-4      200    0.9
    mvmm_fnist        64x64, 3 channels          5e-3      200    0.999
    taxibj            32x32, 2 channels          5e-3      50     0
    ================= ========================== ========= ====== ========

    Attributes
    ----------
    channels : int
        C, variables or variables at a level.
    past, future : int
        T and T', frames in and out.
    width : int
        S, features of a frame; even.
    units : int
        Convolutions of an encoder; every second one halves the resolution.
    groups : tuple of tuple of int, optional
        Channels that share an encoder and a decoder, e.g. ``((0,), (1, 2))``; by default each has its own.
    periodic : bool
        Longitude wraps around the globe.
    translator : TranslatorConfig
    objective : ObjectiveConfig
    """

    channels: int
    past: int
    future: int
    width: int
    units: int
    groups: tuple[tuple[int, ...], ...] | None = None
    periodic: bool = False
    translator: TranslatorConfig = field(default_factory=TranslatorConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def __post_init__(self):
        for name in ("channels", "past", "future", "units"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; needed at least 1")
        if self.width % 2:
            raise ValueError(f"width={self.width} is odd; its normalization has two groups")
        if self.groups is not None:
            object.__setattr__(self, "groups", tuple(tuple(group) for group in self.groups))
            if sorted(channel for group in self.groups for channel in group) != list(range(self.channels)) or () in self.groups:
                raise ValueError(f"groups={self.groups}; needed each of the channels 0 to {self.channels - 1} exactly once")

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """The channels of each group."""
        return self.groups or tuple((channel,) for channel in range(self.channels))

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the convolutions of an encoder: 1, 2, 1, 2, ..."""
        return tuple(1 + i % 2 for i in range(self.units))

    def changed(self, changes: Mapping[str, Any]) -> Met2NetConfig:
        """Other settings; keys and values in place of a translator or an objective change a part of it.

        >>> Met2NetConfig.tiny().changed({"translator": {"depth": 3}}).translator.depth
        3
        """
        part = lambda name, value: replace(getattr(self, name), **value) if isinstance(value, Mapping) else value
        return replace(self, **{name: part(name, value) for name, value in changes.items()})

    def to_dict(self) -> dict:
        """Plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> Met2NetConfig:
        """Inverse of `to_dict`; unknown keys raise TypeError."""
        parts = {"translator": TranslatorConfig(**data["translator"]), "objective": ObjectiveConfig(**data["objective"])}
        return cls(**{**data, **parts})

    @classmethod
    def tiny(cls, **changes) -> Met2NetConfig:
        """For tests: 3 channels, 4 frames to 4 frames, about 53 k parameters."""
        translator = TranslatorConfig(width=32, depth=2, heads=4, drop_path=0.0)
        base = cls(channels=3, past=4, future=4, width=8, units=2, translator=translator)
        return replace(base, **changes)

    @classmethod
    def weatherbench(cls, **changes) -> Met2NetConfig:
        """WeatherBench at 5.625 degrees, 12 hours to 12 hours; 5 variables (u10, v10, t2m, tcc, r) or ``channels``: 8.6 M."""
        return replace(cls(channels=5, past=12, future=12, width=32, units=2), **changes)

    @classmethod
    def weatherbench_fine(cls, **changes) -> Met2NetConfig:
        """WeatherBench on 64 x 128 cells, 5 variables, 12 hours to 12 hours."""
        return replace(cls.weatherbench(units=4), **changes)

    @classmethod
    def era5_cropped(cls, **changes) -> Met2NetConfig:
        """ERA5 on 128 x 128 cells (msl, u10, v10, t2m), 12 hours to 12 hours: 8.8 M parameters."""
        return replace(cls.weatherbench(units=4, channels=4), **changes)

    @classmethod
    def mvmm_fnist(cls, **changes) -> Met2NetConfig:
        """Moving objects on 64 x 64 cells in 3 channels, 10 frames to 10 frames: 34.1 M parameters."""
        base = cls(
            channels=3, past=10, future=10, width=64, units=4,
            translator=TranslatorConfig(width=512, drop_path=0.0), objective=ObjectiveConfig(momentum=0.999),
        )  # fmt: skip
        return replace(base, **changes)

    @classmethod
    def taxibj(cls, **changes) -> Met2NetConfig:
        """Traffic in and out on 32 x 32 cells, 4 frames to 4 frames."""
        base = cls.weatherbench(channels=2, past=4, future=4, objective=ObjectiveConfig(momentum=0.0))
        return replace(base, **changes)


# ----------------------------------------------------------------------------------------------- encoders and decoders


class _Convolution(nn.Conv2d):
    """Convolution that keeps the size (or halves it): zeros beyond the edges, or the far side where longitude wraps."""

    bias: nn.Parameter  # never left out

    def __init__(self, d_in: int, d_out: int, kernel: int, *, periodic: bool, stride=1, dilation=1, groups=1):
        reach = dilation * (kernel // 2)
        padding = (reach, 0 if periodic else reach)
        super().__init__(d_in, d_out, kernel, stride, padding, dilation, groups)
        self.wrap = reach if periodic else 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, d_in, H, W) -> (B, d_out, H, W) or, with stride 2, half of both."""
        if self.wrap:  # an index, since circular padding refuses to go around more than once
            x = x[..., torch.arange(-self.wrap, x.shape[-1] + self.wrap, device=x.device) % x.shape[-1]]
        return super().forward(x)


class _Unit(nn.Sequential):
    """Convolution, normalization, SiLU, at the same, half (``stride=2``) or twice the resolution (``up=2``)."""

    def __init__(self, d_in: int, d_out: int, *, periodic: bool, stride: int = 1, up: int = 1):
        convolution = _Convolution(d_in, d_out * up**2, 3, periodic=periodic, stride=stride)
        nn.init.trunc_normal_(convolution.weight, std=0.02)
        nn.init.zeros_(convolution.bias)
        shuffle = [nn.PixelShuffle(up)] if up > 1 else []
        super().__init__(convolution, *shuffle, nn.GroupNorm(2, d_out), nn.SiLU())


class Encoders(nn.Module):
    """One encoder for each group of channels, applied to every frame on its own."""

    def __init__(self, config: Met2NetConfig):
        super().__init__()
        self.config = config
        self.factor = math.prod(config.strides)
        self.networks = nn.ModuleList(self._network(len(members)) for members in config.members)

    def _network(self, channels: int) -> nn.Sequential:
        c = self.config
        widths = (channels, *[c.width] * (c.units - 1))
        return nn.Sequential(*(_Unit(d, c.width, stride=s, periodic=c.periodic) for d, s in zip(widths, c.strides, strict=True)))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, C, H, W) -> (B, G, T * S, h, w); fields are padded with their edges to a multiple of the coarsest cells."""
        height, width = frames.shape[-2:]
        padding = (0, -width % self.factor, 0, -height % self.factor)
        x = pad_field(frames.flatten(0, 1), padding, self.config.periodic)  # (B T, C, H, W)
        parts = [network(x[:, list(members)]) for network, members in zip(self.networks, self.config.members, strict=True)]
        return torch.stack(parts, 1).unflatten(0, frames.shape[:2]).transpose(1, 2).flatten(2, 3)


class Decoders(nn.Module):
    """One decoder for each group of channels, the mirror of its encoder; no skip from the encoder."""

    def __init__(self, config: Met2NetConfig):
        super().__init__()
        self.config = config
        self.networks = nn.ModuleList(self._network(len(members)) for members in config.members)
        order = [channel for members in config.members for channel in members]
        self.places = [order.index(channel) for channel in range(config.channels)]

    def _network(self, channels: int) -> nn.Sequential:
        c = self.config
        units = (_Unit(c.width, c.width, up=s, periodic=c.periodic) for s in reversed(c.strides))
        return nn.Sequential(*units, nn.Conv2d(c.width, channels, 1))

    def forward(self, latent: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, G, T * S, h, w) -> (B, T, C, H, W), cropped to the size (H, W)."""
        features = latent.unflatten(2, (-1, self.config.width))  # (B, G, T, S, h, w)
        batch = features.shape[0], features.shape[2]
        parts = [network(features[:, i].flatten(0, 1)) for i, network in enumerate(self.networks)]
        fields = torch.cat(parts, 1)[:, self.places, : size[0], : size[1]]
        return fields.unflatten(0, batch)


# ---------------------------------------------------------------------------------------------------------- translator


class VariableAttention(nn.Module):
    """Attention whose tokens are the groups of channels: one weight for each pair and head, the same for all cells."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        # one group of the normalization each for queries, keys and values; it has the bias
        self.project = nn.Sequential(nn.Conv2d(width, 3 * width, 1, bias=False), nn.GroupNorm(3, 3 * width))
        self.out = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.GroupNorm(1, width), nn.SiLU())

    def forward(self, u: Tensor) -> Tensor:
        """(B, G, D, h, w) -> (B, G, D, h, w)."""
        queries, keys, values = self._split(u)
        mixed = self._weigh(queries, keys).to(values.dtype) @ values
        return _for_each(self.out, mixed.transpose(1, 2).reshape(u.shape))

    def weights(self, u: Tensor) -> Tensor:
        """How much each group listens to each: (B, G, D, h, w) -> (B, heads, G, G), rows sum to 1."""
        queries, keys, _ = self._split(u)
        return self._weigh(queries, keys)

    def _split(self, u: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each (B, heads, G, D / heads * h * w)."""
        x = _for_each(self.project, u).unflatten(2, (3, self.heads, -1))  # (B, G, 3, heads, D / heads, h, w)
        return x.flatten(4).permute(2, 0, 3, 1, 4).unbind(0)

    @staticmethod
    def _weigh(queries: Tensor, keys: Tensor) -> Tensor:
        # a sum over whole fields: half precision would round it by more than one weight differs from another
        precision = torch.promote_types(queries.dtype, torch.float32)
        with torch.autocast(queries.device.type, enabled=False):
            scaled = queries.to(precision) / math.sqrt(queries.shape[-1])
            return (scaled @ keys.to(precision).mT).softmax(-1)


class TemporalAttentionUnit(nn.Module):
    """Gated large-kernel convolution and MLP, both with skips and layer scale (TAU, arXiv 2206.12126).

    Mixes space; time is folded into the channels. A depthwise 5x5 and a depthwise 7x7 with dilation 3 see 23x23 cells.
    """

    def __init__(self, width: int, *, drop_path: float, periodic: bool, mlp_ratio: int = 4, scale: float = 1e-2):
        super().__init__()
        hidden = mlp_ratio * width
        self.norm_gate, self.norm_mlp = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.enter = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU())
        self.gate = nn.Sequential(
            _Convolution(width, width, 5, groups=width, periodic=periodic),
            _Convolution(width, width, 7, dilation=3, groups=width, periodic=periodic),
            nn.Conv2d(width, width, 1),
        )
        self.leave = nn.Conv2d(width, width, 1)
        self.mlp = nn.Sequential(
            nn.Conv2d(width, hidden, 1),
            _Convolution(hidden, hidden, 3, groups=hidden, periodic=periodic),
            nn.GELU(),
            nn.Conv2d(hidden, width, 1),
        )
        self.scale_gate = nn.Parameter(torch.full((width, 1, 1), scale))
        self.scale_mlp = nn.Parameter(torch.full((width, 1, 1), scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, d, h, w) -> (B, d, h, w)."""
        x = x + self.drop_path(self.scale_gate * self._gated(self.norm_gate(x)))
        return x + self.drop_path(self.scale_mlp * self.mlp(self.norm_mlp(x)))

    def _gated(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        return x + self.leave(self.gate(entered) * entered)


class TranslatorBlock(nn.Module):
    """Attention between groups, then a temporal attention unit for each; a norm after both."""

    def __init__(self, config: TranslatorConfig, *, drop_path: float, periodic: bool):
        super().__init__()
        width = config.width
        self.double_residual = config.double_residual
        self.attention = VariableAttention(width, config.heads)
        self.norm_attention = nn.GroupNorm(1, width)
        self.unit = TemporalAttentionUnit(width, drop_path=drop_path, periodic=periodic)
        self.norm_unit = nn.GroupNorm(1, width)

    def forward(self, u: Tensor) -> Tensor:
        """(B, G, D, h, w) -> (B, G, D, h, w)."""
        u = _for_each(self.norm_attention, u + self.attention(u))
        change = _for_each(self.unit, u)
        return _for_each(self.norm_unit, 2.0 * u + change if self.double_residual else change)


class Translator(nn.Module):
    """The latents of the past frames of all groups to those of the future frames."""

    def __init__(self, config: Met2NetConfig):
        super().__init__()
        c = config.translator
        rates = torch.linspace(0.0, c.drop_path, c.depth, device="cpu").tolist()
        self.enter = nn.Conv2d(config.past * config.width, c.width, 1)
        self.blocks = nn.ModuleList(TranslatorBlock(c, drop_path=rate, periodic=config.periodic) for rate in rates)
        # time is folded into the channels, so this is the temporal 1x1 that may lead to another number of frames
        self.leave = nn.Conv2d(c.width, config.future * config.width, 1)

    def forward(self, latent: Tensor) -> Tensor:
        """(B, G, T * S, h, w) -> (B, G, T' * S, h, w)."""
        u = _for_each(self.enter, latent)
        for block in self.blocks:
            u = block(u)
        return _for_each(self.leave, u)

    def attention(self, latent: Tensor) -> Tensor:
        """Weights of all blocks: (B, G, T * S, h, w) -> (B, depth, heads, G, G)."""
        u, weights = _for_each(self.enter, latent), []
        for block in cast("Iterable[TranslatorBlock]", self.blocks):  # a ModuleList does not know the kind of its modules
            weights.append(block.attention.weights(u))
            u = block(u)
        return torch.stack(weights, 1)


def _for_each(module: nn.Module, u: Tensor) -> Tensor:
    """A module on (B, d, h, w) applied to each group of (B, G, d, h, w)."""
    return module(u.flatten(0, 1)).unflatten(0, u.shape[:2])


# --------------------------------------------------------------------------------------------------------- whole model


class Met2Net(nn.Module):
    """Past frames of several variables to their future frames."""

    def __init__(self, config: Met2NetConfig):
        super().__init__()
        self.config = config
        self.encoders = Encoders(config)
        self.translator = Translator(config)
        self.decoders = Decoders(config)

    def forward(self, past: Tensor) -> Tensor:
        """(B, T, C, H, W) -> (B, T', C, H, W); any H and W."""
        return self.decoders(self.translator(self.encode(past)), past.shape[-2:])

    def encode(self, past: Tensor) -> Tensor:
        """(B, T, C, H, W) -> (B, G, T * S, h, w)."""
        self.require_past(past)
        return self.encoders(past)

    def require_past(self, past: Tensor) -> None:
        """Check the shape (B, T, C, H, W); raises ValueError."""
        require_shape("past", past, (None, self.config.past, self.config.channels, None, None))

    def attention(self, past: Tensor) -> Tensor:
        """Which group of channels (rows) listens to which (columns): (B, T, C, H, W) -> (B, depth, heads, G, G)."""
        return self.translator.attention(self.encode(past))

    @staticmethod
    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        """Mean square error of fields (B, T', C, H, W) or latents (B, G, T' * S, h, w), normalized."""
        return functional.mse_loss(prediction, target)


class Met2NetObjective(nn.Module):
    """What is minimized, what is trained by it, and what follows each update.

    Implicit two-stage training does both stages in each update (sum of both losses, one optimizer step):

    - Stage I: encoders and decoders learn to forecast through a frozen translator; gradients pass through it.
    - Stage II: the translator learns the latents of the future (and, if asked, the forecast); encoders, decoders frozen.

    The frozen translator is the moving average of the trained one. The paper also keeps frozen encoders and decoders that
    equal the trained ones at each update: a detached latent is the same, without a copy. Its frozen decoders enter no loss,
    so there are none here, whatever the momentum. The frozen translator normalizes with its running statistics (averaged
    like its weights) and drops no path, so that stage I is the same function of the weights in every update.

    Use: ``total, parts = objective.loss(batch, stage)``, ``total.backward()``, ``optimizer.step()``,
    ``objective.after_step()``, with an optimizer of ``objective.trainable(stage)``, for each of ``objective.stages``.
    A batch holds ``"past"`` (B, T, C, H, W) and ``"future"`` (B, T', C, H, W), normalized.

    Parameters
    ----------
    network : Met2Net
        Trained in place; its ``config.objective`` has the settings.
    """

    def __init__(self, network: Met2Net):
        super().__init__()
        self.config = network.config.objective
        self.network = network
        implicit = self.config.way == "implicit"
        self.frozen_translator = _frozen_copy(network.translator) if implicit else None
        self.slow_encoders = _frozen_copy(network.encoders) if implicit and self.config.encoder_momentum else None

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages in the order in which they are trained, each to its end."""
        return STAGES[self.config.way]

    def trainable(self, stage: str) -> list[nn.Parameter]:
        """The parameters that a stage trains."""
        self._require(stage)
        net = self.network
        parts = {"autoencoder": (net.encoders, net.decoders), "translator": (net.translator,)}.get(stage, (net,))
        return [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]

    def loss(self, batch: Mapping[str, Tensor], stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """What a stage minimizes, shape (), and its parts, detached."""
        self._require(stage)
        past, future, net = batch["past"], batch["future"], self.network
        net.require_past(past)
        require_shape("future", future, (past.shape[0], net.config.future, net.config.channels, *past.shape[3:]))
        match stage:
            case "implicit":
                latent = net.encode(past)
                parts = {"reconstruction": self.reconstruction_loss(latent, future), **self.second_stage(past, latent, future)}
            case "joint":
                parts = {"forecast": net.loss(net(past), future)}
            case "autoencoder":
                frames = torch.cat([past, future], 1)
                parts = {"reconstruction": net.loss(net.decoders(net.encoders(frames), frames.shape[-2:]), frames)}
            case "translator":
                with torch.no_grad():
                    latent = net.encode(past)
                parts = self.second_stage(past, latent, future)
        return reduce(torch.add, parts.values()), {name: part.detach() for name, part in parts.items()}

    def reconstruction_loss(self, latent: Tensor, future: Tensor) -> Tensor:
        """Stage I, trains encoders and decoders: latents (B, G, T * S, h, w) and fields (B, T', C, H, W) -> ()."""
        net = self.network
        if self.frozen_translator is None:
            raise ValueError(f"training the {self.config.way} way has no reconstruction through a frozen translator")
        return net.loss(net.decoders(self.frozen_translator(latent), future.shape[-2:]), future)

    def second_stage(self, past: Tensor, latent: Tensor, future: Tensor) -> dict[str, Tensor]:
        """Losses that train the translator alone: fields (B, T, C, H, W), their latents, fields (B, T', C, H, W) -> () each."""
        slow, net, weight = self.slow_encoders, self.network, self.config.forecast_weight
        with torch.no_grad():
            start = latent if slow is None else slow(past)
            target = (net.encoders if slow is None else slow)(future)
        found = net.translator(start.detach())
        losses = {"latent": net.loss(found, target)}
        if weight:
            frozen = {name: parameter.detach() for name, parameter in net.decoders.named_parameters()}
            losses["forecast"] = weight * net.loss(functional_call(net.decoders, frozen, (found, future.shape[-2:])), future)
        return losses

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the frozen parts follow the trained ones; once after each optimizer step, never while evaluating."""
        if self.frozen_translator is not None:
            _follow(self.frozen_translator, self.network.translator, self.config.momentum)
        if self.slow_encoders is not None:
            _follow(self.slow_encoders, self.network.encoders, self.config.encoder_momentum)

    def train(self, mode: bool = True) -> Met2NetObjective:
        """Set training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in (self.frozen_translator, self.slow_encoders):
            if part is not None:
                part.eval()
        return self

    def _require(self, stage: str) -> None:
        if stage not in self.stages:
            raise ValueError(f"stage={stage!r}; training the {self.config.way} way has {self.stages}")


def _frozen_copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False).eval()


def _follow(average: nn.Module, module: nn.Module, momentum: float) -> None:
    """Move weights and running statistics: ``average <- momentum average + (1 - momentum) module``; counters are copied."""
    for old, new in zip(average.state_dict().values(), module.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1.0 - momentum)
        else:
            old.copy_(new)
