"""Search for the settings of a trading agent: an Optuna study of its trials on purged splits of a data set."""

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
The same command continues a study: trials that finished stay, a killed one is tried again, and --n-trials counts all of
them. A study keeps its agent and its ranges. A study of the same name with another --agent, other data, --holdout,
splits, search space, --seed, --n-envs, --volume-30d, --max-drawdown, --min-trades or other rules is refused. Relative
paths are taken from the current directory; the defaults lie in the repository. Results, one folder per trial and split:
<results-dir>/<study-name>/.

Exit codes: 0 the study has a best trial; 1 it has none, or trials failed again and again; 2 a bad flag; 5 it has none
because its policies stayed in cash: no tradable signal found at these costs; 130 or 143 when stopped by Ctrl-C or
kill."""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--n-trials", type=int, default=50, metavar="N", help="finished trials the study is to have (default: 50)"
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
        help="debug shows tracebacks (default: info)",
    )
    return p


def add_learner(p: argparse.ArgumentParser) -> None:
    """The learner, and how much it learns."""
    p.add_argument(
        "--agent",
        choices=AGENTS,
        help="the learner, which decides the search space. band: a band of weights per coin, trained by "
        "exact gradients through the account. ppo: orders, trained by PPO (default: the study's own agent; "
        f"for a new study {DEFAULT_AGENT})",
    )
    p.add_argument(
        "--break-step",
        type=int,
        metavar="STEPS",
        help="environment steps per split, in place of the searched budget; rounded up to whole rollouts",
    )
    p.add_argument("--episode-bars", type=int, metavar="BARS", help="longest training window, not sampled")
    p.add_argument("--use-best-ranges", action="store_true", help="search the narrow ranges around known good values")
    p.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the sampler and of every split's training (default: 0)"
    )


def add_machine(p: argparse.ArgumentParser) -> None:
    """Where trials run, and how many at a time."""
    p.add_argument(
        "--gpu",
        type=gpu_numbers,
        default=(-1,),
        metavar="N[,N...]",
        help="number of the GPU; -1 = CPU (default: -1); several are given to the workers in turn",
    )
    p.add_argument(
        "--no-rocm-settings",
        action="store_false",
        dest="rocm_settings",
        help="on an AMD GPU, leave MIOpen's variables, torch's BLAS library and copies to the GPU as they "
        "are; by default they are set where your environment does not say (docs/scaling.md)",
    )
    p.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that run trials of the study side by side, one CPU thread each (default: 1); more on "
        "other machines: the same command with --storage postgresql://...",
    )
    p.add_argument(
        "--n-envs",
        type=number_or_auto,
        default=1,
        metavar="N",
        help="environments stepped together (default: 1); with 1 PPO uses the scalar class. auto: the "
        "study's own number; for a new study 12 for a band, and for PPO as many as memory, device and the "
        "smallest rollout allow, logged with the reason. A study keeps the number it began with",
    )


def add_places(p: argparse.ArgumentParser) -> None:
    """Data, database and results."""
    p.add_argument("--timeframe", choices=TIMEFRAMES, help="of the bars (default: 5m, or that of --data-dir)")
    p.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="a data set, or a folder of data sets named by timeframe (default: data/<timeframe>)",
    )
    p.add_argument("--tickers", nargs="+", metavar="TICKER", help="coins of the data set to trade (default: all)")
    p.add_argument("--study-name", "--study", metavar="NAME", help="(default: cappuccino_<timeframe>)")
    add_storage(p)
    p.add_argument("--results-dir", type=Path, metavar="DIR", help="(default: train_results)")
    add_artifacts(
        p,
        "also keep every split's files here, so that machines without a common --results-dir share them: a folder or "
        "s3://BUCKET/PREFIX (default: the study's own; a new study has none)",
    )
    p.add_argument("--resume", action="store_true", help="the study must exist; an error otherwise")


def add_judgement(p: argparse.ArgumentParser) -> None:
    """What a trial must keep, and when it is stopped."""
    p.add_argument(
        "--pruner",
        choices=PRUNERS,
        default="wilcoxon",
        help="wilcoxon: stop a trial whose splits are worse, pair by pair, than the best trial's (default: wilcoxon)",
    )
    p.add_argument(
        "--volume-30d",
        type=float,
        metavar="USD",
        help="30-day volume the account is assumed to have, all study long; by the data set's fee table it "
        "decides the taker fee that every order pays (default: 0, the highest fee)",
    )
    p.add_argument(
        "--max-drawdown",
        type=float,
        default=MAX_DRAWDOWN,
        metavar="FRACTION",
        help="a trial that loses more than this fraction of its highest equity on any split is never best "
        f"(default: {MAX_DRAWDOWN}; 1 allows everything)",
    )
    p.add_argument(
        "--min-trades",
        type=int,
        default=MIN_TRADES,
        metavar="N",
        help=f"nor one that trades less often than this on any split (default: {MIN_TRADES})",
    )
    p.add_argument("--timeout", type=float, metavar="SECONDS", help="begin no trial after this; the running one ends")


def add_splits(p: argparse.ArgumentParser) -> None:
    """The flags that divide the bars."""
    p.add_argument(
        "--mode",
        choices=MODES,
        default="standard",
        help="standard: combinatorial purged splits; rolling: walk forward, training on the two blocks "
        "before the test block; expanding: on all blocks before it; kfold: purged k-fold, on all other "
        "blocks; multi-timeframe: standard, and trials choose among the data sets <timeframe> beside "
        "--data-dir, cut to the period all cover (default: standard)",
    )
    p.add_argument(
        "--num-paths",
        type=int,
        default=3,
        metavar="N",
        help="standard: with k = 2 the full test paths, of num_paths + 1 groups; rolling, expanding and "
        "kfold: test blocks (default: 3)",
    )
    p.add_argument(
        "--k-test-groups",
        type=int,
        metavar="N",
        help="groups tested together (default: 2); standard and multi-timeframe mode only",
    )
    p.add_argument("--holdout", type=float, default=HOLDOUT_FRACTION, metavar="FRACTION",
                   help="last part of the data, cut off before the study begins: no trial sees it, and the winner is "
                   f"scored on it once, when the study first reaches --n-trials (default: {HOLDOUT_FRACTION}); 0 holds "
                   "nothing out, so that nothing is left to check the winner on")  # fmt: skip


def number_or_auto(text: str) -> int | None:
    """A whole number, or None for "auto"."""
    return None if text == "auto" else int(text)


def gpu_numbers(text: str) -> tuple[int, ...]:
    """`0` or `0,1,2`."""
    return tuple(int(number) for number in text.split(","))


def request(args: argparse.Namespace) -> StudyRequest:
    """The flags as a checked request; raises StudyError."""
    from train.runner.request import StudyRequest
    from train.study.objective import Bounds

    if args.mode not in COMBINATORIAL_MODES and args.k_test_groups is not None:
        raise StudyError(f"--k-test-groups has no meaning with --mode {args.mode}, where a test block is one group")
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
    """Run the study; its exit code."""
    from train.finish import run_study
    from train.runner.crew import set_up_logging

    set_up_logging(args.log_level.upper())
    return run_study(request(args))


def main(argv: list[str] | None = None) -> int:
    """Parse, run, report."""
    args = parser().parse_args(argv)
    return exit_code(
        "1_optimize_unified.py", lambda: run(args), "the same command resumes the study once that is fixed"
    )
