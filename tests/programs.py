"""The programs beside the package, as modules."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@contextmanager
def benchmark_module(name: str) -> Iterator[ModuleType]:
    """One of `benchmarks`, which finds its neighbors and the examples, as when it is run."""
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        patch.syspath_prepend(ROOT / "examples")
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module
