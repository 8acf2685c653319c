"""Model folders: weights, description, card and checksums; found by name, checked at every load."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import os
import shutil
import tempfile
import threading
from importlib.resources import files
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from xscalemixer.downscaler import Downscaler
from xscalemixer.errors import CheckpointError
from xscalemixer.forecaster import Forecaster
from xscalemixer.model import Model
from xscalemixer.regional import RegionalForecaster

__all__ = ["DEFAULT", "card", "fetch", "load", "models", "save"]

DEFAULT = "hengduan-0p05"
FILES = ("model.json", "weights.safetensors", "CARD.md")
CHECKSUMS = "SHA256SUMS"  # the format of coreutils' sha256sum
KINDS: dict[str, type[Model]] = {each.kind: each for each in (Forecaster, RegionalForecaster, Downscaler)}
_loaded: dict[tuple[Path, str], Model] = {}
_lock = threading.Lock()


def models() -> dict[str, str]:
    """Names of the models that can be loaded, each with the first line of its card.

    Those that can be downloaded are among them where ``XSCALEMIXER_BASE_URL`` is set, see `fetch`.
    """
    found: dict[str, str] = {}
    for root in _roots():
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            if (folder / CHECKSUMS).is_file():
                found.setdefault(folder.name, _headline(folder))
    for name in _registry() if os.environ.get("XSCALEMIXER_BASE_URL") else ():
        found.setdefault(name, "to be downloaded on first use")
    return found


def card(name: str) -> str:
    """The card of a model: data, period, scores, licence, limits."""
    return (_folder(name) / "CARD.md").read_text(encoding="utf-8")


def load(name: str | os.PathLike = DEFAULT) -> Model:
    """Load a model by name or from its folder.

    Parameters
    ----------
    name : str or path
        One of `models`, or a folder written by `Forecaster.save`.

    Returns
    -------
    Forecaster, RegionalForecaster or Downscaler
        On the CPU, in evaluation mode. Each call gives its own handle; the same files are read once per process.

    Raises
    ------
    CheckpointError
        If the folder is incomplete, a checksum differs, or weights and description do not fit.
    """
    folder = _folder(name)
    sums = verify(folder)
    key = folder.resolve(), sums["weights.safetensors"]
    with _lock:
        if key not in _loaded:
            _loaded[key] = _read(folder, sums["weights.safetensors"])
        return copy.deepcopy(_loaded[key])


def save(model: Model, path: str | os.PathLike, *, card: str = "", overwrite: bool = False, half: bool = False) -> None:
    """Write a model folder; complete or not at all.

    Parameters
    ----------
    model : Model
        Its ``sha256`` becomes that of the file, unless ``half``.
    path : path
        The folder; its last part becomes the name of the saved model.
    card : str
        Markdown; by default it says that nobody has described the model.
    overwrite : bool
        Replace an existing folder.
    half : bool
        Store the parameters in half precision (static fields stay single); loading gives single precision again.

    Raises
    ------
    CheckpointError
        If the folder exists and ``overwrite`` is not set.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target} was not written", ["it exists; choose another name or pass overwrite=True"])
    if target.exists() and not (target / CHECKSUMS).is_file():
        raise CheckpointError(f"{target} was not replaced", [f"it is not a model folder (no {CHECKSUMS}); choose another name"])
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        weights = {key: value.contiguous().cpu() for key, value in model.modules.state_dict().items()}
        if half:
            weights |= {key: weights[key].half() for key, _ in model.modules.named_parameters()}
        safetensors.torch.save_file(weights, draft / "weights.safetensors")
        (draft / "model.json").write_text(json.dumps({**model.to_dict(), "name": target.name}, indent=1) + "\n", encoding="utf-8")
        (draft / "CARD.md").write_text(card or _plain_card(model), encoding="utf-8")
        (draft / CHECKSUMS).write_text("".join(f"{sha256(draft / name)}  {name}\n" for name in FILES), encoding="utf-8")
        digest = sha256(draft / "weights.safetensors")
        draft.chmod(0o755)  # temporary folders and safetensors files are private
        (draft / "weights.safetensors").chmod(0o644)
        if target.exists():
            old = target.replace(draft.with_name(draft.name + "-old"))  # kept until the new one is in place
            try:
                draft.replace(target)
            finally:
                if not target.exists():
                    old.replace(target)
            shutil.rmtree(old)
        else:
            draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    if not half:  # else the model in hand has other weights than the file
        model.sha256 = digest


def verify(folder: Path) -> dict[str, str]:
    """Checksums of a model folder, compared with its files.

    Raises
    ------
    CheckpointError
        Listing every file that is missing or differs.
    """
    try:
        rows = [line.split(maxsplit=1) for line in (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines() if line]
    except OSError as error:
        raise CheckpointError(f"{folder} is not a model folder", [f"cannot read {CHECKSUMS}: {error}"]) from error
    sums = {name.strip(): digest for digest, name in (row for row in rows if len(row) == 2)}
    problems = [f"{CHECKSUMS} has no line for {name}" for name in FILES if name not in sums]
    for name in (name for name in FILES if name in sums):
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif (found := sha256(folder / name)) != sums[name]:
            problems.append(f"{name} has sha256 {found[:12]}..., expected {sums[name][:12]}...; fetch or save the model again")
    if problems:
        raise CheckpointError(f"the model in {folder} was not loaded", problems)
    return sums


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path, digest: str) -> Model:
    """Description and weights, which must match tensor by tensor."""
    try:
        description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"the model in {folder} was not loaded", [f"model.json is not JSON: {error}"]) from error
    description = {"kind": Forecaster.kind, **description}  # the only kind there was before descriptions told it
    if description["kind"] not in KINDS:
        found = f"kind {description['kind']!r}; this version of xscalemixer has {', '.join(map(repr, KINDS))}"
        raise CheckpointError(f"the model in {folder} was not loaded", [f"{found}. Update xscalemixer, or load another model"])
    model = KINDS[description["kind"]].from_dict(description)
    model.sha256 = digest
    try:
        weights = safetensors.torch.load_file(folder / "weights.safetensors")
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"the model in {folder} was not loaded", [f"weights.safetensors: {error}"]) from error
    check_fit(model.modules.state_dict(), weights, f"the model in {folder} was not loaded")
    model.modules.load_state_dict(weights)
    return model


def check_fit(needed: dict[str, torch.Tensor], found: dict[str, torch.Tensor], task: str) -> None:
    """Compare names, shapes and values of two sets of tensors.

    Raises
    ------
    CheckpointError
        With the share of tensors and parameters that fit, and the first ten that do not.
    """
    problems = [f"missing tensor {key}" for key in sorted(set(needed) - set(found))]
    problems += [f"unexpected tensor {key}" for key in sorted(set(found) - set(needed))]
    shared = sorted(set(needed) & set(found))
    wrong = [key for key in shared if needed[key].shape != found[key].shape]
    problems += [f"{key} has shape {tuple(found[key].shape)}, needed {tuple(needed[key].shape)}" for key in wrong]
    problems += [f"{key} holds NaN or infinity" for key in shared if not torch.isfinite(found[key].float()).all()]
    if problems:
        fits = [key for key in shared if key not in wrong]
        count = lambda keys: sum(needed[key].numel() for key in keys)
        tensors, parameters = 100 * len(fits) / len(needed), 100 * count(fits) / count(needed)
        share = f"{tensors:.0f} % of the tensors and {parameters:.0f} % of the parameters fit"
        raise CheckpointError(f"{task}: {share}", problems[:10])


# ------------------------------------------------------------------------------------------------------------- finding


def _roots() -> list[Path]:
    """Folders searched for models: the user's, the installed package's, the checkout's."""
    package = Path(str(files("xscalemixer")))
    own = os.environ.get("XSCALEMIXER_DATA_DIR")
    return ([Path(own)] if own else [_cache()]) + [package / "_pretrained", package.parents[1] / "pretrained"]


def _cache() -> Path:
    import pooch

    return Path(os.environ.get("XSCALEMIXER_DATA_DIR") or pooch.os_cache("xscalemixer"))


def _folder(name: str | os.PathLike) -> Path:
    """Folder of a model: an explicit path, a name in one of the roots, or a download."""
    path = Path(name)
    plain = path.name == str(name)
    if path.is_dir() and (not plain or (path / CHECKSUMS).is_file()):
        return path
    for root in _roots() if plain else ():
        if (root / path.name / CHECKSUMS).is_file():
            return root / path.name
    if plain and path.name in _registry():
        return fetch(path.name)
    known = models()
    near = difflib.get_close_matches(path.name, known, 1)
    is_it = f"Is it {near[0]!r}? " if near else ""
    fix = f"{is_it}Known models: {', '.join(known) or 'none'}. Type xsm.models(), or give the path of a model folder"
    raise CheckpointError(f"there is no model {str(name)!r}", [fix])


def _registry() -> dict[str, dict[str, str]]:
    """Models that are not in the package: {name: {file: sha256}}, from the registry file beside the packaged ones."""
    entries: dict[str, dict[str, str]] = {}
    for root in _roots()[1:]:
        if (root / "registry.txt").is_file():
            for line in (root / "registry.txt").read_text(encoding="utf-8").splitlines():
                if line and not line.startswith("#"):
                    file, digest = line.split()
                    model, _, part = file.partition("/")
                    entries.setdefault(model, {})[part] = digest
            break
    return entries


def fetch(name: str) -> Path:
    """Download a registered model into the cache; every file is checked before it is put in place.

    Environment: ``XSCALEMIXER_BASE_URL`` (a mirror), ``XSCALEMIXER_DATA_DIR`` (the cache), ``XSCALEMIXER_OFFLINE=1``.

    Raises
    ------
    CheckpointError
        If the model is not registered, downloads are switched off, or a download fails.
    """
    import pooch
    import requests

    entries, task, base = _registry().get(name), f"model {name!r} was not downloaded", os.environ.get("XSCALEMIXER_BASE_URL")
    problems = []
    if entries is None:
        problems.append(f"it is not registered; known models: {', '.join(models())}")
    if os.environ.get("XSCALEMIXER_OFFLINE", "0") not in ("", "0"):
        problems.append(f"XSCALEMIXER_OFFLINE is set; copy the folder to {_cache() / name} or unset it")
    if not base:
        problems.append("no address to download from; set XSCALEMIXER_BASE_URL to the folder that holds the models")
    if problems or entries is None or not base:
        raise CheckpointError(task, problems)
    hashes = {f"{name}/{file}": digest for file, digest in entries.items()}
    store = pooch.create(_cache(), base.rstrip("/") + "/", registry=hashes)
    try:
        for file in hashes:
            store.fetch(file, progressbar=False)
    except (requests.RequestException, OSError, ValueError) as error:
        raise CheckpointError(task, [f"{base}: {error}", f"offline? copy the folder to {_cache() / name}"]) from error
    return Path(store.path) / name


def _headline(folder: Path) -> str:
    """First line of prose in a card."""
    lines = (folder / "CARD.md").read_text(encoding="utf-8").splitlines()
    return next((line.strip() for line in lines if line.strip() and not line.startswith("#")), "")


def _plain_card(model: Model) -> str:
    about = "\n".join(f"- {key}: {value}" for key, value in model.about.items())
    return f"# {model.name}\n\nA model saved by a user; nobody has described it.\n\n{about}\n"
