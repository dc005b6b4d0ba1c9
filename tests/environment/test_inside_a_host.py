"""What hosts do with the object: rules inherited, keywords, loops of every shape, evaluators, factories, processes."""

import copy
import io
import logging
import multiprocessing
import pickle
import sys
import threading
import types
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

import environment_Alpaca_vectorized as drop_in
from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized
from tests.support.host_loops import (
    copies_for_training_and_evaluation,
    episode_return_and_steps,
    factory,
    imported_host,
    predict,
    record_after_the_step,
    record_before_the_step,
    record_one_account,
)
from tests.support.markets import ENV_CLASSES, HOST_NORMS, params_of, random_config

each_class = pytest.mark.parametrize("env_class", ENV_CLASSES)
both_classes = pytest.mark.parametrize("env_class", ENV_CLASSES[:2])
NORMS = {"lookback": 3, **HOST_NORMS}


@pytest.fixture(autouse=True)
def no_host_is_imported_and_nothing_was_said(monkeypatch):
    """Other tests of this process may have imported stand-ins of scalar classes."""
    found = drop_in.imported_host_classes()
    for name, module in list(sys.modules.items()):
        if any(vars(module).get(each.__name__) is each for each in found if hasattr(module, "__dict__")):
            monkeypatch.delitem(sys.modules, name)
    drop_in._say_once.cache_clear()


def policy(n_assets, seed=0):
    """A deterministic function of the state, for one account and for a batch."""
    weight = torch.randn(n_assets, 3, generator=torch.Generator().manual_seed(seed))

    def act(state):
        seen = torch.as_tensor(state)[..., -3:]
        action = torch.tanh(seen @ weight.T)
        return action if isinstance(state, torch.Tensor) else action.numpy()

    return act


# ---------------------------------------------------------------- which rules hold
def test_without_rules_and_without_a_host_the_choices_are_named():
    with pytest.raises(ValueError, match="finrl_crypto, ccxt, cappuccino, finrl, finrl_meta, standard") as error:
        VectorizedCryptoEnvAlpaca(random_config(60), NORMS, gpu_id=-1)
    assert "imported: none" in str(error.value)


@pytest.mark.parametrize(
    ("rules", "class_name", "extra"),
    [
        ("finrl_crypto", "CryptoEnvAlpaca", "pass"), ("ccxt", "CryptoEnvCCXT", "pass"),
        ("cappuccino", "CryptoEnvAlpaca", "self.time_decay_floor = env_params.get('time_decay_floor', 0.0)"),
    ],
)  # fmt: skip
def test_rules_capital_fees_and_limits_are_those_of_the_imported_class(monkeypatch, caplog, rules, class_name, extra):
    imported_host(monkeypatch, "a_host", class_name, 4321.0, 0.0017, extra, [0.5, 0.25, 2.0, 9.0])
    config = random_config(60)
    del config["min_order_qty"]
    with caplog.at_level(logging.INFO):
        env = VectorizedCryptoEnvAlpaca(config, NORMS, gpu_id=-1)
    assert env.params.rules == rules
    assert env.initial_total_asset == 4321.0
    assert (env.params.buy_fee_rate, env.params.sell_fee_rate) == (0.0017, 0.0017)
    assert env.market.min_qty.tolist() == pytest.approx([0.55, 0.275, 2.2])
    assert [r.message for r in caplog.records] == [f"rules '{rules}', inherited from a_host.{class_name}"]


FINRL = """
import math
class CryptoEnv:
    def __init__(self, config, lookback=1, initial_capital=1e6, buy_cost_pct=1e-3, sell_cost_pct=1e-3, gamma=0.99):
        self.max_stock = 1
        self._generate_action_normalizer()
    def reset(self): ...
    def step(self, actions): ...
    def _generate_action_normalizer(self):
        self.action_norm_vector = [10.0 ** -EXTRA for price in [1.0]]
"""


@pytest.mark.parametrize(
    ("rules", "scale"), [("finrl", "(len(str(price)) - 7)"), ("finrl_meta", "math.floor(math.log(price, 10))")]
)
def test_a_host_without_env_params_brings_its_norms_and_lookback(monkeypatch, rules, scale):
    imported_host(monkeypatch, "a_finrl", "CryptoEnv", extra=scale, source=FINRL)
    env = VectorizedCryptoEnvAlpacaOptimized(random_config(60), gpu_id=-1)
    assert (env.params.rules, env.params.lookback, env.n_envs) == (rules, 1, 1)
    assert (env.params.norm_cash, env.params.norm_reward) == (2.0**-18, 2.0**-16)
    assert (env.amount, env.day) == (1e6, 0)
    assert env.price_ary.shape == (60, 3)


def test_two_imported_rule_sets_are_a_question(monkeypatch):
    imported_host(monkeypatch, "host_a")
    imported_host(monkeypatch, "host_b", "CryptoEnvCCXT")
    with pytest.raises(ValueError, match=r"host_a.CryptoEnvAlpaca \(finrl_crypto\).*host_b.CryptoEnvCCXT \(ccxt\)"):
        VectorizedCryptoEnvAlpaca(random_config(60), NORMS, gpu_id=-1)
    env = VectorizedCryptoEnvAlpaca(random_config(60), {**NORMS, "rules": "ccxt"}, gpu_id=-1)
    assert env.params.stale_bars == 24
    picked = drop_in.VectorizedCryptoEnvCCXT(random_config(60), NORMS, gpu_id=-1)
    assert (picked.params.rules, picked.params.buy_fee_rate) == ("ccxt", 0.003), "with the fees of the imported class"


def test_two_copies_of_a_class_with_other_settings_are_a_question(monkeypatch):
    imported_host(monkeypatch, "host_a", capital=777.0)
    imported_host(monkeypatch, "host_b", capital=777.0)
    assert VectorizedCryptoEnvAlpaca(random_config(60), NORMS, gpu_id=-1).initial_total_asset == 777.0
    imported_host(monkeypatch, "host_c", capital=333.0)
    with pytest.raises(ValueError, match=r"host_a.*host_c"):
        VectorizedCryptoEnvAlpaca(random_config(60), NORMS, gpu_id=-1)


def test_a_derived_class_counts_in_place_of_its_base(monkeypatch):
    base = imported_host(monkeypatch, "host_a", capital=777.0)

    def begin(self, config, env_params, initial_capital=50.0):
        base.__init__(self, config, env_params, initial_capital)

    derived = type("CryptoEnvAlpaca", (base,), {"__init__": begin, "__module__": "host_b"})
    monkeypatch.setitem(sys.modules, "host_b", types.SimpleNamespace(CryptoEnvAlpaca=derived))
    assert VectorizedCryptoEnvAlpaca(random_config(60), NORMS, gpu_id=-1).initial_total_asset == 50.0


def test_smallest_orders_that_are_given_ask_for_no_table(monkeypatch):
    imported_host(monkeypatch, "a_host", limits=[1.0])
    config = random_config(60)
    env = VectorizedCryptoEnvAlpaca(config, NORMS, gpu_id=-1)
    assert env.market.min_qty.tolist() == config["min_order_qty"].tolist()
    with pytest.raises(ValueError, match="1 coins, but price_array has 3"):
        VectorizedCryptoEnvAlpaca({k: v for k, v in config.items() if k != "min_order_qty"}, NORMS, gpu_id=-1)


def test_rules_that_are_given_inherit_nothing(monkeypatch, caplog):
    imported_host(monkeypatch, "a_host", capital=17.0)
    with caplog.at_level(logging.INFO):
        env = VectorizedCryptoEnvAlpaca(random_config(60), params_of("cappuccino"), gpu_id=-1)
    assert env.initial_total_asset == 500.0
    assert [r.message for r in caplog.records] == ["rules 'cappuccino', from env_params"]


def test_modules_are_looked_at_and_never_imported():
    before = set(sys.modules)
    drop_in.imported_host_classes()
    assert set(sys.modules) == before


def test_a_missing_norm_is_named_with_inherited_rules_too(monkeypatch):
    imported_host(monkeypatch, "a_host")
    with pytest.raises(ValueError, match="norm_tech"):
        VectorizedCryptoEnvAlpaca(random_config(60), {k: v for k, v in NORMS.items() if k != "norm_tech"}, gpu_id=-1)


# ---------------------------------------------------------------- keys and keywords
def test_a_config_key_that_a_host_reads_and_nobody_simulates_is_refused(monkeypatch):
    imported_host(monkeypatch, "a_host", extra="self.cvix = config['cvix_array']")
    with pytest.raises(ValueError, match="cvix_array"):
        VectorizedCryptoEnvAlpaca({**random_config(60), "cvix_array": np.ones(60)}, NORMS, gpu_id=-1)


def test_a_config_key_that_no_imported_host_reads_is_harmless(monkeypatch):
    imported_host(monkeypatch, "a_host")
    VectorizedCryptoEnvAlpaca({**random_config(60), "cvix_array": np.ones(60), "if_train": False}, NORMS, gpu_id=-1)


def test_an_unknown_config_key_without_a_host_is_refused():
    with pytest.raises(ValueError, match=r"cvix_array.*price_array"):
        VectorizedCryptoEnvAlpaca({**random_config(60), "cvix_array": np.ones(60)}, params_of("ccxt"), gpu_id=-1)


def test_a_setting_that_the_host_reads_and_nobody_simulates_is_refused(monkeypatch):
    imported_host(monkeypatch, "a_host", extra="self.night_rule = env_params.get('night_rule', 0.0)")
    with pytest.raises(ValueError, match="night_rule"):
        VectorizedCryptoEnvAlpaca(random_config(60), {**NORMS, "night_rule": 0.5}, gpu_id=-1)
    with pytest.raises(ValueError, match="night_rule"):
        VectorizedCryptoEnvAlpaca(random_config(60), {**NORMS, "rules": "finrl_crypto", "night_rule": 0.5}, gpu_id=-1)
    VectorizedCryptoEnvAlpaca(random_config(60), {**NORMS, "sampled_but_read_by_nobody": 0.5}, gpu_id=-1)


def test_host_keywords_that_are_off_are_ignored():
    env = VectorizedCryptoEnvAlpaca(
        random_config(60), params_of("cappuccino"), gpu_id=-1, sentiment_service=None, use_sentiment=True,
        tickers=["BTC", "a coin without a limit"], use_dynamic_fees=False, fee_mode="progressive", fee_interval="1h",
        use_timeframe_constraint=False, timeframe=None, data_interval="1h", exchange_name="binance",
    )  # fmt: skip
    assert env.state_dim == 16


@pytest.mark.parametrize(
    "on",
    [{"use_sentiment": True, "sentiment_service": object()}, {"use_dynamic_fees": True},
     {"use_timeframe_constraint": True, "timeframe": "1h"}],
)  # fmt: skip
def test_host_keywords_that_are_on_are_refused_by_name(on):
    with pytest.raises(ValueError, match=next(iter(on))):
        VectorizedCryptoEnvAlpaca(random_config(60), params_of("cappuccino"), gpu_id=-1, **on)


def test_a_host_that_could_not_import_its_fee_tiers_has_them_off(monkeypatch):
    vars(sys.modules[imported_host(monkeypatch, "a_host").__module__])["FEE_TIER_AVAILABLE"] = False
    VectorizedCryptoEnvAlpaca(random_config(60), NORMS, gpu_id=-1, use_timeframe_constraint=True)


@each_class
def test_env_params_may_hold_what_the_constructor_takes(env_class):
    env_params = params_of("standard", n_envs=3, seed=7, episode_bars=9, gpu_id=-1)
    env = env_class(random_config(60), env_params)
    assert (env.n_envs, env.seed, env.episode_bars, env.device.type) == (3, 7, 9, "cpu")
    assert env_class(random_config(60), env_params, 5, seed=1).n_envs == 5
    assert env_class(random_config(60), env_params, num_envs=2).seed == 7
    assert env_class(random_config(60), params_of("standard")).n_envs == 1


# ---------------------------------------------------------------- loops
@pytest.mark.parametrize("loop", [record_after_the_step, record_before_the_step])
@pytest.mark.parametrize("rules", ["finrl_crypto", "standard"])
@each_class
def test_every_recording_order_records_what_was_acted_on(env_class, rules, loop):
    config = random_config(40)
    plain = VectorizedCryptoEnvAlpaca(config, params_of(rules), 4, gpu_id=-1)
    env = env_class(config, params_of(rules), 4, gpu_id=-1)
    act = policy(3)
    state, want_state = env.reset(), plain.reset()
    for _ in range(3):  # over two borders of rollouts, and over ends of episodes
        rows, state = loop(env, state, act, 17)
        want_rows, want_state = record_before_the_step(plain, want_state, act, 17)
        for (kept, reward, done, action), want in zip(rows, want_rows, strict=True):
            assert torch.equal(act(kept), action), "the first PPO ratio is 1"
            for got, expected in zip((kept, reward), want[:2], strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
            assert torch.equal(done, want[2])


@each_class
def test_a_host_may_reset_twice_and_act_on_the_first_result(env_class):
    env = env_class(random_config(40), params_of("finrl_crypto"), 4, gpu_id=-1)
    act = policy(3)
    state = env.reset()
    kept = state.clone()
    env.reset()
    for recorded, _, _, action in record_after_the_step(env, state, act, 5)[0]:
        assert torch.equal(act(recorded), action)
    assert torch.equal(state, kept)


@each_class
def test_rows_of_one_account_stay_what_they_were(env_class):
    config = random_config(40)
    env = factory(env_class, config, params_of("cappuccino", gpu_id=-1))
    act = policy(3)
    for shared, _, _, action in record_one_account(env, act, 60):
        assert np.array_equal(act(shared.numpy()), action)


# ---------------------------------------------------------------- evaluators, factories, predictions
@pytest.mark.parametrize("rules", ["finrl_crypto", "ccxt", "cappuccino"])
@each_class
def test_the_evaluators_return_is_the_scalar_classs_for_one_account_and_for_a_batch(env_class, rules):
    config, params = random_config(50), params_of(rules, gpu_id=-1)
    scalar = CryptoEnvAlpaca(config, {k: v for k, v in params.items() if k != "gpu_id"})
    for seed in range(3):
        act = policy(3, seed)
        want, n_steps = episode_return_and_steps(scalar, act)
        one, n_one = episode_return_and_steps(factory(env_class, config, params), act)
        batch, n_batch = episode_return_and_steps(env_class(config, params, 4), act)
        assert n_one == n_batch == n_steps
        assert one == pytest.approx(want, rel=1e-6)
        assert batch.tolist() == pytest.approx([want] * 4, rel=1e-6)
        assert abs(want - 1.0) > 1e-5, "the policy traded"


@each_class
def test_a_batch_shows_the_ended_account_until_the_next_step_and_its_return_until_the_next_end(env_class):
    config, params = random_config(30), params_of("finrl_crypto")
    batch = env_class(config, params, 2, gpu_id=-1)
    one = env_class(config, params, 1, gpu_id=-1)
    act = policy(3)
    state, row, done = batch.reset(), one.reset(), False
    while not done:
        state, row = batch.step(act(state))[0], one.step(act(row))
        row, done = row[0], row[2]
    for name in ("cash", "total_asset", "time", "stocks"):
        got, want = getattr(batch, name)[1], getattr(one, name)
        np.testing.assert_allclose(np.asarray(got), want, rtol=1e-6, err_msg=name)
    ended = batch.episode_return[1].item()
    assert ended == pytest.approx(one.episode_return, rel=1e-6)
    batch.step(torch.zeros(2, 3))
    assert batch.time.tolist() == [3, 3]
    assert batch.total_asset.tolist() == [1e6, 1e6]
    assert batch.episode_return[1].item() == ended
    batch.reset()
    assert batch.episode_return[1].item() == ended
    assert batch.time.tolist() == [2, 2]


@each_class
def test_env_num_makes_one_account_of_a_batch_and_a_batch_of_one_account(env_class):
    config, params = random_config(50), params_of("cappuccino", gpu_id=-1)
    training, evaluation = copies_for_training_and_evaluation(factory(env_class, config, params, 6), True)
    assert (training.env_num, training.n_envs, evaluation.env_num, evaluation.num_envs) == (6, 6, 1, 1)
    assert training.market is evaluation.market
    act = policy(3)
    assert training.reset().shape == (6, training.state_dim)
    rows, _ = record_after_the_step(training, training.reset(), act, 10)
    assert len(rows) == 10
    assert evaluation.reset().shape == (evaluation.state_dim,)
    scalar = CryptoEnvAlpaca(config, params_of("cappuccino"))
    assert predict(evaluation, act) == pytest.approx(predict(scalar, act), rel=1e-6)


@each_class
def test_a_factory_of_one_account_runs_from_training_to_prediction(env_class):
    config, params = random_config(50), params_of("finrl_crypto", gpu_id=-1)
    training, evaluation = copies_for_training_and_evaluation(factory(env_class, config, params), False)
    act = policy(3)
    assert len(record_one_account(training, act, 70)) == 70
    assert isinstance(episode_return_and_steps(evaluation, act)[0], float)
    scalar = CryptoEnvAlpaca(config, params_of("finrl_crypto"))
    assert predict(env_class(config=config, env_params=params), act) == pytest.approx(predict(scalar, act), rel=1e-6)


@each_class
def test_a_changed_number_of_accounts_asks_for_a_reset(env_class):
    env = env_class(random_config(50), params_of("standard"), 3, gpu_id=-1)
    env.reset()
    env.num_envs = 3
    env.step(torch.zeros(3, 3))
    env.num_envs = 2
    with pytest.raises(RuntimeError, match="reset"):
        env.step(torch.zeros(2, 3))
    assert env.reset().shape == (2, env.state_dim)


def test_a_number_on_the_class_is_not_in_the_way(monkeypatch):
    monkeypatch.setattr(drop_in.VectorizedCryptoEnv, "env_num", 1, raising=False)  # as FinRL's factory does
    env = drop_in.VectorizedCryptoEnv(random_config(60), num_envs=4, gpu_id=-1)
    assert (env.env_num, env.num_envs, env.reset().shape[0]) == (4, 4, 4)


@each_class
def test_a_wrong_state_dim_is_refused_by_the_object_that_knows_better(env_class):
    env = env_class(random_config(50), params_of("standard"), 3, gpu_id=-1)
    env.state_dim = 16
    with pytest.raises(ValueError, match=r"state_dim is 16.*3 coins.*assigns 27"):
        env.state_dim = 27


@each_class
def test_a_refused_number_of_accounts_leaves_the_object_as_it_was(env_class):
    env = env_class(random_config(50), params_of("standard"), 3, gpu_id=-1)
    env.reset()
    with pytest.raises(ValueError, match="fit"):
        env.env_num = 10**9
    assert env.n_envs == env.env_num == 3
    assert env.step(torch.zeros(3, 3))[0].shape[0] == 3


@each_class
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_made_right_after_an_end_shows_the_ended_account(env_class, copied):
    env = env_class(random_config(30), params_of("finrl_crypto"), 2, gpu_id=-1)
    act = policy(3)
    state, done = env.reset(), torch.zeros(2, dtype=torch.bool)
    while not done.any():
        state, _, done, _ = env.step(act(state))
    twin = copied(env)
    for name in ("cash", "stocks", "time", "total_asset", "episode_return"):
        assert torch.equal(getattr(twin, name), getattr(env, name)), name
    assert env.time.tolist() == [26, 26]


@each_class
def test_what_a_caller_does_to_returned_values_changes_nothing(env_class):
    config = random_config(60)
    env, kept = (env_class(config, params_of("cappuccino"), 3, gpu_id=-1) for _ in range(2))
    env.reset(), kept.reset()
    for _ in range(6):
        _, reward, _, info = env.step(torch.ones(3, 3) * 0.3)
        _, want_reward, _, want = kept.step(torch.ones(3, 3) * 0.3)
        assert torch.equal(info["equity"], want["equity"])
        assert torch.equal(reward, want_reward)
        assert info.keys() == want.keys()
        info["equity"] = info["equity"].clone()
        info["fees"].add_(5000.0)
        info.pop("truncated")
        info["reward_terms"].clear()
        env.cash.mul_(2.0), env.stocks.zero_()
    one = env_class(config, params_of("cappuccino"), gpu_id=-1)
    with pytest.raises(ValueError, match="read-only"):
        one.price_array[:] = 1.0


@each_class
@pytest.mark.parametrize("name", ["state", "info", "price_array"])
def test_a_tensor_that_is_sent_to_another_process_moves_without_harm(env_class, name):
    config = random_config(60)
    env = env_class(config, params_of("standard"), 4, gpu_id=-1, start="first")
    plain = VectorizedCryptoEnvAlpaca(config, params_of("standard"), 4, gpu_id=-1, start="first")
    env.reset(), plain.reset()
    for t in range(12):
        action = torch.sin(torch.arange(12.0) + t).reshape(4, 3)
        got, want = env.step(action), plain.step(action)
        torch.testing.assert_close(got[0], want[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got[3]["equity"], want[3]["equity"], rtol=1e-9, atol=1e-9)
        sent = {"state": got[0], "info": got[3]["equity"], "price_array": env.price_array}[name]
        if t in (2, 3, 7):
            ForkingPickler(io.BytesIO()).dump(sent)  # moves the memory of a tensor, in place


# ---------------------------------------------------------------- seeds, resets, steps without restarts
@each_class
def test_a_seed_assigned_later_takes_effect_with_the_next_episode(env_class):
    config = random_config(80)
    want = VectorizedCryptoEnvAlpaca(config, params_of("standard"), 5, seed=7, episode_bars=4, gpu_id=-1)
    env = env_class(config, params_of("standard"), 5, seed=0, episode_bars=4, gpu_id=-1)
    env.seed = 7
    want.reset(), env.reset()
    for _ in range(11):
        assert torch.equal(env.step(torch.ones(5, 3))[2], want.step(torch.ones(5, 3))[2])
        assert torch.equal(env.book.bar, want.book.bar)


@each_class
def test_reset_where_opens_some_environments_and_leaves_the_others_alone(env_class):
    config = random_config(80)
    env, untouched = (env_class(config, params_of("standard"), 4, gpu_id=-1, start="random", seed=3) for _ in range(2))
    env.reset(), untouched.reset()
    for _ in range(3):
        env.step(torch.ones(4, 3)), untouched.step(torch.ones(4, 3))
    state = env.reset(where=torch.tensor([True, False, False, True]))
    assert env.cash.tolist()[::3] == [10_000.0, 10_000.0]
    assert torch.equal(env.cash[1:3], untouched.cash[1:3])
    assert torch.equal(state[:, 0] == 1.0, torch.tensor([True, False, False, True]))
    got, want = env.step(torch.ones(4, 3))[0], untouched.step(torch.ones(4, 3))[0]
    assert torch.equal(got[1:3], want[1:3])
    masked = env.reset(options={"reset_mask": np.array([False, True, False, False])})
    assert torch.equal(masked[2], got[2])
    assert masked[1, 0] == 1.0


@each_class
def test_reset_with_a_seed_begins_the_same_episodes_again(env_class):
    env = env_class(random_config(80), params_of("standard"), 4, gpu_id=-1, start="random")
    first = env.reset(seed=11).clone()
    assert not torch.equal(env.reset(), first)
    assert torch.equal(env.reset(seed=11), first)


@each_class
def test_a_step_without_restart_returns_the_ended_episodes_last_state(env_class):
    config = random_config(30, segments=[(0, 8), (8, 30)])
    options = {"gpu_id": -1, "start": "first"}
    restarts = env_class(config, params_of("standard"), 2, **options)
    stays = env_class(config, params_of("standard"), 2, autoreset=False, **options)
    restarts.reset(), stays.reset()
    action = torch.full((2, 3), 0.3)
    for _ in range(5):
        *_, info = restarts.step(action)
        state, _, done, own = stays.step(action)
    assert done.tolist() == [True, False]
    assert torch.equal(state[0], info["final_state"][0])
    assert torch.equal(own["final_state"], state)
    ended = stays.episode_return[0].item()
    for _ in range(40):
        state, _, done, _ = stays.step(action)  # never outside of the data
        assert stays.episode_return[0].item() == ended, "of the episode, not of what came after it"
    assert done.all()
    assert torch.isfinite(state).all()
    assert torch.equal(stays.reset(where=done)[:, 0], torch.ones(2))


# ---------------------------------------------------------------- processes
def _step_in_another_process(env, queue):
    env.reset()
    state, reward, _, _ = env.step(torch.ones(env.n_envs, env.action_dim))
    queue.put((state.numpy().copy(), reward.numpy().copy()))


@both_classes
@pytest.mark.slow
def test_an_environment_can_be_sent_to_a_spawned_process(env_class):
    config = random_config(60, filled_array=np.zeros((60, 3), bool))
    env = env_class(config, params_of("standard"), 3, gpu_id=-1, seed=5)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_step_in_another_process, args=(env, queue))
    process.start()
    state, reward = queue.get(timeout=120)
    process.join(timeout=60)
    env.reset()
    want = env.step(torch.ones(3, 3))
    assert np.array_equal(state, want[0].numpy())
    assert np.array_equal(reward, want[1].numpy())


@each_class
def test_a_pickle_holds_a_window_once_and_restores_the_market(env_class):
    config = random_config(400, n_features=20)
    env = env_class(config, params_of("standard", lookback=30), 2, gpu_id=-1)
    text = pickle.dumps(env)
    assert len(text) < 3 * (config["price_array"].nbytes + config["tech_array"].nbytes)
    twin = pickle.loads(text)
    assert torch.equal(twin.reset(), env.reset())
    assert torch.equal(twin.market.windows, env.market.windows)


# ---------------------------------------------------------------- where the folder lies
def copied_into(folder, *, kernels):
    import shutil

    from tests.support.markets import REPO

    folder.mkdir(parents=True)
    shutil.copy(REPO / "environment_Alpaca_vectorized.py", folder)
    if kernels:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPO / "environment_Alpaca_kernels", folder / "environment_Alpaca_kernels", ignore=ignore)
    return folder


WHICH_STEP = """
import warnings, numpy as np
warnings.simplefilter("always")
{how}
config = {{"price_array": np.full((50, 2), 10.0), "tech_array": np.zeros((50, 3))}}
for _ in range(2):
    env = drop_in.VectorizedCryptoEnvAlpacaOptimized(config, {{"rules": "standard", "lookback": 2}}, 5, gpu_id=-1)
print(env.stepped_by, env.why_not_native)
"""
BY_PATH = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("some_name", "inner/environment_Alpaca_vectorized.py")
drop_in = sys.modules["some_name"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(drop_in)
"""


def which_step(folder, how):
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", WHICH_STEP.format(how=how)], cwd=folder, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["import inner.environment_Alpaca_vectorized as drop_in", BY_PATH,
            "import sys; sys.path.insert(0, 'inner')\nimport environment_Alpaca_vectorized as drop_in"],
    ids=["in a package", "by its path", "at the top"],
)  # fmt: skip
def test_the_native_step_runs_wherever_file_and_folder_lie(tmp_path, how):
    copied_into(tmp_path / "inner", kernels=True)
    (tmp_path / "inner" / "__init__.py").write_text("")
    said, warned = which_step(tmp_path, how)
    assert said == "numba None", warned


def test_the_file_alone_says_once_why_it_takes_the_plain_step(tmp_path):
    copied_into(tmp_path / "inner", kernels=False)
    said, warned = which_step(tmp_path / "inner", "import environment_Alpaca_vectorized as drop_in")
    assert said.startswith("torch the folder environment_Alpaca_kernels is not next to")
    assert warned.count("the plain torch step runs") == 1


def test_a_folder_of_another_version_is_not_used(tmp_path):
    folder = copied_into(tmp_path / "inner", kernels=True)
    entry = folder / "environment_Alpaca_kernels" / "__init__.py"
    entry.write_text(entry.read_text().replace(drop_in.VERSION, "1999.1"))
    said, warned = which_step(folder, "import environment_Alpaca_vectorized as drop_in")
    assert said.startswith("torch environment_Alpaca_kernels is version 1999.1 and")
    assert warned.count("the plain torch step runs") == 1


def test_a_plain_step_can_be_asked_for():
    env = VectorizedCryptoEnvAlpacaOptimized(random_config(60), params_of("standard"), 2, gpu_id=-1, native_step=False)
    assert (env.stepped_by, env.why_not_native) == ("torch", "native_step is False")


def test_threads_that_build_the_first_environments_share_one_first_use(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    drop_in.kernels("first_use")._known.clear()
    streams, built = (sys.stdout, sys.stderr), []

    def build():
        built.append(VectorizedCryptoEnvAlpacaOptimized(random_config(60), params_of("standard"), 2, gpu_id=-1))

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [env.stepped_by for env in built] == ["numba"] * 3
    assert (sys.stdout, sys.stderr) == streams


# ---------------------------------------------------------------- Gymnasium's interface
@each_class
def test_gymnasiums_interface_for_a_batch(env_class):
    gymnasium = pytest.importorskip("gymnasium")
    config = random_config(30, segments=[(0, 8), (8, 30)])
    env = env_class(config, params_of("standard"), 2, gpu_id=-1, start="first", api="gymnasium")
    state, info = env.reset(seed=3)
    assert (state.shape, info) == ((2, 16), {})
    for _ in range(5):
        state, reward, terminated, truncated, info = env.step(torch.full((2, 3), 0.3))
    assert (terminated.tolist(), truncated.tolist()) == ([False, False], [True, False])
    assert torch.equal(info["_final_obs"], truncated)
    assert info["final_obs"][0, 0] < 1.0 == state[0, 0]
    assert env.observation_space.shape == state.shape
    assert env.single_action_space == gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    assert env.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.SAME_STEP
    assert reward.shape == (2,)
    env.close()


@each_class
def test_gymnasiums_interface_for_one_account(env_class):
    pytest.importorskip("gymnasium")
    env = env_class(random_config(10), params_of("standard"), gpu_id=-1, start="first", api="gymnasium")
    state, info = env.reset()
    assert env.observation_space.contains(state)
    ended = False
    while not ended:
        state, reward, terminated, truncated, info = env.step(env.action_space.sample())
        ended = terminated or truncated
    assert (terminated, truncated, info["truncated"]) == (False, True, True)
    assert isinstance(reward, float)


def test_gymnasium_is_asked_for_only_when_it_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    VectorizedCryptoEnvAlpaca(random_config(60), params_of("standard"), gpu_id=-1)
    with pytest.raises(ImportError, match="pip install"):
        VectorizedCryptoEnvAlpaca(random_config(60), params_of("standard"), gpu_id=-1, api="gymnasium")
    with pytest.raises(ValueError, match=r'"elegantrl" or "gymnasium"'):
        VectorizedCryptoEnvAlpaca(random_config(60), params_of("standard"), gpu_id=-1, api="gym")


def test_a_module_that_is_no_module_does_not_disturb(monkeypatch):
    monkeypatch.setitem(sys.modules, "odd", types.SimpleNamespace(CryptoEnvAlpaca=3))
    assert drop_in.imported_host_classes() == []
