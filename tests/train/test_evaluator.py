"""Batched evaluation equals walking the scalar environment through each segment."""

import logging

import numpy as np
import pytest
import torch

from environment_Alpaca import CryptoEnvAlpaca
from tests.support.markets import params_of
from tests.support.train_cases import small_market
from train.evaluator import evaluate_policy, mean_growth

SEGMENTS = [(0, 60), (60, 61), (70, 200), (200, 300)]


def zigzag(state):
    """Some deterministic policy: leans on what it sees."""
    return torch.tanh(torch.stack((state.sum(1), state[:, -1] - state[:, 0]), dim=1))


@pytest.mark.parametrize("rules", ["standard", "cappuccino", "finrl_crypto"])
def test_records_equal_the_scalar_walk(rules, caplog):
    params = params_of(rules)
    with caplog.at_level(logging.WARNING):
        records = evaluate_policy(zigzag, small_market(segments=SEGMENTS), params)
    assert [r.segment for r in records] == [SEGMENTS[0], SEGMENTS[2], SEGMENTS[3]]
    assert "60 to 61" in caplog.text
    for record in records:
        env = CryptoEnvAlpaca(small_market(segments=[record.segment]), params, start="first")
        state, done = env.reset(), False
        rows = [(env.time, env.total_asset, env.cash)]
        steps = []
        while not done:
            state, _, done, info = env.step(zigzag(torch.as_tensor(state)[None])[0].numpy())
            rows.append((env.time, env.total_asset, env.cash))
            steps.append((info["turnover"], info["fees"], info["trades"], info["benchmark_equity"]))
        bars, equity, cash = (np.array(column) for column in zip(*rows, strict=True))
        turnover, fees, trades, benchmark = (np.array(column) for column in zip(*steps, strict=True))
        assert np.array_equal(record.bars, bars)
        for ours, theirs in (
            (record.equity, equity), (record.turnover, turnover), (record.fees, fees), (record.trades, trades),
            (record.benchmark_equity[1:], benchmark),
        ):  # fmt: skip
            np.testing.assert_allclose(ours, theirs, rtol=1e-4)
        np.testing.assert_allclose(record.exposure, 1.0 - cash / equity, atol=1e-4)
        assert record.exposure[0] == 0.0
        assert record.trades.sum() > 0


def test_a_policy_that_never_buys_keeps_its_cash():
    (record,) = evaluate_policy(lambda state: -torch.ones(len(state), 2), small_market(), params_of("standard"))
    assert np.all(record.equity == 10_000.0)
    assert np.all(record.exposure == 0.0)
    assert mean_growth([record]) == 0.0


def crash_config(segments):
    """One coin of two falls by 97 % at bar 20 of 60 and comes back at bar 40."""
    price = np.full((60, 2), 100.0)
    price[20:40, 0] = 3.0
    price[:, 1] += np.arange(60)
    return {"price_array": price, "tech_array": np.zeros((60, 2), np.float32), "segments": segments}


def test_a_ruined_account_stays_flat_while_its_benchmark_goes_on(caplog):
    params = {"rules": "standard", "lookback": 1, "norm_action": 1.0, "terminal_equity_fraction": 0.1}
    all_in = torch.tensor([1.0, -1.0])
    config = crash_config([(0, 60), (25, 60)])
    with caplog.at_level(logging.WARNING):
        ruined, other = evaluate_policy(lambda state: all_in.expand(len(state), 2), config, params)
        (holder, _) = evaluate_policy(lambda state: torch.zeros(len(state), 2), config, params)
    assert caplog.messages == [
        f"segment 0 to 60: ruined at bar 20, 39 bars before its end; equity stays at {ruined.equity[20]:.2f}"
    ]
    assert np.array_equal(ruined.bars, np.arange(60))
    assert ruined.equity[19] > 9_000.0
    assert np.all(ruined.equity[20:] == ruined.equity[20])
    assert ruined.equity[20] < 1_000.0
    np.testing.assert_allclose(ruined.benchmark_equity, holder.benchmark_equity, rtol=1e-12)
    assert np.all(ruined.exposure[21:] == 0.0)
    assert [len(getattr(ruined, name)) for name in ("turnover", "fees", "trades")] == [59] * 3
    assert np.all(ruined.turnover[20:] == 0.0)
    assert len(other.bars) == 35
    assert other.equity[-1] > other.equity[0]


def test_the_benchmark_after_a_ruin_is_that_of_the_ruined_accounts_own_start():
    """The environment goes on from bar 10, where the same cash buys other coins, and stands there at the end."""
    params = {"rules": "standard", "lookback": 1, "norm_action": 1.0, "terminal_equity_fraction": 0.1, "fee_rate": 0.0}
    config = crash_config([(0, 60), (10, 60)])
    for record in evaluate_policy(lambda state: torch.tensor([1.0, -1.0]).expand(len(state), 2), config, params):
        price = config["price_array"][record.bars]
        assert np.all(record.equity[30:] == record.equity[30])
        np.testing.assert_allclose(record.benchmark_equity, price @ (5_000.0 / price[0]), rtol=1e-12)


def test_fees_reach_the_environment():
    market, params = small_market(), params_of("standard")

    def growth(fee):
        kwargs = {"buy_cost_pct": fee, "sell_cost_pct": fee}
        return mean_growth(evaluate_policy(zigzag, market, params, env_kwargs=kwargs))

    assert growth(0.0) > growth(0.01)
