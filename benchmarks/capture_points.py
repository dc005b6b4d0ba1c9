"""Points of the capture curve: the markets, their reference strategies, the learners, and one run of a learner."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from typing import Any

from torch import Tensor

from benchmarks.planted_markets import AnnouncedMarket, solve_plan
from benchmarks.signal_markets import SignalMarket, find_rule, joined, solve_one_coin, solve_two_coins
from train.config import TrainConfig
from train.evaluator import EpisodeRecord, evaluate_policy
from train.run import train_policy

FRESH_BARS = 500_000  # long enough to estimate the drift to within a quarter of the base optimum
HISTORY_BARS = 30_000
ANNOUNCED_BARS = 10_000
STRETCHES, STRETCH_BARS = 12, 6_000  # unseen bars; each stretch is traded twice, see `unseen_bars`
SILENT_BARS = 10_000  # unseen bars of the market without a signal
TRAIN, TEST = 101, 102  # first numbers of the seeds; settings and budgets were chosen on other bars
FEE_SHARE = 5.0 / 6.0  # share of the fee in the cost: 25 bp fee, 5 bp slippage


@dataclass(frozen=True)
class Point:
    """One market with one cost and one history length."""

    name: str
    market: SignalMarket | AnnouncedMarket
    cost_bp: float = 30.0
    train_bars: int = FRESH_BARS
    env: Mapping[str, Any] = field(default_factory=dict)  # additional env_params

    @property
    def has_signal(self) -> bool:
        """Return True if the market has a signal."""
        return isinstance(self.market, AnnouncedMarket) or self.market.alpha > 0.0

    @property
    def cost_rate(self) -> float:
        """Fee plus slippage as a fraction of notional."""
        return self.cost_bp * 1e-4

    @property
    def env_params(self) -> dict[str, Any]:
        """Settings of the environment; one order can move the whole account."""
        costs = {"fee_rate": self.cost_rate * FEE_SHARE, "slippage_rate": self.cost_rate * (1.0 - FEE_SHARE)}
        return {"rules": "standard", "lookback": 1, "norm_action": 1.0, **costs, **self.env}


BASE = Point("base", SignalMarket(alpha=1e-4))
ALL_POINTS = [BASE]
ALL_POINTS += [Point(f"alpha {alpha}", SignalMarket(alpha=alpha * 1e-4)) for alpha in (0.7, 1.5)]
ALL_POINTS += [replace(BASE, name=f"cost {cost_bp}", cost_bp=float(cost_bp)) for cost_bp in (5, 15)]
ALL_POINTS += [Point(f"coins {n}", SignalMarket(n_assets=n)) for n in (2, 7)]
ALL_POINTS += [replace(BASE, name="one history", train_bars=HISTORY_BARS)]
for rise_bp, volatility in ((15, 0.005), (8, 0.005), (4, 0.004)):
    rise = rise_bp / 10_000
    announced = AnnouncedMarket(rise=rise, fall=-rise, volatility=volatility, n_noise_features=4)
    ALL_POINTS += [Point(f"announced {rise_bp}", announced, train_bars=ANNOUNCED_BARS, env={"lookback": 2})]
ALL_POINTS += [Point("no signal", SignalMarket(alpha=0.0))]
POINTS = {point.name: point for point in ALL_POINTS}

# ------------------------------------------------------------------------------------------------------------ learners
# Step budgets were chosen once, for equal CPU time on one thread of an AMD EPYC machine, and are fixed.
PPO = TrainConfig(agent="ppo", n_envs=12, horizon_len=128, net_dims=(64, 64), learning_rate=1e-3, episode_bars=256)
PPO = replace(PPO, total_env_steps=1_050_000)
PPO_TUNED = replace(PPO, n_envs=64, net_dims=(32, 32), batch_size=2048, learning_rate=3e-3, total_env_steps=3_400_000)
PPO_TUNED = replace(PPO_TUNED, lr_schedule="linear", action_std_init_log=-1.0)
# Accounts restart every 4096 bars. An account without restarts pays for its first entry only once, so it never learns
# to stay out of the market.
BAND = TrainConfig(agent="band", n_envs=8, horizon_len=1024, net_dims=(32, 32), learning_rate=1e-2, episode_bars=4096)
BAND = replace(BAND, total_env_steps=7_000_000, lr_schedule="linear")
MANY_COINS, MANY_COINS_STEPS = 7, 4_000_000  # keeps the slower steps with more coins under 20 CPU seconds
SHORT_BARS, SHORT_DROPOUT = 30_000, 0.5  # the exact gradient overfits a short history
LEARNERS = {"PPO": PPO, "PPO, tuned": PPO_TUNED, "PPO, tuned, ramp": replace(PPO_TUNED, fee_ramp=0.5)}
LEARNERS |= {"band": BAND, "band, ramp": replace(BAND, fee_ramp=0.5)}
# PPO without the ramp runs only along the signal and cost axes, which saves a fifth of the benchmark's time.
ONLY_AT = {"PPO, tuned": ("base", "alpha 0.7", "alpha 1.5", "cost 5", "cost 15")}
QUICK_SHARE = 200  # --quick divides the budget by this number


def settings_of(point: Point, learner: str, seed: int, is_quick: bool = False) -> TrainConfig:
    """Return a learner's training settings at a point, without evaluations, because the last policy is scored."""
    settings = replace(LEARNERS[learner], seed=seed, eval_every_updates=10**9)
    if settings.agent == "band" and point.train_bars <= SHORT_BARS:
        settings = replace(settings, dropout=SHORT_DROPOUT)
    if settings.agent == "band" and point.market.n_assets == MANY_COINS:
        settings = replace(settings, total_env_steps=MANY_COINS_STEPS)
    return replace(settings, total_env_steps=settings.total_env_steps // QUICK_SHARE) if is_quick else settings


# ---------------------------------------------------------------------------------------------------------- yardsticks
@dataclass(frozen=True)
class Yardstick:
    """The reference with which a point's policies are compared."""

    growth: float  # log growth per bar of a share of 1
    what: str
    act: Callable[[Tensor], Tensor]  # a known policy, traded on the same test bars as the learned policies
    expected: float  # long-run log growth per bar of that policy


@cache
def yardstick(name: str) -> Yardstick:
    """Return a point's solved optimum, or the best rule found if the point cannot be solved."""
    point, market = POINTS[name], POINTS[name].market
    if isinstance(market, AnnouncedMarket):
        growth = solve_plan(market, point.cost_rate).growth
        return Yardstick(growth, "the rule's growth", market.follow, growth)
    if market.n_assets == 1:
        optimum = solve_one_coin(market, point.cost_rate)
        return Yardstick(optimum.growth, "solved optimum", optimum.act, optimum.growth)
    rule = find_rule(market, point.cost_rate)
    if market.n_assets == 2:
        return Yardstick(solve_two_coins(market, point.cost_rate), "solved optimum", rule.act, rule.growth)
    return Yardstick(rule.growth, "best rule found", rule.act, rule.growth)


# ----------------------------------------------------------------------------------------------------------------- run
def train_bars(point: Point, seed: int, is_quick: bool = False) -> dict[str, Any]:
    """Return the config of the history that a seed trains on."""
    n_bars = min(point.train_bars, 20_000) if is_quick else point.train_bars
    return point.market.config(n_bars, (TRAIN, seed))


@cache
def unseen_bars(name: str, is_quick: bool = False) -> dict[str, Any]:
    """Return the config of the unseen bars, which are the same for all learners.

    The noise of a bar is 25 times its signal, so 72,000 bars would leave a standard error of 40 % of the optimum.
    Therefore each stretch is traded twice, the second time with the sign of the noise flipped. The mean of both has the
    same expectation and almost no noise. Without a signal, one stretch is traded once.
    """
    point = POINTS[name]
    if not point.has_signal:
        return point.market.config(SILENT_BARS, (TEST, 0))
    n_stretches, n_bars = (2, 2_000) if is_quick else (STRETCHES, STRETCH_BARS)
    pairs = product(range(n_stretches), (False, True))
    return joined([point.market.config(n_bars, (TEST, i), mirrored) for i, mirrored in pairs])


def growth_per_bar(records: list[EpisodeRecord]) -> float:
    """Return the mean log growth per bar."""
    return sum(record.growth for record in records) / sum(len(record.turnover) for record in records)


@cache
def yardstick_growth(name: str, is_quick: bool = False) -> float:
    """Return the log growth per bar of the reference strategy on the test bars."""
    return growth_per_bar(evaluate_policy(yardstick(name).act, unseen_bars(name, is_quick), POINTS[name].env_params))


def measure(name: str, learner: str, seed: int, is_quick: bool = False) -> dict[str, Any]:
    """Train a learner once at a point and score it on unseen bars at full cost.

    The seed determines the history and the initial weights. Growth is log growth per bar. `turnover` is accounts traded
    per 1,000 bars. `traded` and `cost_share` (fees and slippage over the initial account) describe the first stretch.
    `cpu_s` is the process time of training.
    """
    point = POINTS[name]
    settings = settings_of(point, learner, seed, is_quick)
    train = train_bars(point, seed, is_quick)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        result = train_policy(settings, train, point.env_params, folder)
        cpu_s = time.process_time() - started
        records = evaluate_policy(result.last_policy, unseen_bars(name, is_quick), point.env_params)
    growth, first = growth_per_bar(records), records[0]
    share, raw_share = shares(name, growth, is_quick)
    traded = [float((record.turnover / record.equity[:-1]).sum()) for record in records]
    paid = first.fees.sum() + point.env_params["slippage_rate"] * first.turnover.sum()
    run = {"point": name, "learner": learner, "seed": seed, "share": share, "raw_share": raw_share}
    run |= {"growth_bp": growth * 1e4, "turnover": 1000.0 * sum(traded) / sum(len(r.turnover) for r in records)}
    run |= {"traded": traded[0], "cost_share": float(paid / first.equity[0]), "cpu_s": cpu_s}
    return run | {"env_steps": result.env_steps, "n_updates": result.n_updates}


def shares(name: str, growth: float, is_quick: bool = False) -> tuple[float | None, float | None]:
    """Return a growth as a share of the optimum, first as a ratio estimate and then uncorrected.

    The stretches hold about 750 signal lifetimes, whose randomness alone moves a growth by 15 %. The growth of the
    reference strategy on the same bars moves by the same amount. The ratio estimate divides one growth by the other,
    and multiplies by the reference strategy's known long-run growth over the optimum.
    """
    if not POINTS[name].has_signal:
        return None, None
    known = yardstick(name)
    beside = yardstick_growth(name, is_quick)
    share = growth / beside * known.expected / known.growth if beside > 0.0 else math.nan
    return share, growth / known.growth
