"""Make the sample that comes with the package from a GFS file: one global state at 2.5 degrees, about 1 MB.

    python examples/make_sample.py gfs_2p5deg_2011011012_f120.grib2

The file is NOAA's Global Forecast System (public domain), valid 2011-01-15 12 UTC, 120 hours into the run. Values are
kept as the file has them (geopotential height in gpm, relative humidity in %), rounded to the precision of the packing.
"""

import sys
from pathlib import Path

import xscalemixer as xsm

LEVELS = [50, 100, 200, 300, 400, 500, 600, 700, 850, 925, 1000]
STEP = {
    "t": 0.02,
    "u": 0.02,
    "v": 0.02,
    "gh": 1.0,
    "r": 0.1,
    "t2m": 0.02,
    "sh2": 1e-6,
    "u10": 0.02,
    "v10": 0.02,
    "sp": 5.0,
    "orog": 1.0,
    "lsm": 1.0,
}
TARGET = Path(__file__).parents[1] / "src" / "xscalemixer" / "sample.nc"


def main(source: str) -> None:
    ds = xsm.open(source)[list(STEP)].sel(isobaricInhPa=LEVELS).load()
    encoding = {}
    for name, step in STEP.items():
        middle = step * round(float(ds[name].min() + ds[name].max()) / 2 / step)
        encoding[name] = {
            "dtype": "i2",
            "scale_factor": step,
            "add_offset": middle,
            "_FillValue": -32768,
            "zlib": True,
            "complevel": 9,
            "shuffle": True,
        }
        ds[name].encoding.clear()
    ds.attrs |= {
        "title": "GFS 120 h forecast valid 2011-01-15 12 UTC, 2.5 degrees",
        "source": "NOAA Global Forecast System",
        "license": "public domain",
    }
    ds.to_netcdf(TARGET, encoding=encoding, engine="netcdf4")
    sys.stdout.write(f"{TARGET}: {TARGET.stat().st_size / 1e6:.2f} MB\n")


if __name__ == "__main__":
    main(sys.argv[1])
