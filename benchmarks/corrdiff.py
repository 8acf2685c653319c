"""CorrDiff on twin world A and on HRRR: trained, calibrated and scored on held-out weather.

    python benchmarks/corrdiff.py train DATA RUNS --only plain               # 5.6 -> 1.125 degrees, from global analyses
    python benchmarks/corrdiff.py train DATA RUNS --only chain --later T106  # on top of ScaleMixer, from its own errors
    python benchmarks/corrdiff.py train DATA RUNS --only hrrr                # 30 -> 3 km, Idaho
    python benchmarks/corrdiff.py score DATA RUNS --only plain               # table, spectra, tails, rank histograms

DATA is the folder with ``nature/`` and ``real/hrrr_idaho/``, T106 raw segments of a later run of the twin world
(docs/models.md) that ScaleMixer was not trained on. What is finished is never done again; a run that was stopped goes on by
the same command. ``--setting gpu`` trains longer and samples more. Everything about the twin world is a twin experiment.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

import xscalemixer as xsm
from xscalemixer.conform import conform
from xscalemixer.grids import Grid
from xscalemixer.variables import Schema
from xscalemixer.verification import power_spectrum, quantiles, rank_histogram

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_twin_ea import TEST, TRAIN, VALIDATION, read_twin_world

OUTPUTS = ("t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd")
UPPER = tuple(f"{name}_{level}" for name in ("z", "t", "u", "v", "q") for level in (500, 850))
UNITS = {"t2m": ("K", 1), "q2m": ("g/kg", 1e3), "sp": ("hPa", 1e-2), "tcc": ("%", 100), "ssrd": ("W/m2", 1)}
PAPER = {"radar": 0.69, "t2m": 0.58, "u10": 0.64, "v10": 0.62}  # CRPS over MAE, arXiv 2309.15214
LATER = {"train": (("2002-08-20", "2002-09-14"),), "validation": (("2002-09-15", "2002-09-19"),)}
LATER_TEST = (("2002-09-20", "2002-10-09"),)
LEADS = tuple(range(6, 49, 6))
HOUR = np.timedelta64(1, "h")
TAIL = 0.999
HRRR_CORNER, HRRR_SHAPE = (43.25, -117.0), (40, 40)  # the largest square of latitudes and longitudes in the files


@dataclass(frozen=True)
class Setting:
    """How much is trained and sampled."""

    updates: tuple[int, int]  # regression, diffusion
    batch: int
    width: int
    members: int
    device: str


SETTINGS = {
    "smoke": Setting((4, 4), 2, 8, 2, "cpu"),
    "cpu": Setting((1500, 4000), 4, 32, 16, "cpu"),
    "gpu": Setting((8000, 30000), 32, 64, 32, "cuda"),
}


@dataclass(frozen=True)
class Task:
    """One model: its pair of fields, its settings, and what it is scored on."""

    pair: xr.DataTree
    changes: dict
    test: tuple
    bilinear: tuple[str, ...]  # channels that the input has too


# ---------------------------------------------------------------------------------------------------------------- tasks


def plain(options: argparse.Namespace) -> Task:
    """From global analyses; cloud is synthesized."""
    tree = read_twin_world(options.data / "nature")
    inputs = (*UPPER, "t2m", "u10", "v10", "q2m", "sp")
    pair = xr.DataTree.from_dict({"/input": tree["global"].to_dataset(), "/target": tree["regional"].to_dataset()})
    changes = {"inputs": inputs, "train": TRAIN, "validation": VALIDATION, "test": TEST, "calendar": ("hour",)}
    return Task(pair, changes, TEST, ("t2m", "u10", "v10", "q2m", "sp"))


def chain(options: argparse.Namespace) -> Task:
    """From forecasts of ScaleMixer in weeks that it was not trained on."""
    if options.later is None:
        raise SystemExit("the chain learns from forecasts of held-out weeks; give --later T106")
    tree = read_twin_world(options.data / "nature", later=options.later)
    truth = tree["regional"].to_dataset()
    forecast = hindcasts(tree, options)
    pair = xsm.downscaling_pair(forecast, truth, leads=LEADS, model=xsm.load(options.model))
    changes = {"inputs": OUTPUTS, "calendar": ("hour",), "test": (*TEST, *LATER_TEST), **LATER}
    return Task(pair, changes, (*TEST, *LATER_TEST), OUTPUTS)


def hindcasts(tree: xr.DataTree, options: argparse.Namespace) -> xr.Dataset:
    """Of ScaleMixer, from every six-hourly start of the later run and of the test blocks; made once."""
    times, hours = tree["global"]["time"].values, tree["regional"]["time"].values
    wanted = (*LATER["train"], *LATER["validation"], *LATER_TEST, *TEST)
    inside = lambda t: any(np.datetime64(a) + 6 * HOUR <= t <= np.datetime64(b) - LEADS[-1] * HOUR for a, b in wanted)
    known = set(hours.tolist())
    init = [t for t in times if inside(t) and {(t - i * HOUR).astype("M8[ns]").astype(int) for i in range(6)} <= known]
    if options.setting == "smoke":
        init = [*init[:4], *[t for t in init if t > np.datetime64(LATER["validation"][0][0])][:2]]
    store = options.runs / "hindcast.zarr"
    more = {"to": store, "resume": store.exists(), "device": SETTINGS[options.setting].device}
    return xsm.hindcast(tree, init, LEADS[-1], model=options.model, **more)


def hrrr(options: argparse.Namespace) -> Task:
    """From means over 30 km of the analyses themselves; 41 hours in all, so the numbers are an example, no verdict."""
    schema = Schema.of(*OUTPUTS)
    truth, report = conform(xsm.open(str(options.data / "real" / "hrrr_idaho" / "*.grib2")), schema)
    report.raise_errors()
    fine = xsm.regrid(truth.load(), Grid.regular(*HRRR_CORNER, "0.03", HRRR_SHAPE))
    coarse = fine.coarsen(latitude=10, longitude=10).mean()
    inputs = ("t2m", "u10", "v10", "q2m", "sp")
    pair = xr.DataTree.from_dict({"/input": coarse.drop_vars(["orog", "lsm"]), "/target": fine})
    test = (("2018-07-23T10", "2018-07-23T17"),)
    changes = {
        "inputs": inputs, "calendar": ("hour",), "test": test,
        "train": (("2018-07-22T00", "2018-07-23T05"),), "validation": (("2018-07-23T05", "2018-07-23T10"),),
    }  # fmt: skip
    return Task(pair, changes, test, inputs)


TASKS = {"plain": plain, "chain": chain, "hrrr": hrrr}


# ------------------------------------------------------------------------------------------------------------- training


def config(name: str, task: Task, setting: Setting) -> xsm.CorrDiffConfig:
    """Two stages."""
    unet = {"width": setting.width, "dropout": 0.2}
    stages = tuple(
        xsm.Stage(kind=kind, updates=updates, batch=setting.batch, peak=1e-3, floor=1e-5)
        for kind, updates in zip(("regression", "diffusion"), setting.updates, strict=True)
    )
    return xsm.CorrDiffConfig(
        name=f"corrdiff-{name}", size="small", network={"regression": unet, "diffusion": unet}, stages=stages,
        outputs=OUTPUTS, check_every=max(1, setting.updates[0] // 10), weight_decay=0.05, **task.changes,
    )  # fmt: skip


def train(options: argparse.Namespace) -> None:
    """The model of one task, as trained and calibrated."""
    setting, task = SETTINGS[options.setting], TASKS[options.only](options)
    folder, begun = options.runs / options.only, time.process_time()
    if not (folder / "trained").exists():
        found = xsm.train(
            config(options.only, task, setting), task.pair, folder=folder, device=setting.device, workers=1, min_samples=2
        )
        found.save(folder / "trained")
    if not (folder / "model").exists():
        few = {"members": 2, "samples": 2} if options.setting == "smoke" else {}
        fitted = xsm.calibrate(folder / "trained", task.pair, device=setting.device, **few)
        fitted.save(folder / "model")
        (folder / "calibration.json").write_text(json.dumps(fitted.about["calibration"], indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{options.only}: {(time.process_time() - begun) / 60:.1f} minutes of processor time\n")


# -------------------------------------------------------------------------------------------------------------- scoring


def score(options: argparse.Namespace) -> None:
    """Fields of every system on the test times, and the tables."""
    setting, task = SETTINGS[options.setting], TASKS[options.only](options)
    folder = options.runs / options.only
    source, truth = held_out(task, options), task.pair["target"].to_dataset()
    run = {"device": setting.device}
    model = xsm.load(folder / "model")
    systems = {
        "bilinear": at_lead_zero(bilinear(source, model, task.bilinear)),
        "regression": at_lead_zero(xsm.downscale(source, "mean", model=model, **run)),
    }
    for name in ("trained", "model"):
        store = folder / f"{name}.zarr"
        label = "CorrDiff" if name == "model" else "CorrDiff, not calibrated"
        systems[label] = xsm.downscale(
            source, setting.members, model=folder / name, to=store, resume=store.exists(), coherence=12.0, **run
        )
    text = [tables(systems, truth, task), tails(systems, truth), ranks(systems, truth), spectra(systems, truth, folder)]
    (folder / "tables.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    sys.stdout.write("\n\n".join(text) + "\n")


def held_out(task: Task, options: argparse.Namespace) -> xr.Dataset:
    """The input at the test times, or from starts of which the whole forecast lies in the test periods."""
    ds = task.pair["input"].to_dataset()
    axis, last = ("reference_time", LEADS[-1]) if "reference_time" in ds.dims else ("time", 0)
    stamps = ds[axis].values
    inside = [(stamps > np.datetime64(a)) & (stamps + last * HOUR <= np.datetime64(b)) for a, b in task.test]
    chosen = np.flatnonzero(np.logical_or.reduce(inside))
    known = task.pair["target"]["time"].values
    chosen = [i for i in chosen if axis == "reference_time" or stamps[i] in known]
    return ds.isel({axis: chosen[:2] if options.setting == "smoke" else chosen})


def bilinear(source: xr.Dataset, model, channels: tuple[str, ...]) -> xr.Dataset:
    """The input on the fine grid."""
    grid = model.fine.grid
    if "reference_time" in source.dims:
        return source[list(channels)]
    canonical, report = conform(source, Schema.of(*channels))
    report.raise_errors()
    return xsm.regrid(canonical[list(channels)], grid)


def at_lead_zero(ds: xr.Dataset) -> xr.Dataset:
    """An analysis as forecasts of no length, which can be scored."""
    if "lead_time" in ds.dims:
        return ds
    ds = ds.rename(time="reference_time").expand_dims(lead_time=[0])
    ds["reference_time"].attrs = {"standard_name": "forecast_reference_time"}
    ds["lead_time"].attrs = {"units": "hours", "standard_name": "forecast_period"}
    return ds


def tables(systems: dict[str, xr.Dataset], truth: xr.Dataset, task: Task) -> str:
    """MAE and fair CRPS of every system, and the ratio of CRPS to the MAE of the regression beside the paper's."""
    rows = {name: {} for name in systems}
    for name, ds in systems.items():
        shown = [v for v in OUTPUTS if v in ds]
        ensemble = "member" in ds.dims
        metrics = ["mae", "crps", "spread_skill"] if ensemble else ["mae"]
        found = xsm.score(ds, truth, variables=shown, metrics=metrics, by=("variable",), draws=1)
        for v in shown:
            scale = UNITS.get(v, ("m/s", 1))[1]
            mae = float(found[v].sel(metric="mae")) * scale
            crps = float(found[v].sel(metric="crps")) * scale if ensemble else mae
            rows[name][v] = (mae, crps, float(found[v].sel(metric="spread_skill")) if ensemble else np.nan)
    names = [f"{v} ({UNITS.get(v, ('m/s', 1))[0]})" for v in OUTPUTS]
    parts = []
    for title, i in (("MAE (of the ensemble mean)", 0), ("CRPS", 1), ("spread / error", 2)):
        lines = [[title, *names]]
        lines += [
            [name, *(f"{row[v][i]:.3g}" if v in row and np.isfinite(row[v][i]) else "-" for v in OUTPUTS)]
            for name, row in rows.items()
        ]
        parts.append(markdown(lines))
    pairs = [(rows["CorrDiff"][v][1], rows["regression"][v][0]) for v in OUTPUTS]
    ratio = [f"{crps / mae:.2f}" if mae else "-" for crps, mae in pairs]  # at night there is no error of radiation
    paper = [str(PAPER.get(v, "-")) for v in OUTPUTS]
    parts.append(markdown([["CRPS / MAE of the regression", *OUTPUTS], ["here", *ratio], ["paper, Taiwan", *paper]]))
    if "lead_time" in systems["CorrDiff"].dims and systems["CorrDiff"].sizes["lead_time"] > 1:
        leads = xsm.score(systems["CorrDiff"], truth, variables=OUTPUTS, metrics=["spread", "crps", "spread_skill"], draws=1)
        lines = [["spread by lead time", *(f"{h} h" for h in leads["lead_time"].values)]]
        lines += [[v, *(f"{x:.3g}" for x in leads[v].sel(metric="spread").values * UNITS.get(v, ("", 1))[1])] for v in OUTPUTS]
        parts.append(markdown(lines))
    return "\n\n".join(parts)


def tails(systems: dict[str, xr.Dataset], truth: xr.Dataset) -> str:
    """The 99.9 % quantiles of wind speed and radiation."""
    lines = [["99.9 % quantile", "wind (m/s)", "ssrd (W/m2)"]]
    for name, ds in systems.items():
        cells = []
        for v in ("ws10", "ssrd"):
            if v == "ssrd" and v not in ds:
                cells.append(("-", None))
                continue
            found = quantiles(ds, truth, [TAIL], variables=[v])[v].isel(quantile=0).mean("lead_time")
            cells.append((f"{float(found.sel(source='forecast')):.4g}", float(found.sel(source="truth"))))
        lines.append([name, *(text for text, _ in cells)])
        last = [known for _, known in cells]
    lines.append(["truth", *(f"{value:.4g}" for value in last)])
    return markdown(lines)


def ranks(systems: dict[str, xr.Dataset], truth: xr.Dataset) -> str:
    """How often the truth lies outside of all members, over what chance gives."""
    lines = [["truth outside of the members, over chance", *OUTPUTS]]
    for name, ds in systems.items():
        if "member" in ds.dims:
            found = rank_histogram(ds, truth, variables=OUTPUTS).mean("lead_time")
            outside = [float(found[v].isel(rank=[0, -1]).sum()) * (ds.sizes["member"] + 1) / 2 for v in OUTPUTS]
            lines.append([name, *(f"{value:.2f}" for value in outside)])
    return markdown(lines)


def spectra(systems: dict[str, xr.Dataset], truth: xr.Dataset, folder: Path) -> str:
    """Variance of the shortest complete third of the waves over that of the truth; the spectra go to a file."""
    schema = Schema.of(*OUTPUTS)
    fine, _ = conform(truth, schema)
    one = systems["CorrDiff"]
    times = np.unique((one["reference_time"] + one["lead_time"] * HOUR).values) if "lead_time" in one.dims else one["time"].values
    known = power_spectrum(fine[list(OUTPUTS)].sel(time=times)).mean("time")
    lines, kept = [["variance of short waves, over the truth", *OUTPUTS]], {"truth": known}
    for name, ds in systems.items():
        shown = [v for v in OUTPUTS if v in ds]
        found = power_spectrum(ds[shown])
        found = found.mean([dim for dim in found.dims if dim != "wavenumber"])
        kept[name] = found
        whole = np.flatnonzero(found["complete"].values)
        short = whole[-max(1, whole.size // 3) :]
        sums = {v: [float(ds[v].isel(wavenumber=short).sum()) for ds in (found, known)] for v in shown}
        lines.append([name, *(f"{sums[v][0] / sums[v][1]:.2f}" if v in sums and sums[v][1] else "-" for v in OUTPUTS)])
    xr.concat([ds.assign_coords(system=name) for name, ds in kept.items()], "system", join="override").to_netcdf(
        folder / "spectra.nc"
    )
    return markdown(lines)


def markdown(rows: list[list[str]]) -> str:
    """A table, the first row as its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def main() -> None:
    """Train, or score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("train", "score"))
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--only", choices=tuple(TASKS), required=True)
    parser.add_argument("--later", type=Path, help="T106 segments of a later run")
    parser.add_argument("--model", default="twin-ea-small", help="the ScaleMixer model of the chain")
    parser.add_argument("--setting", choices=tuple(SETTINGS), default="cpu")
    options = parser.parse_args()
    {"train": train, "score": score}[options.task](options)


if __name__ == "__main__":
    main()
