"""Met2Net trained the implicit, the joint and the explicit two-stage way, on moving shapes and on the region of twin world A.

    python benchmarks/met2net.py shapes RUNS                  # trains and measures; go on by the same command
    python benchmarks/met2net.py twin DATA RUNS               # the same on hourly fields, in forecasts of 24 hours
    python benchmarks/met2net.py twin DATA RUNS --beside runs/D_regional_only-0/model --figures docs --publish met2net-twin-ea

Every way gets the same network, samples, learning rates and number of updates (the explicit one spends half of them on each of
its stages), three seeds, and is chosen by the error of its forecasts of the validation set. An update does not cost the same:
the table has CPU minutes, of all processes that a run took. DATA holds the packed twin world (docs/models.md); --beside names
further models, such as ScaleMixer trained with coupling "none".

CPU minutes on two cores that others used too, for each implicit, joint and explicit run, and for all nine:

======= =========== ======== ===== ======== ====
        --setting   implicit joint explicit nine
======= =========== ======== ===== ======== ====
shapes  cpu         10       7     6        70
twin    cpu         32       28    28       270
======= =========== ======== ===== ======== ====

``--setting try`` takes a minute or two and shows that everything runs.
``--minutes 20`` stops after so many CPU minutes; at most the last 50 updates are done again by the same command. ``--part 1/2``
does every second run and no more, so that two processes share the work; what is there is measured by the command without it.

The paper (arXiv 2507.17189) found 28.82 % (t2m) and 23.39 % (r) less mean square error than the best before it, on WeatherBench.
These are other data.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import xarray as xr
from common import HOUR, cost, counted, markdown, pyplot, saved, starts_within

import xscalemixer as xsm
from xscalemixer.moving_shapes import CHANNELS, MovingShapes
from xscalemixer.nn.met2net import Met2Net, Met2NetConfig
from xscalemixer.training.alone import Met2NetStage
from xscalemixer.training.checkpoints import Checkpoints, write_tensors
from xscalemixer.training.engine import Plan, Saving, fit, seed_of
from xscalemixer.training.ranks import ranks
from xscalemixer.verification.openstl import openstl_errors

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_twin_ea import TEST, TRAIN, VALIDATION, read_twin_world

WAYS = {"implicit": ("implicit",), "joint": ("joint",), "explicit": ("autoencoder", "translator")}
SAVE = 50  # updates between checkpoints
CLAIM = "The paper claims 28.82 % (t2m) and 23.39 % (r) less than the best before it, on WeatherBench; these are other data."
CARD = Path(__file__).parents[1] / "docs" / "cards" / "met2net-twin-ea.md"
VARIABLES = ["t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd"]


@dataclass(frozen=True)
class Setting:
    """How much is trained."""

    updates: int
    batch: int
    peak: float
    network: dict
    device: str
    size: int = 64  # of moving shapes, and how many sequences there are of them
    train: int = 10000
    test: int = 10000
    seeds: tuple[int, ...] = (0, 1, 2)
    hours: int = 24  # of forecasts of the twin world, and every which of the starts is taken
    every: int = 1
    validation: tuple = VALIDATION
    check_every: int = 250


BRIEF = ((VALIDATION[0][0], str(np.datetime64(VALIDATION[0][0]) + 30 * HOUR)),)
SMALL = {"width": 16, "units": 4, "translator": {"width": 64, "depth": 4, "drop_path": 0.0}}
SHORT = {**SMALL, "past": 5, "future": 5}
SETTINGS = {
    "shapes": {
        "try": Setting(8, 4, 2e-3, SHORT, "cpu", size=32, train=64, test=32, seeds=(0, 1)),
        "cpu": Setting(1500, 8, 2e-3, SHORT, "cpu", size=32, train=10000, test=512),
        "gpu": Setting(60000, 16, 5e-3, {}, "cuda"),
    },
    "twin": {
        "try": Setting(4, 2, 1e-3, SMALL, "cpu", seeds=(0,), hours=12, every=32, validation=BRIEF),
        "cpu": Setting(1200, 2, 1e-3, SMALL, "cpu", check_every=400),
        "gpu": Setting(20000, 16, 1e-3, {}, "cuda"),
    },
}


def jobs(part: str, seeds: tuple[int, ...]) -> list[tuple[str, int]]:
    """Ways and seeds, all ways with the first seed before the next one."""
    number, count = map(int, part.split("/"))
    return [(way, seed) for seed, way in product(seeds, WAYS)][number - 1 :: count]


def stop_after(minutes: float) -> None:
    """End this process after some CPU minutes of all its threads."""

    def stop(*_):
        raise SystemExit(f"stopped after {minutes:g} CPU minutes; go on by the same command")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, 60 * minutes)


# --------------------------------------------------------------------------------------------------------- moving shapes


class Shapes:
    """Samples of moving shapes, drawn when they are asked for."""

    def __init__(self, config: Met2NetConfig, setting: Setting, seed: int, count: int):
        size, frames = setting.size, config.past + config.future
        self.shapes = MovingShapes(seed=seed, frames=frames, size=size, extent=round(size * 28 / 64))
        self.count, self.past = count, config.past

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        frames = torch.from_numpy(self.shapes.sequences([item])[0])
        return {"past": frames[: self.past], "future": frames[self.past :]}


def folder_of(name: str, options: argparse.Namespace) -> Path:
    """Where runs are kept; each setting has its own place."""
    return options.runs / (name if options.setting == "cpu" else f"{name}-{options.setting}")


def shapes(options: argparse.Namespace) -> None:
    """Every way and seed; then the table of what is there."""
    setting, root = SETTINGS["shapes"][options.setting], folder_of("shapes", options)
    for way, seed in jobs(options.part, setting.seeds):
        folder = root / f"{way}-{seed}"
        if not (folder / "errors.npz").exists():
            with counted(folder):
                train_shapes(way, seed, setting, folder)
    if options.part != "1/1":
        return
    found = {path.parent.name: dict(np.load(path)) for path in sorted(root.glob("*/errors.npz"))}
    text = shapes_table(found | {"persistence": _still(setting)}, {name: cost(root / name)["cpu_minutes"] for name in found})
    (root / "tables.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def shapes_config(way: str, setting: Setting) -> Met2NetConfig:
    """The network."""
    return Met2NetConfig.mvmm_fnist().changed({**setting.network, "objective": {"way": way}})


def train_shapes(way: str, seed: int, setting: Setting, folder: Path) -> None:
    """One network, and its errors on the test sequences."""
    torch.manual_seed(seed)
    config = shapes_config(way, setting)
    network = Met2Net(config)
    with ranks(setting.device) as group:
        for number, stage in enumerate(WAYS[way]):
            weights = folder / f"{number}-{stage}.safetensors"
            if weights.exists():
                network.load_state_dict(safetensors.torch.load_file(weights))
                continue
            plan = Plan(
                label=stage, updates=setting.updates // len(WAYS[way]), batch=setting.batch, peak=setting.peak, floor=1e-6,
                check_every=setting.check_every, seed=seed_of(seed, number), warmup=100, betas=(0.9, 0.999),
                weight_decay=0.0, ema=0.0,
            )  # fmt: skip
            kept = Checkpoints(weights.with_suffix(""), {"plan": json.dumps(vars(plan)), "network": json.dumps(config.to_dict())})
            saving = Saving(checkpoints=kept, losses=kept.folder / "losses.jsonl", updates=SAVE)
            objective = Met2NetStage(network, stage, CHANNELS)
            train, validation = (Shapes(config, setting, *each) for each in ((1, setting.train), (2, 64)))
            fit(objective, train, validation, plan, group, saving=saving)
            write_tensors(weights, network.state_dict())
            kept.clear()
    np.savez(folder / "errors.npz", **_errors(lambda past: network.eval().cpu()(past), config, setting))


def _still(setting: Setting) -> dict[str, np.ndarray]:
    config = shapes_config("joint", setting)
    return _errors(lambda past: past[:, -1:].expand(-1, config.future, -1, -1, -1), config, setting)


@torch.inference_mode()
def _errors(forecast, config: Met2NetConfig, setting: Setting) -> dict[str, np.ndarray]:
    """Mean square error of each test sequence and channel, and the errors of OpenSTL."""
    samples, rows, pairs = Shapes(config, setting, 3, setting.test), [], []
    for first in range(0, setting.test, 16):
        batch = [samples[i] for i in range(first, min(first + 16, setting.test))]
        past, truth = (torch.stack([each[name] for each in batch]) for name in ("past", "future"))
        found = forecast(past)
        rows.append((found - truth).square().mean((1, 3, 4)).numpy())
        pairs.append(openstl_errors(found.numpy(), truth.numpy()))
    names = pairs[0]
    return {"mse": np.concatenate(rows), **{f"openstl_{name}": np.mean([pair[name] for pair in pairs]) for name in names}}


def shapes_table(found: dict[str, dict], costs: dict[str, float]) -> str:
    """Markdown: errors of each way, and what the implicit one saves of those of the others, with 95 % intervals."""
    groups = _groups(found)
    lines = [["MSE x 1000", *CHANNELS, "all", "OpenSTL mse", "CPU min", "seeds"]]
    for system, names in groups.items():
        values = np.stack([1000 * found[name]["mse"].mean(0) for name in names])
        cells = [_spread(values[:, c]) for c in range(len(CHANNELS))]
        numbers = [f"{np.mean([found[name]['openstl_mse'] for name in names]):.4g}"]
        numbers += [f"{np.mean([costs[name] for name in names if name in costs] or [0]):.3g}", str(len(names))]
        lines.append([system, *cells, _spread(values.mean(1)), *numbers])
    gains = [["MSE that implicit training saves, %", *CHANNELS, "all"]]
    errors = {system: np.stack([found[name]["mse"] for name in names]) for system, names in groups.items()}
    for system in groups:
        if system != "implicit" and "implicit" in groups:
            value, low, high = saved_of_sequences(errors["implicit"], errors[system])
            gains.append([system, *(f"{v:.1f} [{a:.1f}, {b:.1f}]" for v, a, b in zip(value, low, high, strict=True))])
    return f"Moving shapes, not MvMm-FNIST.\n\n{markdown(lines)}\n\n{markdown(gains)}\n\n{CLAIM}\n"


def saved_of_sequences(own: np.ndarray, other: np.ndarray, draws: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What one system saves of the mean square error of another in %, and the ends of its 95 % interval.

    Paired bootstrap: the same test sequences for both, and seeds drawn anew too, the same for both where both have them.

    Parameters
    ----------
    own, other : array, shapes (seeds, N, C)

    Returns
    -------
    value, low, high : array, shape (C + 1,)
        Of each channel and of their mean.
    """
    own, other = (np.concatenate([each, each.mean(-1, keepdims=True)], -1) for each in (own, other))
    random = np.random.default_rng(0)
    rows = []
    for _ in range(draws):
        seeds, sequences = random.integers(len(own), size=len(own)), random.integers(own.shape[1], size=own.shape[1])
        others = seeds if len(other) == len(own) else random.integers(len(other), size=len(other))
        rows.append(1 - own[seeds].mean(0)[sequences].mean(0) / other[others].mean(0)[sequences].mean(0))
    low, high = 100 * np.percentile(rows, (2.5, 97.5), axis=0)
    return 100 * (1 - own.mean((0, 1)) / other.mean((0, 1))), low, high


# ------------------------------------------------------------------------------------------------------------ twin world


def twin_config(way: str, seed: int, setting: Setting) -> xsm.Met2NetTrainConfig:
    """One run on the hours of the region."""
    common = {"updates": setting.updates // len(WAYS[way]), "batch": setting.batch, "peak": setting.peak}
    return xsm.Met2NetTrainConfig(
        name=f"met2net-{way}-{seed}", train=TRAIN, validation=setting.validation, test=TEST, network=setting.network, seed=seed,
        check_every=setting.check_every, stages=tuple(xsm.Stage(kind=kind, **common) for kind in WAYS[way]),
    )  # fmt: skip


def twin(options: argparse.Namespace) -> None:
    """Every way and seed; then the forecasts and scores of what is there."""
    setting, root = SETTINGS["twin"][options.setting], folder_of("twin", options)
    tree = read_twin_world(options.data)
    region = tree["regional"].to_dataset()
    for way, seed in jobs(options.part, setting.seeds):
        folder = root / f"{way}-{seed}"
        if not (folder / "model").exists():
            with counted(folder):
                how = {"folder": folder, "device": setting.device, "save_updates": SAVE}
                xsm.train(twin_config(way, seed, setting), region, **how).save(folder / "model")
    if options.part == "1/1":
        score_twin(tree, root, options, setting)


def score_twin(tree: xr.DataTree, root: Path, options: argparse.Namespace, setting: Setting) -> None:
    """Tables, and on request the picture of which variable listens to which, and the model with its card."""
    region, device, hours = tree["regional"].to_dataset(), setting.device, setting.hours
    init = starts_within(tree["global"]["time"].values, TEST, hours, history=12)[:: setting.every]
    models = {path.parent.name: path for path in sorted(root.glob("*-[0-9]/model"))}
    systems = {
        name: _forecasts(region, init, hours, path, path.parent / "forecast.zarr", device) for name, path in models.items()
    }
    for path in options.beside:
        systems[path.parent.name] = _forecasts(tree, init, hours, path, root / f"{path.parent.name}.zarr", device)
    analyses = region[VARIABLES].load()
    systems["persistence"] = xsm.persistence_forecast(analyses, init, hours)
    systems["24 h persistence"] = xsm.persistence_forecast(analyses, init, hours, period=24)
    store = root / "scores.zarr"
    scores = xsm.score(
        systems,
        analyses,
        variables=VARIABLES,
        metrics=["mse", "rmse", "bias"],
        to=store,
        overwrite=store.exists(),
        memory="2 GiB",
    )
    about = f"Twin world A (twin experiment): {init.size} starts in the test blocks, hours 1 to {hours}."
    text = f"{about}\n\n{twin_table(scores, store, root)}\n\n{CLAIM}\n"
    (root / "tables.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    if options.figures and "implicit-0" in models:
        draw_attention(xsm.load(models["implicit-0"]), region, init, options.figures)
    if options.publish and "implicit-0" in models:
        card = f"{CARD.read_text(encoding='utf-8')}\n## Scores\n\n{text}"
        xsm.load(models["implicit-0"]).save(options.publish, card=card, overwrite=True, half=True)


def _forecasts(data, init: np.ndarray, hours: int, model: Path, to: Path, device: str) -> xr.Dataset:
    """On disk; made once."""
    return xsm.hindcast(data, init, hours, model=xsm.load(model), to=to, resume=to.exists(), device=device)


def twin_table(scores: xr.Dataset, store: Path, root: Path) -> str:
    """Markdown: MSE over all lead times, and what the implicit way saves of that of each other system, with 95 % intervals."""
    groups = _groups(scores["model"].values.tolist())
    lines = [["MSE", *VARIABLES, "CPU min", "seeds"]]
    for system, names in groups.items():
        cells = [_spread(scores[v].sel(metric="mse", model=names).mean("lead_time").values) for v in VARIABLES]
        spent = [noted["cpu_minutes"] for name in names if (noted := cost(root / name))]
        lines.append([system, *cells, f"{np.mean(spent):.3g}" if spent else "", str(len(names))])
    gains = [["MSE that implicit training saves, %", *VARIABLES]]
    own = groups.get("implicit", [])
    against = {name: xsm.rescore(store, skill_against=name, by=("variable",), metrics=["mse"]) for name in own}
    for system, names in groups.items():
        if system == "implicit" or not own:
            continue
        cells = []
        for v in VARIABLES:
            pairs = [against[own[i % len(own)]][v].sel(model=names[i % len(names)]) for i in range(max(len(own), len(names)))]
            value, low, high = np.transpose([saved(pair, "mse") for pair in pairs])
            cells.append(f"{value.mean():.1f} [{low.min():.1f}, {high.max():.1f}]")
        gains.append([system, *cells])
    return markdown(lines) + "\n\n" + markdown(gains)


def draw_attention(model, region: xr.Dataset, init: np.ndarray, folder: Path) -> None:
    """Which variable (rows) listens to which (columns), mean over starts and heads, one panel for each block."""
    from xscalemixer.starting import prepare

    plt = pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    states = [prepare(region, model, init_time=time)[0].state for time in init[::4]]
    with torch.inference_mode():
        weights = torch.cat([model.network.attention(model.scale(state.inner)) for state in states]).mean((0, 2))
    names = model.inner.schema.channels
    figure, panels = plt.subplots(1, len(weights), figsize=(3 * len(weights) + 1, 3.2), layout="constrained", squeeze=False)
    for number, (panel, block) in enumerate(zip(panels[0], weights, strict=True), 1):
        image = panel.imshow(block, vmin=0, vmax=float(weights.max()), cmap="viridis")
        panel.set(xticks=range(len(names)), yticks=range(len(names)), title=f"block {number}")
        panel.set_xticklabels(names, rotation=90)
        panel.set_yticklabels(names if number == 1 else [])
    figure.colorbar(image, ax=panels, label="weight")
    figure.suptitle("Which variable (row) listens to which (column)\ntwin world A", fontsize=9)
    figure.savefig(folder / "met2net-attention.png", dpi=80)
    plt.close(figure)


# ---------------------------------------------------------------------------------------------------------------- tables


def _groups(names) -> dict[str, list[str]]:
    """Seeds of each system."""
    groups: dict[str, list[str]] = {}
    for name in names:
        stem, _, seed = name.rpartition("-")
        groups.setdefault(stem if seed.isdigit() else name, []).append(name)
    return groups


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4g}" + (f" ± {values.std(ddof=1):.2g}" if values.size > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, run in (("shapes", shapes), ("twin", twin)):
        command = commands.add_parser(name)
        if name == "twin":
            command.add_argument("data", type=Path)
            command.add_argument("--beside", type=Path, nargs="+", default=())
            command.add_argument("--figures", type=Path, help="folder for pictures")
            command.add_argument(
                "--publish", type=Path, help="model folder to write: the implicit way, first seed, with its card"
            )
        command.add_argument("runs", type=Path)
        command.add_argument("--setting", choices=("try", "cpu", "gpu"), default="cpu")
        command.add_argument("--part", default="1/1", help="2/3: every third run from the second on, nothing measured")
        command.add_argument("--minutes", type=float, help="CPU minutes after which to stop")
        command.set_defaults(run=run)
    options = parser.parse_args()
    if options.minutes:
        stop_after(options.minutes)
    options.run(options)


if __name__ == "__main__":
    main()
