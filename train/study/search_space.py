"""What a study searches over: one table. A row is a setting, its range, and the part of the run that reads it.

Every row changes the run (tests/study/test_every_setting_matters.py changes each alone and compares weights). What is
not searched is in `FIXED_TRAIN` and `FIXED_ENV`, so that a resolved setting is complete and can be run again.

The broad ranges hold everything that is reasonable on bars from 5 minutes to a day. The best ranges
(`--use-best-ranges`) lie inside them, around values PPO is known to be robust at (Schulman et al. 2017; Andrychowicz et
al. 2021, "What Matters for On-Policy Deep Actor-Critic Methods?") and around trading sizes whose fees an account
survives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)


class Suggests(Protocol):
    """The part of an optuna Trial that sampling needs; `optuna.trial.FixedTrial` has it too."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A real number from [low, high]."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number from [low, high]."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        ...


@dataclass(frozen=True)
class Setting:
    """One searched setting."""

    name: str  # as sampled, logged and stored
    target: str  # "train": a TrainConfig field or what one is made of; "env": an env_params key; "data": the bars
    broad: BaseDistribution
    best: BaseDistribution
    meaning: str


def _log(low: float, high: float) -> FloatDistribution:
    return FloatDistribution(low, high, log=True)


def _steps(low: int, high: int) -> IntDistribution:
    return IntDistribution(low, high, log=True)


def _one_of(*choices: bool | float | str | None) -> CategoricalDistribution:
    return CategoricalDistribution(choices)


_real, _whole = FloatDistribution, IntDistribution

SEARCH_SPACE: tuple[Setting, ...] = (
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
    Setting("episode_bars", "train", _steps(128, 4096), _steps(256, 2048), "longest window"),
    Setting("total_env_steps", "train", _steps(100_000, 400_000), _steps(200_000, 400_000), "budget of a split"),
    # The simulator: what is seen, what an order may do, what is rewarded.
    Setting("lookback", "env", _whole(1, 8), _whole(1, 4), "bars of features in an observation"),
    Setting("observe_account", "env", _one_of(False, True), _one_of(False, True), "see drawdown, holding times, ..."),
    Setting("norm_action", "env", _log(1.0, 20.0), _log(4.0, 20.0), "action 1 trades equity / norm_action"),
    Setting("min_cash_reserve", "env", _real(0.0, 0.3), _real(0.0, 0.1), "fraction of equity no buy may use"),
    Setting("max_position_weight", "env", _real(0.45, 1.0), _real(0.5, 1.0), "of the account in one coin"),
    Setting("trailing_stop_pct", "env", _one_of(0.0, 0.03, 0.06, 0.12), _one_of(0.0, 0.06, 0.12), "0 is off"),
    Setting("stale_share", "env", _one_of(0.0, 0.1, 0.25, 0.5), _one_of(0.0, 0.25, 0.5), "of episode_bars; 0 is off"),
    Setting("benchmark_weight", "env", _real(0.0, 1.0), _real(0.0, 1.0), "of the equal-weight portfolio's growth"),
    Setting("drawdown_penalty", "env", _real(0.0, 2.0), _real(0.0, 0.5), "on new depths of the drawdown"),
    Setting("volatility_penalty", "env", _real(0.0, 10.0), _real(0.0, 3.0), "on squared growth"),
    # Bites above 40 % in one coin: the cap above must lie higher.
    Setting("concentration_penalty", "env", _log(1e-5, 1e-2), _log(1e-5, 1e-3), "on one coin above 40 %"),
    Setting("turnover_penalty", "env", _log(1e-5, 1e-2), _log(1e-4, 1e-2), "beside fees"),
)  # fmt: skip

# Not searched: what the question is, and scales that the learner normalises away. Advantages and returns are divided by
# their deviation, so of the reward only the weights' ratios to `growth_weight` matter; observations likewise. Fees and
# the smallest notional are not here either: they are the venue's (`train.study.venue`).
FIXED_TRAIN: dict[str, Any] = {
    "agent": "ppo",
    "adam_eps": 1e-5,
    "normalize_observations": True,
    "start": "random",
}
FIXED_ENV: dict[str, Any] = {
    "rules": "standard",
    "norm_tech": 1.0,
    "norm_reward": 100.0,
    "growth_weight": 1.0,
    "slippage_rate": 0.0005,
}

LEAST_EPISODE_BARS = 16
# A budget much smaller than a rollout still gets a few updates.
LEAST_UPDATES = 4

MAX_LOOKBACK = next(s.broad.high for s in SEARCH_SPACE if s.name == "lookback" and isinstance(s.broad, IntDistribution))


@dataclass(frozen=True)
class Space:
    """The searched settings of one study with their final ranges, and the values given on the command line."""

    ranges: Mapping[str, BaseDistribution]
    given: Mapping[str, Any]

    def to_json(self) -> dict[str, str]:
        """Name -> distribution or value: two spaces are the same study's when these are equal."""
        searched = {name: distribution_to_json(range_) for name, range_ in self.ranges.items()}
        return searched | {name: f"given: {value!r}" for name, value in self.given.items()}


@dataclass(frozen=True)
class Resolved:
    """One trial's settings, complete: what TrainConfig and the environment are made with."""

    train: dict[str, Any]
    env: dict[str, Any]
    timeframe: str | None  # None: the study has only one


def build_space(
    use_best_ranges: bool = False,
    longest_episode_bars: int | None = None,
    timeframes: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> Space:
    """The space of a study.

    Args:
        use_best_ranges: the narrow column of the table.
        longest_episode_bars: what every split's training data can hold; longer windows would all be the same one.
        timeframes: searched as a setting when there are several.
        given: settings fixed by the caller, by name; they are not sampled.
    """
    fixed = dict(given or {})
    ranges = {s.name: s.best if use_best_ranges else s.broad for s in SEARCH_SPACE if s.name not in fixed}
    if "episode_bars" in ranges and longest_episode_bars is not None:
        ranges["episode_bars"] = _shortened(ranges["episode_bars"], longest_episode_bars)
    if len(timeframes) > 1:
        ranges["timeframe"] = CategoricalDistribution(tuple(timeframes))
    return Space(ranges, fixed)


def sample(space: Space, trial: Suggests) -> dict[str, Any]:
    """One value for every setting of the space; given ones included."""
    return {name: _suggest(trial, name, range_) for name, range_ in space.ranges.items()} | dict(space.given)


def resolve(values: Mapping[str, Any], n_envs: int, seed: int, gpu_id: int) -> Resolved:
    """Sampled values as the arguments of a run.

    `rollout_samples` counts all environments together, so the learner sees the same number of samples an update
    whatever `n_envs` is. `stale_share` becomes bars of the training window: a position held for longer is sold bit
    by bit, which the policy must meet while it learns. A minibatch cannot hold more than a rollout.
    """
    train = {s.name: values[s.name] for s in SEARCH_SPACE if s.target == "train"}
    env = {s.name: values[s.name] for s in SEARCH_SPACE if s.target == "env"}
    net_dims = (train.pop("net_width"),) * train.pop("net_depth")
    horizon_len = max(min(train.pop("rollout_samples"), most_rollout_samples(train["total_env_steps"])) // n_envs, 1)
    train |= {"net_dims": net_dims, "horizon_len": horizon_len}
    train["batch_size"] = min(train["batch_size"], horizon_len * n_envs)
    stale_share = env.pop("stale_share")
    env["stale_bars"] = max(round(stale_share * train["episode_bars"]), 1) if stale_share > 0.0 else 0
    train |= {"n_envs": n_envs, "seed": seed, "gpu_id": gpu_id}
    return Resolved(FIXED_TRAIN | train, FIXED_ENV | env, values.get("timeframe"))


def with_half_the_envs(settings: Resolved) -> Resolved:
    """Half as many environments and rollouts twice as long: as many samples an update, to less than one step of all."""
    train = settings.train
    n_envs = train["n_envs"] // 2
    horizon_len = train["horizon_len"] * train["n_envs"] // n_envs
    smaller = {"n_envs": n_envs, "horizon_len": horizon_len}
    smaller["batch_size"] = min(train["batch_size"], horizon_len * n_envs)
    return replace(settings, train=train | smaller)


def most_rollout_samples(total_env_steps: int) -> int:
    """Samples of a rollout that the budget has room for, when it is to hold a few updates."""
    return max(total_env_steps // LEAST_UPDATES, 1)


def choices(space: Space, name: str) -> list[int]:
    """The whole numbers that a setting is chosen from, the smallest first."""
    range_ = space.ranges[name]
    assert isinstance(range_, CategoricalDistribution)
    return sorted(choice for choice in range_.choices if isinstance(choice, int))


def expected_env_steps(space: Space) -> float:
    """Mean budget of a trial's split before it is sampled: the log-uniform mean."""
    if "total_env_steps" in space.given:
        return float(space.given["total_env_steps"])
    range_ = space.ranges["total_env_steps"]
    assert isinstance(range_, IntDistribution)
    return (range_.low * range_.high) ** 0.5


def _suggest(trial: Suggests, name: str, range_: BaseDistribution) -> Any:
    if isinstance(range_, FloatDistribution):
        return trial.suggest_float(name, range_.low, range_.high, log=range_.log)
    if isinstance(range_, IntDistribution):
        return trial.suggest_int(name, range_.low, range_.high, log=range_.log)
    assert isinstance(range_, CategoricalDistribution)
    return trial.suggest_categorical(name, range_.choices)


def _shortened(range_: BaseDistribution, longest: int) -> IntDistribution:
    assert isinstance(range_, IntDistribution)
    high = max(min(range_.high, longest), LEAST_EPISODE_BARS)
    return IntDistribution(max(min(range_.low, high // 4), LEAST_EPISODE_BARS), high, log=True)
