"""What a study searches over, a table per agent. A row is a setting, its range and the part of the run that reads it.

Every row changes the run (tests/study/test_every_setting_matters.py changes each alone and compares weights). What is
not searched is in `fixed_train` and `fixed_env`, so that a resolved setting is complete and can be run again.

The broad ranges hold everything that is reasonable on bars from 5 minutes to a day. They leave out values that can only
ruin an account, whatever its policy learns: close stops and early releases, which pay a fee on every false alarm. The
best ranges (`--use-best-ranges`) lie inside them. PPO's are centred
on values that it is known to be robust at (Schulman et al. 2017; Andrychowicz et al. 2021, "What Matters for On-Policy
Deep Actor-Critic Methods?").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution


@dataclass(frozen=True)
class Setting:
    """One searched setting."""

    name: str  # as sampled, logged and stored
    target: str  # "train": a TrainConfig field or what one is made of; "env": an env_params key; "data": the bars
    broad: BaseDistribution
    best: BaseDistribution
    meaning: str


@dataclass(frozen=True)
class AgentTable:
    """What a study of one agent searches, and the settings of that agent that it does not search."""

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
    Setting("learning_rate", "train", _log(1e-5, 3e-3), _log(1e-4, 1e-3), "Adam's step"),
    Setting("lr_schedule", "train", _one_of("constant", "linear"), _one_of("constant", "linear"), "over the budget"),
    Setting("gamma", "train", _real(0.9, 0.999), _real(0.97, 0.999), "discount of one bar"),
    Setting("gae_lambda", "train", _real(0.8, 1.0), _real(0.9, 0.98), "bias against variance of advantages"),
    Setting("clip_range", "train", _real(0.1, 0.4), _real(0.15, 0.3), "of the probability ratio"),
    Setting("entropy_coef", "train", _log(1e-5, 3e-2), _log(1e-4, 5e-3), "keeps the policy from narrowing early"),
    Setting("value_coef", "train", _real(0.25, 1.0), _real(0.4, 0.8), "weight of the critic in the joint loss"),
    Setting("max_grad_norm", "train", _log(0.1, 5.0), _log(0.3, 1.0), "longest gradient"),
    Setting("n_epochs", "train", _whole(2, 10), _whole(3, 8), "passes over a rollout"),
    Setting("batch_size", "train", _one_of(128, 256, 512, 1024), _one_of(256, 512), "samples of a gradient step"),
    Setting("target_kl", "train", _one_of(None, 0.01, 0.02, 0.05), _one_of(None, 0.02, 0.05), "ends an update early"),
    Setting("rollout_samples", "train", _one_of(1024, 2048, 4096), _one_of(2048, 4096), "of all envs, an update"),
    Setting("net_width", "train", _one_of(32, 64, 128, 256), _one_of(64, 128), "units of a hidden layer"),
    Setting("net_depth", "train", _whole(1, 3), _whole(2, 3), "hidden layers"),
    Setting("episode_bars", "train", _steps(512, 4096), _steps(512, 2048), "longest window"),
    Setting("fee_ramp", "train", _one_of(0.0, 0.25, 0.5, 0.75), _one_of(0.0, 0.5), "share of the budget until full "
            "fees"),
    Setting("total_env_steps", "train", _steps(100_000, 400_000), _steps(200_000, 400_000), "budget of a split"),
    # The simulator: what is seen, what an order may do, what is rewarded.
    Setting("lookback", "env", _whole(1, 8), _whole(1, 4), "bars of features in an observation"),
    Setting("observe_account", "env", _one_of(False, True), _one_of(False, True), "see drawdown, holding times, ..."),
    Setting("norm_action", "env", _log(1.0, 20.0), _log(4.0, 20.0), "action 1 trades equity / norm_action"),
    Setting("min_cash_reserve", "env", _real(0.0, 0.3), _real(0.0, 0.1), "fraction of equity no buy may use"),
    Setting("max_position_weight", "env", _real(0.45, 1.0), _real(0.5, 1.0), "of the account in one coin"),
    # Whatever a stop or a release sells, the policy buys back. Fees of an account that only wants to hold 7 coins, over
    # 103 days of 5-minute bars at 30 bp a side: 78 % under a stop of 3 %, 24 % under 6 %, 6 % under 12 %, 1.5 % under
    # 25 %; 47 % when positions are released after 16 bars, 12 % after 64, 3 % after 256.
    Setting("trailing_stop_pct", "env", _one_of(0.0, 0.12, 0.25), _one_of(0.0, 0.25), "0 is off"),
    Setting("stale_share", "env", _one_of(0.0, 0.5, 0.75), _one_of(0.0, 0.5), "of episode_bars; 0 is off"),
    Setting("benchmark_weight", "env", _real(0.0, 1.0), _real(0.0, 1.0), "of the equal-weight portfolio's growth"),
    Setting("drawdown_penalty", "env", _real(0.0, 2.0), _real(0.0, 0.5), "on new depths of the drawdown"),
    Setting("volatility_penalty", "env", _real(0.0, 10.0), _real(0.0, 3.0), "on squared growth"),
    # Bites above 40 % in one coin: the cap above must lie higher.
    Setting("concentration_penalty", "env", _log(1e-5, 1e-2), _log(1e-5, 1e-3), "on one coin above 40 %"),
    Setting("turnover_penalty", "env", _log(1e-5, 1e-2), _log(1e-4, 1e-2), "beside fees"),
)  # fmt: skip

# Without noise, advantages and a critic. A band trades as much as its edges move, so its orders need no bound.
BAND: tuple[Setting, ...] = (
    # The learner.
    Setting("learning_rate", "train", _log(1e-3, 2e-2), _log(2e-3, 1e-2), "Adam's step"),
    Setting("net_width", "train", _one_of(32, 64, 128, 256), _one_of(64, 128), "units of a hidden layer"),
    Setting("net_depth", "train", _whole(1, 3), _whole(1, 2), "hidden layers"),
    Setting("horizon_bars", "train", _steps(1000, 4000), _steps(1000, 2000), "bars of a rollout, of each account"),
    Setting("fee_ramp", "train", _one_of(0.0, 0.25, 0.5, 0.75), _one_of(0.25, 0.5), "share of the budget until full "
            "fees"),
    Setting("weight_decay", "train", _log(1e-4, 1.0), _log(1e-3, 0.3), "AdamW's"),
    Setting("dropout", "train", _real(0.0, 0.4), _real(0.0, 0.2), "share of units left out"),
    Setting("remove_drift", "train", _one_of(False, True), _one_of(False, True), "take the mean return out"),
    Setting("total_env_steps", "train", _steps(300_000, 1_200_000), _steps(500_000, 1_200_000), "account-bars of "
            "a split"),
    # The simulator.
    Setting("lookback", "env", _whole(1, 8), _whole(1, 4), "bars of features in an observation"),
    Setting("min_cash_reserve", "env", _real(0.0, 0.3), _real(0.0, 0.1), "fraction of equity no buy may use"),
    Setting("max_position_weight", "env", _real(0.45, 1.0), _real(0.5, 1.0), "of the account in one coin"),
    Setting("drawdown_penalty", "env", _real(0.0, 2.0), _real(0.0, 0.5), "on new depths of the drawdown"),
    Setting("volatility_penalty", "env", _real(0.0, 10.0), _real(0.0, 3.0), "on squared growth"),
    Setting("concentration_penalty", "env", _log(1e-5, 1e-2), _log(1e-5, 1e-3), "on one coin above 40 %"),
    Setting("turnover_penalty", "env", _log(1e-5, 1e-2), _log(1e-5, 1e-3), "beside fees"),
)  # fmt: skip

# Searched by no agent: what the question is, and scales that the learner normalises away. Advantages and returns are
# divided by their deviation, so of the reward only the weights' ratios to `growth_weight` matter; observations are
# normalised, too. Fees and the smallest notional are not here either: they are the venue's (`train.study.venue`).
FIXED_TRAIN: dict[str, Any] = {"adam_eps": 1e-5, "normalize_observations": True, "start": "random"}
FIXED_ENV: dict[str, Any] = {
    "rules": "standard",
    "norm_tech": 1.0,
    "norm_reward": 100.0,
    "growth_weight": 1.0,
    "slippage_rate": 0.0005,
}
# What a band needs of the simulator (`drl_agents.agents.AgentBand`): the held weight follows from its own orders only.
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

# Settings that came later, and what a study without them runs with.
ABSENT: dict[str, Any] = {"fee_ramp": 0.0}
