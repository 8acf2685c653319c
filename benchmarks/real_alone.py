"""Met2Net on two real regions of a few cells: trained there, fine-tuned from the twin world, against persistence.

    python benchmarks/real_alone.py DATA --model pretrained/met2net-twin-ea

DATA holds ``era5_cornwall`` (May 2018, 5 x 7 cells of 0.25 degrees by the sea) and ``era5_davos`` (January 2020, 4 x 5 cells in
the Alps, without wind and cloud). Of both months the first half trains, six days validate, the last nine are forecast. A
region of so few cells has no weather of its own: what can be learned is the day and how fast things change.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch
import xarray as xr
from met2net import SMALL
from real_regions import DAILY, PERSISTENCE, Region, davos, stages_of, tables

import xscalemixer as xsm

HOURS = 24
UPDATES = 600


def regions(data: Path) -> list[Region]:
    """Hours, periods and starts of both."""
    may, january = (_periods(month) for month in ("2018-05", "2020-01"))
    cornwall = xsm.open(str(data / "era5_cornwall" / "*.nc")).load()
    return [
        Region("Cornwall", _alone(cornwall), may | {"missing": ()}, {HOURS: _starts("2018-05")}, {}),
        Region("Davos", _alone(davos(data).truth), january | {"missing": ("u10", "v10", "tcc")}, {HOURS: _starts("2020-01")}, {}),
    ]


def _alone(ds: xr.Dataset) -> xr.DataTree:
    return xr.DataTree.from_dict({"/regional": ds})


def _periods(month: str) -> dict:
    parts = {"train": ("01", "16"), "validation": ("16", "22"), "test": ("22", "31")}
    return {name: ((f"{month}-{first}", f"{month}-{last}"),) for name, (first, last) in parts.items()}


def _starts(month: str):
    return pd.date_range(f"{month}-22T12", f"{month}-29T12", freq="6h").to_numpy()


def models(region: Region, base: xsm.RegionalForecaster) -> dict[str, xsm.RegionalForecaster]:
    """Trained on the region alone and, for as many updates of as many samples, from the model of the twin world."""
    periods = {name: region.settings[name] for name in ("train", "validation", "test")}
    torch.manual_seed(0)
    stage = xsm.Stage(kind="implicit", updates=UPDATES, batch=8, peak=1e-3)
    config = xsm.Met2NetTrainConfig(
        name="here", variables=tuple(region.variables), network=SMALL, stages=(stage,), check_every=60, **periods
    )
    tune = lambda **how: xsm.finetune(region.truth, base, missing=region.settings["missing"], **periods, **how)
    five = tune(epochs=5)
    return {
        "trained here": xsm.train(config, region.truth),
        "fine-tuned, 5 epochs": five,
        "fine-tuned, 5 epochs at a third of the rates": tune(stages=stages_of(five, 1 / 3)),
        "fine-tuned, rates of training": tune(stages=(stage,)),
    }


def main() -> None:
    """Train and score both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="met2net-twin-ea", help="name or folder of the model to fine-tune")
    options = parser.parse_args()
    base = xsm.load(options.model)
    for region in regions(options.data):
        starts = region.starts[HOURS]
        systems = {
            PERSISTENCE: xsm.persistence_forecast(region.truth, starts, HOURS),
            DAILY: xsm.persistence_forecast(region.truth, starts, HOURS, period=24),
        }
        for name, model in models(region, base).items():
            systems[name] = xsm.hindcast(region.truth, starts, HOURS, model=model)
        sys.stdout.write(f"{region.name}, {HOURS} h from {len(starts)} starts\n\n{tables(region, systems)}\n\n")


if __name__ == "__main__":
    main()
