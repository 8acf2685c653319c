import subprocess
import sys

import pytest

PROGRAM = """
import eccodes
from xscalemixer._pyproj import import_pyproj
pyproj = import_pyproj()
cone = {"grid_mapping_name": "lambert_conformal_conic", "standard_parallel": (38.5, 38.5)}
crs = pyproj.CRS.from_cf(cone | {"latitude_of_projection_origin": 38.5, "longitude_of_central_meridian": -97.5})
print(pyproj.Transformer.from_crs(4326, crs, always_xy=True).transform(-97.5, 38.5))
"""


def test_pyproj_works_after_eccodes_was_loaded():
    pytest.importorskip("eccodes")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(0.0, 0.0)"
