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
from train.study.data import SplitPlan, fold_data
from train.study.results import read_equity
from train.study.search_space import resolve
from train.study.search_tables import TABLES
from train.study.split_run import run_split

pytestmark = pytest.mark.slow

N_ENVS = 4
# Chosen so that every rule has something to do: large orders (stops, caps and penalties bind), a fast learner (clipping
# and the divergence limit bind), several updates (schedules bind).
BASE = {
    "learning_rate": 3e-3, "lr_schedule": "constant", "gamma": 0.95, "gae_lambda": 0.9, "clip_range": 0.2,
    "entropy_coef": 1e-3, "value_coef": 0.5, "max_grad_norm": 1.0, "n_epochs": 6, "batch_size": 256,
    "target_kl": None, "rollout_samples": 1024, "net_width": 32, "net_depth": 2, "episode_bars": 200,
    "fee_ramp": 0.0, "total_env_steps": 8192, "lookback": 2, "observe_account": False, "norm_action": 2.0,
    "min_cash_reserve": 0.0,
    "max_position_weight": 1.0, "trailing_stop_pct": 0.0, "stale_share": 0.0, "benchmark_weight": 0.0,
    "drawdown_penalty": 0.0, "volatility_penalty": 0.0, "concentration_penalty": 1e-5, "turnover_penalty": 1e-5,
}  # fmt: skip
OTHER = {
    "learning_rate": 1e-3, "lr_schedule": "linear", "gamma": 0.99, "gae_lambda": 1.0, "clip_range": 0.1,
    "entropy_coef": 3e-2, "value_coef": 1.0, "max_grad_norm": 0.1, "n_epochs": 2, "batch_size": 128,
    "target_kl": 0.01, "rollout_samples": 2048, "net_width": 64, "net_depth": 1, "episode_bars": 128,
    "fee_ramp": 0.75, "total_env_steps": 4096, "lookback": 4, "observe_account": True, "norm_action": 10.0,
    "min_cash_reserve": 0.3,
    "max_position_weight": 0.45, "trailing_stop_pct": 0.03, "stale_share": 0.25, "benchmark_weight": 1.0,
    "drawdown_penalty": 2.0, "volatility_penalty": 10.0, "concentration_penalty": 1e-2, "turnover_penalty": 1e-2,
}  # fmt: skip
LEAST_CHANGE = 1e-3  # relative to the largest value


@cache
def folded():
    return fold_data(synthetic_dataset("5m", 3000, ("BTC", "ETH", "LTC"), seed=1), SplitPlan("standard", 3, 2))


def run(env_params=None, **changed):
    """Weights of the last policy and the best one's account on the test bars."""
    settings = resolve(BASE | changed, N_ENVS, 5, -1, "ppo")
    settings.env.update(env_params or {})
    with TemporaryDirectory() as folder:
        run_split(settings, folded(), folded().folds[0], Path(folder), {})
        return load_file(f"{folder}/policy_last.safetensors"), read_equity(Path(folder) / "equity.npz")["equity"]


@cache
def base_run():
    return run()


def change(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference relative to the largest value."""
    return float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12))


def test_a_setting_that_nothing_reads_leaves_the_same_bits():
    weights, equity = run(env_params={"norm_cash": 7.0})  # without effect in the standard rules
    assert all(np.array_equal(weights[name], base_run()[0][name]) for name in weights)
    assert np.array_equal(equity, base_run()[1])


def differs(one, other) -> bool:
    """Whether two runs learnt other weights or have another account."""
    (weights, equity), (base_weights, base_equity) = one, other
    shapes, base_shapes = ({key: w.shape for key, w in net.items()} for net in (weights, base_weights))
    if shapes != base_shapes:  # it is another network
        return True
    of_weights = max(change(weights[key], base_weights[key]) for key in weights)
    return max(of_weights, change(equity, base_equity)) > LEAST_CHANGE


@pytest.mark.parametrize("name", [s.name for s in TABLES["ppo"].settings])
def test_changing_one_setting_changes_the_weights_or_the_account(name):
    assert differs(run(**{name: OTHER[name]}), base_run())


# Where one setting could keep another from ever acting: (the corner, the setting, its other value).
CORNERS = {
    "penalty under the tightest cap": ({"max_position_weight": 0.45}, "concentration_penalty", 1e-2),
    "penalty under the tightest best cap": ({"max_position_weight": 0.5}, "concentration_penalty", 1e-3),
    "shortest stale share": ({"episode_bars": 128}, "stale_share", 0.1),
    "longest stale share of the shortest window": ({"episode_bars": 128}, "stale_share", 0.5),
    "largest minibatch of the smallest rollout": ({"batch_size": 1024}, "batch_size", 512),
    "rollouts as long as the smallest budget allows": ({"total_env_steps": 8192}, "rollout_samples", 2048),
}


@pytest.mark.parametrize("corner", CORNERS)
def test_a_setting_still_acts_in_the_corner_where_others_bind(corner):
    base, name, value = CORNERS[corner]
    assert differs(run(**(base | {name: value})), run(**base))
