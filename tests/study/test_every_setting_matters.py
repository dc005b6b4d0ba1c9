"""Each searched setting, changed alone, changes what is learnt or what the account does.

Runs are deterministic to the bit, so a setting that nothing reads leaves no difference; the control below has one.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from safetensors.numpy import load_file

from market.sample import synthetic_dataset
from tests.support.fabricated_study import origin
from train.records.results import read_equity
from train.study.folds import fold_data
from train.study.search_space import resolve
from train.study.search_tables import TABLES
from train.study.split import run_split
from train.study.split_plan import SplitPlan

pytestmark = pytest.mark.slow

N_ENVS = 4
# Chosen so that every rule has something to do: large orders (stops, caps and penalties bind), a fast learner (clipping
# and the divergence limit bind), several updates (schedules bind).
PPO_BASE = {
    "learning_rate": 3e-3, "lr_schedule": "constant", "gamma": 0.95, "gae_lambda": 0.9, "clip_range": 0.2,
    "entropy_coef": 1e-3, "value_coef": 0.5, "max_grad_norm": 1.0, "n_epochs": 6, "batch_size": 256,
    "target_kl": None, "rollout_samples": 1024, "net_width": 32, "net_depth": 2, "episode_bars": 200,
    "fee_ramp": 0.0, "total_env_steps": 8192, "lookback": 2, "observe_account": False, "norm_action": 2.0,
    "min_cash_reserve": 0.0, "max_position_weight": 1.0, "trailing_stop_pct": 0.0, "stale_share": 0.0,
    "benchmark_weight": 0.0, "drawdown_penalty": 0.0, "volatility_penalty": 0.0, "concentration_penalty": 1e-5,
    "turnover_penalty": 1e-5,
}  # fmt: skip
PPO_OTHER = {
    "learning_rate": 1e-3, "lr_schedule": "linear", "gamma": 0.99, "gae_lambda": 1.0, "clip_range": 0.1,
    "entropy_coef": 3e-2, "value_coef": 1.0, "max_grad_norm": 0.1, "n_epochs": 2, "batch_size": 128,
    "target_kl": 0.01, "rollout_samples": 2048, "net_width": 64, "net_depth": 1, "episode_bars": 128,
    "fee_ramp": 0.75, "total_env_steps": 4096, "lookback": 4, "observe_account": True, "norm_action": 10.0,
    "min_cash_reserve": 0.3, "max_position_weight": 0.45, "trailing_stop_pct": 0.12, "stale_share": 0.5,
    "benchmark_weight": 1.0, "drawdown_penalty": 2.0, "volatility_penalty": 10.0, "concentration_penalty": 1e-2,
    "turnover_penalty": 1e-2,
}  # fmt: skip
# A band that is not yet trained holds little of any coin, so the learner is fast here too.
BAND_BASE = {
    "learning_rate": 1e-2, "net_width": 32, "net_depth": 1, "horizon_bars": 1000, "fee_ramp": 0.0, "weight_decay": 1e-4,
    "dropout": 0.0, "remove_drift": True, "total_env_steps": 60_000, "lookback": 2, "min_cash_reserve": 0.0,
    "max_position_weight": 1.0, "drawdown_penalty": 0.0, "volatility_penalty": 0.0, "concentration_penalty": 1e-5,
    "turnover_penalty": 1e-5,
}  # fmt: skip
BAND_OTHER = {
    "learning_rate": 1e-3, "net_width": 64, "net_depth": 2, "horizon_bars": 1500, "fee_ramp": 0.75, "weight_decay": 1.0,
    "dropout": 0.4, "remove_drift": False, "total_env_steps": 40_000, "lookback": 4, "min_cash_reserve": 0.3,
    "max_position_weight": 0.45, "drawdown_penalty": 2.0, "volatility_penalty": 10.0, "concentration_penalty": 1e-2,
    "turnover_penalty": 1e-2,
}  # fmt: skip
BASE, OTHER = {"ppo": PPO_BASE, "band": BAND_BASE}, {"ppo": PPO_OTHER, "band": BAND_OTHER}
LEAST_CHANGE = 1e-3  # relative to the largest value

each_agent = pytest.mark.parametrize("agent", TABLES)


@cache
def folded(timeframe: str):
    return fold_data(synthetic_dataset(timeframe, 3000, ("BTC", "ETH", "LTC"), seed=1), SplitPlan("standard", 3, 2))


def run(agent, env_params=None, timeframe="5m", **changed):
    """Weights of the last policy and the best one's account on the test bars."""
    settings = resolve(BASE[agent] | changed, N_ENVS, 5, -1, agent)
    settings.env.update(env_params or {})
    data = folded(timeframe)
    with TemporaryDirectory() as folder:
        run_split(settings, data, data.folds[0], Path(folder), origin(data.dataset))
        return load_file(f"{folder}/policy_last.safetensors"), read_equity(Path(folder) / "equity.npz")["equity"]


@cache
def base_run(agent, timeframe="5m"):
    return run(agent, timeframe=timeframe)


def change(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference relative to the largest value."""
    return float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12))


@each_agent
def test_a_setting_that_nothing_reads_leaves_the_same_bits(agent):
    weights, equity = run(agent, env_params={"norm_cash": 7.0})  # without effect in the standard rules
    assert all(np.array_equal(weights[name], base_run(agent)[0][name]) for name in weights)
    assert np.array_equal(equity, base_run(agent)[1])


def differs(one, other) -> bool:
    """Whether two runs learnt other weights or have another account."""
    (weights, equity), (base_weights, base_equity) = one, other
    shapes, base_shapes = ({key: w.shape for key, w in net.items()} for net in (weights, base_weights))
    if shapes != base_shapes:  # it is another network
        return True
    of_weights = max(change(weights[key], base_weights[key]) for key in weights)
    return max(of_weights, change(equity, base_equity)) > LEAST_CHANGE


@pytest.mark.parametrize(("agent", "name"), [(a, s.name) for a, table in TABLES.items() for s in table.settings])
def test_changing_one_setting_changes_the_weights_or_the_account(agent, name):
    # Stops are wide: five-minute bars of a week do not reach one.
    timeframe = "1d" if name == "trailing_stop_pct" else "5m"
    assert differs(run(agent, timeframe=timeframe, **{name: OTHER[agent][name]}), base_run(agent, timeframe))


# Where one setting could keep another from ever acting: (the agent, the corner, the setting, its other value).
CORNERS = {
    "penalty under the tightest cap": ("ppo", {"max_position_weight": 0.45}, "concentration_penalty", 1e-2),
    "penalty under the tightest best cap": ("ppo", {"max_position_weight": 0.5}, "concentration_penalty", 1e-3),
    "longest stale share": ("ppo", {}, "stale_share", 0.75),
    "largest minibatch of the smallest rollout": ("ppo", {"batch_size": 1024}, "batch_size", 512),
    "rollouts as long as the smallest budget allows": ("ppo", {"total_env_steps": 8192}, "rollout_samples", 2048),
    "a band's penalty under the tightest cap": ("band", {"max_position_weight": 0.45}, "concentration_penalty", 1e-2),
}


@pytest.mark.parametrize("corner", CORNERS)
def test_a_setting_still_acts_in_the_corner_where_others_bind(corner):
    agent, base, name, value = CORNERS[corner]
    assert differs(run(agent, **(base | {name: value})), run(agent, **base))
