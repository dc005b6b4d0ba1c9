"""The batched classes against the scalar environment: every step, every field, every rule set."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import Portfolio, VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized
from tests.support.markets import ENV_CLASSES, InterpretedTriton, params_of, random_config, real_bars_folder

VARIANTS = {
    "plain": {},
    "stop and penalties": {
        "trailing_stop_pct": 0.02, "min_cash_reserve": 0.1, "concentration_penalty": 0.05, "time_decay_floor": 0.2,
    },
    "all terms": {
        "benchmark_weight": 0.5, "drawdown_penalty": 1.5, "volatility_penalty": 2.0, "concentration_penalty": 0.3,
        "turnover_penalty": 0.1, "growth_weight": 0.7, "observe_account": True,
    },
    "capped and stale": {"max_position_weight": 0.3, "stale_bars": 6, "stale_fraction": 0.25, "slippage_rate": 0.002},
    "small reserve, increments": {"min_cash_reserve": 0.3, "norm_action": 1.5},
}  # fmt: skip
# A step in Triton's interpreter takes some 25 ms; this many still cover a restart of every environment.
INTERPRETED_STEPS = 42
INFO_SCALARS = ("equity", "benchmark_equity", "fees", "slippage", "turnover", "trades", "truncated", "episode_return")


class ScalarBatch:
    """N scalar environments, each restarted where the batched one restarted, compared field by field."""

    def __init__(self, config, env_params, batch, **options):
        self.batch = batch
        self.envs = [CryptoEnvAlpaca(config, env_params, **options) for _ in range(batch.n_envs)]
        bars = batch.book.bar.tolist()
        assert_states(batch.first_states, [env.reset(bar=bar) for env, bar in zip(self.envs, bars, strict=True)])

    def step(self, actions, state, reward, done, info):
        results = [env.step(action) for env, action in zip(self.envs, actions, strict=True)]
        want_states, want_rewards, want_done, want_infos = zip(*results, strict=True)
        np.testing.assert_array_equal(done.numpy(), want_done)
        np.testing.assert_allclose(reward.numpy(), want_rewards, rtol=1e-6, atol=1e-7)
        for name in INFO_SCALARS:
            assert_column(name, info[name], [want[name] for want in want_infos])
        for name in want_infos[0]["reward_terms"]:
            assert_column(name, info["reward_terms"][name], [want["reward_terms"][name] for want in want_infos])
        restarted = np.flatnonzero(want_done)
        assert_states(info["final_state"][restarted], [want_states[i] for i in restarted])
        want_states = list(want_states)
        for i in restarted:
            want_states[i] = self.envs[i].reset(bar=int(self.batch.book.bar[i]))
        assert_states(state, want_states)
        self.assert_books()

    def assert_books(self):
        book, accounts = self.batch.book, [env.account for env in self.envs]
        money = ("cash", "qty", "equity", "benchmark", "benchmark_qty", "peak", "max_drawdown", "discounted_return",
                 "filled")  # fmt: skip
        for name in money:
            assert_column(name, getattr(book, name), [getattr(account, name) for account in accounts])
        for name in ("bar", "first_bar", "last_bar", "held_bars"):
            np.testing.assert_array_equal(getattr(book, name).numpy(), [getattr(account, name) for account in accounts])
        if self.batch.params.trailing_stop_pct > 0:
            assert_column("high", book.high, [account.high for account in accounts])


def assert_column(name, received, expected):
    # An account that spent everything holds 0 or a few 1e-10 USD, by the order of its sums: 1e-9 USD is nothing.
    atol = 1e-12 if "qty" in name or name == "filled" else 1e-9
    np.testing.assert_allclose(received.numpy(), expected, rtol=1e-9, atol=atol, err_msg=name)


def assert_states(received, expected):
    if len(expected):
        np.testing.assert_allclose(np.asarray(received), np.stack(expected), rtol=3e-7, atol=1e-6)


def assert_equal_to_scalar(env_class, config, env_params, n_envs, n_steps, seed=0, **options):
    if env_class is InterpretedTriton:
        n_steps = min(n_steps, INTERPRETED_STEPS)
    batch = env_class(config, env_params, n_envs, gpu_id=-1, as_numpy=False, **options)
    batch.first_states = batch.reset().clone()
    scalar_options = {key: options[key] for key in ("episode_bars", "initial_capital", "gamma") if key in options}
    scalars = ScalarBatch(config, env_params, batch, **scalar_options)
    rng = np.random.default_rng(seed)
    n_done = 0
    for t in range(n_steps):
        actions = rng.uniform(-1, 1, (n_envs, batch.action_dim)).astype(np.float32)
        if t % 11 == 0:
            actions = np.sign(actions)  # whole-account orders
        state, reward, done, info = batch.step(actions)
        n_done += int(done.sum())
        scalars.step(actions, state, reward, done, info)
    return n_done


@pytest.mark.parametrize("env_class", ENV_CLASSES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rules", ["finrl_crypto", "cappuccino", "standard"])
def test_every_step_equals_the_scalar_environment(env_class, rules, variant):
    config = random_config(120, n_assets=4, seed=len(variant), volatility=0.02)
    if "increments" in variant:
        config["qty_increment"] = config["min_order_qty"] * 3
        config["qty_increment"][0] = 1e-9
    settings = params_of(rules, **VARIANTS[variant])
    n_done = assert_equal_to_scalar(env_class, config, settings, 12, 130, start="random", episode_bars=40)
    assert n_done >= 12, "the comparison must cover restarts"


@pytest.mark.parametrize("env_class", ENV_CLASSES)
@pytest.mark.parametrize("rules", ["finrl_crypto", "cappuccino", "standard"])
@pytest.mark.parametrize("n_envs", [1, 13, 37, 64])
def test_every_size_equals_the_scalar_environment(env_class, rules, n_envs):
    config = random_config(90, n_assets=7, n_features=5, seed=n_envs)
    assert_equal_to_scalar(env_class, config, params_of(rules), n_envs, 60, start="stratified", episode_bars=25)


@pytest.mark.parametrize("env_class", ENV_CLASSES)
@pytest.mark.parametrize("rules", ["finrl_crypto", "cappuccino", "standard"])
def test_segments_and_the_end_of_each_equal_the_scalar_environment(env_class, rules):
    config = random_config(150, seed=5, segments=[(0, 40), (40, 44), (50, 100), (103, 150)])
    env_params = params_of(rules, trailing_stop_pct=0.03)
    for start in ("first", "random"):
        options = {"start": start}
        batch = env_class(config, env_params, 5, gpu_id=-1, **options)
        batch.first_states = batch.reset().clone()
        scalars = ScalarBatch(config, env_params, batch)
        rng = np.random.default_rng(1)
        for _ in range(130):
            actions = rng.uniform(-1, 1, (5, 3)).astype(np.float32)
            scalars.step(actions, *batch.step(actions))


@pytest.mark.parametrize("env_class", ENV_CLASSES)
@pytest.mark.parametrize("rules", ["finrl_crypto", "cappuccino", "finrl"])
def test_zero_prices_are_not_traded_and_equal_the_scalar_environment(env_class, rules):
    config = random_config(100, seed=9)
    price = config["price_array"]
    price[20:40, 1] = 0.0
    price[55, :] = 0.0
    assert_equal_to_scalar(env_class, config, params_of(rules, stale_bars=4), 6, 90, start="first")


@pytest.mark.parametrize("env_class", ENV_CLASSES)
@pytest.mark.parametrize("rules", ["finrl_crypto", "cappuccino", "standard"])
def test_bars_without_trades_fill_nothing_and_equal_the_scalar_environment(env_class, rules):
    config = random_config(100, seed=9)
    filled = np.random.default_rng(4).random(config["price_array"].shape) < 0.3
    config["filled_array"] = filled
    for n_envs in (1, 6):
        assert_equal_to_scalar(env_class, config, params_of(rules, trailing_stop_pct=0.05), n_envs, 90, start="first")
    assert filled.any()


@pytest.mark.parametrize("rules", ["finrl_crypto", "cappuccino", "standard"])
@pytest.mark.parametrize("env_class", ENV_CLASSES[1:])
def test_every_field_of_the_books_equals_the_plain_classes_over_restarts(env_class, rules):
    config = random_config(60, seed=3, segments=[(0, 30), (33, 60)])
    options = {"start": "random", "episode_bars": 7, "gpu_id": -1}
    plain, fast = (made(config, params_of(rules), 5, **options) for made in (VectorizedCryptoEnvAlpaca, env_class))
    assert torch.equal(plain.reset(), fast.reset())
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        action = torch.rand(5, 3, generator=generator) * 2 - 1
        plain.step(action)
        fast.step(action)
        for field in fields(Portfolio):
            received, expected = getattr(fast.book, field.name), getattr(plain.book, field.name)
            torch.testing.assert_close(received, expected, rtol=1e-9, atol=1e-9, msg=field.name)


@pytest.mark.parametrize("env_class", ENV_CLASSES)
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_coins_of_a_millionth_of_a_dollar_and_huge_orders_equal_the_scalar_environment(env_class, scale):
    # 1e-9 steps of a coin at 1e-7 USD: quantities of 1e11 coins are 1e20 steps, more than an int64 counts.
    config = random_config(60, n_assets=2, seed=3, qty_increment=np.array([1e-9, 1e-9]), min_order_qty=0.0)
    config["price_array"][:, 0] *= 1e-7 / config["price_array"][0, 0]
    batch = env_class(config, params_of("standard"), 3, gpu_id=-1, start="first")
    batch.first_states = batch.reset().clone()
    scalars = ScalarBatch(config, params_of("standard"), batch)
    rng = np.random.default_rng(0)
    n_trades = 0
    for _ in range(40):
        actions = (scale * rng.uniform(-1, 1, (3, 2))).astype(np.float32)
        step = batch.step(actions)
        n_trades += int(step[3]["trades"].sum())
        scalars.step(actions, *step)
    assert n_trades > 30


@pytest.mark.parametrize("env_class", ENV_CLASSES)
@pytest.mark.parametrize("rules", ["cappuccino", "standard"])
def test_one_environment_draws_the_same_episodes_as_the_scalar_one(env_class, rules):
    config = random_config(200, seed=2, segments=[(0, 80), (90, 200)])
    options = {"start": "random", "episode_bars": 30, "seed": 11}
    scalar = CryptoEnvAlpaca(config, params_of(rules), **options)
    single = env_class(config, params_of(rules), 1, gpu_id=-1, **options)
    rng = np.random.default_rng(3)
    for _ in range(6):
        np.testing.assert_array_equal(scalar.reset(), single.reset())
        assert scalar.time == single.time
        done = False
        while not done:
            action = rng.uniform(-1, 1, 3)
            state, reward, done, info = single.step(action)
            want_state, want_reward, want_done, want_info = scalar.step(action)
            assert done == want_done
            assert reward == pytest.approx(want_reward, rel=1e-6, abs=1e-7)
            np.testing.assert_allclose(state, want_state, rtol=3e-7, atol=1e-6)
            assert set(info) == set(want_info)
            assert info["truncated"] == want_info["truncated"]


@pytest.mark.parametrize("rules", ["finrl_crypto", "cappuccino", "standard"])
def test_native_loop_on_two_threads_equals_the_plain_step(rules):
    config = random_config(300, n_assets=5, seed=4)
    options = {"start": "random", "episode_bars": 20, "gpu_id": -1, "seed": 5}
    plain = VectorizedCryptoEnvAlpaca(config, params_of(rules), 2100, **options)
    fast = VectorizedCryptoEnvAlpacaOptimized(config, params_of(rules), 2100, **options)
    assert torch.equal(plain.reset(), fast.reset())
    generator = torch.Generator().manual_seed(0)
    for _ in range(45):
        action = torch.rand(2100, 5, generator=generator) * 2 - 1
        state, reward, done, info = plain.step(action)
        fast_state, fast_reward, fast_done, fast_info = fast.step(action)
        torch.testing.assert_close(fast_state, state, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(fast_reward, reward, rtol=1e-6, atol=1e-6)
        assert torch.equal(fast_done, done)
        torch.testing.assert_close(fast_info["final_state"][done], info["final_state"][done], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(fast.cash, plain.cash, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(fast.stocks, plain.stocks, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("env_class", ENV_CLASSES)
@pytest.mark.parametrize("rules", ["finrl_crypto", "cappuccino", "standard"])
def test_real_bars_equal_the_scalar_environment(env_class, rules):
    pandas = pytest.importorskip("pandas")
    folder = real_bars_folder()
    if folder is None:
        pytest.skip("no real bars: set CRYPTO_BARS_DIR to the folder with fixture_7coins_5m_2024-08-04_06.csv")
    bars = pandas.read_csv(folder / "fixture_7coins_5m_2024-08-04_06.csv")
    price = bars.pivot_table(index="timestamp", columns="symbol", values="close").to_numpy(float).copy()
    volume = bars.pivot_table(index="timestamp", columns="symbol", values="volume").to_numpy(float)
    tech = np.concatenate([np.diff(np.log(price), axis=0, prepend=np.log(price[:1])), np.log1p(volume)], axis=1)
    tickers = sorted(bars["symbol"].unique())
    config = {"price_array": price, "tech_array": tech, "tickers": tickers}
    env_params = params_of(rules, lookback=5)
    assert_equal_to_scalar(env_class, config, env_params, 12, 300, start="random", episode_bars=120)
