"""Search space of one study: ranges, sampling, and conversion of a sample to the arguments of a run.

The tables, one per agent, are in `train.study.search_tables`.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)

from train.config import LEAST_BAND_BARS
from train.records.defaults import DEFAULT_AGENT
from train.study.search_tables import ABSENT, TABLES


class Suggests(Protocol):
    """The part of `optuna.Trial` that sampling needs. `optuna.trial.FixedTrial` also provides it."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a float from [low, high]."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Return an integer from [low, high]."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of the choices."""
        ...


LEAST_EPISODE_BARS = 16
# A step budget smaller than a rollout still allows a few updates.
LEAST_UPDATES = 4
# Largest lookback of all tables. It is the same for every study, because it determines the test bars.
MAX_LOOKBACK = 8

NARROW = "--use-best-ranges"  # key of the flag in a stored space
GIVEN = "given: "


@dataclass(frozen=True)
class Space:
    """Searched settings of one study with their final ranges, and values fixed on the command line."""

    ranges: Mapping[str, BaseDistribution]
    given: Mapping[str, Any]
    agent: str = DEFAULT_AGENT
    is_narrow: bool = False  # True: the best ranges instead of the broad ones

    def to_json(self) -> dict[str, str]:
        """Return name -> distribution or value. Two spaces are equal if their dicts are equal."""
        searched = {name: distribution_to_json(range_) for name, range_ in self.ranges.items()}
        given = {name: f"{GIVEN}{value!r}" for name, value in self.given.items()}
        return {NARROW: str(self.is_narrow)} | searched | given

    @classmethod
    def from_json(cls, stored: Mapping[str, str], agent: str) -> Space:
        """Return the space that `to_json` stored, with its original ranges."""
        names = [name for name in stored if name != NARROW]
        given = {name: literal_eval(stored[name][len(GIVEN) :]) for name in names if stored[name].startswith(GIVEN)}
        ranges = {name: json_to_distribution(stored[name]) for name in names if name not in given}
        return cls(ranges, given, agent, stored_narrow(stored) == str(True))


def stored_narrow(stored: Mapping[str, str]) -> str:
    """Return "True" if a stored space has the best ranges, otherwise "False".

    Spaces stored up to commit c6a6d1f lack this entry. Their best ranges of `gamma` began at 0.97, the broad ones at
    0.9.
    """
    if NARROW in stored:
        return stored[NARROW]
    gamma = json_to_distribution(stored["gamma"]) if "gamma" in stored else None
    return str(isinstance(gamma, FloatDistribution) and gamma.low > 0.95)


@dataclass(frozen=True)
class Resolved:
    """Complete settings of one trial: the arguments of TrainConfig and of the environment."""

    train: dict[str, Any]
    env: dict[str, Any]
    timeframe: str | None  # None: the study has only one timeframe


def build_space(
    use_best_ranges: bool = False,
    longest_episode_bars: int | None = None,
    timeframes: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
    agent: str = DEFAULT_AGENT,
) -> Space:
    """Build the search space of a study.

    Args:
        use_best_ranges: use the narrow ranges of the table.
        longest_episode_bars: longest window that fits into the training data of every split.
        timeframes: timeframes to search over if there are several.
        given: settings fixed by the caller, by name. They are not sampled.
        agent: agent whose table is used.
    """
    fixed, rows = dict(given or {}), TABLES[agent].settings
    ranges = {s.name: s.best if use_best_ranges else s.broad for s in rows if s.name not in fixed}
    for name, least in (("episode_bars", LEAST_EPISODE_BARS), ("horizon_bars", LEAST_BAND_BARS)):
        if name in ranges and longest_episode_bars is not None:
            ranges[name] = _shortened(ranges[name], longest_episode_bars, least)
    if len(timeframes) > 1:
        ranges["timeframe"] = CategoricalDistribution(tuple(timeframes))
    return Space(ranges, fixed, agent, use_best_ranges)


def sample(space: Space, trial: Suggests) -> dict[str, Any]:
    """Return one value for every setting of the space, including fixed ones."""
    return {name: _suggest(trial, name, range_) for name, range_ in space.ranges.items()} | dict(space.given)


def misfits(space: Space, queued: Mapping[str, Any]) -> list[str]:
    """Return one clause for each queued setting outside the space, or [] if all settings fit.

    Optuna would accept an out-of-range number, raise on an unknown choice, and ignore an unknown name.
    """
    found = []
    for name, value in queued.items():
        shown = str(value)[:40]
        if name in space.ranges:
            if not _is_in(space.ranges[name], value):
                found.append(f"{name} must be {_range_text(space.ranges[name])}; received {shown}")
        elif name not in space.given:
            found.append(f"{name[:40]} is not a setting of this study")
        elif value != space.given[name]:
            found.append(f"{name} must be {space.given[name]}, fixed by this study; received {shown}")
    return found


def _is_in(range_: BaseDistribution, value: Any) -> bool:
    if isinstance(range_, CategoricalDistribution):
        return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in range_.choices)
    assert isinstance(range_, FloatDistribution | IntDistribution)
    if isinstance(value, bool) or not isinstance(value, int | float) or not range_.low <= value <= range_.high:
        return False
    steps = (value - range_.low) / range_.step if range_.step else 0.0
    return isinstance(range_, FloatDistribution) or steps == int(steps)


def _range_text(range_: BaseDistribution) -> str:
    if isinstance(range_, CategoricalDistribution):
        return f"one of {', '.join(map(str, range_.choices))}"
    assert isinstance(range_, FloatDistribution | IntDistribution)
    kind = "an integer" if isinstance(range_, IntDistribution) else "a number"
    return f"{kind} from {range_.low:g} to {range_.high:g}"


def resolve(values: Mapping[str, Any], n_envs: int, seed: int, gpu_id: int, agent: str = DEFAULT_AGENT) -> Resolved:
    """Convert sampled values to the arguments of a run. Settings missing from the study take values from `ABSENT`."""
    table = TABLES[agent]
    known = ABSENT | dict(values)
    train = {s.name: known[s.name] for s in table.settings if s.target == "train"}
    env = {s.name: known[s.name] for s in table.settings if s.target == "env"}
    train["net_dims"] = (train.pop("net_width"),) * train.pop("net_depth")
    if agent == "band":
        train["horizon_len"] = train.pop("horizon_bars")
    else:
        _resolve_ppo(train, env, n_envs)
    train |= {"n_envs": n_envs, "seed": seed, "gpu_id": gpu_id}
    return Resolved(dict(table.fixed_train) | train, dict(table.fixed_env) | env, values.get("timeframe"))


def _resolve_ppo(train: dict[str, Any], env: dict[str, Any], n_envs: int) -> None:
    """Resolve the lengths of rollouts, minibatches and holding times in place.

    `rollout_samples` counts all environments together, so an update sees the same number of samples for every `n_envs`.
    `stale_share` becomes bars of the training window. Positions held longer are sold gradually, and the policy must
    experience that during training. A minibatch is at most as large as a rollout.
    """
    horizon_len = max(min(train.pop("rollout_samples"), most_rollout_samples(train["total_env_steps"])) // n_envs, 1)
    train["horizon_len"] = horizon_len
    train["batch_size"] = min(train["batch_size"], horizon_len * n_envs)
    stale_share = env.pop("stale_share")
    env["stale_bars"] = max(round(stale_share * train["episode_bars"]), 1) if stale_share > 0.0 else 0


def with_half_the_envs(settings: Resolved) -> Resolved:
    """Return the settings with half as many environments and, for PPO, rollouts twice as long.

    An update then sees as many samples as before, up to one step of all environments. A band's horizon is in bars and
    does not change.
    """
    train = settings.train
    n_envs = train["n_envs"] // 2
    if train["agent"] == "band":
        return replace(settings, train=train | {"n_envs": n_envs})
    horizon_len = train["horizon_len"] * train["n_envs"] // n_envs
    smaller = {"n_envs": n_envs, "horizon_len": horizon_len}
    smaller["batch_size"] = min(train["batch_size"], horizon_len * n_envs)
    return replace(settings, train=train | smaller)


def most_rollout_samples(total_env_steps: int) -> int:
    """Return the largest rollout, in samples, with which the step budget still allows `LEAST_UPDATES` updates."""
    return max(total_env_steps // LEAST_UPDATES, 1)


def choices(space: Space, name: str) -> list[int]:
    """Return the integer choices of a setting in ascending order."""
    range_ = space.ranges[name]
    assert isinstance(range_, CategoricalDistribution)
    return sorted(choice for choice in range_.choices if isinstance(choice, int))


def expected_env_steps(space: Space) -> float:
    """Return the expected step budget of a split: the fixed value, or the log-uniform mean of the range."""
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


def _shortened(range_: BaseDistribution, longest: int, least: int) -> IntDistribution:
    """Clip the range at `longest`; no value falls below `least`."""
    assert isinstance(range_, IntDistribution)
    high = max(min(range_.high, longest), least)
    return IntDistribution(max(min(range_.low, high // 4), least), high, log=True)
