"""Optimize the hyperparameters of a trading agent in an Optuna study on purged splits of a dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.runner.request import StudyRequest


from barwise.arguments import add_artifacts, add_storage, artifacts_of, exit_code, here, storage_of
from train.records.defaults import AGENTS, DEFAULT_AGENT, MAX_DRAWDOWN, MIN_TRADES, PRUNERS
from train.records.errors import StudyError
from train.records.provenance import home
from train.study.split_plan import COMBINATORIAL_MODES, HOLDOUT_FRACTION, MODES, TIMEFRAMES, SplitPlan

EPILOG = """
The same command resumes a study. Finished trials are kept, interrupted trials are retried, and --n-trials counts all
trials of the study. A study keeps its agent and its search ranges. To change the agent, data, hold-out, splits, search
space, rules, --seed, --n-envs, --volume-30d, --max-drawdown or --min-trades, use a new --study-name. Relative paths are
resolved from the current directory; default paths are in the repository. Results are written to
<results-dir>/<study-name>/, with one folder per trial and split.

Exit codes: 0 the study has a best trial; 1 no best trial, or trials failed repeatedly; 2 wrong flag; 5 no best trial
because the policies stayed in cash (no tradable signal found at these costs); 130 or 143 stopped by Ctrl-C or kill."""


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--n-trials",
        type=int,
        default=50,
        metavar="N",
        help="total number of finished trials in the study (default: 50)",
    )
    add_learner(p)
    add_machine(p)
    add_places(p)
    add_splits(p)
    add_judgement(p)
    p.add_argument(
        "--log-level",
        choices=("debug", "info", "warning"),
        default="info",
        help="minimum level of log messages; debug includes tracebacks (default: info)",
    )
    return p


def add_learner(p: argparse.ArgumentParser) -> None:
    """Add the flags of the agent and its training."""
    p.add_argument(
        "--agent",
        choices=AGENTS,
        help="learning algorithm, which determines the search space. band: outputs a band of weights for each coin and "
        "is trained with exact gradients through the account. ppo: outputs orders and is trained with PPO (default: "
        f"the agent of the existing study; {DEFAULT_AGENT} for a new study)",
    )
    p.add_argument(
        "--break-step",
        type=int,
        metavar="STEPS",
        help="environment steps per split, rounded up to whole rollouts (default: part of the search space)",
    )
    p.add_argument(
        "--episode-bars",
        type=int,
        metavar="BARS",
        help="maximum length of a training episode in bars (default: part of the search space)",
    )
    p.add_argument(
        "--use-best-ranges", action="store_true", help="search narrower ranges around values known to work well"
    )
    p.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed for the sampler and all training runs (default: 0)"
    )


def add_machine(p: argparse.ArgumentParser) -> None:
    """Add the flags of devices and parallelism."""
    p.add_argument(
        "--gpu",
        type=gpu_numbers,
        default=(-1,),
        metavar="N[,N...]",
        help="GPU number, or -1 for the CPU; several GPUs are assigned to the workers in turn (default: -1)",
    )
    p.add_argument(
        "--no-rocm-settings",
        action="store_false",
        dest="rocm_settings",
        help="on an AMD GPU, keep the current settings of MIOpen, torch's BLAS library and host-to-GPU copies. By "
        "default, the trainer changes every setting that your environment leaves unset (docs/scaling.md)",
    )
    p.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="worker processes that run trials in parallel, with one CPU thread each (default: 1). To add workers on "
        "other machines, run the same command there with --storage postgresql://...",
    )
    p.add_argument(
        "--n-envs",
        type=number_or_auto,
        default=1,
        metavar="N",
        help="number of environments stepped together (default: 1). With 1, PPO uses the single-account "
        "environment class. auto: the number of the existing study; for a new study, 12 with band, and with ppo as "
        "many as the memory, the device and the smallest rollout allow. The number is fixed for each study",
    )


def add_places(p: argparse.ArgumentParser) -> None:
    """Add the flags of the dataset, the database and the results."""
    p.add_argument("--timeframe", choices=TIMEFRAMES, help="bar length (default: that of --data-dir, or 5m)")
    p.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="dataset folder, or a folder of datasets named by timeframe (default: data/<timeframe>)",
    )
    p.add_argument("--tickers", nargs="+", metavar="TICKER", help="coins of the dataset to trade (default: all)")
    p.add_argument(
        "--study-name", "--study", metavar="NAME", help="name of the study (default: cappuccino_<timeframe>)"
    )
    add_storage(p)
    p.add_argument(
        "--results-dir",
        type=Path,
        metavar="DIR",
        help="folder that contains the results of all studies (default: train_results)",
    )
    add_artifacts(
        p,
        "artifact store that shares the study's files between machines without a common --results-dir: a folder or "
        "s3://BUCKET/PREFIX (default: the study's own store; none for a new study)",
    )
    p.add_argument("--resume", action="store_true", help="resume an existing study; fail if it does not exist")


def add_judgement(p: argparse.ArgumentParser) -> None:
    """Add the flags of pruning, eligibility and the time limit."""
    p.add_argument(
        "--pruner",
        choices=PRUNERS,
        default="wilcoxon",
        help="pruning rule; wilcoxon stops a trial that is significantly worse than the best trial on the same splits "
        "(default: wilcoxon)",
    )
    p.add_argument(
        "--volume-30d",
        type=float,
        metavar="USD",
        help="assumed 30-day trading volume of the account, constant during the study; it selects the taker fee from "
        "the dataset's fee table (default: 0, the highest fee)",
    )
    p.add_argument(
        "--max-drawdown",
        type=float,
        default=MAX_DRAWDOWN,
        metavar="FRACTION",
        help="maximum drawdown on any split for a trial to be eligible, as a fraction; 1 disables the limit "
        f"(default: {MAX_DRAWDOWN})",
    )
    p.add_argument(
        "--min-trades",
        type=int,
        default=MIN_TRADES,
        metavar="N",
        help=f"minimum number of trades on every split for a trial to be eligible (default: {MIN_TRADES})",
    )
    p.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="time after which no new trial starts; running trials finish (default: no limit)",
    )


def add_splits(p: argparse.ArgumentParser) -> None:
    """Add the flags that define the splits."""
    p.add_argument(
        "--mode",
        choices=MODES,
        default="standard",
        help="type of splits. standard: combinatorial purged splits. rolling: walk-forward splits that train on the "
        "two folds before the test fold. expanding: walk-forward splits that train on all folds before the test fold. "
        "kfold: purged k-fold splits that train on all other folds. multi-timeframe: standard splits, with the "
        "timeframe as a hyperparameter; the datasets are the <timeframe> folders next to --data-dir, limited to their "
        "common period (default: standard)",
    )
    p.add_argument(
        "--num-paths",
        type=int,
        default=3,
        metavar="N",
        help="standard: number of full test paths if k = 2; the bars are divided into num_paths + 1 groups. rolling, "
        "expanding and kfold: number of test folds (default: 3)",
    )
    p.add_argument(
        "--k-test-groups",
        type=int,
        metavar="N",
        help="number of groups per test set, k; standard and multi-timeframe modes only (default: 2)",
    )
    p.add_argument("--holdout", type=float, default=HOLDOUT_FRACTION, metavar="FRACTION",
                   help="fraction of the data reserved at the end as the hold-out. No trial sees it; the winner is "
                   "evaluated on it once, when the study first reaches --n-trials. 0 disables the hold-out and its "
                   f"evaluation (default: {HOLDOUT_FRACTION})")  # fmt: skip


def number_or_auto(text: str) -> int | None:
    """Parse an integer, or return None for "auto"."""
    return None if text == "auto" else int(text)


def gpu_numbers(text: str) -> tuple[int, ...]:
    """Parse a list of GPU numbers such as `0` or `0,1,2`."""
    return tuple(int(number) for number in text.split(","))


def request(args: argparse.Namespace) -> StudyRequest:
    """Return the flags as a checked request.

    Raises:
        StudyError: if a flag is invalid.
    """
    from train.runner.request import StudyRequest
    from train.study.objective import Bounds

    if args.mode not in COMBINATORIAL_MODES and args.k_test_groups is not None:
        raise StudyError(f"--k-test-groups does not apply to --mode {args.mode}, where each test fold is one group")
    return StudyRequest(
        n_trials=args.n_trials,
        study_name=args.study_name,
        storage=storage_of(args),
        results_dir=here(args.results_dir) or home() / "train_results",
        data_dir=here(args.data_dir) or home() / "data" / (args.timeframe or "5m"),
        agent=args.agent,
        plan=SplitPlan(
            args.mode, args.num_paths, args.k_test_groups if args.k_test_groups is not None else 2, args.holdout
        ),
        timeframe=args.timeframe,
        tickers=tuple(args.tickers) if args.tickers else None,
        gpu_id=args.gpu[0],
        gpu_ids=args.gpu if len(args.gpu) > 1 else (),
        workers=args.workers,
        n_envs=args.n_envs,
        break_step=args.break_step,
        episode_bars=args.episode_bars,
        use_best_ranges=args.use_best_ranges,
        pruner=args.pruner,
        seed=args.seed,
        volume_30d=args.volume_30d,
        bounds=Bounds(args.max_drawdown, args.min_trades),
        timeout_s=args.timeout,
        resume=args.resume,
        rocm_settings=args.rocm_settings,
        artifacts=artifacts_of(args),
    )


def run(args: argparse.Namespace) -> int:
    """Run the study and return its exit code."""
    from train.finish import run_study
    from train.runner.crew import set_up_logging

    set_up_logging(args.log_level.upper())
    return run_study(request(args))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    return exit_code(
        "1_optimize_unified.py", lambda: run(args), "once this is fixed, the same command resumes the study"
    )
