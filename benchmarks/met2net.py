"""Met2Net trained the implicit, the joint and the explicit two-stage way, on moving shapes and on the region of twin world A.

    python benchmarks/met2net.py shapes RUNS                  # trains and measures; go on by the same command
    python benchmarks/met2net.py rates DATA RUNS              # how the learning rate of the twin world was chosen
    python benchmarks/met2net.py twin DATA RUNS --later T106  # the same on hourly fields, in forecasts of 24 hours
    python benchmarks/met2net.py whole DATA RUNS --later T106 --figures docs --publish pretrained/met2net-twin-ea

Every way gets the same network, samples, learning rates and number of updates (the explicit one spends half of them on each of
its stages), three seeds, and is chosen by the error of its forecasts of the validation set. An update does not cost the same:
the table has CPU minutes, of all processes that a run took. DATA holds the packed twin world, T106 a later run (docs/models.md)
that is only scored on. Beside them stands ScaleMixer without a driver (coupling "none", the system D of benchmarks/twin_ea.py),
trained on the same periods, variables, cells and normalization, and the same with an encoder for each variable. All of that is
done on a part of the region, BOX, a third of its cells; with ``whole`` the first of the implicit networks goes on learning on all
of them, and is shipped.

CPU minutes: see the tables in docs/met2net.md.

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
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import twin_ea
import xarray as xr
from common import HOUR, cost, counted, draw_fields, markdown, note, pyplot, saved, starts_within, unit
from twin_ea import BLOCKS, VARIABLES

import xscalemixer as xsm
from xscalemixer.conform import conform
from xscalemixer.moving_shapes import CHANNELS, MovingShapes
from xscalemixer.nn.met2net import Met2Net, Met2NetConfig
from xscalemixer.training.alone import Met2NetStage
from xscalemixer.training.checkpoints import Checkpoints, write_tensors
from xscalemixer.training.engine import Plan, Saving, fit, seed_of
from xscalemixer.training.ranks import ranks
from xscalemixer.verification.openstl import openstl_errors

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_twin_ea import TEST, TRAIN, VALIDATION, read_twin_world

REGIONAL_ONLY = "ScaleMixer regional-only"
BESIDE = {REGIONAL_ONLY: {}, f"{REGIONAL_ONLY}, own encoders": {"variable_width": 18}}
WAYS = {"implicit": ("implicit",), "joint": ("joint",), "explicit": ("autoencoder", "translator")}
SAVE = 50  # updates between checkpoints
BOX = slice(8, 44), slice(20, 64)  # rows and columns: 16-56 N, 83-132 E: 36 x 44 of 58 x 89 cells
SHIPPED = "met2net-twin-ea"
PAIRS = "Intervals reach from the lowest to the highest bound over all pairs of seeds."
CLAIM = "The paper claims 28.82 % (t2m) and 23.39 % (r) less than the best before it, on WeatherBench; these are other data."
CARD = Path(__file__).parents[1] / "docs" / "cards" / "met2net-twin-ea.md"


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
    whole: int = 600  # updates of the first implicit network on the whole region
    regional_only: twin_ea.Setting | None = twin_ea.SETTINGS["cpu"]

    @property
    def systems(self) -> tuple[str, ...]:
        """What is trained in the twin world."""
        return (*WAYS, *BESIDE) if self.regional_only else tuple(WAYS)


BRIEF = ((VALIDATION[0][0], str(np.datetime64(VALIDATION[0][0]) + 30 * HOUR)),)
SMALL = {"width": 16, "units": 4, "translator": {"width": 64, "depth": 4, "drop_path": 0.0}}
# the frozen translator remembers 1 / (1 - momentum) updates, which has to be a small share of all: of the paper's 0.8 %
SHORT = {**SMALL, "past": 5, "future": 5, "objective": {"momentum": 0.9}}
TRIED = twin_ea.Setting("small", 2, (2, 2), 2, ((2, 2),), 1e-3, "cpu")
SETTINGS = {
    "shapes": {
        "try": Setting(8, 4, 2e-3, SHORT, "cpu", size=32, train=64, test=32, seeds=(0, 1)),
        "cpu": Setting(1500, 8, 2e-3, SHORT, "cpu", size=32, train=10000, test=512),
        "gpu": Setting(60000, 16, 5e-3, {}, "cuda"),
    },
    "twin": {
        "try": Setting(4, 2, 1e-3, SMALL, "cpu", seeds=(0,), hours=12, every=4, validation=BRIEF, whole=4, regional_only=TRIED),
        "cpu": Setting(800, 2, 1e-3, SMALL, "cpu", check_every=400, regional_only=replace(twin_ea.SETTINGS["cpu"], regional=800)),
        "gpu": Setting(20000, 16, 1e-3, {}, "cuda", whole=5000, regional_only=twin_ea.SETTINGS["gpu"]),
    },
}


def jobs(part: str, seeds: tuple[int, ...], ways=tuple(WAYS)) -> list[tuple[str, int]]:
    """Ways and seeds, all ways with the first seed before the next one."""
    number, count = map(int, part.split("/"))
    return [(way, seed) for seed, way in product(seeds, ways)][number - 1 :: count]


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
    costs = {name: cost(root / name)["cpu_minutes"] for name in found}
    text = shapes_table(found | {"persistence": _still(setting)}, costs, setting)
    (root / "tables.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def shapes_config(way: str, setting: Setting) -> Met2NetConfig:
    """The network."""
    config = Met2NetConfig.mvmm_fnist().changed(setting.network)
    return config.changed({"objective": {"way": way}})


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


def shapes_table(found: dict[str, dict], costs: dict[str, float], setting: Setting) -> str:
    """Markdown: errors of each way, and what the implicit one saves of those of the others, with 95 % intervals."""
    groups, config = _groups(found), shapes_config("joint", setting)
    about = f"{config.past} to {config.future} frames of {setting.size} x {setting.size} cells"
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
    return f"Moving shapes, {about}, not MvMm-FNIST. {PAIRS}\n\n{markdown(lines)}\n\n{markdown(gains)}\n\n{CLAIM}\n"


def saved_of_sequences(own: np.ndarray, other: np.ndarray, draws: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What one system saves of the mean square error of another in %, and the ends of its 95 % interval.

    Each seed is compared with each; the value is the mean. The interval reaches from the lowest to the highest bound of the
    paired bootstraps over test sequences.

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
    counts = random.multinomial(own.shape[1], np.full(own.shape[1], 1 / own.shape[1]), size=draws)
    pairs = [(a, b) for a in own for b in other]
    value = np.mean([1 - a.mean(0) / b.mean(0) for a, b in pairs], axis=0)
    bounds = np.array([np.percentile(1 - (counts @ a) / (counts @ b), (2.5, 97.5), axis=0) for a, b in pairs])
    return 100 * value, 100 * bounds[:, 0].min(0), 100 * bounds[:, 1].max(0)


# ------------------------------------------------------------------------------------------------------------ twin world


def twin_config(way: str, seed: int, setting: Setting) -> xsm.Met2NetTrainConfig:
    """One run on the hours of the region."""
    common = {"updates": setting.updates // len(WAYS[way]), "batch": setting.batch, "peak": setting.peak}
    return xsm.Met2NetTrainConfig(
        name=f"met2net-{way}-{seed}", train=TRAIN, validation=setting.validation, test=TEST, network=setting.network, seed=seed,
        check_every=setting.check_every, stages=tuple(xsm.Stage(kind=kind, **common) for kind in WAYS[way]), reduced=True,
    )  # fmt: skip


def beside_config(name: str, seed: int, setting: Setting) -> xsm.TrainConfig:
    """ScaleMixer without a driver, normalized like the others; it is told more: terrain, the sun, the hour."""
    system = next(each for each in twin_ea.SYSTEMS if each.network.get("coupling") == "none")
    config = twin_ea.regional_config(system, seed, setting.regional_only)
    network = {**config.network, **BESIDE[name]}
    return replace(config, name=f"{name} {seed}", network=network, reduced=True, validation=setting.validation)


def train_twin(way: str, seed: int, setting: Setting, tree: xr.DataTree, folder: Path) -> None:
    """One network, and what it took."""
    region = tree["regional"].to_dataset()
    how = {"folder": folder, "device": setting.device, "save_updates": SAVE, "workers": 1}
    with counted(folder):
        if way in BESIDE:  # its global network is not heard, and not counted
            model = xsm.train(beside_config(way, seed, setting), tree, outer="twin-ea-small", **how)
            trained = sum(p.numel() for name, p in model.network.named_parameters() if not name.startswith("outer."))
        else:
            model = xsm.train(twin_config(way, seed, setting), region, **how)
            trained = model.parameter_count
        model.save(folder / "model")
    note(folder, trained=trained)


def twin(options: argparse.Namespace) -> None:
    """Every way and seed; then the forecasts and scores of what is there."""
    setting, root = SETTINGS["twin"][options.setting], folder_of("twin", options)
    tree = cut(read_twin_world(options.data))
    for way, seed in jobs(options.part, setting.seeds, setting.systems):
        folder = root / f"{way}-{seed}"
        if not (folder / "model").exists():
            train_twin(way, seed, setting, tree, folder)
    if options.part != "1/1":
        return
    networks = {name: folder for name in _of_seeds(setting.systems, setting) if (folder := root / name / "model").exists()}
    text = score_twin(cut(read_twin_world(options.data, later=options.later)), root, networks, setting, "implicit")
    keep_tables(root, f"{text}\n\n{twin_costs(root, _groups(networks))}\n\n{PAIRS} {CLAIM}\n")


def cut(tree: xr.DataTree) -> xr.DataTree:
    """With the part of the region that the ways of training are compared on."""
    region = tree["regional"].to_dataset()
    part = region.isel(dict(zip(region["t2m"].dims[-2:], BOX, strict=True)))
    return xr.DataTree.from_dict({"/global": tree["global"].to_dataset(), "/regional": part})


def keep_tables(root: Path, text: str) -> None:
    """In the folder of the runs, and on the screen."""
    (root / "tables.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def whole(options: argparse.Namespace) -> None:
    """The first implicit network goes on learning on the whole region and is scored; which variable listens to which."""
    setting, root = SETTINGS["twin"][options.setting], folder_of("whole", options)
    folder = root / SHIPPED
    if not (folder / "model").exists():
        region = read_twin_world(options.data)["regional"].to_dataset()
        stage = xsm.Stage(kind="implicit", updates=setting.whole, batch=setting.batch, peak=setting.peak / 3)
        how = {"folder": folder, "device": setting.device, "save_updates": SAVE, "workers": 1}
        periods = {"train": TRAIN, "validation": setting.validation, "test": TEST}
        with counted(folder):
            start = xsm.load(folder_of("twin", options) / "implicit-0" / "model")
            start.name = "met2net-implicit-0"
            model = xsm.finetune(region, start, stages=(stage,), **periods, **how)
            model.name = SHIPPED
            model.save(folder / "model")
    tree = read_twin_world(options.data, later=options.later)
    text = score_twin(tree, root, {SHIPPED: folder / "model", "twin-ea-small": "twin-ea-small"}, setting, SHIPPED)
    keep_tables(root, text + "\n")
    model = xsm.load(folder / "model")
    if options.figures:
        region, init = tree["regional"].to_dataset(), blocks_of(tree, setting)["test blocks"]
        draw_attention(model, region, init, options.figures)
        draw_maps(model, region, init[-1], root, options.figures)
    if options.publish:
        card = f"{CARD.read_text(encoding='utf-8')}\n## Scores\n\n{text}\n"
        model.save(options.publish, card=card, overwrite=True, half=True)


def rates(options: argparse.Namespace) -> None:
    """Each way with three learning rates and a third of the updates; the best is that of the setting."""
    setting = SETTINGS["twin"][options.setting]
    region = cut(read_twin_world(options.data))["regional"].to_dataset()
    for way, peak in product(WAYS, (5e-4, 1e-3, 2e-3)):
        config = twin_config(way, 0, replace(setting, updates=setting.updates // 3, peak=peak))
        folder = folder_of("rates", options) / f"{way}-{peak:g}"
        model = xsm.train(config, region, folder=folder, device=setting.device, workers=1)
        sys.stdout.write(f"{way}, peak={peak:g}: validation {model.about['training'][-1]['validation']:.5f}\n")


def blocks_of(tree: xr.DataTree, setting: Setting) -> dict[str, np.ndarray]:
    """Starts that are scored: of the later run every 18 hours, of the short test blocks every 6."""
    times = tree["global"]["time"].values
    found = {name: starts_within(times, periods, setting.hours, history=12) for name, periods in BLOCKS.items()}
    return {name: init[:: setting.every * (3 if name == "later run" else 1)] for name, init in found.items() if init.size}


def score_twin(tree: xr.DataTree, root: Path, networks: dict[str, Path | str], setting: Setting, own: str) -> str:
    """Tables of the errors of networks and of persistence, by block of starts; what ``own`` saves of those of the others."""
    region, hours, blocks = tree["regional"].to_dataset(), setting.hours, blocks_of(tree, setting)
    init = np.sort(np.concatenate([*blocks.values()]))
    analyses = region[VARIABLES].load()
    rows, columns = analyses["t2m"].shape[-2:]
    systems = {name: _forecasts(tree, init, hours, model, root / name, setting.device) for name, model in networks.items()}
    systems["persistence"] = xsm.persistence_forecast(analyses, init, hours)
    systems["24 h persistence"] = xsm.persistence_forecast(analyses, init, hours, period=24)
    parts = []
    for block, some in blocks.items():
        store = root / f"scores-{block.replace(' ', '-')}.zarr"
        how = {"metrics": ["mse", "rmse", "bias"], "to": store, "overwrite": store.exists(), "memory": "2 GiB"}
        scores = xsm.score(
            {name: fc.sel(reference_time=some) for name, fc in systems.items()}, analyses, variables=VARIABLES, **how
        )
        parts += [
            f"Twin world A (twin experiment), {rows} x {columns} cells, {block}: {some.size} starts, hours 1 to {hours}.",
            twin_table(scores, store, own),
        ]
    return "\n\n".join(parts)


def _of_seeds(names, setting: Setting) -> list[str]:
    return [f"{name}-{seed}" for name, seed in product(names, setting.seeds)]


def _forecasts(tree: xr.DataTree, init: np.ndarray, hours: int, model: Path | str, folder: Path, device: str) -> xr.Dataset:
    """On disk; made once."""
    to, model = folder / "forecast.zarr", xsm.load(model)
    data = tree if len(model.inputs) > 1 else tree["regional"].to_dataset()
    return xsm.hindcast(data, init, hours, model=model, to=to, resume=to.exists(), device=device)


def twin_table(scores: xr.Dataset, store: Path, own: str) -> str:
    """Markdown: MSE over both halves of the lead times, and what one system saves of that of each other."""
    groups, parts = _groups(scores["model"].values.tolist()), []
    for first, last in ((1, 12), (13, 24)):
        some = scores.sel(lead_time=slice(first, last))
        if not some.sizes["lead_time"]:
            continue
        lines = [[f"MSE, hours {first} to {last}", *(f"{v} ({unit(v)[0]})2" for v in VARIABLES)]]
        for system, names in groups.items():
            values = {v: some[v].sel(metric="mse", model=names).mean("lead_time").values * unit(v)[1] ** 2 for v in VARIABLES}
            lines.append([system, *(_spread(values[v]) for v in VARIABLES)])
        parts.append(markdown(lines))
    gains = [[f"MSE that {own} saves, all hours, %", *VARIABLES]]
    ours = groups.pop(own, [])
    against = {name: xsm.rescore(store, skill_against=name, by=("variable",), metrics=["mse"]) for name in ours}
    for system, names in groups.items() if ours else ():
        cells = []
        for v in VARIABLES:
            pairs = [against[one][v].sel(model=other) for one, other in product(ours, names)]
            value, low, high = np.transpose([saved(pair, "mse") for pair in pairs])
            cells.append(f"{value.mean():.1f} [{low.min():.1f}, {high.max():.1f}]")
        gains.append([system, *cells])
    return "\n\n".join([*parts, markdown(gains)])


def twin_costs(root: Path, groups: dict[str, list[str]]) -> str:
    """Markdown: what each system is and took."""
    lines = [["network", "parameters, M", "training, CPU min", "seeds"]]
    for system, names in groups.items():
        noted = [cost(root / name) for name in names]
        minutes = np.mean([each["cpu_minutes"] for each in noted])
        lines.append([system, f"{noted[0]['trained'] / 1e6:.3g}", f"{minutes:.3g}", str(len(names))])
    told = f"{REGIONAL_ONLY} sees 6 hours instead of 12, terrain, the sun and the hour, and is also trained on roll-outs to 24 h."
    return f"{markdown(lines)}\n\n{told}"


def draw_attention(model, region: xr.Dataset, init: np.ndarray, folder: Path) -> None:
    """Which variable (rows) listens to which (columns), mean over starts and heads, one panel for each block.

    Each listens mostly to itself: those weights are written, the colors show the others.
    """
    from xscalemixer.starting import prepare

    plt = pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    states = [prepare(region, model, init_time=time)[0].state for time in init[::4]]
    with torch.inference_mode():
        weights = torch.cat([model.network.attention(model.scale(state.inner)) for state in states]).mean((0, 2))
    names = model.inner.schema.channels
    highest = float(weights.masked_fill(torch.eye(len(names), dtype=torch.bool), 0.0).max())
    figure, panels = plt.subplots(1, len(weights), figsize=(3 * len(weights) + 1, 3.2), layout="constrained", squeeze=False)
    for number, (panel, block) in enumerate(zip(panels[0], weights, strict=True), 1):
        others = block.masked_fill(torch.eye(len(names), dtype=torch.bool), torch.nan)
        image = panel.imshow(others, vmin=0, vmax=highest, cmap="viridis")
        for i, weight in enumerate(block.diagonal().tolist()):
            panel.text(i, i, f"{weight:.2f}"[1:], ha="center", va="center", fontsize=8)
        panel.set(xticks=range(len(names)), yticks=range(len(names)), title=f"block {number}")
        panel.set_xticklabels(names, rotation=90)
        panel.set_yticklabels(names if number == 1 else [])
    figure.colorbar(image, ax=panels, label="weight of others")
    figure.suptitle("Which variable (row) listens to which (column), on the diagonal to itself; twin world A", fontsize=9)
    figure.savefig(folder / "met2net-attention.png", dpi=80)
    plt.close(figure)


def draw_maps(model, region: xr.Dataset, start: np.datetime64, root: Path, folder: Path) -> None:
    """Forecasts of twelve hours from one start, kept in ``root``, beside the truth."""
    valid, stores = start + 12 * HOUR, sorted(root.glob("*/forecast.zarr"))
    shown = {store.parent.name: xr.open_zarr(store).sel(reference_time=start, lead_time=12) for store in stores}
    shown["truth"] = conform(region.sel(time=[valid]), model.inner.schema)[0].isel(time=0)
    draw_fields(shown, f"12 hours ahead, {str(valid)[:13]} UTC; twin world A", folder / "met2net-maps.png")


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
    for name, run in (("shapes", shapes), ("rates", rates), ("twin", twin), ("whole", whole)):
        command = commands.add_parser(name)
        if name != "shapes":
            command.add_argument("data", type=Path)
        if name in ("twin", "whole"):
            command.add_argument("--later", type=Path, help="T106 segments of a later run")
        if name == "whole":
            command.add_argument("--figures", type=Path, help="folder for pictures")
            command.add_argument("--publish", type=Path, help="model folder to write, with its card")
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
