"""From noise to a sample: noise levels and solvers of Karras et al. 2022 (arXiv 2206.00364, algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from xscalemixer.nn.settings import Settings

__all__ = ["MemberNoise", "Seed", "SolverConfig", "solve", "spread_factor"]

Seed = int | tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class SolverConfig(Settings):
    """How the noise is removed; the defaults are those of CorrDiff.

    Few steps change the spread of the samples, see `spread_factor`.

    Attributes
    ----------
    method : "heun" or "euler"
        Second or first order.
    steps : int
        N, noise levels above zero.
    sigma_min, sigma_max : float
        Lowest and highest noise level.
    rho : float
        How much the levels crowd at the low end; 1: evenly spaced.
    churn : float
        New noise per step (S_churn); 0: deterministic after the first noise.
    churn_min, churn_max : float
        Noise levels that receive new noise; None: no upper limit.
    churn_noise : float
        Standard deviation of the new noise (S_noise).
    """

    method: Literal["heun", "euler"] = "heun"
    steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 800.0
    rho: float = 7.0
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float | None = None
    churn_noise: float = 1.0

    def _problems(self):
        if self.method not in ("heun", "euler"):
            yield f"method={self.method!r}; choose 'heun' or 'euler'"
        if self.steps < 2:
            yield f"steps={self.steps}; needed 2 or more"
        if not 0.0 < self.sigma_min < self.sigma_max:
            yield f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}; needed 0 < sigma_min < sigma_max"
        if self.rho <= 0.0:
            yield f"rho={self.rho}; needed a positive number"
        if self.churn < 0.0 or self.churn_noise < 0.0:
            yield f"churn={self.churn}, churn_noise={self.churn_noise}; neither can be negative"

    @classmethod
    def fast(cls) -> SolverConfig:
        """Nine Euler steps: 9 network calls where the default makes 35, and about 0.6 of the spread."""
        return cls(method="euler", steps=9)

    @property
    def calls(self) -> int:
        """Network calls per sample."""
        return 2 * self.steps - 1 if self.method == "heun" else self.steps

    @property
    def levels(self) -> tuple[float, ...]:
        """Noise levels from ``sigma_max`` to ``sigma_min``, then 0 (eq. 5): steps + 1 numbers."""
        high, low = self.sigma_max ** (1.0 / self.rho), self.sigma_min ** (1.0 / self.rho)
        return (*((high + i / (self.steps - 1) * (low - high)) ** self.rho for i in range(self.steps)), 0.0)

    def raised(self, sigma: float) -> float:
        """Noise level after new noise has been added at ``sigma``."""
        within = self.churn_min <= sigma and (self.churn_max is None or sigma <= self.churn_max)
        return sigma * (1.0 + min(self.churn / self.steps, math.sqrt(2.0) - 1.0)) if within else sigma


class MemberNoise:
    """Standard normal noise with one generator per member, so that each member is reproducible alone.

    The numbers are drawn on the CPU: they depend neither on the other members nor on the device.

    Parameters
    ----------
    seeds : sequence of int, or of tuples of (int, weight), length B
        Of a member with several seeds the noise is the weighted sum of theirs; the squares of the weights add up to 1.
    shape : tuple of int
        (C, H, W) of one member.
    like : Tensor, optional
        The noise gets its device and dtype.
    """

    def __init__(self, seeds: Sequence[Seed], shape: tuple[int, ...], like: Tensor | None = None):
        like = torch.empty(0) if like is None else like
        self.shape, self.dtype, self.device = tuple(shape), like.dtype, like.device
        parts = [((seed, 1.0),) if isinstance(seed, int) else seed for seed in seeds]
        self.parts = [[(torch.Generator().manual_seed(one), weight) for one, weight in each] for each in parts]

    def __call__(self) -> Tensor:
        """The next noise, (B, C, H, W)."""
        return torch.stack([self._member(parts) for parts in self.parts]).to(self.device)

    def _member(self, parts: list[tuple[torch.Generator, float]]) -> Tensor:
        draw = lambda generator: torch.randn(self.shape, generator=generator, dtype=self.dtype)
        (generator, weight), *others = parts
        total = draw(generator) if weight == 1.0 else draw(generator).mul_(weight)
        for generator, weight in others:
            total.add_(draw(generator), alpha=weight)
        return total


def solve(denoise: Callable[[Tensor, float], Tensor], noise: Callable[[], Tensor], config: SolverConfig) -> Tensor:
    """Remove the noise step by step (algorithm 2; without churn, algorithm 1).

    Parameters
    ----------
    denoise : callable
        (noisy field (B, C, H, W), noise level) -> expected clean field (B, C, H, W).
    noise : callable
        Gives new standard normal noise (B, C, H, W) at each call.
    config : SolverConfig

    Returns
    -------
    Tensor, shape (B, C, H, W)
    """
    x = noise() * config.levels[0]
    for level, following in pairwise(config.levels):
        sigma = config.raised(level)
        if sigma > level:
            x = x + noise() * (config.churn_noise * math.sqrt(sigma**2 - level**2))
        slope = (x - denoise(x, sigma)).div_(sigma)
        ahead = torch.add(x, slope, alpha=following - sigma)
        if config.method == "heun" and following > 0.0:
            slope.add_(ahead - denoise(ahead, following), alpha=1.0 / following)
            ahead = torch.add(x, slope, alpha=(following - sigma) / 2.0)
        x = ahead
    return x


def spread_factor(config: SolverConfig, deviation: float) -> float:
    """How much too wide or narrow the solver makes a Gaussian residual, from the size of its steps alone.

    The ideal denoiser of a Gaussian is linear, so the solver is run on the weights of the noises it draws.

    Parameters
    ----------
    config : SolverConfig
    deviation : float
        Standard deviation of the residual, sigma_data.

    Returns
    -------
    float
        Standard deviation of the samples over that of the residual; 1 in the limit of many steps.

    Examples
    --------
    >>> [round(spread_factor(c, 0.5), 2) for c in (SolverConfig(), SolverConfig(steps=64), SolverConfig.fast())]
    [1.13, 1.01, 0.59]
    """
    draws = iter(torch.eye(config.steps + 1, dtype=torch.float64))
    denoise = lambda x, sigma: x * (deviation**2 / (deviation**2 + sigma**2))
    return solve(denoise, lambda: next(draws), config).norm().item() / deviation
