#!/usr/bin/env python3
"""Do the deflated Sharpe and PBO keep their word? Many small studies with nothing to find, and some with a signal.

    python benchmarks/calibration.py            # writes benchmarks/results/calibration.json and calibration.png
    python benchmarks/calibration.py --quick    # a tiny study of each kind, as a check; writes nothing
    python benchmarks/calibration.py --pruner wilcoxon   # as the trainer prunes by default; calibration_wilcoxon.json
    python benchmarks/calibration.py --agent ppo         # the other learner; calibration_ppo.json
    python benchmarks/calibration.py --redraw   # counts and draws the written studies anew; runs none

A run that was stopped is resumed by the same command: each study is kept in a file beside the result, <result>.studies,
as soon as it has ended.

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
import logging
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring
from benchmarks.calibration_summary import (
    COLUMNS,
    DRIFTING,
    KINDS,
    LEAST_COMPARED,
    NO_SIGNAL,
    PLANTED,
    VERDICT,
    Reading,
    Study,
    checks,
    draw,
    is_judged,
    notes,
    table_rows,
)
from benchmarks.planted_markets import AnnouncedMarket
from market.dataset import Dataset, make_dataset, save_dataset
from market.sample import synthetic_dataset
from train.findings.overfit import assess
from train.findings.returns import Kind, StudyReturns, layout_of, mean_returns, read_returns
from train.findings.stored_trial import StoredStudy, open_stored
from train.finish import run_study
from train.records.defaults import DEFAULT_AGENT, N_BLOCKS, PRUNERS
from train.records.keys import HOLDOUT_SCORE
from train.records.results import read_equity, split_folder
from train.runner.request import StudyRequest
from train.store.address import absolute_url
from train.store.database import FINISHED
from train.study.eligibility import best_trial
from train.study.holdout_figures import error_of, lead_in_errors, n_idle
from train.study.search_tables import FIXED_ENV
from train.study.split_plan import SplitPlan
from train.validation.metrics import bar_returns, sharpe
from train.validation.overfitting import estimate_sharpe, pbo_cscv, probabilistic_sharpe

TICKERS = ("BTC", "ETH", "LTC")
BAR_SECONDS, FIRST_CLOSE_S = 300, 1_704_067_500
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
    pruner: str = "none"  # of `train.records.defaults.PRUNERS`; what hardly trades is always pruned


KEPT = (
    "tech", "time", "tickers", "feature_names", "bar_seconds", "segments", "synthetic", "filled", "feature_set",
    "warmup_bars", "venue",
)  # fmt: skip
UNDEFINED = Reading(*[math.nan] * 9)
# Three splits are too few for the Wilcoxon test to reach its level, so it would stop nothing: six, on twice the bars.
WITH_PRUNER = {"num_paths": 5, "n_bars": 6_000}
# PPO takes a gradient step every few hundred samples, the band agent one every thousand bars of every account.
OF_AGENT = {"band": {}, "ppo": {"break_step": 4_000, "n_envs": 12}}
QUICK = {"n_trials": 4, "break_step": 1_500, "n_bars": 2_000}


# ------------------------------------------------------------------------------------------------------------- markets
def make_market(kind: str, seed: int, n_bars: int) -> Dataset:
    """The market of a study."""
    if kind in (NO_SIGNAL, DRIFTING):
        fair = synthetic_dataset("5m", n_bars, TICKERS, seed=seed)
        return fair if kind == NO_SIGNAL else drifting(fair, DRIFT if seed % 2 == 0 else -DRIFT)
    config = SIGNAL.config(n_bars, seed)
    names = [f"{ticker}:announced" for ticker in TICKERS]
    names += [f"time:noise_{i}" for i in range(SIGNAL.n_noise_features)]
    return make_dataset(
        price=config["price_array"],
        tech=config["tech_array"],
        time=FIRST_CLOSE_S + BAR_SECONDS * np.arange(n_bars),
        tickers=TICKERS,
        feature_names=names,
        bar_seconds=BAR_SECONDS,
        segments=[(0, n_bars)],
        source=f"announced market, seed {seed}",
        synthetic=True,
    )


def drifting(fair: Dataset, drift: float) -> Dataset:
    """The market with a common drift, `drift` standard deviations of equal weight's log return a bar; same features."""
    moves = np.diff(np.log(fair.price), axis=0).mean(axis=1)
    growth = np.exp(drift * moves.std() * np.arange(len(fair.price)))
    kept = {name: getattr(fair, name) for name in KEPT}
    return make_dataset(price=fair.price * growth[:, None], source=f"{fair.source}, drift {drift:+g}", **kept)


# ------------------------------------------------------------------------------------------------------------- a study
def study_once(kind: str, seed: int, settings: Settings) -> Study:
    """Run one study in a folder that is thrown away, and judge it."""
    started = time.perf_counter()
    _be_quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_dataset(make_market(kind, seed, settings.n_bars), folder / "5m")
        url = absolute_url("sqlite:///study.db", folder)
        plan = SplitPlan("standard", settings.num_paths, settings.k_test_groups, settings.holdout_fraction)
        run_study(
            StudyRequest(
                n_trials=settings.n_trials, study_name="calibration", storage=url, results_dir=folder / "results",
                data_dir=folder / "5m", plan=plan, agent=settings.agent, n_envs=settings.n_envs,
                break_step=settings.break_step,
                use_best_ranges=True, pruner=settings.pruner, seed=seed,
            )
        )  # fmt: skip
        stored = open_stored(url, "calibration", folder / "results")
        return judge(stored, kind, seed, time.perf_counter() - started)


def _be_quiet() -> None:
    """Fifty studies' logs say nothing here; errors are still shown."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("train").setLevel(logging.ERROR)


def judge(stored: StoredStudy, kind: str, seed: int, wall_s: float) -> Study:
    """The winner's figures, as 5_pbo.py and the hold-out give them."""
    n_finished = len(stored.study.get_trials(deepcopy=False, states=FINISHED))
    if best_trial(stored.study) is None:  # every trial kept still: nobody is called anything
        return Study(kind, seed, n_finished, 0, UNDEFINED, UNDEFINED, math.nan, math.nan, math.nan, math.nan, wall_s)
    returns = read_returns(stored.study, stored.folder)
    scored = stored.study.user_attrs.get(HOLDOUT_SCORE) or {}
    has_verdict = bool(scored) and not n_idle(scored)
    excess = scored.get("mean_excess_sharpe") if has_verdict else None
    error, lead = error_of(scored), lead_in_errors(scored)
    return Study(
        kind=kind,
        seed=seed,
        n_finished=n_finished,
        n_compared=len(returns.numbers),
        account=reading(returns, "account"),
        lead=reading(returns, "lead"),
        pbo_before_costs=_pbo(returns_before_costs(stored, returns.numbers)),
        equal_weight_probabilistic=probabilistic_sharpe(estimate_sharpe(returns.equal_weight)),
        holdout_excess_sharpe=math.nan if excess is None else excess,
        holdout_error=math.nan if error is None else error,
        wall_s=wall_s,
        holdout_lead_errors=math.nan if lead is None else lead,
    )


def reading(returns: StudyReturns, kind: Kind) -> Reading:
    """One kind of returns; all nan where a single trial is left, which compares with nothing."""
    if len(returns.numbers) < LEAST_COMPARED:
        return UNDEFINED
    found, matrix = assess(returns, kind, least_trials=LEAST_COMPARED).to_json(), returns.matrix(kind)
    ratios = np.array([float(sharpe(column, 1.0)) for column in matrix.T])
    best = estimate_sharpe(matrix[:, int(np.argmax(ratios))])
    return Reading(
        sharpe=found["annual_sharpe"],
        probabilistic=found["probabilistic_sharpe"],
        deflated=found["deflated_sharpe"],
        pbo=found["pbo"],
        luck_sharpe=found["annual_sharpe_of_luck"],
        effective_trials=found["effective_trials"],
        best_sharpe=best.sharpe * math.sqrt(returns.bars_per_year),
        best_probabilistic=probabilistic_sharpe(best),
        choice_p_value=found["choice_p_value"],
    )


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


def _pbo(matrix: np.ndarray) -> float:
    return pbo_cscv(matrix, N_BLOCKS).pbo if matrix.shape[1] > 1 else math.nan


# ------------------------------------------------------------------------------------------------------------- program
def run_all(args: argparse.Namespace, settings: Settings, kept: Path) -> list[Study]:
    """Every study, by kind and seed; says how far it is. Those in the file `kept` are not run again."""
    jobs = [
        (kind, args.first_seed + i)
        for kind, n in zip(KINDS, (args.no_signal, args.drifting, args.planted), strict=True)
        for i in range(n)
    ]
    studies = [study for study in kept_studies(kept, settings) if (study.kind, study.seed) in jobs]
    n_kept, started = len(studies), time.perf_counter()
    known = {(study.kind, study.seed) for study in studies}
    for study in _ended([job for job in jobs if job not in known], settings, args.processes):
        studies.append(study)
        keep_study(kept, settings, study)
        left_s = (time.perf_counter() - started) / (len(studies) - n_kept) * (len(jobs) - len(studies))
        figures = (
            f"deflated {study.account.deflated:.2f}, lead {study.lead.deflated:.2f}, PBO {study.account.pbo:.2f}, lead "
            f"{study.lead.pbo:.2f} (p {study.lead.choice_p_value:.2g}), hold-out {study.holdout_excess_sharpe:+.1f} +- "
            f"{study.holdout_error:.1f}, {study.n_compared} trials compared, {study.wall_s:.0f} s, "
            f"{'SKILL' if VERDICT.calls(study) else 'not evidence of skill'}"
        )
        print(
            f"{len(studies)} of {len(jobs)}: {study.kind}, seed {study.seed}: {figures}; about {left_s:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
    return sorted(studies, key=lambda study: (study.kind, study.seed))


def kept_studies(path: Path, settings: Settings) -> list[Study]:
    """Studies of an earlier run with the same settings; a line that a kill cut short is left out."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [study_of(row["study"]) for row in rows if row["settings"] == asdict(settings)]


def keep_study(path: Path, settings: Settings, study: Study) -> None:
    """Add one line to the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"settings": asdict(settings), "study": plain(asdict(study))}) + "\n")


def _ended(jobs: Sequence[tuple[str, int]], settings: Settings, n_processes: int) -> Iterator[Study]:
    """Studies in the order of their ends."""
    if n_processes == 1:
        yield from (study_once(kind, seed, settings) for kind, seed in jobs)
        return
    with ProcessPoolExecutor(n_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(study_once, kind, seed, settings) for kind, seed in jobs]
        yield from (future.result() for future in as_completed(futures))


def section(args: argparse.Namespace, settings: Settings, studies: Sequence[Study]) -> dict[str, Any]:
    """How it was made, and every figure of every study; `redrawn` adds what docs/results.md shows."""
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
    return measuring.section(
        args, about, COLUMNS, settings=asdict(settings), signal=asdict(SIGNAL), processes=args.processes,
        drift=DRIFT, seeds={kind: [s.seed for s in studies if s.kind == kind] for kind in KINDS},
        studies=[plain(asdict(study)) for study in studies],
    )  # fmt: skip


def redrawn(part: dict[str, Any]) -> tuple[dict[str, Any], list[Study]]:
    """A written section with table, notes and targets from its studies; and the studies that are judged."""
    studies = [study_of(row) for row in part["studies"]]
    judged = [study for study in studies if is_judged(study)]
    refused = [study for study in studies if not is_judged(study)]
    return part | {"rows": table_rows(judged), "notes": notes(judged, refused), "checks": checks(judged)}, judged


def study_of(row: dict[str, Any]) -> Study:
    """The study that `plain` wrote."""

    def number(value: Any) -> Any:
        return math.nan if value is None else value

    readings = {name: Reading(**{k: number(v) for k, v in row[name].items()}) for name in ("account", "lead")}
    return Study(**{name: number(value) for name, value in row.items()} | readings)


def plain(value: Any) -> Any:
    """The value with null for what is not finite."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def result_file(pruner: str, agent: str) -> Path:
    """Where the figures of studies with that pruner and agent are."""
    parts = ["calibration", *([] if pruner == "none" else [pruner]), *([] if agent == DEFAULT_AGENT else [agent])]
    return measuring.RESULTS / f"{'_'.join(parts)}.json"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = measuring.arguments(__doc__, gpu=False)
    parser.set_defaults(threads=1)
    parser.add_argument("--no-signal", type=int, default=26, metavar="N", help="studies without signal (default 26)")
    parser.add_argument("--drifting", type=int, default=12, metavar="N", help="of drifting markets (default 12)")
    parser.add_argument("--planted", type=int, default=8, metavar="N", help="studies with a signal (default 8)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="of each kind; the others follow")
    parser.add_argument("--pruner", choices=PRUNERS, default="none", help="of the studies (default none)")
    parser.add_argument("--agent", choices=OF_AGENT, default=DEFAULT_AGENT, help="(default %(default)s)")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="studies at once (default 2)")
    parser.add_argument("--redraw", action="store_true", help="run nothing: the studies are those of the result file")
    args = parser.parse_args(argv)
    if args.quick:
        args.no_signal, args.drifting, args.planted, args.processes = 1, 1, 1, 1
    for name in ("no_signal", "drifting", "planted", "processes"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1; received {getattr(args, name)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run, count, draw, write."""
    args = parse_arguments(argv)
    measuring.with_threads(args)
    sizes = OF_AGENT[args.agent] | (WITH_PRUNER if args.pruner != "none" else {}) | (QUICK if args.quick else {})
    settings = replace(Settings(agent=args.agent, pruner=args.pruner), **sizes)
    path = args.out or result_file(args.pruner, args.agent)
    if args.redraw:
        content = json.loads(path.read_text())
    else:
        with tempfile.TemporaryDirectory() as scratch:
            is_kept = args.out is not None or not args.quick
            kept = path.with_suffix(".studies") if is_kept else Path(scratch) / "studies"
            part = section(args, settings, run_all(args, settings, kept))
        content = {"machine": measuring.machine(-1), "calibration": part}
    content["calibration"], judged = redrawn(content["calibration"])
    print("\n".join(measuring.section_lines(content["calibration"])))
    if args.quick and args.out is None:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    draw(judged, path.with_suffix(".png"))
    print(f"\nwrote {path} and {path.with_suffix('.png')}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
