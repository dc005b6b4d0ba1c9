"""Flags, argument types and exit codes shared by all programs. Heavy imports are deferred until they are needed."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from market.defaults import FEATURE_SET_NAMES, STAMPS
from market.errors import BarsError, UserError
from market.names import TIMEFRAME_SECONDS, ticker_of
from market.symbols import known_pair
from train.records.errors import StudyError
from train.records.keys import DEFAULT_STORAGE
from train.records.provenance import ROOT, home

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy.engine import URL

    from market.dataset import Dataset
    from market.venues import Venue
    from train.findings.stored_trial import StoredStudy, StoredTrial

FAULT, USER_ERROR, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141  # exit codes
# Errors that mean a wrong path on the command line. Other operating system errors are machine failures.
WRONG_PATHS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
SAID_IN_A_LINE = (UserError, ModuleNotFoundError, OSError, MemoryError, RuntimeError, ValueError)
INSTALL = "pip install -e . in the repository, or activate its environment: source .venv/bin/activate"


# ----------------------------------------------------------------------------------------------------------- exit codes
def exit_code(
    program: str,
    work: Callable[[], int | None],
    after_a_fault: str = "",
    faults: tuple[type[Exception], ...] = (),
) -> int:
    """Run a program, report its errors as one line on standard error, and return its exit code.

    Args:
        program: name of the program, printed at the start of the line.
        work: function to run; it returns the exit code, or None for 0.
        after_a_fault: advice appended to the line after a machine or database failure.
        faults: additional exception types that count as machine failures, such as GPU errors.

    Returns:
        2 for an error that the user can fix, such as a wrong flag, file, study or dataset; 1 for a machine or database
        failure; 130 after Ctrl-C; 141 after a broken pipe. Other exceptions are bugs and are re-raised.
    """
    try:
        refuse_another_checkout()
        return work() or 0
    except KeyboardInterrupt as interruption:
        say(program, f"interrupted{f'; {interruption}' if interruption.args else ''}")
        return INTERRUPTED
    except (*SAID_IN_A_LINE, *database_errors()) as error:  # evaluated only after an exception
        code, text = code_and_text(error)
        if code is None and isinstance(error, faults):
            code, text = FAULT, f"{type(error).__name__}: {str(error).strip() or 'no message'}"
        if code is None:
            raise
        say(program, f"{text}; {after_a_fault}" if code == FAULT and after_a_fault else text)
        return code


def refuse_another_checkout() -> None:
    """Refuse to run a script from one checkout with the installed code, data and results of a different checkout.

    Raises:
        UserError: if the script's checkout is not the installed one. The message explains how to install it.
    """
    script = Path(sys.argv[0]).resolve()
    own = next((folder for folder in script.parents if (folder / "barwise" / "__main__.py").is_file()), ROOT)
    if own != ROOT:
        raise UserError(f"{own} is not the installed checkout ({ROOT}); run pip install -e . in {own}")


def code_and_text(error: BaseException) -> tuple[int | None, str]:
    """Return the exit code and one-line message of an error; the code is None for a bug in this code."""
    if isinstance(error, UserError):
        return error.exit_code, str(error)
    if isinstance(error, ModuleNotFoundError):
        missing = str(error.name)
        if missing.partition(".")[0] in ("barwise", "market", "train", "drl_agents"):
            return None, ""
        return USER_ERROR, f"{missing} is not installed for this Python: {INSTALL}"
    if isinstance(error, ValueError) and type(error).__name__ == "PolicyFileError":
        return USER_ERROR, str(error)
    if isinstance(error, BrokenPipeError):  # the reader of the output, such as head, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # avoids a flush into the closed pipe at exit
        return BROKEN_PIPE, "the reader of the output has exited"
    if isinstance(error, OSError):
        text = f"{error.filename or 'file'}: {error.strerror or error}"
        return (USER_ERROR if isinstance(error, WRONG_PATHS) else FAULT), text
    if isinstance(error, database_errors()):
        from train.store.retrying import reason_of

        return FAULT, f"the database failed: {reason_of(error)}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's is a RuntimeError
        return FAULT, f"out of memory: {str(error).strip() or 'no message'}"
    return None, ""


def database_errors() -> tuple[type[Exception], ...]:
    """Return the exception types of databases, or an empty tuple if Optuna has not been imported."""
    if "optuna" not in sys.modules:
        return ()
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return StorageInternalError, SQLAlchemyError


def say(program: str, text: str) -> None:
    """Write one line to standard error."""
    sys.stderr.write(f"{program}: {text}\n")


def plain_logging(*names: str) -> None:
    """Log the messages of these packages to standard error without timestamps."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in names:
        logging.getLogger(name).setLevel(logging.INFO)


# --------------------------------------------------------------------------------------------------------------- values
def day_seconds(text: str) -> int:
    """Parse a time of day (HH:MM) into seconds since midnight."""
    hours, colon, minutes = text.partition(":")
    if not (colon and hours.isdecimal() and minutes.isdecimal() and int(hours) < 24 and int(minutes) < 60):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time of day such as 16:00")
    return 3_600 * int(hours) + 60 * int(minutes)


def utc_date(text: str) -> datetime:
    """Parse an ISO date or date-time. A value without a time zone is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an ISO date such as 2024-01-31") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def whole_number(least: int) -> Callable[[str], int]:
    """Return an argument type for integers of at least `least`."""

    def parse(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {least}")
        return int(text)

    return parse


def factor(text: str) -> float:
    """Parse a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number of at least 0")
    return value


def file_to_write(text: str) -> Path:
    """Parse the path of an output file, relative to the current folder."""
    path = Path.cwd() / text
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; give the path of a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"folder {path.parent} does not exist")
    return path


def split_tickers(words: list[str]) -> list[str]:
    """Return the tickers of arguments that may contain commas.

    Raises:
        BarsError: if no coin is given, or if a coin is given more than once.
    """
    tickers = [ticker for word in words for ticker in word.split(",") if ticker.strip()]
    names = [ticker_of(ticker) for ticker in tickers if known_pair(ticker)]  # other spellings depend on the data
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not tickers:
        raise BarsError("--tickers: no coin given")
    if repeated:
        raise BarsError(f"--tickers: {', '.join(repeated)} given more than once; list each coin once")
    return tickers


# ------------------------------------------------------------------------------------------ flags of the data programs
def add_tickers(
    parser: argparse.ArgumentParser,
    default: Sequence[str] | None,
    default_timeframe: str | None = "5m",
    default_words: tuple[str, str] = ("%(default)s", "%(default)s"),
) -> None:
    """Add --tickers and --timeframe; `default_words` describes their defaults in the help text."""
    parser.add_argument(
        "--tickers",
        nargs="+",
        default=None if default is None else list(default),
        metavar="TICKER",
        help=f"coins in column order, such as BTC or BTC/USD (default: {default_words[0]})",
    )
    parser.add_argument(
        "--timeframe",
        choices=TIMEFRAME_SECONDS,
        default=default_timeframe,
        help=f"bar length (default: {default_words[1]})",
    )


def add_stamp(parser: argparse.ArgumentParser, default: str | None = "open") -> None:
    """Add --stamp and --offset to a program that reads bar files."""
    parser.add_argument(
        "--stamp",
        choices=STAMPS,
        default=default,
        help="whether each timestamp in the file marks the open or the close of its bar (default: open)",
    )
    parser.add_argument(
        "--offset",
        type=day_seconds,
        metavar="HH:MM",
        help="offset of bar opens from the UTC grid, such as 16:00 if daily bars open at 16:00 UTC (default: 00:00)",
    )


def add_features(parser: argparse.ArgumentParser, default: str | None = "default") -> None:
    """Add --features to a program that builds a dataset."""
    parser.add_argument(
        "--features",
        choices=FEATURE_SET_NAMES,
        default=default,
        help="feature set: default for stationary, scaled features; host for the raw features of the FinRL_Crypto "
        "family, in dollars, coins and points (default: default)",
    )


def add_venue(parser: argparse.ArgumentParser) -> None:
    """Add --venue to a program that builds a dataset."""
    parser.add_argument(
        "--venue",
        type=Path,
        metavar="FILE",
        help="JSON file of order rules and fees for the dataset, written by scripts/data/refresh_venues.py "
        "(default: the built-in Alpaca table)",
    )


def add_dataset_folder(parser: argparse.ArgumentParser) -> None:
    """Add --out and --overwrite to a program that builds a dataset."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="dataset folder to write, for example data/5m"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset")


def write_dataset(dataset: Dataset, args: argparse.Namespace) -> None:
    """Write the dataset and its plot to --out, and print its order rules and label."""
    from market.dataset import save_dataset
    from market.describe import venue_lines
    from market.pictures import quality_picture

    save_dataset(dataset, args.out, args.overwrite, quality_picture(dataset))
    for line in venue_lines(dataset):
        print(line)
    print(f"wrote {args.out}: {dataset.label}")


def with_lookahead_check(dataset: Dataset, bars: pd.DataFrame, tickers: Sequence[str] | None = None) -> Dataset:
    """Run the look-ahead check, which takes at most one minute, print its result and return the dataset with it."""
    from tqdm import tqdm

    from market.lookahead import checked

    with tqdm(unit="build", disable=None, desc="look-ahead check") as progress:

        def show(n_runs: int) -> None:
            progress.total = n_runs
            progress.update()

        try:
            dataset, _ = checked(dataset, bars, tickers, on_run=show)
        except BarsError as error:
            print(f"look-ahead: not checked ({error})")
            return dataset
    print(dataset.standing.line)
    return dataset


def venue_of(path: Path | None) -> Venue:
    """Return the order rules of --venue, or the built-in Alpaca rules if the flag is not given."""
    from market.venues import ALPACA, load_venue

    return ALPACA if path is None else load_venue(path)


# ---------------------------------------------------------------------------------------- flags of the study programs
def add_storage(parser: argparse.ArgumentParser) -> None:
    """Add --storage."""
    parser.add_argument(
        "--storage",
        metavar="URL",
        help=f"study database: sqlite:///FILE or postgresql://USER@HOST/NAME (default: {DEFAULT_STORAGE})",
    )


def add_artifacts(parser: argparse.ArgumentParser, what: str, is_required: bool = False) -> None:
    """Add --artifacts with the help text `what`."""
    parser.add_argument("--artifacts", required=is_required, metavar="URL", help=what)


def add_results_dir(parser: argparse.ArgumentParser) -> None:
    """Add --results-dir to a program that reads results."""
    parser.add_argument(
        "--results-dir",
        type=Path,
        metavar="DIR",
        help="parent folder of the study's results (default: the folder that the study was run with)",
    )


def add_study(parser: argparse.ArgumentParser, is_required: bool = True) -> None:
    """Add the flags that select a study."""
    whose = "name of a study created by scripts/training/1_optimize_unified.py"
    parser.add_argument(
        "--study-name",
        "--study",
        required=is_required,
        metavar="NAME",
        help=whose if is_required else f"{whose} (default: the newest in the database)",
    )
    add_storage(parser)
    add_results_dir(parser)


def add_trial(parser: argparse.ArgumentParser) -> None:
    """Add the flags that select a trial and its dataset."""
    add_study(parser)
    parser.add_argument("--trial", default="best", metavar="N", help="trial number, or 'best' (default: best)")
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="the study's dataset, verified by its hash (default: the folder that the study was run with)",
    )
    parser.add_argument("--gpu", type=int, default=-1, metavar="N", help="GPU number, or -1 for the CPU (default: -1)")


def here(path: Path | None) -> Path | None:
    """Return a command-line path as an absolute path, resolved from the current folder."""
    return None if path is None else Path.cwd() / path


def storage_of(args: argparse.Namespace) -> URL:
    """Return the URL of --storage, or of the default database."""
    from train.store.address import absolute_url

    return absolute_url(args.storage, Path.cwd()) if args.storage else absolute_url(DEFAULT_STORAGE, home())


def artifacts_of(args: argparse.Namespace) -> str | None:
    """Return the URL of --artifacts, or None if the flag is not given."""
    if args.artifacts is None:
        return None
    from train.store.artifact_store import artifacts_url

    return artifacts_url(args.artifacts, Path.cwd())


def stored_study(args: argparse.Namespace) -> StoredStudy:
    """Open the study that the flags select for reading."""
    from train.findings.stored_trial import open_stored

    return open_stored(storage_of(args), args.study_name, here(args.results_dir))


def stored_trial(args: argparse.Namespace) -> StoredTrial:
    """Prepare the device and read the trial that the flags select, with its dataset."""
    import torch

    from train.device import prepare_device
    from train.findings.stored_trial import own_data_dir, read_trial

    n_gpus = torch.cuda.device_count()
    if args.gpu >= n_gpus:
        raise StudyError(f"--gpu {args.gpu}: torch found {n_gpus or 'no'} GPUs; pass --gpu -1 for the CPU")
    stored = stored_study(args)
    data_dir = here(args.data_dir) or own_data_dir(stored)
    prepare_device(args.gpu)
    return read_trial(stored, args.trial, data_dir)
