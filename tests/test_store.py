import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import xarray as xr
from test_output import GRID, make

from xscalemixer import store as module
from xscalemixer.errors import InputError
from xscalemixer.store import ForecastStore

FINGERPRINT = {"weights": "ab12", "start": "2001-08-10T00", "hours": 7}
N_LEADS, BLOCK = 7, 3


def simulate(store, until=N_LEADS):
    """Write a chaotic map, block by block, going on from the restart state."""
    state = store.restart.get("state", np.full((7, *GRID.shape), 0.3, dtype="f4"))
    while store.next_lead < until:
        states = []
        for _ in range(min(BLOCK, N_LEADS - store.next_lead)):
            state = np.float32(3.9) * state * (1 - state)
            states.append(state)
        store.write(store.next_lead, make(np.stack(states), first=store.next_lead + 1), {"state": state})
    if until == N_LEADS:
        store.finish()


def create(path, **options):
    nothing = np.broadcast_to(np.float32(np.nan), (N_LEADS, 7, *GRID.shape))
    template = make(nothing, static={"orog": np.ones(GRID.shape)})
    return ForecastStore.create(path, template, FINGERPRINT, **options)


@pytest.fixture(scope="module")
def truth():
    state, states = np.full((7, *GRID.shape), 0.3, dtype="f4"), []
    for _ in range(N_LEADS):
        state = np.float32(3.9) * state * (1 - state)
        states.append(state)
    return make(np.stack(states), static={"orog": np.ones(GRID.shape)})


def assert_complete(path, truth):
    with xr.open_zarr(path) as found:
        xr.testing.assert_identical(found.load(), truth)
    assert not list((path / "progress").glob("restart*"))


@pytest.mark.filterwarnings("error")
def test_streamed_equals_in_memory(tmp_path, truth):
    with create(tmp_path / "run.zarr") as store:
        simulate(store)
    assert_complete(tmp_path / "run.zarr", truth)


@pytest.mark.filterwarnings("error")
def test_unfinished_store_says_so_and_is_nan(tmp_path, truth):
    with create(tmp_path / "run.zarr") as store:
        store.write(0, truth.isel(lead_time=slice(3)), {})
    with xr.open_dataset(tmp_path / "run.zarr", engine="zarr", consolidated=False) as found:
        assert found.attrs["complete"] == "false"
        assert found["t2m"].notnull().all(["latitude", "longitude"]).values.tolist() == [[True] * 3 + [False] * 4]
        xr.testing.assert_equal(found.coords.to_dataset(), truth.coords.to_dataset())


class Killed(BaseException):
    """Stands for a process that ends here."""


@pytest.mark.parametrize("name", ["_save_restart", "_file_digest", "_append"])
@pytest.mark.parametrize("call", [1, 3])
def test_resume_after_death_at(tmp_path, monkeypatch, truth, name, call):
    """Die at the n-th call of a step of writing, before it takes effect."""
    path, calls = tmp_path / "run.zarr", []
    store = create(path)
    real = getattr(module, name)

    def fatal(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, fatal)
    with store, pytest.raises(Killed):
        simulate(store)
    monkeypatch.undo()
    with ForecastStore.resume(path, FINGERPRINT) as store:
        assert store.next_lead == BLOCK * (call - 1)
        simulate(store)
    assert_complete(path, truth)


def test_resume_after_death_before_and_after_finish(tmp_path, truth):
    with create(tmp_path / "run.zarr") as store:
        store.write(0, truth, {"state": np.zeros(1)})
    for _ in range(2):
        with ForecastStore.resume(tmp_path / "run.zarr", FINGERPRINT) as store:
            assert store.next_lead == N_LEADS and not store.restart
            store.finish()
    assert_complete(tmp_path / "run.zarr", truth)


def damage(path, how):
    progress = path / "progress"
    if how == "torn line":
        text = (progress / "journal.jsonl").read_text()
        (progress / "journal.jsonl").write_text(text[:-20])
    elif how == "restart gone":
        (progress / "restart-000006.npz").unlink()
    elif how == "restart truncated":
        (progress / "restart-000006.npz").write_bytes((progress / "restart-000006.npz").read_bytes()[:100])
    elif how == "chunk lost":
        (path / "sp" / "0.4.0.0").unlink()
    elif how == "chunk of zeros":
        (path / "sp" / "0.4.0.0").write_bytes(bytes((path / "sp" / "0.4.0.0").stat().st_size))


@pytest.mark.parametrize("how", ["torn line", "restart gone", "restart truncated", "chunk lost", "chunk of zeros"])
def test_what_a_power_cut_lost_is_computed_again(tmp_path, truth, how):
    path = tmp_path / "run.zarr"
    with create(path) as store:
        simulate(store, until=2 * BLOCK)
    damage(path, how)
    with ForecastStore.resume(path, FINGERPRINT) as store:
        assert store.next_lead == BLOCK
        simulate(store)
    assert_complete(path, truth)


def test_restart_arrays_come_back_exactly_and_two_are_kept(tmp_path, truth):
    path = tmp_path / "run.zarr"
    arrays = {"global/z_500": np.array([1.5, np.nan], dtype="f4"), "step": np.int64(7), "file": np.zeros((0, 3), dtype=bool)}
    with create(path) as store:
        for lead in range(4):
            store.write(lead, truth.isel(lead_time=[lead]), arrays)
    names = sorted(file.name for file in (path / "progress").glob("restart*"))
    assert names == ["restart-000003.npz", "restart-000004.npz"]
    with ForecastStore.resume(path, FINGERPRINT) as store:
        assert store.restart.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(store.restart[name], array, strict=name != "step")


def test_restart_refuses_objects(tmp_path, truth):
    with create(tmp_path / "run.zarr") as store, pytest.raises(ValueError, match="Object arrays cannot be saved"):
        store.write(0, truth.isel(lead_time=[0]), {"state": np.array([{}])})


PROGRAM = """
    import pathlib, sys, time
    sys.path.insert(0, {tests!r})
    import test_store as t
    path = pathlib.Path({path!r})
    t.create(path.with_name("warm-up")).close()
    print("begun", flush=True)
    store = t.create(path)
    t.simulate(store, until=t.BLOCK)
    print("block", flush=True)
    time.sleep({pause})
    t.simulate(store)
"""


def start(path, pause):
    code = textwrap.dedent(PROGRAM.format(tests=os.path.dirname(__file__), path=str(path), pause=pause))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_resume_after_kill_9(tmp_path, truth):
    path = tmp_path / "run.zarr"
    process = start(path, pause=60)
    assert process.stdout.readline() == "block\n"
    with pytest.raises(InputError, match=f"process {process.pid} on .* is writing to it"):
        ForecastStore.resume(path, FINGERPRINT)
    with pytest.raises(InputError, match=f"process {process.pid} on .* is writing to it"):
        create(path, overwrite=True)
    kill(process)
    with ForecastStore.resume(path, FINGERPRINT) as store:
        assert store.next_lead == BLOCK
        simulate(store)
    assert_complete(path, truth)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("instant", np.linspace(0, 0.25, 40))
def test_resume_after_kill_9_at_any_instant(tmp_path, truth, instant):
    path = tmp_path / "run.zarr"
    process = start(path, pause=0)
    time.sleep(instant)
    kill(process)
    with ForecastStore.resume(path, FINGERPRINT) if path.exists() else create(path) as store:
        simulate(store)
    assert_complete(path, truth)


# refusals ----------------------------------------------------------------------------------------------------------------


def test_existing_store_is_kept_unless_overwritten(tmp_path, truth):
    path = tmp_path / "run.zarr"
    with create(path) as store:
        simulate(store)
    with pytest.raises(InputError, match=r"(?s)run.zarr exists.*resume=True.*overwrite=True"):
        create(path)
    assert_complete(path, truth)
    with create(path, overwrite=True) as store:
        assert store.next_lead == 0
        simulate(store)
    assert_complete(path, truth)
    assert os.listdir(tmp_path) == ["run.zarr"]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_only_zarr_stores_are_overwritten(tmp_path, kind):
    path = tmp_path / "thesis"
    if kind == "file":
        path.write_text("years of work")
    elif kind == "folder":
        path.mkdir()
        (path / "chapter").touch()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="thesis exists and is not a Zarr store"):
        create(path, overwrite=True)
    assert os.path.lexists(path) and os.listdir(tmp_path) == ["thesis"]


def test_another_run_is_not_resumed(tmp_path):
    create(tmp_path / "run.zarr").close()
    with pytest.raises(InputError, match=r"(?s)another forecast.*hours: the store has 7, this run 48"):
        ForecastStore.resume(tmp_path / "run.zarr", FINGERPRINT | {"hours": 48})


def test_resume_needs_a_store(tmp_path):
    with pytest.raises(InputError, match="holds no forecast to resume"):
        ForecastStore.resume(tmp_path, FINGERPRINT)
    with pytest.raises(InputError, match="not a local path"):
        ForecastStore.resume("s3://bucket/run.zarr", FINGERPRINT)


def test_one_writer_at_a_time(tmp_path):
    with create(tmp_path / "run.zarr"), pytest.raises(InputError, match=f"process {os.getpid()} on .* is writing to it"):
        ForecastStore.resume(tmp_path / "run.zarr", FINGERPRINT)
    ForecastStore.resume(tmp_path / "run.zarr", FINGERPRINT).close()


def test_disk_is_checked_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_free", lambda path: 1000)
    with pytest.raises(InputError, match=r"(?s)disk is too small.*bytes\) are still to be written, 1e-06 GB are free"):
        create(tmp_path / "run.zarr")
    assert not os.listdir(tmp_path)


def test_full_disk_keeps_what_is_there(tmp_path, monkeypatch, truth):
    def full(*_):
        raise OSError(28, "No space left on device")

    with create(tmp_path / "run.zarr") as store:
        store.write(0, truth.isel(lead_time=[0]), {})
        monkeypatch.setattr(module, "_save_restart", full)
        with pytest.raises(InputError, match=r"too small.*\n.*make room and go on with resume=True"):
            store.write(1, truth.isel(lead_time=[1]), {})
    with ForecastStore.resume(tmp_path / "run.zarr", FINGERPRINT) as store:
        assert store.next_lead == 1


def test_blocks_come_in_order_and_whole(tmp_path, truth):
    with create(tmp_path / "run.zarr") as store:
        with pytest.raises(InputError, match=r"(?s)begins at lead index 2; needed 0.*lacks sp"):
            store.write(2, truth.isel(lead_time=slice(2, 4)).drop_vars("sp"), {})
        with pytest.raises(InputError, match=r"lead times \[2, 3\] are not those of the store"):
            store.write(0, truth.isel(lead_time=slice(1, 3)), {})
        with pytest.raises(InputError, match="0 of 7 leads"):
            store.finish()
