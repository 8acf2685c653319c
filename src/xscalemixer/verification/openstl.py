"""Errors as the OpenSTL benchmark defines them, to set beside its tables; `score` has the usual ones."""

from __future__ import annotations

import numpy as np

from xscalemixer.errors import InputError

__all__ = ["openstl_errors"]


def openstl_errors(
    forecast: np.ndarray, truth: np.ndarray, *, batch: int | None = None, spatial_norm: bool = False
) -> dict[str, float]:
    r"""Errors summed, not averaged, over variables and cells.

    With :math:`\langle \cdot \rangle` the mean over sequences and frames, and the sum over variables and cells: mse is
    :math:`\sum \langle (f - a)^2 \rangle`, mae is :math:`\sum \langle |f - a| \rangle`, rmse is the root of that mse. With
    ``batch`` they are those of each batch, averaged over the batches, as some code built on OpenSTL reports them: the rmse is
    then a mean of roots, depends on the size of a batch and is at most the root of the mse; a last batch that is smaller
    counts as much as the others. Cells are not weighted with their area.

    Parameters
    ----------
    forecast, truth : array, shape (N, T, C, H, W)
        Sequences, frames, variables, rows, columns; the tables for weather are in physical units, relative humidity in %, one
        variable (or both parts of the wind) at a time.
    batch : int, optional
        Sequences in a batch; default: all in one.
    spatial_norm : bool
        Divide mse and mae, and the mse in the root, by C * H * W, as in the tables for weather.

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
    rows, size = [], batch or len(forecast)
    for start in range(0, len(forecast), size):
        error = np.subtract(forecast[start : start + size], truth[start : start + size], dtype="f8")
        mse, mae = ((e.mean((0, 1)).sum() / cells) for e in (error**2, np.abs(error)))
        rows.append((mse, mae, np.sqrt(mse)))
    return dict(zip(("mse", "mae", "rmse"), np.mean(rows, 0).tolist(), strict=True))
