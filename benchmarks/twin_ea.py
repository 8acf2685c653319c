"""ScaleMixer, its ablations and the paper's baselines on twin world A, trained and scored under one protocol.

    python benchmarks/twin_ea.py train DATA RUNS --archive T63     # each network in turn; go on by the same command
    python benchmarks/twin_ea.py rates DATA RUNS                   # how the learning rate was chosen
    python benchmarks/twin_ea.py keys DATA RUNS                    # what is left of a trained network with other keys, and none
    python benchmarks/twin_ea.py driver DATA RUNS                 # what a perfect driver would give each of them
    python benchmarks/twin_ea.py score DATA RUNS --later T106      # forecasts, table and pictures of what is there

DATA holds the packed twin world, T63 and T106 raw segments of a longer and of a later run (docs/models.md). Everyone gets the
same frozen global network, samples, number of updates and learning rates; parameters are counted in the table of costs.
``--setting gpu`` is the same with more samples per update, more updates and longer roll-outs. ``--part 1/2`` trains every
second network, so that two processes share the work. What is finished is never done again.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from common import HOUR, cost, counted, heads, markdown, note, pyplot, saved, starts_within, unit, within

import xscalemixer as xsm
from xscalemixer.nn.scalemixer import CoupledModel
from xscalemixer.report import Report
from xscalemixer.starting import data_of, starts_at

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_twin_ea import ARCHIVE, COMMON, TEST, TRAIN, read_twin_world

HOURS = 48
VARIABLES = ["t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd"]
LATER = (("2002-07-01", "2002-08-07"),)  # before it, spin-up; after it, days of the year that the climatology does not know
BLOCKS = {"later run": LATER, "test blocks": TEST}  # scored apart: what is tried here was looked at on the test blocks
BEST = "ScaleMixer"
DRIVEN_BY = ("z_500", "t2m", "u10")  # of which the error of the driver is told: m2 s-2, K, m s-1
CLAIMED = {"LAM": 16.5, "OneForecast": 25.4, "D regional only": 45.9}  # gains in the paper, %
WEIGHT = 10.0  # of eq. 14 beside eq. 15: about the inverse of the region's share of the globe


@dataclass(frozen=True)
class System:
    """A network that is trained: changes to the preset, how many seeds it gets, and in which round the first is trained."""

    name: str
    what: str
    network: dict = field(default_factory=dict)
    seeds: int = 1
    turn: int = 0

    @property
    def answers(self) -> bool:
        """The global network hears of the region."""
        return self.network.get("coupling", "two_way") == "two_way"

    @property
    def cached(self) -> bool:
        """The global network does not hear of the region, and is computed once."""
        return self.network.get("coupling") in ("one_way", "lam", "nested", "downscaled")


SYSTEMS = (
    System(BEST, "two-way exchange at learned keys", {}, 3),
    System("LAM", "regional network with the global forecast as input", {"coupling": "lam", "inner": {"depth": 8}}, 3),
    System("OneForecast", "neural nested grid", {"coupling": "nested", "inner": {"depth": 8}}, 3),
    System("B fixed keys", "two-way, keys on an even lattice", {"sampler": {"mode": "fixed"}}, 3),
    System("C one-way", "learned keys, no feedback", {"coupling": "one_way"}, 3),
    System("D regional only", "no exchange", {"coupling": "none", "inner": {"depth": 8}}),
    System("A random keys", "two-way, keys drawn at random", {"sampler": {"mode": "random"}}),
    System("global + Swin", "global forecast, downscaled", {"coupling": "downscaled", "inner": {"depth": 12}}),
    System(
        "LAM, frame", "LAM, two cells at the edge overwritten", {"coupling": "lam", "inner": {"depth": 8}, "frame": 2}, turn=1
    ),
    System("L_r 2", "two regional layers in two blocks", {"inner": {"depth": 2}, "blocks": 2}, turn=2),
    System("L_r 8", "eight regional layers", {"inner": {"depth": 8}}, turn=2),
    *(System(f"K {keys}", f"{keys} keys", {"sampler": {"keys": keys}}, turn=2) for keys in (16, 256)),
    System("keys near the region", "learned keys within a global patch of the region", {"sampler": {"halo": 1}}, turn=2),
    System("driver fields", "ScaleMixer whose heads see the global fields too", {"driver_width": 24}, 3, turn=1),
    System("driver fields, C", "the same, no feedback", {"driver_width": 24, "coupling": "one_way"}, turn=1),
    System("softmax gate", "tokens of keys weighted by a softmax of their scores", {"sampler": {"gate": "softmax"}}, turn=2),
    System("own encoders", "two-way, an encoder for each regional variable", {"variable_width": 18}, turn=2),
)


@dataclass(frozen=True)
class Setting:
    """How much is trained."""

    size: str
    batch: int
    global_updates: tuple[int, int]
    regional: int
    rollouts: tuple[tuple[int, int], ...]  # steps, updates
    peak: float
    device: str


SETTINGS = {
    "cpu": Setting("small", 2, (2000, 700), 1200, ((2, 80), (4, 80)), 1e-3, "cpu"),
    "gpu": Setting("small", 8, (12000, 4000), 8000, ((2, 500), (4, 500), (8, 500)), 1e-3, "cuda"),
}


# ------------------------------------------------------------------------------------------------------------- training


def global_config(setting: Setting) -> xsm.TrainConfig:
    """The global network that everyone gets: on the archive, then on the world itself."""
    first, second = setting.global_updates
    stages = (
        xsm.Stage(kind="global", updates=first, batch=2 * setting.batch, peak=8e-4, floor=1e-4, periods=ARCHIVE),
        xsm.Stage(kind="global", updates=second, batch=2 * setting.batch, peak=3e-4),
    )
    return _config("global", setting, stages, {}, 0)


def regional_config(system: System, seed: int, setting: Setting, peak: float | None = None) -> xsm.TrainConfig:
    """One network of the comparison.

    Where the region answers, the global states that it changes are held to eq. 14 from the first stage on; the weight makes up
    for the region's share of the globe. For all others eq. 14 is a constant.
    """
    common = {"batch": setting.batch, "cache": system.cached}
    weight = {"global_weight": WEIGHT} if system.answers else {}
    first = {"kind": "rollout", **weight} if system.answers else {"kind": "regional"}
    stages = [xsm.Stage(**first, updates=setting.regional, peak=peak or setting.peak, **common)]
    stages += [
        xsm.Stage(kind="rollout", updates=updates, steps=steps, peak=5e-5, floor=1e-5, **weight, **common)
        for steps, updates in setting.rollouts
    ]
    return _config(f"{system.name} {seed}", setting, tuple(stages), system.network, seed)


def _config(name: str, setting: Setting, stages: tuple, network: dict, seed: int) -> xsm.TrainConfig:
    return xsm.TrainConfig(name=name, size=setting.size, network=network, stages=stages, seed=seed, **COMMON)


def train(options: argparse.Namespace) -> None:
    """The global network, then every system and seed, each in a process of its own."""
    setting, base = SETTINGS[options.setting], options.runs / "global"
    if not (base / "model").exists():
        tree = read_twin_world(options.data, archive=options.archive)
        _finish(xsm.train(global_config(setting), tree, folder=base, device=setting.device), base)
    part, count = map(int, options.part.split("/"))
    jobs = [(system, seed) for system in SYSTEMS for seed in range(system.seeds)]
    jobs.sort(key=lambda job: max(job[0].turn, job[1]))
    for system, seed in jobs[part - 1 :: count]:
        folder = _folder(options.runs, system, seed)
        if (folder / "model").exists() or (options.only and options.only not in system.name):
            continue
        again = [sys.executable, __file__, "one", str(options.data), str(options.runs), "--setting", options.setting]
        subprocess.run([*again, "--only", system.name, "--seed", str(seed)], check=True)


def rates(options: argparse.Namespace) -> None:
    """Regional-only with three learning rates and a third of the updates; the best one is that of the setting."""
    setting, tree = SETTINGS[options.setting], read_twin_world(options.data)
    alone = next(system for system in SYSTEMS if system.network.get("coupling") == "none")
    outer = xsm.load(options.runs / "global" / "model")
    for peak in (2.5e-4, 5e-4, 1e-3):
        config = regional_config(alone, 0, setting, peak)
        short = replace(config, stages=(replace(config.stages[0], updates=setting.regional // 3),))
        folder = options.runs / f"rate-{peak:g}"
        model = xsm.train(short, tree, outer=outer, folder=folder, device=setting.device, workers=1)
        sys.stdout.write(f"peak={peak:g}: validation {model.about['training'][0]['validation']:.5f}\n")


def train_one(options: argparse.Namespace) -> None:
    """One network; what it took is kept beside it."""
    setting = SETTINGS[options.setting]
    system = next(system for system in SYSTEMS if system.name == options.only)
    folder = _folder(options.runs, system, options.seed)
    config = regional_config(system, options.seed, setting)
    outer = xsm.load(options.runs / "global" / "model")
    with counted(folder):
        model = xsm.train(config, read_twin_world(options.data), outer=outer, folder=folder, device=setting.device, workers=1)
    frozen = sum(p.numel() for p in model.network.outer.parameters())
    trained = sum(p.numel() for p in model.network.parameters()) - frozen
    note(folder, peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, trained=trained, frozen=frozen)
    _finish(model, folder)


def _finish(model: xsm.Forecaster, folder: Path) -> None:
    shutil.rmtree(folder / "towers", ignore_errors=True)
    model.save(folder / "model", overwrite=True)


def _folder(runs: Path, system: System, seed: int) -> Path:
    return runs / f"{system.name.replace(' ', '_').replace(',', '')}-{seed}"


# -------------------------------------------------------------------------------------------------------------- scoring


def starts(tree: xr.DataTree, blocks: str = "test blocks") -> np.ndarray:
    """Starts every 6 hours in the test blocks, or every 18 in the later run, with their history and 48 hours inside."""
    times, every = tree["global"]["time"].values, 18 if blocks == "later run" else 6
    known = lambda t: t <= times[-1] - HOURS * HOUR and int(t.astype("M8[h]").astype(int)) % every == 0
    return np.array([t for t in starts_within(times, BLOCKS[blocks], HOURS) if known(t)])


def finished(runs: Path) -> dict[str, tuple[System, int, Path]]:
    """Trained networks by the name under which they are scored."""
    rows = {f"{system.name} #{seed}": (system, seed, _folder(runs, system, seed)) for system in SYSTEMS for seed in range(3)}
    return {name: row for name, row in rows.items() if (row[2] / "model").exists()}


def forecasts(tree: xr.DataTree, init: np.ndarray, networks: dict, device: str) -> dict[str, xr.Dataset]:
    """Of every network, on disk; made once."""
    found = {}
    for name, (_, _, folder) in networks.items():
        target, model = folder / "forecast.zarr", xsm.load(folder / "model")
        if "seconds" not in cost(folder):
            begun = time.process_time()
            xsm.hindcast(tree, init[:1], HOURS, model=model, device=device)
            note(folder, seconds=time.process_time() - begun)
        found[name] = xsm.hindcast(tree, init, HOURS, model=model, to=target, resume=target.exists(), device=device)
    return found


def simple(regional: xr.Dataset, init: np.ndarray, climatology: xr.Dataset) -> dict[str, xr.Dataset]:
    """Forecasts that need no network."""
    return {
        "persistence": xsm.persistence_forecast(regional, init, HOURS),
        "24 h persistence": xsm.persistence_forecast(regional, init, HOURS, period=24),
        "climatology": xsm.climatology_forecast(climatology, init, HOURS),
    }


def score(options: argparse.Namespace) -> None:
    """Forecasts of what is trained, their scores, the tables and the pictures (of the later run, where there is one)."""
    tree = read_twin_world(options.data, later=options.later)
    networks = finished(options.runs)
    init = {name: found for name in BLOCKS if (found := starts(tree, name)).size}
    regional = tree["regional"].to_dataset()[VARIABLES]
    climatology = xsm.climatology(within(regional, TRAIN).load())
    every = np.sort(np.concatenate([*init.values()]))
    systems = forecasts(tree, every, networks, SETTINGS[options.setting].device) | simple(regional.load(), every, climatology)
    text, drawn = [], None
    for name, times in init.items():
        store = options.runs / f"scores-{name.replace(' ', '-')}.zarr"
        by_lead = xsm.score(
            {system: forecast.sel(reference_time=times) for system, forecast in systems.items()}, regional,
            climatology=climatology, variables=VARIABLES, metrics=["rmse", "acc", "bias"],
            to=store, overwrite=store.exists(), memory="4 GiB",
        )  # fmt: skip
        text += [f"Twin world A (twin experiment), {name}: {times.size} starts.", tables(by_lead, store)]
        drawn = drawn or (by_lead, store)
    text.append(costs(networks))
    (options.runs / "tables.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    sys.stdout.write("\n\n".join(text) + "\n")
    if options.figures:
        draw(*drawn, tree, networks, options.figures)


def by_system(scores: xr.Dataset) -> dict[str, list[str]]:
    """Names of the models of each system: its seeds."""
    groups: dict[str, list[str]] = {}
    for model in scores["model"].values.tolist():
        groups.setdefault(model.split(" #")[0], []).append(model)
    return groups


def tables(by_lead: xr.Dataset, store: Path) -> str:
    """Markdown: RMSE and ACC by system, mean over lead times, and what ScaleMixer gains over each other system."""
    groups = by_system(by_lead)
    parts = []
    for metric in ("rmse", "acc"):
        rows = [[f"{metric.upper()}, mean of 1-48 h", *(heads(VARIABLES) if metric == "rmse" else VARIABLES)]]
        for system, models in groups.items():
            cells = []
            for name in VARIABLES:
                scale = unit(name)[1] if metric == "rmse" else 1
                values = by_lead[name].sel(metric=metric, model=models).mean("lead_time").values * scale
                spread = f" ± {np.std(values, ddof=1):.2g}" if len(models) > 1 else ""
                cells.append("" if np.isnan(values).any() else f"{values.mean():.3g}{spread}")  # a climatology has no anomaly
            rows.append([system, *cells])
        parts.append(markdown(rows))
    rows = [[f"RMSE over all hours that {BEST} saves, %", *VARIABLES, "mean", "the paper's", "clear"]]
    for system, gains in gain(store, groups).items():
        cells = [f"{value:.1f} [{low:.1f}, {high:.1f}]" for value, low, high in gains]
        better, worse = sum(low > 0 for _, low, _ in gains), sum(high < 0 for _, _, high in gains)
        claim = f"{CLAIMED[system]:.1f}" if system in CLAIMED else ""
        mean = f"{np.mean([value for value, _, _ in gains]):.1f}"
        rows.append([system, *cells, mean, claim, f"{better} better, {worse} worse"])
    return "\n\n".join([*parts, markdown(rows)])


def gain(store: Path, groups: dict[str, list[str]]) -> dict[str, list[tuple[float, float, float]]]:
    """What ScaleMixer saves of the RMSE over all lead times of each other system, in percent, by variable, with an interval.

    Each seed is compared with each; the value is the mean. The interval reaches from the lowest to the highest bound of the
    paired block bootstraps over starts.
    """
    own = groups[BEST]
    against = {best: xsm.rescore(store, skill_against=best, by=("variable",), metrics=["rmse"]) for best in own}
    found = {}
    for system, models in groups.items():
        if system == BEST:
            continue
        rows = []
        for name in VARIABLES:
            pairs = [against[best][name].sel(model=model) for best, model in product(own, models)]
            value, low, high = np.transpose([saved(pair) for pair in pairs])
            rows.append((value.mean(), low.min(), high.max()))
        found[system] = rows
    return found


def costs(networks: dict) -> str:
    """Markdown: size and cost of each network."""
    rows = [["network", "what", "trained, M", "frozen, M", "training, CPU min", "48 h, CPU s", "memory, GiB", "seeds"]]
    for system in SYSTEMS:
        noted = [cost(folder) for each, _, folder in networks.values() if each == system]
        if noted:
            mean = lambda key, noted=noted: np.mean([one[key] for one in noted if key in one])
            numbers = [mean("trained") / 1e6, mean("frozen") / 1e6, mean("cpu_minutes"), mean("seconds"), mean("peak_gib")]
            rows.append([system.name, system.what, *(f"{number:.3g}" for number in numbers), str(len(noted))])
    return markdown(rows)


# ----------------------------------------------------------------------------------------------------------------- keys


def keys(options: argparse.Namespace) -> None:
    """ScaleMixer as trained, and the same weights with other keys or without what the region hears from its keys."""
    tree = read_twin_world(options.data)
    init, regional = starts(tree), tree["regional"].to_dataset()[VARIABLES].load()
    base = _folder(options.runs, next(system for system in SYSTEMS if system.name == BEST), options.seed) / "model"
    variants = {
        "keys as learned": xsm.load(base),
        "an even lattice": _with_keys(xsm.load(base), "fixed"),
        "drawn at random": _with_keys(xsm.load(base), "random"),
        "nothing heard from keys": _deaf(xsm.load(base)),
    }
    systems = {name: xsm.hindcast(tree, init, HOURS, model=model) for name, model in variants.items()}
    scores = xsm.score(systems, regional, variables=VARIABLES, metrics=["rmse"])
    rows = [["RMSE, mean of 1-48 h, test blocks", *heads(VARIABLES)]]
    for name in systems:
        cells = [scores[v].sel(metric="rmse", model=name).mean().item() * unit(v)[1] for v in VARIABLES]
        rows.append([name, *(f"{cell:.3g}" for cell in cells)])
    sys.stdout.write(markdown(rows) + "\n")


def _with_keys(model: xsm.Forecaster, mode: str) -> xsm.Forecaster:
    """The same weights, with keys chosen in another way; gates are those of equally important tokens."""
    config = model.network.config
    other = CoupledModel(replace(config, sampler=replace(config.sampler, mode=mode)))
    other.load_state_dict(model.network.state_dict(), strict=False)
    model.network = other.eval()
    return model


def _deaf(model: xsm.Forecaster) -> xsm.Forecaster:
    """Regional tokens hear nothing from keys; what they get from the aligned global tokens stays."""
    for mixer in model.network.mixers:
        for parameter in mixer.keys_to_inner.out.parameters():
            parameter.requires_grad_(False).zero_()
    return model


# --------------------------------------------------------------------------------------------------------------- driver


def driver(options: argparse.Namespace) -> None:
    """How much a perfect driver would help: each network with its own driver, and with the truth in its place after each step.

    What is left then is what the region does not hear, or what the driver does not know. Beside it the error of the driver
    in the region, which feedback may change.
    """
    tree = read_twin_world(options.data)
    rows = [["RMSE, mean of 1-48 h, test blocks", "driver", *heads(VARIABLES), *(f"driver's {c}, 48 h" for c in DRIVEN_BY)]]
    for name, (system, seed, folder) in finished(options.runs).items():
        if seed == options.seed and system.network.get("coupling") != "none":
            model = xsm.load(folder / "model")
            rows += [[name, word, *_rolled(tree, model, truth)] for word, truth in (("its own", False), ("the truth", True))]
    sys.stdout.write(markdown(rows) + "\n")


def _rolled(tree: xr.DataTree, model: xsm.Forecaster, truth: bool) -> list[str]:
    """Errors of the region over all steps, and of the driver in it after the last one, as text."""
    init, report = starts(tree), Report("")
    times = np.unique(init[:, None] + np.arange(0, HOURS + 1, 6) * HOUR)
    known = {each.time: each.state for each in starts_at(times, data_of(tree, None, model, report), model, report)}
    inside = torch.from_numpy(model.outer.grid.within(model.inner.grid))
    channels = [model.outer.schema.channels.index(name) for name in DRIVEN_BY]
    region, above = [], []
    for start in init:
        state = known[start]
        for _ in range(HOURS // 6):
            state = model.step(state)
            real = known[state.time]
            region.append((state.inner - real.inner)[0].double().square().mean((2, 3)))
            if state.time == start + HOURS * HOUR:
                above.append((state.outer - real.outer)[0, channels][:, inside].square().mean(-1))
            state = replace(state, outer=real.outer) if truth else state
    by_hour = torch.stack(region).unflatten(0, (init.size, -1)).mean(0).flatten(0, 1).sqrt().mean(0)
    cells = [f"{value * unit(name)[1]:.3g}" for name, value in zip(VARIABLES, by_hour.tolist(), strict=True)]
    return [*cells, *(f"{value:.3g}" for value in torch.stack(above).mean(0).sqrt().tolist())]


# ------------------------------------------------------------------------------------------------------------- pictures


def draw(by_lead: xr.Dataset, store: Path, tree: xr.DataTree, networks: dict, folder: Path) -> None:
    """Curves of each variable, scorecard, bias, key positions over a cyclone, and how the keys were learned."""
    folder.mkdir(parents=True, exist_ok=True)
    means = xr.concat(
        [by_lead.sel(model=models).mean("model").assign_coords(model=system) for system, models in by_system(by_lead).items()],
        "model",
    )
    draw_curves(means, folder)
    draw_bias(means, folder)
    chief = [name for name, (system, seed, _) in networks.items() if seed == 0 and system.turn < 2]
    card = xsm.rescore(store, skill_against="LAM #0", metrics=["rmse"]).sel(model=chief)
    axes = card.scalemixer.plot(kind="scorecard", metric="rmse")
    np.ravel(axes)[0].figure.savefig(folder / "scorecard.png", dpi=70, bbox_inches="tight")
    draw_learning({name: row[2] for name, row in networks.items() if row[0].name == BEST}, folder)
    draw_keys(tree, networks[f"{BEST} #0"][2] / "model", folder)


SHOWN = (BEST, "C one-way", "B fixed keys", "LAM", "OneForecast", "D regional only", "24 h persistence", "climatology")


def draw_curves(means: xr.Dataset, folder: Path) -> None:
    """RMSE and ACC of each variable by lead time, one picture each."""
    plt = pyplot()
    shown = [name for name in SHOWN if name in means["model"].values]
    for name in VARIABLES:
        words, scale = unit(name)
        figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        for panel, metric, factor in zip(panels, ("rmse", "acc"), (scale, 1), strict=True):
            for system in shown:
                line = means[name].sel(metric=metric, model=system) * factor
                style = {"lw": 2, "color": "k"} if system == BEST else {"lw": 1, "ls": ":" if " " in system[2:] else "-"}
                panel.plot(means["lead_time"], line, label=system, **style)
            panel.set(xlabel="lead time (h)", ylabel=f"RMSE ({words})" if metric == "rmse" else "ACC", xticks=range(0, 49, 12))
            panel.grid(alpha=0.3)
        panels[1].legend(fontsize=7, frameon=False)
        figure.suptitle(f"{name}, twin world A (twin experiment)")
        figure.savefig(folder / f"{name}.png", dpi=70)
        plt.close(figure)


def draw_bias(means: xr.Dataset, folder: Path) -> None:
    """Mean error of ScaleMixer by lead time, in units of its RMSE at 48 h."""
    plt = pyplot()
    figure, panel = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for name in VARIABLES:
        own = means[name].sel(model=BEST)
        panel.plot(means["lead_time"], own.sel(metric="bias") / float(own.sel(metric="rmse")[-1]), label=name)
    panel.axhline(0, color="k", lw=0.6)
    panel.set(xlabel="lead time (h)", ylabel="bias / RMSE at 48 h", xticks=range(0, 49, 12), ylim=(-0.5, 0.5))
    panel.set_title(f"Mean error of {BEST} in held-out weather (twin experiment)", fontsize=9)
    panel.legend(fontsize=7, ncols=4, frameon=False)
    figure.savefig(folder / "bias.png", dpi=70)
    plt.close(figure)


def draw_learning(folders: dict[str, Path], folder: Path) -> None:
    """Gradient of the score network and entropy of its choice over training."""
    plt = pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for name, place in folders.items():
        done, rows = 0, []
        for path in sorted(place.glob("[0-9]-*.json")):
            history = json.loads(path.read_text(encoding="utf-8"))["history"]
            rows += [(done + row["update"], row.get("gradient_norm_score_network"), row["key_entropy"]) for row in history]
            done += history[-1]["update"]
        updates, gradient, entropy = (np.array(column, float) for column in zip(*rows, strict=True))
        panels[0].semilogy(updates, gradient, ".-", label=name)
        panels[1].plot(updates, entropy, ".-", label=name)
    panels[0].set(xlabel="update", ylabel="gradient norm of the score network")
    panels[1].set(xlabel="update", ylabel="entropy / that of a uniform choice", ylim=(0, 1.05))
    panels[1].legend(fontsize=7, frameon=False)
    figure.savefig(folder / "score_network.png", dpi=70)
    plt.close(figure)


def draw_keys(tree: xr.DataTree, model: Path, folder: Path) -> None:
    """Where the network looks while the deepest low of the held-out weather is in the region."""
    plt = pyplot()
    time, anomaly = deepest_low(tree)
    keys = xsm.key_positions(tree, model=model, init_time=time)
    figure, panels = plt.subplots(1, 2, figsize=(12, 3.6), layout="constrained", width_ratios=(1.5, 1))
    importance = keys["importance"].mean("block") * keys["token_latitude"].size * keys["token_longitude"].size
    mesh = panels[0].pcolormesh(keys["token_longitude"], keys["token_latitude"], importance, cmap="YlOrBr")
    figure.colorbar(mesh, ax=panels[0], label="importance / uniform")
    for panel in panels:
        place = anomaly["longitude"], anomaly["latitude"]
        lines = panel.contour(*place, anomaly / 100, range(-30, 31, 4), colors="0.3", linewidths=0.6)
        panel.clabel(lines, fontsize=5)
        panel.contour(tree["global"]["lon"], tree["global"]["lat"], tree["global"]["lsm"], [0.5], colors="0.6", linewidths=0.5)
        for block in range(keys.sizes["block"]):
            one = keys.isel(block=block)
            panel.plot(one["longitude"], one["latitude"], ".", ms=5, label=f"block {block + 1}")
    panels[1].set(xlim=(50, 170), ylim=(-10, 75))
    panels[0].set_title(f"keys of the four blocks, {str(time)[:13]} UTC; contours: surface pressure anomaly (hPa)", fontsize=8)
    panels[0].legend(fontsize=6, ncols=4, loc="lower left")
    figure.savefig(folder / "keys.png", dpi=80)
    plt.close(figure)


def deepest_low(tree: xr.DataTree) -> tuple[np.datetime64, xr.DataArray]:
    """Start with the lowest surface pressure over sea, against the mean, and the anomaly there."""
    regional = tree["regional"].to_dataset()
    init = starts(tree)
    pressure = regional["sp"].rename(lat="latitude", lon="longitude")
    anomaly = pressure.sel(time=init) - pressure.mean("time")
    over_sea = anomaly.where(regional["lsm"].rename(lat="latitude", lon="longitude") < 0.5)
    time = over_sea["time"].values[int(np.argmin(over_sea.min(["latitude", "longitude"]).values))]
    return time, anomaly.sel(time=time)


def main() -> None:
    """Train, or score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("train", "one", "rates", "keys", "driver", "score"))
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--archive", type=Path, help="T63 segments to pretrain on")
    parser.add_argument("--later", type=Path, help="T106 segments to score on")
    parser.add_argument("--setting", choices=tuple(SETTINGS), default="cpu")
    parser.add_argument("--part", default="1/1", help="which share of the networks")
    parser.add_argument("--only", default="", help="systems whose name holds this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figures", type=Path)
    options = parser.parse_args()
    {"train": train, "one": train_one, "rates": rates, "keys": keys, "driver": driver, "score": score}[options.task](options)


if __name__ == "__main__":
    main()
