"""Gymnasium's vector interface: the three autoreset modes, final observations, copies, seeds, wrappers."""

import pickle
from itertools import combinations

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium", minversion="1.4", reason="gymnasium 1.4 or newer is not installed")

import gymnasium
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.utils.passive_env_checker import data_shares_objects
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as wrappers

import adapters
from adapters.gymnasium_vector import CryptoVectorEnv
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

SAME_STEP, NEXT_STEP, DISABLED = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED
each_mode = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
each_output = pytest.mark.parametrize("output", ["numpy", "torch"])


def made(mode=NEXT_STEP, env_params=STANDARD, **options):
    options = OPTIONS | options
    return gymnasium.make_vec(
        adapters.ENV_ID, num_envs=N_ENVS, vectorization_mode="vector_entry_point", config=CONFIG,
        env_params=env_params, autoreset_mode=mode, **options,
    )  # fmt: skip


class Reference:
    """The three modes over scalar environments, as Gymnasium's documentation describes them."""

    def __init__(self, envs, env_params):
        self.mode, self.accounts = envs.metadata["autoreset_mode"], ScalarAccounts(envs.env, env_params=env_params)
        self.ended = np.zeros(N_ENVS, dtype=bool)

    def reset(self, where=None):
        firsts = self.accounts.open(where)
        self.ended[list(firsts)] = False
        return firsts

    def step(self, actions):
        stepped = ~self.ended if self.mode is NEXT_STEP else np.ones(N_ENVS, dtype=bool)
        out = self.accounts.step(actions, stepped)
        infos = {"episode_return": out["episode_return"], "_episode_return": stepped}
        if self.mode is NEXT_STEP:
            for i, first in self.accounts.open(~stepped).items():
                out["state"][i] = first
        if self.mode is SAME_STEP:
            infos["_episode_return"] = ~out["done"]
            if out["done"].any():
                infos["final_obs"], infos["final_return"] = out["state"].copy(), out["episode_return"].copy()
            out["state"] = self.accounts.restart(out)
        self.ended = out["done"]
        return out, infos


def assert_infos(infos, wanted, done):
    valid = np.asarray(infos.get("_episode_return", np.zeros(N_ENVS, dtype=bool)))
    np.testing.assert_array_equal(valid, wanted["_episode_return"])
    if valid.any():
        assert_same(np.asarray(infos["episode_return"])[valid], wanted["episode_return"][valid])
    if "final_obs" in wanted:
        np.testing.assert_array_equal(np.asarray(infos["_final_obs"]), done)
        np.testing.assert_array_equal(np.asarray(infos["_final_info"]), done)
        for i in np.flatnonzero(done):
            assert_same(infos["final_obs"][i], wanted["final_obs"][i])
        assert_same(np.asarray(infos["final_info"]["episode_return"])[done], wanted["final_return"][done])
    else:
        assert "final_obs" not in infos


@each_mode
@each_output
@pytest.mark.parametrize("rules", ["standard", "cappuccino"])
def test_every_mode_equals_a_loop_over_the_scalar_environment(mode, output, rules):
    env_params = STANDARD if rules == "standard" else params_of(rules)
    envs = made(mode, env_params, output=output)
    states, infos = envs.reset()
    reference = Reference(envs, env_params)
    assert_same(states, list(reference.reset().values()))
    assert infos == {}
    kinds = set()
    for actions in drawn_actions(40):
        states, rewards, terminations, truncations, infos = envs.step(actions)
        wanted, wanted_infos = reference.step(actions)
        assert_same(states, wanted["state"])
        assert_same(rewards, wanted["reward"])
        np.testing.assert_array_equal(np.asarray(terminations), wanted["terminated"])
        np.testing.assert_array_equal(np.asarray(truncations), wanted["truncated"])
        assert_infos(infos, wanted_infos, wanted["done"])
        kinds |= {name for name in ("terminated", "truncated") if wanted[name].any()}
        if mode is DISABLED and wanted["done"].any():
            states, _ = envs.reset(options={"reset_mask": terminations | truncations})
            for i, first in reference.reset(wanted["done"]).items():
                wanted["state"][i] = first
            assert_same(states, wanted["state"])
    assert kinds == ({"terminated", "truncated"} if rules == "standard" else {"terminated"})


@each_mode
def test_infos_have_the_layout_of_gymnasiums_own_vector_environment(mode):
    """All episodes begin at one bar, so that SyncVectorEnv over the scalar adapter goes through the same ones."""
    options = {"config": CONFIG, "env_params": STANDARD, "episode_bars": 7, "start": "first"}
    ours = gymnasium.make_vec(adapters.ENV_ID, N_ENVS, "vector_entry_point", autoreset_mode=mode, **options)
    theirs = gymnasium.make_vec(adapters.ENV_ID, N_ENVS, "sync", vector_kwargs={"autoreset_mode": mode}, **options)
    assert isinstance(theirs, SyncVectorEnv)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert data_equivalence(ours.reset(seed=0), theirs.reset(seed=0))
    n_ended = 0
    for actions in drawn_actions(20):
        ours_out, theirs_out = ours.step(actions), theirs.step(actions)
        assert ours_out[1].dtype == np.float32  # Gymnasium's has float64 here
        assert_same(ours_out[1], theirs_out[1])
        ended = theirs_out[2] | theirs_out[3]
        n_ended += ended.sum()
        for mine, other in zip(ours_out, theirs_out, strict=True):
            assert data_equivalence(mine, other) or mine is ours_out[1]
        if mode is DISABLED and ended.any():
            options = ({"reset_mask": ended.copy()} for _ in range(2))
            assert data_equivalence(ours.reset(options=next(options)), theirs.reset(options=next(options)))
    assert n_ended >= 2 * N_ENVS


@each_output
def test_a_masked_reset_leaves_the_other_environments_alone(output):
    envs, twin = (made(DISABLED, params_of("standard"), episode_bars=50, output=output) for _ in range(2))
    mask, n_before = np.array([False, True, False, True, False]), 3
    actions = drawn_actions(6)
    for env in (envs, twin):
        env.reset()
        for action in actions[:n_before]:
            state = np.asarray(env.step(action)[0])
    bars = envs.env.book.bar.numpy()
    opened, _ = envs.reset(options={"reset_mask": mask if output == "numpy" else torch.from_numpy(mask)})
    np.testing.assert_array_equal(np.asarray(opened)[~mask], state[~mask])
    np.testing.assert_array_equal(envs.env.book.bar.numpy()[~mask], bars[~mask])
    assert (np.asarray(opened)[mask] != state[mask]).any(axis=1).all()
    assert (envs.env.cash.numpy()[mask] == envs.env.initial_total_asset).all()
    for action in actions[n_before:]:
        for mine, other in zip(envs.step(action)[:4], twin.step(action)[:4], strict=True):
            np.testing.assert_array_equal(np.asarray(mine)[~mask], np.asarray(other)[~mask])


@each_mode
@each_output
def test_what_is_returned_stays_as_it_is(mode, output):
    envs, recorder = made(mode, output=output), Recorder()
    results = [envs.reset()]
    for actions in drawn_actions(20):
        *values, infos = envs.step(actions)
        results.append((*values, infos))
        for value in (*values, *infos.values()):
            if not isinstance(value, dict) and (output == "torch" or value.dtype != object):
                recorder.keep(value)
        if "final_obs" in infos:
            recorder.keep(infos["final_obs"][int(np.flatnonzero(np.asarray(infos["_final_obs"]))[0])])
        if mode is DISABLED and (values[2] | values[3]).any():
            results.append(envs.reset(options={"reset_mask": values[2] | values[3]}))
    recorder.assert_unchanged()
    assert not any(data_shares_objects(one, other) for one, other in combinations(results, 2))


@each_mode
def test_without_copies_the_observations_are_buffers_that_stay_valid_through_the_next_step(mode):
    envs = made(mode, params_of("standard"), copy=False)
    before = envs.reset()[0]
    copied, places = before.copy(), []
    for actions in drawn_actions(OPTIONS["episode_bars"]):
        state = envs.step(actions)[0]
        np.testing.assert_array_equal(before, copied)
        before, copied = state, state.copy()
        places.append(state.ctypes.data)
    assert len(set(places)) == 2
    if mode is not DISABLED:  # through the restarts of all accounts too
        envs.step(actions)
        np.testing.assert_array_equal(before, copied)


def test_a_seed_repeats_the_starts_and_another_one_changes_them():
    envs = made()
    first, _ = envs.reset(seed=11)
    following, _ = envs.reset()
    other, _ = envs.reset(seed=12)
    assert (first != following).any()
    assert (first != other).any()
    np.testing.assert_array_equal(envs.reset(seed=11)[0], first)
    np.testing.assert_array_equal(envs.reset()[0], following)


def test_the_modes_go_through_the_same_episodes():
    def starts(mode):
        envs = made(mode)
        envs.reset()
        found = [[bar] for bar in envs.env.book.bar.tolist()]
        for _ in range(25):
            *_, terminations, truncations, _ = envs.step(np.zeros((N_ENVS, 3), np.float32))
            if mode is DISABLED and (terminations | truncations).any():
                envs.reset(options={"reset_mask": terminations | truncations})
            book = envs.env.book
            for bars, bar, first in zip(found, book.bar.tolist(), book.first_bar.tolist(), strict=True):
                bars += [bar] if bar == first else []
        return [bars[:3] for bars in found]

    assert starts(SAME_STEP) == starts(NEXT_STEP) == starts(DISABLED)


def test_a_step_after_the_end_is_refused_when_resets_are_up_to_the_caller():
    envs = made(DISABLED, episode_bars=1)
    envs.reset()
    envs.step(drawn_actions(1)[0])
    with pytest.raises(RuntimeError, match="reset_mask"):
        envs.step(drawn_actions(1)[0])


@pytest.mark.parametrize("mask", [np.ones(N_ENVS + 1, dtype=bool), np.ones(N_ENVS)], ids=["shape", "dtype"])
def test_a_wrong_mask_is_refused(mask):
    envs = made()
    envs.reset()
    with pytest.raises(ValueError, match=r"reset_mask must be \(5,\) bool"):
        envs.reset(options={"reset_mask": mask})


@each_mode
def test_an_environment_that_exists_is_taken_if_it_restarts_as_the_mode_says(mode):
    env, other = (
        VectorizedCryptoEnvAlpacaOptimized(CONFIG, STANDARD, 2, as_numpy=False, autoreset=restarts)
        for restarts in ((mode is SAME_STEP), (mode is not SAME_STEP))
    )
    envs = CryptoVectorEnv(env=env, autoreset_mode=mode.value)
    assert envs.reset()[0].shape == (2, env.state_dim)
    with pytest.raises(ValueError, match="autoreset="):
        CryptoVectorEnv(env=other, autoreset_mode=mode)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="pass config"):
        CryptoVectorEnv()
    with pytest.raises(ValueError, match="output must be"):
        made(output="jax")
    with pytest.raises(ValueError, match="api="):
        made(api="gymnasium")


@each_mode
def test_episode_statistics_are_the_sums_of_the_scalar_rewards(mode):
    envs = made(mode)
    recorded = wrappers.RecordEpisodeStatistics(envs, buffer_length=1000)
    recorded.reset()
    reference = Reference(envs, STANDARD)
    reference.reset()
    for actions in drawn_actions(40):
        *_, terminations, truncations, _ = recorded.step(actions)
        reference.step(actions)
        if mode is DISABLED and (terminations | truncations).any():
            recorded.reset(options={"reset_mask": terminations | truncations})
            reference.reset(terminations | truncations)
    assert recorded.episode_count == len(reference.accounts.ended_sums) > 2 * N_ENVS
    assert_same(recorded.return_queue, reference.accounts.ended_sums)


def test_gymnasiums_wrappers_run():
    envs = wrappers.NormalizeReward(wrappers.NormalizeObservation(made(NEXT_STEP)))
    states, _ = envs.reset()
    for actions in drawn_actions(20):
        states, rewards, *_ = envs.step(actions)
        assert np.isfinite(states).all()
        assert np.isfinite(rewards).all()
    assert 0.1 < states.std() < 5.0
    envs.close()
    assert envs.closed


@each_mode
def test_a_pickled_environment_goes_on_as_the_first_one(mode):
    envs = made(mode, params_of("standard"))
    envs.reset()
    actions = drawn_actions(7)
    for action in actions[:5]:
        envs.step(action)
    copied = pickle.loads(pickle.dumps(envs))
    for action in actions[5:]:
        for mine, other in zip(envs.step(action)[:4], copied.step(action)[:4], strict=True):
            np.testing.assert_array_equal(mine, other)


def test_the_spec_makes_an_equal_environment():
    envs = made(SAME_STEP)
    again = gymnasium.make_vec(envs.spec)
    assert again.num_envs == N_ENVS
    assert again.metadata == envs.metadata
    np.testing.assert_array_equal(again.reset()[0], envs.reset()[0])
