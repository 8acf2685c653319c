"""Fine-tuning on two real regions, against persistence, the same network without pretraining, and itself untrained.

    python benchmarks/real_regions.py DATA [--figures docs] [--only davos]

DATA holds ``hrrr_idaho`` (hourly GRIB files of HRRR, 3 km) and ``era5_davos`` (PLEV_202001.nc and SURF_202001.nc).
Idaho: 22 July 2018 trains, 23 July is forecast; its driver is the mean of HRRR itself over 5 x 5 cells, surface variables
only, so that nothing is known of the weather outside. Davos: two weeks of January 2020 train, one validates, one tests.
Everything is done by public functions: `open`, `regrid`, `finetune`, `hindcast`, `persistence_forecast`,
`adjust_to_terrain` and `score`.
"""

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

import xscalemixer as xsm

UNITS = {"t2m": ("K", 1), "q2m": ("g/kg", 1e3), "sp": ("hPa", 1e-2), "tcc": ("%", 100), "ssrd": ("W/m2", 1)}
PERSISTENCE, DAILY = "persistence", "24 h persistence"
IDAHO = xsm.Grid.regular("43.95", "243.03", "0.03", (60, 30))  # lies within the rows and columns of the files
IDAHO_DRIVER = xsm.Grid.regular("43.89", "243.09", "0.15", (12, 6))  # 5 x 5 cells each


@dataclass(frozen=True)
class Region:
    """What is learned from, and what is forecast.

    Attributes
    ----------
    name : str
    tree : DataTree
    settings : dict
        For `finetune`: periods, and what the data lack.
    starts : dict of array
        Starts of the forecasts by their length in hours.
    others : dict of Dataset
        Further systems to compare with, by name.
    """

    name: str
    tree: xr.DataTree
    settings: dict
    starts: dict[int, np.ndarray]
    others: dict[str, xr.Dataset]

    @property
    def truth(self) -> xr.Dataset:
        """Hourly analyses."""
        return self.tree["regional"].to_dataset()

    @property
    def variables(self) -> list[str]:
        """Catalog names of what is forecast."""
        return [name for name in ("t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd") if name not in self.settings["missing"]]


# --------------------------------------------------------------------------------------------------------------- regions


def idaho(data: Path) -> Region:
    """HRRR in south-western Idaho, on latitudes and longitudes."""
    names = ["t2m", "u10", "v10", "sh2", "sp", "lcc", "mcc", "hcc", "sdswrf", "orog", "lsm"]
    hrrr = xsm.open(data / "hrrr_idaho" / "*.grib2")[names]
    hrrr = hrrr.assign({name: hrrr[name].isel(time=0) for name in ("orog", "lsm")})
    fine = xsm.regrid(hrrr, IDAHO).load()
    driver = xsm.regrid(fine, IDAHO_DRIVER, method="conservative").drop_vars(["lcc", "mcc", "hcc", "sdswrf"])
    starts = pd.date_range("2018-07-23T00", "2018-07-23T11", freq="h").to_numpy()
    settings = {
        "train": (("2018-07-22T00", "2018-07-23T00"),),
        "validation": (),  # there is no other day
        "test": (("2018-07-23T00", "2018-07-23T17"),),
        "missing": ("z", "q", "u", "v", "t"),
    }
    inside = driver.isel(time=slice(24, None))
    others = {
        "driver of the hour, interpolated": xsm.regrid(inside, IDAHO, method="bilinear"),
    }
    return Region("Idaho", _tree(driver, fine), settings, {6: starts, 11: starts[:7]}, others)


def davos(data: Path) -> Region:
    """ERA5 around Davos, driver and region on the same 4 x 5 cells; no wind at 10 m, no cloud, six levels."""
    aloft, surface = (xr.open_dataset(data / "era5_davos" / f"{name}_202001.nc").load() for name in ("PLEV", "SURF"))
    altitude = (surface["z"].isel(time=0, drop=True) / 9.80665).assign_attrs(units="m", standard_name="surface_altitude")
    land = xr.ones_like(altitude).assign_attrs(units="1", standard_name="land_area_fraction")
    radiation = (surface["ssrd"] / 3600).assign_attrs(units="W m-2", standard_name="surface_downwelling_shortwave_flux_in_air")
    regional = surface[["t2m", "d2m", "sp"]].assign(ssrd=radiation, orog=altitude, lsm=land)
    driver = aloft[["z", "t", "u", "v", "q"]].merge(regional.drop_vars("ssrd")).isel(time=slice(None, None, 6))
    settings = {
        "train": (("2019-12-31T23", "2020-01-15T00"),),
        "validation": (("2020-01-16T00", "2020-01-22T00"),),
        "test": (("2020-01-23T00", "2020-02-01T00"),),
        "missing": ("u10", "v10", "tcc", 50, 100, 200),
    }
    starts = pd.date_range("2020-01-23T12", "2020-01-29T12", freq="12h").to_numpy()
    return Region("Davos", _tree(driver, regional), settings, {48: starts}, {})


def _tree(driver: xr.Dataset, regional: xr.Dataset) -> xr.DataTree:
    return xr.DataTree.from_dict({"/global": driver, "/regional": regional})
