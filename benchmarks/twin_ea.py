"""ScaleMixer, its ablations and the paper's baselines on twin world A, trained and scored under one protocol.

    python benchmarks/twin_ea.py train DATA RUNS --archive T63     # each network in turn; go on by the same command
    python benchmarks/twin_ea.py score DATA RUNS --later T106      # forecasts, table and pictures of what is there

DATA holds the packed twin world, T63 and T106 raw segments of a longer and of a later run (docs/models.md). Everyone gets the
same frozen global network, samples, number of updates and learning rates; what is trained differs by at most a tenth in size.
``--setting gpu`` is the same with a larger network and more updates. ``--part 1/2`` trains every second network, so that
two processes share the work. What is finished is never done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr

import xscalemixer as xsm

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_twin_ea import ARCHIVE, TEST, TRAIN, VALIDATION, read_twin_world

HOURS = 48
HOUR = np.timedelta64(1, "h")
VARIABLES = ["t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd"]
UNITS = {"t2m": ("K", 1), "q2m": ("g/kg", 1e3), "sp": ("hPa", 1e-2), "tcc": ("%", 100), "ssrd": ("W/m2", 1)}
LATER = (("2002-08-20", "2002-10-09"),)  # the first 30 days of the later run are spin-up
BEST = "ScaleMixer"


@dataclass(frozen=True)
class System:
    """A network that is trained: changes to the preset, and how many seeds it gets."""

    name: str
    what: str
    network: dict = field(default_factory=dict)
    seeds: int = 1

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
    System("LAM, frame", "LAM, two cells at the edge overwritten", {"coupling": "lam", "inner": {"depth": 8}, "frame": 2}),
    System("L_r 2", "two regional layers in two blocks", {"inner": {"depth": 2}, "blocks": 2}),
    System("L_r 8", "eight regional layers", {"inner": {"depth": 8}}),
    *(System(f"K {keys}", f"{keys} keys", {"sampler": {"keys": keys}}) for keys in (16, 64, 128, 256)),
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
    "cpu": Setting("small", 2, (2000, 700), 1500, ((2, 100), (4, 100)), 5e-4, "cpu"),
    "gpu": Setting("small", 8, (12000, 4000), 8000, ((2, 500), (4, 500), (8, 500)), 5e-4, "cuda"),
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
    """One network of the comparison."""
    common = {"batch": setting.batch, "cache": system.cached}
    stages = [xsm.Stage(kind="regional", updates=setting.regional, peak=peak or setting.peak, **common)]
    stages += [
        xsm.Stage(kind="rollout", updates=updates, steps=steps, peak=5e-5, floor=1e-5, **common)
        for steps, updates in setting.rollouts
    ]
    return _config(f"{system.name} {seed}", setting, tuple(stages), system.network, seed)


def _config(name: str, setting: Setting, stages: tuple, network: dict, seed: int) -> xsm.TrainConfig:
    return xsm.TrainConfig(
        name=name, train=TRAIN, validation=VALIDATION, test=TEST, size=setting.size, network=network,
        stages=stages, calendar=("hour",), seed=seed, check_every=250,
    )  # fmt: skip


def train(options: argparse.Namespace) -> None:
    """The global network, then every system and seed, each in a process of its own."""
    setting, base = SETTINGS[options.setting], options.runs / "global"
    if not (base / "model").exists():
        tree = read_twin_world(options.data, options.archive)
        _finish(xsm.train(global_config(setting), tree, folder=base, device=setting.device), base, {})
    part, count = map(int, options.part.split("/"))
    jobs = [(system, seed) for system in SYSTEMS for seed in range(system.seeds)]
    jobs.sort(key=lambda job: job[1])  # one seed of each first
    for system, seed in jobs[part - 1 :: count]:
        folder = _folder(options.runs, system, seed)
        if (folder / "model").exists() or (options.only and options.only not in system.name):
            continue
        again = [sys.executable, __file__, "one", str(options.data), str(options.runs), "--setting", options.setting]
        subprocess.run([*again, "--only", system.name, "--seed", str(seed)], check=True)


def train_one(options: argparse.Namespace) -> None:
    """One network; what it took is kept beside it."""
    setting = SETTINGS[options.setting]
    system = next(system for system in SYSTEMS if system.name == options.only)
    folder, begun = _folder(options.runs, system, options.seed), time.process_time()
    config = regional_config(system, options.seed, setting)
    outer = xsm.load(options.runs / "global" / "model")
    model = xsm.train(config, read_twin_world(options.data), outer=outer, folder=folder, device=setting.device, workers=1)
    frozen = sum(p.numel() for p in model.network.outer.parameters())
    _finish(model, folder, {
        "cpu_minutes": (time.process_time() - begun) / 60, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "trained": sum(p.numel() for p in model.network.parameters()) - frozen, "frozen": frozen,
    })  # fmt: skip


def _finish(model: xsm.Forecaster, folder: Path, cost: dict) -> None:
    (folder / "cost.json").write_text(json.dumps(cost) + "\n", encoding="utf-8")
    shutil.rmtree(folder / "towers", ignore_errors=True)
    model.save(folder / "model", overwrite=True)


def _folder(runs: Path, system: System, seed: int) -> Path:
    return runs / f"{system.name.replace(' ', '_').replace(',', '')}-{seed}"
