"""Evaluate a trial's policies again on their test blocks, by split and by full path, beside simple benchmarks.

Benchmarks on the same bars, with the same fees: equal weight, each coin bought and held, cash, and accounts that trade
the agent's turnover in random orders. Test blocks chose the trial, so its figures here are biased upwards.
"""

from __future__ import annotations

import argparse
from itertools import chain

from barwise.arguments import add_trial, exit_code, plain_logging, stored_trial, whole_number
from train.records.defaults import RANDOM_DRAWS

COLUMNS = {
    "index": "d", "account": "", "sharpe": ".2f", "excess_sharpe": "+.2f", "total_return": "+.2%",
    "max_drawdown": ".2%", "turnover": ".1f", "fees": ".2%", "trades": ".0f", "exposure": ".0%",
    "of_hindsight": ".2%", "break_even_cost": ".4f", "beats_random": ".0%", "returns_more": ".0%", "not_traded": ".1%",
}  # fmt: skip
EPILOG = """
Random orders trade what the agent trades, when it does; their exposure is not matched, and they spread over all coins,
so they are less concentrated than an agent may be. The trial is the best of a search, and no share is corrected for
that. beats_random and returns_more are the shares of them with a lower Sharpe ratio and a lower total return;
not_traded is the share of the agent's turnover that they had no money or coins for. of_hindsight is the agent's share
of the log growth of a trader who knew every later price and paid the same costs; break_even_cost is the cost of one
side (0.0030 is 30 bp) at which its orders would have earned what equal weight did. Writes validation.json and
validation.csv (all figures of all accounts) into <results>/<study>/trial_<n>/. The held-out bars are not looked at.
Exit code: 0, 1 when the machine failed, 2 for a bad flag, study, trial or other data."""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_trial(p)
    p.add_argument(
        "--random-draws",
        type=whole_number(0),
        default=RANDOM_DRAWS,
        metavar="K",
        help="accounts with random orders for each split; 0 for none (default: 100)",
    )
    p.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of the random orders (default: 0)")
    return p  # fmt: skip


def validate(args: argparse.Namespace) -> None:
    """Evaluate, print, write."""
    from train.evaluator import step_of
    from train.findings.backtest import recorded_text, summary_rows, validation_rows
    from train.findings.stored_trial import evaluate_trial
    from train.findings.text_tables import text_table, write_csv
    from train.records.record_files import with_null, write_json

    trial = stored_trial(args)
    by_fold = evaluate_trial(trial, gpu_id=args.gpu)
    recorded = recorded_text(trial, by_fold)
    rows = validation_rows(trial, by_fold, args.random_draws, args.seed)
    print(f"study {trial.settings.study}, trial {trial.number}: {trial.data.dataset.label}")
    print(recorded)
    for scope, title in (("split", "Test blocks of each split"), ("path", "Full paths through all test bars")):
        print(f"\n{title}\n{text_table([row for row in rows if row['scope'] == scope], COLUMNS)}")
    summaries = {scope: summary_rows(rows, scope) for scope in ("split", "path")}
    formats = {"account": "", "figure": "", "mean": ".4f", "std": ".4f", "worst": ".4f"}
    print(f"\nOver the splits (std of the population)\n{text_table(summaries['split'], formats)}")
    content = trial.about | {"recorded": recorded, "random_draws": args.random_draws, "random_seed": args.seed,
                             "stepped_by": step_of(chain.from_iterable(by_fold)), "rows": rows,
                             "summary": summaries}  # fmt: skip
    write_json(trial.folder / "validation.json", with_null(content))
    write_csv(trial.folder / "validation.csv", rows)
    print(f"\nwritten: {trial.folder / 'validation.json'}, validation.csv")


def main(argv: list[str] | None = None) -> int:
    """Parse, run, report."""
    args = parser().parse_args(argv)
    plain_logging("train")
    return exit_code("2_validate.py", lambda: validate(args))
