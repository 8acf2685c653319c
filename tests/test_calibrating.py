"""Calibration: factors against closed forms, what is kept with the model, bad input."""

import copy

import numpy as np
import pytest
from pairs import pair, trained

import xscalemixer as xsm
from xscalemixer.calibrating import _TRIED, _Drawn, _spread_over_hours
from xscalemixer.errors import InputError, TimeError
from xscalemixer.nn.sampling import SolverConfig

FEW = (SolverConfig(steps=3),)
CHANNELS = ("t2m", "u10", "ssrd")


@pytest.fixture(scope="module")
def model():
    return trained()


def drawn(residual, truth, weight=None) -> _Drawn:
    """Of residuals (N, M, C, P) around zero and a truth (N, C, P); nothing is normalized, nothing limited."""
    weight = np.full(truth.shape[-1], 1 / truth.shape[-1]) if weight is None else weight
    return _Drawn(np.zeros_like(truth), residual, truth, weight, lambda fields, number: fields)


def normal(spread, members=6, samples=8, cells=500, seed=0) -> _Drawn:
    """Truth of standard deviation 1 in three channels, members of another."""
    random = np.random.default_rng(seed)
    residual = np.reshape(spread, (-1, 1)) * random.normal(size=(samples, members, 3, cells))
    return drawn(residual, random.normal(size=(samples, 3, cells)))


def test_factor_undoes_a_wrong_spread():
    found = normal([0.5, 1.0, 2.0])
    factors = found.factors(CHANNELS)
    assert (np.abs(np.log2(factors) - [1, 0, -1]) <= 1 / 8 + 1e-6).all()
    np.testing.assert_allclose(found.scores(factors)["spread_skill"], 1.0, atol=0.1)


def test_members_that_are_alike_are_refused():
    with pytest.raises(InputError, match="members of u10 do not differ"):
        drawn(np.ones((5, 2, 3, 4)) * np.array([[[0.0]], [[1.0]]]) ** [[0.0], [1.0], [1.0]], np.ones((5, 3, 4))).factors(
            ("u10", "v10", "t2m")
        )


@pytest.mark.parametrize("common", [0.0, 0.3, 3.0])
def test_calibration_never_raises_the_crps_it_was_fitted_by(common):
    """Also where members undo an error of the regression together, or miss together: 1 is among the factors."""
    random = np.random.default_rng(2)
    known = 5.0 * random.normal(size=(8, 3, 500))
    shared = common * random.normal(size=(8, 1, 3, 500))
    found = drawn(known[:, None] + shared + 2.0 * random.normal(size=(8, 6, 3, 500)), known + random.normal(size=(8, 3, 500)))
    before, after = (found.scores(factor)["crps"] for factor in (np.ones(3), found.factors(CHANNELS)))
    assert (after <= before).all() and (before < 1.0).all()
    others = [found.crps(np.full(3, factor)) for factor in (0.25, 0.5, 2.0, 4.0)]
    assert (np.stack(others) >= found.crps(found.factors(CHANNELS))).all()


def test_a_factor_at_the_end_of_those_tried_is_told(caplog):
    assert normal([0.1, 1.0, 1.0]).factors(CHANNELS)[0] == _TRIED[-1] == 4.0
    assert "no factor from 1/4 to 4 is best for t2m" in caplog.text


def test_scores_by_hand():
    one = drawn(np.array([[[[-1.0]], [[2.0]]]]), np.array([[[0.6]]])).scores(np.ones(1))
    # the truth lies between the two members
    assert one["ranks"].tolist() == [[0.0, 1.0, 0.0]]
    two = drawn(np.array([[[[0.0]], [[3.0]]]]), np.array([[[1.0]]])).scores(np.ones(1))
    assert two["crps"][0] == pytest.approx((1 + 2) / 2 - 3 / 2)
    assert two["spread_skill"][0] == pytest.approx(np.sqrt(3 / 2 * 4.5 / 0.25))
    # all are zero at night: the ranks share the truth, and nothing is won or lost
    night = drawn(np.zeros((1, 2, 1, 1)), np.zeros((1, 1, 1))).scores(np.ones(1))
    assert night["ranks"] == pytest.approx(np.full((1, 3), 1 / 3)) and night["crps"] == 1.0
    # a cell of three times the area counts three times
    both = drawn(np.array([[[[0.0, 0.0]], [[3.0, 0.0]]]]), np.array([[[1.0, 1.0]]]), np.array([0.75, 0.25]))
    assert both.crps(np.ones(1))[0] == pytest.approx(0.75 * (3 / 2 - 3 / 2) + 0.25 * 1.0)


def test_reliable_members_have_flat_ranks():
    scores = normal(1.0).scores(np.ones(3))
    np.testing.assert_allclose(scores["ranks"], 1 / 7, atol=0.03)
    # fair CRPS of a normal forecast over the mean absolute error of its mean: (1 / sqrt(pi)) / sqrt(2 / pi)
    np.testing.assert_allclose(scores["crps"], np.sqrt(0.5), rtol=0.05)


@pytest.mark.parametrize("every", [1, 6])
def test_samples_are_spread_over_the_day(every):
    times = np.datetime64("2020-06-01T00", "ns") + np.arange(0, 264, every) * np.timedelta64(1, "h")
    chosen = _spread_over_hours(times, 8, 0)
    hours = times[chosen].astype("M8[h]").astype(int) % 24
    assert chosen.size == 8 == np.unique(chosen).size and np.bincount(hours // 6, minlength=4).tolist() == [2, 2, 2, 2]
    assert _spread_over_hours(times[:3], 8, 0).tolist() == [0, 1, 2]


def test_members_are_judged_within_their_limits(model):
    """What users get: no radiation at night, however the network spreads there."""
    limits = lambda fields, number: np.clip(fields, 0.0, None)
    found = normal(1.0)
    bounded = _Drawn(found.mean, found.residual, np.abs(found.truth), found.weight, limits)
    free = drawn(found.residual, np.abs(found.truth))
    assert (bounded.scores(np.ones(3))["spread_skill"] < free.scores(np.ones(3))["spread_skill"]).all()
    cells = np.array([3, 50])
    whole = model.physical(model.domain.statics.new_full((3, 12, 16), -3.0), pair()["target"]["time"].values[0])
    some = model.physical(model.domain.statics.new_full((3, 1, 2), -3.0), pair()["target"]["time"].values[0], cells)
    np.testing.assert_array_equal(some[:, 0], whole.flatten(1)[:, cells])


def test_what_was_found_goes_with_the_model(model, tmp_path):
    fitted = xsm.calibrate(model, pair(), members=3, samples=2, solvers=FEW)
    assert (model.network.spread == 1).all() and not (fitted.network.spread == 1).all()
    about = fitted.about["calibration"]["channels"]["t2m"]
    assert about["factor"] == pytest.approx(fitted.network.spread[0].item(), rel=1e-3)
    assert all(len(about[name]) == 2 for name in ("spread_skill", "crps", "ranks"))
    fitted.save(tmp_path / "fitted")
    again = xsm.load(tmp_path / "fitted")
    assert again.solver == FEW[0] and (again.network.spread == fitted.network.spread).all()


def test_solvers_by_name(model):
    for solvers in ("fast", ["fast"], SolverConfig.fast()):
        assert xsm.calibrate(model, pair(), members=2, samples=1, solvers=solvers).solver == SolverConfig.fast()


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
        ({"members": 1}, "members=1; needed a whole number from 2"),
        ({"samples": 0}, "samples=0"),
        (
            {"members": 2.5, "seed": None, "solvers": ["quick"]},
            r"(?s)members=2.5.*seed=None.*solver='quick'; needed 'heun', 'fast'",
        ),
        ({"solvers": ()}, "solvers= is empty"),
        ({"periods": (("2020-06-01T12", "2020-06-01T18"),)}, "shares times with the training"),
        ({"periods": (("2031-01-01", "2031-01-02"),)}, "no pairs of input and target"),
    ],
)
def test_bad_settings(model, changes, message):
    with pytest.raises((InputError, TimeError), match=message):
        xsm.calibrate(model, pair(), **{"members": 2, "samples": 1, "solvers": FEW, **changes})
