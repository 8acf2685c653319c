"""The optional package ``scores``: present, or an error that says what to type."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["require_scores"]


def require_scores(what: str) -> None:
    """Make sure that the package ``scores`` can be imported.

    Parameters
    ----------
    what : str
        What needs it, e.g. ``"the Brier score"``.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    if find_spec("scores") is None:
        raise ImportError(f"{what} needs the package 'scores'. Type: pip install 'xscalemixer[metrics]'", name="scores")
