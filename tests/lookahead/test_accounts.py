"""Environments that show or book what comes next are found at the right bar; ours are clean under every rule set."""

import numpy as np
import pytest
import torch

from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized
from tests.support.markets import params_of, random_config
from train.env_factory import make_env
from train.lookahead.accounts import (
    EnvDifference,
    analyse_env,
    counts_down,
    cut_off,
    first_env_difference,
    numpy_policy,
    observation_column,
    probe_policy,
    scrambled,
    stopped,
    stretch,
    trade,
)

CLASSES = (CryptoEnvAlpaca, VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized)
RULES = ("finrl_crypto", "cappuccino", "standard")
N_CUTS = 5
STANDARD = params_of("standard", benchmark_weight=1.0, drawdown_penalty=0.5)


def analysed(env_class, env_params=STANDARD, config=None, seed=0):
    config = stretch(config or random_config(120), 0, 120)

    def new(other):
        return make_env(env_class, other, env_params, start="first", gpu_id=-1)

    env = new(config)
    return analyse_env(new, probe_policy(env.state_dim, env.action_dim, 0), config, env_params, N_CUTS, seed)


def earliest_cut(seed=0):
    """The first k that the analysis of the standard rules takes on 120 bars with lookback 3."""
    offsets = np.random.default_rng(seed).choice(np.arange(1, 117), N_CUTS, replace=False)
    return 2 + int(offsets.min())


# ---------------------------------------------------------------------------------------------- clean environments
@pytest.mark.parametrize("observe_account", [False, True])
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("env_class", CLASSES)
def test_our_environments_are_clean(env_class, rules, observe_account):
    env_params = params_of(rules, observe_account=observe_account, trailing_stop_pct=0.02)
    report = analysed(env_class, env_params)
    assert report.differences == ()
    assert report.n_cuts == N_CUTS
    assert report.n_steps > 100
    gone = "cut off" if rules == "standard" and not observe_account else "stopped"
    assert report.variants == ("scrambled", gone)


def test_the_probe_trades():
    config, env = random_config(120), make_env(CryptoEnvAlpaca, random_config(120), STANDARD, start="first")
    trace = trade(env, probe_policy(env.state_dim, env.action_dim, 0), len(config["price_array"]) - 1)
    assert np.nansum(trace.rows["trades"]) > 50
    assert np.nansum(trace.rows["fees"]) > 0


# ---------------------------------------------------------------------------------------------- planted leaks
class ShowsNextClose(CryptoEnvAlpaca):
    def _observe(self):
        state = super()._observe()
        state[0] = self.price_array[min(self.account.bar + 1, len(self.price_array) - 1), 1]
        return state


class ShowsNextFeatures(VectorizedCryptoEnvAlpaca):
    def _observe(self, book):
        state = super()._observe(book)
        state[:, 5] = self.market.price[(book.bar + 1).clamp(max=len(self.market.price) - 1), 0].float()
        return state


class NormalisesByTheWholeSample(CryptoEnvAlpaca):
    def _observe(self):
        state = super()._observe()
        state[-1] -= self.tech_array.mean()
        return state


class BenchmarkOfTheNextBar(CryptoEnvAlpaca):
    def _info(self, terms, truncated, state):
        bar = min(self.account.bar + 1, len(self.price_array) - 1)
        info = super()._info(terms, truncated, state)
        return info | {"benchmark_equity": float(np.dot(self.account.benchmark_qty, self.price_array[bar]))}


class RewardOfTheNextBar(CryptoEnvAlpaca):
    def step(self, actions):
        state, reward, done, info = super().step(actions)
        bar = min(self.account.bar + 1, len(self.price_array) - 1)
        return state, reward + float(self.price_array[bar, 0] / self.price_array[self.account.bar, 0]), done, info


class FillsAtTheNextClose(CryptoEnvAlpaca):
    """Every price is that of the next bar."""

    def __init__(self, config, env_params, start=None):
        early = np.concatenate([config["price_array"][1:], config["price_array"][-1:]])
        super().__init__({**config, "price_array": early}, env_params, start=start)


@pytest.mark.parametrize(
    ("env_class", "field", "column"),
    [
        (ShowsNextClose, "observation", 0),
        (ShowsNextFeatures, "observation", 5),
        (BenchmarkOfTheNextBar, "benchmark_equity", 0),
        (RewardOfTheNextBar, "reward", 0),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_what_comes_next_is_found_at_the_last_bar_that_was_the_same(env_class, field, column, seed):
    report = analysed(env_class, seed=seed)
    found = report.first
    assert (found.bar, found.last_bar, found.field, found.column) == (earliest_cut(seed),) * 2 + (field, column)
    assert len(report.differences) == 2 * N_CUTS
    assert f"bar {found.bar}: {field}[{column}] is" in str(found)


class ShowsWhetherABarIsTraded(CryptoEnvAlpaca):
    """Two bars ahead, in the observation."""

    def __init__(self, config, env_params, start=None):
        self.is_filled = np.asarray(config["filled_array"])
        super().__init__(config, env_params, start=start)

    def _observe(self):
        state = super()._observe()
        state[0] = self.is_filled[min(self.account.bar + 2, len(self.is_filled) - 1), 1]
        return state


def thin_market(n_bars=120):
    """In a third of the bars nobody trades a coin."""
    filled = np.random.default_rng(5).random((n_bars, 3)) < 1 / 3
    return random_config(n_bars, filled_array=filled)


@pytest.mark.parametrize("observe_account", [False, True])
def test_bars_that_will_not_be_traded_are_found(observe_account):
    """With `observe_account` no bars are cut off, so they have to be scrambled and stopped."""
    report = analysed(ShowsWhetherABarIsTraded, STANDARD | {"observe_account": observe_account}, thin_market())
    variants = {found.variant for found in report.differences}
    assert variants == set(report.variants)
    for found in report.differences:
        assert (found.field, found.column) == ("observation", 0)
        assert found.last_bar - 1 <= found.bar <= found.last_bar


@pytest.mark.parametrize("env_class", CLASSES)
def test_our_environments_are_clean_where_bars_are_not_traded(env_class):
    config = thin_market()
    assert analysed(env_class, STANDARD | {"observe_account": True}, config).differences == ()
    for other in (scrambled(config, 20, np.random.default_rng(0)), stopped(config, 20)):
        np.testing.assert_array_equal(other["filled_array"][:21], config["filled_array"][:21])


def test_early_prices_are_found_at_the_last_bar_that_was_the_same():
    report = analysed(FillsAtTheNextClose)
    assert report.first.bar == report.first.last_bar == earliest_cut()


def test_normalising_by_the_whole_sample_is_found_at_the_first_bar():
    found = analysed(NormalisesByTheWholeSample).first
    assert (found.bar, found.field) == (2, "observation")


def test_an_episode_that_ends_because_of_what_follows_is_found():
    class StopsBeforeAFall(CryptoEnvAlpaca):
        def step(self, actions):
            state, reward, _, info = super().step(actions)
            bar = min(self.account.bar + 1, len(self.price_array) - 1)
            self.done = self.done or self.price_array[bar, 0] < 0.8 * self.price_array[bar - 1, 0]
            return state, reward, self.done, info

    report = analysed(StopsBeforeAFall)
    assert report.first is not None
    for found in report.differences:  # by chance some scrambled bars fall and others do not
        assert (found.bar, found.field, found.variant) == (found.last_bar, "done", "scrambled")


def test_an_account_that_ends_early_in_one_run_differs_there():
    config = stretch(random_config(60), 0, 60)
    env = make_env(CryptoEnvAlpaca, config, STANDARD, start="first")
    act = probe_policy(env.state_dim, env.action_dim, 0)
    full, short = trade(env, act, 40), trade(env, act, 30)
    assert first_env_difference(full, short, 30, "scrambled") is None
    assert first_env_difference(full, short, 35, "scrambled") == EnvDifference(
        31, "episode", 0, 0.0, 0.0, 35, "scrambled"
    )


# ---------------------------------------------------------------------------------------------- parts
def test_other_futures_leave_the_past_alone():
    config = stretch(random_config(50), 0, 50)
    before = {name: config[name].copy() for name in ("price_array", "tech_array")}
    for other in (scrambled(config, 20, np.random.default_rng(0)), stopped(config, 20), cut_off(config, 20)):
        for name, values in before.items():
            np.testing.assert_array_equal(other[name][:21], values[:21])
            np.testing.assert_array_equal(config[name], values)
            assert not np.array_equal(other[name][21:], values[21:])
    assert len(cut_off(config, 20)["price_array"]) == 21
    assert (scrambled(config, 20, np.random.default_rng(0))["price_array"] > 0).all()


def test_every_action_of_the_probe_depends_on_every_column():
    act = probe_policy(40, 3, 0)
    state = np.random.default_rng(0).normal(size=40).astype(np.float32)
    for column in range(40):
        other = state.copy()
        other[column] += 0.01
        assert (act(other) != act(state)).all(), column
    np.testing.assert_array_equal(act(state), act(state))


def test_a_policy_of_tensors_is_asked_for_one_account():
    act = numpy_policy(lambda state: torch.tanh(state[:, :2]))
    np.testing.assert_allclose(act(np.array([1.0, -1.0, 5.0])), np.tanh([1.0, -1.0]), rtol=1e-6)


def test_columns_of_an_observation_have_names():
    names = [observation_column(i, STANDARD, ("BTC", "ETH"), ("BTC:rsi", "ETH:rsi")) for i in (0, 2, 3, 6, 9)]
    assert names == [
        "cash_weight", "weight ETH", "tech BTC:rsi, 0 bars back", "tech ETH:rsi, 1 bars back", "outside the layout",
    ]  # fmt: skip


def test_rules_that_count_down_are_known():
    env = {rules: make_env(CryptoEnvAlpaca, random_config(50), params_of(rules)) for rules in RULES}
    assert {rules: counts_down(e.params) for rules, e in env.items()} == {
        "finrl_crypto": True, "cappuccino": True, "standard": False,
    }  # fmt: skip
