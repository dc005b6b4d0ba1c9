"""SB3's vector interface: ends of episodes, what its buffers store, seeds, wrappers, short training."""

import pickle

import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")

from stable_baselines3 import PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecCheckNan, VecEnvWrapper, VecMonitor, VecNormalize

from adapters.stable_baselines3 import CryptoVecEnv
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpacaOptimized
from tests.support.markets import params_of
from tests.support.scalar_accounts import (
    CONFIG,
    N_ENVS,
    OPTIONS,
    STANDARD,
    Recorder,
    ScalarAccounts,
    assert_same,
    drawn_actions,
)


def small():
    return {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0}  # SB3 writes into policy_kwargs


def made(env_params=STANDARD, **options):
    return CryptoVecEnv(CONFIG, env_params, n_envs=N_ENVS, **(OPTIONS | options))


class Compared(VecEnvWrapper):
    """Compares what SB3 receives with the scalar environments; keeps the transitions as they should be stored."""

    def __init__(self, env_params=STANDARD):
        super().__init__(made(env_params))
        self.env_params = env_params
        self.recorder, self.states, self.next_states, self.rewards, self.timeouts = Recorder(), [], [], [], []

    def reset(self):
        state = self.venv.reset()
        self.accounts = ScalarAccounts(self.venv.env, env_params=self.env_params)
        assert_same(state, list(self.accounts.open().values()))
        self.states.append(state.copy())
        self.recorder.keep(state)
        return state

    def step_async(self, actions):
        self.actions = actions.copy()
        self.venv.step_async(actions)

    def step_wait(self):
        state, reward, done, infos = self.venv.step_wait()
        wanted = self.accounts.step(self.actions)
        np.testing.assert_array_equal(done, wanted["done"])
        assert_same(reward, wanted["reward"])
        assert (state.dtype, reward.dtype, done.dtype) == (np.float32, np.float32, np.bool_)
        for i, info in enumerate(infos):
            assert bool(info) == done[i]
            if info:
                assert_same(info["terminal_observation"], wanted["state"][i])
                assert info["TimeLimit.truncated"] is bool(wanted["truncated"][i])
                assert_same(info["episode_return"], wanted["episode_return"][i])
                self.recorder.keep(info["terminal_observation"])
        self.next_states.append(wanted["state"])
        self.rewards.append(wanted["reward"])
        self.timeouts.append(wanted["truncated"])
        assert_same(state, self.accounts.restart(wanted))
        self.states.append(state.copy())
        self.recorder.keep(state)
        return state, reward, done, infos


@pytest.mark.parametrize("env_params", [STANDARD, params_of("cappuccino")], ids=lambda params: params["rules"])
def test_every_step_equals_the_scalar_environment(env_params):
    env = Compared(env_params)
    env.reset()
    for actions in drawn_actions(40):
        env.step(actions)
    assert np.any(env.timeouts) == (env_params is STANDARD)  # the hosts' rules know no time limit
    assert len(env.accounts.ended_sums) > 2 * N_ENVS
    assert np.sum(env.timeouts) < len(env.accounts.ended_sums)
    env.recorder.assert_unchanged()


def test_ppo_stores_what_the_simulator_returned():
    env = Compared()
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, **small()).learn(2 * 16 * N_ENVS)
    stored = model.rollout_buffer.observations.reshape(N_ENVS, 16, -1).swapaxes(0, 1)  # its second rollout, flattened
    assert_same(stored, env.states[16:32])
    env.recorder.assert_unchanged()


def test_sac_stores_true_next_observations_and_time_limits():
    env = Compared()
    model = SAC("MlpPolicy", env, buffer_size=30 * N_ENVS, learning_starts=10, batch_size=16, **small())
    model.learn(30 * N_ENVS)
    buffer = model.replay_buffer
    assert buffer.handle_timeout_termination
    assert_same(buffer.observations, env.states[:30])
    assert_same(buffer.next_observations, env.next_states)
    assert_same(buffer.rewards, env.rewards)
    np.testing.assert_array_equal(buffer.timeouts.astype(bool), env.timeouts)
    assert np.any(env.timeouts)
    env.recorder.assert_unchanged()


def test_wrappers_of_sb3_run_and_count_whole_episodes():
    inner = made(params_of("standard"))
    env = VecNormalize(VecMonitor(VecCheckNan(inner, raise_exception=True)))
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, **small()).learn(32 * N_ENVS)
    assert {episode["l"] for episode in model.ep_info_buffer} == {OPTIONS["episode_bars"]}
    returns, lengths = evaluate_policy(model, env, n_eval_episodes=7, return_episode_rewards=True)
    assert lengths == [OPTIONS["episode_bars"]] * 7
    assert np.isfinite(returns).all()


def test_a_seed_repeats_the_starts():
    env = made()
    env.seed(4)
    first = env.reset()
    following = env.reset()
    env.seed(4)
    np.testing.assert_array_equal(env.reset(), first)
    np.testing.assert_array_equal(env.reset(), following)
    assert (first != following).any()


def test_attributes_are_those_of_the_simulator():
    env = made()
    env.reset()
    assert env.render_mode is None
    assert env.get_attr("initial_total_asset") == [10_000.0] * N_ENVS
    assert env.get_attr("cash", indices=[1, 2]) == [10_000.0] * 2
    assert [row.shape for row in env.get_attr("stocks")] == [(3,)] * N_ENVS
    assert not env.has_attr("no_such_thing")
    env.set_attr("if_log", True)
    assert env.env.if_log
    with pytest.raises(ValueError, match="indices must be None"):
        env.set_attr("if_log", False, indices=0)
    assert env.env_method("expand", "state", indices=0) == ["state"]
    assert env.env_is_wrapped(VecMonitor) == [False] * N_ENVS
    env.close()


def test_a_pickled_environment_goes_on_as_the_first_one():
    env = made()
    env.reset()
    copied = pickle.loads(pickle.dumps(env))
    for actions in drawn_actions(10):
        for mine, other in zip(env.step(actions)[:3], copied.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(mine, other)


def test_only_a_batch_that_restarts_is_taken():
    restarting, other = (
        VectorizedCryptoEnvAlpacaOptimized(CONFIG, STANDARD, 2, autoreset=autoreset) for autoreset in (True, False)
    )
    assert CryptoVecEnv(env=restarting).num_envs == 2
    with pytest.raises(ValueError, match="autoreset=True"):
        CryptoVecEnv(env=other)
    with pytest.raises(ValueError, match="pass config"):
        CryptoVecEnv()
