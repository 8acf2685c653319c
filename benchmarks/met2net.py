"""Met2Net trained the implicit, the joint and the explicit two-stage way, on moving shapes and on the region of twin world A.

    python benchmarks/met2net.py shapes RUNS                  # trains and measures; go on by the same command
    python benchmarks/met2net.py twin DATA RUNS               # the same on hourly fields, in forecasts of 24 hours
    python benchmarks/met2net.py twin DATA RUNS --beside runs/D_regional_only-0/model --figures pictures

Every way gets the same network, samples, learning rates and number of updates (the explicit one spends half of them on each of
its stages), three seeds, and is chosen by the error of its forecasts of the validation set. An update does not cost the same:
the table has CPU minutes, those of the last process where a run went on. ``--part 1/2`` does every second run, so that two
processes share the work. DATA holds the packed twin world (docs/models.md); --beside names further models, such as ScaleMixer
trained with coupling "none".

The paper (arXiv 2507.17189) found 28.82 % (t2m) and 23.39 % (r) less mean square error than the best before it, on WeatherBench.
These are other data.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import xarray as xr

import xscalemixer as xsm
from xscalemixer.moving_shapes import CHANNELS, MovingShapes
from xscalemixer.nn.met2net import Met2Net, Met2NetConfig
from xscalemixer.training.alone import Met2NetStage
from xscalemixer.training.checkpoints import Checkpoints, write_tensors, write_whole
from xscalemixer.training.engine import Plan, Saving, fit, seed_of
from xscalemixer.training.ranks import ranks
from xscalemixer.verification.openstl import openstl_errors

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_twin_ea import TEST, TRAIN, VALIDATION, read_twin_world

WAYS = {"implicit": ("implicit",), "joint": ("joint",), "explicit": ("autoencoder", "translator")}
SEEDS = (0, 1, 2)
HOURS = 24
HOUR = np.timedelta64(1, "h")
VARIABLES = ["t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd"]


@dataclass(frozen=True)
class Setting:
    """How much is trained."""

    updates: int
    batch: int
    peak: float
    network: dict
    device: str
    train: int = 0  # sequences of moving shapes
    test: int = 0


SMALL = {"width": 16, "translator": {"width": 64, "depth": 4, "drop_path": 0.0}}
SETTINGS = {
    "shapes": {
        "cpu": Setting(1500, 4, 2e-3, SMALL, "cpu", train=2000, test=256),
        "gpu": Setting(60000, 16, 5e-3, {}, "cuda", train=10000, test=10000),
    },
    "twin": {
        "cpu": Setting(1500, 2, 1e-3, SMALL, "cpu"),
        "gpu": Setting(20000, 16, 1e-3, {}, "cuda"),
    },
}


def jobs(part: str) -> list[tuple[str, int]]:
    """Ways and seeds, all ways with the first seed before the next one."""
    number, count = map(int, part.split("/"))
    return [(way, seed) for seed, way in product(SEEDS, WAYS)][number - 1 :: count]


# --------------------------------------------------------------------------------------------------------- moving shapes


class Shapes:
    """Samples of moving shapes, drawn when they are asked for."""

    def __init__(self, seed: int, count: int):
        self.shapes, self.count = MovingShapes(seed=seed), count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        frames = torch.from_numpy(self.shapes.sequences([item])[0])
        return {"past": frames[:10], "future": frames[10:]}


def shapes(options: argparse.Namespace) -> None:
    """Every way and seed; then the table of what is there."""
    setting, root = SETTINGS["shapes"][options.setting], options.runs / "shapes"
    for way, seed in jobs(options.part):
        folder = root / f"{way}-{seed}"
        if not (folder / "errors.npz").exists():
            train_shapes(way, seed, setting, folder)
    found = {path.parent.name: dict(np.load(path)) for path in sorted(root.glob("*/errors.npz"))}
    costs = {name: json.loads((root / name / "cost.json").read_text(encoding="utf-8"))["cpu_minutes"] for name in found}
    text = shapes_table(found | {"persistence": _still(setting)}, costs)
    (root / "tables.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def train_shapes(way: str, seed: int, setting: Setting, folder: Path) -> None:
    """One network, and its errors on the test sequences."""
    torch.manual_seed(seed)
    config = Met2NetConfig.mvmm_fnist().changed({**setting.network, "objective": {"way": way}})
    network, begun = Met2Net(config), time.process_time()
    folder.mkdir(parents=True, exist_ok=True)
    with ranks(setting.device) as group:
        for number, stage in enumerate(WAYS[way]):
            weights = folder / f"{number}-{stage}.safetensors"
            if weights.exists():
                network.load_state_dict(safetensors.torch.load_file(weights))
                continue
            plan = Plan(
                label=stage, updates=setting.updates // len(WAYS[way]), batch=setting.batch, peak=setting.peak, floor=1e-6,
                check_every=250, seed=seed_of(seed, number), warmup=100, betas=(0.9, 0.999), weight_decay=0.0, ema=0.0,
            )  # fmt: skip
            kept = Checkpoints(weights.with_suffix(""), {"plan": json.dumps(vars(plan)), "network": json.dumps(config.to_dict())})
            saving = Saving(checkpoints=kept, losses=kept.folder / "losses.jsonl")
            objective = Met2NetStage(network, stage, CHANNELS)
            fit(objective, Shapes(1, setting.train), Shapes(2, 64), plan, group, saving=saving)
            write_tensors(weights, network.state_dict())
    cost = {"cpu_minutes": (time.process_time() - begun) / 60}
    write_whole(folder / "cost.json", json.dumps(cost).encode())
    np.savez(folder / "errors.npz", **_errors(lambda past: network.eval().cpu()(past), setting))


def _still(setting: Setting) -> dict[str, np.ndarray]:
    return _errors(lambda past: past[:, -1:].expand_as(past), setting)


@torch.inference_mode()
def _errors(forecast, setting: Setting) -> dict[str, np.ndarray]:
    """Mean square error of each test sequence and channel, and the errors of OpenSTL."""
    samples, rows, pairs = Shapes(3, setting.test), [], []
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
    lines = [_row(["MSE x 1000", *CHANNELS, "all", "OpenSTL mse", "CPU min", "seeds"])]
    for system, names in groups.items():
        values = np.stack([1000 * found[name]["mse"].mean(0) for name in names])
        cells = [_spread(values[:, c]) for c in range(len(CHANNELS))]
        numbers = [f"{np.mean([found[name]['openstl_mse'] for name in names]):.4g}"]
        numbers += [f"{np.mean([costs[name] for name in names if name in costs] or [0]):.3g}", str(len(names))]
        lines.append(_row([system, *cells, _spread(values.mean(1)), *numbers]))
    own = np.mean([found[name]["mse"] for name in groups.get("implicit", [])] or [np.nan], 0)
    gains = [_row(["MSE that implicit training saves, %", *CHANNELS])]
    for system, names in groups.items():
        if system != "implicit" and "implicit" in groups:
            other = np.mean([found[name]["mse"] for name in names], 0)  # (N, channels)
            saved = 100 * (other - own) / other.mean(0)
            half = 1.96 * saved.std(0, ddof=1) / np.sqrt(len(saved))  # test sequences are independent
            gains.append(
                _row([system, *(f"{m:.1f} [{m - h:.1f}, {m + h:.1f}]" for m, h in zip(saved.mean(0), half, strict=True))])
            )
    return "Moving shapes, not MvMm-FNIST.\n\n" + _table(lines) + "\n\n" + _table(gains) + "\n"


# ------------------------------------------------------------------------------------------------------------ twin world


def twin_config(way: str, seed: int, setting: Setting) -> xsm.Met2NetTrainConfig:
    """One run on the hours of the region."""
    common = {"updates": setting.updates // len(WAYS[way]), "batch": setting.batch, "peak": setting.peak}
    return xsm.Met2NetTrainConfig(
        name=f"met2net-{way}-{seed}", train=TRAIN, validation=VALIDATION, test=TEST, network=setting.network, seed=seed,
        check_every=250, stages=tuple(xsm.Stage(kind=kind, **common) for kind in WAYS[way]),
    )  # fmt: skip


def twin(options: argparse.Namespace) -> None:
    """Every way and seed; then the forecasts and scores of what is there."""
    setting, root = SETTINGS["twin"][options.setting], options.runs / "twin"
    tree = read_twin_world(options.data)
    region = tree["regional"].to_dataset()
    for way, seed in jobs(options.part):
        folder, begun = root / f"{way}-{seed}", time.process_time()
        if not (folder / "model").exists():
            model = xsm.train(twin_config(way, seed, setting), region, folder=folder, device=setting.device)
            write_whole(folder / "cost.json", json.dumps({"cpu_minutes": (time.process_time() - begun) / 60}).encode())
            model.save(folder / "model")
    score_twin(tree, root, options, setting.device)


def score_twin(tree: xr.DataTree, root: Path, options: argparse.Namespace, device: str) -> None:
    """Tables, and on request the picture of which variable listens to which."""
    region = tree["regional"].to_dataset()
    init = starts(tree["global"]["time"].values)
    models = {path.parent.name: path for path in sorted(root.glob("*-[0-9]/model"))}
    systems = {name: _forecasts(region, init, path, path.parent / "forecast.zarr", device) for name, path in models.items()}
    for path in options.beside:
        systems[path.parent.name] = _forecasts(tree, init, path, root / f"{path.parent.name}.zarr", device)
    analyses = region[VARIABLES].load()
    systems["persistence"] = xsm.persistence_forecast(analyses, init, HOURS)
    systems["24 h persistence"] = xsm.persistence_forecast(analyses, init, HOURS, period=24)
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
    text = f"Twin world A (twin experiment): {init.size} starts in the test blocks.\n\n{twin_table(scores, store, root)}\n"
    (root / "tables.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    if options.figures and "implicit-0" in models:
        draw_attention(xsm.load(models["implicit-0"]), region, init, options.figures)


def starts(times: np.ndarray) -> np.ndarray:
    """Six-hourly starts in the test blocks with twelve hours before and the forecast after them inside."""
    inside = lambda t: any(np.datetime64(a) + 12 * HOUR <= t <= np.datetime64(b) - HOURS * HOUR for a, b in TEST)
    return np.array([t for t in times if inside(t)])


def _forecasts(data, init: np.ndarray, model: Path, to: Path, device: str) -> xr.Dataset:
    """On disk; made once."""
    return xsm.hindcast(data, init, HOURS, model=xsm.load(model), to=to, resume=to.exists(), device=device)


def twin_table(scores: xr.Dataset, store: Path, root: Path) -> str:
    """Markdown: MSE over 1-24 h, and what the implicit way saves of that of each other system, with 95 % intervals."""
    groups = _groups(scores["model"].values.tolist())
    lines = [_row(["MSE, mean of 1-24 h", *VARIABLES, "CPU min", "seeds"])]
    for system, names in groups.items():
        cells = [_spread(scores[v].sel(metric="mse", model=names).mean("lead_time").values) for v in VARIABLES]
        costs = [
            json.loads((root / n / "cost.json").read_text())["cpu_minutes"] for n in names if (root / n / "cost.json").exists()
        ]
        lines.append(_row([system, *cells, f"{np.mean(costs):.3g}" if costs else "", str(len(names))]))
    gains = [_row(["MSE that implicit training saves, %", *VARIABLES])]
    own = groups.get("implicit", [])
    against = {name: xsm.rescore(store, skill_against=name, by=("variable",), metrics=["mse"]) for name in own}
    parts = ["mse_difference", "mse_difference_low", "mse_difference_high"]
    for system, names in groups.items():
        if system == "implicit" or not own:
            continue
        cells = []
        for v in VARIABLES:
            pairs = [against[own[min(i, len(own) - 1)]][v].sel(model=name) for i, name in enumerate(names)]
            value, low, high = np.transpose([100 * (pair.sel(metric=parts) / pair.sel(metric="mse")).values for pair in pairs])
            cells.append(f"{value.mean():.1f} [{low.min():.1f}, {high.max():.1f}]")
        gains.append(_row([system, *cells]))
    return _table(lines) + "\n\n" + _table(gains)


def draw_attention(model, region: xr.Dataset, init: np.ndarray, folder: Path) -> None:
    """Which variable (rows) listens to which (columns), mean over starts and heads, one panel for each block."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from xscalemixer.starting import prepare

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


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(lines: list[str]) -> str:
    columns = lines[0].count("|") - 1
    return "\n".join([lines[0], "|---" * columns + "|", *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, run in (("shapes", shapes), ("twin", twin)):
        command = commands.add_parser(name)
        if name == "twin":
            command.add_argument("data", type=Path)
            command.add_argument("--beside", type=Path, nargs="+", default=())
            command.add_argument("--figures", type=Path)
        command.add_argument("runs", type=Path)
        command.add_argument("--setting", choices=("cpu", "gpu"), default="cpu")
        command.add_argument("--part", default="1/1")
        command.set_defaults(run=run)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
