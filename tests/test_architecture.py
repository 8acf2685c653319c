"""The layers are a test: imports point down, heavy libraries are lazy, every public name resolves."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import xscalemixer as xsm
from xscalemixer.accessor import DatasetAccessor, TreeAccessor

ROOT = Path(xsm.__file__).parent
LAYERS = [  # upper to lower; a module may import from its own layer and from those below
    {"__main__", "accessor", "__init__"},
    {"hindcasting", "downscaling", "calibrating"},
    {"forecasting", "training", "plotting", "verification"},
    {"stations"},
    {"coarse", "layouts", "terrain"},
    {"augmentation"},
    {"running"},
    {"starting"},
    {"pretrained", "forecaster", "regional", "downscaler", "model"},
    {"samples"},
    {"state"},
    {"carrying"},
    {"relief"},
    {"readers", "conform", "output", "store", "regridding"},
    {"grids", "projections"},
    {"reduction"},
    {"units", "physics"},
    {"nn", "moving_shapes"},
    {"variables", "report"},
    {"errors", "_version", "_pyproj", "progress"},
]
TORCH = {
    "nn",
    "augmentation",
    "state",
    "samples",
    "forecaster",
    "model",
    "regional",
    "downscaler",
    "coarse",
    "downscaling",
    "calibrating",
    "pretrained",
    "starting",
    "running",
    "forecasting",
    "hindcasting",
    "training",
}
FORBIDDEN = ("pickle", "joblib", "dill", "cloudpickle", "yaml")
MODULES = sorted(path for path in ROOT.rglob("*.py"))


def part(path):
    """Top-level part of the package that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def layer(name):
    return next(i for i, names in enumerate(LAYERS) if name in names)


def imports(path, *, top_only=False):
    tree = ast.parse(path.read_text())
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own = part(path)
    used = {
        name.split(".")[1]
        for name in imports(path)
        if name.startswith("xscalemixer.") and name != "xscalemixer._version.__version__"
    }
    used = {name for name in used if (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file()}
    if own not in ("__init__", "__main__", "accessor"):
        assert not [name for name in used if layer(name) < layer(own)], f"{own} imports upward: {used}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_torch_and_xarray_stay_on_their_sides(path):
    used = {name.split(".")[0] for name in imports(path)}
    if part(path) not in TORCH:
        assert "torch" not in used
    if part(path) == "nn":
        assert "xarray" not in used
    assert not used & set(FORBIDDEN)


def test_no_broad_handlers_and_no_prints():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None and ast.unparse(node.type) != "Exception", path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("print", "torch.load", "eval", "exec"), path


def test_import_loads_no_heavy_library():
    heavy = {"torch", "matplotlib", "cfgrib", "pint", "scipy.sparse", "pyproj", "dask.array"}
    code = f"import sys, xscalemixer; print(*sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_every_public_name_resolves():
    assert [name for name in xsm.__all__ if not hasattr(xsm, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'forcast'"):
        xsm.forcast  # noqa: B018
    for path in MODULES:
        name = ".".join(("xscalemixer", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        if not name.endswith("__main__"):
            module = importlib.import_module(name)
            assert [n for n in getattr(module, "__all__", ()) if not hasattr(module, n)] == [], name


@pytest.mark.parametrize("accessor", [DatasetAccessor, TreeAccessor])
def test_accessor_methods_are_one_return(accessor):
    for name, method in inspect.getmembers(accessor, inspect.isfunction):
        if not name.startswith("_"):
            (node,) = ast.parse(inspect.getsource(method).strip()).body
            assert [type(n).__name__ for n in node.body] == ["Expr", "Return"], name


def test_modules_behind_public_names_can_be_reached():
    """Without an import of their own; nothing else is made up."""
    code = "import xscalemixer as xsm; print(xsm.verification.patch_seams.__name__, hasattr(xsm, 'nothing'))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == [
        "patch_seams",
        "False",
    ]
