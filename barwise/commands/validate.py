"""Reevaluate a trial's policies on their test folds, per split and per full path, and compare them with benchmarks.

Benchmarks on the same bars with the same fees: equal weight, holding each single coin, cash, and accounts that trade
the agent's turnover with random orders. The trial was selected on these test folds, so its results are biased upward.
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
Random accounts trade the same value as the agent at the same bars, in randomly chosen coins. Their exposure is not
matched, and their positions may be less concentrated than the agent's. The results are not corrected for the selection
of the trial.

Columns: beats_random and returns_more are the fractions of random accounts with a lower Sharpe ratio and with a lower
total return than the agent. not_traded is the fraction of the agent's turnover that random accounts lacked the cash or
coins to trade. of_hindsight is the agent's log growth as a fraction of the hindsight optimum. break_even_cost is the
cost per side (0.0030 is 30 bp) at which the agent's orders would have earned as much as equal weight.

The results are written to <results>/<study>/trial_<n>/: validation.json, and validation.csv with all values of all
accounts. The hold-out is not evaluated.

Exit codes: 0 success; 1 the machine failed; 2 wrong flag, study, trial or dataset."""


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_trial(p)
    p.add_argument(
        "--random-draws",
        type=whole_number(0),
        default=RANDOM_DRAWS,
        metavar="K",
        help="number of random-order accounts per split; 0 disables them (default: 100)",
    )
    p.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="seed for the random orders (default: 0)"
    )
    return p  # fmt: skip


def validate(args: argparse.Namespace) -> None:
    """Evaluate the policies, and print and write the results."""
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
    for scope, title in (("split", "Test folds of each split"), ("path", "Full paths through all test bars")):
        print(f"\n{title}\n{text_table([row for row in rows if row['scope'] == scope], COLUMNS)}")
    summaries = {scope: summary_rows(rows, scope) for scope in ("split", "path")}
    formats = {"account": "", "figure": "", "mean": ".4f", "std": ".4f", "worst": ".4f"}
    print(f"\nSummary over the splits (population std)\n{text_table(summaries['split'], formats)}")
    content = trial.about | {"recorded": recorded, "random_draws": args.random_draws, "random_seed": args.seed,
                             "stepped_by": step_of(chain.from_iterable(by_fold)), "rows": rows,
                             "summary": summaries}  # fmt: skip
    write_json(trial.folder / "validation.json", with_null(content))
    write_csv(trial.folder / "validation.csv", rows)
    print(f"\nwrote {trial.folder / 'validation.json'}, validation.csv")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    plain_logging("train")
    return exit_code("2_validate.py", lambda: validate(args))
