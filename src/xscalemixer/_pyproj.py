"""Loading pyproj safely beside ecCodes."""

from __future__ import annotations

import os
import sys
from types import ModuleType

__all__ = ["import_pyproj"]


def import_pyproj() -> ModuleType:
    """Import pyproj with its own copy of PROJ.

    The wheels of ecCodes bring another version of PROJ and load it globally, already when xarray looks for engines; the
    extension modules of pyproj would bind to that one and crash. Where the platform has the flag (glibc), they are told to
    prefer their own library.
    """
    if "pyproj" in sys.modules or not hasattr(os, "RTLD_DEEPBIND"):
        import pyproj

        return pyproj
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | os.RTLD_DEEPBIND)
    try:
        import pyproj
    finally:
        sys.setdlopenflags(flags)
    return pyproj
