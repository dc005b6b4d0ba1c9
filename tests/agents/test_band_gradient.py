"""The exact gradient of the band against autograd through the simulator's own step, and against differences."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drl_agents.agents.band_gradient import band_gradient
from tests.support.band_reference import band_params, made_market, random_band, roll_out

GENERATED = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], derandomize=True)

rules = st.fixed_dictionaries(
    {
        "fee_rate": st.sampled_from([0.0, 0.0025, 0.02]), "slippage_rate": st.sampled_from([0.0, 0.0005]),
        "min_cash_reserve": st.sampled_from([0.0, 0.0, 0.2]), "reserve_base": st.sampled_from(["equity", "initial_capital"]),
        "max_position_weight": st.sampled_from([0.0, 0.0, 0.3]), "cash_haircut": st.sampled_from([1.0, 0.9]),
        "growth_weight": st.sampled_from([1.0, 0.5]), "drawdown_penalty": st.sampled_from([0.0, 0.7]),
        "volatility_penalty": st.sampled_from([0.0, 3.0]), "concentration_penalty": st.sampled_from([0.0, 0.3]),
        "turnover_penalty": st.sampled_from([0.0, 0.01]), "norm_reward": st.sampled_from([1.0, 100.0]),
        "min_order_notional": st.sampled_from([0.0, 10.0, 500.0]),
        "terminal_equity_fraction": st.sampled_from([0.01, 0.9]),
    }
)  # fmt: skip
markets = st.fixed_dictionaries(
    {
        "n_assets": st.sampled_from([1, 2, 7]), "seed": st.integers(0, 10_000),
        "volatility": st.sampled_from([1e-3, 0.02, 0.2]), "gaps": st.booleans(), "worthless": st.booleans(),
    }
)  # fmt: skip
rollouts = st.fixed_dictionaries(
    {
        "episode_bars": st.sampled_from([None, 7]), "cost_factor": st.sampled_from([0.0, 0.4, 1.0]),
        "invested": st.booleans(),
    }
)  # fmt: skip
bands = st.sampled_from(["noise", "slow", "greedy", "empty"])
H, N = 25, 3


def assert_same(found, expected):
    scale = max(float(x.abs().max()) for x in expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9 * max(scale, 1e-300))


def gradient_of(rollout, **options):
    found = band_gradient(rollout.record, rollout.params, cost_factor=rollout.cost_factor, **options)
    return found.lo, found.hi


@pytest.mark.parametrize("as_if_filled", [False, True])
@GENERATED
@given(market=markets, rule=rules, rollout=rollouts, kind=bands, increment=st.booleans())
def test_the_gradient_is_autograds(as_if_filled, market, rule, rollout, kind, increment):
    config = made_market(60, **market)
    if increment:
        config["qty_increment"] = config["min_order_qty"] * 2.0
    band = random_band(H, N, market["n_assets"], market["seed"], kind)
    made = roll_out(config, band_params(**rule), *band, seed=market["seed"], as_if_filled=as_if_filled, **rollout)
    assert_same(gradient_of(made, as_if_filled=as_if_filled), made.gradient())
