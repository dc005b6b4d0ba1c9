"""Search tables, one per agent. A row is a setting, its ranges, and the part of the run that reads it.

Every row affects the run. tests/study/test_every_setting_matters.py changes one setting at a time and compares weights.
Settings that are not searched are in `fixed_train` and `fixed_env`, so that resolved settings are complete and
repeatable.

The broad ranges contain every value that is reasonable for bars from 5 minutes to a day. They leave out values that
ruin an account whatever its policy learns: tight stops and early releases, which pay a fee on every false alarm. The
best ranges (`--use-best-ranges`) lie inside them. The best ranges of PPO are centered on values known to be robust
(Schulman et al. 2017; Andrychowicz et al. 2021, "What Matters for On-Policy Deep Actor-Critic Methods?").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution


@dataclass(frozen=True)
class Setting:
    """One searched setting."""

    name: str  # name under which the value is sampled, logged and stored
    target: str  # "train": (part of) a TrainConfig field; "env": an env_params key; "data": the bars
    broad: BaseDistribution
    best: BaseDistribution
    meaning: str


@dataclass(frozen=True)
class AgentTable:
    """Searched and fixed settings of one agent."""

    settings: tuple[Setting, ...]
    fixed_train: Mapping[str, Any]
    fixed_env: Mapping[str, Any]


def _log(low: float, high: float) -> FloatDistribution:
    return FloatDistribution(low, high, log=True)


def _steps(low: int, high: int) -> IntDistribution:
    return IntDistribution(low, high, log=True)


def _one_of(*choices: bool | float | str | None) -> CategoricalDistribution:
    return CategoricalDistribution(choices)


_real, _whole = FloatDistribution, IntDistribution

PPO: tuple[Setting, ...] = (
    # The learner.
    Setting("learning_rate", "train", _log(1e-5, 3e-3), _log(1e-4, 1e-3), "learning rate of Adam"),
    Setting("lr_schedule", "train", _one_of("constant", "linear"), _one_of("constant", "linear"), "of the step size"),
    Setting("gamma", "train", _real(0.9, 0.999), _real(0.97, 0.999), "discount per bar"),
    Setting("gae_lambda", "train", _real(0.8, 1.0), _real(0.9, 0.98), "GAE lambda of the advantages"),
    Setting("clip_range", "train", _real(0.1, 0.4), _real(0.15, 0.3), "clip range of the ratio"),
    Setting("entropy_coef", "train", _log(1e-5, 3e-2), _log(1e-4, 5e-3), "weight of the entropy bonus"),
    Setting("value_coef", "train", _real(0.25, 1.0), _real(0.4, 0.8), "weight of the critic's loss"),
    Setting("max_grad_norm", "train", _log(0.1, 5.0), _log(0.3, 1.0), "largest gradient norm"),
    Setting("n_epochs", "train", _whole(2, 10), _whole(3, 8), "passes over a rollout"),
    Setting("batch_size", "train", _one_of(128, 256, 512, 1024), _one_of(256, 512), "samples per gradient step"),
    Setting("target_kl", "train", _one_of(None, 0.01, 0.02, 0.05), _one_of(None, 0.02, 0.05), "KL that ends an update"),
    Setting("rollout_samples", "train", _one_of(1024, 2048, 4096), _one_of(2048, 4096), "samples per update"),
    Setting("net_width", "train", _one_of(32, 64, 128, 256), _one_of(64, 128), "units per hidden layer"),
    Setting("net_depth", "train", _whole(1, 3), _whole(2, 3), "number of hidden layers"),
    Setting("episode_bars", "train", _steps(512, 4096), _steps(512, 2048), "longest training window"),
    Setting("fee_ramp", "train", _one_of(0.0, 0.25, 0.5, 0.75), _one_of(0.0, 0.5), "part of training until "
            "fees are full"),
    Setting("total_env_steps", "train", _steps(100_000, 400_000), _steps(200_000, 400_000), "step budget per split"),
    # The simulator: observation, orders, reward.
    Setting("lookback", "env", _whole(1, 8), _whole(1, 4), "bars per observation"),
    Setting("observe_account", "env", _one_of(False, True), _one_of(False, True), "add account state"),
    Setting("norm_action", "env", _log(1.0, 20.0), _log(4.0, 20.0), "action 1 trades equity / norm_action"),
    Setting("min_cash_reserve", "env", _real(0.0, 0.3), _real(0.0, 0.1), "fraction of equity kept as cash"),
    Setting("max_position_weight", "env", _real(0.45, 1.0), _real(0.5, 1.0), "largest weight per coin"),
    # The policy buys back everything that a stop or a release sells. Fees of an account that only holds 7 coins, over
    # 103 days of 5-minute bars at 30 bp per side: 78 % with a stop at 3 %, 24 % at 6 %, 6 % at 12 %, 1.5 % at 25 %;
    # 47 % if positions are released after 16 bars, 12 % after 64, 3 % after 256.
    Setting("trailing_stop_pct", "env", _one_of(0.0, 0.12, 0.25), _one_of(0.0, 0.25), "trailing stop; 0: off"),
    Setting("stale_share", "env", _one_of(0.0, 0.5, 0.75), _one_of(0.0, 0.5), "of episode_bars; 0: off"),
    Setting("benchmark_weight", "env", _real(0.0, 1.0), _real(0.0, 1.0), "minus growth of equal weight"),
    Setting("drawdown_penalty", "env", _real(0.0, 2.0), _real(0.0, 0.5), "penalty on new drawdown"),
    Setting("volatility_penalty", "env", _real(0.0, 10.0), _real(0.0, 3.0), "penalty on squared growth"),
    # Applies above 40 % in one coin, so max_position_weight must be higher.
    Setting("concentration_penalty", "env", _log(1e-5, 1e-2), _log(1e-5, 1e-3), "penalty on weights above 40 %"),
    Setting("turnover_penalty", "env", _log(1e-5, 1e-2), _log(1e-4, 1e-2), "penalty in addition to fees"),
)  # fmt: skip

# The band agent has no noise, advantages or critic. It trades only as far as its edges move, so orders are unbounded.
BAND: tuple[Setting, ...] = (
    # The learner.
    Setting("learning_rate", "train", _log(1e-3, 2e-2), _log(2e-3, 1e-2), "learning rate of Adam"),
    Setting("net_width", "train", _one_of(32, 64, 128, 256), _one_of(64, 128), "units per hidden layer"),
    Setting("net_depth", "train", _whole(1, 3), _whole(1, 2), "number of hidden layers"),
    Setting("horizon_bars", "train", _steps(1000, 4000), _steps(1000, 2000), "bars per rollout and account"),
    Setting("fee_ramp", "train", _one_of(0.0, 0.25, 0.5, 0.75), _one_of(0.25, 0.5), "part of training until "
            "fees are full"),
    Setting("weight_decay", "train", _log(1e-4, 1.0), _log(1e-3, 0.3), "weight decay of AdamW"),
    Setting("dropout", "train", _real(0.0, 0.4), _real(0.0, 0.2), "dropout rate"),
    Setting("remove_drift", "train", _one_of(False, True), _one_of(False, True), "subtract the mean return"),
    Setting("total_env_steps", "train", _steps(300_000, 1_200_000), _steps(500_000, 1_200_000), "account-bars "
            "per split"),
    # The simulator.
    Setting("lookback", "env", _whole(1, 8), _whole(1, 4), "bars per observation"),
    Setting("min_cash_reserve", "env", _real(0.0, 0.3), _real(0.0, 0.1), "fraction of equity kept as cash"),
    Setting("max_position_weight", "env", _real(0.45, 1.0), _real(0.5, 1.0), "largest weight per coin"),
    Setting("drawdown_penalty", "env", _real(0.0, 2.0), _real(0.0, 0.5), "penalty on new drawdown"),
    Setting("volatility_penalty", "env", _real(0.0, 10.0), _real(0.0, 3.0), "penalty on squared growth"),
    Setting("concentration_penalty", "env", _log(1e-5, 1e-2), _log(1e-5, 1e-3), "penalty on weights above 40 %"),
    Setting("turnover_penalty", "env", _log(1e-5, 1e-2), _log(1e-5, 1e-3), "penalty in addition to fees"),
)  # fmt: skip

# Not searched: the task itself, and scales that normalization removes. Advantages and returns are divided by their
# standard deviation, so only the ratios of the reward weights to `growth_weight` matter. Observations are normalized
# too. The venue sets fees and the minimum order (`train.study.venue`).
FIXED_TRAIN: dict[str, Any] = {"adam_eps": 1e-5, "normalize_observations": True, "start": "random"}
FIXED_ENV: dict[str, Any] = {
    "rules": "standard",
    "norm_tech": 1.0,
    "norm_reward": 100.0,
    "growth_weight": 1.0,
    "slippage_rate": 0.0005,
}
# Required by the band agent (`drl_agents.agents.AgentBand`): the held weight depends only on the agent's own orders.
_BAND_ENV: dict[str, Any] = {
    "norm_action": 1.0,
    "trailing_stop_pct": 0.0,
    "stale_bars": 0,
    "observe_account": False,
    "benchmark_weight": 0.0,
}

TABLES: dict[str, AgentTable] = {
    "ppo": AgentTable(PPO, {"agent": "ppo"} | FIXED_TRAIN, FIXED_ENV),
    "band": AgentTable(BAND, {"agent": "band"} | FIXED_TRAIN, FIXED_ENV | _BAND_ENV),
}

# Settings added later -> their values in studies without them.
ABSENT: dict[str, Any] = {"fee_ramp": 0.0}
