"""Calibration: factors against closed forms, what is kept with the model, bad input."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from pairs import pair, trained

import xscalemixer as xsm
from xscalemixer.calibrating import _Errors, _factors
from xscalemixer.errors import InputError, TimeError
from xscalemixer.nn.sampling import SolverConfig

FEW = (SolverConfig(steps=3),)


@pytest.fixture(scope="module")
def model():
    return trained()


def drawn(spread, members=6, places=4000):
    """Truth of standard deviation 1 in three channels, members of another."""
    random = np.random.default_rng(0)
    return _Errors(random.normal(size=(places, 3)), spread * random.normal(size=(places, members, 3)))


def test_factor_undoes_a_wrong_spread(model):
    found = drawn(np.array([0.5, 1.0, 2.0]))
    np.testing.assert_allclose(_factors(found, model), [2.0, 1.0, 0.5], rtol=0.05)
    np.testing.assert_allclose(found.scores(_factors(found, model))["spread_skill"], 1.0, rtol=1e-6)


def test_members_that_are_alike_are_refused(model):
    alike = _Errors(np.ones((5, 3)), np.ones((5, 2, 3)))
    with pytest.raises(InputError, match="members of t2m, u10, ssrd do not differ"):
        _factors(alike, model)


def test_members_that_go_astray_together_get_the_factor_of_the_lowest_crps(model, caplog):
    """Where all members of a channel miss on the same side, no factor makes their spread as large as the error."""
    found = drawn(np.ones(3))
    common = 3.0 * np.random.default_rng(1).normal(size=(found.error.shape[0], 1))
    astray = replace(found, residual=found.residual + common[:, None] * np.array([0.0, 0.0, 1.0]))
    factors = _factors(astray, model)
    assert factors[:2] == pytest.approx(_factors(found, model)[:2])
    assert "spread does not reach the error: ssrd" in caplog.text
    crps = lambda factor: astray.scores(np.array([1.0, 1.0, factor]))["crps"][2]
    assert all(crps(factors[2]) <= crps(factor) + 1e-3 for factor in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0))


def test_members_that_mend_most_of_the_error_are_calibrated(model):
    """The error of the regression is mostly one that all members undo; their spread around that is made to fit the rest."""
    random = np.random.default_rng(2)
    known = 5.0 * random.normal(size=(4000, 1, 3))
    residual = known + 2.0 * random.normal(size=(4000, 6, 3))
    found = _Errors((known + random.normal(size=(4000, 1, 3)))[:, 0], residual)
    factors = _factors(found, model)
    np.testing.assert_allclose(found.scores(factors)["spread_skill"], 1.0, rtol=1e-5)
    assert (factors < 1).all()


def test_scores_by_hand():
    one = _Errors(np.array([[0.6]]), np.array([[[-1.0], [2.0]]])).scores(np.ones(1))
    # the truth lies between the two members
    assert one["ranks"].tolist() == [[0.0, 1.0, 0.0]]
    two = _Errors(np.array([[1.0]]), np.array([[[0.0], [3.0]]])).scores(np.ones(1))
    assert two["crps"][0] == pytest.approx((1 + 2) / 2 - 3 / 2)
    assert two["spread_skill"][0] == pytest.approx(np.sqrt(3 / 2 * 4.5 / 0.25))


def test_reliable_members_have_flat_ranks():
    scores = drawn(1.0).scores(np.ones(3))
    np.testing.assert_allclose(scores["ranks"], 1 / 7, atol=0.03)
    # fair CRPS of a normal forecast over the mean absolute error of its mean: (1 / sqrt(pi)) / sqrt(2 / pi)
    np.testing.assert_allclose(scores["crps"], np.sqrt(0.5), rtol=0.05)


def test_what_was_found_goes_with_the_model(model, tmp_path):
    fitted = xsm.calibrate(model, pair(), members=3, samples=2, solvers=FEW)
    assert (model.network.spread == 1).all() and not (fitted.network.spread == 1).any()
    about = fitted.about["calibration"]["channels"]["t2m"]
    assert about["spread_skill"][1] == [pytest.approx(1.0, abs=1e-3)]
    fitted.save(tmp_path / "fitted")
    again = xsm.load(tmp_path / "fitted")
    assert again.solver == FEW[0] and (again.network.spread == fitted.network.spread).all()


def test_before_is_the_solver_of_the_model(model):
    """Also where it is not among those that are tried."""
    own = copy.deepcopy(model)
    own.solver = SolverConfig(steps=4)
    tried = [xsm.calibrate(own, pair(), members=2, samples=2, solvers=s).about["calibration"] for s in (FEW, (own.solver, *FEW))]
    before, same = (each["channels"]["t2m"]["crps"][0] for each in tried)
    assert before == same and before != tried[0]["channels"]["t2m"]["crps"][1]
    assert list(tried[0]["solvers"]) == ["heun 3, churn 0"]


def test_errors_of_forecasts_are_not_calibrated_on_analyses(model):
    chain = copy.deepcopy(model)
    chain.leads = (1, 12)
    with pytest.raises(InputError, match=r"(?s)nothing was calibrated.*trained on forecasts of 1 to 12 hours"):
        xsm.calibrate(chain, pair(), members=2, samples=1, solvers=FEW)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": 1}, "members=1. Needed: 2 or more"),
        ({"samples": 0}, "samples=0"),
        ({"periods": (("2020-06-01T12", "2020-06-01T18"),)}, "shares times with the training"),
        ({"periods": (("2031-01-01", "2031-01-02"),)}, "no pairs of input and target"),
    ],
)
def test_bad_settings(model, changes, message):
    with pytest.raises((InputError, TimeError), match=message):
        xsm.calibrate(model, pair(), **{"members": 2, "samples": 1, "solvers": FEW, **changes})
