"""CorrDiff on twin world A and on HRRR: its models scored on held-out weather.

    python benchmarks/corrdiff.py corrdiff-twin-ea DATA --figures docs       # tables, spectra, tails, rank histograms
    python benchmarks/corrdiff.py corrdiff-twin-ea-chain DATA                # beside the ScaleMixer it stands on
    python benchmarks/corrdiff.py corrdiff-hrrr DATA

The models are the shipped ones, or that in the folder --weights; what is drawn is kept in --runs. DATA is that of
examples/train_corrdiff.py. A run that was stopped goes on by the same command. Before calibration a model has factors of one
and the solver of the paper.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import xarray as xr
from common import draw_fields, heads, markdown, pyplot, unit

import xscalemixer as xsm
from xscalemixer.coarse import Coarse
from xscalemixer.conform import conform
from xscalemixer.downscaler import Downscaler
from xscalemixer.nn.sampling import SolverConfig
from xscalemixer.reduction import to_sea_level
from xscalemixer.report import Report
from xscalemixer.variables import Schema
from xscalemixer.verification import power_spectrum, quantiles, rank_histogram
from xscalemixer.verification.bootstrap import resampled_counts, segment_lengths, widening

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_corrdiff import HOUR, LEADS, OUTPUTS, SETTINGS, TASKS, Task, folder_of, options_of

PAPER = {"t2m": 0.58, "u10": 0.64, "v10": 0.62}  # CRPS over MAE, arXiv 2309.15214; 0.69 for radar reflectivity
MEMBERS = {"smoke": 3, "cpu": 4, "gpu": 32}
SCORED_LEADS = (6, 24, 48)
TAIL = 0.999
DAY = 4  # starts, six hours apart: a block of the resamples
RAW = "CorrDiff, not calibrated"
CARRIED = "bilinear at sea level"


def score(name: str, options: argparse.Namespace) -> None:
    """Fields of every system on the test times, and the tables."""
    task, folder = TASKS[name](options), folder_of(name, options)
    source, truth = held_out(task, options), task.pair["target"].to_dataset()
    run = {"device": SETTINGS[options.setting].device}
    model = xsm.load(options.weights or name)
    before = "ScaleMixer" if "reference_time" in source.dims else "bilinear"
    systems = {before: at_lead_zero(on_fine_grid(source, model, task.shared))}
    if before == "bilinear" and model.height is not None:
        systems[CARRIED] = at_lead_zero(carried(source, model, task.shared))
    systems["regression"] = at_lead_zero(xsm.downscale(source, "mean", model=model, **run))
    many = MEMBERS[options.setting]  # CRPS and spread are fair to the number: fewer tell what calibration changes
    drawn = {RAW: (uncalibrated(model), min(3, many)), "CorrDiff": (model, many)}
    for label, (each, count) in list(drawn.items())[options.calibrated :]:
        store = folder / f"{'model' if each is model else 'trained'}.zarr"
        more = {"to": store, "resume": store.exists(), "coherence": 12.0, **run}
        systems[label] = at_lead_zero(xsm.downscale(source, count, model=each, **more))
    lines, power = spectra(systems, truth)
    text = [tables(systems, truth), by_lead(systems["CorrDiff"], truth), tails(systems, truth), ranks(systems, truth), lines]
    text = [part for part in text if part]
    (folder / "tables.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    sys.stdout.write("\n\n".join(text) + "\n")
    if options.figures:
        stem = name.replace("-", "_")
        draw_maps(systems, truth, options.figures / f"{stem}_maps.png")
        draw_ranks(systems, truth, options.figures / f"{stem}_ranks.png")
        draw_spectra(power, options.figures / f"{stem}_spectra.png")


def uncalibrated(model: Downscaler) -> Downscaler:
    """As it was trained."""
    raw = copy.deepcopy(model)
    raw.network.spread.fill_(1.0)
    raw.solver, raw.sha256 = SolverConfig(), ""
    return raw


def held_out(task: Task, options: argparse.Namespace) -> xr.Dataset:
    """The input at the test times, or from starts of which the whole forecast lies in the test periods."""
    ds = task.pair["input"].to_dataset()
    axis, last = ("reference_time", LEADS[-1]) if "reference_time" in ds.dims else ("time", 0)
    stamps = ds[axis].values
    inside = [(stamps > np.datetime64(a)) & (stamps + last * HOUR <= np.datetime64(b)) for a, b in task.test]
    chosen = np.flatnonzero(np.logical_or.reduce(inside))
    if "lead_time" in ds.dims:
        ds = ds.sel(lead_time=list(SCORED_LEADS))
    known = task.pair["target"]["time"].values
    chosen = [i for i in chosen if axis == "reference_time" or stamps[i] in known]
    return ds.isel({axis: chosen[:2] if options.setting == "smoke" else chosen})


def on_fine_grid(source: xr.Dataset, model, channels: tuple[str, ...]) -> xr.Dataset:
    """The input, interpolated; a forecast is there already."""
    grid = model.fine.grid
    if "reference_time" in source.dims:
        return source[list(channels)]
    canonical, report = conform(source, Schema.of(*channels))
    report.raise_errors()
    return xsm.regrid(canonical[list(channels)], grid)


def carried(source: xr.Dataset, model: Downscaler, channels: tuple[str, ...]) -> xr.Dataset:
    """The input, interpolated at sea level and carried back by the same rule: what the regression adds its change to."""
    report = Report("input")
    coarse = Coarse.of(source, model.coarse.schema, report, "input").on(model.coarse.grid, report, "input", height=model.height)
    report.raise_errors()
    fields = model.interpolate(coarse.values()[:])
    offset, factor = to_sea_level(model.coarse.schema, model.static["orog"])
    found, places = on_fine_grid(source, model, channels), [model.coarse.schema.channels.index(name) for name in channels]
    values = {name: fields[:, i] * factor[i] + offset[i] for name, i in zip(channels, places, strict=True)}
    return found.assign({name: found[name].copy(data=field) for name, field in values.items()})


def at_lead_zero(ds: xr.Dataset) -> xr.Dataset:
    """An analysis as forecasts of no length, which can be scored."""
    if "lead_time" in ds.dims:
        return ds
    ds = ds.rename(time="reference_time").expand_dims(lead_time=[0])
    ds["reference_time"].attrs = {"standard_name": "forecast_reference_time"}
    ds["lead_time"].attrs = {"units": "hours", "standard_name": "forecast_period"}
    return ds


def shown_in(systems: dict[str, xr.Dataset]) -> list[str]:
    """Variables of the tables."""
    return [v for v in OUTPUTS if v in systems["CorrDiff"]]


def tables(systems: dict[str, xr.Dataset], truth: xr.Dataset) -> str:
    """MAE and fair CRPS of every system, and the ratio of CRPS to the MAE of those without members, beside the paper's."""
    rows, outputs = {name: {} for name in systems}, shown_in(systems)
    for name, ds in systems.items():
        shown = [v for v in outputs if v in ds]
        ensemble = "member" in ds.dims
        metrics = ["mae", "crps_fair", "spread_skill"] if ensemble else ["mae"]
        found = xsm.score(ds, truth, variables=shown, metrics=metrics, by=("variable",), draws=1)
        for v in shown:
            scale = unit(v)[1]
            mae = float(found[v].sel(metric="mae")) * scale
            crps = float(found[v].sel(metric="crps_fair")) * scale if ensemble else mae
            rows[name][v] = (mae, crps, float(found[v].sel(metric="spread_skill")) if ensemble else np.nan)
    names = heads(outputs)
    parts = []
    for title, i in (("MAE (of the ensemble mean)", 0), ("CRPS", 1), ("spread / error", 2)):
        lines = [[title, *names]]
        lines += [
            [name, *(f"{row[v][i]:.3g}" if v in row and np.isfinite(row[v][i]) else "-" for v in outputs)]
            for name, row in rows.items()
        ]
        parts.append(markdown(lines))
    lines = [["CRPS of CorrDiff / MAE of", *outputs]]
    lines += [[name, *ratios(systems["CorrDiff"], ds, truth)] for name, ds in systems.items() if "member" not in ds.dims]
    lines.append(
        ["mean of its members", *ratios(systems["CorrDiff"], systems["CorrDiff"].mean("member", keep_attrs=True), truth)]
    )
    parts.append(markdown([*lines, ["paper, Taiwan: regression (radar 0.69)", *(str(PAPER.get(v, "-")) for v in outputs)]]))
    return "\n\n".join(parts)


def ratios(members: xr.Dataset, other: xr.Dataset, truth: xr.Dataset) -> list[str]:
    """CRPS of members over the MAE of a forecast; with a 95 % interval where the starts make three blocks or more."""
    shown, starts = [v for v in OUTPUTS if v in other], members["reference_time"].values
    sums = []
    for ds, metric in ((members, "crps_fair"), (other, "mae")):
        found = xsm.score(ds, truth, variables=shown, metrics=[metric], by=("variable", "reference_time"), draws=1)
        sums.append(found.sel(metric=metric))
    lengths = segment_lengths(starts)
    blocks = float(np.maximum(1.0, lengths / DAY).sum())
    counts = resampled_counts(lengths, 1000, DAY, 0).values
    cells = {}
    for v in shown:
        crps, mae = (part[v].values for part in sums)
        if not mae.sum():  # radiation at night
            continue
        value = crps.sum() / mae.sum()
        cells[v] = f"{value:.2f}"
        if blocks >= 3:
            low, high = value + widening(blocks) * (np.percentile(counts @ crps / (counts @ mae), (2.5, 97.5)) - value)
            cells[v] += f" [{low:.2f}, {high:.2f}]"
    return [cells.get(v, "-") for v in OUTPUTS if v in members]


def by_lead(members: xr.Dataset, truth: xr.Dataset) -> str:
    """Spread, and its ratio to the error, by lead time; nothing for analyses."""
    if members.sizes["lead_time"] == 1:
        return ""
    outputs = [v for v in OUTPUTS if v in members]
    found = xsm.score(members, truth, variables=outputs, metrics=["spread", "spread_skill"], draws=1)
    lines = [["spread (over error)", *(f"{h} h" for h in found["lead_time"].values)]]
    for v, head in zip(outputs, heads(outputs), strict=True):
        spread, skill = found[v].sel(metric="spread").values * unit(v)[1], found[v].sel(metric="spread_skill").values
        lines.append([head, *(f"{a:.3g} ({b:.2f})" for a, b in zip(spread, skill, strict=True))])
    return markdown(lines)


def tails(systems: dict[str, xr.Dataset], truth: xr.Dataset) -> str:
    """The 99.9 % quantiles of wind speed and, where there is one, radiation."""
    words = {"ws10": "wind (m/s)", "ssrd": "ssrd (W/m2)"}
    names = [v for v in words if v == "ws10" or v in systems["CorrDiff"]]
    lines, known = [["99.9 % quantile", *(words[v] for v in names)]], {}
    for name, ds in systems.items():
        cells = {v: "-" for v in names}
        for v in (v for v in names if v == "ws10" or v in ds):
            found = quantiles(ds, truth, [TAIL], variables=[v])[v].isel(quantile=0).mean("lead_time")
            cells[v], known[v] = f"{float(found.sel(source='forecast')):.4g}", float(found.sel(source="truth"))
        lines.append([name, *cells.values()])
    lines.append(["truth", *(f"{known[v]:.4g}" for v in names)])
    return markdown(lines)


def ranks(systems: dict[str, xr.Dataset], truth: xr.Dataset) -> str:
    """How often the truth lies outside of all members, over what chance gives."""
    outputs = shown_in(systems)
    lines = [["truth outside of the members, over chance", *outputs]]
    for name, ds in as_many(systems).items():
        found = rank_histogram(ds, truth, variables=outputs).mean("lead_time")
        outside = [float(found[v].isel(rank=[0, -1]).sum()) * (ds.sizes["member"] + 1) / 2 for v in outputs]
        lines.append([name, *(f"{value:.2f}" for value in outside)])
    return markdown(lines)


def as_many(systems: dict[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Those with members, all with the same number: ranks can only be compared so."""
    found = {name: ds for name, ds in systems.items() if "member" in ds.dims}
    count = min(ds.sizes["member"] for ds in found.values())
    return {name: ds.isel(member=slice(count)) for name, ds in found.items()}


def spectra(systems: dict[str, xr.Dataset], truth: xr.Dataset) -> tuple[str, xr.Dataset]:
    """Variance of the shortest complete third of the waves over that of the truth; and the spectra."""
    outputs = shown_in(systems)
    fine, _ = conform(truth, Schema.of(*outputs))
    one = systems["CorrDiff"]
    times = (one["reference_time"] + one["lead_time"] * HOUR).values.flatten()  # some more than once, as in the forecasts
    known = power_spectrum(fine[outputs].sel(time=times)).mean("time")
    lines, kept = [["variance of short waves, over the truth", *outputs]], {"truth": known}
    for name, ds in systems.items():
        shown = [v for v in outputs if v in ds]
        found = power_spectrum(ds[shown])
        found = found.mean([dim for dim in found.dims if dim != "wavenumber"])
        kept[name] = found
        whole = np.flatnonzero(found["complete"].values)
        short = whole[-max(1, whole.size // 3) :]
        sums = {v: [float(ds[v].isel(wavenumber=short).sum()) for ds in (found, known)] for v in shown}
        lines.append([name, *(f"{sums[v][0] / sums[v][1]:.2f}" if v in sums and sums[v][1] else "-" for v in outputs)])
    power = xr.concat([ds.assign_coords(system=name) for name, ds in kept.items()], "system", join="override")
    return markdown(lines), power


# ------------------------------------------------------------------------------------------------------------- pictures


def draw_maps(systems: dict[str, xr.Dataset], truth: xr.Dataset, file: Path) -> None:
    """One valid time of temperature, wind speed and radiation: input, regression, two members, truth."""
    members = systems["CorrDiff"]
    noon = {"reference_time": members["reference_time"][_warmest(members)], "lead_time": members["lead_time"][-1]}
    valid = noon["reference_time"].values + int(noon["lead_time"]) * HOUR
    shown = {name: ds.sel(noon) for name, ds in systems.items() if "member" not in ds.dims}
    shown |= {f"member {i}": members.sel(noon).isel(member=i) for i in (0, 1)}
    shown["truth"], _ = conform(truth.sel(time=valid), Schema.of(*shown_in(systems)))
    draw_fields(shown, f"{str(valid)[:13]} UTC", file)


def draw_ranks(systems: dict[str, xr.Dataset], truth: xr.Dataset, file: Path) -> None:
    """How often the truth has each rank among the members, over chance, before and after calibration."""
    plt, outputs = pyplot(), shown_in(systems)
    figure, panels = plt.subplots(2, 4, figsize=(13, 5.2), layout="constrained", sharex=True)
    for name, ds in as_many(systems).items():
        color = "C1" if name == RAW else "C0"
        found = rank_histogram(ds, truth, variables=outputs).mean("lead_time")
        edges = np.linspace(0, 1, found.sizes["rank"] + 1)
        for panel, v in zip(panels.flat, outputs, strict=False):
            panel.stairs(found[v] * found.sizes["rank"], edges, label=name, color=color, lw=1.5)
            panel.axhline(1, color="k", lw=0.5)
            panel.set(title=v, ylim=(0, None))
    _finish(panels, len(outputs))
    figure.supxlabel("share of the members below the truth")
    figure.supylabel("frequency, over chance")
    figure.savefig(file, dpi=70)
    plt.close(figure)


def _warmest(fc: xr.Dataset) -> int:
    """The start whose last lead is the warmest, for it has the sun."""
    return int(fc["t2m"].isel(lead_time=-1, member=0).mean(["latitude", "longitude"]).values.argmax())


def draw_spectra(power: xr.Dataset, file: Path) -> None:
    """Power of each variable by wavelength."""
    plt = pyplot()
    figure, panels = plt.subplots(2, 4, figsize=(15, 6.4), layout="constrained")
    whole, outputs = power.isel(wavenumber=power["complete"].values), [v for v in OUTPUTS if v in power]
    for panel, name in zip(panels.flat, outputs, strict=False):
        for number, system in enumerate(whole["system"].values.tolist()):
            line = whole[name].sel(system=system)
            if np.isfinite(line).all():  # cloud and radiation are not interpolated
                panel.loglog(whole["wavelength"], line, label=system, color=f"C{number - 1}" if number else "k")
        panel.invert_xaxis()
        panel.set(title=name, xlabel="wavelength (km)")
    _finish(panels, len(outputs))
    figure.savefig(file, dpi=70)
    plt.close(figure)


def _finish(panels: np.ndarray, used: int) -> None:
    """The legend in the last panel, nothing in those without a variable."""
    for panel in panels.flat[used:]:
        panel.axis("off")
    panels[1, 3].legend(*panels[0, 0].get_legend_handles_labels(), loc="center", frameon=False)


def main() -> None:
    """Score one model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=tuple(TASKS))
    options_of(parser)
    parser.add_argument("--weights", type=Path, help="folder of the model; default: the shipped one")
    parser.add_argument("--calibrated", action="store_true", help="do not draw from the model before calibration too")
    parser.add_argument("--figures", type=Path, help="folder for pictures")
    options = parser.parse_args()
    score(options.name, options)


if __name__ == "__main__":
    main()
