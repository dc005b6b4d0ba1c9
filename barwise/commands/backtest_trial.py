"""Backtest a trial over full paths, at several cost levels and with additional training seeds."""

from __future__ import annotations

import argparse
from itertools import chain
from typing import TYPE_CHECKING

from barwise.arguments import add_trial, exit_code, factor, plain_logging, stored_trial, whole_number
from train.records.defaults import COST_FACTORS

if TYPE_CHECKING:
    from train.findings.stored_trial import StoredTrial


PATH_COLUMNS = {
    "path": "d", "sharpe": ".2f", "equal_weight_sharpe": ".2f", "excess_sharpe": "+.2f", "total_return": "+.2%",
    "equal_weight_return": "+.2%", "max_drawdown": ".2%", "turnover": ".1f", "fees": ".2%", "trades": "d",
}  # fmt: skip
COST_COLUMNS = {
    "costs_x": "g", "fee_rate": ".3%", "slippage_rate": ".3%", "sharpe": ".2f", "sharpe_worst": ".2f",
    "equal_weight_sharpe": ".2f", "excess_sharpe": "+.2f", "total_return": "+.2%", "total_return_worst": "+.2%",
    "max_drawdown_worst": ".2%", "turnover": ".1f", "fees": ".2%",
}  # fmt: skip
SEED_COLUMNS = {
    "seed": "d", "splits": "d", "failed": "d", "hardly_traded": "d", "objective": "+.3f", "excess_sharpe": "+.2f",
    "sharpe": ".2f", "total_return": "+.2%", "max_drawdown": ".2%", "turnover": ".1f", "fees": ".2%",
    "exposure": ".1%",
}  # fmt: skip
SPREAD_COLUMNS = {"figure": "", "trial": ".4f", "mean": ".4f", "std": ".4f", "worst": ".4f"}
HELD_EASIER = "(equal weight pays the scaled fee and no slippage, at the start of each test fold and after each gap)"
EPILOG = """
Each test fold of a path starts with fresh capital, and the returns are joined.
Costs: the same policies are evaluated with fees and slippage multiplied by each factor. The table shows the mean and
the worst of all paths.
Seeds: the trial's settings are retrained on every split with its step budget. Completed training runs are kept in
trial_<n>/seed_<i>/, and the same command resumes an interrupted run.
The results are written to <results>/<study>/trial_<n>/: backtest.json, paths.npz, costs.csv and seeds.csv.

Exit codes: 0 success; 1 the machine or a training run failed; 2 wrong flag, study, trial or dataset."""


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_trial(p)
    p.add_argument(
        "--costs",
        type=factor,
        nargs="+",
        default=list(COST_FACTORS),
        metavar="X",
        help="factors by which fees and slippage are multiplied; 1 is always included (default: 0 1 2 4)",
    )
    p.add_argument(
        "--seeds",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="number of additional seeds with which the trial's settings are trained again on every split (default: 0)",
    )
    return p  # fmt: skip


def backtest(args: argparse.Namespace) -> int:
    """Run the backtest, print and write its results, and return the number of splits whose training failed."""
    from train.evaluator import step_of
    from train.findings.backtest import cost_rows, path_rows, write_paths
    from train.findings.text_tables import text_table, write_csv
    from train.records.record_files import with_null, write_json

    trial = stored_trial(args)
    costs, found = cost_rows(trial, sorted({*args.costs, 1.0}), args.gpu)
    paths = path_rows(trial, found[1.0])
    print(f"study {trial.settings.study}, trial {trial.number}: {trial.data.dataset.label}")
    print(f"\nFull paths\n{text_table(paths, PATH_COLUMNS)}")
    print(f"\nCosts (means over {len(paths)} paths)\n{text_table(costs, COST_COLUMNS)}\n{HELD_EASIER}")
    write_paths(trial.folder / "paths.npz", trial, found[1.0])
    write_csv(trial.folder / "costs.csv", costs)
    stepped_by = step_of(chain.from_iterable(found[1.0]))
    content = trial.about | {"stepped_by": stepped_by, "paths": paths, "costs": costs}
    write_json(trial.folder / "backtest.json", with_null(content))
    failed = 0
    (trial.folder / "seeds.csv").unlink(missing_ok=True)  # left by an earlier run
    if args.seeds:
        seeds, content["seeds"] = train_seeds(trial, args)
        failed = sum("failed" in row for row in seeds)
        write_json(trial.folder / "backtest.json", with_null(content))
        write_csv(trial.folder / "seeds.csv", seeds)
    print(f"\nwrote {trial.folder / 'backtest.json'}, paths.npz, costs.csv{', seeds.csv' * bool(args.seeds)}")
    return failed


def train_seeds(trial: StoredTrial, args: argparse.Namespace) -> tuple[list[dict], dict]:
    """Retrain with additional seeds. Return the results by seed and split, and their summary."""
    from train.findings.reseed import own_rows, retrain, seed_rows, seeds_text, spread_rows
    from train.findings.text_tables import text_table

    rows = own_rows(trial) + retrain(trial, trial.stored.seed, args.seeds, args.gpu)
    by_seed = seed_rows(rows)
    spreads = spread_rows(by_seed)
    print(f"\nSeeds (seed 0 is the selected trial; means over the splits)\n{text_table(by_seed, SEED_COLUMNS)}")
    spread = text_table(spreads, SPREAD_COLUMNS) if spreads else ""
    print(f"\nSpread across the new seeds (population std): {seeds_text(by_seed)}\n{spread}")
    return rows, {"splits": rows, "seeds": by_seed, "spread": spreads}


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    plain_logging("train")
    return exit_code("4_backtest.py", lambda: int(backtest(args) > 0))
