"""Calibration of CorrDiff: how wide its members should spread, and which solver makes them, from validation data."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from os import PathLike
from typing import cast

import numpy as np
import torch
import xarray as xr

from xscalemixer.downscaler import Downscaler, Inputs
from xscalemixer.downscaling import downscaler_of, seeds_of
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
_TRIED = np.geomspace(0.1, 10.0, 33)  # factors, where spread cannot be made to equal the error

log = logging.getLogger(__name__)


def calibrate(
    model: str | PathLike | Downscaler,
    tree: xr.DataTree,
    periods: Periods | None = None,
    *,
    members: int = 8,
    samples: int = 12,
    solvers: Iterable[SolverConfig] | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool | None = None,
) -> Downscaler:
    r"""Fit the spread of the members of a CorrDiff model, channel by channel, and choose its solver.

    The residual of each channel is scaled by the one factor with which the spread of the members equals the error of their mean:
    with error :math:`e` of the regression, residuals :math:`r_i`, their mean :math:`\bar r` and variance :math:`V` (means over
    samples and cells), it is the least positive root of :math:`a^2 (V (M + 1) / M - E \bar r^2) + 2 a E e \bar r - E e^2 = 0`,
    or, where no factor does that, the one with the lowest CRPS. Of several solvers the one with the lowest fair CRPS after that
    is kept: the mean over channels of the ratio to the first solver's.

    Parameters
    ----------
    model : str, path or Downscaler
        It is not changed.
    tree : DataTree
        ``/input`` and ``/target`` as for training, with times that the model was not trained on.
    periods : tuple of (start, end), optional
        Default: the validation periods of its training.
    members, samples : int
        Members per sample, and samples, evenly spread over the periods.
    solvers : iterable of SolverConfig, optional
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
    Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1 (spread and error); Ferro 2014, doi:10.1002/qj.2270 (fair CRPS).
    """
    model = copy.deepcopy(downscaler_of(model))
    data = _samples(model, tree, periods, members, samples)
    model.to(device_of(device))
    base = replace(model.solver, churn=0.0)
    tried = (
        tuple(solvers)
        if solvers is not None
        else (model.solver, *(replace(base, churn=c) for c in _CHURN if c != model.solver.churn))
    )
    if not tried:
        raise InputError("nothing was calibrated", ["solvers= is empty; give one SolverConfig or more, or leave it out"])
    chosen = np.unique(np.linspace(0, len(data) - 1, min(samples, len(data))).round().astype(int)).tolist()
    measured = dict.fromkeys((*tried, model.solver))  # its own one is what was before, tried or not
    with progress_bar(len(measured) * len(chosen) * members, "field", "calibrate", progress) as bar:
        errors = {solver: _errors(model, data, chosen, members, solver, seed, bar) for solver in measured}
    before = errors[model.solver].scores(model.network.spread.flatten().cpu().numpy())
    found = [errors[solver] for solver in tried]
    factors = [_factors(each, model) for each in found]
    after = [each.scores(factor) for each, factor in zip(found, factors, strict=True)]
    crps = [(each["crps"] / after[0]["crps"]).mean() for each in after]
    best = int(np.argmin(crps))
    with torch.no_grad():
        model.network.spread.copy_(torch.from_numpy(factors[best])[:, None, None])
    model.solver, model.sha256 = tried[best], ""
    rounded = lambda values: [float(f"{value:.4g}") for value in np.atleast_1d(values)]
    model.about["calibration"] = {
        "members": members, "samples": len(chosen), "solver": model.solver.to_dict(),
        "solvers": {f"{s.method} {s.steps}, churn {s.churn:g}": value for s, value in zip(tried, rounded(crps), strict=True)},
        "channels": {
            channel: {"factor": rounded(factors[best][c])[0]}
            | {name: [rounded(before[name][c]), rounded(after[best][name][c])] for name in before}
            for c, channel in enumerate(model.fine.schema.channels)
        },
    }  # fmt: skip
    return model.to("cpu")


@dataclass(frozen=True)
class _Errors:
    """Errors of the regression (N, C), and residuals (N, M, C), at all places that are looked at."""

    error: np.ndarray
    residual: np.ndarray

    def scores(self, factor: np.ndarray) -> dict[str, np.ndarray]:
        """By channel, with the residuals times ``factor`` (C,)."""
        residual, count = self.residual * factor, self.residual.shape[1]
        gap = self.error - residual.mean(1)
        ratio = np.sqrt((count + 1) / count * residual.var(1, ddof=1).mean(0) / np.square(gap).mean(0))
        ordered = np.sort(residual, axis=1)
        # sum over pairs of |x_i - x_j| from the sorted members
        weight = 2 * np.arange(count) - count + 1
        pairs = np.einsum("m,nmc->nc", weight, ordered) / (count * (count - 1))
        crps = (np.abs(residual - self.error[:, None]).mean(1) - pairs).mean(0)
        rank = (residual < self.error[:, None]).sum(1)
        ranks = np.stack([np.bincount(column, minlength=count + 1) / column.size for column in rank.T])
        return {"spread_skill": ratio, "crps": crps / np.abs(self.error).mean(0), "ranks": ranks}


def _samples(model: Downscaler, tree: xr.DataTree, periods, members: int, samples: int) -> PairSamples:
    """Validation data of a model."""
    report, task = Report(f"calibration of {model.name!r}"), "nothing was calibrated"
    if members < 2:
        report.error("members", f"members={members}", "2 or more, to know their spread", kind=InputError)
    if samples < 1:
        report.error("samples", f"samples={samples}", "1 or more", kind=InputError)
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
    pairs = Pairs.of(tree, (model.coarse.schema, model.fine.schema), report, grids=(model.coarse.grid, model.fine.grid))
    if pairs is not None and report.ok and not pairs.within(periods).size:
        report.error("periods", "no pairs of input and target within them", kind=TimeError)
    report.raise_errors(task)
    pairs = cast("Pairs", pairs)
    model.require_lead(pairs.forecast, task)
    return PairSamples(pairs, model, pairs.within(periods))


def _errors(
    model: Downscaler, data: PairSamples, chosen: list[int], members: int, solver: SolverConfig, seed: int, bar
) -> _Errors:
    """Regression and samples of one solver, normalized, at some cells of each sample."""
    rows, columns = model.fine.grid.shape
    picked = np.random.default_rng(seed).permutation(rows * columns)[:_CELLS]
    at = lambda fields: fields.flatten(-2)[..., picked].cpu().numpy()
    errors, residuals = [], []
    for item in chosen:
        sample, i = data[item], int(data.chosen[item])
        condition = model.condition(Inputs(sample["fields"], sample["scalars"]))
        errors.append(at(sample["target"].to(model.device) - cast("torch.Tensor", condition.mean)[0]).T)
        one = []
        for member in range(members):
            seeds = [seeds_of(seed, member, i, 0.0)]
            drawn = model.network.diffusion.sample(condition, seeds, solver=solver, tiling=model.tiling())
            one.append(at(drawn[0] * model.network.residual_scale))
            bar.update()
        residuals.append(np.stack(one).transpose(2, 0, 1))
    return _Errors(np.concatenate(errors), np.concatenate(residuals))


def _factors(found: _Errors, model: Downscaler) -> np.ndarray:
    """The factor of each channel with which spread equals error, (C,); where none does, the one with the lowest CRPS."""
    count, middle = found.residual.shape[1], found.residual.mean(1)
    variance = found.residual.var(1, ddof=1).mean(0)
    names = np.array(model.fine.schema.channels)
    if not variance.all():
        problem = f"members of {', '.join(names[variance == 0])} do not differ from one another"
        raise InputError("nothing was calibrated", [f"{problem}; train the diffusion longer"])
    a = variance * (count + 1) / count - np.square(middle).mean(0)
    b, c = (found.error * middle).mean(0), np.square(found.error).mean(0)
    root = b**2 + a * c
    divisor = b + np.sqrt(np.maximum(root, 0))
    astray = (root < 0) | (divisor <= 0)  # the members miss together by more than they differ
    factor = c / np.where(astray, 1.0, divisor)
    if astray.any():
        log.warning("spread does not reach the error: %s; the factor with the lowest CRPS is taken", ", ".join(names[astray]))
        crps = np.stack([found.scores(np.full(names.size, each))["crps"] for each in _TRIED])
        factor[astray] = _TRIED[crps.argmin(0)[astray]]
    return factor.astype("f4")
