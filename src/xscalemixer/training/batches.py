"""Which samples an update sees, and their way from the dataset to the device ahead of need."""

from __future__ import annotations

import time as clock
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import default_collate

__all__ = ["Feed", "Order", "Pass", "Samples", "passes"]


class Samples(Protocol):
    """Numbered samples; several threads may ask for them."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, item: int, /) -> dict[str, Tensor]:
        """One of them."""


@dataclass(frozen=True)
class Order:
    """Endless stream of samples: one seeded permutation of all of them after the other.

    The batch of an update is a piece of that stream, so its place is the number of the update and no other state.

    Attributes
    ----------
    count : int
        Samples there are.
    batch : int
        Samples per update, on all devices together.
    seed : int
    """

    count: int
    batch: int
    seed: int

    def __call__(self, update: int) -> list[int]:
        """Samples of an update, counted from 1."""
        places = range((update - 1) * self.batch, update * self.batch)
        return [_permutation(self.count, self.seed, place // self.count)[place % self.count] for place in places]


@lru_cache(4)
def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()


class Pass(NamedTuple):
    """Samples of a batch that go through the network together: ``first`` to ``first + len(samples)``."""

    first: int
    samples: list[int]


def passes(samples: list[int], rank: int, ranks: int, per_pass: int | None) -> list[Pass]:
    """The share of one device of a batch, in pieces of ``per_pass`` samples."""
    share = len(samples) // ranks
    size = min(per_pass or share, share)
    firsts = range(rank * share, (rank + 1) * share, size)
    return [Pass(first, samples[first : min(first + size, (rank + 1) * share)]) for first in firsts]


class Feed:
    """Batches on the device, read by threads before they are needed.

    Attributes
    ----------
    waited : float
        Seconds that the consumer has waited for data.
    """

    def __init__(self, samples: Samples, device: torch.device, workers: int):
        self.samples, self.device, self.workers = samples, device, workers
        self.waited = 0.0

    def __call__(self, plan: Iterator[Pass]) -> Generator[tuple[Pass, dict[str, Tensor]]]:
        """Each pass with its tensors, in order."""
        ahead: deque[tuple[Pass, Future]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for each in plan:
                    ahead.append((each, pool.submit(self._read, each.samples)))
                    if len(ahead) > 2 * self.workers:
                        yield self._next(ahead)
                while ahead:
                    yield self._next(ahead)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, samples: list[int]) -> dict[str, Tensor]:
        batch = default_collate([self.samples[sample] for sample in samples])
        return {name: value.pin_memory() for name, value in batch.items()} if self.device.type == "cuda" else batch

    def _next(self, ahead: deque[tuple[Pass, Future]]) -> tuple[Pass, dict[str, Tensor]]:
        begun = clock.perf_counter()
        each, future = ahead.popleft()
        batch = future.result()
        self.waited += clock.perf_counter() - begun
        return each, {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
