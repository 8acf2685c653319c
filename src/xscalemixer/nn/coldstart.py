"""Six regional hours from one global state: a small convolutional network on top of interpolated surface fields."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from xscalemixer.nn.blocks import require_shape
from xscalemixer.nn.scalemixer import HOURS

__all__ = ["GUESSES", "ColdStart", "ColdStartConfig"]

GUESSES = ("standard", "terrain")


@dataclass(frozen=True, kw_only=True)
class ColdStartConfig:
    """Settings of `ColdStart`.

    Attributes
    ----------
    inputs : int
        Local input fields (first guess, statics, terrain difference, ...), without the insolation.
    channels : int
        Regional channels.
    guessed : tuple of int
        Regional channels that the first ``len(guessed)`` inputs are a first guess of.
    sunlit_channel : int or None
        Channel that is insolation times a transmissivity.
    guess : "standard" or "terrain"
        Where the first guess comes from, see `forecaster.Forecaster.first_guess`.
    width, depth : int
        Features and residual blocks; dilations 1, 2, 4, ... repeat every third block.
    """

    inputs: int
    channels: int
    guessed: tuple[int, ...]
    sunlit_channel: int | None = None
    guess: str = "standard"
    width: int = 48
    depth: int = 6

    def __post_init__(self):
        object.__setattr__(self, "guessed", tuple(self.guessed))
        if self.guess not in GUESSES:
            raise ValueError(f"guess={self.guess!r}; choose one of {GUESSES}")

    def to_dict(self) -> dict:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> ColdStartConfig:
        """Inverse of `to_dict`; unknown keys raise TypeError."""
        return cls(**data)


class _Block(nn.Module):
    """Residual depthwise-separable convolution: (B, width, H, W) -> (B, width, H, W)."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 5, padding=2 * dilation, dilation=dilation, groups=width, padding_mode="replicate")
        self.norm = nn.GroupNorm(1, width)
        self.mix = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(self.norm(self.spatial(x)))


class ColdStart(nn.Module):
    """First guess at t to hours t-5..t; all fields normalized."""

    def __init__(self, config: ColdStartConfig):
        super().__init__()
        self.config = config
        self.widen = nn.Conv2d(config.inputs + HOURS, config.width, 1)
        self.blocks = nn.Sequential(*(_Block(config.width, 2 ** (i % 3)) for i in range(config.depth)))
        self.head = nn.Conv2d(config.width, HOURS * config.channels, 1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, fields: Tensor, insolation: Tensor) -> Tensor:
        """(B, inputs, H, W) and insolation of the six hours (B, 6, H, W) -> (B, 6, C, H, W)."""
        c = self.config
        require_shape("first guess", fields, (None, c.inputs, None, None))
        require_shape("insolation", insolation, (fields.shape[0], HOURS, *fields.shape[2:]))
        change = self.head(self.blocks(self.widen(torch.cat([fields, insolation], 1)))).unflatten(1, (HOURS, c.channels))
        guess = fields.new_zeros(change.shape)
        guess[:, :, list(c.guessed)] = fields[:, None, : len(c.guessed)]
        result = guess + change
        if c.sunlit_channel is not None:
            result[:, :, c.sunlit_channel] = insolation * (0.5 + change[:, :, c.sunlit_channel])
        return result

    @staticmethod
    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        """Mean absolute error; tensors (B, 6, C, H, W), normalized."""
        return (prediction - target).abs().mean()
