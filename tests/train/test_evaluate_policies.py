"""Many policies in one batch: each as if it were alone, and trade for trade what the scalar environment does."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import pytest
import torch

from drl_agents.policy import Policy
from drl_agents.policy_file import load_policy, save_policy
from environment_Alpaca import CryptoEnvAlpaca
from market.sample import synthetic_dataset
from tests.support.markets import HOST_NORMS
from train.evaluator import evaluate_policies, evaluate_policy

TICKERS = ("BTC", "ETH", "LTC")
# Segments of each policy: they overlap, differ in length and number, and one is too short to trade.
SEGMENTS = ([(0, 200), (300, 420)], [(100, 350)], [(5, 8), (300, 420), (0, 64)])
HOST_ACTION = {"cappuccino": 1e4, "finrl_crypto": 2e4}
FIELDS = ("bars", "equity", "benchmark_equity", "turnover", "fees", "trades", "exposure", "qty")


@pytest.fixture(scope="module")
def market():
    return synthetic_dataset("5m", 600, TICKERS, seed=3)


@pytest.fixture(scope="module")
def config(market):
    return market.env_config()


def params(**more):
    return {"rules": "standard", "lookback": 3, "min_order_notional": 10.0, **more}


def policy_for(config, lookback, seed, width=16, extra=0):
    """Random weights, large enough to trade a lot."""
    n_assets, n_features = config["price_array"].shape[1], config["tech_array"].shape[1]
    state_dim = 1 + n_assets + lookback * n_features + extra
    generator = torch.Generator().manual_seed(seed)
    sizes = (state_dim, width, n_assets)
    layers = tuple(
        (2.0 * torch.randn((out, into), generator=generator) / into**0.5, torch.zeros(out))
        for into, out in pairwise(sizes)
    )
    return Policy(torch.zeros(state_dim), torch.ones(state_dim), layers)


class WithFirstRows:
    """A policy that is asked for its first n rows alone: their rounding does not depend on what is behind them."""

    def __init__(self, policy, n):
        self.policy, self.n = policy, n

    def __call__(self, state):
        spare = torch.zeros(len(state) - self.n, len(TICKERS))
        return torch.cat([self.policy(state[: self.n]), spare])


def policy_files(config, folder, lookback):
    return [save_policy(folder / f"{i}.safetensors", policy_for(config, lookback, i)) for i in range(len(SEGMENTS))]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.segment == other.segment
        for name in FIELDS[:-1]:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_every_policy_trades_as_if_it_were_alone(config, tmp_path):
    files = policy_files(config, tmp_path, 3)
    together = evaluate_policies(files, SEGMENTS, config, params())
    assert [len(records) for records in together] == [2, 1, 2]
    for file, segments, records in zip(files, SEGMENTS, together, strict=True):
        assert_same(records, evaluate_policy(file, {**config, "segments": segments}, params()))
        assert all(record.trades.sum() > 20 for record in records)
    assert not np.array_equal(together[0][1].equity, together[2][0].equity)  # same bars, other policy


def test_policies_of_other_settings_and_observations_are_grouped(config):
    settings = [params(), params(lookback=1, trailing_stop_pct=0.01), params()]
    policies = [policy_for(config, s["lookback"], i) for i, s in enumerate(settings)]
    together = evaluate_policies(policies, SEGMENTS, config, settings)
    for policy, segments, setting, records in zip(policies, SEGMENTS, settings, together, strict=True):
        assert_same(records, evaluate_policy(policy, {**config, "segments": segments}, setting))


def test_a_policy_without_a_usable_segment_has_no_records(config, caplog):
    policies = [policy_for(config, 3, i) for i in range(3)]
    with caplog.at_level(logging.WARNING):
        together = evaluate_policies(policies, [[(0, 2)], [(0, 100)], []], config, params())
    assert [len(records) for records in together] == [0, 1, 0]
    assert "0 to 2 is too short" in caplog.text
    assert_same(together[1], evaluate_policy(policies[1], {**config, "segments": [(0, 100)]}, params()))
    assert evaluate_policies([], [], config, params()) == []


def test_a_policy_with_only_short_segments_has_no_records_alone_either(config, caplog):
    policy = policy_for(config, 3, 0)
    short = [(0, 2), (10, 13)]
    alone = evaluate_policies([policy], [short], config, params())
    assert caplog.messages == [
        f"segment {a} to {b} is too short for one step and is not evaluated" for a, b in short
    ]  # fmt: skip
    assert alone == [[]] == evaluate_policies([policy, policy], [short, [(0, 9)]], config, params())[:1]
    assert evaluate_policy(policy, {**config, "segments": short}, params()) == []


def test_a_policy_is_asked_for_the_rows_of_its_usable_segments_alone_and_in_company(config):
    """Another number of rows can round otherwise."""
    asked = []

    def act(state):
        asked.append(len(state))
        return torch.zeros(len(state), len(TICKERS))

    mine = [(0, 2), (300, 420), (0, 64), (5, 8)]
    evaluate_policies([act], [mine], config, params())
    assert set(asked) == {2}
    asked.clear()
    evaluate_policies([act, policy_for(config, 3, 0)], [mine, [(0, 9)]], config, params())
    assert set(asked) == {2}


@pytest.mark.parametrize("rules", ["standard", "cappuccino", "finrl_crypto"])
def test_bars_that_are_not_evaluated_change_no_number(config, rules):
    """Only the evaluated bars go into the environment; in one whose segments span all bars nothing is left out."""
    norms = {} if rules == "standard" else HOST_NORMS | {"norm_action": HOST_ACTION[rules]}
    settings = {"rules": rules, "lookback": 3, "observe_account": True, **norms}
    n_bars, gap = len(config["price_array"]), np.random.default_rng(0).random(np.shape(config["price_array"])) < 0.2
    thin = {**config, "filled_array": gap, "min_order_qty": [1e-9] * len(TICKERS)}
    segments = [(40, 200), (300, 420), (350, 500)]
    policy = WithFirstRows(policy_for(config, 3, 1, extra=2 + len(TICKERS)), 3)
    cropped = evaluate_policies([policy], [segments], thin, settings, keep_qty=True)[0]
    whole = evaluate_policies([policy], [[*segments, (0, n_bars)]], thin, settings, keep_qty=True)[0][:3]
    assert_same(cropped, whole)
    for one, other in zip(cropped, whole, strict=True):
        np.testing.assert_array_equal(one.qty, other.qty)
        assert one.trades.sum() > 20
    ends = 3 if rules != "standard" else 0
    assert [(r.bars[0], r.bars[-1]) for r in cropped] == [(a + 2, b - 1 - ends) for a, b in segments]


def test_bars_that_there_are_not_are_refused(config):
    with pytest.raises(ValueError, match=r"within the 600 bars; received \[\(500, 601\)\]"):
        evaluate_policies([policy_for(config, 3, 0)], [[(500, 601)]], config, params())


def test_lists_of_unequal_length_are_refused(config):
    with pytest.raises(ValueError, match="1 policies, 2 lists of segments and 1 env_params"):
        evaluate_policies([policy_for(config, 3, 0)], [[(0, 9)], [(0, 9)]], config, params())


def walk(config, env_params, policy, segments):
    """Scalar environments side by side, a list of rows (bar, equity, fees, turnover, trades, coins) for each.

    Their observations go through the policy in one product, as in the batch: another number of rows rounds otherwise.
    """
    envs = [CryptoEnvAlpaca({**config, "segments": [segment]}, env_params, start="first") for segment in segments]
    states = [env.reset() for env in envs]
    rows = [[(env.time, env.total_asset, 0.0, 0.0, 0, env.stocks)] for env in envs]
    while not all(env.done for env in envs):
        actions = policy(torch.as_tensor(np.stack(states))).numpy()
        for i, env in enumerate(envs):
            if not env.done:
                states[i], _, _, info = env.step(actions[i])
                figures = [info[name] for name in ("equity", "fees", "turnover", "trades")]
                rows[i].append((env.time, *figures, env.stocks))
    return rows


CASES = {
    "venue rules by name": {},
    "trailing stop": {"trailing_stop_pct": 0.004},
    "stale release": {"stale_bars": 12, "stale_fraction": 0.3, "norm_action": 20.0},
    "cap, reserve and a large minimum": {
        "max_position_weight": 0.5, "min_cash_reserve": 0.2, "min_order_notional": 400.0,
    },
    "fees of 1 % and slippage": {"fee_rate": 0.01, "slippage_rate": 0.004},
    "ruin": {"terminal_equity_fraction": 0.97, "fee_rate": 0.01},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_fill_fee_and_equity_is_the_scalar_environments(case, config, tmp_path):
    env_params = params(**CASES[case])
    files = policy_files(config, tmp_path, 3)
    # Functions, so that the loop in torch asks for as many rows at once as the walk: another product rounds otherwise.
    acts = [load_policy(file).__call__ for file in files]
    together = evaluate_policies(acts, SEGMENTS, config, env_params, keep_qty=True)
    records = [record for mine in together for record in mine]
    rows = []
    for file, mine in zip(files, together, strict=True):
        rows += walk(config, env_params, load_policy(file), [record.segment for record in mine])
    ends = []
    for record, mine in zip(records, rows, strict=True):
        bars, equity, fees, turnover, trades, coins = (np.array(column) for column in zip(*mine, strict=True))
        n = len(bars)
        ends.append(len(record.bars) - n)
        np.testing.assert_array_equal(record.bars[:n], bars)
        np.testing.assert_array_equal(record.trades[: n - 1], trades[1:])
        for ours, theirs in (
            (record.equity, equity), (np.insert(record.fees, 0, 0.0), fees),
            (np.insert(record.turnover, 0, 0.0), turnover),
        ):  # fmt: skip
            np.testing.assert_allclose(ours[:n], theirs, rtol=1e-9, atol=1e-9)
        # Each coin's fill: what changed from bar to bar; the last row is read off a float32 observation.
        np.testing.assert_allclose(record.qty[:n], coins, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(record.qty[: n - 1], coins[:-1], rtol=1e-9)
        filled = np.diff(record.qty[:n], axis=0)[:-1]
        np.testing.assert_array_equal(filled != 0.0, np.diff(coins, axis=0)[:-1] != 0.0)
        assert trades.sum() > 5
        np.testing.assert_array_equal(record.trades[n - 1 :], 0)
        assert np.all(record.equity[n - 1 :] == record.equity[n - 1])
        assert np.all(record.qty[n:] == 0.0)
    assert (max(ends) > 0) == (case == "ruin")
