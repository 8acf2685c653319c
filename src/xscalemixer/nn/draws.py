"""Random numbers that belong to a sample's place in a batch, however the batch is split over passes and devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["drawing_for", "normal", "uniform"]


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


def uniform(rows: int, *shape: int, device: torch.device | None = None) -> Tensor:
    """Numbers from 0 to 1, shape (rows, *shape); rows are samples, or a number of rows for each sample in order."""
    return _drawn(torch.rand, rows, *shape, device=device)


def normal(rows: int, *shape: int, device: torch.device | None = None) -> Tensor:
    """Standard normal numbers, rows as for `uniform`."""
    return _drawn(torch.randn, rows, *shape, device=device)


def _drawn(draw: Callable[..., Tensor], rows: int, *shape: int, device: torch.device | None) -> Tensor:
    if _part is None:
        return draw(rows, *shape, device=device)
    each = rows // _part.size
    return draw(each * _part.total, *shape, device=device)[each * _part.first : each * _part.first + rows]
