"""Small made-up worlds with values a thermometer could show, and an untrained model that fits them."""

from dataclasses import replace

import numpy as np
import torch
import xarray as xr

from xscalemixer.forecaster import Branch, Forecaster
from xscalemixer.grids import Grid
from xscalemixer.nn.coldstart import ColdStart, ColdStartConfig
from xscalemixer.nn.scalemixer import CoupledModel, ScaleMixerConfig
from xscalemixer.variables import CATALOG, REGIONAL, Schema, Stats

LEVELS = (500, 850)
OUTER = Schema.of("z", "t", "t2m", "u10", "v10", "q2m", "sp", levels=LEVELS)
START = np.datetime64("2020-06-01T12", "ns")
HOUR = np.timedelta64(1, "h")


def terrain(lat, lon):
    """A smooth plateau around 35 N 90 E, m."""
    return 3000.0 * np.exp(-(((lat - 35) / 10) ** 2) - (((lon - 90) % 360 / 15) ** 2))


def globe(times=(START,), lat=None, lon=None) -> xr.Dataset:
    """Global state with every variable of `OUTER`, `orog` and `lsm`; canonical names and units."""
    lat = np.linspace(88, -88, 45) if lat is None else lat
    lon = np.arange(0, 360, 4.0) if lon is None else lon
    phi, lam, hour = _mesh(times, lat, lon)
    height = terrain(phi, lam)[0]
    surface = 300 - 40 * np.sin(phi) ** 2 + 2 * np.cos(3 * lam + 0.2 * hour) - 0.0065 * height
    sp = 101325 * np.exp(-height / 8000) + 500 * np.sin(2 * lam + 0.1 * hour) * np.cos(phi)
    level = np.array(LEVELS, dtype="f8")[None, :, None, None]
    thickness = 7400 * 9.8 * np.log(1013 / level)
    fields = {
        "z": thickness + 800 * np.cos(2 * lam)[:, None] * np.cos(phi)[:, None],
        "t": 288 * (level / 1000) ** 0.19 - 30 * (np.sin(phi) ** 2)[:, None] + 0 * hour[:, None],
        "t2m": surface,
        "u10": 8 * np.cos(2 * phi) + np.sin(lam + 0.1 * hour),
        "v10": 4 * np.sin(2 * lam + 0.1 * hour) * np.cos(phi),
        "q2m": 0.015 * np.cos(phi) ** 2 + 0.001,
        "sp": sp,
    }
    return _dataset(fields, height, times, lat, lon)


def box(times=None, north=63.0, west=69.0, step=1.125, shape=(40, 60)) -> xr.Dataset:
    """Hourly regional fields with the seven variables; by default the six hours up to `START`."""
    times = START - np.arange(5, -1, -1) * HOUR if times is None else times
    lat, lon = north - step * (np.arange(shape[0]) + 0.5), west + step * (np.arange(shape[1]) + 0.5)
    phi, lam, hour = _mesh(times, lat, lon)
    coarse = globe(times, lat, lon)
    fields = {name: coarse[name].values for name in ("t2m", "u10", "v10", "q2m", "sp")}
    fields["tcc"] = np.clip(0.5 + 0.5 * np.sin(5 * lam + 3 * phi + 0.2 * hour), 0, 1)
    fields["ssrd"] = 900 * np.clip(np.cos(np.deg2rad(15 * (hour - 12)) + lam) * np.cos(phi), 0, None)
    return _dataset(fields, terrain(phi, lam)[0], times, lat, lon)


def _mesh(times, lat, lon):
    hours = (np.array(times, "datetime64[ns]") - np.datetime64("2020-01-01T00")) / HOUR
    return np.deg2rad(lat)[None, :, None], np.deg2rad(lon)[None, None, :], hours[:, None, None]


def _dataset(fields, height, times, lat, lon) -> xr.Dataset:
    ds = xr.Dataset(coords={"time": np.array(times, "datetime64[ns]"), "latitude": lat, "longitude": lon})
    for name, values in fields.items():
        levels = (len(LEVELS),) * (values.ndim - 3)
        dims = ("time", "level", "latitude", "longitude") if levels else ("time", "latitude", "longitude")
        shape = (len(times), *levels, lat.size, lon.size)
        ds[name] = dims, np.broadcast_to(values, shape).astype("f4"), _attrs(name)
    ds["orog"] = ("latitude", "longitude"), np.broadcast_to(height, (lat.size, lon.size)).astype("f4"), _attrs("orog")
    ds["lsm"] = ("latitude", "longitude"), (ds["orog"].values > 50).astype("f4"), _attrs("lsm")
    if "level" in ds.dims:
        ds = ds.assign_coords(level=("level", np.array(LEVELS, "f8"), {"units": "hPa", "standard_name": "air_pressure"}))
    return ds


def _attrs(name):
    return {"standard_name": CATALOG[name].standard_name, "units": CATALOG[name].units}


def forecaster(seed=0, **changes) -> Forecaster:
    """An untrained tiny model on 5.625 degrees and the grid of `box`; every path carries a signal."""
    torch.manual_seed(seed)
    grids = (
        Grid.regular("87.1875", "2.8125", "5.625", (32, 64)),
        Grid(*(tuple(box()[c].values) for c in ("latitude", "longitude"))),
    )
    tiny = ScaleMixerConfig.tiny(sunlit_channel=6)
    outer = replace(tiny.outer, channels=len(OUTER), latitude=grids[0].latitude, longitude=grids[0].longitude)
    inner = replace(tiny.inner, latitude=grids[1].latitude, longitude=grids[1].longitude)
    network = CoupledModel(replace(tiny, outer=outer, inner=inner, **changes))
    for mixer in network.mixers:
        if hasattr(mixer, "adapter"):
            torch.nn.init.normal_(mixer.adapter[-1].weight, std=0.1)
    cold = ColdStart(ColdStartConfig(inputs=10, channels=7, guessed=(0, 1, 2, 3, 4), sunlit_channel=6, width=8, depth=2))
    data = globe(lat=np.array(grids[0].latitude), lon=np.array(grids[0].longitude)), box()
    branches = []
    for ds, schema, grid, module in zip(data, (OUTER, REGIONAL), grids, (network.outer, network.inner), strict=True):
        module.statics.copy_(torch.from_numpy(np.stack([ds["orog"].values / 1000, ds["lsm"].values])))
        branches.append(Branch(schema, grid, _stats(ds, schema)))
    return Forecaster("tiny", network, cold, *branches)


def _stats(ds, schema) -> Stats:
    mean, std = {}, {}
    for variable in schema.variables:
        for level, channel in zip(variable.levels or (None,), variable.channels, strict=True):
            values = ds[variable.name].sel(level=level) if level else ds[variable.name]
            mean[channel] = 0.0 if variable.name == "ssrd" else float(values.mean())
            std[channel] = max(float(values.std()), 1e-3 * abs(float(values.mean())), 1e-6)
    return Stats(mean=mean, std=std, source="made up")
