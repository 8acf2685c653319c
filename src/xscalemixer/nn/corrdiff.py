"""CorrDiff: a regression of the mean and a diffusion model of what it misses (arXiv 2309.15214; China: arXiv 2512.05377).

Paper                                    here
--------------------------------------   -----------------------------------------------------------
x = mu + r                               CorrDiff.sample
mu = E[x|y], mean squared error          Regression
global residual connection (China)       CorrDiffNetworkConfig.shared, Regression.match
D(z; sigma, c) and its preconditioning   ResidualDiffusion.forward
noise levels and weights in training     ResidualDiffusion.loss
solvers                                  sampling.solve
patches in training and sampling         tiling.Crops, tiling.Tiling

Shapes: B batch, P patches, C channels, H x W cells of the domain, h x w cells of a patch.
All fields are normalized and on the fine grid: coarse fields have been interpolated to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from xscalemixer.errors import InputError
from xscalemixer.nn.blocks import Normalizer, require_shape
from xscalemixer.nn.draws import normal
from xscalemixer.nn.sampling import MemberNoise, Seed, SolverConfig, solve
from xscalemixer.nn.settings import Settings
from xscalemixer.nn.tiling import Crops, Tiling, TilingConfig
from xscalemixer.nn.unet import UNet, UNetConfig

__all__ = ["Condition", "CorrDiff", "CorrDiffNetworkConfig", "PositionConfig", "Regression", "ResidualDiffusion"]

# ---------------------------------------------------------------------------------------------------- configuration


@dataclass(frozen=True, kw_only=True)
class PositionConfig(Settings):
    """Channels that tell the networks where in the domain a cell is.

    Attributes
    ----------
    kind : "none", "sinusoidal" or "learned"
        Nothing, so that the model can move to another domain; waves; or a learned table.
    shape : (int, int)
        (H, W) of the domain of "sinusoidal" and "learned".
    channels : int
        A multiple of 4 for "sinusoidal".
    spacing : int
        Cells between the values of the table, which are interpolated; 1 as in the paper.
    """

    kind: Literal["none", "sinusoidal", "learned"] = "none"
    shape: tuple[int, int] | None = None
    channels: int = 4
    spacing: int = 1

    def _problems(self):
        if self.kind not in ("none", "sinusoidal", "learned"):
            yield f"kind={self.kind!r}; choose 'none', 'sinusoidal' or 'learned'"
        if self.kind != "none" and (not isinstance(self.shape, tuple) or len(self.shape) != 2 or min(self.shape) < 1):
            yield f"shape={self.shape}; {self.kind!r} needs the (rows, columns) of the domain"
        if self.channels < 1 or (self.kind == "sinusoidal" and self.channels % 4):
            yield f"channels={self.channels}; needed a positive number, a multiple of 4 for 'sinusoidal'"
        if self.spacing < 1:
            yield f"spacing={self.spacing}; needed 1 or more"


@dataclass(frozen=True, kw_only=True)
class CorrDiffNetworkConfig(Settings):
    """The two networks and how the second is trained.

    Attributes
    ----------
    coarse, outputs : int
        Input channels (interpolated) and target channels; a target need not be among the inputs.
    statics : int
        Constant fields (terrain, land fraction), after the coarse channels.
    scalars : int
        Numbers per sample (lead time, time of day and year).
    shared : tuple of (int or None), one per target channel
        China variant: the input channel with the same variable, to which the regression adds its change; None where the
        input has no such variable. Empty: the regression makes the fields themselves, as in the paper.
    regression, diffusion : UNetConfig
    positions : PositionConfig
    context : bool
        For training on patches: each patch also sees all coarse fields of the domain, shrunk to its size.
    mean_conditioning : bool
        The diffusion also sees the mean.
    sigma_data : float or tuple of float
        Standard deviation of the residual, for all or for each channel.
    noise : (float, float)
        Mean and standard deviation of the logarithm of the noise level in training.
    """

    coarse: int
    outputs: int
    statics: int = 0
    scalars: int = 0
    shared: tuple[int | None, ...] = ()
    regression: UNetConfig = field(default_factory=UNetConfig)
    diffusion: UNetConfig = field(default_factory=UNetConfig)
    positions: PositionConfig = field(default_factory=PositionConfig)
    context: bool = False
    mean_conditioning: bool = True
    sigma_data: float | tuple[float, ...] = 0.5
    noise: tuple[float, float] = (0.0, 1.2)

    def _problems(self):
        for name, least in (("coarse", 1), ("outputs", 1), ("statics", 0), ("scalars", 0)):
            if getattr(self, name) < least:
                yield f"{name}={getattr(self, name)}; needed {least} or more"
        if self.shared and len(self.shared) != self.outputs:
            yield f"shared has {len(self.shared)} entries for outputs={self.outputs}; needed one per target channel (or None)"
        if missing := [i for i in self.shared if i is not None and not 0 <= i < self.coarse]:
            yield f"shared names input channels {missing}; coarse={self.coarse} has 0 to {self.coarse - 1}"
        deviations = self.sigma_data if isinstance(self.sigma_data, tuple) else (self.sigma_data,)
        if isinstance(self.sigma_data, tuple) and len(deviations) != self.outputs:
            yield f"sigma_data has {len(deviations)} values for outputs={self.outputs}; needed a number, or one per channel"
        if not all(deviation > 0.0 for deviation in deviations):
            yield f"sigma_data={self.sigma_data}; needed positive numbers"
        if len(self.noise) != 2 or not self.noise[1] > 0.0:
            yield f"noise={self.noise}; needed mean and positive standard deviation of ln(noise level)"

    @classmethod
    def tiny(cls, **changes) -> CorrDiffNetworkConfig:
        """For tests: 0.2 M parameters per network."""
        unet = UNetConfig(width=16, multipliers=(1, 2), blocks=1, attention=(), dropout=0.0)
        return replace(cls(coarse=4, outputs=3, regression=unet, diffusion=unet), **changes)

    @classmethod
    def small(cls, **changes) -> CorrDiffNetworkConfig:
        """For a CPU or small data: 1.8 M parameters per network, patches that can move to another domain."""
        unet = UNetConfig(width=32, multipliers=(1, 2, 2), blocks=2, attention=(2,), dropout=0.1)
        return replace(cls(coarse=12, outputs=4, statics=2, regression=unet, diffusion=unet), **changes)

    @classmethod
    def paper(cls, **changes) -> CorrDiffNetworkConfig:
        """Taiwan: 12 channels at 25 km to 4 channels on 448 x 448 cells of 2 km; 80 M parameters in the diffusion."""
        return replace(cls(coarse=12, outputs=4, positions=PositionConfig(kind="sinusoidal", shape=(448, 448))), **changes)

    @classmethod
    def china(cls, **changes) -> CorrDiffNetworkConfig:
        """24 channels from 0.25 to 0.03 degrees (1600 x 2400 cells), all corrected where they are; trained on patches."""
        unet = UNetConfig(multipliers=(1, 2, 4, 4, 8))
        positions = PositionConfig(kind="sinusoidal", shape=(1600, 2400))
        base = cls(
            coarse=24, outputs=24, shared=tuple(range(24)), regression=unet, diffusion=unet, positions=positions, context=True
        )
        return replace(base, **changes)


# ------------------------------------------------------------------------------------------------------------- inputs


class Condition(NamedTuple):
    """What the networks are told, on the whole domain.

    Attributes
    ----------
    fields : Tensor, shape (B, coarse + statics, H, W)
    scalars : Tensor, shape (B, scalars), or None
    mean : Tensor, shape (B, outputs, H, W) or, of the patches alone, (P, outputs, h, w), or None
        For the diffusion; from the regression or from another model.
    context : Tensor, shape (B, coarse, h, w), or None
        The coarse fields of the domain at the size of a patch; made where missing.
    """

    fields: Tensor
    scalars: Tensor | None = None
    mean: Tensor | None = None
    context: Tensor | None = None

    def expand(self, count: int) -> Condition:
        """The condition of one input for ``count`` samples; that of as many inputs stays as it is."""
        repeat = lambda part: part.expand(count, *part.shape[1:])
        return Condition(repeat(self.fields), *(None if part is None else repeat(part) for part in self[1:]))


class Positions(nn.Module):
    """Position channels of patches; see `PositionConfig`."""

    def __init__(self, config: PositionConfig):
        super().__init__()
        self.config = config
        self.channels = 0 if config.kind == "none" else config.channels
        if config.kind == "learned":
            assert config.shape is not None  # checked by the settings
            rows, columns = (math.ceil((n - 1) / config.spacing) + 1 for n in config.shape)
            self.table = nn.Parameter(torch.empty(config.channels, rows, columns).normal_(std=0.02))

    def forward(self, crops: Crops, domain: tuple[int, int], like: Tensor) -> Tensor:
        """-> (P, channels, h, w).

        Raises
        ------
        InputError
            If the domain is not the one that the positions belong to.
        """
        kind, shape = self.config.kind, self.config.shape
        if kind == "none":
            return like.new_zeros(len(crops.corner), 0, *crops.size)
        if tuple(domain) != shape:
            found = f"they are {tuple(domain)}, its {kind} positions belong to {shape}"
            raise InputError(
                "these fields do not fit the network", [f"{found}; use that domain, or a network with positions 'none'"]
            )
        axes = [
            torch.tensor([corner[axis] for corner in crops.corner], device=like.device)[:, None]
            + torch.arange(crops.size[axis], device=like.device)
            for axis in (0, 1)
        ]  # rows (P, h) and columns (P, w)
        if kind == "sinusoidal":
            return _waves(axes, shape, self.channels // 4).to(like.dtype)
        return _lookup(self.table, axes, self.config.spacing).to(like.dtype)


def _waves(axes: list[Tensor], shape: tuple[int, int], octaves: int) -> Tensor:
    """Cosines and sines from 0 to pi, 2 pi, ... along each axis; the first alone tell all cells apart: (P, 4 octaves, h, w)."""
    channels = []
    for octave in range(octaves):
        for axis, (cells, n) in enumerate(zip(axes, shape, strict=True)):
            angle = math.pi * 2**octave * (cells + 0.5) / n
            angle = angle[:, None, :, None] if axis == 0 else angle[:, None, None, :]
            channels += [part.expand(-1, -1, axes[0].shape[1], axes[1].shape[1]) for part in (angle.cos(), angle.sin())]
    return torch.cat(channels, 1)


def _lookup(table: Tensor, axes: list[Tensor], spacing: int) -> Tensor:
    """Bilinear values of a table (K, rows, columns) at cells: (P, K, h, w)."""
    rows, columns = (2.0 * cells / spacing / max(n - 1, 1) - 1.0 for cells, n in zip(axes, table.shape[1:], strict=True))
    h, w = rows.shape[1], columns.shape[1]
    grid = torch.stack([columns[:, None, :].expand(-1, h, -1), rows[:, :, None].expand(-1, -1, w)], -1).to(table.dtype)
    # all patches in one call: stacked along the rows
    sampled = functional.grid_sample(table[None], grid.flatten(0, 1)[None], padding_mode="border", align_corners=True)
    return sampled[0].unflatten(1, (-1, h)).transpose(0, 1)


class _Conditioned(nn.Module):
    """A U-Net that sees the condition of a patch beside its own input."""

    def __init__(self, config: CorrDiffNetworkConfig, unet: UNetConfig, extra: int, *, noise: bool):
        super().__init__()
        self.config = config
        self.positions = Positions(config.positions)
        inputs = extra + config.coarse * (1 + config.context) + config.statics + self.positions.channels
        self.unet = UNet(unet, inputs, config.outputs, noise=noise, scalars=config.scalars)

    def _run(self, first: list[Tensor], condition: Condition, crops: Crops, noise: Tensor | None = None) -> Tensor:
        """Fields of the patches, each (P, C, h, w), and the condition -> (P, outputs, h, w)."""
        c, fields = self.config, condition.fields
        require_shape("coarse and static fields", fields, (None, c.coarse + c.statics, None, None))
        parts = [*first, crops.cut(fields), self.positions(crops, fields.shape[2:], fields)]
        rows = list(crops.sample)
        if c.context:
            context = self.surveyed(condition, crops.size).context
            parts.append(require_shape("context", context, (fields.shape[0], c.coarse, *crops.size))[rows])
        scalars = require_shape("scalars", condition.scalars, (fields.shape[0], c.scalars))[rows] if c.scalars else None
        dtype = self.unet.last.weight.dtype  # float64 fields stay float64 outside of the network
        numbers = (None if number is None else number.to(dtype) for number in (noise, scalars))
        return self.unet(torch.cat([part.to(dtype) for part in parts], 1), *numbers)

    def surveyed(self, condition: Condition, size: tuple[int, int]) -> Condition:
        """The condition with the context for patches of ``size``, if the network uses one."""
        if not self.config.context or condition.context is not None:
            return condition
        coarse = condition.fields[:, : self.config.coarse]
        return condition._replace(context=functional.interpolate(coarse, size, mode="bilinear", antialias=True))


# ----------------------------------------------------------------------------------------------------------- networks


class Regression(_Conditioned):
    """The mean of the fine fields given the coarse ones.

    The paper's network also gets an empty image and a noise level of zero; both are left out.

    Attributes
    ----------
    change_scale : Tensor, shape (outputs, 1, 1)
        What the network makes is multiplied by it. Measured before training for shared variables, so that each channel of the
        network has errors of the same size: surface pressure over mountains is known to a hundredth of its variance before
        anything is learned, and would not be learned beside cloud. 1 as in the paper.
    """

    shared_scale: Tensor
    shared_offset: Tensor
    change_scale: Tensor

    def __init__(self, config: CorrDiffNetworkConfig):
        super().__init__(config, config.regression, 0, noise=False)
        shared = [(i, source) for i, source in enumerate(config.shared) if source is not None]
        self.targets, self._sources = [i for i, _ in shared], [source for _, source in shared]
        self.register_buffer("shared_scale", torch.ones(len(shared), 1, 1))
        self.register_buffer("shared_offset", torch.zeros(len(shared), 1, 1))
        self.register_buffer("change_scale", torch.ones(config.outputs, 1, 1))

    def match(self, coarse: Normalizer, outputs: Normalizer) -> None:
        """Account for shared variables that are normalized differently as input and as target.

        Parameters
        ----------
        coarse, outputs : Normalizer
            Statistics of the inputs in training (even where another source has its own later) and of the targets.
        """
        source, target = self._sources, self.targets
        self.shared_scale = coarse.std[source] / outputs.std[target]
        self.shared_offset = (coarse.mean[source] - outputs.mean[target]) / outputs.std[target]

    def forward(self, condition: Condition, crops: Crops | None = None) -> Tensor:
        """-> (P, outputs, h, w); without crops the whole domain, (B, outputs, H, W)."""
        crops = crops or Crops.whole(condition.fields)
        result = self._run([], condition, crops).to(condition.fields.dtype)  # autocast would round the shared variables
        result = result * self.change_scale.to(result.dtype)
        if self.targets:
            known = crops.cut(condition.fields)[:, self._sources] * self.shared_scale + self.shared_offset
            result = result.index_add(1, torch.tensor(self.targets, device=result.device), known)
        return result

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Squared errors of normalized (P, C, h, w) in units of ``change_scale``, mean of each channel: -> (C,)."""
        return ((prediction - target) / self.change_scale).square().mean((0, 2, 3))


class ResidualDiffusion(_Conditioned):
    """The distribution of truth less mean, given the coarse fields (and the mean)."""

    sigma_data: Tensor

    def __init__(self, config: CorrDiffNetworkConfig):
        super().__init__(config, config.diffusion, config.outputs * (1 + config.mean_conditioning), noise=True)
        deviation = torch.tensor(config.sigma_data, dtype=torch.float32).reshape(-1, 1, 1)
        self.register_buffer("sigma_data", deviation.expand(config.outputs, 1, 1).clone())

    def forward(self, noisy: Tensor, sigma: Tensor, condition: Condition, crops: Crops | None = None) -> Tensor:
        """Expected residual D: noisy residual (P, outputs, h, w) and its noise level (P,) -> (P, outputs, h, w)."""
        c, crops = self.config, crops or Crops.whole(condition.fields)
        require_shape("noisy residual", noisy, (len(crops.sample), c.outputs, *crops.size))
        require_shape("noise level", sigma, (len(crops.sample),))
        c_skip, c_out, c_in, c_noise = precondition(sigma.to(noisy.dtype), self.sigma_data.to(noisy.dtype))
        first = [c_in * noisy]
        if c.mean_conditioning:
            first.append(_of_patches("mean", condition.mean, condition, crops, c.outputs))
        result = self._run(first, condition, crops, c_noise)
        return c_skip * noisy + c_out * result.to(noisy.dtype)

    def errors(
        self,
        residual: Tensor,
        condition: Condition,
        crops: Crops | None = None,
        generators: Sequence[torch.Generator] | None = None,
        sigma: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Weighted squared errors, at random noise levels.

        Parameters
        ----------
        residual : Tensor, shape (B, outputs, H, W) or, of the patches alone, (P, outputs, h, w)
            Truth less mean, over the scale of the residual (`CorrDiff`); without gradient.
        condition : Condition
        crops : Crops, optional
            Patches to train on; default: the whole domain.
        generators : sequence of torch.Generator, one per field, optional
            Of the noise, see `nn.draws.normal`.
        sigma : Tensor, shape (P,), optional
            Noise levels to look at, in place of random ones.

        Returns
        -------
        errors : Tensor, shape (P, outputs)
            Nearly 1 at every noise level for a network that knows nothing: look at them by noise level and channel.
        sigma : Tensor, shape (P,)
            The noise level of each patch.
        """
        crops = crops or Crops.whole(condition.fields)
        clean = _of_patches("residual", residual, condition, crops, self.config.outputs)
        draw = lambda *shape: normal(*shape, generators=generators).to(clean)
        sigma = self.noise_level(draw(clean.shape[0])) if sigma is None else sigma
        denoised = self(clean + sigma[:, None, None, None] * draw(*clean.shape), sigma, condition, crops)
        _, c_out, _, _ = precondition(sigma, self.sigma_data.to(clean.dtype))
        return ((denoised - clean) / c_out).square().mean((2, 3)), sigma

    def noise_level(self, deviate: Tensor) -> Tensor:
        """Noise levels of training at standard normal deviates: any shape, the same back."""
        mean, deviation = self.config.noise
        return torch.exp(mean + deviation * deviate)

    def loss(
        self,
        residual: Tensor,
        condition: Condition,
        crops: Crops | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """Mean of `errors`."""
        return self.errors(residual, condition, crops, generators)[0].mean()

    def sample(
        self,
        condition: Condition,
        seeds: Sequence[Seed],
        *,
        solver: SolverConfig | None = None,
        tiling: TilingConfig | None = None,
    ) -> Tensor:
        """Draw one residual per seed.

        Parameters
        ----------
        condition : Condition
            B is the number of seeds, or 1 for members of one input.
        seeds : sequence of Seed
            Each sample depends on its own input and seed only; see `sampling.MemberNoise`.
        solver : SolverConfig, optional
        tiling : TilingConfig, optional
            Patches that are fused at every network call; default: the whole domain, one sample per call.

        Returns
        -------
        Tensor, shape (len(seeds), outputs, H, W)

        Raises
        ------
        InputError
            If seeds and inputs do not match, or in training mode.
        """
        count, (batch, _, height, width) = len(seeds), condition.fields.shape
        _require_evaluation(self)
        if batch not in (1, count) or not count:
            raise InputError(
                "nothing can be sampled", [f"{count} seeds for {batch} inputs; give one seed per input or one input"]
            )
        tiles = Tiling(tiling or TilingConfig(), (height, width))
        condition = self.surveyed(condition, tiles.size).expand(count)

        def denoise(noisy: Tensor, sigma: float) -> Tensor:
            run = lambda crops: self(crops.cut(noisy), noisy.new_full((len(crops.sample),), sigma), condition, crops)
            return tiles.fuse(run, torch.zeros_like(noisy))

        noise = MemberNoise(seeds, (self.config.outputs, height, width), like=condition.fields)
        with torch.no_grad():
            return solve(denoise, noise, solver or SolverConfig())


def _of_patches(name: str, fields: Tensor | None, condition: Condition, crops: Crops, outputs: int) -> Tensor:
    """Fields (P, outputs, h, w), cut out unless they have been already."""
    patches = (len(crops.sample), outputs, *crops.size)
    if fields is not None and tuple(fields.shape) == patches:
        return fields
    return crops.cut(require_shape(name, fields, (condition.fields.shape[0], outputs, *condition.fields.shape[2:])))


def _require_evaluation(network: nn.Module) -> None:
    if network.training:
        raise InputError(
            "nothing can be sampled", ["the network is in training mode, where dropout adds noise; call .eval() first"]
        )


def precondition(sigma: Tensor, sigma_data: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_skip, c_out and c_in, each (P, C, 1, 1), and c_noise (P,), from noise levels (P,) and deviations (C, 1, 1).

    Karras et al. 2022 (arXiv 2206.00364), table 1; the weight of the loss is 1 / c_out^2.
    """
    s, total = sigma[:, None, None, None], torch.hypot(sigma[:, None, None, None], sigma_data)
    return (sigma_data / total).square(), s * sigma_data / total, 1.0 / total, sigma.log() / 4.0


class CorrDiff(nn.Module):
    """Both networks: samples of the fine fields given the coarse ones.

    Attributes
    ----------
    residual_scale : Tensor, shape (outputs, 1, 1)
        What the diffusion makes is multiplied by it. Measured before the diffusion is trained, so that the residual of each
        channel has the standard deviation sigma_data there, in the middle of the noise levels; 1 as in the paper.
    spread : Tensor, shape (outputs, 1, 1)
        Further factor, found by calibration.
    """

    residual_scale: Tensor
    spread: Tensor

    def __init__(self, config: CorrDiffNetworkConfig):
        super().__init__()
        self.config = config
        self.register_buffer("residual_scale", torch.ones(config.outputs, 1, 1))
        self.register_buffer("spread", torch.ones(config.outputs, 1, 1))
        self.regression = Regression(config)
        self.diffusion = ResidualDiffusion(config)

    def mean(self, condition: Condition, *, tiling: TilingConfig | None = None) -> Tensor:
        """The regression, patch by patch if asked: -> (B, outputs, H, W)."""
        _require_evaluation(self)
        batch, _, height, width = condition.fields.shape
        tiles = Tiling(tiling or TilingConfig(), (height, width))
        condition = self.regression.surveyed(condition, tiles.size)
        with torch.no_grad():
            total = condition.fields.new_zeros(batch, self.config.outputs, height, width)
            return tiles.fuse(lambda crops: self.regression(condition, crops), total)

    def sample(
        self,
        condition: Condition,
        seeds: Sequence[Seed],
        *,
        solver: SolverConfig | None = None,
        tiling: TilingConfig | None = None,
    ) -> Tensor:
        """Mean plus one scaled residual per seed: -> (len(seeds), outputs, H, W); see `ResidualDiffusion.sample`.

        A mean in the condition is used as it is, so that it is made once for all members or comes from another model.
        """
        mean = self.mean(condition, tiling=tiling) if condition.mean is None else condition.mean
        residual = self.diffusion.sample(condition._replace(mean=mean), seeds, solver=solver, tiling=tiling)
        return torch.addcmul(mean, residual, (self.residual_scale * self.spread).to(residual.dtype))
