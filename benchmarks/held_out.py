"""Warm-start forecasts of held-out twin-world blocks against persistence and 24-hour persistence.

    python benchmarks/held_out.py DATA [--model twin-ea-small] [--figure docs/held_out.png]

DATA holds the packed twin world (``global_*.nc`` and ``regional_*.nc``, see docs/models.md). Root mean square errors are
area weighted, with the root after averaging over starts. A start counts only if its history and its 48 hours lie in
a test period. Persistence holds the last hour; 24-hour persistence repeats the last day.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import xarray as xr
from scores.continuous import mse

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_twin_ea import TEST, read_twin_world

HOURS = 48
HOUR = np.timedelta64(1, "h")
UNITS = {
    "t2m": ("K", 1),
    "u10": ("m/s", 1),
    "v10": ("m/s", 1),
    "q2m": ("g/kg", 1e3),
    "sp": ("hPa", 1e-2),
    "tcc": ("%", 100),
    "ssrd": ("W/m2", 1),
}


def starts(tree: xr.DataTree) -> list[np.datetime64]:
    """Global times whose six hours before and 48 hours after lie inside one test period."""
    times = tree["global"]["time"].values
    spans = [(np.datetime64(a) + 6 * HOUR, np.datetime64(b) - HOURS * HOUR) for a, b in TEST]
    return [t for t in times if any(a <= t <= b for a, b in spans)]


def baselines(regional: xr.Dataset, start: np.datetime64) -> dict[str, xr.Dataset]:
    """Persistence of the last hour and of the last day, and the truth, with dims (lead_time, lat, lon)."""
    hours = np.arange(1, HOURS + 1)
    lead = xr.DataArray(hours, {"lead_time": hours}, "lead_time")
    same_hour = start + ((lead - 1) % 24 + 1 - 24) * HOUR
    pick = lambda times: regional.sel(time=times).drop_vars("time")
    return {
        "persistence": pick(xr.full_like(same_hour, start)),
        "24 h persistence": pick(same_hour),
        "truth": pick(start + lead * HOUR),
    }


def on_cells_of(truth: xr.Dataset, fc: xr.Dataset) -> xr.Dataset:
    """The forecast at the lead times and cells of the truth; a KeyError if one has no partner within a thousandth of a degree."""
    cells = {"latitude": truth["lat"], "longitude": truth["lon"]}
    fields = fc[list(UNITS)].sel(lead_time=truth["lead_time"]).sel(cells, method="nearest", tolerance=1e-3)
    return fields.reset_coords(drop=True).assign_coords(truth.coords)


def errors(tree: xr.DataTree, model: str | None) -> xr.Dataset:
    """Mean squared errors with dims (system, start, lead_time)."""
    regional = tree["regional"].to_dataset()[list(UNITS)].load()
    weights = np.cos(np.deg2rad(regional["lat"]))
    rows = []
    for start in starts(tree):
        fc = tree.scalemixer.forecast(HOURS, model=model, init_time=start).isel(reference_time=0)
        fields = baselines(regional, start)
        truth = fields.pop("truth")
        fields["model"] = on_cells_of(truth, fc)
        row = {name: mse(field, truth, preserve_dims="lead_time", weights=weights) for name, field in fields.items()}
        rows.append(xr.concat(row.values(), "system").assign_coords(system=list(row)))
    return xr.concat(rows, "start").assign_coords(start=starts(tree))


def table(rmse: xr.Dataset) -> str:
    """Markdown: RMSE at 6 h and mean over 1-48 h for every variable and system."""
    systems = ["model", "persistence", "24 h persistence"]
    lines = [
        "| variable | " + " | ".join(f"{s}, 6 h" for s in systems) + " | " + " | ".join(f"{s}, 1-48 h" for s in systems) + " |"
    ]
    lines.append("|---" * 7 + "|")
    for name, (unit, scale) in UNITS.items():
        at_six, mean = rmse[name].sel(lead_time=6) * scale, rmse[name].mean("lead_time") * scale
        cells = [f"{float(part.sel(system=s)):.3g}" for part in (at_six, mean) for s in systems]
        lines.append(f"| {name} ({unit}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(rmse: xr.Dataset, path: Path) -> None:
    """One panel per variable: RMSE by lead time."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(2, 4, figsize=(14, 6), layout="constrained")
    for ax, (name, (unit, scale)) in zip(axes.flat, UNITS.items(), strict=False):
        for system, style in (("model", "C0-"), ("persistence", "C7--"), ("24 h persistence", "C1:")):
            ax.plot(rmse["lead_time"], rmse[name].sel(system=system) * scale, style, label=system)
        ax.set(title=name, xlabel="lead time (h)", ylabel=f"RMSE ({unit})", ylim=(0, None), xticks=range(0, 49, 12))
    axes.flat[-1].axis("off")
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center", frameon=False)
    fig.suptitle(f"Twin world A, held-out blocks, {rmse.attrs['starts']} starts (twin experiment)")
    fig.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default=None)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    squared = errors(read_twin_world(options.data), options.model)
    rmse = np.sqrt(squared.mean("start")).assign_attrs(starts=squared.sizes["start"])
    print(f"{squared.sizes['start']} starts: {', '.join(str(t)[:13] for t in squared['start'].values)}\n\n{table(rmse)}")
    if options.figure:
        figure(rmse, options.figure)


if __name__ == "__main__":
    main()
