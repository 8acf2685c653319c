"""Parts shared by the networks: attention, transformer layer, MLP, lead-time embedding, normalization."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from xscalemixer.nn.draws import uniform

__all__ = [
    "HOURS",
    "MLP",
    "Attention",
    "DropPath",
    "FourierEmbedding",
    "Group",
    "Normalizer",
    "TransformerLayer",
    "require_shape",
]

HOURS = 6  # hours per step, regional input hours and regional lead times


def require_shape(name: str, tensor: Tensor | None, shape: tuple[int | None, ...]) -> Tensor:
    """A tensor that is there and has the shape needed (None: any size; not checked while compiling).

    Raises
    ------
    ValueError
        With the name, the shape found and the shape needed.
    """
    if tensor is None:
        raise ValueError(f"{name} is missing, needed a tensor of shape {shape} (None: any size)")
    if torch.compiler.is_compiling():
        return tensor
    if tensor.ndim != len(shape) or any(want is not None and want != got for want, got in zip(shape, tensor.shape, strict=True)):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, needed {shape} (None: any size)")
    return tensor


class MLP(nn.Sequential):
    """Linear, GELU, linear: (..., d_in) -> (..., d_out)."""

    def __init__(self, d_in: int, d_hidden: int, d_out: int):
        super().__init__(nn.Linear(d_in, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_out))


class DropPath(nn.Module):
    """Drop a residual branch per sample with probability ``rate`` while training (stochastic depth, arXiv 1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = uniform(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep / (1.0 - self.rate)


class Attention(nn.Module):
    """Multi-head attention of queries on a context; queries may carry extra features (positions).

    Parameters
    ----------
    width : int
        d, token width.
    heads : int
    extra : int
        Features concatenated to the queries, so W_Q maps d + extra to d.
    """

    def __init__(self, width: int, heads: int, extra: int = 0):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width + extra, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def attend(self, queries: Tensor, context: Tensor) -> Tensor:
        """Attention output before W_O: (B, N, d + extra), (B, M, d) -> (B, N, d)."""
        q = self._split(self.query(queries))
        k, v = map(self._split, self.key_value(context).chunk(2, dim=-1))
        return _mixed(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """(B, N, d + extra), (B, M, d) -> (B, N, d)."""
        return self.out(self.attend(queries, context))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d / heads)


def _mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention; fused, but for gradients on a CPU, where plain products take half the time (512 tokens, bfloat16)."""
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return functional.scaled_dot_product_attention(q, k, v)
    scores = q @ (k * k.shape[-1] ** -0.5).transpose(-1, -2)
    return scores.softmax(-1, dtype=scores.dtype) @ v


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and MLP: 12 d^2 + 13 d parameters at MLP ratio 4."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0):
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, int(width * mlp_ratio), width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, d) -> (B, N, d)."""
        h = self.norm_attention(x)
        x = x + self.drop_path(self.attention(h, h))
        return x + self.drop_path(self.mlp(self.norm_mlp(x)))


class Group(nn.Sequential):
    """Layers between two exchanges: (B, N, d) -> (B, N, d).

    With ``recompute`` set, only the input is kept for the backward pass, which repeats the forward pass.
    """

    recompute = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, d) -> (B, N, d)."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(super().forward, x, use_reentrant=False)
        return super().forward(x)


class FourierEmbedding(nn.Module):
    """Lead-time embedding e(tau) = cos(2 pi (w tau + b)) with learned w, b (ScaleMixer, eq. 3)."""

    def __init__(self, features: int):
        super().__init__()
        self.frequency = nn.Parameter(torch.randn(features) / 6.0)
        self.phase = nn.Parameter(torch.rand(features))

    def forward(self, lead: Tensor) -> Tensor:
        """Lead time in hours, shape (...), -> (..., features)."""
        return torch.cos(2.0 * math.pi * (lead[..., None] * self.frequency + self.phase))


class Normalizer(nn.Module):
    """Physical values to z-scores and back, per channel (and cell); statistics travel with the weights.

    Parameters
    ----------
    mean, std : array_like, shape (C,) or (C, H, W)
        In the canonical units of the channels; std > 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean, std):
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            values = torch.as_tensor(values, dtype=torch.float32)
            self.register_buffer(name, values.view(-1, 1, 1) if values.ndim == 1 else values)

    def forward(self, x: Tensor) -> Tensor:
        """Physical (..., C, H, W) -> normalized (..., C, H, W)."""
        return (x - self.mean) / self.std

    def inverse(self, x: Tensor) -> Tensor:
        """Normalized (..., C, H, W) -> physical (..., C, H, W)."""
        return x * self.std + self.mean
