"""Solvers against a reference written out in float64 and against closed forms for Gaussian targets."""

import numpy as np
import pytest
import torch

from xscalemixer.errors import InputError
from xscalemixer.nn.sampling import MemberNoise, SolverConfig, solve, spread_factor

CHURN = SolverConfig(steps=7, sigma_max=80.0, churn=10.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003)


def gaussian(mean, deviation):
    """The ideal denoiser of independent Gaussian cells."""
    return lambda x, sigma: mean + deviation**2 / (deviation**2 + sigma**2) * (x - mean)


def reference(denoise, noises, config):
    """Algorithm 2 of Karras et al. 2022, in numpy."""
    n, rho = config.steps, config.rho
    i = np.arange(n)
    t = (config.sigma_max ** (1 / rho) + i / (n - 1) * (config.sigma_min ** (1 / rho) - config.sigma_max ** (1 / rho))) ** rho
    t = np.append(t, 0.0)
    noises = iter(noises)
    x = t[0] * next(noises)
    for i in range(n):
        churned = config.churn_min <= t[i] <= (np.inf if config.churn_max is None else config.churn_max) and config.churn > 0
        gamma = min(config.churn / n, np.sqrt(2) - 1) if churned else 0.0
        hat = t[i] + gamma * t[i]
        if churned:
            x = x + np.sqrt(hat**2 - t[i] ** 2) * config.churn_noise * next(noises)
        d = (x - denoise(x, hat)) / hat
        x_next = x + (t[i + 1] - hat) * d
        if t[i + 1] != 0 and config.method == "heun":
            d_next = (x_next - denoise(x_next, t[i + 1])) / t[i + 1]
            x_next = x + (t[i + 1] - hat) * (0.5 * d + 0.5 * d_next)
        x = x_next
    return x


def test_noise_levels_of_the_paper():
    levels = SolverConfig().levels
    assert len(levels) == 19
    assert levels[0] == pytest.approx(800.0, rel=1e-12)
    assert levels[17:] == pytest.approx((0.002, 0.0), rel=1e-12)
    i = np.arange(18)
    wanted = (800.0 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 800.0 ** (1 / 7))) ** 7
    np.testing.assert_allclose(levels[:-1], wanted, rtol=1e-12)


def test_rho_of_one_spaces_evenly():
    np.testing.assert_allclose(np.diff(SolverConfig(rho=1.0, steps=5, sigma_min=1.0, sigma_max=5.0).levels), -1.0)


@pytest.mark.parametrize("method", ["heun", "euler"])
@pytest.mark.parametrize("config", [SolverConfig(), CHURN])
def test_solver_equals_the_reference(method, config):
    config = SolverConfig(**{**config.to_dict(), "method": method})
    draws = [np.random.default_rng(i).standard_normal((2, 1, 3, 3)) for i in range(config.steps + 1)]
    module = {np.ndarray: np, torch.Tensor: torch}
    denoise = lambda x, sigma: module[type(x)].tanh(x / (1.0 + sigma)) + 0.1 * x / (1.0 + sigma**2)
    noise = iter(map(torch.from_numpy, draws))
    np.testing.assert_allclose(solve(denoise, lambda: next(noise), config).numpy(), reference(denoise, draws, config), rtol=1e-12)


@pytest.mark.parametrize(("method", "order"), [("heun", 2), ("euler", 1)])
def test_error_falls_with_the_order_of_the_method(method, order):
    """dx/ds = s x / (s^2 + d^2) has the solution x = x_0 sqrt((s^2 + d^2) / (s_0^2 + d^2))."""
    deviation, errors = 0.3, []
    for steps in (32, 64, 128):
        config = SolverConfig(method=method, steps=steps, sigma_max=80.0)
        start = config.levels[0]
        found = solve(gaussian(0.0, deviation), lambda: torch.ones(1, dtype=torch.float64), config)
        errors.append(abs(found.item() - start * deviation / np.hypot(start, deviation)))
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2.0**order, rtol=0.12)


@pytest.mark.parametrize("churn", [0.0, 40.0])
def test_gaussian_target_is_recovered(churn):
    """Of 2^16 cells, mean and deviation are known to 0.4 % and 0.28 % of the deviation."""
    mean, deviation = 1.5, 0.5
    config = SolverConfig(steps=128, churn=churn)
    x = solve(gaussian(mean, deviation), MemberNoise([0], (1, 256, 256)), config)
    assert x.mean().item() == pytest.approx(mean, abs=3 * 0.004 * deviation)
    assert x.std().item() == pytest.approx(deviation, rel=3 * 0.0028 + 0.002)


@pytest.mark.parametrize("config", [SolverConfig(), SolverConfig.fast(), CHURN])
def test_spread_of_few_steps_is_known(config):
    x = solve(gaussian(0.0, 0.5), MemberNoise([0], (1, 256, 256)), config)
    assert x.std().item() / 0.5 == pytest.approx(spread_factor(config, 0.5), rel=3 * 0.0028)


def test_spread_of_many_steps_is_right():
    assert spread_factor(SolverConfig(steps=500), 0.3) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("config", "calls"), [(SolverConfig(), 35), (SolverConfig.fast(), 9), (CHURN, 13)])
def test_network_calls_are_known(config, calls):
    levels = []
    solve(lambda x, sigma: levels.append(sigma) or 0.0 * x, lambda: torch.zeros(1), config)
    assert len(levels) == config.calls == calls


def test_a_member_alone_equals_the_member_among_many():
    many, alone = MemberNoise([5, 7, 11], (2, 4, 4)), MemberNoise([7], (2, 4, 4))
    for _ in range(3):
        assert torch.equal(many()[1:2], alone())


def test_members_and_draws_differ():
    noise = MemberNoise([1, 2], (1, 64, 64))
    first, second = noise(), noise()
    draws = torch.stack([*first, *second]).flatten(1)
    assert torch.corrcoef(draws).fill_diagonal_(0.0).abs().max() < 5 / 64


def test_noise_is_like_the_field():
    assert MemberNoise([1], (1, 2, 2), like=torch.zeros(1, dtype=torch.float64))().dtype == torch.float64


def test_bad_settings_are_all_named():
    with pytest.raises(InputError, match="5 problems") as error:
        SolverConfig(method="rk4", steps=1, sigma_min=2.0, sigma_max=1.0, rho=0.0, churn=-1.0)
    assert "method='rk4'; choose 'heun' or 'euler'" in str(error.value)
