#!/usr/bin/env python3
"""Do the deflated Sharpe and PBO keep their word? Many small studies with nothing to find, and some with a signal.

    python benchmarks/calibration.py            # writes benchmarks/results/calibration.json and calibration.png
    python benchmarks/calibration.py --quick    # a tiny study of each kind, as a check; writes nothing
    python benchmarks/calibration.py --redraw   # counts and draws the written studies anew; runs none

A run that was stopped is resumed by the same command.

Every study is a real one, from data on disk through sampler, folds, learner and hold-out
(`train.finish.run_study`), judged by the figures of scripts/validation/5_pbo.py and by the verdict of its
report. Without signal: the sample market, a fair game in which fees are all that is certain. Drifting: the same, and
all coins rise (even seeds) or fall (odd ones) on the whole: holding more or less of them pays, and there is nothing to
know. With a signal: coins that rise one after the other, announced a bar before, and holding all of them earns nothing.
A seed gives the market, the sampler and the weights.
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
from train.records.defaults import DEFAULT_AGENT, N_BLOCKS
from train.records.keys import HOLDOUT_SCORE
from train.records.results import read_equity, split_folder
from train.store.database import FINISHED
from train.study.eligibility import best_trial
from train.study.holdout_figures import error_of, lead_in_errors, n_idle
from train.study.search_tables import FIXED_ENV
from train.study.split_plan import SplitPlan
from train.validation.metrics import bar_returns, sharpe
from train.validation.overfitting import estimate_sharpe, pbo_cscv, probabilistic_sharpe

N_STUDIES = {NO_SIGNAL: 26, DRIFTING: 12, PLANTED: 8}
# The named coin rises by three times what each other one falls, and one regime in four names none: on average no coin
# moves, and holding all earns nothing.
SIGNAL = AnnouncedMarket(n_assets=len(TICKERS), rise=0.006, fall=-0.002, volatility=0.004)
# Mean log return of a bar over its standard deviation, of equal weight: on 3,000 bars four standard errors, as sure as
# an annual Sharpe ratio of 2.5 is after two and a half years.
DRIFT = 0.08


@dataclass(frozen=True)
class Settings:
    """Of every study."""

    agent: str = DEFAULT_AGENT
    n_trials: int = 16  # completed and pruned
    num_paths: int = 2  # with k_test_groups 1: 3 splits, each tests a third
    k_test_groups: int = 1
    holdout_fraction: float = 0.15
    break_step: int = 150_000  # environment steps of a split
    n_envs: int = 2
    n_bars: int = 3_000
    pruner: str = "none"  # three splits are too few for the Wilcoxon test; what hardly trades is always pruned


QUICK = replace(Settings(), n_trials=4, break_step=1_500, n_bars=2_000)
# As `drifting` keeps it of the fair market.
KEPT = ("tech", "time", "tickers", "feature_names", "bar_seconds", "segments", "synthetic", "filled")
KEPT += ("feature_set", "warmup_bars", "venue")
READING = ("sharpe", "probabilistic", "deflated", "pbo", "luck_sharpe", "effective_trials", "best_sharpe")
READING += ("best_probabilistic", "choice_p_value")
UNDEFINED = dict.fromkeys(READING)


# ------------------------------------------------------------------------------------------------------------- markets
def make_market(kind: str, seed: int, n_bars: int) -> Dataset:
    """The market of a study."""
    if kind == PLANTED:
        return SIGNAL.dataset(n_bars, seed)
    fair = synthetic_dataset("5m", n_bars, TICKERS, seed=seed)
    return fair if kind == NO_SIGNAL else drifting(fair, DRIFT if seed % 2 == 0 else -DRIFT)


def drifting(fair: Dataset, drift: float) -> Dataset:
    """The market with a common drift, `drift` standard deviations of equal weight's log return a bar; same features."""
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
    """The winner's figures, as 5_pbo.py and the hold-out give them."""
    n_finished = len(stored.study.get_trials(deepcopy=False, states=FINISHED))
    row: dict[str, Any] = {"n_finished": n_finished, "n_compared": 0, "account": UNDEFINED, "lead": UNDEFINED}
    scored = stored.study.user_attrs.get(HOLDOUT_SCORE) or {}
    has_verdict = bool(scored) and not n_idle(scored)
    row["holdout_excess_sharpe"] = scored.get("mean_excess_sharpe") if has_verdict else None
    row |= {"holdout_error": error_of(scored), "holdout_lead_errors": lead_in_errors(scored)}
    row |= {"pbo_before_costs": None, "equal_weight_probabilistic": None}
    if best_trial(stored.study) is None:  # every trial kept still: nobody is called anything
        return row
    returns = read_returns(stored.study, stored.folder)
    free = returns_before_costs(stored, returns.numbers)
    row |= {
        "n_compared": len(returns.numbers),
        "account": reading(returns, "account"),
        "lead": reading(returns, "lead"),
    }
    row["pbo_before_costs"] = pbo_cscv(free, N_BLOCKS).pbo if free.shape[1] > 1 else None
    return row | {"equal_weight_probabilistic": probabilistic_sharpe(estimate_sharpe(returns.equal_weight))}


def reading(returns: StudyReturns, kind: Kind) -> dict[str, Any]:
    """One kind of returns; nothing where a single trial is left, which compares with nothing."""
    if len(returns.numbers) < LEAST_COMPARED:
        return UNDEFINED
    found, matrix = assess(returns, kind, least_trials=LEAST_COMPARED).to_json(), returns.matrix(kind)
    ratios = np.array([float(sharpe(column, 1.0)) for column in matrix.T])
    best = estimate_sharpe(matrix[:, int(np.argmax(ratios))])  # the highest, which need not be the winner
    names = ("annual_sharpe", "probabilistic_sharpe", "deflated_sharpe", "pbo", "annual_sharpe_of_luck")
    figures = [found[name] for name in (*names, "effective_trials")]
    figures += [best.sharpe * math.sqrt(returns.bars_per_year), probabilistic_sharpe(best), found["choice_p_value"]]
    return dict(zip(READING, figures, strict=True))


def plain(value: Any) -> Any:
    """The value with null for what is not finite."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def returns_before_costs(stored: StoredStudy, numbers: Sequence[int]) -> np.ndarray:
    """(T, N) returns of the accounts with each step's fees and slippage given back."""
    n_folds = stored.plan.num_paths + 1  # of k_test_groups 1
    by_trial = [
        {k: read_equity(split_folder(stored.folder, number, k) / "equity.npz") for k in range(n_folds)}
        for number in numbers
    ]
    layout = layout_of(by_trial[0])
    columns = [mean_returns(layout, {k: _free_equity(c) for k, c in splits.items()}) for splits in by_trial]
    return np.stack(columns, axis=1)


def _free_equity(columns: dict[str, np.ndarray]) -> np.ndarray:
    """(M,) account that compounds the returns before costs; its steps between segments mean nothing."""
    cost = columns["fees"] + FIXED_ENV["slippage_rate"] * columns["turnover"]
    returns = bar_returns(columns["equity"]) + cost[1:] / columns["equity"][:-1]
    return np.cumprod(np.concatenate([[1.0], 1.0 + returns]))


# ------------------------------------------------------------------------------------------------------------- program
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """How it was made, and every figure of every study."""
    settings = QUICK if args.quick else Settings()
    jobs = [(kind, seed) for kind in KINDS for seed in range(1 if args.quick else N_STUDIES[kind])]
    identity = json.dumps(asdict(settings))
    studies = measuring.resumed(args, jobs, partial(study_once, settings=settings), lambda job: identity)
    about = (
        f"Share of studies whose winner is called skilful. A study: {settings.n_trials} trials of agent "
        f"{settings.agent} with "
        f"{settings.num_paths + 1} splits, {settings.break_step:,} environment steps each, on {settings.n_bars:,} "
        f"five-minute bars of {len(TICKERS)} coins, the last {settings.holdout_fraction:.0%} held out, pruner "
        f"{settings.pruner} (and what hardly trades). {NO_SIGNAL.capitalize()}: the sample market, a fair game; "
        f"{DRIFTING}: the same, all coins rising (even seeds) or falling (odd) by {DRIFT:g} standard deviations a bar; "
        f"{PLANTED}: the coin that rises is announced a bar ahead, strongly, and holding all coins earns nothing. "
        "Both: deflated Sharpe and PBO together. Lead: returns less beta times equal weight's. PBO's level is a "
        "threshold; no theory makes it an error rate."
    )
    made = {"settings": asdict(settings), "signal": asdict(SIGNAL), "drift": DRIFT, "studies": studies}
    return measuring.section(args, about, COLUMNS, **made)


def main(argv: Sequence[str] | None = None) -> int:
    """Run or read, count, draw, write."""
    args = measuring.parsed(__doc__, threads=1, own_file="calibration.json", options=measuring.RESUMED, argv=argv)
    part = measuring.written(args, "calibration") if args.redraw else measure(args)
    return measuring.keep(args, "calibration", part | summary(part["studies"]), draw)


if __name__ == "__main__":
    sys.exit(main())
