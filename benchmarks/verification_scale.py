"""A year of forecasts scored: time, memory against its bound, `scores` and `xskillscore` beside it, one process against two.

    python benchmarks/verification_scale.py [--starts 730] [--leads 48] [--chunk-leads 48] [--memory "1 GiB"]
    python benchmarks/verification_scale.py --store FOLDER      # write the made-up data there once, and read them

Made-up data on the regional grid of twin world A (58 x 89), two starts a day, seven variables. Without ``--store`` they are
generated chunk by chunk while they are scored, so that no disk is needed; the time it takes to make them is measured, too.
"""

import argparse
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import dask
import dask.array
import numpy as np
import psutil
import xarray as xr

import xscalemixer as xsm
from xscalemixer.grids import Grid
from xscalemixer.variables import REGIONAL

GRID = Grid.regular("64.6875", "60.1875", "1.125", (58, 89))
FIRST = np.datetime64("2001-01-01", "ns")
HOUR = np.timedelta64(1, "h")
METRICS = ["rmse", "mae", "bias"]


def noise(block_info=None) -> np.ndarray:
    """Values that depend on nothing but the place of the chunk."""
    info = block_info[None]
    random = np.random.default_rng(info["chunk-location"])
    return 280 + random.standard_normal(info["chunk-shape"], dtype="f4")


def made_up(times: dict[str, np.ndarray], chunks: tuple[int, ...]) -> xr.Dataset:
    """Seven variables on the given axes."""
    shape = (*(values.size for values in times.values()), *GRID.shape)
    sizes = dask.array.core.normalize_chunks((*chunks, *GRID.shape), shape)
    out = {}
    for variable in REGIONAL.variables:
        values = dask.array.map_blocks(
            noise, chunks=sizes, dtype="f4", meta=np.empty((0,) * len(shape), "f4"), token=variable.name
        )
        out[variable.name] = (
            (*times, "latitude", "longitude"),
            values,
            {"standard_name": variable.standard_name, "units": variable.units},
        )
    return xr.Dataset(out, times | {"latitude": list(GRID.latitude), "longitude": list(GRID.longitude)})


def data(starts: int, leads: int, chunk_leads: int, folder: Path | None) -> tuple[xr.Dataset, xr.Dataset]:
    """Forecasts and truth, generated on the fly or read from a folder."""
    begun, lead = FIRST + np.arange(starts) * 12 * HOUR, np.arange(1, leads + 1)
    fc = made_up({"reference_time": begun, "lead_time": lead}, (1, chunk_leads))
    fc["lead_time"].attrs["units"] = "hours"
    truth = made_up({"time": FIRST + np.arange(1, 12 * starts + leads) * HOUR}, (24,))
    for ds in (fc, truth):
        ds["ssrd"].attrs["cell_methods"] = "time: mean"
    if folder is None:
        return fc, truth
    for name, ds in (("forecast", fc), ("truth", truth)):
        if not (folder / f"{name}.zarr").exists():
            ds.to_zarr(folder / f"{name}.zarr", zarr_format=2)
    return tuple(xr.open_zarr(folder / f"{name}.zarr", decode_timedelta=False) for name in ("forecast", "truth"))


def timed(function):
    begun = time.perf_counter()
    return function(), time.perf_counter() - begun


class Peak:
    """Largest resident memory while it is open, in bytes."""

    def __enter__(self):
        self.bytes, self._done, process = 0, threading.Event(), psutil.Process()

        def watch():
            while not self._done.wait(0.02):
                self.bytes = max(self.bytes, process.memory_info().rss)

        self._thread = threading.Thread(target=watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()


def beside(fc: xr.Dataset, truth: xr.Dataset) -> xr.Dataset:
    """Truth at the valid times, for libraries that want it so."""
    return truth.sel(time=fc["reference_time"] + fc["lead_time"].astype("m8[h]")).drop_vars("time")


def by_scores(fc: xr.Dataset, truth: xr.Dataset) -> dict[str, xr.Dataset]:
    from scores.continuous import additive_bias, mae, rmse

    keywords = {"preserve_dims": ["lead_time"], "weights": xr.DataArray(GRID.area, dims=("latitude", "longitude"))}
    target = beside(fc, truth)
    methods = {"rmse": rmse, "mae": mae, "bias": additive_bias}
    out = {
        name: xr.Dataset({v: method(fc[v].astype("f8"), target[v].astype("f8"), **keywords) for v in fc})
        for name, method in methods.items()
    }
    return dask.compute(out)[0]


def by_xskillscore(fc: xr.Dataset, truth: xr.Dataset) -> dict[str, xr.Dataset]:
    import xskillscore

    dims = ["reference_time", "latitude", "longitude"]
    target, weights = beside(fc, truth).astype("f8"), xr.DataArray(GRID.area, dims=("latitude", "longitude"))
    one = fc.astype("f8").chunk(reference_time=-1, latitude=-1, longitude=-1)
    target = target.chunk(reference_time=-1, latitude=-1, longitude=-1)
    weights = weights.expand_dims(reference_time=one.sizes["reference_time"])
    out = {
        "rmse": xskillscore.rmse(one, target, dims, weights=weights),
        "mae": xskillscore.mae(one, target, dims, weights=weights),
        "bias": xskillscore.me(one, target, dims, weights=weights),
    }
    return dask.compute(out)[0]


def differences(ours: xr.Dataset, theirs: dict[str, xr.Dataset]) -> float:
    """Largest difference to another library, relative to the score."""
    one = [abs(ours[v].sel(metric=name) / theirs[name][v] - 1).max() for name in ("rmse", "mae") for v in ours]
    return float(max(one))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=730)
    parser.add_argument("--leads", type=int, default=48)
    parser.add_argument("--chunk-leads", type=int, default=48, help="lead times in a chunk of the forecast")
    parser.add_argument("--slice", type=int, default=40, help="starts for the comparisons")
    parser.add_argument("--memory", default="1 GiB")
    parser.add_argument("--store", type=Path, help="folder for the data as Zarr stores")
    parser.add_argument("--no-workers", action="store_true", help="leave out the cluster of two workers")
    options = parser.parse_args()
    fc, truth = data(options.starts, options.leads, options.chunk_leads, options.store)
    xsm.score(fc.isel(reference_time=[0]), truth, metrics=METRICS)  # imports
    before = psutil.Process().memory_info().rss
    with Peak() as peak:
        sc, seconds = timed(lambda: xsm.score(fc, truth, metrics=METRICS, memory=options.memory, progress=sys.stderr.isatty()))
    size = sum(array.nbytes for array in fc.values()) / 1e9
    count = float(sc["t2m"].sel(metric="count").max())
    print(f"{options.starts} starts, {options.leads} leads, {len(fc)} variables: {size:.2f} GB of forecasts, count {count:.0f}")
    print(f"score: {seconds:.1f} s, {seconds / size:.2f} s per GB of forecasts")
    grown = (peak.bytes - before) / 2**20
    print(f"memory: grew by at most {grown:.0f} MiB from {before / 2**20:.0f} MiB; bound of a batch {options.memory}")

    part = fc.isel(reference_time=slice(options.slice))
    size *= options.slice / options.starts
    ours, seconds = timed(lambda: xsm.score(part, truth, metrics=METRICS))
    print(f"\n{options.slice} starts, {size:.2f} GB: ours {seconds:.2f} s")
    for name, other in (("scores", by_scores), ("xskillscore", by_xskillscore)):
        theirs, took = timed(lambda other=other: other(part, truth))
        print(
            f"  {name}: {took:.2f} s, {took / seconds:.2f} of ours; largest relative difference {differences(ours, theirs):.1e}"
        )
    _, took = timed(
        lambda: dask.compute({v: part[v].sum() for v in part}, {v: truth[v][: options.slice * 12 + 48].sum() for v in truth})
    )
    print(f"  making or reading the same data once: {took:.2f} s, {took / seconds:.2f} of ours")
    if not options.no_workers:
        from distributed import Client, LocalCluster

        with tempfile.TemporaryDirectory() as folder:
            cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=folder)
            with cluster, Client(cluster):
                xsm.score(part.isel(reference_time=slice(2)), truth, metrics=METRICS)  # imports of the workers
                many, took = timed(lambda: xsm.score(part, truth, metrics=METRICS))
        apart = max(float(abs(many[v] - ours[v]).max()) for v in ours)
        print(f"  two workers: {took:.2f} s, {took / seconds:.2f} of one process; largest difference {apart:.1e}")
    print(f"\npeak of the whole run {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")


if __name__ == "__main__":
    main()
