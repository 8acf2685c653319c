"""Forecast from a file of yours (or the sample), with maps of the wind and of where the model looked.

python examples/forecast.py [FILE]
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

import xscalemixer as xsm

OUTPUT = Path("output")


def main(*files: str) -> None:
    ds = xsm.open(files) if files else xsm.sample()
    OUTPUT.mkdir(exist_ok=True)

    fc = ds.scalemixer.forecast(hours=48, diagnose=True)
    fc.to_netcdf(OUTPUT / "forecast.nc")
    print(fc.attrs["coupling_response"])

    panels = fc.scalemixer.plot("wind", lead_time=[6, 24, 48])
    panels[0].figure.savefig(OUTPUT / "wind.png")

    keys = ds.scalemixer.key_positions()
    fig, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    keys["importance"].mean("block").plot(ax=ax, cmap="Greys")
    for block in keys["block"].values:
        ax.plot(keys["longitude"][block], keys["latitude"][block], ".", label=f"block {block + 1}")
    ax.set_title("Where the model looked: importance (mean) and key positions")
    ax.legend()
    fig.savefig(OUTPUT / "keys.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
