"""A small pair of coarse and fine fields, and a CorrDiff model that was hardly trained on it."""

import numpy as np
import xarray as xr
from worlds import HOUR, START, box, globe

import xscalemixer as xsm
from xscalemixer.physics.pressure import standard_pressure

NETWORK = {"regression": {"width": 8}, "diffusion": {"width": 8}}


def pair(hours=24) -> xr.DataTree:
    """Hourly fields of the globe, and of a box of 12 x 16 cells with cloud, radiation and noise that the globe lacks."""
    times = START + np.arange(1, hours + 1) * HOUR
    target = box(times, north=50.0, west=80.0, step=1.0, shape=(12, 16))
    noise = np.random.default_rng(0).standard_normal(target["t2m"].shape)
    target["t2m"] = target["t2m"] + noise.astype("f4")
    return xr.DataTree.from_dict({"/input": globe(times), "/target": target})


def over_relief() -> xr.DataTree:
    """The standard atmosphere, a kelvin warmer and a hectopascal heavier every hour, over the relief of each grid."""
    groups = {}
    for name, group in pair().items():
        ds = group.to_dataset()
        ds["orog"] = (
            (1500.0 + 1200.0 * np.cos(ds["latitude"]) * np.sin(ds["longitude"])).astype("f4").assign_attrs(ds["orog"].attrs)
        )
        hour = xr.DataArray(np.arange(ds.sizes["time"], dtype="f4"), dims="time")
        share = standard_pressure(ds["orog"]) / standard_pressure(0.0)
        fields = {"t2m": 290.0 + hour - 0.0065 * ds["orog"], "sp": share * (1e5 + 100.0 * hour)}
        for v, field in fields.items():
            ds[v] = field.transpose(*ds[v].dims).astype("f4").assign_attrs(ds[v].attrs)
        groups[f"/{name}"] = ds
    return xr.DataTree.from_dict(groups)


def config(**changes) -> xsm.CorrDiffConfig:
    """Two stages on the first eighteen hours of `pair`."""
    stages = [xsm.Stage(kind=kind, updates=4, batch=4, peak=1e-3) for kind in ("regression", "diffusion")]
    settings = {
        "name": "tiny", "size": "tiny", "network": NETWORK, "stages": tuple(stages),
        "train": ((str(START), "2020-06-02T06"),), "validation": (("2020-06-02T06", "2020-06-02T12"),),
        "inputs": ("t2m", "u10", "t_850"), "outputs": ("t2m", "u10", "ssrd"),
        "check_every": 2, "warmup": 1, "precision": "fp32",
    }  # fmt: skip
    return xsm.CorrDiffConfig(**{**settings, **changes})


def trained(**changes):
    """A model after a few updates."""
    return xsm.train(config(**changes), pair(), min_samples=1, workers=1)


def forecasts(starts=2, leads=12, every=6) -> xr.Dataset:
    """Coarse forecasts from several starts, in the layout of this library."""
    parts = []
    for i in range(starts):
        start = START + i * every * HOUR
        ds = globe(start + np.arange(1, leads + 1) * HOUR)
        ds = ds.rename(time="lead_time").assign_coords(lead_time=("lead_time", np.arange(1, leads + 1), {"units": "hours"}))
        parts.append(ds.expand_dims(reference_time=[start]))
    return xr.concat(parts, "reference_time", data_vars="minimal")
