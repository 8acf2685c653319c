"""Random numbers that belong to a sample's place in a batch, however the batch is split over passes and devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["drawing_for", "dropout", "normal", "uniform"]


class _Part(NamedTuple):
    """Samples ``first`` to ``first + size`` of a batch of ``total``."""

    first: int
    size: int
    total: int


_part: _Part | None = None  # no context variable: backward passes that repeat a forward pass run in threads of their own


@contextmanager
def drawing_for(first: int, size: int, total: int, seed: int) -> Iterator[None]:
    """Within it `uniform` draws what samples ``first`` to ``first + size`` of a batch of ``total`` would get in one pass.

    Seeds torch's generators, so that nothing depends on what was drawn before.
    """
    global _part
    before, _part = _part, _Part(first, size, total)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        _part = before


def uniform(
    rows: int, *shape: int, device: torch.device | None = None, generators: Sequence[torch.Generator] | None = None
) -> Tensor:
    """Numbers from 0 to 1, shape (rows, *shape); rows are samples, or a number of rows for each sample in order.

    With ``generators``, one per sample and on the CPU, each sample's numbers come from its own.
    """
    return _drawn(torch.rand, rows, *shape, device=device, generators=generators)


def normal(
    rows: int, *shape: int, device: torch.device | None = None, generators: Sequence[torch.Generator] | None = None
) -> Tensor:
    """Standard normal numbers, as for `uniform`."""
    return _drawn(torch.randn, rows, *shape, device=device, generators=generators)


def dropout(x: Tensor, rate: float) -> Tensor:
    """A share ``rate`` of the values zero and the others larger by as much, rows as for `uniform`: (rows, ...) -> (rows, ...)."""
    if _part is None:
        return functional.dropout(x, rate)
    # a seed for each row: the masks of the rest of the batch would take the memory that passes are to save
    seeds = _drawn(lambda *shape, device: torch.randint(2**62, shape), x.shape[0], device=None).tolist()
    draw = lambda seed: torch.rand(x.shape[1:], device=x.device, generator=torch.Generator(x.device).manual_seed(seed))
    return x * torch.stack([draw(seed) >= rate for seed in seeds]) / (1.0 - rate)


def _drawn(
    draw: Callable[..., Tensor],
    rows: int,
    *shape: int,
    device: torch.device | None,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    if generators is not None:
        each = rows // len(generators)
        return torch.cat([draw(each, *shape, generator=generator) for generator in generators]).to(device)
    if _part is None:
        return draw(rows, *shape, device=device)
    each = rows // _part.size
    return draw(each * _part.total, *shape, device=device)[each * _part.first : each * _part.first + rows]
