"""Gymnasium's scalar interface: its checker, SB3's checker, and the scalar environment step by step."""

import pickle

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="gymnasium is not installed")

import gymnasium
from gymnasium.utils.env_checker import check_env

import adapters
from adapters.gymnasium_single import CryptoEnv
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpacaOptimized
from tests.support.markets import params_of
from tests.support.scalar_accounts import (
    CONFIG,
    OPTIONS,
    STANDARD,
    Recorder,
    ScalarAccounts,
    assert_same,
    drawn_actions,
)

RULES = pytest.mark.parametrize(
    "env_params", [STANDARD, params_of("cappuccino"), params_of("finrl_crypto")], ids=lambda params: params["rules"]
)


def made(env_params=STANDARD, **options):
    return gymnasium.make(adapters.ENV_ID, config=CONFIG, env_params=env_params, **(OPTIONS | options))


@RULES
@pytest.mark.filterwarnings("ignore:.*A Box observation space:UserWarning")  # its bounds are infinite by nature
def test_it_passes_gymnasiums_checker_without_a_warning(env_params, recwarn):
    check_env(made(env_params).unwrapped)
    assert [str(warning.message) for warning in recwarn if "observation space m" not in str(warning.message)] == []


def test_it_passes_the_checker_of_stable_baselines3():
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="stable-baselines3 is not installed")
    checker.check_env(made().unwrapped)


@RULES
def test_every_step_equals_the_scalar_environment(env_params):
    env = made(env_params)
    state, info = env.reset()
    accounts = ScalarAccounts(env.unwrapped.env, env_params=env_params)
    assert_same(state, accounts.open()[0])
    n_episodes = 0
    for actions in drawn_actions(40, n_envs=1):
        state, reward, terminated, truncated, info = env.step(actions[0])
        wanted = accounts.step(actions)
        assert_same(state, wanted["state"][0])
        assert_same(reward, wanted["reward"][0])
        assert (terminated, truncated) == (bool(wanted["terminated"][0]), bool(wanted["truncated"][0]))
        assert_same(info["episode_return"], wanted["episode_return"][0])
        if terminated or truncated:
            n_episodes += 1
            state, _ = env.reset()
            assert_same(state, accounts.open()[0])
    assert n_episodes > 3


def test_what_is_returned_stays_as_it_is():
    env, recorder = made(), Recorder()
    recorder.keep(env.reset()[0])
    for actions in drawn_actions(20, n_envs=1):
        state, _, terminated, truncated, _ = env.step(actions[0])
        recorder.keep(state)
        if terminated or truncated:
            recorder.keep(env.reset()[0])
    recorder.assert_unchanged()


def test_a_step_after_the_end_is_refused():
    env = made(episode_bars=1)
    env.reset()
    env.step(np.zeros(3, np.float32))
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        env.step(np.zeros(3, np.float32))


def test_a_pickled_environment_goes_on_as_the_first_one():
    env = made().unwrapped
    env.reset(seed=5)
    copied = pickle.loads(pickle.dumps(env))
    for actions in drawn_actions(3, n_envs=1):
        np.testing.assert_array_equal(env.step(actions[0])[0], copied.step(actions[0])[0])


def test_only_one_account_without_restart_is_taken():
    env = VectorizedCryptoEnvAlpacaOptimized(CONFIG, STANDARD, 1, as_numpy=False, autoreset=False)
    assert CryptoEnv(env=env).reset()[0].shape == (env.state_dim,)
    for wrong in ({"n_envs": 2, "autoreset": False}, {"n_envs": 1, "autoreset": True}):
        with pytest.raises(ValueError, match="n_envs=1"):
            CryptoEnv(env=VectorizedCryptoEnvAlpacaOptimized(CONFIG, STANDARD, as_numpy=False, **wrong))
    with pytest.raises(ValueError, match="pass config"):
        CryptoEnv()
