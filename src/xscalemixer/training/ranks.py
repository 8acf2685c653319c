"""The processes of a run: one, or as many as torchrun started, with the network whole on each or sharded over all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from xscalemixer.errors import InputError
from xscalemixer.nn.blocks import Group
from xscalemixer.nn.scalemixer import ScaleMixer

__all__ = ["Ranks", "like", "process_count", "ranks", "whole"]


@dataclass(frozen=True)
class Ranks:
    """One process among those that train together.

    Attributes
    ----------
    device : torch.device
    rank, count : int
    sharded : bool
        Parameters, gradients and optimizer state are spread over the processes (FSDP2) instead of repeated in each (DDP).
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    sharded: bool = False

    @property
    def first(self) -> bool:
        """True in the process that writes and talks."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def agreed(self, number: int) -> int:
        """What the first process says."""
        value = torch.tensor(int(number), device=self.device)
        if self.count > 1:
            dist.broadcast(value, 0)
        return int(value)

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the values that the first one has, in place."""
        for tensor in tensors if self.count > 1 else ():
            dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Until every process is here."""
        self.total(torch.zeros((), device=self.device)).item()

    def spread(self, step: nn.Module, *, idle: bool = False) -> nn.Module:
        """A module whose forward pass gives the loss, made to train with the other processes.

        Parameters
        ----------
        step : Module
        idle : bool
            Some parameters that could be trained get no gradient; DDP looks for them in every pass, which takes time.
        """
        if self.sharded:
            mesh = init_device_mesh(self.device.type, (self.count,))
            # the root is gathered and freed like its parts: validation and checkpoints see shards everywhere
            for module in [m for m in step.modules() if isinstance(m, (Group, ScaleMixer))] + [step]:
                fully_shard(module, mesh=mesh, reshard_after_forward=True)
            return step
        if self.count > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            return DistributedDataParallel(step, device_ids=devices, find_unused_parameters=idle)
        return step

    def syncing(self, step: nn.Module, last: bool) -> AbstractContextManager:
        """Gradients are exchanged after the last pass of an update only."""
        if isinstance(step, FSDPModule):
            step.set_requires_gradient_sync(last)
        elif isinstance(step, DistributedDataParallel) and not last:
            return step.no_sync()
        return nullcontext()


@contextmanager
def ranks(device: str | None = None, *, sharded: bool = False) -> Iterator[Ranks]:
    """Join the processes that torchrun started; without torchrun there is one.

    Parameters
    ----------
    device : str, optional
        "cuda" or "cpu"; by default a CUDA device for each process, if there is one.
    sharded : bool

    Raises
    ------
    InputError
        If the device cannot be used, or one process is to be sharded.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in ("cuda", "cpu") or (kind == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"device {kind!r} cannot be trained on", ['needed "cpu", or "cuda" where torch finds a CUDA device'])
    joined = _is_joined()
    started = not joined and _is_started()
    if started:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    if sharded and not (joined or started):
        raise InputError("sharded=True needs several processes", ["start them with torchrun --nproc-per-node 8"])
    try:
        place = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device("cpu")
        if kind == "cuda":
            torch.cuda.set_device(place)
        yield Ranks(place, dist.get_rank(), dist.get_world_size(), sharded) if joined or started else Ranks(place)
    finally:
        if started:
            dist.destroy_process_group()


def process_count() -> int:
    """Processes that `ranks` joins, or has joined."""
    if _is_joined():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if _is_started() else 1


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _is_started() -> bool:
    """True in a process of torchrun."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all of its shards, on the CPU; every process must ask."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().clone()


def like(tensor: Tensor, full: Tensor) -> Tensor:
    """A whole tensor, placed and sharded like another one."""
    if isinstance(tensor, DTensor):
        return distribute_tensor(full.to(tensor.device), tensor.device_mesh, tensor.placements)
    return full.to(tensor.device)
