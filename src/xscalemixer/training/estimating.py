"""What a stage will take, measured on one real batch before anything is trained: time, and memory."""

from __future__ import annotations

import time as clock
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import default_collate

from xscalemixer.nn.draws import drawing_for
from xscalemixer.training.batches import Samples, passes
from xscalemixer.training.engine import Plan
from xscalemixer.training.ranks import Ranks

__all__ = ["Estimate", "estimate", "free_memory"]

_LONG = 5.0  # s of a pass that is not repeated for a better figure


@dataclass(frozen=True)
class Estimate:
    """Of one stage.

    Attributes
    ----------
    label : str
    seconds : float
        All updates and validations.
    state, activations : int
        Bytes of weights, gradients, optimizer and averages, and of what a forward pass keeps for the backward pass.
    """

    label: str
    seconds: float
    state: int
    activations: int

    @property
    def memory(self) -> int:
        """Bytes."""
        return self.state + self.activations

    def __str__(self) -> str:
        time = f"{self.seconds:.2g} s" if self.seconds < 99 else f"{self.seconds / 60:.0f} minutes"
        size, kept = self.memory / 2**20, self.activations / 2**20
        return f"{self.label}: about {time} and {size:.0f} MiB of memory, {kept:.0f} MiB of it activations"

    def to_dict(self) -> dict:
        """Plain data."""
        return asdict(self)


def estimate(objective: Any, samples: Samples, checks: int, plan: Plan, ranks: Ranks) -> Estimate:
    """Forward and backward pass of the first batch; the objective is spent afterwards.

    Parameters
    ----------
    objective : Module that is an `Objective`
        A copy to try on.
    samples : Samples
    checks : int
        Number of validation samples; one is taken to cost a third of a training sample (no backward pass).
    plan : Plan
    ranks : Ranks
    """
    objective.to(ranks.device).train()
    first, *_ = rows = passes(list(range(plan.batch)), ranks.rank, ranks.count, plan.per_pass)
    batch = {name: value.to(ranks.device) for name, value in default_collate([samples[i] for i in first.samples]).items()}
    step: Callable[[], float] = lambda: _timed_pass(objective, batch, plan, ranks.device)
    kept: dict[int, int] = {}
    own = {_place(tensor) for tensor in (*objective.parameters(), *objective.buffers(), *batch.values())}

    def keep(tensor: Tensor) -> Tensor:
        if _place(tensor) not in own:
            kept[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        seconds = step()
    if seconds < _LONG:
        seconds = step()  # without the warming up
    trained = sum(p.nbytes for p in objective.trainable())
    weights = sum(p.nbytes for p in objective.parameters())
    # twice the weights: the model and the copy that is trained; five times what is trained: gradient, two moments of the
    # optimizer, moving average, best weights
    state = (2 * weights + 5 * trained) // (ranks.count if ranks.sharded else 1)
    validations = 1 + -(-plan.updates // plan.check_every)
    checking = validations * checks / ranks.count * seconds / len(first.samples) / 3
    return Estimate(plan.label, plan.updates * len(rows) * seconds + checking, state, sum(kept.values()))


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be had on a device; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    told = Path("/proc/meminfo")
    rows = told.read_text(encoding="ascii").splitlines() if told.exists() else []
    return next((1024 * int(row.split()[1]) for row in rows if row.startswith("MemAvailable:")), None)


def _timed_pass(objective: Any, batch: dict[str, Tensor], plan: Plan, device: torch.device) -> float:
    objective.zero_grad(set_to_none=True)
    begun = clock.perf_counter()
    with drawing_for(0, len(next(iter(batch.values()))), plan.batch, plan.seed):
        with torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
            value, _ = objective.loss(batch)
        value.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock.perf_counter() - begun


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
