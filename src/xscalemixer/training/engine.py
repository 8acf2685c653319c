"""The loop: trains any objective, on one device or many, and goes on where it was stopped.

Nothing in it depends on what was drawn or read before: the samples of an update, its learning rate and its random numbers
follow from the number of the update alone. So the state of a run is weights, optimizer, moving average, progress and that
number, and one process and many give the same losses for the same batch.
"""

from __future__ import annotations

import copy
import logging
import math
import re
import time as clock
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from xscalemixer.errors import InputError
from xscalemixer.nn.draws import drawing_for
from xscalemixer.progress import progress_bar
from xscalemixer.training.batches import Feed, Order, Pass, Samples, passes
from xscalemixer.training.checkpoints import Checkpoints, LossLog
from xscalemixer.training.ranks import Ranks, like, whole

__all__ = ["MovingAverage", "Objective", "OneStage", "Plan", "Saving", "fit", "seed_of"]

log = logging.getLogger(__name__)


class Objective(Protocol):
    """What `fit` needs of the module that it trains."""

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the samples of a batch of what is minimized, shape (), and of parts to look at, detached."""

    def trainable(self) -> list[nn.Parameter]:
        """Parameters to optimize."""

    def after_step(self) -> None:
        """Whatever follows each update."""


class OneStage(nn.Module):
    """One stage of an objective that has several, such as `nn.met2net.Met2NetObjective`."""

    def __init__(self, objective: nn.Module, stage: str):
        super().__init__()
        self.objective: Any = objective
        self.stage = stage

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the stage."""
        return self.objective.loss(batch, self.stage)

    def trainable(self) -> list[nn.Parameter]:
        """Of the stage."""
        return self.objective.trainable(self.stage)

    def after_step(self) -> None:
        """Of the objective."""
        self.objective.after_step()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How an objective is trained; for the meaning of each see `config.Stage` and `config.TrainConfig`.

    Attributes
    ----------
    watch : dict of str
        Patterns of parameter names; the norm of their part of the gradient is recorded as ``gradient_norm_KEY``.
    """

    label: str
    updates: int
    batch: int
    peak: float
    floor: float
    check_every: int
    seed: int = 0
    per_pass: int | None = None
    patience: int | None = None
    warmup: int = 0
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    ema: float = 0.998
    precision: str = "bf16"
    watch: Mapping[str, str] = field(default_factory=dict)

    def rate(self, update: int) -> float:
        """Learning rate of an update, counted from 1: linear warm-up, then cosine from peak to floor."""
        done, warmup = update - 1, min(self.warmup, self.updates // 4)
        if done < warmup:
            return self.peak * (done + 1) / warmup
        progress = (done - warmup) / max(1, self.updates - warmup)
        return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Where the state is kept, and how often.

    Attributes
    ----------
    checkpoints : Checkpoints
    losses : Path
        File of `checkpoints.LossLog`.
    updates, minutes : int, float
        A checkpoint is written when either has passed since the last one.
    """

    checkpoints: Checkpoints
    losses: Path
    updates: int = 200
    minutes: float = 10.0


def fit(
    objective: nn.Module,
    samples: Samples,
    checks: Samples,
    plan: Plan,
    ranks: Ranks,
    *,
    saving: Saving | None = None,
    workers: int = 2,
) -> list[dict[str, float]]:
    """AdamW on an objective; it holds the best weights afterwards: those at the start, or a moving average.

    Parameters
    ----------
    objective : Module that is an `Objective`
    samples, checks : Samples
        Training and validation samples.
    plan : Plan
    ranks : Ranks
    saving : Saving, optional
        A run that was stopped goes on from there.
    workers : int
        Threads that read samples.

    Returns
    -------
    list of dict
        One record per validation: update, mean training loss since the last one, validation loss and its parts, largest
        gradient norm before clipping, mean norms of the watched parts, learning rate, share of the time spent waiting for
        data, minutes.

    Raises
    ------
    InputError
        If a loss or a gradient is not finite; the last checkpoint stays.
    """
    return _Run(objective, samples, checks, plan, ranks, saving, workers).to_the_end()


def seed_of(*numbers: int) -> int:
    """A seed that differs wherever one of the numbers does."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class MovingAverage:
    """Exponential moving average of parameters that forgets its first iterates.

    Update n keeps the share ``min(decay, (1 + n) / (10 + n))`` of the average.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float):
        self.decay, self.updates = decay, 0
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """Take in the parameters after an update; the first replaces what they were before."""
        n = self.updates
        keep = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        for name, value in self.values.items():
            value.lerp_(parameters[name].detach(), 1.0 - keep)
        self.updates += 1

    @contextmanager
    def standing_in(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """Within it the parameters have the values of the average."""
        own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        _copy(self.values, parameters)
        try:
            yield
        finally:
            _copy(own, parameters)


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


@dataclass
class _Progress:
    """What has been reached; plain data.

    Attributes
    ----------
    update, best, stale : int
        Last update, update of the best weights, and validations since then.
    lowest : float
        Smallest validation loss.
    losses, norms : list of float
        Training losses and gradient norms since the last validation.
    watched : dict of list
        Gradient norms of the watched parameters since then.
    seconds : float
        Spent in processes that were stopped.
    history : list of dict
        Records of all validations.
    """

    update: int = 0
    best: int = 0
    stale: int = 0
    lowest: float = math.inf
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    watched: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def validated(self, losses: Mapping[str, float], extra: Mapping[str, float]) -> bool:
        """Note a validation; returns whether it is the best so far."""
        improved = losses["validation"] < self.lowest
        self.stale = 0 if improved else self.stale + 1
        if improved:
            self.lowest, self.best = losses["validation"], self.update
        trained = {"train": float(np.mean(self.losses)), "gradient_norm": max(self.norms)} if self.losses else {}
        watched = {f"gradient_norm_{name}": float(np.mean(norms)) for name, norms in self.watched.items()}
        record = {"update": self.update, **trained, **watched, **losses, **extra}
        self.history.append({name: float(f"{value:.6g}") for name, value in record.items()})
        self.losses, self.norms, self.watched = [], [], {}
        return improved


class _Loss(nn.Module):
    """The loss as a forward pass, which is where DDP and FSDP2 hook in."""

    def __init__(self, objective: nn.Module):
        super().__init__()
        self.objective: Any = objective

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective.loss(batch)


def _without(parameters: Iterable[nn.Parameter], some: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    taken = {id(parameter) for parameter in some}
    return [parameter for parameter in parameters if id(parameter) not in taken]


class _Run:
    """One call of `fit`; works on a copy of the objective, on the device of this process."""

    def __init__(self, objective, samples, checks, plan: Plan, ranks: Ranks, saving: Saving | None, workers: int):
        self.objective, self.plan, self.ranks, self.saving = objective, plan, ranks, saving
        self.order = Order(len(samples), plan.batch, plan.seed)
        self.feed, self.check_feed = Feed(samples, ranks.device, workers), Feed(checks, ranks.device, workers)
        self.worker = copy.deepcopy(objective).to(ranks.device)
        idle = any(p.requires_grad for p in _without(self.worker.parameters(), self.worker.trainable()))
        self.step = ranks.spread(_Loss(self.worker), idle=idle)
        wanted = {id(parameter) for parameter in self.worker.trainable()}  # sharding has replaced them
        self.trained = {name: p for name, p in self.worker.named_parameters() if id(p) in wanted}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=plan.peak, betas=plan.betas, weight_decay=plan.weight_decay)
        matching = lambda pattern: [p for name, p in self.trained.items() if re.search(pattern, name)]
        self.watched = {name: found for name, pattern in plan.watch.items() if (found := matching(pattern))}
        self.average = MovingAverage(self.trained, plan.ema)
        self.progress = _Progress()
        self.best: dict[str, Tensor] = {}
        self.begun = self.saved = self.lap = clock.perf_counter()

    def to_the_end(self) -> list[dict[str, float]]:
        start = self._resume()
        first = self.ranks.first
        losses = LossLog(self.saving.losses if self.saving and first else None, start)
        bar = progress_bar(self.plan.updates, "update", self.plan.label, None if first else False)
        try:
            if not start:
                self._validate(losses)
            bar.update(start)
            self._train(losses, bar)
        finally:
            losses.close()
            bar.close()
        self.objective.load_state_dict(self.best, strict=False)
        return self.progress.history

    def _train(self, losses: LossLog, bar) -> None:
        plan, progress = self.plan, self.progress
        stream = self.feed(self._passes(progress.update + 1))
        self.lap = clock.perf_counter()
        while progress.update < plan.updates and not (plan.patience and progress.stale >= plan.patience):
            progress.update += 1
            value, norm, due = self._step(stream)
            progress.losses.append(value)
            progress.norms.append(norm)
            losses.write({"update": progress.update, "train": value, "gradient_norm": norm, "rate": plan.rate(progress.update)})
            bar.update()
            bar.set_postfix(train=f"{value:.4g}", validation=f"{progress.lowest:.4g}", refresh=False)
            if progress.update % plan.check_every == 0 or progress.update == plan.updates:
                self._validate(losses)
            if due and self.saving:
                self._save(self.saving)
        stream.close()

    def _passes(self, first: int) -> Iterator[Pass]:
        for update in range(first, self.plan.updates + 1):
            yield from passes(self.order(update), self.ranks.rank, self.ranks.count, self.plan.per_pass)

    def _step(self, stream: Iterator[tuple[Pass, dict[str, Tensor]]]) -> tuple[float, float, bool]:
        """One update: loss, norm of the gradient before clipping, and whether a checkpoint is due."""
        plan, update = self.plan, self.progress.update
        self.worker.train()
        for group in self.optimizer.param_groups:
            group["lr"] = plan.rate(update)
        self.optimizer.zero_grad(set_to_none=True)
        number = len(passes(list(range(plan.batch)), self.ranks.rank, self.ranks.count, plan.per_pass))
        report = torch.zeros(2, dtype=torch.float64, device=self.ranks.device)  # loss, and whether a checkpoint is due
        report[1] = self._is_due() and self.ranks.first
        for i, (each, batch) in enumerate(islice(stream, number), 1):
            size = len(each.samples)
            with (
                drawing_for(each.first, size, plan.batch, seed_of(plan.seed, update)),
                self.ranks.syncing(self.step, i == number),
            ):
                with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
                    value, _ = self.step(batch)
                (value * (size * self.ranks.count / plan.batch)).backward()  # DDP and FSDP2 average over the processes
            report[0] += value.detach().double() * (size / plan.batch)
        loss, due = self.ranks.total(report).tolist()
        self._require_finite("training loss", loss)
        for name, some in self.watched.items():
            part = nn.utils.get_total_norm([p.grad for p in some if p.grad is not None])
            self.progress.watched.setdefault(name, []).append(float(whole(part)))
        norm = float(whole(nn.utils.clip_grad_norm_(self.trained.values(), plan.clip)))
        self._require_finite("norm of the gradient", norm)
        self.optimizer.step()
        self.worker.after_step()
        self.average.update(self.trained)
        return loss, norm, bool(due)

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            plan = self.plan
            found = f"the {what} is {value} at update {self.progress.update} of {plan.updates}; needed a finite number"
            fix = f"lower peak={plan.peak}, lengthen warmup=, or look for extreme values in the data"
            raise InputError(f"stage {plan.label} stopped", [f"{found}. Try: {fix}"])

    def _warn_of_gradients(self, norm: float) -> None:
        plan = self.plan
        if norm > 100 * plan.clip and self.ranks.first:
            told = "%s: gradients with norms up to %.3g were clipped to %g; lower peak=%g, or lengthen warmup="
            log.warning(told, plan.label, norm, plan.clip, plan.peak)

    # ------------------------------------------------------------------------------------------------------ validation

    def _validate(self, losses: LossLog) -> None:
        now, progress = clock.perf_counter(), self.progress
        self._warn_of_gradients(max(progress.norms, default=0.0))
        waiting = {"waiting": self.feed.waited / (now - self.lap)} if progress.update else {}
        # running statistics are each process's own; one model is to be judged and kept
        self.ranks.share(buffer for buffer in self.worker.buffers() if buffer.is_floating_point())
        with self.average.standing_in(self.trained):
            found = self._check()
            self._require_finite("validation loss", found["validation"])
            extra = {"rate": self.plan.rate(max(1, progress.update)), **waiting, "minutes": self._seconds() / 60}
            if progress.validated(found, extra):
                self.best = self._best()
        losses.write({"update": progress.update, **found})
        if self.ranks.first:
            told = ", ".join(f"{name} {value:.4g}" for name, value in progress.history[-1].items() if name != "update")
            log.info("%s, update %d of %d: %s", self.plan.label, progress.update, self.plan.updates, told)
        self.feed.waited, self.lap = 0.0, clock.perf_counter()

    @torch.no_grad()
    def _check(self) -> dict[str, float]:
        """Mean validation loss and its parts."""
        self.worker.eval()
        names, sums = [], torch.zeros(1)
        for each, batch in self.check_feed(self._check_passes()):
            value, parts = self.step(batch) if self.ranks.sharded else self.worker.loss(batch)
            names = ["validation", *parts]
            # what is left of an earlier process's share has been counted there: every process takes part in every pass
            weight = len(each.samples) if each.first >= 0 else 0
            row = torch.stack(
                [value.double(), *(part.double() for part in parts.values()), value.new_ones((), dtype=torch.float64)]
            )
            sums = row * weight + (sums if sums.numel() > 1 else 0.0)
        *totals, count = self.ranks.total(sums).tolist()
        return {name: total / count for name, total in zip(names, totals, strict=True)}

    def _check_passes(self) -> Iterator[Pass]:
        """Samples in order, the same number of passes in each process; a negative place marks samples that do not count."""
        count, ranks = len(self.check_feed.samples), self.ranks
        size = min(self.plan.per_pass or self.plan.batch, -(-self.plan.batch // ranks.count))
        for first in range(ranks.rank * size, count + ranks.rank * size, ranks.count * size):
            mine = list(range(first, min(first + size, count)))
            yield Pass(first, mine) if mine else Pass(-1, [count - 1])

    def _best(self) -> dict[str, Tensor]:
        parameters = {name for name, _ in self.worker.named_parameters()}
        buffers = {name: value for name, value in self.worker.state_dict().items() if name not in parameters}
        return {name: whole(value) for name, value in {**buffers, **self.trained}.items()}

    # ----------------------------------------------------------------------------------------------------- checkpoints

    def _seconds(self) -> float:
        return self.progress.seconds + clock.perf_counter() - self.begun

    def _is_due(self) -> bool:
        if self.saving is None:
            return False
        passed = (clock.perf_counter() - self.saved) / 60
        return self.progress.update % self.saving.updates == 0 or passed >= self.saving.minutes

    def _save(self, saving: Saving) -> None:
        """Every process gathers, the first writes."""
        state = self.optimizer.state
        tensors = {f"weights/{name}": whole(value) for name, value in self.worker.state_dict().items()}
        tensors |= {f"average/{name}": whole(value) for name, value in self.average.values.items()}
        for name, parameter in self.trained.items():
            tensors |= {f"optimizer/{name}/{key}": whole(value) for key, value in state.get(parameter, {}).items()}
        if self.ranks.first:
            about = {**vars(self.progress), "seconds": self._seconds(), "averaged": self.average.updates}
            saving.checkpoints.save(self.progress.update, tensors, about, self.best)
        self.saved = clock.perf_counter()

    def _resume(self) -> int:
        """Take up the newest checkpoint; returns its update, 0 if there is none."""
        if self.saving is None:
            return 0
        start = self.ranks.agreed(self.saving.checkpoints.latest() if self.ranks.first else 0)
        if start:
            tensors, about, self.best = self.saving.checkpoints.load(start)
            self._restore(tensors, about)
            log.info("stage %s: going on after update %d", self.plan.label, start)
        return start

    def _restore(self, tensors: Mapping[str, Tensor], about: dict[str, Any]) -> None:
        pick = lambda kind: {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}
        with torch.no_grad():
            own, kept = self.worker.state_dict(), pick("weights/")
            for name, value in own.items():
                value.copy_(like(value, kept[name]))
        self.average.values = {name: like(self.trained[name], value) for name, value in pick("average/").items()}
        self.average.updates = about.pop("averaged")
        state = {}
        for i, (name, parameter) in enumerate(self.trained.items()):
            kept = pick(f"optimizer/{name}/")
            if kept:
                state[i] = {key: value if key == "step" else like(parameter, value) for key, value in kept.items()}
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.progress = _Progress(**about)
