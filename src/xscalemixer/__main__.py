"""Command line: ``python -m xscalemixer demo | check FILE | forecast FILE | train CONFIG | finetune | models``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import xarray as xr

import xscalemixer as xsm

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status (1: the input cannot be used)."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("xscalemixer").setLevel(logging.INFO if _is_first() else logging.ERROR)
    try:
        return options.run(options)
    except xsm.InputError as error:
        if not _is_first():
            time.sleep(3)  # torchrun ends all processes once one has ended: where all fail, the first one tells
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; a forecast that was streamed goes on with --resume, a training by the same command\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xscalemixer", description=xsm.__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="command")
    demo = commands.add_parser("demo", help="48-hour forecast from the sample that comes with the package")
    demo.add_argument("--output", type=Path, default=Path("output"), help="folder for forecast.nc and forecast.png")
    demo.set_defaults(run=_demo)
    check = commands.add_parser("check", help="what fits, what is converted, what is missing")
    forecast = commands.add_parser("forecast", help="forecast from a GRIB, NetCDF or Zarr file")
    for command in (check, forecast):
        command.add_argument("file")
        command.add_argument("--model", help="name or folder; see the command models")
        command.add_argument("--regional", metavar="FILE", help="hourly regional analyses for a warm start")
        command.add_argument("--init-time", help="start, e.g. 2011-01-15T12; default: the last time in the file")
        command.add_argument("--rh-phase", choices=("water", "mixed", "ice"), help="what relative humidity refers to")
    check.set_defaults(run=_check)
    forecast.add_argument("--hours", type=int, default=48)
    forecast.add_argument("--to", type=Path, default=Path("forecast.zarr"), help="Zarr store to write")
    forecast.add_argument("--resume", action="store_true", help="go on with an unfinished store")
    forecast.add_argument("--overwrite", action="store_true", help="replace an existing store")
    forecast.add_argument("--device", help="cuda, mps or cpu; default: the fastest there is")
    forecast.add_argument("--diagnose", action="store_true", help="measure how far each network moves the other")
    forecast.set_defaults(run=_forecast)
    _add_training(commands)
    commands.add_parser("models", help="models by name").set_defaults(run=_models)
    return parser


def _add_training(commands: Any) -> None:
    train = commands.add_parser("train", help="train a model from scratch; torchrun -m xscalemixer train ... for many devices")
    train.add_argument("config", type=Path, help='JSON of settings, and "data" if no option names them')
    train.add_argument("--output", type=Path, help="model folder to write; default: the name in the config")
    train.set_defaults(run=_train)
    finetune = commands.add_parser("finetune", help="adapt a trained model to another region, driver or set of variables")
    finetune.add_argument("output", type=Path, help="model folder to write")
    finetune.add_argument("--model", help="name or folder of the model to start from; see the command models")
    finetune.add_argument("--epochs", type=float, default=5, help="how often each stage sees each sample (5)")
    finetune.add_argument("--missing", nargs="+", default=(), metavar="NAME", help="variables or levels to do without")
    finetune.add_argument("--statistics", default="new", choices=("new", "keep"), help="of the training periods, or the model's")
    finetune.add_argument("--rank", type=int, help="train low-rank adapters of this rank instead of whole layers")
    for name in ("train", "validation", "test"):
        finetune.add_argument(
            f"--{name}", nargs=2, action="append", metavar=("START", "END"), help=f"a {name} period; repeatable"
        )
    finetune.set_defaults(run=_finetune)
    for command in (train, finetune):
        command.add_argument("--global", dest="outer", nargs="+", metavar="FILE", help="driver, every 1, 2, 3 or 6 hours: files")
        command.add_argument("--regional", nargs="+", metavar="FILE", help="hourly fields of the region: files or patterns")
        command.add_argument("--data", metavar="TREE", help="both in one Zarr store, groups /global and /regional")
        command.add_argument("--overwrite", action="store_true", help="replace an existing model folder")
        command.add_argument("--runs", type=Path, help="folder of stages and checkpoints; default: runs/NAME")
        command.add_argument("--device", choices=("cuda", "cpu"), help="default: CUDA devices if there are any")
        command.add_argument(
            "--sharded", action="store_true", help="spread the parameters over the processes of torchrun (FSDP2)"
        )
        command.add_argument("--memory", type=float, default=4.0, help="GiB of fields to hold in memory (4)")
        command.add_argument(
            "--skip", type=float, default=0.01, help="share of the times that may be left out for bad values (0.01)"
        )
        command.add_argument("--workers", type=int, default=2, help="threads that read samples (2)")


def _say(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _demo(options: argparse.Namespace) -> int:
    begun = time.perf_counter()
    source = xsm.sample()
    _say(source.scalemixer.check())
    fc = source.scalemixer.forecast(hours=48)
    options.output.mkdir(parents=True, exist_ok=True)
    file, picture = options.output / "forecast.nc", options.output / "forecast.png"
    fc.to_netcdf(file)
    xsm.plot_overview(fc, picture)
    _say(f"\n{fc.attrs['title']}, valid {_span(fc)}")
    for name in ("t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd"):
        low, mean, high = (float(getattr(fc[name], how)()) for how in ("min", "mean", "max"))
        _say(f"  {name:5} {low:12.5g} .. {high:12.5g}  mean {mean:12.5g} {fc[name].attrs['units']}")
    _say(f"\nforecast  {file}\nmap       {picture}\n{time.perf_counter() - begun:.0f} s")
    return 0


def _check(options: argparse.Namespace) -> int:
    report = xsm.check(xsm.open(options.file), **_inputs(options))
    _say(report)
    return 0 if report.ok else 1


def _forecast(options: argparse.Namespace) -> int:
    fc = xsm.forecast(
        xsm.open(options.file),
        options.hours,
        to=options.to,
        resume=options.resume,
        overwrite=options.overwrite,
        device=options.device,
        diagnose=options.diagnose,
        **_inputs(options),
    )
    _say(f"{fc.attrs['title']}, valid {_span(fc)}: {options.to}")
    if options.diagnose:
        _say(f"coupling response: {fc.attrs['coupling_response']}")
    return 0


def _train(options: argparse.Namespace) -> int:
    from xscalemixer.training.config import config_of

    settings = _settings(options.config)
    places = settings.pop("data", None)
    config = config_of(settings)
    output = options.output or Path(config.name)
    _require_place(output, options)
    data = _hours(options, places) if isinstance(config, xsm.Met2NetTrainConfig) else _tree(options, places)
    _save(xsm.train(config, data, **_way(options, config.name)), output, options)
    return 0


def _finetune(options: argparse.Namespace) -> int:
    _require_place(options.output, options)
    names = ("epochs", "missing", "statistics", "rank")
    periods = {
        name: tuple(map(tuple, getattr(options, name))) for name in ("train", "validation", "test") if getattr(options, name)
    }
    settings = {name: getattr(options, name) for name in names}
    base = xsm.load(options.model) if options.model else xsm.load()
    data = _hours(options, None) if [each.part for each in base.inputs] == ["inner"] else _tree(options, None)
    model = xsm.finetune(data, base, **settings, **periods, **_way(options, options.output.name))
    _save(model, options.output, options)
    return 0


def _require_place(output: Path, options: argparse.Namespace) -> None:
    if output.exists() and not options.overwrite:
        raise xsm.CheckpointError(f"{output} exists", ["choose another folder, or pass --overwrite to replace it in the end"])


def _way(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Where and how a training is done."""
    folder = options.runs or Path("runs") / name
    return {"folder": folder, **{key: getattr(options, key) for key in ("device", "sharded", "memory", "skip", "workers")}}


def _save(model: Any, output: Path, options: argparse.Namespace) -> None:
    if _is_first():
        model.save(output, overwrite=options.overwrite)
        _say(f"{model.name}: {output}")


def _settings(path: Path) -> dict:
    """Read a JSON object."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise xsm.InputError(f"{path} cannot be read", [str(error)]) from error
    if not isinstance(settings, dict):
        raise xsm.InputError(f"{path} cannot be read", [f"it holds a {type(settings).__name__}; needed settings by name"])
    return settings


def _tree(options: argparse.Namespace, places: Any) -> xr.DataTree:
    """Training data from the command line, or from where the config says they are."""
    outer, inner, store, given = _places(options, places, "data")
    if isinstance(store, str) and not outer and not inner:
        return _open_tree(store)
    if outer and inner and not store:
        return xr.DataTree.from_dict({"/global": xsm.open(outer), "/regional": xsm.open(inner)})
    raise xsm.InputError(
        "the data of a training must be named", [f"found {given}; needed --global and --regional, or --data alone"]
    )


def _hours(options: argparse.Namespace, places: Any) -> xr.Dataset:
    """Hourly fields of a region alone, from the same places."""
    outer, inner, store, given = _places(options, places, "regional")
    if inner and not outer and not store:
        return xsm.open(inner)
    raise xsm.InputError(
        "the data of a model of a region alone must be named", [f"found {given}; needed --regional alone: it has no driver"]
    )


def _places(options: argparse.Namespace, places: Any, plain: str) -> tuple[Any, Any, Any, Any]:
    """Global files, regional files, the store of both, and all that was given; a place without a name is ``plain``."""
    given: Any = {"global": options.outer, "regional": options.regional, "data": options.data}
    if not any(given.values()) and places is not None:
        given = places if isinstance(places, dict) else {plain: places}
    return given.get("global"), given.get("regional"), given.get("data"), given


def _open_tree(store: str) -> xr.DataTree:
    try:
        return xr.open_datatree(store, engine="zarr", chunks={})
    except (OSError, ValueError) as error:
        raise xsm.InputError(f"{store} cannot be opened", [f"needed a Zarr store with /global and /regional: {error}"]) from error


def _is_first() -> bool:
    """True in the process that writes and talks; torchrun numbers the others."""
    return os.environ.get("RANK", "0") == "0"


def _models(options: argparse.Namespace) -> int:
    for name, headline in xsm.models().items():
        _say(f"{name:24} {headline}")
    return 0


def _inputs(options: argparse.Namespace) -> dict:
    regional = None if options.regional is None else xsm.open(options.regional)
    return {"model": options.model, "regional": regional, "init_time": options.init_time, "rh_phase": options.rh_phase}


def _span(fc) -> str:
    first, last = (str(fc["valid_time"].values[0, i])[:16] for i in (0, -1))
    return f"{first} to {last} UTC"


if __name__ == "__main__":
    sys.exit(main())
