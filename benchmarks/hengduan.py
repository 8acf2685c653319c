"""Hourly maps of 0.05 degrees: on held-out world B against simpler ways to them, and what can be checked on a real state.

    python benchmarks/hengduan.py world NATURE RELIEF --model pretrained/hengduan-0p05 --runs runs/hengduan --figures docs
    python benchmarks/hengduan.py real [FILE] --model pretrained/hengduan-0p05

NATURE holds the packed twin world A, RELIEF heights of the earth (docs/data.md). World B is made from both, as for training. The
simpler ways are persistence, and the forecast of ``twin-ea-small`` interpolated, or carried to the relief. FILE is a global
state; by default the GFS analysis in the package.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import xarray as xr
from common import HOUR, draw_fields, heads, markdown, pyplot, saved, starts_within, unit, within

import xscalemixer as xsm
from xscalemixer.conform import conform
from xscalemixer.grids import cell_steps, grid_of
from xscalemixer.physics import terrain
from xscalemixer.physics.pressure import GRAVITY
from xscalemixer.physics.solar import hourly_insolation
from xscalemixer.regridding import regrid
from xscalemixer.variables import Schema
from xscalemixer.verification import patch_seams, power_spectrum

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_hengduan import GRID, read_world_b
from train_twin_ea import TEST, read_twin_world

HOURS = 48
VARIABLES = ["t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd"]
COARSE = "twin-ea-small"
LEVELS = (300, 400, 500, 600, 700, 850, 925, 1000)


# -------------------------------------------------------------------------------------------------------------- world B


def world(options: argparse.Namespace) -> None:
    """Scores, spectra, seams and pictures on the held-out blocks."""
    tree, coarse = read_world_b(options.nature, options.relief), read_twin_world(options.nature)
    init = starts_within(tree["global"]["time"].values, TEST, HOURS)
    fine = tree["regional"].to_dataset()
    day_before = tuple((str(np.datetime64(start) - 1), end) for start, end in TEST)  # for 24 h persistence
    truth = within(fine[VARIABLES], day_before).load()
    systems = forecasts(tree, coarse, truth, fine["orog"].load(), init, options)
    store = options.runs / "scores.zarr"
    by_lead = xsm.score(
        systems, truth, variables=VARIABLES, metrics=["rmse", "bias"], to=store, overwrite=store.exists(), memory="2 GiB"
    )
    text = f"World B (twin experiment): {init.size} starts in the test blocks.\n\n{table(by_lead)}\n\n{gains(store, by_lead)}"
    text += f"\n\n{seams(systems[options.model.name], truth)}\n"
    (options.runs / "tables.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    if options.figures:
        draw_curves(by_lead, options.figures)
        draw_spectra(systems, truth, options.figures)
        draw_maps(systems, truth, init[0], options.figures)


def forecasts(
    tree: xr.DataTree,
    coarse: xr.DataTree,
    truth: xr.Dataset,
    heights: xr.DataArray,
    init: np.ndarray,
    options: argparse.Namespace,
) -> dict[str, xr.Dataset]:
    """Of the model from both kinds of starts, and of the simpler ways; those of networks are kept on disk."""
    options.runs.mkdir(parents=True, exist_ok=True)
    driver, name = xr.DataTree.from_dict({"/global": tree["global"].to_dataset()}), options.model.name
    kept = {}
    for label, data, model in ((name, tree, options.model), (f"{name}, cold", driver, options.model), (COARSE, coarse, COARSE)):
        to = options.runs / f"{label.replace(', ', '-')}.zarr"
        kept[label] = xsm.hindcast(data, init, HOURS, model=model, to=to, resume=to.exists())
    below = kept.pop(COARSE).chunk(reference_time=1, lead_time=12)
    return {
        **kept,
        f"{COARSE}, carried": below.scalemixer.terrain(heights)[VARIABLES],
        f"{COARSE}, interpolated": regrid(below[VARIABLES], GRID, method="bilinear"),
        "24 h persistence": xsm.persistence_forecast(truth, init, HOURS, period=24),
        "persistence": xsm.persistence_forecast(truth, init, HOURS),
    }


def table(by_lead: xr.Dataset) -> str:
    """Markdown: RMSE of each system, mean over the lead times and at some of them."""
    parts = []
    for label, pick in {"mean of 1-48 h": None, "6 h": 6, "24 h": 24, "48 h": 48}.items():
        rows = [[f"RMSE, {label}", *heads(VARIABLES)]]
        for model in by_lead["model"].values.tolist():
            one = by_lead.sel(metric="rmse", model=model)
            one = one.mean("lead_time") if pick is None else one.sel(lead_time=pick)
            rows.append([model, *(f"{float(one[v]) * unit(v)[1]:.3g}" for v in VARIABLES)])
        parts.append(markdown(rows))
    return "\n\n".join(parts)


def gains(store: Path, by_lead: xr.Dataset) -> str:
    """Markdown: what the model saves of the RMSE over all hours of each simpler way, in percent, with 95 % intervals."""
    first, *others = by_lead["model"].values.tolist()
    against = xsm.rescore(store, skill_against=first, by=("variable",), metrics=["rmse"])
    rows = [[f"RMSE that {first} saves, %", *VARIABLES]]
    for model in others:
        values = (saved(against[v].sel(model=model)) for v in VARIABLES)
        rows.append([model, *(f"{value:.0f} [{low:.0f}, {high:.0f}]" for value, low, high in values)])
    return markdown(rows)


def seams(fc: xr.Dataset, truth: xr.Dataset) -> str:
    """Markdown: how rough errors are by the place within a patch, over the mean of all places, along both axes.

    Errors, since the fields themselves have the steps of the relief, whose cells fit into a patch 12 times.
    """
    some = fc[VARIABLES].isel(lead_time=slice(5, None, 6)).load()
    errors = some - truth[VARIABLES].sel(time=some["valid_time"]).drop_vars("time")
    rough = patch_seams(errors, 20)
    rows = [["roughness of errors (along latitude, longitude)", *VARIABLES]]
    for name, part in (
        ("borders of patches", rough.sel(place=0)),
        ("other places, greatest", rough.drop_sel(place=0).max("place")),
    ):
        rows.append([name, *("{:.2f}, {:.2f}".format(*part[v].values) for v in VARIABLES)])
    return markdown(rows)


# ------------------------------------------------------------------------------------------------------------- pictures


def draw_curves(by_lead: xr.Dataset, folder: Path) -> None:
    """RMSE by lead time."""
    plt = pyplot()
    figure, panels = plt.subplots(2, 4, figsize=(16, 6.4), layout="constrained")
    for panel, name in zip(panels.flat, VARIABLES, strict=False):
        for model in by_lead["model"].values.tolist():
            line = by_lead[name].sel(metric="rmse", model=model) * unit(name)[1]
            panel.plot(by_lead["lead_time"], line, label=model, lw=2 if "," not in model and "persistence" not in model else 1)
        panel.set(title=f"{name} ({unit(name)[0]})", xlabel="lead time (h)", xticks=range(0, 49, 12))
    panels[1, 3].axis("off")
    panels[1, 3].legend(*panels[0, 0].get_legend_handles_labels(), loc="center", frameon=False)
    figure.suptitle("RMSE at 0.05 degrees, held-out world B (twin experiment)")
    figure.savefig(folder / "hengduan_curves.png", dpi=70)
    plt.close(figure)


def draw_spectra(systems: dict[str, xr.Dataset], truth: xr.Dataset, folder: Path) -> None:
    """Power of t2m and of the wind by wavelength, mean over starts and leads of 24 hours, down to the grid scale."""
    plt = pyplot()
    shown = {name: fc[["t2m", "u10", "v10"]].isel(lead_time=slice(2, 24, 3)).load() for name, fc in systems.items()}
    spectra = {"truth": truth[["t2m", "u10", "v10"]], **{name: fc for name, fc in shown.items() if "persistence" not in name}}
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, ds in spectra.items():
        power = power_spectrum(ds)
        power = power.isel(wavenumber=power["complete"].values)
        for panel, field in zip(panels, (power["t2m"], power["u10"] + power["v10"]), strict=True):
            line = field.mean([dim for dim in field.dims if dim != "wavenumber"])
            panel.loglog(power["wavelength"], line, color="k" if name == "truth" else None, label=name)
    for panel, title in zip(panels, ("t2m (K2)", "wind (m2 s-2)"), strict=True):
        panel.set(xlabel="wavelength (km)", title=title)
        panel.invert_xaxis()
    panels[0].legend(fontsize=7, frameon=False)
    figure.suptitle("Power spectra at 0.05 degrees, held-out world B (twin experiment)")
    figure.savefig(folder / "hengduan_spectra.png", dpi=70)
    plt.close(figure)


def draw_maps(systems: dict[str, xr.Dataset], truth: xr.Dataset, init: np.datetime64, folder: Path, lead: int = 24) -> None:
    """One hour of t2m, wind speed and radiation: the truth, the model and the simpler ways."""
    shown = {"truth": truth.sel(time=init + lead * HOUR)}
    shown |= {n: fc.sel(reference_time=init, lead_time=lead).load() for n, fc in systems.items() if "persistence" not in n}
    title = f"{str(init)[:13]} UTC + {lead} h, held-out world B (twin experiment)"
    draw_fields(shown, title, folder / "hengduan_maps.png")


# ---------------------------------------------------------------------------------------------------------- a real state


def real(options: argparse.Namespace) -> None:
    """A cold start from a real state, against what follows from that state and from the sun."""
    state = xsm.open(str(options.file)) if options.file else xsm.sample()
    fc = xsm.forecast(state, HOURS, model=options.model).isel(reference_time=0).load()
    column = free_air(state, fc["orog"])
    first = fc.sel(lead_time=1)
    lines = [f"{options.model.name} from {str(fc['reference_time'].values)[:16]} UTC"]
    lines += [f"lapse of t2m, {name}: {lapse(ds, fc['orog']):.2f} K/km" for name, ds in _times_of_day(fc)]
    lines.append(f"lapse of the free air of the file at the same heights: {lapse(column['t'], fc['orog']):.2f} K/km")
    difference = (first["sp"] - column["p"]) / 100
    lines.append(f"sp after 1 h less the file's column at that height: {float(difference.mean()):+.1f} hPa, "
                 f"std {float(difference.std()):.1f}")  # fmt: skip
    lines += [sunshine(fc), foehn(fc)]
    sys.stdout.write("\n".join(lines) + "\n")


def free_air(state: xr.Dataset, orog: xr.DataArray) -> xr.Dataset:
    """Temperature (K) and pressure (Pa) of the last state of a file at the heights of a relief, (log-)linear in height."""
    canonical, report = conform(state, Schema.of("z", "t", levels=LEVELS))
    report.raise_errors()
    above = regrid(canonical.isel(time=-1), grid_of(orog.to_dataset()), method="bilinear").sortby("level", ascending=False).load()
    height, target = above["z"].values / GRAVITY, orog.values
    below = np.clip((height < target).sum(0) - 1, 0, len(LEVELS) - 2)[None]  # the level under the ground, or the lowest
    pick = lambda values, step: np.take_along_axis(values, below + step, 0)[0]
    share = (target - pick(height, 0)) / (pick(height, 1) - pick(height, 0))
    along = lambda values: pick(values, 0) + share * (pick(values, 1) - pick(values, 0))
    logarithm = np.broadcast_to(np.log(100.0 * above["level"].values)[:, None, None], height.shape)
    return xr.Dataset({"t": (orog.dims, along(above["t"].values)), "p": (orog.dims, np.exp(along(logarithm)))})


def _times_of_day(fc: xr.Dataset) -> list[tuple[str, xr.DataArray]]:
    """Temperature in the afternoon and before sunrise, local time of the middle of the box, second day."""
    local = (fc["valid_time"].dt.hour + float(fc["longitude"].mean()) / 15) % 24
    pick = lambda hour: int(np.flatnonzero((np.round(local) % 24 == hour) & (fc["lead_time"] > 12))[0])
    return [(name, fc["t2m"].isel(lead_time=pick(hour))) for name, hour in (("14 h local", 14), ("5 h local", 5))]


def lapse(t2m: xr.DataArray, height: xr.DataArray) -> float:
    """Fall of temperature with height in K per km, beside linear changes with latitude and longitude."""
    lat, lon = np.meshgrid(height["latitude"], height["longitude"], indexing="ij")
    columns = np.stack([height.values.ravel() / 1000, lat.ravel(), lon.ravel(), np.ones(lat.size)], 1)
    return -float(np.linalg.lstsq(columns, t2m.values.ravel(), rcond=None)[0][0])


def sunshine(fc: xr.Dataset) -> str:
    """Whether it is dark when the sun is down, and light everywhere an hour after it came up; and the clearest sky."""
    sun = hourly_insolation(fc["valid_time"].values, fc["latitude"].values[:, None], fc["longitude"].values[None, :])
    light = fc["ssrd"].values
    dark, bright = light[sun == 0].max(initial=0.0), (light[sun > 100] > 0).mean()
    first = lambda column: int(np.flatnonzero((sun[12:, 120, column] > 0) & (light[12:, 120, column] > 0))[0])
    share = np.quantile(light[sun > 300] / sun[sun > 300], 0.999)
    return (
        f"ssrd: at most {dark:.1f} W/m2 in the dark, above zero in {100 * bright:.1f} % of cells with 100 W/m2 above the air, "
        f"99.9 % quantile {share:.2f} of the insolation; first light in the west {first(0) - first(-1)} h after the east"
    )


def foehn(fc: xr.Dataset) -> str:
    """Temperature in the lee less that on the windward side at equal height, where at least 3 m/s blow across slopes of 5 %."""
    slope = terrain.gradient(fc["orog"].values, cell_steps(grid_of(fc)))
    wind = np.stack([fc["u10"].values, fc["v10"].values])
    up = (wind * slope[:, None]).sum(0)  # m/s upward along the ground
    across = np.abs(up) > 0.05 * 3.0
    lat, lon = np.meshgrid(fc["latitude"], fc["longitude"], indexing="ij")
    height = fc["orog"].values / 1000
    columns = np.stack([height.ravel(), height.ravel() ** 2, lat.ravel(), lon.ravel(), np.ones(lat.size)], 1)
    flat = fc["t2m"].values.reshape(HOURS, -1).T
    left = (flat - columns @ np.linalg.lstsq(columns, flat, rcond=None)[0]).T.reshape(fc["t2m"].shape)
    lee, windward = left[across & (up < 0)], left[across & (up > 0)]
    return f"lee less windward at equal height: {lee.mean() - windward.mean():+.2f} K ({lee.size} and {windward.size} values)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    on_world = commands.add_parser("world")
    on_world.add_argument("nature", type=Path)
    on_world.add_argument("relief", type=Path)
    on_world.add_argument("--runs", type=Path, required=True, help="folder for forecasts and scores")
    on_world.add_argument("--figures", type=Path)
    on_world.set_defaults(run=world)
    on_file = commands.add_parser("real")
    on_file.add_argument("file", type=Path, nargs="?")
    on_file.set_defaults(run=real)
    for command in (on_world, on_file):
        command.add_argument("--model", type=Path, required=True)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
