"""CorrDiff in training: pairs of coarse and fine fields, and the objectives of its two stages.

A pair is a DataTree with ``/input`` and ``/target``. The input is an analysis, matched with the target by time, or forecasts
with one or more starts and lead times, matched by valid time; then the networks are told the lead time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils.data import Dataset

from xscalemixer.coarse import Coarse, Interpolated
from xscalemixer.downscaler import Downscaler, Inputs
from xscalemixer.errors import GridError, InputError, SchemaError, TimeError
from xscalemixer.grids import Grid, grid_of, surroundings
from xscalemixer.model import Branch
from xscalemixer.nn.blocks import Normalizer
from xscalemixer.nn.corrdiff import Condition, CorrDiff, CorrDiffNetworkConfig
from xscalemixer.nn.tiling import Crops, random_crops, suggest_patch
from xscalemixer.regridding import Regridder, regrid
from xscalemixer.report import Report
from xscalemixer.samples import Fields, Series, survey
from xscalemixer.state import STATICS, statics_of
from xscalemixer.training.config import CorrDiffConfig, Periods, are_periods, check_settings
from xscalemixer.training.data import check_skip, digest_of, grid_digest, groups_of, read_source, too_large, warn_of_chunks
from xscalemixer.training.objectives import Losses
from xscalemixer.training.ranks import Ranks
from xscalemixer.variables import Schema

__all__ = ["CoarseToFine", "DiffusionObjective", "PairData", "PairSamples", "Pairs", "RegressionObjective"]

log = logging.getLogger(__name__)

_GROUPS = {"coarse": "input", "fine": "target"}
_MEASURED = 32  # training samples that scales are measured on
_FEW, _HELD = 8, 2**28  # of them and bytes at most, on which the size of patches is
_LEAST = 1e-6  # scale of a channel in which input and truth are the same
_LEVELS = (-1.0, 0.0, 1.0)  # standard normal deviates of the noise levels of validation


# ----------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Pairs:
    """Matched coarse and fine fields in physical units.

    Attributes
    ----------
    inputs, targets : Fields, shapes (N, C, h, w) and (T, C', H, W)
        On the coarse and on the fine grid.
    place : array, shape (N,)
        Where in ``targets`` the truth of each input is.
    time, reference : array of datetime64, shape (N,)
        Valid times, and starts.
    lead : array of int, shape (N,)
    forecast : bool
    statics : array, shape (S, H, W)
        See `state.statics_of`.
    grids : (Grid, Grid)
        Coarse and fine.
    height : array, shape (h, w), m, or None
        Orography of the coarse grid; then ``inputs`` are reduced to sea level.
    origin : str
        Name of the model that made the forecasts; empty where it is not known.
    """

    inputs: Fields
    targets: Fields
    place: np.ndarray
    time: np.ndarray
    reference: np.ndarray
    lead: np.ndarray
    forecast: bool
    statics: np.ndarray
    grids: tuple[Grid, Grid]
    height: np.ndarray | None
    origin: str

    @classmethod
    def of(
        cls,
        tree: xr.DataTree,
        schemas: tuple[Schema, Schema],
        report: Report,
        *,
        statics: tuple[str, ...] = STATICS[:2],
        reduced: bool = True,
        like: Downscaler | None = None,
        memory: float = 4.0,
        skip: float | None = None,
    ) -> Pairs | None:
        """From a tree; None where that fails, with every problem in the report.

        Parameters
        ----------
        tree : DataTree
        schemas : (Schema, Schema)
            Of the input and of the target.
        statics : tuple of str
            Constant fields of the target, of `state.STATICS`.
        reduced : bool
            Inputs are reduced to sea level if the data have the height of their ground.
        like : Downscaler, optional
            On the grids of a model, and reduced if its fields are; default: those of the data.
        memory, skip
            As for `xscalemixer.train`.
        """
        groups = groups_of(tree, report, _GROUPS)
        if len(groups) < 2:
            return None
        coarse = Coarse.of(groups["coarse"], schemas[0], report, "/input", skip=skip)
        source = read_source(groups["fine"], "/target", schemas[1], statics, None, skip, report)
        if coarse is None or source is None:
            return None
        target, fine = source.ds, source.grid
        if like is not None and fine != like.fine.grid:
            report.error("/target", f"{fine}", f"the grid of the model, {like.fine.grid}", kind=GridError)
            return None
        grid = like.coarse.grid if like else _grid_of_input(coarse, fine, report)
        if grid is None:
            return None
        height = like.height if like else _height_of(coarse, grid, report) if reduced else None
        coarse = coarse.on(grid, report, "/input", height=height)
        if coarse is None:
            return None
        stamps = target["time"].values.astype("datetime64[ns]")
        place = np.searchsorted(stamps, coarse.time)
        found = stamps[np.minimum(place, stamps.size - 1)] == coarse.time
        if not found.any():
            spans = [f"{np.min(t)} to {np.max(t)}" for t in (coarse.time, stamps)]
            report.error("time", f"/input ({spans[0]}) and /target ({spans[1]}) share no valid time", kind=TimeError)
            return None
        coarse = coarse.only(np.flatnonzero(found))
        large = too_large(coarse.nbytes + source.nbytes, memory)
        return cls(
            coarse.values(0.0 if large else np.inf),
            Series.of(target, schemas[1], lazy=large and source.is_lazy).values,
            place[found],
            coarse.time,
            coarse.reference,
            coarse.lead,
            coarse.forecast,
            statics_of(target, statics),
            (grid, fine),
            height,
            coarse.origin,
        )

    def within(self, periods: Iterable[tuple]) -> np.ndarray:
        """Numbers of the pairs of which the start (of an analysis: the time) and the valid time lie in one period.

        Starts of forecasts may lie at the start of a period, valid times after it.
        """
        inside = [
            (self.reference >= np.datetime64(start)) & (self.time > np.datetime64(start)) & (self.time <= np.datetime64(end))
            for start, end in periods
        ]
        return np.flatnonzero(np.logical_or.reduce(inside))


def _grid_of_input(coarse: Coarse, fine: Grid, report: Report) -> Grid | None:
    """The part of the input's grid that the target needs."""
    source = grid_of(coarse.ds)
    if not isinstance(source, Grid):
        fix = 'First ds = xsm.regrid(ds, xsm.Grid.regular(north=..., west=..., step="0.25", shape=(...)))'
        report.error("/input", f"{source}", "latitudes and longitudes as axes", fix, kind=GridError)
    elif share := source.outside(fine):
        found = f"{100 * share:.0f} % of the target's grid ({fine}) lies outside the input's ({source})"
        report.error(
            "/input", found, "an input that covers the target", "Cut the target: ds.sel(latitude=slice(...), ...)", kind=GridError
        )
    else:
        return surroundings(source, fine, margin=1)[2]
    return None


def _height_of(coarse: Coarse, grid: Grid, report: Report) -> np.ndarray | None:
    """Orography of the input on a grid, (h, w), m; None, told in the report, where it has none."""
    if "orog" in coarse.ds:
        return regrid(coarse.ds[["orog"]], grid)["orog"].values
    if names := coarse.over_relief:
        found = f"no orography; {' and '.join(names)} are learned with the relief in them, not reduced to sea level"
        report.warn("/input", found, 'Add it: ds["orog"] = ..., or train with reduced=False')
    return None


@dataclass(frozen=True)
class PairData:
    """Pairs with the contract of the model that is trained on them.

    Attributes
    ----------
    pairs : Pairs
    coarse, fine : Branch
        Statistics of the input are those of the interpolated fields.
    extremes : dict of (float, float)
        Least and greatest value of each input channel in the training periods.
    digests : dict of str
        Hashes that tell other data, grids or statistics apart.
    """

    pairs: Pairs
    coarse: Branch
    fine: Branch
    extremes: dict[str, tuple[float, float]]
    digests: dict[str, str]

    @classmethod
    def of(
        cls,
        config: CorrDiffConfig,
        tree: xr.DataTree,
        *,
        memory: float = 4.0,
        skip: float = 0.01,
        min_samples: int = 1,
        report: Report | None = None,
    ) -> PairData:
        """Check settings and data, and survey both groups; arguments as for `xscalemixer.train`.

        Raises
        ------
        InputError
            With every problem of the settings and of both groups.
        """
        report = Report(f"training of {config.name!r}") if report is None else report
        check_settings(config, report)
        check_skip(skip, report)
        _check_stages(config, report)
        schemas = _schemas(config, report)
        pairs = None
        if schemas is not None:
            statics = tuple(name for name in config.statics if name in STATICS)
            pairs = Pairs.of(tree, schemas, report, statics=statics, reduced=config.reduced, memory=memory, skip=skip)
        if schemas is not None and pairs is not None:
            _check_samples(config, pairs, min_samples, report)
            _check_network(config, pairs, schemas, report)
        report.raise_errors(f"{config.name!r} cannot be trained")
        return cls._surveyed(config, cast("Pairs", pairs), cast("tuple[Schema, Schema]", schemas), report)

    @classmethod
    def _surveyed(cls, config: CorrDiffConfig, pairs: Pairs, schemas: tuple[Schema, Schema], report: Report) -> PairData:
        about = f"training periods of {config.name}"
        inputs = Series(pairs.time, Interpolated(pairs.inputs, Regridder(*pairs.grids, "bilinear")))
        targets = Series(pairs.time, _At(pairs.targets, pairs.place))
        zero_mean = ("ssrd",) if "ssrd" in schemas[1].names else ()
        reduced = pairs.height is not None
        height = 1000.0 * pairs.statics[0] if reduced else None
        found = survey(inputs, schemas[0], config.train, source=about)
        wanted = survey(targets, schemas[1], config.train, zero_mean=zero_mean, source=about, height=height)
        coarse = Branch(schemas[0], pairs.grids[0], replace(found.stats, reduced=reduced), ())
        fine = Branch(schemas[1], pairs.grids[1], wanted.stats, config.statics)
        extremes = _extremes(Series(pairs.time, pairs.inputs), schemas[0], config.train)
        digests = {
            "input grid": grid_digest(coarse.grid), "input data": f"{found.digest} {digest_of(pairs.lead)}",
            "target grid": grid_digest(fine.grid), "target data": f"{wanted.digest} {digest_of(pairs.statics)}",
        }  # fmt: skip
        for group, values in (("/input", pairs.inputs), ("/target", pairs.targets)):
            warn_of_chunks(group, Series(pairs.time, values), 1, report)
        for finding in report.select("warning"):
            log.warning("%s", finding)
        return cls(pairs, coarse, fine, extremes, digests)

    def samples(self, model: Downscaler, periods: Periods) -> PairSamples:
        """Normalized pairs within the periods."""
        return PairSamples(self.pairs, model, self.pairs.within(periods))

    def measure_change(self, model: Downscaler, periods: Periods, group: Ranks) -> None:
        """How far the truth is from the interpolated input, for channels that are both; the others keep a scale of 1."""
        regression = model.network.regression
        if regression.targets:
            scale, _ = self._measured(model, periods, group)
            regression.change_scale[regression.targets] = scale[regression.targets].clamp(min=_LEAST)

    def measure_residual(self, model: Downscaler, periods: Periods, group: Ranks) -> None:
        """Scale of the residual of each channel, and the size of patches that it suggests, on samples of these periods."""
        std, some = self._measured(model, periods, group)
        model.network.residual_scale.copy_(std / model.network.diffusion.sigma_data)
        physical = (std.flatten().numpy() * self.fine.stats.arrays(self.fine.schema)[1]).tolist()
        about: dict[str, Any] = {"std": dict(zip(self.fine.schema.channels, (float(f"{x:.4g}") for x in physical), strict=True))}
        try:
            about["suggested_patch"] = suggest_patch(some, multiple=model.network.config.diffusion.multiple)
        except InputError as error:
            about["suggested_patch"] = None
            log.info("no size of patches is suggested: %s", "; ".join(error.problems))
        log.info("residual of the regression: %s", about)
        model.about["residual"] = about

    def _measured(self, model: Downscaler, periods: Periods, group: Ranks) -> tuple[Tensor, Tensor]:
        """Root mean square of truth less mean, normalized, (C, 1, 1), and that difference for a few samples, (n, C, H, W).

        On the device; each process measures its share, and has the same few samples as the others.
        """
        samples = self.samples(model, periods)
        chosen = np.random.default_rng(0).permutation(len(samples))[:_MEASURED].tolist()
        model.to(group.device)
        square = torch.zeros(len(self.fine.schema), dtype=torch.float64, device=group.device)
        for number in chosen[group.rank :: group.count]:
            square += _residual(model, samples[number]).double().square().mean((0, 2, 3)) / len(chosen)
        few = max(1, min(_FEW, _HELD // (4 * len(self.fine.schema) * self.pairs.statics[0].size)))
        some = torch.cat([_residual(model, samples[number]) for number in chosen[:few]])
        model.to("cpu")
        return group.total(square).sqrt().float().cpu()[:, None, None], some


def _residual(model: Downscaler, sample: Mapping[str, Tensor]) -> Tensor:
    """Truth less regression, normalized, (1, C', H, W) on the device of the model."""
    mean = cast("Tensor", model.condition(Inputs(sample["fields"], sample["scalars"])).mean)
    return sample["target"][None].to(mean) - mean


@dataclass(frozen=True)
class CoarseToFine:
    """The configured preset of CorrDiff on the configured channels."""

    config: CorrDiffConfig

    def collect(self, config: CorrDiffConfig, tree: xr.DataTree, **how) -> PairData:
        """The data, checked and surveyed."""
        return PairData.of(config, tree, **how)

    def fresh(self, data: PairData) -> Downscaler:
        """A model to train, with random weights."""
        config, pairs, coarse, fine = self.config, data.pairs, data.coarse, data.fine
        network = CorrDiff(_network(config, pairs, (coarse.schema, fine.schema)))
        network.regression.match(*(Normalizer(*branch.stats.arrays(branch.schema)) for branch in (coarse, fine)))
        leads = (int(pairs.lead.min()), int(pairs.lead.max())) if pairs.forecast else None
        about = {"forecasts_of": pairs.origin} if pairs.origin else {}
        model = Downscaler(
            config.name,
            network,
            coarse,
            fine,
            data.extremes,
            calendar=config.calendar,
            leads=leads,
            patch=config.patch,
            patched_mean=config.patch is not None and config.patch_regression,
            about=about,
        )
        model.domain.statics.copy_(torch.from_numpy(pairs.statics))
        if pairs.height is not None:
            model.domain.height = torch.from_numpy(pairs.height)
        return model


class _At:
    """Fields at some places of a longer series."""

    def __init__(self, values: Fields, place: np.ndarray):
        self._values, self._place = values, place
        self.shape = (place.size, *values.shape[1:])

    def __getitem__(self, times: slice | np.ndarray) -> np.ndarray:
        """(n, C, H, W)."""
        place, back = np.unique(self._place[times], return_inverse=True)
        return self._values[place][back]


def _extremes(series: Series, schema: Schema, periods: Periods) -> dict[str, tuple[float, float]]:
    inside = series.within(periods)
    low, high = np.full(len(schema), np.inf), np.full(len(schema), -np.inf)
    for block in series.blocks():
        if inside[block].any():
            values = series.values[block][inside[block]]
            low, high = np.minimum(low, values.min((0, 2, 3))), np.maximum(high, values.max((0, 2, 3)))
    return {c: (float(f"{a:.6g}"), float(f"{b:.6g}")) for c, a, b in zip(schema.channels, low, high, strict=True)}


def _network(config: CorrDiffConfig, pairs: Pairs, schemas: tuple[Schema, Schema]) -> CorrDiffNetworkConfig:
    """The configured preset on these channels and grids."""
    settings = getattr(CorrDiffNetworkConfig, config.size)(shared=()).changed(config.network)
    known = {name: i for i, name in enumerate(schemas[0].channels)}
    shared = tuple(known.get(name) for name in schemas[1].channels) if config.residual else ()
    places = settings.positions
    return replace(
        settings, coarse=len(schemas[0]), outputs=len(schemas[1]), statics=len(config.statics) + 1, scalars=4 + pairs.forecast,
        shared=shared if any(i is not None for i in shared) else (),
        positions=places if places.kind == "none" else replace(places, shape=pairs.grids[1].shape),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- checks


def _schemas(config: CorrDiffConfig, report: Report) -> tuple[Schema, Schema] | None:
    """Of the input and of the target."""
    found = []
    for name in ("inputs", "outputs"):
        try:
            schema = Schema.of_channels(*getattr(config, name))
        except SchemaError as error:
            report.error(name, "; ".join(error.problems), fix=f'{name}=("t2m", "u10", "v10", "t_850")', kind=InputError)
            continue
        if not schema.channels:
            report.error(name, "none", "at least one channel", f'{name}=("t2m", "u10", "v10")', kind=InputError)
            continue
        found.append(schema)
    return (found[0], found[1]) if len(found) == 2 else None


def _check_stages(config: CorrDiffConfig, report: Report) -> None:
    """Patches, and the order of stages."""
    if config.patch is not None and (len(config.patch) != 2 or min(config.patch) < 1 or config.patches < 1):
        needed = "rows and columns, and 1 patch or more"
        report.error("patch", f"{config.patch}, patches={config.patches}", needed, "patch=(128, 128), patches=4", kind=InputError)
    if config.patch is None and (config.patches != CorrDiffConfig.patches or config.patch_regression):
        found = f"patches={config.patches}, patch_regression={config.patch_regression}"
        report.error("patches", found, "patch= too", "patch=(128, 128)", kind=InputError)
    for number, stage in enumerate(config.stages):
        if stage.kind == "diffusion" and not any(s.kind == "regression" for s in config.stages[:number]):
            found = "no regression before it, whose errors it learns"
            fix = 'Put one before it: stages=(xsm.Stage(kind="regression", ...), xsm.Stage(kind="diffusion", ...))'
            report.error(f"stages[{number}] (diffusion)", found, fix=fix, kind=InputError)
        if stage.kind == "regression" and any(s.kind == "diffusion" for s in config.stages[:number]):
            found = "it follows a diffusion, which was trained on the errors of the regression before"
            report.error(f"stages[{number}] (regression)", found, fix="Move it to the front of stages=", kind=InputError)


def _check_network(config: CorrDiffConfig, pairs: Pairs, schemas: tuple[Schema, Schema], report: Report) -> None:
    """It can be made, and patches fit into the target."""
    if config.size in config.sizes:
        try:
            with torch.device("meta"):
                CorrDiff(_network(config, pairs, schemas))
        except (AttributeError, TypeError, ValueError) as error:
            found = f"size={config.size!r}, network={config.network}: {error}"
            report.error("network", found, fix="Change network= or size= of the settings", kind=InputError)
    rows, columns = pairs.grids[1].shape
    if config.patch is not None and len(config.patch) == 2 and (config.patch[0] > rows or config.patch[1] > columns):
        found = f"{config.patch} is larger than the target, {rows} x {columns}"
        report.error("patch", found, fix="Choose a smaller one, or leave it out", kind=InputError)


def _check_samples(config: CorrDiffConfig, pairs: Pairs, min_samples: int, report: Report) -> None:
    """Every stage has samples to validate on, and enough to learn from."""
    rows = [("validation", config.validation, 1, "the run")]
    for number, stage in enumerate(config.stages):
        name = f"stages[{number}].periods" if stage.periods else "train"
        rows.append((name, config.periods_of(stage)[0], max(stage.batch, min_samples), f"stage {stage.label}"))
    for name, periods, needed, whose in rows:
        if are_periods(periods) and (count := pairs.within(periods).size) < needed:
            found = f"{count} pairs of input and target for {whose}"
            report.error(name, found, f"at least {needed}", "Change these periods, or give more data", kind=TimeError)


# --------------------------------------------------------------------------------------------------------------- samples


class PairSamples(Dataset):
    """Normalized samples for training; threads may share it.

    A sample is a dict of tensors: ``fields`` (C + 3, H, W) and ``scalars`` as in `downscaler.Inputs`, ``target`` (C', H, W), and
    its ``number``.
    """

    def __init__(self, pairs: Pairs, model: Downscaler, chosen: np.ndarray):
        self.pairs, self.chosen, self._inputs = pairs, chosen, model.inputs
        scale = model.fine.scale(model.static["orog"])
        self._mean, self._std = (part[:, None, None] if part.ndim == 1 else part for part in scale)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        pairs, i = self.pairs, int(self.chosen[item])
        inputs = self._inputs(pairs.inputs[i : i + 1][0], pairs.time[i], int(pairs.lead[i]))
        truth = pairs.targets[pairs.place[i : i + 1]][0]
        target = torch.from_numpy((truth - self._mean) / self._std)
        return {"fields": inputs.fields, "scalars": inputs.scalars, "target": target, "number": torch.tensor(item)}


# ----------------------------------------------------------------------------------------------------------- objectives


class _Objective(nn.Module):
    """Part of a CorrDiff network that a stage trains; nothing follows an update."""

    def __init__(self, model: Downscaler, config: CorrDiffConfig):
        super().__init__()
        self.network, self.channels = model.network, model.fine.schema.channels
        self.patch, self.patches, self.patched_mean = config.patch, config.patches, model.patched_mean

    def after_step(self) -> None:
        """Nothing."""

    def crops(self, batch: Mapping[str, Tensor]) -> Crops:
        """Patches of a batch: at random while training, always the same ones in validation."""
        if self.patch is None:
            return Crops.whole(batch["target"])
        generators = None if self.training else self.generators(batch)
        return random_crops(batch["target"], self.patch, self.patches, generators)

    @staticmethod
    def generators(batch: Mapping[str, Tensor]) -> list[torch.Generator]:
        """Random numbers of each sample, whatever the batch that it comes in."""
        return [torch.Generator().manual_seed(number) for number in batch["number"].tolist()]


class RegressionObjective(_Objective):
    """Mean squared error of the mean; parts: that of each channel. 1 is that of the interpolated input, or of the climate."""

    def trainable(self) -> list[nn.Parameter]:
        """The regression."""
        return list(self.network.regression.parameters())

    def loss(self, batch: Mapping[str, Tensor]) -> Losses:
        """Of a batch of `PairSamples`."""
        condition = Condition(batch["fields"], batch["scalars"])
        crops = self.crops(batch) if self.patched_mean else Crops.whole(batch["target"])
        regression = self.network.regression
        parts = regression.loss(regression(condition, crops), crops.cut(batch["target"]))
        return parts.mean(), dict(zip(self.channels, parts.detach(), strict=True))


class DiffusionObjective(_Objective):
    """Weighted squared error of the denoised residual; the regression is frozen.

    In validation at three noise levels, a standard deviation apart, with the same noise every time: the loss is nearly constant
    over noise levels by design, so that random ones would hide what is learned. Parts: the loss at each, and of each channel.
    """

    def trainable(self) -> list[nn.Parameter]:
        """The diffusion."""
        return list(self.network.diffusion.parameters())

    def train(self, mode: bool = True) -> DiffusionObjective:
        """The regression never drops anything."""
        super().train(mode)
        self.network.regression.eval()
        return self

    def loss(self, batch: Mapping[str, Tensor]) -> Losses:
        """Of a batch of `PairSamples`."""
        crops, condition = self.crops(batch), Condition(batch["fields"], batch["scalars"])
        with torch.no_grad():
            mean = self.network.regression(condition, crops if self.patched_mean else None)
        mean = mean if self.patched_mean else crops.cut(mean)
        condition = condition._replace(mean=mean)
        residual = (crops.cut(batch["target"]) - mean) / self.network.residual_scale
        diffusion = self.network.diffusion
        if self.training:
            errors, _ = diffusion.errors(residual, condition, crops)
            return errors.mean(), {}
        levels, parts = [], {}
        for deviate in _LEVELS:
            sigma = diffusion.noise_level(residual.new_full((len(crops.sample),), deviate))
            errors, _ = diffusion.errors(residual, condition, crops, self.generators(batch), sigma)
            parts[f"noise_{float(sigma[0]):.2g}"] = errors.mean()
            levels.append(errors.mean(0))
        total = torch.stack(levels).mean(0)
        return total.mean(), parts | dict(zip(self.channels, total, strict=True))
