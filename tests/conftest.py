"""Fixtures that several test modules share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data():
    """Folder with real files that are not part of the project; tests that need it are skipped without it."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder


@pytest.fixture(scope="module")
def few_samples():
    """Made-up worlds last a few days: training makes do with one sample."""
    import xscalemixer as xsm

    with pytest.MonkeyPatch.context() as patch:
        for verb in (xsm.train, xsm.finetune):
            patch.setitem(verb.__kwdefaults__, "min_samples", 1)
        yield
