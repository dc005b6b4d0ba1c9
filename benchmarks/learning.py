"""Check that PPO learns on two planted markets with five seeds, and draw the curves.

    python benchmarks/learning.py            # writes benchmarks/results/learning.json and learning.png
    python benchmarks/learning.py --quick    # smoke test: one seed, 1/20 of the budget; writes nothing

On the announced trend, the result is the share of the best policy's log growth that the trained policy earns on unseen
bars after costs. On the market without a signal the best policy does not trade. There the results are the turnover of
the exploring policy and the fees of the trained policy on unseen bars.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import measuring
from benchmarks.planted_markets import AnnouncedMarket, is_the_rule, noisy, silent_config, solve_plan
from train.config import TrainConfig
from train.env_factory import env_class_for, make_env
from train.evaluator import EpisodeRecord, evaluate_policy, mean_growth
from train.run import Progress, build_agent, train_policy

MARKET = AnnouncedMarket(rise=0.0015, fall=-0.0015, volatility=0.005, n_noise_features=4)
# One order can move the whole account, so the best policy is a rule with a proof (planted_markets).
SIGNAL_PARAMS = {"rules": "standard", "lookback": 2, "norm_action": 1.0}
SILENT_PARAMS = {"rules": "standard", "lookback": 2}
COST_RATE = 0.0025 + 0.0005  # fee plus slippage of the standard rules
TRAIN_BARS, VALIDATION_BARS, TEST_BARS = 10_000, 1_500, 3_000
TRAIN_SEED, VALIDATION_SEED, TEST_SEED = 1, 2, 3
SILENT_ASSETS = 3
REPORTS = 8  # evaluations on the market without a signal during training


def settings(seed: int, total_env_steps: int, n_envs: int = 12) -> TrainConfig:
    """Return settings with small networks and rollouts of 1,536 samples."""
    sizes = {"n_envs": n_envs, "horizon_len": 1536 // n_envs, "total_env_steps": total_env_steps, "net_dims": (64, 64)}
    return TrainConfig(learning_rate=1e-3, episode_bars=256, seed=seed, eval_every_updates=10, **sizes)


@dataclass(frozen=True)
class SignalRun:
    """Results of one seed on the announced market."""

    seed: int
    env_steps: list[int]
    share_of_best: list[float]  # on validation bars, indexed by env_steps
    test_share_of_best: float
    best_growth: float  # log growth of the known best policy on the test bars
    wall_s: float


@dataclass(frozen=True)
class SilentRun:
    """Results of one seed on the market without a signal, on unseen bars, indexed by env_steps."""

    seed: int
    env_steps: list[int]
    exploring_turnover: list[float]  # accounts per 1,000 bars, policy with noise
    turnover: list[float]  # accounts per 1,000 bars, policy without noise
    fee_share: list[float]  # fees over all test bars as a fraction of initial capital, policy without noise
    wall_s: float


def run_signal(seed: int, total_env_steps: int = 150_000, n_envs: int = 12, hide_signal: bool = False) -> SignalRun:
    """Train on the announced market; `hide_signal` shuffles the features in time, as a negative control."""
    started = time.perf_counter()
    sizes = ((TRAIN_BARS, TRAIN_SEED), (VALIDATION_BARS, VALIDATION_SEED), (TEST_BARS, TEST_SEED))
    configs = [MARKET.config(*size) for size in sizes]
    best = [mean_growth(evaluate_policy(MARKET.follow, config, SIGNAL_PARAMS)) for config in configs]
    if hide_signal:
        for config in configs:
            order = torch.randperm(len(config["tech_array"]), generator=torch.Generator().manual_seed(seed)).numpy()
            config["tech_array"] = config["tech_array"][order]
    train, validation, test = configs
    seen: list[Progress] = []
    with tempfile.TemporaryDirectory() as folder:
        options = {"validation_config": validation, "on_progress": seen.append}
        result = train_policy(settings(seed, total_env_steps, n_envs), train, SIGNAL_PARAMS, folder, **options)
        growth = mean_growth(evaluate_policy(result.best_policy, test, SIGNAL_PARAMS))
    looks = [(p.env_steps, p.validation_score / best[1]) for p in seen if p.validation_score is not None]
    steps, shares = zip(*looks, strict=True)
    return SignalRun(seed, list(steps), list(shares), growth / best[2], best[2], time.perf_counter() - started)


def run_silent(seed: int, total_env_steps: int = 200_000) -> SilentRun:
    """Train on the market without a signal, where the best policy does not trade."""
    started = time.perf_counter()
    config = settings(seed, total_env_steps)
    market = silent_config(TRAIN_BARS, SILENT_ASSETS, TRAIN_SEED)
    unseen = silent_config(TEST_BARS, SILENT_ASSETS, TEST_SEED)
    options = {"gpu_id": -1, "seed": seed, "start": config.start, "episode_bars": config.episode_bars}
    env = make_env(env_class_for(config.n_envs), market, SILENT_PARAMS, config.n_envs, **options)
    agent = build_agent(config, env)
    every = max(1, config.n_updates // REPORTS)
    looks = []
    for update in range(config.n_updates + 1):
        if update % every == 0 or update == config.n_updates:
            calm = evaluate_policy(agent.act, unseen, SILENT_PARAMS)[0]
            generator = torch.Generator().manual_seed(TEST_SEED)
            excited = evaluate_policy(noisy(agent.act, generator), unseen, SILENT_PARAMS)[0]
            steps = update * config.horizon_len * config.n_envs
            looks.append((steps, _turnover(excited), _turnover(calm), calm.fees.sum() / calm.equity[0]))
        if update < config.n_updates:
            agent.update_net(agent.explore_env(env, config.horizon_len))
    columns = [list(map(float, column)) for column in zip(*looks, strict=True)]
    return SilentRun(seed, [int(step) for step in columns[0]], *columns[1:], time.perf_counter() - started)


def _turnover(record: EpisodeRecord) -> float:
    """Return the turnover in accounts per 1,000 bars."""
    return float((record.turnover / record.equity[:-1]).sum() / len(record.turnover) * 1000.0)


SEEDS, SIGNAL_STEPS, SILENT_STEPS, QUICK_SHARE = 5, 150_000, 200_000, 20
COLUMNS = measuring.columns("seed", share="share of the best growth", before="turnover at the start, with exploration")
COLUMNS |= {"after": "turnover at the end, with exploration", "calm": "turnover at the end, without noise"}
COLUMNS["share_fees"] = "fees, without noise"
ABOUT = (
    "The table shows PPO on two planted markets. On the market with an announced trend, it shows the share of the best "
    "policy's log growth that PPO earns on unseen bars. On the market without a signal, it shows the turnover per "
    "1,000 unseen bars, as a multiple of the account's equity, and the fees as a share of the equity."
)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train on both markets for each seed, and verify that the reference strategy is optimal."""
    n_seeds, part = (1, QUICK_SHARE) if args.quick else (SEEDS, 1)
    signal = [run_signal(seed, SIGNAL_STEPS // part) for seed in range(n_seeds)]
    silent = [run_silent(seed, SILENT_STEPS // part) for seed in range(n_seeds)]
    rows = []
    for s, n in zip(signal, silent, strict=True):
        row = {"seed": s.seed, "share": s.test_share_of_best, "before": n.exploring_turnover[0]}
        row |= {"after": n.exploring_turnover[-1], "calm": n.turnover[-1], "share_fees": n.fee_share[-1]}
        rows.append(row)
    plan = solve_plan(MARKET, COST_RATE)
    proof = {"market": asdict(MARKET), "rule_is_optimal": is_the_rule(plan), "optimal_growth_per_bar": plan.growth}
    runs = {"signal": [asdict(run) for run in signal], "silent": [asdict(run) for run in silent]}
    return measuring.section(args, ABOUT, COLUMNS, rows=rows, settings=asdict(settings(0, 1)), **proof, **runs)


BLUE, ORANGE = "#0072b2", "#d55e00"  # Okabe and Ito's, which color-blind readers can distinguish


def draw(part: dict[str, Any], path: Path) -> None:
    """Draw two panels: the share of the best growth, and the turnover."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for run in part["signal"]:
        left.plot(run["env_steps"], run["share_of_best"], color=BLUE, alpha=0.7)
        left.plot(run["env_steps"][-1], run["test_share_of_best"], "o", color=ORANGE)
    left.axhline(1.0, color="black", lw=1, ls=":")
    left.axhline(0.8, color="#555555", lw=1, ls="--")
    left.set(xlabel="environment steps", ylabel="share of the best policy's growth (no unit)", ylim=(0.0, 1.05))
    left.set_title("Announced trend, costs included\nlines: validation bars; dots: test bars; dashed: 80 %")
    for run in part["silent"]:
        right.plot(run["env_steps"], run["exploring_turnover"], color=BLUE, alpha=0.7)
        right.plot(run["env_steps"], run["turnover"], color=ORANGE, ls="--", alpha=0.7)
    right.set_yscale("symlog", linthresh=0.1)
    right.set(xlabel="environment steps", ylabel="accounts traded per 1000 bars", ylim=(0, None))
    right.set_title("No signal: trading stops\non unseen bars")
    right.legend(["while exploring", "without noise"])
    for axis in (left.xaxis, right.xaxis):
        axis.set_major_formatter(lambda steps, _: f"{steps / 1000:.0f}k")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(measuring.run("learning", __doc__, measure, own_file="learning.json", draw=draw))
