"""Look-ahead analysis of an environment and a policy: values up to bar k must not depend on later bars.

A policy trades a stretch of bars. For each of several bars k it trades again on data that is identical up to k, with
the rows after k

* scrambled (`scrambled`: different prices, features and untraded bars), and
* removed (`cut_off`). Some rules depend on the number of remaining bars (progress in the observation, the hosts' time
  decay, final reward and early end). Removing rows changes that number, which is not look-ahead, so under such rules
  prices stay constant after k instead (`stopped`).

Observations and actions AT bars <= k must be bit-identical, and so must rewards, episode ends, equity, cash, coins,
fees and the equal-weight benchmark BOOKED at bars <= k. Both runs use the same code.

Any environment with the single-account interface of docs/simulator.md can be analyzed, including a host's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drl_agents.policy_file import load_policy
from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import (
    EnvParams,
    VectorizedCryptoEnvAlpaca,
    VectorizedCryptoEnvAlpacaOptimized,
    observation_layout,
)

ENVIRONMENTS = (CryptoEnvAlpaca, VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized)
# Rules for a policy without its own: every reward term is active, so that all of them are checked.
PROBE_RULES: dict[str, Any] = {"rules": "standard", "lookback": 5, "benchmark_weight": 1.0, "drawdown_penalty": 0.5}
PROBE_RULES |= {"volatility_penalty": 1.0, "concentration_penalty": 0.1, "turnover_penalty": 0.01}
MakeEnv = Callable[[Mapping[str, Any]], Any]  # config -> environment of one account that starts at its first bar
Act = Callable[[np.ndarray], np.ndarray]  # observation (S,) float32 -> actions (A,)
MARKET_ROWS = ("price_array", "tech_array", "filled_array")
ROWS = (*MARKET_ROWS, "time_array")  # config entries with one row per bar
INFO = ("fees", "slippage", "turnover", "trades", "benchmark_equity")
FIELDS = ("observation", "action", "reward", "done", "equity", "cash", "qty", *INFO)
ORDER = ("episode", *FIELDS)  # if several differ in one bar, the first of these is reported


@dataclass(frozen=True)
class Trace:
    """Values recorded over n steps; row i belongs to bar `first_bar + i`, and row 0 to the reset."""

    first_bar: int
    rows: Mapping[str, np.ndarray]  # field -> (n + 1, width) float64; nan before anything is booked


@dataclass(frozen=True)
class EnvDifference:
    """The first value that depends on later bars."""

    bar: int  # row of the config's arrays
    field: str  # one of FIELDS, or `episode`
    column: int
    full: float
    other: float
    last_bar: int  # k, the last bar that is the same in both runs
    variant: str  # `scrambled`, `cut off` or `stopped`

    def __str__(self) -> str:
        """Return one line for a terminal."""
        after = f"bars {self.variant} after bar {self.last_bar}"
        if self.field == "episode":
            return f"bar {self.bar}: the episode ends at a different bar; {after}"
        off = f"differs by {self.other - self.full:.3g}"
        return f"bar {self.bar}: {self.field}[{self.column}] is {self.full:.9g} or {self.other:.9g}, {off}; {after}"


@dataclass(frozen=True)
class EnvReport:
    """Result of the analysis of one environment."""

    differences: tuple[EnvDifference, ...]  # first difference of each cut and variant, if any
    n_steps: int  # length of the stretch
    n_cuts: int
    variants: tuple[str, str]

    @property
    def first(self) -> EnvDifference | None:
        """The difference at the earliest bar; among those, the one whose field comes first."""
        return min(self.differences, key=lambda found: (found.bar, ORDER.index(found.field)), default=None)

    def __str__(self) -> str:
        """Return one line for a terminal."""
        n_runs = 2 * self.n_cuts
        verdict = f"{len(self.differences)} of {n_runs} runs differ" if self.differences else "bitwise equal"
        return f"{self.n_steps:,} steps, {self.n_cuts} cuts, later bars {' and '.join(self.variants)}: {verdict}"


# ------------------------------------------------------------------------------------------------------- policies
def probe_policy(state_dim: int, action_dim: int, seed: int) -> Act:
    """Return a fixed function whose actions depend on every column of an observation of any width."""
    weight = np.random.default_rng(seed).uniform(0.5, 1.5, (action_dim, state_dim)) / np.sqrt(state_dim)
    sign = np.random.default_rng(seed + 1).choice([-1.0, 1.0], weight.shape)
    # One buffer for all calls, because a matrix product may round differently on memory with another alignment.
    weight, buffer = weight * sign, np.empty(state_dim)

    def act(state: np.ndarray) -> np.ndarray:
        buffer[:] = state
        return np.sin(weight @ buffer).astype(np.float32)

    return act


def numpy_policy(policy: Callable[[torch.Tensor], torch.Tensor]) -> Act:
    """Adapt a tensor policy (N, S) -> (N, A), such as one from a file, to a single account."""
    buffers: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def act(state: np.ndarray) -> np.ndarray:
        buffer = buffers.setdefault(len(state), torch.empty((1, len(state))))
        buffer.copy_(torch.from_numpy(np.array(state, dtype=np.float32)))
        return policy(buffer)[0].numpy().copy()

    return act


def saved_policy(path: Path) -> tuple[Act, int, dict[str, Any]]:
    """Return the function of a policy file, the width of its observation, and its metadata.

    Raises:
        ValueError: the file is not a complete policy of this project.
    """
    policy = load_policy(path)
    return numpy_policy(policy), policy.state_dim, policy.metadata


# ------------------------------------------------------------------------------------------------------- trading
def trade(env: Any, act: Act, last_bar: int) -> Trace:
    """Reset and trade until `last_bar` or the end of the episode."""
    state = np.array(env.reset(), dtype=np.float32)
    first_bar, done, reward = int(env.time), False, float("nan")
    info: Mapping[str, Any] = {}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in FIELDS}
    while True:
        action = np.array(act(state), dtype=np.float32)
        booked = {"equity": env.total_asset, "cash": env.cash, "qty": env.stocks}
        booked |= {name: info.get(name, np.nan) for name in INFO} | {"observation": state, "action": action}
        booked |= {"reward": reward, "done": done}
        for name, values in rows.items():
            values.append(np.atleast_1d(np.array(booked[name], dtype=np.float64)))
        if done or first_bar + len(rows["action"]) > last_bar:
            return Trace(first_bar, {name: np.stack(values) for name, values in rows.items()})
        state, reward, done, info = env.step(action)
        state = np.array(state, dtype=np.float32)  # copied, because the environment may reuse its buffer


# ------------------------------------------------------------------------------------------------- other futures
def stretch(config: Mapping[str, Any], first: int, last: int) -> dict[str, Any]:
    """Return the config of bars [first, last) as one segment."""
    rows = {name: config[name][first:last] for name in ROWS if name in config}
    return {**config, **rows, "segments": [(0, last - first)]}


def scrambled(config: Mapping[str, Any], bar: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return a config with a different market after `bar`.

    Each price is multiplied by a random factor, features are reordered and noisy, and other bars are untraded.
    """
    price, tech = np.array(config["price_array"]), np.array(config["tech_array"])
    later = price[bar + 1 :]
    later *= np.exp(rng.uniform(-1.0, 1.0, later.shape))
    features = tech[bar + 1 :]
    spread = 1.0 + np.abs(features).mean(axis=0)
    features[:] = rng.permutation(features) + spread * rng.normal(size=features.shape)
    other: dict[str, Any] = {"price_array": price, "tech_array": tech}
    if "filled_array" in config:
        filled = other["filled_array"] = np.array(config["filled_array"], dtype=bool)
        filled[bar + 1 :] ^= rng.random(filled[bar + 1 :].shape) < 0.5
    return {**config, **other}


def stopped(config: Mapping[str, Any], bar: int) -> dict[str, Any]:
    """Return a config in which prices and features stay constant after `bar`."""
    rows = np.minimum(np.arange(len(config["price_array"])), bar)
    return {**config, **{name: np.asarray(config[name])[rows] for name in MARKET_ROWS if name in config}}


def cut_off(config: Mapping[str, Any], bar: int) -> dict[str, Any]:
    """Return a config with the bars up to `bar` only."""
    return stretch(config, 0, bar + 1)


def stretch_bars(env_params: Mapping[str, Any], n_steps: int) -> int:
    """Return the number of bars that a segment needs for `n_steps` steps."""
    p = EnvParams.from_mapping(env_params)
    return n_steps + p.lookback * (2 if p.ends_lookback_early else 1)


def counts_down(p: EnvParams) -> bool:
    """Return True if observations or rewards depend on the number of remaining bars."""
    return p.observe_account or p.ends_lookback_early or p.reward == "cappuccino" or p.final_reward != "plain"


# ------------------------------------------------------------------------------------------------------- analysis
def analyse_env(
    make_env: MakeEnv,
    act: Act,
    config: Mapping[str, Any],
    env_params: Mapping[str, Any],
    n_cuts: int,
    seed: int,
    on_run: Callable[[], object] = lambda: None,
) -> EnvReport:
    """Trade one segment as it is and again with later bars changed, and compare the runs.

    Args:
        make_env: function that builds the environment under test from a config.
        act: deterministic policy.
        config: arrays of one segment.
        env_params: rules and settings that `make_env` uses; they determine how rows can be removed.
        n_cuts: number of bars k.
        seed: seed of the bars k and the scrambled data.
        on_run: function called after each of the 2 * n_cuts + 1 runs.
    """
    rng = np.random.default_rng(seed)
    full = trade(make_env(config), act, len(config["price_array"]) - 1)
    on_run()
    n_steps = len(full.rows["reward"]) - 1
    # Every cut is after the first step and before the last.
    offsets = rng.choice(np.arange(1, max(n_steps, 2)), min(n_cuts, max(n_steps - 1, 1)), replace=False)
    gone, take_away = ("stopped", stopped) if counts_down(EnvParams.from_mapping(env_params)) else ("cut off", cut_off)
    found = []
    for bar in sorted((full.first_bar + offsets).tolist()):
        for variant, changed in (("scrambled", scrambled(config, bar, rng)), (gone, take_away(config, bar))):
            other = trade(make_env(changed), act, bar)
            found.append(first_env_difference(full, other, bar, variant))
            on_run()
    differences = tuple(difference for difference in found if difference is not None)
    return EnvReport(differences, n_steps, len(offsets), ("scrambled", gone))


def first_env_difference(full: Trace, other: Trace, last_bar: int, variant: str) -> EnvDifference | None:
    """Return the first bar up to `last_bar`, and in it the first of FIELDS, that is not bit-identical."""
    n_rows = last_bar - full.first_bar + 1
    # The episode ends with the bars; an earlier end shows in the number of rows.
    names = [name for name in FIELDS if name != "done" or variant != "cut off"]
    pairs = {name: (full.rows[name][:n_rows], other.rows[name][:n_rows]) for name in names}
    n_both = min(len(values) for pair in pairs.values() for values in pair)
    found = []
    for order, (name, (ours, theirs)) in enumerate(pairs.items()):
        differs = ours[:n_both].view(np.uint64) != theirs[:n_both].view(np.uint64)
        if differs.any():
            row, column = (int(i) for i in np.argwhere(differs)[0])
            found.append((row, order, name, column, float(ours[row, column]), float(theirs[row, column])))
    if found:
        row, _, name, column, ours, theirs = min(found)
        return EnvDifference(full.first_bar + row, name, column, ours, theirs, last_bar, variant)
    if full.first_bar != other.first_bar or any(len(ours) != len(theirs) for ours, theirs in pairs.values()):
        return EnvDifference(min(full.first_bar, other.first_bar) + n_both, "episode", 0, 0.0, 0.0, last_bar, variant)
    return None


def observation_column(
    column: int, env_params: Mapping[str, Any], tickers: Sequence[str], feature_names: Sequence[str]
) -> str:
    """Return the description of an observation column, such as `tech BTC:rsi_14, 2 bars back`."""
    blocks = observation_layout(env_params, len(tickers), len(feature_names))
    ends = np.cumsum([width for _, width in blocks])
    i = int(np.searchsorted(ends, column, side="right"))
    if i == len(blocks):
        return "outside the layout"
    block, width = blocks[i]
    place = column - int(ends[i]) + width
    if block == "tech":
        lag, feature = divmod(place, len(feature_names))
        return f"tech {feature_names[feature]}, {lag} bars back"
    return f"{block} {tickers[place]}" if width == len(tickers) else block
