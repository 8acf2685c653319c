"""Errors as the OpenSTL benchmark defines them, to set beside its tables; `score` has the usual ones."""

from __future__ import annotations

import numpy as np

from xscalemixer.errors import InputError

__all__ = ["openstl_errors"]


def openstl_errors(forecast: np.ndarray, truth: np.ndarray, *, batch: int = 16, spatial_norm: bool = False) -> dict[str, float]:
    r"""Errors summed, not averaged, over variables and cells.

    With :math:`\langle \cdot \rangle_b` the mean over the sequences and frames of one batch, and the sum over variables and
    cells: mse is :math:`\sum \langle (f - a)^2 \rangle_b`, mae is :math:`\sum \langle |f - a| \rangle_b`, rmse is the root of
    that mse, each averaged over the batches. So the rmse is a mean of roots, depends on the size of a batch and is at most
    the root of the mse; a last batch that is smaller counts as much as the others. Cells are not weighted with their area.

    Parameters
    ----------
    forecast, truth : array, shape (N, T, C, H, W)
        Sequences, frames, variables, rows, columns; the tables for weather are in physical units.
    batch : int
        Sequences in a batch.
    spatial_norm : bool
        Divide mse and mae, and the mse in the root, by C * H * W.

    Returns
    -------
    dict
        ``"mse"``, ``"mae"``, ``"rmse"``.

    Raises
    ------
    InputError
        If the shapes differ, or if there is no sequence.

    References
    ----------
    Tan et al. 2023, OpenSTL, arXiv:2306.11249.
    """
    if forecast.shape != truth.shape or forecast.ndim != 5 or not forecast.size:
        problem = f"found shapes {forecast.shape} and {truth.shape}; needed (N, T, C, H, W) twice, none of them 0"
        raise InputError("these arrays cannot be compared as OpenSTL does", [problem])
    cells = np.prod(forecast.shape[2:]) if spatial_norm else 1
    rows = []
    for start in range(0, len(forecast), batch):
        error = np.subtract(forecast[start : start + batch], truth[start : start + batch], dtype="f8")
        mse, mae = ((e.mean((0, 1)).sum() / cells) for e in (error**2, np.abs(error)))
        rows.append((mse, mae, np.sqrt(mse)))
    return dict(zip(("mse", "mae", "rmse"), np.mean(rows, 0).tolist(), strict=True))
