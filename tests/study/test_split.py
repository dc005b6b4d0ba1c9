"""One real split, trained and scored, checked against computations that share no code with it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from drl_agents.policy_file import load_policy
from environment_Alpaca import CryptoEnvAlpaca
from tests.support.fabricated_study import origin
from train.records.results import read_equity
from train.study.search_space import MAX_LOOKBACK, build_space, resolve, sample
from train.study.split import ATTAINABLE, run_split

FEE_RATE, SLIPPAGE_RATE, CAPITAL = 0.0025, 0.0005, 10_000.0
FOLD = 1  # two test blocks that do not touch


@pytest.fixture(scope="module")
def done(folded, tmp_path_factory):
    """(settings, outcome, folder) of a short training with a lookback above 1."""
    import optuna

    folder = tmp_path_factory.mktemp("split")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2))
    values = sample(build_space(given={"total_env_steps": 2000}, longest_episode_bars=300), study.ask())
    settings = resolve(values | {"lookback": 3, "min_cash_reserve": 0.1}, n_envs=4, seed=7, gpu_id=-1)
    return settings, run_split(settings, folded, folded.folds[FOLD], folder, origin(folded.dataset)), folder


@pytest.fixture(scope="module")
def curves(done):
    return read_equity(done[2] / "equity.npz")


def blocks(curves):
    return [np.flatnonzero(curves["segment"] == i) for i in np.unique(curves["segment"])]


def annual_sharpe(returns: np.ndarray) -> float:
    return float(np.mean(returns) / np.std(returns, ddof=1) * math.sqrt(365 * 24 * 12))


def test_every_test_bar_that_can_be_traded_is_and_no_other(folded, curves):
    expected = []
    for first, last in folded.folds[FOLD].test:
        expected += range(max(first, MAX_LOOKBACK - 1), last)
    assert curves["bar"].tolist() == expected
    np.testing.assert_array_equal(curves["time_s"], folded.dataset.time[curves["bar"]])


def test_the_equal_weight_sharpe_is_that_of_a_portfolio_computed_from_prices(folded, done, curves):
    returns = []
    for rows in blocks(curves):
        price = np.asarray(folded.dataset.price)[curves["bar"][rows]]
        coins = CAPITAL / price.shape[1] / (price[0] * (1.0 + FEE_RATE))
        value = np.concatenate([[CAPITAL], price[1:] @ coins])
        returns.append(value[1:] / value[:-1] - 1.0)
    assert done[1].equal_weight.sharpe == pytest.approx(annual_sharpe(np.concatenate(returns)), rel=1e-9)


def test_the_agents_sharpe_is_that_of_its_curve_without_the_jump_between_blocks(done, curves):
    returns = [np.diff(curves["equity"][rows]) / curves["equity"][rows][:-1] for rows in blocks(curves)]
    assert done[1].agent.sharpe == pytest.approx(annual_sharpe(np.concatenate(returns)), rel=1e-9)
    assert done[1].excess_sharpe == pytest.approx(done[1].agent.sharpe - done[1].equal_weight.sharpe)
    assert [curves["equity"][rows[0]] for rows in blocks(curves)] == [CAPITAL] * 2


def test_fees_are_the_rate_times_the_traded_notional(done, curves):
    paid, traded = curves["fees"].sum(), curves["turnover"].sum()
    assert traded > 0
    assert FEE_RATE * (1 - SLIPPAGE_RATE) <= paid / traded <= FEE_RATE * (1 + SLIPPAGE_RATE)
    assert done[1].agent.fees == pytest.approx(paid / curves["equity"].mean())
    assert done[1].agent.turnover == pytest.approx(traded / curves["equity"].mean())


def test_the_scalar_environment_trades_the_saved_policy_to_the_same_account(folded, done, curves):
    settings, _, folder = done
    policy = load_policy(folder / "policy_best.safetensors")
    lookback = settings.env["lookback"]
    for (first, last), rows in zip(folded.folds[FOLD].test, blocks(curves), strict=True):
        start = max(first, MAX_LOOKBACK - 1) - lookback + 1
        env = CryptoEnvAlpaca(folded.dataset.env_config([(start, last)]), settings.env, start="first")
        state, is_over, equity = env.reset(), False, [env.total_asset]
        while not is_over:
            with torch.no_grad():
                action = policy(torch.as_tensor(state)[None])[0].numpy()
            state, _, is_over, info = env.step(action)
            equity.append(info["equity"])
        np.testing.assert_allclose(equity, curves["equity"][rows], rtol=1e-5)


def test_the_files_say_where_they_come_from(folded, done):
    settings, outcome, folder = done
    result = json.loads((folder / "result.json").read_text())
    assert result["agent"]["sharpe"] == outcome.agent.sharpe
    assert (result["stepped_by"], result["scoring_stepped_by"]) == ("numba", "numba")
    metadata = load_policy(folder / "policy_best.safetensors").metadata
    assert metadata["study"] == "s"
    assert metadata["tickers"] == list(folded.dataset.tickers)
    assert metadata["seed"] == settings.train["seed"]


def test_the_bounds_in_the_result_are_those_of_its_curve(folded, done, curves):
    _, outcome, folder = done
    growth = sum(math.log(curves["equity"][rows[-1]] / CAPITAL) for rows in blocks(curves))
    assert outcome.hindsight_growth > max(growth, 0.0)
    assert outcome.of_hindsight == pytest.approx(growth / outcome.hindsight_growth)
    assert math.isfinite(outcome.break_even_cost)
    written = json.loads((folder / "result.json").read_text())
    assert [written[name] for name in ATTAINABLE] == [getattr(outcome, name) for name in ATTAINABLE]
