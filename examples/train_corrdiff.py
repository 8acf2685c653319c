"""Train one of the CorrDiff models on a CPU; a run that was stopped goes on by the same command.

    python examples/train_corrdiff.py corrdiff-twin-ea DATA pretrained/corrdiff-twin-ea              # 5.6 -> 1.125 degrees
    python examples/train_corrdiff.py corrdiff-twin-ea-chain DATA pretrained/... --later T106        # on top of ScaleMixer
    python examples/train_corrdiff.py corrdiff-hrrr DATA pretrained/corrdiff-hrrr                    # 30 -> 3 km, Idaho

DATA is the folder with ``nature/`` and ``real/hrrr_idaho/``, T106 raw segments of a later run of the twin world
(docs/models.md) that ScaleMixer was not trained on. Both stages are trained, then spread and solver are fitted on validation
data; what is finished is kept in --runs and never done again. ``--setting gpu`` trains longer and larger networks, ``smoke``
a few updates. Everything about the twin world is a twin experiment.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from train_twin_ea import TEST, TRAIN, VALIDATION, read_twin_world

import xscalemixer as xsm
from xscalemixer.conform import conform
from xscalemixer.variables import Schema

OUTPUTS = ("t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd")
NEAR_GROUND = OUTPUTS[:5]
UPPER = tuple(f"{name}_{level}" for name in ("z", "t", "u", "v", "q") for level in (500, 850))
LATER = {"train": (("2002-07-01", "2002-07-12"),), "validation": (("2002-07-12T12", "2002-07-16"),)}
PATCHES = {"patch": (32, 32), "patches": 3, "patch_regression": True}  # some weeks of whole fields would be learned by heart
LEADS = tuple(range(6, 49, 6))
HOUR = np.timedelta64(1, "h")
HRRR_CORNER, HRRR_SHAPE = (43.25, -117.0), (40, 40)  # the largest square of latitudes and longitudes in the files


@dataclass(frozen=True)
class Setting:
    """How much is trained."""

    updates: tuple[int, int]  # regression, diffusion
    batch: int
    width: int
    device: str
    calibration: dict


SETTINGS = {
    "smoke": Setting((4, 4), 2, 8, "cpu", {"members": 2, "samples": 2}),
    "cpu": Setting((1500, 4000), 4, 32, "cpu", {"members": 6, "samples": 8}),
    "gpu": Setting((8000, 30000), 32, 64, "cuda", {"members": 16, "samples": 32}),
}


@dataclass(frozen=True)
class Task:
    """One model: its pair of fields, its settings, and what is kept for a verdict.

    Attributes
    ----------
    what : str
        First line of its card.
    pair : DataTree
    changes : dict
        Settings that it does not share with the others.
    test : tuple of (start, end)
    shared : tuple of str
        Outputs that the input has too.
    shares : (float, float)
        Of the updates of both stages.
    """

    what: str
    pair: xr.DataTree
    changes: dict
    test: tuple
    shared: tuple[str, ...]
    shares: tuple[float, float] = (1.0, 1.0)


# ---------------------------------------------------------------------------------------------------------------- tasks


def plain(options: argparse.Namespace) -> Task:
    """From global analyses; cloud and radiation are synthesized."""
    tree = read_twin_world(options.data / "nature")
    pair = xr.DataTree.from_dict({"/input": tree["global"].to_dataset(), "/target": tree["regional"].to_dataset()})
    changes = {"inputs": (*UPPER, *NEAR_GROUND), "train": TRAIN, "validation": VALIDATION, "test": TEST, **PATCHES}
    what = "From global analyses of 5.6 degrees to East Asia at 1.125 degrees, in a twin world; not verified on real weather."
    return Task(what, pair, changes, TEST, NEAR_GROUND, shares=(1.0, 0.6))


def chain(options: argparse.Namespace) -> Task:
    """From forecasts of ScaleMixer in weeks that it was not trained on."""
    tree = read_twin_world(options.data / "nature", later=options.later)
    pair = xsm.downscaling_pair(
        hindcasts(tree, options), tree["regional"].to_dataset(), leads=LEADS, model=xsm.load(options.model)
    )
    what = (
        f"From forecasts of {options.model} to ensembles that spread as it errs, in a twin world; not verified on real weather."
    )
    return Task(what, pair, {"inputs": OUTPUTS, "test": TEST, **LATER, **PATCHES}, TEST, OUTPUTS, shares=(0.25, 0.35))


def hindcasts(tree: xr.DataTree, options: argparse.Namespace) -> xr.Dataset:
    """Of ScaleMixer, from every six-hourly start of the later run and of the test blocks; made once."""
    times, hours = tree["global"]["time"].values, tree["regional"]["time"].values
    wanted = (*LATER["train"], *LATER["validation"], *TEST)
    inside = lambda t: any(np.datetime64(a) + 6 * HOUR <= t <= np.datetime64(b) - LEADS[-1] * HOUR for a, b in wanted)
    history = times[:, None] - np.arange(6) * HOUR
    init = [t for t, known in zip(times, np.isin(history, hours).all(1), strict=True) if known and inside(t)]
    if options.setting == "smoke":
        init = [*init[:4], *[t for t in init if t > np.datetime64(LATER["validation"][0][0])][:2]]
    store = folder_of("hindcast", options).with_suffix(".zarr")
    more = {"to": store, "resume": store.exists(), "device": SETTINGS[options.setting].device}
    return xsm.hindcast(tree, init, LEADS[-1], model=options.model, **more)


def hrrr(options: argparse.Namespace) -> Task:
    """From means over 30 km of the analyses themselves; 41 hours in all, so the numbers are an example, no verdict."""
    truth, report = conform(xsm.open(str(options.data / "real" / "hrrr_idaho" / "*.grib2")), Schema.of(*NEAR_GROUND))
    report.raise_errors()
    fine = xsm.regrid(truth.load(), xsm.Grid.regular(*HRRR_CORNER, "0.03", HRRR_SHAPE))
    coarse = fine.coarsen(latitude=10, longitude=10).mean()
    pair = xr.DataTree.from_dict({"/input": coarse.drop_vars("lsm"), "/target": fine})
    train, test = (("2018-07-21T23", "2018-07-22T20"), ("2018-07-23T02", "2018-07-23T10")), (("2018-07-23T10", "2018-07-23T17"),)
    periods = {"train": train, "validation": (("2018-07-22T20", "2018-07-23T01"),), "test": test}
    what = "An example: from means over 30 km to 3 km in a part of Idaho, learned from 29 hours of HRRR analyses; no other use."
    few = {"patch": (16, 16), "patches": 6, "patch_regression": True}  # 29 hours are learned by heart as whole fields
    # the hours are nearly cloudless: nothing can be learned of cloud and radiation
    changes = {"inputs": NEAR_GROUND, "outputs": NEAR_GROUND, **few, **periods}
    return Task(what, pair, changes, test, NEAR_GROUND, shares=(0.25, 0.3))


TASKS: dict[str, Callable[[argparse.Namespace], Task]] = {
    "corrdiff-twin-ea": plain,
    "corrdiff-twin-ea-chain": chain,
    "corrdiff-hrrr": hrrr,
}


# ------------------------------------------------------------------------------------------------------------- training


def config(name: str, task: Task, setting: Setting) -> xsm.CorrDiffConfig:
    """Two stages; each ends early where it only learns its samples by heart."""
    unet = {"width": setting.width, "dropout": 0.2}
    updates = [max(1, round(share * number)) for share, number in zip(task.shares, setting.updates, strict=True)]
    stages = tuple(
        xsm.Stage(kind=kind, updates=number, batch=setting.batch, peak=1e-3, floor=1e-5, patience=6)
        for kind, number in zip(("regression", "diffusion"), updates, strict=True)
    )
    return xsm.CorrDiffConfig(
        name=name,
        size="small",
        network={"regression": unet, "diffusion": unet},
        stages=stages,
        calendar=("hour",),  # some weeks say nothing about the rest of the year; the sun does
        check_every=max(1, updates[0] // 10),
        weight_decay=0.05,
        **{"outputs": OUTPUTS, **task.changes},
    )


def folder_of(name: str, options: argparse.Namespace) -> Path:
    """What is kept of a run; each setting has its own."""
    return options.runs / (name if options.setting == "cpu" else f"{name}-{options.setting}")


def trained(name: str, task: Task, options: argparse.Namespace) -> Path:
    """Folder of the model, trained and calibrated."""
    setting, folder = SETTINGS[options.setting], folder_of(name, options)
    raw, fitted = folder / "trained", folder / "model"
    if not raw.exists():
        how = {"device": setting.device, "workers": 1, "min_samples": 2}
        xsm.train(config(name, task, setting), task.pair, folder=folder, **how).save(raw)
    if not fitted.exists():
        xsm.calibrate(raw, task.pair, device=setting.device, **setting.calibration).save(fitted)
    return fitted


def card(name: str, task: Task, model) -> str:
    """What it is, and what the validation data say."""
    periods, found = model.about["trained_on"][-1], model.about["calibration"]
    spans = {part: ", ".join(f"{start} to {end}" for start, end in periods[part]) for part in ("train", "validation", "test")}
    rows = [
        ("input", " ".join(model.coarse.schema.channels)),
        ("output", f"{' '.join(model.fine.schema.channels)} on {model.fine.grid}"),
        ("network", f"CorrDiff (arXiv:2309.15214), {model.parameter_count / 1e6:.1f} M parameters in two U-Nets"),
        *((f"{part} periods", text) for part, text in spans.items()),
        ("training", f"`python examples/train_corrdiff.py {name}`; seed 0"),
        ("solver", f"{model.solver.method}, {model.solver.calls} network calls, churn {model.solver.churn:g}"),
        ("licence", "weights Apache-2.0"),
    ]
    scores = [
        f"| {channel} | {row['factor']:.2f} | "
        + " | ".join(f"{row[name][i][0]:.2f}" for name in ("crps", "spread_skill") for i in (0, 1))
        + " |"
        for channel, row in found["channels"].items()
    ]
    return "\n".join(
        [
            f"# {name}", "", task.what, "",
            "| | |", "|---|---|", *(f"| {word} | {text} |" for word, text in rows), "",
            f"On validation data, which spread and solver were fitted to ({found['samples']} x {found['members']} members):", "",
            "| variable | factor | CRPS / error of the regression before | after | spread / error before | after |",
            "|---" * 6 + "|", *scores, "",
        ]
    )  # fmt: skip


def options_of(parser: argparse.ArgumentParser) -> None:
    """Options of training and of scoring."""
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/corrdiff"))
    parser.add_argument("--later", type=Path, help="T106 segments of a later run")
    parser.add_argument("--model", default="twin-ea-small", help="the ScaleMixer model of the chain")
    parser.add_argument("--setting", choices=tuple(SETTINGS), default="cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=tuple(TASKS))
    options_of(parser)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("xscalemixer").setLevel(logging.INFO)
    if options.name == "corrdiff-twin-ea-chain" and options.later is None:
        raise SystemExit("the chain learns from forecasts of held-out weeks; give --later T106")
    task = TASKS[options.name](options)
    model = xsm.load(trained(options.name, task, options))
    model.save(options.target, card=card(options.name, task, model), overwrite=True, half=True)


if __name__ == "__main__":
    main()
