"""The table of searched settings: complete, consistent, and with orders that fill."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import EnvParams
from train.config import LEAST_BAND_BARS, TrainConfig
from train.records.defaults import DEFAULT_AGENT
from train.study.search_space import (
    LEAST_EPISODE_BARS,
    MAX_LOOKBACK,
    Space,
    build_space,
    expected_env_steps,
    resolve,
    sample,
    with_half_the_envs,
)
from train.study.search_tables import FIXED_ENV, TABLES

MADE_OF_OTHERS = {"net_width", "net_depth", "rollout_samples", "stale_share", "horizon_bars"}
N_SETTINGS = 12
CONCENTRATION_LIMIT = 0.4  # share of the account in one coin

each_agent = pytest.mark.parametrize("agent", TABLES)
each_column = pytest.mark.parametrize("use_best_ranges", [False, True])


def random_settings(agent: str, use_best_ranges: bool) -> list[dict]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    space = build_space(use_best_ranges, longest_episode_bars=1000, agent=agent)
    return [sample(space, study.ask()) for _ in range(N_SETTINGS)]


def test_the_default_agent_has_a_table():
    assert DEFAULT_AGENT in TABLES
    assert build_space().agent == DEFAULT_AGENT


@each_agent
def test_names_are_unique_and_no_setting_is_both_searched_and_fixed(agent):
    table = TABLES[agent]
    names = [s.name for s in table.settings]
    assert len(names) == len(set(names))
    assert not set(names) & (set(table.fixed_train) | set(table.fixed_env))
    assert table.fixed_train["agent"] == agent


ROWS = [(agent, setting) for agent, table in TABLES.items() for setting in table.settings]


@pytest.mark.parametrize("setting", [s for _, s in ROWS], ids=[f"{agent}-{s.name}" for agent, s in ROWS])
def test_the_best_range_lies_inside_the_broad_one_and_is_a_range(setting):
    broad, best = setting.broad, setting.best
    assert type(broad) is type(best)
    assert not broad.single()
    assert not best.single()
    if isinstance(broad, CategoricalDistribution):
        assert set(best.choices) <= set(broad.choices)
    else:
        assert isinstance(broad, FloatDistribution | IntDistribution)
        assert broad.low <= best.low < best.high <= broad.high
        assert broad.log == best.log


def test_every_setting_is_a_field_of_what_reads_it():
    for _, setting in ROWS:
        if setting.name in MADE_OF_OTHERS:
            continue
        if setting.target == "env":
            assert setting.name in {f.name for f in fields(EnvParams)}
        else:
            assert setting.name in {f.name for f in fields(TrainConfig)}


@each_agent
@each_column
@pytest.mark.parametrize("n_envs", [1, 12, 64])
def test_every_sample_resolves_to_settings_that_the_trainer_and_the_simulator_accept(agent, use_best_ranges, n_envs):
    for values in random_settings(agent, use_best_ranges):
        settings = resolve(values, n_envs, 1, -1, agent)
        config = TrainConfig(**settings.train)
        assert config.agent == agent
        assert EnvParams.from_mapping(settings.env).lookback <= MAX_LOOKBACK
        assert config.net_dims == (values["net_width"],) * values["net_depth"]


@each_column
@pytest.mark.parametrize("n_envs", [1, 12, 64])
def test_a_rollout_of_ppo_has_the_sampled_number_of_samples(use_best_ranges, n_envs):
    for values in random_settings("ppo", use_best_ranges):
        config = TrainConfig(**resolve(values, n_envs, 1, -1, "ppo").train)
        # Whatever n_envs is, an update sees the sampled number of samples, to a rollout step.
        assert values["rollout_samples"] - n_envs < config.horizon_len * n_envs <= values["rollout_samples"]
        assert config.batch_size == min(values["batch_size"], config.horizon_len * n_envs)


@pytest.mark.parametrize("n_envs", [1, 12, 4096])
def test_the_horizon_of_a_band_is_in_bars_whatever_the_number_of_environments(n_envs):
    values = random_settings("band", False)[0] | {"horizon_bars": 1700}
    settings = resolve(values, n_envs, 1, -1, "band")
    assert settings.train["horizon_len"] == 1700
    if n_envs > 1:
        assert with_half_the_envs(settings).train["horizon_len"] == 1700
        assert with_half_the_envs(settings).train["n_envs"] == n_envs // 2


def test_a_band_trains_under_the_rules_that_its_gradient_knows():
    env = resolve(random_settings("band", False)[0], 4, 1, -1, "band").env
    assert (env["norm_action"], env["trailing_stop_pct"], env["stale_bars"], env["benchmark_weight"]) == (1, 0, 0, 0)
    params = EnvParams.from_mapping(env)
    assert (params.order_sizing, params.observation, params.reward) == ("equity", "relative", "weighted_terms")


@pytest.mark.parametrize("longest", [20, 500, 1000, 3000, 10**6])
def test_the_horizon_of_a_band_is_at_least_a_thousand_bars_and_else_within_the_segment(longest):
    range_ = build_space(longest_episode_bars=longest, agent="band").ranges["horizon_bars"]
    assert range_.low == LEAST_BAND_BARS
    assert range_.low <= range_.high <= max(longest, LEAST_BAND_BARS)


def test_a_setting_that_came_after_the_study_has_its_value_of_then():
    values = random_settings("ppo", False)[0]
    del values["fee_ramp"]
    assert resolve(values, 4, 1, -1, "ppo").train["fee_ramp"] == 0.0


@each_agent
@each_column
def test_a_space_reads_back_what_it_wrote_down(agent, use_best_ranges):
    space = build_space(use_best_ranges, 900, ("5m", "1h"), {"total_env_steps": 500}, agent)
    assert Space.from_json(space.to_json(), agent) == space


def test_a_small_budget_still_gets_several_updates():
    values = random_settings("ppo", False)[0] | {"total_env_steps": 1000}
    settings = resolve(values, 12, 1, -1, "ppo")
    assert settings.train["horizon_len"] * 12 <= 250
    assert settings.train["batch_size"] <= settings.train["horizon_len"] * 12


@each_column
def test_stale_positions_lie_inside_the_window_and_the_cap_leaves_room_for_the_concentration_penalty(use_best_ranges):
    rows = {s.name: s.best if use_best_ranges else s.broad for s in TABLES["ppo"].settings}
    assert rows["max_position_weight"].low > CONCENTRATION_LIMIT
    values = random_settings("ppo", use_best_ranges)[0]
    for episode_bars in (LEAST_EPISODE_BARS, rows["episode_bars"].low, rows["episode_bars"].high):
        bars = [
            resolve(values | {"stale_share": share, "episode_bars": episode_bars}, 4, 1, -1, "ppo").env["stale_bars"]
            for share in rows["stale_share"].choices
        ]
        assert bars[0] == 0
        assert len(set(bars)) == len(bars)
        assert max(bars) < episode_bars


def test_the_simulators_concentration_limit_is_the_one_the_table_is_made_for(market):
    """One coin at 40 % costs nothing, a little more does."""
    params = FIXED_ENV | {"lookback": 1, "norm_action": 1.0, "concentration_penalty": 1.0, "slippage_rate": 0.0}
    for share, is_charged in ((CONCENTRATION_LIMIT - 0.02, False), (CONCENTRATION_LIMIT + 0.02, True)):
        env = CryptoEnvAlpaca(market.env_config(), params, start="first")
        env.reset()
        *_, info = env.step(np.array([share, 0.0, 0.0], dtype=np.float32))
        assert (info["reward_terms"]["concentration"] != 0.0) == is_charged


def test_what_is_given_on_the_command_line_is_not_sampled():
    space = build_space(given={"total_env_steps": 500, "episode_bars": 64}, agent="ppo")
    values = sample(space, optuna.create_study().ask())
    assert values["total_env_steps"] == 500
    assert values["episode_bars"] == 64
    assert "total_env_steps" not in space.ranges
    assert expected_env_steps(space) == 500


def test_spaces_of_other_ranges_are_told_apart():
    texts = [
        str(build_space(*arguments, agent="ppo").to_json())
        for arguments in ((False, 900), (True, 900), (False, 800), (False, 900, ("5m", "1h")))
    ]
    assert len(set(texts)) == 4
    assert str(build_space(False, 900, agent="ppo").to_json()) == texts[0]


def test_episode_windows_never_exceed_what_the_data_holds():
    for longest in (20, 100, 1000, 10**6):
        range_ = build_space(longest_episode_bars=longest, agent="ppo").ranges["episode_bars"]
        assert 16 <= range_.low <= range_.high <= max(longest, 16)


def test_orders_of_the_default_space_fill(market):
    """Random actions on the sample market, scalar environment: most orders must trade.

    A buy needs cash and a sell a position, so not every order can fill; none did in the range this space replaces.
    """
    rng = np.random.default_rng(0)
    shares = []
    for values in random_settings("ppo", False) + random_settings("ppo", True):
        by_order_only = resolve(values, 1, 0, -1, "ppo").env | {"trailing_stop_pct": 0.0, "stale_bars": 0}
        env = CryptoEnvAlpaca(market.env_config(), by_order_only, start="first")
        env.reset()
        n_steps = 200
        trades = sum(env.step(rng.uniform(-1, 1, 3).astype(np.float32))[3]["trades"] for _ in range(n_steps))
        shares.append(trades / (n_steps * 3))
    assert min(shares) > 0.5
    assert np.mean(shares) > 0.75
