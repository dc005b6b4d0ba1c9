"""Compact observations against full ones: the same actions, statistics and updates, in a fortieth of the memory."""

from types import SimpleNamespace

import pytest
import torch

from drl_agents.agents import AgentPPO, AgentSAC
from drl_agents.agents.bar_features import BarFeatures
from drl_agents.agents.bar_forward import ExpandedForward, ProjectedForward
from environment_Alpaca_vectorized import RULES, VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized
from tests.support.agent_args import make_agent
from tests.support.markets import params_of, random_config

CPU = torch.device("cpu")


def made(compact, n_envs=13, rules="standard", env_params=None, env_class=VectorizedCryptoEnvAlpacaOptimized, env=None,
         config=None, **settings):  # fmt: skip
    """Environment and agent; both kinds have the same seed."""
    options = {"start": "random", "episode_bars": 17, "seed": 3, "gpu_id": -1, "as_numpy": False, **(env or {})}
    config = config or random_config(120, 3, 4)
    env = env_class(config, params_of(rules, **(env_params or {})), n_envs, compact=compact, **options)
    shape = SimpleNamespace(
        num_envs=n_envs, max_step=env.max_step, state_dim=env.full_state_dim, action_dim=env.action_dim,
        if_discrete=False, reset=lambda: torch.zeros(n_envs, env.full_state_dim),
    )  # fmt: skip
    agent = make_agent(AgentPPO, shape, net_dims=(24, 16), **{"batch_size": 32, "repeat_times": 2, **settings})
    if compact:
        agent.observe_bars(BarFeatures.of(env))
    agent.last_state = env.reset().clone()
    return env, agent


def assert_alike(rows, bars, n_rollouts=3, horizon=24):
    (env, agent), (compact_env, other) = rows, bars
    for _ in range(n_rollouts):
        items, compact_items = (a.explore_vec_env(e, horizon) for a, e in ((agent, env), (other, compact_env)))
        full = compact_env.expand(compact_items[0])
        for a, b in zip((items[0], *items[1:]), (full, *compact_items[1:]), strict=True):
            torch.testing.assert_close(b, a, rtol=2e-3, atol=2e-3)
        assert torch.equal(agent.rollout.truncated, other.rollout.truncated)
        done = agent.rollout.done
        torch.testing.assert_close(
            compact_env.expand(other.rollout.final_states[done]), agent.rollout.final_states[done], rtol=2e-3, atol=2e-3
        )
        for a, e in zip(agent.update_net(items), other.update_net(compact_items), strict=True):
            assert e == pytest.approx(a, rel=2e-3, abs=2e-3)
    torch.testing.assert_close(other.act.state_avg, agent.act.state_avg, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(other.act.state_std, agent.act.state_std, rtol=1e-3, atol=1e-3)
    for p, q in zip(agent.trained_parameters, other.trained_parameters, strict=True):
        torch.testing.assert_close(q, p, rtol=5e-3, atol=5e-4)
    assert done.any()


# Not FinRL's whole coins: an action that is rounded otherwise may buy one coin more, and the two go different ways.
@pytest.mark.parametrize("rules", [rules for rules in RULES if not RULES[rules].get("whole_coins")])
@pytest.mark.parametrize("n_envs", [1, 13, 37])
def test_bars_learn_what_rows_learn(rules, n_envs):
    assert_alike(made(False, n_envs, rules), made(True, n_envs, rules))


@pytest.mark.parametrize("gradients", ["autograd", "by_hand"])
@pytest.mark.parametrize(
    ("env", "env_params"),
    [
        ({}, {"observe_account": True}),
        ({"start": "first", "episode_bars": None}, {}),
        ({"start": "first", "episode_bars": 9}, {"observe_account": True}),
        ({"start": "stratified"}, {"lookback": 1}),
        ({}, {"terminal_equity_fraction": 0.999}),  # ruin
    ],
    ids=str,
)
def test_in_every_kind_of_episode(env, env_params, gradients):
    config = random_config(120, 3, 4, segments=[(0, 40), (40, 75), (75, 120)])
    options = {"env": env, "env_params": env_params, "gradients": gradients, "config": config, "batch_size": 64}
    assert_alike(made(False, **options), made(True, **options), horizon=40)


def test_the_plain_environment_serves_as_well():
    assert_alike(*(made(compact, env_class=VectorizedCryptoEnvAlpaca) for compact in (False, True)))


def test_accounts_at_the_same_bars_share_their_products():
    options = {"env": {"start": "first", "episode_bars": None}, "n_envs": 37, "batch_size": 128}
    env, agent = made(True, **options)
    agent.update_net(agent.explore_vec_env(env, 20))
    assert agent.shared_features.shape == (20, agent.bars.width)
    alone, agent = made(True, batch_size=16)
    agent.update_net(agent.explore_vec_env(alone, 20))
    assert agent.shared_features is None


def both_forwards(env, agent, n_rows):
    norm = (agent.act.state_avg, agent.act.state_std, agent.act.observation_clip)
    arguments = (norm, agent.act.raw_layers(), n_rows, CPU, agent.bars)
    return [ProjectedForward(*arguments, horizon_len=4096), ExpandedForward(*arguments)]


@pytest.mark.parametrize("chunk_rows", [1, 26, 4096])
def test_projected_and_expanded_rows_give_the_same_actions(chunk_rows, monkeypatch):
    monkeypatch.setattr("drl_agents.agents.bar_forward.CHUNK_ROWS", chunk_rows)
    env, agent = made(True, 13)
    projected, expanded = both_forwards(env, agent, 13)
    assert projected.steps_ahead == max(1, chunk_rows // 13)
    state, unforeseen = env.reset(), 0
    for t in range(60):
        if t == 30:
            with torch.no_grad():
                for p in agent.act.parameters():
                    p.mul_(1.5)
                agent.act.state_avg.add_(0.1)
            projected.refresh()
            expanded.refresh()
        n_known = len(projected.known)
        was_foreseen = projected.steps_left > 0
        torch.testing.assert_close(projected(state), expanded(state), rtol=1e-4, atol=1e-5)
        unforeseen += was_foreseen and len(projected.known) > n_known
        state, *_ = env.step(torch.rand(13, 3) * 2 - 1)
    assert unforeseen or chunk_rows < 26  # a restart jumped to a bar that nobody had projected


def test_a_rollout_of_bars_is_a_fraction_of_one_of_rows():
    config = random_config(200, 7, 98)
    sizes = []
    for compact in (False, True):
        env, agent = made(compact, 13, env_params={"lookback": 5}, config=config)
        agent.explore_vec_env(env, 32)
        sizes.append(sum(x.nbytes for x in (agent.rollout.states, agent.rollout.final_states)))
    assert sizes[0] == sizes[1] * env.full_state_dim / env.state_dim
    assert sizes[0] > 40 * sizes[1]


def test_saved_networks_do_not_tell_how_they_were_trained():
    (_, agent), (_, other) = made(False), made(True)
    other.act.load_state_dict(agent.act.state_dict())
    assert other.policy().state_dim == agent.policy().state_dim


def test_an_agent_with_a_replay_memory_refuses():
    env, _ = made(True)
    with pytest.raises(ValueError, match="compact"):
        AgentSAC.observe_bars(object.__new__(AgentSAC), BarFeatures.of(env))
    assert BarFeatures.of(made(False)[0]) is None


def test_an_environment_of_another_market_is_refused():
    (_, agent), (other, _) = made(True), made(True, config=random_config(120, 3, 4, seed=1))
    with pytest.raises(ValueError, match="a different market"):
        agent.explore_vec_env(other, 4)
