"""Terrain adjustment against the truth and against plain bilinear interpolation, and its cost.

    python benchmarks/terrain.py --data DATA [--figure docs/terrain.png]

DATA holds ``hrrr_idaho/*.grib2`` (3 km), ``synop/synop_20190217_48h.nc``, ``gfs_2p5deg_2011011012_f120.grib2`` and
``statics/etopo5_relief.nc``. The HRRR analyses
are averaged over 10 x 10 cells (30 km) and brought back to 3 km over their own orography. Scored are the cells between the
outermost block centers, where nothing is extrapolated.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.spatial import KDTree

import xscalemixer as xsm
from xscalemixer.conform import conform
from xscalemixer.grids import cell_steps, grid_of
from xscalemixer.physics import humidity, terrain, wind
from xscalemixer.physics.pressure import hypsometric_pressure
from xscalemixer.physics.solar import local_basis
from xscalemixer.projections import EARTH_RADIUS
from xscalemixer.regridding import regrid
from xscalemixer.variables import REGIONAL

BLOCK = 10
UNITS = {
    "t2m": ("K", 1),
    "u10": ("m/s", 1),
    "v10": ("m/s", 1),
    "wind speed": ("m/s", 1),
    "q2m": ("g/kg", 1e3),
    "sp": ("hPa", 1e-2),
    "tcc": ("%", 100),
    "ssrd": ("W/m2", 1),
}


def block_means(ds: xr.Dataset) -> xr.Dataset:
    """Means over blocks of a curvilinear grid; rows and columns that fill no block are left out."""
    return ds.coarsen(y=BLOCK, x=BLOCK, boundary="trim").mean()


def hrrr(data: Path) -> tuple[xr.Dataset, xr.Dataset]:
    """Truth at 3 km and its means over 30 km."""
    raw = xsm.open(str(data / "hrrr_idaho" / "*.grib2"))
    truth, report = conform(raw, REGIONAL)
    report.raise_errors()
    truth = truth.load()
    coarse = block_means(truth)
    rows, columns = (coarse.sizes[dim] * BLOCK for dim in ("y", "x"))
    truth = truth.isel(y=slice(rows), x=slice(columns))
    return truth, coarse


def inner(ds: xr.Dataset) -> xr.Dataset:
    """Cells between the outermost block centers, with wind speed."""
    edge = slice(BLOCK // 2, -(BLOCK // 2))
    return ds.assign({"wind speed": np.hypot(ds["u10"], ds["v10"])}).isel(y=edge, x=edge)


def steps(truth: xr.Dataset, coarse: xr.Dataset) -> str:
    """Root mean square errors of single steps: fixed lapse rates, and the parts of the wind adjustment (vector)."""
    grid, bilinear = grid_of(truth), regrid(coarse, grid_of(truth))
    rise, ground = truth["orog"] - bilinear["orog"], cell_steps(grid)
    rmse = lambda ds: np.sqrt(((inner(ds) - inner(truth).drop_vars(["latitude", "longitude"])) ** 2).mean())
    fixed = {rate: float(rmse(bilinear.assign(t2m=bilinear["t2m"] - rate / 1000 * rise))["t2m"]) for rate in (4.5, 6.5)}
    free = bilinear["u10"].values, bilinear["v10"].values
    hills = terrain.gradient(truth["orog"].values, ground), terrain.curvature(truth["orog"].values, ground)
    balance = wind.MassBalance(wind.layer_depth(rise.values), ground, np.sqrt(grid_of(coarse).area.mean()))
    weighted = wind.over_relief(*free, *hills)
    parts = {"bilinear": free, "weights": weighted, "mass": balance(*free, *free), "both": balance(*weighted, *free)}
    lines = [f"t2m with {rate} K km-1: {error:.3f} K" for rate, error in fixed.items()]
    for name, (u, v) in parts.items():
        error = rmse(bilinear.assign(u10=(bilinear["u10"].dims, u), v10=(bilinear["v10"].dims, v)))
        lines.append(f"wind, {name}: {float(np.hypot(error['u10'], error['v10'])):.3f} m/s")
    return "\n".join(lines)


def table(truth: xr.Dataset, adjusted: xr.Dataset, bilinear: xr.Dataset) -> str:
    """Markdown: RMSE and bias of both by variable, and in how many of the hours with any error the first is the better."""
    lines = ["| variable | terrain, RMSE | bilinear, RMSE | change | hours better | terrain, bias | bilinear, bias |"]
    lines.append("|---" * 7 + "|")
    for name, (unit, scale) in UNITS.items():
        errors = [scale * (ds[name] - truth[name].values).values for ds in (adjusted, bilinear)]
        rmse, bias = [float(np.sqrt((e**2).mean())) for e in errors], [float(e.mean()) for e in errors]
        hourly = [(e**2).mean(axis=(1, 2)) for e in errors]
        better, differing = (hourly[0] < hourly[1]).sum(), (hourly[0] != hourly[1]).sum()
        lines.append(f"| {name} ({unit}) | {rmse[0]:.3g} | {rmse[1]:.3g} | {100 * (rmse[0] / rmse[1] - 1):+.1f} % "
                     f"| {better} of {differing} | {bias[0]:+.2g} | {bias[1]:+.2g} |")  # fmt: skip
    return "\n".join(lines)


def slope_effect(truth: xr.Dataset, adjusted: xr.Dataset, bilinear: xr.Dataset) -> float:
    """Regression of the truth on what relief does to radiation: near 1 if its model knows slopes and shadows, near 0 if not."""
    ours, theirs = (ds["ssrd"].values - bilinear["ssrd"].values for ds in (adjusted, truth))
    return float((ours * theirs).mean() / (ours**2).mean())


def stations(data: Path, near: float = 40.0, least: float = 300.0) -> str:
    """Markdown: reports of stations carried to neighbours that lie higher, against the reports of these.

    Each station with a neighbour within ``near`` km and at least ``least`` m lower, the nearest of them. Temperature falls by
    6.5 K per km: a local rate needs a field around the station.
    """
    reports = xsm.read_stations(data / "synop" / "synop_20190217_48h.nc")[["t2m", "sp", "q2m"]].load()
    reports = reports.isel(station=(reports["altitude"].notnull() & (reports["sp"].notnull().sum("time") > 24)).values)
    height, up = reports["altitude"].values, local_basis(reports["latitude"].values, reports["longitude"].values)[2].T
    chord, neighbours = KDTree(up).query(up, k=30, distance_upper_bound=1000 * near / EARTH_RADIUS)
    known = np.isfinite(chord) & (np.append(height, np.inf)[neighbours] <= height[:, None] - least)
    high = np.flatnonzero(known.any(1))
    low = neighbours[high, known[high].argmax(1)]
    above, below = (reports.isel(station=rows).reset_coords(drop=True).drop_vars("station") for rows in (high, low))
    rise = height[high] - height[low]
    t2m = below["t2m"] - 0.0065 * rise
    saturated = humidity.saturation_vapor_pressure
    vapor = humidity.vapor_pressure(below["q2m"], below["sp"]) * saturated(t2m) / saturated(below["t2m"])
    sp = hypsometric_pressure(below["sp"], rise, below["t2m"], t2m)
    carried = xr.Dataset({"t2m": t2m, "sp": sp, "q2m": humidity.specific_humidity(vapor, sp)})
    lines = ["| variable | carried up, RMSE | bias | as it is below, RMSE | reports |", "|---" * 5 + "|"]
    for name in carried:
        errors = [UNITS[name][1] * (ds[name] - above[name]) for ds in (carried, below)]
        rmse = [float(np.sqrt((e**2).mean())) for e in errors]
        lines.append(f"| {name} ({UNITS[name][0]}) | {rmse[0]:.3g} | {float(errors[0].mean()):+.2g} | {rmse[1]:.3g} "
                     f"| {int(errors[0].notnull().sum())} |")  # fmt: skip
    fall = 1000 * ((below["t2m"] - above["t2m"]) / rise).groupby("time.hour").median(...)
    lapse = f"{high.size} pairs, {rise.mean():.0f} m apart on average; median lapse by hour {fall.values.round(1)} K km-1"
    return f"{lapse}\n\n" + "\n".join(lines)


def gfs(data: Path) -> xr.Dataset:
    """Surface fields of a 2.5 degree state."""
    names = ["t2m", "u10", "v10", "sh2", "sp", "tcc", "sdswrf", "orog"]
    return xsm.open(str(data / "gfs_2p5deg_2011011012_f120.grib2"))[names].load()


def repeated(state: xr.Dataset, hours: int) -> xr.Dataset:
    """The same state at every hour of some days, only to measure what it costs."""
    times = state["valid_time"].values + np.arange(hours) * np.timedelta64(1, "h")
    state = state.drop_vars(["time", "step", "valid_time"])
    return state.assign({name: array.expand_dims(time=times) for name, array in state.items() if name != "orog"})


def figure(ds: xr.Dataset, path: Path) -> None:
    """Relief, temperature, wind and radiation at one time."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 4, figsize=(20, 4.6), layout="constrained")
    panels = {
        "relief (m)": (ds["orog"], "terrain"),
        "2 m temperature (°C)": (ds["t2m"] - 273.15, "RdYlBu_r"),
        "10 m wind speed (m/s)": (np.hypot(ds["u10"], ds["v10"]), "viridis"),
        "short-wave radiation (W/m2)": (ds["ssrd"], "inferno"),
    }
    for ax, (title, (field, colors)) in zip(axes, panels.items(), strict=True):
        mesh = ax.pcolormesh(ds["longitude"], ds["latitude"], field, cmap=colors)
        fig.colorbar(mesh, ax=ax)
        ax.set(title=title, aspect=1.15)
    fig.savefig(path, dpi=70)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    whole, coarse = hrrr(options.data)
    adjusted = xsm.adjust_to_terrain(coarse, whole["orog"], radiation_hours=0)
    truth, adjusted, bilinear = (inner(ds) for ds in (whole, adjusted, regrid(coarse, grid_of(whole))))
    shape = " x ".join(str(truth.sizes[dim]) for dim in ("time", "y", "x"))
    print(f"HRRR, 30 km to 3 km, {shape} values\n\n{table(truth, adjusted, bilinear)}\n")
    print(f"{steps(whole, coarse)}\n")
    print(f"slope effect in the radiation of HRRR itself: {slope_effect(truth, adjusted, bilinear):.2f} of ours\n")
    print(f"SYNOP, stations and lower neighbours: {stations(options.data)}\n")
    state, grid = gfs(options.data), xsm.Grid.regular("35.975", "94.025", "0.05", (240, 240))
    with xr.open_dataset(options.data / "statics" / "etopo5_relief.nc") as relief:
        days = repeated(state, 48)
        start = time.perf_counter()
        days.scalemixer.terrain(relief, grid=grid, radiation_hours=1)
        seconds, memory = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"GFS 2.5 deg to 0.05 deg, 48 x 240 x 240: {seconds:.1f} s, peak {memory:.1f} GB with all libraries")
        if options.figure:
            figure(state.scalemixer.terrain(relief, grid=grid).isel(time=0), options.figure)


if __name__ == "__main__":
    main()
