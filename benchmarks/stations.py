"""Scores against stations, with real reports, with known truth, and in size.

    python benchmarks/stations.py --data DATA [nearby holdout reports size]

DATA holds ``real/meteonet_nw``, ``real/era5_cornwall``, ``real/synop`` (see docs) and ``nature/regional_*.nc``.

nearby    ARPEGE forecasts of France against the cells of ERA5 in Cornwall taken as stations: RMSE and bias.
holdout   every second cell of the twin world as grid, the others as stations: errors against the bound of bilinear interpolation.
reports   SYNOP and METAR: quality control, and persistence of the reports scored against the reports.
size      100 000 stations, 24 lead times, a global grid of 0.25 degrees: seconds and peak memory.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

import xscalemixer as xsm

HOUR = np.timedelta64(1, "h")
METRICS = ["rmse", "bias", "count"]


def as_stations(ds: xr.Dataset, keep: np.ndarray | None = None, altitude: float = np.nan) -> xr.Dataset:
    """Cells of a grid as stations, in the form of CF time series."""
    ds = ds.stack(station=("latitude", "longitude"))
    ds = ds.isel(station=slice(None) if keep is None else np.flatnonzero(keep.ravel()))
    latitude, longitude = ds["latitude"].values, ds["longitude"].values
    places = {"latitude": ("station", latitude), "longitude": ("station", longitude)}
    places |= {"station": [f"p{i}" for i in range(latitude.size)]}
    ds = ds.drop_vars(["station", "latitude", "longitude"]).assign_coords(places)
    return ds.assign_coords(altitude=("station", np.full(latitude.size, altitude), {"units": "m"}))


def persistence(reports: xr.Dataset, starts: np.ndarray, leads: list[int]) -> xr.Dataset:
    """The reports of each start held for all lead times."""
    held = reports.sel(time=starts).rename(time="reference_time").expand_dims(lead_time=len(leads), axis=1)
    axes = {"lead_time": ("lead_time", leads, {"units": "hours"})}
    return held.assign_coords(axes | {"reference_time": ("reference_time", starts, {"standard_name": "forecast_reference_time"})})


def show(scores: xr.Dataset, scale: dict[str, float] | None = None) -> None:
    """One row for each variable and metric, one column for each lead time."""
    rows = {}
    for name, array in scores.items():
        for metric in METRICS:
            values = array.sel(metric=metric).values * (1 if metric == "count" else (scale or {}).get(name, 1))
            rows[f"{name} {metric}"] = np.round(np.atleast_1d(values), 3)
    print(
        pd.DataFrame(
            rows, index=np.atleast_1d(scores["lead_time"].values) if "lead_time" in scores.dims else ["all"]
        ).T.to_string()
    )


def nearby(data: Path) -> None:
    """Table 2 of the paper (T2M, D2M, WS10), ARPEGE against ERA5."""
    folder = data / "real" / "meteonet_nw"
    arpege = xr.merge([xsm.open(folder / f"arpege_{part}_NW_20180501000000.grib") for part in ("2m", "10m")], compat="override")
    era5 = xr.open_dataset(data / "real" / "era5_cornwall" / "data_stream-oper_stepType-instant.nc")
    era5 = era5.drop_vars(["number", "expver"]).rename(valid_time="time")[["t2m", "d2m", "u10", "v10", "lsm"]]
    for title, keep in (("all cells", None), ("land cells (lsm > 0.5)", era5["lsm"].isel(time=0).values > 0.5)):
        truth = as_stations(era5.drop_vars("lsm"), keep)
        scores = xsm.score(arpege, truth, variables=["t2m", "d2m", "ws10"], metrics=["rmse", "bias"], by="variable")
        print(f"\n{title}: {truth.sizes['station']} cells, 25 hours of 2018-05-01")
        show(scores)
    print(scores.attrs["report"])


def holdout(data: Path) -> None:
    """Interpolation errors and their bound h^2/8 (|f_yy| + |f_xx|), h the spacing of the grid that is interpolated from."""
    ds = (
        xr.open_dataset(data / "nature" / "regional_2001-08-10.nc")
        .rename(lat="latitude", lon="longitude")
        .isel(time=slice(0, 120, 6))
    )
    analytic(ds)
    fields = ds[["t2m", "u10", "sp"]].load()
    coarse = fields.isel(latitude=slice(0, None, 2), longitude=slice(0, None, 2))
    held_out = np.ones((ds.sizes["latitude"], ds.sizes["longitude"]), bool)
    held_out[::2, ::2] = held_out[[0, -1]] = held_out[:, [0, -1]] = False
    truth = as_stations(fields, held_out)
    at = xsm.at_stations(coarse, truth)
    bound = as_stations(fields.map(curvature), held_out)
    for name in fields:
        error = np.abs(at[name].values - truth[name].sel(station=at["station"]).values)
        limit = bound[name].sel(station=at["station"]).values
        inside = np.isfinite(limit)
        error, limit = error[inside], limit[inside]
        rms = lambda values: np.sqrt((values**2).mean())
        beyond = f"beyond it {(error > limit).mean():.2%}, largest ratio {(error / limit).max():.3f}"
        print(f"{name}: {error.size} values, rms error {rms(error):.4g}, rms bound {rms(limit):.4g}, {beyond}")


def analytic(ds: xr.Dataset) -> None:
    """A field with known second derivatives at random points."""
    wave = lambda lat, lon: 280 + 10 * np.sin(np.deg2rad(3 * lat)) * np.cos(np.deg2rad(4 * lon))
    lat, lon = xr.broadcast(ds["latitude"], ds["longitude"])
    field = wave(lat, lon).rename("t2m").assign_attrs(units="K").expand_dims(time=ds["time"].values[:1]).to_dataset()
    rng = np.random.default_rng(0)
    points = {"latitude": rng.uniform(float(lat.min()), float(lat.max()), 5000), "longitude": rng.uniform(61, 159, 5000)}
    at = xsm.at_stations(field, pd.DataFrame(points))
    error = np.abs(at["t2m"].values[0] - wave(at["latitude"].values, at["longitude"].values))
    steps = np.abs(np.diff(ds["latitude"])).max(), np.diff(ds["longitude"]).max()
    bound = sum(step**2 / 8 * 10 * np.deg2rad(number) ** 2 for step, number in zip(steps, (3, 4), strict=True))
    print(f"analytic: {error.size} points, largest error {error.max():.5f} K, bound {bound:.5f} K")


def curvature(field: xr.DataArray) -> xr.DataArray:
    """Half the largest second differences around each cell, of both directions together: h^2/8 f'' with h two cells."""
    total = 0
    for dim in ("latitude", "longitude"):
        second = np.abs(field.shift({dim: 1}) - 2 * field + field.shift({dim: -1})) / 2
        total = total + second.rolling(latitude=3, longitude=3, center=True).max()
    return total.transpose(*field.dims)


def reports(data: Path) -> None:
    """Persistence of reports, and 24 h persistence, scored against the reports."""
    leads = [1, 3, 6, 12, 24]
    for name, step in (("synop_20190217_48h.nc", 1), ("metar_202001.parquet", 6)):
        begin = time.perf_counter()
        truth = xsm.read_stations(data / "real" / "synop" / name).load()
        print(f"\n{name}, {time.perf_counter() - begin:.1f} s\n{truth.attrs['report']}")
        starts = truth["time"].values[: truth.sizes["time"] - 24 : step]
        scores = xsm.score(persistence(truth, starts, leads), truth, metrics=["rmse", "bias"])
        show(scores, {"sp": 0.01, "msl": 0.01, "q2m": 1e3})


def size(_: Path) -> None:
    """Time and memory of many stations."""
    rng = np.random.default_rng(0)
    latitude, longitude = np.linspace(90, -90, 721), np.arange(0, 360, 0.25)
    smooth = np.cos(np.deg2rad(latitude))[:, None] * np.sin(np.deg2rad(3 * longitude))
    coords = {
        "reference_time": [np.datetime64("2020-01-01", "ns")],
        "lead_time": ("lead_time", np.arange(1, 25), {"units": "hours"}),
    }
    coords |= {"latitude": latitude, "longitude": longitude}
    units = {"t2m": "K", "u10": "m s-1", "v10": "m s-1"}
    base = {"t2m": 280, "u10": 3, "v10": -2}
    fields = {
        n: (tuple(coords), (base[n] + 5 * smooth + np.arange(24)[:, None, None] / 24).astype("f4")[None], {"units": u})
        for n, u in units.items()
    }
    fc = xr.Dataset(fields, coords)
    count, times = 100_000, coords["reference_time"][0] + np.arange(1, 25) * HOUR
    noise = lambda: rng.normal(size=(24, count)).astype("f4")
    series = {"t2m": (280 + noise(), "K"), "ws10": (np.abs(5 + noise()), "m s-1"), "wd10": (np.abs(180 + noise()), "degree")}
    truth = xr.Dataset(
        {n: (("time", "station"), v, {"units": u}) for n, (v, u) in series.items()},
        {"time": times, "station": [f"s{i}" for i in range(count)],
         "latitude": ("station", np.rad2deg(np.arcsin(rng.uniform(-1, 1, count)))),
         "longitude": ("station", rng.uniform(-180, 180, count)), "altitude": ("station", np.zeros(count), {"units": "m"})},
    )  # fmt: skip
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, time.perf_counter()
    scores = xsm.score(fc, truth, metrics=["rmse", "bias"])
    seconds, peak = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{count} stations, 24 lead times, {', '.join(scores)}: {seconds:.1f} s")
    print(f"peak {peak:.2f} GiB, {before:.2f} GiB with the data alone")


if __name__ == "__main__":
    parts = {"nearby": nearby, "holdout": holdout, "reports": reports, "size": size}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("parts", nargs="*", choices=[[], *parts], default=list(parts))
    args = parser.parse_args()
    for part in args.parts or parts:
        parts[part](args.data)
