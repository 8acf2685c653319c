"""Errors as OpenSTL defines them: sums over variables and cells, one root or that of each batch."""

import numpy as np
import pytest

from xscalemixer.errors import InputError
from xscalemixer.verification.openstl import openstl_errors


def errors_of(*sizes, shape=(2, 3, 4, 5), **options):
    """Sequences whose errors are the sizes everywhere."""
    forecast = np.ones((len(sizes), *shape)) * np.reshape(sizes, (-1, 1, 1, 1, 1))
    return openstl_errors(forecast, np.zeros_like(forecast), **options)


def test_errors_are_summed_over_variables_and_cells():
    assert errors_of(-2.0) == pytest.approx({"mse": 4 * 60, "mae": 2 * 60, "rmse": np.sqrt(4 * 60)})


def test_spatial_norm_gives_the_usual_means():
    assert errors_of(-2.0, spatial_norm=True) == pytest.approx({"mse": 4, "mae": 2, "rmse": 2})


def test_root_is_taken_in_each_batch():
    assert errors_of(3.0, 5.0, batch=2, spatial_norm=True)["rmse"] == pytest.approx(np.sqrt(17))
    assert errors_of(3.0, 5.0, spatial_norm=True)["rmse"] == pytest.approx(np.sqrt(17))
    assert errors_of(3.0, 5.0, batch=1, spatial_norm=True)["rmse"] == pytest.approx(4)
    assert errors_of(3.0, 5.0, batch=1, spatial_norm=True)["mse"] == pytest.approx(17)


def test_a_smaller_last_batch_counts_as_much():
    assert errors_of(1.0, 1.0, 4.0, batch=2, spatial_norm=True)["mae"] == pytest.approx(2.5)


def test_shapes_must_agree():
    with pytest.raises(InputError, match=r"found shapes \(1, 2, 3, 4, 5\) and \(1, 2, 3, 4, 6\)"):
        openstl_errors(np.zeros((1, 2, 3, 4, 5)), np.zeros((1, 2, 3, 4, 6)))
