"""What callers rely on: shapes, devices, errors, actions of every kind, starts, seeds, buffers."""

import copy
import inspect
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import (
    RULES,
    TERM_NAMES,
    EnvParams,
    VectorizedCryptoEnvAlpaca,
    VectorizedCryptoEnvAlpacaOptimized,
    observation_layout,
)
from tests.support.markets import ENV_CLASSES, REPO, WithoutKernel, params_of, random_config

each_class = pytest.mark.parametrize("env_class", ENV_CLASSES)


def make(env_class, n_envs=4, rules="standard", config=None, env_params=None, **options):
    config = config or random_config(60)
    return env_class(config, env_params or params_of(rules), n_envs, gpu_id=-1, **options)


# ---------------------------------------------------------------- shapes and names
@each_class
def test_a_batch_speaks_tensors(env_class):
    env = make(env_class)
    state = env.reset()
    assert (state.shape, state.dtype) == ((4, env.state_dim), torch.float32)
    state, reward, done, info = env.step(torch.zeros(4, 3))
    assert (state.shape, reward.shape, done.shape) == ((4, env.state_dim), (4,), (4,))
    assert (reward.dtype, done.dtype) == (torch.float32, torch.bool)
    assert isinstance(info, dict)
    for name in ("truncated", "episode_return", "trades", "fees", "turnover", "rejected_actions", "equity"):
        assert info[name].shape == (4,), name
    assert info["final_state"].shape == state.shape
    assert env.cash.shape == env.time.shape == env.total_asset.shape == (4,)
    assert env.stocks.shape == (4, 3)
    assert env.price_array.shape == (60, 3)


@each_class
def test_one_environment_speaks_numpy(env_class):
    env = make(env_class, 1)
    assert env.reset().shape == (env.state_dim,)
    state, reward, done, info = env.step(np.zeros(3))
    assert isinstance(state, np.ndarray)
    assert state.dtype == np.float32
    assert (type(reward), type(done)) == (float, bool)
    assert type(info["fees"]) is float
    assert type(info["trades"]) is int
    assert type(env.cash) is float
    assert isinstance(env.stocks, np.ndarray)
    assert type(env.time) is int
    assert isinstance(env.price_array, np.ndarray)
    assert env.episode_return == pytest.approx(env.total_asset / env.initial_total_asset)


@each_class
def test_every_option_is_a_named_parameter_of_the_constructor(env_class):
    names = inspect.signature(env_class.__init__).parameters
    assert {"n_envs", "num_envs", "gpu_id", "seed", "start", "episode_bars", "gamma", "if_log"} <= set(names)
    assert all(p.kind is not p.VAR_KEYWORD for p in names.values())
    assert "n_envs" not in inspect.signature(CryptoEnvAlpaca.__init__).parameters


@each_class
def test_elegantrl_may_assign_its_attributes_and_call_n_envs_num_envs(env_class):
    env = env_class(random_config(60), params_of("standard"), num_envs=6, gpu_id=-1)
    assert env.n_envs == env.num_envs == env.env_num == 6
    for name in ("env_name", "num_envs", "max_step", "state_dim", "action_dim", "if_discrete"):
        setattr(env, name, getattr(env, name))


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("observe_account", [False, True])
def test_the_layout_adds_up_to_the_state(rules, observe_account):
    env = make(VectorizedCryptoEnvAlpaca, rules=rules, env_params=params_of(rules, observe_account=observe_account))
    assert sum(width for _, width in observation_layout(env.params, 3, 4)) == env.state_dim == env.reset().shape[1]
    scalar = CryptoEnvAlpaca(random_config(60), params_of(rules, observe_account=observe_account))
    assert scalar.state_dim == env.state_dim
    assert scalar.max_step == env.max_step or rules == "standard"


# ---------------------------------------------------------------- actions
@each_class
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_action_is_a_hold_for_that_environment_alone(env_class, bad):
    config = random_config(60)
    env, held = make(env_class, config=config, start="first"), make(env_class, config=config, start="first")
    env.reset(), held.reset()
    action = torch.full((4, 3), 0.5)
    env.step(action), held.step(action)
    poisoned, hold = action.clone(), action.clone()
    poisoned[2, 1] = bad
    hold[2] = 0.0
    state = env.step(poisoned)[0]
    assert torch.equal(state, held.step(hold)[0])
    assert env.step(action)[3]["rejected_actions"].tolist() == [0, 0, 1, 0]
    env.reset()
    assert env.step(action)[3]["rejected_actions"].tolist() == [0, 0, 0, 0]


@each_class
@pytest.mark.parametrize(
    "convert",
    [
        lambda a: a.double(), lambda a: a.numpy(), lambda a: a.clone().requires_grad_(), lambda a: a.T.contiguous().T,
        lambda a: torch.stack([a, a], -1)[..., 0], lambda a: a.tolist(), lambda a: a.half().float(),
    ],
)  # fmt: skip
def test_actions_of_any_kind_give_the_same_step_and_are_not_written(env_class, convert):
    config = random_config(60)
    action = (torch.arange(12.0).reshape(4, 3) / 6 - 1).half().float()
    plain, other = make(env_class, config=config), make(env_class, config=config)
    plain.reset(), other.reset()
    given = convert(action)
    kept = copy.deepcopy(given) if not isinstance(given, torch.Tensor) else given.detach().clone()
    for _ in range(3):
        want = plain.step(action)
        got = other.step(given)
        assert torch.equal(got[0], want[0])
        assert not got[0].requires_grad
        assert not got[1].requires_grad
    unchanged = given.detach() if isinstance(given, torch.Tensor) else given
    assert np.array_equal(np.asarray(unchanged), np.asarray(kept))


@each_class
def test_a_wrong_shape_names_both_shapes(env_class):
    env = make(env_class)
    env.reset()
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(4, 2\)"):
        env.step(torch.zeros(4, 2))
    single = make(env_class, 1)
    single.reset()
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
        single.step(np.zeros(4))
    with pytest.raises(ValueError, match=r"\(3,\).*\(1, 3\)"):
        single.step(torch.zeros(1, 3))


@each_class
def test_a_huge_action_fills_what_the_account_allows(env_class):
    env = make(env_class, env_params=params_of("standard"))
    env.reset()
    info = env.step(torch.full((4, 3), 3e38))[3]
    assert torch.isfinite(info["equity"]).all()
    assert (env.cash >= 0).all()
    assert (env.cash < 1.0).all(), "everything is spent"


# ---------------------------------------------------------------- order of calls
@each_class
@pytest.mark.parametrize("n_envs", [1, 3])
def test_step_before_reset_is_an_error(env_class, n_envs):
    env = make(env_class, n_envs)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(3) if n_envs == 1 else np.zeros((3, 3)))


@each_class
def test_one_environment_keeps_its_books_after_the_end_and_refuses_to_step_on(env_class):
    env = make(env_class, 1, config=random_config(10), start="first")
    env.reset()
    done = False
    while not done:
        _, _, done, info = env.step(np.ones(3))
    assert info["truncated"]
    assert env.time == 9
    assert env.total_asset == info["equity"]
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.ones(3))
    env.reset()
    env.step(np.ones(3))


@each_class
def test_a_finished_environment_restarts_in_the_same_step(env_class):
    config = random_config(60, segments=[(0, 8), (10, 60)])
    env = make(env_class, 2, config=config, start="first")
    env.reset()
    for _ in range(5):
        state, _, done, info = env.step(torch.ones(2, 3))
    assert done.tolist() == [True, False]
    assert info["truncated"].tolist() == [True, False]
    assert env.book.cash[0] == env.initial_total_asset
    assert env.book.bar[0] == 12, "the next segment's first bar with a full lookback"
    assert torch.equal(state[0, :4], torch.tensor([1.0, 0, 0, 0]))
    assert info["final_state"][0, 0] < 0.5, "the old episode was invested"
    assert info["equity"][0] != env.initial_total_asset


@each_class
def test_ruin_is_terminal_and_not_truncated(env_class):
    config = random_config(30, n_assets=1)
    config["price_array"][:] = 100.0
    config["price_array"][10:] = 0.5
    env = make(env_class, 2, config=config, env_params=params_of("standard", norm_action=1.0), start="first")
    env.reset()
    for _ in range(8):
        _, reward, done, info = env.step(torch.ones(2, 1))
    assert done.all()
    assert not info["truncated"].any()
    assert torch.isfinite(reward).all()


# ---------------------------------------------------------------- starts and seeds
@each_class
def test_starts_repeat_with_the_seed_and_cover_every_bar(env_class):
    config = random_config(40, segments=[(0, 12), (12, 14), (20, 40)])
    seen = {"random": set(), "stratified": set()}
    for start, bars in seen.items():
        one, same, other = (make(env_class, 16, config=config, start=start, seed=s) for s in (7, 7, 8))
        for _ in range(40):
            assert torch.equal(one.reset(), same.reset())
            other.reset()
            bars.update(one.time.tolist())
        assert not torch.equal(one.time, other.time)
        assert bars == {*range(2, 11), *range(22, 39)}


@each_class
def test_stratified_starts_spread_over_the_market(env_class):
    env = make(env_class, 10, config=random_config(1002), start="stratified")
    env.reset()
    assert sorted(env.time.tolist()) == env.time.tolist()
    assert all(abs(bar - 100 * i) <= 101 for i, bar in enumerate(env.time.tolist()))


@each_class
def test_windows_have_the_length_asked_for(env_class):
    env = make(env_class, 8, config=random_config(60, segments=[(0, 30), (30, 60)]), episode_bars=10, start="random")
    env.reset()
    assert env.max_step == 10
    for t in range(1, 31):
        _, _, done, _ = env.step(torch.zeros(8, 3))
        assert done.all() == (t % 10 == 0)
        segment = env.book.bar // 30
        assert ((env.book.last_bar // 30) == segment).all(), "no window crosses a seam"


@each_class
def test_multiplying_one_segment_changes_nothing_in_the_others(env_class):
    for rules in RULES:
        config = random_config(60, segments=[(0, 30), (30, 60)])
        scaled = {**config, "price_array": config["price_array"].copy()}
        scaled["price_array"][:30] *= 10.0
        one, other = (make(env_class, 2, rules, c, start="first") for c in (config, scaled))
        one.reset(), other.reset()
        for _ in range(15):
            action = torch.tensor([[0.0, 0.0, 0.0], [0.7, -0.2, 0.4]])
            assert torch.equal(one.step(action)[0][1], other.step(action)[0][1])


# ---------------------------------------------------------------- memory
@each_class
def test_arrays_of_the_caller_are_never_written(env_class):
    config = random_config(50)
    kept = copy.deepcopy(config)
    for array in config.values():
        array.flags.writeable = False
    env = make(env_class, config=config)
    env.reset()
    for _ in range(60):
        env.step(torch.ones(4, 3))
    for name, array in config.items():
        np.testing.assert_array_equal(array, kept[name])


@each_class
def test_two_environments_on_one_config_do_not_meet(env_class):
    config = random_config(50)
    one, other = make(env_class, config=config, start="first"), make(env_class, config=config, start="first")
    one.reset(), other.reset()
    before = other.cash.clone()
    one.step(torch.ones(4, 3))
    assert torch.equal(other.cash, before)


@each_class
def test_a_deep_copy_shares_the_market_and_nothing_else(env_class):
    env = make(env_class, start="first")
    env.reset()
    env.step(torch.ones(4, 3))
    twin = copy.deepcopy(env)
    assert twin.market is env.market
    want = env.step(-torch.ones(4, 3))[0].clone()
    env.step(torch.ones(4, 3))
    assert torch.equal(twin.step(-torch.ones(4, 3))[0], want)


def test_states_of_the_plain_class_stay_valid():
    env = make(VectorizedCryptoEnvAlpaca)
    states = [env.reset()]
    kept = [states[0].clone()]
    for _ in range(5):
        states.append(env.step(torch.ones(4, 3))[0])
        kept.append(states[-1].clone())
    assert all(torch.equal(a, b) for a, b in zip(states, kept, strict=True))


@pytest.mark.parametrize("env_class", [c for c in ENV_CLASSES[1:] if c is not WithoutKernel])
def test_what_the_fast_class_returns_is_one_of_two_sets_of_buffers(env_class):
    env = make(env_class)
    env.reset()
    first, second, third = (env.step(torch.ones(4, 3)) for _ in range(3))
    assert [x.data_ptr() for x in first[:3]] == [x.data_ptr() for x in third[:3]]
    assert not {x.data_ptr() for x in first[:3]} & {x.data_ptr() for x in second[:3]}
    assert first[3]["equity"].data_ptr() == third[3]["equity"].data_ptr() != second[3]["equity"].data_ptr()


def flattened(returned):
    """Every tensor of what a call returned, by a name."""
    state, reward, done, info = returned
    terms = {f"terms.{name}": value for name, value in info["reward_terms"].items()}
    rest = {name: value for name, value in info.items() if name != "reward_terms"}
    return {"state": state, "reward": reward, "done": done, **rest, **terms}


@each_class
def test_what_a_call_returned_stays_valid_through_the_next_call(env_class):
    env = make(env_class, config=random_config(24), start="random", episode_bars=6)
    state = env.reset()
    returned, kept = {"state": state}, {"state": state.clone()}
    for t in range(20):
        if t % 7 == 5:
            called = {"state": env.reset()}
        else:
            called = flattened(env.step(torch.sin(torch.arange(12.0) + t).reshape(4, 3)))
        for name, value in returned.items():
            assert torch.equal(value, kept[name]), f"{name} of call {t - 1} changed in call {t}"
        returned, kept = called, {name: value.clone() for name, value in called.items()}


@pytest.mark.parametrize("env_class", ENV_CLASSES[1:])
def test_the_fast_class_writes_into_the_callers_storage(env_class):
    config = random_config(60)
    env, plain = make(env_class, config=config), make(VectorizedCryptoEnvAlpaca, config=config)
    states = torch.zeros(9, 4, env.state_dim)
    rewards, dones = torch.zeros(8, 4), torch.zeros(8, 4, dtype=torch.bool)
    env.reset(out_state=states[0])
    want = plain.reset()
    assert torch.equal(states[0], want)
    for t in range(8):
        got = env.step(torch.ones(4, 3), out={"state": states[t + 1], "reward": rewards[t], "done": dones[t]})
        want, want_reward, want_done, _ = plain.step(torch.ones(4, 3))
        assert got[0].data_ptr() == states[t + 1].data_ptr()
        torch.testing.assert_close(states[t + 1], want, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(rewards[t], want_reward, rtol=1e-6, atol=1e-7)
        assert torch.equal(dones[t], want_done)


@pytest.mark.parametrize("env_class", ENV_CLASSES[1:])
@pytest.mark.parametrize(
    ("name", "slot"),
    [
        ("state", torch.zeros(4, 3)), ("state", torch.zeros(2, 16)), ("state", torch.zeros(16, 4).T),
        ("state", torch.zeros(4, 16, dtype=torch.float64)), ("state", torch.zeros(4, 32)[:, ::2]),
        ("reward", torch.zeros(0)), ("reward", torch.zeros(4, dtype=torch.int64)), ("done", torch.zeros(4)),
        ("final_state", torch.zeros(4, 16)), ("nonsense", torch.zeros(4)),
    ],
)  # fmt: skip
def test_a_slot_that_does_not_fit_is_refused_before_anything_is_written(env_class, name, slot):
    env = make(env_class)
    assert env.state_dim == 16
    env.reset()
    before = env.time.clone()
    with pytest.raises(ValueError, match=f"{name}: shape"):
        env.step(torch.ones(4, 3), out={name: slot})
    assert torch.equal(env.time, before)
    assert not slot.any()
    if name == "state":
        with pytest.raises(ValueError, match="state: shape"):
            env.reset(out_state=slot)


@each_class
def test_a_pickled_environment_goes_on_like_the_original(env_class):
    env = make(env_class, start="random", seed=3)
    env.reset()
    env.step(torch.ones(4, 3))
    twin = pickle.loads(pickle.dumps(env))
    for action in (-torch.ones(4, 3), torch.ones(4, 3)):
        assert torch.equal(twin.step(action)[0], env.step(action)[0])
        assert torch.equal(twin.cash, env.cash)
    assert torch.equal(twin.reset(), env.reset())


@each_class
def test_numpy_states_of_one_environment_stay_valid(env_class):
    env = make(env_class, 1)
    states = [env.reset()]
    kept = [states[0].copy()]
    stocks = env.stocks
    for _ in range(3):
        states.append(env.step(np.ones(3))[0])
        kept.append(states[-1].copy())
    assert all(np.array_equal(a, b) for a, b in zip(states, kept, strict=True))
    assert not stocks.any()


NATIVE = """
import sys, torch
from tests.support.markets import params_of, random_config
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpacaOptimized
import environment_Alpaca_kernels.cpu as kernels
for n_envs in map(int, sys.argv[1:]):
    env = VectorizedCryptoEnvAlpacaOptimized(random_config(40), params_of("standard"), n_envs, gpu_id=-1)
    env.reset()
    env.step(torch.ones(n_envs, 3))
print(sum(kernels.step.stats.cache_hits.values()), type(env._fast.kernel).__name__)
"""


def test_the_native_loop_is_compiled_once_and_found_on_disk_after_that(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", NATIVE, "12", "2100"]
    for expected in ("0 NativeStep", "1 NativeStep"):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.stdout.split("\n")[0] == expected, done.stderr


@pytest.mark.parametrize("n_envs", [0, -3, 1.5, True, "4"])
def test_bad_numbers_of_environments_are_refused(n_envs):
    with pytest.raises(ValueError, match="n_envs"):
        make(VectorizedCryptoEnvAlpaca, n_envs)


@each_class
def test_a_billion_environments_say_what_memory_they_would_need(env_class):
    with pytest.raises(ValueError, match=r"GiB.*at most \d+ fit"):
        make(env_class, 1_000_000_000)


# ---------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": "magic"}, "finrl_crypto, ccxt, cappuccino, finrl, finrl_meta, standard"),
        ({"lookback": 0}, "lookback"),
        ({"lookback": 2.5}, "lookback"), ({"slippage_rate": 1.5}, "fraction"), ({"nonsense": 1}, "nonsense"),
        ({"min_cash_reserve": -0.1}, "min_cash_reserve"), ({"norm_action": 0.0}, "norm_action"),
        ({"cash_haircut": 3.0}, "cash_haircut"), ({"stale_fraction": 2.0}, "stale_fraction"),
        ({"initial_capital": float("inf")}, "finite"), ({"max_position_weight": float("nan")}, "max_position_weight"),
        ({"reserve_base": "cash"}, "initial_capital, equity"), ({"stale_bars": 2.5}, "whole number"),
        ({"action_limit": -1.0}, "action_limit"), ({"order_sizing": "x"}, "price_magnitude"),
        ({"concentration_penalty": -1.0}, "concentration_penalty"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("env_class", [VectorizedCryptoEnvAlpaca, CryptoEnvAlpaca])
def test_bad_settings_are_refused_by_name(env_class, changes, message):
    with pytest.raises(ValueError, match=message):
        env_class(random_config(60), {**params_of("standard"), **changes})


def test_a_percentage_given_as_a_fee_fraction_is_refused():
    with pytest.raises(ValueError, match="buy_fee_rate must be a fraction"):
        make(VectorizedCryptoEnvAlpaca, buy_cost_pct=2.5)


@pytest.mark.parametrize("rules", ["finrl_crypto", "cappuccino"])
def test_host_presets_need_their_norms_and_ignore_what_they_do_not_know(rules):
    env_params = params_of(rules)
    EnvParams.from_mapping({**env_params, "a_key_of_the_host": 3})
    del env_params["norm_stocks"]
    with pytest.raises(ValueError, match="norm_stocks"):
        EnvParams.from_mapping(env_params)


def test_every_setting_of_a_rule_set_can_be_changed_alone():
    for rules, row in RULES.items():
        for key, value in row.items():
            apart = {"stale_fraction": 0.5, "whole_coins": False, "action_limit": 7.0, "lookback": 4, "norm_cash": 7.0}
            apart |= dict.fromkeys(("norm_stocks", "norm_tech", "norm_reward", "norm_action"), 7.0)
            other = apart[key] if key in apart else next(r[key] for r in RULES.values() if r[key] != value)
            changed = EnvParams.from_mapping(params_of(rules, **{key: other}))
            assert changed != EnvParams.from_mapping(params_of(rules)), f"{rules}: {key} changes nothing"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.update(price_array=c["price_array"][:50]), "same number of bars"),
        (lambda c: c.update(price_array=c["price_array"][:, 0]), r"\(T, A\)"),
        (lambda c: c["price_array"].__setitem__((7, 1), np.nan), "bar 7, column 1"),
        (lambda c: c["tech_array"].__setitem__((8, 2), np.inf), "tech_array.*bar 8, column 2"),
        (lambda c: c["price_array"].__setitem__((7, 0), -1.0), "price_array is -1 at bar 7"),
        (lambda c: c.update(segments=[(0, 90)]), "segments"),
        (lambda c: c.update(segments=[(0, 3)]), "lookback 3 requires"),
        (lambda c: c.update(price_array=c["price_array"].astype(str)), "must be numeric"),
    ],
)
def test_arrays_that_cannot_be_traded_are_refused(spoil, message):
    config = random_config(60)
    spoil(config)
    with pytest.raises(ValueError, match=message):
        make(VectorizedCryptoEnvAlpaca, config=config)


@pytest.mark.parametrize("env_class", [*ENV_CLASSES, CryptoEnvAlpaca])
@pytest.mark.parametrize("rules", RULES)
def test_every_reward_has_exactly_the_terms_of_its_table(env_class, rules):
    env = env_class(random_config(60), params_of(rules))
    env.reset()
    info = env.step(np.ones(3))[3]
    assert tuple(info["reward_terms"]) == TERM_NAMES[env.params.reward]


@pytest.mark.parametrize("env_class", [VectorizedCryptoEnvAlpaca, CryptoEnvAlpaca])
def test_smallest_orders_of_the_hosts_go_by_name_and_say_how_to_supply_more(env_class):
    def smallest(rules, n_assets=3, **more):
        config = random_config(60, n_assets=n_assets) | more
        if "min_order_qty" not in more:
            del config["min_order_qty"]
        env = env_class(config, params_of(rules))
        found = env.min_qty if env_class is CryptoEnvAlpaca else env.market.min_qty.tolist()
        return [round(quantity, 15) for quantity in found]

    assert smallest("cappuccino") == [0.0055, 0.033, 0.000011]
    assert smallest("cappuccino", tickers=["UNI/USD", "BTC", "ETHUSDT"]) == [0.165, 0.000011, 0.00033]
    assert smallest("ccxt", tickers=["UNI/USD", "BTC", "ETHUSDT"]) == [0.00011, 0.0011, 0.011]
    assert smallest("finrl_crypto", 10)[7:] == [11.0, 0.11, 0.011]
    assert smallest("standard") == smallest("finrl") == [0.0, 0.0, 0.0]
    assert smallest("cappuccino", min_order_qty=0.3) == [0.3, 0.3, 0.3]
    with pytest.raises(ValueError, match="min_order_qty"):
        smallest("cappuccino", tickers=["BTC", "DOGE", "ETH"])
    with pytest.raises(ValueError, match=r"10 columns.*11.*min_order_qty"):
        smallest("finrl_crypto", 11)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("env_class", ENV_CLASSES[:2])
@pytest.mark.parametrize("rules", RULES)
def test_a_gpu_makes_the_same_steps(env_class, rules):
    config = random_config(120, n_assets=5)
    options = {"start": "random", "episode_bars": 20}
    cpu = VectorizedCryptoEnvAlpaca(config, params_of(rules), 37, device="cpu", **options)
    gpu = env_class(config, params_of(rules), 37, device="cuda", **options)
    assert torch.equal(cpu.reset(), gpu.reset().cpu())
    for seed in range(60):
        action = torch.rand(37, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        state, reward, done, _ = cpu.step(action)
        gpu_state, gpu_reward, gpu_done, _ = gpu.step(action.cuda())
        torch.testing.assert_close(gpu_state.cpu(), state, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gpu_reward.cpu(), reward, rtol=1e-5, atol=1e-6)
        assert torch.equal(gpu_done.cpu(), done)
        torch.testing.assert_close(gpu.cash.cpu(), cpu.cash, rtol=1e-9, atol=1e-9)


def test_a_book_that_stands_outside_the_market_is_refused_by_the_compiled_loop():
    env = make(VectorizedCryptoEnvAlpacaOptimized)
    env.reset()
    with pytest.raises(ValueError, match="4 accounts at bars 2 to 59"):
        env.book = replace(env.book, bar=env.book.bar + 60)


@each_class
def test_a_copy_shares_the_market_and_its_prices(env_class):
    env = make(env_class)
    twin = copy.deepcopy(env)
    assert twin.price_array.data_ptr() == env.price_array.data_ptr()


def test_compact_observations_refuse_more_bars_than_a_float32_counts():
    bars = np.lib.stride_tricks.as_strided(np.ones((1, 1)), (2**24 + 1, 1), (0, 8))
    with pytest.raises(ValueError, match="16777217"):
        make(VectorizedCryptoEnvAlpaca, config={"price_array": bars, "tech_array": bars}, compact=True)
