"""Estimate backtest overfitting: the PBO and deflated Sharpe ratio of a winner's alpha returns and account returns."""

from __future__ import annotations

import argparse
from typing import Literal

from barwise.arguments import add_study, exit_code, plain_logging, stored_study, whole_number
from train.records.defaults import LEAST_TRIALS, N_BLOCKS
from train.records.errors import StudyError

KINDS: dict[Literal["lead", "account"], str] = {
    "lead": "alpha returns (account returns minus beta times the returns of equal weight)",
    "account": "account returns",
}
TRIAL_COLUMNS = {"trial": "d", "state": "", "value": "+.3f", "sharpe": ".2f", "lead_sharpe": "+.2f", "bars": "d"}
FIGURES = {
    "annual_sharpe": ".2f", "annual_sharpe_of_luck": ".2f", "probabilistic_sharpe": ".2%", "deflated_sharpe": ".2%",
    "n_trials": "g", "effective_trials": ".1f", "annual_sharpe_variance": ".3f", "minimum_track_record_bars": ",.0f",
    "minimum_track_record_years": ".2f", "n_returns": ",d", "choice_p_value": ".2g", "pbo": ".2%",
    "probability_of_loss": ".2%", "degradation_slope": "+.2f", "combinations": ",d",
}  # fmt: skip
EPILOG = """
The program compares the returns of all completed trials on their common test bars, read from each split's equity.npz.
The Sharpe ratio is deflated by the number of all finished trials, including pruned ones. Pruned trials are not part of
the return matrix, and most of them performed poorly. Alpha returns ("lead" in the files) are account returns minus beta
times the returns of equal weight, with beta from least squares; lead_sharpe is their Sharpe ratio. Only alpha returns
are tested for skill, because an account can also earn by holding the market.
Files written to <results>/<study>/: pbo.json, pbo_trials.csv, pbo_lead.npz and pbo_account.npz.

Exit codes: 0 success; 1 the machine failed; 2 wrong flag or study, or too few trials."""


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_study(p)
    p.add_argument(
        "--blocks",
        type=whole_number(2),
        default=N_BLOCKS,
        metavar="S",
        help=f"number of blocks into which the bars are divided; even, at most 20 (default: {N_BLOCKS})",
    )
    p.add_argument(
        "--least-trials",
        type=whole_number(2),
        default=LEAST_TRIALS,
        metavar="N",
        help=f"minimum number of completed trials (default: {LEAST_TRIALS})",
    )
    return p  # fmt: skip


def judge(args: argparse.Namespace) -> None:
    """Compute the statistics, and print and write them."""
    from train.findings.overfit import assess, require_trials, write_matrix
    from train.findings.returns import read_returns
    from train.findings.text_tables import text_table, write_csv
    from train.records.attributes import holdout_score_in
    from train.records.record_files import with_null, write_json
    from train.study.holdout_figures import is_passed

    if args.blocks % 2:
        raise StudyError(f"--blocks must be even; received {args.blocks}")
    stored = stored_study(args)
    returns = read_returns(stored.study, stored.folder)
    require_trials(returns, args.least_trials)
    known = {"data": stored.study.user_attrs.get("data"), "blocks": args.blocks, "least_trials": args.least_trials}
    digest = stored.identity.data_sha256[returns.timeframe]
    content = stored.about(returns.numbers[returns.winner], digest) | known
    content["trials"], table = returns.count_text(), []
    passed = is_passed(holdout_score_in(stored.study.user_attrs), returns.numbers[returns.winner])
    for kind in KINDS:
        found = assess(returns, kind, args.blocks, args.least_trials, passed)
        if found.overfitting is None:
            raise StudyError(f"the probability of backtest overfitting is undefined: {found.undefined}")
        write_matrix(stored.folder / f"pbo_{kind}.npz", returns, found)
        content[kind] = found.to_json()
    write_csv(stored.folder / "pbo_trials.csv", returns.rows)
    print(f"study {stored.study.study_name}: {content['trials']}")
    print(f"winner: trial {returns.numbers[returns.winner]}\n\n{text_table(returns.rows, TRIAL_COLUMNS)}\n")
    for name, spec in FIGURES.items():
        table.append({"figure": name, **{kind: format(content[kind][name], spec) for kind in KINDS}})
    print(text_table(table, {"figure": "", **dict.fromkeys(KINDS, "")}))
    for kind, words in KINDS.items():
        print(f"\n{words.capitalize()}: {content[kind]['verdict']}")
    write_json(stored.folder / "pbo.json", with_null(content))
    print(f"\nwrote {stored.folder / 'pbo.json'}, pbo_trials.csv, pbo_account.npz, pbo_lead.npz")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    plain_logging("train")
    return exit_code("5_pbo.py", lambda: judge(args))
