"""Model folders: complete, checked at every load, never unpickled."""

import json
import pathlib
import pickle
import shutil

import pytest
import torch
from worlds import forecaster, globe

import xscalemixer as xsm
from xscalemixer import pretrained
from xscalemixer.errors import CheckpointError


@pytest.fixture
def folder(tmp_path):
    forecaster().save(tmp_path / "mine")
    return tmp_path / "mine"


def reseal(folder):
    """Recompute the checksums, as somebody who tampers would."""
    lines = [f"{pretrained.sha256(folder / name)}  {name}\n" for name in pretrained.FILES]
    (folder / pretrained.CHECKSUMS).write_text("".join(lines))


@pytest.mark.parametrize("width", [0, 5])
def test_saved_model_forecasts_the_same(tmp_path, width):
    model = forecaster(variable_width=width)
    model.save(tmp_path / "mine")
    again = xsm.load(tmp_path / "mine")
    first, second = (xsm.forecast(globe(), 2, model=m) for m in (model, again))
    assert (first["t2m"].values == second["t2m"].values).all()
    assert again.name == "mine" and model.sha256 == again.sha256 == first.attrs["model_sha256"] and len(again.sha256) == 64


def test_saving_under_another_name_leaves_the_model_alone(tmp_path):
    model = xsm.load()
    model.save(tmp_path / "copy")
    assert xsm.load().name == pretrained.DEFAULT
    assert xsm.load(tmp_path / "copy").name == "copy"


def test_shipped_models_load_and_are_listed():
    assert pretrained.DEFAULT in xsm.models()
    assert xsm.load().name == pretrained.DEFAULT


def test_a_changed_handle_does_not_change_the_next_one(folder):
    with torch.no_grad():
        next(xsm.load(folder).network.parameters()).zero_()
    assert next(xsm.load(folder).network.parameters()).abs().sum() > 0


def test_only_model_folders_are_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    with pytest.raises(CheckpointError, match="not a model folder"):
        forecaster().save(tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "precious"


def test_weights_that_were_never_saved_are_told(tmp_path):
    model = forecaster()
    assert xsm.forecast(globe(), 1, model=model).attrs["model_sha256"] == model.weights_sha256()
    model.save(tmp_path / "half", half=True)
    assert model.sha256 == ""  # the file holds others


def test_folder_is_back_if_it_cannot_be_replaced(folder, monkeypatch):
    replace = pathlib.Path.replace

    def failing(self, target):
        if self.name.startswith(".mine-") and not self.name.endswith("-old"):
            raise OSError("no space left on device")
        return replace(self, target)

    monkeypatch.setattr(pathlib.Path, "replace", failing)
    with pytest.raises(OSError, match="no space"):
        forecaster(seed=1).save(folder, overwrite=True)
    assert xsm.load(folder).weights_sha256() == forecaster().weights_sha256()
    assert [f.name for f in folder.parent.iterdir()] == ["mine"]


def test_model_folder_is_replaced_whole(folder):
    forecaster(seed=1).save(folder, overwrite=True)
    assert xsm.load(folder).weights_sha256() == forecaster(seed=1).weights_sha256() != forecaster().weights_sha256()
    assert [f.name for f in folder.parent.iterdir()] == ["mine"]


def test_other_folder_of_that_name_does_not_hide_a_model(tmp_path, monkeypatch):
    (tmp_path / pretrained.DEFAULT).mkdir()
    monkeypatch.chdir(tmp_path)
    assert xsm.load().name == pretrained.DEFAULT


def test_card_is_text_about_data_and_limits():
    card = pretrained.card(pretrained.DEFAULT)
    assert "twin" in card and "CC0" in card


@pytest.mark.parametrize("offset", [8, 1000, -1])
def test_flipped_bit_is_noticed(folder, offset):
    file = folder / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"weights.safetensors has sha256 .* expected"):
        xsm.load(folder)


@pytest.mark.parametrize("name", pretrained.FILES)
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        xsm.load(folder)


def test_pickle_in_disguise_is_not_run(folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    (folder / "weights.safetensors").write_bytes(pickle.dumps(Bomb()))
    reseal(folder)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: "):
        xsm.load(folder)
    assert not (tmp_path / "canary").exists()


def test_truncated_weights_are_refused(folder):
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    reseal(folder)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: "):
        xsm.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(_target_="os.system"), "unknown key '_target_'"),
        (lambda d: d.pop("inner"), "missing key 'inner'"),
        (lambda d: d.update(format=2), "format 2; this version"),
        (lambda d: d["network"].update(hook=1), "network settings.*hook"),
        (lambda d: d["outer"]["stats"]["std"].pop("t_500"), "no std for t_500"),
        (lambda d: d["outer"]["schema"].append({"name": "../../x", "levels": []}), r"unknown variable '\.\./\.\./x'"),
        (lambda d: d["network"].update(width=16), "% of the tensors and .* % of the parameters fit"),
    ],
)
def test_wrong_description_is_refused(folder, change, message):
    description = json.loads((folder / "model.json").read_text())
    change(description)
    (folder / "model.json").write_text(json.dumps(description))
    reseal(folder)
    with pytest.raises(xsm.InputError, match=f"(?s){message}"):
        xsm.load(folder)


def test_weights_with_nan_are_refused(folder):
    needed = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(CheckpointError, match="b holds NaN"):
        pretrained.check_fit(needed, {"a": torch.zeros(2), "b": torch.full((3,), torch.nan)}, "x")


def test_save_does_not_overwrite(folder):
    before = (folder / "CARD.md").read_bytes()
    with pytest.raises(CheckpointError, match="overwrite=True"):
        forecaster().save(folder)
    assert (folder / "CARD.md").read_bytes() == before
    assert [f.name for f in folder.parent.iterdir()] == ["mine"]


def test_unknown_name_lists_what_there_is():
    with pytest.raises(CheckpointError, match="(?s)no model 'twin-eb-small'.*Is it 'twin-ea-small'. Known models: "):
        xsm.load("twin-eb-small")
    with pytest.raises(CheckpointError, match=rf"1\. Known models: .*{pretrained.DEFAULT}"):
        xsm.load("nothing like it")


def test_data_dir_is_searched_first(folder, monkeypatch):
    monkeypatch.setenv("XSCALEMIXER_DATA_DIR", str(folder.parent))
    assert "mine" in xsm.models()
    assert xsm.load("mine").name == "mine"


# --- downloads


@pytest.fixture
def mirror(folder, tmp_path, monkeypatch):
    """A folder served over HTTP on this machine, and a registry that names the model in it."""
    import functools
    import http.server
    import threading

    site, cache, package = (tmp_path / name for name in ("site", "cache", "package"))
    for path in (site, cache, package):
        path.mkdir()
    shutil.move(folder, site / "mine")
    names = [*pretrained.FILES, pretrained.CHECKSUMS]
    (package / "registry.txt").write_text("".join(f"mine/{name} {pretrained.sha256(site / 'mine' / name)}\n" for name in names))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("XSCALEMIXER_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("XSCALEMIXER_DATA_DIR", str(cache))
    monkeypatch.setattr(pretrained, "_roots", lambda: [cache, package])
    yield site / "mine"
    server.shutdown()


def test_registered_model_is_downloaded_once(mirror, monkeypatch):
    assert xsm.models()["mine"] == "to be downloaded on first use"
    assert xsm.load("mine").name == "mine"
    monkeypatch.setenv("XSCALEMIXER_OFFLINE", "1")
    assert xsm.load("mine").name == "mine"


def test_spoiled_download_is_refused(mirror):
    (mirror / "weights.safetensors").write_text("<html>please log in</html>")
    with pytest.raises(CheckpointError, match=r"(?s)not downloaded.*(hash|SHA256)"):
        xsm.load("mine")


def test_offline_says_where_to_put_the_model(mirror, monkeypatch):
    monkeypatch.setenv("XSCALEMIXER_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="XSCALEMIXER_OFFLINE is set; copy the folder to"):
        xsm.load("mine")


def test_without_an_address_nothing_is_guessed(mirror, monkeypatch):
    monkeypatch.delenv("XSCALEMIXER_BASE_URL")
    assert "mine" not in xsm.models()
    with pytest.raises(CheckpointError, match="set XSCALEMIXER_BASE_URL"):
        xsm.load("mine")
