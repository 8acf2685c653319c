"""Fine-tuning on two real regions, against persistence, the same network without pretraining, and itself untrained.

    python benchmarks/real_regions.py DATA [--figures docs] [--only davos] [--epochs 5 20]

DATA holds ``hrrr_idaho`` (hourly GRIB files of HRRR, 3 km) and ``era5_davos`` (PLEV_202001.nc and SURF_202001.nc).
Idaho: 22 July 2018 trains, 23 July is forecast; its driver is the mean of HRRR itself over 5 x 5 cells, surface variables
only, so that nothing is known of the weather outside. Davos: two weeks of January 2020 train, one validates, one tests.
Each number of epochs takes about six minutes of CPU time for five, twenty for twenty.
Everything is done by public functions: `open`, `regrid`, `finetune`, `hindcast`, `persistence_forecast`,
`adjust_to_terrain` and `score`.
"""

import argparse
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from common import heads, markdown, unit

import xscalemixer as xsm
from xscalemixer.projections import crs_of, rotate_winds

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
        Fields at valid times to compare with, by name. They know the hour that the others forecast: a bound, no forecast.
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
    hrrr = hrrr.assign_coords(time=hrrr["valid_time"].values).drop_vars(["valid_time", "step"])
    hrrr = hrrr.assign({name: hrrr[name].isel(time=0) for name in ("orog", "lsm")})
    u, v = rotate_winds(hrrr["u10"], hrrr["v10"], crs_of(hrrr))
    hrrr = hrrr.assign(u10=u, v10=v)
    fine = xsm.regrid(hrrr, IDAHO).load()
    driver = xsm.regrid(fine, IDAHO_DRIVER, method="conservative")
    starts = pd.date_range("2018-07-23T00", "2018-07-23T11", freq="h").to_numpy()
    settings = {
        "train": (("2018-07-22T00", "2018-07-23T00"),),
        "validation": (),  # there is no other day
        "test": (("2018-07-23T00", "2018-07-23T17"),),
        "missing": ("z", "q", "u", "v", "t"),
    }
    later = driver.sel(time=slice("2018-07-23T01", None))
    others = {
        "driver of the hour": xsm.regrid(later, IDAHO, method="bilinear"),
        "driver of the hour on terrain": xsm.adjust_to_terrain(later, fine[["orog", "lsm"]], radiation_hours=0),
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


# ---------------------------------------------------------------------------------------------------------------- models


def models(region: Region, lengths: list[int]):
    """Name and model, one after the other; each is given to `finetune` with the same periods and the same seed."""
    base = xsm.load("twin-ea-small")
    tune = lambda model=base, **changes: xsm.finetune(region.tree, model, **region.settings, **changes)
    still = xsm.Stage(kind="regional", updates=1, batch=1, peak=1e-12, floor=0.0)
    yield "moved, not trained", tune(stages=(still,))
    for epochs in lengths:
        plain = tune(epochs=epochs)
        yield f"{epochs} epochs", plain
        yield f"{epochs} epochs, rank 8", tune(epochs=epochs, rank=8)
        yield f"{epochs} epochs, a third of the rates", tune(stages=stages_of(plain, 1 / 3))
        torch.manual_seed(0)
        fresh = type(base).from_dict(base.to_dict())
        yield f"{epochs} epochs from random weights", tune(fresh, stages=stages_of(plain, 3.0))  # rates of training from scratch


def stages_of(model, factor: float) -> tuple[xsm.Stage, ...]:
    """The stages that a model went through, with other learning rates."""
    names = [each.name for each in fields(xsm.Stage)]
    rows = [xsm.Stage(**{name: stage[name] for name in names}) for stage in model.about["training"]]
    return tuple(replace(stage, peak=factor * stage.peak) for stage in rows)


# ---------------------------------------------------------------------------------------------------------------- scores


def at_valid_times(ds: xr.Dataset, starts: np.ndarray, hours: int) -> xr.Dataset:
    """Fields at valid times as if they were forecasts."""
    leads = np.arange(1, hours + 1)
    valid = xr.DataArray(starts[:, None] + leads * np.timedelta64(1, "h"), dims=("reference_time", "lead_time"))
    lead = ("lead_time", leads, {"standard_name": "forecast_period", "units": "hours"})
    return xsm.to_forecast(ds.sel(time=valid).drop_vars("time").assign_coords(reference_time=starts, lead_time=lead))


def forecasts(region: Region, tuned: dict, hours: int) -> dict[str, xr.Dataset]:
    """All systems by name."""
    starts, truth = region.starts[hours], region.truth
    found = {
        PERSISTENCE: xsm.persistence_forecast(truth, starts, hours),
        DAILY: xsm.persistence_forecast(truth, starts, hours, period=24),
    }
    found |= {name: at_valid_times(ds, starts, hours) for name, ds in region.others.items()}
    return found | {name: xsm.hindcast(region.tree, starts, hours, model=model) for name, model in tuned.items()}


def tables(region: Region, systems: dict[str, xr.Dataset]) -> str:
    """Markdown: RMSE over all lead times, and its difference to both kinds of persistence with 95 % intervals."""
    score = lambda against: xsm.score(
        systems, region.truth, by=("variable",), variables=region.variables, skill_against=against, grid="truth"
    )
    scores = {against: score(against) for against in (PERSISTENCE, DAILY)}
    differences = [table(region, sc, interval, f" - {against}") for against, sc in scores.items()]
    return "\n\n".join([table(region, scores[DAILY], rmse), *differences])


def table(region: Region, sc: xr.Dataset, cell, title: str = "") -> str:
    """One of them: a row per system, a column per variable."""
    rows = [[f"RMSE{title}", *heads(region.variables)]]
    for system in sc["model"].values:
        cells = [cell(sc[name].sel(model=system) * unit(name)[1]) for name in region.variables]
        rows.append([str(system), *cells])
    return markdown(rows)


def rmse(sc: xr.DataArray) -> str:
    """Of one system and variable."""
    return f"{float(sc.sel(metric='rmse')):.3g}"


def interval(sc: xr.DataArray) -> str:
    """Difference and its bounds."""
    low, high = (float(sc.sel(metric=f"rmse_difference_{end}")) for end in ("low", "high"))
    return f"{float(sc.sel(metric='rmse_difference')):+.2g} ({low:+.2g} to {high:+.2g})"


# --------------------------------------------------------------------------------------------------------------- picture


def draw(region: Region, systems: dict[str, xr.Dataset], model: str, lead: int, path: Path) -> None:
    """t2m of the first start: truth, what the driver knows, the forecast, its error and that of 24 h persistence."""
    from matplotlib.figure import Figure

    pick = lambda ds: ds["t2m"].isel(reference_time=-1).sel(lead_time=lead)
    forecast, daily = pick(systems[model]), pick(systems[DAILY])
    when = forecast["valid_time"].values
    truth = region.truth["t2m"].sel(time=when).drop_vars("time")
    panels = {"HRRR": truth, "driver": pick(systems["driver of the hour"]), model: forecast}
    errors = {f"{model} - HRRR": forecast - truth, f"{DAILY} - HRRR": daily - truth}
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    axes = figure.subplots(1, 5, sharex=True, sharey=True)
    low, high = (float(truth.quantile(q)) for q in (0.01, 0.99))
    bound = float(abs(xr.concat(errors.values(), "system")).quantile(0.99))
    for ax, (title, field) in zip(axes, {**panels, **errors}.items(), strict=True):
        kind = {"vmin": -bound, "vmax": bound, "cmap": "RdBu_r"} if title in errors else {"vmin": low, "vmax": high}
        shown = ax.pcolormesh(field["longitude"], field["latitude"], field, **{"cmap": "viridis", **kind})
        ax.set(title=title, aspect=1 / np.cos(np.deg2rad(43)), xticks=[243.1, 243.5, 243.9])
        if title in (model, list(errors)[-1]):
            figure.colorbar(shown, ax=axes[:3] if title == model else axes[3:], label="K", shrink=0.8)
    figure.suptitle(f"{region.name}, temperature at 2 m, {str(when)[:13]} UTC, {lead} h after the start")
    figure.savefig(path, dpi=70)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", choices=("idaho", "davos"))
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--figures", type=Path)
    options = parser.parse_args()
    say = lambda text: (sys.stdout.write(f"{text}\n"), sys.stdout.flush())
    for read in (idaho, davos) if options.only is None else ({"idaho": idaho, "davos": davos}[options.only],):
        begun = time.process_time()
        region, tuned = read(options.data), {}
        for name, model in models(region, options.epochs):
            tuned[name] = model
            ways = [f"{s['kind']} best after {s['update']:.0f} of {s['updates']} x {s['batch']}" for s in model.about["training"]]
            say(f"{name}: {'; '.join(ways)} ({time.process_time() - begun:.0f} s of CPU time so far)")
        taken, count = model.about["finetuned"]["parameters"]
        say(f"\n{taken} of {count} parameters are taken over; periods {region.settings}")
        for hours, starts in region.starts.items():
            systems = forecasts(region, tuned, hours)
            say(f"\n{region.name}, {hours} h from {len(starts)} starts, {starts[0]} to {starts[-1]}\n\n{tables(region, systems)}")
        if options.figures and region.others:
            draw(region, systems, f"{options.epochs[-1]} epochs", hours - 2, options.figures / "real_regions.png")


if __name__ == "__main__":
    main()
