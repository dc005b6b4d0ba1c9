"""Is a study's winner skilled, lucky, or just exposed? PBO and deflated Sharpe of its lead, and of its account."""

from __future__ import annotations

import argparse
from typing import Literal

from barwise.arguments import add_study, exit_code, plain_logging, stored_study, whole_number
from train.records.defaults import LEAST_TRIALS, N_BLOCKS
from train.records.errors import StudyError

KINDS: dict[Literal["lead", "account"], str] = {
    "lead": "returns less beta times equal weight's",
    "account": "the accounts' returns",
}
TRIAL_COLUMNS = {"trial": "d", "state": "", "value": "+.3f", "sharpe": ".2f", "lead_sharpe": "+.2f", "bars": "d"}
FIGURES = {
    "annual_sharpe": ".2f", "annual_sharpe_of_luck": ".2f", "probabilistic_sharpe": ".2%", "deflated_sharpe": ".2%",
    "n_trials": "g", "effective_trials": ".1f", "annual_sharpe_variance": ".3f", "minimum_track_record_bars": ",.0f",
    "minimum_track_record_years": ".2f", "n_returns": ",d", "choice_p_value": ".2g", "pbo": ".2%",
    "probability_of_loss": ".2%", "degradation_slope": "+.2f", "combinations": ",d",
}  # fmt: skip
EPILOG = """
Compared are the completed trials' returns on common test bars, kept in every split's equity.npz; the Sharpe ratio is
deflated by all finished trials, pruned ones included. Pruned trials have no column in the matrix, and they tend to be
the bad ones. The lead is what is left of returns after the exposure to the market: less beta times equal weight's, beta
by least squares; lead_sharpe is its Sharpe ratio. Skill is asked of the lead only: an account may just hold.
Writes pbo.json, pbo_trials.csv, pbo_lead.npz and pbo_account.npz into <results>/<study>/. Exit code: 0, 1 when the
machine failed, 2 for a bad flag or study, or too few trials."""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_study(p)
    p.add_argument(
        "--blocks",
        type=whole_number(2),
        default=N_BLOCKS,
        metavar="S",
        help=f"runs of bars that are combined, an even number up to 20 (default: {N_BLOCKS})",
    )
    p.add_argument(
        "--least-trials",
        type=whole_number(2),
        default=LEAST_TRIALS,
        metavar="N",
        help=f"completed trials without which nothing is computed (default: {LEAST_TRIALS})",
    )
    return p  # fmt: skip


def judge(args: argparse.Namespace) -> None:
    """Read, compute, print, write."""
    from train.findings.overfit import assess, require_trials, write_matrix
    from train.findings.returns import read_returns
    from train.findings.text_tables import text_table, write_csv
    from train.records.attributes import holdout_score_in
    from train.records.record_files import with_null, write_json
    from train.study.holdout_figures import is_passed

    if args.blocks % 2:
        raise StudyError(f"--blocks is an even number; received {args.blocks}")
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
            raise StudyError(f"the probability of overfitting is not defined: {found.undefined}")
        write_matrix(stored.folder / f"pbo_{kind}.npz", returns, found)
        content[kind] = found.to_json()
    write_csv(stored.folder / "pbo_trials.csv", returns.rows)
    print(f"study {stored.study.study_name}: {content['trials']}")
    print(f"winner: trial {returns.numbers[returns.winner]}\n\n{text_table(returns.rows, TRIAL_COLUMNS)}\n")
    for name, spec in FIGURES.items():
        table.append({"figure": name, **{kind: format(content[kind][name], spec) for kind in KINDS}})
    print(text_table(table, {"figure": "", **dict.fromkeys(KINDS, "")}))
    for kind, words in KINDS.items():
        print(f"\nBy {words}: {content[kind]['verdict']}")
    write_json(stored.folder / "pbo.json", with_null(content))
    print(f"\nwritten: {stored.folder / 'pbo.json'}, pbo_trials.csv, pbo_account.npz, pbo_lead.npz")


def main(argv: list[str] | None = None) -> int:
    """Parse, run, report."""
    args = parser().parse_args(argv)
    plain_logging("train")
    return exit_code("5_pbo.py", lambda: judge(args))
