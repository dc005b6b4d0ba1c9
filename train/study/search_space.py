"""The search space of one study: its ranges, a sample of them, and what a sample comes to as the arguments of a run.

`train.study.search_tables` has the tables, one per agent.
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


LEAST_EPISODE_BARS = 16
# A budget much smaller than a rollout still gets a few updates.
LEAST_UPDATES = 4
# The largest of every table, and the same for every study: it decides which bars are tested.
MAX_LOOKBACK = 8

NARROW = "--use-best-ranges"  # name of the flag in a stored space
GIVEN = "given: "


@dataclass(frozen=True)
class Space:
    """The searched settings of one study with their final ranges, and the values given on the command line."""

    ranges: Mapping[str, BaseDistribution]
    given: Mapping[str, Any]
    agent: str = DEFAULT_AGENT
    is_narrow: bool = False  # the best ranges, not the broad ones

    def to_json(self) -> dict[str, str]:
        """Name -> distribution or value: two spaces are the same study's when these are equal."""
        searched = {name: distribution_to_json(range_) for name, range_ in self.ranges.items()}
        given = {name: f"{GIVEN}{value!r}" for name, value in self.given.items()}
        return {NARROW: str(self.is_narrow)} | searched | given

    @classmethod
    def from_json(cls, stored: Mapping[str, str], agent: str) -> Space:
        """The space that `to_json` wrote down, with the ranges of then."""
        names = [name for name in stored if name != NARROW]
        given = {name: literal_eval(stored[name][len(GIVEN) :]) for name in names if stored[name].startswith(GIVEN)}
        ranges = {name: json_to_distribution(stored[name]) for name in names if name not in given}
        return cls(ranges, given, agent, stored_narrow(stored) == str(True))


def stored_narrow(stored: Mapping[str, str]) -> str:
    """Whether a stored space has the best ranges, "True" or "False".

    Spaces stored up to commit c6a6d1f do not say so; their best ranges of `gamma` began at 0.97, the broad ones at 0.9.
    """
    if NARROW in stored:
        return stored[NARROW]
    gamma = json_to_distribution(stored["gamma"]) if "gamma" in stored else None
    return str(isinstance(gamma, FloatDistribution) and gamma.low > 0.95)


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
    agent: str = DEFAULT_AGENT,
) -> Space:
    """The space of a study.

    Args:
        use_best_ranges: the narrow column of the table.
        longest_episode_bars: what every split's training data can hold; longer windows would all be the same one.
        timeframes: searched as a setting when there are several.
        given: settings fixed by the caller, by name; they are not sampled.
        agent: whose table.
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
    """One value for every setting of the space; given ones included."""
    return {name: _suggest(trial, name, range_) for name, range_ in space.ranges.items()} | dict(space.given)


def misfits(space: Space, queued: Mapping[str, Any]) -> list[str]:
    """What of the settings that a trial was queued with is not in the space, one clause each; empty if all are.

    Optuna would take a number outside its range as it is, stop at a choice that is none, and pass over unknown names.
    """
    found = []
    for name, value in queued.items():
        shown = str(value)[:40]
        if name in space.ranges:
            if not _is_in(space.ranges[name], value):
                found.append(f"{name} is {shown}, not {_range_text(space.ranges[name])}")
        elif name not in space.given:
            found.append(f"{name[:40]} is no setting of this study")
        elif value != space.given[name]:
            found.append(f"{name} is {shown}, and this study fixes it at {space.given[name]}")
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
    kind = "a whole number" if isinstance(range_, IntDistribution) else "a number"
    return f"{kind} from {range_.low:g} to {range_.high:g}"


def resolve(values: Mapping[str, Any], n_envs: int, seed: int, gpu_id: int, agent: str = DEFAULT_AGENT) -> Resolved:
    """Sampled values as the arguments of a run; a setting that the study does not have takes its value of `ABSENT`."""
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
    """Lengths of rollouts, minibatches and holding times, in place.

    `rollout_samples` counts all environments together, so the learner sees the same number of samples an update
    whatever `n_envs` is. `stale_share` becomes bars of the training window: a position held for longer is sold bit
    by bit, which the policy must meet while it learns. A minibatch cannot hold more than a rollout.
    """
    horizon_len = max(min(train.pop("rollout_samples"), most_rollout_samples(train["total_env_steps"])) // n_envs, 1)
    train["horizon_len"] = horizon_len
    train["batch_size"] = min(train["batch_size"], horizon_len * n_envs)
    stale_share = env.pop("stale_share")
    env["stale_bars"] = max(round(stale_share * train["episode_bars"]), 1) if stale_share > 0.0 else 0


def with_half_the_envs(settings: Resolved) -> Resolved:
    """Half as many environments, and PPO's rollouts twice as long: as many samples an update, to a step of all.

    A band's horizon is in bars, whatever the number of environments.
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


def _shortened(range_: BaseDistribution, longest: int, least: int) -> IntDistribution:
    """The part of the range up to `longest`; nothing in it is below `least`."""
    assert isinstance(range_, IntDistribution)
    high = max(min(range_.high, longest), least)
    return IntDistribution(max(min(range_.low, high // 4), least), high, log=True)
