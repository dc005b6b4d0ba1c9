"""The cost factor of the steps and the quantities they filled: every class, every rule set."""

import copy
import pickle

import numpy as np
import pytest
import torch

from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import RULES, VectorizedCryptoEnvAlpaca, open_portfolio, step
from tests.environment.test_parity import ScalarBatch
from tests.support.markets import ENV_CLASSES, InterpretedTriton, params_of, random_config

EVERY_PHASE = {"trailing_stop_pct": 0.02, "stale_bars": 5, "stale_fraction": 0.25, "slippage_rate": 0.002}
OPTIONS = {"start": "random", "episode_bars": 6, "gpu_id": -1, "as_numpy": False}
N_ENVS, N_ASSETS = 5, 4

each_class = pytest.mark.parametrize("env_class", ENV_CLASSES)
every_class = pytest.mark.parametrize("env_class", [CryptoEnvAlpaca, *ENV_CLASSES])
each_rules = pytest.mark.parametrize("rules", RULES)


def config_of(seed=3):
    return random_config(60, N_ASSETS, seed=seed, volatility=0.02)


def make(env_class, rules="standard", n_envs=N_ENVS, **settings):
    return env_class(config_of(), params_of(rules, **EVERY_PHASE, **settings), n_envs, **OPTIONS)


def one_account(env_class, rules="standard", **options):
    sizes = {} if env_class is CryptoEnvAlpaca else {"n_envs": 1, "gpu_id": -1}
    return env_class(config_of(), params_of(rules, **EVERY_PHASE), start="first", **sizes, **options)


def drawn_actions(n_steps, seed=0):
    actions = np.random.default_rng(seed).uniform(-1.0, 1.0, (n_steps, N_ENVS, N_ASSETS)).astype(np.float32)
    actions[::4] = np.sign(actions[::4])
    return torch.from_numpy(actions)


# ---------------------------------------------------------------- the factor
@each_class
@each_rules
def test_every_step_equals_the_scalar_environment_while_the_factor_changes(env_class, rules):
    # A step in Triton's interpreter takes some 25 ms.
    n_steps, rng = (9 if env_class is InterpretedTriton else 40), np.random.default_rng(1)
    batch = make(env_class, rules)
    batch.first_states = batch.reset().clone()
    scalars = ScalarBatch(config_of(), params_of(rules, **EVERY_PHASE), batch, episode_bars=OPTIONS["episode_bars"])
    fees = 0.0
    for t, action in enumerate(drawn_actions(n_steps)):
        factor = (0.0, 1.0, rng.random())[t % 3]
        for env in (batch, *scalars.envs):
            env.cost_factor = factor
        returned = batch.step(action)
        scalars.step(action.numpy(), *returned)
        fees += float(returned[3]["fees"].sum())
        assert factor > 0 or not returned[3]["slippage"].any()
    assert fees > 0


@each_class
@each_rules
def test_a_factor_of_one_gives_the_bits_of_an_environment_without_a_factor(env_class, rules):
    untouched, env = make(env_class, rules), make(env_class, rules)
    env.cost_factor = 0.3
    env.cost_factor = 1.0
    assert torch.equal(env.reset(), untouched.reset())
    for action in drawn_actions(5 if env_class is InterpretedTriton else 20):
        (state, reward, _, info), (want_state, want_reward, _, want) = env.step(action), untouched.step(action)
        assert torch.equal(state, want_state)
        assert torch.equal(reward, want_reward)
        for name in ("equity", "fees", "slippage", "benchmark_equity"):
            assert torch.equal(info[name], want[name]), name


@every_class
def test_half_the_factor_charges_half_the_rates(env_class):
    # 1000 USD; action 1 at norm_action 4 buys 250 / 50 = 5 coins. Half of 1 % slippage: 50 * 1.005 = 50.25 a coin,
    # with half of 2 % fee 50.25 * 1.01 = 50.7525: cash 1000 - 253.7625 = 746.2375. Then everything is sold at 60 with
    # a quarter of 1 % and of 3 %: 5 * 60 * 0.9975 * 0.9925 = 297.005625.
    market = {"price_array": np.array([[40.0], [50.0], [60.0], [60.0]]), "tech_array": np.zeros((4, 1))}
    settings = {"rules": "standard", "lookback": 1, "slippage_rate": 0.01, "min_order_notional": 0.0}
    sizes = {} if env_class is CryptoEnvAlpaca else {"n_envs": 1, "gpu_id": -1}
    costs = {"initial_capital": 1000, "buy_cost_pct": 0.02, "sell_cost_pct": 0.03}
    env = env_class(market, settings, start="first", **costs, **sizes)
    env.reset()
    env.cost_factor = 0.5
    info = env.step(np.array([1.0]))[3]
    assert env.cash == pytest.approx(746.2375, rel=1e-12)
    assert (info["fees"], info["slippage"]) == pytest.approx((5 * 50.25 * 0.01, 5 * 50 * 0.005), rel=1e-12)
    assert env.filled == pytest.approx([5.0], rel=1e-12)
    env.cost_factor = 0.25
    info = env.step(np.array([-4.0]))[3]
    assert env.cash == pytest.approx(746.2375 + 297.005625, rel=1e-12)
    assert (info["fees"], info["slippage"]) == pytest.approx((300 * 0.9975 * 0.0075, 300 * 0.0025), rel=1e-12)
    assert env.filled == pytest.approx([-5.0], rel=1e-12)
    assert isinstance(env.filled, np.ndarray)


@every_class
@pytest.mark.parametrize("rules", ["cappuccino", "standard"])
def test_the_benchmark_pays_its_entry_fee_in_full(env_class, rules):
    free, full = one_account(env_class, rules), one_account(env_class, rules)
    free.cost_factor = 0.0
    for _ in range(2):  # the second account is opened while the factor is 0
        free.reset(), full.reset()
        infos = [[env.step(np.ones(N_ASSETS))[3] for env in (free, full)] for _ in range(3)]
        for found, wanted in infos:
            assert found["benchmark_equity"] == wanted["benchmark_equity"]
            assert found["fees"] == found["slippage"] == 0.0
        assert infos[0][1]["fees"] > 0


@each_class
def test_accounts_that_restart_within_a_step_pay_the_full_entry_fee_in_their_benchmark(env_class):
    free, full = make(env_class), make(env_class)
    free.cost_factor = 0.0
    free.reset(), full.reset()
    for action in drawn_actions(8):
        free.step(action), full.step(action)
    assert torch.equal(free.book.benchmark_qty, full.book.benchmark_qty)


@every_class
@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -0.01, 1.01])
def test_a_factor_that_is_no_share_is_refused_and_changes_nothing(env_class, factor):
    env = one_account(env_class)
    env.cost_factor = 0.5
    with pytest.raises(ValueError, match="cost_factor must be between 0 and 1; received"):
        env.cost_factor = factor
    assert env.cost_factor == 0.5


@every_class
def test_a_reset_and_copies_keep_the_factor(env_class):
    env = one_account(env_class)
    assert env.cost_factor == 1.0
    env.cost_factor = 0.25
    env.reset()
    twins = (copy.deepcopy(env), pickle.loads(pickle.dumps(env)))
    want = env.step(np.ones(N_ASSETS))[3]
    for twin in twins:
        assert twin.cost_factor == 0.25
        assert twin.step(np.ones(N_ASSETS))[3]["fees"] == want["fees"] > 0
    copied = copy.deepcopy(env)
    copied.cost_factor = 1.0
    assert env.cost_factor == 0.25


@each_class
def test_another_number_of_accounts_keeps_the_factor(env_class):
    env, other = make(env_class, n_envs=3), make(env_class)
    env.cost_factor = other.cost_factor = 0.25
    env.n_envs = N_ENVS
    env.reset(), other.reset()
    action = drawn_actions(1)[0]
    assert torch.equal(env.step(action)[3]["fees"], other.step(action)[3]["fees"])


# ---------------------------------------------------------------- what was filled
@each_class
@each_rules
def test_what_was_filled_adds_up_to_the_position(env_class, rules):
    env = make(env_class, rules)
    env.reset()
    n_ended, n_both_ways = 0, 0
    for action in drawn_actions(9 if env_class is InterpretedTriton else 40):
        before = env.book.qty
        done = env.step(action)[2]
        held = torch.maximum(before, env.stocks)
        assert ((before + env.filled - env.stocks).abs() <= 1e-14 * held).all()
        assert torch.equal(env.book.filled[~done], env.filled[~done])
        assert not env.book.filled[done].any(), "a fresh account has filled nothing"
        n_ended += int(done.sum())
        n_both_ways += bool((env.filled > 0).any() and (env.filled < 0).any())
    assert (n_ended >= N_ENVS, n_both_ways > 3) == (True, True)
    env.reset()
    assert not env.filled.any()


@every_class
def test_stops_and_stale_releases_are_among_the_fills(env_class):
    # Coin 0: bought at 50, 5 coins of 1000 USD; at 40, 20 % below its high, the stop sells all. Coin 1: 10 coins at
    # 25, of which a quarter is released once it was held for 3 bars.
    price = np.array([[50.0, 25.0], [50.0, 25.0], [50.0, 25.0], [40.0, 25.0], [40.0, 25.0], [40.0, 25.0]])
    config = {"price_array": price, "tech_array": np.zeros((6, 1))}
    settings = {"rules": "standard", "lookback": 1, "slippage_rate": 0.0, "min_order_notional": 0.0,
                "trailing_stop_pct": 0.1, "stale_bars": 3, "stale_fraction": 0.25}  # fmt: skip
    sizes = {} if env_class is CryptoEnvAlpaca else {"n_envs": 1, "gpu_id": -1}
    env = env_class(config, settings, initial_capital=1000, start="first", **sizes)
    env.reset()
    found = []
    for action in ([1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]):
        env.step(np.array(action))
        found.append(env.filled)
    assert np.array(found) == pytest.approx(np.array([[5.0, 10.0], [0.0, 0.0], [-5.0, 0.0], [0.0, -2.5]]))


@each_class
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_shows_what_the_ended_accounts_filled_last(env_class, copied):
    env = make(env_class)
    env.reset()
    for action in drawn_actions(OPTIONS["episode_bars"]):
        done = env.step(action)[2].clone()
    assert done.all()
    assert env.filled.any()
    assert torch.equal(copied(env).filled, env.filled)


# ---------------------------------------------------------------- the pure step
def pure_step(n_steps=6):
    """(function of actions (T, N, A) and a factor -> final equity (N,), actions) in float64, no order too small."""
    settings = params_of("standard", min_order_notional=0.0, **EVERY_PHASE)
    env = VectorizedCryptoEnvAlpaca(config_of() | {"min_order_qty": 0.0}, settings, N_ENVS, **OPTIONS)
    first_bar = torch.arange(N_ENVS) + 10
    fresh = open_portfolio(torch.zeros_like(first_bar), first_bar, None, env.market, env.params)

    def final_equity(actions, factor=None):
        book, costs = fresh, None if factor is None else env.params.costs(factor)
        for action in actions:
            book, _ = step(book, action, env.market, env.params, costs)
        return book.equity

    actions = drawn_actions(n_steps, seed=5).double() * 0.3
    actions[0] = actions[0].abs()
    return final_equity, actions


def test_autograd_goes_through_the_pure_step_with_reduced_costs():
    final_equity, actions = pure_step()
    actions.requires_grad_()
    factor = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    by_action, by_factor = torch.autograd.grad(final_equity(actions, factor).sum(), (actions, factor))
    with torch.no_grad():
        for index in ((0, 1, 2), (1, 0, 3), (2, 4, 0), (3, 2, 1)):
            shift = torch.zeros_like(actions)
            shift[index] = 1e-6
            high, low = (final_equity(moved, 0.4).sum() for moved in (actions + shift, actions - shift))
            assert float(by_action[index]) == pytest.approx(float(high - low) / 2e-6, rel=1e-5, abs=1e-4)
        high, low = (final_equity(actions, moved).sum() for moved in (0.4 + 1e-6, 0.4 - 1e-6))
    assert float(by_factor) == pytest.approx(float(high - low) / 2e-6, rel=1e-5)
    assert float(by_factor) < 0, "costs cost"


def test_the_pure_step_charges_in_full_unless_told_otherwise():
    final_equity, actions = pure_step()
    assert torch.equal(final_equity(actions), final_equity(actions, 1.0))
    as_tensor = torch.tensor(0.4, dtype=torch.float64)
    assert torch.equal(final_equity(actions, 0.4), final_equity(actions, as_tensor))
    assert (final_equity(actions, 0.4) > final_equity(actions)).all()
