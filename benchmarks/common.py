"""What the benchmarks share: starts, units, Markdown, and the CPU time of work that may be stopped and gone on with."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xarray as xr

from xscalemixer.training.checkpoints import write_whole

HOUR = np.timedelta64(1, "h")
Periods = tuple[tuple[str, str], ...]

_UNITS = {"t2m": ("K", 1.0), "q2m": ("g/kg", 1e3), "sp": ("hPa", 1e-2), "tcc": ("%", 100.0), "ssrd": ("W/m2", 1.0)}


def within(ds: xr.Dataset, periods: Periods) -> xr.Dataset:
    """The times after the start and up to the end of the periods."""
    time = ds["time"].values
    return ds.isel(time=np.any([(time > np.datetime64(a)) & (time <= np.datetime64(b)) for a, b in periods], axis=0))


def starts_within(times: np.ndarray, periods: Periods, hours: int, history: int = 6) -> np.ndarray:
    """Times whose hours before and after lie inside one of the periods."""
    inside = lambda t: any(np.datetime64(a) + history * HOUR <= t <= np.datetime64(b) - hours * HOUR for a, b in periods)
    return np.array([t for t in times if inside(t)], dtype="M8[ns]")


def saved(pair: xr.DataArray, metric: str = "rmse") -> np.ndarray:
    """What the reference saves of the error of a model in %, and the ends of the interval, from scores along ``metric``."""
    parts = [f"{metric}_difference{end}" for end in ("", "_low", "_high")]
    return 100 * (pair.sel(metric=parts) / pair.sel(metric=metric)).values


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


def pyplot():
    """matplotlib.pyplot that needs no screen; imported only where pictures are asked for."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def draw_fields(shown: dict[str, xr.Dataset], title: str, file: Path) -> None:
    """Maps of temperature, wind speed and radiation (rows) of each dataset, on the scales of ``shown["truth"]``."""
    fields = {
        "t2m (°C)": ("RdYlBu_r", lambda ds: ds["t2m"] - 273.15),
        "wind speed (m/s)": ("viridis", lambda ds: np.hypot(ds["u10"], ds["v10"])),
        "ssrd (W/m2)": ("inferno", lambda ds: ds["ssrd"] if "ssrd" in ds else np.nan * ds["t2m"]),
    }
    if "ssrd" not in shown["truth"]:
        del fields["ssrd (W/m2)"]
    plt = pyplot()
    figure, panels = plt.subplots(len(fields), len(shown), figsize=(3.4 * len(shown), 3 * len(fields)), layout="constrained")
    for row, (words, (colors, field)) in zip(panels, fields.items(), strict=True):
        real = field(shown["truth"])
        scale = {"vmin": float(real.min()), "vmax": float(real.max()), "cmap": colors}
        for panel, (name, ds) in zip(row, shown.items(), strict=True):
            mesh = panel.pcolormesh(ds["longitude"], ds["latitude"], field(ds).squeeze(), **scale)
            panel.set(title=name, xticks=[], yticks=[], aspect=1 / np.cos(np.deg2rad(float(ds["latitude"].mean()))))
        figure.colorbar(mesh, ax=row, label=words)
    figure.suptitle(title)
    figure.savefig(file, dpi=60)
    plt.close(figure)


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
