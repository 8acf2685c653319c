"""Progress bars that stay away from log files."""

from __future__ import annotations

import sys

from tqdm.auto import tqdm

__all__ = ["progress_bar"]


def progress_bar(total: int, unit: str, what: str, progress: bool | None = None) -> tqdm:
    """A bar of ``total`` units; by default it shows in a terminal or notebook only.

    Parameters
    ----------
    total : int
    unit, what : str
        What is counted, and what is made.
    progress : bool, optional
        Show it, or do not.
    """
    interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(total=total, unit=unit, desc=what, disable=not (interactive if progress is None else progress))
