"""The state of an environment, put into a new one, continues as the old one does: every rule set, every class."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca
from tests.support.markets import ENV_CLASSES, InterpretedTriton, params_of, random_config
from train.env_state import EnvStateError, check_env_tensors, env_tensors, has_known_state, restore_env

N_ENVS, EPISODE_BARS, N_BEFORE, N_AFTER = 5, 9, 14, 25
RULES = {
    "standard": params_of("standard", trailing_stop_pct=0.01, stale_bars=4, observe_account=True, drawdown_penalty=1.0),
    "cappuccino": params_of("cappuccino"),
    "finrl_crypto": params_of("finrl_crypto"),
}


def config(**more):
    return random_config(80, 3, 4, segments=[(0, 40), (40, 80)], **more)


def actions(n_steps, seed):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1.0, 1.0, (n_steps, N_ENVS, 3)).astype(np.float32))


def steps_of(env, rows):
    """State, reward, done and equity of every step, copied: buffers are overwritten."""
    seen = []
    for row in rows:
        state, reward, done, info = env.step(row)
        seen.append([x.clone() for x in (state, reward, done, info["equity"], info["rejected_actions"])])
    return seen


# Triton's interpreter is slow: one case stands for that kernel's memory.
CASES = [
    (env_class, start, rules)
    for env_class, start, rules in itertools.product(ENV_CLASSES, ("random", "first", "stratified"), RULES)
    if env_class is not InterpretedTriton or (start, rules) == ("random", "standard")
]


@pytest.mark.parametrize(("env_class", "start", "rules"), CASES)
def test_a_batch_goes_on_in_another_object(env_class, start, rules):
    make = {"n_envs": N_ENVS, "seed": 3, "start": start, "episode_bars": EPISODE_BARS, "gpu_id": -1}
    env, other = (env_class(config(), RULES[rules], **make) for _ in range(2))
    env.reset()
    env.cost_factor = 0.25
    bad = actions(N_BEFORE, 0)
    bad[3, 1] = torch.nan  # a rejected action is counted
    steps_of(env, bad)
    stored = {name: value.clone() for name, value in env_tensors(env).items()}
    other.reset()
    restore_env(other, stored)
    assert all(torch.equal(value, stored[name]) for name, value in env_tensors(other).items())
    assert other.cost_factor == 0.25
    for mine, theirs in zip(steps_of(env, actions(N_AFTER, 1)), steps_of(other, actions(N_AFTER, 1)), strict=True):
        assert all(map(torch.equal, mine, theirs))


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("n_before", [0, 1, 8, 9, N_BEFORE])
def test_one_account_goes_on_in_another_object(n_before, rules):
    make = {"seed": 3, "episode_bars": EPISODE_BARS, "start": "random"}
    env, other = (CryptoEnvAlpaca(config(), RULES[rules], **make) for _ in range(2))
    env.reset()
    env.cost_factor = 0.25
    before, after = actions(n_before, 0)[:, 0].numpy(), actions(N_AFTER, 1)[:, 0].numpy()
    walk(env, before)
    restore_env(other, env_tensors(env))
    assert (other.done, other.cost_factor, other.filled.tolist()) == (env.done, 0.25, env.filled.tolist())
    assert walk(env, after) == walk(other, after)


def walk(env, rows):
    """Everything of every step; an episode that is over is begun again."""
    seen = []
    for row in rows:
        if env.done:
            seen.append(env.reset().tolist())
        state, reward, done, info = env.step(row)
        seen.append((state.tolist(), reward, done, info["equity"], info["reward_terms"], env.account.qty[:]))
    return seen


def test_what_does_not_fit_is_refused_and_changes_nothing():
    env = VectorizedCryptoEnvAlpaca(config(), RULES["standard"], N_ENVS, gpu_id=-1)
    stored = env_tensors(env)
    for wrong, words in (
        ({k: v for k, v in stored.items() if k != "qty"}, "qty of the environment is None"),
        (stored | {"another": torch.zeros(1)}, "another of the environment"),
        (stored | {"cash": stored["cash"].float()}, "cash of the environment"),
        (stored | {"cash": stored["cash"][:-1]}, "cash of the environment"),
        (stored | {"bar": stored["bar"] + 100}, "there are only 80 bars"),
        (stored | {"bar": stored["bar"] * 0}, "there are only 80 bars"),
        (stored | {"cost_factor": stored["cost_factor"] * 2}, "cost_factor of the environment is 2.0"),
        ({k: v for k, v in stored.items() if k != "cost_factor"}, "cost_factor of the environment is None"),
    ):
        with pytest.raises(EnvStateError, match=words):
            restore_env(env, wrong)
    assert all(torch.equal(value, stored[name]) for name, value in env_tensors(env).items())


def test_an_account_is_not_put_into_another_segment():
    env = CryptoEnvAlpaca(config(), RULES["standard"])
    with pytest.raises(EnvStateError, match=r"segment of the environment is \(0, 41\)"):
        check_env_tensors(env, env_tensors(env) | {"segment": torch.tensor([0, 41])})


def test_a_derived_class_has_no_known_state():
    class Derived(CryptoEnvAlpaca):
        """May keep anything."""

    assert has_known_state(CryptoEnvAlpaca(config(), RULES["standard"]))
    assert not has_known_state(Derived(config(), RULES["standard"]))
