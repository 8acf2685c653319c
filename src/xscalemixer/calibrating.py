"""Calibration of CorrDiff: how wide its members should spread, and which solver makes them, from validation data."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from numbers import Integral
from os import PathLike
from typing import cast

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from xscalemixer.downscaler import Downscaler, Inputs
from xscalemixer.downscaling import downscaler_of, seeds_of, solver_of
from xscalemixer.errors import InputError, TimeError
from xscalemixer.nn.sampling import SolverConfig
from xscalemixer.progress import progress_bar
from xscalemixer.report import Report
from xscalemixer.running import device_of
from xscalemixer.training.config import Periods, are_periods
from xscalemixer.training.corrdiff import Pairs, PairSamples

__all__ = ["calibrate"]

_CELLS = 4096  # cells of a sample that are looked at, at most
_CHURN = (0.0, 10.0, 40.0)
_TRIED = 2.0 ** (np.arange(-16, 17) / 8)  # factors, 1 among them

log = logging.getLogger(__name__)


def calibrate(
    model: str | PathLike | Downscaler,
    tree: xr.DataTree,
    periods: Periods | None = None,
    *,
    members: int = 8,
    samples: int = 12,
    solvers: Iterable[str | SolverConfig] | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool | None = None,
) -> Downscaler:
    """Fit the spread of the members of a CorrDiff model, channel by channel, and choose its solver, by CRPS.

    The residual of each channel is scaled by the factor between 1/4 and 4 with which the members, within physical limits, have
    the lowest fair CRPS; spread then follows from a proper score, which is never worse than before on the same data. Of several
    solvers the one whose CRPS, over that of the first one, is lowest in the mean over channels is kept.

    Parameters
    ----------
    model : str, path or Downscaler
        It is not changed.
    tree : DataTree
        ``/input`` and ``/target`` as for training, with times that the model was not trained on.
    periods : tuple of (start, end), optional
        Default: the validation periods of its training.
    members, samples : int
        Members per sample, and samples at random times, evenly spread over the hours of the day.
    solvers : iterable of "heun", "fast" or SolverConfig, optional
        Default: that of the model, and the same with new noise in each step (churn 10 and 40).
    seed, device, progress
        As for `xscalemixer.downscale`.

    Returns
    -------
    Downscaler
        With the factors and the solver; ``about["calibration"]`` has, by channel, before (with the solver of ``model``) and
        after, spread over error, fair CRPS over that of the regression (its mean absolute error), and frequencies of the ranks
        of the truth.

    Raises
    ------
    InputError
        If settings or data do not fit, listing every problem; if the members of a channel are all the same.

    References
    ----------
    Ferro 2014, doi:10.1002/qj.2270 (fair CRPS); Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1 (spread and error).
    """
    model = copy.deepcopy(downscaler_of(model))
    settings = _Settings.of(members, samples, seed, solvers, model.solver)
    data = _samples(model, tree, periods)
    model.to(device_of(device))
    chosen = _spread_over_hours(data.pairs.time[data.chosen], settings.samples, settings.seed)
    measured = dict.fromkeys((*settings.solvers, model.solver))  # its own one is what was before, tried or not
    with progress_bar(len(measured) * len(chosen) * members, "field", "calibrate", progress) as bar:
        drawn = {solver: _Drawn.of(model, data, chosen, settings, solver, bar) for solver in measured}
    before = drawn[model.solver].scores(model.network.spread.flatten().cpu().numpy())
    found = [drawn[solver] for solver in settings.solvers]
    factors = [each.factors(model.fine.schema.channels) for each in found]
    after = [each.scores(factor) for each, factor in zip(found, factors, strict=True)]
    crps = [(each["crps"] / after[0]["crps"]).mean() for each in after]
    best = int(np.argmin(crps))
    with torch.no_grad():
        model.network.spread.copy_(torch.from_numpy(factors[best])[:, None, None])
    model.solver, model.sha256 = settings.solvers[best], ""
    rounded = lambda values: [float(f"{value:.4g}") for value in np.atleast_1d(values)]
    labels = [f"{solver.method} {solver.steps}, churn {solver.churn:g}" for solver in settings.solvers]
    model.about["calibration"] = {
        "members": members, "samples": len(chosen), "solver": model.solver.to_dict(),
        "solvers": dict(zip(labels, rounded(crps), strict=True)),
        "channels": {
            channel: {"factor": rounded(factors[best][c])[0]}
            | {name: [rounded(before[name][c]), rounded(after[best][name][c])] for name in before}
            for c, channel in enumerate(model.fine.schema.channels)
        },
    }  # fmt: skip
    return model.to("cpu")


@dataclass(frozen=True)
class _Settings:
    """How much is drawn, checked."""

    members: int
    samples: int
    seed: int
    solvers: tuple[SolverConfig, ...]

    @classmethod
    def of(cls, members, samples, seed, solvers, own: SolverConfig) -> _Settings:
        problems = []
        for name, value, least in (("members", members, 2), ("samples", samples, 1), ("seed", seed, 0)):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                problems.append(f"{name}={value!r}; needed a whole number from {least}")
        if solvers is None:
            quiet = replace(own, churn=0.0)
            tried = [own, *(replace(quiet, churn=churn) for churn in _CHURN if churn != own.churn)]
        else:
            given = [solvers] if isinstance(solvers, (str, SolverConfig)) else list(solvers)
            tried = [found for each in given if (found := solver_of(each, problems)) is not None]
            if not given:
                problems.append("solvers= is empty; give one or more, or leave it out")
        if problems:
            raise InputError("nothing was calibrated", problems)
        return cls(int(members), int(samples), int(seed), tuple(tried))


@dataclass(frozen=True)
class _Drawn:
    """Samples of one solver at some cells: N samples, M members, C channels, P cells.

    Attributes
    ----------
    mean, residual : arrays, shapes (N, C, P) and (N, M, C, P), normalized
        Regression, and what was drawn around it.
    truth : array, shape (N, C, P), physical
    weight : array, shape (P,)
        Areas of the cells; sum 1.
    finish : callable
        Normalized (..., C, P) and the number of the sample to physical fields within their limits.
    """

    mean: np.ndarray
    residual: np.ndarray
    truth: np.ndarray
    weight: np.ndarray
    finish: Callable[[np.ndarray, int], np.ndarray]

    @classmethod
    def of(
        cls, model: Downscaler, data: PairSamples, chosen: np.ndarray, settings: _Settings, solver: SolverConfig, bar
    ) -> _Drawn:
        """Draw them."""
        grid = model.fine.grid
        picked = np.random.default_rng(settings.seed).permutation(grid.shape[0] * grid.shape[1])[:_CELLS]
        times = data.pairs.time[data.chosen[chosen]]

        def at(fields: Tensor) -> np.ndarray:
            return fields.flatten(-2)[..., picked].float().cpu().numpy()

        def finish(fields: np.ndarray, number: int) -> np.ndarray:
            return model.physical(torch.from_numpy(fields)[..., None, :], times[number], picked)[..., 0, :].numpy()

        means, residuals, truths = [], [], []
        for number, item in enumerate(chosen.tolist()):
            sample, i = data[item], int(data.chosen[item])
            condition = model.condition(Inputs(sample["fields"], sample["scalars"]))
            means.append(at(cast("Tensor", condition.mean)[0]))
            truths.append(finish(at(sample["target"]), number))
            one = []
            for member in range(settings.members):
                seeds = [seeds_of(settings.seed, member, i, 0.0)]
                residual = model.network.diffusion.sample(condition, seeds, solver=solver, tiling=model.tiling())
                one.append(at(residual[0] * model.network.residual_scale))
                bar.update()
            residuals.append(np.stack(one))
        area = grid.area.flatten()[picked]
        return cls(np.stack(means), np.stack(residuals), np.stack(truths), area / area.sum(), finish)

    def members(self, number: int, factor: np.ndarray) -> np.ndarray:
        """Of one sample, with residuals times ``factor`` (C,): (M, C, P), physical."""
        return self.finish(self.mean[number] + factor[:, None].astype("f4") * self.residual[number], number)

    def crps(self, factor: np.ndarray) -> np.ndarray:
        """Fair CRPS of each channel, (C,)."""
        return np.mean([_crps(self.members(n, factor), truth) @ self.weight for n, truth in enumerate(self.truth)], axis=0)

    def factors(self, channels: tuple[str, ...]) -> np.ndarray:
        """The factor of each channel with the lowest CRPS, (C,)."""
        alike = (self.residual.std(1) == 0).all((0, 2))
        if alike.any():
            names = ", ".join(np.array(channels)[alike])
            raise InputError("nothing was calibrated", [f"members of {names} do not differ; train the diffusion longer"])
        crps = np.stack([self.crps(np.full(len(channels), factor)) for factor in _TRIED])
        if (edge := np.isin(crps.argmin(0), (0, len(_TRIED) - 1))).any():
            log.warning("no factor from 1/4 to 4 is best for %s; train the diffusion longer", ", ".join(np.array(channels)[edge]))
        return _TRIED[crps.argmin(0)].astype("f4")

    def scores(self, factor: np.ndarray) -> dict[str, np.ndarray]:
        """By channel, with the residuals times ``factor`` (C,)."""
        count, rows = self.residual.shape[1], []
        for n, truth in enumerate(self.truth):
            members = self.members(n, factor)
            one = {f"rank {r}": frequency for r, frequency in enumerate(_ranks(members, truth))}
            one |= {"variance": members.var(0, ddof=1), "square": np.square(truth - members.mean(0))}
            one |= {"crps": _crps(members, truth), "error": np.abs(truth - self.finish(self.mean[n], n))}
            rows.append({name: values @ self.weight for name, values in one.items()})
        mean = {name: np.mean([row[name] for row in rows], axis=0) for name in rows[0]}
        over = lambda a, b: np.divide(a, b, out=np.ones_like(a), where=b > 0)  # 1 where nothing varies
        return {
            "spread_skill": np.sqrt(over((count + 1) / count * mean["variance"], mean["square"])),
            "crps": over(mean["crps"], mean["error"]),
            "ranks": np.stack([mean[f"rank {r}"] for r in range(count + 1)], axis=1),
        }


def _crps(members: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Fair CRPS in each cell: (M, C, P) and (C, P) -> (C, P)."""
    count = len(members)
    # sum over pairs of |x_i - x_j| from the sorted members
    weight = 2 * np.arange(count) - count + 1
    pairs = np.tensordot(weight, np.sort(members, axis=0), 1) / (count * (count - 1))
    return np.abs(members - truth).mean(0) - pairs


def _ranks(members: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Whether the truth has each rank among the members, (M + 1, C, P); the ranks of ties share one."""
    below, same = (members < truth).sum(0), (members == truth).sum(0)
    rank = np.arange(len(members) + 1)[:, None, None]
    return ((rank >= below) & (rank <= below + same)) / (same + 1)


def _spread_over_hours(times: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Numbers of some of the times, at random but evenly spread over the hours of the day."""
    shuffled = np.random.default_rng(seed).permutation(times.size)
    ordered = shuffled[np.argsort((times[shuffled] - times[shuffled].astype("M8[D]")), kind="stable")]
    count = min(samples, times.size)
    return np.sort(ordered[((np.arange(count) + 0.5) * times.size / count).astype(int)])


def _samples(model: Downscaler, tree: xr.DataTree, periods) -> PairSamples:
    """Validation data of a model."""
    report, task = Report(f"calibration of {model.name!r}"), "nothing was calibrated"
    trained = model.about.get("trained_on", [{}])[-1]
    periods = trained.get("validation", ()) if periods is None else periods
    if not are_periods(periods):
        fix = 'periods=(("2001-08-31", "2001-09-04"),)'
        report.error("periods", repr(periods), "pairs of dates, the first before the second", fix, kind=TimeError)
    else:
        for start, end in trained.get("train", ()):
            for begin, finish in periods:
                if max(np.datetime64(start), np.datetime64(begin)) < min(np.datetime64(end), np.datetime64(finish)):
                    fix = "Choose times that the model was not trained on"
                    report.error(
                        "periods",
                        f"{begin} to {finish} shares times with the training ({start} to {end})",
                        fix=fix,
                        kind=TimeError,
                    )
    pairs = Pairs.of(tree, (model.coarse.schema, model.fine.schema), report, like=model)
    if pairs is not None and report.ok and not pairs.within(periods).size:
        report.error("periods", "no pairs of input and target within them", kind=TimeError)
    report.raise_errors(task)
    pairs = cast("Pairs", pairs)
    model.require_lead(pairs.forecast, task)
    return PairSamples(pairs, model, pairs.within(periods))
