"""What the benchmarks share: units of the tables, Markdown, and the CPU time of work that may be stopped and gone on with."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xscalemixer.training.checkpoints import write_whole

_UNITS = {"t2m": ("K", 1.0), "q2m": ("g/kg", 1e3), "sp": ("hPa", 1e-2), "tcc": ("%", 100.0), "ssrd": ("W/m2", 1.0)}


def unit(variable: str) -> tuple[str, float]:
    """Unit of a variable in tables and pictures, and the factor to it from the canonical one."""
    return _UNITS.get(variable, ("m/s", 1.0))


def heads(variables: list[str]) -> list[str]:
    """Variables with their units."""
    return [f"{name} ({unit(name)[0]})" for name in variables]


def markdown(rows: list[list[str]]) -> str:
    """A table; the first row has the heads."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


@contextmanager
def counted(folder: Path) -> Iterator[None]:
    """Add the CPU minutes of what is done to those in the folder, stopped or not."""
    folder.mkdir(parents=True, exist_ok=True)
    begun, before = time.process_time(), cost(folder)
    try:
        yield
    finally:
        note(folder, cpu_minutes=before.get("cpu_minutes", 0.0) + (time.process_time() - begun) / 60)


def cost(folder: Path) -> dict[str, float]:
    """What is noted in a folder."""
    file = folder / "cost.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def note(folder: Path, **numbers: float) -> None:
    """Note numbers in a folder, beside those that are there."""
    write_whole(folder / "cost.json", json.dumps(cost(folder) | numbers).encode())
