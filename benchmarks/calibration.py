#!/usr/bin/env python3
"""Calibrate the deflated Sharpe ratio and PBO on many small studies, some without a signal and some with one.

    python benchmarks/calibration.py            # writes benchmarks/results/calibration.json and calibration.png
    python benchmarks/calibration.py --quick    # smoke test: a tiny study of each kind; writes nothing
    python benchmarks/calibration.py --redraw   # summarizes and draws the stored studies; runs none

Run the same command again to resume an interrupted run.

Every study is a complete one, from data on disk through sampler, folds, learner and hold-out
(`train.finish.run_study`). It is judged by the statistics of scripts/validation/5_pbo.py and by its report's verdict.
"No signal" is the sample market, a fair game in which only the fees are certain. "Drifting" is the same market with a
common drift: all coins rise (even seeds) or fall (odd seeds). Exposure then matters, but nothing can be predicted. In
"planted signal" one coin at a time rises, announced one bar ahead, and the equal-weight portfolio earns nothing. The
seed determines the market, the sampler and the initial weights.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks import measuring
from benchmarks.calibration_summary import COLUMNS, DRIFTING, KINDS, LEAST_COMPARED, NO_SIGNAL, PLANTED, draw, summary
from benchmarks.planted_markets import TICKERS, AnnouncedMarket
from benchmarks.studies import ended_study
from market.dataset import Dataset, make_dataset
from market.sample import synthetic_dataset
from train.findings.overfit import assess
from train.findings.returns import Kind, StudyReturns, layout_of, mean_returns, read_returns
from train.findings.stored_trial import StoredStudy
from train.records.attributes import holdout_score_in
from train.records.defaults import DEFAULT_AGENT, N_BLOCKS
from train.records.results import read_equity, split_folder
from train.store.database import FINISHED
from train.study.eligibility import best_trial
from train.study.holdout_figures import error_of, lead_in_errors, n_idle
from train.study.search_tables import FIXED_ENV
from train.study.split_plan import SplitPlan
from train.validation.metrics import bar_returns, sharpe
from train.validation.overfitting import estimate_sharpe, pbo_cscv, probabilistic_sharpe

N_STUDIES = {NO_SIGNAL: 26, DRIFTING: 12, PLANTED: 8}
# The named coin rises three times as much as each other coin falls, and one regime in four names no coin. On average no
# coin moves, and the equal-weight portfolio earns nothing.
SIGNAL = AnnouncedMarket(n_assets=len(TICKERS), rise=0.006, fall=-0.002, volatility=0.004)
# Mean log return per bar of the equal-weight portfolio, divided by its standard deviation. On 3,000 bars this is four
# standard errors, as significant as an annual Sharpe ratio of 2.5 over two and a half years.
DRIFT = 0.08


@dataclass(frozen=True)
class Settings:
    """Settings of every study."""

    agent: str = DEFAULT_AGENT
    n_trials: int = 16  # completed and pruned
    num_paths: int = 2  # with k_test_groups 1 there are 3 splits, each of which tests a third of the bars
    k_test_groups: int = 1
    holdout_fraction: float = 0.15
    break_step: int = 150_000  # environment steps per split
    n_envs: int = 2
    n_bars: int = 3_000
    pruner: str = "none"  # three splits are too few for the Wilcoxon test; inactive trials are always pruned


QUICK = replace(Settings(), n_trials=4, break_step=1_500, n_bars=2_000)
# Fields that `drifting` copies from the fair market.
KEPT = ("tech", "time", "tickers", "feature_names", "bar_seconds", "segments", "synthetic", "filled")
KEPT += ("feature_set", "warmup_bars", "venue")
READING = ("sharpe", "probabilistic", "deflated", "pbo", "luck_sharpe", "effective_trials", "best_sharpe")
READING += ("best_probabilistic", "choice_p_value")
UNDEFINED = dict.fromkeys(READING)


# ------------------------------------------------------------------------------------------------------------- markets
def make_market(kind: str, seed: int, n_bars: int) -> Dataset:
    """Return the market of a study."""
    if kind == PLANTED:
        return SIGNAL.dataset(n_bars, seed)
    fair = synthetic_dataset("5m", n_bars, TICKERS, seed=seed)
    return fair if kind == NO_SIGNAL else drifting(fair, DRIFT if seed % 2 == 0 else -DRIFT)


def drifting(fair: Dataset, drift: float) -> Dataset:
    """Return the market with a common drift and the same features.

    `drift` is per bar, in standard deviations of the equal-weight portfolio's log return.
    """
    moves = np.diff(np.log(fair.price), axis=0).mean(axis=1)
    growth = np.exp(drift * moves.std() * np.arange(len(fair.price)))
    kept = {name: getattr(fair, name) for name in KEPT}
    return make_dataset(price=fair.price * growth[:, None], source=f"{fair.source}, drift {drift:+g}", **kept)


# ------------------------------------------------------------------------------------------------------------- a study
def study_once(kind: str, seed: int, settings: Settings) -> dict[str, Any]:
    """Run one study and judge it."""
    started = time.perf_counter()
    sizes = asdict(settings)
    market = make_market(kind, seed, sizes.pop("n_bars"))
    plan = SplitPlan("standard", *(sizes.pop(name) for name in ("num_paths", "k_test_groups", "holdout_fraction")))
    with ended_study(market, plan=plan, seed=seed, **sizes) as stored:
        row = {"kind": kind, "seed": seed, **judge(stored), "wall_s": time.perf_counter() - started}
    return plain(row)


def judge(stored: StoredStudy) -> dict[str, Any]:
    """Return the winner's statistics, as 5_pbo.py and the hold-out compute them."""
    n_finished = len(stored.study.get_trials(deepcopy=False, states=FINISHED))
    row: dict[str, Any] = {"n_finished": n_finished, "n_compared": 0, "account": UNDEFINED, "lead": UNDEFINED}
    scored = holdout_score_in(stored.study.user_attrs)
    row |= dict.fromkeys(("holdout_excess_sharpe", "holdout_error", "holdout_lead_errors"))
    if scored is not None:
        row["holdout_excess_sharpe"] = None if n_idle(scored) else scored.mean_excess_sharpe
        row |= {"holdout_error": error_of(scored), "holdout_lead_errors": lead_in_errors(scored)}
    row |= {"pbo_before_costs": None, "equal_weight_probabilistic": None}
    if best_trial(stored.study) is None:  # all trials were inactive, so there is no winner to judge
        return row
    returns = read_returns(stored.study, stored.folder)
    free = returns_before_costs(stored, returns.numbers)
    row |= {kind: reading(returns, kind) for kind in ("account", "lead")} | {"n_compared": len(returns.numbers)}
    row["pbo_before_costs"] = pbo_cscv(free, N_BLOCKS).pbo if free.shape[1] > 1 else None
    return row | {"equal_weight_probabilistic": probabilistic_sharpe(estimate_sharpe(returns.equal_weight))}


def reading(returns: StudyReturns, kind: Kind) -> dict[str, Any]:
    """Return the statistics of one kind of returns, or undefined values if fewer than two trials can be compared."""
    if len(returns.numbers) < LEAST_COMPARED:
        return UNDEFINED
    found, matrix = assess(returns, kind, least_trials=LEAST_COMPARED).to_json(), returns.matrix(kind)
    ratios = np.array([float(sharpe(column, 1.0)) for column in matrix.T])
    best = estimate_sharpe(matrix[:, int(np.argmax(ratios))])  # the highest Sharpe ratio, which may not be the winner's
    names = ("annual_sharpe", "probabilistic_sharpe", "deflated_sharpe", "pbo", "annual_sharpe_of_luck")
    figures = [found[name] for name in (*names, "effective_trials")]
    figures += [best.sharpe * math.sqrt(returns.bars_per_year), probabilistic_sharpe(best), found["choice_p_value"]]
    return dict(zip(READING, figures, strict=True))


def plain(value: Any) -> Any:
    """Return the value with null in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def returns_before_costs(stored: StoredStudy, numbers: Sequence[int]) -> np.ndarray:
    """Return the accounts' returns (T, N) with the fees and slippage of each step added back."""
    n_folds = stored.plan.num_paths + 1  # with k_test_groups 1
    by_trial = [
        {k: read_equity(split_folder(stored.folder, number, k) / "equity.npz") for k in range(n_folds)}
        for number in numbers
    ]
    layout = layout_of(by_trial[0])
    columns = [mean_returns(layout, {k: _free_equity(c) for k, c in splits.items()}) for splits in by_trial]
    return np.stack(columns, axis=1)


def _free_equity(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Return the equity (M,) that compounds the returns before costs; steps between segments are meaningless."""
    cost = columns["fees"] + FIXED_ENV["slippage_rate"] * columns["turnover"]
    returns = bar_returns(columns["equity"]) + cost[1:] / columns["equity"][:-1]
    return np.cumprod(np.concatenate([[1.0], 1.0 + returns]))


# ------------------------------------------------------------------------------------------------------------- program
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the studies and return their settings and statistics."""
    settings = QUICK if args.quick else Settings()
    jobs = [(kind, seed) for kind in KINDS for seed in range(1 if args.quick else N_STUDIES[kind])]
    identity = json.dumps(asdict(settings))
    studies = measuring.resumed(args, jobs, partial(study_once, settings=settings), lambda job: identity)
    about = (
        f"The table shows the share of studies whose winner each rule calls skilled. A study has {settings.n_trials} "
        f"trials of the {settings.agent} agent, with {settings.num_paths + 1} splits of {settings.break_step:,} "
        f"environment steps each. Its market has {settings.n_bars:,} five-minute bars of {len(TICKERS)} coins, and the "
        f"last {settings.holdout_fraction:.0%} of the bars are the hold-out. The pruner is set to {settings.pruner}. "
        f"Inactive trials are always pruned. The {NO_SIGNAL} market is the sample market, a fair game. The {DRIFTING} "
        f"market is the same market, but all coins rise (even seeds) or fall (odd seeds) by {DRIFT:g} standard "
        f"deviations per bar. On the {PLANTED} market, the rising coin is announced one bar ahead, the signal is "
        "strong, and the equal-weight portfolio earns nothing. Alpha returns are returns minus beta times the returns "
        "of the equal-weight portfolio. The PBO level is a threshold. It is not an error rate backed by theory."
    )
    made = {"settings": asdict(settings), "signal": asdict(SIGNAL), "drift": DRIFT, "studies": studies}
    return measuring.section(args, about, COLUMNS, **made)


def main(argv: Sequence[str] | None = None) -> int:
    """Run or read the studies, then summarize, draw and write."""
    args = measuring.parsed(__doc__, threads=1, own_file="calibration.json", options=measuring.RESUMED, argv=argv)
    part = measuring.written(args, "calibration") if args.redraw else measure(args)
    return measuring.keep(args, "calibration", part | summary(part["studies"]), draw)


if __name__ == "__main__":
    sys.exit(main())
