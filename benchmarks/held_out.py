"""Warm-start forecasts of held-out twin-world blocks against persistence, 24-hour persistence and climatology.

    python benchmarks/held_out.py DATA [--model twin-ea-small] [--figures docs]

DATA holds the packed twin world (``global_*.nc`` and ``regional_*.nc``, see docs/models.md). A start counts only if its
history and its 48 hours lie in a test period. The climatology is that of the training days within 15 days of the day
of year, for each cell and hour of day. Everything is done by public functions: `hindcast`, `persistence_forecast`,
`climatology_forecast`, `score` and `plot`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import xarray as xr
from common import heads, markdown, starts_within, unit, within

import xscalemixer as xsm

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_twin_ea import TEST, TRAIN, read_twin_world

HOURS = 48
VARIABLES = ["t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd"]
REFERENCE = "24 h persistence"


def scores(tree: xr.DataTree, model: str) -> xr.Dataset:
    """All metrics by variable, lead time and system, with intervals of the differences to 24-hour persistence."""
    regional = tree["regional"].to_dataset()[VARIABLES].load()
    climatology = xsm.climatology(within(regional, TRAIN))
    init = starts_within(tree["global"]["time"].values, TEST, HOURS)
    systems = {
        model: xsm.hindcast(tree, init, HOURS, model=model),
        "persistence": xsm.persistence_forecast(regional, init, HOURS),
        REFERENCE: xsm.persistence_forecast(regional, init, HOURS, period=24),
        "climatology": xsm.climatology_forecast(climatology, init, HOURS),
    }
    sc = xsm.score(systems, regional, climatology=climatology, skill_against=REFERENCE, variables=VARIABLES)
    return sc.assign_attrs(starts=", ".join(str(t)[:13] for t in init))


def table(sc: xr.Dataset) -> str:
    """Markdown: RMSE at 6 h and mean over 1-48 h for every variable and system."""
    systems = sc["model"].values.tolist()
    rows = [["variable", *(f"{name}, {span}" for span in ("6 h", "1-48 h") for name in systems)]]
    for name, head in zip(VARIABLES, heads(VARIABLES), strict=True):
        rmse = sc[name].sel(metric="rmse") * unit(name)[1]
        cells = [f"{float(part.sel(model=s)):.3g}" for part in (rmse.sel(lead_time=6), rmse.mean("lead_time")) for s in systems]
        rows.append([head, *cells])
    return markdown(rows)


def draw(sc: xr.Dataset, folder: Path) -> None:
    """The curves and the scorecard as pictures."""
    note = f"twin world A, held-out blocks, {len(sc.attrs['starts'].split(','))} starts (twin experiment)"
    for kind, name in (("curves", "held_out"), ("scorecard", "scorecard")):
        picture = sc.scalemixer.plot(kind=kind, metric="rmse")
        figure = np.ravel(picture)[0].figure
        figure.suptitle(f"{figure.get_suptitle()}\n{note}" if figure.get_suptitle() else note)
        figure.savefig(folder / f"{name}.png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="twin-ea-small")
    parser.add_argument("--figures", type=Path)
    options = parser.parse_args()
    sc = scores(read_twin_world(options.data), options.model)
    print(f"{sc.attrs['starts']}\n\n{table(sc)}\n\n{sc.attrs['report']}")
    if options.figures:
        draw(sc, options.figures)


if __name__ == "__main__":
    main()
